//! Several workers: who polls what, and queues that move from one to another under traffic.
//!
//! Guests are played by `pktgen`: four of them in two pairs, of each of which the first sends to the second. Queues are
//! dealt out in turn, so both senders are with the first worker.

use super::SOON;
use serde_json::Value;
use tests::daemon::{Daemon, allowed_cpus};
use tests::generator::{Running, count};
use tests::ledger::Counters;
use tests::process::wait_until;

const GUESTS: [&str; 4] = ["a", "b", "c", "d"];

/// A daemon with two workers and the sockets of four guests on one network.
fn two_workers(settings: &str) -> (Daemon, String) {
    let cpus = allowed_cpus();
    assert!(cpus.len() >= 2, "two workers need two CPUs, here are {cpus:?}");
    let daemon = Daemon::start_on(&cpus[cpus.len() - 2..], settings);
    let tenant = daemon.tenant("red");
    let network = tenant.network("lan");
    for name in GUESTS {
        daemon.must(&format!("plug {name} --vhost-user {}", daemon.path(name).display()));
        tenant.attached_port(&network, name);
    }
    daemon.wait_up(&GUESTS);
    let sockets = GUESTS.map(|name| daemon.path(name).display().to_string());
    (daemon, sockets.join(" "))
}

/// Which worker polls the one queue of a guest; `None` if none does.
fn worker_of(daemon: &Daemon, guest: &str) -> Option<u64> {
    let workers = daemon.show("workers");
    let row = workers.as_array().unwrap().iter().find(|row| {
        let queues = row["queues"].as_array().unwrap();
        queues.iter().any(|queue| queue["interface"] == guest)
    });
    row.map(|row| row["worker"].as_u64().unwrap())
}

/// Share of the last second that a guest's queue took.
fn busy(daemon: &Daemon, guest: &str) -> f64 {
    let workers = daemon.show("workers");
    let queues = workers.as_array().unwrap().iter().flat_map(|row| row["queues"].as_array().unwrap());
    queues.filter(|queue| queue["interface"] == guest).map(|queue| queue["busy"].as_f64().unwrap()).sum()
}

fn moves(daemon: &Daemon, command: &str) -> Vec<Value> {
    let told: Value = serde_json::from_str(&daemon.must(command)).unwrap();
    told["moves"].as_array().unwrap().clone()
}

#[test]
fn queues_move_to_an_idle_worker_when_asked_and_no_frame_is_lost_or_overtaken() {
    let (daemon, sockets) = two_workers("");
    let mut pktgen = Running::start(&format!("{sockets} --one-way --rate 40kpps --macs 20 --seconds 15"));
    wait_until("both senders are measured", SOON, || busy(&daemon, "a") > 0.0 && busy(&daemon, "c") > 0.0);
    assert_eq!((worker_of(&daemon, "a"), worker_of(&daemon, "c")), (Some(0), Some(0)), "{:#}", daemon.show("workers"));
    // What is only asked for changes nothing.
    let planned = moves(&daemon, "rebalance --dry-run --json");
    assert_eq!(planned.len(), 1, "{planned:?}");
    assert_eq!((worker_of(&daemon, "a"), worker_of(&daemon, "c")), (Some(0), Some(0)));

    let before = Counters::read(&daemon);
    let moved = moves(&daemon, "rebalance --json");
    assert_eq!(moved.len(), 1, "{moved:?}");
    let guest = moved[0]["interface"].as_str().unwrap();
    assert!(["a", "c"].contains(&guest) && moved[0]["from"] == 0 && moved[0]["to"] == 1, "{moved:?}");
    assert_eq!(worker_of(&daemon, guest), Some(1));
    assert!(moves(&daemon, "rebalance --json").is_empty(), "what is even stays");
    assert!(!pktgen.has_ended(), "all that was under traffic");

    let report = pktgen.report();
    for fault in ["lost", "reordered", "duplicated", "misdelivered"] {
        assert_eq!(count(&report, fault), 0, "{fault}: {report:#}");
    }
    // On a busy machine far fewer are sent than asked for.
    assert!(count(&report, "received") > 50_000, "{report:#}");
    let drops: Vec<_> = Counters::read(&daemon).changes(&before);
    assert!(!drops.iter().any(|change| change.contains(".drops.")), "{drops:?}");
    assert!(daemon.log_tail().contains("a queue moved to another worker"), "{}", daemon.log_tail());
    let metrics = daemon.metrics();
    assert!(metrics.contains("\nqvs_queue_moves_total 1\n"), "{metrics}");
}

#[test]
fn a_load_that_stays_uneven_is_evened_out_where_the_settings_want_it() {
    let (daemon, sockets) = two_workers("rebalance = true");
    let before = Counters::read(&daemon);
    // From the first frame on, so that what pktgen misses and what the switch dropped can be compared. As much as goes, in frames
    // of which the worker copies 64 KB each and the sender writes only the heads: it is busy even where it has half a CPU.
    let mut pktgen = Running::start(&format!("{sockets} --one-way --macs 20 --tso --warm-up 0 --seconds 12"));
    wait_until("a sender is with each worker", 2 * SOON, || {
        assert!(!pktgen.has_ended(), "{:#}\n{}", daemon.show("workers"), daemon.log_tail());
        let workers = [worker_of(&daemon, "a"), worker_of(&daemon, "c")];
        workers.contains(&Some(0)) && workers.contains(&Some(1))
    });
    let report = pktgen.report();
    for fault in ["reordered", "duplicated"] {
        assert_eq!(count(&report, fault), 0, "{fault}: {report:#}");
    }
    // Moving loses nothing: what did not arrive found its receiver's ring full, or in the hands of a worker that had lost its CPU,
    // and was counted there. So were copies of the first frames, which went to everybody.
    let after = Counters::read(&daemon);
    let reasons = ["rx_ring_full", "tx_contended"];
    let names = GUESTS.iter().flat_map(|name| reasons.map(|reason| format!("{name}.tx.drops.{reason}")));
    let dropped: u64 = names.map(|name| after.grown(&before, &name)).sum();
    let mut strange = after.strange_drops(&before);
    strange.retain(|drop| !drop.contains("tx_contended"));
    assert!(strange.is_empty(), "{strange:?}");
    let lost = count(&report, "lost");
    assert!((lost..lost + 1000).contains(&dropped), "{dropped} dropped: {report:#}");
}
