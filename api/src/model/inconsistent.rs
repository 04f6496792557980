//! How records can contradict each other.

use super::{InterfaceId, NetworkId, PortId, SERIAL_MAX};

/// Why a set of records is no model.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Inconsistent {
    /// Two networks have one id.
    #[error("network {network} comes twice")]
    NetworkTwice {
        /// The id.
        network: NetworkId,
    },
    /// Two records have one place in the order of creation.
    #[error("serial {serial} comes twice")]
    SerialTwice {
        /// The serial.
        serial: u64,
    },
    /// A record has a place in the order of creation behind which there is no room.
    #[error("serial {serial} is more than {SERIAL_MAX}")]
    SerialTooHigh {
        /// The serial.
        serial: u64,
    },
    /// Two ports have one id.
    #[error("port {port} comes twice")]
    PortTwice {
        /// The id.
        port: PortId,
    },
    /// Two networks have one VLAN or VNI.
    #[error("networks {first} and {second} have one VLAN or VNI")]
    SegmentTwice {
        /// One network.
        first: NetworkId,
        /// The other.
        second: NetworkId,
    },
    /// A port is on a network that is not there.
    #[error("port {port} is on network {network}, which does not exist")]
    PortWithoutNetwork {
        /// The port.
        port: PortId,
        /// The network it names.
        network: NetworkId,
    },
    /// Two ports have one attachment.
    #[error("attachment {attachment:?} is plugged into ports {first} and {second}")]
    AttachedTwice {
        /// The attachment.
        attachment: InterfaceId,
        /// One port.
        first: PortId,
        /// The other.
        second: PortId,
    },
}
