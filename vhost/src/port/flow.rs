//! Which flow a frame belongs to: one hash for both of its directions.
//!
//! A device with several queues steers a flow by it. All frames of one flow must hash alike, so what some of them lack is left out for all:
//! a fragment has no ports, and neither has the first one, which still shows them. Pure; reads a frame's head and bounds every
//! look. Nothing secret is mixed in: who makes flows of one hash could as well send one flow.

const TCP: u8 = 6;
const UDP: u8 = 17;
const TAGS_MAX: usize = 2;

/// The hash of the flow that a frame with this head is of, the same both ways. All bits are equally good.
///
/// Of TCP and UDP over IP it is by addresses and ports, of other IP by addresses and protocol, else by MACs and EtherType.
#[inline]
pub(super) fn hash(head: &[u8]) -> u32 {
    let mut at = 12;
    let mut ethertype = word(head, at);
    for _ in 0..TAGS_MAX {
        if !matches!(ethertype, 0x8100 | 0x88a8) {
            break;
        }
        at += 4;
        ethertype = word(head, at);
    }
    let found = match ethertype {
        0x0800 => ipv4(&head[(at + 2).min(head.len())..]),
        0x86dd => ipv6(&head[(at + 2).min(head.len())..]),
        _ => None,
    };
    found.unwrap_or_else(|| match head.first_chunk::<12>() {
        Some(&[a, b, c, d, e, f, g, h, i, j, k, l]) => {
            let [one, other] = [[0, 0, a, b, c, d, e, f], [0, 0, g, h, i, j, k, l]].map(u64::from_be_bytes);
            of_ends(one, other, ethertype.into())
        }
        None => 0,
    })
}

/// The two bytes there; 0 where the head ends before.
#[inline]
fn word(head: &[u8], at: usize) -> u16 {
    head.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |&two| u16::from_be_bytes(two))
}

#[inline]
fn ipv4(packet: &[u8]) -> Option<u32> {
    let header = packet.first_chunk::<20>()?;
    let is_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    let l4 = usize::from(header[0] & 0xf) * 4;
    let (source, destination) = ports(packet, l4, header[9], is_fragment);
    let address =
        |at: usize| u64::from(u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]));
    Some(of_ends(address(12) << 16 | source, address(16) << 16 | destination, header[9].into()))
}

#[inline]
fn ipv6(packet: &[u8]) -> Option<u32> {
    let header = packet.first_chunk::<40>()?;
    // Behind extension headers no ports are looked for: a fragment's is one of them.
    let (source, destination) = ports(packet, 40, header[6], false);
    let half = |at: usize| u64::from_be_bytes(std::array::from_fn(|byte| header[at + byte]));
    let end = |at: usize, port: u64| mix(half(at)) ^ half(at + 8) ^ port << 48;
    Some(of_ends(end(8, source), end(24, destination), header[6].into()))
}

/// Source and destination port, each 0 where there are none.
#[inline]
fn ports(packet: &[u8], l4: usize, protocol: u8, is_fragment: bool) -> (u64, u64) {
    match packet.get(l4..).and_then(<[u8]>::first_chunk::<4>) {
        Some(&[a, b, c, d]) if matches!(protocol, TCP | UDP) && !is_fragment => {
            (u16::from_be_bytes([a, b]).into(), u16::from_be_bytes([c, d]).into())
        }
        _ => (0, 0),
    }
}

/// Of a flow between two ends, whichever comes first.
#[inline]
fn of_ends(one: u64, other: u64, kind: u64) -> u32 {
    (mix(mix(one).wrapping_add(mix(other)) ^ kind) >> 32) as u32
}

/// Multiplies and folds.
#[inline]
fn mix(word: u64) -> u64 {
    let product = u128::from(word ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
    (product >> 64) as u64 ^ product as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// An end of a flow: the last byte of its MAC and address, and its port.
    type End = (u8, u16);

    /// UDP from one end to another, with this many tags; over IPv4 with this fragment field, or over IPv6.
    fn frame(from: End, to: End, tags: usize, fragment: Option<u16>) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, to.0, 2, 0, 0, 0, 0, from.0];
        (0..tags).for_each(|_| frame.extend([0x81, 0, 0, 7]));
        match fragment {
            Some(field) => {
                frame.extend([8, 0, 0x45, 0, 0, 60, 0, 0]);
                frame.extend(field.to_be_bytes());
                frame.extend([64, UDP, 0, 0]);
                for end in [from, to] {
                    frame.extend([192, 0, 2, end.0]);
                }
            }
            None => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 40, UDP, 64]);
                for end in [from, to] {
                    frame.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, end.0]);
                }
            }
        }
        frame.extend(from.1.to_be_bytes());
        frame.extend(to.1.to_be_bytes());
        frame.extend([0; 4]);
        frame
    }

    #[test]
    fn both_directions_of_a_flow_hash_alike_and_other_flows_do_not() {
        for (tags, fragment) in [(0, Some(0)), (1, Some(0x4000)), (2, None)] {
            let mut seen = HashSet::new();
            for port in 0..200 {
                for peer in 2..22 {
                    let one = hash(&frame((1, port), (peer, 443), tags, fragment));
                    assert_eq!(hash(&frame((peer, 443), (1, port), tags, fragment)), one);
                    assert!(seen.insert(one), "another flow's");
                }
            }
        }
        let mut arp = frame((1, 0), (2, 0), 0, None);
        arp[12..14].copy_from_slice(&[8, 6]);
        let there = hash(&arp);
        arp[..12].rotate_left(6);
        assert_eq!(hash(&arp), there);
    }

    #[test]
    fn flows_spread_evenly_by_any_of_the_bits() {
        for shift in [0, 8, 16, 24, 28] {
            let mut counts = [0; 16];
            for port in 0..1600 {
                counts[(hash(&frame((1, port), (2, 80), 0, Some(0))) >> shift & 15) as usize] += 1;
            }
            assert!(counts.iter().all(|count| (60..150).contains(count)), "{counts:?}");
        }
    }

    #[test]
    fn all_fragments_of_a_datagram_are_one_flow() {
        let first = hash(&frame((1, 7), (2, 80), 0, Some(0x2000)));
        assert_eq!(hash(&frame((1, 99), (2, 1), 0, Some(0x00b9))), first);
    }

    #[test]
    fn a_head_that_ends_anywhere_has_a_hash() {
        for fragment in [Some(0), None] {
            let whole = frame((1, 7), (2, 80), 2, fragment);
            (0..whole.len()).for_each(|len| {
                hash(&whole[..len]);
            });
        }
    }
}
