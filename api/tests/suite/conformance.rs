//! Every plugin of ours through the rules for plugins: those that are done when they answer, one that drives a device
//! which fails in every way there is, and one whose calls themselves fail half way.

use crate::rig::{Scratch, native, open_store};
use crate::unreliable::{Handle, PACE, Unreliable};
use api::model::{NetworkId, OpStatus, PortId, Text};
use api::plugin::conformance::{Carried, Rig, check};
use api::plugin::{
    BackendUnavailable, CreateNetworkError, CreatePortError, DeleteNetworkError, DeletePortError, GetAllNetworksError,
    GetAllPortsError, GetNetworkError, GetPortError, NetworkDetails, NetworkFilter, PlugInterfaceError, Plugin,
    PortDetails, PortFilter, Ports, UnplugInterfaceError, UpdateNetworkError, UpdatePortError,
};
use api::plugins::{FakePlugin, NativePlugin, RemotePlugin};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Long enough for any device to be driven; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

struct FakeRig(FakePlugin);

impl Rig for FakeRig {
    fn plugin(&self) -> &dyn Plugin {
        &self.0
    }

    fn idle_status(&self) -> OpStatus {
        OpStatus::Up
    }
}

#[test]
fn the_fake_plugin_conforms() {
    check(|| FakeRig(FakePlugin::new()));
}

struct NativeRig {
    plugin: Option<NativePlugin>,
    scratch: Scratch,
}

impl NativeRig {
    fn new() -> NativeRig {
        let scratch = Scratch::new();
        NativeRig { plugin: Some(native(&scratch.store())), scratch }
    }
}

impl Rig for NativeRig {
    fn plugin(&self) -> &dyn Plugin {
        self.plugin.as_ref().unwrap()
    }

    fn restart(&mut self) -> bool {
        drop(self.plugin.take());
        self.plugin = Some(native(&self.scratch.store()));
        true
    }
}

#[test]
fn the_native_plugin_conforms() {
    check(NativeRig::new);
}

/// A remote plugin and its device.
struct RemoteRig {
    plugin: Option<RemotePlugin>,
    device: Arc<Unreliable>,
    is_troubled: bool,
    scratch: Scratch,
}

impl RemoteRig {
    fn new(is_troubled: bool) -> RemoteRig {
        let mut rig = RemoteRig { plugin: None, device: Arc::default(), is_troubled, scratch: Scratch::new() };
        rig.restart();
        rig
    }
}

impl Rig for RemoteRig {
    fn plugin(&self) -> &dyn Plugin {
        self.plugin.as_ref().unwrap()
    }

    fn settle(&mut self) {
        self.device.recover();
        let plugin = self.plugin.as_ref().unwrap();
        plugin.read_device_again();
        assert!(plugin.wait_until_driven(PATIENCE), "the device never got what was wanted: {:?}", self.device);
    }

    fn disturb(&mut self, dice: u64) {
        if self.is_troubled {
            self.device.disturb(dice);
        }
    }

    fn restart(&mut self) -> bool {
        drop(self.plugin.take());
        let store = open_store(&self.scratch.store());
        self.plugin = Some(RemotePlugin::start(store, Handle(self.device.clone()), PACE).unwrap());
        true
    }

    fn carried(&self) -> Option<Carried> {
        Some(self.device.carried())
    }
}

#[test]
fn a_plugin_over_a_device_in_order_conforms() {
    check(|| RemoteRig::new(false));
}

#[test]
fn a_plugin_over_a_device_that_fails_in_every_way_conforms() {
    check(|| RemoteRig::new(true));
}

/// The fake plugin as a proxy would be: some of its writes do nothing and say so, some are done and say they were not.
pub(crate) struct Shaky {
    inner: FakePlugin,
    /// What becomes of the next writes, two bits each, the lowest first.
    dice: AtomicU64,
}

impl Shaky {
    pub(crate) fn new() -> Shaky {
        Shaky { inner: FakePlugin::new(), dice: AtomicU64::new(0) }
    }

    /// The write after the next does nothing and says so.
    pub(crate) fn fail_second_write(&self) {
        self.dice.store(0b0100, Ordering::Relaxed);
    }

    fn write<T, E: From<BackendUnavailable>>(&self, write: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let dice = self.dice.load(Ordering::Relaxed);
        self.dice.store(dice >> 2, Ordering::Relaxed);
        let broken = |when: &str| Err(BackendUnavailable { why: when.into() }.into());
        match dice % 4 {
            1 => broken("before the call"),
            2 => write().and_then(|_| broken("after the call")),
            _ => write(),
        }
    }
}

impl Plugin for Shaky {
    fn get_all_networks(
        &self,
        tenant: &str,
        filter: &NetworkFilter,
    ) -> Result<Vec<NetworkDetails>, GetAllNetworksError> {
        self.inner.get_all_networks(tenant, filter)
    }

    fn create_network(&self, tenant: &str, name: Option<Text>) -> Result<NetworkId, CreateNetworkError> {
        self.write(|| self.inner.create_network(tenant, name))
    }

    fn delete_network(&self, tenant: &str, network: &str) -> Result<(), DeleteNetworkError> {
        self.write(|| self.inner.delete_network(tenant, network))
    }

    fn get_network_details(
        &self,
        tenant: &str,
        network: &str,
        ports: Ports,
    ) -> Result<NetworkDetails, GetNetworkError> {
        self.inner.get_network_details(tenant, network, ports)
    }

    fn update_network(&self, tenant: &str, network: &str, name: Option<Text>) -> Result<(), UpdateNetworkError> {
        self.write(|| self.inner.update_network(tenant, network, name))
    }

    fn get_all_ports(
        &self,
        tenant: &str,
        network: &str,
        filter: &PortFilter,
    ) -> Result<Vec<PortDetails>, GetAllPortsError> {
        self.inner.get_all_ports(tenant, network, filter)
    }

    fn create_port(&self, tenant: &str, network: &str, state: &str) -> Result<PortId, CreatePortError> {
        self.write(|| self.inner.create_port(tenant, network, state))
    }

    fn update_port(&self, tenant: &str, network: &str, port: &str, state: &str) -> Result<(), UpdatePortError> {
        self.write(|| self.inner.update_port(tenant, network, port, state))
    }

    fn delete_port(&self, tenant: &str, network: &str, port: &str) -> Result<(), DeletePortError> {
        self.write(|| self.inner.delete_port(tenant, network, port))
    }

    fn get_port_details(&self, tenant: &str, network: &str, port: &str) -> Result<PortDetails, GetPortError> {
        self.inner.get_port_details(tenant, network, port)
    }

    fn plug_interface(
        &self,
        tenant: &str,
        network: &str,
        port: &str,
        attachment: &str,
    ) -> Result<(), PlugInterfaceError> {
        self.write(|| self.inner.plug_interface(tenant, network, port, attachment))
    }

    fn unplug_interface(&self, tenant: &str, network: &str, port: &str) -> Result<(), UnplugInterfaceError> {
        self.write(|| self.inner.unplug_interface(tenant, network, port))
    }
}

impl Rig for Shaky {
    fn plugin(&self) -> &dyn Plugin {
        self
    }

    fn disturb(&mut self, dice: u64) {
        *self.dice.get_mut() = dice & 0xff;
    }

    fn idle_status(&self) -> OpStatus {
        OpStatus::Up
    }
}

#[test]
fn a_plugin_whose_calls_fail_half_way_conforms() {
    check(Shaky::new);
}

#[path = "../../examples/toy_controller.rs"]
mod toy_controller;

/// The plugin of the guide over its toy of a controller.
struct ToyRig {
    plugin: Option<RemotePlugin>,
    controller: SocketAddr,
    scratch: Scratch,
}

impl ToyRig {
    fn new() -> ToyRig {
        let (controller, _) = toy_controller::toy::start().unwrap();
        let mut rig = ToyRig { plugin: None, controller, scratch: Scratch::new() };
        rig.restart();
        rig
    }
}

impl Rig for ToyRig {
    fn plugin(&self) -> &dyn Plugin {
        self.plugin.as_ref().unwrap()
    }

    fn settle(&mut self) {
        assert!(self.plugin.as_ref().unwrap().wait_until_driven(PATIENCE));
    }

    fn restart(&mut self) -> bool {
        drop(self.plugin.take());
        let store = open_store(&self.scratch.store());
        let driver = toy_controller::Driver { controller: self.controller };
        self.plugin = Some(RemotePlugin::start(store, driver, PACE).unwrap());
        true
    }
}

#[test]
fn the_plugin_of_the_guide_runs_and_conforms() {
    toy_controller::main().unwrap();
    check(ToyRig::new);
}
