//! The plugin of this switch: records in the [`Store`], traffic by the [`Host`].
//!
//! It answers in the order of the original openvswitch plugin: a full port is told before an attachment used elsewhere
//! (specification section 5). Unlike it, unplugging stores null, so that `has-attachment` is true to the state
//! (section 19). Op-status is asked of the host on every read and never stored.

use super::recorded::{Backing, Recorded, check_plug_vacant_first};
use crate::host::{Host, Scope};
use crate::model::{AdminState, Change, LogicalPort, Model, Network, OpStatus};
use crate::network_type::{NetworkType, SegmentRules};
use crate::plugin::{NoSegmentFree, PlugInterfaceError, PortStats};
use crate::store::{Store, StoreError};
use std::sync::Arc;

/// The native plugin.
pub type NativePlugin = Recorded<NativeBacking>;

/// The native plugin's store and host.
pub struct NativeBacking {
    store: Arc<Store>,
    host: Arc<dyn Host>,
    segments: SegmentRules,
}

impl NativePlugin {
    /// The plugin over a store and a host. Loads the state; the caller puts it in force when the host is ready
    /// ([`Recorded::put_in_force`]).
    ///
    /// # Errors
    /// What [`Store::load`] said.
    pub fn new(store: Arc<Store>, host: Arc<dyn Host>) -> Result<NativePlugin, StoreError> {
        NativePlugin::with_segments(store, host, SegmentRules::Local)
    }

    /// The same, whose networks get their segments by these rules.
    ///
    /// # Errors
    /// What [`Store::load`] said.
    pub fn with_segments(
        store: Arc<Store>,
        host: Arc<dyn Host>,
        segments: SegmentRules,
    ) -> Result<NativePlugin, StoreError> {
        let model = store.load()?;
        Ok(Recorded::over(NativeBacking { store, host, segments }, model))
    }
}

impl Backing for NativeBacking {
    fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        self.store.commit(changes)
    }

    fn reload(&self) -> Result<Option<Model>, StoreError> {
        self.store.load().map(Some)
    }

    fn put_in_force(&self, model: &Model, scope: Scope<'_>) {
        self.host.put_in_force(model, scope);
    }

    fn allot(&self, model: &Model) -> Result<NetworkType, NoSegmentFree> {
        self.segments.allot(model)
    }

    fn op_status(&self, model: &Model, port: &LogicalPort) -> OpStatus {
        // The contract's first row needs no host: these ports are DOWN whatever the devices do.
        if port.state == AdminState::Down || port.attachment.is_none() {
            return OpStatus::Down;
        }
        self.host.op_status(model, &port.id)
    }

    fn counts_ports(&self) -> bool {
        true
    }

    fn port_stats(&self, model: &Model, port: &LogicalPort) -> PortStats {
        self.host.port_stats(model, &port.id)
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
