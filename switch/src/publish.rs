//! The one swap: a snapshot of config, tables and ports, replaced under the workers without stopping them.
//!
//! RCU in four sentences. The control side builds a new [`Snapshot`] and swaps one pointer. Each worker looks at the pointer
//! once a round and holds exactly one snapshot through it. Retired snapshots stay referenced here, so that no worker
//! ever frees or unmaps anything. A snapshot whose only reference is ours is dropped here, on the control side.
//!
//! The publisher of a config never waits. Whoever must know that a thing is out of use publishes a snapshot without it
//! and waits for the retired ones to go ([`Publisher::wait_until_unused`]).
//!
//! A queue moves from one worker to another by the same means, in two publications: the first has it in no worker's list
//! ([`Publisher::park`]); once no older snapshot is held, its old worker has ended the round in which it took the last
//! burst, and the second gives it to the new one ([`Publisher::settle`]). Meanwhile its frames wait in their ring: none is
//! lost, and none overtakes another. Publications in between keep the queue parked.

use crate::assign::{Move, home, send_queues};
use crate::capture::Capture;
use crate::config::Config;
use crate::ids::{PortIndex, QueueIndex, WorkerIndex};
use crate::ledger::PortLedger;
use crate::port::Port;
use crate::retired::Retired;
use arc_swap::{ArcSwap, Cache};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What stands at a port's place.
#[derive(Clone)]
pub struct PortPlace {
    /// The device's object; `None` while nothing is connected.
    pub port: Option<Arc<dyn Port>>,
    /// The place's counters; they outlive the objects.
    pub ledger: Arc<PortLedger>,
    /// Who captures here; `None`: nobody, which is all that the packet path looks at.
    pub captures: Option<Arc<[Arc<Capture>]>>,
}

/// One rx queue that a worker polls.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RxQueue {
    /// The port.
    pub port: PortIndex,
    /// Its queue.
    pub queue: QueueIndex,
}

/// Everything a worker needs for a round; immutable.
pub struct Snapshot<T> {
    /// Counts publications; never repeats in a run.
    pub generation: u64,
    /// The config the tables were compiled from.
    pub config: Arc<Config>,
    /// The pipeline's compiled tables.
    pub tables: Arc<T>,
    /// By port index; `None` where no port is configured.
    pub places: Vec<Option<PortPlace>>,
    /// By worker index: the queues it polls, in the order of ports and queues. No queue is in two lists.
    pub rx: Vec<Vec<RxQueue>>,
    /// By worker index, then by port index: the tx queue by which the worker sends to the port.
    pub tx: Vec<Vec<QueueIndex>>,
    /// By port index: the generation that put the object there that stands there now. Tells two objects apart whose
    /// addresses are alike because one was freed before the other was made.
    pub since: Vec<u64>,
}

impl<T> Snapshot<T> {
    /// The place of a port.
    #[inline]
    pub fn place(&self, index: PortIndex) -> Option<&PortPlace> {
        self.places.get(index.as_usize())?.as_ref()
    }
}

/// Who polls what, as it was last decided.
struct Seating {
    /// By port index and queue: the worker a queue was given to. Kept while the place is there, so that a guest that
    /// reconnects comes back to its worker.
    homes: Vec<Vec<WorkerIndex>>,
    /// Queues on their way from one worker to another: nobody polls them.
    parked: Vec<RxQueue>,
    /// Queues by worker, for new ones; kept for its storage.
    counts: Vec<usize>,
}

impl Seating {
    fn home_of(&mut self, rx: RxQueue) -> Option<&mut WorkerIndex> {
        self.homes.get_mut(rx.port.as_usize())?.get_mut(usize::from(rx.queue.0))
    }

    /// Deals the rx queues of the ports out to the workers: every queue to one, but for those that are parked.
    fn deal(&mut self, places: &[Option<PortPlace>]) -> Vec<Vec<RxQueue>> {
        self.homes.resize(places.len(), Vec::new());
        self.counts.fill(0);
        let queues_of = |place: &Option<PortPlace>| {
            place.as_ref().and_then(|place| place.port.as_ref()).map_or(0, |port| usize::from(port.rx_queues()))
        };
        for (place, homes) in places.iter().zip(&mut self.homes) {
            if place.is_none() {
                homes.clear();
            }
            for worker in homes.iter().take(queues_of(place)) {
                self.counts[worker.as_usize()] += 1;
            }
        }
        let mut rx = vec![Vec::new(); self.counts.len()];
        for (index, place) in places.iter().enumerate() {
            for queue in 0..queues_of(place) {
                let queue = RxQueue { port: PortIndex(index as u16), queue: QueueIndex(queue as u16) };
                let worker = match self.home_of(queue) {
                    Some(&mut worker) => worker,
                    None => {
                        let worker = home(&self.counts, queue);
                        self.counts[worker.as_usize()] += 1;
                        self.homes[index].push(worker);
                        worker
                    }
                };
                if !self.parked.contains(&queue) {
                    rx[worker.as_usize()].push(queue);
                }
            }
        }
        rx
    }

    /// By which queue each worker sends to each port ([`send_queues`]). A queue on its way is its old worker's still, so that each
    /// choice changes once.
    fn send_queues(&self, places: &[Option<PortPlace>]) -> Vec<Vec<QueueIndex>> {
        let mut tx = vec![vec![QueueIndex(0); places.len()]; self.counts.len()];
        for (index, (place, homes)) in places.iter().zip(&self.homes).enumerate() {
            let Some(port) = place.as_ref().and_then(|place| place.port.as_ref()) else { continue };
            let queues = usize::from(port.tx_queues());
            if queues > 1 {
                let owners = &homes[..homes.len().min(port.rx_queues().into()).min(queues)];
                for (queues, chosen) in tx.iter_mut().zip(send_queues(owners, queues, self.counts.len())) {
                    queues[index] = chosen;
                }
            }
        }
        tx
    }
}

/// Queues that no worker polls at the moment, and where they shall go. Give it to [`Publisher::settle`].
#[must_use = "parked queues are polled by nobody until they are settled"]
#[derive(Debug)]
pub struct Parked {
    moves: Vec<Move>,
    /// The first generation without them.
    generation: u64,
}

impl Parked {
    /// The first generation in which nobody polls the queues.
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

/// Longest pause between two looks at the retired snapshots while waiting. Workers move on within microseconds when
/// awake and are woken by every publication.
const WAIT_PAUSE_MAX: Duration = Duration::from_millis(1);

/// The control side of the swap.
pub struct Publisher<T> {
    current: Arc<ArcSwap<Snapshot<T>>>,
    books: Mutex<Books<T>>,
    workers: usize,
}

/// What only publications touch. Its lock also puts them in order.
struct Books<T> {
    /// Snapshots that a worker may still hold.
    retired: Retired<Arc<Snapshot<T>>>,
    seating: Seating,
}

impl<T> Books<T> {
    /// Whether no snapshot older than `generation` is held; frees what can be.
    fn is_unused_before(&mut self, generation: u64) -> bool {
        self.retired.drop_unused();
        self.retired.iter().all(|old| old.generation >= generation)
    }
}

/// A worker's view of the swap.
pub struct Subscription<T> {
    cache: Cache<Arc<ArcSwap<Snapshot<T>>>, Arc<Snapshot<T>>>,
    /// Which worker it is.
    pub worker: WorkerIndex,
}

impl<T> Subscription<T> {
    /// The newest snapshot. Call once a round and hold the borrow to its end.
    #[inline]
    pub fn load(&mut self) -> &Snapshot<T> {
        self.cache.load()
    }
}

impl<T: Send + Sync> Publisher<T> {
    /// Starts with no port, for `workers` workers.
    pub fn new(workers: usize, tables: T) -> Publisher<T> {
        assert!(workers > 0, "a switch has at least one worker");
        let first = Snapshot {
            generation: 0,
            config: Arc::default(),
            tables: Arc::new(tables),
            places: Vec::new(),
            rx: vec![Vec::new(); workers],
            tx: vec![Vec::new(); workers],
            since: Vec::new(),
        };
        let seating = Seating { homes: Vec::new(), parked: Vec::new(), counts: vec![0; workers] };
        let books = Mutex::new(Books { retired: Retired::default(), seating });
        Publisher { current: Arc::new(ArcSwap::from_pointee(first)), books, workers }
    }

    fn books(&self) -> MutexGuard<'_, Books<T>> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a worker reads from.
    pub fn subscribe(&self, worker: WorkerIndex) -> Subscription<T> {
        assert!(worker.as_usize() < self.workers, "worker index within the count given to new");
        Subscription { cache: Cache::new(self.current.clone()), worker }
    }

    /// What is in force now.
    pub fn current(&self) -> Arc<Snapshot<T>> {
        self.current.load_full()
    }

    /// Builds the successor of the current snapshot and puts it in force; answers its generation.
    ///
    /// `change` gets the current snapshot's parts and answers the next ones. Publications are serialised. Never waits
    /// for a worker.
    pub fn publish(&self, change: impl FnOnce(Parts<T>) -> Parts<T>) -> u64 {
        self.swap(&mut self.books(), change)
    }

    fn swap(&self, books: &mut Books<T>, change: impl FnOnce(Parts<T>) -> Parts<T>) -> u64 {
        let current = self.current.load_full();
        let parts = change(Parts {
            config: current.config.clone(),
            tables: current.tables.clone(),
            places: current.places.clone(),
        });
        let generation = current.generation + 1;
        let rx = books.seating.deal(&parts.places);
        let tx = books.seating.send_queues(&parts.places);
        let since = since(&current, &parts.places, generation);
        let Parts { config, tables, places } = parts;
        let next = Snapshot { generation, config, tables, places, rx, tx, since };
        drop(current);
        books.retired.push(self.current.swap(Arc::new(next)));
        generation
    }

    /// Takes queues from their workers, each that is still where its move says: the first half of moving them.
    ///
    /// Wake the workers, then [`Publisher::wait_until_unused`], then [`Publisher::settle`].
    pub fn park(&self, moves: &[Move]) -> Parked {
        let mut books = self.books();
        let Seating { parked, homes, .. } = &mut books.seating;
        let is_valid = |step: &Move| {
            let home = homes.get(step.rx.port.as_usize()).and_then(|homes| homes.get(usize::from(step.rx.queue.0)));
            home == Some(&step.from) && step.to.as_usize() < self.workers && !parked.contains(&step.rx)
        };
        let moves: Vec<Move> = moves.iter().copied().filter(is_valid).collect();
        parked.extend(moves.iter().map(|step| step.rx));
        let generation = self.swap(&mut books, |parts| parts);
        Parked { moves, generation }
    }

    /// Gives parked queues to their new workers, who have to be woken; answers what was moved.
    ///
    /// # Errors
    /// The same again if a worker may still be in a round in which it polls one of them.
    pub fn settle(&self, moving: Parked) -> Result<Vec<Move>, Parked> {
        let mut books = self.books();
        if !books.is_unused_before(moving.generation) {
            return Err(moving);
        }
        for step in &moving.moves {
            books.seating.parked.retain(|rx| *rx != step.rx);
            // Gone if the port's place went meanwhile.
            if let Some(home) = books.seating.home_of(step.rx) {
                *home = step.to;
            }
        }
        self.swap(&mut books, |parts| parts);
        Ok(moving.moves)
    }

    /// Frees retired snapshots that no worker holds any more; answers how many are still held.
    pub fn reap(&self) -> usize {
        self.books().retired.drop_unused()
    }

    /// Returns when every snapshot older than `generation` has been freed. The caller has woken the workers.
    ///
    /// Needs workers that run: each must load once more. With none running it returns as soon as no subscription
    /// holds an old snapshot.
    pub fn wait_until_unused(&self, generation: u64) {
        let mut pause = Duration::from_micros(10);
        while !self.books().is_unused_before(generation) {
            std::thread::sleep(pause);
            pause = (pause * 2).min(WAIT_PAUSE_MAX);
        }
    }
}

/// Since when each port's object stands at its place: since now if it is not the one that `before` has there.
fn since<T>(before: &Snapshot<T>, places: &[Option<PortPlace>], now: u64) -> Vec<u64> {
    let object = |place: Option<&Option<PortPlace>>| place?.as_ref()?.port.as_ref().map(Arc::as_ptr);
    let at = |index| {
        // Both objects are alive here, so that equal addresses are one object.
        let is_same = object(before.places.get(index)).map(<*const _>::cast::<()>)
            == object(places.get(index)).map(<*const _>::cast::<()>);
        before.since.get(index).copied().filter(|_| is_same).unwrap_or(now)
    };
    (0..places.len()).map(at).collect()
}

/// The parts of a snapshot that a publication may change.
pub struct Parts<T> {
    /// The config.
    pub config: Arc<Config>,
    /// Its compiled tables.
    pub tables: Arc<T>,
    /// The places of the ports.
    pub places: Vec<Option<PortPlace>>,
}
