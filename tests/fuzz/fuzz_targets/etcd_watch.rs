//! Any bytes as what etcd tells by a watch, in pieces as long as the first byte says. What is checked stands in `api::fuzzing`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    api::fuzzing::etcd_watch(data);
});
