//! vhost-user: virtio-net devices of guests as ports of the switch.
pub mod backend;
