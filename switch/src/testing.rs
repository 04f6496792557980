//! Test doubles: a port made of two queues in memory. Behind the feature `testing`.
//!
//! A test injects frames as the far side would send them and collects what the switch delivered. The port can be told
//! to be full, to lack offloads, or to take few frames at a time, so that tests reach what real devices seldom do.

use crate::batch::{Batch, Fit};
use crate::ids::{PortIndex, QueueIndex};
use crate::ledger::{DropReason, Tally};
use crate::offload::{EgressOffloads, Offload, OffloadClaim};
use crate::packet::{HEAD_COPY, Packet};
use crate::port::Port;
use crate::segment::Segment;
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// A frame with its offload fields, as it entered or left a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TestFrame {
    /// The whole frame.
    pub bytes: Vec<u8>,
    /// What the sender claims; ignored on frames that come out.
    pub claim: OffloadClaim,
    /// What is left to do; meaningless on frames that go in.
    pub offload: Offload,
}

#[derive(Default)]
struct Inner {
    to_switch: VecDeque<TestFrame>,
    from_switch: Vec<TestFrame>,
}

/// What a memory port can and cannot do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// What the far side can finish.
    pub offloads: EgressOffloads,
    /// Frames the far side takes before it is full; `None`: any number.
    pub room: Option<usize>,
    /// Frames handed over in one rx call at most; `None`: as many as the batch takes.
    pub burst: Option<usize>,
    /// Queues to receive by beyond the first; whichever is asked has the oldest frames.
    pub more_queues: u16,
    /// What each rx call waits before.
    pub look: Duration,
    /// Bytes put into the head by rx; `None`: [`HEAD_COPY`].
    pub head: Option<usize>,
}

/// A port in memory.
#[derive(Default)]
pub struct MemoryPort {
    inner: Mutex<Inner>,
    limits: Limits,
}

impl MemoryPort {
    /// A port without offloads, never full.
    pub fn new() -> Arc<MemoryPort> {
        Arc::default()
    }

    /// A port with these limits.
    pub fn with(limits: Limits) -> Arc<MemoryPort> {
        Arc::new(MemoryPort { limits, ..MemoryPort::default() })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no test panics while it holds the port")
    }

    /// The far side sends `bytes`.
    pub fn inject(&self, bytes: &[u8]) {
        self.inject_with(bytes, OffloadClaim::default());
    }

    /// The far side sends `bytes` with offload fields.
    pub fn inject_with(&self, bytes: &[u8], claim: OffloadClaim) {
        self.inner().to_switch.push_back(TestFrame { bytes: bytes.to_vec(), claim, offload: Offload::default() });
    }

    fn deliver(&self, inner: &mut Inner, packet: &Packet, tail: &[Segment<'_>], tally: &mut Tally) {
        if self.limits.room.is_some_and(|room| inner.from_switch.len() >= room) {
            return tally.drop(DropReason::RxRingFull);
        }
        let mut bytes = packet.head().to_vec();
        for segment in tail {
            let at = bytes.len();
            bytes.resize(at + segment.len() as usize, 0);
            segment.read(&mut bytes[at..]);
        }
        tally.moved(bytes.len());
        inner.from_switch.push(TestFrame { bytes, claim: OffloadClaim::default(), offload: packet.offload });
    }

    /// What the switch delivered since the last call.
    pub fn collect(&self) -> Vec<TestFrame> {
        std::mem::take(&mut self.inner().from_switch)
    }
}

impl Port for MemoryPort {
    fn rx_queues(&self) -> u16 {
        1 + self.limits.more_queues
    }

    fn tx_queues(&self) -> u16 {
        1
    }

    fn rx<'r>(&'r self, ingress: PortIndex, queue: QueueIndex, batch: &mut Batch<'r>, tally: &mut Tally) {
        let mut inner = self.inner();
        std::thread::sleep(self.limits.look);
        let burst = self.limits.burst.unwrap_or(usize::MAX);
        while (tally.packets as usize) < burst
            && let Some(mut packet) = batch.start(ingress, queue)
            && let Some(frame) = inner.to_switch.pop_front()
        {
            tally.moved(frame.bytes.len());
            let split = frame.bytes.len().min(self.limits.head.unwrap_or(HEAD_COPY));
            packet.head(split).expect("a test's head fits").copy_from_slice(&frame.bytes[..split]);
            if split < frame.bytes.len() {
                // The tail must live for `'r` without `unsafe`: leak it. Tests move few frames.
                let tail: &'static [u8] = Vec::leak(frame.bytes[split..].to_vec());
                packet.tail(Segment::from(tail)).expect("one segment is within the bound");
            }
            packet.commit(frame.claim);
        }
    }

    fn rx_done(&self, _queue: QueueIndex) {}

    fn tx(&self, _queue: QueueIndex, batch: &mut Batch<'_>, picks: &[u8], tally: &mut Tally) {
        let mut inner = self.inner();
        for &pick in picks {
            let pick = usize::from(pick);
            match batch.fit(pick, self.limits.offloads) {
                Fit::AsIs => {
                    let (packet, tail) = batch.frame(pick);
                    self.deliver(&mut inner, packet, tail, tally);
                }
                Fit::Cut => {
                    let mut cut = batch.cut(pick, self.limits.offloads);
                    tally.cut_into(cut.count());
                    while let Some((packet, tail)) = cut.next_segment() {
                        self.deliver(&mut inner, packet, tail, tally);
                    }
                }
                Fit::Drop(reason) => tally.drop(reason),
            }
        }
    }

    fn wake_fd(&self, _queue: QueueIndex) -> Option<BorrowedFd<'_>> {
        None
    }

    fn arm(&self, _queue: QueueIndex) -> bool {
        !self.inner().to_switch.is_empty()
    }

    fn disarm(&self, _queue: QueueIndex) {}
}
