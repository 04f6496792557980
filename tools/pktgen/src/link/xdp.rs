//! A network interface of the host, through AF_XDP: as [`super::packet`], past the host's stack.
//!
//! Each frame is written to a slot that holds the filler from the start, and copied from there into memory that the kernel
//! reads. What found no room on our side is told apart, as it was not lost in the switch.

use super::{Result, Sink, Slice, Source, write_frame};
use crate::traffic::{HEAD, SIZES, Shape};
use anyhow::Context;
use switch::af_xdp::raw::{FRAME_MAX, RawXdp};
use switch::netns;

const _: () = assert!(FRAME_MAX >= *SIZES.end() && FRAME_MAX >= HEAD);

/// One interface.
pub(crate) struct XdpLink {
    sockets: RawXdp,
    name: String,
    slot: Box<[u8; FRAME_MAX]>,
}

impl XdpLink {
    /// Takes the interface `name`, in a namespace or in ours.
    pub(crate) fn new(netns: Option<&str>, name: &str, shape: &Shape) -> Result<XdpLink> {
        let netns = netns.map(netns::open).transpose().context("opening its network namespace")?;
        let entered = netns.as_ref().map(rustix::fd::AsFd::as_fd);
        let sockets = netns::within(entered, || RawXdp::open(name)).context("entering its network namespace")??;
        let mut slot = Box::new([0; FRAME_MAX]);
        let filled = shape.filler.len().min(FRAME_MAX);
        slot[..filled].copy_from_slice(&shape.filler[..filled]);
        Ok(XdpLink { sockets, name: name.to_owned(), slot })
    }

    /// Who runs the program, and who copies.
    pub(crate) fn mode(&self) -> &'static str {
        self.sockets.mode()
    }

    pub(crate) fn send(&mut self, max: usize, source: &mut impl Source) -> Result<usize> {
        let sent = self.sockets.send(max, &mut self.slot, |slot| {
            let frame = source.next();
            write_frame(slot, &frame);
            frame.len as usize
        });
        sent.with_context(|| format!("sending by {}", self.name))
    }

    pub(crate) fn receive(&mut self, max: usize, sink: &mut impl Sink) -> usize {
        self.sockets.receive(max, |frame| sink.take(&Slice(frame)))
    }

    /// Frames that found no room here since the last call.
    pub(crate) fn overflowed(&mut self) -> u64 {
        self.sockets.lost()
    }
}
