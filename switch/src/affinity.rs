//! Which CPUs a worker may run on, pinning it there, and keeping everything else away from it.
//!
//! The kernel's own view of the allowed set is the only truth: cgroups and `taskset` have been applied to it. No `unsafe`
//! here after all: rustix has the two system calls.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::io;

/// The CPUs this process may use, ascending.
///
/// # Errors
/// What `sched_getaffinity(2)` says.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

/// The CPUs that `workers = "auto"` means: one worker on the last allowed CPU, so that CPU 0, where most interrupts
/// and the host's own work go, stays free as long as there is another.
///
/// # Errors
/// What `sched_getaffinity(2)` says.
pub fn cpus_auto() -> io::Result<Vec<usize>> {
    Ok(allowed_cpus()?.last().copied().into_iter().collect())
}

/// Pins the calling thread to one CPU, also to one that it left ([`leave`]).
///
/// # Errors
/// `InvalidInput` if there is no such CPU, or the cgroup does not have it.
pub fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(|error| match error {
        rustix::io::Errno::INVAL => {
            io::Error::new(io::ErrorKind::InvalidInput, format!("CPU {cpu} is not there, or not for this cgroup"))
        }
        other => other.into(),
    })
}

/// Keeps the calling thread, and those that it starts from now on, off the CPUs of workers, unless there are no others; answers
/// whether there are. A worker never gives its CPU up of itself, so whatever else runs there takes it away from the worker
/// in the middle of a round, and all guests pay for what one of them had its session do.
///
/// # Errors
/// What `sched_setaffinity(2)` says.
pub fn leave(workers: &[usize]) -> io::Result<bool> {
    let others: Vec<usize> = allowed_cpus()?.into_iter().filter(|cpu| !workers.contains(cpu)).collect();
    if others.is_empty() {
        return Ok(false);
    }
    let mut set = CpuSet::new();
    others.into_iter().for_each(|cpu| set.set(cpu));
    sched_setaffinity(None, &set)?;
    Ok(true)
}

/// Lets the calling thread run where the process' first one may: for a thread that a worker starts and that must not stay with it.
///
/// # Errors
/// What `sched_setaffinity(2)` says.
pub fn as_the_first() -> io::Result<()> {
    let set = sched_getaffinity(Some(rustix::process::getpid()))?;
    Ok(sched_setaffinity(None, &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_pinned_to_an_allowed_cpu_and_to_no_other() {
        std::thread::spawn(|| {
            let last = *allowed_cpus().unwrap().last().unwrap();
            pin(last).unwrap();
            assert_eq!(allowed_cpus().unwrap(), [last]);
            assert_eq!(pin(CpuSet::MAX_CPU - 1).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_thread_and_what_it_starts_leave_the_workers_cpus_and_a_worker_comes_back() {
        let allowed = allowed_cpus().unwrap();
        assert!(allowed.len() > 1, "this test needs two CPUs");
        std::thread::spawn(move || {
            let (worker, others) = allowed.split_last().unwrap();
            assert!(!leave(&allowed).unwrap(), "there is nowhere else");
            assert_eq!(allowed_cpus().unwrap(), allowed);
            assert!(leave(&[*worker]).unwrap());
            assert_eq!(allowed_cpus().unwrap(), others);
            let worker = *worker;
            let pinned = std::thread::spawn(move || {
                assert!(!allowed_cpus().unwrap().contains(&worker));
                pin(worker).unwrap();
                allowed_cpus().unwrap()
            });
            assert_eq!(pinned.join().unwrap(), [worker]);
        })
        .join()
        .unwrap();
    }
}
