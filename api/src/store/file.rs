//! The store's file: made whole or not at all, ours alone, and kept aside before its schema changes.
//!
//! A kill at any moment must leave a file that opens. So a new one is made under another name and renamed, and so is the
//! copy that is kept of an old one; names are on the disk before anything relies on them.

use super::schema::{self, Found};
use super::{StoreError, lock, unfollowed};
use redb::Database;
use redb::backends::FileBackend;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes redb may use for its page cache. The model is in memory, so that reads of the file are rare; writes need the
/// pages on the way to the records they change.
const CACHE_BYTES: usize = 16 << 20;

/// Opens the file at `path`, which nobody else may have open; makes or migrates it if needed.
///
/// # Errors
/// As for [`super::Store::open`].
pub(super) fn open(path: &Path) -> Result<Database, StoreError> {
    if !path.try_exists().map_err(|source| file_error(path, source))? {
        make(path)?;
    }
    let database = open_existing(path)?;
    match schema::look(&database)? {
        Found::Current => Ok(database),
        Found::Nothing => schema::make(&database).map(|()| database),
        Found::Older(from) => {
            // Closed meanwhile, so that what is copied is a file in order.
            drop(database);
            let copy = keep_aside(path, from)?;
            tracing::info!(from, kept = %copy.display(), "the store has an older schema; the file as it was is kept");
            let database = open_existing(path)?;
            schema::migrate(&database, from).map(|()| database)
        }
    }
}

/// Makes a store under another name and gives it its own when it is whole.
fn make(path: &Path) -> Result<(), StoreError> {
    let fresh = path.with_added_extension("new");
    let file = create(&fresh)?;
    let database = builder().create_with_backend(FileBackend::new(file)?)?;
    schema::make(&database)?;
    drop(database);
    put_in_place(&fresh, path)
}

/// Opens the file at `path` and neither makes nor migrates anything.
pub(super) fn open_existing(path: &Path) -> Result<Database, StoreError> {
    let file = unfollowed::open(&mut open_options(), path)?;
    match builder().create_with_backend(FileBackend::new(file)?) {
        Err(redb::DatabaseError::DatabaseAlreadyOpen) => {
            Err(StoreError::InUse { path: path.to_owned(), pid: lock::holder(path) })
        }
        outcome => Ok(outcome?),
    }
}

/// Copies the closed file at `path` beside itself; the copy's name tells its schema. An older copy of that schema goes.
fn keep_aside(path: &Path, schema: u64) -> Result<PathBuf, StoreError> {
    let kept = path.with_added_extension(format!("schema-{schema}"));
    let half = kept.with_added_extension("new");
    let copy = || {
        let mut to = create(&half)?;
        let mut from = unfollowed::open(OpenOptions::new().read(true), path)?;
        io::copy(&mut from, &mut to).and_then(|_| to.sync_all()).map_err(|source| file_error(&half, source))
    };
    if let Err(error) = copy() {
        // Most often the disk is full, and half a copy makes it fuller.
        let _ = std::fs::remove_file(&half);
        return Err(error);
    }
    put_in_place(&half, &kept)?;
    Ok(kept)
}

/// Makes an empty file, mode 0600, in place of one that was left half made.
pub(super) fn create(path: &Path) -> Result<File, StoreError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file_error(path, error)),
        _ => {}
    }
    open_options().create_new(true).open(path).map_err(|source| file_error(path, source))
}

/// Gives a finished file its name, durably.
pub(super) fn put_in_place(fresh: &Path, path: &Path) -> Result<(), StoreError> {
    std::fs::rename(fresh, path).map_err(|source| file_error(path, source))?;
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(|source| file_error(directory, source))
}

pub(super) fn file_error(path: &Path, source: io::Error) -> StoreError {
    StoreError::File { path: path.to_owned(), source }
}

fn open_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}
