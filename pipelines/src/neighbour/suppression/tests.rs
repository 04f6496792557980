//! Questions of tenants, with scapy's frames and ours.

use crate::encap::tests::hex;
use crate::neighbour::tests::{ADVERTISE, SOLICIT, arp};
use crate::tests::rig::{Input, Outcome, PEERS, Rig, UPLINK, config, in_tunnels, mac, port};
use crate::wire::arp::{self, Arp};
use switch::config::{Config, NeighbourConfig};
use switch::ids::{MacAddr, NetworkIndex, PortIndex};
use switch::underlay::TunnelKind;
use switch::worker::Now;

/// Ports 0 and 1 are on network 1, port 2 on network 2; on 1 it is known who has 10.0.0.9 and 2001:db8::1.
fn known() -> Config {
    with_known(config(vec![port(0, Some(1)), port(1, Some(1)), port(2, Some(2))]))
}

fn with_known(config: Config) -> Config {
    let neighbour =
        |address: &str| NeighbourConfig { network: NetworkIndex(1), address: address.parse().unwrap(), mac: mac(0xaa) };
    config.with_neighbours(vec![neighbour("10.0.0.9"), neighbour("2001:db8::1")]).unwrap()
}

fn from(port: u16, frame: Vec<u8>) -> Outcome {
    Rig::new(known()).step(Now::default(), PortIndex(port), vec![frame.into()])
}

fn ask(sender: (MacAddr, &str), target: &str) -> Vec<u8> {
    arp(arp::REQUEST, sender, target)
}

#[test]
fn a_question_for_a_known_neighbour_is_answered_in_its_name_where_it_was_asked_and_heard_nowhere_else() {
    let outcome = from(0, ask((mac(1), "10.0.0.1"), "10.0.0.9"));
    let [(to, answer)] = &outcome.received[..] else { panic!("{outcome:?}") };
    let view = Arp::new(&answer[14..]).unwrap();
    assert_eq!((*to, view.operation()), (0, arp::REPLY));
    assert_eq!((view.sender_mac(), view.sender_ip().to_string()), (mac(0xaa), "10.0.0.9".to_owned()));
    assert_eq!((view.target_mac(), view.target_ip().to_string()), (mac(1), "10.0.0.1".to_owned()));
    assert_eq!((&answer[..6], &answer[6..12]), (&mac(1).0[..], &mac(0xaa).0[..]));
    // Not padded by its sender, as tenants' are.
    assert_eq!(from(0, ask((mac(1), "10.0.0.1"), "10.0.0.9")[..42].to_vec()), outcome);
    assert!(outcome.drops.is_empty());
}

#[test]
fn a_solicitation_for_a_known_neighbour_becomes_the_advertisement_that_scapy_would_write() {
    assert_eq!(from(0, hex(SOLICIT)).received, [(0, hex(ADVERTISE))]);
    // What its sender left undone is not left undone in the answer: an unfinished checksum is nobody's question.
    let mut unfinished = hex(SOLICIT);
    unfinished[56] ^= 1;
    assert_eq!(from(0, unfinished.clone()).received, [(1, unfinished)]);
}

#[test]
fn what_is_no_question_for_a_known_neighbour_is_flooded_as_it_is() {
    let mut unicast = ask((mac(1), "10.0.0.1"), "10.0.0.9");
    unicast[..6].copy_from_slice(&mac(0x55).0);
    let mut tagged = ask((mac(1), "10.0.0.1"), "10.0.0.9");
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    let mut probing = hex(SOLICIT);
    probing[22..38].fill(0);
    for (why, frame) in [
        ("unknown", ask((mac(1), "10.0.0.1"), "10.0.0.8")),
        ("an answer", arp(arp::REPLY, (mac(1), "10.0.0.1"), "10.0.0.9")),
        ("a probe", ask((mac(1), "0.0.0.0"), "10.0.0.9")),
        ("an announcement", ask((mac(1), "10.0.0.9"), "10.0.0.9")),
        ("the owner's own", ask((mac(0xaa), "10.0.0.7"), "10.0.0.9")),
        ("to somebody", unicast),
        ("in a VLAN of the tenant's", tagged),
        ("a probe of IPv6", probing),
        ("too short", ask((mac(1), "10.0.0.1"), "10.0.0.9")[..41].to_vec()),
    ] {
        assert_eq!(from(0, frame.clone()).received, [(1, frame)], "{why}");
    }
}

#[test]
fn a_neighbour_of_one_network_is_none_of_another() {
    let frame = ask((mac(1), "10.0.0.1"), "10.0.0.9");
    assert_eq!(from(2, frame).drops, [(2, true, "no_receiver", 1)]);
}

#[test]
fn what_guests_say_of_an_address_changes_no_answer() {
    let mut rig = Rig::new(known());
    let mut step = |port, frame: Vec<u8>| rig.step(Now::default(), PortIndex(port), vec![frame.into()]);
    let before = step(0, ask((mac(1), "10.0.0.1"), "10.0.0.9"));
    for lie in [
        arp(arp::REPLY, (mac(0x66), "10.0.0.9"), "10.0.0.1"),
        ask((mac(0x66), "10.0.0.9"), "10.0.0.9"),
        ask((mac(0x66), "10.0.0.9"), "10.0.0.1"),
    ] {
        step(1, lie);
    }
    assert_eq!(step(0, ask((mac(1), "10.0.0.1"), "10.0.0.9")), before);
}

#[test]
fn a_question_goes_into_no_tunnel_and_one_that_came_out_of_one_is_not_answered() {
    let config = with_known(in_tunnels(vec![port(0, Some(1)), port(1, Some(1))], TunnelKind::Vxlan, false));
    let mut rig = Rig::new(config);
    let asked = ask((mac(1), "10.0.0.1"), "10.0.0.9");
    let answered = rig.step(Now::default(), PortIndex(0), vec![asked.clone().into()]);
    assert_eq!(answered.received.iter().map(|(to, _)| *to).collect::<Vec<_>>(), [0]);
    // By the uplink, as another host sent it on: it goes to both ports and back to nobody.
    let unknown = rig.step(Now::default(), PortIndex(0), vec![ask((mac(1), "10.0.0.1"), "10.0.0.8").into()]);
    let (_, mut outer) = unknown.received.into_iter().find(|(to, _)| *to == UPLINK.0).unwrap();
    let header_len = outer.len() - asked.len();
    outer.splice(header_len.., asked.clone());
    // Back from the first peer.
    let (local, remote): (Vec<u8>, Vec<u8>) = (outer[26..30].to_vec(), outer[30..34].to_vec());
    outer[26..30].copy_from_slice(&remote);
    outer[30..34].copy_from_slice(&local);
    outer[..6].copy_from_slice(&mac(0xaa).0);
    let heard = rig.step(Now::default(), UPLINK, vec![outer.into()]);
    assert_eq!(heard.received, [(0, asked.clone()), (1, asked)], "{PEERS:?}: {heard:?}");
}

#[test]
fn a_question_in_pieces_is_flooded_or_answered_whole() {
    let frame = ask((mac(1), "10.0.0.1"), "10.0.0.9");
    for head_len in 0..=frame.len() {
        let input = Input { head_len, ..frame.clone().into() };
        let outcome = Rig::new(known()).step(Now::default(), PortIndex(0), vec![input]);
        let [(to, bytes)] = &outcome.received[..] else { panic!("{head_len}: {outcome:?}") };
        assert!(*to == 0 && bytes.len() == 60 || *to == 1 && *bytes == frame, "{head_len}: {outcome:?}");
    }
}

#[test]
fn a_trace_says_that_it_is_answered() {
    let lines = Rig::new(known()).trace(Now::default(), PortIndex(0), &ask((mac(1), "10.0.0.1"), "10.0.0.9").into());
    assert!(lines.last().unwrap().ends_with("asks for 10.0.0.9, which is at 02:00:00:00:00:aa: answered"), "{lines:?}");
}
