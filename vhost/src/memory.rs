//! A guest's memory, mapped here, and the one place where its addresses are translated.
//!
//! A peer gives us files and says which part of each is which part of the guest. It may lie about all of it: so the files
//! must be of a kind that cannot block a reader, as long as the peer says, and the regions must not overlap. A table that
//! passed never changes; a new one, or one with a region more or less, is another [`GuestMemory`], and a region stays mapped
//! until the last port object that uses it is gone. The log of dirty pages ([`DirtyLog`]) is a file of the same kind. A file that is not sealed can still be cut short under us: then the process-wide SIGBUS handler
//! of `switch::sigbus` puts zero pages there and marks this memory dead ([`GuestMemory::is_dead`]).
//!
//! Bounds: [`REGIONS_MAX`] regions, [`MAPPED_BYTES_MAX`] bytes of them, and [`MAPPED_BYTES_TOTAL_MAX`] of all peers together. Made by the session's thread, read by workers.

use crate::chain::Descriptor;
use crate::message::{REGIONS_MAX, RegionInfo};
use rustix::fs::{FileType, fcntl_get_seals, fstat, fstatfs};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use switch::segment::{Segment, SegmentMut};
use switch::sigbus::{self, Registration};

mod budget;
mod inflight;
mod log;
pub use budget::MAPPED_BYTES_TOTAL_MAX;
use budget::Share;
pub use inflight::Area;
pub use log::DirtyLog;
#[cfg(feature = "driver")]
mod driver;
#[cfg(feature = "driver")]
pub use driver::DriverMemory;

/// Bytes of guest memory one session may have us map: 1 TiB, of the 128 TiB a process has.
pub const MAPPED_BYTES_MAX: u64 = 1 << 40;

/// `TMPFS_MAGIC` of linux/magic.h: memfd and /dev/shm.
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// `HUGETLBFS_MAGIC` of linux/magic.h: huge pages, memfd or mounted.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
/// Bytes of a page, for files of ordinary pages. Larger bases than the page size are always allowed.
const PAGE_SIZE: u64 = 4096;

/// Why a memory table is refused.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Not one file descriptor for each region.
    #[error("{regions} regions came with {fds} file descriptors")]
    FdCount {
        /// Regions in the table.
        regions: usize,
        /// File descriptors that came.
        fds: usize,
    },
    /// More regions than [`REGIONS_MAX`].
    #[error("a memory table of {given} regions; the most is {REGIONS_MAX}")]
    TooManyRegions {
        /// How many it has.
        given: usize,
    },
    /// A region of no bytes.
    #[error("memory region {region} is empty")]
    Empty {
        /// Which region of the table, from 0.
        region: usize,
    },
    /// A region whose end is beyond 64 bits.
    #[error("memory region {region} wraps around")]
    Wraps {
        /// Which region of the table, from 0.
        region: usize,
    },
    /// Two regions share guest addresses or user addresses.
    #[error("memory regions {first} and {second} overlap")]
    Overlap {
        /// One of them.
        first: usize,
        /// The other.
        second: usize,
    },
    /// More memory than [`MAPPED_BYTES_MAX`].
    #[error("the memory table maps {bytes} bytes; the most is {MAPPED_BYTES_MAX}")]
    TooLarge {
        /// How much it would be.
        bytes: u128,
    },
    /// A region's file will not do.
    #[error("memory region {region} {source}")]
    File {
        /// Which region of the table, from 0.
        region: usize,
        /// What is wrong with it.
        source: FileError,
    },
    /// A region to be removed that is not there.
    #[error("there is no memory region of {size} bytes at guest address {guest_address:#x} to remove")]
    NoSuchRegion {
        /// The guest address it should have.
        guest_address: u64,
        /// Bytes it should have.
        size: u64,
    },
    /// The log's file will not do.
    #[error("the log of dirty pages {source}")]
    LogFile {
        /// What is wrong with it.
        source: FileError,
    },
    /// A log that does not reach to the end of the guest's memory, or of a ring.
    #[error("the log of dirty pages has {given} bytes and needs {wanted}")]
    LogTooShort {
        /// Bytes it needs.
        wanted: u64,
        /// Bytes it has.
        given: u64,
    },
}

/// What is wrong with a file that a peer wants mapped.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It is neither memfd, tmpfs nor hugetlbfs.
    #[error("is no file of memfd, tmpfs or hugetlbfs")]
    WrongKind,
    /// It is shorter than the peer says.
    #[error("needs a file of {wanted} bytes; it has {given}")]
    TooShort {
        /// Bytes it needs.
        wanted: u64,
        /// Bytes it has.
        given: u64,
    },
    /// All peers together would have more mapped than [`MAPPED_BYTES_TOTAL_MAX`].
    #[error(
        "is of {wanted} bytes, more than is left of the {MAPPED_BYTES_TOTAL_MAX} that all peers together may have mapped"
    )]
    NoRoom {
        /// Bytes it needs.
        wanted: u64,
    },
    /// The system refused.
    #[error("cannot be mapped: {what}: {source}")]
    Io {
        /// What we tried.
        what: &'static str,
        /// What it said.
        source: std::io::Error,
    },
}

/// A shared mapping of a part of a file; unmapped when dropped.
pub(crate) struct Mapping {
    base: *mut u8,
    len: usize,
    /// Device and inode number of the file.
    file: (u64, u64),
    registration: Option<Registration>,
    /// What it takes of the address space that peers may have us use; `None` for a file of our own.
    share: Option<Share>,
}

// SAFETY: a mapping is an address and a length; it may be read, written and unmapped from any thread.
// Why unsafe: raw pointers are not `Send` and `Sync` by default.
unsafe impl Send for Mapping {}
// SAFETY: as above; all access goes through volatile or atomic operations.
// Why unsafe: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of a file from `offset` on, and has SIGBUS in it set `dead`.
    pub(crate) fn new(
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        dead: &Arc<AtomicBool>,
    ) -> std::io::Result<Mapping> {
        let status = fstat(file)?;
        // SAFETY: a new mapping at an address the kernel chooses replaces nothing; no reference to it is ever made.
        // Why unsafe: mmap is how memory is shared with another process; there is no safe spelling.
        let base = unsafe {
            mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, offset)?
        };
        let file = (status.st_dev, status.st_ino);
        let mut mapping = Mapping { base: base.cast(), len, file, registration: None, share: None };
        mapping.registration = Some(sigbus::register(base as usize, len, dead.clone()).map_err(std::io::Error::other)?);
        Ok(mapping)
    }

    /// The first byte.
    pub(crate) fn base(&self) -> *mut u8 {
        self.base
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // First no handler may map pages here any more; then the range is given back.
        self.registration = None;
        // SAFETY: `base..base+len` was mapped by `new`, is unmapped only here, and whoever held an address into it held
        // a borrow of this mapping or of the memory that owns it.
        // Why unsafe: munmap pulls memory away; only the owner can promise that it is unused.
        let result = unsafe { munmap(self.base.cast(), self.len) };
        debug_assert!(result.is_ok(), "a mapping of our own making can be unmapped");
        self.share = None;
    }
}

/// One region, as the hot path needs it: 32 bytes.
#[derive(Clone, Copy)]
struct Region {
    guest: u64,
    len: u64,
    host: *mut u8,
    user: u64,
}

impl Region {
    #[inline(always)]
    fn window<'m>(&self, _of: &'m GuestMemory) -> Window<'m> {
        Window { guest: self.guest, len: self.len, host: self.host, held: PhantomData }
    }
}

/// Where the last translation was found; the next one is most likely there too.
#[derive(Clone, Copy, Debug, Default)]
pub struct RegionHint(u32);

/// One region, taken out of the table: a run of buffers is translated from registers.
#[derive(Clone, Copy)]
pub struct Window<'m> {
    guest: u64,
    len: u64,
    host: *mut u8,
    held: PhantomData<&'m GuestMemory>,
}

impl<'m> Window<'m> {
    /// The host address of `address`, and how many bytes follow it; at least one. `None` if it is in another region, or nowhere.
    #[inline(always)]
    fn translate(&self, address: u64) -> Option<(*mut u8, u64)> {
        let offset = address.wrapping_sub(self.guest);
        if offset >= self.len {
            return None;
        }
        // SAFETY: `offset` is below the region's length, so the pointer stays inside its mapping.
        // Why unsafe: pointer arithmetic on memory that no slice may cover.
        Some((unsafe { self.host.add(offset as usize) }, self.len - offset))
    }

    /// Like [`GuestMemory::readable`], of this region only.
    #[inline(always)]
    pub fn readable(&self, address: u64, len: u32) -> Option<Segment<'m>> {
        let (host, room) = self.translate(address)?;
        let len = u64::from(len).min(room) as u32;
        // SAFETY: `host` has at least `len` bytes in its mapping, which lives as long as the memory, so for `'m`. Should the
        // file be cut short, zero pages take their place.
        // Why unsafe: this memory is shared with another process; no safe type describes it.
        Some(unsafe { Segment::new(host, len) })
    }

    /// Like [`GuestMemory::writable`], of this region only.
    #[inline(always)]
    pub fn writable(&self, address: u64, len: u32) -> Option<SegmentMut<'m>> {
        let (host, room) = self.translate(address)?;
        let len = u64::from(len).min(room) as u32;
        // SAFETY: as in `readable`; the mapping is writable, and no Rust reference ever covers it.
        // Why unsafe: as in `readable`.
        Some(unsafe { SegmentMut::new(host, len) })
    }
}

/// All memory of one guest, mapped. Immutable.
pub struct GuestMemory {
    regions: Box<[Region]>,
    /// What the regions point into, one a region; unmapped when the last table that has it is dropped.
    mappings: Vec<Arc<Mapping>>,
    /// The table, as the peer gave it.
    table: Vec<RegionInfo>,
    dead: Arc<AtomicBool>,
}

// SAFETY: the regions point into `mappings`, which may be used from any thread and live as long as this.
// Why unsafe: raw pointers are not `Send` and `Sync` by default.
unsafe impl Send for GuestMemory {}
// SAFETY: as above.
// Why unsafe: as above.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    /// Checks a table and maps it; `files` has one file a region, in the order of the table.
    ///
    /// # Errors
    /// [`MemoryError`]; nothing stays mapped.
    pub fn map(table: &[RegionInfo], files: &[OwnedFd]) -> Result<GuestMemory, MemoryError> {
        check(table, files.len())?;
        let dead = Arc::new(AtomicBool::new(false));
        let mut regions = Vec::with_capacity(table.len());
        let mut mappings = Vec::with_capacity(table.len());
        for (region, (info, file)) in table.iter().zip(files).enumerate() {
            let (mapping, mapped) = map_region(region, info, file.as_fd(), &dead)?;
            regions.push(mapped);
            mappings.push(mapping);
        }
        Ok(GuestMemory { regions: regions.into(), mappings, table: table.to_vec(), dead })
    }

    /// The same memory with one more region; the others stay mapped where they are.
    ///
    /// # Errors
    /// [`MemoryError`]; this table is as it was.
    pub fn with(&self, info: &RegionInfo, file: &OwnedFd) -> Result<GuestMemory, MemoryError> {
        let table: Vec<RegionInfo> = self.table.iter().chain([info]).copied().collect();
        check(&table, table.len())?;
        let (mapping, mapped) = map_region(self.table.len(), info, file.as_fd(), &self.dead)?;
        let regions = self.regions.iter().copied().chain([mapped]).collect();
        let mappings = self.mappings.iter().cloned().chain([mapping]).collect();
        Ok(GuestMemory { regions, mappings, table, dead: self.dead.clone() })
    }

    /// The same memory less the region of this guest address, user address and size (specification, REM_MEM_REG).
    ///
    /// # Errors
    /// [`MemoryError::NoSuchRegion`].
    pub fn without(&self, info: &RegionInfo) -> Result<GuestMemory, MemoryError> {
        let key = |info: &RegionInfo| (info.guest_address, info.user_address, info.size);
        let missing = MemoryError::NoSuchRegion { guest_address: info.guest_address, size: info.size };
        let at = self.table.iter().position(|region| key(region) == key(info)).ok_or(missing)?;
        let mut regions = self.regions.to_vec();
        let (mut mappings, mut table) = (self.mappings.clone(), self.table.clone());
        regions.remove(at);
        mappings.remove(at);
        table.remove(at);
        Ok(GuestMemory { regions: regions.into(), mappings, table, dead: self.dead.clone() })
    }

    /// Whether just this region of just this file is part of it.
    pub fn has(&self, info: &RegionInfo, file: &OwnedFd) -> bool {
        let at = self.table.iter().position(|region| region == info);
        // Seals first, as in `map_file`: only a file of memory is asked the rest.
        at.is_some_and(|at| {
            fcntl_get_seals(file).is_ok()
                && fstat(file).is_ok_and(|status| (status.st_dev, status.st_ino) == self.mappings[at].file)
        })
    }

    /// Whether the region shares guest or user addresses with any of it.
    pub fn touches(&self, info: &RegionInfo) -> bool {
        self.table.iter().any(|region| overlap(region, info))
    }

    /// The highest guest address that is memory; `None` if there is none.
    pub fn last_address(&self) -> Option<u64> {
        self.table.iter().map(|info| info.guest_address + (info.size - 1)).max()
    }

    /// Whether a file was cut short under us: what is read is zeros and what is written goes nowhere.
    #[inline]
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// The region where the last translation was found, the first one before any; an empty one if there is none.
    #[inline(always)]
    pub fn window(&self, hint: RegionHint) -> Window<'_> {
        let none = Window { guest: 0, len: 0, host: std::ptr::null_mut(), held: PhantomData };
        self.regions.get(hint.0 as usize).map_or(none, |region| region.window(self))
    }

    /// The region that has `address`, remembered in `hint`.
    #[cold]
    fn search(&self, hint: &mut RegionHint, address: u64) -> Option<Window<'_>> {
        let index = self.regions.iter().position(|region| address.wrapping_sub(region.guest) < region.len)?;
        hint.0 = index as u32;
        Some(self.window(*hint))
    }

    /// The region that has `address`, remembered in `hint`; another one if none has it.
    #[cold]
    #[inline(never)]
    pub fn window_at(&self, hint: &mut RegionHint, address: u64) -> Window<'_> {
        let _ = self.search(hint, address);
        self.window(*hint)
    }

    /// Of the region that has `address`, what `part` finds there.
    #[inline(always)]
    fn part<'m, T>(&'m self, hint: &mut RegionHint, address: u64, part: impl Fn(Window<'m>) -> Option<T>) -> Option<T> {
        if let Some(region) = self.regions.get(hint.0 as usize)
            && let Some(found) = part(region.window(self))
        {
            return Some(found);
        }
        part(self.search(hint, address)?)
    }

    /// The guest's bytes from `address` on, to read: `len` of them, or fewer if the region ends before. `None` if not
    /// even the first one is there.
    #[inline]
    pub fn readable<'m>(&'m self, hint: &mut RegionHint, address: u64, len: u32) -> Option<Segment<'m>> {
        self.part(hint, address, |window| window.readable(address, len))
    }

    /// The guest's bytes from `address` on, to write: `len` of them, or fewer if the region ends before. `None` if not
    /// even the first one is there.
    #[inline]
    pub fn writable<'m>(&'m self, hint: &mut RegionHint, address: u64, len: u32) -> Option<SegmentMut<'m>> {
        self.part(hint, address, |window| window.writable(address, len))
    }

    /// Asks the processor to bring the first two cache lines at `address` near: header and addresses of a frame.
    #[inline]
    pub fn prefetch(&self, hint: &mut RegionHint, address: u64) {
        if let Some((host, _)) = self.part(hint, address, |window| window.translate(address)) {
            switch::segment::prefetch(host);
            switch::segment::prefetch(host.wrapping_add(64));
        }
    }

    /// The same for a buffer that is about to be written.
    #[inline]
    pub fn prefetch_to_write(&self, hint: &mut RegionHint, address: u64) {
        if let Some((host, _)) = self.part(hint, address, |window| window.translate(address)) {
            switch::segment::prefetch_to_write(host);
            switch::segment::prefetch_to_write(host.wrapping_add(64));
        }
    }

    /// Reads a descriptor that lies at a guest address, once; `None` if it is not in one region as a whole.
    #[inline]
    pub fn descriptor(&self, hint: &mut RegionHint, address: u64) -> Option<Descriptor> {
        let segment = self.readable(hint, address, 16)?;
        let mut bytes = [0u8; 16];
        (segment.read(&mut bytes) == bytes.len()).then(|| {
            let bits = u128::from_ne_bytes(bytes);
            let (first, second) = (bits as u64, (bits >> 64) as u64);
            if cfg!(target_endian = "little") {
                Descriptor::from_words(first, second)
            } else {
                Descriptor::from_words(second, first)
            }
        })
    }

    /// The guest address of an address of the frontend's own space.
    pub(crate) fn guest_address(&self, user_address: u64) -> Option<u64> {
        let is_there = |region: &&Region| user_address.wrapping_sub(region.user) < region.len;
        self.regions.iter().find(is_there).map(|region| region.guest + (user_address - region.user))
    }

    /// What tells the memory at an address of the frontend's own space from any other: its file, and where in the file.
    pub(crate) fn whereabouts(&self, user_address: u64) -> Option<[u64; 3]> {
        let is_there = |info: &RegionInfo| user_address.wrapping_sub(info.user_address) < info.size;
        let at = self.table.iter().position(is_there)?;
        let ((device, inode), info) = (self.mappings[at].file, &self.table[at]);
        Some([device, inode, info.file_offset + (user_address - info.user_address)])
    }

    /// The host address of `len` bytes at an address of the frontend's own space, all in one region and aligned to
    /// `align`. How rings are found.
    pub(crate) fn ring_part(&self, user_address: u64, len: u64, align: u64) -> Option<*mut u8> {
        let region = self.regions.iter().find(|region| user_address.wrapping_sub(region.user) < region.len)?;
        let offset = user_address - region.user;
        if len > region.len - offset {
            return None;
        }
        // SAFETY: `offset` is below the region's length, so the pointer stays inside its mapping.
        // Why unsafe: pointer arithmetic on memory that no slice may cover.
        let host = unsafe { region.host.add(offset as usize) };
        (host as u64).is_multiple_of(align).then_some(host)
    }
}

/// What can be told from the table alone.
fn check(table: &[RegionInfo], fds: usize) -> Result<(), MemoryError> {
    if table.len() > REGIONS_MAX {
        return Err(MemoryError::TooManyRegions { given: table.len() });
    }
    if fds != table.len() {
        return Err(MemoryError::FdCount { regions: table.len(), fds });
    }
    for (region, info) in table.iter().enumerate() {
        if info.size == 0 {
            return Err(MemoryError::Empty { region });
        }
        let starts = [info.guest_address, info.user_address, info.file_offset];
        if starts.iter().any(|start| start.checked_add(info.size - 1).is_none_or(|last| last == u64::MAX)) {
            return Err(MemoryError::Wraps { region });
        }
        if let Some(other) = table[..region].iter().position(|before| overlap(before, info)) {
            return Err(MemoryError::Overlap { first: other, second: region });
        }
    }
    let bytes: u128 = table.iter().map(|info| u128::from(info.size)).sum();
    if bytes > u128::from(MAPPED_BYTES_MAX) { Err(MemoryError::TooLarge { bytes }) } else { Ok(()) }
}

/// Whether two regions share guest addresses or user addresses; ends beyond 64 bits share nothing more.
fn overlap(one: &RegionInfo, other: &RegionInfo) -> bool {
    let share = |a: u64, b: u64| a < b.saturating_add(other.size) && b < a.saturating_add(one.size);
    share(one.guest_address, other.guest_address) || share(one.user_address, other.user_address)
}

/// Checks the file of one region and maps it.
fn map_region(
    region: usize,
    info: &RegionInfo,
    file: BorrowedFd<'_>,
    dead: &Arc<AtomicBool>,
) -> Result<(Arc<Mapping>, Region), MemoryError> {
    let mapped = map_file(file, info.file_offset, info.size, dead);
    let (mapping, skip) = mapped.map_err(|source| MemoryError::File { region, source })?;
    // SAFETY: the mapping reaches from `skip` bytes before the region's first byte to its last.
    // Why unsafe: pointer arithmetic on memory that no slice may cover.
    let host = unsafe { mapping.base().add(skip) };
    let mapped = Region { guest: info.guest_address, len: info.size, host, user: info.user_address };
    Ok((Arc::new(mapping), mapped))
}

/// Checks a file that a peer passed and maps `size` bytes of it from `offset` on, whose sum the caller has checked; answers
/// also how far into the mapping they begin.
fn map_file(
    file: BorrowedFd<'_>,
    offset: u64,
    size: u64,
    dead: &Arc<AtomicBool>,
) -> Result<(Mapping, usize), FileError> {
    let io = |what| move |source: rustix::io::Errno| FileError::Io { what, source: source.into() };
    // Asked first, for the kernel answers it by itself, and only for files of memory. The other two questions go to the
    // file system, and one that the peer serves (FUSE) need never answer: that would hold this thread for ever.
    if fcntl_get_seals(file).is_err() {
        return Err(FileError::WrongKind);
    }
    let kind = fstatfs(file).map_err(io("fstatfs"))?;
    let status = fstat(file).map_err(io("fstat"))?;
    let is_memory = matches!(kind.f_type as u64 & 0xffff_ffff, TMPFS_MAGIC | HUGETLBFS_MAGIC);
    if !is_memory || FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(FileError::WrongKind);
    }
    let (wanted, given) = (offset + size, status.st_size as u64);
    if wanted > given {
        return Err(FileError::TooShort { wanted, given });
    }
    // A file of huge pages is mapped in whole huge pages (mmap(2), "Huge page mappings"); its block size tells theirs.
    let page = (kind.f_bsize as u64).max(PAGE_SIZE);
    let start = offset - offset % page;
    let skip = offset - start;
    let len = (skip + size).next_multiple_of(page);
    let share = Share::take(len).ok_or(FileError::NoRoom { wanted: size })?;
    let mut mapping =
        Mapping::new(file, start, len as usize, dead).map_err(|source| FileError::Io { what: "mmap", source })?;
    mapping.share = Some(share);
    Ok((mapping, skip as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    fn memfd(len: u64) -> OwnedFd {
        let file = memfd_create("vhost-test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, len).unwrap();
        file
    }

    fn region(guest_address: u64, size: u64, user_address: u64) -> RegionInfo {
        RegionInfo { guest_address, size, user_address, file_offset: 0 }
    }

    fn map(table: &[RegionInfo], len: u64) -> Result<GuestMemory, MemoryError> {
        let files: Vec<OwnedFd> = table.iter().map(|_| memfd(len)).collect();
        GuestMemory::map(table, &files)
    }

    #[test]
    fn an_address_is_translated_to_its_region_and_no_byte_beyond() {
        let memory = map(&[region(0, 0x2000, 0x10_0000), region(0x2000, 0x1000, 0x20_0000)], 0x2000).unwrap();
        let mut hint = RegionHint::default();
        assert_eq!(memory.writable(&mut hint, 0x1ffe, 4).unwrap().write(&[1, 2, 3, 4]), 2);
        assert_eq!(memory.writable(&mut hint, 0x2000, 4).unwrap().write(&[3, 4, 5, 6]), 4);
        let mut out = [0; 4];
        assert_eq!(memory.readable(&mut hint, 0x1ffe, 4).unwrap().read(&mut out), 2);
        assert_eq!(memory.readable(&mut hint, 0x2000, 2).unwrap().read(&mut out[2..]), 2);
        assert_eq!(out, [1, 2, 3, 4]);
        for address in [0x3000, u64::MAX, 1 << 40] {
            assert!(memory.readable(&mut hint, address, 1).is_none(), "{address:#x}");
        }
    }

    #[test]
    fn a_part_of_a_ring_must_lie_in_one_region_and_be_aligned() {
        let memory = map(&[region(0, 0x1000, 0x10_0000), region(0x1000, 0x1000, 0x10_1000)], 0x1000).unwrap();
        assert!(memory.ring_part(0x10_0000, 0x1000, 16).is_some());
        assert!(memory.ring_part(0x10_0001, 16, 16).is_none(), "odd address");
        assert!(memory.ring_part(0x10_0800, 0x1000, 16).is_none(), "across two regions");
        assert!(memory.ring_part(0, 16, 16).is_none(), "a guest address is no user address");
        assert!(memory.ring_part(0x10_1ff0, u64::MAX, 2).is_none());
    }

    #[test]
    fn tables_that_cannot_be_are_refused() {
        let is_wrong = |table: &[RegionInfo]| map(table, 0x1000).err().unwrap_or_else(|| panic!("{table:?} was taken"));
        assert!(matches!(is_wrong(&[region(0, 0, 0)]), MemoryError::Empty { region: 0 }));
        assert!(matches!(is_wrong(&[region(u64::MAX - 10, 0x1000, 0)]), MemoryError::Wraps { .. }));
        assert!(matches!(is_wrong(&[region(0, 0x1000, u64::MAX - 10)]), MemoryError::Wraps { .. }));
        let guest = [region(0, 0x1000, 0), region(0xfff, 0x1000, 0x8000)];
        assert!(matches!(is_wrong(&guest), MemoryError::Overlap { first: 0, second: 1 }));
        let user = [region(0, 0x1000, 0), region(0x9000, 0x1000, 0xfff)];
        assert!(matches!(is_wrong(&user), MemoryError::Overlap { .. }));
        let twice = [region(0, 0x1000, 0), region(0, 0x1000, 0)];
        assert!(matches!(is_wrong(&twice), MemoryError::Overlap { .. }));
        let short = is_wrong(&[region(0, 0x1001, 0)]);
        assert!(matches!(short, MemoryError::File { region: 0, source: FileError::TooShort { wanted: 0x1001, .. } }));
        let huge = [region(0, MAPPED_BYTES_MAX + 1, 0)];
        assert!(matches!(is_wrong(&huge), MemoryError::TooLarge { .. }));
        let many: Vec<_> = (0..=REGIONS_MAX as u64).map(|n| region(n << 12, 0x1000, n << 12)).collect();
        assert!(matches!(is_wrong(&many), MemoryError::TooManyRegions { .. }));
        let fewer = GuestMemory::map(&[region(0, 0x1000, 0)], &[]);
        assert!(matches!(fewer, Err(MemoryError::FdCount { regions: 1, fds: 0 })));
    }

    #[test]
    fn a_region_that_comes_or_goes_leaves_the_others_where_they_are() {
        let one = map(&[region(0, 0x1000, 0x10_0000)], 0x1000).unwrap();
        let mut hint = RegionHint::default();
        one.writable(&mut hint, 0x10, 4).unwrap().write(&[1, 2, 3, 4]);
        let more = region(0x1000, 0x1000, 0x20_0000);
        let two = one.with(&more, &memfd(0x1000)).unwrap();
        let address = |memory: &GuestMemory| memory.readable(&mut RegionHint::default(), 0x10, 4).unwrap().as_ptr();
        assert_eq!(address(&one), address(&two));
        assert!(two.writable(&mut hint, 0x1010, 4).is_some());
        assert_eq!((one.last_address(), two.last_address()), (Some(0xfff), Some(0x1fff)));
        assert!(matches!(two.with(&more, &memfd(0x1000)), Err(MemoryError::Overlap { first: 1, second: 2 })));
        let other = RegionInfo { user_address: 0x30_0000, ..more };
        assert!(matches!(two.without(&other), Err(MemoryError::NoSuchRegion { guest_address: 0x1000, .. })));
        // The offset in the file is not what a region is known by.
        let back = two.without(&RegionInfo { file_offset: 77, ..more }).unwrap();
        drop((one, two));
        assert!(back.readable(&mut hint, 0x1010, 4).is_none());
        let mut out = [0; 4];
        back.readable(&mut hint, 0x10, 4).unwrap().read(&mut out);
        assert_eq!(out, [1, 2, 3, 4]);
        assert!(back.without(&region(0, 0x1000, 0x10_0000)).unwrap().last_address().is_none());
    }

    #[test]
    fn files_that_could_block_or_are_no_files_are_refused() {
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        let own = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        for file in [OwnedFd::from(null), pipe, OwnedFd::from(own)] {
            let refused = GuestMemory::map(&[region(0, 16, 0)], &[file]);
            assert!(matches!(refused, Err(MemoryError::File { region: 0, source: FileError::WrongKind })));
        }
    }

    /// A directory of a file system whose server answers nothing, and the server's end; `None` where we may not mount one.
    fn mute_fuse() -> Option<(OwnedFd, OwnedFd)> {
        use rustix::fs::{Mode, OFlags, open};
        use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
        use rustix::mount::{fsconfig_create, fsconfig_set_string, fsmount, fsopen};
        use std::os::fd::AsRawFd;
        let server = open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC).ok()?;
        let number = server.as_raw_fd().to_string();
        for (key, value) in [("fd", number.as_str()), ("rootmode", "40000"), ("user_id", "0"), ("group_id", "0")] {
            fsconfig_set_string(&context, key, value).unwrap();
        }
        fsconfig_create(&context).unwrap();
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
        Some((mount, server))
    }

    #[test]
    fn a_file_of_a_file_system_that_never_answers_is_refused_at_once() {
        let Some((file, server)) = mute_fuse() else { return };
        let (result, end) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let refused = GuestMemory::map(&[region(0, 16, 0)], &[file]);
            let is_wrong = matches!(refused, Err(MemoryError::File { region: 0, source: FileError::WrongKind }));
            let _ = result.send(is_wrong);
        });
        let is_wrong = end.recv_timeout(std::time::Duration::from_secs(20));
        // Frees a thread that hangs.
        drop(server);
        thread.join().unwrap();
        assert_eq!(is_wrong, Ok(true));
    }

    #[test]
    fn a_region_may_begin_in_the_middle_of_a_page_of_its_file() {
        let file = memfd(0x3000);
        rustix::io::pwrite(&file, &[7, 8, 9], 0x1234).unwrap();
        let info = RegionInfo { guest_address: 0x50, size: 0x100, user_address: 0x60, file_offset: 0x1234 };
        let memory = GuestMemory::map(&[info], &[file]).unwrap();
        let mut out = [0; 3];
        memory.readable(&mut RegionHint::default(), 0x50, 3).unwrap().read(&mut out);
        assert_eq!(out, [7, 8, 9]);
    }

    #[test]
    fn a_file_cut_short_under_us_reads_zeros_and_marks_its_memory_dead() {
        let file = memfd(0x4000);
        let keep = file.try_clone().unwrap();
        let memory = GuestMemory::map(&[region(0, 0x4000, 0)], &[file]).unwrap();
        let mut hint = RegionHint::default();
        assert_eq!(memory.writable(&mut hint, 0x3000, 4).unwrap().write(&[9; 4]), 4);
        assert!(!memory.is_dead());
        ftruncate(&keep, 0x1000).unwrap();
        let mut out = [1; 4];
        memory.readable(&mut hint, 0x3000, 4).unwrap().read(&mut out);
        assert_eq!(out, [0; 4]);
        assert!(memory.is_dead());
    }
}
