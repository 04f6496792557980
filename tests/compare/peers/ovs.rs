//! Open vSwitch with DPDK: one bridge, action NORMAL, vhost-user ports that connect to sockets we listen on, PMD on the last CPU.
//!
//! A TAP is an internal port here. It is polled by the main thread and not by the PMD (Open vSwitch, "The DPDK datapath"),
//! so the main thread has the last CPU where all ports are TAPs.

use super::{End, Peer, START_LIMIT, Switch, shown};
use std::process::Command;
use tests::daemon::last_cpu;
use tests::process::{Child, TempDir, log_tail, output_of, wait_until};

/// Where Debian puts the DPDK build of Open vSwitch.
const VSWITCHD: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// Addresses it may learn, for tables with 100,000 a side; its own limit is 8,192.
const MACS_MAX: u32 = 262_144;
/// How often it is started before the comparison gives up.
const STARTS_MAX: usize = 3;

/// The database and the switch; killed when dropped, the switch first.
struct Ovs {
    switch: Option<Child>,
    _database: Child,
    dir: TempDir,
}

impl Ovs {
    fn path(&self, name: &str) -> String {
        shown(&self.dir.join(name))
    }

    /// The words of a call of `ovs-vsctl`.
    fn call(&self, words: &str) -> Vec<String> {
        let mut all = vec![format!("--db=unix:{}", self.path("db.sock")), "--timeout=20".to_owned()];
        all.extend(words.split_whitespace().map(str::to_owned));
        all
    }

    /// `ovs-vsctl`.
    fn set(&self, words: &str) {
        output_of("ovs-vsctl", &self.call(words));
    }

    /// Starts the switch and makes its bridge. It hangs now and then where another has just given its huge pages back, and is
    /// killed and started once more then.
    fn start_switch(&mut self) {
        let log = self.dir.join("switch.log");
        for _ in 0..STARTS_MAX {
            self.switch = None;
            let mut command = program(VSWITCHD, &self.dir);
            command.arg(format!("unix:{}", self.path("db.sock")));
            self.switch = Some(Child::spawn("ovs-vswitchd", &mut command, &log));
            let bridge = "--may-exist add-br br0 -- set bridge br0 datapath_type=netdev";
            let bridge = self.call(&format!("{bridge} other_config:mac-table-size={MACS_MAX}"));
            if Command::new("ovs-vsctl").args(&bridge).status().is_ok_and(|status| status.success()) {
                return;
            }
        }
        panic!("Open vSwitch did not start {STARTS_MAX} times\n{}", log_tail("ovs-vswitchd", &log));
    }
}

fn program(name: &str, dir: &TempDir) -> Command {
    let mut command = Command::new(name);
    command.env("OVS_RUNDIR", dir.path()).env("OVS_LOGDIR", dir.path()).env("OVS_DBDIR", dir.path());
    command
}

pub(super) fn start(peer: Peer, ends: [End<'_>; 2], has_tso: bool) -> Switch {
    let dir = TempDir::new();
    let (database, socket) = (shown(&dir.join("conf.db")), dir.join("db.sock"));
    output_of("ovsdb-tool", &["create", &database, SCHEMA]);
    let mut command = program("ovsdb-server", &dir);
    command.arg(&database).arg(format!("--remote=punix:{}", socket.display()));
    let database = Child::spawn("ovsdb-server", &mut command, &dir.join("database.log"));
    wait_until("the database of OVS listens", START_LIMIT, || socket.exists());
    let mut ovs = Ovs { switch: None, _database: database, dir };

    let has_pmd = ends.iter().any(|end| matches!(end, End::Vhost));
    let (main_cpu, pmd_cpu) = (if has_pmd { 0 } else { last_cpu() }, last_cpu());
    ovs.set("--no-wait init");
    ovs.set(&format!(
        "--no-wait set Open_vSwitch . other_config:dpdk-init=true other_config:pmd-cpu-mask={:#x} \
         other_config:dpdk-lcore-mask={:#x} other_config:dpdk-socket-mem={} \
         other_config:userspace-tso-enable={has_tso}",
        1u64 << pmd_cpu,
        1u64 << main_cpu,
        if has_tso { 1024 } else { 512 },
    ));
    ovs.start_switch();
    let mut at = 0;
    let ports = ends.map(|end| {
        at += 1;
        let name = format!("ovs{}{at}", if has_tso { "tso" } else { "" });
        let add = |options: &str| ovs.set(&format!("add-port br0 {name} -- set Interface {name} {options}"));
        if let End::Vhost = end {
            let socket = ovs.path(&name);
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
    let process = ovs.switch.as_ref().map(Child::id);
    Switch { peer, ports, is_connecting: has_pmd, process, keeper: Box::new(ovs) }
}
