//! `allowed_address_pairs`: what a tenant lets a port send from, and what becomes of the rest.

use super::SOON;
use crate::topology::TwoTenants;
use serde_json::{Value, json};
use tests::ledger::Counters;

/// Lets a port of red's network send from these MACs.
fn allow(world: &TwoTenants, port: &str, macs: &[&str]) {
    let pairs: Vec<Value> = macs.iter().map(|mac| json!({"mac_address": mac, "ip_address": "10.0.0.1"})).collect();
    let body = json!({"port": {"state": "ACTIVE", "allowed_address_pairs": pairs}});
    world.red.request("PUT", &format!("networks/{}/ports/{port}", world.red_network), Some(&body), 204);
}

#[test]
fn a_port_with_pairs_sends_from_their_macs_and_no_other() {
    let mut world = TwoTenants::new();
    let second = "02:00:00:00:aa:02";
    let own = world.namespace("red-1").mac("tap0");
    assert!(world.namespace("red-1").pings_within("10.0.0.2", SOON));
    allow(&world, world.port("red-1"), &[&own, second]);
    assert_eq!(world.daemon.interface("red-1")["allowed_macs"].as_array().map(Vec::len), Some(2));
    for restarts in 0..2 {
        let red = world.namespace("red-1");
        for mac in [second, own.as_str()] {
            red.must(&format!("ip link set dev tap0 address {mac}"));
            world.namespace("red-2").must("ip neigh flush all");
            assert!(red.pings_within("10.0.0.2", SOON), "from {mac}\n{}", world.daemon.log_tail());
        }
        let before = Counters::read(&world.daemon);
        red.must("ip link set dev tap0 address 02:00:00:00:aa:03");
        assert!(!red.pings("10.0.0.2"));
        let after = Counters::read(&world.daemon);
        assert!(after.grown(&before, "red-1.rx.drops.spoofed_mac") > 0, "{:?}", after.changes(&before));
        assert_eq!(after.grown(&before, "red-2.tx.packets"), 0, "{:?}", after.changes(&before));
        if restarts == 0 {
            world.daemon.kill_and_restart();
            world.daemon.wait_up(&["red-1", "red-2"]);
        }
    }
    // Without pairs all is as before.
    allow(&world, world.port("red-1"), &[]);
    world.namespace("red-2").must("ip neigh flush all");
    assert!(world.namespace("red-1").pings_within("10.0.0.2", SOON), "{}", world.daemon.log_tail());
}

#[test]
fn pairs_join_the_macs_of_the_plug() {
    let world = TwoTenants::new();
    let red = world.namespace("red-1");
    let own = red.mac("tap0");
    world.daemon.must(&format!("plug red-1 --tap tap0 --netns red-1 --mac {own} --replace"));
    assert!(red.pings_within("10.0.0.2", SOON), "{}", world.daemon.log_tail());
    let shared = "00:00:5e:00:01:07";
    // Two routers may share an address.
    let pair = json!([{"mac_address": shared}]);
    let body = json!({"port": {"state": "ACTIVE", "allowed_address_pairs": pair}});
    for name in ["red-1", "red-2"] {
        let path = format!("networks/{}/ports/{}", world.red_network, world.port(name));
        world.red.request("PUT", &path, Some(&body), 204);
    }
    let row = world.daemon.interface("red-1");
    assert_eq!((&row["macs"], &row["allowed_macs"], &row["reason"]), (&json!([own]), &json!([shared]), &json!("")));
    allow(&world, world.port("red-2"), &[]);
    for mac in [shared, own.as_str()] {
        red.must(&format!("ip link set dev tap0 address {mac}"));
        world.namespace("red-2").must("ip neigh flush all");
        assert!(red.pings_within("10.0.0.2", SOON), "from {mac}\n{}", world.daemon.log_tail());
    }
}

#[test]
fn a_change_of_pairs_loses_no_frame() {
    let world = TwoTenants::new();
    let red = world.namespace("red-1");
    let own = red.mac("tap0");
    assert!(red.pings_within("10.0.0.2", SOON));
    let (changes, output) = std::thread::scope(|scope| {
        let pings = scope.spawn(|| red.must("busybox ping -q -c 200 -i 0.01 10.0.0.2"));
        let mut changes = 0;
        while !pings.is_finished() {
            let sets: [&[&str]; 3] = [&[&own], &[], &[&own, "02:00:00:00:aa:02"]];
            allow(&world, world.port("red-1"), sets[changes % 3]);
            changes += 1;
        }
        (changes, pings.join().unwrap())
    });
    assert!(changes > 10, "only {changes} changes were made meanwhile");
    assert!(output.contains("200 packets transmitted, 200 packets received"), "{output}");
}
