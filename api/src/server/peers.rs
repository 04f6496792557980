//! Who is connected, by address, so that one peer leaves room for others.
//!
//! A peer is this host, an IPv4 address, or an IPv6 network of 64 bits, because a host may use all addresses of one (RFC 4291 section
//! 2.5.4). Who comes when its peer has all it may have takes the place of the one of the same peer that has been waiting
//! longest without a request: a healthy client gets in beside connections that are only held. If all of them are busy
//! there is no room. The accepting task takes seats and connections give them back; the table is as large as there are
//! connections.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;

/// Bits of an IPv6 address that are one peer's.
const IPV6_PREFIX_BITS: u32 = 64;
/// The time of a seat whose request is under way.
const BUSY: u64 = u64::MAX;

/// Whoever has an address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Peer(IpAddr);

impl Peer {
    /// The one who has this address.
    pub(crate) fn of(address: IpAddr) -> Peer {
        Peer(match address.to_canonical() {
            // This host has all of 127.0.0.0/8.
            address if address.is_loopback() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(address) => {
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (128 - IPV6_PREFIX_BITS))))
            }
            address => address,
        })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V6(address) => write!(to, "{address}/{IPV6_PREFIX_BITS}"),
            address => address.fmt(to),
        }
    }
}

/// Connections of one peer at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PeerLimits {
    pub(super) loopback: usize,
    pub(super) others: usize,
}

/// Who is connected.
pub(super) struct Peers {
    limits: PeerLimits,
    /// What the times of waiting count from.
    begin: Instant,
    table: Mutex<HashMap<Peer, Vec<Arc<Place>>>>,
}

/// What is known of a connection.
struct Place {
    /// When it began to wait for a request, microseconds; [`BUSY`] while one is under way.
    waits_since_us: AtomicU64,
    /// It is to make room.
    leave: Notify,
}

/// A connection's place among its peer's, given back when dropped.
pub(super) struct Seat {
    peers: Arc<Peers>,
    peer: Peer,
    place: Arc<Place>,
}

/// A request is under way on a connection, until this is dropped.
pub(super) struct Busy(Arc<Seat>);

impl Peers {
    pub(super) fn new(limits: PeerLimits) -> Arc<Peers> {
        Arc::new(Peers { limits, begin: Instant::now(), table: Mutex::default() })
    }

    /// A seat for a connection from this address; `None`: its peer has all it may have, each busy.
    pub(super) fn seat(self: &Arc<Peers>, address: IpAddr) -> Option<Seat> {
        let peer = Peer::of(address);
        let limit = if peer.0.is_loopback() { self.limits.loopback } else { self.limits.others };
        let place = Arc::new(Place { waits_since_us: AtomicU64::new(self.now_us()), leave: Notify::new() });
        let mut table = self.table();
        let places = table.entry(peer).or_default();
        if places.len() >= limit {
            let since = |place: &Place| place.waits_since_us.load(Ordering::Relaxed);
            let waiting = places.iter().enumerate().filter(|(_, place)| since(place) != BUSY);
            let (longest, _) = waiting.min_by_key(|(_, place)| since(place))?;
            places.swap_remove(longest).leave.notify_one();
        }
        places.push(place.clone());
        drop(table);
        Some(Seat { peers: self.clone(), peer, place })
    }

    fn now_us(&self) -> u64 {
        self.begin.elapsed().as_micros() as u64
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Peer, Vec<Arc<Place>>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Marks it busy. A connection has one request under way at a time (HTTP/1.1).
    pub(super) fn begin_request(self: &Arc<Seat>) -> Busy {
        self.place.waits_since_us.store(BUSY, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// Ready when the connection is to make room for another.
    pub(super) async fn is_wanted(&self) {
        self.place.leave.notified().await;
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.peer.fmt(to)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.place.waits_since_us.store(self.0.peers.now_us(), Ordering::Relaxed);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut table = self.peers.table();
        if let Some(places) = table.get_mut(&self.peer) {
            places.retain(|place| !Arc::ptr_eq(place, &self.place));
            if places.is_empty() {
                table.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn is_wanted(seat: &Seat) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let wanted = async {
            tokio::select! { biased; () = seat.is_wanted() => true, () = async {} => false }
        };
        runtime.block_on(wanted)
    }

    #[test]
    fn addresses_of_one_host_are_one_peer() {
        let is_one = |one: &str, other: &str| Peer::of(ip(one)) == Peer::of(ip(other));
        assert!(is_one("2001:db8::1", "2001:db8::ffff:1"));
        assert!(is_one("10.0.0.1", "::ffff:10.0.0.1"));
        assert!(is_one("127.0.0.1", "127.9.9.9") && is_one("127.0.0.1", "::1"));
        for (one, other) in [("2001:db8::1", "2001:db8:0:1::1"), ("10.0.0.1", "10.0.0.2"), ("::1", "::2")] {
            assert!(!is_one(one, other), "{one} {other}");
        }
    }

    #[test]
    fn a_peer_with_all_it_may_have_gives_up_what_waited_longest_and_others_are_not_asked() {
        let peers = Peers::new(PeerLimits { loopback: 3, others: 2 });
        let seat = |address| peers.seat(ip(address)).map(Arc::new);
        let bystander = seat("10.0.0.2").unwrap();
        let seats: Vec<_> = (0..2).map(|_| seat("10.0.0.1").unwrap()).collect();
        let busy = seats[0].begin_request();
        std::thread::sleep(std::time::Duration::from_millis(1));
        let third = seat("10.0.0.1").unwrap();
        let third_busy = third.begin_request();
        assert!(is_wanted(&seats[1]) && !is_wanted(&seats[0]) && !is_wanted(&bystander));
        assert!(seat("10.0.0.1").is_none(), "both are busy");
        assert!(seat("10.0.0.3").is_some());
        drop((busy, third_busy));
        let fourth = seat("10.0.0.1").unwrap();
        assert!(is_wanted(&seats[0]), "it waited a little longer");
        drop((seats, third, fourth));
        assert_eq!(peers.table().len(), 1, "only who is there has an entry");
        let loopback: Vec<_> = (0..3).map(|_| seat("127.0.0.1").unwrap()).collect();
        assert!(loopback.iter().all(|seat| !is_wanted(seat)));
    }
}
