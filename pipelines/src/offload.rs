//! Holds an offload claim against the frame's own headers: the second half of the parse stage.
//!
//! A claim that passed unchecked would let a sender make the receiver's kernel write two bytes of its choosing anywhere
//! into a frame that we had checked, or cut it at a place of its choosing. So every field either follows from our own
//! parse or is refused. Linux guests checksum and cut plain and VLAN-tagged TCP and UDP only: for anything they wrap into a tunnel
//! themselves, virtio-net offers no offload and their kernel fills in the inner checksum (`hw_enc_features`). Hence a start
//! that is not our L4 header is never an honest frame's. (virtio 1.2 section 5.1.6.2; the flags' meaning: 5.1.6.)

use crate::parse::Found;
use crate::wire::{tcp, udp};
use switch::ledger::DropReason;
use switch::offload::{
    F_DATA_VALID, F_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, Gso, GsoKind, Offload,
    OffloadClaim, PartialChecksum,
};
use switch::packet::L3;

/// The smallest payload of a segment, bytes. Linux' smallest MSS is 48, of which options may take 40
/// (`tcp_min_snd_mss`); below that a frame of 64 KiB would only serve to make 64 Ki frames of one.
pub(crate) const GSO_SIZE_MIN: u16 = 8;

/// Answers what is left to do for a frame of `frame_len` bytes, of which `head` are the first.
///
/// # Errors
/// [`DropReason::BadOffload`] if the claim does not fit the headers found; [`DropReason::HeadersTooLong`] if it needs an
/// L4 header that lies beyond the head.
pub(crate) fn check(
    claim: &OffloadClaim,
    found: &Found,
    head: &[u8],
    frame_len: usize,
    mtu: u16,
) -> Result<Offload, DropReason> {
    let headers = &found.headers;
    let needs_checksum = claim.flags & F_NEEDS_CSUM != 0;
    if !needs_checksum && claim.gso_type != GSO_NONE {
        // virtio 1.2 section 5.1.6.2.1: a driver that sets gso_type must set NEEDS_CSUM as well.
        return Err(DropReason::BadOffload);
    }
    // What is left of a whole datagram's L4 header; a fragment's checksum is not over the fragment.
    let field = match headers.l4_protocol {
        _ if headers.l4_offset == 0 || headers.is_fragment => None,
        tcp::PROTOCOL => Some(tcp::CHECKSUM as u16),
        udp::PROTOCOL => Some(udp::CHECKSUM as u16),
        _ => None,
    };
    if !needs_checksum {
        // Other flags are not ours to know and are ignored (virtio 1.2 section 5.1.6.2.2).
        let checksum_valid = claim.flags & F_DATA_VALID != 0 && field.is_some();
        return Ok(Offload { checksum: None, gso: None, checksum_valid });
    }
    let Some(field) = field else {
        return Err(if found.is_too_long { DropReason::HeadersTooLong } else { DropReason::BadOffload });
    };
    if claim.csum_start != headers.l4_offset || claim.csum_offset != field {
        return Err(DropReason::BadOffload);
    }
    let checksum = Some(PartialChecksum { start: headers.l4_offset, offset: field });
    let gso = if claim.gso_type == GSO_NONE { None } else { check_gso(claim, found, head, frame_len, mtu)? };
    Ok(Offload { checksum, gso, checksum_valid: false })
}

/// The second part, for frames to be cut. The L4 header is that of a whole TCP or UDP datagram.
fn check_gso(
    claim: &OffloadClaim,
    found: &Found,
    head: &[u8],
    frame_len: usize,
    mtu: u16,
) -> Result<Option<Gso>, DropReason> {
    let headers = &found.headers;
    let l4_offset = usize::from(headers.l4_offset);
    let has_ecn_flag = claim.gso_type & GSO_ECN != 0;
    let kind = match (claim.gso_type & !GSO_ECN, headers.l3, headers.l4_protocol) {
        (GSO_TCPV4, L3::Ipv4, tcp::PROTOCOL) => GsoKind::Tcp4,
        (GSO_TCPV6, L3::Ipv6, tcp::PROTOCOL) => GsoKind::Tcp6,
        // ECN in the flags is TCP's (virtio 1.2 section 5.1.6.2).
        (GSO_UDP_L4, L3::Ipv4 | L3::Ipv6, udp::PROTOCOL) if !has_ecn_flag => GsoKind::UdpL4,
        // Among them GSO_UDP, fragmentation of UDP, which we never offer.
        _ => return Err(DropReason::BadOffload),
    };
    let (l4_len, is_cwr) = if kind == GsoKind::UdpL4 {
        (udp::LEN, false)
    } else {
        let tcp = head.get(l4_offset..).and_then(|bytes| tcp::Tcp::new(bytes).ok()).ok_or(DropReason::BadOffload)?;
        (tcp.header_len(), tcp.is_cwr())
    };
    let header_len = l4_offset + l4_len;
    let segment_len = header_len - usize::from(headers.l3_offset) + usize::from(claim.gso_size);
    // Bytes behind the IP packet would be cut into segments as if they were payload.
    if claim.gso_size < GSO_SIZE_MIN || segment_len > usize::from(mtu) || found.end != frame_len {
        return Err(DropReason::BadOffload);
    }
    // One segment's worth or less is nothing to cut; kernels send such frames and take them so.
    if frame_len - header_len <= usize::from(claim.gso_size) {
        return Ok(None);
    }
    Ok(Some(Gso { kind, size: claim.gso_size, header_len: header_len as u16, ecn: has_ecn_flag && is_cwr }))
}

#[cfg(test)]
mod tests {
    use crate::parse::decide;
    use crate::stage::Stop;
    use crate::tests::frames::Frame;
    use switch::ledger::DropReason;
    use switch::offload::*;

    fn checked(frame: &[u8], claim: OffloadClaim) -> Result<Offload, DropReason> {
        match decide(frame, frame.len(), &claim, 1500) {
            Ok(parsed) => Ok(parsed.offload),
            Err(Stop::Drop(reason)) => Err(reason),
            Err(Stop::Pull) => panic!("the head is whole"),
        }
    }

    fn tcp_claim(l4_offset: u16, gso_type: u8, gso_size: u16) -> OffloadClaim {
        OffloadClaim { flags: F_NEEDS_CSUM, gso_type, hdr_len: 9999, gso_size, csum_start: l4_offset, csum_offset: 16 }
    }

    fn udp_claim(l4_offset: u16, gso_type: u8, gso_size: u16) -> OffloadClaim {
        OffloadClaim { csum_offset: 6, ..tcp_claim(l4_offset, gso_type, gso_size) }
    }

    const BAD: Result<Offload, DropReason> = Err(DropReason::BadOffload);

    #[test]
    fn a_checksum_claim_holds_only_for_our_own_l4_header_and_its_field() {
        let frame = Frame::tcp4().bytes();
        let offload = checked(&frame, tcp_claim(34, GSO_NONE, 0)).unwrap();
        assert_eq!(offload.checksum, Some(PartialChecksum { start: 34, offset: 16 }));
        assert_eq!((offload.gso, offload.checksum_valid), (None, false));
        for (start, offset) in [(33, 16), (34, 6), (34, 17), (0, 0), (14, 10), (65_535, 65_535)] {
            let claim = OffloadClaim { csum_start: start, csum_offset: offset, ..tcp_claim(34, GSO_NONE, 0) };
            assert_eq!(checked(&frame, claim), BAD, "start {start}, offset {offset}");
        }
        assert!(checked(&Frame::udp4().bytes(), udp_claim(34, GSO_NONE, 0)).is_ok());
        assert!(checked(&Frame::udp6().vlan(5).bytes(), udp_claim(58, GSO_NONE, 0)).is_ok());
    }

    #[test]
    fn fragments_and_protocols_without_such_a_field_are_refused() {
        assert_eq!(checked(&Frame::udp4().fragment(0, true).bytes(), udp_claim(34, GSO_NONE, 0)), BAD);
        assert_eq!(checked(&Frame::udp4().fragment(2, false).bytes(), udp_claim(34, GSO_NONE, 0)), BAD);
        assert_eq!(
            checked(&Frame::icmp4().bytes(), OffloadClaim { csum_offset: 2, ..tcp_claim(34, GSO_NONE, 0) }),
            BAD
        );
        assert_eq!(checked(&Frame::arp().bytes(), tcp_claim(34, GSO_NONE, 0)), BAD);
    }

    #[test]
    fn a_cut_is_taken_with_lengths_of_our_own() {
        let frame = Frame::tcp4().payload(4000).vlan(3).bytes();
        let gso = checked(&frame, tcp_claim(38, GSO_TCPV4, 1448)).unwrap().gso.unwrap();
        assert_eq!(gso, Gso { kind: GsoKind::Tcp4, size: 1448, header_len: 58, ecn: false });
        let frame = Frame::tcp6().payload(4000).bytes();
        let gso = checked(&frame, tcp_claim(54, GSO_TCPV6, 1400)).unwrap().gso.unwrap();
        assert_eq!(gso, Gso { kind: GsoKind::Tcp6, size: 1400, header_len: 74, ecn: false });
        let frame = Frame::udp4().payload(4000).bytes();
        let gso = checked(&frame, udp_claim(34, GSO_UDP_L4, 1200)).unwrap().gso.unwrap();
        assert_eq!(gso, Gso { kind: GsoKind::UdpL4, size: 1200, header_len: 42, ecn: false });
    }

    #[test]
    fn a_cut_of_another_protocol_than_the_frame_has_is_refused() {
        let tcp = Frame::tcp4().payload(4000).bytes();
        for kind in [GSO_TCPV6, GSO_UDP, GSO_UDP_L4, GSO_ECN, GSO_UDP_L4 | GSO_ECN, 2, 6, 0x7f] {
            assert_eq!(checked(&tcp, tcp_claim(34, kind, 1448)), BAD, "type {kind:#x}");
        }
        let udp = Frame::udp4().payload(4000).bytes();
        for kind in [GSO_TCPV4, GSO_UDP, GSO_UDP_L4 | GSO_ECN] {
            assert_eq!(checked(&udp, udp_claim(34, kind, 1200)), BAD, "type {kind:#x}");
        }
    }

    #[test]
    fn a_cut_without_a_checksum_to_complete_is_refused() {
        let claim = OffloadClaim { flags: 0, ..tcp_claim(34, GSO_TCPV4, 1448) };
        assert_eq!(checked(&Frame::tcp4().payload(4000).bytes(), claim), BAD);
    }

    #[test]
    fn the_size_of_segments_is_bounded_by_the_minimum_and_the_mtu() {
        let frame = Frame::tcp4().payload(4000).bytes();
        let with = |size| checked(&frame, tcp_claim(34, GSO_TCPV4, size)).is_ok();
        assert!(!with(0) && !with(super::GSO_SIZE_MIN - 1) && with(super::GSO_SIZE_MIN));
        assert!(with(1460) && !with(1461), "1,500 less IPv4 and TCP");
    }

    #[test]
    fn a_frame_of_one_segment_is_nothing_to_cut() {
        let offload = checked(&Frame::tcp4().payload(1000).bytes(), tcp_claim(34, GSO_TCPV4, 1000)).unwrap();
        assert!(offload.gso.is_none() && offload.checksum.is_some());
    }

    #[test]
    fn bytes_behind_the_ip_packet_are_never_cut_into_segments() {
        let mut frame = Frame::tcp4().payload(4000).bytes();
        frame.push(0);
        assert_eq!(checked(&frame, tcp_claim(34, GSO_TCPV4, 1448)), BAD);
    }

    #[test]
    fn ecn_needs_the_flag_and_the_bit() {
        let ecn = |frame: Frame, flag| checked(&frame.bytes(), tcp_claim(34, GSO_TCPV4 | flag, 1448)).unwrap().gso;
        let plain = Frame::tcp4().payload(4000);
        let cwr = plain.clone().tcp_flags(0x90);
        assert!(ecn(cwr.clone(), GSO_ECN).unwrap().ecn);
        assert!(!ecn(cwr, 0).unwrap().ecn && !ecn(plain, GSO_ECN).unwrap().ecn);
    }

    #[test]
    fn a_vouched_checksum_counts_for_tcp_and_udp_only_and_unknown_flags_are_ignored() {
        let claim = OffloadClaim { flags: F_DATA_VALID | 0xf8, ..OffloadClaim::default() };
        assert!(checked(&Frame::udp4().bytes(), claim).unwrap().checksum_valid);
        assert!(!checked(&Frame::icmp4().bytes(), claim).unwrap().checksum_valid);
        assert!(!checked(&Frame::arp().bytes(), claim).unwrap().checksum_valid);
    }
}
