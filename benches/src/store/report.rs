//! The figures as a page: printed while they come, and written to `benches/results/store.md` if they were taken at the size
//! that the bars are for.

use anyhow::{Context, Result};
use std::fmt::Write;
use std::path::Path;

/// A figure beside what it is held against.
struct Row {
    what: String,
    needed: &'static str,
    measured: String,
    /// `None`: no bar, only told.
    is_met: Option<bool>,
}

#[derive(Default)]
pub(super) struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Prints a figure and keeps it for the page.
    pub(super) fn bar(&mut self, what: &str, needed: &'static str, measured: String, is_met: bool) {
        println!("{what}: {measured} (bar: {needed})");
        self.rows.push(Row { what: what.to_owned(), needed, measured, is_met: Some(is_met) });
    }

    /// The same of one that has no bar.
    pub(super) fn tell(&mut self, what: &str, measured: String) {
        println!("{what}: {measured}");
        self.rows.push(Row { what: what.to_owned(), needed: "", measured, is_met: None });
    }

    /// Writes the page; `how` says how it was measured.
    pub(super) fn write(&self, how: &str) -> Result<()> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("results/store.md");
        let mut page = format!("# The API over a full store\n\n{} {how}\n\n", crate::results::machine()?);
        page += "| what | needed | measured | met |\n|---|---|---|---|\n";
        for Row { what, needed, measured, is_met } in &self.rows {
            let met = match is_met {
                None => "",
                Some(true) => "yes",
                Some(false) => "**no**",
            };
            writeln!(page, "| {what} | {needed} | {measured} | {met} |")?;
        }
        std::fs::write(&path, page).with_context(|| path.display().to_string())?;
        println!("written: {}", path.display());
        Ok(())
    }
}
