//! Ourselves: a release build that polls on the last CPU, with learning, isolation, guard and counters, as any user has them.

use super::{End, Peer, Switch, shown};
use std::process::Command;
use tests::daemon::Daemon;
use tests::process::TempDir;

/// Addresses are learnt up to this number, for tables with 100,000 a side; what nobody sends costs nothing.
const SETTINGS: &str = "poll = \"always\"\n[mac]\nmax = 262144";

pub(super) fn start(ends: [End<'_>; 2]) -> Switch {
    let dir = TempDir::new();
    let nic = shown(&dir.join("nic"));
    let has_underlay = ends.iter().any(|end| matches!(end, End::Underlay));
    let underlay = format!(
        "\n[[uplink]]\nphysical_network = \"physnet1\"\nvhost_user = \"{nic}\"\nrole = \"server\"\n\
         address = \"172.16.0.1/24\"\nmac = \"02:00:00:00:00:01\"\n\
         neighbours = {{ \"172.16.0.2\" = \"02:00:00:00:00:02\" }}\n\
         [tunnel]\nlocal_ip = \"172.16.0.1\"\npeers = [\"172.16.0.2\"]\n\
         [segments]\ndefault = \"vxlan\"\nvni = \"5000-5009\""
    );
    let daemon = Daemon::start_in(dir, &format!("{SETTINGS}{}", if has_underlay { &underlay } else { "" }));
    let tenant = daemon.tenant("compare");
    let network = tenant.network("lan");
    let mut at = 0;
    let ports = ends.map(|end| {
        at += 1;
        let id = format!("qvs{at}");
        let (device, port) = match end {
            End::Underlay => return nic.clone(),
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
