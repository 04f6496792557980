//! Takes the outer headers of a tunnel off, and hands on what they say of congestion.

use super::Opened;
use crate::wire::{ethernet, word};
use switch::batch::Batch;
use switch::checksum::{self, Sum};
use switch::ledger::DropReason;
use switch::packet::Packet;

/// Takes the outer headers off and leaves the inner frame.
pub(super) fn take_off(batch: &mut Batch<'_>, index: usize, opened: &Opened) -> Result<(), DropReason> {
    if batch.packets()[index].len() > opened.end {
        batch.truncate(index, opened.end);
    }
    if opened.checksum_from > 0 {
        verify(batch, index, opened.checksum_from)?;
    }
    if batch.packets()[index].head().len() < opened.header_len + ECN_LEN {
        batch.pull(index, opened.header_len + ECN_LEN)?;
    }
    take_front(&mut batch.packets_mut()[index], opened.header_len, opened.ecn)
}

/// Takes off `len` bytes, where as much as [`mark`] needs of the inner frame lies in the head if it is there. After an
/// error the frame is to be dropped, for it may be open or not; there is none where nothing is left to do for it and the outer mark
/// is not [`CE`].
#[inline(always)]
pub(super) fn take_front(packet: &mut Packet, len: usize, ecn: u8) -> Result<(), DropReason> {
    packet.strip_front(len)?;
    if ecn != NOT_ECT {
        mark(packet.head_mut(), ecn)?;
    }
    Ok(())
}

/// Verifies the checksum over GRE header and payload (RFC 2784 section 2.5).
fn verify(batch: &mut Batch<'_>, index: usize, from: usize) -> Result<(), DropReason> {
    let (packet, tail) = batch.frame(index);
    let mut sum = Sum::default();
    sum.add(packet.head().get(from..).unwrap_or_default());
    for segment in tail {
        sum.add_segment(segment);
    }
    if sum.checksum() == 0 { Ok(()) } else { Err(DropReason::TunnelMalformed) }
}

/// Not capable of congestion marks.
const NOT_ECT: u8 = 0;
/// Capable, with the other of the two code points.
const ECT_1: u8 = 1;
/// Congestion experienced.
pub(super) const CE: u8 = 3;
/// Bytes of an inner frame that its mark lies in: Ethernet, a tag's room not counted, and the first bytes of IP.
pub(super) const ECN_LEN: usize = ethernet::LEN + crate::wire::ipv4::LEN;

/// Passes the outer congestion mark on to the inner frame (RFC 6040 section 4.2, figure 4). Frames that carry no IP, or carry
/// it behind a tag of their own, have no mark.
#[inline(never)]
fn mark(inner: &mut [u8], outer: u8) -> Result<(), DropReason> {
    let Some(front) = inner.first_chunk::<ECN_LEN>() else { return Ok(()) };
    let at = ethernet::LEN;
    let (ethertype, version) = (word(front, 12), front[at] >> 4);
    let mine = match (ethertype, version) {
        (ethernet::TYPE_IPV4, 4) => front[at + 1] & 3,
        (ethernet::TYPE_IPV6, 6) => front[at + 1] >> 4 & 3,
        _ => return Ok(()),
    };
    let marked = match (mine, outer) {
        (NOT_ECT, CE) => return Err(DropReason::TunnelCongested),
        (NOT_ECT | CE, _) => mine,
        (_, CE) => CE,
        (_, ECT_1) => ECT_1,
        _ => mine,
    };
    if marked == mine {
        return Ok(());
    }
    if version == 4 {
        let old = word(inner, at);
        inner[at + 1] = inner[at + 1] & !3 | marked;
        let sum = checksum::updated(word(inner, at + 10), old, word(inner, at));
        inner[at + 10..at + 12].copy_from_slice(&sum.to_be_bytes());
    } else {
        inner[at + 1] = inner[at + 1] & !0x30 | marked << 4;
    }
    Ok(())
}
