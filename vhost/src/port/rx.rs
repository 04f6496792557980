//! What a guest sends, into a batch: the front of each frame into the private head, the rest left where it lies.

use super::ahead::{AHEAD, Finder};
use super::queue::{Queue, State};
use super::{ANNOUNCE_SET, FRAME_MAX, FRAME_MIN, RingSet};
use crate::chain::{ChainError, Direction, INDIRECT, NEXT, WRITE};
use crate::net::{RARP_LEN, rarp};
use crate::ring::{Entry, Layout, Overrun, Taken};
use std::sync::atomic::Ordering;
use switch::batch::{BURST, Batch, PacketBuilder};
use switch::ids::{PortIndex, QueueIndex};
use switch::ledger::{DropReason, Tally};
use switch::offload::{F_NEEDS_CSUM, OffloadClaim, VNET_HEADER_LEN, VNET_HEADER_MRG_LEN};
use switch::packet::HEAD_COPY;

/// In the first eight bytes of a header, the bits by which a driver asks for something: one flag, and the whole type of cut.
const ASKS: u64 = F_NEEDS_CSUM as u64 | 0xff << 8;

/// Why a frame was not put into the batch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pause {
    /// The batch has no room.
    Full,
    /// It does not lie in one buffer, or that is broken.
    Unusual,
}

impl<L: Layout> RingSet<L> {
    /// Takes the chains that are there, as many as the batch has room for and at most [`BURST`], broken ones included.
    #[inline]
    pub(super) fn receive_burst<'r>(
        &self,
        queue: &'r Queue<L>,
        (state, entries): (&mut State<L>, &mut [Entry]),
        from: (PortIndex, QueueIndex),
        batch: &mut Batch<'r>,
        tally: &mut Tally,
    ) -> Result<(), Overrun> {
        let ring = &queue.ring;
        let mut left = BURST;
        loop {
            let wanted = batch.room().min(ring.room(&state.place)).min(left);
            let count = ring.look(&mut state.place, &mut entries[..wanted])?;
            if count == 0 {
                return Ok(());
            }
            left -= count;
            let entries = &entries[..count];
            let give_back = |state: &mut State<L>, tally: &mut Tally, entries: &[Entry], bytes: usize| {
                ring.take_all::<true>(&mut state.place, entries);
                tally.moved_many(entries.len(), bytes);
            };
            // The frames of entries before `first` were given back, those of the others before `at` are in the batch, which
            // had `bytes` before them.
            let (mut first, mut at, mut bytes) = (0, 0, batch.bytes());
            let finder = Finder::new(ring.memory(), &mut state.hint);
            entries.iter().take(AHEAD).for_each(|entry| finder.send_for_readable(entry));
            loop {
                let finder = Finder::new(ring.memory(), &mut state.hint);
                let (stopped, pause) = self.put_frames(from, (entries, at), finder, batch);
                at = stopped;
                let Some(pause) = pause else { break };
                give_back(state, tally, &entries[first..at], batch.bytes() - bytes);
                if pause == Pause::Full || !self.receive_slowly(queue, state, from, batch, tally)? {
                    return Ok(());
                }
                at += 1;
                (first, bytes) = (at, batch.bytes());
            }
            give_back(state, tally, &entries[first..], batch.bytes() - bytes);
            // A packed ring is looked at as far as the first linked chain, and there may be more behind it; else this was all.
            if entries[count - 1].flags & NEXT == 0 {
                return Ok(());
            }
        }
    }

    /// Puts the frames of entries from `at` on into the batch, each of which lies in one buffer, as long as that goes; answers
    /// where it stopped, and why it was not at the end. A function of its own, so that all it works on stays in registers.
    #[inline(never)]
    fn put_frames<'r>(
        &self,
        from: (PortIndex, QueueIndex),
        (entries, at): (&[Entry], usize),
        mut finder: Finder<'r, '_>,
        batch: &mut Batch<'r>,
    ) -> (usize, Option<Pause>) {
        let header_len = self.dialect.header_len as u32;
        let mut filler = batch.fill(from.0, from.1);
        for at in at..entries.len() {
            let entry = &entries[at];
            if let Some(later) = entries.get(at + AHEAD) {
                finder.send_for_readable(later);
            }
            let buffer = finder.readable(entry);
            // Too short for a frame wraps to a length that is too long.
            let frame_len = entry.len.wrapping_sub(header_len);
            if entry.flags & (NEXT | INDIRECT | WRITE) == 0
                && frame_len.wrapping_sub(FRAME_MIN) <= FRAME_MAX as u32 - FRAME_MIN
                && buffer.len() == entry.len
                && let Some((low, high)) = buffer.words()
            {
                let frame = buffer.skip(header_len);
                let Some(packet) = filler.put(frame) else { return (at, Some(Pause::Full)) };
                if low & ASKS != 0 {
                    packet.claim = claim_of(OffloadClaim::from_words(low, high));
                }
            } else {
                return (at, Some(Pause::Unusual));
            }
        }
        (entries.len(), None)
    }

    /// One frame that is no single buffer, or a broken one: the long way. False if the batch has no room, or the chain was so
    /// wide that it has cost what a whole burst may.
    #[cold]
    #[inline(never)]
    fn receive_slowly<'r>(
        &self,
        queue: &'r Queue<L>,
        state: &mut State<L>,
        from: (PortIndex, QueueIndex),
        batch: &mut Batch<'r>,
        tally: &mut Tally,
    ) -> Result<bool, Overrun> {
        let Some(mut packet) = batch.start(from.0, from.1) else { return Ok(false) };
        let (taken, claim) = self.gather(queue, state, &mut packet)?;
        match claim {
            Ok(claim) => {
                tally.moved(packet.frame_len());
                packet.commit(claim);
            }
            Err(reason) => {
                drop(packet);
                tally.moved(0);
                tally.drop(reason);
            }
        }
        queue.ring.take(&mut state.place, taken, 0);
        Ok(!taken.is_too_wide())
    }

    /// Walks the next chain and puts what it holds together to a frame, up to its commit.
    fn gather<'r>(
        &self,
        queue: &'r Queue<L>,
        state: &mut State<L>,
        packet: &mut PacketBuilder<'_, 'r>,
    ) -> Result<(Taken, Result<OffloadClaim, DropReason>), Overrun> {
        let ring = &queue.ring;
        let State { place, hint, chain, .. } = state;
        let mut cursor = ring.cursor(place);
        // It was there a moment ago. If it is not now, its guest plays with a ring that it had given away.
        let (taken, walked) = ring.walk(place, &mut cursor, hint, Direction::FromGuest, chain)?.ok_or(Overrun)?;
        let claim = walked.map_err(ChainError::drop_reason).and_then(|()| {
            let frame_len = chain.len().saturating_sub(self.dialect.header_len as u64);
            if frame_len < u64::from(FRAME_MIN) {
                return Err(DropReason::Truncated);
            }
            if frame_len > FRAME_MAX as u64 {
                return Err(DropReason::OverMtu);
            }
            let mut header = [0u8; VNET_HEADER_MRG_LEN];
            let mut header_len = 0;
            for buffer in chain.buffers() {
                let (mut address, mut left) = (buffer.address, buffer.len);
                while left > 0 {
                    // A buffer that crosses from one region into the next comes in two pieces.
                    let mut piece = ring.memory().readable(hint, address, left).ok_or(DropReason::BadDescriptor)?;
                    address = address.wrapping_add(u64::from(piece.len()));
                    left -= piece.len();
                    let missing = self.dialect.header_len - header_len;
                    if missing > 0 {
                        let count = piece.read(&mut header[header_len..][..missing]);
                        header_len += count;
                        piece = piece.skip(count as u32);
                    }
                    let count = (HEAD_COPY - packet.head_len()).min(piece.len() as usize);
                    if count > 0 {
                        piece.read(packet.head(count).ok_or(DropReason::HeadersTooLong)?);
                        piece = piece.skip(count as u32);
                    }
                    if !piece.is_empty() {
                        packet.tail(piece)?;
                    }
                }
            }
            let claim = header.first_chunk::<VNET_HEADER_LEN>().expect("the header array is longer");
            Ok(claim_of(OffloadClaim::from_bytes(claim)))
        });
        Ok((taken, claim))
    }

    /// What the guest sends by a ring that is off.
    #[cold]
    pub(super) fn discard(&self, queue: &Queue<L>, state: &mut State<L>, tally: &mut Tally) {
        for _ in 0..BURST.min(queue.ring.room(&state.place)) {
            let State { place, hint, chain, .. } = &mut *state;
            let mut cursor = queue.ring.cursor(place);
            match queue.ring.walk(place, &mut cursor, hint, Direction::FromGuest, chain) {
                Ok(Some((taken, _))) => {
                    tally.moved(0);
                    tally.drop(DropReason::NotReady);
                    queue.ring.take(place, taken, 0);
                    if taken.is_too_wide() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(Overrun) => return self.break_ring(queue, state),
            }
        }
    }

    /// The announcement of a guest that moved here, as a frame the guest sent.
    #[cold]
    pub(super) fn announce(&self, ingress: PortIndex, index: QueueIndex, batch: &mut Batch<'_>, tally: &mut Tally) {
        let Some(mut packet) = batch.start(ingress, index) else { return };
        let told = self.announce.swap(0, Ordering::Relaxed);
        if told & ANNOUNCE_SET == 0 {
            // The worker of another queue was faster.
            return;
        }
        let [_, _, mac @ ..] = told.to_be_bytes();
        if let Some(head) = packet.head(RARP_LEN) {
            head.copy_from_slice(&rarp(mac));
            packet.commit(OffloadClaim::default());
            tally.moved(RARP_LEN);
        }
    }
}

/// What a driver claims in the header of a frame it sends. Of the flags only "needs checksum" is a driver's to set; any
/// other, "data is valid" above all, would make a guest the judge of its own frames (virtio 1.2 section 5.1.6.2.1).
#[inline]
fn claim_of(claim: OffloadClaim) -> OffloadClaim {
    OffloadClaim { flags: claim.flags & F_NEEDS_CSUM, ..claim }
}
