//! A device that moves frames, as a worker sees it, and as the control side sees it.
//!
//! [`Port`] is what the packet path calls: once a burst, never once a packet. A port object never changes its mind: when a
//! guest's memory or rings change, the device's own thread publishes another object in its place and waits until no
//! worker holds the old one. [`Device`] is the side that stays: it knows whether somebody is connected and why not.

use crate::batch::Batch;
use crate::ids::{PortIndex, QueueIndex};
use crate::ledger::Tally;
use std::any::Any;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// What stands at a port's place in a snapshot: rings that are mapped, or an open TAP.
///
/// All methods take `&self`: several workers may send to one port. Each queue guards its own state with a try-lock that is
/// taken once a call. Calls never block and never allocate. It is `Any`, so that who made a port can have its own type back.
pub trait Port: Any + Send + Sync {
    /// Receive queues, from the switch's view: each is polled by exactly one worker.
    fn rx_queues(&self) -> u16;

    /// Transmit queues.
    fn tx_queues(&self) -> u16;

    /// Takes frames from the device into `batch`, at most [`Batch::room`] of them; fewer is always allowed.
    ///
    /// Frames the device presented but that cannot be carried are counted as dropped in `tally`, with
    /// [`Tally::packets`] counting them too. Tails may lie in the device's own memory until [`Port::rx_done`].
    fn rx<'r>(&'r self, ingress: PortIndex, queue: QueueIndex, batch: &mut Batch<'r>, tally: &mut Tally);

    /// Gives back to the device what the `rx` calls since the last `rx_done` took, in the order taken.
    fn rx_done(&self, queue: QueueIndex);

    /// Sends the picked packets of the batch, in order, by that queue; or those of each flow in order, where the device itself chooses
    /// by which of its queues a flow goes. Each is delivered or dropped with a reason, told to `tally` in the
    /// order of the picks: a capture learns from it which ones were delivered.
    fn tx(&self, queue: QueueIndex, batch: &mut Batch<'_>, picks: &[u8], tally: &mut Tally);

    /// What becomes readable when the rx queue has work while armed; `None` if nothing does and it must be polled.
    fn wake_fd(&self, queue: QueueIndex) -> Option<BorrowedFd<'_>>;

    /// What becomes readable when another worker leaves frames of the tx queue of this number to the worker that polls the rx
    /// queue, while that is armed; `None` if nobody ever does.
    fn tx_wake_fd(&self, _queue: QueueIndex) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Whether the worker that polls the queue, which is armed, may sleep only for a short time: something is under way of whose
    /// end nobody tells.
    fn is_blind(&self, queue: QueueIndex) -> bool {
        self.wake_fd(queue).is_none()
    }

    /// Asks the device to wake us on new frames; answers whether some are there already.
    fn arm(&self, queue: QueueIndex) -> bool;

    /// Polling again: the device need not wake us.
    fn disarm(&self, queue: QueueIndex);

    /// Whether a look at an empty queue costs so much that the worker should watch [`Port::wake_fd`] instead.
    fn may_doze(&self) -> bool {
        false
    }

    /// From now on the worker that polls the queue watches its descriptor, edge-triggered, and calls [`Port::rouse`] when it
    /// shows something; or no longer does, if not `is_watched`. A queue that is watched may doze while it is empty: rx
    /// then answers without a look at the device, and the worker need not ask.
    fn watched(&self, _queue: QueueIndex, _is_watched: bool) {}

    /// Whether the queue dozes, by what rx found last.
    fn is_dozing(&self, _queue: QueueIndex) -> bool {
        false
    }

    /// The watched descriptor showed something: rx must look again. Called between rounds.
    fn rouse(&self, _queue: QueueIndex) {}
}

/// Whether frames can flow, by the device: the guest's rings run, or the kernel's carrier is up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// They can.
    Up,
    /// They cannot, or not by all of the guest's rings: one that had to be stopped loses what is put there, though others
    /// may go on.
    Down,
}

/// A device's condition at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceState {
    /// The backend stands: op-status may be UP, whatever the guest's driver does.
    pub is_ready: bool,
    /// Whether the far side runs.
    pub link: Link,
    /// Why it is not ready, or why the last session ended; for people. Empty if there is nothing to say.
    pub reason: String,
}

/// The side of a port that stays while sessions come and go. Dropping it ends its threads and closes what it opened.
pub trait Device: Send + Sync {
    /// Its condition now.
    fn state(&self) -> DeviceState;
}

/// The place of one port in the switch, where its device publishes the objects that workers use.
pub trait Place: Send + Sync {
    /// Puts `port` there; workers see it at their next round. What stood there before is freed on the control side.
    fn publish(&self, port: Arc<dyn Port>);

    /// Empties the place and returns when no worker holds what stood there: at most one round of each worker.
    ///
    /// The workers must run, or be stepped by another thread: one that stands still holds its snapshot, and this waits for
    /// ever. Not to be called with a snapshot in hand.
    fn withdraw(&self);
}
