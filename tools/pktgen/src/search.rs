//! The throughput search of RFC 2544 section 26.1: the highest offered rate at which no more than the tolerated part of
//! the frames is lost, found by halving.
//!
//! The search begins at what arrives when as much as goes is offered: a switch that loses nothing there is as fast as
//! this program can tell. Each trial sends for its time and then waits until what is under way has arrived. A trial that
//! offered less than it should, because this program was off its CPU, fails like one that lost frames: the rate was not shown.

use crate::engine::{Engine, Measured};
use crate::link::Result;
use serde::Serialize;
use std::time::Duration;

/// Trials of one search: enough to halve any range down to its resolution.
const TRIALS_MAX: usize = 40;
/// Part of the asked rate that must have been offered.
const OFFERED_MIN: f64 = 0.99;

/// What is tolerated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    /// Part of the frames that may get lost.
    pub(crate) loss_tolerance: f64,
    /// Part of the rate to which it is to be known.
    pub(crate) resolution: f64,
    /// Time of each trial.
    pub(crate) time: Duration,
}

/// One trial.
#[derive(Serialize, Clone, Copy, PartialEq, Debug)]
pub(crate) struct Trial {
    /// Frames a second asked for, all streams together, millions; absent for as many as go.
    pub(crate) asked_mpps: Option<f64>,
    pub(crate) offered_mpps: f64,
    pub(crate) received_mpps: f64,
    pub(crate) loss: f64,
    pub(crate) has_passed: bool,
}

/// What a search found.
#[derive(Serialize, Clone, Debug)]
pub(crate) struct Found {
    /// The highest rate that passed, all streams together, millions a second; zero if none did.
    pub(crate) throughput_mpps: f64,
    /// Every trial, in order.
    pub(crate) trials: Vec<Trial>,
}

impl Goal {
    fn judge(&self, asked_mpps: Option<f64>, measured: &Measured) -> Trial {
        let seconds = measured.time_ns as f64 / 1e9;
        let loss = measured.lost as f64 / (measured.kept.sent as f64).max(1.0);
        let offered_mpps = measured.kept.sent as f64 / seconds / 1e6;
        let is_offered = asked_mpps.is_none_or(|asked| offered_mpps >= OFFERED_MIN * asked);
        Trial {
            asked_mpps,
            offered_mpps,
            received_mpps: measured.kept.received as f64 / seconds / 1e6,
            loss,
            has_passed: loss <= self.loss_tolerance && is_offered && measured.kept.sent > 0,
        }
    }

    /// Searches. Answers the measurement of the last trial that passed as well; the engine goes on at its rate.
    ///
    /// # Errors
    /// If a link breaks.
    pub(crate) fn search(&self, engine: &mut Engine) -> Result<(Found, Option<Measured>)> {
        let streams = engine.stream_count() as f64;
        engine.set_rate(None);
        let measured = engine.run(self.time)?;
        let first = self.judge(None, &measured);
        let mut trials = vec![first];
        if first.has_passed {
            return Ok((Found { throughput_mpps: first.offered_mpps, trials }, Some(measured)));
        }
        let (mut low, mut high, mut best) = (0.0, first.received_mpps, None);
        let mut rate = high;
        while trials.len() < TRIALS_MAX && high - low > self.resolution * high {
            engine.set_rate(Some(rate * 1e6 / streams));
            let measured = engine.run(self.time)?;
            let trial = self.judge(Some(rate), &measured);
            trials.push(trial);
            if trial.has_passed {
                low = rate;
                best = Some(measured);
            } else {
                high = rate;
            }
            if trial.has_passed && rate >= first.received_mpps {
                break;
            }
            rate = (low + high) / 2.0;
        }
        engine.set_rate((low > 0.0).then_some(low * 1e6 / streams));
        Ok((Found { throughput_mpps: low, trials }, best))
    }
}
