//! loom tries every interleaving (up to three preemptions) of short races on the real table, in a small form: two buckets
//! of two slots, four ports, a fixed hash seed.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p switch --release --lib --target-dir target/loom loom_`.

use super::*;
use loom::sync::Arc;
use loom::thread;

const RED: NetworkIndex = NetworkIndex(0);
const BLUE: NetworkIndex = NetworkIndex(1);
const A: PortIndex = PortIndex(0);
const B: PortIndex = PortIndex(1);
const X: PortIndex = PortIndex(2);
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const NOW: Now = Now { ns: 0 };

/// Four slots in all: every key lies in the same pair of buckets.
fn table(max: usize) -> Arc<MacTable> {
    let table = MacTable::seeded(max, 300, [0x1234_5678_9abc_def1, 0x9e37_79b9_7f4a_7c15]);
    assert_eq!(table.buckets.len(), 2);
    Arc::new(table)
}

fn check(race: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.max_branches = 10_000;
    model.check(race);
}

/// The same as the stress test asserts: books, no slot half-way, no key twice.
fn assert_sound(table: &MacTable) {
    let mut keys = Vec::new();
    let mut learnt = [0; PORTS];
    for slot in table.buckets.iter().flat_map(Bucket::slots) {
        let (key, value) = (slot.key(), slot.value());
        assert_eq!(key == Key::EMPTY, value == Value::NONE, "a slot was left half-way");
        if key != Key::EMPTY {
            assert!(!keys.contains(&key.0), "a key is there twice");
            keys.push(key.0);
            assert!(value.fits(table.hash(key).check()), "a key has another key's value");
            learnt[value.port().as_usize()] += usize::from(value.is_learnt());
        }
    }
    for (port, count) in learnt.iter().enumerate() {
        assert_eq!(table.learnt_on(PortIndex(port as u16)), *count);
    }
    assert_eq!(table.learnt(), learnt.iter().sum::<usize>());
}

#[test]
fn loom_two_workers_that_learn_one_address_leave_one_entry() {
    check(|| {
        let table = table(2);
        let other = thread::spawn({
            let table = table.clone();
            move || table.learn(RED, MAC, B, NOW)
        });
        let mine = table.learn(RED, MAC, A, NOW);
        let theirs = other.join().unwrap();
        let home = table.lookup(RED, MAC, NOW).expect("one entry stays");
        assert!(home == A || home == B);
        assert!(mine == Learned::New || theirs == Learned::New);
        assert_sound(&table);
    });
}

#[test]
fn loom_a_static_entry_survives_a_worker_that_learns_the_same_address() {
    check(|| {
        let table = table(2);
        let worker = thread::spawn({
            let table = table.clone();
            move || table.learn(RED, MAC, B, NOW)
        });
        assert!(table.insert_static(RED, MAC, A));
        worker.join().unwrap();
        assert_eq!(table.lookup(RED, MAC, NOW), Some(A));
        assert_eq!(table.learnt(), 0);
        assert_sound(&table);
    });
}

/// One slot changes from red's key to blue's and back while a reader looks: the case of K1, K2, K1.
#[test]
fn loom_a_slot_that_changes_hands_never_shows_one_network_the_others_port() {
    check(|| {
        let table = table(1);
        table.learn(RED, MAC, A, NOW);
        let reader = thread::spawn({
            let table = table.clone();
            move || {
                assert!(matches!(table.lookup(RED, MAC, NOW), None | Some(A)));
                assert!(matches!(table.lookup(BLUE, MAC, NOW), None | Some(X)));
            }
        });
        table.flush_network(RED);
        table.learn(BLUE, MAC, X, NOW);
        table.flush_network(BLUE);
        table.learn(RED, MAC, A, NOW);
        reader.join().unwrap();
        assert_eq!(table.lookup(RED, MAC, NOW), Some(A));
        assert_sound(&table);
    });
}

/// A port at its share: each new address evicts, and the slot goes from key to key without being free between.
#[test]
fn loom_an_eviction_under_a_reader_and_a_refresh_keeps_the_books() {
    check(|| {
        let table = table(1);
        table.learn(RED, MAC, A, NOW);
        let worker = thread::spawn({
            let table = table.clone();
            move || {
                // A refresh of the entry that the other thread is about to evict.
                table.learn(RED, MAC, A, Now { ns: 1_000_000_000 });
                assert!(matches!(table.lookup(RED, OTHER, NOW), None | Some(A)));
            }
        });
        table.learn(RED, OTHER, A, NOW);
        assert!(table.learnt() <= 1);
        worker.join().unwrap();
        assert_sound(&table);
    });
}

#[test]
fn loom_a_move_and_a_flush_of_the_old_port_count_the_entry_once() {
    check(|| {
        let table = table(2);
        table.learn(RED, MAC, A, NOW);
        table.set_port_up(A, false);
        let worker = thread::spawn({
            let table = table.clone();
            move || table.learn(RED, MAC, B, NOW)
        });
        table.flush_port(A);
        let learned = worker.join().unwrap();
        assert!(matches!(learned, Learned::Moved | Learned::New));
        assert_eq!(table.lookup(RED, MAC, NOW), Some(B));
        assert_sound(&table);
    });
}
