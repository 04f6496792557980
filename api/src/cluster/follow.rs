//! Following what changes in etcd, on a thread of its own, `mirror`.
//!
//! From where all was read once, a watch tells every change in order. What has come by the time one looks is handed on
//! together ([`Follower::absorb`]), so that many changes are one publication. A watch that ends is begun anew where it ended;
//! if etcd has forgotten that (compaction), all is read again and only what differs is told to touch anything. A watch that is
//! silent is compared with what there is every [`CHECK_AFTER`]; so an etcd that was set back to an older state is noticed too.

use super::directory::Directory;
use super::everything::Everything;
use super::key::Key;
use super::tenants::{Head, TenantsNews, check_head};
use super::{Cluster, RETRY_MAX, RETRY_MIN, lock};
use crate::etcd::EtcdError;
use crate::etcd::message::Revision;
use crate::etcd::watch::{News as Told, Watch};
use crate::model::{Change, Inconsistent, InterfaceId, Model};
use crate::store::{StoreError, records};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long a watch may be silent before it is compared with what there is.
const CHECK_AFTER: Duration = Duration::from_secs(10);
/// How often the thread looks whether it is to end.
const LOOK_AFTER: Duration = Duration::from_millis(500);
/// How long news may be under way when the comparison finds some.
const DEAF_AFTER: Duration = Duration::from_secs(2);
/// Events handed on together.
const EVENTS_MAX: usize = 16_384;

/// What happened elsewhere, or here and was told.
pub struct News {
    /// To tenants' records; `None`: nothing.
    pub tenants: Option<TenantsNews>,
    /// Interfaces that are plugged elsewhere than before, or whose addresses are others.
    pub plugs: Vec<InterfaceId>,
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
        loop {
            let Some(follower) = follower.upgrade() else { return };
            if self.is_ended.load(Ordering::Relaxed) {
                return;
            }
            let begin = Instant::now();
            let outcome = match reads_all {
                true => self.read_again(&*follower),
                false => self.check_origin().map_err(StoreError::from).and_then(|is_the_same| match is_the_same {
                    true => Ok(()),
                    false => self.read_in_place_of_copy(&*follower),
                }),
            };
            let outcome = outcome.and_then(|()| {
                reads_all = false;
                self.watch(&*follower)
            });
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
                Err(error) => tracing::debug!(%error, "following ended; it begins anew"),
            }
            // One that went well for a while is no try that failed.
            pause = if begin.elapsed() > RETRY_MAX { RETRY_MIN } else { (pause * 2).min(RETRY_MAX) };
            std::thread::sleep(pause);
        }
    }

    /// Follows until it is to end, or the watch does.
    fn watch(&self, follower: &dyn Follower) -> Result<(), StoreError> {
        let mut watch = self.wait(self.etcd.watch(&self.keys.prefix(), self.revision() + 1))?;
        let mut silent_since = Instant::now();
        loop {
            let Some(told) = self.next(&mut watch, LOOK_AFTER)? else {
                if self.is_ended.load(Ordering::Relaxed) {
                    return Ok(());
                }
                if silent_since.elapsed() >= CHECK_AFTER {
                    silent_since = Instant::now();
                    self.check(&mut watch, follower)?;
                }
                continue;
            };
            silent_since = Instant::now();
            self.take(told, &mut watch, follower)?;
        }
    }

    /// The next news, if there are any in time.
    fn next(&self, watch: &mut Watch, time_max: Duration) -> Result<Option<Told>, EtcdError> {
        let runtime = self.runtime.as_ref().expect("it is there until we are dropped");
        // Inside the runtime: a timer is made by the call.
        let told = runtime.block_on(async { tokio::time::timeout(time_max, watch.next()).await });
        told.ok().transpose().inspect_err(|_| self.etcd.turn())
    }

    /// Compares a silent watch with what there is.
    fn check(&self, watch: &mut Watch, follower: &dyn Follower) -> Result<(), StoreError> {
        let head = self.keys.of(Key::Head);
        // Silence of etcd itself is no fault of the watch: that ends by itself, or goes on.
        let Ok((head, revision)) = self.wait(self.etcd.get(&head)) else { return Ok(()) };
        if revision < self.revision() {
            tracing::error!(revision, known = self.revision(), "etcd has gone back in time; taking it as it is now");
            self.forget_place();
            return Err(EtcdError::Compacted.into());
        }
        if head.is_none_or(|head| head.mod_revision() <= self.revision()) {
            return Ok(());
        }
        match self.next(watch, DEAF_AFTER)? {
            Some(told) => self.take(told, watch, follower),
            None => Err(EtcdError::Unanswered("the watch is deaf".to_owned()).into()),
        }
    }

    /// Hands on what was told, and what more has come meanwhile.
    fn take(&self, first: Told, watch: &mut Watch, follower: &dyn Follower) -> Result<(), StoreError> {
        let Told { mut revision, mut events, bytes } = first;
        self.watched_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        while events.len() < EVENTS_MAX
            && let Some(more) = self.next(watch, Duration::ZERO)?
        {
            self.watched_bytes.fetch_add(more.bytes as u64, Ordering::Relaxed);
            revision = more.revision;
            events.extend(more.events);
        }
        let (mut changes, mut head, mut plugs) = (Vec::new(), None, Vec::new());
        {
            let mut directory = self.directory.write().unwrap_or_else(PoisonError::into_inner);
            let mut extras = self.extras.write().unwrap_or_else(PoisonError::into_inner);
            for event in &events {
                let value = event.value.as_deref();
                match self.keys.read(&event.key) {
                    Some(Key::Head) => {
                        if let Some(value) = value {
                            check_head(value)?;
                        }
                        head = Some(Head { revision: event.revision, value: value.unwrap_or_default().to_vec() });
                    }
                    Some(Key::Network(id)) => changes.push((event.revision, network(id, value)?)),
                    Some(Key::Port(id)) => changes.push((event.revision, port(id, value)?)),
                    Some(Key::Extra(kind, id)) => extras.put(kind, id, value, event.revision),
                    Some(key) => tell_directory(&mut directory, key, value, event.revision, &mut plugs),
                    None => {}
                }
            }
        }
        // Who finds one is told so once; what we say waits until he is gone.
        let _ = self.check_namesake();
        // Who changes records changes `head` with them.
        let tenants = head.map(|head| TenantsNews::Changes(changes, head));
        if tenants.is_some() || !plugs.is_empty() {
            follower.absorb(News { tenants, plugs })?;
        }
        {
            let mut followed = lock(&self.followed);
            *followed = revision.max(*followed);
        }
        self.copying.note_change();
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
        Key::Head | Key::Writer(_) | Key::Network(_) | Key::Port(_) | Key::Extra(..) => {}
    }
}
