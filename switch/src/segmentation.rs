//! Cuts a large frame into segments for an egress that does not take it whole, as the kernel's GSO would.
//!
//! A [`Segmenter`] hands out one segment after the other: a private head with headers of its own, over slices of the same
//! tail. Nothing is copied but headers and the few bytes of payload that lie in the frame's head, and nothing is allocated.
//!
//! What makes it harder than it looks: payload begins inside the head, and a small segment may lie in it altogether; each
//! layer has its own idea of what a segment is told (length, id, sequence number, flags, checksum); and receivers compare
//! with Linux. So every field is rewritten as Linux does it, which `tests/chapters/segmentation.rs` checks byte for byte:
//!
//! * IPv4: total length, header checksum, an id that grows by one a segment, whatever the fragment flags say.
//! * IPv6: payload length; extension headers are repeated.
//! * TCP: sequence number; FIN and PSH on the last segment alone, CWR on the first alone (RFC 3168 section 6.1.2).
//! * UDP: length.
//! * Checksum: from the sender's sum of the pseudo-header, of which only the length changes. So the addresses that a routing
//!   header or a source route names are the sender's business.
//! * Outer headers of a tunnel: lengths, id and checksums, if there were any (RFC 7348, RFC 8926, RFC 2784).
//!
//! Bounds: [`BURST_CUT_MAX`] segments a burst. Owned by the worker that sends; lives as long as one call of a port's tx.

use crate::checksum::Sum;
use crate::offload::{EgressOffloads, Gso, GsoKind, OffloadClaim};
use crate::packet::{L3, Packet, SEGMENTS_MAX};
use crate::segment::Segment;

/// Segments that the frames of one burst may be cut into, over all receivers; frames beyond are dropped as `cut_limited`.
///
/// What a burst may cause by floods in bytes (`BURST_FLOOD_BYTES`), in segments of 1 KiB. It keeps a sender of the smallest
/// segments from holding a worker for longer than some milliseconds; it is longer where the receiver's buffers are pages that the kernel
/// has yet to find. A single frame always passes.
pub const BURST_CUT_MAX: usize = 8192;

/// What a segment is charged to the queue that caused it, beyond the frame's own bytes: its headers and the work.
pub const CUT_COST_BYTES: usize = 512;

const IPV4_LEN: usize = 20;
const IPV4_TOTAL_LEN: usize = 2;
const IPV4_ID: usize = 4;
const IPV4_CHECKSUM: usize = 10;
const IPV4_ADDRESSES: usize = 12;
const IPV6_LEN: usize = 40;
const IPV6_PAYLOAD_LEN: usize = 4;
const IPV6_ADDRESSES: usize = 8;
const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;
const UDP_LENGTH: usize = 4;
const UDP_CHECKSUM: usize = 6;
const UDP_PROTOCOL: u16 = 17;
const GRE_CHECKSUM: usize = 4;
/// The C bit: a checksum follows (RFC 2784 section 2.1).
const GRE_HAS_CHECKSUM: u8 = 0x80;

/// What carries the inner frame of a tunnel, on top of IP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tunnel {
    /// UDP: VXLAN or Geneve. A checksum of zero stays zero.
    Udp,
    /// GRE, with or without checksum and key. One with sequence numbers cannot be cut: they are the tunnel's to give.
    Gre,
}

/// The outer headers of a frame in a tunnel, as far as they tell of what follows them. IP stands before `tunnel` without
/// extension headers. The packet's own [`crate::packet::Headers`] describe the inner frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Encapsulation {
    /// The outer network layer: [`L3::Ipv4`] or [`L3::Ipv6`].
    pub l3: L3,
    /// Its first byte, from the start of the frame.
    pub l3_offset: u16,
    /// What carries the inner frame.
    pub tunnel: Tunnel,
    /// The first byte of that UDP or GRE header, from the start of the frame.
    pub tunnel_offset: u16,
}

/// How many segments a frame becomes; 1 if there is no cut to make.
pub fn count(packet: &Packet) -> usize {
    match packet.offload.gso {
        Some(Gso { size, header_len, .. }) => {
            packet.len().saturating_sub(usize::from(header_len)).div_ceil(usize::from(size).max(1)).max(1)
        }
        None => 1,
    }
}

/// One frame on its way to be cut.
pub struct Segmenter<'b, 'r> {
    frame: &'b Packet,
    /// The part of the frame's tail that no segment has yet: these, less the first `skip` bytes.
    rest: &'b [Segment<'r>],
    skip: u32,
    outer: Option<Encapsulation>,
    /// Whether the far side completes a partial checksum.
    leaves_checksum: bool,
    /// Bytes that every segment begins with.
    header_len: usize,
    /// Payload bytes of all segments but the last.
    size: usize,
    count: usize,
    made: usize,
    segment: Packet,
    tail: [Segment<'r>; SEGMENTS_MAX],
}

impl<'b, 'r> Segmenter<'b, 'r> {
    /// Begins to cut `packet`, whose tail is `tail`, for a far side that finishes `egress`.
    ///
    /// The head must hold all headers, outer ones included ([`crate::batch::Batch::pull`]). A packet with nothing to cut
    /// comes out as one segment, with its checksums complete. The inner checksum of a tunnel is always completed.
    ///
    /// # Panics
    /// If the head ends inside the headers: whoever wrote the packet's offload has checked them.
    pub fn new(
        packet: &'b Packet,
        tail: &'b [Segment<'r>],
        egress: EgressOffloads,
        outer: Option<Encapsulation>,
    ) -> Segmenter<'b, 'r> {
        let head_len = packet.head().len();
        let (header_len, size) = match packet.offload.gso {
            Some(gso) => (usize::from(gso.header_len), usize::from(gso.size).max(1)),
            // One segment, so the whole head is as good as headers.
            None => (head_len, packet.len()),
        };
        assert!(header_len <= head_len, "the headers must be in the head before a frame is cut");
        Segmenter {
            frame: packet,
            rest: tail,
            skip: 0,
            outer,
            leaves_checksum: egress.checksum && outer.is_none(),
            header_len,
            size,
            count: count(packet),
            made: 0,
            segment: Packet::empty(),
            tail: [Segment::from(&[][..]); SEGMENTS_MAX],
        }
    }

    /// How many segments there are in all.
    pub fn count(&self) -> u32 {
        self.count as u32
    }

    /// How many are still to come.
    pub fn remaining(&self) -> u32 {
        (self.count - self.made) as u32
    }

    /// The next segment, to be sent before the one after it is asked for: a packet and its tail.
    pub fn next_segment(&mut self) -> Option<(&Packet, &[Segment<'r>])> {
        if self.made == self.count {
            return None;
        }
        let offset = self.made * self.size;
        let len = self.size.min(self.frame.len() - self.header_len - offset);
        let tail_count = self.gather(offset, len);
        if self.frame.offload.gso.is_some() {
            self.rewrite_network_layer(self.frame.headers.l3, self.frame.headers.l3_offset);
            self.rewrite_transport_layer(offset);
        }
        if !self.leaves_checksum {
            self.complete(tail_count);
        }
        self.made += 1;
        Some((&self.segment, &self.tail[..tail_count]))
    }

    /// Puts headers and `len` bytes of payload, `offset` bytes into it, together to a segment; answers the tail's pieces.
    fn gather(&mut self, offset: usize, len: usize) -> usize {
        let frame = self.frame;
        let (headers, payload) = frame.head().split_at(self.header_len);
        let payload = payload.get(offset..).unwrap_or_default();
        let payload = &payload[..payload.len().min(len)];

        self.segment.reset(frame.ingress, frame.queue, 0, OffloadClaim::default());
        // Outer headers may have made a full head longer than one that begins behind the headroom can be.
        self.segment.begin_like(frame);
        self.segment.network = frame.network;
        self.segment.flow_hash = frame.flow_hash;
        self.segment.headers = frame.headers;
        self.segment.offload.checksum = frame.offload.checksum;
        let head = self.segment.extend_head(headers.len() + payload.len()).expect("as long as the frame's at most");
        head[..headers.len()].copy_from_slice(headers);
        head[headers.len()..].copy_from_slice(payload);

        let (mut missing, mut count) = ((len - payload.len()) as u32, 0);
        while missing > 0 {
            let (first, others) = self.rest.split_first().expect("a packet's length is that of its head and tail");
            let piece = first.skip(self.skip).take(missing);
            self.skip += piece.len();
            if self.skip == first.len() {
                (self.rest, self.skip) = (others, 0);
            }
            if piece.is_empty() {
                continue;
            }
            missing -= piece.len();
            self.tail[count] = piece;
            self.segment.grow_tail(piece.len());
            count += 1;
        }
        count
    }

    /// Length, id and header checksum of one IP header, inner or outer.
    fn rewrite_network_layer(&mut self, l3: L3, l3_offset: u16) {
        let start = usize::from(l3_offset);
        // No segment is longer than the frame, whose own length fitted.
        let len = (self.segment.len() - start) as u16;
        let header = &mut self.segment.head_mut()[start..];
        match l3 {
            L3::Ipv4 => {
                put(header, IPV4_TOTAL_LEN, len);
                let id = word(header, IPV4_ID).wrapping_add(self.made as u16);
                put(header, IPV4_ID, id);
                put(header, IPV4_CHECKSUM, 0);
                let header_len = usize::from(header[0] & 0x0f) * 4;
                let mut sum = Sum::default();
                sum.add(&header[..header_len]);
                put(header, IPV4_CHECKSUM, sum.checksum());
            }
            L3::Ipv6 => put(header, IPV6_PAYLOAD_LEN, len - IPV6_LEN as u16),
            L3::Other | L3::Unread | L3::Arp => {}
        }
    }

    /// Sequence number and flags, or length; and the pseudo-header's sum with the segment's own length in it.
    fn rewrite_transport_layer(&mut self, offset: usize) {
        let (Some(gso), Some(partial)) = (self.frame.offload.gso, self.frame.offload.checksum) else { return };
        let (is_first, is_last) = (self.made == 0, self.made + 1 == self.count);
        let start = usize::from(self.frame.headers.l4_offset);
        let len = (self.segment.len() - start) as u16;
        let header = &mut self.segment.head_mut()[start..];
        let old_len = match gso.kind {
            GsoKind::Tcp4 | GsoKind::Tcp6 => {
                let sequence = header[TCP_SEQUENCE..].first_chunk_mut().expect("the headers are in the head");
                *sequence = u32::from_be_bytes(*sequence).wrapping_add(offset as u32).to_be_bytes();
                if !is_last {
                    header[TCP_FLAGS] &= !(TCP_FIN | TCP_PSH);
                }
                if !is_first {
                    header[TCP_FLAGS] &= !TCP_CWR;
                }
                (self.frame.len() - start) as u16
            }
            GsoKind::UdpL4 => {
                let old_len = word(header, UDP_LENGTH);
                put(header, UDP_LENGTH, len);
                old_len
            }
        };
        let field = usize::from(partial.offset);
        let mut sum = Sum::default();
        sum.add_word(word(header, field));
        sum.remove_word(old_len);
        sum.add_word(len);
        put(header, field, sum.folded());
    }

    /// Completes the checksum of the segment, and those of the tunnel.
    fn complete(&mut self, tail_count: usize) {
        let mut payload = Sum::default();
        payload.add(&self.segment.head()[self.header_len..]);
        for piece in &self.tail[..tail_count] {
            payload.add_segment(piece);
        }
        if let Some(partial) = self.segment.offload.checksum.take() {
            let start = usize::from(partial.start);
            let mut sum = Sum::default();
            sum.add(&self.segment.head()[start..self.header_len]);
            sum.add_sum(payload);
            // As Linux: a cut TCP segment may have an all-zero checksum, anything else has all ones for it.
            let checksum = match self.frame.offload.gso {
                Some(Gso { kind: GsoKind::Tcp4 | GsoKind::Tcp6, .. }) => sum.checksum(),
                Some(Gso { kind: GsoKind::UdpL4, .. }) | None => sum.udp_checksum(),
            };
            put(self.segment.head_mut(), start + usize::from(partial.offset), checksum);
        }
        self.segment.offload.checksum_valid = true;
        if let Some(outer) = self.outer {
            self.rewrite_network_layer(outer.l3, outer.l3_offset);
            self.rewrite_tunnel(outer, payload);
        }
    }

    /// Length and checksum of the header that carries the inner frame, whose payload sums to `payload`.
    fn rewrite_tunnel(&mut self, outer: Encapsulation, payload: Sum) {
        let start = usize::from(outer.tunnel_offset);
        let len = (self.segment.len() - start) as u16;
        let header_len = self.header_len;
        let head = self.segment.head_mut();
        let mut sum = Sum::default();
        match outer.tunnel {
            Tunnel::Udp => {
                put(head, start + UDP_LENGTH, len);
                if word(head, start + UDP_CHECKSUM) == 0 {
                    return;
                }
                put(head, start + UDP_CHECKSUM, 0);
                let l3 = usize::from(outer.l3_offset);
                let addresses = match outer.l3 {
                    L3::Ipv6 => l3 + IPV6_ADDRESSES..l3 + IPV6_LEN,
                    _ => l3 + IPV4_ADDRESSES..l3 + IPV4_LEN,
                };
                // The pseudo-header (RFC 768; RFC 8200 section 8.1).
                sum.add(&head[addresses]);
                sum.add_word(UDP_PROTOCOL);
                sum.add_word(len);
                sum.add(&head[start..header_len]);
                sum.add_sum(payload);
                put(head, start + UDP_CHECKSUM, sum.udp_checksum());
            }
            Tunnel::Gre => {
                if head[start] & GRE_HAS_CHECKSUM == 0 {
                    return;
                }
                put(head, start + GRE_CHECKSUM, 0);
                sum.add(&head[start..header_len]);
                sum.add_sum(payload);
                put(head, start + GRE_CHECKSUM, sum.checksum());
            }
        }
    }
}

/// The big-endian word at `at`.
fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Writes a big-endian word at `at`.
fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests;
