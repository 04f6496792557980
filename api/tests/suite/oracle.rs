//! Both plugins against an oracle too simple to be wrong: a list of networks and a list of ports.

use crate::rig::{Driver, Scratch, native, open_store};
use api::model::{InterfaceId, Model};
use api::plugin::{Fault, NetworkFilter, Plugin, PortFilter, Ports};
use api::plugins::FakePlugin;
use proptest::prelude::*;
use std::sync::Arc;

const TENANTS: [&str; 2] = ["red", "blue"];

/// Indices pick among all networks and ports ever made, gone ones too, modulo their number.
#[derive(Clone, Debug)]
enum Step {
    CreateNetwork { tenant: usize },
    DeleteNetwork { tenant: usize, network: usize },
    Rename { tenant: usize, network: usize, name: Option<u8> },
    CreatePort { tenant: usize, network: usize, state: usize },
    UpdatePort { tenant: usize, network: usize, port: usize, state: usize },
    DeletePort { tenant: usize, network: usize, port: usize },
    Plug { tenant: usize, network: usize, port: usize, attachment: u8 },
    Unplug { tenant: usize, network: usize, port: usize },
}

const STATES: [&str; 3] = ["ACTIVE", "DOWN", "BAD"];

fn step() -> impl Strategy<Value = Step> {
    let (tenant, network, port, state) = (0..2usize, 0..6usize, 0..8usize, 0..3usize);
    prop_oneof![
        3 => tenant.clone().prop_map(|tenant| Step::CreateNetwork { tenant }),
        1 => (tenant.clone(), network.clone()).prop_map(|(tenant, network)| Step::DeleteNetwork { tenant, network }),
        1 => (tenant.clone(), network.clone(), proptest::option::of(0..3u8))
            .prop_map(|(tenant, network, name)| Step::Rename { tenant, network, name }),
        5 => (tenant.clone(), network.clone(), state.clone())
            .prop_map(|(tenant, network, state)| Step::CreatePort { tenant, network, state }),
        2 => (tenant.clone(), network.clone(), port.clone(), state)
            .prop_map(|(tenant, network, port, state)| Step::UpdatePort { tenant, network, port, state }),
        1 => (tenant.clone(), network.clone(), port.clone())
            .prop_map(|(tenant, network, port)| Step::DeletePort { tenant, network, port }),
        6 => (tenant.clone(), network.clone(), port.clone(), 0..4u8)
            .prop_map(|(tenant, network, port, attachment)| Step::Plug { tenant, network, port, attachment }),
        2 => (tenant, network, port).prop_map(|(tenant, network, port)| Step::Unplug { tenant, network, port }),
    ]
}

#[derive(Clone, Debug)]
struct OracleNetwork {
    id: Arc<str>,
    tenant: &'static str,
    name: Option<String>,
    is_gone: bool,
}

#[derive(Clone, Debug)]
struct OraclePort {
    id: Arc<str>,
    network: Arc<str>,
    state: &'static str,
    attachment: Option<InterfaceId>,
    is_gone: bool,
}

#[derive(Default)]
struct Oracle {
    networks: Vec<OracleNetwork>,
    ports: Vec<OraclePort>,
}

impl Oracle {
    fn network_id(&self, at: usize) -> Arc<str> {
        self.networks.get(at % self.networks.len().max(1)).map_or("none".into(), |network| network.id.clone())
    }

    fn port_id(&self, at: usize) -> Arc<str> {
        self.ports.get(at % self.ports.len().max(1)).map_or("none".into(), |port| port.id.clone())
    }

    fn network(&mut self, tenant: &str, id: &str) -> Result<&mut OracleNetwork, &'static str> {
        let mut live = self.networks.iter_mut().filter(|network| !network.is_gone);
        live.find(|network| &*network.id == id && network.tenant == tenant).ok_or("NetworkNotFound")
    }

    fn port(&mut self, tenant: &str, network: &str, id: &str) -> Result<&mut OraclePort, &'static str> {
        self.network(tenant, network)?;
        let mut live = self.ports.iter_mut().filter(|port| !port.is_gone);
        live.find(|port| &*port.id == id && &*port.network == network).ok_or("PortNotFound")
    }

    fn holder(&self, attachment: &str) -> Option<&OraclePort> {
        self.ports.iter().find(|port| !port.is_gone && port.attachment.as_deref() == Some(attachment))
    }

    fn plug(
        &mut self,
        driver: Driver,
        tenant: &str,
        network: &str,
        id: &str,
        attachment: &str,
    ) -> Result<(), &'static str> {
        self.network(tenant, network)?;
        let holder_network = self.holder(attachment).map(|holder| holder.network.clone());
        let port = self.port(tenant, network, id)?;
        if driver == Driver::Fake && holder_network.as_deref() == Some(network) {
            return Err("AlreadyAttached");
        }
        if port.attachment.is_some() {
            return Err("PortInUse");
        }
        if holder_network.is_some() {
            return Err("AlreadyAttached");
        }
        port.attachment = Some(attachment.into());
        Ok(())
    }
}

fn fault_name(fault: impl Into<Fault>) -> &'static str {
    match fault.into() {
        Fault::NetworkNotFound(_) => "NetworkNotFound",
        Fault::NetworkInUse(_) => "NetworkInUse",
        Fault::PortNotFound(_) => "PortNotFound",
        Fault::StateInvalid(_) => "StateInvalid",
        Fault::PortInUse(_) => "PortInUse",
        Fault::AlreadyAttached(_) => "AlreadyAttached",
        Fault::Forbidden(_) => "Forbidden",
        Fault::NoSegmentFree(_) => "NoSegmentFree",
        Fault::StoreFailed(_) => "StoreFailed",
        Fault::BackendUnavailable(_) => "BackendUnavailable",
        Fault::BackendFailed(_) => "BackendFailed",
        Fault::OverQuota(_) => "OverQuota",
    }
}

/// Does a step on both and compares what they say of it.
fn run_step(plugin: &dyn Plugin, oracle: &mut Oracle, driver: Driver, step: &Step) {
    match *step {
        Step::CreateNetwork { tenant } => {
            let tenant = TENANTS[tenant];
            let id = plugin.create_network(tenant, Some("n".into())).unwrap();
            oracle.networks.push(OracleNetwork { id, tenant, name: Some("n".to_owned()), is_gone: false });
        }
        Step::DeleteNetwork { tenant, network } => {
            let id = oracle.network_id(network);
            let is_used =
                oracle.ports.iter().any(|port| !port.is_gone && port.network == id && port.attachment.is_some());
            let wanted = oracle.network(TENANTS[tenant], &id).and_then(|network| {
                network.is_gone = !is_used;
                if is_used { Err("NetworkInUse") } else { Ok(()) }
            });
            if wanted.is_ok() {
                oracle.ports.iter_mut().filter(|port| port.network == id).for_each(|port| port.is_gone = true);
            }
            assert_eq!(plugin.delete_network(TENANTS[tenant], &id).map_err(fault_name), wanted);
        }
        Step::Rename { tenant, network, name } => {
            let id = oracle.network_id(network);
            let name = name.map(|name| name.to_string());
            let wanted = oracle.network(TENANTS[tenant], &id).map(|network| network.name = name.clone());
            let name = name.map(|name| name.as_str().into());
            assert_eq!(plugin.update_network(TENANTS[tenant], &id, name).map_err(fault_name), wanted);
        }
        Step::CreatePort { tenant, network, state } => {
            let id = oracle.network_id(network);
            let wanted = oracle.network(TENANTS[tenant], &id).map(drop);
            let wanted = wanted.and(if STATES[state] == "BAD" { Err("StateInvalid") } else { Ok(()) });
            let made = plugin.create_port(TENANTS[tenant], &id, STATES[state]).map_err(fault_name);
            assert_eq!(made.as_ref().map(drop), wanted.as_ref().map(drop));
            if let Ok(port) = made {
                let state = STATES[state];
                oracle.ports.push(OraclePort { id: port, network: id, state, attachment: None, is_gone: false });
            }
        }
        Step::UpdatePort { tenant, network, port, state } => {
            let (network, port) = (oracle.network_id(network), oracle.port_id(port));
            let wanted = oracle.port(TENANTS[tenant], &network, &port).and_then(|port| {
                if STATES[state] == "BAD" {
                    return Err("StateInvalid");
                }
                port.state = STATES[state];
                Ok(())
            });
            let done = plugin.update_port(TENANTS[tenant], &network, &port, STATES[state]);
            assert_eq!(done.map_err(fault_name), wanted);
        }
        Step::DeletePort { tenant, network, port } => {
            let (network, port) = (oracle.network_id(network), oracle.port_id(port));
            let wanted = oracle.port(TENANTS[tenant], &network, &port).and_then(|port| {
                port.is_gone = port.attachment.is_none();
                if port.is_gone { Ok(()) } else { Err("PortInUse") }
            });
            assert_eq!(plugin.delete_port(TENANTS[tenant], &network, &port).map_err(fault_name), wanted);
        }
        Step::Plug { tenant, network, port, attachment } => {
            let (network, port) = (oracle.network_id(network), oracle.port_id(port));
            let attachment = format!("vif{attachment}");
            let wanted = oracle.plug(driver, TENANTS[tenant], &network, &port, &attachment);
            let done = plugin.plug_interface(TENANTS[tenant], &network, &port, &attachment);
            assert_eq!(done.map_err(fault_name), wanted);
        }
        Step::Unplug { tenant, network, port } => {
            let (network, port) = (oracle.network_id(network), oracle.port_id(port));
            let wanted = oracle.port(TENANTS[tenant], &network, &port).map(|port| port.attachment = None);
            assert_eq!(plugin.unplug_interface(TENANTS[tenant], &network, &port).map_err(fault_name), wanted);
        }
    }
}

/// Everything each says there is, in order.
fn compare(plugin: &dyn Plugin, oracle: &Oracle) {
    for tenant in TENANTS {
        let networks = plugin.get_all_networks(tenant, &NetworkFilter::default()).unwrap();
        let wanted: Vec<_> = oracle.networks.iter().filter(|it| !it.is_gone && it.tenant == tenant).collect();
        assert!(networks.iter().map(|it| &it.id).eq(wanted.iter().map(|it| &it.id)));
        for (network, wanted) in networks.iter().zip(wanted) {
            assert_eq!(network.name.as_deref(), wanted.name.as_deref());
            let ports = plugin.get_all_ports(tenant, &network.id, &PortFilter::default()).unwrap();
            let told: Vec<_> = ports.iter().map(|it| (&it.id, it.state.name(), &it.attachment)).collect();
            let live = oracle.ports.iter().filter(|it| !it.is_gone && it.network == network.id);
            assert_eq!(told, live.map(|it| (&it.id, it.state, &it.attachment)).collect::<Vec<_>>());
            let detail = plugin.get_network_details(tenant, &network.id, Ports::Listed).unwrap();
            assert_eq!(detail.ports.unwrap(), ports);
        }
    }
}

/// The indexes of a model are what its records make them.
fn check_indexes(model: &Model) {
    let networks = model.networks.values().cloned().collect();
    let fresh = Model::from_records(networks, model.ports.values().cloned().collect()).unwrap();
    assert_eq!(fresh.by_tenant, model.by_tenant);
    assert_eq!(fresh.by_network, model.by_network);
    assert_eq!(fresh.by_attachment, model.by_attachment);
    assert!(model.next_serial() >= fresh.next_serial());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn the_fake_plugin_does_what_the_oracle_does(steps in proptest::collection::vec(step(), 1..60)) {
        let plugin = FakePlugin::new();
        let mut oracle = Oracle::default();
        for step in &steps {
            run_step(&plugin, &mut oracle, Driver::Fake, step);
        }
        compare(&plugin, &oracle);
        check_indexes(&plugin.snapshot());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn the_native_plugin_does_what_the_oracle_does_and_its_store_holds_the_same(
        steps in proptest::collection::vec(step(), 1..40)
    ) {
        let scratch = Scratch::new();
        let plugin = native(&scratch.store());
        let mut oracle = Oracle::default();
        for step in &steps {
            run_step(&plugin, &mut oracle, Driver::Native, step);
        }
        compare(&plugin, &oracle);
        let memory = plugin.snapshot();
        check_indexes(&memory);
        drop(plugin);
        let disk = open_store(&scratch.store()).load().unwrap();
        prop_assert_eq!(&disk.networks, &memory.networks);
        prop_assert_eq!(&disk.ports, &memory.ports);
    }
}
