//! Why a session ends from our side: each a mistake of the peer, with its name.

use super::RINGS;
use crate::memory::MemoryError;
use crate::message::{Code, MessageError};
use crate::ring::RingError;

/// Why a session ends from our side.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// Bytes that are no message.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A memory table that cannot be.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A ring that cannot be.
    #[error("ring {index}: {source}")]
    Ring {
        /// Which ring.
        index: usize,
        /// Why not.
        source: RingError,
    },
    /// A ring we do not have.
    #[error("{code:?} names ring {index}; there are {RINGS}")]
    NoSuchRing {
        /// The message.
        code: Code,
        /// The ring it names.
        index: u32,
    },
    /// Features we did not offer.
    #[error("{code:?} chooses features {given:#x} that were not offered")]
    NotOffered {
        /// The message.
        code: Code,
        /// The foreign bits.
        given: u64,
    },
    /// A file descriptor that is no eventfd.
    #[error("{code:?} came with a file descriptor that is no eventfd")]
    NotAnEventfd {
        /// The message.
        code: Code,
    },
    /// A message that belongs to a protocol feature which was not agreed on.
    #[error("{code:?} needs a protocol feature that was not agreed on")]
    NotAgreed {
        /// The message.
        code: Code,
    },
    /// A memory file was cut short under us.
    #[error("memory file was cut short")]
    MemoryCutShort,
    /// The log's file was cut short under us.
    #[error("the log of dirty pages was cut short")]
    LogCutShort,
}
