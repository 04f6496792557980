//! What the API asks of this host: to put the tenants' state in force, how their ports are, and whose an interface is.

use super::Control;
use api::claim::Registry;
use api::host::{Host, Scope};
use api::model::{AdminState, Model, OpStatus, PortId, Text};
use api::plugin::{Flow, PortStats};
use std::time::Instant;
use switch::ledger::FlowTotals;
use switch::worker::Pipeline;

impl<P: Pipeline> Host for Control<P> {
    fn put_in_force(&self, model: &Model, scope: Scope<'_>) {
        let start = Instant::now();
        let mut state = self.state();
        self.enforce(&mut state, model, scope);
        let elapsed_us = start.elapsed().as_micros() as u64;
        tracing::debug!(elapsed_us, plugs = state.plugs.len(), "config is in force");
    }

    fn op_status(&self, model: &Model, port: &PortId) -> OpStatus {
        let Some(port) = model.ports.get(port).filter(|port| port.state == AdminState::Active) else {
            return OpStatus::Down;
        };
        let Some(interface) = &port.attachment else { return OpStatus::Down };
        let state = self.state();
        let is_carried = !state.unbound.contains_key(interface)
            && state.plugs.get(interface).is_some_and(|plug| state.device_of(plug).is_ready);
        if is_carried { OpStatus::Up } else { OpStatus::Down }
    }

    fn port_stats(&self, model: &Model, port: &PortId) -> PortStats {
        let Some(interface) = model.ports.get(port).and_then(|port| port.attachment.as_ref()) else {
            return PortStats::default();
        };
        let index = {
            let state = self.state();
            // Of an interface that is kept off the network the tenant may know nothing: it may be another's.
            let is_kept_off = state.unbound.contains_key(interface);
            state.indices.ports.get(interface).copied().filter(|_| !is_kept_off)
        };
        let snapshot = self.switch().snapshot();
        let Some(place) = index.and_then(|index| snapshot.place(index)) else { return PortStats::default() };
        PortStats { rx: flow(&place.ledger.rx()), tx: flow(&place.ledger.tx()) }
    }
}

impl<P: Pipeline> Registry for Control<P> {
    fn is_registered(&self, interface: &str, tenant: &str) -> bool {
        self.state().plugs.get(interface).is_some_and(|plug| plug.tenant.as_deref() == Some(tenant))
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
