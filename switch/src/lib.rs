//! The engine of the switch: three nouns and one swap.
//!
//! * A [`packet::Packet`] is a frame on its way: a private head that was checked and may be rewritten, and a tail left
//!   where it lies. Packets travel in a [`batch::Batch`] that lives for one round of one worker.
//! * A [`port::Port`] is a device that moves frames: it fills a batch and empties one, once a burst.
//! * A stage decides about packets. Stages live in the `pipelines` crate; the engine knows them as one
//!   [`worker::Pipeline`] that is compiled from a config and run over a batch.
//! * A [`config::Config`] is the whole desired forwarding state. [`publish`] swaps it, its compiled tables and the ports
//!   under the workers, who see one snapshot a round.
//!
//! Everything that happens to a frame is counted in the [`ledger`]; nothing vanishes.
//! This crate knows no other crate of ours.

pub mod af_packet;
pub mod af_xdp;
pub mod affinity;
pub mod assign;
pub mod batch;
pub mod bond;
pub mod capture;
pub mod checksum;
pub mod clock;
pub mod config;
pub mod device;
mod doze;
pub mod ids;
pub mod interface;
pub mod ledger;
pub mod link;
pub mod mac_table;
pub mod netns;
pub mod offload;
pub mod packet;
pub mod poll;
pub mod pool;
pub mod port;
#[cfg(any(test, feature = "testing"))]
pub mod port_contract;
pub mod publish;
mod retired;
pub mod route;
pub mod segment;
pub mod segmentation;
pub mod sigbus;
pub mod switch;
pub mod sync;
pub mod tap;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests;
pub mod underlay;
pub mod worker;
