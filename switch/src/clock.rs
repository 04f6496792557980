//! The one place of the engine that reads a clock. Everything else gets [`Now`] as an argument.

use crate::worker::Now;
use rustix::io::pread;
use rustix::time::{ClockId, clock_gettime};
use std::fs::File;
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

/// What the kernel's scheduler counts of one thread (`/proc/PID/task/TID/schedstat`, Documentation/scheduler/sched-stats.rst).
pub(crate) struct Schedule {
    file: File,
}

/// How a thread fared so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Turns {
    /// Nanoseconds in which it could have run and others did.
    pub(crate) queued_ns: u64,
    /// How often it was given a CPU.
    pub(crate) count: u64,
}

impl Schedule {
    /// Of the calling thread, whoever reads it later; `None` from a kernel that does not tell.
    pub(crate) fn of_this_thread() -> Option<Schedule> {
        File::open("/proc/thread-self/schedstat").ok().map(|file| Schedule { file })
    }

    /// How it fared so far. Two system calls' time.
    pub(crate) fn turns(&self) -> Option<Turns> {
        let mut text = [0; 64];
        let len = pread(&self.file, &mut text, 0).ok()?;
        let mut words = std::str::from_utf8(&text[..len]).ok()?.split_ascii_whitespace().skip(1);
        let mut number = || words.next()?.parse().ok();
        Some(Turns { queued_ns: number()?, count: number()? })
    }
}

/// Nanoseconds of a CPU that the calling thread has used: what it slept or waited for a CPU is not in them. What interrupts took of it,
/// and a hypervisor of the host's, is on most kernels. A system call.
pub fn thread_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}
