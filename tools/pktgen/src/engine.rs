//! The loop: send what is due, take what arrived, look at the clock once a turn.
//!
//! One thread plays all guests. A turn visits every stream and every port; a measurement is turns until the time is over,
//! and then turns without sending until everything has arrived or nothing comes any more, so that loss is exact.
//! The clock also tells when the thread was off its CPU: a turn takes microseconds, so two looks far apart mean that
//! somebody else ran, and what was lost or late meanwhile says nothing about the switch. Such windows can be left out.

use crate::arrivals::{Arrivals, Pending, Totals};
use crate::latency::{Latency, Which};
use crate::link::{Agreed, Link, Result, Source};
use crate::order::Order;
use crate::pace::Pace;
use crate::sequence::Counts;
use crate::traffic::{ANNOUNCEMENT, Marks, Outgoing, Shape, Stream};
use std::time::{Duration, Instant};
use windows::Windows;

pub(crate) use windows::OffCpu;

mod windows;

/// Measurements are cut into windows of this length, each with or without an interruption.
const WINDOW_NS: u64 = 1_000_000;
/// After the last frame was sent: how long nothing may come before the rest counts as lost, and how long to wait at most.
const QUIET_NS: u64 = 500_000_000;
const DRAIN_NS_MAX: u64 = 2_000_000_000;
/// Time between two lines of progress.
const PROGRESS_NS: u64 = 1_000_000_000;
/// Time between two looks whether the other sides are still there.
const LOOK_NS: u64 = 10_000_000;
/// How long a single frame may take.
const PATIENCE_NS: u64 = 100_000_000;
/// Frames that announce a station in one burst.
const ANNOUNCE_BURST: usize = 32;

/// Where frames of a stream come from and go to; port numbers from 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Way {
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// The queue it leaves by.
    pub(crate) queue: usize,
}

/// How a run goes, apart from what is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// Most frames posted at a time.
    pub(crate) burst: usize,
    /// Frames sent back to back where there is a rate.
    pub(crate) train: usize,
    /// Frames a second of each stream; `None`: as many as go.
    pub(crate) rate: Option<f64>,
    /// Which delays are noted.
    pub(crate) which: Which,
    /// Two looks at the clock that are farther apart mean an interruption, ns.
    pub(crate) off_cpu_ns: u64,
    /// Leave windows with an interruption out.
    pub(crate) is_discarding: bool,
    /// Tell every second on standard error how it goes.
    pub(crate) has_progress: bool,
}

/// The sending end of one stream.
struct Sender {
    way: Way,
    stream: Stream,
    pace: Pace,
    sent: u64,
    bytes: u64,
}

/// Counts the bytes of what is sent besides.
struct Counted<'a> {
    stream: &'a mut Stream,
    bytes: &'a mut u64,
}

impl Source for Counted<'_> {
    #[inline]
    fn next(&mut self) -> Outgoing<'_> {
        let frame = self.stream.next();
        *self.bytes += u64::from(frame.len);
        frame
    }

    #[inline]
    fn id(&self) -> u16 {
        self.stream.id()
    }

    #[inline]
    fn marks(&self) -> Option<Marks> {
        self.stream.marks()
    }

    #[inline]
    fn advance(&mut self, count: usize) {
        *self.bytes += self.stream.advance(count);
    }
}

impl Source for Stream {
    #[inline]
    fn next(&mut self) -> Outgoing<'_> {
        Stream::next(self)
    }

    fn id(&self) -> u16 {
        Stream::id(self)
    }

    fn marks(&self) -> Option<Marks> {
        Stream::marks(self)
    }

    fn advance(&mut self, count: usize) {
        Stream::advance(self, count);
    }
}

/// What one measurement found; loss is known only after everything came in.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// Length of the windows that count, ns.
    pub(crate) time_ns: u64,
    /// Frames sent and received in them.
    pub(crate) kept: Tally,
    /// Loss of them.
    pub(crate) lost: u64,
    /// Frames that found no room on our side, also outside of them; part of the loss, but not of the switch's.
    pub(crate) overflowed: u64,
    /// All that arrived, wrong or right, also outside of them.
    pub(crate) totals: Totals,
    /// Of each stream: its way, frames sent, and what became of them, also outside of the windows that count.
    pub(crate) streams: Vec<(Way, u64, Counts)>,
    pub(crate) latency: Option<Latency>,
    pub(crate) off_cpu: OffCpu,
    /// Time of turns without interruption in which a frame moved, ns, and frames sent and received in them.
    pub(crate) busy_ns: u64,
    pub(crate) moved: u64,
    pub(crate) whole_ns: u64,
}

/// Counts that only grow, to be subtracted from each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) sent: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) received: u64,
    pub(crate) received_bytes: u64,
    /// Frames passed over so far; shrinks when one comes late.
    missing: u64,
}

/// All guests.
pub(crate) struct Engine {
    start: Instant,
    links: Vec<Link>,
    senders: Vec<Sender>,
    arrivals: Arrivals,
    manner: Manner,
    shape: Shape,
    /// When it is time to look whether the other sides are still there, ns since `start`.
    next_look: u64,
}

impl Engine {
    /// Streams on the given ways over the links; `order` makes the order of one.
    pub(crate) fn new(
        mut links: Vec<Link>,
        ways: &[Way],
        shape: &Shape,
        manner: Manner,
        mut order: impl FnMut(u16) -> Order,
    ) -> Engine {
        let senders: Vec<Sender> = (0..)
            .zip(ways)
            .map(|(id, &way)| Sender {
                way,
                stream: Stream::new(id, way.from, way.to, shape, order(id)),
                pace: Pace::unlimited(manner.burst),
                sent: 0,
                bytes: 0,
            })
            .collect();
        for sender in &senders {
            let exit = |way: &Way| (way.from, way.queue);
            if ways.iter().filter(|way| exit(way) == exit(&sender.way)).count() == 1 {
                links[sender.way.from].dedicate(sender.way.queue, &sender.stream);
            }
        }
        let start = Instant::now();
        let arrivals = Arrivals::new(shape, ways.iter().map(|way| way.to), manner.which, start);
        let mut engine = Engine { start, links, senders, arrivals, manner, shape: shape.clone(), next_look: 0 };
        engine.set_rate(manner.rate);
        engine
    }

    /// Changes the rate of each stream, frames a second.
    pub(crate) fn set_rate(&mut self, rate: Option<f64>) {
        self.manner.rate = rate;
        for sender in &mut self.senders {
            sender.pace = match rate {
                None => Pace::unlimited(self.manner.burst),
                Some(rate) => Pace::limited(rate, self.manner.train, self.manner.burst),
            };
        }
    }

    /// Changes which delays are noted.
    pub(crate) fn set_which(&mut self, which: Which) {
        self.manner.which = which;
        self.arrivals.set_which(which);
    }

    /// What each port agreed on with its other side.
    pub(crate) fn agreed(&self) -> Vec<Agreed> {
        self.links.iter().map(Link::agreed).collect()
    }

    /// Streams.
    pub(crate) fn stream_count(&self) -> usize {
        self.senders.len()
    }

    #[inline]
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Takes what arrived at every port; answers how much.
    #[inline]
    fn receive(&mut self) -> Result<usize> {
        let mut count = 0;
        for (port, link) in self.links.iter_mut().enumerate() {
            self.arrivals.begin(port);
            count += link.receive(2 * self.manner.burst, &mut self.arrivals)?;
        }
        Ok(count)
    }

    /// One turn; answers how many frames moved.
    #[inline]
    fn turn(&mut self, now_ns: u64) -> Result<usize> {
        // Where frames are few, each burst carries its own moment; where they are many, that of their turn.
        let is_exact = self.manner.which == Which::All;
        let mut moved = 0;
        for sender in &mut self.senders {
            let due = sender.pace.due(now_ns);
            if due == 0 {
                continue;
            }
            let time = if is_exact { self.start.elapsed().as_nanos() as u64 } else { now_ns };
            sender.stream.set_time(time);
            let mut source = Counted { stream: &mut sender.stream, bytes: &mut sender.bytes };
            let count = self.links[sender.way.from].send(sender.way.queue, due, &mut source)?;
            sender.pace.sent(count);
            sender.sent += count as u64;
            moved += count;
        }
        Ok(moved + self.receive()?)
    }

    fn tally(&self) -> Tally {
        let (received, missing) = self.arrivals.received_and_missing();
        Tally {
            sent: self.senders.iter().map(|sender| sender.sent).sum(),
            sent_bytes: self.senders.iter().map(|sender| sender.bytes).sum(),
            received,
            received_bytes: self.arrivals.totals.bytes,
            missing,
        }
    }

    /// Frames that found no room on our side since the last call.
    fn overflowed(&mut self) -> Result<u64> {
        self.links.iter_mut().map(Link::overflowed).sum()
    }

    /// Fails if the other side of a link has gone, of which rings say nothing: it would seem a switch that loses everything.
    #[inline]
    fn look_after_links(&mut self, now_ns: u64) -> Result<()> {
        if now_ns >= self.next_look {
            self.next_look = now_ns + LOOK_NS;
            self.links.iter().try_for_each(Link::check)?;
        }
        Ok(())
    }

    /// Counts from here on.
    fn restart(&mut self) -> Result<()> {
        self.overflowed()?;
        let now = self.now();
        for sender in &mut self.senders {
            (sender.sent, sender.bytes) = (0, 0);
            sender.pace.restart(now);
        }
        self.arrivals.restart(self.senders.iter().map(|sender| sender.stream.number()));
        self.arrivals.pending = self.manner.is_discarding.then(Pending::new);
        Ok(())
    }

    /// Sends nothing until all has come in, or nothing comes any more.
    fn drain(&mut self) -> Result<()> {
        let begun = self.now();
        let (mut last, mut now) = (begun, begun);
        while now - last < QUIET_NS && now - begun < DRAIN_NS_MAX {
            if self.receive()? > 0 {
                last = now;
            } else if self
                .senders
                .iter()
                .enumerate()
                .all(|(id, sender)| self.arrivals.is_complete(id, sender.stream.number()))
            {
                break;
            }
            now = self.now();
            self.look_after_links(now)?;
        }
        self.links.iter().try_for_each(Link::check)
    }

    /// Makes known where the stations are that frames go to, where these do not send by themselves.
    pub(crate) fn announce(&mut self, stations: u32) -> Result<()> {
        let is_sending = |port: usize| self.senders.iter().any(|sender| sender.way.from == port);
        let mut silent: Vec<Way> =
            self.senders.iter().map(|sender| sender.way).filter(|way| !is_sending(way.to)).collect();
        silent.sort_by_key(|way| way.to);
        silent.dedup_by_key(|way| way.to);
        for way in silent {
            let shape = Shape {
                templates: std::rc::Rc::new([]),
                sizes: vec![self.shape.size_announced()],
                ..self.shape.clone()
            };
            let order = Order::round_robin(stations, 1, 1);
            let mut stream = Stream::new(ANNOUNCEMENT, way.to, way.from, &shape, order);
            let end = self.now() + DRAIN_NS_MAX + u64::from(stations) * 20_000;
            let mut left = stations as usize;
            while left > 0 && self.now() < end {
                left -= self.links[way.to].send(0, left.min(ANNOUNCE_BURST), &mut stream)?;
                self.receive()?;
            }
        }
        Ok(())
    }

    /// Sends and counts for `time`.
    pub(crate) fn run(&mut self, time: Duration) -> Result<Measured> {
        self.restart()?;
        let start = self.now();
        let end = start + time.as_nanos() as u64;
        let mut windows = Windows::new(self, start);
        let mut off_cpu = OffCpu {
            threshold_ns: self.manner.off_cpu_ns,
            are_discarded: self.manner.is_discarding,
            ..OffCpu::default()
        };
        let (mut off_ns, mut busy_ns, mut moved_while_busy) = (0, 0, 0);
        let mut next_progress = start + PROGRESS_NS;
        let mut last = start;
        let mut now = start;
        while now < end {
            let moved = self.turn(now)?;
            now = self.now();
            let step = now - last;
            last = now;
            if step > off_cpu.threshold_ns {
                off_cpu.gaps += 1;
                off_ns += step;
                off_cpu.longest_ns = off_cpu.longest_ns.max(step);
                windows.is_disturbed = true;
            } else if moved > 0 {
                busy_ns += step;
                moved_while_busy += moved as u64;
            }
            if now >= windows.end {
                windows.close(self, now);
                self.look_after_links(now)?;
                if self.manner.has_progress && now >= next_progress {
                    next_progress += PROGRESS_NS;
                    windows.progress(self, now - start);
                }
                // Our own book-keeping is no interruption.
                last = self.now();
            }
        }
        let whole = self.tally();
        let whole_ns = now - start;
        windows.finish(self, now);
        self.drain()?;
        (off_cpu.windows, off_cpu.windows_disturbed) = (windows.count, windows.disturbed);
        off_cpu.time_share = off_ns as f64 / whole_ns.max(1) as f64;
        let is_discarding = self.manner.is_discarding;
        let counted = self.arrivals.received_and_missing().0;
        let (time_ns, kept, lost) = if is_discarding {
            (windows.kept_ns, windows.kept, windows.kept_missing.max(0) as u64)
        } else {
            (whole_ns, whole, whole.sent.saturating_sub(counted))
        };
        let streams = self
            .senders
            .iter()
            .enumerate()
            .map(|(id, sender)| (sender.way, sender.sent, self.arrivals.counts(id)))
            .collect();
        Ok(Measured {
            time_ns,
            kept,
            lost,
            overflowed: self.overflowed()?,
            totals: self.arrivals.totals,
            streams,
            latency: self.arrivals.delays.latency(),
            off_cpu,
            busy_ns,
            moved: moved_while_busy,
            whole_ns,
        })
    }

    /// Sends one frame at a time, there and back in turns, for `time`; the next leaves when the last arrived.
    pub(crate) fn ping_pong(&mut self, time: Duration) -> Result<Measured> {
        self.restart()?;
        self.arrivals.pending = None;
        let which = self.manner.which;
        // Delays are taken here, from the clock after the arrival.
        self.set_which(Which::Off);
        let start = self.now();
        let end = start + time.as_nanos() as u64;
        let mut off_cpu = OffCpu { threshold_ns: self.manner.off_cpu_ns, ..OffCpu::default() };
        let mut off_ns = 0;
        let mut now = start;
        while now < end {
            for id in 0..self.senders.len() {
                let sender = &mut self.senders[id];
                let (way, left) = (sender.way, self.start.elapsed().as_nanos() as u64);
                sender.stream.set_time(left);
                let mut source = Counted { stream: &mut sender.stream, bytes: &mut sender.bytes };
                let sent = self.links[way.from].send(way.queue, 1, &mut source)?;
                sender.sent += sent as u64;
                let before = self.arrivals.counts(id).received;
                now = self.now();
                let mut longest = 0;
                while sent > 0 && now - left < PATIENCE_NS {
                    self.arrivals.begin(way.to);
                    self.links[way.to].receive(1, &mut self.arrivals)?;
                    let last = std::mem::replace(&mut now, self.start.elapsed().as_nanos() as u64);
                    longest = longest.max(now - last);
                    if self.arrivals.counts(id).received > before {
                        if longest > off_cpu.threshold_ns {
                            off_cpu.gaps += 1;
                            off_ns += longest;
                            off_cpu.longest_ns = off_cpu.longest_ns.max(longest);
                        }
                        if longest <= off_cpu.threshold_ns || !self.manner.is_discarding {
                            self.arrivals.delays.note((now - left, None));
                        }
                        break;
                    }
                }
            }
            // What came besides, such as floods to others.
            now = self.now();
            self.look_after_links(now)?;
            self.receive()?;
        }
        self.drain()?;
        self.set_which(which);
        let whole_ns = now - start;
        off_cpu.time_share = off_ns as f64 / whole_ns.max(1) as f64;
        off_cpu.are_discarded = self.manner.is_discarding;
        let kept = self.tally();
        Ok(Measured {
            time_ns: whole_ns,
            kept,
            lost: kept.sent - kept.received.min(kept.sent),
            overflowed: self.overflowed()?,
            totals: self.arrivals.totals,
            streams: (0..self.senders.len())
                .map(|id| (self.senders[id].way, self.senders[id].sent, self.arrivals.counts(id)))
                .collect(),
            latency: self.arrivals.delays.latency(),
            off_cpu,
            busy_ns: 0,
            moved: 0,
            whole_ns,
        })
    }
}

#[cfg(test)]
mod tests;
