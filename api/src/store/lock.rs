//! The `.pid` file beside a store: locked by its holder for as long as it lives, and naming it to others.
//!
//! The lock is the truth, the pid in it only a message: a file left by a killed process is simply not locked.

use super::{StoreError, unfollowed};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes of a pid file that are looked at; a pid has at most ten digits.
const PID_TEXT_MAX: u64 = 16;

/// The held lock. Dropping it, or the death of the process, frees it.
#[derive(Debug)]
pub(super) struct PidLock {
    _file: File,
}

impl PidLock {
    /// Locks the pid file of the store at `store`, which is no symbolic link, and writes this process's pid into it.
    ///
    /// # Errors
    /// [`StoreError::InUse`] if it is locked, [`StoreError::File`] if the file cannot be made or written.
    pub(super) fn take(store: &Path) -> Result<PidLock, StoreError> {
        let path = path_for(store);
        let file_error = |source| StoreError::File { path: path.clone(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = unfollowed::open(&mut options, &path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::InUse { path: store.to_owned(), pid: holder(store) });
            }
            Err(TryLockError::Error(source)) => return Err(file_error(source)),
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(file_error)?;
        writeln!(file, "{}", std::process::id()).map_err(file_error)?;
        Ok(PidLock { _file: file })
    }
}

/// The pid in the pid file of the store at `store`, if there is one.
pub(super) fn holder(store: &Path) -> Option<u32> {
    let mut text = String::new();
    unfollowed::open(OpenOptions::new().read(true), &path_for(store))
        .ok()?
        .take(PID_TEXT_MAX)
        .read_to_string(&mut text)
        .ok()?;
    text.trim().parse().ok()
}

fn path_for(store: &Path) -> PathBuf {
    store.with_added_extension("pid")
}
