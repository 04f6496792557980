//! How busy the workers are, and with which queues: their books read once a second, and what changed since.
//!
//! "Busy" is time in rounds that found frames, which the worker itself adds up with one clock reading a round; that of a
//! queue is its sampled share of it. Cycles a packet are that time times one clock of the CPU, as the kernel tells it at the start:
//! the one it is sold with, else its highest, else the present one, which is all that a virtual machine knows. Turbo and throttling
//! are not seen, so the number compares runs on one machine and is no absolute truth.
//!
//! What people are told is the last second. What moves queues are the last [`WINDOWS`] of them together, because one
//! second of samples is noise for a queue of few frames.

use crate::view::{QueueRow, WorkerRow};
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use switch::assign::QueueLoad;
use switch::ids::PortIndex;
use switch::publish::RxQueue;
use switch::switch::WorkerReport;

/// Shortest time over which a share is told; less than that is noise.
const WINDOW_MIN: Duration = Duration::from_millis(500);
/// Windows that are remembered.
const WINDOWS: usize = 4;

/// What a worker had counted at a moment.
#[derive(Clone, Copy, Default)]
struct Sample {
    busy_ns: u64,
    packets: u64,
    batches: u64,
}

/// The books at one moment.
struct Moment {
    at: Instant,
    /// By worker.
    workers: Vec<Sample>,
    /// Time that each queue had taken by then, ns, whichever workers it had.
    queues: BTreeMap<RxQueue, u64>,
}

impl Moment {
    fn new(at: Instant, reports: &[WorkerReport]) -> Moment {
        let worker = |report: &WorkerReport| Sample {
            busy_ns: report.busy_ns,
            packets: report.packets,
            batches: report.batches,
        };
        let queues = reports.iter().flat_map(|report| &report.queues);
        Moment {
            at,
            workers: reports.iter().map(worker).collect(),
            queues: queues.map(|queue| (queue.rx, queue.busy_ns)).collect(),
        }
    }

    fn worker(&self, index: usize) -> Sample {
        self.workers.get(index).copied().unwrap_or_default()
    }
}

/// What a worker did in a window.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
struct Share {
    busy: f64,
    ns_per_packet: Option<f64>,
    batch: f64,
}

impl Share {
    fn between(start: Sample, end: Sample, time: Duration) -> Share {
        let busy_ns = end.busy_ns.saturating_sub(start.busy_ns) as f64;
        let packets = end.packets.saturating_sub(start.packets) as f64;
        let batches = end.batches.saturating_sub(start.batches).max(1) as f64;
        Share {
            busy: part(busy_ns, time),
            ns_per_packet: (packets > 0.0).then(|| busy_ns / packets),
            batch: packets / batches,
        }
    }
}

/// Nanoseconds as a share of a time, at most all of it.
fn part(ns: f64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { (ns / time.as_nanos() as f64).min(1.0) }
}

/// What every queue cost, over a time.
pub(crate) struct Costs {
    /// The queues that are polled, with their cost in ns.
    pub(crate) queues: Vec<QueueLoad>,
    /// Over how long.
    pub(crate) time: Duration,
}

impl Costs {
    /// By worker: the share of its time that its queues took.
    pub(crate) fn shares(&self, workers: usize) -> Vec<f64> {
        let mut sums = vec![0; workers];
        for queue in &self.queues {
            sums[queue.worker.as_usize()] += queue.cost;
        }
        sums.into_iter().map(|ns| self.share(ns)).collect()
    }

    /// A cost as a share of a worker's time.
    pub(crate) fn share(&self, ns: u64) -> f64 {
        part(ns as f64, self.time)
    }
}

/// The load of each worker.
pub(crate) struct Load {
    /// Oldest first, never empty.
    moments: Mutex<VecDeque<Moment>>,
    mhz: Vec<Option<f64>>,
}

impl Load {
    /// Starts to watch workers that run on these CPUs and have done nothing yet.
    pub(crate) fn new(cpus: impl IntoIterator<Item = Option<usize>>) -> Load {
        let moments = VecDeque::from([Moment::new(Instant::now(), &[])]);
        Load { moments: Mutex::new(moments), mhz: cpus.into_iter().map(nominal_mhz).collect() }
    }

    fn moments(&self) -> MutexGuard<'_, VecDeque<Moment>> {
        self.moments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a window and begins the next. Call about once a second.
    pub(crate) fn sample(&self, reports: &[WorkerReport]) {
        self.remember(Moment::new(Instant::now(), reports));
    }

    fn remember(&self, moment: Moment) {
        let mut moments = self.moments();
        let last = moments.back().expect("there is a moment from the beginning on").at;
        if moment.at.saturating_duration_since(last) < WINDOW_MIN {
            return;
        }
        moments.push_back(moment);
        if moments.len() > WINDOWS + 1 {
            moments.pop_front();
        }
    }

    /// What the queues cost from the oldest moment remembered until now; `reports` are of now. A queue that was not there
    /// at any of them cost nothing yet.
    pub(crate) fn costs(&self, reports: &[WorkerReport]) -> Costs {
        self.costs_at(Instant::now(), reports)
    }

    fn costs_at(&self, now: Instant, reports: &[WorkerReport]) -> Costs {
        let moments = self.moments();
        let cost = |rx: RxQueue, busy_ns: u64| {
            let before = moments.iter().find_map(|moment| moment.queues.get(&rx)).copied();
            grown(before.unwrap_or(busy_ns), busy_ns)
        };
        let queues = reports.iter().flat_map(|report| {
            let load = |queue: &switch::switch::QueueReport| QueueLoad {
                rx: queue.rx,
                worker: report.worker,
                cost: cost(queue.rx, queue.busy_ns),
            };
            report.queues.iter().map(load)
        });
        Costs { queues: queues.collect(), time: now.saturating_duration_since(moments[0].at) }
    }

    /// The rows of `show workers`; `name` gives a port's interface id.
    pub(crate) fn rows(&self, reports: Vec<WorkerReport>, name: impl Fn(PortIndex) -> String) -> Vec<WorkerRow> {
        let moments = self.moments();
        let end = moments.back().expect("there is a moment from the beginning on");
        let start = moments.iter().rev().nth(1).unwrap_or(end);
        let time = end.at.saturating_duration_since(start.at);
        let row = |report: WorkerReport| {
            let at = report.worker.as_usize();
            let share = Share::between(start.worker(at), end.worker(at), time);
            let mhz = self.mhz.get(at).copied().flatten();
            let queue = |rx: RxQueue| {
                let ns = match (start.queues.get(&rx), end.queues.get(&rx)) {
                    (Some(&before), Some(&after)) => grown(before, after),
                    _ => 0,
                };
                QueueRow { interface: name(rx.port), queue: rx.queue.0, busy: round(part(ns as f64, time), 1e4) }
            };
            WorkerRow {
                worker: report.worker.0,
                cpu: report.cpu,
                busy: round(share.busy, 1e4),
                cycles_per_packet: share.ns_per_packet.zip(mhz).map(|(ns, mhz)| round(ns * mhz / 1e3, 10.0)),
                cpu_mhz: mhz,
                packets: report.packets,
                batch: round(share.batch, 100.0),
                sleeps: report.sleeps,
                ports: report.ports.into_iter().map(&name).collect(),
                queues: report.queues.into_iter().map(|report| queue(report.rx)).collect(),
            }
        };
        reports.into_iter().map(row).collect()
    }
}

/// By how much a queue's time grew. It begins anew if its port's place was given to another.
fn grown(before: u64, after: u64) -> u64 {
    after.checked_sub(before).unwrap_or(after)
}

fn round(value: f64, steps: f64) -> f64 {
    (value * steps).round() / steps
}

/// The clock that cycles are told in, MHz; of CPU 0 for a worker that is not pinned.
fn nominal_mhz(cpu: Option<usize>) -> Option<f64> {
    nominal_mhz_below(Path::new("/"), cpu.unwrap_or(0))
}

/// The same where the system's files are below `root`: `base_frequency`, which few drivers tell, is the clock the CPU is sold with,
/// `cpuinfo_max_freq` its highest, turbo included where the driver knows of it; both in kHz. `cpu MHz` is the present one, and
/// only where no clock is governed does it stay the same.
fn nominal_mhz_below(root: &Path, cpu: usize) -> Option<f64> {
    let governed = root.join(format!("sys/devices/system/cpu/cpu{cpu}/cpufreq"));
    let told = |file: &str| std::fs::read_to_string(governed.join(file)).ok()?.trim().parse::<f64>().ok();
    let khz = ["base_frequency", "cpuinfo_max_freq"].into_iter().find_map(|file| told(file).filter(|khz| *khz > 0.0));
    match khz {
        Some(khz) => Some(khz / 1e3),
        None => parse_mhz(&std::fs::read_to_string(root.join("proc/cpuinfo")).ok()?, cpu),
    }
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
    use switch::ids::{QueueIndex, WorkerIndex};
    use switch::ledger::Balance;
    use switch::switch::QueueReport;

    #[test]
    fn the_clock_is_that_of_the_asked_processor() {
        let text = "processor\t: 0\ncpu MHz\t\t: 2000.5\n\nprocessor\t: 1\ncpu MHz\t\t: 3000.0\n";
        assert_eq!(parse_mhz(text, 1), Some(3000.0));
        assert_eq!(parse_mhz(text, 0), Some(2000.5));
        assert_eq!(parse_mhz(text, 2), None);
        assert_eq!(parse_mhz("processor: 0\n", 0), None);
    }

    #[test]
    fn the_clock_is_the_one_the_cpu_is_sold_with_else_its_highest_else_the_present_one() {
        let root = std::env::temp_dir().join(format!("qvs-load-{}", std::process::id()));
        let governed = root.join("sys/devices/system/cpu/cpu1/cpufreq");
        std::fs::create_dir_all(&governed).unwrap();
        std::fs::create_dir_all(root.join("proc")).unwrap();
        assert_eq!(nominal_mhz_below(&root, 1), None);
        std::fs::write(root.join("proc/cpuinfo"), "processor: 1\ncpu MHz: 800.0\n").unwrap();
        assert_eq!(nominal_mhz_below(&root, 1), Some(800.0));
        std::fs::write(governed.join("cpuinfo_max_freq"), "3700000\n").unwrap();
        assert_eq!(nominal_mhz_below(&root, 1), Some(3700.0));
        std::fs::write(governed.join("base_frequency"), "2400000\n").unwrap();
        assert_eq!(nominal_mhz_below(&root, 1), Some(2400.0));
        std::fs::remove_dir_all(&root).unwrap();
    }

    fn report(worker: u8, busy_ns: u64, packets: u64, queues: &[(u16, u64)]) -> WorkerReport {
        let queue = |&(port, busy_ns): &(u16, u64)| QueueReport {
            rx: RxQueue { port: PortIndex(port), queue: QueueIndex(0) },
            busy_ns,
            busy_packets: 1,
        };
        WorkerReport {
            worker: WorkerIndex(worker),
            cpu: None,
            packets,
            batches: packets / 8,
            rounds: 0,
            busy_ns,
            sleeps: 0,
            ports: queues.iter().map(|queue| PortIndex(queue.0)).collect(),
            queues: queues.iter().map(queue).collect(),
            balance: Balance::default(),
        }
    }

    #[test]
    fn what_is_shown_is_the_last_window() {
        let load = Load { mhz: vec![Some(2000.0)], ..Load::new([None]) };
        let start = load.moments()[0].at;
        let show = |after_ms: u64, report: WorkerReport| {
            load.remember(Moment::new(start + Duration::from_millis(after_ms), std::slice::from_ref(&report)));
            let row = load.rows(vec![report], |index| format!("if{index}")).remove(0);
            (row.busy, row.batch, row.queues[0].busy, row.cycles_per_packet)
        };
        assert_eq!(show(1000, report(0, 250_000_000, 1_000_000, &[(7, 0)])), (0.25, 8.0, 0.0, Some(500.0)));
        assert_eq!(show(2000, report(0, 750_000_000, 1_000_000, &[(7, 100_000_000)])), (0.5, 0.0, 0.1, None));
        // One that is too short is not told.
        assert_eq!(show(2100, report(0, 800_000_000, 1_000_000, &[(7, 200_000_000)])), (0.5, 0.0, 0.1, None));
        assert_eq!(show(3000, report(0, 750_000_000, 1_000_000, &[(7, 100_000_000)])), (0.0, 0.0, 0.0, None));
    }

    #[test]
    fn queues_cost_what_they_took_in_all_windows_remembered_wherever_they_were() {
        let load = Load::new([None, None]);
        let start = load.moments()[0].at;
        let second = |count: u64| start + Duration::from_secs(count);
        for count in 1..=10 {
            let queues = [(1, count * 100), (2, count * 10)];
            load.remember(Moment::new(second(count), &[report(0, 0, 0, &queues)]));
        }
        // Queue 2 has moved, queue 3 is new, and port 1 is another's by now.
        let costs = load.costs_at(second(11), &[report(0, 0, 0, &[(1, 7), (3, 500)]), report(1, 0, 0, &[(2, 110)])]);
        let told: Vec<_> = costs.queues.iter().map(|queue| (queue.rx.port.0, queue.worker.0, queue.cost)).collect();
        assert_eq!(told, [(1, 0, 7), (3, 0, 0), (2, 1, 50)]);
        assert_eq!(costs.time, Duration::from_secs(5));
    }
}
