//! The same by AF_XDP: what is as with packet sockets, and what is not.

use super::*;
use crate::af_xdp::program::{Carrier, Ours, TunnelEnd};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

const NOTHING: EgressOffloads = EgressOffloads { checksum: false, tso4: false, tso6: false, ecn: false, uso: false };

fn open_xdp(netns: &OwnedFd) -> (HostDevice, Arc<TestPlace>) {
    open(netns, Some(Driver::AfXdp))
}

/// Opens an end with the program run by the kernel's own stack, as on a device whose driver knows no XDP.
fn open_generic(netns: &OwnedFd, name: &str) -> Arc<XdpPort> {
    open_generic_of(netns, name, "veth")
}

/// The same as if the device were of this kind.
fn open_generic_of(netns: &OwnedFd, name: &str, kind: &str) -> Arc<XdpPort> {
    let config = XdpConfig { is_generic: true, ..XdpConfig::default() };
    let open = || {
        let watch = LinkWatch::open(name).unwrap().unwrap();
        XdpPort::open(&LinkStatus { kind: kind.to_owned(), ..watch.status().unwrap() }, &config)
    };
    Arc::new(within(netns, open).expect(NEEDS))
}

/// Whether a program is attached to the interface.
fn has_program(netns: &OwnedFd, name: &str) -> bool {
    ip(netns, &format!("link show dev {name}")).contains("xdp")
}

struct GenericRig {
    port: Arc<XdpPort>,
    far: RawSocket,
}

impl Rig for GenericRig {
    fn port(&self) -> Arc<dyn Port> {
        self.port.clone()
    }

    fn inject(&mut self, frame: &[u8]) {
        self.far.send(frame).unwrap();
    }

    fn collect(&mut self, timeout: Duration) -> Option<Arrived> {
        arrived(&self.far, timeout)
    }

    fn offloads(&self) -> EgressOffloads {
        NOTHING
    }

    fn frame_max(&self) -> usize {
        9014
    }

    fn depth(&self) -> usize {
        500
    }
}

#[test]
fn a_device_by_af_xdp_keeps_the_port_contract() {
    port_contract::check(|| DeviceRig::new(Driver::AfXdp, NOTHING));
}

#[test]
fn a_device_by_af_xdp_in_the_kernels_own_stack_keeps_the_port_contract() {
    port_contract::check(|| {
        let netns = pair();
        let far = far_end(&netns);
        let port = open_generic(&netns, "near");
        assert_eq!(port.mode(), "generic, copy");
        GenericRig { port, far }
    });
}

#[test]
fn a_driver_that_knows_xdp_runs_the_program_itself() {
    let netns = pair();
    let (device, _place) = open_xdp(&netns);
    assert_eq!((device.driver(), device.mode()), (Driver::AfXdp, "native, copy"));
}

/// A container with `address` behind a pair of veth, and the namespace of the other end, named `near`.
fn container(address: &str) -> (OwnedFd, OwnedFd) {
    let (host, container) = (quiet_netns(), netns::create().unwrap());
    let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&container));
    ip(&host, &format!("link add near type veth peer name eth0 netns {path}"));
    ip(&host, "link set near up");
    ip(&container, "link set eth0 up");
    let plan = if address.contains(':') { format!("{address}/64 nodad") } else { format!("{address}/24") };
    ip(&container, &format!("addr add {plan} dev eth0"));
    (host, container)
}

#[test]
fn tcp_of_two_containers_with_default_offloads_arrives_whole() {
    use Driver::{AfPacket, AfXdp};
    for addresses in [["192.0.2.1", "192.0.2.2"], ["2001:db8::1", "2001:db8::2"]] {
        for drivers in [[AfXdp, AfXdp], [AfXdp, AfPacket], [AfPacket, AfXdp]] {
            let [(host_a, a), (host_b, b)] = addresses.map(container);
            let (_device_a, place_a) = open(&host_a, Some(drivers[0]));
            let (_device_b, place_b) = open(&host_b, Some(drivers[1]));
            transfer(&a, &b, addresses[1], &*place_a.port().unwrap(), &*place_b.port().unwrap());
        }
    }
}

#[test]
fn tcp_of_two_containers_arrives_whole_also_from_the_kernels_own_stack() {
    for addresses in [["192.0.2.1", "192.0.2.2"], ["2001:db8::1", "2001:db8::2"]] {
        let [(host_a, a), (host_b, b)] = addresses.map(container);
        let (port_a, port_b) = (open_generic(&host_a, "near"), open_generic(&host_b, "near"));
        let longest = transfer(&a, &b, addresses[1], &*port_a, &*port_b);
        assert!(longest > 20_000, "the kernel's own stack has large frames whole, here {longest} bytes at most");
    }
}

#[test]
fn the_program_is_there_as_long_as_the_device_is_open_and_nothing_else_of_it_changes() {
    let netns = pair();
    ip(&netns, "addr add 192.0.2.7/24 dev near");
    let show = || ip(&netns, "-o addr show dev near") + &ip(&netns, "-d -o link show dev near");
    let before = show();
    let (device, _place) = open_xdp(&netns);
    assert!(has_program(&netns, "near"));
    drop(device);
    shows_again(show, &before);
}

#[test]
fn an_interface_that_has_a_program_already_is_refused_and_left_alone() {
    let netns = pair();
    let (_first, place) = open_xdp(&netns);
    let config = config(&netns, Some(Driver::AfXdp));
    let error = HostDevice::open(config, Arc::new(TestPlace::default())).map(drop).unwrap_err();
    assert!(
        matches!(&error, InterfaceError::Io { source, .. } if source.raw_os_error() == Some(libc::EBUSY)),
        "{error}"
    );
    let far = far_end(&netns);
    far.send(&frame(1, 60)).unwrap();
    assert_eq!(looks(&*place.port().unwrap(), 1), [frame(1, 60)]);
}

#[test]
fn every_queue_of_an_interface_is_one_of_the_port() {
    let netns = quiet_netns();
    ip(&netns, "link add near numtxqueues 4 numrxqueues 4 type veth peer name far numtxqueues 4 numrxqueues 4");
    for end in ["near", "far"] {
        ip(&netns, &format!("link set {end} up"));
    }
    are_up(&netns, ["near", "far"]);
    let (_device, place) = open_xdp(&netns);
    let port = place.port().unwrap();
    assert_eq!((port.rx_queues(), port.tx_queues()), (4, 4));
    let far_place = Arc::new(TestPlace::default());
    let far_config = DeviceConfig { name: "far".to_owned(), ..config(&netns, Some(Driver::AfXdp)) };
    let _far = HostDevice::open(far_config, far_place.clone()).unwrap();
    let far = far_place.port().unwrap();
    // What a veth sends by one of its queues, its far end receives by the one of the same number.
    for queue in 0..4 {
        let mut batch = Batch::new();
        let mut packet = batch.start(PortIndex(0), QUEUE).unwrap();
        packet.head(60).unwrap().copy_from_slice(&frame(queue as u8, 60));
        packet.commit(OffloadClaim::default());
        let mut tally = Tally::default();
        far.tx(QueueIndex(queue), &mut batch, &[0], &mut tally);
        assert_eq!(tally.packets, 1);
        let deadline = std::time::Instant::now() + SOON;
        let got = loop {
            let got = look(&*port, queue);
            assert!(std::time::Instant::now() < deadline, "nothing came by queue {queue}");
            if !got.is_empty() {
                break got;
            }
        };
        assert_eq!(got, [frame(queue as u8, 60)]);
    }
}

#[test]
fn an_interface_with_more_queues_than_a_port_has_is_refused() {
    let netns = quiet_netns();
    ip(&netns, "link add near numtxqueues 17 numrxqueues 17 type veth peer name far numtxqueues 17 numrxqueues 17");
    ip(&netns, "link set near up");
    let config = config(&netns, Some(Driver::AfXdp));
    let error = HostDevice::open(config, Arc::new(TestPlace::default())).map(drop).unwrap_err();
    assert!(error.to_string().contains("more than 16 queues"), "{error}");
}

#[test]
fn frames_that_find_no_room_are_counted() {
    let netns = pair();
    let far = far_end(&netns);
    let (_device, place) = open_xdp(&netns);
    let port = place.port().unwrap();
    const SENT: u32 = 5000;
    for _ in 0..SENT {
        far.send(&frame(1, 60)).unwrap();
    }
    let (mut taken, mut lost) = (0, 0);
    let deadline = std::time::Instant::now() + SOON;
    while taken + lost < SENT {
        assert!(std::time::Instant::now() < deadline, "{taken} frames came and {lost} were told lost");
        let (tally, claims) = rx(&*port);
        taken += claims.len() as u32;
        lost += tally.dropped;
        assert!(tally.drops().all(|(reason, _)| reason == DropReason::RxRingFull));
        assert_eq!(tally.packets, claims.len() as u32 + tally.dropped);
        // As a worker does before it sleeps.
        if tally.packets == 0 {
            port.arm(QUEUE);
            port.disarm(QUEUE);
        }
    }
    assert!(lost > 0, "the rings held all of them");
}

#[test]
fn a_frame_over_the_mtu_of_the_device_is_told_as_such_and_the_mtu_is_followed() {
    let netns = pair();
    let far = far_end(&netns);
    ip(&netns, "link set near mtu 1500");
    let (device, place) = open_xdp(&netns);
    let port = place.port().unwrap();
    let mut tagged = frame(7, 1518);
    tagged[12..14].copy_from_slice(&[0x81, 0]);
    for (bytes, expected) in [
        (frame(1, 1514), None),
        (frame(2, 1515), Some(DropReason::OverMtu)),
        (tagged, None),
        (frame(3, 9014), Some(DropReason::OverMtu)),
        (vec![0xff; 13], Some(DropReason::Truncated)),
    ] {
        assert_eq!(tx(&*port, &bytes), expected, "{} bytes", bytes.len());
    }
    for _ in 0..2 {
        arrived(&far, SOON).unwrap();
    }
    ip(&netns, "link set near mtu 9000");
    assert_eq!(device.status().unwrap().mtu, 9000);
    assert_eq!(tx(&*port, &frame(5, 9014)), None);
    assert_eq!(arrived(&far, SOON).unwrap().bytes, frame(5, 9014));
    far.send(&frame(6, 9014)).unwrap();
    assert_eq!(looks(&*port, 1), [frame(6, 9014)]);
}

#[test]
fn a_device_goes_down_and_up_without_being_opened_anew() {
    let netns = pair();
    let far = far_end(&netns);
    let (device, place) = open_xdp(&netns);
    let port = place.port().unwrap();
    ip(&netns, "link set near down");
    state_becomes(&device, false, Link::Down, "the interface is down");
    // The device has the first burst in its ring when it says so.
    tx(&*port, &frame(1, 60));
    assert_eq!(tx(&*port, &frame(2, 60)), Some(DropReason::NotReady));
    assert!(look(&*port, 0).is_empty());
    assert!(!port.arm(QUEUE), "what waits for the interface must not keep the worker awake");
    ip(&netns, "link set near up");
    are_up(&netns, ["far"]);
    state_becomes(&device, true, Link::Up, "");
    let _ = far.receive(&mut [0; 64], Duration::ZERO);
    assert_eq!(tx(&*port, &frame(3, 60)), None);
    let mut got = arrived(&far, SOON).unwrap().bytes;
    if got == frame(1, 60) {
        got = arrived(&far, SOON).unwrap().bytes;
    }
    assert_eq!(got, frame(3, 60));
    far.send(&frame(4, 60)).unwrap();
    assert_eq!(looks(&*port, 1), [frame(4, 60)]);
}

#[test]
fn a_device_that_is_deleted_is_gone_for_ever_and_its_successor_can_be_opened() {
    let netns = pair();
    let (device, place) = open_xdp(&netns);
    let port = place.port().unwrap();
    ip(&netns, "link del near");
    state_becomes(&device, false, Link::Down, "the device is gone");
    tx(&*port, &frame(1, 60));
    for _ in 0..2 {
        assert_eq!(tx(&*port, &frame(1, 60)), Some(DropReason::PortGone));
        assert!(look(&*port, 0).is_empty());
    }
    assert!(!port.arm(QUEUE), "a device that is gone must not keep its worker awake");
    ip(&netns, "link add near type veth peer name far");
    ip(&netns, "link set near up");
    drop((port, device));
    ip(&netns, "link set far up");
    let (_device, _place) = open_xdp(&netns);
}

#[test]
fn a_vlan_tag_comes_and_goes_within_the_frame() {
    let netns = pair();
    let far = far_end(&netns);
    let (_device, place) = open_xdp(&netns);
    let port = place.port().unwrap();
    for tags in [&[0x81, 0, 0x20, 7][..], &[0x88, 0xa8, 0, 9], &[0x88, 0xa8, 0, 9, 0x81, 0, 0x60, 7]] {
        let mut tagged = frame(3, 200);
        tagged.splice(12..12, tags.iter().copied());
        far.send(&tagged).unwrap();
        assert_eq!(looks(&*port, 1), [tagged]);
    }
}

#[test]
fn the_host_keeps_its_addresses_on_an_interface_of_which_only_some_frames_are_ours() {
    let (host, remote) = container("192.0.2.2");
    ip(&host, "addr add 192.0.2.1/24 dev near");
    let end = TunnelEnd { local: [192, 0, 2, 1].into(), carrier: Carrier::Udp(4789) };
    let ours = Ours { vlans: [100].into(), tunnels: [end].into() };
    let place = Arc::new(TestPlace::default());
    let config = DeviceConfig { steering: Steering::Only(ours), ..config(&host, Some(Driver::AfXdp)) };
    let _device = HostDevice::open(config, place.clone()).expect(NEEDS);
    let port = place.port().unwrap();

    // A frame of a tunnel and one of a VLAN come to the switch, and nobody else sees them.
    let sender = within(&remote, || std::net::UdpSocket::bind("192.0.2.2:0").unwrap());
    let overheard = within(&host, || {
        let socket = std::net::UdpSocket::bind("192.0.2.1:4789").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        socket
    });
    sender.send_to(b"inner", "192.0.2.1:4789").unwrap();
    let got = looks(&*port, 1);
    assert!(got[0].ends_with(b"inner"), "{:?}", got[0]);
    assert!(overheard.recv(&mut [0; 16]).is_err(), "the host heard a frame of ours");
    let raw = within(&remote, || RawSocket::open("eth0").unwrap());
    let mut tagged = frame(1, 100);
    tagged.splice(12..12, [0x81, 0, 0, 100]);
    raw.send(&tagged).unwrap();
    assert_eq!(looks(&*port, 1), [tagged]);

    // Everything else is the host's: TCP, and another port.
    let listener = within(&host, || TcpListener::bind("192.0.2.1:0").unwrap());
    let address = listener.local_addr().unwrap();
    let mut stream = within(&remote, || TcpStream::connect(address).unwrap());
    let (mut accepted, _) = listener.accept().unwrap();
    let sent: Vec<u8> = (0..4usize << 20).map(|at| (at % 251) as u8).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| stream.write_all(&sent).unwrap());
        let mut got = vec![0; sent.len()];
        accepted.read_exact(&mut got).unwrap();
        assert!(got == sent);
    });
    assert!(look(&*port, 0).is_empty(), "a frame of the host's came to the switch");
}

#[test]
fn a_port_sends_by_as_many_queues_as_its_interface_and_receives_by_each() {
    let netns = quiet_netns();
    ip(&netns, "link add near numtxqueues 2 numrxqueues 4 type veth peer name far numtxqueues 4 numrxqueues 2");
    for end in ["near", "far"] {
        ip(&netns, &format!("link set {end} up"));
    }
    are_up(&netns, ["near", "far"]);
    let far = far_end(&netns);
    let (_device, place) = open_xdp(&netns);
    let port = place.port().unwrap();
    assert_eq!((port.rx_queues(), port.tx_queues()), (4, 2));
    for queue in 0..2 {
        let mut batch = Batch::new();
        let mut packet = batch.start(PortIndex(0), QUEUE).unwrap();
        packet.head(60).unwrap().copy_from_slice(&frame(queue as u8, 60));
        packet.commit(OffloadClaim::default());
        port.tx(QueueIndex(queue), &mut batch, &[0], &mut Tally::default());
        assert_eq!(arrived(&far, SOON).unwrap().bytes, frame(queue as u8, 60));
    }
}

#[test]
fn tags_stay_in_the_frames_of_a_device_while_it_is_open_and_only_then() {
    let netns = pair();
    let rx_vlan = || {
        let output = within(&netns, || std::process::Command::new("ethtool").args(["-k", "near"]).output().unwrap());
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().find_map(|line| line.strip_prefix("rx-vlan-offload: ").map(str::to_owned)).unwrap()
    };
    assert_eq!(rx_vlan(), "on");
    let (device, place) = open_xdp(&netns);
    assert!(!device.are_tags_lost());
    assert_eq!(rx_vlan(), "off");
    drop((device, place));
    assert_eq!(rx_vlan(), "on");
    // Of an uplink without VLANs no tag is ours.
    let end = TunnelEnd { local: [192, 0, 2, 1].into(), carrier: Carrier::Udp(4789) };
    let steering = Steering::Only(Ours { vlans: [].into(), tunnels: [end].into() });
    let config = || DeviceConfig { steering: steering.clone(), ..config(&netns, Some(Driver::AfXdp)) };
    let _device = open_again(config);
    assert_eq!(rx_vlan(), "on");
}

#[test]
fn a_checksum_that_was_left_is_finished_without_what_stands_behind_the_packet() {
    let netns = pair();
    let (_device, place) = open_xdp(&netns);
    finishes_checksums(&netns, &*place.port().unwrap());
}

/// As virtio-net, which hands over what the sender beside it left undone, and tells no kind.
#[test]
fn a_checksum_that_was_left_is_finished_in_the_kernels_own_stack_also_of_a_device_that_tells_no_kind() {
    let netns = pair();
    let port = open_generic_of(&netns, "near", "");
    finishes_checksums(&netns, &*port);
}

/// What the far end leaves to do, the port has done.
fn finishes_checksums(netns: &OwnedFd, port: &dyn Port) {
    let far = far_end(netns);
    // UDP over IPv4 whose field holds the pseudo-header's sum, and junk behind it.
    let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    bytes.extend([0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    let pseudo = 0xc000u32 + 0x0201 + 0xc000 + 0x0202 + 17 + 12;
    let pseudo = ((pseudo & 0xffff) + (pseudo >> 16)) as u16;
    bytes.extend([0, 1, 0, 2, 0, 12]);
    bytes.extend(pseudo.to_be_bytes());
    bytes.extend(*b"data");
    bytes.extend([0xa5; 14]);
    far.send(&bytes).unwrap();
    let got = looks(port, 1).remove(0);
    let mut sum = crate::checksum::Sum::default();
    sum.add(&got[34..46]);
    sum.add(&got[26..34]);
    sum.add_word(17 + 12);
    assert_eq!(sum.checksum(), 0, "{got:x?}");
    assert_eq!(got[46..], bytes[46..]);
}
