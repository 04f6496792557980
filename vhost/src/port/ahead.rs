//! Buffers are found, and their memory sent for, some entries before they are used: the guest wrote or read them on another
//! core, so that each is a trip to its cache. One more is sent for as one is used, which spreads the trips.

use crate::memory::{GuestMemory, RegionHint, Window};
use crate::ring::Entry;
use switch::segment::{Segment, SegmentMut};

/// Entries between where a buffer is sent for and where it is used.
pub(super) const AHEAD: usize = 16;

/// Translates the addresses of one guest.
pub(super) struct Finder<'m, 'h> {
    memory: &'m GuestMemory,
    hint: &'h mut RegionHint,
    /// The region where the last one was.
    window: Window<'m>,
}

impl<'m, 'h> Finder<'m, 'h> {
    #[inline(always)]
    pub(super) fn new(memory: &'m GuestMemory, hint: &'h mut RegionHint) -> Finder<'m, 'h> {
        Finder { window: memory.window(*hint), memory, hint }
    }

    /// The buffer of an entry, to read; empty if it is nowhere in memory. Its front is sent for.
    #[inline(always)]
    pub(super) fn readable(&mut self, entry: &Entry) -> Segment<'m> {
        let found = self.window.readable(entry.address, entry.len).unwrap_or_else(|| {
            let found = self.memory.readable(self.hint, entry.address, entry.len);
            self.window = self.memory.window(*self.hint);
            found.unwrap_or_default()
        });
        found.prefetch_front();
        found
    }

    /// The same, to write.
    #[inline(always)]
    pub(super) fn writable(&mut self, entry: &Entry) -> SegmentMut<'m> {
        let found = self.window.writable(entry.address, entry.len).unwrap_or_else(|| {
            let found = self.memory.writable(self.hint, entry.address, entry.len);
            self.window = self.memory.window(*self.hint);
            found.unwrap_or_default()
        });
        found.prefetch_front();
        found
    }
}

/// Buffers that were found and not used yet.
pub(super) struct Ahead<B> {
    found: [B; AHEAD],
}

impl<B: Default> Ahead<B> {
    /// Finds those of the first entries.
    #[inline(always)]
    pub(super) fn new(entries: &[Entry], mut find: impl FnMut(&Entry) -> B) -> Ahead<B> {
        let mut ahead = Ahead { found: Default::default() };
        for (entry, slot) in entries.iter().zip(&mut ahead.found) {
            *slot = find(entry);
        }
        ahead
    }

    /// The buffer of entry `at`, which comes after those before it; finds that of one farther on.
    #[inline(always)]
    pub(super) fn next(&mut self, entries: &[Entry], at: usize, find: impl FnMut(&Entry) -> B) -> B {
        let next = entries.get(at + AHEAD).map(find).unwrap_or_default();
        std::mem::replace(&mut self.found[at % AHEAD], next)
    }
}
