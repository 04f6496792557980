//! The records of plugs: in the store first, then part of the state.
//!
//! The disk is waited for under `records` alone, which keeps the two in one order: the state's lock is taken by every read of the API,
//! and must not wait for a disk.

use super::{Control, State};
use crate::opener::MadeBook;
use crate::plugs::{self, PlugError};
use api::host::Plug;
use api::model::InterfaceId;
use api::store::{Store, StoreError};
use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};
use switch::ids::PORTS_MAX;
use switch::worker::Pipeline;

/// Where plugs are kept: the store, or a test's that takes its time.
pub(crate) trait PlugStore: Send + Sync {
    /// All there are.
    ///
    /// # Errors
    /// What the store said.
    fn plugs(&self) -> Result<BTreeMap<InterfaceId, Plug>, StoreError>;

    /// Keeps one, over an older one of the same interface.
    ///
    /// # Errors
    /// What the store said.
    fn put_plug(&self, plug: &Plug) -> Result<(), StoreError>;

    /// Removes that of this interface, if there is one.
    ///
    /// # Errors
    /// What the store said.
    fn remove_plug(&self, interface: &str) -> Result<(), StoreError>;
}

impl PlugStore for Store {
    fn plugs(&self) -> Result<BTreeMap<InterfaceId, Plug>, StoreError> {
        Store::plugs(self)
    }

    fn put_plug(&self, plug: &Plug) -> Result<(), StoreError> {
        Store::put_plug(self, plug)
    }

    fn remove_plug(&self, interface: &str) -> Result<(), StoreError> {
        Store::remove_plug(self, interface).map(drop)
    }
}

impl State {
    /// How many of the ports are taken: by plugs, and by one that an operator is at, which may be on its way to the disk.
    pub(super) fn ports_taken(&self) -> usize {
        let coming = self.reserved.as_ref().filter(|plug| !self.plugs.contains_key(&plug.interface));
        self.plugs.len() + usize::from(coming.is_some())
    }
}

impl<P: Pipeline> Control<P> {
    /// Held by who changes a record, from looking at it on.
    pub(super) fn records(&self) -> MutexGuard<'_, ()> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a new plug durable and part of the state.
    pub(super) fn put(&self, plug: &Plug) -> Result<(), PlugError> {
        let _records = self.records();
        // It is reserved, so that none is taken in between.
        if self.state().plugs.len() >= PORTS_MAX {
            return Err(PlugError::TooManyPorts);
        }
        self.store.put_plug(plug)?;
        self.state().plugs.insert(plug.interface.clone(), plug.clone());
        Ok(())
    }

    /// Makes plug `before` into `wanted`, which has the same id. The device is closed only if it is another or must be set
    /// up anew, and removed if it `is_remade`.
    pub(super) fn change(&self, before: &Plug, wanted: &Plug, is_remade: bool) -> Result<(), PlugError> {
        if plugs::is_same_request(before, wanted) && !before.is_automatic {
            return Ok(());
        }
        let is_reopened = before.mtu != wanted.mtu || before.device != wanted.device;
        if is_reopened {
            self.close(&before.interface, is_remade)?;
        }
        let records = self.records();
        let known = self.state().plugs.get(&wanted.interface).unwrap_or(before).made.clone();
        let plug = Plug { made: known.filter(|_| !is_remade), ..wanted.clone() };
        // On failure the old plug stands, in the store and here; with its slot gone it is started again.
        let stored = self.store.put_plug(&plug);
        let mut state = self.state();
        // Only now may a slot be made for it: of the old plug it would be.
        state.closing.remove(&wanted.interface);
        if stored.is_ok() {
            if let Some(slot) = state.slots.get(&plug.interface) {
                slot.set_plug(plug.clone());
            }
            state.plugs.insert(plug.interface.clone(), plug);
        }
        drop(state);
        drop(records);
        if stored.is_err() {
            self.put_in_force_again();
        }
        Ok(stored?)
    }

    /// The device of `interface` is closed: forgets the plug, durably, and frees its index.
    pub(super) fn strike_out(&self, interface: &InterfaceId) {
        {
            let _records = self.records();
            let removed = self.store.remove_plug(interface);
            let mut state = self.state();
            match removed {
                Ok(()) => {
                    state.plugs.remove(interface);
                }
                // It stays plugged: what the operator was told is what holds after a restart.
                Err(error) => {
                    tracing::error!(interface = &**interface, %error, "the plug could not be removed from the store");
                }
            }
            if !state.plugs.contains_key(interface) {
                tracing::info!(interface = &**interface, "unplugged");
            }
        }
        // Only when its index is free does the operator hear that it is gone.
        self.put_in_force_again();
        let is_there_again = {
            let mut state = self.state();
            state.closing.remove(interface);
            state.plugs.contains_key(interface)
        };
        if is_there_again {
            // Attached anew meanwhile, or never gone: now a slot may be made for it.
            self.put_in_force_again();
        }
        self.closed.notify_all();
    }
}

impl<P: Pipeline> MadeBook for Control<P> {
    fn note_made(&self, interface: &InterfaceId, made: Option<String>) -> Result<(), String> {
        let _records = self.records();
        let plug = self.state().plugs.get(interface).cloned().ok_or("it is being unplugged")?;
        let plug = Plug { made, ..plug };
        self.store.put_plug(&plug).map_err(|error| error.to_string())?;
        let mut state = self.state();
        if let Some(slot) = state.slots.get(interface) {
            slot.set_plug(plug.clone());
        }
        state.plugs.insert(interface.clone(), plug);
        Ok(())
    }
}
