//! Plain frames through the AF_XDP sockets of an interface, for one thread that is no worker of a switch: a load generator.
//!
//! The sockets, their memory and the program are those of a port; here frames are copied in and out whole, and nothing is left
//! to a device or done for a sender. Everything that the interface receives comes here and not to the host's stack.

use super::port::{XdpConfig, XdpPort};
use super::refill;
use crate::interface::InterfaceError;
use crate::link::LinkWatch;
use crate::sync::Ordering;
use rustix::fd::AsFd;
use std::io;

/// Bytes of the longest frame that is sent or told whole.
pub const FRAME_MAX: usize = 2048;

/// An interface. It is left as it was when this is dropped.
pub struct RawXdp {
    port: XdpPort,
    arrived: Box<[u8; FRAME_MAX]>,
}

impl RawXdp {
    /// The interface of this name, in the calling thread's namespace. Needs CAP_NET_RAW, CAP_NET_ADMIN, CAP_BPF and CAP_IPC_LOCK.
    ///
    /// # Errors
    /// [`InterfaceError`].
    pub fn open(name: &str) -> Result<RawXdp, InterfaceError> {
        let io = |source: io::Error| InterfaceError::Io { what: "asking for the interface", source };
        let status = LinkWatch::open(name).map_err(io)?.and_then(|watch| watch.status());
        let status = status.ok_or_else(|| InterfaceError::NoInterface { name: name.to_owned() })?;
        let port = XdpPort::open(&status, &XdpConfig::default())?;
        Ok(RawXdp { port, arrived: Box::new([0; FRAME_MAX]) })
    }

    /// How frames cross, for people: by whom the program is run, and who copies.
    pub fn mode(&self) -> &'static str {
        self.port.mode()
    }

    /// Sends up to `max` frames by the first queue; `write` writes each into `slot` over the one before it and answers its bytes.
    /// Answers how many it took: none while the interface is down or full.
    ///
    /// # Errors
    /// `ENODEV` once the interface is gone.
    ///
    /// # Panics
    /// If a frame is longer than the slot.
    pub fn send(
        &mut self,
        max: usize,
        slot: &mut [u8; FRAME_MAX],
        mut write: impl FnMut(&mut [u8; FRAME_MAX]) -> usize,
    ) -> io::Result<usize> {
        let queue = self.port.first_queue();
        let mut count = 0;
        if let Some(mut tx) = queue.lock_tx() {
            tx.reap();
            while count < max && tx.has_room(1) {
                let len = write(slot);
                let bytes = &slot[..len];
                tx.put(len, false, |at| {
                    queue.area.segment_mut(at, len).write(bytes);
                });
                count += 1;
            }
            tx.publish();
        }
        if count > 0 || queue.has_unsent.load(Ordering::Relaxed) {
            queue.push_out().map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
        }
        Ok(count)
    }

    /// Hands up to `max` frames of each queue to `take`, a longer one cut to [`FRAME_MAX`]. Answers how many there were.
    pub fn receive(&mut self, max: usize, mut take: impl FnMut(&[u8])) -> usize {
        let mut count = 0;
        for queue in self.port.all_queues() {
            let Some(mut rx) = queue.try_rx() else { continue };
            for _ in 0..max {
                let Some(pieces) = rx.frames.next_pieces() else { break };
                let mut len = 0;
                for piece in (0..pieces).filter_map(|_| rx.frames.take()) {
                    len += queue.area.segment(piece.at, piece.len).read(&mut self.arrived[len..]);
                }
                take(&self.arrived[..len]);
                count += 1;
            }
            if rx.frames.give_back() {
                refill(queue.socket.as_fd());
            }
        }
        count
    }

    /// Frames for this end that were lost for want of room since the last call.
    pub fn lost(&mut self) -> u64 {
        let lost = |queue: &super::queue::Queue| {
            if let Some(mut rx) = queue.try_rx() {
                queue.look_at_losses(&mut rx);
            }
            queue.lost_untold.swap(0, Ordering::Relaxed)
        };
        self.port.all_queues().map(lost).sum()
    }
}
