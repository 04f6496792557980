//! A guest's virtio device over vhost-user: we are its driver.
//!
//! Every send buffer holds the virtio header and the filler from the start; a frame writes its first cache line there and
//! nothing else, and its descriptor only if its size is another than the buffer's last; after the first lap of a stream
//! that repeats itself it only writes its marks ([`Lap`]). Frames begin on a cache line. A
//! frame that arrived is looked at where it lies: one line, for the header before it tells nothing unless the buffer
//! is full and the frame goes on in the next (virtio 1.2 section 5.1.6.4.1). Memory is asked for some frames ahead.

use super::{Incoming, Lap, Result, Sink, Source};
use crate::options::Arguments;
use crate::traffic::{HEAD, SIZES, Shape, Stream};
use crate::tunnel::OUTER;
use anyhow::{Context, ensure};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use switch::offload::VNET_HEADER_MRG_LEN;
use vhost::driver::{Driver, DriverConfig, Received, Receiver, Ring, Sender, Used};
use vhost::memory::DriverMemory;
use vhost::net::{
    F_CSUM, F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6, F_HOST_TSO4, F_IN_ORDER, F_MQ, F_MRG_RXBUF, F_RING_PACKED,
    F_VERSION_1,
};

/// Bytes of a buffer for frames that are not large: room for the header and the longest, at an odd number of cache lines, as in real
/// pools of packets: buffers a power of two apart would all fall into the same few sets of a cache.
const BUFFER: usize = 2048 + 256 + 64;
const CACHE_LINE: usize = 64;
/// Buffers taken at a time.
const CHUNK: usize = 64;

const _: () = assert!(BUFFER > VNET_HEADER_MRG_LEN + *SIZES.end() + OUTER, "no frame of ours fills a buffer");

/// What a guest agreed on with its device, as far as it bears on speed.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Features {
    /// `packed` or `split`.
    ring: &'static str,
    /// Entries of each ring.
    ring_size: u16,
    /// A frame may be spread over several receive buffers.
    mergeable: bool,
    in_order: bool,
    /// The guest may leave checksums, and the cutting of large TCP segments, to the device.
    checksum: bool,
    tso: bool,
    /// The device may do the same to the guest.
    guest_checksum: bool,
    guest_tso: bool,
    /// The feature bits, hexadecimal (virtio 1.2 sections 5.1.3 and 6).
    features: String,
}

/// What lies in the buffers of one send ring.
#[derive(Clone)]
struct Queue {
    /// For each slot: bytes its descriptor tells.
    lens: Vec<u32>,
    lap: Lap,
}

/// One guest.
pub(crate) struct VhostLink {
    path: PathBuf,
    driver: Driver,
    memory: Arc<DriverMemory>,
    queues: Vec<Queue>,
    /// Frames may be spread over several buffers.
    is_large: bool,
}

impl VhostLink {
    /// Makes the guest, which listens if it is to, but connects to nothing.
    pub(crate) fn new(path: &Path, arguments: &Arguments, shape: &Shape) -> Result<VhostLink> {
        let is_large = shape.segment_size.is_some();
        let size_max = shape.size_max();
        // An odd number of cache lines.
        let whole = (VNET_HEADER_MRG_LEN + size_max + 1).next_multiple_of(128) + 64;
        let mut config = DriverConfig::new(path);
        config.is_listening = arguments.listen;
        config.queue_size = arguments.ring;
        config.pairs = arguments.queues;
        config.is_huge = arguments.huge_pages;
        config.buffer_offset = CACHE_LINE - VNET_HEADER_MRG_LEN;
        config.send_buffer_len = BUFFER.max(whole);
        config.receive_buffer_len = if arguments.no_mergeable { BUFFER.max(whole) } else { BUFFER };
        for (is_wanted, features) in [
            (arguments.no_mergeable, F_MRG_RXBUF),
            (!arguments.packed, F_RING_PACKED),
            (!arguments.in_order, F_IN_ORDER),
            (arguments.queues == 1, F_MQ),
            (!is_large, F_CSUM | F_HOST_TSO4 | F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6),
        ] {
            config.features = if is_wanted { config.features & !features } else { config.features | features };
        }
        let mut driver = Driver::new(config).with_context(|| path.display().to_string())?;
        let memory = driver.memory().clone();
        for (sender, _) in driver.pairs() {
            for slot in 0..sender.ring.slots() {
                let at = sender.ring.buffer_at(slot);
                memory.write(at, &shape.virtio_header());
                memory.write(at + VNET_HEADER_MRG_LEN, &shape.filler[..size_max.max(HEAD)]);
            }
        }
        let queue = Queue { lens: vec![0; usize::from(arguments.ring)], lap: Lap::default() };
        let queues = vec![queue; usize::from(arguments.queues)];
        Ok(VhostLink { path: path.to_owned(), driver, memory, queues, is_large })
    }

    /// Connects, agrees on features and starts all rings.
    pub(crate) fn start(&mut self, arguments: &Arguments) -> Result<()> {
        self.driver.start()?;
        let mut needed = F_VERSION_1;
        for (is_asked, feature) in [
            (arguments.in_order, F_IN_ORDER),
            (arguments.queues > 1, F_MQ),
            (self.is_large, F_HOST_TSO4 | F_CSUM),
            (!arguments.no_mergeable, F_MRG_RXBUF),
        ] {
            needed |= if is_asked { feature } else { 0 };
        }
        let missing = needed & !self.driver.features;
        ensure!(missing == 0, "the backend does not offer what is asked for: feature bits {missing:#x}");
        for pair in 1..self.driver.pair_count() {
            self.driver.enable_pair(pair, true)?;
        }
        Ok(())
    }

    /// Fails if the switch closed the connection, as it does when it ends or finds a fault.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(self.driver.is_connected(), "{}: the switch closed the connection", self.path.display());
        Ok(())
    }

    /// What was agreed on.
    pub(crate) fn features(&self) -> Features {
        let bits = self.driver.features;
        let has = |wanted: u64| bits & wanted == wanted;
        Features {
            ring: if has(F_RING_PACKED) { "packed" } else { "split" },
            ring_size: self.driver.sender.ring.size(),
            mergeable: has(F_MRG_RXBUF),
            in_order: has(F_IN_ORDER),
            checksum: has(F_CSUM),
            tso: has(F_HOST_TSO4),
            guest_checksum: has(F_GUEST_CSUM),
            guest_tso: has(F_GUEST_TSO4),
            features: format!("{bits:#x}"),
        }
    }

    fn queue(&mut self, queue: usize) -> (&mut Sender, &mut Queue) {
        let sender = match queue.checked_sub(1) {
            None => &mut self.driver.sender,
            Some(other) => &mut self.driver.others[other].0,
        };
        (sender, &mut self.queues[queue])
    }

    /// By this queue goes only this stream; nothing was sent yet.
    pub(crate) fn dedicate(&mut self, queue: usize, stream: &Stream) {
        let (sender, queue) = self.queue(queue);
        let slots = usize::from(sender.ring.slots());
        if let Some(cycle) = stream.cycle(slots) {
            let lap = Lap::new(cycle, slots);
            if sender.limit(lap.buffers as u16) {
                queue.lap = lap;
            }
        }
    }

    #[inline]
    pub(crate) fn send(&mut self, queue: usize, max: usize, source: &mut impl Source) -> usize {
        let memory = self.memory.clone();
        let (sender, queue) = self.queue(queue);
        let count = max.min(usize::from(sender.free())) as u16;
        let ring = &mut sender.ring;
        let frame_at = |ring: &Ring, ahead: u16| ring.buffer_at(ring.next_slot(ahead)) + VNET_HEADER_MRG_LEN;
        let is_laid = ring.turn().is_some() && queue.lap.is_whole(source, count.into());
        let laid = source.marks().filter(|_| is_laid);
        let first_write = laid.map_or(0, |marks| marks.at);
        for ahead in 0..count {
            memory.prefetch_to_write(frame_at(ring, ahead) + first_write);
        }
        if let Some(marks) = laid {
            for number in 0..count {
                let words = memory.words64::<3>(frame_at(ring, number) + marks.at);
                for (word, value) in words.iter().zip(marks.words(number.into())) {
                    word.store(value.to_le(), Ordering::Relaxed);
                }
            }
            source.advance(count.into());
        } else {
            for number in 0..count {
                let slot = ring.next_slot(number);
                let at = ring.buffer_at(slot) + VNET_HEADER_MRG_LEN;
                let frame = source.next();
                for (word, value) in memory.words64::<{ HEAD / 8 }>(at).iter().zip(frame.head) {
                    word.store(value.to_le(), Ordering::Relaxed);
                }
                if !frame.rest.is_empty() {
                    memory.write(at + HEAD, frame.rest);
                }
                let len = frame.len + VNET_HEADER_MRG_LEN as u32;
                if queue.lens[usize::from(slot)] != len {
                    queue.lens[usize::from(slot)] = len;
                    ring.describe(slot, len);
                }
            }
        }
        ring.post_next(count);
        usize::from(count)
    }

    #[inline]
    pub(crate) fn receive(&mut self, max: usize, sink: &mut impl Sink) -> usize {
        let Driver { receiver, others, .. } = &mut self.driver;
        let mut count = 0;
        for receiver in std::iter::once(receiver).chain(others.iter_mut().map(|(_, receiver)| receiver)) {
            count += if self.is_large {
                receiver.visit(max, |frame| sink.take(&Spread(frame)))
            } else {
                receive_whole(&self.memory, receiver, max, sink)
            };
        }
        count
    }
}

/// Takes frames of which each lies in one buffer.
#[inline]
fn receive_whole(memory: &DriverMemory, receiver: &mut Receiver, max: usize, sink: &mut impl Sink) -> usize {
    let ring = &mut receiver.ring;
    let mut count = 0;
    while count < max {
        let mut used = [Used::default(); CHUNK];
        let taken = ring.take_used(&mut used[..CHUNK.min(max - count)]);
        if taken == 0 {
            break;
        }
        let used = &used[..taken];
        for used in used {
            memory.prefetch(ring.buffer_at(used.slot) + VNET_HEADER_MRG_LEN + sink.first_look());
        }
        sink.take_all(taken, |number| {
            let at = ring.buffer_at(used[number].slot) + VNET_HEADER_MRG_LEN;
            Whole { memory, at, len: (used[number].len as usize).saturating_sub(VNET_HEADER_MRG_LEN) }
        });
        ring.post_next(taken as u16);
        count += taken;
    }
    count
}

/// A frame in one buffer.
struct Whole<'a> {
    memory: &'a DriverMemory,
    at: usize,
    len: usize,
}

impl Incoming for Whole<'_> {
    #[inline]
    fn len(&self) -> usize {
        self.len
    }

    #[inline]
    fn word(&self, at: usize) -> u64 {
        let words = self.memory.words64::<2>(self.at + (at & !7));
        let [low, high] = words.each_ref().map(|word| u128::from(u64::from_le(word.load(Ordering::Relaxed))));
        ((high << 64 | low) >> (8 * (at % 8))) as u64
    }

    #[inline]
    fn words(&self, at: usize) -> [u64; 2] {
        // Frames begin on a cache line, so a word of memory is a word of the frame; the buffer is longer than any of them.
        let word =
            |index: usize| u128::from(u64::from_le(self.memory.word64(self.at + 8 * index).load(Ordering::Relaxed)));
        let (index, shift) = (at / 8, 8 * (at % 8));
        let (low, middle) = (word(index), word(index + 1));
        let high = if shift == 0 { 0 } else { word(index + 2) };
        [((low | middle << 64) >> shift) as u64, ((middle | high << 64) >> shift) as u64]
    }

    fn read(&self, at: usize, out: &mut [u8]) {
        self.memory.read(self.at + at, out);
    }
}

/// A frame that may be spread over several buffers.
struct Spread<'a, 'r>(&'a Received<'r>);

impl Incoming for Spread<'_, '_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn words(&self, at: usize) -> [u64; 2] {
        [self.0.word(at).swap_bytes(), self.0.word(at + 8).swap_bytes()]
    }

    fn read(&self, at: usize, out: &mut [u8]) {
        self.0.read(at, out);
    }
}
