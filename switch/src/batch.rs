//! A burst of packets that one worker carries from an rx queue to their egress, within one round.
//!
//! The packets are a fixed array that is reused for ever; the segments of all their tails lie in one arena, so that a
//! burst of one-segment frames costs a kilobyte of cache and not 64 lists. The lifetime `'r` is that of the snapshot
//! the worker holds for the round: tails borrow the memory of ports, and nothing here can outlive the ports.
//! Owned by one worker; nothing is allocated after construction.

use crate::af_xdp::queue::Queue;
use crate::checksum;
use crate::ids::{PortIndex, QueueIndex};
use crate::ledger::DropReason;
use crate::mac_table::Probe;
use crate::offload::{EgressOffloads, Offload, OffloadClaim};
use crate::packet::{HEAD_MAX, Packet, SEGMENTS_MAX};
use crate::segment::Segment;
use crate::segmentation::{self, BURST_CUT_MAX, Segmenter};

/// Frames taken from one queue at a time. Their heads of two lines are 8 KiB and stay in L1.
pub const BURST: usize = 64;

const _: () = assert!(BURST <= u8::MAX as usize, "picks are bytes");
const _: () = assert!(BURST * SEGMENTS_MAX <= u16::MAX as usize, "tail_first is 16 bits");

/// Up to [`BURST`] packets from one queue, and the segments of their tails.
pub struct Batch<'r> {
    packets: Box<[Packet; BURST]>,
    /// Where the MAC table keeps source and destination of each packet that was asked about; here, so that no burst pays for an
    /// empty list.
    probes: Box<[[Probe; 2]; BURST]>,
    len: usize,
    limit: usize,
    bytes: usize,
    bytes_limit: usize,
    /// Segments that its frames may still be cut into.
    cut_left: usize,
    segments: Vec<Segment<'r>>,
    /// The queue that its frames lie in and may be handed over by; `None`: they stay where they are.
    lender: Option<&'r Queue>,
    /// By packet, where there is a lender: the number by which that knows the frame, or [`KEPT`].
    lent: Box<[u16; BURST]>,
}

/// For a packet whose frame stays where it is.
const KEPT: u16 = u16::MAX;

impl Default for Batch<'_> {
    fn default() -> Self {
        Batch::new()
    }
}

impl<'r> Batch<'r> {
    /// An empty batch. Allocates once: keep it and [`Batch::recycle`] it.
    pub fn new() -> Batch<'r> {
        Batch {
            packets: Box::new([const { Packet::empty() }; BURST]),
            probes: Box::new([[Probe::default(); 2]; BURST]),
            len: 0,
            limit: BURST,
            bytes: 0,
            bytes_limit: usize::MAX,
            cut_left: BURST_CUT_MAX,
            segments: Vec::with_capacity(BURST * SEGMENTS_MAX),
            lender: None,
            lent: Box::new([KEPT; BURST]),
        }
    }

    /// The same storage, emptied, for another round.
    pub fn recycle<'next>(self) -> Batch<'next> {
        let mut segments = self.segments;
        segments.clear();
        // An empty vector collected in place keeps its allocation and changes only its lifetime.
        let segments = segments.into_iter().map(|_| -> Segment<'next> { unreachable!("cleared above") }).collect();
        Batch {
            packets: self.packets,
            probes: self.probes,
            len: 0,
            limit: BURST,
            bytes: 0,
            bytes_limit: usize::MAX,
            cut_left: BURST_CUT_MAX,
            segments,
            lender: None,
            lent: self.lent,
        }
    }

    /// Forgets all packets. Next, at most `limit` (and [`BURST`]) frames may be put in, and none once they have
    /// `bytes_limit` bytes together.
    #[inline]
    pub fn clear(&mut self, limit: usize, bytes_limit: usize) {
        self.len = 0;
        self.limit = limit.min(BURST);
        self.bytes = 0;
        self.bytes_limit = bytes_limit;
        self.cut_left = BURST_CUT_MAX;
        self.segments.clear();
        self.lender = None;
    }

    /// The frames of all its packets lie in memory of `queue`, which knows that of the last packet by the number `lent`; `None`:
    /// that one is not to be handed over.
    #[inline]
    pub(crate) fn lend(&mut self, queue: &'r Queue, lent: Option<usize>) {
        self.lender = Some(queue);
        let lent = lent.and_then(|lent| u16::try_from(lent).ok()).unwrap_or(KEPT);
        self.lent[self.len - 1] = lent;
    }

    /// From now on the frames of its packets stay where they are: more than one wants to read them.
    #[inline]
    pub fn keep_frames(&mut self) {
        self.lender = None;
    }

    /// The queue whose frames may be handed over to another.
    #[inline]
    pub(crate) fn lender(&self) -> Option<&'r Queue> {
        self.lender
    }

    /// The number by which the lender knows the frame of a packet; `None` if that is not to be handed over, or was already.
    #[inline]
    pub(crate) fn lent(&self, index: usize) -> Option<usize> {
        let lent = self.lent[index];
        (lent != KEPT).then_some(usize::from(lent))
    }

    /// The frame of a packet was handed over.
    #[inline]
    pub(crate) fn handed_over(&mut self, index: usize) {
        self.lent[index] = KEPT;
    }

    /// Forgets the packets behind the first `len`.
    pub(crate) fn forget_behind(&mut self, len: usize) {
        let Some(first) = self.packets().get(len) else { return };
        self.segments.truncate(first.tail_range().start);
        self.len = len;
        self.bytes = self.packets().iter().map(Packet::len).sum();
    }

    /// Packets in the batch.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no packet.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of all its frames.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Packets that may still be put in.
    #[inline]
    pub fn room(&self) -> usize {
        if self.bytes < self.bytes_limit { self.limit - self.len } else { 0 }
    }

    /// The packets.
    #[inline]
    pub fn packets(&self) -> &[Packet] {
        &self.packets[..self.len]
    }

    /// The packets, to change.
    #[inline]
    pub fn packets_mut(&mut self) -> &mut [Packet] {
        &mut self.packets[..self.len]
    }

    /// The packets, and for each a place for where the MAC table keeps its source and its destination. Nothing clears those.
    #[inline]
    pub fn packets_and_probes_mut(&mut self) -> (&mut [Packet], &mut [[Probe; 2]]) {
        (&mut self.packets[..self.len], &mut self.probes[..self.len])
    }

    /// What was written into those places.
    #[inline]
    pub fn probes(&self) -> &[[Probe; 2]] {
        &self.probes[..self.len]
    }

    /// What is left to do for one packet.
    #[inline]
    pub fn offload(&self, index: usize) -> &Offload {
        &self.packets()[index].offload
    }

    /// One packet with its tail.
    #[inline]
    pub fn frame(&mut self, index: usize) -> (&mut Packet, &[Segment<'r>]) {
        let packet = &mut self.packets[..self.len][index];
        let range = packet.tail_range();
        (packet, if range.is_empty() { &[] } else { &self.segments[range] })
    }

    /// The same, to look at several at a time.
    #[inline]
    pub fn look(&self, index: usize) -> (&Packet, &[Segment<'r>]) {
        let packet = &self.packets()[index];
        (packet, self.tail(packet))
    }

    /// The tail of one of its packets.
    #[inline(always)]
    pub fn tail(&self, packet: &Packet) -> &[Segment<'r>] {
        let range = packet.tail_range();
        if range.is_empty() { &[] } else { &self.segments[range] }
    }

    /// Starts the next packet; `None` if the batch has no room. Without [`PacketBuilder::commit`] it is forgotten.
    #[inline]
    pub fn start(&mut self, ingress: PortIndex, queue: QueueIndex) -> Option<PacketBuilder<'_, 'r>> {
        if self.room() == 0 {
            return None;
        }
        let first = self.segments.len();
        self.packets[self.len].reset(ingress, queue, first as u16, OffloadClaim::default());
        Some(PacketBuilder { batch: self, first, committed: false })
    }

    /// Puts in one frame that lies in one piece: [`Filler::put`]. False if there is no room.
    #[inline]
    pub fn put(&mut self, ingress: PortIndex, queue: QueueIndex, frame: Segment<'r>, claim: OffloadClaim) -> bool {
        self.fill(ingress, queue).put(frame).map(|packet| packet.claim = claim).is_some()
    }

    /// Begins to put in whole frames from one queue, one after the other.
    #[inline(always)]
    pub fn fill(&mut self, ingress: PortIndex, queue: QueueIndex) -> Filler<'_, 'r> {
        // `limit` is at most `BURST`.
        let free = &mut self.packets[self.len..self.limit];
        Filler {
            ingress,
            queue,
            end: self.limit,
            free: free.iter_mut(),
            segments: &mut self.segments,
            bytes: self.bytes,
            bytes_limit: self.bytes_limit,
            books: (&mut self.len, &mut self.bytes),
        }
    }

    /// Moves bytes of the tail into the head until the head has at least `wanted` bytes or holds the whole frame.
    ///
    /// # Errors
    /// [`DropReason::HeadersTooLong`] if `wanted` is more than a head can hold.
    pub fn pull(&mut self, index: usize, wanted: usize) -> Result<(), DropReason> {
        let packet = &mut self.packets[..self.len][index];
        let have = packet.head().len();
        if wanted <= have || packet.tail_len() == 0 {
            return Ok(());
        }
        if wanted > HEAD_MAX {
            return Err(DropReason::HeadersTooLong);
        }
        packet.make_room(wanted);
        let mut missing = (wanted - have).min(packet.tail_len() as usize);
        while missing > 0 {
            let range = packet.tail_range();
            let segment = self.segments[range.start];
            let count = missing.min(segment.len() as usize);
            let room = packet.extend_head(count).ok_or(DropReason::HeadersTooLong)?;
            segment.read(room);
            self.segments[range.start] = segment.skip(count as u32);
            packet.shrink_tail(u16::from(count == segment.len() as usize), count as u32);
            missing -= count;
        }
        Ok(())
    }

    /// Cuts the end of a frame off, so that `len` bytes are left; a shorter one stays as it is.
    pub fn truncate(&mut self, index: usize, len: usize) {
        let packet = &mut self.packets[..self.len][index];
        while packet.len() > len {
            let excess = packet.len() - len;
            let Some(last) = packet.tail_range().last() else {
                packet.shorten_head(excess);
                return;
            };
            let cut = (self.segments[last].len() as usize).min(excess) as u32;
            let left = self.segments[last].len() - cut;
            self.segments[last] = self.segments[last].take(left);
            packet.shrink_tail_end(u16::from(left == 0), cut);
        }
    }

    /// Makes a packet fit an egress, or says that it must be cut: completes in software what the far side cannot.
    ///
    /// A completed checksum stays completed for further copies of the same packet; a cut leaves the packet as it is.
    #[inline]
    pub fn fit(&mut self, index: usize, egress: EgressOffloads) -> Fit {
        if self.offload(index).is_none() {
            return Fit::AsIs;
        }
        self.fit_slowly(index, egress)
    }

    #[inline(never)]
    fn fit_slowly(&mut self, index: usize, egress: EgressOffloads) -> Fit {
        let (packet, tail) = self.frame(index);
        match packet.offload.gso {
            // No far side takes over what is inside a tunnel: virtio-net has no words for it.
            Some(gso) if packet.outer().is_some() || !egress.takes(&gso) => {
                let count = segmentation::count(packet);
                let header_len = usize::from(gso.header_len);
                if let Err(reason) = self.pull(index, header_len) {
                    return Fit::Drop(reason);
                }
                if self.packets[index].head().len() < header_len {
                    return Fit::Drop(DropReason::Truncated);
                }
                let Some(left) = self.cut_left.checked_sub(count) else { return Fit::Drop(DropReason::CutLimited) };
                self.cut_left = left;
                Fit::Cut
            }
            _ => {
                if packet.outer().is_some() || !egress.checksum {
                    checksum::complete(packet, tail);
                }
                Fit::AsIs
            }
        }
    }

    /// The segments of a packet that [`Batch::fit`] wants cut, for the same egress.
    pub fn cut(&mut self, index: usize, egress: EgressOffloads) -> Segmenter<'_, 'r> {
        let (packet, tail) = self.frame(index);
        let outer = packet.outer();
        Segmenter::new(packet, tail, egress, outer)
    }
}

/// How a packet goes to an egress.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Fit {
    /// As it is now.
    AsIs,
    /// In segments: [`Batch::cut`].
    Cut,
    /// Not at all.
    Drop(DropReason),
}

/// Puts whole frames into a batch. What is counted of them stays in registers, and is the batch's when this is dropped.
pub struct Filler<'b, 'r> {
    ingress: PortIndex,
    queue: QueueIndex,
    free: std::slice::IterMut<'b, Packet>,
    /// Packets that the batch has when none is free.
    end: usize,
    segments: &'b mut Vec<Segment<'r>>,
    bytes: usize,
    bytes_limit: usize,
    /// Of the batch: how many packets it has, and of how many bytes.
    books: (&'b mut usize, &'b mut usize),
}

impl<'r> Filler<'_, 'r> {
    /// Puts in a frame that lies in one piece and claims nothing yet: its front is copied, the rest becomes the tail. `None` if
    /// there is no room.
    #[inline(always)]
    pub fn put(&mut self, frame: Segment<'r>) -> Option<&mut Packet> {
        if self.bytes >= self.bytes_limit {
            return None;
        }
        let packet = self.free.next()?;
        packet.reset(self.ingress, self.queue, self.segments.len() as u16, OffloadClaim::default());
        let front = frame.read_front(packet.front_mut());
        packet.set_front(front);
        if frame.len() as usize > front {
            let tail = frame.skip(front as u32);
            packet.grow_tail(tail.len());
            self.segments.push(tail);
        }
        self.bytes += frame.len() as usize;
        Some(packet)
    }
}

impl Drop for Filler<'_, '_> {
    #[inline(always)]
    fn drop(&mut self) {
        (*self.books.0, *self.books.1) = (self.end - self.free.len(), self.bytes);
    }
}

/// A packet being put together by a port's rx.
pub struct PacketBuilder<'b, 'r> {
    batch: &'b mut Batch<'r>,
    first: usize,
    committed: bool,
}

impl<'r> PacketBuilder<'_, 'r> {
    #[inline]
    fn packet(&mut self) -> &mut Packet {
        &mut self.batch.packets[self.batch.len]
    }

    /// Bytes the head holds so far.
    #[inline]
    pub fn head_len(&mut self) -> usize {
        self.packet().head().len()
    }

    /// The bytes that the head holds so far.
    #[inline]
    pub fn head_so_far(&mut self) -> &[u8] {
        self.packet().head()
    }

    /// Room for `len` more bytes of the frame in the head; all of them must be written. `None` if they do not fit.
    #[inline]
    pub fn head(&mut self, len: usize) -> Option<&mut [u8]> {
        self.packet().extend_head(len)
    }

    /// Takes the last `len` bytes of the head away again: a read came out shorter than the room made for it.
    #[inline]
    pub fn shorten_head(&mut self, len: usize) {
        self.packet().shorten_head(len);
    }

    /// Puts a segment behind the tail.
    ///
    /// # Errors
    /// [`DropReason::TooManySegments`] beyond [`SEGMENTS_MAX`].
    #[inline]
    pub fn tail(&mut self, segment: Segment<'r>) -> Result<(), DropReason> {
        if self.batch.segments.len() - self.first >= SEGMENTS_MAX {
            return Err(DropReason::TooManySegments);
        }
        self.batch.segments.push(segment);
        self.packet().grow_tail(segment.len());
        Ok(())
    }

    /// Bytes put in so far.
    #[inline]
    pub fn frame_len(&mut self) -> usize {
        self.packet().len()
    }

    /// Makes it the batch's next packet.
    #[inline]
    pub fn commit(mut self, claim: OffloadClaim) {
        self.packet().claim = claim;
        self.committed = true;
        self.batch.bytes += self.packet().len();
        self.batch.len += 1;
    }
}

impl Drop for PacketBuilder<'_, '_> {
    #[inline]
    fn drop(&mut self) {
        if !self.committed {
            self.batch.segments.truncate(self.first);
        }
    }
}
