//! The rules of networks, ports and attachments over a [`Model`] (specification sections 5, 7 and 12), apart from what a
//! [`Backing`] decides.
//!
//! A write goes: check, commit, change the model, put in force, answer; writers take turns. A reader takes a snapshot
//! and never waits for a disk. The model is changed in place where no reader has a snapshot just then, and shares with
//! that snapshot what does not change (benches/lowering.rs), so that a write costs what it changes.

use crate::model::{AdminState, Change, LogicalPort, Model, Network, NetworkId, OpStatus, PortId, Text};
use crate::plugin::{
    CreateNetworkError, CreatePortError, DeleteNetworkError, DeletePortError, GetAllNetworksError, GetAllPortsError,
    GetNetworkError, GetPortError, NetworkDetails, NetworkFilter, NetworkInUse, NetworkNotFound, PlugInterfaceError,
    Plugin, PortDetails, PortFilter, PortInUse, PortNotFound, Ports, StateInvalid, StoreFailed, UnplugInterfaceError,
    UpdateNetworkError, UpdatePortError,
};
use crate::store::StoreError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// What is different from plugin to plugin.
pub trait Backing: Send + Sync {
    /// Makes changes durable.
    ///
    /// # Errors
    /// What the store said; it is then unknown whether they are.
    fn commit(&self, changes: &[Change]) -> Result<(), StoreError>;

    /// What is durable now, asked after a failed commit. `None`: the model in memory is all there is.
    ///
    /// # Errors
    /// What the store said.
    fn reload(&self) -> Result<Option<Model>, StoreError>;

    /// Returns when this model is in force.
    fn put_in_force(&self, model: &Model);

    /// Whether the data plane carries a port.
    fn op_status(&self, model: &Model, port: &LogicalPort) -> OpStatus;

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
    backing: B,
    model: RwLock<Arc<Model>>,
    writer: Mutex<Writer>,
}

/// What the writer alone knows.
#[derive(Default)]
struct Writer {
    /// A commit failed and the durable state could not be read since: the model may differ from it.
    is_stale: bool,
}

impl<B: Backing> Recorded<B> {
    /// A plugin that starts with this model. Nothing is put in force yet.
    pub(super) fn over(backing: B, model: Model) -> Recorded<B> {
        Recorded { backing, model: RwLock::new(Arc::new(model)), writer: Mutex::default() }
    }

    /// The state as it is now; it does not change under the caller.
    pub fn snapshot(&self) -> Arc<Model> {
        self.model.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts the state in force once more, in turn with the writers: for a host on which something else changed. The
    /// caller holds no lock that [`Backing::put_in_force`] takes, because a writer may be in there and hold the turn.
    pub fn put_in_force(&self) {
        let _turn = self.turn();
        self.backing.put_in_force(&self.snapshot());
    }

    fn turn(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One write: `plan` looks at the state and says what is to change.
    fn write<T, E: From<StoreFailed>>(&self, plan: impl FnOnce(&Model) -> Result<(Vec<Change>, T), E>) -> Result<T, E> {
        let mut turn = self.turn();
        if turn.is_stale {
            self.reload(&mut turn).map_err(|error| store_failed(&error))?;
        }
        // The snapshot is dropped before the model changes, or every write would copy the model.
        let (changes, value) = plan(&self.snapshot())?;
        if changes.is_empty() {
            return Ok(value);
        }
        if let Err(error) = self.backing.commit(&changes) {
            turn.is_stale = true;
            if let Err(error) = self.reload(&mut turn) {
                tracing::error!(%error, "the state cannot be read back; writes fail until it can");
            }
            return Err(store_failed(&error).into());
        }
        {
            let mut model = self.model.write().unwrap_or_else(PoisonError::into_inner);
            let model = Arc::make_mut(&mut model);
            changes.iter().for_each(|change| model.apply(change));
        }
        self.backing.put_in_force(&self.snapshot());
        Ok(value)
    }

    /// Makes the model what the store says after a failed commit, and puts it in force if that is something else.
    fn reload(&self, turn: &mut Writer) -> Result<(), StoreError> {
        if let Some(durable) = self.backing.reload()? {
            let before = self.snapshot();
            if durable.networks != before.networks || durable.ports != before.ports {
                drop(before);
                *self.model.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(durable);
                self.backing.put_in_force(&self.snapshot());
            }
        }
        turn.is_stale = false;
        Ok(())
    }

    fn tell_port(&self, model: &Model, port: &LogicalPort) -> PortDetails {
        PortDetails {
            id: port.id.clone(),
            state: port.state,
            op_status: self.backing.op_status(model, port),
            attachment: port.attachment.clone(),
        }
    }

    fn tell_network(&self, model: &Model, network: &Network, ports: Ports) -> NetworkDetails {
        let tell = || model.ports_of(&network.id).map(|port| self.tell_port(model, port)).collect();
        NetworkDetails {
            id: network.id.clone(),
            name: network.name.clone(),
            op_status: OpStatus::Up,
            ports: (ports == Ports::Listed).then(tell),
        }
    }
}

impl<B: Backing> Plugin for Recorded<B> {
    fn get_all_networks(
        &self,
        tenant: &str,
        filter: &NetworkFilter,
    ) -> Result<Vec<NetworkDetails>, GetAllNetworksError> {
        let model = self.snapshot();
        let ports = if filter.needs_ports() { Ports::Listed } else { Ports::Omitted };
        let networks = model
            .networks_of(tenant)
            .map(|network| self.tell_network(&model, network, ports))
            .filter(|network| filter.passes(network))
            .map(|network| NetworkDetails { ports: None, ..network });
        Ok(networks.collect())
    }

    fn create_network(&self, tenant: &str, name: Option<Text>) -> Result<NetworkId, CreateNetworkError> {
        self.write(|model| {
            let network = Network { id: new_id(), tenant: tenant.into(), name, serial: model.next_serial() };
            let id = network.id.clone();
            Ok((vec![Change::PutNetwork(network)], id))
        })
    }

    fn delete_network(&self, tenant: &str, network: &str) -> Result<(), DeleteNetworkError> {
        self.write(|model| {
            let network = own_network(model, tenant, network)?;
            if model.ports_of(&network.id).any(|port| port.attachment.is_some()) {
                return Err(NetworkInUse { network: network.id.clone() }.into());
            }
            let ports = model.ports_of(&network.id).map(|port| Change::RemovePort(port.id.clone()));
            Ok((ports.chain([Change::RemoveNetwork(network.id.clone())]).collect(), ()))
        })
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
        self.write(|model| {
            let old = own_network(model, tenant, network)?;
            Ok((vec![Change::PutNetwork(Network { name, ..old.clone() })], ()))
        })
    }

    fn get_all_ports(
        &self,
        tenant: &str,
        network: &str,
        filter: &PortFilter,
    ) -> Result<Vec<PortDetails>, GetAllPortsError> {
        let model = self.snapshot();
        let network = own_network(&model, tenant, network)?;
        let ports = model.ports_of(&network.id).map(|port| self.tell_port(&model, port));
        Ok(ports.filter(|port| filter.passes(port)).collect())
    }

    fn create_port(&self, tenant: &str, network: &str, state: &str) -> Result<PortId, CreatePortError> {
        self.write(|model| {
            let network = own_network(model, tenant, network)?;
            let port = LogicalPort {
                id: new_id(),
                network: network.id.clone(),
                state: admin_state(state)?,
                attachment: None,
                serial: model.next_serial(),
            };
            let id = port.id.clone();
            Ok((vec![Change::PutPort(port)], id))
        })
    }

    fn update_port(&self, tenant: &str, network: &str, port: &str, state: &str) -> Result<(), UpdatePortError> {
        self.write(|model| {
            let old = own_port(model, tenant, network, port)?;
            let state = admin_state(state)?;
            Ok((vec![Change::PutPort(LogicalPort { state, ..old.clone() })], ()))
        })
    }

    fn delete_port(&self, tenant: &str, network: &str, port: &str) -> Result<(), DeletePortError> {
        self.write(|model| {
            let port = own_port(model, tenant, network, port)?;
            check_vacant(port)?;
            Ok((vec![Change::RemovePort(port.id.clone())], ()))
        })
    }

    fn get_port_details(&self, tenant: &str, network: &str, port: &str) -> Result<PortDetails, GetPortError> {
        let model = self.snapshot();
        Ok(self.tell_port(&model, own_port(&model, tenant, network, port)?))
    }

    fn plug_interface(
        &self,
        tenant: &str,
        network: &str,
        port: &str,
        attachment: &str,
    ) -> Result<(), PlugInterfaceError> {
        self.write(|model| {
            let network = own_network(model, tenant, network)?;
            let port = self.backing.check_plug(model, network, port, attachment)?;
            Ok((vec![Change::PutPort(LogicalPort { attachment: Some(attachment.into()), ..port.clone() })], ()))
        })
    }

    fn unplug_interface(&self, tenant: &str, network: &str, port: &str) -> Result<(), UnplugInterfaceError> {
        self.write(|model| {
            let port = own_port(model, tenant, network, port)?;
            let changes = match port.attachment {
                Some(_) => vec![Change::PutPort(LogicalPort { attachment: None, ..port.clone() })],
                None => Vec::new(),
            };
            Ok((changes, ()))
        })
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

fn admin_state(name: &str) -> Result<AdminState, StateInvalid> {
    AdminState::from_name(name).ok_or_else(|| StateInvalid { state: name.into() })
}

/// A random UUID, lower case with hyphens.
fn new_id() -> Arc<str> {
    let mut text = uuid::Uuid::encode_buffer();
    Arc::from(&*uuid::Uuid::new_v4().as_hyphenated().encode_lower(&mut text))
}

fn store_failed(error: &StoreError) -> StoreFailed {
    StoreFailed { why: error.to_string().into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    /// A store in memory that fails when told: after the change was written, or before.
    #[derive(Default)]
    struct Failing {
        disk: Mutex<Model>,
        is_failing: AtomicBool,
        is_written_before_failing: AtomicBool,
        is_unreadable: AtomicBool,
        in_force_count: AtomicUsize,
        /// Held by a test to hold up commits.
        gate: Mutex<()>,
    }

    impl Failing {
        fn error() -> StoreError {
            StoreError::File { path: "disk".into(), source: std::io::ErrorKind::StorageFull.into() }
        }
    }

    impl Backing for Arc<Failing> {
        fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
            drop(self.gate.lock());
            let is_failing = self.is_failing.load(Ordering::Relaxed);
            if !is_failing || self.is_written_before_failing.load(Ordering::Relaxed) {
                changes.iter().for_each(|change| self.disk.lock().unwrap().apply(change));
            }
            if is_failing { Err(Failing::error()) } else { Ok(()) }
        }

        fn reload(&self) -> Result<Option<Model>, StoreError> {
            if self.is_unreadable.load(Ordering::Relaxed) {
                return Err(Failing::error());
            }
            Ok(Some(self.disk.lock().unwrap().clone()))
        }

        fn put_in_force(&self, _model: &Model) {
            self.in_force_count.fetch_add(1, Ordering::Relaxed);
        }

        fn op_status(&self, _model: &Model, _port: &LogicalPort) -> OpStatus {
            OpStatus::Unknown
        }

        fn check_plug<'a>(
            &self,
            model: &'a Model,
            network: &Network,
            port: &str,
            _attachment: &str,
        ) -> Result<&'a LogicalPort, PlugInterfaceError> {
            Ok(port_on(model, network, port)?)
        }
    }

    fn plugin() -> (Recorded<Arc<Failing>>, Arc<Failing>) {
        let backing = Arc::new(Failing::default());
        (Recorded::over(backing.clone(), Model::default()), backing)
    }

    fn names(plugin: &impl Plugin) -> Vec<String> {
        let networks = plugin.get_all_networks("red", &NetworkFilter::default()).unwrap();
        networks.into_iter().filter_map(|network| network.name).map(|name| name.to_string()).collect()
    }

    #[test]
    fn a_write_the_store_refused_is_neither_seen_nor_in_force() {
        let (plugin, backing) = plugin();
        plugin.create_network("red", Some("kept".into())).unwrap();
        backing.is_failing.store(true, Ordering::Relaxed);
        let refused = plugin.create_network("red", Some("lost".into()));
        assert!(matches!(refused, Err(CreateNetworkError::StoreFailed(_))), "{refused:?}");
        assert_eq!(names(&plugin), ["kept"]);
        assert_eq!(backing.in_force_count.load(Ordering::Relaxed), 1);
        backing.is_failing.store(false, Ordering::Relaxed);
        plugin.create_network("red", Some("after".into())).unwrap();
        assert_eq!(names(&plugin), ["kept", "after"]);
    }

    #[test]
    fn a_write_that_failed_after_it_reached_the_disk_is_seen_and_in_force() {
        let (plugin, backing) = plugin();
        backing.is_failing.store(true, Ordering::Relaxed);
        backing.is_written_before_failing.store(true, Ordering::Relaxed);
        assert!(plugin.create_network("red", Some("there".into())).is_err());
        assert_eq!(names(&plugin), ["there"]);
        assert_eq!(backing.in_force_count.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn after_a_failure_nothing_is_written_before_the_state_was_read_back() {
        let (plugin, backing) = plugin();
        backing.is_failing.store(true, Ordering::Relaxed);
        backing.is_written_before_failing.store(true, Ordering::Relaxed);
        backing.is_unreadable.store(true, Ordering::Relaxed);
        assert!(plugin.create_network("red", Some("first".into())).is_err());
        assert_eq!(names(&plugin), Vec::<String>::new(), "reads go on with what is known");
        backing.is_failing.store(false, Ordering::Relaxed);
        assert!(plugin.create_network("red", Some("refused".into())).is_err());
        backing.is_unreadable.store(false, Ordering::Relaxed);
        plugin.create_network("red", Some("second".into())).unwrap();
        assert_eq!(names(&plugin), ["first", "second"]);
    }

    #[test]
    fn readers_do_not_wait_for_a_commit() {
        let (plugin, backing) = plugin();
        plugin.create_network("red", Some("before".into())).unwrap();
        let held = backing.gate.lock().unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| plugin.create_network("red", Some("slow".into())));
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert_eq!(names(&plugin), ["before"]);
            assert!(!writer.is_finished());
            drop(held);
        });
        assert_eq!(names(&plugin), ["before", "slow"]);
    }
}
