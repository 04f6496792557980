//! The GRE header (RFC 2784) with a key (RFC 2890), between IP and the inner Ethernet frame.

use super::{WireError, word};

/// IP protocol number.
pub const PROTOCOL: u8 = 47;
/// Bytes of the header that we send: with a key and nothing else.
pub const LEN: usize = 8;
/// Protocol type of an Ethernet frame, "Transparent Ethernet Bridging" (RFC 7637 section 3.2, too).
pub const TYPE_ETHERNET: u16 = 0x6558;

const FLAGS: usize = 0;
const PROTOCOL_TYPE: usize = 2;
/// C: a checksum and a reserved word follow (RFC 2784 section 2.1).
const HAS_CHECKSUM: u16 = 0x8000;
/// K: a key follows (RFC 2890 section 2.1).
pub(crate) const HAS_KEY: u16 = 0x2000;
/// S: a sequence number follows (RFC 2890 section 2.2).
const HAS_SEQUENCE: u16 = 0x1000;
/// Bits 1, 4 and 5: "a receiver MUST discard a packet where any of bits 1-5 are non-zero, unless that receiver implements RFC
/// 1701" (RFC 2784 section 2.3); RFC 2890 gives bits 2 and 3 a meaning.
const MUST_BE_ZERO: u16 = 0x4c00;
const VERSION: u16 = 0x0007;

/// A checked header; its optional fields are there.
#[derive(Clone, Copy)]
pub struct Gre<'a> {
    bytes: &'a [u8],
}

impl<'a> Gre<'a> {
    /// Checks flags, version and protocol type, and that there is a key. Bits 6 to 12 are ignored on receipt (RFC 2784 section
    /// 2.3), sequence numbers too: order is the business of the frames' own protocols.
    ///
    /// # Errors
    /// [`WireError::Short`] if the bytes end inside the header; [`WireError::Malformed`] for bits that must be zero, another
    /// version, no key, or a payload that is no Ethernet frame.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Result<Gre<'a>, WireError> {
        if bytes.len() < LEN {
            return Err(WireError::Short);
        }
        let view = Gre { bytes };
        if view.flags() & (MUST_BE_ZERO | VERSION | HAS_KEY) != HAS_KEY || word(bytes, PROTOCOL_TYPE) != TYPE_ETHERNET {
            return Err(WireError::Malformed);
        }
        if bytes.len() < view.header_len() {
            return Err(WireError::Short);
        }
        Ok(view)
    }

    #[inline]
    fn flags(&self) -> u16 {
        word(self.bytes, FLAGS)
    }

    /// Whether a checksum over header and payload is there, to be verified.
    #[inline]
    pub fn has_checksum(&self) -> bool {
        self.flags() & HAS_CHECKSUM != 0
    }

    /// Bytes of the header, 8 to 16.
    #[inline]
    pub fn header_len(&self) -> usize {
        LEN + if self.has_checksum() { 4 } else { 0 } + if self.flags() & HAS_SEQUENCE != 0 { 4 } else { 0 }
    }

    /// The key.
    #[inline]
    pub fn key(&self) -> u32 {
        let at = if self.has_checksum() { 8 } else { 4 };
        u32::from(word(self.bytes, at)) << 16 | u32::from(word(self.bytes, at + 2))
    }
}

/// A header to write: a key and nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GreRepr {
    /// The key.
    pub key: u32,
}

impl GreRepr {
    /// What a checked header says, but for checksum and sequence number.
    pub fn parse(view: &Gre<'_>) -> GreRepr {
        GreRepr { key: view.key() }
    }

    /// The header's bytes.
    #[inline]
    pub fn to_bytes(&self) -> [u8; LEN] {
        let ([high, low], [a, b, c, d]) = (TYPE_ETHERNET.to_be_bytes(), self.key.to_be_bytes());
        [(HAS_KEY >> 8) as u8, 0, high, low, a, b, c, d]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::{Format, check};
    use proptest::prelude::*;

    impl Format for GreRepr {
        fn parse(bytes: &[u8]) -> Result<Self, WireError> {
            Gre::new(bytes).map(|view| GreRepr::parse(&view))
        }
        fn emit(&self) -> Vec<u8> {
            self.to_bytes().to_vec()
        }
    }

    #[test]
    fn gre_round_trips_and_survives_noise_and_every_truncation() {
        check(any::<u32>().prop_map(|key| GreRepr { key }));
    }

    #[test]
    fn bits_that_must_be_zero_other_versions_and_no_key_are_refused() {
        let good = GreRepr { key: 5 }.to_bytes();
        for (at, value) in [(0, 0x60), (0, 0x28), (0, 0x24), (1, 0x01), (0, 0x00), (2, 0x08), (3, 0x00)] {
            let mut bytes = good;
            bytes[at] = value;
            assert_eq!(Gre::new(&bytes).err(), Some(WireError::Malformed), "byte {at} = {value:#x}");
        }
    }

    #[test]
    fn checksum_and_sequence_number_move_the_key_and_must_be_there() {
        let bytes = [0xb3, 0xf8, 0x65, 0x58, 9, 9, 0, 0, 0, 0, 0, 7, 1, 1, 1, 1];
        for len in 8..bytes.len() {
            assert_eq!(Gre::new(&bytes[..len]).err(), Some(WireError::Short), "{len} bytes");
        }
        let view = Gre::new(&bytes).unwrap();
        assert_eq!((view.key(), view.header_len(), view.has_checksum()), (7, 16, true));
    }
}
