//! Pages of a guest's memory that its process takes away while the switch uses them.

use super::cpu_time;
use rustix::fs::{FallocateFlags, fallocate};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use vhost::driver::Driver;
use vhost::memory::DriverMemory;

/// Takes pages of a driver's memory away.
pub(super) fn punch(memory: &DriverMemory, from: usize, len: usize) {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(memory.file(), hole, from as u64, len as u64).expect("it is our own file");
}

/// Fills a driver's send buffers and takes their pages away again, over and over, in a thread of its own, until it is dropped.
pub(super) struct Puncher {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Puncher {
    /// Adds the CPU time that its thread takes, ns, to `spent_ns`.
    pub(super) fn start(driver: &Driver, spent_ns: Arc<AtomicU64>) -> Puncher {
        let (memory, ring) = (driver.memory().clone(), &driver.sender.ring);
        let (from, len) = (ring.buffer_at(0), usize::from(ring.slots()) * ring.buffer_len());
        let is_over = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let is_over = is_over.clone();
            move || {
                let mut before = cpu_time();
                while !is_over.load(Ordering::Relaxed) {
                    // The more pages there are, the longer it takes.
                    fallocate(memory.file(), FallocateFlags::KEEP_SIZE, from as u64, len as u64)
                        .expect("it is our own file");
                    punch(&memory, from, len);
                    let now = cpu_time();
                    spent_ns.fetch_add((now - before).as_nanos() as u64, Ordering::Relaxed);
                    before = now;
                }
            }
        });
        Puncher { is_over, thread: Some(thread) }
    }
}

impl Drop for Puncher {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let joined = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(joined, Some(Ok(()))), "it went on until now");
    }
}
