//! Which CPUs a worker may run on, and pinning it there.
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

/// Pins the calling thread to one CPU.
///
/// # Errors
/// `InvalidInput` if the CPU is outside the allowed set.
pub fn pin(cpu: usize) -> io::Result<()> {
    let allowed = allowed_cpus()?;
    if !allowed.contains(&cpu) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("CPU {cpu} is not allowed here; allowed are {allowed:?}"),
        ));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
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
}
