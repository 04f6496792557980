//! Two vhost-user guests of the daemon that send to each other as fast as its worker moves frames.
//!
//! The worker has a CPU of its own; guests, clients and the API share the others. A guest whose thread waited behind the
//! clients would be a slow guest and tell nothing of the switch. So both guests are played by one thread of real-time
//! priority, that fills both rings, empties them, and sleeps until they are about half done: it leaves the others nearly
//! all of their CPU, and the worker never waits for it.

use super::client::Client;
use super::daemon::Daemon;
use super::tenant;
use anyhow::{Context, Result, ensure};
use benches::rig::frames;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vhost::driver::{Driver, DriverConfig};

/// Entries of each ring: a worker needs some 200 microseconds for as many frames.
const RING: u16 = 2048;
/// Pause of the guests between two looks at their rings.
const PAUSE: Duration = Duration::from_micros(50);
/// Bytes of a frame, without the check sequence: the smallest.
const FRAME: usize = 60;
/// Until all addresses are learnt and all buffers were used.
const WARM_UP: Duration = Duration::from_secs(2);
/// Longest wait for the daemon to have the sockets.
const PLUG_MAX: Duration = Duration::from_secs(10);

pub(super) struct Pair {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Statistics of the worker's thread (Documentation/scheduler/sched-stats.rst).
    worker: PathBuf,
    cpu: usize,
}

#[derive(Default)]
struct Shared {
    received: AtomicU64,
    /// Longest time between two looks of the guests, nanoseconds.
    late_ns: AtomicU64,
    is_over: AtomicBool,
}

/// What a pair did in some time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stretch {
    /// Frames a second that arrived.
    pub(super) rate: f64,
    /// Part of the time in which the worker waited for its CPU, or that was stolen from the machine.
    pub(super) waited: f64,
    /// Longest time between two looks of the guests, milliseconds.
    pub(super) late_ms: f64,
}

impl Pair {
    /// Plugs two guests into a network of the first tenant and lets them send.
    pub(super) fn start(daemon: &Daemon) -> Result<Pair> {
        let mut client = Client::open(daemon.api)?;
        let networks = format!("/v1.1/tenants/{}/networks", tenant(0));
        let network = client.ask("POST", &format!("{networks}.json"), r#"{"network": {"name": "pair"}}"#)?.id()?;
        let ports = format!("{networks}/{network}/ports");
        let mut drivers = Vec::new();
        for number in [0u32, 1] {
            let interface = format!("pair-{number}");
            let socket = daemon.plug(&interface)?;
            let port = client.ask("POST", &format!("{ports}.json"), r#"{"port": {"state": "ACTIVE"}}"#)?.id()?;
            let body = format!(r#"{{"attachment": {{"id": "{interface}"}}}}"#);
            let plugged = client.ask("PUT", &format!("{ports}/{port}/attachment.json"), &body)?;
            ensure!(plugged.status == 204, "{}: {}", plugged.status, plugged.body);
            let begin = Instant::now();
            while !socket.exists() {
                ensure!(begin.elapsed() < PLUG_MAX, "{} is not there", socket.display());
                std::thread::sleep(PAUSE);
            }
            // Buffers as in the pools of real drivers: an odd number of cache lines, frames on their beginning.
            let buffer = 2048 + 256 + 64;
            let config = DriverConfig {
                queue_size: RING,
                receive_buffer_len: buffer,
                send_buffer_len: buffer,
                buffer_offset: 52,
                ..DriverConfig::new(socket)
            };
            let mut driver = Driver::new(config)?;
            driver.sender.fill_all(&frames(number, 1 - number, FRAME));
            driver.start()?;
            drivers.push(driver);
        }
        let shared = Arc::new(Shared::default());
        let (of_thread, told) = (shared.clone(), std::sync::mpsc::channel());
        let thread = std::thread::spawn(move || {
            let _ = told.0.send(before_others());
            play(&mut drivers, &of_thread);
        });
        let pair = Pair { shared, thread: Some(thread), worker: daemon.worker_stats()?, cpu: daemon.worker_cpu };
        told.1.recv().context("the guests' thread ended")??;
        std::thread::sleep(WARM_UP);
        Ok(pair)
    }

    /// What it does while `others` do something.
    pub(super) fn during<T>(&self, others: impl FnOnce() -> Result<T>) -> Result<(Stretch, T)> {
        self.shared.late_ns.store(0, Ordering::Relaxed);
        let (received, waited) = (self.shared.received.load(Ordering::Relaxed), self.waited_ns());
        let begin = Instant::now();
        let value = others()?;
        let took = begin.elapsed().as_secs_f64();
        let frames = self.shared.received.load(Ordering::Relaxed) - received;
        let stretch = Stretch {
            rate: frames as f64 / took,
            waited: self.waited_ns().saturating_sub(waited) as f64 / 1e9 / took,
            late_ms: self.shared.late_ns.load(Ordering::Relaxed) as f64 / 1e6,
        };
        Ok((stretch, value))
    }

    /// How long the worker has been kept from running so far.
    fn waited_ns(&self) -> u64 {
        let stats = std::fs::read_to_string(&self.worker).unwrap_or_default();
        let queued: u64 = stats.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let name = format!("cpu{}", self.cpu);
        let line = stat.lines().find(|line| line.split_whitespace().next() == Some(&name));
        // Ticks of 10 ms (proc_stat(5): steal).
        let stolen: u64 = line.and_then(|line| line.split_whitespace().nth(8)?.parse().ok()).unwrap_or(0);
        queued + stolen * 10_000_000
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to tell.
            let _ = thread.join();
        }
    }
}

/// Gives the calling thread its CPU before all threads without real-time priority.
fn before_others() -> Result<()> {
    let link = std::fs::read_link("/proc/thread-self")?;
    let id = link.file_name().and_then(|name| name.to_str()).context("a thread has a number")?.to_owned();
    let output = Command::new("chrt").args(["--fifo", "--pid", "1", &id]).output().context("chrt (util-linux)")?;
    ensure!(output.status.success(), "the guests need root: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

fn play(drivers: &mut [Driver], shared: &Shared) {
    let mut last = Instant::now();
    while !shared.is_over.load(Ordering::Relaxed) {
        let mut received = 0;
        for driver in &mut *drivers {
            received += u64::from(driver.receiver.drain(RING).0);
            driver.sender.post(RING);
        }
        shared.received.fetch_add(received, Ordering::Relaxed);
        let now = Instant::now();
        shared.late_ns.fetch_max(now.duration_since(last).as_nanos() as u64, Ordering::Relaxed);
        last = now;
        std::thread::sleep(PAUSE);
    }
}
