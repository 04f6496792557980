//! One cache line of the MAC table: four slots, and the protocol by which threads share a slot without a lock.
//!
//! A slot is a key and a value, two words that cannot be written together. So the value carries a check of its key, and
//! one rule says who may write: *whoever turns the value from valid to 0 owns the slot, and whoever turns an empty key
//! into his own owns it too*; the owner publishes a valid value, or empties the key, and owns it no more.
//!
//! | key | value | meaning | who may write |
//! |---|---|---|---|
//! | empty | 0 | free | anybody claims it: CAS on the key |
//! | K | 0 | being filled or emptied | its one owner |
//! | K | valid | an entry | anybody replaces or unpublishes it: CAS on the value |
//!
//! A reader loads the key, the value, and the key again. Owners write the key before the value (release), and readers
//! load the value with acquire: who has read a later owner's value reads a later key, so a torn pair shows, unless the
//! same key has come back in between (K1, K2, K1). Then the value is K2's. The value carries K2's whole network index,
//! so the reader of K1 refuses it whenever the networks differ: **no interleaving hands a frame to a port of another
//! network**. Within one network 14 hashed bits of the MAC must agree as well; if they do (one in 16,384 of an event
//! that needs two changes of one slot within two loads), one frame goes to a wrong member of its own network, as any
//! flooded frame does.
//!
//! A compare-and-swap on a value may likewise meet an equal value of another key (same network, tag, port and tick). It
//! then refreshes, moves or forgets a neighbour of the same network and port: harmless, and the books stay right, since
//! they follow the value words. It cannot hit a slot that somebody owns, because an owned slot's value is 0.

use crate::ids::{MacAddr, MacBits, NetworkIndex, PORTS_MAX, PortIndex};
use crate::sync::{AtomicU64, Ordering};

/// Slots in a bucket: four pairs of words fill one cache line. The model checker gets by with two.
pub(super) const WAYS: usize = if cfg!(loom) { 2 } else { 4 };

/// Values of the coarse clock before it wraps: about 12 days of seconds.
const TICKS: u32 = 1 << 20;
/// Seconds that one worker's clock reading may be ahead of another's; workers read the clock once a round.
const SKEW_MAX_S: u32 = 64;
/// The longest time an entry may be kept (the largest ageing time of IEEE 802.1D-2004, table 7-5). An expired entry must be swept
/// within the 13 hours that are left until the coarse clock has wrapped, or it looks young again.
pub const AGE_MAX_S: u32 = 1_000_000;

const _: () = assert!(PORTS_MAX <= 1 << 12, "the port has 12 bits of the value");
const _: () = assert!(AGE_MAX_S + SKEW_MAX_S + 12 * 3600 < TICKS, "half a day to sweep before the clock wraps");

/// Network and MAC in one word: `network << 48 | mac`. 0 is no key, for no station has the MAC 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Key(pub(super) u64);

impl Key {
    pub(super) const EMPTY: Key = Key(0);

    #[inline]
    pub(super) fn new(network: NetworkIndex, mac: impl Into<MacBits>) -> Key {
        Key(u64::from(network.0) << 48 | mac.into().to_u64())
    }

    #[inline]
    pub(super) fn network(self) -> NetworkIndex {
        NetworkIndex((self.0 >> 48) as u16)
    }

    #[inline]
    pub(super) fn mac_bits(self) -> MacBits {
        MacBits::of_front(self.0 << 16)
    }

    pub(super) fn mac(self) -> MacAddr {
        MacAddr::from_u64(self.0)
    }
}

/// The coarse clock: seconds modulo [`TICKS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tick(u32);

impl Tick {
    #[inline]
    pub(super) fn of_seconds(seconds: u32) -> Tick {
        Tick(seconds % TICKS)
    }

    /// Seconds since `earlier`; 0 if `earlier` is up to [`SKEW_MAX_S`] ahead.
    #[inline]
    pub(super) fn since(self, earlier: Tick) -> u32 {
        let age = self.0.wrapping_sub(earlier.0) % TICKS;
        if age >= TICKS - SKEW_MAX_S { 0 } else { age }
    }
}

/// What an entry says, in one word: network 16 bits, tag 14, valid 1, static 1, tick 20, port 12. 0 is no value.
///
/// A static entry has tick 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Value(u64);

/// The bits by which a value tells that it belongs to a key: valid flag, tag and network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Check(u64);

impl Check {
    const VALID: u64 = 1 << 33;
    const TAG: u64 = 0x3fff << 34;
    const NETWORK_SHIFT: u32 = 48;
    /// The check's bits are the topmost ones: from this one on.
    const SHIFT: u32 = 33;

    /// The part that all keys of a network have in common.
    #[inline]
    pub(super) fn of_network(network: NetworkIndex) -> Check {
        Check(u64::from(network.0) << Self::NETWORK_SHIFT | Self::VALID)
    }

    /// The check of a key of this network, with 14 bits of its hash as the tag, which are where they belong already.
    #[inline]
    pub(super) fn with_tag(self, hash: u64) -> Check {
        Check(self.0 | hash & Self::TAG)
    }

    /// The check of `key`.
    #[inline]
    pub(super) fn new(key: Key, hash: u64) -> Check {
        Check::of_network(key.network()).with_tag(hash)
    }
}

impl Value {
    pub(super) const NONE: Value = Value(0);
    const STATIC: u64 = 1 << 32;
    const TICK_SHIFT: u32 = 12;
    const PORT: u64 = 0xfff;

    #[inline]
    pub(super) fn learnt(check: Check, port: PortIndex, tick: Tick) -> Value {
        Value(check.0 | u64::from(tick.0) << Self::TICK_SHIFT | u64::from(port.0) & Self::PORT)
    }

    /// The same value with the tag of another key, if it had none.
    #[inline]
    pub(super) fn with_tag(self, hash: u64) -> Value {
        Value(Check(self.0).with_tag(hash).0)
    }

    pub(super) fn fixed(check: Check, port: PortIndex) -> Value {
        Value(check.0 | Self::STATIC | u64::from(port.0) & Self::PORT)
    }

    #[inline]
    pub(super) fn port(self) -> PortIndex {
        PortIndex((self.0 & Self::PORT) as u16)
    }

    #[inline]
    pub(super) fn tick(self) -> Tick {
        Tick((self.0 >> Self::TICK_SHIFT) as u32 % TICKS)
    }

    #[inline]
    pub(super) fn is_static(self) -> bool {
        self.0 & Self::STATIC != 0
    }

    pub(super) fn is_valid(self) -> bool {
        self.0 & Check::VALID != 0
    }

    pub(super) fn is_learnt(self) -> bool {
        self.is_valid() && !self.is_static()
    }

    pub(super) fn network(self) -> NetworkIndex {
        NetworkIndex((self.0 >> 48) as u16)
    }

    /// Whether it says the same as `other`, but perhaps for the port.
    #[inline]
    pub(super) fn is_like(self, other: Value) -> bool {
        (self.0 ^ other.0) & !Self::PORT == 0
    }

    #[inline]
    pub(super) fn fits(self, check: Check) -> bool {
        (self.0 ^ check.0) >> Check::SHIFT == 0
    }
}

/// Four slots in one cache line.
#[repr(align(64))]
#[derive(Default)]
pub(super) struct Bucket {
    keys: [AtomicU64; WAYS],
    values: [AtomicU64; WAYS],
}

/// The way that a key with this hash prefers: by two bits that choose neither bucket nor tag.
#[inline(always)]
fn preferred_way(hash: u64) -> usize {
    (hash >> 32) as usize % WAYS
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Bucket>() == 64, "a bucket is one cache line");

impl Bucket {
    /// Which slots hold `key`, one bit each. All are compared, so that no branch depends on where the key lies: the
    /// early exit was twice as slow.
    #[inline]
    pub(super) fn matches(&self, key: Key) -> u32 {
        let mut mask = 0;
        for (way, stored) in self.keys.iter().enumerate() {
            // Acquire: pairs with the release of `claim` and `rekey`; the value read next is not older than the key.
            mask |= u32::from(stored.load(Ordering::Acquire) == key.0) << way;
        }
        mask
    }

    /// Whether the way that `key` prefers says exactly `value` of it.
    #[inline(always)]
    pub(super) fn says(&self, key: Key, hash: u64, value: Value) -> bool {
        let way = preferred_way(hash);
        // Acquire: as in `matches`.
        self.keys[way].load(Ordering::Acquire) == key.0 && self.values[way].load(Ordering::Acquire) == value.0
    }

    /// The port that the way which `key` prefers gives for it, if it says the same as `like` otherwise.
    #[inline(always)]
    pub(super) fn port_of(&self, key: Key, hash: u64, like: Value) -> Option<PortIndex> {
        let slot = self.slot(preferred_way(hash));
        if slot.key() != key {
            return None;
        }
        let value = slot.value();
        // The key read last is not older than the value: see `Slot::read`.
        (value.is_like(like) && slot.key.load(Ordering::Relaxed) == key.0).then_some(value.port())
    }

    /// The value of `key`, if it has one here. Should the slot be changing hands, it may be missed.
    #[inline]
    pub(super) fn value_of(&self, key: Key, check: Check) -> Option<Value> {
        let mask = self.matches(key);
        if mask == 0 { None } else { self.slot(mask.trailing_zeros() as usize).read(key, check) }
    }

    /// Claims a free slot for a key with this hash: the way that it prefers, or the next one that is free.
    pub(super) fn claim(&self, key: Key, hash: u64) -> Option<Slot<'_>> {
        let preferred = preferred_way(hash);
        (0..WAYS).map(|step| self.slot((preferred + step) % WAYS)).find(|slot| slot.claim(key))
    }

    /// Slots whose key is not empty.
    pub(super) fn occupied(&self) -> u32 {
        WAYS as u32 - self.matches(Key::EMPTY).count_ones()
    }

    #[inline]
    pub(super) fn slot(&self, way: usize) -> Slot<'_> {
        Slot { key: &self.keys[way], value: &self.values[way] }
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = Slot<'_>> {
        (0..WAYS).map(|way| self.slot(way))
    }
}

/// One key and value of a bucket.
#[derive(Clone, Copy)]
pub(super) struct Slot<'t> {
    key: &'t AtomicU64,
    value: &'t AtomicU64,
}

impl Slot<'_> {
    /// The value, if it is `key`'s. The caller has seen `key` in the slot.
    #[inline]
    pub(super) fn read(self, key: Key, check: Check) -> Option<Value> {
        // Acquire: pairs with `publish`; the key read next is not older than the value.
        let value = Value(self.value.load(Ordering::Acquire));
        (value.fits(check) && self.key.load(Ordering::Relaxed) == key.0).then_some(value)
    }

    /// Whatever key the slot holds.
    #[inline]
    pub(super) fn key(self) -> Key {
        Key(self.key.load(Ordering::Acquire))
    }

    /// Whatever value the slot holds.
    #[inline]
    pub(super) fn value(self) -> Value {
        Value(self.value.load(Ordering::Acquire))
    }

    /// Makes a free slot ours: empty key to `key`.
    pub(super) fn claim(self, key: Key) -> bool {
        // Acquire: pairs with `free`, so that the value we own is 0. Release: pairs with `matches`.
        self.key.compare_exchange(Key::EMPTY.0, key.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Gives the slot we own another key.
    pub(super) fn rekey(self, key: Key) {
        // Release: who sees this key sees the value 0 of our `unpublish`, or a later one.
        self.key.store(key.0, Ordering::Release);
    }

    /// Fills the slot we own; it is anybody's from here on.
    pub(super) fn publish(self, value: Value) {
        // Release: who sees this value sees our key, or a later one.
        self.value.store(value.0, Ordering::Release);
    }

    /// Puts `new` in the place of `old`, which stays the same key's. False if another thread was first.
    pub(super) fn replace(self, old: Value, new: Value) -> bool {
        self.value.compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Takes the entry out and the slot into our hands. False if the value is `old` no more.
    pub(super) fn unpublish(self, old: Value) -> bool {
        self.replace(old, Value::NONE)
    }

    /// Empties the slot we own.
    pub(super) fn free(self) {
        self.rekey(Key::EMPTY);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_value_fits_its_own_key_and_no_key_of_another_network() {
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        // The worst case on purpose: equal hashes.
        let hash = 0xdead_beef_0123_4567;
        let blue = Check::new(Key::new(NetworkIndex(0), mac), hash);
        for network in [1, 2, 0x00ff, 0xfffe] {
            let other = Check::new(Key::new(NetworkIndex(network), mac), hash);
            let value = Value::learnt(other, PortIndex(7), Tick::of_seconds(9));
            assert!(value.fits(other) && !value.fits(blue));
            assert_eq!(value.network(), NetworkIndex(network));
        }
        assert!(!Value::NONE.fits(blue));
    }

    #[test]
    fn the_fields_of_a_value_do_not_touch_each_other() {
        let check = Check::new(Key::new(NetworkIndex(0xffff), MacAddr::BROADCAST), u64::MAX);
        let value = Value::learnt(check, PortIndex(4095), Tick::of_seconds(TICKS - 1));
        assert_eq!((value.port(), value.tick(), value.is_static()), (PortIndex(4095), Tick(TICKS - 1), false));
        let value = Value::learnt(Check::new(Key(1), 0), PortIndex(0), Tick(0));
        assert_eq!((value.port(), value.tick(), value.is_learnt()), (PortIndex(0), Tick(0), true));
        let value = Value::fixed(check, PortIndex(4095));
        assert!(value.is_static() && !value.is_learnt() && value.fits(check));
    }

    #[test]
    fn age_survives_the_wrap_of_the_coarse_clock_and_a_clock_slightly_ahead() {
        let at = Tick::of_seconds;
        assert_eq!(at(TICKS + 5).since(at(TICKS - 5)), 10);
        assert_eq!(at(TICKS - 1).since(at(TICKS)), 0);
        assert_eq!(at(100).since(at(100 + SKEW_MAX_S)), 0);
        assert_eq!(at(AGE_MAX_S + 7).since(at(7)), AGE_MAX_S);
    }
}
