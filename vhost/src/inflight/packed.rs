//! What is kept of a packed ring: `QueueRegionPacked` of the specification, and how a ring is taken over by it.

use super::{FEATURES, RecordError, Region, Resumed, SIZE_IN_WORDS, VERSION, from_halves, halves};
use crate::memory::Area;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering, compiler_fence};

/// `QueueRegionPacked`: the two heads of the free list, then the word of [`Standing`], then entries of 32 bytes.
const PACKED_FREE: usize = 12;
pub(super) const PACKED_STANDING: usize = 16;
pub(super) const PACKED_ENTRIES: usize = 32;
pub(super) const PACKED_ENTRY: usize = 32;
/// `DescStatePacked`: `inflight`, `next`, `last`, `num`, `counter`, `id`.
const PACKED_NEXT: usize = 2;
pub(super) const PACKED_LAST: usize = 4;
pub(super) const PACKED_WIDTH: usize = 6;
pub(super) const PACKED_COUNTER: usize = 8;
pub(super) const PACKED_ID: usize = 16;

/// A descriptor's two flags of a packed ring (virtio 1.2 section 2.8.1).
pub(super) const AVAIL: u16 = 1 << 7;
pub(super) const USED: u16 = 1 << 15;

/// A packed ring as its recovery needs it.
pub trait PackedSlots {
    /// The id and the flags of an entry.
    fn id_and_flags(&self, index: u16) -> (u16, u16);
    /// Whether all 16 bytes of an entry are zero: the guest never put a buffer there.
    fn is_blank(&self, index: u16) -> bool;
    /// Makes an entry a used one. Whoever sees the flags sees everything written before.
    fn put_used(&self, index: u16, len: u32, id: u16, flags: u16);
}

/// A place in a packed ring and the wrap counter there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) index: u16,
    pub(super) wrap: bool,
}

impl Place {
    pub(super) fn from_bits(bits: u16) -> Place {
        Place { index: bits & 0x7fff, wrap: bits >> 15 == 1 }
    }

    pub(super) fn to_bits(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }

    /// At most `size` entries on.
    pub(super) fn plus(self, count: u16, size: u16) -> Place {
        let index = u32::from(self.index) + u32::from(count);
        match index.checked_sub(u32::from(size)) {
            Some(index) => Place { index: index as u16, wrap: !self.wrap },
            None => Place { index: index as u16, wrap: self.wrap },
        }
    }
}

/// What the flags of an entry say, seen from a lap with the wrap counter `wrap`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Look {
    /// The guest made it available on this lap.
    Available,
    /// It was given back on this lap.
    Used,
    /// The guest made it available on the next lap, so it had been given back on this one; or on the lap before, and it was
    /// part of a chain whose first entry alone was marked used.
    OtherAvailable,
    /// It was given back on the lap before, or never used.
    OtherUsed,
}

impl Look {
    pub(super) fn of(flags: u16, wrap: bool) -> Look {
        match ((flags & AVAIL != 0) == wrap, (flags & USED != 0) == wrap) {
            (true, false) => Look::Available,
            (true, true) => Look::Used,
            (false, true) => Look::OtherAvailable,
            (false, false) => Look::OtherUsed,
        }
    }
}

pub(super) fn used_flags(wrap: bool) -> u16 {
    if wrap { AVAIL | USED } else { 0 }
}

/// Where a packed ring stands: one word, so that it is never seen half written.
///
/// In the region: `used_idx`, `old_used_idx`, `used_wrap_counter`, `old_used_wrap_counter`, and two bytes of the padding for
/// `last`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Standing {
    /// Where it will stand when the burst under way is shown; as `old` if none is.
    pub(super) new: Place,
    /// Where it stands.
    pub(super) old: Place,
    /// An entry that the burst shown last marked used; as `old` if none ever was.
    pub(super) last: Place,
}

impl Standing {
    pub(super) fn from_word(word: u64, size: u16) -> Option<Standing> {
        let [new, old, wraps, last] = halves(word);
        let [new_wrap, old_wrap] = wraps.to_ne_bytes();
        let place = |index, wrap: u8| (index < size && wrap < 2).then_some(Place { index, wrap: wrap == 1 });
        let last = Place::from_bits(last);
        let last = (last.index < size).then_some(last)?;
        Some(Standing { new: place(new, new_wrap)?, old: place(old, old_wrap)?, last })
    }

    #[inline]
    pub(super) fn to_word(self) -> u64 {
        let wraps = u16::from_ne_bytes([u8::from(self.new.wrap), u8::from(self.old.wrap)]);
        from_halves([self.new.index, self.old.index, wraps, self.last.to_bits()])
    }
}

/// What is kept of a packed ring.
///
/// A worker, with the ring's lock in hand, calls in this order: [`PackedRecord::took`] for each chain, before any entry but
/// the first of the burst is overwritten; [`PackedRecord::showing`]; then the flags of the first entry are written, by which
/// the guest sees all of them; [`PackedRecord::shown`]. Positions carry the wrap counter in bit 15.
pub struct PackedRecord {
    region: Region,
    /// As in [`Standing`].
    last: AtomicU16,
    /// Whether a chain of several entries was ever taken; until then all of the region's are known to be 1.
    has_widths: AtomicBool,
}

impl PackedRecord {
    /// The record of a ring of `size` entries, `start` bytes into an area.
    ///
    /// # Errors
    /// [`RecordError::TooShort`].
    pub fn new(area: Arc<Area>, start: usize, size: u16) -> Result<PackedRecord, RecordError> {
        let region = Region::new(area, start, size, true)?;
        Ok(PackedRecord { region, last: AtomicU16::new(0), has_widths: AtomicBool::new(false) })
    }

    /// Whether [`PackedRecord::took`] must be called even for chains of one entry.
    #[inline]
    pub fn has_widths(&self) -> bool {
        self.has_widths.load(Ordering::Relaxed)
    }

    /// A chain of `width` entries from entry `index` on was taken, and its used entry may now be written.
    #[inline]
    pub fn took(&self, index: u16, width: u16) {
        if width != 1 || self.has_widths() {
            self.region.put16(self.entry(index) + PACKED_WIDTH, width);
            self.has_widths.store(true, Ordering::Relaxed);
            // The caller's store to the ring may not move up. Dying is no matter of the processor's order.
            compiler_fence(Ordering::Release);
        }
    }

    /// The entries between two positions are about to be shown as given back.
    #[inline]
    pub fn showing(&self, from: u16, to: u16) {
        let last = Place::from_bits(self.last.load(Ordering::Relaxed));
        self.write(Standing { new: Place::from_bits(to), old: Place::from_bits(from), last });
    }

    /// They were shown. `last` is the last entry among them that was marked used.
    #[inline]
    pub fn shown(&self, last: u16, to: u16) {
        let to = Place::from_bits(to);
        self.last.store(last, Ordering::Relaxed);
        self.write(Standing { new: to, old: to, last: Place::from_bits(last) });
    }

    #[inline]
    fn write(&self, standing: Standing) {
        self.region.put64(PACKED_STANDING, standing.to_word());
    }

    #[inline]
    fn entry(&self, index: u16) -> usize {
        PACKED_ENTRIES + PACKED_ENTRY * usize::from(index)
    }

    /// Takes the ring over from whoever had it before, and begins the record anew from there. `base` is where the frontend
    /// says the ring stands; it counts if there is no record, or one of another ring.
    ///
    /// # Errors
    /// [`RecordError::Unknown`], [`RecordError::OtherSize`].
    pub fn start(&self, ring: &impl PackedSlots, base: u16) -> Result<Resumed, RecordError> {
        let found = if self.region.is_used()? { self.resume(ring, base) } else { None };
        let resumed = found.map(|(resumed, _)| resumed);
        self.begin(base, found);
        Ok(resumed.unwrap_or(Resumed { position: base, given_back: 0, is_recorded: false }))
    }

    /// Begins the record of a ring that is known to stand at `base`.
    pub fn restart(&self, base: u16) {
        self.begin(base, None);
    }

    fn begin(&self, base: u16, found: Option<(Resumed, Place)>) {
        let (position, last) = found.map_or((base, base), |(resumed, last)| (resumed.position, last.to_bits()));
        let region = &self.region;
        let (old, last_place) = (Place::from_bits(position), Place::from_bits(last));
        self.write(Standing { new: old, old, last: last_place });
        self.last.store(last, Ordering::Relaxed);
        self.has_widths.store(false, Ordering::Relaxed);
        for index in 0..region.size {
            let entry = self.entry(index);
            region.put16(entry, 0);
            region.put16(entry + PACKED_WIDTH, 1);
            // All entries are on the free list, for a backend that has use for one.
            region.put16(entry + PACKED_NEXT, index + 1);
        }
        region.put16(PACKED_FREE, 0);
        region.put16(PACKED_FREE + 2, 0);
        region.put64(FEATURES, 0);
        let [_, _, rest @ ..] = halves(region.get64(SIZE_IN_WORDS));
        region.put64(SIZE_IN_WORDS, from_halves([VERSION, region.size, rest[0], rest[1]]));
    }

    /// Where the record and the ring together say that the ring stands, and an entry that was given back; `None` if they
    /// contradict each other.
    fn resume(&self, ring: &impl PackedSlots, base: u16) -> Option<(Resumed, Place)> {
        let standing = Standing::from_word(self.region.get64(PACKED_STANDING), self.region.size)?;
        let Standing { new, old, last } = standing;
        self.last.store(last.to_bits(), Ordering::Relaxed);
        let mut resumed = Resumed { position: old.to_bits(), given_back: 0, is_recorded: true };
        let look = |place: Place| Look::of(ring.id_and_flags(place.index).1, place.wrap);
        if look(old) != Look::Available && new != old {
            // The burst was shown, and not confirmed.
            fits(ring, new, old).then_some(())?;
            resumed.position = new.to_bits();
            return self.return_inflight(ring, resumed, old);
        }
        // As long as nothing was given back, the frontend knows as much as we do.
        let is_ours = if last == old { old.to_bits() == base } else { fits(ring, old, last) };
        is_ours.then_some(())?;
        let (given_back, end) = match look(old) {
            Look::Available => self.return_burst(ring, old, (new != old).then_some(new)),
            _ => (0, old),
        };
        if given_back > 0 {
            return Some((Resumed { position: end.to_bits(), given_back, ..resumed }, old));
        }
        self.return_inflight(ring, resumed, last)
    }

    /// Gives a burst back that was not shown, if entries behind its first are overwritten; answers how many chains it has
    /// and where it ends. If the burst was not announced yet, it ends at the first entry that is not overwritten.
    fn return_burst(&self, ring: &impl PackedSlots, start: Place, announced: Option<Place>) -> (u16, Place) {
        let size = self.region.size;
        let width = |place: Place| self.region.get16(self.entry(place.index) + PACKED_WIDTH).clamp(1, size);
        let is_used = |place: Place| Look::of(ring.id_and_flags(place.index).1, place.wrap) == Look::Used;
        let mut chains = vec![start];
        let (mut end, mut left) = (start.plus(width(start), size), size - width(start));
        let mut has_lost = false;
        while left > 0 && announced.map_or_else(|| is_used(end), |announced| announced != end) {
            has_lost |= is_used(end);
            chains.push(end);
            let step = width(end).min(left);
            (end, left) = (end.plus(step, size), left - step);
        }
        if !has_lost {
            return (0, start);
        }
        // Announced as any burst is, so that this may be cut off as well.
        let last = Place::from_bits(self.last.load(Ordering::Relaxed));
        self.write(Standing { new: end, old: start, last });
        // The first last, for it shows them all. Length 0 for each: a frame that fills several buffers is whole or not there.
        for &chain in chains.iter().rev() {
            // Where a chain is as the guest made it, its id stands in its last entry (virtio 1.2 section 2.8.6).
            let at = if is_used(chain) { chain } else { chain.plus(width(chain) - 1, size) };
            let (id, _) = ring.id_and_flags(at.index);
            ring.put_used(chain.index, 0, id, used_flags(chain.wrap));
        }
        (chains.len() as u16, end)
    }

    /// Gives back what another backend had in flight, from where the ring stands on.
    fn return_inflight(&self, ring: &impl PackedSlots, mut resumed: Resumed, last: Place) -> Option<(Resumed, Place)> {
        let (region, size) = (&self.region, self.region.size);
        let heads = region.inflight(PACKED_ENTRIES, PACKED_ENTRY, PACKED_COUNTER);
        let start = Place::from_bits(resumed.position);
        let (mut at, mut walked, mut first) = (start, 0, None);
        for head in heads {
            let entry = self.entry(head);
            let tail = region.get16(entry + PACKED_LAST);
            let width = region.get16(entry + PACKED_WIDTH);
            walked += u32::from(width);
            if tail >= size || width == 0 || walked > u32::from(size) {
                return None;
            }
            let id = region.get16(self.entry(tail) + PACKED_ID);
            match first {
                None => first = Some(id),
                Some(_) => ring.put_used(at.index, 0, id, used_flags(at.wrap)),
            }
            at = at.plus(width, size);
            resumed.given_back += 1;
        }
        let Some(id) = first else { return Some((resumed, last)) };
        ring.put_used(start.index, 0, id, used_flags(start.wrap));
        Some((Resumed { position: at.to_bits(), ..resumed }, start))
    }
}

/// Whether a ring that looks so can stand at `at` if the last entry marked used was `last`.
///
/// A fresh ring looks so in one case: the last chain went around the ring's end, and the guest made available just what
/// hides that. It takes a guest that is started anew in the moments in which no switch runs.
fn fits(ring: &impl PackedSlots, at: Place, last: Place) -> bool {
    let look = |place: Place| Look::of(ring.id_and_flags(place.index).1, place.wrap);
    match look(at) {
        // The guest is there already, and may have come round as far as `last`; or we had, with a burst that was not shown.
        Look::Available => match look(last) {
            Look::Available => false,
            Look::OtherAvailable => true,
            Look::Used | Look::OtherUsed => !ring.is_blank(last.index),
        },
        // It is not, and so not at `last` either, which is further on.
        Look::OtherUsed | Look::OtherAvailable => look(last) == Look::Used && !ring.is_blank(last.index),
        Look::Used => false,
    }
}
