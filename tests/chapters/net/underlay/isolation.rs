//! Who must not hear what: captures on every port and on the wire while tenants, and strangers on the underlay, send what
//! there is to send.

use super::super::SOON;
use super::hosts::{Carried, EVERY_WAY, MORE_WAYS, SERVICE, VLAN, hypervisors};
use super::{Ends, Wire, settings};
use crate::topology::attached_tap;
use std::net::IpAddr;
use tests::checksum::sum;
use tests::daemon::Daemon;
use tests::http::Tenant;
use tests::ledger::Counters;
use tests::namespace::{Namespace, Sniffer};
use tests::process::{output_of, wait_until};
use tests::tcpdump::Tcpdump;

/// For local experiments (IEEE 802-2014 section 9.2.4): no host answers it.
const EXPERIMENT: u16 = 0x88b5;
const EVERYBODY: [u8; 6] = [0xff; 6];
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

/// A frame of a tunnel, or one that looks so: to and from these MACs, from and to these addresses, a header of this kind with this
/// number, and in it a frame to everybody.
fn tunnelled(macs: [[u8; 6]; 2], ends: [&str; 2], kind: &str, number: u32, text: &str) -> Vec<u8> {
    let inner = frame(EVERYBODY, STRANGER, EXPERIMENT, text);
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
    let len = payload.len() as u16;
    let (ethertype, ip) = match ends.map(|end| end.parse().unwrap()) {
        [IpAddr::V4(from), IpAddr::V4(to)] => {
            let mut ip =
                [&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0], &from.octets()[..], &to.octets()].concat();
            ip[2..4].copy_from_slice(&(20 + len).to_be_bytes());
            let sum = !sum(&ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            ([8, 0], ip)
        }
        [IpAddr::V6(from), IpAddr::V6(to)] => {
            let [high, low] = len.to_be_bytes();
            ([0x86, 0xdd], [&[0x60, 0, 0, 0, high, low, protocol, 64], &from.octets()[..], &to.octets()].concat())
        }
        _ => panic!("{ends:?} are not of one family"),
    };
    [&macs[0][..], &macs[1], &ethertype, &ip, &payload].concat()
}

/// All that a guest may think of that is not a member's honest frame: `text` is in each, `own` and `other` are the numbers of
/// its network and of another one, `victims` the MACs of others.
fn everything(
    from: [u8; 6],
    text: &str,
    [own, other]: [u32; 2],
    carried: &Carried,
    victims: &[[u8; 6]],
) -> Vec<Vec<u8>> {
    const GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
    const NOBODY: [u8; 6] = [2, 0, 0, 0, 0, 0x77];
    const BRIDGES: [u8; 6] = [1, 0x80, 0xc2, 0, 0, 0];
    let mut all = Vec::new();
    for to in [EVERYBODY, GROUP, NOBODY, BRIDGES].iter().chain(victims) {
        all.push(frame(*to, from, EXPERIMENT, text));
        // Too long for any port.
        all.push([&frame(*to, from, EXPERIMENT, text)[..], &[0x5a; 4000]].concat());
        let outer = carried.tags.iter().map(|(_, id)| *id);
        for first in [own, other, 0, 0xfff].map(|id| id as u16 & 0xfff).into_iter().chain(outer) {
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
                all.push(tunnelled([*to, from], carried.ends.0, kind, number, text));
            }
        }
    }
    // From others' addresses, and the shortest there are, one of them all tag.
    all.extend(victims.iter().map(|victim| frame(EVERYBODY, *victim, EXPERIMENT, text)));
    all.push(frame(EVERYBODY, from, EXPERIMENT, ""));
    all.push(frame(EVERYBODY, from, VLAN, ""));
    all
}

/// What is behind these tags, or in a frame without any: from its EtherType on.
fn behind<'a>(frame: &'a [u8], tags: &[(u16, u16)]) -> Option<&'a [u8]> {
    tags.iter().try_fold(&frame[12..], |rest, (kind, id)| {
        let is_it = rest[..2] == kind.to_be_bytes() && u16::from_be_bytes([rest[2], rest[3]]) & 0xfff == *id;
        is_it.then_some(&rest[4..])
    })
}

/// By which kind of header, and with which number, something on the wire is carried that begins with its EtherType.
fn carried_by(rest: &[u8]) -> Option<(&'static str, u32)> {
    let (protocol, l4) = match u16::from_be_bytes([rest[0], rest[1]]) {
        VLAN => return Some(("vlan", u32::from(u16::from_be_bytes([rest[2], rest[3]]) & 0xfff))),
        0x0800 => (rest[11], &rest[22..]),
        0x86dd => (rest[8], &rest[42..]),
        _ => return None,
    };
    let number = |at: usize| u32::from_be_bytes([0, l4[at], l4[at + 1], l4[at + 2]]);
    match (protocol, u16::from_be_bytes([l4[2], l4[3]])) {
        (17, 4789) => Some(("vxlan", number(12))),
        (17, 6081) => Some(("geneve", number(12))),
        (47, _) => Some(("gre", number(5))),
        _ => None,
    }
}

/// Whether a frame is a kernel's complaint, which quotes what it complains of.
fn is_complaint(frame: &[u8]) -> bool {
    (frame[12..14] == [8, 0] && frame[23] == 1) || (frame[12..14] == [0x86, 0xdd] && frame[20] == 58)
}

fn mac_of(space: &Namespace, interface: &str) -> [u8; 6] {
    mac_from(&space.mac(interface))
}

fn mac_from(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

#[test]
fn tenants_that_send_everything_are_heard_by_nobody_else_and_are_apart_on_the_wire() {
    for carried in EVERY_WAY.into_iter().chain(MORE_WAYS) {
        let Carried { kind, is_tunnel, ends, tags, links, ids, .. } = carried;
        let hosts = hypervisors(carried);
        let [one, two] = &hosts;
        for (host, peer) in [(one, ends.0[1]), (two, ends.0[0])] {
            let vlans = || ids.iter().map(|id| format!("vlan:physnet1.{id}")).collect();
            let ways: Vec<_> = if is_tunnel { vec![format!("tunnel:{peer}")] } else { vlans() };
            for way in ways {
                let is_it = |row: &serde_json::Value| row["interface"] == way.as_str() && row["link"] == "up";
                wait_until(&format!("{way} is up: {carried:?}"), SOON, || {
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
        let wire: Vec<_> = links.iter().map(|link| Tcpdump::start(&two.space, link)).collect();

        let mut lasts = Vec::new();
        for (at, host) in hosts.iter().enumerate() {
            for which in [0, 1] {
                let victims = [macs(1 - which), wires].concat();
                let from = macs(which)[at];
                let frames = everything(from, names[which], [ids[which], ids[1 - which]], &carried, &victims);
                host.guests[which].send("tap0", &frames);
                let last = format!("last {} at {at}", names[which]);
                host.guests[which].send("tap0", &[frame(EVERYBODY, from, EXPERIMENT, &last)]);
                // All that was sent before it has gone its way then.
                ears[1 - at][which].wait_for(&format!("{last}: {carried:?}"), 1, |frame| has(frame, &last));
                lasts.push(last);
            }
        }
        let heard = || wire.iter().flat_map(Tcpdump::frames).collect::<Vec<_>>();
        wait_until(&format!("the last of all is captured: {carried:?}"), SOON, || {
            let heard = heard();
            lasts.iter().all(|last| heard.iter().any(|frame| has(frame, last)))
        });

        for (at, ears) in ears.into_iter().enumerate() {
            for (which, heard) in ears.map(Sniffer::stop_now).iter().enumerate() {
                let (own, other) = (names[which], names[1 - which]);
                assert!(heard.iter().any(|frame| has(frame, own)), "host {at} hears {own}: {carried:?}");
                let foreign: Vec<_> = heard.iter().filter(|frame| has(frame, other)).collect();
                assert!(foreign.is_empty(), "{own} at host {at} heard {foreign:02x?}: {carried:?}");
            }
        }
        let heard = heard();
        for (which, name) in names.iter().enumerate() {
            let mut sent = [0; 2];
            for frame in heard.iter().filter(|frame| has(frame, name)) {
                let at = wires.iter().position(|mac| frame[6..12] == *mac);
                if !is_tunnel && at.is_some() && is_complaint(frame) {
                    // Of a host's own stack, about a tunnel that a guest made up.
                    continue;
                }
                let is_right = match (kind, behind(frame, tags)) {
                    (_, None) => false,
                    ("native", Some(rest)) if which == 0 => {
                        ![VLAN, SERVICE].contains(&u16::from_be_bytes([rest[0], rest[1]]))
                    }
                    ("native", Some(rest)) => carried_by(rest) == Some(("vlan", ids[which])),
                    (_, Some(rest)) => carried_by(rest) == Some((kind, ids[which])) && (!is_tunnel || at.is_some()),
                };
                assert!(is_right, "{name} on the wire: {frame:02x?}: {carried:?}");
                let at = if is_tunnel { at } else { macs(which).iter().position(|mac| frame[6..12] == *mac) };
                sent[at.unwrap_or_default()] += usize::from(at.is_some());
            }
            assert!(sent.iter().all(|&count| count > 20), "{sent:?} of {name}: {carried:?}");
        }
    }
}

/// The MAC of an interface here.
fn mac_here(interface: &str) -> [u8; 6] {
    let line = output_of("ip", &["-br", "link", "show", "dev", interface]);
    mac_from(line.split_whitespace().nth(2).unwrap())
}

/// What strangers are on: both families, and every kind of tunnel.
const STRANGE_WAYS: [(Ends, &str, &str); 5] = {
    let v4 = Ends(["172.31.79.1", "172.31.79.2"], 24);
    let v6 = Ends(["fd79::1", "fd79::2"], 64);
    [
        (v4, "172.31.79.66", "vxlan"),
        (v4, "172.31.79.66", "geneve"),
        (v4, "172.31.79.66", "gre"),
        (v6, "fd79::66", "geneve"),
        (v6, "fd79::66", "gre"),
    ]
};

#[test]
fn strangers_on_the_underlay_and_tunnels_forged_by_tenants_reach_nobody() {
    for (ends, stranger, kind) in STRANGE_WAYS {
        let Ends([own, peer], _) = ends;
        let (near, other, far) = (Namespace::new("qt-in"), Namespace::new("qt-io"), Namespace::new("qt-ifar"));
        let _wire = Wire::new("qt-iso", &far, ends, true);
        let daemon = Daemon::start(&settings("qt-iso", Some(ends.0), &format!("default = \"{kind}\"")));
        let tenants: [Tenant; 2] = [daemon.tenant("red"), daemon.tenant("blue")];
        for (tenant, (name, namespace)) in tenants.iter().zip([("qt-in", &near), ("qt-io", &other)]) {
            let network = tenant.network("lan");
            attached_tap(&daemon, tenant, &network, name, namespace, "10.9.0.1/24");
        }
        daemon.wait_up(&["qt-in", "qt-io"]);
        wait_until("the peer's next hop is known", SOON, || {
            daemon.interface(&format!("tunnel:{peer}"))["link"] == "up"
        });
        let before = Counters::read(&daemon);

        // A frame to everybody in VNI 5000, from an address that is no peer, and in a VNI that nobody has.
        let ears = [near.sniff(), other.sniff()];
        let macs = [mac_here("qt-iso"), mac_of(&far, "eth0")];
        let send =
            |from: &str, vni: u32, text: &str| far.send("eth0", &[tunnelled(macs, [from, own], kind, vni, text)]);
        send(stranger, 5000, "stranger");
        send(peer, 7777, "elsewhere");
        send(peer, 5000, "for-red");
        ears[0].wait_for(&format!("what is for red is heard: {kind} from {peer}"), 1, |frame| has(frame, "for-red"));

        // A tenant's frame that looks like a tunnel's, to the host's own address and with the other network's VNI: payload.
        let wire = far.sniff();
        let forged = tunnelled([EVERYBODY, mac_of(&near, "tap0")], [peer, own], kind, 5001, "forged");
        near.send("tap0", &[forged]);
        wire.wait_for("the forged one is on the wire", 1, |frame| has(frame, "forged"));
        // What is said after all that, and is heard, comes last.
        send(peer, 5000, "last-for-red");
        send(peer, 5001, "last-for-blue");
        ears[0].wait_for("red hears the last", 1, |frame| has(frame, "last-for-red"));
        ears[1].wait_for("blue hears the last", 1, |frame| has(frame, "last-for-blue"));

        let [red, blue] = ears.map(Sniffer::stop_now);
        assert_eq!(red.iter().filter(|frame| has(frame, "for-red")).count(), 2);
        for text in ["stranger", "elsewhere"] {
            assert!(red.iter().chain(&blue).all(|frame| !has(frame, text)), "{text}");
        }
        assert!(blue.iter().all(|frame| !has(frame, "for-red") && !has(frame, "forged")));
        assert!(red.iter().all(|frame| !has(frame, "for-blue")));
        // On the wire it is wrapped once more, in its own network's VNI; and the other host complains that nobody listens there.
        let forged = wire.stop_now().into_iter().filter(|frame| !is_complaint(frame) && has(frame, "forged"));
        let ways: Vec<_> = forged.map(|frame| carried_by(&frame[12..])).collect();
        assert!(!ways.is_empty() && ways.iter().all(|way| *way == Some((kind, 5000))), "{ways:?}");
        let now = Counters::read(&daemon);
        for reason in ["tunnel_unknown_source", "tunnel_unknown_network"] {
            assert_eq!(now.grown(&before, &format!("uplink:physnet1.rx.drops.{reason}")), 1, "{kind} from {peer}");
        }
    }
}

/// Tags of an uplink, and frames on its wire by theirs: those for VLAN 100, and those for nobody.
type Tagged = (&'static str, &'static [&'static [(u16, u16)]], &'static [&'static [(u16, u16)]]);

const TAGGED: [Tagged; 2] = [
    (
        "",
        &[&[(VLAN, 100)], &[(VLAN, 0xe064)], &[(VLAN, 100), (VLAN, 101)], &[(VLAN, 100), (SERVICE, 101)]],
        &[
            &[],
            &[(VLAN, 0)],
            &[(VLAN, 0), (VLAN, 100)],
            &[(VLAN, 0xe000), (VLAN, 100)],
            &[(VLAN, 102)],
            &[(VLAN, 102), (VLAN, 100)],
            &[(SERVICE, 100)],
            &[(SERVICE, 100), (VLAN, 100)],
        ],
    ),
    (
        "service_vlan = 500\n",
        &[
            &[(SERVICE, 500), (VLAN, 100)],
            &[(SERVICE, 0xe1f4), (VLAN, 0x2064)],
            &[(SERVICE, 500), (VLAN, 100), (VLAN, 101)],
        ],
        &[
            &[],
            &[(VLAN, 100)],
            &[(SERVICE, 500)],
            &[(SERVICE, 501), (VLAN, 100)],
            &[(VLAN, 500), (VLAN, 100)],
            &[(SERVICE, 500), (SERVICE, 100)],
            &[(SERVICE, 500), (VLAN, 0), (VLAN, 100)],
            &[(SERVICE, 500), (SERVICE, 500), (VLAN, 100)],
            &[(SERVICE, 0), (SERVICE, 500), (VLAN, 100)],
            &[(VLAN, 0), (SERVICE, 500), (VLAN, 100)],
        ],
    ),
];

#[test]
fn of_what_strangers_tag_on_the_wire_only_what_has_a_networks_own_tags_reaches_it() {
    for ((keys, right, odd), driver) in
        TAGGED.into_iter().flat_map(|way| ["af_packet", "af_xdp"].map(|driver| (way, driver)))
    {
        let (near, other, far) = (Namespace::new("qt-in"), Namespace::new("qt-io"), Namespace::new("qt-ifar"));
        let _wire = Wire::new("qt-iso", &far, STRANGE_WAYS[0].0, true);
        let text = settings("qt-iso", None, "default = \"vlan\"\nvlan = \"physnet1:100-101\"");
        let keys = format!("{keys}exclusive = true\ndriver = \"{driver}\"\n[segments]");
        let daemon = Daemon::start(&text.replace("[segments]", &keys));
        for (tenant, (name, namespace)) in ["red", "blue"].into_iter().zip([("qt-in", &near), ("qt-io", &other)]) {
            let tenant = daemon.tenant(tenant);
            attached_tap(&daemon, &tenant, &tenant.network("lan"), name, namespace, "10.9.0.1/24");
        }
        daemon.wait_up(&["qt-in", "qt-io"]);
        wait_until("the uplink is up", SOON, || daemon.interface("uplink:physnet1")["link"] == "up");

        let ears = [near.sniff(), other.sniff()];
        let before = Counters::read(&daemon);
        let frames = |tags: &[&[(u16, u16)]], text| {
            tags.iter().map(|tags| tagged(EVERYBODY, STRANGER, tags, text)).collect::<Vec<_>>()
        };
        far.send("eth0", &frames(odd, "odd-one"));
        far.send("eth0", &frames(right, "for-red"));
        ears[0].wait_for(&format!("what is for red is heard: {keys}"), right.len(), |frame| has(frame, "for-red"));
        let [red, blue] = ears.map(Sniffer::stop_now);
        assert!(red.iter().all(|frame| !has(frame, "odd-one")), "{keys}: {red:02x?}");
        assert!(blue.iter().all(|frame| !has(frame, "odd-one") && !has(frame, "for-red")), "{keys}: {blue:02x?}");
        let dropped = Counters::read(&daemon).grown(&before, "uplink:physnet1.rx.drops.not_ours");
        assert_eq!(dropped, odd.len() as u64, "{keys}");
    }
}
