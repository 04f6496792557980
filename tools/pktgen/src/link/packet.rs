//! A network interface of the host, through a packet socket: what is sent leaves by the interface, what it receives is ours.
//!
//! On a TAP of a switch this plays the process behind the TAP; on a NIC or one end of a veth, the wire. Frames wait in
//! slots that hold the filler from the start, and one system call moves a burst. What the device has no room for stays in
//! its slot and goes first the next time: a frame that was taken from the stream leaves once, whatever the kernel says.
//! What does not fit the socket's receive buffer is lost here and not in the switch, so it is told apart.

use super::{Result, Sink, Slice, Source, write_frame};
use crate::traffic::{HEAD, SIZES, Shape};
use anyhow::Context;
use std::io::{IoSlice, IoSliceMut};
use switch::af_packet::{BURST_MAX, RawSocket};
use switch::netns;

/// Bytes of a slot: the longest frame, at an odd number of cache lines.
const SLOT: usize = 25 * 64;
/// Bytes of the socket's receive buffer: some ten thousand frames.
const RECEIVE_BUFFER: usize = 32 << 20;

const _: () = assert!(SLOT >= *SIZES.end() && SLOT >= HEAD && (SLOT / 64) % 2 == 1);

/// One interface.
pub(crate) struct PacketLink {
    socket: RawSocket,
    name: String,
    slots: Vec<u8>,
    lens: [usize; BURST_MAX],
    /// Slots whose frames are still to leave: from `begin` up to `end`.
    begin: usize,
    end: usize,
    arrived: Vec<u8>,
}

impl PacketLink {
    /// Opens a socket on the interface `name`, in a namespace or in ours.
    pub(crate) fn new(netns: Option<&str>, name: &str, shape: &Shape) -> Result<PacketLink> {
        let netns = netns.map(netns::open).transpose().context("opening its network namespace")?;
        let entered = netns.as_ref().map(rustix::fd::AsFd::as_fd);
        let socket = netns::within(entered, || RawSocket::open(name)).context("entering its network namespace")??;
        socket.ignore_outgoing()?;
        socket.bypass_queueing()?;
        socket.set_receive_buffer(RECEIVE_BUFFER).context("a large receive buffer (needs CAP_NET_ADMIN)")?;
        let slots = super::filled_slots(BURST_MAX, SLOT, 0, &shape.filler);
        let arrived = vec![0; BURST_MAX * SLOT];
        Ok(PacketLink { socket, name: name.to_owned(), slots, lens: [0; BURST_MAX], begin: 0, end: 0, arrived })
    }

    /// Lets leave what waits.
    fn flush(&mut self) -> Result<()> {
        if self.begin == self.end {
            return Ok(());
        }
        let mut frames = [IoSlice::new(&[]); BURST_MAX];
        for (frame, at) in frames.iter_mut().zip(self.begin..self.end) {
            *frame = IoSlice::new(&self.slots[at * SLOT..][..self.lens[at]]);
        }
        let count = self.end - self.begin;
        let sent = self.socket.send_burst(&frames[..count]);
        self.begin += sent.with_context(|| format!("sending by {}", self.name))?;
        Ok(())
    }

    pub(crate) fn send(&mut self, max: usize, source: &mut impl Source) -> Result<usize> {
        self.flush()?;
        if self.begin < self.end {
            return Ok(0);
        }
        let count = max.min(BURST_MAX);
        for (slot, len) in self.slots.chunks_exact_mut(SLOT).zip(&mut self.lens).take(count) {
            let frame = source.next();
            write_frame(slot, &frame);
            *len = frame.len as usize;
        }
        (self.begin, self.end) = (0, count);
        self.flush()?;
        Ok(count)
    }

    pub(crate) fn receive(&mut self, max: usize, sink: &mut impl Sink) -> Result<usize> {
        self.flush()?;
        let mut count = 0;
        while count < max {
            let mut sizes = [0; BURST_MAX];
            let mut chunks = self.arrived.chunks_exact_mut(SLOT);
            let mut buffers: [IoSliceMut<'_>; BURST_MAX] =
                std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
            let room = BURST_MAX.min(max - count);
            let came = self.socket.receive_burst(&mut buffers[..room], &mut sizes);
            let came = came.with_context(|| format!("receiving from {}", self.name))?;
            for (buffer, size) in buffers.iter().zip(sizes).take(came) {
                sink.take(&Slice(&buffer[..size.min(SLOT)]));
            }
            count += came;
            if came < room {
                break;
            }
        }
        Ok(count)
    }

    /// Frames that found the receive buffer full since the last call.
    pub(crate) fn overflowed(&self) -> Result<u64> {
        Ok(self.socket.lost()?.into())
    }
}
