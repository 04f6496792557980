//! What is sent: the frames of one stream, one after another, each with its own addresses, size, number and time.
//!
//! A small untagged frame is composed in eight registers from a template and three counters and needs no memory but the
//! buffer it goes to: some nanoseconds. Everything else (VLAN tags, large TCP frames, frames of a capture, payload to be
//! verified) is built in a scratch buffer first. Nothing here allocates after construction.
//!
//! Stations: number n of port p has the MAC 02:00:00 and the address 10/8, both followed by p and n (4 and 20 bits).
//! Sizes are bytes without the frame check sequence, as frames lie in memory.

use crate::order::{Order, Turn};
use crate::signature::{self, Signature};
use crate::template::Template;
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
    /// The bytes behind the head; empty if they are the [`filler`], which lies in the buffer already.
    pub(crate) rest: &'a [u8],
}

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
    is_plain: bool,
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
        let is_plain = tags == 0 && shape.segment_size.is_none() && shape.templates.is_empty() && !shape.is_verified;
        Stream {
            id,
            from: (from as u32) << 20,
            to: (to as u32) << 20,
            classes: untagged.into_iter().map(|untagged| Class::new(untagged, shape)).collect(),
            cycle,
            at: 0,
            order,
            number: 0,
            time_ns: 0,
            is_plain,
            scratch: Vec::with_capacity(SIZE_MAX),
            shape: shape.clone(),
        }
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
        if self.shape.templates.is_empty() {
            let class = &self.classes[usize::from(self.cycle[self.at])];
            self.at = (self.at + 1) % self.cycle.len();
            let turn = self.order.next();
            let words = class.head(self.from, self.to, turn, signature);
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
            let at = frame.len();
            let len = class.untagged + self.shape.tags.len() * TAG - at;
            frame.extend(self.shape.payload(self.number, at, len));
        } else {
            frame.extend(self.shape.template(signature.sequence).bytes());
            signature::sign_trailer(frame, signature);
        }
        self.number += 1;
        let len = frame.len();
        if len < HEAD {
            frame.resize(HEAD, 0);
        }
        let head = std::array::from_fn(|word| u64::from_le_bytes(std::array::from_fn(|byte| frame[8 * word + byte])));
        Outgoing { head, len: len as u32, rest: &frame[HEAD..len.max(HEAD)] }
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
        let [first, second] = signature.words();
        put::<42>(&mut words, first);
        put::<50>(&mut words, second);
        words
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::HashSet;

    pub(crate) fn shape(sizes: &[usize]) -> Shape {
        Shape {
            sizes: sizes.to_vec(),
            tags: Vec::new(),
            segment_size: None,
            templates: Rc::new([]),
            is_verified: false,
            filler: filler(),
        }
    }

    pub(crate) fn bytes(frame: &Outgoing<'_>, shape: &Shape) -> Vec<u8> {
        let mut bytes: Vec<u8> = frame.head.iter().flat_map(|word| word.to_le_bytes()).collect();
        let len = frame.len as usize;
        bytes.truncate(len);
        if frame.rest.is_empty() && len > HEAD {
            bytes.extend(&shape.filler[HEAD..len]);
        } else {
            bytes.extend(frame.rest);
        }
        assert_eq!(bytes.len(), len);
        bytes
    }

    fn stream(shape: &Shape, stations: u32, flows: u32) -> Stream {
        Stream::new(0, 0, 1, shape, Order::round_robin(stations, stations, flows))
    }

    #[test]
    fn every_frame_has_its_own_source_and_a_destination_of_the_other_side() {
        let shape = shape(&[60]);
        let mut stream = stream(&shape, 1000, 1000);
        let frames: Vec<_> = (0..1000).map(|_| bytes(&stream.next(), &shape)).collect();
        let sources: HashSet<_> = frames.iter().map(|frame| frame[6..12].to_vec()).collect();
        let destinations: HashSet<_> = frames.iter().map(|frame| frame[..6].to_vec()).collect();
        let flows: HashSet<_> = frames.iter().map(|frame| frame[26..38].to_vec()).collect();
        assert_eq!((sources.len(), destinations.len(), flows.len()), (1000, 1000, 1000));
        assert!(frames.iter().all(|frame| frame.len() == 60 && frame[3] == 0x10 && frame[9] == 0));
    }

    #[test]
    fn headers_are_right_at_every_size_tagged_or_not() {
        let tag = |protocol, control| Tag { protocol, control };
        for tags in [vec![], vec![tag(0x8100, 0x6005)], vec![tag(0x88a8, 7), tag(0x8100, 5)]] {
            let mut shape = shape(&[68, 254, 1514, 1515]);
            shape.tags = tags;
            let mut stream = stream(&shape, 70_000, 999_999);
            stream.set_time(77);
            for number in 0..300 {
                let frame = bytes(&stream.next(), &shape);
                assert_eq!(frame.len(), shape.sizes[number % 4]);
                let parsed = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
                assert_eq!(parsed.vlan_ids().len(), shape.tags.len());
                let Some(etherparse::NetSlice::Ipv4(ip)) = parsed.net else { panic!("{frame:x?}") };
                assert_eq!(ip.header().to_header().calc_header_checksum(), ip.header().header_checksum());
                let Some(etherparse::TransportSlice::Udp(udp)) = parsed.transport else { panic!("{frame:x?}") };
                assert_eq!(usize::from(udp.length()), frame.len() - shape.tags.len() * 4 - 34);
                let at = shape.signature_at().unwrap();
                let signature = Signature::from_bytes(frame[at..].first_chunk().unwrap()).unwrap();
                assert_eq!(signature, Signature { stream: 0, sequence: number as u32, time_ns: 77 });
            }
        }
    }

    #[test]
    fn a_large_frame_asks_its_device_to_cut_and_to_sum() {
        let mut shape = shape(&[65_000]);
        shape.segment_size = Some(1448);
        let mut stream = stream(&shape, 10, 10);
        let frame = bytes(&stream.next(), &shape);
        let parsed = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(etherparse::NetSlice::Ipv4(ip)) = parsed.net else { panic!("{frame:x?}") };
        let Some(etherparse::TransportSlice::Tcp(tcp)) = parsed.transport else { panic!("{frame:x?}") };
        assert_eq!(ip.header().to_header().calc_header_checksum(), ip.header().header_checksum());
        assert_eq!(shape.virtio_header(), [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]);
        // What the device does: the complement of the sum over header and payload, with the field as it stands.
        let summed = !signature::sum(&frame[34..], false);
        let mut header = tcp.to_header();
        header.checksum = 0;
        let right = header.calc_checksum_ipv4_raw(ip.header().source(), ip.header().destination(), tcp.payload());
        assert_eq!(summed, right.unwrap());
    }

    #[test]
    fn payloads_of_a_verified_stream_differ_from_frame_to_frame() {
        let mut shape = shape(&[200]);
        shape.is_verified = true;
        let mut stream = stream(&shape, 1, 1);
        let payloads: HashSet<_> = (0..SHIFTS).map(|_| bytes(&stream.next(), &shape)[58..].to_vec()).collect();
        assert_eq!(payloads.len(), SHIFTS);
    }
}
