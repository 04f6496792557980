//! What this host says of itself in etcd: that it lives, where its tunnels end, what is plugged here and how that is.
//!
//! All of it is under one lease, which is kept alive three times as often as it must be; when we die, it ends and all of it
//! goes. If the lease ended although we live (etcd was out of reach for too long), a new one is made and all is said again.
//!
//! A name is one host's. Who finds another that lives by his says nothing ([`NotSaid::Namesake`]), until that is gone; our own
//! earlier starts, which our own store knows, are no others.
//!
//! Two hosts may plug one interface: who said so first has it, as long as he lives and does not unplug it, and the other is told who
//! ([`Claim::HeldBy`]). A claim of our own earlier start is taken over at once, by whatever name it was made. What is said is compared with what was
//! last heard of ourselves, so that nothing is written twice and nothing is lost; many plugs are one transaction, in which
//! each stands or falls by itself.

use super::directory::{Directory, NodeRecord, PlugRecord, Plugged};
use super::key::Key;
use super::refusals::Part;
use super::{Cluster, END_PAUSE, lock};
use crate::etcd::message::{Compare, KeyValue, LeaseId, Step, Txn};
use crate::etcd::{EtcdError, message::Revision};
use crate::model::{InterfaceId, Text};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{PoisonError, TryLockError};
use std::time::{Duration, Instant};
use switch::ids::MacAddr;

/// Plugs said by one transaction.
const PLUGS_AT_ONCE: usize = 60;
/// How long leaving may take.
const LEAVE_MAX: Duration = Duration::from_secs(1);
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
    /// The IP addresses that it has with its one fixed address.
    pub addresses: Vec<IpAddr>,
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

/// Why something is not said. Nothing is lost: it is said by a later call.
#[derive(Debug, thiserror::Error)]
pub enum NotSaid {
    /// What etcd said.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// Who has left says nothing more: it would be alive again for the time of a lease.
    #[error("this host is ending")]
    Ending,
    /// It was not said that we live.
    #[error("this host is not registered")]
    Unregistered,
    /// Another host that lives has our name.
    #[error("another host has the name of this one")]
    Namesake,
    /// What is known of ourselves is not what is there; it will be told.
    #[error("something else is said of this host")]
    Outrun,
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
    /// [`NotSaid`].
    pub fn live(&self, node: &NodeRecord) -> Result<(), NotSaid> {
        let mut registration = lock(&self.node);
        let lease = self.keep(&mut registration)?;
        let node = NodeRecord { boot: self.boot.clone(), ..node.clone() };
        let (known, is_ours) = self
            .look(|directory| (directory.node_since(&self.host).unwrap_or_default(), self.is_registered(directory)));
        if is_ours && registration.said.as_ref() == Some(&node) {
            return Ok(());
        }
        self.check_namesake()?;
        let (key, value) = (self.keys.of(Key::Node(&self.host)), serde_json::to_vec(&node));
        let step = Step::put(key.clone(), value.expect("records have only text keys"), Some(lease));
        let compare = vec![Compare::At(key, known)];
        let answer = self.under_lease(&mut registration, &Txn { compare, success: vec![step], ..Txn::default() })?;
        if !answer.succeeded {
            return Err(NotSaid::Outrun);
        }
        // As if the watch had told it, which it will.
        let mut directory = self.directory.write().unwrap_or_else(PoisonError::into_inner);
        directory.put_own_node(&self.host, node.clone(), answer.revision());
        drop(directory);
        self.copying.note_change();
        registration.said = Some(node);
        self.is_namesake_told.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Notes how an attempt to say what there is to say ended, for [`Cluster::refusals`].
    pub fn note_said(&self, error: Option<&NotSaid>) {
        match error {
            None => self.refusals.ended(Part::Saying),
            Some(NotSaid::Etcd(error)) => self.refusals.met(Part::Saying, error),
            Some(_) => {}
        }
    }

    /// Whether it is said that we live, and by ourselves.
    fn is_registered(&self, directory: &Directory) -> bool {
        directory.node(&self.host).is_some_and(|node| node.boot == self.boot)
    }

    /// Our lease, if it is said that we live.
    fn registered_lease(&self, registration: &Registration) -> Option<LeaseId> {
        let lease = registration.lease.as_ref().map(|lease| lease.id);
        lease.filter(|_| self.look(|directory| self.is_registered(directory)))
    }

    /// Nobody else lives by our name; who does is told of once.
    pub(super) fn check_namesake(&self) -> Result<(), NotSaid> {
        let is_ours = |boot: &Text| *boot == self.boot || self.boots_before.contains(boot);
        if self.look(|directory| directory.node(&self.host).is_none_or(|node| is_ours(&node.boot))) {
            return Ok(());
        }
        if !self.is_namesake_told.swap(true, Ordering::Relaxed) {
            tracing::error!(host = &*self.host, "another host has our name: set node.host to another on one of them");
        }
        Err(NotSaid::Namesake)
    }

    /// The lease, kept alive, or a new one.
    fn keep(&self, registration: &mut Registration) -> Result<LeaseId, NotSaid> {
        if self.is_ended.load(Ordering::Relaxed) {
            return Err(NotSaid::Ending);
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
        let outcome = self.wait(self.etcd.transact(txn));
        if outcome.as_ref().is_err_and(EtcdError::is_not_found) {
            *registration = Registration::default();
        }
        outcome
    }

    /// Says what is plugged here: these and no others. Answers those that are another host's, and whose. `wanted` is asked in
    /// turn with [`Cluster::claim`], so that it knows of every claim.
    ///
    /// # Errors
    /// [`NotSaid`].
    pub fn say(
        &self,
        wanted: impl FnOnce() -> BTreeMap<InterfaceId, Wanted>,
    ) -> Result<BTreeMap<InterfaceId, Text>, NotSaid> {
        let mut registration = lock(&self.node);
        let wanted = wanted();
        if self.registered_lease(&registration).is_none() {
            return Err(NotSaid::Unregistered);
        }
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
            // All of them may take longer than a lease lasts.
            let lease = self.keep(&mut registration)?;
            held.extend(self.say_some(&mut registration, lease, parcel)?);
        }
        Ok(held)
    }

    /// Claims an interface that is about to be plugged here.
    pub fn claim(&self, interface: &InterfaceId, wanted: &Wanted) -> Claim {
        let mut registration = lock(&self.node);
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
        let Some(lease) = self.registered_lease(&registration) else {
            // Nothing can be claimed yet; but what another has may be known.
            let plug = self.check_is_there().and_then(|()| self.ask_plug(interface));
            let holder = plug.ok().flatten().filter(|plug| !self.is_ours(&plug.record));
            return holder.map_or(Claim::Unknown, |plug| Claim::HeldBy(plug.record.host));
        };
        match self.say_some(&mut registration, lease, &[(interface.clone(), Some(record), known)]) {
            Ok(held) => held.into_values().next().map_or(Claim::Ours, Claim::HeldBy),
            Err(_) => Claim::Unknown,
        }
    }

    /// An interface is plugged here no more; as far as etcd is there.
    pub fn release(&self, interface: &InterfaceId) {
        let mut registration = lock(&self.node);
        let Some(lease) = self.registered_lease(&registration) else { return };
        let known = self.look(|directory| {
            directory.plug(interface).filter(|plug| self.is_ours(&plug.record)).map(|plug| plug.revision)
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

    /// Whether this host said so, in this start or an earlier one, which may have had another name.
    pub fn is_ours(&self, plug: &PlugRecord) -> bool {
        plug.host == self.host || self.boots_before.contains(&plug.boot)
    }

    fn decide(&self, known: Option<&Plugged>, wanted: &Wanted) -> Said {
        let Wanted { tenant, is_up, fixed, addresses, learnt } = wanted.clone();
        let (host, boot) = (self.host.clone(), self.boot.clone());
        let record = PlugRecord { host, boot, tenant, is_up, fixed, addresses, learnt };
        match known {
            Some(Plugged { record: known, .. }) if *known == record => Said::Already,
            Some(Plugged { record: known, .. }) if !self.is_ours(known) => Said::HeldBy(known.host.clone()),
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
            let compare = vec![Compare::At(key.clone(), *known)];
            Step::Within(Txn { compare, success: vec![step], failure: vec![Step::read(key)] })
        };
        let txn = Txn { success: parcel.iter().map(step).collect(), ..Txn::default() };
        let answer = self.under_lease(registration, &txn)?;
        let mut held = BTreeMap::new();
        let mut directory = self.directory.write().unwrap_or_else(PoisonError::into_inner);
        for (at, (interface, record, _)) in parcel.iter().enumerate() {
            let Some(within) = answer.within(at) else { continue };
            if within.succeeded {
                // As if the watch had told it, which it will. What others said is the watch's alone to tell: it is news.
                directory.put_own_plug(interface, record.clone(), answer.revision());
                continue;
            }
            let found = within.found(0).and_then(|found| serde_json::from_slice::<PlugRecord>(&found.value.0).ok());
            if let Some(holder) = found.filter(|found| !self.is_ours(found) && record.is_some()) {
                held.insert(interface.clone(), holder.host);
            }
        }
        drop(directory);
        self.copying.note_change();
        Ok(held)
    }

    /// Ends our lease: we are gone. If etcd does not hear that within [`LEAVE_MAX`] it ends by itself.
    pub(super) fn leave(&self) {
        let end = Instant::now() + LEAVE_MAX;
        let registration = loop {
            match self.node.try_lock() {
                Ok(mut registration) => break std::mem::take(&mut *registration),
                // Something is being said that etcd does not hear.
                Err(TryLockError::WouldBlock) if Instant::now() < end => std::thread::sleep(END_PAUSE),
                Err(_) => return,
            }
        };
        let Some(lease) = registration.lease else { return };
        let left = end.saturating_duration_since(Instant::now());
        let revoked = async {
            let revoked = tokio::time::timeout(left, self.etcd.revoke(lease.id)).await;
            revoked.unwrap_or_else(|_| Err(EtcdError::Unanswered("not in time".to_owned())))
        };
        if let Err(error) = self.wait(revoked) {
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
