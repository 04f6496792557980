//! A measurement cut into windows of a millisecond: each counts, or is left out with what happened in it.

use super::{Engine, Tally, WINDOW_NS};
use crate::arrivals::Arrivals;
use serde::Serialize;

/// Interruptions of the generator and sink.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub(crate) struct OffCpu {
    /// Gaps between two looks at the clock that count as one, ns.
    pub(crate) threshold_ns: u64,
    /// How many there were.
    pub(crate) gaps: u64,
    /// Their part of the time.
    pub(crate) time_share: f64,
    /// The longest, ns.
    pub(crate) longest_ns: u64,
    /// Windows of 1 ms.
    pub(crate) windows: u64,
    /// Of these, those with an interruption and those after them.
    pub(crate) windows_disturbed: u64,
    /// Whether those were left out of the results.
    pub(crate) are_discarded: bool,
}

/// The windows of a measurement.
pub(super) struct Windows {
    pub(super) end: u64,
    begun: u64,
    at_begin: Tally,
    pub(super) is_disturbed: bool,
    was_disturbed: bool,
    pub(super) count: u64,
    pub(super) disturbed: u64,
    pub(super) kept: Tally,
    pub(super) kept_ns: u64,
    pub(super) kept_missing: i64,
    told: Tally,
    told_ns: u64,
}

impl Windows {
    pub(super) fn new(engine: &Engine, now: u64) -> Windows {
        Windows {
            end: now + WINDOW_NS,
            begun: now,
            at_begin: engine.tally(),
            is_disturbed: false,
            was_disturbed: false,
            count: 0,
            disturbed: 0,
            kept: Tally::default(),
            kept_ns: 0,
            kept_missing: 0,
            told: Tally::default(),
            told_ns: 0,
        }
    }

    /// Ends a window: it counts unless it, or the one before it whose frames still arrive, was disturbed.
    pub(super) fn close(&mut self, engine: &mut Engine, now: u64) {
        let tally = engine.tally();
        let is_disturbed = self.is_disturbed || self.was_disturbed;
        self.count += 1;
        self.disturbed += u64::from(is_disturbed);
        if !is_disturbed {
            self.kept_ns += now - self.begun;
            self.kept.sent += tally.sent - self.at_begin.sent;
            self.kept.sent_bytes += tally.sent_bytes - self.at_begin.sent_bytes;
            self.kept.received += tally.received - self.at_begin.received;
            self.kept.received_bytes += tally.received_bytes - self.at_begin.received_bytes;
            self.kept_missing += tally.missing as i64 - self.at_begin.missing as i64;
        }
        let Arrivals { pending, delays, .. } = &mut engine.arrivals;
        if let Some(pending) = pending {
            pending.close(!is_disturbed, delays);
        }
        self.at_begin = tally;
        self.was_disturbed = std::mem::take(&mut self.is_disturbed);
        self.begun = engine.now();
        self.end = self.begun + WINDOW_NS;
    }

    /// Ends the last window, unless the one before it ended just now: that took longer than there was left.
    pub(super) fn finish(&mut self, engine: &mut Engine, now: u64) {
        if now > self.begun {
            self.close(engine, now);
        }
        let Arrivals { pending, delays, .. } = &mut engine.arrivals;
        if let Some(pending) = pending {
            pending.finish(delays);
        }
    }

    /// One line on standard error.
    pub(super) fn progress(&mut self, engine: &Engine, since_ns: u64) {
        let now = engine.tally();
        let seconds = (since_ns - self.told_ns) as f64 / 1e9;
        let rate = |count: u64, before: u64| (count - before) as f64 / seconds / 1e6;
        eprintln!(
            "{:6.1} s: sent {:.3} Mpps, received {:.3} Mpps, missing {}, off CPU in {} of {} windows",
            since_ns as f64 / 1e9,
            rate(now.sent, self.told.sent),
            rate(now.received, self.told.received),
            now.missing,
            self.disturbed,
            self.count,
        );
        (self.told, self.told_ns) = (now, since_ns);
    }
}
