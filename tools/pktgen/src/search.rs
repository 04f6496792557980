//! The throughput search of RFC 2544 section 26.1: the highest offered rate at which no more than the tolerated part of
//! the frames is lost, found by halving.
//!
//! The search begins with as much as goes: a switch that loses nothing there is as fast as this program can tell. Then it
//! tries what arrived, which is the answer unless the switch does worse or better when it is not overrun. Each trial sends
//! for its time and waits until what is under way has arrived. A trial that offered less than it should, because this
//! program was off its CPU, shows no more than what it offered, and is tried again.

use crate::engine::{Engine, Measured};
use crate::link::Result;
use serde::Serialize;
use std::time::Duration;

/// Trials of one search: enough to halve any range down to its resolution.
const TRIALS_MAX: usize = 40;
/// Part of the asked rate that must have been offered.
const OFFERED_MIN: f64 = 0.99;
/// Times that a rate is tried for want of an offer.
const ATTEMPTS: u32 = 3;

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
    /// As much was offered as asked for.
    pub(crate) is_offered: bool,
    /// No more was lost than tolerated.
    pub(crate) has_passed: bool,
}

/// What a search found.
#[derive(Serialize, Clone, Debug)]
pub(crate) struct Found {
    /// The highest rate that was offered and passed, all streams together, millions a second; zero if none did.
    pub(crate) throughput_mpps: f64,
    /// More could not be offered: the switch may be faster.
    pub(crate) is_limited_by_generator: bool,
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
            is_offered,
            has_passed: loss <= self.loss_tolerance && measured.kept.sent > 0,
        }
    }

    /// Searches. Answers the measurement of the best trial as well; the engine goes on at its rate.
    ///
    /// # Errors
    /// If a link breaks.
    pub(crate) fn search(&self, engine: &mut Engine) -> Result<(Found, Option<Measured>)> {
        let streams = engine.stream_count() as f64;
        let each = |rate: f64| rate * 1e6 / streams;
        let (found, best) = self.search_by(|asked_mpps| {
            engine.set_rate(asked_mpps.map(each));
            let measured = engine.run(self.time)?;
            Ok((self.judge(asked_mpps, &measured), measured))
        })?;
        engine.set_rate((found.throughput_mpps > 0.0).then(|| each(found.throughput_mpps)));
        Ok((found, best))
    }

    /// The search itself; `offer` makes a trial at a rate.
    fn search_by<M>(&self, mut offer: impl FnMut(Option<f64>) -> Result<(Trial, M)>) -> Result<(Found, Option<M>)> {
        let (first, measured) = offer(None)?;
        let mut found = Found { throughput_mpps: 0.0, is_limited_by_generator: false, trials: vec![first] };
        if first.has_passed {
            (found.throughput_mpps, found.is_limited_by_generator) = (first.offered_mpps, true);
            return Ok((found, Some(measured)));
        }
        let (mut low, mut high, mut best) = (0.0, first.offered_mpps, None);
        let (mut rate, mut attempts) = (first.received_mpps, 0);
        while found.trials.len() < TRIALS_MAX && high - low > self.resolution * high {
            let (trial, measured) = offer(Some(rate))?;
            found.trials.push(trial);
            let shown_mpps = rate.min(trial.offered_mpps);
            if trial.has_passed && shown_mpps > found.throughput_mpps {
                (found.throughput_mpps, best) = (shown_mpps, Some(measured));
            }
            match (trial.has_passed, trial.is_offered) {
                (true, true) => low = rate,
                // What was lost would have been lost at the higher rate too.
                (false, _) => high = rate,
                (true, false) if attempts + 1 < ATTEMPTS => {
                    attempts += 1;
                    continue;
                }
                (true, false) => {
                    found.is_limited_by_generator = true;
                    break;
                }
            }
            attempts = 0;
            rate = (low + high) / 2.0;
        }
        Ok((found, best))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A search for 1 % on a switch that answers an offer by what it receives, and a generator with a ceiling.
    fn found(ceiling: f64, switch: impl Fn(f64) -> f64) -> Found {
        let goal = Goal { loss_tolerance: 0.001, resolution: 0.01, time: Duration::ZERO };
        let (found, best) = goal
            .search_by(|asked_mpps| {
                let offered_mpps = asked_mpps.unwrap_or(f64::INFINITY).min(ceiling);
                let received_mpps = switch(offered_mpps);
                let loss = 1.0 - received_mpps / offered_mpps;
                let is_offered = asked_mpps.is_none_or(|asked| offered_mpps >= OFFERED_MIN * asked);
                let has_passed = loss <= goal.loss_tolerance;
                let trial = Trial { asked_mpps, offered_mpps, received_mpps, loss, is_offered, has_passed };
                Ok((trial, offered_mpps))
            })
            .unwrap();
        assert_eq!(best.unwrap_or(0.0), found.throughput_mpps, "{found:?}");
        found
    }

    #[test]
    fn a_switch_with_a_limit_is_found_out_to_the_resolution() {
        let found = found(10.0, |offered| offered.min(3.0));
        assert!((2.96..=3.01).contains(&found.throughput_mpps), "{found:?}");
        assert!(!found.is_limited_by_generator && found.trials.len() < 12, "{found:?}");
    }

    #[test]
    fn a_switch_that_breaks_down_when_overrun_is_as_fast_as_it_is_below() {
        let found = found(10.0, |offered| if offered > 6.0 { 1.0 } else { offered });
        assert!((5.9..=6.0).contains(&found.throughput_mpps), "{found:?}");
    }

    #[test]
    fn a_switch_faster_than_the_generator_is_told_apart() {
        let found = found(10.0, |offered| offered);
        assert_eq!((found.throughput_mpps, found.is_limited_by_generator, found.trials.len()), (10.0, true, 1));
    }

    #[test]
    fn a_generator_that_cannot_offer_what_it_should_ends_the_search() {
        // It loses when overrun, though the generator offers no more than 2 whatever it is asked.
        let is_first = std::cell::Cell::new(true);
        let found = found(2.0, |offered| if is_first.replace(false) { offered * 0.9 } else { offered });
        assert!(found.throughput_mpps > 1.7 && found.trials.len() < 12, "{found:?}");
    }

    #[test]
    fn a_switch_that_always_loses_has_no_throughput() {
        assert_eq!(found(10.0, |offered| offered * 0.9).throughput_mpps, 0.0);
    }
}
