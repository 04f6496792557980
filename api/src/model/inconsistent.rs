//! How records can contradict each other.

use super::{InterfaceId, NetworkId, PortId, SERIAL_MAX, TEXT_BYTES_MAX};

/// Why a set of records is no model, or no store.
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
    /// Two plugs have one interface.
    #[error("interface {interface:?} is plugged twice")]
    PluggedTwice {
        /// The interface.
        interface: InterfaceId,
    },
    /// Two plugs have one device.
    #[error("interfaces {first:?} and {second:?} have one device, {device:?}")]
    DeviceTwice {
        /// The device.
        device: String,
        /// One interface.
        first: InterfaceId,
        /// The other.
        second: InterfaceId,
    },
    /// A plug has a text that nobody could have plugged.
    #[error(
        "interface {interface:?} is plugged with {what} that is empty, has NUL or more than {TEXT_BYTES_MAX} bytes"
    )]
    BadPlug {
        /// The beginning of the interface's id.
        interface: String,
        /// Which text it is.
        what: &'static str,
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
