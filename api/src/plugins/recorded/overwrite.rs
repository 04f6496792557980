//! Writing over a network's or port's row as the original did: id, op-status, a port's network
//! and attachment too. For replaying recordings with `api.strict_essex`; nothing else comes here.
//!
//! What the records cannot hold is not written: an id or an attachment that is taken, a network that is not there. A new
//! id is a change like any other and is stored. An op-status is no part of the records, because nothing else may store
//! it: it is kept here, in memory, until its network or port goes.

use super::{Backing, Recorded, admin_state, own_network, own_port};
use crate::model::{Change, LogicalPort, Model, Network, NetworkId, OpStatus, Text};
use crate::plugin::{NetworkRow, PortRow, UpdateNetworkError, UpdatePortError};
use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

/// The op-statuses that clients wrote, by the id of the network or port.
#[derive(Default)]
pub(super) struct Overwritten(RwLock<HashMap<Text, OpStatus>>);

impl Overwritten {
    /// The op-status to tell of a network or port instead of its own.
    pub(super) fn op_status(&self, id: &str) -> Option<OpStatus> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(id).copied()
    }

    /// The network or port is gone, or gone by that id.
    pub(super) fn forget(&self, id: &str) -> Option<OpStatus> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(id)
    }

    /// The row is told by `after` from now on, and as `op_status` if that was written.
    fn follow(&self, before: &str, after: &Text, op_status: Option<OpStatus>) {
        let known = if **after == *before { None } else { self.forget(before) };
        if let Some(op_status) = op_status.or(known) {
            self.0.write().unwrap_or_else(PoisonError::into_inner).insert(after.clone(), op_status);
        }
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
        self.overwritten.follow(network, &id, row.op_status);
        Ok(())
    }

    /// See [`crate::plugin::Plugin::overwrite_port`].
    pub(super) fn overwrite_row_of_port(
        &self,
        tenant: &str,
        network: &str,
        port: &str,
        row: &PortRow,
    ) -> Result<(), UpdatePortError> {
        let id = self.writes.write(|model| -> Result<_, UpdatePortError> {
            let old = own_port(model, tenant, network, port)?;
            let state = admin_state(&row.state)?;
            let id = row.id.clone().filter(|id| model.ports.get(id).is_none()).unwrap_or_else(|| old.id.clone());
            let moved = row.network.as_ref().and_then(|network| model.networks.get(network));
            let network = moved.map_or_else(|| old.network.clone(), |network| network.id.clone());
            let is_free = |attachment: &Option<Text>| {
                attachment.as_ref().is_none_or(|interface| model.port_by_attachment(interface).is_none())
            };
            let attachment = row.attachment.clone().filter(is_free).unwrap_or_else(|| old.attachment.clone());
            let new = Change::PutPort(LogicalPort { id: id.clone(), network, state, attachment, ..old.clone() });
            // A port in place keeps its id and its network.
            let is_in_place = matches!(&new, Change::PutPort(new) if new.id == old.id && new.network == old.network);
            let gone = (!is_in_place).then(|| Change::RemovePort(old.id.clone()));
            Ok((gone.into_iter().chain([new]).collect(), id))
        })?;
        self.overwritten.follow(port, &id, row.op_status);
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
