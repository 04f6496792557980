//! A raw range of memory that somebody else may write at any time, and the routines that copy from and to it.
//!
//! Guest memory, a TAP's receive buffer, later a UMEM frame: bytes that are shared with another process or the kernel.
//! Rust references over them would be unsound, so there are none. A [`Segment`] can be read, a [`SegmentMut`] written;
//! both carry the lifetime `'r` of the round in which the memory is held mapped, so that safe code cannot keep one
//! beyond it. Copies go through raw pointers, by vectors, volatile accesses or assembly, each byte read once: nothing is decided by
//! a byte that is then read again, so it does not matter whether the other side stands still. Bounds are checked here; a caller cannot read outside a segment.

use std::marker::PhantomData;

/// A readable range of shared memory, held for `'r`. Its bytes may change between two reads.
#[derive(Clone, Copy)]
pub struct Segment<'r> {
    base: *const u8,
    len: u32,
    held: PhantomData<&'r ()>,
}

// SAFETY: a segment is an address and a length; reading shared memory has no thread affinity.
// Why unsafe: raw pointers are not `Send` by default, and a batch moves to its worker's thread once.
unsafe impl Send for Segment<'_> {}

/// A writable range of shared memory, held for `'r`.
pub struct SegmentMut<'r> {
    base: *mut u8,
    len: u32,
    held: PhantomData<&'r ()>,
}

impl Default for Segment<'_> {
    /// No bytes at all.
    #[inline]
    fn default() -> Self {
        Segment { base: std::ptr::null(), len: 0, held: PhantomData }
    }
}

impl<'r> Segment<'r> {
    /// Describes `len` bytes at `base`.
    ///
    /// # Safety
    /// The whole range must stay mapped and readable for `'r`. Others may write it meanwhile.
    #[inline]
    pub unsafe fn new(base: *const u8, len: u32) -> Segment<'r> {
        Segment { base, len, held: PhantomData }
    }

    /// Bytes in the segment.
    #[inline]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether it holds no byte.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of the first byte, for a vectored system call. The kernel answers EFAULT where memory has gone.
    #[inline]
    pub fn as_ptr(&self) -> *const u8 {
        self.base
    }

    /// The bytes from `offset` on; empty when `offset` is at or beyond the end.
    #[inline]
    #[must_use]
    pub fn skip(&self, offset: u32) -> Segment<'r> {
        let offset = offset.min(self.len);
        // SAFETY: `offset` is at most `len`, so the pointer stays inside the range or one past its end.
        // Why unsafe: pointer arithmetic on memory that no slice may cover.
        Segment { base: unsafe { self.base.add(offset as usize) }, len: self.len - offset, held: PhantomData }
    }

    /// The first `len` bytes, or all of them if there are fewer.
    #[inline]
    #[must_use]
    pub fn take(&self, len: u32) -> Segment<'r> {
        Segment { base: self.base, len: self.len.min(len), held: PhantomData }
    }

    /// Copies the first `out.len()` bytes out, or as many as there are; answers how many.
    #[inline]
    pub fn read(&self, out: &mut [u8]) -> usize {
        let count = out.len().min(self.len as usize);
        // SAFETY: `count` is at most both lengths; the source is mapped for `'r` (promise of `new`), the destination
        // is a private slice, so they do not overlap.
        // Why unsafe: the source is shared with another process; no safe type describes it.
        unsafe { copy(self.base, out.as_mut_ptr(), count) };
        count
    }

    /// Copies the first `N` bytes out, or as many as there are; answers how many. Bytes of `out` beyond keep what they were.
    #[inline]
    pub fn read_front<const N: usize>(&self, out: &mut [u8; N]) -> usize {
        if self.len as usize >= N {
            // A copy of a length the compiler knows is a handful of moves without a branch.
            self.read(out);
            return N;
        }
        self.read(&mut out[..self.len as usize])
    }

    /// The first sixteen bytes as two little-endian words, each read once; `None` if there are fewer.
    #[inline]
    pub fn words(&self) -> Option<(u64, u64)> {
        if self.len < 16 {
            return None;
        }
        let (low, high): (u64, u64);
        // SAFETY: 16 bytes are mapped for `'r` (promise of `new`).
        // Why unsafe: the source is shared with another process; no safe type describes it. Assembly, because it is the one
        // spelling of an unaligned load that happens exactly once.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            core::arch::asm!(
                "mov {low}, [{base}]", "mov {high}, [{base} + 8]",
                base = in(reg) self.base, low = out(reg) low, high = lateout(reg) high,
                options(nostack, preserves_flags, readonly)
            );
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let mut bytes = [0u8; 16];
            self.read(&mut bytes);
            let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|byte| bytes[at + byte]));
            (low, high) = (word(0), word(8));
        }
        Some((u64::from_le(low), u64::from_le(high)))
    }

    /// The sum of its bytes as native 32-bit words, the last one filled up with zeros: the raw matter of an Internet
    /// checksum. Each byte is read once.
    #[inline]
    pub fn sum(&self) -> u64 {
        // SAFETY: the range is mapped for `'r` (promise of `new`).
        // Why unsafe: the source is shared with another process; no safe type describes it.
        unsafe { sum(self.base, self.len as usize) }
    }

    /// Asks the processor to bring all its cache lines to where a copy finds them soon: the second cache, for there may be many.
    #[inline]
    pub fn prefetch(&self) {
        for line in (0..self.len as usize).step_by(64) {
            prefetch_soon(self.base.wrapping_add(line));
        }
    }

    /// Asks the processor to bring the first two cache lines near: the headers of a frame.
    #[inline]
    pub fn prefetch_front(&self) {
        prefetch(self.base);
        prefetch(self.base.wrapping_add(64));
    }
}

impl<'r> From<&'r [u8]> for Segment<'r> {
    fn from(bytes: &'r [u8]) -> Segment<'r> {
        Segment { base: bytes.as_ptr(), len: u32::try_from(bytes.len()).unwrap_or(u32::MAX), held: PhantomData }
    }
}

impl Default for SegmentMut<'_> {
    /// No room at all.
    #[inline]
    fn default() -> Self {
        SegmentMut { base: std::ptr::null_mut(), len: 0, held: PhantomData }
    }
}

impl<'r> SegmentMut<'r> {
    /// Describes `len` writable bytes at `base`.
    ///
    /// # Safety
    /// The whole range must stay mapped and writable for `'r`, and must not lie in memory that Rust references cover.
    #[inline]
    pub unsafe fn new(base: *mut u8, len: u32) -> SegmentMut<'r> {
        SegmentMut { base, len, held: PhantomData }
    }

    /// Bytes in the segment.
    #[inline]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether it holds no byte.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies `bytes` to the front and moves the front behind them; answers how many fitted.
    #[inline]
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.len as usize);
        // SAFETY: `count` is at most both lengths; the destination is mapped for `'r` and covered by no reference
        // (promises of `new`), so it cannot overlap `bytes`.
        // Why unsafe: the destination is shared with another process; no safe type describes it.
        unsafe {
            copy(bytes.as_ptr(), self.base, count);
            self.base = self.base.add(count);
        }
        self.len -= count as u32;
        count
    }

    /// Writes `header` and `front` one behind the other; answers the room behind them. `None`, and nothing is written, if they do
    /// not fit with `rest` more bytes.
    #[inline]
    pub fn write_front<const N: usize>(&self, header: &[u8; N], front: &[u8], rest: usize) -> Option<SegmentMut<'r>> {
        if (self.len as usize) < N + front.len() + rest {
            return None;
        }
        // SAFETY: `N + front.len()` is at most our length; the destination is mapped for `'r` and covered by no reference
        // (promises of `new`), so it cannot overlap either source.
        // Why unsafe: the destination is shared with another process; no safe type describes it.
        let behind = unsafe {
            copy(header.as_ptr(), self.base, N);
            copy(front.as_ptr(), self.base.add(N), front.len());
            self.base.add(N + front.len())
        };
        Some(SegmentMut { base: behind, len: self.len - (N + front.len()) as u32, held: PhantomData })
    }

    /// Asks the processor to bring the first two cache lines near, for writing.
    #[inline]
    pub fn prefetch_front(&self) {
        prefetch_to_write(self.base);
        prefetch_to_write(self.base.wrapping_add(64));
    }

    /// Copies `source` to the front and moves the front behind it; answers how many bytes fitted.
    #[inline]
    pub fn write_from(&mut self, source: &Segment<'_>) -> u32 {
        let count = source.len.min(self.len);
        // SAFETY: `count` is at most both lengths and both ranges are mapped. They may overlap when a guest names one
        // buffer twice; the copy is then byte salad in that guest's own memory, for `copy` assumes nothing.
        // Why unsafe: both sides are shared with other processes; no safe type describes them.
        unsafe {
            copy(source.base, self.base, count as usize);
            self.base = self.base.add(count as usize);
        }
        self.len -= count;
        count
    }
}

/// Asks the processor to bring the cache line of `address` near, for reading. Any address is allowed.
#[inline(always)]
pub fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing architecturally and never faults, whatever the address.
    // Why unsafe: the intrinsic takes a raw pointer; there is no safe spelling.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// The same, to the second cache.
#[inline(always)]
fn prefetch_soon(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing architecturally and never faults, whatever the address.
    // Why unsafe: the intrinsic takes a raw pointer; there is no safe spelling.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T1 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// The same, for writing: the line comes to this core alone, so that the store finds it ready.
#[inline(always)]
pub fn prefetch_to_write(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch changes nothing architecturally and never faults, whatever the address.
    // Why unsafe: assembly, because the intrinsic becomes a prefetch for reading unless the build names the CPU feature;
    // processors without it take the instruction for a hint they ignore.
    unsafe {
        // The number of the address, not a pointer: no byte there is read or written, so nothing kept in registers needs storing.
        core::arch::asm!("prefetchw [{}]", in(reg) address.addr(), options(nomem, nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Below this many bytes 16-byte moves beat `rep movsb`, most of all where the source lies in another core's cache.
#[cfg(target_arch = "x86_64")]
const SMALL_COPY: usize = 2048;

/// Copies `count` bytes between ranges that others may write meanwhile.
///
/// # Safety
/// Both ranges must be mapped for `count` bytes. Overlap is allowed; the outcome is then unspecified bytes.
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn copy(from: *const u8, to: *mut u8, count: usize) {
    use core::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_storeu_si128};
    if count > SMALL_COPY {
        // SAFETY: both ranges are mapped for `count` bytes (promise of the caller); the direction flag is clear by
        // the ABI. The assembly hides the access from the compiler, so a concurrent writer is no data race of ours.
        unsafe {
            core::arch::asm!(
                "rep movsb",
                inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _,
                options(nostack, preserves_flags)
            );
        }
        return;
    }
    // SAFETY: every access below lies in `0..count` of both ranges: steps of 16 bytes from the front, and steps that end
    // exactly at `count`; or, under 16 bytes, two overlapping moves of 8, 4 or 2 and single bytes.
    // Unaligned vector and volatile loads are used, each byte is read once or, in the overlap, twice with either
    // value being good.
    unsafe {
        let step = |at: usize| {
            _mm_storeu_si128(to.add(at).cast::<__m128i>(), _mm_loadu_si128(from.add(at).cast::<__m128i>()));
        };
        if (16..=128).contains(&count) {
            // The lengths of headers and short frames, without a loop.
            if count > 32 {
                if count > 64 {
                    step(32);
                    step(48);
                    step(count - 64);
                    step(count - 48);
                }
                step(16);
                step(count - 32);
            }
            step(0);
            step(count - 16);
        } else if count > 128 {
            let mut at = 0;
            while at + 64 <= count {
                step(at);
                step(at + 16);
                step(at + 32);
                step(at + 48);
                at += 64;
            }
            if at < count {
                step(count - 64);
                step(count - 48);
                step(count - 32);
                step(count - 16);
            }
        } else if count >= 8 {
            let first = from.cast::<u64>().read_unaligned();
            let last = from.add(count - 8).cast::<u64>().read_unaligned();
            to.cast::<u64>().write_unaligned(first);
            to.add(count - 8).cast::<u64>().write_unaligned(last);
        } else if count >= 4 {
            let first = from.cast::<u32>().read_unaligned();
            let last = from.add(count - 4).cast::<u32>().read_unaligned();
            to.cast::<u32>().write_unaligned(first);
            to.add(count - 4).cast::<u32>().write_unaligned(last);
        } else {
            for at in 0..count {
                to.add(at).write_volatile(from.add(at).read_volatile());
            }
        }
    }
}

/// Copies `count` bytes between ranges that others may write meanwhile.
///
/// # Safety
/// Both ranges must be mapped for `count` bytes.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
unsafe fn copy(from: *const u8, to: *mut u8, count: usize) {
    // SAFETY: both ranges are mapped for `count` bytes (promise of the caller). Volatile, so that the compiler does
    // not assume that the other side stands still.
    for at in 0..count {
        unsafe { to.add(at).write_volatile(from.add(at).read_volatile()) };
    }
}

/// Adds up `count` bytes as native 32-bit words, the last one filled up with zeros.
///
/// Cannot overflow: each of the four lanes grows by less than 2^33 with every 32 bytes, of which 2^32 bytes have 2^27.
///
/// # Safety
/// The range must be mapped for `count` bytes. Others may write it meanwhile.
#[inline]
unsafe fn sum(from: *const u8, count: usize) -> u64 {
    let mut at = 0;
    let mut total = 0u64;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: all loads lie in `0..count`: whole steps of 32 bytes. Unaligned vector loads, each byte read once, and any
    // value that a concurrent writer leaves there is a good one.
    unsafe {
        use core::arch::x86_64::{
            __m128i, _mm_add_epi64, _mm_cvtsi128_si64, _mm_loadu_si128, _mm_setzero_si128, _mm_unpackhi_epi32,
            _mm_unpackhi_epi64, _mm_unpacklo_epi32,
        };
        let zero = _mm_setzero_si128();
        let (mut low, mut high) = (zero, zero);
        while at + 32 <= count {
            let one = _mm_loadu_si128(from.add(at).cast::<__m128i>());
            let two = _mm_loadu_si128(from.add(at + 16).cast::<__m128i>());
            low = _mm_add_epi64(low, _mm_unpacklo_epi32(one, zero));
            high = _mm_add_epi64(high, _mm_unpackhi_epi32(one, zero));
            low = _mm_add_epi64(low, _mm_unpacklo_epi32(two, zero));
            high = _mm_add_epi64(high, _mm_unpackhi_epi32(two, zero));
            at += 32;
        }
        let both = _mm_add_epi64(low, high);
        total += _mm_cvtsi128_si64(both) as u64;
        total += _mm_cvtsi128_si64(_mm_unpackhi_epi64(both, both)) as u64;
    }
    while at < count {
        let mut word = [0u8; 4];
        let size = (count - at).min(4);
        // SAFETY: `at + size` is at most `count`; the destination is private.
        unsafe { copy(from.add(at), word.as_mut_ptr(), size) };
        total += u64::from(u32::from_ne_bytes(word));
        at += size;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(bytes: &[u8]) -> Segment<'_> {
        // SAFETY: the slice outlives the segment by its lifetime.
        unsafe { Segment::new(bytes.as_ptr(), bytes.len() as u32) }
    }

    #[test]
    fn every_length_is_copied_whole_and_no_byte_beyond() {
        let source: Vec<u8> = (0..9000u32).map(|i| (i * 7 + 3) as u8).collect();
        let large = [127, 128, 129, 255, 256, 1500, SMALL_COPY - 1, SMALL_COPY, SMALL_COPY + 1, SMALL_COPY + 15, 9000];
        for len in (0..70).chain(large) {
            let mut out = vec![0xaau8; len + 1];
            assert_eq!(segment(&source).read(&mut out[..len]), len);
            assert_eq!(&out[..len], &source[..len]);
            assert_eq!(out[len], 0xaa, "wrote behind {len} bytes");

            let mut room = vec![0x55u8; len + 1];
            // SAFETY: `room` outlives the segment and is not touched meanwhile.
            let mut target = unsafe { SegmentMut::new(room.as_mut_ptr(), len as u32) };
            assert_eq!(target.write_from(&segment(&source)), len as u32);
            assert!(target.is_empty());
            assert_eq!(&room[..len], &source[..len]);
            assert_eq!(room[len], 0x55, "wrote behind {len} bytes");
        }
    }

    #[test]
    fn skip_and_take_stay_inside() {
        let bytes = [1u8, 2, 3, 4];
        let all = segment(&bytes);
        assert_eq!(all.skip(9).len(), 0);
        let mut out = [0u8; 4];
        assert_eq!(all.skip(1).take(2).read(&mut out), 2);
        assert_eq!(out, [2, 3, 0, 0]);
    }
}
