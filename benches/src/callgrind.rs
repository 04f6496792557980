//! Counts instructions of functions, with what they call: this program runs itself under valgrind and reads what it wrote.
//!
//! Time depends on the machine's other work and its clock, instructions on the code alone. So that they also depend little on
//! the machine: the C library is told to use none of the copy routines it would choose by the processor. What remains is the
//! compiler's version. A function to be counted must stand alone (`#[inline(never)]`) and have a name that no other has.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

/// What the C library shall not look for in the processor.
const TUNABLES: &str = "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX2,-ERMS,-FSRM,-Prefer_No_VZEROUPPER";

/// Calls and instructions of a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cost {
    /// How often it was called.
    pub calls: u64,
    /// Instructions of all calls, with what they called.
    pub instructions: u64,
}

/// Whether valgrind is installed.
pub fn is_there() -> bool {
    let version = Command::new("valgrind").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// Runs this program with `arguments` and answers what the named functions cost, and what it printed.
///
/// # Errors
/// If valgrind cannot be run, the program fails, or one of the functions was never called.
pub fn count(arguments: &[String], names: &[&'static str]) -> Result<(BTreeMap<&'static str, Cost>, String)> {
    let report = std::env::temp_dir().join(format!("qvs-callgrind-{}", std::process::id()));
    let outcome = run(arguments, &report).and_then(|(text, printed)| {
        let costs = read(&text, names);
        for name in names {
            ensure!(costs.contains_key(name), "{name} was never called, or is part of another function");
        }
        Ok((costs, printed))
    });
    let _ = std::fs::remove_file(&report);
    outcome
}

fn run(arguments: &[String], report: &Path) -> Result<(String, String)> {
    let program = std::env::current_exe().context("this program's path")?;
    let mut out = std::ffi::OsString::from("--callgrind-out-file=");
    out.push(report);
    let options =
        ["--tool=callgrind", "--demangle=no", "--compress-strings=no", "--compress-pos=no", "--fair-sched=yes"];
    let mut command = Command::new("valgrind");
    command.args(options).arg(out).arg(program).args(arguments).env("GLIBC_TUNABLES", TUNABLES);
    let output = command.stdin(Stdio::null()).output().context("valgrind is not installed")?;
    ensure!(output.status.success(), "under valgrind: {}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(report).context("what callgrind wrote")?;
    Ok((text, String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Reads callgrind's format: `cfn=` names a called function, `calls=` follows, and the line after that ends with what
/// the calls cost (Callgrind Format Specification, "Calls").
fn read(text: &str, names: &[&'static str]) -> BTreeMap<&'static str, Cost> {
    // A mangled name holds the length of each of its parts before it.
    let marks: Vec<_> = names.iter().map(|name| (*name, format!("{}{name}", name.len()))).collect();
    let mut costs: BTreeMap<&'static str, Cost> = BTreeMap::new();
    let mut callee = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("cfn=") {
            callee = marks.iter().find(|(_, mark)| name.contains(mark.as_str())).map(|&(name, _)| name);
        } else if let Some(calls) = line.strip_prefix("calls=") {
            let number = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
            let calls = number(calls.split(' ').next());
            let instructions = number(lines.next().and_then(|line| line.split(' ').next_back()));
            if let Some(name) = callee {
                let cost = costs.entry(name).or_default();
                cost.calls += calls;
                cost.instructions += instructions;
            }
        }
    }
    costs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calls_of_a_function_are_added_up_and_others_are_not() {
        let text = "fn=main\n5 12\ncfn=_RNvCs1_7benches4hot1\ncalls=3 17\n9 300\ncfi=x.rs\ncfn=_RNvCs1_7benches5other\n\
                    calls=1 2\n9 5000\nfn=elsewhere\ncfn=_RNvCs1_7benches4hot1\ncalls=1 17\n10 100\n7 7\n";
        let costs = read(text, &["hot1", "hot2"]);
        assert_eq!(costs.get("hot1"), Some(&Cost { calls: 4, instructions: 400 }));
        assert_eq!(costs.get("hot2"), None);
    }
}
