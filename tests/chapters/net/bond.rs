//! An uplink of two links: Open vSwitch is the switch beyond, and links are cut under traffic.

use super::SOON;
use crate::topology::attached_tap;
use std::net::UdpSocket;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tests::daemon::Daemon;
use tests::ledger::Counters;
use tests::namespace::Namespace;
use tests::ovs::{Ovs, PLAIN};
use tests::process::{output_of, wait_until};

const NEAR: &str = "10.9.0.1";
const FAR: &str = "10.9.0.2";
/// Between two datagrams of a stream.
const PAUSE: Duration = Duration::from_millis(1);

/// Two wires from here, `{name}0` and `{name}1`, to `eth0` and `eth1` of a namespace that Open vSwitch serves, and a tenant's
/// network on VLAN 100 with one station at either end: a TAP in `near`, and `int0` of the far bridge.
struct World {
    daemon: Daemon,
    ovs: Ovs,
    near: Namespace,
    far: Namespace,
    names: [String; 2],
}

fn ip(line: &str) {
    output_of("ip", &line.split(' ').collect::<Vec<_>>());
}

impl Drop for World {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["link", "del", name]).output();
        }
    }
}

impl World {
    /// `ports`: how Open vSwitch has its ends (words of `ovs-vsctl`). `keys`: of the uplink.
    fn new(name: &str, ports: &str, keys: &str) -> World {
        let (near, far) = (Namespace::new(&format!("{name}-near")), Namespace::new(&format!("{name}-far")));
        let names = [0, 1].map(|link| format!("{name}{link}"));
        for (link, near) in names.iter().enumerate() {
            ip(&format!("link add {near} type veth peer name eth{link} netns {}", far.name()));
            ip(&format!("link set {near} up"));
            output_of("ethtool", &["-K", near, "tx", "off", "tso", "off", "gso", "off"]);
            far.must(&format!("ip link set eth{link} up && ethtool -K eth{link} txvlan off"));
        }
        let ovs = far.inside(|| Ovs::start(PLAIN, "", &["br0"]));
        ovs.set(&format!("{ports} -- add-port br0 int0 tag=100 -- set Interface int0 type=internal"));
        far.must(&format!("ip link set int0 up && ip addr add {FAR}/24 dev int0"));
        let [one, other] = &names;
        let daemon = Daemon::start(&format!(
            "[[uplink]]\nphysical_network = \"physnet1\"\ninterface = [\"{one}\", \"{other}\"]\n{keys}\n\
             [segments]\ndefault = \"vlan\"\nvlan = \"physnet1:100-199\"\n"
        ));
        let tenant = daemon.tenant("red");
        let network = tenant.network("lan");
        attached_tap(&daemon, &tenant, &network, name, &near, &format!("{NEAR}/24"));
        daemon.wait_up(&[name]);
        World { daemon, ovs, near, far, names }
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
    /// They come in order and go on coming. Answers how many were lost.
    fn under_traffic(&self, to_near: bool, act: impl FnOnce()) -> u64 {
        let (from, to, address) = if to_near { (&self.far, &self.near, NEAR) } else { (&self.near, &self.far, FAR) };
        let receiver = to.inside(|| UdpSocket::bind((address, 7000)).unwrap());
        receiver.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let sender = from.inside(|| UdpSocket::bind(("0.0.0.0", 0)).unwrap());
        let (is_over, came) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
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
            scope.spawn(|| {
                let mut next = 0;
                let mut bytes = [0; 8];
                while !is_over.load(Ordering::Relaxed) {
                    let Ok(8) = receiver.recv(&mut bytes) else { continue };
                    let number = u64::from_be_bytes(bytes);
                    assert!(number >= next, "{number} came again, or behind {next}");
                    next = number + 1;
                    came.fetch_add(1, Ordering::Relaxed);
                }
            });
            wait_until("the stream flows", SOON, || came.load(Ordering::Relaxed) > 20);
            act();
            let now = came.load(Ordering::Relaxed);
            wait_until("the stream flows still", SOON, || came.load(Ordering::Relaxed) > now + 20);
            is_over.store(true, Ordering::Relaxed);
            sent.join().unwrap() - came.load(Ordering::Relaxed)
        })
    }
}

/// A reverse ARP question of a station (RFC 903).
fn is_announcement(frame: &[u8]) -> bool {
    frame[..6] == [0xff; 6] && (frame[12..14] == [0x80, 0x35] || frame[16..18] == [0x80, 0x35])
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
        let heard = ear.stop().into_iter().filter(|frame| is_announcement(frame)).count();
        assert!(heard > 0, "nobody was announced");
        println!("{driver}, to the near station: {lost} datagrams of 1 ms lost");
        let before = Counters::read(&world.daemon);
        // It stays where it is when the first one is back, and moves when the second one goes.
        ip(&format!("link set {} up", world.names[0]));
        world.links_become([true; 2], [false, true]);
        let lost = world.under_traffic(false, || {
            world.far.must("ip link set eth1 down");
            world.links_become([true, false], [true, false]);
        });
        println!("{driver}, from the near station: {lost} datagrams of 1 ms lost");
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
            println!("{driver}, to the near station: {to_near}: {lost} datagrams of 1 ms lost");
            ip(&format!("link set {} up", world.names[1]));
            world.links_become([true; 2], [true; 2]);
        }
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
    let refused = world.daemon.command(&format!("plug other --device {name}"));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("it is the uplink"), "a link of a bond was plugged");
}
