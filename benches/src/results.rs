//! What a command measures, printed as it comes and kept as a section of a file in `benches/results`: the section of that title is
//! replaced, others stay.

use ::tests::version;
use anyhow::Result;
use std::path::Path;
use std::time::Duration;

/// Lines of one run.
pub(crate) struct Section {
    title: String,
    lines: Vec<String>,
}

impl Section {
    pub(crate) fn begin(title: &str) -> Section {
        Section { title: title.to_owned(), lines: Vec::new() }
    }

    pub(crate) fn line(&mut self, text: String) {
        println!("{text}");
        self.lines.push(text);
    }

    /// Percentiles of times, which are sorted by it.
    pub(crate) fn times(&mut self, what: &str, times: &mut [Duration]) {
        times.sort_unstable();
        let at = |part: f64| times[((times.len() - 1) as f64 * part).round() as usize].as_secs_f64() * 1e3;
        let count = times.len();
        self.line(format!("{what}: p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms ({count})", at(0.5), at(0.99), at(1.0)));
    }

    /// Writes it in its place, with the machine.
    pub(crate) fn write(mut self, file: &str) -> Result<()> {
        self.line(machine()?);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("results").join(file);
        let text = std::fs::read_to_string(&path)?;
        std::fs::write(path, replaced(&text, &self.title, &self.lines))?;
        Ok(())
    }
}

/// `text` with another section of this title, or with one more.
fn replaced(text: &str, title: &str, lines: &[String]) -> String {
    let heading = format!("## {title}\n");
    let section = format!("{heading}\n```\n{}\n```\n", lines.join("\n"));
    let Some(begin) = text.find(&heading) else { return format!("{}\n\n{section}", text.trim_end()) };
    let after = &text[begin + heading.len()..];
    let rest = after.find("\n## ").map_or("", |at| &after[at..]);
    format!("{}{section}{rest}", &text[..begin])
}

/// The machine, how busy it is now, and what was measured.
pub(crate) fn machine() -> Result<String> {
    let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
    let name = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    Ok(format!(
        "Machine: {count} CPUs ({}), Linux {}, load {} at the end. Measured: {}.",
        name.map_or("unknown", |(_, name)| name.trim()),
        kernel.trim(),
        load.split(' ').next().unwrap_or_default(),
        version::commit()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_replaces_that_of_its_title_and_no_other() {
        let lines = ["x".to_owned()];
        let once = replaced("# Cloud\n", "A", &lines);
        let twice = replaced(&once, "B", &["y".to_owned()]);
        assert_eq!(twice, "# Cloud\n\n## A\n\n```\nx\n```\n\n## B\n\n```\ny\n```\n");
        let again = replaced(&twice, "A", &["z".to_owned()]);
        assert_eq!(again, twice.replace('x', "z"));
        assert_eq!(replaced(&again, "B", &["y".to_owned()]), again);
    }
}
