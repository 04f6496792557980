//! How networks reach other hosts: uplinks, VLANs on them, and tunnels between hosts; as facts, immutable, without any I/O.
//!
//! What makes it harder than it looks is that a frame's far end must be as cheap to name as a port of this host. So each far
//! end (a network's VLAN on an uplink, or another host's end of our tunnels) has an index among those of ports, at which no
//! device stands: the MAC table learns it, counters are kept for it, and what is forwarded there is carried by its uplink.
//!
//! Built by the control side, checked by [`crate::config::Config::with_underlay`]. The one thing that changes by itself is
//! where the next hop is ([`NextHop`]): one word, written by whoever resolves neighbours and read by workers.

use crate::ids::{MacAddr, NetworkIndex, PortIndex};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Uplinks of a host.
pub const UPLINKS_MAX: usize = 16;
/// Other hosts' ends of tunnels: what a frame to everybody is copied for.
pub const PEERS_MAX: usize = 1024;

/// A VLAN id that can carry frames: 1 to 4,094 (IEEE 802.1Q-2018 table 9-2: 0 is no VLAN, 4,095 is reserved).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct VlanId(u16);

impl VlanId {
    /// The largest one.
    pub const MAX: u16 = 4094;

    /// The id of this number.
    pub fn new(id: u16) -> Option<VlanId> {
        (1..=VlanId::MAX).contains(&id).then_some(VlanId(id))
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

/// A number by which a tunnel tells networks apart: 1 to 2^24 - 1 (RFC 7348 section 5, RFC 8926 section 3.4). As a GRE key
/// it has 24 bits too, so that every kind of tunnel can carry every network.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Vni(u32);

impl Vni {
    /// The largest one.
    pub const MAX: u32 = (1 << 24) - 1;

    /// The VNI of this number.
    pub fn new(id: u32) -> Option<Vni> {
        (1..=Vni::MAX).contains(&id).then_some(Vni(id))
    }

    /// The number.
    #[inline]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a tunnel wraps frames.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum TunnelKind {
    /// RFC 7348.
    Vxlan,
    /// RFC 8926.
    Geneve,
    /// RFC 2784 with the key of RFC 2890.
    Gre,
}

impl TunnelKind {
    /// Every kind; a kind's place here is its number.
    pub const ALL: [TunnelKind; 3] = [TunnelKind::Vxlan, TunnelKind::Geneve, TunnelKind::Gre];

    /// Its name in settings, the store and `show`.
    pub fn name(self) -> &'static str {
        match self {
            TunnelKind::Vxlan => "vxlan",
            TunnelKind::Geneve => "geneve",
            TunnelKind::Gre => "gre",
        }
    }
}

/// Where the next hop towards a peer is: its MAC, once somebody found out.
///
/// The control side, or a worker that hears the neighbour's answer, writes it; workers read it once a burst.
#[derive(Default)]
pub struct NextHop(AtomicU64);

impl NextHop {
    /// Bit above the address: it is known.
    const KNOWN: u64 = 1 << 48;

    /// The MAC, if it is known.
    #[inline]
    pub fn mac(&self) -> Option<MacAddr> {
        // Relaxed: the word is all there is to it.
        let word = self.0.load(Ordering::Relaxed);
        (word & Self::KNOWN != 0).then(|| MacAddr::from_u64(word & (Self::KNOWN - 1)))
    }

    /// Notes the MAC, or that it is known no more.
    pub fn set(&self, mac: Option<MacAddr>) {
        self.0.store(mac.map_or(0, |mac| mac.to_u64() | Self::KNOWN), Ordering::Relaxed);
    }
}

impl fmt::Debug for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.mac().fmt(f)
    }
}

/// What was said to get to a peer, bytes of L3 payload, where workers are who hear it: an address that is ours alone.
///
/// Workers note the least; the control side takes it and judges it.
pub struct SaidMtu(AtomicU32);

impl SaidMtu {
    /// Nobody said anything.
    const NOTHING: u32 = u32::MAX;

    /// Notes that somebody said so.
    pub fn note(&self, mtu: u16) {
        // Relaxed: the word is all there is to it.
        self.0.fetch_min(mtu.into(), Ordering::Relaxed);
    }

    /// The least that was said since it was asked last.
    pub fn take(&self) -> Option<u16> {
        u16::try_from(self.0.swap(Self::NOTHING, Ordering::Relaxed)).ok()
    }
}

impl Default for SaidMtu {
    fn default() -> SaidMtu {
        SaidMtu(AtomicU32::new(Self::NOTHING))
    }
}

impl fmt::Debug for SaidMtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.load(Ordering::Relaxed).fmt(f)
    }
}

/// Tags of an uplink's frames besides those of its VLANs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UplinkTags {
    /// The VLAN whose frames have no tag on the wire; `None`: frames without one are no network's.
    pub native: Option<VlanId>,
    /// The service tag (IEEE 802.1ad) that all VLANs, the native one too, lie within; `None`: they lie in none.
    pub service: Option<VlanId>,
    /// The VLAN that tunnels, and questions for neighbours, are in; `None`: they have no tag.
    pub underlay: Option<VlanId>,
}

impl UplinkTags {
    /// Whether a network's VLAN would be on the wire what tunnels are in. Within a service tag it is another one.
    pub fn is_underlay(&self, vlan: VlanId) -> bool {
        self.service.is_none() && self.underlay == Some(vlan)
    }

    /// Whether what has no tag is a network's and not the underlay's.
    pub fn has_untagged_network(&self) -> bool {
        self.service.is_none() && self.native.is_some()
    }
}

/// A port that leads to other hosts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UplinkConfig {
    /// Its index here.
    pub index: PortIndex,
    /// The physical network it is on; unique.
    pub physical_network: Arc<str>,
    /// Its own MAC, the source of what we send.
    pub mac: MacAddr,
    /// Bytes of L3 payload that its frames may have.
    pub mtu: u16,
    /// Whether the host's kernel uses the interface too: what is not for us is its business, and so are ARP and ND.
    pub is_shared: bool,
    /// An address of ours on it for which we answer ARP and ND; `None` where the kernel does, or there is none.
    pub address: Option<IpAddr>,
    /// Tags besides those of VLANs.
    pub tags: UplinkTags,
}

/// A network's VLAN on an uplink.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VlanConfig {
    /// The far end's index.
    pub index: PortIndex,
    /// The uplink that carries it.
    pub uplink: PortIndex,
    /// Its id there; unique on the uplink.
    pub vlan: VlanId,
    /// The network; on no other VLAN.
    pub network: NetworkIndex,
}

/// Another host's end of our tunnels.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// The far end's index.
    pub index: PortIndex,
    /// Its address; unique, of the family of [`TunnelConfig::local`].
    pub address: IpAddr,
    /// The uplink that leads there; `None`: none does now.
    pub uplink: Option<PortIndex>,
    /// The next hop on the way.
    pub next_hop: Arc<NextHop>,
    /// The next hop is where an operator said, or a gateway: whatever is heard of this address changes nothing.
    pub is_next_hop_fixed: bool,
    /// Bytes of L3 payload that get there, where less than the uplink takes is known to.
    pub path_mtu: Option<u16>,
    /// What is said of it besides, to an address of ours.
    pub said_mtu: Arc<SaidMtu>,
}

impl PeerConfig {
    /// A far end whose next hop is not known.
    pub fn new(index: PortIndex, address: IpAddr, uplink: Option<PortIndex>) -> PeerConfig {
        let (next_hop, said_mtu) = (Arc::default(), Arc::default());
        PeerConfig { index, address, uplink, next_hop, is_next_hop_fixed: false, path_mtu: None, said_mtu }
    }
}

impl PartialEq for PeerConfig {
    fn eq(&self, other: &PeerConfig) -> bool {
        let facts = |it: &PeerConfig| (it.index, it.address, it.uplink, it.path_mtu, it.is_next_hop_fixed);
        facts(self) == facts(other)
            && Arc::ptr_eq(&self.next_hop, &other.next_hop)
            && Arc::ptr_eq(&self.said_mtu, &other.said_mtu)
    }
}

impl Eq for PeerConfig {}

/// The router to peers beyond the network of our address, where nobody but we look for it.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Its address.
    pub address: IpAddr,
    /// The uplink it is on.
    pub uplink: PortIndex,
    /// Where it is; the next hop of all those peers too.
    pub next_hop: Arc<NextHop>,
}

impl PartialEq for GatewayConfig {
    fn eq(&self, other: &GatewayConfig) -> bool {
        (self.address, self.uplink) == (other.address, other.uplink) && Arc::ptr_eq(&self.next_hop, &other.next_hop)
    }
}

impl Eq for GatewayConfig {}

/// A network that is carried by tunnels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TunnelledNetwork {
    /// The network; it comes once.
    pub network: NetworkIndex,
    /// How its frames are wrapped.
    pub kind: TunnelKind,
    /// Its number there; unique within the kind.
    pub vni: Vni,
}

/// Our end of tunnels and what goes through them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TunnelConfig {
    /// Our address.
    pub local: IpAddr,
    /// UDP port of VXLAN.
    pub port_vxlan: u16,
    /// Hops a frame of ours may take.
    pub ttl: u8,
    /// Differentiated services code point of what we send; a tenant's own does not show outside (RFC 2983 section 3.1).
    pub dscp: u8,
    /// Whether a GRE key is a VSID of 24 bits and a FlowID of 8 (NVGRE, RFC 7637 section 3.2), and not the number as it is.
    pub is_nvgre: bool,
    /// The router that has to be looked for; `None`: there is none, or it is known where it is.
    pub gateway: Option<GatewayConfig>,
    /// The other ends.
    pub peers: Vec<PeerConfig>,
    /// The networks.
    pub networks: Vec<TunnelledNetwork>,
}

impl TunnelConfig {
    /// These ends, as settings that say nothing else have it, without a network.
    pub fn new(local: IpAddr, peers: Vec<PeerConfig>) -> TunnelConfig {
        let networks = Vec::new();
        TunnelConfig { local, port_vxlan: 4789, ttl: 64, dscp: 0, is_nvgre: false, gateway: None, peers, networks }
    }
}

/// What is told of other hosts, so that little has to be learnt and flooded.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ToldConfig {
    /// Peers whose networks are known: they get what is for everybody of those alone.
    pub peers: Vec<PortIndex>,
    /// Which of them have ports of which network.
    pub members: Vec<(NetworkIndex, PortIndex)>,
    /// Stations behind peers.
    pub stations: Vec<StationConfig>,
}

/// A station whose host is known.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct StationConfig {
    /// Its network.
    pub network: NetworkIndex,
    /// Its address; unique in the network, and fixed for no port here.
    pub mac: MacAddr,
    /// The peer behind which it is.
    pub peer: PortIndex,
}

/// All ways to other hosts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Underlay {
    /// The uplinks.
    pub uplinks: Vec<UplinkConfig>,
    /// Networks on VLANs.
    pub vlans: Vec<VlanConfig>,
    /// Tunnels; `None`: there are none.
    pub tunnel: Option<TunnelConfig>,
    /// What is told of the hosts at their other ends.
    pub told: ToldConfig,
}

impl Underlay {
    /// Every index in use here: uplinks and far ends.
    pub fn indices(&self) -> impl Iterator<Item = PortIndex> + '_ {
        let uplinks = self.uplinks.iter().map(|uplink| uplink.index);
        uplinks.chain(self.vlans.iter().map(|vlan| vlan.index)).chain(self.peers().map(|peer| peer.index))
    }

    /// The uplink at an index.
    pub fn uplink(&self, index: PortIndex) -> Option<&UplinkConfig> {
        self.uplinks.iter().find(|uplink| uplink.index == index)
    }

    /// Bytes of L3 payload, outer headers included, that get to a peer; 0 if nothing leads there.
    pub fn mtu_to(&self, peer: &PeerConfig) -> u16 {
        let uplink = peer.uplink.and_then(|index| self.uplink(index)).map_or(0, |uplink| uplink.mtu);
        uplink.min(peer.path_mtu.unwrap_or(u16::MAX))
    }

    /// The peers.
    pub fn peers(&self) -> impl Iterator<Item = &PeerConfig> {
        self.tunnel.iter().flat_map(|tunnel| &tunnel.peers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vlan_ids_and_vnis_are_those_that_can_carry_frames() {
        assert!(VlanId::new(0).is_none() && VlanId::new(4095).is_none());
        assert_eq!([1, 4094].map(|id| VlanId::new(id).map(VlanId::get)), [Some(1), Some(4094)]);
        assert!(Vni::new(0).is_none() && Vni::new(1 << 24).is_none());
        assert_eq!(Vni::new(0xff_ffff).map(Vni::get), Some(0xff_ffff));
    }

    #[test]
    fn of_what_is_said_of_a_way_the_least_is_kept_until_it_is_taken() {
        let said = SaidMtu::default();
        assert_eq!(said.take(), None);
        [1400, 0, 1300].into_iter().for_each(|mtu| said.note(mtu));
        assert_eq!((said.take(), said.take()), (Some(0), None));
        said.note(u16::MAX);
        assert_eq!(said.take(), Some(u16::MAX));
    }

    #[test]
    fn a_next_hop_is_known_from_when_it_is_told_until_it_is_told_otherwise() {
        let hop = NextHop::default();
        assert_eq!(hop.mac(), None);
        for mac in [MacAddr::BROADCAST, MacAddr([0; 6]), MacAddr([2, 0, 0, 0, 0, 7])] {
            hop.set(Some(mac));
            assert_eq!(hop.mac(), Some(mac));
        }
        hop.set(None);
        assert_eq!(hop.mac(), None);
    }
}
