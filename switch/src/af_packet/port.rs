//! A network interface that somebody else made, as a port, by packet sockets: what it receives comes into the switch, and what
//! the switch sends it leaves by it.
//!
//! Frames pass with a `virtio_net_hdr` both ways (`PACKET_VNET_HDR`), so that checksums stay partial and TCP stays uncut
//! between a container and a guest. What makes it harder than it looks: the kernel takes VLAN tags out of the frames it
//! shows, so they are put back; frames that the host itself sends by the interface are not for us (`PACKET_IGNORE_OUTGOING`);
//! an error of one direction would be told to the other, so each has a socket of its own; and an offload that the header
//! has no words for costs the frame, which is counted.
//!
//! One system call receives a burst, which may bring more bytes than a round may take: the rest waits in its slots for the
//! next one. As the slots are all lent out until the round is over, a round receives once. Another receives nothing while
//! the worker watches an empty socket (`doze.rs`). Bounds: [`BURST`] slots of [`SLOT_STRIDE`] bytes, of which small frames
//! touch a page each; [`RECEIVE_BUFFER`] bytes of frames wait in the kernel, what comes beyond is counted as `rx_ring_full`.

use super::{EVERY_PROTOCOL, Inbox, NO_PROTOCOL, RawSocket};
use super::{PACKET_AUXDATA, send_frames, send_packets, switch_on};
use crate::batch::{BURST, Batch, Fit};
use crate::doze::Doze;
use crate::ids::{PortIndex, QueueIndex};
use crate::interface::InterfaceError;
use crate::ledger::{DropReason, Tally};
use crate::offload::{EgressOffloads, F_NEEDS_CSUM, OffloadClaim, VNET_HEADER_LEN};
use crate::pool::Area;
use crate::port::Port;
use crate::segment::Segment;
use crate::segmentation::Segmenter;
use crate::sync::{AtomicBool, Ordering};
use crate::worker::ROUND_BYTES;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;
use rustix::net::sockopt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

/// Bytes of frames that wait in the kernel for the switch, its books about them included: some hundred large frames.
const RECEIVE_BUFFER: usize = 8 << 20;
/// The same for frames that the device has not yet sent.
const SEND_BUFFER: usize = 4 << 20;
/// Bytes of a VLAN tag, and of the addresses before it.
const TAG_SIZE: usize = 4;
const ADDRESSES_SIZE: usize = 12;
/// Where a frame begins in its slot; its vnet header ends there.
const FRAME_AT: usize = 16;
const _: () = assert!(FRAME_AT >= VNET_HEADER_LEN, "a header, or the bytes by which a tag moves the addresses");
/// Longest frame: a GSO packet of 65,536 bytes (`GSO_LEGACY_MAX_SIZE`) with its Ethernet header and two tags.
const FRAME_MAX: usize = 65_536 + 14 + 2 * TAG_SIZE;
/// Slots begin an odd number of cache lines apart, so that the fronts of a burst do not all fall into one set of the cache.
const SLOT_STRIDE: usize = (FRAME_AT + FRAME_MAX).next_multiple_of(128) + 64;

/// What the kernel does with large UDP frames of ours it has known since Linux 6.2 (`VIRTIO_NET_HDR_GSO_UDP_L4`).
const USO_SINCE: (u32, u32) = (6, 2);

/// An interface's packet sockets as the workers see them.
pub(crate) struct PacketPort {
    doze: Doze,
    /// Hears the interface.
    receiver: RawSocket,
    /// Speaks to it and hears nothing.
    sender: RawSocket,
    area: Arc<Area>,
    rx: Mutex<RxQueue>,
    egress: EgressOffloads,
    /// Set for ever once the kernel said that the interface no longer exists.
    is_gone: AtomicBool,
}

/// The frames that were received last.
struct RxQueue {
    inbox: Inbox,
    /// Slots `next..filled` hold frames that no round has taken yet.
    next: usize,
    filled: usize,
    /// Whether slots before `next` hold tails of this round.
    is_lent: bool,
    /// Frames to receive at once: fewer than a burst while they are large.
    ahead: usize,
    /// Frames that the kernel has lost, as far as they were counted.
    lost: u32,
}

impl PacketPort {
    /// Opens the interface of that name in the calling thread's namespace. Needs CAP_NET_RAW and, for large buffers,
    /// CAP_NET_ADMIN.
    ///
    /// # Errors
    /// [`InterfaceError`].
    pub(crate) fn open(interface: &str) -> Result<PacketPort, InterfaceError> {
        let io = |what| move |source: io::Error| InterfaceError::Io { what, source };
        let receiver = RawSocket::open_prepared(interface, EVERY_PROTOCOL, |socket| {
            switch_on(socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR)?;
            switch_on(socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING)?;
            switch_on(socket, libc::SOL_PACKET, PACKET_AUXDATA)?;
            switch_on(socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL)?;
            Ok(sockopt::set_socket_recv_buffer_size_force(socket, RECEIVE_BUFFER)?)
        })?;
        let sender = RawSocket::open_prepared(interface, NO_PROTOCOL, |socket| {
            switch_on(socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR)?;
            Ok(sockopt::set_socket_send_buffer_size_force(socket, SEND_BUFFER)?)
        })?;
        if receiver.interface_index() != sender.interface_index() {
            return Err(InterfaceError::NoInterface { name: interface.to_owned() });
        }
        // Frames for the addresses behind the port are wanted, not only the device's own.
        receiver.listen_for_all()?;
        let area = Arc::new(Area::new(BURST * SLOT_STRIDE).map_err(io("mapping a receive buffer"))?);
        let header_at = FRAME_AT - VNET_HEADER_LEN;
        let inbox = Inbox::new(area.clone(), header_at, VNET_HEADER_LEN + FRAME_MAX, SLOT_STRIDE);
        Ok(PacketPort {
            doze: Doze::default(),
            receiver,
            sender,
            area,
            rx: Mutex::new(RxQueue { inbox, next: 0, filled: 0, is_lent: false, ahead: BURST, lost: 0 }),
            egress: EgressOffloads { checksum: true, tso4: true, tso6: true, ecn: true, uso: kernel() >= USO_SINCE },
            is_gone: AtomicBool::new(false),
        })
    }

    /// The interface's index.
    pub(crate) fn interface_index(&self) -> u32 {
        self.receiver.interface_index()
    }

    fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Relaxed)
    }

    /// The rx side; `None` if another thread has it, as may be for a moment when the queue changes its worker.
    fn try_rx(&self) -> Option<MutexGuard<'_, RxQueue>> {
        match self.rx.try_lock() {
            Ok(rx) => Some(rx),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Whether the socket has frames.
    fn has_frames(&self) -> bool {
        let mut fds = [PollFd::new(&self.receiver, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok() && fds[0].revents().contains(PollFlags::IN)
    }

    /// Receives up to `count` frames to slots that nobody holds; false if there are none.
    fn receive(&self, rx: &mut RxQueue, count: usize, tally: &mut Tally) -> bool {
        let received = match rx.inbox.receive(self.receiver.as_fd(), count.min(rx.ahead)) {
            Ok(received) => received,
            Err(error) => {
                match Errno::from_io_error(&error) {
                    Some(Errno::AGAIN) => self.doze.found_nothing(),
                    // An offload that a `virtio_net_hdr` cannot tell, such as a cut within a tunnel.
                    Some(Errno::INVAL) => {
                        tally.moved(0);
                        tally.drop(DropReason::BadOffload);
                    }
                    // ENETDOWN, once after it went down or away: what became of it is found out by the control side.
                    _ => {}
                }
                return false;
            }
        };
        (rx.next, rx.filled) = (0, received);
        let bytes: usize = (0..received).map(|slot| rx.inbox.arrival(slot).len).sum();
        // What a round may not take would only push other things out of the cache.
        rx.ahead = if bytes > ROUND_BYTES { (received * ROUND_BYTES / bytes).max(1) } else { BURST };
        received > 0
    }

    /// Takes the frame of the next slot into the batch, which has room.
    fn take<'r>(
        &'r self,
        rx: &mut RxQueue,
        ingress: PortIndex,
        index: QueueIndex,
        batch: &mut Batch<'r>,
        tally: &mut Tally,
    ) {
        let base = rx.next * SLOT_STRIDE + FRAME_AT;
        let arrival = rx.inbox.arrival(rx.next);
        rx.next += 1;
        if let Some(lost) = arrival.lost.filter(|&lost| lost != rx.lost) {
            let more = lost.wrapping_sub(rx.lost);
            rx.lost = lost;
            tally.moved_many(more as usize, 0);
            tally.drop_many(DropReason::RxRingFull, more);
        }
        let Some(len) = arrival.len.checked_sub(VNET_HEADER_LEN) else {
            tally.moved(0);
            tally.drop(DropReason::DeviceError);
            return;
        };
        if arrival.is_cut {
            tally.moved(len);
            tally.drop(DropReason::BufferTooSmall);
            return;
        }
        let mut header = [0; VNET_HEADER_LEN];
        self.area.segment(base - VNET_HEADER_LEN, VNET_HEADER_LEN).read(&mut header);
        let mut claim = OffloadClaim::from_bytes(&header);
        let frame = match arrival.tag.filter(|_| len >= ADDRESSES_SIZE) {
            None => self.area.segment(base, len),
            Some(tag) => {
                if claim.flags & F_NEEDS_CSUM != 0 {
                    claim.csum_start = claim.csum_start.wrapping_add(TAG_SIZE as u16);
                }
                self.put_tag_back(base, len, tag)
            }
        };
        tally.moved(frame.len() as usize);
        rx.is_lent = true;
        assert!(batch.put(ingress, index, frame, claim), "the batch has room");
    }

    /// Puts the tag behind the addresses of the frame at `base`, which are moved forward for it; answers the longer frame.
    fn put_tag_back(&self, base: usize, len: usize, (tpid, tci): (u16, u16)) -> Segment<'_> {
        let mut front = [0; ADDRESSES_SIZE + TAG_SIZE];
        self.area.segment(base, ADDRESSES_SIZE).read(&mut front[..ADDRESSES_SIZE]);
        front[ADDRESSES_SIZE..][..2].copy_from_slice(&tpid.to_be_bytes());
        front[ADDRESSES_SIZE + 2..].copy_from_slice(&tci.to_be_bytes());
        self.area.segment_mut(base - TAG_SIZE, front.len()).write(&front);
        self.area.segment(base - TAG_SIZE, len + TAG_SIZE)
    }

    /// Sends picks that the kernel takes as they are.
    fn send(&self, batch: &Batch<'_>, mut picks: &[u8], tally: &mut Tally) {
        while !picks.is_empty() {
            let sent = match send_packets(self.sender.as_fd(), batch, picks) {
                Ok(sent) => {
                    for &pick in &picks[..sent] {
                        tally.moved(batch.packets()[usize::from(pick)].len());
                    }
                    sent
                }
                Err(error) => self.refused(&error, picks.len(), tally),
            };
            picks = &picks[sent..];
        }
    }

    /// Sends a frame that the kernel does not take whole, in segments.
    #[cold]
    fn send_segments(&self, mut cut: Segmenter<'_, '_>, tally: &mut Tally) {
        tally.cut_into(cut.count());
        while let Some((packet, tail)) = cut.next_segment() {
            let len = packet.len();
            match send_frames(self.sender.as_fd(), std::iter::once((packet, tail))) {
                Ok(_) => tally.moved(len),
                Err(error) => {
                    self.refused(&error, 1, tally);
                }
            }
        }
    }

    /// Counts a frame that was refused, or all `waiting` ones if the reason holds for them too; answers how many.
    #[cold]
    fn refused(&self, error: &io::Error, waiting: usize, tally: &mut Tally) -> usize {
        let (reason, count) = match Errno::from_io_error(error) {
            // The send buffer is full.
            Some(Errno::AGAIN) => (DropReason::RxRingFull, waiting),
            // The interface's queue refused this one.
            Some(Errno::NOBUFS | Errno::NOMEM) => (DropReason::RxRingFull, 1),
            Some(Errno::NETDOWN) => (DropReason::NotReady, waiting),
            Some(Errno::MSGSIZE) => (DropReason::OverMtu, 1),
            Some(Errno::NXIO | Errno::NODEV) => {
                self.is_gone.store(true, Ordering::Relaxed);
                (DropReason::PortGone, waiting)
            }
            // Also EFAULT: a guest's memory vanished under the copy.
            _ => (DropReason::DeviceError, 1),
        };
        tally.drop_many(reason, count as u32);
        count
    }
}

/// The running kernel's version; 0.0 if it does not say.
fn kernel() -> (u32, u32) {
    let name = rustix::system::uname();
    let mut numbers = name.release().to_str().unwrap_or_default().split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|number| number.parse().ok()).unwrap_or(0);
    (next(), next())
}

impl Port for PacketPort {
    fn rx_queues(&self) -> u16 {
        1
    }

    fn tx_queues(&self) -> u16 {
        1
    }

    fn rx<'r>(&'r self, ingress: PortIndex, index: QueueIndex, batch: &mut Batch<'r>, tally: &mut Tally) {
        if self.doze.is_dozing() {
            return;
        }
        let Some(mut rx) = self.try_rx() else { return };
        let room = batch.room();
        if room == 0 || rx.next == rx.filled && (rx.is_lent || !self.receive(&mut rx, room, tally)) {
            return;
        }
        while rx.next < rx.filled && batch.room() > 0 {
            self.take(&mut rx, ingress, index, batch, tally);
        }
    }

    fn rx_done(&self, _queue: QueueIndex) {
        // Only the queue's own worker takes the lock, so it is free.
        if let Some(mut rx) = self.try_rx() {
            rx.is_lent = false;
        }
        self.doze.found_something();
    }

    fn tx(&self, _queue: QueueIndex, batch: &mut Batch<'_>, picks: &[u8], tally: &mut Tally) {
        let mut at = 0;
        while at < picks.len() {
            let first = at;
            let mut unfit = Fit::AsIs;
            while at < picks.len() && unfit == Fit::AsIs {
                unfit = batch.fit(usize::from(picks[at]), self.egress);
                at += usize::from(unfit == Fit::AsIs);
            }
            if self.is_gone() {
                tally.drop_many(DropReason::PortGone, (picks.len() - first) as u32);
                return;
            }
            self.send(batch, &picks[first..at], tally);
            match unfit {
                Fit::AsIs => {}
                Fit::Cut => self.send_segments(batch.cut(usize::from(picks[at]), self.egress), tally),
                Fit::Drop(reason) => tally.drop(reason),
            }
            at += usize::from(unfit != Fit::AsIs);
        }
    }

    /// The receiving socket. Watch it edge-triggered: it also shows that the interface went down.
    fn wake_fd(&self, _queue: QueueIndex) -> Option<BorrowedFd<'_>> {
        Some(self.receiver.as_fd())
    }

    /// Nothing to ask for: the kernel signals every frame. What came before the worker slept may have given its edge
    /// already, so the answer matters; but a queue that dozes was empty, and every frame since gives an edge of its own.
    fn arm(&self, _queue: QueueIndex) -> bool {
        let has_taken = self.try_rx().is_none_or(|rx| rx.next < rx.filled);
        has_taken || !self.doze.is_dozing() && self.has_frames()
    }

    fn disarm(&self, _queue: QueueIndex) {}

    fn may_doze(&self) -> bool {
        true
    }

    fn watched(&self, _queue: QueueIndex, is_watched: bool) {
        self.doze.watched(is_watched);
    }

    fn is_dozing(&self, _queue: QueueIndex) -> bool {
        self.doze.is_dozing()
    }

    fn rouse(&self, _queue: QueueIndex) {
        self.doze.rouse();
    }
}
