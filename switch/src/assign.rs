//! Which worker polls which rx queue: where a new queue goes, and which queues move when the load is uneven; and by which tx queue
//! a worker sends.
//!
//! All are pure functions of what they are given, so the same numbers give the same answer. A move is cheap but not free: for
//! some ten microseconds nobody polls the queue, and its lines change caches. So few queues move at a time, and only for
//! a gain that outlasts the noise of measurement: what is nearly even stays as it is, else two queues of about the
//! same cost would change places for ever.
//!
//! Costs are time, in any one unit. Called by control threads. Bounds: [`MOVES_MAX`] moves a plan; time grows with the
//! number of queues, times its logarithm.

use crate::ids::{QueueIndex, WorkerIndex};
use crate::publish::RxQueue;

/// Queues that one plan moves at most. The rest waits for the next, which is made from new measurements.
pub const MOVES_MAX: usize = 16;
/// Two workers count as even if they differ by at most the busier one's load divided by this.
pub const EVEN_PART: u64 = 8;
/// A step is taken if it takes at least the busiest worker's load divided by this from that worker.
pub const GAIN_PART: u64 = 16;

/// What one queue costs the worker that polls it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueLoad {
    /// The queue.
    pub rx: RxQueue,
    /// Its worker.
    pub worker: WorkerIndex,
    /// Time its frames took, in the unit of all the others.
    pub cost: u64,
}

/// A queue that changes its worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// The queue.
    pub rx: RxQueue,
    /// Who polls it.
    pub from: WorkerIndex,
    /// Who shall.
    pub to: WorkerIndex,
}

/// The worker for a queue whose cost nobody knows yet: the one with the fewest queues. `counts` is queues by worker.
///
/// Among equals the search begins at another worker for each port and queue, so that the queues of one port spread.
pub fn home(counts: &[usize], rx: RxQueue) -> WorkerIndex {
    assert!(!counts.is_empty(), "a switch has at least one worker");
    let first = rx.port.as_usize() + usize::from(rx.queue.0);
    let at = |step: usize| (first + step) % counts.len();
    let best = (0..counts.len()).map(at).min_by_key(|&worker| counts[worker]);
    WorkerIndex(best.expect("there is a worker") as u8)
}

/// By which of a port's `queues` tx queues each of the `workers` sends. `owners`: by queue, as far as there are rx queues of the same
/// numbers, the worker that polls it.
///
/// By one that it polls itself, if it can. The far side of a TAP sends a flow by the queue from which it got the flow's last frame: so
/// both directions of a flow stay with one worker. Were it another's queue, the flow would come back by that worker, which may send by a
/// third queue, and a flow that is passed on at each turn overtakes itself.
///
/// A worker that polls none takes a queue of the owner that is nearest by the exclusive or of their numbers. Of each worker there is one
/// owner at each distance, and what is nearest to the nearest is no farther away: so on a flow's way from port to port the distance
/// shrinks until two workers have the flow for good. And workers spread over owners as evenly as by the rest of a division.
pub fn send_queues(owners: &[WorkerIndex], queues: usize, workers: usize) -> Vec<QueueIndex> {
    let choose = |worker: usize| {
        let Some(distance) = owners.iter().map(|owner| owner.as_usize() ^ worker).min() else { return worker % queues };
        let own: Vec<usize> =
            (0..owners.len()).filter(|&queue| owners[queue].as_usize() ^ worker == distance).collect();
        own[worker % own.len()]
    };
    (0..workers).map(|worker| QueueIndex(choose(worker) as u16)).collect()
}

/// The moves that even out the load of `workers` workers; none if it is even, or cannot be evened out.
///
/// Each step takes from the busiest worker and gives to the idlest: one queue, or where no single one fits, one in exchange
/// for a cheaper one. The load of the busiest worker never grows, and queues are named at most once.
pub fn balance(queues: &[QueueLoad], workers: usize) -> Vec<Move> {
    let mut owners: Vec<usize> = queues.iter().map(|queue| queue.worker.as_usize()).collect();
    let mut loads = vec![0u64; workers];
    for (queue, &owner) in queues.iter().zip(&owners) {
        loads[owner] = loads[owner].saturating_add(queue.cost);
    }
    let mut budget = MOVES_MAX;
    while let Some(step) = next_step(queues, &owners, &loads, budget) {
        for (at, to) in [Some(step.give), step.take].into_iter().flatten() {
            loads[owners[at]] -= queues[at].cost;
            loads[to] += queues[at].cost;
            owners[at] = to;
            budget -= 1;
        }
    }
    let moved = queues.iter().zip(owners).filter(|(queue, owner)| queue.worker.as_usize() != *owner);
    moved.map(|(queue, owner)| Move { rx: queue.rx, from: queue.worker, to: WorkerIndex(owner as u8) }).collect()
}

/// One queue to the idlest worker, and perhaps one back: each by its place in the list, with its new worker.
struct Step {
    give: (usize, usize),
    take: Option<(usize, usize)>,
}

fn next_step(queues: &[QueueLoad], owners: &[usize], loads: &[u64], budget: usize) -> Option<Step> {
    // The first of equals, so that the answer does not depend on how the iterator breaks ties.
    let busiest = (0..loads.len()).rev().max_by_key(|&worker| loads[worker])?;
    let idlest = (0..loads.len()).min_by_key(|&worker| loads[worker])?;
    let gap = loads[busiest] - loads[idlest];
    if gap <= loads[busiest] / EVEN_PART {
        return None;
    }
    // A shift of `net` takes the lesser of `net` and `gap - net` from the larger of the two loads.
    let gain = |net: u64| net.min(gap.saturating_sub(net));
    let enough = (loads[busiest] / GAIN_PART).max(1);
    let of = |worker: usize| (0..queues.len()).filter(move |&at| owners[at] == worker);

    let single = of(busiest).max_by_key(|&at| (gain(queues[at].cost), std::cmp::Reverse(at)))?;
    if gain(queues[single].cost) >= enough {
        return (budget >= 1).then_some(Step { give: (single, idlest), take: None });
    }
    let mut back: Vec<(u64, usize)> = of(idlest).map(|at| (queues[at].cost, at)).collect();
    back.sort_unstable();
    let partners = |give: usize| {
        // The best partner makes a net of half the gap; it is one of the two around that cost.
        let ideal = queues[give].cost.saturating_sub(gap / 2);
        let above = back.partition_point(|&(cost, _)| cost < ideal);
        let near = [above.checked_sub(1), Some(above)].into_iter().flatten().filter_map(|at| back.get(at).copied());
        near.map(move |(cost, take)| (gain(queues[give].cost.saturating_sub(cost)), std::cmp::Reverse((give, take))))
    };
    let (best, std::cmp::Reverse((give, take))) = of(busiest).flat_map(partners).max()?;
    (best >= enough && budget >= 2).then_some(Step { give: (give, idlest), take: Some((take, busiest)) })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::ids::{PortIndex, QueueIndex};
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn rx(number: usize) -> RxQueue {
        RxQueue { port: PortIndex(number as u16), queue: QueueIndex(0) }
    }

    /// Queue `n` costs `costs[n].0` and is polled by worker `costs[n].1`.
    fn queues(costs: &[(u64, u8)]) -> Vec<QueueLoad> {
        let queue = |(number, &(cost, worker)): (usize, &(u64, u8))| QueueLoad {
            rx: rx(number),
            worker: WorkerIndex(worker),
            cost,
        };
        costs.iter().enumerate().map(queue).collect()
    }

    fn apply(mut queues: Vec<QueueLoad>, moves: &[Move]) -> Vec<QueueLoad> {
        for step in moves {
            let queue = queues.iter_mut().find(|queue| queue.rx == step.rx).expect("only queues there are move");
            assert_eq!(queue.worker, step.from);
            queue.worker = step.to;
        }
        queues
    }

    fn loads(queues: &[QueueLoad], workers: usize) -> Vec<u64> {
        let of = |worker| queues.iter().filter(|queue| queue.worker.as_usize() == worker).map(|queue| queue.cost).sum();
        (0..workers).map(of).collect()
    }

    /// Every single move and every exchange between two workers, tried out: whether one of them is worth it.
    fn can_improve(queues: &[QueueLoad], workers: usize) -> bool {
        let loads = loads(queues, workers);
        let max = loads.iter().copied().max().unwrap_or_default();
        let min = loads.iter().copied().min().unwrap_or_default();
        if max - min <= max / EVEN_PART {
            return false;
        }
        let place = |wanted: u64| loads.iter().position(|&load| load == wanted).expect("it is one of them");
        let (busiest, idlest) = (place(max), place(min));
        let of = |worker: usize| queues.iter().filter(move |queue| queue.worker.as_usize() == worker);
        let worth = |given: u64, taken: u64| {
            let (high, low) = (max - given + taken, min + given - taken);
            high.max(low) + (max / GAIN_PART).max(1) <= max
        };
        of(busiest).any(|give| {
            worth(give.cost, 0) || of(idlest).any(|take| take.cost <= give.cost && worth(give.cost, take.cost))
        })
    }

    #[test]
    fn the_busiest_worker_gives_to_the_idlest() {
        let uneven = queues(&[(50, 0), (30, 0), (20, 0), (4, 1)]);
        assert_eq!(balance(&uneven, 2), [Move { rx: rx(0), from: WorkerIndex(0), to: WorkerIndex(1) }]);
    }

    #[test]
    fn queues_change_places_where_no_single_one_fits() {
        let uneven = queues(&[(6, 0), (5, 0), (4, 1), (3, 1)]);
        let moves = balance(&uneven, 2);
        assert_eq!(moves.len(), 2);
        assert_eq!(loads(&apply(uneven, &moves), 2), [9, 9]);
    }

    #[test]
    fn nothing_moves_for_one_worker_for_no_load_or_for_one_queue_that_is_all() {
        assert!(balance(&queues(&[(9, 0), (1, 0)]), 1).is_empty());
        assert!(balance(&queues(&[(0, 0), (0, 0), (0, 0)]), 2).is_empty());
        assert!(balance(&queues(&[(1000, 0), (0, 1)]), 2).is_empty());
        assert!(balance(&[], 4).is_empty());
    }

    #[test]
    fn a_small_unevenness_stays() {
        assert!(balance(&queues(&[(50, 0), (50, 0), (45, 1), (45, 1), (1, 0)]), 2).is_empty());
    }

    #[test]
    fn a_new_queue_goes_to_the_worker_with_the_fewest() {
        assert_eq!(home(&[3, 1, 2], rx(0)), WorkerIndex(1));
        let spread: Vec<_> = (0..4).map(|number| home(&[0; 4], rx(number)).0).collect();
        assert_eq!(spread, [0, 1, 2, 3]);
    }

    #[test]
    fn a_worker_sends_by_a_queue_that_it_polls_and_else_workers_spread() {
        let by = |owners: &[u8], queues, workers| {
            let owners: Vec<_> = owners.iter().copied().map(WorkerIndex).collect();
            send_queues(&owners, queues, workers).iter().map(|queue| queue.0).collect::<Vec<_>>()
        };
        assert_eq!(by(&[1, 0], 2, 2), [1, 0]);
        assert_eq!(by(&[0, 1, 0, 1], 4, 2), [0, 3]);
        assert_eq!(by(&[0, 1], 2, 6), [0, 1, 0, 1, 0, 1], "those that poll none");
        assert_eq!(by(&[2, 2], 2, 4), [0, 1, 0, 1], "one worker's queues are used by all");
        assert_eq!(by(&[], 3, 4), [0, 1, 2, 0], "no queue comes in");
    }

    proptest! {
        /// The kernel's TAPs send a flow by the queue from which they got its last frame. After a few frames to and fro it must stay.
        #[test]
        fn a_flow_between_two_ports_settles_on_a_queue_of_each(
            (workers, one, two) in (1usize..16).prop_flat_map(|workers| {
                let owners = || vec(0..workers as u8, 1..16);
                (Just(workers), owners(), owners())
            }),
            first in 0usize..16,
        ) {
            let owners = [one, two].map(|owners| owners.into_iter().map(WorkerIndex).collect::<Vec<_>>());
            let queues = [0, 1].map(|port| send_queues(&owners[port], owners[port].len(), workers));
            let (mut port, mut at) = (0, first % owners[0].len());
            let mut seen = Vec::new();
            for _ in 0..64 {
                let worker = owners[port][at];
                port = 1 - port;
                at = usize::from(queues[port][worker.as_usize()].0);
                seen.push(at);
            }
            prop_assert!(seen[60] == seen[62] && seen[61] == seen[63], "{owners:?}: {seen:?}");
        }

        #[test]
        fn a_plan_moves_few_queues_once_each_and_never_makes_it_worse(
            (workers, costs) in (1usize..6).prop_flat_map(|workers| {
                (Just(workers), vec((0u64..1_000_000, 0..workers as u8), 0..60))
            })
        ) {
            let before = queues(&costs);
            let moves = balance(&before, workers);
            prop_assert_eq!(&moves, &balance(&before, workers));
            prop_assert!(moves.len() <= MOVES_MAX);
            for (at, step) in moves.iter().enumerate() {
                prop_assert!(step.from != step.to && step.to.as_usize() < workers);
                prop_assert!(moves[..at].iter().all(|other| other.rx != step.rx));
            }
            let after = apply(before.clone(), &moves);
            prop_assert_eq!(after.len(), before.len());
            let (old, new) = (loads(&before, workers), loads(&after, workers));
            prop_assert_eq!(old.iter().sum::<u64>(), new.iter().sum::<u64>());
            prop_assert!(new.iter().max() <= old.iter().max());
            let unevenness = |loads: &[u64]| loads.iter().map(|&load| u128::from(load).pow(2)).sum::<u128>();
            if moves.is_empty() {
                prop_assert!(!can_improve(&before, workers), "it left {old:?} as it was");
            } else {
                prop_assert!(unevenness(&new) < unevenness(&old), "{old:?} became {new:?}");
            }
            // What is left over is even, cannot be improved, or waits for the next plan.
            prop_assert!(moves.len() + 1 >= MOVES_MAX || !can_improve(&after, workers), "{new:?} can be improved");
        }

        #[test]
        fn a_second_plan_from_the_same_costs_takes_nothing_back(
            costs in vec((0u64..1_000_000, 0u8..3), 0..20)
        ) {
            let before = queues(&costs);
            let first = balance(&before, 3);
            let after = apply(before, &first);
            let second = balance(&after, 3);
            prop_assert!(first.len() + 1 >= MOVES_MAX || second.is_empty(), "{first:?} then {second:?}");
        }
    }
}
