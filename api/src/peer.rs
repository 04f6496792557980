//! Who is at the other end of a connection, by address: a peer, and the site it belongs to. Pure.
//!
//! A peer is this host, an IPv4 address, or an IPv6 network of 64 bits, because a host may use all addresses of one
//! (RFC 4291 section 2.5.4). A site is what one owner may have many peers of: 48 bits of an IPv6 address (RFC 6177 section
//! 2), and of an IPv4 address all of it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bits of an IPv6 address that are one peer's.
const PEER_BITS: u32 = 64;
/// Bits of an IPv6 address that are one site's.
const SITE_BITS: u32 = 48;

/// Whoever has an address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Peer(IpAddr);

/// Whoever has the addresses around it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Site(IpAddr);

impl Peer {
    /// This host itself.
    pub const LOOPBACK: Peer = Peer(IpAddr::V4(Ipv4Addr::LOCALHOST));

    /// The one who has this address.
    pub fn of(address: IpAddr) -> Peer {
        match address.to_canonical() {
            // This host has all of 127.0.0.0/8.
            address if address.is_loopback() => Peer::LOOPBACK,
            address => Peer(front(address, PEER_BITS)),
        }
    }

    /// Whether it is this host.
    pub fn is_loopback(self) -> bool {
        self == Peer::LOOPBACK
    }

    /// Where it belongs.
    pub fn site(self) -> Site {
        Site(front(self.0, SITE_BITS))
    }
}

/// The first bits of an IPv6 address; an IPv4 address as it is.
fn front(address: IpAddr, bits: u32) -> IpAddr {
    match address {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (128 - bits)))),
        address => address,
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V6(address) => write!(to, "{address}/{PEER_BITS}"),
            address => address.fmt(to),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> Peer {
        Peer::of(text.parse().unwrap())
    }

    #[test]
    fn addresses_of_one_host_are_one_peer() {
        let is_one = |one: &str, other: &str| peer(one) == peer(other);
        assert!(is_one("2001:db8::1", "2001:db8::ffff:1"));
        assert!(is_one("10.0.0.1", "::ffff:10.0.0.1"));
        assert!(is_one("127.0.0.1", "127.9.9.9") && is_one("127.0.0.1", "::1"));
        for (one, other) in [("2001:db8::1", "2001:db8:0:1::1"), ("10.0.0.1", "10.0.0.2"), ("::1", "::2")] {
            assert!(!is_one(one, other), "{one} {other}");
        }
    }

    #[test]
    fn networks_of_one_owner_are_one_site() {
        let is_one = |one: &str, other: &str| peer(one).site() == peer(other).site();
        assert!(is_one("2001:db8:7::1", "2001:db8:7:ffff::1"));
        for (one, other) in [("2001:db8:7::1", "2001:db8:8::1"), ("10.0.0.1", "10.0.0.2"), ("127.0.0.1", "10.0.0.1")] {
            assert!(!is_one(one, other), "{one} {other}");
        }
    }
}
