//! The contract of a Quantum plugin: twelve methods, typed (specification section 12).
//!
//! Calls may block on a disk, so they are made from threads where that is allowed; any number at a time. Each call sees
//! one consistent state. A write returns when it is durable and in force. Bounds on texts are checked by the API
//! before; a plugin checks ownership and decides which of several faults wins.

mod errors;
mod filter;

pub use errors::*;
pub use filter::{NetworkFilter, PortFilter};

use crate::model::{AdminState, InterfaceId, NetworkId, OpStatus, PortId, Text};

/// A network as a plugin tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkDetails {
    /// Its UUID.
    pub id: NetworkId,
    /// Its name; `None` where the tenant gave an empty one.
    pub name: Option<Text>,
    /// Whether the data plane carries it.
    pub op_status: OpStatus,
    /// Its ports in creation order; `None` if not asked for.
    pub ports: Option<Vec<PortDetails>>,
}

/// A logical port as a plugin tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortDetails {
    /// Its UUID.
    pub id: PortId,
    /// The tenant's wish.
    pub state: AdminState,
    /// Whether the data plane carries it.
    pub op_status: OpStatus,
    /// The interface plugged into it.
    pub attachment: Option<InterfaceId>,
}

/// Whether a network is told with its ports, whose op-status may cost something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ports {
    /// With them.
    Listed,
    /// Without.
    Omitted,
}

/// A Quantum plugin. Texts are as the tenant gave them; a network belongs to a tenant if its stored tenant is equal.
pub trait Plugin: Send + Sync {
    /// A tenant's networks that pass the filter, in creation order, without ports.
    fn get_all_networks(&self, tenant: &str, filter: &NetworkFilter) -> Vec<NetworkDetails>;

    /// Makes a network and returns its id.
    ///
    /// # Errors
    /// [`CreateNetworkError`].
    fn create_network(&self, tenant: &str, name: Option<Text>) -> Result<NetworkId, CreateNetworkError>;

    /// Removes a network and its ports.
    ///
    /// # Errors
    /// [`DeleteNetworkError`]; in use while any port has an attachment.
    fn delete_network(&self, tenant: &str, network: &str) -> Result<(), DeleteNetworkError>;

    /// One network.
    ///
    /// # Errors
    /// [`GetNetworkError`].
    fn get_network_details(&self, tenant: &str, network: &str, ports: Ports)
    -> Result<NetworkDetails, GetNetworkError>;

    /// Renames a network.
    ///
    /// # Errors
    /// [`UpdateNetworkError`].
    fn update_network(&self, tenant: &str, network: &str, name: Option<Text>) -> Result<(), UpdateNetworkError>;

    /// A network's ports that pass the filter, in creation order.
    ///
    /// # Errors
    /// [`GetAllPortsError`].
    fn get_all_ports(
        &self,
        tenant: &str,
        network: &str,
        filter: &PortFilter,
    ) -> Result<Vec<PortDetails>, GetAllPortsError>;

    /// Makes a port in the state of this name and returns its id.
    ///
    /// # Errors
    /// [`CreatePortError`].
    fn create_port(&self, tenant: &str, network: &str, state: &str) -> Result<PortId, CreatePortError>;

    /// Gives a port the state of this name. Its attachment stays.
    ///
    /// # Errors
    /// [`UpdatePortError`].
    fn update_port(&self, tenant: &str, network: &str, port: &str, state: &str) -> Result<(), UpdatePortError>;

    /// Removes a port.
    ///
    /// # Errors
    /// [`DeletePortError`]; in use while it has an attachment.
    fn delete_port(&self, tenant: &str, network: &str, port: &str) -> Result<(), DeletePortError>;

    /// One port.
    ///
    /// # Errors
    /// [`GetPortError`].
    fn get_port_details(&self, tenant: &str, network: &str, port: &str) -> Result<PortDetails, GetPortError>;

    /// Plugs an interface into a port. An interface is on at most one port of the whole service.
    ///
    /// # Errors
    /// [`PlugInterfaceError`]; plugging the same interface into the same port again is one.
    fn plug_interface(
        &self,
        tenant: &str,
        network: &str,
        port: &str,
        attachment: &str,
    ) -> Result<(), PlugInterfaceError>;

    /// Takes out what is plugged into a port; nothing plugged is fine.
    ///
    /// # Errors
    /// [`UnplugInterfaceError`].
    fn unplug_interface(&self, tenant: &str, network: &str, port: &str) -> Result<(), UnplugInterfaceError>;
}
