//! The driver's side of a split virtqueue (virtio 1.2 section 2.7).
//!
//! The available ring is also the list of free slots: behind the entries the device may take stand those that came back,
//! in that order, to be made available again by moving the index alone. A sender whose device gives buffers back in order
//! need not even look at the used entries: the used index tells all. With `VIRTIO_F_IN_ORDER` one used entry may stand for
//! several buffers; [`SplitRing::take`] unfolds it.

use super::backing::{Backing, Fifo, Used, is_event_between, put_descriptor_at};
use super::layout::Place;
use super::{DriverError, USER_BASE};
use crate::chain::{DESCRIPTOR_LEN, Descriptor, NEXT};
use crate::memory::DriverMemory;
use crate::message::RingAddresses;
use crate::net::{F_EVENT_IDX, F_IN_ORDER};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// One split ring as the driver sees it, with raw access to all that a driver writes.
pub struct SplitRing {
    pub(super) backing: Backing,
    descriptors: usize,
    available: usize,
    used: usize,
    /// The available index, as last written.
    next: u16,
    /// Used entries looked at.
    seen: u16,
    /// Whether the used index alone is believed.
    is_trusting: bool,
    /// The slot that is posted next by a sender that trusts: they take their turns by their numbers.
    turn: u16,
    /// Whether each position's slot is the position's number, for all came back in order; `posted` means nothing then.
    is_orderly: bool,
    posted: Box<[bool]>,
    has_event_index: bool,
    /// What was made available and has not come back, oldest first; kept with `VIRTIO_F_IN_ORDER` only.
    order: Option<Fifo>,
    /// Buffers that the last used entry stands for and that were not handed out, and the bytes of the last of them.
    unfolding: (u16, u32),
}

impl SplitRing {
    pub(super) fn new(memory: &Arc<DriverMemory>, place: &Place, is_trusting: bool) -> Result<SplitRing, DriverError> {
        assert!(place.size.is_power_of_two() && place.size <= 32_768, "a split ring's size is a power of two");
        let backing = Backing::new(memory, place)?;
        let [descriptors, available, used] = place.parts;
        let mut ring = SplitRing {
            descriptors,
            available,
            used,
            next: 0,
            seen: 0,
            is_trusting,
            turn: 0,
            is_orderly: false,
            posted: vec![false; usize::from(place.size)].into(),
            has_event_index: false,
            order: None,
            unfolding: (0, 0),
            backing,
        };
        ring.list_all_slots();
        ring.set_interrupts(false);
        Ok(ring)
    }

    /// Takes over what was agreed on.
    pub(super) fn agree(&mut self, features: u64) {
        self.has_event_index = features & F_EVENT_IDX != 0;
        let is_in_order = features & F_IN_ORDER != 0;
        // Section 2.7.5.1 (in order): descriptors are used in the order of the table, around its end.
        assert!(
            !is_in_order || self.backing.size.is_multiple_of(self.backing.shape.width()),
            "in order, chains must fill the table"
        );
        if is_in_order != self.order.is_some() {
            self.leave_order();
            self.order = is_in_order.then(|| Fifo::new(self.backing.size));
        }
    }

    /// Forgets everything, as after a reset of the device: no buffer is available.
    pub(super) fn reset(&mut self) {
        (self.next, self.seen, self.turn, self.unfolding) = (0, 0, 0, (0, 0));
        if let Some(order) = &mut self.order {
            order.clear();
        }
        self.list_all_slots();
        for part in [self.available, self.used] {
            self.backing.memory.word(part + 2).store(0, Ordering::Relaxed);
        }
    }

    /// Every slot is free, in the order of their numbers.
    pub(super) fn list_all_slots(&mut self) {
        for position in 0..self.backing.size {
            self.put_entry(position, self.head_of(position % self.backing.slots));
        }
        self.posted.fill(false);
        self.is_orderly = !self.is_trusting && self.order.is_none() && self.backing.slots == self.backing.size;
    }

    /// Uses `count` slots and no more; nothing is available yet.
    pub(super) fn limit(&mut self, count: u16) {
        self.backing.slots = count;
        self.turn = 0;
        self.list_all_slots();
    }

    /// Writes down what followed from the positions as long as all came back in order.
    #[cold]
    fn leave_order(&mut self) {
        if std::mem::take(&mut self.is_orderly) {
            for ahead in 0..self.next.wrapping_sub(self.seen) {
                let slot = self.mask(self.seen.wrapping_add(ahead));
                self.posted[usize::from(slot)] = true;
            }
        }
    }

    /// Makes all slots free, whatever was available, from where the device stands; answers how many that are.
    pub(super) fn rewind(&mut self) -> u16 {
        self.list_all_slots();
        self.next = self.seen;
        if let Some(order) = &mut self.order {
            order.clear();
        }
        self.unfolding = (0, 0);
        self.backing.slots
    }

    #[inline]
    fn head_of(&self, slot: u16) -> u16 {
        slot * self.backing.shape.width()
    }

    #[inline]
    fn mask(&self, position: u16) -> u16 {
        position & (self.backing.size - 1)
    }

    /// The available index, as last written.
    pub fn next(&self) -> u16 {
        self.next
    }

    /// Writes entry `index` of the descriptor table, whatever it says.
    pub fn put_descriptor(&self, index: u16, descriptor: Descriptor) {
        let at = self.descriptors + usize::from(index) * DESCRIPTOR_LEN;
        put_descriptor_at(&self.backing.memory, at, descriptor);
    }

    /// Writes the entry at a position of the available ring, whatever it says.
    pub fn put_available(&mut self, position: u16, head: u16) {
        self.leave_order();
        self.put_entry(position, head);
    }

    #[inline]
    fn put_entry(&self, position: u16, head: u16) {
        let at = self.available + 4 + 2 * usize::from(self.mask(position));
        self.backing.memory.word(at).store(head.to_le(), Ordering::Relaxed);
    }

    #[inline]
    fn available_entry(&self, position: u16) -> u16 {
        let at = self.available + 4 + 2 * usize::from(self.mask(position));
        u16::from_le(self.backing.memory.word(at).load(Ordering::Relaxed))
    }

    /// Writes the available index, whatever it says, and kicks if the backend wants it.
    pub fn set_available_index(&mut self, index: u16) {
        self.leave_order();
        self.show(index);
    }

    #[inline]
    fn show(&mut self, index: u16) {
        let old = std::mem::replace(&mut self.next, index);
        if self.is_trusting {
            self.turn = self.slot_in_turn(index.wrapping_sub(old));
        }
        self.backing.memory.word(self.available + 2).store(index.to_le(), Ordering::Release);
        // Section 2.7.13.3.1: the index before the look at the flags.
        fence(Ordering::SeqCst);
        if self.is_kick_due(old, index) {
            self.backing.kick();
        }
    }

    /// Puts one chain into the available ring.
    pub fn post_head(&mut self, head: u16) {
        self.put_available(self.next, head);
        self.note_posted(head / self.backing.shape.width());
        self.set_available_index(self.next.wrapping_add(1));
    }

    /// Writes a chain into the table from entry `id` on, entry by entry, and makes it available. Where `NEXT` is set it
    /// means the entry after; everything else is written as it is.
    pub fn post_chain(&mut self, id: u16, chain: &[Descriptor]) {
        for (at, descriptor) in (0u16..).zip(chain) {
            let index = id.wrapping_add(at);
            let next = if descriptor.flags & NEXT != 0 { index.wrapping_add(1) } else { descriptor.next };
            self.put_descriptor(index, Descriptor { next, ..*descriptor });
        }
        self.post_head(id);
    }

    #[inline]
    fn is_kick_due(&self, old: u16, new: u16) -> bool {
        if self.has_event_index {
            // Section 2.7.10: the device's wish stands behind the used ring.
            let at = self.used + 4 + 8 * usize::from(self.backing.size);
            let event = u16::from_le(self.backing.memory.word(at).load(Ordering::Relaxed));
            return is_event_between(event, old, new);
        }
        u16::from_le(self.backing.memory.word(self.used).load(Ordering::Relaxed)) & NO_NOTIFY == 0
    }

    /// Whether the backend asks to be kicked for the next entry.
    #[inline]
    pub fn wants_kick(&self) -> bool {
        self.is_kick_due(self.next, self.next.wrapping_add(1))
    }

    /// The used index, as the backend last wrote it.
    #[inline]
    pub fn used_index(&self) -> u16 {
        u16::from_le(self.backing.memory.word(self.used + 2).load(Ordering::Acquire))
    }

    /// The used entry at a position: the chain's head and the bytes written.
    #[inline]
    pub fn used_entry(&self, position: u16) -> (u32, u32) {
        let at = self.used + 4 + 8 * usize::from(self.mask(position));
        let word = |at: usize| u32::from_le(self.backing.memory.word32(at).load(Ordering::Relaxed));
        (word(at), word(at + 4))
    }

    /// Asks the backend for interrupts, or for none. With event indices: for one, when the next buffer is used.
    pub(super) fn set_interrupts(&self, are_wanted: bool) {
        let memory = &self.backing.memory;
        if self.has_event_index {
            // Section 2.7.7.1: the flag must be 0 and the index decides. The entry just seen comes again after 65,535 others.
            let event = if are_wanted { self.seen } else { self.seen.wrapping_sub(1) };
            let at = self.available + 4 + 2 * usize::from(self.backing.size);
            memory.word(at).store(event.to_le(), Ordering::Relaxed);
        }
        let flags = if are_wanted || self.has_event_index { 0 } else { NO_INTERRUPT };
        memory.word(self.available).store(u16::to_le(flags), Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Describes the first `len` bytes of a slot's buffer.
    pub(super) fn describe(&mut self, slot: u16, len: u32) {
        let (backing, head) = (&self.backing, self.head_of(slot));
        let pieces = backing.shape.pieces;
        if backing.shape.is_indirect {
            backing.put_table(slot, len, put_descriptor_at);
            let (address, len, flags) = backing.table(slot);
            self.put_descriptor(head, Descriptor { address, len, flags, next: 0 });
            return;
        }
        for index in 0..pieces {
            let (address, len) = backing.piece(slot, len, index);
            let link = if index + 1 < pieces { NEXT } else { 0 };
            let next = if link == NEXT { head + index + 1 } else { 0 };
            self.put_descriptor(head + index, Descriptor { address, len, flags: backing.direction | link, next });
        }
    }

    /// Slots that may be posted now.
    #[inline]
    pub(super) fn free(&mut self) -> u16 {
        if self.is_trusting {
            self.seen = self.used_index();
        } else {
            let mut used = [Used::default(); 32];
            while self.take(&mut used) == used.len() {}
        }
        self.backing.slots.saturating_sub(self.next.wrapping_sub(self.seen))
    }

    /// The slot that is posted next but `ahead`.
    #[inline]
    pub(super) fn next_slot(&self, ahead: u16) -> u16 {
        if self.is_trusting {
            self.slot_in_turn(ahead)
        } else if self.is_orderly {
            self.mask(self.next.wrapping_add(ahead))
        } else {
            self.available_entry(self.next.wrapping_add(ahead)) / self.backing.shape.width()
        }
    }

    #[inline]
    fn slot_in_turn(&self, ahead: u16) -> u16 {
        let (slot, slots) = (u32::from(self.turn) + u32::from(ahead), u32::from(self.backing.slots));
        (if slot < 2 * slots { slot.checked_sub(slots).unwrap_or(slot) } else { slot % slots }) as u16
    }

    /// The slot that is posted next, if those after it follow in the order of their numbers.
    #[inline]
    pub(super) fn turn(&self) -> Option<u16> {
        self.is_trusting.then_some(self.turn)
    }

    /// The same, after a raw entry there was put right: a sender that trusts goes by the numbers.
    pub(super) fn claim_slot(&self, ahead: u16) -> u16 {
        let slot = self.next_slot(ahead);
        if self.is_trusting {
            self.put_entry(self.next.wrapping_add(ahead), self.head_of(slot));
        }
        slot
    }

    #[inline]
    fn note_posted(&mut self, slot: u16) {
        if let Some(is_posted) = self.posted.get_mut(usize::from(slot)) {
            *is_posted = true;
        }
        if let Some(order) = &mut self.order {
            order.push(slot);
        }
    }

    /// Makes the next `count` slots available; they are free and described.
    #[inline]
    pub(super) fn post_next(&mut self, count: u16) {
        if self.is_trusting {
            // Where a lap of the slots is shorter than the ring, their turns move along it.
            for ahead in 0..if self.backing.slots == self.backing.size { 0 } else { count } {
                self.claim_slot(ahead);
            }
        } else if !self.is_orderly {
            for ahead in 0..count {
                self.note_posted(self.next_slot(ahead));
            }
        }
        if count > 0 {
            self.show(self.next.wrapping_add(count));
        }
    }

    /// Takes what the device is done with, as much as there is room for; answers how much. Their slots are free again, in
    /// this order.
    #[inline]
    pub(super) fn take(&mut self, out: &mut [Used]) -> usize {
        let end = self.used_index();
        let mut count = if self.is_orderly { self.take_orderly(end, out) } else { 0 };
        if self.is_orderly {
            return count;
        }
        while count < out.len() && (self.seen != end || self.unfolding.0 > 0) {
            let (slot, len) = if self.order.is_some() { self.unfold(end) } else { self.entry(self.seen) };
            let position = self.seen.wrapping_add(self.backing.slots);
            self.seen = self.seen.wrapping_add(1);
            if let Some(used) = self.backing.checked(slot, len, &mut self.posted) {
                // Buffers mostly come back in order, so the entry is right already and its line stays clean.
                let head = self.head_of(slot);
                if self.available_entry(position) != head {
                    self.put_entry(position, head);
                }
                out[count] = used;
                count += 1;
            }
        }
        count
    }

    /// Takes entries as long as they come in order; the ring is no longer orderly if one does not.
    #[inline]
    fn take_orderly(&mut self, end: u16, out: &mut [Used]) -> usize {
        let (shown, under_way) = (end.wrapping_sub(self.seen), self.next.wrapping_sub(self.seen));
        let mut count = 0;
        if shown > under_way {
            self.leave_order();
        }
        let max = out.len().min(shown.into());
        while count < max && self.is_orderly {
            let first = self.mask(self.seen);
            let run = (max - count).min(usize::from(self.backing.size - first));
            let words = self.backing.memory.words32(self.used + 4 + 8 * usize::from(first), 2 * run);
            let mut slot = first;
            for (entry, out) in words.chunks_exact(2).zip(&mut out[count..]) {
                let [head, len] = [&entry[0], &entry[1]].map(|word| u32::from_le(word.load(Ordering::Relaxed)));
                if head != u32::from(slot) || len as usize > self.backing.buffer_len {
                    break;
                }
                *out = Used { slot, len };
                slot += 1;
            }
            let taken = slot - first;
            self.seen = self.seen.wrapping_add(taken);
            count += usize::from(taken);
            if usize::from(taken) < run {
                self.leave_order();
            }
        }
        count
    }

    #[inline]
    fn entry(&self, position: u16) -> (u16, u32) {
        let (head, len) = self.used_entry(position);
        let width = u32::from(self.backing.shape.width());
        (u16::try_from(head / width).unwrap_or(u16::MAX), len)
    }

    /// The next buffer used, where one entry may stand for several (section 2.7.9).
    fn unfold(&mut self, end: u16) -> (u16, u32) {
        if self.unfolding.0 == 0 {
            let (last, len) = self.entry(self.seen);
            let found = self.order.as_ref().and_then(|order| order.position_of(last));
            let Some(before) = found else { return (u16::MAX, len) };
            // A device that skips moves its index by as many.
            let (batch, shown) = (before as u16 + 1, end.wrapping_sub(self.seen));
            self.backing.faults += u64::from(batch > shown);
            self.unfolding = (batch.min(shown), len);
        }
        let (left, len) = self.unfolding;
        self.unfolding.0 = left - 1;
        let slot = self.order.as_mut().and_then(Fifo::pop).unwrap_or(u16::MAX);
        // Section 2.7.9: buffers that were skipped count as used completely.
        (slot, if left == 1 { len } else { self.backing.buffer_len as u32 })
    }

    /// Where a device that starts now goes on: at the used index, as QEMU restores it.
    pub(super) fn base(&self) -> u32 {
        u32::from(self.used_index())
    }

    pub(super) fn addresses(&self, index: u32) -> RingAddresses {
        let user = |offset: usize| USER_BASE + offset as u64;
        RingAddresses {
            index,
            flags: 0,
            descriptors: user(self.descriptors),
            used: user(self.used),
            available: user(self.available),
            log: 0,
        }
    }
}
