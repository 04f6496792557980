//! The ratchet: instructions of the hot paths, held against those that were last agreed on.
//!
//! A path that grew by more than [`TOLERANCE`] fails. One that shrank by as much is told, so that the gain is not lost
//! again. What a path may cost stands in `benches/ratchet.txt`; a new compiler may move all of it.

use crate::locks;
use crate::paths::PATHS;
use anyhow::{Context, Result, bail, ensure};
use benches::callgrind;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// Part by which a path may grow or shrink unnoticed; the MAC table's random seed alone moves a round by a third of it.
const TOLERANCE: f64 = 0.02;
/// Instructions by which it may too, for the shortest paths.
const TOLERANCE_MIN: f64 = 1.0;
/// How often a path is counted that seems to have grown. What a round does by the clock, it does more often the longer it is off its
/// CPU: on a busy host that was 3 % once.
const TRIES: usize = 3;
/// What was agreed on.
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/ratchet.txt");
const HEADING: &str = "\
# Instructions a frame of the hot paths, as `cargo xtask test ratchet` counts them on x86-64: it fails if one grows by
# more than 2 %. QVS_BLESS=1 writes this anew; say in the commit why a number grew.
";

/// Counts and compares.
pub(crate) fn run() -> Result<()> {
    locks::check(&std::env::current_exe().context("this program's path")?)?;
    let mut counted = count()?;
    if std::env::var_os("QVS_BLESS").is_some_and(|value| value == "1") {
        let mut text = HEADING.to_owned();
        for (path, instructions) in &counted {
            writeln!(text, "{instructions:>8.1}  {path}")?;
        }
        std::fs::write(FILE, text).context(FILE)?;
        println!("written: {FILE}");
    }
    let text = std::fs::read_to_string(FILE).with_context(|| format!("{FILE}; QVS_BLESS=1 writes it"))?;
    let agreed = read(&text)?;
    let (mut text, mut grown) = compare(&counted, &agreed)?;
    for _ in 1..TRIES {
        if grown.is_empty() {
            break;
        }
        for (least, again) in counted.iter_mut().zip(count()?) {
            least.1 = least.1.min(again.1);
        }
        (text, grown) = compare(&counted, &agreed)?;
    }
    print!("{text}");
    ensure!(grown.is_empty(), "more instructions than agreed on: {}", grown.join("; "));
    Ok(())
}

/// Instructions a frame, by path.
fn count() -> Result<Vec<(&'static str, f64)>> {
    let names: Vec<_> = PATHS.iter().map(|&(_, function)| function).collect();
    let (costs, told) = callgrind::count(&["paths".to_owned()], &names)?;
    let frames: BTreeMap<&str, f64> = told
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(function, frames)| Some((function, frames.parse().ok()?)))
        .collect();
    PATHS
        .iter()
        .map(|&(path, function)| {
            let frames = frames.get(function).with_context(|| format!("{function} told no frames"))?;
            Ok((path, costs[function].instructions as f64 / frames))
        })
        .collect()
}

/// Reads the file: a number and a name a line.
fn read(text: &str) -> Result<BTreeMap<&str, f64>> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let (number, path) = line.trim().split_once(' ').with_context(|| format!("{line:?}"))?;
            Ok((path.trim(), number.parse().with_context(|| format!("{line:?}"))?))
        })
        .collect()
}

/// The table, and the paths that grew too much.
fn compare(counted: &[(&str, f64)], agreed: &BTreeMap<&str, f64>) -> Result<(String, Vec<String>)> {
    let mut text = format!("{:<28} {:>8} {:>8} {:>8}\n", "instructions a frame", "now", "agreed", "");
    let mut grown = Vec::new();
    for &(path, now) in counted {
        let Some(&before) = agreed.get(path) else { bail!("{path:?} is not in {FILE}; QVS_BLESS=1 writes it anew") };
        let (change, tolerated) = (now - before, (before * TOLERANCE).max(TOLERANCE_MIN));
        let remark = if change > tolerated {
            grown.push(format!("{path}, {before:.1} to {now:.1}"));
            "  grown"
        } else if change < -tolerated {
            "  shrunk: the file can be tightened"
        } else {
            ""
        };
        writeln!(text, "{path:<28} {now:>8.1} {before:>8.1} {:>+7.1}%{remark}", 100.0 * change / before)?;
    }
    for path in agreed.keys() {
        let is_counted = counted.iter().any(|(counted, _)| counted == path);
        ensure!(is_counted, "{path:?} in {} is no path any more", Path::new(FILE).display());
    }
    Ok((text, grown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_growth_beyond_the_tolerance_fails() {
        let agreed = read("# words\n   100.0  round\n     4.0  parse\n").unwrap();
        let grown = |round: f64, parse: f64| compare(&[("round", round), ("parse", parse)], &agreed).unwrap().1;
        assert!(grown(101.9, 4.9).is_empty());
        assert!(grown(50.0, 1.0).is_empty());
        assert_eq!(grown(102.1, 4.0), ["round, 100.0 to 102.1"]);
        assert_eq!(grown(100.0, 5.1), ["parse, 4.0 to 5.1"]);
    }

    #[test]
    fn the_file_and_the_paths_name_the_same() {
        let agreed = read("1.0 round\n").unwrap();
        assert!(compare(&[("round", 1.0), ("parse", 1.0)], &agreed).is_err());
        assert!(compare(&[], &agreed).is_err());
    }
}
