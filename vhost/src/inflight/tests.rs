//! Rings of plain words, a guest and a device that dies between any two of its stores.

use super::packed::*;
use super::split::*;
use super::*;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

const NEXT: u16 = 1;
/// Where a ring of both sides begins: entry 0, wrap counter 1.
const START: u16 = 0x8000;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// A packed ring and its guest.
struct PackedGuest {
    /// Id, flags and length of each entry.
    entries: RefCell<Vec<(u16, u16, u32)>>,
    size: u16,
    next: Place,
    seen: Place,
    room: u16,
    /// Entries of each chain under way, by its id.
    under_way: BTreeMap<u16, u16>,
    posted: usize,
    returned: usize,
    empty: usize,
}

impl PackedSlots for PackedGuest {
    fn id_and_flags(&self, index: u16) -> (u16, u16) {
        let (id, flags, _) = self.entries.borrow()[usize::from(index)];
        (id, flags)
    }

    fn is_blank(&self, index: u16) -> bool {
        self.entries.borrow()[usize::from(index)] == (0, 0, 0)
    }

    fn put_used(&self, index: u16, len: u32, id: u16, flags: u16) {
        self.entries.borrow_mut()[usize::from(index)] = (id, flags, len);
    }
}

impl PackedGuest {
    fn new(size: u16) -> PackedGuest {
        let start = Place::from_bits(START);
        PackedGuest {
            entries: RefCell::new(vec![(0, 0, 0); usize::from(size)]),
            size,
            next: start,
            seen: start,
            room: size,
            under_way: BTreeMap::new(),
            posted: 0,
            returned: 0,
            empty: 0,
        }
    }

    /// Makes a chain available, if there is room.
    fn post(&mut self, width: u16) {
        if self.room < width {
            return;
        }
        let id = (0..self.size).find(|id| !self.under_way.contains_key(id)).expect("an id for each entry");
        for at in 0..width {
            let link = if at + 1 < width { NEXT } else { 0 };
            let flags = link | if self.next.wrap { AVAIL } else { USED };
            self.entries.borrow_mut()[usize::from(self.next.index)] = (id, flags, 1000);
            self.next = self.next.plus(1, self.size);
        }
        self.room -= width;
        self.under_way.insert(id, width);
        self.posted += 1;
    }

    /// Takes what was given back, at most `max`; each must be under way.
    fn take(&mut self, max: usize) {
        for _ in 0..max {
            let (id, flags, len) = self.entries.borrow()[usize::from(self.seen.index)];
            if self.room == self.size || Look::of(flags, self.seen.wrap) != Look::Used {
                return;
            }
            let width = self.under_way.remove(&id).unwrap_or_else(|| panic!("{id} came back twice"));
            self.seen = self.seen.plus(width, self.size);
            self.room += width;
            self.returned += 1;
            self.empty += usize::from(len == 0);
        }
    }
}

/// How a device writes the used entries of a burst.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Habit {
    /// All but the first as it takes them, the first when it shows them.
    AtOnce,
    /// From the last to the first when it shows them.
    AtTheEnd,
    /// One entry for all, as with `VIRTIO_F_IN_ORDER`.
    InOrder,
}

/// A device that dies after a number of stores.
struct Device {
    record: PackedRecord,
    at: Place,
    stores_left: Cell<usize>,
}

impl Device {
    fn new(area: &Arc<Area>, guest: &PackedGuest, base: u16) -> (Device, Resumed) {
        let record = PackedRecord::new(area.clone(), 0, guest.size).unwrap();
        let resumed = record.start(guest, base).unwrap();
        (Device { record, at: Place::from_bits(resumed.position), stores_left: Cell::new(usize::MAX) }, resumed)
    }

    fn store(&self, store: impl FnOnce()) {
        if self.stores_left.get() > 0 {
            self.stores_left.set(self.stores_left.get() - 1);
            store();
        }
    }

    /// One burst of at most `max` chains.
    fn burst(&mut self, guest: &PackedGuest, max: usize, habit: Habit) {
        let (start, mut chains) = (self.at, Vec::new());
        while chains.len() < max {
            let head = self.at;
            let (mut id, flags) = guest.id_and_flags(head.index);
            if Look::of(flags, head.wrap) != Look::Available || chains.first() == Some(&(head, id)) {
                break;
            }
            let (mut width, mut link) = (1, flags & NEXT);
            while link != 0 {
                (id, link) = guest.id_and_flags(head.plus(width, guest.size).index);
                (width, link) = (width + 1, link & NEXT);
            }
            self.store(|| self.record.took(head.index, width));
            self.at = head.plus(width, guest.size);
            if habit == Habit::AtOnce && !chains.is_empty() {
                self.store(|| guest.put_used(head.index, 7, id, used_flags(head.wrap)));
            }
            chains.push((head, id));
        }
        let Some(&(first, id)) = chains.first() else { return };
        let (last, last_id) = *chains.last().unwrap();
        let last = if habit == Habit::InOrder { first } else { last };
        self.store(|| self.record.showing(start.to_bits(), self.at.to_bits()));
        if habit == Habit::AtTheEnd {
            for &(head, id) in chains[1..].iter().rev() {
                self.store(|| guest.put_used(head.index, 7, id, used_flags(head.wrap)));
            }
        }
        let id = if habit == Habit::InOrder { last_id } else { id };
        self.store(|| guest.put_used(first.index, 7, id, used_flags(first.wrap)));
        self.store(|| self.record.shown(last.to_bits(), self.at.to_bits()));
    }
}

fn area(len: usize) -> Arc<Area> {
    Arc::new(Area::create(len as u64).unwrap().1)
}

/// A guest and a device that have been at it for a while.
fn busy(random: &mut Random, habit: Habit, width_max: u64) -> (Arc<Area>, PackedGuest, Device) {
    let size = [4, 7, 16, 33][random.below(4) as usize];
    let area = area(region_len(true, size));
    let mut guest = PackedGuest::new(size);
    let (mut device, resumed) = Device::new(&area, &guest, START);
    assert_eq!((resumed.position, resumed.is_recorded), (START, false));
    for _ in 0..random.below(40) {
        step(random, &mut guest, &mut device, habit, width_max);
    }
    (area, guest, device)
}

fn step(random: &mut Random, guest: &mut PackedGuest, device: &mut Device, habit: Habit, width_max: u64) {
    for _ in 0..random.below(6) {
        guest.post(1 + random.below(width_max) as u16);
    }
    device.burst(guest, 1 + random.below(5) as usize, habit);
    guest.take(random.below(6) as usize);
}

#[test]
fn a_device_that_dies_between_any_two_stores_leaks_no_buffer_and_returns_none_twice() {
    let (mut lost, mut recorded) = (0, 0);
    for seed in 1..4000u64 {
        for (habit, width_max) in [(Habit::AtOnce, 1), (Habit::AtOnce, 3), (Habit::AtTheEnd, 1), (Habit::AtTheEnd, 3)] {
            let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let (area, mut guest, mut device) = busy(&mut random, habit, width_max);
            // A number of deaths, one after another, each in the middle of something.
            for _ in 0..3 {
                guest.post(1 + random.below(width_max) as u16);
                device.stores_left.set(random.below(14) as usize);
                device.burst(&guest, 1 + random.below(5) as usize, habit);
                let died_at = device.at;
                if random.below(2) == 0 {
                    guest.take(random.below(6) as usize);
                    guest.post(1 + random.below(width_max) as u16);
                }
                // The frontend knows nothing new.
                let (next, resumed) = Device::new(&area, &guest, START);
                assert!(resumed.given_back <= 5, "seed {seed}: a burst at most");
                assert!(resumed.is_recorded || guest.returned == 0, "seed {seed} {habit:?}: {resumed:?}");
                lost += u64::from(resumed.given_back);
                recorded += u64::from(resumed.is_recorded);
                let is_ahead = next.at == died_at || resumed.given_back > 0 || device.stores_left.get() == 0;
                assert!(is_ahead, "seed {seed} {habit:?}: one that did not die goes on where it was");
                device = next;
                step(&mut random, &mut guest, &mut device, habit, width_max);
            }
            for _ in 0..200 {
                device.burst(&guest, 5, habit);
                guest.take(100);
            }
            assert_eq!(guest.returned, guest.posted, "seed {seed} {habit:?}: all are back, each once");
            assert_eq!(guest.room, guest.size, "seed {seed} {habit:?}");
        }
    }
    assert!(lost > 500 && recorded > 10_000, "deaths were tried in the middle: {lost} {recorded}");
}

#[test]
fn a_guest_that_began_anew_while_no_switch_ran_is_served_from_the_beginning() {
    let (mut tried, mut mistaken) = (0, 0);
    for seed in 1..4000u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for (habit, width_max) in [(Habit::AtOnce, 1), (Habit::AtTheEnd, 3)] {
            let (area, old, mut device) = busy(&mut random, habit, width_max);
            device.stores_left.set(random.below(14) as usize);
            device.burst(&old, 5, habit);
            let mut guest = PackedGuest::new(old.size);
            for _ in 0..random.below(40) {
                guest.post(1 + random.below(width_max) as u16);
            }
            let word = area.word64(PACKED_STANDING).load(Ordering::Relaxed);
            let standing = Standing::from_word(word, old.size).unwrap();
            let (_, resumed) = Device::new(&area, &guest, START);
            if (resumed.position, resumed.given_back) != (START, 0) {
                // The one case that cannot be told: the last chain, or an unconfirmed burst, went around the ring's end.
                assert!(standing.last.wrap != standing.new.wrap, "seed {seed} {habit:?}: {standing:?} {resumed:?}");
                mistaken += 1;
            }
            tried += 1;
        }
    }
    assert!(mistaken * 20 < tried, "{mistaken} of {tried}");
}

#[test]
fn one_used_entry_for_a_whole_burst_is_shown_or_not() {
    for died_after in 0..=6 {
        let area = area(region_len(true, 8));
        let mut guest = PackedGuest::new(8);
        let (mut device, _) = Device::new(&area, &guest, START);
        for _ in 0..2 {
            guest.post(1);
        }
        device.burst(&guest, 2, Habit::InOrder);
        for _ in 0..3 {
            guest.post(1);
        }
        // Three chains taken, then: showing, the entry, shown.
        device.stores_left.set(died_after);
        device.burst(&guest, 3, Habit::InOrder);
        let (_, resumed) = Device::new(&area, &guest, START);
        let expected = if died_after >= 5 { START + 5 } else { START + 2 };
        assert_eq!(resumed, Resumed { position: expected, given_back: 0, is_recorded: true }, "after {died_after}");
    }
}

#[test]
fn noise_in_a_record_is_survived() {
    let mut random = Random(0x1234_5678_9abc_def1);
    for round in 0..20_000 {
        let size = [1u16, 4, 8][round % 3];
        let area = area(region_len(true, size).max(region_len(false, size)));
        for at in (0..area.len()).step_by(8) {
            area.word64(at).store(random.below(u64::MAX) >> random.below(60), Ordering::Relaxed);
        }
        if round % 2 == 0 {
            area.word64(0).store(0, Ordering::Relaxed);
            area.word64(8).store(from_halves([1, size, random.below(9) as u16, 3]), Ordering::Relaxed);
        }
        let guest = PackedGuest::new(size);
        for entry in guest.entries.borrow_mut().iter_mut() {
            entry.1 = random.below(0x1_0000) as u16;
        }
        let record = PackedRecord::new(area.clone(), 0, size).unwrap();
        if let Ok(resumed) = record.start(&guest, START) {
            assert!(Place::from_bits(resumed.position).index < size);
            // And what is written there now is whole.
            let again = record.start(&guest, START).unwrap();
            assert!(Place::from_bits(again.position).index < size);
        }
        let split = SplitRecord::new(area, 0, size).unwrap();
        let _ = split.start(&SplitGuest::new(size));
    }
}

/// A split ring of plain words.
struct SplitGuest {
    used: Cell<u16>,
    available: Vec<u16>,
    given: RefCell<Vec<(u16, u16, u32)>>,
}

impl SplitGuest {
    fn new(size: u16) -> SplitGuest {
        SplitGuest { used: Cell::new(0), available: (0..size).collect(), given: RefCell::default() }
    }
}

impl SplitSlots for SplitGuest {
    fn used_index(&self) -> u16 {
        self.used.get()
    }

    fn available_entry(&self, position: u16) -> u16 {
        self.available[usize::from(position) % self.available.len()]
    }

    fn put_used(&self, position: u16, head: u16, len: u32) {
        self.given.borrow_mut().push((position, head, len));
    }

    fn publish_used(&self, position: u16) {
        self.used.set(position);
    }
}

/// An area in which another backend noted these heads as taken, in this order, and showed `used` entries so far.
fn split_area(size: u16, taken: &[u16], used: u16) -> Arc<Area> {
    let area = area(region_len(false, size));
    area.word64(8).store(from_halves([VERSION, size, 0, used]), Ordering::Relaxed);
    for (counter, head) in (0u64..).zip(taken) {
        let entry = SPLIT_ENTRIES + SPLIT_ENTRY * usize::from(*head);
        area.word16(entry).store(u16::from_ne_bytes([1, 0]), Ordering::Relaxed);
        area.word64(entry + SPLIT_COUNTER).store(counter, Ordering::Relaxed);
    }
    area
}

#[test]
fn a_split_ring_takes_again_what_is_next_anyway_and_returns_what_is_not() {
    let guest = SplitGuest::new(8);
    let in_order = SplitRecord::new(split_area(8, &[0, 1, 2], 0), 0, 8).unwrap();
    let resumed = in_order.start(&guest).unwrap();
    assert_eq!(resumed, Resumed { position: 0, given_back: 0, is_recorded: true });
    assert!(guest.given.borrow().is_empty());

    // Head 1 was finished before heads 0 and 2.
    guest.used.set(1);
    let area = split_area(8, &[0, 2], 1);
    let record = SplitRecord::new(area.clone(), 0, 8).unwrap();
    assert_eq!(record.start(&guest).unwrap(), Resumed { position: 3, given_back: 2, is_recorded: true });
    assert_eq!((guest.given.take(), guest.used.get()), (vec![(1, 0, 0), (2, 2, 0)], 3));
    // And they are struck off.
    assert_eq!(SplitRecord::new(area, 0, 8).unwrap().start(&guest).unwrap().given_back, 0);
}

#[test]
fn a_batch_that_was_shown_and_not_struck_off_is_not_returned_again() {
    // Heads 4 and 6 were shown as the last batch, and 5 is still taken.
    let area = split_area(8, &[4, 6, 5], 0);
    area.word16(SPLIT_BATCH).store(4, Ordering::Relaxed);
    area.word16(SPLIT_ENTRIES + 4 * SPLIT_ENTRY + SPLIT_NEXT).store(6, Ordering::Relaxed);
    let guest = SplitGuest::new(8);
    guest.used.set(2);
    let resumed = SplitRecord::new(area, 0, 8).unwrap().start(&guest).unwrap();
    assert_eq!((resumed.given_back, guest.given.take()), (1, vec![(2, 5, 0)]));
}

#[test]
fn what_another_backend_had_taken_of_a_packed_ring_is_returned() {
    let area = area(region_len(true, 8));
    let mut guest = PackedGuest::new(8);
    for width in [1, 1, 3, 1] {
        guest.post(width);
    }
    guest.put_used(0, 9, 0, used_flags(true));
    guest.take(1);
    // It stands behind the first chain, which it gave back; of the others it had taken the second and the third.
    area.word64(8).store(from_halves([VERSION, 8, 0, 0]), Ordering::Relaxed);
    let (at, start) = (Place { index: 1, wrap: true }, Place { index: 0, wrap: true });
    area.word64(PACKED_STANDING).store(Standing { new: at, old: at, last: start }.to_word(), Ordering::Relaxed);
    for (entry, last, width, id, counter) in [(3, 5, 3, 2, 11u64), (6, 6, 1, 1, 10)] {
        let at = |entry: usize| PACKED_ENTRIES + PACKED_ENTRY * entry;
        area.word16(at(entry)).store(u16::from_ne_bytes([1, 0]), Ordering::Relaxed);
        area.word16(at(entry) + PACKED_LAST).store(last, Ordering::Relaxed);
        area.word16(at(entry) + PACKED_WIDTH).store(width, Ordering::Relaxed);
        area.word64(at(entry) + PACKED_COUNTER).store(counter, Ordering::Relaxed);
        area.word16(at(usize::from(last)) + PACKED_ID).store(id, Ordering::Relaxed);
    }
    let (mut device, resumed) = Device::new(&area, &guest, START);
    assert_eq!(resumed, Resumed { position: START + 5, given_back: 2, is_recorded: true });
    guest.take(9);
    assert_eq!((guest.returned, guest.empty), (3, 2));
    device.burst(&guest, 9, Habit::AtOnce);
    guest.take(9);
    assert_eq!(guest.returned, guest.posted);
}

#[test]
fn records_of_another_version_or_ring_are_refused_with_their_name() {
    let area = area(region_len(true, 8));
    let start = |version, size, features: u64| {
        area.word64(0).store(features, Ordering::Relaxed);
        area.word64(8).store(from_halves([version, size, 0, 0]), Ordering::Relaxed);
        let split = SplitRecord::new(area.clone(), 0, 8).unwrap().start(&SplitGuest::new(8));
        let packed = PackedRecord::new(area.clone(), 0, 8).unwrap().start(&PackedGuest::new(8), START);
        assert_eq!(split.err(), packed.err());
        split.err()
    };
    assert_eq!(start(2, 8, 0), Some(RecordError::Unknown { version: 2, features: 0 }));
    assert_eq!(start(1, 8, 4), Some(RecordError::Unknown { version: 1, features: 4 }));
    assert_eq!(start(1, 16, 0), Some(RecordError::OtherSize { given: 16, wanted: 8 }));
    assert_eq!(start(0, 16, 0), None, "never used");
    for (start, size) in [(0, 11), (64, 8), (1, 4), (usize::MAX - 63, 4)] {
        assert!(matches!(PackedRecord::new(area.clone(), start, size), Err(RecordError::TooShort)), "{start}");
    }
}
