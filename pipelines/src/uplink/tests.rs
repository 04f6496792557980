//! What comes in by an uplink: opened, refused and counted, or nobody's.

use super::*;
use crate::encap::tests::{GENEVE, GRE, INNER, VXLAN, hex};
use crate::tests::frames::Frame;
use crate::tests::rig::{Input, Outcome, PEERS, Rig, UPLINK, VLANS, in_tunnels, mac, on_vlans, port};
use crate::underlay::UnderlayTables;
use proptest::prelude::*;
use switch::batch::BURST;
use switch::checksum;
use switch::config::Config;
use switch::ids::QueueIndex;
use switch::offload::{F_NEEDS_CSUM, OffloadClaim};
use switch::underlay::{ToldConfig, Underlay, VlanId};
use switch::worker::Now;

/// A vector as the first peer would send it to us.
fn from_peer(vector: &str) -> Vec<u8> {
    let mut bytes = hex(vector);
    bytes[..6].copy_from_slice(&mac(0xaa).0);
    bytes[6..12].copy_from_slice(&mac(0xb1).0);
    (bytes[29], bytes[33]) = (2, 1);
    bytes
}

fn wrapped(vector: &str) -> Vec<u8> {
    [from_peer(vector), hex(INNER)].concat()
}

/// Ports 0 and 1 are on network 1 and 2 on network 2.
fn rig(kind: TunnelKind) -> Rig {
    Rig::new(in_tunnels(vec![port(0, Some(1)), port(1, Some(1)), port(2, Some(2))], kind, false))
}

fn receive(rig: &mut Rig, frame: impl Into<Input>) -> Outcome {
    rig.step(Now::default(), UPLINK, vec![frame.into()])
}

/// How a vector that was changed is refused, or the ports that get the frame.
fn outcome(kind: TunnelKind, frame: Vec<u8>) -> Result<Vec<u16>, Vec<(u16, &'static str)>> {
    let outcome = receive(&mut rig(kind), frame);
    if outcome.drops.is_empty() {
        Ok(outcome.received.iter().map(|(port, _)| *port).collect())
    } else {
        assert!(outcome.received.is_empty());
        Err(outcome.drops.iter().map(|(port, _, reason, _)| (*port, *reason)).collect())
    }
}

fn with_checksum(mut frame: Vec<u8>) -> Vec<u8> {
    frame[24..26].fill(0);
    let sum = crate::wire::checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn changed(vector: &str, at: usize, value: u8) -> Vec<u8> {
    let mut frame = wrapped(vector);
    frame[at] = value;
    if (14..34).contains(&at) { with_checksum(frame) } else { frame }
}

const KINDS: [(TunnelKind, &str); 3] =
    [(TunnelKind::Vxlan, VXLAN), (TunnelKind::Geneve, GENEVE), (TunnelKind::Gre, GRE)];

#[test]
fn a_frame_from_a_peer_reaches_the_ports_of_its_network_and_no_other_peer() {
    for (kind, vector) in KINDS {
        let mut rig = rig(kind);
        let outcome = receive(&mut rig, with_checksum(wrapped(vector)));
        assert_eq!(outcome.received, [(0, hex(INNER)), (1, hex(INNER))], "{kind:?}");
        assert!(outcome.drops.is_empty());
        let learnt = rig.mac_table.lookup(NetworkIndex(1), mac(1), Now::default());
        assert_eq!(learnt, Some(PEERS[0]), "and where it came from is known");
    }
}

#[test]
fn its_head_may_end_anywhere() {
    for (_, vector) in KINDS {
        let frame = with_checksum(wrapped(vector));
        for head_len in 0..=frame.len() {
            let kind = KINDS.iter().find(|(_, it)| *it == vector).unwrap().0;
            let outcome = receive(&mut rig(kind), Input { head_len, ..frame.clone().into() });
            assert_eq!(outcome.received.len(), 2, "{kind:?} with a head of {head_len}: {:?}", outcome.drops);
            assert!(outcome.received.iter().all(|(_, bytes)| *bytes == hex(INNER)));
        }
    }
}

#[test]
fn a_frame_that_ends_early_is_refused_and_bytes_behind_it_are_cut_off() {
    for (kind, vector) in KINDS {
        let frame = with_checksum(wrapped(vector));
        for len in 0..frame.len() {
            assert!(outcome(kind, frame[..len].to_vec()).is_err(), "{kind:?} cut to {len} bytes");
        }
        for head_len in [60, 128, 600] {
            let padded = [frame.clone(), vec![0xee; 70]].concat();
            let outcome = receive(&mut rig(kind), Input { head_len, ..padded.into() });
            assert_eq!(outcome.received, [(0, hex(INNER)), (1, hex(INNER))]);
        }
    }
}

#[test]
fn strangers_and_unknown_numbers_are_refused_and_counted_at_the_uplink() {
    let at_uplink = |reason| Err(vec![(UPLINK.0, reason)]);
    for (kind, vector) in KINDS {
        assert_eq!(outcome(kind, changed(vector, 29, 9)), at_uplink("tunnel_unknown_source"));
        let number_at = if kind == TunnelKind::Gre { 41 } else { 48 };
        assert_eq!(outcome(kind, changed(vector, number_at, 0x77)), at_uplink("tunnel_unknown_network"), "{kind:?}");
        // The number of another network is that network's.
        assert_eq!(outcome(kind, changed(vector, number_at, 0x8a)), Ok(vec![2]), "{kind:?}");
        for (other, _) in KINDS.iter().filter(|(other, _)| *other != kind) {
            assert_eq!(outcome(*other, wrapped_right(vector)), at_uplink("tunnel_unknown_network"));
        }
    }
}

#[test]
fn who_is_told_to_have_no_port_of_a_network_sends_nothing_there() {
    let config = in_tunnels(vec![port(0, Some(1)), port(1, Some(2))], TunnelKind::Vxlan, false);
    let member = |network: u16| {
        let told = ToldConfig {
            peers: vec![PEERS[0]],
            members: vec![(NetworkIndex(network), PEERS[0])],
            stations: Vec::new(),
        };
        let underlay = Underlay { told, ..config.underlay().clone() };
        Config::with_underlay(config.networks().to_vec(), config.ports().to_vec(), underlay).unwrap()
    };
    let outcome = receive(&mut Rig::new(member(1)), wrapped_right(VXLAN));
    assert_eq!(outcome.received, [(0, hex(INNER))]);
    let outcome = receive(&mut Rig::new(member(2)), wrapped_right(VXLAN));
    assert!(outcome.received.is_empty());
    assert_eq!(outcome.drops[0].2, "tunnel_unknown_network");
}

fn wrapped_right(vector: &str) -> Vec<u8> {
    with_checksum(wrapped(vector))
}

#[test]
fn what_the_formats_forbid_is_refused() {
    let at_uplink = |reason| Err(vec![(UPLINK.0, reason)]);
    let malformed = at_uplink("tunnel_malformed");
    // RFC 7348 section 5: no VNI; RFC 8926: version, control, critical, protocol; RFC 2784: reserved bits, version.
    assert_eq!(outcome(TunnelKind::Vxlan, changed(VXLAN, 42, 0)), malformed);
    for (at, value) in [(42, 0x40), (43, 0x80), (43, 0x40), (45, 0)] {
        assert_eq!(outcome(TunnelKind::Geneve, changed(GENEVE, at, value)), malformed, "byte {at}");
    }
    for (at, value) in [(34, 0x60), (35, 1), (37, 0), (34, 0)] {
        assert_eq!(outcome(TunnelKind::Gre, changed(GRE, at, value)), malformed, "byte {at}");
    }
    // The IP header's checksum, more than there is, UDP's length beyond IP's.
    let mut broken = wrapped_right(VXLAN);
    broken[24] ^= 1;
    assert_eq!(outcome(TunnelKind::Vxlan, broken), malformed);
    assert_eq!(outcome(TunnelKind::Vxlan, changed(VXLAN, 17, 0x61)), malformed);
    assert_eq!(outcome(TunnelKind::Vxlan, changed(VXLAN, 39, 0x4d)), malformed);
    assert_eq!(outcome(TunnelKind::Vxlan, changed(VXLAN, 39, 12)), at_uplink("truncated"));
    // Fragments of the outer packet.
    assert_eq!(outcome(TunnelKind::Vxlan, changed(VXLAN, 20, 0x20)), at_uplink("tunnel_fragment"));
}

#[test]
fn a_gre_checksum_is_verified_and_a_sequence_number_skipped() {
    let inner = hex(INNER);
    let mut gre = vec![0xb0, 0, 0x65, 0x58, 0, 0, 0, 0, 0, 0, 0x13, 0x89, 0, 0, 0, 9];
    let sum = crate::wire::checksum(&[gre.clone(), inner.clone()].concat());
    gre[4..6].copy_from_slice(&sum.to_be_bytes());
    let mut frame = [from_peer(GRE)[..34].to_vec(), gre, inner].concat();
    let len = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&len.to_be_bytes());
    let frame = with_checksum(frame);
    assert_eq!(outcome(TunnelKind::Gre, frame.clone()), Ok(vec![0, 1]));
    let mut broken = frame;
    *broken.last_mut().unwrap() ^= 1;
    assert_eq!(outcome(TunnelKind::Gre, broken), Err(vec![(UPLINK.0, "tunnel_malformed")]));
}

#[test]
fn geneve_options_are_skipped() {
    let mut frame = from_peer(GENEVE);
    frame[42] = 1;
    frame.extend([0x01, 0x02, 0x03, 0x00]);
    frame.extend(hex(INNER));
    frame[17] += 4;
    frame[39] += 4;
    assert_eq!(outcome(TunnelKind::Geneve, with_checksum(frame)), Ok(vec![0, 1]));
}

#[test]
fn frames_for_others_on_an_uplink_of_ours_alone_are_told_and_on_a_shared_one_are_the_hosts() {
    // The last one is of a VLAN that no network here is.
    let tagged = [&Frame::tcp4().bytes()[..12], &[0x81, 0, 0, 200], &Frame::tcp4().bytes()[12..]].concat();
    let not_ours = [changed(VXLAN, 5, 1), changed(VXLAN, 33, 7), changed(VXLAN, 37, 1), Frame::tcp4().bytes(), tagged];
    for frame in not_ours {
        assert_eq!(outcome(TunnelKind::Vxlan, frame.clone()), Err(vec![(UPLINK.0, "not_ours")]));
        let config = in_tunnels(vec![port(0, Some(1))], TunnelKind::Vxlan, false);
        let mut underlay = config.underlay().clone();
        underlay.uplinks[0].is_shared = true;
        let config = Config::with_underlay(config.networks().to_vec(), config.ports().to_vec(), underlay).unwrap();
        assert_eq!(receive(&mut Rig::new(config), frame), Outcome::default());
    }
}

#[test]
fn no_peer_gets_what_another_peer_sent() {
    let mut rig = rig(TunnelKind::Vxlan);
    rig.mac_table.learn(NetworkIndex(1), mac(2), PEERS[1], Now::default());
    let outcome = receive(&mut rig, wrapped_right(VXLAN));
    assert!(outcome.received.is_empty());
    assert_eq!(outcome.drops, [(PEERS[0].0, true, "split_horizon", 1)]);
}

#[test]
fn a_burst_of_several_networks_and_peers_is_sorted_out() {
    let mut rig = rig(TunnelKind::Vxlan);
    let to_second = |frame: Vec<u8>| {
        let mut frame = frame;
        frame[29] = 3;
        with_checksum(frame)
    };
    let (one, two) = (wrapped_right(VXLAN), changed(VXLAN, 48, 0x8a));
    let other = |frame: &Vec<u8>| to_second([frame[..61].to_vec(), vec![5], frame[62..].to_vec()].concat());
    let burst = [&one, &one, &two, &other(&one), &two, &one].map(|frame| Input::from(frame.clone())).to_vec();
    let outcome = rig.step(Now::default(), UPLINK, burst);
    let count = |port: u16| outcome.received.iter().filter(|(to, _)| *to == port).count();
    assert_eq!([count(0), count(1), count(2), count(UPLINK.0)], [4, 4, 2, 0], "{:?}", outcome.drops);
    let lives = |network, last| rig.mac_table.lookup(NetworkIndex(network), mac(last), Now::default());
    assert_eq!([lives(1, 1), lives(2, 1), lives(1, 5)], [Some(PEERS[0]), Some(PEERS[0]), Some(PEERS[1])]);
}

#[test]
fn congestion_marks_come_out_of_the_tunnel_by_rfc_6040() {
    // Rows: the inner mark; columns: the outer one, Not-ECT, ECT(0) as 2, ECT(1) as 1, CE (figure 4 of RFC 6040).
    let (ect0, ect1, ce) = (2u8, 1u8, 3u8);
    let table: [(u8, [Option<u8>; 4]); 4] = [
        (0, [Some(0), Some(0), Some(0), None]),
        (ect0, [Some(ect0), Some(ect0), Some(ect1), Some(ce)]),
        (ect1, [Some(ect1), Some(ect1), Some(ect1), Some(ce)]),
        (ce, [Some(ce); 4]),
    ];
    for (inner, row) in table {
        for (outer, expected) in [0, ect0, ect1, ce].into_iter().zip(row) {
            let mut frame = changed(VXLAN, 15, outer);
            frame[50 + 15] = inner;
            let sum = checksum::updated(0x66bd, 0x4500, 0x4500 | u16::from(inner));
            frame[50 + 24..50 + 26].copy_from_slice(&sum.to_be_bytes());
            let outcome = receive(&mut rig(TunnelKind::Vxlan), frame);
            let got = outcome.received.first().map(|(_, bytes)| {
                assert!(Ipv4::new(&bytes[14..]).unwrap().is_checksum_valid(), "{inner} in {outer}");
                bytes[15]
            });
            assert_eq!(got, expected, "{inner} in {outer}");
            assert_eq!(outcome.drops.is_empty(), expected.is_some());
        }
    }
}

#[test]
fn a_partial_checksum_inside_the_tunnel_is_the_inner_frames() {
    let claim = OffloadClaim { flags: F_NEEDS_CSUM, csum_start: 84, csum_offset: 6, ..OffloadClaim::default() };
    let frame = wrapped_right(VXLAN);
    let outcome = receive(&mut rig(TunnelKind::Vxlan), Input { claim, ..frame.clone().into() });
    assert_eq!(outcome.received.len(), 2);
    let elsewhere = OffloadClaim { csum_start: 90, ..claim };
    let outcome = receive(&mut rig(TunnelKind::Vxlan), Input { claim: elsewhere, ..frame.clone().into() });
    assert_eq!(outcome.drops, [(PEERS[0].0, true, "bad_offload", 1)]);
    // Of the outer header's own checksum nothing is left when it is off.
    let outer = OffloadClaim { csum_start: 34, ..claim };
    assert_eq!(receive(&mut rig(TunnelKind::Vxlan), Input { claim: outer, ..frame.into() }).received.len(), 2);
}

#[test]
fn a_vlan_is_its_networks_and_what_is_behind_the_tag_is_payload() {
    let ports = vec![port(0, Some(1)), port(1, Some(2))];
    let inner = Frame::udp4().vlan(200).bytes();
    for (tag, frame, expected) in
        [(100u16, hex(INNER), 0u16), (0xe064, hex(INNER), 0), (200, hex(INNER), 1), (100, inner, 0)]
    {
        let [high, low] = tag.to_be_bytes();
        let tagged = [&frame[..12], &[0x81, 0, high, low], &frame[12..]].concat();
        for head_len in [0, 13, 15, 17, 128] {
            let mut rig = Rig::new(on_vlans(ports.clone()));
            let outcome = receive(&mut rig, Input { head_len, ..tagged.clone().into() });
            assert_eq!(outcome.received, [(expected, frame.clone())], "tag {tag:#x}, head of {head_len}");
            let learnt = rig.mac_table.lookup(NetworkIndex(expected + 1), mac(1), Now::default());
            assert_eq!(learnt, Some(VLANS[usize::from(expected)]));
        }
    }
}

#[test]
fn a_station_that_came_here_from_another_host_is_found_here_however_much_others_behind_that_say() {
    let second = |seconds: u64| Now { ns: seconds * 1_000_000_000 };
    let from = |number: u8| Frame::udp4().from(mac(number)).to(mac(0x77)).bytes();
    let tagged = |number| {
        let mut frame = from(number);
        frame.splice(12..12, [0x81, 0, 0, 100]);
        frame
    };
    let mut rig = Rig::new(on_vlans(vec![port(0, Some(1)), port(1, Some(1))]));
    rig.step(second(1), UPLINK, vec![tagged(9).into()]);
    for at in 2..=6 {
        rig.step(second(at), UPLINK, vec![tagged(8).into()]);
        rig.step(second(at), PortIndex(0), vec![from(9).into()]);
        let known = rig.mac_table.lookup(NetworkIndex(1), mac(9), second(at));
        assert_eq!(known, Some(if at < 6 { VLANS[0] } else { PortIndex(0) }), "after {at} seconds");
    }
}

#[test]
fn untagged_priority_tagged_and_unknown_vlans_are_on_no_network() {
    let tagged = |kind: [u8; 2], tag: u16| {
        let frame = hex(INNER);
        [&frame[..12], &kind, &tag.to_be_bytes(), &frame[12..]].concat()
    };
    for frame in [
        hex(INNER),
        tagged([0x81, 0], 0xe000),
        tagged([0x81, 0], 101),
        tagged([0x81, 0], 4095),
        tagged([0x88, 0xa8], 100),
    ] {
        let outcome = receive(&mut Rig::new(on_vlans(vec![port(0, Some(1))])), frame);
        assert_eq!(outcome.drops, [(UPLINK.0, true, "not_ours", 1)]);
    }
}

#[test]
fn a_trace_tells_who_sent_a_frame_and_what_becomes_of_it() {
    let rig = rig(TunnelKind::Vxlan);
    let trace = rig.trace(Now::default(), UPLINK, &wrapped_right(VXLAN).into());
    assert_eq!(
        trace[0],
        "uplink: vxlan 5001 from 192.0.2.2, 50 bytes of outer headers: network 1 \"blue\" of port 13 \"tunnel:192.0.2.2\""
    );
    assert!(trace.last().unwrap().ends_with("flood to port 0 \"vm-0\", port 1 \"vm-1\""), "{trace:?}");
    let stranger = rig.trace(Now::default(), UPLINK, &changed(VXLAN, 29, 9).into());
    assert!(
        stranger[0].ends_with("drop tunnel_unknown_source, counted at port 10 \"uplink:physnet1\""),
        "{stranger:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn noise_is_read_without_harm_and_nothing_is_opened_beyond_its_end(
        kind in 0usize..3,
        at in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        head_len in 0usize..200,
    ) {
        let (kind, vector) = KINDS[kind];
        let mut frame = wrapped_right(vector);
        for (at, value) in at {
            let at = at.index(frame.len());
            frame[at] = value;
        }
        let frame = with_checksum(frame)[..=cut.index(frame_len(vector))].to_vec();
        let config = in_tunnels(vec![port(0, Some(1))], kind, false);
        let tables = UnderlayTables::compile(&config);
        let head = &frame[..head_len.min(frame.len())];
        match decide(tables.uplink(UPLINK).unwrap(), tables.tunnel.as_ref(), head, frame.len()) {
            Ok(Found::Tunnel(opened)) => {
                prop_assert!(opened.header_len + 14 <= opened.end && opened.end <= frame.len());
                prop_assert!(opened.header_len <= head.len());
            }
            Err(Stop::Pull) => prop_assert!(head.len() < frame.len()),
            _ => {}
        }
        let outcome = receive(&mut rig(kind), Input { head_len, ..frame.into() });
        prop_assert!(outcome.received.iter().all(|(port, _)| *port != UPLINK.0));
    }

    #[test]
    fn what_is_told_at_a_glance_is_what_is_read_step_by_step(
        kind in 0usize..3,
        is_nvgre: bool,
        tag in proptest::option::of(1u16..4095),
        at in proptest::collection::vec((0usize..92, any::<u8>()), 0..3),
        padding in prop_oneof![Just(0), 1..40usize],
    ) {
        let (kind, vector) = KINDS[kind];
        let mut frame = wrapped_right(vector);
        let is_changed = !at.is_empty();
        for (at, value) in at {
            frame[at] = value;
        }
        let mut frame = with_checksum(frame);
        if let Some(tag) = tag {
            frame.splice(12..12, [0x81, 0, tag.to_be_bytes()[0], tag.to_be_bytes()[1]]);
        }
        let config = in_tunnels(vec![port(0, Some(1))], kind, false);
        let mut underlay = config.underlay().clone();
        underlay.uplinks[0].tags.underlay = tag.and_then(VlanId::new);
        underlay.tunnel.as_mut().unwrap().is_nvgre = is_nvgre;
        let config = Config::with_underlay(config.networks().to_vec(), config.ports().to_vec(), underlay).unwrap();
        let tables = UnderlayTables::compile(&config);
        let (uplink, tunnel) = (tables.uplink(UPLINK).unwrap(), tables.tunnel.as_ref());
        let mut quick = Quick::new(&uplink.shapes);
        let mut batch = Batch::new();
        batch.clear(BURST, usize::MAX);
        let mut packet = batch.start(UPLINK, QueueIndex(0)).unwrap();
        frame.resize(frame.len() + padding, 0);
        packet.head(frame.len()).unwrap().copy_from_slice(&frame);
        packet.commit(OffloadClaim::default());
        let seen = quick.look(&batch.packets()[0]);
        prop_assert!(seen.is_some() || is_changed || padding > 0);
        if let Some((shape, seen)) = seen {
            let (source, number) = shape.sender(seen);
            let opened = Opened {
                kind: shape.kind(),
                source: source.into(),
                number,
                header_len: shape.header_len(),
                end: frame.len(),
                ecn: seen.ecn,
                checksum_from: 0,
            };
            prop_assert_eq!(decide(uplink, tunnel, &frame, frame.len()), Ok(Found::Tunnel(opened)));
        }
    }
}

#[test]
fn a_wrong_header_checksum_is_noticed_at_a_glance_as_well() {
    let tables = UnderlayTables::compile(&in_tunnels(vec![port(0, Some(1))], TunnelKind::Vxlan, false));
    let [shape, ..] = tables.uplink(UPLINK).unwrap().shapes.as_slice() else { panic!("there are tunnels") };
    let right = wrapped_right(VXLAN);
    assert!(shape.read(right.first_chunk().unwrap(), right.len()).is_some());
    for bit in 8 * 14..8 * 34 {
        let mut wrong = right.clone();
        wrong[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(shape.read(wrong.first_chunk().unwrap(), wrong.len()), None, "bit {bit}");
    }
}

#[test]
fn a_peers_frame_is_refused_where_that_peer_is_not_reached() {
    for (kind, vector) in KINDS {
        let config = in_tunnels(vec![port(0, Some(1))], kind, false);
        let mut underlay = config.underlay().clone();
        underlay.tunnel.as_mut().unwrap().peers[0].uplink = None;
        let config = Config::with_underlay(config.networks().to_vec(), config.ports().to_vec(), underlay).unwrap();
        let outcome = receive(&mut Rig::new(config), wrapped_right(vector));
        assert!(outcome.received.is_empty(), "{kind:?}");
        assert_eq!(outcome.drops[0].2, "tunnel_unknown_source", "{kind:?}");
    }
}

#[test]
fn a_mark_that_a_frame_inside_cannot_carry_refuses_it_and_nothing_inside_is_taken_for_outer_headers() {
    let mut rig = rig(TunnelKind::Vxlan);
    // A tenant's frame that is itself a frame in a tunnel of ours.
    let mut nested = [from_peer(VXLAN), wrapped_right(VXLAN)].concat();
    let len = nested.len() as u16;
    nested[15] |= 3;
    nested[16..18].copy_from_slice(&(len - 14).to_be_bytes());
    nested[38..40].copy_from_slice(&(len - 34).to_be_bytes());
    let outcome = receive(&mut rig, with_checksum(nested));
    assert!(outcome.received.is_empty());
    assert_eq!(outcome.drops.len(), 1);
    assert_eq!(outcome.drops[0].2, "tunnel_congested");
}

#[test]
fn frames_of_several_senders_and_networks_in_one_burst_are_told_apart() {
    let mut rig = rig(TunnelKind::Vxlan);
    let mut second = wrapped_right(VXLAN);
    second[29] = 3;
    let mut other = wrapped_right(VXLAN);
    other[48] += 1;
    let mut stranger = wrapped_right(VXLAN);
    stranger[29] = 9;
    let frames = [wrapped_right(VXLAN), second, other, stranger, wrapped_right(VXLAN)].map(with_checksum);
    let outcome = rig.step(Now::default(), UPLINK, frames.map(Input::from).to_vec());
    let ports: Vec<_> = outcome.received.iter().map(|(port, _)| *port).collect();
    assert_eq!(ports.iter().filter(|port| **port == 0).count(), 3, "{ports:?}");
    assert_eq!(ports.iter().filter(|port| **port == 2).count(), 1, "the other network's");
    assert_eq!(outcome.drops.len(), 1, "{:?}", outcome.drops);
}

fn frame_len(vector: &str) -> usize {
    wrapped(vector).len() - 1
}

#[test]
fn an_uplink_of_vlans_only_knows_no_tunnels() {
    let tables = UnderlayTables::compile(&on_vlans(vec![]));
    let found = decide(tables.uplink(UPLINK).unwrap(), None, &wrapped_right(VXLAN), 110);
    assert_eq!(found, Ok(Found::Other));
}
