//! The half that sends: the guest's transmit ring, and a buffer for each slot.
//!
//! For load, buffers are filled once and [`Sender::post`] sends them round and round; [`Sender::post_patched`] writes some
//! bytes of each before, say its number. Neither allocates, and the ring is shown to the device once a burst.

use super::ring::Ring;
use switch::offload::VNET_HEADER_MRG_LEN;

/// Slots that [`Sender::post_patched`] asks for ahead of the one it writes.
const AHEAD: u16 = 8;

/// What sends. Slot n owns buffer n.
pub struct Sender {
    /// The ring, for raw access.
    pub ring: Ring,
}

impl Sender {
    /// Puts a frame with its virtio header into the buffer of a slot. Stays there until it is filled again.
    ///
    /// # Panics
    /// If the frame is longer than a buffer, or shorter than its pieces.
    pub fn fill(&mut self, slot: u16, header: &[u8; VNET_HEADER_MRG_LEN], frame: &[u8]) {
        let backing = self.ring.backing();
        let (at, header_len) = (backing.buffer_at(slot), backing.header_len);
        let len = header_len + frame.len();
        backing.check_len(len);
        backing.memory.write(at, &header[..header_len]);
        backing.memory.write(at + header_len, frame);
        self.ring.describe(slot, len as u32);
    }

    /// Fills every buffer in turn from `frames`, to be sent by [`Sender::post`] again and again.
    pub fn fill_all(&mut self, frames: &[Vec<u8>]) {
        for slot in 0..self.ring.slots() {
            self.fill(slot, &[0; VNET_HEADER_MRG_LEN], &frames[usize::from(slot) % frames.len()]);
        }
    }

    /// Uses `count` of the slots and no more, before anything was sent: frames that repeat after so many, or after a part
    /// of so many, then find themselves in their slots again. Only while slots take turns ([`Ring::turn`]); answers whether.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn limit(&mut self, count: u16) -> bool {
        assert!((1..=self.ring.slots()).contains(&count), "a ring of {} slots has no {count}", self.ring.slots());
        if self.ring.turn().is_none() {
            return false;
        }
        self.ring.limit(count);
        true
    }

    /// Buffers that may be posted now.
    #[inline]
    pub fn free(&mut self) -> u16 {
        self.ring.free()
    }

    /// The slot that is posted next but `ahead`, which is less than [`Sender::free`] was.
    #[inline]
    pub fn next_slot(&self, ahead: u16) -> u16 {
        self.ring.next_slot(ahead)
    }

    /// Sends what lies in the next `count` buffers, or in as many as are free; answers how many.
    #[inline]
    pub fn post(&mut self, count: u16) -> u16 {
        let count = count.min(self.free());
        self.ring.post_next(count);
        count
    }

    /// The same, after `N` bytes from byte `at` of each frame on were replaced by what `bytes` answers for the first,
    /// second, … frame of this call.
    #[inline]
    pub fn post_patched<const N: usize>(
        &mut self,
        count: u16,
        at: usize,
        mut bytes: impl FnMut(u16) -> [u8; N],
    ) -> u16 {
        let count = count.min(self.free());
        let backing = self.ring.backing();
        let place = |ahead: u16| backing.buffer_at(self.ring.next_slot(ahead)) + backing.header_len + at;
        for ahead in 0..count.min(AHEAD) {
            backing.memory.prefetch_to_write(place(ahead));
        }
        for number in 0..count {
            if number + AHEAD < count {
                backing.memory.prefetch_to_write(place(number + AHEAD));
            }
            backing.memory.write(place(number), &bytes(number));
        }
        self.ring.post_next(count);
        count
    }

    /// Sends frames with nothing left to do; answers how many fitted.
    pub fn send_burst(&mut self, frames: &[&[u8]]) -> usize {
        let count = usize::from(self.free()).min(frames.len());
        for (ahead, frame) in (0..).zip(&frames[..count]) {
            let slot = self.ring.claim_slot(ahead);
            self.fill(slot, &[0; VNET_HEADER_MRG_LEN], frame);
        }
        self.ring.post_next(count as u16);
        count
    }

    /// Sends one frame with a virtio header; answers whether it fitted.
    pub fn send_with(&mut self, header: &[u8; VNET_HEADER_MRG_LEN], frame: &[u8]) -> bool {
        if self.free() == 0 {
            return false;
        }
        let slot = self.ring.claim_slot(0);
        self.fill(slot, header, frame);
        self.ring.post_next(1);
        true
    }
}
