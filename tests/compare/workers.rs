//! Two workers beside one, each driving its own pair of guests: what workers take from each other.
//!
//! With two CPUs there is none left for a generator, so guests and workers share a program (`benches workers`), in the
//! runs of one worker as in those of two.

use crate::options::Options;
use crate::peers::Peer;
use crate::report::{Figure, Page, Sample};
use ::tests::process::output_of;

/// The kinds of runs with two workers, by the names in its table, which are those of the findings.
pub(crate) const APART: &str = "two, a network each";
pub(crate) const TOGETHER: &str = "two, on one network";

/// Its table, as it prints it.
pub(crate) fn measure(page: &mut Page, _: &Options) {
    let program = std::env::var("QVS_BENCHES").expect("`cargo xtask compare` names the benches");
    let text = output_of(&program, &["workers"]);
    for line in [
        "",
        "## Two workers beside one",
        "",
        "Guests and workers in one program; frames without check sequence.",
        "",
        "```",
    ] {
        page.line(line);
    }
    for line in text.lines() {
        page.line(line);
    }
    page.line("```");
    for kind in [APART, TOGETHER] {
        if let Some(times) = text.lines().find_map(|line| times(line.strip_prefix(kind)?)) {
            page.keep(kind, Figure::Times, Peer::Qvs, &Sample::from_iter([times]));
        }
    }
}

/// How many times as fast as one worker, from the figures of a line: rate, spread, times, dropped.
fn times(figures: &str) -> Option<f64> {
    figures.split_whitespace().rev().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_stand_before_the_part_dropped() {
        assert_eq!(times("      20.51  19.80 .. 21.02     1.93     0.0%"), Some(1.93));
        assert_eq!(times(""), None);
    }
}
