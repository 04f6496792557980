//! A TAP device of our own making, as a port: a network interface of the host whose wire is the switch.
//!
//! What makes it harder than it looks: a TAP belongs to the network namespace of the thread that opens `/dev/net/tun`, so
//! it is opened on a helper thread inside the wanted one. It must outlive us with its addresses (kill -9, upgrade) and yet
//! leave nothing behind when making it fails half-way, so it becomes persistent last. And it can be deleted under us: the
//! descriptor then answers `EBADFD` for ever. The port marks itself gone, [`Tap`]'s state says so, and its keeper opens it
//! anew. Its namespace cannot vanish while the descriptor is open, but it can lose its name; that is told too.
//!
//! Frames pass with a 12-byte `virtio_net_hdr`, so checksums stay partial and TCP stays uncut between the host's stack and
//! a guest. One system call moves one frame, and the kernel copies it once: `readv` puts the first [`HEAD_COPY`] bytes into
//! the packet's head and the rest into the queue's buffer; `writev` gathers the head and the tail from where they lie.
//!
//! A TAP has one queue each way, or several (`IFF_MULTI_QUEUE`), each a descriptor of its own, over which the kernel spreads
//! its flows. The rx of each belongs to one worker; tx keeps no state and may be called by all of them. To ask an empty
//! queue costs a system call, so one that stays empty dozes (`doze.rs`). Bounds: [`RX_BUFFER`] bytes of tails a round and queue, of which small frames touch only the first pages.
//! The file is long because it is the one address of the unsafe code that a TAP needs: ioctls and vectored calls alike.

use crate::batch::{BURST, Batch, Fit};
use crate::config::MTU_DEFAULT;
use crate::doze::Doze;
use crate::ids::{PortIndex, QUEUES_MAX, QueueIndex};
use crate::ledger::{DropReason, Tally};
use crate::netns::{self, Origin};
use crate::offload::{EgressOffloads, OffloadClaim, VNET_HEADER_LEN, VNET_HEADER_MRG_LEN};
use crate::packet::{HEAD_COPY, Packet, SEGMENTS_MAX};
use crate::port::{Device, DeviceState, Link, Place, Port};
use crate::segment::Segment;
use crate::segmentation::Segmenter;
use crate::sync::{AtomicBool, Ordering};
use crate::worker::ROUND_BYTES;
use crossbeam_utils::CachePadded;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Opcode, Setter, Updater, ioctl};
use rustix::mm::{MapFlags, ProtFlags};
use std::ffi::{c_int, c_uint};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

/// Bytes of an interface name in the kernel's requests, the closing zero included (`IFNAMSIZ`).
const NAME_SIZE: usize = 16;
/// Longest tail a read can bring: a GSO packet of 65,536 bytes (`GSO_LEGACY_MAX_SIZE`), its Ethernet header and two tags,
/// and one byte more, so that a read that fills it is known to be cut.
const TAIL_MAX: usize = 65_536 + 14 + 2 * 4 + 1;
/// Bytes of an rx queue's buffer: what a round may take, and the last frame's excess.
const RX_BUFFER: usize = (ROUND_BYTES + TAIL_MAX).next_multiple_of(4096) + BURST * TAIL_ALIGN;
/// Tails start on cache lines of their own.
const TAIL_ALIGN: usize = 64;

/// `_IO('T', 227)` (linux/if_tun.h)
const TUNGETDEVNETNS: libc::Ioctl = 0x54e3;

/// What failed when no namespace could be entered.
const ENTERING: &str = "entering the network namespace (needs CAP_SYS_ADMIN)";

const _: () = assert!(RX_BUFFER - TAIL_MAX >= ROUND_BYTES + BURST * (TAIL_ALIGN - 1), "a whole round fits");
const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

/// What a TAP needs to know.
#[derive(Debug)]
pub struct TapConfig {
    /// Interface name, 1 to 15 bytes.
    pub name: String,
    /// The network namespace it lives in; `None`: the caller's.
    pub netns: Option<OwnedFd>,
    /// Bytes of L3 payload; `None`: [`MTU_DEFAULT`], or what a reopened device has if that is less.
    pub mtu: Option<u16>,
    /// Queues each way, 1 to [`QUEUES_MAX`]. A device is of one queue or of several for its whole life; of several it may
    /// be reopened with any number but one.
    pub queues: u16,
    /// Reopen the existing device of that name, which the caller knows to be ours, or make it if there is none.
    /// Otherwise it is made exclusively.
    pub reopen: bool,
}

/// Why a TAP could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No interface can have this name.
    #[error("{name:?} cannot name an interface: 1 to 15 letters, digits or other visible ASCII, but no / : %")]
    BadName {
        /// The name.
        name: String,
    },
    /// There cannot be so many queues.
    #[error("{given} queues; a TAP has 1 to {QUEUES_MAX}")]
    BadQueues {
        /// How many.
        given: u16,
    },
    /// The existing device has one queue and more are wanted, or the reverse.
    #[error("the TAP {name:?} was made for {} and cannot be reopened otherwise", if *is_multi { "several queues" } else { "one queue" })]
    OtherQueues {
        /// The name.
        name: String,
        /// Whether the device was made for several.
        is_multi: bool,
    },
    /// A device of that name exists and `reopen` was not asked for.
    #[error("an interface named {name:?} exists already and is not ours")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The system said no.
    #[error("{what}: {source}")]
    Io {
        /// What we tried.
        what: String,
        /// What it said.
        source: io::Error,
    },
}

/// Makes a TAP that is gone when its descriptor is closed, with `mtu` bytes of L3 payload, up, in a namespace or the caller's.
///
/// Who holds the descriptor is the wire: each `write` is a frame that the host receives, each `read`, which does not wait,
/// one that it sent, both behind a little-endian `virtio_net_hdr` of 12 bytes. Needs what [`Tap::open`] needs.
///
/// # Errors
/// [`TapError`].
pub fn open_transient(name: &str, netns: Option<BorrowedFd<'_>>, mtu: u16) -> Result<OwnedFd, TapError> {
    check_name(name)?;
    let (mut fds, _) = netns::within(netns, || open_device(name, Some(mtu), 1, false)).map_err(failed(ENTERING))??;
    Ok(fds.pop().expect("a descriptor for each queue"))
}

/// An open TAP's control side. Dropping it withdraws the port and closes the device, which persists.
pub struct Tap {
    port: Arc<TapPort>,
    place: Arc<dyn Place>,
    origin: Option<Origin>,
    is_published: bool,
}

impl Tap {
    /// Opens or makes the TAP: persistent, vnet header, offloads, MTU, link up; publishes its port at `place`.
    ///
    /// Needs CAP_NET_ADMIN, and CAP_SYS_ADMIN to enter `config.netns`. A device that was made but could not be set up
    /// is gone again when this returns; one that was reopened stays.
    ///
    /// # Errors
    /// [`TapError`]; the caller retries.
    pub fn open(config: TapConfig, place: Arc<dyn Place>) -> Result<Tap, TapError> {
        // The namespace's descriptor is closed on return; only the device's own keeps it alive then.
        let TapConfig { name, netns, mtu, queues, reopen } = config;
        check_name(&name)?;
        if queues == 0 || usize::from(queues) > QUEUES_MAX {
            return Err(TapError::BadQueues { given: queues });
        }
        let netns = netns.as_ref().map(AsFd::as_fd);
        let origin = netns.and_then(Origin::of);
        let (queues, has_uso) = netns::within(netns, || {
            let (fds, has_uso) = open_device(&name, mtu, queues, reopen)?;
            let queues = fds.into_iter().map(|fd| TapQueue::new(fd).map(CachePadded::new)).collect::<io::Result<_>>();
            let queues: Box<[CachePadded<TapQueue>]> = queues.map_err(failed("mapping a receive buffer"))?;
            // Last: until then closing the descriptors removes what was made here.
            let keep = set_integer::<{ libc::TUNSETPERSIST as Opcode }>(&queues[0].fd, 1);
            keep.map_err(failed(format!("keeping TAP {name:?}")))?;
            Ok((queues, has_uso))
        })
        .map_err(failed(ENTERING))??;
        let port = Arc::new(TapPort {
            queues,
            egress: EgressOffloads { checksum: true, tso4: true, tso6: true, ecn: true, uso: has_uso },
            is_gone: AtomicBool::new(false),
        });
        place.publish(port.clone());
        Ok(Tap { port, place, origin, is_published: true })
    }

    /// Gives the device another MTU, under whatever name it is in whatever namespace now. Needs what [`Tap::open`] needs.
    ///
    /// # Errors
    /// [`TapError::Io`]; the MTU is as it was.
    pub fn set_mtu(&self, mtu: u16) -> Result<(), TapError> {
        let fd = &self.port.queues[0].fd;
        let mut request = InterfaceRequest::new("");
        update::<{ libc::TUNGETIFF as Opcode }>(fd, &mut request).map_err(failed("asking for the name of a TAP"))?;
        let netns = namespace_of(fd).map_err(failed("asking for the namespace of a TAP"))?;
        let own = netns::own().map_err(failed("looking at our own namespace"))?;
        let is_here = netns::is_same(&own, &netns).map_err(failed("looking at the namespace of a TAP"))?;
        netns::within((!is_here).then_some(netns.as_fd()), || {
            let control = netns::control_socket()?;
            request.value[..4].copy_from_slice(&c_int::from(mtu).to_ne_bytes());
            update::<{ libc::SIOCSIFMTU as Opcode }>(&control, &mut request)
        })
        .map_err(failed(ENTERING))?
        .map_err(failed("setting the MTU of a TAP"))
    }

    /// Removes the device itself: withdraws the port, ends persistence and closes.
    pub fn remove(mut self) {
        self.withdraw();
        // Fails only if the device is gone already.
        let _ = set_integer::<{ libc::TUNSETPERSIST as Opcode }>(&self.port.queues[0].fd, 0);
    }

    fn withdraw(&mut self) {
        if std::mem::take(&mut self.is_published) {
            self.place.withdraw();
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.withdraw();
    }
}

impl Device for Tap {
    fn state(&self) -> DeviceState {
        let down = |is_ready, reason: &str| DeviceState { is_ready, link: Link::Down, reason: reason.to_owned() };
        // The driver answers POLLERR for a device that is gone, and POLLOUT while the interface is up: its send buffer
        // has no limit by default. That holds wherever the interface was renamed or moved to.
        let events = self.port.queues[0].poll(PollFlags::OUT);
        if self.port.is_gone() || events.contains(PollFlags::ERR) {
            down(false, "the device is gone")
        } else if self.origin.as_ref().is_some_and(|origin| !origin.is_there()) {
            down(false, "the network namespace is gone")
        } else if events.contains(PollFlags::OUT) {
            DeviceState { is_ready: true, link: Link::Up, reason: String::new() }
        } else {
            down(true, "the interface is down")
        }
    }
}

/// An open TAP as the workers see it.
struct TapPort {
    queues: Box<[CachePadded<TapQueue>]>,
    /// What the host's stack takes from us.
    egress: EgressOffloads,
    /// Set for ever once the kernel said that the device no longer exists.
    is_gone: AtomicBool,
}

/// One queue, both ways.
struct TapQueue {
    fd: OwnedFd,
    doze: Doze,
    rx: Mutex<RxQueue>,
}

/// Where the tails of one round lie.
struct RxQueue {
    buffer: Mapping,
    /// Bytes handed out since the last `rx_done`.
    used: usize,
}

impl TapQueue {
    fn new(fd: OwnedFd) -> io::Result<TapQueue> {
        let rx = RxQueue { buffer: Mapping::new()?, used: 0 };
        Ok(TapQueue { fd, doze: Doze::default(), rx: Mutex::new(rx) })
    }

    /// Which of the events, or errors, are there now.
    fn poll(&self, events: PollFlags) -> PollFlags {
        let mut fds = [PollFd::new(&self.fd, events)];
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(_) => fds[0].revents(),
            // Interrupted or out of memory: nothing is known, and whoever asked asks again.
            Err(_) => PollFlags::empty(),
        }
    }

    /// The rx side; `None` if another thread has it, as may be for a moment when the queue changes its worker.
    fn try_rx(&self) -> Option<MutexGuard<'_, RxQueue>> {
        match self.rx.try_lock() {
            Ok(rx) => Some(rx),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl TapPort {
    fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Relaxed)
    }

    fn queue(&self, index: QueueIndex) -> &TapQueue {
        &self.queues[index.as_usize()]
    }

    /// Writes one frame: header, head and tail in one call.
    #[inline]
    fn write(&self, fd: &OwnedFd, packet: &Packet, tail: &[Segment<'_>], tally: &mut Tally) {
        const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut pieces = [EMPTY; 2 + SEGMENTS_MAX];
        let header = packet.offload.to_bytes();
        let head = packet.head();
        pieces[0] = libc::iovec { iov_base: header.as_ptr().cast_mut().cast(), iov_len: header.len() };
        pieces[1] = libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() };
        for (piece, segment) in pieces[2..].iter_mut().zip(tail) {
            let base = segment.as_ptr().cast_mut().cast();
            *piece = libc::iovec { iov_base: base, iov_len: segment.len() as usize };
        }
        let count = 2 + tail.len();
        assert!(count <= pieces.len(), "the batch bounds a tail's segments");
        // SAFETY: `writev` only reads the pieces: header and head are private bytes that live through the call, and
        // the segments are mapped for the round. Where a guest has cut its memory file short under us the kernel
        // answers EFAULT and delivers nothing.
        // Why unsafe: the tail may be shared with another process, so no slice may cover it, and the safe `writev`
        // takes only slices.
        let sent = unsafe { libc::writev(fd.as_raw_fd(), pieces.as_ptr(), count as c_int) };
        if sent >= 0 {
            tally.moved(packet.len());
        } else {
            self.refused(last_errno(), tally);
        }
    }

    /// Writes a frame that the host does not take whole, in segments.
    #[cold]
    fn write_segments(&self, fd: &OwnedFd, mut cut: Segmenter<'_, '_>, tally: &mut Tally) {
        tally.cut_into(cut.count());
        while let Some((packet, tail)) = cut.next_segment() {
            self.write(fd, packet, tail, tally);
            if self.is_gone() {
                tally.drop_many(DropReason::PortGone, cut.remaining());
                return;
            }
        }
    }

    /// Counts a failed write, and remembers if there is nothing to write to any more.
    #[cold]
    fn refused(&self, errno: Errno, tally: &mut Tally) {
        tally.drop(match errno {
            Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM => DropReason::RxRingFull,
            // The interface is down.
            Errno::IO | Errno::NETDOWN => DropReason::NotReady,
            errno if is_end(errno) => {
                self.is_gone.store(true, Ordering::Relaxed);
                DropReason::PortGone
            }
            // Also EFAULT: a guest's memory vanished under the copy.
            _ => DropReason::DeviceError,
        });
    }
}

/// Whether a read or write says that the device no longer exists.
fn is_end(errno: Errno) -> bool {
    matches!(errno, Errno::BADFD | Errno::NODEV | Errno::NXIO)
}

impl Port for TapPort {
    fn rx_queues(&self) -> u16 {
        self.queues.len() as u16
    }

    fn tx_queues(&self) -> u16 {
        self.queues.len() as u16
    }

    fn rx<'r>(&'r self, ingress: PortIndex, index: QueueIndex, batch: &mut Batch<'r>, tally: &mut Tally) {
        let queue = self.queue(index);
        if queue.doze.is_dozing() || self.is_gone() {
            return;
        }
        let Some(mut rx) = queue.try_rx() else { return };
        // Bounded even if every frame is one we cannot carry, which leaves room in the batch.
        for _ in 0..BURST {
            if rx.used + TAIL_MAX > RX_BUFFER {
                break;
            }
            let Some(mut packet) = batch.start(ingress, index) else { break };
            let head = packet.head(HEAD_COPY).expect("an empty head holds HEAD_COPY bytes");
            let mut header = [0u8; VNET_HEADER_MRG_LEN];
            // SAFETY: `used + TAIL_MAX` is inside the buffer (checked above).
            // Why unsafe: pointer arithmetic on memory that no slice may cover.
            let tail = unsafe { rx.buffer.base.add(rx.used) };
            let pieces = [
                libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: header.len() },
                libc::iovec { iov_base: head.as_mut_ptr().cast(), iov_len: head.len() },
                libc::iovec { iov_base: tail.cast(), iov_len: TAIL_MAX },
            ];
            // SAFETY: the first two pieces are private slices that live through the call; the third is `TAIL_MAX` bytes
            // of the mapping, covered by no reference, and not part of a tail of this round (`used` is behind them).
            // Why unsafe: tails lie in memory that the kernel writes while old segments may still point into it, so it
            // must not become a slice, and the safe `readv` takes only slices.
            let got = unsafe { libc::readv(queue.fd.as_raw_fd(), pieces.as_ptr(), pieces.len() as c_int) };
            let Ok(got) = usize::try_from(got) else {
                match last_errno() {
                    errno if is_end(errno) => self.is_gone.store(true, Ordering::Relaxed),
                    Errno::AGAIN if tally.packets == 0 => {
                        queue.doze.found_nothing();
                        return;
                    }
                    _ => {}
                }
                break;
            };
            let Some(len) = got.checked_sub(header.len()) else {
                tally.moved(0);
                tally.drop(DropReason::DeviceError);
                continue;
            };
            tally.moved(len);
            if let Some(tail_len) = len.checked_sub(HEAD_COPY + 1).map(|rest| rest + 1) {
                if tail_len == TAIL_MAX {
                    tally.drop(DropReason::BufferTooSmall);
                    continue;
                }
                // SAFETY: the range is inside the mapping, which lives as long as `self`, that is for `'r`; no
                // reference ever covers it. A later round may write it again, which a segment allows.
                // Why unsafe: a segment's promise cannot be checked by the compiler.
                let segment = unsafe { Segment::new(tail, tail_len as u32) };
                packet.tail(segment).expect("the first segment is within the bound");
                rx.used += tail_len.next_multiple_of(TAIL_ALIGN);
            } else {
                packet.shorten_head(HEAD_COPY - len);
            }
            let claim = header.first_chunk::<VNET_HEADER_LEN>().expect("the longer header holds the shorter");
            packet.commit(OffloadClaim::from_bytes(claim));
        }
    }

    fn rx_done(&self, queue: QueueIndex) {
        // Only the queue's own worker takes the lock, so it is free.
        if let Some(mut rx) = self.queue(queue).try_rx() {
            rx.used = 0;
        }
        self.queue(queue).doze.found_something();
    }

    fn tx(&self, queue: QueueIndex, batch: &mut Batch<'_>, picks: &[u8], tally: &mut Tally) {
        let fd = &self.queue(queue).fd;
        for (at, &pick) in picks.iter().enumerate() {
            if self.is_gone() {
                tally.drop_many(DropReason::PortGone, (picks.len() - at) as u32);
                return;
            }
            let pick = usize::from(pick);
            match batch.fit(pick, self.egress) {
                Fit::AsIs => {
                    let (packet, tail) = batch.frame(pick);
                    self.write(fd, packet, tail, tally);
                }
                Fit::Cut => self.write_segments(fd, batch.cut(pick, self.egress), tally),
                Fit::Drop(reason) => tally.drop(reason),
            }
        }
    }

    /// The queue's own descriptor. Watch it edge-triggered: it also shows an error for ever once the device is gone.
    fn wake_fd(&self, queue: QueueIndex) -> Option<BorrowedFd<'_>> {
        Some(self.queue(queue).fd.as_fd())
    }

    /// Nothing to ask for: the kernel signals every frame. What came before the worker slept may have given its edge
    /// already, so the answer matters; but a queue that dozes was empty, and every frame since gives an edge of its own.
    fn arm(&self, queue: QueueIndex) -> bool {
        let queue = self.queue(queue);
        !queue.doze.is_dozing() && queue.poll(PollFlags::IN).contains(PollFlags::IN)
    }

    fn disarm(&self, _queue: QueueIndex) {}

    fn may_doze(&self) -> bool {
        true
    }

    fn watched(&self, queue: QueueIndex, is_watched: bool) {
        self.queue(queue).doze.watched(is_watched);
    }

    fn is_dozing(&self, queue: QueueIndex) -> bool {
        self.queue(queue).doze.is_dozing()
    }

    fn rouse(&self, queue: QueueIndex) {
        self.queue(queue).doze.rouse();
    }
}

/// The error of the system call before, which failed.
fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

/// Private anonymous memory of [`RX_BUFFER`] bytes that no Rust reference covers. Pages come with their first use.
struct Mapping {
    base: *mut u8,
}

// SAFETY: the mapping is memory of the process, owned by this value; its users are ordered by the queue's lock.
// Why unsafe: raw pointers are not `Send` by default.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new() -> io::Result<Mapping> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
        // Why unsafe: mapping memory is unsafe in general.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                RX_BUFFER,
                access,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        Ok(Mapping { base: base.cast() })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; the port is dropped, so no segment borrows it any more.
        // Why unsafe: unmapping memory is unsafe in general.
        let outcome = unsafe { rustix::mm::munmap(self.base.cast(), RX_BUFFER) };
        debug_assert!(outcome.is_ok(), "unmapping our own mapping: {outcome:?}");
    }
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> TapError {
    |source| TapError::Io { what: what.into(), source }
}

/// Refuses what the kernel refuses (`dev_valid_name`), and `%`, which it would replace by a number.
fn check_name(name: &str) -> Result<(), TapError> {
    let is_good = (1..NAME_SIZE).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:%".contains(&byte));
    if is_good { Ok(()) } else { Err(TapError::BadName { name: name.to_owned() }) }
}

/// Opens or makes the device in the calling thread's namespace and sets it up.
///
/// Answers a descriptor for each queue, and whether the kernel knows large UDP frames. The device is not made persistent:
/// unless it was so before, it goes with its descriptors.
fn open_device(name: &str, mtu: Option<u16>, queues: u16, reopen: bool) -> Result<(Vec<OwnedFd>, bool), TapError> {
    let io = |what: &'static str| move |source: io::Error| failed(format!("{what} TAP {name:?}"))(source);
    let open = || {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        rustix::fs::open("/dev/net/tun", flags, Mode::empty())
            .map_err(|errno| failed("opening /dev/net/tun")(errno.into()))
    };
    let kind = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };

    let fd = open()?;
    match attach(&fd, name, kind | libc::IFF_TUN_EXCL) {
        // EBUSY: an interface of whatever kind has the name.
        Err(error) if is(&error, Errno::BUSY) && reopen => {
            attach(&fd, name, kind).map_err(|source| match source {
                source if is(&source, Errno::BUSY) => io("another process holds")(source),
                source if is(&source, Errno::INVAL) => not_this_kind(name, kind),
                source => io("reopening")(source),
            })?;
        }
        Err(error) if is(&error, Errno::BUSY) => return Err(TapError::NameTaken { name: name.to_owned() }),
        outcome => outcome.map_err(io("making (needs CAP_NET_ADMIN)"))?,
    }

    let header_len = VNET_HEADER_MRG_LEN as c_int;
    set_int::<{ libc::TUNSETVNETHDRSZ as Opcode }>(&fd, header_len).map_err(io("setting the header size of"))?;
    // The header is little-endian as in virtio 1, whatever this machine is.
    set_int::<{ libc::TUNSETVNETLE as Opcode }>(&fd, 1).map_err(io("setting the byte order of"))?;
    let has_uso = set_offloads(&fd).map_err(io("setting the offloads of"))?;
    // The header and the offloads are the device's, whichever queue they were set by.
    let mut fds = vec![fd];
    for _ in 1..queues {
        let fd = open()?;
        attach(&fd, name, kind).map_err(io("adding a queue to"))?;
        fds.push(fd);
    }

    let control = netns::control_socket().map_err(io("opening a socket to set up"))?;
    let mut request = InterfaceRequest::new(name);
    update::<{ libc::SIOCGIFMTU as Opcode }>(&control, &mut request).map_err(io("reading the MTU of"))?;
    let has = c_int::from_ne_bytes(std::array::from_fn(|at| request.value[at]));
    let wanted = mtu.map_or_else(|| has.min(MTU_DEFAULT.into()), c_int::from);
    if wanted != has {
        request.value[..4].copy_from_slice(&wanted.to_ne_bytes());
        update::<{ libc::SIOCSIFMTU as Opcode }>(&control, &mut request).map_err(io("setting the MTU of"))?;
    }
    let mut request = InterfaceRequest::new(name);
    update::<{ libc::SIOCGIFFLAGS as Opcode }>(&control, &mut request).map_err(io("reading the flags of"))?;
    request.set_flags(request.flags() | libc::IFF_UP as u16);
    update::<{ libc::SIOCSIFFLAGS as Opcode }>(&control, &mut request).map_err(io("bringing up"))?;
    Ok((fds, has_uso))
}

/// Why an existing interface cannot be opened as a TAP of this kind: it is of the other kind, or no TAP.
fn not_this_kind(name: &str, kind: c_int) -> TapError {
    let other = kind ^ libc::IFF_MULTI_QUEUE;
    let is_other = rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
        .is_ok_and(|fd| attach(&fd, name, other).is_ok());
    match is_other {
        true => TapError::OtherQueues { name: name.to_owned(), is_multi: other != 0 },
        false => TapError::NameTaken { name: name.to_owned() },
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    Errno::from_io_error(error) == Some(errno)
}

/// Binds the descriptor to the TAP of that name. `kind`: with `IFF_TUN_EXCL` only to a new one, with `IFF_MULTI_QUEUE` as one
/// of its queues.
fn attach(fd: &OwnedFd, name: &str, kind: c_int) -> io::Result<()> {
    let mut request = InterfaceRequest::new(name);
    request.set_flags((libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | kind) as u16);
    update::<{ libc::TUNSETIFF as Opcode }>(fd, &mut request)
}

/// Tells the kernel which frames we take unfinished, as many as it knows; answers whether it knows large UDP frames.
///
/// We take them all: what a receiver does not take whole is cut on its way out. What the kernel takes from us is not
/// negotiated: with a vnet header it finishes everything it knows. Large UDP frames it has known since it can be asked
/// for them (Linux 6.2).
fn set_offloads(fd: &OwnedFd) -> io::Result<bool> {
    const TSO: c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    const USO: c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    let set = |offloads: c_uint| set_integer::<{ libc::TUNSETOFFLOAD as Opcode }>(fd, offloads as usize);
    for offloads in [TSO | libc::TUN_F_TSO_ECN | USO, TSO | libc::TUN_F_TSO_ECN, TSO, libc::TUN_F_CSUM, 0] {
        match set(offloads) {
            Err(error) if is(&error, Errno::INVAL) => {}
            outcome => return outcome.map(|()| offloads & USO != 0),
        }
    }
    Err(Errno::INVAL.into())
}

/// `struct ifreq`: an interface's name and a value whose meaning depends on the request (netdevice(7)).
#[repr(C, align(8))]
struct InterfaceRequest {
    name: [u8; NAME_SIZE],
    value: [u8; size_of::<libc::ifreq>() - NAME_SIZE],
}

impl InterfaceRequest {
    /// About the interface `name`, which was checked.
    fn new(name: &str) -> InterfaceRequest {
        let mut request = InterfaceRequest { name: [0; _], value: [0; _] };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        request
    }

    fn flags(&self) -> u16 {
        u16::from_ne_bytes([self.value[0], self.value[1]])
    }

    fn set_flags(&mut self, flags: u16) {
        self.value[..2].copy_from_slice(&flags.to_ne_bytes());
    }
}

/// An ioctl that reads and writes a `struct ifreq`: TUNSETIFF, TUNGETIFF and the SIOC family.
fn update<const OPCODE: Opcode>(fd: &OwnedFd, request: &mut InterfaceRequest) -> io::Result<()> {
    // SAFETY: all callers (in this file) name requests that take a pointer to `struct ifreq`, whose size ours has.
    // Why unsafe: the type system does not know what an ioctl does with its pointer.
    Ok(unsafe { ioctl(fd, Updater::<OPCODE, InterfaceRequest>::new(request)) }?)
}

/// The namespace in which the device is now (`TUNGETDEVNETNS`, Linux 5.2).
fn namespace_of(fd: &OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: the request reads no argument; what it answers is -1 or a new descriptor, which nobody else knows.
    // Why unsafe: the type system knows neither what an ioctl does nor whose a descriptor is.
    unsafe {
        let netns = libc::ioctl(fd.as_raw_fd(), TUNGETDEVNETNS);
        if netns < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(netns)) }
    }
}

/// An ioctl that reads an `int` through a pointer: TUNSETVNETHDRSZ, TUNSETVNETLE.
fn set_int<const OPCODE: Opcode>(fd: &OwnedFd, value: c_int) -> io::Result<()> {
    // SAFETY: all callers (in this file) name requests that read one `int`.
    // Why unsafe: the type system does not know what an ioctl does with its pointer.
    Ok(unsafe { ioctl(fd, Setter::<OPCODE, c_int>::new(value)) }?)
}

/// An ioctl whose argument is the number itself: TUNSETPERSIST, TUNSETOFFLOAD.
fn set_integer<const OPCODE: Opcode>(fd: &OwnedFd, value: usize) -> io::Result<()> {
    // SAFETY: all callers (in this file) name requests that take a number and follow no pointer.
    // Why unsafe: the type system does not know whether an ioctl takes its argument for a pointer.
    Ok(unsafe { ioctl(fd, IntegerSetter::<OPCODE>::new_usize(value)) }?)
}

/// A tail in memory that cannot be read, as when a guest cuts its memory file short; never unmapped.
#[cfg(test)]
fn unreadable() -> Segment<'static> {
    // SAFETY: the range is mapped for ever, only without access; the test hands it to a system call and reads nothing.
    // Why unsafe: mapping memory and promising a segment are.
    unsafe {
        let base = rustix::mm::mmap_anonymous(std::ptr::null_mut(), 4096, ProtFlags::empty(), MapFlags::PRIVATE);
        Segment::new(base.expect("a page of addresses").cast(), 4096)
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests;
