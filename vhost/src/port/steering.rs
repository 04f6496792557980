//! By which of its rings a guest gets a flow: by that of the pair by which it sent the flow's last frame (virtio 1.2 section 5.1.6.5.6,
//! automatic receive steering), so that one of its processors has both directions; else by one chosen by the flow.
//!
//! Either way a flow has one ring, whichever worker sends, also when a queue moves to another. It changes only when the guest begins to
//! send it or does so by another pair, when another flow takes its slot, and when the guest switches rings.
//!
//! What makes it hard is that nobody tells when a flow ends, and that no clock is read here. A slot of the table is its flow's as
//! long as the flow sends one frame in [`CREDIT_MAX`] of those that meet in the slot. Two flows that meet change places at most so
//! often; the one without goes by its hash. Every worker that polls a queue of the guest writes, each word by itself: one
//! that is lost is written by the flow's next frame. Bounds: [`SLOTS`] words, for guests of several pairs only.

use super::PAIRS_MAX;
use std::sync::atomic::{AtomicU32, Ordering};
use switch::batch::BURST;

/// Flows that are remembered of a guest, as many as Linux remembers of a TAP; 16 KiB.
const SLOTS: usize = 4096;
/// A slot goes to another flow at this many frames of others without one of its own.
const CREDIT_MAX: u32 = 255;
/// The parts of a slot: upper bits of the hash, whose lower ones tell the slot; the pair; the credit, 0 in one that is free.
const TAG: u32 = !(SLOTS as u32 - 1);
const PAIR_SHIFT: u32 = 8;
const PAIR_MASK: u32 = 15;
const _: () = assert!(PAIRS_MAX as u32 == PAIR_MASK + 1 && TAG & (PAIR_MASK << PAIR_SHIFT | CREDIT_MAX) == 0);

/// What is remembered of a guest's flows.
pub(crate) struct Steering {
    slots: Box<[AtomicU32; SLOTS]>,
    /// Bit n: the guest has had buffers in pair n's receive ring.
    filled: AtomicU32,
}

impl Default for Steering {
    fn default() -> Self {
        Steering { slots: Box::new([const { AtomicU32::new(0) }; SLOTS]), filled: AtomicU32::new(0) }
    }
}

impl Steering {
    #[inline]
    fn slot(&self, hash: u32) -> &AtomicU32 {
        &self.slots[hash as usize % SLOTS]
    }

    /// The pairs by which the guest ever wanted to receive.
    #[inline]
    pub(super) fn filled(&self) -> u32 {
        self.filled.load(Ordering::Relaxed)
    }

    pub(super) fn note_filled(&self, pair: usize) {
        self.filled.fetch_or(1 << pair, Ordering::Relaxed);
    }

    /// The guest sent a frame of the flow with this hash by `pair`.
    #[inline]
    pub(super) fn note(&self, hash: u32, pair: u16) {
        // Relaxed, as everywhere here: each word is all there is to it.
        let slot = self.slot(hash);
        let word = slot.load(Ordering::Relaxed);
        let own = hash & TAG | u32::from(pair) << PAIR_SHIFT | CREDIT_MAX;
        if word != own {
            let is_ours = (word ^ hash) & TAG == 0 || word & CREDIT_MAX <= 1;
            slot.store(if is_ours { own } else { word - 1 }, Ordering::Relaxed);
        }
    }

    /// The pair by which the guest gets a flow, one of those that are `on`, of which there is at least one.
    #[inline]
    pub(super) fn pair(&self, hash: u32, on: u32) -> u32 {
        let word = self.slot(hash).load(Ordering::Relaxed);
        let pair = word >> PAIR_SHIFT & PAIR_MASK;
        let is_known = (word ^ hash) & TAG == 0 && word & CREDIT_MAX > 0;
        if is_known && on & 1 << pair != 0 { pair } else { any(hash, on) }
    }
}

/// One of the pairs that are on, by the hash alone.
fn any(hash: u32, on: u32) -> u32 {
    let count = on.count_ones();
    let nth = ((u64::from(hash) * u64::from(count)) >> 32) as u32;
    // They nearly always are the first ones.
    if on & on.wrapping_add(1) == 0 { nth } else { super::nth_set_bit(on, nth).unwrap_or(0) }
}

/// The picks of a burst by pair.
pub(super) struct Parts {
    /// Bit n: the pick at place n.
    places: [u64; PAIRS_MAX],
    /// Bit n: pair n has some.
    pairs: u32,
}
const _: () = assert!(BURST <= u64::BITS as usize);

impl Parts {
    pub(super) fn new() -> Parts {
        Parts { places: [0; PAIRS_MAX], pairs: 0 }
    }

    /// The pick at `place` goes to `pair`.
    #[inline]
    pub(super) fn add(&mut self, place: usize, pair: u32) {
        self.places[pair as usize] |= 1 << place;
        self.pairs |= 1 << pair;
    }

    /// How many pairs have some.
    pub(super) fn count(&self) -> u32 {
        self.pairs.count_ones()
    }

    /// The one pair that has all of them, if one has.
    pub(super) fn only(&self) -> Option<u32> {
        self.pairs.is_power_of_two().then(|| self.pairs.trailing_zeros())
    }

    /// Takes the next pair, and writes down at which places its picks are; answers how many they are.
    pub(super) fn next(&mut self, places: &mut [u8; BURST]) -> Option<(u32, usize)> {
        if self.pairs == 0 {
            return None;
        }
        let pair = self.pairs.trailing_zeros();
        self.pairs &= self.pairs - 1;
        let (mut left, mut count) = (self.places[pair as usize], 0);
        while left != 0 {
            places[count] = left.trailing_zeros() as u8;
            left &= left - 1;
            count += 1;
        }
        Some((pair, count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u32 = 0xffff;

    #[test]
    fn a_flow_comes_by_the_pair_that_sent_it_last_and_an_unknown_one_by_any_that_is_on() {
        let steering = Steering::default();
        let hash = 0x1234_5678;
        for pair in [3, 15, 0] {
            steering.note(hash, pair);
            assert_eq!(steering.pair(hash, ALL), pair.into());
        }
        assert_eq!(steering.pair(hash, 0b110), 1, "0 is off");
        let mut counts = [0; 4];
        for flow in 0u32..4000 {
            counts[steering.pair(flow.wrapping_mul(0x9e37_79b9), 0b1111) as usize] += 1;
            let odd = steering.pair(flow.wrapping_mul(0x9e37_79b9), 0b1010_0000);
            assert!(matches!(odd, 5 | 7));
        }
        assert!(counts.iter().all(|&count| count > 900), "{counts:?}");
    }

    #[test]
    fn of_flows_that_meet_one_stays_as_long_as_it_sends_now_and_then() {
        let steering = Steering::default();
        let [one, other] = [0x1000_0001, 0xf000_0001];
        steering.note(one, 0);
        for _ in 0..5 {
            (0..CREDIT_MAX - 1).for_each(|_| steering.note(other, 2));
            steering.note(one, 0);
            assert_eq!((steering.pair(one, ALL), steering.pair(other, ALL)), (0, 15));
        }
        (0..=CREDIT_MAX).for_each(|_| steering.note(other, 2));
        assert_eq!((steering.pair(one, ALL), steering.pair(other, ALL)), (1, 2), "it has ended");
    }

    #[test]
    fn parts_are_all_picks_once_in_order() {
        let mut parts = Parts::new();
        (0..BURST).for_each(|place| parts.add(place, (place * 7 % 16) as u32));
        assert_eq!(parts.only(), None);
        let (mut seen, mut places) = (Vec::new(), [0; BURST]);
        while let Some((pair, count)) = parts.next(&mut places) {
            assert!(
                places[..count].is_sorted() && places[..count].iter().all(|&place| u32::from(place) * 7 % 16 == pair)
            );
            seen.extend_from_slice(&places[..count]);
        }
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..BURST as u8));
        parts.add(5, 9);
        parts.add(6, 9);
        assert_eq!(parts.only(), Some(9));
    }
}
