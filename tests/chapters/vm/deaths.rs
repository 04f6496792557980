//! A switch that is killed again and again under a guest with split rings, while numbered frames go both ways through it.
//!
//! The guest has two devices in one network, and in it `pktgen` sends from each to the other and counts what comes. It keeps a
//! frame that its device has no room for, so what the rings hold while no switch runs is late and not lost. QEMU knows no
//! better than the used index where a ring stands. What a switch that lives drops, because a ring is full or the other device
//! is not back yet, it counts; all else that is lost or comes twice is a death's doing, and that may be a batch a queue.
//! In that is what QEMU throws away itself: what its guest sends from the end of a session until it sees its carrier go,
//! some ten milliseconds; hence the low rate.

use super::BACK_LIMIT;
use serde_json::Value;
use std::time::Duration;
use switch::batch::BURST;
use tests::daemon::Daemon;
use tests::generator::{self, count};
use tests::guest::{Extras, Guest, Nic, QemuRole};
use tests::ledger::Counters;
use tests::process::wait_until;

/// The devices, by their places in the guest.
const DEVICES: [&str; 2] = ["a", "b"];
/// Frames that must have come out of both devices' rings before each death: some deaths fall into what had waited, some into
/// what comes just now.
const BEFORE_DEATH: [u64; 4] = [1, 150, 30, 250];
/// How long the guest sends around each death: what waited meanwhile must have time to come.
const SENDING_S: u64 = 5;
/// Longest wait for the end of what the guest sends.
const END_LIMIT: Duration = Duration::from_secs(60);
/// Frames that leave each device back to back at the end: nearly as many as a ring has buffers, fewer only by those that a
/// driver may not have given back yet.
const TRAIN: u64 = 200;

/// Frames that a switch took of one device and dropped itself, before it gave them to the other.
fn dropped(counters: &Counters) -> [u64; 2] {
    let [a, b] = DEVICES;
    [(a, b), (b, a)].map(|(from, to)| counters.drops(&format!("{from}.rx")) + counters.drops(&format!("{to}.tx")))
}

/// Waits for the end of `pktgen` in the guest; answers what it said.
fn report(guest: &mut Guest) -> Value {
    // It looks itself: a command of ours for each look would take the CPU that it sends with.
    let ended = guest.run_within(END_LIMIT, "while [ ! -e /tmp/ended ]; do sleep 0.2; done; rm /tmp/ended");
    assert_eq!(ended.status, 0, "{}", ended.text);
    let text = guest.must("cat /tmp/report");
    let report = serde_json::from_str(&text);
    let report: Value = report.unwrap_or_else(|error| panic!("{error}: {text} {}", guest.must("cat /tmp/errors")));
    let strange = ["overflowed", "beyond_window", "misdelivered"].map(|name| count(&report, name));
    assert_eq!(strange, [0; 3], "{report:#}");
    report
}

#[test]
fn a_death_of_the_switch_costs_a_guests_split_rings_a_batch_a_queue_at_most_and_no_buffer() {
    let mut daemon = Daemon::start("");
    let red = daemon.tenant("red");
    let network = red.network("lan");
    // One of each role on the socket.
    let roles = [(QemuRole::Client, "server"), (QemuRole::Server, "client")];
    let nics: [Nic; 2] = std::array::from_fn(|at| {
        let (name, (role, ours)) = (DEVICES[at], roles[at]);
        let socket = daemon.path(name);
        daemon.must(&format!("plug {name} --vhost-user {} --role {ours}", socket.display()));
        red.attached_port(&network, name);
        Nic { socket, role, mac: format!("02:00:00:00:00:0{name}") }
    });
    let pktgen = generator::program();
    let extras = Extras { programs: vec![pktgen.to_owned()], ..Extras::default() };
    let mut guest = Guest::start_with("guest", &nics, &extras).ready();
    daemon.wait_up(&DEVICES);
    for device in ["eth0", "eth1"] {
        // Nothing but frames of the test.
        guest.must(&format!("echo 1 > /proc/sys/net/ipv6/conf/{device}/disable_ipv6; ip link set {device} up"));
        assert_eq!(guest.must(&format!("cut -c 35 /sys/class/net/{device}/device/features")).trim(), "0", "not packed");
    }
    let load = format!("{} packet:eth0 packet:eth1 --warm-up 0 --macs 4 --quiet --json", pktgen.display());
    let send = |guest: &mut Guest, more: &str| {
        guest.must(&format!("({load} {more} >/tmp/report 2>/tmp/errors; echo >/tmp/ended) & true"));
    };

    for wanted in BEFORE_DEATH {
        let before = Counters::read(&daemon);
        send(&mut guest, &format!("--rate 250pps --train 8 --seconds {SENDING_S}"));
        wait_until("frames go both ways", BACK_LIMIT, || {
            let counters = Counters::read(&daemon);
            DEVICES.iter().all(|name| counters.grown(&before, &format!("{name}.tx.packets")) >= wanted)
        });
        let [[a, b], [a_before, b_before]] = [dropped(&Counters::read(&daemon)), dropped(&before)];
        daemon.kill();
        daemon.start_again();
        let report = report(&mut guest);
        let after = dropped(&Counters::read(&daemon));
        let drops = [a - a_before + after[0], b - b_before + after[1]];
        for (stream, dropped) in report["streams"].as_array().unwrap().iter().zip(drops) {
            let [sent, lost, doubled] = ["sent", "lost", "duplicated"].map(|name| count(stream, name));
            println!("a death: {sent} sent, {lost} lost of which {dropped} dropped by a switch, {doubled} doubled");
            assert!(sent > 400, "{stream:#}");
            assert!(lost.saturating_sub(dropped) <= BURST as u64 && doubled <= BURST as u64, "{stream:#} {drops:?}");
        }
    }

    // Every buffer of every ring is there: each has 256, nearly all of which are needed at once.
    let before = dropped(&Counters::read(&daemon));
    send(&mut guest, &format!("--rate 500pps --train {TRAIN} --burst {TRAIN} --seconds 4"));
    let report = report(&mut guest);
    for stream in report["streams"].as_array().unwrap() {
        assert!(count(stream, "sent") >= 8 * TRAIN, "{report:#}");
        assert_eq!((count(stream, "lost"), count(stream, "duplicated")), (0, 0), "{report:#}");
    }
    assert_eq!(dropped(&Counters::read(&daemon)), before, "none found a ring full");
    let complaints = guest.run("dmesg | grep virtio");
    assert!(!complaints.text.contains("is not a head"), "a buffer came back twice: {}", complaints.text);
}
