//! A bond of ports that tests hold in their hands.

use super::*;
use crate::offload::OffloadClaim;
use crate::segment::Segment;
use crate::testing::{Limits, MemoryPort};
use crate::tests::TestPlace;

const BOND: PortIndex = PortIndex(3);
const QUEUE: QueueIndex = QueueIndex(0);

/// UDP over IPv4 of flow number `flow`.
fn frame(flow: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0];
    frame.extend([192, 0, 2, 1, 192, 0, 2, 2]);
    frame.extend(flow.to_be_bytes());
    frame.resize(60, 0);
    frame
}

struct Rig {
    bond: Arc<Bond>,
    place: Arc<TestPlace>,
    links: [Arc<MemoryPort>; 2],
}

impl Rig {
    fn new(limits: Limits) -> Rig {
        let place = Arc::new(TestPlace::default());
        let bond = Bond::new(place.clone(), 2, HashPolicy::Layer34);
        let links = [MemoryPort::with(limits), MemoryPort::with(limits)];
        for (number, link) in links.iter().enumerate() {
            bond.link(number).publish(link.clone());
        }
        Rig { bond, place, links }
    }

    fn port(&self) -> Arc<dyn Port> {
        self.place.port().unwrap()
    }

    /// Sends frames of these flows.
    fn send(&self, flows: &[u16]) -> Tally {
        let frames: Vec<_> = flows.iter().map(|&flow| frame(flow)).collect();
        let mut batch = Batch::new();
        for frame in &frames {
            assert!(batch.put(PortIndex(0), QUEUE, Segment::from(&frame[..]), OffloadClaim::default()));
        }
        let picks: Vec<u8> = (0..flows.len() as u8).collect();
        let mut tally = Tally::default();
        self.port().tx(QUEUE, &mut batch, &picks, &mut tally);
        tally
    }

    /// The flows of the frames that each link sent.
    fn sent(&self) -> [Vec<u16>; 2] {
        let flow = |bytes: &[u8]| u16::from_be_bytes([bytes[34], bytes[35]]);
        [0, 1].map(|link: usize| self.links[link].collect().iter().map(|frame| flow(&frame.bytes)).collect())
    }
}

#[test]
fn frames_go_by_the_link_that_may_send_and_by_the_other_from_the_next_burst_on() {
    let rig = Rig::new(Limits::default());
    assert_eq!(rig.bond.open_links(), 0b11);
    let tally = rig.send(&[1, 2]);
    assert_eq!(tally.drops().collect::<Vec<_>>(), [(DropReason::NotReady, 2)], "none may send yet");
    for (links, expected) in [(0b01, [vec![1, 2], vec![]]), (0b10, [vec![], vec![1, 2]])] {
        rig.bond.use_links(links, links);
        assert_eq!(rig.send(&[1, 2]).packets, 2);
        assert_eq!(rig.sent(), expected);
    }
}

#[test]
fn flows_spread_over_links_each_keeps_its_order_and_drops_are_told_by_their_places() {
    let rig = Rig::new(Limits { room: Some(20), ..Limits::default() });
    rig.bond.use_links(0b11, 0b11);
    let flows: Vec<u16> = (0..60).map(|number| number % 30).collect();
    let tally = rig.send(&flows);
    let sent = rig.sent();
    assert_eq!(sent.each_ref().map(Vec::len), [20, 20], "both are full");
    assert_eq!((tally.packets, tally.dropped), (40, 20));
    let dropped = tally.dropped_picks(60).unwrap();
    for (number, link) in sent.iter().enumerate() {
        assert!(link.iter().all(|flow| !sent[1 - number].contains(flow)), "a flow went by both");
    }
    // What was delivered is what is not told dropped, in its order.
    for link in &sent {
        let delivered: Vec<u16> = flows
            .iter()
            .enumerate()
            .filter(|&(at, flow)| dropped >> at & 1 == 0 && link.contains(flow))
            .map(|(_, &flow)| flow)
            .collect();
        assert_eq!(&delivered, link);
    }
}

#[test]
fn what_comes_by_a_link_that_may_not_receive_is_dropped_and_counted() {
    let rig = Rig::new(Limits::default());
    rig.bond.use_links(0b01, 0b01);
    rig.links.iter().for_each(|link| link.inject(&frame(7)));
    let port = rig.port();
    assert_eq!(port.rx_queues(), 2);
    for (queue, dropped) in [(0, 0), (1, 1)] {
        let (mut batch, mut tally) = (Batch::new(), Tally::default());
        port.rx(BOND, QueueIndex(queue), &mut batch, &mut tally);
        assert_eq!((tally.packets, tally.dropped, batch.len()), (1, dropped, 1 - dropped as usize));
        assert!(tally.drops().all(|(reason, _)| reason == DropReason::BondStandby));
        assert!(batch.packets().iter().all(|packet| (packet.ingress, packet.queue) == (BOND, QueueIndex(queue))));
        port.rx_done(QueueIndex(queue));
    }
}

#[test]
fn a_link_that_comes_leaves_the_numbers_of_the_others_queues_as_they_are() {
    let rig = Rig::new(Limits::default());
    rig.bond.use_links(0b11, 0b11);
    rig.bond.link(0).withdraw();
    let before = rig.port();
    rig.bond.link(0).publish(rig.links[0].clone());
    rig.links[0].inject(&frame(1));
    rig.links[1].inject(&frame(2));
    // A worker that still holds the port of before, and one that has the new one, are over the same queue by one number.
    let came = |port: &dyn Port, queue| {
        let (mut batch, mut tally) = (Batch::new(), Tally::default());
        port.rx(BOND, QueueIndex(queue), &mut batch, &mut tally);
        let flows: Vec<u8> = batch.packets().iter().map(|packet| packet.head()[35]).collect();
        port.rx_done(QueueIndex(queue));
        flows
    };
    assert_eq!(came(&*before, 0), [2]);
    assert_eq!(came(&*rig.port(), 0), [0; 0]);
    assert_eq!(came(&*rig.port(), 1), [1]);
}

#[test]
fn a_link_that_goes_leaves_the_others_and_comes_back_as_it_was() {
    let rig = Rig::new(Limits::default());
    rig.bond.use_links(0b11, 0b11);
    rig.bond.link(0).withdraw();
    assert_eq!((rig.bond.open_links(), rig.port().rx_queues()), (0b10, 1));
    assert_eq!(rig.send(&[1, 2, 3, 4]).packets, 4);
    assert_eq!(rig.sent(), [vec![], vec![1, 2, 3, 4]]);
    rig.bond.link(1).withdraw();
    assert!(rig.place.port().is_none());
    rig.bond.link(0).publish(rig.links[0].clone());
    assert_eq!(rig.send(&[5]).packets, 1);
    assert_eq!(rig.sent(), [vec![5], vec![]]);
}
