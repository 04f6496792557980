//! Stage 1, parse: finds the headers, gives the frame its flow hash and holds the sender's offload claim against both.
//!
//! What makes it hard: a bridge forwards whatever is inside a frame, so broken inner protocols are no reason to drop it,
//! only not parsed (`L3::Other`, or `l4_offset` 0). But a frame that asks somebody to rewrite it must be understood
//! first: there a header that we cannot find is a drop. And the head may end anywhere, for the sender chooses its
//! buffers: where it ends inside a header, more of the tail is pulled in, once, up to `HEAD_MAX`.
//!
//! An untagged frame that asks for nothing is read as far as its EtherType: no later stage needs more, and more could not drop
//! it ([`run`]). Of the others, untagged IPv4 with TCP or UDP and no IP options, which is nearly everything, is recognised
//! from 54 bytes with one length check ([`common`]); the rest walks through the views of [`crate::wire`]. A test holds
//! them together. A trace reads every frame as far as it goes.
//! If `l4_offset` is set for TCP, UDP or ICMP, the fixed part of that header lies in the head.
//!
//! Config read: the ingress port's MTU (bounds `gso_size`).
//! Drop reasons: `truncated` (the frame ends inside Ethernet header or tags), `bad_offload`, `headers_too_long` (only
//! if the frame claims an offload).

use crate::describe;
use crate::flow_hash;
use crate::offload;
use crate::stage::{Notes, Scope, Stage, Step, Stop};
use crate::wire::arp::{self, Arp};
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::icmp::{self, Icmp};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::tcp::{self, Tcp};
use crate::wire::udp::{self, Udp};
use crate::wire::{WireError, word};
use switch::batch::Batch;
use switch::ledger::DropReason;
use switch::offload::{F_NEEDS_CSUM, GSO_NONE, Offload, OffloadClaim, PartialChecksum};
use switch::packet::{HEAD_MAX, Headers, L3, Packet};

/// The stage.
pub const STAGE: Stage = Stage { name: "parse", run, trace };

/// What the stage writes into a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parsed {
    /// Where the headers are.
    pub headers: Headers,
    /// Hash of the flow.
    pub flow_hash: u32,
    /// The claim, as far as it holds.
    pub offload: Offload,
}

/// What the headers alone tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    pub(crate) headers: Headers,
    pub(crate) flow_hash: u32,
    /// Where the innermost header's payload ends by the headers' word, bytes from the start of the frame.
    pub(crate) end: usize,
    /// The L4 header may be there, but beyond what a head can hold.
    pub(crate) is_too_long: bool,
}

/// Decides about one frame of `frame_len` bytes whose first bytes are `head`, from a port of this `mtu`.
///
/// # Errors
/// [`Stop`]: more bytes are wanted (never when the head holds the whole frame or [`HEAD_MAX`] bytes), or a drop.
pub fn decide(head: &[u8], frame_len: usize, claim: &OffloadClaim, mtu: u16) -> Result<Parsed, Stop> {
    match decide_common(head, frame_len, claim) {
        Some(parsed) => Ok(parsed),
        None => decide_carefully(head, frame_len, claim, mtu),
    }
}

/// The common case, with a claim that asks for nothing or for the checksum of just this header; `None` says nothing.
///
/// Always inlined: an answer that goes through memory is written in small pieces and read back in large ones, which
/// stalls the processor for longer than the whole parse takes.
#[inline(always)]
fn decide_common(head: &[u8], frame_len: usize, claim: &OffloadClaim) -> Option<Parsed> {
    let found = common(head, frame_len)?;
    let mut offload = Offload::default();
    if !claim.is_none() {
        let field = if found.headers.l4_protocol == tcp::PROTOCOL { tcp::CHECKSUM } else { udp::CHECKSUM } as u16;
        let is_plain = claim.flags == F_NEEDS_CSUM && claim.gso_type == GSO_NONE;
        if !is_plain || claim.csum_start != L4 as u16 || claim.csum_offset != field {
            return None;
        }
        offload.checksum = Some(PartialChecksum { start: L4 as u16, offset: field });
    }
    Some(Parsed { headers: found.headers, flow_hash: found.flow_hash, offload })
}

/// Every case, step by step.
#[inline(never)]
fn decide_carefully(head: &[u8], frame_len: usize, claim: &OffloadClaim, mtu: u16) -> Result<Parsed, Stop> {
    let found = match common(head, frame_len) {
        Some(found) => found,
        None => walk(head, frame_len)?,
    };
    let offload = if claim.is_none() {
        Offload::default()
    } else {
        offload::check(claim, &found, head, frame_len, mtu).map_err(Stop::Drop)?
    };
    Ok(Parsed { headers: found.headers, flow_hash: found.flow_hash, offload })
}

/// Bytes that [`common`] looks at: Ethernet, IPv4 and TCP without options.
const COMMON_LEN: usize = ethernet::LEN + ipv4::LEN + tcp::LEN;
/// Where IPv4 begins in an untagged frame.
pub(crate) const IP: usize = ethernet::LEN;
/// Where L4 begins behind an IPv4 header without options.
pub(crate) const L4: usize = IP + ipv4::LEN;
/// EtherType IPv4, then version 4 and a header of five words; the type of service is masked out.
pub(crate) const UNTAGGED_IPV4: u32 = 0x0800_4500;

/// Recognises the common case; `None` says nothing but "walk".
#[inline(always)]
fn common(head: &[u8], frame_len: usize) -> Option<Found> {
    let bytes = head.first_chunk::<COMMON_LEN>()?;
    let kind = u32::from_be_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
    let total_len = usize::from(word(bytes, IP + 2));
    let fragment = word(bytes, IP + 6) & (ipv4::MORE_FRAGMENTS | ipv4::FRAGMENT_OFFSET);
    if kind & 0xffff_ff00 != UNTAGGED_IPV4 || fragment != 0 || IP + total_len > frame_len {
        return None;
    }
    let protocol = bytes[IP + 9];
    let is_whole = match protocol {
        tcp::PROTOCOL => {
            let header_len = usize::from(bytes[L4 + tcp::DATA_OFFSET] >> 4) * 4;
            header_len >= tcp::LEN && ipv4::LEN + header_len <= total_len
        }
        udp::PROTOCOL => word(bytes, L4 + 4) >= udp::LEN as u16 && ipv4::LEN + udp::LEN <= total_len,
        _ => false,
    };
    if !is_whole {
        return None;
    }
    let headers = Headers {
        ethertype: ethernet::TYPE_IPV4,
        vlan_count: 0,
        l3: L3::Ipv4,
        vlan_tci: 0,
        l3_offset: IP as u16,
        l4_offset: L4 as u16,
        l4_protocol: protocol,
        is_fragment: false,
    };
    let ports = u32::from_ne_bytes([bytes[L4], bytes[L4 + 1], bytes[L4 + 2], bytes[L4 + 3]]);
    let addresses = *bytes[IP + 12..].first_chunk().expect("42 bytes are more than 8");
    let flow_hash = flow_hash::ipv4(addresses, ports, protocol);
    Some(Found { headers, flow_hash, end: IP + total_len, is_too_long: false })
}

/// Why a header was not found.
enum Gap {
    /// It is not there, or broken.
    Absent,
    /// The head ends before it does.
    Pull,
    /// It ends beyond what a head can hold.
    TooLong,
}

/// The head, up to where the enclosing header says its payload ends.
#[derive(Clone, Copy)]
struct Window<'a> {
    head: &'a [u8],
    end: usize,
}

impl<'a> Window<'a> {
    fn from(&self, offset: usize) -> &'a [u8] {
        self.head.get(offset..self.head.len().min(self.end)).unwrap_or_default()
    }

    fn gap(&self, error: WireError) -> Gap {
        match error {
            WireError::Malformed => Gap::Absent,
            WireError::Short if self.head.len() >= self.end => Gap::Absent,
            WireError::Short if self.head.len() >= HEAD_MAX => Gap::TooLong,
            WireError::Short => Gap::Pull,
        }
    }
}

/// Finds the headers of any frame.
#[inline(never)]
fn walk(head: &[u8], frame_len: usize) -> Result<Found, Stop> {
    let window = Window { head, end: frame_len };
    let ethernet = Ethernet::new(head).map_err(|error| match window.gap(error) {
        Gap::Pull => Stop::Pull,
        Gap::Absent | Gap::TooLong => Stop::Drop(DropReason::Truncated),
    })?;
    let addresses = *head.first_chunk().expect("the view checked 14 bytes");
    let headers = Headers {
        ethertype: ethernet.ethertype(),
        vlan_count: ethernet.vlan_count() as u8,
        l3: L3::Other,
        vlan_tci: ethernet.tag(0).map_or(0, |tag| tag.control),
        l3_offset: ethernet.header_len() as u16,
        l4_offset: 0,
        l4_protocol: 0,
        is_fragment: false,
    };
    let flow_hash = flow_hash::other(addresses, headers.ethertype);
    let mut found = Found { headers, flow_hash, end: frame_len, is_too_long: false };
    let network_layer = match headers.ethertype {
        ethernet::TYPE_IPV4 => walk_ipv4(window, &mut found),
        ethernet::TYPE_IPV6 => walk_ipv6(window, &mut found),
        ethernet::TYPE_ARP => walk_arp(window, &mut found),
        _ => Ok(()),
    };
    match network_layer {
        Ok(()) | Err(Gap::Absent) => {}
        Err(Gap::TooLong) => found.is_too_long = true,
        Err(Gap::Pull) => return Err(Stop::Pull),
    }
    Ok(found)
}

fn walk_arp(window: Window<'_>, found: &mut Found) -> Result<(), Gap> {
    let l3_offset = usize::from(found.headers.l3_offset);
    Arp::new(window.from(l3_offset)).map_err(|error| window.gap(error))?;
    found.headers.l3 = L3::Arp;
    found.end = l3_offset + arp::LEN;
    Ok(())
}

fn walk_ipv4(window: Window<'_>, found: &mut Found) -> Result<(), Gap> {
    let l3_offset = usize::from(found.headers.l3_offset);
    let bytes = window.from(l3_offset);
    let ip = Ipv4::new(bytes).map_err(|error| window.gap(error))?;
    let end = l3_offset + ip.total_len();
    if end > window.end {
        return Err(Gap::Absent);
    }
    found.headers.l3 = L3::Ipv4;
    found.headers.is_fragment = ip.is_fragment();
    found.end = end;
    let addresses = *bytes[12..].first_chunk().expect("the view checked 20 bytes");
    if ip.is_fragment() {
        // Later fragments have no ports, so the first one must not count them either.
        found.flow_hash = flow_hash::ipv4(addresses, 0, 0);
        if ip.fragment_offset() > 0 {
            return Ok(());
        }
        return walk_l4(Window { end, ..window }, found, l3_offset + ip.header_len(), ip.protocol()).map(|_| ());
    }
    let ports = walk_l4(Window { end, ..window }, found, l3_offset + ip.header_len(), ip.protocol());
    found.flow_hash = flow_hash::ipv4(addresses, *ports.as_ref().unwrap_or(&0), ip.protocol());
    ports.map(|_| ())
}

fn walk_ipv6(window: Window<'_>, found: &mut Found) -> Result<(), Gap> {
    let l3_offset = usize::from(found.headers.l3_offset);
    let ip = Ipv6::new(window.from(l3_offset)).map_err(|error| window.gap(error))?;
    let end = l3_offset + ipv6::LEN + ip.payload_len();
    if end > window.end {
        return Err(Gap::Absent);
    }
    let window = Window { end, ..window };
    let bytes = window.from(l3_offset);
    found.headers.l3 = L3::Ipv6;
    found.end = end;
    let addresses = bytes[8..].first_chunk().expect("the view checked 40 bytes");
    found.flow_hash = flow_hash::ipv6(addresses, 0, 0);
    // Again, now with the bytes that end where the payload does.
    let upper = Ipv6::new(bytes).and_then(|ip| ip.upper_layer()).map_err(|error| window.gap(error))?;
    found.headers.is_fragment = upper.is_fragment;
    if upper.is_later_fragment {
        return Ok(());
    }
    let ports = walk_l4(window, found, l3_offset + upper.offset, upper.protocol);
    if !upper.is_fragment {
        found.flow_hash = flow_hash::ipv6(addresses, *ports.as_ref().unwrap_or(&0), upper.protocol);
    }
    ports.map(|_| ())
}

/// Notes the L4 header at `offset` if it is whole; answers both ports as they lie on the wire, 0 for protocols without.
fn walk_l4(window: Window<'_>, found: &mut Found, offset: usize, protocol: u8) -> Result<u32, Gap> {
    let bytes = window.from(offset);
    let ports = |bytes: &[u8]| u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let ports = match protocol {
        tcp::PROTOCOL => {
            let tcp = Tcp::new(bytes).map_err(|error| window.gap(error))?;
            if offset + tcp.header_len() > window.end {
                return Err(Gap::Absent);
            }
            ports(bytes)
        }
        udp::PROTOCOL => {
            Udp::new(bytes).map_err(|error| window.gap(error))?;
            ports(bytes)
        }
        icmp::PROTOCOL | icmp::PROTOCOL_V6 => {
            Icmp::new(bytes).map_err(|error| window.gap(error))?;
            0
        }
        ipv6::NO_NEXT_HEADER => return Err(Gap::Absent),
        _ if offset >= window.end => return Err(Gap::Absent),
        _ => 0,
    };
    // A frame is shorter than 64 KiB where an L4 header was found: IP lengths are 16 bits, and HEAD_MAX bounds the rest.
    found.headers.l4_offset = offset as u16;
    found.headers.l4_protocol = protocol;
    Ok(ports)
}

/// What is equal for all packets of a flow and spread over many: its hash, looked for now if nothing needed it before.
pub(crate) fn entropy(packet: &Packet) -> u32 {
    if packet.headers.l3 != L3::Unread {
        return packet.flow_hash;
    }
    let (head, len) = (packet.head(), packet.len());
    match common(head, len).map(Ok).unwrap_or_else(|| walk(head, len)) {
        Ok(found) => found.flow_hash,
        Err(_) => head.first_chunk().map_or(0, |addresses| flow_hash::other(*addresses, packet.headers.ethertype)),
    }
}

/// Bytes of L3 and above that a frame needs of an MTU: of each segment, if it will be cut.
#[inline]
pub fn l3_len(packet: &Packet) -> usize {
    let len = match &packet.offload.gso {
        None => packet.len(),
        Some(gso) => usize::from(gso.header_len) + usize::from(gso.size),
    };
    len - usize::from(packet.headers.l3_offset)
}

/// Decides about one packet and writes down what was found, all of it.
///
/// In two steps, like [`decide`]; written out here so that the common one stays in registers.
#[inline(never)]
fn settle(packet: &mut Packet, mtu: u16) -> Result<(), Stop> {
    let parsed = match decide_common(packet.head(), packet.len(), &packet.claim) {
        Some(parsed) => parsed,
        None => decide_carefully(packet.head(), packet.len(), &packet.claim, mtu)?,
    };
    packet.headers = parsed.headers;
    packet.flow_hash = parsed.flow_hash;
    packet.offload = parsed.offload;
    Ok(())
}

#[inline(always)]
fn run(scope: &Scope<'_>, packet: &mut Packet, notes: &mut Notes) -> Result<(), Stop> {
    let Some(front) = packet.front() else {
        return Err(if packet.tail_len() > 0 { Stop::Pull } else { Stop::Drop(DropReason::Truncated) });
    };
    let (destination, source, ethertype) = ethernet::front(front);
    (notes.destination, notes.source) = (destination, source);
    if packet.claim.is_none() && !ethernet::is_tag(ethertype) {
        // Nothing behind the EtherType is held against anything, and no tag can end early.
        packet.headers = Headers::unread(ethertype, ethernet::LEN as u16);
        notes.l3_len = packet.len() - ethernet::LEN;
        return Ok(());
    }
    settle(packet, scope.port.mtu)?;
    notes.l3_len = l3_len(packet);
    Ok(())
}

fn trace(scope: &Scope<'_>, batch: &mut Batch<'_>) -> Step {
    let mut outcome = settle(&mut batch.packets_mut()[0], scope.port.mtu);
    if outcome == Err(Stop::Pull) {
        let pulled = batch.pull(0, HEAD_MAX).map_err(Stop::Drop);
        outcome = pulled.and_then(|()| settle(&mut batch.packets_mut()[0], scope.port.mtu));
    }
    match outcome {
        Ok(()) => Step::on(describe::packet(&batch.packets()[0])),
        Err(Stop::Drop(reason)) => Step::drop(scope, reason),
        Err(Stop::Pull) => Step::drop(scope, DropReason::HeadersTooLong),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::frames::{Frame, any_frame};
    use proptest::prelude::*;

    const NO_CLAIM: OffloadClaim =
        OffloadClaim { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };

    fn parsed(frame: &[u8]) -> Result<Headers, Stop> {
        decide(frame, frame.len(), &NO_CLAIM, 1500).map(|parsed| parsed.headers)
    }

    #[test]
    fn every_prefix_of_the_ethernet_header_or_its_tags_is_truncated_and_nothing_longer_is() {
        let frame = Frame::udp4().vlan(7).vlan(9).bytes();
        for len in 0..frame.len() {
            let answer = parsed(&frame[..len]);
            assert_eq!(answer == Err(Stop::Drop(DropReason::Truncated)), len < ethernet::LEN_MAX, "{len} bytes");
        }
    }

    #[test]
    fn tags_move_the_headers_and_the_outermost_is_kept() {
        let headers = parsed(&Frame::udp4().vlan(7).vlan(0x6009).bytes()).unwrap();
        assert_eq!((headers.vlan_count, headers.vlan_tci, headers.ethertype), (2, 7, ethernet::TYPE_IPV4));
        assert_eq!((headers.l3_offset, headers.l4_offset, headers.l4_protocol), (22, 42, udp::PROTOCOL));
    }

    #[test]
    fn broken_ip_is_not_parsed_and_not_dropped() {
        for (at, value) in [(14, 0x44), (14, 0x65), (16, 0xff)] {
            let mut frame = Frame::udp4().bytes();
            frame[at] = value;
            let headers = parsed(&frame).unwrap();
            assert_eq!((headers.l3, headers.l4_offset), (L3::Other, 0), "byte {at} = {value:#x}");
        }
        let headers = parsed(&Frame::udp6().bytes()[..60]).unwrap();
        assert_eq!((headers.l3, headers.l4_offset), (L3::Other, 0), "IPv6 longer than the frame");
    }

    #[test]
    fn a_broken_l4_header_leaves_ip_parsed() {
        let mut frame = Frame::tcp4().bytes();
        frame[34 + tcp::DATA_OFFSET] = 0xf0;
        let headers = parsed(&frame).unwrap();
        assert_eq!((headers.l3, headers.l4_offset), (L3::Ipv4, 0));
    }

    #[test]
    fn fragments_have_ports_in_the_first_only_and_hash_alike() {
        let first = Frame::udp4().fragment(0, true).bytes();
        let later = Frame::udp4().fragment(3, false).bytes();
        let [first, later] = [first, later].map(|frame| decide(&frame, frame.len(), &NO_CLAIM, 1500).unwrap());
        assert!(first.headers.is_fragment && later.headers.is_fragment);
        assert_eq!((first.headers.l4_offset, later.headers.l4_offset), (34, 0));
        assert_eq!(first.flow_hash, later.flow_hash);
    }

    #[test]
    fn a_chain_of_headers_beyond_the_head_is_forwarded_unparsed_but_refused_with_a_claim() {
        // Destination options of 2 KiB before UDP.
        let mut frame = Frame::udp6().bytes();
        let payload = 2048 + (frame.len() - 54) as u16;
        frame[18..20].copy_from_slice(&payload.to_be_bytes());
        frame[20] = ipv6::DESTINATION_OPTIONS;
        let options: Vec<u8> = [udp::PROTOCOL, 255].into_iter().chain(std::iter::repeat_n(0, 2046)).collect();
        frame.splice(54..54, options);
        let head = &frame[..HEAD_MAX];
        let headers = decide(head, frame.len(), &NO_CLAIM, 9000).unwrap().headers;
        assert_eq!((headers.l3, headers.l4_offset), (L3::Ipv6, 0));
        let claim = OffloadClaim { flags: 1, csum_start: 54 + 2048, csum_offset: 6, ..NO_CLAIM };
        assert_eq!(decide(head, frame.len(), &claim, 9000), Err(Stop::Drop(DropReason::HeadersTooLong)));
        assert_eq!(decide(&frame[..128], frame.len(), &claim, 9000), Err(Stop::Pull));
    }

    #[test]
    fn padding_behind_ip_is_no_l4_header() {
        // A TCP packet whose total length leaves 10 bytes for TCP; the frame is padded to 60.
        let mut frame = Frame::tcp4().bytes();
        frame[16..18].copy_from_slice(&30u16.to_be_bytes());
        assert_eq!(parsed(&frame).unwrap().l4_offset, 0);
    }

    proptest! {
        #[test]
        fn the_short_cut_and_the_walk_agree(frame in any_frame(), len_delta in -3isize..3) {
            let frame_len = frame.len().saturating_add_signed(len_delta);
            let head = &frame[..frame.len().min(frame_len)];
            if let Some(found) = common(head, frame_len) {
                prop_assert_eq!(walk(head, frame_len), Ok(found));
            }
        }

        #[test]
        fn the_common_answer_is_the_careful_one(frame in any_frame(), claim in crate::tests::frames::any_claim()) {
            let head = &frame[..frame.len().min(HEAD_MAX)];
            if let Some(parsed) = decide_common(head, frame.len(), &claim) {
                prop_assert_eq!(decide_carefully(head, frame.len(), &claim, 1500), Ok(parsed));
            }
        }

        #[test]
        fn where_the_head_ends_makes_no_difference(frame in any_frame(), claim in crate::tests::frames::any_claim(),
                                                   cut in 0..200usize) {
            let whole = decide(&frame[..frame.len().min(HEAD_MAX)], frame.len(), &claim, 1500);
            prop_assert_ne!(whole, Err(Stop::Pull));
            let cut = decide(&frame[..cut.min(frame.len())], frame.len(), &claim, 1500);
            prop_assert!(cut == Err(Stop::Pull) || cut == whole, "{:?} but {:?}", cut, whole);
        }

        #[test]
        fn an_l4_header_found_lies_in_the_head_and_the_frame(frame in any_frame()) {
            let head = &frame[..frame.len().min(HEAD_MAX)];
            if let Ok(headers) = parsed(head) && headers.l4_offset > 0 {
                let fixed = match headers.l4_protocol { 6 => 20, 17 => 8, 1 | 58 => 4, _ => 0 };
                prop_assert!(usize::from(headers.l4_offset) + fixed <= head.len());
                prop_assert!(headers.l3_offset + 20 <= headers.l4_offset);
            }
        }
    }
}
