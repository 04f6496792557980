//! What a plugin's methods may refuse, one enum a method, and [`Fault`], the union that API versions map.
//!
//! They tell facts and know no HTTP. Each enum lists exactly what Quantum 2012.1 let a plugin's method raise,
//! what a backend may fail with, and where it writes [`StoreFailed`] and [`Forbidden`].

use crate::model::{InterfaceId, NetworkId, PortId, Text};
use crate::quota::Resource;

macro_rules! facts {
    ($($(#[$doc:meta])* $name:ident: $text:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
            #[error($text)]
            pub struct $name {
                $($(#[$field_doc])* pub $field: $type,)*
            }
        )*

        /// Everything a plugin may refuse. Each API version maps it in one full `match`.
        #[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
        pub enum Fault {
            $($(#[$doc])* #[error(transparent)] $name(#[from] $name),)*
        }
    };
}

facts! {
    /// The tenant has no such network.
    NetworkNotFound: "network {network} could not be found" {
        /// The id asked for.
        network: NetworkId,
    }
    /// The network has ports with attachments, or more ports than can go with it at once.
    NetworkInUse: "network {network} has attachments, or too many ports: {too_many:?}" {
        /// The network.
        network: NetworkId,
        /// Its ports, if it has no attachments and they are too many.
        too_many: Option<usize>,
    }
    /// The network has no such port.
    PortNotFound: "port {port} could not be found on network {network}" {
        /// The id asked for.
        port: PortId,
        /// The network it was sought on.
        network: NetworkId,
    }
    /// No port state has this name.
    StateInvalid: "{state:?} is no port state" {
        /// The name given.
        state: Text,
    }
    /// Something is plugged into the port.
    PortInUse: "{attachment:?} is plugged into port {port} of network {network}" {
        /// The port.
        port: PortId,
        /// Its network.
        network: NetworkId,
        /// What is plugged into it.
        attachment: InterfaceId,
    }
    /// The attachment is plugged into a port already.
    AlreadyAttached: "{attachment:?} cannot be plugged into port {port} of network {network}: it is in port {holder}" {
        /// The attachment.
        attachment: InterfaceId,
        /// The port asked for.
        port: PortId,
        /// Its network.
        network: NetworkId,
        /// The port that has it.
        holder: PortId,
    }
    /// The tenant would have more of something than it may.
    OverQuota: "the tenant has {used} of {limit} {resource}s and asks for {asked} more" {
        /// Of what.
        resource: Resource,
        /// How many it may have.
        limit: usize,
        /// How many it has.
        used: usize,
        /// How many more it asked for.
        asked: usize,
    }
    /// The policy does not let the caller do this to what it may see. It comes from the API, never from a plugin.
    Forbidden: "{action} is not allowed" {
        /// The policy's action.
        action: Text,
    }
    /// Every VLAN or VNI that networks may get is some network's.
    NoSegmentFree: "no network of type {kind} can be made: every segment of the range is in use" {
        /// The type of networks.
        kind: Text,
    }
    /// The store did not confirm the change: it may have been made all the same, where a disk failed after it was written or
    /// an answer was lost.
    StoreFailed: "the store did not confirm the change: {why}" {
        /// Of which kind the failure was, in words for everybody; what the store said is in the log.
        why: Text,
    }
    /// What the plugin drives does not answer, so that the call could not be done now. A plugin that records first and
    /// drives afterwards never says so.
    BackendUnavailable: "the backend does not answer: {why}" {
        /// What was tried, and what became of it.
        why: Text,
    }
    /// What the plugin drives answered and would not, or answered nonsense.
    BackendFailed: "the backend failed: {why}" {
        /// What it said.
        why: Text,
    }
}

macro_rules! method_errors {
    ($($(#[$doc:meta])* $name:ident { $($fact:ident),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
            pub enum $name {
                $(#[doc = concat!("See [`", stringify!($fact), "`].")] #[error(transparent)] $fact(#[from] $fact),)*
                #[doc = "See [`BackendUnavailable`]."] #[error(transparent)] BackendUnavailable(#[from] BackendUnavailable),
                #[doc = "See [`BackendFailed`]."] #[error(transparent)] BackendFailed(#[from] BackendFailed),
            }

            impl From<$name> for Fault {
                fn from(error: $name) -> Fault {
                    match error {
                        $($name::$fact(fact) => Fault::$fact(fact),)*
                        $name::BackendUnavailable(fact) => Fault::BackendUnavailable(fact),
                        $name::BackendFailed(fact) => Fault::BackendFailed(fact),
                    }
                }
            }
        )*
    };
}

method_errors! {
    /// Why a tenant's networks are not told.
    GetAllNetworksError {}
    /// Why a network was not made.
    CreateNetworkError { OverQuota, NoSegmentFree, Forbidden, StoreFailed }
    /// Why a network was not removed.
    DeleteNetworkError { NetworkNotFound, NetworkInUse, Forbidden, StoreFailed }
    /// Why a network is not told.
    GetNetworkError { NetworkNotFound }
    /// Why a network was not renamed.
    UpdateNetworkError { NetworkNotFound, Forbidden, StoreFailed }
    /// Why a network's ports are not told.
    GetAllPortsError { NetworkNotFound }
    /// Why a port was not made.
    CreatePortError { NetworkNotFound, StateInvalid, OverQuota, Forbidden, StoreFailed }
    /// Why a port was not changed.
    UpdatePortError { NetworkNotFound, PortNotFound, StateInvalid, Forbidden, StoreFailed }
    /// Why a port was not removed.
    DeletePortError { NetworkNotFound, PortNotFound, PortInUse, Forbidden, StoreFailed }
    /// Why a port is not told.
    GetPortError { NetworkNotFound, PortNotFound }
    /// Why an interface was not plugged.
    PlugInterfaceError { NetworkNotFound, PortNotFound, PortInUse, AlreadyAttached, Forbidden, StoreFailed }
    /// Why an interface was not taken out.
    UnplugInterfaceError { NetworkNotFound, PortNotFound, Forbidden, StoreFailed }
}

macro_rules! from_lookup {
    (@one $lookup:ident { $($fact:ident),* } $name:ident) => {
        impl From<$lookup> for $name {
            fn from(error: $lookup) -> $name {
                match error {
                    $($lookup::$fact(fact) => fact.into(),)*
                    $lookup::BackendUnavailable(fact) => fact.into(),
                    $lookup::BackendFailed(fact) => fact.into(),
                }
            }
        }
    };
    ($lookup:ident $facts:tt: $($name:ident)*) => {
        $(from_lookup! { @one $lookup $facts $name })*
    };
}

from_lookup! {
    GetPortError { NetworkNotFound, PortNotFound }:
    UpdatePortError DeletePortError PlugInterfaceError UnplugInterfaceError
}
from_lookup! {
    GetNetworkError { NetworkNotFound }:
    DeleteNetworkError UpdateNetworkError GetAllPortsError CreatePortError GetPortError
}
