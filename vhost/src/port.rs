//! A guest's rings as a port of the switch.
//!
//! A [`RingSet`] is what workers see of a guest: its rings, its memory and what was agreed about offloads. It never
//! changes; the session publishes another one instead. Only positions move, and each ring guards its own with a try-lock
//! that is taken once a call. "rx" and "tx" are the switch's view: we receive from the ring the guest sends by.
//!
//! What makes it hard is speed against a hostile side. A burst goes in passes, so that the memory of the next frame comes
//! near while we work on this one: entries of the available ring, then descriptors, then buffers. Every descriptor is read
//! once, into the ring's scratch, and only the copy is judged and used. A frame in one buffer, which is nearly every
//! frame, takes the short way; all others share the long one.
//!
//! A guest has up to [`PAIRS_MAX`] pairs of rings. Which of them are switched on is a mask that the session changes under
//! the workers' hands, so that a guest that uses more or fewer queues disturbs none of those that run.
//!
//! Used entries of received frames are written at once and shown to the guest only by `rx_done`, since the tails lie in
//! the guest's buffers until then. Bounds: a burst, [`MERGE_MAX`] buffers a frame, [`PIECES_MAX`] pieces of memory a frame.

use crate::chain::{Chain, ChainError, Descriptor, Direction, WRITE};
use crate::memory::RegionHint;
use crate::net::{Dialect, RARP_LEN, rarp};
use crate::ring::{RingSource, SplitRing};
use crate::socket::{Call, Wake};
use arc_swap::ArcSwapOption;
use crossbeam_utils::CachePadded;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use switch::batch::{BURST, Batch, Fit};
use switch::ids::{PortIndex, QueueIndex};
use switch::ledger::{DropReason, Tally};
use switch::offload::{F_NEEDS_CSUM, OffloadClaim, VNET_HEADER_LEN, VNET_HEADER_MRG_LEN};
use switch::packet::{HEAD_COPY, Packet};
use switch::port::Port;
use switch::segment::{Segment, SegmentMut};
use switch::segmentation::Segmenter;

/// Pairs of rings a guest can have.
pub const PAIRS_MAX: usize = 16;
/// Buffers that one frame may fill: 64 KiB in buffers of 1,526 bytes are 43.
pub const MERGE_MAX: usize = 128;
/// Pieces of memory that one frame may fill: each buffer may be several descriptors, and each may cross a region.
pub const PIECES_MAX: usize = 512;
/// Bytes of the longest frame: a 65,535-byte IP packet behind Ethernet and two VLAN tags.
pub const FRAME_MAX: usize = 65_535 + switch::config::L2_OVERHEAD_MAX;
/// Bytes of the shortest frame: an Ethernet header.
const FRAME_MIN: usize = 14;
/// How often tx tries for a ring that another worker holds: some hundred nanoseconds, which most calls take.
const LOCK_SPINS: u32 = 128;

/// What a worker found out about a guest, told to its session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// This ring, as the protocol numbers them, announces more than it holds.
    Ring(u8),
    /// A memory file was cut short.
    Memory,
}

impl Fault {
    fn bit(self) -> u64 {
        match self {
            Fault::Ring(index) => 1 << index,
            Fault::Memory => 1 << (2 * PAIRS_MAX),
        }
    }
}

const _: () = assert!(2 * PAIRS_MAX < 64, "a bit for each ring, and one for the memory");

/// How workers tell the session's thread what is wrong with its guest. One for each [`RingSet`].
pub struct Alarm {
    faults: AtomicU64,
    wake: Arc<Wake>,
}

impl Alarm {
    /// Rings through `wake`.
    pub fn new(wake: Arc<Wake>) -> Alarm {
        Alarm { faults: AtomicU64::new(0), wake }
    }

    /// Tells of a fault; wakes the session once for each kind.
    #[cold]
    fn raise(&self, fault: Fault) {
        if self.faults.fetch_or(fault.bit(), Ordering::AcqRel) & fault.bit() == 0 {
            self.wake.wake();
        }
    }

    /// Whether that was told.
    pub fn has(&self, fault: Fault) -> bool {
        self.faults.load(Ordering::Acquire) & fault.bit() != 0
    }
}

/// One ring of a port, and everything it takes to run it.
pub struct Queue {
    ring: SplitRing,
    /// The ring's number in the protocol: even for those the guest receives by.
    index: u8,
    kick: Option<Arc<OwnedFd>>,
    /// Exchanged by the session at any time: QEMU does so whenever the guest masks its interrupt.
    call: ArcSwapOption<Call>,
    state: CachePadded<Mutex<State>>,
}

/// What moves in a ring.
struct State {
    /// The next entry of the available ring to take.
    next: u16,
    /// Entries of the used ring written; chains come back in the order they were taken, so it runs along with `next`.
    used: u16,
    /// Entries of the used ring shown to the guest.
    shown: u16,
    /// The available index was impossible; the ring stands still.
    is_broken: bool,
    hint: RegionHint,
    heads: [u16; BURST],
    descriptors: [Descriptor; BURST],
    chain: Chain,
    reserved: Vec<Reserved>,
    pieces: Vec<Piece>,
}

/// A chain of the guest's receive ring that a frame is about to fill.
#[derive(Clone, Copy)]
struct Reserved {
    head: u16,
    capacity: u32,
}

/// A range of guest memory inside one region; it was translated once and will be again.
#[derive(Clone, Copy)]
struct Piece {
    address: u64,
    len: u32,
}

impl Queue {
    /// Goes on where the used ring in memory says the last device stopped: a chain that was taken and never given back is
    /// taken again, and none is lost.
    ///
    /// Whether the guest shall kick is up to `Port::arm`; until then it need not.
    pub fn new(ring: SplitRing, index: u8, kick: Option<Arc<OwnedFd>>, call: Option<Arc<Call>>) -> Queue {
        let position = ring.used_index();
        ring.set_kicks(false);
        let state = State {
            next: position,
            used: position,
            shown: position,
            is_broken: false,
            hint: RegionHint::default(),
            heads: [0; BURST],
            descriptors: [Descriptor::default(); BURST],
            chain: Chain::default(),
            reserved: Vec::with_capacity(MERGE_MAX),
            pieces: Vec::with_capacity(PIECES_MAX),
        };
        Queue { ring, index, kick, call: ArcSwapOption::new(call), state: CachePadded::new(Mutex::new(state)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, State>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(state)) => Some(state.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Puts another call in place of the present one, under the workers' hands.
    pub fn set_call(&self, call: Option<Arc<Call>>) {
        self.call.store(call);
    }

    /// Where the next device would go on. Meaningful once no worker uses the ring.
    pub fn position(&self) -> u16 {
        self.lock().shown
    }

    /// Entries the guest has made available and we have not taken; `None`, and the ring stands still for good, if the
    /// index is one the guest cannot have reached.
    #[inline]
    fn ready(&self, state: &mut State, alarm: &Alarm) -> Option<u16> {
        let ready = self.ring.available_index().wrapping_sub(state.next);
        if ready <= self.ring.size() && !state.is_broken {
            return Some(ready);
        }
        state.is_broken = true;
        alarm.raise(Fault::Ring(self.index));
        None
    }

    /// Reads the next `count` entries and their first descriptors into the scratch, and sends for the buffers, which will be
    /// written if `WRITES`.
    #[inline]
    fn look_ahead<const WRITES: bool>(&self, state: &mut State, count: usize) {
        for (at, head) in state.heads[..count].iter_mut().enumerate() {
            *head = self.ring.available_entry(state.next.wrapping_add(at as u16));
            self.ring.prefetch_descriptor(*head);
        }
        for (head, descriptor) in state.heads[..count].iter().zip(&mut state.descriptors) {
            // An index beyond the table leaves a descriptor that no way of ours takes: the long way finds out why.
            *descriptor =
                self.ring.descriptor(*head).unwrap_or(Descriptor { flags: u16::MAX, ..Descriptor::default() });
            if WRITES {
                self.ring.memory().prefetch_to_write(&mut state.hint, descriptor.address);
            } else {
                self.ring.memory().prefetch(&mut state.hint, descriptor.address);
            }
        }
    }

    /// Shows the guest what was given back, and interrupts it if it wants.
    #[inline]
    fn show(&self, state: &mut State) {
        if state.shown == state.used {
            return;
        }
        state.shown = state.used;
        self.ring.publish_used(state.used);
        if self.ring.wants_interrupt()
            && let Some(call) = &*self.call.load()
        {
            call.signal();
        }
    }
}

impl State {
    /// Takes the next available chain and gives it back: `len` bytes of it were written. The guest does not see it yet.
    #[inline]
    fn take(&mut self, ring: &SplitRing, head: u16, len: u32) {
        ring.put_used(self.used, head, len);
        self.next = self.next.wrapping_add(1);
        self.used = self.used.wrapping_add(1);
    }
}

/// What [`RingSet::switch`] makes of a ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// Frames pass.
    On,
    /// It stands still and keeps what is in it: a ring that was never switched on.
    Still,
    /// Nothing is put in, and what the guest sends is taken and dropped, as the specification asks of a ring that was switched
    /// off ("Ring states"); else frames would hang there for as long as the guest does without the ring.
    Discard,
}

/// The rings of one guest at one time; immutable but for the positions and what is switched on.
pub struct RingSet {
    /// By pair: the ring the guest sends by; `None` while it does not run.
    send: Vec<Option<Queue>>,
    /// By pair: the ring the guest receives by; `None` while it does not run.
    receive: Vec<Option<Queue>>,
    /// Bit n: pair n's send ring is on.
    send_on: AtomicU32,
    /// Bit n: pair n's send ring is taken from and what comes is dropped.
    send_discards: AtomicU32,
    /// Bit n: pair n's receive ring is there and on.
    receive_on: AtomicU32,
    dialect: Dialect,
    alarm: Alarm,
    /// The MAC of a guest that moved here and is to be announced, in the low 48 bits; 0: none. Shared by the sets of a
    /// session.
    announce: Arc<AtomicU64>,
}

/// The bit that tells an announced MAC from none.
const ANNOUNCE_SET: u64 = 1 << 48;

/// What to store in a [`RingSet`]'s `announce` to have `mac` announced at the next rx.
pub fn announcement(mac: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = mac;
    u64::from_be_bytes([0, 0, a, b, c, d, e, f]) | ANNOUNCE_SET
}

impl RingSet {
    /// Puts rings together to a port, by pair; all of them stand still until [`RingSet::switch`].
    pub fn new(
        send: Vec<Option<Queue>>,
        receive: Vec<Option<Queue>>,
        dialect: Dialect,
        alarm: Alarm,
        announce: Arc<AtomicU64>,
    ) -> RingSet {
        assert!(send.len() <= PAIRS_MAX && receive.len() <= PAIRS_MAX, "a guest has at most {PAIRS_MAX} pairs");
        let (send_on, send_discards, receive_on) = Default::default();
        RingSet { send, receive, send_on, send_discards, receive_on, dialect, alarm, announce }
    }

    /// The ring of a pair that the guest sends by.
    pub fn send(&self, pair: usize) -> Option<&Queue> {
        self.send.get(pair)?.as_ref()
    }

    /// The ring of a pair that the guest receives by.
    pub fn receive(&self, pair: usize) -> Option<&Queue> {
        self.receive.get(pair)?.as_ref()
    }

    /// Switches a ring, numbered as in the protocol, under the workers' hands. When this returns, no worker is in the
    /// middle of a burst that began before.
    pub fn switch(&self, ring: usize, how: Use) {
        let (pair, is_send) = (ring / 2, ring % 2 == 1);
        let Some(queue) = (if is_send { self.send(pair) } else { self.receive(pair) }) else { return };
        let set = |mask: &AtomicU32, is_set: bool| match is_set {
            true => mask.fetch_or(1 << pair, Ordering::Relaxed),
            false => mask.fetch_and(!(1 << pair), Ordering::Relaxed),
        };
        if is_send {
            set(&self.send_on, how == Use::On);
            set(&self.send_discards, how == Use::Discard);
        } else {
            set(&self.receive_on, how == Use::On);
        }
        // Workers look at the masks with the lock in hand: who takes it after this sees them as they are now.
        drop(queue.lock());
    }

    /// Whether at least one ring of each direction is on.
    pub fn is_running(&self) -> bool {
        self.send_on.load(Ordering::Relaxed) != 0 && self.receive_on.load(Ordering::Relaxed) != 0
    }

    /// The receive ring for frames that a worker would send by queue `index`: that one if it is on, else one of those
    /// that are, so that the guest gets its frames whichever of its queues it uses.
    #[inline]
    fn receive_for(&self, index: QueueIndex) -> Option<(&Queue, u32)> {
        let on = self.receive_on.load(Ordering::Relaxed);
        let pair = match u32::from(index.0) {
            pair if pair < u32::BITS && on & 1 << pair != 0 => pair,
            other => nth_set_bit(on, other)?,
        };
        Some((self.receive(pair as usize)?, 1 << pair))
    }

    /// What workers found wrong.
    pub fn alarm(&self) -> &Alarm {
        &self.alarm
    }

    /// Whether the memory under the ring is whole; tells the session if not.
    #[inline]
    fn is_alive(&self, queue: &Queue) -> bool {
        if queue.ring.memory().is_dead() {
            self.alarm.raise(Fault::Memory);
            return false;
        }
        true
    }

    /// What the guest sends by a ring that is off.
    #[cold]
    fn discard(&self, queue: &Queue, state: &mut State, index: QueueIndex, tally: &mut Tally) {
        if self.send_discards.load(Ordering::Relaxed) & 1 << index.0 == 0 {
            return;
        }
        let Some(ready) = queue.ready(state, &self.alarm) else { return };
        for _ in 0..ready.min(BURST as u16) {
            let head = queue.ring.available_entry(state.next);
            tally.moved(0);
            tally.drop(DropReason::NotReady);
            state.take(&queue.ring, head, 0);
        }
    }

    /// The announcement of a guest that moved here, as a frame the guest sent.
    #[cold]
    fn announce(&self, ingress: PortIndex, index: QueueIndex, batch: &mut Batch<'_>, tally: &mut Tally) {
        let Some(mut packet) = batch.start(ingress, index) else { return };
        let told = self.announce.swap(0, Ordering::Relaxed);
        if told & ANNOUNCE_SET == 0 {
            // The worker of another queue was faster.
            return;
        }
        let [_, _, mac @ ..] = told.to_be_bytes();
        if let Some(head) = packet.head(RARP_LEN) {
            head.copy_from_slice(&rarp(mac));
            packet.commit(OffloadClaim::default());
            tally.moved(RARP_LEN);
        }
    }

    /// One frame that is no single buffer, or a broken one: the long way. Fills the packet up to its commit.
    #[cold]
    fn receive_slowly<'r>(
        &self,
        queue: &'r Queue,
        state: &mut State,
        head: u16,
        packet: &mut switch::batch::PacketBuilder<'_, 'r>,
    ) -> Result<OffloadClaim, DropReason> {
        let ring = &queue.ring;
        let source = RingSource::new(ring, state.hint);
        state.chain.walk(&source, ring.size(), head, Direction::FromGuest).map_err(ChainError::drop_reason)?;
        let frame_len = state.chain.len().saturating_sub(self.dialect.header_len as u64);
        if frame_len < FRAME_MIN as u64 {
            return Err(DropReason::Truncated);
        }
        if frame_len > FRAME_MAX as u64 {
            return Err(DropReason::OverMtu);
        }
        let mut header = [0u8; VNET_HEADER_MRG_LEN];
        let mut header_len = 0;
        for buffer in state.chain.buffers() {
            let (mut address, mut left) = (buffer.address, buffer.len);
            while left > 0 {
                // A buffer that crosses from one region into the next comes in two pieces.
                let mut piece =
                    ring.memory().readable(&mut state.hint, address, left).ok_or(DropReason::BadDescriptor)?;
                address = address.wrapping_add(u64::from(piece.len()));
                left -= piece.len();
                let missing = self.dialect.header_len - header_len;
                if missing > 0 {
                    let count = piece.read(&mut header[header_len..][..missing]);
                    header_len += count;
                    piece = piece.skip(count as u32);
                }
                let count = (HEAD_COPY - packet.head_len()).min(piece.len() as usize);
                if count > 0 {
                    piece.read(packet.head(count).ok_or(DropReason::HeadersTooLong)?);
                    piece = piece.skip(count as u32);
                }
                if !piece.is_empty() {
                    packet.tail(piece)?;
                }
            }
        }
        let claim = header.first_chunk::<VNET_HEADER_LEN>().expect("the header array is longer");
        Ok(claim_of(claim))
    }

    /// A large frame for a guest that does not take it whole, in segments; `ready` chains are there.
    #[cold]
    fn send_segments(
        &self,
        queue: &Queue,
        state: &mut State,
        ready: &mut u16,
        mut cut: Segmenter<'_, '_>,
        tally: &mut Tally,
    ) {
        tally.cut_into(cut.count());
        while let Some((packet, tail)) = cut.next_segment() {
            let before = state.next;
            let outcome = self.send_slowly(queue, state, *ready, packet, tail);
            *ready -= state.next.wrapping_sub(before);
            match outcome {
                Ok(_) => tally.moved(packet.len()),
                Err(reason) => tally.drop(reason),
            }
            if *ready == 0 {
                return tally.drop_many(DropReason::RxRingFull, cut.remaining());
            }
        }
    }

    /// One frame into one or more chains of the guest's receive ring: the long way. `ready` chains are there.
    ///
    /// Reserves first and copies then, so that a frame that does not fit leaves nothing behind. A chain that is broken
    /// is given back empty, with those reserved before it: the guest made it, and it must not stand in the way for ever.
    #[cold]
    fn send_slowly(
        &self,
        queue: &Queue,
        state: &mut State,
        ready: u16,
        packet: &Packet,
        tail: &[Segment<'_>],
    ) -> Result<u16, DropReason> {
        let ring = &queue.ring;
        let wanted = self.dialect.header_len + packet.len();
        let mut capacity = 0usize;
        state.reserved.clear();
        state.pieces.clear();
        while capacity < wanted {
            let count = state.reserved.len();
            if count > 0 && !self.dialect.is_mergeable || count == MERGE_MAX {
                return Err(DropReason::BufferTooSmall);
            }
            if count == usize::from(ready) {
                return Err(DropReason::RxRingFull);
            }
            let head = ring.available_entry(state.next.wrapping_add(count as u16));
            match reserve(ring, state, head) {
                Ok(0) | Err(DropReason::BadDescriptor | DropReason::TooManySegments) => {
                    state.reserved.push(Reserved { head, capacity: 0 });
                    for index in 0..state.reserved.len() {
                        let head = state.reserved[index].head;
                        state.take(ring, head, 0);
                    }
                    return Err(DropReason::BadDescriptor);
                }
                Err(reason) => return Err(reason),
                Ok(len) => {
                    state.reserved.push(Reserved { head, capacity: len });
                    capacity += len as usize;
                }
            }
        }
        let mut header = self.dialect.header(&packet.offload);
        if self.dialect.header_len == VNET_HEADER_MRG_LEN {
            header[VNET_HEADER_LEN..].copy_from_slice(&(state.reserved.len() as u16).to_le_bytes());
        }

        let mut source = FrameSource { front: [&header[..self.dialect.header_len], packet.head()], tail, skip: 0 };
        for &Piece { address, len } in &state.pieces {
            let room = ring.memory().writable(&mut state.hint, address, len);
            source.fill(&mut room.expect("reserve translated this piece and the memory table never changes"));
        }
        let mut left = wanted as u32;
        for index in 0..state.reserved.len() {
            let Reserved { head, capacity } = state.reserved[index];
            let len = left.min(capacity);
            left -= len;
            state.take(ring, head, len);
        }
        Ok(state.reserved.len() as u16)
    }
}

/// Walks one chain of the guest's receive ring and puts its pieces behind those reserved; answers its capacity, bytes.
fn reserve(ring: &SplitRing, state: &mut State, head: u16) -> Result<u32, DropReason> {
    let source = RingSource::new(ring, state.hint);
    state.chain.walk(&source, ring.size(), head, Direction::ToGuest).map_err(ChainError::drop_reason)?;
    let mut capacity = 0u32;
    for buffer in state.chain.buffers() {
        // No frame needs more, and so no sum overflows.
        let (mut address, mut left) = (buffer.address, buffer.len.min(2 * FRAME_MAX as u32));
        while left > 0 {
            let piece = ring.memory().writable(&mut state.hint, address, left).ok_or(DropReason::BadDescriptor)?;
            if state.pieces.len() == PIECES_MAX {
                return Err(DropReason::BufferTooSmall);
            }
            state.pieces.push(Piece { address, len: piece.len() });
            address = address.wrapping_add(u64::from(piece.len()));
            left -= piece.len();
            capacity += piece.len();
        }
    }
    Ok(capacity)
}

/// Header, head and tail of a frame, handed out in pieces of any size.
struct FrameSource<'a> {
    front: [&'a [u8]; 2],
    tail: &'a [Segment<'a>],
    /// Bytes of the tail's first segment that are gone.
    skip: u32,
}

impl FrameSource<'_> {
    /// Writes as much of the rest as `room` takes.
    fn fill(&mut self, room: &mut SegmentMut<'_>) {
        for part in &mut self.front {
            *part = &part[room.write(part)..];
        }
        while let Some((segment, rest)) = self.tail.split_first()
            && !room.is_empty()
        {
            self.skip += room.write_from(&segment.skip(self.skip));
            if self.skip == segment.len() {
                (self.tail, self.skip) = (rest, 0);
            }
        }
    }
}

impl Port for RingSet {
    fn rx_queues(&self) -> u16 {
        self.send.len() as u16
    }

    fn tx_queues(&self) -> u16 {
        self.receive.len().max(1) as u16
    }

    fn rx<'r>(&'r self, ingress: PortIndex, index: QueueIndex, batch: &mut Batch<'r>, tally: &mut Tally) {
        let Some(queue) = self.send(index.as_usize()) else { return };
        let Some(mut state) = queue.try_lock() else { return };
        let state = &mut *state;
        if !self.is_alive(queue) {
            return;
        }
        if self.send_on.load(Ordering::Relaxed) & 1 << index.0 == 0 {
            return self.discard(queue, state, index, tally);
        }
        let Some(ready) = queue.ready(state, &self.alarm) else { return };
        if self.announce.load(Ordering::Relaxed) != 0 {
            self.announce(ingress, index, batch, tally);
        }
        if ready == 0 {
            return;
        }
        let ring = &queue.ring;
        let header_len = self.dialect.header_len as u32;
        let count = usize::from(ready).min(batch.room());
        queue.look_ahead::<false>(state, count);
        for at in 0..count {
            let Some(mut packet) = batch.start(ingress, index) else { break };
            let (head, descriptor) = (state.heads[at], state.descriptors[at]);
            let frame_len = descriptor.len.wrapping_sub(header_len);
            let is_simple = descriptor.is_alone()
                && descriptor.flags & WRITE == 0
                && (FRAME_MIN as u32..=FRAME_MAX as u32).contains(&frame_len);
            let whole = match ring.memory().readable(&mut state.hint, descriptor.address, descriptor.len) {
                Some(buffer) if is_simple && buffer.len() == descriptor.len => Some(buffer),
                _ => None,
            };
            let claim = match whole {
                Some(buffer) => {
                    let mut header = [0u8; VNET_HEADER_LEN];
                    buffer.read(&mut header);
                    let frame = buffer.skip(header_len);
                    copy_front(&frame, &mut packet).map(|()| claim_of(&header))
                }
                None => self.receive_slowly(queue, state, head, &mut packet),
            };
            match claim {
                Ok(claim) => {
                    tally.moved(packet.frame_len());
                    packet.commit(claim);
                }
                Err(reason) => {
                    drop(packet);
                    tally.moved(0);
                    tally.drop(reason);
                }
            }
            state.take(ring, head, 0);
        }
    }

    fn rx_done(&self, index: QueueIndex) {
        // Nobody locks this queue for longer than a moment but the worker that owns it.
        if let Some(queue) = self.send(index.as_usize()) {
            queue.show(&mut queue.lock());
        }
    }

    fn tx(&self, index: QueueIndex, batch: &mut Batch<'_>, picks: &[u8], tally: &mut Tally) {
        let all = |tally: &mut Tally, reason| tally.drop_many(reason, picks.len() as u32);
        let Some((queue, bit)) = self.receive_for(index) else { return all(tally, DropReason::NotReady) };
        let mut spins = 0;
        let mut state = loop {
            match queue.try_lock() {
                Some(state) => break state,
                None if spins == LOCK_SPINS => return all(tally, DropReason::TxContended),
                None => spins += 1,
            }
            std::hint::spin_loop();
        };
        let state = &mut *state;
        if self.receive_on.load(Ordering::Relaxed) & bit == 0 {
            return all(tally, DropReason::NotReady);
        }
        if !self.is_alive(queue) {
            return all(tally, DropReason::DeviceError);
        }
        let Some(mut ready) = queue.ready(state, &self.alarm) else {
            return all(tally, DropReason::DeviceError);
        };
        let ring = &queue.ring;
        let header_len = self.dialect.header_len;
        let first = state.next;
        let scratch = usize::from(ready).min(picks.len()).min(BURST);
        queue.look_ahead::<true>(state, scratch);
        for &pick in picks {
            match batch.fit(usize::from(pick), self.dialect.egress) {
                Fit::AsIs => {}
                Fit::Cut => {
                    let cut = batch.cut(usize::from(pick), self.dialect.egress);
                    self.send_segments(queue, state, &mut ready, cut, tally);
                    continue;
                }
                Fit::Drop(reason) => {
                    tally.drop(reason);
                    continue;
                }
            }
            if ready == 0 {
                tally.drop(DropReason::RxRingFull);
                continue;
            }
            let (packet, tail) = batch.frame(usize::from(pick));
            let packet = &*packet;
            let wanted = (header_len + packet.len()) as u32;
            // Chains that a long frame took are behind us, so the scratch may no longer reach far enough.
            let at = usize::from(state.next.wrapping_sub(first));
            if at < scratch {
                let descriptor = state.descriptors[at];
                if descriptor.is_alone()
                    && descriptor.flags & WRITE != 0
                    && descriptor.len >= wanted
                    && let Some(mut room) = ring.memory().writable(&mut state.hint, descriptor.address, wanted)
                    && room.len() == wanted
                {
                    match self.dialect.plain_header(&packet.offload) {
                        Some(header) => room.write(&header[..header_len]),
                        None => room.write(&self.dialect.header(&packet.offload)[..header_len]),
                    };
                    room.write(packet.head());
                    for segment in tail {
                        room.write_from(segment);
                    }
                    let head = state.heads[at];
                    state.take(ring, head, wanted);
                    ready -= 1;
                    tally.moved(packet.len());
                    continue;
                }
            }
            let before = state.next;
            match self.send_slowly(queue, state, ready, packet, tail) {
                Ok(_) => tally.moved(packet.len()),
                Err(reason) => tally.drop(reason),
            }
            ready -= state.next.wrapping_sub(before);
        }
        queue.show(state);
    }

    fn wake_fd(&self, index: QueueIndex) -> Option<BorrowedFd<'_>> {
        Some(self.send(index.as_usize())?.kick.as_ref()?.as_fd())
    }

    fn arm(&self, index: QueueIndex) -> bool {
        let Some(queue) = self.send(index.as_usize()) else { return false };
        let state = queue.lock();
        // One that stands still may well have something; whoever switches it on wakes the workers.
        let is_taken =
            (self.send_on.load(Ordering::Relaxed) | self.send_discards.load(Ordering::Relaxed)) & 1 << index.0;
        if state.is_broken || is_taken == 0 {
            return false;
        }
        queue.ring.set_kicks(true);
        queue.ring.available_index() != state.next || self.announce.load(Ordering::Relaxed) != 0
    }

    fn disarm(&self, index: QueueIndex) {
        if let Some(queue) = self.send(index.as_usize()) {
            queue.ring.set_kicks(false);
        }
    }
}

/// The place of bit `n` of those that are set, counted round; `None` if none is.
fn nth_set_bit(mask: u32, n: u32) -> Option<u32> {
    let nth = n.checked_rem(mask.count_ones())?;
    (0..u32::BITS).filter(|bit| mask & 1 << bit != 0).nth(nth as usize)
}

/// What a driver claims in the header of a frame it sends. Of the flags only "needs checksum" is a driver's to set; any
/// other, "data is valid" above all, would make a guest the judge of its own frames (virtio 1.2 section 5.1.6.2.1).
#[inline]
fn claim_of(header: &[u8; VNET_HEADER_LEN]) -> OffloadClaim {
    let claim = OffloadClaim::from_bytes(header);
    OffloadClaim { flags: claim.flags & F_NEEDS_CSUM, ..claim }
}

/// Copies the front of a frame into the head and leaves the rest as the tail.
#[inline]
fn copy_front<'r>(frame: &Segment<'r>, packet: &mut switch::batch::PacketBuilder<'_, 'r>) -> Result<(), DropReason> {
    if frame.len() as usize > HEAD_COPY {
        // A copy of a length the compiler knows is a handful of moves without a branch.
        let head: &mut [u8; HEAD_COPY] =
            packet.head(HEAD_COPY).and_then(|head| head.try_into().ok()).ok_or(DropReason::HeadersTooLong)?;
        frame.read(head);
        return packet.tail(frame.skip(HEAD_COPY as u32));
    }
    frame.read(packet.head(frame.len() as usize).ok_or(DropReason::HeadersTooLong)?);
    Ok(())
}
