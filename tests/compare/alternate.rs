//! Letting switches take turns at the same traffic, and the tables of it.

use crate::frames::Row;
use crate::generator::{Report, measure};
use crate::options::Options;
use crate::peers::{Peer, Switch};
use crate::report::{Figure, Page, Sample, load};
use std::collections::BTreeSet;
use std::fmt::Display;

/// What one switch did with one kind of traffic.
pub(crate) struct Turns {
    pub(crate) peer: Peer,
    /// Turn by turn; `None` for one that failed.
    reports: Vec<Option<Report>>,
    /// Why the last turn that failed did so.
    trouble: Option<String>,
}

impl Turns {
    /// A figure of every turn that has it.
    pub(crate) fn sample(&self, name: &str) -> Sample {
        self.sample_of(|report| report.found(name))
    }

    /// What a function makes of every turn.
    fn sample_of(&self, figure: impl Fn(&Report) -> Option<f64>) -> Sample {
        self.reports.iter().map(|report| figure(report.as_ref()?)).collect()
    }

    /// The turns that did not fail.
    fn reports(&self) -> impl Iterator<Item = &Report> {
        self.reports.iter().flatten()
    }

    /// Whether the switch lacks what the traffic needs, so that trying again is no use.
    fn is_not_offered(&self) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| trouble.contains("does not offer"))
    }

    /// A figure with its spread, or that there is none.
    pub(crate) fn cell(&self, sample: &Sample, digits: usize) -> String {
        match &self.trouble {
            Some(_) if sample.is_empty() && self.is_not_offered() => "not offered".to_owned(),
            Some(_) if sample.is_empty() => "failed".to_owned(),
            _ => sample.brief(digits),
        }
    }

    /// How many turns failed, and why, in words.
    pub(crate) fn failures(&self, row: impl Display) -> Option<String> {
        let trouble = self.trouble.as_ref().filter(|_| !self.is_not_offered())?;
        let (count, asked) = (self.reports().count(), self.reports.len());
        Some(format!("{row}, {}: {} of {asked} turns failed: {trouble}", self.peer, asked - count))
    }
}

/// Each switch in turn, `rounds` times; those that do not take part have no turn.
pub(crate) fn alternate(
    switches: &[Switch],
    rounds: u32,
    words: &[String],
    takes_part: impl Fn(Peer) -> bool,
) -> Vec<Turns> {
    let mut all: Vec<Turns> =
        switches.iter().map(|switch| Turns { peer: switch.peer, reports: Vec::new(), trouble: None }).collect();
    for _ in 0..rounds {
        for (switch, turns) in switches.iter().zip(&mut all) {
            if turns.is_not_offered() || !takes_part(switch.peer) {
                continue;
            }
            match measure(switch, words) {
                Ok(report) => turns.reports.push(Some(report)),
                Err(trouble) => {
                    turns.reports.push(None);
                    turns.trouble = Some(trouble);
                }
            }
        }
    }
    all
}

/// What was agreed on, in all turns: by all the same, or each by its own.
pub(crate) fn agreed(all: &[Turns]) -> String {
    let of = |turns: &Turns| turns.reports().map(Report::agreed).collect::<BTreeSet<_>>();
    let sides: Vec<_> = all.iter().map(|turns| (turns.peer, of(turns))).filter(|(_, side)| !side.is_empty()).collect();
    let words = |side: &BTreeSet<String>| side.iter().cloned().collect::<Vec<_>>().join(" or ");
    match sides.as_slice() {
        [] => "–".to_owned(),
        [(_, first), rest @ ..] if rest.iter().all(|(_, side)| side == first) => words(first),
        sides => sides.iter().map(|(peer, side)| format!("{peer}: {}", words(side))).collect::<Vec<_>>().join("; "),
    }
}

/// Parts of the time in which the generator, and the switch's thread, were off their CPUs: medians over all turns, in percent.
pub(crate) fn off_cpu(all: &[Turns]) -> String {
    let reports = || all.iter().flat_map(Turns::reports);
    let generator: Sample = reports().map(|report| report.figure("off_cpu.time_share")).collect();
    let switch: Sample = reports().map(|report| report.switch_waited).collect();
    if generator.is_empty() {
        return "–".to_owned();
    }
    format!("{:.1} / {:.1} %", 100.0 * generator.median(), 100.0 * switch.median())
}

/// What the generator moved in terms of what it could have moved, switch by switch: medians, in percent.
fn busy(all: &[Turns]) -> String {
    let of = |turns: &Turns| {
        let shares = turns.sample_of(|report| Some(report.found("mpps")? / ceiling(report, "mpps")?));
        if shares.is_empty() { "–".to_owned() } else { format!("{:.0}", 100.0 * shares.median()) }
    };
    format!("{} %", all.iter().map(of).collect::<Vec<_>>().join(" / "))
}

/// What the generator could have moved had it never waited, in the unit of a figure of the report; `None` if it moved nothing.
fn ceiling(report: &Report, key: &str) -> Option<f64> {
    let (ceiling, moved) = (report.found("generator.ceiling_mpps")?, report.found("mpps")?);
    (moved > 0.0).then_some(ceiling * report.found(key)? / moved)
}

/// Our figure in terms of another's.
pub(crate) fn ratio(ours: &Sample, theirs: &Sample) -> String {
    if ours.is_empty() || theirs.is_empty() {
        return "–".to_owned();
    }
    format!("{:.2}", ours.median() / theirs.median())
}

/// A table of rates: a line for each kind of traffic, a column for each switch.
pub(crate) fn rates(
    page: &mut Page,
    title: &str,
    how: &str,
    rows: &[Row],
    switches: &[Switch],
    options: &Options,
    figure: Figure,
) {
    if switches.is_empty() {
        return;
    }
    let names: Vec<String> = switches.iter().map(|switch| switch.peer.to_string()).collect();
    let others = || names.iter().skip(1);
    let (key, unit, digits) = match figure {
        Figure::Gbps => ("wire_gbps", "Gbit/s", 1),
        _ => ("mpps", "million frames a second", 3),
    };
    let how = format!(
        "{how} {} alternations of {} s, {unit}, all directions together. Windows of 1 ms in which the generator was off its CPU \
         are left out. Generator busy: what it moved in terms of what it could have moved had it never waited, switch by switch in the \
         order of the columns; near 100 % says that the generator was the limit, less that it waited for the switch. Off CPU: the parts \
         of the time in which generator and worker were off theirs.",
        options.rounds, options.seconds
    );
    let ratios: String = others().map(|name| format!(" to {name} |")).collect();
    page.table(
        title,
        &how,
        &format!("| frames | {} |{ratios} agreed on | generator busy | off CPU | load |", names.join(" | ")),
    );
    let mut failures = Vec::new();
    for row in rows {
        let words = row.words_for(options.seconds);
        let all = alternate(switches, options.rounds, &words, |peer| peer.takes(row));
        let samples: Vec<Sample> = all.iter().map(|turns| turns.sample(key)).collect();
        let cells: Vec<String> = all.iter().zip(&samples).map(|(turns, sample)| turns.cell(sample, digits)).collect();
        let ratios: String =
            samples.iter().skip(1).map(|theirs| format!(" {} |", ratio(&samples[0], theirs))).collect();
        for (turns, sample) in all.iter().zip(&samples) {
            let name = format!("{title}: {row}");
            page.keep(&name, figure, turns.peer, sample);
            page.keep(&name, Figure::Ceiling, turns.peer, &turns.sample_of(|report| ceiling(report, key)));
        }
        page.line(&format!(
            "| {row} | {} |{ratios} {} | {} | {} | {} |",
            cells.join(" | "),
            agreed(&all),
            busy(&all),
            off_cpu(&all),
            load()
        ));
        failures.extend(all.iter().filter_map(|turns| turns.failures(row)));
    }
    page.notes(&failures);
}
