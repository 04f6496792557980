//! The kernel's bridge over two TAPs that the load generator makes, or over two veth pairs into namespaces.

use super::{End, Peer, START_LIMIT, Switch};
use std::process::Command;
use tests::process::{output_of, wait_for};

/// Its name, one at a time.
const NAME: &str = "bridge0";

/// The bridge; deleted when dropped.
struct Bridge;

impl Drop for Bridge {
    fn drop(&mut self) {
        // It goes with our namespace anyhow.
        let _ = Command::new("ip").args(["link", "delete", NAME]).output();
    }
}

fn ip(words: &str) {
    output_of("ip", &words.split_whitespace().collect::<Vec<_>>());
}

pub(super) fn start(ends: [End<'_>; 2]) -> Switch {
    ip(&format!("link add {NAME} type bridge"));
    let bridge = Bridge;
    ip(&format!("link set {NAME} up"));
    let mut at = 0;
    let ports = ends.map(|end| {
        at += 1;
        let (outside, inside) = (format!("bridge0-{at}"), format!("veth{at}"));
        match end {
            End::Vhost | End::Underlay => panic!("the kernel's bridge has no vhost-user ports"),
            End::Tap => format!("tap:{outside}"),
            End::Station(namespace) => {
                ip(&format!("link add {outside} type veth peer name {inside} netns {}", namespace.name()));
                ip(&format!("link set {outside} master {NAME} up"));
                namespace.must(&format!("ip link set {inside} up"));
                inside
            }
        }
    });
    Switch { peer: Peer::Bridge, ports, is_connecting: false, process: None, keeper: Box::new(bridge) }
}

/// Takes the TAPs that the load generator makes at its start into the bridge.
pub(super) fn adopt(ports: &[String]) {
    for name in ports.iter().filter_map(|port| port.strip_prefix("tap:")) {
        let is_taken = || {
            let answer = Command::new("ip").args(["link", "set", name, "master", NAME, "up"]).output();
            answer.expect("iproute2 is installed").status.success()
        };
        // A generator that fails says why itself.
        let _ = wait_for(START_LIMIT, || is_taken().then_some(()));
    }
}
