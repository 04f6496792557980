//! A driver and a backend on a real socket: frames both ways, both roles, stops and returns.

mod common;

use common::{Pair, TestPlace, backend_config, drops, frame, put, socket_path, until};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use switch::batch::Batch;
use switch::ledger::{DropReason, Tally};
use switch::offload::{Gso, GsoKind, Offload, OffloadClaim, PartialChecksum};
use switch::packet::L3;
use switch::port::{Device, Link, Place};
use vhost::backend::{Backend, CLOSE_MAX, Role};
use vhost::chain::{Descriptor, INDIRECT, NEXT, WRITE};
use vhost::driver::{Driver, DriverConfig, GUEST_BASE, put_descriptor_at};
use vhost::message::{F_PROTOCOL_FEATURES, Request};
use vhost::net::{F_CSUM, F_GUEST_CSUM, F_GUEST_TSO4, F_INDIRECT_DESC, F_MRG_RXBUF, F_VERSION_1};

/// How long an interrupt that must come is waited for.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn frames_of_every_length_pass_both_ways_unchanged() {
    for features in [F_VERSION_1 | F_MRG_RXBUF, F_VERSION_1, F_MRG_RXBUF, 0] {
        for protocol in [F_PROTOCOL_FEATURES, 0] {
            let mut pair = Pair::running(|config| config.features = features | protocol);
            for len in (18..200).chain([256, 1000, 1514, 2036]) {
                let sent = frame(len as u32, len);
                assert_eq!(pair.driver.sender.send_burst(&[&sent]), 1);
                let (taken, tally) = pair.place.round();
                assert_eq!((tally.packets, tally.bytes, tally.dropped), (1, len as u64, 0));
                assert_eq!(taken[0].0, sent, "{len} bytes from the guest");

                let tally = pair.place.send(&[&sent]);
                assert_eq!((tally.packets, tally.bytes), (1, len as u64), "{:?}", drops(&tally));
                assert_eq!(pair.received(), [sent], "{len} bytes to the guest");
            }
        }
    }
}

#[test]
fn rings_wrap_and_nothing_is_lost_or_swapped() {
    let mut pair = Pair::running(|config| config.queue_size = 16);
    let (mut sent, mut taken, mut arrived) = (0u32, Vec::new(), Vec::new());
    while taken.len() < 70_000 {
        let frames: Vec<_> = (0..20).map(|at| frame(sent + at, 60)).collect();
        let list: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        sent += pair.driver.sender.send_burst(&list) as u32;
        let (frames, tally) = pair.place.round();
        assert_eq!(tally.dropped, 0);
        let list: Vec<&[u8]> = frames.iter().map(|(bytes, _)| bytes.as_slice()).collect();
        assert_eq!(pair.place.send(&list).packets as usize, list.len());
        taken.extend(frames.into_iter().map(|(bytes, _)| bytes));
        arrived.extend(pair.received());
    }
    for (number, bytes) in taken.iter().enumerate() {
        assert_eq!(*bytes, frame(number as u32, 60));
    }
    assert_eq!(taken, arrived);
}

#[test]
fn offload_fields_pass_and_are_cleared_for_a_guest_that_takes_none() {
    let mut pair = Pair::running(|config| config.features |= F_CSUM | F_GUEST_CSUM | F_GUEST_TSO4);
    // The second flag says that the checksum is right, which is not the sender's to say.
    let header = [1 | 2, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0];
    assert!(pair.driver.sender.send_with(&header, &frame(1, 1400)));
    let (taken, _) = pair.place.round();
    let claim = OffloadClaim { flags: 1, gso_type: 1, hdr_len: 54, gso_size: 1460, csum_start: 34, csum_offset: 16 };
    assert_eq!(taken[0].1, claim);

    // The other way: a frame to be cut, one whose checksum is to be completed, and one whose checksum is vouched for.
    let checksum = Some(PartialChecksum { start: 34, offset: 16 });
    let gso = Some(Gso { kind: GsoKind::Tcp4, size: 500, header_len: 54, ecn: false });
    let nothing = Offload { checksum: None, gso: None, checksum_valid: false };
    let offloads = [
        Offload { checksum, gso, ..nothing },
        Offload { checksum, ..nothing },
        Offload { checksum_valid: true, ..nothing },
    ];
    let mut sent = frame(2, 54 + 1400);
    // IPv4 without options, TCP without options.
    sent[12..15].copy_from_slice(&[8, 0, 0x45]);
    sent[46] = 5 << 4;
    let send = |pair: &Pair| {
        let port = pair.place.port().unwrap();
        let (mut batch, mut tally) = (Batch::new(), Tally::default());
        for (at, offload) in offloads.into_iter().enumerate() {
            put(&mut batch, &sent);
            let packet = &mut batch.packets_mut()[at];
            packet.offload = offload;
            packet.headers.l3 = L3::Ipv4;
            (packet.headers.l3_offset, packet.headers.l4_offset, packet.headers.l4_protocol) = (14, 34, 6);
        }
        port.tx(common::QUEUE, &mut batch, &[0, 1, 2], &mut tally);
        assert_eq!(drops(&tally), []);
    };
    let arrived = |pair: &mut Pair| {
        let mut arrived = Vec::new();
        pair.driver.receiver.recv_burst(9, |header, bytes| arrived.push((*header, bytes.to_vec())));
        arrived
    };
    send(&pair);
    let told = [
        [1, 1, 54, 0, 0xf4, 1, 34, 0, 16, 0, 1, 0],
        [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 1, 0],
        [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0],
    ];
    assert_eq!(arrived(&mut pair), told.map(|header| (header, sent.clone())));

    let mut plain = Pair::running(|_| {});
    send(&plain);
    let arrived = arrived(&mut plain);
    assert!(arrived.iter().all(|(header, _)| *header == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]), "nothing is left to do");
    let lens: Vec<usize> = arrived.iter().map(|(_, bytes)| bytes.len()).collect();
    assert_eq!(lens, [554, 554, 454, 1454, 1454]);
    let payload: Vec<u8> = arrived[..3].iter().flat_map(|(_, bytes)| bytes[54..].to_vec()).collect();
    assert_eq!(payload, sent[54..]);
    // From byte 34 on, over what stood in the field (RFC 1071).
    let words = sent[34..].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let complete = [&sent[..50], &(!sum as u16).to_be_bytes(), &sent[52..]].concat();
    assert_eq!((&arrived[3].1, &arrived[4].1), (&complete, &sent));
}

#[test]
fn a_long_frame_fills_several_buffers_and_says_how_many() {
    let mut pair = Pair::running(|_| {});
    let long = frame(7, 60_000);
    assert_eq!(pair.place.send(&[&long, &frame(8, 60)]).packets, 2);
    let mut headers = Vec::new();
    let mut frames = Vec::new();
    pair.driver.receiver.recv_burst(9, |header, frame| {
        headers.push(u16::from_le_bytes([header[10], header[11]]));
        frames.push(frame.to_vec());
    });
    assert_eq!(frames, [long, frame(8, 60)]);
    assert_eq!(headers, [60_012u16.div_ceil(2048), 1]);
}

#[test]
fn a_full_ring_drops_and_a_frame_that_finds_no_room_leaves_no_trace() {
    let mut pair = Pair::running(|config| config.queue_size = 16);
    // 16 buffers of 2 KiB: 14 short frames leave two, too few for 6,000 bytes but enough for two more short ones.
    let short = frame(1, 60);
    assert_eq!(pair.place.send(&[&short[..]; 14]).packets, 14);
    assert_eq!(drops(&pair.place.send(&[&frame(2, 6000)])), [(DropReason::RxRingFull, 1)]);
    let tally = pair.place.send(&[&short[..]; 3]);
    assert_eq!((tally.packets, drops(&tally)), (2, vec![(DropReason::RxRingFull, 1)]));
    assert_eq!(pair.received(), vec![short; 16]);
}

#[test]
fn without_merging_a_frame_longer_than_the_buffer_is_dropped_and_the_buffer_stays() {
    let mut pair = Pair::running(|config| config.features = F_VERSION_1 | F_PROTOCOL_FEATURES);
    let tally = pair.place.send(&[&frame(1, 3000), &frame(2, 100)]);
    assert_eq!((tally.packets, drops(&tally)), (1, vec![(DropReason::BufferTooSmall, 1)]));
    assert_eq!(pair.received(), [frame(2, 100)]);
}

#[test]
fn chains_and_indirect_tables_are_one_frame() {
    let mut pair = Pair::running(|config| config.features |= F_INDIRECT_DESC);
    let sent = frame(5, 3 * 500 - 12);
    let mut bytes = vec![0; 12];
    bytes.extend(&sent);
    let memory = pair.driver.memory().clone();
    let ring = &mut pair.driver.sender.ring;
    for (slot, piece) in [4u16, 9, 2].into_iter().zip(bytes.chunks(500)) {
        memory.write(ring.buffer_at(slot), piece);
    }
    Driver::link(ring, &[4, 9, 2], 500, 0);
    ring.post_head(4);
    // The same three buffers by an indirect table that lies in buffer 20.
    for (at, slot) in [4u16, 9, 2].into_iter().enumerate() {
        let (flags, next) = if at < 2 { (NEXT, at as u16 + 1) } else { (0, 0) };
        let entry = Descriptor { address: ring.buffer_address(slot), len: 500, flags, next };
        put_descriptor_at(&memory, ring.buffer_at(20) + 16 * at, entry);
    }
    ring.put_descriptor(6, Descriptor { address: ring.buffer_address(20), len: 48, flags: INDIRECT, next: 0 });
    ring.post_head(6);
    let (taken, tally) = pair.place.round();
    assert_eq!(drops(&tally), []);
    assert_eq!(taken.iter().map(|(bytes, _)| bytes.clone()).collect::<Vec<_>>(), [sent.clone(), sent]);
    assert_eq!([pair.driver.sender.ring.used_entry(0).0, pair.driver.sender.ring.used_entry(1).0], [4, 6]);
}

#[test]
fn a_buffer_that_crosses_regions_is_read_and_written_whole() {
    // Rings of 16 take six pages; regions of seven pages cut the buffers behind them.
    let mut pair = Pair::running(|config| {
        config.queue_size = 16;
        config.region_len = Some(7 * 4096);
    });
    let table = pair.driver.memory_table();
    assert!(table.len() > 1);
    let border = (table[1].guest_address - GUEST_BASE) as usize;
    let sent = frame(1, 1000);
    let memory = pair.driver.memory().clone();
    memory.write(border - 300, &[0; 12]);
    memory.write(border - 288, &sent);
    let address = GUEST_BASE + border as u64 - 300;
    pair.driver.sender.ring.put_descriptor(0, Descriptor { address, len: 1012, flags: 0, next: 0 });
    pair.driver.sender.ring.post_head(0);
    assert_eq!(pair.place.round().0[0].0, sent);

    pair.driver.receiver.ring.put_descriptor(0, Descriptor { address, len: 1012, flags: WRITE, next: 0 });
    let other = frame(2, 1000);
    assert_eq!(pair.place.send(&[&other]).packets, 1);
    let mut out = vec![0; 1000];
    memory.read(border - 288, &mut out);
    assert_eq!(out, other);
}

#[test]
fn tails_stay_in_place_until_rx_done_gives_the_buffers_back() {
    let mut pair = Pair::running(|_| {});
    pair.driver.sender.send_burst(&[&frame(1, 1000), &frame(2, 60)]);
    let port = pair.place.port().unwrap();
    let mut batch = Batch::new();
    batch.clear(32, usize::MAX);
    port.rx(common::INGRESS, common::QUEUE, &mut batch, &mut Tally::default());
    let (packet, tail) = batch.frame(0);
    assert_eq!((packet.head().len(), tail.len(), tail[0].len()), (128, 1, 872));
    assert_eq!(pair.driver.sender.ring.used_index(), 0, "nothing is given back yet");
    port.rx_done(common::QUEUE);
    assert_eq!(pair.driver.sender.ring.used_index(), 2);
}

#[test]
fn rx_takes_no_more_than_there_is_room_for() {
    let mut pair = Pair::running(|_| {});
    let frames: Vec<_> = (0..40).map(|number| frame(number, 60)).collect();
    let list: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
    assert_eq!(pair.driver.sender.send_burst(&list), 40);
    let port = pair.place.port().unwrap();
    let mut batch = Batch::new();
    batch.clear(5, usize::MAX);
    port.rx(common::INGRESS, common::QUEUE, &mut batch, &mut Tally::default());
    assert_eq!(batch.len(), 5);
    batch.clear(32, 130);
    port.rx(common::INGRESS, common::QUEUE, &mut batch, &mut Tally::default());
    assert_eq!(batch.len(), 3, "none once 130 bytes are in");
    port.rx_done(common::QUEUE);
    assert_eq!(pair.driver.sender.ring.used_index(), 8);
}

#[test]
fn the_guest_is_interrupted_when_it_wants_and_only_then() {
    let mut pair = Pair::running(|_| {});
    for ring in [&pair.driver.receiver.ring, &pair.driver.sender.ring] {
        assert!(ring.wait_for_interrupt(SOON), "once when the ring starts");
    }
    pair.place.send(&[&frame(1, 60)]);
    assert!(!pair.driver.receiver.ring.wait_for_interrupt(Duration::from_millis(20)));
    pair.driver.receiver.ring.set_interrupts(true);
    pair.place.send(&[&frame(2, 60)]);
    assert!(pair.driver.receiver.ring.wait_for_interrupt(SOON));

    pair.driver.sender.ring.set_interrupts(true);
    pair.driver.sender.send_burst(&[&frame(3, 60)]);
    pair.place.round();
    assert!(pair.driver.sender.ring.wait_for_interrupt(SOON));
}

#[test]
fn an_armed_ring_is_kicked_and_a_polled_one_is_not() {
    let mut pair = Pair::running(|_| {});
    let port = pair.place.port().unwrap();
    let is_readable = || {
        let fd = port.wake_fd(common::QUEUE).unwrap();
        let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 })).unwrap() > 0
    };
    pair.driver.sender.send_burst(&[&frame(1, 60)]);
    assert!(!is_readable(), "polled");
    assert!(port.arm(common::QUEUE), "the frame from before is told");
    pair.place.round();
    assert!(!port.arm(common::QUEUE));
    pair.driver.sender.send_burst(&[&frame(2, 60)]);
    assert!(is_readable(), "armed");
    port.disarm(common::QUEUE);
    assert!(!pair.driver.sender.ring.wants_kick());
}

#[test]
fn a_guest_that_is_connected_but_does_not_run_is_not_ready() {
    let mut pair = Pair::new(Role::Server, |_| {});
    assert_eq!(drops(&pair.place.send(&[&frame(1, 60)])), [(DropReason::PortGone, 1)]);
    pair.driver.connect().unwrap();
    pair.driver.negotiate().unwrap();
    assert_eq!(drops(&pair.place.send(&[&frame(1, 60)])), [(DropReason::NotReady, 1)]);
    assert_eq!(pair.backend.state().link, Link::Down);
    pair.driver.receiver.post_all();
    pair.driver.start_rings().unwrap();
    pair.wait_for_link(Link::Up);
    pair.driver.tell(&Request::SetVringEnable { index: 0, is_enabled: false }, &[]).unwrap();
    pair.wait_for_link(Link::Down);
    assert_eq!(drops(&pair.place.send(&[&frame(1, 60)])), [(DropReason::NotReady, 1)]);
    pair.driver.sender.send_burst(&[&frame(4, 60)]);
    assert_eq!(pair.place.round().0.len(), 1, "the other ring goes on");
    pair.driver.tell(&Request::SetVringEnable { index: 0, is_enabled: true }, &[]).unwrap();
    pair.wait_for_link(Link::Up);
    assert_eq!(pair.place.send(&[&frame(1, 60)]).packets, 1);
}

#[test]
fn a_stopped_ring_tells_where_it_stands_and_goes_on_from_there() {
    let mut pair = Pair::running(|_| {});
    for number in 0..5 {
        pair.driver.sender.send_burst(&[&frame(number, 60)]);
        pair.place.round();
        pair.place.send(&[&frame(number, 60)]);
    }
    assert_eq!(pair.driver.stop_rings().unwrap(), [5, 5]);
    assert_eq!(pair.backend.state().link, Link::Down);
    pair.driver.sender.send_burst(&[&frame(77, 60)]);
    assert_eq!(pair.place.round().0.len(), 0);
    pair.driver.start_rings().unwrap();
    pair.wait_for_link(Link::Up);
    assert_eq!(pair.place.round().0[0].0, frame(77, 60));
}

#[test]
fn a_new_memory_table_and_a_new_call_under_running_rings_lose_nothing() {
    let mut pair = Pair::running(|_| {});
    let withdrawals = pair.place.withdrawals.load(Ordering::Relaxed);
    pair.driver.sender.send_burst(&[&frame(1, 60)]);
    pair.driver.set_memory_table().unwrap();
    assert_eq!(pair.place.withdrawals.load(Ordering::Relaxed), withdrawals + 1);
    pair.wait_for_link(Link::Up);
    assert_eq!(pair.place.round().0[0].0, frame(1, 60));

    let call = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
    let fd = vhost::message::RingFd { index: 0, has_fd: true };
    pair.driver.tell(&Request::SetVringCall(fd), &[call.as_fd()]).unwrap();
    assert_eq!(pair.place.withdrawals.load(Ordering::Relaxed), withdrawals + 1, "a call needs no withdrawal");
    let count = || {
        let mut count = [0; 8];
        rustix::io::read(&call, &mut count).unwrap();
        u64::from_ne_bytes(count)
    };
    assert_eq!(count(), 1, "for what may have been told by the call before");
    pair.driver.receiver.ring.set_interrupts(true);
    pair.place.send(&[&frame(2, 60)]);
    assert_eq!(count(), 1);
}

#[test]
fn a_ring_that_starts_again_interrupts_for_what_was_used_before() {
    let mut pair = Pair::running(|_| {});
    let ring = |pair: &Pair| pair.driver.receiver.ring.wait_for_interrupt(Duration::from_millis(20));
    while ring(&pair) {}
    // Used, but not told: a switch that dies between the two leaves the ring so.
    pair.place.send(&[&frame(1, 60)]);
    assert!(!ring(&pair));
    pair.driver.receiver.ring.set_interrupts(true);
    drop(pair.backend);
    assert!(pair.driver.wait_for_hangup());
    pair.backend = Backend::start(backend_config(Role::Server, pair.path.clone()), pair.place.clone()).unwrap();
    pair.driver.resume().unwrap();
    pair.wait_for_link(Link::Up);
    assert!(pair.driver.receiver.ring.wait_for_interrupt(SOON));
    assert_eq!(pair.received(), [frame(1, 60)]);
}

#[test]
fn the_switch_returns_after_its_death_and_takes_again_what_it_had_not_given_back() {
    for role in [Role::Server, Role::Client] {
        let mut pair = Pair::new(role, |_| {});
        pair.driver.start().unwrap();
        pair.wait_for_link(Link::Up);
        pair.driver.sender.send_burst(&[&frame(1, 60), &frame(2, 60)]);
        assert_eq!(pair.place.round().0.len(), 2);
        pair.driver.sender.send_burst(&[&frame(3, 60), &frame(4, 60)]);
        // The switch takes frames 3 and 4 and dies before rx_done.
        let port = pair.place.port().unwrap();
        let mut batch = Batch::new();
        batch.clear(32, usize::MAX);
        port.rx(common::INGRESS, common::QUEUE, &mut batch, &mut Tally::default());
        assert_eq!(batch.len(), 2);
        drop(batch);
        drop(port);
        let path = pair.path.clone();
        drop(pair.backend);
        assert!(pair.driver.wait_for_hangup());

        pair.backend = Backend::start(backend_config(role, path), pair.place.clone()).unwrap();
        pair.driver.resume().unwrap();
        pair.wait_for_link(Link::Up);
        let taken: Vec<_> = pair.place.round().0.into_iter().map(|(bytes, _)| bytes).collect();
        assert_eq!(taken, [frame(3, 60), frame(4, 60)], "{role:?}");
        pair.place.send(&[&frame(5, 60)]);
        assert_eq!(pair.received(), [frame(5, 60)]);
    }
}

#[test]
fn sessions_come_and_go_and_reasons_and_counters_stay() {
    for role in [Role::Server, Role::Client] {
        let mut pair = Pair::new(role, |_| {});
        assert_eq!(pair.backend.state().is_ready, role == Role::Server);
        for round in 1..4 {
            pair.driver.start().unwrap();
            pair.wait_for_link(Link::Up);
            assert_eq!(pair.backend.state().reason, "");
            assert!(pair.backend.state().is_ready);
            pair.driver.disconnect();
            pair.wait_for_link(Link::Down);
            pair.wait_for_reason("closed");
            assert!(pair.backend.counters().sessions >= round);
            assert!(pair.backend.counters().last_disconnect.contains("closed the connection"));
            let dropped = drops(&pair.place.send(&[&frame(1, 60)]));
            // A client may be connected again by now: the driver's socket is still there.
            let is_next = role == Role::Client && dropped == [(DropReason::NotReady, 1)];
            assert!(is_next || dropped == [(DropReason::PortGone, 1)], "{role:?}: {dropped:?}");
        }
    }
}

#[test]
fn a_client_waits_for_its_peer_and_is_ready_when_features_are_read() {
    let path = socket_path();
    let place = Arc::new(TestPlace::default());
    let backend = Backend::start(backend_config(Role::Client, path.clone()), place).unwrap();
    until("the reason names the missing socket", || backend.state().reason.contains("No such file"));
    let mut config = DriverConfig::new(&path);
    config.is_listening = true;
    let mut driver = Driver::new(config).unwrap();
    driver.connect().unwrap();
    assert!(!backend.state().is_ready);
    driver.ask(&Request::GetFeatures).unwrap();
    until("it is ready", || backend.state().is_ready);
    assert_eq!(backend.state().link, Link::Down);
}

#[test]
fn a_second_connection_is_refused_and_counted_and_the_first_does_not_notice() {
    let mut pair = Pair::running(|_| {});
    let mut second = Driver::new(DriverConfig::new(&pair.path)).unwrap();
    second.connect().unwrap();
    assert!(second.wait_for_hangup());
    assert_eq!(pair.backend.counters().refused, 1);
    pair.place.send(&[&frame(1, 60)]);
    assert_eq!(pair.received().len(), 1);
}

#[test]
fn a_peer_that_hangs_up_and_connects_again_at_once_is_not_taken_for_a_second_one() {
    let mut pair = Pair::new(Role::Server, |_| {});
    for round in 0..300 {
        pair.driver.connect().unwrap();
        assert!(pair.driver.negotiate().is_ok(), "round {round}");
    }
    assert_eq!(pair.backend.counters().refused, 0);
}

#[test]
fn dropping_a_backend_ends_its_session_at_once_and_removes_its_socket() {
    for is_stalling in [false, true] {
        let mut pair = Pair::running(|_| {});
        if is_stalling {
            pair.driver.send_bytes(&[1, 0, 0, 0, 1], &[]).unwrap();
        }
        let start = Instant::now();
        drop(pair.backend);
        assert!(start.elapsed() < CLOSE_MAX);
        assert!(!pair.path.exists());
        assert!(pair.place.port().is_none());
        assert!(pair.driver.wait_for_hangup());
    }
}

#[test]
fn a_guest_that_moved_here_is_announced() {
    let mut pair = Pair::running(|_| {});
    let mac = [2, 0, 0, 0, 0, 9];
    pair.driver.tell(&Request::SendRarp(mac), &[]).unwrap();
    let (taken, tally) = pair.place.round();
    assert_eq!((taken.len(), tally.packets, tally.bytes), (1, 1, 60));
    assert_eq!(taken[0].0[6..12], mac);
    assert_eq!(taken[0].0[12..14], [0x80, 0x35]);
    assert_eq!(pair.place.round().0.len(), 0, "once");
}

#[test]
fn two_workers_that_send_at_once_lose_count_of_nothing() {
    let mut pair = Pair::running(|config| config.queue_size = 1024);
    let port = pair.place.port().unwrap();
    let packets: Vec<u32> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let bytes = frame(1, 300);
                    let mut sum = 0;
                    for _ in 0..40 {
                        let mut tally = Tally::default();
                        let mut batch = Batch::new();
                        batch.clear(32, usize::MAX);
                        (0..10).for_each(|_| put(&mut batch, &bytes));
                        port.tx(common::QUEUE, &mut batch, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], &mut tally);
                        assert_eq!(tally.packets + tally.dropped, 10);
                        assert!(tally.drops().all(|(reason, _)| reason == DropReason::TxContended));
                        sum += tally.packets;
                    }
                    sum
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    assert_eq!(pair.received().len() as u32, packets.iter().sum::<u32>());
}

#[test]
fn a_place_that_is_slow_to_withdraw_holds_up_the_answer_and_nothing_else() {
    let mut pair = Pair::running(|_| {});
    // A worker in the middle of a round: the place is locked.
    let place = pair.place.clone();
    let (tell, told) = std::sync::mpsc::channel();
    let has_left = Arc::new(AtomicBool::new(false));
    let leaves = has_left.clone();
    let worker = std::thread::spawn(move || {
        place.hold(|| {
            tell.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(200));
            leaves.store(true, Ordering::Relaxed);
        });
    });
    told.recv().unwrap();
    pair.driver.set_memory_table().unwrap();
    assert!(has_left.load(Ordering::Relaxed), "answered before the worker had left");
    worker.join().unwrap();
}

#[test]
fn the_place_is_used_as_a_trait_object() {
    // The daemon hands over `Arc<dyn Place>`; nothing here may need the concrete type.
    let place: Arc<dyn Place> = Arc::new(TestPlace::default());
    let path = socket_path();
    drop(Backend::start(backend_config(Role::Server, path), place).unwrap());
}
