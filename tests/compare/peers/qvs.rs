//! Ourselves: a release build that polls on the last CPU, with learning, isolation, guard and counters, as any user has them.

use super::{End, Peer, Switch, shown};
use std::process::Command;
use tests::daemon::Daemon;

/// Addresses are learnt up to this number, for tables with 100,000 a side; what nobody sends costs nothing.
const SETTINGS: &str = "poll = \"always\"\n[mac]\nmax = 262144";

pub(super) fn start(ends: [End<'_>; 2]) -> Switch {
    let daemon = Daemon::start(SETTINGS);
    let tenant = daemon.tenant("compare");
    let network = tenant.network("lan");
    let mut at = 0;
    let ports = ends.map(|end| {
        at += 1;
        let id = format!("qvs{at}");
        let (device, port) = match end {
            End::Vhost => {
                let socket = shown(&daemon.path(&id));
                (format!("--vhost-user {socket}"), socket)
            }
            End::Tap => {
                // A daemon that was killed leaves its TAP, for the next one of the same state; ours has another.
                let _ = Command::new("ip").args(["link", "delete", &id]).output();
                (format!("--tap {id}"), format!("packet:{id}"))
            }
            End::Station(namespace) => (format!("--tap {id} --netns {}", namespace.name()), id.clone()),
        };
        daemon.must(&format!("plug {id} {device}"));
        tenant.attached_port(&network, &id);
        daemon.wait_up(&[&id]);
        port
    });
    Switch { peer: Peer::Qvs, ports, is_connecting: false, process: Some(daemon.id()), keeper: Box::new(daemon) }
}
