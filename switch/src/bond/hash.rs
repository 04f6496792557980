//! By which link of several a flow goes: a hash over the headers that tell flows apart.
//!
//! All frames of one flow must hash alike, so what some of them lack is left out for all: a fragment has no ports, and neither
//! have its fellows that still show them (the first one). The policies are those of Linux's bonding driver
//! (`xmit_hash_policy`). Frames in tunnels spread by the outer source port, which carries the inner flow's entropy (RFC 7348
//! section 5). Pure; reads a frame's head and bounds every look.

/// What of a frame chooses its link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HashPolicy {
    /// MAC addresses and EtherType.
    Layer2,
    /// And IP addresses.
    Layer23,
    /// IP addresses, and ports of TCP and UDP; without IP as [`HashPolicy::Layer2`].
    Layer34,
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const TAGS_MAX: usize = 2;

impl HashPolicy {
    /// The hash of a frame that begins with `head`.
    #[inline]
    pub fn hash(self, head: &[u8]) -> u32 {
        let mut hash = Hash(0);
        let Some((l3, ethertype)) = behind_tags(head) else {
            hash.add(head);
            return hash.end();
        };
        let ip = if self == HashPolicy::Layer2 { None } else { Ip::find(head, l3, ethertype) };
        if self != HashPolicy::Layer34 || ip.is_none() {
            hash.add(&head[..12]);
            hash.add(&ethertype.to_be_bytes());
        }
        if let Some(ip) = ip {
            hash.add(ip.addresses);
            if self == HashPolicy::Layer34 {
                hash.add(&[ip.protocol]);
                hash.add(ip.ports);
            }
        }
        hash.end()
    }
}

/// Where the header behind the tags begins, and its EtherType.
fn behind_tags(head: &[u8]) -> Option<(usize, u16)> {
    let word = |at: usize| head.get(at..at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]));
    let (mut at, mut ethertype) = (14, word(12)?);
    for _ in 0..TAGS_MAX {
        if matches!(ethertype, 0x8100 | 0x88a8) {
            ethertype = word(at + 2)?;
            at += 4;
        }
    }
    Some((at, ethertype))
}

struct Ip<'a> {
    addresses: &'a [u8],
    protocol: u8,
    /// Source and destination; empty where there are none.
    ports: &'a [u8],
}

impl<'a> Ip<'a> {
    fn find(head: &'a [u8], at: usize, ethertype: u16) -> Option<Ip<'a>> {
        let (addresses, protocol, l4, is_fragment) = match ethertype {
            0x0800 => {
                let header = head.get(at..at + 20)?;
                let len = usize::from(header[0] & 0xf) * 4;
                (&header[12..20], header[9], at + len, u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0)
            }
            0x86dd => {
                let header = head.get(at..at + 40)?;
                // Extension headers are no ports: a fragment's among them.
                (&header[8..40], header[6], at + 40, false)
            }
            _ => return None,
        };
        let has_ports = matches!(protocol, TCP | UDP) && !is_fragment;
        let ports = head.get(l4..l4 + 4).filter(|_| has_ports).unwrap_or_default();
        Some(Ip { addresses, protocol, ports })
    }
}

/// Multiplies and folds, eight bytes at a time: good enough to spread flows, and a handful of cycles.
struct Hash(u64);

impl Hash {
    #[inline]
    fn add(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            let mixed = u128::from(self.0 ^ u64::from_le_bytes(word) ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
            self.0 = (mixed >> 64) as u64 ^ mixed as u64;
        }
    }

    #[inline]
    fn end(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// UDP over IPv4 with this source port, fragment field and number of tags.
    fn frame(source: [u8; 4], port: u16, fragment: u16, tags: usize) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        (0..tags).for_each(|_| frame.extend([0x81, 0, 0, 7]));
        frame.extend([8, 0, 0x45, 0, 0, 60, 0, 0]);
        frame.extend(fragment.to_be_bytes());
        frame.extend([64, UDP, 0, 0]);
        frame.extend(source);
        frame.extend([192, 0, 2, 2]);
        frame.extend(port.to_be_bytes());
        frame.extend([0x12, 0xb5, 0, 0, 0, 0]);
        frame
    }

    #[test]
    fn flows_spread_over_links_by_what_the_policy_looks_at_and_by_nothing_else() {
        let by_port = |policy: HashPolicy| {
            (0..1000).filter(move |&port| policy.hash(&frame([10; 4], port, 0, 0)) >> 31 == 0).count()
        };
        let half = by_port(HashPolicy::Layer34);
        assert!((400..600).contains(&half), "{half} of 1000 by one of two links");
        for policy in [HashPolicy::Layer2, HashPolicy::Layer23] {
            assert!(matches!(by_port(policy), 0 | 1000));
        }
        let by_address = |policy: HashPolicy| {
            let hash = |last: u8| policy.hash(&frame([10, 0, 0, last], 1, 0, 1)) >> 31;
            (0..=255).filter(|&last| hash(last) == 0).count()
        };
        assert!((90..166).contains(&by_address(HashPolicy::Layer23)));
        assert!((90..166).contains(&by_address(HashPolicy::Layer34)));
        assert!(matches!(by_address(HashPolicy::Layer2), 0 | 256));
    }

    #[test]
    fn all_fragments_of_a_datagram_go_by_one_link() {
        for policy in [HashPolicy::Layer2, HashPolicy::Layer23, HashPolicy::Layer34] {
            let first = policy.hash(&frame([10; 4], 7, 0x2000, 0));
            assert_eq!(policy.hash(&frame([10; 4], 99, 0x00b9, 0)), first);
        }
    }

    #[test]
    fn a_head_that_ends_anywhere_has_a_hash() {
        let whole = frame([10; 4], 7, 0, 2);
        for len in 0..whole.len() {
            for policy in [HashPolicy::Layer2, HashPolicy::Layer23, HashPolicy::Layer34] {
                policy.hash(&whole[..len]);
            }
        }
    }
}
