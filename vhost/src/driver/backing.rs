//! What rings of both layouts stand on: memory, a buffer for each slot, and the two eventfds.
//!
//! A *slot* is a buffer and its place in the descriptors: slot n owns buffer n, for ever. How a buffer is described to the
//! device is its [`Shape`]; where it lies does not change with that, so whoever fills or reads it need not know.

use super::layout::Place;
use super::{DriverError, GUEST_BASE, io};
use crate::chain::{Descriptor, INDIRECT, NEXT, WRITE};
use crate::memory::DriverMemory;
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use switch::offload::VNET_HEADER_MRG_LEN;

/// Pieces into which a buffer may be cut.
pub const PIECES_MAX: u16 = 64;

/// How the buffer of a slot is described to the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Descriptors: one for all of it, or the first for the virtio header and the rest for equal parts of the frame.
    pub pieces: u16,
    /// Whether they stand in a table of their own that one descriptor of the ring points at.
    pub is_indirect: bool,
}

impl Shape {
    /// One descriptor for header and frame.
    pub const SINGLE: Shape = Shape::linked(1);

    /// A chain of that many descriptors in the ring.
    pub const fn linked(pieces: u16) -> Shape {
        Shape { pieces, is_indirect: false }
    }

    /// That many descriptors in a table.
    pub const fn indirect(pieces: u16) -> Shape {
        Shape { pieces, is_indirect: true }
    }

    /// Descriptors of the ring that a slot takes.
    pub(super) fn width(self) -> u16 {
        if self.is_indirect { 1 } else { self.pieces }
    }
}

/// A buffer that the device is done with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Used {
    /// Which; for chains posted raw, what was given as their id.
    pub slot: u16,
    /// Bytes the device says it wrote.
    pub len: u32,
}

/// What both kinds of rings have.
pub(super) struct Backing {
    pub(super) memory: Arc<DriverMemory>,
    pub(super) size: u16,
    pub(super) slots: u16,
    pub(super) shape: Shape,
    pub(super) header_len: usize,
    pub(super) buffer_len: usize,
    /// [`WRITE`] where the device writes the buffers.
    pub(super) direction: u16,
    /// Used entries that cannot be: see [`super::Ring::faults`].
    pub(super) faults: u64,
    pub(super) kick: OwnedFd,
    pub(super) call: OwnedFd,
    buffers: usize,
    tables: usize,
}

impl Backing {
    pub(super) fn new(memory: &Arc<DriverMemory>, place: &Place) -> Result<Backing, DriverError> {
        let new_eventfd = || eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| io("eventfd")(error.into()));
        let pieces = place.shape.pieces;
        assert!((1..=PIECES_MAX).contains(&pieces), "a buffer is cut into 1 to {PIECES_MAX} pieces");
        let slots = place.size / place.shape.width();
        assert!(slots > 0, "a ring of {} has no room for {pieces} descriptors", place.size);
        Ok(Backing {
            memory: memory.clone(),
            size: place.size,
            slots,
            shape: place.shape,
            header_len: VNET_HEADER_MRG_LEN,
            buffer_len: place.buffer_len,
            direction: if place.is_written { WRITE } else { 0 },
            faults: 0,
            kick: new_eventfd()?,
            call: new_eventfd()?,
            buffers: place.buffers,
            tables: place.tables,
        })
    }

    /// Where the buffer of a slot begins in memory.
    #[inline]
    pub(super) fn buffer_at(&self, slot: u16) -> usize {
        self.buffers + usize::from(slot) * self.buffer_len
    }

    fn table_at(&self, slot: u16) -> usize {
        self.tables + usize::from(slot) * usize::from(self.shape.pieces) * 16
    }

    /// The guest physical address of something at an offset of memory.
    #[inline]
    pub(super) fn address(&self, offset: usize) -> u64 {
        GUEST_BASE + offset as u64
    }

    /// Piece `index` of the first `len` bytes of a slot's buffer: address and bytes.
    pub(super) fn piece(&self, slot: u16, len: u32, index: u16) -> (u64, u32) {
        let start = self.address(self.buffer_at(slot));
        let header_len = self.header_len as u32;
        if self.shape.pieces == 1 {
            return (start, len);
        }
        if index == 0 {
            return (start, header_len);
        }
        let (frame_len, parts) = (u64::from(len - header_len), u64::from(self.shape.pieces - 1));
        let border = |part: u64| frame_len * part / parts;
        let (from, to) = (border(u64::from(index) - 1), border(u64::from(index)));
        (start + u64::from(header_len) + from, (to - from) as u32)
    }

    /// Descriptors that a slot's buffer can be cut into as its shape says: each has a byte.
    pub(super) fn check_len(&self, len: usize) {
        assert!(len <= self.buffer_len, "the frame is longer than a buffer of its ring");
        let pieces = usize::from(self.shape.pieces);
        assert!(pieces == 1 || len >= self.header_len + pieces - 1, "the frame has fewer bytes than pieces");
    }

    /// The descriptor that points at a slot's indirect table: address, bytes, flags. The table itself is read by the
    /// device, whatever it says of the buffers (virtio 1.2 sections 2.7.5.3 and 2.8.7).
    #[inline]
    pub(super) fn table(&self, slot: u16) -> (u64, u32, u16) {
        (self.address(self.table_at(slot)), 16 * u32::from(self.shape.pieces), INDIRECT)
    }

    /// Writes a slot's indirect table for the first `len` bytes of its buffer. `put` writes an entry at an offset.
    pub(super) fn put_table(&self, slot: u16, len: u32, put: impl Fn(&DriverMemory, usize, Descriptor)) {
        let (table, pieces) = (self.table_at(slot), self.shape.pieces);
        for index in 0..pieces {
            let (address, len) = self.piece(slot, len, index);
            let (link, next) = if index + 1 < pieces { (NEXT, index + 1) } else { (0, 0) };
            let entry = Descriptor { address, len, flags: self.direction | link, next };
            put(&self.memory, table + 16 * usize::from(index), entry);
        }
    }

    /// Kicks, wanted or not.
    pub(super) fn kick(&self) {
        let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
    }

    /// Waits for an interrupt and takes it; answers whether one came.
    pub(super) fn wait_for_interrupt(&self, timeout: Duration) -> bool {
        super::wait_readable(self.call.as_fd(), timeout) && rustix::io::read(&self.call, &mut [0u8; 8]).is_ok()
    }

    /// A used entry as the device wrote it, held against what it can be.
    #[inline]
    pub(super) fn checked(&mut self, slot: u16, len: u32, was_posted: &mut [bool]) -> Option<Used> {
        let was_posted = was_posted.get_mut(usize::from(slot)).is_some_and(std::mem::take);
        if was_posted && len as usize <= self.buffer_len {
            return Some(Used { slot, len });
        }
        self.faults += 1;
        None
    }
}

/// Writes an entry of a split ring's descriptor table, or of an indirect table, anywhere into memory.
pub fn put_descriptor_at(memory: &DriverMemory, offset: usize, descriptor: Descriptor) {
    let (low, high) = descriptor.to_words();
    memory.word64(offset).store(low, Ordering::Relaxed);
    memory.word64(offset + 8).store(high, Ordering::Relaxed);
}

/// Whether a signal is due: the event index lies between the position before and the one after (virtio 1.2 section
/// 2.7.7.2, `vring_need_event`).
#[inline]
pub(super) fn is_event_between(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Slots in the order in which they came.
pub(super) struct Fifo {
    entries: Box<[u16]>,
    head: usize,
    len: usize,
}

impl Fifo {
    pub(super) fn new(capacity: u16) -> Fifo {
        Fifo { entries: vec![0; usize::from(capacity)].into(), head: 0, len: 0 }
    }

    pub(super) fn clear(&mut self) {
        (self.head, self.len) = (0, 0);
    }

    #[inline]
    fn at(&self, index: usize) -> usize {
        let at = self.head + index;
        if at >= self.entries.len() { at - self.entries.len() } else { at }
    }

    /// Adds one; a full one forgets it, which happens only where chains are posted raw.
    #[inline]
    pub(super) fn push(&mut self, slot: u16) {
        if self.len < self.entries.len() {
            self.entries[self.at(self.len)] = slot;
            self.len += 1;
        }
    }

    #[inline]
    pub(super) fn pop(&mut self) -> Option<u16> {
        let slot = self.get(0)?;
        self.head = self.at(1);
        self.len -= 1;
        Some(slot)
    }

    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<u16> {
        (index < self.len).then(|| self.entries[self.at(index)])
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn position_of(&self, slot: u16) -> Option<usize> {
        (0..self.len).find(|index| self.get(*index) == Some(slot))
    }
}
