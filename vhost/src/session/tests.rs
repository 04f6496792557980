//! The session as a state machine: messages go in, and a place counts what workers get to see.

use super::*;
use crate::chain::Descriptor;
use crate::message::{HEADER_LEN, Header, RegionInfo};
use crate::net::F_VERSION_1;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;
use switch::batch::Batch;
use switch::ids::{PortIndex, QueueIndex};
use switch::ledger::{DropReason, Tally};
use switch::offload::OffloadClaim;
use switch::port::Port;

/// A place that counts and keeps what was published last.
#[derive(Default)]
struct CountingPlace {
    port: Mutex<Option<Arc<dyn Port>>>,
    publications: AtomicU32,
    withdrawals: AtomicU32,
}

impl Place for CountingPlace {
    fn publish(&self, port: Arc<dyn Port>) {
        self.publications.fetch_add(1, Ordering::Relaxed);
        *self.port.lock().unwrap() = Some(port);
    }

    fn withdraw(&self) {
        self.withdrawals.fetch_add(1, Ordering::Relaxed);
        *self.port.lock().unwrap() = None;
    }
}

/// Entries of each ring.
const SIZE: u16 = 8;
/// Bytes of guest memory that a ring gets: four pages for its parts and its buffers.
const RING_LEN: u64 = 4 * 4096;
/// Guest address of the first byte.
const GUEST: u64 = 0x4000_0000;
/// The frontend's own address of it.
const USER: u64 = 0x7000_0000_0000;
/// Bytes of a frame in these tests.
const FRAME_LEN: usize = 60;

/// A session, its place, and the memory of its guest.
struct Rig {
    session: Session,
    place: Arc<CountingPlace>,
    memory: OwnedFd,
}

fn memfd(len: u64) -> OwnedFd {
    let file = memfd_create("session-test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, len).unwrap();
    file
}

impl Rig {
    /// Connected, features agreed on, memory mapped, no ring started.
    fn new() -> Rig {
        let place = Arc::new(CountingPlace::default());
        let wake = Arc::new(Wake::new().unwrap());
        let session = Session::new(place.clone(), wake, 1500);
        let memory = memfd(RINGS as u64 * RING_LEN);
        let mut rig = Rig { session, place, memory };
        rig.tell(&Request::SetFeatures(F_VERSION_1 | F_PROTOCOL_FEATURES));
        rig.tell(&Request::SetProtocolFeatures(PROTOCOL_OFFERED));
        let file = rig.memory.try_clone().unwrap();
        rig.send(&Request::SetMemTable(vec![rig.region()]), vec![file]).unwrap();
        rig
    }

    /// With `pairs` pairs of rings started and enabled.
    fn running(pairs: u32) -> Rig {
        let mut rig = Rig::new();
        for index in 0..2 * pairs {
            rig.start(index);
            rig.enable(index, true);
        }
        rig
    }

    fn region(&self) -> RegionInfo {
        RegionInfo { guest_address: GUEST, size: RINGS as u64 * RING_LEN, user_address: USER, file_offset: 0 }
    }

    fn send(&mut self, request: &Request, fds: Vec<OwnedFd>) -> Result<Option<Vec<u8>>, SessionError> {
        let bytes = request.to_bytes(true);
        let header = Header::parse(bytes[..HEADER_LEN].try_into().unwrap()).unwrap();
        let message = Incoming { header, payload: bytes[HEADER_LEN..].to_vec(), fds };
        self.session.handle(message).map_err(|(error, _)| error)
    }

    /// A message without descriptors that must be taken; answers the reply's payload.
    fn tell(&mut self, request: &Request) -> Vec<u8> {
        let answer = self.send(request, Vec::new()).unwrap();
        answer.map_or(Vec::new(), |bytes| bytes[HEADER_LEN..].to_vec())
    }

    /// The first number of a reply.
    fn ask(&mut self, request: &Request) -> u64 {
        u64::from_ne_bytes(self.tell(request)[..8].try_into().unwrap())
    }

    fn addresses(index: u32) -> RingAddresses {
        let base = USER + u64::from(index) * RING_LEN;
        RingAddresses { index, flags: 0, descriptors: base, available: base + 4096, used: base + 2 * 4096, log: 0 }
    }

    fn start(&mut self, index: u32) {
        self.tell(&Request::SetVringNum(RingState { index, value: u32::from(SIZE) }));
        self.tell(&Request::SetVringBase(RingState { index, value: 0 }));
        self.tell(&Request::SetVringAddr(Rig::addresses(index)));
        self.tell(&Request::SetVringKick(RingFd { index: index as u8, has_fd: false }));
    }

    fn enable(&mut self, index: u32, is_enabled: bool) {
        self.tell(&Request::SetVringEnable { index, is_enabled });
    }

    /// What was published and withdrawn so far.
    fn counts(&self) -> (u32, u32) {
        let count = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        (count(&self.place.publications), count(&self.place.withdrawals))
    }

    fn port(&self) -> Arc<dyn Port> {
        self.place.port.lock().unwrap().clone().expect("something is published")
    }

    fn read_u16(&self, index: u32, page: u64, offset: u64) -> u16 {
        let mut bytes = [0; 2];
        rustix::io::pread(&self.memory, &mut bytes, u64::from(index) * RING_LEN + page * 4096 + offset).unwrap();
        u16::from_le_bytes(bytes)
    }

    fn write(&self, index: u32, page: u64, offset: u64, bytes: &[u8]) {
        rustix::io::pwrite(&self.memory, bytes, u64::from(index) * RING_LEN + page * 4096 + offset).unwrap();
    }

    /// Entries the device has given back.
    fn used_index(&self, index: u32) -> u16 {
        self.read_u16(index, 2, 2)
    }

    /// Makes one more buffer of the ring's last page available: to be written, or with a frame in it.
    fn post(&self, index: u32) {
        let position = self.read_u16(index, 1, 2);
        let (flags, len) =
            if index.is_multiple_of(2) { (crate::chain::WRITE, 512) } else { (0, 12 + FRAME_LEN as u32) };
        let slot = position % SIZE;
        let address = GUEST + u64::from(index) * RING_LEN + 3 * 4096 + 512 * u64::from(slot);
        let (low, high) = Descriptor { address, len, flags, next: 0 }.to_words();
        self.write(index, 0, 16 * u64::from(slot), &[low.to_ne_bytes(), high.to_ne_bytes()].concat());
        self.write(index, 1, 4 + 2 * u64::from(slot), &slot.to_le_bytes());
        self.write(index, 1, 2, &(position + 1).to_le_bytes());
    }

    /// What a worker takes from a pair of the guest.
    fn rx(&self, pair: u16) -> Tally {
        let (port, mut tally, mut batch) = (self.port(), Tally::default(), Batch::new());
        batch.clear(32, usize::MAX);
        port.rx(PortIndex(0), QueueIndex(pair), &mut batch, &mut tally);
        port.rx_done(QueueIndex(pair));
        tally
    }

    /// What becomes of a frame that a worker sends by a queue.
    fn tx(&self, queue: u16) -> Tally {
        let (port, mut tally, mut batch) = (self.port(), Tally::default(), Batch::new());
        batch.clear(32, usize::MAX);
        let mut packet = batch.start(PortIndex(1), QueueIndex(0)).unwrap();
        packet.head(FRAME_LEN).unwrap().fill(7);
        packet.commit(OffloadClaim::default());
        port.tx(QueueIndex(queue), &mut batch, &[0], &mut tally);
        tally
    }
}

fn drops(tally: &Tally) -> Vec<(DropReason, u32)> {
    tally.drops().collect()
}

const NOT_READY: [(DropReason, u32); 1] = [(DropReason::NotReady, 1)];

#[test]
fn sixteen_pairs_are_offered_and_all_of_them_carry_frames() {
    let mut rig = Rig::running(16);
    assert_eq!(rig.ask(&Request::GetQueueNum), 16);
    assert_eq!((rig.port().rx_queues(), rig.port().tx_queues()), (16, 16));
    for pair in 0..16 {
        rig.post(2 * pair);
        rig.post(2 * pair + 1);
        assert_eq!(rig.rx(pair as u16).packets, 1, "from pair {pair}");
        assert_eq!(rig.tx(pair as u16).packets, 1, "to pair {pair}");
        assert_eq!((rig.used_index(2 * pair), rig.used_index(2 * pair + 1)), (1, 1));
    }
}

#[test]
fn rings_switched_on_and_off_leave_the_others_where_they_are() {
    let mut rig = Rig::running(4);
    let set = rig.port();
    let (_, withdrawals) = rig.counts();
    for index in 2..8 {
        rig.enable(index, false);
        rig.enable(index, true);
    }
    assert_eq!(rig.counts().1, withdrawals, "nothing was withdrawn");
    assert!(Arc::ptr_eq(&set, &rig.port()), "and no worker sees another object");
}

#[test]
fn frames_for_a_ring_that_is_off_go_to_one_that_is_on() {
    let mut rig = Rig::running(4);
    for index in [2, 6] {
        rig.enable(index, false);
    }
    for ring in [0, 4] {
        (0..4).for_each(|_| rig.post(ring));
    }
    // Pairs 0 and 2 are left: 1 is odd and goes to the second of them, so does 3; and so it goes on beyond the last pair.
    for queue in [0, 1, 2, 3, 100, 101] {
        assert_eq!(rig.tx(queue).packets, 1, "by queue {queue}");
    }
    assert_eq!((rig.used_index(0), rig.used_index(4)), (2, 4));
    assert_eq!((rig.used_index(2), rig.used_index(6)), (0, 0));
    for index in [0, 4] {
        rig.enable(index, false);
    }
    assert_eq!(drops(&rig.tx(0)), NOT_READY, "none is left");
    assert!(!rig.session.view().is_running);
}

#[test]
fn a_ring_that_was_switched_off_is_emptied_and_one_that_never_was_on_keeps_its_frames() {
    let mut rig = Rig::running(1);
    rig.start(2);
    rig.start(3);
    rig.post(3);
    assert_eq!((rig.rx(1).packets, rig.used_index(3)), (0, 0), "not yet on");
    assert!(!rig.port().arm(QueueIndex(1)), "a worker may sleep");
    let before = rig.counts();
    rig.enable(3, true);
    assert_eq!(rig.counts(), (before.0 + 1, before.1), "workers that sleep are told");
    assert!(rig.port().arm(QueueIndex(1)));
    assert_eq!((rig.rx(1).packets, rig.used_index(3)), (1, 1));
    rig.enable(3, false);
    rig.post(3);
    rig.post(3);
    let tally = rig.rx(1);
    assert_eq!((tally.packets, drops(&tally)), (2, vec![(DropReason::NotReady, 2)]));
    assert_eq!(rig.used_index(3), 3, "given back");
    assert_eq!(rig.rx(0).packets, 0);
}

#[test]
fn a_message_for_a_ring_that_does_not_run_disturbs_none_that_does() {
    let mut rig = Rig::running(1);
    let before = rig.counts();
    rig.tell(&Request::SetVringNum(RingState { index: 6, value: 256 }));
    rig.tell(&Request::SetVringBase(RingState { index: 6, value: 9 }));
    rig.tell(&Request::SetVringAddr(Rig::addresses(6)));
    rig.enable(6, true);
    assert_eq!(rig.tell(&Request::GetVringBase(6)), [6u32.to_ne_bytes(), 9u32.to_ne_bytes()].concat());
    assert_eq!(rig.counts(), before);
}

#[test]
fn a_ring_that_breaks_is_named_and_the_others_go_on() {
    let mut rig = Rig::running(2);
    rig.post(1);
    rig.write(3, 1, 2, &99u16.to_le_bytes());
    assert_eq!((rig.rx(1).packets, rig.rx(0).packets), (0, 1));
    rig.session.look_after_faults().unwrap();
    assert!(rig.session.note().contains("send ring 1 stopped"), "{}", rig.session.note());
    rig.post(1);
    assert_eq!(rig.rx(0).packets, 1);
    assert!(rig.session.view().is_running);
}

#[test]
fn an_eventfd_is_needed_for_every_ring_descriptor() {
    let mut rig = Rig::new();
    let event = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let fd = RingFd { index: 31, has_fd: true };
    rig.send(&Request::SetVringKick(fd), vec![event()]).unwrap();
    rig.send(&Request::SetVringCall(fd), vec![event()]).unwrap();
    rig.send(&Request::SetVringErr(fd), vec![event()]).unwrap();
    let refused = rig.send(&Request::SetVringKick(fd), vec![memfd(8)]);
    assert!(matches!(refused, Err(SessionError::NotAnEventfd { code: Code::SetVringKick })));
}
