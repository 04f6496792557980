//! Whether Keystone is away, and who may ask it then: nobody for [`PAUSE`], then one at a time until somebody gets an answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Pause after Keystone did not answer.
const PAUSE: Duration = Duration::from_secs(2);

/// Whether Keystone did not answer last time.
#[derive(Clone, Default)]
pub(super) struct Away(Arc<Mutex<Option<Outage>>>);

struct Outage {
    /// Until then nobody asks.
    quiet_until: Instant,
    /// Somebody is asking.
    is_probed: bool,
}

/// Whether one may ask now.
pub(super) enum Leave {
    /// Keystone answered last time.
    Yes,
    /// It did not, and whoever has this finds out whether it does again.
    Probe(Probe),
    /// It is left in peace.
    No,
}

/// The one question while Keystone is away; over when dropped.
pub(super) struct Probe(Away);

impl Away {
    /// Whether nobody more may ask now.
    pub(super) fn is_left_in_peace(&self) -> bool {
        self.outage().as_ref().is_some_and(Outage::is_left_in_peace)
    }

    /// Leave to ask, if one may.
    pub(super) fn leave(&self) -> Leave {
        match &mut *self.outage() {
            None => Leave::Yes,
            Some(outage) if outage.is_left_in_peace() => Leave::No,
            Some(outage) => {
                outage.is_probed = true;
                Leave::Probe(Probe(self.clone()))
            }
        }
    }

    /// Notes whether a question was answered, and returns whether the last one was not.
    pub(super) fn note(&self, is_away: bool) -> bool {
        let mut outage = self.outage();
        let is_probed = outage.as_ref().is_some_and(|outage| outage.is_probed);
        let now = is_away.then(|| Outage { quiet_until: Instant::now() + PAUSE, is_probed });
        std::mem::replace(&mut *outage, now).is_some()
    }

    fn outage(&self) -> MutexGuard<'_, Option<Outage>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outage {
    fn is_left_in_peace(&self) -> bool {
        self.is_probed || Instant::now() < self.quiet_until
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if let Some(outage) = &mut *self.0.outage() {
            outage.is_probed = false;
        }
    }
}
