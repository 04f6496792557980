//! The UDP header (RFC 768).

use super::{WireError, word};

/// IP protocol number.
pub const PROTOCOL: u8 = 17;
/// Bytes of the header.
pub const LEN: usize = 8;
/// The checksum field, bytes from the start of the header.
pub const CHECKSUM: usize = 6;

const SOURCE: usize = 0;
const DESTINATION: usize = 2;
const LENGTH: usize = 4;

/// A checked header.
#[derive(Clone, Copy)]
pub struct Udp<'a> {
    bytes: &'a [u8; LEN],
}

impl<'a> Udp<'a> {
    /// Checks the length field's minimum (RFC 768, "Length"). The payload need not be there.
    ///
    /// # Errors
    /// [`WireError::Short`] below 8 bytes, [`WireError::Malformed`] for a length that does not cover the header.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Result<Udp<'a>, WireError> {
        let bytes = bytes.first_chunk::<LEN>().ok_or(WireError::Short)?;
        let view = Udp { bytes };
        if usize::from(view.length()) < LEN { Err(WireError::Malformed) } else { Ok(view) }
    }

    /// The sender's port.
    pub fn source(&self) -> u16 {
        word(self.bytes, SOURCE)
    }

    /// The receiver's port.
    pub fn destination(&self) -> u16 {
        word(self.bytes, DESTINATION)
    }

    /// Bytes of header and payload.
    #[inline]
    pub fn length(&self) -> u16 {
        word(self.bytes, LENGTH)
    }
}

/// A header to write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UdpRepr {
    /// The sender's port.
    pub source: u16,
    /// The receiver's port.
    pub destination: u16,
    /// Bytes of the payload; at most 65,527.
    pub payload_len: u16,
    /// The checksum field; 0: none (RFC 768).
    pub checksum: u16,
}

impl UdpRepr {
    /// What a checked header says.
    pub fn parse(view: &Udp<'_>) -> UdpRepr {
        UdpRepr {
            source: view.source(),
            destination: view.destination(),
            payload_len: view.length() - LEN as u16,
            checksum: word(view.bytes, CHECKSUM),
        }
    }

    /// The header's bytes.
    pub fn to_bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[SOURCE..DESTINATION].copy_from_slice(&self.source.to_be_bytes());
        bytes[DESTINATION..LENGTH].copy_from_slice(&self.destination.to_be_bytes());
        bytes[LENGTH..CHECKSUM].copy_from_slice(&(self.payload_len + LEN as u16).to_be_bytes());
        bytes[CHECKSUM..].copy_from_slice(&self.checksum.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::{Format, check};
    use proptest::prelude::*;

    impl Format for UdpRepr {
        fn parse(bytes: &[u8]) -> Result<Self, WireError> {
            Udp::new(bytes).map(|view| UdpRepr::parse(&view))
        }
        fn emit(&self) -> Vec<u8> {
            self.to_bytes().to_vec()
        }
    }

    prop_compose! {
        fn repr()(source: u16, destination: u16, payload_len in 0..=65_527u16, checksum: u16) -> UdpRepr {
            UdpRepr { source, destination, payload_len, checksum }
        }
    }

    #[test]
    fn udp_round_trips_and_survives_noise_and_every_truncation() {
        check(repr());
    }
}
