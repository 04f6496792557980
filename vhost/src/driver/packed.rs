//! The driver's side of a packed virtqueue (virtio 1.2 section 2.8).
//!
//! One ring of descriptors that both sides write. What is available and what is used shows in two flag bits of each
//! descriptor, held against a wrap counter that each side turns over at the ring's end. So every buffer costs the writing
//! of its descriptors anew, and a burst is shown to the device as a whole by writing the flags of its first descriptor
//! last. The device names buffers by an id, here the slot; it may give them back in any order, so free slots stand in a
//! list of their own, while positions of the ring are freed in turn. A ring may have any size.

mod turns;

use super::backing::{Backing, Fifo, Used, is_event_between};
use super::layout::Place;
use super::{DriverError, USER_BASE};
use crate::chain::{Descriptor, NEXT, WRITE};
use crate::memory::DriverMemory;
use crate::message::RingAddresses;
use crate::net::{F_EVENT_IDX, F_IN_ORDER};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// The descriptor is available, if it equals the wrap counter (section 2.8.1).
pub const AVAIL: u16 = 1 << 7;
/// The descriptor is used, if it equals the wrap counter.
pub const USED: u16 = 1 << 15;

/// Signals on, off, or for one descriptor (section 2.8.10).
const EVENTS_ENABLE: u16 = 0;
const EVENTS_DISABLE: u16 = 1;
const EVENTS_AT_DESCRIPTOR: u16 = 2;

/// Entries a ring may have.
pub const SIZE_MAX: u16 = 32_768;

/// One entry of the ring (section 2.8.13).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PackedDescriptor {
    /// Guest physical address of the buffer.
    pub address: u64,
    /// Its bytes; the bytes written, once it is used.
    pub len: u32,
    /// What the device names the whole chain by.
    pub id: u16,
    /// `NEXT`, `WRITE`, `INDIRECT`, [`AVAIL`], [`USED`].
    pub flags: u16,
}

impl PackedDescriptor {
    /// The 16 bytes of an entry, as two words that are stored as they are.
    #[inline]
    pub fn to_words(self) -> (u64, u64) {
        let high = u64::from(self.len) | u64::from(self.id) << 32 | u64::from(self.flags) << 48;
        (self.address.to_le(), high.to_le())
    }

    /// Reads an entry's two words.
    #[inline]
    pub fn from_words(low: u64, high: u64) -> PackedDescriptor {
        let (address, rest) = (u64::from_le(low), u64::from_le(high));
        PackedDescriptor { address, len: rest as u32, id: (rest >> 32) as u16, flags: (rest >> 48) as u16 }
    }
}

/// A place in the ring and the wrap counter on the way there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// Entry, from 0.
    pub index: u16,
    /// The wrap counter; it starts as `true`.
    pub wrap: bool,
}

impl Position {
    /// Where both sides begin (section 2.8.1).
    pub const START: Position = Position { index: 0, wrap: true };

    /// That many entries on, in a ring of `size`.
    #[inline]
    #[must_use]
    pub fn plus(self, count: u16, size: u16) -> Position {
        let index = u32::from(self.index) + u32::from(count);
        match index.checked_sub(u32::from(size)) {
            Some(index) => Position { index: index as u16, wrap: !self.wrap },
            None => Position { index: index as u16, wrap: self.wrap },
        }
    }

    /// The 16 bits by which both event suppression and vhost-user name it: the wrap counter on top.
    pub fn to_bits(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }

    /// Reads them.
    pub fn from_bits(bits: u16) -> Position {
        Position { index: bits & 0x7fff, wrap: bits >> 15 == 1 }
    }
}

/// The flags that make a descriptor available.
#[inline]
fn available_flags(wrap: bool) -> u16 {
    if wrap { AVAIL } else { USED }
}

/// Whether a descriptor with these flags is used.
#[inline]
fn is_used(flags: u16, wrap: bool) -> bool {
    let both = AVAIL | USED;
    flags & both == if wrap { both } else { 0 }
}

/// One packed ring as the driver sees it, with raw access to all that a driver writes.
pub struct PackedRing {
    pub(super) backing: Backing,
    descriptors: usize,
    /// Where the driver says when it wants interrupts.
    driver_events: usize,
    /// Where the device says when it wants kicks.
    device_events: usize,
    /// The next descriptor to make available.
    next: Position,
    /// The next descriptor to be used.
    seen: Position,
    /// Descriptors that are not under way.
    room: u16,
    /// The slot that is made available next, and the one that comes back next, while each came back in its turn.
    turn: u16,
    due: u16,
    /// Whether each did. `free` and `posted` mean nothing then.
    is_orderly: bool,
    /// Slots that are not under way, in the order they came back.
    free: Fifo,
    /// Bytes described of each slot's buffer, or of its table.
    lens: Box<[u32]>,
    /// Descriptors of the ring that each id takes while it is under way.
    widths: Box<[u16]>,
    posted: Box<[bool]>,
    has_event_index: bool,
    /// What was made available and has not come back, oldest first; kept with `VIRTIO_F_IN_ORDER` only.
    order: Option<Fifo>,
    /// Buffers that the last used descriptor stands for and that were not handed out, and the bytes of the last of them.
    unfolding: (u16, u32),
}

impl PackedRing {
    pub(super) fn new(memory: &Arc<DriverMemory>, place: &Place) -> Result<PackedRing, DriverError> {
        assert!((1..=SIZE_MAX).contains(&place.size), "a packed ring has 1 to {SIZE_MAX} entries");
        let backing = Backing::new(memory, place)?;
        let [descriptors, driver_events, device_events] = place.parts;
        let entries = usize::from(place.size);
        let mut ring = PackedRing {
            descriptors,
            driver_events,
            device_events,
            next: Position::START,
            seen: Position::START,
            room: place.size,
            turn: 0,
            due: 0,
            is_orderly: false,
            free: Fifo::new(place.size),
            lens: vec![0; entries].into(),
            widths: vec![place.shape.width(); entries].into(),
            posted: vec![false; entries].into(),
            has_event_index: false,
            order: None,
            unfolding: (0, 0),
            backing,
        };
        ring.list_all_slots();
        ring.set_interrupts(false);
        Ok(ring)
    }

    /// Takes over what was agreed on.
    pub(super) fn agree(&mut self, features: u64) {
        self.has_event_index = features & F_EVENT_IDX != 0;
        let is_in_order = features & F_IN_ORDER != 0;
        if is_in_order != self.order.is_some() {
            self.order = is_in_order.then(|| Fifo::new(self.backing.size));
            self.list_all_slots();
        }
    }

    /// Forgets everything, as after a reset of the device: no descriptor is available or used.
    pub(super) fn reset(&mut self) {
        (self.next, self.seen, self.room) = (Position::START, Position::START, self.backing.size);
        self.unfolding = (0, 0);
        if let Some(order) = &mut self.order {
            order.clear();
        }
        self.list_all_slots();
        for index in 0..self.backing.size {
            self.put(index, PackedDescriptor::default());
        }
    }

    fn list_all_slots(&mut self) {
        (self.turn, self.due) = (0, 0);
        self.is_orderly = self.order.is_none() && self.backing.shape.width() == 1 && !self.backing.shape.is_indirect;
        self.widths.fill(self.backing.shape.width());
        self.posted.fill(false);
        self.free.clear();
        for slot in 0..self.backing.slots {
            self.free.push(slot);
        }
    }

    #[inline]
    fn entry_at(&self, index: u16) -> usize {
        self.descriptors + 16 * usize::from(index)
    }

    /// Writes entry `index` of the ring, whatever it says, the half with the flags last.
    #[inline]
    pub fn put(&self, index: u16, descriptor: PackedDescriptor) {
        let (low, high) = descriptor.to_words();
        let at = self.entry_at(index);
        self.backing.memory.word64(at).store(low, Ordering::Relaxed);
        self.backing.memory.word64(at + 8).store(high, Ordering::Release);
    }

    /// Reads entry `index` of the ring.
    #[inline]
    pub fn entry(&self, index: u16) -> PackedDescriptor {
        let at = self.entry_at(index);
        let high = self.backing.memory.word64(at + 8).load(Ordering::Acquire);
        PackedDescriptor::from_words(self.backing.memory.word64(at).load(Ordering::Relaxed), high)
    }

    /// Where the next descriptor goes.
    pub fn next(&self) -> Position {
        self.next
    }

    /// Where the next used descriptor is expected.
    pub fn seen(&self) -> Position {
        self.seen
    }

    /// Goes on elsewhere, whatever stands there.
    pub fn set_next(&mut self, next: Position) {
        self.next = next;
    }

    /// What the device wrote about kicks: where, and one of 0 (always), 1 (never), 2 (there).
    pub fn device_events(&self) -> (Position, u16) {
        let word = u32::from_le(self.backing.memory.word32(self.device_events).load(Ordering::Relaxed));
        (Position::from_bits(word as u16), (word >> 16) as u16)
    }

    /// Writes what the driver wants of interrupts, whatever it says.
    pub fn put_driver_events(&self, at: Position, flags: u16) {
        let word = u32::from(at.to_bits()) | u32::from(flags) << 16;
        self.backing.memory.word32(self.driver_events).store(word.to_le(), Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    pub(super) fn set_interrupts(&self, are_wanted: bool) {
        let flags = match (are_wanted, self.has_event_index) {
            (false, _) => EVENTS_DISABLE,
            (true, false) => EVENTS_ENABLE,
            (true, true) => EVENTS_AT_DESCRIPTOR,
        };
        self.put_driver_events(self.seen, flags);
    }

    /// Whether a kick is due for `count` descriptors that end before `next`.
    #[inline]
    fn is_kick_due(&self, next: Position, count: u16) -> bool {
        let (event, flags) = self.device_events();
        if flags != EVENTS_AT_DESCRIPTOR || !self.has_event_index {
            return flags != EVENTS_DISABLE;
        }
        // Both as if the ring went on for ever: an event on the lap before lies one size back (section 2.8.10.1).
        let lap = if event.wrap == next.wrap { 0 } else { self.backing.size };
        is_event_between(event.index.wrapping_sub(lap), next.index.wrapping_sub(count), next.index)
    }

    /// Whether the backend asks to be kicked for the next descriptor.
    pub fn wants_kick(&self) -> bool {
        self.is_kick_due(self.next.plus(1, self.backing.size), 1)
    }

    /// Kicks if the backend wants it, for the last `count` descriptors.
    #[inline]
    pub fn notify(&self, count: u16) {
        // Section 2.8.21.3.1: the flags of the first descriptor before the look at the device's wish.
        fence(Ordering::SeqCst);
        if self.is_kick_due(self.next, count) {
            self.backing.kick();
        }
    }

    /// Makes a chain available whose descriptors have the given addresses, lengths and flags, and kicks if wanted. Takes
    /// any number of positions, the ring's size at most, whether they are free or not.
    pub fn post_chain(&mut self, id: u16, chain: &[Descriptor]) {
        self.keep_lists();
        let count = chain.len().min(usize::from(self.backing.size)) as u16;
        let start = self.next;
        // The first last, for it makes all of them visible (section 2.8.21.1).
        for at in (0..count).rev() {
            let Descriptor { address, len, flags, .. } = chain[usize::from(at)];
            let position = start.plus(at, self.backing.size);
            let flags = flags & !(AVAIL | USED) | available_flags(position.wrap);
            self.put(position.index, PackedDescriptor { address, len, id, flags });
        }
        self.next = start.plus(count, self.backing.size);
        self.room = self.room.saturating_sub(count);
        self.note_posted(id, count);
        self.notify(count);
    }

    /// Describes the first `len` bytes of a slot's buffer, from its next posting on.
    pub(super) fn describe(&mut self, slot: u16, len: u32) {
        self.lens[usize::from(slot)] = len;
        if self.backing.shape.is_indirect {
            self.backing.put_table(slot, len, |memory, at, entry| {
                // Section 2.8.7: entries of a table lie in order; only `WRITE` means something in their flags.
                let entry =
                    PackedDescriptor { address: entry.address, len: entry.len, id: 0, flags: entry.flags & WRITE };
                let (low, high) = entry.to_words();
                memory.word64(at).store(low, Ordering::Relaxed);
                memory.word64(at + 8).store(high, Ordering::Relaxed);
            });
        }
    }

    /// Slots that may be posted now.
    #[inline]
    pub(super) fn free(&mut self) -> u16 {
        let mut used = [Used::default(); 32];
        while self.take(&mut used) == used.len() {}
        self.vacant()
    }

    /// Slots that are known to be free, without a look at what came back since.
    #[inline]
    pub(super) fn vacant(&self) -> u16 {
        if self.is_orderly {
            return self.backing.slots - (self.backing.size - self.room);
        }
        (self.free.len() as u16).min(self.room / self.backing.shape.width())
    }

    /// The slot that is posted next but `ahead`; slot 0 if there are not so many.
    #[inline]
    pub(super) fn next_slot(&self, ahead: u16) -> u16 {
        if self.is_orderly { self.after(self.turn, ahead) } else { self.free.get(usize::from(ahead)).unwrap_or(0) }
    }

    #[inline]
    fn note_posted(&mut self, id: u16, width: u16) {
        if let Some(is_posted) = self.posted.get_mut(usize::from(id)) {
            *is_posted = true;
            self.widths[usize::from(id)] = width;
        }
        if let Some(order) = &mut self.order {
            order.push(id);
        }
    }

    /// Makes the next `count` slots available; they are free and described.
    #[inline]
    pub(super) fn post_next(&mut self, count: u16) {
        if self.is_orderly {
            return self.post_in_turn(count);
        }
        let (shape, size) = (self.backing.shape, self.backing.size);
        let (start, mut first) = (self.next, None);
        for _ in 0..count.min(self.vacant()) {
            let Some(slot) = self.free.pop() else { break };
            self.note_posted(slot, shape.width());
            let len = self.lens[usize::from(slot)];
            for piece in 0..shape.width() {
                let (address, len, flags) = self.part(slot, len, piece);
                let flags = flags | available_flags(self.next.wrap);
                let (low, high) = PackedDescriptor { address, len, id: slot, flags }.to_words();
                let at = self.entry_at(self.next.index);
                self.backing.memory.word64(at).store(low, Ordering::Relaxed);
                if first.is_none() {
                    first = Some((at, high));
                } else {
                    self.backing.memory.word64(at + 8).store(high, Ordering::Relaxed);
                }
                self.next = self.next.plus(1, size);
            }
            self.room -= shape.width();
        }
        let Some((at, high)) = first else { return };
        self.backing.memory.word64(at + 8).store(high, Ordering::Release);
        let turns = if self.next.wrap == start.wrap { 0 } else { size };
        self.notify((self.next.index + turns).wrapping_sub(start.index));
    }

    /// Descriptor `piece` of a slot: address, bytes, flags.
    #[inline]
    fn part(&self, slot: u16, len: u32, piece: u16) -> (u64, u32, u16) {
        let (backing, pieces) = (&self.backing, self.backing.shape.pieces);
        if backing.shape.is_indirect {
            return backing.table(slot);
        }
        if pieces == 1 {
            return (backing.address(backing.buffer_at(slot)), len, backing.direction);
        }
        let (address, len) = backing.piece(slot, len, piece);
        (address, len, backing.direction | if piece + 1 < pieces { NEXT } else { 0 })
    }

    /// Takes what the device is done with, as much as there is room for; answers how much. Their slots are free again, in
    /// this order.
    #[inline]
    pub(super) fn take(&mut self, out: &mut [Used]) -> usize {
        let mut count = self.take_in_turn(out);
        while count < out.len() && !self.is_orderly {
            let Some((id, len)) = self.next_used() else { break };
            let width = self.widths.get(usize::from(id)).copied().unwrap_or(1);
            let width = width.min(self.backing.size - self.room);
            self.seen = self.seen.plus(width, self.backing.size);
            self.room += width;
            if let Some(used) = self.backing.checked(id, len, &mut self.posted) {
                if id < self.backing.slots {
                    self.free.push(id);
                }
                out[count] = used;
                count += 1;
            }
        }
        count
    }

    /// The next buffer used.
    #[inline]
    fn next_used(&mut self) -> Option<(u16, u32)> {
        if self.unfolding.0 == 0 {
            // Nothing under way: what stands there belongs to a lap long gone.
            if self.room == self.backing.size {
                return None;
            }
            let used = self.entry(self.seen.index);
            if !is_used(used.flags, self.seen.wrap) {
                return None;
            }
            let Some(order) = &self.order else { return Some((used.id, used.len)) };
            // Section 2.8.9 (in order): one used descriptor may stand for all buffers up to its own.
            let Some(before) = order.position_of(used.id) else { return Some((used.id, used.len)) };
            self.unfolding = (before as u16 + 1, used.len);
        }
        let (left, len) = self.unfolding;
        self.unfolding.0 = left - 1;
        let id = self.order.as_mut().and_then(Fifo::pop)?;
        Some((id, if left == 1 { len } else { self.backing.buffer_len as u32 }))
    }

    /// Where a device that starts now goes on, in both directions: behind the last used descriptor. What it took and did
    /// not give back is taken again.
    pub(super) fn base(&self) -> u32 {
        let mut at = self.seen;
        let mut left = self.backing.size - self.room;
        let mut passed = 0;
        while left > 0 {
            let used = self.entry(at.index);
            if !is_used(used.flags, at.wrap) {
                break;
            }
            let width_of = |id: u16| self.widths.get(usize::from(id)).copied().unwrap_or(1);
            let mut width = width_of(used.id);
            if let Some(order) = &self.order
                && let Some(last) = order.position_of(used.id)
            {
                width = (passed..=last).filter_map(|at| order.get(at)).map(width_of).sum();
                passed = last + 1;
            }
            let width = width.clamp(1, left);
            at = at.plus(width, self.backing.size);
            left -= width;
        }
        // vhost-user, "Vring descriptor indices for packed virtqueues".
        u32::from(at.to_bits()) | u32::from(at.to_bits()) << 16
    }

    pub(super) fn addresses(&self, index: u32) -> RingAddresses {
        let user = |offset: usize| USER_BASE + offset as u64;
        RingAddresses {
            index,
            flags: 0,
            descriptors: user(self.descriptors),
            used: user(self.device_events),
            available: user(self.driver_events),
            log: 0,
        }
    }
}
