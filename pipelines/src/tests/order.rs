//! The order of the stages, pinned by what a packet meets first.

use super::frames::Frame;
use super::rig::{Input, Rig, config, mac, port};
use crate::STAGES;
use switch::batch::BURST;
use switch::config::{Config, NetworkConfig, PortConfig};
use switch::ids::{MacAddr, NetworkIndex, PortIndex};
use switch::offload::OffloadClaim;
use switch::worker::{BURST_FLOOD_BYTES, Now};

#[test]
fn stage_order_is_as_documented() {
    assert_eq!(STAGES.map(|stage| stage.name), ["parse", "classify", "guard", "bridge"]);

    // A frame with which every stage would find fault, and then less and less of them: the earlier stage names the drop.
    let bad_claim = OffloadClaim { flags: 1, ..OffloadClaim::default() };
    let reserved: MacAddr = "01:80:c2:00:00:00".parse().unwrap();
    let frame = Frame::udp4().from(MacAddr::BROADCAST).to(reserved);
    let reason = |is_claiming: bool, is_up: bool, source: MacAddr| {
        let claim = if is_claiming { bad_claim } else { OffloadClaim::default() };
        let input = Input { claim, ..Input::from(frame.clone().from(source).bytes()) };
        let mut rig = Rig::new(config(vec![PortConfig { is_admin_up: is_up, ..port(0, Some(1)) }, port(1, Some(1))]));
        let outcome = rig.step(Now::default(), PortIndex(0), vec![input.clone()]);
        let trace = rig.trace(Now::default(), PortIndex(0), &input);
        let [(0, true, reason, 1)] = outcome.drops[..] else { panic!("{outcome:?}") };
        let last = trace.last().unwrap();
        assert!(last.contains(reason), "the trace says {last}, the books {reason}");
        (last.split(':').next().unwrap().to_owned(), reason)
    };
    let seen = |stage: &str, reason| (stage.to_owned(), reason);
    assert_eq!(reason(true, false, MacAddr::BROADCAST), seen("parse", "bad_offload"));
    assert_eq!(reason(false, false, MacAddr::BROADCAST), seen("classify", "port_admin_down"));
    assert_eq!(reason(false, true, MacAddr::BROADCAST), seen("guard", "bad_source_mac"));
    assert_eq!(reason(false, true, mac(1)), seen("bridge", "link_local_multicast"));
}

#[test]
fn a_burst_of_large_floods_into_a_large_network_is_cut_at_its_bound_and_counted() {
    const PORTS: u16 = 60;
    const LEN: usize = 60_000;
    let ports = (0..PORTS).map(|index| PortConfig { mtu: 65_521, ..port(index, Some(1)) }).collect();
    let mut rig = Rig::new(config(ports));
    let mut frame = Frame::udp4().to(MacAddr::BROADCAST).bytes();
    frame.resize(LEN, 0);
    // Few enough for one round's byte budget.
    let frames = 4;
    let outcome = rig.step(Now::default(), PortIndex(0), vec![Input::from(frame); frames]);
    let wanted = frames * usize::from(PORTS - 1);
    let affordable = BURST_FLOOD_BYTES / LEN;
    assert!(affordable < wanted);
    assert_eq!(outcome.received.len(), affordable);
    assert!(outcome.drops.iter().all(|&(port, is_rx, reason, _)| port > 0 && !is_rx && reason == "flood_limited"));
    assert_eq!(outcome.drops.iter().map(|drop| drop.3).sum::<u64>(), (wanted - affordable) as u64);
}

#[test]
fn a_copy_of_a_runt_counts_as_much_as_one_of_a_short_frame() {
    let ports = (0..4096).map(|index| port(index, Some(1))).collect();
    let mut rig = Rig::new(config(ports));
    let frame = Frame::udp4().to(MacAddr::BROADCAST).bytes()[..14].to_vec();
    let outcome = rig.step(Now::default(), PortIndex(0), vec![Input::from(frame); BURST]);
    assert_eq!(outcome.received.len(), BURST_FLOOD_BYTES / 64);
}

#[test]
fn a_frame_to_the_zero_address_floods_whatever_was_found_for_the_frame_before() {
    // In network 0 its key is the empty one.
    let networks = vec![NetworkConfig { index: NetworkIndex(0), id: "blue".into() }];
    let ports = (0..3).map(|index| port(index, Some(0))).collect();
    let mut rig = Rig::new(Config::new(networks, ports).unwrap());
    let frame = |from, to| Input::from(Frame::udp4().from(mac(from)).to(to).bytes());
    rig.step(Now::default(), PortIndex(1), vec![frame(9, MacAddr::BROADCAST)]);
    rig.step(Now::default(), PortIndex(0), vec![frame(1, mac(9))]);
    // Known to known; then a new source, to nobody.
    let outcome = rig.step(Now::default(), PortIndex(0), vec![frame(1, mac(9)), frame(2, MacAddr([0; 6]))]);
    let ports: Vec<_> = outcome.received.iter().map(|(port, _)| *port).collect();
    assert_eq!(ports, [1, 1, 2], "{outcome:?}");
}
