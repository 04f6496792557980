//! The chapters of `cargo xtask test` and how each is run.
//!
//! All chapters run in two lanes of about the same length, because the time of a run is dear: those with the linter, units, TAPs
//! and guests take turns beside those that build for release, which uses one CPU, and those whose daemons mostly wait for others.
//!
//! A chapter passes or fails; it is never skipped: where the host cannot run it, it fails and says why. Chapters with
//! namespaces, TAPs and guests run one test at a time, because they measure time and share two cores.

use crate::deb;
use crate::host::{build_executables, cargo, isolated, prepare, python, run, target_dir};
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The release of Keystone that its chapter was written against.
const KEYSTONE: &str = "keystone==30.0.0";
/// The same of schemathesis.
const SCHEMATHESIS: &str = "schemathesis==4.32.5";
/// What the README promises of the demonstration.
const DEMO_MAX: Duration = Duration::from_secs(20);

/// A chapter of the tests.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Chapter {
    /// Formatting, clippy, documentation, and the rules of the house
    Lint,
    /// Unit, property and document tests of all crates
    Unit,
    /// Model checks of what threads share
    Loom,
    /// Seeded random and hostile input to every entry
    Fuzz,
    /// The daemon with real namespaces and TAPs, and our segmentation beside the kernel's
    Net,
    /// Our client of etcd, and several daemons that share their state by it, with a real etcd
    Etcd,
    /// The daemon with real virtual machines
    Vm,
    /// The daemon with a real Keystone
    Keystone,
    /// The daemon held against its OpenAPI description by schemathesis
    Openapi,
    /// Instructions of the hot paths, held against those agreed on
    Ratchet,
    /// The release build's own demonstration
    Demo,
    /// The Debian package
    Deb,
}

/// Debian packages by chapter.
fn packages(chapter: Chapter) -> &'static [&'static str] {
    match chapter {
        Chapter::Lint | Chapter::Loom | Chapter::Demo | Chapter::Deb => &[],
        Chapter::Unit => &["iproute2", "tcpdump"],
        Chapter::Fuzz => &["busybox-static", "iproute2"],
        Chapter::Net => {
            &["busybox-static", "dpdk-dev", "ethtool", "iproute2", "openvswitch-switch", "python3", "tcpdump"]
        }
        Chapter::Etcd => &["busybox-static", "etcd-server", "ethtool", "iproute2"],
        Chapter::Ratchet => &["binutils", "valgrind"],
        Chapter::Keystone | Chapter::Openapi => &["iproute2", "python3-venv"],
        Chapter::Vm => &["busybox-static", "ethtool", "iperf3", "iproute2", "qemu-system-x86", "xz-utils"],
    }
}

/// Runs the chapters; answers whether all passed.
pub(crate) fn test(only: Option<Chapter>, may_install: bool) -> Result<bool> {
    let chapters: Vec<Chapter> = match only {
        Some(chapter) => vec![chapter],
        None => Chapter::value_variants().to_vec(),
    };
    if !ready(&chapters, may_install)? && may_install {
        return Ok(false);
    }
    let (beside, here): (Vec<_>, Vec<_>) =
        chapters.into_iter().partition(|chapter| only.is_none() && BESIDE.contains(chapter));
    let logs = target_dir()?.join("test-logs");
    std::fs::create_dir_all(&logs)?;
    let beside: Vec<_> = beside.into_iter().map(|chapter| (chapter, logs.join(name(chapter)))).collect();
    // Before the lanes part: no chapter waits for what the other lane has cargo build.
    let built = if beside.is_empty() { Ok(Vec::new()) } else { executables() };
    // What cannot be built the chapters tell, one by one.
    let built = built.unwrap_or_default();
    let turns =
        || beside.iter().map(|(chapter, log)| timed(*chapter, || apart(*chapter, &built, log))).collect::<Vec<_>>();
    let results = std::thread::scope(|scope| {
        let lane = scope.spawn(turns);
        let mut results = Vec::new();
        for &chapter in &here {
            println!("\n== {} ==", name(chapter));
            results.push(timed(chapter, || run_chapter(chapter)));
        }
        let others = lane.join().expect("a lane does not panic");
        for (_, log) in &beside {
            print!("{}", std::fs::read_to_string(log).unwrap_or_default());
        }
        results.extend(others);
        results
    });
    Ok(summary(&results))
}

/// Chapters of the second lane.
const BESIDE: [Chapter; 7] =
    [Chapter::Loom, Chapter::Ratchet, Chapter::Demo, Chapter::Deb, Chapter::Etcd, Chapter::Keystone, Chapter::Openapi];

/// A chapter's name, time and failure.
type Outcome = (String, Duration, Option<anyhow::Error>);

fn timed(chapter: Chapter, run: impl FnOnce() -> Result<()>) -> Outcome {
    let start = Instant::now();
    let outcome = run();
    if let Err(error) = &outcome {
        println!("{}: {error:#}", name(chapter));
    }
    (name(chapter), start.elapsed(), outcome.err())
}

/// Runs a chapter as a process of its own, which says what it says into a file and finds built what these variables name.
fn apart(chapter: Chapter, built: &[(&str, PathBuf)], log: &Path) -> Result<()> {
    let file = std::fs::File::create(log).with_context(|| log.display().to_string())?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["test", &name(chapter), "--no-install"]).envs(built.iter().cloned()).stdin(Stdio::null());
    let status = command.stdout(file.try_clone()?).stderr(file).status()?;
    ensure!(status.success(), "{status}; see {}", log.display());
    Ok(())
}

/// Runs the long forms; answers whether all passed.
pub(crate) fn soak(minutes: u64, may_install: bool) -> Result<bool> {
    let chapters = [Chapter::Fuzz, Chapter::Net];
    if !ready(&chapters, may_install)? {
        return Ok(false);
    }
    let executable = chapters_executable()?;
    // Every test of these modules has a long form and takes an equal share.
    let modules = ["::soaked::"];
    let listed = Command::new(&executable).args(modules).args(["--list", "--format=terse"]).output()?;
    let count = String::from_utf8_lossy(&listed.stdout).lines().filter(|line| line.ends_with(": test")).count();
    ensure!(count > 0, "no test has a long form");
    let share = Duration::from_secs(minutes * 60) / u32::try_from(count)?;
    println!("{count} tests, {} s each", share.as_secs());
    let start = Instant::now();
    let mut command = isolated(&executable)?;
    command.args(modules).args(["--test-threads=1", "--nocapture"]);
    command.env("QVS_BIN", program(QVS)?).env("QVS_PKTGEN", program(PKTGEN)?);
    command.env("QVS_TARGET_DIR", target_dir()?);
    command.env("QVS_SOAK_SECONDS", share.as_secs().max(1).to_string());
    let outcome = run(&mut command);
    Ok(summary(&[("soak".to_owned(), start.elapsed(), outcome.err())]))
}

fn ready(chapters: &[Chapter], may_install: bool) -> Result<bool> {
    let mut wanted: Vec<_> = chapters.iter().flat_map(|&chapter| packages(chapter)).copied().collect();
    wanted.sort_unstable();
    wanted.dedup();
    if wanted.is_empty() {
        return Ok(true);
    }
    if !prepare(&wanted, chapters.contains(&Chapter::Vm), may_install)? {
        return Ok(false);
    }
    // Chapters themselves install nothing.
    if may_install {
        for &chapter in chapters {
            environment(chapter, may_install)?;
        }
    }
    Ok(true)
}

/// What a chapter needs of Python: the variable that tells its tests where it is, and the place.
fn environment(chapter: Chapter, may_install: bool) -> Result<Option<(&'static str, PathBuf)>> {
    let (variable, name, package) = match chapter {
        Chapter::Keystone => ("QVS_KEYSTONE", "keystone", KEYSTONE),
        Chapter::Openapi => ("QVS_SCHEMATHESIS", "schemathesis", SCHEMATHESIS),
        _ => return Ok(None),
    };
    Ok(Some((variable, python(name, package, may_install)?)))
}

fn name(chapter: Chapter) -> String {
    chapter.to_possible_value().expect("no chapter is hidden").get_name().to_owned()
}

fn summary(results: &[Outcome]) -> bool {
    println!();
    for (name, time, error) in results {
        let result = if error.is_some() { "FAILED" } else { "passed" };
        println!("{name:<8} {result} {:>7.1} s", time.as_secs_f64());
    }
    for (name, _, error) in results {
        if let Some(error) = error {
            println!("{name}: {error:#}");
        }
    }
    let failed = results.iter().filter(|(_, _, error)| error.is_some()).count();
    println!("{} passed, {failed} failed", results.len() - failed);
    failed == 0
}

fn run_chapter(chapter: Chapter) -> Result<()> {
    let named = |names: &[&str]| isolated_tests(names, environment(chapter, false)?);
    match chapter {
        Chapter::Lint => lint(),
        Chapter::Unit => unit(),
        Chapter::Loom => loom(),
        Chapter::Fuzz => named(&["fuzz::"]),
        Chapter::Net => named(&["net::", "pktgen::", "segmentation::"]),
        Chapter::Etcd => named(&["etcd::", "cloud::"]),
        Chapter::Vm => named(&["vm::"]),
        Chapter::Keystone => named(&["keystone::"]),
        Chapter::Openapi => named(&["openapi::"]),
        Chapter::Ratchet => run(cargo().args(["run", "--release", "--quiet", "-p", "benches", "--", "ratchet"])),
        Chapter::Demo => demo(),
        Chapter::Deb => deb::build_and_check(),
    }
}

fn lint() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args(["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]))?;
    run(cargo()
        .args(["doc", "--workspace", "--no-deps", "--document-private-items", "--quiet"])
        .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links"))?;
    run(cargo().args(["test", "--quiet", "-p", "tests", "--test", "chapters", "house::"]))
}

fn unit() -> Result<()> {
    run(cargo().args(["test", "--quiet", "--workspace", "--exclude", "tests"]))?;
    run(cargo().args(["test", "--quiet", "-p", "tests", "--lib"]))?;
    run(cargo().args(["test", "--quiet", "-p", "tests", "--test", "chapters", "simulation::"]))
}

/// Model checks have `loom` in their names. They are built apart, because the flag changes every crate.
fn loom() -> Result<()> {
    let mut command = cargo();
    command.args(["test", "--release", "-p", "switch", "--lib", "--target-dir"]).arg(target_dir()?.join("loom"));
    command.env("RUSTFLAGS", "--cfg loom").env("LOOM_MAX_PREEMPTIONS", "3");
    command.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    command.args(["--no-run"]);
    let executables = build_executables(&mut command)?;
    let (_, executable) = executables.first().context("the model checks were not built")?;
    run_tests(Command::new(executable).env("LOOM_MAX_PREEMPTIONS", "3"), &["loom"])
}

fn demo() -> Result<()> {
    run(cargo().args(["build", "--release", "--quiet"]))?;
    let start = Instant::now();
    run(cargo().args(["run", "--release", "--quiet", "--", "demo"]))?;
    ensure!(start.elapsed() < DEMO_MAX, "the demonstration took {:?}", start.elapsed());
    Ok(())
}

/// Runs the tests under these names in namespaces of their own, one at a time.
fn isolated_tests(names: &[&str], variable: Option<(&str, PathBuf)>) -> Result<()> {
    let executable = chapters_executable()?;
    let mut command = isolated(&executable)?;
    command.env("QVS_BIN", program(QVS)?).env("QVS_PKTGEN", program(PKTGEN)?);
    command.env("QVS_TARGET_DIR", target_dir()?);
    command.envs(variable);
    command.arg("--test-threads=1");
    run_tests(&mut command, names)
}

/// Runs a test executable; no test of the names is a failure, because a chapter is never empty.
fn run_tests(command: &mut Command, names: &[&str]) -> Result<()> {
    let listed = Command::new(command.get_program())
        .args(command.get_args())
        .args(names)
        .args(["--list", "--format=terse"])
        .stderr(Stdio::inherit())
        .output()?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    ensure!(listed.lines().any(|line| line.ends_with(": test")), "no test is named {}", names.join(" or "));
    run(command.args(names))
}

/// What chapters with tests in namespaces run, each with the variable by which [`apart`] tells a process of its own where it is built.
/// No variables that anybody else sets, who would else have an old build tested.
const CHAPTERS: (&str, &str) = ("chapters", "XTASK_BUILT_CHAPTERS");
const QVS: (&str, &str) = ("qvs", "XTASK_BUILT_QVS");
const PKTGEN: (&str, &str) = ("pktgen", "XTASK_BUILT_PKTGEN");

/// All of them, built, by their variables.
fn executables() -> Result<Vec<(&'static str, PathBuf)>> {
    Ok(vec![(CHAPTERS.1, chapters_executable()?), (QVS.1, program(QVS)?), (PKTGEN.1, program(PKTGEN)?)])
}

/// The integration binary.
fn chapters_executable() -> Result<PathBuf> {
    executable(CHAPTERS, cargo().args(["test", "--quiet", "-p", "tests", "--test", "chapters", "--no-run"]))
}

/// A program of ours, optimised enough to move real traffic and with its assertions.
fn program(program: (&str, &str)) -> Result<PathBuf> {
    executable(program, cargo().args(["build", "--quiet", "-p", program.0, "--profile", "test-opt"]))
}

/// Where it is built already, or what this builds now.
fn executable((name, variable): (&str, &str), build: &mut Command) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let found = build_executables(build)?.into_iter().find(|(built, _)| built == name);
    Ok(found.with_context(|| format!("cargo built no {name}"))?.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chapter_that_runs_other_programs_names_its_packages() {
        for &chapter in Chapter::value_variants() {
            let needs = matches!(
                chapter,
                Chapter::Unit
                    | Chapter::Fuzz
                    | Chapter::Net
                    | Chapter::Etcd
                    | Chapter::Vm
                    | Chapter::Keystone
                    | Chapter::Openapi
                    | Chapter::Ratchet
            );
            assert_eq!(needs, !packages(chapter).is_empty(), "{chapter:?}");
        }
    }
}
