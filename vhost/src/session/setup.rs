//! One ring of a session, as far as its peer has told us about it; nothing here has been checked but descriptors.

use crate::call::Call;
use crate::message::RingAddresses;
use crate::port::Use;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// One ring, as far as the peer has told us about it.
pub(super) struct Setup {
    /// Entries; 0 until told.
    pub(super) size: u32,
    /// Where its parts lie.
    pub(super) addresses: Option<RingAddresses>,
    /// Where to go on, as the messages carry it: the available index of a split ring, a
    /// [`PackedPosition`](crate::message::PackedPosition) of a packed one.
    pub(super) base: u32,
    /// Whether `base` is where we stopped ourselves, so that nothing that is written down knows better.
    pub(super) is_base_ours: bool,
    /// Where the frontend last said that the ring begins.
    pub(super) told_base: u32,
    /// `Some` from SET_VRING_KICK on, which starts the ring; without a file descriptor it is only polled.
    pub(super) kick: Option<Option<Arc<OwnedFd>>>,
    /// What interrupts the guest.
    pub(super) call: Option<Arc<Call>>,
    /// What tells the frontend that it is broken.
    pub(super) error: Option<Arc<Call>>,
    /// What SET_VRING_ENABLE made of it; rings begin disabled, unless there are no protocol features.
    pub(super) usage: Use,
    /// What the guest did with it that cannot be; it stands still until it is started anew.
    pub(super) broken: Option<&'static str>,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            size: 0,
            addresses: None,
            base: 0,
            is_base_ours: false,
            told_base: 0,
            kick: None,
            call: None,
            error: None,
            usage: Use::Still,
            broken: None,
        }
    }
}

impl Setup {
    /// Whether it could run.
    pub(super) fn is_whole(&self) -> bool {
        self.size > 0 && self.addresses.is_some() && self.kick.is_some() && self.broken.is_none()
    }
}
