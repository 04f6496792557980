//! The one swap: a snapshot of config, tables and ports, replaced under the workers without stopping them.
//!
//! RCU in four sentences. The control side builds a new [`Snapshot`] and swaps one pointer. Each worker looks at the pointer
//! once a round and holds exactly one snapshot through it. Retired snapshots stay referenced here, so that no worker
//! ever frees or unmaps anything. A snapshot whose only reference is ours is dropped here, on the control side.
//!
//! The publisher of a config never waits. Whoever must know that a thing is out of use publishes a snapshot without it
//! and waits for the retired ones to go ([`Publisher::wait_until_unused`]).

use crate::config::Config;
use crate::ids::{PortIndex, QueueIndex, WorkerIndex};
use crate::ledger::PortLedger;
use crate::port::Port;
use crate::retired::Retired;
use arc_swap::{ArcSwap, Cache};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What stands at a port's place.
#[derive(Clone)]
pub struct PortPlace {
    /// The device's object; `None` while nothing is connected.
    pub port: Option<Arc<dyn Port>>,
    /// The place's counters; they outlive the objects.
    pub ledger: Arc<PortLedger>,
}

/// One rx queue that a worker polls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
    /// By worker index: the queues it polls.
    pub rx: Vec<Vec<RxQueue>>,
}

impl<T> Snapshot<T> {
    /// The place of a port.
    #[inline]
    pub fn place(&self, index: PortIndex) -> Option<&PortPlace> {
        self.places.get(index.as_usize())?.as_ref()
    }
}

/// Deals the rx queues out to the workers; the same ports give the same answer.
fn assign(places: &[Option<PortPlace>], workers: usize) -> Vec<Vec<RxQueue>> {
    let mut rx = vec![Vec::new(); workers];
    for (index, place) in places.iter().enumerate() {
        if let Some(port) = place.as_ref().and_then(|place| place.port.as_ref()) {
            for queue in 0..port.rx_queues() {
                rx[(index + usize::from(queue)) % workers]
                    .push(RxQueue { port: PortIndex(index as u16), queue: QueueIndex(queue) });
            }
        }
    }
    rx
}

/// Longest pause between two looks at the retired snapshots while waiting. Workers move on within microseconds when
/// awake and are woken by every publication.
const WAIT_PAUSE_MAX: Duration = Duration::from_millis(1);

/// The control side of the swap.
pub struct Publisher<T> {
    current: Arc<ArcSwap<Snapshot<T>>>,
    /// Snapshots that a worker may still hold. The lock also orders publications.
    retired: Mutex<Retired<Arc<Snapshot<T>>>>,
    workers: usize,
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
        };
        Publisher { current: Arc::new(ArcSwap::from_pointee(first)), retired: Mutex::default(), workers }
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
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current.load_full();
        let parts = change(Parts {
            config: current.config.clone(),
            tables: current.tables.clone(),
            places: current.places.clone(),
        });
        let generation = current.generation + 1;
        let rx = assign(&parts.places, self.workers);
        let next = Snapshot { generation, config: parts.config, tables: parts.tables, places: parts.places, rx };
        drop(current);
        retired.push(self.current.swap(Arc::new(next)));
        generation
    }

    /// Frees retired snapshots that no worker holds any more; answers how many are still held.
    pub fn reap(&self) -> usize {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.drop_unused()
    }

    /// Returns when every snapshot older than `generation` has been freed. The caller has woken the workers.
    ///
    /// Needs workers that run: each must load once more. With none running it returns as soon as no subscription
    /// holds an old snapshot.
    pub fn wait_until_unused(&self, generation: u64) {
        let mut pause = Duration::from_micros(10);
        loop {
            {
                let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
                retired.drop_unused();
                if retired.iter().all(|old| old.generation >= generation) {
                    return;
                }
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(WAIT_PAUSE_MAX);
        }
    }
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
