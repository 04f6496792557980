//! Following what changes in etcd, on a thread of its own, `mirror`.
//!
//! From where all was read once, a watch tells every change in order. What has come by the time one looks is handed on
//! together ([`Follower::absorb`]), so that many changes are one publication. A watch that ends is begun anew where it ended;
//! if etcd has forgotten that (compaction), all is read again and only what differs is told to touch anything. A watch that is
//! silent for [`RENEW_AFTER`] is begun anew too: one whose member hangs, or is cut off from us without a word, would be silent for
//! ever. Where one begins behind what we know, or a write of ours finds less, etcd was set back to an older state and all is read.

use super::directory::Directory;
use super::everything::Everything;
use super::key::Key;
use super::tenants::{Head, TenantsNews, check_head};
use super::{Cluster, RETRY_MAX, RETRY_MIN, lock};
use crate::etcd::EtcdError;
use crate::etcd::message::Revision;
use crate::etcd::watch::{Event, News as Told, Watch};
use crate::model::{Change, Inconsistent, InterfaceId, Model};
use crate::network_type::Segment;
use crate::store::{StoreError, records};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long a watch may be silent before another takes its place.
const RENEW_AFTER: Duration = Duration::from_secs(10);
/// Pause before all is read again where something in it could not be read.
const BAD_RECORD_PAUSE: Duration = Duration::from_secs(10);
/// How often the thread looks whether it is to end.
const LOOK_AFTER: Duration = Duration::from_millis(500);
/// Events handed on together.
const EVENTS_MAX: usize = 16_384;

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
        let mut pause = RETRY_MIN;
        let mut reads_all = false;
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
            let outcome = self.read_freed().map_err(StoreError::from).and_then(|()| match reads_all {
                true => self.read_again(&*follower),
                false => self.check_origin().map_err(StoreError::from).and_then(|is_the_same| match is_the_same {
                    true => Ok(()),
                    false => self.read_in_place_of_copy(&*follower),
                }),
            });
            let outcome = outcome.and_then(|()| {
                reads_all = false;
                self.watch(&*follower)
            });
            // Nobody is kept while this thread sleeps.
            drop(follower);
            match outcome {
                Ok(()) => return,
                Err(StoreError::Etcd(EtcdError::Compacted)) => {
                    tracing::info!("etcd has forgotten what comes next; reading everything");
                    reads_all = true;
                    continue;
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
                    std::thread::sleep(BAD_RECORD_PAUSE);
                    continue;
                }
                Err(error) => tracing::debug!(%error, "following ended; it begins anew"),
            }
            // One that went well for a while is no try that failed.
            pause = if begin.elapsed() > RETRY_MAX { RETRY_MIN } else { (pause * 2).min(RETRY_MAX) };
            std::thread::sleep(pause);
        }
    }

    /// Follows until it is to end, or a watch does before another takes its place.
    fn watch(&self, follower: &dyn Follower) -> Result<(), StoreError> {
        self.read_compaction()?;
        loop {
            let mut watch = self.wait(self.etcd.watch(&self.keys.prefix(), self.revision() + 1))?;
            if watch.begun_at() < self.revision() {
                self.check_set_back()?;
            }
            let mut silent_since = Instant::now();
            while silent_since.elapsed() < RENEW_AFTER {
                if let Some(told) = self.next(&mut watch, LOOK_AFTER)? {
                    silent_since = Instant::now();
                    self.take(told, &mut watch, follower)?;
                } else if self.is_ended.load(Ordering::Relaxed) {
                    return Ok(());
                } else if self.is_set_back.load(Ordering::Relaxed) {
                    return Err(EtcdError::Compacted.into());
                }
            }
        }
    }

    /// The next news, if there are any in time.
    fn next(&self, watch: &mut Watch, time_max: Duration) -> Result<Option<Told>, EtcdError> {
        let runtime = self.runtime.as_ref().expect("it is there until we are dropped");
        // Inside the runtime: a timer is made by the call.
        let told = runtime.block_on(async { tokio::time::timeout(time_max, watch.next()).await });
        told.ok().transpose().inspect_err(|_| self.etcd.turn())
    }

    /// A watch has begun behind what we know: its member is, or all of etcd.
    fn check_set_back(&self) -> Result<(), StoreError> {
        let (_, revision) = self.wait(self.etcd.get(&self.keys.of(Key::Head)))?;
        if revision >= self.revision() {
            return Ok(());
        }
        tracing::error!(revision, known = self.revision(), "etcd has gone back in time; taking it as it is now");
        self.forget_place();
        Err(EtcdError::Compacted.into())
    }

    /// Hands on what was told, and what more has come meanwhile.
    fn take(&self, first: Told, watch: &mut Watch, follower: &dyn Follower) -> Result<(), StoreError> {
        let Told { mut revision, mut events, mut bytes } = first;
        while events.len() < EVENTS_MAX
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
            let mut followed = lock(&self.followed);
            *followed = revision.max(*followed);
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
        let Everything { model, extras, directory, head, revision } = self.read_everything()?;
        self.extras.write().unwrap_or_else(PoisonError::into_inner).replace(extras);
        let plugs = {
            let mut known = self.directory.write().unwrap_or_else(PoisonError::into_inner);
            let plugs = known.differences(&directory);
            *known = directory;
            plugs
        };
        follower.absorb(News { tenants: Some(TenantsNews::All(model, head)), plugs })?;
        *lock(&self.followed) = revision;
        // However it came to be read: what is known comes from etcd now.
        self.forget_copy();
        self.copying.note_change();
        tracing::info!(revision, "everything is read");
        Ok(())
    }

    /// The same, when what we know comes from a copy that etcd knows nothing of.
    fn read_in_place_of_copy(&self, follower: &dyn Follower) -> Result<(), StoreError> {
        tracing::info!("etcd does not go on where this host's copy ends; reading everything");
        self.forget_place();
        self.read_again(follower)
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
