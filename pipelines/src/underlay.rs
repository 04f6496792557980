//! The compiled underlay: what an uplink's frames are for, and what a far end's frames are wrapped in.
//!
//! Few things and many questions: uplinks are some, VLANs of an uplink are looked up by id in one load, VNIs and peers by
//! hash, and the packet path asks only when a frame's answer may differ from that of the frame before it.
//! What differs between frames to one peer (lengths, checksum, source port, VNI) is written into a template of the headers
//! that do not. Built with the other tables, immutable; a next hop's MAC alone changes by itself.

use crate::flow_hash;
use crate::path_mtu::is_of_tunnels;
use crate::uplink::quick::Shape;
use crate::wire::icmp::TooBig;
use crate::wire::{ethernet, geneve, gre, ipv4, ipv6, udp, vxlan};
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use switch::config::{Config, MTU_MAX, SubportConfig};
use switch::ids::{MacAddr, NetworkIndex, PortIndex};
use switch::underlay::{GatewayConfig, NextHop, PeerConfig, SaidMtu, TunnelKind, UplinkConfig, VlanId, Vni};

/// Bytes of the longest template: Ethernet and IPv6.
const IP_TEMPLATE_MAX: usize = ethernet::LEN + ethernet::TAG_LEN + ipv6::LEN;

/// No VLAN's id.
pub const NO_UNDERLAY: u16 = VlanId::MAX + 2;

/// What [`UplinkEntry::underlay`] is where tunnels have no tag: what is a network's is not theirs too.
fn untagged_underlay(uplink: &UplinkConfig) -> u16 {
    if uplink.tags.has_untagged_network() { NO_UNDERLAY } else { 0 }
}

/// An uplink.
pub struct UplinkEntry {
    /// Its index.
    pub index: PortIndex,
    /// Its own MAC.
    pub mac: MacAddr,
    /// Bytes of L3 payload.
    pub mtu: u16,
    /// What is not for us is the host's.
    pub is_shared: bool,
    /// The address for which we answer ARP and ND.
    pub address: Option<IpAddr>,
    /// The service tag that VLANs lie within; 0: none.
    pub service: u16,
    /// The VLAN that tunnels are in; 0: they have no tag; [`NO_UNDERLAY`]: none end here.
    pub underlay: u16,
    /// The far end of what has no tag.
    pub native: Option<PortIndex>,
    /// What plain frames in tunnels look like here.
    pub shapes: Vec<Shape>,
    vlans: VlanMap,
}

impl UplinkEntry {
    /// The far end of a VLAN.
    #[inline]
    pub fn vlan(&self, id: u16) -> Option<PortIndex> {
        self.vlans.get(id)
    }
}

/// What stands at each VLAN id.
#[derive(Default)]
pub struct VlanMap(Vec<Option<PortIndex>>);

impl VlanMap {
    /// The port, or far end, of an id.
    #[inline]
    pub fn get(&self, id: u16) -> Option<PortIndex> {
        self.0.get(usize::from(id)).copied().flatten()
    }
}

impl FromIterator<(VlanId, PortIndex)> for VlanMap {
    fn from_iter<I: IntoIterator<Item = (VlanId, PortIndex)>>(all: I) -> VlanMap {
        let mut found = Vec::new();
        for (vlan, index) in all {
            let at = usize::from(vlan.get());
            found.resize(found.len().max(at + 1), None);
            found[at] = Some(index);
        }
        VlanMap(found)
    }
}

/// A device of this host that several ports share: what goes to the others has a tag.
pub struct TrunkEntry {
    /// Its own port's index.
    pub index: PortIndex,
    /// The other ports.
    pub vlans: VlanMap,
}

/// The tags that are put before frames of one network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tags {
    bytes: [u8; 2 * ethernet::TAG_LEN],
    len: u8,
    /// No tag of ours says which network these are of, so one of a tenant's must not seem to.
    pub refuses_tagged: bool,
}

impl Tags {
    /// An optional service tag, and an optional tag behind it, both of priority 0.
    pub fn new(service: Option<VlanId>, vlan: Option<VlanId>) -> Tags {
        let mut tags = Tags { refuses_tagged: vlan.is_none(), ..Tags::default() };
        for (kind, id) in [(ethernet::TYPE_SERVICE_VLAN, service), (ethernet::TYPE_VLAN, vlan)] {
            if let Some(id) = id {
                let at = usize::from(tags.len);
                tags.bytes[at..at + 2].copy_from_slice(&kind.to_be_bytes());
                tags.bytes[at + 2..at + 4].copy_from_slice(&id.get().to_be_bytes());
                tags.len += ethernet::TAG_LEN as u8;
            }
        }
        tags
    }

    /// Their bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// What stands at an index that is a far end.
pub enum FarEnd {
    /// A network's VLAN: of an uplink, or of a port of this host.
    Vlan {
        /// The device that carries it.
        device: PortIndex,
        /// What its frames have there.
        tags: Tags,
    },
    /// Another host.
    Peer(Peer),
}

/// Another host's end of our tunnels.
pub struct Peer {
    /// Its address.
    pub address: IpAddr,
    /// The uplink that leads there.
    pub uplink: Option<PortIndex>,
    /// Where its next hop is.
    pub next_hop: Arc<NextHop>,
    /// Whatever is heard of its address says nothing of that.
    is_next_hop_fixed: bool,
    /// What is said to get there.
    said_mtu: Arc<SaidMtu>,
    /// Bytes of L3 payload on the way there; 0 if nothing leads there.
    pub mtu: u16,
    /// Bytes of the Ethernet header with its tag.
    pub ip_offset: usize,
    /// Ethernet (its destination zero) and IP, with zero for what differs from frame to frame.
    template: [u8; IP_TEMPLATE_MAX],
}

impl Peer {
    /// Ethernet and IP headers towards it.
    #[inline]
    pub fn template(&self) -> &[u8] {
        &self.template[..self.ip_offset + ip_len(self.address)]
    }
}

/// How a network is carried by tunnels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tunnelled {
    /// How its frames are wrapped.
    pub kind: TunnelKind,
    /// Its number there.
    pub vni: Vni,
}

/// Our end of tunnels.
pub struct TunnelEntry {
    /// Our address.
    pub local: IpAddr,
    /// UDP port of VXLAN.
    pub port_vxlan: u16,
    /// Whether keys of GRE have a FlowID in their last 8 bits.
    pub is_nvgre: bool,
    /// The router whose MAC is heard.
    gateway: Option<GatewayConfig>,
    networks: HashMap<(TunnelKind, u32), NetworkIndex, Hashing>,
    peers: HashMap<IpAddr, Sender, Hashing>,
}

/// The other end of tunnels, as the source of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sender {
    /// Its far end.
    pub index: PortIndex,
    /// The uplink that leads there, by which alone its frames come.
    pub uplink: Option<PortIndex>,
}

impl TunnelEntry {
    /// The network of a number.
    #[inline]
    pub fn network(&self, kind: TunnelKind, vni: u32) -> Option<NetworkIndex> {
        self.networks.get(&(kind, vni)).copied()
    }

    /// The end at an address.
    #[inline]
    pub fn peer(&self, address: IpAddr) -> Option<Sender> {
        self.peers.get(&address).copied()
    }
}

/// Hashes what the control plane chose, so it need not withstand anybody: a stranger may ask for what he likes, but enters nothing.
type Hashing = BuildHasherDefault<Mixer>;

/// One multiplication for each word.
#[derive(Default)]
pub struct Mixer(u64);

impl Hasher for Mixer {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    #[inline]
    fn write_u32(&mut self, word: u32) {
        self.write_u64(word.into());
    }

    #[inline]
    fn write_isize(&mut self, word: isize) {
        self.write_u64(word as u64);
    }

    #[inline]
    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    #[inline]
    fn write_u64(&mut self, word: u64) {
        self.0 = flow_hash::mix(self.0, word);
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

/// All of it.
#[derive(Default)]
pub struct UnderlayTables {
    uplinks: Vec<UplinkEntry>,
    trunks: Vec<TrunkEntry>,
    /// By index; none for all that is no far end.
    far_ends: Vec<Option<FarEnd>>,
    /// By network.
    tunnelled: Vec<Option<Tunnelled>>,
    /// Our end; `None`: there are no tunnels.
    pub tunnel: Option<TunnelEntry>,
}

/// Bytes of an IP header without options.
pub fn ip_len(address: IpAddr) -> usize {
    if address.is_ipv4() { ipv4::LEN } else { ipv6::LEN }
}

/// Bytes of what stands between IP and the inner frame.
pub fn tunnel_len(kind: TunnelKind) -> usize {
    match kind {
        TunnelKind::Vxlan => udp::LEN + vxlan::LEN,
        TunnelKind::Geneve => udp::LEN + geneve::LEN,
        TunnelKind::Gre => gre::LEN,
    }
}

/// Bytes of L3 payload that an untagged inner frame may have where the outer one may have `outer`.
pub fn inner_mtu(outer: u16, address: IpAddr, kind: TunnelKind) -> u16 {
    outer.saturating_sub((ip_len(address) + tunnel_len(kind) + ethernet::LEN) as u16)
}

/// The same on the way to a peer. Where nothing leads there, no frame is too long: it is not its length that keeps it.
pub fn inner_mtu_to(outer: u16, address: IpAddr, kind: TunnelKind) -> u16 {
    if outer == 0 { MTU_MAX } else { inner_mtu(outer, address, kind) }
}

/// Bytes of L3 payload that frames of an uplink's VLANs may have. One tag is beside the MTU, as everywhere; a second one is not,
/// and of two the kernel lets none be beside it (packet sockets, `packet_extra_vlan_len_allowed`).
pub fn vlan_mtu(uplink: &UplinkConfig) -> u16 {
    let tags = if uplink.tags.service.is_some() { 2 * ethernet::TAG_LEN } else { 0 };
    uplink.mtu.saturating_sub(tags as u16)
}

impl UnderlayTables {
    /// Compiles that of a checked config.
    pub fn compile(config: &Config) -> UnderlayTables {
        let underlay = config.underlay();
        if underlay.uplinks.is_empty() && underlay.tunnel.is_none() && config.subports().is_empty() {
            return UnderlayTables::default();
        }
        let mut far_ends: Vec<Option<FarEnd>> = Vec::new();
        far_ends.resize_with(config.index_end(), || None);
        let mut tunnelled = vec![None; config.networks().last().map_or(0, |last| last.index.as_usize() + 1)];
        let of_uplink = |index| underlay.vlans.iter().filter(move |vlan| vlan.uplink == index);
        let uplinks: Vec<UplinkEntry> = underlay
            .uplinks
            .iter()
            .map(|uplink| UplinkEntry {
                index: uplink.index,
                mac: uplink.mac,
                mtu: uplink.mtu,
                is_shared: uplink.is_shared,
                address: uplink.address,
                service: uplink.tags.service.map_or(0, VlanId::get),
                underlay: uplink.tags.underlay.map_or(untagged_underlay(uplink), VlanId::get),
                native: of_uplink(uplink.index).find(|it| Some(it.vlan) == uplink.tags.native).map(|it| it.index),
                shapes: underlay.tunnel.iter().flat_map(|tunnel| Shape::all(uplink, tunnel)).collect(),
                vlans: of_uplink(uplink.index).map(|it| (it.vlan, it.index)).collect(),
            })
            .collect();
        for vlan in &underlay.vlans {
            let tags = underlay.uplink(vlan.uplink).map(|uplink| uplink.tags).unwrap_or_default();
            let own = Some(vlan.vlan).filter(|_| tags.native != Some(vlan.vlan));
            let tags = Tags::new(tags.service, own);
            far_ends[vlan.index.as_usize()] = Some(FarEnd::Vlan { device: vlan.uplink, tags });
        }
        for subport in config.subports() {
            let tags = Tags::new(None, Some(subport.vlan));
            far_ends[subport.index.as_usize()] = Some(FarEnd::Vlan { device: subport.parent, tags });
        }
        let tunnel = underlay.tunnel.as_ref().map(|tunnel| {
            for peer in &tunnel.peers {
                let uplink = peer.uplink.and_then(|index| underlay.uplink(index));
                let source = uplink.map_or(MacAddr::default(), |uplink| uplink.mac);
                let tag = uplink.and_then(|uplink| uplink.tags.underlay);
                far_ends[peer.index.as_usize()] = Some(FarEnd::Peer(Peer {
                    address: peer.address,
                    uplink: peer.uplink,
                    next_hop: peer.next_hop.clone(),
                    is_next_hop_fixed: peer.is_next_hop_fixed,
                    said_mtu: peer.said_mtu.clone(),
                    mtu: underlay.mtu_to(peer),
                    ip_offset: ethernet::LEN + tag.map_or(0, |_| ethernet::TAG_LEN),
                    template: template(source, tag, (tunnel.local, peer.address), tunnel.ttl, tunnel.dscp),
                }));
            }
            for it in &tunnel.networks {
                tunnelled[it.network.as_usize()] = Some(Tunnelled { kind: it.kind, vni: it.vni });
            }
            let networks = tunnel.networks.iter().map(|it| ((it.kind, it.vni.get()), it.network)).collect();
            let sender = |peer: &PeerConfig| Sender { index: peer.index, uplink: peer.uplink };
            let peers = tunnel.peers.iter().map(|peer| (peer.address, sender(peer))).collect();
            let (local, port_vxlan, is_nvgre) = (tunnel.local, tunnel.port_vxlan, tunnel.is_nvgre);
            TunnelEntry { local, port_vxlan, is_nvgre, gateway: tunnel.gateway.clone(), networks, peers }
        });
        UnderlayTables { uplinks, trunks: trunks(config.subports()), far_ends, tunnelled, tunnel }
    }

    /// The trunk at an index.
    #[inline]
    pub fn trunk(&self, index: PortIndex) -> Option<&TrunkEntry> {
        let at = self.trunks.binary_search_by_key(&index, |trunk| trunk.index).ok()?;
        Some(&self.trunks[at])
    }

    /// The uplink at an index.
    #[inline]
    pub fn uplink(&self, index: PortIndex) -> Option<&UplinkEntry> {
        self.uplinks.iter().find(|uplink| uplink.index == index)
    }

    /// The far end at an index.
    #[inline]
    pub fn far_end(&self, index: PortIndex) -> Option<&FarEnd> {
        self.far_ends.get(index.as_usize())?.as_ref()
    }

    /// How a network is carried by tunnels; `None`: not at all.
    #[inline]
    pub fn tunnelled(&self, network: NetworkIndex) -> Option<Tunnelled> {
        self.tunnelled.get(network.as_usize()).copied().flatten()
    }

    /// Bytes behind the Ethernet header that frames of a network may have on their way to a peer; `None` if that index is no
    /// peer or the network not in tunnels.
    pub fn mtu(&self, peer: PortIndex, network: NetworkIndex) -> Option<u16> {
        let (FarEnd::Peer(peer), tunnelled) = (self.far_end(peer)?, self.tunnelled(network)?) else { return None };
        Some(inner_mtu_to(peer.mtu, peer.address, tunnelled.kind))
    }

    /// Notes where a neighbour is, if it is one that we send to directly.
    pub fn heard_neighbour(&self, uplink: PortIndex, address: IpAddr, mac: MacAddr) {
        let is_station = !mac.is_group() && !mac.is_zero();
        let gateway = self.tunnel.as_ref().and_then(|tunnel| tunnel.gateway.as_ref());
        if let Some(gateway) = gateway.filter(|it| (it.address, it.uplink) == (address, uplink) && is_station) {
            gateway.next_hop.set(Some(mac));
        }
        let peer = self.tunnel.as_ref().and_then(|tunnel| tunnel.peer(address));
        if let Some(FarEnd::Peer(peer)) = peer.and_then(|peer| self.far_end(peer.index))
            && peer.uplink == Some(uplink)
            && !peer.is_next_hop_fixed
            && is_station
        {
            peer.next_hop.set(Some(mac));
        }
    }
}

impl UnderlayTables {
    /// Where to note what was said on an uplink of a packet that was too long, if it may have been one of ours to a peer.
    pub(crate) fn said_mtu(&self, uplink: PortIndex, told: &TooBig) -> Option<&SaidMtu> {
        let tunnel = self.tunnel.as_ref();
        let is_ours = |tunnel: &&TunnelEntry| is_of_tunnels(told, tunnel.local, tunnel.port_vxlan);
        let peer = tunnel.filter(is_ours).and_then(|tunnel| tunnel.peer(told.to));
        match peer.filter(|peer| peer.uplink == Some(uplink)).and_then(|peer| self.far_end(peer.index)) {
            Some(FarEnd::Peer(peer)) => Some(&peer.said_mtu),
            _ => None,
        }
    }
}

/// By the parents' indices.
fn trunks(subports: &[SubportConfig]) -> Vec<TrunkEntry> {
    let mut of_parents: BTreeMap<PortIndex, Vec<(VlanId, PortIndex)>> = BTreeMap::new();
    for subport in subports {
        of_parents.entry(subport.parent).or_default().push((subport.vlan, subport.index));
    }
    let trunk = |(index, vlans): (PortIndex, Vec<_>)| TrunkEntry { index, vlans: vlans.into_iter().collect() };
    of_parents.into_iter().map(trunk).collect()
}

/// Don't fragment (RFC 791 section 3.1): "VTEPs MUST NOT fragment VXLAN packets" (RFC 7348 section 4.3), and routers on the way
/// shall not either. Such packets need no id (RFC 6864 section 4.1).
const DONT_FRAGMENT: u16 = 0x4000;

fn template(source: MacAddr, tag: Option<VlanId>, ends: (IpAddr, IpAddr), ttl: u8, dscp: u8) -> [u8; IP_TEMPLATE_MAX] {
    let mut bytes = [0; IP_TEMPLATE_MAX];
    bytes[6..12].copy_from_slice(&source.0);
    let tags = Tags::new(None, tag);
    let ip = ethernet::LEN + tags.bytes().len();
    bytes[12..ip - 2].copy_from_slice(tags.bytes());
    match ends {
        (IpAddr::V4(local), IpAddr::V4(remote)) => {
            bytes[ip - 2..ip].copy_from_slice(&ethernet::TYPE_IPV4.to_be_bytes());
            bytes[ip] = 0x45;
            bytes[ip + 1] = dscp << 2;
            bytes[ip + 6..ip + 8].copy_from_slice(&DONT_FRAGMENT.to_be_bytes());
            bytes[ip + 8] = ttl;
            bytes[ip + 12..ip + 16].copy_from_slice(&local.octets());
            bytes[ip + 16..ip + 20].copy_from_slice(&remote.octets());
        }
        (IpAddr::V6(local), IpAddr::V6(remote)) => {
            bytes[ip - 2..ip].copy_from_slice(&ethernet::TYPE_IPV6.to_be_bytes());
            bytes[ip] = 0x60 | dscp >> 2;
            bytes[ip + 1] = dscp << 6;
            bytes[ip + 7] = ttl;
            bytes[ip + 8..ip + 24].copy_from_slice(&local.octets());
            bytes[ip + 24..ip + 40].copy_from_slice(&remote.octets());
        }
        _ => unreachable!("the config has checked that peers are of our own family"),
    }
    bytes
}
