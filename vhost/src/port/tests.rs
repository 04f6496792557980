//! What a guest's chains may cost a call, counted in descriptors that were read for it; and how often a call interrupts.

use super::*;
use crate::call::Calls;
use crate::chain::{CHAIN_MAX, Chain, Descriptor, Direction, INDIRECT, NEXT, WRITE};
use crate::memory::{DriverMemory, GuestMemory, RegionHint};
use crate::message::{RegionInfo, RingAddresses};
use crate::net::{F_MRG_RXBUF, F_VERSION_1};
use crate::ring::{QUEUE_SIZE_MAX, Terms};
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::OwnedFd;
use switch::batch::BURST;
use switch::offload::{Gso, GsoKind, Offload, OffloadClaim, PartialChecksum};
use switch::packet::{Headers, L3};
use switch::segment::Segment;

/// Bytes of guest memory.
const LEN: usize = 2 << 20;
/// Where its parts are: a ring of the largest size, its other two parts, an indirect table, and buffers.
const DESCRIPTORS: usize = 0;
const AVAILABLE: usize = 0x8_0000;
const USED_RING: usize = 0xa_0000;
const TABLE: usize = 0xf_0000;
const BUFFERS: usize = 0x10_0000;
/// Where it lies in the frontend's space.
const USER_BASE: u64 = 0x7000_0000;
const INGRESS: PortIndex = PortIndex(1);
const QUEUE: QueueIndex = QueueIndex(0);
/// The flag of a packed descriptor that is available on the first lap.
const AVAILABLE_NOW: u16 = 1 << 7;

/// A guest with one ring, and its memory.
struct Scene<L: Layout> {
    set: RingSet<L>,
    memory: DriverMemory,
    ring: usize,
    signals: Arc<OwnedFd>,
}

impl<L: Layout> Scene<L> {
    /// Ring 0 is what it receives by, ring 1 what it sends by.
    fn new(ring: usize, size: u16, features: u64) -> Scene<L> {
        let memory = DriverMemory::new(LEN, false).unwrap();
        let region = RegionInfo { guest_address: 0, size: LEN as u64, user_address: USER_BASE, file_offset: 0 };
        let guest = GuestMemory::map(&[region], &[memory.file().try_clone_to_owned().unwrap()]).unwrap();
        let user = |at: usize| USER_BASE + at as u64;
        let addresses = RingAddresses {
            index: ring as u32,
            flags: 0,
            descriptors: user(DESCRIPTORS),
            used: user(USED_RING),
            available: user(AVAILABLE),
            log: 0,
        };
        let found = L::find(Arc::new(guest), &addresses, size.into(), Terms::default()).unwrap();
        let base = if L::IS_PACKED { 0x8000 } else { 0 };
        let signals = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        let call = Calls::new(Arc::default()).call(ring, signals.try_clone().unwrap());
        let queue = Queue::new(found, base, ring as u8, None, Some(call)).unwrap();
        let alarm = Alarm::new(Arc::new(Wake::new().unwrap()));
        let set = RingSet::new([(ring, queue)], Dialect::new(features), alarm, Arc::default());
        set.switch(ring, Use::On);
        Scene { set, memory, ring, signals }
    }

    /// Writes an entry of the ring, or of a table.
    fn put(&self, at: usize, (low, high): (u64, u64)) {
        self.memory.word64(at).store(low, Ordering::Relaxed);
        self.memory.word64(at + 8).store(high, Ordering::Relaxed);
    }

    fn reads(&self) -> u64 {
        self.set.reads(self.ring)
    }

    fn is_broken(&self) -> bool {
        self.set.alarm.has(Fault::Ring(self.ring as u8))
    }

    /// Sends a burst of frames of 60 bytes to it; answers what became of them, and how many descriptors were read.
    fn send(&self, frames: usize) -> (Tally, u64) {
        let (mut batch, mut tally, before) = (Batch::new(), Tally::default(), self.reads());
        batch.clear(BURST, usize::MAX);
        for _ in 0..frames {
            let mut packet = batch.start(INGRESS, QUEUE).unwrap();
            packet.head(60).unwrap().fill(7);
            packet.commit(OffloadClaim::default());
        }
        let picks: Vec<u8> = (0..frames as u8).collect();
        self.set.tx(QUEUE, &mut batch, &picks, &mut tally);
        assert_eq!((tally.packets + tally.dropped) as usize, frames, "each is accounted for");
        (tally, self.reads() - before)
    }

    /// Takes a burst from it.
    fn receive(&self) -> (Tally, u64) {
        let (mut batch, mut tally, before) = (Batch::new(), Tally::default(), self.reads());
        batch.clear(BURST, usize::MAX);
        self.set.rx(INGRESS, QUEUE, &mut batch, &mut tally);
        drop(batch);
        self.set.rx_done(QUEUE);
        (tally, self.reads() - before)
    }

    fn interrupts(&self) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(&self.signals, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }
}

impl Scene<PackedRing> {
    /// Fills the ring with chains of `width` entries, as of the first lap; the last one is as long as is left.
    fn chains(&self, width: usize, size: usize, len: u32, flags: u16) {
        for index in 0..size {
            let link = if (index + 1).is_multiple_of(width) { 0 } else { NEXT };
            let flags = AVAILABLE_NOW | flags | link;
            let high = u64::from(len) | (index as u64) << 32 | u64::from(flags) << 48;
            self.put(DESCRIPTORS + 16 * index, (BUFFERS as u64, high));
        }
    }
}

impl Scene<SplitRing> {
    /// Makes every entry of the ring available, each an indirect table of these entries.
    fn tables(&self, size: u16, entries: &[Descriptor]) {
        for (index, entry) in entries.iter().enumerate() {
            self.put(TABLE + 16 * index, entry.to_words());
        }
        let table =
            Descriptor { address: TABLE as u64, len: 16 * entries.len() as u32, flags: INDIRECT, next: 0 }.to_words();
        for index in 0..size {
            self.put(DESCRIPTORS + 16 * usize::from(index), table);
            self.memory.word(AVAILABLE + 4 + 2 * usize::from(index)).store(index, Ordering::Relaxed);
        }
        self.memory.word(AVAILABLE + 2).store(size, Ordering::Release);
    }
}

/// Linked entries of so many bytes each.
fn linked(lens: impl ExactSizeIterator<Item = u32>, flags: u16) -> Vec<Descriptor> {
    let count = lens.len();
    let entry = |(index, len): (usize, u32)| {
        let link = if index + 1 == count { 0 } else { NEXT };
        Descriptor { address: BUFFERS as u64, len, flags: flags | link, next: index as u16 + 1 }
    };
    lens.enumerate().map(entry).collect()
}

#[test]
fn a_chain_as_long_as_the_largest_ring_is_given_up_after_a_bounded_look_in_both_directions() {
    let receiver = Scene::<PackedRing>::new(0, QUEUE_SIZE_MAX, F_VERSION_1 | F_MRG_RXBUF);
    receiver.chains(usize::from(QUEUE_SIZE_MAX), usize::from(QUEUE_SIZE_MAX), 20, WRITE);
    let (tally, reads) = receiver.send(BURST);
    assert_eq!((tally.packets, receiver.is_broken()), (0, true));
    assert_eq!(reads, u64::from(WIDTH_MAX), "of 32,768");
    assert_eq!(receiver.send(BURST).1, 0, "and never again");

    let sender = Scene::<PackedRing>::new(1, QUEUE_SIZE_MAX, F_VERSION_1);
    sender.chains(usize::from(QUEUE_SIZE_MAX), usize::from(QUEUE_SIZE_MAX), 20, 0);
    assert_eq!(sender.receive().1, u64::from(WIDTH_MAX));
    assert!(sender.is_broken());
}

#[test]
fn chains_that_are_just_not_too_wide_cost_a_receivers_burst_no_more_than_its_bound() {
    let scene = Scene::<PackedRing>::new(0, QUEUE_SIZE_MAX, F_VERSION_1 | F_MRG_RXBUF);
    scene.chains(usize::from(WIDTH_MAX), usize::from(QUEUE_SIZE_MAX), 20, WRITE);
    let (mut chains, mut calls) = (0, 0);
    while chains < u64::from(QUEUE_SIZE_MAX / WIDTH_MAX) {
        let (tally, reads) = scene.send(BURST);
        assert!(reads <= reads_max(2, 120), "{reads} descriptors were read for a burst");
        assert_eq!(tally.drops().collect::<Vec<_>>(), [(DropReason::BadDescriptor, BURST as u32)]);
        chains += reads / u64::from(WIDTH_MAX);
        calls += 1;
    }
    assert!(!scene.is_broken() && calls > 1, "each was given back, a few a call");
    let (tally, _) = scene.send(BURST);
    assert_eq!(tally.drops().collect::<Vec<_>>(), [(DropReason::RxRingFull, BURST as u32)], "none is left");
}

#[test]
fn a_chain_that_is_too_wide_ends_its_senders_burst() {
    let scene = Scene::<PackedRing>::new(1, QUEUE_SIZE_MAX, F_VERSION_1);
    scene.chains(usize::from(WIDTH_MAX), usize::from(QUEUE_SIZE_MAX), 20, 0);
    for _ in 0..QUEUE_SIZE_MAX / WIDTH_MAX {
        let (tally, reads) = scene.receive();
        assert_eq!(reads, u64::from(WIDTH_MAX));
        assert_eq!(tally.drops().collect::<Vec<_>>(), [(DropReason::TooManySegments, 1)]);
    }
    assert_eq!(scene.receive().1, 0, "none is left");
    assert!(!scene.is_broken());
}

#[test]
fn a_ring_that_is_off_is_emptied_by_one_chain_that_is_too_wide_a_call() {
    let scene = Scene::<PackedRing>::new(1, QUEUE_SIZE_MAX, F_VERSION_1);
    scene.chains(usize::from(WIDTH_MAX), usize::from(QUEUE_SIZE_MAX), 20, 0);
    scene.set.switch(1, Use::Discard);
    assert_eq!(scene.receive().1, u64::from(WIDTH_MAX));
    assert_eq!(scene.receive().1, u64::from(WIDTH_MAX));
}

#[test]
fn many_long_chains_of_a_byte_each_cost_a_receivers_burst_no_more_than_its_bound() {
    let size = 4096;
    let scene = Scene::<SplitRing>::new(0, size, F_VERSION_1 | F_MRG_RXBUF);
    let crumbs = linked((0..CHAIN_MAX).map(|index| u32::from(index == 0)), WRITE);
    scene.tables(size, &crumbs);
    for _ in 0..3 {
        let (tally, reads) = scene.send(BURST);
        assert_eq!(tally.packets, 0);
        assert!(reads <= reads_max(BURST, BURST * 60), "{reads} descriptors were read for a burst");
        assert!(tally.drops().all(|(reason, _)| reason == DropReason::BufferTooSmall), "{:?}", tally.drops().next());
    }
}

/// As Linux posts buffers for large frames if it may not merge: one page after another, for short frames too.
#[test]
fn the_longest_chains_that_are_good_carry_a_whole_burst() {
    let split = Scene::<SplitRing>::new(0, 256, F_VERSION_1);
    split.tables(256, &linked((0..CHAIN_MAX).map(|_| 1700), WRITE));
    let (tally, reads) = split.send(BURST);
    assert_eq!(tally.packets as usize, BURST);
    assert_eq!(reads, ((CHAIN_MAX + 1) * BURST) as u64);

    let packed = Scene::<PackedRing>::new(0, 4096, F_VERSION_1);
    packed.chains(CHAIN_MAX, 4096, 20, WRITE);
    let (tally, reads) = packed.send(BURST);
    assert_eq!(tally.packets as usize, BURST);
    assert_eq!(reads, (CHAIN_MAX * BURST) as u64);
    assert_eq!(packed.interrupts(), 1);
}

/// 17 buffers of as much as any frame has, of which a short one fills a part of the first.
#[test]
fn of_a_chain_no_more_is_looked_up_than_a_frame_fills() {
    let scene = Scene::<SplitRing>::new(0, 256, F_VERSION_1);
    scene.tables(256, &linked((0..17).map(|_| FRAME_MAX as u32), WRITE));
    let (tally, _) = scene.send(1);
    assert_eq!((tally.packets, tally.dropped), (1, 0));
    assert_eq!(scene.set.ring(0).unwrap().lock().0.pieces.len(), 1);
}

/// A TCP frame of so many bytes of payload, to be cut into segments of `size`; answers the outcome and the descriptors read.
fn cut(scene: &Scene<SplitRing>, payload: usize, size: u16) -> (Tally, u64) {
    let mut head = [0; 54];
    head[12..14].copy_from_slice(&[8, 0]);
    head[14] = 0x45;
    head[16..18].copy_from_slice(&(40 + payload as u16).to_be_bytes());
    (head[22], head[23], head[46]) = (64, 6, 0x50);
    let payload = vec![7; payload];
    let (mut batch, mut tally, before) = (Batch::new(), Tally::default(), scene.reads());
    batch.clear(BURST, usize::MAX);
    let mut packet = batch.start(INGRESS, QUEUE).unwrap();
    packet.head(head.len()).unwrap().copy_from_slice(&head);
    packet.tail(Segment::from(&payload[..])).unwrap();
    packet.commit(OffloadClaim::default());
    let packet = &mut batch.packets_mut()[0];
    packet.headers = Headers { l3: L3::Ipv4, l3_offset: 14, l4_offset: 34, l4_protocol: 6, ..Headers::default() };
    packet.offload = Offload {
        checksum: Some(PartialChecksum { start: 34, offset: 16 }),
        gso: Some(Gso { kind: GsoKind::Tcp4, size, header_len: 54, ecn: false }),
        checksum_valid: false,
    };
    scene.set.tx(QUEUE, &mut batch, &[0], &mut tally);
    (tally, scene.reads() - before)
}

#[test]
fn segments_go_into_the_chains_that_drivers_post_and_many_tiny_ones_into_long_chains_end_at_a_bound() {
    let scene = Scene::<SplitRing>::new(0, 4096, F_VERSION_1);
    scene.tables(4096, &linked((0..19).map(|_| 1500), WRITE));
    assert_eq!((cut(&scene, 45 * 1448, 1448).0.packets, cut(&scene, 100 * 536, 536).0.packets), (45, 100));

    let scene = Scene::<SplitRing>::new(0, 4096, F_VERSION_1);
    scene.tables(4096, &linked((0..39).map(|_| 2), WRITE));
    let (tally, reads) = cut(&scene, 8000, 8);
    assert_eq!(tally.packets + tally.dropped, 1000);
    let bound = SPARE_READS + (CHAIN_MAX + 1000 * READS_PER_SEGMENT) as u64;
    assert!(reads < bound && tally.dropped > 0, "{reads} descriptors were read for {} segments", tally.packets);
}

/// 8,185 segments, and tables of 15 buffers of 5 bytes for each: as many as may be read for it, and 122,000 pages if they may be written.
#[test]
fn segments_fill_no_more_pieces_of_memory_than_a_bound_however_small_they_and_the_buffers_are() {
    let scene = Scene::<SplitRing>::new(0, QUEUE_SIZE_MAX, F_VERSION_1);
    scene.tables(QUEUE_SIZE_MAX, &linked((0..15).map(|_| 5), WRITE));
    let (tally, _) = cut(&scene, 65_480, 8);
    assert_eq!(tally.packets + tally.dropped, 8185);
    let filled = 15 * tally.packets as usize;
    assert!(filled < CHAIN_MAX + 8185 * PIECES_PER_SEGMENT, "{filled} pieces");
    assert!(tally.drops().all(|(reason, _)| reason == DropReason::BufferTooSmall), "{:?}", tally.drops().next());

    // As Linux posts them: a header, the rest of its page, and 17 pages.
    for header in [10, 12] {
        let features = if header == 12 { F_VERSION_1 } else { 0 };
        let scene = Scene::<SplitRing>::new(0, QUEUE_SIZE_MAX, features);
        let lens: Vec<u32> = std::iter::once(header).chain([4080]).chain([4096; 17]).collect();
        scene.tables(QUEUE_SIZE_MAX, &linked(lens.into_iter(), WRITE));
        for (segments, size) in [(100, 536), (45, 1448), (7, 9000)] {
            assert_eq!(cut(&scene, segments * usize::from(size), size).0.packets as usize, segments);
        }
    }
}

/// Eight buffers of 10 bytes a frame: more of them than can be held back.
#[test]
fn a_burst_that_is_shown_in_parts_interrupts_the_guest_once() {
    let scene = Scene::<PackedRing>::new(0, 1024, F_VERSION_1 | F_MRG_RXBUF);
    scene.chains(1, 1024, 10, WRITE);
    let (tally, _) = scene.send(BURST);
    assert_eq!(tally.packets as usize, BURST);
    assert_eq!(scene.interrupts(), 1, "an eventfd adds signals up");
    // `RING_EVENT_FLAGS_DISABLE` (virtio 1.2 section 2.8.10).
    scene.memory.word(AVAILABLE + 2).store(1, Ordering::Relaxed);
    scene.send(BURST);
    assert_eq!(scene.interrupts(), 0, "it did not ask");
}

/// A frame into buffers of 256 bytes, of which one may be an indirect table's; answers what they hold, what the ring says was
/// written to each, and how many descriptors the long way read.
fn merged(indirect: Option<usize>, count: usize) -> (Vec<u8>, Vec<u32>, Tally, u64) {
    merged_into(indirect, &vec![256; count])
}

/// The same into buffers of these bytes, one behind the other.
fn merged_into(indirect: Option<usize>, buffers: &[u32]) -> (Vec<u8>, Vec<u32>, Tally, u64) {
    let count = buffers.len();
    let scene = Scene::<SplitRing>::new(0, 8, F_VERSION_1 | F_MRG_RXBUF);
    let buffer = |index: usize| {
        let before = buffers[..index].iter().sum::<u32>() as usize;
        Descriptor { address: (BUFFERS + before) as u64, len: buffers[index], flags: WRITE, next: 0 }
    };
    for index in 0..count {
        let mut entry = buffer(index);
        if indirect == Some(index) {
            scene.put(TABLE, entry.to_words());
            entry = Descriptor { address: TABLE as u64, len: 16, flags: INDIRECT, next: 0 };
        }
        scene.put(DESCRIPTORS + 16 * index, entry.to_words());
        scene.memory.word(AVAILABLE + 4 + 2 * index).store(index as u16, Ordering::Relaxed);
    }
    scene.memory.word(AVAILABLE + 2).store(count as u16, Ordering::Release);

    let frame: Vec<u8> = (0..600).map(|at| at as u8).collect();
    let (mut batch, mut tally) = (Batch::new(), Tally::default());
    batch.clear(BURST, usize::MAX);
    let mut packet = batch.start(INGRESS, QUEUE).unwrap();
    packet.head(128).unwrap().copy_from_slice(&frame[..128]);
    // In two parts, of which the first ends inside a buffer.
    packet.tail(Segment::from(&frame[128..300])).unwrap();
    packet.tail(Segment::from(&frame[300..])).unwrap();
    packet.commit(OffloadClaim::default());
    scene.set.tx(QUEUE, &mut batch, &[0], &mut tally);

    let used = usize::from(scene.memory.word(USED_RING + 2).load(Ordering::Acquire));
    let len = |index: usize| u32::from(scene.memory.word(USED_RING + 8 + 8 * index).load(Ordering::Relaxed));
    let lens: Vec<u32> = (0..used).map(len).collect();
    let mut bytes = vec![0; lens.iter().sum::<u32>() as usize];
    scene.memory.read(BUFFERS, &mut bytes);
    (bytes, lens, tally, scene.reads())
}

#[test]
fn a_frame_fills_several_buffers_by_the_short_way_and_by_the_long_one_alike() {
    for (indirect, reads) in [(None, 0), (Some(0), 4), (Some(1), 4), (Some(2), 4)] {
        let (bytes, lens, tally, read) = merged(indirect, 8);
        assert_eq!(lens, [256, 256, 100], "{indirect:?}");
        assert_eq!(bytes[10..12], [3, 0], "buffers, as the header tells");
        assert!(bytes[12..].iter().copied().eq((0..600).map(|at| at as u8)), "{indirect:?}");
        assert_eq!((tally.packets, tally.bytes), (1, 600));
        assert_eq!(read, reads, "descriptors by the long way, {indirect:?}");
    }
}

#[test]
fn a_frame_takes_no_buffer_more_than_it_fills() {
    let (bytes, lens, tally, read) = merged_into(None, &[256, 512, 256]);
    assert_eq!(lens, [256, 356]);
    assert_eq!(bytes[10..12], [2, 0], "buffers, as the header tells");
    assert_eq!((tally.packets, read), (1, 0));
}

/// Together they take more chains than can be held back before the guest is shown some.
#[test]
fn large_frames_around_a_short_one_are_shown_in_parts() {
    let scene = Scene::<PackedRing>::new(0, 1024, F_VERSION_1 | F_MRG_RXBUF);
    scene.chains(1, 1024, 512, WRITE);
    let large = vec![7; 65_226 - 128];
    let (mut batch, mut tally) = (Batch::new(), Tally::default());
    batch.clear(BURST, usize::MAX);
    for tail in [&large[..], &[], &large[..]] {
        let mut packet = batch.start(INGRESS, QUEUE).unwrap();
        packet.head(if tail.is_empty() { 60 } else { 128 }).unwrap().fill(7);
        if !tail.is_empty() {
            packet.tail(Segment::from(tail)).unwrap();
        }
        packet.commit(OffloadClaim::default());
    }
    scene.set.tx(QUEUE, &mut batch, &[0, 1, 2], &mut tally);
    assert_eq!((tally.packets, tally.dropped), (3, 0));
    assert_eq!((scene.reads(), scene.interrupts()), (0, 1));
}

#[test]
fn a_frame_that_finds_too_few_buffers_leaves_them_as_they_were() {
    let (_, lens, tally, _) = merged(None, 2);
    assert!(lens.is_empty(), "{lens:?}");
    assert_eq!(tally.drops().collect::<Vec<_>>(), [(DropReason::RxRingFull, 1)]);
}

#[test]
fn an_index_that_goes_back_behind_what_a_frame_was_to_take_stops_the_ring() {
    let scene = Scene::<SplitRing>::new(0, 256, F_VERSION_1 | F_MRG_RXBUF);
    scene.tables(256, &[Descriptor { address: BUFFERS as u64, len: 60, flags: WRITE, next: 0 }]);
    let offer = |index: u16| scene.memory.word(AVAILABLE + 2).store(index, Ordering::Relaxed);
    let ring = scene.set.bare(0).unwrap();
    // A frame that is put together of one buffer after the other: three are there, then none, then two.
    let (mut place, mut hint, mut chain) = (ring.resume(0).unwrap(), RegionHint::default(), Chain::default());
    let mut cursor = ring.cursor(&place);
    let mut walk = || ring.walk(&mut place, &mut cursor, &mut hint, Direction::ToGuest, &mut chain);
    offer(2);
    assert!(matches!(walk(), Ok(Some(_))) && matches!(walk(), Ok(Some(_))) && matches!(walk(), Ok(None)));
    offer(3);
    assert!(matches!(walk(), Ok(Some(_))) && matches!(walk(), Ok(None)));
    offer(2);
    assert!(walk().is_err(), "a buffer that was given away is not there any more");
}

#[test]
fn only_a_send_ring_that_is_there_and_has_no_kick_is_looked_at_again_and_again() {
    let sender = Scene::<SplitRing>::new(1, 256, F_VERSION_1);
    assert!(sender.set.is_blind(QUEUE));
    let receiver = Scene::<SplitRing>::new(0, 256, F_VERSION_1);
    assert!(!receiver.set.is_blind(QUEUE), "it has nothing to send by");
}
