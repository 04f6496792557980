//! Which versions of what were measured: beside every figure that is kept.

use crate::process::repository;
use std::process::Command;

/// Where figures are kept: a page that has just been written is no change of what is measured.
const RESULTS: &str = "benches/results";

/// The commit of this tree, of which what is measured is built, in words; "with changes" if the tree has others than pages of
/// figures.
pub fn commit() -> String {
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        // Who measures as root does so in a tree that another user owns.
        command.args(["-c", "safe.directory=*", "-C"]).arg(repository()).args(args);
        printed(&mut command)
    };
    let but_results = format!(":(exclude){RESULTS}");
    let head = git(&["log", "-1", "--format=%h of %cs"]);
    let changed = git(&["status", "--porcelain", "--untracked-files=no", "--", ".", &but_results]);
    described(head.as_deref(), changed.as_deref())
}

fn described(head: Option<&str>, changed: Option<&str>) -> String {
    let changes = if changed.is_some_and(|changed| !changed.trim().is_empty()) { ", with changes" } else { "" };
    match head.map(str::trim) {
        None | Some("") => "commit unknown".to_owned(),
        Some(head) => format!("commit {head}{changes}"),
    }
}

/// What DPDK's testpmd and this build of Open vSwitch say of themselves.
pub fn peers(ovs: &str) -> String {
    let testpmd = printed(Command::new("dpdk-testpmd").args(["-v", "--no-pci", "-h"]));
    let ovs = printed(Command::new(ovs).arg("--version"));
    format!("testpmd of {}; {}", dpdk_of(&testpmd.unwrap_or_default()), ovs_of(&ovs.unwrap_or_default()))
}

/// DPDK's version among what testpmd prints at its start: `EAL: RTE Version: 'DPDK 22.11.11'`.
fn dpdk_of(printed: &str) -> String {
    let version = printed.lines().find_map(|line| line.split_once("RTE Version: '")?.1.split('\'').next());
    version.map_or_else(|| "DPDK, version unknown".to_owned(), str::to_owned)
}

/// The version of Open vSwitch, and that of the DPDK in it: `ovs-vswitchd (Open vSwitch) 3.1.0` and `DPDK 22.11.11`.
fn ovs_of(printed: &str) -> String {
    let own = printed.lines().find_map(|line| line.split_once("(Open vSwitch) ").map(|(_, version)| version.trim()));
    let dpdk = printed.lines().find(|line| line.starts_with("DPDK "));
    let with = dpdk.map_or_else(String::new, |dpdk| format!(" with {}", dpdk.trim()));
    format!("Open vSwitch {}{with}", own.unwrap_or("of unknown version"))
}

/// What a program prints, on both streams; nothing if it is not there or fails.
fn printed(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some([output.stdout, output.stderr].map(|stream| String::from_utf8_lossy(&stream).into_owned()).concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_with_changes_is_said_to_have_them() {
        assert_eq!(described(Some("abc1234 of 2026-01-31\n"), Some("")), "commit abc1234 of 2026-01-31");
        assert_eq!(
            described(Some("abc1234 of 2026-01-31\n"), Some(" M README.md\n")),
            "commit abc1234 of 2026-01-31, with changes"
        );
        assert_eq!(described(None, None), "commit unknown");
    }

    #[test]
    fn versions_are_found_among_what_programs_print() {
        assert_eq!(dpdk_of("EAL: Detected CPU lcores: 2\nEAL: RTE Version: 'DPDK 22.11.11'\n"), "DPDK 22.11.11");
        assert_eq!(dpdk_of(""), "DPDK, version unknown");
        let printed = "ovs-vswitchd (Open vSwitch) 3.1.0\nDPDK 22.11.11\n";
        assert_eq!(ovs_of(printed), "Open vSwitch 3.1.0 with DPDK 22.11.11");
        assert_eq!(ovs_of(""), "Open vSwitch of unknown version");
    }
}
