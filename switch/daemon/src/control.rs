//! What this host is to do, in one hand: which interfaces are plugged, which devices carry them, which config is in force.
//!
//! Two sides ask for changes: the API, whose plugin calls [`Control::put_in_force`] after each commit, and the operator,
//! who plugs and unplugs. Both end in `enforce`: automatic devices, lower, publish, start devices. A device starts
//! and stops on the supervisor thread, so an API write never waits for one.
//!
//! An interface's port index may be given away only when nothing uses it any more. So an interface that goes is kept
//! among the plugs, off every network, until the supervisor has closed its device; then it is struck out, the config
//! without it is published and its place forgotten.
//!
//! Lock order: `operators` -> the plugin's turn -> its lock of what is put in force -> `records` -> store; `records` -> `state` -> switch, a slot's
//! condition. `operators` is held for a whole plug or unplug, waits for devices included; none of the others is held while waiting
//! for a device. A disk is waited for under `records`, never under `state`, which every read of the API takes: so plugs go to the
//! store first and become part of the state then, and `records` keeps the two in one order.

mod automatic;
mod bonds;
pub(crate) mod cluster;
mod held;
mod host;
mod interfaces;
mod learnt;
mod mtu;
mod path_mtu;
mod peers;
mod records;
mod seeds;
pub(crate) mod underlay;
mod ways;

use crate::devices::{Slot, Supervisor, is_same_device, must_be_remade};
use crate::naming::NoDevice;
use crate::opener::check_is_free;
use crate::plugs::{self, PlugError, PlugRequest};
use crate::settings::{Auto, Role};
use api::cluster::Cluster;
use api::host::{DeviceSpec, Host, Plug, Scope};
use api::lowering::{Indices, Lowered, Unbound, lower_among};
use api::model::{InterfaceId, Model, OpStatus, PortId, Touched};
use api::store::StoreError;
use cluster::{Others, Wake};
pub(crate) use interfaces::InterfaceView;
pub(crate) use records::PlugStore;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;
use switch::ids::PortIndex;
use switch::port::DeviceState;
use switch::switch::Switch;
use switch::worker::Pipeline;

/// How long a plug waits for the first attempt to open the device, to tell how it went.
const FIRST_ATTEMPT_WAIT: Duration = Duration::from_secs(2);
/// How long an unplug waits for the device to be closed; the workers let go of it within one round each.
const CLOSE_WAIT: Duration = Duration::from_secs(10);

/// The tenants' side, as the control needs it.
pub(crate) trait Tenants: Send + Sync {
    /// The state as it is now.
    fn snapshot(&self) -> Arc<Model>;

    /// Calls [`Host::put_in_force`] once more, one call at a time.
    fn put_in_force(&self);

    /// Whether the API tells UP of every port, whatever the host does.
    fn is_always_up(&self) -> bool {
        false
    }
}

/// What the settings say about devices.
#[derive(Clone, Debug)]
pub(crate) struct DeviceRules {
    /// Which devices are made for attachments nobody plugged.
    pub(crate) auto: Auto,
    /// Where automatic sockets go.
    pub(crate) vhost_dir: PathBuf,
    /// Role of sockets that name none.
    pub(crate) role: Role,
    /// Whether questions for known neighbours are answered instead of flooded.
    pub(crate) has_arp_suppression: bool,
    /// Whether this node carries frames; else nothing may be plugged.
    pub(crate) carries: bool,
}

struct State {
    plugs: BTreeMap<InterfaceId, Plug>,
    indices: Indices,
    slots: HashMap<InterfaceId, Arc<Slot>>,
    /// Interfaces whose device is being closed, for good or to be opened otherwise: no slot is made for them.
    closing: HashSet<InterfaceId>,
    unbound: HashMap<InterfaceId, (PortId, Unbound)>,
    /// Attachments for which no automatic device could be made.
    no_device: HashMap<InterfaceId, NoDevice>,
    /// The plug that an operator is making: meanwhile no automatic one of its id or device comes or goes.
    reserved: Option<Plug>,
    is_started: bool,
    /// The ways to other hosts.
    ways: underlay::Ways,
    /// What is known of what is plugged there.
    others: Others,
}

/// The owner of this host's desired state.
pub(crate) struct Control<P: Pipeline> {
    switch: Arc<Switch<P>>,
    store: Arc<dyn PlugStore>,
    supervisor: Supervisor,
    rules: DeviceRules,
    tenants: OnceLock<Arc<dyn Tenants>>,
    operators: Mutex<()>,
    /// Held from looking at a plug's record to having changed it in the store and in the state.
    records: Mutex<()>,
    state: Mutex<State>,
    /// Told when a device was closed.
    closed: Condvar,
    /// What was seen of the ways to other hosts.
    seen: peers::SeenByThread,
    /// Wakes who follows them.
    underlay_changed: Arc<Wake>,
    /// The other hosts, if there are any.
    cluster: OnceLock<Arc<Cluster>>,
    this: Weak<Control<P>>,
}

impl<P: Pipeline> Control<P> {
    /// Loads the plugs. Nothing is started before [`Control::start`].
    ///
    /// # Errors
    /// What the store said.
    pub(crate) fn new(
        switch: Arc<Switch<P>>,
        store: Arc<dyn PlugStore>,
        supervisor: Supervisor,
        rules: DeviceRules,
    ) -> Result<Arc<Control<P>>, StoreError> {
        let state = State {
            // What was plugged on a node that carries nothing any more stays in its store, and is not plugged.
            plugs: if rules.carries { store.plugs()? } else { BTreeMap::new() },
            indices: Indices::default(),
            slots: HashMap::new(),
            closing: HashSet::new(),
            unbound: HashMap::new(),
            no_device: HashMap::new(),
            reserved: None,
            is_started: false,
            ways: underlay::Ways::default(),
            others: Others::default(),
        };
        Ok(Arc::new_cyclic(|this| Control {
            switch,
            store,
            supervisor,
            rules,
            tenants: OnceLock::new(),
            operators: Mutex::default(),
            records: Mutex::default(),
            state: Mutex::new(state),
            closed: Condvar::new(),
            seen: peers::SeenByThread::default(),
            underlay_changed: Arc::default(),
            cluster: OnceLock::new(),
            this: this.clone(),
        }))
    }

    /// Puts everything in force and sends all devices to be opened; `then` is called when each was tried once.
    pub(crate) fn start(&self, tenants: Arc<dyn Tenants>, then: impl FnOnce() + Send + 'static) {
        assert!(self.tenants.set(tenants).is_ok(), "a control is started once");
        {
            let mut state = self.state();
            state.is_started = true;
            self.recall_held(&mut state);
        }
        self.open_uplinks();
        self.put_in_force_again();
        self.supervisor.when_tried(then);
    }

    /// Closes all devices; none is removed.
    pub(crate) fn shutdown(&self) {
        self.supervisor.shutdown();
    }

    /// The tenants' state.
    pub(crate) fn model(&self) -> Arc<Model> {
        self.tenants.get().map(|tenants| tenants.snapshot()).unwrap_or_default()
    }

    /// The op-status of a logical port as the API tells it.
    pub(crate) fn told_op_status(&self, model: &Model, port: &PortId) -> OpStatus {
        match self.tenants.get() {
            Some(tenants) if tenants.is_always_up() => OpStatus::Up,
            _ => self.op_status(model, port),
        }
    }

    /// The switch.
    pub(crate) fn switch(&self) -> &Arc<Switch<P>> {
        &self.switch
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put_in_force_again(&self) {
        if let Some(tenants) = self.tenants.get() {
            tenants.put_in_force();
        }
    }

    /// Plugs an interface; answers how its device does after the first attempt.
    ///
    /// # Errors
    /// [`PlugError`]; what was plugged before is as it was.
    pub(crate) fn plug(&self, request: PlugRequest) -> Result<DeviceState, PlugError> {
        let _turn = self.operators.lock().unwrap_or_else(PoisonError::into_inner);
        let is_replacing = request.replace;
        let wanted = plugs::check(request, self.rules.role)?;
        if !self.rules.carries {
            return Err(PlugError::NoSwitch);
        }
        // From here on the API's changes neither make nor end an automatic plug of this id or device.
        self.state().reserved = Some(wanted.clone());
        let outcome = self.plug_reserved(&wanted, is_replacing);
        self.state().reserved = None;
        if self.rules.auto != Auto::None {
            self.put_in_force_again();
        }
        outcome
    }

    fn plug_reserved(&self, wanted: &Plug, is_replacing: bool) -> Result<DeviceState, PlugError> {
        self.wait_closed(&wanted.interface)?;
        let before = {
            let state = self.state();
            let conflict = plugs::conflict(&state.plugs, wanted);
            // What cannot be at all is no matter of whose it was before.
            let is_fatal = |conflict: &PlugError| !is_replacing || matches!(conflict, PlugError::Invalid(_));
            if let Some(conflict) = conflict.filter(is_fatal) {
                return Err(conflict);
            }
            state.plugs.get(&wanted.interface).cloned()
        };
        if let Some(uplink) = self.state().ways.uses(&wanted.device) {
            return Err(PlugError::NotOurs(format!("it is the uplink of {uplink:?}")));
        }
        if before.is_none() {
            self.claim(wanted)?;
        }
        let is_new_device = before.as_ref().is_none_or(|before| !is_same_device(&before.device, &wanted.device));
        // Before anything is taken away: a request that is refused leaves everything as it was.
        if is_new_device && plugs::device_owner(&self.state().plugs, wanted).is_none() {
            check_is_free(&wanted.device).map_err(PlugError::NotOurs)?;
        }
        while let Some(owner) = { plugs::device_owner(&self.state().plugs, wanted).cloned() } {
            self.take_out(&owner)?;
        }
        match &before {
            Some(before) => {
                let is_remade = is_new_device || must_be_remade(&before.device, &wanted.device);
                self.change(before, wanted, is_remade)?;
            }
            None => self.put(wanted)?,
        }
        self.put_in_force_again();

        if let DeviceSpec::Vlan { .. } = &wanted.device {
            return Ok(self.state().device_of(wanted));
        }
        let slot = self.state().slots.get(&wanted.interface).cloned().ok_or(PlugError::TooManyPorts)?;
        slot.wait_attempted(FIRST_ATTEMPT_WAIT);
        let device = slot.state();
        if is_new_device && !device.is_ready && slot.is_name_taken() {
            self.take_out(&wanted.interface)?;
            return Err(PlugError::NotOurs(device.reason));
        }
        Ok(device)
    }

    /// Unplugs an interface and removes the device we made for it.
    ///
    /// # Errors
    /// [`PlugError::Unknown`] if it is not plugged, [`PlugError::Automatic`] if it would be back at once.
    pub(crate) fn unplug(&self, interface: &str) -> Result<(), PlugError> {
        let _turn = self.operators.lock().unwrap_or_else(PoisonError::into_inner);
        self.wait_closed(interface)?;
        let plug = self.state().plugs.get(interface).cloned();
        let Some(plug) = plug else { return Err(PlugError::Unknown(interface.to_owned())) };
        if plug.is_automatic && self.rules.auto != Auto::None && self.model().port_by_attachment(interface).is_some() {
            return Err(PlugError::Automatic(plug.interface));
        }
        self.take_out(interface)?;
        self.release(&plug.interface);
        Ok(())
    }

    /// Closes an interface's device and waits for it; the slot is gone then, and none is made while it is `closing`.
    fn close(&self, interface: &str, is_removal: bool) -> Result<(), PlugError> {
        let Some(slot) = ({
            let mut state = self.state();
            let slot = state.slots.remove(interface);
            state.closing.extend(slot.as_ref().map(|slot| slot.interface.clone()));
            slot
        }) else {
            return Ok(());
        };
        let (done, closed) = std::sync::mpsc::channel();
        self.supervisor.stop(slot, is_removal, move || {
            // Nobody listens any more only if the wait below ran out.
            let _ = done.send(());
        });
        closed.recv_timeout(CLOSE_WAIT).map_err(|_| PlugError::Busy(interface.to_owned()))
    }

    /// Removes an interface and waits until it is gone.
    fn take_out(&self, interface: &str) -> Result<(), PlugError> {
        let before = {
            let mut state = self.state();
            self.leave(&mut state, interface);
            state.plugs.get(interface).cloned()
        };
        self.wait_closed(interface)?;
        // Another plug of the id is an automatic one that came in its place.
        let is_the_same = |plug: &Plug| {
            before
                .as_ref()
                .is_some_and(|before| (&before.device, before.is_automatic) == (&plug.device, plug.is_automatic))
        };
        match self.state().plugs.get(interface).is_some_and(is_the_same) {
            true => Err(PlugError::Store(format!("{interface:?} is still plugged: the store failed, see the log"))),
            false => Ok(()),
        }
    }

    /// Sends an interface's device to be removed. The rest follows on the supervisor thread, in [`Control::strike_out`].
    fn leave(&self, state: &mut State, interface: &str) {
        let Some(plug) = state.plugs.get(interface) else { return };
        let interface = plug.interface.clone();
        if !state.closing.insert(interface.clone()) {
            return;
        }
        let this = self.this.clone();
        let leaver = interface.clone();
        let then = move || {
            if let Some(this) = this.upgrade() {
                this.strike_out(&leaver);
            }
        };
        match state.slots.remove(&interface) {
            Some(slot) => self.supervisor.stop(slot, true, then),
            None => self.supervisor.when_tried(then),
        }
    }

    fn wait_closed(&self, interface: &str) -> Result<(), PlugError> {
        let waited =
            self.closed.wait_timeout_while(self.state(), CLOSE_WAIT, |state| state.closing.contains(interface));
        match waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
            true => Err(PlugError::Busy(interface.to_owned())),
            false => Ok(()),
        }
    }

    /// Brings this host in line with the model and the plugs. Costs as much as there are plugs, unless nothing in `scope`
    /// is plugged here or to be plugged: most of what tenants do, on most hosts, is of that kind.
    ///
    /// `made` are the automatic plugs that were stored for it; answers those of them that cannot be any more.
    fn enforce(&self, state: &mut State, model: &Model, scope: Scope<'_>, made: Vec<Plug>) -> Vec<Plug> {
        if !state.is_started {
            return made;
        }
        if let Scope::Parts(Touched { interfaces, .. }) = scope {
            let is_ours = |interface: &InterfaceId| state.plugs.contains_key(interface);
            let is_here = interfaces.iter().any(is_ours) || (self.rules.auto != Auto::None && !interfaces.is_empty());
            if !is_here && !self.is_of_others(state, model, scope) {
                return made;
            }
        }
        let unused = self.follow_attachments(state, model, scope, made);
        let departed: Vec<PortIndex> = state
            .indices
            .ports
            .iter()
            .filter(|(interface, _)| !state.plugs.contains_key(*interface))
            .map(|(_, index)| *index)
            .collect();
        let departed_peers = self.find_others(state, model);
        let underlay = state.ways.underlay();
        let State { plugs, indices, others, .. } = &mut *state;
        let Lowered { config, unbound, departed_vlans, kept_in } = lower_among(model, plugs, indices, underlay, others);
        state.unbound = unbound;
        state.ways.keep_in(kept_in);
        let config = if self.rules.has_arp_suppression { config } else { config.without_neighbours() };
        let applied = self.switch.apply(config);
        if applied.unplaced_macs > 0 {
            tracing::warn!(
                "the MAC table has no room for {} fixed addresses; frames to them are flooded: raise mac.max",
                applied.unplaced_macs
            );
        }
        for index in departed.into_iter().chain(departed_vlans).chain(departed_peers.iter().copied()) {
            self.switch.forget(index);
        }
        departed_peers.into_iter().for_each(|index| state.indices.release(index));
        self.plant(state, model);
        for (interface, plug) in &state.plugs {
            let has_device = !matches!(plug.device, DeviceSpec::Vlan { .. });
            if !has_device || state.slots.contains_key(interface) || state.closing.contains(interface) {
                continue;
            }
            let Some(&index) = state.indices.ports.get(interface) else { continue };
            let slot = Slot::new(plug.clone(), index, self.switch.place(index));
            state.slots.insert(interface.clone(), slot.clone());
            self.supervisor.start(slot);
        }
        self.tell_mtus(state, model);
        unused
    }
}

#[cfg(test)]
mod tests;
