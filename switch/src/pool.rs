//! Large tables in huge pages.
//!
//! A table of some megabytes that is read at random misses the TLB on nearly every access when it lies in pages of 4 KiB,
//! and under a hypervisor such a miss costs more than the cache miss beside it. [`HugeSlice`] maps its memory aligned
//! to 2 MiB and asks the kernel for transparent huge pages; where it has none, small ones serve as well, only slower. Its
//! length is fixed; it is made and dropped on control threads and read by all.

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::ffi::c_void;
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
}

// SAFETY: it owns its items as a box does.
// Why unsafe: raw pointers are neither by default.
unsafe impl<T: Send> Send for HugeSlice<T> {}
// SAFETY: as above.
// Why unsafe: as above.
unsafe impl<T: Sync> Sync for HugeSlice<T> {}

impl<T> HugeSlice<T> {
    /// `len` items, each made by `make`.
    ///
    /// # Panics
    /// If the kernel gives no memory, as any allocation would end the process.
    pub fn new(len: usize, mut make: impl FnMut() -> T) -> HugeSlice<T> {
        assert!(align_of::<T>() <= HUGE_PAGE, "no type is aligned to more");
        let bytes = size_of::<T>().checked_mul(len).expect("a table fits the address space");
        // Room to begin at a huge page's boundary; what is not touched costs nothing.
        let map_len = bytes.checked_add(HUGE_PAGE).expect("a table fits the address space");
        // SAFETY: a fresh anonymous mapping at a place the kernel chooses overlaps nothing.
        // Why unsafe: mapping memory has no safe spelling.
        let map = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                map_len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        };
        let map = map.ok().and_then(NonNull::new).expect("the kernel has memory for a table");
        let offset = map.as_ptr().align_offset(HUGE_PAGE);
        // SAFETY: `offset` is below HUGE_PAGE, so `bytes` from there lie inside the mapping. Advice changes no content,
        // and a kernel without huge pages refuses it, which is as good.
        // Why unsafe: pointer arithmetic and advice on raw memory.
        let items = unsafe {
            let start = map.byte_add(offset);
            let _ = madvise(start.as_ptr(), bytes, Advice::LinuxHugepage);
            start.cast::<T>()
        };
        for index in 0..len {
            // SAFETY: `index` is below `len`, and `len` items fit; the place is aligned and holds no value yet.
            // Why unsafe: the memory is not an array until this loop has run.
            unsafe { items.add(index).write(make()) };
        }
        HugeSlice { items, len, map, map_len }
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

    #[test]
    fn an_empty_slice_is_fine() {
        assert!(HugeSlice::<u64>::new(0, || 0).is_empty());
    }
}
