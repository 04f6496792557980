//! A network interface of the host, through a packet socket: what is sent leaves by the interface, what it receives is ours.
//!
//! On a TAP of a switch this plays the process behind the TAP; on a NIC or one end of a veth, the wire. Frames wait in
//! slots that hold the filler from the start, and one system call moves a burst. What the device has no room for stays in
//! its slot and goes first the next time: a frame that was taken from the stream leaves once, whatever the kernel says.
//! What does not fit the socket's receive buffer is lost here and not in the switch, so it is told apart. Large frames go and come
//! uncut behind the kernel's virtio header, as a TAP's do.

use super::{Result, Sink, Slice, Source, write_frame};
use crate::traffic::{HEAD, SIZE_MAX, SIZES, Shape};
use anyhow::{Context, ensure};
use std::io::{IoSlice, IoSliceMut};
use switch::af_packet::{BURST_MAX, RawSocket};
use switch::netns;
use switch::offload::VNET_HEADER_LEN;

/// Bytes of a slot: the longest frame, at an odd number of cache lines.
const SLOT: usize = 25 * 64;
/// The same for large frames and their header.
const LARGE_SLOT: usize = 1027 * 64;
/// Bytes of the socket's receive buffer: some ten thousand frames.
const RECEIVE_BUFFER: usize = 32 << 20;

const _: () = assert!(SLOT >= *SIZES.end() && SLOT >= HEAD && (SLOT / 64) % 2 == 1);
const _: () = assert!(LARGE_SLOT >= VNET_HEADER_LEN + SIZE_MAX && (LARGE_SLOT / 64) % 2 == 1);

/// One interface.
pub(crate) struct PacketLink {
    socket: RawSocket,
    name: String,
    /// Bytes of a slot, and of the virtio header at its start.
    slot: usize,
    header: usize,
    slots: Vec<u8>,
    /// Bytes of each slot's header and frame.
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
        socket.set_receive_buffer(RECEIVE_BUFFER).context("a large receive buffer (needs CAP_NET_ADMIN)")?;
        let is_large = shape.segment_size.is_some();
        let (slot, header) = if is_large { (LARGE_SLOT, VNET_HEADER_LEN) } else { (SLOT, 0) };
        let mut slots = super::filled_slots(BURST_MAX, slot, header, &shape.filler);
        if is_large {
            // Past the queueing discipline nobody would cut them for a device that does not.
            socket.use_vnet_header().context("large frames by a packet socket")?;
            for slot in slots.chunks_exact_mut(slot) {
                slot[..header].copy_from_slice(&shape.virtio_header()[..header]);
            }
        } else {
            socket.bypass_queueing()?;
        }
        let arrived = vec![0; BURST_MAX * slot];
        let name = name.to_owned();
        Ok(PacketLink { socket, name, slot, header, slots, lens: [0; BURST_MAX], begin: 0, end: 0, arrived })
    }

    /// Lets leave what waits.
    fn flush(&mut self) -> Result<()> {
        if self.begin == self.end {
            return Ok(());
        }
        let mut frames = [IoSlice::new(&[]); BURST_MAX];
        for (frame, at) in frames.iter_mut().zip(self.begin..self.end) {
            *frame = IoSlice::new(&self.slots[at * self.slot..][..self.lens[at]]);
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
        for (slot, len) in self.slots.chunks_exact_mut(self.slot).zip(&mut self.lens).take(count) {
            let frame = source.next();
            write_frame(&mut slot[self.header..], &frame);
            *len = self.header + frame.len as usize;
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
            let mut chunks = self.arrived.chunks_exact_mut(self.slot);
            let mut buffers: [IoSliceMut<'_>; BURST_MAX] =
                std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
            let room = BURST_MAX.min(max - count);
            let came = self.socket.receive_burst(&mut buffers[..room], &mut sizes);
            let came = came.with_context(|| format!("receiving from {}", self.name))?;
            for (buffer, size) in buffers.iter().zip(sizes).take(came) {
                let size = size.min(buffer.len());
                ensure!(size >= self.header, "{} gave {size} bytes, less than its header", self.name);
                sink.take(&Slice(&buffer[self.header..size]));
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
