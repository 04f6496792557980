//! The threads of a switch that have a CPU to themselves, and whether they really had it.
//!
//! A worker that lost its CPU loses frames, and that says nothing about the switch. The kernel counts how long each
//! thread waited for its CPU (Documentation/scheduler/sched-stats.rst), and how long a virtual CPU did not run at all (proc_stat(5): steal).

use std::fs;
use std::path::PathBuf;

/// Threads, and their CPU.
pub(crate) struct Pinned {
    stats: Vec<PathBuf>,
    cpu: usize,
}

/// How long they were kept from running since some moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Waited {
    /// Nanoseconds ready to run while another thread had the CPU.
    pub(crate) queued_ns: u64,
    /// Ticks in which the CPU itself did not run.
    pub(crate) stolen_ticks: u64,
}

impl Pinned {
    /// Those threads of a process that run on this CPU only.
    pub(crate) fn of(process: Option<u32>, cpu: usize) -> Pinned {
        let tasks = process.map(|process| PathBuf::from(format!("/proc/{process}/task")));
        let tasks = tasks.into_iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
        let wanted = format!("Cpus_allowed_list:\t{cpu}");
        let is_pinned = |task: &PathBuf| {
            fs::read_to_string(task.join("status")).is_ok_and(|status| status.lines().any(|line| line == wanted))
        };
        let stats = tasks.map(|task| task.path()).filter(is_pinned).map(|task| task.join("schedstat")).collect();
        Pinned { stats, cpu }
    }

    /// How long they have waited so far.
    pub(crate) fn waited(&self) -> Waited {
        let queued = |path: &PathBuf| fs::read_to_string(path).ok()?.split_whitespace().nth(1)?.parse::<u64>().ok();
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let name = format!("cpu{}", self.cpu);
        let line = stat.lines().find(|line| line.split_whitespace().next() == Some(&name));
        let stolen = line.and_then(|line| line.split_whitespace().nth(8)?.parse().ok());
        Waited { queued_ns: self.stats.iter().filter_map(queued).sum(), stolen_ticks: stolen.unwrap_or(0) }
    }
}
