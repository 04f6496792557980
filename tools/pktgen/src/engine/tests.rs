//! The engine over memory that loses, repeats, reorders and changes frames as told.

use super::*;
use crate::link::memory::{Fate, MemoryLink, Mischief};
use crate::options::Arguments;
use clap::Parser;

/// A measurement of 20 ms over memory that does `mischief` to frames.
fn measured(words: &str, mischief: Mischief) -> Measured {
    measured_for(Duration::from_millis(20), words, mischief)
}

fn measured_for(time: Duration, words: &str, mischief: Mischief) -> Measured {
    let words = ["pktgen", "--ceiling", "--quiet"].into_iter().chain(words.split_whitespace());
    let arguments = Arguments::try_parse_from(words).unwrap();
    let plan = arguments.plan().unwrap();
    let links = MemoryLink::pair(plan.shape.size_max(), &plan.shape.filler, Some(mischief)).map(Link::Memory);
    let order = |stream| arguments.order_of(&plan, stream);
    let mut engine = Engine::new(links.into(), &plan.ways, &plan.shape, plan.manner, order);
    if arguments.ping_pong { engine.ping_pong(time) } else { engine.run(time) }.unwrap()
}

fn sums(measured: &Measured) -> Counts {
    let mut sums = Counts::default();
    for (_, _, counts) in &measured.streams {
        sums.received += counts.received;
        sums.missing += counts.missing;
        sums.reordered += counts.reordered;
        sums.duplicated += counts.duplicated;
    }
    sums
}

#[test]
fn what_arrives_is_what_was_sent_and_nothing_is_wrong_with_it() {
    for words in
        ["", "--rate 100kpps", "--frame-sizes 68,594,1518 --vlan 5 --verify", "--one-way --burst 1", "--ping-pong"]
    {
        let measured = measured(words, |_| Fate::Arrives);
        let sums = sums(&measured);
        assert!(measured.kept.sent > 0, "{words}");
        assert_eq!((measured.lost, sums.missing, sums.reordered, sums.duplicated), (0, 0, 0, 0), "{words}");
        assert_eq!(sums.received, measured.streams.iter().map(|(_, sent, _)| sent).sum::<u64>(), "{words}");
        let Totals { misdelivered, foreign, corrupted, announced, .. } = measured.totals;
        assert_eq!((misdelivered, foreign, corrupted, announced), (0, 0, 0, 0), "{words}");
    }
}

#[test]
fn a_measurement_may_end_with_its_last_window() {
    let measured = measured_for(Duration::from_nanos(WINDOW_NS), "", |_| Fate::Arrives);
    assert_eq!((measured.off_cpu.windows, measured.lost), (1, 0));
}

#[test]
fn every_frames_delay_and_its_variation_are_noted_where_windows_are_judged_too() {
    // Nothing counts as an interruption here, so that all windows count.
    for words in ["--rate 2Mpps", ""] {
        let words = format!("--latency all --one-way --discard-off-cpu --off-cpu-us 10000000 {words}");
        let measured = measured_for(Duration::from_millis(200), &words, |_| Fate::Arrives);
        let latency = measured.latency.unwrap();
        assert_eq!(latency.delay.samples, measured.kept.received, "{words}");
        // The first one has none before it.
        assert_eq!(latency.ipdv.unwrap().samples, measured.kept.received - 1, "{words}");
    }
    let disturbed = measured("--rate 2Mpps --discard-off-cpu --off-cpu-us 0", |_| Fate::Arrives);
    assert_eq!((disturbed.latency, disturbed.kept), (None, Tally::default()));
}

#[test]
fn each_tenth_frame_lost_is_a_loss_of_a_tenth() {
    let measured = measured("--one-way", |number| if number % 10 == 3 { Fate::IsLost } else { Fate::Arrives });
    let sent = measured.kept.sent;
    assert!(measured.lost.abs_diff(sent / 10) <= 1, "{} of {sent}", measured.lost);
    assert_eq!(sums(&measured).received, sent - measured.lost);
}

#[test]
fn each_tenth_frame_twice_is_a_duplicate_and_no_loss() {
    let measured = measured("--one-way", |number| if number % 10 == 3 { Fate::Doubles } else { Fate::Arrives });
    assert!(sums(&measured).duplicated.abs_diff(measured.kept.sent / 10) <= 1);
    assert_eq!((measured.lost, sums(&measured).reordered), (0, 0));
}

#[test]
fn a_frame_overtaken_by_the_next_is_reordered_and_not_lost() {
    let overtaken = |number| if number % 10 == 3 { Fate::IsOvertaken } else { Fate::Arrives };
    let measured = measured("--one-way", overtaken);
    let expected = measured.kept.sent / 10;
    // The last of a burst has nobody to overtake it.
    assert!((expected / 4..=expected + 1).contains(&sums(&measured).reordered), "{measured:?}");
    assert_eq!((measured.lost, sums(&measured).duplicated), (0, 0));
}

#[test]
fn a_changed_byte_is_noticed_where_payloads_are_looked_at() {
    let corrupted = |number| if number % 10 == 3 { Fate::IsCorrupted } else { Fate::Arrives };
    let watched = measured("--one-way --size 100 --verify", corrupted);
    assert!(watched.totals.corrupted.abs_diff(watched.kept.sent / 10) <= 1);
    assert_eq!(measured("--one-way --size 100", corrupted).totals.corrupted, 0);
}
