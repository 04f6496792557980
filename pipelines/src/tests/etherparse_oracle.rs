//! etherparse as a second opinion: where it takes a frame strictly, we find the same headers.
//!
//! Known differences, by intent: we stop behind two tags, take 0x9100 (a tag of before 802.1ad, which Linux does not know
//! either) and MACsec for EtherTypes like any other, and take a length of 0 in IPv6 and UDP at its word (etherparse: a jumbogram).

use super::frames::any_frame;
use crate::parse::decide;
use crate::stage::Stop;
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;
use switch::offload::OffloadClaim;
use switch::packet::{HEAD_MAX, Headers, L3};

fn ours(frame: &[u8]) -> Result<Headers, Stop> {
    decide(&frame[..frame.len().min(HEAD_MAX)], frame.len(), &OffloadClaim::default(), 1500)
        .map(|parsed| parsed.headers)
}

fn offset(frame: &[u8], part: &[u8]) -> usize {
    part.as_ptr() as usize - frame.as_ptr() as usize
}

fn compare(frame: &[u8]) -> Result<(), TestCaseError> {
    let Ok(theirs) = SlicedPacket::from_ethernet(frame) else { return Ok(()) };
    let ours = ours(frame).map_err(|stop| TestCaseError::fail(format!("{stop:?}")))?;
    let tags = theirs.link_exts.len();
    if tags > 2 || matches!(ours.ethertype, 0x9100 | 0x88e5) {
        return Ok(());
    }
    prop_assert_eq!(usize::from(ours.vlan_count), tags);
    let l3 = match &theirs.net {
        Some(NetSlice::Ipv4(ip)) => {
            prop_assert_eq!(ours.is_fragment, ip.header().is_fragmenting_payload());
            prop_assert_eq!(usize::from(ours.l3_offset), offset(frame, ip.header().slice()));
            L3::Ipv4
        }
        Some(NetSlice::Ipv6(ip)) if ip.header().payload_length() == 0 => return Ok(()),
        Some(NetSlice::Ipv6(ip)) => {
            prop_assert_eq!(usize::from(ours.l3_offset), offset(frame, ip.header().slice()));
            L3::Ipv6
        }
        Some(NetSlice::Arp(arp)) if arp.hw_addr_size() == 6 && arp.proto_addr_size() == 4 => L3::Arp,
        _ => L3::Other,
    };
    if l3 == L3::Arp || l3 == L3::Other {
        // etherparse takes ARP of any address type.
        prop_assert!(ours.l3 == l3 || ours.l3 == L3::Other);
        return Ok(());
    }
    prop_assert_eq!(ours.l3, l3);
    let (protocol, header) = match &theirs.transport {
        Some(TransportSlice::Tcp(tcp)) => (6, tcp.slice()),
        Some(TransportSlice::Udp(udp)) if udp.length() == 0 => return Ok(()),
        Some(TransportSlice::Udp(udp)) => (17, udp.slice()),
        Some(TransportSlice::Icmpv4(icmp)) => (1, icmp.slice()),
        Some(TransportSlice::Icmpv6(icmp)) => (58, icmp.slice()),
        _ => return Ok(()),
    };
    prop_assert_eq!(usize::from(ours.l4_offset), offset(frame, header));
    prop_assert_eq!(ours.l4_protocol, protocol);
    Ok(())
}

prop_compose! {
    /// A frame built by etherparse: it writes options, tags and extension headers that our own builder does not.
    fn their_frame()(vlan in 0..3u16, id in 0..4096u16, is_v6: bool, is_tcp: bool, options in 0..10usize,
                     extensions in 0..3usize, payload in 0..64usize) -> Vec<u8> {
        let id = id.try_into().unwrap();
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let ip = if is_v6 {
            let mut header = etherparse::Ipv6Header { hop_limit: 64, ..Default::default() };
            header.source[15] = 1;
            let raw = || etherparse::Ipv6RawExtHeader::new_raw(0.into(), &[1; 6]).unwrap();
            let extension = etherparse::Ipv6Extensions {
                hop_by_hop_options: (extensions > 0).then(raw),
                destination_options: (extensions > 1).then(raw),
                ..Default::default()
            };
            etherparse::IpHeaders::Ipv6(header, extension)
        } else {
            let options = [1u8; 40][..options * 4].try_into().unwrap();
            let header = etherparse::Ipv4Header { time_to_live: 64, options, ..Default::default() };
            etherparse::IpHeaders::Ipv4(header, Default::default())
        };
        let builder = match vlan {
            0 => builder.ip(ip),
            1 => builder.single_vlan(id).ip(ip),
            _ => builder.double_vlan(id, id).ip(ip),
        };
        let payload = vec![7; payload];
        let mut bytes = Vec::new();
        if is_tcp {
            builder.tcp(1, 2, 3, 4).write(&mut bytes, &payload).unwrap();
        } else {
            builder.udp(1, 2).write(&mut bytes, &payload).unwrap();
        }
        bytes
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn oracle_agrees_on_our_frames_honest_and_spoilt(frame in any_frame()) {
        compare(&frame)?;
    }

    #[test]
    fn oracle_agrees_on_its_own_frames(frame in their_frame(), at in 0..80usize, value: u8, is_spoilt: bool) {
        let mut frame = frame;
        if is_spoilt && let Some(byte) = frame.get_mut(at) {
            *byte = value;
        } else {
            prop_assert!(ours(&frame).unwrap().l4_offset > 0, "an honest frame's L4 header is found");
        }
        compare(&frame)?;
    }
}
