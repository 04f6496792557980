//! Large UDP frames of a guest, as its driver hands them over with `VIRTIO_NET_F_HOST_USO`, into the host's own UDP.
//!
//! The guest is our own driver: QEMU knows the feature from 8.1 on.

use super::SOON;
use std::net::UdpSocket;
use std::time::Duration;
use switch::offload::{F_NEEDS_CSUM, GSO_UDP_L4};
use tests::checksum::sum;
use tests::daemon::Daemon;
use tests::ledger::{Counters, expect};
use tests::namespace::Namespace;
use tests::process::wait_until;
use vhost::driver::{Driver, DriverConfig};
use vhost::net::{F_CSUM, F_HOST_USO};

/// Where the frames come from.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];
/// Bytes of payload of the longest frame.
const LARGE: usize = 60_000;
/// Bytes of receive buffer: all datagrams of a frame, with what the kernel adds.
const RECEIVE_BUFFER: usize = 4 << 20;

/// A UDP datagram from 10.0.0.1 to 10.0.0.2, its checksum left to be completed.
fn datagram(to: [u8; 6], payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    let mut header = [0x45, 0, 0, 0, 0, 7, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    header[2..4].copy_from_slice(&(20 + len).to_be_bytes());
    let checksum = !sum(&header);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    // The sum of the pseudo-header alone (virtio 1.2 section 5.1.6.2).
    let pseudo = sum(&[&header[12..], &[0, 17], &len.to_be_bytes()].concat());
    let udp = [5000u16, 6000, len, pseudo].map(u16::to_be_bytes).concat();
    [&to[..], &MAC, &[8, 0], &header, &udp, payload].concat()
}

/// What the driver leaves to be done: a frame to be cut into datagrams of `size` bytes.
fn header(size: usize) -> [u8; 12] {
    let mut header = [0; 12];
    header[..2].copy_from_slice(&[F_NEEDS_CSUM, GSO_UDP_L4]);
    for (at, word) in [(2, 42), (4, size as u16), (6, 34), (8, 6)] {
        header[at..at + 2].copy_from_slice(&u16::to_le_bytes(word));
    }
    header
}

#[test]
fn a_large_udp_frame_of_a_guest_reaches_a_socket_as_the_datagrams_it_stands_for() {
    let daemon = Daemon::start("");
    let tenant = daemon.tenant("red");
    let network = tenant.network("lan");
    let host = Namespace::new("host");
    super::attached_tap(&daemon, &tenant, &network, "host", &host, "10.0.0.2/24");
    let socket = daemon.path("guest");
    daemon.must(&format!("plug guest --vhost-user {}", socket.display()));
    tenant.attached_port(&network, "guest");
    daemon.wait_up(&["host", "guest"]);

    let mut config = DriverConfig::new(socket);
    config.features |= F_CSUM | F_HOST_USO;
    config.send_buffer_len = 1 << 16;
    let mut guest = Driver::new(config).unwrap();
    guest.start().unwrap();
    assert_eq!(guest.features & F_HOST_USO, F_HOST_USO, "it is offered");
    wait_until("the guest runs", SOON, || daemon.interface("guest")["link"] == "up");

    let receiver = host.inside(|| UdpSocket::bind(("10.0.0.2", 6000)).unwrap());
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&receiver, RECEIVE_BUFFER).unwrap();
    receiver.set_read_timeout(Some(SOON)).unwrap();
    let text = host.mac("tap0");
    let to: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    let to: [u8; 6] = to.try_into().unwrap();
    let before = Counters::read(&daemon);
    let mut frames = 0;
    // Whole datagrams and a shorter last one, the most that Ethernet takes and the most that the kernel takes, and two.
    for (len, size) in
        [(LARGE, 1400), (LARGE, 1472), (LARGE, 1000), (LARGE, LARGE.div_ceil(128)), (101, 100), (200, 100)]
    {
        let payload: Vec<u8> = (0..len).map(|at| (at * 7 + at / 251 + size) as u8).collect();
        assert!(guest.sender.send_with(&header(size), &datagram(to, &payload)));
        frames += 1;
        let mut buffer = vec![0; 1 << 16];
        for (number, expected) in payload.chunks(size).enumerate() {
            let (count, from) = receiver.recv_from(&mut buffer).unwrap_or_else(|error| {
                let changes = Counters::read(&daemon).changes(&before);
                panic!("datagram {number} of {len} bytes in {size}: {error}: {changes:?}")
            });
            assert_eq!(from, ([10, 0, 0, 1], 5000).into());
            assert!(buffer[..count] == *expected, "datagram {number} of {len} bytes in {size}: {count} bytes");
        }
    }
    receiver.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(receiver.recv(&mut [0; 1]).is_err(), "there is no more");
    // They went to the kernel whole, each at once.
    expect(&daemon, &before, &[&format!("guest.rx.packets +{frames}"), &format!("host.tx.packets +{frames}")]);
}
