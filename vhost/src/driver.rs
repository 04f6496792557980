//! The guest's side of vhost-user: a driver that negotiates, sends and receives, for tests and load generators.
//!
//! It owns the guest's whole memory, one memfd with both rings and a buffer for each of their entries, and speaks to a
//! backend as QEMU would. For load it is lean: buffers are filled once and [`Sender::post`] only moves an index, so that the
//! generator is never the slow side. For tests it is frank: every message, descriptor and index can be written raw, so
//! that a hostile guest is a few lines. Owned by one thread, or its two halves by one each.

use crate::chain::{DESCRIPTOR_LEN, Descriptor, NEXT, WRITE};
use crate::memory::DriverMemory;
use crate::message::{
    Code, F_PROTOCOL_FEATURES, MessageError, RegionInfo, Reply, Request, RingAddresses, RingFd, RingState, protocol,
};
use crate::net::{F_MRG_RXBUF, F_VERSION_1};
use crate::socket::{Stream, StreamError};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};
use switch::offload::{VNET_HEADER_LEN, VNET_HEADER_MRG_LEN};

/// Guest physical address of the first byte of a driver's memory.
pub const GUEST_BASE: u64 = 0x1_0000_0000;
/// What the driver says its own address of that byte is. Any number will do, and another one finds more mistakes.
pub const USER_BASE: u64 = 0x7000_0000_0000;
/// How long a driver waits for a connection or an answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

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
    /// Features to choose, of those offered.
    pub features: u64,
    /// Entries of each ring.
    pub queue_size: u16,
    /// Bytes of each receive buffer, virtio header included.
    pub receive_buffer_len: usize,
    /// Bytes of each send buffer, virtio header included.
    pub send_buffer_len: usize,
    /// Use huge pages of 2 MiB.
    pub is_huge: bool,
    /// Bytes of each region of the memory table; `None`: one region. The rings must fit the first.
    pub region_len: Option<u64>,
}

impl DriverConfig {
    /// A virtio 1 driver with mergeable buffers of 2 KiB and rings of 256 that connects to `path`.
    pub fn new(path: impl Into<PathBuf>) -> DriverConfig {
        DriverConfig {
            path: path.into(),
            is_listening: false,
            features: F_VERSION_1 | F_MRG_RXBUF | F_PROTOCOL_FEATURES,
            queue_size: 256,
            receive_buffer_len: 2048,
            send_buffer_len: 2048,
            is_huge: false,
            region_len: None,
        }
    }
}

/// One ring as the driver sees it. Offsets are into the driver's memory.
pub struct Ring {
    memory: Arc<DriverMemory>,
    size: u16,
    descriptors: usize,
    available: usize,
    used: usize,
    buffers: usize,
    buffer_len: usize,
    /// The available index, as last written.
    next: u16,
    /// Used entries looked at.
    seen: u16,
    header_len: usize,
    kick: OwnedFd,
    call: OwnedFd,
}

impl Ring {
    /// Bytes of a ring's three parts, each on its own page.
    fn parts(size: u16) -> [usize; 3] {
        let size = usize::from(size);
        [16 * size, 6 + 2 * size, 6 + 8 * size].map(|len| len.next_multiple_of(4096))
    }

    fn new(
        memory: &Arc<DriverMemory>,
        size: u16,
        at: usize,
        buffers: usize,
        buffer_len: usize,
    ) -> Result<Ring, DriverError> {
        let [descriptors_len, available_len, _] = Ring::parts(size);
        let new_eventfd = || eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| io("eventfd")(error.into()));
        let ring = Ring {
            memory: memory.clone(),
            size,
            descriptors: at,
            available: at + descriptors_len,
            used: at + descriptors_len + available_len,
            buffers,
            buffer_len,
            next: 0,
            seen: 0,
            header_len: VNET_HEADER_MRG_LEN,
            kick: new_eventfd()?,
            call: new_eventfd()?,
        };
        for slot in 0..size {
            ring.put_available(slot, slot);
        }
        ring.set_interrupts(false);
        Ok(ring)
    }

    fn mask(&self, position: u16) -> u16 {
        position & (self.size - 1)
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The available index, as last written.
    pub fn next(&self) -> u16 {
        self.next
    }

    /// Where the buffer of an entry begins in the driver's memory.
    pub fn buffer_at(&self, slot: u16) -> usize {
        self.buffers + usize::from(slot) * self.buffer_len
    }

    /// The guest physical address of the buffer of an entry.
    pub fn buffer_address(&self, slot: u16) -> u64 {
        GUEST_BASE + self.buffer_at(slot) as u64
    }

    /// Writes entry `index` of the descriptor table, whatever it says.
    pub fn put_descriptor(&self, index: u16, descriptor: Descriptor) {
        put_descriptor_at(&self.memory, self.descriptors + usize::from(index) * DESCRIPTOR_LEN, descriptor);
    }

    /// Writes the entry at a position of the available ring, whatever it says.
    #[inline]
    pub fn put_available(&self, position: u16, head: u16) {
        let at = self.available + 4 + 2 * usize::from(self.mask(position));
        self.memory.word(at).store(head.to_le(), Ordering::Relaxed);
    }

    #[inline]
    fn available_entry(&self, position: u16) -> u16 {
        let at = self.available + 4 + 2 * usize::from(self.mask(position));
        u16::from_le(self.memory.word(at).load(Ordering::Relaxed))
    }

    /// Writes the available index, whatever it says, and kicks if the backend wants it.
    #[inline]
    pub fn set_available_index(&mut self, index: u16) {
        self.next = index;
        self.memory.word(self.available + 2).store(index.to_le(), Ordering::Release);
        // Virtio 1.2 section 2.7.13.3.1: the index before the look at the flags.
        fence(Ordering::SeqCst);
        if self.wants_kick() {
            self.kick();
        }
    }

    /// Puts one chain into the available ring.
    pub fn post_head(&mut self, head: u16) {
        self.put_available(self.next, head);
        self.set_available_index(self.next.wrapping_add(1));
    }

    /// Whether the backend asks for kicks.
    #[inline]
    pub fn wants_kick(&self) -> bool {
        u16::from_le(self.memory.word(self.used).load(Ordering::Relaxed)) & NO_NOTIFY == 0
    }

    /// Kicks, wanted or not.
    pub fn kick(&self) {
        let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
    }

    /// The used index, as the backend last wrote it.
    #[inline]
    pub fn used_index(&self) -> u16 {
        u16::from_le(self.memory.word(self.used + 2).load(Ordering::Acquire))
    }

    /// The used entry at a position: the chain's head and the bytes written.
    #[inline]
    pub fn used_entry(&self, position: u16) -> (u32, u32) {
        let mut bytes = [0; 8];
        self.memory.read(self.used + 4 + 8 * usize::from(self.mask(position)), &mut bytes);
        let entry = u64::from_le_bytes(bytes);
        (entry as u32, (entry >> 32) as u32)
    }

    /// Asks the backend for interrupts, or for none.
    pub fn set_interrupts(&self, are_wanted: bool) {
        let flags = if are_wanted { 0 } else { NO_INTERRUPT };
        self.memory.word(self.available).store(u16::to_le(flags), Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Waits for an interrupt and takes it; answers whether one came.
    pub fn wait_for_interrupt(&self, timeout: Duration) -> bool {
        wait_readable(self.call.as_fd(), timeout) && rustix::io::read(&self.call, &mut [0u8; 8]).is_ok()
    }

    fn addresses(&self, index: u32) -> RingAddresses {
        let user = |offset: usize| USER_BASE + offset as u64;
        RingAddresses {
            index,
            flags: 0,
            descriptors: user(self.descriptors),
            used: user(self.used),
            available: user(self.available),
            log: 0,
        }
    }
}

/// Writes a descriptor anywhere into the driver's memory, for indirect tables.
pub fn put_descriptor_at(memory: &DriverMemory, offset: usize, descriptor: Descriptor) {
    let (low, high) = descriptor.to_words();
    memory.write(offset, &low.to_ne_bytes());
    memory.write(offset + 8, &high.to_ne_bytes());
}

/// The half that sends: the guest's transmit ring. Entry n owns buffer n.
pub struct Sender {
    /// The ring, for raw access.
    pub ring: Ring,
}

impl Sender {
    /// Puts a frame with its virtio header into the buffer of an entry. Stays there until it is filled again.
    pub fn fill(&mut self, slot: u16, header: &[u8; VNET_HEADER_MRG_LEN], frame: &[u8]) {
        let ring = &self.ring;
        let (at, header_len) = (ring.buffer_at(slot), ring.header_len);
        assert!(header_len + frame.len() <= ring.buffer_len, "the frame is longer than a send buffer");
        ring.memory.write(at, &header[..header_len]);
        ring.memory.write(at + header_len, frame);
        let len = (header_len + frame.len()) as u32;
        ring.put_descriptor(slot, Descriptor { address: ring.buffer_address(slot), len, flags: 0, next: 0 });
    }

    /// Fills every buffer in turn from `frames`, to be sent by [`Sender::post`] again and again.
    pub fn fill_all(&mut self, frames: &[Vec<u8>]) {
        for slot in 0..self.ring.size {
            self.fill(slot, &[0; VNET_HEADER_MRG_LEN], &frames[usize::from(slot) % frames.len()]);
        }
    }

    /// Entries that may be posted now.
    #[inline]
    pub fn free(&mut self) -> u16 {
        self.ring.seen = self.ring.used_index();
        self.ring.size - self.ring.next.wrapping_sub(self.ring.seen)
    }

    /// Sends what lies in the next `count` buffers, or in as many as are free; answers how many.
    ///
    /// Relies on the backend giving entries back in order, as ours and DPDK's do.
    #[inline]
    pub fn post(&mut self, count: u16) -> u16 {
        let count = count.min(self.free());
        if count > 0 {
            self.ring.set_available_index(self.ring.next.wrapping_add(count));
        }
        count
    }

    /// Sends frames with nothing left to do; answers how many fitted.
    pub fn send_burst(&mut self, frames: &[&[u8]]) -> usize {
        let count = usize::from(self.free()).min(frames.len());
        for (at, frame) in frames[..count].iter().enumerate() {
            let slot = self.ring.mask(self.ring.next.wrapping_add(at as u16));
            self.ring.put_available(slot, slot);
            self.fill(slot, &[0; VNET_HEADER_MRG_LEN], frame);
        }
        usize::from(self.post(count as u16))
    }

    /// Sends one frame with a virtio header; answers whether it fitted.
    pub fn send_with(&mut self, header: &[u8; VNET_HEADER_MRG_LEN], frame: &[u8]) -> bool {
        if self.free() == 0 {
            return false;
        }
        let slot = self.ring.mask(self.ring.next);
        self.ring.put_available(slot, slot);
        self.fill(slot, header, frame);
        self.post(1) == 1
    }
}

/// The half that receives: the guest's receive ring. Entry n owns buffer n.
pub struct Receiver {
    /// The ring, for raw access.
    pub ring: Ring,
    frame: Vec<u8>,
    is_mergeable: bool,
}

impl Receiver {
    /// Hands all buffers to the backend, the way a driver does at its start.
    pub fn post_all(&mut self) {
        for slot in 0..self.ring.size {
            let address = self.ring.buffer_address(slot);
            let descriptor = Descriptor { address, len: self.ring.buffer_len as u32, flags: WRITE, next: 0 };
            self.ring.put_descriptor(slot, descriptor);
            self.ring.put_available(slot, slot);
        }
        self.ring.set_available_index(self.ring.seen.wrapping_add(self.ring.size));
    }

    /// Hands out up to `max` frames, each with its virtio header, and gives their buffers back.
    pub fn recv_burst(&mut self, max: usize, mut take: impl FnMut(&[u8; VNET_HEADER_MRG_LEN], &[u8])) -> usize {
        let end = self.ring.used_index();
        let (mut count, mut next) = (0, self.ring.next);
        while count < max && self.ring.seen != end {
            let mut header = [0; VNET_HEADER_MRG_LEN];
            let header_len = self.ring.header_len;
            let mut buffers = 1;
            self.frame.clear();
            while buffers > 0 && self.ring.seen != end {
                let (head, len) = self.ring.used_entry(self.ring.seen);
                let (at, mut len) = (self.ring.buffer_at(head as u16), len as usize);
                let mut skip = 0;
                if self.frame.is_empty() && len >= header_len {
                    self.ring.memory.read(at, &mut header[..header_len]);
                    (skip, len) = (header_len, len - header_len);
                    if self.is_mergeable {
                        buffers = usize::from(u16::from_le_bytes([header[10], header[11]])).max(1);
                    }
                }
                let from = self.frame.len();
                self.frame.resize(from + len, 0);
                self.ring.memory.read(at + skip, &mut self.frame[from..]);
                self.ring.put_available(next, head as u16);
                next = next.wrapping_add(1);
                self.ring.seen = self.ring.seen.wrapping_add(1);
                buffers -= 1;
            }
            take(&header, &self.frame);
            count += 1;
        }
        if next != self.ring.next {
            self.ring.set_available_index(next);
        }
        count
    }

    /// Takes up to `max` used buffers and gives them back unread; answers how many, and their bytes less headers.
    ///
    /// Counts buffers, so frames that were merged count several times.
    #[inline]
    pub fn drain(&mut self, max: u16) -> (u16, u64) {
        let ring = &mut self.ring;
        let count = ring.used_index().wrapping_sub(ring.seen).min(max);
        let mut bytes = 0;
        for at in 0..count {
            let (head, len) = ring.used_entry(ring.seen.wrapping_add(at));
            bytes += u64::from(len).saturating_sub(ring.header_len as u64);
            let position = ring.next.wrapping_add(at);
            // Buffers come back in order, so the entry is nearly always right already and its line stays clean.
            if ring.available_entry(position) != head as u16 {
                ring.put_available(position, head as u16);
            }
        }
        ring.seen = ring.seen.wrapping_add(count);
        if count > 0 {
            ring.set_available_index(ring.next.wrapping_add(count));
        }
        (count, bytes)
    }
}

/// A driver: memory, rings and a connection.
pub struct Driver {
    config: DriverConfig,
    memory: Arc<DriverMemory>,
    listener: Option<UnixListener>,
    stream: Option<Stream>,
    /// Features agreed on.
    pub features: u64,
    /// Protocol features agreed on.
    pub protocol: u64,
    /// What sends.
    pub sender: Sender,
    /// What receives.
    pub receiver: Receiver,
}

impl Driver {
    /// Makes memory and rings, and listens if the config says so. Does not connect.
    ///
    /// # Errors
    /// [`DriverError::Io`].
    pub fn new(config: DriverConfig) -> Result<Driver, DriverError> {
        assert!(config.queue_size.is_power_of_two(), "a ring's size is a power of two");
        let ring_len: usize = Ring::parts(config.queue_size).iter().sum();
        let entries = usize::from(config.queue_size);
        let receive_at = 2 * ring_len;
        let send_at = receive_at + entries * config.receive_buffer_len;
        let len = (send_at + entries * config.send_buffer_len).next_multiple_of(4096);
        let memory = Arc::new(DriverMemory::new(len, config.is_huge).map_err(io("memfd"))?);
        let receive = Ring::new(&memory, config.queue_size, 0, receive_at, config.receive_buffer_len)?;
        let send = Ring::new(&memory, config.queue_size, ring_len, send_at, config.send_buffer_len)?;
        let listener = match config.is_listening {
            true => Some(UnixListener::bind(&config.path).map_err(io("bind"))?),
            false => None,
        };
        Ok(Driver {
            config,
            memory,
            listener,
            stream: None,
            features: 0,
            protocol: 0,
            sender: Sender { ring: send },
            receiver: Receiver { ring: receive, frame: Vec::new(), is_mergeable: false },
        })
    }

    /// The driver's memory, for raw access.
    pub fn memory(&self) -> &Arc<DriverMemory> {
        &self.memory
    }

    /// Connects, agrees on features and starts both rings with all receive buffers posted.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn start(&mut self) -> Result<(), DriverError> {
        self.connect()?;
        self.negotiate()?;
        self.receiver.post_all();
        self.start_rings()
    }

    /// Connects anew after the backend went away and goes on with the rings as they are, as QEMU does with `reconnect`.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn resume(&mut self) -> Result<(), DriverError> {
        self.connect()?;
        self.negotiate()?;
        self.start_rings()
    }

    /// Connects, or waits for a connection; a former one is closed.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn connect(&mut self) -> Result<(), DriverError> {
        self.stream = None;
        let end = Instant::now() + PATIENCE;
        let socket: OwnedFd = match &self.listener {
            Some(listener) => {
                if !wait_readable(listener.as_fd(), PATIENCE) {
                    return Err(DriverError::TimedOut);
                }
                listener.accept().map_err(io("accept"))?.0.into()
            }
            None => loop {
                match UnixStream::connect(&self.config.path) {
                    Ok(socket) => break socket.into(),
                    Err(error) if Instant::now() > end => return Err(io("connect")(error)),
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            },
        };
        self.stream = Some(Stream::new(socket));
        Ok(())
    }

    /// Closes the connection.
    pub fn disconnect(&mut self) {
        self.stream = None;
    }

    /// Everything before the rings: features, owner, memory.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn negotiate(&mut self) -> Result<(), DriverError> {
        let offered = self.ask(&Request::GetFeatures)?;
        self.features = offered & self.config.features;
        self.protocol = 0;
        if offered & self.config.features & F_PROTOCOL_FEATURES != 0 {
            self.protocol = self.ask(&Request::GetProtocolFeatures)? & (protocol::REPLY_ACK | protocol::MQ);
            self.send(&Request::SetProtocolFeatures(self.protocol), &[], false)?;
        }
        self.tell(&Request::SetOwner, &[])?;
        self.tell(&Request::SetFeatures(self.features), &[])?;
        self.set_memory_table()?;
        let has_long_header = self.features & (F_VERSION_1 | F_MRG_RXBUF) != 0;
        let header_len = if has_long_header { VNET_HEADER_MRG_LEN } else { VNET_HEADER_LEN };
        (self.sender.ring.header_len, self.receiver.ring.header_len) = (header_len, header_len);
        self.receiver.is_mergeable = self.features & F_MRG_RXBUF != 0;
        Ok(())
    }

    /// The memory table, as the config wants it cut.
    pub fn memory_table(&self) -> Vec<RegionInfo> {
        let len = self.memory.len() as u64;
        let step = self.config.region_len.unwrap_or(len);
        (0..len)
            .step_by(step as usize)
            .map(|start| RegionInfo {
                guest_address: GUEST_BASE + start,
                size: step.min(len - start),
                user_address: USER_BASE + start,
                file_offset: start,
            })
            .collect()
    }

    /// Sends the memory table.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn set_memory_table(&mut self) -> Result<(), DriverError> {
        let table = self.memory_table();
        let memory = self.memory.clone();
        let files = vec![memory.file(); table.len()];
        self.tell(&Request::SetMemTable(table), &files)
    }

    /// Sends size, base, addresses, kick and call of both rings and enables them. The base is where the used ring
    /// stands, as QEMU restores it.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn start_rings(&mut self) -> Result<(), DriverError> {
        for index in 0..2 {
            self.start_ring(index)?;
        }
        if self.features & F_PROTOCOL_FEATURES != 0 {
            for index in 0..2 {
                self.tell(&Request::SetVringEnable { index, is_enabled: true }, &[])?;
            }
        }
        Ok(())
    }

    fn start_ring(&mut self, index: u32) -> Result<(), DriverError> {
        let ring = if index == 0 { &self.receiver.ring } else { &self.sender.ring };
        let (size, base, addresses) = (ring.size, ring.used_index(), ring.addresses(index));
        let clone = |fd: &OwnedFd| fd.try_clone().map_err(io("dup"));
        let (kick, call) = (clone(&ring.kick)?, clone(&ring.call)?);
        let fd = RingFd { index: index as u8, has_fd: true };
        self.tell(&Request::SetVringNum(RingState { index, value: u32::from(size) }), &[])?;
        self.tell(&Request::SetVringBase(RingState { index, value: u32::from(base) }), &[])?;
        self.tell(&Request::SetVringAddr(addresses), &[])?;
        self.tell(&Request::SetVringKick(fd), &[kick.as_fd()])?;
        self.tell(&Request::SetVringCall(fd), &[call.as_fd()])
    }

    /// Stops both rings; answers where each stood.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn stop_rings(&mut self) -> Result<[u16; 2], DriverError> {
        let mut positions = [0; 2];
        for (index, position) in positions.iter_mut().enumerate() {
            self.send(&Request::GetVringBase(index as u32), &[], false)?;
            match self.receive_reply()? {
                Reply::Ring(ring) => *position = ring.value as u16,
                Reply::Number(_) => return Err(DriverError::Refused { code: Code::GetVringBase }),
            }
        }
        Ok(positions)
    }

    /// Sends a message that has no answer of its own; waits for "done" if `REPLY_ACK` was agreed on.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn tell(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), DriverError> {
        let wants_ack = self.protocol & protocol::REPLY_ACK != 0;
        self.send(request, fds, wants_ack)?;
        if wants_ack && self.receive_reply()? != Reply::Number(0) {
            return Err(DriverError::Refused { code: request.code() });
        }
        Ok(())
    }

    /// Sends a question and answers the number that comes back.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn ask(&mut self, request: &Request) -> Result<u64, DriverError> {
        self.send(request, &[], false)?;
        match self.receive_reply()? {
            Reply::Number(value) => Ok(value),
            Reply::Ring(_) => Err(DriverError::Refused { code: request.code() }),
        }
    }

    /// Sends a message and waits for nothing.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn send(&self, request: &Request, fds: &[BorrowedFd<'_>], needs_reply: bool) -> Result<(), DriverError> {
        self.send_bytes(&request.to_bytes(needs_reply), fds)
    }

    /// Sends bytes, whatever they are.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn send_bytes(&self, mut bytes: &[u8], mut fds: &[BorrowedFd<'_>]) -> Result<(), DriverError> {
        let stream = self.stream.as_ref().ok_or(DriverError::NotConnected)?;
        let end = Instant::now() + PATIENCE;
        while !bytes.is_empty() {
            match stream.send_some(bytes, fds)? {
                0 if Instant::now() > end => return Err(DriverError::TimedOut),
                0 => std::thread::sleep(Duration::from_millis(1)),
                count => (bytes, fds) = (&bytes[count..], &[]),
            }
        }
        Ok(())
    }

    /// Waits for an answer.
    ///
    /// # Errors
    /// [`DriverError`], [`StreamError::Closed`] if the backend hung up instead.
    pub fn receive_reply(&mut self) -> Result<Reply, DriverError> {
        let stream = self.stream.as_mut().ok_or(DriverError::NotConnected)?;
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(message) = stream.receive()? {
                return Ok(Reply::parse(&message.header, &message.payload)?);
            }
            if !wait_readable(stream.as_fd(), end.saturating_duration_since(Instant::now())) {
                return Err(DriverError::TimedOut);
            }
        }
    }

    /// Waits until the backend hangs up; answers whether it did, skipping answers.
    pub fn wait_for_hangup(&mut self) -> bool {
        loop {
            match self.receive_reply() {
                Ok(_) => {}
                Err(DriverError::Stream(_) | DriverError::NotConnected) => return true,
                Err(_) => return false,
            }
        }
    }

    /// A chain of descriptors over the given entries' buffers, each of `len` bytes with `flags`.
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
