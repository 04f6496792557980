//! The quality bars: what we want to reach beside the peers, and whether we do.
//!
//! Each compares medians of one run; beside it stand the ratios of the single alternations, least and most, and how many of them met
//! the bar by themselves where not all or none did. What is a median of fewer turns than were asked for meets no bar.

use crate::frames::{Row, Size};
use crate::latency::{ONE_FRAME, ONE_MPPS};
use crate::peers::Peer;
use crate::report::{Figure, Page, Sample};
use crate::{hostile, hosts, loss, tap, tunnel, vhost, workers};
use ::tests::hostile::Class;
use std::fmt::{self, Write as _};

/// Loss that is allowed at nine tenths of our highest rate.
const LOSS_MAX: f64 = 1e-4;

/// Part of a rate that must be offered in the median, so that what is lost of it tells something.
const OFFERED_MIN: f64 = 0.97;

/// How many times as many cycles a frame may cost beside a guest that misbehaves as beside a polite one.
const BESIDE_MAX: f64 = 1.1;

/// What is asked of the ratio of ours to theirs.
#[derive(Clone, Copy)]
enum Needed {
    AtLeast(f64),
    Below(f64),
    /// Below one in so many of ten alternations.
    BelowInTenths(usize),
}

/// A bar by name, and its line.
struct Bar {
    what: String,
    needed: String,
    measured: Option<(String, Verdict)>,
}

/// Whether a bar is met.
#[derive(Clone, Copy)]
struct Verdict {
    is_met: bool,
    /// How many alternations would meet it by themselves, of how many.
    alternations: Option<(usize, usize)>,
}

impl From<bool> for Verdict {
    fn from(is_met: bool) -> Verdict {
        Verdict { is_met, alternations: None }
    }
}

impl Verdict {
    /// That of the medians, beside each alternation's own.
    fn of(is_met: bool, sample: &Sample, meets: impl Fn(f64) -> bool) -> Verdict {
        let meeting = sample.values().into_iter().filter(|&value| meets(value)).count();
        Verdict { is_met, alternations: Some((meeting, sample.count().1)) }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_met { "yes" } else { "**no**" })?;
        match self.alternations {
            Some((meeting, count)) if meeting != if self.is_met { count } else { 0 } => {
                write!(f, ", {meeting} of {count}")
            }
            _ => Ok(()),
        }
    }
}

/// The table, as Markdown.
pub(crate) fn table(page: &Page) -> String {
    let mut text = String::from(
        "## Quality bars\n\nRatios of medians, qvs to the peer; in brackets those of single alternations. \"3 of 5\" beside a \
         verdict: so many alternations would meet the bar by themselves. A bar that turns are missing for is not met.\n\n\
         | bar | needed | measured | met |\n|---|---|---|---|\n",
    );
    for Bar { what, needed, measured } in bars(page) {
        let (measured, verdict) = match measured {
            None => ("–".to_owned(), "not measured".to_owned()),
            Some((measured, verdict)) => (measured, verdict.to_string()),
        };
        writeln!(text, "| {what} | {needed} | {measured} | {verdict} |").expect("a string grows");
    }
    text.push_str(
        "\nBeside a guest that misbehaves: cycles that a frame of others costs, each alternation's to that of the polite control which \
         follows it, the median of these ratios with its quartiles; and the part of the frames lost beyond the control's, the \
         median as well.\n\nqvs runs with all that `qvs plug` gives any port: learning, isolation, guard and \
         counters.\n\n† Fewer checks than a user runs with: the yardstick checks descriptors and looks addresses up, and does not \
         learn, isolate or count.\n",
    );
    text
}

fn bars(page: &Page) -> Vec<Bar> {
    use Needed::{AtLeast, Below, BelowInTenths};
    let frames = |what: &str, row: Row, peer: Peer, least: f64| {
        let figure = if row.size == Size::Tso { Figure::Gbps } else { Figure::Mpps };
        compared(page, what, &vhost::finding(row), figure, peer, AtLeast(least))
    };
    let small = Size::Wire(64);
    let many = Row { macs: 100_000, ..Row::split(small) };
    let mut bars = vec![
        frames("64 B, split ring", Row::split(small), Peer::Testpmd, 2.0),
        frames("64 B, split ring", Row::split(small), Peer::Ovs, 4.0),
        frames("64 B, packed ring", Row::packed(small), Peer::Testpmd, 1.15),
        frames("1518 B", Row::split(Size::Wire(1518)), Peer::Testpmd, 1.25),
        frames("IMIX", Row::split(Size::Imix), Peer::Testpmd, 1.5),
        frames("64 KB TSO", Row::split(Size::Tso), Peer::OvsTso, 1.3),
        frames("64 B, 100,000 MACs a side", many, Peer::Testpmd, 1.3),
        frames("64 B, split ring", Row::split(small), Peer::Yardstick, 0.75),
        frames("64 KB TSO", Row::split(Size::Tso), Peer::Yardstick, 0.9),
    ];
    for (what, size) in [("64 B, VXLAN", small), ("1,400 B, VXLAN", Size::Wire(1404))] {
        let row = tunnel::finding(Row::tunnelled(size));
        bars.push(compared(page, what, &row, Figure::Mpps, Peer::Ovs, AtLeast(3.0)));
    }
    for (name, figure) in [("p50", Figure::P50), ("p99", Figure::P99)] {
        for peer in [Peer::Ovs, Peer::Testpmd] {
            bars.push(compared(page, &format!("delay, {ONE_FRAME}, {name}"), ONE_FRAME, figure, peer, Below(1.0)));
        }
    }
    for (name, figure) in [("p50", Figure::P50), ("p90", Figure::P90)] {
        let what = format!("delay, {ONE_MPPS}, {name}");
        bars.push(compared(page, &what, ONE_MPPS, figure, Peer::Ovs, BelowInTenths(8)));
    }
    bars.push(compared(page, tap::ROW, tap::ROW, Figure::Gbps, Peer::OvsTso, AtLeast(1.1)));
    bars.push(compared(page, hosts::ROW, hosts::ROW, Figure::Gbps, Peer::Ovs, AtLeast(1.0)));
    for (kind, least) in [(workers::APART, 1.8), (workers::TOGETHER, 1.7)] {
        let times = page.found(kind, Figure::Times, Peer::Qvs).map(Sample::median);
        bars.push(Bar {
            what: format!("workers: {kind}, to one"),
            needed: format!("at least {least}"),
            measured: times.map(|times| (format!("{times:.2}"), (times >= least).into())),
        });
    }
    bars.extend(loss_bars(page));
    for class in Class::HOSTILE {
        bars.extend(hostile::LAYOUTS.map(|layout| beside(page, hostile::finding(class, layout))));
    }
    bars
}

/// The bars on loss: at nine tenths of our highest rate ours alone, at nine tenths of testpmd's, which both can do, ours and its.
fn loss_bars(page: &Page) -> [Bar; 3] {
    let lost = |row, peer| page.found(row, Figure::Loss, peer);
    let others =
        [loss::ROW, loss::ROW_BOTH].map(|row| page.found(row, Figure::OtherDrops, Peer::Qvs).map(Sample::most));
    let others = others.into_iter().flatten().reduce(f64::max);
    [
        Bar {
            what: loss::ROW.to_owned(),
            needed: format!("at most {LOSS_MAX:.0e} of at least {OFFERED_MIN} of the rate"),
            measured: lost(loss::ROW, Peer::Qvs).map(|losses| {
                let (ours, offered) = (losses.median(), offered(page, loss::ROW));
                let (text, is_whole) = missing(format!("{ours:.1e}, {}", offered.0), &[losses]);
                let is_met = ours <= LOSS_MAX && is_whole;
                let verdict = Verdict::of(is_met, losses, |loss| loss <= LOSS_MAX);
                (text, if offered.1 { verdict } else { false.into() })
            }),
        },
        Bar {
            what: format!("{}, offered to both, to testpmd io", loss::ROW_BOTH),
            needed: format!("no more than its, of at least {OFFERED_MIN} of the rate"),
            measured: lost(loss::ROW_BOTH, Peer::Qvs).zip(lost(loss::ROW_BOTH, Peer::Testpmd)).map(|(ours, its)| {
                let offered = offered(page, loss::ROW_BOTH);
                let (text, is_whole) =
                    missing(format!("{:.1e} to {:.1e}, {}", ours.median(), its.median(), offered.0), &[ours, its]);
                (text, (ours.median() <= its.median() && offered.1 && is_whole).into())
            }),
        },
        Bar {
            what: "loss, drops for other reasons than rx_ring_full".to_owned(),
            needed: "none".to_owned(),
            measured: others.map(|kinds| (format!("{kinds} kinds"), (kinds == 0.0).into())),
        },
    ]
}

/// How much of a rate we were offered, in words, and whether that is enough (RFC 2544 section 26.1: at the rate asked for). Who
/// keeps his rings full is offered less, and loses nothing of what he is not offered.
fn offered(page: &Page, row: &str) -> (String, bool) {
    let Some(offered) = page.found(row, Figure::Offered, Peer::Qvs) else {
        return ("offered unknown".to_owned(), false);
    };
    let (median, values) = (offered.median(), offered.values());
    let pieces = values.iter().filter(|&&part| part >= OFFERED_MIN).count();
    (format!("offered {median:.2}, as much in {pieces} of {} pieces", values.len()), median >= OFFERED_MIN)
}

/// What is measured, with how many turns are missing; and whether none is.
fn missing(text: String, samples: &[&Sample]) -> (String, bool) {
    let (count, asked) = samples.iter().map(|sample| sample.count()).min().unwrap_or_default();
    if count == asked { (text, true) } else { (format!("{text}, {count} of {asked} turns"), false) }
}

/// A bar on what a guest that misbehaves costs others.
fn beside(page: &Page, what: String) -> Bar {
    let figure = |figure| page.found(&what, figure, Peer::Qvs);
    let measured = figure(Figure::Times).zip(figure(Figure::MoreLoss)).map(|(ratios, loss)| {
        let (ratio, loss_more) = (ratios.median(), loss.median());
        let text = format!("{}, loss {loss_more:+.1e}", ratios.middle(2).replace('*', ""));
        let is_met = ratio <= BESIDE_MAX && loss_more <= 0.0;
        (text, Verdict::of(is_met, ratios, |ratio| ratio <= BESIDE_MAX))
    });
    Bar { what, needed: format!("at most {BESIDE_MAX}, no more loss"), measured }
}

/// A bar on the ratio of our figure to a peer's.
fn compared(page: &Page, what: &str, row: &str, figure: Figure, peer: Peer, needed: Needed) -> Bar {
    let both = page.found(row, figure, Peer::Qvs).zip(page.found(row, figure, peer));
    let measured = both.map(|(ours, theirs)| {
        let ratio = ours.median() / theirs.median();
        let ratios = ours.ratios(theirs);
        if ratios.is_empty() {
            return (format!("{ratio:.2}, no turn of both"), false.into());
        }
        let spread = format!("{ratio:.2} ({:.2}–{:.2})", ratios.least(), ratios.most());
        let (spread, is_whole) = missing(spread, &[&ratios]);
        let meets = |ratio: f64| match needed {
            Needed::AtLeast(least) => ratio >= least,
            Needed::Below(most) => ratio < most,
            Needed::BelowInTenths(_) => ratio < 1.0,
        };
        match needed {
            Needed::BelowInTenths(tenths) => {
                let (below, (_, asked)) =
                    (ratios.values().into_iter().filter(|&ratio| meets(ratio)).count(), ratios.count());
                (format!("{spread}, below in {below} of {asked}"), (10 * below >= tenths * asked && is_whole).into())
            }
            _ => (spread, Verdict::of(meets(ratio) && is_whole, &ratios, meets)),
        }
    });
    let needed = match needed {
        Needed::AtLeast(least) => format!("at least {least}"),
        Needed::Below(most) => format!("below {most}"),
        Needed::BelowInTenths(tenths) => format!("below 1 in {tenths} of 10 alternations"),
    };
    Bar { what: format!("{what}, to {peer}"), needed, measured }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met(page: &Page, what: &str) -> Option<bool> {
        let bar = bars(page).into_iter().find(|bar| bar.what == what);
        bar.unwrap_or_else(|| panic!("there is no bar {what}")).measured.map(|(_, verdict)| verdict.is_met)
    }

    fn keep(page: &mut Page, row: &str, figure: Figure, peer: Peer, values: &[f64]) {
        page.keep(row, figure, peer, &values.iter().copied().collect::<Sample>());
    }

    #[test]
    fn what_was_not_measured_is_neither_met_nor_missed() {
        assert_eq!(met(&Page::default(), "64 B, split ring, to testpmd io"), None);
        assert!(table(&Page::default()).contains("| at least 2 | – | not measured |"));
    }

    #[test]
    fn a_ratio_is_of_medians() {
        let mut page = Page::default();
        let row = vhost::finding(Row::split(Size::Wire(64)));
        keep(&mut page, &row, Figure::Mpps, Peer::Testpmd, &[10.0, 10.0, 10.0]);
        keep(&mut page, &row, Figure::Mpps, Peer::Qvs, &[1.0, 20.0, 21.0]);
        keep(&mut page, &row, Figure::Mpps, Peer::Ovs, &[6.0, 6.0, 6.0]);
        assert_eq!(met(&page, "64 B, split ring, to testpmd io"), Some(true));
        assert_eq!(met(&page, "64 B, split ring, to OVS-DPDK"), Some(false));
    }

    #[test]
    fn a_bar_that_not_every_alternation_meets_says_so() {
        let mut page = Page::default();
        let row = vhost::finding(Row::split(Size::Wire(64)));
        keep(&mut page, &row, Figure::Mpps, Peer::Testpmd, &[10.0; 5]);
        keep(&mut page, &row, Figure::Mpps, Peer::Ovs, &[2.0; 5]);
        keep(&mut page, &row, Figure::Mpps, Peer::Yardstick, &[60.0; 5]);
        keep(&mut page, &row, Figure::Mpps, Peer::Qvs, &[12.0, 19.0, 20.0, 21.0, 50.0]);
        let table = table(&page);
        assert!(
            table.contains("| 64 B, split ring, to testpmd io | at least 2 | 2.00 (1.20–5.00) | yes, 3 of 5 |"),
            "{table}"
        );
        assert!(table.contains("| 64 B, split ring, to OVS-DPDK | at least 4 | 10.00 (6.00–25.00) | yes |"), "{table}");
        assert!(table.contains("| at least 0.75 | 0.33 (0.20–0.83) | **no**, 1 of 5 |"), "{table}");
    }

    #[test]
    fn a_bar_that_turns_are_missing_for_is_not_met() {
        let mut page = Page::default();
        let row = vhost::finding(Row::split(Size::Wire(64)));
        keep(&mut page, &row, Figure::Mpps, Peer::Qvs, &[30.0; 3]);
        page.keep(&row, Figure::Mpps, Peer::Testpmd, &Sample::from_iter([Some(10.0), None, Some(10.0)]));
        keep(&mut page, &row, Figure::Mpps, Peer::Ovs, &[6.0; 3]);
        assert_eq!(met(&page, "64 B, split ring, to testpmd io"), Some(false));
        assert_eq!(met(&page, "64 B, split ring, to OVS-DPDK"), Some(true));
        assert!(table(&page).contains("| 3.00 (3.00–3.00), 2 of 3 turns | **no**, 2 of 3 |"), "{}", table(&page));
    }

    #[test]
    fn delays_at_a_rate_are_compared_alternation_by_alternation() {
        let mut page = Page::default();
        keep(&mut page, ONE_MPPS, Figure::P50, Peer::Ovs, &[1.0; 5]);
        keep(&mut page, ONE_MPPS, Figure::P90, Peer::Ovs, &[1.0; 5]);
        keep(&mut page, ONE_MPPS, Figure::P50, Peer::Qvs, &[0.9, 0.9, 0.9, 0.9, 9.0]);
        keep(&mut page, ONE_MPPS, Figure::P90, Peer::Qvs, &[0.9, 0.9, 0.9, 9.0, 9.0]);
        assert_eq!(met(&page, "delay, 1 Mpps offered, p50, to OVS-DPDK"), Some(true));
        assert_eq!(met(&page, "delay, 1 Mpps offered, p90, to OVS-DPDK"), Some(false));
    }

    #[test]
    fn more_cycles_or_loss_beside_a_guest_that_misbehaves_miss_the_bar() {
        let what = hostile::finding(Class::IndexJumps, hostile::LAYOUTS[1]);
        let met_with = |ratios: &[f64], more_loss: f64| {
            let mut page = Page::default();
            keep(&mut page, &what, Figure::Times, Peer::Qvs, ratios);
            keep(&mut page, &what, Figure::MoreLoss, Peer::Qvs, &[more_loss]);
            met(&page, &what)
        };
        assert_eq!(met_with(&[1.09, 0.5, 2.0], 0.0), Some(true), "the median counts");
        assert_eq!(met_with(&[1.11, 0.5, 2.0], 0.0), Some(false));
        assert_eq!(met_with(&[1.0], 1e-6), Some(false));
        assert_eq!(met(&Page::default(), &what), None);
    }

    #[test]
    fn more_loss_than_the_peer_at_a_rate_that_both_can_do_misses_the_bar() {
        let mut page = Page::default();
        keep(&mut page, loss::ROW, Figure::Offered, Peer::Qvs, &[1.0]);
        keep(&mut page, loss::ROW_BOTH, Figure::Offered, Peer::Qvs, &[1.0]);
        keep(&mut page, loss::ROW, Figure::Loss, Peer::Qvs, &[5e-5]);
        keep(&mut page, loss::ROW_BOTH, Figure::Loss, Peer::Qvs, &[2e-6]);
        keep(&mut page, loss::ROW_BOTH, Figure::Loss, Peer::Testpmd, &[1e-6]);
        assert_eq!(met(&page, loss::ROW), Some(true));
        assert_eq!(met(&page, &format!("{}, offered to both, to testpmd io", loss::ROW_BOTH)), Some(false));
    }

    #[test]
    fn what_testpmd_loses_of_our_highest_rate_excuses_no_loss_of_ours() {
        let mut page = Page::default();
        keep(&mut page, loss::ROW, Figure::Loss, Peer::Qvs, &[2e-4]);
        keep(&mut page, loss::ROW, Figure::Loss, Peer::Testpmd, &[0.5]);
        assert_eq!(met(&page, loss::ROW), Some(false));
        assert_eq!(met(&page, &format!("{}, offered to both, to testpmd io", loss::ROW_BOTH)), None);
    }

    #[test]
    fn no_loss_of_a_rate_that_was_not_offered_meets_no_bar() {
        let met_with = |offered: &[f64]| {
            let mut page = Page::default();
            keep(&mut page, loss::ROW, Figure::Loss, Peer::Qvs, &[0.0]);
            keep(&mut page, loss::ROW, Figure::Offered, Peer::Qvs, offered);
            met(&page, loss::ROW)
        };
        assert_eq!(met_with(&[0.4, 0.98, 1.0]), Some(true), "the median counts");
        assert_eq!(met_with(&[0.4, 0.96, 1.0]), Some(false));
        assert_eq!(met_with(&[]), Some(false));
    }
}
