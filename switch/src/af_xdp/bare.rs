//! What can be done at least by AF_XDP: a forwarder between two interfaces that looks at nothing, a source of frames and a sink;
//! and the least program that shares an interface with the host.
//! Behind the feature `testing`: the benches hold the switch against it.
//!
//! The forwarder copies nothing: one memory is registered with the sockets of both interfaces, and a frame that one received is
//! put into the ring by which the other sends. So a frame goes round by four rings: filled, received, sent, completed, and
//! back to the fill ring of the interface that it came by. Each is owned by the thread that steps it.

use super::bpf::{Link, Program, SocketMap};
use super::frames::{Frame, Layout};
use super::program::{self, Steered, Steering, Unclaimed};
use super::queue::Queue;
use super::{Bound, RING_LEN, XdpSocket};
use crate::batch::BURST;
use crate::interface::InterfaceError;
use crate::link::LinkWatch;
use crate::pool::Area;
use rustix::fd::AsFd;
use std::io;
use std::sync::Arc;

/// Bytes of a frame of memory.
const FRAME_SIZE: u32 = 2048;

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> InterfaceError {
    move |source| InterfaceError::Io { what, source }
}

fn index_of(name: &str) -> Result<u32, InterfaceError> {
    let watch = LinkWatch::open(name).map_err(failed("asking for the interface"))?;
    let status = watch.and_then(|watch| watch.status());
    Ok(status.ok_or_else(|| InterfaceError::NoInterface { name: name.to_owned() })?.index)
}

fn socket(index: u32, area: &Arc<Area>, layout: Layout, frames: [Vec<Frame>; 2]) -> Result<Queue, InterfaceError> {
    match XdpSocket::open(index, 0, area.clone(), layout, frames, false)? {
        Bound::Socket(socket) => Queue::new(*socket, None).map_err(failed("making a descriptor")),
        Bound::NoQueue => Err(failed("binding to queue 0")(io::ErrorKind::Unsupported.into())),
    }
}

/// A forwarder between two interfaces.
pub struct Bare {
    _links: [Link; 2],
    _programs: [(SocketMap, Steered); 2],
    queues: [Queue; 2],
}

impl Bare {
    /// Between these two, in the calling thread's namespace.
    ///
    /// # Errors
    /// [`InterfaceError`].
    pub fn open(names: [&str; 2]) -> Result<Bare, InterfaceError> {
        let layout = Layout { frame_size: FRAME_SIZE, count: 2 * RING_LEN };
        let area = Arc::new(Area::huge(layout.bytes()).map_err(failed("mapping memory"))?);
        let indices = [index_of(names[0])?, index_of(names[1])?];
        let queues = [
            socket(indices[0], &area, layout, [Frame::numbered(0..RING_LEN), Vec::new()])?,
            socket(indices[1], &area, layout, [Frame::numbered(RING_LEN..2 * RING_LEN), Vec::new()])?,
        ];
        let program = |at: usize| -> io::Result<_> {
            let sockets = SocketMap::new(1)?;
            sockets.set(0, queues[at].socket.as_fd())?;
            let steered = program::load(&Steering::Everything, &sockets, Unclaimed::Pass)?;
            let link = steered.program.attach(indices[at])?;
            Ok((link, (sockets, steered)))
        };
        let [(one, first), (other, second)] =
            [program(0).map_err(failed("attaching a program"))?, program(1).map_err(failed("attaching a program"))?];
        Ok(Bare { _links: [one, other], _programs: [first, second], queues })
    }

    /// Forwards a burst each way; answers how many frames.
    pub fn step(&mut self) -> usize {
        self.forward(0, 1) + self.forward(1, 0)
    }

    fn forward(&mut self, from: usize, to: usize) -> usize {
        let [from, to] = self.queues.get_disjoint_mut([from, to]).expect("two queues");
        let mut rx = from.try_rx().expect("nobody else has it");
        let mut tx = to.lock_tx().expect("nobody else has it");
        // What the other has sent goes back to where it came from.
        tx.reap_into(|frame| rx.frames.lend(frame));
        let mut taken = 0;
        while taken < BURST {
            let Some((frame, at, len)) = rx.frames.take_whole() else { break };
            taken += 1;
            if let Err(frame) = tx.put_whole(frame, at, len) {
                rx.frames.lend(frame);
            }
        }
        rx.frames.give_back();
        if taken > 0 {
            tx.publish();
            drop(tx);
            let _ = to.push_out();
        }
        taken
    }
}

/// Sends the same frames again and again.
pub struct Source {
    queue: Queue,
    frames: usize,
    next: usize,
    len: usize,
}

impl Source {
    /// By this interface, in the calling thread's namespace; all frames are of one length.
    ///
    /// # Errors
    /// [`InterfaceError`].
    pub fn open(name: &str, frames: &[Vec<u8>]) -> Result<Source, InterfaceError> {
        let layout = Layout { frame_size: FRAME_SIZE, count: frames.len() as u32 };
        let area = Arc::new(Area::huge(layout.bytes()).map_err(failed("mapping memory"))?);
        for (number, frame) in frames.iter().enumerate() {
            area.segment_mut(number * FRAME_SIZE as usize, FRAME_SIZE as usize).write(frame);
        }
        let queue = socket(index_of(name)?, &area, layout, [Vec::new(), Vec::new()])?;
        Ok(Source { queue, frames: frames.len(), next: 0, len: frames.first().map_or(0, Vec::len) })
    }

    /// Sends up to so many; answers how many the kernel took. The kernel only reads a frame, so it may have one twice.
    pub fn send(&mut self, count: usize) -> usize {
        let before = self.queue.sending.taken();
        let mut tx = self.queue.lock_tx().expect("nobody else has it");
        tx.reap_into(drop);
        for _ in 0..count {
            if !tx.put_again(self.next, self.len) {
                break;
            }
            self.next = (self.next + 1) % self.frames;
        }
        tx.publish();
        drop(tx);
        let _ = self.queue.push_out();
        self.queue.sending.taken().wrapping_sub(before) as usize
    }
}

/// Does the same with every frame.
fn attach_always(name: &str, action: i32) -> Result<(Link, Program), InterfaceError> {
    let program = Program::load(&program::always(action)).map_err(failed("loading a program"))?;
    let link = program.attach(index_of(name)?).map_err(failed("attaching a program"))?;
    Ok((link, program))
}

/// Drops what an interface receives, before the kernel makes packets of it.
pub struct Sink {
    _attached: (Link, Program),
}

impl Sink {
    /// At this interface, in the calling thread's namespace.
    ///
    /// # Errors
    /// [`InterfaceError`].
    pub fn open(name: &str) -> Result<Sink, InterfaceError> {
        Ok(Sink { _attached: attach_always(name, program::DROP)? })
    }
}

/// Passes what an interface receives on to the host: what any program costs it at least.
pub struct Passing {
    _attached: (Link, Program),
}

impl Passing {
    /// At this interface, in the calling thread's namespace.
    ///
    /// # Errors
    /// [`InterfaceError`].
    pub fn open(name: &str) -> Result<Passing, InterfaceError> {
        Ok(Passing { _attached: attach_always(name, program::PASS)? })
    }
}
