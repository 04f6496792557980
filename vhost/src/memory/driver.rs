//! Memory of a driver of our own, shared with a backend: for tests and load generators.
//!
//! Offsets count bytes from its start and are checked at every access; a wrong one is a bug of the test and panics. What
//! the backend writes meanwhile is read by atomics, or copied byte by byte, never through a reference to plain bytes.

use super::Mapping;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64};
use switch::segment::{Segment, SegmentMut};

/// A file of memory and where it is mapped.
pub struct DriverMemory {
    file: OwnedFd,
    mapping: Mapping,
}

impl DriverMemory {
    /// A new file of `len` bytes, of 2 MiB pages if `is_huge`.
    ///
    /// # Errors
    /// If the system has no memory, or no huge pages.
    pub fn new(len: usize, is_huge: bool) -> std::io::Result<DriverMemory> {
        use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
        let flags = MemfdFlags::CLOEXEC | if is_huge { MemfdFlags::HUGETLB } else { MemfdFlags::empty() };
        let file = memfd_create("vhost-driver", flags)?;
        let len = if is_huge { len.next_multiple_of(2 << 20) } else { len };
        ftruncate(&file, len as u64)?;
        DriverMemory::map(file, 0, len)
    }

    /// A file that somebody else made, `len` bytes from `offset` on, which must be a multiple of the page size.
    ///
    /// # Errors
    /// If the system cannot map it.
    pub fn map(file: OwnedFd, offset: u64, len: usize) -> std::io::Result<DriverMemory> {
        let mapping = Mapping::new(file.as_fd(), offset, len, &Arc::new(AtomicBool::new(false)))?;
        Ok(DriverMemory { file, mapping })
    }

    /// The file, to give to a backend.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.mapping.len
    }

    /// Whether it has no byte; never.
    pub fn is_empty(&self) -> bool {
        self.mapping.len == 0
    }

    #[inline]
    fn at(&self, offset: usize, len: usize, align: usize) -> *mut u8 {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.mapping.len) && offset.is_multiple_of(align),
            "an access of {len} bytes at {offset:#x} leaves the driver's memory or is not aligned"
        );
        // SAFETY: `offset` is inside the mapping, as just checked.
        // Why unsafe: pointer arithmetic on memory that no slice may cover.
        unsafe { self.mapping.base.add(offset) }
    }

    /// A range of it, to be read without knowing where it lies.
    #[inline]
    pub fn segment(&self, offset: usize, len: usize) -> Segment<'_> {
        let base = self.at(offset, len, 1);
        // SAFETY: the range is inside the mapping, which lives as long as `self`.
        // Why unsafe: the memory is shared with another process.
        unsafe { Segment::new(base, len as u32) }
    }

    /// Copies bytes out.
    #[inline]
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        self.segment(offset, out.len()).read(out);
    }

    /// Copies bytes in.
    #[inline]
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let base = self.at(offset, bytes.len(), 1);
        // SAFETY: the range is inside the mapping, which lives as long as `self`, and no reference covers it.
        // Why unsafe: the memory is shared with another process.
        unsafe { SegmentMut::new(base, bytes.len() as u32) }.write(bytes);
    }

    /// The byte at `offset`, for bit maps.
    #[inline]
    pub fn byte(&self, offset: usize) -> &AtomicU8 {
        let base = self.at(offset, 1, 1);
        // SAFETY: the byte is inside the mapping, as just checked, and the mapping lives as long as `self`.
        // Why unsafe: the memory is shared with another process.
        unsafe { AtomicU8::from_ptr(base) }
    }

    /// The 16-bit word at `offset`, for the rings' indices and flags.
    #[inline]
    pub fn word(&self, offset: usize) -> &AtomicU16 {
        let base = self.at(offset, 2, 2);
        // SAFETY: the word is inside the mapping and aligned, as just checked, and the mapping lives as long as `self`.
        // Why unsafe: the memory is shared with another process.
        unsafe { AtomicU16::from_ptr(base.cast()) }
    }

    /// The 32-bit word at `offset`, for used entries and event suppression.
    #[inline]
    pub fn word32(&self, offset: usize) -> &AtomicU32 {
        let base = self.at(offset, 4, 4);
        // SAFETY: the word is inside the mapping and aligned, as just checked, and the mapping lives as long as `self`.
        // Why unsafe: the memory is shared with another process.
        unsafe { AtomicU32::from_ptr(base.cast()) }
    }

    /// The 64-bit word at `offset`, for halves of descriptors.
    #[inline]
    pub fn word64(&self, offset: usize) -> &AtomicU64 {
        let base = self.at(offset, 8, 8);
        // SAFETY: the word is inside the mapping and aligned, as just checked, and the mapping lives as long as `self`.
        // Why unsafe: the memory is shared with another process.
        unsafe { AtomicU64::from_ptr(base.cast()) }
    }

    /// `count` words of 32 bits from `offset` on, checked once: a run of used entries.
    #[inline]
    pub fn words32(&self, offset: usize, count: usize) -> &[AtomicU32] {
        let base = self.at(offset, 4 * count, 4);
        // SAFETY: the words are inside the mapping and aligned, as just checked, and the mapping lives as long as `self`.
        // Why unsafe: the memory is shared with another process.
        unsafe { std::slice::from_raw_parts(base.cast(), count) }
    }

    /// `N` words of 64 bits from `offset` on, checked once: the front of a frame.
    #[inline]
    pub fn words64<const N: usize>(&self, offset: usize) -> &[AtomicU64; N] {
        let base = self.at(offset, 8 * N, 8);
        // SAFETY: the words are inside the mapping and aligned, as just checked, and the mapping lives as long as `self`.
        // Why unsafe: the memory is shared with another process.
        unsafe { &*base.cast() }
    }

    /// Asks the processor to bring the cache line at `offset` near.
    #[inline]
    pub fn prefetch(&self, offset: usize) {
        switch::segment::prefetch(self.mapping.base.wrapping_add(offset));
    }

    /// The same for a line that is about to be written.
    #[inline]
    pub fn prefetch_to_write(&self, offset: usize) {
        switch::segment::prefetch_to_write(self.mapping.base.wrapping_add(offset));
    }
}
