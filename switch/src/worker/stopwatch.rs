//! What each queue's burst of a round took, and what it is charged for time that its bytes do not explain.
//!
//! What makes it hard is that a worker may lose its CPU in the middle of a burst, which is nobody's doing. What of a burst's time was the
//! worker's own work costs a system call to find out, so it is asked only of queues that have been slow before. Owned by the worker.

use super::{LONG_ROUND_NS, Now, ROUND_BYTES};
use crate::clock::{Clock, thread_ns};

/// Time of a burst, ns, that needs no bytes to explain it: a queue's share of what makes a round long. So nobody who stays below
/// that with each of many queues holds the worker.
const BURST_SHARE_NS: u64 = LONG_ROUND_NS / 10;
/// Bytes that a nanosecond of a burst counts for when it is charged: about what a copy moves in it.
const BYTES_PER_NS: u64 = 8;
/// The most that a burst is charged for time that its worker may have spent without its CPU, which was nobody's doing then: a quarter
/// of a millisecond. Where that happens in every burst, more would keep all queues from going on.
const WAIT_CHARGE_MAX: u64 = 8 * ROUND_BYTES as u64;
/// The most that it is charged for time that its worker spent on it: an eighth of a second.
const WORK_CHARGE_MAX: u64 = 4096 * ROUND_BYTES as u64;

/// Times the bursts of one round, one after the other.
pub(super) struct Stopwatch {
    clock: Clock,
    since: Now,
    /// What the thread had used of its CPU when this burst began, ns; `None`: nobody asked.
    thread_since_ns: Option<u64>,
}

/// What a burst took.
pub(super) struct Lap {
    /// In all, ns.
    pub(super) ns: u64,
    /// Of the worker's own time, ns; `None`: nobody asked.
    work_ns: Option<u64>,
}

impl Stopwatch {
    #[cold]
    pub(super) fn start(clock: Clock) -> Stopwatch {
        Stopwatch { since: clock.now(), clock, thread_since_ns: None }
    }

    /// Tells the worker's own time from what it waits, until it is asked next: it costs a system call each.
    #[cold]
    pub(super) fn look_closer(&mut self) {
        self.thread_since_ns = Some(thread_ns());
    }

    /// What went by since it was last asked.
    #[cold]
    pub(super) fn lap(&mut self) -> Lap {
        let work_ns = self.thread_since_ns.take().map(|since_ns| thread_ns().saturating_sub(since_ns));
        let since = std::mem::replace(&mut self.since, self.clock.now());
        Lap { ns: self.since.ns - since.ns, work_ns }
    }
}

impl Lap {
    /// What a burst that moved so many bytes is charged beyond them for its time.
    ///
    /// At first nobody knows whether the worker lost its CPU meanwhile, so little is charged. Of a queue with such a burst before it is
    /// known. What its worker waited may be its own guest's doing all the same, who has its memory's pages in the kernel's hands.
    #[cold]
    pub(super) fn unexplained(&self, moved_bytes: usize) -> usize {
        let beyond =
            |ns: u64| ns.saturating_sub(BURST_SHARE_NS).saturating_mul(BYTES_PER_NS).saturating_sub(moved_bytes as u64);
        let (all, work) = (beyond(self.ns), self.work_ns.map_or(0, beyond));
        let work = work.min(all);
        (work.min(WORK_CHARGE_MAX) + (all - work).min(WAIT_CHARGE_MAX)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn charge(ns: u64, work_ns: Option<u64>, moved_bytes: usize) -> usize {
        Lap { ns, work_ns }.unexplained(moved_bytes) / ROUND_BYTES
    }

    #[test]
    fn a_full_burst_of_large_frames_is_charged_for_its_bytes_alone() {
        let bytes = 5 * 65_000;
        let ns = |bytes_per_ns: u64| bytes as u64 / bytes_per_ns;
        assert_eq!(Lap { ns: ns(BYTES_PER_NS) + BURST_SHARE_NS, work_ns: None }.unexplained(bytes), 0);
        assert_eq!(charge(ns(BYTES_PER_NS / 2), None, bytes), 0, "less than a round, at half the pace of a copy");
        assert_eq!(Lap { ns: BURST_SHARE_NS, work_ns: None }.unexplained(64), 0, "nor are small ones charged");
    }

    #[test]
    fn a_burst_just_short_of_what_makes_a_round_long_by_itself_is_charged() {
        assert!(charge(LONG_ROUND_NS - 10_000, None, 4096) >= 6);
    }

    #[test]
    fn work_is_charged_as_long_as_it_took_and_of_what_may_have_been_waiting_a_little() {
        assert_eq!(charge(100 * MS, None, 0), 8);
        assert_eq!(charge(100 * MS, Some(0), 0), 8, "it waited");
        let rounds = (100 * MS * BYTES_PER_NS) as usize / ROUND_BYTES;
        assert!((rounds - 1..=rounds).contains(&charge(100 * MS, Some(100 * MS), 0)));
        let both = charge(100 * MS, Some(50 * MS), 0);
        assert!((rounds / 2 + 7..=rounds / 2 + 8).contains(&both), "{both}");
        assert_eq!(charge(u64::MAX / 16, Some(u64::MAX / 16), 0), 4096, "a bound for it all the same");
    }
}
