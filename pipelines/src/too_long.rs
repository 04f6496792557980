//! What is too long for the way to another host: its sender is told, as routers tell (RFC 1191, RFC 8201), and sends shorter packets.
//!
//! What makes it hard: a bridge has no address to speak from. So the answer is in the name of whom the packet was for, as that of Linux's
//! bridges over tunnels is: the sender knows that address, guards let it pass, and nobody else hears the answer, which goes out by
//! the port that the packet came in by. The packet itself is dropped and counted at the far end as ever; the answer is one frame
//! more, made of the packet where it lies. Also those are told that would have let routers cut their packets (no DF): nobody cuts them
//! here, and hosts do it themselves from then on.
//!
//! Not told: who sent an ICMP error, a later fragment, or from an address that is no single host's (RFC 1122 section 3.2.2, RFC 4443
//! section 2.4 (e)); who put a tag before his packet; and those for whom nobody knows the way, whose frames are flooded.
//!
//! Bounds: [`ANSWERS_AT_ONCE`] answers a port, and one each [`ANSWER_PAUSE_NS`] more, counted anew with each config.

use crate::bridge::Question;
use crate::neighbour::{replace, sum};
use crate::stage::Scope;
use crate::tables::PortKind;
use crate::wire::{ethernet, icmp, ipv4, ipv6, word};
use std::net::Ipv4Addr;
use switch::batch::Batch;
use switch::checksum::Sum;
use switch::ids::PortIndex;
use switch::ledger::DropReason;
use switch::offload::Offload;
use switch::packet::Packet;
use switch::sync::{AtomicU64, Ordering};
use switch::worker::Now;

/// Answers that a port gets one after the other. A host has some connections to some peers, and each has to be told once.
const ANSWERS_AT_ONCE: u64 = 32;
/// Pause between two answers of a port beyond these (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)): a hundred a second.
const ANSWER_PAUSE_NS: u64 = 10_000_000;
/// Bytes of the packet that are told back: all headers that have the sender find its connection, and what lies in any head.
const QUOTE_MAX: usize = 96;
/// Bytes of an ICMP message before what it quotes.
const MESSAGE_LEN: usize = 8;
/// The longest answer.
const FRAME_MAX: usize = ethernet::LEN + ipv6::LEN + MESSAGE_LEN + QUOTE_MAX;
/// "Destination unreachable: fragmentation needed" (RFC 792), with the MTU of RFC 1191 section 4.
const UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
/// "Packet too big" (RFC 4443 section 3.2).
const TOO_BIG: u8 = 2;
/// What every way must take (RFC 791 section 3.2, RFC 8200 section 5): no host believes in less.
const MTU_LEAST: [u16; 2] = [68, 1280];
/// "Internetwork control" (RFC 1812 section 4.3.2.5).
const PRECEDENCE: u8 = 0xc0;
const HOP_LIMIT: u8 = 64;

/// Who may be told now.
#[derive(Default)]
pub struct Budget {
    /// By port index: when it may have all [`ANSWERS_AT_ONCE`] again, ns.
    full_at: Vec<AtomicU64>,
}

impl Budget {
    /// For so many port indices.
    pub fn new(ports: usize) -> Budget {
        Budget { full_at: std::iter::repeat_with(AtomicU64::default).take(ports).collect() }
    }

    /// Whether one more may be sent; notes that it is. Only on the way of packets that are dropped.
    fn takes(&self, port: PortIndex, now: Now) -> bool {
        let Some(word) = self.full_at.get(port.as_usize()) else { return false };
        // Relaxed: the word is all there is to it. Who loses a race against another worker has its answer left out.
        let full_at = word.load(Ordering::Relaxed);
        let next = full_at.max(now.ns) + ANSWER_PAUSE_NS;
        next <= now.ns + ANSWERS_AT_ONCE * ANSWER_PAUSE_NS
            && word.compare_exchange(full_at, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// Makes the packet into the answer to its sender, who came in by `ingress`: it may have `mtu` bytes behind its Ethernet header. False
/// if he is not told.
pub fn answer(budget: &Budget, ingress: PortIndex, now: Now, batch: &mut Batch<'_>, index: usize, mtu: u16) -> bool {
    let Some(frame) = decide(&batch.packets()[index], mtu) else { return false };
    if !budget.takes(ingress, now) {
        return false;
    }
    let is_replaced = replace(batch, index, frame.bytes());
    // What was left to do for the packet is not for its answer.
    batch.packets_mut()[index].offload = Offload::default();
    is_replaced
}

/// Whether the sender of a packet that is dropped before a port is to be told.
pub fn is_told(scope: &Scope<'_>, question: &Question, port: PortIndex, reason: DropReason) -> bool {
    let is_way = scope.port.kind.is_here() && scope.tables.port(port).kind == PortKind::FarEnd;
    is_way && reason == DropReason::OverMtu && !question.is_tagged
}

/// Whether a packet's sender can be told, unless he was told often a moment ago. `mtu`: as of [`answer`].
pub fn may_answer(packet: &Packet, mtu: u16) -> bool {
    decide(packet, mtu).is_some()
}

struct Answer {
    bytes: [u8; FRAME_MAX],
    len: usize,
}

impl Answer {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The answer to a packet's sender; `None` if he is not told. Reads the head alone, which begins with all that decides.
fn decide(packet: &Packet, mtu: u16) -> Option<Answer> {
    let head = packet.head();
    let (front, ip) = head.split_at_checked(ethernet::LEN)?;
    match word(front, 12) {
        ethernet::TYPE_IPV4 => answer_ipv4(front, ip, mtu),
        ethernet::TYPE_IPV6 => answer_ipv6(front, ip, mtu),
        _ => None,
    }
}

fn answer_ipv4(front: &[u8], ip: &[u8], mtu: u16) -> Option<Answer> {
    let header = ip.get(..ipv4::LEN)?;
    let l4 = usize::from(header[0] & 0xf) * 4;
    let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
    let is_host = |it: Ipv4Addr| !(it.is_unspecified() || it.is_loopback() || it.is_multicast() || it.is_broadcast());
    let is_later_fragment = word(header, 6) & 0x1fff != 0;
    let may_be_told = match header[9] {
        // Echo, timestamp and their answers are no errors.
        icmp::PROTOCOL => matches!(ip.get(l4)?, 0 | 8 | 13 | 14),
        _ => true,
    };
    if header[0] >> 4 != 4
        || l4 < ipv4::LEN
        || is_later_fragment
        || !may_be_told
        || !is_host(address(12))
        || !is_host(address(16))
        || mtu < MTU_LEAST[0]
    {
        return None;
    }
    let quote = &ip[..ip.len().min(QUOTE_MAX)];
    let mut answer = start(front, ipv4::LEN, quote);
    let (outer, message) = answer.bytes[ethernet::LEN..answer.len].split_at_mut(ipv4::LEN);
    message[..2].copy_from_slice(&[UNREACHABLE, FRAGMENTATION_NEEDED]);
    message[6..8].copy_from_slice(&mtu.to_be_bytes());
    write_sum(message, 2);
    outer[..2].copy_from_slice(&[0x45, PRECEDENCE]);
    outer[2..4].copy_from_slice(&((ipv4::LEN + message.len()) as u16).to_be_bytes());
    // Not to be cut, so that its identification may be any (RFC 6864 section 4.1).
    outer[6] = 0x40;
    (outer[8], outer[9]) = (HOP_LIMIT, icmp::PROTOCOL);
    outer[12..16].copy_from_slice(&header[16..20]);
    outer[16..20].copy_from_slice(&header[12..16]);
    write_sum(outer, 10);
    Some(answer)
}

fn answer_ipv6(front: &[u8], ip: &[u8], mtu: u16) -> Option<Answer> {
    let header = ip.get(..ipv6::LEN)?;
    let is_host = |address: &[u8]| address[0] != 0xff && address[..15].iter().any(|&byte| byte != 0);
    let may_be_told = match header[6] {
        // "Informational messages have ... message Type values from 128" (RFC 4443 section 2.1).
        icmp::PROTOCOL_V6 => *ip.get(ipv6::LEN)? >= 128,
        // Behind a fragment header there may be anything, and of a later one's there is.
        44 => false,
        _ => true,
    };
    if header[0] >> 4 != 6
        || !may_be_told
        || !is_host(&header[8..24])
        || !is_host(&header[24..40])
        || mtu < MTU_LEAST[1]
    {
        return None;
    }
    let quote = &ip[..ip.len().min(QUOTE_MAX)];
    let mut answer = start(front, ipv6::LEN, quote);
    let (outer, message) = answer.bytes[ethernet::LEN..answer.len].split_at_mut(ipv6::LEN);
    outer[0] = 0x60;
    outer[4..6].copy_from_slice(&(message.len() as u16).to_be_bytes());
    (outer[6], outer[7]) = (icmp::PROTOCOL_V6, HOP_LIMIT);
    outer[8..24].copy_from_slice(&header[24..40]);
    outer[24..40].copy_from_slice(&header[8..24]);
    message[0] = TOO_BIG;
    message[4..8].copy_from_slice(&u32::from(mtu).to_be_bytes());
    let sum = sum(&outer[8..40], message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(answer)
}

/// An answer with the packet's Ethernet header turned round and what it quotes, and nothing in between yet.
fn start(front: &[u8], ip_len: usize, quote: &[u8]) -> Answer {
    let mut bytes = [0; FRAME_MAX];
    bytes[..6].copy_from_slice(&front[6..12]);
    bytes[6..12].copy_from_slice(&front[..6]);
    bytes[12..ethernet::LEN].copy_from_slice(&front[12..]);
    let at = ethernet::LEN + ip_len + MESSAGE_LEN;
    bytes[at..at + quote.len()].copy_from_slice(quote);
    Answer { bytes, len: at + quote.len() }
}

/// Writes the Internet checksum (RFC 1071) over all of it to where it stands, which is zero.
fn write_sum(bytes: &mut [u8], at: usize) {
    let mut sum = Sum::default();
    sum.add(bytes);
    let sum = sum.checksum();
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests;
