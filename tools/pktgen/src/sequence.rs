//! What became of the numbered frames of one stream: arrived, lost, reordered, or come twice.
//!
//! The frame awaited next is the common case and costs a few instructions. A jump ahead notes the numbers that were
//! passed over in a window of bits; a frame from behind is *reordered* (RFC 4737 section 3.3: its number is below the next
//! expected one) if its number was noted, and a duplicate if it was not. What is older than the window cannot be told
//! apart and is counted as such. A number still missing at the end is lost.

/// Numbers that are remembered behind the next expected one: far more than the rings between two guests can hold.
const WINDOW: u64 = 1 << 16;
const WORDS: usize = (WINDOW / 64) as usize;

/// Counts of one stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counts {
    /// Different frames that arrived.
    pub(crate) received: u64,
    /// Of these, those that came after one with a higher number.
    pub(crate) reordered: u64,
    /// The farthest that one was behind the next expected number.
    pub(crate) reorder_extent_max: u64,
    /// Frames that had arrived before.
    pub(crate) duplicated: u64,
    /// Frames farther behind than the window, which may be either.
    pub(crate) beyond_window: u64,
    /// Numbers passed over that have not arrived so far.
    pub(crate) missing: u64,
}

/// The receiving end of one stream.
pub(crate) struct Tracker {
    /// The first number that counts.
    first: u64,
    /// The next expected number, one above the highest seen.
    next: u64,
    /// Bit n mod [`WINDOW`]: number n is missing.
    missing: Box<[u64; WORDS]>,
    counts: Counts,
}

impl Tracker {
    /// Expects number `first`; those before do not count.
    pub(crate) fn new(first: u64) -> Tracker {
        Tracker { first, next: first, missing: Box::new([0; WORDS]), counts: Counts::default() }
    }

    /// Counts from number `first` on, anew.
    pub(crate) fn restart(&mut self, first: u64) {
        self.missing.fill(0);
        (self.first, self.next, self.counts) = (first, first, Counts::default());
    }

    /// What is known so far.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// The next expected number.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// A frame arrived whose number ends in `sequence`. Answers whether it was the expected one.
    #[inline]
    pub(crate) fn note(&mut self, sequence: u32) -> bool {
        let ahead = sequence.wrapping_sub(self.next as u32) as i32;
        if ahead == 0 {
            self.counts.received += 1;
            self.advance();
            return true;
        }
        self.note_unexpected(i64::from(ahead));
        false
    }

    /// The next `count` frames arrived, each the expected one.
    #[inline]
    pub(crate) fn note_run(&mut self, count: u64) {
        self.counts.received += count;
        let word = self.next / 64;
        self.next += count;
        for entered in word + 1..=self.next / 64 {
            self.missing[entered as usize % WORDS] = 0;
        }
    }

    #[cold]
    fn note_unexpected(&mut self, ahead: i64) {
        let Some(number) = self.next.checked_add_signed(ahead).filter(|&number| number >= self.first) else {
            return;
        };
        if ahead > 0 {
            if ahead as u64 > WINDOW {
                // Whatever fills the window is missing; a word's bits from `next` on are not yet.
                self.counts.missing += number - self.next;
                self.next = number;
                self.missing.fill(u64::MAX);
                let (word, bit) = place(number);
                self.missing[word] = bit - 1;
            }
            while self.next < number {
                let (word, bit) = place(self.next);
                self.counts.missing += 1;
                self.advance();
                // After `advance`, which empties a word on entering it: this number's word was entered before.
                self.missing[word] |= bit;
            }
            self.counts.received += 1;
            self.advance();
            return;
        }
        let behind = self.next - number;
        if behind > WINDOW - 64 {
            self.counts.beyond_window += 1;
            return;
        }
        let (word, bit) = place(number);
        if self.missing[word] & bit == 0 {
            self.counts.duplicated += 1;
            return;
        }
        self.missing[word] &= !bit;
        self.counts.missing -= 1;
        self.counts.received += 1;
        self.counts.reordered += 1;
        self.counts.reorder_extent_max = self.counts.reorder_extent_max.max(behind);
    }

    #[inline]
    fn advance(&mut self) {
        self.next += 1;
        if self.next.is_multiple_of(64) {
            self.missing[place(self.next).0] = 0;
        }
    }
}

#[inline]
fn place(number: u64) -> (usize, u64) {
    ((number / 64) as usize % WORDS, 1 << (number % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(first: u64, numbers: impl IntoIterator<Item = u64>) -> Counts {
        let mut tracker = Tracker::new(first);
        for number in numbers {
            tracker.note(number as u32);
        }
        tracker.counts()
    }

    #[test]
    fn frames_in_order_are_received_and_nothing_else() {
        assert_eq!(counts(5, 5..200_005), Counts { received: 200_000, ..Counts::default() });
    }

    #[test]
    fn a_number_passed_over_is_missing_until_it_comes_late() {
        assert_eq!(counts(0, [0, 1, 4]), Counts { received: 3, missing: 2, ..Counts::default() });
        let late = Counts { received: 4, missing: 1, reordered: 1, reorder_extent_max: 3, ..Counts::default() };
        assert_eq!(counts(0, [0, 1, 4, 2]), late);
    }

    #[test]
    fn a_frame_that_comes_again_is_a_duplicate_also_if_it_was_late() {
        assert_eq!(counts(0, [0, 0, 1]), Counts { received: 2, duplicated: 1, ..Counts::default() });
        let twice_late = counts(0, [0, 2, 1, 1]);
        assert_eq!((twice_late.received, twice_late.reordered, twice_late.duplicated), (3, 1, 1));
    }

    #[test]
    fn numbers_go_on_where_32_bits_end() {
        let start = u64::from(u32::MAX) - 2;
        let all = counts(start, (start..start + 10).filter(|&number| number != start + 4).chain([start + 4]));
        assert_eq!((all.received, all.reordered, all.missing), (10, 1, 0));
    }

    #[test]
    fn a_run_is_as_many_frames_one_by_one() {
        let (mut runs, mut single) = (Tracker::new(7), Tracker::new(7));
        let mut number = 7;
        for run in (0..3000).map(|round| (round * 37) % 150) {
            runs.note_run(run);
            (0..run).for_each(|ahead| assert!(single.note((number + ahead) as u32)));
            // One is lost.
            number += run + 1;
            runs.note(number as u32);
            single.note(number as u32);
            number += 1;
            assert_eq!((runs.counts, runs.next, &runs.missing), (single.counts, single.next, &single.missing));
        }
        assert_eq!(runs.counts.missing, 3000);
    }

    #[test]
    fn a_lap_of_the_window_later_an_old_loss_is_not_taken_for_a_new_one() {
        let lap = counts(0, (0..3 * WINDOW).filter(|&number| number != 107).chain([2 * WINDOW + 107]));
        assert_eq!((lap.missing, lap.duplicated, lap.reordered), (1, 1, 0));
    }

    #[test]
    fn a_jump_over_more_than_the_window_costs_no_more_than_the_window() {
        let far = 1 << 30;
        let jumped = counts(0, [0, far, far - 3, far + 1, far + 1, far - 3]);
        let expected = Counts {
            received: 4,
            reordered: 1,
            reorder_extent_max: 4,
            duplicated: 2,
            missing: far - 2,
            ..Counts::default()
        };
        assert_eq!(jumped, expected);
    }

    #[test]
    fn what_is_older_than_the_window_is_told_apart_by_nobody() {
        let old = counts(0, (0..3 * WINDOW).chain([3]));
        assert_eq!((old.beyond_window, old.duplicated), (1, 0));
        assert_eq!(counts(100, [100, 99]), Counts { received: 1, ..Counts::default() }, "before the first");
    }

    #[test]
    fn a_set_of_numbers_agrees_over_any_disorder() {
        let mut random = 88_172_645_463_325_252u64;
        let mut chance = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let mut stream: Vec<u64> = (0..20_000).filter(|_| chance() % 10 != 0).collect();
        for at in 0..stream.len() - 50 {
            match chance() % 8 {
                0 => stream.swap(at, at + (chance() % 50) as usize),
                1 => stream[at + 1] = stream[at],
                _ => {}
            }
        }
        let (mut seen, mut high, mut reordered, mut duplicated) = (std::collections::HashSet::new(), 0, 0, 0);
        for &number in &stream {
            if !seen.insert(number) {
                duplicated += 1;
            } else if number < high {
                reordered += 1;
            }
            high = high.max(number + 1);
        }
        let all = counts(0, stream.iter().copied());
        assert_eq!((all.received, all.reordered, all.duplicated), (seen.len() as u64, reordered, duplicated));
        assert_eq!(all.missing, high - seen.len() as u64);
    }
}
