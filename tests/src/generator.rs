//! `pktgen` for a test: guests of a daemon that count what arrives.

use crate::process::{built, output_of};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
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

/// A run under way; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
}

impl Running {
    /// Starts it with ports and options, words separated by spaces.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(line: &str) -> Running {
        let mut command = Command::new(program());
        command.args(line.split_whitespace()).args(["--quiet", "--json"]).stdin(Stdio::null()).stdout(Stdio::piped());
        Running { child: command.spawn().expect("the program was built") }
    }

    /// Whether it is over.
    ///
    /// # Panics
    /// If the system does not tell.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_some()
    }

    /// Waits for its end; answers its report.
    ///
    /// # Panics
    /// If it failed.
    pub fn report(mut self) -> Value {
        let stdout = self.child.stdout.take().expect("it has one");
        let text = std::io::read_to_string(stdout).expect("JSON is UTF-8");
        let status = self.child.wait().expect("our own child");
        assert!(status.success(), "pktgen ended with {status}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A count of a report.
///
/// # Panics
/// If there is none of that name.
pub fn count(report: &Value, name: &str) -> u64 {
    report[name].as_u64().unwrap_or_else(|| panic!("{name} of {report:#}"))
}
