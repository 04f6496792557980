//! Guests whose device is another than one vhost-user port on one network: a trunk, and a TAP that QEMU holds.

use super::BACK_LIMIT;
use crate::topology::attached_tap;
use std::time::Duration;
use tests::daemon::Daemon;
use tests::guest::{Extras, Guest, Nic, QemuRole};
use tests::ledger::Counters;
use tests::namespace::{Namespace, ip};
use tests::process::{wait_for, wait_until};

/// A stream of TCP from the guest to an address, and one to it; whoever has the address runs iperf3.
fn streams(guest: &mut Guest, to: &Namespace, address: &str) {
    for way in ["", "-R"] {
        to.must(&format!("iperf3 -s -1 -D -B {address}"));
        let line = format!("iperf3 -c {address} -n 16M {way}");
        let done =
            wait_for(BACK_LIMIT, || (guest.run_within(Duration::from_secs(60), &line).status == 0).then_some(()));
        assert!(done.is_some(), "{line}");
    }
}

/// Frames that are longer than a segment: nobody cut them.
fn are_uncut(after: &Counters, before: &Counters, flow: &str) -> bool {
    let [packets, bytes] = ["packets", "bytes"].map(|what| after.grown(before, &format!("{flow}.{what}")));
    println!("{flow}: {bytes} bytes in {packets} frames");
    // What is still under way when enough was sent iperf3 does not wait for.
    bytes > 8 << 20 && bytes / packets > 2000
}

fn pings(guest: &mut Guest, address: &str) -> bool {
    guest.run(&format!("ping -c 1 -W 1 {address}")).status == 0
}

/// Whether one ping is answered, however slow the machine is.
fn is_answered(guest: &mut Guest, address: &str) -> bool {
    guest.run(&format!("ping -c 1 -W 5 {address}")).status == 0
}

#[test]
fn a_guest_is_on_two_networks_by_one_vhost_user_device_and_its_tag_stays_with_large_frames() {
    let daemon = Daemon::start("");
    let nic = Nic { socket: daemon.path("trunk"), role: QemuRole::Client, mac: "02:00:00:00:00:01".into() };
    daemon.must(&format!("plug trunk --vhost-user {}", nic.socket.display()));
    daemon.must("plug trunk.20 --parent trunk --vlan 20");
    let others = ["qw-red", "qw-blue"].map(Namespace::new);
    let networks = ["red", "blue"].map(|tenant| {
        let tenant = daemon.tenant(tenant);
        let network = tenant.network("lan");
        (tenant, network)
    });
    for (((tenant, network), other), (id, address)) in
        networks.iter().zip(&others).zip([("trunk", "10.0.0.2/24"), ("trunk.20", "10.0.20.2/24")])
    {
        tenant.attached_port(network, id);
        attached_tap(&daemon, tenant, network, other.name(), other, address);
    }
    daemon.wait_up(&["trunk", "trunk.20", "qw-red", "qw-blue"]);
    let mut guest = Guest::boot("trunk", &[nic]);
    guest.must("ip link add link eth0 name eth0.20 type vlan id 20");
    for (interface, address) in [("eth0", "10.0.0.1/24"), ("eth0.20", "10.0.20.1/24")] {
        guest.must(&format!("ip link set {interface} up && ip addr add {address} dev {interface}"));
    }
    for address in ["10.0.0.2", "10.0.20.2"] {
        let reached = wait_for(BACK_LIMIT, || pings(&mut guest, address).then_some(()));
        assert!(reached.is_some(), "{address}\n{:#}\n{}", daemon.show("ports"), daemon.log_tail());
    }
    let before = Counters::read(&daemon);
    for (other, address, id) in [(&others[0], "10.0.0.2", "trunk"), (&others[1], "10.0.20.2", "trunk.20")] {
        streams(&mut guest, other, address);
        let after = Counters::read(&daemon);
        assert!(["rx", "tx"].iter().all(|way| are_uncut(&after, &before, &format!("{id}.{way}"))), "{id}: TCP was cut");
    }
    let strange = Counters::read(&daemon).strange_drops(&before);
    assert!(strange.is_empty(), "{strange:?}");

    // What the guest asks everybody on one network the other does not hear.
    let ears = others.each_ref().map(Namespace::sniff);
    for (interface, address) in [("eth0", "10.0.0.7"), ("eth0.20", "10.0.20.7")] {
        guest.run(&format!("arping -c 1 -w 1 -I {interface} {address}"));
    }
    let asks = |frame: &[u8], third: u8| frame[12..14] == [8, 6] && frame[38..42] == [10, 0, third, 7];
    for (ear, third) in ears.iter().zip([0, 20]) {
        ear.wait_for("its own network hears it", 1, |frame| asks(frame, third));
    }
    let [red, blue] = ears.map(tests::namespace::Sniffer::stop);
    assert!(red.iter().all(|frame| !asks(frame, 20)) && blue.iter().all(|frame| !asks(frame, 0)));

    // A VLAN comes and goes without its device.
    daemon.must("unplug trunk.20");
    assert!(!pings(&mut guest, "10.0.20.2") && is_answered(&mut guest, "10.0.0.2"));
    daemon.must("plug trunk.20 --parent trunk --vlan 20");
    daemon.wait_up(&["trunk.20"]);
    assert!(wait_for(BACK_LIMIT, || pings(&mut guest, "10.0.20.2").then_some(())).is_some());
}

#[test]
fn a_guest_whose_tap_qemu_holds_is_plugged_by_the_taps_name_and_goes_and_comes() {
    let mut daemon = Daemon::start("");
    let tenant = daemon.tenant("red");
    let network = tenant.network("lan");
    let other = Namespace::new("qw-other");
    attached_tap(&daemon, &tenant, &network, "qw-other", &other, "10.0.0.2/24");
    daemon.must("plug guest --device qw-held");
    tenant.attached_port(&network, "guest");
    let words = "-netdev tap,id=held,ifname=qw-held,script=no,downscript=no -device \
                 virtio-net-pci,netdev=held,mac=02:00:00:00:00:01,vectors=0";
    let extras = Extras { arguments: words.split_whitespace().map(str::to_owned).collect(), ..Extras::default() };
    for is_first in [true, false] {
        let mut guest = Guest::start_with("held", &[], &extras).ready();
        ip("link set qw-held up");
        guest.must("ip addr add 10.0.0.1/24 dev eth0 && ip link set eth0 up");
        daemon.wait_up(&["guest", "qw-other"]);
        let reached = wait_for(BACK_LIMIT, || pings(&mut guest, "10.0.0.2").then_some(()));
        assert!(reached.is_some(), "{:#}\n{}", daemon.show("ports"), daemon.log_tail());
        if is_first {
            let before = Counters::read(&daemon);
            streams(&mut guest, &other, "10.0.0.2");
            let after = Counters::read(&daemon);
            assert!(["rx", "tx"].iter().all(|way| are_uncut(&after, &before, &format!("guest.{way}"))), "TCP was cut");
            assert!(after.strange_drops(&before).is_empty(), "{:?}", after.strange_drops(&before));
            daemon.kill_and_restart();
            daemon.wait_up(&["guest", "qw-other"]);
            assert!(wait_for(BACK_LIMIT, || pings(&mut guest, "10.0.0.2").then_some(())).is_some());
        }
        drop(guest);
        wait_until("the port is down", BACK_LIMIT, || daemon.interface("guest")["op_status"] == "DOWN");
    }
}
