//! A TAP of our own: the host receives what is sent, and what it sends to the TAP is ours. It is gone with the run.
//!
//! So the host's own forwarding can be measured (a bridge, a route, another switch's TAP behind either). A TAP moves one
//! frame a system call. Each slot holds the virtio header and the filler from the start, as a guest's buffers do.

use super::{Result, Sink, Slice, Source, write_frame};
use crate::traffic::{HEAD, SIZE_MAX, Shape};
use anyhow::{Context, ensure};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use switch::offload::VNET_HEADER_MRG_LEN;
use switch::{netns, tap};

/// Bytes of a buffer: the header and the largest frame the kernel can have (`GSO_LEGACY_MAX_SIZE`, Ethernet, two tags).
const BUFFER: usize = VNET_HEADER_MRG_LEN + SIZE_MAX + 1;

const _: () = assert!(BUFFER >= VNET_HEADER_MRG_LEN + HEAD);

/// One TAP.
pub(crate) struct TapLink {
    fd: OwnedFd,
    name: String,
    outgoing: Vec<u8>,
    arrived: Vec<u8>,
    /// Bytes of the frame that still has to leave; zero: none.
    waiting: usize,
}

impl TapLink {
    /// Makes the TAP `name` for `mtu` bytes of L3 payload, in a namespace or in ours.
    pub(crate) fn new(netns: Option<&str>, name: &str, mtu: u16, shape: &Shape) -> Result<TapLink> {
        let netns = netns.map(netns::open).transpose().context("opening its network namespace")?;
        let fd = tap::open_transient(name, netns.as_ref().map(rustix::fd::AsFd::as_fd), mtu)?;
        let mut outgoing = super::filled_slots(1, BUFFER, VNET_HEADER_MRG_LEN, &shape.filler);
        outgoing[..VNET_HEADER_MRG_LEN].copy_from_slice(&shape.virtio_header());
        Ok(TapLink { fd, name: name.to_owned(), outgoing, arrived: vec![0; BUFFER], waiting: 0 })
    }

    /// Lets the waiting frame leave; answers whether none waits any more.
    fn flush(&mut self) -> Result<bool> {
        if self.waiting > 0 {
            match rustix::io::write(&self.fd, &self.outgoing[..self.waiting]) {
                Ok(_) => self.waiting = 0,
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => return Ok(false),
                Err(error) => return Err(error).with_context(|| format!("sending by {}", self.name)),
            }
        }
        Ok(true)
    }

    pub(crate) fn send(&mut self, max: usize, source: &mut impl Source) -> Result<usize> {
        let mut count = 0;
        while count < max && self.flush()? {
            let frame = source.next();
            write_frame(&mut self.outgoing[VNET_HEADER_MRG_LEN..], &frame);
            self.waiting = VNET_HEADER_MRG_LEN + frame.len as usize;
            count += 1;
        }
        self.flush()?;
        Ok(count)
    }

    pub(crate) fn receive(&mut self, max: usize, sink: &mut impl Sink) -> Result<usize> {
        self.flush()?;
        for count in 0..max {
            match rustix::io::read(&self.fd, &mut self.arrived) {
                Ok(len) => {
                    ensure!(len >= VNET_HEADER_MRG_LEN, "{} gave {len} bytes, less than its header", self.name);
                    sink.take(&Slice(&self.arrived[VNET_HEADER_MRG_LEN..len]));
                }
                Err(Errno::AGAIN) => return Ok(count),
                Err(error) => return Err(error).with_context(|| format!("receiving from {}", self.name)),
            }
        }
        Ok(max)
    }
}
