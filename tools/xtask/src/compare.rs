//! `cargo xtask compare`: the switch beside its peers, in one run.
//!
//! Builds the release program and the load generator, reserves huge pages for the peers while it runs, and starts the
//! measurements in namespaces of their own. The page they write lies in `benches/results/`. What can be asked for is
//! the measuring program's own: `tests/compare/options.rs`.

use crate::host::{build_executables, cargo, is_root, isolated, prepare, run, target_dir};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// The peers, and what guests and their traffic need.
const PACKAGES: &[&str] = &[
    "busybox-static",
    "dpdk-dev",
    "ethtool",
    "iperf3",
    "iproute2",
    "openvswitch-switch-dpdk",
    "qemu-system-x86",
    "util-linux",
    "xz-utils",
];
/// Huge pages of 2 MiB: testpmd takes 512 MiB, OVS-DPDK 512, or 1,024 for large frames; the generator's guests some more.
const HUGE_PAGES: u32 = 1152;
const HUGE_PAGES_FILE: &str = "/proc/sys/vm/nr_hugepages";
/// The only word that is ours and not the measuring program's.
const NO_INSTALL: &str = "--no-install";

/// Measures what these words say; answers whether it could.
pub(crate) fn compare(words: &[String]) -> Result<bool> {
    let may_install = !words.iter().any(|word| word == NO_INSTALL);
    let words: Vec<_> = words.iter().filter(|word| *word != NO_INSTALL).collect();
    let own = ["build", "--quiet", "--profile", "test-opt", "-p", "tests", "--bin", "compare"];
    let (_, compare) = build_executables(cargo().args(own))?.pop().context("cargo built no comparison")?;
    if words.iter().any(|word| ["-h", "--help"].contains(&word.as_str())) {
        run(Command::new(&compare).args(words))?;
        return Ok(true);
    }
    ensure!(is_root(), "cannot run here: huge pages and real-world peers need root");
    if !prepare(PACKAGES, true, may_install)? {
        return Ok(false);
    }
    let built = build_executables(cargo().args([
        "build",
        "--release",
        "--quiet",
        "-p",
        "qvs",
        "-p",
        "pktgen",
        "-p",
        "benches",
        "--bins",
    ]))?;
    let path = |wanted: &str| -> Result<PathBuf> {
        let found = built.iter().find(|(name, _)| name == wanted);
        Ok(found.with_context(|| format!("cargo built no {wanted}"))?.1.clone())
    };
    let _pages = HugePages::reserve()?;
    let mut command = isolated(&compare)?;
    for (name, program) in [("QVS_BIN", "qvs"), ("QVS_PKTGEN", "pktgen"), ("QVS_BENCHES", "benches")] {
        command.env(name, path(program)?);
    }
    command.env("QVS_TARGET_DIR", target_dir()?);
    run(command.args(words))?;
    Ok(true)
}

/// Huge pages reserved for as long as this lives.
struct HugePages {
    before: String,
}

impl HugePages {
    fn reserve() -> Result<HugePages> {
        let before = fs::read_to_string(HUGE_PAGES_FILE).context(HUGE_PAGES_FILE)?;
        let count: u32 = before.trim().parse().context(HUGE_PAGES_FILE)?;
        let pages = HugePages { before };
        if count < HUGE_PAGES {
            fs::write(HUGE_PAGES_FILE, HUGE_PAGES.to_string())?;
            let got = fs::read_to_string(HUGE_PAGES_FILE).context(HUGE_PAGES_FILE)?;
            ensure!(
                got.trim().parse::<u32>().is_ok_and(|got| got >= HUGE_PAGES),
                "cannot run here: {} of {HUGE_PAGES} huge pages of 2 MiB; memory is scarce or in pieces",
                got.trim()
            );
        }
        Ok(pages)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        // It was writable a moment ago; if it no longer is, nobody can do better.
        let _ = fs::write(HUGE_PAGES_FILE, &self.before);
    }
}
