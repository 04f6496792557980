//! The IPv6 header and the walk over its extension headers (RFC 8200 sections 3 and 4).
//!
//! What makes it hard: the chain of extension headers is as long as a sender likes. The walk ends after
//! [`EXTENSIONS_MAX`] of them. Jumbograms (RFC 2675) are not understood: their payload length of 0 is taken at its word.

use super::{WireError, word};
use std::net::Ipv6Addr;

/// Bytes of the fixed header.
pub const LEN: usize = 40;
/// Extension headers that the walk passes. RFC 8200 section 4.1 recommends an order with at most seven.
pub const EXTENSIONS_MAX: usize = 8;

const VERSION: usize = 0;
const PAYLOAD_LEN: usize = 4;
const NEXT_HEADER: usize = 6;
const HOP_LIMIT: usize = 7;
const SOURCE: usize = 8;
const DESTINATION: usize = 24;

/// Hop-by-hop options (RFC 8200 section 4.3).
pub const HOP_BY_HOP: u8 = 0;
/// Routing header (RFC 8200 section 4.4).
pub const ROUTING: u8 = 43;
/// Fragment header (RFC 8200 section 4.5).
pub const FRAGMENT: u8 = 44;
/// Authentication header (RFC 4302 section 2).
pub const AUTHENTICATION: u8 = 51;
/// Nothing follows (RFC 8200 section 4.7).
pub const NO_NEXT_HEADER: u8 = 59;
/// Destination options (RFC 8200 section 4.6).
pub const DESTINATION_OPTIONS: u8 = 60;
/// Mobility header (RFC 6275 section 6.1).
pub const MOBILITY: u8 = 135;
/// Host identity (RFC 7401 section 5.1).
pub const HOST_IDENTITY: u8 = 139;
/// Shim6 (RFC 5533 section 5.1).
pub const SHIM6: u8 = 140;

/// Bytes of the shortest extension header, and the unit of their lengths.
const EXTENSION_LEN_MIN: usize = 8;

/// A checked fixed header.
#[derive(Clone, Copy)]
pub struct Ipv6<'a> {
    bytes: &'a [u8],
}

/// What stands behind the extension headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UpperLayer {
    /// Its protocol number; [`NO_NEXT_HEADER`] for nothing.
    pub protocol: u8,
    /// Where it begins, bytes from the start of the IPv6 header.
    pub offset: usize,
    /// Whether the packet is a fragment, the first one included.
    pub is_fragment: bool,
    /// Whether it is a later fragment, so that no upper-layer header stands at `offset`.
    pub is_later_fragment: bool,
}

impl<'a> Ipv6<'a> {
    /// Checks the version (RFC 8200 section 3). Neither extension headers nor payload need be there.
    ///
    /// # Errors
    /// [`WireError::Short`] below 40 bytes, [`WireError::Malformed`] for another version.
    pub fn new(bytes: &'a [u8]) -> Result<Ipv6<'a>, WireError> {
        if bytes.len() < LEN {
            return Err(WireError::Short);
        }
        if bytes[VERSION] >> 4 != 6 {
            return Err(WireError::Malformed);
        }
        Ok(Ipv6 { bytes })
    }

    /// Bytes behind the fixed header.
    pub fn payload_len(&self) -> usize {
        usize::from(word(self.bytes, PAYLOAD_LEN))
    }

    /// Protocol number of what follows the fixed header.
    pub fn next_header(&self) -> u8 {
        self.bytes[NEXT_HEADER]
    }

    /// Routers it may still pass.
    pub fn hop_limit(&self) -> u8 {
        self.bytes[HOP_LIMIT]
    }

    /// Who sent it.
    pub fn source(&self) -> Ipv6Addr {
        Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|index| self.bytes[SOURCE + index]))
    }

    /// Whom it is for.
    pub fn destination(&self) -> Ipv6Addr {
        Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|index| self.bytes[DESTINATION + index]))
    }

    /// Walks over the extension headers, as far as the view's bytes go.
    ///
    /// # Errors
    /// [`WireError::Short`] if the bytes end inside an extension header, [`WireError::Malformed`] for more than
    /// [`EXTENSIONS_MAX`] of them.
    pub fn upper_layer(&self) -> Result<UpperLayer, WireError> {
        let mut upper =
            UpperLayer { protocol: self.next_header(), offset: LEN, is_fragment: false, is_later_fragment: false };
        for _ in 0..=EXTENSIONS_MAX {
            if !is_extension(upper.protocol) {
                return Ok(upper);
            }
            let header = self.bytes.get(upper.offset..).unwrap_or_default();
            let header: &[u8; EXTENSION_LEN_MIN] = header.first_chunk().ok_or(WireError::Short)?;
            let len = usize::from(header[1]);
            upper.offset += match upper.protocol {
                FRAGMENT => {
                    let field = word(header, 2);
                    upper.is_later_fragment = field & 0xfff8 != 0;
                    // Offset 0 and no more to come: a whole packet in one "atomic" fragment (RFC 6946 section 4).
                    upper.is_fragment |= field & 0xfff9 != 0;
                    EXTENSION_LEN_MIN
                }
                // RFC 4302 section 2.2: in units of 4 bytes, minus 2.
                AUTHENTICATION => (len + 2) * 4,
                // RFC 8200 section 4.2 and followers: in units of 8 bytes, not counting the first.
                _ => (len + 1) * EXTENSION_LEN_MIN,
            };
            upper.protocol = header[0];
            if upper.is_later_fragment {
                return Ok(upper);
            }
        }
        Err(WireError::Malformed)
    }
}

/// Whether a protocol number is that of an extension header that tells its length.
fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS | MOBILITY | HOST_IDENTITY | SHIM6
    )
}

/// A fixed header to write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv6Repr {
    /// Who sends it.
    pub source: Ipv6Addr,
    /// Whom it is for.
    pub destination: Ipv6Addr,
    /// Protocol number of what follows.
    pub next_header: u8,
    /// Routers it may pass.
    pub hop_limit: u8,
    /// Bytes behind the fixed header.
    pub payload_len: u16,
}

impl Ipv6Repr {
    /// What a checked header says.
    pub fn parse(view: &Ipv6<'_>) -> Ipv6Repr {
        Ipv6Repr {
            source: view.source(),
            destination: view.destination(),
            next_header: view.next_header(),
            hop_limit: view.hop_limit(),
            payload_len: view.payload_len() as u16,
        }
    }

    /// The header's bytes; traffic class and flow label are 0.
    pub fn to_bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[VERSION] = 0x60;
        bytes[PAYLOAD_LEN..NEXT_HEADER].copy_from_slice(&self.payload_len.to_be_bytes());
        bytes[NEXT_HEADER] = self.next_header;
        bytes[HOP_LIMIT] = self.hop_limit;
        bytes[SOURCE..DESTINATION].copy_from_slice(&self.source.octets());
        bytes[DESTINATION..].copy_from_slice(&self.destination.octets());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::{Format, check};
    use proptest::prelude::*;

    impl Format for Ipv6Repr {
        fn parse(bytes: &[u8]) -> Result<Self, WireError> {
            let view = Ipv6::new(bytes)?;
            // The walk must survive noise as well; what it finds is checked below.
            let _ = view.upper_layer();
            Ok(Ipv6Repr::parse(&view))
        }
        fn emit(&self) -> Vec<u8> {
            self.to_bytes().to_vec()
        }
    }

    prop_compose! {
        fn repr()(source: [u8; 16], destination: [u8; 16], next_header: u8, hop_limit: u8, payload_len: u16)
            -> Ipv6Repr {
            Ipv6Repr { source: source.into(), destination: destination.into(), next_header, hop_limit, payload_len }
        }
    }

    /// A header whose `next_header` is the first of `chain`, and the extension headers with the bodies given.
    fn packet(chain: &[(u8, &[u8])], last: u8) -> Vec<u8> {
        let source = Ipv6Addr::LOCALHOST;
        let first = chain.first().map_or(last, |(protocol, _)| *protocol);
        let repr = Ipv6Repr { source, destination: source, next_header: first, hop_limit: 64, payload_len: 0 };
        let mut bytes = repr.to_bytes().to_vec();
        for (index, (_, body)) in chain.iter().enumerate() {
            bytes.push(chain.get(index + 1).map_or(last, |(protocol, _)| *protocol));
            bytes.extend(*body);
        }
        bytes
    }

    fn walk(chain: &[(u8, &[u8])]) -> Result<UpperLayer, WireError> {
        Ipv6::new(&packet(chain, 17)).unwrap().upper_layer()
    }

    const PLAIN: &[u8] = &[0, 1, 4, 0, 0, 0, 0];

    #[test]
    fn ipv6_round_trips_and_survives_noise_and_every_truncation() {
        check(repr());
    }

    #[test]
    fn the_walk_passes_headers_of_every_length_unit() {
        let authentication: &[u8] = &[4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let found = walk(&[(HOP_BY_HOP, PLAIN), (AUTHENTICATION, authentication)]).unwrap();
        assert_eq!(
            found,
            UpperLayer { protocol: 17, offset: 40 + 8 + 24, is_fragment: false, is_later_fragment: false }
        );
    }

    #[test]
    fn fragments_are_told_apart_and_an_atomic_one_is_none() {
        let fragment = |field: [u8; 2]| walk(&[(FRAGMENT, &[0, field[0], field[1], 0, 0, 0, 9])]).unwrap();
        let seen = |field| (fragment(field).is_fragment, fragment(field).is_later_fragment);
        assert_eq!(seen([0, 0]), (false, false), "atomic, RFC 6946");
        assert_eq!(seen([0, 1]), (true, false), "first");
        assert_eq!(seen([0, 9]), (true, true), "middle");
        assert_eq!(seen([0, 8]), (true, true), "last");
    }

    #[test]
    fn the_walk_ends_after_the_bound() {
        let chain = vec![(DESTINATION_OPTIONS, PLAIN); EXTENSIONS_MAX];
        assert_eq!(walk(&chain).unwrap().offset, 40 + 8 * EXTENSIONS_MAX);
        let chain = vec![(DESTINATION_OPTIONS, PLAIN); EXTENSIONS_MAX + 1];
        assert_eq!(walk(&chain), Err(WireError::Malformed));
    }

    #[test]
    fn every_truncation_of_a_chain_is_short() {
        let bytes = packet(&[(HOP_BY_HOP, PLAIN), (ROUTING, PLAIN)], 6);
        for len in LEN..bytes.len() {
            assert_eq!(Ipv6::new(&bytes[..len]).unwrap().upper_layer(), Err(WireError::Short), "{len} bytes");
        }
    }
}
