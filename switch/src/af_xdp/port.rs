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
use super::ethtool::{Ethtool, TagsStay};
use super::frames::RxFrames;
use super::pool::Seat;
use super::program::{self, Steered, Steering, Unclaimed};
use super::queue::Queue;
use super::queue_watch::QueueWatch;
use super::tx::Burst;
use super::{Bound, KERNEL_HEADROOM, PIECES_MAX, RING_LEN, XdpSocket, partial, refill};
use crate::af_packet::Promiscuity;
use crate::batch::{BURST, Batch, Fit};
use crate::ids::{PortIndex, QUEUES_MAX, QueueIndex};
use crate::interface::InterfaceError;
use crate::ledger::{DropReason, Tally};
use crate::link::LinkStatus;
use crate::offload::{EgressOffloads, OffloadClaim};
use crate::packet::{HEAD_COPY, HEAD_MAX, SEGMENTS_MAX};
use crate::port::Port;
use crate::sync::{AtomicBool, AtomicU32, Ordering};
use crossbeam_utils::CachePadded;
use rustix::fd::{AsFd, BorrowedFd};
use std::io;
use std::sync::Arc;

/// Bytes of a frame of memory where no frame of the interface is longer than one, and elsewhere.
const SMALL_FRAME: u32 = 2048;
const LARGE_FRAME: u32 = 4096;
/// Ethernet header, and one VLAN tag.
pub(super) const ETHERNET_LEN: usize = 14;
pub(super) const TAG_LEN: usize = 4;
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
    /// How many of them the interface sends by.
    tx_queues: u16,
    _tags: Option<TagsStay>,
    /// Whether the device takes VLAN tags out of frames and does not let itself be told otherwise.
    are_tags_lost: bool,
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
    queue_watch: Arc<QueueWatch>,
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

/// A socket on each of the interface's queues, of which it says it has `count`; if that `is_exact`, on each of so many.
fn open_queues(
    status: &LinkStatus,
    count: u32,
    is_exact: bool,
    frame_size: u32,
    is_large: bool,
) -> Result<Vec<CachePadded<Queue>>, InterfaceError> {
    let io = |what| move |source: io::Error| InterfaceError::Io { what, source };
    let wanted = if is_exact { count as usize } else { (count as usize).min(QUEUES_MAX + 1) };
    let mut queues = Vec::new();
    let mut seats = Vec::new().into_iter();
    for number in 0..wanted as u32 {
        if queues.len() == QUEUES_MAX {
            return Err(InterfaceError::TooManyQueues { name: status.name.clone() });
        }
        let seat = match seats.next() {
            Some(seat) => seat,
            None => {
                let wanted = if is_exact { wanted } else { 1 };
                seats = Seat::take(wanted, frame_size).map_err(io("mapping memory for frames"))?.into_iter();
                seats.next().expect("one was taken")
            }
        };
        match XdpSocket::open(status.index, number, seat.area().clone(), seat.layout(), seat.frames(), is_large)? {
            Bound::Socket(socket) => {
                let queue = Queue::new(*socket, Some(seat)).map_err(io("making a descriptor"))?;
                queues.push(CachePadded::new(queue));
            }
            Bound::NoQueue if is_exact && number > 0 => {
                return Err(InterfaceError::QueueMissed {
                    name: status.name.clone(),
                    queue: number,
                    queues: wanted as u32,
                });
            }
            Bound::NoQueue => break,
        }
    }
    if queues.is_empty() {
        return Err(io("binding an AF_XDP socket to the interface")(io::ErrorKind::Unsupported.into()));
    }
    Ok(queues)
}

impl XdpPort {
    /// Opens the interface in the calling thread's namespace. Needs CAP_NET_RAW, CAP_NET_ADMIN, CAP_BPF and CAP_IPC_LOCK.
    ///
    /// # Errors
    /// [`InterfaceError`].
    pub(crate) fn open(status: &LinkStatus, config: &XdpConfig) -> Result<XdpPort, InterfaceError> {
        let io = |what| move |source: io::Error| InterfaceError::Io { what, source };
        let sockets = SocketMap::new(QUEUES_MAX).map_err(io("making a map of sockets (needs CAP_BPF)"))?;
        let steered = program::load(&config.steering, &sockets, Unclaimed::Pass)
            .map_err(io("loading the XDP program (needs CAP_BPF and CAP_NET_ADMIN)"))?;
        let program = &steered.program;
        let link = if config.is_generic { program.attach_generic(status.index) } else { program.attach(status.index) };
        let link = link.map_err(io("attaching the XDP program to the interface"))?;
        // Frames go to the host until every queue has a socket. Which size they have depends on who runs the program: the kernel's
        // own stack has large ones, which must not fall into more pieces than a packet may have.
        let is_large = !link.is_native
            || status.mtu as usize + ETHERNET_LEN + 2 * TAG_LEN > (SMALL_FRAME - KERNEL_HEADROOM) as usize;
        let frame_size = if is_large { LARGE_FRAME } else { SMALL_FRAME };
        let ethtool = Ethtool::open(&status.name).map_err(io("asking about the interface"))?;
        let told = ethtool.queues().ok();
        let is_exact = told.is_some();
        // Else as many as it may have; those it has in use are the first of them.
        let counts = told.unwrap_or(status.queues);
        let [rx_queues, tx_queues] = counts.map(|count| count.max(1));
        if is_exact && rx_queues as usize > QUEUES_MAX {
            // To lose the traffic of some queues is worse than none.
            return Err(InterfaceError::TooManyQueues { name: status.name.clone() });
        }
        let queues = open_queues(status, rx_queues, is_exact, frame_size, is_large)?;
        for (queue, number) in queues.iter().zip(0..) {
            sockets.set(number, queue.socket.as_fd()).map_err(io("putting a socket into the map"))?;
        }
        let queue_watch = Ethtool::open(&status.name).and_then(|ethtool| QueueWatch::new(ethtool, told));
        let queue_watch = queue_watch.map_err(io("asking about the interface's queues"))?;
        // A queue that comes from now on has no socket: what it receives for us is nothing that the host may see.
        let steered = steered
            .again(&config.steering, &sockets, Unclaimed::Drop(queue_watch.count_map()))
            .and_then(|steered| link.replace(&steered.program).map(|()| steered))
            .map_err(io("replacing the XDP program"))?;
        let wants_all = match &config.steering {
            // Frames for the addresses behind the port are wanted, not only the device's own.
            Steering::Everything | Steering::Exclusive(_) => true,
            Steering::Only(ours) => !ours.vlans.is_empty(),
        };
        let has_tags = config.steering.has_tags();
        let tags = if has_tags { TagsStay::begin(ethtool) } else { None };
        let are_tags_lost = has_tags && tags.is_none();
        let promiscuity = if wants_all { Some(Promiscuity::open(&status.name, status.index)?) } else { None };
        let is_native = link.is_native;
        Ok(XdpPort {
            is_native,
            _link: link,
            tx_queues: queues.len().min(tx_queues as usize) as u16,
            queues: queues.into(),
            _tags: tags,
            are_tags_lost,
            mtu: Arc::new(AtomicU32::new(status.mtu)),
            // A driver of hardware tells no kind; it also finishes or checks what it receives. So does virtio-net, which finishes
            // what it receives only where it runs the program itself: the kernel's own stack hands it over as it came.
            is_software: !status.kind.is_empty() || !is_native,
            has_tunnels: config.steering.has_tunnels(),
            tunnel_ports: config.steering.tunnel_ports(),
            is_gone: AtomicBool::new(false),
            queue_watch: Arc::new(queue_watch),
            _steered: steered,
            _promiscuity: promiscuity,
        })
    }

    /// Whether the interface still has the queues that the port was opened with.
    pub(crate) fn queue_watch(&self) -> &Arc<QueueWatch> {
        &self.queue_watch
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

    /// Whether frames with VLAN tags come without them.
    pub(crate) fn are_tags_lost(&self) -> bool {
        self.are_tags_lost
    }

    /// Its queues, at least one.
    pub(super) fn all_queues(&self) -> impl Iterator<Item = &Queue> {
        self.queues.iter().map(|queue| &**queue)
    }

    /// The one by which any interface sends.
    pub(super) fn first_queue(&self) -> &Queue {
        &self.queues[0]
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
        batch.lend(queue, Some(rx.last_taken()));
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
                batch.lend(queue, None);
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
            let left = partial::claim(packet.head(), packet.len(), mtu, tunnels);
            if left.end < packet.len() {
                return partial::complete(batch, batch.len() - 1, &left);
            }
            packet.claim = left.claim;
        }
    }
}

impl Port for XdpPort {
    fn rx_queues(&self) -> u16 {
        self.queues.len() as u16
    }

    fn tx_queues(&self) -> u16 {
        self.tx_queues
    }

    fn rx<'r>(&'r self, ingress: PortIndex, index: QueueIndex, batch: &mut Batch<'r>, tally: &mut Tally) {
        let queue = self.queue(index);
        if queue.is_to_push_out() {
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
        let Some(mut burst) = Burst::begin(queue, batch, self.frame_max()) else {
            return all(tally, DropReason::TxContended);
        };
        for &pick in picks {
            let pick = usize::from(pick);
            match batch.fit(pick, EgressOffloads::default()) {
                Fit::AsIs => {
                    if burst.put(batch.look(pick), batch.lent(pick), tally) {
                        batch.handed_over(pick);
                    }
                }
                Fit::Cut => {
                    let mut cut = batch.cut(pick, EgressOffloads::default());
                    tally.cut_into(cut.count());
                    while let Some(segment) = cut.next_segment() {
                        burst.put(segment, None, tally);
                    }
                }
                Fit::Drop(reason) => tally.drop(reason),
            }
        }
        if burst.end().and_then(|()| queue.push_out()).is_err() {
            self.is_gone.store(true, Ordering::Relaxed);
        }
    }

    /// The socket. Watch it edge-triggered: it also shows an error for ever once the interface is gone.
    fn wake_fd(&self, index: QueueIndex) -> Option<BorrowedFd<'_>> {
        Some(self.queue(index).socket.as_fd())
    }

    fn tx_wake_fd(&self, index: QueueIndex) -> Option<BorrowedFd<'_>> {
        Some(self.queue(index).left.as_fd())
    }

    /// Nothing tells when a device that had no room, or reads frames itself, has sent what it has.
    fn is_blind(&self, index: QueueIndex) -> bool {
        !self.is_gone() && self.queue(index).has_waiting()
    }

    /// Nothing to ask for: the kernel signals every frame.
    fn arm(&self, index: QueueIndex) -> bool {
        let queue = self.queue(index);
        queue.fall_asleep();
        if !self.is_gone() && queue.has_waiting() {
            self.push_out(queue);
        }
        let Some(mut rx) = queue.try_rx() else { return true };
        queue.look_at_losses(&mut rx);
        !rx.frames.is_empty() || queue.lost_untold.load(Ordering::Relaxed) > 0
    }

    fn disarm(&self, index: QueueIndex) {
        self.queue(index).wake_up();
    }
}
