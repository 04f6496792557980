//! Packets of a batch into a guest's buffers.

use super::queue::{Piece, Queue, Reserved, State};
use super::{FRAME_CHAINS_MAX, FRAME_MAX, PIECES_MAX, RingSet};
use crate::chain::{ChainError, Direction, INDIRECT, NEXT, WRITE};
use crate::ring::{Entry, Layout, Overrun};
use switch::batch::{BURST, Batch, Fit};
use switch::ledger::{DropReason, Tally};
use switch::offload::{VNET_HEADER_LEN, VNET_HEADER_MRG_LEN};
use switch::packet::Packet;
use switch::segment::{Segment, SegmentMut};
use switch::segmentation::Segmenter;

/// What the long way came to: the chains it took, and whether the frame is in them.
type Slow = (usize, Result<(), DropReason>);

/// The next chains of the receive ring, as they were when looked at, and the room in the first buffer of each.
struct Ahead<'q> {
    entries: [Entry; BURST],
    rooms: [SegmentMut<'q>; BURST],
    count: usize,
    /// Chains taken since.
    taken: usize,
}

impl<'q> Ahead<'q> {
    fn new() -> Ahead<'q> {
        let rooms = [const { SegmentMut::EMPTY }; BURST];
        Ahead { entries: [Entry::default(); BURST], rooms, count: 0, taken: 0 }
    }

    /// The next one.
    #[inline(always)]
    fn next(&mut self) -> Option<(&Entry, &mut SegmentMut<'q>)> {
        if self.taken >= self.count {
            return None;
        }
        Some((self.entries.get(self.taken)?, self.rooms.get_mut(self.taken)?))
    }
}

impl<L: Layout> RingSet<L> {
    /// Sends the picked packets of the batch, in order.
    #[inline]
    pub(super) fn send_burst(
        &self,
        queue: &Queue<L>,
        state: &mut State<L>,
        batch: &mut Batch<'_>,
        picks: &[u8],
        tally: &mut Tally,
    ) -> Result<(), Overrun> {
        let mut ahead = Ahead::new();
        self.look_ahead(queue, state, &mut ahead, picks.len())?;
        for (at, &pick) in picks.iter().enumerate() {
            let (packet, tail) = batch.frame(usize::from(pick));
            if packet.offload.is_none()
                && let Some((entry, room)) = ahead.next()
                && let Some(len) = self.send_shortly(entry, room, packet, tail)
            {
                queue.ring.take(&mut state.place, entry.alone(), len);
                ahead.taken += 1;
                tally.moved(packet.len());
                continue;
            }
            self.send_otherwise(queue, state, &mut ahead, batch, &picks[at..], tally)?;
        }
        Ok(())
    }

    /// The first of `picks`, where the short way is not obvious: its offloads are to be finished first, there are more frames
    /// than buffers were known, or it does not go into one of them.
    #[inline(never)]
    fn send_otherwise<'q>(
        &self,
        queue: &'q Queue<L>,
        state: &mut State<L>,
        ahead: &mut Ahead<'q>,
        batch: &mut Batch<'_>,
        picks: &[u8],
        tally: &mut Tally,
    ) -> Result<(), Overrun> {
        let pick = usize::from(picks[0]);
        match batch.fit(pick, self.dialect.egress) {
            Fit::AsIs => {}
            Fit::Cut => {
                let cut = batch.cut(pick, self.dialect.egress);
                ahead.taken += self.send_segments(queue, state, cut, tally)?;
                return Ok(());
            }
            Fit::Drop(reason) => {
                tally.drop(reason);
                return Ok(());
            }
        }
        if ahead.next().is_none() {
            self.look_ahead(queue, state, ahead, picks.len())?;
        }
        let (packet, tail) = batch.frame(pick);
        let Some((entry, room)) = ahead.next() else {
            tally.drop(DropReason::RxRingFull);
            return Ok(());
        };
        if let Some(len) = self.send_shortly(entry, room, packet, tail) {
            queue.ring.take(&mut state.place, entry.alone(), len);
            ahead.taken += 1;
            tally.moved(packet.len());
            return Ok(());
        }
        let (chains, outcome) = self.send_slowly(queue, state, packet, tail)?;
        ahead.taken += chains;
        match outcome {
            Ok(()) => tally.moved(packet.len()),
            Err(reason) => tally.drop(reason),
        }
        Ok(())
    }

    /// Reads the entries for the next `wanted` packets, and finds and sends for their buffers.
    #[inline]
    fn look_ahead<'q>(
        &self,
        queue: &'q Queue<L>,
        state: &mut State<L>,
        ahead: &mut Ahead<'q>,
        wanted: usize,
    ) -> Result<(), Overrun> {
        self.make_room(queue, state);
        let Ahead { entries, rooms, count, taken } = ahead;
        (*count, *taken) = (queue.ring.look(&mut state.place, &mut entries[..wanted.min(BURST)])?, 0);
        for (entry, room) in entries[..*count].iter().zip(rooms) {
            *room = match queue.ring.memory().writable(&mut state.hint, entry.address, entry.len) {
                Some(found) => found,
                None => SegmentMut::EMPTY,
            };
            room.prefetch_front();
        }
        Ok(())
    }

    /// Shows the guest what was given back, if else one more frame could not be.
    #[inline]
    fn make_room(&self, queue: &Queue<L>, state: &mut State<L>) {
        if queue.ring.room(&state.place) < FRAME_CHAINS_MAX {
            queue.show::<false>(state);
        }
    }

    /// One frame into one buffer: the short way; answers the bytes written. `None` if it does not go, and nothing was written.
    #[inline(always)]
    fn send_shortly(
        &self,
        entry: &Entry,
        room: &mut SegmentMut<'_>,
        packet: &Packet,
        tail: &[Segment<'_>],
    ) -> Option<u32> {
        if entry.flags & (NEXT | INDIRECT | WRITE) != WRITE {
            return None;
        }
        let made;
        let header = match self.dialect.plain_header(&packet.offload) {
            Some(header) => header,
            None => {
                made = self.dialect.header(&packet.offload);
                &made
            }
        };
        let rest = packet.tail_len() as usize;
        let fits = if self.dialect.header_len == VNET_HEADER_MRG_LEN {
            room.write_front(header, packet.head(), rest)
        } else {
            let short = header.first_chunk::<VNET_HEADER_LEN>().expect("ten of twelve");
            room.write_front(short, packet.head(), rest)
        };
        if !fits {
            return None;
        }
        for segment in tail {
            room.write_from(segment);
        }
        let written = (self.dialect.header_len + packet.len()) as u32;
        if let Some(log) = &self.log {
            log.mark(entry.address, u64::from(written));
        }
        Some(written)
    }

    /// A large frame for a guest that does not take it whole, in segments; answers the chains taken.
    #[cold]
    #[inline(never)]
    fn send_segments(
        &self,
        queue: &Queue<L>,
        state: &mut State<L>,
        mut cut: Segmenter<'_, '_>,
        tally: &mut Tally,
    ) -> Result<usize, Overrun> {
        tally.cut_into(cut.count());
        let mut taken = 0;
        while let Some((packet, tail)) = cut.next_segment() {
            let (chains, outcome) = self.send_slowly(queue, state, packet, tail)?;
            taken += chains;
            match outcome {
                Ok(()) => tally.moved(packet.len()),
                Err(DropReason::RxRingFull) => {
                    tally.drop_many(DropReason::RxRingFull, 1 + cut.remaining());
                    break;
                }
                Err(reason) => tally.drop(reason),
            }
        }
        Ok(taken)
    }

    /// One frame into one or more chains of the guest's receive ring: the long way.
    ///
    /// Reserves first and copies then, so that a frame that does not fit leaves nothing behind. A chain that is broken
    /// is given back empty, with those reserved before it: the guest made it, and it must not stand in the way for ever.
    #[cold]
    #[inline(never)]
    fn send_slowly(
        &self,
        queue: &Queue<L>,
        state: &mut State<L>,
        packet: &Packet,
        tail: &[Segment<'_>],
    ) -> Result<Slow, Overrun> {
        self.make_room(queue, state);
        let ring = &queue.ring;
        let wanted = self.dialect.header_len + packet.len();
        let mut capacity = 0usize;
        let mut cursor = ring.cursor(&state.place);
        state.reserved.clear();
        state.pieces.clear();
        while capacity < wanted {
            let count = state.reserved.len();
            if count > 0 && !self.dialect.is_mergeable || count == FRAME_CHAINS_MAX {
                return Ok((0, Err(DropReason::BufferTooSmall)));
            }
            let State { place, hint, chain, .. } = &mut *state;
            let Some((taken, walked)) = ring.walk(place, &mut cursor, hint, Direction::ToGuest, chain)? else {
                return Ok((0, Err(DropReason::RxRingFull)));
            };
            let reserved = walked.map_err(ChainError::drop_reason).and_then(|()| reserve(ring, state));
            match reserved {
                Ok(0) | Err(DropReason::BadDescriptor | DropReason::TooManySegments) => {
                    state.reserved.push(Reserved { taken, capacity: 0 });
                    for Reserved { taken, .. } in state.reserved.drain(..) {
                        ring.take(&mut state.place, taken, 0);
                    }
                    return Ok((count + 1, Err(DropReason::BadDescriptor)));
                }
                Err(reason) => return Ok((0, Err(reason))),
                Ok(len) => {
                    state.reserved.push(Reserved { taken, capacity: len });
                    capacity += len as usize;
                }
            }
        }
        let mut header = self.dialect.header(&packet.offload);
        if self.dialect.header_len == VNET_HEADER_MRG_LEN {
            header[VNET_HEADER_LEN..].copy_from_slice(&(state.reserved.len() as u16).to_le_bytes());
        }

        let mut source = FrameSource { front: [&header[..self.dialect.header_len], packet.head()], tail, skip: 0 };
        for &Piece { address, len } in &state.pieces {
            let room = ring.memory().writable(&mut state.hint, address, len);
            let mut room = room.expect("reserve translated this piece and the memory table never changes");
            source.fill(&mut room);
            if let Some(log) = &self.log {
                log.mark(address, u64::from(len - room.len()));
            }
        }
        let mut left = wanted as u32;
        let chains = state.reserved.len();
        for Reserved { taken, capacity } in state.reserved.drain(..) {
            let len = left.min(capacity);
            left -= len;
            ring.take(&mut state.place, taken, len);
        }
        Ok((chains, Ok(())))
    }
}

/// Puts the pieces of the chain that was just walked behind those reserved; answers its capacity, bytes.
fn reserve<L: Layout>(ring: &L, state: &mut State<L>) -> Result<u32, DropReason> {
    let mut capacity = 0u32;
    for buffer in state.chain.buffers() {
        // No frame needs more, and so no sum overflows.
        let (mut address, mut left) = (buffer.address, buffer.len.min(2 * FRAME_MAX as u32));
        while left > 0 {
            let piece = ring.memory().writable(&mut state.hint, address, left).ok_or(DropReason::BadDescriptor)?;
            if state.pieces.len() == PIECES_MAX {
                return Err(DropReason::BufferTooSmall);
            }
            state.pieces.push(Piece { address, len: piece.len() });
            address = address.wrapping_add(u64::from(piece.len()));
            left -= piece.len();
            capacity += piece.len();
        }
    }
    Ok(capacity)
}

/// Header, head and tail of a frame, handed out in pieces of any size.
struct FrameSource<'a> {
    front: [&'a [u8]; 2],
    tail: &'a [Segment<'a>],
    /// Bytes of the tail's first segment that are gone.
    skip: u32,
}

impl FrameSource<'_> {
    /// Writes as much of the rest as `room` takes.
    fn fill(&mut self, room: &mut SegmentMut<'_>) {
        for part in &mut self.front {
            *part = &part[room.write(part)..];
        }
        while let Some((segment, rest)) = self.tail.split_first()
            && !room.is_empty()
        {
            self.skip += room.write_from(&segment.skip(self.skip));
            if self.skip == segment.len() {
                (self.tail, self.skip) = (rest, 0);
            }
        }
    }
}
