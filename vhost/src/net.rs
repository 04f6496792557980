//! What virtio-net adds to a ring: the features of the device and the header before each frame.
//!
//! The features offered are those we keep: a bit that is not in [`OFFERED`] is refused when a peer chooses it. The names
//! and numbers are those of virtio 1.2 section 5.1.3 and section 6.

use crate::message::F_PROTOCOL_FEATURES;
use switch::offload::{EgressOffloads, F_DATA_VALID, Offload, VNET_HEADER_LEN, VNET_HEADER_MRG_LEN};

/// The device completes partial checksums.
pub const F_CSUM: u64 = 1 << 0;
/// The driver completes partial checksums.
pub const F_GUEST_CSUM: u64 = 1 << 1;
/// The device tells an MTU.
pub const F_MTU: u64 = 1 << 3;
/// The driver takes large TCP frames over IPv4.
pub const F_GUEST_TSO4: u64 = 1 << 7;
/// The driver takes large TCP frames over IPv6.
pub const F_GUEST_TSO6: u64 = 1 << 8;
/// The driver takes large TCP frames with CWR set.
pub const F_GUEST_ECN: u64 = 1 << 9;
/// The device takes large TCP frames over IPv4.
pub const F_HOST_TSO4: u64 = 1 << 11;
/// The device takes large TCP frames over IPv6.
pub const F_HOST_TSO6: u64 = 1 << 12;
/// The device takes large TCP frames with CWR set.
pub const F_HOST_ECN: u64 = 1 << 13;
/// The driver merges buffers: one frame may fill several.
pub const F_MRG_RXBUF: u64 = 1 << 15;
/// The configuration has a status field. QEMU keeps it.
pub const F_STATUS: u64 = 1 << 16;
/// The driver announces itself after a migration. QEMU asks it to.
pub const F_GUEST_ANNOUNCE: u64 = 1 << 21;
/// The driver uses several pairs of queues.
pub const F_MQ: u64 = 1 << 22;
/// The device logs which pages of memory it writes, while the guest is being moved (vhost's own, `VHOST_F_LOG_ALL`).
pub const F_LOG_ALL: u64 = 1 << 26;
/// Frame and header may lie in one buffer, for drivers older than virtio 1.
pub const F_ANY_LAYOUT: u64 = 1 << 27;
/// Descriptors may point at tables of descriptors.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// Either side tells from which entry on it wants to be signalled.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// virtio 1.
pub const F_VERSION_1: u64 = 1 << 32;
/// One ring of descriptors that both sides write, instead of three parts.
pub const F_RING_PACKED: u64 = 1 << 34;
/// Buffers are used in the order in which they were made available.
pub const F_IN_ORDER: u64 = 1 << 35;
/// The driver takes large UDP frames over IPv4.
pub const F_GUEST_USO4: u64 = 1 << 54;
/// The driver takes large UDP frames over IPv6.
pub const F_GUEST_USO6: u64 = 1 << 55;
/// The device takes large UDP frames.
pub const F_HOST_USO: u64 = 1 << 56;

/// Every feature a guest may choose.
///
/// Not there: ACCESS_PLATFORM (addresses are not translated); the control queue, which QEMU serves itself; UFO, which no
/// receiver of ours could cut.
pub const OFFERED: u64 = F_CSUM
    | F_GUEST_CSUM
    | F_MTU
    | F_GUEST_TSO4
    | F_GUEST_TSO6
    | F_GUEST_ECN
    | F_HOST_TSO4
    | F_HOST_TSO6
    | F_HOST_ECN
    | F_MRG_RXBUF
    | F_STATUS
    | F_GUEST_ANNOUNCE
    | F_MQ
    | F_LOG_ALL
    | F_ANY_LAYOUT
    | F_INDIRECT_DESC
    | F_EVENT_IDX
    | F_VERSION_1
    | F_RING_PACKED
    | F_IN_ORDER
    | F_GUEST_USO4
    | F_GUEST_USO6
    | F_HOST_USO
    | F_PROTOCOL_FEATURES;

/// The header of a frame with nothing left to do, `num_buffers` = 1.
static HEADER_PLAIN: [u8; VNET_HEADER_MRG_LEN] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// The same for a frame whose checksum the sender's device vouches for.
static HEADER_VALID: [u8; VNET_HEADER_MRG_LEN] = [F_DATA_VALID, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// What was agreed with the guest about frames and their headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dialect {
    /// Bytes of the header before each frame: 12, or 10 for a driver older than virtio 1 without mergeable buffers.
    pub header_len: usize,
    /// Whether a frame may fill several of the guest's buffers.
    pub is_mergeable: bool,
    /// What the guest finishes by itself.
    pub egress: EgressOffloads,
}

impl Dialect {
    /// Reads it off the features the guest chose.
    pub fn new(features: u64) -> Dialect {
        let has = |bits: u64| features & bits == bits;
        let checksum = has(F_GUEST_CSUM);
        Dialect {
            // virtio 1.2 section 5.1.6.1: the legacy header has no num_buffers unless buffers merge.
            header_len: if has(F_VERSION_1) || has(F_MRG_RXBUF) { VNET_HEADER_MRG_LEN } else { VNET_HEADER_LEN },
            is_mergeable: has(F_MRG_RXBUF),
            // Section 5.1.3.1: each needs GUEST_CSUM; a driver that forgot it does not get them.
            egress: EgressOffloads {
                checksum,
                tso4: checksum && has(F_GUEST_TSO4),
                tso6: checksum && has(F_GUEST_TSO6),
                ecn: checksum && has(F_GUEST_ECN),
                uso: checksum && has(F_GUEST_USO4 | F_GUEST_USO6),
            },
        }
    }

    /// [`Dialect::header`] for a frame with nothing left to do, which is nearly every one; `None` for others.
    ///
    /// A header that was just put together from bytes cannot be loaded by words at once: the processor waits until the
    /// bytes have reached its cache. One that lies in memory can; that was a third of the time of tx.
    #[inline]
    pub fn plain_header(&self, offload: &Offload) -> Option<&'static [u8; VNET_HEADER_MRG_LEN]> {
        if !offload.is_none() {
            return None;
        }
        Some(if offload.checksum_valid && self.egress.checksum { &HEADER_VALID } else { &HEADER_PLAIN })
    }

    /// The header for a frame that has been made to fit [`Dialect::egress`], `num_buffers` = 1.
    #[inline]
    pub fn header(&self, offload: &Offload) -> [u8; VNET_HEADER_MRG_LEN] {
        let mut bytes = offload.to_bytes();
        if !self.egress.checksum {
            // Section 5.1.6.4.1: without GUEST_CSUM the flags are zero, DATA_VALID included.
            bytes[0] = 0;
        }
        bytes
    }
}

/// Bytes of the frame that [`rarp`] makes: the shortest Ethernet has, without its checksum.
pub const RARP_LEN: usize = 60;

/// The broadcast that tells a network where `mac` is now: a reverse ARP request for itself (RFC 903).
pub fn rarp(mac: [u8; 6]) -> [u8; RARP_LEN] {
    let mut frame = [0; RARP_LEN];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    frame[12..14].copy_from_slice(&[0x80, 0x35]);
    // Ethernet, IPv4, six and four bytes of address, operation 3: request reverse.
    frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 3]);
    frame[22..28].copy_from_slice(&mac);
    frame[32..38].copy_from_slice(&mac);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_legacy_driver_without_merging_gets_the_short_header() {
        assert_eq!(Dialect::new(0).header_len, 10);
        assert_eq!(Dialect::new(F_MRG_RXBUF).header_len, 12);
        assert_eq!(Dialect::new(F_VERSION_1).header_len, 12);
    }

    #[test]
    fn offloads_without_guest_checksum_are_not_believed() {
        let all = F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN | F_GUEST_USO4 | F_GUEST_USO6;
        assert_eq!(Dialect::new(all).egress, EgressOffloads::default());
        let egress = Dialect::new(all | F_GUEST_CSUM).egress;
        assert!(egress.checksum && egress.tso4 && egress.tso6 && egress.ecn && egress.uso);
        assert!(!Dialect::new(F_GUEST_CSUM | F_GUEST_USO4).egress.uso, "USO needs both halves");
    }

    #[test]
    fn the_plain_headers_are_those_that_would_be_put_together() {
        for features in [F_VERSION_1, F_VERSION_1 | F_GUEST_CSUM] {
            for checksum_valid in [false, true] {
                let (dialect, offload) = (Dialect::new(features), Offload { checksum_valid, ..Offload::default() });
                assert_eq!(dialect.plain_header(&offload), Some(&dialect.header(&offload)));
            }
        }
        let checksum = Some(switch::offload::PartialChecksum { start: 34, offset: 6 });
        assert_eq!(Dialect::new(F_VERSION_1).plain_header(&Offload { checksum, ..Offload::default() }), None);
    }

    #[test]
    fn a_driver_without_guest_checksum_sees_no_flags() {
        let offload = Offload { checksum_valid: true, ..Offload::default() };
        assert_eq!(Dialect::new(F_VERSION_1).header(&offload)[0], 0);
        assert_eq!(Dialect::new(F_VERSION_1 | F_GUEST_CSUM).header(&offload)[0], 2);
    }
}
