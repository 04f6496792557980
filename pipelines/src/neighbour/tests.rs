//! Neighbours, with scapy's frames.

use super::*;
use crate::encap::tests::hex;
use crate::tests::rig::{Input, LOCAL, Outcome, REMOTE, Rig, UPLINK, in_tunnels, mac, port};
use switch::config::Config;
use switch::underlay::TunnelKind;
use switch::worker::Now;

pub(crate) const SOLICIT: &str = "3333ff0000010200000000b186dd6000000000203aff20010db8000000000000000000000002ff020000000000000000\
    0001ff00000187001b780000000020010db800000000000000000000000101010200000000b1";
pub(crate) const ADVERTISE: &str = "0200000000b10200000000aa86dd6000000000203aff20010db800000000000000000000000120010db8000000000000\
    000000000002880089ca6000000020010db800000000000000000000000102010200000000aa";
const ASK: &str = "3333ff0000020200000000aa86dd6000000000203aff20010db8000000000000000000000001ff020000000000000000\
    0001ff00000287001b7e0000000020010db800000000000000000000000201010200000000aa";

fn config(is_ipv6: bool) -> Config {
    let config = in_tunnels(vec![port(0, Some(1))], TunnelKind::Vxlan, is_ipv6);
    config.underlay().peers().for_each(|peer| peer.next_hop.set(None));
    config
}

fn receive(config: &Config, frame: Vec<u8>) -> Outcome {
    Rig::new(config.clone()).step(Now::default(), UPLINK, vec![frame.into()])
}

pub(crate) fn arp(operation: u16, sender: (MacAddr, &str), target: &str) -> Vec<u8> {
    let repr = ArpRepr {
        operation,
        sender_mac: sender.0,
        sender_ip: sender.1.parse().unwrap(),
        target_mac: MacAddr::default(),
        target_ip: target.parse().unwrap(),
    };
    arp_frame(MacAddr::BROADCAST, sender.0, &repr).bytes[..60].to_vec()
}

#[test]
fn who_asks_for_our_address_is_answered_and_heard() {
    let config = config(false);
    let outcome = receive(&config, arp(arp::REQUEST, (mac(0xb1), REMOTE[0]), LOCAL[0]));
    let [(to, answer)] = &outcome.received[..] else { panic!("{outcome:?}") };
    let view = Arp::new(&answer[14..]).unwrap();
    assert_eq!((*to, view.operation(), view.sender_mac()), (UPLINK.0, arp::REPLY, mac(0xaa)));
    assert_eq!((answer[..6].to_vec(), answer[6..12].to_vec()), (mac(0xb1).0.to_vec(), mac(0xaa).0.to_vec()));
    assert_eq!(view.target_ip().to_string(), REMOTE[0]);
    assert_eq!(config.underlay().peers().next().unwrap().next_hop.mac(), Some(mac(0xb1)));
}

#[test]
fn an_answer_is_heard_and_goes_nowhere_and_of_strangers_nothing_is_kept() {
    let config = config(false);
    assert_eq!(receive(&config, arp(arp::REPLY, (mac(0xb2), REMOTE[1]), LOCAL[0])), Outcome::default());
    receive(&config, arp(arp::REPLY, (mac(0x66), "192.0.2.99"), LOCAL[0]));
    receive(&config, arp(arp::REPLY, (MacAddr::BROADCAST, REMOTE[0]), LOCAL[0]));
    let known: Vec<_> = config.underlay().peers().map(|peer| peer.next_hop.mac()).collect();
    assert_eq!(known, [None, Some(mac(0xb2))]);
}

#[test]
fn what_is_heard_of_a_next_hop_that_an_operator_told_changes_nothing() {
    for is_ipv6 in [false, true] {
        let learning = config(is_ipv6);
        let mut underlay = learning.underlay().clone();
        underlay.tunnel.as_mut().unwrap().peers[0].is_next_hop_fixed = true;
        let next_hop = underlay.peers().next().unwrap().next_hop.clone();
        next_hop.set(Some(mac(0x77)));
        let config = Config::with_underlay(learning.networks().to_vec(), learning.ports().to_vec(), underlay).unwrap();
        let claim = if is_ipv6 { hex(SOLICIT) } else { arp(arp::REPLY, (mac(0xb1), REMOTE[0]), LOCAL[0]) };
        receive(&config, claim);
        assert_eq!(next_hop.mac(), Some(mac(0x77)));
    }
}

#[test]
fn where_the_gateway_is_is_heard_on_its_uplink_and_whoever_claims_to_be_one_behind_it_is_not_believed() {
    let near = config(false);
    let mut underlay = near.underlay().clone();
    let next_hop: std::sync::Arc<switch::underlay::NextHop> = std::sync::Arc::default();
    let tunnel = underlay.tunnel.as_mut().unwrap();
    tunnel.peers.iter_mut().for_each(|peer| {
        (peer.next_hop, peer.is_next_hop_fixed) = (next_hop.clone(), true);
    });
    let address = "192.0.2.254".parse().unwrap();
    tunnel.gateway = Some(switch::underlay::GatewayConfig { address, uplink: UPLINK, next_hop: next_hop.clone() });
    let config = Config::with_underlay(near.networks().to_vec(), near.ports().to_vec(), underlay).unwrap();
    receive(&config, arp(arp::REPLY, (mac(0x66), REMOTE[0]), LOCAL[0]));
    assert_eq!(next_hop.mac(), None);
    receive(&config, arp(arp::REPLY, (mac(0xfe), "192.0.2.254"), LOCAL[0]));
    assert_eq!(next_hop.mac(), Some(mac(0xfe)));
    // It may be another router by now, which says so unasked.
    receive(&config, arp(arp::REQUEST, (mac(0xfd), "192.0.2.254"), "192.0.2.254"));
    assert_eq!(next_hop.mac(), Some(mac(0xfd)));
}

#[test]
fn a_trace_tells_that_a_question_is_answered_and_believes_nothing_of_it() {
    for (is_ipv6, question) in [(false, arp(arp::REQUEST, (mac(0x66), REMOTE[0]), LOCAL[0])), (true, hex(SOLICIT))] {
        let config = config(is_ipv6);
        let trace = Rig::new(config.clone()).trace(Now::default(), UPLINK, &question.into());
        assert_eq!(trace, ["uplink: about neighbours, answered"]);
        assert!(config.underlay().peers().all(|peer| peer.next_hop.mac().is_none()), "it changed a next hop");
    }
}

#[test]
fn questions_for_others_are_not_answered() {
    let outcome = receive(&config(false), arp(arp::REQUEST, (mac(0xb1), REMOTE[0]), REMOTE[1]));
    assert_eq!(outcome.drops, [(UPLINK.0, true, "not_ours", 1)]);
}

#[test]
fn a_solicitation_becomes_the_advertisement_that_scapy_would_write() {
    let config = config(true);
    for head_len in [0, 60, 128] {
        let input = Input { head_len, ..hex(SOLICIT).into() };
        let outcome = Rig::new(config.clone()).step(Now::default(), UPLINK, vec![input]);
        assert_eq!(outcome.received, [(UPLINK.0, hex(ADVERTISE))], "head of {head_len}");
        assert_eq!(config.underlay().peers().next().unwrap().next_hop.mac(), Some(mac(0xb1)));
    }
}

#[test]
fn a_solicitation_that_is_not_right_is_not_answered() {
    // Hop limit, checksum, code, an option of length zero where one is wanted.
    for (at, value) in [(21, 64), (56, 0), (55, 1), (78 + 1, 0)] {
        let mut frame = hex(SOLICIT);
        frame[at] = value;
        assert!(receive(&config(true), frame).received.is_empty(), "byte {at}");
    }
}

#[test]
fn an_advertisement_is_heard() {
    let config = config(true);
    let frame = discovery(
        ADVERTISEMENT,
        SOLICITED,
        REMOTE[2].parse().unwrap(),
        TARGET_LINK_LAYER,
        (mac(0xb1), REMOTE[2].parse().unwrap()),
        (mac(0xaa), LOCAL[1].parse().unwrap()),
    );
    assert_eq!(receive(&config, frame.bytes[..frame.len].to_vec()), Outcome::default());
    assert_eq!(config.underlay().peers().next().unwrap().next_hop.mac(), Some(mac(0xb1)));
}

#[test]
fn we_ask_as_scapy_would() {
    let ask = |own: &str, target: &str| question(mac(0xaa), None, own.parse().unwrap(), target.parse().unwrap());
    assert_eq!(ask(LOCAL[1], REMOTE[2]), Some(hex(ASK)));
    let arp = ask(LOCAL[0], REMOTE[0]).unwrap();
    assert_eq!(arp, self::arp(arp::REQUEST, (mac(0xaa), LOCAL[0]), REMOTE[0]));
    assert_eq!(ask(LOCAL[0], REMOTE[2]), None);
}
