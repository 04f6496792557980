//! What became of every frame: counters with one writer each, and the reasons for which frames are dropped.
//!
//! Every worker has its own counters, so that counting is a plain load, add and store on a line nobody else writes; a
//! reader sums over the workers. A port's counters belong to the port's place in the switch, not to the device that
//! happens to stand there, so they survive a reconnect.
//! The balance of invariant 1: received + copies + originated = sent + dropped + consumed + held.

use crate::ids::{QUEUES_MAX, QueueIndex, WorkerIndex};
use crate::sync::{AtomicU64, Ordering};
use crossbeam_utils::CachePadded;

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why a frame went no further. Its name is what `show` and the metrics print.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$name,)*];

            /// The reason's name in `show`, traces and metrics.
            pub fn name(self) -> &'static str {
                match self { $(DropReason::$name => $text,)* }
            }
        }
    };
}

drop_reasons! {
    /// The frame ends inside a header that it announces.
    Truncated = "truncated",
    /// Its headers do not fit the head.
    HeadersTooLong = "headers_too_long",
    /// Its tail lies in more pieces than we carry.
    TooManySegments = "too_many_segments",
    /// A descriptor chain that virtio forbids: a loop, a write-only buffer, an address outside memory.
    BadDescriptor = "bad_descriptor",
    /// Offload fields that do not fit the frame's own headers.
    BadOffload = "bad_offload",
    /// Longer than the port's MTU allows.
    OverMtu = "over_mtu",
    /// The source MAC is a group address or zero.
    BadSourceMac = "bad_source_mac",
    /// The source MAC is not one of those fixed for the interface.
    SpoofedMac = "spoofed_mac",
    /// A destination that no bridge forwards (01:80:C2:00:00:0X).
    LinkLocalMulticast = "link_local_multicast",
    /// The port is on no network.
    NoNetwork = "no_network",
    /// A frame with a tag that would go where its tag is another network's: without one of ours before it.
    TaggedOnNative = "tagged_on_native",
    /// The logical port's state is DOWN.
    PortAdminDown = "port_admin_down",
    /// The frame would go out where it came in.
    Reflection = "reflection",
    /// A flood in a network that has no other member.
    NoReceiver = "no_receiver",
    /// A copy of a flood beyond what one burst may cause.
    FloodLimited = "flood_limited",
    /// It came from another host and would go to another host: each of them sends to all by itself.
    SplitHorizon = "split_horizon",
    /// On an uplink that is ours alone: neither for us nor of a VLAN of ours.
    NotOurs = "not_ours",
    /// From an address that is no end of our tunnels.
    TunnelUnknownSource = "tunnel_unknown_source",
    /// With a VNI or key that no network of this host has.
    TunnelUnknownNetwork = "tunnel_unknown_network",
    /// With a tunnel's or outer IP header that is to be refused, or options that we had to know.
    TunnelMalformed = "tunnel_malformed",
    /// The outer packet is a fragment.
    TunnelFragment = "tunnel_fragment",
    /// Congestion was experienced in the tunnel by a frame whose sender would not understand the mark.
    TunnelCongested = "tunnel_congested",
    /// Nobody knows yet where the next hop is.
    NoNeighbour = "no_neighbour",
    /// No device stands at the port.
    PortGone = "port_gone",
    /// The device is there but its driver takes nothing yet.
    NotReady = "not_ready",
    /// It came by a link of a bond that does not receive.
    BondStandby = "bond_standby",
    /// The receiver has no free buffer.
    RxRingFull = "rx_ring_full",
    /// The receiver's buffers cannot hold the frame.
    BufferTooSmall = "buffer_too_small",
    /// The frame must be cut, and the segments would be more than one burst may cause.
    CutLimited = "cut_limited",
    /// Another worker held the queue.
    TxContended = "tx_contended",
    /// The device refused the frame, or memory vanished under the copy.
    DeviceError = "device_error",
}

/// How many drop reasons there are.
pub const DROP_REASONS: usize = DropReason::ALL.len();

/// A counter with a single writer; anybody may read it.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`. Only the owning worker calls this.
    #[inline]
    pub fn add(&self, count: u64) {
        // Single writer: a plain load and store lose nothing, and no locked instruction is needed.
        self.0.store(self.0.load(Ordering::Relaxed) + count, Ordering::Relaxed);
    }

    /// Goes up to `count` if it is below. Only the owning worker calls this.
    pub fn raise(&self, count: u64) {
        self.add(count.saturating_sub(self.get()));
    }

    /// The count so far.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one rx or tx call did, in plain numbers on the worker's stack.
#[derive(Clone, Copy, Debug)]
pub struct Tally {
    /// Frames moved: taken from the device, or delivered to it.
    pub packets: u32,
    /// Bytes of these frames, virtio headers not counted.
    pub bytes: u64,
    /// Frames dropped in all.
    pub dropped: u32,
    /// Frames that came of cutting others: a cut into n segments counts n - 1.
    pub cut: u32,
    drops: [u32; DROP_REASONS],
    /// Which frames of a tx call were dropped, by their place among the picks.
    dropped_picks: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Tally { packets: 0, bytes: 0, dropped: 0, cut: 0, drops: [0; DROP_REASONS], dropped_picks: 0 }
    }
}

impl Tally {
    /// Counts a moved frame of `bytes` bytes.
    #[inline]
    pub fn moved(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }

    /// Counts `count` moved frames of `bytes` bytes together.
    #[inline]
    pub fn moved_many(&mut self, count: usize, bytes: usize) {
        self.packets += count as u32;
        self.bytes += bytes as u64;
    }

    /// Counts a dropped frame.
    #[inline]
    pub fn drop(&mut self, reason: DropReason) {
        self.drop_many(reason, 1);
    }

    /// Counts `count` dropped frames.
    #[inline]
    pub fn drop_many(&mut self, reason: DropReason, count: u32) {
        let which = u64::MAX.checked_shr(u64::BITS.saturating_sub(count)).unwrap_or(0);
        self.dropped_picks |= which.checked_shl(self.packets + self.dropped).unwrap_or(0);
        self.dropped += count;
        self.drops[reason as usize] += count;
    }

    /// Counts that a frame became `count` frames, each of which is still to be delivered or dropped.
    #[inline]
    pub fn cut_into(&mut self, count: u32) {
        self.cut += count - 1;
    }

    /// The reasons that were counted, with their counts.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u32)> + '_ {
        DropReason::ALL.iter().map(|&reason| (reason, self.drops[reason as usize])).filter(|&(_, count)| count > 0)
    }

    /// Which of the `picks` of a tx call were dropped: bit 0 is the first. `None` if it cannot be told, because the call
    /// sent more frames than it was given.
    pub fn dropped_picks(&self, picks: usize) -> Option<u64> {
        match self.dropped {
            0 => Some(0),
            dropped => ((self.packets + dropped) as usize == picks).then_some(self.dropped_picks),
        }
    }

    /// Adds what became of some of the picks, those at these `places` among all of them.
    pub fn add_part(&mut self, part: &Tally, places: &[u8]) {
        self.packets += part.packets;
        self.bytes += part.bytes;
        self.dropped += part.dropped;
        self.cut += part.cut;
        for (sum, count) in self.drops.iter_mut().zip(part.drops) {
            *sum += count;
        }
        for (at, &place) in places.iter().enumerate() {
            self.dropped_picks |= (part.dropped_picks >> at & 1) << place;
        }
    }

    /// Back to nothing.
    #[inline]
    pub fn clear(&mut self) {
        if self.dropped > 0 {
            self.drops = [0; DROP_REASONS];
            self.dropped_picks = 0;
        }
        self.packets = 0;
        self.bytes = 0;
        self.dropped = 0;
        self.cut = 0;
    }
}

/// Counters of one direction of one port, written by one worker.
#[derive(Default)]
pub struct Flow {
    packets: Counter,
    bytes: Counter,
    drops: [Counter; DROP_REASONS],
}

impl Flow {
    /// Adds what a call did.
    #[inline]
    pub fn add(&self, tally: &Tally) {
        self.packets.add(u64::from(tally.packets));
        self.bytes.add(tally.bytes);
        if tally.dropped > 0 {
            for (reason, count) in tally.drops() {
                self.drops[reason as usize].add(u64::from(count));
            }
        }
    }

    /// Counts one dropped frame.
    #[inline]
    pub fn drop(&self, reason: DropReason) {
        self.drops[reason as usize].add(1);
    }

    fn sum_into(&self, total: &mut FlowTotals) {
        total.packets += self.packets.get();
        total.bytes += self.bytes.get();
        for (sum, counter) in total.drops.iter_mut().zip(&self.drops) {
            *sum += counter.get();
        }
    }
}

/// The counters of one direction of a port, summed over the workers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FlowTotals {
    /// Frames moved.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames dropped, by reason, in the order of [`DropReason::ALL`].
    pub drops: [u64; DROP_REASONS],
}

impl FlowTotals {
    /// The reasons that were counted, with their counts.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|&reason| (reason, self.drops[reason as usize])).filter(|&(_, count)| count > 0)
    }
}

/// One worker's counters of one port.
#[derive(Default)]
pub struct PortCounters {
    /// From the device. Packets are frames taken from it, the dropped ones included.
    pub rx: Flow,
    /// To the device. Packets are frames delivered to it; dropped ones are only in the drops.
    pub tx: Flow,
    /// What each rx queue cost.
    pub queue_costs: [QueueCost; QUEUES_MAX],
    /// Until when the worker passes its queues by for time that they took, by that worker's own reckoning, ns. It is here so that it
    /// outlives the device's objects: who reconnects still owes it.
    pub owed_until_ns: Counter,
}

/// What the frames of one rx queue cost, until all of a burst were sent: a sample of the bursts, which stands for all of them.
#[derive(Default)]
pub struct QueueCost {
    /// Time, ns.
    pub ns: Counter,
    /// Frames of the same bursts. Their number is as much an estimate as the time, and off by as much: time a frame is
    /// steadier than either.
    pub packets: Counter,
}

/// The counters of one port: one set a worker.
pub struct PortLedger {
    workers: Box<[CachePadded<PortCounters>]>,
}

impl PortLedger {
    /// All zero, for a switch of `workers` workers.
    pub fn new(workers: usize) -> PortLedger {
        PortLedger { workers: (0..workers).map(|_| CachePadded::default()).collect() }
    }

    /// The counters that `worker` may write.
    #[inline]
    pub fn of(&self, worker: WorkerIndex) -> &PortCounters {
        &self.workers[worker.as_usize()]
    }

    /// Received from the device, over all workers.
    pub fn rx(&self) -> FlowTotals {
        self.total(|counters| &counters.rx)
    }

    /// Sent to the device, over all workers.
    pub fn tx(&self) -> FlowTotals {
        self.total(|counters| &counters.tx)
    }

    /// What the frames of one rx queue cost, as ns and frames, over all workers that had it in turn; 0 beyond [`QUEUES_MAX`].
    pub fn queue_cost(&self, queue: QueueIndex) -> (u64, u64) {
        let costs = self.workers.iter().filter_map(|worker| worker.queue_costs.get(queue.as_usize()));
        costs.fold((0, 0), |(ns, packets), cost| (ns + cost.ns.get(), packets + cost.packets.get()))
    }

    fn total(&self, side: impl Fn(&PortCounters) -> &Flow) -> FlowTotals {
        let mut total = FlowTotals::default();
        for worker in &self.workers {
            side(worker).sum_into(&mut total);
        }
        total
    }
}

/// One worker's own books, on cache lines of their own and of no other worker's: two lines, for processors fetch them in pairs.
#[derive(Default)]
#[repr(align(128))]
pub struct WorkerLedger {
    /// Frames taken from devices, bad ones included.
    pub received: Counter,
    /// Further outcomes of frames that had more than one: a flood to n ports counts n - 1, as does a cut into n segments.
    pub copies: Counter,
    /// Frames the switch made itself.
    pub originated: Counter,
    /// Frames delivered to devices.
    pub sent: Counter,
    /// Frames dropped, by reason.
    pub dropped: [Counter; DROP_REASONS],
    /// Frames the switch kept for itself: answered or swallowed by a stage.
    pub consumed: Counter,
    /// Frames put into the held store.
    pub held: Counter,
    /// Frames taken out of the held store.
    pub held_out: Counter,
    /// Rounds that found at least one frame.
    pub busy_rounds: Counter,
    /// Rounds in all.
    pub rounds: Counter,
    /// Time spent in busy rounds, ns.
    pub busy_ns: Counter,
    /// Batches that were not empty.
    pub batches: Counter,
    /// Times the worker went to sleep.
    pub sleeps: Counter,
}

/// A worker's books at one moment; balanced between two rounds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Balance {
    /// Frames taken from devices.
    pub received: u64,
    /// Copies made.
    pub copies: u64,
    /// Frames made by the switch.
    pub originated: u64,
    /// Frames delivered.
    pub sent: u64,
    /// Frames dropped, for any reason.
    pub dropped: u64,
    /// Frames consumed.
    pub consumed: u64,
    /// Frames held.
    pub held: u64,
}

impl Balance {
    /// Whether every frame is accounted for (invariant 1).
    pub fn balances(&self) -> bool {
        self.received + self.copies + self.originated == self.sent + self.dropped + self.consumed + self.held
    }
}

impl std::ops::AddAssign for Balance {
    fn add_assign(&mut self, other: Balance) {
        self.received += other.received;
        self.copies += other.copies;
        self.originated += other.originated;
        self.sent += other.sent;
        self.dropped += other.dropped;
        self.consumed += other.consumed;
        self.held += other.held;
    }
}

impl WorkerLedger {
    /// The books as they stand.
    pub fn balance(&self) -> Balance {
        Balance {
            received: self.received.get(),
            copies: self.copies.get(),
            originated: self.originated.get(),
            sent: self.sent.get(),
            dropped: self.dropped.iter().map(Counter::get).sum(),
            consumed: self.consumed.get(),
            held: self.held.get() - self.held_out.get(),
        }
    }

    /// Adds the drops of a call.
    #[inline]
    pub fn add_drops(&self, tally: &Tally) {
        if tally.dropped > 0 {
            for (reason, count) in tally.drops() {
                self.dropped[reason as usize].add(u64::from(count));
            }
        }
    }
}
