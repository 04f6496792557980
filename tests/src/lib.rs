//! The rig: what the chapters of the integration binary stand on.
//!
//! Everything a chapter starts (a daemon, a virtual machine, a namespace, a directory) belongs to a value that takes it
//! down when dropped, also when the test fails. The rig panics where a step cannot be done: it is only used by tests,
//! and the message is what a reader of a failed run needs.

pub mod capture;
pub mod chance;
pub mod checksum;
pub mod daemon;
pub mod etcd;
pub mod generator;
pub mod guest;
pub mod hostile;
pub mod http;
pub mod initramfs;
pub mod ledger;
pub mod namespace;
pub mod ovs;
pub mod pcapng;
pub mod process;
pub mod qmp;
pub mod tcpdump;
pub mod version;
pub mod wire;
