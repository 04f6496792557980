//! TCP between two Linux guests: through us, and through the barest of all forwarders, testpmd's `io`.
//!
//! The guests run under emulation on the first CPU and are the bottleneck; what is compared is how much of their time the
//! switch costs them (copies, interrupts, frames that are not whole), and that offloads are on in both.

use crate::options::Options;
use crate::peers::{End, Peer, Switch};
use crate::report::{Page, Sample, load};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;
use tests::guest::{Guest, Nic, QemuRole};

/// Seconds of each transfer.
const SECONDS: u64 = 8;

/// What one transfer came to.
struct Transfer {
    gbps: f64,
    cpu_seconds_per_gb: f64,
}

/// CPU seconds a process has used.
pub(crate) fn cpu_seconds(process: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("the process runs");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("it has fields").split_whitespace().collect();
    // proc(5): utime and stime are fields 14 and 15; the name took the first two.
    let ticks: f64 = fields[11..13].iter().map(|field| field.parse::<f64>().expect("a number")).sum();
    ticks / rustix::param::clock_ticks_per_second() as f64
}

fn transfer(sockets: [&Path; 2], process: u32) -> Transfer {
    let nic = |at: usize| {
        [Nic { socket: sockets[at].to_owned(), role: QemuRole::Client, mac: format!("02:00:00:00:00:0{at}") }]
    };
    let nics = [nic(0), nic(1)];
    let starting = [Guest::start("listener", &nics[0]), Guest::start("talker", &nics[1])];
    let [mut listener, mut talker] = starting.map(tests::guest::StartingGuest::ready);
    for (guest, address) in [(&mut listener, "10.0.0.1"), (&mut talker, "10.0.0.2")] {
        guest.must(&format!("ip addr add {address}/24 dev eth0 && ip link set eth0 up"));
        let features = guest.must("ethtool -k eth0");
        for feature in ["tx-checksumming: on", "rx-checksumming: on", "tx-tcp-segmentation: on"] {
            assert!(features.contains(feature), "{feature} is missing in\n{features}");
        }
    }
    listener.must("iperf3 -s -D");
    talker.must("for i in 1 2 3 4 5 6 7 8 9; do ping -c 1 -W 1 10.0.0.1 && break; done");
    let before = cpu_seconds(process);
    let output = talker.run_within(Duration::from_secs(60 + SECONDS), &format!("iperf3 -J -c 10.0.0.1 -t {SECONDS}"));
    let used = cpu_seconds(process) - before;
    let json: Value = serde_json::from_str(&output.text).unwrap_or_else(|_| panic!("iperf3: {}", output.text));
    let received = &json["end"]["sum_received"];
    let (bits, bytes) = (received["bits_per_second"].as_f64(), received["bytes"].as_f64());
    let (bits, bytes) = (bits.expect("iperf3 counts bits"), bytes.expect("iperf3 counts bytes"));
    Transfer { gbps: bits / 1e9, cpu_seconds_per_gb: used / (bytes / 1e9) }
}

/// A transfer through a switch that lives as long: a guest's end is not to be seen by the next one.
fn through(peer: Peer) -> Transfer {
    let switch = Switch::start(peer, [End::Vhost; 2]);
    switch.resume();
    let [first, second] = &switch.ports;
    transfer([Path::new(first), Path::new(second)], switch.id())
}

/// The table of TCP rates.
pub(crate) fn measure(page: &mut Page, options: &Options) {
    page.table(
        "TCP between two guests",
        "Two Linux guests under emulation on the first CPU, the forwarder polling on the last; TSO and checksum offload \
         confirmed in both guests, which are the bottleneck; Gbit/s and CPU seconds a GB, medians of alternating runs of 8 s.",
        "| through | Gbit/s | spread | CPU s per GB | spread | load |",
    );
    let peers = options.peers(&[Peer::Qvs, Peer::Testpmd]);
    let mut samples: Vec<_> = peers.iter().map(|_| (Sample::default(), Sample::default())).collect();
    for _ in 0..options.rounds {
        for (sample, &peer) in samples.iter_mut().zip(&peers) {
            let transfer = through(peer);
            sample.0.add(transfer.gbps);
            sample.1.add(transfer.cpu_seconds_per_gb);
        }
    }
    for (peer, (rate, cpu)) in peers.iter().zip(&samples) {
        page.line(&format!("| {peer} | {} | {} | {} |", rate.cell(3), cpu.cell(2), load()));
    }
    if let [(ours, _), (theirs, _)] = samples.as_slice() {
        page.line(&format!("\nqvs to testpmd: {:.2}", ours.median() / theirs.median()));
    }
}
