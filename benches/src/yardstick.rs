//! The yardstick: the least that can be done to carry frames between two guests with one copy.
//!
//! What it keeps of a switch is what nobody may leave out: each descriptor is read once and checked, the front of a frame is
//! copied to private memory before its address is believed, the destination is looked up, and where the receiver has no
//! room the frame is dropped. What it leaves out is the rest: learning, isolation, counters, interrupts, a list of stages,
//! more than two ports, frames of several buffers from the sender. So a switch that comes near it wastes little, and what
//! lies between is the price of being one.
//!
//! The protocol is that of the switch's own ports ([`Seat`] is where a session puts its rings); only the loop is its own. It
//! owns the positions of the rings it runs and must be their only user. One thread; it allocates nothing but at its start.

use crate::rig::station;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use switch::batch::BURST;
use switch::offload::VNET_HEADER_MRG_LEN;
use switch::packet::HEAD_COPY;
use switch::port::{Place, Port};
use switch::segment::{Segment, prefetch};
use vhost::chain::{Buffer, Chain, Direction, WRITE};
use vhost::memory::{GuestMemory, RegionHint};
use vhost::port::{FRAME_CHAINS_MAX, FRAME_MAX, RingSet, Rings};
use vhost::ring::{Entry, Layout, Taken};

/// Bytes of a frame that are copied before it is looked at, with its virtio header.
const FRONT: usize = VNET_HEADER_MRG_LEN + HEAD_COPY;
/// The shortest frame has an Ethernet header.
const LEN_MIN: u32 = VNET_HEADER_MRG_LEN as u32 + 14;
const LEN_MAX: u32 = (VNET_HEADER_MRG_LEN + FRAME_MAX) as u32;
/// The first pair's rings by their numbers in the protocol.
const RECEIVE: usize = 0;
const SEND: usize = 1;

/// MAC address to port: a flat table at most half full, with linear probing.
pub struct FlatMacs {
    /// The address in the upper 48 bits, the port and one in the lower 16; 0 is empty.
    slots: Box<[u64]>,
    shift: u32,
}

impl FlatMacs {
    /// A table of these addresses.
    pub fn new(addresses: impl ExactSizeIterator<Item = ([u8; 6], u16)>) -> FlatMacs {
        let size = (2 * addresses.len()).next_power_of_two().max(2);
        let mut table = FlatMacs { slots: vec![0; size].into(), shift: u64::BITS - size.trailing_zeros() };
        for (mac, port) in addresses {
            let mac = number(&mac);
            let mut at = table.home(mac);
            while table.slots[at] != 0 {
                at = (at + 1) % size;
            }
            table.slots[at] = mac << 16 | u64::from(port + 1);
        }
        table
    }

    /// A table of that many stations of ports 0 and 1 each.
    pub fn of_stations(count: u32) -> FlatMacs {
        let stations = |port: u16| (0..count).map(move |number| (station(port.into(), number), port));
        FlatMacs::new([0, 1].into_iter().flat_map(stations).collect::<Vec<_>>().into_iter())
    }

    #[inline]
    fn home(&self, mac: u64) -> usize {
        (mac.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize
    }

    #[inline]
    fn lookup(&self, mac: u64, home: usize) -> Option<usize> {
        let mut at = home;
        loop {
            let slot = *self.slots.get(at)?;
            if slot >> 16 == mac && slot != 0 {
                return Some((slot as u16 - 1).into());
            }
            if slot == 0 {
                return None;
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }
}

/// An address as a number. In two loads, each inside one of the stores that copied it, so that neither has to wait for them.
#[inline]
fn number(mac: &[u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = *mac;
    u64::from(u32::from_ne_bytes([a, b, c, d])) << 16 | u64::from(u16::from_ne_bytes([e, f]))
}

/// The private front of a frame: virtio header and head.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Front([u8; FRONT]);

/// A frame that was taken: where it lies, and where its address would be in the table.
#[derive(Clone, Copy, Default)]
struct Frame {
    address: u64,
    len: u32,
    mac: u64,
    home: usize,
}

/// How far one ring is.
struct Lane<L: Layout> {
    place: L::Place,
    hint: RegionHint,
}

impl<L: Layout> Lane<L> {
    /// Where ring `number` of a guest stands.
    fn new(guest: &RingSet<L>, number: usize) -> Option<Lane<L>> {
        let place = guest.bare(number)?.resume(guest.position(number)?).ok()?;
        Some(Lane { place, hint: RegionHint::default() })
    }
}

/// The loop and what it remembers of two guests, 0 and 1, whose rings have the layout `L`.
pub struct Yardstick<L: Layout> {
    macs: Arc<FlatMacs>,
    send: [Lane<L>; 2],
    receive: [Lane<L>; 2],
    entries: [Entry; BURST],
    fronts: Box<[Front; BURST]>,
    frames: [Frame; BURST],
    chain: Chain,
    rooms: Vec<Room>,
}

impl<L: Layout> Yardstick<L> {
    /// Begins where the guests' rings stand; `None` if one of them is not there.
    pub fn new(macs: Arc<FlatMacs>, guests: [&RingSet<L>; 2]) -> Option<Yardstick<L>> {
        let lanes = |number| Some([Lane::new(guests[0], number)?, Lane::new(guests[1], number)?]);
        Some(Yardstick {
            macs,
            send: lanes(SEND)?,
            receive: lanes(RECEIVE)?,
            entries: [Entry::default(); BURST],
            fronts: Box::new([Front([0; FRONT]); BURST]),
            frames: [Frame::default(); BURST],
            chain: Chain::default(),
            rooms: Vec::with_capacity(FRAME_CHAINS_MAX),
        })
    }

    /// One burst from each guest to the other; answers how many frames were taken.
    #[inline]
    pub fn step(&mut self, guests: [&RingSet<L>; 2]) -> usize {
        if !guests.iter().all(|guest| guest.is_running()) {
            return 0;
        }
        self.forward(0, guests) + self.forward(1, guests)
    }

    /// One burst from guest `from` to the other.
    #[inline]
    pub fn forward(&mut self, from: usize, guests: [&RingSet<L>; 2]) -> usize {
        let (taken, good) = self.take(from, guests);
        if taken > 0 {
            self.give(from, good, guests);
            self.give_back(from, guests);
        }
        taken
    }

    /// The first part: copies the fronts of a burst and sends for the table's lines. Answers how many frames were taken, and
    /// how many of them are whole.
    #[inline]
    pub fn take(&mut self, from: usize, guests: [&RingSet<L>; 2]) -> (usize, usize) {
        let Some(ring) = guests[from].bare(SEND) else { return (0, 0) };
        let (lane, memory) = (&mut self.send[from], ring.memory());
        // A guest that announces more than its ring holds gets nothing.
        let count = ring.look(&mut lane.place, &mut self.entries).unwrap_or(0);
        for entry in &self.entries[..count] {
            memory.prefetch(&mut lane.hint, entry.address);
        }
        let mut good = 0;
        for entry in &self.entries[..count] {
            let Entry { address, len, flags, .. } = *entry;
            if !entry.is_alone() {
                let mut cursor = ring.cursor(&lane.place);
                let direction = Direction::FromGuest;
                let walked = ring.walk(&mut lane.place, &mut cursor, &mut lane.hint, direction, &mut self.chain);
                let Ok(Some((taken, _))) = walked else { break };
                ring.take(&mut lane.place, taken, 0);
                continue;
            }
            ring.take(&mut lane.place, entry.alone(), 0);
            let is_frame = flags & WRITE == 0 && (LEN_MIN..=LEN_MAX).contains(&len);
            let buffer = memory.readable(&mut lane.hint, address, len);
            let Some(buffer) = buffer.filter(|buffer| is_frame && buffer.len() == len) else { continue };
            let front = &mut self.fronts[good].0;
            if len as usize >= FRONT {
                buffer.read(front);
            } else {
                buffer.read(&mut front[..len as usize]);
            }
            // Long before the front is read again by words: a load that spans two stores waits for both to land.
            front[VNET_HEADER_MRG_LEN - 2..VNET_HEADER_MRG_LEN].copy_from_slice(&1u16.to_le_bytes());
            let mac = number(front[VNET_HEADER_MRG_LEN..].first_chunk().expect("the front is longer"));
            let home = self.macs.home(mac);
            if let Some(slot) = self.macs.slots.get(home) {
                prefetch(std::ptr::from_ref(slot).cast());
            }
            self.frames[good] = Frame { address, len, mac, home };
            good += 1;
        }
        (count, good)
    }

    /// The second part: finds out where each frame goes, writes it there and shows it to the receiver.
    #[inline]
    pub fn give(&mut self, from: usize, good: usize, guests: [&RingSet<L>; 2]) {
        let to = 1 - from;
        let (Some(source), Some(ring)) = (guests[from].bare(SEND), guests[to].bare(RECEIVE)) else { return };
        let (lane, memory) = (&mut self.receive[to], ring.memory());
        let ready = ring.look(&mut lane.place, &mut self.entries[..good]).unwrap_or(0);
        for entry in &self.entries[..ready] {
            memory.prefetch_to_write(&mut lane.hint, entry.address);
        }
        let mut at = 0;
        for (Front(front), frame) in self.fronts[..good].iter().zip(&self.frames) {
            let len = frame.len;
            if self.macs.lookup(frame.mac, frame.home) != Some(to) {
                continue;
            }
            if let Some(entry) = self.entries[..ready].get(at)
                && entry.is_alone()
                && entry.flags & WRITE != 0
                && entry.len >= len
                && let Some(mut room) = memory.writable(&mut lane.hint, entry.address, len)
                && room.len() == len
            {
                if len as usize > FRONT {
                    room.write(front);
                    room.write_from(&tail(source.memory(), &mut self.send[from].hint, frame));
                } else {
                    room.write(&front[..len as usize]);
                }
                ring.take(&mut lane.place, entry.alone(), len);
                at += 1;
            } else {
                let tail = tail(source.memory(), &mut self.send[from].hint, frame);
                at += merge(ring, lane, &mut self.chain, &mut self.rooms, (front, tail, len));
            }
        }
        // Whether the receiver wants to be interrupted is found out, as it must be, and then left at that.
        ring.show::<false>(&mut lane.place);
    }

    /// The last part: shows the sender that its buffers are free.
    #[inline]
    pub fn give_back(&mut self, from: usize, guests: [&RingSet<L>; 2]) {
        if let Some(ring) = guests[from].bare(SEND) {
            ring.show::<true>(&mut self.send[from].place);
        }
    }
}

/// What of a frame lies behind its front.
#[inline]
fn tail<'m>(memory: &'m GuestMemory, hint: &mut RegionHint, frame: &Frame) -> Segment<'m> {
    let behind = frame.len.saturating_sub(FRONT as u32);
    let tail = memory.readable(hint, frame.address + FRONT as u64, behind).filter(|_| behind > 0);
    tail.unwrap_or(Segment::from(&[][..]))
}

/// A buffer of the receiver's that one frame will fill a part of.
#[derive(Clone, Copy)]
struct Room {
    taken: Taken,
    address: u64,
    len: u32,
}

/// Writes a frame, given by its front, tail and length, into as many buffers as it takes; answers how many. Drops it if there
/// are not enough, or if one of them is cut up.
#[inline(never)]
fn merge<L: Layout>(
    ring: &L,
    lane: &mut Lane<L>,
    chain: &mut Chain,
    rooms: &mut Vec<Room>,
    (front, mut tail, len): (&[u8; FRONT], Segment<'_>, u32),
) -> usize {
    if ring.room(&lane.place) < FRAME_CHAINS_MAX {
        ring.show::<false>(&mut lane.place);
    }
    let Lane { place, hint } = lane;
    let mut cursor = ring.cursor(place);
    let mut missing = len;
    rooms.clear();
    while missing > 0 {
        let walked = ring.walk(place, &mut cursor, hint, Direction::ToGuest, chain);
        let (Ok(Some((taken, Ok(())))), true) = (walked, rooms.len() < FRAME_CHAINS_MAX) else { return 0 };
        let &[Buffer { address, len }] = chain.buffers() else { return 0 };
        let room = ring.memory().writable(hint, address, len.min(missing));
        let Some(room) = room.filter(|room| !room.is_empty() && room.len() == len.min(missing)) else { return 0 };
        missing -= room.len();
        rooms.push(Room { taken, address, len: room.len() });
    }
    let mut front = *front;
    front[VNET_HEADER_MRG_LEN - 2..VNET_HEADER_MRG_LEN].copy_from_slice(&(rooms.len() as u16).to_le_bytes());
    let mut rest = &front[..FRONT.min(len as usize)];
    for &Room { taken, address, len } in &*rooms {
        let Some(mut room) = ring.memory().writable(hint, address, len) else { return 0 };
        rest = &rest[room.write(rest)..];
        tail = tail.skip(room.write_from(&tail));
        ring.take(place, taken, len);
    }
    rooms.len()
}

/// Where a session puts the rings of a guest, for a loop that looks there now and then.
#[derive(Default)]
pub struct Seat {
    rings: Mutex<Option<Arc<dyn Port>>>,
    /// Sessions that wait for the rings to be let go of.
    waiting: AtomicU32,
}

impl Seat {
    /// The rings, until the guard is dropped: soon, if [`Seat::is_wanted`]. Their session waits meanwhile.
    pub fn hold(&self) -> MutexGuard<'_, Option<Arc<dyn Port>>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the session wants to change them.
    #[inline]
    pub fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    fn put(&self, rings: Option<Arc<dyn Port>>) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let before = std::mem::replace(&mut *self.hold(), rings);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        drop(before);
    }
}

impl Place for Seat {
    fn publish(&self, port: Arc<dyn Port>) {
        self.put(Some(port));
    }

    fn withdraw(&self) {
        self.put(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rig::{Bare, OFFER, frames};
    use vhost::ring::{PackedRing, SplitRing};

    fn frames_arrive_as_they_were_sent<L: Layout>() {
        for len in [60, 128, 129, 1514, 9000, 65_000] {
            let Bare::<L> { guests: [mut one, mut other], rings, mut yardstick } = Bare::new(len);
            let sent = frames(0, 1, len);
            let mut got = Vec::new();
            for _ in 0..10 {
                one.driver.sender.post(16);
                assert_eq!(yardstick.step([&rings[0], &rings[1]]), 16);
                other.driver.receiver.recv_burst(16, |_, frame| got.push(frame.to_vec()));
            }
            assert!(got.iter().eq(&sent[..160]), "{} of {len} bytes", got.len());
        }
    }

    #[test]
    fn frames_of_every_size_arrive_as_they_were_sent_in_split_rings() {
        frames_arrive_as_they_were_sent::<SplitRing>();
    }

    #[test]
    fn frames_of_every_size_arrive_as_they_were_sent_in_packed_rings() {
        frames_arrive_as_they_were_sent::<PackedRing>();
    }

    fn the_sender_never_waits<L: Layout>() {
        let Bare::<L> { guests: [mut one, mut other], rings, mut yardstick } = Bare::new(60);
        let mut taken = 0;
        for _ in 0..100 {
            one.offer();
            taken += yardstick.step([&rings[0], &rings[1]]);
        }
        assert_eq!(taken, 100 * usize::from(OFFER));
        assert_eq!(other.driver.receiver.drain(u16::MAX).0, 1024, "a ring of 1024");
    }

    #[test]
    fn what_finds_no_room_is_dropped_and_its_buffer_comes_back() {
        the_sender_never_waits::<SplitRing>();
        the_sender_never_waits::<PackedRing>();
    }

    #[test]
    fn a_frame_to_nobody_is_dropped() {
        let Bare::<SplitRing> { guests: [mut one, mut other], rings, mut yardstick } = Bare::new(60);
        one.driver.sender.fill_all(&frames(0, 7, 60));
        one.offer();
        assert_eq!(yardstick.step([&rings[0], &rings[1]]), usize::from(OFFER));
        assert_eq!(other.take(), 0);
    }
}
