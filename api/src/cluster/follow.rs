//! Following what changes in etcd, on a thread of its own, `mirror`.
//!
//! From where all was read once, a watch tells every change in order. What has come by the time one looks is handed on
//! together ([`Follower::absorb`]), so that many changes are one publication. A watch that ends is begun anew where it ended;
//! if etcd has forgotten that (compaction), all is read again and only what differs is told to touch anything. A watch that is
//! silent for [`RENEW_AFTER`] is begun anew too: one whose member hangs, or is cut off from us without a word, would be silent for
//! ever.
//!
//! An etcd that was set back to an older state (restored from a snapshot) may be further than we are by the time we find it, and tell
//! what would follow. So whenever a watch has begun, what was told last must stand in etcd as it was told
//! ([`Cluster::check_history`]); else, or where a write of ours finds less than it knows, all is read. So it is after a start from a copy.

use super::directory::Directory;
use super::everything::Everything;
use super::key::Key;
use super::refusals::Part;
use super::tenants::{Head, TenantsNews, check_head};
use super::{Cluster, Followed, RETRY_MAX, RETRY_MIN, lock};
use crate::etcd::message::Revision;
use crate::etcd::watch::{Event, News as Told, Watch};
use crate::etcd::{EtcdError, by_luck};
use crate::model::{Change, Inconsistent, InterfaceId, Model};
use crate::network_type::Segment;
use crate::store::{StoreError, records};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long a watch may be silent before another takes its place.
const RENEW_AFTER: Duration = Duration::from_secs(10);
/// Pause before all is read again where something in it could not be read; doubled up to [`BAD_RECORD_PAUSE_MAX`].
const BAD_RECORD_PAUSE_MIN: Duration = Duration::from_secs(10);
const BAD_RECORD_PAUSE_MAX: Duration = Duration::from_secs(60);
/// How often the thread looks whether it is to end.
const LOOK_AFTER: Duration = Duration::from_millis(500);
/// Events handed on together, and bytes that told them, before those of the last news.
const EVENTS_MAX: usize = 16_384;
const BYTES_MAX: usize = 16 << 20;

/// What happened elsewhere, or here and was told.
pub struct News {
    /// To tenants' records; `None`: nothing.
    pub tenants: Option<TenantsNews>,
    /// Interfaces that are plugged elsewhere than before, or whose addresses are others.
    pub plugs: Vec<InterfaceId>,
}

/// What is found in what was told.
#[derive(Default)]
struct Gathered {
    changes: Vec<(Revision, Change)>,
    /// What `head` was, in order.
    heads: Vec<Head>,
    plugs: Vec<InterfaceId>,
}

impl Gathered {
    /// Leaves out what is newer than that.
    fn cut(&mut self, revision: Revision) {
        self.changes.retain(|(of, _)| *of <= revision);
        self.heads.retain(|head| head.revision <= revision);
    }
}

/// Whoever keeps the model that news are of.
pub trait Follower: Send + Sync {
    /// Makes the news part of the model and puts them in force.
    ///
    /// # Errors
    /// [`Inconsistent`] if they are no news of the model, which is then as it was.
    fn absorb(&self, news: News) -> Result<(), Inconsistent>;

    /// Calls `look` with the model while nothing is made part of it and nobody writes.
    fn while_settled(&self, look: &mut dyn FnMut(&Arc<Model>));
}

impl Cluster {
    /// Follows, from where all was read at the start, until `follower` is gone or [`Cluster::end`] is called.
    ///
    /// # Errors
    /// What the system says of another thread.
    pub fn follow(self: &Arc<Cluster>, follower: Weak<dyn Follower>) -> std::io::Result<()> {
        self.keep_copy(follower.clone())?;
        let this = self.clone();
        std::thread::Builder::new().name("mirror".into()).spawn(move || this.follow_on(&follower))?;
        Ok(())
    }

    fn follow_on(&self, follower: &Weak<dyn Follower>) {
        let (mut pause, mut bad_pause) = (RETRY_MIN, BAD_RECORD_PAUSE_MIN);
        let mut reads_all = self.is_from_copy();
        // What there was when we started.
        let mut has_read = !reads_all;
        let mut bad = String::new();
        loop {
            let Some(follower) = follower.upgrade() else { return };
            if self.is_ended.load(Ordering::Relaxed) {
                return;
            }
            let begin = Instant::now();
            if self.is_set_back.swap(false, Ordering::Relaxed) {
                self.forget_place();
                reads_all = true;
            }
            let read = if reads_all { self.read_again(&*follower) } else { Ok(()) };
            let outcome = read.and_then(|()| {
                if std::mem::take(&mut reads_all) {
                    (bad, bad_pause) = (String::new(), BAD_RECORD_PAUSE_MIN);
                    has_read = true;
                }
                self.watch(&*follower, std::mem::take(&mut has_read))
            });
            // Nobody is kept while this thread sleeps.
            drop(follower);
            // One that went well for a while is no try that failed.
            let went_well = !reads_all && begin.elapsed() > RETRY_MAX;
            match outcome {
                Ok(()) => return,
                Err(StoreError::Etcd(EtcdError::Compacted)) => {
                    if !self.is_set_back.load(Ordering::Relaxed) {
                        tracing::info!("etcd has forgotten what comes next; reading everything");
                    }
                    reads_all = true;
                }
                Err(StoreError::Inconsistent(error)) => {
                    tracing::error!(%error, "what etcd tells is no news of what we know; reading everything");
                    reads_all = true;
                }
                Err(error @ StoreError::BadRecord { .. }) => {
                    let error = error.to_string();
                    if error != bad {
                        tracing::error!(error, "this host follows nothing until that is mended");
                        bad = error;
                    }
                    // As it is by then: what came before is no matter.
                    reads_all = true;
                    std::thread::sleep(bad_pause / 2 + by_luck(bad_pause / 2));
                    bad_pause = (bad_pause * 2).min(BAD_RECORD_PAUSE_MAX);
                    continue;
                }
                Err(error) => {
                    if let StoreError::Etcd(error) = &error {
                        self.refusals.met(Part::Following, error);
                    }
                    tracing::debug!(%error, "following ended; it begins anew");
                }
            }
            pause = if went_well { RETRY_MIN } else { (pause * 2).min(RETRY_MAX) };
            std::thread::sleep(pause / 2 + by_luck(pause / 2));
        }
    }

    /// Follows until it is to end, or a watch does before another takes its place. `has_read`: everything was just read.
    fn watch(&self, follower: &dyn Follower, has_read: bool) -> Result<(), StoreError> {
        self.read_compaction()?;
        let mut from = if has_read {
            self.revision()
        } else {
            // From what was told last: up to where we follow nothing came after it, but an etcd that was set back in between may
            // have had something else to tell. Whoever else writes to it may have it forget so far back; then all is read.
            lock(&self.followed).last.as_ref().map_or(0, |last| last.revision)
        };
        loop {
            let mut watch = self.wait(self.etcd.watch(&self.keys.prefix(), from + 1))?;
            self.check_history(from)?;
            let mut silent_since = Instant::now();
            while silent_since.elapsed() < RENEW_AFTER {
                let told = self.next(&mut watch, LOOK_AFTER)?;
                if self.is_ended.load(Ordering::Relaxed) {
                    return Ok(());
                }
                if self.is_set_back.load(Ordering::Relaxed) {
                    return Err(EtcdError::Compacted.into());
                }
                if let Some(told) = told {
                    silent_since = Instant::now();
                    self.take(told, &mut watch, follower)?;
                    self.refusals.ended(Part::Following);
                }
            }
            self.refusals.ended(Part::Following);
            from = self.revision();
        }
    }

    /// The next news, if there are any in time.
    fn next(&self, watch: &mut Watch, time_max: Duration) -> Result<Option<Told>, EtcdError> {
        let runtime = self.runtime.as_ref().expect("it is there until we are dropped");
        // Inside the runtime: a timer is made by the call.
        let told = runtime.block_on(async { tokio::time::timeout(time_max, watch.next()).await });
        told.ok().transpose().inspect_err(|_| self.etcd.turn(watch.member()))
    }

    /// A watch has begun behind `from`: what it tells follows what we know if that ends in etcd as it was told.
    fn check_history(&self, from: Revision) -> Result<(), StoreError> {
        /// gRPC's code for, here, a revision that has not come yet.
        const OUT_OF_RANGE: u32 = 11;
        let Some(last) = lock(&self.followed).last.clone() else { return Ok(()) };
        let found = match self.wait(self.etcd.get_at(&last.key, last.revision)) {
            Ok(found) => found.map(|found| (found.mod_revision(), found.value.0)),
            Err(EtcdError::Refused { code: OUT_OF_RANGE, .. }) => None,
            // A watch that was there all the time has told that nothing came since.
            Err(EtcdError::Compacted) if from > last.revision => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if found == last.value.map(|value| (last.revision, value)) {
            return Ok(());
        }
        tracing::error!(known = last.revision, "etcd is not what it was; taking it as it is now");
        self.is_set_back.store(true, Ordering::Relaxed);
        Err(EtcdError::Compacted.into())
    }

    /// Hands on what was told, and what more has come meanwhile.
    fn take(&self, first: Told, watch: &mut Watch, follower: &dyn Follower) -> Result<(), StoreError> {
        let Told { mut revision, mut events, mut bytes } = first;
        while events.len() < EVENTS_MAX
            && bytes < BYTES_MAX
            && let Some(more) = self.next(watch, Duration::ZERO)?
        {
            bytes += more.bytes;
            revision = more.revision;
            events.extend(more.events);
        }
        self.watched_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.compaction.count(bytes as u64);
        let mut gathered = Gathered::default();
        let mut bad = None;
        for event in &events {
            if let Err(error) = self.gather(event, &mut gathered) {
                // What one transaction wrote is told whole or not at all; what came before it is news all the same.
                revision = event.revision - 1;
                gathered.cut(revision);
                bad = Some(error);
                break;
            }
        }
        // Who finds a namesake is told so once; what we say waits until he is gone.
        let _ = self.check_namesake();
        let Gathered { changes, mut heads, plugs } = gathered;
        // Who changes records changes `head` with them.
        let tenants = heads.pop().map(|head| TenantsNews::Changes(changes, head));
        if tenants.is_some() || !plugs.is_empty() {
            follower.absorb(News { tenants, plugs })?;
        }
        {
            // Of the last write the first key, which is `head` where there is one, and so like no other's.
            let puts = events.into_iter().rev().filter(|event| event.value.is_some() && event.revision <= revision);
            let last = puts.max_by_key(|event| event.revision);
            let mut followed = lock(&self.followed);
            followed.revision = revision.max(followed.revision);
            followed.last = last.or(followed.last.take());
        }
        self.copying.note_change();
        if let Some(bad) = bad {
            return Err(bad);
        }
        self.compact_if_due();
        Ok(())
    }

    /// Notes one event.
    fn gather(&self, event: &Event, gathered: &mut Gathered) -> Result<(), StoreError> {
        let (value, revision) = (event.value.as_deref(), event.revision);
        match self.keys.read(&event.key) {
            Some(Key::Head) => {
                value.map_or(Ok(()), check_head)?;
                gathered.heads.push(Head { revision, value: value.unwrap_or_default().to_vec() });
            }
            Some(Key::Network(id)) => gathered.changes.push((revision, network(id, value)?)),
            Some(Key::Port(id)) => gathered.changes.push((revision, port(id, value)?)),
            Some(Key::Extra(kind, id)) => {
                let mut extras = self.extras.write().unwrap_or_else(PoisonError::into_inner);
                extras.put(kind, id, value, revision);
            }
            Some(Key::Freed(text)) => {
                if let Some(segment) = Segment::from_name(text) {
                    self.freed.put(segment, value, revision);
                }
            }
            Some(Key::Compacted) => self.compaction.put(revision),
            Some(key) => {
                let mut directory = self.directory.write().unwrap_or_else(PoisonError::into_inner);
                tell_directory(&mut directory, key, value, revision, &mut gathered.plugs);
            }
            None => {}
        }
        Ok(())
    }

    /// Reads all and tells what differs.
    fn read_again(&self, follower: &dyn Follower) -> Result<(), StoreError> {
        let Everything { model, extras, directory, freed, head, last, revision } = self.read_everything()?;
        if self.is_from_copy() {
            tracing::info!("etcd is there; what this host knew last is replaced");
            self.forget_place();
        }
        // Before the model: numbers of networks that are gone are free by it.
        self.freed.replace(freed, revision);
        self.extras.write().unwrap_or_else(PoisonError::into_inner).replace(extras);
        let plugs = {
            let mut known = self.directory.write().unwrap_or_else(PoisonError::into_inner);
            let plugs = known.differences(&directory);
            *known = directory;
            plugs
        };
        follower.absorb(News { tenants: Some(TenantsNews::All(model, head)), plugs })?;
        *lock(&self.followed) = Followed { revision, last };
        // However it came to be read: what is known comes from etcd now.
        self.forget_copy();
        self.copying.note_change();
        tracing::info!(revision, "everything is read");
        Ok(())
    }
}

fn network(id: &str, value: Option<&[u8]>) -> Result<Change, StoreError> {
    match value {
        Some(value) => records::network(id, value).map(Change::PutNetwork),
        None => Ok(Change::RemoveNetwork(id.into())),
    }
}

fn port(id: &str, value: Option<&[u8]>) -> Result<Change, StoreError> {
    match value {
        Some(value) => records::port(id, value).map(Change::PutPort),
        None => Ok(Change::RemovePort(id.into())),
    }
}

/// Enters what a host says; what cannot be read is as if it were not there.
pub(super) fn tell_directory(
    directory: &mut Directory,
    key: Key<'_>,
    value: Option<&[u8]>,
    revision: Revision,
    touched: &mut Vec<InterfaceId>,
) {
    fn read<T: serde::de::DeserializeOwned>(name: &str, value: Option<&[u8]>) -> Option<T> {
        let read = serde_json::from_slice(value?);
        read.inspect_err(|error| tracing::error!(name, %error, "what a host says in etcd cannot be read")).ok()
    }
    match key {
        Key::Node(host) => directory.put_node(host, read(host, value), revision, touched),
        Key::Plug(interface) => directory.put_plug(interface, read(interface, value), revision, touched),
        Key::Head
        | Key::Compacted
        | Key::Writer(_)
        | Key::Network(_)
        | Key::Port(_)
        | Key::Extra(..)
        | Key::Freed(_) => {}
    }
}
