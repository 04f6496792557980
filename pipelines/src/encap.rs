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

use crate::flow_hash;
use crate::parse;
use crate::tables::Tables;
use crate::underlay::{FarEnd, Peer, Tags, tunnel_len};
use crate::wire::geneve::{self, GeneveRepr};
use crate::wire::gre::{self, GreRepr};
use crate::wire::vxlan::{self, VxlanRepr};
use crate::wire::{ethernet, ipv4, ipv6, udp, word};
use switch::batch::{BURST, Batch};
use switch::checksum::{self, Sum};
use switch::ids::{MacAddr, NetworkIndex, PortIndex};
use switch::ledger::{DropReason, Tally};
use switch::packet::{L3, Outer, Packet};
use switch::segment::Segment;
use switch::segmentation::{Encapsulation, Tunnel};
use switch::underlay::TunnelKind;

/// Room for the longest outer headers (Ethernet with a tag, IPv6, UDP and VXLAN or Geneve), which end where it ends: so those of
/// UDP tunnels, and of GRE, lie at places that are known when compiled, whatever stands before them.
const FRONT: usize = 80;
const _: () = assert!(ethernet::LEN + ethernet::TAG_LEN + ipv6::LEN + udp::LEN + 8 <= FRONT);
const _: () = assert!(vxlan::LEN == 8 && geneve::LEN == 8 && gre::LEN == 8);

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
    let peer = match far_end {
        FarEnd::Vlan { tags, .. } => {
            return each(batch, picks, carried, tally, |batch, index| push_tags(&mut batch.packets_mut()[index], tags));
        }
        FarEnd::Peer(peer) => peer,
    };
    let Some(mac) = peer.next_hop.mac() else {
        tally.drop_many(DropReason::NoNeighbour, picks.len() as u32);
        return 0;
    };
    // Frames of one network come in runs.
    let mut wrapping: Option<Wrapping> = None;
    each(batch, picks, carried, tally, |batch, index| {
        let network = batch.packets()[index].network;
        if wrapping.as_ref().is_none_or(|it| it.network != network) {
            wrapping = Wrapping::new(tables, peer, mac, network);
        }
        let wrapping = wrapping.as_ref().ok_or(DropReason::PortGone)?;
        match wrapping.put_on(&mut batch.packets_mut()[index]) {
            Some(done) => done,
            None => {
                let (packet, tail) = batch.frame(index);
                wrapping.put_on_carefully(packet, tail)
            }
        }
    })
}

/// Has `put_on` put headers on each of the picks; those it did are `carried`, and their number is answered.
#[inline(always)]
fn each(
    batch: &mut Batch<'_>,
    picks: &[u8],
    carried: &mut [u8; BURST],
    tally: &mut Tally,
    mut put_on: impl FnMut(&mut Batch<'_>, usize) -> Result<(), DropReason>,
) -> usize {
    let mut count = 0;
    for &pick in picks {
        match put_on(batch, usize::from(pick)) {
            Ok(()) => {
                carried[count] = pick;
                count += 1;
            }
            Err(reason) => tally.drop(reason),
        }
    }
    count
}

/// Takes off what [`wrap`] put on; answers how many bytes that is.
pub fn unwrap(tables: &Tables, far_end: PortIndex, batch: &mut Batch<'_>, carried: &[u8]) -> usize {
    match tables.underlay.far_end(far_end) {
        Some(FarEnd::Vlan { tags, .. }) => {
            let len = tags.bytes().len();
            for &pick in carried {
                let packet = &mut batch.packets_mut()[usize::from(pick)];
                packet.head_mut().copy_within(..ADDRESSES_LEN, len);
                packet.retract(len);
            }
            len * carried.len()
        }
        Some(FarEnd::Peer(peer)) => {
            let (mut last, mut bytes) = (None, 0);
            for &pick in carried {
                let packet = &mut batch.packets_mut()[usize::from(pick)];
                let len = match last {
                    Some((network, len)) if network == packet.network => len,
                    _ => header_len(tables, peer, packet.network),
                };
                last = Some((packet.network, len));
                packet.retract(len);
                bytes += len;
            }
            bytes
        }
        None => 0,
    }
}

/// Bytes of outer headers that a network's frames have on their way to a peer; 0 if it is not in tunnels.
fn header_len(tables: &Tables, peer: &Peer, network: NetworkIndex) -> usize {
    tables.underlay.tunnelled(network).map_or(0, |tunnelled| peer.template().len() + tunnel_len(tunnelled.kind))
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

/// Where a source port of ours begins: "in the dynamic/private port range 49152-65535" (RFC 7348 section 5; RFC 8926 section
/// 3.3 asks for as much).
pub(crate) const ENTROPY_FIRST: u16 = 49_152;
/// What UDP over IPv6 has for a checksum until it is computed: not zero, which means none.
const TO_BE_COMPUTED: u16 = 0xffff;

/// What frames of one network to one peer are wrapped in.
struct Wrapping {
    network: NetworkIndex,
    /// All headers, with zero for what differs from frame to frame.
    front: [u8; FRONT],
    /// The sum over its IPv4 header.
    base: u16,
    /// Bytes of all outer headers, and of those that the uplink's MTU counts.
    header_len: usize,
    l3_len: usize,
    /// Bytes of the longest frame, or segment, that gets there.
    inner_max: usize,
    is_ipv6: bool,
    is_udp: bool,
    is_nvgre: bool,
    outer: Outer,
}

impl Wrapping {
    /// `None` if the network is not in tunnels.
    #[inline(never)]
    fn new(tables: &Tables, peer: &Peer, mac: MacAddr, network: NetworkIndex) -> Option<Wrapping> {
        let (tunnelled, tunnel) = (tables.underlay.tunnelled(network)?, tables.underlay.tunnel.as_ref()?);
        let (template, header_len) = (peer.template(), header_len(tables, peer, network));
        let start = FRONT - header_len;
        let (ip, l4) = (start + peer.ip_offset, start + template.len());
        let mut front = [0; FRONT];
        front[start..l4].copy_from_slice(template);
        front[start..start + 6].copy_from_slice(&mac.0);
        let vni = tunnelled.vni.get();
        let is_nvgre = tunnelled.kind == TunnelKind::Gre && tunnel.is_nvgre;
        let (udp_port, bytes) = match tunnelled.kind {
            TunnelKind::Vxlan => (Some(tunnel.port_vxlan), VxlanRepr { vni }.to_bytes()),
            TunnelKind::Geneve => (Some(geneve::PORT), GeneveRepr { vni }.to_bytes()),
            TunnelKind::Gre => (None, GreRepr { key: if is_nvgre { vni << 8 } else { vni } }.to_bytes()),
        };
        front[FRONT - 8..].copy_from_slice(&bytes);
        let is_ipv6 = peer.address.is_ipv6();
        if let Some(port) = udp_port {
            front[l4 + 2..l4 + 4].copy_from_slice(&port.to_be_bytes());
            // Over IPv4 the checksum "SHOULD be transmitted as zero" (RFC 7348 section 5). Over IPv6 zero is for those who
            // agreed on it (RFC 6936 section 5), and RFC 8926 section 4.3.1 wants it computed by default.
            front[l4 + 6..l4 + 8].copy_from_slice(&if is_ipv6 { TO_BE_COMPUTED } else { 0 }.to_be_bytes());
        }
        front[ip + if is_ipv6 { 6 } else { 9 }] = if udp_port.is_some() { udp::PROTOCOL } else { gre::PROTOCOL };
        let (words, _) = front[ip..l4].as_chunks::<2>();
        let l3_len = header_len - peer.ip_offset;
        Some(Wrapping {
            network,
            base: words.iter().fold(0, |sum, word| plus(sum, u16::from_be_bytes(*word))),
            front,
            header_len,
            l3_len,
            inner_max: usize::from(peer.mtu).saturating_sub(l3_len),
            is_ipv6,
            is_udp: udp_port.is_some(),
            is_nvgre,
            outer: Outer::from(Encapsulation {
                l3: if is_ipv6 { L3::Ipv6 } else { L3::Ipv4 },
                l3_offset: peer.ip_offset as u16,
                tunnel: if udp_port.is_some() { Tunnel::Udp } else { Tunnel::Gre },
                tunnel_offset: template.len() as u16,
            }),
        })
    }

    /// Wraps a frame as nearly all are: nothing is left to do for it, and its fields lie at places known when compiled. `None`: it is
    /// another, and as it was.
    #[inline(always)]
    fn put_on(&self, packet: &mut Packet) -> Option<Result<(), DropReason>> {
        if self.is_ipv6 {
            return None;
        }
        let flow = flow_hash::plain_flow(packet)?;
        let len = packet.len();
        if len > self.inner_max {
            return Some(Err(DropReason::OverMtu));
        }
        let fields = Fields { entropy: flow.hash, ecn: flow.type_of_service & 3, len: len + self.l3_len };
        let Some(front) = packet.put_front(&self.front, self.header_len) else {
            return Some(Err(DropReason::HeadersTooLong));
        };
        if self.is_udp {
            fields.write_udp4(front, self.base);
        } else {
            self.write_gre4(&fields, front);
        }
        packet.set_outer(self.outer);
        Some(Ok(()))
    }

    /// All of GRE over IPv4.
    #[inline(always)]
    fn write_gre4(&self, fields: &Fields, front: &mut [u8; FRONT]) {
        fields.write_ipv4::<{ FRONT - gre::LEN - ipv4::LEN }>(front, self.base);
        self.write_flow_id(fields, front);
    }

    /// FlowID: "a value that provides per-flow entropy" (RFC 7637 section 3.2).
    #[inline(always)]
    fn write_flow_id(&self, fields: &Fields, front: &mut [u8; FRONT]) {
        if self.is_nvgre {
            front[FRONT - 1] = fields.entropy as u8;
        }
    }

    /// The same for any frame.
    #[inline(never)]
    fn put_on_carefully(&self, packet: &mut Packet, tail: &[Segment<'_>]) -> Result<(), DropReason> {
        // Of each segment, if it will be cut: the bridge has seen to it that what is not cut is of the frame's own length.
        let inner_len = match packet.offload.gso {
            Some(gso) => usize::from(gso.header_len) + usize::from(gso.size),
            None => packet.len(),
        };
        if inner_len > self.inner_max {
            return Err(DropReason::OverMtu);
        }
        let is_whole = packet.offload.gso.is_none();
        if self.is_ipv6 && is_whole {
            checksum::complete(packet, tail);
        }
        let fields =
            Fields { entropy: parse::entropy(packet), ecn: inner_ecn(packet), len: packet.len() + self.l3_len };
        let front = packet.put_front(&self.front, self.header_len).ok_or(DropReason::HeadersTooLong)?;
        match (self.is_udp, self.is_ipv6) {
            (true, false) => fields.write_udp4(front, self.base),
            (true, true) => {
                fields.write_ipv6::<{ FRONT - TUNNEL_LEN_UDP - ipv6::LEN }>(front);
                fields.write_udp(front, ipv6::LEN);
            }
            (false, false) => self.write_gre4(&fields, front),
            (false, true) => {
                fields.write_ipv6::<{ FRONT - gre::LEN - ipv6::LEN }>(front);
                self.write_flow_id(&fields, front);
            }
        }
        packet.set_outer(self.outer);
        if self.is_ipv6 && is_whole && self.is_udp {
            complete_udp6(packet, tail, self.header_len - self.l3_len, self.header_len - TUNNEL_LEN_UDP);
        }
        Ok(())
    }
}

/// Bytes of UDP and of what a tunnel puts behind it.
const TUNNEL_LEN_UDP: usize = udp::LEN + 8;

/// What differs from frame to frame. What follows writes it where a header begins that ends at a place known when compiled.
struct Fields {
    entropy: u32,
    /// The congestion mark.
    ecn: u8,
    /// Bytes of the frame with IP and what is behind it.
    len: usize,
}

impl Fields {
    /// All of UDP over IPv4.
    #[inline(always)]
    fn write_udp4(&self, front: &mut [u8; FRONT], base: u16) {
        self.write_ipv4::<{ FRONT - TUNNEL_LEN_UDP - ipv4::LEN }>(front, base);
        self.write_udp(front, ipv4::LEN);
    }

    #[inline(always)]
    fn write_ipv4<const IP: usize>(&self, front: &mut [u8; FRONT], base: u16) {
        let len = self.len as u16;
        front[IP + 1] |= self.ecn;
        front[IP + 2..IP + 4].copy_from_slice(&len.to_be_bytes());
        // At most two carries, and adding them gives one more at most.
        let sum = u32::from(base) + u32::from(len) + u32::from(self.ecn);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = !((sum + (sum >> 16)) as u16);
        front[IP + 10..IP + 12].copy_from_slice(&sum.to_be_bytes());
    }

    #[inline(always)]
    fn write_ipv6<const IP: usize>(&self, front: &mut [u8; FRONT]) {
        front[IP + 1] |= self.ecn << 4;
        front[IP + 4..IP + 6].copy_from_slice(&((self.len - ipv6::LEN) as u16).to_be_bytes());
    }

    /// Source port and length.
    #[inline(always)]
    fn write_udp(&self, front: &mut [u8; FRONT], ip_len: usize) {
        const UDP: usize = FRONT - TUNNEL_LEN_UDP;
        let source = ENTROPY_FIRST | (self.entropy as u16 & !ENTROPY_FIRST);
        front[UDP..UDP + 2].copy_from_slice(&source.to_be_bytes());
        front[UDP + 4..UDP + 6].copy_from_slice(&((self.len - ip_len) as u16).to_be_bytes());
    }
}

/// The ones' complement sum (RFC 1071 section 1): the carry is added back, and gives none again.
fn plus(a: u16, b: u16) -> u16 {
    let (sum, is_over) = a.overflowing_add(b);
    sum + u16::from(is_over)
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
