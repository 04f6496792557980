//! What frames go through: a guest's virtio device, a TAP, a network interface of the host, or memory of our own.
//!
//! A link moves bursts. It asks the stream for frames one by one and writes each straight to where it leaves from, and it
//! hands what arrived to the sink without copying more than the sink asks for. The calls are generic, so that a frame
//! costs no call through a pointer; only the choice of the link does, once a burst.

pub(crate) mod memory;
pub(crate) mod packet;
pub(crate) mod tap;
pub(crate) mod vhost;
pub(crate) mod xdp;

use crate::options::Arguments;
use crate::traffic::{HEAD, Marks, Outgoing, Stream};
use serde::Serialize;

/// Who has frames to send.
pub(crate) trait Source {
    /// The next frame.
    fn next(&mut self) -> Outgoing<'_>;
    /// Which stream it is.
    fn id(&self) -> u16;
    /// The marks of the frames from the next one on; `None`: they have none.
    fn marks(&self) -> Option<Marks>;
    /// Passes over `count` frames that were made from their marks.
    fn advance(&mut self, count: usize);
}

/// Who takes frames that arrived.
pub(crate) trait Sink {
    /// The byte of a frame that is looked at first.
    fn first_look(&self) -> usize;
    /// A frame.
    fn take(&mut self, frame: &impl Incoming);
    /// `count` frames, oldest first, of which `frame` finds one by its number from 0.
    #[inline]
    fn take_all<I: Incoming>(&mut self, count: usize, frame: impl Fn(usize) -> I) {
        (0..count).for_each(|number| self.take(&frame(number)));
    }
}

/// Which frames lie in a row of buffers that go round.
///
/// Where the number of buffers is a multiple of a stream's cycle, and nobody else's frames went through them since, each
/// buffer holds what goes into it next but for its marks.
#[derive(Clone, Copy, Default, Debug)]
struct Lap {
    /// Buffers in the row; 0: the stream has no cycle that fits.
    buffers: usize,
    /// Whose frames they are, and how many were written in a row.
    stream: u16,
    written: usize,
}

impl Lap {
    /// For a stream that repeats itself after `cycle` frames, in up to `max` buffers.
    fn new(cycle: usize, max: usize) -> Lap {
        Lap { buffers: max / cycle * cycle, stream: 0, written: 0 }
    }

    /// Whether the next frames of the source lie in the next buffers but for their marks. If not, `count` of them are
    /// written there now.
    #[inline]
    fn is_whole(&mut self, source: &impl Source, count: usize) -> bool {
        if self.buffers == 0 {
            return false;
        }
        if self.stream != source.id() {
            (self.stream, self.written) = (source.id(), 0);
        }
        let is_whole = self.written >= self.buffers;
        if !is_whole {
            self.written += count;
        }
        is_whole
    }
}

/// A frame that arrived and still lies where it did.
pub(crate) trait Incoming {
    /// Bytes without the check sequence.
    fn len(&self) -> usize;
    /// The 8 bytes from byte `at` on, which are inside the frame and at least 8 from its end, as a little-endian word.
    #[inline]
    fn word(&self, at: usize) -> u64 {
        self.words(at)[0]
    }
    /// The 16 bytes from byte `at` on, which are inside the frame, as little-endian words.
    fn words(&self, at: usize) -> [u64; 2];
    /// Copies `out.len()` bytes from byte `at` on, which are inside the frame.
    fn read(&self, at: usize, out: &mut [u8]);
}

/// A frame that is a slice.
pub(crate) struct Slice<'a>(pub(crate) &'a [u8]);

impl Incoming for Slice<'_> {
    #[inline]
    fn len(&self) -> usize {
        self.0.len()
    }

    #[inline]
    fn words(&self, at: usize) -> [u64; 2] {
        let bytes = &self.0[at..at + 16];
        let word = |from: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[from + byte]));
        [word(0), word(8)]
    }

    fn read(&self, at: usize, out: &mut [u8]) {
        out.copy_from_slice(&self.0[at..at + out.len()]);
    }
}

/// Writes a frame into a buffer that holds the filler and has room for it and for [`HEAD`] bytes at least.
#[inline]
pub(crate) fn write_frame(buffer: &mut [u8], frame: &Outgoing<'_>) {
    for (chunk, word) in buffer[..HEAD].chunks_exact_mut(8).zip(frame.head) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    if !frame.rest.is_empty() {
        buffer[HEAD..HEAD + frame.rest.len()].copy_from_slice(frame.rest);
    }
}

/// Buffers of `len` bytes, one after another, that hold the filler from byte `at` on.
fn filled_slots(count: usize, len: usize, at: usize, filler: &[u8]) -> Vec<u8> {
    let mut slots = vec![0; count * len];
    for slot in slots.chunks_exact_mut(len) {
        let part = (len - at).min(filler.len());
        slot[at..at + part].copy_from_slice(&filler[..part]);
    }
    slots
}

/// What a link answers, or why it cannot go on.
pub(crate) type Result<T> = anyhow::Result<T>;

/// What a link and its other side agreed on: figures taken under different agreements do not compare.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum Agreed {
    /// Nothing to agree on.
    Memory,
    /// A TAP whose vnet header is ours to fill.
    Tap,
    /// Frames through a packet socket; large ones behind the kernel's virtio header.
    Packet,
    /// Plain frames through AF_XDP sockets: who runs the program that takes them, and who copies them.
    Xdp {
        /// In words.
        mode: &'static str,
    },
    /// By a guest's driver and its device.
    VhostUser(vhost::Features),
}

/// A link of whatever kind.
pub(crate) enum Link {
    /// Memory: what one end sends the other receives.
    Memory(memory::MemoryLink),
    /// A guest's device.
    Vhost(Box<vhost::VhostLink>),
    /// A TAP of our own.
    Tap(tap::TapLink),
    /// An interface of the host by a packet socket.
    Packet(Box<packet::PacketLink>),
    /// The same by AF_XDP.
    Xdp(Box<xdp::XdpLink>),
}

impl Link {
    /// Connects what is still to be connected.
    pub(crate) fn start(&mut self, arguments: &Arguments) -> Result<()> {
        match self {
            Link::Vhost(link) => link.start(arguments),
            Link::Memory(_) | Link::Tap(_) | Link::Packet(_) | Link::Xdp(_) => Ok(()),
        }
    }

    /// Frames that arrived and found no room on our side, since the last call: no loss of the switch.
    pub(crate) fn overflowed(&mut self) -> Result<u64> {
        match self {
            Link::Packet(link) => link.overflowed(),
            Link::Xdp(link) => Ok(link.overflowed()),
            Link::Memory(_) | Link::Vhost(_) | Link::Tap(_) => Ok(0),
        }
    }

    /// Fails if the other side is known to have gone; links of the kernel say so when they are used.
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Link::Vhost(link) => link.check(),
            Link::Memory(_) | Link::Tap(_) | Link::Packet(_) | Link::Xdp(_) => Ok(()),
        }
    }

    /// What it agreed on with its other side.
    pub(crate) fn agreed(&self) -> Agreed {
        match self {
            Link::Memory(_) => Agreed::Memory,
            Link::Tap(_) => Agreed::Tap,
            Link::Packet(_) => Agreed::Packet,
            Link::Xdp(link) => Agreed::Xdp { mode: link.mode() },
            Link::Vhost(link) => Agreed::VhostUser(link.features()),
        }
    }

    /// By one of its queues goes this stream and no other.
    pub(crate) fn dedicate(&mut self, queue: usize, stream: &Stream) {
        match self {
            Link::Memory(link) => link.dedicate(stream),
            Link::Vhost(link) => link.dedicate(queue, stream),
            Link::Tap(_) | Link::Packet(_) | Link::Xdp(_) => {}
        }
    }

    /// Sends up to `max` frames by one of its queues; answers how many it took.
    #[inline]
    pub(crate) fn send(&mut self, queue: usize, max: usize, source: &mut impl Source) -> Result<usize> {
        match self {
            Link::Memory(link) => Ok(link.send(max, source)),
            Link::Vhost(link) => Ok(link.send(queue, max, source)),
            Link::Tap(link) => link.send(max, source),
            Link::Packet(link) => link.send(max, source),
            Link::Xdp(link) => link.send(max, source),
        }
    }

    /// Hands up to `max` frames of each queue to the sink; answers how many there were.
    #[inline]
    pub(crate) fn receive(&mut self, max: usize, sink: &mut impl Sink) -> Result<usize> {
        match self {
            Link::Memory(link) => Ok(link.receive(max, sink)),
            Link::Vhost(link) => Ok(link.receive(max, sink)),
            Link::Tap(link) => link.receive(max, sink),
            Link::Packet(link) => link.receive(max, sink),
            Link::Xdp(link) => Ok(link.receive(max, sink)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::Order;
    use crate::traffic::tests::shape;

    #[test]
    fn a_lap_is_whole_once_all_buffers_hold_frames_of_one_stream() {
        let stream = |id| Stream::new(id, 0, 1, &shape(&[60]), Order::round_robin(10, 10, 10));
        let mut lap = Lap::new(10, 64);
        assert_eq!(lap.buffers, 60);
        assert_eq!([32, 28, 5, 32].map(|count| lap.is_whole(&stream(3), count)), [false, false, true, true]);
        // Somebody else's frame is in the way.
        assert!(!lap.is_whole(&stream(4), 1));
        assert_eq!([59, 1, 1].map(|count| lap.is_whole(&stream(3), count)), [false, false, true]);
        assert!(!Lap::default().is_whole(&stream(3), 0));
    }
}
