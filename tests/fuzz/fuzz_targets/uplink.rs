//! A stranger's bytes as one frame from the underlay, opened and taken through the whole pipeline. What is checked stands in
//! `pipelines::fuzzing`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pipelines::fuzzing::Underlay;
use std::cell::RefCell;

thread_local! {
    /// Made once: its tables are larger than a frame's work. It forgets what it learnt after each frame.
    static TARGET: RefCell<Underlay> = RefCell::default();
}

fuzz_target!(|data: &[u8]| TARGET.with_borrow_mut(|target| target.frame(data)));
