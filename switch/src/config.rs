//! The whole desired forwarding state of this host, immutable and legal by construction.
//!
//! The control side lowers what tenants and operators asked for into a [`Config`]; [`Config::new`] checks it once, so that
//! compiling and running need no checks. It speaks in indices; ids and names are carried along for people to read.

use crate::ids::{MacAddr, NETWORKS_MAX, NetworkIndex, PORTS_MAX, PortIndex};
use crate::underlay::{PEERS_MAX, StationConfig, UPLINKS_MAX, Underlay, VlanId};
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

/// Bytes of an Ethernet header with two VLAN tags: what a frame may be longer than the MTU.
pub const L2_OVERHEAD_MAX: usize = 22;
/// The smallest MTU a port may have (RFC 791: every IPv4 module must forward 68 bytes).
pub const MTU_MIN: u16 = 68;
/// The MTU of a port nobody configured.
pub const MTU_DEFAULT: u16 = 1500;
/// Addresses of which a host knows who has them.
pub const NEIGHBOURS_MAX: usize = 65_536;
/// The largest MTU a port may have.
pub const MTU_MAX: u16 = 65_521;

/// One isolated L2 segment on this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkConfig {
    /// Its index here.
    pub index: NetworkIndex,
    /// The tenant's id of it.
    pub id: Arc<str>,
}

/// One port: a device of this host and what the control plane says of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortConfig {
    /// Its index here.
    pub index: PortIndex,
    /// The interface id it was plugged as.
    pub interface: Arc<str>,
    /// The network it is on; `None` while no logical port claims it.
    pub network: Option<NetworkIndex>,
    /// The logical port's administrative state; without one, true.
    pub is_admin_up: bool,
    /// Bytes of L3 payload a frame may have, either way.
    pub mtu: u16,
    /// The source MACs it may use, entered as static; empty: any, learnt, if `allowed_macs` is empty too.
    pub macs: Vec<MacAddr>,
    /// Source MACs it may use besides, learnt where they are heard: several ports may have one, and it moves.
    pub allowed_macs: Vec<MacAddr>,
}

/// Who has an address on a network, here or on another host, as the control plane knows it for certain. Nothing learnt from
/// frames becomes one: what is in here is answered for in its owner's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NeighbourConfig {
    /// The network.
    pub network: NetworkIndex,
    /// The address; unique on its network.
    pub address: IpAddr,
    /// Its owner's MAC.
    pub mac: MacAddr,
}

/// A port that is behind another one: its frames are those of a VLAN there. No device stands at its own index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SubportConfig {
    /// The port; it is nobody's parent.
    pub index: PortIndex,
    /// The port with the device, a trunk by this; its own network is what goes there without a tag.
    pub parent: PortIndex,
    /// The VLAN; unique at its parent.
    pub vlan: VlanId,
}

/// A config that has passed the checks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Config {
    networks: Vec<NetworkConfig>,
    ports: Vec<PortConfig>,
    underlay: Underlay,
    neighbours: Vec<NeighbourConfig>,
    subports: Vec<SubportConfig>,
}

/// Why a set of networks and ports is no config.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// Two networks have one index.
    #[error("network index {0} is used twice")]
    NetworkTwice(NetworkIndex),
    /// Two ports have one index.
    #[error("port index {0} is used twice")]
    PortTwice(PortIndex),
    /// A port index at or above [`PORTS_MAX`].
    #[error("port index {0} is beyond the {PORTS_MAX} ports a switch can have")]
    PortBeyondMax(PortIndex),
    /// A network index at or above [`NETWORKS_MAX`].
    #[error("network index {0} is beyond the {NETWORKS_MAX} networks a host can have")]
    NetworkBeyondMax(NetworkIndex),
    /// A port names a network that is not there.
    #[error("port {port} is on network {network}, which is not configured")]
    NoSuchNetwork {
        /// The port.
        port: PortIndex,
        /// The network it names.
        network: NetworkIndex,
    },
    /// An MTU outside [`MTU_MIN`]..=[`MTU_MAX`].
    #[error("port {port} has MTU {mtu}; it must be {MTU_MIN} to {MTU_MAX}")]
    BadMtu {
        /// The port.
        port: PortIndex,
        /// Its MTU.
        mtu: u16,
    },
    /// A fixed MAC that no station can have.
    #[error("port {port} is given {mac}, which is no station's address")]
    BadMac {
        /// The port.
        port: PortIndex,
        /// The address.
        mac: MacAddr,
    },
    /// More uplinks or peers than [`UPLINKS_MAX`] and [`PEERS_MAX`].
    #[error("more uplinks or peers than a host can have")]
    UnderlayTooLarge,
    /// An uplink or far end that names what is not there.
    #[error("{0} leads over an uplink, or carries a network, that is not configured")]
    FarEndWithout(PortIndex),
    /// Two far ends that would be one on the wire, or a network that is carried in two ways.
    #[error("{0} is on the wire what another far end is, or its network is carried twice")]
    FarEndTwice(PortIndex),
    /// An uplink whose untagged frames would be a network's and the underlay's.
    #[error("what has no tag on {0} would be a network's and the underlay's")]
    UntaggedTwice(PortIndex),
    /// Two tunnelled networks of one kind have one VNI, or one is there twice.
    #[error("network {0} shares its VNI, or is carried twice")]
    VniTwice(NetworkIndex),
    /// A peer whose address is of another family than ours, or ours.
    #[error("{0} cannot be a peer of ours")]
    BadPeer(IpAddr),
    /// A neighbour on a network that is not there, with an address that another one has, or a MAC that no station has; or
    /// one more than [`NEIGHBOURS_MAX`].
    #[error("network {network} cannot have a neighbour {address}")]
    BadNeighbour {
        /// The network.
        network: NetworkIndex,
        /// The address.
        address: IpAddr,
    },
    /// A subport that is no port, or its parent's parent or child, or has a VLAN that another one has there.
    #[error("port {0} cannot be a subport")]
    BadSubport(PortIndex),
    /// One MAC is fixed for two ports of one network.
    #[error("{mac} is fixed for ports {first} and {second} of one network")]
    MacTwice {
        /// The address.
        mac: MacAddr,
        /// One port.
        first: PortIndex,
        /// The other.
        second: PortIndex,
    },
}

impl Config {
    /// Checks and makes a config of one host alone.
    ///
    /// # Errors
    /// The first [`ConfigError`] found; nothing is repaired.
    pub fn new(networks: Vec<NetworkConfig>, ports: Vec<PortConfig>) -> Result<Config, ConfigError> {
        Config::with_underlay(networks, ports, Underlay::default())
    }

    /// The same, with ways to other hosts.
    ///
    /// # Errors
    /// The first [`ConfigError`] found; nothing is repaired.
    pub fn with_underlay(
        mut networks: Vec<NetworkConfig>,
        mut ports: Vec<PortConfig>,
        underlay: Underlay,
    ) -> Result<Config, ConfigError> {
        networks.sort_by_key(|network| network.index);
        ports.sort_by_key(|port| port.index);
        for pair in networks.windows(2) {
            if pair[0].index == pair[1].index {
                return Err(ConfigError::NetworkTwice(pair[0].index));
            }
        }
        for pair in ports.windows(2) {
            if pair[0].index == pair[1].index {
                return Err(ConfigError::PortTwice(pair[0].index));
            }
        }
        if let Some(last) = networks.last().filter(|last| last.index.as_usize() >= NETWORKS_MAX) {
            return Err(ConfigError::NetworkBeyondMax(last.index));
        }
        if let Some(last) = ports.last().filter(|last| last.index.as_usize() >= PORTS_MAX) {
            return Err(ConfigError::PortBeyondMax(last.index));
        }
        let mut fixed = std::collections::HashMap::new();
        for port in &ports {
            if !(MTU_MIN..=MTU_MAX).contains(&port.mtu) {
                return Err(ConfigError::BadMtu { port: port.index, mtu: port.mtu });
            }
            if let Some(network) = port.network
                && networks.binary_search_by_key(&network, |known| known.index).is_err()
            {
                return Err(ConfigError::NoSuchNetwork { port: port.index, network });
            }
            let is_no_station = |mac: &&MacAddr| mac.is_group() || mac.is_zero();
            if let Some(&mac) = port.macs.iter().chain(&port.allowed_macs).find(is_no_station) {
                return Err(ConfigError::BadMac { port: port.index, mac });
            }
            for &mac in &port.macs {
                if let Some(network) = port.network
                    && let Some(first) = fixed.insert((network, mac), port.index)
                    && first != port.index
                {
                    return Err(ConfigError::MacTwice { mac, first, second: port.index });
                }
            }
        }
        let config = Config { networks, ports, underlay, neighbours: Vec::new(), subports: Vec::new() };
        config.check_underlay()?;
        Ok(config)
    }

    /// The same, and who is known to have which address.
    ///
    /// # Errors
    /// [`ConfigError::BadNeighbour`], the first one found.
    pub fn with_neighbours(mut self, neighbours: Vec<NeighbourConfig>) -> Result<Config, ConfigError> {
        let mut taken = HashSet::new();
        for (at, &NeighbourConfig { network, address, mac }) in neighbours.iter().enumerate() {
            let is_station = !mac.is_group() && !mac.is_zero();
            if at >= NEIGHBOURS_MAX
                || self.network(network).is_none()
                || !is_station
                || !taken.insert((network, address))
            {
                return Err(ConfigError::BadNeighbour { network, address });
            }
        }
        self.neighbours = neighbours;
        Ok(self)
    }

    fn check_underlay(&self) -> Result<(), ConfigError> {
        let Underlay { uplinks, vlans, tunnel, told } = &self.underlay;
        if uplinks.len() > UPLINKS_MAX || self.underlay.peers().count() > PEERS_MAX {
            return Err(ConfigError::UnderlayTooLarge);
        }
        let mut indices: HashSet<PortIndex> = self.ports.iter().map(|port| port.index).collect();
        for index in self.underlay.indices() {
            if index.as_usize() >= PORTS_MAX {
                return Err(ConfigError::PortBeyondMax(index));
            }
            if !indices.insert(index) {
                return Err(ConfigError::PortTwice(index));
            }
        }
        for uplink in uplinks {
            if !(MTU_MIN..=MTU_MAX).contains(&uplink.mtu) {
                return Err(ConfigError::BadMtu { port: uplink.index, mtu: uplink.mtu });
            }
            if vlans.iter().any(|it| it.uplink == uplink.index && uplink.tags.is_underlay(it.vlan)) {
                return Err(ConfigError::FarEndTwice(uplink.index));
            }
            let ends_tunnels = || self.underlay.peers().any(|peer| peer.uplink == Some(uplink.index));
            let has_untagged_underlay = uplink.tags.underlay.is_none() && (uplink.address.is_some() || ends_tunnels());
            if uplink.tags.has_untagged_network() && has_untagged_underlay {
                return Err(ConfigError::UntaggedTwice(uplink.index));
            }
            if uplink.mac.is_group() || uplink.mac.is_zero() {
                return Err(ConfigError::BadMac { port: uplink.index, mac: uplink.mac });
            }
        }
        let is_uplink = |index: PortIndex| uplinks.iter().any(|uplink| uplink.index == index);
        let (mut on_wire, mut carried) = (HashSet::new(), HashSet::new());
        for vlan in vlans {
            if !is_uplink(vlan.uplink) || self.network(vlan.network).is_none() {
                return Err(ConfigError::FarEndWithout(vlan.index));
            }
            if !on_wire.insert((vlan.uplink, vlan.vlan)) || !carried.insert(vlan.network) {
                return Err(ConfigError::FarEndTwice(vlan.index));
            }
        }
        let Some(tunnel) = tunnel else { return Ok(()) };
        let mut addresses = HashSet::from([tunnel.local]);
        for peer in &tunnel.peers {
            if peer.address.is_ipv4() != tunnel.local.is_ipv4() || !addresses.insert(peer.address) {
                return Err(ConfigError::BadPeer(peer.address));
            }
            if peer.uplink.is_some_and(|uplink| !is_uplink(uplink)) {
                return Err(ConfigError::FarEndWithout(peer.index));
            }
        }
        let peers: HashSet<PortIndex> = tunnel.peers.iter().map(|peer| peer.index).collect();
        let told_of = told.members.iter().copied().chain(told.stations.iter().map(|it| (it.network, it.peer)));
        for (network, peer) in told_of {
            if !peers.contains(&peer) || self.network(network).is_none() {
                return Err(ConfigError::FarEndWithout(peer));
            }
        }
        let mut stations: std::collections::HashMap<_, _> = self
            .ports
            .iter()
            .flat_map(|port| port.macs.iter().filter_map(|&mac| Some(((port.network?, mac), port.index))))
            .collect();
        for &StationConfig { network, mac, peer } in &told.stations {
            if mac.is_group() || mac.is_zero() {
                return Err(ConfigError::BadMac { port: peer, mac });
            }
            if let Some(first) = stations.insert((network, mac), peer) {
                return Err(ConfigError::MacTwice { mac, first, second: peer });
            }
        }
        let mut vnis = HashSet::new();
        for it in &tunnel.networks {
            if self.network(it.network).is_none() {
                return Err(ConfigError::NoSuchNetwork { port: PortIndex(u16::MAX), network: it.network });
            }
            if !vnis.insert((it.kind, it.vni)) || !carried.insert(it.network) {
                return Err(ConfigError::VniTwice(it.network));
            }
        }
        Ok(())
    }

    /// The ways to other hosts.
    pub fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// The same, and some ports are behind others.
    ///
    /// # Errors
    /// [`ConfigError::BadSubport`], the first one found.
    pub fn with_subports(mut self, subports: Vec<SubportConfig>) -> Result<Config, ConfigError> {
        let children: HashSet<PortIndex> = subports.iter().map(|it| it.index).collect();
        let (mut seen, mut taken) = (HashSet::new(), HashSet::new());
        for it in &subports {
            let are_ports = self.port(it.index).is_some() && self.port(it.parent).is_some();
            let is_new = seen.insert(it.index) && taken.insert((it.parent, it.vlan));
            if !are_ports || !is_new || children.contains(&it.parent) {
                return Err(ConfigError::BadSubport(it.index));
            }
        }
        self.subports = subports;
        Ok(self)
    }

    /// The same, and nobody is known to have any address.
    pub fn without_neighbours(self) -> Config {
        Config { neighbours: Vec::new(), ..self }
    }

    /// The ports that are behind others.
    pub fn subports(&self) -> &[SubportConfig] {
        &self.subports
    }

    /// Who is known to have which address.
    pub fn neighbours(&self) -> &[NeighbourConfig] {
        &self.neighbours
    }

    /// The largest index of ports, uplinks and far ends, plus one.
    pub fn index_end(&self) -> usize {
        let ports = self.ports.last().map(|port| port.index);
        self.underlay.indices().chain(ports).max().map_or(0, |last| last.as_usize() + 1)
    }

    /// The networks, by index.
    pub fn networks(&self) -> &[NetworkConfig] {
        &self.networks
    }

    /// The ports, by index.
    pub fn ports(&self) -> &[PortConfig] {
        &self.ports
    }

    /// One port.
    pub fn port(&self, index: PortIndex) -> Option<&PortConfig> {
        self.ports.binary_search_by_key(&index, |port| port.index).ok().map(|at| &self.ports[at])
    }

    /// One network.
    pub fn network(&self, index: NetworkIndex) -> Option<&NetworkConfig> {
        self.networks.binary_search_by_key(&index, |network| network.index).ok().map(|at| &self.networks[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::underlay::{UplinkConfig, UplinkTags, VlanConfig};

    fn port(index: u16, network: Option<u16>) -> PortConfig {
        PortConfig {
            index: PortIndex(index),
            interface: format!("if{index}").into(),
            network: network.map(NetworkIndex),
            is_admin_up: true,
            mtu: MTU_DEFAULT,
            macs: Vec::new(),
            allowed_macs: Vec::new(),
        }
    }

    fn network(index: u16) -> NetworkConfig {
        NetworkConfig { index: NetworkIndex(index), id: format!("net{index}").into() }
    }

    #[test]
    fn a_port_on_an_unknown_network_is_refused() {
        let error = Config::new(vec![network(1)], vec![port(0, Some(2))]).unwrap_err();
        assert_eq!(error, ConfigError::NoSuchNetwork { port: PortIndex(0), network: NetworkIndex(2) });
    }

    #[test]
    fn indices_are_unique_and_bounded() {
        assert_eq!(
            Config::new(vec![network(1), network(1)], vec![]).unwrap_err(),
            ConfigError::NetworkTwice(NetworkIndex(1))
        );
        assert_eq!(
            Config::new(vec![], vec![port(3, None), port(3, None)]).unwrap_err(),
            ConfigError::PortTwice(PortIndex(3))
        );
        let beyond = PORTS_MAX as u16;
        assert_eq!(
            Config::new(vec![], vec![port(beyond, None)]).unwrap_err(),
            ConfigError::PortBeyondMax(PortIndex(beyond))
        );
    }

    #[test]
    fn one_fixed_mac_may_repeat_on_two_networks_but_not_on_one() {
        let mac: MacAddr = "02:00:00:00:00:01".parse().unwrap();
        let with = |index, on| PortConfig { macs: vec![mac], ..port(index, Some(on)) };
        let networks = vec![network(0), network(1)];
        assert!(Config::new(networks.clone(), vec![with(0, 0), with(1, 1)]).is_ok());
        assert!(matches!(Config::new(networks, vec![with(0, 1), with(1, 1)]), Err(ConfigError::MacTwice { .. })));
    }

    #[test]
    fn an_allowed_mac_may_be_several_ports_but_must_be_a_stations() {
        let with = |index, mac: &str| PortConfig { allowed_macs: vec![mac.parse().unwrap()], ..port(index, Some(0)) };
        let config = |one, other| Config::new(vec![network(0)], vec![with(0, one), with(1, other)]);
        assert!(config("00:00:5e:00:01:07", "00:00:5e:00:01:07").is_ok());
        for mac in ["01:00:5e:00:00:01", "00:00:00:00:00:00"] {
            assert!(matches!(config("00:00:5e:00:01:07", mac), Err(ConfigError::BadMac { port: PortIndex(1), .. })));
        }
    }

    #[test]
    fn what_has_no_tag_on_an_uplink_is_a_networks_or_the_underlays_and_so_is_what_has_one_tag() {
        let id = VlanId::new;
        let config = |native, service, underlay, address: Option<IpAddr>| {
            let uplink = UplinkConfig {
                index: PortIndex(7),
                physical_network: "p".into(),
                mac: MacAddr([2, 0, 0, 0, 0, 1]),
                mtu: 1500,
                is_shared: false,
                address,
                tags: UplinkTags { native, service, underlay },
            };
            let vlan = VlanConfig {
                index: PortIndex(8),
                uplink: uplink.index,
                vlan: VlanId::new(5).unwrap(),
                network: NetworkIndex(0),
            };
            let underlay = Underlay { uplinks: vec![uplink], vlans: vec![vlan], ..Underlay::default() };
            Config::with_underlay(vec![network(0)], vec![], underlay).map(drop)
        };
        let ours = Some([192, 0, 2, 1].into());
        assert_eq!(config(id(5), None, None, None), Ok(()));
        assert_eq!(config(id(5), None, None, ours), Err(ConfigError::UntaggedTwice(PortIndex(7))));
        assert_eq!(config(id(5), None, id(50), ours), Ok(()));
        assert_eq!(config(id(5), id(500), None, ours), Ok(()));
        assert_eq!(config(None, None, id(5), ours), Err(ConfigError::FarEndTwice(PortIndex(7))));
        assert_eq!(config(None, id(500), id(5), ours), Ok(()), "within the service tag it is another one");
    }

    #[test]
    fn ports_are_found_by_index_whatever_the_order_given() {
        let config = Config::new(vec![network(7)], vec![port(9, Some(7)), port(2, None)]).unwrap();
        assert_eq!(config.port(PortIndex(9)).unwrap().network, Some(NetworkIndex(7)));
        assert!(config.port(PortIndex(3)).is_none());
        assert!(config.network(NetworkIndex(7)).is_some());
    }
}
