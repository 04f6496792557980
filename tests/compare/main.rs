//! Measures the switch, beside its peers where there is one, and writes one Markdown page: `cargo xtask compare`.
//!
//! The switch under test has the last CPU to itself, everything else (guests, generators, clients) is on the first.
//! Peers and ourselves alternate within one run, so that a noisy neighbour hits both; medians, extremes and the load
//! average stand beside every figure. Nothing here asserts a time.

mod control;
mod frames;
mod idle;
mod peers;
mod report;
mod tcp;

use report::Page;
use std::process::ExitCode;

/// Takes figures and writes them on the page.
type Measure = fn(&mut Page);

/// Every measurement by name, in the order of the page.
const MEASUREMENTS: [(&str, Measure); 5] = [
    ("frames", frames::measure),
    ("tcp", tcp::measure),
    ("write", control::measure_write),
    ("start", control::measure_start),
    ("idle", idle::measure),
];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = wanted.iter().find(|name| MEASUREMENTS.iter().all(|(known, _)| known != name)) {
        let known: Vec<_> = MEASUREMENTS.iter().map(|(name, _)| *name).collect();
        eprintln!("no measurement {unknown:?}; there are: {}", known.join(", "));
        return ExitCode::from(2);
    }
    peers::mount_huge_pages();
    let mut page = Page::default();
    for (name, measure) in MEASUREMENTS {
        if wanted.is_empty() || wanted.iter().any(|wish| wish == name) {
            measure(&mut page);
        }
    }
    // A page of some measurements must not take the place of one of all.
    if wanted.is_empty() {
        page.save();
    }
    ExitCode::SUCCESS
}
