//! The switch between two AF_XDP ports beside a forwarder that looks at nothing ([`switch::af_xdp::bare`]), on pairs of veth in a
//! namespace made for it.
//!
//! A source on the first CPU sends both ways by AF_XDP as fast as it can; whoever is measured has the last CPU, where its frames also
//! arrive, are counted and dropped. The kernel's part is most of it: on the first CPU it receives and copies, on the last it
//! makes packets of what is sent. So two figures are told: frames that arrived in a second, and the time of the rounds that
//! found frames, by frame, which does not depend on how fast the source was. The runs alternate. Needs root.

use anyhow::{Context, Result, ensure};
use benches::cost::median_of;
use benches::rig::{NOW, frames, two_ports};
use pipelines::Standard;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};
use switch::af_xdp::bare::{Bare, Sink, Source};
use switch::af_xdp::program::Steering;
use switch::affinity::{allowed_cpus, pin};
use switch::device::{DeviceConfig, Driver, HostDevice};
use switch::ids::PortIndex;
use switch::netns;
use switch::switch::Switch;
use switch::worker::Worker;

/// Frames that a source sends by one call.
const OFFER: usize = 64;
/// Steps between two looks at the clock.
const STEPS: usize = 16;

/// Prints a table.
pub(crate) fn run(frame_len: usize, alternations: usize, milliseconds: u64) -> Result<()> {
    let cpus = allowed_cpus()?;
    ensure!(cpus.len() >= 2, "the source needs a CPU of its own; allowed are {cpus:?}");
    let space = netns::create().context("making a network namespace (run as root)")?;
    let run = Duration::from_millis(milliseconds);
    netns::within(Some(space.as_fd()), || measure(frame_len, alternations, run, [cpus[0], cpus[cpus.len() - 1]]))?
}

pub(crate) fn ip(line: &str) -> Result<()> {
    let status = Command::new("ip").args(line.split(' ')).status().context("ip(8) is needed")?;
    ensure!(status.success(), "ip {line}");
    Ok(())
}

/// Two pairs of veth: `{name}0` and `{name}1` are for who is measured, `{name}s0` and `{name}s1` their far ends.
fn wires(name: &str) -> Result<()> {
    for side in [0, 1] {
        ip(&format!("link add {name}{side} type veth peer name {name}s{side}"))?;
        ip(&format!("link set {name}{side} up"))?;
        ip(&format!("link set {name}s{side} up"))?;
    }
    Ok(())
}

/// Frames that an interface has received.
fn received(name: &str) -> Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix(&format!("{name}:")).map(str::to_owned));
    let line = line.with_context(|| format!("no interface {name}"))?;
    line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).context("a count")
}

/// Who is measured: a step moves what is there and answers how many frames.
enum Forwarder {
    Bare(Box<Bare>),
    Switch { worker: Box<Worker<Standard>>, _devices: Box<[HostDevice; 2]>, _switch: Arc<Switch<Standard>> },
}

impl Forwarder {
    fn switch(names: [&str; 2]) -> Result<Forwarder> {
        let (switch, mut worker) = two_ports();
        let open = |port: usize| {
            let config = DeviceConfig {
                name: names[port].to_owned(),
                netns: None,
                driver: Some(Driver::AfXdp),
                steering: Steering::Everything,
            };
            HostDevice::open(config, switch.place(PortIndex(port as u16)))
        };
        let devices = Box::new([open(0)?, open(1)?]);
        worker.step(NOW);
        Ok(Forwarder::Switch { worker: Box::new(worker), _devices: devices, _switch: switch })
    }

    fn step(&mut self) -> usize {
        match self {
            Forwarder::Bare(bare) => bare.step(),
            Forwarder::Switch { worker, .. } => worker.step(NOW),
        }
    }
}

/// One who is measured, and what came of it.
struct Kind {
    label: &'static str,
    name: &'static str,
    forwarder: Forwarder,
    sources: [Source; 2],
    _sinks: [Sink; 2],
    mpps: Vec<f64>,
    ns: Vec<f64>,
    lost: Vec<f64>,
}

impl Kind {
    fn new(label: &'static str, name: &'static str, frame_len: usize, is_bare: bool) -> Result<Kind> {
        wires(name)?;
        let near = [format!("{name}0"), format!("{name}1")];
        let near = [near[0].as_str(), near[1].as_str()];
        let far = [format!("{name}s0"), format!("{name}s1")];
        let forwarder = if is_bare { Forwarder::Bare(Box::new(Bare::open(near)?)) } else { Forwarder::switch(near)? };
        let source = |port: usize| Source::open(&far[port], &frames(port as u32, 1 - port as u32, frame_len));
        Ok(Kind {
            label,
            name,
            forwarder,
            sources: [source(0)?, source(1)?],
            _sinks: [Sink::open(&far[0])?, Sink::open(&far[1])?],
            mpps: Vec::new(),
            ns: Vec::new(),
            lost: Vec::new(),
        })
    }

    fn arrived(&self) -> Result<u64> {
        Ok(received(&format!("{}s0", self.name))? + received(&format!("{}s1", self.name))?)
    }

    /// One run.
    fn run(&mut self, run: Duration, [source_cpu, cpu]: [usize; 2]) -> Result<()> {
        let before = self.arrived()?;
        let (is_over, sent, begin) = (AtomicBool::new(false), AtomicU64::new(0), Barrier::new(2));
        let (mut busy, mut moved) = (Duration::ZERO, 0);
        let Kind { sources, forwarder, .. } = self;
        let outcome: Result<()> = std::thread::scope(|scope| {
            let source = scope.spawn(|| -> Result<()> {
                pin(source_cpu)?;
                begin.wait();
                while !is_over.load(Ordering::Relaxed) {
                    let count: usize = sources.iter_mut().map(|source| source.send(OFFER)).sum();
                    sent.fetch_add(count as u64, Ordering::Relaxed);
                }
                Ok(())
            });
            pin(cpu)?;
            begin.wait();
            let begun = Instant::now();
            while begun.elapsed() < run {
                for _ in 0..STEPS {
                    let since = Instant::now();
                    let count = forwarder.step();
                    if count > 0 {
                        busy += since.elapsed();
                        moved += count;
                    }
                }
            }
            is_over.store(true, Ordering::Relaxed);
            source.join().expect("no panic")?;
            // What is still on its way is neither lost nor to be found by the next run.
            while forwarder.step() > 0 {}
            Ok(())
        });
        outcome?;
        let arrived = self.arrived()? - before;
        let sent = sent.into_inner();
        self.mpps.push(arrived as f64 / run.as_secs_f64() / 1e6);
        self.ns.push(busy.as_nanos() as f64 / moved.max(1) as f64);
        self.lost.push(100.0 * sent.saturating_sub(arrived) as f64 / sent.max(1) as f64);
        Ok(())
    }
}

fn measure(frame_len: usize, alternations: usize, run: Duration, cpus: [usize; 2]) -> Result<()> {
    // Nobody but the sources speaks. Missing where the kernel has no IPv6: quiet as well.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    let mut kinds =
        [Kind::new("bare forwarder", "b", frame_len, true)?, Kind::new("the switch", "q", frame_len, false)?];
    for _ in 0..alternations {
        for kind in &mut kinds {
            kind.run(run, cpus)?;
        }
    }
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?");
    println!("{frame_len} bytes both ways, medians of {alternations} alternating runs of {run:?}; load {load}");
    println!("{:<16} {:>8} {:>16} {:>10} {:>18} {:>8}", "", "Mpps", "spread", "ns/frame", "spread", "lost %");
    let mut bare = None;
    for kind in &mut kinds {
        let mpps = median_of(&mut kind.mpps).context("it ran")?;
        let ns = median_of(&mut kind.ns).context("it ran")?;
        let lost = median_of(&mut kind.lost).context("it ran")?;
        let spread = |values: &[f64]| format!("{:.3} .. {:.3}", values[0], values[values.len() - 1]);
        println!(
            "{:<16} {mpps:>8.3} {:>16} {ns:>10.1} {:>18} {lost:>8.1}",
            kind.label,
            spread(&kind.mpps),
            spread(&kind.ns)
        );
        match bare {
            None => bare = Some((mpps, ns)),
            Some((bare_mpps, bare_ns)) => {
                println!("of the bare one: {:.3} by frames, {:.3} by time", mpps / bare_mpps, bare_ns / ns);
            }
        }
    }
    Ok(())
}
