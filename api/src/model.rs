//! What tenants own: networks, logical ports and attachments, in memory, as committed to the store.
//!
//! Ids are server-made lower-case UUIDs. Names, tenants and attachment ids are opaque UTF-8 compared byte for byte. A
//! [`Model`] is plain data with its indexes; who may change it and in which order faults win is the plugin's matter.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Longest name, tenant or attachment id, bytes (contract: API input).
pub const TEXT_BYTES_MAX: usize = 1024;

/// Text a tenant gave: at most [`TEXT_BYTES_MAX`] bytes, no NUL.
pub type Text = Arc<str>;
/// A network's UUID.
pub type NetworkId = Arc<str>;
/// A logical port's UUID.
pub type PortId = Arc<str>;
/// The text a tenant plugs as attachment and an operator plugs as interface.
pub type InterfaceId = Arc<str>;

/// Administrative state of a logical port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AdminState {
    /// May pass traffic.
    Active,
    /// Must not.
    Down,
}

/// Whether the data plane carries it, as the API tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpStatus {
    /// It does.
    Up,
    /// It does not.
    Down,
    /// A plugin is at it.
    Provisioning,
    /// The plugin does not track it.
    Unknown,
}

/// An isolated L2 segment of one tenant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Network {
    /// Its UUID.
    pub id: NetworkId,
    /// The owner.
    pub tenant: Text,
    /// Its name; `None` where the tenant gave an empty one.
    pub name: Option<Text>,
    /// Position in creation order; lists are in this order.
    pub serial: u64,
}

/// A network's socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogicalPort {
    /// Its UUID.
    pub id: PortId,
    /// The network it is on.
    pub network: NetworkId,
    /// The tenant's wish.
    pub state: AdminState,
    /// The interface plugged into it.
    pub attachment: Option<InterfaceId>,
    /// Position in creation order; lists are in this order.
    pub serial: u64,
}

/// All networks and ports with their indexes; what the store holds, in memory.
#[derive(Clone, Default, Debug)]
pub struct Model {
    /// By id.
    pub networks: HashMap<NetworkId, Network>,
    /// By id.
    pub ports: HashMap<PortId, LogicalPort>,
    /// Networks of each tenant in creation order: (tenant, serial) -> id.
    pub by_tenant: BTreeMap<(Text, u64), NetworkId>,
    /// Ports of each network in creation order: (network, serial) -> id.
    pub by_network: BTreeMap<(NetworkId, u64), PortId>,
    /// The one port an interface is attached to, in the whole service.
    pub by_attachment: HashMap<InterfaceId, PortId>,
}
