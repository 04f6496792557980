//! Evening out the workers' load: when to move queues, and moving them.
//!
//! Which queues move is decided in `switch/src/assign.rs`, from what each has cost lately. Here is the patience: a load
//! that is uneven for a moment is not worth a move, and queues that have just moved are left alone until there are
//! measurements of the new order. An operator who asks gets the moves at once.
//!
//! Runs on the housekeeping thread and on those of the admin socket, one at a time. Bounds: one plan
//! (`assign::MOVES_MAX` queues) each [`REST`] windows by ourselves.

use crate::load::{Costs, Load};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use switch::assign::{Move, balance};
use switch::ids::PortIndex;
use switch::switch::Switch;
use switch::worker::Pipeline;

/// Windows of a second in a row that must call for moves before we move by ourselves.
const PATIENCE: u32 = 3;
/// Windows after moves of our own in which nothing moves: the oldest remembered must be gone, and a load that swings
/// faster than this is not followed.
const REST: u32 = 10;
/// Share of its time that the busiest worker must be busy for us to move anything by ourselves: below it every worker has
/// room to spare, and moves would gain nobody anything.
const BUSY_MIN: f64 = 0.1;

/// A queue that moved, or would.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct QueueMove {
    /// The interface.
    pub(crate) interface: String,
    /// Its queue, 0-based.
    pub(crate) queue: u16,
    /// The worker that polled it.
    pub(crate) from: u8,
    /// The worker that polls it now.
    pub(crate) to: u8,
    /// Share of a worker's time that it takes, 0 to 1.
    pub(crate) busy: f64,
}

/// What came of it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Rebalance {
    /// The moves.
    pub(crate) moves: Vec<QueueMove>,
    /// By worker: the share of its time that its queues took, 0 to 1.
    pub(crate) before: Vec<f64>,
    /// The same, as expected after the moves.
    pub(crate) after: Vec<f64>,
}

/// Remembers how long the load has been uneven.
#[derive(Default)]
struct Patience {
    uneven: u32,
    rest: u32,
}

impl Patience {
    /// The moves to make now, once a window.
    fn decide(&mut self, costs: &Costs, workers: usize) -> Vec<Move> {
        self.rest = self.rest.saturating_sub(1);
        let is_busy = costs.shares(workers).into_iter().any(|share| share >= BUSY_MIN);
        let plan = if is_busy && self.rest == 0 { balance(&costs.queues, workers) } else { Vec::new() };
        self.uneven = if plan.is_empty() { 0 } else { self.uneven + 1 };
        if self.uneven < PATIENCE {
            return Vec::new();
        }
        *self = Patience { uneven: 0, rest: REST };
        plan
    }
}

/// Moves queues between the workers of a switch.
#[derive(Default)]
pub(crate) struct Rebalancer {
    /// Held while queues move.
    patience: Mutex<Patience>,
    moved: AtomicU64,
}

impl Rebalancer {
    fn patience(&self) -> MutexGuard<'_, Patience> {
        self.patience.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many queues were moved since the start.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Moves queues if the load has been uneven for long enough. Call once a window.
    pub(crate) fn tick<P: Pipeline>(&self, switch: &Switch<P>, load: &Load) {
        let mut patience = self.patience();
        let costs = load.costs(&switch.worker_reports());
        let plan = patience.decide(&costs, switch.worker_count());
        if !plan.is_empty() {
            self.carry_out(switch, &costs, &plan);
        }
    }

    /// Evens out the load now, or only tells how it would be done.
    pub(crate) fn ask<P: Pipeline>(&self, switch: &Switch<P>, load: &Load, is_dry_run: bool) -> Rebalance {
        // One at a time: a plan made while queues move would be of queues that nobody has.
        let mut patience = self.patience();
        let costs = load.costs(&switch.worker_reports());
        let plan = balance(&costs.queues, switch.worker_count());
        if is_dry_run || plan.is_empty() {
            return tell(switch, &costs, &plan);
        }
        *patience = Patience { uneven: 0, rest: REST };
        self.carry_out(switch, &costs, &plan)
    }

    fn carry_out<P: Pipeline>(&self, switch: &Switch<P>, costs: &Costs, plan: &[Move]) -> Rebalance {
        let moved = switch.move_queues(plan);
        self.moved.fetch_add(moved.len() as u64, Ordering::Relaxed);
        let told = tell(switch, costs, &moved);
        for QueueMove { interface, queue, from, to, busy } in &told.moves {
            tracing::info!(interface, queue, from, to, busy, "a queue moved to another worker");
        }
        told
    }
}

/// The moves in the operator's words.
fn tell<P: Pipeline>(switch: &Switch<P>, costs: &Costs, moves: &[Move]) -> Rebalance {
    let config = switch.snapshot().config.clone();
    let name =
        |index: PortIndex| config.port(index).map_or_else(|| index.to_string(), |port| port.interface.to_string());
    let before = costs.shares(switch.worker_count());
    let mut after = before.clone();
    let moves = moves.iter().map(|step| {
        let cost = costs.queues.iter().find(|queue| queue.rx == step.rx).map_or(0, |queue| queue.cost);
        let busy = costs.share(cost);
        after[step.from.as_usize()] -= busy;
        after[step.to.as_usize()] += busy;
        QueueMove {
            interface: name(step.rx.port),
            queue: step.rx.queue.0,
            from: step.from.0,
            to: step.to.0,
            busy: round(busy),
        }
    });
    let moves = moves.collect();
    Rebalance {
        moves,
        before: before.into_iter().map(round).collect(),
        after: after.into_iter().map(|share| round(share.max(0.0))).collect(),
    }
}

fn round(share: f64) -> f64 {
    (share * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use switch::assign::QueueLoad;
    use switch::ids::{QueueIndex, WorkerIndex};
    use switch::publish::RxQueue;

    /// Queues that took these percents of the time, all on worker 0 of two.
    fn costs(percents: &[u64]) -> Costs {
        let queue = |(index, &percent): (usize, &u64)| QueueLoad {
            rx: RxQueue { port: PortIndex(index as u16), queue: QueueIndex(0) },
            worker: WorkerIndex(0),
            cost: percent * 10_000_000,
        };
        Costs { queues: percents.iter().enumerate().map(queue).collect(), time: Duration::from_secs(1) }
    }

    #[test]
    fn only_a_load_that_stays_uneven_moves_queues_and_then_there_is_rest() {
        let mut patience = Patience::default();
        let uneven = costs(&[40, 40]);
        let mut moved = Vec::new();
        for window in 0..30 {
            // It evens out by itself once, so the count begins anew.
            let now = if window == 2 { costs(&[80]) } else { costs(&[40, 40]) };
            if !patience.decide(&now, 2).is_empty() {
                moved.push(window);
            }
        }
        assert_eq!(moved, [5, 17, 29], "a plan not followed is made again after a rest");
        assert_eq!(Patience { uneven: 2, rest: 0 }.decide(&uneven, 2).len(), 1);
    }

    #[test]
    fn workers_with_room_to_spare_keep_their_queues() {
        let mut patience = Patience { uneven: PATIENCE, rest: 0 };
        assert_eq!(patience.decide(&costs(&[4, 5]), 2), []);
        assert_eq!(patience.uneven, 0);
    }

    #[test]
    fn one_worker_has_nobody_to_give_to() {
        let mut patience = Patience { uneven: PATIENCE, rest: 0 };
        assert_eq!(patience.decide(&costs(&[50, 50]), 1), []);
    }
}
