//! Two ends of memory: what one sends the other receives, in this thread and without a device between them.
//!
//! It shows what the generator and its sink cost by themselves, and in tests it loses, repeats and reorders frames as
//! told. A sent frame stays in its slot until it is received.

use super::{Sink, Slice, Source, write_frame};
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
            Rc::new(RefCell::new(Lane { buffers, buffer_len, lens: [0; SLOTS], put: 0, taken: 0, mischief }))
        };
        let (there, back) = (lane(), lane());
        [MemoryLink { outgoing: there.clone(), incoming: back.clone() }, MemoryLink { outgoing: back, incoming: there }]
    }

    #[inline]
    pub(crate) fn send(&mut self, max: usize, source: &mut impl Source) -> usize {
        let lane = &mut *self.outgoing.borrow_mut();
        let count = max.min(SLOTS - (lane.put - lane.taken) as usize);
        for _ in 0..count {
            let slot = lane.put as usize % SLOTS;
            let at = slot * lane.buffer_len;
            let frame = source.next();
            write_frame(&mut lane.buffers[at..at + lane.buffer_len], &frame);
            lane.lens[slot] = frame.len;
            lane.put += 1;
        }
        count
    }

    #[inline]
    pub(crate) fn receive(&mut self, max: usize, sink: &mut impl Sink) -> usize {
        let lane = &mut *self.incoming.borrow_mut();
        let count = max.min((lane.put - lane.taken) as usize);
        let end = lane.taken + count as u64;
        while lane.taken < end {
            let slot = lane.taken as usize % SLOTS;
            let at = slot * lane.buffer_len;
            let frame = &mut lane.buffers[at..at + lane.lens[slot] as usize];
            match lane.mischief {
                None => sink.take(&Slice(frame)),
                Some(mischief) => meddle(mischief, lane, sink),
            }
            lane.taken += 1;
        }
        count
    }
}

/// Delivers the next frame of a lane as mischief wants it.
#[cold]
fn meddle(mischief: Mischief, lane: &mut Lane, sink: &mut impl Sink) {
    let range = |lane: &Lane, number: u64| {
        let slot = number as usize % SLOTS;
        let at = slot * lane.buffer_len;
        at..at + lane.lens[slot] as usize
    };
    let now = range(lane, lane.taken);
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
                let next = range(lane, lane.taken + 1);
                sink.take(&Slice(&lane.buffers[next]));
                lane.taken += 1;
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
