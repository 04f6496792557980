//! The ways to other hosts: uplinks that the settings name, opened like any device, and where the peers of tunnels are.
//!
//! What is hard is that little of it is ours. An interface's MAC and MTU are its owner's, routes and neighbours the kernel's, and all of
//! them change. So they are looked at again and again ([`Control::follow_underlay`]), often while something is missing and
//! seldom else, and a config goes into force where that made a difference. A next hop's MAC alone needs none: workers read
//! it where it stands.
//!
//! Lock order: `seen` (held by [`Control::follow_underlay`] alone) before `state`.

use super::bonds::Links;
use super::{Control, State};
use crate::devices::{Slot, do_clash};
use crate::naming::UPLINK_PREFIX;
use crate::settings::{GreKeys, OwnEnd, SegmentsSettings, TunnelSettings, UplinkDevice, UplinkSettings};
use api::host::{DeviceSpec, Plug, SocketRole};
use api::model::NetworkId;
use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use switch::config::{MTU_MAX, MTU_MIN};
use switch::ids::{MacAddr, PortIndex};
use switch::underlay::{
    GatewayConfig, NextHop, PEERS_MAX, PeerConfig, SaidMtu, ToldConfig, TunnelConfig, Underlay, UplinkConfig,
};
use switch::worker::Pipeline;

/// Pause between two looks while a peer's next hop is not known.
const PAUSE_MISSING: Duration = Duration::from_millis(100);
/// Pause between two looks at what is in order.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// The ways to other hosts, as the settings have them and as they are.
#[derive(Default)]
pub(super) struct Ways {
    pub(super) uplinks: Vec<Uplink>,
    pub(super) tunnel: Option<Tunnel>,
    /// The uplink whose address our end of tunnels is, if it is known.
    pub(super) local_uplink: Option<PortIndex>,
    /// What lowering was told last.
    pub(super) facts: Underlay,
    /// Networks that cannot leave this host, because of what they would be on the wire.
    kept_in: Vec<NetworkId>,
    /// Peers that the store tells of and for which there is no room.
    left_out: usize,
}

/// An uplink of the settings.
pub(super) struct Uplink {
    pub(super) index: PortIndex,
    pub(super) settings: UplinkSettings,
    pub(super) plug: Plug,
    pub(super) slot: Option<Arc<Slot>>,
    /// Those of a bond.
    pub(super) links: Option<Links>,
}

pub(super) struct Tunnel {
    settings: TunnelSettings,
    pub(super) local: IpAddr,
    pub(super) port_vxlan: u16,
    /// Where the router is, to peers beyond the network of an address of our own.
    gateway: Arc<NextHop>,
    pub(super) peers: Vec<Peer>,
}

/// A peer.
#[derive(Clone)]
pub(super) struct Peer {
    index: PortIndex,
    pub(super) address: IpAddr,
    pub(super) uplink: Option<PortIndex>,
    pub(super) next_hop: Arc<NextHop>,
    /// As far as it is known to be less than the uplink's.
    pub(super) path_mtu: Option<u16>,
    /// What workers heard of that.
    pub(super) said_mtu: Arc<SaidMtu>,
    /// The store tells of it, and it goes when that does no more; else the settings name it.
    is_told: bool,
}

impl Peer {
    fn new(index: PortIndex, address: IpAddr, next_hop: Arc<NextHop>, is_told: bool) -> Peer {
        Peer { index, address, uplink: None, next_hop, path_mtu: None, said_mtu: Arc::default(), is_told }
    }
}

impl Tunnel {
    /// Where packets for a peer go first: there, or to the gateway of our own end.
    fn next_hop(&self, end: Option<&OwnEnd>, peer: IpAddr) -> Arc<NextHop> {
        let is_beyond = end.is_some_and(|end| end.next_hop(peer).is_some_and(|hop| hop != peer));
        if is_beyond { self.gateway.clone() } else { Arc::default() }
    }
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
            let hop = uplink.and_then(|uplink| uplink.settings.own_end()).map(|end| (end, end.next_hop(peer.address)));
            hop.is_some_and(|(end, hop)| hop != Some(peer.address) || end.neighbours.contains_key(&peer.address))
        };
        let gateway = |tunnel: &Tunnel| {
            let own = self.own_uplink().filter(|own| is_there(&own.index))?;
            let end = own.settings.own_end()?;
            let address = end.gateway.filter(|gateway| !end.neighbours.contains_key(gateway))?;
            Some(GatewayConfig { address, uplink: own.index, next_hop: tunnel.gateway.clone() })
        };
        let tunnel = self.tunnel.as_ref().map(|tunnel| TunnelConfig {
            local: tunnel.local,
            port_vxlan: tunnel.port_vxlan,
            ttl: tunnel.settings.ttl,
            dscp: tunnel.settings.dscp,
            is_nvgre: tunnel.settings.gre == GreKeys::Nvgre,
            gateway: gateway(tunnel),
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
                    said_mtu: peer.said_mtu.clone(),
                })
                .collect(),
            networks: Vec::new(),
        });
        let told_peers = self.tunnel.iter().flat_map(|tunnel| &tunnel.peers).filter(|peer| peer.is_told);
        let told = ToldConfig { peers: told_peers.map(|peer| peer.index).collect(), ..ToldConfig::default() };
        Underlay { uplinks, vlans: Vec::new(), tunnel, told }
    }

    /// The uplink that an interface is. Not a bond: the kernel's end is one link's alone, by its MAC too, and would not move with it.
    pub(super) fn uplink_at(&self, interface: u32) -> Option<PortIndex> {
        let found = |uplink: &Uplink| uplink.slot.as_ref().and_then(|slot| slot.found());
        let is_it = |uplink: &&Uplink| found(uplink).is_some_and(|found| found.link_index == interface);
        self.uplinks.iter().find(is_it).map(|uplink| uplink.index)
    }

    /// The uplink whose own address, none of the kernel's, our end of tunnels is.
    pub(super) fn own_uplink(&self) -> Option<&Uplink> {
        let local = self.local()?;
        self.uplinks.iter().find(|uplink| uplink.own_address() == Some(local))
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
        let end = self.own_uplink().and_then(|own| own.settings.own_end()).cloned();
        let Some(tunnel) = &mut self.tunnel else { return Vec::new() };
        let known: BTreeSet<IpAddr> = tunnel.peers.iter().map(|peer| peer.address).collect();
        let gone: Vec<PortIndex> = tunnel
            .peers
            .extract_if(.., |peer| peer.is_told && !told.contains(&peer.address))
            .map(|peer| peer.index)
            .collect();
        let mut is_changed = !gone.is_empty();
        let mut left_out = 0;
        for &address in told.difference(&known) {
            let index = if tunnel.peers.len() < PEERS_MAX { reserve() } else { None };
            let Some(index) = index else {
                left_out += 1;
                continue;
            };
            let next_hop = tunnel.next_hop(end.as_ref(), address);
            tunnel.peers.push(Peer::new(index, address, next_hop, true));
            is_changed = true;
        }
        if left_out > 0 && self.left_out == 0 {
            tracing::warn!(
                left_out,
                "there are more other hosts than a host can have peers ({PEERS_MAX}): networks do not reach those beyond"
            );
        }
        self.left_out = left_out;
        if is_changed {
            self.facts = self.look();
        }
        gone
    }
}

impl Uplink {
    /// The address there that is ours and not the kernel's.
    pub(super) fn own_address(&self) -> Option<IpAddr> {
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
            gateway: Arc::default(),
            peers: Vec::new(),
        });
        let end = ways.own_uplink().and_then(|own| own.settings.own_end()).cloned();
        if let Some(own) = &mut ways.tunnel {
            let peer = |&address| Peer::new(reserve(), address, own.next_hop(end.as_ref(), address), false);
            own.peers = tunnel.peers.iter().map(peer).collect();
        }
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
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;
    use crate::settings::Settings;

    #[test]
    fn of_more_other_hosts_than_there_is_room_for_those_beyond_are_counted_until_others_go() {
        let text = "[[uplink]]\nphysical_network = \"p\"\ninterface = \"eth1\"\n[tunnel]\nlocal_ip = \"10.0.0.1\"";
        let settings = Settings::parse(text, "qvs.toml").unwrap();
        let local = settings.tunnel.local_ip.unwrap();
        let tunnel =
            Tunnel { settings: settings.tunnel, local, port_vxlan: 4789, gateway: Arc::default(), peers: Vec::new() };
        let mut ways = Ways { tunnel: Some(tunnel), ..Ways::default() };
        let hosts = |count: u32| (0..count).map(|host| IpAddr::from((0x0a01_0000 + host).to_be_bytes())).collect();
        let mut last = 0;
        let mut reserve = || {
            last += 1;
            Some(PortIndex(last))
        };
        let max = PEERS_MAX as u32;
        assert!(ways.tell_peers(&hosts(max + 3), &mut reserve).is_empty());
        assert_eq!((ways.peers().len(), ways.left_out), (PEERS_MAX, 3));
        ways.tell_peers(&hosts(max + 5), &mut reserve);
        assert_eq!((ways.peers().len(), ways.left_out), (PEERS_MAX, 5));
        assert_eq!(ways.tell_peers(&hosts(max - 1), &mut reserve).len(), 1);
        assert_eq!((ways.peers().len(), ways.left_out), (PEERS_MAX - 1, 0));
    }
}
