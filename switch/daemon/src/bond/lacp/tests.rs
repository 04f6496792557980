//! Two systems over wires that are cut, crossed and silent, in time that passes by itself.

use super::*;
use proptest::prelude::*;

const STEP: Duration = Duration::from_millis(100);

/// Two ends and the wires between their links.
struct World {
    ends: [Lacp; 2],
    now: Instant,
    /// By link: whether frames pass, which the carrier does not tell.
    passes: [bool; 2],
    sent: usize,
}

impl World {
    fn new(rates: [Rate; 2]) -> World {
        let now = Instant::now();
        let mut ends =
            [(1, rates[0]), (2, rates[1])].map(|(last, rate)| Lacp::new(MacAddr([2, 0, 0, 0, 0, last]), 2, rate));
        ends.iter_mut().for_each(|end| (0..2).for_each(|link| end.set_link(link, true, now)));
        World { ends, now, passes: [true; 2], sent: 0 }
    }

    fn step(&mut self) {
        self.now += STEP;
        for from in 0..2 {
            for (link, pdu) in self.ends[from].tick(self.now) {
                self.sent += 1;
                if self.passes[link] {
                    self.ends[1 - from].heard(link, &pdu, self.now);
                }
            }
        }
    }

    /// Lets so much time pass.
    fn pass(&mut self, time: Duration) {
        (0..time.as_millis() / STEP.as_millis()).for_each(|_| self.step());
    }

    fn usable(&self) -> [[Links; 2]; 2] {
        [self.ends[0].usable(), self.ends[1].usable()]
    }
}

#[test]
fn both_ends_come_to_use_all_links_and_are_quiet_then() {
    for rates in [[Rate::Fast; 2], [Rate::Slow; 2], [Rate::Fast, Rate::Slow]] {
        let mut world = World::new(rates);
        assert_eq!(world.usable(), [[0; 2]; 2]);
        world.pass(Duration::from_secs(4));
        assert_eq!(world.usable(), [[0b11; 2]; 2], "{rates:?}");
        world.sent = 0;
        world.pass(Duration::from_secs(60));
        // Each end is asked to speak at the rate of the other.
        let expected: usize = rates.iter().map(|rate| 2 * if *rate == Rate::Fast { 60 } else { 2 }).sum();
        assert!(world.sent.abs_diff(expected) <= 4, "{} sent, about {expected} expected", world.sent);
        assert_eq!(world.usable(), [[0b11; 2]; 2]);
    }
}

#[test]
fn a_link_that_loses_its_carrier_is_left_at_once_and_used_again_when_it_is_back() {
    let mut world = World::new([Rate::Slow; 2]);
    world.pass(Duration::from_secs(4));
    let now = world.now;
    world.ends.iter_mut().for_each(|end| end.set_link(0, false, now));
    assert_eq!(world.usable(), [[0b10; 2]; 2], "before anything is sent");
    world.pass(Duration::from_secs(1));
    assert_eq!(world.usable(), [[0b10; 2]; 2]);
    let now = world.now;
    assert!(world.ends.iter().all(|end| end.next(now) > Some(now)), "nothing is to be done about a link that is down");
    world.ends.iter_mut().for_each(|end| end.set_link(0, true, now));
    world.pass(Duration::from_secs(5));
    assert_eq!(world.usable(), [[0b11; 2]; 2]);
}

#[test]
fn a_link_that_is_silent_is_left_after_the_timeout() {
    let mut world = World::new([Rate::Fast; 2]);
    world.pass(Duration::from_secs(4));
    world.passes[1] = false;
    world.pass(Duration::from_millis(1900));
    assert_eq!(world.usable(), [[0b11; 2]; 2], "one that was late");
    world.pass(Duration::from_millis(1300));
    assert_eq!(world.usable(), [[0b01; 2]; 2]);
    // Half a minute later too; and back when it speaks again.
    world.pass(Duration::from_secs(30));
    assert_eq!(world.usable(), [[0b01; 2]; 2]);
    world.passes[1] = true;
    world.pass(Duration::from_secs(6));
    assert_eq!(world.usable(), [[0b11; 2]; 2]);
}

#[test]
fn nothing_is_sent_before_the_other_says_that_it_takes_frames_nor_after_it_says_that_it_does_not() {
    let mut world = World::new([Rate::Fast; 2]);
    world.pass(Duration::from_secs(4));
    let (now, end) = (world.now, &mut world.ends[0]);
    let mut pdu = Lacpdu { actor: end.links[0].partner, partner: end.links[0].actor };
    pdu.actor.state = pdu.actor.state.with(PortState::COLLECTING, false);
    end.heard(0, &pdu, now);
    end.tick(now);
    assert_eq!(end.usable(), [0b10, 0b11]);
    pdu.actor.state = pdu.actor.state.with(PortState::SYNCHRONIZATION, false);
    end.heard(0, &pdu, now);
    end.tick(now);
    assert_eq!(end.usable(), [0b10, 0b10]);
}

#[test]
fn of_two_partners_one_is_chosen_and_what_comes_from_ourselves_is_not_heard() {
    let now = Instant::now();
    let mut end = Lacp::new(MacAddr([2, 0, 0, 0, 0, 1]), 3, Rate::Fast);
    (0..3).for_each(|link| end.set_link(link, true, now));
    let state = PortState(0x3d);
    let partner = |last| PortInfo { system: MacAddr([2, 0, 0, 0, 0, last]), state, key: 7, ..PortInfo::default() };
    let mut at = now;
    let mut hear = |end: &mut Lacp, lasts: [u8; 3]| {
        for _ in 0..30 {
            at += STEP;
            for (link, last) in lasts.into_iter().enumerate() {
                let pdu = Lacpdu { actor: partner(last), partner: end.links[link].actor };
                end.heard(link, &pdu, at);
            }
            end.tick(at);
        }
        end.usable()
    };
    assert_eq!(hear(&mut end, [8, 9, 9]), [0b110; 2], "the one with most links");
    assert_eq!(hear(&mut end, [8, 9, 1])[0] & 0b100, 0, "a loop");
}

#[test]
fn a_partner_that_does_not_aggregate_is_used_by_one_link() {
    let now = Instant::now();
    let mut end = Lacp::new(MacAddr([2, 0, 0, 0, 0, 1]), 3, Rate::Fast);
    (0..3).for_each(|link| end.set_link(link, true, now));
    let state = PortState(0x3d).with(PortState::AGGREGATION, false);
    for step in 1..=30 {
        // By the first link nobody speaks.
        for link in 1..3 {
            let system = MacAddr([2, 0, 0, 0, 0, 9]);
            let actor = PortInfo { system, state, port: link as u16, ..PortInfo::default() };
            end.heard(link, &Lacpdu { actor, partner: end.links[link].actor }, now + STEP * step);
        }
        end.tick(now + STEP * step);
    }
    assert_eq!(end.usable(), [0b010; 2]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_a_stranger_says_the_links_are_used_in_order_and_few_frames_are_sent(
        heard in proptest::collection::vec((0usize..2, any::<(u16, u16, u16, u8)>(), any::<bool>(), 0u64..3000), 1..60),
    ) {
        let mut now = Instant::now();
        let mut end = Lacp::new(MacAddr([2, 0, 0, 0, 0, 1]), 2, Rate::Fast);
        (0..2).for_each(|link| end.set_link(link, true, now));
        let mut sent: Vec<(usize, Instant)> = Vec::new();
        for (link, (priority, key, port, state), knows_us, pause) in heard {
            now += Duration::from_millis(pause);
            let actor = PortInfo {
                system_priority: priority % 2,
                system: MacAddr([2, 0, 0, 0, 0, 2]),
                key: key % 2,
                port_priority: 0,
                port,
                state: PortState(state),
            };
            let partner = if knows_us { end.links[link].actor } else { PortInfo::default() };
            end.heard(link, &Lacpdu { actor, partner }, now);
            sent.extend(end.tick(now).into_iter().map(|(link, _)| (link, now)));
            let [sending, receiving] = end.usable();
            prop_assert_eq!(sending & !receiving, 0, "sends by a link that does not receive");
            prop_assert!(end.next(now).is_none_or(|next| next > now), "it is called again at once");
        }
        for (at, (link, first)) in sent.iter().enumerate() {
            let within = sent[at..].iter().filter(|(other, when)| other == link && *when < *first + FAST_PERIODIC);
            prop_assert!(within.count() <= SENT_MAX, "too many in a second");
        }
    }
}
