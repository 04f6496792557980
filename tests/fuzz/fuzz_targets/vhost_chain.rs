//! Any bytes as a descriptor table and guest memory: the walk ends, within its bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost::chain::{BytesSource, CHAIN_MAX, Chain, Direction};

fuzz_target!(|input: (&[u8], &[u8], u16, u16)| {
    let (table, memory, queue_size, head) = input;
    let source = BytesSource { table, memory };
    let mut chain = Chain::default();
    for direction in [Direction::FromGuest, Direction::ToGuest] {
        let result = chain.walk(&source, queue_size, head, direction);
        assert!(chain.buffers().len() <= CHAIN_MAX);
        if result.is_ok() {
            assert!(!chain.is_empty());
        }
    }
});
