//! What each queue's burst of a round took, and what it is charged for time that its bytes do not explain.
//!
//! What makes it hard is that a worker may lose its CPU in the middle of a burst, which is nobody's doing. What of a burst's time was the
//! worker's own work costs a system call to find out, so it is asked once a watched round and after each long burst. Owned by the worker.

use super::{LONG_ROUND_NS, Now};
use crate::clock::{Clock, thread_ns};

/// Time of a burst, ns, that needs no bytes to explain it: a queue's share of what makes a round long. So nobody who stays below
/// that with each of many queues holds the worker.
const BURST_SHARE_NS: u64 = LONG_ROUND_NS / 10;
/// Bytes that a nanosecond of a burst counts for when it is charged: about what a copy moves in it.
const BYTES_PER_NS: u64 = 8;
/// The most time, ns, that a burst owes: an eighth of a second.
const OWED_MAX_NS: u64 = 125_000_000;

/// Times the bursts of one round, one after the other.
pub(super) struct Stopwatch {
    clock: Clock,
    start: Now,
    since: Now,
    /// When the thread's own time was asked last, and what it was, ns; `None`: only the clock is read, and nobody charged.
    thread: Option<(Now, u64)>,
}

/// What a burst took, and owes for it beyond its bytes.
pub(super) struct Lap {
    /// All of it, ns.
    pub(super) ns: u64,
    /// From the start of the round to its end, ns.
    pub(super) since_start_ns: u64,
    /// What it owes in rounds.
    pub(super) owed_bytes: usize,
    /// What it owes in time, ns.
    pub(super) owed_ns: u64,
}

impl Stopwatch {
    #[cold]
    pub(super) fn start(clock: Clock, is_watched: bool) -> Stopwatch {
        let now = clock.now();
        Stopwatch { start: now, since: now, clock, thread: is_watched.then(|| (now, thread_ns())) }
    }

    /// What went by since it was last asked, in a burst that moved so many bytes.
    #[cold]
    pub(super) fn lap(&mut self, moved_bytes: usize) -> Lap {
        let now = self.clock.now();
        let ns = now.ns - std::mem::replace(&mut self.since, now).ns;
        let mut lap = Lap { ns, since_start_ns: now.ns - self.start.ns, owed_bytes: 0, owed_ns: 0 };
        let unexplained = ns.saturating_sub(BURST_SHARE_NS + moved_bytes as u64 / BYTES_PER_NS);
        if let Some((asked, thread_before)) = self.thread
            && unexplained > 0
        {
            let thread = thread_ns();
            let waited = (now.ns - asked.ns).saturating_sub(thread.saturating_sub(thread_before));
            self.thread = Some((now, thread));
            (lap.owed_bytes, lap.owed_ns) = owed(unexplained, waited);
        }
        lap
    }
}

impl Lap {
    /// Whether its bytes explain the time.
    pub(super) fn is_explained(&self) -> bool {
        self.owed_bytes == 0
    }
}

/// What is owed for so much time beyond a burst's bytes, of which the worker waited some: in bytes, repaid in rounds, and in ns.
///
/// A burst that makes no round long by itself owes rounds only: without neighbours these take no time, and a sender whose receivers are
/// merely slow, as the kernel's stack is, loses nothing. So does a wait: it may be its own guest's doing, who has its memory's pages in
/// the kernel's hands, or nobody's. A longer burst owes the time that the worker spent on it.
fn owed(unexplained: u64, waited: u64) -> (usize, u64) {
    let worked = unexplained.saturating_sub(waited);
    let owed_ns = if worked > LONG_ROUND_NS { worked.min(OWED_MAX_NS) } else { 0 };
    ((unexplained.min(LONG_ROUND_NS) * BYTES_PER_NS) as usize, owed_ns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::ROUND_BYTES;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_burst_that_makes_no_round_long_by_itself_owes_rounds_and_no_time() {
        let (bytes, ns) = owed(LONG_ROUND_NS - BURST_SHARE_NS, 0);
        assert_eq!((bytes / ROUND_BYTES, ns), (6, 0));
    }

    #[test]
    fn a_long_burst_owes_all_of_its_work_and_for_what_may_have_been_waiting_a_few_rounds() {
        let charge = |ns, waited| {
            let (bytes, ns) = owed(ns, waited);
            (bytes / ROUND_BYTES, ns)
        };
        assert_eq!(charge(100 * MS, 0), (7, 100 * MS));
        assert_eq!(charge(100 * MS, 100 * MS), (7, 0), "it waited");
        assert_eq!(charge(100 * MS, 50 * MS), (7, 50 * MS));
        assert_eq!(charge(100 * MS, 101 * MS), (7, 0), "bursts before it waited too");
        assert_eq!(charge(u64::MAX / 16, 0), (7, OWED_MAX_NS), "a bound for it all the same");
    }

    #[test]
    fn only_time_beyond_a_share_and_the_bytes_of_a_watched_round_is_charged() {
        let spin = |ns: u64, is_watched, moved_bytes| {
            let clock = Clock::default();
            let mut stopwatch = Stopwatch::start(clock, is_watched);
            while clock.now().ns - stopwatch.start.ns < ns {}
            stopwatch.lap(moved_bytes)
        };
        assert!(spin(MS, false, 0).is_explained(), "nobody watches");
        assert!(spin(MS, true, 1 << 40).is_explained(), "bytes do");
        assert!(!spin(MS, true, 4096).is_explained());
        let lap = spin(20 * MS, true, 0);
        assert!(lap.owed_ns <= lap.ns && lap.since_start_ns == lap.ns);
    }
}
