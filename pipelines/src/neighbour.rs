//! Neighbours on an uplink that is ours alone: answers who asks for our address, hears where others are, and asks for them.
//!
//! ARP (RFC 826) for IPv4, neighbour discovery (RFC 4861) for IPv6. A question becomes its own answer in place, so that a
//! stage needs no frame of its own. On an uplink that the host shares its kernel does all this.
//!
//! Whoever is on the underlay can claim to be any neighbour, as with these protocols everywhere: the underlay is the
//! operator's, and tenants have no way onto it. What is believed is bounded: the addresses of peers whose next hop no operator has
//! told, and nothing else.

pub mod suppression;

use crate::underlay::{Tags, UnderlayTables, UplinkEntry};
use crate::wire::arp::{self, Arp, ArpRepr};
use crate::wire::ipv6;
use crate::wire::{ethernet, icmp, word};
use std::net::{IpAddr, Ipv6Addr};
use switch::batch::Batch;
use switch::checksum::Sum;
use switch::ids::MacAddr;
use switch::underlay::VlanId;

/// Neighbour solicitation (RFC 4861 section 4.3).
const SOLICITATION: u8 = 135;
/// Neighbour advertisement (RFC 4861 section 4.4).
const ADVERTISEMENT: u8 = 136;
/// Bytes of either up to its options.
const MESSAGE_LEN: usize = 24;
/// Where the target stands in either.
const TARGET: usize = 8;
/// Bytes of a link-layer address option (RFC 4861 section 4.6.1), its type and length in units of 8 bytes before the MAC.
const OPTION_LEN: usize = 8;
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;
/// Options looked at: a message has one or two.
const OPTIONS_MAX: usize = 8;
/// No router has passed it on (RFC 4861 section 7.1).
const HOP_LIMIT: u8 = 255;
/// "Solicited" and "override" (RFC 4861 section 4.4).
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// All nodes (RFC 4291 section 2.7.1), and the MAC of IPv6 multicast (RFC 2464 section 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// What became of a message about neighbours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    /// It was made into its answer.
    Answered,
    /// It was for us and is read.
    Heard,
    /// It is nobody's of ours.
    Nothing,
}

/// Whether IPv6 bytes are a message of neighbour discovery, by what all of them begin with.
pub fn is_discovery(bytes: &[u8]) -> bool {
    bytes.len() > ipv6::LEN
        && bytes[6] == icmp::PROTOCOL_V6
        && bytes[7] == HOP_LIMIT
        && matches!(bytes[ipv6::LEN], SOLICITATION | ADVERTISEMENT)
}

/// Answers or reads a message; `header_len` bytes stand before ARP or IPv6. Only what lies in the head is looked at: such
/// frames are short. What it says of neighbours is noted in `known`; `None`: it is only traced.
pub fn answer(
    known: Option<&UnderlayTables>,
    uplink: &UplinkEntry,
    batch: &mut Batch<'_>,
    index: usize,
    header_len: usize,
) -> Reply {
    let head = batch.packets()[index].head();
    let Some(message) = head.get(header_len..) else { return Reply::Nothing };
    let (reply, answer) = if let Ok(arp) = Arp::new(message) {
        hear_arp(known, uplink, &arp)
    } else if is_discovery(message) {
        let asker = ethernet::addresses(head).map(|(_, source)| source).unwrap_or_default();
        hear_discovery(known, uplink, asker, message)
    } else {
        (Reply::Nothing, None)
    };
    match answer {
        Some(frame) if reply == Reply::Answered => {
            if replace(batch, index, frame.tagged(uplink.underlay).bytes()) {
                reply
            } else {
                Reply::Heard
            }
        }
        _ => reply,
    }
}

fn hear_arp(known: Option<&UnderlayTables>, uplink: &UplinkEntry, arp: &Arp<'_>) -> (Reply, Option<Frame>) {
    let Some(IpAddr::V4(own)) = uplink.address else { return (Reply::Nothing, None) };
    if let Some(known) = known.filter(|_| !arp.sender_ip().is_unspecified()) {
        known.heard_neighbour(uplink.index, arp.sender_ip().into(), arp.sender_mac());
    }
    if arp.target_ip() != own {
        return (Reply::Nothing, None);
    }
    if arp.operation() != arp::REQUEST {
        return (Reply::Heard, None);
    }
    let reply = ArpRepr {
        operation: arp::REPLY,
        sender_mac: uplink.mac,
        sender_ip: own,
        target_mac: arp.sender_mac(),
        target_ip: arp.sender_ip(),
    };
    (Reply::Answered, Some(arp_frame(arp.sender_mac(), uplink.mac, &reply)))
}

fn hear_discovery(
    known: Option<&UnderlayTables>,
    uplink: &UplinkEntry,
    asker: MacAddr,
    bytes: &[u8],
) -> (Reply, Option<Frame>) {
    let nothing = (Reply::Nothing, None);
    let Some(IpAddr::V6(own)) = uplink.address else { return nothing };
    let payload_len = usize::from(word(bytes, 4));
    let Some(message) = bytes.get(ipv6::LEN..ipv6::LEN + payload_len).filter(|it| it.len() >= MESSAGE_LEN) else {
        return nothing;
    };
    // "ICMP Checksum is valid", "ICMP Code is 0" (RFC 4861 sections 7.1.1 and 7.1.2).
    if message[1] != 0 || sum(&bytes[8..40], message) != 0 {
        return nothing;
    }
    let (source, target) = (address(bytes, 8), address(message, TARGET));
    let wanted = if message[0] == SOLICITATION { SOURCE_LINK_LAYER } else { TARGET_LINK_LAYER };
    let told = option(&message[MESSAGE_LEN..], wanted);
    if message[0] == ADVERTISEMENT {
        if let (Some(known), Some(mac)) = (known, told) {
            known.heard_neighbour(uplink.index, target.into(), mac);
        }
        return (Reply::Heard, None);
    }
    if let (Some(known), Some(mac)) = (known, told.filter(|_| !source.is_unspecified())) {
        known.heard_neighbour(uplink.index, source.into(), mac);
    }
    if target != own {
        return nothing;
    }
    // Who has no address yet asks whether this one is taken, and hears it with all others (RFC 4861 section 7.2.4).
    let (to, flags) = if source.is_unspecified() { (ALL_NODES, OVERRIDE) } else { (source, SOLICITED | OVERRIDE) };
    let mac = match told {
        Some(mac) if !source.is_unspecified() => mac,
        _ if to == ALL_NODES => multicast_mac(ALL_NODES),
        // A question to our own address may come without (RFC 4861 section 4.3); the Ethernet header says who asks.
        _ => asker,
    };
    let frame = discovery(ADVERTISEMENT, flags, own, TARGET_LINK_LAYER, (uplink.mac, own), (mac, to));
    (Reply::Answered, Some(frame))
}

/// The link-layer address that an option of this type tells.
fn option(mut options: &[u8], wanted: u8) -> Option<MacAddr> {
    for _ in 0..OPTIONS_MAX {
        let len = usize::from(*options.get(1)?) * 8;
        // "Nodes MUST silently discard an ND packet that contains an option with length zero" (RFC 4861 section 4.6).
        let option = options.get(..len).filter(|_| len > 0)?;
        if option[0] == wanted && len == OPTION_LEN {
            return Some(MacAddr(std::array::from_fn(|at| option[2 + at])));
        }
        options = &options[len..];
    }
    None
}

/// A question where `target` is, from `own` address, in a VLAN or without a tag; the frame to send. `None` if they are of
/// different families.
pub fn question(mac: MacAddr, vlan: Option<VlanId>, own: IpAddr, target: IpAddr) -> Option<Vec<u8>> {
    let frame = match (own, target) {
        (IpAddr::V4(own), IpAddr::V4(target)) => {
            let target_mac = MacAddr::default();
            let arp =
                ArpRepr { operation: arp::REQUEST, sender_mac: mac, sender_ip: own, target_mac, target_ip: target };
            arp_frame(MacAddr::BROADCAST, mac, &arp)
        }
        (IpAddr::V6(own), IpAddr::V6(target)) => {
            let [.., a, b, c] = target.octets();
            // The solicited-node multicast address (RFC 4291 section 2.7.1).
            let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
            discovery(SOLICITATION, 0, target, SOURCE_LINK_LAYER, (mac, own), (multicast_mac(group), group))
        }
        _ => return None,
    };
    let frame = frame.tagged(vlan.map_or(0, VlanId::get));
    Some(frame.bytes().to_vec())
}

/// The longest frame of ours: neighbour discovery. Ethernet pads shorter ones, as does whoever has a wire.
const DISCOVERY_LEN: usize = ethernet::LEN + ipv6::LEN + MESSAGE_LEN + OPTION_LEN;
/// The same with a tag.
const FRAME_MAX: usize = DISCOVERY_LEN + ethernet::TAG_LEN;

/// A frame of ours.
struct Frame {
    bytes: [u8; FRAME_MAX],
    len: usize,
}

impl Frame {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The same in a VLAN; 0: without a tag.
    fn tagged(mut self, vlan: u16) -> Frame {
        let tags = Tags::new(None, VlanId::new(vlan));
        let tag = tags.bytes();
        self.bytes.copy_within(12..self.len, 12 + tag.len());
        self.bytes[12..12 + tag.len()].copy_from_slice(tag);
        self.len += tag.len();
        self
    }
}

fn arp_frame(destination: MacAddr, source: MacAddr, arp: &ArpRepr) -> Frame {
    let mut bytes = [0; FRAME_MAX];
    front(&mut bytes, destination, source, ethernet::TYPE_ARP);
    bytes[ethernet::LEN..ethernet::LEN + arp::LEN].copy_from_slice(&arp.to_bytes());
    // The shortest frame of Ethernet, without its check sequence (IEEE 802.3 section 4.4.2).
    Frame { bytes, len: 60 }
}

fn discovery(
    kind: u8,
    flags: u8,
    target: Ipv6Addr,
    option: u8,
    (mac, from): (MacAddr, Ipv6Addr),
    (to_mac, to): (MacAddr, Ipv6Addr),
) -> Frame {
    let mut bytes = [0; FRAME_MAX];
    front(&mut bytes, to_mac, mac, ethernet::TYPE_IPV6);
    let (ip, message) = bytes[ethernet::LEN..DISCOVERY_LEN].split_at_mut(ipv6::LEN);
    ip[0] = 0x60;
    ip[4..6].copy_from_slice(&((MESSAGE_LEN + OPTION_LEN) as u16).to_be_bytes());
    (ip[6], ip[7]) = (icmp::PROTOCOL_V6, HOP_LIMIT);
    ip[8..24].copy_from_slice(&from.octets());
    ip[24..40].copy_from_slice(&to.octets());
    (message[0], message[4]) = (kind, flags);
    message[TARGET..MESSAGE_LEN].copy_from_slice(&target.octets());
    (message[MESSAGE_LEN], message[MESSAGE_LEN + 1]) = (option, 1);
    message[MESSAGE_LEN + 2..].copy_from_slice(&mac.0);
    let sum = sum(&ip[8..40], message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Frame { bytes, len: DISCOVERY_LEN }
}

fn front(bytes: &mut [u8; FRAME_MAX], destination: MacAddr, source: MacAddr, ethertype: u16) {
    bytes[..6].copy_from_slice(&destination.0);
    bytes[6..12].copy_from_slice(&source.0);
    bytes[12..14].copy_from_slice(&ethertype.to_be_bytes());
}

/// The checksum of ICMPv6 (RFC 4443 section 2.3) over both addresses and the message; 0 if the one in it is right.
pub(crate) fn sum(addresses: &[u8], message: &[u8]) -> u16 {
    let mut sum = Sum::default();
    sum.add(addresses);
    sum.add_word(message.len() as u16);
    sum.add_word(u16::from(icmp::PROTOCOL_V6));
    sum.add(message);
    sum.checksum()
}

fn address(bytes: &[u8], at: usize) -> Ipv6Addr {
    Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|index| bytes[at + index]))
}

fn multicast_mac(group: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = group.octets();
    MacAddr([0x33, 0x33, a, b, c, d])
}

/// Puts `frame` in the place of a packet; false if the packet's head cannot hold it.
pub(crate) fn replace(batch: &mut Batch<'_>, index: usize, frame: &[u8]) -> bool {
    let kept = batch.packets()[index].head().len().min(frame.len());
    batch.truncate(index, kept);
    let packet = &mut batch.packets_mut()[index];
    match packet.extend_front(frame.len() - kept) {
        Some(head) => {
            head.copy_from_slice(frame);
            true
        }
        None => false,
    }
}

#[cfg(test)]
pub(crate) mod tests;
