//! Measures the switch beside its peers and writes one Markdown page with a plot: `cargo xtask compare`.
//!
//! The switch under test has the last CPU to itself, everything else (guests, generators, clients) is on the first.
//! Peers and ourselves take turns within one run, so that a noisy neighbour hits both; medians, extremes and the load
//! average stand beside every figure. Nothing here asserts a time.
//!
//! Where to start reading: [`alternate`] (taking turns), [`peers`] (the switches), [`bars`] (what we want to reach).

mod alternate;
mod bars;
mod ceiling;
mod control;
mod distance;
mod frames;
mod generator;
mod guests;
mod hostile;
mod hosts;
mod idle;
mod latency;
mod loss;
mod options;
mod peers;
mod pinned;
mod plot;
mod report;
mod tap;
mod tunnel;
mod vhost;
mod vhost_tap;
mod workers;

use options::{Options, Part};
use report::Page;
use tests::process::{repository, target_dir};

/// Where below the target directory the page of the parts done so far lies, whatever was asked for.
const SO_FAR: &str = "compare";

/// Takes figures and writes them on the page.
type Measure = fn(&mut Page, &Options);

/// Every part, in the order of the page.
const PARTS: [(Part, Measure); 14] = [
    (Part::Vhost, vhost::measure),
    (Part::Ceiling, ceiling::measure),
    (Part::Tunnel, tunnel::measure),
    (Part::Latency, latency::measure),
    (Part::Loss, loss::measure),
    (Part::Hostile, hostile::measure),
    (Part::Tap, tap::measure),
    (Part::Hosts, hosts::measure),
    (Part::VhostTap, vhost_tap::measure),
    (Part::Workers, workers::measure),
    (Part::Guests, guests::measure),
    (Part::Write, control::measure_write),
    (Part::Start, control::measure_start),
    (Part::Idle, idle::measure),
];

fn main() {
    let options = Options::read();
    peers::prepare();
    let mut page = Page::begin();
    for (part, measure) in PARTS {
        if options.wants(part) {
            measure(&mut page, &options);
            // What took minutes is kept should a later part fail.
            page.save(&target_dir().join(SO_FAR), &bars::table(&page), &plot::svg(&page));
        }
    }
    let bars = bars::table(&page);
    println!("\n{bars}");
    // A page of some measurements must not take the place of one of all.
    if options.is_whole() {
        let dir = repository().join("benches/results");
        page.save(&dir, &bars, &plot::svg(&page));
        println!("written to {}", dir.display());
    }
}
