//! A ring of either layout, as senders, receivers and tests use it.
//!
//! The layout is chosen once a call, never once a frame. What only one layout has is found behind [`Ring::split`] and
//! [`Ring::packed`]; the raw accesses of split rings stand here too, since most tests of chains speak of those.

use super::DriverError;
use super::backing::{Backing, Shape, Used};
use super::layout::Place;
use super::packed::PackedRing;
use super::split::SplitRing;
use crate::chain::Descriptor;
use crate::memory::DriverMemory;
use crate::message::RingAddresses;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

/// One ring as the driver sees it. Offsets are into the driver's memory.
pub enum Ring {
    /// Three parts: descriptors, available ring, used ring.
    Split(SplitRing),
    /// One ring that both sides write.
    Packed(PackedRing),
}

macro_rules! either {
    ($ring:expr, $name:ident => $call:expr) => {
        match $ring {
            Ring::Split($name) => $call,
            Ring::Packed($name) => $call,
        }
    };
}

impl Ring {
    /// `is_trusting`: a split ring believes the used index alone, and buffers to come back in order.
    pub(super) fn new(memory: &Arc<DriverMemory>, place: &Place, is_trusting: bool) -> Result<Ring, DriverError> {
        Ok(match place.is_packed {
            true => Ring::Packed(PackedRing::new(memory, place)?),
            false => Ring::Split(SplitRing::new(memory, place, is_trusting)?),
        })
    }

    #[inline]
    pub(super) fn backing(&self) -> &Backing {
        either!(self, ring => &ring.backing)
    }

    /// Takes over what was agreed on.
    pub(super) fn agree(&mut self, features: u64, header_len: usize) {
        either!(self, ring => {
            ring.backing.header_len = header_len;
            ring.agree(features);
        });
    }

    /// The split ring.
    ///
    /// # Panics
    /// If it is packed.
    pub fn split(&self) -> &SplitRing {
        match self {
            Ring::Split(ring) => ring,
            Ring::Packed(_) => panic!("the ring is packed"),
        }
    }

    /// The split ring.
    ///
    /// # Panics
    /// If it is packed.
    pub fn split_mut(&mut self) -> &mut SplitRing {
        match self {
            Ring::Split(ring) => ring,
            Ring::Packed(_) => panic!("the ring is packed"),
        }
    }

    /// The packed ring.
    ///
    /// # Panics
    /// If it is split.
    pub fn packed(&self) -> &PackedRing {
        match self {
            Ring::Packed(ring) => ring,
            Ring::Split(_) => panic!("the ring is split"),
        }
    }

    /// The packed ring.
    ///
    /// # Panics
    /// If it is split.
    pub fn packed_mut(&mut self) -> &mut PackedRing {
        match self {
            Ring::Packed(ring) => ring,
            Ring::Split(_) => panic!("the ring is split"),
        }
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.backing().size
    }

    /// Buffers: as many as there are entries, or fewer if each takes several.
    pub fn slots(&self) -> u16 {
        self.backing().slots
    }

    /// How buffers are described to the device.
    pub fn shape(&self) -> Shape {
        self.backing().shape
    }

    /// Bytes of a buffer, virtio header included.
    pub fn buffer_len(&self) -> usize {
        self.backing().buffer_len
    }

    /// Where the buffer of a slot begins in the driver's memory.
    pub fn buffer_at(&self, slot: u16) -> usize {
        self.backing().buffer_at(slot)
    }

    /// The guest physical address of the buffer of a slot.
    pub fn buffer_address(&self, slot: u16) -> u64 {
        self.backing().address(self.buffer_at(slot))
    }

    /// Used entries the device should not have written: of a buffer it did not have, or longer than the buffer. They are
    /// skipped. A split sender that trusts ([`super::DriverConfig::is_order_trusted`]) does not look.
    pub fn faults(&self) -> u64 {
        self.backing().faults
    }

    /// Makes one chain available and kicks if wanted: a row of descriptors with any address, length and flags. On a split
    /// ring they are entries of the table from `id` on, on a packed one the next in the ring, and `id` is the chain's id.
    ///
    /// Do not mix with the bursts of a [`super::Sender`] or [`super::Receiver`] while slots of the same number are under way.
    pub fn post_chain(&mut self, id: u16, chain: &[Descriptor]) {
        either!(self, ring => ring.post_chain(id, chain));
    }

    /// Takes what the device is done with, as much as there is room for; answers how much.
    #[inline]
    pub fn take_used(&mut self, out: &mut [Used]) -> usize {
        either!(self, ring => ring.take(out))
    }

    /// Whether the backend asks to be kicked for what is made available next.
    pub fn wants_kick(&self) -> bool {
        either!(self, ring => ring.wants_kick())
    }

    /// Kicks, wanted or not.
    pub fn kick(&self) {
        self.backing().kick();
    }

    /// The eventfd by which the backend is kicked.
    pub fn kick_fd(&self) -> BorrowedFd<'_> {
        self.backing().kick.as_fd()
    }

    /// The eventfd by which the backend interrupts.
    pub fn call_fd(&self) -> BorrowedFd<'_> {
        self.backing().call.as_fd()
    }

    /// Asks the backend for interrupts, or for none. With event indices: for one, when the next buffer is used; so ask
    /// again after each.
    pub fn set_interrupts(&self, are_wanted: bool) {
        either!(self, ring => ring.set_interrupts(are_wanted));
    }

    /// Waits for an interrupt and takes it; answers whether one came.
    pub fn wait_for_interrupt(&self, timeout: Duration) -> bool {
        self.backing().wait_for_interrupt(timeout)
    }

    /// Forgets everything, as after a reset of the device: nothing is available or used, and every slot is free.
    pub fn reset(&mut self) {
        either!(self, ring => ring.reset());
    }

    /// What SET_VRING_BASE says when the ring starts: the split ring's used index, or the packed ring's two positions.
    pub fn base(&self) -> u32 {
        either!(self, ring => ring.base())
    }

    /// What SET_VRING_ADDR says.
    pub fn addresses(&self, index: u32) -> RingAddresses {
        either!(self, ring => ring.addresses(index))
    }

    #[inline]
    pub(super) fn free(&mut self) -> u16 {
        either!(self, ring => ring.free())
    }

    /// The slot that is made available next but `ahead`, which is less than the free ones.
    #[inline]
    pub fn next_slot(&self, ahead: u16) -> u16 {
        either!(self, ring => ring.next_slot(ahead))
    }

    /// The slot that is made available next, if the free ones after it follow in the order of their numbers, the first after
    /// the last: so it is where a split ring believes its device to keep the order, and where a packed one's did so far.
    #[inline]
    pub fn turn(&self) -> Option<u16> {
        either!(self, ring => ring.turn())
    }

    pub(super) fn limit(&mut self, count: u16) {
        either!(self, ring => ring.limit(count));
    }

    /// Makes the next `count` free slots available, as they are described, and shows them to the device at once.
    #[inline]
    pub fn post_next(&mut self, count: u16) {
        either!(self, ring => ring.post_next(count));
    }

    /// Describes the first `len` bytes of a free slot's buffer, virtio header included; stays so until it is told again.
    #[inline]
    pub fn describe(&mut self, slot: u16, len: u32) {
        either!(self, ring => ring.describe(slot, len));
    }

    pub(super) fn claim_slot(&self, ahead: u16) -> u16 {
        match self {
            Ring::Split(ring) => ring.claim_slot(ahead),
            Ring::Packed(ring) => ring.next_slot(ahead),
        }
    }
}

/// Raw access to a split ring; each panics if the ring is packed.
impl Ring {
    /// See [`SplitRing::next`].
    pub fn next(&self) -> u16 {
        self.split().next()
    }

    /// See [`SplitRing::put_descriptor`].
    pub fn put_descriptor(&self, index: u16, descriptor: Descriptor) {
        self.split().put_descriptor(index, descriptor);
    }

    /// See [`SplitRing::put_available`].
    pub fn put_available(&mut self, position: u16, head: u16) {
        self.split_mut().put_available(position, head);
    }

    /// See [`SplitRing::set_available_index`].
    pub fn set_available_index(&mut self, index: u16) {
        self.split_mut().set_available_index(index);
    }

    /// See [`SplitRing::post_head`].
    pub fn post_head(&mut self, head: u16) {
        self.split_mut().post_head(head);
    }

    /// See [`SplitRing::used_index`].
    pub fn used_index(&self) -> u16 {
        self.split().used_index()
    }

    /// See [`SplitRing::used_entry`].
    pub fn used_entry(&self, position: u16) -> (u32, u32) {
        self.split().used_entry(position)
    }
}
