//! What is told of a socket's sessions in the log: a peer decides how often it comes and goes, and must not fill our log by it.
//!
//! Owned by the session's thread.

use std::path::Path;
use switch::clock::Clock;

/// Sessions told of in a minute: a guest that boots takes a few, with its firmware and its loader. As many reasons for having none.
const TOLD_MAX: u32 = 10;
/// A minute, ns.
const MINUTE_NS: u64 = 60_000_000_000;

/// What was told of so far.
#[derive(Debug, Default)]
pub(crate) struct Diary {
    clock: Clock,
    sessions: Count,
    reasons: Count,
    /// Whether the present session is told of.
    is_told: bool,
}

/// Of things that are told of, [`TOLD_MAX`] a minute.
#[derive(Debug, Default)]
struct Count {
    /// When the minute began, ns.
    begun_ns: u64,
    /// Told of in it.
    told: u32,
    /// Not told of since the last one that was.
    untold: u64,
}

impl Diary {
    /// A session begins at this socket; answers whether it is told of. Of one that is not, nothing else is told either.
    pub(crate) fn begin(&mut self, path: &Path) -> bool {
        let untold = self.sessions.take(self.clock.now().ns);
        self.is_told = untold.is_some();
        match untold {
            Some(untold) => tracing::info!(path = %path.display(), untold, "a vhost-user peer is connected"),
            // The last word must not be that a session ended, for the peer may be here for good now.
            None if self.sessions.untold == 1 => tracing::info!(
                path = %path.display(),
                "a vhost-user peer is connected again, as often before; for the rest of a minute its sessions are not told of"
            ),
            None => {}
        }
        self.is_told
    }

    /// It ended.
    pub(crate) fn end(&self, path: &Path, reason: &str) {
        if self.is_told {
            tracing::info!(path = %path.display(), reason, "the vhost-user session ended");
        }
    }

    /// There is none, for another reason than before.
    pub(crate) fn none(&mut self, path: &Path, reason: &str) {
        if let Some(untold) = self.reasons.take(self.clock.now().ns) {
            tracing::info!(path = %path.display(), reason, untold, "no vhost-user session");
        }
    }
}

impl Count {
    /// Whether one that happens now is told of, and then how many before it were not.
    fn take(&mut self, now_ns: u64) -> Option<u64> {
        if now_ns.saturating_sub(self.begun_ns) >= MINUTE_NS {
            (self.begun_ns, self.told) = (now_ns, 0);
        }
        if self.told == TOLD_MAX {
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
        let mut sessions = Count::default();
        let begun_ns = 7 * MINUTE_NS;
        let told: Vec<_> = (0..1000).filter_map(|at| sessions.take(begun_ns + at)).collect();
        assert_eq!(told, [0; TOLD_MAX as usize]);
        assert_eq!(sessions.take(begun_ns + MINUTE_NS - 1), None);
        assert_eq!(sessions.take(begun_ns + MINUTE_NS), Some(1000 - u64::from(TOLD_MAX) + 1));
        assert_eq!(sessions.take(begun_ns + MINUTE_NS), Some(0));
    }
}
