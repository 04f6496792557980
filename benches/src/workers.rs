//! Two workers beside one: each on its own CPU, driving its own pair of guests between its rounds.
//!
//! So a worker's guests cost it as much in one run as in the other, and what the sum of two falls short of twice one is
//! what the workers take from each other: shared tables, shared caches, locks. What CPUs of this machine take from each other
//! whatever runs on them is told by two switches that have nothing in common. The runs alternate; a figure is the median of
//! [`ALTERNATIONS`].

use anyhow::{Result, ensure};
use benches::cost::median_of;
use benches::rig::{Guest, Half, Layout, NOW, Rig, RigConfig};
use std::sync::Barrier;
use std::time::{Duration, Instant};
use switch::affinity::{allowed_cpus, pin};

/// Runs of each kind.
const ALTERNATIONS: usize = 7;
/// Time of one run.
const RUN: Duration = Duration::from_millis(400);
/// Rounds between two looks at the clock.
const ROUNDS: usize = 64;

/// One kind of run.
struct Kind {
    name: &'static str,
    layout: Layout,
    /// Its switches.
    rigs: Vec<Rig>,
    /// Million frames a second that arrived, all guests together.
    mpps: Vec<f64>,
}

/// Prints one line a kind.
pub(crate) fn run(frame_len: usize) -> Result<()> {
    let cpus = allowed_cpus()?;
    ensure!(cpus.len() >= 2, "two workers need two CPUs; allowed are {cpus:?}");
    let kind = |name, switches, pairs, layout| {
        let rig = |_| Rig::with(RigConfig { pairs, layout, ..RigConfig::new(frame_len) });
        Kind { name, layout, rigs: (0..switches).map(rig).collect(), mpps: Vec::new() }
    };
    let mut kinds = [
        kind("one worker", 1, 1, Layout::Apart),
        kind("two switches", 2, 1, Layout::Apart),
        kind("two, a network each", 1, 2, Layout::Apart),
        kind("two, on one network", 1, 2, Layout::Together),
        kind("two, to one guest", 1, 2, Layout::ToOneGuest),
    ];
    for _ in 0..ALTERNATIONS {
        for kind in &mut kinds {
            let mpps = measure(&mut kind.rigs, kind.layout, &cpus);
            kind.mpps.push(mpps);
        }
    }
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?");
    println!("{frame_len} bytes; medians of {ALTERNATIONS} alternating runs of {RUN:?}; load {load}");
    println!("{:<22} {:>8} {:>15} {:>8} {:>8}", "", "Mpps", "spread", "times", "dropped");
    let mut one = None;
    for kind in &mut kinds {
        let median = median_of(&mut kind.mpps).expect("it ran");
        let one = *one.get_or_insert(median);
        let spread = format!("{:.2} .. {:.2}", kind.mpps[0], kind.mpps[kind.mpps.len() - 1]);
        let balances = kind.rigs.iter().map(|rig| rig.switch().balance());
        let (dropped, received) = balances.fold((0, 0), |sum, of| (sum.0 + of.dropped, sum.1 + of.received));
        let dropped = 100.0 * dropped as f64 / received as f64;
        println!("{:<22} {median:>8.2} {spread:>15} {:>8.2} {dropped:>7.1}%", kind.name, median / one);
    }
    Ok(())
}

/// Has each half driven by a thread on a CPU of its own; answers how many million frames a second arrived.
fn measure(rigs: &mut [Rig], layout: Layout, cpus: &[usize]) -> f64 {
    let start = Barrier::new(rigs.iter().map(|rig| rig.halves.len()).sum());
    std::thread::scope(|scope| {
        let threads: Vec<_> = rigs
            .iter_mut()
            .flat_map(|rig| &mut rig.halves)
            .zip(cpus.iter().rev())
            .map(|(half, &cpu)| {
                let start = &start;
                scope.spawn(move || {
                    pin(cpu).expect("it is allowed");
                    start.wait();
                    drive(half, layout)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a half does not panic")).sum()
    })
}

/// Rounds for [`RUN`]; answers million frames a second that this half's guests got.
fn drive(half: &mut Half, layout: Layout) -> f64 {
    let start = Instant::now();
    let mut frames = 0u64;
    while start.elapsed() < RUN {
        for _ in 0..ROUNDS {
            let [first, second] = &mut half.guests;
            first.offer();
            if layout != Layout::ToOneGuest {
                second.offer();
            }
            half.worker.step(NOW);
            frames += half.guests.iter_mut().map(Guest::take).map(u64::from).sum::<u64>();
        }
    }
    frames as f64 / start.elapsed().as_secs_f64() / 1e6
}
