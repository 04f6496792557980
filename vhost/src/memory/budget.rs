//! How much address space the peers of all sessions may have us use together.
//!
//! A mapping of a file with holes costs its peer nothing, and us a piece of the process's address space, from which our own
//! memory comes too: without a bound, 128 peers with tables of [`super::MAPPED_BYTES_MAX`] would leave us none, and the first
//! allocation that fails ends the process. What a peer is refused here ends its own session.
//!
//! One counter for the process, changed by the sessions' threads when they map and unmap.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that the peers of all sessions together may have us map: 64 TiB, half of what a process has on x86-64.
pub const MAPPED_BYTES_TOTAL_MAX: u64 = 1 << 46;
const _: () =
    assert!(super::MAPPED_BYTES_MAX <= MAPPED_BYTES_TOTAL_MAX / 64, "64 tables of the largest size have room");

/// Bytes taken.
static MAPPED: AtomicU64 = AtomicU64::new(0);

/// A part of the budget; free again when dropped.
pub(crate) struct Share {
    taken: &'static AtomicU64,
    bytes: u64,
}

impl Share {
    /// Takes `bytes` of what all peers may have; `None` if that much is not left.
    pub(super) fn take(bytes: u64) -> Option<Share> {
        Share::of(&MAPPED, bytes)
    }

    fn of(taken: &'static AtomicU64, bytes: u64) -> Option<Share> {
        let add = |before: u64| before.checked_add(bytes).filter(|&sum| sum <= MAPPED_BYTES_TOTAL_MAX);
        taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(Share { taken, bytes })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_given_and_no_byte_more_and_comes_back() {
        static TAKEN: AtomicU64 = AtomicU64::new(0);
        let most = Share::of(&TAKEN, MAPPED_BYTES_TOTAL_MAX - 4096).unwrap();
        assert!(Share::of(&TAKEN, 4097).is_none() && Share::of(&TAKEN, u64::MAX).is_none());
        let rest = Share::of(&TAKEN, 4096).unwrap();
        assert!(Share::of(&TAKEN, 1).is_none());
        drop((most, rest));
        assert_eq!(TAKEN.load(Ordering::Relaxed), 0);
    }
}
