//! What a frontend keeps of a split ring: `QueueRegionSplit` of the specification.
//!
//! Our own rings have nothing in flight, so this is for what another backend left, and to leave the same to it.

use super::{FEATURES, RecordError, Region, Resumed, SIZE_IN_WORDS, VERSION, from_halves};
use crate::memory::Area;
use std::sync::Arc;

/// `QueueRegionSplit`: `last_batch_head` and `used_idx`, then entries of 16 bytes.
pub(super) const SPLIT_BATCH: usize = 12;
const SPLIT_USED: usize = 14;
pub(super) const SPLIT_ENTRIES: usize = 16;
pub(super) const SPLIT_ENTRY: usize = 16;
/// `DescStateSplit`: `inflight`, `next`, `counter`.
pub(super) const SPLIT_NEXT: usize = 6;
pub(super) const SPLIT_COUNTER: usize = 8;
/// A split ring as its recovery needs it; see [`crate::ring::SplitRing`].
pub trait SplitSlots {
    /// How far the used ring is filled.
    fn used_index(&self) -> u16;
    /// The head at a position of the available ring.
    fn available_entry(&self, position: u16) -> u16;
    /// Writes a used entry.
    fn put_used(&self, position: u16, head: u16, len: u32);
    /// Shows all used entries before `position`.
    fn publish_used(&self, position: u16);
}

/// What a frontend keeps of a split ring.
pub struct SplitRecord {
    region: Region,
}

impl SplitRecord {
    /// The record of a ring of `size` entries, `start` bytes into an area.
    ///
    /// # Errors
    /// [`RecordError::TooShort`].
    pub fn new(area: Arc<Area>, start: usize, size: u16) -> Result<SplitRecord, RecordError> {
        Ok(SplitRecord { region: Region::new(area, start, size, false)? })
    }

    /// Takes the ring over from whoever had it before; it goes on at its used index.
    ///
    /// # Errors
    /// [`RecordError::Unknown`], [`RecordError::OtherSize`].
    pub fn start(&self, ring: &impl SplitSlots) -> Result<Resumed, RecordError> {
        let region = &self.region;
        let is_recorded = region.is_used()?;
        let mut used = ring.used_index();
        let mut given_back = 0;
        if is_recorded {
            self.finish_batch(used);
            let heads = region.inflight(SPLIT_ENTRIES, SPLIT_ENTRY, SPLIT_COUNTER);
            // If they are the next in the available ring, in that order, they are simply taken again.
            let is_in_order =
                (0u16..).zip(&heads).all(|(at, head)| ring.available_entry(used.wrapping_add(at)) == *head);
            if !is_in_order {
                for head in heads {
                    ring.put_used(used, head, 0);
                    used = used.wrapping_add(1);
                    given_back += 1;
                }
                ring.publish_used(used);
            }
        }
        for index in 0..usize::from(region.size) {
            region.put16(SPLIT_ENTRIES + SPLIT_ENTRY * index, 0);
        }
        region.put64(FEATURES, 0);
        region.put64(SIZE_IN_WORDS, from_halves([VERSION, region.size, 0, used]));
        Ok(Resumed { position: used, given_back, is_recorded })
    }

    /// The marks of a batch that was shown and not yet struck off (specification, "When reconnecting", first step).
    fn finish_batch(&self, used: u16) {
        let region = &self.region;
        let count = used.wrapping_sub(region.get16(SPLIT_USED));
        let mut index = region.get16(SPLIT_BATCH);
        for _ in 0..count.min(region.size) {
            if index >= region.size {
                return;
            }
            let entry = SPLIT_ENTRIES + SPLIT_ENTRY * usize::from(index);
            region.put16(entry, 0);
            index = region.get16(entry + SPLIT_NEXT);
        }
    }
}
