//! The session as a state machine: messages go in, and a place counts what workers get to see.

use super::*;
use crate::chain::Descriptor;
use crate::inflight::{RecordError, region_len};
use crate::message::RegionInfo;
use crate::message::{HEADER_LEN, Header, LogInfo, RingAddresses};
use crate::net::F_VERSION_1;
use crate::ring::{QUEUE_SIZE_MAX, RingError};
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
    /// What came with the last answer.
    fds: Vec<OwnedFd>,
}

fn memfd(len: u64) -> OwnedFd {
    let file = memfd_create("session-test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, len).unwrap();
    file
}

impl Rig {
    /// Connected, features agreed on, memory mapped, no ring started.
    fn new() -> Rig {
        Rig::with_log_told(true)
    }

    /// The same, told of in the log or not.
    fn with_log_told(is_told: bool) -> Rig {
        let place = Arc::new(CountingPlace::default());
        let wake = Arc::new(Wake::new().unwrap());
        let session = Session::new(place.clone(), wake, Arc::default(), Arc::new(1500.into()), None, is_told);
        let memory = memfd(RINGS as u64 * RING_LEN);
        let mut rig = Rig { session, place, memory, fds: Vec::new() };
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
        let answer = self.session.handle(message).map_err(|(error, _)| error)?;
        Ok(answer.map(|Outgoing { bytes, fds }| {
            self.fds = fds;
            bytes
        }))
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

    /// What becomes of a frame that a worker sends by a queue; it is of the flow of those that the guest sends.
    fn tx(&self, queue: u16) -> Tally {
        let (port, mut tally, mut batch) = (self.port(), Tally::default(), Batch::new());
        batch.clear(32, usize::MAX);
        let mut packet = batch.start(PortIndex(1), QueueIndex(0)).unwrap();
        packet.head(FRAME_LEN).unwrap().fill(0);
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
        (0..7).for_each(|_| rig.post(ring));
    }
    // Pairs 0 and 2 are left, and whichever worker sends, the flow goes by one of them.
    for queue in [0, 1, 2, 3, 100, 101] {
        assert_eq!(rig.tx(queue).packets, 1, "by queue {queue}");
    }
    let used = (rig.used_index(0), rig.used_index(4));
    assert!(matches!(used, (6, 0) | (0, 6)), "{used:?}");
    // The last one gets what there is.
    let (last, other) = if used.0 == 0 { (0, 4) } else { (4, 0) };
    rig.enable(other, false);
    assert_eq!((rig.tx(1).packets, rig.used_index(last)), (1, 1));
    assert_eq!((rig.used_index(2), rig.used_index(6)), (0, 0));
    rig.enable(last, false);
    assert_eq!(drops(&rig.tx(0)), NOT_READY, "none is left");
    assert!(!rig.session.view().is_running);
}

#[test]
fn a_ring_that_was_switched_off_is_emptied_and_one_that_never_was_on_keeps_its_frames() {
    let mut rig = Rig::running(1);
    rig.start(2);
    rig.start(3);
    rig.post(3);
    // QEMU says so of the pairs that its guest does not use.
    rig.enable(3, false);
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
}

#[test]
fn a_guest_of_which_one_ring_of_many_stopped_is_not_told_to_run_until_it_mends_or_gives_up_that_ring() {
    let mut rig = Rig::running(3);
    let is_told = |rig: &Rig, rings: &[&str]| {
        let note = rig.session.note();
        assert_eq!(rig.session.view().is_running, rings.is_empty(), "{note}");
        assert_eq!(note.matches("stopped").count(), rings.len(), "{note}");
        assert!(rings.iter().all(|ring| note.contains(ring)), "{note}");
    };
    is_told(&rig, &[]);
    for ring in [3, 5] {
        rig.write(ring, 1, 2, &99u16.to_le_bytes());
        assert_eq!(rig.rx(ring as u16 / 2).packets, 0);
        rig.session.look_after_faults().unwrap();
    }
    is_told(&rig, &["send ring 1 ", "send ring 2 "]);
    // It goes on with one pair less, and takes it up again.
    rig.enable(5, false);
    is_told(&rig, &["send ring 1 "]);
    rig.enable(5, true);
    is_told(&rig, &["send ring 1 ", "send ring 2 "]);
    for ring in [3, 5] {
        rig.write(ring, 1, 2, &0u16.to_le_bytes());
        rig.tell(&Request::GetVringBase(ring));
        rig.start(ring);
    }
    is_told(&rig, &[]);
    rig.post(3);
    assert_eq!(rig.rx(1).packets, 1);
}

#[test]
fn a_ring_that_broke_runs_again_after_any_reset() {
    for reset in [Request::ResetOwner, Request::ResetDevice, Request::SetStatus(0)] {
        let mut rig = Rig::running(1);
        rig.write(1, 1, 2, &99u16.to_le_bytes());
        assert_eq!(rig.rx(0).packets, 0);
        rig.session.look_after_faults().unwrap();
        assert!(rig.session.note().contains("stopped"), "{}", rig.session.note());
        rig.tell(&reset);
        assert_eq!(rig.session.note(), "", "{reset:?}");
        rig.write(1, 1, 2, &0u16.to_le_bytes());
        rig.tell(&Request::SetFeatures(F_VERSION_1 | F_PROTOCOL_FEATURES));
        for ring in 0..2 {
            rig.start(ring);
            rig.enable(ring, true);
        }
        rig.post(1);
        assert_eq!((rig.rx(0).packets, rig.session.view().is_running), (1, true), "{reset:?}");
    }
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

#[test]
fn regions_come_and_go_one_by_one_and_the_rings_go_on_where_they_were() {
    let mut rig = Rig::running(1);
    rig.post(1);
    assert_eq!(rig.rx(0).packets, 1);
    assert!(rig.ask(&Request::GetMaxMemSlots) >= 8, "the specification's baseline");
    let more = RegionInfo { guest_address: 0x1000_0000, size: 8192, user_address: 0x10_0000, file_offset: 0 };
    let tells_of =
        |answer: Result<Option<Vec<u8>>, SessionError>| answer.unwrap().is_some_and(|bytes| bytes[12..] == [0; 8]);
    assert!(tells_of(rig.send(&Request::AddMemReg(more), vec![memfd(8192)])));
    // A buffer in the new region, as a guest uses hot-plugged memory.
    rig.post(1);
    let (low, high) = Descriptor { address: 0x1000_0010, len: 12 + FRAME_LEN as u32, flags: 0, next: 0 }.to_words();
    rig.write(1, 0, 16, &[low.to_ne_bytes(), high.to_ne_bytes()].concat());
    assert_eq!((rig.rx(0).dropped, rig.used_index(1)), (0, 2));
    // With a file descriptor and with another offset, both of which mean nothing here.
    let gone = RegionInfo { file_offset: 1, ..more };
    assert!(tells_of(rig.send(&Request::RemMemReg(gone), vec![memfd(8)])));
    rig.post(1);
    rig.write(1, 0, 32, &[low.to_ne_bytes(), high.to_ne_bytes()].concat());
    assert_eq!(drops(&rig.rx(0)), [(DropReason::BadDescriptor, 1)]);
    rig.post(1);
    assert_eq!((rig.rx(0).packets, rig.used_index(1)), (1, 4));
}

#[test]
fn a_table_can_be_told_region_by_region_from_the_first_on() {
    let mut rig = Rig::new();
    let region = rig.region();
    rig.tell(&Request::RemMemReg(region));
    rig.start(0);
    assert_eq!(rig.port().tx_queues(), 1);
    assert_eq!(rig.counts(), (1, 0), "a ring without memory is nothing to publish");
    let file = rig.memory.try_clone().unwrap();
    rig.send(&Request::AddMemReg(region), vec![file]).unwrap();
    rig.enable(0, true);
    rig.post(0);
    assert_eq!(rig.tx(0).packets, 1);
}

#[test]
fn regions_that_cannot_be_are_refused() {
    let mut rig = Rig::running(1);
    let region = rig.region();
    let refused = rig.send(&Request::AddMemReg(region), vec![memfd(8192)]);
    assert!(matches!(refused, Err(SessionError::Memory(MemoryError::Overlap { .. }))));
    let mut rig = Rig::running(1);
    let refused = rig.send(&Request::RemMemReg(RegionInfo { size: 4096, ..region }), vec![]);
    assert!(matches!(refused, Err(SessionError::Memory(MemoryError::NoSuchRegion { .. }))));
    let mut rig = Rig::running(1);
    let refused = rig.send(&Request::RemMemReg(region), vec![]);
    assert!(refused.is_ok(), "rings without memory stand still");
    assert!(!rig.session.view().is_running);
}

#[test]
fn regions_are_added_and_removed_once_for_each_pair_of_queues_and_mean_it_once() {
    let mut rig = Rig::running(1);
    let region = rig.region();
    let file = || rig.memory.try_clone().unwrap();
    let (one, other) = (file(), file());
    rig.send(&Request::AddMemReg(region), vec![one]).unwrap();
    rig.post(1);
    assert_eq!(rig.rx(0).packets, 1, "the rings never stopped");
    let more = RegionInfo { guest_address: 0x1000_0000, size: 8192, user_address: 0x10_0000, file_offset: 0 };
    let added = memfd(8192);
    for _ in 0..3 {
        rig.send(&Request::AddMemReg(more), vec![added.try_clone().unwrap()]).unwrap();
    }
    for _ in 0..3 {
        rig.send(&Request::RemMemReg(more), vec![]).unwrap();
    }
    rig.post(1);
    assert_eq!(rig.rx(0).packets, 1);
    for _ in 0..3 {
        rig.send(&Request::RemMemReg(region), vec![]).unwrap();
    }
    // Of the same file, but another part of it.
    rig.send(&Request::AddMemReg(region), vec![other]).unwrap();
    let shifted = RegionInfo { file_offset: 4096, size: region.size - 4096, ..region };
    let refused = rig.send(&Request::AddMemReg(shifted), vec![rig.memory.try_clone().unwrap()]);
    assert!(matches!(refused, Err(SessionError::Memory(MemoryError::Overlap { .. }))));
}

#[test]
fn a_reset_device_is_as_new_but_keeps_its_memory() {
    for request in [Request::ResetDevice, Request::ResetOwner] {
        let mut rig = Rig::running(2);
        rig.tell(&Request::SetStatus(15));
        rig.tell(&request);
        assert!(!rig.session.view().is_running, "{request:?}");
        assert_eq!(drops(&rig.tx(0)), NOT_READY);
        if request == Request::ResetDevice {
            assert_eq!(rig.ask(&Request::GetStatus), 0);
        }
        rig.tell(&Request::SetFeatures(F_VERSION_1 | F_PROTOCOL_FEATURES));
        for index in 0..2 {
            rig.start(index);
        }
        assert!(!rig.session.view().is_running, "rings begin disabled again");
        rig.enable(0, true);
        rig.post(0);
        assert_eq!(rig.tx(0).packets, 1, "no memory table was sent again");
    }
}

#[test]
fn a_running_ring_tells_where_it_stands_and_takes_another_place() {
    let mut rig = Rig::running(1);
    (0..3).for_each(|_| rig.post(1));
    assert_eq!(rig.rx(0).packets, 3);
    assert_eq!(rig.tell(&Request::GetVringBase(1)), [1u32.to_ne_bytes(), 3u32.to_ne_bytes()].concat());
    assert!(!rig.session.view().is_running, "and stands still until it is kicked again");
    rig.post(1);
    rig.tell(&Request::SetVringBase(RingState { index: 1, value: 3 }));
    rig.tell(&Request::SetVringKick(RingFd { index: 1, has_fd: false }));
    assert_eq!(rig.rx(0).packets, 1);
    // Under way: the ring that runs goes on at once, where its used ring stands, whatever a message says.
    rig.post(1);
    rig.tell(&Request::SetVringBase(RingState { index: 1, value: 0 }));
    assert!(rig.session.view().is_running);
    assert_eq!((rig.rx(0).packets, rig.used_index(1)), (1, 5));
}

#[test]
fn rings_have_up_to_32768_entries() {
    let mut rig = Rig::new();
    let size = 32_768u64;
    let info = RegionInfo { guest_address: GUEST, size: 1 << 21, user_address: USER, file_offset: 0 };
    rig.memory = memfd(1 << 21);
    let file = rig.memory.try_clone().unwrap();
    rig.send(&Request::SetMemTable(vec![info]), vec![file]).unwrap();
    let addresses = RingAddresses {
        index: 0,
        flags: 0,
        descriptors: USER,
        available: USER + 16 * size,
        used: USER + (1 << 20),
        log: 0,
    };
    rig.tell(&Request::SetVringNum(RingState { index: 0, value: size as u32 }));
    rig.tell(&Request::SetVringAddr(addresses));
    rig.tell(&Request::SetVringKick(RingFd { index: 0, has_fd: false }));
    rig.enable(0, true);
    assert_eq!(drops(&rig.tx(0)), [(DropReason::RxRingFull, 1)], "it runs, and is empty");
    // Every buffer is the same one.
    let (low, high) =
        Descriptor { address: GUEST + (3 << 19), len: 512, flags: crate::chain::WRITE, next: 0 }.to_words();
    let table = [low.to_ne_bytes(), high.to_ne_bytes()].concat().repeat(size as usize);
    rustix::io::pwrite(&rig.memory, &table, 0).unwrap();
    let heads: Vec<u8> = (0..size as u16).flat_map(u16::to_le_bytes).collect();
    rustix::io::pwrite(&rig.memory, &heads, 16 * size + 4).unwrap();
    rustix::io::pwrite(&rig.memory, &(size as u16).to_le_bytes(), 16 * size + 2).unwrap();
    assert_eq!((0..size).filter(|_| rig.tx(0).packets == 1).count(), size as usize);
    assert_eq!(drops(&rig.tx(0)), [(DropReason::RxRingFull, 1)]);

    for size in [65_536, 0x1_0001, 24, u32::MAX] {
        let mut rig = Rig::new();
        rig.tell(&Request::SetVringNum(RingState { index: 0, value: size }));
        rig.tell(&Request::SetVringAddr(Rig::addresses(0)));
        let refused = rig.send(&Request::SetVringKick(RingFd { index: 0, has_fd: false }), vec![]);
        assert!(matches!(refused, Err(SessionError::Ring { index: 0, source: RingError::BadSize { .. } })), "{size}");
    }
}

#[test]
fn what_was_not_offered_is_refused_with_its_name() {
    let (guest_ufo, host_ufo, access_platform) = (1 << 10, 1 << 14, 1 << 33);
    for feature in [guest_ufo, host_ufo, access_platform] {
        let mut rig = Rig::new();
        assert_eq!(rig.ask(&Request::GetFeatures) & feature, 0);
        let refused = rig.send(&Request::SetFeatures(F_VERSION_1 | feature), vec![]);
        assert!(
            matches!(refused, Err(SessionError::NotOffered { code: Code::SetFeatures, given }) if given == feature)
        );
    }
    let cross_endian = 1 << 6;
    let mut rig = Rig::new();
    assert_eq!(rig.ask(&Request::GetProtocolFeatures) & cross_endian, 0);
    let refused = rig.send(&Request::SetProtocolFeatures(cross_endian), vec![]);
    assert!(matches!(refused, Err(SessionError::NotOffered { code: Code::SetProtocolFeatures, .. })));
    for value in [0, 1] {
        let mut rig = Rig::new();
        let refused = rig.send(&Request::SetVringEndian(RingState { index: 0, value }), vec![]);
        assert!(matches!(refused, Err(SessionError::NotAgreed { code: Code::SetVringEndian })));
    }
}

/// One message of each kind that this session takes, with how many descriptors of which file.
fn every_message(rig: &Rig) -> Vec<(Request, Vec<OwnedFd>)> {
    let ring = RingState { index: 0, value: 8 };
    let fd = RingFd { index: 0, has_fd: false };
    let file = || rig.memory.try_clone().unwrap();
    let more = RegionInfo { guest_address: 0x1000, size: 4096, user_address: 0x1000, file_offset: 0 };
    vec![
        (Request::GetFeatures, vec![]),
        (Request::SetFeatures(F_VERSION_1 | F_PROTOCOL_FEATURES), vec![]),
        (Request::GetProtocolFeatures, vec![]),
        (Request::SetProtocolFeatures(PROTOCOL_OFFERED), vec![]),
        (Request::SetOwner, vec![]),
        (Request::GetQueueNum, vec![]),
        (Request::GetMaxMemSlots, vec![]),
        (Request::SetMemTable(vec![rig.region()]), vec![file()]),
        (Request::AddMemReg(more), vec![memfd(4096)]),
        (Request::RemMemReg(more), vec![]),
        (Request::SetLogBase(LogInfo { size: 4096, file_offset: 0 }), vec![memfd(4096)]),
        (Request::SetLogFd, vec![eventfd(0, EventfdFlags::CLOEXEC).unwrap()]),
        (Request::SetVringNum(ring), vec![]),
        (Request::SetVringBase(RingState { index: 0, value: 0 }), vec![]),
        (Request::SetVringAddr(Rig::addresses(0)), vec![]),
        (Request::SetVringKick(fd), vec![]),
        (Request::SetVringCall(fd), vec![]),
        (Request::SetVringErr(fd), vec![]),
        (Request::SetVringEnable { index: 0, is_enabled: true }, vec![]),
        (Request::NetSetMtu(1500), vec![]),
        (Request::NetSetMtu(67), vec![]),
        (Request::SendRarp([2, 0, 0, 0, 0, 1]), vec![]),
        (Request::SetStatus(15), vec![]),
        (Request::GetStatus, vec![]),
        (Request::GetVringBase(0), vec![]),
        (Request::ResetOwner, vec![]),
        (Request::ResetDevice, vec![]),
    ]
}

#[test]
fn every_message_that_asks_for_an_answer_gets_exactly_one() {
    for needs_reply in [true, false] {
        let mut rig = Rig::new();
        for (request, fds) in every_message(&rig) {
            let bytes = request.to_bytes(needs_reply);
            let header = Header::parse(bytes[..HEADER_LEN].try_into().unwrap()).unwrap();
            let payload = bytes[HEADER_LEN..].to_vec();
            let answer = rig.session.handle(Incoming { header, payload, fds }).map_err(|(error, _)| error).unwrap();
            assert_eq!(answer.is_some(), needs_reply || request.has_reply(), "{request:?}");
            let Some(Outgoing { bytes: answer, .. }) = answer else { continue };
            let header = Header::parse(answer[..HEADER_LEN].try_into().unwrap()).unwrap();
            assert!(header.is_reply() && header.request == request.code() as u32, "{request:?}");
            assert_eq!(header.size as usize, answer.len() - HEADER_LEN, "one, and whole");
            if !request.has_reply() {
                let expected = if request == Request::NetSetMtu(67) { 1u64 } else { 0 };
                assert_eq!(answer[HEADER_LEN..], expected.to_ne_bytes(), "{request:?}");
            }
        }
    }
}

#[test]
fn a_message_that_ends_the_session_is_answered_no_if_an_answer_was_wanted() {
    for (needs_reply, expected) in [(true, Some(1u64)), (false, None)] {
        let mut rig = Rig::new();
        let bytes = Request::SetVringEndian(RingState { index: 0, value: 1 }).to_bytes(needs_reply);
        let header = Header::parse(bytes[..HEADER_LEN].try_into().unwrap()).unwrap();
        let message = Incoming { header, payload: bytes[HEADER_LEN..].to_vec(), fds: vec![] };
        let Err((_, answer)) = rig.session.handle(message) else { panic!("it was taken") };
        assert_eq!(answer.map(|answer| u64::from_ne_bytes(answer.bytes[HEADER_LEN..].try_into().unwrap())), expected);
    }
}

#[test]
fn a_log_that_is_too_short_for_the_memory_or_a_ring_ends_the_session() {
    // 512 KiB of memory at 1 GiB: the last page is number 0x4007f, whose bit lies in byte 0x800f.
    let log = |rig: &mut Rig, size| rig.send(&Request::SetLogBase(LogInfo { size, file_offset: 0 }), vec![memfd(size)]);
    let mut rig = Rig::running(1);
    rig.session.features |= F_LOG_ALL;
    let refused = log(&mut rig, 0x800f);
    assert!(matches!(refused, Err(SessionError::Memory(MemoryError::LogTooShort { wanted: 0x8010, given: 0x800f }))));
    let mut rig = Rig::running(1);
    rig.session.features |= F_LOG_ALL;
    assert!(log(&mut rig, 0x8010).unwrap().is_some());
    // A used ring may be logged where no memory is, but not behind the log.
    let last = RingAddresses { flags: RING_LOG, log: 0x8010 * 8 * 4096 - 70, ..Rig::addresses(0) };
    rig.tell(&Request::SetVringAddr(last));
    let refused = rig.send(&Request::SetVringAddr(RingAddresses { log: last.log + 1, ..last }), vec![]);
    assert!(matches!(refused, Err(SessionError::Memory(MemoryError::LogTooShort { wanted: 0x8011, .. }))));
}

/// A rig with an inflight area for its rings, and the area's file.
fn with_inflight(mut rig: Rig) -> (Rig, InflightInfo, OwnedFd) {
    let wish = InflightInfo { size: 0, file_offset: 0, ring_count: 2, ring_size: SIZE };
    let bytes = rig.send(&Request::GetInflightFd(wish), vec![]).unwrap().expect("an answer");
    let header = Header::parse(bytes[..HEADER_LEN].try_into().unwrap()).unwrap();
    let Ok(Reply::Inflight(info)) = Reply::parse(&header, &bytes[HEADER_LEN..]) else { panic!("no area") };
    let file = rig.fds.pop().expect("its file");
    rig.send(&Request::SetInflightFd(info), vec![file.try_clone().unwrap()]).unwrap();
    (rig, info, file)
}

#[test]
fn an_inflight_area_is_made_on_request_and_taken_back() {
    let (mut rig, info, file) = with_inflight(Rig::new());
    assert_eq!((info.ring_count, info.ring_size, info.size), (2, SIZE, 2 * region_len(false, SIZE) as u64));
    assert!(ftruncate(&file, 0).is_err(), "nobody can cut it short");
    for index in 0..2 {
        rig.start(index);
        rig.enable(index, true);
    }
    rig.post(1);
    assert_eq!(rig.rx(0).packets, 1);
    let mut version = [0; 4];
    rustix::io::pread(&file, &mut version, 8).unwrap();
    assert_eq!(version, [1u16.to_ne_bytes(), SIZE.to_ne_bytes()].concat()[..]);
}

#[test]
fn buffers_that_another_backend_had_taken_out_of_order_come_back_empty() {
    let (mut rig, info, file) = with_inflight(Rig::new());
    for _ in 0..3 {
        rig.post(1);
    }
    // It finished the second of three, and died.
    rig.write(1, 2, 4, &[1u32.to_le_bytes(), 0u32.to_le_bytes()].concat());
    rig.write(1, 2, 2, &1u16.to_le_bytes());
    let region = info.size / 2;
    let put = |at: u64, bytes: &[u8]| assert_eq!(rustix::io::pwrite(&file, bytes, region + at).unwrap(), bytes.len());
    put(8, &[1u16, SIZE, 0, 1].map(u16::to_ne_bytes).concat());
    put(16, &[1]);
    put(16 + 2 * 16, &[1]);
    rig.start(1);
    rig.enable(1, true);
    assert_eq!(rig.used_index(1), 3, "the other two are given back");
    rig.post(1);
    assert_eq!((rig.rx(0).packets, rig.used_index(1)), (1, 4));
}

/// Counts what a user sees of the log.
#[derive(Clone, Default)]
struct LogLines(Arc<AtomicU32>);

impl tracing::Subscriber for LogLines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO
    }
    fn event(&self, _event: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn new_span(&self, _span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _span: &tracing::span::Id, _values: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _span: &tracing::span::Id, _follows: &tracing::span::Id) {}
    fn enter(&self, _span: &tracing::span::Id) {}
    fn exit(&self, _span: &tracing::span::Id) {}
}

#[test]
fn a_peer_that_starts_a_ring_again_and_again_is_told_of_once_or_not_at_all() {
    for (is_told, expected) in [(true, 2), (false, 0)] {
        let mut rig = Rig::with_log_told(is_told);
        rig.tell(&Request::SetFeatures(F_VERSION_1 | F_PROTOCOL_FEATURES | F_RING_PACKED));
        let (mut rig, ..) = with_inflight(rig);
        let lines = LogLines::default();
        tracing::subscriber::with_default(lines.clone(), || {
            rig.start(0);
            for _ in 0..10 {
                rig.tell(&Request::SetVringBase(RingState { index: 0, value: 0x8000_8000 }));
                assert!(rig.session.is_published(0));
                rig.tell(&Request::NetSetMtu(9000));
            }
        });
        assert_eq!(lines.0.load(Ordering::Relaxed), expected, "the ring, and the MTU");
    }
}

#[test]
fn inflight_areas_that_cannot_be_end_the_session_with_their_name() {
    for (ring_count, ring_size) in [(0, 8), (33, 8), (u16::MAX, 8), (2, 0), (2, 32_769)] {
        let refused = Rig::new()
            .send(&Request::GetInflightFd(InflightInfo { size: 0, file_offset: 0, ring_count, ring_size }), vec![]);
        assert!(matches!(refused, Err(SessionError::NoInflight { .. })), "{ring_count} of {ring_size}");
    }
    let mut rig = Rig::new();
    let info = InflightInfo { size: 8192, file_offset: 0, ring_count: 2, ring_size: SIZE };
    let refused = rig.send(&Request::SetInflightFd(info), vec![memfd(4096)]);
    assert!(matches!(refused, Err(SessionError::InflightFile(_))));
    // Of the longest rings there can be, all of them; and a byte more, for which the file has room.
    let most = (RINGS * region_len(true, QUEUE_SIZE_MAX)) as u64;
    let file = memfd(1 << 40);
    for (size, is_refused) in [(most, false), (most + 1, true), (1 << 40, true)] {
        let mut rig = Rig::new();
        let answer = rig.send(&Request::SetInflightFd(InflightInfo { size, ..info }), vec![file.try_clone().unwrap()]);
        let is_told = matches!(answer, Err(SessionError::InflightTooLong { given }) if given == size);
        assert_eq!(is_told, is_refused, "{size} bytes: {answer:?}");
    }
    // Too short for a ring, or for another size, or for fewer rings: found when the ring starts.
    for (size, ring_count, ring_size, ring) in [(64, 2, SIZE, 1), (8192, 2, 16, 0), (8192, 1, SIZE, 1)] {
        let mut rig = Rig::new();
        let info = InflightInfo { size, file_offset: 0, ring_count, ring_size };
        rig.send(&Request::SetInflightFd(info), vec![memfd(8192)]).unwrap();
        rig.tell(&Request::SetVringNum(RingState { index: ring, value: u32::from(SIZE) }));
        rig.tell(&Request::SetVringAddr(Rig::addresses(ring)));
        let refused = rig.send(&Request::SetVringKick(RingFd { index: ring as u8, has_fd: false }), vec![]);
        assert!(matches!(refused, Err(SessionError::Record { source: RecordError::TooShort, .. })), "{info:?}");
    }
    let mut rig = Rig::new();
    rig.tell(&Request::SetProtocolFeatures(PROTOCOL_OFFERED & !protocol::INFLIGHT_SHMFD));
    let refused = rig.send(&Request::GetInflightFd(info), vec![]);
    assert!(matches!(refused, Err(SessionError::NotAgreed { code: Code::GetInflightFd })));
}

/// The pages marked in a log whose file is `file`.
fn marked(file: &OwnedFd, bytes: usize) -> Vec<u64> {
    let mut log = vec![0; bytes];
    rustix::io::pread(file, &mut log, 0).unwrap();
    (0..8 * bytes as u64).filter(|page| log[*page as usize / 8] & 1 << (page % 8) != 0).collect()
}

#[test]
fn while_the_log_is_on_every_page_that_is_written_is_marked_and_before_and_after_none() {
    let page = |address: u64| address / 4096;
    let mut rig = Rig::running(1);
    let (bytes, file) = (0x8010, memfd(0x8010));
    let log = LogInfo { size: bytes as u64, file_offset: 0 };
    rig.send(&Request::SetLogBase(log), vec![file.try_clone().unwrap()]).unwrap();
    (0..8).for_each(|_| rig.post(0));
    rig.post(1);
    assert_eq!((rig.tx(0).packets, rig.rx(0).packets), (1, 1));
    assert_eq!(marked(&file, bytes), [], "nobody asked yet");

    // As QEMU does: the feature, then the addresses with the flag; the used rings are logged elsewhere than they lie.
    rig.tell(&Request::SetFeatures(F_VERSION_1 | F_PROTOCOL_FEATURES | F_LOG_ALL));
    for index in 0..2 {
        let elsewhere = 0x10_0000 + 0x1_0000 * u64::from(index);
        rig.tell(&Request::SetVringAddr(RingAddresses { flags: RING_LOG, log: elsewhere, ..Rig::addresses(index) }));
    }
    assert!(rig.session.view().is_running);
    let quiet = marked(&file, bytes);
    assert_eq!(quiet, [0x10_0000, 0x11_0000].map(page), "the words about kicks");
    assert_eq!(rig.tx(0).packets, 1);
    assert_eq!(marked(&file, bytes), [page(0x10_0000), page(0x11_0000), page(GUEST + 3 * 4096)], "and a buffer");
    rustix::io::pwrite(&file, &vec![0; bytes], 0).unwrap();
    rig.post(1);
    assert_eq!(rig.rx(0).packets, 1);
    assert_eq!(marked(&file, bytes), [page(0x11_0000)], "what the guest sends is only read");

    rig.tell(&Request::SetFeatures(F_VERSION_1 | F_PROTOCOL_FEATURES));
    rustix::io::pwrite(&file, &vec![0; bytes], 0).unwrap();
    rig.post(1);
    assert_eq!((rig.tx(0).packets, rig.rx(0).packets), (1, 1));
    assert_eq!(marked(&file, bytes), [], "and it is off again");
}
