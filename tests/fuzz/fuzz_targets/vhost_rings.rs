//! What a guest does to its rings, split and packed, while a worker uses them. What is checked stands in `vhost::fuzzing`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use vhost::fuzzing::Target;

thread_local! {
    /// Made once: mapping a guest's memory is more than a frame's work. It is cleared before each input.
    static TARGET: RefCell<Target> = RefCell::default();
}

fuzz_target!(|data: &[u8]| TARGET.with_borrow_mut(|target| target.rings(data)));
