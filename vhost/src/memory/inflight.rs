//! Memory that outlives the switch: where a ring stands, kept in a file, so that the process that takes our place can go on.
//!
//! The file is of one of two kinds. Either it is a memfd that we make and the frontend keeps for us (GET_INFLIGHT_FD), and
//! gives to whoever serves it next (SET_INFLIGHT_FD); or it is a file of our own. Its pages stay when the process dies, so
//! nothing is ever written back: a plain store is as durable as it needs to be. What comes back by either way is foreign:
//! this file only sees to it that no access leaves the mapping, and [`crate::inflight`] believes nothing it reads.
//!
//! Like guest memory, a file can be cut short under us, or its file system be full; then it is dead ([`Area::is_dead`]).
//! Made by a session's thread; a region is written by the workers that hold its ring's lock.

use super::{FileError, Mapping, map_file};
use rustix::fs::{
    FileType, MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create, open,
};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

/// Bytes to which the words of an area are aligned, and therefore its beginning in its file.
const AREA_ALIGN: u64 = 8;

/// A mapped file of records.
pub struct Area {
    mapping: Mapping,
    /// Bytes in the mapping before the area.
    skip: usize,
    /// Bytes of the area.
    len: usize,
    dead: Arc<AtomicBool>,
}

impl Area {
    /// A new memfd of `len` bytes, all zero, that nobody can cut short; and its mapping.
    ///
    /// # Errors
    /// If the system has no file descriptor or no address space left.
    pub fn create(len: u64) -> std::io::Result<(OwnedFd, Area)> {
        let file = memfd_create("vhost-inflight", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, len)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let area = Area::of_our_file(&file, len)?;
        Ok((file, area))
    }

    /// Checks a file that a frontend gave us and maps `len` bytes of it from `offset` on.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn map(file: &OwnedFd, offset: u64, len: u64) -> Result<Area, FileError> {
        let is_placed = offset.is_multiple_of(AREA_ALIGN) && offset.checked_add(len).is_some();
        if len == 0 || !is_placed || usize::try_from(len).is_err() {
            return Err(FileError::TooShort { wanted: len, given: 0 });
        }
        let dead = Arc::new(AtomicBool::new(false));
        let (mapping, skip) = map_file(file.as_fd(), offset, len, &dead)?;
        Ok(Area { mapping, skip, len: len as usize, dead })
    }

    /// A file of our own of `len` bytes, made if it is not there or is not as we make it.
    ///
    /// # Errors
    /// If the system refuses, or the path is taken by something that is not ours.
    pub fn open(path: &Path, len: u64) -> std::io::Result<Area> {
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = open(path, flags, Mode::RUSR | Mode::WUSR)?;
        let status = fstat(&file)?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile
            || status.st_uid != rustix::process::geteuid().as_raw()
        {
            return Err(std::io::ErrorKind::AlreadyExists.into());
        }
        if status.st_size as u64 != len {
            ftruncate(&file, 0)?;
            ftruncate(&file, len)?;
        }
        Area::of_our_file(&file, len)
    }

    fn of_our_file(file: &OwnedFd, len: u64) -> std::io::Result<Area> {
        let len = usize::try_from(len).map_err(|_| std::io::ErrorKind::InvalidInput)?;
        let dead = Arc::new(AtomicBool::new(false));
        let mapping = Mapping::new(file.as_fd(), 0, len, &dead)?;
        Ok(Area { mapping, skip: 0, len, dead })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no byte; never.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether its file was cut short, or had no room for a page: what is written is kept nowhere.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    #[inline]
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len) && offset.is_multiple_of(len),
            "a word of {len} bytes at {offset:#x} leaves the area or is not aligned"
        );
        // SAFETY: the mapping reaches `len` bytes from `skip` on, and the word is inside it, as just checked.
        // Why unsafe: pointer arithmetic on memory that no slice may cover.
        unsafe { self.mapping.base().add(self.skip + offset) }
    }

    /// The 16-bit word at `offset`.
    #[inline]
    pub fn word16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: the word is inside the mapping, which lives as long as `self`, and aligned: mappings begin at pages, and
        // `skip` is a multiple of [`AREA_ALIGN`].
        // Why unsafe: the memory is shared with other processes.
        unsafe { AtomicU16::from_ptr(self.at(offset, 2).cast()) }
    }

    /// The 64-bit word at `offset`.
    #[inline]
    pub fn word64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as in `word16`.
        // Why unsafe: as in `word16`.
        unsafe { AtomicU64::from_ptr(self.at(offset, 8).cast()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_area_of_ours_cannot_be_cut_short_and_comes_back_as_it_was() {
        let (file, area) = Area::create(8192).unwrap();
        assert!(ftruncate(&file, 0).is_err() && ftruncate(&file, 1 << 20).is_err());
        area.word64(8184).store(77, Ordering::Relaxed);
        drop(area);
        let again = Area::map(&file, 4096, 4096).unwrap();
        assert_eq!((again.word64(4088).load(Ordering::Relaxed), again.len(), again.is_dead()), (77, 4096, false));
    }

    #[test]
    fn an_area_that_cannot_be_is_refused() {
        let (file, _area) = Area::create(8192).unwrap();
        for (offset, len) in [(0, 0), (0, 8193), (4096, 4097), (4, 64), (u64::MAX - 7, 64), (64, u64::MAX)] {
            assert!(matches!(Area::map(&file, offset, len), Err(FileError::TooShort { .. })), "{len} from {offset}");
        }
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        assert!(matches!(Area::map(&pipe, 0, 64), Err(FileError::WrongKind)));
    }

    #[test]
    fn a_file_of_our_own_keeps_its_words_and_one_of_another_length_begins_anew() {
        let path = std::env::temp_dir().join(format!("qvs-area-{}", std::process::id()));
        Area::open(&path, 4096).unwrap().word16(2).store(5, Ordering::Relaxed);
        assert_eq!(Area::open(&path, 4096).unwrap().word16(2).load(Ordering::Relaxed), 5);
        assert_eq!(Area::open(&path, 8192).unwrap().word16(2).load(Ordering::Relaxed), 0);
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(Area::open(&path, 4096).is_err(), "a link is not followed");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn an_area_that_is_cut_short_under_us_is_dead_and_we_are_not() {
        let file = memfd_create("area-test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 4096).unwrap();
        let area = Area::map(&file, 0, 4096).unwrap();
        ftruncate(&file, 0).unwrap();
        area.word64(0).store(1, Ordering::Relaxed);
        assert!(area.is_dead());
    }

    #[test]
    #[should_panic(expected = "leaves the area")]
    fn a_word_beyond_the_area_is_a_bug_of_ours() {
        let (_file, area) = Area::create(64).unwrap();
        area.word16(64);
    }
}
