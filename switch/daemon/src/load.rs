//! How busy the workers are: their books read once a second, and what changed since.
//!
//! "Busy" is time in rounds that found frames, which the worker itself adds up with one clock reading a round. Cycles a
//! packet are that time times the CPU's nominal clock, as the kernel tells it; turbo and throttling are not seen, so the
//! number compares runs on one machine and is no absolute truth.

use crate::view::WorkerRow;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use switch::switch::WorkerReport;

/// Shortest time over which a share is told; less than that is noise.
const WINDOW_MIN: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Default)]
struct Sample {
    busy_ns: u64,
    packets: u64,
}

impl From<&WorkerReport> for Sample {
    fn from(report: &WorkerReport) -> Sample {
        Sample { busy_ns: report.busy_ns, packets: report.packets }
    }
}

struct Window {
    since: Instant,
    at_start: Vec<Sample>,
    /// Share of time and nanoseconds a packet, in the last full window.
    last: Vec<(f64, Option<f64>)>,
}

/// The load of each worker.
pub(crate) struct Load {
    window: Mutex<Window>,
    mhz: Vec<Option<f64>>,
}

impl Load {
    /// Starts to watch workers that run on these CPUs.
    pub(crate) fn new(cpus: impl IntoIterator<Item = Option<usize>>) -> Load {
        let mhz: Vec<_> = cpus.into_iter().map(nominal_mhz).collect();
        let workers = mhz.len();
        let at_start = vec![Sample::default(); workers];
        Load { window: Mutex::new(Window { since: Instant::now(), at_start, last: vec![(0.0, None); workers] }), mhz }
    }

    /// Ends a window and begins the next. Call about once a second.
    pub(crate) fn sample(&self, reports: &[WorkerReport]) {
        self.sample_at(Instant::now(), &reports.iter().map(Sample::from).collect::<Vec<_>>());
    }

    fn sample_at(&self, now: Instant, samples: &[Sample]) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = now.saturating_duration_since(window.since);
        if elapsed < WINDOW_MIN {
            return;
        }
        window.last = std::iter::zip(&window.at_start, samples)
            .map(|(start, end)| {
                let busy_ns = end.busy_ns.saturating_sub(start.busy_ns) as f64;
                let packets = end.packets.saturating_sub(start.packets);
                let share = (busy_ns / elapsed.as_nanos() as f64).min(1.0);
                (share, (packets > 0).then(|| busy_ns / packets as f64))
            })
            .collect();
        window.at_start = samples.to_vec();
        window.since = now;
    }

    /// The rows of `show workers`; `name` gives a port's interface id.
    pub(crate) fn rows(
        &self,
        reports: Vec<WorkerReport>,
        name: impl Fn(switch::ids::PortIndex) -> String,
    ) -> Vec<WorkerRow> {
        let last = self.window.lock().unwrap_or_else(PoisonError::into_inner).last.clone();
        let row = |report: WorkerReport| {
            let at = report.worker.as_usize();
            let (busy, ns_per_packet) = last.get(at).copied().unwrap_or_default();
            let mhz = self.mhz.get(at).copied().flatten();
            WorkerRow {
                worker: report.worker.0,
                cpu: report.cpu,
                busy: round(busy, 1e4),
                cycles_per_packet: ns_per_packet.zip(mhz).map(|(ns, mhz)| round(ns * mhz / 1e3, 10.0)),
                cpu_mhz: mhz,
                packets: report.packets,
                batch: round(report.packets as f64 / report.batches.max(1) as f64, 100.0),
                sleeps: report.sleeps,
                ports: report.ports.into_iter().map(&name).collect(),
            }
        };
        reports.into_iter().map(row).collect()
    }
}

fn round(value: f64, steps: f64) -> f64 {
    (value * steps).round() / steps
}

/// The clock a CPU is sold with, MHz; of CPU 0 for a worker that is not pinned.
fn nominal_mhz(cpu: Option<usize>) -> Option<f64> {
    let cpu = cpu.unwrap_or(0);
    let base = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/cpufreq/base_frequency"));
    if let Some(khz) = base.ok().and_then(|text| text.trim().parse::<f64>().ok()) {
        return Some(khz / 1e3);
    }
    parse_mhz(&std::fs::read_to_string("/proc/cpuinfo").ok()?, cpu)
}

/// `cpu MHz` of one processor in `/proc/cpuinfo`.
fn parse_mhz(cpuinfo: &str, cpu: usize) -> Option<f64> {
    let mut is_ours = false;
    for line in cpuinfo.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        match key.trim() {
            "processor" => is_ours = value.trim().parse() == Ok(cpu),
            "cpu MHz" if is_ours => return value.trim().parse().ok(),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_that_of_the_asked_processor() {
        let text = "processor\t: 0\ncpu MHz\t\t: 2000.5\n\nprocessor\t: 1\ncpu MHz\t\t: 3000.0\n";
        assert_eq!(parse_mhz(text, 1), Some(3000.0));
        assert_eq!(parse_mhz(text, 0), Some(2000.5));
        assert_eq!(parse_mhz(text, 2), None);
        assert_eq!(parse_mhz("processor: 0\n", 0), None);
    }

    #[test]
    fn load_is_what_changed_in_the_last_window() {
        let load = Load::new([None]);
        let start = load.window.lock().unwrap().since;
        load.sample_at(start + Duration::from_secs(1), &[Sample { busy_ns: 250_000_000, packets: 1_000_000 }]);
        assert_eq!(load.window.lock().unwrap().last, [(0.25, Some(250.0))]);
        load.sample_at(start + Duration::from_millis(1100), &[Sample::default()]);
        assert_eq!(load.window.lock().unwrap().last.len(), 1, "a window that is too short is not told");
        load.sample_at(start + Duration::from_secs(3), &[Sample { busy_ns: 250_000_000, packets: 1_000_000 }]);
        assert_eq!(load.window.lock().unwrap().last, [(0.0, None)]);
    }
}
