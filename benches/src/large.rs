//! A large TCP frame as the parse stage leaves it: to be cut.

use crate::rig::{frames, station};
use switch::batch::{BURST, Batch};
use switch::ids::{PortIndex, QueueIndex};
use switch::offload::{Gso, GsoKind, Offload, OffloadClaim, PartialChecksum};
use switch::packet::{HEAD_COPY, Headers, L3};
use switch::segment::Segment;

/// Bytes of TCP payload.
pub const PAYLOAD: usize = 64_000;
/// Bytes of it in each segment.
pub const SEGMENT: u16 = 1448;
/// Ethernet, IPv4, and TCP with time stamps.
const HEADER_LEN: usize = 14 + 20 + 32;

/// The bytes of the frame.
pub fn frame() -> Vec<u8> {
    let mut frame = frames(0, 1, 60)[0][..34].to_vec();
    debug_assert_eq!(frame[6..12], station(0, 0), "frame 0 is station 0's");
    // Protocol TCP; a header of 32 bytes with ACK set (RFC 9293 section 3.1).
    frame[23] = 6;
    frame.extend([4, 0, 4, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x80, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame.resize(HEADER_LEN, 1);
    frame.resize(HEADER_LEN + PAYLOAD, 0x5a);
    frame
}

/// Makes it the only packet of a batch.
///
/// # Panics
/// If it is shorter than a head.
pub fn put<'r>(batch: &mut Batch<'r>, frame: &'r [u8]) {
    let (head, tail) = frame.split_at(HEAD_COPY);
    batch.clear(BURST, usize::MAX);
    let mut packet = batch.start(PortIndex(0), QueueIndex(0)).unwrap();
    packet.head(head.len()).unwrap().copy_from_slice(head);
    packet.tail(Segment::from(tail)).unwrap();
    packet.commit(OffloadClaim::default());
    let packet = &mut batch.packets_mut()[0];
    packet.headers =
        Headers { ethertype: 0x0800, l3: L3::Ipv4, l3_offset: 14, l4_offset: 34, l4_protocol: 6, ..Headers::default() };
    packet.offload = Offload {
        checksum: Some(PartialChecksum { start: 34, offset: 16 }),
        gso: Some(Gso { kind: GsoKind::Tcp4, size: SEGMENT, header_len: HEADER_LEN as u16, ecn: false }),
        checksum_valid: false,
    };
}
