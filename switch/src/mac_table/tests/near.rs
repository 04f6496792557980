//! Homes near and far.

use super::*;

impl MacTable {
    /// Removes a learnt address.
    fn age_out(&self, network: NetworkIndex, mac: MacAddr) {
        for (slot, value) in self.all(self.probe(Key::new(network, mac))) {
            assert!(value.is_learnt() && self.remove(slot, value));
        }
    }
}

/// How many of the addresses lie where a burst looks first.
fn at_home(table: &MacTable, numbers: std::ops::Range<u32>) -> usize {
    let burst = table.burst(RED, A, at(1));
    numbers.filter(|&number| burst.is_known(&burst.probe(mac(number).into()))).count()
}

#[test]
fn addresses_are_found_and_brought_home_whether_they_are_few_or_many() {
    let table = MacTable::seeded(4096, 300, [0x1234_5678_9abc_def1, 0x9e37_79b9_7f4a_7c15]);
    let (few, many) = (NEAR as u32 / 2, 2000);
    let is_found = |number: u32| {
        let burst = table.burst(RED, A, at(1));
        let probe = burst.probe(mac(number).into());
        // The burst's way and the other one.
        burst.lookup(&probe) == Some(A) && table.lookup(RED, mac(number), at(1)) == Some(A)
    };
    let fixed = mac(1_000_000);
    assert!(table.insert_static(RED, fixed, B));
    for number in 0..many {
        // The static one counts too.
        let homes = if number + 1 > few { table.buckets.len() } else { NEAR };
        assert_eq!(table.homes_len(), homes, "{number} are learnt");
        let burst = table.burst(RED, A, at(1));
        let probe = burst.probe(mac(number).into());
        assert!(!burst.is_known(&probe));
        assert_eq!(burst.learn(&probe), Learned::New);
    }
    assert!((0..many).all(is_found));
    let strayed = few as usize - at_home(&table, 0..few);
    assert!(strayed > 0, "those that were learnt first lie near");
    table.sweep(at(1), |_, _| true);
    table.assert_sound();
    assert!(at_home(&table, 0..many) > many as usize * 9 / 10);
    assert!(at_home(&table, 0..few) > few as usize * 9 / 10);
    assert!((0..many).all(is_found));
    // Fewer again.
    let kept = many - (few - 1)..many;
    (0..kept.start).for_each(|number| table.age_out(RED, mac(number)));
    assert_eq!((table.learnt(), table.homes_len()), (kept.len(), NEAR));
    assert!(kept.clone().all(is_found) && !(0..kept.start).any(is_found));
    assert!(at_home(&table, kept.clone()) < kept.len());
    table.sweep(at(1), |_, _| true);
    table.assert_sound();
    assert!(at_home(&table, kept.clone()) > kept.len() * 8 / 10);
    assert!(kept.clone().all(is_found));
    assert_eq!(table.lookup(RED, fixed, at(1)), Some(B));
    for number in kept {
        let burst = table.burst(RED, A, at(1));
        assert_eq!(burst.learn(&burst.probe(mac(number).into())), Learned::Known);
    }
}

#[test]
fn a_table_of_which_each_place_in_the_books_is_taken_is_swept_without_moving_any_address() {
    let table = MacTable::new(NEAR * WAYS, 300);
    let taken = (0..)
        .map(mac)
        .take_while(|&mac| table.learn(RED, mac, A, at(1)) == Learned::New && table.learnt_on(A) < NEAR * 2);
    let taken: Vec<_> = taken.collect();
    table.sweep(at(1), |_, _| true);
    table.assert_sound();
    assert!(taken.iter().all(|&mac| table.lookup(RED, mac, at(1)) == Some(A)));
}

#[test]
fn static_entries_find_room_beyond_the_near_part() {
    let table = MacTable::new(4096, 300);
    for number in 0..2 * (NEAR * WAYS) as u32 {
        assert!(table.insert_static(RED, mac(number), A), "{number}");
    }
    table.sweep(at(1), |_, _| true);
    assert_eq!(table.homes_len(), table.buckets.len());
    table.assert_sound();
}

/// What is learnt meanwhile makes homes near and far in turn, so that each sweep moves what the other thread flushes.
#[test]
fn no_entry_escapes_a_flush_by_being_brought_home() {
    let table = Arc::new(MacTable::new(200, 300));
    let is_over = Arc::new(Flag::new(false));
    let housekeeping = std::thread::spawn({
        let (table, is_over) = (table.clone(), is_over.clone());
        move || {
            while !is_over.load(Ordering::Relaxed) {
                for number in 0..60 {
                    table.learn(BLUE, mac(number), B, at(1));
                }
                table.sweep(at(1), |_, _| true);
                table.flush_network(BLUE);
                table.sweep(at(1), |_, _| true);
            }
        }
    });
    for _ in 0..2000 {
        let fixed = (0..50).filter(|&number| table.insert_static(RED, mac(number), A)).count();
        assert_eq!(fixed, 50);
        table.flush_network(RED);
        let left = table.entries(at(1)).iter().filter(|entry| entry.network == RED).count();
        assert_eq!(left, 0);
    }
    is_over.store(true, Ordering::Relaxed);
    housekeeping.join().unwrap();
    table.assert_sound();
}
