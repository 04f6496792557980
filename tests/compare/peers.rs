//! The switches that are compared, started for one measurement and gone when dropped. They need huge pages, which `cargo xtask
//! compare` reserves and gives back.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tests::daemon::Daemon;
use tests::process::{Child, TempDir, output_of, wait_until};

/// Where Debian puts the DPDK build of Open vSwitch.
const VSWITCHD: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const START_LIMIT: Duration = Duration::from_secs(20);

/// Ourselves: two vhost-user ports on one network, polling on the last CPU.
pub(crate) struct Qvs {
    pub(crate) daemon: Daemon,
    pub(crate) sockets: [PathBuf; 2],
}

impl Qvs {
    pub(crate) fn start() -> Qvs {
        let daemon = Daemon::start("poll = \"always\"");
        let tenant = daemon.tenant("compare");
        let network = tenant.network("lan");
        let sockets = ["a", "b"].map(|name| daemon.path(name));
        for (name, socket) in ["a", "b"].into_iter().zip(&sockets) {
            daemon.must(&format!("plug {name} --vhost-user {}", socket.display()));
            tenant.attached_port(&network, name);
        }
        daemon.wait_up(&["a", "b"]);
        Qvs { daemon, sockets }
    }
}

/// Gives DPDK its huge pages in our own mount namespace.
pub(crate) fn mount_huge_pages() {
    std::fs::create_dir_all("/run/huge").expect("our own /run");
    output_of("mount", &["-t", "hugetlbfs", "none", "/run/huge"]);
}

/// Open vSwitch with DPDK: one bridge, action NORMAL, two ports that connect to sockets we listen on, PMD on the last CPU.
pub(crate) struct OvsDpdk {
    _switch: Child,
    _database: Child,
    _dir: TempDir,
}

impl OvsDpdk {
    pub(crate) fn start(sockets: [&Path; 2], cpu: usize) -> OvsDpdk {
        let dir = TempDir::new();
        let path = |name: &str| dir.join(name).display().to_string();
        let ovs = |program: &str| {
            let mut command = Command::new(program);
            command.env("OVS_RUNDIR", dir.path()).env("OVS_LOGDIR", dir.path()).env("OVS_DBDIR", dir.path());
            command
        };
        output_of("ovsdb-tool", &["create", &path("conf.db"), "/usr/share/openvswitch/vswitch.ovsschema"]);
        let mut command = ovs("ovsdb-server");
        command.arg(path("conf.db")).arg(format!("--remote=punix:{}", path("db.sock")));
        let database = Child::spawn("ovsdb-server", &mut command, &dir.join("database.log"));
        wait_until("the database of OVS", START_LIMIT, || dir.join("db.sock").exists());

        let set = |no_wait: bool, words: &[&str]| {
            let mut all = vec![format!("--db=unix:{}", path("db.sock")), "--timeout=20".to_owned()];
            all.extend(no_wait.then(|| "--no-wait".to_owned()));
            all.extend(words.iter().map(|&word| word.to_owned()));
            output_of("ovs-vsctl", &all)
        };
        let mask = format!("other_config:pmd-cpu-mask={:#x}", 1u64 << cpu);
        set(true, &["init"]);
        set(
            true,
            &[
                "set",
                "Open_vSwitch",
                ".",
                "other_config:dpdk-init=true",
                &mask,
                "other_config:dpdk-lcore-mask=0x1",
                "other_config:dpdk-socket-mem=512",
            ],
        );
        let mut command = ovs(VSWITCHD);
        command.arg(format!("unix:{}", path("db.sock")));
        let switch = Child::spawn("ovs-vswitchd", &mut command, &dir.join("switch.log"));
        set(false, &["add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"]);
        for (number, socket) in sockets.into_iter().enumerate() {
            let (port, option) = (format!("p{number}"), format!("options:vhost-server-path={}", socket.display()));
            set(
                false,
                &["add-port", "br0", &port, "--", "set", "Interface", &port, "type=dpdkvhostuserclient", &option],
            );
        }
        OvsDpdk { _switch: switch, _database: database, _dir: dir }
    }
}

/// DPDK's testpmd forwarding between two vhost-user sockets it listens on, TSO on, on the last CPU.
pub(crate) struct Testpmd {
    child: Child,
    _dir: TempDir,
}

impl Testpmd {
    pub(crate) fn start(sockets: [&Path; 2], cpu: usize) -> Testpmd {
        let dir = TempDir::new();
        let mut command = Command::new("dpdk-testpmd");
        command.args([
            "-l",
            &format!("0,{cpu}"),
            "--no-pci",
            "--file-prefix",
            &format!("compare{}", std::process::id()),
        ]);
        command.args(["--socket-mem", "512"]);
        for (number, socket) in sockets.iter().enumerate() {
            command.arg("--vdev").arg(format!("net_vhost{number},iface={},tso=1", socket.display()));
        }
        command.args(["--", "--forward-mode=io", "--auto-start", "--nb-cores=1", "--stats-period=3600"]);
        let child = Child::spawn("testpmd", &mut command, &dir.join("log"));
        wait_until("the sockets of testpmd", START_LIMIT, || sockets.iter().all(|socket| socket.exists()));
        Testpmd { child, _dir: dir }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}
