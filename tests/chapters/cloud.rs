//! Several hypervisors, each a namespace with a real daemon in it, one cloud by a real etcd. Their underlay is a bridge; etcd is
//! reached by another, so that either can be cut by itself.
//!
//! Everything is named by the test that builds it (`world` below), so that two tests may run at once.

use api::etcd::message::Blob;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use tests::daemon::Daemon;
use tests::etcd::Etcd;
use tests::http::Tenant;
use tests::ledger::Counters;
use tests::namespace::Namespace;
use tests::process::{wait_for, wait_until};
use tests::wire::{Mischief, Wire};

/// Longest time until traffic flows after a change.
const SOON: Duration = Duration::from_secs(15);

/// A hypervisor with one guest of tenant red and one of blue.
struct Host {
    number: usize,
    space: Namespace,
    daemon: Daemon,
    guests: [Namespace; 2],
}

/// The cloud. Fields are dropped in order: daemons before the namespaces that they are in.
struct World {
    hosts: Vec<Host>,
    networks: [String; 2],
    ports: Vec<[String; 2]>,
    etcd: Etcd,
    /// What is between their uplinks, if it is not the bridge.
    relay: Option<Wire>,
    wire: Namespace,
}

/// The network that tunnels are on: what hosts' numbers are put behind, and the length of the prefix.
type Under = (&'static str, u8);

const BY_IPV4: Under = ("172.31.90.", 24);
const BY_IPV6: Under = ("fd90::", 64);

impl Host {
    /// Calls `act` with a tenant of this host's API, where that can be reached.
    fn as_tenant<T: Send>(&self, name: &str, act: impl FnOnce(&Tenant) -> T + Send) -> T {
        self.space.inside(|| act(&self.daemon.tenant(name)))
    }

    /// The name of a guest, which is that of its interface too.
    fn guest(&self, at: usize) -> &str {
        self.guests[at].name()
    }

    /// A guest's address in its network.
    fn address(&self) -> String {
        format!("10.9.0.{}", self.number)
    }
}

impl World {
    /// `count` hosts, called `PREFIX-h1` and so on, whose networks are of this kind; all ports are UP.
    fn new(prefix: &'static str, count: usize, kind: &str) -> World {
        World::over(prefix, count, kind, BY_IPV4, None)
    }

    /// The same by this underlay, over a wire that may do some mischief.
    fn over(prefix: &'static str, count: usize, kind: &str, under: Under, mischief: Option<Mischief>) -> World {
        let wire = Namespace::new(&format!("{prefix}-w"));
        // A bridge that learns nothing of its own and sends nothing by itself.
        wire.must(
            "ip link add under type bridge && ip link add manage type bridge && ip link set under mtu 1600 up && \
             ip link set manage up && ip addr add 172.31.91.100/24 dev manage",
        );
        let etcd = wire.inside(|| Etcd::start_at("172.31.91.100".parse().unwrap(), "http", |_| Vec::new()));
        let mut hosts = Vec::new();
        for number in 1..=count {
            let space = Namespace::new(&format!("{prefix}-h{number}"));
            for (device, bridge, (network, len)) in [("eth0", "under", under), ("eth1", "manage", ("172.31.91.", 24))] {
                let end = format!("{device}-{number}");
                wire.must(&format!(
                    "ip link add {end} type veth peer name {device} netns {} && ip link set {end} master {bridge} mtu 1600 up",
                    space.name()
                ));
                if network.contains(':') {
                    space.must(&format!("echo 0 > /proc/sys/net/ipv6/conf/{device}/disable_ipv6"));
                }
                let nodad = if network.contains(':') { "nodad" } else { "" };
                space.must(&format!(
                    "ip link set {device} mtu 1600 up && ip addr add {network}{number}/{len} dev {device} {nodad}"
                ));
            }
            space.must("ethtool -K eth0 tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off");
            if mischief.is_some() {
                wire.must(&format!("ip link set eth0-{number} nomaster"));
                space.must("ethtool -K eth0 tx off");
            }
            let settings = format!(
                "[[uplink]]\nphysical_network = \"physnet1\"\ninterface = \"eth0\"\n[tunnel]\nlocal_ip = \"{}{number}\"\n\
                 [segments]\ndefault = \"{kind}\"\nvlan = \"physnet1:100-199\"\n[store]\nurl = \"etcd:{}\"\n[node]\nhost = \"h{number}\"\nlease_s = 6",
                under.0,
                etcd.url()
            );
            let daemon = space.inside(|| Daemon::start(&settings));
            let guests = ["r", "b"].map(|tenant| Namespace::new(&format!("{prefix}-{tenant}{number}")));
            hosts.push(Host { number, space, daemon, guests });
        }
        let ends: Vec<String> = (1..=count).map(|number| format!("eth0-{number}")).collect();
        let relay = mischief.map(|mischief| Wire::new(&wire, &ends, mischief));
        let mut world = World { hosts, networks: Default::default(), ports: Vec::new(), etcd, relay, wire };
        world.networks = ["red", "blue"].map(|tenant| world.hosts[0].as_tenant(tenant, |tenant| tenant.network("lan")));
        for host in &world.hosts {
            let mut ports: [String; 2] = Default::default();
            for (at, tenant) in ["red", "blue"].into_iter().enumerate() {
                let (guest, network) = (&host.guests[at], &world.networks[at]);
                host.daemon.must(&format!("plug {0} --tap tap0 --netns {0}", guest.name()));
                // Each host's own API; it plans anew until it has heard of the network.
                wait_until("the network is known", SOON, || {
                    host.as_tenant(tenant, |tenant| {
                        tenant.try_request("GET", &format!("networks/{network}"), None).unwrap().status == 200
                    })
                });
                ports[at] = host.as_tenant(tenant, |tenant| tenant.attached_port(network, guest.name()));
                guest.address("tap0", &format!("{}/24", host.address()));
            }
            world.ports.push(ports);
        }
        for host in &world.hosts {
            host.daemon.wait_up(&[host.guest(0), host.guest(1)]);
        }
        world
    }

    /// The end of every daemon's log.
    fn logs(&self) -> String {
        self.hosts.iter().map(|host| host.daemon.log_tail()).collect::<Vec<_>>().join("\n")
    }

    /// Every guest of this tenant reaches every other.
    fn reach_each_other(&self, at: usize) {
        for from in &self.hosts {
            for to in self.hosts.iter().filter(|to| to.number != from.number) {
                let reaches = from.guests[at].pings_within(&to.address(), SOON);
                assert!(reaches, "{} to {}\n{}", from.guest(at), to.guest(at), self.logs());
            }
        }
    }

    /// The op-status of a host's red port, as told by this host's API.
    fn op_status(&self, told_by: usize, of: usize) -> String {
        let (network, port) = (&self.networks[0], &self.ports[of][0]);
        self.hosts[told_by].as_tenant("red", |tenant| tenant.op_status(network, port))
    }

    /// Whether a host tells the others that this address is behind one of its interfaces.
    fn is_told(&self, mac: &str) -> bool {
        let plugs = json!({"key": "L3F2cy9wbHVnLw==", "range_end": "L3F2cy9wbHVnMA=="});
        let found = self.wire.inside(|| self.etcd.ask("/v3/kv/range", &plugs));
        let told = |kv: &Value| serde_json::from_value::<Blob>(kv["value"].clone()).unwrap().0;
        found["kvs"].as_array().unwrap().iter().any(|kv| String::from_utf8(told(kv)).unwrap().contains(mac))
    }

    /// Has the lease of a host that is no more end at once, if it has not by itself.
    fn end_lease(&self, host: &str) {
        let key = Blob(format!("/qvs/node/{host}").into_bytes());
        self.wire.inside(|| {
            let found = self.etcd.ask("/v3/kv/range", &json!({ "key": key }));
            // It may end between the two questions.
            if let lease @ Value::String(_) = &found["kvs"][0]["lease"] {
                self.etcd.answer("/v3/lease/revoke", &json!({ "ID": lease }).to_string());
            }
        });
    }

    /// Has a host lose etcd, or find it again.
    fn set_manage(&self, host: usize, state: &str) {
        self.wire.must(&format!("ip link set eth1-{host} {state}"));
    }
}

/// The revision up to which a daemon's own copy of what hosts share goes.
fn copied_revision(daemon: &Daemon) -> i64 {
    let text = std::fs::read_to_string(daemon.path("state/cloud.copy")).unwrap_or_default();
    let title: Value = text.lines().next().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
    title["revision"].as_i64().unwrap_or_default()
}

/// Sends `bytes` bytes one way by TCP and checks each.
fn transfer(from: &Namespace, to: &Namespace, address: &str, bytes: usize) {
    let address: IpAddr = address.parse().unwrap();
    let listener = to.inside(|| TcpListener::bind((address, 5000)).unwrap());
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = from.inside(|| TcpStream::connect((address, 5000)).unwrap());
            stream.set_write_timeout(Some(SOON)).unwrap();
            let chunk: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
            stream.write_all(&chunk).unwrap();
        });
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut got = vec![0; bytes];
        stream.read_exact(&mut got).unwrap();
        assert!(got.iter().enumerate().all(|(at, &byte)| byte == (at % 251) as u8), "bytes changed");
    });
}

/// How many of these frames are VXLAN to this address and carry `text`.
fn carried(frames: &[Vec<u8>], to: [u8; 4], text: &[u8]) -> usize {
    let has = |frame: &&Vec<u8>| {
        frame.len() > 42
            && frame[12..14] == [8, 0]
            && frame[30..34] == to
            && frame.windows(text.len()).any(|it| it == text)
    };
    frames.iter().filter(has).count()
}

#[test]
fn guests_on_three_hosts_are_on_one_network_and_floods_go_where_its_ports_are() {
    let world = World::new("qc", 3, "vxlan");
    world.reach_each_other(0);
    world.reach_each_other(1);
    let [one, two, three] = &world.hosts[..] else { panic!("three") };
    transfer(&one.guests[0], &two.guests[0], &two.address(), 16 << 20);
    transfer(&three.guests[0], &one.guests[0], &one.address(), 16 << 20);
    for told_by in 0..3 {
        for of in 0..3 {
            wait_until("it is UP everywhere", SOON, || world.op_status(told_by, of) == "UP");
        }
    }
    // Where each is told by its host.
    let mac = two.guests[0].mac("tap0");
    wait_until("its address is told", SOON, || {
        let macs = one.daemon.show("macs");
        let is_it = |row: &Value| row["mac"] == mac.as_str() && row["remote"] == "tunnel:172.31.90.2";
        macs.as_array().unwrap().iter().any(is_it)
    });
    // Blue leaves host 3: what blue says to everybody goes there no more, what red says does.
    three.daemon.must(&format!("unplug {}", three.guest(1)));
    let said = |tenant: usize, text: &str| {
        let ear = world.wire.sniff();
        wait_until("host 1 has heard that blue is gone", SOON, || {
            let trace = one.daemon.must(&format!(
                "trace {} ffffffffffff02000000006688b50000000000000000000000000000000000000000000000000000",
                one.guest(tenant)
            ));
            trace.contains("tunnel:172.31.90.2") && (tenant == 0 || !trace.contains("tunnel:172.31.90.3"))
        });
        one.guests[tenant].must(&format!(
            "python3 -c \"import socket; s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW); s.bind(('tap0',0)); \
             s.send(b'\\xff'*6+b'\\x02\\x00\\x00\\x00\\x00\\x66\\x88\\xb5{text}'+b'x'*40)\""
        ));
        let ends = [[172, 31, 90, 2], [172, 31, 90, 3]];
        for to in &ends[..2 - tenant] {
            ear.wait_for("it is on the wire", 1, |frame| carried(&[frame.to_vec()], *to, text.as_bytes()) > 0);
        }
        let frames = ear.stop();
        // The wire's end and the bridge both hear a frame.
        ends.map(|to| carried(&frames, to, text.as_bytes()).min(1))
    };
    assert_eq!((said(0, "of-the-reds"), said(1, "of-the-blues")), ([1, 1], [1, 0]));
}

#[test]
fn hosts_whose_underlay_is_ipv6_know_of_each_other_by_the_store_and_reach_each_other_by_it() {
    let world = World::over("qv", 3, "geneve", BY_IPV6, None);
    let ear = world.wire.sniff();
    world.reach_each_other(0);
    world.reach_each_other(1);
    let [one, two, three] = &world.hosts[..] else { panic!("three") };
    transfer(&one.guests[0], &two.guests[0], &two.address(), 8 << 20);
    transfer(&three.guests[1], &one.guests[1], &one.address(), 8 << 20);
    assert_eq!(one.daemon.interface("tunnel:fd90::3")["link"], "up");
    // From host 1 to host 2, and nothing of it by IPv4.
    let ends = [1, 2].map(|number| format!("fd90::{number}").parse::<Ipv6Addr>().unwrap().octets()).concat();
    let heard = ear.stop();
    assert!(heard.iter().any(|frame| frame.len() > 54 && frame[12..14] == [0x86, 0xdd] && frame[22..54] == ends));
    let is_tunnel = |frame: &&Vec<u8>| frame[12..14] == [8, 0] && frame[36..38] == 6081u16.to_be_bytes();
    assert_eq!(heard.iter().find(is_tunnel), None);
}

/// Longer than leases last here.
const FOR_LONG: Duration = Duration::from_secs(8);

#[test]
fn forwarding_goes_on_without_etcd_and_what_was_missed_is_caught_up() {
    let mut world = World::new("qd", 2, "geneve");
    world.reach_each_other(0);
    // It dies: everything goes on, for longer than leases last.
    world.etcd.kill();
    let end = Instant::now() + FOR_LONG;
    while Instant::now() < end {
        world.reach_each_other(0);
    }
    let World { wire, etcd, .. } = &mut world;
    wire.inside(|| etcd.start_again());
    wait_until("both live again", SOON, || {
        world.hosts.iter().all(|host| host.daemon.show("nodes").as_array().unwrap().len() == 2)
    });
    wait_until("UP again for each other", SOON, || world.op_status(0, 1) == "UP" && world.op_status(1, 0) == "UP");
    world.reach_each_other(0);

    // Host 2 alone loses it, and etcd forgets what happened meanwhile.
    world.set_manage(2, "down");
    let port = world.ports[1][0].clone();
    let network = world.networks[0].clone();
    assert!(world.hosts[0].guests[0].is_answered(&world.hosts[1].address()), "the underlay is there");
    let made = world.hosts[0].as_tenant("red", |tenant| tenant.network("meanwhile"));
    world.hosts[0].as_tenant("red", |tenant| tenant.set_state(&network, &port, "DOWN"));
    world.wire.inside(|| world.etcd.compact());
    // For the others it is dead when its lease ends.
    wait_until("it is DOWN for host 1", SOON, || world.hosts[0].daemon.show("nodes").as_array().unwrap().len() == 1);
    world.set_manage(2, "up");
    let two = &world.hosts[1];
    wait_until("host 2 knows of the network", SOON, || {
        two.as_tenant("red", |tenant| {
            tenant.try_request("GET", &format!("networks/{made}"), None).is_ok_and(|answer| answer.status == 200)
        })
    });
    // What is told is in force a moment later.
    let drops = format!("{}.rx.drops.port_admin_down", two.guest(0));
    let before = Counters::read(&two.daemon);
    wait_until("what its port sends is dropped", SOON, || {
        let is_answered = two.guests[0].pings(&world.hosts[0].address());
        !is_answered && Counters::read(&two.daemon).grown(&before, &drops) > 0
    });
    two.as_tenant("red", |tenant| tenant.set_state(&network, &port, "ACTIVE"));
    wait_until("UP again", SOON, || world.op_status(0, 1) == "UP" && world.op_status(1, 1) == "UP");
    world.reach_each_other(0);
}

#[test]
fn a_host_that_dies_has_its_ports_down_and_gets_no_traffic_when_its_lease_ends() {
    let mut world = World::new("qe", 3, "vxlan");
    world.reach_each_other(0);
    world.hosts[2].daemon.kill();
    wait_until("its port is DOWN", SOON, || world.op_status(0, 2) == "DOWN" && world.op_status(1, 2) == "DOWN");
    wait_until("its far end is gone", SOON, || {
        let ports = world.hosts[0].daemon.show("ports");
        ports.as_array().unwrap().iter().all(|row| row["interface"] != "tunnel:172.31.90.3")
    });
    let before = Counters::read(&world.hosts[0].daemon);
    let ear = world.wire.sniff();
    let one = &world.hosts[0].guests[0];
    // By its address, which is forgotten, and to everybody.
    one.must(&format!(
        "ip neigh replace {} lladdr {} dev tap0 nud permanent",
        world.hosts[2].address(),
        world.hosts[2].guests[0].mac("tap0")
    ));
    one.run(&format!("busybox ping -c 2 -W 1 -p 5a {}", world.hosts[2].address()));
    assert!(one.is_answered(&world.hosts[1].address()), "the others go on");
    let frames = ear.stop();
    let to_dead = |frame: &Vec<u8>| frame.len() > 42 && frame[12..14] == [8, 0] && frame[30..34] == [172, 31, 90, 3];
    assert_eq!(
        frames.iter().filter(|frame| to_dead(frame)).count(),
        0,
        "{:?}",
        Counters::read(&world.hosts[0].daemon).changes(&before)
    );
    // It comes back, and all is as it was.
    let World { hosts, .. } = &mut world;
    let Host { space, daemon, .. } = &mut hosts[2];
    space.inside(|| daemon.start_again());
    world.hosts[0].guests[0].must(&format!("ip neigh del {} dev tap0", world.hosts[2].address()));
    wait_until("its port is UP", SOON, || world.op_status(0, 2) == "UP");
    world.reach_each_other(0);
}

#[test]
fn a_host_that_is_killed_and_starts_without_etcd_carries_what_it_knew_and_catches_up_later() {
    let mut world = World::new("qf", 2, "vxlan");
    world.reach_each_other(0);
    let revision = world.wire.inside(|| world.etcd.revision());
    wait_until("host 2 has its copy", SOON, || copied_revision(&world.hosts[1].daemon) >= revision);
    world.etcd.kill();
    let Host { space, daemon, .. } = &mut world.hosts[1];
    space.inside(|| daemon.kill_and_restart());
    for at in 0..2 {
        world.reach_each_other(at);
    }
    let [one, two] = &world.hosts[..] else { panic!("two") };
    transfer(&one.guests[0], &two.guests[0], &two.address(), 1 << 20);
    // What is read is answered, what is written refused, as on a host that was there all the time.
    let body = json!({"network": {"name": "n"}});
    two.as_tenant("red", |tenant| {
        assert!(
            String::from_utf8_lossy(&tenant.request("GET", "networks", None, 200).body).contains(&world.networks[0])
        );
        let refused = tenant.request("POST", "networks", Some(&body), 503);
        assert!(
            refused.headers.iter().any(|line| line.to_ascii_lowercase().starts_with("retry-after:")),
            "{refused:?}"
        );
    });
    assert_eq!(world.op_status(1, 1), "UP");

    let World { wire, etcd, .. } = &mut world;
    wire.inside(|| etcd.start_again());
    let [one, two] = &world.hosts[..] else { panic!("two") };
    wait_until("both live again", SOON, || {
        [one, two].iter().all(|host| host.daemon.show("nodes").as_array().unwrap().len() == 2)
    });
    let guest = Namespace::new("qf-n2");
    two.daemon.must("plug qf-n2 --tap tap0 --netns qf-n2");
    wait_until("host 2 writes again", SOON, || {
        two.as_tenant("red", |tenant| tenant.try_request("POST", "networks", Some(&body)).unwrap().status == 202)
    });
    two.as_tenant("red", |tenant| tenant.attached_port(&world.networks[0], "qf-n2"));
    guest.address("tap0", "10.9.0.77/24");
    assert!(one.guests[0].pings_within("10.9.0.77", SOON), "the new port\n{}", world.logs());
    world.reach_each_other(0);
    // Before its namespace goes.
    two.daemon.must("unplug qf-n2");
}

/// A hundred thousand frames or so by chance: one of a hundred lost, one of twenty overtaken by what comes within 3 ms after it.
const BAD: Mischief = Mischief {
    lost: 10,
    overtaken: 50,
    late: Duration::from_millis(3),
    delay: Duration::from_millis(1),
    seed: 0x7175_616e_7475_6d21,
};

#[test]
fn over_a_wire_that_loses_delays_and_reorders_each_frame_arrives_once_or_was_lost_by_the_wire_and_streams_are_whole() {
    /// Frames that are counted.
    const COUNTED: u32 = 2_000;
    for (prefix, kind) in [("qg", "vxlan"), ("qh", "gre")] {
        let world = World::over(prefix, 3, kind, BY_IPV4, Some(BAD));
        world.reach_each_other(0);
        world.reach_each_other(1);
        let [one, two, three] = &world.hosts[..] else { panic!("three") };
        transfer(&one.guests[0], &two.guests[0], &two.address(), 2 << 20);
        transfer(&three.guests[1], &one.guests[1], &one.address(), 2 << 20);

        // Where its guest is, the wire has told by now: frames go there and nowhere else.
        let [from, to] = [one, two].map(|host| host.guests[0].mac("tap0"));
        wait_until("its address is told", SOON, || {
            let is_it = |row: &Value| row["mac"] == to.as_str() && row["remote"] == "tunnel:172.31.90.2";
            one.daemon.show("macs").as_array().unwrap().iter().any(is_it)
        });
        one.guests[0].must("ip link set tap0 txqueuelen 4000");
        let bytes = |mac: &str| mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect::<Vec<_>>();
        let head = [bytes(&to), bytes(&from), vec![0x88, 0xb5], b"counted".to_vec()].concat();
        let frame = |at: u32| [&head[..], &at.to_be_bytes(), &[0x5a; 60]].concat();
        // Its number, if it is one of them, however deep it lies.
        let number = |bytes: &[u8]| {
            let at = bytes.windows(head.len()).position(|it| it == head)? + head.len();
            Some(u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()))
        };
        let overtaken = world.relay.as_ref().unwrap().overtaken();
        let ears =
            [&one.guests[1], &two.guests[0], &two.guests[1], &three.guests[0], &three.guests[1]].map(Namespace::sniff);
        let relay = world.relay.as_ref().unwrap();
        let lost = || relay.lost(|frame| number(frame).is_some());
        let mut sent = 0;
        // No more at once than waits somewhere while those who carry it wait for the CPU.
        for some in (0..COUNTED).map(frame).collect::<Vec<_>>().chunks(200) {
            one.guests[0].send("tap0", some);
            sent += some.len();
            wait_until("each has arrived or is lost", SOON, || {
                ears[1].count(|frame| number(frame).is_some()) + lost().len() >= sent
            });
        }
        let [of_blue, arrived, others @ ..] = ears.map(tests::namespace::Sniffer::stop);
        for heard in [of_blue].into_iter().chain(others) {
            assert!(heard.iter().all(|frame| number(frame).is_none()), "{kind}: a frame where it does not belong");
        }
        let arrived: Vec<u32> = arrived.iter().filter_map(|frame| number(frame)).collect();
        let lost: Vec<u32> = lost().iter().filter_map(|frame| number(frame)).collect();
        let all: BTreeSet<u32> = arrived.iter().chain(&lost).copied().collect();
        assert_eq!((arrived.len() + lost.len(), all.len()), (COUNTED as usize, COUNTED as usize), "{kind}: {lost:?}");
        assert!(!lost.is_empty() && relay.overtaken() > overtaken, "{kind}: the wire was too good");
        assert!(!arrived.is_sorted(), "{kind}: they came in order");
    }
}

#[test]
fn an_interface_that_another_host_took_over_is_reached_there_by_the_one_that_had_it() {
    let other = Namespace::new("qx-o1");
    let mut world = World::new("qx", 2, "vxlan");
    world.reach_each_other(0);
    world.hosts[0].daemon.kill();
    world.end_lease("h1");
    wait_until("its port is DOWN", SOON, || world.op_status(1, 0) == "DOWN");
    let guest = world.hosts[0].guest(0).to_owned();
    // It has no other of that network.
    world.hosts[1].daemon.must(&format!("unplug {}", world.hosts[1].guest(0)));
    world.hosts[1].daemon.must(&format!("plug {guest} --tap tap9 --netns {guest}"));
    let moved = &world.hosts[0].guests[0];
    moved.must("ip addr flush dev tap0");
    moved.address("tap9", &format!("{}/24", world.hosts[0].address()));
    // It comes back with the plug in its own store, and with another of the same network.
    let Host { space, daemon, .. } = &mut world.hosts[0];
    space.inside(|| daemon.start_again());
    let one = &world.hosts[0];
    wait_until("it knows whose that is", SOON, || one.daemon.interface(&guest)["reason"] == "plugged-elsewhere");
    one.daemon.must(&format!("plug {0} --tap tap0 --netns {0}", other.name()));
    one.as_tenant("red", |tenant| tenant.attached_port(&world.networks[0], other.name()));
    other.address("tap0", "10.9.0.7/24");
    assert!(other.pings_within(&one.address(), SOON), "{}", world.logs());
}

#[test]
fn an_interface_without_a_fixed_address_that_moves_to_another_live_host_is_reached_there_at_once() {
    /// Less than a port must be silent for before an address may leave it, which is five seconds.
    const AT_ONCE: Duration = Duration::from_secs(4);
    let world = World::new("qz", 3, "vxlan");
    world.reach_each_other(0);
    let [one, two, three] = &world.hosts[..] else { panic!("three") };
    let (guest, mac, address) = (two.guest(0), two.guests[0].mac("tap0"), two.address());
    wait_until("its host tells of its address", SOON, || world.is_told(&mac));
    // Frames go to its address, wherever that is.
    for host in [one, three] {
        host.guests[0].must(&format!("ip neigh replace {address} lladdr {mac} dev tap0 nud permanent"));
        wait_until("its address is told", SOON, || {
            let is_it = |row: &Value| row["mac"] == mac.as_str() && row["remote"] == "tunnel:172.31.90.2";
            host.daemon.show("macs").as_array().unwrap().iter().any(is_it)
        });
    }
    // It is sent to all the time, and sends itself for as long as it has a device.
    let ping =
        |host: &Host, to: &str| host.guests[0].start(&format!("busybox ping -i 0.2 {to}"), &host.daemon.path("pings"));
    let mut pings = [one, three].map(|host| ping(host, &address));
    let _own = ping(two, &one.address());
    two.daemon.must(&format!("unplug {guest}"));
    three.daemon.must(&format!("plug {guest} --tap tap0 --netns {guest}"));
    wait_until("its device is there", SOON, || two.guests[0].run("ip link show dev tap0").status.success());
    two.guests[0].must(&format!("ip link set tap0 address {mac}"));
    two.guests[0].address("tap0", &format!("{address}/24"));
    // The first one ended with its device.
    let _own = ping(two, &one.address());
    thread::scope(|scope| {
        // From both at a time, so that neither waits for the other; the last ping counts if it is answered in time.
        let from = [one, three].map(|host| {
            let (guest, address) = (&host.guests[0], &address);
            let begin = Instant::now();
            let reached = scope.spawn(move || (guest.pings_within(address, AT_ONCE), begin.elapsed()));
            (host, reached)
        });
        for (host, reached) in from {
            let (reaches, took) = reached.join().unwrap();
            assert!(reaches && took < AT_ONCE, "{} after {took:?}\n{}", host.guest(0), world.logs());
        }
    });
    for ping in &mut pings {
        assert!(ping.ended().is_none(), "it was sent to all the while: {}", ping.log_tail());
    }
    drop(pings);
    // Its host says where it is now.
    wait_until("its address is told", SOON, || {
        let is_it = |row: &Value| row["mac"] == mac.as_str() && row["remote"] == "tunnel:172.31.90.3";
        one.daemon.show("macs").as_array().unwrap().iter().any(is_it)
    });
    world.reach_each_other(1);
}

#[test]
fn a_host_that_comes_back_with_another_end_of_tunnels_or_by_another_name_is_reached_there() {
    let mut world = World::new("qm", 3, "vxlan");
    world.reach_each_other(0);
    world.reach_each_other(1);
    let World { hosts, wire, .. } = &mut world;
    let [one, two, three] = &mut hosts[..] else { panic!("three") };
    // The others send all the time, to it and to each other; their neighbours are not resolved anew meanwhile.
    let log = one.daemon.path("pings");
    let ping = |to: &Host, log: &Path| one.guests[1].start(&format!("busybox ping -i 0.2 {}", to.address()), log);
    let mut pings = [ping(three, &log), ping(two, &one.daemon.path("more-pings"))];
    let settings = two.daemon.path("qvs.toml");
    for [before, after] in [["172.31.90.2\"", "172.31.90.22\""], ["host = \"h2\"", "host = \"h22\""]] {
        two.daemon.kill();
        two.space.must("ip addr flush dev eth0 && ip addr add 172.31.90.22/24 dev eth0");
        let text = std::fs::read_to_string(&settings).unwrap();
        assert!(text.contains(before), "{text}");
        std::fs::write(&settings, text.replace(before, after)).unwrap();
        let ear = wire.sniff();
        let Host { space, daemon, .. } = &mut *two;
        space.inside(|| daemon.start_again());
        for from in [&one.guests[0], &three.guests[0]] {
            assert!(from.pings_within(&two.address(), SOON), "{after}\n{}", two.daemon.log_tail());
        }
        one.guests[0].must(&format!("busybox ping -c 1 -W 5 -s 64 -p 5a {}", two.address()));
        let frames = ear.stop();
        let sent = [[172, 31, 90, 22], [172, 31, 90, 2]].map(|to| carried(&frames, to, &[0x5a; 32]).min(1));
        assert_eq!(sent, [1, 0], "{after}");
    }
    // A machine that is busy answers late; that is not lost. All were answered up to one that was sent when it was over.
    let answered = || {
        let text = std::fs::read_to_string(&log).unwrap();
        let number = |line: &str| line.split_once("seq=")?.1.split_once(' ')?.0.parse::<usize>().ok();
        text.lines().filter_map(number).collect::<BTreeSet<_>>()
    };
    let last = answered().last().copied().unwrap_or_default() + 10;
    let is_all = || answered().is_superset(&(0..=last).collect());
    assert!(wait_for(SOON, || is_all().then_some(())).is_some(), "what it had no part in was lost: {:?}", answered());
    for ping in &mut pings {
        assert!(ping.ended().is_none(), "they sent all the while: {}", ping.log_tail());
    }
    drop(pings);
    let names = || {
        let nodes = world.hosts[0].daemon.show("nodes");
        nodes.as_array().unwrap().iter().map(|row| row["host"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    // Its old name lives for as long as the lease lasts.
    world.end_lease("h2");
    wait_until("it has one name", SOON, || names() == ["h1", "h22", "h3"]);
    world.reach_each_other(0);
    world.reach_each_other(1);
}

#[test]
fn hosts_whose_networks_are_vlans_reach_each_other_and_tenants_are_apart() {
    let world = World::new("qy", 2, "vlan");
    world.reach_each_other(0);
    world.reach_each_other(1);
    let [one, two] = &world.hosts[..] else { panic!("two") };
    transfer(&one.guests[0], &two.guests[0], &two.address(), 4 << 20);
    // What one tenant says to everybody the other does not hear.
    let (red, blue) = (two.guests[0].sniff(), two.guests[1].sniff());
    one.guests[0]
        .send("tap0", &[[&[0xff; 6][..], &[2, 0, 0, 0, 0, 0x66, 0x88, 0xb5], b"of-the-reds", &[0; 40]].concat()]);
    let is_it = |frame: &[u8]| frame.windows(11).any(|it| it == b"of-the-reds");
    red.wait_for("red hears it", 1, is_it);
    assert!(!blue.stop_now().iter().any(|frame| is_it(frame)));
    for host in &world.hosts {
        let networks = host.daemon.show("networks");
        let ids: Vec<_> = networks.as_array().unwrap().iter().map(|row| row["segmentation_id"].as_u64()).collect();
        assert_eq!(ids, [Some(100), Some(101)], "{networks:#}");
    }
}

#[test]
fn on_a_vlan_what_is_for_one_station_of_another_host_is_heard_by_no_third_and_no_tunnel_is_made() {
    /// A little longer, s, than a station must be silent for before what is told may take the place of what was heard.
    const SILENCE_S: u64 = 7;
    let world = World::new("qu", 2, "vlan");
    let [one, two] = &world.hosts[..] else { panic!("two") };
    let third = Namespace::new("qu-t1");
    one.daemon.must("plug qu-t1 --tap tap0 --netns qu-t1");
    one.as_tenant("red", |tenant| tenant.attached_port(&world.networks[0], "qu-t1"));
    one.daemon.wait_up(&["qu-t1"]);
    world.reach_each_other(0);
    let (mac, address) = (two.guests[0].mac("tap0"), two.address());
    one.guests[0].must(&format!("ip neigh replace {address} lladdr {mac} dev tap0 nud permanent"));
    wait_until("its host tells of its address", SOON, || world.is_told(&mac));
    let rows = || {
        let macs = one.daemon.show("macs");
        macs.as_array().unwrap().iter().filter(|row| row["mac"] == mac.as_str()).cloned().collect::<Vec<_>>()
    };
    let is_silent = || matches!(&rows()[..], [row] if row["age_s"].as_u64().unwrap() >= SILENCE_S);
    wait_until("the station has been silent", 3 * SOON, is_silent);
    let ear = third.sniff();
    for _ in 0..3 {
        one.guests[0].must(&format!("busybox ping -c 1 -W 5 {address}"));
    }
    let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    let heard = ear.stop();
    assert!(!heard.iter().any(|frame| frame[..6] == bytes), "a third hears it: {heard:02x?}");
    let rows = rows();
    assert!(matches!(&rows[..], [row] if row["remote"] == "vlan:physnet1.100"), "{rows:#?}");
    for host in &world.hosts {
        let ports = host.daemon.show("ports");
        let is_tunnel = |row: &&Value| row["interface"].as_str().unwrap().starts_with("tunnel:");
        assert_eq!(ports.as_array().unwrap().iter().find(is_tunnel), None);
    }
    // Before its namespace goes.
    one.daemon.must("unplug qu-t1");
}

#[test]
fn a_question_for_an_address_that_was_told_on_another_host_is_answered_here_and_crosses_no_wire() {
    let world = World::new("qi", 2, "vxlan");
    let [one, two] = &world.hosts[..] else { panic!("two") };
    let (name, mac, address) = (two.guest(0), two.guests[0].mac("tap0"), two.address());
    // What is plugged for red is nothing that is told of blue's network, whoever attached it there.
    let stray = "02:00:00:00:00:77";
    two.daemon.must(&format!("plug stray --tap tap7 --netns {name} --tenant red --mac {stray} --ip 10.9.0.77"));
    two.as_tenant("blue", |tenant| tenant.attached_port(&world.networks[1], "stray"));
    two.daemon
        .must(&format!("plug {name} --tap tap0 --netns {name} --mac {mac} --ip {address} --tenant red --replace"));
    // Now nobody could answer but host 1 itself.
    world.wire.must("ip link set eth0-2 down");
    let asks = |times: u32| {
        one.guests[0].run(&format!("busybox arping -f -c {times} -w {times} -I tap0 {address}")).status.success()
    };
    wait_until("host 1 has heard of it", SOON, || asks(1));
    let before = Counters::read(&one.daemon);
    assert!(asks(5), "{}", world.logs());
    let now = Counters::read(&one.daemon);
    assert_eq!(now.grown(&before, "tunnel:172.31.90.2.tx.packets"), 0, "the question went out");
    let macs = one.daemon.show("macs");
    let told: Vec<&str> = macs.as_array().unwrap().iter().filter_map(|row| row["mac"].as_str()).collect();
    assert!(told.contains(&&*mac) && !told.contains(&stray), "{macs:#}");
}
