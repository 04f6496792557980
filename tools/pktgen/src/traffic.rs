//! What is sent: the frames of one stream, one after another, each with its own addresses, size, number and time.
//!
//! A small untagged frame is composed in eight registers from a template and three counters and needs no memory but the
//! buffer it goes to: some nanoseconds. Where the buffer holds a frame of the same stream with the same addresses already,
//! only its [`Marks`] are written anew: three stores. Everything else (VLAN tags, large TCP frames, frames of a capture, payload to be
//! verified, outer headers) is built in a scratch buffer first. Nothing here allocates after construction.
//!
//! Stations: number n of port p has the MAC 02:00:00 and the address 10/8, both followed by p and n (4 and 20 bits).
//! Sizes are bytes without the frame check sequence, as frames lie in memory.

use crate::order::{self, Order, Turn};
use crate::signature::{self, Signature};
use crate::template::Template;
use crate::tunnel::{OUTER, Tunnel};
use std::rc::Rc;

/// Frame sizes that can be asked for, bytes: from the shortest Ethernet frame to the largest of a standard MTU and two tags.
pub(crate) const SIZES: std::ops::RangeInclusive<usize> = 60..=1522;
/// Bytes of the largest frame of all: a TCP packet of 65,535 bytes with its Ethernet header and two tags.
pub(crate) const SIZE_MAX: usize = 65_535 + 14 + 2 * TAG;
/// Most stations of a port, and most flows of a stream.
pub(crate) const STATIONS_MAX: u32 = 1_000_000;
/// Most ports: four bits of an address.
pub(crate) const PORTS_MAX: usize = 16;
/// Most VLAN tags of a frame.
pub(crate) const TAGS_MAX: usize = 2;
/// The stream number of frames that only make addresses known.
pub(crate) const ANNOUNCEMENT: u16 = u16::MAX;
/// Bytes of the part of a frame that is handed over in registers.
pub(crate) const HEAD: usize = 64;

const TAG: usize = 4;
const ETHERNET: usize = 14;
const IP: usize = 20;
const UDP: usize = 8;
const TCP: usize = 20;
/// Different beginnings of the filler, so that the payload tells the frame.
const SHIFTS: usize = 256;

const _: () = assert!(STATIONS_MAX <= 1 << 20, "a station's number has 20 bits");

/// A frame to be sent.
pub(crate) struct Outgoing<'a> {
    /// The first [`HEAD`] bytes as little-endian words; those behind the end of a shorter frame mean nothing.
    pub(crate) head: [u64; HEAD / 8],
    /// Bytes without the check sequence.
    pub(crate) len: u32,
    /// The bytes behind the head, as far as they are not the [`filler`], which lies in the buffer already.
    pub(crate) rest: &'a [u8],
}

/// What differs between frames of a stream with the same addresses and size: the three words that hold the signature.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Marks {
    /// The byte of the frame at which the first of them begins; a multiple of 8.
    pub(crate) at: usize,
    shift: u32,
    first: u64,
    sequence: u32,
    rest: [u64; 2],
}

impl Marks {
    /// The words of the frame that follows `ahead` frames later, little-endian.
    #[inline(always)]
    pub(crate) fn words(self, ahead: u32) -> [u64; 3] {
        let [second, third] = self.rest;
        [self.first | u64::from(self.sequence.wrapping_add(ahead)) << self.shift, second, third]
    }
}

/// Where [`Marks`] go, and what else is in their words.
#[derive(Clone, Copy)]
struct MarksPlace {
    at: usize,
    /// Bits of the first word before the signature.
    shift: u32,
    others: [u64; 3],
}

impl MarksPlace {
    /// In an untagged UDP frame, and behind `outer` bytes of headers; `before` are the bytes from the first word on that precede
    /// the signature, `filler` those that the buffers hold.
    fn new(outer: usize, before: &[u8], filler: &[u8]) -> MarksPlace {
        let signature = outer + ETHERNET + IP + UDP;
        let at = signature / 8 * 8;
        let mut bytes = [0; 24];
        bytes[..before.len()].copy_from_slice(before);
        let end = signature + signature::LEN - at;
        bytes[end..].copy_from_slice(&filler[at + end..at + 24]);
        let others = std::array::from_fn(|word| u64::from_le_bytes(std::array::from_fn(|byte| bytes[8 * word + byte])));
        MarksPlace { at, shift: 8 * (signature - at) as u32, others }
    }

    /// With this signature, of frame 0, for frame `sequence`.
    #[inline]
    fn marks(&self, signature: Signature, sequence: u32) -> Marks {
        let [low, high] = signature.words();
        let [first, second, third] = self.others;
        let (shift, rest) = (self.shift, u64::BITS - self.shift);
        let rest = [second | low >> rest | high << shift, third | high >> rest];
        Marks { at: self.at, shift, first: first | low << shift, sequence, rest }
    }
}

const _: () = assert!(!(ETHERNET + IP + UDP).is_multiple_of(8) && !(OUTER + ETHERNET + IP + UDP).is_multiple_of(8));
const _: () = assert!((OUTER + ETHERNET + IP + UDP) % 8 <= 4, "the number is in the first word");

/// A VLAN tag (IEEE 802.1Q).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tag {
    /// TPID: 0x8100, or 0x88a8 for the outer of two.
    pub(crate) protocol: u16,
    /// Priority (3 bits), drop eligible, VLAN id (12 bits).
    pub(crate) control: u16,
}

/// What all frames of a run have in common.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// Sizes in the order they are sent, over and over.
    pub(crate) sizes: Vec<usize>,
    /// Tags, the outer first.
    pub(crate) tags: Vec<Tag>,
    /// Large TCP frames, with the bytes of payload of each segment; otherwise UDP.
    pub(crate) segment_size: Option<u16>,
    /// The port whose frames have outer headers.
    pub(crate) tunnel: Option<Tunnel>,
    /// Frames of a capture to send instead of our own.
    pub(crate) templates: Rc<[Template]>,
    /// Each frame's payload depends on its number, and the sink looks at it.
    pub(crate) is_verified: bool,
    /// Filler that payloads are taken from.
    pub(crate) filler: Rc<[u8]>,
}

impl Shape {
    /// Where a signature begins; `None`: in the trailer.
    pub(crate) fn signature_at(&self) -> Option<usize> {
        let l4 = if self.segment_size.is_some() { TCP } else { UDP };
        self.templates.is_empty().then_some(ETHERNET + self.tags.len() * TAG + IP + l4)
    }

    /// Bytes of outer headers that frames have at a port.
    pub(crate) fn outer(&self, port: usize) -> usize {
        self.tunnel.filter(|tunnel| tunnel.port == port).map_or(0, |_| OUTER)
    }

    /// Bytes of the longest frame, with outer headers.
    pub(crate) fn size_max(&self) -> usize {
        self.sizes.iter().max().map_or(0, |size| size + self.tunnel.map_or(0, |_| OUTER))
    }

    /// Bytes of the shortest frame that has room for everything.
    pub(crate) fn size_min(&self) -> usize {
        self.signature_at().map_or(0, |at| at + signature::LEN).max(*SIZES.start())
    }

    /// Bytes of a frame that makes a station known: the shortest that there is with these tags.
    pub(crate) fn size_announced(&self) -> usize {
        (*SIZES.start()).max(ETHERNET + self.tags.len() * TAG + IP + TCP + signature::LEN)
    }

    /// The virtio header of every frame: what is left to do for the device (virtio 1.2 section 5.1.6).
    pub(crate) fn virtio_header(&self) -> [u8; 12] {
        use switch::offload::{F_NEEDS_CSUM, GSO_TCPV4};
        let mut header = [0; 12];
        if let Some(segment_size) = self.segment_size {
            let l4 = (ETHERNET + self.tags.len() * TAG + IP) as u16;
            header[..2].copy_from_slice(&[F_NEEDS_CSUM, GSO_TCPV4]);
            header[2..4].copy_from_slice(&(l4 + TCP as u16).to_le_bytes());
            header[4..6].copy_from_slice(&segment_size.to_le_bytes());
            header[6..8].copy_from_slice(&l4.to_le_bytes());
            // The checksum's place in a TCP header (RFC 9293 section 3.1).
            header[8..10].copy_from_slice(&16u16.to_le_bytes());
        }
        header
    }

    /// The template of frame `sequence`.
    pub(crate) fn template(&self, sequence: u32) -> &Template {
        &self.templates[sequence as usize % self.templates.len()]
    }

    /// The payload of frame `number` from byte `at` of the frame on.
    pub(crate) fn payload(&self, number: u64, at: usize, len: usize) -> &[u8] {
        let start = if self.is_verified { number as usize % SHIFTS } else { 0 } + at;
        &self.filler[start..start + len]
    }
}

/// Bytes without pattern, for payloads of all frames and shifts.
pub(crate) fn filler() -> Rc<[u8]> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..SIZE_MAX + SHIFTS)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// A size and what is known beforehand about frames of it.
struct Class {
    /// Bytes of the frame without tags.
    untagged: usize,
    /// Head of the untagged frame, zero where something is filled in.
    words: [u64; HEAD / 8],
    /// Sum of the IP header without the addresses.
    ip_sum: u32,
}

/// The sending end of one stream.
pub(crate) struct Stream {
    id: u16,
    from: u32,
    to: u32,
    shape: Shape,
    classes: Vec<Class>,
    /// The class of each turn.
    cycle: Vec<u8>,
    at: usize,
    order: Order,
    number: u64,
    time_ns: u64,
    /// Of frames that need no memory to be built.
    is_plain: bool,
    marks: Option<MarksPlace>,
    tunnel: Option<Tunnel>,
    scratch: Vec<u8>,
}

impl Stream {
    /// A stream from port `from` to port `to`; its first frame has number 0.
    pub(crate) fn new(id: u16, from: usize, to: usize, shape: &Shape, order: Order) -> Stream {
        let mut untagged: Vec<usize> = Vec::new();
        let mut cycle = Vec::new();
        let tags = shape.tags.len() * TAG;
        for &size in &shape.sizes {
            let size = size - tags;
            let class = untagged.iter().position(|&known| known == size).unwrap_or_else(|| {
                untagged.push(size);
                untagged.len() - 1
            });
            cycle.push(class as u8);
        }
        let is_usual = tags == 0 && shape.segment_size.is_none() && shape.templates.is_empty() && !shape.is_verified;
        let tunnel = shape.tunnel.filter(|tunnel| tunnel.port == from);
        let classes: Vec<_> = untagged.into_iter().map(|untagged| Class::new(untagged, shape)).collect();
        // The words of marks begin with the UDP checksum, of which there is none; behind outer headers with the length besides.
        let marks = match (is_usual, tunnel, &classes[..]) {
            (true, None, _) => Some(MarksPlace::new(0, &[0; 2], &shape.filler)),
            (true, Some(_), [class]) => {
                let [len_high, len_low] = ((class.untagged - ETHERNET - IP) as u16).to_be_bytes();
                Some(MarksPlace::new(OUTER, &[len_high, len_low, 0, 0], &shape.filler))
            }
            _ => None,
        };
        Stream {
            id,
            from: (from as u32) << 20,
            to: (to as u32) << 20,
            classes,
            cycle,
            at: 0,
            order,
            number: 0,
            time_ns: 0,
            is_plain: is_usual && tunnel.is_none(),
            marks,
            tunnel,
            scratch: Vec::with_capacity(SIZE_MAX),
            shape: shape.clone(),
        }
    }

    /// Which stream it is.
    pub(crate) fn id(&self) -> u16 {
        self.id
    }

    /// Frames after which addresses and sizes are the same again, if that is at most `max` and [`Marks`] tell the rest.
    pub(crate) fn cycle(&self, max: usize) -> Option<usize> {
        let turns = self.order.cycle(max).filter(|_| self.marks.is_some())?;
        Some(order::common_multiple(turns, self.cycle.len())).filter(|&cycle| cycle <= max)
    }

    /// The marks of the next frame; `None` of a stream that has no cycle.
    #[inline]
    pub(crate) fn marks(&self) -> Option<Marks> {
        let signature = Signature { stream: self.id, sequence: 0, time_ns: self.time_ns };
        Some(self.marks.as_ref()?.marks(signature, self.number as u32))
    }

    /// Passes over `count` frames, which were made from their marks; answers their bytes.
    #[inline]
    pub(crate) fn advance(&mut self, count: usize) -> u64 {
        self.number += count as u64;
        self.order.advance(count as u32);
        let outer = if self.tunnel.is_some() { OUTER } else { 0 };
        if let [class] = &self.classes[..] {
            self.at = 0;
            return ((class.untagged + outer) * count) as u64;
        }
        let mut bytes = (outer * count) as u64;
        for _ in 0..count {
            bytes += self.classes[usize::from(self.cycle[self.at])].untagged as u64;
            self.at = (self.at + 1) % self.cycle.len();
        }
        bytes
    }

    /// The number of its next frame.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The time that the following frames carry.
    #[inline]
    pub(crate) fn set_time(&mut self, time_ns: u64) {
        self.time_ns = time_ns;
    }

    /// The next frame.
    #[inline]
    pub(crate) fn next(&mut self) -> Outgoing<'_> {
        if !self.is_plain {
            return self.next_built();
        }
        let class = &self.classes[usize::from(self.cycle[self.at])];
        self.at += 1;
        if self.at == self.cycle.len() {
            self.at = 0;
        }
        let turn = self.order.next();
        let signature = Signature { stream: self.id, sequence: self.number as u32, time_ns: self.time_ns };
        self.number += 1;
        let head = class.head(self.from, self.to, turn, signature);
        Outgoing { head, len: class.untagged as u32, rest: &[] }
    }

    /// The next frame, whatever it is made of.
    fn next_built(&mut self) -> Outgoing<'_> {
        let signature = Signature { stream: self.id, sequence: self.number as u32, time_ns: self.time_ns };
        let frame = &mut self.scratch;
        frame.clear();
        let len = if self.shape.templates.is_empty() {
            let class = &self.classes[usize::from(self.cycle[self.at])];
            self.at = (self.at + 1) % self.cycle.len();
            let turn = self.order.next();
            let words = class.head(self.from, self.to, turn, signature);
            let inner_len = class.untagged + self.shape.tags.len() * TAG;
            if let Some(tunnel) = &self.tunnel {
                frame.extend(tunnel.headers(inner_len, turn.flow));
            }
            let outer = frame.len();
            let mut head = [0; HEAD];
            for (chunk, word) in head.chunks_exact_mut(8).zip(words) {
                chunk.copy_from_slice(&word.to_le_bytes());
            }
            frame.extend(&head[..12]);
            for tag in &self.shape.tags {
                frame.extend(tag.protocol.to_be_bytes());
                frame.extend(tag.control.to_be_bytes());
            }
            match self.shape.segment_size {
                None => frame.extend(&head[12..ETHERNET + IP + UDP]),
                Some(_) => extend_tcp(frame, &head, class.untagged),
            }
            frame.extend(signature.bytes());
            let (at, len) = (frame.len(), outer + inner_len);
            // Of a payload that is nobody's, what is behind the head lies in the buffer already.
            let end = if self.shape.is_verified { len } else { len.min(HEAD).max(at) };
            frame.extend(self.shape.payload(self.number, at - outer, end - at));
            len
        } else {
            frame.extend(self.shape.template(signature.sequence).bytes());
            signature::sign_trailer(frame, signature);
            frame.len()
        };
        self.number += 1;
        let end = frame.len();
        if end < HEAD {
            frame.resize(HEAD, 0);
        }
        let head = std::array::from_fn(|word| u64::from_le_bytes(std::array::from_fn(|byte| frame[8 * word + byte])));
        Outgoing { head, len: len as u32, rest: &frame[HEAD..end.max(HEAD)] }
    }
}

/// Appends the IP header of `head` for TCP and a TCP header whose checksum is left to the device (virtio 1.2 section 5.1.6.2:
/// the field holds the sum of the pseudo header).
fn extend_tcp(frame: &mut Vec<u8>, head: &[u8; HEAD], untagged: usize) {
    let mut ip: [u8; ETHERNET - 12 + IP] = std::array::from_fn(|at| head[12 + at]);
    ip[2 + 9] = TCP_PROTOCOL;
    ip[2 + 10..2 + 12].fill(0);
    let ip_sum = !signature::sum(&ip[2..], false);
    ip[2 + 10..2 + 12].copy_from_slice(&ip_sum.to_be_bytes());
    frame.extend(ip);
    let mut pseudo = [0; 12];
    pseudo[..8].copy_from_slice(&ip[2 + 12..]);
    pseudo[9] = TCP_PROTOCOL;
    pseudo[10..].copy_from_slice(&((untagged - ETHERNET - IP) as u16).to_be_bytes());
    let mut tcp = [0; TCP];
    tcp[..4].copy_from_slice(&head[ETHERNET + IP..ETHERNET + IP + 4]);
    // Five words, ACK, a whole window.
    tcp[12..16].copy_from_slice(&[0x50, 0x10, 0xff, 0xff]);
    tcp[16..18].copy_from_slice(&signature::sum(&pseudo, false).to_be_bytes());
    frame.extend(tcp);
}

/// IANA protocol numbers.
const TCP_PROTOCOL: u8 = 6;
const UDP_PROTOCOL: u8 = 17;

/// A number of 24 bits in network order, as the low bytes of a word.
#[inline]
fn be24(value: u32) -> u64 {
    u64::from(value.swap_bytes() >> 8)
}

#[inline]
fn be16(value: u16) -> u64 {
    u64::from(value.swap_bytes())
}

/// Ors `value` into the words at byte `AT`.
#[inline(always)]
fn put<const AT: usize>(words: &mut [u64; HEAD / 8], value: u64) {
    let shift = 8 * (AT % 8);
    words[AT / 8] |= value << shift;
    if shift > 0 && AT / 8 + 1 < HEAD / 8 {
        words[AT / 8 + 1] |= value >> (64 - shift);
    }
}

/// Puts the signature into the head of an untagged UDP frame, which has zeros there.
#[inline(always)]
fn sign(words: &mut [u64; HEAD / 8], signature: Signature) {
    let [first, second] = signature.words();
    put::<42>(words, first);
    put::<50>(words, second);
}

impl Class {
    fn new(untagged: usize, shape: &Shape) -> Class {
        let mut head = [0; HEAD];
        let end = ETHERNET + IP + UDP + signature::LEN;
        head[end..].copy_from_slice(&shape.filler[end..HEAD]);
        // Locally administered, unicast (IEEE 802).
        (head[0], head[6]) = (0x02, 0x02);
        head[12..14].copy_from_slice(&[0x08, 0x00]);
        let ip_len = (untagged - ETHERNET) as u16;
        let ip = &mut head[ETHERNET..ETHERNET + IP];
        // RFC 791: version 4, 5 words, no fragment, TTL 64.
        (ip[0], ip[8], ip[9], ip[12], ip[16]) = (0x45, 64, UDP_PROTOCOL, 10, 10);
        ip[2..4].copy_from_slice(&ip_len.to_be_bytes());
        let ip_sum = u32::from(signature::sum(&head[ETHERNET..ETHERNET + IP], false));
        let udp = &mut head[ETHERNET + IP..ETHERNET + IP + UDP];
        // To the discard service; RFC 768: a zero checksum means that there is none.
        udp[2..4].copy_from_slice(&9u16.to_be_bytes());
        udp[4..6].copy_from_slice(&(ip_len - IP as u16).to_be_bytes());
        let words = std::array::from_fn(|word| u64::from_le_bytes(std::array::from_fn(|byte| head[8 * word + byte])));
        Class { untagged, words, ip_sum }
    }

    /// The first bytes of an untagged UDP frame.
    #[inline(always)]
    fn head(&self, from: u32, to: u32, turn: Turn, signature: Signature) -> [u64; HEAD / 8] {
        let mut words = self.words;
        put::<3>(&mut words, be24(to | turn.destination));
        put::<9>(&mut words, be24(from | turn.source));
        let (source, destination) = (from | turn.flow, to | turn.flow);
        let sum = self.ip_sum + (source >> 16) + (source & 0xffff) + (destination >> 16) + (destination & 0xffff);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        put::<24>(&mut words, be16(!(sum as u16)));
        put::<27>(&mut words, be24(source));
        put::<31>(&mut words, be24(destination));
        // RFC 6335 section 6: dynamic ports.
        put::<34>(&mut words, be16(0xc000 | (turn.flow & 0x3fff) as u16));
        sign(&mut words, signature);
        words
    }
}

#[cfg(test)]
pub(crate) mod tests;
