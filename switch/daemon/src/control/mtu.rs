//! What a network lets through to other hosts, and telling it to the devices on it.
//!
//! A tunnel's headers take their part of the uplink's MTU, and a path may have less. Who does not know sends packets that are dropped,
//! or at best answered with an error. So TAPs that we make have the network's MTU, and with vhost-user the log tells where a frontend gives
//! its guest a larger one. An operator's own word (`--mtu`) stands, a device of somebody else's is left as it is, no device
//! gets more than it would have had on a network of this host alone, for a port takes no longer frames than that, and none less
//! than [`MTU_TOLD_LEAST`].
//!
//! Looked at whenever a config goes into force; costs as much as there are plugs, and once as there are peers and what is told of them.

use super::{Control, State};
use api::host::DeviceSpec;
use api::model::{InterfaceId, Model, Network, NetworkId};
use api::network_type::NetworkType;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use switch::config::{Config, MTU_DEFAULT};
use switch::ids::{NetworkIndex, PortIndex};
use switch::underlay::UplinkConfig;
use switch::worker::Pipeline;

/// What a device is told at least. Below it Linux gives up IPv6 on an interface, and with it the interface's addresses, for good
/// (RFC 8200 section 5). Who sends what is too long for a narrower way is told so, packet by packet.
const MTU_TOLD_LEAST: u16 = 1280;

/// What networks let through by the ways that are in force.
pub(crate) struct NetworkMtus {
    config: Arc<Config>,
    /// The least MTU on the way to a peer of the settings, behind whom every network may be.
    to_all: Option<u16>,
    /// The least on the way to one of those that are told to have ports of a network.
    to_members: HashMap<NetworkId, u16>,
    /// That of the uplink which has our end of tunnels, for as long as nobody is reached.
    own: Option<u16>,
}

impl NetworkMtus {
    fn new(config: Arc<Config>, local_uplink: Option<PortIndex>) -> NetworkMtus {
        let underlay = config.underlay();
        let mut to_peers: BTreeMap<PortIndex, u16> =
            underlay.peers().map(|peer| (peer.index, underlay.mtu_to(peer))).filter(|(_, mtu)| *mtu > 0).collect();
        let mut least: BTreeMap<NetworkIndex, u16> = BTreeMap::new();
        for (network, peer) in &underlay.told.members {
            let Some(&mtu) = to_peers.get(peer) else { continue };
            least.entry(*network).and_modify(|least| *least = mtu.min(*least)).or_insert(mtu);
        }
        let id = |(index, mtu): (NetworkIndex, u16)| Some((config.network(index)?.id.clone(), mtu));
        let to_members = least.into_iter().filter_map(id).collect();
        for peer in &underlay.told.peers {
            to_peers.remove(peer);
        }
        let to_all = to_peers.into_values().min();
        let own = local_uplink.and_then(|index| underlay.uplink(index)).map(|uplink| uplink.mtu);
        NetworkMtus { to_all, to_members, own, config }
    }

    /// Bytes of L3 payload that get to all other hosts that may have ports of a network; `None`: it stays within this one, or no
    /// way out is there.
    pub(crate) fn of(&self, network: &Network) -> Option<u16> {
        let underlay = self.config.underlay();
        match &network.network_type {
            NetworkType::Local => None,
            NetworkType::Vlan { physical_network, .. } => {
                let is_it = |uplink: &&UplinkConfig| *uplink.physical_network == **physical_network;
                underlay.uplinks.iter().find(is_it).map(pipelines::underlay::vlan_mtu)
            }
            NetworkType::Tunnel { kind, .. } => {
                let to_members = self.to_members.get(&network.id).copied();
                let outer = to_members.into_iter().chain(self.to_all).min().or(self.own)?;
                Some(pipelines::underlay::inner_mtu(outer, underlay.tunnel.as_ref()?.local, *kind))
            }
        }
    }
}

impl<P: Pipeline> Control<P> {
    /// What networks let through to other hosts.
    pub(crate) fn network_mtus(&self) -> NetworkMtus {
        let local_uplink = self.state().ways.local_uplink;
        NetworkMtus::new(self.switch.snapshot().config.clone(), local_uplink)
    }

    /// Tells the devices that are on networks what those let through. A device that carries VLANs of others has the least of all.
    pub(super) fn tell_mtus(&self, state: &State, model: &Model) {
        let known = NetworkMtus::new(self.switch.snapshot().config.clone(), state.ways.local_uplink);
        let mut mtus: HashMap<&InterfaceId, u16> = HashMap::new();
        for plug in state.plugs.values() {
            let Some(port) = model.port_by_attachment(&plug.interface) else { continue };
            let Some(network) = model.networks.get(&port.network) else { continue };
            let mtu = match &network.network_type {
                NetworkType::Local => MTU_DEFAULT,
                // Not known yet, or not any more: it stays what it was.
                _ => match known.of(network) {
                    Some(mtu) => mtu.clamp(MTU_TOLD_LEAST, MTU_DEFAULT),
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;
    use switch::config::NetworkConfig;
    use switch::ids::MacAddr;
    use switch::underlay::{PeerConfig, ToldConfig, TunnelConfig, TunnelKind, Underlay, UplinkTags, Vni};

    fn uplink(index: u16, physical_network: &str, mtu: u16) -> UplinkConfig {
        UplinkConfig {
            index: PortIndex(index),
            physical_network: physical_network.into(),
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            mtu,
            is_shared: true,
            address: None,
            tags: UplinkTags::default(),
        }
    }

    fn peer(index: u16, uplink: Option<u16>, path_mtu: Option<u16>) -> PeerConfig {
        let address = [192, 0, 2, index as u8].into();
        PeerConfig { path_mtu, ..PeerConfig::new(PortIndex(index), address, uplink.map(PortIndex)) }
    }

    /// What networks 0 and 1 let through by VXLAN over an uplink of 9,000 bytes, which has our end, beside one of 1,500.
    fn mtus(peers: Vec<PeerConfig>, told: ToldConfig) -> [Option<u16>; 2] {
        let networks =
            [0, 1].map(|index| NetworkConfig { index: NetworkIndex(index), id: format!("net{index}").into() });
        let tunnel = TunnelConfig::new([192, 0, 2, 1].into(), peers);
        let uplinks = vec![uplink(0, "wide", 9000), uplink(1, "narrow", 1500)];
        let underlay = Underlay { uplinks, vlans: Vec::new(), tunnel: Some(tunnel), told };
        let config = Config::with_underlay(networks.to_vec(), Vec::new(), underlay).unwrap();
        let known = NetworkMtus::new(Arc::new(config), Some(PortIndex(0)));
        [0, 1].map(|index| {
            known.of(&Network {
                id: format!("net{index}").into(),
                tenant: "red".into(),
                name: None,
                network_type: NetworkType::Tunnel { kind: TunnelKind::Vxlan, vni: Vni::new(5000 + index).unwrap() },
                serial: index.into(),
            })
        })
    }

    #[test]
    fn a_network_lets_through_what_gets_to_those_who_have_ports_of_it_and_to_the_peers_of_the_settings() {
        let told = |members: &[(u16, u16)]| ToldConfig {
            peers: vec![PortIndex(11), PortIndex(12)],
            members: members.iter().map(|&(network, peer)| (NetworkIndex(network), PortIndex(peer))).collect(),
            stations: Vec::new(),
        };
        let peers = || vec![peer(10, Some(0), Some(8000)), peer(11, Some(0), Some(600)), peer(12, Some(1), None)];
        assert_eq!(mtus(peers(), told(&[])), [Some(7950); 2], "nobody there has a port of them");
        assert_eq!(mtus(peers(), told(&[(0, 11), (0, 12), (1, 12)])), [Some(550), Some(1450)]);
        // Who is not reached narrows nothing; while nobody is, the uplink that has our end tells.
        assert_eq!(mtus(vec![peer(10, None, None)], ToldConfig::default()), [Some(8950); 2]);
        assert_eq!(mtus(Vec::new(), ToldConfig::default()), [Some(8950); 2]);
    }
}
