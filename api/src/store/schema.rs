//! Which tables a store has, by schema version, and how one version becomes the next.
//!
//! A file of a newer version is refused: to guess what it holds would be to lose it. An older one is migrated in one
//! transaction, step by step, so that a kill or a full disk on the way leaves the version it had. The file before is
//! kept aside by the caller ([`super::file`]), because a step may be wrong and the way back is an older program.

use super::{StoreError, write_durably};
use redb::{Database, ReadableDatabase, TableDefinition, WriteTransaction};

/// The version of the tables this program writes. A file of a higher one is refused.
pub const SCHEMA_VERSION: u64 = 2;

pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
pub(super) const NETWORKS: TableDefinition<&str, &[u8]> = TableDefinition::new("networks");
pub(super) const PORTS: TableDefinition<&str, &[u8]> = TableDefinition::new("ports");
pub(super) const PLUGS: TableDefinition<&str, &[u8]> = TableDefinition::new("plugs");
/// Since version 2: what API extensions keep, by (kind, key).
pub(super) const EXTRAS: TableDefinition<(&str, &str), &[u8]> = TableDefinition::new("extras");
pub(super) const SCHEMA_KEY: &str = "schema";

type Step = fn(&WriteTransaction) -> Result<(), StoreError>;

/// The step at index n makes version n + 2 of version n + 1.
const STEPS: &[Step] = &[add_extras];
const _: () = assert!(STEPS.len() as u64 + 1 == SCHEMA_VERSION);

fn add_extras(transaction: &WriteTransaction) -> Result<(), StoreError> {
    transaction.open_table(EXTRAS)?;
    Ok(())
}

/// What a file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// No table: it was just made.
    Nothing,
    /// The version this program writes.
    Current,
    /// One that [`migrate`] knows the way from.
    Older(u64),
}

/// What the file holds; changes nothing.
///
/// # Errors
/// [`StoreError::NewerSchema`], [`StoreError::BadRecord`] for a version that never was, else what redb said.
pub(super) fn look(database: &Database) -> Result<Found, StoreError> {
    let found = match database.begin_read()?.open_table(META) {
        Ok(meta) => meta.get(SCHEMA_KEY)?.map(|version| version.value()),
        Err(redb::TableError::TableDoesNotExist(_)) => None,
        Err(error) => return Err(error.into()),
    };
    match found {
        None => Ok(Found::Nothing),
        Some(SCHEMA_VERSION) => Ok(Found::Current),
        Some(0) => Err(StoreError::BadRecord {
            table: "meta",
            key: SCHEMA_KEY.to_owned(),
            why: "there never was a version 0".to_owned(),
        }),
        Some(found) if found > SCHEMA_VERSION => Err(StoreError::NewerSchema { found }),
        Some(found) => Ok(Found::Older(found)),
    }
}

/// Gives a new file its tables.
///
/// # Errors
/// What redb said; the file is then as it was.
pub(super) fn make(database: &Database) -> Result<(), StoreError> {
    write_durably(database, |transaction| {
        transaction.open_table(META)?.insert(SCHEMA_KEY, SCHEMA_VERSION)?;
        transaction.open_table(NETWORKS)?;
        transaction.open_table(PORTS)?;
        transaction.open_table(PLUGS)?;
        transaction.open_table(EXTRAS)?;
        Ok(())
    })
}

/// Brings a file of version `from` to [`SCHEMA_VERSION`], in one transaction.
///
/// # Errors
/// What redb said; the file is then as it was.
pub(super) fn migrate(database: &Database, from: u64) -> Result<(), StoreError> {
    write_durably(database, |transaction| migrate_within(transaction, from))?;
    tracing::info!(from, to = SCHEMA_VERSION, "the store was migrated");
    Ok(())
}

/// The same as part of a transaction, which whoever only looks gives up.
///
/// # Errors
/// What redb said.
pub(super) fn migrate_within(transaction: &WriteTransaction, from: u64) -> Result<(), StoreError> {
    let done = usize::try_from(from - 1).expect("versions are few");
    for step in &STEPS[done..] {
        step(transaction)?;
    }
    transaction.open_table(META)?.insert(SCHEMA_KEY, SCHEMA_VERSION)?;
    Ok(())
}
