//! The plugin over a device elsewhere: what tenants want is recorded durably and answered, then driven to a [`Device`] by
//! a thread of its own until the device has it.
//!
//! Tenants never wait for the device and never see its errors: a write ends when the store has it, a read looks at what
//! is recorded, and op-status tells how far the device is.
//!
//! | op-status | of a port | of a network |
//! |---|---|---|
//! | PROVISIONING | the device does not have it yet | the same |
//! | DOWN | the device refuses it; or it is not ACTIVE, or has no attachment, or the device says so | the device refuses it |
//! | UNKNOWN | it was there, and now the device does not answer | the same |
//! | UP | the device has it and says so | the device has it |
//!
//! Everything else is in [`reconcile`]: a thread named `reconcile`, which may block; it ends when the plugin is dropped,
//! after the call to the device under way.

mod device;
mod reconcile;

pub use device::{Contents, Device, DeviceError, DeviceNetwork, DevicePort, FoundPort, Keeps, Step, Taken};
pub use reconcile::Pace;

use super::recorded::{Backing, Recorded, check_plug_vacant_first};
use crate::host::Scope;
use crate::model::{Change, LogicalPort, Model, Network, OpStatus};
use crate::plugin::PlugInterfaceError;
use crate::store::{Store, StoreError};
use reconcile::Reconciler;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Why a remote plugin does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its records cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no thread to be had.
    #[error("starting a thread: {0}")]
    Thread(#[from] io::Error),
}

/// The plugin over a device.
pub type RemotePlugin = Recorded<RemoteBacking>;

/// A remote plugin's store and device.
pub struct RemoteBacking {
    store: Arc<Store>,
    reconciler: Reconciler,
    /// The store was read anew, so what is wanted may be something else than what the commits said.
    is_stale: AtomicBool,
}

impl RemotePlugin {
    /// Loads the state from the store and begins to drive the device.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(store: Arc<Store>, device: impl Device, pace: Pace) -> Result<RemotePlugin, StartError> {
        let model = store.load()?;
        let reconciler = Reconciler::start(Box::new(device), pace, &model)?;
        Ok(Recorded::over(RemoteBacking { store, reconciler, is_stale: AtomicBool::new(false) }, model))
    }

    /// The device may have changed by itself: its contents are read now, and not only when [`Pace::audit`] is over.
    pub fn read_device_again(&self) {
        self.backing().reconciler.read_again();
    }

    /// Waits until the device has all that was written before this call, or refused it; whether that came about in time.
    pub fn wait_until_driven(&self, time_max: Duration) -> bool {
        self.backing().reconciler.wait_until_settled(time_max)
    }
}

impl Backing for RemoteBacking {
    fn commit(&self, _before: &Model, changes: &[Change]) -> Result<(), StoreError> {
        self.store.commit(changes)?;
        self.reconciler.want(changes);
        Ok(())
    }

    fn reload(&self) -> Result<Option<Model>, StoreError> {
        self.is_stale.store(true, Ordering::Relaxed);
        self.store.load().map(Some)
    }

    fn put_in_force(&self, model: &Model, _scope: Scope<'_>) {
        // One thread at a time commits, reads back and is here.
        if self.is_stale.swap(false, Ordering::Relaxed) {
            self.reconciler.want_all(model);
        }
    }

    fn op_status(&self, _model: &Model, port: &LogicalPort) -> OpStatus {
        self.reconciler.port_status(&port.id)
    }

    fn network_op_status(&self, network: &Network) -> OpStatus {
        self.reconciler.network_status(&network.id)
    }

    fn check_plug<'a>(
        &self,
        model: &'a Model,
        network: &Network,
        port: &str,
        attachment: &str,
    ) -> Result<&'a LogicalPort, PlugInterfaceError> {
        check_plug_vacant_first(model, network, port, attachment)
    }
}
