//! What several hosts share by etcd: tenants' records, and which hosts live with what is plugged on them.
//!
//! Every host has all of it in memory, as of one revision, and follows what changes ([`follow`]). Nothing is asked of etcd on a
//! read, nor by a worker: a host that loses etcd goes on with what it knows, serves what is read, and refuses what is written.
//! It keeps a copy on its own disk, and starts from that while etcd is away ([`copy`]).
//!
//! Tenants' records are written by one transaction that asks for the write before it (`head`): so whoever plans a write
//! against what he knows writes only if he knew all ([`tenants`]). What a host says of itself is under a lease of its own
//! and goes when it dies ([`node`]).
//!
//! Threads: `etcd` moves the bytes; `mirror` follows; `copy` writes; any other may call what blocks, none that runs tokio's tasks. Memory: a
//! copy of what is shared, a page of it more while all is read, and what one watch may gather.

mod compaction;
mod copy;
mod directory;
mod everything;
mod follow;
mod freed;
mod key;
mod node;
mod refusals;
mod tenants;

#[cfg(any(test, fuzzing))]
pub(crate) use directory::read_noise;
pub use directory::{Directory, MACS_MAX, NodeRecord, PlugRecord, Plugged};
pub use follow::{Follower, News};
pub use node::{Claim, NotSaid, Wanted};
pub use tenants::TenantsNews;
pub(crate) use tenants::{Absorbed, BYTES_MAX};

use crate::etcd::message::Revision;
use crate::etcd::watch::Event;
use crate::etcd::{Etcd, EtcdConfig, EtcdConfigError, EtcdError};
use crate::model::Text;
use crate::store::StoreError;
use copy::Copying;
use everything::{Everything, Gathering};
use key::Keys;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Pause between two tries to reach etcd; doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// How long etcd counts as away, for who would write, once it gave no answer.
const AWAY_FOR: Duration = Duration::from_secs(1);

/// Pause between two looks whether what an end waits for is there.
const END_PAUSE: Duration = Duration::from_millis(10);

/// Where a cloud's state is and who we are in it.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// How etcd is reached.
    pub etcd: EtcdConfig,
    /// What all keys of the cloud begin with; no slash at its end.
    pub prefix: String,
    /// Our name, which no other host has.
    pub host: String,
    /// Seconds until a host that is heard of no more counts as dead.
    pub lease_s: u32,
    /// The file of our own copy of what is shared; `None`: we keep none.
    pub copy: Option<PathBuf>,
    /// Earlier starts of it, some of which may still seem to live.
    pub boots_before: Vec<Text>,
}

/// Why a host cannot take part.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// What the settings say of etcd.
    #[error(transparent)]
    Config(#[from] EtcdConfigError),
    /// There is no thread to be had.
    #[error("starting a thread: {0}")]
    Thread(#[from] io::Error),
}

/// A host's part in what is shared.
pub struct Cluster {
    etcd: Etcd,
    /// The URLs of its members.
    members: Vec<String>,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    keys: Keys,
    host: Text,
    /// This start of it.
    boot: Text,
    boots_before: Vec<Text>,
    lease_s: u32,
    directory: RwLock<Directory>,
    extras: RwLock<tenants::Extras>,
    /// What was read before anybody wanted it.
    read: Mutex<Option<Everything>>,
    tenants: tenants::Place,
    freed: freed::Freed,
    compaction: compaction::Compaction,
    node: Mutex<node::Registration>,
    /// It is told that another host lives by our name.
    is_namesake_told: AtomicBool,
    /// Whether etcd answered when it was asked last.
    is_there: AtomicBool,
    /// What it refuses.
    refusals: refusals::Refusals,
    /// When it did not answer last.
    failed_at: Mutex<Option<Instant>>,
    /// It was found that etcd is not what it was: all is to be read again.
    is_set_back: AtomicBool,
    followed: Mutex<Followed>,
    /// Bytes of all that a watch told.
    watched_bytes: AtomicU64,
    /// Our own copy of all this.
    copying: Arc<Copying>,
    /// What is known comes from it, and has not been found in etcd yet.
    is_from_copy: AtomicBool,
    /// Ends what follows.
    is_ended: AtomicBool,
}

/// How far we follow.
#[derive(Default)]
struct Followed {
    /// All that happened up to this revision is known.
    revision: Revision,
    /// What was written last of that; `None`: nothing ever was.
    last: Option<Event>,
}

impl Cluster {
    /// A part in the cloud that has not asked etcd yet.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub fn new(config: ClusterConfig) -> Result<Cluster, ClusterError> {
        let members = config.etcd.endpoints.clone();
        let etcd = Etcd::new(config.etcd)?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("etcd").enable_all().build()?;
        Ok(Cluster {
            etcd,
            members,
            runtime: Some(runtime),
            keys: Keys::below(&config.prefix),
            host: config.host.into(),
            boot: uuid::Uuid::new_v4().as_simple().to_string().into(),
            boots_before: config.boots_before,
            lease_s: config.lease_s,
            directory: RwLock::default(),
            extras: RwLock::default(),
            read: Mutex::default(),
            tenants: tenants::Place::default(),
            freed: freed::Freed::default(),
            compaction: compaction::Compaction::default(),
            node: Mutex::default(),
            is_namesake_told: AtomicBool::new(false),
            is_there: AtomicBool::new(false),
            refusals: refusals::Refusals::default(),
            failed_at: Mutex::default(),
            is_set_back: AtomicBool::new(false),
            followed: Mutex::default(),
            watched_bytes: AtomicU64::new(0),
            copying: Copying::at(config.copy),
            is_from_copy: AtomicBool::new(false),
            is_ended: AtomicBool::new(false),
        })
    }

    /// Our name.
    pub fn host(&self) -> &Text {
        &self.host
    }

    /// This start of it, which no other has.
    pub fn boot(&self) -> &Text {
        &self.boot
    }

    /// Whether etcd answered when it was asked last.
    pub fn is_there(&self) -> bool {
        self.is_there.load(Ordering::Relaxed)
    }

    /// What etcd refuses this host now, one line each: it answers, but following or saying goes not on.
    pub fn refusals(&self) -> Vec<String> {
        self.refusals.now()
    }

    /// The revision up to which this host knows everything.
    pub fn revision(&self) -> Revision {
        lock(&self.followed).revision
    }

    /// Bytes that were told us of changes so far.
    pub fn watched_bytes(&self) -> u64 {
        self.watched_bytes.load(Ordering::Relaxed)
    }

    /// Looks at which hosts live and what is plugged on them.
    pub fn look<T>(&self, look: impl FnOnce(&Directory) -> T) -> T {
        look(&self.directory.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends what was started, and leaves: what is plugged here is DOWN for the others at once.
    pub fn end(&self) {
        self.is_ended.store(true, Ordering::Relaxed);
        self.copying.end();
        self.leave();
        self.finish_copy();
    }

    /// Has a thread of ours wait for etcd.
    fn wait<T>(&self, what: impl Future<Output = Result<T, EtcdError>>) -> Result<T, EtcdError> {
        let runtime = self.runtime.as_ref().expect("it is there until we are dropped");
        let outcome = runtime.block_on(what);
        let is_there = match &outcome {
            Ok(_) | Err(EtcdError::Refused { .. } | EtcdError::Compacted) => true,
            Err(_) => false,
        };
        if !is_there {
            *lock(&self.failed_at) = Some(Instant::now());
        }
        if self.is_there.swap(is_there, Ordering::Relaxed) != is_there {
            match &outcome {
                Err(error) if !is_there => {
                    tracing::warn!(%error, "etcd is away; this host goes on with what it knows");
                }
                // Also if it refuses.
                _ => tracing::info!("etcd is there"),
            }
        }
        outcome
    }

    /// Whether a write can be tried: where etcd was away, it is asked something first, because a write that gets no answer costs
    /// far more time than a question.
    ///
    /// # Errors
    /// [`EtcdError::Unreachable`]: it is away still, or was a moment ago.
    fn check_is_there(&self) -> Result<(), EtcdError> {
        if self.is_there() {
            return Ok(());
        }
        if lock(&self.failed_at).is_some_and(|at| at.elapsed() < AWAY_FOR) {
            return Err(EtcdError::Unreachable("it did not answer a moment ago".to_owned()));
        }
        self.wait(self.etcd.get(&self.keys.of(key::Key::Head))).map(drop)
    }

    /// Reads all there is, for the plugin that will be made: so whoever starts a host can wait for etcd.
    ///
    /// # Errors
    /// As [`StoreError`] says.
    pub fn probe(&self) -> Result<(), StoreError> {
        *lock(&self.read) = Some(self.read_everything()?);
        Ok(())
    }

    /// Reads all there is.
    ///
    /// # Errors
    /// [`StoreError`]: etcd does not answer, or what it has is no state of ours.
    pub(crate) fn read_everything(&self) -> Result<Everything, StoreError> {
        let mut gathering = Gathering::of(&self.keys);
        let prefix = self.keys.prefix();
        let read = self.etcd.read_all(&prefix, |kv| gathering.take(&kv.key, &kv.value.0, kv.mod_revision()));
        let revision = self.wait(read)?;
        gathering.finish(revision)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.copying.end();
        if let Some(runtime) = self.runtime.take() {
            // Nothing of it blocks, and we may be dropped where blocking is not allowed.
            runtime.shutdown_background();
        }
    }
}

fn lock<T>(it: &Mutex<T>) -> MutexGuard<'_, T> {
    it.lock().unwrap_or_else(PoisonError::into_inner)
}
