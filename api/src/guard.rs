//! The plugin as one caller may use it: policy, before the plugin is asked.
//!
//! It stands in the plugin's own place, so whatever a version or an extension asks of the plugin goes through it. Reads that
//! the policy does not allow find nothing. A write is refused as forbidden only if the caller may see what it is about;
//! else that is not found, as it is where it does not exist. The tenant was checked at the border; here it is once more,
//! because nothing but this stands between a wrong route and another tenant's network.

use crate::address_pair::AddressPairs;
use crate::claim::{Claim, Registry, UNKNOWN};
use crate::identity::Caller;
use crate::model::{NetworkId, PortId, Text};
use crate::plugin::{
    AlreadyAttached, CreateNetworkError, CreatePortError, DeleteNetworkError, DeletePortError, Forbidden,
    GetAllNetworksError, GetAllPortsError, GetNetworkError, GetPortError, ListSize, NetworkDetails, NetworkFilter,
    NetworkNotFound, NetworkRow, PlugInterfaceError, Plugin, PortDetails, PortFilter, PortInUse, PortNotFound, PortRow,
    PortStats, Ports, UnplugInterfaceError, UpdateNetworkError, UpdatePortError,
};
use crate::policy::Action;
use std::sync::Arc;

/// A plugin behind the rights of one caller.
pub struct Guarded {
    plugin: Arc<dyn Plugin>,
    caller: Caller,
    /// Whose interfaces and ports are; `None`: nobody asks.
    claims: Option<(Claim, Arc<dyn Registry>)>,
}

impl Guarded {
    /// `plugin` as `caller` may use it.
    pub fn new(plugin: Arc<dyn Plugin>, caller: Caller) -> Guarded {
        Guarded { plugin, caller, claims: None }
    }

    /// The same, with the interfaces the caller may plug as `claim` says by the registry.
    #[must_use]
    pub fn with_claims(self, claim: Claim, registry: Arc<dyn Registry>) -> Guarded {
        Guarded { claims: Some((claim, registry)), ..self }
    }

    /// Refuses an interface id that is not the tenant's; a missing network or port and a full port are told first.
    fn check_claim(&self, tenant: &str, network: &str, port: &str, attachment: &str) -> Result<(), PlugInterfaceError> {
        let Some((Claim::Registered, registry)) = &self.claims else { return Ok(()) };
        if self.caller.may(Action::PlugUnregistered) || registry.is_registered(attachment, tenant) {
            return Ok(());
        }
        let found = self.get_port_details(tenant, network, port)?;
        if let Some(attachment) = found.attachment {
            return Err(PortInUse { port: found.id, network: network.into(), attachment }.into());
        }
        let holder = registry.holder_of(attachment).filter(|holder| is_own(&**registry, tenant, holder));
        Err(AlreadyAttached {
            attachment: attachment.into(),
            port: found.id,
            network: network.into(),
            holder: holder.unwrap_or_else(|| UNKNOWN.into()),
        }
        .into())
    }

    /// A plug's refusal as the caller may hear it.
    fn tell(&self, tenant: &str, error: PlugInterfaceError) -> PlugInterfaceError {
        match (error, &self.claims) {
            (PlugInterfaceError::AlreadyAttached(mut fault), Some((_, registry)))
                if !is_own(&**registry, tenant, &fault.holder) =>
            {
                fault.holder = UNKNOWN.into();
                fault.into()
            }
            (error, _) => error,
        }
    }

    fn may(&self, tenant: &str, action: Action) -> bool {
        self.caller.may_enter(tenant) && self.caller.may(action)
    }

    fn network_may_be_seen(&self, tenant: &str, network: &str) -> Result<(), NetworkNotFound> {
        match self.may(tenant, Action::GetNetwork) {
            true => Ok(()),
            false => Err(NetworkNotFound { network: network.into() }),
        }
    }

    fn port_may_be_seen(&self, tenant: &str, network: &str, port: &str) -> Result<(), GetPortError> {
        if self.may(tenant, Action::GetPort) {
            return Ok(());
        }
        self.get_network_details(tenant, network, Ports::Omitted)?;
        Err(PortNotFound { port: port.into(), network: network.into() }.into())
    }

    /// Refuses an action of the tenant as such.
    fn check(&self, tenant: &str, action: Action) -> Result<(), Forbidden> {
        if self.may(tenant, action) { Ok(()) } else { Err(Forbidden { action: action.name().into() }) }
    }

    /// Refuses an action on a network: as not found if it is not there for the caller.
    fn check_on_network<E>(&self, tenant: &str, network: &str, action: Action) -> Result<(), E>
    where
        E: From<GetNetworkError> + From<Forbidden>,
    {
        self.check(tenant, action).or_else(|forbidden| {
            self.get_network_details(tenant, network, Ports::Omitted)?;
            Err(forbidden.into())
        })
    }

    /// Refuses an action on a port in the same way.
    fn check_on_port<E>(&self, tenant: &str, network: &str, port: &str, action: Action) -> Result<(), E>
    where
        E: From<GetPortError> + From<Forbidden>,
    {
        self.check(tenant, action).or_else(|forbidden| {
            self.get_port_details(tenant, network, port)?;
            Err(forbidden.into())
        })
    }
}

fn is_own(registry: &dyn Registry, tenant: &str, port: &str) -> bool {
    registry.tenant_of(port).as_deref() == Some(tenant)
}

impl Plugin for Guarded {
    fn get_all_networks(
        &self,
        tenant: &str,
        filter: &NetworkFilter,
    ) -> Result<Vec<NetworkDetails>, GetAllNetworksError> {
        // A filter by ports would tell of ports.
        let is_hidden = filter.needs_ports() && !self.may(tenant, Action::GetPort);
        if is_hidden || !self.may(tenant, Action::GetNetwork) {
            return Ok(Vec::new());
        }
        self.plugin.get_all_networks(tenant, filter)
    }

    fn create_network(&self, tenant: &str, name: Option<Text>) -> Result<NetworkId, CreateNetworkError> {
        self.check(tenant, Action::CreateNetwork)?;
        self.plugin.create_network(tenant, name)
    }

    fn delete_network(&self, tenant: &str, network: &str) -> Result<(), DeleteNetworkError> {
        self.check_on_network::<DeleteNetworkError>(tenant, network, Action::DeleteNetwork)?;
        self.plugin.delete_network(tenant, network)
    }

    fn get_network_details(
        &self,
        tenant: &str,
        network: &str,
        ports: Ports,
    ) -> Result<NetworkDetails, GetNetworkError> {
        self.network_may_be_seen(tenant, network)?;
        if ports == Ports::Listed && !self.may(tenant, Action::GetPort) {
            let details = self.plugin.get_network_details(tenant, network, Ports::Omitted)?;
            return Ok(NetworkDetails { ports: Some(Vec::new()), ..details });
        }
        self.plugin.get_network_details(tenant, network, ports)
    }

    fn update_network(&self, tenant: &str, network: &str, name: Option<Text>) -> Result<(), UpdateNetworkError> {
        self.check_on_network::<UpdateNetworkError>(tenant, network, Action::UpdateNetwork)?;
        self.plugin.update_network(tenant, network, name)
    }

    /// Where clients are known nobody gets at another's network this way: the name alone.
    fn overwrite_network(&self, tenant: &str, network: &str, row: &NetworkRow) -> Result<(), UpdateNetworkError> {
        match &self.caller {
            Caller::Known { .. } => self.update_network(tenant, network, row.name.clone()),
            Caller::Anyone => self.plugin.overwrite_network(tenant, network, row),
        }
    }

    fn get_all_ports(
        &self,
        tenant: &str,
        network: &str,
        filter: &PortFilter,
    ) -> Result<Vec<PortDetails>, GetAllPortsError> {
        if !self.may(tenant, Action::GetPort) {
            self.get_network_details(tenant, network, Ports::Omitted)?;
            return Ok(Vec::new());
        }
        self.network_may_be_seen(tenant, network)?;
        self.plugin.get_all_ports(tenant, network, filter)
    }

    fn create_port(&self, tenant: &str, network: &str, state: &str) -> Result<PortId, CreatePortError> {
        self.check_on_network::<CreatePortError>(tenant, network, Action::CreatePort)?;
        self.plugin.create_port(tenant, network, state)
    }

    fn create_port_with_pairs(
        &self,
        tenant: &str,
        network: &str,
        state: &str,
        pairs: &AddressPairs,
    ) -> Result<PortId, CreatePortError> {
        self.check_on_network::<CreatePortError>(tenant, network, Action::CreatePort)?;
        self.plugin.create_port_with_pairs(tenant, network, state, pairs)
    }

    fn create_ports(&self, tenant: &str, networks: &[NetworkId], state: &str) -> Result<Vec<PortId>, CreatePortError> {
        for network in networks {
            self.check_on_network::<CreatePortError>(tenant, network, Action::CreatePort)?;
        }
        self.plugin.create_ports(tenant, networks, state)
    }

    fn update_port(&self, tenant: &str, network: &str, port: &str, state: &str) -> Result<(), UpdatePortError> {
        self.check_on_port::<UpdatePortError>(tenant, network, port, Action::UpdatePort)?;
        self.plugin.update_port(tenant, network, port, state)
    }

    /// Where clients are known nobody gets at another's network or interface this way: the state alone.
    fn overwrite_port(&self, tenant: &str, network: &str, port: &str, row: &PortRow) -> Result<(), UpdatePortError> {
        match &self.caller {
            Caller::Known { .. } => self.update_port(tenant, network, port, &row.state),
            Caller::Anyone => self.plugin.overwrite_port(tenant, network, port, row),
        }
    }

    fn update_port_with_pairs(
        &self,
        tenant: &str,
        network: &str,
        port: &str,
        state: &str,
        pairs: &AddressPairs,
    ) -> Result<(), UpdatePortError> {
        self.check_on_port::<UpdatePortError>(tenant, network, port, Action::UpdatePort)?;
        self.plugin.update_port_with_pairs(tenant, network, port, state, pairs)
    }

    fn delete_port(&self, tenant: &str, network: &str, port: &str) -> Result<(), DeletePortError> {
        self.check_on_port::<DeletePortError>(tenant, network, port, Action::DeletePort)?;
        self.plugin.delete_port(tenant, network, port)
    }

    fn get_port_details(&self, tenant: &str, network: &str, port: &str) -> Result<PortDetails, GetPortError> {
        self.network_may_be_seen(tenant, network)?;
        self.port_may_be_seen(tenant, network, port)?;
        self.plugin.get_port_details(tenant, network, port)
    }

    fn list_size_max(&self, tenant: &str, network: Option<&str>) -> ListSize {
        let action = if network.is_some() { Action::GetPort } else { Action::GetNetwork };
        if self.may(tenant, action) { self.plugin.list_size_max(tenant, network) } else { ListSize::default() }
    }

    fn counts_ports(&self) -> bool {
        self.plugin.counts_ports()
    }

    fn get_port_stats(&self, tenant: &str, network: &str, port: &str) -> Result<PortStats, GetPortError> {
        self.network_may_be_seen(tenant, network)?;
        self.port_may_be_seen(tenant, network, port)?;
        self.plugin.get_port_stats(tenant, network, port)
    }

    fn get_port_device(&self, tenant: &str, network: &str, port: &str) -> Result<Option<Text>, GetPortError> {
        self.network_may_be_seen(tenant, network)?;
        self.port_may_be_seen(tenant, network, port)?;
        self.plugin.get_port_device(tenant, network, port)
    }

    fn plug_interface(
        &self,
        tenant: &str,
        network: &str,
        port: &str,
        attachment: &str,
    ) -> Result<(), PlugInterfaceError> {
        self.check_on_port::<PlugInterfaceError>(tenant, network, port, Action::Plug)?;
        self.check_claim(tenant, network, port, attachment)?;
        let plugged = self.plugin.plug_interface(tenant, network, port, attachment);
        plugged.map_err(|error| self.tell(tenant, error))
    }

    fn unplug_interface(&self, tenant: &str, network: &str, port: &str) -> Result<(), UnplugInterfaceError> {
        self.check_on_port::<UnplugInterfaceError>(tenant, network, port, Action::Unplug)?;
        self.plugin.unplug_interface(tenant, network, port)
    }
}
