//! The switches that are compared.
//!
//! All that a table compares run at once, but only one at a time: the others are stopped (SIGSTOP), so that they can take turns
//! second by second without starting anew, and the one that runs has its CPU to itself.

mod bridge;
mod ovs;
mod qvs;
mod testpmd;
mod yardstick;

use crate::frames::{MACS_USUAL, Row};
use crate::pinned::Pinned;
use clap::ValueEnum;
use rustix::process::{Pid, Signal, kill_process};
use std::any::Any;
use std::fmt;
use std::path::Path;
use std::time::Duration;
use tests::daemon::{Daemon, last_cpu};
use tests::namespace::Namespace;
use tests::process::output_of;

/// Longest start of a switch.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A kind of switch.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Peer {
    /// This one
    Qvs,
    /// DPDK's testpmd, forwarding between two ports without looking at a frame
    Testpmd,
    /// Open vSwitch with DPDK, action NORMAL
    Ovs,
    /// The same with `userspace-tso-enable`
    OvsTso,
    /// The kernel's bridge
    Bridge,
    /// Our own loop of one copy, which is no switch
    Yardstick,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Peer::Qvs => "qvs",
            Peer::Testpmd => "testpmd io",
            Peer::Ovs => "OVS-DPDK",
            Peer::OvsTso => "OVS-DPDK TSO",
            Peer::Bridge => "Linux bridge",
            Peer::Yardstick => "yardstick †",
        })
    }
}

impl Peer {
    /// Whether it forwards this row as it is meant: the yardstick knows so many addresses and learns none.
    pub(crate) fn takes(self, row: &Row) -> bool {
        self != Peer::Yardstick || row.macs == MACS_USUAL
    }
}

/// What a port of a switch is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End<'a> {
    /// A vhost-user socket.
    Vhost,
    /// A vhost-user socket on the underlay, behind which another host is reached ([`crate::frames::FAR_HOST`]).
    Underlay,
    /// A TAP beside the switch.
    Tap,
    /// A TAP in a namespace, for its network stack.
    Station(&'a Namespace),
}

/// A switch that runs, with two ports on one network.
pub(crate) struct Switch {
    pub(crate) peer: Peer,
    /// Its ports, as the load generator is to name them. In a namespace: the interface's name.
    pub(crate) ports: [String; 2],
    /// It connects to sockets instead of listening.
    pub(crate) is_connecting: bool,
    /// Its process; the kernel has none.
    process: Option<u32>,
    /// What keeps it alive.
    keeper: Box<dyn Any + Send>,
}

impl Switch {
    /// Starts one, stopped.
    pub(crate) fn start(peer: Peer, ends: [End<'_>; 2]) -> Switch {
        let switch = match peer {
            Peer::Qvs => qvs::start(ends),
            Peer::Testpmd => testpmd::start(ends),
            Peer::Ovs => ovs::start(peer, ends, false),
            Peer::OvsTso => ovs::start(peer, ends, true),
            Peer::Bridge => bridge::start(ends),
            Peer::Yardstick => yardstick::start(ends),
        };
        switch.stop();
        switch
    }

    /// Starts these, stopped.
    pub(crate) fn start_all(peers: &[Peer], ends: [End<'_>; 2]) -> Vec<Switch> {
        peers.iter().map(|&peer| Switch::start(peer, ends)).collect()
    }

    /// One of a hypervisor, with these interfaces for a guest and for the wire; it is stopped.
    pub(crate) fn of_host(peer: Peer, ports: [&str; 2], process: u32, keeper: impl Any + Send) -> Switch {
        let (ports, keeper) = (ports.map(str::to_owned), Box::new(keeper));
        let switch = Switch { peer, ports, is_connecting: false, process: Some(process), keeper };
        switch.stop();
        switch
    }

    /// Lets it run.
    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Lets it run and gives it what the load generator that was just started makes.
    pub(crate) fn serve(&self) {
        self.resume();
        if self.peer == Peer::Bridge {
            bridge::adopt(&self.ports);
        }
    }

    /// Lets it stand still.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = self.process {
            let process = Pid::from_raw(process as i32).expect("no process has number 0");
            kill_process(process, signal).expect("it is our child, and a dead peer is no peer");
        }
    }

    /// Its threads that have a CPU to themselves.
    pub(crate) fn pinned(&self) -> Pinned {
        Pinned::of(self.process, last_cpu())
    }

    /// The daemon, if it is ours.
    pub(crate) fn daemon(&self) -> Option<&Daemon> {
        self.keeper.downcast_ref()
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.process.expect("a switch that is asked for its process has one")
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // A stopped process does not end in order.
        self.resume();
    }
}

/// A path as the load generator names it.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Prepares our own namespaces: DPDK finds its huge pages, and no interface says anything by itself.
pub(crate) fn prepare() {
    std::fs::create_dir_all("/run/huge").expect("our own /run");
    output_of("mount", &["-t", "hugetlbfs", "none", "/run/huge"]);
    for when in ["all", "default"] {
        // A kernel without IPv6 has nothing to switch off.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{when}/disable_ipv6"), "1");
    }
}
