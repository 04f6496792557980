//! A guest's virtqueue, whichever of the two layouts of virtio 1.2 it has: [`split`] (section 2.7) or [`packed`] (section 2.8).
//!
//! [`Layout`] is what the port does with a ring, so that each way through the port is written once and compiled for both.
//! A ring has no state; who uses it keeps its [`Layout::Place`]. A burst looks at the chains that are there, takes them one
//! by one, and shows the guest at its end what was given back. Chains come back in the order they were taken, always, which
//! is why `VIRTIO_F_IN_ORDER` costs nothing.
//!
//! Both sides share this memory. Where its parts lie is checked once, when a ring is made; after that no access can leave
//! them. Every field is read once per use, volatile or atomic, so that the compiler never reads it again.

pub mod packed;
pub mod split;

pub use packed::PackedRing;
pub use split::SplitRing;

use crate::chain::{CHAIN_MAX, Chain, ChainError, Direction, INDIRECT, NEXT};
use crate::inflight::{RecordError, Resumed};
use crate::memory::{Area, DirtyLog, GuestMemory, RegionHint};
use crate::message::RingAddresses;
use crate::net::{F_EVENT_IDX, F_IN_ORDER};
use std::sync::Arc;

/// Entries a ring may have (virtio 1.2 sections 2.7 and 2.8).
pub const QUEUE_SIZE_MAX: u16 = 32_768;
/// Chains that one frame can take and that are shown to the guest together: room for a frame of 64 KiB in buffers of the
/// smallest MTU's size.
pub const FRAME_CHAINS_MAX: usize = 128;

/// Why a ring cannot be where it is said to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RingError {
    /// A size that the layout does not allow.
    #[error("a ring of {given} entries; it may have up to {QUEUE_SIZE_MAX}, and a split one a power of two")]
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
    /// A position that the ring does not have.
    #[error("position {given:#x} in a ring of {size} entries")]
    BadPosition {
        /// The position, as the messages carry it.
        given: u32,
        /// Entries.
        size: u32,
    },
}

/// Why nothing can be written down of a ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeepError {
    /// The record will not do.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The base will not do.
    #[error(transparent)]
    Ring(#[from] RingError),
}

/// The guest announces what its ring cannot hold: an index out of reach, a chain without end or too wide to look for it. The
/// ring stands still.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overrun;

/// What was agreed about signals and order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Terms {
    /// `VIRTIO_F_EVENT_IDX`: either side tells from which entry on it wants to be signalled.
    pub has_event_index: bool,
    /// `VIRTIO_F_IN_ORDER`: one used entry may stand for all before it.
    pub is_in_order: bool,
}

impl Terms {
    /// Reads them off the features the guest chose.
    pub fn new(features: u64) -> Terms {
        Terms { has_event_index: features & F_EVENT_IDX != 0, is_in_order: features & F_IN_ORDER != 0 }
    }
}

/// The first descriptor of a chain, read once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Entry {
    /// Guest physical address of the buffer.
    pub address: u64,
    /// Its bytes.
    pub len: u32,
    /// The flags of [`crate::chain`].
    pub flags: u16,
    /// What names the chain: the index of this descriptor (split), or its buffer id if it is the only one (packed).
    pub id: u16,
}

impl Entry {
    /// Whether it is a whole chain by itself: neither linked nor indirect.
    #[inline]
    pub fn is_alone(&self) -> bool {
        self.flags & (NEXT | INDIRECT) == 0
    }

    /// The chain, if this is all of it.
    #[inline]
    pub fn alone(&self) -> Taken {
        Taken { id: self.id, width: 1 }
    }
}

/// A chain as it is named when it goes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Taken {
    /// What the guest knows it by.
    pub id: u16,
    /// Entries of the ring it takes: 1 in a split ring, its descriptors in a packed one.
    pub width: u16,
}

impl Taken {
    /// Whether it took more entries than a chain may have descriptors: it is broken, and cost more to follow than a good one.
    #[inline]
    pub fn is_too_wide(self) -> bool {
        usize::from(self.width) > CHAIN_MAX
    }
}

/// A chain that was followed: what it is called, and whether its buffers may be used.
pub type Walked = (Taken, Result<(), ChainError>);

/// Where the record of a ring is kept, and what is known of it.
pub struct Kept {
    /// The area it lies in.
    pub area: Arc<Area>,
    /// Where it begins there, bytes.
    pub start: usize,
    /// Whether it may know better than the base where the ring stands.
    pub is_asked: bool,
}

/// What the port does with a ring. No method can be made to leave the ring's memory, whatever stands in it.
pub trait Layout: Sized + Send + Sync + 'static {
    /// How far it has come; owned by one thread at a time.
    type Place: Send;
    /// A chain that is available, to look at several before taking one.
    type Cursor: Copy;
    /// Whether where it stands cannot be read off it.
    const IS_PACKED: bool;

    /// Finds a ring of `size` entries at the frontend's addresses.
    ///
    /// # Errors
    /// [`RingError`].
    fn find(memory: Arc<GuestMemory>, addresses: &RingAddresses, size: u32, terms: Terms) -> Result<Self, RingError>;

    /// Bytes of what [`Layout::keep`] needs for a ring of `size` entries.
    fn record_len(size: u16) -> usize;

    /// From now on, has where it stands written down for a later process ([`crate::inflight`]); first finds out from there
    /// where it stands, if the messages say `base`. Answers what became of it, with the base to go on with.
    ///
    /// # Errors
    /// [`KeepError`].
    fn keep(&mut self, kept: Kept, base: u32) -> Result<(Resumed, u32), KeepError>;

    /// From now on, marks what it writes of itself in a log, at the guest address that `addresses` give for it. Whoever
    /// writes buffers marks those.
    fn log_to(&mut self, log: &Arc<DirtyLog>, addresses: &RingAddresses);

    /// Where to go on, if the messages say `base`.
    ///
    /// # Errors
    /// [`RingError::BadPosition`].
    fn resume(&self, base: u32) -> Result<Self::Place, RingError>;

    /// Where the next device would go on, as the messages carry it: behind what was shown.
    fn base(&self, place: &Self::Place) -> u32;

    /// The memory it lies in.
    fn memory(&self) -> &GuestMemory;

    /// Where the next chain is looked for.
    fn position(&self, place: &Self::Place) -> u16;

    /// Whether there is nothing to take at a position, for whoever does not hold the place.
    fn is_empty_at(&self, position: u16) -> bool;

    /// Reads the first descriptors of the chains that are available and not taken, as many as `entries` holds; answers how
    /// many there are. Stops early behind one that is linked, since where the next begins is known only at its end.
    ///
    /// # Errors
    /// [`Overrun`].
    fn look(&self, place: &mut Self::Place, entries: &mut [Entry]) -> Result<usize, Overrun>;

    /// The first descriptor of the next chain, if it is available at a glance: of a split ring only what the last look at the index
    /// covered. Nothing is taken.
    fn peek(&self, place: &Self::Place) -> Option<Entry>;

    /// The next chain that was not taken.
    fn cursor(&self, place: &Self::Place) -> Self::Cursor;

    /// Follows the chain at `cursor` and moves the cursor behind it; `None` if none is available there. The first descriptor
    /// is read again: nothing that [`Layout::look`] said is believed.
    ///
    /// # Errors
    /// [`Overrun`].
    fn walk(
        &self,
        place: &mut Self::Place,
        cursor: &mut Self::Cursor,
        hint: &mut RegionHint,
        direction: Direction,
        chain: &mut Chain,
    ) -> Result<Option<Walked>, Overrun>;

    /// Chains that may still be taken before [`Layout::show`] must be called.
    fn room(&self, place: &Self::Place) -> usize;

    /// Takes the next chain and gives it back: `len` bytes of it were written. The guest does not see it yet.
    fn take(&self, place: &mut Self::Place, taken: Taken, len: u32);

    /// The same for the chains of entries that [`Layout::look`] found next, each all of its chain; `len` of each says how much of it
    /// was written. `IS_READ`: nothing was.
    #[inline]
    fn take_all<const IS_READ: bool>(&self, place: &mut Self::Place, entries: &[Entry]) {
        for entry in entries {
            self.take(place, entry.alone(), if IS_READ { 0 } else { entry.len });
        }
    }

    /// Shows the guest what was given back; answers whether it wants to be interrupted for it.
    ///
    /// `IS_READ`: the guest's own frames, of which nothing was written.
    fn show<const IS_READ: bool>(&self, place: &mut Self::Place) -> bool;

    /// Tells the guest to kick us for new entries; answers whether there are some already.
    fn ask_for_kicks(&self, place: &mut Self::Place) -> bool;

    /// Tells the guest that we poll. May be called by any thread.
    fn refuse_kicks(&self);
}
