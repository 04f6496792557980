//! One vhost-user socket and the sessions that come and go on it. Interface fixed here first.
use std::path::PathBuf;
use std::sync::Arc;
use switch::port::{Device, DeviceState, Link, Place};

/// Who listens on the socket; always the switch's role.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The switch listens, QEMU connects.
    Server,
    /// QEMU listens, the switch connects and reconnects.
    Client,
}

/// What a backend needs to know.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    /// Where the socket is; absolute, at most 107 bytes.
    pub path: PathBuf,
    /// The switch's role.
    pub role: Role,
    /// MTU told to the guest if it negotiates VIRTIO_NET_F_MTU.
    pub mtu: u16,
    /// Owner and group of a socket we make; `None`: ours.
    pub owner: (Option<u32>, Option<u32>),
    /// Permission bits of a socket we make.
    pub mode: u32,
    /// Peer uids accepted besides root and our own (SO_PEERCRED).
    pub peer_uids: Vec<u32>,
}

/// Why a socket could not be set up; retried by the caller.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The system said no.
    #[error("{what}: {source}")]
    Io {
        /// What we tried.
        what: String,
        /// What it said.
        source: std::io::Error,
    },
}

/// A vhost-user port's control side: owns the socket and its thread. Dropping it ends the session, withdraws the port
/// from its place and unlinks the socket it made.
pub struct Backend {}

impl Backend {
    /// Opens the socket (server) or starts trying to connect (client) and serves sessions until dropped.
    ///
    /// # Errors
    /// If the socket cannot be made: bad directory, a foreign file in the way, permissions.
    pub fn start(_config: BackendConfig, _place: Arc<dyn Place>) -> Result<Backend, StartError> {
        Ok(Backend {})
    }
}

impl Device for Backend {
    fn state(&self) -> DeviceState {
        DeviceState { is_ready: false, link: Link::Down, reason: String::new() }
    }
}
