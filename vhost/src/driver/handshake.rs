//! What a driver says over the socket to bring its rings up and down, in the order in which QEMU says it.
//!
//! Every message can also be sent by itself, out of order or as raw bytes: [`Driver::tell`], [`Driver::ask`],
//! [`Driver::send_bytes`].

use super::{Driver, DriverError, GUEST_BASE, PATIENCE, Ring, USER_BASE, io, wait_readable};
use crate::message::{
    Code, F_PROTOCOL_FEATURES, InflightInfo, RegionInfo, Reply, Request, RingFd, RingState, protocol,
};
use crate::net::{F_MRG_RXBUF, F_RING_PACKED, F_VERSION_1};
use crate::socket::{Incoming, Stream};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use switch::offload::{VNET_HEADER_LEN, VNET_HEADER_MRG_LEN};

impl Driver {
    /// Connects, agrees on features and starts all rings with all receive buffers posted.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn start(&mut self) -> Result<(), DriverError> {
        self.connect()?;
        self.negotiate()?;
        for (_, receiver) in self.pairs() {
            receiver.post_all();
        }
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

    /// The same with no better knowledge than QEMU's: rings go on where one of the two sides last said they stand, which for
    /// packed rings is where they were started. What happened since, the backend must know.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn resume_blindly(&mut self) -> Result<(), DriverError> {
        self.connect()?;
        self.negotiate()?;
        for index in 0..self.bases.len() as u32 {
            let base = match self.ring(index) {
                Ring::Split(ring) => u32::from(ring.used_index()),
                Ring::Packed(_) => self.bases[index as usize],
            };
            self.start_ring_at(index, base)?;
        }
        self.enable_rings()
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

    /// Whether there is a connection that the backend has not closed.
    pub fn is_connected(&self) -> bool {
        let Some(stream) = &self.stream else { return false };
        let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
        let polled = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        polled.is_err() || fds[0].revents().is_empty()
    }

    /// Closes the connection.
    pub fn disconnect(&mut self) {
        self.stream = None;
    }

    /// Everything before the rings: features, owner, memory.
    ///
    /// # Errors
    /// [`DriverError`]; [`DriverError::NotOffered`] if the rings are packed and the backend knows none.
    pub fn negotiate(&mut self) -> Result<(), DriverError> {
        let offered = self.ask(&Request::GetFeatures)?;
        self.features = offered & self.config.features;
        let missing = self.config.features & !offered & F_RING_PACKED;
        if missing != 0 {
            return Err(DriverError::NotOffered { features: missing });
        }
        self.protocol = 0;
        if self.features & F_PROTOCOL_FEATURES != 0 {
            self.protocol = self.ask(&Request::GetProtocolFeatures)? & self.config.protocol;
            self.send(&Request::SetProtocolFeatures(self.protocol), &[], false)?;
        }
        self.tell(&Request::SetOwner, &[])?;
        self.tell(&Request::SetFeatures(self.features), &[])?;
        self.set_memory_table()?;
        if self.protocol & protocol::INFLIGHT_SHMFD != 0 {
            self.share_inflight()?;
        }
        let features = self.features;
        let has_long_header = features & (F_VERSION_1 | F_MRG_RXBUF) != 0;
        let header_len = if has_long_header { VNET_HEADER_MRG_LEN } else { VNET_HEADER_LEN };
        for (sender, receiver) in self.pairs() {
            sender.ring.agree(features, header_len);
            receiver.agree(features, header_len, features & F_MRG_RXBUF != 0);
        }
        Ok(())
    }

    /// Asks for an inflight area if there is none yet, and hands it to the backend.
    fn share_inflight(&mut self) -> Result<(), DriverError> {
        let kept = match self.inflight.take() {
            Some(kept) => kept,
            None => {
                let (ring_count, ring_size) = (2 * self.config.pairs, self.config.queue_size);
                let wish = InflightInfo { size: 0, file_offset: 0, ring_count, ring_size };
                self.send(&Request::GetInflightFd(wish), &[], false)?;
                let Incoming { header, payload, fds } = self.receive_message()?;
                match (Reply::parse(&header, &payload)?, fds.into_iter().next()) {
                    (Reply::Inflight(info), Some(file)) => (info, file),
                    _ => return Err(DriverError::Refused { code: Code::GetInflightFd }),
                }
            }
        };
        let (info, file) = self.inflight.insert(kept);
        let (info, file) = (*info, file.try_clone().map_err(io("dup"))?);
        self.tell(&Request::SetInflightFd(info), &[file.as_fd()])
    }

    /// The inflight area that a backend made, for raw access.
    pub fn inflight(&self) -> Option<(InflightInfo, BorrowedFd<'_>)> {
        self.inflight.as_ref().map(|(info, file)| (*info, file.as_fd()))
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

    /// Sends size, base, addresses, kick and call of all rings and enables them. The base is where the used ring stands,
    /// as QEMU restores it.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn start_rings(&mut self) -> Result<(), DriverError> {
        let rings = 2 * self.pair_count() as u32;
        for index in 0..rings {
            self.start_ring(index)?;
        }
        self.enable_rings()
    }

    fn enable_rings(&mut self) -> Result<(), DriverError> {
        if self.features & F_PROTOCOL_FEATURES != 0 {
            for index in 0..2 * self.pair_count() as u32 {
                self.tell(&Request::SetVringEnable { index, is_enabled: true }, &[])?;
            }
        }
        Ok(())
    }

    /// Sends size, base, addresses, kick and call of one ring; even numbers receive.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn start_ring(&mut self, index: u32) -> Result<(), DriverError> {
        let base = self.ring(index).base();
        self.start_ring_at(index, base)
    }

    fn start_ring_at(&mut self, index: u32, base: u32) -> Result<(), DriverError> {
        let ring = self.ring(index);
        let (size, addresses) = (ring.size(), ring.addresses(index));
        let clone = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(io("dup"));
        let (kick, call) = (clone(ring.kick_fd())?, clone(ring.call_fd())?);
        let fd = RingFd { index: index as u8, has_fd: true };
        self.bases[index as usize] = base;
        self.tell(&Request::SetVringNum(RingState { index, value: u32::from(size) }), &[])?;
        self.tell(&Request::SetVringBase(RingState { index, value: base }), &[])?;
        self.tell(&Request::SetVringAddr(addresses), &[])?;
        self.tell(&Request::SetVringKick(fd), &[kick.as_fd()])?;
        self.tell(&Request::SetVringCall(fd), &[call.as_fd()])
    }

    /// Stops all rings, running or not; answers where each stood, in the order of their numbers.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn stop_rings(&mut self) -> Result<Vec<u32>, DriverError> {
        (0..2 * self.pair_count() as u32).map(|index| self.stop_ring(index)).collect()
    }

    /// Stops one ring, running or not; answers where it stood: an index, or the two positions of a packed ring.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn stop_ring(&mut self, index: u32) -> Result<u32, DriverError> {
        self.send(&Request::GetVringBase(index), &[], false)?;
        match self.receive_reply()? {
            Reply::Ring(ring) => {
                self.bases[index as usize] = ring.value;
                Ok(ring.value)
            }
            _ => Err(DriverError::Refused { code: Code::GetVringBase }),
        }
    }

    /// Switches both rings of a pair on or off while the others go on.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn enable_pair(&mut self, pair: usize, is_enabled: bool) -> Result<(), DriverError> {
        for index in [2 * pair as u32, 2 * pair as u32 + 1] {
            self.tell(&Request::SetVringEnable { index, is_enabled }, &[])?;
        }
        Ok(())
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
            _ => Err(DriverError::Refused { code: request.code() }),
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
    /// [`DriverError`], [`StreamError::Closed`](crate::socket::StreamError::Closed) if the backend hung up instead.
    pub fn receive_reply(&mut self) -> Result<Reply, DriverError> {
        let message = self.receive_message()?;
        Ok(Reply::parse(&message.header, &message.payload)?)
    }

    /// Waits for an answer, which stays as it came, with the file descriptors beside it.
    ///
    /// # Errors
    /// [`DriverError`], [`StreamError::Closed`](crate::socket::StreamError::Closed) if the backend hung up instead.
    pub fn receive_message(&mut self) -> Result<Incoming, DriverError> {
        let stream = self.stream.as_mut().ok_or(DriverError::NotConnected)?;
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(message) = stream.receive()? {
                return Ok(message);
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
}
