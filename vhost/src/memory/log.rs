//! The log of dirty pages: which pages of a guest's memory the switch has written, for a frontend that is moving the guest.
//!
//! One bit a page of 4,096 bytes, counted from guest address 0 (specification, "Migration"). The frontend takes bits away
//! while we add others, so every addition is an atomic OR. What makes it hard is the order: **bytes first, then their bit,
//! then whatever tells the guest of them**. A bit set before its bytes could be taken, and its page copied, before the
//! bytes are there; then nobody would copy the page again. For the index of a used ring, which is what tells the guest,
//! that means: index first, then its bit. It has to be set before the ring is reported as stopped, and is by then.
//!
//! A log of a guest is made by its session, and written by every worker that sends to it. Its file is held against the same
//! rules as guest memory, and one that is cut short under us is found by [`DirtyLog::is_dead`].

use super::{FileError, Mapping, MemoryError, map_file};
use crate::message::LogInfo;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// `VHOST_LOG_PAGE`: bytes of guest memory that one bit stands for, whatever the size of pages.
const LOG_PAGE: u64 = 4096;
/// Bytes of the longest log: that of the highest address a guest can have, 52 bits, would be 128 GiB; this covers 8 TiB.
const LOG_BYTES_MAX: u64 = 1 << 28;

/// A mapped log.
pub struct DirtyLog {
    mapping: Mapping,
    /// Bytes in the mapping before the log.
    skip: usize,
    /// Bytes of the log.
    size: u64,
    dead: Arc<AtomicBool>,
}

impl DirtyLog {
    /// Checks a log's file and maps it.
    ///
    /// # Errors
    /// [`MemoryError::LogFile`].
    pub fn map(info: &LogInfo, file: &OwnedFd) -> Result<DirtyLog, MemoryError> {
        let failed = |source| MemoryError::LogFile { source };
        let end = info.file_offset.checked_add(info.size);
        if info.size == 0 || info.size > LOG_BYTES_MAX || end.is_none() {
            return Err(failed(FileError::TooShort { wanted: info.size, given: 0 }));
        }
        let dead = Arc::new(AtomicBool::new(false));
        let (mapping, skip) = map_file(file.as_fd(), info.file_offset, info.size, &dead).map_err(failed)?;
        Ok(DirtyLog { mapping, skip, size: info.size, dead })
    }

    /// Whether it has a bit for every page up to the one of `last_address`.
    ///
    /// # Errors
    /// [`MemoryError::LogTooShort`].
    pub fn check_covers(&self, last_address: u64) -> Result<(), MemoryError> {
        let wanted = last_address / LOG_PAGE / 8 + 1;
        if wanted > self.size { Err(MemoryError::LogTooShort { wanted, given: self.size }) } else { Ok(()) }
    }

    /// Marks the pages of `len` bytes from `address` on as written. To be called after the bytes are there and before the
    /// guest is told of them; never blocks. Addresses beyond the log are nobody's memory and are left out.
    #[inline]
    pub fn mark(&self, address: u64, len: u64) {
        if len == 0 {
            return;
        }
        let last = address.saturating_add(len - 1) / LOG_PAGE;
        for page in address / LOG_PAGE..=last.min(8 * self.size - 1) {
            // Even where the bit is set already: a look at it could come before our bytes are seen, and the frontend
            // take it away in between. A locked OR is the barrier as well.
            self.byte(page / 8).fetch_or(1 << (page % 8), Ordering::SeqCst);
        }
    }

    /// Whether its file was cut short under us: marks go nowhere.
    #[inline]
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    #[inline]
    fn byte(&self, index: u64) -> &AtomicU8 {
        assert!(index < self.size, "mark stays inside the log");
        // SAFETY: the log's bytes lie in the mapping from `skip` on (`map`), and it lives as long as `self`. Others
        // change them, also by atomics.
        // Why unsafe: the memory is shared with another process.
        unsafe { AtomicU8::from_ptr(self.mapping.base().add(self.skip + index as usize)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    fn memfd(len: u64) -> OwnedFd {
        let file = memfd_create("log-test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, len).unwrap();
        file
    }

    /// The pages marked in a log that begins at `offset` of its file.
    fn pages(file: &OwnedFd, offset: u64, size: usize) -> Vec<u64> {
        let mut bytes = vec![0; size];
        rustix::io::pread(file, &mut bytes, offset).unwrap();
        (0..8 * size as u64).filter(|page| bytes[*page as usize / 8] & 1 << (page % 8) != 0).collect()
    }

    #[test]
    fn every_page_that_a_write_touches_is_marked_and_no_other() {
        let file = memfd(8192);
        // Not at a page's start, as the specification allows.
        let log = DirtyLog::map(&LogInfo { size: 64, file_offset: 4104 }, &file).unwrap();
        log.mark(0, 1);
        log.mark(4096 * 3 + 4095, 2);
        log.mark(4096 * 9, 4096);
        log.mark(4096 * 20, 0);
        log.mark(4096 * 30 + 1, 4096 * 2);
        assert_eq!(pages(&file, 4104, 64), [0, 3, 4, 9, 30, 31, 32]);
        assert_eq!(pages(&file, 0, 4104), [], "nothing before the log");
    }

    #[test]
    fn writes_beyond_the_log_are_left_out() {
        let file = memfd(4096);
        let log = DirtyLog::map(&LogInfo { size: 2, file_offset: 0 }, &file).unwrap();
        log.mark(4096 * 15, 4096 * 5);
        log.mark(4096 * 16, 1);
        log.mark(u64::MAX - 5, 100);
        log.mark(u64::MAX, u64::MAX);
        assert_eq!(pages(&file, 0, 4096), [15]);
        assert!(log.check_covers(4096 * 16 - 1).is_ok());
        assert!(matches!(log.check_covers(4096 * 16), Err(MemoryError::LogTooShort { wanted: 3, given: 2 })));
    }

    #[test]
    fn a_log_whose_file_will_not_do_is_refused() {
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        let refused = |info: LogInfo, file: &OwnedFd| match DirtyLog::map(&info, file) {
            Err(MemoryError::LogFile { source }) => source,
            _ => panic!("{info:?} was taken"),
        };
        let file = memfd(4096);
        assert!(matches!(refused(LogInfo { size: 8, file_offset: 0 }, &pipe), FileError::WrongKind));
        for (size, file_offset) in [(0, 0), (4097, 0), (8, 4089), (8, u64::MAX - 3), (LOG_BYTES_MAX + 1, 0)] {
            assert!(matches!(refused(LogInfo { size, file_offset }, &file), FileError::TooShort { .. }));
        }
    }

    #[test]
    fn a_log_that_is_cut_short_under_us_is_dead_and_we_are_not() {
        let file = memfd(8192);
        let log = DirtyLog::map(&LogInfo { size: 8192, file_offset: 0 }, &file).unwrap();
        log.mark(0, 1);
        assert!(!log.is_dead());
        ftruncate(&file, 0).unwrap();
        log.mark(4096 * 8 * 4096, 1);
        assert!(log.is_dead());
    }

    #[test]
    fn marks_that_meet_in_one_byte_lose_none() {
        let file = memfd(4096);
        let log = Arc::new(DirtyLog::map(&LogInfo { size: 1, file_offset: 0 }, &file).unwrap());
        let writers: Vec<_> = (0..3u64)
            .map(|page| {
                let log = log.clone();
                std::thread::spawn(move || {
                    for _ in 0..200_000 {
                        log.mark(page * LOG_PAGE, 1);
                        // The frontend takes it away, and nobody else has.
                        let bit = 1 << page;
                        assert_ne!(log.byte(0).fetch_and(!bit, Ordering::SeqCst) & bit, 0);
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    }
}
