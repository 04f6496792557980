//! VLANs and VNIs that networks had until lately, which no other gets while a host may not have heard that they are gone.
//!
//! A host that is cut off from etcd carries the networks it knows; for the others it is dead when its lease ends, and what it
//! sends is refused. Until then a number that is another tenant's by now would lead his frames there. So whoever removes a
//! network leaves a mark with its number, by the same transaction, under a lease of its own: it goes by itself, and whoever
//! serves the API knows of it, a server that has just started too. Of VLANs that is not enough: nobody asks whose frames with
//! a tag are, so a host that is cut off for longer goes on sending into what is another tenant's by then. So VLANs are
//! allotted going round ([`crate::network_type`]), and the operator is told.
//!
//! One lease is for all marks of some time. Bound: a tenant who leaves more than [`OWN_MAX`] marks gets his own numbers again,
//! so that no tenant uses up a range by making networks and removing them.

use super::key::Key;
use super::{Cluster, lock};
use crate::etcd::EtcdError;
use crate::etcd::message::{LeaseId, Revision, Step};
use crate::model::{Change, Model, Text};
use crate::network_type::Segment;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError, RwLock, RwLockWriteGuard};
use std::time::{Duration, Instant};

/// Times of a host's lease that a number is kept from others: it ends after one, and is told of within another.
const LEASES: u32 = 2;
/// Marks of one tenant before he gets his own numbers again.
pub(crate) const OWN_MAX: usize = 16;

/// The marks that there are.
#[derive(Default)]
pub(super) struct Freed {
    all: RwLock<Marks>,
    lease: Mutex<Option<(LeaseId, Instant)>>,
}

/// Marks, by number.
pub(crate) type Marks = HashMap<Segment, Mark>;

/// That a number was a network's.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    /// Whose.
    tenant: Text,
    /// Since when it is none's.
    revision: Revision,
}

impl Mark {
    /// What stands at a mark's key since `revision`.
    pub(super) fn read(tenant: &[u8], revision: Revision) -> Mark {
        Mark { tenant: String::from_utf8_lossy(tenant).into(), revision }
    }
}

impl Freed {
    fn write(&self) -> RwLockWriteGuard<'_, Marks> {
        self.all.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// None of them is known.
    pub(super) fn forget(&self) {
        self.write().clear();
    }

    /// Takes the marks that there were at `revision` for all that were known by then.
    pub(super) fn replace(&self, found: Marks, revision: Revision) {
        let mut all = self.write();
        // What we left ourselves since was not there yet.
        all.retain(|_, known| known.revision > revision);
        for (segment, mark) in found {
            all.entry(segment).or_insert(mark);
        }
    }

    /// A mark is there, or gone.
    pub(super) fn put(&self, segment: Segment, tenant: Option<&[u8]>, revision: Revision) {
        let mut all = self.write();
        // What we left ourselves is known before the watch tells what came before it.
        if all.get(&segment).is_some_and(|known| known.revision > revision) {
            return;
        }
        match tenant {
            Some(tenant) => drop(all.insert(segment, Mark::read(tenant, revision))),
            None => drop(all.remove(&segment)),
        }
    }
}

/// Numbers that a write frees, and whose they were.
pub(super) fn freed_by(before: &Model, changes: &[Change]) -> Vec<(Segment, Text)> {
    let removed = changes.iter().filter_map(|change| match change {
        Change::RemoveNetwork(id) => before.networks.get(id),
        _ => None,
    });
    removed.filter_map(|network| Some((network.network_type.segment()?, network.tenant.clone()))).collect()
}

impl Cluster {
    /// Whether a number was a network's until lately.
    pub(crate) fn is_freed(&self, segment: &Segment) -> bool {
        self.freed.all.read().unwrap_or_else(PoisonError::into_inner).contains_key(segment)
    }

    /// The numbers that networks of this tenant had until lately, the first freed first; none as long as they are few.
    pub(crate) fn reusable_by(&self, tenant: &str) -> Vec<Segment> {
        let all = self.freed.all.read().unwrap_or_else(PoisonError::into_inner);
        let mut own: Vec<_> = all.iter().filter(|(_, mark)| &*mark.tenant == tenant).collect();
        if own.len() <= OWN_MAX {
            return Vec::new();
        }
        own.sort_unstable_by_key(|(_, mark)| mark.revision);
        own.into_iter().map(|(segment, _)| segment.clone()).collect()
    }

    /// The steps that leave marks.
    pub(super) fn marks(&self, freed: &[(Segment, Text)]) -> Result<Vec<Step>, EtcdError> {
        if freed.is_empty() {
            return Ok(Vec::new());
        }
        let lease = self.freed_lease()?;
        let step = |(segment, tenant): &(Segment, Text)| {
            Step::put(self.keys.of(Key::Freed(&segment.name())), tenant.as_bytes().to_vec(), Some(lease))
        };
        Ok(freed.iter().map(step).collect())
    }

    /// A write that left these marks is done.
    pub(super) fn left(&self, freed: Vec<(Segment, Text)>, revision: Revision) {
        for (segment, tenant) in freed {
            self.freed.put(segment, Some(tenant.as_bytes()), revision);
        }
    }

    /// The lease of marks is none any more: the next ones get another.
    pub(super) fn forget_freed_lease(&self) {
        *lock(&self.freed.lease) = None;
    }

    /// A lease that lasts long enough for a mark that is left now.
    fn freed_lease(&self) -> Result<LeaseId, EtcdError> {
        let lasts_s = self.lease_s * LEASES;
        let mut lease = lock(&self.freed.lease);
        if let Some((id, since)) = *lease
            && since.elapsed() < Duration::from_secs(lasts_s.into())
        {
            return Ok(id);
        }
        let since = Instant::now();
        let id = self.wait(self.etcd.grant(2 * lasts_s))?;
        *lease = Some((id, since));
        Ok(id)
    }
}
