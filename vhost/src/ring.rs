//! A split virtqueue as raw memory: its three parts, and the single accesses that the protocol is made of.
//!
//! Virtio 1.2 section 2.7. Two sides share this memory: the guest writes descriptors and the available ring, the device
//! the used ring. Where the parts lie is checked once, in [`SplitRing::new`]; after that no access can leave them, since
//! positions wrap by the ring's size and descriptor indices are compared with it. Every field is read once per use,
//! volatile or atomic, so that the compiler never reads it again. The orderings: an index is loaded with acquire before
//! the entries it covers and stored with release after them.
//!
//! [`SplitRing`] has no state: who uses it keeps the positions.

use crate::chain::{DESCRIPTOR_LEN, Descriptor, DescriptorSource};
use crate::memory::{GuestMemory, RegionHint};
use crate::message::RingAddresses;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

/// Entries a ring may have (virtio 1.2 section 2.7).
pub const QUEUE_SIZE_MAX: u16 = 32_768;

/// `VRING_AVAIL_F_NO_INTERRUPT`: the driver does not want to be interrupted.
const NO_INTERRUPT: u16 = 1;
/// `VRING_USED_F_NO_NOTIFY`: the device does not want to be kicked.
const NO_NOTIFY: u16 = 1;

/// Why a ring cannot be where it is said to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RingError {
    /// A size that is no power of two between 1 and [`QUEUE_SIZE_MAX`].
    #[error("a ring of {given} entries; it must be a power of two up to {QUEUE_SIZE_MAX}")]
    BadSize {
        /// The size.
        given: u32,
    },
    /// A part that is not aligned, or not in one region of the guest's memory.
    #[error("the {part} at {address:#x} is not aligned, or not inside one memory region")]
    BadAddress {
        /// Which part.
        part: &'static str,
        /// Where it should be, in the frontend's space.
        address: u64,
    },
}

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
    memory: Arc<GuestMemory>,
}

// SAFETY: the pointers stay valid as long as `memory`, on any thread; all access is volatile or atomic.
// Why unsafe: raw pointers are not `Send` and `Sync` by default.
unsafe impl Send for SplitRing {}
// SAFETY: as above. Two threads that write the used ring at once would confuse the guest, not the memory.
// Why unsafe: as above.
unsafe impl Sync for SplitRing {}

impl SplitRing {
    /// Finds a ring of `size` entries at the frontend's addresses.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn new(memory: Arc<GuestMemory>, addresses: &RingAddresses, size: u32) -> Result<SplitRing, RingError> {
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
        Ok(SplitRing { descriptors, available, used, mask: (size - 1) as u16, memory })
    }

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
        // SAFETY: the index lies 2 bytes into the available ring, inside its region and aligned (checked in `new`), and the
        // memory lives as long as `self`.
        // Why unsafe: the index is shared with another process.
        unsafe { AtomicU16::from_ptr(self.available.add(2).cast_mut().cast()) }
    }

    #[inline]
    fn used_word(&self) -> &AtomicU16 {
        // SAFETY: the index lies 2 bytes into the used ring, inside its region and aligned (checked in `new`), and the
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
        // SAFETY: `slot` is below the ring's size; 4 + 2 * size bytes are inside its region (checked in `new`).
        // Why unsafe: the entry is shared with another process.
        u16::from_le(unsafe { self.available.add(4 + 2 * slot).cast::<u16>().read_volatile() })
    }

    /// Entry `index` of the descriptor table, read once; `None` beyond the table.
    #[inline]
    pub fn descriptor(&self, index: u16) -> Option<Descriptor> {
        if index > self.mask {
            return None;
        }
        // SAFETY: `index` is below the ring's size; 16 * size bytes are inside the region, aligned (checked in `new`).
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
        // in `new`).
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

    /// Whether the guest wants to be interrupted for what was just published.
    #[inline]
    pub fn wants_interrupt(&self) -> bool {
        // Section 2.7.7.2: the flag is read after the index was written, or the guest, which writes the flag and then reads
        // the index, and we could each miss the other. Pairs with the driver's barrier.
        fence(Ordering::SeqCst);
        // SAFETY: the flags are the first two bytes of the available ring.
        // Why unsafe: they are shared with another process.
        let flags = u16::from_le(unsafe { self.available.cast::<u16>().read_volatile() });
        flags & NO_INTERRUPT == 0
    }

    /// Tells the guest whether to kick us for new entries.
    ///
    /// After asking for kicks the caller must look at [`SplitRing::available_index`] once more; the full fence before
    /// that look is here. It pairs with the one the driver has between its index and our flag.
    #[inline]
    pub fn set_kicks(&self, are_wanted: bool) {
        let flags = if are_wanted { 0 } else { NO_NOTIFY };
        // SAFETY: the flags are the first two bytes of the used ring, and only the device writes them.
        // Why unsafe: they are shared with another process.
        unsafe { self.used.cast::<u16>().write_volatile(flags.to_le()) };
        if are_wanted {
            fence(Ordering::SeqCst);
        }
    }
}

/// A ring's table and its memory as the chain walk wants them; remembers where the last translation was found.
pub(crate) struct RingSource<'a> {
    ring: &'a SplitRing,
    hint: Cell<RegionHint>,
}

impl<'a> RingSource<'a> {
    pub(crate) fn new(ring: &'a SplitRing, hint: RegionHint) -> RingSource<'a> {
        RingSource { ring, hint: Cell::new(hint) }
    }
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
