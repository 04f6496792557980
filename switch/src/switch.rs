//! The switch as its control side holds it: workers, the one swap, the MAC table and the books.
//!
//! All methods may be called from any control thread. A config is compiled and published under one lock, so that configs
//! come into force in the order given; ports come and go beside that by their [`Place`]. Nothing here waits for a
//! worker but [`Place::withdraw`] and [`Switch::move_queues`].

mod addresses;

use crate::assign::Move;
use crate::batch::Batch;
use crate::capture::{CAPTURES_PER_PORT, Capture, CaptureError};
use crate::clock::Clock;
use crate::config::Config;
use crate::ids::{NetworkIndex, PORTS_MAX, PortIndex, QueueIndex, WORKERS_MAX, WorkerIndex};
use crate::ledger::{Balance, PortLedger, Tally, WorkerLedger};
use crate::mac_table::MacTable;
use crate::offload::OffloadClaim;
use crate::packet::HEAD_COPY;
use crate::poll::{self, Poll, Wake};
use crate::port::{Place, Port};
use crate::publish::{Parked, PortPlace, Publisher, RxQueue, Snapshot};
use crate::segment::Segment;
use crate::worker::{Context, Pipeline, Worker};
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Where a worker runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WorkerSpec {
    /// The CPU it is pinned to; `None`: anywhere.
    pub cpu: Option<usize>,
}

/// What a switch is made with.
#[derive(Clone, Debug)]
pub struct SwitchConfig {
    /// One entry a worker, at least one, at most [`WORKERS_MAX`].
    pub workers: Vec<WorkerSpec>,
    /// When workers sleep.
    pub poll: Poll,
    /// Learnt MAC entries at most.
    pub mac_max: usize,
    /// Seconds after which a MAC not seen is forgotten.
    pub mac_age_s: u32,
}

/// What one worker is doing, for `show workers`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerReport {
    /// Which worker.
    pub worker: WorkerIndex,
    /// The CPU it is pinned to.
    pub cpu: Option<usize>,
    /// Frames taken from devices.
    pub packets: u64,
    /// Batches that were not empty; packets divided by this is the batch fill.
    pub batches: u64,
    /// Rounds, busy or not.
    pub rounds: u64,
    /// Time in rounds that found frames, ns.
    pub busy_ns: u64,
    /// Times it went to sleep.
    pub sleeps: u64,
    /// Ports it polls.
    pub ports: Vec<PortIndex>,
    /// Queues it polls.
    pub queues: Vec<QueueReport>,
    /// Its books.
    pub balance: Balance,
}

/// What one rx queue has cost so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueReport {
    /// The queue.
    pub rx: RxQueue,
    /// Time its frames took, ns, on whichever worker; an estimate.
    pub busy_ns: u64,
    /// Frames that this is the time of; as much an estimate.
    pub busy_packets: u64,
}

/// What a config that was put in force came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Applied {
    /// Of the snapshot that has it.
    pub generation: u64,
    /// Fixed addresses for which the MAC table has no room; frames to them are flooded.
    pub unplaced_macs: usize,
}

/// A worker's seat: what the control side shares with it.
struct Seat {
    cpu: Option<usize>,
    ledger: Arc<WorkerLedger>,
    wake: Arc<Wake>,
}

/// The switch.
pub struct Switch<P: Pipeline> {
    publisher: Publisher<P::Tables>,
    mac_table: Arc<MacTable>,
    seats: Vec<Seat>,
    poll: Poll,
    clock: Clock,
    /// Orders configs; also what starts and stops the threads.
    control: Mutex<Control<P>>,
    stop: Arc<AtomicBool>,
}

struct Control<P: Pipeline> {
    /// Workers without a thread: before `start`, or driven by hand.
    idle: Vec<Worker<P>>,
    threads: Vec<JoinHandle<()>>,
}

impl<P: Pipeline> Switch<P> {
    /// A switch with an empty config, its workers not yet running.
    ///
    /// # Errors
    /// If the process has no descriptors left for the workers' wake-ups.
    ///
    /// # Panics
    /// If the number of workers is 0 or above [`WORKERS_MAX`]: settings are checked before.
    pub fn new(config: &SwitchConfig) -> io::Result<Arc<Switch<P>>> {
        assert!((1..=WORKERS_MAX).contains(&config.workers.len()), "1 to {WORKERS_MAX} workers");
        let publisher = Publisher::new(config.workers.len(), P::compile(&Config::default()));
        let mac_table = Arc::new(MacTable::new(config.mac_max, config.mac_age_s));
        let mut seats = Vec::new();
        let mut idle = Vec::new();
        for (index, spec) in config.workers.iter().enumerate() {
            let ledger = Arc::new(WorkerLedger::default());
            let subscription = publisher.subscribe(WorkerIndex(index as u8));
            idle.push(Worker::new(subscription, mac_table.clone(), ledger.clone()));
            seats.push(Seat { cpu: spec.cpu, ledger, wake: Arc::new(Wake::new()?) });
        }
        Ok(Arc::new(Switch {
            publisher,
            mac_table,
            seats,
            poll: config.poll,
            clock: Clock::default(),
            control: Mutex::new(Control { idle, threads: Vec::new() }),
            stop: Arc::default(),
        }))
    }

    fn control(&self) -> MutexGuard<'_, Control<P>> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives every worker its thread.
    ///
    /// # Errors
    /// If a thread cannot be made or pinned; those already running are stopped again.
    pub fn start(&self) -> io::Result<()> {
        let mut control = self.control();
        for worker in std::mem::take(&mut control.idle) {
            let seat = &self.seats[worker.index().as_usize()];
            match poll::spawn(worker, seat.cpu, self.poll, seat.wake.clone(), self.stop.clone(), self.clock) {
                Ok(thread) => control.threads.push(thread),
                Err(error) => {
                    drop(control);
                    self.stop();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Ends the workers' threads after their round. The switch cannot be started again.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wake_workers();
        let threads = std::mem::take(&mut self.control().threads);
        for thread in threads {
            thread.join().expect("workers do not panic: the process aborts if one does");
        }
    }

    /// The workers, to drive them by hand: tests and simulations. `None` of them is left once started.
    pub fn take_workers(&self) -> Vec<Worker<P>> {
        std::mem::take(&mut self.control().idle)
    }

    /// Compiles a config and puts it in force. Brings the MAC table in line: what no longer holds is forgotten, fixed addresses are
    /// entered.
    pub fn apply(&self, config: Config) -> Applied {
        // The lock also keeps the MAC table's changes in the order of the configs.
        let _order = self.control();
        let config = Arc::new(config);
        let tables = Arc::new(P::compile(&config));
        let workers = self.seats.len();
        let mut before = Arc::default();
        let generation = self.publisher.publish(|mut parts| {
            let count = config.index_end();
            if parts.places.len() < count {
                parts.places.resize(count, None);
            }
            // A port behind another one is where that one's device is.
            let parents: HashMap<PortIndex, PortIndex> =
                config.subports().iter().map(|subport| (subport.index, subport.parent)).collect();
            for port in config.ports() {
                parts.places[port.index.as_usize()].get_or_insert_with(|| empty_place(workers));
                let device = parents.get(&port.index).unwrap_or(&port.index).as_usize();
                let has_device = parts.places[device].as_ref().is_some_and(|place| place.port.is_some());
                // Told under the lock that orders publications, as a device that comes or goes does: the last of them is
                // right about the port.
                self.mac_table.set_port_up(port.index, has_device && port.is_admin_up);
            }
            for index in config.underlay().indices() {
                // Far ends have no device that could be down; their addresses move when they were silent.
                parts.places[index.as_usize()].get_or_insert_with(|| empty_place(workers));
                self.mac_table.set_port_up(index, true);
            }
            before = std::mem::replace(&mut parts.config, config.clone());
            parts.tables = tables;
            parts
        });
        self.wake_workers();
        let unplaced_macs = addresses::align(&self.mac_table, &before, &config);
        Applied { generation, unplaced_macs }
    }

    /// The place of a port, where its device publishes.
    pub fn place(self: &Arc<Self>, index: PortIndex) -> Arc<dyn Place> {
        assert!(index.as_usize() < PORTS_MAX, "port indices are checked by the config");
        Arc::new(SwitchPlace { switch: self.clone(), index })
    }

    /// Removes a place that no config names any more, with its counters.
    pub fn forget(&self, index: PortIndex) {
        self.publisher.publish(|mut parts| {
            if parts.config.port(index).is_none()
                && parts.config.underlay().indices().all(|other| other != index)
                && let Some(place) = parts.places.get_mut(index.as_usize())
            {
                *place = None;
            }
            parts
        });
        self.wake_workers();
    }

    /// Sends a frame of our own by a port, once and without a word if it cannot be: a question to the neighbours. It is of
    /// no worker and in no worker's books.
    pub fn originate(&self, port: PortIndex, frame: &[u8]) {
        let snapshot = self.publisher.current();
        let Some(device) = snapshot.place(port).and_then(|place| place.port.as_ref()) else { return };
        let mut batch = Batch::new();
        if batch.put(port, QueueIndex(0), Segment::from(frame), OffloadClaim::default()) {
            device.tx(QueueIndex(0), &mut batch, &[0], &mut Tally::default());
        }
    }

    /// Puts a capture at a port's place, where it stays while devices come and go, until it is removed or the place
    /// forgotten.
    ///
    /// # Errors
    /// [`CaptureError`]
    pub fn add_capture(&self, index: PortIndex, capture: &Arc<Capture>) -> Result<(), CaptureError> {
        let mut outcome = Err(CaptureError::NoPort);
        self.publisher.publish(|mut parts| {
            if let Some(Some(place)) = parts.places.get_mut(index.as_usize()) {
                let mut captures: Vec<_> =
                    place.captures.iter().flat_map(|captures| captures.iter().cloned()).collect();
                outcome = if captures.len() < CAPTURES_PER_PORT { Ok(()) } else { Err(CaptureError::TooMany) };
                if outcome.is_ok() {
                    captures.push(capture.clone());
                    place.captures = Some(captures.into());
                }
            }
            parts
        });
        self.wake_workers();
        outcome
    }

    /// Whether a capture still stands at the port's place.
    pub fn has_capture(&self, index: PortIndex, capture: &Arc<Capture>) -> bool {
        let snapshot = self.publisher.current();
        let captures = snapshot.place(index).and_then(|place| place.captures.as_deref());
        captures.is_some_and(|captures| captures.iter().any(|other| Arc::ptr_eq(other, capture)))
    }

    /// Takes a capture from a port's place, if it is there, and returns when no worker writes to it any more: at most
    /// one round of each worker, which must run (see [`Place::withdraw`]).
    pub fn remove_capture(&self, index: PortIndex, capture: &Arc<Capture>) {
        let generation = self.publisher.publish(|mut parts| {
            if let Some(Some(place)) = parts.places.get_mut(index.as_usize()) {
                let captures = place.captures.iter().flat_map(|captures| captures.iter());
                let others: Vec<_> = captures.filter(|other| !Arc::ptr_eq(other, capture)).cloned().collect();
                place.captures = (!others.is_empty()).then(|| others.into());
            }
            parts
        });
        self.wake_workers();
        self.publisher.wait_until_unused(generation);
    }

    /// How many workers there are.
    pub fn worker_count(&self) -> usize {
        self.seats.len()
    }

    /// The counters of a port.
    pub fn ledger(&self, index: PortIndex) -> Option<Arc<PortLedger>> {
        self.publisher.current().place(index).map(|place| place.ledger.clone())
    }

    /// The MAC table.
    pub fn mac_table(&self) -> &MacTable {
        &self.mac_table
    }

    /// What is in force.
    pub fn snapshot(&self) -> Arc<Snapshot<P::Tables>> {
        self.publisher.current()
    }

    /// The switch's own time, as workers see it.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// What every worker is doing.
    pub fn worker_reports(&self) -> Vec<WorkerReport> {
        let snapshot = self.publisher.current();
        let report = |(index, seat): (usize, &Seat)| {
            let mut ports: Vec<PortIndex> = snapshot.rx[index].iter().map(|rx| rx.port).collect();
            ports.dedup();
            let queue = |&rx: &RxQueue| {
                let cost = snapshot.place(rx.port).map(|place| place.ledger.queue_cost(rx.queue));
                let (busy_ns, busy_packets) = cost.unwrap_or_default();
                QueueReport { rx, busy_ns, busy_packets }
            };
            WorkerReport {
                worker: WorkerIndex(index as u8),
                cpu: seat.cpu,
                packets: seat.ledger.received.get(),
                batches: seat.ledger.batches.get(),
                rounds: seat.ledger.rounds.get(),
                busy_ns: seat.ledger.busy_ns.get(),
                sleeps: seat.ledger.sleeps.get(),
                ports,
                queues: snapshot.rx[index].iter().map(queue).collect(),
                balance: seat.ledger.balance(),
            }
        };
        self.seats.iter().enumerate().map(report).collect()
    }

    /// The switch's books: the sum over the workers. Balanced when all of them are between rounds.
    pub fn balance(&self) -> Balance {
        let mut sum = Balance::default();
        for seat in &self.seats {
            sum += seat.ledger.balance();
        }
        sum
    }

    /// Tells in words what each stage would do with `frame` from `ingress`; changes nothing.
    pub fn trace(&self, ingress: PortIndex, frame: &[u8]) -> Vec<String> {
        let snapshot = self.publisher.current();
        let mut batch = Batch::new();
        if let Some(mut packet) = batch.start(ingress, QueueIndex(0)) {
            let (head, tail) = frame.split_at(frame.len().min(HEAD_COPY));
            packet.head(head.len()).expect("HEAD_COPY bytes fit a head").copy_from_slice(head);
            packet.tail(Segment::from(tail)).expect("one segment is within the bound");
            packet.commit(OffloadClaim::default());
        }
        let context = Context {
            now: self.clock.now(),
            mac_table: &self.mac_table,
            worker: WorkerIndex(0),
            generation: snapshot.generation,
        };
        P::trace(&snapshot.tables, &context, &mut batch)
    }

    /// Moves rx queues from worker to worker; answers those that were where the plan says, and so were moved.
    ///
    /// No frame is lost, repeated or overtaken: between two workers a queue is polled by nobody until the old one has ended
    /// its round, some ten microseconds. Waits that long, for workers that run; those that are stepped by hand need
    /// [`Switch::park_queues`] and [`Switch::settle_queues`].
    pub fn move_queues(&self, moves: &[Move]) -> Vec<Move> {
        let mut parked = self.park_queues(moves);
        loop {
            self.publisher.wait_until_unused(parked.generation());
            match self.settle_queues(parked) {
                Ok(moved) => return moved,
                Err(again) => parked = again,
            }
        }
    }

    /// The first half of a move: takes the queues from their workers. Until the second nobody polls them.
    pub fn park_queues(&self, moves: &[Move]) -> Parked {
        let parked = self.publisher.park(moves);
        self.wake_workers();
        parked
    }

    /// The second half: gives them to their new workers; answers what was moved.
    ///
    /// # Errors
    /// The same again while a worker may still be in a round in which it polls one of them.
    pub fn settle_queues(&self, parked: Parked) -> Result<Vec<Move>, Parked> {
        let moved = self.publisher.settle(parked)?;
        self.wake_workers();
        Ok(moved)
    }

    /// Ages the MAC table, puts it in order, and frees retired snapshots. Call about once a second.
    pub fn housekeep(&self) {
        let config = self.publisher.current().config.clone();
        // A worker that still had an older snapshot may have learnt after the flush.
        let mut networks = [None; PORTS_MAX];
        for port in config.ports() {
            networks[port.index.as_usize()] = port.network;
        }
        let underlay = config.underlay();
        for vlan in &underlay.vlans {
            networks[vlan.index.as_usize()] = Some(vlan.network);
        }
        let mut is_peer = [false; PORTS_MAX];
        for peer in underlay.peers() {
            is_peer[peer.index.as_usize()] = true;
        }
        let tunnelled: HashSet<NetworkIndex> =
            underlay.tunnel.iter().flat_map(|tunnel| &tunnel.networks).map(|it| it.network).collect();
        let is_member = |port: PortIndex, network| match networks[port.as_usize()] {
            None => is_peer[port.as_usize()] && tunnelled.contains(&network),
            Some(its) => its == network,
        };
        self.mac_table.sweep(self.clock.now(), is_member);
        self.publisher.reap();
    }

    fn wake_workers(&self) {
        for seat in &self.seats {
            seat.wake.wake();
        }
    }
}

fn empty_place(workers: usize) -> PortPlace {
    PortPlace { port: None, ledger: Arc::new(PortLedger::new(workers)), captures: None }
}

/// One port's place in a switch.
struct SwitchPlace<P: Pipeline> {
    switch: Arc<Switch<P>>,
    index: PortIndex,
}

impl<P: Pipeline> SwitchPlace<P> {
    /// Publishes a snapshot with `port` at this place; answers its generation.
    fn put(&self, port: Option<Arc<dyn Port>>) -> u64 {
        let switch = &*self.switch;
        let at = self.index.as_usize();
        let is_present = port.is_some();
        let generation = switch.publisher.publish(|mut parts| {
            if is_present && parts.places.len() <= at {
                parts.places.resize(at + 1, None);
            }
            if is_present || parts.places.get(at).is_some_and(Option::is_some) {
                parts.places[at].get_or_insert_with(|| empty_place(switch.seats.len())).port = port;
            }
            let is_admin_up = parts.config.port(self.index).is_none_or(|config| config.is_admin_up);
            switch.mac_table.set_port_up(self.index, is_present && is_admin_up);
            for subport in parts.config.subports().iter().filter(|subport| subport.parent == self.index) {
                let is_admin_up = parts.config.port(subport.index).is_some_and(|config| config.is_admin_up);
                switch.mac_table.set_port_up(subport.index, is_present && is_admin_up);
            }
            parts
        });
        switch.wake_workers();
        generation
    }
}

impl<P: Pipeline> Place for SwitchPlace<P> {
    fn publish(&self, port: Arc<dyn Port>) {
        self.put(Some(port));
    }

    fn withdraw(&self) {
        let generation = self.put(None);
        self.switch.publisher.wait_until_unused(generation);
    }
}
