//! The ways to other hosts: uplinks that the settings name, opened like any device, and where the peers of tunnels are.
//!
//! What is hard is that little of it is ours. An interface's MAC and MTU are its owner's, routes and neighbours the kernel's, and all of
//! them change. So they are looked at again and again ([`Control::follow_underlay`]), often while something is missing and
//! seldom else, and a config goes into force where that made a difference. A next hop's MAC alone needs none: workers read
//! it where it stands.
//!
//! Lock order: `seen` (held by [`Control::follow_underlay`] alone) before `state`.

use super::bonds::Links;
use super::held::Held;
use super::path_mtu::PathMtus;
use super::{Control, State};
use crate::devices::{Slot, do_clash};
use crate::naming::UPLINK_PREFIX;
use crate::settings::{GreKeys, SegmentsSettings, TunnelSettings, UplinkDevice, UplinkSettings};
use api::host::{DeviceSpec, Plug, SocketRole};
use api::model::NetworkId;
use pipelines::neighbour;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use switch::config::{MTU_MAX, MTU_MIN};
use switch::ids::{MacAddr, PortIndex};
use switch::route::Resolver;
use switch::underlay::{NextHop, PEERS_MAX, PeerConfig, ToldConfig, TunnelConfig, Underlay, UplinkConfig};
use switch::worker::Pipeline;

/// Pause between two looks while a peer's next hop is not known.
const PAUSE_MISSING: Duration = Duration::from_millis(100);
/// Pause between two looks at what is in order.
const PAUSE: Duration = Duration::from_secs(1);
/// How often one neighbour is asked for on an uplink where we do the asking.
const ASK_PAUSE: Duration = Duration::from_secs(1);
/// How often one that is known is asked again, so that a change of its address is heard.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// UDP port of Geneve (RFC 8926 section 3.3).
const PORT_GENEVE: u16 = pipelines::wire::geneve::PORT;

/// The ways to other hosts, as the settings have them and as they are.
#[derive(Default)]
pub(super) struct Ways {
    pub(super) uplinks: Vec<Uplink>,
    tunnel: Option<Tunnel>,
    /// The uplink whose address our end of tunnels is, if it is known.
    pub(super) local_uplink: Option<PortIndex>,
    /// What lowering was told last.
    pub(super) facts: Underlay,
    /// Networks that cannot leave this host, because of what they would be on the wire.
    kept_in: Vec<NetworkId>,
}

/// An uplink of the settings.
pub(super) struct Uplink {
    pub(super) index: PortIndex,
    settings: UplinkSettings,
    pub(super) plug: Plug,
    pub(super) slot: Option<Arc<Slot>>,
    /// Those of a bond.
    pub(super) links: Option<Links>,
}

struct Tunnel {
    settings: TunnelSettings,
    local: IpAddr,
    port_vxlan: u16,
    peers: Vec<Peer>,
}

/// A peer.
#[derive(Clone)]
struct Peer {
    index: PortIndex,
    address: IpAddr,
    uplink: Option<PortIndex>,
    next_hop: Arc<NextHop>,
    /// As far as it is known to be less than the uplink's.
    path_mtu: Option<u16>,
    /// The store tells of it, and it goes when that does no more; else the settings name it.
    is_told: bool,
}

impl Ways {
    /// What lowering needs.
    pub(super) fn underlay(&self) -> Underlay {
        self.facts.clone()
    }

    /// The physical network whose uplink a device would be.
    pub(super) fn uses(&self, device: &DeviceSpec) -> Option<&str> {
        let own = |uplink: &Uplink| do_clash(&uplink.plug.device, device);
        let of_links = |uplink: &Uplink| uplink.links.iter().flat_map(Links::devices).any(|it| do_clash(it, device));
        let uplink = self.uplinks.iter().find(|uplink| own(uplink) || of_links(uplink))?;
        Some(&uplink.settings.physical_network)
    }

    /// Tells which networks cannot leave this host, each once.
    pub(super) fn keep_in(&mut self, networks: Vec<NetworkId>) {
        for network in networks.iter().filter(|network| !self.kept_in.contains(network)) {
            tracing::warn!(
                network = &**network,
                "it stays within this host: on the wire its number is the underlay's, or another network's"
            );
        }
        self.kept_in = networks;
    }

    /// The facts as they are now.
    fn look(&self) -> Underlay {
        let uplinks: Vec<UplinkConfig> = self.uplinks.iter().filter_map(Uplink::look).collect();
        let is_there = |index: &PortIndex| uplinks.iter().any(|uplink| uplink.index == *index);
        let told = |peer: &Peer| {
            let uplink = self.uplinks.iter().find(|uplink| Some(uplink.index) == peer.uplink);
            uplink
                .and_then(|uplink| uplink.settings.own_end())
                .is_some_and(|end| end.neighbours.contains_key(&peer.address))
        };
        let tunnel = self.tunnel.as_ref().map(|tunnel| TunnelConfig {
            local: tunnel.local,
            port_vxlan: tunnel.port_vxlan,
            ttl: tunnel.settings.ttl,
            dscp: tunnel.settings.dscp,
            is_nvgre: tunnel.settings.gre == GreKeys::Nvgre,
            peers: tunnel
                .peers
                .iter()
                .map(|peer| PeerConfig {
                    index: peer.index,
                    address: peer.address,
                    uplink: peer.uplink.filter(is_there),
                    next_hop: peer.next_hop.clone(),
                    is_next_hop_fixed: told(peer),
                    path_mtu: peer.path_mtu,
                })
                .collect(),
            networks: Vec::new(),
        });
        let told_peers = self.tunnel.iter().flat_map(|tunnel| &tunnel.peers).filter(|peer| peer.is_told);
        let told = ToldConfig { peers: told_peers.map(|peer| peer.index).collect(), ..ToldConfig::default() };
        Underlay { uplinks, vlans: Vec::new(), tunnel, told }
    }

    /// The uplink that an interface is. Not a bond: the kernel's end is one link's alone, by its MAC too, and would not move with it.
    fn uplink_at(&self, interface: u32) -> Option<PortIndex> {
        let found = |uplink: &Uplink| uplink.slot.as_ref().and_then(|slot| slot.found());
        let is_it = |uplink: &&Uplink| found(uplink).is_some_and(|found| found.link_index == interface);
        self.uplinks.iter().find(is_it).map(|uplink| uplink.index)
    }

    /// Our end of tunnels.
    pub(super) fn local(&self) -> Option<IpAddr> {
        self.tunnel.as_ref().map(|tunnel| tunnel.local)
    }

    /// The peers by address.
    pub(super) fn peers(&self) -> HashMap<IpAddr, PortIndex> {
        let peers = self.tunnel.iter().flat_map(|tunnel| &tunnel.peers);
        peers.map(|peer| (peer.address, peer.index)).collect()
    }

    /// Makes those peers that the store tells of these, besides those of the settings; answers the indices of those that are
    /// gone, to be given back once no config names them. `reserve` gives an index, if there is one left.
    pub(super) fn tell_peers(
        &mut self,
        told: &BTreeSet<IpAddr>,
        mut reserve: impl FnMut() -> Option<PortIndex>,
    ) -> Vec<PortIndex> {
        let Some(tunnel) = &mut self.tunnel else { return Vec::new() };
        let known: BTreeSet<IpAddr> = tunnel.peers.iter().map(|peer| peer.address).collect();
        let gone: Vec<PortIndex> = tunnel
            .peers
            .extract_if(.., |peer| peer.is_told && !told.contains(&peer.address))
            .map(|peer| peer.index)
            .collect();
        let mut is_changed = !gone.is_empty();
        for &address in told.difference(&known) {
            if tunnel.peers.len() >= PEERS_MAX {
                break;
            }
            let Some(index) = reserve() else { break };
            let next_hop = Arc::default();
            tunnel.peers.push(Peer { index, address, uplink: None, next_hop, path_mtu: None, is_told: true });
            is_changed = true;
        }
        if is_changed {
            self.facts = self.look();
        }
        gone
    }
}

impl Uplink {
    /// The address there that is ours and not the kernel's.
    fn own_address(&self) -> Option<IpAddr> {
        self.settings.own_end().map(|end| end.address.address)
    }

    /// `None` while it is not there, or has no MAC that frames could come from.
    fn look(&self) -> Option<UplinkConfig> {
        let (mac, mtu, is_shared) = match &self.settings.device {
            UplinkDevice::VhostUser(vhost) => (vhost.mac.unwrap_or_else(|| made_up_mac(&self.plug)), vhost.mtu, false),
            UplinkDevice::Bond(bond) => {
                let (mac, mtu) = self.links.as_ref()?.facts()?;
                (mac, mtu, !bond.exclusive)
            }
            UplinkDevice::Interface { exclusive, .. } => {
                let found = self.slot.as_ref()?.found()?;
                let mtu = u16::try_from(found.mtu?).unwrap_or(MTU_MAX).clamp(MTU_MIN, MTU_MAX);
                (found.mac, mtu, !exclusive)
            }
        };
        let is_station = !mac.is_group() && !mac.is_zero();
        is_station.then(|| UplinkConfig {
            index: self.index,
            physical_network: self.settings.physical_network.as_str().into(),
            mac,
            mtu,
            is_shared,
            address: self.own_address(),
            tags: self.settings.tags(),
        })
    }
}

/// A locally administered address, the same at every start: of the socket's path and the host's name.
fn made_up_mac(plug: &Plug) -> MacAddr {
    let mut hasher = DefaultHasher::new();
    rustix::system::uname().nodename().to_bytes().hash(&mut hasher);
    if let DeviceSpec::VhostUser { path, .. } = &plug.device {
        path.hash(&mut hasher);
    }
    let [a, b, c, d, e, ..] = hasher.finish().to_be_bytes();
    MacAddr([0x02, a, b, c, d, e])
}

/// The plug of an uplink. It is in no store: the settings say it at every start.
fn plug_of(settings: &UplinkSettings) -> Plug {
    let (device, mtu) = match &settings.device {
        UplinkDevice::Interface { interface, driver, .. } => {
            (DeviceSpec::Device { name: interface.clone(), netns: None, driver: *driver }, None)
        }
        // The first stands for all of them: each has a plug of its own.
        UplinkDevice::Bond(bond) => {
            (DeviceSpec::Device { name: bond.interfaces[0].clone(), netns: None, driver: bond.driver }, None)
        }
        UplinkDevice::VhostUser(vhost) => {
            let role =
                if vhost.role == crate::settings::Role::Server { SocketRole::Server } else { SocketRole::Client };
            (DeviceSpec::VhostUser { path: vhost.path.display().to_string(), role }, Some(vhost.mtu))
        }
    };
    Plug { mtu, ..Plug::new(format!("{UPLINK_PREFIX}{}", settings.physical_network), device) }
}

/// What one look leaves for the next; of the thread that looks.
#[derive(Default)]
pub(super) struct Seen {
    resolver: Option<Resolver>,
    held: Option<Held>,
    paths: Option<PathMtus>,
    /// Told already, not to be told again until it is something else.
    told: HashSet<String>,
    /// When the peers of uplinks where we do the asking were asked for last.
    asked: HashMap<IpAddr, Instant>,
    /// When those were looked at that are in order.
    all_looked: Option<Instant>,
}

impl<P: Pipeline> Control<P> {
    /// Takes what the settings say of ways to other hosts. Before [`Control::start`], once.
    pub(crate) fn lead_out(&self, uplinks: &[UplinkSettings], tunnel: &TunnelSettings, segments: &SegmentsSettings) {
        let mut state = self.state();
        let State { indices, ways, .. } = &mut *state;
        let mut reserve = || indices.reserve().expect("uplinks and peers are fewer than ports");
        ways.uplinks = uplinks
            .iter()
            .map(|settings| {
                let plug = plug_of(settings);
                let links = match &settings.device {
                    UplinkDevice::Bond(bond) => Some(Links::new(bond, &plug)),
                    _ => None,
                };
                Uplink { index: reserve(), settings: settings.clone(), plug, slot: None, links }
            })
            .collect();
        ways.tunnel = tunnel.local_ip.map(|local| Tunnel {
            settings: tunnel.clone(),
            local,
            port_vxlan: segments.port_vxlan,
            peers: tunnel
                .peers
                .iter()
                .map(|&address| Peer {
                    index: reserve(),
                    address,
                    uplink: None,
                    next_hop: Arc::default(),
                    path_mtu: None,
                    is_told: false,
                })
                .collect(),
        });
        ways.facts = ways.look();
    }

    /// Whether there is anything to follow.
    pub(crate) fn has_uplinks(&self) -> bool {
        !self.state().ways.uplinks.is_empty()
    }

    /// Sends the uplinks to be opened.
    pub(super) fn open_uplinks(&self) {
        let mut state = self.state();
        for uplink in &mut state.ways.uplinks {
            if let (UplinkDevice::Bond(bond), Some(links)) = (&uplink.settings.device, &mut uplink.links) {
                self.open_links(uplink.index, bond, links);
                continue;
            }
            let slot = Slot::new(uplink.plug.clone(), uplink.index, self.switch.place(uplink.index));
            uplink.slot = Some(slot.clone());
            self.supervisor.start(slot);
        }
    }

    /// Looks whether uplinks, routes and neighbours are as they were, and puts in force what is not. Answers how long to wait
    /// before the next look.
    pub(crate) fn follow_underlay(&self) -> Duration {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let uplinks = self.state().ways.look().uplinks;
        // An uplink that is to come is waited for: until it is seen, its VLANs lead nowhere.
        let is_one_away = uplinks.len() < self.state().ways.uplinks.len();
        let local_uplink = self.state().ways.local_uplink;
        let is_missing = self.find_peers(&mut seen, &uplinks) || is_one_away;
        let is_changed = {
            let mut state = self.state();
            let facts = state.ways.look();
            let is_changed = facts != state.ways.facts || local_uplink != state.ways.local_uplink;
            state.ways.facts = facts;
            is_changed
        };
        if is_changed {
            tracing::info!("uplinks or ways to peers have changed");
            self.put_in_force_again();
        }
        if is_missing { PAUSE_MISSING } else { PAUSE }
    }

    /// Finds out by which uplink each peer is reached and where its next hop is. Answers whether one is not known.
    fn find_peers(&self, seen: &mut Seen, uplinks: &[UplinkConfig]) -> bool {
        let (local, port_vxlan, peers, own) = {
            let state = self.state();
            let Some(tunnel) = &state.ways.tunnel else { return false };
            let is_own = |uplink: &&Uplink| uplink.own_address() == Some(tunnel.local);
            let own = state.ways.uplinks.iter().find(is_own).map(|uplink| uplink.index);
            (tunnel.local, tunnel.port_vxlan, tunnel.peers.clone(), own)
        };
        if let Some(own) = own {
            self.state().ways.local_uplink = Some(own);
            match uplinks.iter().find(|uplink| uplink.index == own) {
                Some(own) => return self.ask_for_peers(seen, own, &peers),
                // The address is there and nowhere else: while its uplink is away, the kernel's routes lead nobody to it.
                None => peers.iter().for_each(|peer| self.set_way(peer.address, None, None)),
            }
            return true;
        }
        let mut is_missing = false;
        if seen.held.is_none() {
            match Held::open(local, port_vxlan) {
                Ok(held) => seen.held = Some(held),
                Err(error) => {
                    is_missing = true;
                    seen.tell(&format!("the ports of tunnels at {local} cannot be held: {error}"));
                }
            }
        }
        if seen.resolver.is_none() {
            seen.resolver = Resolver::open().map_err(|error| tracing::warn!(%error, "no answers about routes")).ok();
        }
        if seen.paths.is_none() {
            let ports = [port_vxlan, PORT_GENEVE];
            match PathMtus::open(local, ports) {
                Ok(paths) => seen.paths = Some(paths),
                Err(error) => {
                    seen.tell(&format!("what routers say of packets that are too long is not heard: {error}"));
                }
            }
        }
        if let Some(paths) = &mut seen.paths {
            paths.hear(|address| peers.iter().any(|peer| peer.address == address));
        }
        // While some are missing, and looked for often, the others can wait.
        let is_time_for_all = seen.all_looked.is_none_or(|looked| looked.elapsed() >= PAUSE);
        if is_time_for_all {
            seen.all_looked = Some(Instant::now());
            let has_it = seen.resolver.as_mut().and_then(|resolver| resolver.interface_of(local).ok().flatten());
            let mut state = self.state();
            state.ways.local_uplink = has_it.and_then(|interface| state.ways.uplink_at(interface));
        }
        for peer in &peers {
            if !is_time_for_all && peer.uplink.is_some() && peer.next_hop.mac().is_some() {
                continue;
            }
            let found = self.find_peer(seen, peer);
            is_missing |= found.is_none() || peer.next_hop.mac().is_none();
            let heard = seen.paths.as_ref().and_then(|paths| paths.to(peer.address));
            let told = found.and_then(|(_, mtu)| mtu);
            self.set_way(peer.address, found.map(|(uplink, _)| uplink), heard.into_iter().chain(told).min());
        }
        is_missing
    }

    /// By which of our interfaces the kernel reaches a peer, and what it knows of the MTU on the way; looks its next hop's MAC up.
    fn find_peer(&self, seen: &mut Seen, peer: &Peer) -> Option<(PortIndex, Option<u16>)> {
        let (resolver, told) = (seen.resolver.as_mut()?, &mut seen.told);
        let route = resolver.route(peer.address).ok().flatten();
        let uplink = route.and_then(|route| self.state().ways.uplink_at(route.interface));
        let (Some(route), Some(uplink)) = (route, uplink) else {
            peer.next_hop.set(None);
            if told.insert(format!("no way to {}", peer.address)) {
                tracing::warn!(peer = %peer.address, "no route to this peer leads over an uplink of one interface");
            }
            return None;
        };
        told.remove(&format!("no way to {}", peer.address));
        // So the kernel also makes sure of one that is known, as for its own traffic.
        if let Err(error) = resolver.solicit(route.interface, route.next_hop)
            && told.insert(format!("solicit {}", peer.address))
        {
            tracing::warn!(peer = %peer.address, %error, "the kernel does not look for its next hop (needs CAP_NET_ADMIN)");
        }
        let mac = resolver.neighbour(route.interface, route.next_hop).ok().flatten();
        if mac != peer.next_hop.mac() {
            tracing::info!(peer = %peer.address, next_hop = %route.next_hop, ?mac, "next hop");
            peer.next_hop.set(mac);
        }
        Some((uplink, route.mtu))
    }

    /// The same where we do the asking: on an uplink whose address is ours alone.
    fn ask_for_peers(&self, seen: &mut Seen, own: &UplinkConfig, peers: &[Peer]) -> bool {
        let end = {
            let state = self.state();
            let uplink = state.ways.uplinks.iter().find(|uplink| uplink.index == own.index);
            match uplink.and_then(|uplink| uplink.settings.own_end()) {
                Some(end) => end.clone(),
                None => return false,
            }
        };
        seen.asked.retain(|address, _| peers.iter().any(|peer| peer.address == *address));
        let mut is_missing = false;
        for peer in peers {
            if !end.address.contains(peer.address) {
                seen.tell(&format!(
                    "{} is not on the network of the uplink of {:?}",
                    peer.address, own.physical_network
                ));
                continue;
            }
            self.set_way(peer.address, Some(own.index), None);
            if let Some(&mac) = end.neighbours.get(&peer.address) {
                peer.next_hop.set(Some(mac));
                continue;
            }
            let is_known = peer.next_hop.mac().is_some();
            is_missing |= !is_known;
            let pause = if is_known { ASK_AGAIN } else { ASK_PAUSE };
            if seen.asked.get(&peer.address).is_none_or(|asked| asked.elapsed() >= pause) {
                seen.asked.insert(peer.address, Instant::now());
                if let Some(frame) = neighbour::question(own.mac, own.tags.underlay, end.address.address, peer.address)
                {
                    self.switch.originate(own.index, &frame);
                }
            }
        }
        is_missing
    }

    fn set_way(&self, address: IpAddr, uplink: Option<PortIndex>, path_mtu: Option<u16>) {
        let mut state = self.state();
        let mut peers = state.ways.tunnel.iter_mut().flat_map(|tunnel| &mut tunnel.peers);
        if let Some(peer) = peers.find(|peer| peer.address == address) {
            peer.uplink = uplink;
            peer.path_mtu = path_mtu;
        }
    }
}

impl Seen {
    /// Says something once.
    fn tell(&mut self, what: &str) {
        if self.told.insert(what.to_owned()) {
            tracing::warn!("{what}");
        }
    }
}

/// The thread's own; apart from the state, which others wait for.
pub(super) type SeenByThread = Mutex<Seen>;
