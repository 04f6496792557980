//! The plugin that keeps records in memory and drives nothing: every op-status is UP. For trying the API and for tests.
//!
//! It answers in the order of the original sample plugin: the port must be there, then an attachment is looked for among
//! the ports of the same network, then the port must be vacant, then the attachment must be nowhere else.
//! It copies the sample's update across tenants only for `api.strict_essex`.

use super::recorded::{Backing, Recorded, check_vacant, port_on};
use crate::host::Scope;
use crate::model::{Change, LogicalPort, Model, Network, OpStatus};
use crate::plugin::{AlreadyAttached, PlugInterfaceError};
use crate::store::StoreError;

/// The fake plugin.
pub type FakePlugin = Recorded<FakeBacking>;

/// The fake plugin's nothing.
#[derive(Debug)]
pub struct FakeBacking;

impl FakePlugin {
    /// A plugin with no records.
    pub fn new() -> FakePlugin {
        Recorded::over(FakeBacking, Model::default())
    }
}

impl Default for FakePlugin {
    fn default() -> FakePlugin {
        FakePlugin::new()
    }
}

impl Backing for FakeBacking {
    const LETS_STRANGERS_RENAME: bool = true;
    const KEEPS_STATUS_UNPLUGGED: bool = true;

    fn commit(&self, _before: &Model, _changes: &[Change]) -> Result<(), StoreError> {
        Ok(())
    }

    fn reload(&self) -> Result<Option<Model>, StoreError> {
        Ok(None)
    }

    fn put_in_force(&self, _model: &Model, _scope: Scope<'_>) {}

    fn op_status(&self, _model: &Model, _port: &LogicalPort) -> OpStatus {
        OpStatus::Up
    }

    /// Nothing is carried, and the zeros say so.
    fn counts_ports(&self) -> bool {
        true
    }

    fn check_plug<'a>(
        &self,
        model: &'a Model,
        network: &Network,
        port: &str,
        attachment: &str,
    ) -> Result<&'a LogicalPort, PlugInterfaceError> {
        let holder = model.port_by_attachment(attachment);
        let refuse = |holder: &LogicalPort| AlreadyAttached {
            attachment: attachment.into(),
            port: port.into(),
            network: network.id.clone(),
            holder: holder.id.clone(),
        };
        let found = port_on(model, network, port)?;
        if let Some(holder) = holder.filter(|holder| holder.network == network.id) {
            return Err(refuse(holder).into());
        }
        check_vacant(found)?;
        match holder {
            None => Ok(found),
            Some(holder) => Err(refuse(holder).into()),
        }
    }
}
