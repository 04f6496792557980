//! Tags where they tell networks apart: on trunks of this host and on uplinks, and what may not pass for one.

use super::decide;
use crate::encap::tests::{INNER, VXLAN, hex};
use crate::neighbour::tests::arp;
use crate::tests::frames::Frame;
use crate::tests::rig::{
    Input, LOCAL, Outcome, REMOTE, Rig, UPLINK, VLANS, config, in_tunnels, mac, on_vlans, port, uplink,
};
use crate::wire::arp::{REPLY, REQUEST};
use proptest::prelude::*;
use switch::config::{Config, SubportConfig};
use switch::ids::{NetworkIndex, PortIndex};
use switch::ledger::DropReason;
use switch::offload::{F_NEEDS_CSUM, OffloadClaim};
use switch::underlay::{TunnelKind, Underlay, UplinkConfig, UplinkTags, VlanConfig, VlanId};
use switch::worker::Now;

const CUSTOMER: u16 = 0x8100;
const SERVICE: u16 = 0x88a8;

fn vlan(id: u16) -> Option<VlanId> {
    VlanId::new(id)
}

/// A broadcast of 02:…:01 with these tags before what is in it.
fn tagged(tags: &[(u16, u16)]) -> Vec<u8> {
    let mut frame = Frame::udp4().to(switch::ids::MacAddr::BROADCAST).bytes();
    let tags: Vec<u8> =
        tags.iter().flat_map(|(kind, control)| [kind.to_be_bytes(), control.to_be_bytes()].concat()).collect();
    frame.splice(12..12, tags);
    frame
}

/// Port 0 is a trunk on network 1; behind it are port 1 on network 2 by VLAN 20 and port 2 on network 3 by VLAN 30. Ports 4, 5
/// and 6 are on networks 1, 2 and 3.
fn trunk() -> Config {
    let on = [(0, 1), (1, 2), (2, 3), (4, 1), (5, 2), (6, 3)];
    let subport =
        |index, id| SubportConfig { index: PortIndex(index), parent: PortIndex(0), vlan: VlanId::new(id).unwrap() };
    let ports = on.map(|(index, network)| port(index, Some(network))).to_vec();
    config(ports).with_subports(vec![subport(1, 20), subport(2, 30)]).unwrap()
}

fn step(config: Config, from: PortIndex, input: impl Into<Input>) -> Outcome {
    Rig::new(config).step(Now::default(), from, vec![input.into()])
}

fn from_trunk(tags: &[(u16, u16)]) -> Outcome {
    step(trunk(), PortIndex(0), tagged(tags))
}

#[test]
fn a_tag_from_a_trunk_says_which_network_and_is_taken_out_and_what_has_none_is_the_trunks_own() {
    let plain = tagged(&[]);
    assert_eq!(from_trunk(&[]).received, [(4, plain.clone())]);
    assert_eq!(from_trunk(&[(CUSTOMER, 20)]).received, [(5, plain.clone())]);
    assert_eq!(from_trunk(&[(CUSTOMER, 0xe01e)]).received, [(6, plain.clone())], "whatever its priority");
    assert_eq!(from_trunk(&[(CUSTOMER, 0xe000)]).received, [(4, plain)], "a priority is no VLAN");
    // A second tag is the network's own.
    assert_eq!(from_trunk(&[(CUSTOMER, 20), (CUSTOMER, 30)]).received, [(5, tagged(&[(CUSTOMER, 30)]))]);
}

#[test]
fn no_tags_from_a_trunk_lead_into_a_network_that_is_not_there() {
    for tags in [
        &[(CUSTOMER, 21)][..],
        &[(CUSTOMER, 0xfff)],
        &[(SERVICE, 20)],
        &[(SERVICE, 0)],
        &[(CUSTOMER, 0), (CUSTOMER, 20)],
        &[(CUSTOMER, 0), (SERVICE, 20)],
        &[(SERVICE, 20), (CUSTOMER, 20)],
    ] {
        let outcome = from_trunk(tags);
        assert_eq!((outcome.received, outcome.drops), (vec![], vec![(0, true, "no_network", 1)]), "{tags:x?}");
    }
}

#[test]
fn frames_to_a_trunk_get_the_tag_of_their_network() {
    for (from, expected) in [(4, tagged(&[])), (5, tagged(&[(CUSTOMER, 20)])), (6, tagged(&[(CUSTOMER, 30)]))] {
        assert_eq!(step(trunk(), PortIndex(from), tagged(&[])).received, [(0, expected)]);
    }
    // Behind the tag of its network a tenant's own is payload.
    let outcome = step(trunk(), PortIndex(5), tagged(&[(CUSTOMER, 30)]));
    assert_eq!(outcome.received, [(0, tagged(&[(CUSTOMER, 20), (CUSTOMER, 30)]))]);
}

#[test]
fn a_tenant_of_the_network_without_a_tag_cannot_put_on_that_of_another() {
    let mut rig = Rig::new(trunk());
    // A flood, and a frame to an address that is known to be there.
    for tags in [&[(CUSTOMER, 20)][..], &[(SERVICE, 20)], &[(CUSTOMER, 0), (CUSTOMER, 20)]] {
        let outcome = rig.step(Now::default(), PortIndex(4), vec![tagged(tags).into()]);
        assert_eq!((outcome.received, outcome.drops), (vec![], vec![(0, false, "tagged_on_native", 1)]), "{tags:x?}");
    }
    let heard = Frame::udp4().from(mac(9)).bytes();
    rig.step(Now::default(), PortIndex(0), vec![heard.into()]);
    let mut known = tagged(&[(CUSTOMER, 20)]);
    known[..6].copy_from_slice(&mac(9).0);
    let outcome = rig.step(Now::default(), PortIndex(4), vec![known.into()]);
    assert_eq!((outcome.received, outcome.drops), (vec![], vec![(0, false, "tagged_on_native", 1)]));
    let mut plain = tagged(&[]);
    plain[..6].copy_from_slice(&mac(9).0);
    assert_eq!(rig.step(Now::default(), PortIndex(4), vec![plain.clone().into()]).received, [(0, plain)]);
}

#[test]
fn between_two_networks_of_one_trunk_nothing_passes_but_within_one_all_does() {
    // One station on each VLAN, with the same address: three, not one that moves.
    let mut rig = Rig::new(trunk());
    for tags in [&[][..], &[(CUSTOMER, 20)], &[(CUSTOMER, 30)]] {
        rig.step(Now::default(), PortIndex(0), vec![tagged(tags).into()]);
    }
    for (from, expected) in [(4, tagged(&[])), (5, tagged(&[(CUSTOMER, 20)])), (6, tagged(&[(CUSTOMER, 30)]))] {
        let mut answer = tagged(&[]);
        answer[..6].copy_from_slice(&mac(1).0);
        answer[6..12].copy_from_slice(&mac(2).0);
        let outcome = rig.step(Now::default(), PortIndex(from), vec![answer.into()]);
        let mut wanted = expected;
        wanted[..6].copy_from_slice(&mac(1).0);
        wanted[6..12].copy_from_slice(&mac(2).0);
        assert_eq!(outcome.received, [(0, wanted)]);
    }
}

#[test]
fn a_checksum_that_is_left_to_others_is_found_behind_a_tag_that_goes_or_comes() {
    let claim = |start| OffloadClaim { flags: F_NEEDS_CSUM, csum_start: start, csum_offset: 6, ..Default::default() };
    let input = Input { claim: claim(38), ..tagged(&[(CUSTOMER, 20)]).into() };
    assert_eq!(step(trunk(), PortIndex(0), input).received, [(5, tagged(&[]))]);
    let input = Input { claim: claim(34), ..tagged(&[]).into() };
    assert_eq!(step(trunk(), PortIndex(5), input).received, [(0, tagged(&[(CUSTOMER, 20)]))]);
}

#[test]
fn a_trace_from_a_trunk_says_whose_a_frame_is() {
    let lines = Rig::new(trunk()).trace(Now::default(), PortIndex(0), &tagged(&[(CUSTOMER, 20)]).into());
    assert_eq!(lines[0], "trunk: from port 1 \"vm-1\"");
    assert!(lines.last().unwrap().contains("flood to port 5"), "{lines:?}");
    let lines = Rig::new(trunk()).trace(Now::default(), PortIndex(0), &tagged(&[(CUSTOMER, 21)]).into());
    assert_eq!(lines, ["trunk: drop no_network, counted at port 0 \"vm-0\""]);
}

/// Networks 1 and 2 are VLANs 100 and 200 of an uplink with these tags; ports 0 and 1 are on them.
fn tagged_uplink(tags: UplinkTags) -> Config {
    let config = on_vlans(vec![port(0, Some(1)), port(1, Some(2))]);
    let underlay = Underlay { uplinks: vec![UplinkConfig { tags, ..uplink(None) }], ..config.underlay().clone() };
    Config::with_underlay(config.networks().to_vec(), config.ports().to_vec(), underlay).unwrap()
}

#[test]
fn on_an_uplink_the_native_vlan_has_no_tag_and_no_frame_of_it_brings_one() {
    let native = || tagged_uplink(UplinkTags { native: vlan(100), ..UplinkTags::default() });
    assert_eq!(step(native(), PortIndex(0), tagged(&[])).received, [(UPLINK.0, tagged(&[]))]);
    assert_eq!(step(native(), PortIndex(1), tagged(&[])).received, [(UPLINK.0, tagged(&[(CUSTOMER, 200)]))]);
    for tags in [&[(CUSTOMER, 200)][..], &[(SERVICE, 200)], &[(CUSTOMER, 0), (CUSTOMER, 200)]] {
        let outcome = step(native(), PortIndex(0), tagged(tags));
        let expected = vec![(VLANS[0].0, false, "tagged_on_native", 1)];
        assert_eq!((outcome.received, outcome.drops), (vec![], expected), "{tags:x?}");
    }
    // What comes in: without a tag, with a priority alone, or with its own number.
    for tags in [&[][..], &[(CUSTOMER, 0xe000)], &[(CUSTOMER, 100)]] {
        assert_eq!(step(native(), UPLINK, tagged(tags)).received, [(0, tagged(&[]))], "{tags:x?}");
    }
    assert_eq!(step(native(), UPLINK, tagged(&[(CUSTOMER, 200)])).received, [(1, tagged(&[]))]);
    for tags in [&[(CUSTOMER, 0), (CUSTOMER, 200)][..], &[(SERVICE, 100)], &[(CUSTOMER, 300)]] {
        let outcome = step(native(), UPLINK, tagged(tags));
        assert_eq!((outcome.received, outcome.drops), (vec![], vec![(UPLINK.0, true, "not_ours", 1)]), "{tags:x?}");
    }
}

#[test]
fn within_a_service_tag_vlans_are_as_without_and_outside_of_it_there_are_none() {
    let service = || tagged_uplink(UplinkTags { service: vlan(500), ..UplinkTags::default() });
    let out = step(service(), PortIndex(1), tagged(&[]));
    assert_eq!(out.received, [(UPLINK.0, tagged(&[(SERVICE, 500), (CUSTOMER, 200)]))]);
    for head_len in [14, 18, 22, 60] {
        let input = Input { head_len, ..tagged(&[(SERVICE, 500), (CUSTOMER, 200)]).into() };
        assert_eq!(step(service(), UPLINK, input).received, [(1, tagged(&[]))], "head of {head_len}");
    }
    for tags in [
        &[(CUSTOMER, 200)][..],
        &[(CUSTOMER, 500), (CUSTOMER, 200)],
        &[(SERVICE, 501), (CUSTOMER, 200)],
        &[(SERVICE, 500)],
        &[(SERVICE, 500), (SERVICE, 200)],
        &[(SERVICE, 500), (CUSTOMER, 0), (CUSTOMER, 200)],
        &[],
    ] {
        let outcome = step(service(), UPLINK, tagged(tags));
        assert_eq!((outcome.received, outcome.drops), (vec![], vec![(UPLINK.0, true, "not_ours", 1)]), "{tags:x?}");
    }
    let both = || tagged_uplink(UplinkTags { service: vlan(500), native: vlan(100), ..UplinkTags::default() });
    assert_eq!(step(both(), PortIndex(0), tagged(&[])).received, [(UPLINK.0, tagged(&[(SERVICE, 500)]))]);
    assert_eq!(step(both(), UPLINK, tagged(&[(SERVICE, 500)])).received, [(0, tagged(&[]))]);
}

#[test]
fn a_vlan_of_the_underlay_is_no_networks() {
    let config = on_vlans(vec![port(0, Some(1))]);
    let tags = UplinkTags { underlay: vlan(100), ..UplinkTags::default() };
    let underlay = Underlay { uplinks: vec![UplinkConfig { tags, ..uplink(None) }], ..config.underlay().clone() };
    assert!(Config::with_underlay(config.networks().to_vec(), config.ports().to_vec(), underlay).is_err());
}

#[test]
fn what_comes_without_a_tag_is_the_native_vlans_and_never_the_underlays() {
    // Network 1 is the native VLAN, network 2 in tunnels within VLAN 50.
    let beside = |underlay_vlan: Option<VlanId>, ends_here: bool| {
        let config = in_tunnels(vec![port(0, Some(1)), port(1, Some(2))], TunnelKind::Vxlan, false);
        let mut underlay = config.underlay().clone();
        underlay.uplinks[0].tags = UplinkTags { native: vlan(100), service: None, underlay: underlay_vlan };
        let native = VlanConfig { index: VLANS[0], uplink: UPLINK, vlan: vlan(100).unwrap(), network: NetworkIndex(1) };
        underlay.vlans = vec![native];
        let tunnel = underlay.tunnel.as_mut().unwrap();
        tunnel.networks.retain(|it| it.network == NetworkIndex(2));
        if !ends_here {
            underlay.uplinks[0].address = None;
            tunnel.peers.iter_mut().for_each(|peer| peer.uplink = None);
        }
        Config::with_underlay(config.networks().to_vec(), config.ports().to_vec(), underlay)
    };
    assert!(beside(None, true).is_err(), "neither could be told from the other");
    let mut forged = [hex(VXLAN), hex(INNER)].concat();
    forged[..6].copy_from_slice(&mac(0xaa).0);
    forged[6..12].copy_from_slice(&mac(0x66).0);
    (forged[29], forged[33], forged[48]) = (2, 1, 0x8a);
    let neighbours = [REPLY, REQUEST].map(|operation| arp(operation, (mac(0x66), REMOTE[0]), LOCAL[0]));
    for config in [beside(vlan(50), true).unwrap(), beside(None, false).unwrap()] {
        for frame in [&forged, &neighbours[0], &neighbours[1]] {
            let outcome = step(config.clone(), UPLINK, frame.clone());
            assert_eq!((outcome.received, outcome.drops), (vec![(0, frame.clone())], vec![]));
        }
        assert_eq!(config.underlay().peers().next().unwrap().next_hop.mac(), Some(mac(0xb1)));
    }
}

proptest! {
    #[test]
    fn whatever_a_head_holds_a_vlan_is_told_only_of_one_whole_customer_tag(head in proptest::collection::vec(any::<u8>(), 0..24), tag in any::<Option<u16>>()) {
        let mut head = head;
        if head.len() >= 14 {
            head[12..14].copy_from_slice(&tag.unwrap_or(CUSTOMER).to_be_bytes());
        }
        match decide(&head) {
            Ok((Some(id), len)) => {
                prop_assert!(head.len() >= 18 && len == 4 && head[12..14] == [0x81, 0] && (1..=4095).contains(&id));
            }
            Ok((None, len)) => prop_assert!(head.len() >= 14 + len),
            Err(None) => prop_assert!(head.len() < 18),
            Err(Some(reason)) => prop_assert_eq!(reason, DropReason::NoNetwork),
        }
    }
}
