//! What frames leave to be done between a guest and a TAP, field by field; and large UDP frames of a guest, as its driver hands them over with `VIRTIO_NET_F_HOST_USO`: into the host's own UDP, which takes
//! them whole, and to a guest that takes nothing unfinished.
//!
//! The guest is our own driver: QEMU knows the feature from 8.1 on.

use super::SOON;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;
use switch::af_packet::RawSocket;
use switch::offload::{
    F_DATA_VALID, F_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, OffloadClaim, VNET_HEADER_LEN,
};
use tests::checksum::sum;
use tests::daemon::Daemon;
use tests::ledger::{Counters, expect};
use tests::namespace::Namespace;
use tests::process::wait_until;
use vhost::driver::{Driver, DriverConfig};
use vhost::net::{
    F_CSUM, F_GUEST_CSUM, F_GUEST_ECN, F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_USO4, F_GUEST_USO6, F_HOST_ECN, F_HOST_TSO4,
    F_HOST_TSO6, F_HOST_USO,
};

/// Where the frames come from.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];
/// The guest that they are cut for.
const PLAIN: [u8; 6] = [2, 0, 0, 0, 0, 0xbb];
/// Bytes of payload of the longest frame.
const LARGE: usize = 60_000;
/// Bytes of receive buffer: all datagrams of a frame, with what the kernel adds.
const RECEIVE_BUFFER: usize = 4 << 20;

/// The kinds of frames, by what stands around UDP.
#[derive(Clone, Copy, Debug)]
struct Kind {
    is_ipv4: bool,
    vlan: Option<u16>,
}

/// All of them.
const KINDS: [Kind; 4] = [
    Kind { is_ipv4: true, vlan: None },
    Kind { is_ipv4: false, vlan: None },
    Kind { is_ipv4: true, vlan: Some(7) },
    Kind { is_ipv4: false, vlan: Some(7) },
];

impl Kind {
    /// The address of a station, 1 or 2: each VLAN is a subnet.
    fn address(self, station: u8) -> IpAddr {
        let subnet = self.vlan.unwrap_or(0);
        match self.is_ipv4 {
            true => Ipv4Addr::new(10, 0, subnet as u8, station).into(),
            false => Ipv6Addr::new(0xfd00, subnet, 0, 0, 0, 0, 0, station.into()).into(),
        }
    }

    /// Bytes before UDP.
    fn l4_offset(self) -> usize {
        14 + if self.vlan.is_some() { 4 } else { 0 } + if self.is_ipv4 { 20 } else { 40 }
    }

    /// A UDP datagram from station 1 to station 2; `is_whole`, or with its checksum left to be completed. Of IPv4, with this id.
    fn datagram(self, to: [u8; 6], payload: &[u8], id: u16, is_whole: bool) -> Vec<u8> {
        let len = (8 + payload.len()) as u16;
        let addresses = [1, 2].map(|station| match self.address(station) {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        });
        let addresses = addresses.concat();
        let mut frame = [to, MAC].concat();
        if let Some(vlan) = self.vlan {
            frame.extend([0x81, 0]);
            frame.extend(vlan.to_be_bytes());
        }
        if self.is_ipv4 {
            let mut header = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0].to_vec();
            header[2..4].copy_from_slice(&(20 + len).to_be_bytes());
            header[4..6].copy_from_slice(&id.to_be_bytes());
            header.extend(&addresses);
            let checksum = !sum(&header);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            frame.extend([8, 0]);
            frame.extend(header);
        } else {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(len.to_be_bytes());
            frame.extend([17, 64]);
            frame.extend(&addresses);
        }
        // The sum of the pseudo-header alone (virtio 1.2 section 5.1.6.2), or over all (RFC 768; RFC 8200 section 8.1).
        let pseudo = [&addresses[..], &[0, 17], &len.to_be_bytes()].concat();
        let ports = [5000u16, 6000, len].map(u16::to_be_bytes).concat();
        let checksum = match !sum(&[&pseudo[..], &ports, &[0, 0], payload].concat()) {
            _ if !is_whole => sum(&pseudo),
            0 => 0xffff,
            checksum => checksum,
        };
        [&frame[..], &ports, &checksum.to_be_bytes(), payload].concat()
    }

    /// What the driver leaves to be done: a frame to be cut into datagrams of `size` bytes.
    fn header(self, size: usize) -> [u8; 12] {
        let mut header = [0; 12];
        header[..2].copy_from_slice(&[F_NEEDS_CSUM, GSO_UDP_L4]);
        for (at, word) in [(2, self.l4_offset() + 8), (4, size), (6, self.l4_offset()), (8, 6)] {
            header[at..at + 2].copy_from_slice(&(word as u16).to_le_bytes());
        }
        header
    }
}

/// Bytes that differ from datagram to datagram.
fn payload(len: usize, size: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251 + size) as u8).collect()
}

/// A guest that sends large frames, at the socket of an interface.
fn sending_guest(daemon: &Daemon, interface: &str) -> Driver {
    let mut config = DriverConfig::new(daemon.path(interface));
    config.features |= F_CSUM | F_HOST_USO | F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_ECN;
    config.features |= F_GUEST_CSUM | F_GUEST_USO4 | F_GUEST_USO6 | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN;
    config.send_buffer_len = 1 << 16;
    let mut guest = Driver::new(config).unwrap();
    guest.start().unwrap();
    assert_eq!(guest.features & F_HOST_USO, F_HOST_USO, "it is offered");
    wait_until("the guest runs", SOON, || daemon.interface(interface)["link"] == "up");
    guest
}

/// The address of a namespace's TAP.
fn tap_mac(host: &Namespace) -> [u8; 6] {
    let text = host.mac("tap0");
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// A socket in the namespace for datagrams of a kind.
fn receiver(host: &Namespace, kind: Kind) -> UdpSocket {
    let receiver = host.inside(|| UdpSocket::bind((kind.address(2), 6000)).unwrap());
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&receiver, RECEIVE_BUFFER).unwrap();
    receiver.set_read_timeout(Some(SOON)).unwrap();
    receiver
}

/// Sends a large frame and takes its datagrams from the socket.
fn assert_arrives(
    daemon: &Daemon,
    guest: &mut Driver,
    receiver: &UdpSocket,
    kind: Kind,
    to: [u8; 6],
    sizes: [usize; 2],
) {
    let [len, size] = sizes;
    let payload = payload(len, size);
    let before = Counters::read(daemon);
    assert!(guest.sender.send_with(&kind.header(size), &kind.datagram(to, &payload, 7, false)));
    let mut buffer = vec![0; 1 << 16];
    for (number, expected) in payload.chunks(size).enumerate() {
        let (count, from) = receiver.recv_from(&mut buffer).unwrap_or_else(|error| {
            let changes = Counters::read(daemon).changes(&before);
            panic!("{kind:?}, datagram {number} of {len} bytes in {size}: {error}: {changes:?}")
        });
        assert_eq!(from, (kind.address(1), 5000).into());
        assert!(buffer[..count] == *expected, "{kind:?}, datagram {number} of {len} bytes in {size}: {count} bytes");
    }
}

/// A switch with a guest's port and a TAP on one network, and where the TAP is.
fn guest_and_tap() -> (Daemon, Namespace) {
    let daemon = Daemon::start("");
    let tenant = daemon.tenant("red");
    let network = tenant.network("lan");
    let host = Namespace::new("host");
    super::attached_tap(&daemon, &tenant, &network, "host", &host, "10.0.0.2/24");
    daemon.must(&format!("plug guest --vhost-user {}", daemon.path("guest").display()));
    tenant.attached_port(&network, "guest");
    daemon.wait_up(&["host", "guest"]);
    (daemon, host)
}

#[test]
fn a_large_udp_frame_of_a_guest_reaches_a_socket_as_the_datagrams_it_stands_for() {
    let (daemon, host) = guest_and_tap();
    let mut guest = sending_guest(&daemon, "guest");
    let kind = KINDS[0];
    let receiver = receiver(&host, kind);
    let to = tap_mac(&host);
    let before = Counters::read(&daemon);
    // Whole datagrams and a shorter last one, the most that Ethernet takes and the most that the kernel takes, and two.
    let all = [[LARGE, 1400], [LARGE, 1472], [LARGE, 1000], [LARGE, LARGE.div_ceil(128)], [101, 100], [200, 100]];
    for sizes in all {
        assert_arrives(&daemon, &mut guest, &receiver, kind, to, sizes);
    }
    receiver.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(receiver.recv(&mut [0; 1]).is_err(), "there is no more");
    // They went to the kernel whole, each at once.
    let frames = all.len();
    expect(&daemon, &before, &[&format!("guest.rx.packets +{frames}"), &format!("host.tx.packets +{frames}")]);
}

#[test]
fn large_udp_frames_of_either_family_reach_sockets_and_guests_as_their_datagrams_tagged_ones_too() {
    let daemon = Daemon::start("");
    let tenant = daemon.tenant("red");
    let network = tenant.network("lan");
    let host = Namespace::new("host");
    super::attached_tap(&daemon, &tenant, &network, "host", &host, "10.0.0.2/24");
    for name in ["guest", "plain"] {
        daemon.must(&format!("plug {name} --vhost-user {}", daemon.path(name).display()));
        tenant.attached_port(&network, name);
    }
    daemon.wait_up(&["host", "guest", "plain"]);
    host.must("echo 0 > /proc/sys/net/ipv6/conf/tap0/disable_ipv6; ip addr add fd00::2/64 dev tap0 nodad");

    let mut guest = sending_guest(&daemon, "guest");
    // One that takes nothing unfinished.
    let mut plain = Driver::new(DriverConfig::new(daemon.path("plain"))).unwrap();
    plain.start().unwrap();
    wait_until("the other guest runs", SOON, || daemon.interface("plain")["link"] == "up");
    for kind in KINDS {
        // Not every kernel can untag.
        if kind.vlan.is_none() {
            let receiver = receiver(&host, kind);
            for sizes in [[LARGE, 1400], [LARGE, 1440], [101, 100], [200, 100]] {
                assert_arrives(&daemon, &mut guest, &receiver, kind, tap_mac(&host), sizes);
            }
        }
        for [len, size] in [[LARGE, 1400], [LARGE, LARGE.div_ceil(128)], [101, 100], [200, 100]] {
            let payload = payload(len, size);
            assert!(guest.sender.send_with(&kind.header(size), &kind.datagram(PLAIN, &payload, 0xfffe, false)));
            let datagrams: Vec<Vec<u8>> = (0u16..)
                .zip(payload.chunks(size))
                .map(|(number, chunk)| kind.datagram(PLAIN, chunk, 0xfffe_u16.wrapping_add(number), true))
                .collect();
            let mut received = Vec::new();
            wait_until("all datagrams have come", SOON, || {
                plain.receiver.recv_burst(256, |_, frame| {
                    // The host says of itself what comes with IPv6.
                    if frame[..6] == PLAIN {
                        received.push(frame.to_vec());
                    }
                });
                received.len() >= datagrams.len()
            });
            assert!(received == datagrams, "{kind:?}, {len} bytes in {size}: {} datagrams", received.len());
        }
    }
}

/// A station that nobody is, so that no stack answers.
const NOBODY: [u8; 6] = [2, 0, 0, 0, 0, 0xcc];
/// Payload of a frame that may be cut, and of each of its segments.
const CUT: [u16; 2] = [6000, 1000];
/// The flag of TCP that goes with [`GSO_ECN`] (RFC 3168).
const CWR: u8 = 0x80;

/// A frame of a kind of GSO, or one that is not to be cut, and what it leaves to be done. Its checksum field holds the sum of the
/// pseudo-header.
fn unfinished(gso_type: u8, is_cut: bool) -> (Vec<u8>, OffloadClaim) {
    let (is_ipv4, is_tcp) = (gso_type != GSO_TCPV6, gso_type != GSO_UDP_L4);
    let (l4_offset, l4_len, protocol, field) = match (is_ipv4, is_tcp) {
        (true, true) => (34, 20, 6, 16),
        (true, false) => (34, 8, 17, 6),
        (false, _) => (54, 20, 6, 16),
    };
    let len = l4_len + if is_cut { CUT[0] } else { 100 };
    let mut frame = [NOBODY, MAC].concat();
    let addresses = if is_ipv4 { vec![10; 8] } else { vec![0xfd; 32] };
    if is_ipv4 {
        let mut header = [&[0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0][..], &addresses].concat();
        header[2..4].copy_from_slice(&(20 + len).to_be_bytes());
        let checksum = !sum(&header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        frame.extend([8, 0]);
        frame.extend(header);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(len.to_be_bytes());
        frame.extend([protocol, 64]);
        frame.extend(&addresses);
    }
    let pseudo = sum(&[&addresses[..], &[0, protocol], &len.to_be_bytes()].concat()).to_be_bytes();
    let ports = [5000u16, 6000].map(u16::to_be_bytes).concat();
    frame.extend(ports);
    if is_tcp {
        frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, 0x10 | if gso_type & GSO_ECN != 0 { CWR } else { 0 }, 1, 0]);
        frame.extend([pseudo, [0, 0]].concat());
    } else {
        frame.extend([len.to_be_bytes(), pseudo].concat());
    }
    frame.extend(payload(usize::from(len - l4_len), usize::from(CUT[1])));
    let claim = OffloadClaim {
        flags: F_NEEDS_CSUM,
        gso_type: if is_cut { gso_type } else { GSO_NONE },
        hdr_len: if is_cut { l4_offset + l4_len } else { 0 },
        gso_size: if is_cut { CUT[1] } else { 0 },
        csum_start: l4_offset,
        csum_offset: field,
    };
    (frame, claim)
}

/// The virtio header of 12 bytes.
fn header_of(claim: &OffloadClaim, buffers: u16) -> [u8; 12] {
    let OffloadClaim { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset } = *claim;
    let mut header = [flags, gso_type, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (at, word) in [hdr_len, gso_size, csum_start, csum_offset, buffers].into_iter().enumerate() {
        header[2 + 2 * at..][..2].copy_from_slice(&word.to_le_bytes());
    }
    header
}

#[test]
fn every_field_of_what_is_left_to_do_passes_between_a_guest_and_a_tap_but_the_length_of_headers_which_is_our_own() {
    let (daemon, host) = guest_and_tap();
    let mut guest = sending_guest(&daemon, "guest");
    let far = host.inside(|| RawSocket::open("tap0")).unwrap();
    far.use_vnet_header().unwrap();
    far.ignore_outgoing().unwrap();
    let mut buffer = vec![0; 1 << 16];
    for gso_type in [GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_TCPV4 | GSO_ECN] {
        for is_cut in [true, false] {
            let (frame, claim) = unfinished(gso_type, is_cut);
            // Nobody's word on the length of headers is taken, nor that a checksum is right.
            let told = OffloadClaim { hdr_len: if is_cut { 99 } else { 0 }, ..claim };
            let claimed = OffloadClaim { flags: F_NEEDS_CSUM | F_DATA_VALID, ..told };
            assert!(guest.sender.send_with(&header_of(&claimed, 0), &frame));
            let len = loop {
                let len = far.receive(&mut buffer, SOON).unwrap().expect("the frame comes to the TAP");
                if buffer[VNET_HEADER_LEN..][..6] == NOBODY {
                    break len;
                }
            };
            let (header, bytes) = buffer[..len].split_first_chunk::<VNET_HEADER_LEN>().unwrap();
            assert_eq!(OffloadClaim::from_bytes(header), claim, "{gso_type:#x} to the TAP");
            assert!(*bytes == frame, "{gso_type:#x} to the TAP: its bytes changed");

            far.send(&[&header_of(&told, 0)[..VNET_HEADER_LEN], &frame].concat()).unwrap();
            let mut arrived = Vec::new();
            wait_until("the frame comes to the guest", SOON, || {
                guest.receiver.recv_burst(256, |header, bytes| {
                    if bytes[..6] == NOBODY {
                        arrived.push((*header, bytes.to_vec()));
                    }
                });
                !arrived.is_empty()
            });
            let (header, bytes) = &arrived[0];
            let buffers = (12 + frame.len()).div_ceil(2048) as u16;
            assert_eq!(*header, header_of(&claim, buffers), "{gso_type:#x} to the guest");
            assert!(*bytes == frame && arrived.len() == 1, "{gso_type:#x} to the guest: its bytes changed");
        }
    }
}
