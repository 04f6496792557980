//! This host among others: what it says of itself, and what it makes of what they say.
//!
//! Ports of a network on other hosts are found by two facts that every host has: the tenants' state (which interface is attached
//! to which network) and the directory (on which host an interface is plugged). From them come, whenever a config is made, the
//! peers we need, which of them gets what is for everybody of which network, and the addresses fixed there, which are static
//! here; who asks for an IP address that an operator told there is answered here. Addresses that others learnt are planted in the MAC
//! table as if heard from there, again and again while they are told: so a frame to them need not be flooded, and a station that moves
//! is still learnt where it speaks ([`super::seeds`]).
//!
//! All of that is of networks that tunnels carry. A frame of a VLAN goes to everybody on the wire, and where its sender is the wire
//! tells: no peer is made of a host with which we share nothing else, and nothing is planted.
//!
//! A thread of its own, `cluster`, calls [`Control::say`]; it may wait for etcd and never holds the state's lock meanwhile.
//! Lock order: the node's registration in [`Cluster`] -> `state` -> the directory.

use super::learnt::Learnt;
use super::seeds::{Seeds, Told};
use super::{Control, State};
use crate::plugs::PlugError;
use api::cluster::{Claim, Cluster, Directory, NodeRecord, PlugRecord, Plugged, Wanted};
use api::host::{Plug, Scope};
use api::lowering::{Elsewhere, Found};
use api::model::{InterfaceId, Model, Network, Text, Touched};
use api::network_type::NetworkType;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use switch::config::Config;
use switch::ids::{MacAddr, PortIndex};
use switch::worker::Pipeline;

/// Pause between two looks whether there is something to say: so old may op-status be elsewhere, and so much is said at once.
pub(crate) const SAY_PAUSE: Duration = Duration::from_millis(100);

/// What is known of what is plugged on other hosts, as of the last config.
#[derive(Default)]
pub(super) struct Others {
    /// Interfaces plugged here that are another host's, and whose.
    held: BTreeMap<InterfaceId, Text>,
    /// Where those are that are plugged elsewhere, on networks in use here.
    places: HashMap<InterfaceId, Place>,
    /// Addresses learnt there.
    seeds: Seeds,
    /// Addresses learnt here, as others are told.
    learnt: Learnt,
}

struct Place {
    /// `None`: its host has no end of tunnels that we could reach, or its network is none that tunnels carry.
    peer: Option<PortIndex>,
    fixed: Vec<MacAddr>,
    addresses: Vec<IpAddr>,
}

impl Elsewhere for Others {
    fn is_held(&self, interface: &str) -> bool {
        self.held.contains_key(interface)
    }

    fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    fn find(&self, interface: &str) -> Option<Found<'_>> {
        let Place { peer, fixed, addresses } = self.places.get(interface)?;
        Some(Found { peer: *peer, macs: fixed, addresses })
    }
}

/// Wakes a thread that sleeps between two looks.
#[derive(Default)]
pub(crate) struct Wake {
    is_wanted: Mutex<bool>,
    told: Condvar,
}

impl Wake {
    fn wake(&self) {
        *self.is_wanted.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.told.notify_one();
    }

    /// Sleeps this long, or until somebody wakes.
    pub(crate) fn sleep(&self, time_max: Duration) {
        let is_wanted = self.is_wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.told.wait_timeout_while(is_wanted, time_max, |is_wanted| !*is_wanted);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
    }
}

impl State {
    /// Whether the device of an interface is in order and the interface on its network.
    pub(super) fn is_carried(&self, interface: &str) -> bool {
        let is_ready = |plug| self.device_of(plug).is_ready;
        !self.unbound.contains_key(interface) && self.plugs.get(interface).is_some_and(is_ready)
    }

    /// The plugged interfaces and the networks they are on.
    fn networks<'a>(&self, model: &'a Model) -> BTreeSet<&'a str> {
        let ports = self.plugs.keys().filter_map(|interface| model.port_by_attachment(interface));
        ports.map(|port| &*port.network).collect()
    }
}

impl<P: Pipeline> Control<P> {
    /// Takes part in a cloud of several hosts. Before [`Control::start`], once.
    pub(crate) fn join(&self, cluster: Arc<Cluster>) {
        assert!(self.cluster.set(cluster).is_ok(), "a host is in one cloud");
    }

    /// What is plugged here is another host's if that is known, from the start on: etcd may be away for long.
    pub(super) fn recall_held(&self, state: &mut State) {
        let Some(cluster) = self.cluster() else { return };
        let State { plugs, others, .. } = state;
        others.held = cluster.look(|directory| {
            let holder = |interface: &InterfaceId| {
                directory
                    .plug(interface)
                    .filter(|plug| !cluster.is_ours(&plug.record))
                    .map(|plug| plug.record.host.clone())
            };
            plugs.keys().filter_map(|interface| Some((interface.clone(), holder(interface)?))).collect()
        });
    }

    /// The cloud we are in.
    pub(crate) fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.get()
    }

    /// What wakes who follows the ways to other hosts.
    pub(crate) fn underlay_changed(&self) -> Arc<Wake> {
        self.underlay_changed.clone()
    }

    /// Says that this host lives and what is plugged here. Every [`SAY_PAUSE`]; what fails is said by the next call.
    pub(crate) fn say(&self, node: &NodeRecord) {
        let Some(cluster) = self.cluster() else { return };
        self.look_at_macs();
        let said = cluster.live(node).and_then(|()| cluster.say(|| self.wanted()));
        cluster.note_said(said.as_ref().err());
        match said {
            Ok(held) => {
                let is_changed = {
                    let mut state = self.state();
                    let is_changed = state.others.held != held;
                    for (interface, host) in held.iter().filter(|(it, _)| !state.others.held.contains_key(*it)) {
                        tracing::warn!(interface = &**interface, host = &**host, "plugged here and on another host");
                    }
                    state.others.held = held;
                    is_changed
                };
                if is_changed {
                    self.put_in_force_again();
                }
            }
            Err(error) => tracing::debug!(%error, "what is plugged here could not be said"),
        }
    }

    /// What is to be said of what is plugged here.
    pub(super) fn wanted(&self) -> BTreeMap<InterfaceId, Wanted> {
        let model = self.model();
        let state = self.state();
        let config = self.switch.snapshot().config.clone();
        let plugs = state.plugs.values().chain(&state.reserved);
        plugs.map(|plug| (plug.interface.clone(), wanted(&state, &config, &model, plug))).collect()
    }

    /// Notes which addresses were learnt on which port, once in a while.
    fn look_at_macs(&self) {
        if !self.state().others.learnt.is_due(Instant::now()) {
            return;
        }
        let entries = self.switch.mac_table().entries(self.switch.clock().now());
        let mut found: HashMap<PortIndex, Vec<MacAddr>> = HashMap::new();
        for entry in entries.into_iter().filter(|entry| !entry.is_static) {
            found.entry(entry.port).or_default().push(entry.mac);
        }
        let mut state = self.state();
        let State { indices, others, .. } = &mut *state;
        let of = |(interface, index): (&InterfaceId, &PortIndex)| {
            (interface.clone(), found.remove(index).unwrap_or_default())
        };
        others.learnt.note(indices.ports.iter().map(of), Instant::now());
    }

    /// Claims an interface that is about to be plugged here.
    ///
    /// # Errors
    /// [`PlugError::Elsewhere`]. While etcd is away nobody knows, and it may be plugged.
    pub(super) fn claim(&self, plug: &Plug) -> Result<(), PlugError> {
        let Some(cluster) = self.cluster() else { return Ok(()) };
        // No snapshot is held while etcd is asked: devices that leave wait until nobody has one.
        let config = self.switch.snapshot().config.clone();
        let wanted = wanted(&self.state(), &config, &self.model(), plug);
        match cluster.claim(&plug.interface, &wanted) {
            Claim::HeldBy(host) => {
                Err(PlugError::Elsewhere { interface: plug.interface.clone(), host: host.to_string() })
            }
            Claim::Ours | Claim::Unknown => Ok(()),
        }
    }

    /// The interface is plugged here no more.
    pub(super) fn release(&self, interface: &InterfaceId) {
        if let Some(cluster) = self.cluster() {
            cluster.release(interface);
        }
    }

    /// Whether an interface is plugged on another host.
    pub(super) fn is_plugged_elsewhere(&self, interface: &str) -> bool {
        self.cluster().is_some_and(|cluster| {
            cluster.look(|directory| directory.plug(interface).is_some_and(|plug| !cluster.is_ours(&plug.record)))
        })
    }

    /// Whether an interface is carried by another host.
    pub(super) fn is_carried_elsewhere(&self, interface: &str) -> bool {
        self.cluster().is_some_and(|cluster| {
            cluster.look(|directory| directory.plug(interface).is_some_and(|plug| plug.record.is_up))
        })
    }

    /// Whether an interface is plugged on another host for this tenant.
    pub(super) fn is_registered_elsewhere(&self, interface: &str, tenant: &str) -> bool {
        let Some(cluster) = self.cluster() else { return false };
        let is_for = |plug: &Plugged| plug.record.tenant.as_deref() == Some(tenant);
        // It may have been plugged a moment ago, and "no" would be told to the tenant.
        cluster.look(|directory| directory.plug(interface).is_some_and(is_for))
            || cluster.ask_plug(interface).is_ok_and(|plug| plug.as_ref().is_some_and(is_for))
    }

    /// Whether something in `scope` concerns a network that is in use here, although it is plugged elsewhere.
    pub(super) fn is_of_others(&self, state: &State, model: &Model, scope: Scope<'_>) -> bool {
        let (Some(_), Scope::Parts(Touched { interfaces, networks })) = (self.cluster(), scope) else { return false };
        let of_interfaces = interfaces.iter().filter_map(|interface| model.port_by_attachment(interface));
        let touched = networks.iter().chain(of_interfaces.map(|port| &port.network));
        // Networks that were in use may still have their index; then a config is made that changes nothing.
        touched.into_iter().any(|network| state.indices.networks.contains_key(network))
    }

    /// Finds out where the ports of networks in use here are on other hosts, and makes those hosts peers. Answers the indices
    /// of peers that are no more.
    pub(super) fn find_others(&self, state: &mut State, model: &Model) -> Vec<PortIndex> {
        let Some(cluster) = self.cluster() else { return Vec::new() };
        let local = state.ways.local();
        let mut found: Vec<(InterfaceId, Option<IpAddr>, PlugRecord)> = Vec::new();
        cluster.look(|directory| {
            for network in state.networks(model) {
                let is_tunnelled = model.networks.get(network).is_some_and(is_tunnelled);
                for (interface, plug) in plugged(directory, model, network) {
                    // One that is plugged here and is another host's is there.
                    if state.plugs.contains_key(interface) && !state.others.held.contains_key(interface) {
                        continue;
                    }
                    let node = directory.node(&plug.record.host).filter(|_| !cluster.is_ours(&plug.record));
                    let Some(node) = node else { continue };
                    let is_peer = |tunnel: &IpAddr| {
                        local.is_some_and(|local| tunnel.is_ipv4() == local.is_ipv4() && *tunnel != local)
                    };
                    let tunnel = node.tunnel.filter(|tunnel| is_tunnelled && is_peer(tunnel));
                    found.push((interface.clone(), tunnel, plug.record.clone()));
                }
            }
        });
        let told: BTreeSet<IpAddr> = found.iter().filter_map(|(_, tunnel, _)| *tunnel).collect();
        let State { ways, indices, others, .. } = state;
        let count = ways.peers().len();
        let gone = ways.tell_peers(&told, || indices.reserve());
        let peers = ways.peers();
        if !gone.is_empty() || peers.len() != count {
            tracing::info!(peers = peers.len(), "other hosts have come or gone");
            self.underlay_changed.wake();
        }
        let place = |(interface, tunnel, record): (InterfaceId, Option<IpAddr>, PlugRecord)| {
            let peer = tunnel.and_then(|tunnel| peers.get(&tunnel).copied());
            (interface, Place { peer, fixed: record.fixed, addresses: record.addresses })
        };
        others.places = found.into_iter().map(place).collect();
        gone
    }

    /// Plants the addresses that other hosts have learnt, now that the config is in force, and forgets those that no host tells
    /// of any more where they were.
    pub(super) fn plant(&self, state: &mut State, model: &Model) {
        let Some(cluster) = self.cluster() else { return };
        let mut told = Vec::new();
        cluster.look(|directory| {
            for network in state.networks(model) {
                let Some(&index) = state.indices.networks.get(network) else { continue };
                for (interface, plug) in plugged(directory, model, network) {
                    let peer = state.others.places.get(interface).and_then(|place| place.peer);
                    let of = |&mac: &MacAddr| Told { network: index, mac, revision: plug.revision, peer };
                    told.extend(plug.record.learnt.iter().map(of));
                }
            }
        });
        let mac_table = self.switch.mac_table();
        for (network, mac, peer) in state.others.seeds.follow(told.into_iter()) {
            mac_table.forget(network, mac, peer);
        }
        self.plant_again(state);
    }

    /// Plants them once more, so that they do not age while they are told.
    pub(super) fn plant_again(&self, state: &State) {
        let now = self.switch.clock().now();
        for &(network, mac, peer) in state.others.seeds.planted() {
            self.switch.mac_table().learn(network, mac, peer, now);
        }
    }
}

/// Whether other hosts are reached by tunnels in this network.
fn is_tunnelled(network: &Network) -> bool {
    matches!(network.network_type, NetworkType::Tunnel { .. })
}

/// What is plugged, here or elsewhere, for a network: attached to it, and for its tenant or for any.
fn plugged<'a>(
    directory: &'a Directory,
    model: &'a Model,
    network: &str,
) -> impl Iterator<Item = (&'a InterfaceId, &'a Plugged)> {
    let network = model.networks.get(network);
    let ports =
        network.into_iter().flat_map(move |network| model.ports_of(&network.id).map(move |port| (network, port)));
    ports.filter_map(move |(network, port)| {
        let interface = port.attachment.as_ref()?;
        let plug = directory.plug(interface)?;
        let is_for = plug.record.tenant.as_deref().is_none_or(|tenant| tenant == &*network.tenant);
        is_for.then_some((interface, plug))
    })
}

/// What is to be said of a plug.
fn wanted(state: &State, config: &Config, model: &Model, plug: &Plug) -> Wanted {
    let interface = &plug.interface;
    // On its network in the config that is in force: what the model says of it may not be yet.
    let port = state.indices.ports.get(interface).and_then(|index| config.port(*index));
    let is_on_network = port.is_some_and(|port| port.interface == *interface && port.network.is_some());
    // Addresses that several ports may have are where they are heard, and that is for the moment to tell.
    let pairs = model.port_by_attachment(interface).map(|port| port.pairs.clone()).unwrap_or_default();
    let is_shared = |mac: &MacAddr| pairs.iter().any(|pair| pair.mac() == *mac);
    let fixed: Vec<MacAddr> = plug.macs.iter().filter_map(|mac| mac.parse().ok()).collect();
    let is_down = model.port_by_attachment(interface).is_none_or(|port| port.state == api::model::AdminState::Down);
    Wanted {
        tenant: plug.tenant.clone(),
        is_up: is_on_network && state.is_carried(interface),
        learnt: if is_down {
            Vec::new()
        } else {
            state.others.learnt.of(interface).iter().filter(|mac| !is_shared(mac)).copied().collect()
        },
        fixed,
        addresses: plug.addresses.clone(),
    }
}
