//! Tells plain frames in tunnels at a glance: IPv4 without options or fragments, and behind it VXLAN, Geneve without options, or GRE with
//! just a key.
//!
//! What all of them have in common at an uplink lies at places known beforehand and is compiled into a [`Shape`]: one comparison under
//! a mask settles what [`super::decide`] takes many steps for, and what is left are lengths and a checksum. A test holds both
//! together. Whose frames they are was mostly found out for the frame before, and is looked up only if source or number differ.

use super::decap::ECN_LEN;
use crate::runs::Owner;
use crate::wire::{ethernet, geneve, gre, ipv4, udp, vxlan, word};
use std::net::{IpAddr, Ipv4Addr};
use switch::packet::Packet;
use switch::underlay::{TunnelConfig, TunnelKind, UplinkConfig};

/// Words that are compared: all outer headers but their last bytes, the number.
const WORDS: usize = 8;
/// Bytes of a frame's front that are looked at, here and when its congestion mark is passed on.
pub(crate) const FRONT: usize = OUTER_MAX + ECN_LEN;
/// Ethernet with a tag, IPv4, UDP, VXLAN.
const OUTER_MAX: usize = ethernet::LEN + ethernet::TAG_LEN + ipv4::LEN + udp::LEN + 8;
const _: () = assert!(ECN_LEN >= ethernet::LEN, "what is looked at holds an inner frame's addresses");
const _: () = assert!(8 * WORDS + 8 >= OUTER_MAX && vxlan::LEN == 8 && geneve::LEN == 8 && gre::LEN == 8);

/// What plain frames of one kind have in common at one uplink.
pub struct Shape {
    /// How they are wrapped.
    kind: TunnelKind,
    template: [u64; WORDS],
    mask: [u64; WORDS],
    /// Where IPv4 begins.
    ip: usize,
    header_len: usize,
    is_udp: bool,
    /// The bytes behind the headers that are compared are the network's number as far as these bits go.
    number_mask: u32,
}

/// What a frame of a shape says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seen {
    /// Source address and number as they lie on the wire: what tells senders and networks apart.
    key: u64,
    /// The outer congestion mark.
    pub(super) ecn: u8,
}

impl Shape {
    /// The shapes of all kinds at an uplink; none where the underlay is IPv6.
    pub fn all(uplink: &UplinkConfig, tunnel: &TunnelConfig) -> Vec<Shape> {
        let IpAddr::V4(local) = tunnel.local else { return Vec::new() };
        TunnelKind::ALL.map(|kind| Shape::new(kind, uplink, tunnel, local)).into()
    }

    fn new(kind: TunnelKind, uplink: &UplinkConfig, tunnel: &TunnelConfig, local: Ipv4Addr) -> Shape {
        let (mut template, mut mask) = ([0; 8 * WORDS], [0; 8 * WORDS]);
        // These bytes, as far as these bits go.
        let mut expect = |at: usize, bytes: &[u8], bits: &[u8]| {
            template[at..at + bytes.len()].copy_from_slice(bytes);
            mask[at..at + bits.len()].copy_from_slice(bits);
        };
        expect(0, &uplink.mac.0, &[0xff; 6]);
        let mut ip = ethernet::LEN;
        if let Some(tag) = uplink.tags.underlay {
            expect(12, &ethernet::TYPE_VLAN.to_be_bytes(), &[0xff; 2]);
            expect(14, &tag.get().to_be_bytes(), &[0x0f, 0xff]);
            ip += ethernet::TAG_LEN;
        }
        expect(ip - 2, &ethernet::TYPE_IPV4.to_be_bytes(), &[0xff; 2]);
        expect(ip, &[0x45], &[0xff]);
        expect(ip + 6, &[0; 2], &(ipv4::MORE_FRAGMENTS | ipv4::FRAGMENT_OFFSET).to_be_bytes());
        expect(ip + 16, &local.octets(), &[0xff; 4]);
        let l4 = ip + ipv4::LEN;
        let protocol = if kind == TunnelKind::Gre { gre::PROTOCOL } else { udp::PROTOCOL };
        expect(ip + 9, &[protocol], &[0xff]);
        match kind {
            TunnelKind::Vxlan => {
                expect(l4 + 2, &tunnel.port_vxlan.to_be_bytes(), &[0xff; 2]);
                expect(l4 + udp::LEN, &[vxlan::HAS_VNI], &[vxlan::HAS_VNI]);
            }
            TunnelKind::Geneve => {
                expect(l4 + 2, &geneve::PORT.to_be_bytes(), &[0xff; 2]);
                // Version 0, no options, no control packet, Ethernet inside.
                expect(l4 + udp::LEN, &[0, 0], &[0xff, geneve::NOT_FOR_US]);
                expect(l4 + udp::LEN + 2, &geneve::TYPE_ETHERNET.to_be_bytes(), &[0xff; 2]);
            }
            TunnelKind::Gre => expect(l4, &gre::GreRepr { key: 0 }.to_bytes()[..4], &[0xff; 4]),
        }
        let words = |bytes: [u8; 8 * WORDS]| std::array::from_fn(|at| u64::from_ne_bytes(bytes.as_chunks().0[at]));
        let header_len = l4 + crate::underlay::tunnel_len(kind);
        let is_udp = protocol == udp::PROTOCOL;
        // A GRE key is 32 bits; VNIs, and VSIDs in its place, are 24 and something else follows.
        let number_mask = if is_udp || tunnel.is_nvgre { u32::from_ne_bytes([0xff, 0xff, 0xff, 0]) } else { u32::MAX };
        Shape { kind, template: words(template), mask: words(mask), ip, header_len, is_udp, number_mask }
    }

    /// Reads a frame of this shape of `len` bytes, all of them its own, that begins with `front`; `None` says nothing about it.
    #[inline(always)]
    pub(super) fn read(&self, front: &[u8; FRONT], len: usize) -> Option<Seen> {
        let (words, _) = front.as_chunks();
        let mut differences = 0;
        for (word, (expected, mask)) in words.iter().zip(self.template.iter().zip(&self.mask)) {
            differences |= (u64::from_ne_bytes(*word) ^ expected) & mask;
        }
        if differences != 0 {
            return None;
        }
        let ip: &[u8; OUTER_MAX - ethernet::LEN - ethernet::TAG_LEN] = front.get(self.ip..)?.first_chunk()?;
        let long = |at: usize| u32::from_ne_bytes([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
        if !is_checksum_valid([long(0), long(4), long(8), long(12), long(16)]) {
            return None;
        }
        if usize::from(word(ip, 2)) != len - self.ip {
            return None;
        }
        let number = if self.is_udp {
            if usize::from(word(ip, ipv4::LEN + 4)) != len - self.ip - ipv4::LEN {
                return None;
            }
            long(ipv4::LEN + udp::LEN + 4)
        } else {
            long(ipv4::LEN + 4)
        };
        Some(Seen { key: u64::from(long(12)) << 32 | u64::from(number & self.number_mask), ecn: ip[1] & 3 })
    }

    /// Bytes of the outer headers.
    #[inline]
    pub(super) fn header_len(&self) -> usize {
        self.header_len
    }

    /// How frames of this shape are wrapped.
    pub(super) fn kind(&self) -> TunnelKind {
        self.kind
    }

    /// Who wrapped such a frame, and its VNI or key.
    pub(super) fn sender(&self, seen: Seen) -> (Ipv4Addr, u32) {
        let number = u32::from_be_bytes((seen.key as u32).to_ne_bytes());
        let source = Ipv4Addr::from(((seen.key >> 32) as u32).to_ne_bytes());
        (source, if self.number_mask == u32::MAX { number } else { number >> 8 })
    }
}

/// What the last frame was, so that the next one costs less.
pub(super) struct Quick<'t> {
    shapes: &'t [Shape],
    /// The last one's.
    shape: Option<&'t Shape>,
    key: u64,
    /// Whose frames of that shape and key are; nobody's, before there was one.
    owner: Owner,
}

impl<'t> Quick<'t> {
    /// Before the first frame.
    pub(super) fn new(shapes: &'t [Shape]) -> Quick<'t> {
        Quick { shapes, shape: shapes.first(), key: 0, owner: Owner::NOBODY }
    }

    /// Reads a frame if it is of one of the shapes; `None` says nothing about it.
    #[inline(always)]
    pub(super) fn look(&mut self, packet: &Packet) -> Option<(&'t Shape, Seen)> {
        let (shape, front) = (self.shape?, packet.front()?);
        match shape.read(front, packet.len()) {
            Some(seen) => Some((shape, seen)),
            None => self.look_anew(front, packet.len()),
        }
    }

    /// Tries all shapes.
    #[inline(never)]
    fn look_anew(&mut self, front: &[u8; FRONT], len: usize) -> Option<(&'t Shape, Seen)> {
        let (shape, seen) = self.shapes.iter().find_map(|shape| Some((shape, shape.read(front, len)?)))?;
        (self.shape, self.key) = (Some(shape), !seen.key);
        Some((shape, seen))
    }

    /// Whose the frame is that was just seen: as the last one, or by what `ask` says.
    #[inline(always)]
    pub(super) fn owner(&mut self, seen: Seen, ask: impl FnOnce() -> Owner) -> Owner {
        if self.key != seen.key {
            (self.key, self.owner) = (seen.key, ask());
        }
        self.owner
    }
}

/// Whether these words, which are all of an IPv4 header, sum up to what a right checksum makes of them, in whatever byte order (RFC
/// 1071 section 2).
#[inline(always)]
fn is_checksum_valid(words: [u32; ipv4::LEN / 4]) -> bool {
    let sum: u64 = words.iter().map(|word| u64::from(*word)).sum();
    // Both halves then hold the sum of both, and the carry of the lower one is in the upper one.
    let sum = ((sum.wrapping_add(sum.rotate_left(32))) >> 32) as u32;
    let sum = sum.wrapping_add(sum.rotate_left(16)) >> 16;
    sum == 0xffff
}
