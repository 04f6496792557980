//! Any bytes as a frame of LACP, which whoever is at the other end of a link's wire sends. What is checked stands in `pipelines::fuzzing`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    pipelines::fuzzing::lacp(data);
});
