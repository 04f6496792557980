//! The TCP header (RFC 9293 section 3.1), as far as a switch reads it.

use super::{WireError, word};

/// IP protocol number.
pub const PROTOCOL: u8 = 6;
/// Bytes of the header without options.
pub const LEN: usize = 20;
/// The checksum field, bytes from the start of the header.
pub const CHECKSUM: usize = 16;

const SOURCE: usize = 0;
const DESTINATION: usize = 2;
const SEQUENCE: usize = 4;
pub(crate) const DATA_OFFSET: usize = 12;
const FLAGS: usize = 13;
const WINDOW: usize = 14;

/// Congestion window reduced (RFC 3168 section 6.1.2).
const FLAG_CWR: u8 = 0x80;

/// A checked fixed header.
#[derive(Clone, Copy)]
pub struct Tcp<'a> {
    bytes: &'a [u8; LEN],
}

impl<'a> Tcp<'a> {
    /// Checks the data offset (RFC 9293 section 3.1). The options need not be there.
    ///
    /// # Errors
    /// [`WireError::Short`] below 20 bytes, [`WireError::Malformed`] for a data offset below five words.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Result<Tcp<'a>, WireError> {
        let bytes = bytes.first_chunk::<LEN>().ok_or(WireError::Short)?;
        let view = Tcp { bytes };
        if view.header_len() < LEN { Err(WireError::Malformed) } else { Ok(view) }
    }

    /// The sender's port.
    pub fn source(&self) -> u16 {
        word(self.bytes, SOURCE)
    }

    /// The receiver's port.
    pub fn destination(&self) -> u16 {
        word(self.bytes, DESTINATION)
    }

    /// Bytes of the header with options, 20 to 60.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.bytes[DATA_OFFSET] >> 4) * 4
    }

    /// Whether CWR is set.
    #[inline]
    pub fn is_cwr(&self) -> bool {
        self.bytes[FLAGS] & FLAG_CWR != 0
    }
}

/// A header to write, without options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpRepr {
    /// The sender's port.
    pub source: u16,
    /// The receiver's port.
    pub destination: u16,
    /// Number of the first byte.
    pub sequence: u32,
    /// The eight flags, FIN lowest.
    pub flags: u8,
    /// Bytes the sender will take.
    pub window: u16,
    /// The checksum field.
    pub checksum: u16,
}

impl TcpRepr {
    /// What a checked header says; options are not kept.
    pub fn parse(view: &Tcp<'_>) -> TcpRepr {
        let bytes = view.bytes;
        TcpRepr {
            source: view.source(),
            destination: view.destination(),
            sequence: u32::from(word(bytes, SEQUENCE)) << 16 | u32::from(word(bytes, SEQUENCE + 2)),
            flags: bytes[FLAGS],
            window: word(bytes, WINDOW),
            checksum: word(bytes, CHECKSUM),
        }
    }

    /// The header's bytes.
    pub fn to_bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[SOURCE..DESTINATION].copy_from_slice(&self.source.to_be_bytes());
        bytes[DESTINATION..SEQUENCE].copy_from_slice(&self.destination.to_be_bytes());
        bytes[SEQUENCE..SEQUENCE + 4].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[DATA_OFFSET] = 0x50;
        bytes[FLAGS] = self.flags;
        bytes[WINDOW..CHECKSUM].copy_from_slice(&self.window.to_be_bytes());
        bytes[CHECKSUM..CHECKSUM + 2].copy_from_slice(&self.checksum.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::{Format, check};
    use proptest::prelude::*;

    impl Format for TcpRepr {
        fn parse(bytes: &[u8]) -> Result<Self, WireError> {
            Tcp::new(bytes).map(|view| TcpRepr::parse(&view))
        }
        fn emit(&self) -> Vec<u8> {
            self.to_bytes().to_vec()
        }
    }

    prop_compose! {
        fn repr()(source: u16, destination: u16, sequence: u32, flags: u8, window: u16, checksum: u16) -> TcpRepr {
            TcpRepr { source, destination, sequence, flags, window, checksum }
        }
    }

    #[test]
    fn tcp_round_trips_and_survives_noise_and_every_truncation() {
        check(repr());
    }

    #[test]
    fn a_data_offset_below_the_fixed_header_is_refused() {
        let mut bytes = [0; LEN];
        bytes[DATA_OFFSET] = 0x40;
        assert_eq!(Tcp::new(&bytes).err(), Some(WireError::Malformed));
    }
}
