//! The daemon without root, with the rights that the packaged unit gives it.

use super::SOON;
use crate::topology::attached_tap;
use std::fs;
use tests::daemon::Daemon;
use tests::namespace::Namespace;
use tests::process::repository;

#[test]
fn without_root_it_needs_the_units_capabilities_and_no_more() {
    let unit = fs::read_to_string(repository().join("tools/packaging/qvs.service")).unwrap();
    let line = unit.lines().find_map(|line| line.strip_prefix("AmbientCapabilities=")).unwrap().to_lowercase();
    let capabilities: Vec<&str> = line.split(' ').map(|name| name.strip_prefix("cap_").unwrap()).collect();
    // In a user namespace there is no other user to become: then all of this chapter ran without root already.
    let is_root_of_the_host = fs::read_to_string("/proc/self/uid_map").unwrap().contains("4294967295");
    let daemon = if is_root_of_the_host { Daemon::start_as_nobody(&capabilities, "") } else { Daemon::start("") };
    let tenant = daemon.tenant("red");
    let network = tenant.network("n");
    let namespaces = ["one", "two"].map(Namespace::new);
    for (index, namespace) in namespaces.iter().enumerate() {
        let address = format!("10.0.0.{}/24", index + 1);
        attached_tap(&daemon, &tenant, &network, namespace.name(), namespace, &address);
    }
    let third = Namespace::new("three");
    namespaces[0].must("ip link add end type veth peer name eth0 netns three");
    namespaces[0].must("ip link set end up");
    third.must("ip link set eth0 up");
    third.address("eth0", "10.0.0.3/24");
    daemon.must("plug three --device end --netns one");
    tenant.attached_port(&network, "three");
    let fourth = Namespace::new("four");
    namespaces[0].must("ip link add far type veth peer name eth0 netns four");
    namespaces[0].must("ip link set far up");
    fourth.must("ip link set eth0 up");
    fourth.address("eth0", "10.0.0.4/24");
    daemon.must("plug four --device far --netns one --driver af_xdp");
    tenant.attached_port(&network, "four");
    daemon.wait_up(&["one", "two", "three", "four"]);
    for namespace in [&namespaces[0], &third, &fourth] {
        assert!(namespace.pings_within("10.0.0.2", SOON), "{}", daemon.log_tail());
    }
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    assert_eq!(status.contains("Uid:\t0"), !is_root_of_the_host, "{status}");
}
