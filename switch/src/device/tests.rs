//! Devices on pairs of veth in namespaces of their own: a packet socket or the kernel's stack is at the far end.

use super::*;
use crate::af_packet::RawSocket;
use crate::batch::{BURST, Batch};
use crate::ids::{PortIndex, QueueIndex};
use crate::ledger::{DropReason, Tally};
use crate::offload::{EgressOffloads, F_NEEDS_CSUM, OffloadClaim};
use crate::port_contract::{self, Arrived, Rig};
use crate::tests::*;
use rustix::fd::OwnedFd;
use std::time::Duration;

mod beside;
mod queues;
mod xdp;

const SOON: Duration = Duration::from_secs(20);
const QUEUE: QueueIndex = QueueIndex(0);

/// A namespace with a pair of veth, `near` and `far`, that both are up.
fn pair() -> OwnedFd {
    let netns = quiet_netns();
    ip(&netns, "link add near type veth peer name far");
    for end in ["near", "far"] {
        ip(&netns, &format!("link set {end} mtu 9000 up"));
    }
    are_up(&netns, ["near", "far"]);
    netns
}

/// Waits until the kernel has told everybody that these are up: until then an interface may drop what it is given to send.
fn are_up<const N: usize>(netns: &OwnedFd, names: [&str; N]) {
    let deadline = std::time::Instant::now() + SOON;
    for name in names {
        while !ip(netns, &format!("-o link show dev {name}")).contains(" state UP ") {
            assert!(std::time::Instant::now() < deadline, "{name} does not come up");
        }
    }
}

fn config(netns: &OwnedFd, driver: Option<Driver>) -> DeviceConfig {
    DeviceConfig {
        name: "near".to_owned(),
        netns: Some(netns.try_clone().unwrap()),
        driver,
        steering: Steering::Everything,
    }
}

fn open(netns: &OwnedFd, driver: Option<Driver>) -> (HostDevice, Arc<TestPlace>) {
    let place = Arc::new(TestPlace::default());
    let device = HostDevice::open(config(netns, driver), place.clone()).expect(NEEDS);
    state_becomes(&device, true, Link::Up, "");
    (device, place)
}

/// The same of a device that was closed a moment ago: the kernel lets go of a queue some time after its socket was closed, and
/// a program of another test that is just starting has all our descriptors until it runs.
fn open_again(config: impl Fn() -> DeviceConfig) -> (HostDevice, Arc<TestPlace>) {
    let place = Arc::new(TestPlace::default());
    let deadline = std::time::Instant::now() + SOON;
    loop {
        match HostDevice::open(config(), place.clone()) {
            Ok(device) => return (device, place),
            Err(error) => assert!(std::time::Instant::now() < deadline, "{NEEDS}: {error}"),
        }
    }
}

/// Waits until a device that was closed looks as before. Why that may take a moment: see [`open_again`].
fn shows_again(show: impl Fn() -> String, before: &str) {
    let deadline = std::time::Instant::now() + SOON;
    while show() != before && std::time::Instant::now() < deadline {}
    assert_eq!(show(), before);
}

fn refuse(netns: &OwnedFd) -> InterfaceError {
    let place = Arc::new(TestPlace::default());
    let error = HostDevice::open(config(netns, None), place.clone()).map(drop).expect_err("it must not open");
    assert!(place.port().is_none(), "a port was published for a device that did not open");
    error
}

fn far_end(netns: &OwnedFd) -> RawSocket {
    let far = within(netns, || RawSocket::open("far").unwrap());
    far.ignore_outgoing().unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&far, 32 << 20).unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size_force(&far, 32 << 20).unwrap();
    far
}

/// A frame that no stack answers.
fn frame(mark: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![mark; len];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, mark, 0x88, 0xb5]);
    frame
}

/// The next frames of the port, `count` of them.
fn looks(port: &dyn Port, count: usize) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let deadline = std::time::Instant::now() + SOON;
    while frames.len() < count {
        assert!(std::time::Instant::now() < deadline, "only {} of {count} frames came", frames.len());
        frames.extend(look(port, 0));
    }
    frames
}

/// One rx call; what it said, and the claims of the frames it took.
fn rx(port: &dyn Port) -> (Tally, Vec<OffloadClaim>) {
    let mut batch = Batch::new();
    let mut tally = Tally::default();
    port.rx(PortIndex(0), QUEUE, &mut batch, &mut tally);
    let claims = batch.packets().iter().map(|packet| packet.claim).collect();
    port.rx_done(QUEUE);
    (tally, claims)
}

struct DeviceRig {
    _device: HostDevice,
    place: Arc<TestPlace>,
    far: RawSocket,
    offloads: EgressOffloads,
}

impl DeviceRig {
    fn new(driver: Driver, offloads: EgressOffloads) -> DeviceRig {
        let netns = pair();
        let far = far_end(&netns);
        let (device, place) = open(&netns, Some(driver));
        DeviceRig { _device: device, place, far, offloads }
    }
}

impl Rig for DeviceRig {
    fn port(&self) -> Arc<dyn Port> {
        self.place.port().expect("open published it")
    }

    fn inject(&mut self, frame: &[u8]) {
        self.far.send(frame).unwrap();
    }

    fn collect(&mut self, timeout: Duration) -> Option<Arrived> {
        arrived(&self.far, timeout)
    }

    fn offloads(&self) -> EgressOffloads {
        self.offloads
    }

    fn frame_max(&self) -> usize {
        9014
    }

    fn depth(&self) -> usize {
        500
    }
}

#[test]
fn a_device_by_af_packet_keeps_the_port_contract() {
    let offloads = EgressOffloads { checksum: true, tso4: true, tso6: true, ecn: true, uso: true };
    port_contract::check(|| DeviceRig::new(Driver::AfPacket, offloads));
}

#[test]
fn tcp_of_two_containers_passes_uncut_and_whole() {
    for addresses in [["192.0.2.1", "192.0.2.2"], ["2001:db8::1", "2001:db8::2"]] {
        let sides = addresses.map(|address| {
            let (host, container) = (quiet_netns(), netns::create().unwrap());
            let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&container));
            ip(&host, &format!("link add near type veth peer name eth0 netns {path}"));
            ip(&host, "link set near up");
            ip(&container, "link set eth0 up");
            let plan = if address.contains(':') { format!("{address}/64 nodad") } else { format!("{address}/24") };
            ip(&container, &format!("addr add {plan} dev eth0"));
            let (device, place) = open(&host, None);
            assert_eq!(device.driver(), Driver::AfPacket, "what suits a veth");
            (container, device, place)
        });
        let [port_a, port_b] = [&sides[0], &sides[1]].map(|(_, _, place)| place.port().unwrap());
        let longest = transfer(&sides[0].0, &sides[1].0, addresses[1], &*port_a, &*port_b);
        assert!(longest > 20_000, "{addresses:?}: the longest frame had {longest} bytes, so TCP was cut");
    }
}

#[test]
fn a_vlan_tag_comes_and_goes_within_the_frame() {
    let netns = pair();
    let far = far_end(&netns);
    let (_device, place) = open(&netns, None);
    let port = place.port().unwrap();
    for tags in [&[0x81, 0, 0x20, 7][..], &[0x88, 0xa8, 0, 9], &[0x88, 0xa8, 0, 9, 0x81, 0, 0x60, 7]] {
        for len in [60, 200] {
            let mut tagged = frame(3, len);
            tagged.splice(12..12, tags.iter().copied());
            far.send(&tagged).unwrap();
            assert_eq!(looks(&*port, 1), [tagged.clone()]);
        }
    }
    // With a checksum left to do, whose place moves with the tag.
    far.use_vnet_header().unwrap();
    let mut bytes = frame(4, 300);
    bytes.splice(12..12, [0x81, 0, 0, 5]);
    bytes[24..26].fill(0);
    far.send(&[&[1, 0, 0, 0, 0, 0, 24, 0, 0, 0][..], &bytes].concat()).unwrap();
    let mut batch = Batch::new();
    let mut tally = Tally::default();
    let deadline = std::time::Instant::now() + SOON;
    while batch.is_empty() {
        assert!(std::time::Instant::now() < deadline, "no frame came");
        port.rx(PortIndex(0), QUEUE, &mut batch, &mut tally);
    }
    let (packet, _) = batch.frame(0);
    assert_eq!((packet.len(), packet.head()), (304, &bytes[..128]));
    assert_eq!((packet.claim.flags & F_NEEDS_CSUM, packet.claim.csum_start), (F_NEEDS_CSUM, 24));
    port.rx_done(QUEUE);

    // What we send tagged arrives tagged: the far end's kernel takes the tag out and tells it, as ours does.
    let (_back, far_place) = {
        let place = Arc::new(TestPlace::default());
        let config = DeviceConfig { name: "far".to_owned(), ..config(&netns, None) };
        (HostDevice::open(config, place.clone()).unwrap(), place)
    };
    let mut tagged = frame(5, 1000);
    tagged.splice(12..12, [0x81, 0, 0, 7]);
    assert_eq!(tx(&*port, &tagged), None);
    assert_eq!(looks(&*far_place.port().unwrap(), 1), [tagged]);
}

/// Sends one frame, all in the head and a tail; answers why it was dropped, if it was.
fn tx(port: &dyn Port, frame: &[u8]) -> Option<DropReason> {
    let (head, tail) = frame.split_at(frame.len().min(128));
    let mut batch = Batch::new();
    let mut packet = batch.start(PortIndex(0), QUEUE).unwrap();
    packet.head(head.len()).unwrap().copy_from_slice(head);
    if !tail.is_empty() {
        packet.tail(tail.into()).unwrap();
    }
    packet.commit(OffloadClaim::default());
    let mut tally = Tally::default();
    port.tx(QUEUE, &mut batch, &[0], &mut tally);
    assert_eq!(tally.packets + tally.dropped, 1);
    tally.drops().next().map(|(reason, _)| reason)
}

#[test]
fn what_the_host_and_the_switch_send_by_the_device_does_not_come_in() {
    let netns = pair();
    let far = far_end(&netns);
    let (_device, place) = open(&netns, None);
    let port = place.port().unwrap();
    let host = within(&netns, || RawSocket::open("near").unwrap());
    host.send(&frame(1, 60)).unwrap();
    assert_eq!(tx(&*port, &frame(2, 60)), None);
    far.send(&frame(3, 60)).unwrap();
    assert_eq!(looks(&*port, 1), [frame(3, 60)]);
}

#[test]
fn frames_that_find_the_receive_buffer_full_are_counted() {
    let netns = pair();
    let far = far_end(&netns);
    let (_device, place) = open(&netns, None);
    let port = place.port().unwrap();
    const SENT: u32 = 40_000;
    for _ in 0..SENT {
        far.send(&frame(1, 60)).unwrap();
    }
    let (mut taken, mut lost, mut calls) = (0, 0, 0);
    while taken + lost < SENT {
        let (tally, claims) = rx(&*port);
        taken += claims.len() as u32;
        assert!(tally.drops().all(|(reason, _)| reason == DropReason::RxRingFull));
        lost += tally.dropped;
        assert_eq!(tally.packets, claims.len() as u32 + tally.dropped);
        // What was lost last is told by the next frame that is not.
        if claims.is_empty() {
            far.send(&frame(1, 60)).unwrap();
            taken -= 1;
        }
        calls += 1;
        assert!(calls < SENT, "{taken} frames came and {lost} were told lost");
    }
    assert!(lost > 0, "the kernel held all of them");
}

#[test]
fn a_burst_of_more_bytes_than_a_round_may_take_waits_for_the_next() {
    let netns = pair();
    let far = far_end(&netns);
    let (_device, place) = open(&netns, None);
    let port = place.port().unwrap();
    let sent: Vec<Vec<u8>> = (0..40).map(|n| frame(n, 9014)).collect();
    for bytes in &sent {
        far.send(bytes).unwrap();
    }
    let mut got = Vec::new();
    while got.len() < sent.len() {
        assert!(got.is_empty() || port.arm(QUEUE), "a worker would sleep over frames that wait");
        let frames = look(&*port, 0);
        assert!(frames.iter().map(Vec::len).sum::<usize>() < crate::worker::ROUND_BYTES + 9014);
        got.extend(frames);
    }
    assert!(got == sent, "frames changed, or their order");
}

#[test]
fn a_second_look_in_a_round_leaves_the_tails_of_the_first_alone() {
    let netns = pair();
    let far = far_end(&netns);
    let (_device, place) = open(&netns, None);
    let port = place.port().unwrap();
    for mark in [1, 2] {
        far.send(&frame(mark, 1000)).unwrap();
    }
    let (mut first, mut second) = (Batch::new(), Batch::new());
    first.clear(1, usize::MAX);
    let mut tally = Tally::default();
    let deadline = std::time::Instant::now() + SOON;
    while first.is_empty() {
        assert!(std::time::Instant::now() < deadline, "no frame came");
        port.rx(PortIndex(0), QUEUE, &mut first, &mut tally);
    }
    port.rx(PortIndex(0), QUEUE, &mut second, &mut tally);
    let (packet, tail) = first.frame(0);
    let mut bytes = packet.head().to_vec();
    bytes.resize(1000, 0);
    tail[0].read(&mut bytes[packet.head().len()..]);
    assert!(bytes == frame(1, 1000), "a tail of this round was written over");
    port.rx_done(QUEUE);
    assert_eq!(looks(&*port, 1 - second.len()).len() + second.len(), 1);
}

#[test]
fn a_frame_over_the_mtu_of_the_device_is_told_as_such_and_the_rest_of_its_burst_sent() {
    let netns = pair();
    let far = far_end(&netns);
    ip(&netns, "link set near mtu 1500");
    let (_device, place) = open(&netns, None);
    let port = place.port().unwrap();
    let frames: Vec<Vec<u8>> = [60, 1514, 1600, 61, 9014, 62].map(|len| frame(len as u8, len)).to_vec();
    let mut batch = Batch::new();
    for bytes in &frames {
        let mut packet = batch.start(PortIndex(0), QUEUE).unwrap();
        packet.head(60).unwrap().copy_from_slice(&bytes[..60]);
        if bytes.len() > 60 {
            packet.tail(bytes[60..].into()).unwrap();
        }
        packet.commit(OffloadClaim::default());
    }
    let mut tally = Tally::default();
    port.tx(QUEUE, &mut batch, &[0, 1, 2, 3, 4, 5], &mut tally);
    assert_eq!(tally.drops().collect::<Vec<_>>(), [(DropReason::OverMtu, 2)]);
    assert_eq!((tally.packets, tally.bytes, tally.dropped_picks(6)), (4, 60 + 1514 + 61 + 62, Some(0b01_0100)));
    for len in [60, 1514, 61, 62] {
        let mut buffer = [0; 2048];
        let got = far.receive(&mut buffer, SOON).unwrap().unwrap();
        assert_eq!(buffer[..got], frame(len as u8, len));
    }
}

#[test]
fn a_device_goes_down_and_up_and_its_carrier_comes_and_goes_without_being_opened_anew() {
    let netns = pair();
    let far = far_end(&netns);
    let (device, place) = open(&netns, None);
    let port = place.port().unwrap();
    ip(&netns, "link set far down");
    state_becomes(&device, true, Link::Down, "the interface has no carrier");
    ip(&netns, "link set near down");
    state_becomes(&device, false, Link::Down, "the interface is down");
    assert_eq!(tx(&*port, &frame(1, 60)), Some(DropReason::NotReady));
    assert!(look(&*port, 0).is_empty());
    ip(&netns, "link set near up");
    ip(&netns, "link set far up");
    are_up(&netns, ["near", "far"]);
    state_becomes(&device, true, Link::Up, "");
    assert_eq!(tx(&*port, &frame(1, 60)), None);
    // The far end's own socket tells once that its interface was down.
    let _ = far.receive(&mut [0; 64], SOON);
    far.send(&frame(2, 60)).unwrap();
    assert_eq!(looks(&*port, 1), [frame(2, 60)]);
    assert_eq!(device.status().unwrap().mtu, 9000);
    ip(&netns, "link set near mtu 1400");
    assert_eq!(device.status().unwrap().mtu, 1400);
}

#[test]
fn a_device_that_is_deleted_is_gone_for_ever_and_its_successor_can_be_opened() {
    let netns = pair();
    let (device, place) = open(&netns, None);
    let port = place.port().unwrap();
    ip(&netns, "link del near");
    state_becomes(&device, false, Link::Down, "the device is gone");
    assert_eq!(device.status(), None);
    for _ in 0..2 {
        assert_eq!(tx(&*port, &frame(1, 60)), Some(DropReason::PortGone));
        assert!(look(&*port, 0).is_empty());
    }
    assert!(!port.arm(QUEUE), "a device that is gone must not keep its worker awake");
    assert!(matches!(refuse(&netns), InterfaceError::NoInterface { .. }));
    ip(&netns, "link add near type veth peer name far");
    ip(&netns, "link set near up");
    state_becomes(&device, false, Link::Down, "the device is gone");
    drop((port, device));
    assert!(place.port().is_none(), "dropping must withdraw");
    ip(&netns, "link set far up");
    let (_device, _place) = open(&netns, None);
}

#[test]
fn a_device_is_left_as_it_was_found() {
    let netns = pair();
    ip(&netns, "addr add 192.0.2.7/24 dev near");
    let show = || ip(&netns, "-d -o addr show dev near") + &ip(&netns, "-d -o link show dev near");
    let before = show();
    assert!(before.contains("promiscuity 0") && before.contains("192.0.2.7"));
    let (device, _place) = open(&netns, None);
    assert!(show().contains("promiscuity 1"), "a NIC would keep back what is for the addresses behind the port");
    drop(device);
    shows_again(show, &before);
}

#[test]
fn a_device_tells_when_its_namespace_lost_its_name() {
    let named = Named::new();
    let netns = netns::open(&named.0).unwrap();
    ip(&netns, "link add near type veth peer name far");
    ip(&netns, "link set near up");
    ip(&netns, "link set far up");
    let (device, _place) = open(&netns, None);
    drop(netns);
    named.delete();
    state_becomes(&device, false, Link::Down, "the network namespace is gone");
    assert_eq!(device.status(), None);
}

#[test]
fn an_interface_without_ethernet_addresses_is_refused() {
    let netns = quiet_netns();
    let place = Arc::new(TestPlace::default());
    let config = DeviceConfig { name: "lo".to_owned(), ..config(&netns, None) };
    let error = HostDevice::open(config, place).map(drop).unwrap_err();
    assert!(matches!(error, InterfaceError::NotEthernet { .. }), "{error}");
}

#[test]
fn an_empty_socket_dozes_while_it_is_watched() {
    use crate::doze::DOZE_AFTER;
    let netns = pair();
    let far = far_end(&netns);
    let (_device, place) = open(&netns, None);
    let port = place.port().unwrap();
    assert!(port.may_doze());
    port.watched(QUEUE, true);
    while !look(&*port, 0).is_empty() {}
    assert_eq!((0..DOZE_AFTER).flat_map(|_| look(&*port, 0)).count(), 0);
    far.send(&frame(1, 60)).unwrap();
    assert!((0..BURST).all(|_| look(&*port, 0).is_empty()), "it dozes");
    port.rouse(QUEUE);
    assert_eq!(looks(&*port, 1), [frame(1, 60)]);
}
