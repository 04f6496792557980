//! The switch between two AF_XDP ports beside its peers, and beside a forwarder that looks at nothing ([`switch::af_xdp::bare`]), each on
//! pairs of veth of its own in a namespace made for all of them.
//!
//! A source on the first CPU sends both ways by AF_XDP as fast as it can; whoever is measured has the last CPU, where its frames also
//! arrive, are counted and dropped. The kernel's part is most of it: on the first CPU it receives and copies, on the last it
//! makes packets of what is sent. So two figures are told: frames that arrived in a second, and, of who is stepped by us, the time of the
//! steps that found frames, by frame, which does not depend on how fast the source was. The runs alternate; before
//! each, addresses are learnt. Needs root.

mod forwarder;

use crate::results::Section;
use ::tests::ovs::PLAIN;
use ::tests::version;
use anyhow::{Context, Result, ensure};
use benches::cost::median_of;
use benches::rig::frames;
use clap::Args;
use forwarder::{Forwarder, Who};
use std::fmt;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use switch::af_xdp::bare::{Sink, Source};
use switch::affinity::{allowed_cpus, pin};
use switch::netns;

/// Frames that a source sends by one call.
const OFFER: usize = 64;
/// Time in which addresses are learnt before each run.
const WARM_UP: Duration = Duration::from_millis(300);
/// The bar: part of what the bare forwarder gets.
const SHARE_MIN: f64 = 0.93;
/// Alternations from which on the page is written.
pub(crate) const ALTERNATIONS_MIN: usize = 5;

#[derive(Args, Clone)]
pub(crate) struct Options {
    /// Bytes of a frame, without the check sequence
    #[arg(default_values_t = [60, 1400])]
    frame_lens: Vec<usize>,
    /// Runs of each; fewer than 5 are only printed
    #[arg(long, default_value_t = 7)]
    alternations: usize,
    /// Time of one run, ms
    #[arg(long, default_value_t = 1000)]
    milliseconds: u64,
    /// This is already in namespaces of its own
    #[arg(long, hide = true)]
    inside: bool,
}

/// Prints a table for each length of frames, and writes it to the page.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !options.inside {
        return run_inside();
    }
    let cpus = allowed_cpus()?;
    ensure!(cpus.len() >= 2, "the source needs a CPU of its own; allowed are {cpus:?}");
    let cpus = [cpus[0], cpus[cpus.len() - 1]];
    for &frame_len in &options.frame_lens {
        let space = netns::create().context("making a network namespace")?;
        netns::within(Some(space.as_fd()), || measure(frame_len, options, cpus))??;
    }
    Ok(())
}

/// Runs this program once more, with processes and mounts of its own: no peer outlives it.
fn run_inside() -> Result<()> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]).arg(std::env::current_exe()?);
    let status = command.args(std::env::args_os().skip(1)).arg("--inside").status().context("unshare(1) is needed")?;
    ensure!(status.success(), "it failed in namespaces of its own (run as root)");
    Ok(())
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

/// One who is measured, and what came of it.
struct Kind {
    who: Who,
    forwarder: Forwarder,
    sources: [Source; 2],
    _sinks: [Sink; 2],
    figures: Figures,
}

/// The figures of one who was measured, run by run.
#[derive(Default)]
struct Figures {
    /// Frames that arrived, millions a second.
    mpps: Vec<f64>,
    /// Part of the frames sent that did not, %.
    lost: Vec<f64>,
    /// Time of a frame, ns; none of who is not stepped by us.
    ns: Vec<f64>,
}

impl Kind {
    fn new(who: Who, frame_len: usize, cpus: [usize; 2]) -> Result<Kind> {
        let name = who.prefix();
        wires(name)?;
        let near = [format!("{name}0"), format!("{name}1")];
        let far = [format!("{name}s0"), format!("{name}s1")];
        let forwarder = who.start([&near[0], &near[1]], cpus)?;
        let source = |port: usize| Source::open(&far[port], &frames(port as u32, 1 - port as u32, frame_len));
        let sources = [source(0)?, source(1)?];
        let sinks = [Sink::open(&far[0])?, Sink::open(&far[1])?];
        Ok(Kind { who, forwarder, sources, _sinks: sinks, figures: Figures::default() })
    }

    fn arrived(&self) -> Result<u64> {
        let name = self.who.prefix();
        Ok(received(&format!("{name}s0"))? + received(&format!("{name}s1"))?)
    }

    /// One run that counts.
    fn run(&mut self, time: Duration, cpus: [usize; 2]) -> Result<()> {
        self.forwarder.resume();
        self.send(WARM_UP, cpus)?;
        let before = self.arrived()?;
        let (sent, busy, moved) = self.send(time, cpus)?;
        let arrived = self.arrived()? - before;
        self.forwarder.stop();
        self.figures.mpps.push(arrived as f64 / time.as_secs_f64() / 1e6);
        self.figures.lost.push(100.0 * sent.saturating_sub(arrived) as f64 / sent.max(1) as f64);
        if moved > 0 {
            self.figures.ns.push(busy.as_nanos() as f64 / moved as f64);
        }
        Ok(())
    }

    /// Sends both ways for so long; answers how many frames were sent, and what the forwarder says.
    fn send(&mut self, time: Duration, [source_cpu, cpu]: [usize; 2]) -> Result<(u64, Duration, usize)> {
        let (is_over, sent, begin) = (AtomicBool::new(false), AtomicU64::new(0), Barrier::new(2));
        let Kind { sources, forwarder, .. } = self;
        let (busy, moved) = std::thread::scope(|scope| -> Result<_> {
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
            let forwarded = forwarder.forward(time);
            is_over.store(true, Ordering::Relaxed);
            source.join().expect("no panic")?;
            forwarder.drain();
            Ok(forwarded)
        })?;
        Ok((sent.into_inner(), busy, moved))
    }
}

fn measure(frame_len: usize, options: &Options, cpus: [usize; 2]) -> Result<()> {
    // Nobody but the sources speaks. Missing where the kernel has no IPv6: quiet as well.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    // What a peer has besides the thread that polls is beside the source.
    pin(cpus[0])?;
    let (mut kinds, mut absent) = (Vec::new(), Vec::new());
    for who in Who::ALL {
        match Kind::new(who, frame_len, cpus) {
            Ok(kind) => kinds.push(kind),
            Err(error) if who == Who::Bare || who == Who::Switch => return Err(error),
            Err(error) => absent.push(format!("{:<20} not measured: {error:#}", who.label())),
        }
    }
    let time = Duration::from_millis(options.milliseconds);
    for _ in 0..options.alternations {
        for kind in &mut kinds {
            kind.run(time, cpus)?;
        }
    }
    let mut section =
        Section::begin(&format!("Between two veths by AF_XDP, {frame_len} bytes (`benches xdp {frame_len}`)"));
    section.line(format!(
        "{frame_len} bytes both ways as fast as the source can, 1,000 addresses a side; medians of {} alternating runs of {time:?}",
        options.alternations
    ));
    section.line(format!(
        "{:<20} {:>7} {:>16} {:>8} {:>16} {:>9} {:>18}",
        "", "Mpps", "spread", "lost %", "spread", "ns/frame", "spread"
    ));
    let rows: Vec<Row> = kinds.iter().filter_map(|kind| Row::of(kind.who.label(), &kind.figures)).collect();
    rows.iter().map(Row::to_string).chain(absent).chain(bars(&rows)).for_each(|line| section.line(line));
    section.line(format!("Peers: {}.", version::peers(PLAIN)));
    if options.alternations >= ALTERNATIONS_MIN { section.write("uplink.md") } else { Ok(()) }
}

/// A median with its extremes.
#[derive(Clone, Copy)]
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    /// That of these values; `None` of none.
    fn of(values: &[f64]) -> Option<Spread> {
        let mut sorted = values.to_vec();
        let median = median_of(&mut sorted)?;
        Some(Spread { least: *sorted.first()?, median, most: *sorted.last()? })
    }

    fn extremes(&self, digits: usize) -> String {
        format!("{:.digits$} .. {:.digits$}", self.least, self.most)
    }
}

/// A line of the table.
struct Row {
    label: &'static str,
    mpps: Spread,
    lost: Spread,
    ns: Option<Spread>,
}

impl Row {
    /// `None` if it never ran.
    fn of(label: &'static str, figures: &Figures) -> Option<Row> {
        let (mpps, lost) = (Spread::of(&figures.mpps)?, Spread::of(&figures.lost)?);
        Some(Row { label, mpps, lost, ns: Spread::of(&figures.ns) })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { label, mpps, lost, ns } = self;
        write!(f, "{label:<20} {:>7.3} {:>16}", mpps.median, mpps.extremes(3))?;
        write!(f, " {:>8.1} {:>16}", lost.median, lost.extremes(1))?;
        ns.map_or(Ok(()), |ns| write!(f, " {:>9.1} {:>18}", ns.median, ns.extremes(1)))
    }
}

/// What is asked of the switch, the second row, beside the bare forwarder, the first, and the others.
fn bars(rows: &[Row]) -> Vec<String> {
    let [bare, ours, peers @ ..] = rows else { return Vec::new() };
    let mut lines = Vec::new();
    let mut bar =
        |what: String, is_met: bool| lines.push(format!("bar ({what}): {}", if is_met { "met" } else { "not met" }));
    let share = ours.mpps.median / bare.mpps.median;
    bar(format!("{share:.3} of the bare one, at least {SHARE_MIN}"), share >= SHARE_MIN);
    if let Some(fastest) = peers.iter().max_by(|one, other| one.mpps.median.total_cmp(&other.mpps.median)) {
        let Row { label, mpps, .. } = fastest;
        bar(
            format!("{:.3} of the fastest peer, {label}, not below its spread", ours.mpps.median / mpps.median),
            ours.mpps.median >= mpps.least,
        );
    }
    let (lost, bare_lost) = (ours.lost.median, bare.lost.median);
    bar(format!("{lost:.1} % lost, no more than the bare one's {bare_lost:.1}"), lost <= bare_lost);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(mpps: [f64; 3], lost: f64) -> Row {
        let figures = Figures { mpps: mpps.into(), lost: vec![lost], ns: Vec::new() };
        Row::of("it", &figures).unwrap()
    }

    fn met(rows: &[Row]) -> Vec<bool> {
        bars(rows).iter().map(|line| !line.ends_with(": not met")).collect()
    }

    #[test]
    fn the_switch_is_held_against_the_bare_one_the_fastest_peer_and_the_loss() {
        let bare = || row([1.0, 1.0, 1.0], 10.0);
        let slow = || row([0.1, 0.1, 0.1], 90.0);
        assert_eq!(met(&[bare(), row([0.9, 0.93, 0.99], 10.0), slow()]), [true, true, true]);
        assert_eq!(met(&[bare(), row([0.99, 0.92, 0.9], 10.1), slow()]), [false, true, false], "medians count");
        let fast = || row([0.95, 1.0, 1.1], 0.0);
        assert_eq!(met(&[bare(), row([0.95, 0.95, 0.95], 0.0), slow(), fast()]), [true, true, true]);
        assert_eq!(met(&[bare(), row([0.94, 0.94, 0.94], 0.0), fast(), slow()]), [true, false, true]);
        assert_eq!(met(&[bare(), row([1.0; 3], 0.0)]), [true, true], "no peer is no bar");
    }
}
