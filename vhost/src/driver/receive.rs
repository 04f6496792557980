//! The half that receives: the guest's receive ring, with all its buffers at the device.
//!
//! Three ways to take frames: [`Receiver::drain`] counts buffers and reads none, [`Receiver::visit`] shows each frame where
//! it lies, [`Receiver::recv_burst`] copies it out. All give the buffers back at once, a burst at a time. With mergeable
//! buffers a frame may fill several; one whose last buffer is not there yet waits for it.

use super::backing::Used;
use super::ring::Ring;
use crate::memory::DriverMemory;
use switch::offload::VNET_HEADER_MRG_LEN;

/// Buffers taken at a time: enough to have their memory on the way, few enough to stay in the first cache.
const CHUNK: usize = 32;

/// What receives. Slot n owns buffer n.
pub struct Receiver {
    /// The ring, for raw access.
    pub ring: Ring,
    /// Buffers taken and not given back yet, oldest first.
    held: Vec<Used>,
    frame: Vec<u8>,
    is_mergeable: bool,
}

/// A frame where it lies, in one buffer or several.
pub struct Received<'r> {
    ring: &'r Ring,
    memory: &'r DriverMemory,
    buffers: &'r [Used],
    header_len: usize,
}

impl Received<'_> {
    /// Bytes of the frame, without the virtio header.
    #[inline]
    pub fn len(&self) -> usize {
        let bytes: usize = self.buffers.iter().map(|used| used.len as usize).sum();
        bytes.saturating_sub(self.header_len)
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Buffers it fills.
    pub fn buffer_count(&self) -> usize {
        self.buffers.len()
    }

    /// The slot of its first buffer.
    pub fn slot(&self) -> u16 {
        self.buffers[0].slot
    }

    /// The virtio header; zeros where there is none.
    #[inline]
    pub fn header(&self) -> [u8; VNET_HEADER_MRG_LEN] {
        let mut header = [0; VNET_HEADER_MRG_LEN];
        let len = self.header_len.min(self.buffers[0].len as usize);
        self.memory.read(self.ring.buffer_at(self.buffers[0].slot), &mut header[..len]);
        header
    }

    /// Copies bytes from byte `at` of the frame on; answers how many there were.
    #[inline]
    pub fn read(&self, at: usize, out: &mut [u8]) -> usize {
        let from = self.header_len + at;
        if from + out.len() <= self.buffers[0].len as usize {
            self.memory.read(self.ring.buffer_at(self.buffers[0].slot) + from, out);
            return out.len();
        }
        self.read_merged(from, out)
    }

    fn read_merged(&self, mut from: usize, out: &mut [u8]) -> usize {
        let mut done = 0;
        for used in self.buffers {
            let len = used.len as usize;
            if from < len {
                let count = (len - from).min(out.len() - done);
                self.memory.read(self.ring.buffer_at(used.slot) + from, &mut out[done..][..count]);
                done += count;
            }
            from = from.saturating_sub(len);
        }
        done
    }

    /// The eight bytes from byte `at` of the frame on, as a number with the first byte on top; zeros beyond its end.
    #[inline]
    pub fn word(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        self.read(at, &mut bytes);
        u64::from_be_bytes(bytes)
    }
}

impl Receiver {
    pub(super) fn new(ring: Ring) -> Receiver {
        let held = Vec::with_capacity(usize::from(ring.slots()) + CHUNK);
        Receiver { ring, held, frame: Vec::new(), is_mergeable: false }
    }

    pub(super) fn agree(&mut self, features: u64, header_len: usize, is_mergeable: bool) {
        self.ring.agree(features, header_len);
        self.is_mergeable = is_mergeable;
    }

    /// Hands all buffers to the backend, the way a driver does at its start.
    pub fn post_all(&mut self) {
        self.held.clear();
        let (slots, len) = (self.ring.slots(), self.ring.buffer_len());
        self.ring.backing().check_len(len);
        for slot in 0..slots {
            self.ring.describe(slot, len as u32);
        }
        let count = match &mut self.ring {
            // From where the used ring stands, whatever was available: all of them, and no more than all.
            Ring::Split(ring) => ring.rewind(),
            Ring::Packed(ring) => ring.vacant(),
        };
        self.ring.post_next(count);
    }

    /// Shows up to `max` frames where they lie, oldest first, and gives their buffers back; answers how many.
    ///
    /// The memory of a frame is asked for some frames before it is shown. Nothing is allocated.
    #[inline]
    pub fn visit(&mut self, max: usize, mut take: impl FnMut(&Received<'_>)) -> usize {
        let mut count = 0;
        while count < max {
            let taken = self.refill((max - count).min(CHUNK));
            let mut done = 0;
            while count < max && done < self.held.len() {
                let buffers = self.frame_buffers(done);
                let Some(buffers) = self.held.get(done..done + buffers) else { break };
                let backing = self.ring.backing();
                let header_len = backing.header_len;
                take(&Received { ring: &self.ring, memory: &backing.memory, buffers, header_len });
                done += buffers.len();
                count += 1;
            }
            self.ring.post_next(done as u16);
            self.held.drain(..done);
            if taken == 0 {
                break;
            }
        }
        count
    }

    /// Takes up to `max` more buffers and asks for their memory; answers how many there were.
    #[inline]
    fn refill(&mut self, max: usize) -> usize {
        let mut used = [Used::default(); CHUNK];
        let count = self.ring.take_used(&mut used[..max]);
        let backing = self.ring.backing();
        for used in &used[..count] {
            backing.memory.prefetch(backing.buffer_at(used.slot));
        }
        self.held.extend_from_slice(&used[..count]);
        count
    }

    /// Buffers of the frame that begins in a held one.
    #[inline]
    fn frame_buffers(&self, at: usize) -> usize {
        let used = self.held[at];
        if !self.is_mergeable || (used.len as usize) < VNET_HEADER_MRG_LEN {
            return 1;
        }
        // Virtio 1.2 section 5.1.6.4.1: `num_buffers`, the last two bytes of the header.
        let mut count = [0; 2];
        let backing = self.ring.backing();
        backing.memory.read(backing.buffer_at(used.slot) + VNET_HEADER_MRG_LEN - 2, &mut count);
        usize::from(u16::from_le_bytes(count)).clamp(1, usize::from(self.ring.slots()))
    }

    /// Hands out up to `max` frames, copied, each with its virtio header, and gives their buffers back.
    pub fn recv_burst(&mut self, max: usize, mut take: impl FnMut(&[u8; VNET_HEADER_MRG_LEN], &[u8])) -> usize {
        let mut frame = std::mem::take(&mut self.frame);
        let count = self.visit(max, |received| {
            frame.clear();
            frame.resize(received.len(), 0);
            received.read(0, &mut frame);
            take(&received.header(), &frame);
        });
        self.frame = frame;
        count
    }

    /// Takes up to `max` used buffers and gives them back unread; answers how many, and their bytes less headers.
    ///
    /// Counts buffers, so frames that were merged count several times.
    #[inline]
    pub fn drain(&mut self, max: u16) -> (u16, u64) {
        let header_len = self.ring.backing().header_len as u64;
        let (mut count, mut bytes) = (0, 0);
        while count < max {
            let mut used = [Used::default(); CHUNK];
            let room = usize::from(max - count).min(CHUNK);
            let taken = if self.held.is_empty() {
                self.ring.take_used(&mut used[..room])
            } else {
                let taken = room.min(self.held.len());
                for (slot, held) in used.iter_mut().zip(self.held.drain(..taken)) {
                    *slot = held;
                }
                taken
            };
            if taken == 0 {
                break;
            }
            bytes += used[..taken].iter().map(|used| u64::from(used.len).saturating_sub(header_len)).sum::<u64>();
            count += taken as u16;
        }
        // One look of the device at the ring for all of them.
        self.ring.post_next(count);
        (count, bytes)
    }
}
