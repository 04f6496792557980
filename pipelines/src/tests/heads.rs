//! Frames whose headers end behind what rx puts in the head, where other headers come before them or are taken off.

use super::frames::{Frame, with_options};
use super::rig::{Input, Rig, UPLINK, in_tunnels, mac, on_vlans, port};
use crate::encap::tests::{GENEVE, GRE, VXLAN, hex};
use switch::config::PortConfig;
use switch::ids::PortIndex;
use switch::offload::{EgressOffloads, F_NEEDS_CSUM, GSO_TCPV6, OffloadClaim};
use switch::underlay::TunnelKind;
use switch::worker::Now;

fn two_ports() -> Vec<PortConfig> {
    vec![port(0, Some(1)), port(1, Some(1))]
}

#[test]
fn a_large_frame_whose_headers_end_behind_the_head_is_cut_on_every_way_out() {
    // TCP ends two bytes behind what rx puts in the head, so that this is made as long as can be before outer headers come.
    let frame = with_options(&Frame::tcp6().payload(4000).bytes(), 56);
    let claim = OffloadClaim {
        flags: F_NEEDS_CSUM,
        gso_type: GSO_TCPV6,
        gso_size: 1340,
        csum_start: 110,
        csum_offset: 16,
        hdr_len: 130,
    };
    let tunnels = TunnelKind::ALL.into_iter().flat_map(|kind| [(kind, false), (kind, true)]);
    let ways = tunnels.map(|(kind, is_ipv6)| in_tunnels(two_ports(), kind, is_ipv6)).chain([on_vlans(two_ports())]);
    for config in ways {
        let mut rig = Rig::new(config);
        rig.takes = EgressOffloads::default();
        let outcome = rig.step(Now::default(), PortIndex(0), vec![Input { claim, ..frame.clone().into() }]);
        assert!(outcome.drops.is_empty(), "{:?}", outcome.drops);
        let at = |port: u16| outcome.received.iter().filter(move |(to, _)| *to == port).map(|(_, frame)| frame);
        let (here, on_uplink): (Vec<_>, Vec<_>) = (at(1).collect(), at(UPLINK.0).collect());
        assert!(!on_uplink.is_empty());
        for segments in on_uplink.chunks(3) {
            let header_len = segments[0].len() - 1340;
            let payload: Vec<u8> = segments.iter().flat_map(|segment| &segment[header_len..]).copied().collect();
            assert_eq!(payload, frame[130..], "all of it, in order");
        }
        assert_eq!(here.len(), 3, "the port here gets segments without outer headers");
        assert!(here.iter().all(|segment| segment[..18] == frame[..18]));
    }
}

#[test]
fn a_frame_whose_inner_headers_end_behind_the_head_is_read_to_their_end() {
    // Two tags, IPv6 and TCP inside a tunnel end some bytes behind what rx puts in the head, and the frame is longer than what
    // is left of the head's room behind the outer headers.
    let inner = Frame::tcp6().vlan(7).vlan(9).payload(700).bytes();
    for (kind, vector) in [(TunnelKind::Vxlan, VXLAN), (TunnelKind::Geneve, GENEVE), (TunnelKind::Gre, GRE)] {
        let mut frame = [hex(vector), inner.clone()].concat();
        frame[..6].copy_from_slice(&mac(0xaa).0);
        (frame[29], frame[33]) = (2, 1);
        let len = frame.len() as u16;
        frame[16..18].copy_from_slice(&(len - 14).to_be_bytes());
        if kind != TunnelKind::Gre {
            frame[38..40].copy_from_slice(&(len - 34).to_be_bytes());
        }
        frame[24..26].fill(0);
        let sum = crate::wire::checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        let mut rig = Rig::new(in_tunnels(two_ports(), kind, false));
        let outcome = rig.step(Now::default(), UPLINK, vec![frame.into()]);
        assert_eq!(outcome.received, [(0, inner.clone()), (1, inner.clone())], "{kind:?}: {:?}", outcome.drops);
    }
    // The same behind a VLAN's tag, where a partial checksum makes us look for TCP.
    let inner = with_options(&Frame::tcp6().payload(700).bytes(), 56);
    let tagged = [&inner[..12], &[0x81, 0, 0, 100], &inner[12..]].concat();
    let claim = OffloadClaim { flags: F_NEEDS_CSUM, csum_start: 114, csum_offset: 16, ..OffloadClaim::default() };
    let mut rig = Rig::new(on_vlans(vec![port(0, Some(1))]));
    let outcome = rig.step(Now::default(), UPLINK, vec![Input { claim, ..tagged.into() }]);
    assert_eq!(outcome.received, [(0, inner)], "{:?}", outcome.drops);
}
