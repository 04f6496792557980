//! The demo's printed story: one line a step, as it goes, with what came out and how long it took.
//!
//! Plain text without colours or cursor movement, so that it reads the same on a terminal, in a log and through a pipe.

use std::io::Write;
use std::time::{Duration, Instant};

/// A step failed; it has been printed and counted. Whoever cannot go on without it passes this up.
#[derive(Debug)]
pub(super) struct StepFailed;

/// Prints steps and counts how they ended.
pub(super) struct Report<W: Write> {
    out: W,
    begun: Instant,
    passed: u32,
    failed: u32,
}

impl<W: Write> Report<W> {
    /// A report that writes to `out` and counts time from now.
    pub(super) fn new(out: W) -> Report<W> {
        Report { out, begun: Instant::now(), passed: 0, failed: 0 }
    }

    /// Prints a line of its own.
    pub(super) fn line(&mut self, text: &str) {
        // Nobody reading (a closed pipe) does not change what the demo finds out: the exit code still tells.
        let _ = writeln!(self.out, "{text}").and_then(|()| self.out.flush());
    }

    /// Prints the title of the steps that follow.
    pub(super) fn chapter(&mut self, title: &str) {
        self.line(&format!("\n{title}"));
    }

    /// Does one step whose result later steps need, and prints it as `what: detail`.
    pub(super) fn step<T>(
        &mut self,
        what: &str,
        body: impl FnOnce() -> anyhow::Result<(T, String)>,
    ) -> Result<T, StepFailed> {
        let begun = Instant::now();
        match body() {
            Ok((value, detail)) => {
                self.passed += 1;
                self.outcome("ok", begun.elapsed(), what, &detail);
                Ok(value)
            }
            Err(error) => {
                self.failed += 1;
                self.outcome("FAILED", begun.elapsed(), what, &format!("{error:#}"));
                Err(StepFailed)
            }
        }
    }

    /// Does one step that nothing later needs: prints and counts it, and the story goes on.
    pub(super) fn check(&mut self, what: &str, body: impl FnOnce() -> anyhow::Result<String>) {
        // The failure is printed and counted, and `is_success` reports it in the end.
        let _ = self.step(what, || Ok(((), body()?)));
    }

    /// Whether no step has failed so far.
    pub(super) fn is_success(&self) -> bool {
        self.failed == 0
    }

    /// `17 steps, 0 failed, 6.4 s`.
    pub(super) fn summary(&self) -> String {
        format!(
            "{} steps, {} failed, {:.1} s",
            self.passed + self.failed,
            self.failed,
            self.begun.elapsed().as_secs_f64()
        )
    }

    fn outcome(&mut self, result: &str, took: Duration, what: &str, detail: &str) {
        let between = if detail.is_empty() { "" } else { ": " };
        self.line(&format!("  {result:<6} {:>6} ms  {what}{between}{detail}", took.as_millis()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_is_printed_with_its_whole_cause_and_counted() {
        let mut out = Vec::new();
        let mut report = Report::new(&mut out);
        report.check("water is wet", || Ok("yes".to_owned()));
        report.check("pigs fly", || Err(anyhow::anyhow!("no wings").context("looking at a pig")));
        assert!(!report.is_success());
        assert!(report.summary().starts_with("2 steps, 1 failed, "));
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("  ok     ") && lines[0].ends_with(" ms  water is wet: yes"), "{text}");
        assert!(lines[1].starts_with("  FAILED ") && lines[1].ends_with(" ms  pigs fly: looking at a pig: no wings"));
    }
}
