//! A guest's bytes as one frame through the whole pipeline. What is checked stands in `pipelines::fuzzing`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pipelines::fuzzing::Target;
use std::cell::RefCell;

thread_local! {
    /// Made once: its tables are larger than a frame's work. It forgets what it learnt after each frame.
    static TARGET: RefCell<Target> = RefCell::default();
}

fuzz_target!(|data: &[u8]| TARGET.with_borrow_mut(|target| target.frame(data)));
