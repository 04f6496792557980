//! The page that a comparison writes, and the few statistics on it.

use std::fmt::Write as _;
use std::fs;
use tests::process::repository;

/// The figures of one thing, over the repetitions.
#[derive(Clone, Default)]
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    pub(crate) fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The value below which `part` (0 to 1) of the figures lie.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let at = (part * (sorted.len() - 1) as f64).round();
        sorted[at as usize]
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Median and extremes, as a cell of a table.
    pub(crate) fn cell(&self, digits: usize) -> String {
        let [least, median, most] = [0.0, 0.5, 1.0].map(|part| self.quantile(part));
        format!("{median:.digits$} | {least:.digits$} to {most:.digits$} (n={})", self.0.len())
    }
}

/// The machine's load average over the last minute.
pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("unknown").to_owned()
}

/// The page.
#[derive(Default)]
pub(crate) struct Page {
    text: String,
}

impl Page {
    /// A line of Markdown; shown at once as well, for a run takes minutes.
    pub(crate) fn line(&mut self, line: &str) {
        println!("{line}");
        writeln!(self.text, "{line}").expect("a string grows");
    }

    /// Starts a section with a table of this head.
    pub(crate) fn table(&mut self, title: &str, how: &str, head: &str) {
        for line in ["", &format!("## {title}"), "", how, "", head] {
            self.line(line);
        }
        let columns = head.matches('|').count() - 1;
        self.line(&format!("|{}", "---|".repeat(columns)));
    }

    /// Writes it to `benches/results/latest.md`, with the machine above.
    pub(crate) fn save(&self) {
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu
            .lines()
            .find_map(|line| line.strip_prefix("model name"))
            .unwrap_or("")
            .trim_start_matches([' ', '\t', ':']);
        let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let head = format!("# Measured\n\nMachine: {cores} CPUs ({model}), Linux {}.\n", kernel.trim());
        let path = repository().join("benches/results/latest.md");
        fs::create_dir_all(path.parent().expect("it has one")).expect("the repository can be written");
        fs::write(&path, head + &self.text).expect("the repository can be written");
        println!("\nwritten to {}", path.display());
    }
}
