//! Running the load generator against a switch, and what it tells.

use crate::peers::Switch;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// Part of the windows in which the generator may be off its CPU before the rest tells nothing.
const DISTURBED_MAX: f64 = 0.9;
/// How often a measurement is tried that was disturbed more than that.
const TRIES: u32 = 3;

/// One measurement.
pub(crate) struct Report {
    value: Value,
    /// Part of the time, from the start of the generator on, in which the switch's own thread waited for its CPU.
    pub(crate) switch_waited: f64,
}

/// A generator that runs.
pub(crate) struct Generator {
    child: Child,
    /// Whom it measures.
    peer: String,
}

/// What starts it on the first CPU.
fn command(words: &[String]) -> Command {
    let program = std::env::var_os("QVS_PKTGEN").expect("`cargo xtask compare` names the generator");
    let mut command = Command::new(program);
    command.args(["--json", "--quiet", "--cpu", "0"]).args(words);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).env("RUST_BACKTRACE", "0");
    command
}

impl Generator {
    /// Starts it on the first CPU, and lets the switch run: one that connects needs it first.
    pub(crate) fn start(switch: &Switch, words: &[String]) -> Generator {
        let mut command = command(words);
        command.args(&switch.ports).arg("--huge-pages");
        if switch.is_connecting {
            command.arg("--listen");
        }
        let child = command.spawn().expect("the generator was built");
        switch.serve();
        Generator { child, peer: switch.peer.to_string() }
    }

    /// Waits until it ends, and calls `each` whenever a measurement is over.
    ///
    /// # Errors
    /// Its own words, if it failed.
    pub(crate) fn reports(mut self, mut each: impl FnMut()) -> Result<Vec<Report>, String> {
        let lines = BufReader::new(self.child.stdout.take().expect("it is piped")).lines();
        let mut reports = Vec::new();
        for line in lines {
            let line = line.expect("the generator speaks UTF-8");
            let value = serde_json::from_str(&line).expect("the generator speaks JSON");
            reports.push(Report { value, switch_waited: 0.0 });
            each();
        }
        let output = self.child.wait_with_output().expect("it was started");
        if output.status.success() && !reports.is_empty() {
            return Ok(reports);
        }
        let error = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
        eprintln!("{}: pktgen: {error}", self.peer);
        Err(error)
    }
}

/// Lets the switch run while the generator takes one measurement.
///
/// # Errors
/// The generator's words, if it failed; or that it was off its CPU, as often as it was tried.
pub(crate) fn measure(switch: &Switch, words: &[String]) -> Result<Report, String> {
    for _ in 0..TRIES {
        let pinned = switch.pinned();
        let (before, start) = (pinned.waited(), Instant::now());
        let reports = Generator::start(switch, words).reports(|| ());
        switch.stop();
        let mut report = reports?.pop().expect("a success has a report");
        let waited_ns = pinned.waited().queued_ns.saturating_sub(before.queued_ns);
        report.switch_waited = waited_ns as f64 / start.elapsed().as_nanos() as f64;
        if report.figure("off_cpu.windows_disturbed") <= DISTURBED_MAX * report.figure("off_cpu.windows") {
            return Ok(report);
        }
    }
    Err("the generator was off its CPU nearly all the time".to_owned())
}

/// One measurement of the generator itself, against memory in its own thread.
///
/// # Errors
/// Its words, if it failed.
pub(crate) fn measure_alone(words: &[String]) -> Result<Report, String> {
    let child = command(words).arg("--ceiling").spawn().expect("the generator was built");
    let reports = Generator { child, peer: "nobody".to_owned() }.reports(|| ());
    Ok(reports?.pop().expect("a success has a report"))
}

impl Report {
    /// A figure by its name, `generator.busy_share`; zero if it is not there.
    pub(crate) fn figure(&self, name: &str) -> f64 {
        self.found(name).unwrap_or(0.0)
    }

    /// The same, if it is there: delays are not where no frame arrived.
    pub(crate) fn found(&self, name: &str) -> Option<f64> {
        name.split('.').fold(&self.value, |value, part| &value[part]).as_f64()
    }

    /// What was really agreed on between guests and switch.
    pub(crate) fn agreed(&self) -> String {
        let sides: BTreeSet<String> = self.value["agreed"].as_array().into_iter().flatten().map(side).collect();
        sides.into_iter().collect::<Vec<_>>().join(" / ")
    }
}

/// One side's agreement in words.
fn side(agreed: &Value) -> String {
    let kind = agreed["kind"].as_str().unwrap_or("?");
    if kind != "vhost-user" {
        return kind.to_owned();
    }
    let mut words = vec![format!("{} {}", agreed["ring"].as_str().unwrap_or("?"), agreed["ring_size"])];
    let named = [
        ("mergeable", "mergeable"),
        ("in_order", "in order"),
        ("checksum", "checksum"),
        ("tso", "TSO"),
        ("guest_checksum", "guest checksum"),
        ("guest_tso", "guest TSO"),
    ];
    words.extend(named.iter().filter(|(name, _)| agreed[name] == true).map(|(_, word)| (*word).to_owned()));
    words.join(", ")
}
