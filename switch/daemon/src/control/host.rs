//! What the API asks of this host: to put the tenants' state in force, how their ports are, and whose an interface is.

use super::Control;
use crate::devices::device_name;
use api::claim::Registry;
use api::host::{DeviceSpec, Host, Scope};
use api::lowering::Elsewhere;
use api::model::{AdminState, Model, OpStatus, PortId, Text};
use api::plugin::{Flow, PortStats};
use std::time::Instant;
use switch::ledger::FlowTotals;
use switch::worker::Pipeline;

impl<P: Pipeline> Host for Control<P> {
    fn put_in_force(&self, model: &Model, scope: Scope<'_>) {
        let start = Instant::now();
        let made = self.store_automatic(model, scope);
        let mut state = self.state();
        let unused = self.enforce(&mut state, model, scope, made);
        let elapsed_us = start.elapsed().as_micros() as u64;
        tracing::debug!(elapsed_us, plugs = state.plugs.len(), "config is in force");
        drop(state);
        self.forget_unused(unused);
    }

    fn op_status(&self, model: &Model, port: &PortId) -> OpStatus {
        let Some(port) = model.ports.get(port).filter(|port| port.state == AdminState::Active) else {
            return OpStatus::Down;
        };
        let Some(interface) = &port.attachment else { return OpStatus::Down };
        let is_carried = {
            let state = self.state();
            let is_ours = state.plugs.contains_key(interface) && !state.others.is_held(interface);
            is_ours.then(|| state.is_carried(interface))
        };
        let is_carried = is_carried.unwrap_or_else(|| self.is_carried_elsewhere(interface));
        if is_carried { OpStatus::Up } else { OpStatus::Down }
    }

    fn port_stats(&self, model: &Model, port: &PortId) -> Option<PortStats> {
        let nothing = Some(PortStats::default());
        let Some(interface) = model.ports.get(port).and_then(|port| port.attachment.as_ref()) else { return nothing };
        let index = {
            let state = self.state();
            // Of an interface that is kept off the network the tenant may know nothing: it may be another's.
            let is_kept_off = state.unbound.contains_key(interface);
            state.indices.ports.get(interface).copied().filter(|_| !is_kept_off)
        };
        let snapshot = self.switch().snapshot();
        match index.and_then(|index| snapshot.place(index)) {
            Some(place) => Some(PortStats { rx: flow(&place.ledger.rx()), tx: flow(&place.ledger.tx()) }),
            None if self.is_plugged_elsewhere(interface) => None,
            None => nothing,
        }
    }

    fn port_device(&self, model: &Model, port: &PortId) -> Option<Text> {
        let interface = model.ports.get(port)?.attachment.as_ref()?;
        let state = self.state();
        if state.no_device.contains_key(interface) {
            return Some("".into());
        }
        // As with statistics.
        let plug = state.plugs.get(interface).filter(|_| !state.unbound.contains_key(interface))?;
        let device = match &plug.device {
            DeviceSpec::Vlan { parent, .. } => &state.plugs.get(parent)?.device,
            device => device,
        };
        Some(device_name(device).into())
    }
}

impl<P: Pipeline> Registry for Control<P> {
    fn is_registered(&self, interface: &str, tenant: &str) -> bool {
        let plug = self.state().plugs.get(interface).map(|plug| plug.tenant.as_deref() == Some(tenant));
        plug.unwrap_or_else(|| self.is_registered_elsewhere(interface, tenant))
    }

    fn holder_of(&self, interface: &str) -> Option<PortId> {
        self.model().port_by_attachment(interface).map(|port| port.id.clone())
    }

    fn tenant_of(&self, port: &str) -> Option<Text> {
        let model = self.model();
        let network = &model.ports.get(port)?.network;
        model.networks.get(network).map(|network| network.tenant.clone())
    }
}

fn flow(totals: &FlowTotals) -> Flow {
    Flow { packets: totals.packets, bytes: totals.bytes, drops: totals.drops.iter().sum() }
}
