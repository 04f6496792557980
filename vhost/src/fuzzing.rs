//! What fuzz targets and their short seeded forms run: a stranger's bytes as a message ([`message`]), and as what a guest does to
//! its rings, of either layout, while a worker sends and receives by them ([`Target`]).
//!
//! Layout of the latter's input: the features and whether there are two pairs of rings (in the same memory), the rings' size, where they
//! stand; then steps, each a byte that says which and some more
//! ([`Guest::step`]). The first few steps write descriptors as they should be, or nearly so, since noise alone seldom gets as
//! far as a chain. Checked is what must hold whatever a guest does: every frame has an outcome, what was received can be read,
//! positions stay in the ring, and a call reads a bounded number of descriptors.

use crate::chain::{CHAIN_MAX, DESCRIPTOR_LEN, INDIRECT, NEXT, WIDTH_MAX, WRITE};
use crate::memory::{DriverMemory, GuestMemory};
use crate::message::{HEADER_LEN, Header, RegionInfo, Request, RingAddresses, parse};
use crate::net::{Dialect, F_EVENT_IDX, F_GUEST_CSUM, F_IN_ORDER, F_MRG_RXBUF, F_VERSION_1};
use crate::port::{Alarm, Queue, RingSet, Rings, Use, reads_max};
use crate::ring::{Layout, PackedRing, SplitRing, Terms};
use crate::socket::Wake;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use switch::batch::{BURST, Batch};
use switch::ids::{PortIndex, QueueIndex};
use switch::ledger::Tally;
use switch::offload::OffloadClaim;
use switch::port::Port;

/// Bytes of each of the two regions of a guest's memory, which lie behind each other for the guest and the other way round in
/// the file.
const REGION_LEN: usize = 0x1_0000;
/// Where the frontend has the guest's address 0.
const USER_BASE: u64 = 0x7000_0000;
/// Entries of the largest ring: several chains that are too wide.
const SIZE_MAX: usize = 4 * WIDTH_MAX as usize;
/// Where the parts of ring 0 are, and how far behind them those of ring 1.
const DESCRIPTORS: usize = 0;
const AVAILABLE: usize = 0x4000;
const USED: usize = 0x5000;
const RING_LEN: usize = 0x8000;
const _: () = assert!(USED + 6 + 8 * SIZE_MAX <= RING_LEN && 2 * RING_LEN <= REGION_LEN, "rings lie beside each other");
/// Steps of one input.
const STEPS_MAX: usize = 200;
/// Flags of a packed descriptor that is available on a lap with the wrap counter, and on one without.
const AVAILABLE_ODD: u16 = 1 << 7;
const AVAILABLE_EVEN: u16 = 1 << 15;
const INGRESS: PortIndex = PortIndex(1);

/// A message that came with so many file descriptors: refused, or a request that survives the way back to bytes.
pub fn message(bytes: &[u8], fd_count: usize) {
    let Some((head, payload)) = bytes.split_first_chunk::<HEADER_LEN>() else { return };
    let Ok(header) = Header::parse(head) else { return };
    let Ok(request) = parse(&header, payload, fd_count) else { return };
    let again = request.to_bytes(header.needs_reply());
    let (head, body) = again.split_first_chunk::<HEADER_LEN>().expect("a message has a header");
    let header = Header::parse(head).expect("our own header is good");
    assert_eq!(parse(&header, body, fd_count), Ok(request.clone()));
    // Two bytes behind a MAC, the position in GET_VRING_BASE and padding carry no meaning; all other bytes do.
    let has_padding = matches!(
        request,
        Request::SendRarp(_)
            | Request::GetVringBase(_)
            | Request::SetMemTable(_)
            | Request::AddMemReg(_)
            | Request::RemMemReg(_)
            | Request::GetInflightFd(_)
            | Request::SetInflightFd(_)
    );
    assert!(has_padding || body == payload, "{request:?} means something else than it says");
}

/// A guest's memory, which is made once.
pub struct Target {
    file: DriverMemory,
    memory: Arc<GuestMemory>,
    zeros: Vec<u8>,
    /// What became of the last input, so that the seeded form can tell that it gets anywhere.
    pub outcome: Outcome,
}

/// What happened to one input.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Frames that the guest sent, and that were put into its buffers.
    pub moved: [u32; 2],
    /// Frames that were not, of each direction.
    pub dropped: [u32; 2],
    /// Most descriptors read by a call of each direction.
    pub reads: [u64; 2],
    /// Whether a ring stands still for good.
    pub is_broken: bool,
    /// Whether frames came by the second pair.
    pub has_second: bool,
}

impl Default for Target {
    fn default() -> Target {
        let file = DriverMemory::new(2 * REGION_LEN, false).expect("there is memory for a guest");
        let len = REGION_LEN as u64;
        let region = |at: u64, file_offset| RegionInfo {
            guest_address: at,
            size: len,
            user_address: USER_BASE + at,
            file_offset,
        };
        let fd = || file.file().try_clone_to_owned().expect("a descriptor is left");
        let memory = GuestMemory::map(&[region(0, len), region(len, 0)], &[fd(), fd()]).expect("a legal table");
        Target { file, memory: Arc::new(memory), zeros: vec![0; 2 * REGION_LEN], outcome: Outcome::default() }
    }
}

impl Target {
    /// Does what one input says; panics if anything that must hold does not.
    pub fn rings(&mut self, data: &[u8]) {
        let Some((&[features, small, large, base], steps)) = data.split_first_chunk::<4>() else { return };
        self.file.write(0, &self.zeros);
        self.outcome = Outcome::default();
        let size = usize::from(u16::from_le_bytes([small, large])) % SIZE_MAX + 1;
        if features & 1 == 0 {
            self.run::<SplitRing>(features, size.next_power_of_two(), base, steps);
        } else {
            self.run::<PackedRing>(features, size, base, steps);
        }
    }

    fn run<L: Layout>(&mut self, features: u8, size: usize, base: u8, steps: &[u8]) {
        let pairs = 1 + usize::from(features >> 6 & 1);
        let bits = [F_IN_ORDER, F_EVENT_IDX, F_MRG_RXBUF, F_VERSION_1, F_GUEST_CSUM];
        let features = (1..).zip(bits).filter(|(bit, _)| features & 1 << bit != 0).fold(0, |all, (_, bit)| all | bit);
        let rings = (0..2 * pairs).map(|ring| {
            let user = |part: usize| USER_BASE + (ring % 2 * RING_LEN + part) as u64;
            let addresses = RingAddresses {
                index: ring as u32,
                flags: 0,
                descriptors: user(DESCRIPTORS),
                available: user(AVAILABLE),
                used: user(USED),
                log: 0,
            };
            let found = L::find(self.memory.clone(), &addresses, size as u32, Terms::new(features));
            let found = found.expect("the rings' parts are in memory");
            // Of a split ring it is what stands in memory.
            let base =
                if L::IS_PACKED { (u32::from(base & 0x7f) % size as u32) | (u32::from(base >> 7) << 15) } else { 0 };
            (ring, Queue::new(found, base, ring as u8, None, None).expect("a position in the ring"))
        });
        let alarm = Alarm::new(Arc::new(Wake::new().expect("a descriptor is left")));
        let set = RingSet::new(rings, Dialect::new(features), alarm, Arc::default());
        (0..2 * pairs).for_each(|ring| set.switch(ring, Use::On));
        let mut guest = Guest { set, pairs, file: &self.file, size, input: steps, outcome: &mut self.outcome };
        let _ = (0..STEPS_MAX).try_for_each(|_| guest.step());
    }
}

/// One guest, and the steps that are left.
struct Guest<'a, L: Layout> {
    set: RingSet<L>,
    pairs: usize,
    file: &'a DriverMemory,
    size: usize,
    input: &'a [u8],
    outcome: &'a mut Outcome,
}

impl<L: Layout> Guest<'_, L> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.input.split_first_chunk()?;
        self.input = rest;
        Some(*taken)
    }

    fn word(&mut self) -> Option<usize> {
        self.take().map(|bytes| u16::from_le_bytes(bytes).into())
    }

    /// Does the next step; `None` at the end.
    fn step(&mut self) -> Option<()> {
        let [what] = self.take()?;
        let ring = usize::from(what >> 7);
        let pair = ring % self.pairs;
        let queue = QueueIndex(pair as u16);
        match what & 0x7f {
            // Some chains of so many descriptors from an entry on; made available if the ring is packed.
            0 => {
                let [count, times, flags, more] = self.take()?;
                let (first, address, len) = (self.word()?, self.word()?, self.word()?);
                let count = usize::from(count) + 1;
                for number in 0..count * (usize::from(times) % 8 + 1) {
                    let link = if (number + 1).is_multiple_of(count) { 0 } else { NEXT };
                    let index = (first + number) % self.size;
                    let flags = flags_of(flags, more) | link;
                    self.put_descriptor(ring * RING_LEN + DESCRIPTORS, index, 2 * address, len, flags);
                }
            }
            // One chain in a table where the guest likes.
            1 => {
                let [count, flags, more] = self.take()?;
                let (at, address, len) = (self.word()? & !15, self.word()?, self.word()?);
                for index in 0..=usize::from(count) {
                    let link = if index == usize::from(count) { 0 } else { NEXT };
                    self.put_descriptor(at, index, 2 * address, len, flags_of(flags, more) | link);
                }
            }
            // Heads that are made available, in a split ring.
            2 => {
                let [count, step] = self.take()?;
                let (head, index) = (self.word()?, self.read16(ring * RING_LEN + AVAILABLE + 2));
                for number in 0..usize::from(count) {
                    let slot = usize::from(index).wrapping_add(number) % self.size;
                    let head = (head + number * usize::from(step)) as u16;
                    self.put(ring * RING_LEN + AVAILABLE + 4 + 2 * slot, &head.to_le_bytes());
                }
                let index = index.wrapping_add(count.into());
                self.put(ring * RING_LEN + AVAILABLE + 2, &index.to_le_bytes());
            }
            // Anything anywhere.
            3 => {
                let ([count, value], at) = (self.take()?, self.word()?);
                let len = usize::from(count).min(self.input.len());
                let (bytes, rest) = self.input.split_at(len);
                self.put(at * 2, bytes);
                self.input = rest;
                self.put(at * 2 + len, &[value]);
            }
            4 => self.receive(queue),
            5 => {
                let ([count], len) = (self.take()?, self.word()?);
                self.send(queue, usize::from(count) % (BURST + 1), 14 + len);
            }
            6 => {
                let [how] = self.take()?;
                let ring = ring + usize::from(how) / 3 % self.pairs * 2;
                self.set.switch(ring, [Use::On, Use::Discard, Use::Still][usize::from(how) % 3]);
            }
            7 => {
                self.set.arm(queue);
                self.set.disarm(queue);
            }
            _ => {}
        }
        Some(())
    }

    /// Where the file has a guest's address.
    fn offset(at: usize) -> usize {
        (at + REGION_LEN) % (2 * REGION_LEN)
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            self.file.byte(Self::offset(at)).store(*byte, Ordering::Relaxed);
        }
    }

    fn read16(&self, at: usize) -> u16 {
        u16::from_le(self.file.word(Self::offset(at)).load(Ordering::Relaxed))
    }

    /// The two layouts differ in where the flags are, and what else is there.
    fn put_descriptor(&self, table: usize, index: usize, address: usize, len: usize, flags: u16) {
        let next = (index as u16 + 1) % self.size as u16;
        let (first, second) = if L::IS_PACKED { (index as u16, flags) } else { (flags, next) };
        let at = table + DESCRIPTOR_LEN * index;
        self.put(at, &(address as u64).to_le_bytes());
        self.put(at + 8, &(len as u32).to_le_bytes());
        self.put(at + 12, &first.to_le_bytes());
        self.put(at + 14, &second.to_le_bytes());
    }

    fn receive(&mut self, queue: QueueIndex) {
        let (mut batch, mut tally, before) = (Batch::new(), Tally::default(), self.reads(1));
        batch.clear(BURST, usize::MAX);
        self.set.rx(INGRESS, queue, &mut batch, &mut tally);
        assert_eq!(tally.packets, batch.len() as u32 + tally.dropped, "a frame without outcome");
        for index in 0..batch.len() {
            let (packet, tail) = batch.frame(index);
            let mut len = packet.head().len();
            for segment in tail {
                let mut bytes = vec![0; segment.len() as usize];
                segment.read(&mut bytes);
                len += bytes.len();
            }
            assert_eq!(len, packet.len(), "a frame's length");
            assert!((14..=crate::port::FRAME_MAX).contains(&len), "{len} bytes");
        }
        let moved = batch.len() as u32;
        drop(batch);
        self.set.rx_done(queue);
        let reads = self.reads(1) - before;
        let most = tally.packets as usize * (CHAIN_MAX + 1) + usize::from(WIDTH_MAX);
        assert!(reads <= most as u64, "{reads} descriptors for {} frames", tally.packets);
        self.outcome.has_second |= moved > 0 && queue.0 > 0;
        self.note(0, moved, tally.dropped, reads);
    }

    fn send(&mut self, queue: QueueIndex, frames: usize, len: usize) {
        let body = vec![7; len];
        let (mut batch, mut tally, before) = (Batch::new(), Tally::default(), self.reads(0));
        batch.clear(BURST, usize::MAX);
        for flow in 0..frames {
            let (head, tail) = body.split_at(len.min(128));
            let mut packet = batch.start(INGRESS, queue).expect("no more than a burst");
            let room = packet.head(head.len()).expect("a head of 128 bytes");
            room.copy_from_slice(head);
            room[0] = flow as u8;
            for piece in tail.chunks(16_384) {
                packet.tail(piece.into()).expect("few segments");
            }
            packet.commit(OffloadClaim::default());
        }
        let picks: Vec<u8> = (0..frames as u8).collect();
        self.set.tx(queue, &mut batch, &picks, &mut tally);
        assert_eq!((tally.packets + tally.dropped) as usize, frames, "a frame without outcome");
        let reads = self.reads(0) - before;
        // Those of each pair are a burst of their own.
        let most = self.pairs as u64 * reads_max(frames, frames * (len + 12));
        assert!(reads <= most, "{reads} descriptors for {frames} frames of {len}");
        self.note(1, tally.packets, tally.dropped, reads);
    }

    /// Descriptors read so far in one direction's rings.
    fn reads(&self, direction: usize) -> u64 {
        (0..self.pairs).map(|pair| self.set.reads(2 * pair + direction)).sum()
    }

    fn note(&mut self, direction: usize, moved: u32, dropped: u32, reads: u64) {
        self.outcome.moved[direction] += moved;
        self.outcome.dropped[direction] += dropped;
        self.outcome.reads[direction] = self.outcome.reads[direction].max(reads);
        for ring in 0..2 * self.pairs {
            self.outcome.is_broken |= self.set.alarm().has(crate::port::Fault::Ring(ring as u8));
            let position = self.set.position(ring).expect("all rings are there");
            assert!(!L::IS_PACKED || usize::from(position as u16 & 0x7fff) < self.size, "{position:#x} is no position");
        }
    }
}

/// The flags of a descriptor, by one bit each.
fn flags_of(bits: u8, more: u8) -> u16 {
    let all = [NEXT, WRITE, INDIRECT, AVAILABLE_ODD, AVAILABLE_EVEN];
    let flags = (0..).zip(all).filter(|(bit, _)| bits & 1 << bit != 0).fold(0, |flags, (_, flag)| flags | flag);
    // Seldom one of those that mean nothing.
    if more > 250 { flags | 1 << (more - 243) } else { flags }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The most and the least that a run of inputs should come to, so that a target that sees nothing is noticed.
    #[derive(Default)]
    struct Reached {
        moved: [u32; 2],
        dropped: [u32; 2],
        wide: u32,
        broken: u32,
        second: u32,
    }

    /// A step that makes some sense.
    fn any_step() -> impl Strategy<Value = Vec<u8>> {
        let ring = prop_oneof![Just(0u8), Just(0x80)];
        // Mostly what a good driver writes: few, of the ring's direction, available on the first lap.
        let count = prop_oneof![8 => Just(0u8), 4 => 1u8..5, 2 => 36u8..44, 1 => Just(255), 1 => any::<u8>()];
        let times = prop_oneof![2 => Just(0u8), 1 => any::<u8>()];
        let flags = prop_oneof![6 => Just(0b0_1000u8), 2 => Just(0b0_1100), 2 => Just(0b1_0000), 1 => Just(0b0_1001), 1 => any::<u8>()];
        let first = prop_oneof![6 => 0u16..64, 1 => any::<u16>()];
        let len = prop_oneof![4 => 60u16..300, 1 => 0u16..40, 1 => any::<u16>()];
        let described = (0u8..2, ring.clone(), (count, times), flags, first, any::<u16>(), len).prop_map(
            |(what, ring, (count, times), flags, first, address, len)| {
                // What the guest receives by it writes.
                let flags = if ring == 0 { flags ^ 0b10 } else { flags };
                let mut step = vec![what | ring, count];
                step.extend((what == 0).then_some(times));
                step.extend([flags, 0]);
                step.extend([first, address, len].into_iter().flat_map(u16::to_le_bytes));
                step
            },
        );
        let made_available = (ring.clone(), prop_oneof![6 => 1u8..40, 1 => any::<u8>()], 0u8..3, 0u16..64)
            .prop_map(|(ring, count, step, head)| vec![2 | ring, count, step, head as u8, (head >> 8) as u8]);
        let scribbled = (any::<u16>(), proptest::collection::vec(any::<u8>(), 0..20)).prop_map(|(at, bytes)| {
            let mut step = vec![3, bytes.len() as u8, 1];
            step.extend(at.to_le_bytes());
            step.extend(bytes);
            step
        });
        let sent = (ring.clone(), 0u8..33, prop_oneof![4 => 0u16..200, 1 => any::<u16>()])
            .prop_map(|(pair, count, len)| vec![5 | pair, count, len as u8, (len >> 8) as u8]);
        let switched =
            (ring.clone(), prop_oneof![3 => Just(0u8), 1 => 1u8..6]).prop_map(|(ring, how)| vec![6 | ring, how]);
        prop_oneof![
            8 => described,
            4 => made_available,
            1 => scribbled,
            6 => ring.clone().prop_map(|pair| vec![4 | pair]),
            6 => sent,
            1 => switched,
            1 => ring.prop_map(|pair| vec![7 | pair]),
        ]
    }

    fn any_input() -> impl Strategy<Value = Vec<u8>> {
        let base = prop_oneof![3 => Just(0x80u8), 1 => any::<u8>()];
        let size = prop_oneof![1u16..20, Just(255u16), Just(1023), any::<u16>()];
        (any::<u8>(), size, base, proptest::collection::vec(any_step(), 0..60)).prop_map(
            |(features, size, base, steps)| {
                let mut input = vec![features, size as u8, (size >> 8) as u8, base];
                input.extend(steps.concat());
                input
            },
        )
    }

    #[test]
    fn no_guest_breaks_what_must_hold_and_the_target_gets_everywhere() {
        // `PROPTEST_CASES` makes it longer.
        let mut config = ProptestConfig::default();
        config.cases = config.cases.max(500);
        config.failure_persistence = None;
        let (target, reached) =
            (std::cell::RefCell::new(Target::default()), std::cell::RefCell::new(Reached::default()));
        let mut runner = proptest::test_runner::TestRunner::new(config);
        let outcome = runner.run(&any_input(), |input| {
            let mut target = target.borrow_mut();
            target.rings(&input);
            let (outcome, mut reached) = (target.outcome, reached.borrow_mut());
            for direction in 0..2 {
                reached.moved[direction] += u32::from(outcome.moved[direction] > 0);
                reached.dropped[direction] += u32::from(outcome.dropped[direction] > 0);
            }
            reached.wide += u32::from(outcome.reads.iter().any(|&reads| reads >= u64::from(WIDTH_MAX)));
            reached.broken += u32::from(outcome.is_broken);
            reached.second += u32::from(outcome.has_second);
            Ok(())
        });
        outcome.unwrap();
        let Reached { moved, dropped, wide, broken, second } = reached.into_inner();
        let all = [moved[0], moved[1], dropped[0], dropped[1], wide, broken, second];
        assert!(all.iter().all(|&count| count >= 5), "inputs that got to each: {all:?}");
    }

    proptest! {
        #[test]
        fn noise_breaks_nothing(data in proptest::collection::vec(any::<u8>(), 0..400)) {
            Target::default().rings(&data);
        }
    }
}
