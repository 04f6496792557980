//! What ICMP (RFC 792) and ICMPv6 (RFC 4443 section 2.1) messages have in common: type, code, checksum; and the one kind that is read
//! to its end, [`TooBig`].

use super::{WireError, word};
use std::net::IpAddr;

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

/// What a router says of a packet that is too long for its next link: "fragmentation needed" (RFC 1191 section 4), or "packet too
/// big" (RFC 4443 section 3.2). Anybody can say so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooBig {
    /// Bytes that the link takes, of L3; 0 from an old router (RFC 1191 section 5).
    pub mtu: u16,
    /// Who sent the packet, by what is quoted of it.
    pub from: IpAddr,
    /// Whom it was for.
    pub to: IpAddr,
    /// Its protocol.
    pub protocol: u8,
    /// What it begins with, if that much is quoted: of UDP the source and the destination port.
    pub l4: Option<[u16; 2]>,
}

impl TooBig {
    /// Reads a message as a raw socket has it: of IPv4 with its header, of IPv6 without. `None`: it is another, or too short.
    pub fn read(message: &[u8], is_ipv4: bool) -> Option<TooBig> {
        let word = |bytes: &[u8], at: usize| Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        let words = |bytes: &[u8]| Some([word(bytes, 0)?, word(bytes, 2)?]);
        if is_ipv4 {
            let icmp = message.get(usize::from(message.first()? & 0xf) * 4..)?;
            // Destination unreachable, fragmentation needed.
            if icmp.get(..2)? != [3, 4] {
                return None;
            }
            let ip = icmp.get(8..)?;
            let address = |at: usize| Some(IpAddr::from(*ip.get(at..)?.first_chunk::<4>()?));
            let l4 = words(ip.get(usize::from(ip.first()? & 0xf) * 4..)?);
            let (mtu, protocol) = (word(icmp, 6)?, *ip.get(9)?);
            Some(TooBig { mtu, from: address(12)?, to: address(16)?, protocol, l4 })
        } else {
            if *message.first()? != 2 {
                return None;
            }
            let mtu = u32::from_be_bytes(*message.get(4..)?.first_chunk()?);
            let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
            let ip = message.get(8..)?;
            let address = |at: usize| Some(IpAddr::from(*ip.get(at..)?.first_chunk::<16>()?));
            let (l4, protocol) = (words(ip.get(40..)?), *ip.get(6)?);
            Some(TooBig { mtu, from: address(8)?, to: address(24)?, protocol, l4 })
        }
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
