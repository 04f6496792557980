//! Any bytes as a JSON body of the API. What is checked stands in `api::fuzzing`.
#![no_main]

use api::format::Format;
use api::fuzzing::Target;
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;

thread_local! {
    /// Made once; it is as new after each input.
    static TARGET: RefCell<Target> = RefCell::default();
}

fuzz_target!(|data: &[u8]| {
    TARGET.with_borrow_mut(|target| target.body(Format::Json, data));
});
