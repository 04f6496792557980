//! What this host says of itself in etcd: that it lives, where its tunnels end, what is plugged here and how that is.
//!
//! All of it is under one lease, which is kept alive three times as often as it must be; when we die, it ends and all of it
//! goes. If the lease ended although we live (etcd was out of reach for too long), a new one is made and all is said again.
//!
//! Two hosts may plug one interface: who said so first has it, as long as he lives and does not unplug it, and the other is told who
//! ([`Claim::HeldBy`]). A claim of our own earlier start is taken over at once. What is said is compared with what was
//! last heard of ourselves, so that nothing is written twice and nothing is lost; many plugs are one transaction, in which
//! each stands or falls by itself.

use super::directory::{NodeRecord, PlugRecord, Plugged};
use super::follow::tell_directory;
use super::key::Key;
use super::{Cluster, lock};
use crate::etcd::message::{Compare, KeyValue, LeaseId, Step, Txn};
use crate::etcd::{EtcdError, message::Revision};
use crate::model::{InterfaceId, Text};
use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use switch::ids::MacAddr;

/// Plugs said by one transaction.
const PLUGS_AT_ONCE: usize = 60;
/// Part of a lease's time after which it is kept alive.
const KEEP_ALIVE_PART: u32 = 3;

/// A plug of this host as it is to be told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// The only tenant whose networks it may join; `None`: any.
    pub tenant: Option<String>,
    /// Whether we carry it.
    pub is_up: bool,
    /// The addresses that are fixed for it.
    pub fixed: Vec<MacAddr>,
    /// Addresses learnt from its frames, in order.
    pub learnt: Vec<MacAddr>,
}

/// Whose an interface is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Claim {
    /// Ours, and told.
    Ours,
    /// It is plugged on that host, which lives.
    HeldBy(Text),
    /// Not known: etcd is away.
    Unknown,
}

/// What we have said.
#[derive(Default)]
pub(super) struct Registration {
    lease: Option<Lease>,
    /// What was said of this host under that lease.
    said: Option<NodeRecord>,
}

struct Lease {
    id: LeaseId,
    kept_alive: Instant,
}

impl Cluster {
    /// Says that this host lives, and is this. Call it again and again, several times within the time of a lease.
    ///
    /// # Errors
    /// [`EtcdError`]; nothing is lost, if it is called again.
    pub fn live(&self, node: &NodeRecord) -> Result<(), EtcdError> {
        let mut registration = lock(&self.node);
        let lease = self.keep(&mut registration)?;
        let node = NodeRecord { boot: self.boot.clone(), ..node.clone() };
        if registration.said.as_ref() != Some(&node) {
            let value = serde_json::to_vec(&node).expect("records have only text keys");
            let step = Step::put(self.keys.of(Key::Node(&self.host)), value, Some(lease));
            let txn = Txn { success: vec![step], ..Txn::default() };
            let answer = self.under_lease(&mut registration, &txn)?;
            // As if the watch had told it, which it will.
            let mut directory = self.directory.write().unwrap_or_else(PoisonError::into_inner);
            directory.put_node(&self.host, Some(node.clone()), answer.revision(), &mut Vec::new());
            drop(directory);
            self.copying.note_change();
            registration.said = Some(node);
            self.is_registered.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The lease, kept alive, or a new one.
    fn keep(&self, registration: &mut Registration) -> Result<LeaseId, EtcdError> {
        if self.is_ended.load(Ordering::Relaxed) {
            // Who has left says nothing more: it would be alive again for the time of a lease.
            return Err(EtcdError::Unreachable("this host is ending".to_owned()));
        }
        let keep_alive = Duration::from_secs(self.lease_s.into()) / KEEP_ALIVE_PART;
        if let Some(lease) = &mut registration.lease {
            if lease.kept_alive.elapsed() < keep_alive {
                return Ok(lease.id);
            }
            let asked = Instant::now();
            if self.wait(self.etcd.keep_alive(lease.id))? {
                lease.kept_alive = asked;
                return Ok(lease.id);
            }
            tracing::warn!("our lease has ended; saying everything again");
            *registration = Registration::default();
        }
        let kept_alive = Instant::now();
        let id = self.wait(self.etcd.grant(self.lease_s))?;
        registration.lease = Some(Lease { id, kept_alive });
        Ok(id)
    }

    /// A transaction that needs the lease; if that has ended there is none from now on.
    fn under_lease(
        &self,
        registration: &mut Registration,
        txn: &Txn,
    ) -> Result<crate::etcd::message::TxnResponse, EtcdError> {
        /// gRPC's code for what is not there.
        const NOT_FOUND: u32 = 5;
        let outcome = self.wait(self.etcd.transact(txn));
        if matches!(outcome, Err(EtcdError::Refused { code: NOT_FOUND, .. })) {
            *registration = Registration::default();
        }
        outcome
    }

    /// Says what is plugged here: these and no others. Answers those that are another host's, and whose. `wanted` is asked in
    /// turn with [`Cluster::claim`], so that it knows of every claim.
    ///
    /// # Errors
    /// [`EtcdError`]; what could not be said is said by the next call.
    pub fn say(
        &self,
        wanted: impl FnOnce() -> BTreeMap<InterfaceId, Wanted>,
    ) -> Result<BTreeMap<InterfaceId, Text>, EtcdError> {
        let mut registration = lock(&self.node);
        let wanted = wanted();
        let lease = registration.lease.as_ref().map(|lease| lease.id);
        let Some(lease) = lease else { return Err(EtcdError::Unreachable("this host has no lease yet".to_owned())) };
        let (mut held, mut steps) = (BTreeMap::new(), Vec::new());
        self.look(|directory| {
            for (interface, wanted) in &wanted {
                match self.decide(directory.plug(interface), wanted) {
                    Said::Already => {}
                    Said::HeldBy(host) => drop(held.insert(interface.clone(), host)),
                    Said::Not { record, known } => steps.push((interface.clone(), Some(record), known)),
                }
            }
            for interface in directory.plugs_of(&self.host).filter(|interface| !wanted.contains_key(*interface)) {
                let known = directory.plug(interface).map_or(0, |plug| plug.revision);
                steps.push((interface.clone(), None, known));
            }
        });
        for parcel in steps.chunks(PLUGS_AT_ONCE) {
            held.extend(self.say_some(&mut registration, lease, parcel)?);
        }
        Ok(held)
    }

    /// Claims an interface that is about to be plugged here.
    pub fn claim(&self, interface: &InterfaceId, wanted: &Wanted) -> Claim {
        let mut registration = lock(&self.node);
        let Some(lease) = registration.lease.as_ref().map(|lease| lease.id) else { return Claim::Unknown };
        let decided = match self.look(|directory| self.decide(directory.plug(interface), wanted)) {
            // The other may have unplugged it a moment ago.
            Said::HeldBy(host) => match self.ask_plug(interface) {
                Ok(plug) => self.decide(plug.as_ref(), wanted),
                Err(_) => Said::HeldBy(host),
            },
            decided => decided,
        };
        let (record, known) = match decided {
            Said::Already => return Claim::Ours,
            Said::HeldBy(host) => return Claim::HeldBy(host),
            Said::Not { record, known } => (record, known),
        };
        match self.say_some(&mut registration, lease, &[(interface.clone(), Some(record), known)]) {
            Ok(held) => held.into_values().next().map_or(Claim::Ours, Claim::HeldBy),
            Err(_) => Claim::Unknown,
        }
    }

    /// An interface is plugged here no more; as far as etcd is there.
    pub fn release(&self, interface: &InterfaceId) {
        let mut registration = lock(&self.node);
        let Some(lease) = registration.lease.as_ref().map(|lease| lease.id) else { return };
        let known = self.look(|directory| {
            directory.plug(interface).filter(|plug| plug.record.host == self.host).map(|plug| plug.revision)
        });
        if let Some(known) = known {
            // What fails here is said again with all that is plugged.
            let _ = self.say_some(&mut registration, lease, &[(interface.clone(), None, known)]);
        }
    }

    /// Where an interface is plugged, as etcd has it at this moment.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub fn ask_plug(&self, interface: &str) -> Result<Option<Plugged>, EtcdError> {
        let (found, _) = self.wait(self.etcd.get(&self.keys.of(Key::Plug(interface))))?;
        // What cannot be read is as if it were not there, as where it is followed.
        let plugged = |found: KeyValue| {
            let record = serde_json::from_slice(&found.value.0).ok()?;
            Some(Plugged { record, revision: found.mod_revision() })
        };
        Ok(found.and_then(plugged))
    }

    fn decide(&self, known: Option<&Plugged>, wanted: &Wanted) -> Said {
        let Wanted { tenant, is_up, fixed, learnt } = wanted.clone();
        let record = PlugRecord { host: self.host.clone(), boot: self.boot.clone(), tenant, is_up, fixed, learnt };
        match known {
            Some(Plugged { record: known, .. }) if *known == record => Said::Already,
            Some(Plugged { record: known, .. }) if known.host != self.host => Said::HeldBy(known.host.clone()),
            known => Said::Not { record, known: known.map_or(0, |known| known.revision) },
        }
    }

    /// Says some by one transaction; those that are another's are answered.
    fn say_some(
        &self,
        registration: &mut Registration,
        lease: LeaseId,
        parcel: &[(InterfaceId, Option<PlugRecord>, Revision)],
    ) -> Result<BTreeMap<InterfaceId, Text>, EtcdError> {
        let step = |(interface, record, known): &(InterfaceId, Option<PlugRecord>, Revision)| {
            let key = self.keys.of(Key::Plug(interface));
            let step = match record {
                Some(record) => {
                    let value = serde_json::to_vec(record).expect("records have only text keys");
                    Step::put(key.clone(), value, Some(lease))
                }
                None => Step::delete(key.clone()),
            };
            let compare = vec![Compare { key: key.clone(), mod_revision: *known }];
            Step::Within(Txn { compare, success: vec![step], failure: vec![Step::read(key)] })
        };
        let txn = Txn { success: parcel.iter().map(step).collect(), ..Txn::default() };
        let answer = self.under_lease(registration, &txn)?;
        let mut held = BTreeMap::new();
        let mut directory = self.directory.write().unwrap_or_else(PoisonError::into_inner);
        for (at, (interface, record, _)) in parcel.iter().enumerate() {
            let Some(within) = answer.within(at) else { continue };
            let (value, revision) = match within.found(0) {
                _ if within.succeeded => {
                    let value = record.as_ref().map(|record| serde_json::to_vec(record).expect("only text keys"));
                    (value, answer.revision())
                }
                Some(found) => (Some(found.value.0.clone()), found.mod_revision()),
                None => continue,
            };
            // As if the watch had told it, which it will.
            tell_directory(&mut directory, Key::Plug(interface), value.as_deref(), revision, &mut Vec::new());
            let holder = directory.plug(interface).map(|plug| plug.record.host.clone());
            if let Some(holder) = holder.filter(|holder| *holder != self.host && record.is_some()) {
                held.insert(interface.clone(), holder);
            }
        }
        drop(directory);
        self.copying.note_change();
        Ok(held)
    }

    /// Says so, once, if somebody else calls himself by our name.
    pub(super) fn notice_namesake(&self) {
        let boot = self.look(|directory| directory.node(&self.host).map(|node| node.boot.clone()));
        let is_other = boot.is_some_and(|boot| boot != self.boot);
        if is_other && self.is_registered.swap(false, Ordering::Relaxed) {
            tracing::error!(host = &*self.host, "another host has our name: set node.host to another on one of them");
        }
    }

    /// Ends our lease: we are gone.
    pub(super) fn leave(&self) {
        let registration = std::mem::take(&mut *lock(&self.node));
        if let Some(lease) = registration.lease
            && let Err(error) = self.wait(self.etcd.revoke(lease.id))
        {
            tracing::debug!(%error, "our lease ends by itself");
        }
    }
}

/// What is to be said of a plug.
enum Said {
    Already,
    HeldBy(Text),
    Not {
        record: PlugRecord,
        /// The revision of what is known of it; 0: nothing is.
        known: Revision,
    },
}
