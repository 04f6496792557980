//! What a network lets through to other hosts, and telling it to the devices on it.
//!
//! A tunnel's headers take their part of the uplink's MTU, and a path may have less. Who does not know sends packets that are dropped,
//! or at best answered with an error. So TAPs that we make have the network's MTU, and with vhost-user the log tells where a frontend gives
//! its guest a larger one. An operator's own word (`--mtu`) stands, a device of somebody else's is left as it is, and no device
//! gets more than it would have had on a network of this host alone: a port takes no longer frames than that.
//!
//! Looked at whenever a config goes into force; costs as much as there are plugs, and once as there are peers.

use super::{Control, State};
use api::host::DeviceSpec;
use api::model::{InterfaceId, Model};
use api::network_type::NetworkType;
use std::collections::HashMap;
use switch::config::MTU_DEFAULT;
use switch::underlay::{Underlay, UplinkConfig};
use switch::worker::Pipeline;

/// What networks let through by these ways.
struct NetworkMtus<'a> {
    underlay: &'a Underlay,
    /// The least MTU on the way to any peer; `None`: no way out is there.
    outer: Option<u16>,
}

impl<'a> NetworkMtus<'a> {
    fn new(underlay: &'a Underlay) -> NetworkMtus<'a> {
        let peers = underlay.tunnel.iter().flat_map(|tunnel| &tunnel.peers);
        let ways = peers.map(|peer| underlay.mtu_to(peer)).filter(|&mtu| mtu > 0);
        let outer = ways.min().or_else(|| underlay.uplinks.iter().map(|uplink| uplink.mtu).min());
        NetworkMtus { underlay, outer }
    }

    /// Bytes of L3 payload; `None`: it stays within this host, or no way out is there.
    fn of(&self, network_type: &NetworkType) -> Option<u16> {
        match network_type {
            NetworkType::Local => None,
            NetworkType::Vlan { physical_network, .. } => {
                let is_it = |uplink: &&UplinkConfig| *uplink.physical_network == **physical_network;
                self.underlay.uplinks.iter().find(is_it).map(pipelines::underlay::vlan_mtu)
            }
            NetworkType::Tunnel { kind, .. } => {
                let local = self.underlay.tunnel.as_ref()?.local;
                Some(pipelines::underlay::inner_mtu(self.outer?, local, *kind))
            }
        }
    }
}

impl<P: Pipeline> Control<P> {
    /// Bytes of L3 payload that a network of this type lets through to all other hosts; `None`: it stays within this one, or
    /// no way out is there.
    pub(crate) fn mtu_of(&self, network_type: &NetworkType) -> Option<u16> {
        NetworkMtus::new(&self.state().ways.facts).of(network_type)
    }

    /// Tells the devices that are on networks what those let through. A device that carries VLANs of others has the least of all.
    pub(super) fn tell_mtus(&self, state: &State, model: &Model) {
        let known = NetworkMtus::new(&state.ways.facts);
        let mut mtus: HashMap<&InterfaceId, u16> = HashMap::new();
        for plug in state.plugs.values() {
            let Some(port) = model.port_by_attachment(&plug.interface) else { continue };
            let Some(network) = model.networks.get(&port.network) else { continue };
            let mtu = match &network.network_type {
                NetworkType::Local => MTU_DEFAULT,
                // Not known yet, or not any more: it stays what it was.
                way => match known.of(way) {
                    Some(mtu) => mtu.min(MTU_DEFAULT),
                    None => continue,
                },
            };
            let device = match &plug.device {
                DeviceSpec::Vlan { parent, .. } => parent,
                _ => &plug.interface,
            };
            mtus.entry(device).and_modify(|least| *least = mtu.min(*least)).or_insert(mtu);
        }
        for (interface, mtu) in mtus {
            if let Some(slot) = state.slots.get(interface) {
                self.supervisor.tell_mtu(slot, mtu);
            }
        }
    }
}
