//! Guests of several pairs of rings: by which of them a flow comes.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Pair, drops};
use switch::ids::QueueIndex;
use switch::port::Link;
use vhost::driver::Driver;
use vhost::message::Request;
use vhost::net::{F_MQ, F_RING_PACKED};

const KINDS: [u64; 2] = [0, F_RING_PACKED];
const PAIRS: u16 = 16;
/// So few that no two of them meet in a slot of what is remembered.
const FLOWS: u8 = 40;

/// A guest whose first `on` pairs are on.
fn guest(kind: u64, on: usize) -> Pair {
    let mut pair = Pair::running(|config| {
        config.features |= F_MQ | kind;
        (config.pairs, config.queue_size) = (PAIRS, 256);
    });
    (on..PAIRS.into()).for_each(|number| pair.driver.enable_pair(number, false).unwrap());
    pair
}

/// A UDP frame of a flow, to the guest or from it, that says its number.
fn frame(flow: u8, number: u32, is_from_guest: bool) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0];
    bytes.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    bytes.extend([0x30, flow, 0, 53, 0, 26, 0, 0]);
    if is_from_guest {
        bytes[..12].rotate_left(6);
        bytes[26..34].rotate_left(4);
        bytes[34..38].rotate_left(2);
    }
    bytes.extend([flow, 0, 0, 0, 0, 0, 0, 0]);
    bytes[43..47].copy_from_slice(&number.to_be_bytes());
    bytes.resize(60, 0);
    bytes
}

/// Has the guest send a frame of each flow by the pair that `by` says, and the switch take them.
fn send(pair: &mut Pair, by: impl Fn(u8) -> usize) {
    for flow in 0..FLOWS {
        let (sender, _) = pair.driver.pairs().nth(by(flow)).unwrap();
        assert_eq!(sender.send_burst(&[&frame(flow, 0, true)]), 1);
    }
    for queue in 0..PAIRS {
        let mut left = true;
        while left {
            let (frames, tally) = pair.place.round_of(QueueIndex(queue));
            left = !frames.is_empty();
            assert_eq!(drops(&tally), []);
        }
    }
}

/// What the one worker did and the guest got: each flow's next number, and the pair by which it comes.
struct Arrivals {
    due: Vec<u32>,
    by: Vec<Option<usize>>,
}

impl Arrivals {
    fn new() -> Arrivals {
        Arrivals { due: vec![0; FLOWS.into()], by: vec![None; FLOWS.into()] }
    }

    /// Has one worker send some frames of each flow, mixed, and takes them: each arrives whole, behind the one before it, and by
    /// the pair by which its flow came before.
    fn pass(&mut self, pair: &mut Pair) {
        let flows: Vec<u8> = (0..3 * u32::from(FLOWS)).map(|at| (at * 37 % u32::from(FLOWS)) as u8).collect();
        let first = self.due.clone();
        let mut sent = first.clone();
        for flows in flows.chunks(32) {
            let frames = flows.iter().map(|&flow| {
                sent[usize::from(flow)] += 1;
                frame(flow, sent[usize::from(flow)] - 1, false)
            });
            let frames: Vec<Vec<u8>> = frames.collect();
            let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
            let tally = pair.place.send(&frames);
            assert_eq!((tally.packets as usize, drops(&tally)), (frames.len(), vec![]));
            self.take(&mut pair.driver);
        }
        assert_eq!(self.due, sent, "all arrived");
    }

    fn take(&mut self, driver: &mut Driver) {
        for (number, (_, receiver)) in driver.pairs().enumerate() {
            receiver.recv_burst(usize::MAX, |_, bytes| {
                let flow = bytes[42];
                let due = &mut self.due[usize::from(flow)];
                assert_eq!(bytes, frame(flow, *due, false), "flow {flow}");
                *due += 1;
                assert_eq!(*self.by[usize::from(flow)].get_or_insert(number), number, "flow {flow} has two ways");
            });
        }
    }
}

#[test]
fn one_worker_sends_each_flow_in_order_by_the_pair_by_which_the_guest_sends_it() {
    for kind in KINDS {
        let mut pair = guest(kind, PAIRS.into());
        let by = [|flow: u8| usize::from(flow) * 7 % 16, |flow| usize::from(flow) % 3];
        for by in by {
            send(&mut pair, by);
            let mut arrivals = Arrivals::new();
            (0..5).for_each(|_| arrivals.pass(&mut pair));
            let expected: Vec<_> = (0..FLOWS).map(|flow| Some(by(flow))).collect();
            assert_eq!(arrivals.by, expected);
        }
    }
}

#[test]
fn flows_that_a_guest_never_sent_spread_over_its_pairs_and_each_keeps_to_one() {
    for kind in KINDS {
        for on in [8, 3, 1] {
            let mut pair = guest(kind, on);
            let mut arrivals = Arrivals::new();
            (0..5).for_each(|_| arrivals.pass(&mut pair));
            let mut counts = vec![0; PAIRS.into()];
            arrivals.by.iter().for_each(|by| counts[by.unwrap()] += 1);
            let fair = usize::from(FLOWS) / on;
            assert!(counts[..on].iter().all(|&count| count > 0 && count <= 4 * fair), "{on}: {counts:?}");
            assert!(counts[on..].iter().all(|&count| count == 0), "{on}: {counts:?}");
        }
    }
}

#[test]
fn pairs_that_are_on_and_never_had_a_buffer_get_no_flow() {
    for kind in KINDS {
        let mut pair = guest(kind, 4);
        pair.driver.stop_rings().unwrap();
        for (number, (sender, receiver)) in pair.driver.pairs().enumerate() {
            sender.ring.reset();
            receiver.ring.reset();
            if number < 2 {
                receiver.post_all();
            }
        }
        pair.driver.start_rings().unwrap();
        (4..PAIRS.into()).for_each(|number| pair.driver.enable_pair(number, false).unwrap());
        let mut arrivals = Arrivals::new();
        arrivals.pass(&mut pair);
        assert!((0..4).all(|number| arrivals.by.contains(&Some(number)) == (number < 2)), "{:?}", arrivals.by);
    }
}

#[test]
fn what_is_known_of_flows_outlives_a_change_of_memory() {
    let mut pair = guest(0, 4);
    send(&mut pair, |flow| usize::from(flow) % 4);
    let mut arrivals = Arrivals::new();
    arrivals.pass(&mut pair);
    pair.driver.set_memory_table().unwrap();
    pair.wait_for_link(Link::Up);
    arrivals.pass(&mut pair);
}

#[test]
fn a_driver_that_begins_anew_gets_flows_as_if_there_had_been_none_before() {
    let mut pair = guest(0, 4);
    let mut arrivals = Arrivals::new();
    arrivals.pass(&mut pair);
    let unknown = arrivals.by.clone();
    send(&mut pair, |flow| (unknown[usize::from(flow)].unwrap() + 1) % 4);
    let mut arrivals = Arrivals { by: vec![None; FLOWS.into()], ..arrivals };
    arrivals.pass(&mut pair);
    assert_ne!(arrivals.by, unknown);

    pair.driver.stop_rings().unwrap();
    pair.driver.tell(&Request::SetStatus(0), &[]).unwrap();
    for (sender, receiver) in pair.driver.pairs() {
        sender.ring.reset();
        receiver.ring.reset();
        receiver.post_all();
    }
    pair.driver.start_rings().unwrap();
    (4..PAIRS.into()).for_each(|number| pair.driver.enable_pair(number, false).unwrap());
    pair.wait_for_link(Link::Up);
    let mut arrivals = Arrivals { by: vec![None; FLOWS.into()], ..arrivals };
    arrivals.pass(&mut pair);
    assert_eq!(arrivals.by, unknown);
}

#[test]
fn a_flow_whose_pair_is_switched_off_goes_on_by_another() {
    let mut pair = guest(0, 4);
    send(&mut pair, |_| 2);
    let mut arrivals = Arrivals::new();
    arrivals.pass(&mut pair);
    assert!(arrivals.by.iter().all(|&by| by == Some(2)));
    pair.driver.enable_pair(2, false).unwrap();
    let mut after = Arrivals { by: vec![None; FLOWS.into()], ..arrivals };
    after.pass(&mut pair);
    assert!((0..4).all(|number| after.by.contains(&Some(number)) == (number != 2)), "{:?}", after.by);
    pair.driver.enable_pair(2, true).unwrap();
    let mut again = Arrivals { by: vec![Some(2); FLOWS.into()], ..after };
    again.pass(&mut pair);
}
