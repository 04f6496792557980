//! Who can be measured between two interfaces: the forwarder that looks at nothing, the switch, and their peers.
//!
//! The first two are stepped by the thread that measures. Peers are processes that poll on the same CPU, each stopped (SIGSTOP) while it
//! is not its turn; the kernel's bridge has no thread.

use super::ip;
use anyhow::{Context, Result, bail, ensure};
use benches::rig::{NOW, two_ports};
use pipelines::Standard;
use rustix::process::{Pid, Signal, kill_process};
use std::any::Any;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use switch::af_xdp::bare::Bare;
use switch::af_xdp::program::Steering;
use switch::device::{DeviceConfig, Driver, HostDevice};
use switch::ids::PortIndex;
use switch::switch::Switch;
use switch::worker::Worker;
use tests::ovs::{Ovs, PLAIN};
use tests::process::{Child, TempDir, output_of, wait_for};

/// Longest start of a peer.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Steps between two looks at the clock.
const STEPS: usize = 16;
/// Longest that what was sent is under way through one who cannot be asked.
const DRAIN: Duration = Duration::from_millis(50);
/// Memory of testpmd, MiB: its own choice of buffers for all the ports that it may have.
const TESTPMD_MIB: u64 = 512;

/// Whom there is to be measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Bare,
    Switch,
    Testpmd,
    Ovs,
    Bridge,
    BridgeElsewhere,
}

impl Who {
    /// Everybody; the bare one first, then the switch.
    pub(super) const ALL: [Who; 6] =
        [Who::Bare, Who::Switch, Who::Testpmd, Who::Ovs, Who::Bridge, Who::BridgeElsewhere];

    pub(super) fn label(self) -> &'static str {
        match self {
            Who::Bare => "bare forwarder",
            Who::Switch => "the switch",
            Who::Testpmd => "testpmd, net_af_xdp",
            Who::Ovs => "Open vSwitch, afxdp",
            Who::Bridge => "Linux bridge",
            Who::BridgeElsewhere => "Linux bridge, RPS",
        }
    }

    /// How the names of its interfaces begin.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Who::Bare => "b",
            Who::Switch => "q",
            Who::Testpmd => "t",
            Who::Ovs => "o",
            Who::Bridge => "k",
            Who::BridgeElsewhere => "r",
        }
    }

    /// Starts it between two interfaces of the calling thread's namespace; it stands still.
    ///
    /// # Errors
    /// Why it cannot be measured here.
    pub(super) fn start(self, names: [&str; 2], cpus: [usize; 2]) -> Result<Forwarder> {
        let forwarder = match self {
            Who::Bare => Forwarder::Bare(Box::new(Bare::open(names)?)),
            Who::Switch => switch(names)?,
            Who::Testpmd => testpmd(names, cpus)?,
            Who::Ovs => ovs(names, cpus[1])?,
            Who::Bridge => bridge(self.prefix(), names, None)?,
            Who::BridgeElsewhere => bridge(self.prefix(), names, Some(cpus[1]))?,
        };
        forwarder.stop();
        Ok(forwarder)
    }
}

/// One who was started.
pub(super) enum Forwarder {
    Bare(Box<Bare>),
    Switch { worker: Box<Worker<Standard>>, _devices: Box<[HostDevice; 2]>, _switch: Arc<Switch<Standard>> },
    Process { id: Pid, _keeper: Box<dyn Any> },
    Kernel,
}

impl Forwarder {
    /// Lets it run.
    pub(super) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Lets it stand still.
    pub(super) fn stop(&self) {
        self.signal(Signal::STOP);
    }

    fn signal(&self, signal: Signal) {
        if let Forwarder::Process { id, .. } = self {
            kill_process(*id, signal).expect("it is our child, and a dead peer is no peer");
        }
    }

    /// Moves what is there; answers how many frames, or nothing if it goes by itself.
    fn step(&mut self) -> Option<usize> {
        match self {
            Forwarder::Bare(bare) => Some(bare.step()),
            Forwarder::Switch { worker, .. } => Some(worker.step(NOW)),
            Forwarder::Process { .. } | Forwarder::Kernel => None,
        }
    }

    /// Forwards for so long; answers how long the steps took that found frames, and how many they found.
    pub(super) fn forward(&mut self, time: Duration) -> (Duration, usize) {
        let (mut busy, mut moved) = (Duration::ZERO, 0);
        let begun = Instant::now();
        while begun.elapsed() < time {
            for _ in 0..STEPS {
                let since = Instant::now();
                match self.step() {
                    None => std::thread::sleep(time.saturating_sub(begun.elapsed())),
                    Some(0) => {}
                    Some(count) => {
                        busy += since.elapsed();
                        moved += count;
                    }
                }
            }
        }
        (busy, moved)
    }

    /// Forwards what is still on its way, which is neither lost nor to be found by the next run.
    pub(super) fn drain(&mut self) {
        while let Some(count) = self.step() {
            if count == 0 {
                return;
            }
        }
        std::thread::sleep(DRAIN);
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        // A stopped process does not end in order.
        self.resume();
    }
}

fn switch(names: [&str; 2]) -> Result<Forwarder> {
    let (switch, mut worker) = two_ports();
    let open = |port: usize| {
        let config = DeviceConfig {
            name: names[port].to_owned(),
            netns: None,
            driver: Some(Driver::AfXdp),
            steering: Steering::Everything,
        };
        HostDevice::open(config, switch.place(PortIndex(port as u16)))
    };
    let devices = Box::new([open(0)?, open(1)?]);
    worker.step(NOW);
    Ok(Forwarder::Switch { worker: Box::new(worker), _devices: devices, _switch: switch })
}

/// DPDK's testpmd, which forwards without looking at a frame.
fn testpmd(names: [&str; 2], [other_cpu, cpu]: [usize; 2]) -> Result<Forwarder> {
    let program = "dpdk-testpmd";
    let path = std::env::var_os("PATH").unwrap_or_default();
    ensure!(std::env::split_paths(&path).any(|dir| dir.join(program).exists()), "{program} is not installed");
    let dir = TempDir::new();
    let mut command = Command::new(program);
    command.args(["-l", &format!("{other_cpu},{cpu}"), "--no-pci", "-m", &TESTPMD_MIB.to_string()]);
    if free_huge_mib()? < TESTPMD_MIB {
        command.args(["--no-huge", "--no-shconf"]);
    } else {
        command.arg("--in-memory");
    }
    for (number, name) in names.iter().enumerate() {
        command.arg("--vdev").arg(format!("net_af_xdp{number},iface={name}"));
    }
    command.args(["--", "--forward-mode=io", "--auto-start", "--nb-cores=1", "--stats-period=3600"]);
    let child = Child::spawn(program, &mut command, &dir.join("log"));
    wait_for_programs(names, || child.log_tail())?;
    process(child.id(), (child, dir))
}

/// MiB in huge pages that nobody has.
fn free_huge_mib() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let value =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    let (free, kib): (Option<u64>, Option<u64>) = (value("HugePages_Free:"), value("Hugepagesize:"));
    Ok(free.unwrap_or(0) * kib.unwrap_or(0) / 1024)
}

/// Open vSwitch with its datapath in userspace, action NORMAL, and one thread that polls.
fn ovs(names: [&str; 2], cpu: usize) -> Result<Forwarder> {
    ensure!(Path::new(PLAIN).exists(), "it is not installed");
    let ovs = Ovs::start(PLAIN, &format!("set Open_vSwitch . other_config:pmd-cpu-mask={:#x}", 1u64 << cpu), &["br0"]);
    for name in names {
        ovs.set(&format!("add-port br0 {name} -- set Interface {name} type=afxdp options:xdp-mode=native"));
        let error = ovs.set(&format!("get Interface {name} error"));
        ensure!(error.trim() == "[]", "{}", error.trim());
    }
    wait_for_programs(names, || ovs.log_tail())?;
    process(ovs.id(), ovs)
}

fn process(id: u32, keeper: impl Any) -> Result<Forwarder> {
    let id = Pid::from_raw(id as i32).context("no process has number 0")?;
    Ok(Forwarder::Process { id, _keeper: Box::new(keeper) })
}

/// Waits until somebody has attached a program to each interface.
fn wait_for_programs(names: [&str; 2], log: impl Fn() -> String) -> Result<()> {
    let is_there = |name: &&str| output_of("ip", &["link", "show", "dev", name]).contains("prog/xdp");
    if wait_for(START_LIMIT, || names.iter().all(is_there).then_some(())).is_none() {
        let log = log();
        let last = log.lines().rfind(|line| !line.is_empty() && !line.starts_with("---")).unwrap_or_default();
        bail!("it attached no XDP programs within {START_LIMIT:?}: {last}");
    }
    Ok(())
}

/// The kernel's bridge, which forwards where a frame is received: on the CPU of the source, or by receive packet steering on
/// another one.
fn bridge(prefix: &str, names: [&str; 2], cpu: Option<usize>) -> Result<Forwarder> {
    let bridge = format!("{prefix}bridge");
    ip(&format!("link add {bridge} type bridge"))?;
    ip(&format!("link set {bridge} up"))?;
    for name in names {
        ip(&format!("link set {name} master {bridge}"))?;
    }
    // Where the module is that has the host's packet filter look at bridged frames: nobody else's are looked at.
    let _ = std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");
    let Some(cpu) = cpu else { return Ok(Forwarder::Kernel) };
    // The one that is there shows the interfaces of another namespace; ours alone is seen by no one else.
    output_of("mount", &["-t", "sysfs", "none", "/sys"]);
    for name in names {
        for queue in std::fs::read_dir(format!("/sys/class/net/{name}/queues"))? {
            let steering = queue?.path().join("rps_cpus");
            if steering.exists() {
                std::fs::write(steering, format!("{:x}", 1u64 << cpu)).context("this kernel steers no packets")?;
            }
        }
    }
    Ok(Forwarder::Kernel)
}
