//! The kernel's VXLAN device and bridge are the other side.

use super::super::SOON;
use super::{BOTH_FAMILIES, Beside, Ends, Wire, give_address, settings};
use std::time::{Duration, Instant};
use tests::capture::Running;
use tests::ledger::Counters;
use tests::namespace::{Namespace, transfer};
use tests::pcapng;
use tests::process::{output_of, wait_until};

/// A host whose kernel has VXLAN 5000 on a bridge, and ours with these settings added to the uplink's.
pub(super) fn beside_the_kernel(ends: Ends, uplink: &str) -> Beside {
    beside_the_kernel_with(ends, uplink, "")
}

/// The same with these added to those of the tunnels.
pub(super) fn beside_the_kernel_with(ends: Ends, uplink: &str, tunnel: &str) -> Beside {
    let Ends([near_ip, far_ip], _) = ends;
    let far = Namespace::new("qt-far");
    let wire = Wire::new("qt-vx", &far, ends, true);
    far.must(&format!("ip link add vx0 type vxlan id 5000 dstport 4789 local {far_ip} remote {near_ip} dev eth0"));
    far.must("ip link add br0 type bridge && ip link set vx0 master br0 && ip link set vx0 up && ip link set br0 up");
    far.must("ip link set br0 mtu 1500 && ip link set vx0 mtu 1500 && ip addr add 10.9.0.2/24 dev br0");
    let text = settings("qt-vx", Some([near_ip, far_ip]), "default = \"vxlan\"");
    let text = text.replace("[tunnel]", &format!("{uplink}\n[tunnel]"));
    Beside::new(wire, far, ends, &text.replace("[segments]", &format!("{tunnel}\n[segments]")))
}

#[test]
fn by_af_xdp_a_network_is_one_with_the_kernels_vxlan_device_and_the_host_keeps_its_addresses() {
    for ends in BOTH_FAMILIES {
        let hosts = beside_the_kernel(ends, "driver = \"af_xdp\"");
        hosts.passes_everything();
        assert!(output_of("ip", &["link", "show", "dev", "qt-vx"]).contains("xdp"));

        // Meanwhile and besides, the host's own address is reached as ever, both ways, while the tunnel is busy.
        let near_ip = hosts.ends.0[0];
        assert!(hosts.far.pings_within(near_ip, SOON), "{}", hosts.daemon.log_tail());
        std::thread::scope(|scope| {
            scope.spawn(|| transfer(Some(&hosts.far), None, near_ip, 32 << 20));
            transfer(Some(&hosts.near), Some(&hosts.far), "10.9.0.2", 32 << 20);
        });
    }
}

#[test]
fn a_network_is_one_with_the_kernels_vxlan_device_over_ipv4_and_ipv6() {
    for ends in BOTH_FAMILIES {
        let hosts = beside_the_kernel(ends, "");
        hosts.passes_everything();

        let row = &hosts.daemon.show("networks")[0];
        assert_eq!((&row["type"], &row["segmentation_id"]), (&"vxlan".into(), &5000.into()), "{row:#}");
        let macs = hosts.daemon.show("macs");
        let (far_mac, [near_ip, far_ip]) = (hosts.far.mac("br0"), hosts.ends.0);
        let entry = macs.as_array().unwrap().iter().find(|row| row["mac"] == far_mac.as_str());
        assert_eq!(entry.unwrap()["remote"], format!("tunnel:{far_ip}").as_str(), "{macs:#}");
        // The host's own traffic on the same interface goes on.
        assert!(hosts.far.run(&format!("busybox ping -c 1 -W 2 {near_ip}")).status.success());
    }
}

#[test]
fn what_comes_and_goes_by_an_uplink_is_traced_and_captured_by_its_name() {
    let hosts = beside_the_kernel(BOTH_FAMILIES[0], "");
    assert!(hosts.near.pings_within("10.9.0.2", SOON), "{}", hosts.daemon.log_tail());
    let file = hosts.daemon.path("uplink.pcapng");
    let capture = Running::start(&hosts.daemon, &format!("uplink:physnet1 -w {} --filter udp", file.display()));
    assert!(hosts.near.is_answered("10.9.0.2"));
    capture.interrupt();
    let capture = pcapng::read(&std::fs::read(&file).unwrap());
    assert_eq!(capture.interface, "uplink:physnet1");
    let inbound = capture.frames.iter().find(|frame| frame.is_inbound()).expect("the answer");
    assert!(capture.frames.iter().any(|frame| !frame.is_inbound()), "the question");

    let hex: String = inbound.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let told = hosts.daemon.must(&format!("trace uplink:physnet1 {hex}"));
    assert!(told.contains("uplink: vxlan 5000 from 172.31.77.2, 50 bytes of outer headers"), "{told}");
    let told = hosts.daemon.must(&format!("trace uplink:physnet1 ffffffffffff02000000000188b5{}", "00".repeat(46)));
    assert!(told.contains("uplink: nothing of ours, not forwarded"), "{told}");
}

#[test]
fn a_peer_whose_next_hop_is_not_there_is_told_and_counted_as_such_and_changes_no_config() {
    let ends = BOTH_FAMILIES[0];
    let Ends([_, far_ip], len) = ends;
    let hosts = beside_the_kernel(ends, "");
    assert!(hosts.near.pings_within("10.9.0.2", SOON), "{}", hosts.daemon.log_tail());
    let way = || hosts.daemon.interface(&format!("tunnel:{far_ip}"));
    let generation = || hosts.daemon.show("config")["generation"].clone();
    // An interface that was just made gets an IPv6 address of its own a second or two later, which is news too.
    let mut last = (generation(), Instant::now());
    wait_until("no more is found out", SOON, || {
        let now = generation();
        if now != last.0 {
            last = (now, Instant::now());
        }
        last.1.elapsed() > Duration::from_secs(3)
    });
    let before = (last.0, Counters::read(&hosts.daemon));
    hosts.far.must("ip addr flush dev eth0");
    tests::namespace::ip("neigh flush dev qt-vx");
    wait_until("the next hop is gone", SOON, || way()["reason"] == "no-neighbour");
    assert_eq!(way()["mtu"], 1600, "{:#}", way());
    assert!(!hosts.near.pings("10.9.0.2"));
    let now = Counters::read(&hosts.daemon);
    let dropped = |reason: &str| now.grown(&before.1, &format!("tunnel:{far_ip}.tx.drops.{reason}"));
    assert!(dropped("no_neighbour") > 0 && dropped("over_mtu") == 0);
    hosts.far.must(&format!("ip addr add {far_ip}/{len} dev eth0"));
    wait_until("the next hop is there again", SOON, || way()["link"] == "up");
    assert_eq!(generation(), before.0, "{}", hosts.daemon.log_tail());
}

#[test]
fn what_a_router_says_of_packets_that_are_too_long_is_learnt_and_told() {
    let ends = Ends(["172.31.77.1", "172.31.77.254"], 24);
    let (router, far) = (Namespace::new("qt-router"), Namespace::new("qt-far"));
    let wire = Wire::new("qt-vx", &router, ends, true);
    router.must("ip link add eth1 type veth peer name eth0 netns qt-far");
    router.must("ip link set eth1 mtu 1400 up && ip addr add 172.31.78.254/24 dev eth1");
    router.must("echo 1 > /proc/sys/net/ipv4/ip_forward");
    far.must("ip link set eth0 mtu 1400 up && ip addr add 172.31.78.2/24 dev eth0");
    far.must("ip route add default via 172.31.78.254");
    tests::namespace::ip("route add 172.31.78.0/24 via 172.31.77.254");
    far.must("ip link add vx0 type vxlan id 5000 dstport 4789 local 172.31.78.2 remote 172.31.77.1 dev eth0");
    far.must("ip link add br0 type bridge && ip link set vx0 master br0 && ip link set vx0 up && ip link set br0 up");
    far.must("ip link set vx0 mtu 1350 && ip link set br0 mtu 1350 && ip addr add 10.9.0.2/24 dev br0");
    let text = settings("qt-vx", Some(["172.31.77.1", "172.31.78.2"]), "default = \"vxlan\"");
    let hosts = Beside::new(wire, far, ends, &text);
    assert!(hosts.near.pings_within("10.9.0.2", SOON), "{}", hosts.daemon.log_tail());
    let mtu = || hosts.daemon.show("networks")[0]["mtu"].clone();
    assert_eq!(mtu(), 1550);
    // Another station of the network, whose MTU is its operator's word.
    let stubborn = Namespace::new("qt-stubborn");
    hosts.daemon.must("plug qt-b --tap tap0 --netns qt-stubborn --mtu 1499");
    let network = hosts.daemon.show("networks")[0]["id"].as_str().unwrap().to_owned();
    hosts.daemon.tenant("red").attached_port(&network, "qt-b");
    stubborn.address("tap0", "10.9.0.3/24");
    assert!(stubborn.pings_within("10.9.0.2", SOON), "{}", hosts.daemon.log_tail());

    // The first such packet is lost at the router, which says so.
    assert!(!hosts.near.run("busybox ping -s 1400 -c 1 -W 1 10.9.0.2").status.success());
    wait_until("it is learnt", SOON, || mtu() == 1350);
    let row = hosts.daemon.interface("tunnel:172.31.78.2");
    assert_eq!(row["mtu"], 1400, "{row:#}");
    assert!(hosts.near.run("busybox ping -s 1322 -c 1 -W 2 10.9.0.2").status.success(), "as long as gets there");
    // The TAP has the MTU of its network, so that its kernel cuts what is longer.
    let of_tap = |space: &Namespace| space.must("cat /sys/class/net/tap0/mtu").trim().to_owned();
    wait_until("the TAP is told", SOON, || of_tap(&hosts.near) == "1350");
    assert_eq!(hosts.daemon.interface("qt-a")["mtu"], 1350);
    assert!(hosts.near.run("busybox ping -s 1323 -c 1 -W 2 10.9.0.2").status.success(), "in two pieces");
    // Who has another MTU sends such packets, and they do not leave.
    assert_eq!(of_tap(&stubborn), "1499");
    let before = Counters::read(&hosts.daemon);
    assert!(!stubborn.run("busybox ping -s 1323 -c 1 -W 1 10.9.0.2").status.success());
    assert_eq!(Counters::read(&hosts.daemon).grown(&before, "tunnel:172.31.78.2.tx.drops.over_mtu"), 1);
    // But its kernel was told, and cuts them from now on.
    let route = stubborn.must("ip route get 10.9.0.2");
    assert!(route.contains("mtu 1350"), "{route}");
    assert!(stubborn.run("busybox ping -s 1323 -c 1 -W 2 10.9.0.2").status.success(), "in two pieces");
}

#[test]
fn tcp_finds_out_how_long_its_packets_may_be_on_their_way_into_a_tunnel_by_ipv4_and_ipv6() {
    let hosts = beside_the_kernel(BOTH_FAMILIES[0], "");
    tests::namespace::ip("link set qt-vx mtu 1500");
    let stubborn = Namespace::new("qt-stubborn");
    hosts.daemon.must("plug qt-b --tap tap0 --netns qt-stubborn --mtu 1499");
    let network = hosts.daemon.show("networks")[0]["id"].as_str().unwrap().to_owned();
    hosts.daemon.tenant("red").attached_port(&network, "qt-b");
    give_address(&stubborn, "tap0", "10.9.0.3", 24);
    give_address(&stubborn, "tap0", "fd09::3", 64);
    give_address(&hosts.far, "br0", "fd09::2", 64);
    wait_until("the wire's MTU is known", SOON, || hosts.daemon.show("networks")[0]["mtu"] == 1450);
    for address in ["10.9.0.2", "fd09::2"] {
        assert!(stubborn.pings_within(address, SOON), "{}", hosts.daemon.log_tail());
        let before = Counters::read(&hosts.daemon);
        transfer(Some(&stubborn), Some(&hosts.far), address, 8 << 20);
        let far_ip = hosts.ends.0[1];
        let dropped = Counters::read(&hosts.daemon).grown(&before, &format!("tunnel:{far_ip}.tx.drops.over_mtu"));
        assert!(dropped > 0, "nothing was too long");
        let route = stubborn.must(&format!("ip route get {address}"));
        assert!(route.contains("mtu 1450"), "{route}");
    }
}

#[test]
fn a_tap_has_the_mtu_of_its_network_and_gets_another_with_it() {
    let ends = BOTH_FAMILIES[0];
    let mut hosts = beside_the_kernel(ends, "");
    let of_tap = |hosts: &Beside| hosts.near.must("cat /sys/class/net/tap0/mtu").trim().to_owned();
    // The wire takes 1,600 bytes, and a port no more than 1,500.
    assert_eq!(of_tap(&hosts), "1500");
    tests::namespace::ip("link set qt-vx mtu 1500");
    wait_until("the TAP is told that the wire takes less", SOON, || of_tap(&hosts) == "1450");
    assert_eq!(hosts.daemon.interface("qt-a")["mtu"], 1450);
    // Under whatever name in whatever namespace it is now.
    let elsewhere = Namespace::new("qt-else");
    hosts.near.must("ip link set tap0 down && ip link set tap0 name moved0 && ip link set moved0 netns qt-else");
    tests::namespace::ip("link set qt-vx mtu 1400");
    let of_moved = || elsewhere.must("cat /sys/class/net/moved0/mtu").trim().to_owned();
    wait_until("it is told where it was moved to", SOON, || of_moved() == "1350");
    elsewhere.must("ip link set moved0 netns qt-near");
    hosts.near.must("ip link set moved0 name tap0 && ip link set tap0 up");
    // A daemon that starts finds the TAP of before and the network's MTU.
    hosts.daemon.kill_and_restart();
    hosts.daemon.wait_up(&["qt-a"]);
    wait_until("it has it after a restart", SOON, || of_tap(&hosts) == "1350");
    // So little that Linux would end IPv6 on the TAP: it is told as much as IPv6 needs.
    give_address(&hosts.near, "tap0", "fd09::9", 64);
    tests::namespace::ip("link set qt-vx mtu 1300");
    wait_until("the network lets through less", SOON, || hosts.daemon.show("networks")[0]["mtu"] == 1250);
    wait_until("the TAP is told no less than it needs", SOON, || of_tap(&hosts) == "1280");
    assert!(hosts.near.must("ip -6 addr show dev tap0").contains("fd09::9"), "it lost its address");
}
