//! The API from outside: a server on loopback, requests by socket, both plugins.
//!
//! One binary. [`rig`] has the server and the client; every other file is one matter.

#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise, in helpers too")]

mod backend;
mod behaviour;
mod cisco;
mod clients;
mod concurrency;
mod conformance;
mod crash;
mod dialects;
mod extensions;
mod golden;
mod hangup;
mod hostile;
mod identity;
mod keystone;
mod limits;
mod oracle;
mod pairs;
mod quotas;
mod recorded;
mod reference;
mod remote;
mod rig;
mod tls;
mod tree;
mod unreliable;
