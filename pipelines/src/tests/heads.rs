//! Frames whose headers end behind what rx puts in the head, where other headers come before them or are taken off.

use super::frames::{Frame, with_options};
use super::rig::{Input, Rig, UPLINK, in_tunnels, on_vlans, port};
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
