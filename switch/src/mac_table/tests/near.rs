//! Homes near and far.

use super::*;

impl MacTable {
    /// Removes a learnt address.
    fn age_out(&self, network: NetworkIndex, mac: MacAddr) {
        for (slot, value) in self.all(self.hash(Key::new(network, mac))) {
            assert!(value.is_learnt() && self.remove(slot, value));
        }
    }
}

#[test]
fn addresses_are_found_whether_they_were_learnt_while_those_were_few_or_many() {
    let table = MacTable::new(4096, 300);
    let (few, many) = (NEAR as u32 / 2, 2000);
    let is_found = |number: u32| {
        let burst = table.burst(RED, A, at(1));
        let probe = burst.probe(mac(number).into());
        // The burst's way and the other one.
        burst.lookup(&probe) == Some(A) && table.lookup(RED, mac(number), at(1)) == Some(A)
    };
    let mut at_home = 0;
    for number in 0..many {
        let is_crowded = number > few;
        let burst = table.burst(RED, A, at(1));
        assert_eq!(burst.is_crowded, is_crowded, "{number} are learnt");
        let probe = burst.probe(mac(number).into());
        assert!(!burst.is_known(&probe));
        assert_eq!(burst.learn(&probe), Learned::New);
        at_home += u32::from(burst.is_known(&probe));
    }
    assert!(at_home > many * 9 / 10, "only {at_home} are at home");
    assert!((0..many).all(is_found));
    // Fewer again: those that are left stay where they are.
    let kept = many - few..many;
    (0..kept.start).for_each(|number| table.age_out(RED, mac(number)));
    assert_eq!(table.learnt(), few as usize);
    assert!(!table.burst(RED, A, at(1)).is_crowded);
    assert!(kept.clone().all(is_found) && !(0..kept.start).any(is_found));
    for number in kept {
        let burst = table.burst(RED, A, at(1));
        assert_eq!(burst.learn(&burst.probe(mac(number).into())), Learned::Known);
    }
    table.assert_sound();
}
