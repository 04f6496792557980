//! The rules of networks, ports and attachments over a [`Model`], apart from what a
//! [`Backing`] decides.
//!
//! A write goes: check, commit, change the model, put in force, answer; writers who come together are committed together
//! ([`writes`]). A reader takes a snapshot and never waits for a disk. A model and its successor share what does not change,
//! so that a write costs what it changes.

mod overwrite;
mod writes;

use crate::address_pair::AddressPairs;
use crate::cluster::Absorbed;
use crate::host::Scope;
use crate::model::{
    AdminState, Change, Inconsistent, LogicalPort, Model, Network, NetworkId, OpStatus, PortId, Text, Touched,
};
use crate::network_type::NetworkType;
use crate::plugin::{
    AlreadyAttached, BackendUnavailable, CreateNetworkError, CreatePortError, DeleteNetworkError, DeletePortError,
    GetAllNetworksError, GetAllPortsError, GetNetworkError, GetPortError, ListSize, NetworkDetails, NetworkFilter,
    NetworkInUse, NetworkNotFound, NetworkRow, NoSegmentFree, PlugInterfaceError, Plugin, PortDetails, PortFilter,
    PortInUse, PortNotFound, PortRow, PortStats, Ports, PortsOfNetwork, StateInvalid, UnplugInterfaceError,
    UpdateNetworkError, UpdatePortError,
};
use crate::quota::{Quota, Quotas, Resource};
use crate::store::StoreError;
use overwrite::Overwritten;
use std::sync::Arc;
use writes::Writes;

/// What is different from plugin to plugin.
pub trait Backing: Send + Sync {
    /// Whether tenants may rename each other's networks in the original's dialect, as its sample plugin had it.
    const LETS_STRANGERS_RENAME: bool = false;

    /// Whether an op-status that was written over a port stays when it is unplugged. The original's sample plugin did not look at it,
    /// its openvswitch plugin set it anew.
    const KEEPS_STATUS_UNPLUGGED: bool = false;

    /// Bytes that may be committed together, as [`Backing::size_of`] counts them.
    const BYTES_MAX: usize = usize::MAX;

    /// Bytes of changes in the store, where that sets a bound.
    fn size_of(&self, _changes: &[Change]) -> usize {
        0
    }

    /// Waits until what a write was outrun by ([`StoreError::Outrun`]) is part of the model. Called without the turn.
    ///
    /// # Errors
    /// What the store said, if that takes too long.
    fn catch_up(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// How far the model has come where others write too, in a measure of the store's; it grows with what is written. Asked in
    /// the writers' turn.
    fn place(&self) -> i64 {
        0
    }

    /// How far it must have come to have all that anybody has written by now; [`Backing::catch_up`] then waits for that.
    ///
    /// # Errors
    /// What the store said.
    fn present(&self) -> Result<i64, StoreError> {
        Ok(0)
    }

    /// Makes changes of the durable state, which is `before`, durable.
    ///
    /// # Errors
    /// [`StoreError::Outrun`]: they are not, because others wrote first; else what the store said, and it is then unknown
    /// whether they are.
    fn commit(&self, before: &Model, changes: &[Change]) -> Result<(), StoreError>;

    /// What is durable now, asked after a failed commit. `None`: the model in memory is all there is.
    ///
    /// # Errors
    /// What the store said.
    fn reload(&self) -> Result<Option<Model>, StoreError>;

    /// Returns when this model is in force; nothing outside of `scope` is another than at the last call.
    fn put_in_force(&self, model: &Model, scope: Scope<'_>);

    /// How a network of this tenant that is about to be made will be carried. `durable` is what others know, `model` what
    /// it will be once all that waits is written.
    ///
    /// # Errors
    /// [`NoSegmentFree`] if nothing is left for it.
    fn allot(&self, _tenant: &str, _durable: &Model, _model: &Model) -> Result<NetworkType, NoSegmentFree> {
        Ok(NetworkType::Local)
    }

    /// Whether the data plane carries a port.
    fn op_status(&self, model: &Model, port: &LogicalPort) -> OpStatus;

    /// Whether the data plane carries a network.
    fn network_op_status(&self, _network: &Network) -> OpStatus {
        OpStatus::Up
    }

    /// Whether [`Backing::port_stats`] counts.
    fn counts_ports(&self) -> bool {
        false
    }

    /// What passed a port; `None`: only another host knows.
    fn port_stats(&self, _model: &Model, _port: &LogicalPort) -> Option<PortStats> {
        Some(PortStats::default())
    }

    /// By what the device of a port's interface is known ([`crate::host::Host::port_device`]).
    fn port_device(&self, _model: &Model, _port: &LogicalPort) -> Option<Text> {
        None
    }

    /// Whether `attachment` may be plugged; the network is the tenant's. Returns the port.
    ///
    /// # Errors
    /// The fault that wins in this plugin.
    fn check_plug<'a>(
        &self,
        model: &'a Model,
        network: &Network,
        port: &str,
        attachment: &str,
    ) -> Result<&'a LogicalPort, PlugInterfaceError>;
}

/// A plugin over a backing.
pub struct Recorded<B> {
    writes: Writes<B>,
    overwritten: Overwritten,
    quotas: Arc<Quotas>,
}

impl<B: Backing> Recorded<B> {
    /// A plugin that starts with this model. Nothing is put in force yet, and tenants may have any number of things.
    pub(super) fn over(backing: B, model: impl Into<Arc<Model>>) -> Recorded<B> {
        Recorded {
            writes: Writes::new(backing, model.into()),
            overwritten: Overwritten::default(),
            quotas: Arc::new(Quotas::for_all(Quota::UNLIMITED)),
        }
    }

    /// The same, and tenants get no more than these say.
    #[must_use]
    pub fn with_quotas(self, quotas: Arc<Quotas>) -> Recorded<B> {
        Recorded { quotas, ..self }
    }

    /// Makes a port on each of these networks by one write: all are durable and in force, or none is.
    fn make_ports(
        &self,
        tenant: &str,
        networks: &[&str],
        state: &str,
        pairs: &AddressPairs,
    ) -> Result<Vec<PortId>, CreatePortError> {
        let quota = self.quotas.of(tenant);
        self.writes.write(|model| -> Result<_, CreatePortError> {
            let found = networks.iter().map(|network| own_network(model, tenant, network));
            let found = found.collect::<Result<Vec<_>, _>>()?;
            let state = admin_state(state)?;
            quota.check(model, tenant, Resource::Port, found.len())?;
            let ids: Vec<_> = found.iter().map(|_| new_id()).collect();
            let ports = found.iter().zip(&ids).zip(model.next_serial()..).map(|((network, id), serial)| LogicalPort {
                id: id.clone(),
                network: network.id.clone(),
                state,
                attachment: None,
                pairs: pairs.clone(),
                serial,
            });
            Ok((ports.map(Change::PutPort).collect(), ids))
        })
    }

    /// Gives a port the state of this name; without pairs it keeps those it has.
    fn change_port(
        &self,
        tenant: &str,
        network: &str,
        port: &str,
        state: &str,
        pairs: Option<&AddressPairs>,
    ) -> Result<(), UpdatePortError> {
        self.writes.write(|model| {
            let old = own_port(model, tenant, network, port)?;
            let (state, pairs) = (admin_state(state)?, pairs.unwrap_or(&old.pairs).clone());
            Ok((vec![Change::PutPort(LogicalPort { state, pairs, ..old.clone() })], ()))
        })
    }

    /// What is different in this plugin.
    pub(super) fn backing(&self) -> &B {
        &self.writes.backing
    }

    /// The state as it is now; it does not change under the caller.
    pub fn snapshot(&self) -> Arc<Model> {
        self.writes.snapshot()
    }

    /// Puts the state in force once more: for a host on which something else changed. It waits for no commit. The
    /// caller holds no lock that [`Backing::put_in_force`] takes, because a writer may be in there.
    pub fn put_in_force(&self) {
        self.writes.put_in_force();
    }

    /// Makes what others did part of the state and puts it in force, as [`writes`] has it.
    ///
    /// # Errors
    /// What `take` said.
    pub(super) fn absorb(
        &self,
        take: impl FnOnce(&Model) -> Result<Option<Absorbed>, Inconsistent>,
        also: Touched,
    ) -> Result<(), Inconsistent> {
        self.writes.absorb(take, also)
    }

    /// Calls `look` with the state while nothing is made part of it and nobody writes.
    pub(super) fn while_settled(&self, look: &mut dyn FnMut(&Arc<Model>)) {
        self.writes.while_settled(look);
    }

    fn port_status(&self, model: &Model, port: &LogicalPort) -> OpStatus {
        let own = self.writes.backing.op_status(model, port);
        // What was written does not hide that a port was set DOWN where that is told.
        let is_set_down = port.state == AdminState::Down && own == OpStatus::Down;
        self.overwritten.op_status(&port.id).filter(|_| !is_set_down).unwrap_or(own)
    }

    fn tell_port(&self, model: &Model, port: &LogicalPort) -> PortDetails {
        PortDetails {
            id: port.id.clone(),
            state: port.state,
            op_status: self.port_status(model, port),
            attachment: port.attachment.clone(),
        }
    }

    fn tell_network(&self, model: &Model, network: &Network, ports: Ports) -> NetworkDetails {
        let tell = || model.ports_of(&network.id).map(|port| self.tell_port(model, port)).collect();
        NetworkDetails {
            id: network.id.clone(),
            name: network.name.clone(),
            op_status: self
                .overwritten
                .op_status(&network.id)
                .unwrap_or_else(|| self.writes.backing.network_op_status(network)),
            ports: (ports == Ports::Listed).then(tell),
        }
    }
}

/// A network's ports where they are recorded.
struct PortsIn<'a, B> {
    plugin: &'a Recorded<B>,
    model: &'a Model,
    network: &'a Network,
}

impl<B: Backing> PortsOfNetwork for PortsIn<'_, B> {
    fn has(&self, port: &str) -> bool {
        self.model.port_of(&self.network.id, port).is_some()
    }

    fn has_attachment(&self, attachment: &str) -> bool {
        self.model.port_by_attachment(attachment).is_some_and(|port| port.network == self.network.id)
    }

    fn has_any_attachment(&self) -> bool {
        self.model.has_attachments(&self.network.id)
    }

    fn has_state(&self, state: &str) -> bool {
        self.model.ports_of(&self.network.id).any(|port| port.state.name() == state)
    }

    fn has_op_status(&self, status: &str) -> bool {
        let mut ports = self.model.ports_of(&self.network.id);
        ports.any(|port| self.plugin.port_status(self.model, port).name() == status)
    }
}

impl<B: Backing> Plugin for Recorded<B> {
    fn get_all_networks(
        &self,
        tenant: &str,
        filter: &NetworkFilter,
    ) -> Result<Vec<NetworkDetails>, GetAllNetworksError> {
        let model = self.snapshot();
        // Of a port, and of what is plugged into one, it is known on which network it is: no other is looked at.
        let is_of_one = filter.port.is_some() || filter.attachment.is_some();
        let port = match (&filter.port, &filter.attachment) {
            (Some(port), _) => model.ports.get(port.as_str()),
            (None, Some(attachment)) => model.port_by_attachment(attachment),
            (None, None) => None,
        };
        let one = port.and_then(|port| model.network_of(tenant, &port.network));
        let all = (!is_of_one).then(|| model.networks_of(tenant));
        let networks = all.into_iter().flatten().chain(one).filter_map(|network| {
            let told = self.tell_network(&model, network, Ports::Omitted);
            filter.passes(&told, &PortsIn { plugin: self, model: &model, network }).then_some(told)
        });
        Ok(networks.collect())
    }

    fn create_network(&self, tenant: &str, name: Option<Text>) -> Result<NetworkId, CreateNetworkError> {
        // Asked before the writers' turn: it may read a file.
        let quota = self.quotas.of(tenant);
        self.writes.write(|model| -> Result<_, CreateNetworkError> {
            quota.check(model, tenant, Resource::Network, 1)?;
            let network = Network {
                id: new_id(),
                tenant: tenant.into(),
                name: name.clone(),
                network_type: self.writes.backing.allot(tenant, &self.snapshot(), model)?,
                serial: model.next_serial(),
            };
            let id = network.id.clone();
            Ok((vec![Change::PutNetwork(network)], id))
        })
    }

    fn delete_network(&self, tenant: &str, network: &str) -> Result<(), DeleteNetworkError> {
        self.writes.write(|model| {
            let network = own_network(model, tenant, network)?;
            if model.has_attachments(&network.id) {
                return Err(NetworkInUse { network: network.id.clone(), too_many: None }.into());
            }
            let ports = model.ports_of(&network.id).map(|port| Change::RemovePort(port.id.clone()));
            let changes: Vec<Change> = ports.chain([Change::RemoveNetwork(network.id.clone())]).collect();
            if self.writes.backing.size_of(&changes) > B::BYTES_MAX {
                let too_many = Some(changes.len() - 1);
                return Err(NetworkInUse { network: network.id.clone(), too_many }.into());
            }
            Ok::<_, DeleteNetworkError>((changes, ()))
        })?;
        self.overwritten.forget(network);
        Ok(())
    }

    fn get_network_details(
        &self,
        tenant: &str,
        network: &str,
        ports: Ports,
    ) -> Result<NetworkDetails, GetNetworkError> {
        let model = self.snapshot();
        let network = own_network(&model, tenant, network)?;
        Ok(self.tell_network(&model, network, ports))
    }

    fn update_network(&self, tenant: &str, network: &str, name: Option<Text>) -> Result<(), UpdateNetworkError> {
        self.writes.write(|model| {
            let old = own_network(model, tenant, network)?;
            Ok((vec![Change::PutNetwork(Network { name: name.clone(), ..old.clone() })], ()))
        })
    }

    fn overwrite_network(&self, tenant: &str, network: &str, row: &NetworkRow) -> Result<(), UpdateNetworkError> {
        self.overwrite(tenant, network, row)
    }

    fn get_all_ports(
        &self,
        tenant: &str,
        network: &str,
        filter: &PortFilter,
    ) -> Result<Vec<PortDetails>, GetAllPortsError> {
        let model = self.snapshot();
        let network = own_network(&model, tenant, network)?;
        // What is plugged into one port at most leads to it: no other is looked at.
        let one = filter.attachment.as_deref().and_then(|attachment| model.port_by_attachment(attachment));
        let one = one.filter(|port| port.network == network.id);
        let all = filter.attachment.is_none().then(|| model.ports_of(&network.id));
        let ports = all.into_iter().flatten().chain(one).map(|port| self.tell_port(&model, port));
        Ok(ports.filter(|port| filter.passes(port)).collect())
    }

    fn create_port(&self, tenant: &str, network: &str, state: &str) -> Result<PortId, CreatePortError> {
        self.create_port_with_pairs(tenant, network, state, &AddressPairs::default())
    }

    fn create_port_with_pairs(
        &self,
        tenant: &str,
        network: &str,
        state: &str,
        pairs: &AddressPairs,
    ) -> Result<PortId, CreatePortError> {
        let ids = self.make_ports(tenant, &[network], state, pairs)?;
        Ok(ids.into_iter().next().expect("one network has one port made"))
    }

    fn create_ports(&self, tenant: &str, networks: &[NetworkId], state: &str) -> Result<Vec<PortId>, CreatePortError> {
        let networks: Vec<&str> = networks.iter().map(|network| &**network).collect();
        self.make_ports(tenant, &networks, state, &AddressPairs::default())
    }

    fn update_port(&self, tenant: &str, network: &str, port: &str, state: &str) -> Result<(), UpdatePortError> {
        self.change_port(tenant, network, port, state, None)
    }

    fn overwrite_port(&self, tenant: &str, network: &str, port: &str, row: &PortRow) -> Result<(), UpdatePortError> {
        self.overwrite_row_of_port(tenant, network, port, row)
    }

    fn update_port_with_pairs(
        &self,
        tenant: &str,
        network: &str,
        port: &str,
        state: &str,
        pairs: &AddressPairs,
    ) -> Result<(), UpdatePortError> {
        self.change_port(tenant, network, port, state, Some(pairs))
    }

    fn delete_port(&self, tenant: &str, network: &str, port: &str) -> Result<(), DeletePortError> {
        self.writes.write(|model| {
            let port = own_port(model, tenant, network, port)?;
            check_vacant(port)?;
            Ok::<_, DeletePortError>((vec![Change::RemovePort(port.id.clone())], ()))
        })?;
        self.overwritten.forget(port);
        Ok(())
    }

    fn get_port_details(&self, tenant: &str, network: &str, port: &str) -> Result<PortDetails, GetPortError> {
        let model = self.snapshot();
        Ok(self.tell_port(&model, own_port(&model, tenant, network, port)?))
    }

    fn list_size_max(&self, tenant: &str, network: Option<&str>) -> ListSize {
        self.snapshot().list_size(tenant, network)
    }

    fn counts_ports(&self) -> bool {
        self.writes.backing.counts_ports()
    }

    fn get_port_stats(&self, tenant: &str, network: &str, port: &str) -> Result<PortStats, GetPortError> {
        let model = self.snapshot();
        let stats = self.writes.backing.port_stats(&model, own_port(&model, tenant, network, port)?);
        stats.ok_or_else(|| {
            let why = "the interface is plugged on another host, which alone counts what passes it".into();
            BackendUnavailable { why }.into()
        })
    }

    fn get_port_device(&self, tenant: &str, network: &str, port: &str) -> Result<Option<Text>, GetPortError> {
        let model = self.snapshot();
        Ok(self.writes.backing.port_device(&model, own_port(&model, tenant, network, port)?))
    }

    fn plug_interface(
        &self,
        tenant: &str,
        network: &str,
        port: &str,
        attachment: &str,
    ) -> Result<(), PlugInterfaceError> {
        self.writes.write(|model| {
            let network = own_network(model, tenant, network)?;
            let port = self.writes.backing.check_plug(model, network, port, attachment)?;
            Ok((vec![Change::PutPort(LogicalPort { attachment: Some(attachment.into()), ..port.clone() })], ()))
        })
    }

    fn unplug_interface(&self, tenant: &str, network: &str, port: &str) -> Result<(), UnplugInterfaceError> {
        self.writes.write(|model| -> Result<_, UnplugInterfaceError> {
            let port = own_port(model, tenant, network, port)?;
            let changes = match port.attachment {
                Some(_) => vec![Change::PutPort(LogicalPort { attachment: None, ..port.clone() })],
                None => Vec::new(),
            };
            Ok((changes, ()))
        })?;
        if !B::KEEPS_STATUS_UNPLUGGED {
            self.overwritten.forget(port);
        }
        Ok(())
    }
}

/// The tenant's network; another tenant's is as absent as one that never was.
fn own_network<'a>(model: &'a Model, tenant: &str, network: &str) -> Result<&'a Network, NetworkNotFound> {
    model.network_of(tenant, network).ok_or_else(|| NetworkNotFound { network: network.into() })
}

/// The port on the tenant's network; the network is looked for first.
fn own_port<'a>(model: &'a Model, tenant: &str, network: &str, port: &str) -> Result<&'a LogicalPort, GetPortError> {
    let network = own_network(model, tenant, network)?;
    Ok(port_on(model, network, port)?)
}

/// The port on this network.
pub(super) fn port_on<'a>(model: &'a Model, network: &Network, port: &str) -> Result<&'a LogicalPort, PortNotFound> {
    model.port_of(&network.id, port).ok_or_else(|| PortNotFound { port: port.into(), network: network.id.clone() })
}

/// Nothing is plugged into the port.
pub(super) fn check_vacant(port: &LogicalPort) -> Result<(), PortInUse> {
    match &port.attachment {
        None => Ok(()),
        Some(attachment) => {
            Err(PortInUse { port: port.id.clone(), network: port.network.clone(), attachment: attachment.clone() })
        }
    }
}

/// Whether `attachment` may be plugged, in the order of the original openvswitch plugin: a full port is told before an
/// attachment used elsewhere.
pub(super) fn check_plug_vacant_first<'a>(
    model: &'a Model,
    network: &Network,
    port: &str,
    attachment: &str,
) -> Result<&'a LogicalPort, PlugInterfaceError> {
    let port = port_on(model, network, port)?;
    check_vacant(port)?;
    match model.port_by_attachment(attachment) {
        None => Ok(port),
        Some(holder) => Err(AlreadyAttached {
            attachment: attachment.into(),
            port: port.id.clone(),
            network: network.id.clone(),
            holder: holder.id.clone(),
        }
        .into()),
    }
}

fn admin_state(name: &str) -> Result<AdminState, StateInvalid> {
    AdminState::from_name(name).ok_or_else(|| StateInvalid { state: name.into() })
}

/// A random UUID, lower case with hyphens.
fn new_id() -> Arc<str> {
    let mut text = uuid::Uuid::encode_buffer();
    Arc::from(&*uuid::Uuid::new_v4().as_hyphenated().encode_lower(&mut text))
}

#[cfg(test)]
mod tests;
