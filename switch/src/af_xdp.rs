//! AF_XDP: a socket on one queue of an interface, its memory and the four rings by which frames go to the kernel and back.
//!
//! What makes it harder than it looks: memory and rings are shared with the kernel, which writes a frame while it has it
//! and at no other time. So each frame has one owner, which [`frames`] keeps by types; here are the rings themselves, with
//! the orderings that the kernel's `net/xdp/xsk_queue.h` pairs with, and the calls that make them.
//!
//! The queues of a host have memory in common ([`pool`]), which is registered with each socket apart: to share one registration
//! would also share its mode and its rings. Which frame is whose moves from queue to queue; at any time nobody but the owner
//! touches it. Huge pages are taken where there are some ([`Area::huge`]); nobody else maps the memory, so it needs no file.
//!
//! Bounds: [`RING_LEN`] entries a ring, and as many frames each way. Any thread may own a socket, in whatever namespace it
//! was made. The port made of the sockets is in [`port`], the program that feeds them in [`program`].

#[cfg(feature = "testing")]
pub mod bare;
mod bpf;
mod ethtool;
mod frames;
mod partial;
mod pool;
pub(crate) mod port;
pub mod program;
pub(crate) mod queue;
pub(crate) mod queue_watch;
pub mod raw;
mod turn;
mod tx;

use crate::interface::InterfaceError;
use crate::pool::Area;
use frames::{Frame, Layout, RxFrames, TxFrames};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::sockopt;
use std::io;
use std::mem::size_of;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Entries of each ring: some milliseconds of small frames at a million a second. A power of two.
pub(crate) const RING_LEN: u32 = 2048;
const _: () = assert!(RING_LEN.is_power_of_two());
/// Entries of the fill ring: twice as many as frames, for the kernel tells late which it has taken ([`RxFrames::give_back`]).
const FILL_LEN: u32 = 2 * RING_LEN;
/// Pieces that the kernel sends as one frame: `MAX_SKB_FRAGS` (linux/skbuff.h), which no config makes smaller, and the first.
pub(crate) const PIECES_MAX: usize = 17;
/// The same where the device reads them itself: what the one that takes fewest of those that take several does (i40e and ice: 8,
/// `I40E_MAX_BUFFER_TXD`). A frame with more than its device takes would be lost without a word.
const PIECES_ZERO_COPY_MAX: usize = 8;
/// Bytes that the kernel keeps free before a frame that it writes (`XDP_PACKET_HEADROOM`, linux/bpf.h).
pub(crate) const KERNEL_HEADROOM: u32 = 256;
/// Bytes of frames, and the kernel's books about them, that the interface may not have sent yet: a whole tx ring of full frames.
const SEND_BUFFER: usize = 16 << 20;

/// An entry of the rx and tx rings: where a piece of a frame lies in the memory, how long it is, and whether more of it follows.
pub(crate) type Descriptor = libc::xdp_desc;

/// Memory that is shared with the kernel: a ring.
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

#[cfg(test)]
impl Mapping {
    /// Memory that no kernel looks at.
    fn anonymous(len: usize) -> Mapping {
        use rustix::mm::{MapFlags, ProtFlags};
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh anonymous mapping at a place the kernel chooses overlaps nothing.
        // Why unsafe: mapping memory has no safe spelling.
        let base = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, access, MapFlags::PRIVATE) };
        Mapping { base: NonNull::new(base.expect("a few pages").cast()).expect("not at zero"), len }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is the one it was made with, and nothing points into it any more but the ring that ends now.
        // It cannot fail on a mapping of our own; if it did, the memory would stay.
        // Why unsafe: unmapping has no safe spelling.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// One ring: two counters that never stop, each written by one side, and a power of two of entries.
pub(crate) struct Ring<T> {
    mapping: Mapping,
    /// Where in the mapping they are, bytes.
    producer_at: usize,
    consumer_at: usize,
    flags_at: usize,
    entries_at: usize,
    len: u32,
    entry: std::marker::PhantomData<T>,
}

// SAFETY: it owns its mapping. The counters are atomic, and entries are touched by the one producer and the one consumer of it
// only, which the counters keep apart.
// Why unsafe: raw pointers are neither by default.
unsafe impl<T: Send> Send for Ring<T> {}
// SAFETY: as above.
// Why unsafe: as above.
unsafe impl<T: Send> Sync for Ring<T> {}

/// What entries may be: plain numbers, for which any bytes are legal.
pub(crate) trait Entry: Copy + Send {}
impl Entry for u64 {}
impl Entry for Descriptor {}

impl<T: Entry> Ring<T> {
    /// The ring of `len` entries in a mapping, laid out as the kernel says.
    fn new(mapping: Mapping, offsets: &libc::xdp_ring_offset, len: u32) -> io::Result<Arc<Ring<T>>> {
        let at = |offset: u64, align: usize, size: usize| {
            let at = usize::try_from(offset).ok().filter(|at| at.is_multiple_of(align));
            let at = at.filter(|at| at.checked_add(size).is_some_and(|end| end <= mapping.len));
            at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
        };
        let counter = size_of::<AtomicU32>();
        let (producer_at, consumer_at, flags_at, entries_at) = (
            at(offsets.producer, counter, counter)?,
            at(offsets.consumer, counter, counter)?,
            at(offsets.flags, counter, counter)?,
            at(offsets.desc, align_of::<T>(), len as usize * size_of::<T>())?,
        );
        assert!(len.is_power_of_two(), "counters are masked to indices");
        let entry = std::marker::PhantomData;
        Ok(Arc::new(Ring { mapping, producer_at, consumer_at, flags_at, entries_at, len, entry }))
    }

    /// A ring that no kernel has, for tests of both its sides.
    #[cfg(test)]
    fn alone(len: u32) -> Arc<Ring<T>> {
        let offsets = libc::xdp_ring_offset { producer: 0, consumer: 64, flags: 128, desc: 192 };
        let mapping = Mapping::anonymous(192 + len as usize * size_of::<T>());
        Ring::new(mapping, &offsets, len).expect("laid out as it must be")
    }

    /// As if the kernel had gone to sleep.
    #[cfg(test)]
    fn set_needs_wakeup(&self) {
        self.counter(self.flags_at).store(libc::XDP_RING_NEED_WAKEUP, Ordering::Relaxed);
    }

    fn counter(&self, at: usize) -> &AtomicU32 {
        // SAFETY: `at` is one of three places that `new` found inside the mapping and aligned; the mapping lives as long as
        // `self`; whoever else touches the place, the kernel included, does so atomically.
        // Why unsafe: the memory is the kernel's to lay out.
        unsafe { AtomicU32::from_ptr(self.mapping.base.as_ptr().add(at).cast()) }
    }

    fn entry(&self, number: u32) -> *mut T {
        let index = number & (self.len - 1);
        // SAFETY: `index` is below `len`, and so many entries lie inside the mapping, aligned (`new`).
        // Why unsafe: pointer arithmetic.
        unsafe { self.mapping.base.as_ptr().add(self.entries_at).cast::<T>().add(index as usize) }
    }

    /// Whether the kernel wants to be woken by a system call (`XDP_USE_NEED_WAKEUP`).
    #[inline]
    pub(crate) fn needs_wakeup(&self) -> bool {
        self.counter(self.flags_at).load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    /// How many entries the consumer has taken since the beginning, modulo 2^32.
    #[inline]
    pub(crate) fn taken(&self) -> u32 {
        self.counter(self.consumer_at).load(Ordering::Acquire)
    }

    /// How many entries wait to be consumed.
    #[inline]
    pub(crate) fn waiting(&self) -> u32 {
        self.counter(self.producer_at).load(Ordering::Acquire).wrapping_sub(self.taken())
    }
}

/// The side that puts entries into a ring.
pub(crate) struct Producer<T> {
    ring: Arc<Ring<T>>,
    /// Entries put in, not all of them published.
    next: u32,
    /// Entries taken out, as far as was last seen.
    taken: u32,
}

impl<T: Entry> Producer<T> {
    /// The producer of a ring that has none yet.
    fn new(ring: Arc<Ring<T>>) -> Producer<T> {
        let next = ring.counter(ring.producer_at).load(Ordering::Relaxed);
        Producer { taken: ring.taken(), ring, next }
    }

    /// Entries that have room.
    #[inline]
    pub(crate) fn room(&mut self, wanted: u32) -> u32 {
        let free = self.free();
        if free >= wanted {
            return free;
        }
        // Acquire: what the consumer read of an entry it read before it gave the place back.
        self.taken = self.ring.taken();
        self.free()
    }

    /// A consumer that says it took what was never there has taken nothing: its ring then stays full.
    #[inline]
    fn free(&self) -> u32 {
        self.ring.len.saturating_sub(self.next.wrapping_sub(self.taken))
    }

    /// Puts an entry in; the consumer does not see it yet.
    ///
    /// # Panics
    /// If the ring is full: whoever calls has asked for room.
    #[inline]
    pub(crate) fn push(&mut self, entry: T) {
        assert!(self.room(1) > 0, "the ring is full");
        // SAFETY: the place is inside the ring (`entry`) and free, for the consumer has given it back or never had it; it
        // looks at it only once it is published.
        // Why unsafe: the ring is shared with the kernel; no slice may cover it.
        unsafe { self.ring.entry(self.next).write(entry) };
        self.next = self.next.wrapping_add(1);
    }

    /// Shows the consumer all entries.
    #[inline]
    pub(crate) fn publish(&mut self) {
        // Release: the entries, and the frames they tell of, are written before. Pairs with the consumer's acquire load.
        self.ring.counter(self.ring.producer_at).store(self.next, Ordering::Release);
    }

    /// The ring.
    pub(crate) fn ring(&self) -> &Arc<Ring<T>> {
        &self.ring
    }
}

/// The side that takes entries out of a ring.
pub(crate) struct Consumer<T> {
    ring: Arc<Ring<T>>,
    /// Entries taken, not all of them given back.
    next: u32,
    /// Entries that are there, as far as was last seen.
    filled: u32,
}

impl<T: Entry> Consumer<T> {
    /// The consumer of a ring that has none yet.
    fn new(ring: Arc<Ring<T>>) -> Consumer<T> {
        let next = ring.taken();
        Consumer { filled: next, ring, next }
    }

    /// The entry that is `ahead` behind the next one; it stays there. `None`: the producer has not put it there yet.
    #[inline]
    pub(crate) fn peek(&mut self, ahead: u32) -> Option<T> {
        debug_assert!(ahead < self.ring.len, "a ring has no more entries");
        if self.filled.wrapping_sub(self.next) <= ahead {
            // Acquire: pairs with the producer's release, so that the entry and what it tells of are seen whole.
            let filled = self.ring.counter(self.ring.producer_at).load(Ordering::Acquire);
            // A producer that says it put in more than the ring holds has put in nothing: what lies there was taken before.
            if filled.wrapping_sub(self.next) > self.ring.len {
                return None;
            }
            self.filled = filled;
            if self.filled.wrapping_sub(self.next) <= ahead {
                return None;
            }
        }
        // SAFETY: the place is inside the ring (`entry`), written (seen above) and left alone by the producer until it is given
        // back; any bytes are a legal entry.
        // Why unsafe: the ring is shared with the kernel; no slice may cover it.
        Some(unsafe { self.ring.entry(self.next.wrapping_add(ahead)).read() })
    }

    /// Takes the next `count` entries, all of which were seen.
    #[inline]
    pub(crate) fn advance(&mut self, count: u32) {
        assert!(self.filled.wrapping_sub(self.next) >= count, "only what was seen is taken");
        self.next = self.next.wrapping_add(count);
    }

    /// Gives the places of all entries taken back to the producer.
    #[inline]
    pub(crate) fn release(&mut self) {
        // Release: the entries were read before. Pairs with the producer's acquire load.
        self.ring.counter(self.ring.consumer_at).store(self.next, Ordering::Release);
    }
}

/// How a socket's frames cross between the interface and its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mode {
    /// The device reads and writes the memory itself; else the kernel copies.
    pub(crate) is_zero_copy: bool,
    /// Pieces that a frame of ours may have at most.
    pub(crate) pieces_max: usize,
}

/// A bound socket, its memory, and its rings by direction.
pub(crate) struct XdpSocket {
    pub(crate) fd: OwnedFd,
    pub(crate) area: Arc<Area>,
    pub(crate) layout: Layout,
    pub(crate) mode: Mode,
    pub(crate) rx: RxFrames,
    pub(crate) tx: TxFrames,
}

/// What came of trying to bind to a queue.
pub(crate) enum Bound {
    /// A socket on it.
    Socket(Box<XdpSocket>),
    /// The interface has no such queue.
    NoQueue,
}

impl XdpSocket {
    /// A socket on one queue of the interface with this index, in the calling thread's namespace, with memory that the caller
    /// made, and frames of it to receive by and to send by. `is_large`: frames of the interface are longer than one of them.
    ///
    /// Nothing comes until a program sends it there.
    ///
    /// # Errors
    /// [`InterfaceError::Io`]: the system's; `EBUSY` if another program has the queue.
    pub(crate) fn open(
        index: u32,
        queue: u32,
        area: Arc<Area>,
        layout: Layout,
        [receiving, sending]: [Vec<Frame>; 2],
        is_large: bool,
    ) -> Result<Bound, InterfaceError> {
        let io = |what| move |source: io::Error| InterfaceError::Io { what, source };
        // SAFETY: the call takes three numbers and touches no memory.
        // Why unsafe: rustix has no such address family.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        let fd = owned(fd).map_err(io("opening an AF_XDP socket (needs CAP_NET_RAW)"))?;
        sockopt::set_socket_send_buffer_size_force(&fd, SEND_BUFFER)
            .map_err(|e| io("setting up the AF_XDP socket (needs CAP_NET_ADMIN)")(e.into()))?;
        let registration = libc::xdp_umem_reg {
            addr: area.as_ptr() as u64,
            len: area.len() as u64,
            chunk_size: layout.frame_size,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        // The kernel pins the pages, so they stay until the socket is closed, whatever becomes of our mapping.
        set_option(fd.as_fd(), libc::XDP_UMEM_REG, &registration).map_err(io(
            "giving memory to the AF_XDP socket (needs CAP_IPC_LOCK or a larger limit of locked memory)",
        ))?;
        let setting_up = "making the rings of the AF_XDP socket";
        for (ring, len) in [
            (libc::XDP_UMEM_FILL_RING, FILL_LEN),
            (libc::XDP_UMEM_COMPLETION_RING, RING_LEN),
            (libc::XDP_RX_RING, RING_LEN),
            (libc::XDP_TX_RING, RING_LEN),
        ] {
            set_option(fd.as_fd(), ring, &len).map_err(io(setting_up))?;
        }
        let offsets = offsets(fd.as_fd()).map_err(io(setting_up))?;
        let fill =
            map_ring(fd.as_fd(), libc::XDP_UMEM_PGOFF_FILL_RING, &offsets.fr, FILL_LEN).map_err(io(setting_up))?;
        let completion = map_ring(fd.as_fd(), libc::XDP_UMEM_PGOFF_COMPLETION_RING, &offsets.cr, RING_LEN)
            .map_err(io(setting_up))?;
        let rx = map_ring(fd.as_fd(), libc::XDP_PGOFF_RX_RING as u64, &offsets.rx, RING_LEN).map_err(io(setting_up))?;
        let tx = map_ring(fd.as_fd(), libc::XDP_PGOFF_TX_RING as u64, &offsets.tx, RING_LEN).map_err(io(setting_up))?;
        let rx = RxFrames::new(layout, receiving, Producer::new(fill), Consumer::new(rx));
        let tx = TxFrames::new(layout, sending, Producer::new(tx), Consumer::new(completion));
        let Some(mode) = bind(fd.as_fd(), index, queue, is_large)
            .map_err(io("binding the AF_XDP socket to a queue of the interface"))?
        else {
            return Ok(Bound::NoQueue);
        };
        Ok(Bound::Socket(Box::new(XdpSocket { fd, area, layout, mode, rx, tx })))
    }
}

/// Binds to a queue in the best mode there is; `None` if there is no such queue.
fn bind(socket: BorrowedFd<'_>, index: u32, queue: u32, is_large: bool) -> io::Result<Option<Mode>> {
    const PIECES: u16 = libc::XDP_USE_SG;
    let (zero_copy, copy) = (libc::XDP_ZEROCOPY, libc::XDP_COPY);
    // A driver may know zero copy and no pieces: worth it where no frame needs any. Without XDP_USE_SG a kernel older
    // than 6.6 binds as well, and a veth whose far side may send long frames does not (EBUSY).
    for flags in [zero_copy | PIECES, zero_copy, copy | PIECES, copy] {
        if flags == zero_copy && is_large {
            continue;
        }
        match bind_with(socket, index, queue, flags | libc::XDP_USE_NEED_WAKEUP) {
            Ok(()) => {
                let is_zero_copy = flags & zero_copy != 0;
                let pieces_max = match (is_zero_copy, flags & PIECES != 0) {
                    (_, false) => 1,
                    (false, true) => PIECES_MAX,
                    (true, true) => PIECES_ZERO_COPY_MAX,
                };
                return Ok(Some(Mode { is_zero_copy, pieces_max }));
            }
            // Not in this mode, or not this queue: in the end it was the queue.
            Err(Errno::OPNOTSUPP | Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

fn bind_with(socket: BorrowedFd<'_>, index: u32, queue: u32, flags: u16) -> Result<(), Errno> {
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: flags,
        sxdp_ifindex: index,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: 0,
    };
    let len = size_of::<libc::sockaddr_xdp>() as libc::socklen_t;
    // SAFETY: the pointer is to a whole `sockaddr_xdp` that outlives the call, and the length is its size.
    // Why unsafe: rustix has no such address.
    let answer = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if answer == 0 { Ok(()) } else { Err(last_error()) }
}

/// Has the kernel send what is in the tx ring, as many frames as it does in one go.
///
/// # Errors
/// `EAGAIN`: there is more, or no room; `EBUSY`, `ENOBUFS`: the device has no room; `ENETDOWN`: the interface is down; `ENXIO`:
/// it is gone.
pub(crate) fn send(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: no bytes and no address are passed; what is sent is told by the ring.
    // Why unsafe: rustix sends only bytes, and an empty slice's address would be a needless one.
    let answer =
        unsafe { libc::sendto(socket.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
    if answer >= 0 { Ok(()) } else { Err(last_error()) }
}

/// Has the driver look at the fill ring again: in zero copy it may have run out of frames.
pub(crate) fn refill(socket: BorrowedFd<'_>) {
    // What can go wrong is seen when the next frames come or do not.
    // SAFETY: no buffer and no address are passed.
    // Why unsafe: as in `send`.
    let _ = unsafe {
        let (nowhere, nobody) = (std::ptr::null_mut(), std::ptr::null_mut());
        libc::recvfrom(socket.as_raw_fd(), nowhere, 0, libc::MSG_DONTWAIT, nobody, std::ptr::null_mut())
    };
}

/// Frames for the socket that were lost since it was bound: for want of room in the rx ring or of frames, or because they did
/// not fit (`XDP_STATISTICS`).
pub(crate) fn lost(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut statistics = libc::xdp_statistics {
        rx_dropped: 0,
        rx_invalid_descs: 0,
        tx_invalid_descs: 0,
        rx_ring_full: 0,
        rx_fill_ring_empty_descs: 0,
        tx_ring_empty_descs: 0,
    };
    get_option(socket, libc::XDP_STATISTICS, &mut statistics)?;
    // The fill ring's own count tells of the same frames as `rx_dropped`.
    Ok(statistics.rx_dropped.wrapping_add(statistics.rx_ring_full))
}

fn offsets(socket: BorrowedFd<'_>) -> io::Result<libc::xdp_mmap_offsets> {
    let none = || libc::xdp_ring_offset { producer: 0, consumer: 0, desc: 0, flags: 0 };
    let mut offsets = libc::xdp_mmap_offsets { rx: none(), tx: none(), fr: none(), cr: none() };
    // Kernels before 5.4 tell less, and have no flags to look at.
    match get_option(socket, libc::XDP_MMAP_OFFSETS, &mut offsets)? {
        len if len == size_of::<libc::xdp_mmap_offsets>() => Ok(offsets),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

fn map_ring<T: Entry>(
    socket: BorrowedFd<'_>,
    which: u64,
    offsets: &libc::xdp_ring_offset,
    entries: u32,
) -> io::Result<Arc<Ring<T>>> {
    use rustix::mm::{MapFlags, ProtFlags};
    let size = entries as usize * size_of::<T>();
    let len = usize::try_from(offsets.desc).ok().and_then(|at| at.checked_add(size));
    let len = len.ok_or(io::ErrorKind::InvalidData)?;
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::POPULATE);
    // SAFETY: a fresh mapping at a place the kernel chooses overlaps nothing; the ring behind it lives as long as it is mapped.
    // Why unsafe: mapping memory has no safe spelling.
    let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, access, flags, socket, which)? };
    let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
    Ring::new(Mapping { base, len }, offsets, entries)
}

/// What the kernel takes and gives as values of options: plain C structs of numbers.
trait Plain {}
impl Plain for u32 {}
impl Plain for libc::xdp_umem_reg {}
impl Plain for libc::xdp_statistics {}
impl Plain for libc::xdp_mmap_offsets {}

fn set_option<T: Plain>(socket: BorrowedFd<'_>, option: libc::c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads at most `len` bytes, the size of the plain value behind the pointer.
    // Why unsafe: no safe crate of ours knows these options.
    let answer =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_XDP, option, std::ptr::from_ref(value).cast(), len) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads an option; answers how many bytes of it the kernel knows.
fn get_option<T: Plain>(socket: BorrowedFd<'_>, option: libc::c_int, value: &mut T) -> io::Result<usize> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of the value behind the pointer, for which any bytes are legal.
    // Why unsafe: no safe crate of ours knows these options.
    let answer = unsafe {
        let value = std::ptr::from_mut(value).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_XDP, option, value, &raw mut len)
    };
    if answer == 0 { Ok(len as usize) } else { Err(io::Error::last_os_error()) }
}

/// Questions and orders of the ethtool interface (linux/ethtool.h); the structure of each begins with its number.
#[derive(Clone, Copy)]
enum EthtoolCommand {
    /// `struct ethtool_value`: flags.
    GetFlags = 0x25,
    SetFlags = 0x26,
    /// `struct ethtool_channels`, nine words.
    GetChannels = 0x3c,
}

/// Words of the longest structure of these, and more.
const ETHTOOL_WORDS: usize = 16;

/// Asks the interface of this name, with `value` as the structure's second word; answers the structure.
fn ethtool(
    socket: BorrowedFd<'_>,
    name: &str,
    command: EthtoolCommand,
    value: u32,
) -> io::Result<[u32; ETHTOOL_WORDS]> {
    let mut words = [0; ETHTOOL_WORDS];
    (words[0], words[1]) = (command as u32, value);
    let mut wanted = [0; libc::IFNAMSIZ];
    if name.len() >= wanted.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in wanted.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let data = libc::__c_anonymous_ifr_ifru { ifru_data: words.as_mut_ptr().cast() };
    let mut request = libc::ifreq { ifr_name: wanted, ifr_ifru: data };
    // SAFETY: the request is whole, its name ends with a zero, and it points at more words than the structure of any of these
    // commands has; the kernel reads and writes no more than that.
    // Why unsafe: neither rustix nor std has this call.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(words) }
}

/// The descriptor that a system call answered.
fn owned(answer: libc::c_int) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call before made this descriptor for us, and nobody else knows it.
    // Why unsafe: a number does not say whose it is.
    Ok(unsafe { OwnedFd::from_raw_fd(answer) })
}

/// The error of the system call before, which failed.
fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests;
