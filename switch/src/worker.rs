//! One worker: a round takes a burst from each of its queues, runs the pipeline over it and sends what comes out.
//!
//! A worker owns its batch, its books and the rx queues the snapshot deals it. `step` is one round; time comes in as an
//! argument, so that a simulation can drive it. The round's snapshot is borrowed for the whole round, and with it all
//! the memory that tails point into. Nothing here allocates or locks; only one round in [`TIMED_ROUNDS`], and those after a
//! long one, ask the time, to tell what each queue costs.
//!
//! Fairness: a burst ends at [`BURST`] frames or [`ROUND_BYTES`] bytes; every copy a burst causes (a flood makes many)
//! is charged to its queue, and a queue in debt sits out until rounds have repaid it. Floods of one burst are bounded by
//! [`BURST_FLOOD_BYTES`]. So the longest round of a worker is that many bytes for each of its queues, and no two in a row.
//! What takes time without moving bytes (memory of a guest that the kernel has yet to find pages for) shows in rounds that
//! take long ([`LONG_ROUND_NS`]): after one every queue is timed for a while ([`WATCH_NS`]), and time that its bytes do not explain is
//! charged too. What a burst owes of that is repaid in rounds as long as it made no round long by itself; then it is repaid in time,
//! by all queues of its port.

mod send;
mod stopwatch;

use crate::batch::{BURST, Batch};
use crate::capture::RxBurst;
use crate::clock::Clock;
use crate::config::Config;
use crate::ids::{PORTS_MAX, PortIndex, QueueIndex, WorkerIndex};
use crate::ledger::{DropReason, PortCounters, Tally, WorkerLedger};
use crate::mac_table::MacTable;
use crate::publish::{PortPlace, RxQueue, Snapshot, Subscription};
use crate::segmentation::CUT_COST_BYTES;
use std::cell::Cell;
use std::sync::Arc;
use stopwatch::{Lap, Stopwatch};

/// Bytes one queue may cause to be copied in a round before it goes into debt: four 64 KiB frames, or 170 of 1,500.
pub const ROUND_BYTES: usize = 256 * 1024;

/// Bytes one burst may cause to be copied by floods; copies beyond are dropped as `flood_limited`. Without it a few
/// 64 KiB broadcasts into a large network would hold a worker for a tenth of a second and its other guests with it. A
/// burst of the shortest frames to half the ports that a switch can have stays below.
pub const BURST_FLOOD_BYTES: usize = 8 << 20;
const _: () = assert!(BURST * COPY_COST_BYTES_MIN * PORTS_MAX / 2 <= BURST_FLOOD_BYTES);
/// What a copy of the shortest frame counts for: it takes as long as one of so many bytes.
const COPY_COST_BYTES_MIN: usize = 64;

/// In one round of this many the worker times its queues apart, with a clock reading each. A sample tells the control
/// side which queue costs what; in every round the readings would be a tenth of the work at low load, and at one in 31 they
/// showed in the 99th percentile of delays. A prime, so that no rhythm of a sender falls in with it.
const TIMED_ROUNDS: u64 = 127;

/// In one round of this many the worker asks the ports of empty queues whether these doze.
const DOZERS_SOUGHT_ROUNDS: u64 = 16;

/// Time, ns, after which a round was long: what some ten queues' bursts of large frames take.
pub const LONG_ROUND_NS: u64 = 250_000;
/// How long queues are timed after a long round, ns, so that whoever made it long is found, and after a queue owed time: who waits for
/// the end of it does no harm in the meantime.
const WATCH_NS: u64 = 100_000_000;

/// A moment of the monotonic clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Now {
    /// Nanoseconds since some fixed moment before the switch started.
    pub ns: u64,
}

impl Now {
    /// Whole seconds; the MAC table's coarse age tick.
    #[inline]
    pub fn seconds(self) -> u32 {
        (self.ns / 1_000_000_000) as u32
    }
}

/// What a stage may look at besides the packet and its tables.
pub struct Context<'a> {
    /// The round's time.
    pub now: Now,
    /// The shared MAC table.
    pub mac_table: &'a MacTable,
    /// Which worker runs.
    pub worker: WorkerIndex,
    /// The snapshot's generation.
    pub generation: u64,
}

/// The list of stages, as the engine sees it. Implemented once, in the `pipelines` crate.
pub trait Pipeline: 'static {
    /// What the stages read; compiled from a config.
    type Tables: Send + Sync + 'static;

    /// Compiles a checked config.
    fn compile(config: &Config) -> Self::Tables;

    /// Decides about every packet of the batch: each gets at least one outcome on `egress`.
    fn run(tables: &Self::Tables, context: &Context<'_>, batch: &mut Batch<'_>, egress: &mut Egress<'_>);

    /// The uplink that carries what was forwarded to `far_end`, an index at which no device stands; `None`: none does.
    fn carrier(_tables: &Self::Tables, _far_end: PortIndex) -> Option<PortIndex> {
        None
    }

    /// Puts the outer headers on those of the `picks` that can be carried to `far_end` and writes their numbers down; answers
    /// how many. The others are dropped in `tally`.
    fn wrap(
        _tables: &Self::Tables,
        _far_end: PortIndex,
        _batch: &mut Batch<'_>,
        _picks: &[u8],
        _carried: &mut [u8; BURST],
        _tally: &mut Tally,
    ) -> usize {
        0
    }

    /// Takes off again what [`Pipeline::wrap`] put on, for other copies of the same packets; answers how many bytes that is in all.
    fn unwrap(_tables: &Self::Tables, _far_end: PortIndex, _batch: &mut Batch<'_>, _carried: &[u8]) -> usize {
        0
    }

    /// Tells in words what each stage would do with the one packet of the batch; changes nothing that is shared.
    fn trace(tables: &Self::Tables, context: &Context<'_>, batch: &mut Batch<'_>) -> Vec<String>;
}

/// The packets of the batch that go to one port.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Picks {
    len: u8,
    list: [u8; BURST],
}

/// The picks of a port that gets the whole batch.
const EVERYONE: [u8; BURST] = {
    let mut list = [0; BURST];
    let mut index = 0;
    while index < BURST {
        list[index] = index as u8;
        index += 1;
    }
    list
};

/// Where the packets of a batch go: one list of picks a port, reused for ever.
pub struct EgressLists {
    by_port: Box<[Picks; PORTS_MAX]>,
    touched: Vec<PortIndex>,
}

impl Default for EgressLists {
    fn default() -> Self {
        EgressLists {
            by_port: match vec![Picks { len: 0, list: [0; BURST] }; PORTS_MAX].into_boxed_slice().try_into() {
                Ok(by_port) => by_port,
                Err(_) => unreachable!("as long as the array"),
            },
            touched: Vec::with_capacity(PORTS_MAX),
        }
    }
}

impl EgressLists {
    /// The ports that packets go to, each with these packets' indices in the batch. For tests and benches; a worker
    /// sends them itself.
    pub fn picks(&self) -> impl Iterator<Item = (PortIndex, &[u8])> {
        self.touched.iter().map(|&port| {
            let picks = &self.by_port[port.as_usize()];
            (port, &picks.list[..picks.len as usize])
        })
    }

    /// Forgets all picks.
    pub fn clear(&mut self) {
        for port in self.touched.drain(..) {
            self.by_port[port.as_usize()].len = 0;
        }
    }
}

/// The outcomes of a batch, as the pipeline announces them.
pub struct Egress<'s> {
    lists: &'s mut EgressLists,
    places: &'s [Option<PortPlace>],
    worker: WorkerIndex,
    ledger: &'s WorkerLedger,
    not_sent: u64,
    cost_bytes: usize,
    /// Bit n: packet n is an answer now.
    answered: u64,
}

impl<'s> Egress<'s> {
    /// Starts with no outcome.
    pub fn new(
        lists: &'s mut EgressLists,
        places: &'s [Option<PortPlace>],
        worker: WorkerIndex,
        ledger: &'s WorkerLedger,
    ) -> Egress<'s> {
        Egress { lists, places, worker, ledger, not_sent: 0, cost_bytes: 0, answered: 0 }
    }

    /// Packet `packet` of the batch, `bytes` long, goes to `port`; at most once to each port.
    #[inline]
    pub fn forward(&mut self, packet: usize, bytes: usize, port: PortIndex) {
        let picks = &mut self.lists.by_port[port.as_usize()];
        if picks.len == 0 {
            self.lists.touched.push(port);
        }
        picks.list[picks.len as usize] = packet as u8;
        picks.len += 1;
        self.cost_bytes += bytes;
    }

    /// All `packets` of the batch, `bytes` together, go to `port`, and none of them anywhere else.
    #[inline]
    pub fn forward_all(&mut self, packets: usize, bytes: usize, port: PortIndex) {
        let picks = &mut self.lists.by_port[port.as_usize()];
        assert!(picks.len == 0 && packets <= BURST, "an outcome for each packet, and once");
        *picks = Picks { len: packets as u8, list: EVERYONE };
        self.lists.touched.push(port);
        self.cost_bytes += bytes;
    }

    /// Packet `packet`, which was made into an answer to its sender, goes to `port`: what came in goes no further.
    pub fn answer(&mut self, packet: usize, bytes: usize, port: PortIndex) {
        self.answered |= 1 << packet;
        self.forward(packet, bytes, port);
    }

    /// What became of the batch's packets so far: copies sent, drops, and packets consumed.
    fn outcomes(&self) -> u64 {
        let sent = self.lists.touched.iter().map(|port| u64::from(self.lists.by_port[port.as_usize()].len));
        self.not_sent + sent.sum::<u64>()
    }

    /// Like [`Egress::forward`], one copy of a flood; false if the burst may not be copied once more ([`BURST_FLOOD_BYTES`]).
    #[inline]
    pub fn copy(&mut self, packet: usize, bytes: usize, port: PortIndex) -> bool {
        let cost = bytes.max(COPY_COST_BYTES_MIN);
        let is_affordable = self.cost_bytes + cost <= BURST_FLOOD_BYTES;
        if is_affordable {
            self.forward(packet, bytes, port);
            self.cost_bytes += cost - bytes;
        }
        is_affordable
    }

    /// Counts frames that came out of an uplink as received from the far end that sent them.
    #[inline]
    pub fn received(&mut self, far_end: PortIndex, packets: usize, bytes: usize) {
        if let Some(place) = self.place(far_end) {
            let mut tally = Tally::default();
            tally.moved_many(packets, bytes);
            place.ledger.of(self.worker).rx.add(&tally);
        }
    }

    /// A packet from `ingress` goes no further; counted at the port it came from.
    #[inline]
    pub fn drop_ingress(&mut self, ingress: PortIndex, reason: DropReason) {
        if let Some(place) = self.place(ingress) {
            place.ledger.of(self.worker).rx.drop(reason);
        }
        self.count_drop(reason);
    }

    /// A packet bound for `port` is dropped before it; counted at that port.
    #[inline]
    pub fn drop_egress(&mut self, port: PortIndex, reason: DropReason) {
        if let Some(place) = self.place(port) {
            place.ledger.of(self.worker).tx.drop(reason);
        }
        self.count_drop(reason);
    }

    /// A stage swallowed a packet: on an uplink that the host shares, what is for the host.
    pub fn consume(&mut self) {
        self.ledger.consumed.add(1);
        self.not_sent += 1;
    }

    fn place(&self, port: PortIndex) -> Option<&'s PortPlace> {
        self.places.get(port.as_usize())?.as_ref()
    }

    fn count_drop(&mut self, reason: DropReason) {
        self.ledger.dropped[reason as usize].add(1);
        self.not_sent += 1;
    }
}

/// A queue, and what it still owes from bursts that caused more copies than a round allows. Cells, for a burst of one queue may put
/// others in debt.
struct Debt {
    port: PortIndex,
    queue: QueueIndex,
    /// It is empty and will be roused: rounds pass it by, without a look at its port.
    is_dozing: Cell<bool>,
    bytes: Cell<usize>,
    /// Until when it sits out for time that its port took, ns, by the clock that stands still while such time is taken.
    until_ns: Cell<u64>,
}

impl Debt {
    /// Owes so many bytes more.
    fn add(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes);
    }
}

/// One worker; its thread calls [`Worker::step`] for ever.
pub struct Worker<P: Pipeline> {
    subscription: Subscription<P::Tables>,
    mac_table: Arc<MacTable>,
    ledger: Arc<WorkerLedger>,
    batch: Option<Batch<'static>>,
    lists: EgressLists,
    tally: Tally,
    debts: Vec<Debt>,
    /// The list before, kept for its storage.
    debts_before: Vec<Debt>,
    debts_generation: u64,
    /// Times the queues; `None` for a worker that is driven by hand.
    clock: Option<Clock>,
    /// Rounds since the queues were last timed.
    rounds: u64,
    /// The last round was long.
    was_long: bool,
    /// Until when every round is timed, ns.
    watched_until_ns: u64,
    /// Time that queues were charged so far, ns. None of it repays any queue's: several that take turns to be slow would repay each
    /// other's, and leave no time to the rest.
    owed_ns: u64,
    /// Queues were roused: those that doze on are sought in the next round.
    is_roused: bool,
}

impl<P: Pipeline> Worker<P> {
    /// A worker that reads from `subscription` and writes its books to `ledger`.
    pub fn new(
        subscription: Subscription<P::Tables>,
        mac_table: Arc<MacTable>,
        ledger: Arc<WorkerLedger>,
    ) -> Worker<P> {
        Worker {
            subscription,
            mac_table,
            ledger,
            batch: Some(Batch::new()),
            lists: EgressLists::default(),
            tally: Tally::default(),
            debts: Vec::with_capacity(PORTS_MAX),
            debts_before: Vec::with_capacity(PORTS_MAX),
            debts_generation: u64::MAX,
            clock: None,
            rounds: 0,
            was_long: false,
            watched_until_ns: 0,
            owed_ns: 0,
            is_roused: false,
        }
    }

    /// Has the worker find out, by samples, what each of its queues costs ([`PortCounters::queue_costs`]), and charge queues for time.
    /// The time that rounds are given has to go on as the clock does: it repays what was charged.
    pub fn time_queues(&mut self, clock: Clock) {
        self.clock = Some(clock);
    }

    /// Tells the worker that its last round took longer than [`LONG_ROUND_NS`].
    #[cold]
    pub fn note_long_round(&mut self) {
        self.was_long = true;
    }

    /// Has the next round look at all queues: some that dozed have been roused, or are watched by somebody else.
    pub fn rouse(&mut self) {
        self.debts.iter().for_each(|debt| debt.is_dozing.set(false));
        self.is_roused = true;
    }

    /// Which worker this is.
    pub fn index(&self) -> WorkerIndex {
        self.subscription.worker
    }

    /// Its books.
    pub fn ledger(&self) -> &Arc<WorkerLedger> {
        &self.ledger
    }

    /// The newest snapshot, as the next round will see it.
    pub fn snapshot(&mut self) -> &Snapshot<P::Tables> {
        self.subscription.load()
    }

    /// One round over all queues; answers how many frames were taken.
    pub fn step(&mut self, now: Now) -> usize {
        let worker = self.subscription.worker;
        let snapshot = self.subscription.load();
        let queues = &snapshot.rx[worker.as_usize()];
        if self.debts_generation != snapshot.generation {
            std::mem::swap(&mut self.debts, &mut self.debts_before);
            let owed_until_ns =
                |port| snapshot.place(port).map_or(0, |place| place.ledger.of(worker).owed_until_ns.get());
            carry_over(&self.debts_before, queues, &mut self.debts, owed_until_ns);
            self.debts_generation = snapshot.generation;
        }
        let context = Context { now, mac_table: &self.mac_table, worker, generation: snapshot.generation };
        let mut batch = self.batch.take().expect("step puts the batch back").recycle();
        let mut taken = 0;
        self.rounds = (self.rounds + 1) % TIMED_ROUNDS;
        let is_sample = self.rounds == 0;
        let seeks_dozers = std::mem::take(&mut self.is_roused) | self.rounds.is_multiple_of(DOZERS_SOUGHT_ROUNDS);
        if std::mem::take(&mut self.was_long) {
            self.watched_until_ns = now.ns + WATCH_NS;
        }
        let is_watched = now.ns < self.watched_until_ns;
        let mut stopwatch =
            self.clock.filter(|_| is_sample || is_watched).map(|clock| Stopwatch::start(clock, is_watched));
        let repaid_ns = now.ns.saturating_sub(self.owed_ns);
        for debt in &self.debts {
            if debt.is_dozing.get() {
                continue;
            }
            if debt.until_ns.get() > repaid_ns {
                self.watched_until_ns = now.ns + WATCH_NS;
                continue;
            }
            if let Some(rest) = debt.bytes.get().checked_sub(ROUND_BYTES) {
                debt.bytes.set(rest);
                continue;
            }
            let Some(place) = snapshot.place(debt.port) else { continue };
            let Some(port) = &place.port else { continue };
            let counters = place.ledger.of(worker);

            batch.clear(BURST, ROUND_BYTES);
            self.tally.clear();
            port.rx(debt.port, debt.queue, &mut batch, &mut self.tally);
            if self.tally.packets == 0 {
                debt.bytes.set(0);
                debt.is_dozing.set(seeks_dozers && port.is_dozing(debt.queue));
                if let Some(stopwatch) = &mut stopwatch {
                    let (lap, round_ns) = (stopwatch.lap(0), now.ns.saturating_sub(self.owed_ns));
                    self.owed_ns += owe(&self.debts, debt, &lap, &snapshot.config, counters, round_ns);
                }
                continue;
            }
            counters.rx.add(&self.tally);
            let packets = self.tally.packets;
            self.ledger.received.add(u64::from(packets));
            self.ledger.add_drops(&self.tally);
            self.ledger.batches.add(1);
            taken += packets as usize;
            let mut moved_bytes = self.tally.bytes as usize;

            if !batch.is_empty() {
                let captured = place.captures.as_deref();
                let captured = captured.map(|them| RxBurst::begin(them, worker, now, &mut batch, &self.ledger));
                let mut egress = Egress::new(&mut self.lists, &snapshot.places, worker, &self.ledger);
                P::run(&snapshot.tables, &context, &mut batch, &mut egress);
                let (outcomes, cost_bytes, answered) = (egress.outcomes(), egress.cost_bytes, egress.answered);
                let frames = batch.len() as u64;
                assert!(outcomes >= frames, "the pipeline left a packet without an outcome");
                self.ledger.copies.add(outcomes - frames);
                if outcomes > frames {
                    // A frame that was handed over may be filled anew by anybody before its copies are made.
                    batch.keep_frames();
                }
                debt.bytes.set((debt.bytes.get() + cost_bytes).saturating_sub(ROUND_BYTES));
                if let Some(captured) = captured {
                    captured.finish(&self.lists, answered, &self.ledger);
                }
                let cut =
                    send::send::<P>(&mut self.lists, snapshot, worker, now, &mut batch, &mut self.tally, &self.ledger);
                debt.add(cut as usize * CUT_COST_BYTES);
                moved_bytes = moved_bytes.max(cost_bytes) + cut as usize * CUT_COST_BYTES;
            }
            port.rx_done(debt.queue);
            if let Some(stopwatch) = &mut stopwatch {
                let (lap, round_ns) = (stopwatch.lap(moved_bytes), now.ns.saturating_sub(self.owed_ns));
                if is_sample {
                    charge(counters, debt.queue, lap.ns, packets);
                }
                self.owed_ns += owe(&self.debts, debt, &lap, &snapshot.config, counters, round_ns);
            }
        }
        self.batch = Some(batch.recycle());
        taken
    }
}

/// Charges a sample of time, and its frames, to a queue, for the rounds that are not timed as well.
#[cold]
fn charge(counters: &PortCounters, queue: QueueIndex, ns: u64, packets: u32) {
    if let Some(cost) = counters.queue_costs.get(queue.as_usize()) {
        cost.ns.add(ns * TIMED_ROUNDS);
        cost.packets.add(u64::from(packets) * TIMED_ROUNDS);
    }
}

/// Charges a queue, one of the `debts`, for what a burst took beyond its bytes; answers the time, ns, that is owed now for it.
/// `round_ns` is when the round began, less all that was owed before this burst.
///
/// Time is owed by all queues of the port: one after the other they would hold the worker many times as long. An uplink is charged
/// nothing: who makes a burst of its long is the receiver or the sender of some of its frames, and all who share it would pay.
#[cold]
fn owe(debts: &[Debt], debt: &Debt, lap: &Lap, config: &Config, counters: &PortCounters, round_ns: u64) -> u64 {
    let port = debt.port;
    if lap.is_explained() || config.underlay().uplink(port).is_some() {
        return 0;
    }
    debt.add(lap.owed_bytes);
    if lap.owed_ns > 0 {
        counters.owed_until_ns.raise(round_ns + lap.since_start_ns);
        let until_ns = counters.owed_until_ns.get();
        debts.iter().filter(|debt| debt.port == port).for_each(|debt| debt.until_ns.set(until_ns));
    }
    lap.owed_ns
}

/// Lists a new snapshot's queues with the debts they had: else a guest that keeps having something published, by switching a
/// ring on and off, would never repay its floods. Both lists are in the order of ports and queues. `owed_until_ns` tells until when a
/// port's queues sit out, whether they were away meanwhile or not.
fn carry_over(before: &[Debt], queues: &[RxQueue], after: &mut Vec<Debt>, owed_until_ns: impl Fn(PortIndex) -> u64) {
    let mut before = before.iter().peekable();
    after.clear();
    after.extend(queues.iter().map(|rx| {
        let key = (rx.port, rx.queue);
        while before.next_if(|debt| (debt.port, debt.queue) < key).is_some() {}
        let debt = before.next_if(|debt| (debt.port, debt.queue) == key);
        let bytes = debt.map_or(0, |debt| debt.bytes.get());
        let until_ns = Cell::new(owed_until_ns(rx.port));
        Debt { port: rx.port, queue: rx.queue, is_dozing: Cell::new(false), bytes: Cell::new(bytes), until_ns }
    }));
}
