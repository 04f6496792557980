//! An Open vSwitch of its own for a test or a comparison: database and switch in a temporary directory, datapath in userspace.
//!
//! It serves the namespace of the thread that starts it, and needs no module of the kernel.

use crate::process::{Child, TempDir, log_tail, output_of, wait_until};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Where Debian puts the build without DPDK.
pub const PLAIN: &str = "/usr/lib/openvswitch-switch/ovs-vswitchd";
/// The build with DPDK.
pub const DPDK: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// Where `ovs-appctl` reaches the switch.
const CONTROL: &str = "switch.ctl";
/// Longest start of the database.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How often the switch is started before the test gives up.
const STARTS_MAX: usize = 3;

/// The database and the switch; killed when dropped, the switch first.
#[derive(Debug)]
pub struct Ovs {
    switch: Option<Child>,
    _database: Child,
    dir: TempDir,
}

impl Ovs {
    /// Starts the database, sets what the switch must know before its start (words of `ovs-vsctl`), and starts this
    /// build of the switch with these bridges in it.
    ///
    /// # Panics
    /// If it does not come up, or is not installed.
    pub fn start(program: &str, before: &str, bridges: &[&str]) -> Ovs {
        let dir = TempDir::new();
        let (file, socket) = (dir.join("conf.db"), dir.join("db.sock"));
        output_of("ovsdb-tool", &["create".as_ref(), file.as_os_str(), SCHEMA.as_ref()]);
        let mut command = with_dirs("ovsdb-server", &dir);
        command.arg(&file).arg(format!("--remote=punix:{}", socket.display()));
        let database = Child::spawn("ovsdb-server", &mut command, &dir.join("database.log"));
        wait_until("the database of Open vSwitch listens", START_LIMIT, || socket.exists());
        let mut ovs = Ovs { switch: None, _database: database, dir };
        ovs.set("--no-wait init");
        if !before.is_empty() {
            ovs.set(&format!("--no-wait {before}"));
        }
        ovs.start_switch(program, bridges);
        ovs
    }

    /// Starts the switch and makes its bridges. It hangs now and then where another has just given its huge pages back, and is
    /// killed and started once more then.
    fn start_switch(&mut self, program: &str, bridges: &[&str]) {
        let log = self.dir.join("switch.log");
        let make = |name: &&str| format!("--may-exist add-br {name} -- set bridge {name} datapath_type=netdev");
        let bridges = bridges.iter().map(make).collect::<Vec<_>>().join(" -- ");
        for _ in 0..STARTS_MAX {
            self.switch = None;
            let mut command = with_dirs(program, &self.dir);
            command.arg(format!("unix:{}", self.path("db.sock").display()));
            command.arg(format!("--unixctl={}", self.path(CONTROL).display()));
            self.switch = Some(Child::spawn("ovs-vswitchd", &mut command, &log));
            if Command::new("ovs-vsctl").args(self.call(&bridges)).status().is_ok_and(|status| status.success()) {
                return;
            }
        }
        panic!("Open vSwitch did not start {STARTS_MAX} times\n{}", log_tail("ovs-vswitchd", &log));
    }

    /// A path in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The words of a call of `ovs-vsctl`.
    fn call(&self, words: &str) -> Vec<String> {
        let mut all = vec![format!("--db=unix:{}", self.path("db.sock").display()), "--timeout=20".to_owned()];
        all.extend(words.split_whitespace().map(str::to_owned));
        all
    }

    /// `ovs-vsctl`, which waits until the switch has done as it was told.
    ///
    /// # Panics
    /// If it is refused, or takes longer than 20 s.
    pub fn set(&self, words: &str) -> String {
        output_of("ovs-vsctl", &self.call(words))
    }

    /// `ovs-appctl`, which tells the switch what is in no database.
    ///
    /// # Panics
    /// If it is refused.
    pub fn control(&self, words: &[&str]) -> String {
        let socket = self.path(CONTROL);
        let before = ["-t".as_ref(), socket.as_os_str()];
        output_of("ovs-appctl", &before.into_iter().chain(words.iter().map(AsRef::as_ref)).collect::<Vec<_>>())
    }

    /// The switch's process.
    ///
    /// # Panics
    /// Never: a switch that could not be started has panicked before.
    pub fn id(&self) -> u32 {
        self.switch.as_ref().expect("it was started").id()
    }

    /// The end of the switch's log.
    pub fn log_tail(&self) -> String {
        self.switch.as_ref().map(Child::log_tail).unwrap_or_default()
    }
}

fn with_dirs(name: &str, dir: &TempDir) -> Command {
    let mut command = Command::new(name);
    command.env("OVS_RUNDIR", dir.path()).env("OVS_LOGDIR", dir.path()).env("OVS_DBDIR", dir.path());
    command
}
