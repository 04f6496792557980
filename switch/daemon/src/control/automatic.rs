//! Automatic devices (`attach.auto`): made for attachments that nobody plugged, gone with their attachment.
//!
//! Their plugs are durable like an operator's, so a restart brings the same devices back and knows which are ours. This is part
//! of putting a change in force: first what is missing is stored, then it becomes part of the state, by the same rules looked at
//! once more, because an operator may have come in between. No device is opened before its plug is stored.

use super::{Control, State};
use crate::devices::do_clash;
use crate::naming::NoDevice;
use crate::plugs;
use crate::settings::{Auto, Role};
use api::host::{DeviceSpec, Plug, Scope, SocketRole, automatic_name};
use api::model::{InterfaceId, Model, Touched};
use switch::ids::PORTS_MAX;
use switch::worker::Pipeline;

impl<P: Pipeline> Control<P> {
    /// Makes the automatic devices whose name or port has become free; call about once a second.
    pub(crate) fn housekeep(&self) {
        let is_free = {
            let state = self.state();
            self.plant_again(&state);
            let mut waiting = state.no_device.iter().filter(|(_, reason)| **reason != NoDevice::UnsafeName);
            waiting.any(|(interface, _)| self.automatic_plug(&state, interface).is_ok())
        };
        if is_free {
            self.put_in_force_again();
        }
    }

    /// The attachments in `scope` that nobody plugged and that are to have a device, in order, so that of two ids with one name
    /// always the same one gets it.
    fn unplugged(&self, state: &State, model: &Model, scope: Scope<'_>) -> Vec<InterfaceId> {
        if self.rules.auto == Auto::None || !state.is_started {
            return Vec::new();
        }
        let mut unplugged: Vec<InterfaceId> = match scope {
            Scope::All => model.by_attachment.keys().cloned().collect(),
            Scope::Parts(Touched { interfaces, .. }) => {
                interfaces.iter().filter(|interface| model.by_attachment.contains_key(*interface)).cloned().collect()
            }
        };
        unplugged.retain(|interface| !is_spoken_for(state, interface));
        unplugged.sort_unstable();
        unplugged.dedup();
        unplugged
    }

    /// Stores the automatic plugs that `follow_attachments` will make part of the state.
    pub(super) fn store_automatic(&self, model: &Model, scope: Scope<'_>) -> Vec<Plug> {
        let mut made: Vec<Plug> = Vec::new();
        {
            let state = self.state();
            for interface in self.unplugged(&state, model, scope) {
                // As much as there is room for; which of them it is that gets none is found when they are entered.
                if state.ports_taken() + made.len() >= PORTS_MAX {
                    break;
                }
                if let Ok(plug) = self.automatic_plug(&state, &interface)
                    && !made.iter().any(|other| do_clash(&other.device, &plug.device))
                {
                    made.push(plug);
                }
            }
        }
        if made.is_empty() {
            return made;
        }
        let _records = self.records();
        // Over what an operator stored meanwhile it must not be written; what he stores later goes over it.
        made.retain(|plug| !is_spoken_for(&self.state(), &plug.interface));
        for plug in &made {
            // The API's write is durable already and this follows from it: if it cannot be stored it is made again at the
            // next start, and no device is lost, because `MadeBook` refuses to make one that is not stored.
            if let Err(error) = self.store.put_plug(plug) {
                tracing::error!(interface = &*plug.interface, %error, "an automatic plug could not be stored");
            }
        }
        made
    }

    /// Takes plugs that were stored and became no part of the state out of the store again.
    pub(super) fn forget_unused(&self, unused: Vec<Plug>) {
        if unused.is_empty() {
            return;
        }
        let _records = self.records();
        for plug in unused {
            if self.state().plugs.contains_key(&plug.interface) {
                continue;
            }
            if let Err(error) = self.store.remove_plug(&plug.interface) {
                // It is as at a start: gone if nothing is attached, and made if something is.
                tracing::error!(interface = &*plug.interface, %error, "an automatic plug could not be removed from the store");
            }
        }
    }

    /// Makes automatic devices for attachments nobody plugged, whose plugs are among `made`, and lets those go whose attachment
    /// went. Looks at the interfaces in `scope` only. Answers those of `made` that cannot be any more.
    pub(super) fn follow_attachments(
        &self,
        state: &mut State,
        model: &Model,
        scope: Scope<'_>,
        mut made: Vec<Plug>,
    ) -> Vec<Plug> {
        let reserved = state.reserved.as_ref().map(|plug| plug.interface.clone());
        let is_reserved = |interface: &InterfaceId| reserved.as_ref() == Some(interface);
        let is_gone = |plug: &&Plug| {
            plug.is_automatic && !model.by_attachment.contains_key(&plug.interface) && !is_reserved(&plug.interface)
        };
        let gone: Vec<InterfaceId> = match scope {
            Scope::All => state.plugs.values().filter(is_gone).map(|plug| plug.interface.clone()).collect(),
            Scope::Parts(Touched { interfaces, .. }) => {
                let plugs = interfaces.iter().filter_map(|interface| state.plugs.get(interface));
                plugs.filter(is_gone).map(|plug| plug.interface.clone()).collect()
            }
        };
        for interface in gone {
            self.leave(state, &interface);
        }
        match scope {
            Scope::All => state.no_device.clear(),
            Scope::Parts(Touched { interfaces, .. }) => interfaces.iter().for_each(|interface| {
                state.no_device.remove(interface);
            }),
        }
        for interface in self.unplugged(state, model, scope) {
            let stored = made.iter().position(|plug| plug.interface == interface);
            // What became free in between has to be stored first: see `housekeep`.
            let plug = self.automatic_plug(state, &interface).and_then(|_| stored.ok_or(NoDevice::NameTaken));
            match plug {
                Ok(at) => drop(state.plugs.insert(interface, made.swap_remove(at))),
                Err(reason) => drop(state.no_device.insert(interface, reason)),
            }
        }
        made
    }

    /// The plug that the settings ask for, if there is a name and a port for it.
    fn automatic_plug(&self, state: &State, interface: &InterfaceId) -> Result<Plug, NoDevice> {
        // First, because there may be a hundred thousand attachments without a port.
        if state.ports_taken() >= PORTS_MAX {
            return Err(NoDevice::TooManyPorts);
        }
        let name = |prefix| automatic_name(prefix, interface).ok_or(NoDevice::UnsafeName);
        let device = match self.rules.auto {
            Auto::Tap => DeviceSpec::Tap { name: name("tap")?, netns: None, queues: 1 },
            Auto::VhostUser | Auto::None => {
                let path = self.rules.vhost_dir.join(name("vhu")?);
                let role = match self.rules.role {
                    Role::Server => SocketRole::Server,
                    Role::Client => SocketRole::Client,
                };
                DeviceSpec::VhostUser { path: path.to_string_lossy().into_owned(), role }
            }
        };
        let plug = Plug { is_automatic: true, ..Plug::new(interface.clone(), device) };
        let is_reserved = state.reserved.as_ref().is_some_and(|wanted| do_clash(&wanted.device, &plug.device));
        if is_reserved || plugs::device_owner(&state.plugs, &plug).is_some() || is_there(&plug.device) {
            return Err(NoDevice::NameTaken);
        }
        Ok(plug)
    }
}

/// Whether an interface is plugged, or an operator is at it.
fn is_spoken_for(state: &State, interface: &InterfaceId) -> bool {
    let is_reserved = state.reserved.as_ref().is_some_and(|plug| plug.interface == *interface);
    is_reserved || state.plugs.contains_key(interface)
}

/// Whether a file or interface has the name of an automatic device.
fn is_there(device: &DeviceSpec) -> bool {
    match device {
        DeviceSpec::VhostUser { path, .. } => std::fs::symlink_metadata(path).is_ok(),
        // A doubt is told by the device itself when it is opened.
        DeviceSpec::Tap { name, .. } | DeviceSpec::Device { name, .. } => {
            switch::netns::has_interface(None, name).unwrap_or(false)
        }
        DeviceSpec::Vlan { .. } => false,
    }
}
