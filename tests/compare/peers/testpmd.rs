//! DPDK's testpmd forwarding between two vhost-user sockets it listens on, TSO offered, on the last CPU.
//!
//! It offers packed rings as well as split ones; which are used is the guest's choice.

use super::{End, Peer, START_LIMIT, Switch, shown};
use std::process::Command;
use tests::daemon::last_cpu;
use tests::process::{Child, TempDir, wait_until};

pub(super) fn start(ends: [End<'_>; 2]) -> Switch {
    assert!(ends.iter().all(|end| matches!(end, End::Vhost)), "testpmd is compared on vhost-user ports only");
    let dir = TempDir::new();
    let sockets = ["a", "b"].map(|name| dir.join(name));
    let mut command = Command::new("dpdk-testpmd");
    command.args(["-l", &format!("0,{}", last_cpu()), "--no-pci", "--socket-mem", "512"]);
    command.args(["--file-prefix", &format!("compare{}", std::process::id())]);
    for (number, socket) in sockets.iter().enumerate() {
        command.arg("--vdev").arg(format!("net_vhost{number},iface={},tso=1", socket.display()));
    }
    command.args(["--", "--forward-mode=io", "--auto-start", "--nb-cores=1", "--stats-period=3600"]);
    let child = Child::spawn("testpmd", &mut command, &dir.join("log"));
    wait_until("the sockets of testpmd are there", START_LIMIT, || sockets.iter().all(|socket| socket.exists()));
    let ports = [shown(&sockets[0]), shown(&sockets[1])];
    Switch {
        peer: Peer::Testpmd,
        ports,
        is_connecting: false,
        process: Some(child.id()),
        keeper: Box::new((child, dir)),
    }
}
