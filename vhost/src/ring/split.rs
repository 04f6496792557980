//! A split virtqueue as raw memory: its three parts, and the single accesses that the protocol is made of.
//!
//! Virtio 1.2 section 2.7. The guest writes descriptors and the available ring, the device the used ring. No access can leave
//! the parts, since positions wrap by the ring's size and descriptor indices are compared with it. The orderings: an index is
//! loaded with acquire before the entries it covers and stored with release after them.

use super::{Entry, KeepError, Kept, Layout, Overrun, QUEUE_SIZE_MAX, RingError, Taken, Terms, Walked};
use crate::chain::{Chain, DESCRIPTOR_LEN, Descriptor, DescriptorSource, Direction};
use crate::inflight::{Resumed, SplitRecord, SplitSlots, region_len};
use crate::memory::{DirtyLog, GuestMemory, RegionHint};
use crate::message::RingAddresses;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

/// `VRING_AVAIL_F_NO_INTERRUPT`: the driver does not want to be interrupted.
const NO_INTERRUPT: u16 = 1;
/// `VRING_USED_F_NO_NOTIFY`: the device does not want to be kicked.
const NO_NOTIFY: u16 = 1;

/// Bytes of the used ring of `size` entries, with the event word behind them (virtio 1.2 section 2.7.8).
pub(crate) fn used_ring_len(size: u32) -> u64 {
    6 + 8 * u64::from(size)
}

/// The parts of a ring in a guest's memory, which is held mapped as long as this lives.
pub struct SplitRing {
    descriptors: *const u8,
    available: *const u8,
    used: *mut u8,
    mask: u16,
    has_event_index: bool,
    /// The log of dirty pages, and at which guest address the used ring is logged.
    log: Option<(Arc<DirtyLog>, u64)>,
    memory: Arc<GuestMemory>,
}

/// How far a split ring has come. Indices count chains and wrap by themselves, not by the ring's size.
pub struct SplitPlace {
    /// The next entry of the available ring to take; entries of the used ring are written in step.
    next: u16,
    /// Entries of the used ring shown to the guest.
    shown: u16,
    /// The available index when it was last read: it is on a line that the guest writes, so it is not read more often than
    /// needed.
    end: u16,
}

// SAFETY: the pointers stay valid as long as `memory`, on any thread; all access is volatile or atomic.
// Why unsafe: raw pointers are not `Send` and `Sync` by default.
unsafe impl Send for SplitRing {}
// SAFETY: as above. Two threads that write the used ring at once would confuse the guest, not the memory.
// Why unsafe: as above.
unsafe impl Sync for SplitRing {}

impl SplitRing {
    /// Entries.
    #[inline]
    pub fn size(&self) -> u16 {
        self.mask.wrapping_add(1)
    }

    /// The memory it lies in.
    #[inline]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    #[inline]
    fn available_word(&self) -> &AtomicU16 {
        // SAFETY: the index lies 2 bytes into the available ring, inside its region and aligned (checked in `find`), and the
        // memory lives as long as `self`.
        // Why unsafe: the index is shared with another process.
        unsafe { AtomicU16::from_ptr(self.available.add(2).cast_mut().cast()) }
    }

    #[inline]
    fn used_word(&self) -> &AtomicU16 {
        // SAFETY: the index lies 2 bytes into the used ring, inside its region and aligned (checked in `find`), and the
        // memory lives as long as `self`.
        // Why unsafe: the index is shared with another process.
        unsafe { AtomicU16::from_ptr(self.used.add(2).cast()) }
    }

    /// How far the guest has filled the available ring. What it put there before is visible after this.
    #[inline]
    pub fn available_index(&self) -> u16 {
        u16::from_le(self.available_word().load(Ordering::Acquire))
    }

    /// The head of the chain at a position of the available ring; not checked.
    #[inline]
    pub fn available_entry(&self, position: u16) -> u16 {
        let slot = usize::from(position & self.mask);
        // SAFETY: `slot` is below the ring's size; 4 + 2 * size bytes are inside its region (checked in `find`).
        // Why unsafe: the entry is shared with another process.
        u16::from_le(unsafe { self.available.add(4 + 2 * slot).cast::<u16>().read_volatile() })
    }

    /// Entry `index` of the descriptor table, read once; `None` beyond the table.
    #[inline]
    pub fn descriptor(&self, index: u16) -> Option<Descriptor> {
        if index > self.mask {
            return None;
        }
        // SAFETY: `index` is below the ring's size; 16 * size bytes are inside the region, aligned (checked in `find`).
        // Why unsafe: the entry is shared with another process.
        unsafe {
            let entry = self.descriptors.add(usize::from(index) * DESCRIPTOR_LEN).cast::<u64>();
            Some(Descriptor::from_words(entry.read_volatile(), entry.add(1).read_volatile()))
        }
    }

    /// Asks the processor to bring entry `index` of the table near; any index will do.
    #[inline]
    pub fn prefetch_descriptor(&self, index: u16) {
        switch::segment::prefetch(self.descriptors.wrapping_add(usize::from(index) * DESCRIPTOR_LEN));
    }

    /// Asks the processor to bring `count` used entries near, to be written.
    #[inline]
    fn prefetch_used(&self, position: u16, count: usize) {
        const LINE: usize = 64;
        let first = self.used.wrapping_add(4 + 8 * usize::from(position & self.mask));
        for line in 0..=8 * count / LINE {
            switch::segment::prefetch_to_write(first.wrapping_add(line * LINE));
        }
    }

    /// How far the device has filled the used ring, by what stands in memory.
    pub fn used_index(&self) -> u16 {
        u16::from_le(self.used_word().load(Ordering::Relaxed))
    }

    /// Writes a used entry: the chain that started at `head` is done and the device wrote `len` bytes into it. The guest
    /// looks at it only after [`SplitRing::publish_used`].
    #[inline]
    pub fn put_used(&self, position: u16, head: u16, len: u32) {
        let slot = usize::from(position & self.mask);
        // SAFETY: `slot` is below the ring's size; 4 + 8 * size bytes are inside its region and 4-byte aligned (checked
        // in `find`).
        // Why unsafe: the entry is shared with another process.
        unsafe {
            let entry = self.used.add(4 + 8 * slot).cast::<u32>();
            entry.write_volatile(u32::from(head).to_le());
            entry.add(1).write_volatile(len.to_le());
        }
    }

    /// Shows the guest all used entries before `position`.
    #[inline]
    pub fn publish_used(&self, position: u16) {
        self.used_word().store(position.to_le(), Ordering::Release);
    }

    /// The flags of the available ring: what the driver wants of interrupts.
    #[inline]
    fn available_flags(&self) -> u16 {
        // SAFETY: the flags are the first two bytes of the available ring.
        // Why unsafe: they are shared with another process.
        u16::from_le(unsafe { self.available.cast::<u16>().read_volatile() })
    }

    /// The used index from which on the driver wants an interrupt.
    #[inline]
    fn used_event(&self) -> u16 {
        // SAFETY: the event word lies behind the entries; 6 + 2 * size bytes are inside the region (checked in `find`).
        // Why unsafe: it is shared with another process.
        u16::from_le(unsafe { self.available.add(4 + 2 * usize::from(self.size())).cast::<u16>().read_volatile() })
    }

    fn put_used_flags(&self, flags: u16) {
        // SAFETY: the flags are the first two bytes of the used ring, and only the device writes them.
        // Why unsafe: they are shared with another process.
        unsafe { self.used.cast::<u16>().write_volatile(flags.to_le()) };
        self.mark(0, 2);
    }

    /// Writes the available index from which on the driver is to kick.
    fn put_available_event(&self, index: u16) {
        // SAFETY: the event word lies behind the entries; 6 + 8 * size bytes are inside the region (checked in `find`).
        // Why unsafe: it is shared with another process.
        unsafe { self.used.add(4 + 8 * usize::from(self.size())).cast::<u16>().write_volatile(index.to_le()) };
        self.mark(4 + 8 * u64::from(self.size()), 2);
    }

    /// Marks bytes of the used ring as written, if there is a log.
    #[inline]
    fn mark(&self, offset: u64, len: u64) {
        if let Some((log, used)) = &self.log {
            log.mark(used.wrapping_add(offset), len);
        }
    }

    /// Marks the used entries between two positions.
    #[inline]
    fn mark_entries(&self, from: u16, to: u16) {
        if self.log.is_none() {
            return;
        }
        let (first, count, size) =
            (u64::from(from & self.mask), u64::from(to.wrapping_sub(from)), u64::from(self.size()));
        let before_end = count.min(size - first);
        self.mark(4 + 8 * first, 8 * before_end);
        self.mark(4, 8 * (count - before_end).min(size));
    }
}

impl Layout for SplitRing {
    type Place = SplitPlace;
    type Cursor = u16;
    const IS_PACKED: bool = false;

    fn find(
        memory: Arc<GuestMemory>,
        addresses: &RingAddresses,
        size: u32,
        terms: Terms,
    ) -> Result<SplitRing, RingError> {
        if size == 0 || size > u32::from(QUEUE_SIZE_MAX) || !size.is_power_of_two() {
            return Err(RingError::BadSize { given: size });
        }
        let entries = u64::from(size);
        let find = |part, address, len, align| {
            memory.ring_part(address, len, align).ok_or(RingError::BadAddress { part, address })
        };
        // Section 2.7: sizes and alignments of the three parts; the event words behind the rings are counted in.
        let descriptors = find("descriptor table", addresses.descriptors, 16 * entries, 16)?;
        let available = find("available ring", addresses.available, 6 + 2 * entries, 2)?;
        let used = find("used ring", addresses.used, used_ring_len(size), 4)?;
        let has_event_index = terms.has_event_index;
        Ok(SplitRing { descriptors, available, used, mask: (size - 1) as u16, has_event_index, log: None, memory })
    }

    fn record_len(size: u16) -> usize {
        region_len(false, size)
    }

    /// Nothing is ever in flight and the used index is in the guest's memory, so that once it stands, nothing is to be kept.
    fn keep(&mut self, Kept { area, start, .. }: Kept, _base: u32) -> Result<(Resumed, u32), KeepError> {
        let resumed = SplitRecord::new(area, start, self.size())?.start(self)?;
        Ok((resumed, u32::from(resumed.position)))
    }

    fn log_to(&mut self, log: &Arc<DirtyLog>, addresses: &RingAddresses) {
        self.log = Some((log.clone(), addresses.log));
    }

    /// Goes on where the used ring in memory says the last device stopped: a chain that was taken and never given back is
    /// taken again, and none is lost.
    fn resume(&self, _base: u32) -> Result<SplitPlace, RingError> {
        let index = self.used_index();
        Ok(SplitPlace { next: index, shown: index, end: index })
    }

    fn base(&self, place: &SplitPlace) -> u32 {
        u32::from(place.shown)
    }

    #[inline]
    fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    #[inline]
    fn position(&self, place: &SplitPlace) -> u16 {
        place.next
    }

    #[inline]
    fn is_empty_at(&self, position: u16) -> bool {
        position == self.available_index()
    }

    #[inline]
    fn look(&self, place: &mut SplitPlace, entries: &mut [Entry]) -> Result<usize, Overrun> {
        let mut ready = place.end.wrapping_sub(place.next);
        if usize::from(ready) < entries.len() {
            place.end = self.available_index();
            ready = place.end.wrapping_sub(place.next);
            if ready > self.size() {
                return Err(Overrun);
            }
        }
        let count = usize::from(ready).min(entries.len());
        self.prefetch_used(place.next, count);
        for (at, entry) in entries[..count].iter_mut().enumerate() {
            entry.id = self.available_entry(place.next.wrapping_add(at as u16));
            self.prefetch_descriptor(entry.id);
        }
        for entry in &mut entries[..count] {
            // An index beyond the table leaves flags that no short way takes: the walk finds out why.
            let Descriptor { address, len, flags, .. } =
                self.descriptor(entry.id).unwrap_or(Descriptor { flags: u16::MAX, ..Descriptor::default() });
            (entry.address, entry.len, entry.flags) = (address, len, flags);
        }
        Ok(count)
    }

    #[inline]
    fn peek(&self, place: &SplitPlace) -> Option<Entry> {
        if place.next == place.end {
            return None;
        }
        let id = self.available_entry(place.next);
        let Descriptor { address, len, flags, .. } = self.descriptor(id)?;
        Some(Entry { address, len, flags, id })
    }

    #[inline]
    fn cursor(&self, place: &SplitPlace) -> u16 {
        place.next
    }

    fn walk(
        &self,
        place: &mut SplitPlace,
        cursor: &mut u16,
        hint: &mut RegionHint,
        direction: Direction,
        chain: &mut Chain,
    ) -> Result<Option<Walked>, Overrun> {
        if *cursor == place.end {
            let (end, walked) = (self.available_index(), cursor.wrapping_sub(place.next));
            let ready = end.wrapping_sub(place.next);
            // Nor may it have gone back behind what was walked of it.
            if ready > self.size() || ready < walked {
                return Err(Overrun);
            }
            place.end = end;
            if *cursor == end {
                return Ok(None);
            }
        }
        let head = self.available_entry(*cursor);
        *cursor = cursor.wrapping_add(1);
        let source = RingSource { ring: self, hint: Cell::new(*hint) };
        let walked = chain.walk(&source, self.size(), head, direction);
        *hint = source.hint.get();
        Ok(Some((Taken { id: head, width: 1 }, walked)))
    }

    #[inline]
    fn room(&self, _place: &SplitPlace) -> usize {
        usize::MAX
    }

    #[inline]
    fn take(&self, place: &mut SplitPlace, taken: Taken, len: u32) {
        self.put_used(place.next, taken.id, len);
        place.next = place.next.wrapping_add(1);
    }

    #[inline]
    fn take_all<const IS_READ: bool>(&self, place: &mut SplitPlace, entries: &[Entry]) {
        let mut next = place.next;
        for entry in entries {
            self.put_used(next, entry.id, if IS_READ { 0 } else { entry.len });
            next = next.wrapping_add(1);
        }
        place.next = next;
    }

    #[inline]
    fn show<const IS_READ: bool>(&self, place: &mut SplitPlace) -> bool {
        let before = std::mem::replace(&mut place.shown, place.next);
        if before == place.next {
            return false;
        }
        self.mark_entries(before, place.next);
        self.publish_used(place.next);
        self.mark(2, 2);
        // Section 2.7.7.2: the driver's wish is read after the index was written, or the driver, which writes its wish and
        // then reads the index, and we could each miss the other. Pairs with the driver's barrier.
        fence(Ordering::SeqCst);
        if self.has_event_index {
            // Section 2.7.10: whether the event lies in what was just shown.
            return place.next.wrapping_sub(self.used_event()).wrapping_sub(1) < place.next.wrapping_sub(before);
        }
        self.available_flags() & NO_INTERRUPT == 0
    }

    fn ask_for_kicks(&self, place: &mut SplitPlace) -> bool {
        if self.has_event_index {
            self.put_available_event(place.next);
        }
        self.put_used_flags(0);
        // Pairs with the fence the driver has between its index and our wish.
        fence(Ordering::SeqCst);
        self.available_index() != place.next
    }

    fn refuse_kicks(&self) {
        // With event indices the flags mean nothing (section 2.7.10.1), and an event that lies behind is refusal enough.
        if !self.has_event_index {
            self.put_used_flags(NO_NOTIFY);
        }
    }
}

impl SplitSlots for SplitRing {
    fn used_index(&self) -> u16 {
        SplitRing::used_index(self)
    }

    fn available_entry(&self, position: u16) -> u16 {
        SplitRing::available_entry(self, position)
    }

    fn put_used(&self, position: u16, head: u16, len: u32) {
        SplitRing::put_used(self, position, head, len);
        self.mark_entries(position, position.wrapping_add(1));
    }

    fn publish_used(&self, position: u16) {
        SplitRing::publish_used(self, position);
        self.mark(2, 2);
    }
}

/// A ring's table and its memory as the chain walk wants them; remembers where the last translation was found.
struct RingSource<'a> {
    ring: &'a SplitRing,
    hint: Cell<RegionHint>,
}
impl DescriptorSource for RingSource<'_> {
    fn entry(&self, index: u16) -> Option<Descriptor> {
        self.ring.descriptor(index)
    }

    fn at(&self, address: u64) -> Option<Descriptor> {
        let mut hint = self.hint.get();
        let found = self.ring.memory.descriptor(&mut hint, address);
        self.hint.set(hint);
        found
    }
}
