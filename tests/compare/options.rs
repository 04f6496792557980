//! What is asked for on the command line.
//!
//! Without a word everything is measured and the page is written. An engineer who wants one row names the part and what
//! the row is made of: `cargo xtask compare vhost --sizes 64 --rounds 3`.

use crate::frames::{Layout, MACS_USUAL, Row, Size};
use crate::peers::Peer;
use clap::{Parser, ValueEnum};

/// Alternations, and seconds of each measurement, where nothing else is asked for: no fewer make the page.
const ROUNDS: u32 = 5;
const SECONDS: f64 = 1.0;

/// Measures the switch beside its peers, pinned and alternating, and tells how they compare.
///
/// Everything together takes about 25 minutes and writes benches/results/latest.md and latest.svg; single parts, rows or
/// peers are only printed.
#[derive(Parser, Debug)]
#[command(
    name = "cargo xtask compare",
    after_help = "cargo xtask compare vhost --sizes 64 --rounds 3: one row in half a minute.\n\
    --no-install: install and download nothing."
)]
pub(crate) struct Options {
    /// What to measure; everything if nothing is named
    #[arg(value_enum)]
    pub(crate) parts: Vec<Part>,
    /// Bytes on the wire, imix, or tso; instead of the page's rows of frames
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    pub(crate) sizes: Vec<Size>,
    /// Addresses and flows a side; instead of the page's rows of frames
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    pub(crate) macs: Vec<u32>,
    /// Layouts of the rings; instead of the page's rows of frames
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LIST")]
    pub(crate) rings: Vec<Layout>,
    /// Only these switches
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LIST")]
    pub(crate) peers: Vec<Peer>,
    /// Alternations
    #[arg(long, default_value_t = ROUNDS, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Seconds of each measurement of frames, after half a second in which addresses are learnt
    #[arg(long, default_value_t = SECONDS, value_parser = positive)]
    pub(crate) seconds: f64,
    /// Two alternations of 0.3 s: to see that it works, not to quote
    #[arg(long, conflicts_with_all = ["rounds", "seconds"])]
    quick: bool,
}

/// What can be measured, in the order of the page.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    /// Frames between two vhost-user ports, both directions
    Vhost,
    /// What the load generator can do by itself
    Ceiling,
    /// Frames between a vhost-user port and another host behind VXLAN, both directions
    Tunnel,
    /// Delays with one frame under way, and at a million a second
    Latency,
    /// Loss at nine tenths of our highest rate
    Loss,
    /// What a guest that misbehaves costs a healthy pair
    Hostile,
    /// TCP between two stations behind TAPs
    Tap,
    /// TCP between TAPs of two hypervisors, by VXLAN
    Hosts,
    /// Frames between a vhost-user port and a TAP, and between two TAPs
    VhostTap,
    /// Two workers beside one
    Workers,
    /// TCP between two guests under emulation
    Guests,
    /// From an API write to the first frame treated by it
    Write,
    /// From the start to serving
    Start,
    /// What an idle switch costs
    Idle,
}

/// A time in seconds that is one.
fn positive(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds: &f64| seconds.is_finite() && *seconds > 0.0);
    seconds.ok_or_else(|| "a number of seconds above zero is needed".to_owned())
}

impl Options {
    /// Reads the command line; ends the program if it is wrong.
    pub(crate) fn read() -> Options {
        Options::parse().settled()
    }

    /// With what `--quick` stands for.
    fn settled(mut self) -> Options {
        if self.quick {
            (self.rounds, self.seconds) = (2, 0.3);
        }
        self
    }

    /// Whether this is a run for the page: of all parts, rows and peers, and long enough.
    pub(crate) fn is_whole(&self) -> bool {
        let is_long = self.rounds >= ROUNDS && self.seconds >= SECONDS;
        self.parts.is_empty() && self.rows().is_none() && self.peers.is_empty() && is_long
    }

    /// Whether a part is wanted.
    pub(crate) fn wants(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }

    /// Those of `peers` that are wanted.
    pub(crate) fn peers(&self, peers: &[Peer]) -> Vec<Peer> {
        peers.iter().copied().filter(|peer| self.peers.is_empty() || self.peers.contains(peer)).collect()
    }

    /// The rows of frames that are asked for; `None`: those of the page.
    pub(crate) fn rows(&self) -> Option<Vec<Row>> {
        if self.sizes.is_empty() && self.macs.is_empty() && self.rings.is_empty() {
            return None;
        }
        let or = |given: &[u32], usual| if given.is_empty() { vec![usual] } else { given.to_vec() };
        let sizes = if self.sizes.is_empty() { vec![Size::Wire(64)] } else { self.sizes.clone() };
        let rings = if self.rings.is_empty() { vec![Layout::Split] } else { self.rings.clone() };
        let mut rows = Vec::new();
        for &ring in &rings {
            for &size in &sizes {
                rows.extend(or(&self.macs, MACS_USUAL).into_iter().map(|macs| Row { macs, ring, ..Row::split(size) }));
            }
        }
        Some(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &str) -> Options {
        Options::try_parse_from(std::iter::once("compare").chain(words.split_whitespace())).unwrap().settled()
    }

    #[test]
    fn one_row_is_named_by_what_it_is_made_of() {
        let rows = |words: &str| options(words).rows().map(|rows| rows.iter().map(Row::to_string).collect::<Vec<_>>());
        assert_eq!(rows("vhost"), None);
        assert_eq!(rows("vhost --sizes 64"), Some(vec!["64 B".to_owned()]));
        assert_eq!(
            rows("--rings packed --macs 1,100000 --sizes imix").unwrap(),
            ["IMIX, 1 MAC, packed", "IMIX, 100k MACs, packed"]
        );
    }

    #[test]
    fn only_a_run_of_everything_is_for_the_page() {
        assert!(options("").is_whole());
        for part in ["vhost", "--sizes 64", "--peers qvs", "--rounds 3", "--seconds 0.05", "--quick"] {
            assert!(!options(part).is_whole(), "{part}");
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Options::command().debug_assert();
    }
}
