//! One ring of a port, and everything it takes to run it.

use crate::call::Call;
use crate::chain::Chain;
use crate::memory::RegionHint;
use crate::ring::{Entry, FRAME_CHAINS_MAX, Layout, RingError, Taken};
use arc_swap::ArcSwapOption;
use crossbeam_utils::CachePadded;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// One ring of a port.
pub struct Queue<L: Layout> {
    pub(super) ring: L,
    /// The ring's number in the protocol: even for those the guest receives by.
    pub(super) index: u8,
    pub(super) kick: Option<Arc<OwnedFd>>,
    /// Exchanged by the session at any time: QEMU does so whenever the guest masks its interrupt.
    call: ArcSwapOption<Call>,
    moving: CachePadded<Moving<L>>,
}

/// What moves in a ring, and what tells others of it.
struct Moving<L: Layout> {
    /// Where a worker looks next for what the guest sends, to be read without the lock; written only under it.
    next: AtomicU16,
    state: Mutex<Locked<L>>,
}

/// What a ring's lock guards: what moves in it, and a list of entries for the burst under way, so that none has to be made.
type Locked<L> = (State<L>, [Entry; FRAME_CHAINS_MAX]);

/// What moves in a ring.
pub(super) struct State<L: Layout> {
    pub(super) place: L::Place,
    /// The guest announced what the ring cannot hold; it stands still.
    pub(super) is_broken: bool,
    /// Descriptors that the burst under way may still have us read on the long way.
    pub(super) reads_left: u64,
    /// The guest is to be interrupted at the end of the burst, for what was shown to it meanwhile.
    pub(super) is_call_due: bool,
    pub(super) hint: RegionHint,
    pub(super) chain: Chain,
    pub(super) reserved: Vec<Reserved>,
    pub(super) pieces: Vec<Piece>,
}

/// A chain of the guest's receive ring that a frame is about to fill.
#[derive(Clone, Copy)]
pub(super) struct Reserved {
    pub(super) taken: Taken,
    /// Bytes it holds.
    pub(super) capacity: u32,
}

/// A range of guest memory inside one region; it was translated once and will be again.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub(super) address: u64,
    pub(super) len: u32,
}

impl<L: Layout> Queue<L> {
    /// Goes on at `base`, or where the ring itself knows better ([`Layout::resume`]).
    ///
    /// Whether the guest shall kick is up to `Port::arm`; until then it need not.
    ///
    /// # Errors
    /// [`RingError::BadPosition`].
    pub fn new(
        ring: L,
        base: u32,
        index: u8,
        kick: Option<Arc<OwnedFd>>,
        call: Option<Arc<Call>>,
    ) -> Result<Queue<L>, RingError> {
        let state = State {
            place: ring.resume(base)?,
            is_broken: false,
            reads_left: 0,
            is_call_due: false,
            hint: RegionHint::default(),
            chain: Chain::default(),
            reserved: Vec::with_capacity(FRAME_CHAINS_MAX),
            pieces: Vec::with_capacity(super::PIECES_MAX),
        };
        ring.refuse_kicks();
        let moving = Moving {
            next: AtomicU16::new(ring.position(&state.place)),
            state: Mutex::new((state, [Entry::default(); FRAME_CHAINS_MAX])),
        };
        Ok(Queue { ring, index, kick, call: ArcSwapOption::new(call), moving: CachePadded::new(moving) })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Locked<L>> {
        self.moving.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    pub(super) fn try_lock(&self) -> Option<MutexGuard<'_, Locked<L>>> {
        match self.moving.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(state)) => Some(state.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Whether the guest has sent nothing since [`Queue::moved_on`].
    #[inline]
    pub(super) fn seems_empty(&self) -> bool {
        // Relaxed: the worker that polls the queue wrote it. One that has just been given the queue may read an older position
        // once; it takes what is there a round later, or locks for nothing.
        self.ring.is_empty_at(self.moving.next.load(Ordering::Relaxed))
    }

    /// Notes where the ring is looked at next.
    #[inline]
    pub(super) fn moved_on(&self, state: &State<L>) {
        self.moving.next.store(self.ring.position(&state.place), Ordering::Relaxed);
    }

    pub(super) fn set_call(&self, call: Option<Arc<Call>>) {
        self.call.store(call);
    }

    /// Where the next device would go on, as the messages carry it. Meaningful once no worker uses the ring.
    pub fn position(&self) -> u32 {
        self.ring.base(&self.lock().0.place)
    }

    /// Shows the guest what was given back, and interrupts it if it wants, or wanted of what was shown in the middle of the
    /// burst: once a burst is enough.
    #[inline]
    pub(super) fn show<const IS_READ: bool>(&self, state: &mut State<L>) {
        let was_wanted = !IS_READ && std::mem::take(&mut state.is_call_due);
        if (self.ring.show::<IS_READ>(&mut state.place) || was_wanted)
            && let Some(call) = &*self.call.load()
        {
            call.signal();
        }
    }
}
