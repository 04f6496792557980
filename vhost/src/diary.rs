//! Which sessions are told of in the log: a peer decides how often it comes and goes, and must not fill our log by it.
//!
//! Owned by the session's thread.

use std::path::Path;
use switch::clock::Clock;

/// Sessions told of in a minute: a guest that boots takes a few, with its firmware and its loader.
const SESSIONS_MAX: u32 = 10;
/// A minute, ns.
const MINUTE_NS: u64 = 60_000_000_000;

/// What was told of so far.
#[derive(Debug, Default)]
pub(crate) struct Diary {
    clock: Clock,
    /// When the minute began, ns.
    begun_ns: u64,
    /// Sessions told of in it.
    told: u32,
    /// Sessions not told of since the last one that was.
    untold: u64,
    /// Whether the present session is told of.
    is_told: bool,
}

impl Diary {
    /// A session begins at this socket.
    pub(crate) fn begin(&mut self, path: &Path) {
        let untold = self.take(self.clock.now().ns);
        self.is_told = untold.is_some();
        match untold {
            Some(untold) => tracing::info!(path = %path.display(), untold, "a vhost-user peer is connected"),
            // The last word must not be that a session ended, for the peer may be here for good now.
            None if self.untold == 1 => tracing::info!(
                path = %path.display(),
                "a vhost-user peer is connected again, as often before; for the rest of a minute its sessions are not told of"
            ),
            None => {}
        }
    }

    /// It ended.
    pub(crate) fn end(&self, path: &Path, reason: &str) {
        if self.is_told {
            tracing::info!(path = %path.display(), reason, "the vhost-user session ended");
        }
    }

    /// Whether a session that begins now is told of, and then how many before it were not.
    fn take(&mut self, now_ns: u64) -> Option<u64> {
        if now_ns.saturating_sub(self.begun_ns) >= MINUTE_NS {
            (self.begun_ns, self.told) = (now_ns, 0);
        }
        if self.told == SESSIONS_MAX {
            self.untold += 1;
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_comes_and_goes_all_the_time_is_told_of_now_and_then_with_how_often_it_was_not() {
        let mut diary = Diary::default();
        let begun_ns = 7 * MINUTE_NS;
        let told: Vec<_> = (0..1000).filter_map(|at| diary.take(begun_ns + at)).collect();
        assert_eq!(told, [0; SESSIONS_MAX as usize]);
        assert_eq!(diary.take(begun_ns + MINUTE_NS - 1), None);
        assert_eq!(diary.take(begun_ns + MINUTE_NS), Some(1000 - u64::from(SESSIONS_MAX) + 1));
        assert_eq!(diary.take(begun_ns + MINUTE_NS), Some(0));
    }
}
