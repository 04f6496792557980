//! vhost-user: virtio-net devices of guests as ports of the switch.
//!
//! * [`backend`] owns a socket and its thread; [`listen`] is the socket's place in the file system.
//! * [`socket`] cuts the byte stream into messages with file descriptors, [`message`] gives them types, [`session`] is what they
//!   do to a device.
//! * [`call`] is how a guest is interrupted, at no worker's expense.
//! * [`memory`] is a guest's memory, mapped; [`ring`] a virtqueue in it; [`chain`] the walk over one frame's descriptors.
//! * [`inflight`] is what a switch leaves behind of a ring for the one after it.
//! * [`port`] is what workers see: [`switch::port::Port`] over the rings of one guest.
//! * [`net`] is what virtio-net adds: features and the header before each frame.
//! * With the feature `driver`, the guest's side of it all, for tests and load generators.

pub mod backend;
mod backoff;
pub mod call;
pub mod chain;
mod diary;
#[cfg(feature = "driver")]
pub mod driver;
#[cfg(all(any(test, fuzzing), feature = "driver"))]
pub mod fuzzing;
pub mod inflight;
mod listen;
pub mod memory;
pub mod message;
pub mod net;
pub mod port;
pub mod ring;
mod session;
pub mod socket;
mod state_file;
