//! The Quantum networking API and the state behind it.
//!
//! One change goes: HTTP ([`server`]) -> [`identity`] -> version view ([`v1`]) -> [`policy`], by the [`guard`] ->
//! [`plugin`] -> [`store`] -> [`host::Host`], which lowers the model ([`lowering`]) and puts it in force on this hypervisor's switch. Domain errors know no HTTP;
//! each API version maps them. This crate knows the switch's config types and nothing of its ports or workers.
#![forbid(unsafe_code)]

mod accept;
pub mod address_pair;
pub mod audit;
mod base64;
pub mod claim;
pub mod cluster;
pub mod document;
pub mod etcd;
pub mod format;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod guard;
mod hex;
pub mod host;
pub mod http_client;
pub mod identity;
pub mod json;
pub mod lowering;
pub mod model;
pub mod network_type;
pub mod peer;
pub mod plugin;
pub mod plugins;
pub mod policy;
pub mod quota;
pub mod reply;
pub mod sealed;
pub mod server;
pub mod shared;
pub mod store;
pub mod tls;
mod url;
pub mod v1;
pub mod versions;
pub mod watched;
pub mod xml;
