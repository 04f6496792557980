//! TCP between two stations behind TAPs: namespaces of this machine, with their network stack on the first CPU.

use crate::alternate::ratio;
use crate::options::Options;
use crate::peers::{End, Peer, Switch};
use crate::report::{Figure, Page, Sample, load};
use ::tests::namespace::Namespace;
use ::tests::process::{Child, TempDir, wait_until};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The row's name among the findings.
pub(crate) const ROW: &str = "TCP, TAP to TAP";
/// Seconds of each transfer.
const SECONDS: u32 = 3;
const ADDRESSES: [&str; 2] = ["10.0.0.1", "10.0.0.2"];

/// A switch with two stations, one of which serves.
struct Rig {
    // Dropped in this order: an interface goes before its namespace.
    switch: Switch,
    stations: [Namespace; 2],
    _server: Child,
}

impl Rig {
    fn start(peer: Peer, dir: &Path) -> Rig {
        let name = format!("{peer:?}").to_lowercase();
        let stations = [1, 2].map(|number| Namespace::new(&format!("{name}-{number}")));
        let switch = Switch::start(peer, [End::Station(&stations[0]), End::Station(&stations[1])]);
        switch.resume();
        for ((station, port), address) in stations.iter().zip(&switch.ports).zip(ADDRESSES) {
            station.address(port, &format!("{address}/24"));
            station.must(&format!("ip link set {port} up"));
        }
        let server = serve(&stations[0], 0, dir);
        wait_until(&format!("{peer} forwards"), Duration::from_secs(10), || stations[1].pings(ADDRESSES[0]));
        switch.stop();
        Rig { switch, stations, _server: server }
    }

    /// One transfer, Gbit/s; `None` if it failed.
    fn transfer(&self, seconds: u32) -> Option<f64> {
        self.switch.resume();
        let command = format!("taskset -c 0 iperf3 -J -c {} -t {seconds} -O 1", ADDRESSES[0]);
        // One that stalls ends as a failure.
        let output = String::from_utf8_lossy(&self.stations[1].run(&command).stdout).into_owned();
        self.switch.stop();
        Some(received(&output, "bits_per_second")? / 1e9)
    }
}

/// Serves iperf3 in a namespace, on this CPU.
pub(crate) fn serve(station: &Namespace, cpu: usize, dir: &Path) -> Child {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", station.name(), "taskset", "-c", &cpu.to_string(), "iperf3", "-s"]);
    Child::spawn("iperf3", &mut command, &dir.join(format!("{}.log", station.name())))
}

/// What iperf3, as JSON, says of all that was received; `None` if the transfer failed.
pub(crate) fn received(output: &str, what: &str) -> Option<f64> {
    let json: Value = serde_json::from_str(output).unwrap_or_default();
    let found = json["end"]["sum_received"][what].as_f64().filter(|&sum| sum > 0.0);
    if found.is_none() {
        eprintln!("iperf3: {}", json["error"]);
    }
    found
}

/// What a station leaves to the switch behind this interface.
pub(crate) fn offloads(station: &Namespace, interface: &str) -> String {
    let features = station.must(&format!("ethtool -k {interface}"));
    let is_on = |name: &str| features.lines().any(|line| line.trim().starts_with(&format!("{name}: on")));
    let named = [("tx-checksumming", "checksum"), ("tx-tcp-segmentation", "TSO"), ("tx-tcp6-segmentation", "TSO6")];
    let words: Vec<&str> = named.iter().filter(|(name, _)| is_on(name)).map(|(_, word)| *word).collect();
    if words.is_empty() { "nothing".to_owned() } else { words.join(", ") }
}

/// The table of TCP rates.
pub(crate) fn measure(page: &mut Page, options: &Options) {
    page.table(
        "TCP between two TAPs",
        &format!(
            "One connection of iperf3 between two namespaces, client and server on CPU 0, the switch's thread on the last; {} \
             alternations of {SECONDS} s, Gbit/s. The kernel's bridge has veth pairs instead of TAPs and no thread.",
            options.rounds
        ),
        "| switch | Gbit/s | qvs to it | left to the switch | load |",
    );
    let dir = TempDir::new();
    let peers = options.peers(&[Peer::Qvs, Peer::OvsTso, Peer::Bridge]);
    let rigs: Vec<Rig> = peers.iter().map(|&peer| Rig::start(peer, dir.path())).collect();
    let mut samples: Vec<Sample> = rigs.iter().map(|_| Sample::default()).collect();
    for _ in 0..options.rounds {
        for (rig, sample) in rigs.iter().zip(&mut samples) {
            sample.add_turn(rig.transfer(SECONDS));
        }
    }
    for (rig, sample) in rigs.iter().zip(&samples) {
        let peer = rig.switch.peer;
        page.keep(ROW, Figure::Gbps, peer, sample);
        let ours = page.found(ROW, Figure::Gbps, Peer::Qvs).cloned().unwrap_or_default();
        let ratio = ratio(&ours, sample);
        page.line(&format!(
            "| {peer} | {} | {ratio} | {} | {} |",
            sample.brief(2),
            offloads(&rig.stations[1], &rig.switch.ports[1]),
            load()
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_that_failed_has_received_nothing() {
        assert_eq!(received(r#"{"end": {"sum_received": {"bytes": 7}}}"#, "bytes"), Some(7.0));
        assert_eq!(received(r#"{"end": {}, "error": "the server has terminated"}"#, "bytes"), None);
        assert_eq!(received(r#"{"end": {"sum_received": {"bytes": 0}}}"#, "bytes"), None);
        assert_eq!(received("", "bytes"), None);
    }
}
