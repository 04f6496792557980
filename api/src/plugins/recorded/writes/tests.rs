//! Writers who meet: what is committed together, and what becomes of plans that rested on a write that failed.

use super::*;
use crate::model::Network;
use crate::plugins::recorded::tests::Failing;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, Scope as Threads, ScopedJoinHandle};

type Outcome = Result<bool, StoreFailed>;

/// Where a writer waits. It gives up the queue's lock only once it waits, so who sees it there knows that it does.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// It leads, and is in its commit.
    Leading,
    /// It is the last of so many that gather behind the commit.
    Gathering(usize),
    /// It has nothing to write, and its answer rests on the commit.
    Resting,
}

impl Place {
    fn is_taken(self, queue: &Queue) -> bool {
        match self {
            Place::Leading => queue.committing.is_some(),
            // Each of them has one change.
            Place::Gathering(count) => queue.changes.len() == count,
            // The queue has the group, its leader has it twice (as its writer, too), and the one that rests.
            Place::Resting => queue.committing.as_ref().is_some_and(|group| Arc::strong_count(group) == 4),
        }
    }
}

struct Rig {
    disk: Arc<Failing>,
    writes: Writes<Arc<Failing>>,
}

impl Rig {
    fn new() -> Rig {
        let disk = Arc::new(Failing::default());
        Rig { writes: Writes::new(disk.clone(), Arc::default()), disk }
    }

    /// Makes the network of this id unless it is there; whether it did.
    fn make(&self, id: &str) -> Outcome {
        self.writes.write(|model| {
            let network = Network {
                id: id.into(),
                tenant: "red".into(),
                name: None,
                network_type: Default::default(),
                serial: model.next_serial(),
            };
            let is_there = model.networks.contains_key(id);
            Ok((if is_there { vec![] } else { vec![Change::PutNetwork(network)] }, !is_there))
        })
    }

    /// Makes it on another thread; returns when that waits in this place.
    fn make_aside<'s>(
        &'s self,
        threads: &'s Threads<'s, '_>,
        id: &'static str,
        place: Place,
    ) -> ScopedJoinHandle<'s, Outcome> {
        let thread = threads.spawn(move || self.make(id));
        while !place.is_taken(&self.writes.queue()) {
            assert!(!thread.is_finished(), "{id} did not wait as {place:?}");
            thread::yield_now();
        }
        thread
    }

    fn ids(&self) -> Vec<String> {
        self.writes.snapshot().networks_of("red").map(|network| network.id.to_string()).collect()
    }

    fn commits(&self) -> usize {
        self.disk.commit_count.load(Ordering::Relaxed)
    }
}

#[test]
fn writers_who_come_during_a_commit_are_committed_together() {
    let rig = Rig::new();
    thread::scope(|threads| {
        let held = rig.disk.gate.lock().unwrap();
        let first = rig.make_aside(threads, "first", Place::Leading);
        let others =
            [("b", 1), ("c", 2), ("d", 3)].map(|(id, count)| rig.make_aside(threads, id, Place::Gathering(count)));
        assert_eq!(rig.ids(), Vec::<String>::new(), "nothing is told that is not durable");
        drop(held);
        assert_eq!(first.join().unwrap(), Ok(true));
        others.into_iter().for_each(|other| assert_eq!(other.join().unwrap(), Ok(true)));
    });
    assert_eq!(rig.ids(), ["first", "b", "c", "d"]);
    assert_eq!((rig.commits(), rig.disk.in_force_count.load(Ordering::Relaxed)), (2, 2));
}

#[test]
fn who_gathered_behind_a_commit_that_fails_fails_too_and_the_next_goes_on() {
    let rig = Rig::new();
    thread::scope(|threads| {
        rig.disk.is_failing.store(true, Ordering::Relaxed);
        let held = rig.disk.gate.lock().unwrap();
        let first = rig.make_aside(threads, "first", Place::Leading);
        let behind = rig.make_aside(threads, "behind", Place::Gathering(1));
        drop(held);
        assert!(first.join().unwrap().is_err());
        assert!(behind.join().unwrap().is_err());
    });
    assert_eq!((rig.commits(), rig.ids()), (1, vec![]));
    rig.disk.is_failing.store(false, Ordering::Relaxed);
    assert_eq!(rig.make("behind"), Ok(true));
    assert_eq!(rig.ids(), ["behind"]);
}

#[test]
fn an_answer_that_rests_on_a_write_waits_for_it() {
    let rig = Rig::new();
    thread::scope(|threads| {
        let held = rig.disk.gate.lock().unwrap();
        let first = rig.make_aside(threads, "same", Place::Leading);
        let second = rig.make_aside(threads, "same", Place::Resting);
        assert!(!second.is_finished());
        drop(held);
        assert_eq!((first.join().unwrap(), second.join().unwrap()), (Ok(true), Ok(false)));
    });
    assert_eq!(rig.commits(), 1);
}

#[test]
fn an_answer_that_rested_on_a_write_that_failed_is_thought_over() {
    let rig = Rig::new();
    thread::scope(|threads| {
        rig.disk.is_failing_once.store(true, Ordering::Relaxed);
        let held = rig.disk.gate.lock().unwrap();
        let first = rig.make_aside(threads, "same", Place::Leading);
        let second = rig.make_aside(threads, "same", Place::Resting);
        drop(held);
        assert!(first.join().unwrap().is_err());
        assert_eq!(second.join().unwrap(), Ok(true));
    });
    assert_eq!(rig.ids(), ["same"]);
}

#[test]
fn a_leader_that_breaks_leaves_nobody_waiting() {
    let rig = Rig::new();
    thread::scope(|threads| {
        rig.disk.is_breaking.store(true, Ordering::Relaxed);
        let held = rig.disk.gate.lock().unwrap();
        let leader = rig.make_aside(threads, "same", Place::Leading);
        let waiter = rig.make_aside(threads, "other", Place::Gathering(1));
        drop(held);
        assert!(leader.join().is_err(), "the test broke it");
        rig.disk.is_breaking.store(false, Ordering::Relaxed);
        assert!(waiter.join().unwrap().is_err());
    });
    assert_eq!(rig.make("same"), Ok(true), "it was not written");
    assert_eq!(rig.ids(), ["same"]);
}

/// The news that another server made the network of this id.
fn made_elsewhere(model: &Model, id: &str) -> Absorbed {
    let mut model = model.clone();
    let (id, tenant) = (id.into(), "blue".into());
    let network = Network { id, tenant, name: None, network_type: Default::default(), serial: model.next_serial() };
    let touched = model.absorb([Change::PutNetwork(network)]).unwrap();
    Absorbed { model: Arc::new(model), touched: Some(touched) }
}

#[test]
fn a_write_that_is_outrun_is_planned_anew_over_what_was_faster_and_nobody_hears_of_it() {
    let rig = Rig::new();
    // What another server wrote is in the store before anybody is outrun by it.
    *rig.disk.disk.lock().unwrap() = Model::clone(&made_elsewhere(&Model::default(), "other").model);
    rig.disk.outrun_count.store(2, Ordering::Relaxed);
    thread::scope(|scope| {
        let writer = scope.spawn(|| rig.make("n"));
        rig.writes.absorb(|model| Ok(Some(made_elsewhere(model, "other"))), Touched::default()).unwrap();
        assert_eq!(writer.join().unwrap(), Ok(true));
    });
    let model = rig.writes.snapshot();
    assert!(model.networks.contains_key("n") && model.networks.contains_key("other"));
    assert_ne!(model.networks["n"].serial, model.networks["other"].serial);
    // A refusal that rests on nothing else is thought over as well.
    rig.disk.outrun_count.store(1, Ordering::Relaxed);
    assert_eq!(rig.make("n"), Ok(false));
}

#[test]
fn what_comes_to_no_write_is_told_only_over_all_that_was_written_by_then() {
    let rig = Rig::new();
    assert_eq!(rig.make("n"), Ok(true));
    // Another server has come further, and its news are on their way.
    rig.disk.present.store(7, Ordering::Relaxed);
    let plans = AtomicUsize::new(0);
    thread::scope(|scope| {
        let asker = scope.spawn(|| {
            rig.writes.write(|model| {
                if plans.fetch_add(1, Ordering::Relaxed) == 0 {
                    // Meanwhile they arrive.
                    rig.disk.place.store(7, Ordering::Relaxed);
                    scope.spawn(|| rig.writes.absorb(|model| Ok(Some(made_elsewhere(model, "o"))), Touched::default()));
                }
                Ok::<_, StoreFailed>((Vec::new(), model.networks.len()))
            })
        });
        assert_eq!(asker.join().unwrap(), Ok(2));
    });
    assert!(plans.load(Ordering::Relaxed) > 1);
    // Who has all is asked nothing more, and who cannot know says so.
    assert_eq!(rig.make("n"), Ok(false));
    rig.disk.is_unreadable.store(true, Ordering::Relaxed);
    assert!(rig.make("n").is_err());
}

#[test]
fn news_are_part_of_the_state_and_those_that_cannot_be_change_nothing() {
    let rig = Rig::new();
    rig.writes.absorb(|model| Ok(Some(made_elsewhere(model, "n"))), Touched::default()).unwrap();
    assert_eq!(rig.make("n"), Ok(false), "it is part of the state");
    let bad = rig.writes.absorb(|_| Err(Inconsistent::SerialTwice { serial: 1 }), Touched::default());
    assert!(bad.is_err() && rig.writes.snapshot().networks.len() == 1);
}

#[test]
fn what_changed_on_the_host_is_put_in_force_while_a_write_waits_for_its_store() {
    let rig = Rig::new();
    thread::scope(|scope| {
        let gate = rig.disk.gate.lock().unwrap();
        let writer = rig.make_aside(scope, "n", Place::Leading);
        rig.writes.put_in_force();
        assert_eq!((rig.disk.all_in_force_count.load(Ordering::Relaxed), writer.is_finished()), (1, false));
        drop(gate);
        assert_eq!(writer.join().unwrap(), Ok(true));
    });
    assert_eq!(rig.disk.in_force_count.load(Ordering::Relaxed), 2);
}

#[test]
fn what_breaks_off_beside_the_writers_is_put_in_force_before_the_next_write() {
    let rig = Rig::new();
    rig.disk.is_unable.store(true, Ordering::Relaxed);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| rig.writes.put_in_force())).is_err());
    rig.disk.is_unable.store(false, Ordering::Relaxed);
    assert_eq!(rig.make("n"), Ok(true));
    assert_eq!(rig.disk.all_in_force_count.load(Ordering::Relaxed), 1);
}
