//! Open vSwitch with DPDK: one bridge, action NORMAL, vhost-user ports that connect to sockets we listen on, PMD on the last CPU.
//!
//! A TAP is an internal port here. It is polled by the main thread and not by the PMD (Open vSwitch, "The DPDK datapath"),
//! so the main thread has the last CPU where all ports are TAPs.

use super::{End, Peer, Switch, shown};
use tests::daemon::last_cpu;
use tests::ovs::{DPDK, Ovs};
use tests::process::output_of;

/// Addresses it may learn, for tables with 100,000 a side; its own limit is 8,192.
const MACS_MAX: u32 = 262_144;

pub(super) fn start(peer: Peer, ends: [End<'_>; 2], has_tso: bool) -> Switch {
    let has_pmd = ends.iter().any(|end| matches!(end, End::Vhost));
    let (main_cpu, pmd_cpu) = (if has_pmd { 0 } else { last_cpu() }, last_cpu());
    let before = format!(
        "set Open_vSwitch . other_config:dpdk-init=true other_config:pmd-cpu-mask={:#x} \
         other_config:dpdk-lcore-mask={:#x} other_config:dpdk-socket-mem={} \
         other_config:userspace-tso-enable={has_tso}",
        1u64 << pmd_cpu,
        1u64 << main_cpu,
        if has_tso { 1024 } else { 512 },
    );
    let ovs = Ovs::start(DPDK, &before, &["br0"]);
    ovs.set(&format!("set bridge br0 other_config:mac-table-size={MACS_MAX}"));
    let mut at = 0;
    let ports = ends.map(|end| {
        at += 1;
        let name = format!("ovs{}{at}", if has_tso { "tso" } else { "" });
        let add = |options: &str| ovs.set(&format!("add-port br0 {name} -- set Interface {name} {options}"));
        if let End::Vhost = end {
            let socket = shown(&ovs.path(&name));
            add(&format!("type=dpdkvhostuserclient options:vhost-server-path={socket}"));
            return socket;
        }
        add("type=internal");
        if let End::Station(namespace) = end {
            output_of("ip", &["link", "set", &name, "netns", namespace.name()]);
            namespace.must(&format!("ip link set {name} up"));
            return name;
        }
        output_of("ip", &["link", "set", &name, "up"]);
        format!("packet:{name}")
    });
    let process = Some(ovs.id());
    Switch { peer, ports, is_connecting: has_pmd, process, keeper: Box::new(ovs) }
}
