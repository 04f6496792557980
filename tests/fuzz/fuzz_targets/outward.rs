//! A guest's bytes as one frame to another host: through the stages, wrapped and cut. What is checked stands in
//! `pipelines::fuzzing`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pipelines::fuzzing::Outward;
use std::cell::RefCell;

thread_local! {
    /// Made once: its tables are larger than a frame's work. It forgets what it learnt after each frame.
    static TARGET: RefCell<Outward> = RefCell::default();
}

fuzz_target!(|data: &[u8]| {
    TARGET.with_borrow_mut(|target| target.frame(data));
});
