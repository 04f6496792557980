//! What outer headers say besides where they go: marks of congestion, code point and hops, with the kernel as the other side.

use super::super::SOON;
use super::BOTH_FAMILIES;
use super::kernel::beside_the_kernel_with;
use rustix::net::sockopt::set_ip_tos;
use std::net::UdpSocket;
use tests::checksum::sum;
use tests::ledger::Counters;
use tests::namespace::Namespace;
use tests::process::wait_until;

/// Where datagrams go.
const PORT: u16 = 7000;

/// A frame of VXLAN: how it is marked outside, and how many hops it may take.
struct Outer {
    type_of_service: u8,
    hops: u8,
    /// The frame in it.
    inner: Vec<u8>,
}

/// One that has this text in it; `None`: it is another, or not in a tunnel.
fn outer(frame: &[u8], text: &str) -> Option<Outer> {
    let is_it = frame.windows(text.len()).any(|bytes| bytes == text.as_bytes());
    let (type_of_service, hops, udp) = match frame[12..14] {
        [8, 0] if frame[23] == 17 => (frame[15], frame[22], 34),
        [0x86, 0xdd] if frame[20] == 17 => (frame[14] << 4 | frame[15] >> 4, frame[21], 54),
        _ => return None,
    };
    let is_tunnel = frame[udp + 2..udp + 4] == 4789u16.to_be_bytes();
    (is_it && is_tunnel).then(|| Outer { type_of_service, hops, inner: frame[udp + 16..].to_vec() })
}

/// Sends a datagram with this type of service and text.
fn send_marked(from: &Namespace, to: &str, type_of_service: u8, text: &str) {
    let socket = from.inside(|| UdpSocket::bind(("0.0.0.0", 0)).unwrap());
    set_ip_tos(&socket, type_of_service).unwrap();
    socket.send_to(text.as_bytes(), (to, PORT)).unwrap();
}

/// Congestion marks by RFC 6040: section 4.1 for what goes in, 4.2 for what comes out.
#[test]
fn marks_of_congestion_go_into_tunnels_and_out_of_them_and_hops_and_code_point_are_those_of_the_settings() {
    const DSCP: u8 = 46;
    const CE: u8 = 3;
    for ends in BOTH_FAMILIES {
        let hosts = beside_the_kernel_with(ends, "", &format!("ttl = 3\ndscp = {DSCP}"));
        assert!(hosts.near.pings_within("10.9.0.2", SOON), "{}", hosts.daemon.log_tail());
        // So that nobody complains of ports, quoting what came to them.
        let _sinks =
            [&hosts.near, &hosts.far].map(|space| space.inside(|| UdpSocket::bind(("0.0.0.0", PORT)).unwrap()));
        let wire = hosts.far.sniff();
        for mark in 0..=CE {
            // The code point of the inner packet is its tenant's own.
            let text = format!("marked {mark}");
            send_marked(&hosts.near, "10.9.0.2", 10 << 2 | mark, &text);
            wire.wait_for("it is on the wire", 1, |frame| outer(frame, &text).is_some());
        }
        // As a router on the way marks what the far kernel has sent.
        let ear = hosts.near.sniff();
        for (mark, text) in [(2, "first one"), (1, "second one"), (0, "third one")] {
            send_marked(&hosts.far, "10.9.0.1", mark, text);
            ear.wait_for("it is heard", 1, |frame| frame.ends_with(text.as_bytes()));
            wire.wait_for("it was on the wire", 1, |frame| outer(frame, text).is_some());
        }
        let heard = wire.stop_now();
        for mark in 0..=CE {
            let it = heard.iter().find_map(|frame| outer(frame, &format!("marked {mark}"))).unwrap();
            assert_eq!((it.type_of_service, it.hops), (DSCP << 2 | mark, 3), "{:02x?}", it.inner);
            assert_eq!(it.inner[15], 10 << 2 | mark);
        }
        // Above the checksums were left to do; these are done, which is another way through the switch.
        let wire = hosts.far.sniff();
        for mark in 0..=CE {
            let text = format!("marked {mark}");
            let inner = heard.iter().find_map(|frame| outer(frame, &text)).unwrap().inner;
            hosts.near.send("tap0", &[inner]);
            wire.wait_for("one with its checksums is marked as well", 1, |frame| {
                outer(frame, &text).is_some_and(|it| (it.type_of_service, it.hops) == (DSCP << 2 | mark, 3))
            });
        }
        drop(wire);
        let before = Counters::read(&hosts.daemon);
        for text in ["first one", "second one", "third one"] {
            let mut frame = heard.iter().find(|frame| outer(frame, text).is_some()).unwrap().clone();
            if frame[12] == 8 {
                frame[15] |= CE;
                frame[24..26].fill(0);
                let sum = !sum(&frame[14..34]);
                frame[24..26].copy_from_slice(&sum.to_be_bytes());
            } else {
                frame[15] |= CE << 4;
            }
            hosts.far.send("eth0", &[frame]);
        }
        for text in ["first one", "second one"] {
            // A mark that is there already would be there before.
            let is_marked = |frame: &[u8]| {
                frame.ends_with(text.as_bytes()) && frame[15] & CE == CE && sum(&frame[14..34]) == 0xffff
            };
            ear.wait_for("its mark has come to the guest", 1, is_marked);
        }
        // Who does not know the mark must not get it, and is told by loss.
        wait_until("the third is dropped", SOON, || {
            Counters::read(&hosts.daemon).grown(&before, "uplink:physnet1.rx.drops.tunnel_congested") == 1
        });
        assert_eq!(ear.stop_now().iter().filter(|frame| frame.ends_with(b"third one")).count(), 1);
    }
}
