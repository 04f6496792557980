//! The one place of the engine that reads a clock. Everything else gets [`Now`] as an argument.

use crate::worker::Now;
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
