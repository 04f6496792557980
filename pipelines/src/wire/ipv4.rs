//! The IPv4 header (RFC 791 section 3.1).
//!
//! The view wants the header with its options; it does not verify the header checksum, because a bridge does not
//! (whoever routes asks [`Ipv4::is_checksum_valid`]).

use super::{WireError, checksum, word};
use std::net::Ipv4Addr;

/// Bytes of the header without options.
pub const LEN: usize = 20;

const VERSION_IHL: usize = 0;
const TOTAL_LEN: usize = 2;
const FRAGMENT: usize = 6;
const HOP_LIMIT: usize = 8;
const PROTOCOL: usize = 9;
const CHECKSUM: usize = 10;
const SOURCE: usize = 12;
const DESTINATION: usize = 16;

/// "More fragments" in the fragment field.
pub(crate) const MORE_FRAGMENTS: u16 = 0x2000;
/// The offset, in units of 8 bytes, in the fragment field.
pub(crate) const FRAGMENT_OFFSET: u16 = 0x1fff;

/// A checked header: version 4, options there, lengths that do not contradict each other.
#[derive(Clone, Copy)]
pub struct Ipv4<'a> {
    bytes: &'a [u8],
}

impl<'a> Ipv4<'a> {
    /// Checks version, header length and total length (RFC 791 section 3.1). The payload need not be there.
    ///
    /// # Errors
    /// [`WireError::Short`] if the bytes end inside the header or its options; [`WireError::Malformed`] for another
    /// version, a header length below five words, or a total length below the header's.
    pub fn new(bytes: &'a [u8]) -> Result<Ipv4<'a>, WireError> {
        if bytes.len() < LEN {
            return Err(WireError::Short);
        }
        let view = Ipv4 { bytes };
        if bytes[VERSION_IHL] >> 4 != 4 || view.header_len() < LEN || view.total_len() < view.header_len() {
            return Err(WireError::Malformed);
        }
        if bytes.len() < view.header_len() {
            return Err(WireError::Short);
        }
        Ok(view)
    }

    /// Bytes of the header with options, 20 to 60.
    pub fn header_len(&self) -> usize {
        usize::from(self.bytes[VERSION_IHL] & 0x0f) * 4
    }

    /// Bytes of header and payload.
    pub fn total_len(&self) -> usize {
        usize::from(word(self.bytes, TOTAL_LEN))
    }

    /// Protocol number of the payload.
    pub fn protocol(&self) -> u8 {
        self.bytes[PROTOCOL]
    }

    /// Routers it may still pass.
    pub fn hop_limit(&self) -> u8 {
        self.bytes[HOP_LIMIT]
    }

    /// Where this fragment's payload belongs, bytes from the start of the whole payload.
    pub fn fragment_offset(&self) -> u16 {
        (word(self.bytes, FRAGMENT) & FRAGMENT_OFFSET) * 8
    }

    /// Whether it is a fragment, the first one included.
    pub fn is_fragment(&self) -> bool {
        word(self.bytes, FRAGMENT) & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0
    }

    /// Whether fragments follow.
    pub fn has_more_fragments(&self) -> bool {
        word(self.bytes, FRAGMENT) & MORE_FRAGMENTS != 0
    }

    /// Who sent it.
    pub fn source(&self) -> Ipv4Addr {
        Ipv4Addr::from(std::array::from_fn::<u8, 4, _>(|index| self.bytes[SOURCE + index]))
    }

    /// Whom it is for.
    pub fn destination(&self) -> Ipv4Addr {
        Ipv4Addr::from(std::array::from_fn::<u8, 4, _>(|index| self.bytes[DESTINATION + index]))
    }

    /// Whether the header's own checksum is right (RFC 791 section 3.1).
    pub fn is_checksum_valid(&self) -> bool {
        checksum(&self.bytes[..self.header_len()]) == 0
    }
}

/// A header to write, without options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv4Repr {
    /// Who sends it.
    pub source: Ipv4Addr,
    /// Whom it is for.
    pub destination: Ipv4Addr,
    /// Protocol number of the payload.
    pub protocol: u8,
    /// Routers it may pass.
    pub hop_limit: u8,
    /// Bytes behind the header, options included; at most 65,515.
    pub payload_len: u16,
    /// Where a fragment's payload belongs, in units of 8 bytes; at most 8,191.
    pub fragment_words: u16,
    /// Whether fragments follow.
    pub has_more_fragments: bool,
}

impl Ipv4Repr {
    /// What a checked header says; options count as payload.
    pub fn parse(view: &Ipv4<'_>) -> Ipv4Repr {
        Ipv4Repr {
            source: view.source(),
            destination: view.destination(),
            protocol: view.protocol(),
            hop_limit: view.hop_limit(),
            payload_len: (view.total_len() - LEN) as u16,
            fragment_words: view.fragment_offset() / 8,
            has_more_fragments: view.has_more_fragments(),
        }
    }

    /// The header's bytes, with its checksum.
    pub fn to_bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[VERSION_IHL] = 0x45;
        bytes[TOTAL_LEN..TOTAL_LEN + 2].copy_from_slice(&(self.payload_len + LEN as u16).to_be_bytes());
        let fragment = self.fragment_words & FRAGMENT_OFFSET | if self.has_more_fragments { MORE_FRAGMENTS } else { 0 };
        bytes[FRAGMENT..FRAGMENT + 2].copy_from_slice(&fragment.to_be_bytes());
        bytes[HOP_LIMIT] = self.hop_limit;
        bytes[PROTOCOL] = self.protocol;
        bytes[SOURCE..DESTINATION].copy_from_slice(&self.source.octets());
        bytes[DESTINATION..].copy_from_slice(&self.destination.octets());
        let sum = checksum(&bytes);
        bytes[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::{Format, check};
    use proptest::prelude::*;

    impl Format for Ipv4Repr {
        fn parse(bytes: &[u8]) -> Result<Self, WireError> {
            Ipv4::new(bytes).map(|view| Ipv4Repr::parse(&view))
        }
        fn emit(&self) -> Vec<u8> {
            self.to_bytes().to_vec()
        }
    }

    prop_compose! {
        fn repr()(source: [u8; 4], destination: [u8; 4], protocol: u8, hop_limit: u8, payload_len in 0..=65_515u16,
                  fragment_words in 0..=FRAGMENT_OFFSET, has_more_fragments: bool) -> Ipv4Repr {
            Ipv4Repr {
                source: source.into(),
                destination: destination.into(),
                protocol,
                hop_limit,
                payload_len,
                fragment_words,
                has_more_fragments,
            }
        }
    }

    fn sample() -> Ipv4Repr {
        Ipv4Repr {
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 0, 2].into(),
            protocol: 17,
            hop_limit: 64,
            payload_len: 8,
            fragment_words: 0,
            has_more_fragments: false,
        }
    }

    #[test]
    fn ipv4_round_trips_and_survives_noise_and_every_truncation() {
        check(repr());
    }

    #[test]
    fn the_checksum_written_is_valid_and_one_flipped_bit_is_noticed() {
        let mut bytes = sample().to_bytes();
        assert!(Ipv4::new(&bytes).unwrap().is_checksum_valid());
        bytes[SOURCE] ^= 1;
        assert!(!Ipv4::new(&bytes).unwrap().is_checksum_valid());
    }

    #[test]
    fn contradicting_lengths_and_other_versions_are_refused() {
        for (at, value) in [(VERSION_IHL, 0x65), (VERSION_IHL, 0x44), (TOTAL_LEN + 1, 19)] {
            let mut bytes = sample().to_bytes();
            bytes[at] = value;
            assert_eq!(Ipv4::new(&bytes).err(), Some(WireError::Malformed), "byte {at} = {value:#x}");
        }
    }

    #[test]
    fn options_must_be_there() {
        let mut bytes = sample().to_bytes().to_vec();
        bytes[VERSION_IHL] = 0x46;
        assert_eq!(Ipv4::new(&bytes).err(), Some(WireError::Short));
        bytes.extend([1, 1, 1, 0]);
        assert_eq!(Ipv4::new(&bytes).unwrap().header_len(), 24);
    }
}
