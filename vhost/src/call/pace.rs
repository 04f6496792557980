//! What is known of how long it takes to signal one port's peers, and whether workers may go on doing it.
//!
//! What makes it hard is that the peer decides how long a signal takes, and that a worker which lost its CPU in one, or served
//! interrupts, finds it long as well. Shared by a port's sessions; workers write it, each word by itself.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use switch::clock::{Clock, thread_ns};

/// A signal that takes longer by the clock, ns, makes its port suspect: nearly all take less than ten microseconds, but a worker may
/// lose its CPU for a while.
const SUSPECT_NS: u64 = 100_000;
/// Fast signals in a row after which a port is not suspect any more.
const SUSPECT_SIGNALS: u32 = 100_000;
/// A suspect port's signal that takes more of its thread's time, ns, is slow.
pub(super) const SLOW_NS: u64 = 30_000;
/// One that takes more, ns, is far too slow.
pub(super) const FAR_TOO_SLOW_NS: u64 = 1_000_000;
/// A slow signal counts for so many fast ones: who mixes them gains less than a microsecond a signal.
const SLOW_POINTS: u32 = 1_000;
/// So does each millisecond of one that is far too slow; some minutes' worth of fast ones at most.
const FAR_TOO_SLOW_POINTS: u32 = 13_000;
const POINTS_A_SIGNAL_MAX: u32 = 50_000_000;
/// Points at which signals are left to a helper: 16 slow ones in a short time, or two that are far too slow within 10,000.
const POINTS_MAX: u32 = 16 * SLOW_POINTS;
const _: () = assert!(2 * FAR_TOO_SLOW_POINTS == POINTS_MAX + 10_000);
/// How long signals are left to a helper before workers try again, ns: five minutes.
const RETRY_NS: u64 = 300_000_000_000;
/// Points that are left then: one signal that is far too slow is enough.
const RETRY_POINTS: u32 = POINTS_MAX / 2;
const _: () = assert!(RETRY_POINTS + FAR_TOO_SLOW_POINTS >= POINTS_MAX);

/// What is known of how long signals to one port's peers take, whatever eventfds they give and however often they come anew.
///
/// At first the monotonic clock tells. A worker that loses its CPU in a signal is no peer's doing, so from the first slow one on it is
/// the thread's own time that counts, which leaves out at least what other threads took; to ask for that costs a system call, which
/// nobody else shall pay.
#[derive(Debug, Default)]
pub struct Pace {
    /// The port's socket, for the log.
    path: PathBuf,
    clock: Clock,
    /// Fast signals until the port is not suspect any more; 0: it is not. Above [`SUSPECT_SIGNALS`] are the points against it.
    watched: AtomicU32,
    is_slow: AtomicBool,
    /// When it was last found slow.
    slow_since_ns: AtomicU64,
    /// That it is slow was told.
    is_told: Mutex<bool>,
    /// Helper threads of its sessions.
    pub(super) helpers: AtomicUsize,
}

impl Pace {
    /// Of the port at this socket.
    pub fn new(path: PathBuf) -> Pace {
        Pace { path, ..Pace::default() }
    }

    /// Whether signals are left to a helper.
    #[inline]
    pub(super) fn is_slow(&self) -> bool {
        self.is_slow.load(Ordering::Relaxed)
    }

    #[inline]
    fn is_suspect(&self) -> bool {
        self.watched.load(Ordering::Relaxed) > 0
    }

    /// Has `signal` done and notes how long it took.
    pub(super) fn timed<R>(&self, signal: impl FnOnce() -> R) -> R {
        let is_suspect = self.is_suspect();
        let now_ns = || if is_suspect { thread_ns() } else { self.clock.now().ns };
        let begun_ns = now_ns();
        let result = signal();
        let took_ns = now_ns().saturating_sub(begun_ns);
        if is_suspect {
            self.note(took_ns);
        } else if took_ns > SUSPECT_NS {
            self.watched.store(SUSPECT_SIGNALS, Ordering::Relaxed);
        }
        result
    }

    /// A signal took so much of its thread's time.
    pub(super) fn note(&self, took_ns: u64) {
        // Nobody minds if one of two workers' counts is lost.
        let watched = self.watched.load(Ordering::Relaxed);
        if took_ns <= SLOW_NS {
            // All workers read this: it is written no more than needed.
            if watched > 0 {
                self.watched.store(watched - 1, Ordering::Relaxed);
            }
            return;
        }
        let points = match took_ns / FAR_TOO_SLOW_NS {
            0 => SLOW_POINTS,
            times => {
                u32::try_from(times).unwrap_or(u32::MAX).saturating_mul(FAR_TOO_SLOW_POINTS).min(POINTS_A_SIGNAL_MAX)
            }
        };
        // A single signal is never enough: on most kernels a thread's time has interrupts in it, and what a hypervisor took.
        let is_first = watched <= SUSPECT_SIGNALS;
        let watched = watched.max(SUSPECT_SIGNALS).saturating_add(points);
        self.watched.store(watched, Ordering::Relaxed);
        if watched >= SUSPECT_SIGNALS + POINTS_MAX && !is_first {
            self.slow_since_ns.store(self.clock.now().ns, Ordering::Relaxed);
            // Whoever sees this sees since when.
            self.is_slow.store(true, Ordering::Release);
        }
    }

    /// Tells that the port is slow, and ends that after a while. Not for workers, for it writes to the log.
    pub(super) fn review(&self) {
        self.review_at(self.clock.now().ns);
    }

    pub(super) fn review_at(&self, now_ns: u64) {
        let mut is_told = self.is_told.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_slow.load(Ordering::Acquire) {
            return;
        }
        if !std::mem::replace(&mut *is_told, true) {
            tracing::warn!(path = %self.path.display(), "interrupts of this port's guest take long; a thread of its own sends them");
        }
        if now_ns.saturating_sub(self.slow_since_ns.load(Ordering::Relaxed)) >= RETRY_NS {
            self.watched.store(SUSPECT_SIGNALS + RETRY_POINTS, Ordering::Relaxed);
            self.is_slow.store(false, Ordering::Relaxed);
            *is_told = false;
            tracing::info!(path = %self.path.display(), "workers interrupt this port's guest again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn slow_signals_are_found_however_many_fast_ones_are_between_them() {
        let fast = |pace: &Pace, count: u32| (0..count).for_each(|_| pace.note(SLOW_NS));
        let pace = Pace::default();
        for _ in 0..15 {
            pace.note(SLOW_NS + 1);
            fast(&pace, 10);
        }
        assert!(!pace.is_slow(), "the host takes a worker's time now and then");
        pace.note(FAR_TOO_SLOW_NS - 1);
        pace.note(SLOW_NS + 1);
        assert!(pace.is_slow(), "but not so often");

        let pace = Pace::default();
        pace.note(FAR_TOO_SLOW_NS);
        fast(&pace, 10_001);
        pace.note(FAR_TOO_SLOW_NS);
        assert!(!pace.is_slow(), "no single one is enough");
        fast(&pace, 9_999);
        pace.note(FAR_TOO_SLOW_NS);
        assert!(pace.is_slow(), "two are, within 10,000");
        fast(&pace, 1_000_000);
        assert!(pace.is_slow(), "whatever comes then");

        for ns in [100 * FAR_TOO_SLOW_NS, u64::MAX] {
            let pace = Pace::default();
            pace.note(ns);
            assert!(!pace.is_slow(), "however long it took");
            fast(&pace, 1_000_000);
            pace.note(ns);
            assert!(pace.is_slow(), "the longer it took the longer it is held against the port");
        }

        let pace = Pace::default();
        for _ in 0..100 {
            pace.note(SLOW_NS + 1);
            fast(&pace, SLOW_POINTS);
        }
        assert!(!pace.is_slow(), "so seldom they are no peer's doing");
    }

    #[test]
    fn a_port_is_not_suspect_any_more_after_many_fast_signals_in_a_row() {
        let pace = Pace::default();
        pace.timed(|| std::thread::sleep(Duration::from_millis(2)));
        assert!(pace.is_suspect());
        (1..SUSPECT_SIGNALS).for_each(|_| pace.note(SLOW_NS));
        assert!(pace.is_suspect());
        pace.note(SLOW_NS + 1);
        (0..SUSPECT_SIGNALS).for_each(|_| pace.note(SLOW_NS));
        assert!(pace.is_suspect(), "a slow one was between them");
        (0..SLOW_POINTS).for_each(|_| pace.note(SLOW_NS));
        assert!(!pace.is_suspect());
        pace.note(0);
        assert!(!pace.is_suspect());
    }

    #[test]
    fn a_worker_that_loses_its_cpu_in_signals_does_not_make_a_peer_slow() {
        let pace = Pace::default();
        for _ in 0..5 {
            pace.timed(|| std::thread::sleep(Duration::from_millis(2)));
        }
        assert!(pace.is_suspect() && !pace.is_slow());
        for _ in 0..2 {
            let begun = Instant::now();
            pace.timed(|| while begun.elapsed() < Duration::from_millis(20) {});
        }
        assert!(pace.is_slow(), "it works all the time here, or most of it");
    }

    #[test]
    fn a_slow_port_is_tried_again_after_minutes_and_then_one_signal_is_enough() {
        let pace = Pace::default();
        (0..2).for_each(|_| pace.note(FAR_TOO_SLOW_NS));
        pace.review();
        let since_ns = pace.slow_since_ns.load(Ordering::Relaxed);
        pace.review_at(since_ns + RETRY_NS - 1);
        assert!(pace.is_slow() && *pace.is_told.lock().unwrap());
        pace.review_at(since_ns + RETRY_NS);
        assert!(!pace.is_slow() && !*pace.is_told.lock().unwrap());
        pace.note(FAR_TOO_SLOW_NS);
        assert!(pace.is_slow());
    }
}
