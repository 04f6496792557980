//! ARP and ND suppression: a tenant's question for an address of which the control plane says who has it is answered at
//! the port that asks, and floods no port and no tunnel.
//!
//! What makes it hard is to know. Nothing is learnt here: what ports say of themselves is believed by whoever hears it, as
//! ever, and by nobody else, so that no guest can put words into the switch's mouth. Only what [`switch::config::NeighbourConfig`]
//! says is answered. Who asks before he takes an address (RFC 5227 section 2.1.1, RFC 4862 section 5.4), tells of himself
//! (RFC 5227 section 2.3), or asks for what is his own is let through, so that he is heard by whoever has it.
//!
//! The table is compiled with the others and immutable. It is looked at only where a frame to a group would be flooded.

use super::{
    ADVERTISEMENT, Frame, MESSAGE_LEN, OVERRIDE, SOLICITATION, SOLICITED, SOURCE_LINK_LAYER, TARGET, TARGET_LINK_LAYER,
    address, arp_frame, discovery, is_discovery, option, replace, sum,
};
use crate::wire::arp::{self, Arp, ArpRepr};
use crate::wire::{ethernet, ipv6, word};
use std::net::IpAddr;
use switch::batch::Batch;
use switch::config::NeighbourConfig;
use switch::ids::{MacAddr, NetworkIndex};
use switch::offload::Offload;
use switch::packet::Packet;

/// Who has which address.
#[derive(Default)]
pub struct Neighbours {
    /// Sorted.
    known: Vec<((NetworkIndex, IpAddr), MacAddr)>,
}

impl Neighbours {
    /// Compiles those of a checked config.
    pub fn compile(all: &[NeighbourConfig]) -> Neighbours {
        let mut known: Vec<_> = all.iter().map(|it| ((it.network, it.address), it.mac)).collect();
        known.sort_unstable();
        Neighbours { known }
    }

    fn of(&self, network: NetworkIndex, address: IpAddr) -> Option<MacAddr> {
        let at = self.known.binary_search_by_key(&(network, address), |(key, _)| *key).ok()?;
        Some(self.known[at].1)
    }
}

/// A question that can be answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Question {
    /// The address asked for.
    pub target: IpAddr,
    /// Who has it.
    pub owner: MacAddr,
    /// Who asks, by his own word.
    asker: (MacAddr, IpAddr),
}

/// Decides whether a frame to a group, from a port of this host, is a question to be answered here.
pub fn decide(neighbours: &Neighbours, packet: &Packet) -> Option<Question> {
    if neighbours.known.is_empty() {
        return None;
    }
    let head = packet.head();
    // Of a longer frame, or one in other pieces than any guest's, nobody has to make an answer.
    let is_all_here = packet.tail_len() == 0 || head.len() >= super::FRAME_MAX;
    let ethertype = head.get(12..ethernet::LEN).map(|_| word(head, 12));
    let message = head.get(ethernet::LEN..).unwrap_or_default();
    let (target, asker) = match ethertype {
        Some(ethernet::TYPE_ARP) if is_all_here => asked_by_arp(message)?,
        Some(ethernet::TYPE_IPV6) if is_all_here => asked_by_discovery(message)?,
        _ => return None,
    };
    let owner = neighbours.of(packet.network, target)?;
    (owner != asker.0).then_some(Question { target, owner, asker })
}

/// The address asked for, and who asks.
fn asked_by_arp(message: &[u8]) -> Option<(IpAddr, (MacAddr, IpAddr))> {
    let arp = Arp::new(message).ok()?;
    let (asker, from, target) = (arp.sender_mac(), arp.sender_ip(), arp.target_ip());
    let is_question = arp.operation() == arp::REQUEST && !from.is_unspecified() && from != target;
    (is_question && is_station(asker)).then_some((target.into(), (asker, from.into())))
}

fn asked_by_discovery(message: &[u8]) -> Option<(IpAddr, (MacAddr, IpAddr))> {
    if !is_discovery(message) || message[ipv6::LEN] != SOLICITATION {
        return None;
    }
    let body = message.get(ipv6::LEN..ipv6::LEN + usize::from(word(message, 4)))?;
    // RFC 4861 section 7.1.1. A checksum that its sender left to others is no question of a host's kernel.
    if body.len() < MESSAGE_LEN || body[1] != 0 || sum(&message[8..40], body) != 0 {
        return None;
    }
    let (from, target) = (address(message, 8), address(body, TARGET));
    let asker = option(&body[MESSAGE_LEN..], SOURCE_LINK_LAYER)?;
    let is_question = !from.is_unspecified() && !from.is_multicast() && from != target && !target.is_multicast();
    (is_question && is_station(asker)).then_some((target.into(), (asker, from.into())))
}

fn is_station(mac: MacAddr) -> bool {
    !mac.is_group() && !mac.is_zero()
}

impl Question {
    /// Makes the packet that asked into the answer; false if its head has no room for it.
    pub fn answer(&self, batch: &mut Batch<'_>, index: usize) -> bool {
        let is_replaced = replace(batch, index, self.frame().bytes());
        // What was left to do for the question is not for its answer.
        batch.packets_mut()[index].offload = Offload::default();
        is_replaced
    }

    fn frame(&self) -> Frame {
        let (mac, from) = self.asker;
        match (self.target, from) {
            (IpAddr::V4(target_ip), IpAddr::V4(from)) => {
                let reply = ArpRepr {
                    operation: arp::REPLY,
                    sender_mac: self.owner,
                    sender_ip: target_ip,
                    target_mac: mac,
                    target_ip: from,
                };
                arp_frame(mac, self.owner, &reply)
            }
            (IpAddr::V6(target), IpAddr::V6(from)) => {
                // Not "router": whoever is one tells so himself (RFC 4861 section 4.4).
                let flags = SOLICITED | OVERRIDE;
                discovery(ADVERTISEMENT, flags, target, TARGET_LINK_LAYER, (self.owner, target), (mac, from))
            }
            _ => unreachable!("both are of the protocol that asked"),
        }
    }
}

#[cfg(test)]
mod tests;
