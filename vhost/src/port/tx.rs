//! Packets of a batch into a guest's buffers.

use super::ahead::{AHEAD, Finder};
use super::queue::{Piece, Queue, Reserved, State};
use super::{BYTES_PER_READ, FRAME_CHAINS_MAX, FRAME_MAX, PIECES_MAX, PIECES_PER_SEGMENT, READS_PER_SEGMENT, RingSet};
use crate::chain::{CHAIN_MAX, ChainError, Direction, INDIRECT, NEXT, WRITE};
use crate::ring::{Entry, Layout, Overrun};
use switch::batch::{BURST, Batch, Fit};
use switch::ledger::{DropReason, Tally};
use switch::offload::{VNET_HEADER_LEN, VNET_HEADER_MRG_LEN};
use switch::packet::Packet;
use switch::segment::{Segment, SegmentMut};
use switch::segmentation::Segmenter;

/// How far a run of frames came.
struct Run {
    /// Frames that are in their buffers, from the first on.
    done: usize,
    /// How the frame after them goes to the guest, if it does not simply go into the next buffer.
    pause: Option<Fit>,
}

impl<L: Layout> RingSet<L> {
    /// Sends the picked packets of the batch, in order; `state` has the call's spare reads.
    #[inline]
    pub(super) fn send_burst(
        &self,
        queue: &Queue<L>,
        (state, entries): (&mut State<L>, &mut [Entry]),
        batch: &mut Batch<'_>,
        mut picks: &[u8],
        tally: &mut Tally,
    ) -> Result<(), Overrun> {
        let mut reach = BURST;
        while !picks.is_empty() {
            self.make_room(queue, state);
            let wanted = picks.len().min(reach);
            let count = queue.ring.look(&mut state.place, &mut entries[..wanted])?;
            if count == 0 {
                tally.drop_many(DropReason::RxRingFull, picks.len() as u32);
                return Ok(());
            }
            let seen = &mut entries[..count];
            let finder = Finder::new(queue.ring.memory(), &mut state.hint);
            let Run { done, pause } = if self.dialect.header_len == VNET_HEADER_MRG_LEN {
                self.send_run::<VNET_HEADER_MRG_LEN>(finder, seen, batch, picks)
            } else {
                self.send_run::<VNET_HEADER_LEN>(finder, seen, batch, picks)
            };
            self.give(queue, state, &seen[..done]);
            let written: usize = seen[..done].iter().map(|entry| entry.len as usize).sum();
            tally.moved_many(done, written - done * self.dialect.header_len);
            picks = &picks[done..];
            if let Some(fit) = pause {
                picks = self.send_otherwise(queue, (&mut *state, &mut *entries), batch, picks, fit, tally)?;
                // There may be more like it, and what was looked at behind it was in vain.
                reach = AHEAD;
            }
        }
        Ok(())
    }

    /// Puts frames into the buffers of `entries`, each into one, as long as that goes; each entry then holds the bytes written.
    fn send_run<const HEADER: usize>(
        &self,
        mut finder: Finder<'_, '_>,
        entries: &mut [Entry],
        batch: &mut Batch<'_>,
        picks: &[u8],
    ) -> Run {
        entries.iter().take(AHEAD).for_each(|entry| finder.send_for_writable(entry));
        let mut done = 0;
        loop {
            done = self.send_plain::<HEADER>(&mut finder, entries, batch, picks, done);
            let (Some(entry), Some(&pick)) = (entries.get_mut(done), picks.get(done)) else {
                return Run { done, pause: None };
            };
            let room = finder.writable(entry);
            if let Err(fit) = self.send_fitted::<HEADER>(entry, &room, batch, pick.into()) {
                return Run { done, pause: Some(fit) };
            }
            done += 1;
        }
    }

    /// The same for frames with nothing left to do, from the one at `done` on; answers how many are done after that. A function of
    /// its own, so that all it works on stays in registers.
    #[inline(never)]
    fn send_plain<const HEADER: usize>(
        &self,
        finder: &mut Finder<'_, '_>,
        entries: &mut [Entry],
        batch: &Batch<'_>,
        picks: &[u8],
        done: usize,
    ) -> usize {
        let mut finder = finder.reborrow();
        let packets = batch.packets();
        let count = entries.len().min(picks.len());
        let (entries, picks) = (&mut entries[..count], &picks[..count]);
        for at in done..count {
            if let Some(later) = entries.get(at + AHEAD) {
                finder.send_for_writable(later);
            }
            let (entry, packet) = (&mut entries[at], &packets[usize::from(picks[at])]);
            let room = finder.writable(entry);
            let is_sent = match self.dialect.plain_header(&packet.offload) {
                Some(header) => send_shortly(entry, &room, first_chunk::<HEADER>(header), packet, batch.tail(packet)),
                None => false,
            };
            if !is_sent {
                return at;
            }
        }
        count
    }

    /// Makes a frame fit the guest and puts it into the buffer; or says how else it must be sent.
    #[inline(never)]
    fn send_fitted<const HEADER: usize>(
        &self,
        entry: &mut Entry,
        room: &SegmentMut<'_>,
        batch: &mut Batch<'_>,
        pick: usize,
    ) -> Result<(), Fit> {
        match batch.fit(pick, self.dialect.egress) {
            Fit::AsIs => {
                let (packet, tail) = batch.frame(pick);
                let header = self.dialect.header(&packet.offload);
                let is_sent = send_shortly(entry, room, first_chunk::<HEADER>(&header), packet, tail);
                if is_sent { Ok(()) } else { Err(Fit::AsIs) }
            }
            other => Err(other),
        }
    }

    /// The first of the frames does not simply go into the next buffer: its offloads are to be finished first, or the buffer is
    /// no single one or too small. Answers those that are left: none, if its guest has had enough of our time.
    #[inline(never)]
    fn send_otherwise<'p>(
        &self,
        queue: &Queue<L>,
        (state, entries): (&mut State<L>, &mut [Entry]),
        batch: &mut Batch<'_>,
        picks: &'p [u8],
        fit: Fit,
        tally: &mut Tally,
    ) -> Result<&'p [u8], Overrun> {
        let Some((&pick, others)) = picks.split_first() else { return Ok(picks) };
        let pick = usize::from(pick);
        let mut reason = DropReason::BufferTooSmall;
        match fit {
            Fit::Cut => self.send_segments(queue, state, batch.cut(pick, self.dialect.egress), tally)?,
            Fit::Drop(reason) => tally.drop(reason),
            Fit::AsIs => {
                let (packet, tail) = batch.frame(pick);
                if self.send_merged(queue, (&mut *state, entries), packet, tail)? {
                    tally.moved(packet.len());
                    return Ok(others);
                }
                match self.send_slowly(queue, state, packet, tail, CHAIN_MAX, PIECES_MAX)? {
                    Ok(()) => tally.moved(packet.len()),
                    Err(why) => {
                        tally.drop(why);
                        reason = why;
                    }
                }
            }
        }
        if state.reads_left > 0 {
            return Ok(others);
        }
        tally.drop_many(reason, others.len() as u32);
        Ok(&[])
    }

    /// Gives back the first chains that were looked at, each of which holds the bytes that its entry tells.
    #[inline]
    fn give(&self, queue: &Queue<L>, state: &mut State<L>, entries: &[Entry]) {
        if let Some(log) = &self.log {
            entries.iter().for_each(|entry| log.mark(entry.address, entry.len.into()));
        }
        queue.ring.take_all::<false>(&mut state.place, entries);
    }

    /// A frame that takes several buffers, each of one descriptor and in one region: what drivers that merge buffers post. False if
    /// it does not go so, and nothing was done.
    ///
    /// All its descriptors are looked at in one go, for each four of them are a trip to the guest's core. As one buffer is filled,
    /// what goes into the next is sent for: so much data lies in no cache near, and the copy would wait for it.
    #[inline(never)]
    fn send_merged(
        &self,
        queue: &Queue<L>,
        (state, entries): (&mut State<L>, &mut [Entry]),
        packet: &Packet,
        tail: &[Segment<'_>],
    ) -> Result<bool, Overrun> {
        if !self.dialect.is_mergeable {
            return Ok(false);
        }
        self.make_room(queue, state);
        let wanted = VNET_HEADER_MRG_LEN + packet.len();
        // Drivers post buffers of one length, or some longer ones between them: then fewer are needed than looked at. What very
        // short ones may cost is bounded on the long way.
        let first = queue.ring.peek(&state.place).filter(|entry| entry.len as usize >= BYTES_PER_READ);
        let count = first.map_or(usize::MAX, |entry| wanted.div_ceil(entry.len as usize));
        let Some(entries) = entries.get_mut(..count) else { return Ok(false) };
        let found = queue.ring.look(&mut state.place, entries)?;
        let mut finder = Finder::new(queue.ring.memory(), &mut state.hint);
        let (mut count, mut left) = (0, wanted as u32);
        for entry in &mut entries[..found] {
            let is_alone = entry.flags & (NEXT | INDIRECT | WRITE) == WRITE;
            if !is_alone || entry.len == 0 || finder.writable(entry).len() != entry.len {
                return Ok(false);
            }
            entry.len = entry.len.min(left);
            left -= entry.len;
            count += 1;
            if left == 0 {
                break;
            }
        }
        if left > 0 {
            return Ok(false);
        }
        let entries = &entries[..count];
        let mut header = self.dialect.header(&packet.offload);
        header[VNET_HEADER_LEN..].copy_from_slice(&(count as u16).to_le_bytes());
        let mut source = FrameSource { front: [&header, packet.head()], tail, skip: 0 };
        source.send_for(0, entries[0].len);
        for at in 0..count {
            if let Some(next) = entries.get(at + 1) {
                source.send_for(entries[at].len, next.len);
                finder.send_for_writable(next);
            }
            source.fill(&mut finder.writable(&entries[at]));
        }
        self.give(queue, state, entries);
        Ok(true)
    }

    /// Shows the guest what was given back, if else one more frame could not be. It is interrupted at the burst's end only.
    #[inline]
    fn make_room(&self, queue: &Queue<L>, state: &mut State<L>) {
        const { assert!(BURST <= FRAME_CHAINS_MAX, "a burst of one chain each needs no other look") };
        if queue.ring.room(&state.place) < FRAME_CHAINS_MAX {
            state.is_call_due |= queue.ring.show::<false>(&mut state.place);
        }
    }

    /// A large frame for a guest that does not take it whole, in segments.
    #[cold]
    #[inline(never)]
    fn send_segments(
        &self,
        queue: &Queue<L>,
        state: &mut State<L>,
        mut cut: Segmenter<'_, '_>,
        tally: &mut Tally,
    ) -> Result<(), Overrun> {
        tally.cut_into(cut.count());
        state.reads_left += CHAIN_MAX as u64;
        let mut pieces_left = CHAIN_MAX;
        while let Some((packet, tail)) = cut.next_segment() {
            pieces_left += PIECES_PER_SEGMENT + packet.len() / BYTES_PER_READ;
            match self.send_slowly(queue, state, packet, tail, READS_PER_SEGMENT, pieces_left)? {
                Ok(()) => {
                    tally.moved(packet.len());
                    pieces_left -= state.pieces.len();
                }
                Err(reason) => {
                    // What the guest has no use for now it will have none for in a moment: to try thousands of segments one
                    // by one would let it hold the worker.
                    tally.drop_many(reason, 1 + cut.remaining());
                    break;
                }
            }
            if state.reads_left == 0 {
                tally.drop_many(DropReason::BufferTooSmall, cut.remaining());
                break;
            }
        }
        Ok(())
    }

    /// One frame into one or more chains of the guest's receive ring: the long way.
    ///
    /// Reserves first and copies then, so that a frame that does not fit leaves nothing behind. A chain that is broken
    /// is given back empty, with those reserved before it: the guest made it, and it must not stand in the way for ever.
    ///
    /// A frame may cost `reads` descriptors and some by its length, and fill `pieces_max` pieces of memory. Every burst looks at one
    /// chain at least, so broken ones go.
    #[cold]
    #[inline(never)]
    fn send_slowly(
        &self,
        queue: &Queue<L>,
        state: &mut State<L>,
        packet: &Packet,
        tail: &[Segment<'_>],
        reads: usize,
        pieces_max: usize,
    ) -> Result<Result<(), DropReason>, Overrun> {
        self.make_room(queue, state);
        let ring = &queue.ring;
        let wanted = self.dialect.header_len + packet.len();
        state.reads_left += (reads + wanted / BYTES_PER_READ) as u64;
        let mut capacity = 0usize;
        let mut cursor = ring.cursor(&state.place);
        state.reserved.clear();
        state.pieces.clear();
        while capacity < wanted {
            let count = state.reserved.len();
            if count > 0 && (!self.dialect.is_mergeable || state.reads_left == 0) || count == FRAME_CHAINS_MAX {
                return Ok(Err(DropReason::BufferTooSmall));
            }
            let State { place, hint, chain, reads_left, .. } = &mut *state;
            let before = chain.reads();
            let found = ring.walk(place, &mut cursor, hint, Direction::ToGuest, chain)?;
            *reads_left = reads_left.saturating_sub(chain.reads() - before);
            let Some((taken, walked)) = found else {
                return Ok(Err(DropReason::RxRingFull));
            };
            let reserved = walked
                .map_err(ChainError::drop_reason)
                .and_then(|()| reserve(ring, state, wanted - capacity, pieces_max.min(PIECES_MAX)));
            match reserved {
                Ok(0) | Err(DropReason::BadDescriptor | DropReason::TooManySegments) => {
                    state.reserved.push(Reserved { taken, capacity: 0 });
                    for Reserved { taken, .. } in state.reserved.drain(..) {
                        ring.take(&mut state.place, taken, 0);
                    }
                    return Ok(Err(DropReason::BadDescriptor));
                }
                Err(reason) => return Ok(Err(reason)),
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
        for Reserved { taken, capacity } in state.reserved.drain(..) {
            let len = left.min(capacity);
            left -= len;
            ring.take(&mut state.place, taken, len);
        }
        Ok(Ok(()))
    }
}

/// The part of a header that a guest without mergeable buffers has, or all of it.
#[inline]
fn first_chunk<const HEADER: usize>(header: &[u8; VNET_HEADER_MRG_LEN]) -> &[u8; HEADER] {
    header.first_chunk().expect("ten or twelve of twelve")
}

/// One frame into one buffer: the short way; the entry then holds the bytes written. False if it does not go, and nothing was
/// written.
#[inline(always)]
fn send_shortly<const HEADER: usize>(
    entry: &mut Entry,
    room: &SegmentMut<'_>,
    header: &[u8; HEADER],
    packet: &Packet,
    tail: &[Segment<'_>],
) -> bool {
    if entry.flags & (NEXT | INDIRECT | WRITE) != WRITE {
        return false;
    }
    let Some(mut room) = room.write_front(header, packet.head(), packet.tail_len() as usize) else { return false };
    for segment in tail {
        room.write_from(segment);
    }
    entry.len = (HEADER + packet.len()) as u32;
    true
}

/// Puts the pieces of the chain that was just walked behind those reserved, as far as a frame that lacks `wanted` bytes fills
/// them, `pieces_max` at most in all; answers how many bytes that is. What it does not fill is not looked at: a chain may name far
/// more memory than any frame.
fn reserve<L: Layout>(ring: &L, state: &mut State<L>, wanted: usize, pieces_max: usize) -> Result<u32, DropReason> {
    const { assert!(FRAME_MAX + VNET_HEADER_MRG_LEN <= u32::MAX as usize, "no frame's length overflows") };
    let wanted = wanted as u32;
    let mut capacity = 0u32;
    for buffer in state.chain.buffers() {
        let (mut address, mut left) = (buffer.address, buffer.len.min(wanted - capacity));
        while left > 0 {
            let piece = ring.memory().writable(&mut state.hint, address, left).ok_or(DropReason::BadDescriptor)?;
            if state.pieces.len() == pieces_max {
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
    /// Sends for `len` bytes of the tail, from `offset` bytes behind where it stands.
    fn send_for(&self, offset: u32, mut len: u32) {
        let mut skip = self.skip + offset;
        for segment in self.tail {
            let wanted = segment.skip(skip).take(len);
            wanted.prefetch();
            len -= wanted.len();
            if len == 0 {
                return;
            }
            skip = skip.saturating_sub(segment.len());
        }
    }

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
