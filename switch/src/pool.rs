//! Large tables in huge pages, and memory for frames that the kernel fills.
//!
//! A table of some megabytes that is read at random misses the TLB on nearly every access when it lies in pages of 4 KiB,
//! and under a hypervisor such a miss costs more than the cache miss beside it. [`HugeSlice`] takes pages of 2 MiB that
//! were set aside if enough of them are free; else ordinary memory, aligned so that the kernel can make transparent huge
//! pages of it; where it does not, small ones serve as well, only slower. Its length is fixed; it is made and dropped on
//! control threads and read by all.
//!
//! An [`Area`] is plain bytes that somebody else writes while we look, the kernel mostly: no reference ever covers it, it hands
//! out [`Segment`]s.

use crate::segment::{Segment, SegmentMut};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::NonNull;

/// Bytes of a huge page on the machines we know.
const HUGE_PAGE: usize = 2 << 20;

/// A fixed number of `T`, in huge pages if the kernel has them. Derefs to a slice.
pub struct HugeSlice<T> {
    items: NonNull<T>,
    len: usize,
    map: NonNull<c_void>,
    map_len: usize,
    pages: Pages,
}

// SAFETY: it owns its items as a box does.
// Why unsafe: raw pointers are neither by default.
unsafe impl<T: Send> Send for HugeSlice<T> {}
// SAFETY: as above.
// Why unsafe: as above.
unsafe impl<T: Sync> Sync for HugeSlice<T> {}

/// What pages memory lies in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pages {
    /// Of 2 MiB, from those the operator set aside (`vm.nr_hugepages`).
    Huge,
    /// Ordinary ones, of which the kernel makes huge ones as it finds room (`transparent_hugepage`).
    Transparent,
    /// Ordinary ones.
    Small,
}

impl Pages {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Pages::Huge => "huge pages that were set aside",
            Pages::Transparent => "ordinary pages, huge ones as the kernel makes them",
            Pages::Small => "ordinary pages",
        }
    }
}

/// Memory of our own, mapped and writable, and what pages it has.
struct Mapped {
    map: NonNull<c_void>,
    map_len: usize,
    /// Aligned to [`HUGE_PAGE`], within the mapping.
    start: NonNull<c_void>,
    pages: Pages,
}

/// Maps `bytes` in pages that were set aside; `None` if there are too few of them free, or of another size only.
fn map_huge(bytes: usize) -> Option<Mapped> {
    let map_len = bytes.checked_next_multiple_of(HUGE_PAGE).filter(|_| bytes >= HUGE_PAGE)?;
    let flags = MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::HUGE_2MB;
    // Without NORESERVE: pages that are not there are refused here, and not by SIGBUS later.
    // SAFETY: a fresh anonymous mapping at a place the kernel chooses overlaps nothing.
    // Why unsafe: mapping memory has no safe spelling.
    let map = unsafe { mmap_anonymous(std::ptr::null_mut(), map_len, ProtFlags::READ | ProtFlags::WRITE, flags) };
    let map = NonNull::new(map.ok()?)?;
    // A limit of our control group shows only when pages are touched, and then by SIGBUS; asked like this it is an error.
    // SAFETY: the range is the mapping just made; its content stays what it is, zeros.
    // Why unsafe: advice on raw memory.
    if unsafe { madvise(map.as_ptr(), map_len, Advice::LinuxPopulateWrite) }.is_err() {
        // SAFETY: the mapping just made, of which nobody knows yet.
        // Why unsafe: unmapping has no safe spelling.
        let _ = unsafe { munmap(map.as_ptr(), map_len) };
        return None;
    }
    Some(Mapped { map, map_len, start: map, pages: Pages::Huge })
}

/// Maps `bytes` in ordinary pages, and asks for transparent huge ones.
fn map_small(bytes: usize) -> io::Result<Mapped> {
    // Room to begin at a huge page's boundary; what is not touched costs nothing.
    let map_len = bytes.checked_add(HUGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a fresh anonymous mapping at a place the kernel chooses overlaps nothing.
    // Why unsafe: mapping memory has no safe spelling.
    let map = unsafe { mmap_anonymous(std::ptr::null_mut(), map_len, ProtFlags::READ | ProtFlags::WRITE, flags)? };
    let map = NonNull::new(map).ok_or(io::ErrorKind::OutOfMemory)?;
    let offset = map.as_ptr().align_offset(HUGE_PAGE);
    // SAFETY: `offset` is below HUGE_PAGE, so `bytes` from there lie inside the mapping. Advice changes no content.
    // Why unsafe: pointer arithmetic and advice on raw memory.
    let (start, advised) = unsafe {
        let start = map.byte_add(offset);
        (start, madvise(start.as_ptr(), bytes, Advice::LinuxHugepage))
    };
    let pages = if advised.is_ok() && is_transparent() { Pages::Transparent } else { Pages::Small };
    Ok(Mapped { map, map_len, start, pages })
}

/// Whether the kernel makes huge pages of ordinary ones where it is asked to. It takes the advice in any case.
fn is_transparent() -> bool {
    let policy = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    policy.is_ok_and(|policy| !policy.contains("[never]"))
}

/// The items of a [`HugeSlice`], indexed by hashes: no index is out of bounds, and none is compared with the length.
pub struct Hashed<'s, T> {
    items: *const T,
    mask: usize,
    held: PhantomData<&'s [T]>,
}

impl<T> Clone for Hashed<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Hashed<'_, T> {}

impl<'s, T> Hashed<'s, T> {
    /// The item for a hash.
    #[inline(always)]
    pub fn get(&self, hash: u64) -> &'s T {
        // SAFETY: what is masked by `len - 1` is at most that, and at least `len` items were made and live for `'s`.
        // Why unsafe: the compiler does not see it and would compare on each of several looks a packet.
        unsafe { &*self.items.add(hash as usize & self.mask) }
    }
}

impl<T> HugeSlice<T> {
    /// `len` items, each made by `make`.
    ///
    /// # Panics
    /// If the kernel gives no memory, as any allocation would end the process.
    pub fn new(len: usize, mut make: impl FnMut() -> T) -> HugeSlice<T> {
        assert!(align_of::<T>() <= HUGE_PAGE, "no type is aligned to more");
        let bytes = size_of::<T>().checked_mul(len).expect("a table fits the address space");
        let Mapped { map, map_len, start, pages } =
            map_huge(bytes).unwrap_or_else(|| map_small(bytes).expect("the kernel has memory for a table"));
        let items = start.cast::<T>();
        for index in 0..len {
            // SAFETY: `index` is below `len`, and `len` items fit; the place is aligned and holds no value yet.
            // Why unsafe: the memory is not an array until this loop has run.
            unsafe { items.add(index).write(make()) };
        }
        HugeSlice { items, len, map, map_len, pages }
    }

    /// A view of the first `len` items that is indexed by hashes: by as many of their low bits as `len` has, if it is a power
    /// of two.
    #[inline]
    pub fn hashed(&self, len: usize) -> Hashed<'_, T> {
        assert!(0 < len && len <= self.len, "a hash table has a place, and no more than there are");
        Hashed { items: self.items.as_ptr(), mask: len - 1, held: PhantomData }
    }

    /// What pages it lies in.
    pub fn pages(&self) -> Pages {
        self.pages
    }
}

impl<T> Deref for HugeSlice<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `len` items were written by `new` and live as long as `self`.
        // Why unsafe: the slice is made from the parts of our own mapping.
        unsafe { std::slice::from_raw_parts(self.items.as_ptr(), self.len) }
    }
}

impl<T> Drop for HugeSlice<T> {
    fn drop(&mut self) {
        // SAFETY: the items are ours alone now and are not used after this; the mapping is the one `new` made.
        // Why unsafe: dropping in place and unmapping.
        unsafe {
            std::ptr::slice_from_raw_parts_mut(self.items.as_ptr(), self.len).drop_in_place();
            // It cannot fail on a mapping of our own; if it did, the memory would stay.
            let _ = munmap(self.map.as_ptr(), self.map_len);
        }
    }
}

/// A fixed number of bytes that no Rust reference covers: the kernel may write them at any time. Zero at first.
pub struct Area {
    start: NonNull<u8>,
    len: usize,
    map: NonNull<c_void>,
    map_len: usize,
    pages: Pages,
}

// SAFETY: it owns its mapping, and what it hands out is made for memory that others write meanwhile.
// Why unsafe: raw pointers are neither by default.
unsafe impl Send for Area {}
// SAFETY: as above.
// Why unsafe: as above.
unsafe impl Sync for Area {}

impl Area {
    /// `len` bytes in ordinary pages, each of which comes with its first use.
    ///
    /// # Errors
    /// The system's, if it has no memory.
    pub fn new(len: usize) -> io::Result<Area> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh anonymous mapping at a place the kernel chooses overlaps nothing.
        // Why unsafe: mapping memory has no safe spelling.
        let map = unsafe { mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags)? };
        let map = NonNull::new(map).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Area { start: map.cast(), len, map, map_len: len, pages: Pages::Small })
    }

    /// `len` bytes in huge pages if the kernel has them.
    ///
    /// # Errors
    /// The system's, if it has no memory.
    pub fn huge(len: usize) -> io::Result<Area> {
        let Mapped { map, map_len, start, pages } = match map_huge(len) {
            Some(mapped) => mapped,
            None => map_small(len)?,
        };
        Ok(Area { start: start.cast(), len, map, map_len, pages })
    }

    /// Its first byte: for system calls that are told where to write.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What pages it lies in.
    pub fn pages(&self) -> Pages {
        self.pages
    }

    /// The `len` bytes from `at` on, to read.
    ///
    /// # Panics
    /// If they are not all inside.
    #[inline]
    pub fn segment(&self, at: usize, len: usize) -> Segment<'_> {
        self.assert_inside(at, len);
        // SAFETY: the range is inside the mapping, which lives as long as `self` is borrowed, and no reference covers it.
        // Why unsafe: a segment's promise cannot be checked by the compiler.
        unsafe { Segment::new(self.start.as_ptr().add(at), len as u32) }
    }

    /// The `len` bytes from `at` on, to write.
    ///
    /// # Panics
    /// If they are not all inside.
    #[inline]
    pub fn segment_mut(&self, at: usize, len: usize) -> SegmentMut<'_> {
        self.assert_inside(at, len);
        // SAFETY: the range is inside the mapping, which lives as long as `self` is borrowed, is writable, and no
        // reference covers it. Whoever reads it meanwhile does so through a segment, which allows that.
        // Why unsafe: a segment's promise cannot be checked by the compiler.
        unsafe { SegmentMut::new(self.start.as_ptr().add(at), len as u32) }
    }

    #[inline]
    fn assert_inside(&self, at: usize, len: usize) {
        let is_inside = at.checked_add(len).is_some_and(|end| end <= self.len) && len <= u32::MAX as usize;
        assert!(is_inside, "a segment reaches beyond its area");
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the mapping is the one that was made with it, and no segment borrows it any more. It cannot fail on a
        // mapping of our own; if it did, the memory would stay.
        // Why unsafe: unmapping has no safe spelling.
        let _ = unsafe { munmap(self.map.as_ptr(), self.map_len) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_huge_slice_holds_its_items_aligned_and_drops_each_once() {
        struct Counted<'a>(u64, &'a Cell<usize>);
        impl Drop for Counted<'_> {
            fn drop(&mut self) {
                self.1.set(self.1.get() + 1);
            }
        }
        let dropped = Cell::new(0);
        let mut next = 0;
        let slice = HugeSlice::new(300_000, || {
            next += 1;
            Counted(next, &dropped)
        });
        assert_eq!(slice.as_ptr() as usize % HUGE_PAGE, 0);
        assert!(slice.iter().zip(1..).all(|(item, number)| item.0 == number));
        drop(slice);
        assert_eq!(dropped.get(), 300_000);
    }

    /// Bytes of the pages that the memory at `address` has, by the kernel's word in `smaps`.
    fn page_size(smaps: &str, address: usize) -> Option<usize> {
        let mut is_ours = false;
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let first = words.next()?;
            if let Some((start, end)) = first.split_once('-') {
                let number = |text| usize::from_str_radix(text, 16).ok();
                is_ours = (number(start)?..number(end)?).contains(&address);
            } else if is_ours && first == "KernelPageSize:" {
                return Some(words.next()?.parse::<usize>().ok()? * 1024);
            }
        }
        None
    }

    #[test]
    fn pages_set_aside_are_taken_where_there_are_enough_and_told() {
        let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
        let free: usize = free.map_or(0, |text| text.trim().parse().unwrap());
        let slice = HugeSlice::new(3 * HUGE_PAGE / 8 - 1, || 7u64);
        assert!(slice.iter().all(|&item| item == 7));
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let is_huge = page_size(&smaps, slice.as_ptr() as usize).unwrap() == HUGE_PAGE;
        assert_eq!(slice.pages() == Pages::Huge, is_huge);
        // Other programs may take them too; so many at once they do not.
        assert!(is_huge || free < 100, "{free} were free and none was taken");
        // More than any machine has aside: refused when it is made, not when it is touched.
        assert!(map_huge(1 << 50).is_none());
        assert!(map_huge(HUGE_PAGE - 1).is_none(), "what is small wastes no huge page");
    }

    #[test]
    fn ordinary_pages_serve_as_well() {
        let Mapped { map, map_len, start, pages } = map_small(HUGE_PAGE).unwrap();
        assert!(pages != Pages::Huge);
        assert_eq!(start.as_ptr() as usize % HUGE_PAGE, 0);
        // SAFETY: the mapping just made; one byte of it is written and read before it goes.
        // Why unsafe: raw memory.
        unsafe {
            start.cast::<u8>().write(1);
            assert_eq!(start.cast::<u8>().read(), 1);
            munmap(map.as_ptr(), map_len).unwrap();
        }
    }

    #[test]
    fn an_area_is_zero_at_first_and_holds_what_is_written() {
        for area in [Area::new(HUGE_PAGE).unwrap(), Area::huge(HUGE_PAGE).unwrap()] {
            let mut bytes = [7; 4];
            assert_eq!(area.segment(HUGE_PAGE - 4, 4).read(&mut bytes), 4);
            assert_eq!(bytes, [0; 4]);
            assert_eq!(area.segment_mut(HUGE_PAGE - 4, 4).write(b"last"), 4);
            area.segment(HUGE_PAGE - 4, 4).read(&mut bytes);
            assert_eq!(&bytes, b"last");
        }
    }

    #[test]
    fn a_segment_beyond_its_area_is_refused() {
        let area = Area::new(4096).unwrap();
        for (at, len) in [(4096, 1), (4095, 2), (usize::MAX, 1), (0, 4097)] {
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| area.segment(at, len))).is_err());
        }
        assert_eq!(area.segment(4096, 0).len(), 0);
    }

    #[test]
    fn an_empty_slice_is_fine() {
        assert!(HugeSlice::<u64>::new(0, || 0).is_empty());
    }
}
