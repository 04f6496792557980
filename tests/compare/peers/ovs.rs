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
    let has_pmd = ends.iter().any(|end| matches!(end, End::Vhost | End::Underlay));
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
        if let End::Underlay = end {
            return underlay(&ovs, &name);
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

/// A bridge with the uplink, and on the first bridge a port for VXLAN that goes by it; answers the uplink's socket.
fn underlay(ovs: &Ovs, name: &str) -> String {
    let socket = shown(&ovs.path(name));
    ovs.set("add-br phy0 -- set bridge phy0 datapath_type=netdev other_config:hwaddr=02:00:00:00:00:01");
    output_of("ip", &["addr", "add", "172.16.0.1/24", "dev", "phy0"]);
    output_of("ip", &["link", "set", "phy0", "up"]);
    ovs.set(&format!(
        "add-port phy0 {name} -- set Interface {name} type=dpdkvhostuserclient options:vhost-server-path={socket}"
    ));
    ovs.set("add-port br0 vx0 -- set Interface vx0 type=vxlan options:remote_ip=172.16.0.2 options:key=5000");
    // The other host does not answer for itself.
    ovs.control(&["tnl/arp/set", "phy0", "172.16.0.2", "02:00:00:00:00:02"]);
    socket
}
