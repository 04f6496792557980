//! Any bytes as what a router says of packets that are too long. What is checked stands in `pipelines::fuzzing`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    pipelines::fuzzing::too_big(data);
});
