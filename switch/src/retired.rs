//! The list of what was retired and may still be held: the half of RCU that decides when something may be freed.
//!
//! Generic over the kind of reference count, so that the model checker runs the code that [`crate::publish`] runs. Owned
//! by the control side, under a lock; grows by one a publication and shrinks as workers move on, so its length is the
//! number of snapshots still held.

/// A shared reference that can tell whether it is the last one.
pub(crate) trait Shared {
    /// Whether nobody else holds it. If so, what the others did with it happened before.
    fn is_last(&mut self) -> bool;
}

impl<T> Shared for std::sync::Arc<T> {
    fn is_last(&mut self) -> bool {
        // `get_mut` is the count with the acquire that a free needs: what the last holder did happens before it.
        std::sync::Arc::get_mut(self).is_some()
    }
}

/// References that were swapped out, oldest first.
pub(crate) struct Retired<S> {
    list: Vec<S>,
}

impl<S> Default for Retired<S> {
    fn default() -> Self {
        Retired { list: Vec::new() }
    }
}

impl<S: Shared> Retired<S> {
    /// Takes what a swap gave back, and drops whatever nobody holds any more.
    pub(crate) fn push(&mut self, old: S) {
        self.list.push(old);
        self.drop_unused();
    }

    /// Drops whatever nobody holds any more; answers how many are still held.
    pub(crate) fn drop_unused(&mut self) -> usize {
        self.list.retain_mut(|old| !old.is_last());
        self.list.len()
    }

    /// Those that are still held.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &S> {
        self.list.iter()
    }
}

#[cfg(all(test, loom))]
mod model {
    //! loom tries every interleaving of a publisher and workers. An `Arc` behind a lock stands in for `ArcSwap`: a worker
    //! takes a counted reference to the current snapshot in one step, which is what `ArcSwap` promises (its `swap` turns
    //! every borrowed reference into a counted one before it returns).
    //!
    //! Run with `RUSTFLAGS="--cfg loom" cargo test -p switch --release --lib --target-dir target/loom loom_`.

    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::sync::{Arc, Mutex};
    use loom::thread;

    impl<T> Shared for Arc<T> {
        fn is_last(&mut self) -> bool {
            Arc::get_mut(self).is_some()
        }
    }

    /// A snapshot, and what it keeps mapped. Freeing the memory while a worker reads it is a race that loom reports.
    struct Snapshot {
        generation: u64,
        memory: UnsafeCell<u64>,
        control: thread::ThreadId,
        freed: Arc<AtomicUsize>,
    }

    impl Drop for Snapshot {
        fn drop(&mut self) {
            assert_eq!(thread::current().id(), self.control, "a worker freed a snapshot");
            // Nothing is written; that loom sees an exclusive access here is the point.
            self.memory.with_mut(|_| ());
            self.freed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// `Publisher`, reduced to the swap.
    struct Publisher {
        current: Mutex<Arc<Snapshot>>,
        retired: Mutex<Retired<Arc<Snapshot>>>,
        freed: Arc<AtomicUsize>,
    }

    impl Publisher {
        fn new() -> Publisher {
            let freed = Arc::new(AtomicUsize::new(0));
            let current = Mutex::new(snapshot(0, &freed));
            Publisher { current, retired: Mutex::new(Retired::default()), freed }
        }

        fn publish(&self) -> u64 {
            let mut retired = self.retired.lock().unwrap();
            let generation = self.current.lock().unwrap().generation + 1;
            let next = snapshot(generation, &self.freed);
            let old = std::mem::replace(&mut *self.current.lock().unwrap(), next);
            retired.push(old);
            generation
        }

        /// One look of `wait_until_unused`.
        fn is_unused_before(&self, generation: u64) -> bool {
            let mut retired = self.retired.lock().unwrap();
            retired.drop_unused();
            retired.iter().all(|old| old.generation >= generation)
        }
    }

    fn snapshot(generation: u64, freed: &Arc<AtomicUsize>) -> Arc<Snapshot> {
        let memory = UnsafeCell::new(generation);
        Arc::new(Snapshot { generation, memory, control: thread::current().id(), freed: freed.clone() })
    }

    /// `Subscription`: keeps one snapshot, looks once a round whether there is a newer one, as `arc_swap::Cache` does.
    struct Subscription {
        publisher: Arc<Publisher>,
        cached: Arc<Snapshot>,
    }

    impl Subscription {
        fn new(publisher: &Arc<Publisher>) -> Subscription {
            let cached = publisher.current.lock().unwrap().clone();
            Subscription { publisher: publisher.clone(), cached }
        }

        /// A round: load, then use to the end what was loaded.
        fn round(&mut self) -> u64 {
            let current = self.publisher.current.lock().unwrap().clone();
            if current.generation != self.cached.generation {
                self.cached = current;
            }
            self.cached.memory.with(|_| ());
            self.cached.generation
        }
    }

    fn check(race: impl Fn() + Sync + Send + 'static) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(race);
    }

    #[test]
    fn loom_a_snapshot_is_freed_by_the_control_side_and_only_when_no_worker_holds_it() {
        check(|| {
            let publisher = Arc::new(Publisher::new());
            let workers = [(); 2].map(|()| {
                let mut subscription = Subscription::new(&publisher);
                thread::spawn(move || {
                    let first = subscription.round();
                    let second = subscription.round();
                    assert!(first <= second, "a worker went back to an older snapshot");
                    // The thread hands its subscription back: in the product workers end before the publisher does.
                    subscription
                })
            });
            publisher.publish();
            publisher.publish();
            let subscriptions = workers.map(|worker| worker.join().unwrap());
            drop(subscriptions);
            assert!(publisher.is_unused_before(2));
            assert_eq!(publisher.freed.load(Ordering::Relaxed), 2, "all but the current one");
        });
    }

    #[test]
    fn loom_once_the_wait_is_over_no_worker_uses_what_was_withdrawn() {
        check(|| {
            let publisher = Arc::new(Publisher::new());
            let mut subscription = Subscription::new(&publisher);
            let worker = thread::spawn(move || {
                subscription.round();
                subscription.round();
                subscription
            });
            let generation = publisher.publish();
            if publisher.is_unused_before(generation) {
                // Now the caller unmaps what only the older snapshot had.
                assert_eq!(publisher.freed.load(Ordering::Relaxed), 1);
                let subscription = worker.join().unwrap();
                assert_eq!(subscription.cached.generation, generation);
            } else {
                drop(worker.join().unwrap());
                assert!(publisher.is_unused_before(generation), "a worker that has left holds nothing back");
            }
        });
    }
}
