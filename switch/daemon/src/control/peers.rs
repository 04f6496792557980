//! Where the peers of tunnels are: by which uplink each is reached, where its next hop is, and how long packets there may be.
//!
//! On an interface with an address of the kernel's its routes and neighbours are asked for, one by one; where it gives no answer,
//! what was known holds. On an uplink whose address is ours alone we ask for neighbours ourselves. All of it is the thread's that
//! follows the underlay.

use super::Control;
use super::held::Held;
use super::path_mtu::{Ear, PathMtus};
use super::underlay::{PAUSE, Peer};
use pipelines::neighbour;
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use switch::ids::PortIndex;
use switch::route::Resolver;
use switch::underlay::UplinkConfig;
use switch::worker::Pipeline;

/// How often one neighbour is asked for on an uplink where we do the asking.
const ASK_PAUSE: Duration = Duration::from_secs(1);
/// How often one that is known is asked again, so that a change of its address is heard.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// What one look leaves for the next; of the thread that looks.
#[derive(Default)]
pub(super) struct Seen {
    resolver: Option<Resolver>,
    held: Option<Held>,
    ear: Option<Ear>,
    paths: PathMtus,
    /// Told already, not to be told again until it is something else.
    told: HashSet<String>,
    /// When the peers of uplinks where we do the asking were asked for last.
    asked: HashMap<IpAddr, Instant>,
    /// When those were looked at that are in order.
    all_looked: Option<Instant>,
}

impl<P: Pipeline> Control<P> {
    /// Finds out by which uplink each peer is reached and where its next hop is. Answers whether one is not known.
    pub(super) fn find_peers(&self, seen: &mut Seen, uplinks: &[UplinkConfig]) -> bool {
        let (local, port_vxlan, peers, own) = {
            let state = self.state();
            let Some(tunnel) = &state.ways.tunnel else { return false };
            let own = state.ways.own_uplink().map(|uplink| uplink.index);
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
        if seen.ear.is_none() {
            match Ear::open(local, port_vxlan) {
                Ok(ear) => seen.ear = Some(ear),
                Err(error) => {
                    seen.tell(&format!("what routers say of packets that are too long is not heard: {error}"));
                }
            }
        }
        seen.paths.forget();
        if let Some(ear) = &seen.ear {
            let is_peer = |address| peers.iter().any(|peer| peer.address == address);
            ear.hear(|peer, mtu| {
                if is_peer(peer) {
                    seen.paths.note(peer, mtu);
                }
            });
        }
        // While some are missing, and looked for often, the others can wait.
        let is_time_for_all = seen.all_looked.is_none_or(|looked| looked.elapsed() >= PAUSE);
        if is_time_for_all {
            seen.all_looked = Some(Instant::now());
            if let Some(has_it) = seen.ask(|resolver| resolver.interface_of(local)) {
                let mut state = self.state();
                state.ways.local_uplink = has_it.and_then(|interface| state.ways.uplink_at(interface));
            }
        }
        for peer in &peers {
            if !is_time_for_all && peer.uplink.is_some() && peer.next_hop.mac().is_some() {
                continue;
            }
            let Some(found) = self.find_peer(seen, peer) else {
                is_missing = true;
                continue;
            };
            is_missing |= found.is_none() || peer.next_hop.mac().is_none();
            let heard = seen.paths.to(peer.address);
            let told = found.and_then(|(_, mtu)| mtu);
            self.set_way(peer.address, found.map(|(uplink, _)| uplink), heard.into_iter().chain(told).min());
        }
        is_missing
    }

    /// By which of our interfaces the kernel reaches a peer, and what it knows of the MTU on the way; looks its next hop's MAC up.
    /// `None`: the kernel does not answer.
    fn find_peer(&self, seen: &mut Seen, peer: &Peer) -> Option<Option<(PortIndex, Option<u16>)>> {
        let route = seen.ask(|resolver| resolver.route(peer.address))?;
        let uplink = route.and_then(|route| self.state().ways.uplink_at(route.interface));
        let (Some(route), Some(uplink)) = (route, uplink) else {
            peer.next_hop.set(None);
            if seen.told.insert(format!("no way to {}", peer.address)) {
                tracing::warn!(peer = %peer.address, "no route to this peer leads over an uplink of one interface (a bond needs an address of its own)");
            }
            return Some(None);
        };
        seen.told.remove(&format!("no way to {}", peer.address));
        // So the kernel also makes sure of one that is known, as for its own traffic.
        if let Some(resolver) = &mut seen.resolver
            && let Err(error) = resolver.solicit(route.interface, route.next_hop)
            && seen.told.insert(format!("solicit {}", peer.address))
        {
            tracing::warn!(peer = %peer.address, %error, "the kernel does not look for its next hop (needs CAP_NET_ADMIN)");
        }
        let mac = seen.ask(|resolver| resolver.neighbour(route.interface, route.next_hop))?;
        if mac != peer.next_hop.mac() {
            tracing::info!(peer = %peer.address, next_hop = %route.next_hop, ?mac, "next hop");
            peer.next_hop.set(mac);
        }
        // The kernel believes anybody's word about any packet of the host's.
        let mtu = route.mtu.map(|mtu| if route.is_mtu_heard { seen.paths.believed(peer.address, mtu) } else { mtu });
        Some(Some((uplink, mtu)))
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
        let is_hop = |address: &IpAddr| peers.iter().any(|peer| end.next_hop(peer.address) == Some(*address));
        seen.asked.retain(|address, _| is_hop(address));
        seen.paths.forget();
        let mut is_missing = false;
        for peer in peers {
            if let Some(mtu) = peer.said_mtu.take() {
                seen.paths.note(peer.address, mtu);
            }
            let Some(hop) = end.next_hop(peer.address) else {
                seen.tell(&format!(
                    "{} is not on the network of the uplink of {:?}: the way there needs a gateway",
                    peer.address, own.physical_network
                ));
                continue;
            };
            self.set_way(peer.address, Some(own.index), seen.paths.to(peer.address));
            if let Some(&mac) = end.neighbours.get(&hop) {
                peer.next_hop.set(Some(mac));
                continue;
            }
            let is_known = peer.next_hop.mac().is_some();
            is_missing |= !is_known;
            let pause = if is_known { ASK_AGAIN } else { ASK_PAUSE };
            if seen.asked.get(&hop).is_none_or(|asked| asked.elapsed() >= pause) {
                seen.asked.insert(hop, Instant::now());
                if let Some(frame) = neighbour::question(own.mac, own.tags.underlay, end.address.address, hop) {
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
    /// Asks the kernel. `None`: it does not answer, and is asked by another socket the next time, for this one may be the reason.
    fn ask<T>(&mut self, question: impl FnOnce(&mut Resolver) -> io::Result<T>) -> Option<T> {
        let answer = match &mut self.resolver {
            Some(resolver) => question(resolver),
            None => Resolver::open().and_then(|resolver| question(self.resolver.insert(resolver))),
        };
        let answer = answer.map_err(|error| {
            self.resolver = None;
            self.tell(&format!("the kernel does not tell of routes and neighbours, what was known holds: {error}"));
        });
        answer.ok()
    }

    /// Says something once.
    fn tell(&mut self, what: &str) {
        if self.told.insert(what.to_owned()) {
            tracing::warn!("{what}");
        }
    }
}

/// The thread's own; apart from the state, which others wait for.
pub(super) type SeenByThread = Mutex<Seen>;
