//! A descriptor chain: the buffers of one frame, as a guest linked them.
//!
//! The walk is pure: it reads descriptors through a trait, so that tests and the fuzzer can feed it from bytes. What
//! makes it hard is that the table may change while we walk. So every descriptor is read once, into private memory, and
//! only the copy is looked at; nothing read earlier is believed to hold still. For the same reason an indirect table
//! needs no copy of its own: each entry is read once, when the walk gets there.
//! Bounds: at most [`CHAIN_MAX`] descriptors a chain and never more than the queue has; so a loop ends, and one chain
//! costs at most that many reads whatever a guest writes. In a packed ring, where a broken chain's end must be found all the
//! same, it is [`WIDTH_MAX`]. Reads are counted, so that many chains together can be bounded as well.

use switch::ledger::DropReason;
use switch::packet::SEGMENTS_MAX;

/// The chain goes on at `next` (virtio 1.2 section 2.7.5).
pub const NEXT: u16 = 1;
/// The device writes this buffer; otherwise it reads it.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// Bytes of a descriptor.
pub const DESCRIPTOR_LEN: usize = 16;

/// Descriptors a chain may have: the tail's segments, and some for headers and the front of the frame.
pub const CHAIN_MAX: usize = SEGMENTS_MAX + 4;
/// Entries of a packed ring that a chain may take, so that it can be given back; one of more than [`CHAIN_MAX`] is broken all
/// the same. Virtio 1.2 section 2.8.18 lets a device limit it. No driver that we know of makes a frame of more.
pub const WIDTH_MAX: u16 = 256;
const _: () = assert!(WIDTH_MAX as usize > CHAIN_MAX, "a good chain is never too wide");

/// One entry of a descriptor table, read once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Descriptor {
    /// Guest physical address of the buffer.
    pub address: u64,
    /// Its bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next descriptor, if [`NEXT`] is set.
    pub next: u16,
}

impl Descriptor {
    /// Reads the 16 little-endian bytes of a table entry.
    #[inline]
    pub fn from_words(low: u64, high: u64) -> Descriptor {
        let (address, rest) = (u64::from_le(low), u64::from_le(high));
        Descriptor { address, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }

    /// The 16 bytes of a table entry.
    #[inline]
    pub fn to_words(self) -> (u64, u64) {
        let high = u64::from(self.len) | u64::from(self.flags) << 32 | u64::from(self.next) << 48;
        (self.address.to_le(), high.to_le())
    }

    /// Whether it is a whole chain by itself: neither linked nor indirect.
    #[inline]
    pub fn is_alone(&self) -> bool {
        self.flags & (NEXT | INDIRECT) == 0
    }
}

/// Where descriptors are read from.
pub trait DescriptorSource {
    /// Entry `index` of the ring's table; `None` beyond its end.
    fn entry(&self, index: u16) -> Option<Descriptor>;

    /// The descriptor at a guest physical address; `None` outside memory.
    fn at(&self, address: u64) -> Option<Descriptor>;
}

/// Which way the buffers of a chain must go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// The guest sends: the device reads all of them.
    FromGuest,
    /// The guest receives: the device writes all of them.
    ToGuest,
}

/// What is wrong with a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChainError {
    /// An index beyond the table.
    #[error("a descriptor index beyond the table")]
    IndexBeyondTable,
    /// It comes back to where it was.
    #[error("the chain loops")]
    Loop,
    /// More descriptors than [`CHAIN_MAX`].
    #[error("more than {CHAIN_MAX} descriptors")]
    TooLong,
    /// A buffer for the other direction.
    #[error("a buffer for the other direction")]
    WrongDirection,
    /// An indirect table within an indirect table, or one that is chained on.
    #[error("an indirect table is nested or chained")]
    IndirectNested,
    /// An indirect table of no, broken or more entries than the queue has.
    #[error("an indirect table of impossible size")]
    IndirectSize,
    /// An address outside guest memory.
    #[error("an address outside memory")]
    OutOfMemory,
}

impl ChainError {
    /// The reason by which the frame is counted.
    pub fn drop_reason(self) -> DropReason {
        match self {
            ChainError::TooLong => DropReason::TooManySegments,
            _ => DropReason::BadDescriptor,
        }
    }
}

/// A buffer of guest memory; the address has not been held against the memory table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Buffer {
    /// Guest physical address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
}

/// The buffers of one chain; reused for every chain.
pub struct Chain {
    buffers: [Buffer; CHAIN_MAX],
    count: usize,
    /// Descriptors that were read for this and all chains before it.
    reads: u64,
}

impl Default for Chain {
    fn default() -> Self {
        Chain { buffers: [Buffer::default(); CHAIN_MAX], count: 0, reads: 0 }
    }
}

impl Chain {
    /// The buffers, in order.
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers[..self.count]
    }

    /// Bytes of all buffers. Cannot overflow: at most [`CHAIN_MAX`] times 4 GiB.
    pub fn len(&self) -> u64 {
        self.buffers().iter().map(|buffer| u64::from(buffer.len)).sum()
    }

    /// Whether there is no buffer.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Forgets the buffers.
    pub fn clear(&mut self) {
        self.count = 0;
    }

    /// Descriptors that were read for this and all chains before it; what a guest's chains cost is told by how much it grows.
    pub fn reads(&self) -> u64 {
        self.reads
    }

    fn push(&mut self, entry: &Descriptor, direction: Direction) -> Result<(), ChainError> {
        if (entry.flags & WRITE != 0) != (direction == Direction::ToGuest) {
            return Err(ChainError::WrongDirection);
        }
        *self.buffers.get_mut(self.count).ok_or(ChainError::TooLong)? =
            Buffer { address: entry.address, len: entry.len };
        self.count += 1;
        Ok(())
    }

    /// Counts a descriptor that was read only to find the end of a broken chain.
    pub(crate) fn pass_over(&mut self) {
        self.reads += 1;
    }

    /// Puts what the next descriptor of a packed ring of `queue_size` entries names behind the buffers: itself, or those of
    /// its indirect table, whose entries `at` reads by their guest addresses. On an error the buffers mean nothing.
    ///
    /// # Errors
    /// [`ChainError`] for everything virtio 1.2 sections 2.8.5 to 2.8.8 forbid.
    pub fn push_packed(
        &mut self,
        descriptor: &Descriptor,
        direction: Direction,
        queue_size: u16,
        mut at: impl FnMut(u64) -> Option<Descriptor>,
    ) -> Result<(), ChainError> {
        self.reads += 1;
        if descriptor.flags & INDIRECT == 0 {
            return self.push(descriptor, direction);
        }
        // Section 2.8.8: a table is a whole chain; its own write flag is to be ignored.
        if descriptor.flags & NEXT != 0 || self.count > 0 {
            return Err(ChainError::IndirectNested);
        }
        let table = Table::new(descriptor, queue_size)?;
        for index in 0..table.entries {
            // Section 2.8.7: its entries follow one another, and of their flags only the one for writing means something.
            let address = table.address.checked_add(u64::from(index) * DESCRIPTOR_LEN as u64);
            self.reads += 1;
            let entry = address.and_then(&mut at).ok_or(ChainError::OutOfMemory)?;
            // Split and packed descriptors differ in where the flags are.
            self.push(&Descriptor { flags: entry.next, ..entry }, direction)?;
        }
        Ok(())
    }

    /// Follows the chain that starts at `head` in a queue of `queue_size` entries. On an error the buffers found so far
    /// mean nothing.
    ///
    /// # Errors
    /// [`ChainError`] for everything virtio 1.2 section 2.7.5 forbids.
    pub fn walk(
        &mut self,
        source: &impl DescriptorSource,
        queue_size: u16,
        head: u16,
        direction: Direction,
    ) -> Result<(), ChainError> {
        self.count = 0;
        let mut visited = [0u16; CHAIN_MAX];
        let mut table: Option<Table> = None;
        // Where the present table's part of the chain begins, and the most entries that part can have.
        let (mut from, mut entries) = (0, usize::from(queue_size));
        let mut index = head;
        let mut entry = source.entry(head).ok_or(ChainError::IndexBeyondTable)?;
        loop {
            self.reads += 1;
            if entry.flags & INDIRECT != 0 {
                // Section 2.7.5.3.2: a table may end a chain of buffers, and its write flag is to be ignored.
                if table.is_some() || entry.flags & NEXT != 0 {
                    return Err(ChainError::IndirectNested);
                }
                let inner = Table::new(&entry, queue_size)?;
                (from, entries, index) = (self.count, usize::from(inner.entries), 0);
                entry = inner.entry(source, 0)?;
                table = Some(inner);
                continue;
            }
            self.push(&entry, direction)?;
            visited[self.count - 1] = index;
            if entry.flags & NEXT == 0 {
                return Ok(());
            }
            let steps = self.count - from;
            if steps == entries || self.count == CHAIN_MAX {
                // Which of the two it was is looked up only now, when the chain is lost anyway.
                let loops = steps == entries || visited[from..self.count].contains(&entry.next);
                return Err(if loops { ChainError::Loop } else { ChainError::TooLong });
            }
            index = entry.next;
            entry = match &table {
                Some(table) => table.entry(source, index)?,
                None => source.entry(index).ok_or(ChainError::IndexBeyondTable)?,
            };
        }
    }
}

/// An indirect table.
struct Table {
    address: u64,
    entries: u16,
}

impl Table {
    fn new(descriptor: &Descriptor, queue_size: u16) -> Result<Table, ChainError> {
        let entries = descriptor.len / DESCRIPTOR_LEN as u32;
        if entries == 0 || !descriptor.len.is_multiple_of(DESCRIPTOR_LEN as u32) || entries > u32::from(queue_size) {
            return Err(ChainError::IndirectSize);
        }
        Ok(Table { address: descriptor.address, entries: entries as u16 })
    }

    fn entry(&self, source: &impl DescriptorSource, index: u16) -> Result<Descriptor, ChainError> {
        if index >= self.entries {
            return Err(ChainError::IndexBeyondTable);
        }
        let address = self.address.checked_add(u64::from(index) * DESCRIPTOR_LEN as u64);
        address.and_then(|address| source.at(address)).ok_or(ChainError::OutOfMemory)
    }
}

/// A descriptor table and a memory made of plain bytes, for tests and the fuzzer. The memory starts at guest address 0.
pub struct BytesSource<'a> {
    /// The ring's table, 16 bytes an entry.
    pub table: &'a [u8],
    /// Guest memory.
    pub memory: &'a [u8],
}

impl BytesSource<'_> {
    fn read(bytes: &[u8], at: usize) -> Option<Descriptor> {
        let bytes = bytes.get(at..at.checked_add(DESCRIPTOR_LEN)?)?;
        let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes were sliced"));
        Some(Descriptor::from_words(word(0), word(8)))
    }
}

impl DescriptorSource for BytesSource<'_> {
    fn entry(&self, index: u16) -> Option<Descriptor> {
        BytesSource::read(self.table, usize::from(index) * DESCRIPTOR_LEN)
    }

    fn at(&self, address: u64) -> Option<Descriptor> {
        BytesSource::read(self.memory, usize::try_from(address).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn bytes(descriptors: &[Descriptor]) -> Vec<u8> {
        descriptors
            .iter()
            .flat_map(|descriptor| {
                let (low, high) = descriptor.to_words();
                [low.to_ne_bytes(), high.to_ne_bytes()].concat()
            })
            .collect()
    }

    fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> Descriptor {
        Descriptor { address, len, flags, next }
    }

    fn walk(table: &[Descriptor], memory: &[Descriptor], head: u16) -> Result<Vec<Buffer>, ChainError> {
        let (table, memory) = (bytes(table), bytes(memory));
        let source = BytesSource { table: &table, memory: &memory };
        let mut chain = Chain::default();
        chain.walk(&source, (table.len() / DESCRIPTOR_LEN) as u16, head, Direction::FromGuest)?;
        Ok(chain.buffers().to_vec())
    }

    #[test]
    fn a_chain_is_followed_in_its_order() {
        let table = [descriptor(1, 10, 0, 9), descriptor(2, 20, NEXT, 0), descriptor(3, 30, NEXT, 1)];
        let buffers = walk(&table, &[], 2).unwrap();
        assert_eq!(buffers.iter().map(|buffer| buffer.address).collect::<Vec<_>>(), [3, 2, 1]);
    }

    #[test]
    fn loops_end_and_are_called_so() {
        assert_eq!(walk(&[descriptor(0, 1, NEXT, 0)], &[], 0), Err(ChainError::Loop));
        let mut table = vec![descriptor(0, 1, 0, 0); 256];
        table[7] = descriptor(0, 1, NEXT, 9);
        table[9] = descriptor(0, 1, NEXT, 7);
        assert_eq!(walk(&table, &[], 7), Err(ChainError::Loop));
        let long: Vec<_> = (0..256).map(|index| descriptor(0, 1, NEXT, index + 1)).collect();
        assert_eq!(walk(&long, &[], 0), Err(ChainError::TooLong));
    }

    #[test]
    fn indirect_tables_are_neither_nested_nor_chained_nor_of_odd_size() {
        let inner = [descriptor(64, 5, NEXT, 1), descriptor(65, 6, 0, 0)];
        let table = |len: u32, flags: u16| vec![descriptor(0, len, flags, 1), descriptor(0, 1, 0, 0)];
        assert_eq!(walk(&table(32, INDIRECT), &inner, 0).map(|buffers| buffers.len()), Ok(2));
        assert_eq!(walk(&table(32, INDIRECT | NEXT), &inner, 0), Err(ChainError::IndirectNested));
        assert_eq!(walk(&table(33, INDIRECT), &inner, 0), Err(ChainError::IndirectSize));
        assert_eq!(walk(&table(0, INDIRECT), &inner, 0), Err(ChainError::IndirectSize));
        assert_eq!(walk(&table(48, INDIRECT), &inner, 0), Err(ChainError::IndirectSize), "3 entries, queue of 2");
        assert_eq!(walk(&table(16, INDIRECT), &inner, 0), Err(ChainError::Loop), "a chain longer than its table");
        let nested = [descriptor(0, 16, INDIRECT, 0)];
        assert_eq!(walk(&table(16, INDIRECT), &nested, 0), Err(ChainError::IndirectNested));
        let outside = [descriptor(u64::MAX - 8, 16, INDIRECT, 0)];
        assert_eq!(walk(&outside, &inner, 0), Err(ChainError::OutOfMemory));
        let after = [descriptor(64, 5, NEXT, 1), descriptor(0, 32, INDIRECT, 0)];
        assert_eq!(walk(&after, &inner, 0).map(|buffers| buffers.len()), Ok(3), "a table may end a chain");
    }

    #[test]
    fn buffers_of_the_other_direction_and_foreign_indices_are_refused() {
        assert_eq!(walk(&[descriptor(0, 1, WRITE, 0)], &[], 0), Err(ChainError::WrongDirection));
        assert_eq!(walk(&[descriptor(0, 1, NEXT, 1)], &[], 1), Err(ChainError::IndexBeyondTable));
        let table = [descriptor(0, 1, NEXT, 77), descriptor(0, 1, 0, 0)];
        assert_eq!(walk(&table, &[], 0), Err(ChainError::IndexBeyondTable));
    }

    /// The rules once more, slowly and in another shape: unroll the path, table by table, then judge it.
    fn oracle(table: &[Descriptor], memory: &[Descriptor], head: u16) -> Option<Vec<Buffer>> {
        let unroll = |list: &[Descriptor], start: u16| {
            let (mut seen, mut path, mut index) = (HashSet::new(), Vec::new(), start);
            loop {
                let entry = *list.get(usize::from(index))?;
                if !seen.insert(index) {
                    return None;
                }
                path.push(entry);
                if entry.flags & INDIRECT != 0 || entry.flags & NEXT == 0 {
                    return Some(path);
                }
                index = entry.next;
            }
        };
        let mut path = unroll(table, head)?;
        let last = *path.last()?;
        if last.flags & INDIRECT != 0 {
            path.pop();
            let entries = last.len as usize / DESCRIPTOR_LEN;
            let fits = (last.len as usize).is_multiple_of(DESCRIPTOR_LEN) && entries > 0 && entries <= table.len();
            if last.flags & NEXT != 0 || !fits {
                return None;
            }
            let from = usize::try_from(last.address).ok()? / DESCRIPTOR_LEN;
            let end = memory.len().min(from.checked_add(entries)?);
            path.extend(unroll(memory.get(from..end)?, 0)?);
        }
        let is_good = path.len() <= CHAIN_MAX && path.iter().all(|entry| entry.flags & (WRITE | INDIRECT) == 0);
        is_good.then(|| path.iter().map(|entry| Buffer { address: entry.address, len: entry.len }).collect())
    }

    fn any_descriptor(count: u16) -> impl Strategy<Value = Descriptor> {
        let flags = prop_oneof![6 => Just(NEXT), 3 => Just(0u16), 1 => Just(INDIRECT), 1 => any::<u16>()];
        (0u64..12, 0u32..8, flags, 0..count + 1)
            .prop_map(|(address, len, flags, next)| descriptor(address * 16, len * 16, flags, next))
    }

    proptest! {
        #[test]
        fn the_walk_agrees_with_a_slow_oracle(
            table in proptest::collection::vec(any_descriptor(60), 1..61),
            memory in proptest::collection::vec(any_descriptor(8), 0..10),
            head in 0u16..61
        ) {
            prop_assert_eq!(walk(&table, &memory, head).ok(), oracle(&table, &memory, head));
        }
    }

    #[test]
    fn two_seconds_of_random_tables_end_without_a_panic() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let end = std::time::Instant::now() + std::time::Duration::from_secs(2);
        let mut chain = Chain::default();
        while std::time::Instant::now() < end {
            let table: Vec<u8> = (0..random() % 2048).map(|_| (random() >> 20) as u8 & 0x1f).collect();
            let memory: Vec<u8> = (0..random() % 512).map(|_| (random() >> 20) as u8 & 0x07).collect();
            let source = BytesSource { table: &table, memory: &memory };
            for head in 0..16 {
                let _ = chain.walk(&source, random() as u16, head, Direction::ToGuest);
                assert!(chain.buffers().len() <= CHAIN_MAX);
            }
        }
    }
}
