//! Small frames between two vhost-user ports: how many a second one worker moves, against OVS-DPDK's NORMAL action.
//!
//! `pktgen` plays both guests on the first CPU with 1,000 addresses each, which both switches learn.

use crate::peers::{OvsDpdk, Qvs};
use crate::report::{Page, Sample, load};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tests::daemon::last_cpu;
use tests::process::TempDir;

/// Alternations.
const ROUNDS: usize = 5;
/// Frame sizes, without the check sequence: 64, 512 and 1,518 bytes on the wire.
const SIZES: [usize; 3] = [60, 508, 1514];

/// Starts the generator. A switch that connects needs it first: DPDK tries once a second.
fn start_pktgen(sockets: [&Path; 2], size: usize, listens: bool) -> Child {
    let program = PathBuf::from(std::env::var_os("QVS_PKTGEN").expect("`cargo xtask compare` names the generator"));
    let mut command = Command::new(program);
    command.args(sockets).args(["--json", "--huge-pages", "--cpu", "0", "--seconds", "2", "--size", &size.to_string()]);
    if listens {
        command.arg("--listen");
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).env("RUST_BACKTRACE", "0");
    command.spawn().expect("the generator was built")
}

/// Its rate, million frames a second.
fn rate(pktgen: Child) -> f64 {
    let output = pktgen.wait_with_output().expect("it was started");
    assert!(output.status.success(), "pktgen: {}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("pktgen speaks JSON");
    report["mpps"].as_f64().expect("it has a rate")
}

fn qvs(size: usize) -> f64 {
    let Qvs { daemon: _daemon, sockets } = Qvs::start();
    rate(start_pktgen([&sockets[0], &sockets[1]], size, false))
}

fn ovs(size: usize) -> f64 {
    let dir = TempDir::new();
    let sockets = ["a", "b"].map(|name| dir.join(name));
    let sockets = [sockets[0].as_path(), &sockets[1]];
    let pktgen = start_pktgen(sockets, size, true);
    let _switch = OvsDpdk::start(sockets, last_cpu());
    rate(pktgen)
}

/// The table of frame rates.
pub(crate) fn measure(page: &mut Page) {
    page.table(
        "Frames between two vhost-user ports",
        "One worker, 1,000 learnt addresses a side, both directions together, split ring of 1,024, million frames a \
         second; qvs with learning, isolation, guard and counters on. Medians of alternating runs of 2 s.",
        "| bytes on the wire | qvs | spread | OVS-DPDK NORMAL | spread | ratio | load |",
    );
    for size in SIZES {
        let (mut ours, mut theirs) = (Sample::default(), Sample::default());
        for _ in 0..ROUNDS {
            ours.add(qvs(size));
            theirs.add(ovs(size));
        }
        let ratio = ours.median() / theirs.median();
        page.line(&format!("| {} | {} | {} | {ratio:.2} | {} |", size + 4, ours.cell(2), theirs.cell(2), load()));
    }
}
