//! What is told of a measurement: lines for people, and one JSON object for programs.
//!
//! The fields are stable: some may be added, none goes or changes its meaning.

use crate::engine::{Measured, OffCpu};
use crate::latency::Latency;
use crate::link::Agreed;
use crate::options::Arguments;
use crate::pace::WIRE_OVERHEAD;
use serde::Serialize;
use std::fmt;

/// What happened in one measurement.
#[derive(Serialize, Debug)]
pub(crate) struct Report<'a> {
    /// Length of what counts, after the warm-up.
    pub(crate) seconds: f64,
    /// Bytes of each frame sent, without the check sequence; the mean if they differ.
    pub(crate) size: f64,
    /// Frames handed to the switch.
    pub(crate) sent: u64,
    /// Frames that came out of it in time, all streams together.
    pub(crate) received: u64,
    /// Received frames a second, millions.
    pub(crate) mpps: f64,
    /// The same as bits on a wire, with preamble, check sequence and gap, 10^9 a second.
    pub(crate) wire_gbps: f64,
    /// Part of the frames sent that never arrived.
    pub(crate) loss: f64,
    /// Frames sent that never arrived.
    pub(crate) lost: u64,
    /// Frames that found no room in our own receive buffers (packet:, xdp:): part of what is lost, but not by the switch.
    pub(crate) overflowed: u64,
    /// Frames sent a second, millions.
    pub(crate) offered_mpps: f64,
    /// Frames a second that were asked for, all streams together, millions; absent if as many as go.
    pub(crate) asked_mpps: Option<f64>,
    /// Frames that came after one with a higher number (RFC 4737).
    pub(crate) reordered: u64,
    /// The farthest that one was behind.
    pub(crate) reorder_extent_max: u64,
    /// Frames that came again.
    pub(crate) duplicated: u64,
    /// Frames too late to tell whether they are reordered or came again.
    pub(crate) beyond_window: u64,
    /// Frames of a stream at a port to which it does not go.
    pub(crate) misdelivered: u64,
    /// Frames that are none of ours.
    pub(crate) foreign: u64,
    /// Frames whose payload was not what was sent; absent unless looked at.
    pub(crate) corrupted: Option<u64>,
    /// Delays; absent if none was noted.
    pub(crate) latency: Option<Latency>,
    /// When this program was interrupted.
    pub(crate) off_cpu: OffCpu,
    /// What this program costs; absent where it waits for each frame.
    pub(crate) generator: Option<Generator>,
    /// What each port agreed on with the switch.
    pub(crate) agreed: Vec<Agreed>,
    /// Each stream.
    pub(crate) streams: Vec<StreamReport>,
    /// The command line.
    pub(crate) options: &'a Arguments,
    /// Where it ran.
    pub(crate) environment: Environment,
}

/// What the generator and sink cost.
#[derive(Serialize, Debug, Clone, Copy)]
pub(crate) struct Generator {
    /// Part of the time in which a turn moved a frame; the rest is waiting for the switch or the clock.
    pub(crate) busy_share: f64,
    /// Time of those turns by frames sent and received in them, ns.
    pub(crate) ns_per_frame: f64,
    /// Frames a second that it could send and receive again if it never had to wait, millions: its ceiling.
    pub(crate) ceiling_mpps: f64,
}

/// One stream.
#[derive(Serialize, Debug)]
pub(crate) struct StreamReport {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) sent: u64,
    /// Different frames that arrived, late ones included.
    pub(crate) arrived: u64,
    pub(crate) lost: u64,
    pub(crate) reordered: u64,
    pub(crate) duplicated: u64,
}

/// Where a measurement ran.
#[derive(Serialize, Debug, Clone)]
pub(crate) struct Environment {
    pub(crate) version: &'static str,
    /// The processor, as the kernel names it.
    pub(crate) processor: String,
    /// CPUs this program may run on.
    pub(crate) cpus: Vec<usize>,
    /// Load averages over 1, 5 and 15 minutes, after the measurement.
    pub(crate) load_average: Vec<f64>,
    pub(crate) kernel: String,
}

impl Environment {
    pub(crate) fn now() -> Environment {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let processors = read("/proc/cpuinfo");
        let processor = processors.lines().find_map(|line| line.strip_prefix("model name"));
        Environment {
            version: env!("CARGO_PKG_VERSION"),
            processor: processor.unwrap_or("unknown").trim_start_matches([' ', '\t', ':']).to_owned(),
            cpus: switch::affinity::allowed_cpus().unwrap_or_default(),
            load_average: read("/proc/loadavg")
                .split_whitespace()
                .take(3)
                .filter_map(|load| load.parse().ok())
                .collect(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

impl<'a> Report<'a> {
    pub(crate) fn new(
        measured: &Measured,
        options: &'a Arguments,
        asked: Option<f64>,
        agreed: Vec<Agreed>,
    ) -> Report<'a> {
        let seconds = measured.time_ns as f64 / 1e9;
        let part = |count: f64, of: f64| if of > 0.0 { count / of } else { 0.0 };
        let kept = measured.kept;
        let sum = |field: fn(&crate::sequence::Counts) -> u64| {
            measured.streams.iter().map(|(_, _, counts)| field(counts)).sum()
        };
        let ns_per_frame = part(measured.busy_ns as f64, measured.moved as f64);
        let received_bits = (kept.received_bytes as f64 + kept.received as f64 * WIRE_OVERHEAD) * 8.0;
        Report {
            seconds,
            size: part(kept.sent_bytes as f64, kept.sent as f64),
            sent: kept.sent,
            received: kept.received,
            mpps: part(kept.received as f64, seconds) / 1e6,
            wire_gbps: part(received_bits, seconds) / 1e9,
            loss: part(measured.lost as f64, kept.sent as f64),
            lost: measured.lost,
            overflowed: measured.overflowed,
            offered_mpps: part(kept.sent as f64, seconds) / 1e6,
            asked_mpps: asked.map(|rate| rate * measured.streams.len() as f64 / 1e6),
            reordered: sum(|counts| counts.reordered),
            reorder_extent_max: measured
                .streams
                .iter()
                .map(|(_, _, counts)| counts.reorder_extent_max)
                .max()
                .unwrap_or(0),
            duplicated: sum(|counts| counts.duplicated),
            beyond_window: sum(|counts| counts.beyond_window),
            misdelivered: measured.totals.misdelivered,
            foreign: measured.totals.foreign,
            corrupted: options.verify.then_some(measured.totals.corrupted),
            latency: measured.latency,
            off_cpu: measured.off_cpu,
            generator: (measured.moved > 0).then(|| Generator {
                busy_share: part(measured.busy_ns as f64, measured.whole_ns as f64),
                ns_per_frame,
                // A forwarded frame is one sent and one received.
                ceiling_mpps: part(1e3, 2.0 * ns_per_frame),
            }),
            agreed,
            streams: measured
                .streams
                .iter()
                .map(|&(way, sent, counts)| StreamReport {
                    from: way.from,
                    to: way.to,
                    sent,
                    arrived: counts.received,
                    lost: sent.saturating_sub(counts.received),
                    reordered: counts.reordered,
                    duplicated: counts.duplicated,
                })
                .collect(),
            options,
            environment: Environment::now(),
        }
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:.3} Mpps received ({:.2} Gbit/s on a wire), {:.3} Mpps sent, {:.0} bytes, loss {:.6}, {:.1} s",
            self.mpps, self.wire_gbps, self.offered_mpps, self.size, self.loss, self.seconds
        )?;
        writeln!(
            f,
            "  lost {}{}, reordered {}, duplicated {}, misdelivered {}, foreign {}{}",
            self.lost,
            if self.overflowed > 0 { format!(" ({} in our own buffers)", self.overflowed) } else { String::new() },
            self.reordered,
            self.duplicated,
            self.misdelivered,
            self.foreign,
            self.corrupted.map_or(String::new(), |count| format!(", corrupted {count}"))
        )?;
        if let Some(Latency { delay, pdv_ns, .. }) = self.latency {
            writeln!(
                f,
                "  delay min {:.2}, p50 {:.2}, p90 {:.2}, p99 {:.2}, p99.9 {:.2}, max {:.2}, variation {:.2} microseconds",
                us(delay.min_ns),
                us(delay.p50_ns),
                us(delay.p90_ns),
                us(delay.p99_ns),
                us(delay.p999_ns),
                us(delay.max_ns),
                us(pdv_ns)
            )?;
        }
        if let Some(Generator { busy_share, ns_per_frame, ceiling_mpps }) = self.generator {
            writeln!(
                f,
                "  generator busy {:.0} % at {ns_per_frame:.1} ns a frame sent or received (could forward {ceiling_mpps:.1} Mpps)",
                busy_share * 100.0,
            )?;
        }
        writeln!(
            f,
            "  off its CPU {:.3} % of the time, {} times, longest {:.0} microseconds, {} of {} windows{}",
            self.off_cpu.time_share * 100.0,
            self.off_cpu.gaps,
            us(self.off_cpu.longest_ns),
            self.off_cpu.windows_disturbed,
            self.off_cpu.windows,
            if self.off_cpu.are_discarded { ", left out" } else { "" }
        )?;
        let Environment { processor, cpus, load_average, .. } = &self.environment;
        write!(f, "  ring {}, CPU {cpus:?} of {processor}, load {load_average:?}", self.options.ring)
    }
}

/// Microseconds.
fn us(ns: u64) -> f64 {
    ns as f64 / 1e3
}
