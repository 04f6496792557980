//! Who is connected, so that nobody, nor many together, leave no room for others.
//!
//! A peer has a bound of its own. Beyond it, and when there is no room in all, somebody who only waits for his next request
//! makes room: of the peer that has too many, else of the site that has most, the one that waits longest. So a healthy
//! client gets in beside any number of connections that are only held. The last places are kept: some for sites that have
//! few, so that those who keep all theirs busy leave room too, and some for this host, which is never asked to make room for
//! others. A connection with a request or an answer under way is not asked either; if all that could be asked are busy there
//! is no room, and some may wait for it.
//!
//! An answer is under way until the kernel has its last byte. What makes that hard to tell is hyper, which is done with a
//! body before its bytes are written: so the body says that it was handed over, and the next flush that all is written.
//! The accepting task takes seats and connections give them back; the table is as long as there are connections.

use crate::peer::{Peer, Site};
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The time of a seat whose request or answer is under way.
const BUSY: u64 = u64::MAX;
/// Part of all places that is kept for this host, and as much besides for sites with less than [`FEW`] connections.
const KEPT_PART: usize = 8;
/// Connections that are few: what a client and its neighbours behind one address need to get work done.
const FEW: usize = 8;

/// Connections at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PeerLimits {
    /// In all.
    pub(super) all: usize,
    /// Of this host.
    pub(super) loopback: usize,
    /// Of any other peer.
    pub(super) others: usize,
}

/// Who is connected.
pub(super) struct Peers {
    limits: PeerLimits,
    /// What the times of waiting count from.
    begin: Instant,
    table: Mutex<Vec<Arc<Place>>>,
    /// Tells those who wait for a seat that somebody left, or could now make room.
    freed: Notify,
}

/// What is known of a connection.
struct Place {
    peer: Peer,
    /// When it began to wait for a request, microseconds; [`BUSY`] while one or its answer is under way.
    waits_since_us: AtomicU64,
    /// The answer is in hyper's hands, and waits to be written.
    is_handed_over: AtomicBool,
    /// It is to make room, as soon as nothing is under way.
    is_leaving: AtomicBool,
    /// Tells it so.
    leave: Notify,
}

/// A connection's place among all, given back when dropped.
pub(super) struct Seat {
    peers: Arc<Peers>,
    place: Arc<Place>,
}

/// What one site has.
#[derive(Default)]
struct Held {
    count: usize,
    /// The one that waits longest: since when, and where it is in the table.
    longest: Option<(u64, usize)>,
}

impl Peers {
    pub(super) fn new(limits: PeerLimits) -> Arc<Peers> {
        Arc::new(Peers { limits, begin: Instant::now(), table: Mutex::default(), freed: Notify::new() })
    }

    /// A seat for a connection from this address; `None`: there is no room, and nobody who could make some.
    pub(super) fn seat(self: &Arc<Peers>, address: IpAddr) -> Option<Seat> {
        let peer = Peer::of(address);
        let limit = if peer.is_loopback() { self.limits.loopback } else { self.limits.others };
        let mut table = self.table();
        let own = || table.iter().enumerate().filter(|(_, place)| place.peer == peer);
        let leaver = if own().count() >= limit {
            let waiting = own().filter_map(|(at, place)| Some((place.waits_since()?, at)));
            Some(waiting.min()?.1)
        } else if self.has_room(&table, peer) {
            None
        } else {
            Some(leaver_for(&table, peer)?)
        };
        if let Some(leaver) = leaver {
            table.swap_remove(leaver).ask_to_leave();
        }
        let place = Arc::new(Place {
            peer,
            waits_since_us: AtomicU64::new(self.now_us()),
            is_handed_over: AtomicBool::new(false),
            is_leaving: AtomicBool::new(false),
            leave: Notify::new(),
        });
        table.push(place.clone());
        drop(table);
        Some(Seat { peers: self.clone(), place })
    }

    /// A seat, as soon as there is one.
    pub(super) async fn seat_when_free(self: &Arc<Peers>, address: IpAddr) -> Seat {
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            // Before looking, so that nothing is missed in between.
            freed.as_mut().enable();
            if let Some(seat) = self.seat(address) {
                return seat;
            }
            freed.await;
        }
    }

    /// Whether there is a place for one more of this peer that need not be made.
    fn has_room(&self, table: &[Arc<Place>], peer: Peer) -> bool {
        let kept = self.limits.all / KEPT_PART;
        let of_site = || table.iter().filter(|place| place.peer.site() == peer.site()).count();
        let open = match peer {
            peer if peer.is_loopback() => self.limits.all,
            _ if of_site() < FEW => self.limits.all - kept,
            _ => self.limits.all - 2 * kept,
        };
        table.len() < open
    }

    fn now_us(&self) -> u64 {
        self.begin.elapsed().as_micros() as u64
    }

    fn table(&self) -> MutexGuard<'_, Vec<Arc<Place>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who makes room for a peer: of sites that have at least as many as its own will have, the one with the most that has
/// anybody waiting. This host is asked by itself only, and after others.
fn leaver_for(table: &[Arc<Place>], peer: Peer) -> Option<usize> {
    let mut sites = HashMap::<Site, Held>::new();
    for (at, place) in table.iter().enumerate() {
        let held = sites.entry(place.peer.site()).or_default();
        held.count += 1;
        let waits = place.waits_since().map(|since| (since, at));
        held.longest = held.longest.into_iter().chain(waits).min();
    }
    let (own, local) = (peer.site(), Peer::LOOPBACK.site());
    let own_count = if peer.is_loopback() { 0 } else { sites.get(&own).map_or(0, |held| held.count) };
    let others = sites.iter().filter(|(site, held)| **site != local && (**site == own || held.count > own_count));
    let waiting = others.filter_map(|(_, held)| held.longest.map(|longest| (held.count, longest)));
    let fullest = waiting.min_by_key(|(count, longest)| (std::cmp::Reverse(*count), *longest));
    let at_last = || sites.get(&local).filter(|_| peer.is_loopback())?.longest;
    fullest.map(|(_, longest)| longest).or_else(at_last).map(|(_, at)| at)
}

impl Place {
    /// Since when it waits for a request, microseconds; `None` while it does not.
    fn waits_since(&self) -> Option<u64> {
        Some(self.waits_since_us.load(Ordering::Relaxed)).filter(|since| *since != BUSY)
    }

    fn ask_to_leave(&self) {
        self.is_leaving.store(true, Ordering::Relaxed);
        self.leave.notify_one();
    }
}

impl Seat {
    /// A request, or its answer, is under way from now on. A connection has one at a time (HTTP/1.1).
    pub(super) fn begin_request(&self) {
        // What was handed over before has no answer's end any more to tell.
        self.place.is_handed_over.store(false, Ordering::Relaxed);
        self.place.waits_since_us.store(BUSY, Ordering::Relaxed);
    }

    /// Nothing is under way: it waits for its client.
    pub(super) fn wait_for_client(&self) {
        self.place.waits_since_us.store(self.peers.now_us(), Ordering::Relaxed);
        if self.place.is_leaving.load(Ordering::Relaxed) {
            self.place.leave.notify_one();
        }
        self.peers.freed.notify_waiters();
    }

    /// All of the answer is in hyper's hands.
    pub(super) fn hand_over(&self) {
        self.place.is_handed_over.store(true, Ordering::Relaxed);
    }

    /// All that hyper has is written: an answer that was handed over is no longer under way.
    pub(super) fn flushed(&self) {
        if self.place.is_handed_over.swap(false, Ordering::Relaxed) {
            self.wait_for_client();
        }
    }

    /// For how long it has been waiting for its client; `None` while something is under way.
    pub(super) fn waited(&self) -> Option<Duration> {
        let since = self.place.waits_since()?;
        Some(Duration::from_micros(self.peers.now_us().saturating_sub(since)))
    }

    /// Asks it to make room.
    #[cfg(test)]
    pub(super) fn want(&self) {
        self.place.ask_to_leave();
    }

    /// Ready when the connection is to make room for another; once more when nothing is under way any more.
    pub(super) async fn is_wanted(&self) {
        self.place.leave.notified().await;
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.peer.fmt(to)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.peers.table().retain(|place| !Arc::ptr_eq(place, &self.place));
        self.peers.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: PeerLimits = PeerLimits { all: 1024, loopback: 768, others: 128 };

    struct Hall(Arc<Peers>);

    impl Hall {
        fn seat(&self, address: &str) -> Option<Seat> {
            self.0.seat(address.parse().unwrap())
        }

        fn seats(&self, address: &str, count: usize) -> Vec<Seat> {
            (0..count).map(|_| self.seat(address).unwrap()).collect()
        }

        /// Seats of so many addresses, so many each.
        fn crowd(&self, addresses: usize, count: usize) -> Vec<Seat> {
            let addresses = (0..addresses).map(|at| format!("10.9.{}.{}", at / 256, at % 256));
            addresses.flat_map(|address| self.seats(&address, count)).collect()
        }

        fn len(&self) -> usize {
            self.0.table().len()
        }
    }

    fn hall(limits: PeerLimits) -> Hall {
        Hall(Peers::new(limits))
    }

    fn is_wanted(seat: &Seat) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let wanted = async {
            tokio::select! { biased; () = seat.is_wanted() => true, () = async {} => false }
        };
        runtime.block_on(wanted)
    }

    fn wanted(seats: &[Seat]) -> usize {
        seats.iter().filter(|seat| is_wanted(seat)).count()
    }

    #[test]
    fn a_peer_with_all_it_may_have_gives_up_what_waited_longest_and_others_are_not_asked() {
        let hall = hall(PeerLimits { all: 100, loopback: 3, others: 2 });
        let bystander = hall.seat("10.0.0.2").unwrap();
        let seats = hall.seats("10.0.0.1", 2);
        seats[0].begin_request();
        std::thread::sleep(Duration::from_millis(1));
        let third = hall.seat("10.0.0.1").unwrap();
        third.begin_request();
        assert!(is_wanted(&seats[1]) && !is_wanted(&seats[0]) && !is_wanted(&bystander));
        assert!(hall.seat("10.0.0.1").is_none(), "both are busy");
        assert!(hall.seat("10.0.0.3").is_some());
        seats[0].wait_for_client();
        std::thread::sleep(Duration::from_millis(1));
        third.wait_for_client();
        let fourth = hall.seat("10.0.0.1").unwrap();
        assert!(is_wanted(&seats[0]), "it waited a little longer");
        drop((seats, third, fourth));
        assert_eq!(hall.len(), 1, "only who is there has a place");
        assert_eq!(wanted(&hall.seats("127.0.0.1", 3)), 0);
    }

    #[test]
    fn many_peers_who_hold_all_they_may_leave_room_for_one_who_has_none() {
        let hall = hall(LIMITS);
        let held = hall.crowd(9, 128);
        let newcomers = hall.seats("192.0.2.1", 64);
        assert_eq!(wanted(&newcomers), 0);
        assert!(hall.len() <= LIMITS.all);
        let of_first = wanted(&held[..128]);
        assert!((1..128).contains(&of_first), "the fullest make room, and keep as many as others: {of_first}");
        let local = hall.seats("127.0.0.1", LIMITS.loopback);
        assert_eq!((wanted(&local), hall.len() <= LIMITS.all), (0, true), "this host always gets in");
        hall.seats("192.0.2.2", 128);
        assert_eq!(wanted(&local), 0, "and makes room for itself only");
    }

    #[test]
    fn peers_who_keep_all_theirs_busy_leave_room_for_those_with_few_and_for_this_host() {
        let hall = hall(LIMITS);
        let addresses: Vec<_> = (0..40).map(|at| format!("10.9.0.{at}")).collect();
        let take = |address: &String, count: usize| -> Vec<Seat> {
            // Busy at once: who waits would make room for the next of his own.
            let seats = (0..count).filter_map(|_| hall.seat(address));
            seats.inspect(Seat::begin_request).collect()
        };
        let held: Vec<_> = addresses.iter().flat_map(|address| take(address, 128)).collect();
        assert_eq!(held.len(), 896, "a few each of the last ones");
        assert_eq!(wanted(&held), 0, "a request under way is not cut");
        assert!(hall.seat("192.0.2.1").is_none());
        assert_eq!(hall.seats("::1", 128).len(), 128);
        held[0].wait_for_client();
        assert!(hall.seat("192.0.2.1").is_some() && is_wanted(&held[0]));
    }

    #[test]
    fn one_of_each_of_many_addresses_gives_way_to_newcomers_in_the_order_of_waiting() {
        let hall = hall(PeerLimits { all: 80, ..LIMITS });
        let held = hall.crowd(70, 1);
        std::thread::sleep(Duration::from_millis(1));
        held[0].wait_for_client();
        let newcomer = hall.seat("192.0.2.1").unwrap();
        assert!(is_wanted(&held[1]) && !is_wanted(&held[0]) && !is_wanted(&newcomer));
        assert_eq!(hall.len(), 70);
    }

    #[test]
    fn all_networks_of_a_site_count_together() {
        let hall = hall(PeerLimits { all: 160, ..LIMITS });
        let many: Vec<_> = (0..160).filter_map(|at| hall.seat(&format!("2001:db8:7:{at:x}::1"))).collect();
        let others = hall.seats("192.0.2.1", 50);
        assert_eq!(wanted(&others), 0);
        assert_eq!(wanted(&many), many.len() - 78, "one site has 78 and the other 50");
        assert_eq!(hall.len(), 128);
    }

    #[test]
    fn who_finds_all_busy_may_wait_until_one_is_not() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let hall = hall(PeerLimits { all: 1, loopback: 1, others: 1 });
            let first = hall.seat("10.0.0.1").unwrap();
            first.begin_request();
            let mut second = Box::pin(hall.0.seat_when_free("10.0.0.2".parse().unwrap()));
            tokio::select! { biased; _ = &mut second => panic!("there is no room"), () = async {} => {} }
            first.wait_for_client();
            let second = second.await;
            assert!(second.waited().is_some());
            first.is_wanted().await;
        });
    }

    #[test]
    fn one_that_was_busy_when_asked_is_asked_again_when_it_is_not() {
        let hall = hall(PeerLimits { all: 10, loopback: 1, others: 1 });
        let first = hall.seat("10.0.0.1").unwrap();
        let _second = hall.seat("10.0.0.1").unwrap();
        first.begin_request();
        assert!(is_wanted(&first) && !is_wanted(&first));
        first.wait_for_client();
        assert!(is_wanted(&first));
    }

    #[test]
    fn an_answer_is_under_way_until_it_is_flushed() {
        let hall = hall(LIMITS);
        let seat = hall.seat("10.0.0.1").unwrap();
        assert!(seat.waited().is_some());
        seat.begin_request();
        seat.flushed();
        assert_eq!(seat.waited(), None, "the answer is not made");
        seat.hand_over();
        assert_eq!(seat.waited(), None, "it is not written");
        seat.flushed();
        assert!(seat.waited().is_some());
        seat.begin_request();
        seat.hand_over();
        seat.begin_request();
        seat.flushed();
        assert_eq!(seat.waited(), None, "the next request came before the answer to this one was written");
    }
}
