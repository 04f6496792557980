//! The hash of a flow: equal for all packets of one, spread over 32 bits for many.
//!
//! Queues, tunnel source ports and equal-cost paths are chosen by it. It is not keyed: whoever aims flows at one value
//! slows down his own queue only. All fragments of a datagram hash alike, because only the first has ports: they leave the
//! ports out. Cost: one multiplication for IPv4.

use crate::parse::{IP, L4, UNTAGGED_IPV4};
use crate::wire;
use switch::packet::{L3, Packet};

/// Arbitrary odd constants with about half their bits set: the first digits of pi and e.
const KEY_A: u64 = 0x2434_6a88_85a3_08d3;
const KEY_B: u64 = 0xb7e1_5162_8aed_2a6b;

/// Mixes two words: the halves of their 128-bit product, so that every input bit reaches the low bits.
#[inline]
pub(crate) fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ KEY_A) * u128::from(b ^ KEY_B);
    (product as u64) ^ (product >> 64) as u64
}

#[inline]
fn fold(hash: u64) -> u32 {
    (hash ^ (hash >> 32)) as u32
}

/// A flow over IPv4. `addresses` are source and destination, `ports` both ports or 0, `protocol` the IP protocol.
#[inline]
pub fn ipv4(addresses: [u8; 8], ports: u32, protocol: u8) -> u32 {
    fold(mix(u64::from_ne_bytes(addresses), u64::from(ports) << 8 | u64::from(protocol)))
}

/// A flow over IPv6, likewise.
#[inline]
pub fn ipv6(addresses: &[u8; 32], ports: u32, protocol: u8) -> u32 {
    let (words, _) = addresses.as_chunks::<8>();
    let mut hash = u64::from(ports) << 8 | u64::from(protocol);
    for word in words {
        hash = mix(u64::from_ne_bytes(*word), hash);
    }
    fold(hash)
}

/// Frames that carry no IP: by their MAC addresses and EtherType.
#[inline]
pub fn other(addresses: [u8; 12], ethertype: u16) -> u32 {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = addresses;
    let low = u32::from_ne_bytes([i, j, k, l]);
    fold(mix(u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from(low) << 16 | u64::from(ethertype)))
}

/// What [`plain_flow`] tells.
pub(crate) struct Flow {
    /// As [`crate::parse::entropy`] has it for a frame that does not lie about its lengths.
    pub(crate) hash: u32,
    /// IPv4's type of service.
    pub(crate) type_of_service: u8,
}

/// The flow of most frames that nobody had to look into: untagged IPv4 without options or fragments, TCP or UDP. Lengths are not looked
/// at: a frame that lies about its own has a flow too.
#[inline(always)]
pub(crate) fn plain_flow(packet: &Packet) -> Option<Flow> {
    if packet.headers.l3 != L3::Unread {
        return None;
    }
    let bytes = packet.front::<{ L4 + 4 }>()?;
    let kind = u32::from_be_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
    let fragment = wire::word(bytes, IP + 6) & (wire::ipv4::MORE_FRAGMENTS | wire::ipv4::FRAGMENT_OFFSET);
    let protocol = bytes[IP + 9];
    if kind & 0xffff_ff00 != UNTAGGED_IPV4
        || fragment != 0
        || !matches!(protocol, wire::tcp::PROTOCOL | wire::udp::PROTOCOL)
    {
        return None;
    }
    let ports = u32::from_ne_bytes([bytes[L4], bytes[L4 + 1], bytes[L4 + 2], bytes[L4 + 3]]);
    let addresses = *bytes[IP + 12..].first_chunk().expect("26 bytes are more than 8");
    Some(Flow { hash: ipv4(addresses, ports, protocol), type_of_service: kind as u8 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_neighbouring_flows_spread_over_all_buckets() {
        let mut buckets = [0u32; 64];
        for port in 0..64_000u32 {
            buckets[ipv4([10, 0, 0, 1, 10, 0, 0, 2], port << 16 | 80, 6) as usize % 64] += 1;
        }
        // 1,000 expected in each; six standard deviations are 190.
        assert!(buckets.iter().all(|&count| (810..1190).contains(&count)), "{buckets:?}");
    }

    #[test]
    fn every_field_counts() {
        let mut addresses = [1u8; 32];
        let plain = ipv6(&addresses, 7, 17);
        assert_ne!(plain, ipv6(&addresses, 8, 17));
        assert_ne!(plain, ipv6(&addresses, 7, 6));
        for at in 0..32 {
            addresses[at] ^= 0x40;
            assert_ne!(plain, ipv6(&addresses, 7, 17), "byte {at}");
            addresses[at] ^= 0x40;
        }
        for at in 0..12 {
            let mut macs = [3u8; 12];
            macs[at] ^= 1;
            assert_ne!(other(macs, 0x88cc), other([3; 12], 0x88cc), "byte {at}");
        }
    }
}
