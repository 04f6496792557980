//! Whether an interface still has the queues that its port was opened with: an operator may have it use more or fewer at any time
//! (`ethtool -L`), and nobody is told.
//!
//! A port has sockets on the queues of its opening. What comes by one that was added later is dropped by the program, for the
//! host must not see a tenant's frames, so the port must be opened anew. A driver that does not tell how many there are is asked
//! nothing: there such a frame is what tells. The question may wait for whoever changes an
//! interface; so one thread looks once in a while ([`QueueWatch::look`]), and who wants to know reads what it found.
//! Control side only.

use super::bpf::CountMap;
use super::ethtool::Ethtool;
use std::io;
use std::sync::{Mutex, PoisonError};

/// Follows the queues of one interface.
pub(crate) struct QueueWatch {
    ethtool: Ethtool,
    /// To receive and to send by, when the port was opened; `None`: it did not tell.
    opened: Option<[u32; 2]>,
    /// Frames of ours that came by a queue without a socket.
    unclaimed: CountMap,
    last: Mutex<Last>,
}

/// As of the last look.
#[derive(Clone, Copy, Default)]
struct Last {
    changed: Option<[u32; 2]>,
    unclaimed: u64,
}

impl QueueWatch {
    /// Of an interface that has these queues now. Needs CAP_BPF.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn new(ethtool: Ethtool, opened: Option<[u32; 2]>) -> io::Result<QueueWatch> {
        Ok(QueueWatch { ethtool, opened, unclaimed: CountMap::new()?, last: Mutex::default() })
    }

    /// Where the program counts.
    pub(super) fn count_map(&self) -> &CountMap {
        &self.unclaimed
    }

    /// Asks the kernel.
    pub(crate) fn look(&self) {
        // An interface that is gone is told by others.
        let now = self.opened.and_then(|_| self.ethtool.queues().ok());
        let changed = now.filter(|_| now != self.opened);
        let unclaimed = self.unclaimed.get().unwrap_or_default();
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Last { changed, unclaimed };
    }

    fn last(&self) -> Last {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frames of ours that came by a queue without a socket and were dropped, as of the last look.
    pub(crate) fn unclaimed(&self) -> u64 {
        self.last().unclaimed
    }

    /// What is other than at the opening, for people; `None`: nothing was at the last look.
    pub(crate) fn change(&self) -> Option<String> {
        self.last().told(self.opened)
    }
}

impl Last {
    fn told(self, opened: Option<[u32; 2]>) -> Option<String> {
        let Last { changed, unclaimed } = self;
        let Some([rx_before, tx_before]) = opened else {
            // It had a socket on every queue there was.
            let is_another = unclaimed > 0;
            return is_another.then(|| {
                format!(
                    "the device has a queue that it had not when it was opened; {unclaimed} frames by it were dropped"
                )
            });
        };
        let [rx, tx] = changed?;
        let lost = if unclaimed == 0 { String::new() } else { format!("; {unclaimed} frames by others were dropped") };
        Some(format!(
            "the device was opened with {rx_before} queues to receive and {tx_before} to send by and has {rx} and {tx} now{lost}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_other_than_at_its_opening_by_what_it_tells_or_else_by_frames_of_a_queue_that_was_not_there() {
        let told = |changed, unclaimed, opened| Last { changed, unclaimed }.told(opened);
        let is_told = |changed, unclaimed, opened, text: &str| {
            assert!(told(changed, unclaimed, opened).is_some_and(|told| told.contains(text)), "{text}");
        };
        assert_eq!(told(None, 0, Some([1, 1])), None);
        // Queues may go and come between two looks.
        assert_eq!(told(None, 7, Some([1, 1])), None);
        is_told(Some([2, 1]), 0, Some([1, 1]), "1 queues to receive and 1 to send by and has 2 and 1 now");
        is_told(Some([2, 1]), 7, Some([1, 1]), "; 7 frames");
        assert_eq!(told(None, 0, None), None);
        is_told(None, 7, None, "a queue that it had not when it was opened; 7 frames");
    }
}
