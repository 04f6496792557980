//! The compiled config: flat tables by index, for one load and no search a lookup.
//!
//! Built on the control thread from a checked config, then immutable and shared by all workers, but for the words of [`Budget`]. A port costs 16 bytes and
//! its membership 4; a thousand ports stay in the first-level cache. Full compilation walks every port once and is the only
//! way to make tables. An index that no port has reads as a port on no network, so that a frame from it is dropped.

use crate::neighbour::suppression::Neighbours;
use crate::too_long::Budget;
use crate::underlay::{UnderlayTables, inner_mtu_to, vlan_mtu};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use switch::config::{Config, MTU_MAX};
use switch::ids::{MacBits, NetworkIndex, PortIndex};
use switch::underlay::{PeerConfig, TunnelKind};

/// What stands at a port's index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortKind {
    /// A device on a network of its own choice, or a VLAN of a trunk of this host.
    Tenant,
    /// The same of a device that other ports share, whose frames have a tag there.
    Trunk,
    /// A device that leads to other hosts.
    Uplink,
    /// No device: another host, or a VLAN behind an uplink.
    FarEnd,
}

impl PortKind {
    /// Whether its frames come from this host.
    #[inline]
    pub fn is_here(self) -> bool {
        matches!(self, PortKind::Tenant | PortKind::Trunk)
    }
}

/// What the packet path knows of a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortEntry {
    /// The network it is on; `None`: no logical port claims it, or it is a far end of several.
    pub network: Option<NetworkIndex>,
    /// What it is.
    pub kind: PortKind,
    /// The logical port's administrative state.
    pub is_admin_up: bool,
    /// Whether addresses are learnt from its frames: not if all that it may send from are static.
    pub learns: bool,
    /// Bytes of L3 payload a frame may have, either way.
    pub mtu: u16,
    macs_first: u32,
    macs_count: u16,
}

impl PortEntry {
    /// What an unused index reads as.
    const ABSENT: PortEntry = PortEntry {
        network: None,
        kind: PortKind::Tenant,
        is_admin_up: true,
        learns: true,
        mtu: MTU_MAX,
        macs_first: 0,
        macs_count: 0,
    };

    /// The same of a far end, for frames of this network.
    #[inline]
    pub fn on(self, network: NetworkIndex) -> PortEntry {
        PortEntry { network: Some(network), ..self }
    }

    /// Whether it may send from some addresses only.
    #[inline]
    pub fn has_fixed_macs(&self) -> bool {
        self.macs_count > 0
    }
}

const _: () = assert!(size_of::<PortEntry>() <= 16);

/// One port a flood of its network goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// The port.
    pub port: PortIndex,
    /// Its MTU, kept here so that a flood reads one array only.
    pub mtu: u16,
}

/// Where a network's members are.
#[derive(Clone, Copy, Default)]
struct Members {
    first: u32,
    count: u32,
    /// Its far ends; networks in tunnels of one kind have the same, unless the peers are told which have ports of it.
    far_first: u32,
    far_count: u32,
}

/// The compiled tables of [`crate::Standard`].
#[derive(Default)]
pub struct Tables {
    ports: Vec<PortEntry>,
    networks: Vec<Members>,
    members: Vec<Member>,
    macs: Vec<u64>,
    /// Ways to other hosts.
    pub underlay: UnderlayTables,
    /// Who has which address.
    pub neighbours: Neighbours,
    /// Whose senders of packets that are too long may be told.
    pub told: Budget,
    port_names: Vec<Option<Arc<str>>>,
    network_names: Vec<Option<Arc<str>>>,
}

impl Tables {
    /// Compiles a checked config.
    pub fn compile(config: &Config) -> Tables {
        let ports_len = config.index_end();
        let networks_len = config.networks().last().map_or(0, |last| last.index.as_usize() + 1);
        let mut tables = Tables {
            ports: vec![PortEntry::ABSENT; ports_len],
            networks: vec![Members::default(); networks_len],
            members: Vec::with_capacity(config.ports().len()),
            macs: Vec::new(),
            underlay: UnderlayTables::compile(config),
            neighbours: Neighbours::compile(config.neighbours()),
            told: Budget::new(ports_len),
            port_names: vec![None; ports_len],
            network_names: vec![None; networks_len],
        };
        for network in config.networks() {
            tables.network_names[network.index.as_usize()] = Some(network.id.clone());
        }
        let mut memberships = Vec::with_capacity(config.ports().len());
        let parents: HashSet<PortIndex> = config.subports().iter().map(|subport| subport.parent).collect();
        for port in config.ports() {
            let macs_first = tables.macs.len();
            tables.macs.extend(port.macs.iter().chain(&port.allowed_macs).map(|mac| mac.to_u64()));
            tables.macs[macs_first..].sort_unstable();
            tables.ports[port.index.as_usize()] = PortEntry {
                network: port.network,
                kind: if parents.contains(&port.index) { PortKind::Trunk } else { PortKind::Tenant },
                is_admin_up: port.is_admin_up,
                learns: port.macs.is_empty() || !port.allowed_macs.is_empty(),
                mtu: port.mtu,
                macs_first: macs_first as u32,
                macs_count: u16::try_from(tables.macs.len() - macs_first)
                    .expect("plugs and address pairs have some dozens of addresses at most"),
            };
            tables.port_names[port.index.as_usize()] = Some(port.interface.clone());
            if let Some(network) = port.network
                && port.is_admin_up
            {
                memberships.push((network, Member { port: port.index, mtu: port.mtu }));
            }
        }
        memberships.sort_unstable_by_key(|(network, member)| (*network, member.port));
        for (network, member) in memberships {
            let members = &mut tables.networks[network.as_usize()];
            if members.count == 0 {
                members.first = tables.members.len() as u32;
            }
            members.count += 1;
            tables.members.push(member);
        }
        tables.compile_far_ends(config);
        tables
    }

    fn compile_far_ends(&mut self, config: &Config) {
        let underlay = config.underlay();
        let entry = |kind, network, mtu| PortEntry { kind, network, mtu, ..PortEntry::ABSENT };
        for uplink in &underlay.uplinks {
            let at = uplink.index.as_usize();
            self.ports[at] = entry(PortKind::Uplink, None, uplink.mtu);
            self.port_names[at] = Some(format!("uplink:{}", uplink.physical_network).into());
        }
        for vlan in &underlay.vlans {
            let uplink = underlay.uplinks.iter().find(|uplink| uplink.index == vlan.uplink);
            let name = uplink.map_or("", |uplink| &uplink.physical_network);
            let mtu = uplink.map_or(MTU_MAX, vlan_mtu);
            let at = vlan.index.as_usize();
            self.port_names[at] = Some(format!("vlan:{name}.{}", vlan.vlan).into());
            self.ports[at] = entry(PortKind::FarEnd, Some(vlan.network), mtu);
            let members = &mut self.networks[vlan.network.as_usize()];
            (members.far_first, members.far_count) = (self.members.len() as u32, 1);
            self.members.push(Member { port: vlan.index, mtu });
        }
        let Some(tunnel) = &underlay.tunnel else { return };
        for peer in &tunnel.peers {
            self.ports[peer.index.as_usize()] = entry(PortKind::FarEnd, None, MTU_MAX);
            self.port_names[peer.index.as_usize()] = Some(format!("tunnel:{}", peer.address).into());
        }
        let told = &underlay.told;
        let told_peers: HashSet<PortIndex> = told.peers.iter().copied().collect();
        let by_index: HashMap<PortIndex, &PeerConfig> = tunnel.peers.iter().map(|peer| (peer.index, peer)).collect();
        let mut told_members: HashMap<NetworkIndex, Vec<PortIndex>> = HashMap::new();
        for (network, peer) in &told.members {
            told_members.entry(*network).or_default().push(*peer);
        }
        for kind in TunnelKind::ALL {
            let far_first = self.members.len() as u32;
            let member = |peer: &PeerConfig| Member {
                port: peer.index,
                mtu: inner_mtu_to(underlay.mtu_to(peer), peer.address, kind),
            };
            // Those of whom nothing is told get what is for everybody of every network.
            let is_for_all = |peer: &&PeerConfig| !told_peers.contains(&peer.index);
            self.members.extend(tunnel.peers.iter().filter(is_for_all).map(member));
            self.members[far_first as usize..].sort_unstable_by_key(|member| member.port);
            let for_all_end = self.members.len();
            let for_all = far_first as usize..for_all_end;
            for it in tunnel.networks.iter().filter(|it| it.kind == kind) {
                let told = told_members.get(&it.network).map_or(&[][..], Vec::as_slice);
                let members = &mut self.networks[it.network.as_usize()];
                (members.far_first, members.far_count) = (far_first, for_all.len() as u32);
                if !told.is_empty() {
                    // A list of its own.
                    members.far_first = self.members.len() as u32;
                    members.far_count += told.len() as u32;
                    self.members.extend_from_within(for_all.clone());
                    self.members.extend(told.iter().filter_map(|index| by_index.get(index)).map(|peer| member(peer)));
                    self.members[members.far_first as usize..].sort_unstable_by_key(|member| member.port);
                }
            }
        }
    }

    /// What is known of a port; a port on no network if the index is unused.
    #[inline]
    pub fn port(&self, index: PortIndex) -> PortEntry {
        self.ports.get(index.as_usize()).copied().unwrap_or(PortEntry::ABSENT)
    }

    /// The ports of this host on a network whose administrative state is up, by index.
    #[inline]
    pub fn members(&self, network: NetworkIndex) -> &[Member] {
        let Some(members) = self.networks.get(network.as_usize()) else { return &[] };
        &self.members[members.first as usize..][..members.count as usize]
    }

    /// The far ends of a network, by index.
    #[inline]
    pub fn far_members(&self, network: NetworkIndex) -> &[Member] {
        let Some(members) = self.networks.get(network.as_usize()) else { return &[] };
        &self.members[members.far_first as usize..][..members.far_count as usize]
    }

    /// Whether a far end has ports of a network, as far as is told; one of whom nothing is told may have ports of any.
    ///
    /// What another sends is of a network that was removed, and whose number is another's by now, or made up. Costs some ten
    /// comparisons with a thousand peers.
    #[inline]
    pub fn is_far_member(&self, network: NetworkIndex, far_end: PortIndex) -> bool {
        self.far_members(network).binary_search_by_key(&far_end, |member| member.port).is_ok()
    }

    /// Whether the addresses that a port may send from include `mac`. The port comes from these tables.
    #[inline]
    pub fn is_fixed_mac(&self, port: &PortEntry, mac: MacBits) -> bool {
        let macs = &self.macs[port.macs_first as usize..][..port.macs_count as usize];
        // Nearly every port has one; more are found by halving.
        if let [only] = macs { *only == mac.to_u64() } else { macs.binary_search(&mac.to_u64()).is_ok() }
    }

    /// A port, for people: `port 3 "vm-a"`. The name is a tenant's text and comes escaped.
    pub fn label(&self, index: PortIndex) -> String {
        label("port", index.as_usize(), &self.port_names)
    }

    /// A network, for people: `network 1 "blue"`.
    pub fn network_label(&self, index: NetworkIndex) -> String {
        label("network", index.as_usize(), &self.network_names)
    }
}

fn label(kind: &str, index: usize, names: &[Option<Arc<str>>]) -> String {
    match names.get(index) {
        Some(Some(name)) => format!("{kind} {index} {name:?}"),
        _ => format!("{kind} {index}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use switch::config::{NetworkConfig, PortConfig};
    use switch::ids::MacAddr;

    fn port(index: u16, network: Option<u16>) -> PortConfig {
        PortConfig {
            index: PortIndex(index),
            interface: format!("vm-{index}").into(),
            network: network.map(NetworkIndex),
            is_admin_up: true,
            mtu: 1500,
            macs: Vec::new(),
            allowed_macs: Vec::new(),
        }
    }

    fn tables(ports: Vec<PortConfig>) -> Tables {
        let networks = [2, 5].map(|index| NetworkConfig { index: NetworkIndex(index), id: "n".into() }).to_vec();
        Tables::compile(&Config::new(networks, ports).unwrap())
    }

    #[test]
    fn members_are_the_admin_up_ports_of_a_network_and_of_no_other() {
        let down = PortConfig { is_admin_up: false, ..port(3, Some(5)) };
        let tables = tables(vec![port(9, Some(5)), port(1, Some(2)), port(4, Some(5)), down, port(0, None)]);
        let members = |network| tables.members(NetworkIndex(network)).iter().map(|m| m.port.0).collect::<Vec<_>>();
        assert_eq!(members(5), [4, 9]);
        assert_eq!(members(2), [1]);
        assert!(members(0).is_empty(), "a gap in the indices");
        assert!(members(6).is_empty(), "beyond the last");
    }

    #[test]
    fn unused_port_indices_read_as_ports_on_no_network() {
        let tables = tables(vec![port(2, Some(2))]);
        assert_eq!(tables.port(PortIndex(1)).network, None);
        assert_eq!(tables.port(PortIndex(900)).network, None);
        assert_eq!(tables.port(PortIndex(2)).network, Some(NetworkIndex(2)));
    }

    #[test]
    fn fixed_macs_belong_to_their_port_only() {
        let mac = |last| MacAddr([2, 0, 0, 0, 0, last]);
        let with = |index, macs| PortConfig { macs, ..port(index, Some(2)) };
        let tables = tables(vec![with(0, vec![mac(7)]), with(1, vec![mac(9), mac(3), mac(5)]), port(2, Some(2))]);
        let is_fixed = |index, last| tables.is_fixed_mac(&tables.port(PortIndex(index)), mac(last).into());
        assert!(is_fixed(0, 7) && is_fixed(1, 3) && is_fixed(1, 5) && is_fixed(1, 9));
        assert!(!is_fixed(0, 3) && !is_fixed(1, 7) && !is_fixed(2, 7));
        assert!(!tables.port(PortIndex(2)).has_fixed_macs());
    }

    #[test]
    fn allowed_macs_join_the_fixed_ones_and_make_a_port_learn() {
        let mac = |last| MacAddr([2, 0, 0, 0, 0, last]);
        let with = |index, macs, allowed_macs| PortConfig { macs, allowed_macs, ..port(index, Some(2)) };
        let both = with(1, vec![mac(9)], vec![mac(7), mac(3)]);
        let tables = tables(vec![with(0, vec![], vec![mac(7)]), both, with(2, vec![mac(5)], vec![]), port(3, Some(2))]);
        let entry = |index| tables.port(PortIndex(index));
        let may_send = |index, last| tables.is_fixed_mac(&entry(index), mac(last).into());
        assert!(may_send(0, 7) && [3, 7, 9].iter().all(|&last| may_send(1, last)));
        assert!(!may_send(0, 9) && !may_send(1, 5) && !may_send(2, 7));
        assert_eq!([0, 1, 2, 3].map(|index| entry(index).has_fixed_macs()), [true, true, true, false]);
        assert_eq!([0, 1, 2, 3].map(|index| entry(index).learns), [true, true, false, true]);
    }

    #[test]
    fn a_peer_of_whom_its_networks_are_told_is_a_far_end_of_those_alone() {
        use crate::tests::rig::{PEERS, in_tunnels, port};
        let config = in_tunnels(vec![port(0, Some(1)), port(1, Some(2))], TunnelKind::Vxlan, false);
        let far_ends = |told: switch::underlay::ToldConfig| {
            let underlay = switch::underlay::Underlay { told, ..config.underlay().clone() };
            let config = Config::with_underlay(config.networks().to_vec(), config.ports().to_vec(), underlay).unwrap();
            let tables = Tables::compile(&config);
            [1, 2].map(|at| {
                let is_it = |far_end: &PortIndex| tables.is_far_member(NetworkIndex(at), *far_end);
                let far_ends: Vec<_> = tables.far_members(NetworkIndex(at)).iter().map(|it| it.port).collect();
                assert_eq!(far_ends, PEERS.into_iter().filter(is_it).collect::<Vec<_>>());
                far_ends
            })
        };
        let told = |peers: &[PortIndex], members: &[(u16, PortIndex)]| switch::underlay::ToldConfig {
            peers: peers.to_vec(),
            members: members.iter().map(|&(network, peer)| (NetworkIndex(network), peer)).collect(),
            stations: Vec::new(),
        };
        let [one, two] = PEERS;
        assert_eq!(far_ends(told(&[], &[])), [vec![one, two], vec![one, two]]);
        assert_eq!(far_ends(told(&[two], &[])), [vec![one], vec![one]]);
        assert_eq!(far_ends(told(&[two], &[(2, two)])), [vec![one], vec![one, two]]);
        assert_eq!(far_ends(told(&[one], &[(1, one)])), [vec![one, two], vec![two]]);
        assert_eq!(far_ends(told(&[one, two], &[(1, one), (2, one), (2, two)])), [vec![one], vec![one, two]]);
    }

    #[test]
    fn labels_escape_what_tenants_wrote() {
        let odd = PortConfig { interface: "a\"\n\u{1b}[2J".into(), ..port(0, None) };
        assert_eq!(tables(vec![odd]).label(PortIndex(0)), r#"port 0 "a\"\n\u{1b}[2J""#);
    }
}
