//! Senders of packets that are too long for a tunnel, read with etherparse.

use super::*;
use crate::encap::tests::hex;
use crate::tests::frames::{Frame, any_frame};
use crate::tests::rig::{Input, Outcome, PEERS, Rig, VLANS, in_tunnels, mac, on_vlans, port};
use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Slice, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice, icmpv4};
use proptest::prelude::*;
use switch::config::PortConfig;
use switch::ids::NetworkIndex;
use switch::offload::{F_NEEDS_CSUM, GSO_TCPV4, OffloadClaim};
use switch::underlay::TunnelKind;

/// 1,600 bytes of the uplink less IPv4, UDP, VXLAN and the inner Ethernet header.
const MTU: u16 = 1550;

fn wide(index: u16) -> PortConfig {
    PortConfig { mtu: 9000, ..port(index, Some(1)) }
}

/// Ports 0 and 1 take 9,000 bytes; 02:…:02 lives at the first peer, and frames come from 02:…:01.
fn rig() -> Rig {
    let rig = Rig::new(in_tunnels(vec![wide(0), wide(1)], TunnelKind::Vxlan, false));
    rig.mac_table.learn(NetworkIndex(1), mac(2), PEERS[0], Now::default());
    rig
}

fn send(input: impl Into<Input>) -> Outcome {
    rig().step(Now::default(), PortIndex(0), vec![input.into()])
}

/// The one answer, which went to port 0; the packet was dropped at the peer.
fn answer_of(outcome: &Outcome) -> &[u8] {
    assert_eq!(outcome.drops, [(PEERS[0].0, false, "over_mtu", 1)]);
    let [(0, answer)] = &outcome.received[..] else { panic!("{outcome:?}") };
    answer
}

fn is_silent(outcome: &Outcome) -> bool {
    assert_eq!(outcome.drops, [(PEERS[0].0, false, "over_mtu", 1)]);
    outcome.received.is_empty()
}

#[test]
fn who_sends_too_long_a_packet_into_a_tunnel_hears_from_its_destination_how_long_it_may_be() {
    for (kind, packet) in [("udp", Frame::udp4()), ("tcp", Frame::tcp4()), ("echo", Frame::icmp4())] {
        let sent = packet.from(mac(1)).to(mac(2)).payload(1551).bytes();
        let outcome = send(sent.clone());
        let answer = answer_of(&outcome);
        assert_eq!((&answer[..6], &answer[6..12]), (&mac(1).0[..], &mac(2).0[..]), "{kind}");
        let parsed = SlicedPacket::from_ethernet(answer).unwrap();
        let Some(NetSlice::Ipv4(ip)) = &parsed.net else { panic!("{kind}") };
        let header = ip.header();
        assert_eq!(
            (header.source(), header.destination()),
            (sent[30..34].try_into().unwrap(), sent[26..30].try_into().unwrap())
        );
        assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum());
        let Some(TransportSlice::Icmpv4(icmp)) = parsed.transport else { panic!("{kind}") };
        let header = Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::FragmentationNeeded {
            next_hop_mtu: MTU,
        });
        assert_eq!(icmp.icmp_type(), header);
        assert_eq!(icmp.checksum(), Icmpv4Header::with_checksum(header, icmp.payload()).checksum);
        assert_eq!(icmp.payload(), &sent[14..14 + QUOTE_MAX]);
    }
    for packet in [Frame::udp6(), Frame::tcp6(), Frame::icmp6()] {
        let sent = packet.from(mac(1)).to(mac(2)).payload(1551).bytes();
        let outcome = send(sent.clone());
        let parsed = SlicedPacket::from_ethernet(answer_of(&outcome)).unwrap();
        let Some(NetSlice::Ipv6(ip)) = &parsed.net else { panic!() };
        let (source, destination) = (ip.header().source(), ip.header().destination());
        assert_eq!((&source[..], &destination[..]), (&sent[38..54], &sent[22..38]));
        let Some(TransportSlice::Icmpv6(icmp)) = parsed.transport else { panic!() };
        assert_eq!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu: MTU.into() });
        assert!(Icmpv6Slice::is_checksum_valid(&icmp, source, destination));
        assert_eq!(icmp.payload(), &sent[14..14 + QUOTE_MAX]);
    }
}

#[test]
fn a_trace_tells_that_the_sender_is_told() {
    let trace = |frame: Frame| rig().trace(Now::default(), PortIndex(0), &frame.from(mac(1)).to(mac(2)).bytes().into());
    let told = trace(Frame::udp4().payload(1551)).pop().unwrap();
    assert!(told.ends_with("drop over_mtu, counted there, and its sender told by ICMP"), "{told}");
    let tagged = trace(Frame::udp4().payload(1551).vlan(7)).pop().unwrap();
    assert!(tagged.ends_with("drop over_mtu, counted there"), "{tagged}");
}

#[test]
fn a_large_frame_that_would_be_cut_too_long_is_answered_whole_and_once() {
    let bytes = Frame::tcp4().from(mac(1)).to(mac(2)).payload(8000).bytes();
    let claim = |size| OffloadClaim {
        flags: F_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: size,
        csum_start: 34,
        csum_offset: 16,
    };
    let large = |size| Input { claim: claim(size), ..Input::from(bytes.clone()) };
    assert_eq!(answer_of(&send(large(1511))).len(), 14 + 20 + 8 + QUOTE_MAX);
    assert!(send(large(1510)).drops.is_empty(), "each segment fits");
}

#[test]
fn on_a_vlan_the_uplinks_mtu_is_told() {
    let mut rig = Rig::new(on_vlans(vec![wide(0)]));
    rig.mac_table.learn(NetworkIndex(1), mac(2), VLANS[0], Now::default());
    let frame = Frame::udp4().from(mac(1)).to(mac(2)).payload(1573).bytes();
    let outcome = rig.step(Now::default(), PortIndex(0), vec![frame.into()]);
    let [(0, answer)] = &outcome.received[..] else { panic!("{outcome:?}") };
    assert_eq!(answer[40..42], 1600u16.to_be_bytes());
}

#[test]
fn what_nobody_may_be_told_of_is_dropped_in_silence() {
    let long = |frame: Frame| frame.from(mac(1)).to(mac(2)).payload(1551);
    let with = |mut bytes: Vec<u8>, at: usize, value: &[u8]| {
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes
    };
    let (v4, v6) = (long(Frame::udp4()).bytes(), long(Frame::udp6()).bytes());
    for (why, frame) in [
        ("an error", with(long(Frame::icmp4()).bytes(), 34, &[3, 4])),
        ("an error of IPv6", with(long(Frame::icmp6()).bytes(), 54, &[2, 0])),
        ("a later fragment", long(Frame::udp4()).fragment(100, true).bytes()),
        ("a fragment of IPv6", with(v6.clone(), 20, &[44])),
        ("from nobody", with(v4.clone(), 26, &[0; 4])),
        ("from a group", with(v4.clone(), 26, &[224, 0, 0, 1])),
        ("to a group", with(v4.clone(), 30, &[224, 0, 0, 1])),
        ("from nobody by IPv6", with(v6.clone(), 22, &[0; 16])),
        ("to a group by IPv6", with(v6, 38, &[0xff, 2])),
        ("no IP", with(v4, 12, &[0x88, 0xb5])),
        ("in a VLAN of the tenant's", long(Frame::udp4()).vlan(5).bytes()),
    ] {
        assert!(is_silent(&send(frame)), "{why}");
    }
    let unknown = send(Frame::udp4().from(mac(1)).to(mac(9)).payload(1551).bytes());
    assert!(unknown.received.iter().all(|(port, _)| *port == 1), "flooded: {unknown:?}");
    // A port of this host that takes less is no way.
    let mut rig = Rig::new(in_tunnels(vec![wide(0), port(1, Some(1))], TunnelKind::Vxlan, false));
    rig.mac_table.learn(NetworkIndex(1), mac(2), PortIndex(1), Now::default());
    let outcome = rig.step(Now::default(), PortIndex(0), vec![long(Frame::udp4()).bytes().into()]);
    assert_eq!((outcome.received.len(), outcome.drops), (0, vec![(1, false, "over_mtu", 1)]));
}

#[test]
fn a_port_is_told_so_often_at_once_and_then_at_a_rate_and_its_neighbours_are_told_besides() {
    let mut rig = rig();
    let frame = Frame::udp4().from(mac(1)).to(mac(2)).payload(1551).bytes();
    let mut told = |port, ns, count| {
        let inputs = vec![frame.clone().into(); count];
        rig.step(Now { ns }, PortIndex(port), inputs).received.len()
    };
    let second = 1_000_000_000;
    assert_eq!(told(0, second, 64), ANSWERS_AT_ONCE as usize);
    assert_eq!(told(0, second + ANSWER_PAUSE_NS - 1, 64), 0);
    assert_eq!(told(0, second + 3 * ANSWER_PAUSE_NS, 64), 3);
    assert_eq!(told(1, second + 3 * ANSWER_PAUSE_NS, 64), ANSWERS_AT_ONCE as usize);
    assert_eq!(told(0, 100 * second, 64), ANSWERS_AT_ONCE as usize);
}

proptest! {
    #[test]
    fn whatever_is_too_long_at_most_its_sender_is_told_and_the_books_balance(frame in any_frame(), fill in 1600usize..2000) {
        let mut long = frame;
        long.resize(fill, 0xee);
        long[..6].copy_from_slice(&mac(2).0);
        let outcome = send(long.clone());
        for (port, answer) in &outcome.received {
            if *port == 0 {
                prop_assert_eq!(&answer[..6], &long[6..12]);
                prop_assert!(answer.len() <= FRAME_MAX);
            }
        }
    }
}

#[test]
fn a_head_that_ends_early_makes_no_answer_or_a_short_one() {
    let frame = hex("020000000002020000000001080045000064000000004011000a0a0000010a000002");
    for len in 0..frame.len() {
        let mut batch = Batch::new();
        let input =
            Input { bytes: [&frame[..len], &[0; 2000]].concat(), claim: OffloadClaim::default(), head_len: len };
        crate::tests::rig::put(&mut batch, PortIndex(0), &input);
        answer(&Budget::new(1), PortIndex(0), Now::default(), &mut batch, 0, MTU);
    }
}
