//! Which networks and ports a list is to hold. Pure; part of what a plugin is asked, so that
//! it filters within the one state it looks at.
//!
//! Every condition given must hold; each asks for itself whether *some* port of a network has the property. What asks for
//! that costs nothing that is not named, and no list of ports is made for it.

use super::{NetworkDetails, PortDetails};

/// Conditions on a network. The default lets all pass.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NetworkFilter {
    /// Its name. No network has the empty one.
    pub name: Option<String>,
    /// Its op-status.
    pub op_status: Option<String>,
    /// The admin state of some port.
    pub port_state: Option<String>,
    /// The op-status of some port.
    pub port_op_status: Option<String>,
    /// The id of some port.
    pub port: Option<String>,
    /// The attachment of some port.
    pub attachment: Option<String>,
    /// Whether some port has an attachment.
    pub has_attachment: Option<bool>,
    /// Only conditions nobody knows were given: nothing passes.
    pub is_impossible: bool,
}

/// Conditions on a port. The default lets all pass.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PortFilter {
    /// Its admin state.
    pub state: Option<String>,
    /// Its op-status.
    pub op_status: Option<String>,
    /// Its attachment.
    pub attachment: Option<String>,
    /// Whether it has one.
    pub has_attachment: Option<bool>,
    /// Only conditions nobody knows were given: nothing passes.
    pub is_impossible: bool,
}

/// The ports of one network, as far as a filter asks after them.
pub trait PortsOfNetwork {
    /// Whether it has the port of this id.
    fn has(&self, port: &str) -> bool;

    /// Whether this is plugged into one of them.
    fn has_attachment(&self, attachment: &str) -> bool;

    /// Whether anything is plugged into one of them.
    fn has_any_attachment(&self) -> bool;

    /// Whether one of them has the admin state of this name.
    fn has_state(&self, state: &str) -> bool;

    /// Whether one of them has the op-status of this name.
    fn has_op_status(&self, status: &str) -> bool;
}

impl NetworkFilter {
    /// Whether [`NetworkFilter::passes`] looks at ports.
    pub fn needs_ports(&self) -> bool {
        self.port_state.is_some()
            || self.port_op_status.is_some()
            || self.port.is_some()
            || self.attachment.is_some()
            || self.has_attachment.is_some()
    }

    /// Whether a network with these ports passes. The ports are asked for what [`NetworkFilter::needs_ports`] is about only, and
    /// last for what costs the most.
    pub fn passes(&self, network: &NetworkDetails, ports: &impl PortsOfNetwork) -> bool {
        !self.is_impossible
            && is(&self.name, |name| network.name.as_deref() == Some(name))
            && is(&self.op_status, |status| network.op_status.name() == status)
            && is(&self.port, |id| ports.has(id))
            && is(&self.attachment, |id| ports.has_attachment(id))
            && self.has_attachment.is_none_or(|wanted| ports.has_any_attachment() == wanted)
            && is(&self.port_state, |state| ports.has_state(state))
            && is(&self.port_op_status, |status| ports.has_op_status(status))
    }
}

impl PortFilter {
    /// Whether a port passes.
    pub fn passes(&self, port: &PortDetails) -> bool {
        !self.is_impossible
            && is(&self.state, |state| port.state.name() == state)
            && is(&self.op_status, |status| port.op_status.name() == status)
            && is(&self.attachment, |id| port.attachment.as_deref() == Some(id))
            && self.has_attachment.is_none_or(|wanted| port.attachment.is_some() == wanted)
    }
}

/// Whether a condition that was given holds.
fn is(given: &Option<String>, holds: impl FnOnce(&str) -> bool) -> bool {
    given.as_deref().is_none_or(holds)
}
