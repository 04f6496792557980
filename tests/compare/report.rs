//! The page that a comparison writes, the figures on it, and the few statistics.

use crate::distance::round_trip;
use crate::peers::Peer;
use ::tests::ovs::DPDK;
use ::tests::version;
use std::fmt::{Display, Write as _};
use std::fs;
use std::path::Path;

/// The figures of one thing, turn by turn; `None` for a turn that failed, so that the turns of two samples stay side by side.
#[derive(Clone, Default, PartialEq, Debug)]
pub(crate) struct Sample(Vec<Option<f64>>);

impl Sample {
    pub(crate) fn add(&mut self, value: f64) {
        self.add_turn(Some(value));
    }

    /// A turn's figure; `None` if the turn failed.
    pub(crate) fn add_turn(&mut self, value: Option<f64>) {
        self.0.push(value);
    }

    /// The figures of the turns that did not fail.
    pub(crate) fn values(&self) -> Vec<f64> {
        self.0.iter().flatten().copied().collect()
    }

    /// How many figures there are, and how many were asked for.
    pub(crate) fn count(&self) -> (usize, usize) {
        (self.values().len(), self.0.len())
    }

    /// Whether there is no figure.
    pub(crate) fn is_empty(&self) -> bool {
        self.values().is_empty()
    }

    /// Each figure changed in the same way.
    pub(crate) fn map(&self, change: impl Fn(f64) -> f64) -> Sample {
        self.0.iter().map(|value| value.map(&change)).collect()
    }

    /// Ours in terms of theirs, turn by turn; none for a turn that one of the two has not.
    pub(crate) fn ratios(&self, theirs: &Sample) -> Sample {
        let turns = self.0.len().max(theirs.0.len());
        let at = |sample: &Sample, turn: usize| sample.0.get(turn).copied().flatten();
        (0..turns).map(|turn| Some(at(self, turn)? / at(theirs, turn)?)).collect()
    }

    /// The value below which `part` (0 to 1) of the figures lie, between two of them where it lies between. There must be one.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.values();
        sorted.sort_by(f64::total_cmp);
        let at = part * (sorted.len() - 1) as f64;
        let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        // Two that are one may be infinite.
        if low == high { low } else { low + at.fract() * (high - low) }
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    pub(crate) fn least(&self) -> f64 {
        self.quantile(0.0)
    }

    pub(crate) fn most(&self) -> f64 {
        self.quantile(1.0)
    }

    /// Median and extremes, as two cells of a table.
    pub(crate) fn cell(&self, digits: usize) -> String {
        let [least, median, most] = [0.0, 0.5, 1.0].map(|part| self.quantile(part));
        format!("{median:.digits$} | {least:.digits$} to {most:.digits$} (n={})", self.counted())
    }

    /// How many figures there are; of how many, if some are missing.
    fn counted(&self) -> String {
        match self.count() {
            (count, asked) if count == asked => count.to_string(),
            (count, asked) => format!("{count} of {asked}"),
        }
    }

    /// Median and extremes, as one cell of a table, and how many figures there are if some are missing; a dash where there is nothing.
    pub(crate) fn brief(&self, digits: usize) -> String {
        if self.is_empty() {
            return "–".to_owned();
        }
        let [least, median, most] = [0.0, 0.5, 1.0].map(|part| self.quantile(part));
        let (count, asked) = self.count();
        let of = if count < asked { format!(", n={}", self.counted()) } else { String::new() };
        format!("**{median:.digits$}** ({least:.digits$}–{most:.digits$}{of})")
    }

    /// Median and quartiles, as one cell of a table; a dash where there is nothing.
    pub(crate) fn middle(&self, digits: usize) -> String {
        if self.is_empty() {
            return "–".to_owned();
        }
        let [low, median, high] = [0.25, 0.5, 0.75].map(|part| self.quantile(part));
        format!("**{median:.digits$}** ({low:.digits$}–{high:.digits$}, n={})", self.counted())
    }
}

impl FromIterator<f64> for Sample {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Sample {
        Sample(values.into_iter().map(Some).collect())
    }
}

impl FromIterator<Option<f64>> for Sample {
    fn from_iter<I: IntoIterator<Item = Option<f64>>>(values: I) -> Sample {
        Sample(values.into_iter().collect())
    }
}

/// What a figure is, with its unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Figure {
    /// Frames received a second, all directions together, millions.
    Mpps,
    /// Bits received a second, 10^9.
    Gbps,
    /// Percentiles of the delay, microseconds.
    P50,
    P90,
    P99,
    /// What the generator could have moved in the same measurements had it never waited, in the unit of the row.
    Ceiling,
    /// Part of the frames lost.
    Loss,
    /// Part of the rate asked for that was offered.
    Offered,
    /// Part of the frames lost, less what a control lost.
    MoreLoss,
    /// How many times as fast as one worker, or as many cycles as a control.
    Times,
    /// Kinds of drops at the switch besides those where the receiver's ring was full.
    OtherDrops,
}

/// What one switch did in one row.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) row: String,
    pub(crate) figure: Figure,
    pub(crate) peer: Peer,
    pub(crate) sample: Sample,
}

/// What the machine was like just now: its load average over the last minute, and how far its CPUs are apart.
pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = text.split_whitespace().next().unwrap_or("unknown");
    round_trip().map_or_else(|| load.to_owned(), |time| format!("{load}, {} ns", time.as_nanos()))
}

/// The page.
#[derive(Default)]
pub(crate) struct Page {
    text: String,
    /// What was measured, by version.
    versions: String,
    /// What bars and plot are made of.
    pub(crate) findings: Vec<Finding>,
}

impl Page {
    /// An empty one. What is measured was built a moment ago, of the tree as it is now.
    pub(crate) fn begin() -> Page {
        let versions = format!("Measured: qvs of {}; {}.", version::commit(), version::peers(DPDK));
        println!("{versions}");
        Page { versions, ..Page::default() }
    }

    /// A line of Markdown; shown at once as well, for a run takes minutes.
    pub(crate) fn line(&mut self, line: &str) {
        println!("{line}");
        writeln!(self.text, "{line}").expect("a string grows");
    }

    /// Starts a section with a table of this head.
    pub(crate) fn table(&mut self, title: &str, how: &str, head: &str) {
        for line in ["", &format!("## {title}"), "", how, ""] {
            self.line(line);
        }
        self.head(head);
    }

    /// Starts a table.
    pub(crate) fn head(&mut self, head: &str) {
        self.line(head);
        let columns = head.matches('|').count() - 1;
        self.line(&format!("|{}", "---|".repeat(columns)));
    }

    /// Lines below a table.
    pub(crate) fn notes(&mut self, notes: &[String]) {
        for note in notes {
            self.line("");
            self.line(note);
        }
    }

    /// Keeps a finding that has figures.
    pub(crate) fn keep(&mut self, row: impl Display, figure: Figure, peer: Peer, sample: &Sample) {
        if !sample.is_empty() {
            self.findings.push(Finding { row: row.to_string(), figure, peer, sample: sample.clone() });
        }
    }

    /// A finding, if it was made.
    pub(crate) fn found(&self, row: &str, figure: Figure, peer: Peer) -> Option<&Sample> {
        let is_it = |finding: &&Finding| finding.row == row && finding.figure == figure && finding.peer == peer;
        self.findings.iter().find(is_it).map(|finding| &finding.sample)
    }

    /// Writes it to `latest.md` in a directory, with the machine and the bars above, and the plot beside it.
    pub(crate) fn save(&self, dir: &Path, bars: &str, plot: &str) {
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("");
        let model = model.trim_start_matches([' ', '\t', ':']);
        let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let head = format!(
            "# Measured\n\nMachine: {cores} CPUs ({model}), Linux {}. Generators, guests and clients on CPU 0, the switch's \
             worker on the last. Switches take turns within one run; a cell holds the **median** (least–most) of the \
             alternations, and how many there were if some failed. Load: the load average of the last minute, and the time that \
             a cache line took from CPU 0 to the last one and back at the end of the row. Written by `cargo xtask compare`.\n\n{}\n\n\
             ![Medians with extremes](latest.svg)\n\n{bars}",
            kernel.trim(),
            self.versions
        );
        fs::create_dir_all(dir).expect("the directory can be written");
        fs::write(dir.join("latest.md"), head + &self.text).expect("the directory can be written");
        fs::write(dir.join("latest.svg"), plot).expect("the directory can be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        let sample = |values: &[f64]| values.iter().copied().collect::<Sample>();
        assert_eq!(sample(&[4.0, 1.0, 2.0, 8.0]).median(), 3.0);
        assert_eq!(sample(&[9.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(sample(&[1.0, 2.0, 3.0, 4.0, 5.0]).quantile(0.25), 2.0);
        assert_eq!(sample(&[7.0]).quantile(0.99), 7.0);
    }

    #[test]
    fn a_cell_tells_how_many_turns_are_missing() {
        let whole = Sample::from_iter([1.0, 2.0, 3.0]);
        assert_eq!(whole.brief(0), "**2** (1–3)");
        let torn = Sample::from_iter([Some(1.0), None, Some(3.0)]);
        assert_eq!(torn.brief(0), "**2** (1–3, n=2 of 3)");
        assert_eq!(torn.cell(0), "2 | 1 to 3 (n=2 of 3)");
        assert_eq!(Sample::from_iter([None::<f64>]).brief(0), "–");
    }

    #[test]
    fn a_turn_that_failed_leaves_the_others_with_their_partners() {
        let ours = Sample::from_iter([Some(2.0), None, Some(9.0)]);
        let theirs = Sample::from_iter([1.0, 1.0, 3.0]);
        assert_eq!(ours.ratios(&theirs), Sample::from_iter([Some(2.0), None, Some(3.0)]));
    }
}
