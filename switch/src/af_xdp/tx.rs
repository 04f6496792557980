//! One burst on its way into the tx ring of an AF_XDP queue.
//!
//! A frame is copied into a free frame of the queue's, or, if it lies in the same memory already, handed over as it lies: its head
//! is written back before its tail, the frame goes into the ring, and a free one goes back to the queue that it came by in its
//! place ([`RxFrames::exchange`](super::frames::RxFrames::exchange)). So nothing of a tail is copied between two AF_XDP ports
//! of one pool. Which packets may be handed over the batch says ([`Batch::lent`]): those that nobody else wants to read.
//!
//! What makes it harder than it looks is a full ring: the kernel must be asked to send, which takes as long as copying some
//! ten frames, and others may wait for the lock meanwhile. So it is given back for that and taken again.

use super::KERNEL_HEADROOM;
use super::frames::TxFrames;
use super::port::{ETHERNET_LEN, TAG_LEN};
use super::queue::{Gone, Queue, RxQueue};
use crate::batch::Batch;
use crate::ledger::{DropReason, Tally};
use crate::packet::Packet;
use crate::segment::{Segment, SegmentMut};
use std::sync::MutexGuard;

/// A queue whose tx side is held, and the one that the batch's frames came by if they may be handed over.
pub(super) struct Burst<'q, 'r> {
    queue: &'q Queue,
    /// `None` once another worker took the queue meanwhile.
    tx: Option<MutexGuard<'q, TxFrames>>,
    lender: Option<(&'r Queue, MutexGuard<'r, RxQueue>)>,
    /// Bytes of the longest frame that the interface takes, without a tag.
    frame_max: usize,
    /// Whether asking the kernel to make room may help.
    may_wait: bool,
    is_gone: bool,
}

impl<'q, 'r> Burst<'q, 'r> {
    /// `None` if another worker keeps the queue.
    #[inline]
    pub(super) fn begin(queue: &'q Queue, batch: &Batch<'r>, frame_max: usize) -> Option<Burst<'q, 'r>> {
        let mut tx = queue.lock_tx()?;
        tx.reap();
        let lender = batch.lender().filter(|lender| lender.is_beside(queue));
        // Only the lender's own worker takes that lock, which is who is here.
        let lender = lender.and_then(|lender| Some((lender, lender.try_rx()?)));
        Some(Burst { queue, tx: Some(tx), lender, frame_max, may_wait: true, is_gone: false })
    }

    /// Shows the kernel what was put, and gives the queue back. The kernel has still to be woken, without the lock: it has one
    /// of its own for sending, and copies every frame under it.
    #[inline]
    pub(super) fn end(self) -> Result<(), Gone> {
        if let Some(mut tx) = self.tx {
            tx.publish();
        }
        if self.is_gone { Err(Gone) } else { Ok(()) }
    }

    /// Puts one frame. `lent`: by which number the lender knows it; `None`: it stays where it is. True if it was handed over.
    #[inline]
    pub(super) fn put(
        &mut self,
        (packet, tail): (&Packet, &[Segment<'_>]),
        lent: Option<usize>,
        tally: &mut Tally,
    ) -> bool {
        let len = packet.len();
        if let Err(reason) = self.check(packet, len) {
            tally.drop(reason);
            return false;
        }
        let tx = self.tx.as_mut().expect("where there is room");
        let mut is_handed_over = false;
        if len > self.queue.layout.frame_size as usize {
            put_pieces(self.queue, tx, packet, tail);
        } else if let (Some(lent), Some((lender, rx))) = (lent, &mut self.lender)
            && hand_over((lender, rx, lent), self.queue, tx, packet, tail)
        {
            is_handed_over = true;
        } else {
            tx.put(len, false, |at| {
                let mut room = self.queue.area.segment_mut(at, len);
                room.write(packet.head());
                for segment in tail {
                    room.write_from(segment);
                }
            });
        }
        tally.moved(len);
        is_handed_over
    }

    /// Whether a frame can go into the ring, which then has room for it.
    #[inline]
    fn check(&mut self, packet: &Packet, len: usize) -> Result<(), DropReason> {
        if len > self.frame_max && !is_tagged_and_fits(packet, len, self.frame_max) {
            return Err(DropReason::OverMtu);
        }
        if len < ETHERNET_LEN {
            return Err(DropReason::Truncated);
        }
        let pieces = self.queue.pieces_for(len);
        if pieces > self.queue.mode.pieces_max {
            return Err(DropReason::BufferTooSmall);
        }
        let has_room = self.tx.as_mut().is_some_and(|tx| tx.has_room(pieces));
        if has_room { Ok(()) } else { self.make_room(pieces) }
    }

    /// Has the kernel take what is there: a large frame may be cut into more than the ring holds. Once it did not help, not
    /// again for this burst.
    #[cold]
    fn make_room(&mut self, pieces: usize) -> Result<(), DropReason> {
        if self.tx.is_none() {
            return Err(DropReason::TxContended);
        }
        if !self.may_wait {
            return Err(DropReason::RxRingFull);
        }
        if let Some(mut tx) = self.tx.take() {
            tx.publish();
        }
        self.is_gone |= self.queue.push_out().is_err();
        self.tx = self.queue.lock_tx();
        let tx = self.tx.as_mut().ok_or(DropReason::TxContended)?;
        tx.reap();
        self.may_wait = tx.has_room(pieces);
        if self.may_wait { Ok(()) } else { Err(DropReason::RxRingFull) }
    }
}

/// Whether a frame is over the MTU only by its VLAN tag, which does not count.
#[cold]
fn is_tagged_and_fits(packet: &Packet, len: usize, frame_max: usize) -> bool {
    let is_tagged = matches!(packet.head().get(12..14), Some([0x81, 0x00] | [0x88, 0xa8]));
    is_tagged && len <= frame_max + TAG_LEN
}

/// Sends the frame that the lender took as number `lent` as it lies, with the packet's head before its tail. False, and nothing
/// has happened, if it does not lie so that it can.
#[inline]
fn hand_over(
    (lender, rx, lent): (&Queue, &mut RxQueue, usize),
    queue: &Queue,
    tx: &mut TxFrames,
    packet: &Packet,
    tail: &[Segment<'_>],
) -> bool {
    let Some(start) = rx.frames.start_of(lent) else { return false };
    let (start, size, head) = (start as usize, queue.layout.frame_size as usize, packet.head());
    let at = match tail {
        // Where the kernel puts what it receives: these lines are near.
        [] => start + KERNEL_HEADROOM as usize,
        // An address outside the area becomes one outside the frame.
        [tail] => (tail.as_ptr() as usize).wrapping_sub(queue.area.as_ptr() as usize).wrapping_sub(head.len()),
        _ => return false,
    };
    let is_inside = at >= start && at.checked_add(packet.len()).is_some_and(|end| end <= start + size);
    if !is_inside {
        return false;
    }
    queue.area.segment_mut(at, head.len()).write(head);
    let given = tx.take_free();
    if let (Some(seat), Some(other)) = (&queue.seat, &lender.seat) {
        seat.note(other, rx.frames.taken(lent), &given);
    }
    let taken = rx.frames.exchange(lent, given);
    tx.put_whole(taken, at as u64, packet.len() as u32).expect("there is room for it");
    true
}

/// Puts a frame that is longer than one of the memory's into several.
#[cold]
fn put_pieces(queue: &Queue, tx: &mut TxFrames, packet: &Packet, tail: &[Segment<'_>]) {
    let mut sources = std::iter::once(Segment::from(packet.head())).chain(tail.iter().copied());
    let mut source = Segment::default();
    let mut left = packet.len();
    while left > 0 {
        let len = left.min(queue.layout.frame_size as usize);
        left -= len;
        tx.put(len, left > 0, |at| {
            let mut room: SegmentMut<'_> = queue.area.segment_mut(at, len);
            while !room.is_empty() {
                if source.is_empty() {
                    match sources.next() {
                        Some(next) => source = next,
                        None => break,
                    }
                }
                let written = room.write_from(&source);
                source = source.skip(written);
            }
        });
    }
}
