//! A guest's rings as a port of the switch.
//!
//! A [`RingSet`] is what workers see of a guest: its rings, its memory and what was agreed about offloads. It never
//! changes; the session publishes another one instead. Only positions move, and each ring guards its own with a try-lock
//! that is taken once a call. "rx" and "tx" are the switch's view: we receive from the ring the guest sends by.
//!
//! What makes it hard is speed against a hostile side. A burst goes in passes, so that the memory of the next frame comes
//! near while we work on this one: entries of the ring, then descriptors, then buffers. Every descriptor is read
//! once, into the worker's own memory, and only the copy is judged and used. A frame in one buffer, which is nearly every
//! frame, takes the short way ([`rx`], [`tx`]); all others share the long one. Both are written once for both layouts of rings.
//!
//! A guest has up to [`PAIRS_MAX`] pairs of rings. Which of them are switched on is a mask that the session changes under
//! the workers' hands, so that a guest that uses more or fewer queues disturbs none of those that run. By which of several it gets
//! a frame is up to the frame's flow ([`steering`]), not to the worker that sends.
//!
//! Received frames are given back to the guest only by `rx_done`, since the tails lie in its buffers until then. Bounds: a
//! burst, [`FRAME_CHAINS_MAX`] buffers a frame, [`PIECES_MAX`] pieces of memory a frame. Reading descriptors is bounded a call,
//! whatever the guest makes of them: of the frames it sends, one with a chain that is too wide ends the call; of those it
//! receives, each may cost so many by its length ([`tx`]), and what the call has beyond that is
//! [`SPARE_READS`], which the rings of a guest of several pairs share. Of a frame that is
//! cut, the pieces that its segments fill are bounded as well, all together.

mod ahead;
mod flow;
mod queue;
mod rx;
mod steering;
mod tx;

pub use queue::Queue;

use crate::call::Call;
use crate::chain::WIDTH_MAX;
use crate::memory::DirtyLog;
use crate::net::Dialect;
use crate::ring::{Layout, PackedRing, SplitRing};
use crate::socket::Wake;
use ahead::Finder;
use queue::State;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use steering::Parts;
pub(crate) use steering::Steering;
use switch::batch::{BURST, Batch};
use switch::ids::{PortIndex, QueueIndex};
use switch::ledger::{DropReason, Tally};
use switch::port::Port;

pub use crate::ring::FRAME_CHAINS_MAX;
/// Pairs of rings a guest can have.
pub const PAIRS_MAX: usize = 16;
/// Pieces of memory that one frame may fill: each buffer may be several descriptors, and each may cross a region.
pub const PIECES_MAX: usize = 512;
/// Bytes of the longest frame: a 65,535-byte IP packet behind Ethernet and two VLAN tags.
pub const FRAME_MAX: usize = 65_535 + switch::config::L2_OVERHEAD_MAX;
/// Bytes of the shortest frame: an Ethernet header.
const FRAME_MIN: u32 = 14;
/// Descriptors that the receiver of a burst may have us read beyond what its frames may cost: one chain that is too wide.
const SPARE_READS: u64 = WIDTH_MAX as u64;
/// Bytes of a frame for which one more descriptor may be read: buffers of a quarter of what [`FRAME_CHAINS_MAX`] is made for.
const BYTES_PER_READ: usize = 128;
/// Descriptors that each segment of a large frame may cost beyond its length, while the frame as a whole may cost one longest chain:
/// a frame may become thousands of segments, and guests that do not take it whole post chains of one or two, or of nineteen (Linux, for
/// frames over 1,500 bytes).
const READS_PER_SEGMENT: usize = 16;
/// Pieces of memory that each segment of a large frame may fill beyond its length, while the frame as a whole may fill one longest
/// chain: each piece may be another page, which no cache has. Linux' chains have a piece for the header before all others.
const PIECES_PER_SEGMENT: usize = 2;
/// How often tx tries for a ring that another worker holds: some 40 to 100 microseconds, as long as the processor pauses, which is
/// longer than nearly every call takes. Only a worker that lost its CPU with the ring in hand is not waited for.
const LOCK_SPINS: u32 = 2_000;
/// Rings that tx finds switched off just as it has them, before it gives up.
const SWITCHED_OFF_MAX: u32 = 3;

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

/// A [`RingSet`] of either layout, as its session sees it. Rings are numbered as in the protocol: 2n is what pair n of the
/// guest receives by, 2n + 1 what it sends by.
pub trait Rings: Port {
    /// Whether the set has that ring.
    fn has(&self, ring: usize) -> bool;

    /// Where the next device would go on in a ring, as the messages carry it; `None` if the set does not have it. Meaningful
    /// once no worker uses the set.
    fn position(&self, ring: usize) -> Option<u32>;

    /// Puts another call in place of a ring's present one, under the workers' hands.
    fn set_call(&self, ring: usize, call: Option<Arc<Call>>);

    /// Switches a ring under the workers' hands. When this returns, no worker is in the middle of a burst that began before.
    fn switch(&self, ring: usize, how: Use);

    /// Whether at least one ring of each direction is on.
    fn is_running(&self) -> bool;

    /// What workers found wrong.
    fn alarm(&self) -> &Alarm;
}

/// The rings of one guest at one time; immutable but for the positions and what is switched on.
pub struct RingSet<L: Layout> {
    /// By pair: the ring the guest sends by; `None` while it does not run.
    send: Vec<Option<Queue<L>>>,
    /// By pair: the ring the guest receives by; `None` while it does not run.
    receive: Vec<Option<Queue<L>>>,
    /// Bit n: pair n's send ring is on.
    send_on: AtomicU32,
    /// Bit n: pair n's send ring is taken from and what comes is dropped.
    send_discards: AtomicU32,
    /// Bit n: pair n's receive ring is there and on.
    receive_on: AtomicU32,
    /// By which pairs flows go; `None` if there is one at most. Shared by the sets of a session.
    steering: Option<Arc<Steering>>,
    dialect: Dialect,
    /// Where pages that are written are marked, while the guest is being moved.
    log: Option<Arc<DirtyLog>>,
    alarm: Alarm,
    /// The MAC of a guest that moved here and is to be announced, in the low 48 bits; 0: none. Shared by the sets of a
    /// session.
    announce: Arc<AtomicU64>,
}

/// Split rings.
pub type SplitSet = RingSet<SplitRing>;
/// Packed rings.
pub type PackedSet = RingSet<PackedRing>;

/// The bit that tells an announced MAC from none.
const ANNOUNCE_SET: u64 = 1 << 48;

/// What to store in a [`RingSet`]'s `announce` to have `mac` announced at the next rx.
pub fn announcement(mac: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = mac;
    u64::from_be_bytes([0, 0, a, b, c, d, e, f]) | ANNOUNCE_SET
}

impl<L: Layout> RingSet<L> {
    /// Puts rings together to a port, each at its number; all of them stand still until [`Rings::switch`].
    pub fn new(
        queues: impl IntoIterator<Item = (usize, Queue<L>)>,
        dialect: Dialect,
        alarm: Alarm,
        announce: Arc<AtomicU64>,
    ) -> RingSet<L> {
        let (mut send, mut receive) = (Vec::new(), Vec::new());
        for (ring, queue) in queues {
            let (pair, side) = (ring / 2, if ring % 2 == 1 { &mut send } else { &mut receive });
            assert!(pair < PAIRS_MAX, "a guest has at most {PAIRS_MAX} pairs");
            side.resize_with(side.len().max(pair + 1), || None);
            side[pair] = Some(queue);
        }
        let (send_on, send_discards, receive_on) = Default::default();
        let steering = (receive.len() > 1).then(Arc::default);
        RingSet { send, receive, send_on, send_discards, receive_on, steering, dialect, log: None, alarm, announce }
    }

    /// The same, with every buffer that is written marked in a log. Rings mark their own parts ([`Layout::log_to`]).
    #[must_use]
    pub fn with_log(self, log: Option<Arc<DirtyLog>>) -> RingSet<L> {
        RingSet { log, ..self }
    }

    /// The same, with what an earlier set of the same guest knew of its flows.
    pub(crate) fn with_steering(mut self, before: &mut Option<Arc<Steering>>) -> RingSet<L> {
        if let Some(steering) = &mut self.steering {
            *steering = before.get_or_insert_with(|| steering.clone()).clone();
        }
        self
    }

    /// A ring as it lies in memory, for who runs it otherwise than workers do: the yardstick of the benches. Nobody else may
    /// then use the set.
    pub fn bare(&self, ring: usize) -> Option<&L> {
        self.ring(ring).map(|queue| &queue.ring)
    }

    fn send(&self, pair: usize) -> Option<&Queue<L>> {
        self.send.get(pair)?.as_ref()
    }

    fn receive(&self, pair: usize) -> Option<&Queue<L>> {
        self.receive.get(pair)?.as_ref()
    }

    fn ring(&self, ring: usize) -> Option<&Queue<L>> {
        if ring % 2 == 1 { self.send(ring / 2) } else { self.receive(ring / 2) }
    }

    /// What steers frames to a guest that receives by several rings now, and bit by bit which are on; `None` for one with one or none.
    #[inline]
    fn steering(&self) -> Option<(&Steering, u32)> {
        let steering = self.steering.as_ref()?;
        let on = self.receive_on.load(Ordering::Relaxed);
        (on & on.wrapping_sub(1) != 0).then_some((steering, on))
    }

    /// The receive ring for frames that are to go by pair `index`: that one's if it is on, else one of those
    /// that are, so that the guest gets its frames whichever of its queues it uses.
    #[inline]
    fn receive_for(&self, index: QueueIndex) -> Option<(&Queue<L>, u32)> {
        let on = self.receive_on.load(Ordering::Relaxed);
        let pair = match u32::from(index.0) {
            pair if pair < u32::BITS && on & 1 << pair != 0 => pair,
            other => nth_set_bit(on, other)?,
        };
        Some((self.receive(pair as usize)?, 1 << pair))
    }

    /// Those of the pairs that are on by which the guest ever wanted to receive, for drivers may have pairs switched on that they do
    /// not use; all, as long as there is none.
    #[inline]
    fn in_use(&self, steering: &Steering, on: u32) -> u32 {
        if on & !steering.filled() != 0 {
            self.look_for_buffers(steering, on);
        }
        match on & steering.filled() {
            0 => on,
            filled => filled,
        }
    }

    #[cold]
    #[inline(never)]
    fn look_for_buffers(&self, steering: &Steering, on: u32) {
        let unknown = on & !steering.filled();
        for pair in (0..PAIRS_MAX).filter(|pair| unknown & 1 << pair != 0) {
            let locked = self.receive(pair).and_then(|queue| Some((queue, queue.try_lock()?)));
            if locked.is_some_and(|(queue, locked)| !queue.ring.is_empty_at(queue.ring.position(&locked.0.place))) {
                steering.note_filled(pair);
            }
        }
    }

    /// Sends each flow by its own pair.
    #[inline(never)]
    fn send_steered(&self, steering: &Steering, on: u32, batch: &mut Batch<'_>, picks: &[u8], tally: &mut Tally) {
        let on = self.in_use(steering, on);
        let mut parts = Parts::new();
        for (place, &pick) in picks.iter().enumerate() {
            let hash = flow::hash(batch.packets()[usize::from(pick)].head());
            parts.add(place, steering.pair(hash, on));
        }
        if let Some(pair) = parts.only() {
            return self.send_by(QueueIndex(pair as u16), batch, picks, SPARE_READS, tally);
        }
        let spare_reads = SPARE_READS / u64::from(parts.count().max(1));
        let (mut places, mut own) = ([0; BURST], [0; BURST]);
        while let Some((pair, count)) = parts.next(&mut places) {
            for (pick, &place) in own.iter_mut().zip(&places[..count]) {
                *pick = picks[usize::from(place)];
            }
            let mut part = Tally::default();
            self.send_by(QueueIndex(pair as u16), batch, &own[..count], spare_reads, &mut part);
            tally.add_part(&part, &places[..count]);
        }
    }

    /// Sends by one pair, or one of those that are on if that one is not.
    #[inline]
    fn send_by(&self, index: QueueIndex, batch: &mut Batch<'_>, picks: &[u8], spare_reads: u64, tally: &mut Tally) {
        let all = |tally: &mut Tally, reason| tally.drop_many(reason, picks.len() as u32);
        let (mut spins, mut tries) = (0, 0);
        let (queue, mut locked) = loop {
            let Some((queue, bit)) = self.receive_for(index).filter(|_| tries < SWITCHED_OFF_MAX) else {
                return all(tally, DropReason::NotReady);
            };
            match queue.try_lock() {
                // It may have been switched off since it was looked for.
                Some(locked) if self.receive_on.load(Ordering::Relaxed) & bit != 0 => break (queue, locked),
                Some(_) => tries += 1,
                None if spins == LOCK_SPINS => return all(tally, DropReason::TxContended),
                None => spins += 1,
            }
            std::hint::spin_loop();
        };
        let (state, entries) = &mut *locked;
        if !self.is_alive(queue) || state.is_broken {
            return all(tally, DropReason::DeviceError);
        }
        let done = tally.packets + tally.dropped;
        let promised = done + picks.len() as u32;
        let cut = tally.cut;
        state.reads_left = spare_reads;
        if self.send_burst(queue, (state, entries), batch, picks, tally).is_err() {
            self.break_ring(queue, state);
            let missing = promised + (tally.cut - cut) - (tally.packets + tally.dropped);
            tally.drop_many(DropReason::DeviceError, missing);
        }
        queue.show::<false>(state);
        // What the guest is told it has; then is time to send for the buffer of a frame to come, which it wrote or read last.
        if let Some(entry) = queue.ring.peek(&state.place) {
            Finder::new(queue.ring.memory(), &mut state.hint).send_for_writable(&entry);
        }
    }

    /// Whether the memory under the ring is whole; tells the session if not.
    #[inline]
    fn is_alive(&self, queue: &Queue<L>) -> bool {
        if queue.ring.memory().is_dead() {
            self.alarm.raise(Fault::Memory);
            return false;
        }
        true
    }

    /// The ring announces what it cannot hold: it stands still for good.
    #[cold]
    fn break_ring(&self, queue: &Queue<L>, state: &mut State<L>) {
        state.is_broken = true;
        self.alarm.raise(Fault::Ring(queue.index));
    }
}

impl<L: Layout> Rings for RingSet<L> {
    fn has(&self, ring: usize) -> bool {
        self.ring(ring).is_some()
    }

    fn position(&self, ring: usize) -> Option<u32> {
        self.ring(ring).map(Queue::position)
    }

    fn set_call(&self, ring: usize, call: Option<Arc<Call>>) {
        if let Some(queue) = self.ring(ring) {
            queue.set_call(call);
        }
    }

    fn switch(&self, ring: usize, how: Use) {
        let Some(queue) = self.ring(ring) else { return };
        let set = |mask: &AtomicU32, is_set: bool| match is_set {
            true => mask.fetch_or(1 << (ring / 2), Ordering::Relaxed),
            false => mask.fetch_and(!(1 << (ring / 2)), Ordering::Relaxed),
        };
        if ring % 2 == 1 {
            set(&self.send_on, how == Use::On);
            set(&self.send_discards, how == Use::Discard);
        } else {
            set(&self.receive_on, how == Use::On);
        }
        // Workers look at the masks with the lock in hand: who takes it after this sees them as they are now.
        drop(queue.lock());
    }

    fn is_running(&self) -> bool {
        self.send_on.load(Ordering::Relaxed) != 0 && self.receive_on.load(Ordering::Relaxed) != 0
    }

    fn alarm(&self) -> &Alarm {
        &self.alarm
    }
}

impl<L: Layout> Port for RingSet<L> {
    fn rx_queues(&self) -> u16 {
        self.send.len() as u16
    }

    fn tx_queues(&self) -> u16 {
        self.receive.len().max(1) as u16
    }

    fn rx<'r>(&'r self, ingress: PortIndex, index: QueueIndex, batch: &mut Batch<'r>, tally: &mut Tally) {
        let Some(queue) = self.send(index.as_usize()) else { return };
        let is_announced = self.announce.load(Ordering::Relaxed) != 0;
        if queue.seems_empty() && !is_announced && !queue.ring.memory().is_dead() {
            // Most queues are, most of the time: no lock is taken for them.
            return;
        }
        let Some(mut locked) = queue.try_lock() else { return };
        let (state, entries) = &mut *locked;
        if !self.is_alive(queue) || state.is_broken {
            return;
        }
        if self.send_on.load(Ordering::Relaxed) & 1 << index.0 == 0 {
            if self.send_discards.load(Ordering::Relaxed) & 1 << index.0 != 0 {
                self.discard(queue, state, tally);
                queue.moved_on(state);
            }
            return;
        }
        if is_announced {
            self.announce(ingress, index, batch, tally);
        }
        let before = batch.len();
        if self.receive_burst(queue, (state, entries), (ingress, index), batch, tally).is_err() {
            self.break_ring(queue, state);
        }
        queue.moved_on(state);
        drop(locked);
        if let Some((steering, _)) = self.steering() {
            batch.packets()[before..].iter().for_each(|packet| steering.note(flow::hash(packet.head()), index.0));
        }
    }

    fn rx_done(&self, index: QueueIndex) {
        // Nobody locks this queue for longer than a moment but the worker that owns it.
        if let Some(queue) = self.send(index.as_usize()) {
            queue.show::<true>(&mut queue.lock().0);
        }
    }

    fn tx(&self, index: QueueIndex, batch: &mut Batch<'_>, picks: &[u8], tally: &mut Tally) {
        match self.steering() {
            Some((steering, on)) => self.send_steered(steering, on, batch, picks, tally),
            None => self.send_by(index, batch, picks, SPARE_READS, tally),
        }
    }

    fn wake_fd(&self, index: QueueIndex) -> Option<BorrowedFd<'_>> {
        Some(self.send(index.as_usize())?.kick.as_ref()?.as_fd())
    }

    /// A ring that is not there has nothing under way; a publication tells of one that comes.
    fn is_blind(&self, index: QueueIndex) -> bool {
        self.send(index.as_usize()).is_some_and(|queue| queue.kick.is_none())
    }

    fn arm(&self, index: QueueIndex) -> bool {
        let Some(queue) = self.send(index.as_usize()) else { return false };
        let (state, _) = &mut *queue.lock();
        // One that stands still may well have something; whoever switches it on wakes the workers.
        let is_taken =
            (self.send_on.load(Ordering::Relaxed) | self.send_discards.load(Ordering::Relaxed)) & 1 << index.0;
        if state.is_broken || is_taken == 0 {
            return false;
        }
        queue.ring.ask_for_kicks(&mut state.place) || self.announce.load(Ordering::Relaxed) != 0
    }

    fn disarm(&self, index: QueueIndex) {
        if let Some(queue) = self.send(index.as_usize()) {
            queue.ring.refuse_kicks();
        }
    }
}

/// The place of bit `n` of those that are set, counted round; `None` if none is.
fn nth_set_bit(mask: u32, n: u32) -> Option<u32> {
    let nth = n.checked_rem(mask.count_ones())?;
    (0..u32::BITS).filter(|bit| mask & 1 << bit != 0).nth(nth as usize)
}

/// What a call may read at most of a receiver's descriptors, for frames of so many bytes in all, their headers included.
#[cfg(any(test, fuzzing))]
pub(crate) fn reads_max(frames: usize, len: usize) -> u64 {
    // What each frame may cost, the spare ones, and how far the last chain can exceed that.
    (frames * crate::chain::CHAIN_MAX + len / BYTES_PER_READ) as u64 + SPARE_READS + u64::from(WIDTH_MAX)
}

#[cfg(any(test, fuzzing))]
impl<L: Layout> RingSet<L> {
    /// Descriptors of a ring that were ever read on the long way.
    pub(crate) fn reads(&self, ring: usize) -> u64 {
        self.ring(ring).map_or(0, |queue| queue.lock().0.chain.reads())
    }
}

#[cfg(test)]
mod tests;
