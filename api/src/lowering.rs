//! From what tenants and operators asked for to the switch's config. Pure; the whole state each time.
//!
//! An index, once given, stays with its network or interface for its life in [`Indices`], because the MAC table and
//! the workers' counters are keyed by it. Harder than it looks is that lowering must not fail, whatever operators plug:
//! an interface that cannot be put on its network is left without one and the reason is handed back, so that one bad
//! plug never stops the others. What is in force wins over what is new. The control thread owns it; it costs time in
//! proportion to plugs, not to networks or ports nobody plugged (benches/lowering.rs).

mod elsewhere;

use crate::address_pair::AddressPair;
use crate::host::{DeviceSpec, Plug};
use crate::model::{AdminState, InterfaceId, LogicalPort, Model, Network, NetworkId, PortId};
use crate::network_type::NetworkType;
pub use elsewhere::{Elsewhere, Found, Nowhere};
use elsewhere::{neighbours, tell_of_others};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use switch::config::{Config, MTU_DEFAULT, MTU_MAX, MTU_MIN, NetworkConfig, PortConfig, SubportConfig};
use switch::ids::{MacAddr, NETWORKS_MAX, NetworkIndex, PORTS_MAX, PortIndex};
use switch::underlay::{TunnelledNetwork, Underlay, VlanConfig};

/// Which index belongs to which network and which interface. Freed ones are reused oldest first.
#[derive(Default, Debug)]
pub struct Indices {
    /// By network id.
    pub networks: HashMap<NetworkId, NetworkIndex>,
    /// By interface id.
    pub ports: HashMap<InterfaceId, PortIndex>,
    /// Far ends, by the network whose VLAN they are.
    pub vlans: HashMap<NetworkId, PortIndex>,
    network_pool: Pool,
    port_pool: Pool,
    /// The network each interface with fixed MACs was put on last time; it keeps its MACs there against newcomers.
    bound_with_macs: HashMap<InterfaceId, NetworkId>,
}

/// Indices not in use: the never used ones from `next` on, and the freed ones, oldest first.
#[derive(Default, Debug)]
struct Pool {
    next: usize,
    freed: VecDeque<u16>,
}

impl Indices {
    /// An index for an uplink or a peer, which it has for good; `None`: all are taken.
    pub fn reserve(&mut self) -> Option<PortIndex> {
        self.port_pool.take(PORTS_MAX).map(PortIndex)
    }

    /// Gives back the index of a peer that is gone, once no config in force names it.
    pub fn release(&mut self, index: PortIndex) {
        self.port_pool.freed.push_back(index.0);
    }
}

impl Pool {
    /// A freed index before a new one, so that tables indexed by it stay short.
    fn take(&mut self, count_max: usize) -> Option<u16> {
        self.freed.pop_front().or_else(|| {
            let index = u16::try_from(self.next).ok().filter(|_| self.next < count_max)?;
            self.next += 1;
            Some(index)
        })
    }
}

/// Why a plugged interface is on no network although a logical port names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unbound {
    /// The plug is for another tenant (`claimed-by-other`).
    ClaimedByOther,
    /// One of its fixed MACs is fixed for another interface of that network (`mac-conflict`).
    MacConflict,
    /// One of its fixed MACs is no station's address (`mac-invalid`); the daemon refuses such plugs.
    MacInvalid,
    /// Another host has it plugged (`plugged-elsewhere`).
    PluggedElsewhere,
    /// All [`PORTS_MAX`] indices are taken (`too-many-ports`); the interface is not in the config at all.
    TooManyPorts,
}

impl Unbound {
    /// The word for `reason` in `qvs show ports`.
    pub fn reason(self) -> &'static str {
        match self {
            Unbound::ClaimedByOther => "claimed-by-other",
            Unbound::MacConflict => "mac-conflict",
            Unbound::MacInvalid => "mac-invalid",
            Unbound::PluggedElsewhere => "plugged-elsewhere",
            Unbound::TooManyPorts => "too-many-ports",
        }
    }
}

/// The outcome of lowering.
pub struct Lowered {
    /// The config to publish.
    pub config: Config,
    /// Interfaces kept off the network their logical port is on, and why.
    pub unbound: HashMap<InterfaceId, (PortId, Unbound)>,
    /// Far ends of VLANs that no network here is on any more. Like those of plugs that went they are to be forgotten once the
    /// config is in force.
    pub departed_vlans: Vec<PortIndex>,
    /// Networks that stay within this host although their uplink is there: what they would be on the wire is the underlay's, or
    /// another network's.
    pub kept_in: Vec<NetworkId>,
}

/// A plug and what the tenants' side says of it.
struct Candidate<'a> {
    plug: &'a Plug,
    /// Its index; `None` if there was none left.
    index: Option<PortIndex>,
    /// The parsed MACs; `None` if one is no station's.
    macs: Option<Vec<MacAddr>>,
    claim: Option<(&'a LogicalPort, &'a Network)>,
    /// Whether it was on that very network, with fixed MACs, last time.
    is_holder: bool,
}

/// Fixed MACs given out, by the serial of the network, which is as unique as its id and quicker to hash.
type FixedMacs = HashSet<(u64, MacAddr)>;

/// Lowers the whole state.
///
/// Every plug becomes a port with the admin state of the logical port it is attached to (up without one). Only networks
/// with a port here are in the config. An index freed by this call is given away only by a later one, unless none is
/// left, so that whoever publishes can flush in between.
pub fn lower(model: &Model, plugs: &BTreeMap<InterfaceId, Plug>, indices: &mut Indices) -> Lowered {
    lower_over(model, plugs, indices, Underlay::default())
}

/// The same on a host with these uplinks and peers; which networks they carry is found here.
pub fn lower_over(
    model: &Model,
    plugs: &BTreeMap<InterfaceId, Plug>,
    indices: &mut Indices,
    underlay: Underlay,
) -> Lowered {
    lower_among(model, plugs, indices, underlay, &Nowhere)
}

/// The same among hosts of which something is known.
pub fn lower_among(
    model: &Model,
    plugs: &BTreeMap<InterfaceId, Plug>,
    indices: &mut Indices,
    mut underlay: Underlay,
    elsewhere: &dyn Elsewhere,
) -> Lowered {
    let (port_indices, departed) = index_ports(plugs, indices);
    let mut candidates: Vec<_> = std::iter::zip(plugs.values(), port_indices)
        .map(|(plug, index)| Candidate::new(model, plug, index, &indices.bound_with_macs))
        .collect();
    let mut unbound = HashMap::new();
    let mut bound: Vec<Option<&Network>> = vec![None; candidates.len()];
    let mut fixed = FixedMacs::new();
    // Two passes: who held his MACs on this network last time, then the others in the order of interface ids.
    for is_holders_turn in [true, false] {
        for (candidate, bound) in std::iter::zip(&candidates, &mut bound) {
            let Some((port, network)) = candidate.claim.filter(|_| candidate.is_holder == is_holders_turn) else {
                continue;
            };
            let outcome = match elsewhere.is_held(&candidate.plug.interface) {
                true => Err(Unbound::PluggedElsewhere),
                false => candidate.bind(network, &mut fixed),
            };
            match outcome {
                Ok(()) => *bound = Some(network),
                Err(reason) => {
                    unbound.insert(candidate.plug.interface.clone(), (port.id.clone(), reason));
                }
            }
        }
    }
    remember_holders(&candidates, &bound, &mut indices.bound_with_macs);

    let in_use = index_networks(model, &bound, indices);
    let (departed_vlans, kept_in) = lead_out(&in_use, indices, &mut underlay);
    let told = tell_of_others(model, plugs, &in_use, &mut fixed, elsewhere, &mut underlay);
    let departed = departed.into_iter().chain(departed_vlans.iter().copied()).map(|port| port.0);
    indices.port_pool.freed.extend(departed);
    let index_of = |network: &Network| {
        let at = in_use.binary_search_by_key(&network.serial, |(network, _)| network.serial);
        in_use[at.expect("every bound network is in use")].1
    };
    let ports = std::iter::zip(&mut candidates, bound).filter_map(|(candidate, network)| {
        Some(PortConfig {
            index: candidate.index?,
            interface: candidate.plug.interface.clone(),
            network: network.map(index_of),
            is_admin_up: candidate.claim.is_none_or(|(port, _)| port.state == AdminState::Active),
            mtu: mtu(candidate.plug),
            allowed_macs: candidate.allowed_macs(),
            macs: candidate.macs.take().unwrap_or_default(),
        })
    });
    let ports: Vec<PortConfig> = ports.collect();
    let neighbours = neighbours(plugs, &ports, told);
    let subports = subports(plugs, &ports);
    let networks = in_use.iter().map(|(network, index)| NetworkConfig { index: *index, id: network.id.clone() });
    let config = Config::with_underlay(networks.collect(), ports, underlay)
        .and_then(|config| config.with_neighbours(neighbours))
        .and_then(|config| config.with_subports(subports))
        .expect("indices are unique and bounded, MTUs clamped, MACs checked, and every port's network is listed");
    Lowered { config, unbound, departed_vlans, kept_in }
}

/// The ports whose plugs are VLANs of others that are plugged, one for each VLAN there.
fn subports(plugs: &BTreeMap<InterfaceId, Plug>, ports: &[PortConfig]) -> Vec<SubportConfig> {
    let vlan_of = |interface: &InterfaceId| match &plugs.get(interface)?.device {
        DeviceSpec::Vlan { parent, vlan } => Some((parent, *vlan)),
        _ => None,
    };
    if !plugs.values().any(|plug| matches!(plug.device, DeviceSpec::Vlan { .. })) {
        return Vec::new();
    }
    let devices: HashMap<&InterfaceId, PortIndex> = ports
        .iter()
        .filter(|port| vlan_of(&port.interface).is_none())
        .map(|port| (&port.interface, port.index))
        .collect();
    let mut taken = HashSet::new();
    let subport = |port: &PortConfig| {
        let (parent, vlan) = vlan_of(&port.interface)?;
        let parent = *devices.get(parent)?;
        taken.insert((parent, vlan)).then_some(SubportConfig { index: port.index, parent, vlan })
    };
    ports.iter().filter_map(subport).collect()
}

/// The MTU of a plug's port. A device that somebody else made says itself which frames it takes, and its MTU may change at
/// any time: without a limit of the operator's there is none here.
fn mtu(plug: &Plug) -> u16 {
    let default = if matches!(plug.device, DeviceSpec::Device { .. }) { MTU_MAX } else { MTU_DEFAULT };
    plug.mtu.unwrap_or(default).clamp(MTU_MIN, MTU_MAX)
}

impl<'a> Candidate<'a> {
    fn new(
        model: &'a Model,
        plug: &'a Plug,
        index: Option<PortIndex>,
        bound_with_macs: &HashMap<InterfaceId, NetworkId>,
    ) -> Candidate<'a> {
        let claim =
            model.port_by_attachment(&plug.interface).and_then(|port| Some((port, model.networks.get(&port.network)?)));
        let macs = plug.macs.iter().map(|text| text.parse::<MacAddr>().ok()).collect::<Option<Vec<_>>>();
        let macs = macs.filter(|macs| macs.iter().all(|mac| !mac.is_group() && !mac.is_zero()));
        let is_holder = !plug.macs.is_empty()
            && claim.is_some_and(|(_, network)| bound_with_macs.get(&plug.interface) == Some(&network.id));
        Candidate { plug, index, macs, claim, is_holder }
    }

    /// The MACs of its port's pairs that are not fixed for it anyway. They are learnt and not fixed: two routers of a
    /// tenant may share one, which is with the one that speaks.
    fn allowed_macs(&self) -> Vec<MacAddr> {
        let pairs = self.claim.iter().flat_map(|(port, _)| port.pairs.iter());
        let is_fixed = |mac: &MacAddr| self.macs.as_ref().is_some_and(|macs| macs.contains(mac));
        let mut macs: Vec<MacAddr> = pairs.map(AddressPair::mac).filter(|mac| !is_fixed(mac)).collect();
        macs.sort_unstable();
        macs.dedup();
        macs
    }

    /// Whether it may be on `network`; if so its MACs are entered in `fixed`.
    fn bind(&self, network: &Network, fixed: &mut FixedMacs) -> Result<(), Unbound> {
        if self.index.is_none() {
            return Err(Unbound::TooManyPorts);
        }
        if self.plug.tenant.as_deref().is_some_and(|tenant| tenant != &*network.tenant) {
            return Err(Unbound::ClaimedByOther);
        }
        // An unreadable MAC must not turn "only these" into "any": the interface stays off the network.
        let macs = self.macs.as_ref().ok_or(Unbound::MacInvalid)?;
        if macs.iter().any(|&mac| fixed.contains(&(network.serial, mac))) {
            return Err(Unbound::MacConflict);
        }
        fixed.extend(macs.iter().map(|&mac| (network.serial, mac)));
        Ok(())
    }
}

/// Gives every plug an index while there are any, and takes those of interfaces that are gone. In the order of plugs.
fn index_ports(
    plugs: &BTreeMap<InterfaceId, Plug>,
    indices: &mut Indices,
) -> (Vec<Option<PortIndex>>, VecDeque<PortIndex>) {
    let mut found: Vec<_> = plugs.keys().map(|interface| indices.ports.get(interface).copied()).collect();
    let is_any_gone = found.iter().flatten().count() < indices.ports.len();
    let mut departed = VecDeque::new();
    if is_any_gone {
        departed = take_departed(&mut indices.ports, |interface| plugs.contains_key(interface));
        indices.bound_with_macs.retain(|interface, _| plugs.contains_key(interface));
    }
    for (interface, found) in std::iter::zip(plugs.keys(), &mut found) {
        if found.is_none() {
            let free = indices.port_pool.take(PORTS_MAX).map(PortIndex);
            *found = free.or_else(|| departed.pop_front());
            indices.ports.extend(found.map(|index| (interface.clone(), index)));
        }
    }
    (found, departed)
}

/// Says which networks uplinks and tunnels carry; answers the far ends of VLANs that are gone, and the networks that would be on
/// the wire what something else is: settings change, and stored networks keep their numbers. Those stay within this host,
/// as one does whose uplink is not there, or that finds no index left.
fn lead_out(
    in_use: &[(&Network, NetworkIndex)],
    indices: &mut Indices,
    underlay: &mut Underlay,
) -> (Vec<PortIndex>, Vec<NetworkId>) {
    let uplink_of = |network: &Network| {
        let name = network.network_type.physical_network()?;
        underlay.uplinks.iter().find(|uplink| &*uplink.physical_network == name)
    };
    let mut segments = HashSet::new();
    let mut is_taken = |network: &Network| {
        let is_underlay = match &network.network_type {
            NetworkType::Vlan { vlan, .. } => uplink_of(network).is_some_and(|uplink| uplink.tags.is_underlay(*vlan)),
            NetworkType::Local | NetworkType::Tunnel { .. } => false,
        };
        is_underlay || network.network_type.segment().is_some_and(|segment| !segments.insert(segment))
    };
    let (kept_in, led_out): (Vec<_>, Vec<_>) = in_use.iter().partition(|(network, _)| is_taken(network));
    let uplinks: HashMap<&NetworkId, PortIndex> =
        led_out.iter().filter_map(|(network, _)| Some((&network.id, uplink_of(network)?.index))).collect();
    let departed = take_departed(&mut indices.vlans, |network| uplinks.contains_key(network));
    for (network, index) in led_out {
        match &network.network_type {
            NetworkType::Local => {}
            NetworkType::Vlan { vlan, .. } => {
                let Some(&uplink) = uplinks.get(&network.id) else { continue };
                let far_end = match indices.vlans.get(&network.id) {
                    Some(&far_end) => far_end,
                    None => {
                        let Some(free) = indices.port_pool.take(PORTS_MAX) else { continue };
                        indices.vlans.insert(network.id.clone(), PortIndex(free));
                        PortIndex(free)
                    }
                };
                underlay.vlans.push(VlanConfig { index: far_end, uplink, vlan: *vlan, network: index });
            }
            NetworkType::Tunnel { kind, vni } => {
                if let Some(tunnel) = &mut underlay.tunnel {
                    tunnel.networks.push(TunnelledNetwork { network: index, kind: *kind, vni: *vni });
                }
            }
        }
    }
    (departed.into(), kept_in.into_iter().map(|(network, _)| network.id.clone()).collect())
}

/// Notes which network each interface with fixed MACs is on now.
fn remember_holders(
    candidates: &[Candidate<'_>],
    bound: &[Option<&Network>],
    bound_with_macs: &mut HashMap<InterfaceId, NetworkId>,
) {
    for (candidate, bound) in std::iter::zip(candidates, bound) {
        let interface = &candidate.plug.interface;
        match bound {
            Some(_) if candidate.is_holder => {}
            Some(network) if !candidate.plug.macs.is_empty() => {
                bound_with_macs.insert(interface.clone(), network.id.clone());
            }
            _ => {
                bound_with_macs.remove(interface);
            }
        }
    }
}

/// Gives every network in use an index and takes those of networks that are gone. There are always enough: a network in
/// use has a port here, and there are fewer ports than network indices. Returns the networks in use by serial.
fn index_networks<'a>(
    model: &Model,
    bound: &[Option<&'a Network>],
    indices: &mut Indices,
) -> Vec<(&'a Network, NetworkIndex)> {
    const { assert!(PORTS_MAX < NETWORKS_MAX) };
    let mut in_use: Vec<&Network> = bound.iter().flatten().copied().collect();
    in_use.sort_unstable_by_key(|network| network.serial);
    in_use.dedup_by_key(|network| network.serial);
    let mut departed = take_departed(&mut indices.networks, |network| model.networks.contains_key(network));
    let mut index_of = |network: &Network| {
        if let Some(index) = indices.networks.get(&network.id) {
            return *index;
        }
        let index = indices.network_pool.take(NETWORKS_MAX).or_else(|| departed.pop_front().map(|network| network.0));
        let index = NetworkIndex(index.unwrap_or_else(|| {
            // Every index is held by a network that exists but may have no port here any more: take those back.
            let in_use: HashSet<&NetworkId> = in_use.iter().map(|network| &network.id).collect();
            let idle = take_departed(&mut indices.networks, |network| in_use.contains(network));
            indices.network_pool.freed.extend(idle.into_iter().map(|network| network.0));
            indices.network_pool.take(NETWORKS_MAX).expect("at most PORTS_MAX networks are in use")
        }));
        indices.networks.insert(network.id.clone(), index);
        index
    };
    let indexed = in_use.iter().map(|network| (*network, index_of(network))).collect();
    indices.network_pool.freed.extend(departed.into_iter().map(|network| network.0));
    indexed
}

/// Removes and returns, lowest first, the indices of owners that are no longer there.
fn take_departed<Id: Hash + Eq, Index: Copy + Ord>(
    owners: &mut HashMap<Id, Index>,
    is_there: impl Fn(&Id) -> bool,
) -> VecDeque<Index> {
    let mut departed: Vec<Index> = owners.extract_if(|id, _| !is_there(id)).map(|(_, index)| index).collect();
    departed.sort_unstable();
    departed.into()
}

#[cfg(test)]
mod tests;
