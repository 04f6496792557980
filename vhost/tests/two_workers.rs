//! One guest whose send queues two running workers poll at once, both sending to one and the same guest: by one queue of it, and by
//! two. They contend for them: which flow goes by which queue is not up to the worker.
//!
//! Workers, sessions and rings are the real ones; of the pipeline there is just the way. The guests' side is driven by the
//! test's thread, so on two cores all three are interrupted anywhere, with a ring's lock in hand too.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{backend_config, frame, socket_path, until};
use std::sync::Arc;
use std::time::Duration;
use switch::batch::Batch;
use switch::config::{Config, MTU_DEFAULT, NetworkConfig, PortConfig};
use switch::ids::{NetworkIndex, PortIndex};
use switch::ledger::DropReason;
use switch::poll::Poll;
use switch::port::{Device, Link};
use switch::switch::{Switch, SwitchConfig, WorkerSpec};
use switch::worker::{Context, Egress, Pipeline};
use vhost::backend::{Backend, Role};
use vhost::driver::{Driver, DriverConfig};
use vhost::net::{F_MQ, F_RING_PACKED};

/// Queues that the one guest sends by.
const QUEUES: usize = 4;
const SOURCE: PortIndex = PortIndex(0);
const SINK: PortIndex = PortIndex(1);
/// Frames that each queue sends.
const FRAMES: u32 = 5_000;
/// Frames that are sent by a queue at a time, at most.
const BURST: u32 = 11;

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

/// A guest at a port of the switch.
struct Guest {
    driver: Driver,
    _backend: Backend,
}

impl Guest {
    fn new(switch: &Arc<Switch<ToSink>>, port: PortIndex, features: u64, pairs: u16, queue_size: u16) -> Guest {
        let path = socket_path();
        let backend = Backend::start(backend_config(Role::Server, path.clone()), switch.place(port)).unwrap();
        let mut config = DriverConfig::new(path);
        config.features |= features | F_MQ;
        (config.pairs, config.queue_size) = (pairs, queue_size);
        let mut driver = Driver::new(config).unwrap();
        driver.start().unwrap();
        until("the guest's rings run", || backend.state().link == Link::Up);
        Guest { driver, _backend: backend }
    }
}

struct Rig {
    switch: Arc<Switch<ToSink>>,
    source: Guest,
    sink: Guest,
    /// Frames sent so far, by queue of the source.
    sent: [u32; QUEUES],
    /// The number that is due at the earliest, by queue of the source.
    due: [u32; QUEUES],
    arrived: u64,
    /// The queue of the sink by which frames of each queue of the source come.
    ways: [Option<usize>; QUEUES],
    /// The worker of each queue of the source.
    workers: [usize; QUEUES],
    /// Whose frame came last, and how often that changed.
    turns: (usize, u64),
}

impl Rig {
    fn new(features: u64, sink_pairs: u16, sink_size: u16) -> Rig {
        let poll = Poll::Adaptive { idle: Duration::from_micros(50) };
        let config = SwitchConfig { workers: vec![WorkerSpec::default(); 2], poll, mac_max: 100, mac_age_s: 300 };
        let switch = Switch::<ToSink>::new(&config).unwrap();
        let network = NetworkConfig { index: NetworkIndex(1), id: "net".into() };
        let port = |index: PortIndex| PortConfig {
            index,
            interface: format!("if{}", index.0).into(),
            network: Some(NetworkIndex(1)),
            is_admin_up: true,
            mtu: MTU_DEFAULT,
            macs: vec![],
            allowed_macs: Vec::new(),
        };
        switch.apply(Config::new(vec![network], vec![port(SOURCE), port(SINK)]).unwrap());
        switch.start().unwrap();
        let source = Guest::new(&switch, SOURCE, features, QUEUES as u16, 256);
        let sink = Guest::new(&switch, SINK, features, sink_pairs, sink_size);
        let snapshot = switch.snapshot();
        let mut workers = [usize::MAX; QUEUES];
        for (worker, queues) in snapshot.rx.iter().enumerate() {
            for rx in queues.iter().filter(|rx| rx.port == SOURCE) {
                workers[rx.queue.as_usize()] = worker;
            }
        }
        assert!((0..2).all(|worker| workers.iter().filter(|&&at| at == worker).count() == QUEUES / 2), "{workers:?}");
        let (sent, due, ways) = Default::default();
        Rig { switch, source, sink, sent, due, arrived: 0, ways, workers, turns: (0, 0) }
    }

    /// Sends by every queue what it has room for, a burst at most, and at most as much as keeps `window` frames under way.
    fn send(&mut self, window: u64) {
        for at in 0..QUEUES {
            let under_way = self.sent.iter().map(|&count| u64::from(count)).sum::<u64>() - self.arrived - self.lost();
            let room = window.saturating_sub(under_way).min(u64::from(FRAMES - self.sent[at])) as u32;
            let first = self.sent[at];
            let count = room.min(1 + first % BURST);
            let frames: Vec<Vec<u8>> = (first..first + count).map(|number| numbered(at, number)).collect();
            let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
            let (sender, _) = self.source.driver.pairs().nth(at).unwrap();
            self.sent[at] += sender.send_burst(&frames) as u32;
        }
    }

    /// Takes what arrived; every frame is whole, comes once, behind those before it, by the way of its queue.
    fn receive(&mut self) {
        let Rig { sink, due, arrived, ways, workers, turns, .. } = self;
        for (way, (_, receiver)) in sink.driver.pairs().enumerate() {
            receiver.recv_burst(usize::MAX, |_, bytes| {
                let [queue, number @ ..] = *bytes[14..].first_chunk::<4>().unwrap();
                let (queue, number) = (usize::from(queue), u32::from_be_bytes([0, number[0], number[1], number[2]]));
                assert_eq!(bytes, numbered(queue, number), "a frame of queue {queue} is not whole");
                assert!(number >= due[queue], "queue {queue}: {number} came twice, or behind {}", due[queue] - 1);
                due[queue] = number + 1;
                *arrived += 1;
                assert_eq!(*ways[queue].get_or_insert(way), way, "queue {queue} has two ways");
                if turns.0 != workers[queue] {
                    *turns = (workers[queue], turns.1 + 1);
                }
            });
        }
    }

    fn drops(&self) -> Vec<(DropReason, u64)> {
        self.switch.ledger(SINK).unwrap().tx().drops().collect()
    }

    fn lost(&self) -> u64 {
        self.drops().iter().map(|(_, count)| count).sum()
    }

    fn is_all_sent(&self) -> bool {
        self.sent == [FRAMES; QUEUES]
    }

    /// Waits until nothing is under way, and closes the books; answers what was dropped on the way to the sink.
    fn finish(mut self) -> Vec<(DropReason, u64)> {
        let all = u64::from(FRAMES) * QUEUES as u64;
        until("every frame has arrived or is told as lost", || {
            self.receive();
            self.arrived + self.lost() == all
        });
        let rx = self.switch.ledger(SOURCE).unwrap().rx();
        assert_eq!((rx.packets, rx.drops().count()), (all, 0), "what the guest sent was taken, and once");
        let by_worker: Vec<u64> = self.switch.worker_reports().iter().map(|report| report.packets).collect();
        assert_eq!(by_worker, [all / 2; 2]);
        assert!(self.turns.1 > 20, "both worked at once: {} turns", self.turns.1);
        // A frame arrives a moment before its buffer is given back.
        until("every buffer is back", || {
            self.source.driver.pairs().all(|(sender, _)| sender.free() == sender.ring.slots())
        });
        for (sender, _) in self.source.driver.pairs() {
            assert_eq!(sender.ring.faults(), 0);
        }
        for (_, receiver) in self.sink.driver.pairs() {
            assert_eq!(receiver.ring.faults(), 0);
        }
        let drops = self.drops();
        let Rig { switch, source, sink, .. } = self;
        drop((source, sink));
        switch.stop();
        let balance = switch.balance();
        assert!(balance.balances(), "{balance:?}");
        drops
    }
}

/// A frame of any length that says whose it is. Those of a queue are one flow; of two queues of the sink, these four go by both.
fn numbered(queue: usize, number: u32) -> Vec<u8> {
    let mut bytes = frame((queue as u32) << 24 | number, 60 + (number as usize * 37 + queue * 211) % 1440);
    bytes[11] = 16 * queue as u8;
    bytes
}

const KINDS: [u64; 2] = [0, F_RING_PACKED];

#[test]
fn two_workers_at_two_queues_bring_every_frame_once_and_in_order() {
    for kind in KINDS {
        let mut rig = Rig::new(kind, 2, 256);
        while !rig.is_all_sent() {
            rig.send(256);
            rig.receive();
        }
        assert!(rig.ways.contains(&Some(0)) && rig.ways.contains(&Some(1)), "{:?}", rig.ways);
        let drops = rig.finish();
        assert!(drops.iter().all(|(reason, _)| *reason == DropReason::TxContended), "there was room: {drops:?}");
    }
}

#[test]
fn two_workers_at_one_queue_bring_every_frame_once_and_in_order() {
    for kind in KINDS {
        let mut rig = Rig::new(kind, 1, 256);
        while !rig.is_all_sent() {
            rig.send(256);
            rig.receive();
        }
        let drops = rig.finish();
        // Whoever finds the queue in the other's hand tries for a moment only: the other may be off its CPU.
        assert!(drops.iter().all(|(reason, _)| *reason == DropReason::TxContended), "there was room: {drops:?}");
    }
}

#[test]
fn two_workers_at_a_queue_that_is_full_lose_what_did_not_fit_and_count_it() {
    for kind in KINDS {
        for sink_pairs in [1, 2] {
            let mut rig = Rig::new(kind, sink_pairs, 8);
            while !rig.is_all_sent() {
                rig.send(u64::MAX);
                until("the workers have taken all", || {
                    rig.source.driver.pairs().all(|(sender, _)| sender.free() == sender.ring.slots())
                });
                rig.receive();
            }
            let drops = rig.finish();
            let may = [DropReason::RxRingFull, DropReason::TxContended];
            assert!(drops.iter().all(|(reason, _)| may.contains(reason)), "{drops:?}");
            assert!(drops.iter().any(|&(reason, count)| reason == DropReason::RxRingFull && count > 100), "{drops:?}");
        }
    }
}
