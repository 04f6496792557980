//! Before the stages, for what comes in by an uplink: finds out which far end sent a frame and on which network, and takes the
//! outer headers off.
//!
//! What makes it hard: these frames are a stranger's from the first byte, and their head may end anywhere. A frame is opened
//! only if it came to our own MAC and address from an end that we know, with a number that we have; all else is refused and
//! counted, or left to the host whose interface it is. One outer header is looked into and no more: what a tenant puts into a
//! tunnel or behind a tag is payload, whatever it looks like.
//!
//! Frames of one network from one far end come in runs; each run goes through the stages as if it were a burst from a port of
//! that network. What the guard and the bridge know of senders thus holds for far ends too.
//!
//! Nearly all frames are of one sender, one network and the plainest shape: those are told by [`quick`] from the bytes at fixed places
//! and from what was found out for the frame before, and the rest is read step by step.
//!
//! Config read: uplinks, VLANs, tunnels, peers. Drop reasons, at the uplink: `truncated`, `headers_too_long`, `not_ours`,
//! `tunnel_unknown_source`, `tunnel_unknown_network`, `tunnel_malformed`, `tunnel_fragment`, `tunnel_congested`, `bad_offload`.

mod decap;
pub(crate) mod quick;

use crate::neighbour::{self, Reply};
use crate::path_mtu;
use crate::runs::{self, Owner};
use crate::tables::Tables;
use crate::underlay::{TunnelEntry, UnderlayTables, UplinkEntry};
use crate::wire::geneve::{self, Geneve};
use crate::wire::gre::{self, Gre};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::udp::{self, Udp};
use crate::wire::vxlan::{self, Vxlan};
use crate::wire::{WireError, ethernet, word};
use quick::{Quick, Seen, Shape};
use std::net::IpAddr;
use switch::batch::Batch;
use switch::ids::{NetworkIndex, PortIndex};
use switch::ledger::DropReason;
use switch::packet::{HEAD_MAX, Packet};
use switch::underlay::TunnelKind;
use switch::worker::{Context, Egress};

/// What a frame on an uplink is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// A frame of a VLAN that a network of ours is.
    Vlan {
        /// The far end.
        far_end: PortIndex,
        /// Bytes of tags to be popped.
        tags_len: usize,
    },
    /// A frame in a tunnel.
    Tunnel(Opened),
    /// A question or an answer about neighbours, for us. `header_len` bytes stand before it.
    Neighbour {
        /// Bytes of Ethernet header and tag.
        header_len: usize,
    },
    /// ICMP to an address that is ours alone, behind as many bytes.
    Icmp(usize),
    /// Nothing of ours.
    Other,
}

/// An outer header, read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    /// How the frame is wrapped.
    pub kind: TunnelKind,
    /// Who wrapped it.
    pub source: IpAddr,
    /// VNI or key.
    pub number: u32,
    /// Bytes before the inner frame.
    pub header_len: usize,
    /// Where the inner frame ends.
    pub end: usize,
    /// The outer congestion mark (RFC 3168 section 5).
    pub ecn: u8,
    /// Where a GRE header with a checksum begins; 0: there is none to verify.
    pub checksum_from: usize,
}

/// Why a frame is not opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// The head ends inside the headers.
    Pull,
    /// It is refused.
    Drop(DropReason),
}

/// A frame's bytes as far as we have them.
#[derive(Clone, Copy)]
struct Window<'a> {
    head: &'a [u8],
    len: usize,
}

impl Window<'_> {
    /// What to do where a header is short: fetch more, if there is more.
    fn short(&self) -> Stop {
        if self.head.len() < self.len && self.head.len() < HEAD_MAX {
            Stop::Pull
        } else {
            Stop::Drop(DropReason::Truncated)
        }
    }

    /// The VLAN id of a tag whose protocol id would stand at `at`; `None`: it is no such tag. If it is one, what follows it is
    /// there too.
    #[inline]
    fn tag(&self, at: usize, kind: u16) -> Result<Option<u16>, Stop> {
        if word(self.head, at) != kind {
            return Ok(None);
        }
        if self.head.len() < at + ethernet::TAG_LEN + 2 {
            return Err(self.short());
        }
        Ok(Some(word(self.head, at + 2) & 0x0fff))
    }

    fn wire(&self, error: WireError) -> Stop {
        match error {
            WireError::Short => self.short(),
            WireError::Malformed => Stop::Drop(DropReason::TunnelMalformed),
        }
    }
}

/// Finds out what a frame of `len` bytes is of which `head` are the first.
///
/// # Errors
/// [`Stop`]: more bytes are wanted (never when the head holds all of the frame, or [`HEAD_MAX`] bytes), or it is refused.
pub fn decide(uplink: &UplinkEntry, tunnel: Option<&TunnelEntry>, head: &[u8], len: usize) -> Result<Found, Stop> {
    let window = Window { head, len };
    if head.len() < ethernet::LEN {
        return Err(window.short());
    }
    let mut at = ETHERTYPE;
    if uplink.service != 0 && window.tag(at, ethernet::TYPE_SERVICE_VLAN)? == Some(uplink.service) {
        at += ethernet::TAG_LEN;
        return found_vlan(uplink, window, at);
    }
    let vlan = window.tag(at, ethernet::TYPE_VLAN)?;
    if vlan.unwrap_or(NO_VLAN) == uplink.underlay {
        let tag_len = vlan.map_or(0, |_| ethernet::TAG_LEN);
        let found = open_underlay(uplink, tunnel, window, at + tag_len + 2)?;
        if found != Found::Other {
            return Ok(found);
        }
    }
    if uplink.service != 0 { Ok(Found::Other) } else { found_vlan(uplink, window, at) }
}

/// Where the EtherType is, or a tag's protocol id.
const ETHERTYPE: usize = 12;
/// Id 0 is no VLAN but a priority (IEEE 802.1Q-2018 table 9-2): the frame is untagged.
const NO_VLAN: u16 = 0;

/// The far end of a frame with, or without, a tag at `at`.
fn found_vlan(uplink: &UplinkEntry, window: Window<'_>, at: usize) -> Result<Found, Stop> {
    let vlan = window.tag(at, ethernet::TYPE_VLAN)?;
    let tags_len = at - ETHERTYPE + vlan.map_or(0, |_| ethernet::TAG_LEN);
    let far_end = match vlan {
        Some(vlan) if vlan != NO_VLAN => uplink.vlan(vlan),
        // One more tag there is no network's: who put it there wants to be taken for somebody else.
        _ => uplink.native.filter(|_| !ethernet::is_tag(word(window.head, ETHERTYPE + tags_len))),
    };
    Ok(far_end.map_or(Found::Other, |far_end| Found::Vlan { far_end, tags_len }))
}

/// What concerns tunnels or neighbours; `header_len` bytes stand before IP or ARP.
fn open_underlay(
    uplink: &UplinkEntry,
    tunnel: Option<&TunnelEntry>,
    window: Window<'_>,
    header_len: usize,
) -> Result<Found, Stop> {
    let ethertype = word(window.head, header_len - 2);
    if ethertype == ethernet::TYPE_ARP {
        return Ok(if uplink.address.is_some() { Found::Neighbour { header_len } } else { Found::Other });
    }
    let Some(tunnel) = tunnel else { return Ok(Found::Other) };
    let is_to_us = window.head[..6] == uplink.mac.0;
    match ethertype {
        ethernet::TYPE_IPV4 if is_to_us => open_ipv4(uplink, tunnel, window, header_len),
        ethernet::TYPE_IPV6 if is_to_us || window.head[0] == 0x33 => {
            open_ipv6(uplink, tunnel, window, header_len, is_to_us)
        }
        _ => Ok(Found::Other),
    }
}

fn open_ipv4(uplink: &UplinkEntry, tunnel: &TunnelEntry, window: Window<'_>, at: usize) -> Result<Found, Stop> {
    let IpAddr::V4(local) = tunnel.local else { return Ok(Found::Other) };
    let bytes = window.head.get(at..).unwrap_or_default();
    let ip = match Ipv4::new(bytes) {
        Ok(ip) => ip,
        Err(WireError::Short) => return Err(window.short()),
        Err(WireError::Malformed) => return Ok(Found::Other),
    };
    if ip.destination() != local || !matches!(ip.protocol(), udp::PROTOCOL | gre::PROTOCOL) {
        let is_heard = path_mtu::is_heard(uplink, tunnel.local, ip.protocol()) && !ip.is_fragment();
        return Ok(if is_heard && ip.destination() == local { Found::Icmp(at) } else { Found::Other });
    }
    let end = at + ip.total_len();
    // A host "MUST verify the IP header checksum on every received datagram" (RFC 1122 section 3.2.1.2).
    if end > window.len || !ip.is_checksum_valid() {
        return Err(Stop::Drop(DropReason::TunnelMalformed));
    }
    if ip.is_fragment() {
        // Only the first fragment tells whether it is a tunnel's. "The destination VTEP MAY silently discard such VXLAN
        // fragments" (RFC 7348 section 4.3); as for the host's own datagrams, they are its own to reassemble.
        let is_tunnel = ip.protocol() == gre::PROTOCOL || is_tunnel_port(tunnel, &bytes[ip.header_len()..]);
        let is_ours = ip.fragment_offset() == 0 && is_tunnel;
        return if is_ours { Err(Stop::Drop(DropReason::TunnelFragment)) } else { Ok(Found::Other) };
    }
    let source = IpAddr::V4(ip.source());
    open(tunnel, window, at + ip.header_len(), end, ip.protocol(), source, bytes[1] & 3)
}

fn open_ipv6(
    uplink: &UplinkEntry,
    tunnel: &TunnelEntry,
    window: Window<'_>,
    at: usize,
    is_to_us: bool,
) -> Result<Found, Stop> {
    let bytes = window.head.get(at..).unwrap_or_default();
    let ip = match Ipv6::new(bytes) {
        Ok(ip) => ip,
        Err(WireError::Short) => return Err(window.short()),
        Err(WireError::Malformed) => return Ok(Found::Other),
    };
    if bytes.len() == ipv6::LEN && window.head.len() < window.len {
        return Err(window.short());
    }
    if neighbour::is_discovery(bytes) && uplink.address.is_some_and(|address| address.is_ipv6()) {
        return Ok(Found::Neighbour { header_len: at });
    }
    if !is_to_us || IpAddr::V6(ip.destination()) != tunnel.local {
        return Ok(Found::Other);
    }
    let source = IpAddr::V6(ip.source());
    let protocol = match ip.next_header() {
        protocol @ (udp::PROTOCOL | gre::PROTOCOL) => protocol,
        icmp if path_mtu::is_heard(uplink, tunnel.local, icmp) => return Ok(Found::Icmp(at)),
        // No tunnel of ours sends extension headers; a fragment is nothing that a tunnel's end has to take (RFC 7348 section
        // 4.3). But they say who sent them, and what a peer sends so is counted.
        ipv6::FRAGMENT if tunnel.peer(source).is_some() => return Err(Stop::Drop(DropReason::TunnelFragment)),
        _ => return Ok(Found::Other),
    };
    let end = at + ipv6::LEN + ip.payload_len();
    if end > window.len {
        return Err(Stop::Drop(DropReason::TunnelMalformed));
    }
    let ecn = bytes[1] >> 4 & 3;
    open(tunnel, window, at + ipv6::LEN, end, protocol, source, ecn)
}

/// Whether UDP's destination is a port of our tunnels.
fn is_tunnel_port(tunnel: &TunnelEntry, bytes: &[u8]) -> bool {
    bytes.len() >= udp::LEN && [tunnel.port_vxlan, geneve::PORT].contains(&word(bytes, 2))
}

/// Reads what stands behind the IP header, which ends at `at`.
fn open(
    tunnel: &TunnelEntry,
    window: Window<'_>,
    at: usize,
    mut end: usize,
    protocol: u8,
    source: IpAddr,
    ecn: u8,
) -> Result<Found, Stop> {
    let from = |at: usize, end: usize| window.head.get(at..window.head.len().min(end)).unwrap_or_default();
    // A header that the packet's own length cuts off is no matter of the head's.
    let short =
        |error, at, len, end| if at + len > end { Stop::Drop(DropReason::Truncated) } else { window.wire(error) };
    let mut checksum_from = 0;
    let (kind, number, header_len) = if protocol == udp::PROTOCOL {
        let udp = Udp::new(from(at, end)).map_err(|error| short(error, at, udp::LEN, end))?;
        let kind = match udp.destination() {
            port if port == tunnel.port_vxlan => TunnelKind::Vxlan,
            geneve::PORT => TunnelKind::Geneve,
            _ => return Ok(Found::Other),
        };
        if at + usize::from(udp.length()) > end {
            return Err(Stop::Drop(DropReason::TunnelMalformed));
        }
        // The checksum of UDP, if there is one, is not verified: the end "MAY choose to perform" that, and must accept zero
        // (RFC 7348 section 5; over IPv6 RFC 6935 section 5). The inner frame has checksums of its own.
        end = at + usize::from(udp.length());
        let at = at + udp::LEN;
        match kind {
            TunnelKind::Vxlan => {
                let header = Vxlan::new(from(at, end)).map_err(|error| short(error, at, vxlan::LEN, end))?;
                (kind, header.vni(), at + vxlan::LEN)
            }
            _ => {
                let header = Geneve::new(from(at, end)).map_err(|error| short(error, at, geneve::LEN, end))?;
                (kind, header.vni(), at + header.header_len())
            }
        }
    } else {
        let header = Gre::new(from(at, end)).map_err(|error| short(error, at, gre::LEN, end))?;
        checksum_from = if header.has_checksum() { at } else { 0 };
        let number = if tunnel.is_nvgre { header.key() >> 8 } else { header.key() };
        (TunnelKind::Gre, number, at + header.header_len())
    };
    if header_len + ethernet::LEN > end {
        return Err(Stop::Drop(DropReason::Truncated));
    }
    Ok(Found::Tunnel(Opened { kind, source, number, header_len, end, ecn, checksum_from }))
}

/// What became of a frame.
pub(crate) enum Arrival {
    /// It is open: a frame of this network from this far end.
    From(PortIndex, NetworkIndex),
    /// It was made into its own answer.
    Answered,
    /// It is the host's, or was meant for us and is read.
    Taken,
    /// It is refused.
    Refused(DropReason),
}

/// Opens a frame that is plain ([`quick`]) and ours; any other one stays as it is.
#[inline(always)]
fn open_plain(tables: &Tables, uplink: &UplinkEntry, quick: &mut Quick<'_>, packet: &mut Packet) -> Owner {
    let Some((shape, seen)) = quick.look(packet) else { return Owner::NOBODY };
    let owner = quick.owner(seen, || owner(tables, uplink, shape, seen));
    // What is left to others must be as it came: opened twice, it would be a tenant's word that is believed.
    if owner == Owner::NOBODY || !packet.claim.is_none() || seen.ecn == decap::CE {
        return Owner::NOBODY;
    }
    decap::take_front(packet, shape.header_len(), seen.ecn).expect("the head holds more, and nothing is left to do");
    owner
}

/// Whose a plain frame is; nobody's if it is refused.
#[inline(never)]
fn owner(tables: &Tables, uplink: &UplinkEntry, shape: &Shape, seen: Seen) -> Owner {
    let (source, number) = shape.sender(seen);
    let known = whose(tables, uplink, source.into(), shape.kind(), number);
    known.map_or(Owner::NOBODY, |(far_end, network)| Owner::new(far_end, network))
}

/// The far end and the network of what a source of this address wrapped and this uplink brought.
fn whose(
    tables: &Tables,
    uplink: &UplinkEntry,
    source: IpAddr,
    kind: TunnelKind,
    number: u32,
) -> Result<(PortIndex, NetworkIndex), DropReason> {
    let tunnel = tables.underlay.tunnel.as_ref().expect("nothing is opened without tunnels");
    // Who has his address where it is not reached by this uplink made it up.
    let sender = tunnel.peer(source).filter(|sender| sender.uplink == Some(uplink.index));
    let sender = sender.ok_or(DropReason::TunnelUnknownSource)?;
    // A host that has no port of it does not know that the number is another network's by now, or made it up.
    let network = tunnel.network(kind, number).filter(|network| tables.is_far_member(*network, sender.index));
    let network = network.ok_or(DropReason::TunnelUnknownNetwork)?;
    Ok((sender.index, network))
}

/// Finds out what a frame is, if need be from more of it than lies in the head.
#[inline(always)]
fn look(tables: &Tables, uplink: &UplinkEntry, batch: &mut Batch<'_>, index: usize) -> Result<Found, DropReason> {
    let tunnel = tables.underlay.tunnel.as_ref();
    let mut found = decide(uplink, tunnel, batch.packets()[index].head(), batch.packets()[index].len());
    if found == Err(Stop::Pull) {
        batch.pull(index, HEAD_MAX)?;
        let packet = &batch.packets()[index];
        found = decide(uplink, tunnel, packet.head(), packet.len());
    }
    found.map_err(|stop| match stop {
        Stop::Pull => DropReason::HeadersTooLong,
        Stop::Drop(reason) => reason,
    })
}

/// Opens one frame step by step.
#[inline(never)]
fn receive(tables: &Tables, uplink: &UplinkEntry, batch: &mut Batch<'_>, index: usize) -> Arrival {
    match look(tables, uplink, batch, index) {
        Ok(found) => take(tables, Some(&tables.underlay), uplink, batch, index, found),
        Err(reason) => Arrival::Refused(reason),
    }
}

/// Does what is to be done with a frame that was found to be this; what it says of neighbours is noted in `known`.
#[inline(always)]
fn take(
    tables: &Tables,
    known: Option<&UnderlayTables>,
    uplink: &UplinkEntry,
    batch: &mut Batch<'_>,
    index: usize,
    found: Found,
) -> Arrival {
    let opened = match found {
        Found::Vlan { far_end, tags_len } => return of_vlan(tables, far_end, batch, index, tags_len),
        Found::Tunnel(opened) => opened,
        Found::Neighbour { header_len } | Found::Icmp(header_len) => {
            if let Err(reason) = batch.pull(index, HEAD_MAX) {
                return Arrival::Refused(reason);
            }
            return match neighbour::answer(known, uplink, batch, index, header_len) {
                Reply::Answered => Arrival::Answered,
                Reply::Heard => Arrival::Taken,
                Reply::Nothing if path_mtu::hear(tables, known, uplink, batch, index, header_len) => Arrival::Taken,
                Reply::Nothing => other(uplink),
            };
        }
        Found::Other => return other(uplink),
    };
    let opens = whose(tables, uplink, opened.source, opened.kind, opened.number);
    match opens.and_then(|known| decap::take_off(batch, index, &opened).map(|()| known)) {
        Ok((far_end, network)) => Arrival::From(far_end, network),
        Err(reason) => Arrival::Refused(reason),
    }
}

/// What is not for us on an uplink.
fn other(uplink: &UplinkEntry) -> Arrival {
    if uplink.is_shared { Arrival::Taken } else { Arrival::Refused(DropReason::NotOurs) }
}

/// A frame of the network that `port` is on, once its tags are out.
pub(crate) fn of_vlan(
    tables: &Tables,
    port: PortIndex,
    batch: &mut Batch<'_>,
    index: usize,
    tags_len: usize,
) -> Arrival {
    match (tables.port(port).network, pop_tags(&mut batch.packets_mut()[index], tags_len)) {
        (Some(network), Ok(())) => Arrival::From(port, network),
        (None, _) => Arrival::Refused(DropReason::NoNetwork),
        (_, Err(reason)) => Arrival::Refused(reason),
    }
}

/// Takes the outermost tags out; all behind them is the network's own, further tags too.
pub(crate) fn pop_tags(packet: &mut Packet, len: usize) -> Result<(), DropReason> {
    packet.head_mut().copy_within(..ETHERTYPE, len);
    packet.strip_front(len)
}

/// Takes a batch that came in by an uplink through everything.
#[inline(never)]
pub fn run(tables: &Tables, context: &Context<'_>, ingress: PortIndex, batch: &mut Batch<'_>, egress: &mut Egress<'_>) {
    let Some(uplink) = tables.underlay.uplink(ingress) else {
        (0..batch.len()).for_each(|_| egress.drop_ingress(ingress, DropReason::NoNetwork));
        return;
    };
    let mut quick = Quick::new(&uplink.shapes);
    let open = |packet: &mut Packet| open_plain(tables, uplink, &mut quick, packet);
    runs::run(tables, context, ingress, batch, egress, open, |batch, index| receive(tables, uplink, batch, index));
}

/// Opens the one packet of the batch and tells it in words; also whose frame it is, if it goes on.
pub fn trace(
    tables: &Tables,
    ingress: PortIndex,
    batch: &mut Batch<'_>,
) -> (String, Option<(PortIndex, NetworkIndex)>) {
    let Some(uplink) = tables.underlay.uplink(ingress) else {
        return (format!("uplink: drop {}", DropReason::NoNetwork.name()), None);
    };
    let found = look(tables, uplink, batch, 0);
    let what = match found {
        Ok(Found::Vlan { tags_len: 0, .. }) => "untagged".to_owned(),
        Ok(Found::Vlan { tags_len, .. }) => format!("{tags_len} bytes of tags"),
        Ok(Found::Tunnel(it)) => {
            format!("{} {} from {}, {} bytes of outer headers", it.kind.name(), it.number, it.source, it.header_len)
        }
        Ok(Found::Neighbour { .. }) => "about neighbours".to_owned(),
        Ok(Found::Icmp(_)) => "ICMP to us".to_owned(),
        Ok(Found::Other) | Err(_) => "nothing of ours".to_owned(),
    };
    // Nothing is noted of what it says: where a peer's next hop is all workers read.
    match found.map_or_else(Arrival::Refused, |found| take(tables, None, uplink, batch, 0, found)) {
        Arrival::From(far_end, network) => {
            let text = format!("uplink: {what}: {} of {}", tables.network_label(network), tables.label(far_end));
            (text, Some((far_end, network)))
        }
        Arrival::Answered => (format!("uplink: {what}, answered"), None),
        Arrival::Taken => (format!("uplink: {what}, not forwarded"), None),
        Arrival::Refused(reason) => {
            (format!("uplink: {what}, drop {}, counted at {}", reason.name(), tables.label(ingress)), None)
        }
    }
}

#[cfg(test)]
mod tests;
