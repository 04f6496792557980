//! A guest and a frontend that break every rule they can: the frame or the session is lost, with a reason, and nothing else.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Pair, drops, frame, until};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use switch::batch::BURST;
use switch::ledger::DropReason;
use switch::port::{Device, Link};
use vhost::backend::{CLOSE_MAX, Role};
use vhost::chain::{CHAIN_MAX, Descriptor, INDIRECT, NEXT, WRITE};
use vhost::driver::{Driver, DriverConfig, GUEST_BASE, USER_BASE, put_descriptor_at};
use vhost::message::{PAYLOAD_MAX, RegionInfo, Request, RingAddresses, RingFd, RingState};
use vhost::net::F_RING_PACKED;

/// Posts one chain whose head is entry 0 and answers what became of it. The ring must go on working afterwards.
fn fate_of(prepare: impl FnOnce(&mut Pair)) -> Vec<(DropReason, u32)> {
    let mut pair = Pair::running(|_| {});
    prepare(&mut pair);
    pair.driver.sender.ring.post_head(0);
    let (frames, tally) = pair.place.round();
    assert_eq!((frames.len(), tally.packets), (0, 1));
    let ring = &pair.driver.sender.ring;
    assert_eq!((ring.used_index(), ring.used_entry(0)), (1, (0, 0)), "the chain was given back");
    let good = frame(9, 60);
    let memory = pair.driver.memory().clone();
    let ring = &mut pair.driver.sender.ring;
    let address = ring.buffer_address(200);
    memory.write(ring.buffer_at(200) + 12, &good);
    ring.put_descriptor(200, Descriptor { address, len: 72, flags: 0, next: 0 });
    ring.post_head(200);
    assert_eq!(pair.place.round().0[0].0, good, "the ring goes on");
    assert_eq!(pair.backend.state().link, Link::Up);
    drops(&tally)
}

fn one(address: u64, len: u32, flags: u16, next: u16) -> impl FnOnce(&mut Pair) {
    move |pair| pair.driver.sender.ring.put_descriptor(0, Descriptor { address, len, flags, next })
}

const BAD: [(DropReason, u32); 1] = [(DropReason::BadDescriptor, 1)];

#[test]
fn chains_that_virtio_forbids_are_counted_and_given_back() {
    let here = GUEST_BASE + 0x8000;
    assert_eq!(fate_of(one(here, 100, NEXT, 0)), BAD, "a loop of one");
    assert_eq!(fate_of(one(here, 100, NEXT, 256)), BAD, "an index beyond the table");
    assert_eq!(fate_of(one(here, 100, WRITE, 0)), BAD, "a buffer for the other direction");
    assert_eq!(fate_of(one(0, 100, 0, 0)), BAD, "an address outside memory");
    assert_eq!(fate_of(one(u64::MAX - 10, 100, 0, 0)), BAD, "an address that wraps");
    assert_eq!(fate_of(one(here, 60_000_000, 0, 0)), [(DropReason::OverMtu, 1)], "a buffer longer than any frame");
    assert_eq!(fate_of(one(here, 0, 0, 0)), [(DropReason::Truncated, 1)], "no byte");
    assert_eq!(fate_of(one(here, 25, 0, 0)), [(DropReason::Truncated, 1)], "a header and 13 bytes");
    assert_eq!(fate_of(one(here, 16, INDIRECT | NEXT, 0)), BAD, "an indirect table that is chained on");
    assert_eq!(fate_of(one(here, 17, INDIRECT, 0)), BAD, "an indirect table of odd size");
    assert_eq!(fate_of(one(here, 16 * 257, INDIRECT, 0)), BAD, "an indirect table larger than the queue");
    assert_eq!(fate_of(one(0, 16, INDIRECT, 0)), BAD, "an indirect table outside memory");
}

#[test]
fn buffers_that_leave_memory_in_the_middle_are_counted() {
    assert_eq!(
        fate_of(|pair| {
            let len = pair.driver.memory().len() as u64;
            let descriptor = Descriptor { address: GUEST_BASE + len - 100, len: 200, flags: 0, next: 0 };
            pair.driver.sender.ring.put_descriptor(0, descriptor);
        }),
        BAD
    );
}

#[test]
fn nested_indirect_tables_and_endless_chains_are_counted() {
    let nested = fate_of(|pair| {
        let memory = pair.driver.memory().clone();
        let ring = &pair.driver.sender.ring;
        let table = ring.buffer_address(50);
        let entry = Descriptor { address: table, len: 16, flags: INDIRECT, next: 0 };
        put_descriptor_at(&memory, ring.buffer_at(50), entry);
        ring.put_descriptor(0, entry);
    });
    assert_eq!(nested, BAD);
    let long = fate_of(|pair| {
        let slots: Vec<u16> = (0..CHAIN_MAX as u16 + 1).collect();
        Driver::link(&pair.driver.sender.ring, &slots, 100, 0);
    });
    assert_eq!(long, [(DropReason::TooManySegments, 1)]);
    let circle = fate_of(|pair| {
        let slots: Vec<u16> = (0..9).collect();
        Driver::link(&pair.driver.sender.ring, &slots, 100, 0);
        let address = pair.driver.sender.ring.buffer_address(9);
        pair.driver.sender.ring.put_descriptor(8, Descriptor { address, len: 100, flags: NEXT, next: 3 });
    });
    assert_eq!(circle, BAD);
}

#[test]
fn a_ring_full_of_broken_chains_costs_no_more_than_a_burst_at_a_time() {
    for (features, size) in [(0, 1024), (F_RING_PACKED, 1024)] {
        let mut pair = Pair::running(|config| {
            config.features |= features;
            config.queue_size = size;
        });
        let ring = &mut pair.driver.sender.ring;
        let address = ring.buffer_address(0);
        let part = |flags, next| Descriptor { address, len: 100, flags, next };
        for chain in 0..size / 2 {
            // Linked, and what it is linked to is for the device to write: broken, but it ends.
            let id = 2 * chain;
            ring.post_chain(id, &[part(NEXT, id + 1), part(WRITE, 0)]);
        }
        let mut left = u32::from(size / 2);
        while left > 0 {
            let (frames, tally) = pair.place.round();
            assert!(frames.is_empty() && (1..=BURST as u32).contains(&tally.packets), "{tally:?}");
            assert_eq!(drops(&tally), [(DropReason::BadDescriptor, tally.packets)]);
            left -= tally.packets;
        }
    }
}

#[test]
fn a_head_beyond_the_table_is_counted_and_given_back() {
    let mut pair = Pair::running(|_| {});
    pair.driver.sender.ring.post_head(0xffff);
    let (_, tally) = pair.place.round();
    assert_eq!(drops(&tally), BAD);
    assert_eq!(pair.driver.sender.ring.used_entry(0), (0xffff, 0));
}

#[test]
fn an_available_index_that_jumps_stops_that_ring_with_a_reason_and_leaves_the_other() {
    let mut pair = Pair::running(|_| {});
    pair.driver.sender.ring.set_available_index(300);
    let (frames, tally) = pair.place.round();
    assert_eq!((frames.len(), tally.packets), (0, 0));
    pair.wait_for_reason("send ring stopped");
    assert_eq!(pair.backend.state().link, Link::Down);
    assert_eq!(pair.place.send(&[&frame(1, 60)]).packets, 1, "the receive ring goes on");
    // The driver comes to its senses, resets the ring and starts it again.
    pair.driver.stop_rings().unwrap();
    pair.driver.sender.ring.set_available_index(0);
    pair.driver.start_rings().unwrap();
    pair.wait_for_link(Link::Up);
    assert_eq!(pair.backend.state().reason, "");

    let next = pair.driver.receiver.ring.next();
    pair.driver.receiver.ring.set_available_index(next.wrapping_add(1000));
    assert_eq!(drops(&pair.place.send(&[&frame(1, 60)])), [(DropReason::DeviceError, 1)]);
    pair.wait_for_reason("receive ring stopped");
    assert_eq!(drops(&pair.place.send(&[&frame(1, 60)])), [(DropReason::NotReady, 1)]);
}

#[test]
fn a_broken_receive_chain_costs_one_frame_and_is_given_back_empty() {
    let pair = Pair::running(|_| {});
    let ring = &pair.driver.receiver.ring;
    let here = ring.buffer_address(0);
    ring.put_descriptor(0, Descriptor { address: here, len: 100, flags: 0, next: 0 });
    ring.put_descriptor(1, Descriptor { address: 3, len: 2048, flags: WRITE, next: 0 });
    ring.put_descriptor(2, Descriptor { address: here, len: 2048, flags: WRITE | NEXT, next: 2 });
    ring.put_descriptor(3, Descriptor { address: here, len: 0, flags: WRITE, next: 0 });
    let tally = pair.place.send(&[&frame(1, 60), &frame(2, 60), &frame(3, 60), &frame(4, 60), &frame(5, 60)]);
    assert_eq!((tally.packets, drops(&tally)), (1, vec![(DropReason::BadDescriptor, 4)]));
    let ring = &pair.driver.receiver.ring;
    assert_eq!((0..5).map(|at| ring.used_entry(at)).collect::<Vec<_>>(), [(0, 0), (1, 0), (2, 0), (3, 0), (4, 72)]);
}

#[test]
fn a_long_frame_that_meets_a_broken_chain_gives_all_of_them_back_empty() {
    let pair = Pair::running(|_| {});
    pair.driver.receiver.ring.put_descriptor(1, Descriptor { address: 3, len: 2048, flags: WRITE, next: 0 });
    let tally = pair.place.send(&[&frame(1, 5000), &frame(2, 60)]);
    assert_eq!((tally.packets, drops(&tally)), (1, BAD.to_vec()));
    let ring = &pair.driver.receiver.ring;
    assert_eq!((0..3).map(|at| ring.used_entry(at)).collect::<Vec<_>>(), [(0, 0), (1, 0), (2, 72)]);
}

#[test]
fn a_call_that_would_block_blocks_no_worker() {
    let mut pair = Pair::running(|_| {});
    // Blocking, and full to the brim.
    let call = eventfd(0, EventfdFlags::empty()).unwrap();
    rustix::io::write(&call, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    for index in 0..2 {
        pair.driver.tell(&Request::SetVringCall(RingFd { index, has_fd: true }), &[call.as_fd()]).unwrap();
    }
    pair.driver.receiver.ring.set_interrupts(true);
    pair.driver.sender.ring.set_interrupts(true);
    let start = Instant::now();
    for _ in 0..100 {
        assert_eq!(pair.place.send(&[&frame(1, 60)]).packets, 1);
        pair.driver.sender.send_burst(&[&frame(2, 60)]);
        assert_eq!(pair.place.round().0.len(), 1);
    }
    assert!(start.elapsed() < Duration::from_secs(20));
}

/// A connected pair whose peer does `act`; the session must end with a reason that says `reason`, and the next one work.
fn ends_with(reason: &str, act: impl FnOnce(&mut Driver)) {
    let mut pair = Pair::running(|_| {});
    act(&mut pair.driver);
    pair.wait_for_reason(reason);
    assert!(pair.driver.wait_for_hangup());
    assert!(pair.place.port().is_none(), "{reason}: the rings are gone");
    pair.driver.resume().unwrap();
    pair.wait_for_link(Link::Up);
    assert_eq!(pair.place.send(&[&frame(1, 60)]).packets, 1);
}

fn region(size: u64) -> RegionInfo {
    RegionInfo { guest_address: 0, size, user_address: 0, file_offset: 0 }
}

fn memory(len: u64) -> OwnedFd {
    let file = memfd_create("hostile", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, len).unwrap();
    file
}

#[test]
fn messages_that_are_none_end_the_session_with_a_reason() {
    let header =
        |request: u32, flags: u32, size: u32| [request.to_ne_bytes(), flags.to_ne_bytes(), size.to_ne_bytes()].concat();
    let send = |bytes: Vec<u8>| move |driver: &mut Driver| driver.send_bytes(&bytes, &[]).unwrap();
    ends_with("message 77 is unknown", send(header(77, 1, 0)));
    ends_with("message 22 is unknown", send(header(22, 1, 0)));
    ends_with("version", send(header(1, 2, 0)));
    ends_with("is a reply", send(header(1, 5, 0)));
    ends_with("announces", send(header(5, 1, PAYLOAD_MAX as u32 + 1)));
    ends_with("announces 4294967295 bytes", send(header(1, 1, u32::MAX)));
    ends_with("instead of 8", send([header(2, 1, 4), vec![0; 4]].concat()));
    ends_with("that were not offered", |driver| driver.send(&Request::SetFeatures(1 << 33), &[], false).unwrap());
    ends_with("names ring 32", |driver| {
        driver.send(&Request::SetVringNum(RingState { index: 32, value: 256 }), &[], false).unwrap();
    });
    ends_with("names ring 255", |driver| {
        driver.send(&Request::SetVringKick(RingFd { index: 255, has_fd: false }), &[], false).unwrap();
    });
    ends_with("means nothing", send([header(18, 1, 8), vec![0, 0, 0, 0, 7, 0, 0, 0]].concat()));
}

#[test]
fn a_peer_that_vanishes_in_the_middle_of_a_message_is_noticed() {
    let mut pair = Pair::running(|_| {});
    pair.driver.send_bytes(&[5, 0, 0, 0, 1, 0, 0, 0, 40, 0, 0, 0, 1], &[]).unwrap();
    pair.driver.disconnect();
    pair.wait_for_reason("in the middle of a message");
    assert!(pair.place.port().is_none());
}

#[test]
fn a_peer_that_stalls_in_a_message_holds_up_nobody() {
    let pair = Pair::running(|_| {});
    pair.driver.send_bytes(&[5, 0, 0, 0, 1, 0, 0, 0, 40, 0, 0, 0, 1], &[]).unwrap();
    assert_eq!(pair.place.send(&[&frame(1, 60)]).packets, 1);
    let mut second = Driver::new(DriverConfig::new(&pair.path)).unwrap();
    second.connect().unwrap();
    assert!(second.wait_for_hangup());
    until("it is counted", || pair.backend.counters().refused == 1);
}

#[test]
fn a_peer_that_reads_no_answer_is_left_waiting_and_can_be_shut_out() {
    let mut pair = Pair::new(Role::Server, |_| {});
    pair.driver.connect().unwrap();
    let question = Request::GetFeatures.to_bytes(false);
    // Until neither side's buffer takes any more.
    while pair.driver.send_bytes(&question.repeat(500), &[]).is_ok() {}
    let start = Instant::now();
    drop(pair.backend);
    assert!(start.elapsed() < CLOSE_MAX);
}

#[test]
fn memory_that_cannot_be_ends_the_session_with_a_reason() {
    let table = |table: Vec<RegionInfo>, files: Vec<OwnedFd>| {
        move |driver: &mut Driver| {
            let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
            driver.send(&Request::SetMemTable(table), &files, false).unwrap();
        }
    };
    ends_with("is empty", table(vec![region(0)], vec![memory(4096)]));
    ends_with("needs a file of 8192 bytes; it has 4096", table(vec![region(8192)], vec![memory(4096)]));
    ends_with("overlap", table(vec![region(4096), region(4096)], vec![memory(4096), memory(4096)]));
    ends_with("wraps", table(vec![RegionInfo { guest_address: !9, ..region(4096) }], vec![memory(4096)]));
    ends_with("instead of 1", table(vec![region(4096)], vec![]));
    ends_with("the most is", table(vec![region(1 << 41)], vec![memory(4096)]));
    let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    ends_with("no file of memfd", table(vec![region(4096)], vec![null]));
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    ends_with("no file of memfd", table(vec![region(4096)], vec![pipe]));
    let sealed = memfd_create("sealed", MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&sealed, 4096).unwrap();
    rustix::fs::fcntl_add_seals(&sealed, rustix::fs::SealFlags::WRITE).unwrap();
    ends_with("mmap", table(vec![region(4096)], vec![sealed]));
}

#[test]
fn descriptors_that_are_no_eventfds_end_the_session_with_a_reason() {
    let fd = RingFd { index: 1, has_fd: true };
    for request in [Request::SetVringKick(fd), Request::SetVringCall(fd), Request::SetVringErr(fd)] {
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        ends_with("no eventfd", move |driver| driver.send(&request, &[pipe.as_fd()], false).unwrap());
    }
}

#[test]
fn rings_that_cannot_be_end_the_session_with_a_reason() {
    let addresses = |index: u32, descriptors: u64| {
        Request::SetVringAddr(RingAddresses { index, flags: 0, descriptors, used: 16, available: 32, log: 0 })
    };
    ends_with("ring 0: the descriptor table", move |driver| driver.send(&addresses(0, 8), &[], false).unwrap());
    ends_with("ring 1: the descriptor table", move |driver| driver.send(&addresses(1, u64::MAX), &[], false).unwrap());
    for value in [3, 65_536, u32::MAX] {
        ends_with("a split one a power of two", move |driver| {
            driver.send(&Request::SetVringNum(RingState { index: 1, value }), &[], false).unwrap();
        });
    }
    ends_with("ring 1: the used ring", |driver| {
        let used = USER_BASE + driver.memory().len() as u64 - 64;
        let (descriptors, available) = (USER_BASE, USER_BASE + 8192);
        let addresses = RingAddresses { index: 1, flags: 0, descriptors, used, available, log: 0 };
        driver.send(&Request::SetVringAddr(addresses), &[], false).unwrap();
    });
    ends_with("is not aligned, or not inside one memory region", |driver| {
        driver.send(&Request::SetMemTable(vec![region(4096)]), &[memory(4096).as_fd()], false).unwrap();
    });
}

#[test]
fn an_error_with_an_answer_wanted_is_answered_before_the_end() {
    let mut pair = Pair::running(|_| {});
    let result = pair.driver.tell(&Request::SetMemTable(vec![region(8192)]), &[memory(4096).as_fd()]);
    assert!(matches!(result, Err(vhost::driver::DriverError::Refused { .. })), "{result:?}");
    assert!(pair.driver.wait_for_hangup());
}

#[test]
fn a_foreign_mtu_is_answered_no_and_the_session_goes_on() {
    let mut pair = Pair::running(|_| {});
    assert!(pair.driver.tell(&Request::NetSetMtu(9000), &[]).is_ok());
    assert!(pair.driver.tell(&Request::NetSetMtu(12), &[]).is_err());
    assert_eq!(pair.place.send(&[&frame(1, 60)]).packets, 1);
}

#[test]
fn a_memory_file_cut_short_under_us_ends_that_session_and_nothing_else() {
    for by_sender in [true, false] {
        let mut pair = Pair::running(|_| {});
        let mut other = Pair::running(|_| {});
        pair.driver.sender.send_burst(&[&frame(1, 1000)]);
        // The rings stay, the buffers go.
        let rings = pair.driver.receiver.ring.buffer_at(0) as u64;
        ftruncate(pair.driver.memory().file(), rings).unwrap();
        if by_sender {
            pair.place.round();
            pair.place.round();
        } else {
            pair.place.send(&[&frame(2, 60)]);
            assert_eq!(drops(&pair.place.send(&[&frame(2, 60)])), [(DropReason::DeviceError, 1)]);
        }
        pair.wait_for_reason("memory file was cut short");
        assert!(pair.place.port().is_none());
        assert_eq!(other.place.send(&[&frame(3, 60)]).packets, 1);
        assert_eq!(other.received(), [frame(3, 60)]);
    }
}

#[test]
fn rings_cut_away_under_us_end_the_session_too() {
    let pair = Pair::running(|_| {});
    ftruncate(pair.driver.memory().file(), 0).unwrap();
    pair.place.round();
    pair.place.send(&[&frame(2, 60)]);
    pair.place.round();
    pair.wait_for_reason("memory file was cut short");
}

/// A guest that scribbles over its rings while the switch works on them.
#[test]
fn two_seconds_of_scribbling_on_the_rings_hurt_nobody_else() {
    let mut pair = Pair::running(|config| config.queue_size = 64);
    let mut other = Pair::running(|_| {});
    let memory = pair.driver.memory().clone();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut state = 0x1234_5678_9abc_def1u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                // Descriptor tables and available rings of both queues; the indices only now and then.
                let page = [0usize, 0, 0, 1, 3, 3, 3, 4][(state >> 32) as usize % 8];
                let at = page * 4096 + (state as usize % 1024);
                let is_index = (page == 1 || page == 4) && at % 4096 < 4;
                if !is_index || state.is_multiple_of(4096) {
                    memory.write(at, &[(state >> 40) as u8 & if state & 1 << 50 == 0 { 0x03 } else { 0xff }]);
                }
            }
        });
        let end = Instant::now() + Duration::from_secs(2);
        let mut rounds = 0u32;
        while Instant::now() < end {
            let next = pair.driver.sender.ring.next();
            pair.driver.sender.ring.set_available_index(next.wrapping_add(8));
            let (frames, tally) = pair.place.round();
            assert_eq!(tally.packets, frames.len() as u32 + tally.dropped);
            let tally = pair.place.send(&[&frame(1, 60), &frame(2, 3000)]);
            assert_eq!(tally.packets + tally.dropped, 2);
            pair.driver.receiver.drain(64);
            assert_eq!(other.place.send(&[&frame(rounds, 60)]).packets, 1);
            assert_eq!(other.received(), [frame(rounds, 60)]);
            rounds += 1;
            if pair.backend.state().link == Link::Down {
                pair.driver.disconnect();
                let here = pair.driver.sender.ring.used_index();
                pair.driver.sender.ring.set_available_index(here);
                let _ = pair.driver.resume();
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(rounds > 10);
    });
}

/// Random messages, with and without descriptors, one connection after another.
#[test]
fn three_seconds_of_random_messages_leave_the_backend_alive() {
    let mut pair = Pair::new(Role::Server, |_| {});
    let mut state = 0xfeed_beef_1234_5677u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        pair.driver.connect().unwrap();
        if random() % 2 == 0 && (pair.driver.negotiate().is_err() || pair.driver.start_rings().is_err()) {
            continue;
        }
        for _ in 0..random() % 12 {
            let request = random() as u32 % 44;
            let size = [0usize, 8, 8, 8, 40, 40, 72][random() as usize % 7];
            let mut bytes = [request, 1 | (random() as u32 & 8), size as u32].map(u32::to_ne_bytes).concat();
            bytes.extend((0..size).map(|at| if at % 8 < 2 { random() as u8 & 3 } else { 0 }));
            let files = [event.as_fd(), pair.driver.memory().file()];
            let files = &files[..random() as usize % 3];
            if pair.driver.send_bytes(&bytes, files).is_err() {
                break;
            }
        }
        pair.place.round();
    }
    pair.driver.start().unwrap();
    pair.wait_for_link(Link::Up);
}
