//! The real daemon, commanded by the real API, with TAPs in real namespaces: what tenants of host processes see.

mod bond;
mod capture;
mod crowd;
mod device;
mod neighbours;
mod nova;
mod pairs;
mod rights;
mod store;
mod tap;
mod tenant;
mod trunk;
mod underlay;
mod uso;
mod workers;

use crate::topology::{TwoTenants, attached_tap};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};
use tests::chance::for_seeds;
use tests::daemon::Daemon;
use tests::http::Connection;
use tests::ledger::{Counters, expect};
use tests::namespace::Namespace;
use tests::process::{repository, wait_for, wait_until};

/// Longest time until traffic flows after a change; the daemon retries devices every second at the latest.
const SOON: Duration = Duration::from_secs(10);

#[test]
fn members_of_a_network_reach_each_other_under_overlapping_addresses() {
    let world = TwoTenants::new();
    for (from, to) in [("red-1", "10.0.0.2"), ("red-2", "10.0.0.1"), ("blue-1", "10.0.0.2"), ("blue-2", "10.0.0.1")] {
        assert!(world.namespace(from).pings_within(to, SOON), "{from} to {to}\n{}", world.daemon.log_tail());
    }
    // The same address is another machine in the other network.
    let before = Counters::read(&world.daemon);
    assert!(world.namespace("red-1").is_answered("10.0.0.2"));
    // An ARP question and its answer, an echo and its answer.
    expect(
        &world.daemon,
        &before,
        &["red-1.rx.packets +2", "red-1.tx.packets +2", "red-2.rx.packets +2", "red-2.tx.packets +2"],
    );
}

#[test]
fn another_network_sees_no_broadcast_no_unknown_unicast_and_no_forged_source() {
    let world = TwoTenants::new();
    assert!(world.namespace("red-1").pings_within("10.0.0.2", SOON));
    assert!(world.namespace("blue-1").pings_within("10.0.0.2", SOON));
    let red = world.namespace("red-1");
    let victim = world.namespace("blue-1").mac("tap0");

    // Neighbours known by now would be probed some seconds later.
    for name in ["red-1", "red-2", "blue-1", "blue-2"] {
        world.namespace(name).must("ip neigh flush all");
    }
    let ears = ["red-2", "blue-1", "blue-2"].map(|name| world.namespace(name).sniff());
    let before = Counters::read(&world.daemon);
    // A broadcast: nobody has this address, so the question is asked up to three times.
    red.run("busybox ping -c 1 -W 1 10.0.0.99");
    // An unknown unicast.
    red.must("ip neigh add 10.0.0.77 lladdr 02:00:00:00:00:77 dev tap0");
    red.run("busybox ping -c 1 -W 1 10.0.0.77");
    // Frames to a member of the other network, by its address.
    red.must(&format!("ip neigh add 10.0.0.78 lladdr {victim} dev tap0"));
    red.run("busybox ping -c 1 -W 1 10.0.0.78");
    // Frames from the address of a member of the other network.
    red.must(&format!("ip link set dev tap0 address {victim}"));
    red.run("busybox ping -c 1 -W 1 10.0.0.77");
    red.run("busybox ping -c 1 -W 1 10.0.0.98");
    let heard = ears.map(tests::namespace::Sniffer::stop);

    assert!(heard[0].len() >= 5, "a member of the network hears the floods, here {}", heard[0].len());
    assert!(heard[1].is_empty() && heard[2].is_empty(), "the other network heard {:?} {:?}", heard[1], heard[2]);
    let changes = Counters::read(&world.daemon).changes(&before);
    assert!(changes.iter().all(|change| change.starts_with("red-")), "{changes:?}");
    // And the victim still gets its own frames.
    assert!(world.namespace("blue-2").is_answered("10.0.0.1"));
}

#[test]
fn state_down_stops_traffic_and_active_resumes_it() {
    let world = TwoTenants::new();
    let (red_1, port) = (world.namespace("red-1"), world.port("red-1"));
    assert!(red_1.pings_within("10.0.0.2", SOON));

    world.red.set_state(&world.red_network, port, "DOWN");
    assert_eq!(world.red.op_status(&world.red_network, port), "DOWN");
    let before = Counters::read(&world.daemon);
    red_1.must("ip neigh replace 10.0.0.2 lladdr 02:00:00:00:00:02 dev tap0 nud reachable");
    red_1.run("busybox ping -c 1 -W 1 10.0.0.2");
    world.namespace("red-2").must("ip neigh replace 10.0.0.1 lladdr 02:00:00:00:00:01 dev tap0 nud reachable");
    world.namespace("red-2").run("busybox ping -c 1 -W 1 10.0.0.1");
    let after = Counters::read(&world.daemon);
    assert_eq!(after.grown(&before, "red-1.rx.drops.port_admin_down"), 1, "{:?}", after.changes(&before));
    assert_eq!(after.grown(&before, "red-1.tx.packets"), 0, "{:?}", after.changes(&before));
    assert_eq!(after.grown(&before, "red-2.tx.packets"), 0, "{:?}", after.changes(&before));
    assert!(red_1.run("ip link show dev tap0").status.success(), "the device stays");

    world.red.set_state(&world.red_network, port, "ACTIVE");
    assert!(red_1.pings_within("10.0.0.2", SOON));
    assert_eq!(world.red.op_status(&world.red_network, port), "UP");
}

#[test]
fn detaching_stops_traffic_and_leaves_the_manual_plug() {
    let world = TwoTenants::new();
    let red_1 = world.namespace("red-1");
    assert!(red_1.pings_within("10.0.0.2", SOON));
    world.red.detach(&world.red_network, world.port("red-1"));
    assert!(!red_1.pings("10.0.0.2"));
    let row = world.daemon.interface("red-1");
    assert_eq!((&row["network"], &row["kind"]), (&Value::Null, &json!("tap")), "{row:#}");
    world.red.attach(&world.red_network, world.port("red-1"), "red-1");
    assert!(red_1.pings_within("10.0.0.2", SOON));
}

#[test]
fn unplugging_removes_the_tap_and_leaves_the_attachment_down() {
    let world = TwoTenants::new();
    assert!(world.namespace("red-1").pings_within("10.0.0.2", SOON));
    world.daemon.must("unplug red-1");
    assert!(!world.namespace("red-1").run("ip link show dev tap0").status.success(), "the TAP is gone");
    assert_eq!(world.red.op_status(&world.red_network, world.port("red-1")), "DOWN");
    let path = format!("networks/{}/ports/{}/attachment", world.red_network, world.port("red-1"));
    assert_eq!(world.red.request("GET", &path, None, 200).json()["attachment"]["id"], "red-1");
    assert_eq!(world.daemon.command("unplug red-1").status.code(), Some(1), "it is unknown now");
}

#[test]
fn kill_and_restart_keep_networks_ports_taps_and_their_addresses() {
    let mut world = TwoTenants::new();
    assert!(world.namespace("red-1").pings_within("10.0.0.2", SOON));
    let (mac, networks) = (world.namespace("red-1").mac("tap0"), world.daemon.show("networks"));
    world.daemon.kill_and_restart();
    world.daemon.wait_up(&["red-1", "red-2", "blue-1", "blue-2"]);
    assert_eq!(world.daemon.show("networks"), networks);
    // The namespaces were not touched: device, MAC and address are the same.
    assert_eq!(world.namespace("red-1").mac("tap0"), mac);
    assert!(world.namespace("red-1").must("ip addr show dev tap0").contains("10.0.0.1/24"));
    for name in ["red-1", "blue-1"] {
        assert!(world.namespace(name).pings_within("10.0.0.2", SOON), "{name}\n{}", world.daemon.log_tail());
    }
    // A stop in order keeps the same, and ends in time with status 0.
    world.daemon.stop();
    world.daemon.start_again();
    assert!(world.namespace("blue-1").pings_within("10.0.0.2", SOON));
}

#[test]
fn a_change_loses_no_frame_of_ports_it_does_not_touch() {
    let world = TwoTenants::new();
    let red = world.namespace("red-1");
    assert!(red.pings_within("10.0.0.2", SOON));
    let before = Counters::read(&world.daemon);
    let (sent, answered) = std::thread::scope(|scope| {
        let pings = scope.spawn(|| red.run("busybox ping -q -c 200 -i 0.01 10.0.0.2"));
        let mut changes = 0;
        while !pings.is_finished() {
            world.blue.set_state(&world.blue_network, world.port("blue-1"), ["DOWN", "ACTIVE"][changes % 2]);
            let extra = world.blue.port(&world.blue_network);
            world.blue.request("DELETE", &format!("networks/{}/ports/{extra}", world.blue_network), None, 204);
            changes += 1;
        }
        assert!(changes > 10, "only {changes} changes were made meanwhile");
        let output = pings.join().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let number = |word: &str| {
            let line =
                text.lines().find(|line| line.contains("packets transmitted")).unwrap_or_else(|| panic!("{text}"));
            let part = line.split(',').find(|part| part.contains(word)).unwrap();
            part.split_whitespace().next().unwrap().parse::<u32>().unwrap()
        };
        (number("transmitted"), number("received"))
    });
    assert_eq!((sent, answered), (200, 200), "{:?}", Counters::read(&world.daemon).changes(&before));
}

#[test]
fn tcp_between_taps_travels_in_whole_segments() {
    let world = TwoTenants::new();
    let (from, to) = (world.namespace("red-1"), world.namespace("red-2"));
    assert!(from.pings_within("10.0.0.2", SOON));
    const BYTES: u64 = 64 << 20;
    let before = Counters::read(&world.daemon);
    let listener = to.inside(|| TcpListener::bind(("10.0.0.2", 5000)).unwrap());
    let received = std::thread::scope(|scope| {
        let sink = scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
        });
        let mut stream = from.inside(|| TcpStream::connect(("10.0.0.2", 5000)).unwrap());
        stream.set_write_timeout(Some(SOON)).unwrap();
        std::io::copy(&mut std::io::repeat(0x5a).take(BYTES), &mut stream).unwrap();
        drop(stream);
        sink.join().unwrap()
    });
    assert_eq!(received, BYTES);
    let after = Counters::read(&world.daemon);
    let (packets, bytes) = (after.grown(&before, "red-1.rx.packets"), after.grown(&before, "red-1.rx.bytes"));
    assert!(bytes > BYTES && bytes / packets > 3000, "{bytes} bytes in {packets} frames: the sender cut them itself");
    let drops: Vec<_> = after.changes(&before).into_iter().filter(|change| change.contains(".drops.")).collect();
    // A full receiver is told by a drop, which TCP takes as it should; anything else would be a fault of ours.
    assert!(drops.iter().all(|change| change.contains("rx_ring_full")), "{drops:?}");
}

#[test]
fn a_lost_namespace_is_told_and_its_return_mended() {
    let daemon = Daemon::start("");
    let tenant = daemon.tenant("red");
    let network = tenant.network("n");
    let gone = Namespace::new("gone");
    let port = attached_tap(&daemon, &tenant, &network, "orphan", &gone, "10.0.0.1/24");
    daemon.wait_up(&["orphan"]);
    drop(gone);
    wait_until("the port is DOWN", SOON, || tenant.op_status(&network, &port) == "DOWN");
    let row = daemon.interface("orphan");
    assert!(row["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{row:#}");
    let _back = Namespace::new("gone");
    wait_until("the port is UP again", SOON, || tenant.op_status(&network, &port) == "UP");
}

#[test]
fn a_second_daemon_on_the_same_store_or_socket_is_refused_with_the_holders_pid() {
    let daemon = Daemon::start("");
    let output = std::process::Command::new(tests::daemon::program())
        .args(["run", "--config"])
        .arg(daemon.path("qvs.toml"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&daemon.id().to_string()), "{text}");
}

/// The leaves of a tree of settings: `api.listen` and its value.
fn leaves(name: &str, value: &Value, found: &mut BTreeMap<String, Value>) {
    match value.as_object() {
        Some(object) => {
            for (key, value) in object {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                leaves(&name, value, found);
            }
        }
        None => drop(found.insert(name.to_owned(), value.clone())),
    }
}

#[test]
fn the_packaged_example_names_every_setting_with_its_default() {
    let example = fs::read_to_string(repository().join("tools/packaging/qvs.toml")).unwrap();
    let is_setting = |line: &str| {
        line.strip_prefix('#').is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_lowercase()))
    };
    let lines = example.lines().map(|line| if is_setting(line) { &line[1..] } else { line });
    let table: toml::Table = lines.collect::<Vec<_>>().join("\n").parse().unwrap();
    let mut named = BTreeMap::new();
    leaves("", &serde_json::to_value(&table).unwrap(), &mut named);

    let daemon = Daemon::start("");
    let mut known = BTreeMap::new();
    leaves("", &daemon.show("config")["settings"], &mut known);
    let keys = |map: &BTreeMap<String, Value>| map.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(keys(&named), keys(&known), "left: tools/packaging/qvs.toml; right: the daemon");
    // The test sets these, or they follow from what it sets, or from the host.
    let own = [
        "state_dir",
        "run_dir",
        "api.listen",
        "admin.socket",
        "switch.workers",
        "vhost.dir",
        "store.url",
        "store.seal_key",
        "store.password_file",
        "identity.tokens",
        "keystone.password_file",
        "node.host",
    ];
    for (key, value) in &named {
        // The daemon tells an empty text as nothing.
        let actual = if known[key].is_null() { &json!("") } else { &known[key] };
        assert!(own.contains(&key.as_str()) || value == actual, "{key}: the example says {value}, the daemon {actual}");
    }
}

/// Tests with a long form, which `cargo xtask soak` runs.
mod soaked {
    use super::*;

    #[test]
    fn acknowledged_writes_survive_kills() {
        let mut daemon = Daemon::start("[plugin]\ndriver = \"native\"");
        // What the API acknowledged and has not been told to delete: network -> its ports' attachments.
        let mut kept: BTreeMap<String, BTreeMap<String, Option<String>>> = BTreeMap::new();
        let mut serial = 0;
        for_seeds(8, |mut chance| {
            let kill_after = Duration::from_millis(20 + chance.below(400) as u64);
            let api = daemon.api();
            let (now, last) = std::thread::scope(|scope| {
                let kept = &mut kept;
                let serial = &mut serial;
                // Here, and not by a writer that may not have got the CPU when the daemon is killed.
                let mut connection = Connection::open(api).unwrap();
                let writer = scope.spawn(move || {
                    let mut acknowledged = 0_u32;
                    // Until the connection breaks under the kill; what was not answered may or may not be there.
                    let doubtful = loop {
                        *serial += 1;
                        match write_once(&mut connection, kept, &mut chance, *serial) {
                            Ok(()) => acknowledged += 1,
                            Err(doubtful) => break doubtful,
                        }
                    };
                    (acknowledged, doubtful)
                });
                std::thread::sleep(kill_after);
                daemon.kill();
                writer.join().unwrap()
            });
            daemon.start_again();
            compare(&daemon, &mut kept, &last);
            println!("{now} writes acknowledged in {kill_after:?}");
        });
        assert!(kept.len() > 3, "hardly a write was made");
    }

    /// What a broken request would have touched: a network that may be new or gone, or a port of one.
    #[derive(Debug)]
    enum Doubtful {
        NewNetwork,
        GoneNetwork(String),
        NetworkOfPort(String),
    }

    /// One random write; the books are changed when it is acknowledged.
    fn write_once(
        connection: &mut Connection,
        kept: &mut BTreeMap<String, BTreeMap<String, Option<String>>>,
        chance: &mut tests::chance::Chance,
        serial: u64,
    ) -> Result<(), Doubtful> {
        let base = "/v1.1/tenants/keeper/networks";
        let networks: Vec<String> = kept.keys().cloned().collect();
        let act = if networks.is_empty() { 0 } else { chance.below(8) };
        if act <= 1 {
            let body = json!({"network": {"name": format!("n{serial}")}});
            let answer = connection.request("POST", base, Some(&body)).map_err(|_| Doubtful::NewNetwork)?;
            assert_eq!(answer.status, 202);
            kept.insert(answer.json()["network"]["id"].as_str().unwrap().to_owned(), BTreeMap::new());
            return Ok(());
        }
        let network = chance.pick(&networks).clone();
        let ports = kept.get_mut(&network).unwrap();
        if act == 2 && networks.len() > 4 && ports.values().all(Option::is_none) {
            let answer = connection.request("DELETE", &format!("{base}/{network}"), None);
            let answer = answer.map_err(|_| Doubtful::GoneNetwork(network.clone()))?;
            assert_eq!(answer.status, 204);
            kept.remove(&network);
            return Ok(());
        }
        let broken = |_| Doubtful::NetworkOfPort(network.clone());
        let free = ports.iter().find(|(_, attachment)| attachment.is_none()).map(|(port, _)| port.clone());
        if let Some(port) = free.filter(|_| act > 4) {
            let id = format!("vif {serial}");
            let path = format!("{base}/{network}/ports/{port}/attachment");
            let answer = connection.request("PUT", &path, Some(&json!({"attachment": {"id": id}})));
            assert_eq!(answer.map_err(broken)?.status, 204);
            ports.insert(port, Some(id));
        } else {
            let answer = connection.request("POST", &format!("{base}/{network}/ports"), None).map_err(broken)?;
            assert_eq!(answer.status, 202);
            ports.insert(answer.json()["port"]["id"].as_str().unwrap().to_owned(), None);
        }
        Ok(())
    }

    /// The daemon must have exactly what the books say, but for the one request that was not answered.
    fn compare(daemon: &Daemon, kept: &mut BTreeMap<String, BTreeMap<String, Option<String>>>, doubtful: &Doubtful) {
        let tenant = daemon.tenant("keeper");
        let listed = tenant.request("GET", "networks", None, 200).json();
        let listed: Vec<String> = listed["networks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|network| network["id"].as_str().unwrap().to_owned())
            .collect();
        let mut actual = BTreeMap::new();
        for network in &listed {
            let detail = tenant.request("GET", &format!("networks/{network}/detail"), None, 200).json();
            let ports = detail["network"]["ports"].as_array().unwrap().iter().map(|port| {
                let attachment = port["attachment"]["id"].as_str().map(str::to_owned);
                (port["id"].as_str().unwrap().to_owned(), attachment)
            });
            actual.insert(network.clone(), ports.collect::<BTreeMap<_, _>>());
        }
        match doubtful {
            Doubtful::NewNetwork => {
                let new: Vec<_> = listed.iter().filter(|id| !kept.contains_key(*id)).cloned().collect();
                assert!(new.len() <= 1, "networks nobody made: {new:?}");
                kept.extend(new.into_iter().map(|id| (id, BTreeMap::new())));
            }
            Doubtful::GoneNetwork(id) if !actual.contains_key(id) => drop(kept.remove(id)),
            Doubtful::GoneNetwork(_) => {}
            Doubtful::NetworkOfPort(id) => {
                let (now, before) = (&actual[id], &kept[id]);
                let differ = now.iter().filter(|(port, attachment)| before.get(*port) != Some(*attachment)).count();
                // What was acknowledged stays; only an empty port may have got the attachment that nobody confirmed.
                let is_kept = |(port, was): (&String, &Option<String>)| {
                    now.get(port).is_some_and(|is| is == was || was.is_none())
                };
                assert!(differ <= 1 && before.iter().all(is_kept), "{now:?} was {before:?}");
                kept.insert(id.clone(), now.clone());
            }
        }
        assert_eq!(&actual, kept, "left: after the restart; right: what was acknowledged");
    }

    #[test]
    fn no_frame_crosses_networks_while_everything_changes() {
        let mut world = TwoTenants::new();
        assert!(world.namespace("red-1").pings_within("10.0.0.2", SOON));
        let names = ["red-1", "red-2", "blue-1", "blue-2"];
        // Each namespace speaks from a MAC of its own, and its network is told by the second byte.
        for (index, name) in names.iter().enumerate() {
            let network = u8::from(name.starts_with("blue"));
            world.namespace(name).must(&format!("ip link set dev tap0 address 02:{network:02x}:00:00:00:{index:02x}"));
        }
        for_seeds(6, |mut chance| {
            let ears = names.map(|name| world.namespace(name).sniff());
            for name in names {
                // Broadcasts and unicasts all the while, in the background of the namespace.
                world
                    .namespace(name)
                    .must("(busybox timeout 2 busybox arping -q -I tap0 -c 20 10.0.0.99 &) >/dev/null 2>&1");
            }
            for _ in 0..20 {
                let name = *chance.pick(&names);
                let (tenant, network) = world.owner(name);
                match chance.below(4) {
                    0 => tenant.set_state(network, world.port(name), "DOWN"),
                    1 => tenant.set_state(network, world.port(name), "ACTIVE"),
                    2 => {
                        tenant.detach(network, world.port(name));
                        tenant.attach(network, world.port(name), name);
                    }
                    _ => drop(world.namespace(name).run("busybox ping -c 1 -W 1 10.0.0.2")),
                }
            }
            let heard = ears.map(tests::namespace::Sniffer::stop);
            for (name, frames) in names.iter().zip(&heard) {
                let network = u8::from(name.starts_with("blue"));
                let foreign: Vec<_> = frames.iter().filter(|frame| frame[6] == 2 && frame[7] != network).collect();
                assert!(foreign.is_empty(), "{name} heard {foreign:02x?}");
            }
            assert!(heard.iter().any(|frames| !frames.is_empty()), "nothing was said at all");
            world.daemon.assert_alive();
        });
        for name in names {
            let (tenant, network) = world.owner(name);
            tenant.set_state(network, world.port(name), "ACTIVE");
        }
        assert!(world.namespace("blue-1").pings_within("10.0.0.2", SOON), "{}", world.daemon.log_tail());
    }

    #[test]
    fn killed_again_and_again_the_daemon_comes_back_with_its_traffic() {
        let mut world = TwoTenants::new();
        for_seeds(4, |mut chance| {
            std::thread::sleep(Duration::from_millis(chance.below(300) as u64));
            let start = Instant::now();
            world.daemon.kill_and_restart();
            let back = wait_for(SOON, || world.namespace("red-1").pings("10.0.0.2").then(|| start.elapsed()));
            let back = back.unwrap_or_else(|| panic!("no traffic after a restart\n{}", world.daemon.log_tail()));
            println!("traffic is back {back:?} after the kill");
        });
    }
}
