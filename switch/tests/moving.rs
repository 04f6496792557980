//! Queues that move from worker to worker under traffic: no frame is lost, repeated or overtaken, and no queue is ever in
//! two hands. With threads, where chance orders things, and stepped by hand from a seed, where any order can be tried.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use switch::assign::Move;
use switch::batch::{BURST, Batch};
use switch::config::{Config, MTU_DEFAULT, NetworkConfig, PortConfig};
use switch::ids::{NetworkIndex, PortIndex, QueueIndex, WorkerIndex};
use switch::ledger::Tally;
use switch::offload::OffloadClaim;
use switch::poll::Poll;
use switch::port::Port;
use switch::publish::{Parked, RxQueue};
use switch::switch::{Switch, SwitchConfig, WorkerSpec};
use switch::worker::{Context, Egress, Pipeline, Worker};

/// Queues of each sender.
const QUEUES: usize = 3;
/// Senders; one port more receives.
const SENDERS: usize = 3;
/// Where everything goes.
const SINK: PortIndex = PortIndex(SENDERS as u16);

/// Sends every frame to the sink.
struct ToSink;

impl Pipeline for ToSink {
    type Tables = ();

    fn compile(_config: &Config) {}

    fn run(_tables: &(), _context: &Context<'_>, batch: &mut Batch<'_>, egress: &mut Egress<'_>) {
        for at in 0..batch.len() {
            egress.forward(at, batch.packets()[at].len(), SINK);
        }
    }

    fn trace(_tables: &(), _context: &Context<'_>, _batch: &mut Batch<'_>) -> Vec<String> {
        Vec::new()
    }
}

/// One queue of a sender: the frames left are those from `next` to `end`.
#[derive(Default)]
struct Source {
    next: AtomicU64,
    end: AtomicU64,
    /// Set from an rx that took frames to its `rx_done`.
    is_taken: AtomicBool,
    /// Microseconds that a burst costs.
    toil_us: AtomicU64,
}

/// Sends numbered frames and receives none.
#[derive(Default)]
struct Sender {
    queues: [Source; QUEUES],
    /// It gives other workers no chance: there is none, or that would be charged as well.
    is_alone: AtomicBool,
}

impl Port for Sender {
    fn rx_queues(&self) -> u16 {
        QUEUES as u16
    }

    fn tx_queues(&self) -> u16 {
        1
    }

    fn rx<'r>(&'r self, ingress: PortIndex, queue: QueueIndex, batch: &mut Batch<'r>, tally: &mut Tally) {
        let source = &self.queues[usize::from(queue.0)];
        assert!(!source.is_taken.swap(true, Ordering::AcqRel), "a second worker polls a queue in use");
        let next = source.next.load(Ordering::Relaxed);
        let count = (source.end.load(Ordering::Acquire) - next).min(1 + next % 7);
        for number in next..next + count {
            let Some(mut packet) = batch.start(ingress, queue) else { break };
            let head = packet.head(16).unwrap();
            head[..2].copy_from_slice(&ingress.0.to_be_bytes());
            head[2..4].copy_from_slice(&queue.0.to_be_bytes());
            head[8..].copy_from_slice(&number.to_be_bytes());
            tally.moved(16);
            packet.commit(OffloadClaim::default());
        }
        let begin = Instant::now();
        while tally.packets > 0 && begin.elapsed().as_micros() < source.toil_us.load(Ordering::Relaxed).into() {}
        // Two that take the same frames would be seen: between the load and this another worker has its chance.
        if !self.is_alone.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        source.next.store(next + u64::from(tally.packets), Ordering::Relaxed);
        if tally.packets == 0 {
            source.is_taken.store(false, Ordering::Release);
        }
    }

    fn rx_done(&self, queue: QueueIndex) {
        assert!(self.queues[usize::from(queue.0)].is_taken.swap(false, Ordering::AcqRel), "nothing was taken");
    }

    fn tx(&self, _queue: QueueIndex, _batch: &mut Batch<'_>, _picks: &[u8], _tally: &mut Tally) {
        unreachable!("everything goes to the sink");
    }

    fn wake_fd(&self, _queue: QueueIndex) -> Option<BorrowedFd<'_>> {
        None
    }

    fn arm(&self, queue: QueueIndex) -> bool {
        let source = &self.queues[usize::from(queue.0)];
        source.next.load(Ordering::Relaxed) < source.end.load(Ordering::Acquire)
    }

    fn disarm(&self, _queue: QueueIndex) {}
}

/// Holds every frame against the one before it of the same queue.
#[derive(Default)]
struct Sink {
    arrived: Mutex<[[u64; QUEUES]; SENDERS]>,
    /// As of [`Sender`].
    is_alone: AtomicBool,
}

impl Port for Sink {
    fn rx_queues(&self) -> u16 {
        0
    }

    fn tx_queues(&self) -> u16 {
        1
    }

    fn rx<'r>(&'r self, _ingress: PortIndex, _queue: QueueIndex, _batch: &mut Batch<'r>, _tally: &mut Tally) {
        unreachable!("it has no rx queue");
    }

    fn rx_done(&self, _queue: QueueIndex) {}

    fn tx(&self, _queue: QueueIndex, batch: &mut Batch<'_>, picks: &[u8], tally: &mut Tally) {
        // The burst was taken; before it arrives another worker has its chance to overtake.
        if !self.is_alone.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        let mut arrived = self.arrived.lock().unwrap();
        for &pick in picks {
            let head = batch.packets()[usize::from(pick)].head();
            let word = |at: usize| usize::from(u16::from_be_bytes([head[at], head[at + 1]]));
            let number = u64::from_be_bytes(head[8..].try_into().unwrap());
            let expected = &mut arrived[word(0)][word(2)];
            assert_eq!(number, *expected, "port {}, queue {}", word(0), word(2));
            *expected += 1;
            tally.moved(head.len());
        }
    }

    fn wake_fd(&self, _queue: QueueIndex) -> Option<BorrowedFd<'_>> {
        None
    }

    fn arm(&self, _queue: QueueIndex) -> bool {
        false
    }

    fn disarm(&self, _queue: QueueIndex) {}
}

struct Rig {
    switch: Arc<Switch<ToSink>>,
    senders: [Arc<Sender>; SENDERS],
    sink: Arc<Sink>,
    chance: u64,
}

impl Rig {
    fn new(workers: usize, poll: Poll, seed: u64) -> Rig {
        let config = SwitchConfig { workers: vec![WorkerSpec::default(); workers], poll, mac_max: 100, mac_age_s: 300 };
        let switch = Switch::<ToSink>::new(&config).unwrap();
        let rig = Rig { switch, senders: Default::default(), sink: Arc::default(), chance: seed | 1 };
        rig.apply();
        for (index, sender) in rig.senders.iter().enumerate() {
            rig.switch.place(PortIndex(index as u16)).publish(sender.clone());
        }
        rig.switch.place(SINK).publish(rig.sink.clone());
        rig
    }

    /// From now on ports give other workers no chance.
    fn be_alone(&self) {
        for is_alone in self.senders.iter().map(|sender| &sender.is_alone).chain([&self.sink.is_alone]) {
            is_alone.store(true, Ordering::Relaxed);
        }
    }

    fn apply(&self) {
        let network = NetworkConfig { index: NetworkIndex(1), id: "net".into() };
        let port = |index| PortConfig {
            index: PortIndex(index),
            interface: format!("if{index}").into(),
            network: Some(NetworkIndex(1)),
            is_admin_up: true,
            mtu: MTU_DEFAULT,
            macs: vec![],
            allowed_macs: Vec::new(),
        };
        self.switch.apply(Config::new(vec![network], (0..=SINK.0).map(port).collect()).unwrap());
    }

    fn below(&mut self, bound: usize) -> usize {
        self.chance ^= self.chance >> 12;
        self.chance ^= self.chance << 25;
        self.chance ^= self.chance >> 27;
        (self.chance.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    /// A queue and where it is now; `None` if it is parked.
    fn owner(&self, rx: RxQueue) -> Option<WorkerIndex> {
        let snapshot = self.switch.snapshot();
        let owners: Vec<_> = (0..snapshot.rx.len()).filter(|&worker| snapshot.rx[worker].contains(&rx)).collect();
        assert!(owners.len() <= 1, "{rx:?} has owners {owners:?}");
        owners.first().map(|&worker| WorkerIndex(worker as u8))
    }

    fn any_queue(&mut self) -> RxQueue {
        let port = PortIndex(self.below(SENDERS) as u16);
        RxQueue { port, queue: QueueIndex(self.below(QUEUES) as u16) }
    }

    /// Some queues to any other worker.
    fn any_moves(&mut self, workers: usize) -> Vec<Move> {
        let mut moves: Vec<Move> = Vec::new();
        for _ in 0..1 + self.below(4) {
            let rx = self.any_queue();
            let to = WorkerIndex(self.below(workers) as u8);
            if let Some(from) = self.owner(rx)
                && from != to
                && moves.iter().all(|step| step.rx != rx)
            {
                moves.push(Move { rx, from, to });
            }
        }
        moves
    }

    fn offer(&self, rx: RxQueue, frames: u64) {
        self.senders[rx.port.as_usize()].queues[usize::from(rx.queue.0)].end.fetch_add(frames, Ordering::Release);
    }

    /// How many frames were offered and how many arrived.
    fn progress(&self) -> (u64, u64) {
        let offered = self.senders.iter().flat_map(|sender| &sender.queues);
        let arrived = self.sink.arrived.lock().unwrap();
        (offered.map(|source| source.end.load(Ordering::Relaxed)).sum(), arrived.iter().flatten().sum())
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn queues_move_between_running_workers_without_loss_repeat_or_overtaking() {
    for (workers, poll) in [
        (2, Poll::Always),
        (3, Poll::Adaptive { idle: Duration::from_micros(20) }),
        (4, Poll::Adaptive { idle: Duration::from_micros(20) }),
    ] {
        let mut rig = Rig::new(workers, poll, 7);
        rig.switch.start().unwrap();
        let mut moved = 0;
        for _ in 0..150 {
            for _ in 0..QUEUES * SENDERS {
                let (rx, frames) = (rig.any_queue(), 20 + rig.below(40) as u64);
                rig.offer(rx, frames);
            }
            let moves = rig.any_moves(workers);
            let done = rig.switch.move_queues(&moves);
            assert_eq!(done, moves, "nobody else moves queues");
            for step in &done {
                assert_eq!(rig.owner(step.rx), Some(step.to));
            }
            moved += done.len();
            if rig.below(4) == 0 {
                rig.apply();
            }
        }
        assert!(moved > 100, "{moved} moves");
        // On a busy machine every chance for another worker is one for all else that runs: it may take long while frames arrive.
        let (mut before, mut since) = (0, Instant::now());
        loop {
            let (offered, arrived) = rig.progress();
            if arrived == offered {
                break;
            }
            if arrived > before {
                (before, since) = (arrived, Instant::now());
            }
            assert!(since.elapsed() < Duration::from_secs(60), "{arrived} of {offered} frames arrived, and no more");
            std::thread::yield_now();
        }
        rig.switch.stop();
        let balance = rig.switch.balance();
        assert!(balance.balances() && balance.dropped == 0, "{balance:?}");
    }
}

#[test]
fn a_queue_that_costs_more_is_charged_more_and_takes_its_cost_along() {
    let rig = Rig::new(2, Poll::Adaptive { idle: Duration::from_micros(20) }, 1);
    let at = |queue| RxQueue { port: PortIndex(0), queue: QueueIndex(queue) };
    let (dear, cheap) = (at(0), at(1));
    // Far more than a burst costs without, on any machine.
    rig.senders[0].queues[0].toil_us.store(200, Ordering::Relaxed);
    rig.be_alone();
    rig.switch.start().unwrap();
    for rx in [dear, cheap] {
        if let Some(from) = rig.owner(rx).filter(|&from| from != WorkerIndex(0)) {
            rig.switch.move_queues(&[Move { rx, from, to: WorkerIndex(0) }]);
        }
    }
    let busy_ns = |rx: RxQueue| {
        let reports = rig.switch.worker_reports();
        let queues = reports.iter().flat_map(|report| &report.queues);
        queues.filter(|queue| queue.rx == rx).map(|queue| queue.busy_ns).sum::<u64>()
    };
    until("the dear queue is charged more", || {
        for rx in [dear, cheap] {
            let (offered, arrived) = rig.progress();
            if offered < arrived + 100 {
                rig.offer(rx, 10);
            }
        }
        busy_ns(cheap) > 0 && busy_ns(dear) > 2 * busy_ns(cheap)
    });
    let reports = rig.switch.worker_reports();
    let of_dear = reports.iter().flat_map(|report| &report.queues).find(|queue| queue.rx == dear).unwrap();
    let ns_a_frame = of_dear.busy_ns / of_dear.busy_packets;
    assert!(
        ns_a_frame >= 200_000 / BURST as u64,
        "each burst toils for 200 microseconds, and a frame for {ns_a_frame} ns"
    );
    let before = busy_ns(dear);
    rig.switch.move_queues(&[Move { rx: dear, from: WorkerIndex(0), to: WorkerIndex(1) }]);
    assert!(busy_ns(dear) >= before);
    let reports = rig.switch.worker_reports();
    assert!(reports[1].queues.iter().any(|queue| queue.rx == dear), "told of its new worker");
    rig.switch.stop();
}

/// Steps workers by hand in any order, with moves, publications and traffic in between.
fn stepped(seed: u64) {
    let workers_count = 2 + (seed % 3) as usize;
    let mut rig = Rig::new(workers_count, Poll::Always, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut workers: Vec<Worker<ToSink>> = rig.switch.take_workers();
    // They have but this thread.
    rig.be_alone();
    let now = rig.switch.clock().now();
    let mut under_way: Vec<Parked> = Vec::new();
    for _ in 0..3000 {
        match rig.below(10) {
            0 => {
                let moves = rig.any_moves(workers_count);
                under_way.push(rig.switch.park_queues(&moves));
                assert!(moves.iter().all(|step| rig.owner(step.rx).is_none()), "seed {seed}: parked, yet polled");
            }
            1 => rig.apply(),
            2 | 3 if !under_way.is_empty() => {
                let at = rig.below(under_way.len());
                match rig.switch.settle_queues(under_way.swap_remove(at)) {
                    Ok(moved) => {
                        assert!(moved.iter().all(|step| rig.owner(step.rx) == Some(step.to)), "seed {seed}");
                    }
                    Err(again) => under_way.push(again),
                }
            }
            4..6 => {
                let (rx, frames) = (rig.any_queue(), rig.below(30) as u64);
                rig.offer(rx, frames);
            }
            _ => {
                let worker = rig.below(workers_count);
                workers[worker].step(now);
            }
        }
    }
    for parked in under_way {
        // A worker that has not looked since may hold a queue still: one more round of each lets go of all.
        for worker in &mut workers {
            worker.step(now);
        }
        assert!(rig.switch.settle_queues(parked).is_ok(), "seed {seed}: every worker has looked, yet one holds on");
    }
    until("all frames arrived", || {
        for worker in &mut workers {
            worker.step(now);
        }
        let (offered, arrived) = rig.progress();
        offered == arrived
    });
    assert!(rig.switch.balance().balances(), "seed {seed}");
}

#[test]
fn any_order_of_rounds_moves_and_publications_keeps_every_queue_in_one_hand() {
    if let Ok(seed) = std::env::var("QVS_SEED") {
        stepped(seed.parse().expect("QVS_SEED is a number"));
        return;
    }
    for seed in 1..=60 {
        stepped(seed);
    }
}

#[test]
fn a_queue_cannot_be_settled_while_its_old_worker_may_be_in_its_round() {
    let mut rig = Rig::new(2, Poll::Always, 1);
    let mut workers = rig.switch.take_workers();
    let now = rig.switch.clock().now();
    for worker in &mut workers {
        worker.step(now);
    }
    let moves = rig.any_moves(2);
    let parked = rig.switch.park_queues(&moves);
    let parked = rig.switch.settle_queues(parked).expect_err("both workers hold the snapshot before");
    workers[0].step(now);
    let parked = rig.switch.settle_queues(parked).expect_err("one of them still does");
    workers[1].step(now);
    assert_eq!(rig.switch.settle_queues(parked).unwrap(), moves);
}

#[test]
fn a_guest_that_reconnects_comes_back_to_its_worker() {
    let rig = Rig::new(2, Poll::Always, 1);
    drop(rig.switch.take_workers());
    let rx = RxQueue { port: PortIndex(1), queue: QueueIndex(2) };
    let from = rig.owner(rx).unwrap();
    let to = WorkerIndex(1 - from.0);
    rig.switch.move_queues(&[Move { rx, from, to }]);
    let place = rig.switch.place(rx.port);
    place.withdraw();
    assert_eq!(rig.owner(rx), None);
    place.publish(rig.senders[1].clone());
    assert_eq!(rig.owner(rx), Some(to));
    // A plan that is out of date does nothing.
    assert_eq!(rig.switch.move_queues(&[Move { rx, from, to }]), []);
    assert_eq!(rig.owner(rx), Some(to));
}
