//! Which of the addresses learnt here other hosts are told. Pure.
//!
//! What is told is written to the shared store, and told to every host from there. A guest that sends from another address with
//! each frame must not fill it: of each interface some are told, those that were told stay as long as they are learnt, and who
//! goes on changing is told of ever more seldom, up to [`PAUSE_MAX`]. An interface that was quiet for a while is told of at once. So is
//! an address that has left: as long as it is told, others send there and take its own frames from elsewhere for forged. That is said
//! no more often than an address was told.

use api::model::InterfaceId;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use switch::ids::MacAddr;

/// How often the addresses learnt here are looked at.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// Learnt addresses of one interface that others are told; frames to more of them are flooded.
const LEARNT_MAX: usize = 16;
/// Shortest time between two changes of what is told of one interface, and the longest, but for addresses that have left.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(64);
/// Pauses that an interface must have been quiet for to be told of at once again.
const QUIET_PAUSES: u32 = 4;

/// What is told of every interface.
#[derive(Default)]
pub(super) struct Learnt {
    told: HashMap<InterfaceId, Told>,
    looked_at: Option<Instant>,
}

/// What is told of one.
struct Told {
    /// In order.
    macs: Vec<MacAddr>,
    changed_at: Instant,
    /// So long after that it may change again.
    pause: Duration,
}

impl Learnt {
    /// Whether it is time to look again.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.looked_at.is_none_or(|at| now.duration_since(at) >= LOOK_PAUSE)
    }

    /// Notes what is learnt of every interface there is.
    pub(super) fn note(&mut self, found: impl Iterator<Item = (InterfaceId, Vec<MacAddr>)>, now: Instant) {
        self.looked_at = Some(now);
        let mut before = std::mem::take(&mut self.told);
        for (interface, macs) in found {
            let told = match before.remove(&interface) {
                Some(told) => told.follow(macs, now),
                None if macs.is_empty() => None,
                None => Some(Told { macs: choose(&[], macs), changed_at: now, pause: PAUSE_MIN }),
            };
            self.told.extend(told.map(|told| (interface, told)));
        }
    }

    /// The addresses that are told of an interface, in order.
    pub(super) fn of(&self, interface: &str) -> &[MacAddr] {
        self.told.get(interface).map_or(&[], |told| &told.macs)
    }
}

impl Told {
    /// What is told now that these are learnt; `None`: nothing is, nor was for a while.
    fn follow(mut self, found: Vec<MacAddr>, now: Instant) -> Option<Told> {
        let quiet = now.duration_since(self.changed_at);
        if quiet < self.pause {
            self.macs.retain(|mac| found.contains(mac));
            return Some(self);
        }
        let macs = choose(&self.macs, found);
        let is_at_rest = quiet >= self.pause * QUIET_PAUSES;
        if macs == self.macs {
            return (!macs.is_empty() || !is_at_rest).then_some(self);
        }
        let pause = if is_at_rest { PAUSE_MIN } else { (self.pause * 2).min(PAUSE_MAX) };
        Some(Told { macs, changed_at: now, pause })
    }
}

/// Some of those found, in order: those that were told before, then others.
fn choose(before: &[MacAddr], mut found: Vec<MacAddr>) -> Vec<MacAddr> {
    found.sort_unstable_by_key(|mac| (before.binary_search(mac).is_err(), *mac));
    found.dedup();
    found.truncate(LEARNT_MAX);
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(number: u32) -> MacAddr {
        let [_, _, a, b] = number.to_be_bytes();
        MacAddr([2, 0, 0, 0, a, b])
    }

    /// How often what is told of one interface changes, of which each second the next of these is learnt.
    fn changes(learnt: &mut Learnt, from: Instant, seconds: impl Iterator<Item = Vec<MacAddr>>) -> usize {
        let mut count = 0;
        for (second, macs) in seconds.enumerate() {
            let before = learnt.of("a").to_vec();
            learnt.note([("a".into(), macs)].into_iter(), from + Duration::from_secs(second as u64));
            count += usize::from(learnt.of("a") != before);
        }
        count
    }

    #[test]
    fn who_changes_its_addresses_all_the_time_is_told_of_ever_more_seldom_and_at_once_after_a_rest() {
        let (mut learnt, begin) = (Learnt::default(), Instant::now());
        let count = changes(&mut learnt, begin, (0..600).map(|second| vec![mac(second)]));
        // Each that is told of is also told to have left.
        assert!((16..=32).contains(&count), "{count} in ten minutes");
        // It stays at one for as long as it was not told of.
        let later = begin + Duration::from_secs(600);
        assert!(changes(&mut learnt, later, (0..300).map(|_| vec![mac(7)])) <= 1);
        assert_eq!(learnt.of("a"), [mac(7)]);
        let later = later + Duration::from_secs(300);
        assert_eq!(changes(&mut learnt, later, [vec![mac(8)]].into_iter()), 1);
        // Nothing is left of who is gone.
        let later = later + Duration::from_secs(300);
        assert_eq!(changes(&mut learnt, later, (0..300).map(|_| Vec::new())), 1);
        assert!(learnt.told.is_empty());
    }

    #[test]
    fn an_address_that_has_left_is_told_of_no_more_at_the_next_look_and_the_others_stay() {
        let (mut learnt, begin) = (Learnt::default(), Instant::now());
        changes(&mut learnt, begin, (0..100).map(|second| vec![mac(second), mac(200), mac(201)]));
        let later = begin + Duration::from_secs(100);
        assert_eq!(changes(&mut learnt, later, [vec![mac(99), mac(200)]].into_iter()), 1);
        assert!(learnt.of("a").contains(&mac(200)) && !learnt.of("a").contains(&mac(201)), "{:?}", learnt.of("a"));
        // It comes back when its turn has come.
        assert_eq!(changes(&mut learnt, later, [vec![mac(200), mac(201)]].into_iter()), 0);
    }

    #[test]
    fn of_many_addresses_some_are_told_and_those_stay() {
        let (mut learnt, begin) = (Learnt::default(), Instant::now());
        let many = |from: u32| (from..200).map(mac).collect::<Vec<_>>();
        // Every second one comes that is lower than all.
        assert_eq!(changes(&mut learnt, begin, (1..=100).rev().map(many)), 1);
        let told: Vec<MacAddr> = (100..116).map(mac).collect();
        assert_eq!(learnt.of("a"), told);
        // One of them goes, another comes in its place.
        let rest = begin + Duration::from_secs(900);
        let others = many(1).into_iter().filter(|it| *it != mac(100)).collect();
        assert_eq!(changes(&mut learnt, rest, [others].into_iter()), 1);
        assert_eq!((learnt.of("a").len(), learnt.of("a")[0]), (LEARNT_MAX, mac(1)));
    }

    #[test]
    fn it_is_looked_at_once_a_second() {
        let (mut learnt, begin) = (Learnt::default(), Instant::now());
        assert!(learnt.is_due(begin));
        learnt.note(std::iter::empty(), begin);
        assert!(!learnt.is_due(begin + Duration::from_millis(900)) && learnt.is_due(begin + LOOK_PAUSE));
    }
}
