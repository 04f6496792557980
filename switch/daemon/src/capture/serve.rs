//! The daemon's side of `qvs capture`: copies from the workers' lanes go out as pcapng on the connection that asked.
//!
//! Runs on that connection's own thread. A client that stands still blocks this thread and nobody else: the lanes fill up
//! and what finds no room is counted. One that stands still when its capture's time is over is given up ([`STILL_LIMIT`]). The
//! capture is taken from its port whatever way this ends, so that a client killed leaves nothing behind. Bounds:
//! [`CAPTURES_MAX`] at a time, [`BUFFER_MAX`] bytes each.

use crate::capture::pcapng::{self, Statistics, flags};
use crate::cli::DirectionArg;
use api::model::InterfaceId;
use pipelines::capture_filter::CaptureFilter;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use switch::capture::{CAPTURES_PER_PORT, Capture, CaptureConfig, Direction, Fate, Filter, Reader, Reasons, Record};
use switch::ids::PortIndex;
use switch::ledger::DropReason;
use switch::offload::{F_DATA_VALID, F_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4};
use switch::switch::Switch;
use switch::worker::Pipeline;

/// Captures at a time, over all ports: each has buffers of up to [`BUFFER_MAX`] and holds a connection.
pub(crate) const CAPTURES_MAX: usize = 8;
/// Of these, how many may only count. Members of the group may do that, and must never take the last place of a port
/// from whoever captures frames.
const COUNTERS_MAX: usize = CAPTURES_PER_PORT - 1;
const _: () = assert!(COUNTERS_MAX < CAPTURES_MAX);
/// Bytes of buffers a capture may ask for.
pub(crate) const BUFFER_MAX: usize = 64 << 20;
/// Longest time from a frame to its reader: the pause between two looks at lanes that are not half full.
const LOOK_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// How long a client may take nothing, after the time of its capture is over, before it is given up.
const STILL_LIMIT: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
/// Bytes put together before they are written.
const CHUNK: usize = 256 * 1024;
/// A wall clock that is further than this from where it was has been set, and is followed.
const CLOCK_STEP_NS: u64 = 1_000_000;

/// What is to be captured.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CaptureRequest {
    /// Interface id or logical port id.
    pub(crate) port: String,
    /// Which way.
    pub(crate) direction: DirectionArg,
    /// Bytes kept of each frame; 0: frames are only counted.
    pub(crate) snaplen: usize,
    /// Bytes of buffer.
    pub(crate) buffer: usize,
    /// Frames after which it ends; `None`: never.
    pub(crate) count: Option<u64>,
    /// Seconds after which it ends; `None`: never.
    pub(crate) duration_s: Option<u64>,
    /// Which frames, in tcpdump's language; empty: all.
    pub(crate) filter: String,
}

/// How many captures there are.
#[derive(Clone, Default)]
pub(crate) struct Captures {
    all: Arc<AtomicUsize>,
    counting: Arc<AtomicUsize>,
}

/// One of them, given back when dropped.
struct Seat {
    captures: Captures,
    is_counting: bool,
}

impl Captures {
    /// A place for one more.
    ///
    /// # Errors
    /// One line saying that there is none.
    fn take(&self, is_counting: bool) -> Result<Seat, String> {
        // Counted first, and taken back by the drop.
        let seat = Seat { captures: self.clone(), is_counting };
        let all = self.all.fetch_add(1, Ordering::Relaxed);
        let counting = self.counting.fetch_add(usize::from(is_counting), Ordering::Relaxed);
        match () {
            () if all >= CAPTURES_MAX => Err(format!("there are {CAPTURES_MAX} captures already")),
            () if is_counting && counting >= COUNTERS_MAX => {
                Err(format!("there are {COUNTERS_MAX} captures that only count already"))
            }
            () => Ok(seat),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.captures.all.fetch_sub(1, Ordering::Relaxed);
        self.captures.counting.fetch_sub(usize::from(self.is_counting), Ordering::Relaxed);
    }
}

/// A capture under way at a port of this switch; dropping it takes it from the port.
pub(crate) struct Running<P: Pipeline> {
    switch: Arc<Switch<P>>,
    index: PortIndex,
    reader: Reader,
    interface: InterfaceId,
    request: CaptureRequest,
    _seat: Seat,
}

impl<P: Pipeline> Drop for Running<P> {
    fn drop(&mut self) {
        if self.switch.has_capture(self.index, self.reader.capture()) {
            self.switch.remove_capture(self.index, self.reader.capture());
        }
    }
}

impl<P: Pipeline> Running<P> {
    /// Starts to capture at `interface`, which is at `index`.
    ///
    /// # Errors
    /// One line saying why not.
    pub(crate) fn start(
        captures: &Captures,
        switch: &Arc<Switch<P>>,
        interface: InterfaceId,
        index: PortIndex,
        request: CaptureRequest,
    ) -> Result<Running<P>, String> {
        let seat = captures.take(request.snaplen == 0)?;
        if request.buffer > BUFFER_MAX {
            return Err(format!("a buffer has at most {BUFFER_MAX} bytes"));
        }
        let filter = match request.filter.trim() {
            "" => None,
            text => Some(CaptureFilter::compile(text).map_err(|error| error.to_string())?),
        };
        let config = CaptureConfig {
            rx: request.direction != DirectionArg::Out,
            tx: request.direction != DirectionArg::In,
            snaplen: request.snaplen,
            buffer: request.buffer,
            filter: filter.map(|filter| Box::new(filter) as Box<dyn Filter>),
        };
        let (capture, reader) = Capture::new(config, switch.worker_count()).map_err(|error| error.to_string())?;
        switch.add_capture(index, &capture).map_err(|error| error.to_string())?;
        Ok(Running { switch: switch.clone(), index, reader, interface, request, _seat: seat })
    }

    /// Where it captures.
    pub(crate) fn interface(&self) -> &str {
        &self.interface
    }

    /// Writes down who captures what: these are other people's frames.
    pub(crate) fn log(&self, stream: &UnixStream) {
        let (uid, pid) = rustix::net::sockopt::socket_peercred(stream)
            .map_or((None, None), |peer| (Some(peer.uid.as_raw()), Some(peer.pid.as_raw_nonzero().get())));
        let CaptureRequest { direction, snaplen, filter, .. } = &self.request;
        let interface = &*self.interface;
        tracing::info!(interface, uid, pid, ?direction, snaplen, filter, "a capture begins");
    }

    /// Sends what is captured until the client has enough, closes its side or goes away, or the interface does.
    ///
    /// # Errors
    /// If the client went away.
    pub(crate) fn send_to(mut self, stream: &UnixStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        // A time that is beyond what the clock can tell is none.
        let over_at = self.request.duration_s.and_then(|limit| Instant::now().checked_add(Duration::from_secs(limit)));
        let mut wall = Wall::new(&self.switch);
        let begin_ns = wall.at(self.switch.clock().now().ns);
        let mut out = Vec::with_capacity(CHUNK);
        let description =
            format!("qvs interface, inbound is from its device into the switch, {:?}", self.request.direction);
        pcapng::write_header(
            &mut out,
            &self.interface,
            &description,
            &self.request.filter,
            self.request.snaplen as u32,
        );
        let mut left = self.request.count.unwrap_or(u64::MAX);
        let mut written = 0;
        let end = loop {
            drain(stream, &mut out, over_at)?;
            let is_gone = !self.switch.has_capture(self.index, self.reader.capture());
            let is_over = has_passed(over_at);
            let end = match () {
                () if left == 0 => Some(""),
                () if is_gone => Some("the interface was unplugged"),
                () if is_over || has_closed(stream)? => Some(""),
                () => None,
            };
            if end.is_some() {
                // From here on no worker adds to it: what is collected below is all there is.
                self.switch.remove_capture(self.index, self.reader.capture());
            }
            wall.follow(&self.switch);
            self.reader.collect();
            for (record, bytes) in self.reader.frames() {
                if left == 0 {
                    break;
                }
                left -= 1;
                written += 1;
                pcapng::write_packet(&mut out, &packet(record, bytes, &wall));
                if out.len() >= CHUNK {
                    drain(stream, &mut out, over_at)?;
                }
            }
            if let Some(end) = end {
                break end;
            }
            if out.is_empty() {
                let mut ready =
                    [PollFd::new(&self.reader, PollFlags::IN), PollFd::new(stream, PollFlags::IN | PollFlags::RDHUP)];
                // Interrupted or not: everything is looked at again.
                let _ = poll(&mut ready, Some(&LOOK_PAUSE));
            }
        };
        let totals = self.reader.capture().totals();
        let end_ns = wall.at(self.switch.clock().now().ns);
        let comment = match self.request.snaplen {
            0 => format!("{} bytes in the frames counted", totals.matched_bytes),
            _ => end.to_owned(),
        };
        let statistics = Statistics {
            seen: totals.seen,
            matched: totals.matched,
            lost: totals.lost,
            written,
            time_ns: (begin_ns, end_ns),
            comment,
        };
        tracing::info!(interface = &*self.interface, ?totals, written, end, "a capture ended");
        pcapng::write_statistics(&mut out, &statistics);
        drain(stream, &mut out, over_at)
    }
}

/// Whether a moment has passed; one that there is not never does.
fn has_passed(moment: Option<Instant>) -> bool {
    moment.is_some_and(|moment| Instant::now() >= moment)
}

/// Writes everything, waiting for a client that is slow; for one that stands still, as long as the capture's time is not over.
///
/// # Errors
/// If the client went away, or was given up.
fn drain(mut stream: &UnixStream, out: &mut Vec<u8>, over_at: Option<Instant>) -> io::Result<()> {
    let mut sent = 0;
    while sent < out.len() {
        match stream.write(&out[sent..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => sent += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // A client that was killed is an error of the next write.
                let ready = poll(&mut [PollFd::new(stream, PollFlags::OUT)], Some(&STILL_LIMIT));
                if ready == Ok(0) && has_passed(over_at) {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    out.clear();
    Ok(())
}

/// Whether the client asks to end: it closes its side. What else it says is not for us.
fn has_closed(mut stream: &UnixStream) -> io::Result<bool> {
    let mut ignored = [0; 256];
    match stream.read(&mut ignored) {
        Ok(0) => Ok(true),
        Ok(_) => Ok(false),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The wall clock's time of a moment of the switch's.
struct Wall {
    /// Nanoseconds to add.
    ahead: u64,
}

impl Wall {
    fn new<P: Pipeline>(switch: &Switch<P>) -> Wall {
        Wall { ahead: Wall::read(switch) }
    }

    fn read<P: Pipeline>(switch: &Switch<P>) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // 2554 is the end of such times.
        (now.as_nanos() as u64).wrapping_sub(switch.clock().now().ns)
    }

    /// Goes along if the wall clock was set; small differences between two readings are not taken for that.
    fn follow<P: Pipeline>(&mut self, switch: &Switch<P>) {
        let ahead = Wall::read(switch);
        let distance = ahead.wrapping_sub(self.ahead);
        if distance.min(distance.wrapping_neg()) > CLOCK_STEP_NS {
            self.ahead = ahead;
        }
    }

    fn at(&self, ns: u64) -> u64 {
        self.ahead.wrapping_add(ns)
    }
}

/// A captured frame as a packet of the file.
fn packet<'a>(record: &Record, bytes: &'a [u8], wall: &Wall) -> pcapng::Packet<'a> {
    let offload = &record.offload;
    let gso_type = offload.gso_type & !GSO_ECN;
    let mut set = match record.direction {
        Direction::Rx => flags::INBOUND,
        Direction::Tx => flags::OUTBOUND,
    };
    let mut remarks = Vec::new();
    match record.fate {
        Fate::Passed => {}
        Fate::Stopped(reasons) if reasons.iter().next().is_none() => remarks.push("went no further".to_owned()),
        Fate::Stopped(reasons) => remarks.push(format!("dropped: {}", names(reasons))),
        Fate::Doubtful(reasons) => remarks.push(format!("perhaps dropped, in whole or part: {}", names(reasons))),
    }
    if offload.flags & F_NEEDS_CSUM != 0 {
        set |= flags::CHECKSUM_NOT_READY;
        let (start, at) = (offload.csum_start, u32::from(offload.csum_start) + u32::from(offload.csum_offset));
        remarks.push(format!("checksum not filled in: over bytes from {start} on, at {at}"));
    } else if offload.flags & F_DATA_VALID != 0 {
        set |= flags::CHECKSUM_VALID;
    }
    if gso_type != GSO_NONE {
        let kind = match gso_type {
            GSO_TCPV4 => "TCP over IPv4",
            GSO_TCPV6 => "TCP over IPv6",
            GSO_UDP_L4 => "UDP",
            _ => "unknown",
        };
        set |= if matches!(gso_type, GSO_TCPV4 | GSO_TCPV6) { flags::TCP_SEGMENTATION } else { 0 };
        let congestion = if offload.gso_type & GSO_ECN != 0 { ", CWR on the first" } else { "" };
        remarks.push(format!("not yet cut: {kind}, {} bytes a segment{congestion}", offload.gso_size));
    }
    pcapng::Packet {
        time_ns: wall.at(record.at.ns),
        frame_len: record.frame_len,
        flags: set,
        lost: record.lost,
        comment: remarks.join("; "),
        bytes,
    }
}

fn names(reasons: Reasons) -> String {
    reasons.iter().map(DropReason::name).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_only_counts_never_takes_the_last_place_of_a_port_or_of_all() {
        let captures = Captures::default();
        let counting: Vec<Seat> = std::iter::from_fn(|| captures.take(true).ok()).collect();
        assert_eq!(counting.len(), COUNTERS_MAX);
        let all: Vec<Seat> = std::iter::from_fn(|| captures.take(false).ok()).collect();
        assert_eq!(all.len(), CAPTURES_MAX - COUNTERS_MAX);
        drop((counting, all));
        assert_eq!((captures.all.load(Ordering::Relaxed), captures.counting.load(Ordering::Relaxed)), (0, 0));
    }
}
