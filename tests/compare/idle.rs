//! What an idle switch costs, and one with little to do: two idle guests and two TAPs on one adaptive worker. And what TAPs
//! that nobody uses cost a pair of guests beside them.

use crate::alternate::ratio;
use crate::generator;
use crate::guests::cpu_seconds;
use crate::options::Options;
use crate::peers::{End, Peer, Switch};
use crate::report::{Page, Sample, load};
use crate::vhost::SMALL;
use std::time::{Duration, Instant};
use switch::af_packet::RawSocket;
use tests::daemon::Daemon;
use tests::guest::{Guest, Nic, QemuRole};
use tests::namespace::Namespace;

/// Quiet time before the idle minute begins.
const SETTLE: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(60);
/// Frames sent at the slow rate, one a millisecond.
const FRAMES: usize = 10_000;
/// TAPs that nobody uses.
const TAPS: usize = 64;

/// The tables of what idling costs.
pub(crate) fn measure(page: &mut Page, options: &Options) {
    idle_switch(page);
    idle_taps(page, options);
}

fn idle_switch(page: &mut Page) {
    page.table(
        "Idle, and at 1,000 frames a second",
        "Two idle Linux guests and two TAPs, `poll = \"adaptive\"`, all threads of the daemon; then 1,000 frames a second \
         from one TAP to the other. The latency is from the send call in one namespace to the receive call in the \
         other, kernel included.",
        "| what | value | load |",
    );
    let daemon = Daemon::start("");
    let tenant = daemon.tenant("compare");
    let network = tenant.network("lan");
    let mut nics = Vec::new();
    for (number, name) in ["g1", "g2"].into_iter().enumerate() {
        let socket = daemon.path(name);
        daemon.must(&format!("plug {name} --vhost-user {}", socket.display()));
        tenant.attached_port(&network, name);
        nics.push([Nic { socket, role: QemuRole::Client, mac: format!("02:00:00:00:01:0{number}") }]);
    }
    let namespaces = [Namespace::new("idle-1"), Namespace::new("idle-2")];
    for (name, namespace) in ["t1", "t2"].into_iter().zip(&namespaces) {
        daemon.must(&format!("plug {name} --tap tap0 --netns {}", namespace.name()));
        tenant.attached_port(&network, name);
    }
    daemon.wait_up(&["g1", "g2", "t1", "t2"]);
    let mut guests = [Guest::boot("g1", &nics[0]), Guest::boot("g2", &nics[1])];
    for guest in &mut guests {
        guest.must("echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6; ip link set eth0 up");
    }
    for namespace in &namespaces {
        namespace.must("sysctl -qw net.ipv6.conf.tap0.disable_ipv6=1");
    }
    std::thread::sleep(SETTLE);
    let before = cpu_seconds(daemon.id());
    std::thread::sleep(IDLE);
    let share = (cpu_seconds(daemon.id()) - before) / IDLE.as_secs_f64();
    page.line(&format!("| idle for 60 s: part of a core | {:.2} % | {} |", share * 100.0, load()));

    let [sender, receiver] = [0, 1].map(|at: usize| namespaces[at].inside(|| RawSocket::open("tap0").expect("a TAP")));
    let mut latency = Sample::default();
    let before = cpu_seconds(daemon.id());
    let begin = Instant::now();
    let mut buffer = [0u8; 2048];
    for number in 0..FRAMES {
        let due = Duration::from_millis(number as u64);
        while begin.elapsed() < due {
            std::thread::sleep(due.saturating_sub(begin.elapsed()));
        }
        let mut frame = vec![0xffu8; 6];
        frame.extend([2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
        frame.extend((number as u32).to_be_bytes());
        frame.resize(60, 0);
        let sent = Instant::now();
        sender.send(&frame).expect("the TAP takes it");
        loop {
            let got = receiver.receive(&mut buffer, Duration::from_secs(1)).expect("the TAP is there");
            if got.is_some_and(|len| len >= 18 && buffer[14..18] == (number as u32).to_be_bytes()) {
                break;
            }
        }
        latency.add(sent.elapsed().as_secs_f64() * 1e6);
    }
    let share = (cpu_seconds(daemon.id()) - before) / begin.elapsed().as_secs_f64();
    page.line(&format!("| at 1,000 frames a second: part of a core | {:.2} % | {} |", share * 100.0, load()));
    for (name, part) in [("median", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
        page.line(&format!("| one way, {name}, microseconds | {:.1} | {} |", latency.quantile(part), load()));
    }
}

fn idle_taps(page: &mut Page, options: &Options) {
    page.table(
        &format!("A pair of guests beside {TAPS} idle TAPs"),
        &format!(
            "Frames of 64 bytes as above, {} alternations of {} s without the TAPs and with them, on one worker.",
            options.rounds, options.seconds
        ),
        "| without, million frames a second | with | ratio | load |",
    );
    let mut words = SMALL.words();
    words.extend(["--discard-off-cpu", "--seconds", &options.seconds.to_string()].map(str::to_owned));
    let switch = Switch::start(Peer::Qvs, [End::Vhost; 2]);
    let daemon = switch.daemon().expect("it is ours");
    let names: Vec<String> = (0..TAPS).map(|number| format!("idle-{number}")).collect();
    switch.resume();
    let tenant = daemon.tenant("idle");
    let network = tenant.network("idle");
    for name in &names {
        tenant.attached_port(&network, name);
    }
    let (mut samples, mut failures) = ([Sample::default(), Sample::default()], Vec::new());
    for round in 0..options.rounds {
        for (is_plugged, sample) in [false, true].into_iter().zip(&mut samples) {
            switch.resume();
            for name in &names {
                if is_plugged {
                    daemon.must(&format!("plug {name} --tap {name}"));
                } else if round > 0 {
                    daemon.must(&format!("unplug {name}"));
                }
            }
            if is_plugged {
                daemon.wait_up(&names.iter().map(String::as_str).collect::<Vec<_>>());
            }
            match generator::measure(&switch, &words) {
                Ok(report) => sample.add(report.figure("mpps")),
                Err(trouble) => {
                    sample.add_turn(None);
                    failures.push(format!("{} TAPs: {trouble}", if is_plugged { TAPS } else { 0 }));
                }
            }
        }
    }
    let [without, with] = &samples;
    let ratio = ratio(with, without);
    page.line(&format!("| {} | {} | {ratio} | {} |", without.brief(3), with.brief(3), load()));
    page.notes(&failures);
}
