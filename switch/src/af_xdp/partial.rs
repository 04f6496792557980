//! What a frame's sender left for its device to do, found out from the frame alone.
//!
//! AF_XDP tells no offloads. But what comes by a veth or another device of software was never on a wire: its sender leaves the
//! checksum to a device that it believes in, and only the pseudo-header's sum stands in the field. That is how it is
//! known: a field that holds exactly this sum is one that was left. A finished checksum looks so by chance once in 65,536
//! frames, and then finishing it gives the same again, for both are the complement of one sum. Only a frame that was
//! damaged and by the same chance looks unfinished is taken for good.
//!
//! A driver that runs the program itself makes its far side cut large frames. The kernel's own stack does not: there one
//! comes whole, without a word of how it is to be cut, and longer than any frame that the device may carry. It is cut to
//! the device's MTU.
//!
//! In a tunnel it is the inner sender who leaves it; the outer sums are finished or absent. So where tunnels of ours end, the
//! frames in them are looked into as well: VXLAN (RFC 7348), Geneve (RFC 8926) and GRE with Ethernet inside (RFC 7637).
//!
//! A frame may be longer than its packet: padded to the shortest length of a wire, or with a trailer. What stands there is no part
//! of the checksum (RFC 1071 sums the packet), while whoever takes the claim over sums to the frame's end. So in such a
//! frame it is finished at once ([`complete`]), unless it would have to be cut, which leaves it as it is.
//!
//! Pure. Reads headers as far as they lie in the head; what does not is left as it is. Transport protocols: TCP and UDP. The
//! sum of SCTP (a CRC) is not looked for.

use crate::batch::Batch;
use crate::checksum::Sum;
use crate::offload::{F_NEEDS_CSUM, GSO_ECN, GSO_TCPV4, GSO_TCPV6, OffloadClaim};

const ETHERNET: usize = 12;
const TAGS_MAX: usize = 2;
const TCP: u8 = 6;
const UDP: u8 = 17;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const TCP_CWR: u8 = 0x80;

const GRE: u8 = 47;
/// UDP port of Geneve (RFC 8926 section 3.3); other ports are VXLAN's.
const PORT_GENEVE: u16 = 6081;
/// Transparent Ethernet Bridging, the payload of GRE and Geneve (RFC 7637 section 3.2).
const ETHERTYPE_TEB: u16 = 0x6558;

/// The claim of a sender whose frame of `len` bytes begins with `head`, behind a device of this MTU, bytes of L3 payload.
/// `tunnels`: the UDP ports of tunnels that end here; `None`: none end here.
pub(super) fn claim(head: &[u8], len: usize, mtu: usize, tunnels: Option<&[u16]>) -> Left {
    let left = match look(head, 0, len, mtu) {
        Look::Left(left) => Some(left),
        Look::Done { protocol, l4 } => {
            let inner = tunnels.and_then(|ports| inner(head, protocol, l4, ports));
            match inner.map(|inner| look(head, inner, len, usize::MAX)) {
                Some(Look::Left(left)) => Some(left),
                _ => None,
            }
        }
        Look::Unknown => None,
    };
    left.unwrap_or(Left { claim: OffloadClaim::default(), end: len })
}

/// What was left, and where the packet ends that it is about, bytes from the start of the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Left {
    pub(super) claim: OffloadClaim,
    pub(super) end: usize,
}

/// Finishes a checksum that was left in a packet that ends at `left.end` of a longer frame, which is the batch's at `index`.
#[cold]
pub(super) fn complete(batch: &mut Batch<'_>, index: usize, left: &Left) {
    let (packet, tail) = batch.frame(index);
    let start = usize::from(left.claim.csum_start);
    let field = start + usize::from(left.claim.csum_offset);
    let head = packet.head_mut();
    let mut sum = Sum::default();
    sum.add(head.get(start..left.end.min(head.len())).expect("the claim is about headers that were read in the head"));
    let mut missing = left.end.saturating_sub(head.len()) as u32;
    for segment in tail {
        let piece = segment.take(missing);
        missing -= piece.len();
        sum.add_segment(&piece);
    }
    head[field..field + 2].copy_from_slice(&sum.udp_checksum().to_be_bytes());
}

/// What a look at a frame's headers found.
enum Look {
    /// A checksum that was left.
    Left(Left),
    /// None: a packet of this protocol, whose header begins at `l4`.
    Done { protocol: u8, l4: usize },
    /// Nothing that could be read.
    Unknown,
}

/// Where in the head the frame within a tunnel begins.
fn inner(head: &[u8], protocol: u8, l4: usize, ports: &[u16]) -> Option<usize> {
    match protocol {
        UDP => {
            let port = word(head, l4 + 2).filter(|port| ports.contains(port))?;
            let tunnel = l4 + 8;
            match port {
                PORT_GENEVE if word(head, tunnel + 2)? == ETHERTYPE_TEB => {
                    Some(tunnel + 8 + usize::from(head.get(tunnel)? & 0x3f) * 4)
                }
                PORT_GENEVE => None,
                _ => Some(tunnel + 8),
            }
        }
        GRE if word(head, l4 + 2)? == ETHERTYPE_TEB => {
            // Checksum, key and sequence number, four bytes each (RFC 2890 section 2).
            let flags = head.get(l4)?;
            let optional = [0x80, 0x20, 0x10].iter().filter(|&&flag| flags & flag != 0).count();
            Some(l4 + 4 + 4 * optional)
        }
        _ => None,
    }
}

fn look(head: &[u8], start: usize, len: usize, mtu: usize) -> Look {
    find(head, start, len, mtu).unwrap_or(Look::Unknown)
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]))
}

fn find(head: &[u8], start: usize, len: usize, mtu: usize) -> Option<Look> {
    let mut l3 = start + ETHERNET + 2;
    let mut ethertype = word(head, start + ETHERNET)?;
    for _ in 0..TAGS_MAX {
        if matches!(ethertype, 0x8100 | 0x88a8) {
            ethertype = word(head, l3 + 2)?;
            l3 += 4;
        }
    }
    let (protocol, l4, addresses, end, gso_type) = match ethertype {
        0x0800 => {
            let header = head.get(l3..l3 + 20)?;
            let header_len = usize::from(header[0] & 0xf) * 4;
            // No fragment: neither more of them nor an offset (RFC 791).
            if header[0] >> 4 != 4 || header_len < 20 || word(header, 6)? & 0x3fff != 0 {
                return None;
            }
            let total_len = usize::from(word(header, 2)?);
            (header[9], l3 + header_len, &header[12..20], l3 + total_len, GSO_TCPV4)
        }
        0x86dd => {
            let header = head.get(l3..l3 + 40)?;
            let payload_len = usize::from(word(header, 4)?);
            (header[6], l3 + 40, &header[8..40], l3 + 40 + payload_len, GSO_TCPV6)
        }
        _ => return None,
    };
    let field = match protocol {
        TCP => TCP_CHECKSUM,
        UDP => UDP_CHECKSUM,
        _ => return Some(Look::Done { protocol, l4 }),
    };
    // The packet's own length counts; a short frame is padded behind it.
    let l4_len = end.checked_sub(l4).filter(|_| end <= len)?;
    let told = word(head, l4 + field)?;
    let mut pseudo = Sum::default();
    pseudo.add(addresses);
    pseudo.add_word(u16::from(protocol));
    pseudo.add_word(u16::try_from(l4_len).ok()?);
    if told != pseudo.folded() {
        return Some(Look::Done { protocol, l4 });
    }
    let mut claim = OffloadClaim {
        flags: F_NEEDS_CSUM,
        csum_start: l4 as u16,
        csum_offset: field as u16,
        ..OffloadClaim::default()
    };
    if end - l3 > mtu && protocol == TCP {
        if end < len {
            return None;
        }
        let header_end = l4 + usize::from(head.get(l4 + 12)? >> 4) * 4;
        let is_congested = head.get(l4 + 13)? & TCP_CWR != 0;
        claim.gso_type = gso_type | if is_congested { GSO_ECN } else { 0 };
        claim.gso_size = u16::try_from(mtu.checked_sub(header_end - l3)?).ok()?;
        claim.hdr_len = header_end as u16;
    }
    Some(Look::Left(Left { claim, end }))
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;
    use crate::ids::{PortIndex, QueueIndex};
    use crate::segment::Segment;

    /// What is claimed of a frame without anything behind its packet.
    fn claim(head: &[u8], len: usize, mtu: usize, tunnels: Option<&[u16]>) -> OffloadClaim {
        let left = super::claim(head, len, mtu, tunnels);
        assert_eq!(left.end, len);
        left.claim
    }

    /// A TCP or UDP packet with its checksum left, behind `tags` VLAN tags.
    fn frame(is_v6: bool, protocol: u8, tags: usize, payload: usize) -> Vec<u8> {
        let l4_header = if protocol == TCP { 20 } else { 8 };
        let l4_len = l4_header + payload;
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        (0..tags).for_each(|_| frame.extend([0x81, 0, 0, 7]));
        let addresses = if is_v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((l4_len as u16).to_be_bytes());
            frame.extend([protocol, 64]);
            (0..32u8).map(|byte| byte.wrapping_mul(57)).collect::<Vec<u8>>()
        } else {
            frame.extend([0x08, 0, 0x45, 0]);
            frame.extend((20 + l4_len as u16).to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            vec![192, 0, 2, 1, 198, 51, 100, 200]
        };
        frame.extend(&addresses);
        let l4 = frame.len();
        frame.resize(l4 + l4_len, 0x5a);
        if protocol == TCP {
            frame[l4 + 12] = 5 << 4;
            frame[l4 + 13] = 0x10;
        }
        let mut pseudo = Sum::default();
        pseudo.add(&addresses);
        pseudo.add_word(u16::from(protocol));
        pseudo.add_word(l4_len as u16);
        let field = l4 + if protocol == TCP { TCP_CHECKSUM } else { UDP_CHECKSUM };
        frame[field..field + 2].copy_from_slice(&pseudo.folded().to_be_bytes());
        frame
    }

    #[test]
    fn a_checksum_that_was_left_is_found_and_a_finished_one_left_alone() {
        for is_v6 in [false, true] {
            for (protocol, offset) in [(TCP, TCP_CHECKSUM), (UDP, UDP_CHECKSUM)] {
                for tags in 0..=2 {
                    let mut bytes = frame(is_v6, protocol, tags, 33);
                    let l4 = 14 + 4 * tags + if is_v6 { 40 } else { 20 };
                    let expected = OffloadClaim {
                        flags: F_NEEDS_CSUM,
                        csum_start: l4 as u16,
                        csum_offset: offset as u16,
                        ..OffloadClaim::default()
                    };
                    assert_eq!(claim(&bytes, bytes.len(), 1500, None), expected);
                    bytes[l4 + offset] ^= 1;
                    assert!(claim(&bytes, bytes.len(), 1500, None).is_none());
                }
            }
        }
    }

    /// The checksum of TCP or UDP over what the IP header says its packet is, by the sum that was left in its field.
    fn whole(frame: &[u8], l4: usize, end: usize) -> u16 {
        let mut sum = Sum::default();
        sum.add(&frame[l4..end]);
        sum.udp_checksum()
    }

    #[test]
    fn what_stands_behind_a_packet_is_no_part_of_its_checksum() {
        // In the head alone, and with a tail in which packet and trailer meet.
        for payload in [5, 33, 300] {
            for (tags, trailer) in [(0, 1), (0, 7), (1, 60), (2, 200)] {
                for is_v6 in [false, true] {
                    let mut bytes = frame(is_v6, TCP, tags, payload);
                    let (l4, end) = (14 + 4 * tags + if is_v6 { 40 } else { 20 }, bytes.len());
                    bytes.extend((0..trailer).map(|at| 0x77u8.wrapping_mul(at as u8 | 1)));
                    let left = super::claim(&bytes[..bytes.len().min(128)], bytes.len(), 1500, None);
                    assert_eq!((left.end, usize::from(left.claim.csum_start)), (end, l4));
                    let mut batch = Batch::new();
                    let segment = Segment::from(&bytes[..]);
                    assert!(batch.put(PortIndex(0), QueueIndex(0), segment, OffloadClaim::default()));
                    complete(&mut batch, 0, &left);
                    let field = l4 + TCP_CHECKSUM;
                    let expected = whole(&bytes, l4, end);
                    assert_eq!(batch.packets()[0].head()[field..field + 2], expected.to_be_bytes());
                }
            }
        }
        // One to be cut tells no way to leave the trailer out.
        let mut large = frame(false, TCP, 0, 9000);
        large.push(1);
        assert!(claim(&large[..128], large.len(), 1500, None).is_none());
    }

    #[test]
    fn finishing_what_only_looks_left_gives_the_same_checksum_again() {
        // A whole checksum that is also the pseudo-header's sum: the payload is chosen for it.
        let mut bytes = frame(false, UDP, 0, 4);
        let l4 = 34;
        bytes[l4 + 8..].fill(0);
        let field = l4 + UDP_CHECKSUM;
        let pseudo = u16::from_be_bytes([bytes[field], bytes[field + 1]]);
        let mut sum = Sum::default();
        sum.add(&bytes[l4..]);
        // The field is there once as itself; what is missing to all ones beyond the pseudo-header goes into the payload.
        sum.add_word(pseudo);
        bytes[l4 + 8..l4 + 10].copy_from_slice(&(!sum.folded()).to_be_bytes());
        assert!(!claim(&bytes, bytes.len(), 1500, None).is_none());
        let mut whole = Sum::default();
        whole.add(&bytes[l4..]);
        assert_eq!(whole.udp_checksum(), pseudo, "finished, it is what it was");
    }

    #[test]
    fn a_large_tcp_frame_is_to_be_cut_to_the_mtu() {
        for (is_v6, headers, kind) in [(false, 40, GSO_TCPV4), (true, 60, GSO_TCPV6)] {
            let mut bytes = frame(is_v6, TCP, 1, 9000);
            let found = claim(&bytes[..128], bytes.len(), 1500, None);
            assert_eq!((found.gso_type, found.gso_size, found.hdr_len), (kind, 1500 - headers, 18 + headers));
            assert_eq!(claim(&bytes[..128], bytes.len(), 9000 + usize::from(headers), None).gso_type, 0, "it fits");
            let flags = 18 + usize::from(headers) - 7;
            bytes[flags] |= TCP_CWR;
            assert_eq!(claim(&bytes[..128], bytes.len(), 1500, None).gso_type, kind | GSO_ECN);
        }
        assert_eq!(claim(&frame(false, UDP, 0, 9000), 9042, 1500, None).gso_type, 0, "a datagram is one");
    }

    #[test]
    fn fragments_and_everything_cut_short_claim_nothing_and_stay_unharmed() {
        for is_v6 in [false, true] {
            let bytes = frame(is_v6, TCP, 2, 100);
            let needed = if is_v6 { 62 + 18 } else { 42 + 18 };
            for len in 0..needed {
                assert!(claim(&bytes[..len], bytes.len(), 1500, None).is_none(), "{len}");
            }
            assert!(claim(&bytes, bytes.len() - 1, 1500, None).is_none(), "the packet is longer than the frame");
        }
        let mut bytes = frame(false, UDP, 0, 100);
        for flags in [[0x20, 0], [0, 1]] {
            bytes[20..22].copy_from_slice(&flags);
            assert!(claim(&bytes, bytes.len(), 1500, None).is_none());
        }
    }

    /// An inner frame behind the outer headers of a tunnel over IPv4 or IPv6.
    fn tunnelled(is_v6: bool, protocol: u8, tunnel: &[u8], inner: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 8, 2, 0, 0, 0, 0, 9];
        let len = (tunnel.len() + inner.len()) as u16;
        if is_v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(len.to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend((0..32u8).map(|byte| byte.wrapping_mul(91)));
        } else {
            frame.extend([0x08, 0, 0x45, 0]);
            frame.extend((20 + len).to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        }
        frame.extend(tunnel);
        frame.extend(inner);
        frame
    }

    #[test]
    fn what_the_sender_within_a_tunnel_left_is_found_where_tunnels_end_and_nowhere_else() {
        let vxlan = [0xc0, 0, 0x12, 0xb5, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 7, 0];
        let geneve = [0xc0, 0, 0x17, 0xc1, 0, 0, 0, 0, 1, 0, 0x65, 0x58, 0, 0, 7, 0, 1, 2, 3, 4];
        let gre = [0x20, 0, 0x65, 0x58, 0, 0, 7, 0];
        for is_v6 in [false, true] {
            for (protocol, tunnel) in [(UDP, &vxlan[..]), (UDP, &geneve), (GRE, &gre)] {
                let inner = frame(!is_v6, TCP, 1, 100);
                let bytes = tunnelled(is_v6, protocol, tunnel, &inner);
                let plain = claim(&inner, inner.len(), 1500, None);
                let start = (bytes.len() - inner.len()) as u16;
                let expected = OffloadClaim { csum_start: plain.csum_start + start, ..plain };
                let ports = [4789, 6081];
                assert_eq!(claim(&bytes, bytes.len(), 1500, Some(&ports)), expected);
                assert!(claim(&bytes, bytes.len(), 1500, None).is_none());
                assert_eq!(claim(&bytes, bytes.len(), 1500, Some(&[])).is_none(), protocol == UDP);
                for len in 0..usize::from(expected.csum_start) {
                    assert!(claim(&bytes[..len], bytes.len(), 1500, Some(&ports)).is_none());
                }
            }
        }
    }
}
