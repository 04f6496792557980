//! What all peers together may have us map. A program of its own, since the bound is the process's.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::os::fd::OwnedFd;
use vhost::memory::{FileError, GuestMemory, MAPPED_BYTES_MAX, MAPPED_BYTES_TOTAL_MAX, MemoryError};
use vhost::message::RegionInfo;

/// A guest of the largest memory there may be, all of it holes.
fn guest() -> Result<GuestMemory, MemoryError> {
    let file: OwnedFd = memfd_create("address-space", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, MAPPED_BYTES_MAX).unwrap();
    let all = RegionInfo { guest_address: 0, size: MAPPED_BYTES_MAX, user_address: 0, file_offset: 0 };
    GuestMemory::map(&[all], &[file])
}

#[test]
fn peers_that_map_all_they_may_leave_us_address_space_and_the_one_too_many_is_told() {
    let mut guests: Vec<GuestMemory> = Vec::new();
    let refused = loop {
        match guest() {
            Ok(guest) => guests.push(guest),
            Err(refused) => break refused,
        }
        assert!(guests.len() as u64 <= MAPPED_BYTES_TOTAL_MAX / MAPPED_BYTES_MAX, "beyond the bound");
    };
    assert!(matches!(refused, MemoryError::File { region: 0, source: FileError::NoRoom { .. } }), "{refused}");
    assert_eq!(guests.len() as u64, MAPPED_BYTES_TOTAL_MAX / MAPPED_BYTES_MAX);
    // Who goes makes room for another.
    guests.pop();
    guests.push(guest().unwrap());
    assert!(guest().is_err());
}
