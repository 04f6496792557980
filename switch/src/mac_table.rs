//! The MAC table: (network, MAC) to port, written by every worker, read without a lock.
//!
//! What makes it hard:
//! * *Readers never wait and never write.* A lookup reads one cache line, seldom two, and stores nothing; a source address that is
//!   known costs a store once a second. How threads share a slot, and why a frame of one network can never be handed to
//!   another network's port, stands in `bucket.rs`.
//! * *Two workers may learn one address at once*, in two slots. Each publishes, then looks again and removes all but one.
//! * *Guests are hostile.* The hash is seeded at random, so that nobody can aim at a bucket. The table is bounded; no port
//!   may hold more than its share, and a port that floods pushes out its own entries: those of another port only if that
//!   port holds more (or as many, in one network). A MAC moves to another port only if the old one is down or silent.
//! * *Static entries* come from the control side; they are neither learnt over nor evicted.
//!
//! A flat table of one-line buckets, at most half full of learnt entries; each key has a home and another bucket, where it lies if
//! its home was more than half full. Homes are in the near part, which is small enough to stay in the caches, while few addresses are
//! learnt, and anywhere when they are many; [`MacTable::sweep`] brings home what lies elsewhere. A full pair of buckets
//! evicts instead of growing chains. In its bucket a key prefers one way, which is compared first: of 1.5 keys a bucket four in
//! five lie there, and the processor guesses right.
//! Workers look at it through a [`BurstView`] and call `heard`: they never lock. The rest is for the control side, whose calls
//! exclude each other, and scans the whole table where it says so. Nothing here allocates (but [`MacTable::entries`]) or reads
//! the clock.

mod bucket;
#[cfg(all(test, loom))]
mod model;
#[cfg(all(test, not(loom)))]
mod tests;

use crate::ids::{MacAddr, MacBits, NetworkIndex, PORTS_MAX, PortIndex};
use crate::pool::{Hashed, HugeSlice, Pages};
use crate::segment;
use crate::sync::{AtomicBool, AtomicU32, Mutex, MutexGuard, Ordering, fence};
use crate::worker::Now;
pub use bucket::AGE_MAX_S;
use bucket::{Bucket, Check, Key, Slot, Tick, Value, WAYS};
use std::hash::{BuildHasher, RandomState};
use std::sync::PoisonError;

/// Seconds a port must have been silent before a MAC learnt there may move to another port while it is up.
pub const MOVE_SILENCE_S: u32 = 5;
/// Learnt entries a table can be made for: 2^24 take 512 MiB.
pub const ENTRIES_MAX: usize = 1 << 24;
/// One port may hold one part in this many of the learnt entries.
pub const PORT_SHARE: usize = 2;
/// Times a worker starts over when another one was faster, before it leaves the address to the next frame.
const ATTEMPTS: usize = 4;
/// Buckets of the near part: 1 MiB, so that the addresses of an ordinary host take few pages of memory, however many the table
/// was made for. Where those are small the processor would else spend much of a packet on finding them.
const NEAR: usize = if cfg!(loom) {
    2
} else if cfg!(test) {
    64
} else {
    1 << 14
};
/// Slots of a bucket that is half full.
const HALF: u32 = WAYS as u32 / 2;
/// Buckets that are swept at a time while other calls of the control side wait.
const SWEPT_AT_ONCE: usize = 4096;
/// Ports the table knows; the model checker cannot carry more.
const PORTS: usize = if cfg!(loom) { 4 } else { PORTS_MAX };

/// What learning a source address came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Learned {
    /// The entry was there and says the same.
    Known,
    /// A new entry, or one that had expired.
    New,
    /// The entry moved to this port.
    Moved,
    /// The entry belongs to another port that is up and was heard within [`MOVE_SILENCE_S`]; nothing changed.
    Refused,
    /// A static entry; never learnt over.
    Static,
    /// The port has reached its cap, or the table has no room: nothing was learnt.
    Full,
}

/// One entry as `show macs` tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MacEntry {
    /// Its network.
    pub network: NetworkIndex,
    /// The address.
    pub mac: MacAddr,
    /// Where it lives.
    pub port: PortIndex,
    /// Set by the control side, never learnt away.
    pub is_static: bool,
    /// Seconds since it was last seen; 0 if static.
    pub age_s: u32,
}

/// The table.
pub struct MacTable {
    /// A power of two of them, at least two.
    buckets: HugeSlice<Bucket>,
    ports: Box<[PortState]>,
    /// Learnt entries in the table and being put in.
    learnt: AtomicU32,
    /// Static entries in the table.
    fixed: AtomicU32,
    /// Held by calls of the control side that remove entries or move them, so that none escapes a flush by moving.
    control: Mutex<()>,
    learnt_max: u32,
    port_learnt_max: u32,
    /// With more entries than this the near part is no longer the home of keys.
    near_max: u32,
    age_s: u32,
    seed: u64,
    multiplier: u64,
}

/// What the table remembers of a port.
#[derive(Default)]
struct PortState {
    /// Second in which frames last came from it, plus 1; 0 if none ever came.
    heard: AtomicU32,
    /// Learnt entries it has, and is putting in.
    learnt: AtomicU32,
    is_down: AtomicBool,
}

/// An address of a network and its hash: hashed once, for prefetch, lookup and learning alike.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Probe {
    key: Key,
    /// Its low bits choose the home, those with the top 16 and bits 25 to 31 the other bucket, bits 32 and 33 the way, those from
    /// 34 to 47 are the tag.
    hash: u64,
}

const _: () = assert!(size_of::<Probe>() == 16, "a burst's probes are read and written on every packet");

impl Probe {
    /// The address.
    #[inline]
    pub fn mac(&self) -> MacBits {
        self.key.mac_bits()
    }

    /// Whether it is for the same address of the same network.
    #[inline]
    pub fn is_like(&self, other: &Probe) -> bool {
        self.key == other.key
    }

    /// The bits whose low ones choose the other bucket; the lowest bit differs, so that it is never the home.
    #[inline]
    fn other(self) -> u64 {
        self.hash ^ (self.hash >> 48 | (self.hash >> 25 & 0x7f) << 16 | 1)
    }

    /// What marks a value as this key's: its tag and its network.
    #[inline]
    fn check(self) -> Check {
        Check::new(self.key, self.hash)
    }
}

/// The table as one burst sees it: frames of one network from one port at one moment. What they have in common is worked out
/// once.
#[derive(Clone, Copy)]
pub struct BurstView<'t> {
    table: &'t MacTable,
    homes: Hashed<'t, Bucket>,
    network: NetworkIndex,
    port: PortIndex,
    now: Now,
    /// What an entry says that has nothing to learn from the burst, but for the tag.
    fresh: Value,
}

impl BurstView<'_> {
    /// Where to look for an address.
    #[inline]
    pub fn probe(&self, mac: MacBits) -> Probe {
        self.table.probe(Key::new(self.network, mac))
    }

    #[inline(always)]
    fn home(&self, probe: &Probe) -> &Bucket {
        self.homes.get(probe.hash)
    }

    /// Asks for the cache line that a lookup will most likely read: nearly all keys lie at home.
    #[inline]
    pub fn prefetch(&self, probe: &Probe) {
        segment::prefetch(std::ptr::from_ref(self.home(probe)).cast());
    }

    /// Whether an address that was seen as a source has nothing to teach: what nearly every frame meets is the same port and the
    /// same second, at home, and there in the way that the address prefers. Should the entry be changing at this very moment, the
    /// next frame learns.
    #[inline(always)]
    pub fn is_known(&self, probe: &Probe) -> bool {
        self.home(probe).says(probe.key, probe.hash, self.fresh.with_tag(probe.hash)) || self.is_known_there(probe)
    }

    /// The same in any way.
    #[inline(never)]
    fn is_known_there(&self, probe: &Probe) -> bool {
        self.home(probe).value_of(probe.key, probe.check()) == Some(self.fresh.with_tag(probe.hash))
    }

    /// Notes that the address was seen as a source.
    pub fn learn(&self, probe: &Probe) -> Learned {
        self.table.learn_probe(*probe, self.port, self.now)
    }

    /// Where the address lives, if its entry lies in the way that it prefers and is of this very second, as is that of one who sends
    /// as well as receives. `None` says nothing: [`BurstView::lookup`] knows.
    #[inline(always)]
    pub fn lookup_fresh(&self, probe: &Probe) -> Option<PortIndex> {
        self.home(probe).port_of(probe.key, probe.hash, self.fresh.with_tag(probe.hash))
    }

    /// Where the address lives. Stores nothing; an expired entry is no entry.
    #[inline]
    pub fn lookup(&self, probe: &Probe) -> Option<PortIndex> {
        self.lookup_fresh(probe).or_else(|| self.lookup_slowly(probe))
    }

    #[inline(never)]
    fn lookup_slowly(&self, probe: &Probe) -> Option<PortIndex> {
        if let Some(value) = self.home(probe).value_of(probe.key, probe.check()) {
            return self.table.live(value, self.now);
        }
        // No group lives anywhere; to look for one would read two lines.
        let is_station = !probe.mac().is_group();
        let found = is_station.then(|| self.table.find(*probe)).flatten();
        found.and_then(|(_, value)| self.table.live(value, self.now))
    }
}

/// What an entry that was found means for a source address on a port.
enum Judgement {
    /// It stays as it is.
    Keep(Learned),
    /// It gets a new tick.
    Refresh(Learned),
    /// It goes to the port.
    Take(Learned),
}

/// Whose entries may give way to a new one.
#[derive(Clone, Copy)]
enum Evict {
    /// Any learnt one: a static entry needs the room.
    Any,
    /// Those of this port only: it has its share.
    Own(PortIndex),
    /// Expired ones; else those of this port, which would then hold so many; else those of a port that holds at least
    /// as many in the same network, or more in another.
    Fair(PortIndex, u32),
}

/// Buckets of a table for at most `max` learnt entries: at most half full of them.
fn bucket_count(max: usize) -> usize {
    (2 * max.min(ENTRIES_MAX)).div_ceil(WAYS).next_power_of_two().max(2)
}

impl MacTable {
    /// A table for at most `max` learnt entries that expire `age_s` seconds after they were last seen.
    ///
    /// `max` is cut to [`ENTRIES_MAX`], `age_s` to [`AGE_MAX_S`]. Takes 32 to 64 bytes an entry, all of it now.
    pub fn new(max: usize, age_s: u32) -> MacTable {
        // `RandomState` is the standard library's source of keys that an outsider cannot guess.
        let random = RandomState::new();
        MacTable::seeded(max, age_s, [random.hash_one(0), random.hash_one(1)])
    }

    /// Bytes that a table for at most `max` learnt entries takes.
    pub fn bytes_for(max: usize) -> usize {
        bucket_count(max) * size_of::<Bucket>()
    }

    /// Its bytes, and what pages they lie in.
    pub fn memory(&self) -> (usize, Pages) {
        (size_of_val(&*self.buckets), self.buckets.pages())
    }

    fn seeded(max: usize, age_s: u32, [seed, multiplier]: [u64; 2]) -> MacTable {
        let max = max.min(ENTRIES_MAX);
        MacTable {
            buckets: HugeSlice::new(bucket_count(max), Bucket::default),
            ports: (0..PORTS).map(|_| PortState::default()).collect(),
            learnt: AtomicU32::new(0),
            fixed: AtomicU32::new(0),
            control: Mutex::new(()),
            learnt_max: max as u32,
            port_learnt_max: max.div_ceil(PORT_SHARE) as u32,
            // Two slots for each: half of its buckets are empty then.
            near_max: if bucket_count(max) > NEAR { (NEAR / 2) as u32 } else { u32::MAX },
            age_s: age_s.min(AGE_MAX_S),
            seed,
            multiplier: multiplier | 1,
        }
    }

    /// The table for frames of `network` that came in by `port` at `now`.
    #[inline]
    pub fn burst(&self, network: NetworkIndex, port: PortIndex, now: Now) -> BurstView<'_> {
        let fresh = Value::learnt(Check::of_network(network), port, tick(now));
        BurstView { table: self, homes: self.buckets.hashed(self.homes_len()), network, port, now, fresh }
    }

    /// Where the address lives. Stores nothing; an expired entry is no entry.
    #[inline]
    pub fn lookup(&self, network: NetworkIndex, mac: MacAddr, now: Now) -> Option<PortIndex> {
        self.find(self.probe(Key::new(network, mac))).and_then(|(_, value)| self.live(value, now))
    }

    /// The port of an entry that has not expired.
    #[inline]
    fn live(&self, value: Value, now: Now) -> Option<PortIndex> {
        (value.is_static() || !self.is_expired(value, tick(now))).then(|| value.port())
    }

    /// Notes that the address was seen as a source on `port`.
    ///
    /// Group addresses and the zero address are nobody's and are answered with [`Learned::Full`].
    #[inline]
    pub fn learn(&self, network: NetworkIndex, mac: MacAddr, port: PortIndex, now: Now) -> Learned {
        self.learn_probe(self.probe(Key::new(network, mac)), port, now)
    }

    /// The same for an address that was hashed.
    #[inline(never)]
    fn learn_probe(&self, probe: Probe, port: PortIndex, now: Now) -> Learned {
        match self.find(probe) {
            Some((_, value)) if value == Value::learnt(probe.check(), port, tick(now)) => Learned::Known,
            _ => self.learn_slowly(probe, port, now),
        }
    }

    /// Like `learn`, but only tells what it would do; for traces.
    pub fn would_learn(&self, network: NetworkIndex, mac: MacAddr, port: PortIndex, now: Now) -> Learned {
        if !is_station(mac, port) {
            return Learned::Full;
        }
        let probe = self.probe(Key::new(network, mac));
        let mine = self.learnt_on(port) as u32;
        let has_share = mine < self.port_learnt_max;
        if let Some((_, value)) = self.find(probe) {
            return match self.judge(value, port, now) {
                Judgement::Take(_) if !has_share => Learned::Full,
                Judgement::Keep(learned) | Judgement::Refresh(learned) | Judgement::Take(learned) => learned,
            };
        }
        let is_free = self.pair(probe).iter().any(|bucket| bucket.occupied() < WAYS as u32);
        if has_share && is_free && self.learnt() < self.learnt_max as usize {
            return Learned::New;
        }
        let evict = if has_share { Evict::Fair(port, mine + 1) } else { Evict::Own(port) };
        if self.victim(probe, evict, tick(now)).is_some() { Learned::New } else { Learned::Full }
    }

    /// Notes that frames came from `port` at `now`, which keeps all that was learnt there; a relaxed store at most once a second. Of a
    /// port that is never noted each address is kept by its own frames.
    #[inline]
    pub fn heard(&self, port: PortIndex, now: Now) {
        if let Some(state) = self.ports.get(port.as_usize()) {
            let heard = now.seconds().saturating_add(1);
            if state.heard.load(Ordering::Relaxed) < heard {
                state.heard.store(heard, Ordering::Relaxed);
            }
        }
    }

    /// Tells whether the port is up: MACs of a port that is down may move at once. Up until told otherwise.
    pub fn set_port_up(&self, port: PortIndex, is_up: bool) {
        if let Some(state) = self.ports.get(port.as_usize()) {
            state.is_down.store(!is_up, Ordering::Relaxed);
        }
    }

    /// Enters a static address, replacing a learnt one or another static one.
    ///
    /// False if both its buckets are full of static entries, or the address is no station's. A worker that is learning
    /// the same address at this very moment removes its own entry again; until it has, a lookup may still meet it.
    pub fn insert_static(&self, network: NetworkIndex, mac: MacAddr, port: PortIndex) -> bool {
        if !is_station(mac, port) {
            return false;
        }
        let _control = self.control();
        let probe = self.probe(Key::new(network, mac));
        let fixed = Value::fixed(probe.check(), port);
        // Each turn that fails has seen another thread succeed, so this ends as soon as the workers do something else.
        loop {
            if let Some((slot, value)) = self.find(probe) {
                if !slot.replace(value, fixed) {
                    continue;
                }
                self.release(value);
            } else {
                let slot = match self.claim(probe) {
                    Some(slot) => slot,
                    None => match self.victim(probe, Evict::Any, Tick::of_seconds(0)) {
                        None => return false,
                        Some((slot, value)) if slot.unpublish(value) => {
                            self.release(value);
                            slot.rekey(probe.key);
                            slot
                        }
                        Some(_) => continue,
                    },
                };
                slot.publish(fixed);
            }
            // Relaxed, like the other books.
            self.fixed.fetch_add(1, Ordering::Relaxed);
            self.settle(probe);
            return true;
        }
    }

    /// Removes a static address; a learnt one stays.
    pub fn remove_static(&self, network: NetworkIndex, mac: MacAddr) {
        let _control = self.control();
        let probe = self.probe(Key::new(network, mac));
        for (slot, value) in self.all(probe) {
            if value.is_static() {
                // Only the control side changes static entries, so this does not fail; if it does, somebody removed it.
                self.remove(slot, value);
            }
        }
    }

    /// Forgets where an address was learnt, if that is this port; a static one stays, and so does one that has moved.
    ///
    /// A worker that hears it there at this very moment may learn it again.
    pub fn forget(&self, network: NetworkIndex, mac: MacAddr, port: PortIndex) {
        let _control = self.control();
        let probe = self.probe(Key::new(network, mac));
        // Should refreshes by workers spoil every attempt, it is there still.
        for _ in 0..ATTEMPTS {
            let mut is_gone = true;
            for (slot, value) in self.all(probe).filter(|(_, value)| value.is_learnt() && value.port() == port) {
                is_gone &= self.remove(slot, value);
            }
            if is_gone {
                return;
            }
        }
    }

    /// Forgets the learnt entries of a port. Scans the table, unless the port has none.
    ///
    /// A worker that still runs with an older snapshot may learn one more; publish first, then flush.
    pub fn flush_port(&self, port: PortIndex) {
        if self.learnt_on(port) > 0 {
            let _control = self.control();
            self.remove_where(&self.buckets, |value| value.is_learnt() && value.port() == port);
        }
    }

    /// Forgets all entries of a network, static ones included. Scans the table.
    ///
    /// A worker that still runs with an older snapshot may learn one more; publish first, then flush.
    pub fn flush_network(&self, network: NetworkIndex) {
        let _control = self.control();
        self.remove_where(&self.buckets, |value| value.network() == network);
    }

    /// Removes entries that have expired, or were learnt on a port that is on another network now (`is_member` tells), and brings
    /// home those that lie elsewhere. Reads the whole table.
    ///
    /// Lookups take no notice of expired entries anyway, so this is not urgent: once in some seconds is plenty, once in
    /// 13 hours is needed.
    pub fn sweep(&self, now: Now, is_member: impl Fn(PortIndex, NetworkIndex) -> bool) {
        for buckets in self.buckets.chunks(SWEPT_AT_ONCE) {
            let _control = self.control();
            self.remove_where(buckets, |value| {
                value.is_learnt() && (self.is_expired(value, tick(now)) || !is_member(value.port(), value.network()))
            });
            self.bring_home(buckets);
        }
    }

    /// All entries that have not expired, in no order; a moment's view while workers go on.
    pub fn entries(&self, now: Now) -> Vec<MacEntry> {
        let mut entries = Vec::new();
        for slot in self.buckets.iter().flat_map(Bucket::slots) {
            let key = slot.key();
            let Some(value) = slot.read(key, self.probe(key).check()) else { continue };
            if value.is_static() || !self.is_expired(value, tick(now)) {
                let age_s = if value.is_static() { 0 } else { tick(now).since(value.tick()) };
                let (network, mac) = (key.network(), key.mac());
                entries.push(MacEntry { network, mac, port: value.port(), is_static: value.is_static(), age_s });
            }
        }
        entries
    }

    /// Learnt entries, expired ones that were not swept yet included. Exact while no worker learns.
    pub fn learnt(&self) -> usize {
        self.learnt.load(Ordering::Relaxed) as usize
    }

    /// Learnt entries of one port, counted likewise.
    pub fn learnt_on(&self, port: PortIndex) -> usize {
        self.ports.get(port.as_usize()).map_or(0, |state| state.learnt.load(Ordering::Relaxed) as usize)
    }

    #[inline]
    fn probe(&self, key: Key) -> Probe {
        // A folded multiply: both halves of the product, so that every bit of the key reaches every bit of the hash.
        let product = u128::from(key.0 ^ self.seed) * u128::from(self.multiplier);
        Probe { key, hash: product as u64 ^ (product >> 64) as u64 }
    }

    /// Buckets that are homes now: the near part, unless there are so many addresses that it would overflow.
    #[inline]
    fn homes_len(&self) -> usize {
        let count = self.learnt.load(Ordering::Relaxed) + self.fixed.load(Ordering::Relaxed);
        let is_crowded = count > self.near_max;
        if is_crowded { self.buckets.len() } else { self.near_len() }
    }

    #[inline]
    fn near_len(&self) -> usize {
        self.buckets.len().min(NEAR)
    }

    /// The bucket for a hash among the first `len`, which is a power of two.
    #[inline]
    fn bucket(&self, hash: u64, len: usize) -> &Bucket {
        &self.buckets[hash as usize & (len - 1)]
    }

    /// The home of a key, and its other bucket.
    #[inline]
    fn pair(&self, probe: Probe) -> [&Bucket; 2] {
        [self.bucket(probe.hash, self.homes_len()), self.bucket(probe.other(), self.buckets.len())]
    }

    /// The buckets where a key may lie: its home while addresses are few, that while they are many, which may be the same, and
    /// the other one.
    #[inline]
    fn places(&self, probe: Probe) -> [&Bucket; 3] {
        let [few, many] = [self.near_len(), self.buckets.len()].map(|len| self.bucket(probe.hash, len));
        [few, many, self.bucket(probe.other(), self.buckets.len())]
    }

    /// The valid slots with the key; more than one only while threads race.
    fn all<'t>(&'t self, probe: Probe) -> impl Iterator<Item = (Slot<'t>, Value)> + use<'t> {
        let (key, check) = (probe.key, probe.check());
        let places = self.places(probe);
        let [few, many, other] = places;
        let is_one_home = std::ptr::eq(few, many);
        let many = if is_one_home { 0 } else { many.matches(key) };
        let mut mask = few.matches(key) | many << WAYS | other.matches(key) << (2 * WAYS);
        std::iter::from_fn(move || {
            while mask != 0 {
                let at = mask.trailing_zeros() as usize;
                mask &= mask - 1;
                let slot = places[at / WAYS].slot(at % WAYS);
                if let Some(value) = slot.read(key, check) {
                    return Some((slot, value));
                }
            }
            None
        })
    }

    /// The entry of the key.
    ///
    /// Most keys lie at home ([`MacTable::claim`] and [`MacTable::sweep`] see to it), so that this branch is guessed right and
    /// no other line is read. Reading two always, without a branch, took 40 % longer.
    #[inline]
    fn find(&self, probe: Probe) -> Option<(Slot<'_>, Value)> {
        let home = self.bucket(probe.hash, self.homes_len());
        let (mut bucket, mut mask) = (home, home.matches(probe.key));
        if mask == 0 {
            let elsewhere = self.places(probe).into_iter().rev().filter(|place| !std::ptr::eq(*place, home));
            (bucket, mask) = elsewhere.map(|place| (place, place.matches(probe.key))).find(|(_, mask)| *mask != 0)?;
        }
        let slot = bucket.slot(mask.trailing_zeros() as usize);
        match slot.read(probe.key, probe.check()) {
            Some(value) if mask.is_power_of_two() => Some((slot, value)),
            _ => self.find_slowly(probe),
        }
    }

    /// The same where a slot is changing hands or two threads race: a static entry before a learnt one.
    #[cold]
    fn find_slowly(&self, probe: Probe) -> Option<(Slot<'_>, Value)> {
        let mut all = self.all(probe);
        let first = all.next()?;
        if first.1.is_static() { Some(first) } else { all.find(|(_, value)| value.is_static()).or(Some(first)) }
    }

    #[inline]
    fn is_expired(&self, value: Value, tick: Tick) -> bool {
        tick.since(value.tick()) > self.age_s
    }

    #[cold]
    fn learn_slowly(&self, probe: Probe, port: PortIndex, now: Now) -> Learned {
        if !is_station(probe.key.mac(), port) {
            return Learned::Full;
        }
        for _ in 0..ATTEMPTS {
            let outcome = match self.find(probe) {
                Some((slot, value)) => self.update(probe, slot, value, port, now),
                None => self.insert(probe, port, now),
            };
            if let Some(learned) = outcome {
                return learned;
            }
        }
        Learned::Full
    }

    /// What the entry means for a source address seen on `port`; changes nothing.
    fn judge(&self, value: Value, port: PortIndex, now: Now) -> Judgement {
        let is_same_port = value.port() == port;
        if value.is_static() {
            return Judgement::Keep(if is_same_port { Learned::Known } else { Learned::Static });
        }
        let age = tick(now).since(value.tick());
        match (is_same_port, age > self.age_s) {
            (true, true) => Judgement::Refresh(Learned::New),
            (true, false) if age == 0 => Judgement::Keep(Learned::Known),
            (true, false) => Judgement::Refresh(Learned::Known),
            (false, true) => Judgement::Take(Learned::New),
            (false, false) if self.has_left(value.port(), age, now) => Judgement::Take(Learned::Moved),
            (false, false) => Judgement::Keep(Learned::Refused),
        }
    }

    /// Whether MACs may move away from `port`, where this one was seen `age` seconds ago.
    fn has_left(&self, port: PortIndex, age: u32, now: Now) -> bool {
        let state = &self.ports[port.as_usize()];
        let silence = match state.heard.load(Ordering::Relaxed) {
            0 => age,
            heard => age.min(now.seconds().saturating_add(1).saturating_sub(heard)),
        };
        state.is_down.load(Ordering::Relaxed) || silence >= MOVE_SILENCE_S
    }

    /// Brings an entry up to date; `None` if another thread changed it first.
    fn update(&self, probe: Probe, slot: Slot<'_>, value: Value, port: PortIndex, now: Now) -> Option<Learned> {
        let new = Value::learnt(probe.check(), port, tick(now));
        match self.judge(value, port, now) {
            Judgement::Keep(learned) => Some(learned),
            Judgement::Refresh(learned) => slot.replace(value, new).then_some(learned),
            Judgement::Take(_) if !reserve(&self.ports[port.as_usize()].learnt, self.port_learnt_max) => {
                Some(Learned::Full)
            }
            Judgement::Take(learned) => {
                let has_taken = slot.replace(value, new);
                self.release_port(if has_taken { value.port() } else { port });
                has_taken.then_some(learned)
            }
        }
    }

    /// Puts in a new entry; `None` if another thread was in the way.
    fn insert(&self, probe: Probe, port: PortIndex, now: Now) -> Option<Learned> {
        let mine = &self.ports[port.as_usize()].learnt;
        // The books are filled in before the entry stands and cleared after it is gone: no bound is ever exceeded.
        let has_share = reserve(mine, self.port_learnt_max);
        let has_room = has_share && reserve(&self.learnt, self.learnt_max);
        let slot = match has_room.then(|| self.claim(probe)).flatten() {
            Some(slot) => slot,
            None => {
                let evict = if has_share { Evict::Fair(port, mine.load(Ordering::Relaxed)) } else { Evict::Own(port) };
                let victim = self.victim(probe, evict, tick(now));
                let evicted = victim.filter(|(slot, value)| slot.unpublish(*value));
                // Without a victim our places in the books go back. With one, its places do, unless we have none of
                // our own yet and take them over.
                if has_share {
                    self.release_port(evicted.map_or(port, |(_, value)| value.port()));
                }
                if has_room {
                    release(&self.learnt);
                }
                let Some((slot, _)) = evicted else {
                    return victim.is_none().then_some(Learned::Full);
                };
                slot.rekey(probe.key);
                slot
            }
        };
        slot.publish(Value::learnt(probe.check(), port, tick(now)));
        self.settle(probe);
        // If it was us who had to give way, the survivor has the last word about this port.
        slot.read(probe.key, probe.check()).map(|_| Learned::New)
    }

    /// Claims a free slot: at home while that is at most half full, else in the emptier bucket, which keeps pairs from filling up.
    /// With 1.5 keys a bucket one in 18 lies in the other one; with two, as many as are learnt at most, one in 10, and one in
    /// 5,000 finds both full.
    fn claim(&self, probe: Probe) -> Option<Slot<'_>> {
        let mut pair = self.pair(probe);
        let [home, other] = pair.map(Bucket::occupied);
        if home > HALF && other < home {
            pair.reverse();
        }
        pair.into_iter().find_map(|bucket| bucket.claim(probe.key, probe.hash))
    }

    /// The entry of the key's two buckets that should give way first; of equals the oldest.
    fn victim(&self, probe: Probe, evict: Evict, tick: Tick) -> Option<(Slot<'_>, Value)> {
        let mut best = None;
        for slot in self.pair(probe).into_iter().flat_map(Bucket::slots) {
            let value = slot.value();
            if !value.is_learnt() {
                continue;
            }
            let owner = value.port();
            let rank = match evict {
                Evict::Any => 1,
                Evict::Own(port) => u32::from(owner == port),
                Evict::Fair(_, _) if self.is_expired(value, tick) => 4,
                Evict::Fair(port, _) if owner == port => 3,
                Evict::Fair(_, mine) => {
                    let theirs = self.learnt_on(owner) as u32;
                    match value.network() == probe.key.network() {
                        true if theirs >= mine => 2,
                        false if theirs > mine => 1,
                        _ => 0,
                    }
                }
            };
            let rank = (rank, tick.since(value.tick()));
            if rank.0 > 0 && best.is_none_or(|(best_rank, _)| rank > best_rank) {
                best = Some((rank, (slot, value)));
            }
        }
        best.map(|(_, victim)| victim)
    }

    /// Removes all but one of the key's entries, after one was published: a static one stays, else the first.
    fn settle(&self, probe: Probe) {
        // Of two threads that each publish, fence and look, at least one sees the other's entry. Whoever sees two removes
        // the same one, whosever it is.
        fence(Ordering::SeqCst);
        // Should refreshes by others spoil every attempt, the surplus entry says the same or ages away.
        for _ in 0..ATTEMPTS {
            let mut kept: Option<(Slot<'_>, Value)> = None;
            let mut is_settled = true;
            for found in self.all(probe) {
                let surplus = match kept {
                    Some((_, value)) if value.is_static() || !found.1.is_static() => Some(found),
                    _ => kept.replace(found),
                };
                if let Some((slot, value)) = surplus {
                    is_settled &= self.remove(slot, value);
                }
            }
            if is_settled {
                return;
            }
        }
    }

    fn control(&self) -> MutexGuard<'_, ()> {
        // It guards no data: after a panic nothing is half-way but what workers put right.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves entries to their homes, where these are at most half full. The caller holds `control`.
    fn bring_home(&self, buckets: &[Bucket]) {
        for bucket in buckets {
            for slot in bucket.slots() {
                let key = slot.key();
                if key == Key::EMPTY {
                    continue;
                }
                let probe = self.probe(key);
                let home = self.bucket(probe.hash, self.homes_len());
                if !std::ptr::eq(home, bucket)
                    && home.occupied() <= HALF
                    && let Some(value) = slot.read(key, probe.check())
                {
                    self.relocate(probe, slot, value, home);
                }
            }
        }
    }

    /// Puts an entry into `home`, then takes it out of the slot where it was. It has two places in the books meanwhile; without
    /// room for that it stays where it is.
    fn relocate(&self, probe: Probe, slot: Slot<'_>, value: Value, home: &Bucket) {
        if !self.reserve_for(value) {
            return;
        }
        let Some(place) = home.claim(probe.key, probe.hash) else { return self.release(value) };
        place.publish(value);
        // A worker that finds neither, because it looked at home before and elsewhere after, floods one frame or learns the address
        // anew, and then settles. If the entry has changed, that is the newer one: ours goes, or is settled with it.
        if !self.remove(slot, value) && !self.remove(place, value) {
            self.settle(probe);
        }
    }

    fn remove_where(&self, buckets: &[Bucket], is_doomed: impl Fn(Value) -> bool) {
        for slot in buckets.iter().flat_map(Bucket::slots) {
            let mut value = slot.value();
            while value.is_valid() && is_doomed(value) && !self.remove(slot, value) {
                // It changed under us; the new one is judged afresh.
                value = slot.value();
            }
        }
    }

    /// Takes an entry out; false if its value has changed.
    fn remove(&self, slot: Slot<'_>, value: Value) -> bool {
        let is_ours = slot.unpublish(value);
        if is_ours {
            self.release(value);
            slot.free();
        }
        is_ours
    }

    /// Takes an entry that is gone out of the books.
    fn release(&self, value: Value) {
        if value.is_static() {
            release(&self.fixed);
        } else {
            self.release_port(value.port());
            release(&self.learnt);
        }
    }

    /// Gives an entry another place in the books, if there is room.
    fn reserve_for(&self, value: Value) -> bool {
        if value.is_static() {
            return reserve(&self.fixed, u32::MAX);
        }
        let mine = &self.ports[value.port().as_usize()].learnt;
        let has_share = reserve(mine, self.port_learnt_max);
        let has_room = has_share && reserve(&self.learnt, self.learnt_max);
        if has_share && !has_room {
            release(mine);
        }
        has_room
    }

    fn release_port(&self, port: PortIndex) {
        release(&self.ports[port.as_usize()].learnt);
    }
}

/// The coarse tick of a moment.
#[inline]
fn tick(now: Now) -> Tick {
    Tick::of_seconds(now.seconds())
}

/// Whether the address can be somebody's, and the port a port's.
#[inline]
fn is_station(mac: MacAddr, port: PortIndex) -> bool {
    !mac.is_group() && !mac.is_zero() && port.as_usize() < PORTS
}

/// Counts one more if that stays within `max`.
fn reserve(count: &AtomicU32, max: u32) -> bool {
    // Relaxed: the count guards no memory, and changes of one word are never lost.
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| (now < max).then_some(now + 1)).is_ok()
}

/// Counts one less.
fn release(count: &AtomicU32) {
    count.fetch_sub(1, Ordering::Relaxed);
}
