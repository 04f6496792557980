//! A packed virtqueue as raw memory: one ring of descriptors that both sides write, and two words about signals.
//!
//! Virtio 1.2 section 2.8. Whose a descriptor is shows in two bits of its flags, held against a wrap counter that each side
//! turns over at the ring's end. A used descriptor overwrites an available one, so giving back is remembered in
//! [`PackedPlace`] until the burst is shown: then all of it is written, the first descriptor's flags last, and the driver sees
//! everything or nothing (section 2.8.21). With `VIRTIO_F_IN_ORDER`, of what the guest sent only the last chain is written.
//!
//! Each descriptor is two words. The one with the flags is loaded with acquire before the other, and stored with release
//! after everything it tells of. A ring may have any size. No access can leave it: positions stay below the size.

use super::{
    Entry, FRAME_CHAINS_MAX, KeepError, Kept, Layout, Overrun, QUEUE_SIZE_MAX, RingError, Taken, Terms, Walked,
};
use crate::chain::{Chain, DESCRIPTOR_LEN, Descriptor, Direction, NEXT, WIDTH_MAX};
use crate::inflight::{PackedRecord, PackedSlots, Resumed, region_len};
use crate::memory::{DirtyLog, GuestMemory, RegionHint};
use crate::message::{PackedPosition, RingAddresses};
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering, fence};

/// `VIRTQ_DESC_F_AVAIL`: equal to the driver's wrap counter, and the other one is not, if the descriptor is available.
const AVAIL: u16 = 1 << 7;
/// `VIRTQ_DESC_F_USED`: equal to the device's wrap counter, as the other one, if the descriptor is used.
const USED: u16 = 1 << 15;
/// Chains given back and not shown: two of the longest frames.
const PENDING_MAX: usize = 2 * FRAME_CHAINS_MAX;

/// `RING_EVENT_FLAGS_ENABLE` (section 2.8.10).
const EVENTS_ENABLE: u16 = 0;
/// `RING_EVENT_FLAGS_DISABLE`.
const EVENTS_DISABLE: u16 = 1;
/// `RING_EVENT_FLAGS_DESC`: at a descriptor, with `VIRTIO_F_EVENT_IDX` only.
const EVENTS_AT_DESCRIPTOR: u16 = 2;

/// An entry of the ring and the wrap counter on the way there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cursor {
    index: u16,
    wrap: bool,
}

impl Cursor {
    /// As event words carry it (section 2.8.10): the wrap counter on top.
    fn to_bits(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }

    fn from_bits(bits: u16) -> Cursor {
        Cursor { index: bits & 0x7fff, wrap: bits >> 15 == 1 }
    }

    /// The flags of a descriptor that is available here.
    #[inline]
    fn available_flags(self) -> u16 {
        if self.wrap { AVAIL } else { USED }
    }

    /// The flags of a descriptor that is used here.
    #[inline]
    fn used_flags(self) -> u16 {
        if self.wrap { AVAIL | USED } else { 0 }
    }
}

/// A chain given back and not shown, in one word: how many bytes of it were written, its id above, and on top the entries it takes;
/// the lower two are as in the used descriptor.
#[derive(Clone, Copy, Default)]
struct Pending(u64);

impl Pending {
    #[inline(always)]
    fn new(id: u16, width: u16, len: u32) -> Pending {
        Pending(u64::from(len) | u64::from(id) << 32 | u64::from(width) << 48)
    }

    #[inline]
    fn width(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// The half of the used descriptor that says whose it is, at a place with these flags.
    #[inline(always)]
    fn used(self, flags: u16) -> u64 {
        self.0 & 0xffff_ffff_ffff | u64::from(flags) << 48
    }
}

/// The descriptors of a ring.
#[derive(Clone, Copy)]
struct Table<'r> {
    base: *mut u8,
    size: u16,
    held: PhantomData<&'r PackedRing>,
}

impl<'r> Table<'r> {
    /// The word of entry `index` that `at` bytes into it begin; `index` is below the size, `at` is 0 or 8.
    #[inline(always)]
    fn word(self, index: u16, at: usize) -> &'r AtomicU64 {
        debug_assert!(index < self.size && (at == 0 || at == 8), "positions stay in the ring");
        // SAFETY: every position comes from `after` or `resume`, which keep it below the size, lies between such a one and the ring's
        // end, or was compared with the size; 16 * size bytes are inside one region and 16-byte aligned (checked in `find`), and the
        // ring, which holds the memory, lives as long as `'r`.
        // Why unsafe: the entry is shared with another process.
        unsafe { AtomicU64::from_ptr(self.base.add(usize::from(index) * DESCRIPTOR_LEN + at).cast()) }
    }

    /// The half of an entry that says whose it is: length, id, flags. What the driver wrote before is visible after this.
    #[inline(always)]
    fn state(self, index: u16) -> (u32, u16, u16) {
        let word = u64::from_le(self.word(index, 8).load(Ordering::Acquire));
        (word as u32, (word >> 32) as u16, (word >> 48) as u16)
    }

    #[inline(always)]
    fn address(self, index: u16) -> u64 {
        u64::from_le(self.word(index, 0).load(Ordering::Relaxed))
    }

    #[inline(always)]
    fn put(self, index: u16, used: u64, order: Ordering) {
        self.word(index, 8).store(used.to_le(), order);
    }
}

/// How far a packed ring has come.
pub struct PackedPlace {
    /// The next descriptor to take.
    next: Cursor,
    /// The next descriptor to be shown as used.
    shown: Cursor,
    pending: [Pending; PENDING_MAX],
    pending_count: usize,
    /// Chains that the last look found, if it found any.
    looked: usize,
}

/// The parts of a ring in a guest's memory, which is held mapped as long as this lives.
pub struct PackedRing {
    descriptors: *mut u8,
    /// Where the driver says when it wants interrupts: position, flags.
    driver_events: *const u8,
    /// Where we say when we want kicks.
    device_events: *mut u8,
    size: u16,
    terms: Terms,
    /// Where it is written down how far it has come.
    record: Option<PackedRecord>,
    log: Option<WriteLog>,
    memory: Arc<GuestMemory>,
}

/// Where the ring's own writes are logged.
struct WriteLog {
    log: Arc<DirtyLog>,
    /// Guest addresses of the descriptors, and of the word about kicks.
    descriptors: u64,
    events: u64,
}

// SAFETY: the pointers stay valid as long as `memory`, on any thread; all access is volatile or atomic.
// Why unsafe: raw pointers are not `Send` and `Sync` by default.
unsafe impl Send for PackedRing {}
// SAFETY: as above. Two threads that write descriptors at once would confuse the guest, not the memory.
// Why unsafe: as above.
unsafe impl Sync for PackedRing {}

impl PackedRing {
    #[inline(always)]
    fn table(&self) -> Table<'_> {
        Table { base: self.descriptors, size: self.size, held: PhantomData }
    }

    #[inline]
    fn state(&self, index: u16) -> (u32, u16, u16) {
        self.table().state(index)
    }

    /// Asks the processor to bring `count` entries near, to be written: those available now are given back by the same line.
    #[inline]
    fn prefetch(&self, at: Cursor, count: usize) {
        const LINE: usize = 64;
        let first = self.descriptors.wrapping_add(usize::from(at.index) * DESCRIPTOR_LEN);
        for line in 0..count.div_ceil(LINE / DESCRIPTOR_LEN) {
            switch::segment::prefetch_to_write(first.wrapping_add(line * LINE));
        }
    }

    #[inline]
    fn address(&self, index: u16) -> u64 {
        self.table().address(index)
    }

    #[inline]
    fn put_used(&self, at: Cursor, used: Pending, order: Ordering) {
        self.table().put(at.index, used.used(at.used_flags()), order);
    }

    /// Writes chains that take one entry each from `at` on; the order in which they come to light is left open. Answers where the
    /// last of them lies.
    #[inline]
    fn put_run(&self, mut at: Cursor, mut run: &[Pending]) -> Cursor {
        let table = self.table();
        let mut last = at;
        while !run.is_empty() {
            // As far as the ring's end, positions follow one another and have the same flags.
            let (straight, rest) = run.split_at(run.len().min(usize::from(self.size - at.index)));
            let flags = at.used_flags();
            for (index, pending) in (at.index..).zip(straight) {
                table.put(index, pending.used(flags), Ordering::Relaxed);
            }
            last = Cursor { index: at.index + straight.len() as u16 - 1, wrap: at.wrap };
            at = self.after(at, straight.len() as u16);
            run = rest;
        }
        last
    }

    #[inline]
    fn is_available(at: Cursor, flags: u16) -> bool {
        flags & (AVAIL | USED) == at.available_flags()
    }

    #[inline]
    fn after(&self, at: Cursor, count: u16) -> Cursor {
        let index = u32::from(at.index) + u32::from(count);
        match index.checked_sub(u32::from(self.size)) {
            // `count` is at most the size, so once round is enough.
            Some(index) => Cursor { index: index as u16, wrap: !at.wrap },
            None => Cursor { index: index as u16, wrap: at.wrap },
        }
    }

    /// Descriptors from one position to a later one, less than the size; something else, but no harm, if a guest has had the
    /// ring overtake itself.
    fn distance(&self, from: Cursor, to: Cursor) -> u16 {
        let lap = if from.wrap == to.wrap { 0 } else { self.size };
        to.index.wrapping_add(lap).wrapping_sub(from.index)
    }

    /// What the driver wants of interrupts: a position, and flags.
    #[inline]
    fn driver_events(&self) -> (Cursor, u16) {
        // SAFETY: 4 bytes inside one region and 4-byte aligned (checked in `find`).
        // Why unsafe: they are shared with another process.
        let word = u32::from_le(unsafe { self.driver_events.cast::<u32>().read_volatile() });
        (Cursor::from_bits(word as u16), (word >> 16) as u16)
    }

    fn put_device_events(&self, at: u16, flags: u16) {
        // SAFETY: two words of 2 bytes inside one region, aligned (checked in `find`); only the device writes them.
        // Why unsafe: they are shared with another process.
        let [position, wish] = unsafe {
            [AtomicU16::from_ptr(self.device_events.cast()), AtomicU16::from_ptr(self.device_events.add(2).cast())]
        };
        position.store(at.to_le(), Ordering::Relaxed);
        // Release: the position belongs to the wish.
        wish.store(flags.to_le(), Ordering::Release);
        if let Some(WriteLog { log, events, .. }) = &self.log {
            log.mark(*events, 4);
        }
    }

    /// Writes down what is about to be shown.
    #[inline]
    fn announce(&self, record: &PackedRecord, place: &PackedPlace) {
        // If there are as many chains as entries, each is one.
        if record.has_widths() || usize::from(self.distance(place.shown, place.next)) != place.pending_count {
            let mut at = place.shown;
            for chain in &place.pending[..place.pending_count] {
                record.took(at.index, chain.width());
                at = self.after(at, chain.width());
            }
        }
        record.showing(place.shown.to_bits(), place.next.to_bits());
    }

    /// Marks the entries between two positions as written, if there is a log.
    #[inline]
    fn mark_entries(&self, from: Cursor, to: Cursor) {
        let Some(WriteLog { log, descriptors, .. }) = &self.log else { return };
        let (first, count) = (u64::from(from.index), u64::from(self.distance(from, to)));
        let before_end = count.min(u64::from(self.size) - first);
        log.mark(descriptors + 16 * first, 16 * before_end);
        log.mark(*descriptors, 16 * (count - before_end));
    }
}

impl PackedSlots for PackedRing {
    fn id_and_flags(&self, index: u16) -> (u16, u16) {
        let (_, id, flags) = self.state(index);
        (id, flags)
    }

    fn is_blank(&self, index: u16) -> bool {
        let table = self.table();
        table.word(index, 8).load(Ordering::Relaxed) == 0 && table.word(index, 0).load(Ordering::Relaxed) == 0
    }

    fn put_used(&self, index: u16, len: u32, id: u16, flags: u16) {
        self.table().put(index, Pending::new(id, 0, len).used(flags), Ordering::Release);
        let at = Cursor { index, wrap: true };
        self.mark_entries(at, self.after(at, 1));
    }
}

impl Layout for PackedRing {
    type Place = PackedPlace;
    type Cursor = Cursor;
    const IS_PACKED: bool = true;

    fn find(
        memory: Arc<GuestMemory>,
        addresses: &RingAddresses,
        size: u32,
        terms: Terms,
    ) -> Result<PackedRing, RingError> {
        if size == 0 || size > u32::from(QUEUE_SIZE_MAX) {
            return Err(RingError::BadSize { given: size });
        }
        let find = |part, address, len, align| {
            memory.ring_part(address, len, align).ok_or(RingError::BadAddress { part, address })
        };
        // Section 2.8: sizes and alignments of the three parts. Split rings' names of the fields are those of the messages.
        let descriptors = find("descriptor ring", addresses.descriptors, 16 * u64::from(size), 16)?;
        let driver_events = find("driver's event word", addresses.available, 4, 4)?;
        let device_events = find("device's event word", addresses.used, 4, 4)?;
        Ok(PackedRing {
            descriptors,
            driver_events,
            device_events,
            size: size as u16,
            terms,
            record: None,
            log: None,
            memory,
        })
    }

    fn record_len(size: u16) -> usize {
        region_len(true, size)
    }

    fn keep(&mut self, Kept { area, start, is_asked }: Kept, base: u32) -> Result<(Resumed, u32), KeepError> {
        let record = PackedRecord::new(area, start, self.size)?;
        let mut place = self.resume(base)?;
        let base = place.shown.to_bits();
        let resumed = if is_asked {
            record.start(self, base)?
        } else {
            record.restart(base);
            Resumed { position: base, given_back: 0, is_recorded: false }
        };
        self.record = Some(record);
        place.shown = Cursor::from_bits(resumed.position);
        Ok((resumed, self.base(&place)))
    }

    fn log_to(&mut self, log: &Arc<DirtyLog>, addresses: &RingAddresses) {
        // The messages give one address, which is that of the part the device alone writes. The descriptors, which it
        // writes as well, are logged where they lie.
        let descriptors = self.memory.guest_address(addresses.descriptors).expect("found by `find`");
        self.log = Some(WriteLog { log: log.clone(), descriptors, events: addresses.log });
    }

    /// Goes on behind what was shown as used; what was taken beyond that is still there and is taken again.
    fn resume(&self, base: u32) -> Result<PackedPlace, RingError> {
        let PackedPosition { available, available_wrap, used, used_wrap } = PackedPosition::from_bits(base);
        // Frontends that know of one position only (DPDK's) leave the other half zero.
        let is_half = base >> 16 == 0;
        let next = if is_half {
            Cursor { index: available, wrap: available_wrap }
        } else {
            Cursor { index: used, wrap: used_wrap }
        };
        if next.index >= self.size {
            return Err(RingError::BadPosition { given: base, size: u32::from(self.size) });
        }
        Ok(PackedPlace { next, shown: next, pending: [Pending::default(); PENDING_MAX], pending_count: 0, looked: 0 })
    }

    fn base(&self, place: &PackedPlace) -> u32 {
        let Cursor { index, wrap } = place.shown;
        PackedPosition { available: index, available_wrap: wrap, used: index, used_wrap: wrap }.to_bits()
    }

    #[inline]
    fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    #[inline]
    fn position(&self, place: &PackedPlace) -> u16 {
        place.next.to_bits()
    }

    #[inline]
    fn is_empty_at(&self, position: u16) -> bool {
        let next = Cursor::from_bits(position);
        next.index >= self.size || !PackedRing::is_available(next, self.state(next.index).2)
    }

    #[inline]
    fn look(&self, place: &mut PackedPlace, entries: &mut [Entry]) -> Result<usize, Overrun> {
        let table = self.table();
        let mut at = place.next;
        if !PackedRing::is_available(at, table.state(at.index).2) {
            return Ok(0);
        }
        // Most likely there are as many as last time. A driver that has not got so far would lose these lines to us.
        self.prefetch(at, place.looked);
        let mut count = 0;
        // Once round: a driver that flips flags while we look could else show us the same descriptor again and again, and
        // positions would leave the ring.
        let reach = entries.len().min(usize::from(self.size));
        'look: while count < reach {
            // As far as the ring's end, positions follow one another and have the same flags.
            let straight = (reach - count).min(usize::from(self.size - at.index));
            let available = at.available_flags();
            for (index, entry) in (at.index..).zip(&mut entries[count..][..straight]) {
                let (len, id, flags) = table.state(index);
                if flags & (AVAIL | USED) != available {
                    break 'look;
                }
                *entry = Entry { address: table.address(index), len, flags, id };
                count += 1;
                if flags & NEXT != 0 {
                    break 'look;
                }
            }
            at = self.after(at, straight as u16);
        }
        if count > 0 {
            if count == entries.len() {
                // There are more behind a whole burst: they come near while this one is worked on.
                self.prefetch(self.after(place.next, count as u16), count);
            }
            place.looked = count;
        }
        Ok(count)
    }

    #[inline]
    fn peek(&self, place: &PackedPlace) -> Option<Entry> {
        let at = place.next.index;
        let (len, id, flags) = self.state(at);
        PackedRing::is_available(place.next, flags).then(|| Entry { address: self.address(at), len, flags, id })
    }

    #[inline]
    fn cursor(&self, place: &PackedPlace) -> Cursor {
        place.next
    }

    fn walk(
        &self,
        _place: &mut PackedPlace,
        cursor: &mut Cursor,
        hint: &mut RegionHint,
        direction: Direction,
        chain: &mut Chain,
    ) -> Result<Option<Walked>, Overrun> {
        let mut at = *cursor;
        let (len, id, flags) = self.state(at.index);
        if !PackedRing::is_available(at, flags) {
            return Ok(None);
        }
        let mut descriptor = Descriptor { address: self.address(at.index), len, flags, next: 0 };
        let mut taken = Taken { id, width: 1 };
        chain.clear();
        let mut outcome = Ok(());
        loop {
            // A chain that is wrong is followed all the same: only its last descriptor says what it is called. Not for ever.
            if outcome.is_ok() {
                outcome = chain
                    .push_packed(&descriptor, direction, self.size, |address| self.memory.descriptor(hint, address));
            } else {
                chain.pass_over();
            }
            if descriptor.flags & NEXT == 0 {
                *cursor = self.after(at, 1);
                return Ok(Some((taken, outcome)));
            }
            if taken.width == self.size.min(WIDTH_MAX) {
                return Err(Overrun);
            }
            // The driver makes a chain available as a whole (section 2.8.21), so the flags of the first speak for all.
            at = self.after(at, 1);
            let (len, id, flags) = self.state(at.index);
            descriptor = Descriptor { address: self.address(at.index), len, flags, next: 0 };
            taken = Taken { id, width: taken.width + 1 };
        }
    }

    #[inline]
    fn room(&self, place: &PackedPlace) -> usize {
        PENDING_MAX - place.pending_count
    }

    #[inline]
    fn take(&self, place: &mut PackedPlace, taken: Taken, len: u32) {
        place.pending[place.pending_count] = Pending::new(taken.id, taken.width, len);
        place.pending_count += 1;
        place.next = self.after(place.next, taken.width);
    }

    #[inline]
    fn take_all<const IS_READ: bool>(&self, place: &mut PackedPlace, entries: &[Entry]) {
        // For the sake of `after`. `look` finds no more, and no more than there is room for.
        assert!(entries.len() <= usize::from(self.size), "a look goes once round");
        let pending = &mut place.pending[place.pending_count..][..entries.len()];
        for (pending, entry) in pending.iter_mut().zip(entries) {
            *pending = Pending::new(entry.id, 1, if IS_READ { 0 } else { entry.len });
        }
        place.pending_count += entries.len();
        place.next = self.after(place.next, entries.len() as u16);
    }

    #[inline]
    fn show<const IS_READ: bool>(&self, place: &mut PackedPlace) -> bool {
        let pending = &place.pending[..place.pending_count];
        let Some((&first, others)) = pending.split_first() else { return false };
        if let Some(record) = &self.record {
            self.announce(record, place);
        }
        let mut last = place.shown;
        if IS_READ && self.terms.is_in_order {
            // Section 2.8.15: one used descriptor, with the id of the last chain, stands for all.
            self.put_used(place.shown, *others.last().unwrap_or(&first), Ordering::Release);
        } else {
            let mut at = self.after(place.shown, first.width());
            if usize::from(self.distance(place.shown, place.next)) == pending.len() {
                // As many chains as entries: each takes one.
                if !others.is_empty() {
                    last = self.put_run(at, others);
                }
            } else {
                for &used in others {
                    self.put_used(at, used, Ordering::Relaxed);
                    last = at;
                    at = self.after(at, used.width());
                }
            }
            self.mark_entries(self.after(place.shown, 1), place.next);
            // Release: whoever sees this one used sees the others, and what was written into the buffers.
            self.put_used(place.shown, first, Ordering::Release);
        }
        self.mark_entries(place.shown, self.after(place.shown, 1));
        if let Some(record) = &self.record {
            record.shown(last.to_bits(), place.next.to_bits());
        }
        let before = std::mem::replace(&mut place.shown, place.next);
        place.pending_count = 0;
        // The driver's wish is read after the flags were written; pairs with the driver's barrier (section 2.8.21.3.1).
        fence(Ordering::SeqCst);
        match self.driver_events() {
            (_, EVENTS_DISABLE) => false,
            (event, EVENTS_AT_DESCRIPTOR) if self.terms.has_event_index => {
                self.distance(before, event) < self.distance(before, place.shown)
            }
            _ => true,
        }
    }

    fn ask_for_kicks(&self, place: &mut PackedPlace) -> bool {
        if self.terms.has_event_index {
            self.put_device_events(place.next.to_bits(), EVENTS_AT_DESCRIPTOR);
        } else {
            self.put_device_events(0, EVENTS_ENABLE);
        }
        // Pairs with the fence the driver has between its flags and our wish.
        fence(Ordering::SeqCst);
        let (_, _, flags) = self.state(place.next.index);
        PackedRing::is_available(place.next, flags)
    }

    fn refuse_kicks(&self) {
        self.put_device_events(0, EVENTS_DISABLE);
    }
}

#[cfg(test)]
mod tests;
