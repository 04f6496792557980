//! Our own file of where a port's packed rings stand, for guests whose frontend keeps nothing for us: QEMU does not for
//! network devices, and tells a switch that comes back where the rings stood when the one before it was *started*.
//!
//! One file a port: a name for each ring, then a record for each ([`crate::inflight`]). The name is made of what the ring is:
//! the guest's memory file by its number, where in it the ring lies, its size, and where the frontend said it should begin.
//! A record counts for a ring of that name only; the same memory is the same guest, since a memory file belongs to one
//! process and its number does not come back while the host runs. What the name cannot tell, a guest that was started anew
//! in the same process, the record finds out.
//!
//! A ring that is stopped in order loses its name: from then on the frontend knows where it stands. The file lies on tmpfs
//! and is nearly all holes. Owned by the session's thread; the records' bodies are written by workers.

use crate::inflight::region_len;
use crate::memory::Area;
use crate::ring::{Kept, QUEUE_SIZE_MAX};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Rings a file has room for.
const RINGS: usize = 2 * crate::port::PAIRS_MAX;
/// What the file is, and in which version.
const MAGIC: u64 = u64::from_le_bytes(*b"qvsring1");
const PAGE: usize = 4096;
/// Where the names begin; the magic comes before.
const NAMES: usize = 64;
const _: () = assert!(NAMES + 8 * RINGS <= PAGE, "the names fit the first page");

/// A port's file, open.
pub(crate) struct StateFile {
    area: Arc<Area>,
}

/// Bytes from one record to the next: whole pages for the largest ring.
fn stride() -> usize {
    region_len(true, QUEUE_SIZE_MAX).next_multiple_of(PAGE)
}

/// FNV-1a, which is the same in every version of this program. Never 0, which is no name.
fn hash(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, step).max(1)
}

/// The name of a ring of `words` that tell it from any other.
pub(crate) fn name_of(words: &[u64]) -> u64 {
    hash(words.iter().flat_map(|word| word.to_le_bytes()))
}

/// The file in `directory` of the port whose socket is at `socket`.
pub fn state_path(directory: &Path, socket: &Path) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    directory.join(format!("{:016x}", hash(socket.as_os_str().as_bytes().iter().copied())))
}

impl StateFile {
    /// Opens a port's file, or makes it.
    ///
    /// # Errors
    /// If the system refuses, or the path is taken by something that is not ours.
    pub(crate) fn open(path: &Path) -> std::io::Result<StateFile> {
        let area = Arc::new(Area::open(path, (PAGE + RINGS * stride()) as u64)?);
        let file = StateFile { area };
        if file.area.word64(0).load(Ordering::Relaxed) != MAGIC {
            (0..RINGS).for_each(|ring| file.forget(ring));
            file.area.word64(0).store(MAGIC, Ordering::Relaxed);
        }
        Ok(file)
    }

    /// Where the record of a ring is, to be asked if it is of that name.
    pub(crate) fn kept(&self, ring: usize, name: u64) -> Kept {
        Kept { area: self.area.clone(), start: PAGE + ring * stride(), is_asked: self.name(ring) == name }
    }

    fn name(&self, ring: usize) -> u64 {
        self.area.word64(NAMES + 8 * ring).load(Ordering::Relaxed)
    }

    /// Gives the record of a ring its name, once what it says is true.
    pub(crate) fn call(&self, ring: usize, name: u64) {
        self.area.word64(NAMES + 8 * ring).store(name, Ordering::Release);
    }

    /// The record of a ring means nothing from now on.
    pub(crate) fn forget(&self, ring: usize) {
        self.call(ring, 0);
    }

    /// Whether what is written is kept nowhere, because the file system is full or the file was cut short.
    pub(crate) fn is_dead(&self) -> bool {
        self.area.is_dead()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_for_the_ring_it_is_named_after_and_for_no_other() {
        let path = std::env::temp_dir().join(format!("qvs-state-{}", std::process::id()));
        let file = StateFile::open(&path).unwrap();
        let name = name_of(&[1, 2, 3]);
        assert!(!file.kept(31, name).is_asked, "a new file has no names");
        file.call(31, name);
        drop(file);
        let file = StateFile::open(&path).unwrap();
        assert!(file.kept(31, name).is_asked);
        assert!(!file.kept(31, name_of(&[1, 2, 4])).is_asked && !file.kept(30, name).is_asked);
        file.forget(31);
        assert!(!file.kept(31, name).is_asked);
        // A file of another version begins anew.
        file.call(0, name);
        file.area.word64(0).store(7, Ordering::Relaxed);
        assert!(!StateFile::open(&path).unwrap().kept(0, name).is_asked);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_file_of_a_port_that_does_nothing_takes_next_to_no_memory() {
        use std::os::unix::fs::MetadataExt;
        let path = std::env::temp_dir().join(format!("qvs-state-holes-{}", std::process::id()));
        let file = StateFile::open(&path).unwrap();
        let kept = file.kept(5, 1);
        crate::inflight::PackedRecord::new(kept.area, kept.start, 256).unwrap().restart(0x8000);
        let bytes = std::fs::metadata(&path).unwrap().blocks() * 512;
        assert!(bytes <= 16 * PAGE as u64, "{bytes} bytes");
        assert!(!file.is_dead());
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn names_and_paths_are_the_same_in_every_version() {
        assert_eq!(name_of(&[]), 0xcbf2_9ce4_8422_2325);
        assert_eq!(state_path(Path::new("/d"), Path::new("a")), Path::new("/d/af63dc4c8601ec8c"));
    }
}
