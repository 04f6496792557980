//! What a [`super::RemotePlugin`] asks of the device it drives, and the words in which both speak of it.
//!
//! A device is a controller, an agent or a switch in another process or on another host. It may be slow, fail half way,
//! forget, or be changed by others. So it is never told what to change, only how a thing is to be: each [`Step`] may
//! come again, and [`Device::contents`] is asked whenever there is doubt.

use crate::address_pair::AddressPairs;
use crate::model::{AdminState, InterfaceId, NetworkId, PortId, Text};
use std::collections::BTreeMap;

/// A network as a device is to have it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceNetwork {
    /// The owner.
    pub tenant: Text,
    /// Its name; `None`: it has none.
    pub name: Option<Text>,
}

/// A logical port as a device is to have it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DevicePort {
    /// The network it is on.
    pub network: NetworkId,
    /// Whether frames may pass.
    pub state: AdminState,
    /// The interface plugged into it.
    pub attachment: Option<InterfaceId>,
    /// The addresses it may send from; none: any.
    pub pairs: AddressPairs,
}

impl DevicePort {
    /// Whether frames are to flow.
    pub fn is_active(&self) -> bool {
        self.state == AdminState::Active && self.attachment.is_some()
    }
}

/// A logical port as a device has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundPort {
    /// What it has.
    pub port: DevicePort,
    /// Whether frames flow, as far as the device knows.
    pub is_up: bool,
}

/// Everything a device has that is under our care, things nobody asked for included. What else lives on the device must
/// not be in here: what is here and not wanted is removed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Contents {
    /// By our id.
    pub networks: BTreeMap<NetworkId, DeviceNetwork>,
    /// By our id.
    pub ports: BTreeMap<PortId, FoundPort>,
}

/// One thing to bring about. Steps come one at a time, and in an order in which a port's network is there before it and
/// goes after it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// The network is there and is like this, whatever was under its id before.
    PutNetwork(NetworkId, DeviceNetwork),
    /// The port is there and is like this, whatever was under its id before.
    PutPort(PortId, DevicePort),
    /// The port is not there; perhaps it never was.
    RemovePort(PortId),
    /// The network is not there; perhaps it never was.
    RemoveNetwork(NetworkId),
}

/// How far a step came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// It is in force.
    Done,
    /// The device took it and is at it. It counts as done when [`Device::contents`] shows it; until then the port or
    /// network is PROVISIONING.
    Started,
}

/// Why a device did not do what it was asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DeviceError {
    /// No answer, or it broke off: nobody knows how much was done. Its contents are read again after a pause, and what
    /// is missing is done again.
    #[error("the device does not answer: {why}")]
    Unavailable {
        /// For the log.
        why: Text,
    },
    /// It answered, and will not. The thing is DOWN and is tried again with the next reading of the contents, or at once
    /// when a tenant changes it; other things go on.
    #[error("the device refuses: {why}")]
    Refused {
        /// For the log.
        why: Text,
    },
}

/// What a device can tell again of what it was given. What it cannot tell is not compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keeps {
    /// Networks; some have only ports, each with the number of a network.
    pub networks: bool,
    /// Who owns a network.
    pub tenants: bool,
    /// The names of networks.
    pub names: bool,
    /// What ports may send from.
    pub pairs: bool,
}

/// A device. Both methods are called from one thread, never two at a time. Each must end within a time of its own: while
/// it waits, nothing else is driven.
pub trait Device: Send + Sync + 'static {
    /// Reads everything it has that is under our care.
    ///
    /// # Errors
    /// [`DeviceError`]; both kinds count as no answer.
    fn contents(&self) -> Result<Contents, DeviceError>;

    /// Brings one thing about. A step that is done already succeeds.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn apply(&self, step: &Step) -> Result<Taken, DeviceError>;

    /// What it can tell again.
    fn keeps(&self) -> Keeps {
        Keeps { networks: true, tenants: true, names: true, pairs: true }
    }
}
