//! After the stages, for what goes to a far end: puts the outer headers on while the frame is sent, and takes them off again.
//!
//! What makes it hard: one frame may go to several far ends and to ports of this host besides, and each wants another front.
//! So headers are put on for one far end, its copies are sent, and they are taken off: only the private head changes. All that
//! is the same for frames to one peer is in a template; addresses, lengths, source port and VNI are written over it.
//!
//! Sizes, of which the bridge knows only what holds for untagged frames, are checked here to the byte: no outer packet is longer than
//! its uplink takes, and none is ever fragmented. Checksums inside a tunnel are completed before the frame leaves, or when
//! it is cut (`switch/src/segmentation.rs`).
//!
//! Config read: far ends, tunnels. Drop reasons, at the far end: `no_neighbour`, `over_mtu`, `headers_too_long`,
//! `tagged_on_native`.

use crate::parse;
use crate::tables::Tables;
use crate::underlay::{FarEnd, Peer, Tags, TunnelEntry, Tunnelled, tunnel_len};
use crate::wire::geneve::{self, GeneveRepr};
use crate::wire::gre::{self, GreRepr};
use crate::wire::vxlan::{self, VxlanRepr};
use crate::wire::{ethernet, ipv4, udp, word};
use std::net::IpAddr;
use switch::batch::{BURST, Batch};
use switch::checksum::{self, Sum};
use switch::ids::{MacAddr, PortIndex};
use switch::ledger::{DropReason, Tally};
use switch::packet::{HEADROOM, L3, Packet};
use switch::segment::Segment;
use switch::segmentation::{Encapsulation, Tunnel};
use switch::underlay::TunnelKind;

/// The longest outer header: Ethernet with a tag, IPv6, UDP and VXLAN or Geneve.
const OUTER_MAX: usize = ethernet::LEN + ethernet::TAG_LEN + crate::wire::ipv6::LEN + udp::LEN + 8;
const _: () = assert!(OUTER_MAX <= HEADROOM && vxlan::LEN == 8 && geneve::LEN == 8 && gre::LEN == 8);

/// The uplink that carries what goes to a far end.
pub fn carrier(tables: &Tables, far_end: PortIndex) -> Option<PortIndex> {
    match tables.underlay.far_end(far_end)? {
        FarEnd::Vlan { device, .. } => Some(*device),
        FarEnd::Peer(peer) => peer.uplink,
    }
}

/// Puts headers on, as [`switch::worker::Pipeline::wrap`] asks for.
pub fn wrap(
    tables: &Tables,
    far_end: PortIndex,
    batch: &mut Batch<'_>,
    picks: &[u8],
    carried: &mut [u8; BURST],
    tally: &mut Tally,
) -> usize {
    let Some(far_end) = tables.underlay.far_end(far_end) else {
        tally.drop_many(DropReason::PortGone, picks.len() as u32);
        return 0;
    };
    let wrapper = match far_end {
        FarEnd::Vlan { tags, .. } => Wrapper::Tags(tags),
        FarEnd::Peer(peer) => match peer.next_hop.mac() {
            Some(mac) => Wrapper::Tunnel(Wrapping::new(peer, mac)),
            None => {
                tally.drop_many(DropReason::NoNeighbour, picks.len() as u32);
                return 0;
            }
        },
    };
    let tunnel = tables.underlay.tunnel.as_ref();
    let mut count = 0;
    for &pick in picks {
        let (packet, tail) = batch.frame(usize::from(pick));
        let wrapped = match &wrapper {
            Wrapper::Tags(tags) => push_tags(packet, tags),
            Wrapper::Tunnel(wrapping) => match (tables.underlay.tunnelled(packet.network), tunnel) {
                (Some(tunnelled), Some(tunnel)) => wrapping.put_on(packet, tail, tunnelled, tunnel),
                _ => Err(DropReason::PortGone),
            },
        };
        match wrapped {
            Ok(()) => {
                carried[count] = pick;
                count += 1;
            }
            Err(reason) => tally.drop(reason),
        }
    }
    count
}

/// Takes off what [`wrap`] put on.
pub fn unwrap(tables: &Tables, far_end: PortIndex, batch: &mut Batch<'_>, carried: &[u8]) {
    match tables.underlay.far_end(far_end) {
        Some(FarEnd::Vlan { tags, .. }) => {
            let len = tags.bytes().len();
            for &pick in carried {
                let packet = batch.frame(usize::from(pick)).0;
                packet.head_mut().copy_within(..ADDRESSES_LEN, len);
                packet.retract(len);
            }
        }
        Some(FarEnd::Peer(peer)) => {
            for &pick in carried {
                let packet = batch.frame(usize::from(pick)).0;
                if let Some(tunnelled) = tables.underlay.tunnelled(packet.network) {
                    packet.retract(peer.template().len() + tunnel_len(tunnelled.kind));
                }
            }
        }
        None => {}
    }
}

enum Wrapper<'t> {
    Tags(&'t Tags),
    Tunnel(Wrapping<'t>),
}

/// Bytes of both addresses before a tag.
const ADDRESSES_LEN: usize = 12;

/// Puts tags behind the addresses. A tag that a tenant put there himself stands behind ours and is payload with it: who takes
/// ours off gives it to the same network. Where none of ours tells the network, his would be taken for one.
fn push_tags(packet: &mut Packet, tags: &Tags) -> Result<(), DropReason> {
    if tags.refuses_tagged && packet.headers.vlan_count > 0 {
        return Err(DropReason::TaggedOnNative);
    }
    let bytes = tags.bytes();
    let head = packet.extend_front(bytes.len()).ok_or(DropReason::HeadersTooLong)?;
    head.copy_within(bytes.len()..bytes.len() + ADDRESSES_LEN, 0);
    head[ADDRESSES_LEN..ADDRESSES_LEN + bytes.len()].copy_from_slice(bytes);
    Ok(())
}

/// What frames to one peer are wrapped in.
struct Wrapping<'t> {
    peer: &'t Peer,
    mac: MacAddr,
    /// The sum over the template's IPv4 header.
    base: u32,
}

/// Where a source port of ours begins: "in the dynamic/private port range 49152-65535" (RFC 7348 section 5; RFC 8926 section
/// 3.3 asks for as much).
const ENTROPY_FIRST: u16 = 49_152;
/// What UDP over IPv6 has for a checksum until it is computed: not zero, which means none.
const TO_BE_COMPUTED: u16 = 0xffff;

impl<'t> Wrapping<'t> {
    fn new(peer: &'t Peer, mac: MacAddr) -> Wrapping<'t> {
        let ip = &peer.template()[peer.ip_offset..];
        let (words, _) = ip.as_chunks::<2>();
        let base = words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
        Wrapping { peer, mac, base }
    }

    /// Wraps one frame.
    fn put_on(
        &self,
        packet: &mut Packet,
        tail: &[Segment<'_>],
        tunnelled: Tunnelled,
        tunnel: &TunnelEntry,
    ) -> Result<(), DropReason> {
        let template = self.peer.template();
        let (ip, l4) = (self.peer.ip_offset, template.len());
        let header_len = l4 + tunnel_len(tunnelled.kind);
        // Of each segment, if it will be cut: the bridge has seen to it that what is not cut is of the frame's own length.
        let inner_len = match packet.offload.gso {
            Some(gso) => usize::from(gso.header_len) + usize::from(gso.size),
            None => packet.len(),
        };
        if inner_len + header_len - ip > usize::from(self.peer.mtu) {
            return Err(DropReason::OverMtu);
        }
        let entropy = parse::entropy(packet);
        let ecn = inner_ecn(packet);
        let is_ipv6 = self.peer.address.is_ipv6();
        if is_ipv6 && packet.offload.gso.is_none() {
            checksum::complete(packet, tail);
        }
        let total_len = packet.len() + header_len;
        let head = packet.extend_front(header_len).ok_or(DropReason::HeadersTooLong)?;
        head[..l4].copy_from_slice(template);
        head[..6].copy_from_slice(&self.mac.0);
        let vni = tunnelled.vni.get();
        let (protocol, port, bytes) = match tunnelled.kind {
            TunnelKind::Vxlan => (udp::PROTOCOL, tunnel.port_vxlan, VxlanRepr { vni }.to_bytes()),
            TunnelKind::Geneve => (udp::PROTOCOL, geneve::PORT, GeneveRepr { vni }.to_bytes()),
            TunnelKind::Gre => {
                // FlowID: "a value that provides per-flow entropy" (RFC 7637 section 3.2).
                let key = if tunnel.is_nvgre { vni << 8 | (entropy & 0xff) } else { vni };
                (gre::PROTOCOL, 0, GreRepr { key }.to_bytes())
            }
        };
        let l3 = match self.peer.address {
            IpAddr::V4(_) => {
                let len = (total_len - ip) as u16;
                head[ip + 1] |= ecn;
                head[ip + 2..ip + 4].copy_from_slice(&len.to_be_bytes());
                head[ip + 9] = protocol;
                let sum = !fold(self.base + u32::from(len) + u32::from(ecn) + u32::from(protocol));
                head[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
                L3::Ipv4
            }
            IpAddr::V6(_) => {
                head[ip + 1] |= ecn << 4;
                head[ip + 4..ip + 6].copy_from_slice(&((total_len - l4) as u16).to_be_bytes());
                head[ip + 6] = protocol;
                L3::Ipv6
            }
        };
        head[header_len - 8..header_len].copy_from_slice(&bytes);
        let mut outer = Encapsulation { l3, l3_offset: ip as u16, tunnel: Tunnel::Gre, tunnel_offset: l4 as u16 };
        if protocol == udp::PROTOCOL {
            outer.tunnel = Tunnel::Udp;
            let source = ENTROPY_FIRST | (entropy as u16 & !ENTROPY_FIRST);
            head[l4..l4 + 2].copy_from_slice(&source.to_be_bytes());
            head[l4 + 2..l4 + 4].copy_from_slice(&port.to_be_bytes());
            head[l4 + 4..l4 + 6].copy_from_slice(&((total_len - l4) as u16).to_be_bytes());
            // Over IPv4 the checksum "SHOULD be transmitted as zero" (RFC 7348 section 5). Over IPv6 zero is for those who
            // agreed on it (RFC 6936 section 5), and RFC 8926 section 4.3.1 wants it computed by default.
            head[l4 + 6..l4 + 8].copy_from_slice(&if is_ipv6 { TO_BE_COMPUTED } else { 0 }.to_be_bytes());
        }
        packet.set_outer(outer);
        if is_ipv6 && protocol == udp::PROTOCOL && packet.offload.gso.is_none() {
            complete_udp6(packet, tail, ip, l4);
        }
        Ok(())
    }
}

/// Adds the carries back.
fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// Writes the checksum of outer UDP over IPv6 (RFC 8200 section 8.1) for a frame whose inner ones are complete.
fn complete_udp6(packet: &mut Packet, tail: &[Segment<'_>], ip: usize, l4: usize) {
    let head = packet.head_mut();
    head[l4 + 6..l4 + 8].fill(0);
    let mut sum = Sum::default();
    sum.add(&head[ip + 8..ip + 40]);
    sum.add_word(word(head, l4 + 4));
    sum.add_word(u16::from(udp::PROTOCOL));
    sum.add(&head[l4..]);
    for segment in tail {
        sum.add_segment(segment);
    }
    packet.head_mut()[l4 + 6..l4 + 8].copy_from_slice(&sum.udp_checksum().to_be_bytes());
}

/// The congestion mark of the inner frame, which the outer header repeats (RFC 6040 section 4.1, normal mode); 0 for a frame that
/// carries no IP behind its Ethernet header.
fn inner_ecn(packet: &Packet) -> u8 {
    let Some(front) = packet.front::<{ ethernet::LEN + 2 }>() else { return 0 };
    match (word(front, 12), front[ethernet::LEN] >> 4) {
        (ethernet::TYPE_IPV4, 4) => front[ethernet::LEN + 1] & 3,
        (ethernet::TYPE_IPV6, 6) => front[ethernet::LEN + 1] >> 4 & 3,
        _ => 0,
    }
}

const _: () = assert!(ipv4::LEN == 20, "the template's lengths are written above as the RFC has them");

#[cfg(test)]
pub(crate) mod tests;
