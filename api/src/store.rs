//! The durable state of this host: tenants' networks and ports, operators' plugs. One redb file.
//!
//! A write that was acknowledged survives kill -9: each [`Store::commit`] is one transaction, fsynced before it returns.
//! What makes it hard is a disk that fails: after a failed commit nobody knows whether the change is on the disk, so the
//! file is closed and opened again, and the caller loads the model anew rather than guess. Records are one byte of
//! record version and then JSON (serde_json), so that an operator can read them and a later version can add fields.
//!
//! Any thread may call; calls take turns, fsync included. Size is bounded by the disk only.

mod backup;
mod essex;
mod file;
mod lock;
pub(crate) mod records;
mod schema;
mod unfollowed;

use crate::etcd::EtcdError;
use crate::host::Plug;
use crate::model::{Change, Inconsistent, InterfaceId, Model};
pub use backup::{BACKUP_VERSION, Backup, BackupError};
pub use essex::{Essex, EssexError};
use lock::PidLock;
use redb::{Database, Durability, ReadableDatabase, ReadableTable};
pub use schema::SCHEMA_VERSION;
use schema::{EXTRAS, NETWORKS, PLUGS, PORTS};
use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Why the store cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("{path} is in use by process {}", .pid.map_or_else(|| "(unknown)".to_owned(), |pid| pid.to_string()))]
    InUse {
        /// The store's file.
        path: PathBuf,
        /// The holder, if it wrote its pid.
        pid: Option<u32>,
    },
    /// A newer program wrote it.
    #[error(
        "the store has schema {found}, this program knows up to {SCHEMA_VERSION}: run the newer program, or restore a backup"
    )]
    NewerSchema {
        /// Its schema version.
        found: u64,
    },
    /// A record is of a version this program does not know or is not what it should be.
    #[error("record {key:?} of table {table} cannot be read: {why}")]
    BadRecord {
        /// The table.
        table: &'static str,
        /// The record's key.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// It is to be filled and holds something.
    #[error("the store holds {records} records already; --replace puts what is imported in their place")]
    NotEmpty {
        /// How many.
        records: u64,
    },
    /// The records contradict each other.
    #[error("the store contradicts itself: {0}")]
    Inconsistent(#[from] Inconsistent),
    /// The file or its directory cannot be made or opened.
    #[error("{path}: {source}")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// etcd failed, or is away.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// Another API server wrote first, and nothing was done: to be planned anew.
    #[error("other writers were faster again and again")]
    Outrun,
    /// What another API server wrote has not arrived here.
    #[error("this host does not hear what others write")]
    Behind,
    /// One write of more than etcd takes.
    #[error("a write of {changes} records and {bytes} bytes is more than etcd takes at once")]
    TooLarge {
        /// Records it changes.
        changes: usize,
        /// Bytes of them.
        bytes: usize,
    },
    /// redb failed, most often because the disk did.
    #[error("the store failed: {0}")]
    Database(Box<redb::Error>),
}

impl StoreError {
    /// What a tenant may be told of it: no path, no address and nobody's id.
    pub(crate) fn in_public(&self) -> &'static str {
        match self {
            StoreError::Etcd(EtcdError::Unreachable(_) | EtcdError::Unanswered(_)) => "the store does not answer",
            StoreError::Outrun => "other writers were faster again and again",
            StoreError::Behind => "the service does not hear what others write",
            StoreError::TooLarge { .. } => "the write is more than the store takes at once",
            _ => "the store failed",
        }
    }
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> StoreError {
        StoreError::Database(Box::new(error.into()))
    }
}

/// The open store. Holds its locks until dropped.
pub struct Store {
    /// `None` after a failure that reopening did not mend; the next call tries again.
    database: Mutex<Option<Database>>,
    reopen: Box<dyn Fn() -> Result<Database, StoreError> + Send + Sync>,
    _lock: Option<PidLock>,
}

impl Store {
    /// Opens the store at `path`, or makes it: the file 0600, a missing directory 0700. Beside it a `.pid` file is
    /// locked and names this process. A file of an older schema is migrated, and kept beside as it was (`.schema-N`).
    ///
    /// # Errors
    /// [`StoreError::InUse`] if another process has it, [`StoreError::NewerSchema`] if a newer program wrote it, otherwise
    /// what the system or redb said.
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(|source| StoreError::File { path: directory.to_owned(), source })?;
        }
        let lock = PidLock::take(path)?;
        let path = path.to_owned();
        let mut store = Store::with_opener(Box::new(move || file::open(&path)))?;
        store._lock = Some(lock);
        Ok(store)
    }

    fn with_opener(reopen: Box<dyn Fn() -> Result<Database, StoreError> + Send + Sync>) -> Result<Store, StoreError> {
        let database = reopen()?;
        Ok(Store { database: Mutex::new(Some(database)), reopen, _lock: None })
    }

    /// Everything tenants own.
    ///
    /// # Errors
    /// [`StoreError::BadRecord`] and [`StoreError::Inconsistent`] for a damaged file, else what redb said.
    pub fn load(&self) -> Result<Model, StoreError> {
        let mut guard = self.lock();
        let transaction = self.ready(&mut guard)?.begin_read()?;
        let networks = read_all(&transaction.open_table(NETWORKS)?, records::network)?;
        let ports = read_all(&transaction.open_table(PORTS)?, records::port)?;
        Ok(Model::from_records(networks, ports)?)
    }

    /// Writes these changes as one transaction and returns when they are on the disk.
    ///
    /// # Errors
    /// What redb said. It is then unknown whether the changes are on the disk: [`Store::load`] tells.
    pub fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut networks = transaction.open_table(NETWORKS)?;
            let mut ports = transaction.open_table(PORTS)?;
            for change in changes {
                match change {
                    Change::PutNetwork(network) => {
                        networks.insert(&*network.id, records::of_network(network).as_slice())?;
                    }
                    Change::RemoveNetwork(id) => {
                        networks.remove(&**id)?;
                    }
                    Change::PutPort(port) => {
                        ports.insert(&*port.id, records::of_port(port).as_slice())?;
                    }
                    Change::RemovePort(id) => {
                        ports.remove(&**id)?;
                    }
                }
            }
            Ok(())
        })
    }

    /// The plugs of this host by interface id.
    ///
    /// # Errors
    /// [`StoreError::BadRecord`] for a damaged file, else what redb said.
    pub fn plugs(&self) -> Result<BTreeMap<InterfaceId, Plug>, StoreError> {
        let mut guard = self.lock();
        let transaction = self.ready(&mut guard)?.begin_read()?;
        let plugs = read_all(&transaction.open_table(PLUGS)?, records::plug)?;
        Ok(plugs.into_iter().map(|plug| (plug.interface.clone(), plug)).collect())
    }

    /// Writes a plug, over an older one of the same interface if there is one.
    ///
    /// # Errors
    /// What redb said; as for [`Store::commit`].
    pub fn put_plug(&self, plug: &Plug) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.open_table(PLUGS)?.insert(&*plug.interface, records::of_plug(plug).as_slice())?;
            Ok(())
        })
    }

    /// Removes the plug of this interface; whether there was one.
    ///
    /// # Errors
    /// What redb said; as for [`Store::commit`].
    pub fn remove_plug(&self, interface: &str) -> Result<bool, StoreError> {
        self.write(|transaction| Ok(transaction.open_table(PLUGS)?.remove(interface)?.is_some()))
    }

    /// What an extension of the API keeps under `kind`, by key.
    ///
    /// # Errors
    /// What redb said.
    pub fn extras(&self, kind: &str) -> Result<BTreeMap<String, Vec<u8>>, StoreError> {
        let mut guard = self.lock();
        let extras = self.ready(&mut guard)?.begin_read()?.open_table(EXTRAS)?;
        let mut found = BTreeMap::new();
        for entry in extras.range((kind, "")..)? {
            let (key, value) = entry?;
            let (of, key) = key.value();
            if of != kind {
                break;
            }
            found.insert(key.to_owned(), value.value().to_vec());
        }
        Ok(found)
    }

    /// Keeps `value` under (`kind`, `key`) for an extension of the API, over what was there.
    ///
    /// # Errors
    /// What redb said; as for [`Store::commit`].
    pub fn put_extra(&self, kind: &str, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.open_table(EXTRAS)?.insert((kind, key), value)?;
            Ok(())
        })
    }

    /// Removes what is under (`kind`, `key`); whether there was something.
    ///
    /// # Errors
    /// What redb said; as for [`Store::commit`].
    pub fn remove_extra(&self, kind: &str, key: &str) -> Result<bool, StoreError> {
        self.write(|transaction| Ok(transaction.open_table(EXTRAS)?.remove((kind, key))?.is_some()))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Database>> {
        // A panic in another call leaves a database that redb itself keeps whole: its transaction was dropped.
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ready<'a>(&self, database: &'a mut Option<Database>) -> Result<&'a Database, StoreError> {
        match database {
            Some(database) => Ok(database),
            closed => Ok(closed.insert((self.reopen)()?)),
        }
    }

    /// One durable transaction. After a failure the file is closed, and opened again by the next call, because redb
    /// refuses all work once a write failed.
    fn write<T>(&self, change: impl FnOnce(&redb::WriteTransaction) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut guard = self.lock();
        let outcome = write_durably(self.ready(&mut guard)?, change);
        if let Err(error) = &outcome {
            tracing::error!(%error, "a write to the store failed; it is closed and will be opened again");
            *guard = None;
        }
        outcome
    }
}

fn write_durably<T>(
    database: &Database,
    change: impl FnOnce(&redb::WriteTransaction) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    let value = change(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

fn read_all<T>(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    read: impl Fn(&str, &[u8]) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    table
        .iter()?
        .map(|entry| entry.map_err(StoreError::from).and_then(|(key, value)| read(key.value(), value.value())))
        .collect()
}

#[cfg(test)]
mod tests;
