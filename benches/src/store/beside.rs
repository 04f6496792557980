//! The daemon with everybody at once: a pair of guests under traffic, alone, beside a crowd of clients, and beside as many
//! that mean harm, in turns.

use super::daemon::Daemon;
use super::pair::{Pair, Stretch};
use super::report::Report;
use super::{crowd, hostile};
use anyhow::Result;
use std::time::Duration;
use switch::affinity::leave;

/// Turns of each kind; the time that was asked for is spread over them.
const TURNS: u32 = 6;
/// Clients of the crowd whose interfaces are on this host.
const LIVE: usize = 16;

/// Who was beside the pair.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nobody,
    Crowd,
    Hostile,
}

impl Beside {
    const ALL: [Beside; 3] = [Beside::Nobody, Beside::Crowd, Beside::Hostile];

    fn name(self) -> &'static str {
        match self {
            Beside::Nobody => "alone",
            Beside::Crowd => "beside the crowd",
            Beside::Hostile => "beside the hostile",
        }
    }
}

pub(super) fn run(daemon: &Daemon, clients: usize, time: Duration, report: &mut Report) -> Result<()> {
    let has_own_cpu = leave(&[daemon.worker_cpu])?;
    println!(
        "the worker has CPU {}{}; guests, clients and the API share the rest",
        daemon.worker_cpu,
        if has_own_cpu { " to itself" } else { ", which all others share because it is the only one" }
    );
    (0..LIVE).try_for_each(|at| daemon.plug(&crowd::live_interface(at)).map(drop))?;
    let pair = Pair::start(daemon)?;
    let mut stretches = [const { Vec::new() }; Beside::ALL.len()];
    let (mut of_crowd, mut of_hostile) = (crowd::Told::default(), hostile::Told::default());
    let mut peaks = Vec::new();
    for _ in 0..TURNS {
        for (beside, stretches) in Beside::ALL.into_iter().zip(&mut stretches) {
            daemon.forget_peak()?;
            let (stretch, ()) = pair.during(|| {
                match beside {
                    Beside::Nobody => std::thread::sleep(time / TURNS),
                    Beside::Crowd => of_crowd.add(crowd::run(daemon, clients, LIVE, time / TURNS)?),
                    Beside::Hostile => of_hostile.add(hostile::run(daemon, clients, time / TURNS)?),
                }
                Ok(())
            })?;
            stretches.push(stretch);
            peaks.push((beside, daemon.peak_mib()?));
        }
    }
    of_crowd.print(clients, time, report);
    of_hostile.print(clients, time, report);
    let peak = |of: Beside| peaks.iter().filter(|(beside, _)| *beside == of).map(|(_, mib)| *mib).max().unwrap_or(0);
    let most_mib = Beside::ALL.map(peak);
    let [alone_mib, crowd_mib, hostile_mib] = most_mib;
    report.bar(
        "most memory",
        "below 400 MB",
        format!("alone {alone_mib} MiB, beside the crowd {crowd_mib}, beside the hostile {hostile_mib}"),
        most_mib.iter().all(|mib| mib << 20 < 400_000_000),
    );
    let alone = median(&stretches[0]);
    for (beside, stretches) in Beside::ALL.into_iter().zip(&stretches) {
        let rate = median(stretches);
        let (waited, late_ms) = (most(stretches, |one| one.waited), most(stretches, |one| one.late_ms));
        let what = format!("a pair of guests {}", beside.name());
        let told = format!(
            "{:.2} Mpps, {:+.1} %; by turn {}; the worker waited {:.1} % at most, the guests {late_ms:.1} ms",
            rate / 1e6,
            (rate / alone - 1.0) * 100.0,
            stretches.iter().map(|one| format!("{:.2}", one.rate / 1e6)).collect::<Vec<_>>().join(" "),
            waited * 100.0,
        );
        match beside {
            Beside::Crowd => report.bar(&what, "at least -3 %", told, rate / alone >= 0.97),
            Beside::Nobody | Beside::Hostile => report.tell(&what, told),
        }
    }
    Ok(())
}

fn median(stretches: &[Stretch]) -> f64 {
    let mut rates: Vec<f64> = stretches.iter().map(|one| one.rate).collect();
    rates.sort_unstable_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(f64::NAN)
}

fn most(stretches: &[Stretch], figure: fn(&Stretch) -> f64) -> f64 {
    stretches.iter().map(figure).fold(0.0, f64::max)
}
