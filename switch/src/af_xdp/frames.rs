//! Who has which frame of a socket's memory: we, or the kernel by one of the rings.
//!
//! A [`Frame`] is the right to touch one. It cannot be copied, and each ring swallows it on the way in and gives it out again
//! on the way back, so a frame is free, in the fill ring, received, or being sent, and never two of these. What comes back
//! is checked against the memory's bounds; that the kernel gives back each frame once is its promise.
//!
//! A received frame may leave by another queue of the same memory without a copy: the sender gives a free one of its own for it
//! ([`RxFrames::exchange`]), so that each direction of each queue has as many as ever and nobody has to bring any home.
//!
//! The frames of both directions are apart, so that each has its own lock, and the frames that wait for a slow receiver are
//! never those that the next ones should come in by. Nothing is allocated after construction.

use super::{Consumer, Descriptor, Producer, RING_LEN};
use std::ops::Range;

/// How the memory is cut into frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    /// Bytes of a frame, a power of two.
    pub(crate) frame_size: u32,
    /// How many there are.
    pub(crate) count: u32,
}

impl Layout {
    /// Bytes of the memory.
    pub(crate) fn bytes(self) -> usize {
        self.frame_size as usize * self.count as usize
    }

    /// Where in the memory a frame begins.
    #[inline]
    fn start(self, frame: &Frame) -> u64 {
        u64::from(frame.0) * u64::from(self.frame_size)
    }

    /// The frame that an address of a ring lies in; `None` if it is outside the memory.
    #[inline]
    fn frame(self, address: u64) -> Option<Frame> {
        let number = address / u64::from(self.frame_size);
        (number < u64::from(self.count)).then_some(Frame(number as u32))
    }

    /// Whether `len` bytes at `address` lie within one frame.
    #[inline]
    fn holds(self, address: u64, len: u32) -> bool {
        let offset = (address % u64::from(self.frame_size)) as u32;
        len <= self.frame_size - offset
    }
}

/// The right to touch one frame of the memory: its number.
#[derive(PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Frame(u32);

impl Frame {
    /// The frames with these numbers. Each number once for each memory.
    pub(crate) fn numbered(numbers: Range<u32>) -> Vec<Frame> {
        numbers.map(Frame).collect()
    }

    /// Its number.
    #[inline]
    pub(crate) fn number(&self) -> usize {
        self.0 as usize
    }
}

/// A piece of a received frame: where it lies in the memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    /// Its first byte.
    pub(crate) at: usize,
    /// Bytes.
    pub(crate) len: usize,
}

/// The frames by which others come in.
pub(crate) struct RxFrames {
    layout: Layout,
    fill: Producer<u64>,
    received: Consumer<Descriptor>,
    /// Received in this round, and still looked at.
    lent: Vec<Frame>,
}

impl RxFrames {
    /// Gives all `frames` to the kernel.
    pub(crate) fn new(
        layout: Layout,
        frames: Vec<Frame>,
        fill: Producer<u64>,
        received: Consumer<Descriptor>,
    ) -> RxFrames {
        let mut lent = Vec::with_capacity(RING_LEN as usize);
        lent.extend(frames);
        assert!(lent.len() <= RING_LEN as usize, "the rx ring has room for all of them");
        let mut rx = RxFrames { layout, fill, received, lent };
        rx.give_back();
        rx
    }

    /// How many pieces the next frame has; `None` if none is there in whole.
    #[inline]
    pub(crate) fn next_pieces(&mut self) -> Option<u32> {
        let mut count = 0;
        loop {
            let descriptor = self.received.peek(count)?;
            count += 1;
            if descriptor.options & libc::XDP_PKT_CONTD == 0 {
                return Some(count);
            }
            if count == RING_LEN {
                // No kernel fills the whole ring by one frame; if one did, it would have an end here.
                return Some(count);
            }
        }
    }

    /// Takes the next piece of a frame of which [`RxFrames::next_pieces`] told. It stays where it is until
    /// [`RxFrames::give_back`], unless it is exchanged. `None` for one that lies in no frame.
    ///
    /// # Panics
    /// If there is none.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<Piece> {
        let Descriptor { addr, len, .. } = self.received.peek(0).expect("whoever takes has looked");
        self.received.advance(1);
        let frame = self.layout.frame(addr)?;
        self.lent.push(frame);
        self.layout.holds(addr, len).then_some(Piece { at: addr as usize, len: len as usize })
    }

    /// Where among the frames that were taken the last one is: what [`RxFrames::exchange`] knows it by.
    ///
    /// # Panics
    /// If none was taken.
    #[inline]
    pub(crate) fn last_taken(&self) -> usize {
        self.lent.len().checked_sub(1).expect("whoever asks has taken one")
    }

    /// Where the frame begins that was taken as number `at`; `None` if there is none.
    #[inline]
    pub(crate) fn start_of(&self, at: usize) -> Option<u64> {
        self.lent.get(at).map(|frame| self.layout.start(frame))
    }

    /// The frame that was taken as number `at`.
    ///
    /// # Panics
    /// If there is none.
    #[inline]
    pub(crate) fn taken(&self, at: usize) -> &Frame {
        &self.lent[at]
    }

    /// Hands over the frame that was taken as number `at`, and has `other` go back to the kernel in its place.
    ///
    /// # Panics
    /// If there is none.
    #[inline]
    pub(crate) fn exchange(&mut self, at: usize, other: Frame) -> Frame {
        std::mem::replace(&mut self.lent[at], other)
    }

    /// Where the frame begins that is `ahead` pieces behind the next one, to be looked at soon.
    #[inline]
    pub(crate) fn ahead(&mut self, ahead: u32) -> Option<usize> {
        let Descriptor { addr, len, .. } = self.received.peek(ahead)?;
        (self.layout.frame(addr).is_some() && self.layout.holds(addr, len)).then_some(addr as usize)
    }

    /// Whether something is there.
    #[inline]
    pub(crate) fn is_empty(&mut self) -> bool {
        self.received.peek(0).is_none()
    }

    /// Gives everything that was taken back to the kernel. True if the kernel wants to be told ([`super::refill`]).
    ///
    /// The kernel shows received frames before it shows that it took others from the fill ring, some time before in zero copy.
    /// So that ring has room for as many again; what should find none all the same goes back the next time.
    #[inline]
    pub(crate) fn give_back(&mut self) -> bool {
        self.received.release();
        let count = self.lent.len().min(self.fill.room(self.lent.len() as u32) as usize);
        for frame in self.lent.drain(..count) {
            self.fill.push(self.layout.start(&frame));
        }
        self.fill.publish();
        self.fill.ring().needs_wakeup()
    }
}

#[cfg(feature = "testing")]
impl RxFrames {
    /// Takes the next piece with its frame, which the caller has from now on: the frame, and where in the memory how many bytes are.
    #[inline]
    pub(crate) fn take_whole(&mut self) -> Option<(Frame, u64, u32)> {
        let Descriptor { addr, len, .. } = self.received.peek(0)?;
        self.received.advance(1);
        Some((self.layout.frame(addr)?, addr, len))
    }

    /// Takes a frame that is to be given to the kernel with the others.
    #[inline]
    pub(crate) fn lend(&mut self, frame: Frame) {
        self.lent.push(frame);
    }
}

/// The frames by which others go out.
pub(crate) struct TxFrames {
    layout: Layout,
    ring: Producer<Descriptor>,
    completed: Consumer<u64>,
    free: Vec<Frame>,
}

impl TxFrames {
    /// All `frames` are free.
    pub(crate) fn new(
        layout: Layout,
        frames: Vec<Frame>,
        ring: Producer<Descriptor>,
        completed: Consumer<u64>,
    ) -> TxFrames {
        TxFrames { layout, ring, completed, free: frames }
    }

    /// Takes back the frames that the kernel has sent.
    #[inline]
    pub(crate) fn reap(&mut self) {
        while let Some(address) = self.completed.peek(0) {
            self.completed.advance(1);
            self.free.extend(self.layout.frame(address));
        }
        self.completed.release();
    }

    /// Whether so many pieces can be put behind each other now.
    #[inline]
    pub(crate) fn has_room(&mut self, pieces: usize) -> bool {
        self.free.len() >= pieces && self.ring.room(pieces as u32) as usize >= pieces
    }

    /// Puts the next piece of a frame: `write` fills its first `len` bytes, at this place of the memory. `has_more`: another
    /// piece of the same frame follows.
    ///
    /// # Panics
    /// If there is no room, or the piece is longer than a frame.
    #[inline]
    pub(crate) fn put(&mut self, len: usize, has_more: bool, write: impl FnOnce(usize)) {
        assert!(len <= self.layout.frame_size as usize, "a piece lies in one frame");
        let frame = self.free.pop().expect("whoever puts has asked for room");
        let addr = self.layout.start(&frame);
        write(addr as usize);
        let options = if has_more { libc::XDP_PKT_CONTD } else { 0 };
        self.ring.push(Descriptor { addr, len: len as u32, options });
    }

    /// A frame that is free; the caller puts another in its place ([`TxFrames::put_whole`]).
    ///
    /// # Panics
    /// If there is none.
    #[inline]
    pub(crate) fn take_free(&mut self) -> Frame {
        self.free.pop().expect("whoever takes has asked for room")
    }

    /// Puts a frame of the same memory, in which `len` bytes lie at `addr`.
    ///
    /// # Errors
    /// The frame, if there is no room.
    #[inline]
    pub(crate) fn put_whole(&mut self, frame: Frame, addr: u64, len: u32) -> Result<(), Frame> {
        if self.ring.room(1) == 0 {
            return Err(frame);
        }
        self.ring.push(Descriptor { addr, len, options: 0 });
        Ok(())
    }

    /// Shows the kernel what was put.
    #[inline]
    pub(crate) fn publish(&mut self) {
        self.ring.publish();
    }

    /// The tx ring.
    pub(crate) fn ring(&self) -> &std::sync::Arc<super::Ring<Descriptor>> {
        self.ring.ring()
    }
}

#[cfg(feature = "testing")]
impl TxFrames {
    /// Hands each frame that the kernel has sent to `then`.
    #[inline]
    pub(crate) fn reap_into(&mut self, mut then: impl FnMut(Frame)) {
        while let Some(address) = self.completed.peek(0) {
            self.completed.advance(1);
            self.layout.frame(address).into_iter().for_each(&mut then);
        }
        self.completed.release();
    }

    /// Puts the frame of this number, which is never written and may be there already; false if there is no room.
    #[inline]
    pub(crate) fn put_again(&mut self, number: usize, len: usize) -> bool {
        let has_room = self.ring.room(1) > 0;
        if has_room {
            let addr = number as u64 * u64::from(self.layout.frame_size);
            self.ring.push(Descriptor { addr, len: len as u32, options: 0 });
        }
        has_room
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests;
