//! The one place of the engine that reads a clock. Everything else gets [`Now`] as an argument.

use crate::worker::Now;
use rustix::time::{ClockId, clock_gettime};
use std::time::Instant;

/// A monotonic clock that starts at one second, so that ages never underflow.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

/// What the clock shows at its start, ns.
const EPOCH_NS: u64 = 1_000_000_000;

impl Default for Clock {
    fn default() -> Self {
        Clock { start: Instant::now() }
    }
}

impl Clock {
    /// This moment.
    #[inline]
    pub fn now(&self) -> Now {
        Now { ns: EPOCH_NS + u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX - EPOCH_NS) }
    }
}

/// Nanoseconds of a CPU that the calling thread has used: what it slept or waited for a CPU is not in them. What interrupts took of it,
/// and a hypervisor of the host's, is on most kernels. A system call.
pub fn thread_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}
