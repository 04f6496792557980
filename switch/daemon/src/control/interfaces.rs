//! Interfaces as they are now: their plugs, how their devices do, and what stands in their way.

use super::{Control, State};
use crate::devices::{Connections, Found};
use crate::naming::NoDevice;
use api::host::{DeviceSpec, Plug};
use api::lowering::Unbound;
use api::model::InterfaceId;
use std::collections::{BTreeMap, HashMap};
use switch::ids::PortIndex;
use switch::port::{DeviceState, Link};
use switch::worker::Pipeline;

/// One interface as `show` sees it.
pub(crate) struct InterfaceView {
    /// The plug.
    pub(crate) plug: Plug,
    /// Its port; `None` if the switch is full.
    pub(crate) index: Option<PortIndex>,
    /// The device; not ready while there is none.
    pub(crate) device: DeviceState,
    /// Who connected to it; `None` if nobody can.
    pub(crate) connections: Option<Connections>,
    /// What was found out of a device of somebody else's.
    pub(crate) found: Option<Found>,
    /// The MTU that the device was told to have.
    pub(crate) mtu: Option<u16>,
    /// Why it is kept off its logical port's network.
    pub(crate) unbound: Option<Unbound>,
}

/// All interfaces, and the attachments that should have got one.
pub(crate) struct View {
    /// By interface id.
    pub(crate) interfaces: BTreeMap<InterfaceId, InterfaceView>,
    /// Attachments without the automatic device the settings ask for.
    pub(crate) no_device: HashMap<InterfaceId, NoDevice>,
}

impl<P: Pipeline> Control<P> {
    /// Every interface as it is now.
    pub(crate) fn view(&self) -> View {
        let state = self.state();
        let view = |plug: &Plug| InterfaceView {
            plug: plug.clone(),
            index: state.indices.ports.get(&plug.interface).copied(),
            device: state.device_of(plug),
            connections: state.slots.get(&plug.interface).and_then(|slot| slot.connections()),
            found: state.slots.get(&plug.interface).and_then(|slot| slot.found()),
            mtu: state.slots.get(&plug.interface).and_then(|slot| slot.mtu()),
            unbound: state.unbound.get(&plug.interface).map(|(_, unbound)| *unbound),
        };
        View {
            interfaces: state.plugs.values().map(|plug| (plug.interface.clone(), view(plug))).collect(),
            no_device: state.no_device.clone(),
        }
    }
}

impl State {
    /// How the device of a plug does: its own, or the one that it is a VLAN of.
    pub(super) fn device_of(&self, plug: &Plug) -> DeviceState {
        let state = |interface| self.slots.get(interface).map(|slot| slot.state());
        match &plug.device {
            DeviceSpec::Vlan { parent, .. } => state(parent).unwrap_or_else(|| DeviceState {
                is_ready: false,
                link: Link::Down,
                reason: format!("{parent:?} is not plugged"),
            }),
            _ => state(&plug.interface).unwrap_or_else(absent),
        }
    }
}

fn absent() -> DeviceState {
    DeviceState { is_ready: false, link: Link::Down, reason: "being closed".into() }
}
