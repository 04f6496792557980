//! What the benches stand on: a switch and its guests on one thread, and the yardstick it is held against.
//!
//! * [`rig`] is a switch whose guests are drivers in the same process, stepped by hand.
//! * [`yardstick`] is the least that can be done between two guests: the loop that no switch can be faster than.
//! * [`large`] is a frame to be cut into segments; [`tunnel`] a burst on its way into a tunnel and out of one.
//! * [`cost`] times parts of a round in cycles of the core; [`callgrind`] counts their instructions.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on fails here")]

pub mod callgrind;
pub mod cost;
pub mod large;
pub mod rig;
pub mod tunnel;
pub mod yardstick;

pub use rig::{NOW, Rig};
