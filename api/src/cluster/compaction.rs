//! Keeping etcd small: it keeps every version of every key until it is told to forget, and takes no more writes when it is full.
//!
//! Every host counts what it is told. Who counts [`CUT_AFTER`] since history was cut last says so (key `compacted`, of which
//! one write is done at a time), and then has etcd forget what was before the time before that. So history goes back by at least
//! [`CUT_AFTER`] and a host that was away for a while goes on where it was; and nobody needs to be the one whose task that is.
//! An etcd that is full takes not even that key, and is told to forget all the same.

use super::key::Key;
use super::{Cluster, lock};
use crate::etcd::EtcdError;
use crate::etcd::message::{Compare, Revision, Step, Txn};
use std::sync::Mutex;

/// Bytes told between two cuts. etcd has room for 2 GiB by default, and what it tells is longer than what it keeps.
const CUT_AFTER: u64 = 64 << 20;

/// When history was cut last, as far as we know.
#[derive(Default)]
pub(super) struct Compaction(Mutex<Last>);

#[derive(Default)]
struct Last {
    /// The revision that says so; 0: it never was.
    at: Revision,
    /// Bytes told since.
    told: u64,
}

impl Compaction {
    /// History was cut at this revision.
    pub(super) fn put(&self, at: Revision) {
        let mut last = lock(&self.0);
        if at > last.at {
            *last = Last { at, told: 0 };
        }
    }

    /// So much more was told.
    pub(super) fn count(&self, bytes: u64) {
        lock(&self.0).told += bytes;
    }
}

impl Cluster {
    /// Finds out when history was cut last.
    pub(super) fn read_compaction(&self) -> Result<(), EtcdError> {
        let (found, _) = self.wait(self.etcd.get(&self.keys.of(Key::Compacted)))?;
        // etcd may have been set back.
        let at = found.map_or(0, |found| found.mod_revision());
        let mut last = lock(&self.compaction.0);
        if at != last.at {
            *last = Last { at, told: 0 };
        }
        Ok(())
    }

    /// Cuts history if it is time to, and nobody else does.
    pub(super) fn compact_if_due(&self) {
        let before = {
            let mut last = lock(&self.compaction.0);
            if last.told < CUT_AFTER {
                return;
            }
            // Whatever comes of it, it is not tried again at once.
            last.told = 0;
            last.at
        };
        match self.compact_before(before) {
            Ok(true) => tracing::info!(before, "etcd forgets what was before"),
            Ok(false) | Err(EtcdError::Compacted) => {}
            Err(error) => tracing::warn!(%error, "etcd's history could not be cut"),
        }
    }

    /// Says that history is cut now and has what was before the last time forgotten; false: another says so.
    fn compact_before(&self, before: Revision) -> Result<bool, EtcdError> {
        let key = self.keys.of(Key::Compacted);
        /// gRPC's code for what there is no room for.
        const RESOURCE_EXHAUSTED: u32 = 8;
        let compare = vec![Compare::At(key.clone(), before)];
        let success = vec![Step::put(key, self.host.as_bytes().to_vec(), None)];
        match self.wait(self.etcd.transact(&Txn { compare, success, failure: Vec::new() })) {
            Ok(answer) if answer.succeeded => self.compaction.put(answer.revision()),
            Ok(_) => return Ok(false),
            Err(EtcdError::Refused { code: RESOURCE_EXHAUSTED, message }) => {
                tracing::error!(message, "etcd is full: it needs `etcdctl defrag` and `etcdctl alarm disarm`");
            }
            Err(error) => return Err(error),
        }
        if before > 0 {
            self.wait(self.etcd.compact(before))?;
        }
        Ok(before > 0)
    }
}
