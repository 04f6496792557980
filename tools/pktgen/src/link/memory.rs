//! Two ends of memory: what one sends the other receives, in this thread and without a device between them.
//!
//! It shows what the generator and its sink cost by themselves, and in tests it loses, repeats and reorders frames as
//! told. A sent frame stays in its slot until it is received.

use super::{Incoming, Lap, Sink, Slice, Source, write_frame};
use crate::traffic::Stream;
use std::cell::RefCell;
use std::rc::Rc;

/// Frames in flight in each direction.
const SLOTS: usize = 1024;

/// What the way does to frame number n, counted from the start; for tests.
pub(crate) type Mischief = fn(u64) -> Fate;

/// What becomes of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    /// It arrives.
    #[cfg_attr(not(test), expect(dead_code, reason = "without mischief nobody asks"))]
    Arrives,
    /// It does not.
    #[cfg(test)]
    IsLost,
    /// It arrives twice.
    #[cfg(test)]
    Doubles,
    /// It arrives after the next one.
    #[cfg(test)]
    IsOvertaken,
    /// A byte of its payload is not what it was.
    #[cfg(test)]
    IsCorrupted,
}

/// One direction.
struct Lane {
    buffers: Vec<u8>,
    buffer_len: usize,
    lens: [u32; SLOTS],
    /// Slots that are used, one after another, and which of them is next at either end.
    slots: usize,
    slot_put: usize,
    slot_taken: usize,
    lap: Lap,
    /// Frames put in, and taken out, since the start.
    put: u64,
    taken: u64,
    mischief: Option<Mischief>,
}

/// One end.
pub(crate) struct MemoryLink {
    outgoing: Rc<RefCell<Lane>>,
    incoming: Rc<RefCell<Lane>>,
}

impl MemoryLink {
    /// Both ends of a new way with buffers for frames of `size_max` bytes that begin with `filler`.
    pub(crate) fn pair(size_max: usize, filler: &[u8], mischief: Option<Mischief>) -> [MemoryLink; 2] {
        // An odd number of cache lines: buffers a power of two apart would share the same few sets of a cache.
        let buffer_len = (size_max.next_multiple_of(128)) + 64;
        let lane = || {
            let buffers = super::filled_slots(SLOTS, buffer_len, 0, filler);
            Rc::new(RefCell::new(Lane {
                buffers,
                buffer_len,
                lens: [0; SLOTS],
                slots: SLOTS,
                slot_put: 0,
                slot_taken: 0,
                lap: Lap::default(),
                put: 0,
                taken: 0,
                mischief,
            }))
        };
        let (there, back) = (lane(), lane());
        [MemoryLink { outgoing: there.clone(), incoming: back.clone() }, MemoryLink { outgoing: back, incoming: there }]
    }

    /// Only this stream goes this way; nothing was sent yet.
    pub(crate) fn dedicate(&mut self, stream: &Stream) {
        let lane = &mut *self.outgoing.borrow_mut();
        if let Some(cycle) = stream.cycle(SLOTS) {
            lane.lap = Lap::new(cycle, SLOTS);
            lane.slots = lane.lap.buffers;
        }
    }

    #[inline]
    pub(crate) fn send(&mut self, max: usize, source: &mut impl Source) -> usize {
        let lane = &mut *self.outgoing.borrow_mut();
        let count = max.min(lane.slots - (lane.put - lane.taken) as usize);
        let laid = source.marks().filter(|_| lane.lap.is_whole(source, count));
        for number in 0..count {
            let slot = lane.slot_put;
            let at = slot * lane.buffer_len;
            let buffer = &mut lane.buffers[at..at + lane.buffer_len];
            if let Some(marks) = laid {
                for (chunk, word) in buffer[marks.at..].chunks_exact_mut(8).zip(marks.words(number as u32)) {
                    chunk.copy_from_slice(&word.to_le_bytes());
                }
            } else {
                let frame = source.next();
                write_frame(buffer, &frame);
                lane.lens[slot] = frame.len;
            }
            lane.slot_put = if slot + 1 == lane.slots { 0 } else { slot + 1 };
        }
        if laid.is_some() {
            source.advance(count);
        }
        lane.put += count as u64;
        count
    }

    #[inline]
    pub(crate) fn receive(&mut self, max: usize, sink: &mut impl Sink) -> usize {
        let lane = &mut *self.incoming.borrow_mut();
        let count = max.min((lane.put - lane.taken) as usize);
        match lane.mischief {
            None => {
                let mut left = count;
                while left > 0 {
                    let first = lane.slot_taken;
                    let run = left.min(lane.slots - first);
                    sink.take_all(run, |number| lane.kept(first + number));
                    lane.pass(run);
                    left -= run;
                }
            }
            Some(mischief) => {
                let end = lane.taken + count as u64;
                while lane.taken < end {
                    meddle(mischief, lane, sink);
                    lane.pass(1);
                }
            }
        }
        count
    }
}

impl Lane {
    /// The frame in a slot.
    #[inline]
    fn kept(&self, slot: usize) -> Kept<'_> {
        let at = slot * self.buffer_len;
        Kept { buffer: &self.buffers[at..at + self.buffer_len], len: self.lens[slot] as usize }
    }

    /// Passes over frames that were delivered, up to the last slot at most.
    #[inline]
    fn pass(&mut self, count: usize) {
        self.taken += count as u64;
        self.slot_taken += count;
        if self.slot_taken == self.slots {
            self.slot_taken = 0;
        }
    }
}

/// A frame in its buffer, which is longer than the frame.
struct Kept<'a> {
    buffer: &'a [u8],
    len: usize,
}

impl Incoming for Kept<'_> {
    #[inline]
    fn len(&self) -> usize {
        self.len
    }

    // In the words in which it was written: a processor hands on a store that is still under way to a load of the same
    // bytes, but not two stores to one load.
    #[inline]
    fn word(&self, at: usize) -> u64 {
        let (from, shift) = (at & !7, 8 * (at % 8));
        let words: &[u8; 16] = self.buffer[from..].first_chunk().expect("a buffer is longer than a frame");
        (u128::from_le_bytes(*words) >> shift) as u64
    }

    #[inline]
    fn words(&self, at: usize) -> [u64; 2] {
        Slice(self.buffer).words(at)
    }

    fn read(&self, at: usize, out: &mut [u8]) {
        Slice(self.buffer).read(at, out);
    }
}

/// Delivers the next frame of a lane as mischief wants it.
#[cold]
fn meddle(mischief: Mischief, lane: &mut Lane, sink: &mut impl Sink) {
    let range = |lane: &Lane, slot: usize| {
        let at = slot * lane.buffer_len;
        at..at + lane.lens[slot] as usize
    };
    let now = range(lane, lane.slot_taken);
    match mischief(lane.taken) {
        Fate::Arrives => sink.take(&Slice(&lane.buffers[now])),
        #[cfg(test)]
        Fate::IsLost => {}
        #[cfg(test)]
        Fate::Doubles => {
            sink.take(&Slice(&lane.buffers[now.clone()]));
            sink.take(&Slice(&lane.buffers[now]));
        }
        #[cfg(test)]
        Fate::IsOvertaken => {
            if lane.taken + 1 < lane.put {
                let next = range(lane, (lane.slot_taken + 1) % lane.slots);
                sink.take(&Slice(&lane.buffers[next]));
                lane.pass(1);
            }
            sink.take(&Slice(&lane.buffers[now]));
        }
        #[cfg(test)]
        Fate::IsCorrupted => {
            let at = now.end - 1;
            lane.buffers[at] ^= 0x40;
            sink.take(&Slice(&lane.buffers[now]));
            lane.buffers[at] ^= 0x40;
        }
    }
}
