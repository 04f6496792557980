//! The plugin of this switch: records in the [`Store`] or shared with other hosts by a [`Cluster`], traffic by the [`Host`].
//!
//! It answers in the order of the original openvswitch plugin: a full port is told before an attachment used elsewhere.
//! Unlike it, unplugging stores null, so that `has-attachment` is true to the state (`api/DEVIATIONS.md`). Op-status is asked of the host on every read and never stored.

use super::recorded::{Backing, Recorded, check_plug_vacant_first};
use crate::cluster::{self, Cluster, Follower, News};
use crate::host::{Host, Scope};
use crate::model::{AdminState, Change, Inconsistent, LogicalPort, Model, Network, OpStatus, Text, Touched};
use crate::network_type::{NetworkType, Segment, SegmentRules};
use crate::plugin::{NoSegmentFree, PlugInterfaceError, PortStats};
use crate::store::{Store, StoreError};
use std::sync::Arc;

/// The native plugin.
pub type NativePlugin = Recorded<NativeBacking>;

/// Where the native plugin has its records.
#[derive(Clone)]
pub enum Keeper {
    /// In a file of this host.
    Store(Arc<Store>),
    /// In etcd, with other hosts. Whoever makes the plugin has it follow ([`Cluster::follow`]).
    Cluster(Arc<Cluster>),
}

/// The native plugin's store and host.
pub struct NativeBacking {
    keeper: Keeper,
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
        NativePlugin::with_segments(Keeper::Store(store), host, SegmentRules::Local)
    }

    /// The same, whose networks get their segments by these rules.
    ///
    /// # Errors
    /// What [`Store::load`] said.
    pub fn with_segments(
        keeper: Keeper,
        host: Arc<dyn Host>,
        segments: SegmentRules,
    ) -> Result<NativePlugin, StoreError> {
        let model = match &keeper {
            Keeper::Store(store) => Arc::new(store.load()?),
            Keeper::Cluster(cluster) => cluster.load()?,
        };
        Ok(Recorded::over(NativeBacking { keeper, host, segments }, model))
    }
}

impl Follower for NativePlugin {
    fn absorb(&self, news: News) -> Result<(), Inconsistent> {
        let Keeper::Cluster(cluster) = &self.backing().keeper else { return Ok(()) };
        let News { tenants, plugs } = news;
        let take = |model: &Model| tenants.map_or(Ok(None), |tenants| cluster.absorb(model, tenants));
        Recorded::absorb(self, take, Touched { interfaces: plugs, networks: Vec::new() })
    }

    fn while_settled(&self, look: &mut dyn FnMut(&Arc<Model>)) {
        Recorded::while_settled(self, look);
    }
}

impl Backing for NativeBacking {
    const BYTES_MAX: usize = cluster::BYTES_MAX;

    fn size_of(&self, changes: &[Change]) -> usize {
        match &self.keeper {
            Keeper::Store(_) => 0,
            Keeper::Cluster(cluster) => cluster.size_of(changes),
        }
    }

    fn catch_up(&self) -> Result<(), StoreError> {
        match &self.keeper {
            Keeper::Store(_) => Ok(()),
            Keeper::Cluster(cluster) => cluster.catch_up(),
        }
    }

    fn place(&self) -> i64 {
        match &self.keeper {
            Keeper::Store(_) => 0,
            Keeper::Cluster(cluster) => cluster.place(),
        }
    }

    fn present(&self) -> Result<i64, StoreError> {
        match &self.keeper {
            Keeper::Store(_) => Ok(0),
            Keeper::Cluster(cluster) => cluster.present(),
        }
    }

    fn commit(&self, before: &Model, changes: &[Change]) -> Result<(), StoreError> {
        match &self.keeper {
            Keeper::Store(store) => store.commit(changes),
            Keeper::Cluster(cluster) => cluster.commit(before, changes),
        }
    }

    fn reload(&self) -> Result<Option<Model>, StoreError> {
        match &self.keeper {
            Keeper::Store(store) => store.load().map(Some),
            // Whether a write was done is found out with it, and what we have not heard of is told by those we follow.
            Keeper::Cluster(_) => Ok(None),
        }
    }

    fn put_in_force(&self, model: &Model, scope: Scope<'_>) {
        self.host.put_in_force(model, scope);
    }

    fn allot(&self, tenant: &str, durable: &Model, model: &Model) -> Result<NetworkType, NoSegmentFree> {
        let Keeper::Cluster(cluster) = &self.keeper else { return self.segments.allot(model, None, |_| false) };
        let is_used = |segment: &Segment| [durable, model].iter().any(|it| it.by_segment.contains_key(segment));
        let own = cluster.reusable_by(tenant).into_iter().filter(|segment| !is_used(segment));
        if let Some(network_type) = own.filter_map(|segment| self.segments.with(&segment)).next() {
            return Ok(network_type);
        }
        // One of a network that goes with what waits is marked once that is written.
        self.segments.allot(model, model.last_vlan(), |segment| is_used(segment) || cluster.is_freed(segment))
    }

    fn op_status(&self, model: &Model, port: &LogicalPort) -> OpStatus {
        // This needs no host: these ports are DOWN whatever the devices do.
        if port.state == AdminState::Down || port.attachment.is_none() {
            return OpStatus::Down;
        }
        self.host.op_status(model, &port.id)
    }

    fn counts_ports(&self) -> bool {
        true
    }

    fn port_stats(&self, model: &Model, port: &LogicalPort) -> Option<PortStats> {
        self.host.port_stats(model, &port.id)
    }

    fn port_device(&self, model: &Model, port: &LogicalPort) -> Option<Text> {
        self.host.port_device(model, &port.id)
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
