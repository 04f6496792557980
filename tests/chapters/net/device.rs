//! Interfaces that somebody else made: veth ends of containers, which come and go as their owner likes.

use super::SOON;
use crate::topology::attached_tap;
use std::process::Command;
use tests::daemon::Daemon;
use tests::http::Tenant;
use tests::ledger::{Counters, expect};
use tests::namespace::{Namespace, ip, transfer};
use tests::process::{Child, TempDir, output_of, wait_until};

fn exists(interface: &str) -> bool {
    Command::new("ip").args(["link", "show", "dev", interface]).output().unwrap().status.success()
}

/// A pair of veth as container managers make it: `host` here and `eth0` in the container, both up.
fn veth(host: &str, container: &Namespace, address: &str) {
    ip(&format!("link add {host} type veth peer name eth0 netns {}", container.name()));
    ip(&format!("link set {host} up"));
    container.must("ip link set eth0 up");
    container.address("eth0", address);
}

/// Two containers `one` and `two` on one network, plugged by their veth ends `veth-one` and `veth-two`; both UP.
struct Containers {
    daemon: Daemon,
    tenant: Tenant,
    network: String,
    spaces: [Namespace; 2],
}

impl Containers {
    fn new() -> Containers {
        Containers::by(["af_packet", "af_packet"])
    }

    /// The two plugged by these drivers.
    fn by(drivers: [&str; 2]) -> Containers {
        let daemon = Daemon::start("");
        let tenant = daemon.tenant("red");
        let network = tenant.network("lan");
        let spaces = ["one", "two"].map(Namespace::new);
        for ((space, address), driver) in spaces.iter().zip(["10.0.0.1/24", "10.0.0.2/24"]).zip(drivers) {
            let name = space.name();
            veth(&format!("veth-{name}"), space, address);
            let driver = if driver == "af_packet" { String::new() } else { format!(" --driver {driver}") };
            assert_eq!(daemon.must(&format!("plug {name} --device veth-{name}{driver}")), "plugged\n");
            tenant.attached_port(&network, name);
        }
        daemon.wait_up(&["one", "two"]);
        Containers { daemon, tenant, network, spaces }
    }

    fn ping(&self) {
        assert!(self.spaces[0].pings_within("10.0.0.2", SOON), "{}", self.daemon.log_tail());
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        for space in &self.spaces {
            let _ = Command::new("ip").args(["link", "del", &format!("veth-{}", space.name())]).output();
        }
    }
}

#[test]
fn frames_between_two_devices_are_counted_once_each() {
    let world = Containers::new();
    world.ping();
    let before = Counters::read(&world.daemon);
    assert!(world.spaces[0].is_answered("10.0.0.2"));
    // An ARP question and its answer, an echo and its answer.
    expect(
        &world.daemon,
        &before,
        &["one.rx.packets +2", "one.tx.packets +2", "two.rx.packets +2", "two.tx.packets +2"],
    );
    let row = world.daemon.interface("one");
    assert_eq!(
        (&row["kind"], &row["path"], &row["driver"]),
        (&"device".into(), &"veth-one".into(), &"af_packet".into())
    );
    assert_eq!((&row["link"], &row["mtu"], &row["reason"]), (&"up".into(), &1500.into(), &"".into()));
}

/// A TCP stream of so many bytes from the first container to the second.
fn stream(world: &Containers, bytes: usize) {
    transfer(Some(&world.spaces[0]), Some(&world.spaces[1]), "10.0.0.2", bytes);
}

#[test]
fn tcp_between_containers_with_default_offloads_arrives_whole_and_in_large_frames() {
    const BYTES: usize = 256 << 20;
    let world = Containers::new();
    world.ping();
    let before = Counters::read(&world.daemon);
    stream(&world, BYTES);
    let after = Counters::read(&world.daemon);
    let [packets, bytes] = ["packets", "bytes"].map(|what| after.grown(&before, &format!("one.rx.{what}")));
    assert!(bytes as usize >= BYTES && bytes / packets > 10_000, "{bytes} bytes in {packets} frames: TCP was cut");
    let strange = after.strange_drops(&before);
    assert!(strange.is_empty(), "{strange:?}");
}

#[test]
fn tcp_between_containers_of_which_one_or_both_are_plugged_by_af_xdp_arrives_whole() {
    for drivers in [["af_xdp", "af_xdp"], ["af_xdp", "af_packet"], ["af_packet", "af_xdp"]] {
        let world = Containers::by(drivers);
        world.ping();
        for (name, driver) in ["one", "two"].into_iter().zip(drivers) {
            let row = world.daemon.interface(name);
            assert_eq!((&row["kind"], &row["driver"]), (&"device".into(), &driver.into()));
            let is_xdp = driver == "af_xdp";
            assert_eq!(row["driver_mode"], if is_xdp { "native, copy".into() } else { serde_json::Value::Null });
        }
        let before = Counters::read(&world.daemon);
        stream(&world, 64 << 20);
        let strange = Counters::read(&world.daemon).strange_drops(&before);
        assert!(strange.is_empty(), "{drivers:?}: {strange:?}");
    }
}

/// Whether an XDP program is attached to the interface.
fn has_program(interface: &str) -> bool {
    output_of("ip", &["link", "show", "dev", interface]).contains("xdp")
}

#[test]
fn a_device_by_af_xdp_comes_late_goes_and_comes_again_and_its_program_ends_with_the_switch() {
    let mut world = Containers::by(["af_xdp", "af_packet"]);
    world.ping();
    assert!(has_program("veth-one") && !has_program("veth-two"));
    world.daemon.kill();
    wait_until("no program is left behind", SOON, || !has_program("veth-one"));
    world.daemon.start_again();
    world.daemon.wait_up(&["one", "two"]);
    world.ping();

    let late = Namespace::new("late");
    world.daemon.must("plug late --device veth-late --driver af_xdp");
    world.tenant.attached_port(&world.network, "late");
    for round in 0..2 {
        veth("veth-late", &late, "10.0.0.9/24");
        world.daemon.wait_up(&["late"]);
        assert!(world.spaces[0].pings_within("10.0.0.9", SOON), "{round}: {}", world.daemon.log_tail());
        ip("link del veth-late");
        wait_until("the port is down", SOON, || world.daemon.interface("late")["op_status"] == "DOWN");
    }
    world.daemon.must("unplug late");

    // Another driver is another argument.
    let refused = world.daemon.command("plug one --device veth-one --driver af_packet");
    assert_eq!(refused.status.code(), Some(1));
    world.daemon.must("plug one --device veth-one --driver af_packet --replace");
    world.daemon.wait_up(&["one"]);
    assert!(!has_program("veth-one"));
    world.ping();
    world.daemon.must("plug one --device veth-one --driver af_xdp --replace");
    world.daemon.wait_up(&["one"]);
    world.ping();
    world.daemon.stop();
    assert!(!has_program("veth-one"));
}

#[test]
fn carrier_and_mtu_of_a_device_by_af_xdp_are_followed() {
    let world = Containers::by(["af_xdp", "af_xdp"]);
    world.ping();
    let becomes = |key: &str, value: serde_json::Value| {
        wait_until(&format!("{key} is {value}"), SOON, || world.daemon.interface("two")[key] == value);
    };
    world.spaces[1].must("ip link set eth0 down");
    becomes("link", "down".into());
    world.spaces[1].must("ip link set eth0 up");
    becomes("link", "up".into());
    ip("link set veth-two down");
    becomes("op_status", "DOWN".into());
    ip("link set veth-two up");
    world.daemon.wait_up(&["one", "two"]);
    world.ping();
    // Longer than a page, in several pieces both ways.
    for space in &world.spaces {
        ip(&format!("link set veth-{} mtu 9000", space.name()));
        space.must("ip link set eth0 mtu 9000");
    }
    becomes("mtu", 9000.into());
    wait_until("large frames pass", SOON, || {
        world.spaces[0].run("busybox ping -c 1 -W 1 -s 8000 10.0.0.2").status.success()
    });
    ip("link set veth-two mtu 2000");
    becomes("mtu", 2000.into());
    let before = Counters::read(&world.daemon);
    assert!(!world.spaces[0].run("busybox ping -c 1 -W 1 -s 8000 10.0.0.2").status.success());
    expect_over_mtu(&world, &before);
}

#[test]
fn a_device_by_af_xdp_whose_queues_become_more_is_opened_anew_and_heard_by_each_of_them() {
    const FLOWS: u64 = 200;
    let world = Containers::by(["af_xdp", "af_packet"]);
    world.ping();
    output_of("ethtool", &["-L", "veth-one", "rx", "2"]);
    world.spaces[0].must("ethtool -L eth0 tx 2");
    wait_until("the change is told", SOON, || {
        world.daemon.log_tail().contains("1 queues to receive and 1 to send by and has 2 and 1 now")
    });
    world.daemon.wait_up(&["one", "two"]);
    world.ping();
    let before = Counters::read(&world.daemon);
    // The sender's kernel chooses a queue by each one's port.
    let sockets: Vec<_> = world.spaces[0].inside(|| {
        let sockets = (0..FLOWS).map(|_| std::net::UdpSocket::bind("10.0.0.1:0").unwrap());
        sockets.inspect(|socket| assert_eq!(socket.send_to(b"flow", "10.0.0.2:9").unwrap(), 4)).collect()
    });
    wait_until("every flow came", SOON, || {
        Counters::read(&world.daemon).grown(&before, "one.rx.packets") >= sockets.len() as u64
    });
    let counters = output_of("ethtool", &["-S", "veth-one"]);
    assert!(counters.contains("rx_queue_1_xdp_redirect: ") && !counters.contains("rx_queue_1_xdp_redirect: 0\n"));
    assert_eq!(world.daemon.interface("one")["device_counters"]["rx_unclaimed"], 0);
}

fn expect_over_mtu(world: &Containers, before: &Counters) {
    assert_eq!(Counters::read(&world.daemon).grown(before, "two.tx.drops.over_mtu"), 1);
}

#[test]
fn a_device_and_a_tap_on_one_network_reach_each_other() {
    let world = Containers::new();
    let host = Namespace::new("host");
    attached_tap(&world.daemon, &world.tenant, &world.network, "tap", &host, "10.0.0.3/24");
    world.daemon.wait_up(&["tap"]);
    assert!(host.pings_within("10.0.0.1", SOON), "{}", world.daemon.log_tail());
    assert!(world.spaces[1].pings_within("10.0.0.3", SOON), "{}", world.daemon.log_tail());
}

#[test]
fn a_device_may_come_late_go_and_come_again_and_survives_kill_9() {
    let mut world = Containers::new();
    let late = Namespace::new("late");
    let said = world.daemon.must("plug late --device veth-late");
    assert_eq!(said, "plugged; waiting for the device: there is no interface named \"veth-late\"\n");
    let port = world.tenant.attached_port(&world.network, "late");
    assert_eq!(world.tenant.op_status(&world.network, &port), "DOWN");
    for round in 0..2 {
        veth("veth-late", &late, "10.0.0.9/24");
        world.daemon.wait_up(&["late"]);
        assert!(world.spaces[0].pings_within("10.0.0.9", SOON), "{round}: {}", world.daemon.log_tail());
        ip("link del veth-late");
        wait_until("the port is down", SOON, || world.daemon.interface("late")["op_status"] == "DOWN");
        wait_until("the reason is told", SOON, || {
            world.daemon.interface("late")["reason"] == "there is no interface named \"veth-late\""
        });
        assert!(world.spaces[0].is_answered("10.0.0.2"), "the others are not touched");
    }
    veth("veth-late", &late, "10.0.0.9/24");
    world.daemon.wait_up(&["late"]);
    world.daemon.kill_and_restart();
    world.daemon.wait_up(&["one", "two", "late"]);
    assert!(world.spaces[0].pings_within("10.0.0.9", SOON), "{}", world.daemon.log_tail());
    assert_eq!(world.daemon.must("unplug late"), "unplugged\n");
    assert!(exists("veth-late"), "a device of somebody else's was removed");
    ip("link del veth-late");
}

#[test]
fn state_carrier_and_mtu_of_a_device_are_followed() {
    let world = Containers::new();
    world.ping();
    let becomes = |key: &str, value: serde_json::Value| {
        wait_until(&format!("{key} is {value}"), SOON, || world.daemon.interface("two")[key] == value);
    };
    wait_until("the kernel's counters are told", SOON, || {
        let counters = world.daemon.interface("two")["device_counters"].clone();
        counters["rx_packets"].as_u64() > Some(0) && counters["tx_bytes"].as_u64() > Some(0)
    });
    assert!(world.daemon.metrics().contains("device=\"veth-two\",counter=\"rx_missed\"} 0\n"));
    world.spaces[1].must("ip link set eth0 down");
    becomes("link", "down".into());
    becomes("reason", "the interface has no carrier".into());
    assert_eq!(world.daemon.interface("two")["op_status"], "UP", "bound, there and up");
    world.spaces[1].must("ip link set eth0 up");
    becomes("link", "up".into());
    ip("link set veth-two down");
    becomes("op_status", "DOWN".into());
    becomes("reason", "the interface is down".into());
    ip("link set veth-two up");
    world.daemon.wait_up(&["one", "two"]);
    world.ping();

    // Larger at both ends, without a word to the switch.
    for space in &world.spaces {
        ip(&format!("link set veth-{} mtu 9000", space.name()));
        space.must("ip link set eth0 mtu 9000");
    }
    becomes("mtu", 9000.into());
    assert!(world.spaces[0].run("busybox ping -c 1 -W 2 -s 8000 10.0.0.2").status.success());
    // Smaller at one: what does not fit is told.
    ip("link set veth-two mtu 2000");
    becomes("mtu", 2000.into());
    assert!(!world.spaces[0].run("busybox ping -c 1 -W 1 -s 8000 10.0.0.2").status.success());
    assert_eq!(world.daemon.interface("two")["tx"]["drops"]["over_mtu"], 1);
    // And an operator may allow less than the device does.
    world.daemon.must("plug one --device veth-one --mtu 1000 --replace");
    becomes("op_status", "UP".into());
    world.daemon.wait_up(&["one"]);
    assert_eq!(world.daemon.interface("one")["mtu"], 1000);
    assert!(!world.spaces[0].run("busybox ping -c 1 -W 1 -s 1200 10.0.0.2").status.success());
    assert_eq!(world.daemon.interface("one")["rx"]["drops"]["over_mtu"], 1);
}

#[test]
fn a_device_in_another_namespace_is_plugged_there_and_waits_for_its_name() {
    let world = Containers::new();
    let far = Namespace::new("far");
    world.daemon.must("plug far --device inner --netns hidden");
    world.tenant.attached_port(&world.network, "far");
    assert_eq!(world.daemon.interface("far")["reason"], "the network namespace /run/netns/hidden is gone");
    let hidden = Namespace::new("hidden");
    hidden.must("ip link add inner type veth peer name eth0 netns far");
    hidden.must("ip link set inner up");
    far.must("ip link set eth0 up");
    far.address("eth0", "10.0.0.8/24");
    world.daemon.wait_up(&["far"]);
    assert!(far.pings_within("10.0.0.1", SOON), "{}", world.daemon.log_tail());
    drop(hidden);
    wait_until("the port is down", SOON, || world.daemon.interface("far")["op_status"] == "DOWN");
    // Not kept alive by the switch, and its devices go with it.
    wait_until("the far end is gone", SOON, || !far.run("ip link show dev eth0").status.success());
}

#[test]
fn one_interface_belongs_to_one_id_whether_plugged_as_device_or_as_tap() {
    let world = Containers::new();
    let refused = |line: &str| {
        let output = world.daemon.command(line);
        assert_eq!(output.status.code(), Some(1), "{line}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused("plug other --device veth-one").contains("belongs to interface \"one\""));
    assert!(refused("plug other --tap veth-one").contains("belongs to interface \"one\""));
    assert!(refused("plug one --device veth-two").contains("belongs to interface \"two\""));
    assert!(refused("plug one --device veth-one --mtu 1400").contains("--replace"));
    assert_eq!(world.daemon.must("plug one --device veth-one"), "plugged\n");
    world.daemon.must("plug own --tap own-tap");
    assert!(refused("plug other --device own-tap").contains("belongs to interface \"own\""));
    assert!(refused("plug one --tap veth-one --replace").contains("exists already and is not ours"));
    // What was a TAP of ours and is a device now was given up: it is gone, and whoever makes another is waited for.
    world.daemon.must("plug own --device own-tap --replace");
    assert!(!exists("own-tap"));
    world.ping();
}

/// Holds a TAP as QEMU does, and is the guest behind it: whole frames go, with what is left to do for them, between it and another
/// TAP, which is a station's. Both go with the process.
const HOLDER: &str = r#"
import fcntl, os, select, struct, sys
def tap(name):
    fd = os.open('/dev/net/tun', os.O_RDWR)
    # TUNSETIFF: IFF_TAP, IFF_NO_PI, IFF_VNET_HDR; TUNSETOFFLOAD: checksums and TSO.
    fcntl.ioctl(fd, 0x400454ca, struct.pack('16sH22x', name.encode(), 0x5002))
    fcntl.ioctl(fd, 0x400454d0, 7)
    return fd
ends = [tap(name) for name in sys.argv[1:]]
while True:
    for end in select.select(ends, [], [])[0]:
        frame = os.read(end, 1 << 17)
        try:
            os.write(ends[1 - ends.index(end)], frame)
        except OSError:
            pass
"#;

/// A process that holds `held` here; behind it is `eth0` in the namespace, with this address.
fn hold(held: &str, guest: &Namespace, address: &str, dir: &TempDir) -> Child {
    let inner = format!("{held}-g");
    let mut command = Command::new("python3");
    let holder = Child::spawn("holder", command.args(["-c", HOLDER, held, &inner]), &dir.join("log"));
    wait_until("the TAPs are there", SOON, || exists(held) && exists(&inner));
    ip(&format!("link set {inner} netns {} name eth0", guest.name()));
    ip(&format!("link set {held} up"));
    guest.must("ip link set eth0 up");
    guest.address("eth0", address);
    holder
}

#[test]
fn a_tap_that_another_process_holds_is_plugged_from_the_kernels_side_and_goes_and_comes_with_its_holder() {
    let mut world = Containers::new();
    let (guest, dir) = (Namespace::new("held"), TempDir::new());
    assert!(world.daemon.must("plug held --device qd-held").contains("waiting for the device"));
    world.tenant.attached_port(&world.network, "held");
    for round in 0..2 {
        let mut holder = hold("qd-held", &guest, "10.0.0.9/24", &dir);
        world.daemon.wait_up(&["held"]);
        assert_eq!(world.daemon.interface("held")["driver"], "af_packet");
        assert!(world.spaces[0].pings_within("10.0.0.9", SOON), "{round}: {}", world.daemon.log_tail());
        let before = Counters::read(&world.daemon);
        for (from, to, address) in [(&guest, &world.spaces[0], "10.0.0.1"), (&world.spaces[0], &guest, "10.0.0.9")] {
            transfer(Some(from), Some(to), address, 16 << 20);
        }
        let after = Counters::read(&world.daemon);
        for way in ["rx", "tx"] {
            let [packets, bytes] = ["packets", "bytes"].map(|what| after.grown(&before, &format!("held.{way}.{what}")));
            assert!(bytes / packets > 3000, "{way}: {bytes} bytes in {packets} frames: TCP was cut");
        }
        assert!(after.strange_drops(&before).is_empty(), "{:?}", after.strange_drops(&before));
        if round == 0 {
            // The switch goes and comes, and its device is none of its own.
            world.daemon.kill_and_restart();
            world.daemon.wait_up(&["one", "two", "held"]);
            assert!(guest.pings_within("10.0.0.1", SOON), "{}", world.daemon.log_tail());
        }
        holder.kill();
        wait_until("the port is down", SOON, || world.daemon.interface("held")["op_status"] == "DOWN");
        assert!(world.spaces[0].is_answered("10.0.0.2"), "the others are not touched");
    }
}
