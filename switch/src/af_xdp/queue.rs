//! One queue of an AF_XDP port: a socket with its rings by direction, each behind a lock of its own.
//!
//! Whoever sends puts frames into the ring under the lock and wakes the kernel without it. The call sends only some frames at a
//! time, and only it tells that the interface is down or gone; one worker at a time makes it, for all of them ([`Turn`]).
//! What it leaves is remembered: the worker that polls the queue's rx wakes the kernel again, every round while it is awake
//! and the interface is up.
//! Before it sleeps it looks once more, sleeps for a short time only while something is under way, and is woken by whoever
//! leaves something meanwhile.
//!
//! Bounds: [`SEND_CALLS_MAX`] calls a burst; [`LOCK_SPINS`] tries for the lock; what the kernel lost is asked for at every
//! [`LOSS_LOOK_CALLS`]th burst and before the worker sleeps.

use super::frames::{Layout, RxFrames, TxFrames};
use super::pool::Seat;
use super::turn::Turn;
use super::{Descriptor, Mode, Ring, XdpSocket, lost, send};
use crate::pool::Area;
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

/// Bursts between two looks at what the kernel lost.
const LOSS_LOOK_CALLS: u32 = 256;
/// Rounds between two calls while the interface is down: nobody tells when it is up again, and a call a round is as much as a
/// round costs.
const DOWN_ROUNDS: u32 = 256;
/// System calls to send one burst; the kernel sends 32 frames a call.
const SEND_CALLS_MAX: usize = 64;
/// Tries to take a queue that another worker sends by: about a microsecond a hundred of them, and a burst takes some of these.
const LOCK_SPINS: u32 = 2_000;

/// The interface no longer exists.
#[derive(Debug)]
pub(super) struct Gone;

/// One socket.
pub(crate) struct Queue {
    pub(super) socket: OwnedFd,
    pub(super) area: Arc<Area>,
    pub(super) layout: Layout,
    pub(super) mode: Mode,
    pub(super) rx: Mutex<RxQueue>,
    pub(super) tx: Mutex<TxFrames>,
    /// The tx ring, to see whether the kernel has taken everything.
    pub(super) sending: Arc<Ring<Descriptor>>,
    turn: Turn,
    /// Whether something was left in the tx ring.
    pub(super) has_unsent: AtomicBool,
    /// Whether the interface was down when something was to be sent.
    pub(super) is_down: AtomicBool,
    /// Rounds since, of the worker that polls the rx queue.
    down_rounds: AtomicU32,
    /// Whether the worker that polls the rx queue may be asleep.
    is_asleep: AtomicBool,
    /// Wakes it.
    pub(super) left: OwnedFd,
    /// Lost frames that the kernel told before the worker slept, not yet counted.
    pub(super) lost_untold: AtomicU64,
    /// Its place in the pool, whose frames are free for others once everything above is closed; `None`: memory of its own.
    pub(super) seat: Option<Seat>,
}

pub(super) struct RxQueue {
    pub(super) frames: RxFrames,
    /// Calls until the next look at what was lost.
    pub(super) look_in: u32,
    /// Lost frames, as far as the kernel told.
    pub(super) lost: u64,
}

impl Queue {
    /// # Errors
    /// If the process has no descriptor left.
    pub(super) fn new(socket: XdpSocket, seat: Option<Seat>) -> io::Result<Queue> {
        let XdpSocket { fd, area, layout, mode, rx, tx } = socket;
        Ok(Queue {
            socket: fd,
            area,
            layout,
            mode,
            rx: Mutex::new(RxQueue { frames: rx, look_in: LOSS_LOOK_CALLS, lost: 0 }),
            sending: tx.ring().clone(),
            tx: Mutex::new(tx),
            turn: Turn::new(),
            has_unsent: AtomicBool::new(false),
            is_down: AtomicBool::new(false),
            down_rounds: AtomicU32::new(0),
            is_asleep: AtomicBool::new(false),
            left: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            lost_untold: AtomicU64::new(0),
            seat,
        })
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

    /// Whether a frame received by this queue can be sent by the other as it lies.
    #[inline]
    pub(super) fn is_beside(&self, other: &Queue) -> bool {
        match (&self.seat, &other.seat) {
            (Some(one), Some(other)) => one.is_beside(other),
            _ => false,
        }
    }

    /// Frames that one of `len` bytes takes.
    #[inline]
    pub(super) fn pieces_for(&self, len: usize) -> usize {
        len.div_ceil(self.layout.frame_size as usize).max(1)
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

    /// Whether frames wait to be sent by an interface that may take them.
    pub(super) fn has_waiting(&self) -> bool {
        !self.is_down.load(Ordering::Relaxed) && self.sending.waiting() > 0
    }

    /// Whether the worker that polls the rx queue is to wake the kernel in this round.
    #[inline]
    pub(super) fn is_to_push_out(&self) -> bool {
        self.has_unsent.load(Ordering::Relaxed)
            && (!self.is_down.load(Ordering::Relaxed)
                || self.down_rounds.fetch_add(1, Ordering::Relaxed) % DOWN_ROUNDS == DOWN_ROUNDS - 1)
    }

    /// The worker that polls the rx queue is about to sleep: whoever leaves something from now on wakes it.
    pub(super) fn fall_asleep(&self) {
        self.is_asleep.store(true, Ordering::Relaxed);
        // Pairs with the fence in `leave`: either the sleeper sees what was left, or who left it sees the sleeper.
        fence(Ordering::SeqCst);
    }

    /// It is awake and looks by itself.
    pub(super) fn wake_up(&self) {
        self.is_asleep.store(false, Ordering::Relaxed);
    }

    /// Leaves what is in the tx ring to the worker that polls the rx queue.
    #[cold]
    fn leave(&self) {
        self.has_unsent.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.is_asleep.swap(false, Ordering::Relaxed) {
            // A full counter is readable already; nothing else can fail on a descriptor of our own.
            let _ = rustix::io::write(&self.left, &1u64.to_ne_bytes());
        }
    }

    /// Wakes the kernel to send what is in the ring. Somebody else who is at it already does so for us.
    ///
    /// # Errors
    /// If the interface no longer exists.
    pub(super) fn push_out(&self) -> Result<(), Gone> {
        if !self.turn.take() {
            return Ok(());
        }
        let mut calls = 0;
        loop {
            self.turn.look();
            // Now, not at the end: what another worker leaves there meanwhile must not be forgotten.
            self.has_unsent.store(false, Ordering::Relaxed);
            let pushed = self.wake_kernel(&mut calls);
            if pushed.is_ok() && calls < SEND_CALLS_MAX {
                if self.turn.end() {
                    return Ok(());
                }
                continue;
            }
            self.turn.give_up();
            // Now, not before: what another worker put before it found the turn taken is seen from here on.
            if pushed.is_ok() && self.sending.waiting() > 0 {
                self.leave();
            }
            return pushed;
        }
    }

    /// Calls until the ring is empty, or nothing more of it is taken.
    fn wake_kernel(&self, calls: &mut usize) -> Result<(), Gone> {
        let mut before = self.sending.taken();
        while *calls < SEND_CALLS_MAX {
            *calls += 1;
            // What was published is seen by a driver that looks after it asked to be woken, or it is seen here that it asked: the
            // driver writes its flag before it looks at the ring for the last time.
            fence(Ordering::SeqCst);
            if self.sending.needs_wakeup() {
                match send(self.socket.as_fd()) {
                    Err(Errno::NETDOWN) => {
                        self.is_down.store(true, Ordering::Relaxed);
                        break;
                    }
                    Err(Errno::NXIO | Errno::NODEV | Errno::BADF) => return Err(Gone),
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
        self.leave();
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests;
