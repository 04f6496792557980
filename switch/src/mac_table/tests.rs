//! The MAC table against an oracle, against its bounds, and under several threads.

mod near;

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool as Flag;

const RED: NetworkIndex = NetworkIndex(0);
const BLUE: NetworkIndex = NetworkIndex(1);
const A: PortIndex = PortIndex(0);
const B: PortIndex = PortIndex(1);
const C: PortIndex = PortIndex(2);

fn at(seconds: u32) -> Now {
    Now { ns: u64::from(seconds) * 1_000_000_000 }
}

fn mac(number: u32) -> MacAddr {
    MacAddr::from_u64(0x0200_0000_0000 | u64::from(number))
}

impl MacTable {
    /// What must hold when no other thread is at work: the books agree with the slots, no slot is half-way, no key is
    /// there twice, no bound is exceeded.
    fn assert_sound(&self) {
        let mut keys = std::collections::HashSet::new();
        let mut learnt = HashMap::<PortIndex, usize>::new();
        for slot in self.buckets.iter().flat_map(Bucket::slots) {
            let (key, value) = (slot.key(), slot.value());
            assert_eq!(key == Key::EMPTY, value == Value::NONE, "a slot was left half-way: {key:?} {value:?}");
            if key != Key::EMPTY {
                assert!(keys.insert(key.0), "{key:?} is there twice");
                assert!(value.fits(self.probe(key).check()), "{key:?} has another key's value");
                if value.is_learnt() {
                    *learnt.entry(value.port()).or_default() += 1;
                }
            }
        }
        assert_eq!(self.learnt(), learnt.values().sum::<usize>());
        assert_eq!(self.fixed.load(Ordering::Relaxed) as usize, keys.len() - self.learnt());
        assert!(self.learnt() <= self.learnt_max as usize);
        for port in (0..PORTS as u16).map(PortIndex) {
            let count = learnt.get(&port).copied().unwrap_or_default();
            assert_eq!(self.learnt_on(port), count, "port {port}");
            assert!(count <= self.port_learnt_max as usize);
        }
    }
}

#[test]
fn a_learnt_address_is_found_in_its_own_network_only() {
    let table = MacTable::new(100, 300);
    assert_eq!(table.learn(RED, mac(1), A, at(0)), Learned::New);
    assert_eq!(table.learn(RED, mac(1), A, at(0)), Learned::Known);
    assert_eq!(table.lookup(RED, mac(1), at(0)), Some(A));
    assert_eq!(table.lookup(BLUE, mac(1), at(0)), None);
    assert_eq!(table.learn(BLUE, mac(1), B, at(0)), Learned::New);
    assert_eq!(table.lookup(RED, mac(1), at(0)), Some(A));
    assert_eq!(table.lookup(BLUE, mac(1), at(0)), Some(B));
    table.assert_sound();
}

#[test]
fn an_address_stays_with_a_port_that_is_up_and_heard() {
    let table = MacTable::new(100, 300);
    table.learn(RED, mac(1), A, at(10));
    assert_eq!(table.learn(RED, mac(1), B, at(14)), Learned::Refused);
    // The entry itself is evidence until 15; frames of other addresses keep the port heard.
    table.heard(A, at(13));
    assert_eq!(table.would_learn(RED, mac(1), B, at(17)), Learned::Refused);
    assert_eq!(table.learn(RED, mac(1), B, at(17)), Learned::Refused);
    assert_eq!(table.lookup(RED, mac(1), at(17)), Some(A));
    assert_eq!(table.would_learn(RED, mac(1), B, at(18)), Learned::Moved);
    assert_eq!(table.learn(RED, mac(1), B, at(18)), Learned::Moved);
    assert_eq!(table.lookup(RED, mac(1), at(18)), Some(B));
    assert_eq!((table.learnt_on(A), table.learnt_on(B)), (0, 1));
}

#[test]
fn an_address_leaves_a_port_that_is_down_at_once() {
    let table = MacTable::new(100, 300);
    table.learn(RED, mac(1), A, at(10));
    table.heard(A, at(10));
    table.set_port_up(A, false);
    assert_eq!(table.learn(RED, mac(1), B, at(10)), Learned::Moved);
    table.set_port_up(A, true);
    assert_eq!(table.learn(RED, mac(1), A, at(10)), Learned::Refused);
}

#[test]
fn a_static_address_is_neither_learnt_over_nor_aged_nor_flushed_with_its_port() {
    let table = MacTable::new(100, 1);
    table.learn(RED, mac(1), B, at(0));
    assert!(table.insert_static(RED, mac(1), A));
    assert_eq!(table.learnt(), 0);
    table.set_port_up(A, false);
    assert_eq!(table.learn(RED, mac(1), B, at(50)), Learned::Static);
    assert_eq!(table.learn(RED, mac(1), A, at(50)), Learned::Known);
    table.sweep(at(100), |_, _| true);
    table.flush_port(A);
    assert_eq!(table.lookup(RED, mac(1), at(100)), Some(A));
    let entry = MacEntry { network: RED, mac: mac(1), port: A, is_static: true, age_s: 0 };
    assert_eq!(table.entries(at(100)), [entry]);
    assert!(table.insert_static(RED, mac(1), C));
    assert_eq!(table.lookup(RED, mac(1), at(100)), Some(C));
    table.remove_static(RED, mac(1));
    assert_eq!(table.lookup(RED, mac(1), at(100)), None);
    table.learn(RED, mac(1), A, at(100));
    table.remove_static(RED, mac(1));
    assert_eq!(table.lookup(RED, mac(1), at(100)), Some(A), "a learnt one stays");
    table.assert_sound();
}

#[test]
fn an_entry_lives_age_s_seconds_beyond_its_last_frame_and_no_longer() {
    let table = MacTable::new(100, 10);
    table.learn(RED, mac(1), A, at(0));
    table.learn(RED, mac(2), A, at(0));
    table.learn(RED, mac(2), A, at(5));
    assert_eq!(table.lookup(RED, mac(1), at(10)), Some(A));
    assert_eq!(table.lookup(RED, mac(1), at(11)), None, "before any sweep");
    assert_eq!(table.learnt(), 2);
    table.sweep(at(11), |_, _| true);
    assert_eq!(table.learnt(), 1);
    assert_eq!(table.entries(at(11)).first().map(|entry| (entry.mac, entry.age_s)), Some((mac(2), 6)));
    assert_eq!(table.learn(RED, mac(2), B, at(16)), Learned::New, "expired: no move to be refused");
    table.assert_sound();
}

#[test]
fn ages_are_right_across_the_wrap_of_the_coarse_clock() {
    let table = MacTable::new(100, 300);
    let wrap = 1 << 20;
    table.learn(RED, mac(1), A, at(wrap - 100));
    assert_eq!(table.lookup(RED, mac(1), at(wrap + 200)), Some(A));
    assert_eq!(table.learn(RED, mac(1), B, at(wrap - 96)), Learned::Refused);
    assert_eq!(table.lookup(RED, mac(1), at(wrap + 201)), None);
    table.sweep(at(wrap + 201), |_, _| true);
    assert_eq!(table.learnt(), 0);
    // Another worker's clock reading may be a second behind.
    table.learn(RED, mac(1), A, at(wrap));
    assert_eq!(table.lookup(RED, mac(1), at(wrap - 1)), Some(A));
    assert_eq!(table.learn(RED, mac(1), A, at(wrap - 1)), Learned::Known);
}

#[test]
fn a_flooding_port_evicts_its_own_entries_and_nobody_elses() {
    let table = MacTable::new(1024, 300);
    for number in 0..100 {
        assert_eq!(table.learn(RED, mac(number), A, at(0)), Learned::New);
        assert_eq!(table.learn(BLUE, mac(number), B, at(0)), Learned::New);
    }
    for number in 0..50_000 {
        table.learn(RED, mac(1_000_000 + number), C, at(1));
        assert!(table.learnt_on(C) <= 512);
    }
    assert_eq!(table.learnt_on(C), 512, "it may have its share");
    for number in 0..100 {
        assert_eq!(table.lookup(RED, mac(number), at(1)), Some(A));
        assert_eq!(table.lookup(BLUE, mac(number), at(1)), Some(B));
    }
    table.assert_sound();
}

#[test]
fn in_a_table_that_two_ports_have_filled_a_third_still_learns() {
    let table = MacTable::seeded(1024, 300, [0x1234_5678_9abc_def1, 0x9e37_79b9_7f4a_7c15]);
    for number in 0..50_000 {
        table.learn(RED, mac(number), A, at(0));
        table.learn(RED, mac(1_000_000 + number), B, at(0));
    }
    assert_eq!(table.learnt(), 1024);
    let learnt = (0..100).filter(|&number| table.learn(BLUE, mac(number), C, at(1)) == Learned::New).count();
    assert!(learnt >= 80, "only {learnt} of 100");
    // Where it met an entry of its own it gave that one up: own ones go first.
    assert!(table.learnt_on(C) >= 20, "it holds only {}", table.learnt_on(C));
    assert_eq!(table.learnt(), 1024);
    table.assert_sound();
}

#[test]
fn static_entries_are_never_evicted_and_a_table_full_of_them_says_so() {
    let table = MacTable::new(4, 300);
    let fixed: Vec<u32> = (0..100).filter(|&number| table.insert_static(RED, mac(number), A)).collect();
    assert_eq!(fixed.len(), table.buckets.len() * WAYS);
    for number in 1000..1100 {
        assert_eq!(table.would_learn(RED, mac(number), B, at(0)), Learned::Full);
        assert_eq!(table.learn(RED, mac(number), B, at(0)), Learned::Full);
    }
    assert!(fixed.iter().all(|&number| table.lookup(RED, mac(number), at(0)) == Some(A)));
    table.flush_network(RED);
    assert!(table.entries(at(0)).is_empty());
    table.assert_sound();
}

#[test]
fn what_was_learnt_on_a_network_that_its_port_has_left_goes_with_the_next_sweep() {
    let table = MacTable::new(100, 300);
    table.learn(RED, mac(1), A, at(0));
    table.learn(BLUE, mac(2), A, at(0));
    table.insert_static(RED, mac(3), B);
    table.sweep(at(0), |port, network| (port, network) == (A, BLUE));
    let kept: Vec<_> = table.entries(at(0)).iter().map(|entry| entry.mac).collect();
    assert_eq!(kept.len(), 2);
    assert!(kept.contains(&mac(2)) && kept.contains(&mac(3)), "static ones are the config's: {kept:?}");
    table.assert_sound();
}

#[test]
fn an_address_is_forgotten_where_it_was_learnt_and_nowhere_else() {
    let table = MacTable::new(100, 300);
    table.learn(RED, mac(1), A, at(0));
    table.learn(BLUE, mac(1), A, at(0));
    table.insert_static(RED, mac(2), A);
    table.forget(RED, mac(1), B);
    assert_eq!(table.lookup(RED, mac(1), at(0)), Some(A), "it is on another port");
    assert_eq!(table.learn(RED, mac(1), B, at(0)), Learned::Refused);
    table.forget(RED, mac(1), A);
    table.forget(RED, mac(2), A);
    assert_eq!(table.learn(RED, mac(1), B, at(0)), Learned::New, "nothing is left that it would have to leave");
    assert_eq!(table.lookup(BLUE, mac(1), at(0)), Some(A));
    assert_eq!(table.lookup(RED, mac(2), at(0)), Some(A), "a static one is the config's");
    table.assert_sound();
}

#[test]
fn addresses_and_ports_that_cannot_be_are_not_learnt() {
    let table = MacTable::new(0, 300);
    assert_eq!(table.learn(RED, mac(1), A, at(0)), Learned::Full, "a table for no entry");
    let table = MacTable::new(1, 300);
    for address in [MacAddr::default(), MacAddr::BROADCAST, MacAddr([1, 0, 0, 0, 0, 1])] {
        assert_eq!(table.learn(RED, address, A, at(0)), Learned::Full);
        assert!(!table.insert_static(RED, address, A));
        assert_eq!(table.lookup(RED, address, at(0)), None);
    }
    let beyond = PortIndex(PORTS_MAX as u16);
    assert_eq!(table.learn(RED, mac(1), beyond, at(0)), Learned::Full);
    table.heard(beyond, at(0));
    table.set_port_up(beyond, true);
    table.flush_port(beyond);
    assert_eq!(table.learn(RED, mac(1), A, at(0)), Learned::New);
    table.assert_sound();
}

/// One call on the table.
#[derive(Clone, Debug)]
enum Call {
    Learn(u16, u32, u16),
    Heard(u16),
    PortUp(u16, bool),
    InsertStatic(u16, u32, u16),
    RemoveStatic(u16, u32),
    Forget(u16, u32, u16),
    FlushPort(u16),
    FlushNetwork(u16),
    Sweep,
    Wait(u32),
}

fn calls(macs: u32) -> impl Strategy<Value = Vec<Call>> {
    let (network, number, port) = (0..3u16, 0..macs, 0..4u16);
    let call = prop_oneof![
        20 => (network.clone(), number.clone(), port.clone()).prop_map(|(n, m, p)| Call::Learn(n, m, p)),
        3 => port.clone().prop_map(Call::Heard),
        2 => (port.clone(), any::<bool>()).prop_map(|(p, up)| Call::PortUp(p, up)),
        2 => (network.clone(), number.clone(), port.clone()).prop_map(|(n, m, p)| Call::InsertStatic(n, m, p)),
        2 => (network.clone(), number.clone()).prop_map(|(n, m)| Call::RemoveStatic(n, m)),
        2 => (network.clone(), number, port.clone()).prop_map(|(n, m, p)| Call::Forget(n, m, p)),
        1 => port.prop_map(Call::FlushPort),
        1 => network.prop_map(Call::FlushNetwork),
        1 => Just(Call::Sweep),
        6 => prop_oneof![0..3u32, 4..7u32, 9..13u32].prop_map(Call::Wait),
    ];
    proptest::collection::vec(call, 1..120)
}

/// The oracle: what the table would be if it had no bound and were not shared.
struct Oracle {
    age_s: u32,
    /// Port and second last seen; no second: static.
    entries: HashMap<(u16, u32), (u16, Option<u32>)>,
    heard: HashMap<u16, u32>,
    down: std::collections::HashSet<u16>,
}

impl Oracle {
    fn new(age_s: u32) -> Oracle {
        Oracle { age_s, entries: HashMap::new(), heard: HashMap::new(), down: Default::default() }
    }

    fn lookup(&self, network: u16, number: u32, now: u32) -> Option<u16> {
        let &(port, seen) = self.entries.get(&(network, number))?;
        seen.is_none_or(|seen| now - seen <= self.age_s).then_some(port)
    }

    fn learn(&self, network: u16, number: u32, port: u16, now: u32) -> Learned {
        let Some(home) = self.lookup(network, number, now) else { return Learned::New };
        let Some(seen) = self.entries[&(network, number)].1 else {
            return if home == port { Learned::Known } else { Learned::Static };
        };
        if home == port {
            return Learned::Known;
        }
        let last = self.heard.get(&home).copied().unwrap_or(seen).max(seen);
        let has_left = self.down.contains(&home) || now - last >= MOVE_SILENCE_S;
        if has_left { Learned::Moved } else { Learned::Refused }
    }

    /// Follows a call; for `Learn`, what the table said it came to.
    fn follow(&mut self, call: &Call, learned: Option<Learned>, now: u32) {
        match *call {
            Call::Learn(network, number, port) => match learned.expect("a learn has an answer") {
                Learned::New | Learned::Moved => {
                    self.entries.insert((network, number), (port, Some(now)));
                }
                Learned::Known => {
                    if let Some((_, Some(seen))) = self.entries.get_mut(&(network, number)) {
                        *seen = now;
                    }
                }
                Learned::Refused | Learned::Static | Learned::Full => {}
            },
            Call::Heard(port) => {
                self.heard.insert(port, now);
            }
            Call::PortUp(port, is_up) => {
                if is_up {
                    self.down.remove(&port)
                } else {
                    self.down.insert(port)
                };
            }
            Call::InsertStatic(network, number, port) => {
                self.entries.insert((network, number), (port, None));
            }
            Call::RemoveStatic(network, number) => {
                if self.entries.get(&(network, number)).is_some_and(|entry| entry.1.is_none()) {
                    self.entries.remove(&(network, number));
                }
            }
            Call::Forget(network, number, port) => {
                self.entries.retain(|key, entry| *key != (network, number) || entry.0 != port || entry.1.is_none());
            }
            Call::FlushPort(port) => self.entries.retain(|_, entry| entry.0 != port || entry.1.is_none()),
            Call::FlushNetwork(network) => self.entries.retain(|key, _| key.0 != network),
            Call::Sweep | Call::Wait(_) => {}
        }
    }
}

fn apply(table: &MacTable, call: &Call, now: &mut u32) -> Option<Learned> {
    match *call {
        Call::Learn(network, number, port) => {
            let said = table.would_learn(NetworkIndex(network), mac(number), PortIndex(port), at(*now));
            let learned = table.learn(NetworkIndex(network), mac(number), PortIndex(port), at(*now));
            assert_eq!(said, learned, "would_learn said otherwise");
            return Some(learned);
        }
        Call::Heard(port) => table.heard(PortIndex(port), at(*now)),
        Call::PortUp(port, is_up) => table.set_port_up(PortIndex(port), is_up),
        Call::InsertStatic(network, number, port) => {
            assert!(table.insert_static(NetworkIndex(network), mac(number), PortIndex(port)));
        }
        Call::RemoveStatic(network, number) => table.remove_static(NetworkIndex(network), mac(number)),
        Call::Forget(network, number, port) => table.forget(NetworkIndex(network), mac(number), PortIndex(port)),
        Call::FlushPort(port) => table.flush_port(PortIndex(port)),
        Call::FlushNetwork(network) => table.flush_network(NetworkIndex(network)),
        Call::Sweep => table.sweep(at(*now), |_, _| true),
        Call::Wait(seconds) => *now += seconds,
    }
    None
}

proptest! {
    #[test]
    fn oracle_agrees_while_the_table_has_room(start in prop_oneof![Just(0u32), (1u32 << 20) - 60..1 << 20], calls in calls(12)) {
        let (table, mut oracle, mut now) = (MacTable::new(4096, 10), Oracle::new(10), start);
        for call in &calls {
            let expected = match *call {
                Call::Learn(network, number, port) => Some(oracle.learn(network, number, port, now)),
                _ => None,
            };
            let learned = apply(&table, call, &mut now);
            prop_assert_eq!(learned, expected);
            oracle.follow(call, learned, now);
            for (network, number) in (0..3).flat_map(|network| (0..12).map(move |number| (network, number))) {
                let found = table.lookup(NetworkIndex(network), mac(number), at(now)).map(|port| port.0);
                prop_assert_eq!(found, oracle.lookup(network, number, now));
            }
        }
        let mut entries: Vec<_> = table.entries(at(now)).iter().map(|e| (e.network.0, e.mac, e.port.0, e.age_s)).collect();
        let mut expected: Vec<_> = oracle.entries.iter()
            .filter(|&(&(network, number), _)| oracle.lookup(network, number, now).is_some())
            .map(|(&(network, number), &(port, seen))| (network, mac(number), port, seen.map_or(0, |seen| now - seen)))
            .collect();
        entries.sort_unstable();
        expected.sort_unstable();
        prop_assert_eq!(entries, expected);
        table.assert_sound();
    }

    /// With room for few, the table may forget what it learnt, never what is static, and never says a wrong port.
    #[test]
    fn a_table_that_is_too_small_forgets_but_does_not_lie(max in 1usize..24, calls in calls(200)) {
        let (table, mut oracle, mut now) = (MacTable::new(max, 10), Oracle::new(10), 0);
        for call in &calls {
            if let Call::InsertStatic(network, number, port) = *call {
                if table.insert_static(NetworkIndex(network), mac(number), PortIndex(port)) {
                    oracle.follow(call, None, now);
                }
            } else {
                let learned = apply(&table, call, &mut now);
                oracle.follow(call, learned, now);
            }
            prop_assert!(table.learnt() <= max);
        }
        table.assert_sound();
        for (&(network, number), &(port, seen)) in &oracle.entries {
            let found = table.lookup(NetworkIndex(network), mac(number), at(now)).map(|port| port.0);
            let expected = oracle.lookup(network, number, now);
            prop_assert!(found == expected || (found.is_none() && seen.is_some()), "{found:?}, not {port}");
        }
    }
}

/// Four workers and the control side on a table far too small, with all keys in a few buckets. Every port belongs to
/// one network, so a lookup that answers another network's port is a leak.
#[test]
fn threads_that_fight_for_slots_never_leak_between_networks_and_leave_the_table_sound() {
    const NETWORKS: u16 = 3;
    for (max, rounds) in [(2, 20_000), (8, 40_000), (64, 40_000), (200, 40_000)] {
        let table = Arc::new(MacTable::new(max, 2));
        let is_over = Arc::new(Flag::new(false));
        let control = std::thread::spawn({
            let (table, is_over) = (table.clone(), is_over.clone());
            move || {
                for turn in (0..=u16::MAX).cycle().take_while(|_| !is_over.load(Ordering::Relaxed)) {
                    let network = NetworkIndex(turn % NETWORKS);
                    let number = u32::from(turn) % 5;
                    if table.insert_static(network, mac(number), PortIndex(network.0)) {
                        let probe = table.probe(Key::new(network, mac(number)));
                        assert!(table.all(probe).any(|(_, value)| value.is_static()), "a static entry was lost");
                    }
                    table.remove_static(network, mac(number));
                    table.forget(network, mac(number + 1), PortIndex(network.0));
                    match turn % 7 {
                        0 => table.flush_network(network),
                        1 => table.flush_port(PortIndex(turn % (2 * NETWORKS))),
                        2 => table.set_port_up(PortIndex(turn % (2 * NETWORKS)), turn & 8 == 0),
                        _ => table.sweep(at(u32::from(turn) % 100), |_, _| true),
                    }
                }
            }
        });
        let workers: Vec<_> = (0..4u64)
            .map(|worker| {
                let table = table.clone();
                std::thread::spawn(move || {
                    let mut random = 0x9e37_79b9_7f4a_7c15 ^ (worker << 7);
                    for round in 0..rounds {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        let network = (random % u64::from(NETWORKS)) as u16;
                        let number = (random >> 16) as u32 % (2 * max as u32 + 5);
                        // Ports of network n: n and n + NETWORKS.
                        let port = PortIndex(network + NETWORKS * (random >> 40 & 1) as u16);
                        let now = at(round / 1000);
                        if random >> 50 & 3 == 0 {
                            table.learn(NetworkIndex(network), mac(number), port, now);
                            assert!(table.learnt() <= max);
                        }
                        if let Some(home) = table.lookup(NetworkIndex(network), mac(number), now) {
                            assert_eq!(home.0 % NETWORKS, network, "a frame crossed networks");
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
        control.join().unwrap();
        table.assert_sound();
    }
}
