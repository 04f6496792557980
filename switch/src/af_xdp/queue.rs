//! One queue of an AF_XDP port: a socket with its rings by direction, each behind a lock of its own.
//!
//! Whoever sends puts frames into the ring under the lock and wakes the kernel without it, unless the ring was full: the kernel
//! copies them under a lock of its own. Only that call tells that the interface is down or gone, and it sends only some frames at a time; so what it
//! leaves is remembered, and the queue's rx, which is called every round of a worker that is awake, wakes it again.
//!
//! Bounds: [`SEND_CALLS_MAX`] calls a burst; [`LOCK_SPINS`] tries for the lock; what the kernel lost is asked for at every
//! [`LOSS_LOOK_CALLS`]th burst and before the worker sleeps.

use super::frames::{Layout, RxFrames, TxFrames};
use super::{Descriptor, Mode, Ring, XdpSocket, lost, send};
use crate::pool::Area;
use crate::sync::{AtomicBool, AtomicU64, Ordering};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

/// Bursts between two looks at what the kernel lost.
const LOSS_LOOK_CALLS: u32 = 256;
/// System calls to send one burst; the kernel sends 32 frames a call.
const SEND_CALLS_MAX: usize = 64;
/// Tries to take a queue that another worker sends by: about a microsecond a hundred of them, and a burst takes some of these.
const LOCK_SPINS: u32 = 2_000;

/// The interface no longer exists.
pub(super) struct Gone;

/// One socket.
pub(super) struct Queue {
    pub(super) socket: OwnedFd,
    pub(super) area: Arc<Area>,
    pub(super) layout: Layout,
    pub(super) mode: Mode,
    pub(super) rx: Mutex<RxQueue>,
    pub(super) tx: Mutex<TxFrames>,
    /// The tx ring, to see whether the kernel has taken everything.
    pub(super) sending: Arc<Ring<Descriptor>>,
    /// Whether something was left in the tx ring.
    pub(super) has_unsent: AtomicBool,
    /// Whether the interface was down when something was to be sent.
    pub(super) is_down: AtomicBool,
    /// Lost frames that the kernel told before the worker slept, not yet counted.
    pub(super) lost_untold: AtomicU64,
}

pub(super) struct RxQueue {
    pub(super) frames: RxFrames,
    /// Calls until the next look at what was lost.
    pub(super) look_in: u32,
    /// Lost frames, as far as the kernel told.
    pub(super) lost: u64,
}

impl Queue {
    pub(super) fn new(socket: XdpSocket) -> Queue {
        let XdpSocket { fd, area, layout, mode, rx, tx } = socket;
        Queue {
            socket: fd,
            area,
            layout,
            mode,
            rx: Mutex::new(RxQueue { frames: rx, look_in: LOSS_LOOK_CALLS, lost: 0 }),
            sending: tx.ring().clone(),
            tx: Mutex::new(tx),
            has_unsent: AtomicBool::new(false),
            is_down: AtomicBool::new(false),
            lost_untold: AtomicU64::new(0),
        }
    }

    /// The rx side; `None` if another thread has it, as may be for a moment when the queue changes its worker.
    pub(super) fn try_rx(&self) -> Option<MutexGuard<'_, RxQueue>> {
        match self.rx.try_lock() {
            Ok(rx) => Some(rx),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The tx side; `None` if another worker keeps it for too long.
    pub(super) fn lock_tx(&self) -> Option<MutexGuard<'_, TxFrames>> {
        for _ in 0..LOCK_SPINS {
            match self.tx.try_lock() {
                Ok(tx) => return Some(tx),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
            }
        }
        None
    }

    /// Looks at what the kernel lost since the last look.
    #[cold]
    pub(super) fn look_at_losses(&self, rx: &mut RxQueue) {
        rx.look_in = LOSS_LOOK_CALLS;
        if let Ok(lost) = lost(self.socket.as_fd()) {
            let more = lost.wrapping_sub(rx.lost);
            rx.lost = lost;
            self.lost_untold.fetch_add(more, Ordering::Relaxed);
        }
    }

    /// Wakes the kernel to send what is in the ring.
    ///
    /// # Errors
    /// If the interface no longer exists.
    pub(super) fn push_out(&self) -> Result<(), Gone> {
        // Now, not at the end: what another worker leaves there meanwhile must not be forgotten.
        self.has_unsent.store(false, Ordering::Relaxed);
        let mut before = self.sending.taken();
        for _ in 0..SEND_CALLS_MAX {
            if self.sending.needs_wakeup() {
                match send(self.socket.as_fd()) {
                    Err(Errno::NETDOWN) => {
                        self.is_down.store(true, Ordering::Relaxed);
                        break;
                    }
                    Err(Errno::NXIO | Errno::NODEV | Errno::BADF) => {
                        return Err(Gone);
                    }
                    // There is more than it sends at once, or no room at the moment.
                    _ => {}
                }
            } else {
                // The driver is awake and looks by itself.
                self.is_down.store(false, Ordering::Relaxed);
                return Ok(());
            }
            self.is_down.store(false, Ordering::Relaxed);
            if self.sending.waiting() == 0 {
                return Ok(());
            }
            let taken = self.sending.taken();
            if taken == before {
                break;
            }
            before = taken;
        }
        self.has_unsent.store(true, Ordering::Relaxed);
        Ok(())
    }
}
