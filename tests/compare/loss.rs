//! Loss at nine tenths of our highest rate, and at nine tenths of testpmd's; both rates are offered to both.
//!
//! testpmd cannot take the first, nor the generator offer it so much: a ring that stays full holds the generator back, so the
//! rate really offered stands beside the loss. The second is one that both can do, at which their losses are compared.
//!
//! A measurement is cut into pieces. Of each, windows of 1 ms in which the generator was off its CPU are left out by the
//! generator itself; a piece in which the switch's thread waited for its CPU, or in which that CPU did not run at all, is left
//! out here. How much that is stands beside the loss.

use crate::alternate::alternate;
use crate::generator::Generator;
use crate::options::Options;
use crate::peers::{End, Peer, Switch};
use crate::report::{Figure, Page, Sample, load};
use crate::vhost::{SMALL, finding};
use rustix::thread::{sched_getaffinity, sched_setaffinity};
use tests::ledger::Counters;

/// Pieces of one measurement, and the seconds of each.
const PIECES: usize = 20;
const PIECE_S: f64 = 0.1;
/// A worker that waited longer than this within a piece was off its CPU, ns.
const OFF_CPU_NS: u64 = 20_000;
/// Part of a highest rate that is offered.
const SHARE: f64 = 0.9;
/// The names among the findings of the rows of our highest rate, and of testpmd's.
pub(crate) const ROW: &str = "loss at nine tenths of our highest rate";
pub(crate) const ROW_BOTH: &str = "loss at nine tenths of testpmd's highest rate";

/// What one measurement came to.
#[derive(Default)]
struct Pieces {
    sent: f64,
    lost: f64,
    offered_mpps: Sample,
    left_out: usize,
    all: usize,
    /// Windows the generator left out, of those in the pieces that count.
    windows_left_out: f64,
    windows: f64,
}

fn measure_once(switch: &Switch, words: &[String]) -> Result<Pieces, String> {
    let pinned = switch.pinned();
    let mut waited = vec![pinned.waited()];
    let reports = Generator::start(switch, words).reports(|| waited.push(pinned.waited()));
    switch.stop();
    let mut pieces = Pieces::default();
    // The first piece follows the start of the switch's turn: it waited by our will.
    for (at, report) in reports?.iter().enumerate().skip(1) {
        let (before, after) = (waited[at], waited[at + 1]);
        pieces.all += 1;
        let has_waited =
            after.queued_ns.saturating_sub(before.queued_ns) > OFF_CPU_NS || after.stolen_ticks > before.stolen_ticks;
        if has_waited {
            pieces.left_out += 1;
            continue;
        }
        pieces.sent += report.figure("sent");
        pieces.lost += report.figure("lost");
        pieces.offered_mpps.add(report.figure("offered_mpps"));
        pieces.windows += report.figure("off_cpu.windows");
        pieces.windows_left_out += report.figure("off_cpu.windows_disturbed");
    }
    Ok(pieces)
}

/// Does it on the generator's CPU: we wake up at each report, and must not do so on the worker's.
fn on_first_cpu<T>(work: impl FnOnce() -> T) -> T {
    let before = sched_getaffinity(None).expect("our own thread");
    switch::affinity::pin(0).expect("CPU 0 is ours");
    let done = work();
    sched_setaffinity(None, &before).expect("what it was");
    done
}

/// A switch's highest rate: from the table of rates, or measured now; `None` if that failed.
fn highest(page: &Page, switches: &[Switch], peer: Peer, options: &Options) -> Option<f64> {
    if let Some(sample) = page.found(&finding(SMALL), Figure::Mpps, peer) {
        return Some(sample.median());
    }
    let words = SMALL.words_for(options.seconds);
    let at = switches.iter().position(|switch| switch.peer == peer)?;
    let turns = alternate(&switches[at..=at], options.rounds.min(3), &words, |_| true);
    let sample = turns[0].sample("mpps");
    (!sample.is_empty()).then(|| sample.median())
}

/// The table of losses.
pub(crate) fn measure(page: &mut Page, options: &Options) {
    let mut peers = options.peers(&[Peer::Qvs, Peer::Testpmd]);
    if !peers.contains(&Peer::Qvs) {
        peers.insert(0, Peer::Qvs);
    }
    let switches = Switch::start_all(&peers, [End::Vhost; 2]);
    let rates = [(ROW, Peer::Qvs), (ROW_BOTH, Peer::Testpmd)]
        .map(|(row, peer)| (row, highest(page, &switches, peer, options).map(|highest| SHARE * highest)));
    page.table(
        "Loss at nine tenths of our highest rate, and of testpmd's",
        &format!(
            "64-byte frames, both directions, 1,000 addresses a side; {} alternations of {PIECES} pieces of {PIECE_S} s. Both rates are \
             offered to both: nine tenths of our highest, and nine tenths of testpmd's, at which the two are compared. A switch \
             that cannot take a rate keeps its rings full, and the generator, which counts as offered what it put into a ring, \
             offers it less: what it held back is not counted as lost, so the bars ask as well how much was offered. Left out are \
             windows of 1 ms in which generator and sink were off their CPU for over 20 microseconds, and whole pieces in which \
             the worker was.",
            options.rounds
        ),
        "| rate, Mpps | switch | loss | offered, Mpps | windows left out | pieces left out | drops by reason | load |",
    );
    for (row, rate) in rates {
        match rate {
            Some(rate) => measure_at(page, row, rate, &switches, options),
            None => page.line(&format!("| {row}: unknown | – | – | – | – | – | – | {} |", load())),
        }
    }
}

/// The lines of one rate, millions of frames a second in all.
fn measure_at(page: &mut Page, row: &str, rate: f64, switches: &[Switch], options: &Options) {
    let mut words = SMALL.words();
    let each_way = format!("{}pps", (rate * 1e6 / 2.0).round());
    let (seconds, repeat) = (PIECE_S.to_string(), (PIECES + 1).to_string());
    words.extend(
        ["--rate", &each_way, "--seconds", &seconds, "--repeat", &repeat, "--discard-off-cpu"].map(str::to_owned),
    );
    let before: Vec<Option<Counters>> = switches.iter().map(counters).collect();
    // Turn by turn; `None` for one that failed.
    let mut all: Vec<Vec<Option<Pieces>>> = switches.iter().map(|_| Vec::new()).collect();
    for _ in 0..options.rounds {
        for (switch, measured) in switches.iter().zip(&mut all) {
            measured.push(on_first_cpu(|| measure_once(switch, &words)).ok());
        }
    }
    for ((switch, measured), before) in switches.iter().zip(&all).zip(before) {
        let mut drops = "–".to_owned();
        if let (Some(before), Some(after)) = (before, counters(switch)) {
            let (words, others) = drops_between(&before, &after);
            page.keep(row, Figure::OtherDrops, switch.peer, &[others].into_iter().collect());
            drops = words;
        }
        let loss = |pieces: &Pieces| (pieces.sent > 0.0).then(|| pieces.lost / pieces.sent);
        let losses: Sample = measured.iter().map(|pieces| pieces.as_ref().and_then(loss)).collect();
        page.keep(row, Figure::Loss, switch.peer, &losses);
        let (count, asked) = losses.count();
        let loss = |part: f64| format!("{:.1e}", losses.quantile(part));
        let of = if count < asked { format!(", n={count} of {asked}") } else { String::new() };
        let losses = if losses.is_empty() {
            "–".to_owned()
        } else {
            format!("**{}** ({}–{}{of})", loss(0.5), loss(0.0), loss(1.0))
        };
        let measured = || measured.iter().flatten();
        let offered: Sample = measured().flat_map(|pieces| pieces.offered_mpps.values()).collect();
        page.keep(row, Figure::Offered, switch.peer, &offered.map(|mpps| mpps / rate));
        let sum = |count: fn(&Pieces) -> f64| measured().map(count).sum::<f64>();
        let windows = 100.0 * sum(|pieces| pieces.windows_left_out) / sum(|pieces| pieces.windows).max(1.0);
        let (left_out, pieces) = (sum(|pieces| pieces.left_out as f64), sum(|pieces| pieces.all as f64));
        let peer = switch.peer;
        let offered = offered.brief(2);
        page.line(&format!(
            "| {rate:.2} | {peer} | {losses} | {offered} | {windows:.1} % | {left_out} of {pieces} | {drops} | {} |",
            load()
        ));
    }
}

/// What our daemon counted so far.
fn counters(switch: &Switch) -> Option<Counters> {
    let daemon = switch.daemon()?;
    switch.resume();
    let counters = Counters::read(daemon);
    switch.stop();
    Some(counters)
}

/// The drops that grew, by reason, and how many reasons are none of a full ring.
fn drops_between(before: &Counters, after: &Counters) -> (String, f64) {
    let changes = after.changes(before);
    let drops: Vec<&str> = changes.iter().filter(|change| change.contains(".drops.")).map(String::as_str).collect();
    let others = drops.iter().filter(|drop| !drop.contains(".rx_ring_full ")).count();
    (if drops.is_empty() { "none".to_owned() } else { drops.join(", ") }, others as f64)
}
