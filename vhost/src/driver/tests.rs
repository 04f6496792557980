//! Drivers of both layouts against a device straight from the specification.

mod turns;

use super::reference::{Chain, Device, Kicks};
use super::*;
use crate::net::{F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_RING_PACKED};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::os::fd::AsFd;
use switch::offload::VNET_HEADER_MRG_LEN;

/// A driver and the devices of its two rings.
struct Rig {
    driver: Driver,
    receive: Device,
    send: Device,
    random: u64,
}

fn config(features: u64, size: u16) -> DriverConfig {
    let mut config = DriverConfig::new("unused");
    config.features = features | F_VERSION_1 | F_MRG_RXBUF;
    config.queue_size = size;
    (config.receive_buffer_len, config.send_buffer_len) = (192, 700);
    config.is_order_trusted = false;
    config
}

impl Rig {
    fn new(config: DriverConfig, seed: u64) -> Rig {
        let features = config.features;
        let size = config.queue_size;
        let mut driver = Driver::new(config).unwrap();
        for (sender, receiver) in driver.pairs() {
            sender.ring.agree(features, VNET_HEADER_MRG_LEN);
            receiver.agree(features, VNET_HEADER_MRG_LEN, features & F_MRG_RXBUF != 0);
            // As agreed on now: the eventless form of before means something else with event indices.
            sender.ring.set_interrupts(false);
            receiver.ring.set_interrupts(false);
        }
        let device = |index| Device::new(driver.memory(), &driver.ring(index).addresses(index), size, features);
        let (receive, send) = (device(0), device(1));
        driver.receiver.post_all();
        Rig { driver, receive, send, random: seed | 1 }
    }

    fn random(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 20) as usize % below
    }
}

/// A frame of `len` bytes, at least 16, that says its number.
fn frame(number: u32, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|at| (at as u32 * 13 + number) as u8).collect();
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn was_kicked(ring: &Ring) -> bool {
    let is_kicked = wait_readable(ring.kick_fd(), Duration::ZERO);
    if is_kicked {
        rustix::io::read(ring.kick_fd().as_fd(), &mut [0u8; 8]).unwrap();
    }
    is_kicked
}

/// Moves a frame into the guest's receive ring; `None` if it has no room. Answers the chains and the bytes of each.
fn fill(device: &mut Device, spare: &mut VecDeque<Chain>, frame: &[u8]) -> Option<Vec<(Chain, u32)>> {
    let mut bytes = vec![0; VNET_HEADER_MRG_LEN];
    bytes.extend(frame);
    let mut room: usize = spare.iter().map(Chain::len).sum();
    while room < bytes.len() {
        let chain = device.take()?;
        room += chain.len();
        spare.push_back(chain);
    }
    let mut chains = Vec::new();
    let mut from = 0;
    while from < bytes.len() {
        let chain = spare.pop_front().unwrap();
        let len = (bytes.len() - from).min(chain.len());
        from += len;
        chains.push((chain, len as u32));
    }
    bytes[10..12].copy_from_slice(&(chains.len() as u16).to_le_bytes());
    let mut rest = &bytes[..];
    for (chain, len) in &chains {
        let (now, later) = rest.split_at(*len as usize);
        device.write(chain, now);
        rest = later;
    }
    Some(chains)
}

/// Frames go out by the send ring and come back by the receive ring; all arrive once, whole and in order.
fn frames_go_round(config: DriverConfig, seed: u64, total: u32) {
    let features = config.features;
    let (is_in_order, has_event_index) = (features & F_IN_ORDER != 0, features & F_EVENT_IDX != 0);
    let mut rig = Rig::new(config, seed);
    let (mut sent, mut arrived, mut seen) = (0u32, Vec::new(), 0u32);
    let (mut under_way, mut spare) = (Vec::<Chain>::new(), VecDeque::new());
    let mut waiting = VecDeque::<Vec<u8>>::new();
    let mut idle = 0;
    while seen < total {
        let before = (sent, seen, under_way.len(), waiting.len());
        // The guest sends a burst.
        let kicks = match rig.random(3) {
            0 => Kicks::Never,
            1 => Kicks::Always,
            _ if has_event_index => Kicks::After(rig.random(5) as u16),
            _ => Kicks::Always,
        };
        rig.send.set_kicks(kicks, has_event_index);
        let start = rig.send.driver_next();
        let burst = rig.random(9).min((total - sent) as usize);
        let lens: Vec<usize> = (0..burst).map(|_| 16 + rig.random(600)).collect();
        let frames: Vec<Vec<u8>> = (sent..).zip(&lens).map(|(number, len)| frame(number, *len)).collect();
        let list: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        let count = rig.driver.sender.send_burst(&list);
        sent += count as u32;
        check_kick(&rig, kicks, has_event_index, start);
        // The device takes some, and gives some back.
        for _ in 0..rig.random(12) {
            under_way.extend(rig.send.take());
        }
        if !is_in_order && under_way.len() > 1 {
            let (a, b) = (rig.random(under_way.len()), rig.random(under_way.len()));
            under_way.swap(a, b);
        }
        let wants = rig.random(2) == 0;
        rig.driver.sender.ring.set_interrupts(wants);
        let count = rig.random(under_way.len() + 1);
        let done: Vec<(Chain, u32)> = under_way.drain(..count).map(|chain| (chain, 0)).collect();
        for (chain, _) in &done {
            waiting.push_back(rig.send.read(chain)[VNET_HEADER_MRG_LEN..].to_vec());
        }
        let as_one = is_in_order && rig.random(2) == 0;
        if as_one {
            rig.send.give_as_one(&done);
        } else {
            rig.send.give(&done);
        }
        // With event indices a wish from before counts too; that has a test of its own.
        if !has_event_index && !done.is_empty() {
            assert_eq!(rig.send.is_interrupt_due(has_event_index), wants);
        }
        // And moves them into the receive ring.
        while let Some(frame) = waiting.front() {
            let Some(chains) = fill(&mut rig.receive, &mut spare, frame) else { break };
            waiting.pop_front();
            // Skipped buffers are full ones, as those of one merged frame are but for the last.
            if is_in_order && rig.random(2) == 0 {
                rig.receive.give_as_one(&chains);
            } else {
                rig.receive.give(&chains);
            }
        }
        // The guest takes them.
        let max = 1 + rig.random(20);
        let random = rig.random(4);
        seen += rig.driver.receiver.visit(max, |received| {
            let mut bytes = vec![0; received.len()];
            assert_eq!(received.read(0, &mut bytes), bytes.len());
            assert_eq!(received.word(0) >> 32, u64::from(u32::from_be_bytes(bytes[..4].try_into().unwrap())));
            let (mut part, at) = ([0; 7], random * received.len() / 4);
            let count = received.read(at, &mut part);
            assert_eq!(part[..count], bytes[at..][..count]);
            arrived.push(bytes);
        }) as u32;
        let after = (sent, seen, under_way.len(), waiting.len());
        idle = if before == after { idle + 1 } else { 0 };
        assert!(idle < 200, "nothing moves any more: {after:?} of {total}");
    }
    assert_eq!((rig.driver.sender.ring.faults(), rig.driver.receiver.ring.faults()), (0, 0));
    let mut numbers: Vec<u32> =
        arrived.iter().map(|bytes| u32::from_be_bytes(bytes[..4].try_into().unwrap())).collect();
    for (bytes, number) in arrived.iter().zip(&numbers) {
        assert_eq!(*bytes, frame(*number, bytes.len()));
    }
    if !is_in_order {
        numbers.sort_unstable();
    }
    assert!(numbers.into_iter().eq(0..total), "every frame once");
    assert_eq!(rig.driver.sender.free(), rig.driver.sender.ring.slots(), "every send buffer is back");
}

/// The kick came if it was due, and only then.
fn check_kick(rig: &Rig, kicks: Kicks, has_event_index: bool, start: (u16, bool)) {
    let ring = &rig.driver.sender.ring;
    let has_sent = rig.send.driver_next() != start;
    let due = match kicks {
        Kicks::Never => false,
        Kicks::Always if !has_event_index => has_sent,
        _ => rig.send.is_kick_due(start),
    };
    assert_eq!(was_kicked(ring), due, "{kicks:?} from {start:?} to {:?}", rig.send.driver_next());
}

fn shapes(is_packed: bool) -> impl Strategy<Value = Shape> {
    prop_oneof![
        Just(Shape::SINGLE),
        Just(Shape::linked(2)),
        // In order, chains must fill a split ring's table.
        Just(Shape::linked(if is_packed { 3 } else { 4 })),
        Just(Shape::indirect(1)),
        Just(Shape::indirect(5)),
    ]
}

fn rings() -> impl Strategy<Value = (DriverConfig, u64)> {
    any::<bool>()
        .prop_flat_map(|is_packed| {
            let size = if is_packed { (8u16..40).boxed() } else { (3u32..6).prop_map(|power| 1 << power).boxed() };
            (Just(is_packed), size, shapes(is_packed), shapes(is_packed), any::<[bool; 2]>(), any::<u64>())
        })
        .prop_map(|(is_packed, size, send, receive, [has_events, is_in_order], seed)| {
            let features = [(is_packed, F_RING_PACKED), (has_events, F_EVENT_IDX), (is_in_order, F_IN_ORDER)];
            let features = features.iter().filter(|(is_on, _)| *is_on).map(|(_, bit)| bit).sum::<u64>();
            let mut config = config(features | F_INDIRECT_DESC, size);
            (config.send_shape, config.receive_shape) = (send, receive);
            // Two of them hold the longest frame: there are rings with no more.
            config.receive_buffer_len = 320;
            (config, seed)
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn frames_go_round_whatever_the_layout_the_features_and_the_shape((config, seed) in rings()) {
        frames_go_round(config, seed, 300);
    }
}

/// A ring with one frame under way for each of its slots, and the device that has them all.
fn all_taken(features: u64, size: u16) -> (Rig, Vec<(Chain, u32)>) {
    let mut rig = Rig::new(config(features, size), 1);
    let bytes = frame(1, 60);
    let list = vec![&bytes[..]; usize::from(size)];
    assert_eq!(rig.driver.sender.send_burst(&list), usize::from(size));
    let chains = std::iter::from_fn(|| rig.send.take()).map(|chain| (chain, 0)).collect();
    (rig, chains)
}

#[test]
fn an_interrupt_is_due_from_the_buffer_on_that_was_asked_for() {
    for features in [F_EVENT_IDX, F_EVENT_IDX | F_RING_PACKED] {
        let (mut rig, chains) = all_taken(features, 8);
        rig.send.give(&chains[..2]);
        assert!(!rig.send.is_interrupt_due(true), "none was asked for");
        rig.driver.sender.ring.take_used(&mut [Used::default(); 8]);
        rig.driver.sender.ring.set_interrupts(true);
        rig.send.give(&chains[2..5]);
        assert!(rig.send.is_interrupt_due(true), "the next one was asked for");
        rig.send.give(&chains[5..6]);
        assert!(!rig.send.is_interrupt_due(true), "once");
    }
}

#[test]
fn used_entries_that_cannot_be_are_counted_and_skipped() {
    for features in [0, F_RING_PACKED, F_IN_ORDER, F_IN_ORDER | F_RING_PACKED] {
        let (mut rig, chains) = all_taken(features, 8);
        rig.send.give(&chains[..1]);
        let mut used = [Used::default(); 8];
        assert_eq!(rig.driver.sender.ring.take_used(&mut used), 1);
        // The first once more, one that does not exist, one longer than its buffer.
        let (again, mut foreign, mut long) = (chains[0].clone(), chains[1].clone(), chains[2].clone());
        foreign.0.id = 4000;
        long.1 = 701;
        rig.send.give(&[again]);
        rig.send.give(&[foreign]);
        assert_eq!(rig.driver.sender.ring.take_used(&mut used), 0, "{features:#x}");
        assert_eq!(rig.driver.sender.ring.faults(), 2, "{features:#x}");
        if features & F_IN_ORDER == 0 {
            rig.send.give(&[long]);
            rig.send.give(&chains[3..4]);
            assert_eq!(rig.driver.sender.ring.take_used(&mut used), 1);
            assert_eq!((used[0].slot, rig.driver.sender.ring.faults()), (chains[3].0.id, 3));
        }
    }
}

#[test]
fn rings_of_the_largest_size_go_round() {
    for features in [0, F_RING_PACKED] {
        let mut config = config(features, 32_768);
        (config.receive_buffer_len, config.send_buffer_len) = (128, 128);
        let mut rig = Rig::new(config, 1);
        let bytes: Vec<Vec<u8>> = (0..2000).map(|number| frame(number, 60)).collect();
        let list: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
        let (mut sent, mut given) = (0, 0);
        // More than the 16 bits of an index, and more than two laps of wrap counters.
        while given < 140_000 {
            sent += rig.driver.sender.send_burst(&list);
            let chains: Vec<_> = std::iter::from_fn(|| rig.send.take()).map(|chain| (chain, 0)).take(1700).collect();
            given += chains.len();
            rig.send.give(&chains);
        }
        assert_eq!(usize::from(rig.driver.sender.free()), 32_768 - (sent - given));
        assert_eq!(rig.driver.sender.ring.faults(), 0);
    }
}

#[test]
fn a_device_that_lost_its_memory_takes_again_what_it_had_not_given_back() {
    for features in [0, F_RING_PACKED, F_RING_PACKED | F_IN_ORDER] {
        let mut rig = Rig::new(config(features, 6 + 2 * u16::from(features == 0)), 7);
        let (mut sent, mut taken) = (0u32, Vec::new());
        for _ in 0..40 {
            let frames: Vec<_> = (sent..sent + 3).map(|number| frame(number, 40)).collect();
            let list: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
            sent += rig.driver.sender.send_burst(&list) as u32;
            let chains: Vec<_> = std::iter::from_fn(|| rig.send.take()).map(|chain| (chain, 0)).collect();
            let keeps = rig.random(chains.len() + 1);
            for (chain, _) in &chains[..keeps] {
                taken.push(rig.send.read(chain)[VNET_HEADER_MRG_LEN..].to_vec());
            }
            match rig.random(2) {
                0 if features & F_IN_ORDER != 0 => rig.send.give_as_one(&chains[..keeps]),
                _ => rig.send.give(&chains[..keeps]),
            }
            let base = rig.driver.sender.ring.base();
            rig.send.restart(base);
        }
        assert!(sent > 60);
        let left = std::iter::from_fn(|| rig.send.take()).count();
        assert_eq!(taken.len() + left, sent as usize);
        for (number, bytes) in (0..).zip(&taken) {
            assert_eq!(*bytes, frame(number, 40));
        }
    }
}

#[test]
fn a_reset_ring_begins_anew() {
    for features in [0, F_RING_PACKED] {
        let (mut rig, chains) = all_taken(features, 8);
        rig.send.give(&chains[..3]);
        rig.driver.sender.ring.reset();
        rig.send.restart(if features == 0 { 0 } else { 0x8000_8000 });
        assert_eq!(rig.driver.sender.ring.base(), if features == 0 { 0 } else { 0x8000_8000 });
        assert!(rig.send.take().is_none());
        assert_eq!(rig.driver.sender.free(), 8);
        assert!(rig.driver.sender.send_with(&[0; 12], &frame(7, 50)));
        let chain = rig.send.take().unwrap();
        assert_eq!(rig.send.read(&chain)[VNET_HEADER_MRG_LEN..], frame(7, 50));
    }
}

#[test]
fn bytes_patched_into_frames_go_with_them() {
    for features in [0, F_RING_PACKED] {
        let mut rig = Rig::new(config(features, 16), 1);
        rig.driver.sender.fill_all(&[frame(0, 64)]);
        let mut number = 100u32;
        for _ in 0..5 {
            let count = rig.driver.sender.post_patched(12, 20, |at| (number + u32::from(at)).to_be_bytes());
            assert_eq!(count, 12);
            let chains: Vec<_> = std::iter::from_fn(|| rig.send.take()).map(|chain| (chain, 0)).collect();
            for (chain, _) in &chains {
                let bytes = rig.send.read(chain);
                assert_eq!(bytes[12 + 20..][..4], number.to_be_bytes());
                assert_eq!(bytes.len(), 12 + 64);
                number += 1;
            }
            rig.send.give(&chains);
        }
        assert_eq!(number, 160);
    }
}

#[test]
fn a_merged_frame_waits_for_its_last_buffer() {
    for features in [0, F_RING_PACKED] {
        let mut rig = Rig::new(config(features, 8), 1);
        let sent = frame(3, 400);
        let chains = fill(&mut rig.receive, &mut VecDeque::new(), &sent).unwrap();
        assert_eq!(chains.len(), 3);
        rig.receive.give(&chains[..2]);
        assert_eq!(rig.driver.receiver.recv_burst(9, |_, _| panic!("it is not whole")), 0);
        rig.receive.give(&chains[2..]);
        let mut got = Vec::new();
        assert_eq!(rig.driver.receiver.recv_burst(9, |header, bytes| got.push((header[10], bytes.to_vec()))), 1);
        assert_eq!(got, [(3, sent)]);
        assert_eq!(std::iter::from_fn(|| rig.receive.take()).count(), 8, "all buffers are back");
    }
}

#[test]
fn drained_buffers_are_counted_and_come_back() {
    for features in [0, F_RING_PACKED] {
        let mut rig = Rig::new(config(features, 8), 1);
        let mut spare = VecDeque::new();
        for number in 0..30 {
            for len in [60, 100] {
                let chains = fill(&mut rig.receive, &mut spare, &frame(number, len)).unwrap();
                rig.receive.give(&chains);
            }
            assert_eq!(rig.driver.receiver.drain(7), (2, 160));
        }
        assert_eq!(rig.driver.receiver.drain(7), (0, 0));
    }
}

#[test]
fn chains_posted_raw_come_back_by_their_id() {
    for features in [0, F_RING_PACKED] {
        let mut rig = Rig::new(config(features, 8), 1);
        let ring = &mut rig.driver.sender.ring;
        let address = ring.buffer_address(0);
        let part = |len, flags| Descriptor { address, len, flags, next: 0 };
        for round in 0..10 {
            let id = round % 4;
            ring.post_chain(id, &[part(10, NEXT), part(20, NEXT), part(30, 0)]);
            let chain = rig.send.take().unwrap();
            assert_eq!((chain.id, chain.len()), (id, 60));
            rig.send.give(&[(chain, 0)]);
            let mut used = [Used::default(); 4];
            assert_eq!(ring.take_used(&mut used), 1);
            assert_eq!(used[0].slot, id);
        }
    }
}
