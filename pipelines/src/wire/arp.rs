//! ARP for IPv4 over Ethernet (RFC 826). Other hardware or protocol types are none that we parse.

use super::{WireError, word};
use std::net::Ipv4Addr;
use switch::ids::MacAddr;

/// Bytes of the packet.
pub const LEN: usize = 28;

const HARDWARE_TYPE: usize = 0;
const PROTOCOL_TYPE: usize = 2;
const HARDWARE_LEN: usize = 4;
const PROTOCOL_LEN: usize = 5;
const OPERATION: usize = 6;
const SENDER_MAC: usize = 8;
const SENDER_IP: usize = 14;
const TARGET_MAC: usize = 18;
const TARGET_IP: usize = 24;

/// Hardware type Ethernet, protocol type IPv4 and both address lengths (RFC 826, "Packet format"): the first six bytes.
const ETHERNET_IPV4: [u8; OPERATION] = [0, 1, 0x08, 0x00, 6, 4];
const _: () = assert!(HARDWARE_TYPE == 0 && PROTOCOL_TYPE == 2 && HARDWARE_LEN == 4 && PROTOCOL_LEN == 5);

/// `ares_op$REQUEST` (RFC 826).
pub const REQUEST: u16 = 1;
/// `ares_op$REPLY` (RFC 826).
pub const REPLY: u16 = 2;

/// A checked packet.
#[derive(Clone, Copy)]
pub struct Arp<'a> {
    bytes: &'a [u8; LEN],
}

impl<'a> Arp<'a> {
    /// Checks length, types and address lengths.
    ///
    /// # Errors
    /// [`WireError::Short`] below 28 bytes, [`WireError::Malformed`] for anything but IPv4 over Ethernet.
    pub fn new(bytes: &'a [u8]) -> Result<Arp<'a>, WireError> {
        let bytes = bytes.first_chunk::<LEN>().ok_or(WireError::Short)?;
        if bytes[..OPERATION] != ETHERNET_IPV4 {
            return Err(WireError::Malformed);
        }
        Ok(Arp { bytes })
    }

    /// [`REQUEST`], [`REPLY`] or something else.
    pub fn operation(&self) -> u16 {
        word(self.bytes, OPERATION)
    }

    /// The sender's MAC.
    pub fn sender_mac(&self) -> MacAddr {
        self.mac(SENDER_MAC)
    }

    /// The sender's IPv4 address.
    pub fn sender_ip(&self) -> Ipv4Addr {
        self.ip(SENDER_IP)
    }

    /// The target's MAC; zero in a request.
    pub fn target_mac(&self) -> MacAddr {
        self.mac(TARGET_MAC)
    }

    /// The IPv4 address asked for.
    pub fn target_ip(&self) -> Ipv4Addr {
        self.ip(TARGET_IP)
    }

    fn mac(&self, at: usize) -> MacAddr {
        MacAddr(std::array::from_fn(|index| self.bytes[at + index]))
    }

    fn ip(&self, at: usize) -> Ipv4Addr {
        Ipv4Addr::from(std::array::from_fn::<u8, 4, _>(|index| self.bytes[at + index]))
    }
}

/// A packet to write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArpRepr {
    /// [`REQUEST`] or [`REPLY`].
    pub operation: u16,
    /// The sender's MAC.
    pub sender_mac: MacAddr,
    /// The sender's IPv4 address.
    pub sender_ip: Ipv4Addr,
    /// The target's MAC; zero in a request.
    pub target_mac: MacAddr,
    /// The target's IPv4 address.
    pub target_ip: Ipv4Addr,
}

impl ArpRepr {
    /// What a checked packet says.
    pub fn parse(view: &Arp<'_>) -> ArpRepr {
        ArpRepr {
            operation: view.operation(),
            sender_mac: view.sender_mac(),
            sender_ip: view.sender_ip(),
            target_mac: view.target_mac(),
            target_ip: view.target_ip(),
        }
    }

    /// The packet's bytes.
    pub fn to_bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..OPERATION].copy_from_slice(&ETHERNET_IPV4);
        bytes[OPERATION..SENDER_MAC].copy_from_slice(&self.operation.to_be_bytes());
        bytes[SENDER_MAC..SENDER_IP].copy_from_slice(&self.sender_mac.0);
        bytes[SENDER_IP..TARGET_MAC].copy_from_slice(&self.sender_ip.octets());
        bytes[TARGET_MAC..TARGET_IP].copy_from_slice(&self.target_mac.0);
        bytes[TARGET_IP..].copy_from_slice(&self.target_ip.octets());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::{Format, check};
    use proptest::prelude::*;

    impl Format for ArpRepr {
        fn parse(bytes: &[u8]) -> Result<Self, WireError> {
            Arp::new(bytes).map(|view| ArpRepr::parse(&view))
        }
        fn emit(&self) -> Vec<u8> {
            self.to_bytes().to_vec()
        }
    }

    prop_compose! {
        fn repr()(operation: u16, sender_mac: [u8; 6], sender_ip: [u8; 4], target_mac: [u8; 6], target_ip: [u8; 4])
            -> ArpRepr {
            ArpRepr {
                operation,
                sender_mac: MacAddr(sender_mac),
                sender_ip: sender_ip.into(),
                target_mac: MacAddr(target_mac),
                target_ip: target_ip.into(),
            }
        }
    }

    #[test]
    fn arp_round_trips_and_survives_noise_and_every_truncation() {
        check(repr());
    }

    #[test]
    fn arp_for_other_hardware_is_refused() {
        let mut bytes = [0; LEN];
        bytes[..6].copy_from_slice(&[0, 6, 8, 0, 6, 4]);
        assert_eq!(Arp::new(&bytes).err(), Some(WireError::Malformed));
    }
}
