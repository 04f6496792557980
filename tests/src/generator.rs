//! `pktgen` for a test: guests of a daemon that count what arrives.

use crate::process::{built, output_of};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The generator's program: `QVS_PKTGEN`, or built now.
///
/// # Panics
/// If it cannot be built.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| built("pktgen", "QVS_PKTGEN"))
}

/// Runs it with ports and options, words separated by spaces, on the first CPU; answers its report.
///
/// # Panics
/// If it fails, with what it said.
pub fn run(line: &str) -> Value {
    let words = line.split_whitespace().chain(["--cpu", "0", "--quiet", "--json"]).collect::<Vec<_>>();
    let program = program().to_str().expect("our own path is UTF-8");
    let text = output_of(program, &words);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("pktgen {line}: {error}: {text}"))
}

/// A count of a report.
///
/// # Panics
/// If there is none of that name.
pub fn count(report: &Value, name: &str) -> u64 {
    report[name].as_u64().unwrap_or_else(|| panic!("{name} of {report:#}"))
}
