//! The one integration binary. A chapter is a module; `cargo xtask test CHAPTER` runs one alone.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

mod cloud;
mod etcd;
mod fuzz;
mod house;
mod keystone;
mod net;
mod openapi;
mod pktgen;
mod segmentation;
mod simulation;
mod topology;
mod vm;
