//! What a config says of who is where: ports of its networks on other hosts, and which addresses are whose.
//!
//! What is told of other hosts is believed as far as it contradicts nothing here: an address that is fixed here stays here. Of
//! IP addresses only what is certain is told on, because questions for them are answered in their owners' names.

use super::FixedMacs;
use crate::host::Plug;
use crate::model::{AdminState, InterfaceId, Model, Network};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use switch::config::{NEIGHBOURS_MAX, NeighbourConfig, PortConfig};
use switch::ids::{MacAddr, NetworkIndex, PortIndex};
use switch::underlay::{StationConfig, Underlay};

/// What is known of other hosts.
pub trait Elsewhere {
    /// Whether an interface that is plugged here is another host's.
    fn is_held(&self, interface: &str) -> bool;

    /// Whether [`Elsewhere::find`] finds nothing.
    fn is_empty(&self) -> bool {
        false
    }

    /// An interface that is not plugged here, or is another host's.
    fn find(&self, interface: &str) -> Option<Found<'_>>;
}

/// An interface on another host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found<'a> {
    /// The peer behind which it is; `None`: no tunnel leads there.
    pub peer: Option<PortIndex>,
    /// The addresses that are fixed for it.
    pub macs: &'a [MacAddr],
    /// The IP addresses that it has with its one fixed address.
    pub addresses: &'a [IpAddr],
}

/// Nothing is known of any.
pub struct Nowhere;

impl Elsewhere for Nowhere {
    fn is_held(&self, _interface: &str) -> bool {
        false
    }

    fn is_empty(&self) -> bool {
        true
    }

    fn find(&self, _interface: &str) -> Option<Found<'_>> {
        None
    }
}

/// Says which peers have ports of the networks in use here, and which addresses are fixed for those; answers who has which IP
/// address there. An address that is fixed here, or was told of another port before, stays where it is.
pub(super) fn tell_of_others(
    model: &Model,
    plugs: &BTreeMap<InterfaceId, Plug>,
    in_use: &[(&Network, NetworkIndex)],
    fixed: &mut FixedMacs,
    elsewhere: &dyn Elsewhere,
    underlay: &mut Underlay,
) -> Vec<NeighbourConfig> {
    let mut neighbours = Vec::new();
    if elsewhere.is_empty() {
        return neighbours;
    }
    let Underlay { vlans, tunnel, told, .. } = underlay;
    let by_all: HashSet<PortIndex> = tunnel.iter().flat_map(|it| &it.peers).map(|peer| peer.index).collect();
    let tunnelled: HashSet<NetworkIndex> = tunnel.iter().flat_map(|it| &it.networks).map(|it| it.network).collect();
    let on_vlans: HashSet<NetworkIndex> = vlans.iter().map(|vlan| vlan.network).collect();
    let is_told: HashSet<PortIndex> = told.peers.iter().copied().collect();
    for (network, index) in in_use.iter().filter(|(_, index)| tunnelled.contains(index) || on_vlans.contains(index)) {
        let mut members = BTreeSet::new();
        for port in model.ports_of(&network.id) {
            // One that is plugged here and is another host's is there.
            let is_there = |interface: &&InterfaceId| !plugs.contains_key(*interface) || elsewhere.is_held(interface);
            let found = port.attachment.as_ref().filter(is_there).and_then(|interface| elsewhere.find(interface));
            let Some(Found { peer, macs, addresses }) = found else { continue };
            let peer = peer.filter(|peer| tunnelled.contains(index) && by_all.contains(peer));
            if peer.is_none() && tunnelled.contains(index) {
                continue;
            }
            members.extend(peer.filter(|peer| is_told.contains(peer)));
            let mut is_new = false;
            for &mac in macs {
                is_new = fixed.insert((network.serial, mac));
                if let Some(peer) = peer.filter(|_| is_new) {
                    told.stations.push(StationConfig { network: *index, mac, peer });
                }
            }
            if let [mac] = *macs
                && is_new
                && port.state == AdminState::Active
            {
                neighbours.extend(addresses.iter().map(|&address| NeighbourConfig { network: *index, address, mac }));
            }
        }
        told.members.extend(members.into_iter().map(|peer| (*index, peer)));
    }
    neighbours
}

/// Who has which address for certain: ports that are up and have one MAC and addresses with it, and those that were `told` of
/// other hosts. An address that two of one network have is nobody's for certain.
pub(super) fn neighbours(
    plugs: &BTreeMap<InterfaceId, Plug>,
    ports: &[PortConfig],
    told: Vec<NeighbourConfig>,
) -> Vec<NeighbourConfig> {
    let mut found: BTreeMap<(NetworkIndex, IpAddr), Option<MacAddr>> = BTreeMap::new();
    let mut add = |network, address, mac| {
        found.entry((network, address)).and_modify(|owner| *owner = None).or_insert(Some(mac));
    };
    for port in ports.iter().filter(|port| port.is_admin_up) {
        let (Some(network), [mac]) = (port.network, &port.macs[..]) else { continue };
        let addresses = plugs.get(&port.interface).map_or(&[][..], |plug| &plug.addresses);
        addresses.iter().for_each(|&address| add(network, address, *mac));
    }
    told.into_iter().for_each(|NeighbourConfig { network, address, mac }| add(network, address, mac));
    let certain = found
        .into_iter()
        .filter_map(|((network, address), owner)| owner.map(|mac| NeighbourConfig { network, address, mac }));
    certain.take(NEIGHBOURS_MAX).collect()
}

#[cfg(test)]
mod tests;
