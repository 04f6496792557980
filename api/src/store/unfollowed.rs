//! Files of the store's directory, opened as what they are. The directory may belong to a daemon without privileges while root
//! works on its state (`qvs store`): so no name in it is followed elsewhere, or that daemon, or who took it over, could have root
//! write where only root may.

use super::StoreError;
use super::file::file_error;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Opens a file that is no symbolic link.
///
/// # Errors
/// [`StoreError::File`], also for a link.
pub(super) fn open(options: &mut OpenOptions, path: &Path) -> Result<File, StoreError> {
    let opened = options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32).open(path);
    opened.map_err(|source| match rustix::io::Errno::from_io_error(&source) {
        Some(rustix::io::Errno::LOOP) => {
            file_error(path, io::Error::other("this is a symbolic link, and none is followed here"))
        }
        _ => file_error(path, source),
    })
}
