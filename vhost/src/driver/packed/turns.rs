//! Slots that take turns: as long as a device gives buffers back in the order it got them, the next slot is the next number,
//! and nobody needs to write down which are under way.

use super::{PackedDescriptor, PackedRing, available_flags, is_used};
use crate::driver::backing::Used;
use std::sync::atomic::Ordering;

/// Descriptors in a cache line.
const LINE: u16 = 64 / 16;

impl PackedRing {
    /// Uses only so many of the slots, of which none is under way.
    pub(in crate::driver) fn limit(&mut self, count: u16) {
        self.backing.slots = count;
        self.list_all_slots();
    }

    /// See [`crate::driver::ring::Ring::turn`].
    #[inline]
    pub(in crate::driver) fn turn(&self) -> Option<u16> {
        self.is_orderly.then_some(self.turn)
    }

    /// The slot whose turn it is `ahead` after `slot`; both are at most the slots there are.
    #[inline]
    pub(super) fn after(&self, slot: u16, ahead: u16) -> u16 {
        let (slot, slots) = (u32::from(slot) + u32::from(ahead), u32::from(self.backing.slots));
        (if slot < slots { slot } else { slot - slots }) as u16
    }

    /// From now on writes down which slots are under way: one came back before its turn, or was posted out of turn.
    #[cold]
    pub(super) fn keep_lists(&mut self) {
        if !std::mem::take(&mut self.is_orderly) {
            return;
        }
        let under_way = self.backing.size - self.room;
        self.free.clear();
        for ahead in 0..self.backing.slots - under_way {
            self.free.push(self.after(self.turn, ahead));
        }
        self.posted.fill(false);
        for ahead in 0..under_way {
            self.posted[usize::from(self.after(self.due, ahead))] = true;
        }
    }

    /// Makes the next `count` slots available, of which each takes its turn.
    #[inline]
    pub(super) fn post_in_turn(&mut self, count: u16) {
        let (backing, size) = (&self.backing, self.backing.size);
        let count = count.min(self.vacant());
        let (mut at, mut slot, mut first) = (self.next, self.turn, None);
        for _ in 0..count {
            let (address, len) = (backing.address(backing.buffer_at(slot)), self.lens[usize::from(slot)]);
            let flags = backing.direction | available_flags(at.wrap);
            let (low, high) = PackedDescriptor { address, len, id: slot, flags }.to_words();
            let [low_word, high_word] = backing.memory.words64(self.entry_at(at.index));
            low_word.store(low, Ordering::Relaxed);
            match first {
                Some(_) => high_word.store(high, Ordering::Relaxed),
                None => first = Some((high_word, high)),
            }
            at = at.plus(1, size);
            slot = self.after(slot, 1);
        }
        let Some((word, high)) = first else { return };
        word.store(high, Ordering::Release);
        (self.next, self.turn) = (at, slot);
        self.room -= count;
        self.notify(count);
    }

    /// Takes what the device is done with, as long as each slot comes back in its turn; answers how much.
    #[inline]
    pub(super) fn take_in_turn(&mut self, out: &mut [Used]) -> usize {
        let (size, len_max) = (self.backing.size, self.backing.buffer_len);
        let mut count = 0;
        while self.is_orderly && count < out.len() && self.room < size {
            let word = self.backing.memory.word64(self.entry_at(self.seen.index) + 8).load(Ordering::Acquire);
            let used = PackedDescriptor::from_words(0, word);
            if !is_used(used.flags, self.seen.wrap) {
                break;
            }
            if used.id != self.due || used.len as usize > len_max {
                self.keep_lists();
                break;
            }
            out[count] = Used { slot: used.id, len: used.len };
            count += 1;
            self.due = self.after(self.due, 1);
            self.seen = self.seen.plus(1, size);
            self.room += 1;
            if self.seen.index.is_multiple_of(LINE) {
                // A device gives back in bursts: the line after the one that begins is read, and then written, before long.
                let ahead = self.seen.plus(LINE % size, size);
                self.backing.memory.prefetch_to_write(self.entry_at(ahead.index));
            }
        }
        count
    }
}
