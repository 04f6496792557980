//! Segments held against the rules, one by one, and by chance against a slow check of everything a receiver reads.
//!
//! The slow check shares nothing with the code under test: it puts payloads together again and sums every byte with its
//! pseudo-header, word by word. What Linux makes of the same frames is compared in `tests/chapters/segmentation.rs`.

use super::*;
use crate::batch::Batch;
use crate::ids::{PortIndex, QueueIndex};
use crate::offload::{Offload, OffloadClaim, PartialChecksum};
use crate::packet::{HEAD_MAX, Headers};
use proptest::prelude::*;

/// A frame as a property chooses it.
#[derive(Clone, Debug)]
struct Frame {
    is_ipv4: bool,
    is_tcp: bool,
    vlan_count: usize,
    /// IPv4 options, or the IPv6 extension header's own length, in units of 4 and 8 bytes.
    l3_extra: usize,
    /// TCP options in units of 4 bytes.
    l4_extra: usize,
    flags: u8,
    id: u16,
    sequence: u32,
    size: u16,
    payload: Vec<u8>,
    outer: Option<Outer>,
}

#[derive(Clone, Copy, Debug)]
struct Outer {
    is_ipv4: bool,
    tunnel: Tunnel,
    has_checksum: bool,
    has_key: bool,
}

/// Where everything is in the bytes of a [`Frame`].
struct Layout {
    bytes: Vec<u8>,
    encapsulation: Option<Encapsulation>,
    /// The inner frame, behind what a tunnel puts before it.
    inner: usize,
    l3: usize,
    l4: usize,
    header_len: usize,
}

/// The ones' complement sum, word by word (RFC 1071 section 4.1).
fn slow_sum(bytes: &[u8]) -> u16 {
    let mut total = 0u32;
    for pair in bytes.chunks(2) {
        total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// The addresses of the IP header at `l3`.
fn addresses(bytes: &[u8], l3: usize) -> &[u8] {
    if bytes[l3] >> 4 == 4 { &bytes[l3 + 12..l3 + 20] } else { &bytes[l3 + 8..l3 + 40] }
}

fn pseudo_header(bytes: &[u8], l3: usize, protocol: u8, len: usize) -> Vec<u8> {
    [addresses(bytes, l3), &[0, protocol], &(len as u16).to_be_bytes()].concat()
}

fn push_ip(bytes: &mut Vec<u8>, is_ipv4: bool, protocol: u8, extra: usize, id: u16, payload_len: usize) {
    if is_ipv4 {
        let len = 20 + 4 * extra;
        let total = (len + payload_len) as u16;
        bytes.extend([0x40 | (len / 4) as u8, 0, (total >> 8) as u8, total as u8, (id >> 8) as u8, id as u8, 0x40, 0]);
        bytes.extend([64, protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        bytes.resize(bytes.len() + 4 * extra, 1);
    } else {
        let extension = 8 * extra;
        let total = (extension + payload_len) as u16;
        bytes.extend([0x60, 1, 2, 3, (total >> 8) as u8, total as u8, if extra > 0 { 60 } else { protocol }, 64]);
        bytes.extend((0..32).map(|at| 0x20 + at));
        if extra > 0 {
            bytes.extend([protocol, extra as u8 - 1, 1, extension as u8 - 4]);
            bytes.resize(bytes.len() + extension - 4, 0);
        }
    }
}

impl Frame {
    fn lay_out(&self) -> Layout {
        let mut bytes = Vec::new();
        let mut encapsulation = None;
        if let Some(outer) = self.outer {
            bytes.extend([2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8]);
            bytes.extend(if outer.is_ipv4 { [8, 0] } else { [0x86, 0xdd] });
            let l3_offset = bytes.len();
            let protocol = if outer.tunnel == Tunnel::Udp { 17 } else { 47 };
            push_ip(&mut bytes, outer.is_ipv4, protocol, 0, 0xfffe, 0);
            let l3 = if outer.is_ipv4 { L3::Ipv4 } else { L3::Ipv6 };
            let tunnel_offset = bytes.len() as u16;
            encapsulation =
                Some(Encapsulation { l3, l3_offset: l3_offset as u16, tunnel: outer.tunnel, tunnel_offset });
            let mark = if outer.has_checksum { [0xab, 0xcd] } else { [0, 0] };
            match outer.tunnel {
                Tunnel::Udp => {
                    bytes.extend([0xc0, 1, 0x17, 0xc1, 0, 0, mark[0], mark[1]]);
                    // Geneve with one option of 4 bytes (RFC 8926 section 3.4).
                    bytes.extend([2, 0, 0x65, 0x58, 0, 0, 7, 0, 1, 2, 3, 1, 9, 9, 9, 9]);
                }
                Tunnel::Gre => {
                    let flags = u8::from(outer.has_checksum) << 7 | u8::from(outer.has_key) << 5;
                    bytes.extend([flags, 0, 0x65, 0x58]);
                    if outer.has_checksum {
                        bytes.extend([mark[0], mark[1], 0, 0]);
                    }
                    if outer.has_key {
                        bytes.extend([0, 0, 0, 5]);
                    }
                }
            }
        }
        let inner = bytes.len();
        bytes.extend([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
        for tag in 0..self.vlan_count {
            bytes.extend([0x81, 0, 0, tag as u8 + 1]);
        }
        bytes.extend(if self.is_ipv4 { [8, 0] } else { [0x86, 0xdd] });
        let l3 = bytes.len();
        let protocol = if self.is_tcp { 6 } else { 17 };
        let l4_header_len = if self.is_tcp { 20 + 4 * self.l4_extra } else { 8 };
        let l4_len = l4_header_len + self.payload.len();
        push_ip(&mut bytes, self.is_ipv4, protocol, self.l3_extra, self.id, l4_len);
        let l4 = bytes.len();
        if self.is_tcp {
            bytes.extend([0x12, 0x34, 0x56, 0x78]);
            bytes.extend(self.sequence.to_be_bytes());
            bytes.extend([1, 2, 3, 4, (l4_header_len / 4) as u8 * 16, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
            bytes.resize(l4 + l4_header_len, 1);
        } else {
            bytes.extend([0x12, 0x34, 0x56, 0x78, (l4_len >> 8) as u8, l4_len as u8, 0, 0]);
        }
        let field = l4 + self.checksum_field();
        let sum = slow_sum(&pseudo_header(&bytes, l3, protocol, l4_len));
        bytes[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        let header_len = bytes.len();
        bytes.extend(&self.payload);
        Layout { bytes, encapsulation, inner, l3, l4, header_len }
    }

    fn checksum_field(&self) -> usize {
        if self.is_tcp { 16 } else { 6 }
    }

    /// Its segments for an egress, with `in_head` bytes of payload in the head, as far as a head holds them, and the tail in
    /// pieces of `piece` bytes. Outer headers come before the head that is there, as encapsulation puts them.
    fn segments(&self, egress: EgressOffloads, in_head: usize, piece: usize) -> Vec<(Vec<u8>, Offload)> {
        let layout = self.lay_out();
        let mut batch = Batch::new();
        let mut packet = batch.start(PortIndex(3), QueueIndex(1)).unwrap();
        let (outer, inner) = layout.bytes.split_at(layout.inner);
        let head_len = (layout.header_len - outer.len() + in_head).min(inner.len()).min(HEAD_MAX);
        let (head, tail) = inner.split_at(head_len);
        packet.head(head_len).unwrap().copy_from_slice(head);
        for piece in tail.chunks(piece.max(tail.len().div_ceil(SEGMENTS_MAX)).max(1)) {
            packet.tail(Segment::from(piece)).unwrap();
        }
        packet.commit(OffloadClaim::default());
        let kind = match (self.is_tcp, self.is_ipv4) {
            (true, true) => GsoKind::Tcp4,
            (true, false) => GsoKind::Tcp6,
            (false, _) => GsoKind::UdpL4,
        };
        let at = |place: usize| (place - outer.len()) as u16;
        let gso = Gso { kind, size: self.size, header_len: at(layout.header_len), ecn: false };
        let partial = PartialChecksum { start: at(layout.l4), offset: self.checksum_field() as u16 };
        let packet = &mut batch.packets_mut()[0];
        packet.offload = Offload { checksum: Some(partial), gso: Some(gso), checksum_valid: false };
        packet.headers = Headers {
            l3: if self.is_ipv4 { L3::Ipv4 } else { L3::Ipv6 },
            l3_offset: at(layout.l3),
            l4_offset: at(layout.l4),
            ..Headers::default()
        };
        packet.extend_front(outer.len()).unwrap()[..outer.len()].copy_from_slice(outer);
        let (packet, tail) = batch.frame(0);
        let mut cut = Segmenter::new(packet, tail, egress, layout.encapsulation);
        let mut segments = Vec::new();
        assert_eq!(cut.count() as usize, self.payload.len().div_ceil(usize::from(self.size)).max(1));
        while let Some((packet, tail)) = cut.next_segment() {
            assert_eq!((packet.ingress, packet.queue), (PortIndex(3), QueueIndex(1)));
            let mut bytes = packet.head().to_vec();
            for piece in tail {
                let at = bytes.len();
                bytes.resize(at + piece.len() as usize, 0);
                piece.read(&mut bytes[at..]);
            }
            assert_eq!((bytes.len(), packet.offload.gso), (packet.len(), None));
            segments.push((bytes, packet.offload));
            assert_eq!(cut.remaining() + segments.len() as u32, cut.count());
        }
        segments
    }
}

/// Everything a receiver reads of an IP header and what it carries.
fn check_ip(bytes: &[u8], l3: usize, id: u16) {
    if bytes[l3] >> 4 == 4 {
        assert_eq!(usize::from(word(bytes, l3 + 2)), bytes.len() - l3, "total length");
        assert_eq!(word(bytes, l3 + 4), id, "id");
        let header_len = usize::from(bytes[l3] & 15) * 4;
        assert_eq!(slow_sum(&bytes[l3..l3 + header_len]), 0xffff, "header checksum");
    } else {
        assert_eq!(usize::from(word(bytes, l3 + 4)), bytes.len() - l3 - 40, "payload length");
    }
}

fn check_all(frame: &Frame, segments: &[(Vec<u8>, Offload)]) {
    let layout = frame.lay_out();
    let mut payload: Vec<u8> = Vec::new();
    for (at, (bytes, offload)) in segments.iter().enumerate() {
        let is_last = at + 1 == segments.len();
        assert!(offload.is_none() && offload.checksum_valid);
        assert!(is_last || bytes.len() == layout.header_len + usize::from(frame.size));
        check_ip(bytes, layout.l3, frame.id.wrapping_add(at as u16));
        let protocol = if frame.is_tcp { 6 } else { 17 };
        let pseudo = pseudo_header(bytes, layout.l3, protocol, bytes.len() - layout.l4);
        assert_eq!(slow_sum(&[&pseudo, &bytes[layout.l4..]].concat()), 0xffff, "L4 checksum");
        if frame.is_tcp {
            let sequence = u32::from_be_bytes(*bytes[layout.l4 + 4..].first_chunk().unwrap());
            assert_eq!(sequence, frame.sequence.wrapping_add(payload.len() as u32));
            let gone = if is_last { 0 } else { 0x09 } | if at == 0 { 0 } else { 0x80 };
            assert_eq!(bytes[layout.l4 + 13], frame.flags & !gone);
        } else {
            assert_eq!(usize::from(word(bytes, layout.l4 + 4)), bytes.len() - layout.l4);
            assert_ne!(word(bytes, layout.l4 + 6), 0, "no checksum");
        }
        if let (Some(outer), Some(encapsulation)) = (frame.outer, layout.encapsulation) {
            check_outer(bytes, outer, encapsulation, at);
        }
        payload.extend(&bytes[layout.header_len..]);
    }
    assert!(payload == frame.payload, "the payload changed");
}

fn check_outer(bytes: &[u8], outer: Outer, encapsulation: Encapsulation, at: usize) {
    let (l3, tunnel) = (usize::from(encapsulation.l3_offset), usize::from(encapsulation.tunnel_offset));
    check_ip(bytes, l3, 0xfffeu16.wrapping_add(at as u16));
    match outer.tunnel {
        Tunnel::Udp => {
            assert_eq!(usize::from(word(bytes, tunnel + 4)), bytes.len() - tunnel);
            assert_eq!(word(bytes, tunnel + 6) != 0, outer.has_checksum);
            let pseudo = pseudo_header(bytes, l3, 17, bytes.len() - tunnel);
            let sum = slow_sum(&[&pseudo, &bytes[tunnel..]].concat());
            assert!(!outer.has_checksum || sum == 0xffff, "outer UDP checksum");
        }
        Tunnel::Gre => assert!(!outer.has_checksum || slow_sum(&bytes[tunnel..]) == 0xffff, "GRE checksum"),
    }
}

fn any_outer() -> impl Strategy<Value = Outer> {
    (any::<bool>(), prop_oneof![Just(Tunnel::Udp), Just(Tunnel::Gre)], any::<bool>(), any::<bool>())
        .prop_map(|(is_ipv4, tunnel, has_checksum, has_key)| Outer { is_ipv4, tunnel, has_checksum, has_key })
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let headers = (any::<bool>(), any::<bool>(), 0usize..3, 0usize..4, 0usize..11, any::<u8>());
    let numbers = (any::<u16>(), any::<u32>(), prop_oneof![8u16..64, 100u16..1500]);
    let payload = (any::<u8>(), 1usize..6000);
    (headers, numbers, payload, proptest::option::of(any_outer())).prop_map(|(headers, numbers, payload, outer)| {
        let (is_ipv4, is_tcp, vlan_count, l3_extra, l4_extra, flags) = headers;
        let (id, sequence, size) = numbers;
        let payload = (0..payload.1).map(|at| (at as u8).wrapping_mul(31).wrapping_add(payload.0)).collect();
        Frame { is_ipv4, is_tcp, vlan_count, l3_extra, l4_extra, flags, id, sequence, size, payload, outer }
    })
}

fn plain() -> Frame {
    Frame {
        is_ipv4: true,
        is_tcp: true,
        vlan_count: 0,
        l3_extra: 0,
        l4_extra: 0,
        flags: 0x10,
        id: 7,
        sequence: 1000,
        size: 1000,
        payload: (0..2500u32).map(|at| (at / 7) as u8).collect(),
        outer: None,
    }
}

const NONE: EgressOffloads = EgressOffloads { checksum: false, tso4: false, tso6: false, ecn: false, uso: false };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn segments_of_any_frame_are_whole_and_right(frame in any_frame(), in_head in 0usize..700, piece in 1usize..3000) {
        check_all(&frame, &frame.segments(NONE, in_head, piece));
    }
}

#[test]
fn a_head_that_was_full_before_the_tunnels_headers_is_cut_like_any_other() {
    let outer = Outer { is_ipv4: false, tunnel: Tunnel::Udp, has_checksum: true, has_key: false };
    let frame = Frame { outer: Some(outer), ..plain() };
    check_all(&frame, &frame.segments(NONE, HEAD_MAX, usize::MAX));
}

#[test]
fn the_last_segment_is_short_and_whole_multiples_leave_none() {
    let lengths = |payload_len: usize| {
        let frame = Frame { payload: vec![5; payload_len], ..plain() };
        let segments = frame.segments(NONE, 0, usize::MAX);
        segments.iter().map(|(bytes, _)| bytes.len() - 54).collect::<Vec<_>>()
    };
    assert_eq!(lengths(2500), [1000, 1000, 500]);
    assert_eq!(lengths(2000), [1000, 1000]);
    assert_eq!(lengths(1001), [1000, 1]);
    assert_eq!(lengths(999), [999]);
}

#[test]
fn fin_and_push_are_of_the_last_segment_and_cwr_of_the_first() {
    let frame = Frame { flags: 0xff, ..plain() };
    let flags: Vec<u8> = frame.segments(NONE, 0, 500).iter().map(|(bytes, _)| bytes[34 + 13]).collect();
    assert_eq!(flags, [0xf6, 0x76, 0x7f]);
}

#[test]
fn ids_and_sequence_numbers_turn_over() {
    let frame = Frame { id: 0xffff, sequence: 0xffff_ff00, ..plain() };
    let segments = frame.segments(NONE, 0, 500);
    let numbers = segments
        .iter()
        .map(|(bytes, _)| (word(bytes, 14 + 4), u32::from_be_bytes([bytes[38], bytes[39], bytes[40], bytes[41]])));
    assert_eq!(numbers.collect::<Vec<_>>(), [(0xffff, 0xffff_ff00), (0, 744), (1, 1744)]);
}

#[test]
fn an_egress_that_completes_checksums_gets_the_pseudo_headers_sum_for_each_segment() {
    let egress = EgressOffloads { checksum: true, ..NONE };
    for frame in [plain(), Frame { is_tcp: false, ..plain() }, Frame { is_ipv4: false, ..plain() }] {
        let layout = frame.lay_out();
        for (bytes, offload) in frame.segments(egress, 40, 500) {
            let field = frame.checksum_field();
            let partial = PartialChecksum { start: layout.l4 as u16, offset: field as u16 };
            assert_eq!(offload, Offload { checksum: Some(partial), gso: None, checksum_valid: false });
            let protocol = if frame.is_tcp { 6 } else { 17 };
            let pseudo = pseudo_header(&bytes, layout.l3, protocol, bytes.len() - layout.l4);
            assert_eq!(word(&bytes, layout.l4 + field), slow_sum(&pseudo));
        }
    }
}

#[test]
fn a_checksum_of_zero_is_written_as_ones_for_udp_and_as_it_is_for_tcp() {
    // The last two bytes of payload make the sum all ones.
    let with_zero = |is_tcp: bool| {
        let mut frame = Frame { is_tcp, payload: vec![0; 1500], ..plain() };
        let field = 34 + frame.checksum_field();
        let first = &frame.segments(NONE, 0, usize::MAX)[0].0;
        frame.payload[998..1000].copy_from_slice(&word(first, field).to_be_bytes());
        word(&frame.segments(NONE, 0, usize::MAX)[0].0, field)
    };
    assert_eq!(with_zero(false), 0xffff);
    assert_eq!(with_zero(true), 0);
}

#[test]
fn the_inner_checksum_of_a_tunnel_is_completed_whoever_receives_it() {
    let outer = Outer { is_ipv4: true, tunnel: Tunnel::Udp, has_checksum: true, has_key: false };
    let frame = Frame { outer: Some(outer), ..plain() };
    check_all(&frame, &frame.segments(EgressOffloads { checksum: true, ..NONE }, 10, 700));
}

#[test]
fn a_tunnelled_frame_with_nothing_to_cut_comes_out_once_and_complete() {
    let outer = Outer { is_ipv4: false, tunnel: Tunnel::Udp, has_checksum: true, has_key: false };
    let frame = Frame { outer: Some(outer), payload: vec![9; 301], ..plain() };
    let layout = frame.lay_out();
    for head_len in [layout.header_len, layout.header_len + 33, layout.bytes.len()] {
        let mut batch = Batch::new();
        let mut packet = batch.start(PortIndex(0), QueueIndex(0)).unwrap();
        packet.head(head_len).unwrap().copy_from_slice(&layout.bytes[..head_len]);
        packet.tail(Segment::from(&layout.bytes[head_len..])).unwrap();
        packet.commit(OffloadClaim::default());
        let partial = PartialChecksum { start: layout.l4 as u16, offset: 16 };
        batch.packets_mut()[0].offload.checksum = Some(partial);
        let (packet, tail) = batch.frame(0);
        let mut cut = Segmenter::new(packet, tail, NONE, layout.encapsulation);
        let (packet, tail) = cut.next_segment().unwrap();
        let mut bytes = packet.head().to_vec();
        let mut rest = vec![0; packet.tail_len() as usize];
        if let [segment] = tail {
            segment.read(&mut rest);
        }
        bytes.extend(rest);
        let pseudo = pseudo_header(&bytes, layout.l3, 6, bytes.len() - layout.l4);
        assert_eq!(slow_sum(&[&pseudo, &bytes[layout.l4..]].concat()), 0xffff);
        check_outer(&bytes, outer, layout.encapsulation.unwrap(), 0);
        assert_eq!(bytes[layout.l3..layout.l4], layout.bytes[layout.l3..layout.l4], "the inner IP header is not ours");
        assert!(cut.next_segment().is_none());
    }
}
