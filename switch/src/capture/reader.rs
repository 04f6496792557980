//! The end of a capture that reads: on a control thread, at leisure, and without ever making a worker wait.

use super::{Buffer, Capture, Record};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, PoisonError};

/// The other end of a capture. Dropping it does not take the capture from its port.
pub struct Reader {
    pub(super) capture: Arc<Capture>,
    /// One a worker, to be swapped with the one that is filled.
    pub(super) buffers: Vec<Buffer>,
}

impl Reader {
    /// The capture.
    pub fn capture(&self) -> &Arc<Capture> {
        &self.capture
    }

    /// Takes what was captured since the last call; answers how many frames that are. What was taken then is forgotten.
    pub fn collect(&mut self) -> usize {
        self.capture.wake.drain();
        let mut count = 0;
        for (lane, buffer) in self.capture.lanes.iter().zip(&mut self.buffers) {
            buffer.clear();
            let mut filling = lane.filling.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::swap(&mut filling.buffer, buffer);
            filling.has_called = false;
            drop(filling);
            count += buffer.records.len();
        }
        count
    }

    /// What the last [`Reader::collect`] took, in the order of time; frames of one moment in the order of the workers.
    pub fn frames(&self) -> impl Iterator<Item = (&Record, &[u8])> {
        let mut lanes: Vec<_> = self.buffers.iter().map(|buffer| buffer.frames().peekable()).collect();
        std::iter::from_fn(move || {
            let heads = lanes.iter_mut().enumerate();
            let first = heads.filter_map(|(at, lane)| lane.peek().map(|(record, _)| (record.at, at))).min()?.1;
            lanes[first].next()
        })
    }
}

/// Becomes readable when a lane is half full, until the next [`Reader::collect`].
impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.capture.wake.as_fd()
    }
}
