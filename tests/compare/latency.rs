//! Delays between two vhost-user ports: with one frame under way, and at a million frames a second.

use crate::alternate::{agreed, alternate, off_cpu};
use crate::options::Options;
use crate::peers::{End, Peer, Switch};
use crate::report::{Figure, Page, load};

/// The cases: name and the generator's words. A rate is that of one of two directions.
pub(crate) const ONE_FRAME: &str = "one frame under way";
pub(crate) const ONE_MPPS: &str = "1 Mpps offered";
const CASES: [(&str, &str); 2] = [(ONE_FRAME, "--ping-pong"), (ONE_MPPS, "--rate 500kpps --discard-off-cpu")];

/// The table of delays.
pub(crate) fn measure(page: &mut Page, options: &Options) {
    page.table(
        "Delays between two vhost-user ports",
        "64-byte frames, 1,000 addresses a side; from before the buffer is written by the sender until after it was seen by the \
         receiver, microseconds. p99.9 shows this machine's scheduling more than the switches'.",
        "| load offered | switch | p50 | p90 | p99 | p99.9 | agreed on | off CPU | load |",
    );
    let peers = options.peers(&[Peer::Qvs, Peer::Testpmd, Peer::Ovs]);
    let switches = Switch::start_all(&peers, [End::Vhost; 2]);
    let seconds = options.seconds.to_string();
    let mut failures = Vec::new();
    for (case, words) in CASES {
        let mut words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        words.extend(["--seconds".to_owned(), seconds.clone()]);
        let all = alternate(&switches, options.rounds, &words, |_| true);
        for turns in &all {
            let names = ["p50", "p90", "p99", "p99_9"];
            let names = names.map(|name| turns.sample(&format!("latency.{name}_ns")).map(|ns| ns / 1e3));
            for (figure, sample) in [Figure::P50, Figure::P90, Figure::P99].into_iter().zip(&names) {
                page.keep(case, figure, turns.peer, sample);
            }
            let cells = names.map(|sample| turns.cell(&sample, 2)).join(" | ");
            let one = std::slice::from_ref(turns);
            page.line(&format!(
                "| {case} | {} | {cells} | {} | {} | {} |",
                turns.peer,
                agreed(one),
                off_cpu(one),
                load()
            ));
        }
        failures.extend(all.iter().filter_map(|turns| turns.failures(case)));
    }
    page.notes(&failures);
}
