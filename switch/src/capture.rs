//! Captures: copies of what passes a port, for somebody outside the packet path to read.
//!
//! A [`Capture`] stands at a port's place in the snapshot, so a worker learns of it by one look a burst and pays nothing
//! where there is none. Frames may not be held beyond a round; what is captured is copied whole ([`detach`]), head and
//! tail, into a bounded buffer. A full buffer loses the copy and counts it; the frame itself goes its way.
//!
//! Each worker has a lane of its own: a buffer behind a try-lock that is taken once a burst, and that only the reader of
//! the capture contends for. The reader swaps it for an empty one and reads at leisure; so a reader that stands still
//! costs captured copies and nothing else. Buffers are made, touched and freed on the reader's side: a worker neither
//! allocates nor takes a page fault. It makes one system call when a lane becomes half full, to call the reader early.
//!
//! From the device (rx) frames are copied as they came, before any stage sees them, and what became of them is noted after
//! the last stage. To the device (tx) frames are copied after they were sent: those that were delivered, with the offload
//! work that is left to the receiver, as they were before any cutting into segments.

mod reader;

use crate::batch::{BURST, Batch};
use crate::config::L2_OVERHEAD_MAX;
use crate::ids::WorkerIndex;
use crate::ledger::{Counter, DROP_REASONS, DropReason, Tally, WorkerLedger};
use crate::offload::{OffloadClaim, VNET_HEADER_LEN};
use crate::packet::Packet;
use crate::poll::Wake;
use crate::segment::Segment;
use crate::worker::{EgressLists, Now};
use crossbeam_utils::CachePadded;
pub use reader::Reader;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

/// Captures that may stand at one port at a time: each copies every frame once more.
pub const CAPTURES_PER_PORT: usize = 4;
/// Bytes a capture keeps of a frame at most: the longest IP packet with an Ethernet header and two tags, which is more
/// than any port carries.
pub const SNAPLEN_MAX: usize = u16::MAX as usize + L2_OVERHEAD_MAX;
/// Bytes of the smallest buffer of one lane: a few of the longest frames.
const LANE_MIN: usize = 512 * 1024;
/// Bytes of a frame that a filter is shown: all headers up to the ports behind eight tags and IPv4 options.
pub const FILTER_BYTES: usize = 128;
/// Looks at a lane that the reader is just swapping, before the copies of a burst are given up.
const LOCK_SPINS: usize = 1000;

const _: () = assert!(LANE_MIN / 4 >= SNAPLEN_MAX, "a lane holds the longest frame");
const _: () = assert!(BURST <= 64, "sets of picks are 64 bits");
const _: () = assert!(DROP_REASONS <= 64, "sets of reasons are 64 bits");

/// Which way a frame went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the device into the switch.
    Rx,
    /// From the switch to the device.
    Tx,
}

/// Decides which frames are captured. Called by workers, once a frame: must not block, allocate or panic.
pub trait Filter: Send + Sync {
    /// Whether a frame is wanted. `head` is its first [`FILTER_BYTES`] bytes or more, or all of it; `frame_len` the bytes
    /// of the whole.
    fn matches(&self, head: &[u8], frame_len: usize) -> bool;
}

/// What a capture takes.
pub struct CaptureConfig {
    /// Frames from the device.
    pub rx: bool,
    /// Frames to the device.
    pub tx: bool,
    /// Bytes kept of each frame; 0: frames are counted and not kept.
    pub snaplen: usize,
    /// Bytes for frames not yet read, over all workers.
    pub buffer: usize,
    /// Which frames; `None`: all.
    pub filter: Option<Box<dyn Filter>>,
}

/// A set of drop reasons.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reasons(u64);

impl Reasons {
    /// The reasons, in the order of [`DropReason::ALL`].
    pub fn iter(self) -> impl Iterator<Item = DropReason> {
        DropReason::ALL.iter().copied().filter(move |&reason| self.0 & (1 << reason as u64) != 0)
    }
}

/// What became of a captured frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Sent on to at least one port, or delivered to the device.
    Passed,
    /// Went no further, for one of these reasons: those that the switch counted in the same burst, so nearly always
    /// one. Empty: a stage answered or swallowed it.
    Stopped(Reasons),
    /// Was sent in a call in which some frames were dropped for these reasons, and the device did not say which.
    Doubtful(Reasons),
}

/// A captured frame, without its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// The time of the round it was captured in.
    pub at: Now,
    /// Which way it went.
    pub direction: Direction,
    /// What became of it.
    pub fate: Fate,
    /// What the sender left to do: as claimed by the device if from it, as told to the device if to it.
    pub offload: OffloadClaim,
    /// Bytes of the frame; the capture may hold fewer.
    pub frame_len: u32,
    /// Copies this capture lost between the record before, of the same worker, and this one.
    pub lost: u64,
    start: u32,
    len: u32,
}

/// Why a capture cannot stand at a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CaptureError {
    /// No config names the port.
    #[error("there is no such port")]
    NoPort,
    /// [`CAPTURES_PER_PORT`] are there.
    #[error("there are {CAPTURES_PER_PORT} captures at this port already")]
    TooMany,
}

/// A bounded number of captured frames.
pub struct Buffer {
    records: Vec<Record>,
    bytes: Box<[u8]>,
    used: usize,
}

impl Buffer {
    /// Half for the frames' bytes, half for the records: balanced at about 60 bytes a frame.
    fn new(bytes: usize) -> Buffer {
        let room = bytes / 2;
        // Not zero, and records pushed and cleared: the pages are there before a worker writes to them.
        let mut records = Vec::with_capacity(room / size_of::<Record>());
        let blank = Record {
            at: Now { ns: 1 },
            direction: Direction::Rx,
            fate: Fate::Passed,
            offload: OffloadClaim::default(),
            frame_len: 0,
            lost: 0,
            start: 0,
            len: 0,
        };
        records.resize(records.capacity(), blank);
        records.clear();
        Buffer { records, bytes: vec![0xff; room].into_boxed_slice(), used: 0 }
    }

    /// The frames with what was captured of their bytes, in the order of the worker.
    pub fn frames(&self) -> impl Iterator<Item = (&Record, &[u8])> {
        self.records.iter().map(|record| (record, &self.bytes[record.start as usize..][..record.len as usize]))
    }

    fn clear(&mut self) {
        self.records.clear();
        self.used = 0;
    }

    fn is_half_full(&self) -> bool {
        self.used * 2 > self.bytes.len() || self.records.len() * 2 > self.records.capacity()
    }
}

/// What the workers count of a capture.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CaptureTotals {
    /// Frames that passed in the directions asked for.
    pub seen: u64,
    /// Of these, frames the filter wanted.
    pub matched: u64,
    /// Bytes of the frames the filter wanted, uncut.
    pub matched_bytes: u64,
    /// Of the frames wanted, those not captured, for the buffer was full.
    pub lost: u64,
}

/// One worker's part of a capture.
struct Lane {
    filling: Mutex<Filling>,
    counters: CachePadded<LaneCounters>,
}

#[derive(Default)]
struct LaneCounters {
    seen: Counter,
    matched: Counter,
    matched_bytes: Counter,
    lost: Counter,
}

struct Filling {
    buffer: Buffer,
    /// The lane's `lost` as of its last record.
    lost_told: u64,
    /// Whether the reader was called since the last swap.
    has_called: bool,
}

/// A capture at one port. Workers write to it; one [`Reader`] reads.
pub struct Capture {
    config: CaptureConfig,
    lanes: Box<[Lane]>,
    wake: Wake,
}

impl Capture {
    /// A capture for a switch of `workers` workers, and its reader. It must still be put at a port's place.
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub fn new(config: CaptureConfig, workers: usize) -> io::Result<(Arc<Capture>, Reader)> {
        let config = CaptureConfig { snaplen: config.snaplen.min(SNAPLEN_MAX), ..config };
        // Two buffers a lane: one is filled while the other is read.
        let lane_bytes = if config.snaplen == 0 { 0 } else { (config.buffer / workers.max(1) / 2).max(LANE_MIN) };
        let lane = || Lane {
            filling: Mutex::new(Filling { buffer: Buffer::new(lane_bytes), lost_told: 0, has_called: false }),
            counters: CachePadded::default(),
        };
        let lanes = (0..workers).map(|_| lane()).collect();
        let capture = Arc::new(Capture { config, lanes, wake: Wake::new()? });
        let buffers = (0..workers).map(|_| Buffer::new(lane_bytes)).collect();
        Ok((capture.clone(), Reader { capture, buffers }))
    }

    /// What was counted so far; exact once no worker uses the capture any more.
    pub fn totals(&self) -> CaptureTotals {
        let mut totals = CaptureTotals::default();
        for lane in &self.lanes {
            totals.seen += lane.counters.seen.get();
            totals.matched += lane.counters.matched.get();
            totals.matched_bytes += lane.counters.matched_bytes.get();
            totals.lost += lane.counters.lost.get();
        }
        totals
    }

    /// What one worker does with one burst.
    fn burst(&self, worker: WorkerIndex, direction: Direction, now: Now) -> Burst<'_> {
        let lane = &self.lanes[worker.as_usize()];
        // Contended only while the reader swaps two pointers. The copies are lost if it was put to sleep meanwhile.
        let filling = (0..LOCK_SPINS).find_map(|_| match lane.filling.try_lock() {
            Ok(filling) => Some(filling),
            Err(_) => {
                std::hint::spin_loop();
                None
            }
        });
        let first = filling.as_ref().map_or(0, |filling| filling.buffer.records.len());
        Burst { capture: self, lane, filling, first, picked: [0; BURST], direction, now }
    }
}

/// One burst on its way into one capture.
struct Burst<'s> {
    capture: &'s Capture,
    lane: &'s Lane,
    /// `None`: the reader had it.
    filling: Option<MutexGuard<'s, Filling>>,
    /// How many records were there before.
    first: usize,
    /// The packet in the batch of each record since.
    picked: [u8; BURST],
    direction: Direction,
    now: Now,
}

impl Burst<'_> {
    /// Captures one packet of the batch, if it is wanted and there is room; at most once each.
    fn add(&mut self, batch: &mut Batch<'_>, index: usize, fate: Fate) {
        let counters = &self.lane.counters;
        let (packet, tail) = batch.frame(index);
        counters.seen.add(1);
        if !self.capture.wants(packet, tail) {
            return;
        }
        counters.matched.add(1);
        counters.matched_bytes.add(packet.len() as u64);
        let snaplen = self.capture.config.snaplen;
        if snaplen == 0 {
            return;
        }
        if !self.keep(packet, tail, index, fate) {
            counters.lost.add(1);
        }
    }

    /// Copies a packet into the lane; answers whether it could.
    fn keep(&mut self, packet: &Packet, tail: &[Segment<'_>], index: usize, fate: Fate) -> bool {
        let Some(filling) = &mut self.filling else { return false };
        let Filling { buffer, lost_told, .. } = &mut **filling;
        let at = buffer.records.len();
        let end = buffer.used + packet.len().min(self.capture.config.snaplen);
        let Some(room) = buffer.bytes.get_mut(buffer.used..end) else { return false };
        if at == buffer.records.capacity() {
            return false;
        }
        let len = detach(packet, tail, room);
        let lost = self.lane.counters.lost.get();
        buffer.records.push(Record {
            at: self.now,
            direction: self.direction,
            fate,
            offload: match self.direction {
                Direction::Rx => packet.claim,
                Direction::Tx => told(packet),
            },
            frame_len: packet.len() as u32,
            lost: lost - *lost_told,
            start: buffer.used as u32,
            len: len as u32,
        });
        buffer.used += len;
        *lost_told = lost;
        self.picked[at - self.first] = index as u8;
        true
    }

    /// Notes what became of the frames of this burst, by their place in the batch.
    fn settle(&mut self, fate: impl Fn(usize) -> Fate) {
        if let Some(filling) = &mut self.filling {
            let records = &mut filling.buffer.records[self.first..];
            for (record, &packet) in records.iter_mut().zip(&self.picked) {
                record.fate = fate(usize::from(packet));
            }
        }
    }
}

impl Drop for Burst<'_> {
    fn drop(&mut self) {
        let Some(mut filling) = self.filling.take() else { return };
        let is_call_due = !filling.has_called && filling.buffer.is_half_full();
        filling.has_called |= is_call_due;
        drop(filling);
        if is_call_due {
            self.capture.wake.wake();
        }
    }
}

impl Capture {
    fn wants(&self, packet: &Packet, tail: &[Segment<'_>]) -> bool {
        let Some(filter) = &self.config.filter else { return true };
        let head = packet.head();
        if head.len() >= FILTER_BYTES || packet.tail_len() == 0 {
            return filter.matches(head, packet.len());
        }
        let mut bytes = [0u8; FILTER_BYTES];
        let len = detach(packet, tail, &mut bytes);
        filter.matches(&bytes[..len], packet.len())
    }
}

/// Copies a frame, head and tail, to `room`, as much of it as fits; answers how many bytes.
///
/// A guest may write its tail meanwhile: the copy is then of either state, and never reads beyond the frame.
pub fn detach(packet: &Packet, tail: &[Segment<'_>], room: &mut [u8]) -> usize {
    let head = packet.head();
    let count = head.len().min(room.len());
    room[..count].copy_from_slice(&head[..count]);
    let mut used = count;
    for segment in tail {
        used += segment.read(&mut room[used..]);
    }
    used
}

/// The offload fields that a receiver of the packet is told.
fn told(packet: &Packet) -> OffloadClaim {
    let bytes = packet.offload.to_bytes();
    OffloadClaim::from_bytes(bytes.first_chunk::<VNET_HEADER_LEN>().expect("the longer header begins with it"))
}

/// A burst from a device, between its rx and the end of its last stage.
pub(crate) struct RxBurst<'s> {
    bursts: [Option<Burst<'s>>; CAPTURES_PER_PORT],
    dropped: [u64; DROP_REASONS],
}

impl<'s> RxBurst<'s> {
    /// Captures the frames of the batch as they came. `ledger` is the worker's, as it stands before the stages run.
    #[cold]
    #[inline(never)]
    pub(crate) fn begin(
        captures: &'s [Arc<Capture>],
        worker: WorkerIndex,
        now: Now,
        batch: &mut Batch<'_>,
        ledger: &WorkerLedger,
    ) -> RxBurst<'s> {
        let mut bursts = [const { None }; CAPTURES_PER_PORT];
        for (place, capture) in bursts.iter_mut().zip(captures.iter().filter(|capture| capture.config.rx)) {
            let mut burst = capture.burst(worker, Direction::Rx, now);
            for index in 0..batch.len() {
                burst.add(batch, index, Fate::Passed);
            }
            *place = Some(burst);
        }
        RxBurst { bursts, dropped: std::array::from_fn(|reason| ledger.dropped[reason].get()) }
    }

    /// Notes what the stages decided: the picks they made, of which those in `answered` (bit n: packet n) are no longer what came in,
    /// and the drops they counted in `ledger`.
    #[cold]
    #[inline(never)]
    pub(crate) fn finish(mut self, lists: &EgressLists, answered: u64, ledger: &WorkerLedger) {
        let mut passed = 0u64;
        for (_, picks) in lists.picks() {
            for &pick in picks {
                passed |= 1 << pick;
            }
        }
        passed &= !answered;
        let mut reasons = Reasons::default();
        for (reason, &before) in self.dropped.iter().enumerate() {
            reasons.0 |= u64::from(ledger.dropped[reason].get() != before) << reason;
        }
        for burst in self.bursts.iter_mut().flatten() {
            burst.settle(|packet| match passed & 1 << packet != 0 {
                true => Fate::Passed,
                false => Fate::Stopped(reasons),
            });
        }
    }
}

/// Captures the packets of `picks` that a tx call delivered, as `tally` tells.
#[cold]
#[inline(never)]
pub(crate) fn tx(
    captures: &[Arc<Capture>],
    worker: WorkerIndex,
    now: Now,
    batch: &mut Batch<'_>,
    picks: &[u8],
    tally: &Tally,
) {
    let dropped = tally.dropped_picks(picks.len());
    let mut reasons = Reasons::default();
    for (reason, _) in tally.drops() {
        reasons.0 |= 1 << reason as u64;
    }
    let fate = if dropped.is_some() { Fate::Passed } else { Fate::Doubtful(reasons) };
    let dropped = dropped.unwrap_or(0);
    for capture in captures.iter().filter(|capture| capture.config.tx) {
        let mut burst = capture.burst(worker, Direction::Tx, now);
        for (at, &pick) in picks.iter().enumerate() {
            if dropped & 1 << at == 0 {
                burst.add(batch, usize::from(pick), fate);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
