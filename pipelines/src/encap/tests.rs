//! What leaves for far ends, byte for byte. The vectors are scapy's.

use crate::tests::frames::Frame;
use crate::tests::rig::{Input, PEERS, REMOTE, Rig, UPLINK, VLANS, in_tunnels, mac, on_vlans, port};
use crate::wire::{ethernet, ipv4};
use switch::checksum::{self, Sum};
use switch::config::{Config, SubportConfig};
use switch::ids::{NetworkIndex, PortIndex};
use switch::ledger::DropReason;
use switch::offload::{F_NEEDS_CSUM, GSO_TCPV4, OffloadClaim};
use switch::underlay::{TunnelConfig, TunnelKind, Underlay, VlanId};
use switch::worker::Now;

pub(crate) fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
}

/// Its checksum is right.
pub(crate) const INNER: &str = "02000000000202000000000108004500002e00000000401166bd0a0000010a00000203e807d0001a97ae\
    000102030405060708090a0b0c0d0e0f1011";
pub(crate) const VXLAN: &str = "0200000000b10200000000aa080045000060000040004011b689c0000201c0000202c00012b5004c0000\
    0800000000138900";
pub(crate) const GENEVE: &str = "0200000000b10200000000aa080045000060000040004011b689c0000201c0000202c00017c1004c0000\
    0000655800138900";
pub(crate) const GRE: &str = "0200000000b10200000000aa08004500005800004000402fb673c0000201c0000202\
    2000655800001389";
const VXLAN6: &str = "0200000000b10200000000aa86dd60000000004c114020010db800000000000000000000000120010db8000000000000\
    000000000002c00012b5004c48430800000000138900";

/// Sends a frame from port 0, whose network 1 has port 1 as well.
fn send(config: Config, input: impl Into<Input>) -> crate::tests::rig::Outcome {
    Rig::new(config).step(Now::default(), PortIndex(0), vec![input.into()])
}

fn on_uplink(outcome: &crate::tests::rig::Outcome) -> Vec<&Vec<u8>> {
    outcome.received.iter().filter(|(port, _)| *port == UPLINK.0).map(|(_, frame)| frame).collect()
}

fn two_ports() -> Vec<switch::config::PortConfig> {
    vec![port(0, Some(1)), port(1, Some(1))]
}

#[test]
fn a_frame_to_everybody_is_wrapped_for_every_peer_and_reaches_ports_here_as_it_was() {
    for (kind, vector) in [(TunnelKind::Vxlan, VXLAN), (TunnelKind::Geneve, GENEVE), (TunnelKind::Gre, GRE)] {
        let outcome = send(in_tunnels(two_ports(), kind, false), hex(INNER));
        let wrapped = on_uplink(&outcome);
        assert_eq!(wrapped.len(), 2, "{kind:?}");
        let mut first = wrapped[0].clone();
        if kind != TunnelKind::Gre {
            let source = u16::from_be_bytes([first[34], first[35]]);
            assert!(source >= 49_152, "{source} is no dynamic port");
            first[34..36].copy_from_slice(&[0xc0, 0]);
            // Flows go one way each: the same for both peers.
            assert_eq!(wrapped[1][34..36], source.to_be_bytes());
        }
        assert_eq!(first, [hex(vector), hex(INNER)].concat(), "{kind:?}");
        assert_eq!((wrapped[1][5], wrapped[1][33]), (0xb2, 3), "the second peer's MAC and address");
        assert!(outcome.received.contains(&(1, hex(INNER))), "the port here");
    }
}

#[test]
fn over_ipv6_the_outer_checksum_is_computed() {
    let outcome = send(in_tunnels(two_ports(), TunnelKind::Vxlan, true), hex(INNER));
    let mut wrapped = on_uplink(&outcome)[0].clone();
    let source = u16::from_be_bytes([wrapped[54], wrapped[55]]);
    let sum = checksum::updated(0x4843, 0xc000, source);
    assert_eq!(wrapped[60..62], sum.to_be_bytes());
    wrapped[54..56].copy_from_slice(&[0xc0, 0]);
    wrapped[60..62].copy_from_slice(&[0x48, 0x43]);
    assert_eq!(wrapped, [hex(VXLAN6), hex(INNER)].concat());
}

#[test]
fn a_checksum_left_to_the_device_is_completed_inside_the_tunnel() {
    for is_ipv6 in [false, true] {
        let mut partial = hex(INNER);
        let mut pseudo = Sum::default();
        pseudo.add(&partial[26..34]);
        pseudo.add_word(17);
        pseudo.add_word(26);
        partial[40..42].copy_from_slice(&pseudo.folded().to_be_bytes());
        let claim = OffloadClaim { flags: F_NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..OffloadClaim::default() };
        let input = Input { claim, ..partial.into() };
        let outcome = send(in_tunnels(two_ports(), TunnelKind::Vxlan, is_ipv6), input);
        let wrapped = on_uplink(&outcome)[0];
        assert!(wrapped.ends_with(&hex(INNER)), "IPv6: {is_ipv6}");
        if is_ipv6 {
            let mut sum = Sum::default();
            sum.add(&wrapped[22..54]);
            sum.add_word(wrapped.len() as u16 - 54);
            sum.add_word(17);
            sum.add(&wrapped[54..]);
            assert_eq!(sum.checksum(), 0);
        }
    }
}

#[test]
fn a_large_frame_is_cut_into_segments_that_each_are_wrapped() {
    let frame = Frame::tcp4().payload(4000).bytes();
    let claim = OffloadClaim {
        flags: F_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        gso_size: 1400,
        csum_start: 34,
        csum_offset: 16,
        hdr_len: 54,
    };
    for (kind, header_len) in [(TunnelKind::Vxlan, 50), (TunnelKind::Gre, 42)] {
        let outcome = send(in_tunnels(two_ports(), kind, false), Input { claim, ..frame.clone().into() });
        let wrapped = on_uplink(&outcome);
        assert_eq!(wrapped.len(), 6, "three for each peer: {:?}", outcome.drops);
        for (at, segment) in wrapped[..3].iter().enumerate() {
            let ip = ipv4::Ipv4::new(&segment[14..]).unwrap();
            assert!(ip.is_checksum_valid());
            assert_eq!(ip.total_len(), segment.len() - 14, "segment {at}");
            let inner = &segment[header_len..];
            assert_eq!(inner.len(), 54 + if at == 2 { 1200 } else { 1400 });
            let inner_ip = ipv4::Ipv4::new(&inner[14..]).unwrap();
            assert!(inner_ip.is_checksum_valid() && inner_ip.total_len() == inner.len() - 14);
            assert_eq!(inner[54], (at * 1400) as u8, "the payload's place");
        }
        let whole: Vec<_> = outcome.received.iter().filter(|(port, _)| *port == 1).collect();
        assert_eq!(whole.len(), 1, "the port here takes it whole");
    }
}

#[test]
fn a_known_address_behind_a_peer_gets_the_frame_alone() {
    let mut rig = Rig::new(in_tunnels(two_ports(), TunnelKind::Vxlan, false));
    rig.mac_table.learn(NetworkIndex(1), mac(2), PEERS[1], Now::default());
    let outcome = rig.step(Now::default(), PortIndex(0), vec![hex(INNER).into(); 3]);
    assert_eq!(on_uplink(&outcome).len(), 3);
    assert!(on_uplink(&outcome).iter().all(|frame| frame[33] == 3));
    assert_eq!(outcome.received.len(), 3);
    let trace = rig.trace(Now::default(), PortIndex(0), &hex(INNER).into());
    let last = trace.last().unwrap();
    assert!(last.ends_with(&format!("lives at port 14 \"tunnel:{}\": forward", REMOTE[1])), "{last}");
}

#[test]
fn the_outer_packet_is_never_longer_than_the_uplink_takes() {
    // 1,600 less IPv4, UDP, VXLAN and the inner Ethernet header.
    let fits = Frame::udp4().payload(1550 - 28).bytes();
    let config =
        || in_tunnels(vec![switch::config::PortConfig { mtu: 9000, ..port(0, Some(1)) }], TunnelKind::Vxlan, false);
    let outcome = send(config(), fits);
    assert_eq!(on_uplink(&outcome).iter().map(|frame| frame.len()).collect::<Vec<_>>(), [1614, 1614]);
    for frame in [Frame::udp4().payload(1551 - 28), Frame::udp4().payload(1550 - 28).vlan(5)] {
        let outcome = send(config(), frame.bytes());
        assert!(on_uplink(&outcome).is_empty());
        let drops: Vec<_> = PEERS.iter().map(|peer| (peer.0, false, DropReason::OverMtu.name(), 1)).collect();
        assert_eq!(outcome.drops, drops);
    }
}

#[test]
fn without_a_next_hop_frames_to_that_peer_are_dropped_and_told_as_such() {
    let config = in_tunnels(two_ports(), TunnelKind::Vxlan, false);
    config.underlay().peers().next().unwrap().next_hop.set(None);
    let outcome = send(config, hex(INNER));
    assert_eq!(outcome.drops, [(PEERS[0].0, false, "no_neighbour", 1)]);
    assert_eq!(on_uplink(&outcome).len(), 1);
    assert!(outcome.received.contains(&(1, hex(INNER))));
}

#[test]
fn without_a_way_no_frame_to_that_peer_is_too_long() {
    let config = in_tunnels(two_ports(), TunnelKind::Vxlan, false);
    let mut underlay: Underlay = config.underlay().clone();
    underlay.tunnel.as_mut().unwrap().peers[0].uplink = None;
    let config = Config::with_underlay(config.networks().to_vec(), config.ports().to_vec(), underlay).unwrap();
    let mut rig = Rig::new(config);
    // To everybody, and to one whose place is known.
    rig.mac_table.learn(NetworkIndex(1), mac(9), PEERS[0], Now::default());
    for frame in [hex(INNER), Frame::udp4().to(mac(9)).bytes()] {
        let outcome = rig.step(Now::default(), PortIndex(0), vec![frame.into()]);
        assert_eq!(outcome.drops, [(PEERS[0].0, false, DropReason::PortGone.name(), 1)]);
    }
}

#[test]
fn the_inner_congestion_mark_is_repeated_outside_and_the_rest_of_the_byte_is_ours() {
    let mut inner = hex(INNER);
    inner[15] = 0xb9;
    inner[24..26].copy_from_slice(&checksum::updated(0x66bd, 0x4500, 0x45b9).to_be_bytes());
    let mut config = in_tunnels(two_ports(), TunnelKind::Vxlan, false);
    let mut underlay: Underlay = config.underlay().clone();
    underlay.tunnel.as_mut().unwrap().dscp = 10;
    config = Config::with_underlay(config.networks().to_vec(), config.ports().to_vec(), underlay).unwrap();
    let outcome = send(config, inner);
    let wrapped = on_uplink(&outcome)[0];
    assert_eq!(wrapped[15], 10 << 2 | 1);
    assert!(ipv4::Ipv4::new(&wrapped[14..]).unwrap().is_checksum_valid());
}

#[test]
fn a_network_on_a_vlan_has_its_tag_outside_and_no_tag_of_a_tenants_gets_there() {
    let double = Frame::udp4().vlan(200).bytes();
    let priority = Frame::udp4().vlan(0xe000).bytes();
    for frame in [hex(INNER), double, priority] {
        let outcome = send(on_vlans(vec![port(0, Some(1)), port(1, Some(1)), port(2, Some(2))]), frame.clone());
        let tagged = [&frame[..12], &[0x81, 0, 0, 100], &frame[12..]].concat();
        assert_eq!(outcome.received, [(1, frame), (UPLINK.0, tagged)]);
        assert!(outcome.drops.is_empty());
    }
}

#[test]
fn a_partial_checksum_moves_with_the_tag() {
    let mut rig = Rig::new(on_vlans(vec![port(0, Some(1))]));
    rig.mac_table.learn(NetworkIndex(1), mac(2), VLANS[0], Now::default());
    let claim = OffloadClaim { flags: F_NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..OffloadClaim::default() };
    let outcome = rig.step(Now::default(), PortIndex(0), vec![Input { claim, ..Frame::udp4().bytes().into() }]);
    // The fake port takes partial checksums: it is as it was.
    assert_eq!(outcome.received.len(), 1);
    assert_eq!(outcome.received[0].1[44..46], Frame::udp4().bytes()[40..42]);
}

#[test]
fn a_far_ends_bytes_are_those_of_its_network_both_ways_and_the_uplinks_those_of_the_wire() {
    let inner = hex(INNER).len() as u64;
    let tunnels = [TunnelKind::Vxlan, TunnelKind::Gre].map(|kind| in_tunnels(two_ports(), kind, false));
    for (config, far_end, header_len) in [(&tunnels[0], PEERS[0], 50), (&tunnels[1], PEERS[0], 42)] {
        let mut rig = Rig::new(config.clone());
        let sent = rig.step(Now::default(), PortIndex(0), vec![hex(INNER).into()]);
        assert_eq!((rig.bytes[&far_end.0], rig.bytes[&UPLINK.0]), ((0, inner), (0, 2 * (inner + header_len))));
        // As if the peer had sent the same.
        let mut back = on_uplink(&sent)[0].clone();
        let ip = ethernet::LEN;
        back[..6].copy_from_slice(&mac(0xaa).0);
        let (source, destination) = back[ip + 12..ip + 20].split_at_mut(4);
        source.swap_with_slice(destination);
        rig.step(Now::default(), UPLINK, vec![back.into()]);
        assert_eq!((rig.bytes[&far_end.0], rig.bytes[&UPLINK.0]), ((inner, 0), (inner + header_len, 0)));
    }
    // Of both kinds in one burst, as of a guest on two networks.
    let mixed =
        with_tunnel(&in_tunnels(vec![port(0, Some(1)), port(1, Some(2))], TunnelKind::Vxlan, false), |tunnel| {
            tunnel.networks[1].kind = TunnelKind::Gre;
        });
    let subport = SubportConfig { index: PortIndex(1), parent: PortIndex(0), vlan: VlanId::new(7).unwrap() };
    let mut rig = Rig::new(mixed.with_subports(vec![subport]).unwrap());
    let mut tagged = hex(INNER);
    tagged.splice(12..12, [0x81, 0, 0, 7]);
    rig.step(Now::default(), PortIndex(0), vec![hex(INNER).into(), tagged.into()]);
    assert_eq!((rig.bytes[&PEERS[0].0], rig.bytes[&UPLINK.0]), ((0, 2 * inner), (0, 4 * inner + 2 * (50 + 42))));
    let mut rig = Rig::new(on_vlans(two_ports()));
    rig.step(Now::default(), PortIndex(0), vec![hex(INNER).into()]);
    assert_eq!((rig.bytes[&VLANS[0].0], rig.bytes[&UPLINK.0]), ((0, inner), (0, inner + 4)));
}

/// The same config with another tunnel.
fn with_tunnel(config: &Config, change: impl FnOnce(&mut TunnelConfig)) -> Config {
    let mut underlay = config.underlay().clone();
    change(underlay.tunnel.as_mut().unwrap());
    Config::with_underlay(config.networks().to_vec(), config.ports().to_vec(), underlay).unwrap()
}

#[test]
fn as_nvgre_a_key_is_the_number_and_a_flow_id_that_is_one_flows_own_and_not_all_flows() {
    let nvgre = |ports| with_tunnel(&in_tunnels(ports, TunnelKind::Gre, false), |tunnel| tunnel.is_nvgre = true);
    let mut flows = std::collections::BTreeSet::new();
    for port_number in 1000..1032u16 {
        let mut inner = hex(INNER);
        inner[34..36].copy_from_slice(&port_number.to_be_bytes());
        let outcome = send(nvgre(two_ports()), inner.clone());
        let wrapped = on_uplink(&outcome)[0].clone();
        assert_eq!(wrapped[34..41], [0x20, 0, 0x65, 0x58, 0, 0x13, 0x89], "key present, bridging, VSID 5001");
        assert_eq!(on_uplink(&send(nvgre(two_ports()), inner))[0][41], wrapped[41]);
        flows.insert(wrapped[41]);
    }
    assert!(flows.len() > 8, "{flows:?}");

    // And back: whatever the flow id.
    for flow in [0, 0x5a, 0xff] {
        let mut frame = [hex(GRE), hex(INNER)].concat();
        frame[..6].copy_from_slice(&mac(0xaa).0);
        (frame[29], frame[33]) = (2, 1);
        frame[38..42].copy_from_slice(&[0, 0x13, 0x89, flow]);
        let outcome = Rig::new(nvgre(two_ports())).step(Now::default(), UPLINK, vec![frame.into()]);
        assert_eq!(outcome.received, [(0, hex(INNER)), (1, hex(INNER))], "{:?}", outcome.drops);
    }
}

#[test]
fn in_a_vlan_of_the_underlay_outer_frames_have_its_tag_both_ways_and_only_then() {
    for (kind, is_ipv6) in TunnelKind::ALL.into_iter().flat_map(|kind| [(kind, false), (kind, true)]) {
        let plain = in_tunnels(two_ports(), kind, is_ipv6);
        let mut underlay = plain.underlay().clone();
        underlay.uplinks[0].tags.underlay = VlanId::new(50);
        let tagged = Config::with_underlay(plain.networks().to_vec(), plain.ports().to_vec(), underlay).unwrap();
        let (without, with) = (send(plain.clone(), hex(INNER)), send(tagged.clone(), hex(INNER)));
        let mut expected = on_uplink(&without)[0].clone();
        expected.splice(12..12, [0x81, 0, 0, 50]);
        assert_eq!(*on_uplink(&with)[0], expected, "{kind:?}");
        assert!(with.received.contains(&(1, hex(INNER))), "taken off again");

        // The same from the peer.
        let (l3, len) = if is_ipv6 { (8, 16) } else { (12, 4) };
        let mut back = expected;
        back[..6].copy_from_slice(&mac(0xaa).0);
        let (first, second) = (18 + l3, 18 + l3 + len);
        let addresses = [back[second..second + len].to_vec(), back[first..second].to_vec()].concat();
        back[first..second + len].copy_from_slice(&addresses);
        let receive =
            |config: &Config, frame: Vec<u8>| Rig::new(config.clone()).step(Now::default(), UPLINK, vec![frame.into()]);
        assert_eq!(receive(&tagged, back.clone()).received, [(0, hex(INNER)), (1, hex(INNER))], "{kind:?}");
        assert!(receive(&plain, back.clone()).received.is_empty(), "a tag where there should be none");
        back.drain(12..16);
        assert!(receive(&tagged, back.clone()).received.is_empty(), "no tag where there should be one");
        assert_eq!(receive(&plain, back).received.len(), 2);
    }
}

#[test]
fn of_a_path_that_takes_less_than_the_uplink_the_path_counts() {
    let narrow = |mtu| {
        let config = in_tunnels(two_ports(), TunnelKind::Vxlan, false);
        with_tunnel(&config, |tunnel| tunnel.peers[0].path_mtu = Some(mtu))
    };
    let inner = Frame::udp4().to(switch::ids::MacAddr::BROADCAST).payload(1300).bytes();
    let outer_len = (inner.len() + 36) as u16;
    assert_eq!(on_uplink(&send(narrow(outer_len), inner.clone())).len(), 2);
    let outcome = send(narrow(outer_len - 1), inner);
    assert_eq!(on_uplink(&outcome).len(), 1, "only to the other peer");
    assert_eq!(outcome.drops, [(PEERS[0].0, false, "over_mtu", 1)]);
}
