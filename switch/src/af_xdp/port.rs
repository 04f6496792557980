//! A network interface that somebody else made, as a port, by AF_XDP: one socket on each of its queues, and a program that sends
//! our frames there before the host's stack sees them.
//!
//! What comes in stays where the kernel put it until the round is over: the head is copied, the tail is a part of the frame.
//! What goes out is copied into a frame of the device's memory, with its checksum finished and cut to size, for AF_XDP has
//! no word for work that is left; likewise what comes in from a device of software is looked at for such work
//! ([`super::partial`]).
//!
//! What makes it harder than it looks: nothing says that the interface went down or away but the call that wakes the kernel
//! to send, and that call sends only some frames at a time. So what it leaves is remembered and sent by the queue's rx,
//! which is called every round; a burst that a device was given just as it went down waits in its ring, as it would in any
//! device, and those after it are dropped. The kernel's own bound for frames is not told either: frames over the MTU are
//! dropped here, by what the control side last saw of it.
//!
//! Bounds: [`QUEUES_MAX`] queues, each with the memory of [`super::RING_LEN`] frames each way; frames of up to
//! [`PIECES_MAX`] pieces. Frames lost for want of room are counted as `rx_ring_full`, by the kernel's word
//! every so many bursts ([`super::queue`]) and before the worker sleeps.

use super::bpf::{Link, SocketMap};
use super::frames::{RxFrames, TxFrames};
use super::program::{self, Steered, Steering, Unclaimed};
use super::queue::Queue;
use super::{Bound, KERNEL_HEADROOM, RING_LEN, XdpSocket, partial, refill};
use crate::af_packet::{Promiscuity, RawSocketError};
use crate::batch::{BURST, Batch, Fit};
use crate::ids::{PortIndex, QUEUES_MAX, QueueIndex};
use crate::ledger::{DropReason, Tally};
use crate::link::LinkStatus;
use crate::offload::{EgressOffloads, OffloadClaim};
use crate::packet::{HEAD_COPY, HEAD_MAX, Packet, SEGMENTS_MAX};
use crate::port::Port;
use crate::segment::{Segment, SegmentMut};
use crate::sync::{AtomicBool, AtomicU32, Ordering};
use crossbeam_utils::CachePadded;
use rustix::fd::{AsFd, BorrowedFd};
use std::io;
use std::sync::Arc;

/// Bytes of a frame of memory where no frame of the interface is longer than one, and elsewhere.
const SMALL_FRAME: u32 = 2048;
const LARGE_FRAME: u32 = 4096;
/// Ethernet header, and one VLAN tag.
const ETHERNET_LEN: usize = 14;
const TAG_LEN: usize = 4;
/// Pieces that the kernel sends as one frame: `MAX_SKB_FRAGS` (linux/skbuff.h), which no config makes smaller, and the first.
const PIECES_MAX: usize = 17;
const _: () = assert!(PIECES_MAX * LARGE_FRAME as usize >= 65_536 + ETHERNET_LEN + 2 * TAG_LEN);
const _: () = assert!(SEGMENTS_MAX * (LARGE_FRAME - KERNEL_HEADROOM) as usize >= 65_536 + ETHERNET_LEN + 2 * TAG_LEN);
/// Bytes that the headers of a tunnel over IPv6, with a few options, and those of an inner frame take.
const TUNNEL_HEAD: usize = 256;
const _: () = assert!(TUNNEL_HEAD <= HEAD_MAX);
/// Frames whose fronts are asked for before they are read.
const PREFETCH: u32 = 2;
const _: () = assert!(RING_LEN as usize >= 2 * BURST, "a burst never empties the fill ring");

/// An interface's AF_XDP sockets as the workers see them.
pub(crate) struct XdpPort {
    /// Detaches the program when the port goes; before the sockets, so that frames go to the host again.
    _link: Link,
    queues: Box<[CachePadded<Queue>]>,
    /// Bytes of L3 payload that the interface takes; followed by the control side.
    mtu: Arc<AtomicU32>,
    /// Whether senders may leave work to the device.
    is_software: bool,
    /// Whether tunnels end here, and the UDP ports of those that have one.
    has_tunnels: bool,
    tunnel_ports: Vec<u16>,
    is_native: bool,
    /// Set for ever once the kernel said that the interface no longer exists.
    is_gone: AtomicBool,
    _steered: Steered,
    _promiscuity: Option<Promiscuity>,
}

/// How the port came about.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct XdpConfig {
    /// What of the interface is ours.
    pub(crate) steering: Steering,
    /// Has the kernel's own stack run the program although the driver could.
    pub(crate) is_generic: bool,
}

impl XdpPort {
    /// Opens the interface in the calling thread's namespace. Needs CAP_NET_RAW, CAP_NET_ADMIN, CAP_BPF and CAP_IPC_LOCK.
    ///
    /// # Errors
    /// [`RawSocketError`].
    pub(crate) fn open(status: &LinkStatus, config: &XdpConfig) -> Result<XdpPort, RawSocketError> {
        let io = |what| move |source: io::Error| RawSocketError::Io { what, source };
        let sockets = SocketMap::new(QUEUES_MAX).map_err(io("making a map of sockets (needs CAP_BPF)"))?;
        let steered = program::load(&config.steering, &sockets, Unclaimed::Pass)
            .map_err(io("loading the XDP program (needs CAP_BPF and CAP_NET_ADMIN)"))?;
        let program = &steered.program;
        let link = if config.is_generic { program.attach_generic(status.index) } else { program.attach(status.index) };
        let link = link.map_err(io("attaching the XDP program to the interface"))?;
        // Frames go to the host until their queue has a socket. Which size they have depends on who runs the program: the kernel's
        // own stack has large ones, which must not fall into more pieces than a packet may have.
        let is_large = !link.is_native
            || status.mtu as usize + ETHERNET_LEN + 2 * TAG_LEN > (SMALL_FRAME - KERNEL_HEADROOM) as usize;
        let frame_size = if is_large { LARGE_FRAME } else { SMALL_FRAME };
        let mut queues = Vec::new();
        while let Bound::Socket(socket) = XdpSocket::open(status.index, queues.len() as u32, frame_size, is_large)? {
            if queues.len() == QUEUES_MAX {
                // The program would let its frames pass to the host: to lose part of the traffic is worse than none.
                return Err(RawSocketError::TooManyQueues { name: status.name.clone() });
            }
            queues.push(CachePadded::new(Queue::new(*socket)));
        }
        if queues.is_empty() {
            return Err(io("binding an AF_XDP socket to the interface")(io::ErrorKind::Unsupported.into()));
        }
        for (queue, number) in queues.iter().zip(0..) {
            sockets.set(number, queue.socket.as_fd()).map_err(io("putting a socket into the map"))?;
        }
        let wants_all = match &config.steering {
            // Frames for the addresses behind the port are wanted, not only the device's own.
            Steering::Everything | Steering::Exclusive(_) => true,
            Steering::Only(ours) => !ours.vlans.is_empty(),
        };
        let promiscuity = if wants_all { Some(Promiscuity::open(&status.name, status.index)?) } else { None };
        Ok(XdpPort {
            is_native: link.is_native,
            _link: link,
            queues: queues.into(),
            mtu: Arc::new(AtomicU32::new(status.mtu)),
            // A driver of hardware tells no kind; it also finishes or checks what it receives.
            is_software: !status.kind.is_empty(),
            has_tunnels: config.steering.has_tunnels(),
            tunnel_ports: config.steering.tunnel_ports(),
            is_gone: AtomicBool::new(false),
            _steered: steered,
            _promiscuity: promiscuity,
        })
    }

    /// Where the control side writes the interface's MTU, bytes of L3 payload.
    pub(crate) fn mtu(&self) -> Arc<AtomicU32> {
        self.mtu.clone()
    }

    /// How its frames cross, for people: by whom the program is run, and who copies.
    pub(crate) fn mode(&self) -> &'static str {
        match (self.is_native, self.queues.iter().all(|queue| queue.mode.is_zero_copy)) {
            (true, true) => "native, zero copy",
            (true, false) => "native, copy",
            (false, _) => "generic, copy",
        }
    }

    fn queue(&self, index: QueueIndex) -> &Queue {
        &self.queues[index.as_usize()]
    }

    fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Relaxed)
    }

    /// Bytes of the longest frame that the interface takes, without a tag.
    fn frame_max(&self) -> usize {
        self.mtu.load(Ordering::Relaxed) as usize + ETHERNET_LEN
    }

    /// Has the kernel send what is in the ring of a queue.
    fn push_out(&self, queue: &Queue) {
        if queue.push_out().is_err() {
            self.is_gone.store(true, Ordering::Relaxed);
        }
    }

    /// Takes one frame that has this many pieces into the batch, which has room.
    #[inline]
    fn take<'r>(
        &'r self,
        queue: &'r Queue,
        rx: &mut RxFrames,
        pieces: u32,
        at: (PortIndex, QueueIndex),
        batch: &mut Batch<'r>,
        tally: &mut Tally,
    ) {
        if pieces > 1 {
            return self.take_pieces(queue, rx, pieces, at, batch, tally);
        }
        let Some(piece) = rx.take() else {
            tally.moved(0);
            return tally.drop(DropReason::DeviceError);
        };
        tally.moved(piece.len);
        let frame = queue.area.segment(piece.at, piece.len);
        assert!(batch.put(at.0, at.1, frame, OffloadClaim::default()), "the batch has room");
        self.guess(batch);
    }

    /// The same for one that lies in several.
    #[cold]
    fn take_pieces<'r>(
        &'r self,
        queue: &'r Queue,
        rx: &mut RxFrames,
        pieces: u32,
        at: (PortIndex, QueueIndex),
        batch: &mut Batch<'r>,
        tally: &mut Tally,
    ) {
        let mut packet = batch.start(at.0, at.1).expect("the batch has room");
        let (mut fault, mut len) = (None, 0);
        for number in 0..pieces {
            // Each is taken, whatever becomes of the frame.
            let Some(piece) = rx.take() else {
                fault = Some(DropReason::DeviceError);
                continue;
            };
            len += piece.len;
            let mut rest = queue.area.segment(piece.at, piece.len);
            if number == 0 {
                let room = packet.head(piece.len.min(HEAD_COPY)).expect("an empty head holds HEAD_COPY bytes");
                let copied = rest.read(room);
                rest = rest.skip(copied as u32);
            }
            if fault.is_none() && !rest.is_empty() {
                fault = packet.tail(rest).err();
            }
        }
        tally.moved(len);
        match fault {
            Some(reason) => tally.drop(reason),
            None => {
                // The first piece may be shorter than a head must be.
                packet.commit(OffloadClaim::default());
                let last = batch.len() - 1;
                batch.pull(last, HEAD_COPY).expect("a head holds as much");
                self.guess(batch);
            }
        }
    }

    /// Finds out what the sender of the frame that was taken last left to do.
    #[inline]
    fn guess(&self, batch: &mut Batch<'_>) {
        if !self.is_software {
            return;
        }
        if self.has_tunnels {
            batch.pull(batch.len() - 1, TUNNEL_HEAD).expect("a head holds as much");
        }
        if let Some(packet) = batch.packets_mut().last_mut() {
            let tunnels = self.has_tunnels.then_some(&self.tunnel_ports[..]);
            let mtu = self.mtu.load(Ordering::Relaxed) as usize;
            packet.claim = partial::claim(packet.head(), packet.len(), mtu, tunnels);
        }
    }

    /// Whether so many pieces can be put; the kernel is asked to take what is there already if they cannot.
    #[inline]
    fn has_room(&self, queue: &Queue, tx: &mut TxFrames, pieces: usize, may_wait: &mut bool) -> bool {
        tx.has_room(pieces) || *may_wait && self.make_room(queue, tx, pieces, may_wait)
    }

    /// As when a large frame is cut into more than the ring holds. Once it did not help, not again for this burst.
    #[cold]
    fn make_room(&self, queue: &Queue, tx: &mut TxFrames, pieces: usize, may_wait: &mut bool) -> bool {
        tx.publish();
        self.push_out(queue);
        tx.reap();
        *may_wait = tx.has_room(pieces);
        *may_wait
    }

    /// Puts one frame into the tx ring.
    #[inline]
    fn put(
        &self,
        queue: &Queue,
        tx: &mut TxFrames,
        (packet, tail): (&Packet, &[Segment<'_>]),
        may_wait: &mut bool,
        tally: &mut Tally,
    ) {
        let len = packet.len();
        if len > self.frame_max() && !is_tagged_and_fits(packet, len, self.frame_max()) {
            return tally.drop(DropReason::OverMtu);
        }
        let pieces = tx.count_for(len);
        if len < ETHERNET_LEN {
            return tally.drop(DropReason::Truncated);
        }
        if pieces > 1 && (!queue.mode.has_pieces || pieces > PIECES_MAX) {
            return tally.drop(DropReason::BufferTooSmall);
        }
        if !self.has_room(queue, tx, pieces, may_wait) {
            return tally.drop(DropReason::RxRingFull);
        }
        if pieces == 1 {
            tx.put(len, false, |at| {
                let mut room = queue.area.segment_mut(at, len);
                room.write(packet.head());
                for segment in tail {
                    room.write_from(segment);
                }
            });
        } else {
            put_pieces(queue, tx, packet, tail);
        }
        tally.moved(len);
    }
}

/// Whether a frame is over the MTU only by its VLAN tag, which does not count.
#[cold]
fn is_tagged_and_fits(packet: &Packet, len: usize, frame_max: usize) -> bool {
    let is_tagged = matches!(packet.head().get(12..14), Some([0x81, 0x00] | [0x88, 0xa8]));
    is_tagged && len <= frame_max + TAG_LEN
}

/// Puts a frame that is longer than one of the memory's into several.
#[cold]
fn put_pieces(queue: &Queue, tx: &mut TxFrames, packet: &Packet, tail: &[Segment<'_>]) {
    let mut sources = std::iter::once(Segment::from(packet.head())).chain(tail.iter().copied());
    let mut source = Segment::default();
    let mut left = packet.len();
    while left > 0 {
        let len = left.min(queue.layout.frame_size as usize);
        left -= len;
        tx.put(len, left > 0, |at| {
            let mut room: SegmentMut<'_> = queue.area.segment_mut(at, len);
            while !room.is_empty() {
                if source.is_empty() {
                    match sources.next() {
                        Some(next) => source = next,
                        None => break,
                    }
                }
                let written = room.write_from(&source);
                source = source.skip(written);
            }
        });
    }
}

impl Port for XdpPort {
    fn rx_queues(&self) -> u16 {
        self.queues.len() as u16
    }

    fn tx_queues(&self) -> u16 {
        self.queues.len() as u16
    }

    fn rx<'r>(&'r self, ingress: PortIndex, index: QueueIndex, batch: &mut Batch<'r>, tally: &mut Tally) {
        let queue = self.queue(index);
        if queue.has_unsent.load(Ordering::Relaxed) {
            self.push_out(queue);
        }
        let Some(mut guard) = queue.try_rx() else { return };
        let rx = &mut *guard;
        if queue.lost_untold.load(Ordering::Relaxed) > 0 {
            let lost = queue.lost_untold.swap(0, Ordering::Relaxed).min(u64::from(u32::MAX)) as u32;
            tally.moved_many(lost as usize, 0);
            tally.drop_many(DropReason::RxRingFull, lost);
        }
        let before = tally.packets;
        // Bounded even if every frame is one we cannot carry, which leaves room in the batch.
        for _ in 0..BURST {
            if batch.room() == 0 {
                break;
            }
            let Some(pieces) = rx.frames.next_pieces() else { break };
            if let Some(at) = rx.frames.ahead(PREFETCH) {
                queue.area.segment(at, 0).prefetch_front();
            }
            self.take(queue, &mut rx.frames, pieces, (ingress, index), batch, tally);
        }
        if tally.packets > before {
            rx.look_in -= 1;
            if rx.look_in == 0 {
                queue.look_at_losses(rx);
            }
        }
    }

    fn rx_done(&self, index: QueueIndex) {
        let queue = self.queue(index);
        // Only the queue's own worker takes the lock, so it is free.
        let wants_wakeup = queue.try_rx().is_some_and(|mut rx| rx.frames.give_back());
        if wants_wakeup {
            refill(queue.socket.as_fd());
        }
    }

    fn tx(&self, index: QueueIndex, batch: &mut Batch<'_>, picks: &[u8], tally: &mut Tally) {
        let queue = self.queue(index);
        let all = |tally: &mut Tally, reason| tally.drop_many(reason, picks.len() as u32);
        if queue.is_down.load(Ordering::Relaxed) {
            self.push_out(queue);
            if queue.is_down.load(Ordering::Relaxed) && !self.is_gone() {
                return all(tally, DropReason::NotReady);
            }
        }
        if self.is_gone() {
            return all(tally, DropReason::PortGone);
        }
        let Some(mut tx) = queue.lock_tx() else { return all(tally, DropReason::TxContended) };
        tx.reap();
        let mut may_wait = true;
        for &pick in picks {
            let pick = usize::from(pick);
            match batch.fit(pick, EgressOffloads::default()) {
                Fit::AsIs => {
                    self.put(queue, &mut tx, batch.look(pick), &mut may_wait, tally);
                }
                Fit::Cut => {
                    let mut cut = batch.cut(pick, EgressOffloads::default());
                    tally.cut_into(cut.count());
                    while let Some(segment) = cut.next_segment() {
                        self.put(queue, &mut tx, segment, &mut may_wait, tally);
                    }
                }
                Fit::Drop(reason) => tally.drop(reason),
            }
        }
        tx.publish();
        // Without the lock: the kernel has one of its own for this, and copies every frame under it.
        drop(tx);
        self.push_out(queue);
    }

    /// The socket. Watch it edge-triggered: it also shows an error for ever once the interface is gone.
    fn wake_fd(&self, index: QueueIndex) -> Option<BorrowedFd<'_>> {
        Some(self.queue(index).socket.as_fd())
    }

    /// Nothing to ask for: the kernel signals every frame. A queue that has frames to send left stays awake.
    fn arm(&self, index: QueueIndex) -> bool {
        let queue = self.queue(index);
        if queue.has_unsent.load(Ordering::Relaxed) && !queue.is_down.load(Ordering::Relaxed) && !self.is_gone() {
            return true;
        }
        let Some(mut rx) = queue.try_rx() else { return true };
        queue.look_at_losses(&mut rx);
        !rx.frames.is_empty() || queue.lost_untold.load(Ordering::Relaxed) > 0
    }

    fn disarm(&self, _queue: QueueIndex) {}
}
