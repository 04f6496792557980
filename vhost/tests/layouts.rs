//! What holds of every kind of ring alike: split and packed, with event indices and without, in order or not.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Pair, QUEUE, frame};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::time::Duration;
use switch::port::Link;
use vhost::driver::{GUEST_BASE, Shape, USER_BASE};
use vhost::message::{LogInfo, RING_LOG, Request, RingAddresses};
use vhost::net::{F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_LOG_ALL, F_MRG_RXBUF, F_RING_PACKED};

/// Every kind of ring.
const KINDS: [u64; 8] = [
    0,
    F_EVENT_IDX,
    F_IN_ORDER,
    F_EVENT_IDX | F_IN_ORDER,
    F_RING_PACKED,
    F_RING_PACKED | F_EVENT_IDX,
    F_RING_PACKED | F_IN_ORDER,
    F_RING_PACKED | F_EVENT_IDX | F_IN_ORDER,
];

/// How long a signal that must not come is waited for.
const QUIET: Duration = Duration::from_millis(20);
/// How long one that must is.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn frames_in_every_shape_come_and_go_in_order_and_whole() {
    for kind in KINDS {
        let shapes = [Shape::SINGLE, Shape::linked(2), Shape::linked(4), Shape::indirect(3)];
        for (shape, is_mergeable) in shapes.into_iter().flat_map(|shape| [(shape, true), (shape, false)]) {
            let mut pair = Pair::running(|config| {
                config.features |= kind | F_INDIRECT_DESC;
                if !is_mergeable {
                    config.features &= !F_MRG_RXBUF;
                }
                config.queue_size = 16;
                (config.send_shape, config.receive_shape) = (shape, shape);
                config.receive_buffer_len = if is_mergeable { 256 } else { 2048 };
                config.is_order_trusted = false;
            });
            let case = format!("features {kind:#x}, {shape:?}, mergeable {is_mergeable}");
            for number in 0..300u32 {
                let sent = frame(number, 60 + (number as usize * 37) % 700);
                assert_eq!(pair.driver.sender.send_burst(&[&sent]), 1, "{case}");
                let (taken, tally) = pair.place.round();
                assert_eq!((taken[0].0.as_slice(), tally.dropped), (sent.as_slice(), 0), "{case}");
                let fits = pair.place.send(&[&sent]);
                assert_eq!((fits.packets, fits.dropped), (1, 0), "{case}");
                assert_eq!(pair.received(), [sent], "{case}");
            }
            let faults = (pair.driver.sender.ring.faults(), pair.driver.receiver.ring.faults());
            assert_eq!(faults, (0, 0), "{case}");
        }
    }
}

#[test]
fn a_ring_that_is_stopped_goes_on_where_it_says_it_stands() {
    for kind in KINDS {
        let mut pair = Pair::running(|config| {
            config.features |= kind;
            config.queue_size = 8;
        });
        for number in 0..30 {
            pair.driver.sender.send_burst(&[&frame(number, 60)]);
            assert_eq!(pair.place.round().0[0].0, frame(number, 60));
            pair.place.send(&[&frame(number, 60)]);
            assert_eq!(pair.received(), [frame(number, 60)], "features {kind:#x}");
            if number % 7 == 0 {
                let stood = pair.driver.stop_rings().unwrap();
                let expected: Vec<u32> = (0..2).map(|index| pair.driver.ring(index).base()).collect();
                assert_eq!(stood, expected, "features {kind:#x}: both sides say the same");
                pair.driver.start_rings().unwrap();
                pair.wait_for_link(Link::Up);
            }
        }
    }
}

#[test]
fn a_guest_is_interrupted_once_a_batch_and_only_if_it_asks() {
    for kind in KINDS {
        let mut pair = Pair::running(|config| config.features |= kind);
        let receiver = &mut pair.driver.receiver;
        // Once when the ring starts; and its first look at what was agreed tells that it wants none.
        assert!(receiver.ring.wait_for_interrupt(SOON));
        receiver.ring.set_interrupts(false);
        let burst: Vec<Vec<u8>> = (0..8).map(|number| frame(number, 60)).collect();
        let burst: Vec<&[u8]> = burst.iter().map(Vec::as_slice).collect();
        assert_eq!(pair.place.send(&burst).packets, 8);
        assert!(!pair.driver.receiver.ring.wait_for_interrupt(QUIET), "features {kind:#x}: not asked");
        assert_eq!(pair.received().len(), 8);
        for _ in 0..3 {
            pair.driver.receiver.ring.set_interrupts(true);
            assert_eq!(pair.place.send(&burst).packets, 8);
            assert!(pair.driver.receiver.ring.wait_for_interrupt(SOON), "features {kind:#x}: asked");
            assert!(!pair.driver.receiver.ring.wait_for_interrupt(QUIET), "features {kind:#x}: once a batch");
            if kind & F_EVENT_IDX != 0 {
                assert_eq!(pair.place.send(&burst).packets, 8);
                assert!(!pair.driver.receiver.ring.wait_for_interrupt(QUIET), "features {kind:#x}: not asked again");
            }
            pair.received();
        }
    }
}

#[test]
fn a_guest_kicks_a_worker_that_sleeps_and_none_that_polls() {
    for kind in KINDS {
        let mut pair = Pair::running(|config| config.features |= kind);
        let port = pair.place.port().unwrap();
        let kick = port.wake_fd(QUEUE).unwrap();
        let is_kicked = |limit: Duration| {
            let limit = rustix::event::Timespec { tv_sec: limit.as_secs() as _, tv_nsec: limit.subsec_nanos().into() };
            let mut fds = [rustix::event::PollFd::new(&kick, rustix::event::PollFlags::IN)];
            let is_kicked = rustix::event::poll(&mut fds, Some(&limit)).unwrap() > 0;
            is_kicked && rustix::io::read(kick, &mut [0; 8]).is_ok()
        };
        // A fresh split ring with event indices asks for the first entry, whoever polls (virtio 1.2 section 2.7.10).
        pair.driver.sender.send_burst(&[&frame(0, 60)]);
        is_kicked(QUIET);
        assert_eq!(pair.place.round().0.len(), 1);
        for number in 0..3 {
            pair.driver.sender.send_burst(&[&frame(number, 60)]);
            assert!(!is_kicked(QUIET), "features {kind:#x}: it polls");
            assert!(port.arm(QUEUE), "features {kind:#x}: the frame from before is told");
            assert_eq!(pair.place.round().0.len(), 1);
            assert!(!port.arm(QUEUE), "features {kind:#x}: nothing is left");
            pair.driver.sender.send_burst(&[&frame(number, 60)]);
            assert!(is_kicked(SOON), "features {kind:#x}: it sleeps");
            port.disarm(QUEUE);
            assert_eq!(pair.place.round().0.len(), 1);
        }
    }
}

#[test]
fn every_page_that_the_switch_changes_is_in_the_log() {
    for kind in KINDS {
        let mut pair = Pair::running(|config| {
            config.features |= kind | F_LOG_ALL;
            config.receive_buffer_len = 512;
        });
        let memory_len = pair.driver.memory().len();
        let size = (GUEST_BASE + memory_len as u64).div_ceil(8 * 4096);
        let log = memfd_create("log", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&log, size).unwrap();
        pair.driver.tell(&Request::SetLogBase(LogInfo { size, file_offset: 0 }), &[log.as_fd()]).unwrap();
        for index in 0..2 {
            let addresses = pair.driver.ring(index).addresses(index);
            // Where the part that only the device writes lies, as the guest counts.
            let used = GUEST_BASE + (addresses.used - USER_BASE);
            pair.driver
                .tell(&Request::SetVringAddr(RingAddresses { flags: RING_LOG, log: used, ..addresses }), &[])
                .unwrap();
        }
        pair.wait_for_link(Link::Up);
        let snapshot = |pair: &Pair| {
            let mut bytes = vec![0; memory_len];
            pair.driver.memory().read(0, &mut bytes);
            bytes
        };
        let pages = |bytes: &[u8]| -> BTreeSet<usize> {
            (0..8 * bytes.len()).filter(|page| bytes[page / 8] & 1 << (page % 8) != 0).collect()
        };
        let first = GUEST_BASE as usize / 4096;
        for round in 0..40u32 {
            pair.driver.sender.send_burst(&[&frame(round, 60)]);
            rustix::io::pwrite(&log, &vec![0; memory_len.div_ceil(8 * 4096) + 1], first as u64 / 8).unwrap();
            let before = snapshot(&pair);
            assert_eq!(pair.place.round().0.len(), 1);
            let lens = [60, 400, 1500, 1 + 100 * (round as usize % 14)];
            let frames: Vec<Vec<u8>> = lens.iter().map(|len| frame(round, 18 + len)).collect();
            let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
            assert_eq!(pair.place.send(&frames).packets, 4);
            pair.place.port().unwrap().arm(QUEUE);
            let after = snapshot(&pair);
            let is_changed =
                |page: &usize| before[4096 * page..4096 * (page + 1)] != after[4096 * page..4096 * (page + 1)];
            let changed: BTreeSet<usize> = (0..memory_len / 4096).filter(is_changed).collect();
            let mut marks = vec![0; memory_len.div_ceil(8 * 4096)];
            rustix::io::pread(&log, &mut marks, first as u64 / 8).unwrap();
            let marked = pages(&marks);
            assert!(changed.len() >= 3 && changed.is_subset(&marked), "features {kind:#x}: {changed:?} in {marked:?}");
            assert!(
                marked.len() <= changed.len() + 3,
                "features {kind:#x}: and hardly more: {changed:?} in {marked:?}"
            );
            pair.received();
        }
    }
}
