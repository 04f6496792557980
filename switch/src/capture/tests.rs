//! Captures over a switch of memory ports, its one worker driven by hand.

#![allow(clippy::unwrap_used, reason = "test code")]

use super::*;
use crate::config::{Config, MTU_DEFAULT, NetworkConfig, PortConfig};
use crate::ids::{NetworkIndex, PortIndex, QueueIndex};
use crate::offload::{F_NEEDS_CSUM, Gso, GsoKind, Offload};
use crate::poll::Poll;
use crate::port::Port;
use crate::switch::{Switch, SwitchConfig, WorkerSpec};
use crate::testing::{Limits, MemoryPort};
use crate::worker::{Context, Egress, Pipeline, Worker};
use rustix::event::{PollFd, PollFlags, poll};
use std::os::fd::BorrowedFd;

const A: PortIndex = PortIndex(0);
const B: PortIndex = PortIndex(1);

/// Sends every frame to all other ports. By their first byte frames are dropped (0xdd as spoofed, 0xde as truncated),
/// swallowed (0xcc), answered (0xaa; 0xab as what is too long) or rewritten (0x77); 0x66 asks for a cut.
struct Hub;

impl Pipeline for Hub {
    type Tables = Vec<PortIndex>;

    fn compile(config: &Config) -> Vec<PortIndex> {
        config.ports().iter().map(|port| port.index).collect()
    }

    fn run(tables: &Vec<PortIndex>, _context: &Context<'_>, batch: &mut Batch<'_>, egress: &mut Egress<'_>) {
        for (at, packet) in batch.packets_mut().iter_mut().enumerate() {
            match packet.head()[0] {
                0xdd => egress.drop_ingress(packet.ingress, DropReason::SpoofedMac),
                0xde => egress.drop_ingress(packet.ingress, DropReason::Truncated),
                0xcc => egress.consume(),
                0xaa => egress.answer(at, packet.len(), packet.ingress),
                0xab => {
                    egress.drop_egress(B, DropReason::OverMtu);
                    egress.answer(at, packet.len(), packet.ingress);
                }
                first => {
                    if first == 0x77 {
                        packet.head_mut()[1] = 0x88;
                    }
                    let gso = Gso { kind: GsoKind::Tcp4, size: 100, header_len: 54, ecn: false };
                    packet.offload = Offload { gso: (first == 0x66).then_some(gso), ..Offload::default() };
                    for &port in tables.iter().filter(|&&port| port != packet.ingress) {
                        egress.forward(at, packet.len(), port);
                    }
                }
            }
        }
    }

    fn trace(_: &Vec<PortIndex>, _: &Context<'_>, _: &mut Batch<'_>) -> Vec<String> {
        Vec::new()
    }
}

struct Rig {
    switch: Arc<Switch<Hub>>,
    worker: Worker<Hub>,
    a: Arc<MemoryPort>,
    b: Arc<MemoryPort>,
    now: u64,
}

impl Rig {
    fn new(b: Limits) -> Rig {
        let config =
            SwitchConfig { workers: vec![WorkerSpec::default()], poll: Poll::Always, mac_max: 100, mac_age_s: 300 };
        let switch = Switch::new(&config).unwrap();
        let network = NetworkConfig { index: NetworkIndex(1), id: "net".into() };
        let port = |index| PortConfig {
            index,
            interface: format!("if{index}").into(),
            network: Some(NetworkIndex(1)),
            is_admin_up: true,
            mtu: MTU_DEFAULT,
            macs: vec![],
            allowed_macs: Vec::new(),
        };
        switch.apply(Config::new(vec![network], vec![port(A), port(B)]).unwrap());
        let (a, b) = (MemoryPort::new(), MemoryPort::with(b));
        switch.place(A).publish(a.clone());
        switch.place(B).publish(b.clone());
        let worker = switch.take_workers().pop().unwrap();
        Rig { switch, worker, a, b, now: 1_000 }
    }

    /// A capture of everything at `port`.
    fn capture(&self, port: PortIndex) -> Reader {
        self.capture_with(port, everything())
    }

    fn capture_with(&self, port: PortIndex, config: CaptureConfig) -> Reader {
        let (capture, reader) = Capture::new(config, 1).unwrap();
        self.switch.add_capture(port, &capture).unwrap();
        reader
    }

    fn step(&mut self) {
        self.now += 1;
        self.worker.step(Now { ns: self.now });
        assert!(self.switch.balance().balances());
    }
}

fn everything() -> CaptureConfig {
    CaptureConfig { rx: true, tx: true, snaplen: SNAPLEN_MAX, buffer: 0, filter: None }
}

fn frame(first: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| if at == 0 { first } else { (at % 251) as u8 }).collect()
}

/// What a reader got: direction, fate, bytes.
fn collect(reader: &mut Reader) -> Vec<(Direction, Fate, Vec<u8>)> {
    let count = reader.collect();
    let frames: Vec<_> = reader.frames().map(|(r, bytes)| (r.direction, r.fate, bytes.to_vec())).collect();
    assert_eq!(frames.len(), count);
    frames
}

fn stopped(reasons: &[DropReason]) -> Fate {
    Fate::Stopped(Reasons(reasons.iter().map(|&reason| 1 << reason as u64).sum()))
}

#[test]
fn frames_are_captured_whole_both_ways_in_order_and_told_their_time() {
    let mut rig = Rig::new(Limits::default());
    let (mut at_a, mut at_b) = (rig.capture(A), rig.capture(B));
    let (short, long) = (frame(1, 60), frame(2, 9000));
    rig.a.inject(&short);
    rig.a.inject(&long);
    rig.b.inject(&short);
    rig.step();
    assert_eq!(at_a.collect(), 3);
    let times: Vec<_> = at_a.frames().map(|(record, _)| (record.at.ns, record.frame_len)).collect();
    assert_eq!(times, [(1_001, 60), (1_001, 9000), (1_001, 60)]);
    let frames: Vec<_> = at_a.frames().map(|(record, bytes)| (record.direction, bytes.to_vec())).collect();
    assert_eq!(frames, [(Direction::Rx, short.clone()), (Direction::Rx, long.clone()), (Direction::Tx, short.clone())]);
    let mirrored = collect(&mut at_b);
    let expected = [(Direction::Tx, short.clone()), (Direction::Tx, long), (Direction::Rx, short)];
    assert_eq!(mirrored, expected.map(|(direction, bytes)| (direction, Fate::Passed, bytes)));
    assert_eq!(at_a.collect(), 0, "what was taken is gone");
}

#[test]
fn a_frame_is_captured_as_it_came_even_if_a_stage_rewrites_it() {
    let mut rig = Rig::new(Limits::default());
    let (mut at_a, mut at_b) = (rig.capture(A), rig.capture(B));
    rig.a.inject(&frame(0x77, 60));
    rig.step();
    assert_eq!(collect(&mut at_a)[0].2[1], 1);
    assert_eq!(collect(&mut at_b)[0].2[1], 0x88);
}

#[test]
fn frames_that_go_no_further_are_captured_with_the_reason() {
    let mut rig = Rig::new(Limits::default());
    let (mut at_a, mut at_b) = (rig.capture(A), rig.capture(B));
    rig.a.inject(&frame(0xdd, 60));
    rig.a.inject(&frame(1, 60));
    rig.step();
    rig.a.inject(&frame(0xcc, 60));
    rig.step();
    rig.a.inject(&frame(0xdd, 60));
    rig.a.inject(&frame(0xde, 60));
    rig.step();
    let fates: Vec<Fate> = collect(&mut at_a).into_iter().map(|(_, fate, _)| fate).collect();
    let both = stopped(&[DropReason::SpoofedMac, DropReason::Truncated]);
    assert_eq!(fates, [stopped(&[DropReason::SpoofedMac]), Fate::Passed, stopped(&[]), both, both]);
    assert_eq!(collect(&mut at_b).len(), 1, "the receiver got one frame");
}

/// Delivers frames to `inner` one by one and refuses those that begin with 3.
struct Picky {
    inner: Arc<MemoryPort>,
}

impl Port for Picky {
    fn rx_queues(&self) -> u16 {
        1
    }

    fn tx_queues(&self) -> u16 {
        1
    }

    fn rx<'r>(&'r self, ingress: PortIndex, queue: QueueIndex, batch: &mut Batch<'r>, tally: &mut Tally) {
        self.inner.rx(ingress, queue, batch, tally);
    }

    fn rx_done(&self, _: QueueIndex) {}

    fn tx(&self, queue: QueueIndex, batch: &mut Batch<'_>, picks: &[u8], tally: &mut Tally) {
        for &pick in picks {
            match batch.frame(usize::from(pick)).0.head()[0] {
                3 => tally.drop(DropReason::DeviceError),
                _ => self.inner.tx(queue, batch, &[pick], tally),
            }
        }
    }

    fn wake_fd(&self, _: QueueIndex) -> Option<BorrowedFd<'_>> {
        None
    }

    fn arm(&self, _: QueueIndex) -> bool {
        false
    }

    fn disarm(&self, _: QueueIndex) {}
}

#[test]
fn a_frame_that_became_its_own_answer_went_no_further() {
    for (first, reasons) in [(0xaa, &[][..]), (0xab, &[DropReason::OverMtu])] {
        let mut rig = Rig::new(Limits::default());
        let mut reader = rig.capture(A);
        rig.a.inject(&frame(first, 60));
        rig.step();
        let fates: Vec<_> = collect(&mut reader).into_iter().map(|(way, fate, _)| (way, fate)).collect();
        assert_eq!(fates, [(Direction::Rx, stopped(reasons)), (Direction::Tx, Fate::Passed)], "{first:#x}");
    }
}

#[test]
fn only_frames_that_were_delivered_are_captured_at_their_receiver() {
    // Some are refused in between, the last finds no room.
    let mut rig = Rig::new(Limits { room: Some(3), ..Limits::default() });
    rig.switch.place(B).publish(Arc::new(Picky { inner: rig.b.clone() }));
    let mut at_b = rig.capture(B);
    for first in [3, 1, 3, 3, 2, 4, 5] {
        rig.a.inject(&frame(first, 60));
    }
    rig.step();
    let captured: Vec<_> = collect(&mut at_b).into_iter().map(|(_, fate, bytes)| (fate, bytes)).collect();
    let delivered: Vec<_> = rig.b.collect().into_iter().map(|frame| (Fate::Passed, frame.bytes)).collect();
    assert_eq!(captured, delivered);
    let firsts: Vec<u8> = captured.iter().map(|(_, bytes)| bytes[0]).collect();
    assert_eq!(firsts, [1, 2, 4]);
}

#[test]
fn offload_work_is_told_as_claimed_and_as_left_to_the_receiver() {
    let mut limits = Limits::default();
    limits.offloads.tso4 = true;
    let mut rig = Rig::new(limits);
    let (mut at_a, mut at_b) = (rig.capture(A), rig.capture(B));
    let claim = OffloadClaim { flags: F_NEEDS_CSUM, csum_start: 34, csum_offset: 16, ..OffloadClaim::default() };
    rig.a.inject_with(&frame(0x66, 3000), claim);
    rig.step();
    at_a.collect();
    at_b.collect();
    assert_eq!(at_a.frames().next().unwrap().0.offload, claim);
    let told = at_b.frames().next().unwrap().0.offload;
    assert_eq!((told.flags, told.gso_type, told.gso_size, told.hdr_len), (0, crate::offload::GSO_TCPV4, 100, 54));
}

#[test]
fn a_full_buffer_loses_the_copy_and_counts_it_and_the_frame_goes_its_way() {
    let mut rig = Rig::new(Limits::default());
    let mut at_a = rig.capture(A);
    let mut sent = 0;
    while at_a.capture().totals().lost < 3 {
        rig.a.inject(&frame(1, 9000));
        rig.step();
        sent += 1;
        assert_eq!(rig.b.collect().len(), 1);
        assert!(sent < 10_000, "the buffer is bounded");
    }
    assert!(sent > 20, "a buffer holds more than {sent} frames");
    assert_eq!(at_a.collect(), sent - 3);
    rig.a.inject(&frame(2, 60));
    rig.step();
    assert_eq!(at_a.collect(), 1);
    assert_eq!(at_a.frames().next().unwrap().0.lost, 3);
    let bytes = sent as u64 * 9000 + 60;
    let (seen, lost) = (sent as u64 + 1, 3);
    assert_eq!(at_a.capture().totals(), CaptureTotals { seen, matched: seen, matched_bytes: bytes, lost });
}

#[test]
fn many_short_frames_fill_a_buffer_too() {
    let mut rig = Rig::new(Limits::default());
    let mut at_a = rig.capture(A);
    for sent in 0.. {
        rig.a.inject(&frame(1, 2));
        rig.step();
        assert!(sent < 100_000, "the buffer is bounded");
        if at_a.capture().totals().lost > 0 {
            assert_eq!(at_a.collect(), sent);
            break;
        }
    }
}

#[test]
fn a_half_full_buffer_calls_its_reader_once() {
    let mut rig = Rig::new(Limits::default());
    let mut at_a = rig.capture(A);
    let is_called =
        |reader: &Reader| poll(&mut [PollFd::new(reader, PollFlags::IN)], Some(&Default::default())).unwrap() == 1;
    rig.a.inject(&frame(1, 9000));
    rig.step();
    assert!(!is_called(&at_a));
    while !is_called(&at_a) {
        rig.a.inject(&frame(1, 9000));
        rig.step();
    }
    assert_eq!(at_a.capture().totals().lost, 0, "called before anything was lost");
    at_a.collect();
    assert!(!is_called(&at_a));
}

#[test]
fn a_snaplen_cuts_the_copy_and_keeps_the_length() {
    let mut rig = Rig::new(Limits::default());
    let mut at_a = rig.capture_with(A, CaptureConfig { snaplen: 200, ..everything() });
    for len in [60, 200, 201, 9000] {
        rig.a.inject(&frame(1, len));
    }
    rig.step();
    at_a.collect();
    let lens: Vec<_> = at_a.frames().map(|(record, bytes)| (record.frame_len, bytes.len())).collect();
    assert_eq!(lens, [(60, 60), (200, 200), (201, 200), (9000, 200)]);
    assert!(at_a.frames().all(|(_, bytes)| *bytes == frame(1, bytes.len())));
}

/// Wants frames whose byte 100 has a value.
struct Byte100(u8);

impl Filter for Byte100 {
    fn matches(&self, head: &[u8], frame_len: usize) -> bool {
        assert!(head.len() >= FILTER_BYTES.min(frame_len));
        head.get(100) == Some(&self.0)
    }
}

#[test]
fn a_filter_sees_the_first_bytes_wherever_the_head_ends_and_directions_are_chosen() {
    let mut rig = Rig::new(Limits { head: Some(20), ..Limits::default() });
    let filter = |byte| -> Option<Box<dyn Filter>> { Some(Box::new(Byte100(byte))) };
    let mut wanted = rig.capture_with(B, CaptureConfig { filter: filter(100), ..everything() });
    let mut unwanted = rig.capture_with(B, CaptureConfig { filter: filter(7), ..everything() });
    let mut from = rig.capture_with(B, CaptureConfig { tx: false, ..everything() });
    let mut to = rig.capture_with(B, CaptureConfig { rx: false, ..everything() });
    for device in [&rig.a, &rig.b] {
        device.inject(&frame(1, 300));
        device.inject(&frame(1, 60));
    }
    rig.step();
    assert_eq!(collect(&mut wanted).len(), 2);
    assert_eq!(collect(&mut unwanted).len(), 0);
    assert_eq!((unwanted.capture().totals().seen, unwanted.capture().totals().matched), (4, 0));
    assert!(collect(&mut from).iter().all(|frame| frame.0 == Direction::Rx));
    assert!(collect(&mut to).iter().all(|frame| frame.0 == Direction::Tx));
    assert_eq!((from.capture().totals().seen, to.capture().totals().seen), (2, 2));
}

#[test]
fn without_a_snaplen_frames_are_counted_and_not_kept() {
    let mut rig = Rig::new(Limits::default());
    let mut at_a = rig.capture_with(A, CaptureConfig { snaplen: 0, ..everything() });
    rig.a.inject(&frame(1, 60));
    rig.b.inject(&frame(1, 100));
    rig.step();
    assert_eq!(at_a.collect(), 0);
    let totals = CaptureTotals { seen: 2, matched: 2, matched_bytes: 160, lost: 0 };
    assert_eq!(at_a.capture().totals(), totals);
}

#[test]
fn a_capture_stays_while_devices_come_and_go_and_ends_with_the_place() {
    let mut rig = Rig::new(Limits::default());
    let mut at_a = rig.capture(A);
    rig.worker.step(Now { ns: 1 });
    rig.switch.place(A).publish(MemoryPort::new());
    rig.switch.place(A).publish(rig.a.clone());
    rig.a.inject(&frame(1, 60));
    rig.step();
    assert_eq!(collect(&mut at_a).len(), 1);
    let capture = at_a.capture().clone();
    assert!(rig.switch.has_capture(A, &capture) && !rig.switch.has_capture(B, &capture));
    rig.switch.apply(Config::default());
    rig.switch.forget(A);
    assert!(!rig.switch.has_capture(A, &capture));
    assert_eq!(rig.switch.add_capture(A, &capture), Err(CaptureError::NoPort));
}

#[test]
fn captures_at_one_port_are_bounded_and_removing_one_leaves_the_others() {
    let mut rig = Rig::new(Limits::default());
    let mut readers: Vec<_> = (0..CAPTURES_PER_PORT).map(|_| rig.capture(A)).collect();
    let (one_more, _reader) = Capture::new(everything(), 1).unwrap();
    assert_eq!(rig.switch.add_capture(A, &one_more), Err(CaptureError::TooMany));
    let removed = readers.remove(1);
    std::thread::scope(|scope| {
        let remover = scope.spawn(|| rig.switch.remove_capture(A, removed.capture()));
        // The worker must move on to the snapshot without it before the remover may return.
        while !remover.is_finished() {
            rig.worker.step(Now { ns: 1 });
        }
    });
    rig.a.inject(&frame(1, 60));
    rig.step();
    assert!(readers.iter_mut().all(|reader| collect(reader).len() == 1));
    assert_eq!(removed.capture().totals().seen, 0);
    rig.switch.add_capture(A, &one_more).unwrap();
}

#[test]
fn frames_of_several_workers_are_told_in_the_order_of_time() {
    let (capture, mut reader) = Capture::new(everything(), 3).unwrap();
    let device = MemoryPort::new();
    let mut batch = Batch::new();
    for (worker, ns) in [(0, 5), (0, 9), (1, 2), (1, 7), (2, 1), (2, 7), (2, 20)] {
        device.inject(&frame(1, 60));
        batch.clear(BURST, usize::MAX);
        device.rx(A, QueueIndex(0), &mut batch, &mut Tally::default());
        drop(RxBurst::begin(
            std::slice::from_ref(&capture),
            WorkerIndex(worker),
            Now { ns },
            &mut batch,
            &WorkerLedger::default(),
        ));
    }
    reader.collect();
    let times: Vec<u64> = reader.frames().map(|(record, _)| record.at.ns).collect();
    assert_eq!(times, [1, 2, 5, 7, 7, 9, 20]);
}

#[test]
fn a_call_that_does_not_say_which_frames_it_dropped_makes_all_of_them_doubtful() {
    let (capture, mut reader) = Capture::new(everything(), 1).unwrap();
    let device = MemoryPort::new();
    let mut batch = Batch::new();
    (0..3).for_each(|_| device.inject(&frame(1, 60)));
    device.rx(A, QueueIndex(0), &mut batch, &mut Tally::default());
    // Cut into five on the way, one of which was dropped.
    let mut tally = Tally::default();
    (0..4).for_each(|_| tally.moved(20));
    tally.drop(DropReason::RxRingFull);
    tx(&[capture], WorkerIndex(0), Now { ns: 1 }, &mut batch, &[0, 1, 2], &tally);
    let fates: Vec<_> = collect(&mut reader).into_iter().map(|(_, fate, _)| fate).collect();
    assert_eq!(fates, [Fate::Doubtful(Reasons(1 << DropReason::RxRingFull as u64)); 3]);
}
