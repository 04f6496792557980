//! The contract that every port keeps, on a driver's rings.

mod common;

use common::Pair;
use std::sync::Arc;
use std::time::{Duration, Instant};
use switch::offload::{EgressOffloads, OffloadClaim, VNET_HEADER_LEN};
use switch::port::Port;
use switch::port_contract::{Arrived, Rig, check};
use vhost::message::F_PROTOCOL_FEATURES;
use vhost::net::{
    Dialect, F_GUEST_CSUM, F_GUEST_ECN, F_GUEST_TSO4, F_GUEST_TSO6, F_MRG_RXBUF, F_RING_PACKED, F_VERSION_1, OFFERED,
};
use vhost::port::FRAME_MAX;

/// A frame of a jumbo MTU.
const JUMBO: usize = 9014;
/// The rules' large frame to be cut.
const LARGE: usize = 20_000;

struct GuestRig {
    pair: Pair,
    frame_max: usize,
}

impl GuestRig {
    fn new(features: u64, frame_max: usize) -> GuestRig {
        GuestRig::of_pairs(1, features, frame_max)
    }

    fn of_pairs(pairs: u16, features: u64, frame_max: usize) -> GuestRig {
        let pair = Pair::running(|config| {
            config.features = features | F_PROTOCOL_FEATURES;
            config.pairs = pairs;
            config.queue_size = 1024;
            config.send_buffer_len = frame_max.max(LARGE) + 12;
            config.receive_buffer_len = if features & F_MRG_RXBUF == 0 { frame_max.max(LARGE) + 12 } else { 2048 };
        });
        GuestRig { pair, frame_max }
    }
}

impl Rig for GuestRig {
    fn port(&self) -> Arc<dyn Port> {
        self.pair.place.port().expect("the rings run")
    }

    fn inject(&mut self, frame: &[u8]) {
        assert_eq!(self.pair.driver.sender.send_burst(&[frame]), 1, "the send ring is full");
    }

    fn collect(&mut self, timeout: Duration) -> Option<Arrived> {
        let end = Instant::now() + timeout;
        let mut arrived = None;
        loop {
            for (_, receiver) in self.pair.driver.pairs() {
                let room = usize::from(arrived.is_none());
                receiver.recv_burst(room, |header, frame| {
                    let claim = header.first_chunk::<VNET_HEADER_LEN>().expect("the header is longer");
                    arrived = Some(Arrived { bytes: frame.to_vec(), claim: Some(OffloadClaim::from_bytes(claim)) });
                });
            }
            if arrived.is_some() || Instant::now() > end {
                return arrived;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn offloads(&self) -> EgressOffloads {
        Dialect::new(self.pair.driver.features).egress
    }

    fn frame_max(&self) -> usize {
        self.frame_max
    }

    fn depth(&self) -> usize {
        256
    }
}

#[test]
fn a_guest_with_every_feature_keeps_the_contract() {
    check(|| GuestRig::new(OFFERED, FRAME_MAX));
}

#[test]
fn a_guest_of_several_pairs_keeps_the_contract() {
    check(|| GuestRig::of_pairs(4, OFFERED, FRAME_MAX));
}

#[test]
fn a_guest_with_split_rings_and_every_other_feature_keeps_the_contract() {
    check(|| GuestRig::new(OFFERED & !F_RING_PACKED, FRAME_MAX));
}

#[test]
fn a_guest_with_packed_rings_and_little_else_keeps_the_contract() {
    check(|| GuestRig::new(F_VERSION_1 | F_RING_PACKED, JUMBO));
}

#[test]
fn a_guest_without_offloads_keeps_the_contract() {
    check(|| GuestRig::new(F_VERSION_1 | F_MRG_RXBUF, JUMBO));
}

#[test]
fn a_guest_without_merging_keeps_the_contract() {
    let features = F_VERSION_1 | F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN;
    check(|| GuestRig::new(features, JUMBO));
}

#[test]
fn a_guest_older_than_virtio_1_keeps_the_contract() {
    check(|| GuestRig::new(0, JUMBO));
}
