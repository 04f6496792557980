//! What the parts of a burst cost, as tables: ours, the yardstick's, and what ours costs more.

use super::Row;
use crate::results::Section;
use benches::cost::median_of;
use std::iter::Sum;
use std::ops::Sub;

/// Our parts against the yardstick's: the names of rows, our parts, and its part if it has one like these.
const DIFFERENCES: [(&str, &[usize], Option<usize>); 5] = [
    ("rx - take", &[0], Some(0)),
    ("tx - give", &[7], Some(1)),
    ("rx done - give back", &[9], Some(2)),
    ("the stages", &[2, 3, 4, 5, 6], None),
    ("counting", &[1, 8], None),
];

/// Cycles and instructions of a frame: each part's, and the cycles of the whole burst.
pub(super) struct Costs {
    parts: Vec<Cost>,
    whole: f64,
}

/// Those of one part. Instructions are missing where nobody counts them.
#[derive(Clone, Copy)]
struct Cost {
    cycles: f64,
    instructions: Option<f64>,
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Cost>>(costs: I) -> Cost {
        costs.fold(Cost { cycles: 0.0, instructions: Some(0.0) }, |sum, cost| Cost {
            cycles: sum.cycles + cost.cycles,
            instructions: sum.instructions.zip(cost.instructions).map(|(sum, more)| sum + more),
        })
    }
}

impl Sub for Cost {
    type Output = Cost;

    fn sub(self, other: Cost) -> Cost {
        let instructions = self.instructions.zip(other.instructions).map(|(own, other)| own - other);
        Cost { cycles: self.cycles - other.cycles, instructions }
    }
}

impl Costs {
    /// Medians of the alternations' rows.
    pub(super) fn of(rows: &[Row], instructions: &[Option<f64>]) -> Costs {
        let column = |at: usize| {
            let mut values: Vec<f64> = rows.iter().map(|row| row[at]).filter(|cycles| !cycles.is_nan()).collect();
            median_of(&mut values).unwrap_or(f64::NAN)
        };
        let part = |(at, &instructions)| Cost { cycles: column(at), instructions };
        Costs { parts: instructions.iter().enumerate().map(part).collect(), whole: column(instructions.len()) }
    }

    fn sum(&self) -> Cost {
        self.parts.iter().copied().sum()
    }

    pub(super) fn tell(&self, section: &mut Section, title: &str, parts: &[(&str, &str)]) {
        section.line(head(title));
        for ((name, _), cost) in parts.iter().zip(&self.parts) {
            section.line(line(name, cost.cycles, cost.instructions));
        }
        let sum = self.sum();
        section.line(line("sum of the parts", sum.cycles, sum.instructions));
        section.line(line("whole burst", self.whole, None));
    }
}

/// What we cost more than the yardstick, row by row.
pub(super) fn tell_differences(section: &mut Section, ours: &Costs, bare: &Costs) {
    section.line(head("qvs - yardstick"));
    for (name, own, its) in DIFFERENCES {
        let own: Cost = own.iter().map(|&part| ours.parts[part]).sum();
        let its: Cost = its.iter().map(|&part| bare.parts[part]).sum();
        let more = own - its;
        section.line(line(name, more.cycles, more.instructions));
    }
    let (explained, whole) = (ours.sum() - bare.sum(), ours.whole - bare.whole);
    section.line(line("explained so far", explained.cycles, explained.instructions));
    section.line(line("in no part", whole - explained.cycles, None));
    section.line(line("whole burst", whole, None));
}

/// The head of a table.
fn head(title: &str) -> String {
    format!("{title:<22} {:>8} {:>14}", "cycles", "instructions")
}

/// A row of it.
pub(super) fn line(name: &str, cycles: f64, instructions: Option<f64>) -> String {
    let count = instructions.map_or_else(|| "-".to_owned(), |count| format!("{count:.1}"));
    format!("{name:<22} {cycles:>8.1} {count:>14}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cycles::{BARE_PARTS, PARTS};

    #[test]
    fn every_part_of_ours_and_of_the_yardstick_is_in_one_difference() {
        let mut own: Vec<usize> = DIFFERENCES.iter().flat_map(|(_, own, _)| own.iter().copied()).collect();
        own.sort_unstable();
        assert_eq!(own, (0..PARTS.len()).collect::<Vec<_>>());
        let mut its: Vec<usize> = DIFFERENCES.iter().filter_map(|(_, _, its)| *its).collect();
        its.sort_unstable();
        assert_eq!(its, (0..BARE_PARTS.len()).collect::<Vec<_>>());
    }
}
