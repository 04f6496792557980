//! The guest's side of vhost-user: a driver that negotiates, sends and receives, for tests and load generators.
//!
//! It owns the guest's whole memory, one memfd with all rings and a buffer for each of their slots, and speaks to a
//! backend as QEMU would. For load it is lean: buffers are filled once, a burst is shown to the device at once, and what
//! arrives can be looked at where it lies, so that the generator is never the slow side. For tests it is frank: every
//! message, descriptor and index can be written raw, so that a hostile guest is a few lines. Owned by one thread, or its
//! senders and receivers by one each.
//!
//! Rings are [`split`] or, if `F_RING_PACKED` is among the config's features, [`packed`]; senders and receivers of both look
//! the same. Bounds: [`PAIRS_MAX`] pairs of rings, 32,768 entries each.

mod backing;
mod handshake;
mod layout;
pub mod packed;
mod receive;
#[cfg(test)]
mod reference;
mod ring;
mod send;
pub mod split;
#[cfg(test)]
mod tests;

pub use backing::{PIECES_MAX, Shape, Used, put_descriptor_at};
pub use receive::{Received, Receiver};
pub use ring::Ring;
pub use send::Sender;

use crate::chain::{Descriptor, NEXT};
use crate::memory::DriverMemory;
use crate::message::{Code, F_PROTOCOL_FEATURES, InflightInfo, MessageError, PackedPosition, protocol};
use crate::net::{F_MRG_RXBUF, F_RING_PACKED, F_VERSION_1};
use crate::socket::{Stream, StreamError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Guest physical address of the first byte of a driver's memory.
pub const GUEST_BASE: u64 = 0x1_0000_0000;
/// What the driver says its own address of that byte is. Any number will do, and another one finds more mistakes.
pub const USER_BASE: u64 = 0x7000_0000_0000;
/// How long a driver waits for a connection or an answer.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Pairs of rings one driver may have: one number of a ring fits a byte (vhost-user, "vring descriptor").
pub const PAIRS_MAX: u16 = 128;

/// Why a driver cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The system refused.
    #[error("{what}: {source}")]
    Io {
        /// What we tried.
        what: &'static str,
        /// What it said.
        source: std::io::Error,
    },
    /// The connection broke.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The backend answered what is no answer.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The backend did not answer in time.
    #[error("no answer within {PATIENCE:?}")]
    TimedOut,
    /// The backend answered "no".
    #[error("the backend refused {code:?}")]
    Refused {
        /// What it refused.
        code: Code,
    },
    /// The backend lacks what the driver cannot do without.
    #[error("the backend does not offer the features {features:#x}")]
    NotOffered {
        /// Which, as bits.
        features: u64,
    },
    /// There is no connection.
    #[error("not connected")]
    NotConnected,
}

fn io(what: &'static str) -> impl Fn(std::io::Error) -> DriverError {
    move |source| DriverError::Io { what, source }
}

/// What a driver is like.
#[derive(Clone, Debug)]
pub struct DriverConfig {
    /// The socket.
    pub path: PathBuf,
    /// Listen on it, as QEMU does when the switch is the client; otherwise connect.
    pub is_listening: bool,
    /// Features to choose, of those offered. `F_RING_PACKED` must be offered if it is here.
    pub features: u64,
    /// Protocol features to choose, of those offered.
    pub protocol: u64,
    /// Pairs of a receive and a send ring.
    pub pairs: u16,
    /// Entries of each ring: a power of two, unless the rings are packed.
    pub queue_size: u16,
    /// Bytes of each receive buffer, virtio header included.
    pub receive_buffer_len: usize,
    /// Bytes of each send buffer, virtio header included.
    pub send_buffer_len: usize,
    /// Where the first buffer of a ring begins, bytes from the start of a cache line. With 52, and buffer sizes that are
    /// multiples of 64, frames begin on cache lines, behind their headers, as in the pools of real drivers.
    pub buffer_offset: usize,
    /// How receive buffers are described.
    pub receive_shape: Shape,
    /// How send buffers are described.
    pub send_shape: Shape,
    /// Believe that the backend gives send buffers back in order, and look at split rings' used index alone. Ours and
    /// DPDK's do, and it saves reading the used entries.
    pub is_order_trusted: bool,
    /// Use huge pages of 2 MiB.
    pub is_huge: bool,
    /// Bytes of each region of the memory table; `None`: one region. The rings must fit the first.
    pub region_len: Option<u64>,
}

impl DriverConfig {
    /// A virtio 1 driver with one pair of split rings of 256 and mergeable buffers of 2 KiB that connects to `path`.
    pub fn new(path: impl Into<PathBuf>) -> DriverConfig {
        DriverConfig {
            path: path.into(),
            is_listening: false,
            features: F_VERSION_1 | F_MRG_RXBUF | F_PROTOCOL_FEATURES,
            protocol: protocol::REPLY_ACK | protocol::MQ,
            pairs: 1,
            queue_size: 256,
            receive_buffer_len: 2048,
            send_buffer_len: 2048,
            buffer_offset: 0,
            receive_shape: Shape::SINGLE,
            send_shape: Shape::SINGLE,
            is_order_trusted: true,
            is_huge: false,
            region_len: None,
        }
    }
}

/// A driver: memory, rings and a connection.
pub struct Driver {
    config: DriverConfig,
    memory: Arc<DriverMemory>,
    listener: Option<UnixListener>,
    stream: Option<Stream>,
    /// The inflight area that a backend made, kept for the next.
    inflight: Option<(InflightInfo, OwnedFd)>,
    /// Where each ring was last said to stand, by either side: all that QEMU knows.
    bases: Vec<u32>,
    /// Features agreed on.
    pub features: u64,
    /// Protocol features agreed on.
    pub protocol: u64,
    /// What sends by the first pair of rings.
    pub sender: Sender,
    /// What receives by the first pair of rings.
    pub receiver: Receiver,
    /// The pairs after the first.
    pub others: Vec<(Sender, Receiver)>,
}

impl Driver {
    /// Makes memory and rings, and listens if the config says so. Does not connect.
    ///
    /// # Errors
    /// [`DriverError::Io`].
    ///
    /// # Panics
    /// If the config makes no sense: no pair, or rings of a size that cannot be.
    pub fn new(config: DriverConfig) -> Result<Driver, DriverError> {
        assert!((1..=PAIRS_MAX).contains(&config.pairs), "a driver has 1 to {PAIRS_MAX} pairs of rings");
        let (places, len) = layout::places(&config);
        let is_packed = config.features & F_RING_PACKED != 0;
        let memory = Arc::new(DriverMemory::new(len, config.is_huge).map_err(io("memfd"))?);
        let pair = |places: &[layout::Place]| -> Result<(Sender, Receiver), DriverError> {
            let receive = Ring::new(&memory, &places[0], false)?;
            let send = Ring::new(&memory, &places[1], config.is_order_trusted)?;
            Ok((Sender { ring: send }, Receiver::new(receive)))
        };
        let (first, others) = places.split_at(2);
        let (sender, receiver) = pair(first)?;
        let others = others.chunks(2).map(pair).collect::<Result<_, _>>()?;
        let listener = match config.is_listening {
            true => Some(UnixListener::bind(&config.path).map_err(io("bind"))?),
            false => None,
        };
        let bases =
            (0..2 * config.pairs).map(|_| if is_packed { PackedPosition::START.to_bits() } else { 0 }).collect();
        let (stream, inflight, features, protocol) = (None, None, 0, 0);
        Ok(Driver { config, memory, listener, stream, inflight, bases, features, protocol, sender, receiver, others })
    }

    /// The driver's memory, for raw access.
    pub fn memory(&self) -> &Arc<DriverMemory> {
        &self.memory
    }

    /// Pairs of rings.
    pub fn pair_count(&self) -> usize {
        1 + self.others.len()
    }

    /// All pairs, the first one first.
    pub fn pairs(&mut self) -> impl Iterator<Item = (&mut Sender, &mut Receiver)> {
        let first = std::iter::once((&mut self.sender, &mut self.receiver));
        first.chain(self.others.iter_mut().map(|(sender, receiver)| (sender, receiver)))
    }

    /// A ring by its number: even ones receive, odd ones send.
    ///
    /// # Panics
    /// If there is none of that number.
    pub fn ring(&self, index: u32) -> &Ring {
        let pair = index as usize / 2;
        let (sender, receiver) = match pair.checked_sub(1) {
            None => (&self.sender, &self.receiver),
            Some(other) => (&self.others[other].0, &self.others[other].1),
        };
        if index.is_multiple_of(2) { &receiver.ring } else { &sender.ring }
    }

    /// A chain of descriptors of a split ring over the given entries' buffers, each of `len` bytes with `flags`.
    pub fn link(ring: &Ring, slots: &[u16], len: u32, flags: u16) {
        for (at, slot) in slots.iter().enumerate() {
            let next = slots.get(at + 1);
            let descriptor = Descriptor {
                address: ring.buffer_address(*slot),
                len,
                flags: flags | if next.is_some() { NEXT } else { 0 },
                next: next.copied().unwrap_or(0),
            };
            ring.put_descriptor(*slot, descriptor);
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.listener.is_some() {
            let _ = std::fs::remove_file(&self.config.path);
        }
    }
}

fn wait_readable(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    let timeout = Timespec { tv_sec: timeout.as_secs() as _, tv_nsec: i64::from(timeout.subsec_nanos()) };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).is_ok_and(|count| count > 0)
}
