//! loom tries every interleaving (up to three preemptions) of short races on the real table, in a small form: two buckets
//! of two slots, or four of which two are near, four ports, a fixed hash seed.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p switch --release --lib --target-dir target/loom loom_`.

use super::*;
use loom::sync::Arc;
use loom::thread;
use std::sync::OnceLock;

const RED: NetworkIndex = NetworkIndex(0);
const BLUE: NetworkIndex = NetworkIndex(1);
const A: PortIndex = PortIndex(0);
const B: PortIndex = PortIndex(1);
const X: PortIndex = PortIndex(2);
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const NOW: Now = Now { ns: 0 };

/// Bound to be `max` learnt entries, with the seed of all models.
fn seeded(max: usize) -> MacTable {
    MacTable::seeded(max, 300, [0x1234_5678_9abc_def1, 0x9e37_79b9_7f4a_7c15])
}

/// Four slots in all: every key lies in the same pair of buckets.
fn table(max: usize) -> Arc<MacTable> {
    let table = seeded(max);
    assert_eq!(table.buckets.len(), 2);
    Arc::new(table)
}

/// Four buckets, two of them near: with the second learnt entry it is crowded, and homes are far from then on.
fn table_that_fills() -> Arc<MacTable> {
    let table = seeded(3);
    assert_eq!((table.buckets.len(), table.near_len(), table.near_max), (4, 2, 1));
    for mac in [MAC, OTHER] {
        let [few, many, _] = table.places(table.probe(Key::new(RED, mac)));
        assert!(!std::ptr::eq(few, many), "the seed gives {mac} two homes");
    }
    Arc::new(table)
}

/// Another address of the network with the tag, the way and the home of `mac`: no check of a value tells the two apart. To be found
/// once, for it takes a while.
fn twin(mac: MacAddr) -> MacAddr {
    let table = seeded(1);
    let what_counts = |mac| {
        let hash = table.probe(Key::new(RED, mac)).hash;
        (hash >> 32 & 0xffff, hash & 1)
    };
    let wanted = what_counts(mac);
    let others = (0..1 << 24).map(|number: u64| MacAddr::from_u64(0x0600_0000_0000 | number));
    let mut twins = others.filter(|&other| what_counts(other) == wanted);
    twins.next().expect("one of 131,072 is")
}

fn check(race: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.max_branches = 10_000;
    model.check(race);
}

/// A flush without the lock of the control side, which would only multiply the interleavings.
fn flush(table: &MacTable, network: NetworkIndex) {
    table.remove_where(&table.buckets, |value| value.network() == network);
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
            assert!(value.fits(table.probe(key).check()), "a key has another key's value");
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
        flush(&table, RED);
        table.learn(BLUE, MAC, X, NOW);
        flush(&table, BLUE);
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

/// An address moves from a port that is down while the control side has its entry there go.
fn moves_while(gone: impl Fn(&MacTable) + Sync + Send + 'static) {
    check(move || {
        let table = table(2);
        table.learn(RED, MAC, A, NOW);
        table.set_port_up(A, false);
        let worker = thread::spawn({
            let table = table.clone();
            move || table.learn(RED, MAC, B, NOW)
        });
        gone(&table);
        let learned = worker.join().unwrap();
        assert!(matches!(learned, Learned::Moved | Learned::New));
        assert_eq!(table.lookup(RED, MAC, NOW), Some(B));
        assert_sound(&table);
    });
}

#[test]
fn loom_a_move_and_a_flush_of_the_old_port_count_the_entry_once() {
    moves_while(|table| table.flush_port(A));
}

#[test]
fn loom_an_address_that_is_forgotten_on_its_old_port_stays_where_it_moves_meanwhile() {
    moves_while(|table| table.forget(RED, MAC, A));
}

#[test]
fn loom_an_address_that_is_forgotten_while_it_is_heard_there_is_gone_or_there_once() {
    check(|| {
        let table = table(2);
        table.learn(RED, MAC, A, NOW);
        let worker = thread::spawn({
            let table = table.clone();
            move || table.learn(RED, MAC, A, Now { ns: 1_000_000_000 })
        });
        table.forget(RED, MAC, A);
        let learned = worker.join().unwrap();
        // It was new only if it had gone before. Its place in the books, where the port has one, may not have been free yet.
        let found = table.lookup(RED, MAC, NOW);
        let is_gone_or_there = match learned {
            Learned::Known => matches!(found, None | Some(A)),
            Learned::New => found == Some(A),
            Learned::Full => found.is_none(),
            _ => false,
        };
        assert!(is_gone_or_there, "{learned:?} {found:?}");
        assert_sound(&table);
    });
}

/// A slot goes from one address to another of its network that has the same tag, so that nothing but the order of key and
/// value tells the two apart.
#[test]
fn loom_a_burst_never_meets_an_address_with_the_value_of_the_next_one_in_its_slot() {
    // Nothing of the table can be had outside a model.
    static TWIN: OnceLock<MacAddr> = OnceLock::new();
    check(move || {
        let twin = *TWIN.get_or_init(|| twin(MAC));
        let table = table(1);
        table.learn(RED, MAC, A, NOW);
        let worker = thread::spawn({
            let table = table.clone();
            move || {
                let burst = table.burst(RED, X, NOW);
                let [mac, twin] = [MAC, twin].map(|mac| burst.probe(mac.into()));
                assert!(matches!(burst.lookup(&mac), None | Some(A)));
                assert!(matches!(burst.lookup(&twin), None | Some(B)));
            }
        });
        flush(&table, RED);
        table.learn(RED, twin, B, NOW);
        worker.join().unwrap();
        assert_sound(&table);
    });
}

/// What a worker does with a burst, while another one's burst makes the table crowded: all sources, then all destinations.
#[test]
fn loom_what_a_burst_has_learnt_it_finds_though_homes_move_meanwhile() {
    check(|| {
        let table = table_that_fills();
        let other = thread::spawn({
            let table = table.clone();
            move || {
                let burst = table.burst(RED, B, NOW);
                let [mine, theirs] = [OTHER, MAC].map(|mac| burst.probe(mac.into()));
                assert_eq!(burst.learn(&mine), Learned::New);
                assert_eq!(burst.lookup(&mine), Some(B));
                assert!(matches!(burst.lookup(&theirs), None | Some(A)));
            }
        });
        let burst = table.burst(RED, A, NOW);
        let [mine, theirs] = [MAC, OTHER].map(|mac| burst.probe(mac.into()));
        assert!(burst.is_known(&mine) || burst.learn(&mine) == Learned::New);
        assert_eq!(burst.lookup(&mine), Some(A));
        assert!(matches!(burst.lookup(&theirs), None | Some(B)));
        // The next frame from there: known at home, or at the home that it had before.
        assert!(burst.is_known(&mine) || burst.learn(&mine) == Learned::Known);
        other.join().unwrap();
        // The old view and a new one, whose homes are others, find both.
        for view in [burst, table.burst(RED, X, NOW)] {
            let found = [MAC, OTHER].map(|mac| view.lookup(&view.probe(mac.into())));
            assert_eq!(found, [Some(A), Some(B)]);
        }
        assert_eq!(table.homes_len(), 4);
        assert_sound(&table);
    });
}

/// One of the two looks for its home before the table is crowded, the other may do so after.
#[test]
fn loom_two_bursts_that_learn_one_address_at_its_two_homes_leave_one_entry() {
    check(|| {
        let table = table_that_fills();
        table.learn(RED, OTHER, X, NOW);
        let other = thread::spawn({
            let table = table.clone();
            move || {
                let burst = table.burst(RED, B, NOW);
                burst.learn(&burst.probe(MAC.into()))
            }
        });
        let burst = table.burst(RED, A, NOW);
        let mine = burst.learn(&burst.probe(MAC.into()));
        // A look that passes one slot before the entry stands there and the other after it is gone misses both: that frame is
        // flooded.
        let is_either = |found| matches!(found, Some(A | B));
        let meanwhile = burst.lookup(&burst.probe(MAC.into()));
        assert!(meanwhile.is_none() || is_either(meanwhile));
        let theirs = other.join().unwrap();
        assert!(is_either(burst.lookup(&burst.probe(MAC.into()))));
        assert!(mine == Learned::New || theirs == Learned::New);
        assert_eq!(burst.lookup(&burst.probe(OTHER.into())), Some(X));
        assert_sound(&table);
    });
}

/// Two addresses, the first of which lies where its home was.
fn table_with_a_stray() -> Arc<MacTable> {
    let table = table_that_fills();
    assert_eq!(table.learn(RED, MAC, A, NOW), Learned::New);
    assert_eq!(table.learn(RED, OTHER, B, NOW), Learned::New);
    assert_eq!(table.homes_len(), 4);
    table
}

#[test]
fn loom_an_address_that_is_brought_home_stays_one_though_a_worker_refreshes_it() {
    check(|| {
        let table = table_with_a_stray();
        let worker = thread::spawn({
            let table = table.clone();
            move || {
                let burst = table.burst(RED, A, Now { ns: 1_000_000_000 });
                let probe = burst.probe(MAC.into());
                assert!(matches!(burst.lookup(&probe), None | Some(A)));
                // While it has two places in the books, there may be none left for a third.
                assert!(matches!(burst.learn(&probe), Learned::Known | Learned::New | Learned::Full));
            }
        });
        table.sweep(NOW, |_, _| true);
        worker.join().unwrap();
        assert_eq!([MAC, OTHER].map(|mac| table.lookup(RED, mac, NOW)), [Some(A), Some(B)]);
        assert_sound(&table);
    });
}

#[test]
fn loom_no_address_escapes_a_flush_by_being_brought_home() {
    check(|| {
        let table = table_with_a_stray();
        let housekeeping = thread::spawn({
            let table = table.clone();
            move || table.sweep(NOW, |_, _| true)
        });
        table.flush_network(RED);
        housekeeping.join().unwrap();
        assert_eq!([MAC, OTHER].map(|mac| table.lookup(RED, mac, NOW)), [None, None]);
        assert_sound(&table);
    });
}
