//! Messages under traffic: queues that come and go, memory that comes and goes, and what is lost by it.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Pair, TestPlace, frame};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use switch::ids::QueueIndex;
use switch::port::{Device, Link};
use vhost::message::{RegionInfo, Request, protocol};
use vhost::net::F_MQ;

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

/// Runs `change` again and again while the guest sends and receives by its first pair; answers what the worker saw, what
/// the guest sent and what arrived there.
fn under_traffic(pair: &mut Pair, times: u32, mut change: impl FnMut(&mut Pair, u32)) -> (Traffic, u32, u32) {
    let (place, stop) = (pair.place.clone(), AtomicBool::new(false));
    let (mut sent, mut arrived) = (0, 0);
    let traffic = std::thread::scope(|scope| {
        let worker = scope.spawn(|| work(&place, &stop));
        let mut exchange = |pair: &mut Pair| {
            sent += pair.driver.sender.send_burst(&[&frame(sent, 60)]) as u32;
            arrived += pair.received().len() as u32;
        };
        for turn in 0..times {
            exchange(pair);
            change(pair, turn);
            exchange(pair);
        }
        common::until("the worker has taken all", || pair.driver.sender.free() == pair.driver.sender.ring.slots());
        stop.store(true, Ordering::Relaxed);
        worker.join().unwrap()
    });
    arrived += pair.received().len() as u32;
    (traffic, sent, arrived)
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
        assert_eq!(place.send_by(QueueIndex(number), &[&other]).packets, 1);
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

#[test]
fn memory_plugged_and_unplugged_under_traffic_loses_no_frame_of_the_guest() {
    let mut pair = Pair::running(|config| {
        config.protocol |= protocol::CONFIGURE_MEM_SLOTS;
        config.queue_size = 1024;
    });
    let file = memfd(1 << 20);
    let region = |slot: u64| RegionInfo {
        guest_address: 0x9_0000_0000 + (slot << 20),
        size: 1 << 20,
        user_address: 0x1000_0000 + (slot << 20),
        file_offset: 0,
    };
    assert!(pair.driver.ask(&Request::GetMaxMemSlots).unwrap() >= 8);
    let (traffic, sent, arrived) = under_traffic(&mut pair, 200, |pair, turn| {
        let slot = u64::from(turn / 2 % 4);
        match turn % 2 {
            0 => pair.driver.tell(&Request::AddMemReg(region(slot)), &[file.as_fd()]).unwrap(),
            _ => pair.driver.tell(&Request::RemMemReg(region(slot)), &[]).unwrap(),
        }
    });
    assert_eq!(traffic.taken, (0..sent).map(|number| frame(number, 60)).collect::<Vec<_>>());
    assert_eq!(traffic.delivered, arrived, "{} frames met a port whose memory was being changed", traffic.lost);
    assert_eq!(pair.backend.state().link, Link::Up);
}
