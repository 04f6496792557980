//! Wire formats, each in two levels: a view over bytes that is checked once, and a `Repr` that holds only legal values.
//!
//! A view borrows bytes that begin with the header and may end anywhere behind it; `new` checks everything that the
//! accessors rely on, so they cannot fail. The bytes were written by somebody hostile: each check names the clause it
//! rests on. A `Repr` is what a program wants to say; `to_bytes` writes it. Offsets have one address: the file of their
//! protocol. Nothing here allocates or keeps state. All multi-byte fields are big-endian on the wire.

pub mod arp;
pub mod ethernet;
pub mod geneve;
pub mod gre;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod lacp;
pub mod tcp;
#[cfg(test)]
pub(crate) mod testing;
pub mod udp;
pub mod vxlan;

/// Why bytes are not the header they were taken for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// The bytes end inside the header.
    #[error("the bytes end inside the header")]
    Short,
    /// A field has a value that the format forbids.
    #[error("a field has a value that the format forbids")]
    Malformed,
}

/// The 16-bit field at `at`. The caller has checked that it is there.
#[inline]
pub(crate) fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The ones' complement checksum of whole 16-bit words (RFC 1071), as it is stored. An odd last byte counts as the high one.
pub fn checksum(bytes: &[u8]) -> u16 {
    let (pairs, odd) = bytes.as_chunks::<2>();
    let mut total: u32 = pairs.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum();
    if let [last] = odd {
        total += u32::from(*last) << 8;
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}
