//! Who must not hear what: captures on every port and on the wire while tenants, and strangers on the underlay, send what
//! there is to send.

use super::super::SOON;
use super::hosts::{Carried, EVERY_WAY, hypervisors};
use super::{Ends, Wire, settings};
use crate::topology::attached_tap;
use std::net::UdpSocket;
use tests::daemon::Daemon;
use tests::http::Tenant;
use tests::ledger::Counters;
use tests::namespace::{Namespace, Sniffer};
use tests::process::wait_until;

/// For local experiments (IEEE 802-2014 section 9.2.4): no host answers it.
const EXPERIMENT: u16 = 0x88b5;
const VLAN: u16 = 0x8100;
const SERVICE: u16 = 0x88a8;
const STRANGER: [u8; 6] = [2, 0, 0, 0, 0, 0x66];

fn has(frame: &[u8], text: &str) -> bool {
    frame.windows(text.len()).any(|bytes| bytes == text.as_bytes())
}

/// An Ethernet frame with a text in it.
fn frame(to: [u8; 6], from: [u8; 6], ethertype: u16, text: &str) -> Vec<u8> {
    [&to[..], &from, &ethertype.to_be_bytes(), text.as_bytes()].concat()
}

/// The same with tags before its EtherType.
fn tagged(to: [u8; 6], from: [u8; 6], tags: &[(u16, u16)], text: &str) -> Vec<u8> {
    let mut bytes = frame(to, from, EXPERIMENT, text);
    let tags: Vec<u8> =
        tags.iter().flat_map(|(kind, control)| [kind.to_be_bytes(), control.to_be_bytes()].concat()).collect();
    bytes.splice(12..12, tags);
    bytes
}

/// A frame that looks like a tunnel's: IPv4 to the other hypervisor, a header of this kind with this number, and in it a frame
/// to everybody.
fn forged_tunnel(to: [u8; 6], from: [u8; 6], kind: &str, number: u32, text: &str) -> Vec<u8> {
    let inner = frame([0xff; 6], STRANGER, EXPERIMENT, text);
    let [_, a, b, c] = number.to_be_bytes();
    let udp = |port: u16, header: [u8; 8]| {
        let len = (8 + 8 + inner.len()) as u16;
        [&50_000u16.to_be_bytes()[..], &port.to_be_bytes(), &len.to_be_bytes(), &[0, 0], &header, &inner].concat()
    };
    let (protocol, payload) = match kind {
        "vxlan" => (17, udp(4789, [8, 0, 0, 0, a, b, c, 0])),
        "geneve" => (17, udp(6081, [0, 0, 0x65, 0x58, a, b, c, 0])),
        _ => (47, [&[0x20, 0, 0x65, 0x58, 0, a, b, c], &inner[..]].concat()),
    };
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 172, 31, 80, 1, 172, 31, 80, 2];
    ip[2..4].copy_from_slice(&((20 + payload.len()) as u16).to_be_bytes());
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    ip[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    [&to[..], &from, &[8, 0], &ip, &payload].concat()
}

/// All that a guest may think of that is not a member's honest frame: `text` is in each, `own` and `other` are the numbers of
/// its network and of another one, `victims` the MACs of others.
fn everything(from: [u8; 6], text: &str, own: u32, other: u32, victims: &[[u8; 6]]) -> Vec<Vec<u8>> {
    const EVERYBODY: [u8; 6] = [0xff; 6];
    const GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
    const NOBODY: [u8; 6] = [2, 0, 0, 0, 0, 0x77];
    const BRIDGES: [u8; 6] = [1, 0x80, 0xc2, 0, 0, 0];
    let mut all = Vec::new();
    for to in [EVERYBODY, GROUP, NOBODY, BRIDGES].iter().chain(victims) {
        all.push(frame(*to, from, EXPERIMENT, text));
        // Too long for any port.
        all.push([&frame(*to, from, EXPERIMENT, text)[..], &[0x5a; 4000]].concat());
        for first in [own, other, 0, 0xfff].map(|id| id as u16 & 0xfff) {
            for kind in [VLAN, SERVICE] {
                all.push(tagged(*to, from, &[(kind, first)], text));
                all.push(tagged(*to, from, &[(kind, first | 0xe000)], text));
                for second in [own, other].map(|id| id as u16 & 0xfff) {
                    all.push(tagged(*to, from, &[(kind, first), (VLAN, second)], text));
                }
            }
        }
        for kind in ["vxlan", "geneve", "gre"] {
            for number in [own, other] {
                all.push(forged_tunnel(*to, from, kind, number, text));
            }
        }
    }
    // From others' addresses, and the shortest there are, one of them all tag.
    all.extend(victims.iter().map(|victim| frame(EVERYBODY, *victim, EXPERIMENT, text)));
    all.push(frame(EVERYBODY, from, EXPERIMENT, ""));
    all.push(frame(EVERYBODY, from, VLAN, ""));
    all
}

/// Whether the first thing in a frame is a tag.
fn is_tagged(frame: &[u8]) -> bool {
    [VLAN, SERVICE].contains(&u16::from_be_bytes([frame[12], frame[13]]))
}

/// By which kind of outer header, and with which number, a frame on the wire is carried.
fn carried_by(frame: &[u8]) -> Option<(&'static str, u32)> {
    let number = |at: usize| u32::from_be_bytes([0, frame[at], frame[at + 1], frame[at + 2]]);
    match (u16::from_be_bytes([frame[12], frame[13]]), frame[23]) {
        (VLAN, _) => Some(("vlan", u32::from(u16::from_be_bytes([frame[14], frame[15]]) & 0xfff))),
        (0x0800, 17) => match u16::from_be_bytes([frame[36], frame[37]]) {
            4789 => Some(("vxlan", number(46))),
            6081 => Some(("geneve", number(46))),
            _ => None,
        },
        (0x0800, 47) => Some(("gre", number(39))),
        _ => None,
    }
}

fn mac_of(space: &Namespace, interface: &str) -> [u8; 6] {
    let text = space.mac(interface);
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

#[test]
fn tenants_that_send_everything_are_heard_by_nobody_else_and_are_apart_on_the_wire() {
    for carried in EVERY_WAY {
        let Carried { kind, is_tunnel, ids, .. } = carried;
        let hosts = hypervisors(carried);
        let [one, two] = &hosts;
        for (host, peer) in [(one, "172.31.80.2"), (two, "172.31.80.1")] {
            let vlans = || ids.iter().map(|id| format!("vlan:physnet1.{id}")).collect();
            let ways: Vec<_> = if is_tunnel { vec![format!("tunnel:{peer}")] } else { vlans() };
            for way in ways {
                let is_it = |row: &serde_json::Value| row["interface"] == way.as_str() && row["link"] == "up";
                wait_until(&format!("{way} is up"), SOON, || {
                    host.daemon.show("ports").as_array().unwrap().iter().any(is_it)
                });
            }
        }
        let names = ["of-the-reds", "of-the-blues"];
        // Each other's ports, and the hosts on the wire.
        let macs = |which: usize| hosts.each_ref().map(|host| mac_of(&host.guests[which], "tap0"));
        let wires = hosts.each_ref().map(|host| mac_of(&host.space, "eth0"));
        for guest in hosts.iter().flat_map(|host| &host.guests) {
            // So that what is too long gets as far as the switch.
            guest.must("ip link set dev tap0 mtu 9000");
        }
        let ears = hosts.each_ref().map(|host| host.guests.each_ref().map(Namespace::sniff));
        let wire = hosts.each_ref().map(|host| host.space.sniff());

        for (at, host) in hosts.iter().enumerate() {
            for which in [0, 1] {
                let victims = [macs(1 - which), wires].concat();
                let from = macs(which)[at];
                let frames = everything(from, names[which], ids[which], ids[1 - which], &victims);
                host.guests[which].send("tap0", &frames);
                let last = format!("last {} at {at}", names[which]);
                host.guests[which].send("tap0", &[frame([0xff; 6], from, EXPERIMENT, &last)]);
                // All that was sent before it has gone its way then.
                ears[1 - at][which].wait_for(&format!("{kind}: {last}"), 1, |frame| has(frame, &last));
            }
        }

        for (at, ears) in ears.into_iter().enumerate() {
            for (which, heard) in ears.map(Sniffer::stop_now).iter().enumerate() {
                let (own, other) = (names[which], names[1 - which]);
                assert!(heard.iter().any(|frame| has(frame, own)), "{kind}: host {at} hears {own}");
                let foreign: Vec<_> = heard.iter().filter(|frame| has(frame, other)).collect();
                assert!(foreign.is_empty(), "{kind}: {own} at host {at} heard {foreign:02x?}");
            }
        }
        for (at, heard) in wire.map(Sniffer::stop_now).iter().enumerate() {
            // What this host sent from its guests' own addresses; of what comes in the kernel takes the tag out before it is told.
            let is_bare = |frame: &&Vec<u8>| {
                names.iter().any(|name| has(frame, name)) && !wires.iter().any(|mac| frame[6..12] == *mac)
            };
            assert!(!is_tunnel || !heard.iter().any(|frame| is_bare(&frame)), "{kind}: a frame without outer headers");
            for (which, name) in names.iter().enumerate() {
                let from = if is_tunnel { wires[at] } else { macs(which)[at] };
                let own: Vec<_> = heard.iter().filter(|frame| has(frame, name) && frame[6..12] == from).collect();
                assert!(!own.is_empty(), "{kind}: host {at} sent nothing {name}");
                for frame in own {
                    let is_right = match kind {
                        "native" if which == 0 => !is_tagged(frame),
                        "native" => carried_by(frame) == Some(("vlan", ids[which])),
                        _ => carried_by(frame) == Some((kind, ids[which])),
                    };
                    assert!(is_right, "{kind}: host {at} sent {frame:02x?}");
                }
            }
        }
    }
}

/// A datagram to the port of VXLAN, as UDP's payload: this number, and a frame to everybody with this text.
fn vxlan(vni: u32, text: &str) -> Vec<u8> {
    let [_, a, b, c] = vni.to_be_bytes();
    [&[8, 0, 0, 0, a, b, c, 0], &frame([0xff; 6], STRANGER, EXPERIMENT, text)[..]].concat()
}

#[test]
fn strangers_on_the_underlay_and_tunnels_forged_by_tenants_reach_nobody() {
    let ends = Ends(["172.31.79.1", "172.31.79.2"], 24);
    let (near, other, far) = (Namespace::new("qt-in"), Namespace::new("qt-io"), Namespace::new("qt-ifar"));
    let _wire = Wire::new("qt-iso", &far, ends, true);
    far.must("ip addr add 172.31.79.66/24 dev eth0");
    let daemon = Daemon::start(&settings("qt-iso", Some(ends.0), "default = \"vxlan\""));
    let tenants: [Tenant; 2] = [daemon.tenant("red"), daemon.tenant("blue")];
    for (tenant, (name, namespace)) in tenants.iter().zip([("qt-in", &near), ("qt-io", &other)]) {
        let network = tenant.network("lan");
        attached_tap(&daemon, tenant, &network, name, namespace, "10.9.0.1/24");
    }
    daemon.wait_up(&["qt-in", "qt-io"]);
    wait_until("the peer's next hop is known", SOON, || daemon.interface("tunnel:172.31.79.2")["link"] == "up");
    let before = Counters::read(&daemon);

    // A frame to everybody in VNI 5000, from an address that is no peer, and in a VNI that nobody has.
    let ears = [near.sniff(), other.sniff()];
    let send = |from: &str, vni: u32, text: &str| {
        let socket = far.inside(|| UdpSocket::bind((from, 0)).unwrap());
        socket.send_to(&vxlan(vni, text), ("172.31.79.1", 4789)).unwrap();
    };
    send("172.31.79.66", 5000, "stranger");
    send("172.31.79.2", 7777, "elsewhere");
    send("172.31.79.2", 5000, "for-red");
    ears[0].wait_for("what is for red is heard", 1, |frame| has(frame, "for-red"));

    // A tenant's frame that looks like a tunnel's, to the host's own address and with the other network's VNI: payload.
    let wire = far.sniff();
    near.must("ip neigh add 10.9.0.77 lladdr ff:ff:ff:ff:ff:ff dev tap0");
    near.inside(|| UdpSocket::bind("10.9.0.1:0").unwrap()).send_to(&vxlan(5001, "forged"), "10.9.0.77:4789").unwrap();
    wire.wait_for("the forged one is on the wire", 1, |frame| has(frame, "forged"));
    // What is said after all that, and is heard, comes last.
    send("172.31.79.2", 5000, "last-for-red");
    send("172.31.79.2", 5001, "last-for-blue");
    ears[0].wait_for("red hears the last", 1, |frame| has(frame, "last-for-red"));
    ears[1].wait_for("blue hears the last", 1, |frame| has(frame, "last-for-blue"));

    let [red, blue] = ears.map(Sniffer::stop_now);
    assert_eq!(red.iter().filter(|frame| has(frame, "for-red")).count(), 2);
    for text in ["stranger", "elsewhere"] {
        assert!(red.iter().chain(&blue).all(|frame| !has(frame, text)), "{text}");
    }
    assert!(blue.iter().all(|frame| !has(frame, "for-red") && !has(frame, "forged")));
    assert!(red.iter().all(|frame| !has(frame, "for-blue")));
    // On the wire it is wrapped once more, in its own network's VNI.
    // What is no UDP is the other host's complaint that nobody listens there.
    let is_udp = |frame: &Vec<u8>| frame[23] == 17;
    let forged: Vec<_> = wire.stop_now().into_iter().filter(|frame| is_udp(frame) && has(frame, "forged")).collect();
    assert!(!forged.is_empty() && forged.iter().all(|frame| frame[46..49] == [0, 0x13, 0x88]), "{forged:?}");
    let now = Counters::read(&daemon);
    assert_eq!(now.grown(&before, "uplink:physnet1.rx.drops.tunnel_unknown_source"), 1);
    assert_eq!(now.grown(&before, "uplink:physnet1.rx.drops.tunnel_unknown_network"), 1);
}
