//! What the bridge decides about one frame.

use super::*;
use crate::tests::rig::{config, mac, port};
use switch::config::PortConfig;
use switch::ids::MacAddr;

/// Ports 0 to 2 on network 1, of which 2 is down, and 3 on network 2.
fn tables() -> Tables {
    let down = PortConfig { is_admin_up: false, ..port(2, Some(1)) };
    Tables::compile(&config(vec![port(0, Some(1)), port(1, Some(1)), down, port(3, Some(2))]))
}

fn question(destination: MacAddr) -> Question {
    let (ingress, network, destination) = (PortIndex(0), NetworkIndex(1), destination.into());
    Question { ingress, network, destination, l3_len: 46, is_tagged: false }
}

fn answer(known: Option<u16>) -> Verdict {
    decide(&tables(), &question(mac(9)), known.map(PortIndex))
}

#[test]
fn a_known_destination_gets_the_frame_alone() {
    assert_eq!(answer(Some(1)), Verdict::Forward(PortIndex(1)));
}

#[test]
fn an_entry_that_points_out_of_the_network_counts_as_unknown() {
    assert_eq!(answer(Some(3)), Verdict::Flood);
    assert_eq!(answer(Some(4000)), Verdict::Flood);
}

#[test]
fn nothing_goes_back_where_it_came_from() {
    assert_eq!(answer(Some(0)), Verdict::Drop(DropReason::Reflection));
    let copies: Vec<_> = tables()
        .members(NetworkIndex(1))
        .iter()
        .map(|&member| decide_copy(&tables(), &question(mac(9)), member))
        .collect();
    assert_eq!(copies, [None, Some(Verdict::Forward(PortIndex(1)))]);
}

#[test]
fn unicast_to_a_port_that_is_down_is_dropped_there() {
    assert_eq!(answer(Some(2)), Verdict::DropAt(PortIndex(2), DropReason::PortAdminDown));
}

#[test]
fn frames_to_reserved_group_addresses_go_nowhere_and_to_others_everywhere() {
    let to = |text: &str| decide(&tables(), &question(text.parse().unwrap()), None);
    assert_eq!(to("01:80:c2:00:00:0e"), Verdict::Drop(DropReason::LinkLocalMulticast));
    assert_eq!(to("01:80:c2:00:00:10"), Verdict::Flood);
    assert_eq!(to("ff:ff:ff:ff:ff:ff"), Verdict::Flood);
}

#[test]
fn a_frame_over_the_egress_mtu_is_dropped_there() {
    let over = Question { l3_len: 1501, ..question(mac(9)) };
    let at_one = Verdict::DropAt(PortIndex(1), DropReason::OverMtu);
    assert_eq!(decide(&tables(), &over, Some(PortIndex(1))), at_one);
    assert_eq!(decide_copy(&tables(), &over, Member { port: PortIndex(1), mtu: 1500 }), Some(at_one));
}
