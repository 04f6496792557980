//! What is told of ports on other hosts, and what of it a config has.

use super::*;
use crate::lowering::tests::{carried, model, network_of, plug, plugs, uplink};
use crate::lowering::{Indices, Unbound, lower_among};
use std::collections::HashMap;
use switch::underlay::{PeerConfig, ToldConfig, TunnelConfig, UplinkTags};

/// Interfaces by name, behind which peer they are and what is fixed for them; and those that are another host's.
struct Known(HashMap<&'static str, Place>, &'static [&'static str]);

/// Its peer, MACs and addresses.
type Place = (Option<PortIndex>, Vec<MacAddr>, Vec<IpAddr>);

impl Elsewhere for Known {
    fn is_held(&self, interface: &str) -> bool {
        self.1.contains(&interface)
    }

    fn find(&self, interface: &str) -> Option<Found<'_>> {
        self.0.get(interface).map(|(peer, macs, addresses)| Found { peer: *peer, macs, addresses })
    }
}

#[test]
fn peers_get_what_is_for_everybody_of_the_networks_that_they_have_ports_of_and_fixed_addresses_lead_there() {
    let mut indices = Indices::default();
    let peers: Vec<PeerConfig> =
        (1..=3u8).map(|last| PeerConfig::new(indices.reserve().unwrap(), [192, 0, 2, last].into(), None)).collect();
    let [one, two, three] = [0, 1, 2].map(|at| peers[at].index);
    let tunnel = TunnelConfig::new([192, 0, 2, 9].into(), peers);
    let told = ToldConfig { peers: vec![one, two], ..ToldConfig::default() };
    let underlay = Underlay { tunnel: Some(tunnel), told, ..Underlay::default() };
    let active = |network, interface| (network, AdminState::Active, Some(interface));
    // Of n2 and n3 one port each is here; n4 is only elsewhere.
    let ports = [active(2, "a"), active(2, "x"), active(2, "y"), active(2, "z"), active(3, "b"), active(4, "w")];
    let model = carried(&model(&[0, 0, 0, 0, 0], &ports));
    let mac = |last| MacAddr([2, 0, 0, 0, 0, last]);
    let ip = |last| vec![IpAddr::from([10, 0, 0, last])];
    let known = HashMap::from([
        ("x", (Some(one), vec![mac(1), mac(7)], vec![])),
        ("y", (Some(one), vec![mac(2)], ip(2))),
        // By the settings it gets everything anyway; and one of its addresses is fixed here.
        ("z", (Some(three), vec![mac(3), mac(9)], vec![])),
        ("w", (Some(two), vec![mac(4)], ip(4))),
        // Plugged here after all.
        ("b", (Some(two), vec![mac(5)], ip(5))),
    ]);
    let here = plugs([Plug { macs: vec![mac(9).to_string()], ..plug("a") }, plug("b")]);
    let lowered = lower_among(&model, &here, &mut indices, underlay.clone(), &Known(known, &[]));
    let told = &lowered.config.underlay().told;
    let [n2, n3] = ["n2", "n3"].map(|id| indices.networks[id]);
    assert_eq!(told.members, [(n2, one)]);
    let stations: Vec<_> = told.stations.iter().map(|it| (it.network, it.mac, it.peer)).collect();
    assert_eq!(stations, [(n2, mac(1), one), (n2, mac(7), one), (n2, mac(2), one), (n2, mac(3), three)]);
    assert!(n3 != n2 && lowered.unbound.is_empty());
    let neighbours = [NeighbourConfig { network: n2, address: ip(2)[0], mac: mac(2) }];
    assert_eq!(lowered.config.neighbours(), neighbours, "who asks for it here is answered");
    // What is another host's is kept off its network.
    let lowered = lower_among(&model, &here, &mut indices, underlay.clone(), &Known(HashMap::new(), &["b"]));
    assert_eq!(lowered.unbound["b"].1, Unbound::PluggedElsewhere);
    assert_eq!((network_of(&lowered, "a"), network_of(&lowered, "b")), (Some("n2"), None));
    // And it is a port of that network where it is.
    let here = plugs([plug("a"), plug("x")]);
    let known = HashMap::from([("x", (Some(two), vec![mac(1)], vec![]))]);
    let lowered = lower_among(&model, &here, &mut indices, underlay, &Known(known, &["x"]));
    assert_eq!(lowered.config.underlay().told.members, [(n2, two)]);
}

#[test]
fn who_has_an_address_elsewhere_is_certain_as_here_and_only_on_networks_that_lead_there() {
    let active = |network, interface| (network, AdminState::Active, Some(interface));
    let down = |network, interface| (network, AdminState::Down, Some(interface));
    // On VLAN 7, VLAN 8 and, without an uplink, VNI 9.
    let ports = [
        active(0, "a"),
        active(0, "x"),
        active(0, "y"),
        down(0, "z"),
        active(1, "b"),
        active(1, "v"),
        active(2, "c"),
        active(2, "w"),
    ];
    let model = carried(&model(&[0, 0, 0], &ports));
    let (mac, ip) = (|last| MacAddr([2, 0, 0, 0, 0, last]), |last| IpAddr::from([10, 0, 0, last]));
    let known = HashMap::from([
        ("x", (None, vec![mac(1)], vec![ip(1), ip(9)])),
        ("y", (None, vec![mac(2)], vec![ip(2), ip(8)])),
        ("z", (None, vec![mac(3)], vec![ip(3)])),
        // The MAC is fixed here.
        ("v", (None, vec![mac(4)], vec![ip(4)])),
        ("w", (None, vec![mac(5)], vec![ip(5)])),
    ]);
    let told = |name: &str, last, addresses| Plug { macs: vec![mac(last).to_string()], addresses, ..plug(name) };
    // One says of itself what another host says of another port.
    let here = plugs([told("a", 6, vec![ip(6), ip(9)]), told("b", 4, vec![]), plug("c")]);
    let underlay = Underlay { uplinks: vec![uplink(PortIndex(100), UplinkTags::default())], ..Underlay::default() };
    let mut indices = Indices::default();
    let lowered = lower_among(&model, &here, &mut indices, underlay, &Known(known, &[]));
    let n0 = indices.networks["n0"];
    let neighbour = |last, of| NeighbourConfig { network: n0, address: ip(last), mac: mac(of) };
    assert_eq!(lowered.config.neighbours(), [neighbour(1, 1), neighbour(2, 2), neighbour(6, 6), neighbour(8, 2)]);
}
