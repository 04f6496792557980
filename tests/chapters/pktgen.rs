//! The load generator against the real daemon: over every kind of port it finds nothing wrong where nothing is, and where a
//! relay on the way drops, repeats, reorders and leaks frames, it finds just those.

use crate::topology::TwoTenants;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use switch::af_packet::RawSocket;
use switch::{netns, tap};
use tests::daemon::Daemon;
use tests::generator::{count, program, run};
use tests::ledger::Counters;
use tests::namespace::{Namespace, ip};
use tests::process::{TempDir, repository, wait_until};

/// What must all be zero where nothing is wrong.
const FAULTS: [&str; 7] =
    ["lost", "overflowed", "reordered", "duplicated", "beyond_window", "misdelivered", "corrupted"];
const PATIENCE: Duration = Duration::from_secs(10);

/// Fails unless frames were sent, and each arrived once, in order, unchanged and where it belongs.
fn assert_flawless(report: &Value) {
    assert!(count(report, "sent") > 0, "{report:#}");
    let faults: Vec<_> = FAULTS.iter().filter(|&&fault| count(report, fault) > 0).collect();
    assert!(faults.is_empty(), "{faults:?} {report:#}");
    for stream in report["streams"].as_array().unwrap() {
        assert_eq!(count(stream, "arrived"), count(stream, "sent"), "{report:#}");
    }
}

#[test]
fn guests_and_host_processes_of_two_networks_lose_nothing_at_a_low_rate() {
    let world = TwoTenants::new();
    for (name, tenant, network) in
        [("red-v", &world.red, &world.red_network), ("blue-v", &world.blue, &world.blue_network)]
    {
        world.daemon.must(&format!("plug {name} --vhost-user {}", world.daemon.path(name).display()));
        tenant.attached_port(network, name);
    }
    let sockets = ["red-v", "blue-v"].map(|name| world.daemon.path(name).display().to_string());
    wait_until("the sockets are there", PATIENCE, || sockets.iter().all(|path| std::fs::exists(path).unwrap()));
    let [red, blue] = sockets;
    // A guest and a process of either network to each other.
    let ports = format!("{red} packet:red-1/tap0 {blue} packet:blue-1/tap0");
    for load in ["--frame-sizes 64,512,1518", "--size 200 --train 8 --order random", "--size 300 --vlan 7:3"] {
        assert_flawless(&run(&format!("{ports} {load} --macs 10 --rate 1kpps --seconds 1 --verify")));
    }
    // Large frames arrive as they were sent, uncut.
    assert_flawless(&run(&format!("{ports} --tso --macs 10 --rate 200pps --seconds 1 --verify")));
}

#[test]
fn host_processes_of_two_networks_lose_nothing_at_a_low_rate() {
    let _world = TwoTenants::new();
    let ports = "packet:red-1/tap0 packet:red-2/tap0 packet:blue-1/tap0 packet:blue-2/tap0";
    // More stations are sent to than send: frames to the others are floods.
    assert_flawless(&run(&format!("{ports} --source-macs 5 --destination-macs 20 --rate 1kpps --seconds 1 --verify")));
}

#[test]
fn every_guest_of_a_network_reaches_every_other() {
    let daemon = Daemon::start("");
    let tenant = daemon.tenant("t");
    let network = tenant.network("lan");
    let names = ["a", "b", "c"];
    let sockets = names.map(|name| daemon.path(name).display().to_string());
    for (name, socket) in names.iter().zip(&sockets) {
        daemon.must(&format!("plug {name} --vhost-user {socket}"));
        tenant.attached_port(&network, name);
    }
    daemon.wait_up(&names);
    let ports = sockets.join(" ");
    let report = run(&format!("{ports} --pattern mesh --macs 10 --rate 500pps --seconds 1 --verify"));
    assert_flawless(&report);
    assert_eq!(report["streams"].as_array().unwrap().len(), 6);
    // Who never sends is announced, and so the first frame to it is no flood.
    let report = run(&format!("{ports} --pattern fan-in --macs 10 --rate 500pps --seconds 1 --warm-up 0 --verify"));
    assert_flawless(&report);
    let report = run(&format!("{ports} --pattern fan-in --macs 10 --seconds 0.2"));
    assert!(count(&report, "received") > 0 && count(&report, "misdelivered") == 0, "{report:#}");
}

#[test]
fn a_run_whose_switch_dies_fails_and_says_why() {
    let mut daemon = Daemon::start("");
    let tenant = daemon.tenant("t");
    let network = tenant.network("lan");
    let sockets = ["a", "b"].map(|name| daemon.path(name).display().to_string());
    for (name, socket) in ["a", "b"].iter().zip(&sockets) {
        daemon.must(&format!("plug {name} --vhost-user {socket}"));
        tenant.attached_port(&network, name);
    }
    daemon.wait_up(&["a", "b"]);
    let mut generator = Command::new(program());
    generator.args(&sockets).args("--rate 10kpps --seconds 20 --cpu 0 --quiet --json".split(' '));
    let generator = generator.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("frames arrive", PATIENCE, || daemon.interface("a")["tx"]["packets"].as_u64() > Some(1000));
    daemon.kill();
    let output = generator.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(told.contains("the switch closed the connection"), "{told}");
}

#[test]
fn a_guest_and_another_host_behind_a_vhost_user_uplink_lose_nothing() {
    let dir = TempDir::new();
    let nic = dir.join("nic").display().to_string();
    let daemon = Daemon::start(&format!(
        "[[uplink]]\nphysical_network = \"physnet1\"\nvhost_user = \"{nic}\"\nrole = \"server\"\n\
         address = \"172.16.0.1/24\"\nmac = \"02:00:00:00:00:01\"\n\
         neighbours = {{ \"172.16.0.2\" = \"02:00:00:00:00:02\" }}\n\
         [tunnel]\nlocal_ip = \"172.16.0.1\"\npeers = [\"172.16.0.2\"]\n\
         [segments]\ndefault = \"vxlan\"\nvni = \"5000-5009\"\n"
    ));
    let tenant = daemon.tenant("t");
    let network = tenant.network("lan");
    let guest = daemon.path("guest").display().to_string();
    daemon.must(&format!("plug guest --vhost-user {guest}"));
    tenant.attached_port(&network, "guest");
    daemon.wait_up(&["guest"]);
    wait_until("the socket of the uplink is there", PATIENCE, || std::fs::exists(&nic).unwrap());
    let host = "--vxlan 1=5000,02:00:00:00:00:02/172.16.0.2,02:00:00:00:00:01/172.16.0.1";
    // Stations that are sent to and never send would be flooded for, which is no fault either.
    for load in ["--size 60 --macs 100", "--frame-sizes 72,594,1468 --macs 10", "--size 300 --vlan 7 --macs 10"] {
        let report = run(&format!("{guest} {nic} {host} {load} --rate 1kpps --seconds 1 --verify"));
        assert_flawless(&report);
        assert_eq!(report["streams"].as_array().unwrap().len(), 2, "both ways");
    }
    // Of a network that is not there.
    let other = host.replace("5000", "5001");
    let report = run(&format!("{guest} {nic} {other} --rate 1kpps --seconds 0.5 --warm-up 0"));
    let streams = report["streams"].as_array().unwrap();
    assert_eq!(count(&streams[1], "arrived"), 0, "{report:#}");
}

#[test]
fn a_tap_of_the_generator_behind_a_bridge_reaches_a_guest() {
    let daemon = Daemon::start("");
    let tenant = daemon.tenant("t");
    let network = tenant.network("lan");
    let host = Namespace::new("host");
    let guest = daemon.path("guest").display().to_string();
    daemon.must("plug host --tap tap0 --netns host");
    daemon.must(&format!("plug guest --vhost-user {guest}"));
    for name in ["host", "guest"] {
        tenant.attached_port(&network, name);
    }
    daemon.wait_up(&["host", "guest"]);
    host.must("ip link add br0 type bridge && ip link set br0 up && ip link set tap0 master br0");
    let report = thread::scope(|scope| {
        let line = format!("tap:host/gen {guest} --macs 10 --rate 1kpps --seconds 1 --warm-up 8 --verify");
        let generator = scope.spawn(move || run(&line));
        wait_until("the TAP joins the bridge", PATIENCE, || host.run("ip link set gen master br0").status.success());
        generator.join().unwrap()
    });
    assert_flawless(&report);
    assert!(!host.run("ip link show dev gen").status.success(), "it goes with the generator");
}

/// What a relay did.
#[derive(Default, Debug)]
struct Deeds {
    passed: u64,
    dropped: u64,
    doubled: u64,
    overtaken: u64,
    leaked: u64,
}

/// Takes frames from a TAP and sends them by `right`; of every ten it drops one, repeats one, lets one be overtaken by the next
/// and sends one by `wrong` as well.
fn relay(wire: impl AsFd, right: &RawSocket, wrong: &RawSocket, is_over: &AtomicBool) -> Deeds {
    const HEADER: usize = 12;
    const IPV4: [u8; 2] = [8, 0];
    let mut deeds = Deeds::default();
    let mut buffer = [0; 2048];
    let mut held: Option<Vec<u8>> = None;
    loop {
        let Ok(len) = rustix::io::read(&wire, &mut buffer) else {
            if is_over.load(Ordering::Relaxed) {
                assert!(held.is_none() || deeds.passed % 10 == 8, "only the last frame is held back");
                deeds.dropped += u64::from(held.is_some());
                return deeds;
            }
            // Comes back in time to look whether all is over.
            let timeout = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
            poll(&mut [PollFd::new(&wire, PollFlags::IN)], Some(&timeout)).unwrap();
            continue;
        };
        let frame = &buffer[HEADER..len];
        if frame[12..14] != IPV4 {
            continue;
        }
        let number = deeds.passed % 10;
        deeds.passed += 1;
        match number {
            3 => deeds.dropped += 1,
            5 => {
                right.send(frame).unwrap();
                right.send(frame).unwrap();
                deeds.doubled += 1;
            }
            7 => held = Some(frame.to_vec()),
            9 => {
                right.send(frame).unwrap();
                wrong.send(frame).unwrap();
                deeds.leaked += 1;
            }
            _ => {
                right.send(frame).unwrap();
                if let Some(late) = held.take() {
                    right.send(&late).unwrap();
                    deeds.overtaken += 1;
                }
            }
        }
    }
}

#[test]
fn what_a_relay_drops_repeats_reorders_and_leaks_is_counted_as_that() {
    let world = TwoTenants::new();
    let _gen = Namespace::new("gen");
    let inside = netns::open("gen").unwrap();
    let wire = tap::open_transient("t0", Some(inside.as_fd()), 1500).unwrap();
    let socket = |name: &str| world.namespace(name).inside(|| RawSocket::open("tap0").unwrap());
    let (right, wrong) = (socket("red-1"), socket("blue-1"));
    let is_over = AtomicBool::new(false);
    let (report, deeds) = thread::scope(|scope| {
        let relay = scope.spawn(|| relay(&wire, &right, &wrong, &is_over));
        // Stream 0 goes through the relay and red's network; stream 1 stays in blue's, where the leaks come out.
        let ports = "packet:gen/t0 packet:red-2/tap0 packet:blue-1/tap0 packet:blue-2/tap0";
        let report = run(&format!("{ports} --one-way --macs 1 --rate 1kpps --seconds 1 --warm-up 0 --verify"));
        is_over.store(true, Ordering::Relaxed);
        (report, relay.join().unwrap())
    });
    let stream = &report["streams"][0];
    assert_eq!(count(stream, "sent"), deeds.passed, "{report:#} {deeds:?}");
    assert!(deeds.passed > 20, "{deeds:?}");
    assert_eq!(count(stream, "lost"), deeds.dropped, "{report:#} {deeds:?}");
    assert_eq!(count(stream, "duplicated"), deeds.doubled, "{report:#} {deeds:?}");
    assert_eq!(count(stream, "reordered"), deeds.overtaken, "{report:#} {deeds:?}");
    assert_eq!(count(&report, "misdelivered"), deeds.leaked, "{report:#} {deeds:?}");
    let bystander = &report["streams"][1];
    assert_eq!(count(bystander, "lost") + count(bystander, "duplicated") + count(bystander, "reordered"), 0);
    assert_eq!((count(&report, "corrupted"), count(&report, "overflowed")), (0, 0), "{report:#}");
}

#[test]
fn by_af_xdp_containers_lose_nothing_at_a_low_rate_and_have_their_interface_back_afterwards() {
    let daemon = Daemon::start("");
    let tenant = daemon.tenant("red");
    let network = tenant.network("lan");
    let spaces = ["one", "two"].map(Namespace::new);
    for (space, address) in spaces.iter().zip(["10.0.0.1/24", "10.0.0.2/24"]) {
        let name = space.name();
        ip(&format!("link add gen-{name} type veth peer name eth0 netns {name}"));
        ip(&format!("link set gen-{name} up"));
        space.must("ip link set eth0 up");
        space.address("eth0", address);
        daemon.must(&format!("plug {name} --device gen-{name} --driver af_xdp"));
        tenant.attached_port(&network, name);
    }
    daemon.wait_up(&["one", "two"]);
    assert!(spaces[0].pings_within("10.0.0.2", PATIENCE), "{}", daemon.log_tail());
    for load in ["--frame-sizes 64,512,1518", "--size 300 --vlan 7:3 --train 8"] {
        let report = run(&format!("xdp:one/eth0 xdp:two/eth0 {load} --macs 10 --rate 1kpps --seconds 1 --verify"));
        assert_flawless(&report);
        assert_eq!(report["agreed"][0], json!({"kind": "xdp", "mode": "native, copy"}), "{report:#}");
    }
    assert!(spaces[0].pings_within("10.0.0.2", PATIENCE), "{}", daemon.log_tail());
    spaces.iter().for_each(|space| ip(&format!("link del gen-{}", space.name())));
}

#[test]
fn recipes_say_how_they_are_used_and_what_they_miss() {
    let run = |line: &str| {
        let mut words = line.split(' ');
        let script = repository().join("tools/pktgen/recipes").join(words.next().unwrap());
        let output = Command::new(script).args(words).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for name in ["testpmd.sh", "pktgen-dpdk.sh"] {
        let (code, text) = run(&format!("{name} only-one"));
        assert!(code == Some(2) && text.contains(&format!("{name} SOCKET SOCKET")), "{code:?} {text}");
        let (code, text) = run(&format!("{name} /nowhere/a /nowhere/b"));
        assert!(code == Some(3) && (text.contains("is missing") || text.contains("no socket")), "{code:?} {text}");
    }
    let (code, text) = run("kernel-pktgen.sh one two three four");
    assert!(code == Some(2) && text.contains("INTERFACE"), "{code:?} {text}");
    let (code, text) = run("kernel-pktgen.sh");
    assert!(code == Some(0) || (code == Some(3) && text.contains("no module pktgen")), "{code:?} {text}");
}

#[test]
fn the_recipe_for_testpmd_runs_as_it_stands_against_two_ports() {
    let daemon = Daemon::start("");
    let tenant = daemon.tenant("t");
    let network = tenant.network("lan");
    let sockets = ["a", "b"].map(|name| daemon.path(name));
    for (name, socket) in ["a", "b"].iter().zip(&sockets) {
        daemon.must(&format!("plug {name} --vhost-user {}", socket.display()));
        tenant.attached_port(&network, name);
    }
    daemon.wait_up(&["a", "b"]);
    let script = repository().join("tools/pktgen/recipes/testpmd.sh");
    let output = Command::new(script).args(&sockets).arg("1").output().unwrap();
    let [text, error] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert_eq!(output.status.code(), Some(0), "{text}{error}");
    assert!(text.contains("NIC statistics for port 0") && text.contains("NIC statistics for port 1"), "{text}");
    let counters = Counters::read(&daemon);
    for name in ["a", "b"] {
        let counted = |way: &str| counters.get(&format!("{name}.{way}.packets"));
        assert!(counted("rx") > 1000 && counted("tx") > 1000, "{name}: {text}");
    }
}
