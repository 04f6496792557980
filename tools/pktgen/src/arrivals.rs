//! The sink: what becomes of every frame that arrives.
//!
//! Each is counted exactly once: received (new, for its stream, at the right port), come before, misdelivered (a frame of a
//! stream that goes to another port: the isolation check), or foreign (not one of ours, such as what a kernel says by
//! itself). Bytes and delays are those of received frames.

use crate::latency::{Delays, Which};
use crate::link::{Incoming, Sink};
use crate::sequence::{Counts, Tracker};
use crate::signature::{self, Signature};
use crate::traffic::{ANNOUNCEMENT, PORTS_MAX, Shape};
use std::time::Instant;

/// The receiving end of one stream.
struct Arrival {
    to: usize,
    tracker: Tracker,
    /// Sequence number and delay of the frame before.
    last: (u32, u64),
}

/// Frames by what is wrong with them, and bytes of those with which nothing is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) bytes: u64,
    pub(crate) misdelivered: u64,
    pub(crate) foreign: u64,
    pub(crate) corrupted: u64,
    /// Announcements, which are meant to teach and not to arrive.
    pub(crate) announced: u64,
}

/// All streams' receiving ends.
pub(crate) struct Arrivals {
    arrivals: Vec<Arrival>,
    shape: Shape,
    /// Where signatures begin at each port; `None`: in the trailer.
    signatures_at: [Option<usize>; PORTS_MAX],
    /// The same at the port whose frames are taken now.
    signature_at: Option<usize>,
    /// The port whose frames are taken now.
    port: usize,
    start: Instant,
    /// When the first of the frames taken now was looked at; ns since `start`.
    now_ns: u64,
    which: Which,
    /// None of the frames at this port was looked at yet.
    is_first: bool,
    pub(crate) totals: Totals,
    pub(crate) delays: Delays,
    /// Instead of the histograms, delays are kept here until it is known whether they count; `None`: they do.
    pub(crate) pending: Option<Pending>,
    payload: Vec<u8>,
}

/// Delays that are kept back of each window: of more frames than arrive in one.
const PENDING_MAX: usize = 1 << 16;

/// A frame's delay, and by how much that of the frame before differed, ns; `None`: there was none.
type Delay = (u64, Option<u64>);

/// Delays of which it is not known whether they count, and those that do but are not noted yet. To note a window's delays all at
/// once would be an interruption of its own, so each frame of the next window notes two.
pub(crate) struct Pending {
    window: Vec<Delay>,
    counting: Vec<Delay>,
}

impl Pending {
    /// None, with room for all of a window.
    pub(crate) fn new() -> Pending {
        let [window, counting] = [(); 2].map(|()| Vec::with_capacity(PENDING_MAX));
        Pending { window, counting }
    }

    #[inline]
    fn keep(&mut self, delay: Delay, delays: &mut Delays) {
        if self.window.len() < PENDING_MAX {
            self.window.push(delay);
        }
        let end = self.counting.len().saturating_sub(2);
        self.counting.drain(end..).for_each(|delay| delays.note(delay));
    }

    /// Ends a window, whose delays count or not.
    pub(crate) fn close(&mut self, is_counted: bool, delays: &mut Delays) {
        self.finish(delays);
        match is_counted {
            true => std::mem::swap(&mut self.window, &mut self.counting),
            false => self.window.clear(),
        }
    }

    /// Notes all that count.
    pub(crate) fn finish(&mut self, delays: &mut Delays) {
        self.counting.drain(..).for_each(|delay| delays.note(delay));
    }
}

impl Arrivals {
    /// For streams that go to the given ports; times of sending count from `start`.
    pub(crate) fn new(shape: &Shape, to: impl IntoIterator<Item = usize>, which: Which, start: Instant) -> Arrivals {
        let arrivals = to.into_iter().map(|to| Arrival { to, tracker: Tracker::new(0), last: (0, 0) }).collect();
        Arrivals {
            arrivals,
            shape: shape.clone(),
            signatures_at: std::array::from_fn(|port| shape.signature_at().map(|at| at + shape.outer(port))),
            signature_at: shape.signature_at(),
            port: 0,
            start,
            now_ns: 0,
            which,
            is_first: false,
            totals: Totals::default(),
            delays: Delays::new(),
            pending: None,
            payload: Vec::new(),
        }
    }

    /// Counts anew; frames of stream n count from number `firsts[n]` on.
    pub(crate) fn restart(&mut self, firsts: impl Iterator<Item = u64>) {
        for (arrival, first) in self.arrivals.iter_mut().zip(firsts) {
            arrival.tracker.restart(first);
            arrival.last = ((first as u32).wrapping_sub(2), 0);
        }
        self.totals = Totals::default();
        self.delays.restart();
    }

    /// Changes which delays are noted.
    pub(crate) fn set_which(&mut self, which: Which) {
        self.which = which;
    }

    /// The following frames arrive at `port`, together.
    #[inline]
    pub(crate) fn begin(&mut self, port: usize) {
        (self.port, self.is_first, self.signature_at) = (port, true, self.signatures_at[port]);
    }

    /// Counts of one stream.
    pub(crate) fn counts(&self, stream: usize) -> Counts {
        self.arrivals[stream].tracker.counts()
    }

    /// Different frames that arrived, and numbers missing so far, over all streams.
    pub(crate) fn received_and_missing(&self) -> (u64, u64) {
        let counts = self.arrivals.iter().map(|arrival| arrival.tracker.counts());
        counts.fold((0, 0), |(received, missing), counts| (received + counts.received, missing + counts.missing))
    }

    /// Whether every frame up to number `next` of the stream arrived.
    pub(crate) fn is_complete(&self, stream: usize, next: u64) -> bool {
        let tracker = &self.arrivals[stream].tracker;
        tracker.next() == next && tracker.counts().missing == 0
    }

    fn signature(&self, frame: &impl Incoming) -> Option<Signature> {
        let at = match self.signature_at {
            Some(at) => at,
            None => frame.len().checked_sub(signature::LEN)?,
        };
        self.signature_from(frame, at)
    }

    #[inline]
    fn signature_from(&self, frame: &impl Incoming, at: usize) -> Option<Signature> {
        if frame.len() < at + signature::LEN {
            return None;
        }
        Signature::from_words(frame.words(at))
    }

    /// A frame without a signature where it should be: a tag may have come or gone on the way.
    #[cold]
    fn signature_elsewhere(&self, frame: &impl Incoming) -> Option<Signature> {
        let at = self.signature_at?;
        [at.wrapping_sub(4), at + 4, at.wrapping_sub(8), at + 8]
            .into_iter()
            .filter(|&at| at < at + signature::LEN)
            .find_map(|at| self.signature_from(frame, at))
    }

    /// Whether the frame's payload is what was sent.
    #[cold]
    fn is_intact(&mut self, frame: &impl Incoming, signature: Signature) -> bool {
        let len = frame.len();
        self.payload.resize(len, 0);
        frame.read(0, &mut self.payload);
        let number = u64::from(signature.sequence);
        if self.shape.templates.is_empty() {
            // Wherever the signature lies now, it is where it was from the end of the frame.
            let Some(at) = self.payload.windows(signature::LEN).position(|bytes| bytes == signature.bytes()) else {
                return false;
            };
            let from = at + signature::LEN;
            let sent_at = self.shape.signature_at().expect("frames of our own have a place for it") + signature::LEN;
            return self.payload[from..] == *self.shape.payload(number, sent_at, len - from);
        }
        let template = self.shape.template(signature.sequence);
        let kept = template.bytes().len() - signature::TRAILER;
        len == template.bytes().len() && self.payload[..kept] == template.bytes()[..kept]
    }

    /// Notes a frame's delay.
    #[inline]
    fn note_delay(&mut self, stream: usize, signature: Signature) {
        // The clock is asked once it is known that something arrived: earlier, and an interruption in between would make
        // delays too short, which nobody would notice.
        if std::mem::take(&mut self.is_first) {
            self.now_ns = self.start.elapsed().as_nanos() as u64;
        }
        let delay = self.now_ns.saturating_sub(signature.time_ns);
        let mut variation = None;
        if self.which == Which::All {
            let arrival = &mut self.arrivals[stream];
            let (last, last_delay) = std::mem::replace(&mut arrival.last, (signature.sequence, delay));
            variation = (last.wrapping_add(1) == signature.sequence).then(|| delay.abs_diff(last_delay));
        }
        match &mut self.pending {
            Some(pending) => pending.keep((delay, variation), &mut self.delays),
            None => self.delays.note((delay, variation)),
        }
    }
}

impl Arrivals {
    /// Counts a frame; answers its stream if it was new there and arrived where it belongs.
    #[inline]
    fn count(&mut self, frame: &impl Incoming) -> Option<usize> {
        let Some(signature) = self.signature(frame).or_else(|| self.signature_elsewhere(frame)) else {
            self.totals.foreign += 1;
            return None;
        };
        let stream = usize::from(signature.stream);
        let Some(arrival) = self.arrivals.get_mut(stream) else {
            let is_announcement = signature.stream == ANNOUNCEMENT;
            self.totals.announced += u64::from(is_announcement);
            self.totals.foreign += u64::from(!is_announcement);
            return None;
        };
        if arrival.to != self.port {
            self.totals.misdelivered += 1;
            return None;
        }
        let before = arrival.tracker.counts().received;
        let is_next = arrival.tracker.note(signature.sequence);
        if !is_next && arrival.tracker.counts().received == before {
            return None;
        }
        self.totals.bytes += frame.len() as u64;
        if self.shape.is_verified && !self.is_intact(frame, signature) {
            self.totals.corrupted += 1;
        }
        match self.which {
            Which::All => self.note_delay(stream, signature),
            Which::Sampled if self.is_first => self.note_delay(stream, signature),
            Which::Sampled | Which::Off => {}
        }
        Some(stream)
    }

    /// Counts frames as long as each is the one awaited next of a stream, of which nothing else is to be known; answers
    /// how many.
    #[inline]
    fn count_run<I: Incoming>(&mut self, stream: usize, frames: impl Iterator<Item = I>) -> usize {
        let Some(at) = self.signature_at else { return 0 };
        if self.shape.is_verified || self.which == Which::All {
            return 0;
        }
        let tracker = &mut self.arrivals[stream].tracker;
        let start = Signature::first_word(stream as u16);
        let (mut count, mut bytes) = (0, 0);
        for frame in frames {
            let expected = start | u64::from((tracker.next() as u32).wrapping_add(count));
            let len = frame.len();
            if len < at + signature::LEN || frame.word(at) != expected {
                break;
            }
            count += 1;
            bytes += len;
        }
        tracker.note_run(count.into());
        self.totals.bytes += bytes as u64;
        count as usize
    }
}

impl Sink for Arrivals {
    #[inline]
    fn first_look(&self) -> usize {
        self.signature_at.unwrap_or(0)
    }

    #[inline]
    fn take(&mut self, frame: &impl Incoming) {
        self.count(frame);
    }

    #[inline]
    fn take_all<I: Incoming>(&mut self, count: usize, frame: impl Fn(usize) -> I) {
        let mut done = 0;
        while done < count {
            let stream = self.count(&frame(done));
            done += 1;
            if let Some(stream) = stream {
                done += self.count_run(stream, (done..count).map(&frame));
            }
        }
    }
}
