//! An uplink of two links: Open vSwitch is the switch beyond, and links are cut under traffic.

use super::SOON;
use crate::topology::attached_tap;
use pipelines::wire::lacp::{Lacpdu, PortInfo, PortState};
use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use switch::af_packet::RawSocket;
use switch::ids::MacAddr;
use tests::daemon::Daemon;
use tests::ledger::Counters;
use tests::namespace::{Namespace, ip};
use tests::ovs::{Ovs, PLAIN};
use tests::process::{output_of, wait_until};

/// VLANs for tenants' networks, of which the first is taken.
const VLANS: &str = "default = \"vlan\"\nvlan = \"physnet1:100-199\"";
/// The far station on that VLAN, and what its kernel does for it.
const STATION: &str = "add-port br0 int0 tag=100 -- set Interface int0 type=internal";
const ON_INT0: &str = "ip link set int0 up && ip addr add 10.9.0.2/24 dev int0";
/// The wire to another host of ours, where there is one.
const BEHIND: &str = "qb-behind";
const NEAR: &str = "10.9.0.1";
const FAR: &str = "10.9.0.2";
/// Bytes of datagrams that may wait for who reads them.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Between two datagrams of a stream.
const PAUSE: Duration = Duration::from_millis(1);
/// Most of them that a move may lose: what is under way, the time until those run who hear of it, and half a second in which Open
/// vSwitch may learn once more where the near station was.
const LOST_MAX: u64 = 1000;

/// Two wires from here, `{name}0` and `{name}1`, to `eth0` and `eth1` of a namespace that Open vSwitch serves, and a tenant's
/// network on VLAN 100 with one station at either end: a TAP in `near`, and `int0` of the far bridge.
struct World {
    daemon: Daemon,
    ovs: Ovs,
    near: Namespace,
    far: Namespace,
    names: [String; 2],
    /// The far station's own host, where that is one of ours on the far bridge.
    _other: Option<Daemon>,
}

impl Drop for World {
    fn drop(&mut self) {
        let [one, other] = &self.names;
        for name in [one, other, BEHIND] {
            let _ = Command::new("ip").args(["link", "del", name]).output();
        }
    }
}

/// Ends a stream when it goes.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl World {
    /// `ports`: how Open vSwitch has its ends (words of `ovs-vsctl`). `keys`: of the uplink.
    fn new(name: &str, ports: &str, keys: &str) -> World {
        World::with(name, &format!("{ports} -- {STATION}"), ON_INT0, keys, VLANS)
    }

    /// The same with other segments. `ports` are on bridges `br0` and `wire`, and `station` (a shell's words) makes the far station
    /// in the namespace; empty: that is behind a host of ours, on the wire to `eth2`.
    fn with(name: &str, ports: &str, station: &str, keys: &str, segments: &str) -> World {
        let (near, far) = (Namespace::new(&format!("{name}-near")), Namespace::new(&format!("{name}-far")));
        let names = [0, 1].map(|link| format!("{name}{link}"));
        let [one, other] = &names;
        let is_behind = station.is_empty();
        for (link, near) in [one, other, BEHIND].into_iter().take(if is_behind { 3 } else { 2 }).enumerate() {
            ip(&format!("link add {near} type veth peer name eth{link} netns {}", far.name()));
            ip(&format!("link set {near} up"));
            output_of("ethtool", &["-K", near, "tx", "off", "tso", "off", "gso", "off"]);
            far.must(&format!("ip link set eth{link} up && ethtool -K eth{link} txvlan off"));
        }
        let ovs = far.inside(|| Ovs::start(PLAIN, "", &["br0", "wire"]));
        ovs.set(ports);
        far.must(station);
        let host = |interface: &str, keys: &str, space: &Namespace, address: &str| {
            let daemon = Daemon::start(&format!(
                "[[uplink]]\nphysical_network = \"physnet1\"\ninterface = {interface}\n{keys}\n[segments]\n{segments}\n"
            ));
            let tenant = daemon.tenant("red");
            let network = tenant.network("lan");
            attached_tap(&daemon, &tenant, &network, name, space, &format!("{address}/24"));
            daemon.wait_up(&[name]);
            daemon
        };
        let daemon = host(&format!("[\"{one}\", \"{other}\"]"), keys, &near, NEAR);
        let behind = || {
            let without_bond: Vec<&str> = keys.lines().filter(|line| !line.starts_with("bond")).collect();
            host(&format!("\"{BEHIND}\""), &without_bond.join("\n"), &far, FAR)
        };
        let other = is_behind.then(behind);
        World { daemon, ovs, near, far, names, _other: other }
    }

    /// What is told of the links: which are up, and by which frames are sent.
    fn links(&self) -> ([bool; 2], [bool; 2]) {
        let row = self.daemon.interface("uplink:physnet1");
        let links = row["links"].as_array().cloned().unwrap_or_default();
        let told = |link: usize, key: &str| links.get(link).map(|row| row[key].clone()).unwrap_or_default();
        ([0, 1].map(|link| told(link, "link") == "up"), [0, 1].map(|link| told(link, "sending") == true))
    }

    fn links_become(&self, up: [bool; 2], sending: [bool; 2]) {
        wait_until(&format!("{up:?} are up and {sending:?} send"), SOON, || self.links() == (up, sending));
    }

    fn pings(&self) {
        assert!(self.near.pings_within(FAR, SOON), "{}\n{}", self.daemon.log_tail(), self.ovs.log_tail());
        assert!(self.far.pings_within(NEAR, SOON), "{}", self.daemon.log_tail());
    }

    /// Sends numbered datagrams from the far station to the near one, which says nothing, or the other way, while `act` runs.
    /// None comes twice, and they go on coming. Answers how many were lost.
    fn under_traffic(&self, to_near: bool, act: impl FnOnce()) -> u64 {
        let (from, to, address) = if to_near { (&self.far, &self.near, NEAR) } else { (&self.near, &self.far, FAR) };
        let receiver = to.inside(|| UdpSocket::bind((address, 7000)).unwrap());
        // Who reads may have to wait for the CPU.
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&receiver, RECEIVE_BUFFER).unwrap();
        receiver.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let sender = from.inside(|| UdpSocket::bind(("0.0.0.0", 0)).unwrap());
        let (is_over, came) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            // Also when a wait below is in vain: the scope's end waits for its threads.
            let end = End(&is_over);
            let sent = scope.spawn(|| {
                let mut sent = 0u64;
                while !is_over.load(Ordering::Relaxed) {
                    // Refused while the way's own end is down.
                    let _ = sender.send_to(&sent.to_be_bytes(), (address, 7000));
                    sent += 1;
                    std::thread::sleep(PAUSE);
                }
                sent
            });
            let received = scope.spawn(|| {
                // Between two links frames may overtake each other, and none comes by both.
                let mut seen = BTreeSet::new();
                let mut bytes = [0; 8];
                loop {
                    // What was under way at the end comes too: until it is quiet.
                    let was_over = is_over.load(Ordering::Relaxed);
                    let Ok(8) = receiver.recv(&mut bytes) else {
                        if was_over {
                            break;
                        }
                        continue;
                    };
                    let number = u64::from_be_bytes(bytes);
                    assert!(seen.insert(number), "{number} came again");
                    came.fetch_add(1, Ordering::Relaxed);
                }
            });
            wait_until("the stream flows", SOON, || came.load(Ordering::Relaxed) > 20);
            act();
            let now = came.load(Ordering::Relaxed);
            wait_until("the stream flows still", SOON, || came.load(Ordering::Relaxed) > now + 20);
            drop(end);
            let sent = sent.join().unwrap();
            received.join().unwrap();
            sent - came.load(Ordering::Relaxed)
        })
    }
}

impl World {
    /// Tells what a move has lost, and that it was not more than a move may.
    fn report(&self, way: &str, to_near: bool, lost: u64) {
        let direction = if to_near { "to" } else { "from" };
        println!("{way}, {direction} the near station: {lost} datagrams, one a millisecond, lost");
        assert!(lost <= LOST_MAX, "{lost} lost\n{}\n{}", self.daemon.log_tail(), self.ovs.log_tail());
    }
}

/// A reverse ARP question of a station (RFC 903), behind two tags at most.
fn is_announcement(frame: &[u8]) -> bool {
    frame[..6] == [0xff; 6] && [12, 16, 20].iter().any(|&at| frame[at..at + 2] == [0x80, 0x35])
}

/// An LACPDU of a system that is nobody's, behind a tag.
fn tagged_lacpdu() -> Vec<u8> {
    let stranger = MacAddr([2, 0, 0, 0, 0, 0x66]);
    let actor = PortInfo { system: stranger, key: 7, port: 1, state: PortState(0x3d), ..PortInfo::default() };
    let mut frame = Lacpdu { actor, partner: PortInfo::default() }.to_frame(stranger).to_vec();
    frame.splice(12..12, [0x81, 0, 0, 100]);
    frame
}

const TRUNKS: &str = "add-port br0 eth0 trunks=100 -- add-port br0 eth1 trunks=100";

#[test]
fn of_two_links_the_backup_takes_over_under_traffic_both_ways_and_is_announced() {
    for driver in ["af_packet", "af_xdp"] {
        let keys = format!("bond = \"active-backup\"\ndriver = \"{driver}\"");
        let world = World::new("qb-ab", TRUNKS, &keys);
        world.links_become([true; 2], [true, false]);
        world.pings();
        // To a station that says nothing itself: who forwards to it must be told where it is now.
        let ear = world.far.sniff();
        let lost = world.under_traffic(true, || {
            ip(&format!("link set {} down", world.names[0]));
            world.links_become([false, true], [false, true]);
        });
        world.report(driver, true, lost);
        let heard = ear.stop().into_iter().filter(|frame| is_announcement(frame)).count();
        assert!(heard > 0, "nobody was announced");
        let before = Counters::read(&world.daemon);
        // It stays where it is when the first one is back, and moves when the second one goes.
        ip(&format!("link set {} up", world.names[0]));
        world.links_become([true; 2], [false, true]);
        let lost = world.under_traffic(false, || {
            world.far.must("ip link set eth1 down");
            world.links_become([true, false], [true, false]);
        });
        world.report(driver, false, lost);
        // What the switch beyond sends to everybody comes by both links, and only one of them counts.
        world.far.must("ip link set eth1 up");
        world.links_become([true; 2], [true, false]);
        world.far.must("busybox arping -c 3 -w 5 -I int0 10.9.0.77 || true");
        wait_until("copies on the backup are dropped", SOON, || {
            Counters::read(&world.daemon).grown(&before, "uplink:physnet1.rx.drops.bond_standby") > 0
        });
        world.pings();
    }
}

/// Our end of tunnels, in a VLAN of the underlay, and the other one.
const ENDS: [&str; 2] = ["172.31.78.1", "172.31.79.2"];
/// The router to that one, which it is itself.
const GATEWAY: &str = "172.31.78.254";

#[test]
fn native_vlans_service_tags_and_tunnels_of_an_address_of_its_own_move_with_the_bond() {
    let native = "vlan_mode=native-untagged tag=100 trunks=100,101";
    let [own, peer] = ENDS;
    for (keys, ports, station, segments) in [
        (
            "native_vlan = 100".into(),
            format!("add-port br0 eth0 {native} -- add-port br0 eth1 {native} -- {STATION}"),
            ON_INT0.into(),
            VLANS,
        ),
        (
            "service_vlan = 500".into(),
            // Open vSwitch loses the inner tag of broadcasts once it has learnt anew, so the far station is a host's that has it.
            "add-port wire eth0 trunks=500 -- add-port wire eth1 trunks=500 -- add-port wire eth2 trunks=500".into(),
            String::new(),
            VLANS,
        ),
        (
            format!(
                "underlay_vlan = 50\naddress = \"{own}/24\"\ngateway = \"{GATEWAY}\"\n[tunnel]\nlocal_ip = \"{own}\"\npeers = [\"{peer}\"]"
            ),
            format!(
                "add-port wire eth0 trunks=50 -- add-port wire eth1 trunks=50 -- set port wire tag=50 -- add-port br0 \
                 tun0 -- set Interface tun0 type=vxlan options:remote_ip={own} options:local_ip={peer} \
                 options:key=5000 -- add-port br0 int0 -- set Interface int0 type=internal"
            ),
            format!(
                "{ON_INT0} && ip link set wire up && ip addr add {peer}/32 dev wire && ip addr add {GATEWAY}/24 dev wire"
            ),
            "default = \"vxlan\"",
        ),
    ] {
        println!("{keys}");
        let keys = format!("bond = \"active-backup\"\ndriver = \"af_xdp\"\nexclusive = true\n{keys}");
        let world = World::with("qb-tg", &ports, &station, &keys, segments);
        world.links_become([true; 2], [true, false]);
        world.pings();
        for (link, to_near) in [(0, true), (1, false)] {
            let ear = world.far.sniff();
            let rest = [link == 1, link == 0];
            let lost = world.under_traffic(to_near, || {
                ip(&format!("link set {} down", world.names[link]));
                world.links_become(rest, rest);
            });
            world.report("exclusive", to_near, lost);
            let heard = ear.stop().into_iter().filter(|frame| is_announcement(frame)).count();
            assert!(heard > 0, "nobody was announced");
            world.pings();
            ip(&format!("link set {} up", world.names[link]));
            world.links_become([true; 2], rest);
        }
    }
}

#[test]
fn with_lacp_both_links_carry_flows_and_one_carries_all_when_the_other_is_cut_or_not_agreed_on() {
    for (driver, exclusive) in [("af_packet", false), ("af_xdp", true)] {
        let bond = "add-bond br0 bond0 eth0 eth1 bond_mode=balance-tcp lacp=active trunks=100 \
                    other_config:lacp-time=fast";
        let keys = format!("bond = \"lacp\"\nlacp_rate = \"fast\"\ndriver = \"{driver}\"\nexclusive = {exclusive}");
        let world = World::new("qb-la", bond, &keys);
        world.links_become([true; 2], [true; 2]);
        world.pings();
        let partner = world.daemon.interface("uplink:physnet1")["links"][0]["partner"].clone();
        assert!(partner.is_string(), "{partner}");
        // Many flows spread over both.
        let sent = |link: usize| -> u64 {
            let text = world.far.must(&format!("cat /sys/class/net/eth{link}/statistics/rx_packets"));
            text.trim().parse().unwrap()
        };
        let before = [sent(0), sent(1)];
        world.near.must(&format!(
            "python3 -c \"import socket; [socket.socket(socket.AF_INET,socket.SOCK_DGRAM).sendto(b'x',('{FAR}',9000+p)) for p in range(400)]\""
        ));
        wait_until("both links carry some", SOON, || (0..2).all(|link| sent(link) > before[link] + 50));

        for to_near in [true, false] {
            let lost = world.under_traffic(to_near, || {
                ip(&format!("link set {} down", world.names[1]));
                world.links_become([true, false], [true, false]);
            });
            world.report(driver, to_near, lost);
            ip(&format!("link set {} up", world.names[1]));
            world.links_become([true; 2], [true; 2]);
        }
        // What a VLAN's frames say is nobody's word, however many there are.
        let (stranger, frame) = (world.far.inside(|| RawSocket::open("eth0").unwrap()), tagged_lacpdu());
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(500) {
            // Refused while the wire is full.
            let _ = stranger.send(&frame);
        }
        assert_eq!(world.daemon.interface("uplink:physnet1")["links"][0]["partner"], partner);
        assert_eq!(world.links(), ([true; 2], [true; 2]));

        // A link with a carrier whose other end speaks LACP no more is left.
        world.ovs.set("set port bond0 lacp=off");
        world.links_become([true; 2], [false; 2]);
        world.ovs.set("set port bond0 lacp=active");
        world.links_become([true; 2], [true; 2]);
        world.pings();
    }
}

#[test]
fn a_link_of_a_bond_may_come_late_and_goes_and_comes_again() {
    let world = World::new("qb-lt", TRUNKS, "bond = \"active-backup\"\ndriver = \"af_xdp\"");
    world.pings();
    let name = &world.names[0];
    ip(&format!("link del {name}"));
    world.links_become([false, true], [false, true]);
    world.pings();
    ip(&format!("link add {name} type veth peer name eth0 netns {}", world.far.name()));
    world.far.must("ip link set eth0 up");
    ip(&format!("link set {name} up"));
    world.links_become([true; 2], [false, true]);
    let counted = world.daemon.interface("uplink:physnet1")["links"][1]["device_counters"]["rx_packets"].clone();
    assert!(counted.as_u64() > Some(0), "{counted}");
    let refused = world.daemon.command(&format!("plug other --device {name}"));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("it is the uplink"), "a link of a bond was plugged");
}
