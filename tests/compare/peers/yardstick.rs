//! Our own yardstick (`benches/src/yardstick.rs`): one copy and a look into a table, on the last CPU.
//!
//! It is no switch: it learns nothing, isolates nothing and counts nothing. So its figures are marked.

use super::{End, Peer, START_LIMIT, Switch, shown};
use crate::frames::MACS_USUAL;
use std::process::Command;
use tests::daemon::last_cpu;
use tests::process::{Child, TempDir, wait_until};

pub(super) fn start(ends: [End<'_>; 2]) -> Switch {
    assert!(ends.iter().all(|end| matches!(end, End::Vhost)), "the yardstick has vhost-user ports only");
    let program = std::env::var_os("QVS_BENCHES").expect("`cargo xtask compare` names the benches");
    let dir = TempDir::new();
    let sockets = ["a", "b"].map(|name| dir.join(name));
    let mut command = Command::new(program);
    command.arg("yardstick").args(&sockets).args(["--cpu", &last_cpu().to_string()]);
    command.args(["--stations", &MACS_USUAL.to_string()]);
    let child = Child::spawn("benches", &mut command, &dir.join("log"));
    wait_until("the sockets of the yardstick are there", START_LIMIT, || sockets.iter().all(|socket| socket.exists()));
    let ports = [shown(&sockets[0]), shown(&sockets[1])];
    let process = Some(child.id());
    Switch { peer: Peer::Yardstick, ports, is_connecting: false, process, keeper: Box::new((child, dir)) }
}
