//! The contract of a Quantum plugin: the twelve methods of Quantum 2012.1, typed. `api/PLUGINS.md` leads through
//! writing one.
//!
//! What makes it hard is the world behind a plugin: a switch in this process is done when the call returns, a controller
//! at the other end of a wire may be slow, fail half way, forget, or come back with things nobody asked for. Tenants are
//! to notice that in *op-status* alone. So these are the rules, and the module `conformance` (feature `testing`) checks them:
//!
//! * **Order of a write**: check, record durably, answer. Either it is in force when the call returns, or the plugin says
//!   PROVISIONING of the thing until its backend confirms it. Later reads show what was written at once, either way.
//! * **A refusal changes nothing.** A backend or store that failed leaves the state as it was or as it was asked for,
//!   nothing in between, and reads tell which.
//! * **Reads tell what was recorded** and never wait for a backend; each sees one consistent state. A plugin without
//!   records of its own, a proxy, asks its backend within a bound of its own and may answer [`BackendUnavailable`].
//! * **Ownership**: another tenant's network is as absent as one that never was, and that is checked before its ports. An
//!   interface is on at most one port of the whole service. Which of several faults wins is the plugin's matter.
//! * **Threads**: any number of calls at a time, from threads that may block.
//!
//! Bounds on texts are checked by the API before. A plugin for a device elsewhere need not write any of this down again:
//! [`crate::plugins::remote`] has it, and asks two methods of a device.

#[cfg(feature = "testing")]
pub mod conformance;
mod errors;
mod filter;

pub use crate::model::ListSize;
pub use errors::*;
pub use filter::{NetworkFilter, PortFilter, PortsOfNetwork};

use crate::address_pair::AddressPairs;
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

/// What an update may write over a network's row in the original's dialect (`api.strict_essex`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkRow {
    /// The name; `None` for the empty one.
    pub name: Option<Text>,
    /// A new id.
    pub id: Option<NetworkId>,
    /// An op-status to be told from now on.
    pub op_status: Option<OpStatus>,
}

/// What an update may write over a port's row in the original's dialect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortRow {
    /// The state's name.
    pub state: Text,
    /// A new id.
    pub id: Option<PortId>,
    /// Another network.
    pub network: Option<NetworkId>,
    /// Another attachment, or none.
    pub attachment: Option<Option<InterfaceId>>,
    /// An op-status to be told from now on.
    pub op_status: Option<OpStatus>,
}

impl PortRow {
    /// The state alone.
    pub fn of_state(state: Text) -> PortRow {
        PortRow { state, id: None, network: None, attachment: None, op_status: None }
    }
}

/// What passed a port one way.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Flow {
    /// Frames that got through.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that were dropped.
    pub drops: u64,
}

/// What passed a port since its interface is there.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PortStats {
    /// From the interface.
    pub rx: Flow,
    /// To the interface.
    pub tx: Flow,
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
    /// A tenant's networks that pass the filter, in creation order, without ports. A tenant nobody heard of has none.
    ///
    /// # Errors
    /// [`GetAllNetworksError`].
    fn get_all_networks(
        &self,
        tenant: &str,
        filter: &NetworkFilter,
    ) -> Result<Vec<NetworkDetails>, GetAllNetworksError>;

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

    /// Writes over a network's row what the original let every client write, for replaying recordings. Asked instead of
    /// [`Plugin::update_network`] with `api.strict_essex`, and only then. A plugin need not have it: it renames.
    ///
    /// # Errors
    /// [`UpdateNetworkError`].
    fn overwrite_network(&self, tenant: &str, network: &str, row: &NetworkRow) -> Result<(), UpdateNetworkError> {
        self.update_network(tenant, network, row.name.clone())
    }

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

    /// Makes a port that may send from these addresses and those of its plug only. A plugin
    /// that cannot see to that need not have it: it makes a port as any, which is what the original's did.
    ///
    /// # Errors
    /// [`CreatePortError`].
    fn create_port_with_pairs(
        &self,
        tenant: &str,
        network: &str,
        state: &str,
        _pairs: &AddressPairs,
    ) -> Result<PortId, CreatePortError> {
        self.create_port(tenant, network, state)
    }

    /// Makes ports in the state of this name, one on each of these networks in their order, and returns their ids; a network
    /// named twice gets two. All of them or none. A plugin that cannot make several at once need not have it: they are made
    /// one after another, and if one cannot be made, those made before it are removed; what cannot be removed then stays.
    ///
    /// # Errors
    /// [`CreatePortError`] of the first that cannot be made.
    fn create_ports(&self, tenant: &str, networks: &[NetworkId], state: &str) -> Result<Vec<PortId>, CreatePortError> {
        let mut made = Vec::new();
        for network in networks {
            match self.create_port(tenant, network, state) {
                Ok(port) => made.push(port),
                Err(error) => {
                    for (network, port) in std::iter::zip(networks, &made) {
                        // What cannot be taken back now is the tenant's to see and to remove.
                        let _ = self.delete_port(tenant, network, port);
                    }
                    return Err(error);
                }
            }
        }
        Ok(made)
    }

    /// Gives a port the state of this name. Its attachment and its pairs stay.
    ///
    /// # Errors
    /// [`UpdatePortError`].
    fn update_port(&self, tenant: &str, network: &str, port: &str, state: &str) -> Result<(), UpdatePortError>;

    /// The same of a port's row, asked instead of [`Plugin::update_port`].
    ///
    /// # Errors
    /// [`UpdatePortError`].
    fn overwrite_port(&self, tenant: &str, network: &str, port: &str, row: &PortRow) -> Result<(), UpdatePortError> {
        self.update_port(tenant, network, port, &row.state)
    }

    /// Gives a port the state of this name, and these pairs in the place of those it had.
    ///
    /// # Errors
    /// [`UpdatePortError`].
    fn update_port_with_pairs(
        &self,
        tenant: &str,
        network: &str,
        port: &str,
        state: &str,
        _pairs: &AddressPairs,
    ) -> Result<(), UpdatePortError> {
        self.update_port(tenant, network, port, state)
    }

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

    /// How large a list of a tenant's networks is at most, or of the ports of one of its networks; told from memory, at once.
    /// By it memory is set aside before a list is made. A plugin need not know: then it is counted after.
    fn list_size_max(&self, _tenant: &str, _network: Option<&str>) -> ListSize {
        ListSize::default()
    }

    /// Whether [`Plugin::get_port_stats`] has counters to tell. Not one of the twelve: what an extension needs, a plugin
    /// may have.
    fn counts_ports(&self) -> bool {
        false
    }

    /// What passed a port; zeros while nothing is counted.
    ///
    /// # Errors
    /// [`GetPortError`].
    fn get_port_stats(&self, tenant: &str, network: &str, port: &str) -> Result<PortStats, GetPortError> {
        self.get_port_details(tenant, network, port).map(|_| PortStats::default())
    }

    /// By what the device of a port's interface is known to who brings up its guest: a name or a path, empty if it can have none.
    /// `None`: not known here.
    ///
    /// # Errors
    /// [`GetPortError`].
    fn get_port_device(&self, tenant: &str, network: &str, port: &str) -> Result<Option<Text>, GetPortError> {
        self.get_port_details(tenant, network, port).map(|_| None)
    }
}
