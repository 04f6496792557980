//! The ways to other hosts: uplinks that the settings name, opened like any device, and where the peers of tunnels are.
//!
//! What is hard is that little of it is ours. An interface's MAC and MTU are its owner's, routes and neighbours the kernel's, and all of
//! them change. So they are looked at again and again ([`Control::follow_underlay`]), often while something is missing and
//! seldom else, and a config goes into force where that made a difference. A next hop's MAC alone needs none: workers read
//! it where it stands.
//!
//! On an interface the host's kernel would answer our peers that nobody listens to their tunnels. So the ports are held by sockets
//! that nobody reads, which also keeps others off them.
//!
//! Lock order: `seen` (held by [`Control::follow_underlay`] alone) before `state`.

use super::{Control, State};
use crate::devices::{Slot, do_clash};
use crate::naming::UPLINK_PREFIX;
use crate::settings::{SegmentsSettings, TunnelSettings, UplinkDevice, UplinkSettings};
use api::host::{DeviceSpec, Plug, SocketRole};
use pipelines::neighbour;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType};
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use switch::af_packet::deafen;
use switch::config::{MTU_MAX, MTU_MIN};
use switch::ids::{MacAddr, PortIndex};
use switch::route::Resolver;
use switch::underlay::{NextHop, PeerConfig, TunnelConfig, Underlay, UplinkConfig};
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
    uplinks: Vec<Uplink>,
    tunnel: Option<Tunnel>,
    /// What lowering was told last.
    facts: Underlay,
}

struct Uplink {
    index: PortIndex,
    settings: UplinkSettings,
    plug: Plug,
    slot: Option<Arc<Slot>>,
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
}

impl Ways {
    /// What lowering needs.
    pub(super) fn underlay(&self) -> Underlay {
        self.facts.clone()
    }

    /// The physical network whose uplink a device would be.
    pub(super) fn uses(&self, device: &DeviceSpec) -> Option<&str> {
        let uplink = self.uplinks.iter().find(|uplink| do_clash(&uplink.plug.device, device))?;
        Some(&uplink.settings.physical_network)
    }

    /// The facts as they are now.
    fn look(&self) -> Underlay {
        let uplinks: Vec<UplinkConfig> = self.uplinks.iter().filter_map(Uplink::look).collect();
        let is_there = |index: &PortIndex| uplinks.iter().any(|uplink| uplink.index == *index);
        let tunnel = self.tunnel.as_ref().map(|tunnel| TunnelConfig {
            local: tunnel.local,
            port_vxlan: tunnel.port_vxlan,
            ttl: tunnel.settings.ttl,
            dscp: tunnel.settings.dscp,
            peers: tunnel
                .peers
                .iter()
                .map(|peer| PeerConfig {
                    index: peer.index,
                    address: peer.address,
                    uplink: peer.uplink.filter(is_there),
                    next_hop: peer.next_hop.clone(),
                })
                .collect(),
            networks: Vec::new(),
        });
        Underlay { uplinks, vlans: Vec::new(), tunnel }
    }
}

impl Uplink {
    /// `None` while it is not there, or has no MAC that frames could come from.
    fn look(&self) -> Option<UplinkConfig> {
        let (mac, mtu, is_shared, address) = match &self.settings.device {
            UplinkDevice::VhostUser(vhost) => {
                (vhost.mac.unwrap_or_else(|| made_up_mac(&self.plug)), vhost.mtu, false, vhost.address)
            }
            UplinkDevice::Interface { exclusive, .. } => {
                let found = self.slot.as_ref()?.found()?;
                let mtu = u16::try_from(found.mtu?).unwrap_or(MTU_MAX).clamp(MTU_MIN, MTU_MAX);
                (found.mac, mtu, !exclusive, None)
            }
        };
        let is_station = !mac.is_group() && !mac.is_zero();
        is_station.then(|| UplinkConfig {
            index: self.index,
            physical_network: self.settings.physical_network.as_str().into(),
            mac,
            mtu,
            is_shared,
            address: address.map(|address| address.address),
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
        UplinkDevice::VhostUser(vhost) => {
            let role =
                if vhost.role == crate::settings::Role::Server { SocketRole::Server } else { SocketRole::Client };
            (DeviceSpec::VhostUser { path: vhost.path.display().to_string(), role }, Some(vhost.mtu))
        }
    };
    Plug {
        interface: format!("{UPLINK_PREFIX}{}", settings.physical_network).into(),
        device,
        macs: Vec::new(),
        mtu,
        tenant: None,
        is_automatic: false,
        made: None,
    }
}

/// What one look leaves for the next; of the thread that looks.
#[derive(Default)]
pub(super) struct Seen {
    resolver: Option<Resolver>,
    held: Option<Held>,
    /// Told already, not to be told again until it is something else.
    told: HashSet<String>,
    /// When the peers of uplinks where we do the asking were asked for last, in the order of peers.
    asked: Vec<Option<Instant>>,
}

/// Sockets that keep the kernel from refusing what is for our tunnels.
struct Held {
    _udp: Vec<UdpSocket>,
    _gre: Option<OwnedFd>,
}

impl Held {
    fn open(local: IpAddr, port_vxlan: u16) -> std::io::Result<Held> {
        let mut udp = Vec::new();
        for port in [port_vxlan, PORT_GENEVE] {
            let socket = UdpSocket::bind(SocketAddr::new(local, port))?;
            deafen(socket.as_fd())?;
            udp.push(socket);
        }
        let family = if local.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let protocol = Protocol::from_raw(std::num::NonZeroU32::new(47).expect("GRE's number"));
        let gre = rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol));
        if let Ok(gre) = &gre {
            rustix::net::bind(gre, &SocketAddr::new(local, 0))?;
            deafen(gre.as_fd())?;
        }
        Ok(Held { _udp: udp, _gre: gre.ok() })
    }
}

impl<P: Pipeline> Control<P> {
    /// Takes what the settings say of ways to other hosts. Before [`Control::start`], once.
    pub(crate) fn lead_out(&self, uplinks: &[UplinkSettings], tunnel: &TunnelSettings, segments: &SegmentsSettings) {
        let mut state = self.state();
        let State { indices, ways, .. } = &mut *state;
        let mut reserve = || indices.reserve().expect("uplinks and peers are fewer than ports");
        ways.uplinks = uplinks
            .iter()
            .map(|settings| Uplink {
                index: reserve(),
                settings: settings.clone(),
                plug: plug_of(settings),
                slot: None,
            })
            .collect();
        ways.tunnel = tunnel.local_ip.map(|local| Tunnel {
            settings: tunnel.clone(),
            local,
            port_vxlan: segments.port_vxlan,
            peers: tunnel
                .peers
                .iter()
                .map(|&address| Peer { index: reserve(), address, uplink: None, next_hop: Arc::default() })
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
        let is_missing = self.find_peers(&mut seen, &uplinks);
        let is_changed = {
            let mut state = self.state();
            let facts = state.ways.look();
            let is_changed = facts != state.ways.facts;
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
        let (local, port_vxlan, peers) = match &self.state().ways.tunnel {
            Some(tunnel) => (tunnel.local, tunnel.port_vxlan, tunnel.peers.clone()),
            None => return false,
        };
        if let Some(own) = uplinks.iter().find(|uplink| uplink.address == Some(local)) {
            return self.ask_for_peers(seen, own, &peers);
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
        for (at, peer) in peers.iter().enumerate() {
            let found = self.find_peer(seen, peer);
            is_missing |= found.is_none();
            self.set_uplink(at, found);
        }
        is_missing
    }

    /// By which of our interfaces the kernel reaches a peer; looks its next hop's MAC up.
    fn find_peer(&self, seen: &mut Seen, peer: &Peer) -> Option<PortIndex> {
        let Seen { resolver, told, .. } = seen;
        let resolver = resolver.as_mut()?;
        let route = resolver.route(peer.address).ok().flatten();
        let uplink = route.and_then(|route| {
            let state = self.state();
            let is_it = |uplink: &&Uplink| {
                uplink
                    .slot
                    .as_ref()
                    .and_then(|slot| slot.found())
                    .is_some_and(|found| found.link_index == route.interface)
            };
            state.ways.uplinks.iter().find(is_it).map(|uplink| uplink.index)
        });
        let (Some(route), Some(uplink)) = (route, uplink) else {
            peer.next_hop.set(None);
            if told.insert(format!("no way to {}", peer.address)) {
                tracing::warn!(peer = %peer.address, "no route to this peer leads over an uplink");
            }
            return None;
        };
        told.remove(&format!("no way to {}", peer.address));
        // Also when it is known: so the kernel makes sure of it as for its own traffic.
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
        mac.map(|_| uplink)
    }

    /// The same where we do the asking: on an uplink whose address is ours alone.
    fn ask_for_peers(&self, seen: &mut Seen, own: &UplinkConfig, peers: &[Peer]) -> bool {
        let vhost = {
            let state = self.state();
            let uplink = state.ways.uplinks.iter().find(|uplink| uplink.index == own.index);
            match uplink.map(|uplink| &uplink.settings.device) {
                Some(UplinkDevice::VhostUser(vhost)) => vhost.clone(),
                _ => return false,
            }
        };
        seen.asked.resize(peers.len(), None);
        let mut is_missing = false;
        for (at, peer) in peers.iter().enumerate() {
            let Some(prefix) = vhost.address.filter(|prefix| prefix.contains(peer.address)) else {
                seen.tell(&format!(
                    "{} is not on the network of the uplink of {:?}",
                    peer.address, own.physical_network
                ));
                continue;
            };
            self.set_uplink(at, Some(own.index));
            if let Some(&mac) = vhost.neighbours.get(&peer.address) {
                peer.next_hop.set(Some(mac));
                continue;
            }
            let is_known = peer.next_hop.mac().is_some();
            is_missing |= !is_known;
            let pause = if is_known { ASK_AGAIN } else { ASK_PAUSE };
            if seen.asked[at].is_none_or(|asked| asked.elapsed() >= pause) {
                seen.asked[at] = Some(Instant::now());
                if let Some(frame) = neighbour::question(own.mac, prefix.address, peer.address) {
                    self.switch.originate(own.index, &frame);
                }
            }
        }
        is_missing
    }

    fn set_uplink(&self, peer: usize, uplink: Option<PortIndex>) {
        let mut state = self.state();
        if let Some(peer) = state.ways.tunnel.as_mut().and_then(|tunnel| tunnel.peers.get_mut(peer)) {
            peer.uplink = uplink;
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

/// An uplink or a far end as `show` tells it.
pub(crate) struct WayView {
    /// Its index.
    pub(crate) index: PortIndex,
    /// What it is called: `uplink:…`, `vlan:…` or `tunnel:…`.
    pub(crate) name: String,
    /// What carries it: a device's kind, `vlan` or `tunnel`.
    pub(crate) kind: &'static str,
    /// A path, an interface's name, or the peer's address.
    pub(crate) path: String,
    /// How its frames are moved.
    pub(crate) driver: Option<&'static str>,
    /// Whether frames can pass.
    pub(crate) is_up: bool,
    /// Why not.
    pub(crate) reason: String,
    /// Bytes of L3 payload.
    pub(crate) mtu: Option<u16>,
}

impl<P: Pipeline> Control<P> {
    /// Uplinks and far ends.
    pub(crate) fn ways(&self) -> Vec<WayView> {
        let state = self.state();
        let config = self.switch.snapshot().config.clone();
        let underlay = config.underlay();
        let mut views: Vec<WayView> = Vec::new();
        for uplink in &state.ways.uplinks {
            let device = uplink.slot.as_ref().map(|slot| slot.state());
            let facts = underlay.uplinks.iter().find(|facts| facts.index == uplink.index);
            views.push(WayView {
                index: uplink.index,
                name: uplink.plug.interface.to_string(),
                kind: if matches!(uplink.plug.device, DeviceSpec::Device { .. }) { "device" } else { "vhost-user" },
                path: crate::devices::device_name(&uplink.plug.device).to_owned(),
                driver: uplink.slot.as_ref().and_then(|slot| slot.found()).map(|found| found.driver),
                is_up: device.as_ref().is_some_and(|device| device.link == switch::port::Link::Up),
                reason: device.map(|device| device.reason).unwrap_or_default(),
                mtu: facts.map(|facts| facts.mtu),
            });
        }
        let physical = |index: PortIndex| {
            underlay.uplinks.iter().find(|it| it.index == index).map_or("", |it| &*it.physical_network)
        };
        let mtu = |index: PortIndex| underlay.uplinks.iter().find(|it| it.index == index).map(|it| it.mtu);
        for vlan in &underlay.vlans {
            views.push(WayView {
                index: vlan.index,
                name: format!("vlan:{}.{}", physical(vlan.uplink), vlan.vlan),
                kind: "vlan",
                path: vlan.vlan.to_string(),
                driver: None,
                is_up: true,
                reason: String::new(),
                mtu: mtu(vlan.uplink),
            });
        }
        for peer in underlay.peers() {
            let mac = peer.next_hop.mac();
            let reason = match (peer.uplink, mac) {
                (None, _) => "no-route",
                (_, None) => "no-neighbour",
                _ => "",
            };
            views.push(WayView {
                index: peer.index,
                name: format!("tunnel:{}", peer.address),
                kind: "tunnel",
                path: peer.address.to_string(),
                driver: None,
                is_up: reason.is_empty(),
                reason: reason.to_owned(),
                mtu: peer.uplink.and_then(mtu),
            });
        }
        views
    }
}
