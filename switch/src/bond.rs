//! Several links to one network as one port: a bond of uplinks.
//!
//! Each link is opened like any device, and its port published at a place of the bond's ([`Bond::link`]) instead of the
//! switch's; the bond publishes one port made of those that are there. Which links may send and which may receive is decided
//! elsewhere, by carrier or by LACP, and told by two words that workers read once a burst ([`Bond::use_links`]): so a link
//! that fails is left at the next burst, without a publication. What comes by a link that may not receive is dropped, or a
//! frame that a switch sent to everybody would come twice.
//!
//! Where several links may send, each flow keeps to one, by a hash over its headers ([`HashPolicy`]), so that none of its frames
//! overtakes another (IEEE 802.1AX-2014 section 6.2.4). Bounds: [`LINKS_MAX`] links.

mod hash;

pub use hash::HashPolicy;

use crate::batch::{BURST, Batch};
use crate::ids::{PortIndex, QueueIndex};
use crate::ledger::{DropReason, Tally};
use crate::port::{Place, Port};
use crate::sync::{AtomicU8, Ordering};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Links of a bond.
pub const LINKS_MAX: usize = 8;

/// Some of a bond's links: bit 0 is the first.
pub type Links = u8;
const _: () = assert!(LINKS_MAX <= Links::BITS as usize);

/// What the control side says and workers read.
struct Use {
    sending: AtomicU8,
    receiving: AtomicU8,
    policy: HashPolicy,
}

/// The control side of a bond.
pub struct Bond {
    place: Arc<dyn Place>,
    usage: Arc<Use>,
    /// Those that are open, in the order in which they came.
    links: Mutex<Vec<Link>>,
}

impl Bond {
    /// A bond of `links` links, of which none is there yet and none may be used, that stands at `place`.
    ///
    /// # Panics
    /// If they are more than [`LINKS_MAX`].
    pub fn new(place: Arc<dyn Place>, links: usize, policy: HashPolicy) -> Arc<Bond> {
        assert!(links <= LINKS_MAX, "the settings were checked");
        let usage = Use { sending: AtomicU8::new(0), receiving: AtomicU8::new(0), policy };
        Arc::new(Bond { place, usage: Arc::new(usage), links: Mutex::default() })
    }

    /// Where the device of a link publishes its port.
    pub fn link(self: &Arc<Bond>, number: usize) -> Arc<dyn Place> {
        Arc::new(LinkPlace { bond: self.clone(), number })
    }

    /// From the next burst on, frames go out by `sending` and come in by `receiving`.
    pub fn use_links(&self, sending: Links, receiving: Links) {
        // Relaxed: each word is all there is to it; a burst that sees the one and not yet the other loses no more than one before.
        self.usage.sending.store(sending, Ordering::Relaxed);
        self.usage.receiving.store(receiving, Ordering::Relaxed);
    }

    fn open(&self) -> MutexGuard<'_, Vec<Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The links whose device is open.
    pub fn open_links(&self) -> Links {
        self.open().iter().fold(0, |links, link| links | 1 << link.number)
    }

    /// Publishes what is there.
    fn publish(&self, links: &[Link]) {
        if !links.is_empty() {
            let rx_queues = links.iter().map(|link| link.port.rx_queues()).sum();
            let tx_queues = links.iter().map(|link| link.port.tx_queues()).max().unwrap_or(1);
            let (links, usage) = (links.to_vec(), self.usage.clone());
            self.place.publish(Arc::new(BondPort { links, rx_queues, tx_queues, usage }));
        }
    }
}

/// The place of one link.
struct LinkPlace {
    bond: Arc<Bond>,
    number: usize,
}

impl Place for LinkPlace {
    fn publish(&self, port: Arc<dyn Port>) {
        let mut links = self.bond.open();
        self.leave(&mut links);
        // Behind the others' queues: those keep their numbers, and so the worker that may be in a round over them.
        let first_queue = links.last().map_or(0, |last| last.first_queue + last.port.rx_queues());
        links.push(Link { number: self.number, first_queue, port });
        self.bond.publish(&links);
    }

    fn withdraw(&self) {
        let mut links = self.bond.open();
        if self.leave(&mut links) {
            self.bond.publish(&links);
        }
    }
}

impl LinkPlace {
    /// Takes the link out; answers whether it was there. Then the bond is gone until it is published again: only so it is known
    /// that no worker holds the link any more, nor is in a round over a queue of the others, whose numbers close up.
    fn leave(&self, links: &mut Vec<Link>) -> bool {
        let Some(at) = links.iter().position(|link| link.number == self.number) else { return false };
        self.bond.place.withdraw();
        links.remove(at);
        let mut first_queue = 0;
        for link in links {
            link.first_queue = first_queue;
            first_queue += link.port.rx_queues();
        }
        true
    }
}

/// A link that is open.
#[derive(Clone)]
struct Link {
    /// Which of the bond's.
    number: usize,
    /// The bond's queue that is this link's first.
    first_queue: u16,
    port: Arc<dyn Port>,
}

impl Link {
    fn is_in(&self, links: Links) -> bool {
        links & 1 << self.number != 0
    }
}

/// The links that are there, as the workers see them.
struct BondPort {
    links: Vec<Link>,
    rx_queues: u16,
    tx_queues: u16,
    usage: Arc<Use>,
}

impl BondPort {
    /// The link that has a queue of the bond, and which of its queues that is.
    #[inline]
    fn of(&self, queue: QueueIndex) -> (&Link, QueueIndex) {
        let link = self.links.iter().rev().find(|link| link.first_queue <= queue.0).expect("the first begins at 0");
        (link, QueueIndex(queue.0 - link.first_queue))
    }

    fn send(link: &Link, queue: QueueIndex, batch: &mut Batch<'_>, picks: &[u8], tally: &mut Tally) {
        link.port.tx(QueueIndex(queue.0 % link.port.tx_queues().max(1)), batch, picks, tally);
    }

    /// Sends each flow by one of the links that may.
    fn spread(&self, sending: Links, queue: QueueIndex, batch: &mut Batch<'_>, picks: &[u8], tally: &mut Tally) {
        let mut usable = [0; LINKS_MAX];
        let mut count = 0;
        for (at, _) in self.links.iter().enumerate().filter(|(_, link)| link.is_in(sending)) {
            usable[count] = at;
            count += 1;
        }
        let mut chosen = [0u8; BURST];
        for (place, &pick) in picks.iter().enumerate() {
            let hash = self.usage.policy.hash(batch.packets()[usize::from(pick)].head());
            chosen[place] = ((u64::from(hash) * count as u64) >> 32) as u8;
        }
        for (number, &at) in usable[..count].iter().enumerate() {
            let (mut own, mut places, mut len) = ([0u8; BURST], [0u8; BURST], 0);
            for (place, &pick) in picks.iter().enumerate() {
                if usize::from(chosen[place]) == number {
                    (own[len], places[len]) = (pick, place as u8);
                    len += 1;
                }
            }
            if len > 0 {
                let mut part = Tally::default();
                BondPort::send(&self.links[at], queue, batch, &own[..len], &mut part);
                tally.add_part(&part, &places[..len]);
            }
        }
    }
}

impl Port for BondPort {
    fn rx_queues(&self) -> u16 {
        self.rx_queues
    }

    fn tx_queues(&self) -> u16 {
        self.tx_queues
    }

    fn rx<'r>(&'r self, ingress: PortIndex, queue: QueueIndex, batch: &mut Batch<'r>, tally: &mut Tally) {
        let (link, own) = self.of(queue);
        let before = batch.len();
        link.port.rx(ingress, own, batch, tally);
        if batch.len() > before && !link.is_in(self.usage.receiving.load(Ordering::Relaxed)) {
            tally.drop_many(DropReason::BondStandby, (batch.len() - before) as u32);
            batch.forget_behind(before);
        }
        for packet in &mut batch.packets_mut()[before..] {
            packet.queue = queue;
        }
    }

    fn rx_done(&self, queue: QueueIndex) {
        let (link, own) = self.of(queue);
        link.port.rx_done(own);
    }

    fn tx(&self, queue: QueueIndex, batch: &mut Batch<'_>, picks: &[u8], tally: &mut Tally) {
        let sending = self.usage.sending.load(Ordering::Relaxed);
        let mut links = self.links.iter().filter(|link| link.is_in(sending));
        match (links.next(), links.next()) {
            (None, _) => tally.drop_many(DropReason::NotReady, picks.len() as u32),
            (Some(link), None) => BondPort::send(link, queue, batch, picks, tally),
            _ => self.spread(sending, queue, batch, picks, tally),
        }
    }

    fn wake_fd(&self, queue: QueueIndex) -> Option<BorrowedFd<'_>> {
        let (link, own) = self.of(queue);
        link.port.wake_fd(own)
    }

    fn tx_wake_fd(&self, queue: QueueIndex) -> Option<BorrowedFd<'_>> {
        let (link, own) = self.of(queue);
        link.port.tx_wake_fd(own)
    }

    fn is_blind(&self, queue: QueueIndex) -> bool {
        let (link, own) = self.of(queue);
        link.port.is_blind(own)
    }

    fn arm(&self, queue: QueueIndex) -> bool {
        let (link, own) = self.of(queue);
        link.port.arm(own)
    }

    fn disarm(&self, queue: QueueIndex) {
        let (link, own) = self.of(queue);
        link.port.disarm(own);
    }

    fn may_doze(&self) -> bool {
        self.links.iter().any(|link| link.port.may_doze())
    }

    fn watched(&self, queue: QueueIndex, is_watched: bool) {
        let (link, own) = self.of(queue);
        link.port.watched(own, is_watched);
    }

    fn is_dozing(&self, queue: QueueIndex) -> bool {
        let (link, own) = self.of(queue);
        link.port.is_dozing(own)
    }

    fn rouse(&self, queue: QueueIndex) {
        let (link, own) = self.of(queue);
        link.port.rouse(own);
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests;
