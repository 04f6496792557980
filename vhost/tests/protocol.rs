//! Messages under traffic: queues that come and go, memory that comes and goes, and what is lost by it.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Pair, TestPlace, frame};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use switch::ids::QueueIndex;
use switch::offload::VNET_HEADER_MRG_LEN;
use switch::port::{Device, Link};
use vhost::chain::{Descriptor, WRITE};
use vhost::driver::{Driver, Used};
use vhost::memory::DriverMemory;
use vhost::message::{RegionInfo, Request, RingState, protocol};
use vhost::net::{F_MQ, F_RING_PACKED};

/// What a worker took from queue 0 and what it sent to the guest.
#[derive(Default)]
struct Traffic {
    taken: Vec<Vec<u8>>,
    delivered: u32,
    lost: u32,
}

/// A worker that takes from queue 0 and sends numbered frames to the guest by it, until told to stop.
fn work(place: &TestPlace, stop: &AtomicBool) -> Traffic {
    let mut traffic = Traffic::default();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let (frames, tally) = place.round_of(QueueIndex(0));
        assert_eq!(tally.dropped, 0, "what the guest sends is taken whole");
        traffic.taken.extend(frames.into_iter().map(|(bytes, _)| bytes));
        let tally = place.send_by(QueueIndex(0), &[&frame(number, 60)]);
        (traffic.delivered, traffic.lost) = (traffic.delivered + tally.packets, traffic.lost + tally.dropped);
        number += 1;
        std::thread::yield_now();
    }
    traffic
}

/// Tells a worker to stop, when the test is done or has failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Frames the guest sends at a time.
const BURST: u32 = 8;

/// Runs `change` again and again while the guest sends and receives by its first pair; answers what the worker saw, what
/// the guest sent and what arrived there.
fn under_traffic(pair: &mut Pair, times: u32, mut change: impl FnMut(&mut Pair, u32)) -> (Traffic, u32, u32) {
    let (place, stop) = (pair.place.clone(), AtomicBool::new(false));
    let (mut sent, mut arrived) = (0, 0);
    let traffic = std::thread::scope(|scope| {
        let worker = scope.spawn(|| work(&place, &stop));
        let stop = Stop(&stop);
        let mut exchange = |pair: &mut Pair| {
            let frames: Vec<Vec<u8>> = (sent..sent + BURST).map(|number| frame(number, 60)).collect();
            let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
            sent += pair.driver.sender.send_burst(&frames) as u32;
            arrived += all_received(pair);
        };
        for turn in 0..times {
            exchange(pair);
            change(pair, turn);
            exchange(pair);
        }
        wait_for_senders(pair);
        drop(stop);
        worker.join().unwrap()
    });
    arrived += all_received(pair);
    (traffic, sent, arrived)
}

/// Waits until the guest has all its send buffers.
fn wait_for_senders(pair: &mut Pair) {
    common::until("the worker has taken all", || pair.driver.sender.free() == pair.driver.sender.ring.slots());
}

/// Resets of each kind.
const RESETS: u32 = 40;

/// Its driver resets a device under traffic and starts it again. What the device had not taken is given up; all else was
/// taken once and in order, and of what it was sent nothing is lost.
fn reset_under_traffic(name: &str, features: u64, reset: &Request, restart: impl Fn(&mut Driver)) {
    let mut pair = Pair::running(|config| {
        config.features |= features;
        config.queue_size = 32;
        config.protocol |= protocol::RESET_DEVICE | protocol::STATUS;
    });
    let (mut given_up, mut arrived_before) = (0, 0);
    let (traffic, sent, arrived) = under_traffic(&mut pair, RESETS, |pair, turn| {
        // At once, or when something of this life was taken and something came.
        let slots = pair.driver.sender.ring.slots();
        let came = arrived_before;
        if turn % 2 == 1 {
            common::until("something is taken and something comes", || {
                arrived_before += pair.received().len() as u32;
                pair.driver.sender.free() > slots - 2 * BURST as u16 && arrived_before > came
            });
        }
        pair.driver.tell(reset, &[]).unwrap();
        // From the answer on nothing is written.
        given_up += u32::from(slots - pair.driver.sender.free());
        arrived_before += pair.received().len() as u32;
        for ring in [&mut pair.driver.sender.ring, &mut pair.driver.receiver.ring] {
            assert_eq!(ring.faults(), 0);
            ring.reset();
        }
        pair.driver.receiver.post_all();
        restart(&mut pair.driver);
        pair.driver.start_rings().unwrap();
    });
    println!("{name}: {sent} sent, {given_up} given up; {} delivered, {} lost", traffic.delivered, traffic.lost);
    let numbers = traffic.taken.iter().map(|bytes| u32::from_be_bytes(bytes[14..18].try_into().unwrap()));
    let numbers: Vec<u32> = numbers.collect();
    assert!(numbers.is_sorted_by(|one, next| one < next), "{name}: each once and in order");
    assert!(numbers.iter().zip(&traffic.taken).all(|(number, bytes)| *bytes == frame(*number, 60)), "{name}: whole");
    assert_eq!(numbers.len() as u32, sent - given_up, "{name}: what was not given up is taken");
    assert!(sent > given_up + RESETS / 2 && traffic.delivered >= RESETS / 2, "{name}: and much is");
    assert_eq!(traffic.delivered, arrived_before + arrived, "{name}");
    assert_eq!(pair.backend.state().link, Link::Up, "{name}");
}

#[test]
fn a_device_that_is_reset_under_traffic_goes_on_from_the_beginning() {
    for (layout, features) in [("split", 0), ("packed", F_RING_PACKED)] {
        reset_under_traffic(&format!("RESET_DEVICE, {layout}"), features, &Request::ResetDevice, |driver| {
            // The memory is known still.
            driver.tell(&Request::SetFeatures(driver.features), &[]).unwrap();
        });
        reset_under_traffic(&format!("RESET_OWNER, {layout}"), features, &Request::ResetOwner, |_| {});
        reset_under_traffic(&format!("SET_STATUS, {layout}"), features, &Request::SetStatus(0), |driver| {
            assert_eq!(driver.ask(&Request::GetStatus).unwrap(), 0);
            // ACKNOWLEDGE, DRIVER, FEATURES_OK and DRIVER_OK (virtio 1.2 section 2.1).
            for status in [1, 3, 11, 15] {
                driver.tell(&Request::SetStatus(status), &[]).unwrap();
                assert_eq!(driver.ask(&Request::GetStatus).unwrap(), status);
            }
        });
    }
}

#[test]
fn a_packed_ring_that_is_told_another_place_while_it_runs_goes_on_there() {
    let mut pair = Pair::running(|config| config.features |= F_RING_PACKED);
    let (traffic, sent, arrived) = under_traffic(&mut pair, 100, |pair, _| {
        wait_for_senders(pair);
        // An empty ring, which the worker polls all the while; the ring the guest receives by goes on.
        pair.driver.sender.ring.reset();
        let value = pair.driver.sender.ring.base();
        pair.driver.tell(&Request::SetVringBase(RingState { index: 1, value }), &[]).unwrap();
    });
    assert_eq!(traffic.taken, (0..sent).map(|number| frame(number, 60)).collect::<Vec<_>>());
    assert_eq!(sent, 200 * BURST);
    assert_eq!(traffic.delivered, arrived);
}

/// How many frames arrived by any pair.
fn all_received(pair: &mut Pair) -> u32 {
    let mut count = 0;
    pair.driver.pairs().for_each(|(_, receiver)| {
        receiver.recv_burst(usize::MAX, |_, _| count += 1);
    });
    count
}

#[test]
fn queues_switched_on_and_off_under_traffic_cost_the_others_nothing() {
    let mut pair = Pair::running(|config| {
        config.features |= F_MQ;
        config.pairs = 4;
        config.queue_size = 1024;
    });
    let before = pair.place.withdrawals.load(Ordering::Relaxed);
    let (traffic, sent, arrived) = under_traffic(&mut pair, 300, |pair, turn| {
        pair.driver.enable_pair(1 + turn as usize % 3, turn / 3 % 2 == 1).unwrap();
    });
    assert_eq!(traffic.taken, (0..sent).map(|number| frame(number, 60)).collect::<Vec<_>>());
    assert!(sent > 300);
    assert_eq!(traffic.delivered, arrived);
    assert_eq!(pair.place.withdrawals.load(Ordering::Relaxed), before);
    assert_eq!(pair.backend.state().link, Link::Up);
}

#[test]
fn every_pair_of_a_guest_carries_its_own_frames() {
    let mut pair = Pair::running(|config| {
        config.features |= F_MQ;
        config.pairs = 16;
        config.queue_size = 64;
    });
    let place = pair.place.clone();
    for (number, (sender, receiver)) in (0u16..).zip(pair.driver.pairs()) {
        let (one, other) = (frame(number.into(), 60), frame(100 + u32::from(number), 200));
        assert_eq!(sender.send_burst(&[&one]), 1);
        let taken: Vec<_> = (0..16).map(|queue| place.round_of(QueueIndex(queue)).0).collect();
        for (queue, frames) in (0..).zip(taken) {
            let expected = if queue == number { vec![one.clone()] } else { vec![] };
            assert_eq!(frames.into_iter().map(|(bytes, _)| bytes).collect::<Vec<_>>(), expected);
        }
        // What it sent last it gets back the same way, whichever worker brings it.
        assert_eq!(place.send_by(QueueIndex(15 - number), &[&other]).packets, 1);
        let mut arrived = Vec::new();
        receiver.recv_burst(9, |_, frame| arrived.push(frame.to_vec()));
        assert_eq!(arrived, [other]);
    }
}

fn memfd(len: u64) -> OwnedFd {
    let file = memfd_create("hot-plug", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, len).unwrap();
    file
}

/// Where the plugged memory has the buffer that is sent, and the one that is written.
const SENT_AT: usize = 4096;
const WRITTEN_AT: usize = 8192;
/// Numbers of the frames that are sent from it begin here.
const FROM_PLUGGED: u32 = 1 << 24;

/// Sends frame `number` from memory at a guest address.
fn send_from(pair: &mut Pair, plugged: &DriverMemory, address: u64, number: u32) {
    plugged.write(SENT_AT, &[&[0; VNET_HEADER_MRG_LEN][..], &frame(number, 60)].concat());
    common::until("there is a free slot", || pair.driver.sender.free() > 0);
    let slot = pair.driver.sender.next_slot(0);
    let len = (VNET_HEADER_MRG_LEN + 60) as u32;
    pair.driver.sender.ring.put_descriptor(slot, Descriptor { address, len, flags: 0, next: 0 });
    pair.driver.sender.ring.post_next(1);
}

/// Has one of the guest's receive buffers at a guest address until it is written; answers how many frames came meanwhile.
fn receive_at(pair: &mut Pair, plugged: &DriverMemory, address: u64) -> u32 {
    let ring = &mut pair.driver.receiver.ring;
    let (mut used, mut moved, mut arrived) = ([Used::default()], None, 0);
    common::until("the moved buffer comes back", || {
        while ring.take_used(&mut used) > 0 {
            arrived += 1;
            let Used { slot, len } = used[0];
            let (own, own_len) = (ring.buffer_address(slot), ring.buffer_len() as u32);
            let own = Descriptor { address: own, len: own_len, flags: WRITE, next: 0 };
            if moved == Some(slot) {
                let mut bytes = vec![0; len as usize - VNET_HEADER_MRG_LEN];
                plugged.read(WRITTEN_AT + VNET_HEADER_MRG_LEN, &mut bytes);
                assert_eq!(bytes, frame(u32::from_be_bytes(bytes[14..18].try_into().unwrap()), 60));
                ring.put_descriptor(slot, own);
                ring.post_next(1);
                return true;
            }
            if moved.is_none() {
                moved = Some(slot);
                ring.put_descriptor(slot, Descriptor { address, ..own });
            }
            ring.post_next(1);
        }
        false
    });
    arrived
}

#[test]
fn memory_plugged_and_unplugged_under_traffic_carries_frames_and_loses_none_of_the_guest() {
    let mut pair = Pair::running(|config| {
        config.protocol |= protocol::CONFIGURE_MEM_SLOTS;
        config.queue_size = 32;
    });
    let file = memfd(1 << 20);
    let plugged = DriverMemory::map(file.try_clone().unwrap(), 0, 1 << 20).unwrap();
    let region = |slot: u64| RegionInfo {
        guest_address: 0x9_0000_0000 + (slot << 20),
        size: 1 << 20,
        user_address: 0x1000_0000 + (slot << 20),
        file_offset: 0,
    };
    assert!(pair.driver.ask(&Request::GetMaxMemSlots).unwrap() >= 8);
    let mut arrived_meanwhile = 0;
    let (mut traffic, sent, arrived) = under_traffic(&mut pair, 100, |pair, turn| {
        let region = region(u64::from(turn / 2 % 4));
        if turn % 2 == 0 {
            pair.driver.tell(&Request::AddMemReg(region), &[file.as_fd()]).unwrap();
            plugged.write(WRITTEN_AT, &[0; 128]);
            send_from(pair, &plugged, region.guest_address + SENT_AT as u64, FROM_PLUGGED + turn / 2);
            arrived_meanwhile += receive_at(pair, &plugged, region.guest_address + WRITTEN_AT as u64);
        } else {
            wait_for_senders(pair);
            pair.driver.tell(&Request::RemMemReg(region), &[]).unwrap();
        }
    });
    let from_plugged: Vec<_> = traffic.taken.extract_if(.., |bytes| bytes[14] != 0).collect();
    assert_eq!(from_plugged, (0..50).map(|number| frame(FROM_PLUGGED + number, 60)).collect::<Vec<_>>());
    assert_eq!(traffic.taken, (0..sent).map(|number| frame(number, 60)).collect::<Vec<_>>());
    let arrived = arrived + arrived_meanwhile;
    assert_eq!(traffic.delivered, arrived, "{} frames met a port whose memory was being changed", traffic.lost);
    assert_eq!(pair.backend.state().link, Link::Up);
}
