//! What ICMP (RFC 792) and ICMPv6 (RFC 4443 section 2.1) messages have in common: type, code, checksum.

use super::{WireError, word};

/// IP protocol number of ICMP.
pub const PROTOCOL: u8 = 1;
/// IP protocol number of ICMPv6.
pub const PROTOCOL_V6: u8 = 58;
/// Bytes of the common header.
pub const LEN: usize = 4;

const TYPE: usize = 0;
const CODE: usize = 1;
const CHECKSUM: usize = 2;

/// A checked common header.
#[derive(Clone, Copy)]
pub struct Icmp<'a> {
    bytes: &'a [u8; LEN],
}

impl<'a> Icmp<'a> {
    /// Checks the length; every type and code is legal to us.
    ///
    /// # Errors
    /// [`WireError::Short`] below 4 bytes.
    pub fn new(bytes: &'a [u8]) -> Result<Icmp<'a>, WireError> {
        bytes.first_chunk().map(|bytes| Icmp { bytes }).ok_or(WireError::Short)
    }

    /// The message's type.
    pub fn kind(&self) -> u8 {
        self.bytes[TYPE]
    }

    /// The type's code.
    pub fn code(&self) -> u8 {
        self.bytes[CODE]
    }
}

/// A common header to write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IcmpRepr {
    /// The message's type.
    pub kind: u8,
    /// The type's code.
    pub code: u8,
    /// The checksum field.
    pub checksum: u16,
}

impl IcmpRepr {
    /// What a checked header says.
    pub fn parse(view: &Icmp<'_>) -> IcmpRepr {
        IcmpRepr { kind: view.kind(), code: view.code(), checksum: word(view.bytes, CHECKSUM) }
    }

    /// The header's bytes.
    pub fn to_bytes(&self) -> [u8; LEN] {
        let [high, low] = self.checksum.to_be_bytes();
        [self.kind, self.code, high, low]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::{Format, check};
    use proptest::prelude::*;

    impl Format for IcmpRepr {
        fn parse(bytes: &[u8]) -> Result<Self, WireError> {
            Icmp::new(bytes).map(|view| IcmpRepr::parse(&view))
        }
        fn emit(&self) -> Vec<u8> {
            self.to_bytes().to_vec()
        }
    }

    prop_compose! {
        fn repr()(kind: u8, code: u8, checksum: u16) -> IcmpRepr {
            IcmpRepr { kind, code, checksum }
        }
    }

    #[test]
    fn icmp_round_trips_and_survives_noise_and_every_truncation() {
        check(repr());
    }
}
