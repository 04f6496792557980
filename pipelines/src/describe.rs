//! A parsed packet in words: the parse stage's line of a trace.
//!
//! Reads only what parse found, through the views; whatever a view refuses is left out. Nothing here runs on the packet path.

use crate::wire::arp::{self, Arp};
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::icmp::{self, Icmp};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::tcp::{self, Tcp};
use crate::wire::udp::{self, Udp};
use switch::offload::{Gso, GsoKind, Offload};
use switch::packet::{L3, Packet};

/// A parsed packet in words.
pub(crate) fn packet(packet: &Packet) -> String {
    let head = packet.head();
    let headers = &packet.headers;
    let mut parts = Vec::new();
    if let Ok(ethernet) = Ethernet::new(head) {
        parts.push(format!("{} > {}", ethernet.source(), ethernet.destination()));
        let tags = (0..ethernet.vlan_count()).filter_map(|index| ethernet.tag(index));
        parts.extend(tags.map(|tag| format!("VLAN {}", tag.vlan_id())));
    }
    let l3 = head.get(usize::from(headers.l3_offset)..).unwrap_or_default();
    parts.push(match headers.l3 {
        L3::Arp => Arp::new(l3).map_or_else(|_| "ARP".to_owned(), |arp| arp_packet(&arp)),
        L3::Ipv4 => Ipv4::new(l3)
            .map_or_else(|_| "IPv4".to_owned(), |ip| format!("IPv4 {} > {}", ip.source(), ip.destination())),
        L3::Ipv6 => Ipv6::new(l3)
            .map_or_else(|_| "IPv6".to_owned(), |ip| format!("IPv6 {} > {}", ip.source(), ip.destination())),
        L3::Other if matches!(headers.ethertype, ethernet::TYPE_IPV4 | ethernet::TYPE_IPV6 | ethernet::TYPE_ARP) => {
            format!("EtherType {:#06x}, broken inside", headers.ethertype)
        }
        L3::Other | L3::Unread => format!("EtherType {:#06x}", headers.ethertype),
    });
    if headers.is_fragment {
        parts.push("fragment".to_owned());
    }
    if headers.l4_offset > 0 {
        let l4 = head.get(usize::from(headers.l4_offset)..).unwrap_or_default();
        parts.push(l4_header(headers.l4_protocol, l4));
    }
    parts.push(format!("{} bytes", packet.len()));
    parts.extend(offload_left(&packet.offload));
    parts.join(", ")
}

fn arp_packet(arp: &Arp<'_>) -> String {
    match arp.operation() {
        arp::REQUEST => format!("ARP who has {}, tell {}", arp.target_ip(), arp.sender_ip()),
        arp::REPLY => format!("ARP {} is at {}", arp.sender_ip(), arp.sender_mac()),
        other => format!("ARP operation {other}"),
    }
}

fn l4_header(protocol: u8, bytes: &[u8]) -> String {
    let known = match protocol {
        tcp::PROTOCOL => Tcp::new(bytes).ok().map(|tcp| format!("TCP {} > {}", tcp.source(), tcp.destination())),
        udp::PROTOCOL => Udp::new(bytes).ok().map(|udp| format!("UDP {} > {}", udp.source(), udp.destination())),
        icmp::PROTOCOL => Icmp::new(bytes).ok().map(|icmp| format!("ICMP {}/{}", icmp.kind(), icmp.code())),
        icmp::PROTOCOL_V6 => Icmp::new(bytes).ok().map(|icmp| format!("ICMPv6 {}/{}", icmp.kind(), icmp.code())),
        _ => None,
    };
    known.unwrap_or_else(|| format!("protocol {protocol}"))
}

fn offload_left(offload: &Offload) -> Vec<String> {
    let mut parts = Vec::new();
    if offload.checksum.is_some() {
        parts.push("checksum left to complete".to_owned());
    }
    if let Some(Gso { kind, size, .. }) = offload.gso {
        let kind = match kind {
            GsoKind::Tcp4 | GsoKind::Tcp6 => "TCP",
            GsoKind::UdpL4 => "UDP",
        };
        parts.push(format!("to be cut into {kind} segments of {size} bytes"));
    }
    parts
}
