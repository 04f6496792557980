//! Any bytes as a vhost-user message. What is checked stands in `vhost::fuzzing`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], u8)| vhost::fuzzing::message(input.0, usize::from(input.1)));
