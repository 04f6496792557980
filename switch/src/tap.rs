//! A TAP device of our own making, as a port. Interface fixed here first.
use crate::port::{Device, DeviceState, Link, Place};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What a TAP needs to know.
#[derive(Debug)]
pub struct TapConfig {
    /// Interface name, 1 to 15 bytes.
    pub name: String,
    /// The network namespace it lives in; `None`: the caller's.
    pub netns: Option<OwnedFd>,
    /// Bytes of L3 payload.
    pub mtu: u16,
    /// Reopen the existing device of that name, which the caller knows to be ours. Otherwise it is made exclusively.
    pub reopen: bool,
}

/// Why a TAP could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// A device of that name exists and `reopen` was not asked for.
    #[error("an interface named {name:?} exists already and is not ours")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The system said no.
    #[error("{what}: {source}")]
    Io {
        /// What we tried.
        what: String,
        /// What it said.
        source: std::io::Error,
    },
}

/// An open TAP's control side. Dropping it withdraws the port and closes the device, which persists.
pub struct Tap {}

impl Tap {
    /// Opens or makes the TAP: persistent, vnet header, offloads, MTU, link up; publishes its port at `place`.
    ///
    /// # Errors
    /// [`TapError`]; the caller retries.
    pub fn open(_config: TapConfig, _place: Arc<dyn Place>) -> Result<Tap, TapError> {
        Ok(Tap {})
    }

    /// Removes the device itself: withdraws the port, ends persistence and closes.
    pub fn remove(self) {}
}

impl Device for Tap {
    fn state(&self) -> DeviceState {
        DeviceState { is_ready: false, link: Link::Down, reason: String::new() }
    }
}
