//! What is written down of a ring, so that a switch that takes the place of one that died goes on where that one stopped.
//!
//! The layout is that of the vhost-user specification ("Inflight I/O tracking"), whoever keeps the file: the frontend, or
//! we ourselves ([`crate::state_file`]). The specification tracks every buffer, for devices that finish them in any order.
//! Ours takes a burst and gives it back as a whole and in order, so between two bursts nothing is in flight, and a burst
//! that was not shown may as well never have been taken. That leaves little to write:
//!
//! * Of a **split ring** nothing at all: its used index, in the guest's memory, says where to go on.
//! * Of a **packed ring** where it stands, since nothing in the guest's memory says so. A burst is announced by one store
//!   before it is shown ([`PackedRecord::showing`]) and confirmed by one after ([`PackedRecord::shown`]), both of one word.
//!   Only chains of several descriptors cost a store each ([`PackedRecord::took`]), for a used entry no longer says how many
//!   of the ring's entries it stands for.
//!
//! What makes it hard is the burst that was under way. The entries behind its first are overwritten before the guest sees
//! the first, and with them the guest's own lengths; they cannot be taken again. So if any is overwritten, the burst is
//! given back as it is, with length 0: its frames were lost, and none of its buffers is. If none is, it is taken again.
//!
//! Nothing read here is believed. A record may be older than the ring: a guest that was started anew while no switch ran
//! has fresh rings, perhaps at the same place. So the entry to go on with and one of those given back last must look as
//! they do in a ring that stands there ([`PackedRecord::start`]); a fresh ring hardly ever does, and begins where the
//! frontend says. A record of another backend may name buffers in flight; they are given back empty, which loses what it had begun.
//!
//! Bounds: every walk ends after as many steps as the ring has entries. `start` is for the session's thread, the rest for
//! the worker with the ring's lock.

mod packed;
mod split;
#[cfg(test)]
mod tests;

pub use packed::{PackedRecord, PackedSlots};
pub use split::{SplitRecord, SplitSlots};

use crate::memory::Area;
use packed::{PACKED_ENTRIES, PACKED_ENTRY};
use split::{SPLIT_ENTRIES, SPLIT_ENTRY};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The layout of a region that we know; 0 is one that was never used.
const VERSION: u16 = 1;
/// Bytes to which regions are rounded up: a cache line, as DPDK and libvhost-user do.
const REGION_ALIGN: usize = 64;

/// Offsets in a region, bytes: `features` (64 bits), `version`, `desc_num`, which both layouts have.
const FEATURES: usize = 0;
const SIZE_IN_WORDS: usize = 8;

/// Bytes of the region of a ring of `size` entries.
pub const fn region_len(is_packed: bool, size: u16) -> usize {
    let (header, entry) = if is_packed { (PACKED_ENTRIES, PACKED_ENTRY) } else { (SPLIT_ENTRIES, SPLIT_ENTRY) };
    (header + entry * size as usize).next_multiple_of(REGION_ALIGN)
}

/// Why a region that a frontend handed back is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecordError {
    /// A layout we do not know.
    #[error("the inflight area has version {version} and features {features:#x}")]
    Unknown {
        /// Its version.
        version: u16,
        /// Its features.
        features: u64,
    },
    /// It was made for another ring.
    #[error("the inflight area is for a ring of {given} entries; this one has {wanted}")]
    OtherSize {
        /// Entries it is for.
        given: u16,
        /// Entries the ring has.
        wanted: u16,
    },
    /// It has no room for the ring.
    #[error("the inflight area has no room for the ring")]
    TooShort,
}

/// The part of an area that belongs to one ring.
struct Region {
    area: Arc<Area>,
    start: usize,
    size: u16,
}

impl Region {
    fn new(area: Arc<Area>, start: usize, size: u16, is_packed: bool) -> Result<Region, RecordError> {
        let end = start.checked_add(region_len(is_packed, size));
        if end.is_none_or(|end| end > area.len()) || !start.is_multiple_of(REGION_ALIGN) {
            return Err(RecordError::TooShort);
        }
        Ok(Region { area, start, size })
    }

    /// Whether something was ever written here.
    fn is_used(&self) -> Result<bool, RecordError> {
        let features = self.get64(FEATURES);
        let [version, given, ..] = halves(self.get64(SIZE_IN_WORDS));
        match (version, features) {
            (0, _) => Ok(false),
            (VERSION, 0) if given == self.size => Ok(true),
            (VERSION, 0) => Err(RecordError::OtherSize { given, wanted: self.size }),
            _ => Err(RecordError::Unknown { version, features }),
        }
    }

    #[inline]
    fn get16(&self, offset: usize) -> u16 {
        self.area.word16(self.start + offset).load(Ordering::Relaxed)
    }

    #[inline]
    fn put16(&self, offset: usize, value: u16) {
        self.area.word16(self.start + offset).store(value, Ordering::Relaxed);
    }

    #[inline]
    fn get64(&self, offset: usize) -> u64 {
        self.area.word64(self.start + offset).load(Ordering::Relaxed)
    }

    /// A store that no later one overtakes is not needed: the process dies between two instructions, and what it stored
    /// before is in the page. The compiler must keep the order; that is what `Release` is for.
    #[inline]
    fn put64(&self, offset: usize, value: u64) {
        self.area.word64(self.start + offset).store(value, Ordering::Release);
    }

    /// Entries marked as in flight, oldest first.
    fn inflight(&self, entries: usize, len: usize, counter: usize) -> Vec<u16> {
        let mut found: Vec<(u64, u16)> = (0..self.size)
            .map(|index| (entries + len * usize::from(index), index))
            .filter(|(at, _)| self.get16(*at).to_ne_bytes()[0] == 1)
            .map(|(at, index)| (self.get64(at + counter), index))
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, index)| index).collect()
    }
}

fn halves(word: u64) -> [u16; 4] {
    let bytes = word.to_ne_bytes();
    std::array::from_fn(|at| u16::from_ne_bytes([bytes[2 * at], bytes[2 * at + 1]]))
}

fn from_halves(halves: [u16; 4]) -> u64 {
    let mut bytes = [0; 8];
    for (at, half) in halves.into_iter().enumerate() {
        bytes[2 * at..][..2].copy_from_slice(&half.to_ne_bytes());
    }
    u64::from_ne_bytes(bytes)
}

/// How a ring went on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resumed {
    /// Where: a split ring's used index, or a packed ring's entry with the wrap counter in bit 15.
    pub position: u16,
    /// Chains given back empty, because nobody knows what became of them.
    pub given_back: u16,
    /// Whether the record had a say.
    pub is_recorded: bool,
}
