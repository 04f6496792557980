//! Writing over a network's row as the original did (specification section 5): the id and the op-status too. For replaying
//! recordings with `api.strict_essex`; nothing else comes here.
//!
//! A new id is a change like any other and is stored. An op-status is no part of the records, because nothing else may
//! store it: it is kept here, in memory, until its network goes.

use super::{Backing, Recorded, own_network};
use crate::model::{Change, LogicalPort, Model, Network, NetworkId, OpStatus};
use crate::plugin::{NetworkRow, UpdateNetworkError};
use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

/// The op-statuses that clients wrote.
#[derive(Default)]
pub(super) struct Overwritten(RwLock<HashMap<NetworkId, OpStatus>>);

impl Overwritten {
    /// The op-status to tell of a network instead of its own.
    pub(super) fn op_status(&self, network: &NetworkId) -> Option<OpStatus> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(network).copied()
    }

    /// The network is gone, or gone by that id.
    pub(super) fn forget(&self, network: &str) -> Option<OpStatus> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(network)
    }

    fn set(&self, network: &NetworkId, op_status: OpStatus) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(network.clone(), op_status);
    }
}

impl<B: Backing> Recorded<B> {
    /// See [`crate::plugin::Plugin::overwrite_network`].
    pub(super) fn overwrite(&self, tenant: &str, network: &str, row: &NetworkRow) -> Result<(), UpdateNetworkError> {
        let id = self.writes.write(|model| -> Result<_, UpdateNetworkError> {
            let stranger = model.networks.get(network).filter(|_| B::LETS_STRANGERS_RENAME);
            let old = match stranger {
                Some(old) => old,
                None => own_network(model, tenant, network)?,
            };
            let is_taken = |id: &NetworkId| model.networks.get(id).is_some();
            let id = row.id.clone().filter(|id| !is_taken(id)).unwrap_or_else(|| old.id.clone());
            Ok((changes(model, old, &id, row), id))
        })?;
        let before = if *id == *network { None } else { self.overwritten.forget(network) };
        if let Some(op_status) = row.op_status.or(before) {
            self.overwritten.set(&id, op_status);
        }
        Ok(())
    }
}

/// The steps that make `old` what the row says, by this id; with another one its ports come along.
fn changes(model: &Model, old: &Network, id: &NetworkId, row: &NetworkRow) -> Vec<Change> {
    let new = Change::PutNetwork(Network { id: id.clone(), name: row.name.clone(), ..old.clone() });
    if *id == old.id {
        return vec![new];
    }
    let gone = model.ports_of(&old.id).map(|port| Change::RemovePort(port.id.clone()));
    let moved = model.ports_of(&old.id).map(|port| LogicalPort { network: id.clone(), ..port.clone() });
    gone.chain([Change::RemoveNetwork(old.id.clone()), new]).chain(moved.map(Change::PutPort)).collect()
}
