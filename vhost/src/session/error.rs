//! Why a session ends from our side: each a mistake of the peer, with its name.

use super::RINGS;
use crate::inflight::RecordError;
use crate::memory::{FileError, MemoryError};
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
    /// An inflight area that cannot be.
    #[error("the inflight area {0}")]
    InflightFile(#[from] FileError),
    /// An inflight area longer than all rings there can be need.
    #[error("an inflight area of {given} bytes is longer than any rings need")]
    InflightTooLong {
        /// Bytes it has.
        given: u64,
    },
    /// An inflight area for rings we do not have, or one that there is no memory for.
    #[error("an inflight area for {ring_count} rings of {ring_size} entries cannot be made")]
    NoInflight {
        /// Rings it is wanted for.
        ring_count: u16,
        /// Entries of each.
        ring_size: u16,
    },
    /// What was written down of a ring will not do.
    #[error("ring {index}: {source}")]
    Record {
        /// Which ring.
        index: usize,
        /// Why not.
        source: RecordError,
    },
    /// A memory file was cut short under us.
    #[error("memory file was cut short")]
    MemoryCutShort,
    /// The log's file was cut short under us.
    #[error("the log of dirty pages was cut short")]
    LogCutShort,
}
