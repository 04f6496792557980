//! A device as the virtio specification words it, slow and obvious, to hold drivers against.
//!
//! It knows nothing of the driver's code: it finds the rings by the addresses that the driver would tell a backend, and
//! reads and writes them with a loop for every sentence. What a driver must not do is an assertion here.

use super::{GUEST_BASE, USER_BASE};
use crate::chain::{INDIRECT, NEXT, WRITE};
use crate::memory::DriverMemory;
use crate::message::RingAddresses;
use crate::net::F_RING_PACKED;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

/// A buffer of a chain: guest address, bytes, whether the device writes it.
pub(super) type Buffer = (u64, u32, bool);

/// A chain that the driver made available.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    pub(super) id: u16,
    pub(super) buffers: Vec<Buffer>,
    /// Descriptors of the ring it takes.
    width: u16,
}

impl Chain {
    pub(super) fn len(&self) -> usize {
        self.buffers.iter().map(|buffer| buffer.1 as usize).sum()
    }
}

/// When the device wants to be kicked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kicks {
    Always,
    Never,
    /// When what is made available reaches over this many more descriptors (packed) or chains (split).
    After(u16),
}

/// An entry of the ring and the lap's wrap counter; split rings count entries without end and leave it `true`.
type Place = (u16, bool);

pub(super) struct Device {
    memory: Arc<DriverMemory>,
    at: [usize; 3],
    size: u16,
    is_packed: bool,
    /// The next to take, and the next to give back.
    available: Place,
    used: Place,
    under_way: BTreeMap<u16, Chain>,
    /// Descriptors of the ring that those take.
    width_under_way: u32,
    kicks_at: Option<Place>,
    /// Used entries that were last written.
    given: Vec<Place>,
}

impl Device {
    pub(super) fn new(memory: &Arc<DriverMemory>, addresses: &RingAddresses, size: u16, features: u64) -> Device {
        let offset = |address: u64| (address - USER_BASE) as usize;
        let is_packed = features & F_RING_PACKED != 0;
        let start = (0, true);
        Device {
            memory: memory.clone(),
            at: [offset(addresses.descriptors), offset(addresses.available), offset(addresses.used)],
            size,
            is_packed,
            available: start,
            used: start,
            under_way: BTreeMap::new(),
            width_under_way: 0,
            kicks_at: None,
            given: Vec::new(),
        }
    }

    /// Goes on where SET_VRING_BASE says, with nothing under way.
    pub(super) fn restart(&mut self, base: u32) {
        let place = |bits: u16| (bits & 0x7fff, bits & 0x8000 != 0);
        self.under_way.clear();
        self.width_under_way = 0;
        if self.is_packed {
            (self.available, self.used) = (place(base as u16), place((base >> 16) as u16));
        } else {
            (self.available, self.used) = ((base as u16, true), (base as u16, true));
        }
    }

    fn step(&self, (index, wrap): Place) -> Place {
        match self.is_packed {
            false => (index.wrapping_add(1), true),
            true if index + 1 == self.size => (0, !wrap),
            true => (index + 1, wrap),
        }
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le(self.memory.word(at).load(SeqCst))
    }

    fn put_u16(&self, at: usize, value: u16) {
        self.memory.word(at).store(value.to_le(), SeqCst);
    }

    fn put_u32(&self, at: usize, value: u32) {
        self.memory.word32(at).store(value.to_le(), SeqCst);
    }

    /// `struct virtq_desc` or `struct pvirtq_desc`: address, length and the last two fields as they stand.
    fn descriptor(&self, at: usize) -> (u64, u32, u16, u16) {
        let mut bytes = [0; 16];
        self.memory.read(at, &mut bytes);
        let half = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        let address = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        (address, u32::from_le_bytes(bytes[8..12].try_into().unwrap()), half(12), half(14))
    }

    /// The next chain made available, if there is one.
    pub(super) fn take(&mut self) -> Option<Chain> {
        let chain = if self.is_packed { self.take_packed() } else { self.take_split() }?;
        let rest: Vec<bool> = chain.buffers.iter().map(|buffer| buffer.2).collect();
        assert!(rest.is_sorted(), "a buffer to read behind one to write");
        assert!(!chain.buffers.is_empty() && chain.buffers.iter().all(|buffer| buffer.1 > 0), "a buffer of no byte");
        assert!(self.under_way.insert(chain.id, chain.clone()).is_none(), "id {} is under way already", chain.id);
        self.width_under_way += u32::from(chain.width);
        assert!(self.width_under_way <= u32::from(self.size), "more under way than the ring holds");
        Some(chain)
    }

    /// Section 2.7.6: the available ring; section 2.7.5: the table.
    fn take_split(&mut self) -> Option<Chain> {
        let (position, _) = self.available;
        if self.u16(self.at[1] + 2) == position {
            return None;
        }
        let id = self.u16(self.at[1] + 4 + 2 * usize::from(position % self.size));
        self.available = self.step(self.available);
        let (mut index, mut width, mut buffers) = (id, 0, Vec::new());
        loop {
            assert!(index < self.size, "descriptor {index} of a ring of {}", self.size);
            let (address, len, flags, next) = self.descriptor(self.at[0] + 16 * usize::from(index));
            width += 1;
            if flags & INDIRECT != 0 {
                assert_eq!(flags & NEXT, 0, "section 2.7.5.3.1: not both");
                assert!(len.is_multiple_of(16) && len > 0);
                let table = (address - GUEST_BASE) as usize;
                let mut index = 0;
                loop {
                    assert!(u32::from(index) < len / 16);
                    let (address, len, flags, next) = self.descriptor(table + 16 * usize::from(index));
                    assert_eq!(flags & INDIRECT, 0, "a table in a table");
                    buffers.push((address, len, flags & WRITE != 0));
                    if flags & NEXT == 0 {
                        break;
                    }
                    index = next;
                }
                break;
            }
            buffers.push((address, len, flags & WRITE != 0));
            if flags & NEXT == 0 {
                break;
            }
            index = next;
            assert!(width < self.size, "a loop");
        }
        Some(Chain { id, buffers, width })
    }

    /// Section 2.8.1 and 2.8.5: flags against the wrap counter; section 2.8.6: chains; section 2.8.7: tables.
    fn take_packed(&mut self) -> Option<Chain> {
        let mut chain = Chain { id: 0, buffers: Vec::new(), width: 0 };
        loop {
            let (index, wrap) = self.available;
            let (address, len, id, flags) = self.descriptor(self.at[0] + 16 * usize::from(index));
            let (is_available, is_used) = (flags & 1 << 7 != 0, flags & 1 << 15 != 0);
            if is_available != wrap || is_used == wrap {
                assert_eq!(chain.width, 0, "a chain that is not available as a whole");
                return None;
            }
            self.available = self.step(self.available);
            chain.width += 1;
            // Section 2.8.6: the id of the last descriptor counts.
            chain.id = id;
            if flags & INDIRECT != 0 {
                assert_eq!(flags & (NEXT | WRITE), 0, "section 2.8.7: neither with a table");
                assert!(len.is_multiple_of(16) && len > 0);
                for entry in 0..len as usize / 16 {
                    let at = (address - GUEST_BASE) as usize + 16 * entry;
                    let (address, len, _, flags) = self.descriptor(at);
                    chain.buffers.push((address, len, flags & WRITE != 0));
                }
                return Some(chain);
            }
            chain.buffers.push((address, len, flags & WRITE != 0));
            if flags & NEXT == 0 {
                return Some(chain);
            }
            assert!(chain.width < self.size, "a chain longer than the ring");
        }
    }

    /// All bytes of a chain the device may read.
    pub(super) fn read(&self, chain: &Chain) -> Vec<u8> {
        let mut all = Vec::new();
        for &(address, len, is_written) in &chain.buffers {
            assert!(!is_written, "a frame is sent in buffers to be read");
            let mut bytes = vec![0; len as usize];
            self.memory.read((address - GUEST_BASE) as usize, &mut bytes);
            all.extend(bytes);
        }
        all
    }

    /// Writes bytes into a chain.
    pub(super) fn write(&self, chain: &Chain, mut bytes: &[u8]) {
        assert!(bytes.len() <= chain.len());
        for &(address, len, is_written) in &chain.buffers {
            assert!(is_written, "a frame is received in buffers to be written");
            let (now, later) = bytes.split_at(bytes.len().min(len as usize));
            self.memory.write((address - GUEST_BASE) as usize, now);
            bytes = later;
        }
    }

    /// Gives chains back, with the bytes written into each, one entry for each.
    pub(super) fn give(&mut self, chains: &[(Chain, u32)]) {
        self.given.clear();
        let mut entries = Vec::new();
        for (chain, len) in chains {
            self.forget(chain.id);
            entries.push((self.used, chain.id, *len));
            self.given.push(self.used);
            for _ in 0..if self.is_packed { chain.width } else { 1 } {
                self.used = self.step(self.used);
            }
        }
        self.show(&entries);
    }

    /// Gives chains back in order by one entry for the last of them (sections 2.7.9 and 2.8.9).
    pub(super) fn give_as_one(&mut self, chains: &[(Chain, u32)]) {
        let Some((last, len)) = chains.last() else { return };
        let place = self.used;
        self.given.clear();
        for (chain, _) in chains {
            self.forget(chain.id);
            for _ in 0..if self.is_packed { chain.width } else { 1 } {
                self.given.push(self.used);
                self.used = self.step(self.used);
            }
        }
        self.show(&[(place, last.id, *len)]);
    }

    fn forget(&mut self, id: u16) {
        self.width_under_way -= self.under_way.remove(&id).map_or(0, |chain| u32::from(chain.width));
    }

    /// Writes used entries, whatever they say, so that the driver sees all of them or none.
    pub(super) fn show(&mut self, entries: &[(Place, u16, u32)]) {
        if self.is_packed {
            // The first one last.
            for &((index, wrap), id, len) in entries.iter().rev() {
                let at = self.at[0] + 16 * usize::from(index);
                // A device may leave anything in the address of a used descriptor.
                self.memory.write(at, &[0xa5; 8]);
                self.put_u32(at + 8, len);
                self.put_u16(at + 12, id);
                self.put_u16(at + 14, if wrap { 1 << 7 | 1 << 15 } else { 0 });
            }
        } else {
            for &((position, _), id, len) in entries {
                let at = self.at[2] + 4 + 8 * usize::from(position % self.size);
                self.put_u32(at, u32::from(id));
                self.put_u32(at + 4, len);
            }
            self.put_u16(self.at[2] + 2, self.used.0);
        }
    }

    /// Tells the driver when to kick, in the way that goes with or without event indices.
    pub(super) fn set_kicks(&mut self, kicks: Kicks, has_event_index: bool) {
        let place = match kicks {
            // With an index: the very next one, or the one that was last.
            Kicks::Always => Some(self.driver_next()),
            Kicks::Never => None,
            Kicks::After(count) => Some((0..count).fold(self.driver_next(), |place, _| self.step(place))),
        };
        self.kicks_at = place;
        if self.is_packed {
            let flags = match kicks {
                Kicks::Never => 1,
                Kicks::Always if !has_event_index => 0,
                _ => 2,
            };
            let (index, wrap) = place.unwrap_or((0, false));
            self.put_u32(self.at[2], u32::from(index | u16::from(wrap) << 15) | flags << 16);
        } else if has_event_index {
            self.put_u16(self.at[2], 0);
            let event = place.map_or(self.u16(self.at[1] + 2).wrapping_sub(1), |place| place.0);
            self.put_u16(self.at[2] + 4 + 8 * usize::from(self.size), event);
        } else {
            self.put_u16(self.at[2], u16::from(kicks == Kicks::Never));
        }
    }

    /// Where the driver stands: behind the last entry made available.
    pub(super) fn driver_next(&self) -> Place {
        if !self.is_packed {
            return (self.u16(self.at[1] + 2), true);
        }
        let mut place = self.available;
        for _ in 0..self.size {
            let (_, _, _, flags) = self.descriptor(self.at[0] + 16 * usize::from(place.0));
            if (flags & 1 << 7 != 0) != place.1 || (flags & 1 << 15 != 0) == place.1 {
                break;
            }
            place = self.step(place);
        }
        place
    }

    /// Whether the driver had to kick for the entries from `before` on.
    pub(super) fn is_kick_due(&self, before: Place) -> bool {
        let (mut place, end) = (before, self.driver_next());
        while place != end {
            if Some(place) == self.kicks_at {
                return true;
            }
            place = self.step(place);
        }
        false
    }

    /// Whether the driver wants an interrupt for what was last given back.
    pub(super) fn is_interrupt_due(&self, has_event_index: bool) -> bool {
        if self.is_packed {
            let (at, flags) = (self.u16(self.at[1]), self.u16(self.at[1] + 2));
            let place = (at & 0x7fff, at & 0x8000 != 0);
            return flags == 0 || flags == 2 && self.given.contains(&place);
        }
        if has_event_index {
            let event = self.u16(self.at[1] + 4 + 2 * usize::from(self.size));
            return self.given.contains(&(event, true));
        }
        self.u16(self.at[1]) & 1 == 0
    }
}
