//! The engine under a hub for a pipeline: rounds, ledger, swap, sleeping. The real stages are tested in their own crate.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::sync::Arc;
use std::time::{Duration, Instant};
use switch::batch::{BURST, Batch};
use switch::clock::thread_ns;
use switch::config::{Config, MTU_DEFAULT, NetworkConfig, PortConfig};
use switch::ids::{MacAddr, NetworkIndex, PortIndex, WorkerIndex};
use switch::ledger::DropReason;
use switch::mac_table::Learned;
use switch::offload::{EgressOffloads, Gso, GsoKind, Offload, PartialChecksum};
use switch::packet::{Headers, L3};
use switch::poll::Poll;
use switch::segmentation::{BURST_CUT_MAX, CUT_COST_BYTES};
use switch::switch::{Switch, SwitchConfig, WorkerSpec};
use switch::testing::{Limits, MemoryPort};
use switch::underlay::{Underlay, UplinkConfig, UplinkTags};
use switch::worker::{Context, Egress, Pipeline, ROUND_BYTES, Worker};

/// Sends every frame to all other ports; a frame that starts with 0xdd is dropped, one with 0xcc consumed, and one with 0xee takes
/// [`SLOW`] before, with 0xef [`SLUGGISH`]. The second
/// byte, if 1, asks for a partial checksum at bytes 16..18; from 2 on it asks for a cut of TCP over IPv4 into segments of
/// that size.
struct Hub;

/// Time that a slow frame takes.
const SLOW: Duration = Duration::from_millis(2);
/// Time that a sluggish one takes: no round is long by it alone.
const SLUGGISH: Duration = Duration::from_micros(200);

impl Pipeline for Hub {
    type Tables = Vec<PortIndex>;

    fn compile(config: &Config) -> Vec<PortIndex> {
        config.ports().iter().map(|port| port.index).collect()
    }

    fn run(tables: &Vec<PortIndex>, _context: &Context<'_>, batch: &mut Batch<'_>, egress: &mut Egress<'_>) {
        for (at, packet) in batch.packets_mut().iter_mut().enumerate() {
            if let 0xee | 0xef = packet.head()[0] {
                let time = if packet.head()[0] == 0xee { SLOW } else { SLUGGISH };
                // The worker's own: what others take of its CPU meanwhile is charged to nobody.
                let until_ns = thread_ns() + time.as_nanos() as u64;
                while thread_ns() < until_ns {}
            }
            match packet.head()[..2] {
                [0xdd, _] => egress.drop_ingress(packet.ingress, DropReason::SpoofedMac),
                [0xcc, _] => egress.consume(),
                [_, wish] => {
                    packet.offload.checksum = (wish == 1).then_some(PartialChecksum { start: 8, offset: 8 });
                    if wish > 1 {
                        let gso = Gso { kind: GsoKind::Tcp4, size: wish.into(), header_len: 54, ecn: false };
                        let checksum = PartialChecksum { start: 34, offset: 16 };
                        packet.offload = Offload { checksum: Some(checksum), gso: Some(gso), checksum_valid: false };
                        packet.headers = Headers {
                            l3: L3::Ipv4,
                            l3_offset: 14,
                            l4_offset: 34,
                            l4_protocol: 6,
                            ..Headers::default()
                        };
                    }
                    let mut sent = false;
                    for &port in tables.iter().filter(|&&port| port != packet.ingress) {
                        egress.forward(at, packet.len(), port);
                        sent = true;
                    }
                    if !sent {
                        egress.drop_ingress(packet.ingress, DropReason::NoReceiver);
                    }
                }
                _ => unreachable!("tests send at least two bytes"),
            }
        }
    }

    fn trace(_tables: &Vec<PortIndex>, _context: &Context<'_>, batch: &mut Batch<'_>) -> Vec<String> {
        vec![format!("{} bytes", batch.packets()[0].len())]
    }
}

fn config(ports: u16) -> Config {
    let network = NetworkConfig { index: NetworkIndex(1), id: "net".into() };
    let port = |index| PortConfig {
        index: PortIndex(index),
        interface: format!("if{index}").into(),
        network: Some(NetworkIndex(1)),
        is_admin_up: true,
        mtu: MTU_DEFAULT,
        macs: vec![],
        allowed_macs: Vec::new(),
    };
    Config::new(vec![network], (0..ports).map(port).collect()).unwrap()
}

fn switch(workers: usize, poll: Poll) -> Arc<Switch<Hub>> {
    let config = SwitchConfig { workers: vec![WorkerSpec::default(); workers], poll, mac_max: 1000, mac_age_s: 300 };
    Switch::new(&config).unwrap()
}

/// A switch of `ports` memory ports with one worker that the test drives.
fn by_hand(ports: u16) -> (Arc<Switch<Hub>>, Worker<Hub>, Vec<Arc<MemoryPort>>) {
    let switch = switch(1, Poll::Always);
    switch.apply(config(ports));
    let devices: Vec<_> = (0..ports).map(|_| MemoryPort::new()).collect();
    for (index, device) in devices.iter().enumerate() {
        switch.place(PortIndex(index as u16)).publish(device.clone());
    }
    let worker = switch.take_workers().pop().unwrap();
    (switch, worker, devices)
}

fn frame(first: u8, wish: u8, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
    bytes[0] = first;
    bytes[1] = wish;
    if wish > 1 {
        bytes[14] = 0x45;
    }
    bytes
}

fn step(switch: &Switch<Hub>, worker: &mut Worker<Hub>) -> usize {
    let taken = worker.step(switch.clock().now());
    assert!(switch.balance().balances(), "{:?}", switch.balance());
    taken
}

#[test]
fn a_flood_reaches_all_others_once_and_counts_its_copies() {
    let (switch, mut worker, ports) = by_hand(4);
    ports[1].inject(&frame(7, 0, 900));
    assert_eq!(step(&switch, &mut worker), 1);
    for (index, port) in ports.iter().enumerate() {
        let got = port.collect();
        if index == 1 {
            assert!(got.is_empty(), "reflected");
        } else {
            assert_eq!(got.len(), 1);
            assert_eq!(got[0].bytes, frame(7, 0, 900));
        }
    }
    let balance = switch.balance();
    assert_eq!((balance.received, balance.copies, balance.sent, balance.dropped), (1, 2, 3, 0));
    assert_eq!(switch.ledger(PortIndex(1)).unwrap().rx().bytes, 900);
}

#[test]
fn drops_are_counted_where_they_happen() {
    let (switch, mut worker, ports) = by_hand(2);
    ports[0].inject(&frame(0xdd, 0, 60));
    ports[0].inject(&frame(0xcc, 0, 60));
    ports[0].inject(&frame(1, 2, 54 + 2 * BURST_CUT_MAX + 1));
    step(&switch, &mut worker);
    let rx = switch.ledger(PortIndex(0)).unwrap().rx();
    assert_eq!(rx.packets, 3);
    assert_eq!(rx.drops().collect::<Vec<_>>(), [(DropReason::SpoofedMac, 1)]);
    let tx = switch.ledger(PortIndex(1)).unwrap().tx();
    assert_eq!(tx.drops().collect::<Vec<_>>(), [(DropReason::CutLimited, 1)]);
    assert_eq!(switch.balance().consumed, 1);
}

#[test]
fn a_cut_counts_its_segments_as_copies_and_leaves_the_frame_whole_for_others() {
    let switch = switch(1, Poll::Always);
    switch.apply(config(4));
    let all = EgressOffloads { checksum: true, tso4: true, ..EgressOffloads::default() };
    let ports = [
        MemoryPort::new(),
        MemoryPort::new(),
        MemoryPort::with(Limits { offloads: all, ..Limits::default() }),
        MemoryPort::with(Limits { room: Some(7), ..Limits::default() }),
    ];
    for (index, port) in ports.iter().enumerate() {
        switch.place(PortIndex(index as u16)).publish(port.clone());
    }
    let mut worker = switch.take_workers().pop().unwrap();
    let bytes = frame(1, 100, 54 + 950);
    ports[0].inject(&bytes);
    step(&switch, &mut worker);

    let segments = ports[1].collect();
    assert_eq!(segments.len(), 10);
    assert_eq!(segments.iter().map(|segment| segment.bytes[54..].to_vec()).collect::<Vec<_>>().concat(), bytes[54..]);
    assert!(segments.iter().all(|segment| segment.offload.is_none()));
    let whole = ports[2].collect();
    assert_eq!(whole.len(), 1);
    assert_eq!(whole[0].bytes, bytes);
    assert_eq!(ports[3].collect().len(), 7);
    let tx = switch.ledger(PortIndex(3)).unwrap().tx();
    assert_eq!((tx.packets, tx.drops().collect::<Vec<_>>()), (7, vec![(DropReason::RxRingFull, 3)]));
    let balance = switch.balance();
    assert_eq!((balance.received, balance.copies, balance.sent, balance.dropped), (1, 2 + 9 + 9, 18, 3));
}

#[test]
fn a_queue_pays_for_the_segments_it_causes() {
    let (switch, mut worker, ports) = by_hand(2);
    let segments = 2 * ROUND_BYTES / CUT_COST_BYTES;
    ports[0].inject(&frame(1, 2, 54 + 2 * segments));
    ports[0].inject(&frame(2, 0, 60));
    assert_eq!(step(&switch, &mut worker), 2, "one burst");
    ports[0].inject(&frame(3, 0, 60));
    let rounds = (1..10).find(|_| step(&switch, &mut worker) == 1).unwrap();
    assert!(rounds > 1, "the queue was served again at once");
}

#[test]
fn a_partial_checksum_is_completed_for_a_receiver_that_cannot() {
    for tail in [20usize, 21, 900, 4097] {
        let switch = switch(1, Poll::Always);
        switch.apply(config(3));
        let sender = MemoryPort::new();
        let plain = MemoryPort::new();
        let able = MemoryPort::with(Limits {
            offloads: EgressOffloads { checksum: true, ..EgressOffloads::default() },
            ..Limits::default()
        });
        switch.place(PortIndex(0)).publish(sender.clone());
        switch.place(PortIndex(1)).publish(able.clone());
        switch.place(PortIndex(2)).publish(plain.clone());
        let mut worker = switch.take_workers().pop().unwrap();
        let mut bytes = frame(1, 1, tail);
        bytes[16..18].copy_from_slice(&[0x12, 0x34]);
        sender.inject(&bytes);
        step(&switch, &mut worker);

        let passed = able.collect().remove(0);
        assert_eq!(passed.bytes, bytes, "left to a receiver that can");
        assert!(passed.offload.checksum.is_some());

        let done = plain.collect().remove(0);
        assert!(done.offload.checksum.is_none());
        let sum: u64 =
            bytes[8..].chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0))).sum();
        let mut folded = sum;
        while folded > 0xffff {
            folded = (folded & 0xffff) + (folded >> 16);
        }
        let mut wanted = bytes.clone();
        wanted[16..18].copy_from_slice(&(!(folded as u16)).to_be_bytes());
        assert_eq!(done.bytes, wanted, "{tail} bytes");
    }
}

#[test]
fn a_full_receiver_drops_there_and_does_not_hold_up_the_others() {
    let switch = switch(1, Poll::Always);
    switch.apply(config(3));
    let sender = MemoryPort::new();
    let full = MemoryPort::with(Limits { room: Some(5), ..Limits::default() });
    let free = MemoryPort::new();
    for (index, port) in [sender.clone(), full.clone(), free.clone()].into_iter().enumerate() {
        switch.place(PortIndex(index as u16)).publish(port);
    }
    let mut worker = switch.take_workers().pop().unwrap();
    for _ in 0..20 {
        sender.inject(&frame(1, 0, 64));
    }
    step(&switch, &mut worker);
    assert_eq!(free.collect().len(), 20);
    assert_eq!(full.collect().len(), 5);
    assert_eq!(switch.ledger(PortIndex(1)).unwrap().tx().drops().collect::<Vec<_>>(), [(DropReason::RxRingFull, 15)]);
}

#[test]
fn a_configured_port_without_a_device_drops_as_port_gone() {
    let switch = switch(1, Poll::Always);
    switch.apply(config(2));
    let sender = MemoryPort::new();
    switch.place(PortIndex(0)).publish(sender.clone());
    let mut worker = switch.take_workers().pop().unwrap();
    sender.inject(&frame(1, 0, 64));
    step(&switch, &mut worker);
    assert_eq!(switch.ledger(PortIndex(1)).unwrap().tx().drops().collect::<Vec<_>>(), [(DropReason::PortGone, 1)]);
}

#[test]
fn counters_survive_a_reconnect_and_go_with_the_place() {
    let (switch, mut worker, ports) = by_hand(2);
    ports[0].inject(&frame(1, 0, 64));
    step(&switch, &mut worker);
    let again = MemoryPort::new();
    switch.place(PortIndex(0)).publish(again.clone());
    again.inject(&frame(1, 0, 64));
    step(&switch, &mut worker);
    assert_eq!(switch.ledger(PortIndex(0)).unwrap().rx().packets, 2);

    switch.apply(config(0));
    switch.forget(PortIndex(0));
    assert!(switch.ledger(PortIndex(0)).is_none());
}

#[test]
fn a_burst_of_large_frames_ends_at_the_round_budget_and_a_flood_puts_its_queue_in_debt() {
    let (switch, mut worker, ports) = by_hand(10);
    for _ in 0..BURST {
        ports[0].inject(&frame(1, 0, 65_000));
    }
    ports[1].inject(&frame(2, 0, 64));
    assert_eq!(step(&switch, &mut worker), 5 + 1, "four frames fill the budget, the fifth overdraws it");
    // 5 x 65,000 bytes to nine ports are 2.9 MB: eleven rounds of debt. Publications do not forgive it.
    let mut rounds = 0;
    loop {
        switch.apply(config(10));
        ports[1].inject(&frame(2, 0, 64));
        rounds += 1;
        if step(&switch, &mut worker) > 1 {
            break;
        }
    }
    assert!((10..=12).contains(&rounds), "{rounds}");
    assert!(ports[2].collect().iter().filter(|frame| frame.bytes[0] == 2).count() > 10, "the neighbour went on");
}

/// A switch of memory ports whose one worker is driven by hand and watches the time.
fn watched(ports: u16) -> (Arc<Switch<Hub>>, Worker<Hub>, Vec<Arc<MemoryPort>>) {
    let (switch, mut worker, ports) = by_hand(ports);
    worker.time_queues(switch.clock());
    worker.note_long_round();
    (switch, worker, ports)
}

/// Has a port send one burst of twenty milliseconds; answers when its round began, and how much was the worker's own time.
fn long_burst(switch: &Switch<Hub>, worker: &mut Worker<Hub>, port: &MemoryPort) -> (Instant, Duration) {
    (0..10).for_each(|_| port.inject(&frame(0xee, 0, 64)));
    loop {
        // Whatever went by since the last one.
        worker.note_long_round();
        let (begun, before) = (Instant::now(), thread_ns());
        // On a busy machine the port may have been charged some rounds for a look before.
        if step(switch, worker) == 10 {
            return (begun, Duration::from_nanos(thread_ns() - before));
        }
    }
}

/// Asserts that so much time went by, but for what needs no explanation and what goes by between readings of clocks.
fn assert_past(past: Duration, least: Duration) {
    assert!(past + Duration::from_millis(1) >= least, "{past:?}, and {least:?} was due");
}

#[test]
fn a_queue_whose_frames_take_long_sits_out_all_that_time_however_short_the_rounds_of_its_neighbour_are() {
    let (switch, mut worker, ports) = watched(3);
    let (begun, worked) = long_burst(&switch, &mut worker, &ports[0]);
    ports[0].inject(&frame(1, 0, 64));
    let mut neighbours = 0;
    while !ports[2].collect().iter().any(|frame| frame.bytes[0] == 1) {
        ports[1].inject(&frame(2, 0, 64));
        neighbours += step(&switch, &mut worker);
    }
    assert_past(begun.elapsed(), worked * 2);
    assert!(neighbours > 10, "{neighbours}");
}

#[test]
fn one_long_burst_after_another_sits_out_ever_as_long_as_it_took() {
    let (switch, mut worker, ports) = watched(2);
    for _ in 0..3 {
        let (begun, worked) = long_burst(&switch, &mut worker, &ports[0]);
        rounds_until_taken(&switch, &mut worker, &ports[0], &frame(1, 0, 64));
        assert_past(begun.elapsed(), worked * 2);
    }
}

#[test]
fn a_guest_of_many_queues_takes_one_turn_and_not_one_with_each() {
    let switch = switch(1, Poll::Always);
    switch.apply(config(2));
    let guest = MemoryPort::with(Limits { burst: Some(10), more_queues: 3, ..Limits::default() });
    switch.place(PortIndex(0)).publish(guest.clone());
    let mut worker = switch.take_workers().pop().unwrap();
    worker.time_queues(switch.clock());
    worker.note_long_round();
    (0..40).for_each(|_| guest.inject(&frame(0xee, 0, 64)));
    let mut before = None;
    let deadline = Instant::now() + Duration::from_secs(20);
    for _ in 0..4 {
        let (begun, worked) = loop {
            worker.note_long_round();
            let (begun, thread_before) = (Instant::now(), thread_ns());
            match step(&switch, &mut worker) {
                0 => assert!(Instant::now() < deadline, "it is not polled any more"),
                taken => {
                    assert_eq!(taken, 10, "its other queues took a turn as well");
                    break (begun, Duration::from_nanos(thread_ns() - thread_before));
                }
            }
        };
        if let Some((begun_before, worked_before)) = before.replace((begun, worked)) {
            assert_past(begun - begun_before, worked_before * 2);
        }
        // A new snapshot, as of a port that came or a queue that was switched on, forgives nothing.
        switch.apply(config(2));
    }
}

#[test]
fn two_queues_that_are_slow_in_turn_do_not_repay_each_others_time() {
    let (switch, mut worker, ports) = watched(3);
    let (begun, first) = long_burst(&switch, &mut worker, &ports[0]);
    let (_, second) = long_burst(&switch, &mut worker, &ports[1]);
    rounds_until_taken(&switch, &mut worker, &ports[0], &frame(1, 0, 64));
    assert_past(begun.elapsed(), first + second + first);
}

#[test]
fn a_port_that_goes_for_a_moment_still_owes_its_time() {
    let (switch, mut worker, ports) = watched(2);
    let (begun, worked) = long_burst(&switch, &mut worker, &ports[0]);
    let place = switch.place(PortIndex(0));
    std::thread::scope(|scope| {
        let withdrawn = scope.spawn(|| place.withdraw());
        while !withdrawn.is_finished() {
            step(&switch, &mut worker);
        }
    });
    place.publish(ports[0].clone());
    rounds_until_taken(&switch, &mut worker, &ports[0], &frame(1, 0, 64));
    assert_past(begun.elapsed(), worked * 2);
}

#[test]
fn an_uplink_is_charged_no_time_for_one_slow_receiver_of_all_that_share_it() {
    let (switch, mut worker, ports) = watched(2);
    let uplink = UplinkConfig {
        index: PortIndex(0),
        physical_network: "p".into(),
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        mtu: MTU_DEFAULT,
        is_shared: false,
        address: None,
        tags: UplinkTags::default(),
    };
    let underlay = Underlay { uplinks: vec![uplink], ..Underlay::default() };
    let (networks, others) = (config(2).networks().to_vec(), config(2).ports()[1..].to_vec());
    switch.apply(Config::with_underlay(networks, others, underlay).unwrap());
    switch.place(PortIndex(0)).publish(ports[0].clone());
    long_burst(&switch, &mut worker, &ports[0]);
    assert_eq!(rounds_until_taken(&switch, &mut worker, &ports[0], &frame(1, 0, 64)), 1);
}

#[test]
fn a_look_that_finds_nothing_is_charged_for_its_time() {
    let switch = switch(1, Poll::Always);
    switch.apply(config(2));
    let slow = MemoryPort::with(Limits { look: SLOW, ..Limits::default() });
    switch.place(PortIndex(0)).publish(slow.clone());
    let mut worker = switch.take_workers().pop().unwrap();
    worker.time_queues(switch.clock());
    worker.note_long_round();
    assert_eq!(step(&switch, &mut worker), 0);
    assert!(rounds_until_taken(&switch, &mut worker, &slow, &frame(0xcc, 0, 64)) > 1);
}

/// Rounds until the frame that port 0 is given is taken.
fn rounds_until_taken(switch: &Switch<Hub>, worker: &mut Worker<Hub>, port: &MemoryPort, frame: &[u8]) -> usize {
    port.inject(frame);
    (1..).find(|_| step(switch, worker) > 0).unwrap()
}

#[test]
fn a_guest_of_many_queues_is_charged_for_bursts_that_make_a_round_long_together() {
    let (switch, mut worker, ports) = watched(2);
    let mut one = || rounds_until_taken(&switch, &mut worker, &ports[0], &frame(0xef, 0, 64));
    assert_eq!(one(), 1);
    assert!(one() > 4, "175 microseconds beyond a queue's share, at 8 bytes a nanosecond");
}

#[test]
fn a_port_that_hands_over_few_frames_at_a_time_keeps_their_order() {
    let switch = switch(1, Poll::Always);
    switch.apply(config(2));
    let sender = MemoryPort::with(Limits { burst: Some(3), ..Limits::default() });
    let receiver = MemoryPort::new();
    switch.place(PortIndex(0)).publish(sender.clone());
    switch.place(PortIndex(1)).publish(receiver.clone());
    let mut worker = switch.take_workers().pop().unwrap();
    for number in 0..10 {
        sender.inject(&frame(number, 0, 64));
    }
    let rounds: Vec<usize> = (0..4).map(|_| step(&switch, &mut worker)).collect();
    assert_eq!(rounds, [3, 3, 3, 1]);
    let order: Vec<u8> = receiver.collect().iter().map(|frame| frame.bytes[0]).collect();
    assert_eq!(order, (0..10).collect::<Vec<u8>>());
}

#[test]
fn trace_sees_the_whole_frame_and_counts_nothing() {
    let (switch, _worker, _ports) = by_hand(2);
    assert_eq!(switch.trace(PortIndex(0), &frame(1, 0, 1000)), ["1000 bytes"]);
    assert_eq!(switch.balance().received, 0);
}

/// Waits for something that another thread does.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn two_running_workers_lose_nothing_while_configs_change() {
    let switch = switch(2, Poll::Adaptive { idle: Duration::from_micros(50) });
    switch.apply(config(4));
    let ports: Vec<_> = (0..4).map(|_| MemoryPort::new()).collect();
    for (index, port) in ports.iter().enumerate() {
        switch.place(PortIndex(index as u16)).publish(port.clone());
    }
    switch.start().unwrap();
    for number in 0..200u32 {
        for port in &ports {
            port.inject(&frame(1, 0, 64 + number as usize));
        }
        switch.apply(config(4));
    }
    let mut got = [0; 4];
    until("all frames delivered", || {
        for (count, port) in got.iter_mut().zip(&ports) {
            *count += port.collect().len();
        }
        got == [600; 4]
    });
    switch.stop();
    let balance = switch.balance();
    assert!(balance.balances(), "{balance:?}");
    assert_eq!((balance.received, balance.sent, balance.dropped), (800, 2400, 0));
}

#[test]
fn withdraw_returns_only_when_no_worker_holds_the_port() {
    let switch = switch(2, Poll::Adaptive { idle: Duration::from_micros(50) });
    switch.apply(config(2));
    let other = MemoryPort::new();
    switch.place(PortIndex(1)).publish(other);
    switch.start().unwrap();
    let place = switch.place(PortIndex(0));
    for round in 0..200 {
        let port = MemoryPort::new();
        place.publish(port.clone());
        if round % 3 == 0 {
            port.inject(&frame(1, 0, 64));
        }
        place.withdraw();
        assert_eq!(Arc::strong_count(&port), 1, "somebody still holds it");
    }
    switch.stop();
}

#[test]
fn a_device_that_comes_while_a_config_is_applied_counts_as_up() {
    let switch = switch(1, Poll::Always);
    drop(switch.take_workers());
    switch.apply(config(2));
    let (place, network, now) = (switch.place(PortIndex(0)), NetworkIndex(1), switch.clock().now());
    let table = switch.mac_table();
    table.heard(PortIndex(0), now);
    for round in 1..=2000u32 {
        place.withdraw();
        std::thread::scope(|scope| {
            scope.spawn(|| switch.apply(config(2)));
            scope.spawn(|| place.publish(MemoryPort::new()));
        });
        let [_, _, low @ ..] = u64::from(round).to_be_bytes();
        let mac = MacAddr(low);
        table.learn(network, mac, PortIndex(0), now);
        assert_eq!(table.learn(network, mac, PortIndex(1), now), Learned::Refused, "round {round}: taken for down");
        table.flush_port(PortIndex(0));
    }
}

#[test]
fn fixed_addresses_stay_when_another_network_takes_over_the_index() {
    let (switch, _worker, _ports) = by_hand(0);
    let mac: MacAddr = "02:00:00:00:00:07".parse().unwrap();
    for id in ["before", "after"] {
        let network = NetworkConfig { index: NetworkIndex(1), id: id.into() };
        let port = PortConfig { macs: vec![mac], ..config(1).ports()[0].clone() };
        switch.apply(Config::new(vec![network], vec![port]).unwrap());
        let found = switch.mac_table().lookup(NetworkIndex(1), mac, switch.clock().now());
        assert_eq!(found, Some(PortIndex(0)), "{id}");
    }
}

#[test]
fn what_a_port_may_no_longer_send_from_is_no_longer_sought_there() {
    let (switch, _worker, _ports) = by_hand(0);
    let [kept, gone, fixed]: [MacAddr; 3] = [7, 8, 9].map(|last| MacAddr([2, 0, 0, 0, 0, last]));
    let network = NetworkIndex(1);
    let apply = |macs: &[MacAddr], allowed: &[MacAddr]| {
        let port = PortConfig { macs: macs.to_vec(), allowed_macs: allowed.to_vec(), ..config(1).ports()[0].clone() };
        switch.apply(Config::new(vec![NetworkConfig { index: network, id: "n".into() }], vec![port]).unwrap());
    };
    let learnt = |mac| switch.mac_table().lookup(network, mac, switch.clock().now()).is_some();
    let learn = || [kept, gone].map(|mac| switch.mac_table().learn(network, mac, PortIndex(0), switch.clock().now()));
    apply(&[fixed], &[kept, gone]);
    learn();
    apply(&[fixed], &[gone, kept, MacAddr([2, 0, 0, 0, 0, 1])]);
    assert_eq!([kept, gone, fixed].map(learnt), [true; 3], "nothing was taken away");
    apply(&[fixed], &[kept]);
    assert_eq!([gone, fixed].map(learnt), [false, true]);
    apply(&[], &[]);
    learn();
    apply(&[], &[kept]);
    assert!(!learnt(gone), "it could send from any before");
}

#[test]
fn an_idle_worker_sleeps_and_a_publication_wakes_it() {
    let switch = switch(1, Poll::Adaptive { idle: Duration::from_micros(50) });
    switch.start().unwrap();
    let seat = || switch.worker_reports()[0].clone();
    until("asleep", || {
        seat().sleeps > 0
            || seat().rounds > 0 && {
                std::thread::sleep(Duration::from_millis(5));
                let rounds = seat().rounds;
                std::thread::sleep(Duration::from_millis(20));
                seat().rounds == rounds
            }
    });
    let sleeps = seat().sleeps;
    switch.apply(config(1));
    until("woken", || seat().sleeps > sleeps);
    switch.stop();
    assert_eq!(seat().worker, WorkerIndex(0));
}
