//! Any bytes as what etcd answers, or as what another host says of itself there. What is checked stands in `api::fuzzing`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    api::fuzzing::etcd_answer(data);
});
