//! Pages of a guest's memory that its process takes away while the switch uses them.

use rustix::fs::{FallocateFlags, fallocate};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
    pub(super) fn start(driver: &Driver) -> Puncher {
        let (memory, ring) = (driver.memory().clone(), &driver.sender.ring);
        let (from, len) = (ring.buffer_at(0), usize::from(ring.slots()) * ring.buffer_len());
        let is_over = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let is_over = is_over.clone();
            move || {
                while !is_over.load(Ordering::Relaxed) {
                    // The more pages there are, the longer it takes.
                    fallocate(memory.file(), FallocateFlags::KEEP_SIZE, from as u64, len as u64)
                        .expect("it is our own file");
                    punch(&memory, from, len);
                }
            }
        });
        Puncher { is_over, thread: Some(thread) }
    }
}

impl Drop for Puncher {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
