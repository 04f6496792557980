//! Automatic devices (`attach.auto`): made for attachments that nobody plugged, gone with their attachment.
//!
//! Their plugs are durable like an operator's, so a restart brings the same devices back and knows which are ours. All of
//! this runs under the control's state lock, as part of putting a change in force.

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

    /// Makes automatic devices for attachments nobody plugged and lets those go whose attachment went. Looks at the
    /// interfaces in `scope` only.
    pub(super) fn follow_attachments(&self, state: &mut State, model: &Model, scope: Scope<'_>) {
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
        if self.rules.auto == Auto::None {
            return;
        }
        let mut unplugged: Vec<InterfaceId> = match scope {
            Scope::All => model.by_attachment.keys().cloned().collect(),
            Scope::Parts(Touched { interfaces, .. }) => {
                interfaces.iter().filter(|interface| model.by_attachment.contains_key(*interface)).cloned().collect()
            }
        };
        unplugged.retain(|interface| !state.plugs.contains_key(interface) && !is_reserved(interface));
        // In order, so that of two ids with one name always the same one gets it.
        unplugged.sort_unstable();
        unplugged.dedup();
        for interface in &unplugged {
            if let Err(reason) = self.make_automatic(state, interface) {
                state.no_device.insert(interface.clone(), reason);
            }
        }
    }

    fn make_automatic(&self, state: &mut State, interface: &InterfaceId) -> Result<(), NoDevice> {
        let plug = self.automatic_plug(state, interface)?;
        // The API's write is durable already and this follows from it: if it cannot be stored it is made again at the
        // next start, and no device is lost, because `MadeBook` refuses to make one that is not stored.
        if let Err(error) = self.store.put_plug(&plug) {
            tracing::error!(interface = &**interface, %error, "an automatic plug could not be stored");
        }
        state.plugs.insert(interface.clone(), plug);
        Ok(())
    }

    /// The plug that the settings ask for, if there is a name and a port for it.
    fn automatic_plug(&self, state: &State, interface: &InterfaceId) -> Result<Plug, NoDevice> {
        // First, because there may be a hundred thousand attachments without a port.
        if state.plugs.len() >= PORTS_MAX {
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
