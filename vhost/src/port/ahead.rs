//! Buffers' memory is sent for some entries before they are used: the guest wrote or read them on another core, so that each is a
//! trip to its cache. One more is sent for as one is used, which spreads the trips.

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

    /// The same, for a while.
    #[inline(always)]
    pub(super) fn reborrow(&mut self) -> Finder<'m, '_> {
        Finder { memory: self.memory, hint: self.hint, window: self.window }
    }

    /// The buffer of an entry, to read; empty if it is nowhere in memory.
    #[inline(always)]
    pub(super) fn readable(&mut self, entry: &Entry) -> Segment<'m> {
        if let Some(found) = self.window.readable(entry.address, entry.len) {
            return found;
        }
        self.window = self.memory.window_at(self.hint, entry.address);
        self.window.readable(entry.address, entry.len).unwrap_or_default()
    }

    /// The same, to write.
    #[inline(always)]
    pub(super) fn writable(&mut self, entry: &Entry) -> SegmentMut<'m> {
        if let Some(found) = self.window.writable(entry.address, entry.len) {
            return found;
        }
        self.window = self.memory.window_at(self.hint, entry.address);
        self.window.writable(entry.address, entry.len).unwrap_or_default()
    }

    /// Sends for the front of a buffer that is to be read.
    #[inline(always)]
    pub(super) fn send_for_readable(&self, entry: &Entry) {
        match self.window.readable(entry.address, entry.len) {
            Some(found) => found.prefetch_front(),
            None => send_for_elsewhere(self.memory, entry.address),
        }
    }

    /// Sends for the front of a buffer that is to be written.
    #[inline(always)]
    pub(super) fn send_for_writable(&self, entry: &Entry) {
        match self.window.writable(entry.address, entry.len) {
            Some(found) => found.prefetch_front(),
            None => send_for_elsewhere(self.memory, entry.address),
        }
    }
}

/// Sends for the front of a buffer in another region.
#[cold]
#[inline(never)]
fn send_for_elsewhere(memory: &GuestMemory, address: u64) {
    memory.prefetch(&mut RegionHint::default(), address);
}
