//! What can stand in the way of a port on an interface that others made, whichever kind of socket it is made of.

use crate::ids::QUEUES_MAX;
use std::io;

/// Why a socket on an interface, or a port made of such, could not be opened; the interface may be there the next time.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// There is no interface of that name in the calling thread's namespace.
    #[error("there is no interface named {name:?}")]
    NoInterface {
        /// The name as given.
        name: String,
    },
    /// The interface does not speak Ethernet, so its frames have no MAC addresses.
    #[error("interface {name:?} is not an Ethernet interface")]
    NotEthernet {
        /// The name as given.
        name: String,
    },
    /// It has more queues than a port can have, so that part of its traffic would be missed.
    #[error(
        "interface {name:?} has more than {QUEUES_MAX} queues; `ethtool -L {name} combined {QUEUES_MAX}` makes them fewer"
    )]
    TooManyQueues {
        /// The name as given.
        name: String,
    },
    /// One of its queues cannot be bound, so that part of its traffic would be missed.
    #[error("queue {queue} of the {queues} of interface {name:?} cannot be bound by AF_XDP")]
    QueueMissed {
        /// The name as given.
        name: String,
        /// The queue.
        queue: u32,
        /// How many the interface says it has.
        queues: u32,
    },
    /// The system said no; without CAP_NET_RAW this is `EPERM`.
    #[error("{what}: {source}")]
    Io {
        /// What we tried.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}
