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
use std::time::{Duration, Instant};
use switch::batch::BURST;
use tests::daemon::Daemon;
use tests::generator::{self, count};
use tests::guest::{Extras, Guest, Nic, QemuRole};
use tests::ledger::Counters;
use tests::process::wait_until;

/// The devices, by their places in the guest.
const DEVICES: [&str; 2] = ["a", "b"];
/// Frames that must have come out of both devices' rings before the next death, in turns: some deaths fall into what had
/// waited, some into what comes just now.
const BETWEEN_DEATHS: [u64; 4] = [1, 300, 60, 500];
/// How long the guest sends, and until when the switch dies: the last one must have time to come back.
const SENDING_S: u64 = 26;
const DYING: Duration = Duration::from_secs(15);

/// Frames that a switch took of one device and dropped itself, before it gave them to the other.
fn dropped(counters: &Counters) -> [u64; 2] {
    let [a, b] = DEVICES;
    [(a, b), (b, a)].map(|(from, to)| counters.drops(&format!("{from}.rx")) + counters.drops(&format!("{to}.tx")))
}

/// What `pktgen` of the guest said.
fn report(guest: &mut Guest, name: &str) -> Value {
    let text = guest.must(&format!("cat /tmp/{name}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text} {}", guest.must("cat /tmp/errors")))
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
    let load = format!("{} packet:eth0 packet:eth1 --rate 500pps --train 16 --macs 4 --quiet --json", pktgen.display());
    guest.must(&format!("({load} --seconds {SENDING_S} >/tmp/report 2>/tmp/errors; echo >/tmp/ended) & true"));

    let begun = Instant::now();
    let (mut deaths, mut drops) = (0, [0; 2]);
    for wanted in BETWEEN_DEATHS.into_iter().cycle() {
        wait_until("frames go both ways", BACK_LIMIT, || {
            let counters = Counters::read(&daemon);
            DEVICES.iter().all(|name| counters.get(&format!("{name}.tx.packets")) >= wanted)
        });
        if begun.elapsed() > DYING {
            break;
        }
        let of_life = dropped(&Counters::read(&daemon));
        daemon.kill();
        daemon.start_again();
        deaths += 1;
        drops = [drops[0] + of_life[0], drops[1] + of_life[1]];
    }
    wait_until("the guest has sent all", Duration::from_secs(2 * SENDING_S), || {
        guest.run("test -e /tmp/ended").status == 0
    });
    let of_life = dropped(&Counters::read(&daemon));
    drops = [drops[0] + of_life[0], drops[1] + of_life[1]];
    let report = report(&mut guest, "report");
    assert!(deaths > 1, "{deaths} deaths");
    let strange = ["overflowed", "beyond_window", "misdelivered"].map(|name| count(&report, name));
    assert_eq!(strange, [0; 3], "{report:#}");
    let bound = deaths * 2 * BURST as u64;
    for (stream, dropped) in report["streams"].as_array().unwrap().iter().zip(drops) {
        let [sent, lost, doubled] = ["sent", "lost", "duplicated"].map(|name| count(stream, name));
        println!("{deaths} deaths: {sent} sent, {lost} lost of which {dropped} dropped by a switch, {doubled} doubled");
        assert!(sent > 5_000 && lost.saturating_sub(dropped) <= bound && doubled <= bound, "{stream:#} {drops:?}");
    }

    // Every buffer of every ring is there: each has 256, and of thousands none is missing.
    let before = dropped(&Counters::read(&daemon));
    guest.must(&format!("{load} --seconds 5 >/tmp/after 2>/tmp/errors"));
    let after = dropped(&Counters::read(&daemon));
    let report = self::report(&mut guest, "after");
    for (at, stream) in report["streams"].as_array().unwrap().iter().enumerate() {
        assert!(count(stream, "sent") > 4 * 256, "{report:#}");
        assert_eq!((count(stream, "lost"), count(stream, "duplicated")), (after[at] - before[at], 0), "{report:#}");
    }
    let complaints = guest.run("dmesg | grep virtio");
    assert!(!complaints.text.contains("is not a head"), "a buffer came back twice: {}", complaints.text);
}
