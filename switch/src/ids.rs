//! The small numbers by which the packet path knows things, each its own type.
//!
//! Indices are 0-based and local to this host and this run; the control side maps them to the ids that tenants and
//! operators use. An index is given to a new owner only after everything that remembers the old one was flushed.

use std::fmt;

macro_rules! index {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
        pub struct $name(pub $int);

        impl $name {
            /// As a slice index.
            #[inline]
            pub fn as_usize(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

index! {
    /// A port of this switch. Below [`PORTS_MAX`].
    PortIndex(u16)
}
index! {
    /// A network of this host: the isolation domain of MAC lookups and floods.
    NetworkIndex(u16)
}
index! {
    /// One of a port's receive or transmit queues.
    QueueIndex(u16)
}
index! {
    /// One of the pinned workers.
    WorkerIndex(u8)
}

/// Ports a switch can have. 4,096 keeps every per-port table of a worker inside its L2 cache.
pub const PORTS_MAX: usize = 4096;
/// Networks a host can carry: the index is 16 bits wide in a MAC-table key.
pub const NETWORKS_MAX: usize = 65_535;
/// Receive queues of a port whose load is told apart: as many as a guest has pairs of rings at most.
pub const QUEUES_MAX: usize = 16;
/// Workers a switch can have.
pub const WORKERS_MAX: usize = 64;

/// A MAC-48 address (IEEE 802-2014 section 8.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);

    /// Whether the group bit is set: broadcast and multicast.
    #[inline]
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether all six bytes are zero, which no station has.
    #[inline]
    pub fn is_zero(self) -> bool {
        self.0 == [0; 6]
    }

    /// Whether it is one of 01:80:C2:00:00:00 to 0F, which no bridge forwards (IEEE 802.1Q-2018 table 8-1).
    #[inline]
    pub fn is_link_local_group(self) -> bool {
        self.0[..5] == [0x01, 0x80, 0xc2, 0x00, 0x00] && self.0[5] & 0xf0 == 0
    }

    /// The address in the low 48 bits, first byte highest.
    #[inline]
    pub fn to_u64(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        // Two loads; an array of eight bytes becomes a dozen instructions.
        u64::from(u32::from_be_bytes([a, b, c, d])) << 16 | u64::from(u16::from_be_bytes([e, f]))
    }

    /// The address of the low 48 bits; the reverse of [`MacAddr::to_u64`].
    #[inline]
    pub fn from_u64(bits: u64) -> MacAddr {
        let [_, _, a, b, c, d, e, f] = bits.to_be_bytes();
        MacAddr([a, b, c, d, e, f])
    }
}

/// A MAC-48 address as a number, first byte highest: what the packet path compares and hashes, in one register.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacBits(u64);

impl MacBits {
    /// The first six of these eight bytes as they lie in a frame, read big-endian; the last two are somebody else's.
    #[inline]
    pub fn of_front(word: u64) -> MacBits {
        MacBits(word >> 16)
    }

    /// The number.
    #[inline]
    pub fn to_u64(self) -> u64 {
        self.0
    }

    /// Whether the group bit is set: broadcast and multicast.
    #[inline]
    pub fn is_group(self) -> bool {
        self.0 >> 40 & 1 != 0
    }

    /// Whether all six bytes are zero, which no station has.
    #[inline]
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// Whether it is one of 01:80:C2:00:00:00 to 0F, which no bridge forwards (IEEE 802.1Q-2018 table 8-1).
    #[inline]
    pub fn is_link_local_group(self) -> bool {
        self.0 & !0xf == 0x0180_c200_0000
    }
}

impl From<MacAddr> for MacBits {
    #[inline]
    fn from(mac: MacAddr) -> MacBits {
        MacBits(mac.to_u64())
    }
}

impl From<MacBits> for MacAddr {
    fn from(bits: MacBits) -> MacAddr {
        MacAddr::from_u64(bits.0)
    }
}

impl fmt::Display for MacBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        MacAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for MacBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not six pairs of hexadecimal digits between colons.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{given:?} is no MAC address; write six pairs of hexadecimal digits, like 02:00:00:00:00:01")]
pub struct BadMac {
    /// What was given.
    pub given: String,
}

impl std::str::FromStr for MacAddr {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<MacAddr, BadMac> {
        let bad = || BadMac { given: text.to_owned() };
        let mut bytes = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(bad)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(MacAddr(bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_text_round_trips_and_odd_spellings_are_refused() {
        let mac: MacAddr = "02:ab:00:00:0F:01".parse().unwrap();
        assert_eq!(mac.to_string(), "02:ab:00:00:0f:01");
        assert_eq!(MacAddr::from_u64(mac.to_u64()), mac);
        for text in
            ["", "02:ab:00:00:0f", "02:ab:00:00:0f:01:02", "2:ab:0:0:f:1", "02-ab-00-00-0f-01", "+2:ab:00:00:0f:01"]
        {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }

    #[test]
    fn reserved_bridge_addresses_are_told_from_other_multicast() {
        assert!("01:80:c2:00:00:0e".parse::<MacAddr>().unwrap().is_link_local_group());
        assert!(!"01:80:c2:00:00:10".parse::<MacAddr>().unwrap().is_link_local_group());
        assert!(!MacAddr::BROADCAST.is_link_local_group());
    }

    #[test]
    fn an_address_as_a_number_is_of_the_same_kind() {
        for text in
            ["01:80:c2:00:00:0e", "01:80:c2:00:00:10", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "02:00:00:00:00:01"]
        {
            let mac: MacAddr = text.parse().unwrap();
            let bits = MacBits::from(mac);
            assert_eq!(MacAddr::from(bits), mac);
            assert_eq!(bits.is_group(), mac.is_group(), "{text}");
            assert_eq!(bits.is_zero(), mac.is_zero(), "{text}");
            assert_eq!(bits.is_link_local_group(), mac.is_link_local_group(), "{text}");
        }
        assert_eq!(MacBits::of_front(0x0180_c200_000e_ffff), MacBits::from(MacAddr([1, 0x80, 0xc2, 0, 0, 0x0e])));
    }
}
