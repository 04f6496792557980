//! The Internet checksum (RFC 1071): over a frame that lies in pieces, and its update when a field changes (RFC 1624).
//!
//! What makes it harder than it looks is speed, and pieces of odd length. A ones' complement sum does not depend on byte
//! order (RFC 1071 section 2B), so words are added as the machine reads them, four bytes at a time into 64 bits, and carries
//! come back once at the end. A piece that begins at an odd place is summed by itself and swapped. Tails are summed where
//! they lie, without a copy; a guest that changes them afterwards makes its own frame wrong.
//! Bounds: none are needed below 2^31 pieces of any length.

use crate::packet::Packet;
use crate::segment::Segment;

/// A ones' complement sum over bytes that come in pieces of any length.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// The sum of native 16-bit words, carries not yet added back.
    total: u64,
    /// Whether an odd number of bytes was added, so that the next byte is the low one of its word.
    is_odd: bool,
}

impl Sum {
    /// Adds a piece that stands behind those before.
    #[inline]
    pub fn add(&mut self, bytes: &[u8]) {
        self.add_segment(&Segment::from(bytes));
    }

    /// The same for a piece in shared memory.
    #[inline]
    pub fn add_segment(&mut self, segment: &Segment<'_>) {
        let piece = segment.sum();
        self.total += if self.is_odd { u64::from(fold(piece).swap_bytes()) } else { u64::from(halve(piece)) };
        self.is_odd ^= segment.len() % 2 == 1;
    }

    /// Adds one word, host byte order, where an even number of bytes was added before: part of a pseudo-header, say.
    #[inline]
    pub fn add_word(&mut self, word: u16) {
        debug_assert!(!self.is_odd, "words stand at even places");
        self.total += u64::from(word.to_be());
    }

    /// Takes a word out again that was added at an even place (RFC 1624 section 3: adding the complement subtracts).
    #[inline]
    pub fn remove_word(&mut self, word: u16) {
        self.add_word(!word);
    }

    /// Adds the sum of another run of bytes that stands behind those before.
    #[inline]
    pub fn add_sum(&mut self, other: Sum) {
        self.total +=
            if self.is_odd { u64::from(fold(other.total).swap_bytes()) } else { u64::from(halve(other.total)) };
        self.is_odd ^= other.is_odd;
    }

    /// The sum so far as one word, host byte order.
    #[inline]
    pub fn folded(self) -> u16 {
        u16::from_be(fold(self.total))
    }

    /// The checksum: the complement of the sum, host byte order. All zero is possible.
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.folded()
    }

    /// The checksum as UDP writes it: an all-zero one as all ones, for zero means "none" (RFC 768).
    #[inline]
    pub fn udp_checksum(self) -> u16 {
        match self.checksum() {
            0 => 0xffff,
            checksum => checksum,
        }
    }
}

/// Adds the carries beyond 32 bits back, once; at most 33 bits of sum become 32 and a carry of at most one.
#[inline]
fn halve(total: u64) -> u32 {
    let once = (total & 0xffff_ffff) + (total >> 32);
    (once & 0xffff_ffff) as u32 + (once >> 32) as u32
}

/// Adds all carries beyond 16 bits back.
#[inline]
fn fold(total: u64) -> u16 {
    let half = u64::from(halve(total));
    let twice = (half & 0xffff) + (half >> 16);
    ((twice & 0xffff) + (twice >> 16)) as u16
}

/// What a checksum field becomes when a word under it changes from `old` to `new`, all in host byte order.
///
/// HC' = ~(~HC + ~m + m'), which stays right where the older formula of RFC 1141 gives a second zero (RFC 1624 section 3).
#[inline]
pub fn updated(checksum: u16, old: u16, new: u16) -> u16 {
    let total = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    let once = (total & 0xffff) + (total >> 16);
    !((once & 0xffff) + (once >> 16)) as u16
}

/// Computes the partial checksum of a packet over head and tail, if it has one, and writes it into the head.
///
/// The field already holds the pseudo-header's sum, as virtio 1.2 section 5.1.6.2 asks of the sender. The parse stage has
/// made sure that the field lies in the head. It stays completed for further copies of the same packet.
pub fn complete(packet: &mut Packet, tail: &[Segment<'_>]) {
    let Some(partial) = packet.offload.checksum.take() else { return };
    let start = usize::from(partial.start);
    let field = start + usize::from(partial.offset);
    let mut sum = Sum::default();
    sum.add(packet.head().get(start..).expect("parse checked that the L4 header starts in the head"));
    for segment in tail {
        sum.add_segment(segment);
    }
    // TCP reads both zeros alike, so that nobody need ask here which of the two it is.
    let room =
        packet.head_mut().get_mut(field..field + 2).expect("parse checked that the checksum field is in the head");
    room.copy_from_slice(&sum.udp_checksum().to_be_bytes());
    packet.offload.checksum_valid = true;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 section 4.1, word by word.
    fn slow_sum(bytes: &[u8]) -> u16 {
        let mut total = 0u64;
        for pair in bytes.chunks(2) {
            total += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    /// Whether two sums are the same number: zero has two spellings, of which a sum of anything but zeros has only one.
    fn is_same(one: u16, other: u16) -> bool {
        one == other || one.is_multiple_of(0xffff) && other.is_multiple_of(0xffff)
    }

    #[test]
    fn the_example_of_rfc_1071_comes_out() {
        let mut sum = Sum::default();
        sum.add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), 0xddf2);
        assert_eq!(sum.checksum(), 0x220d);
    }

    #[test]
    fn a_right_ipv4_header_sums_to_all_ones() {
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8,
            0x00, 0xc7,
        ];
        let mut sum = Sum::default();
        sum.add(&header);
        assert_eq!(sum.folded(), 0xffff);
        assert_eq!((sum.checksum(), sum.udp_checksum()), (0, 0xffff));
    }

    #[test]
    fn all_ones_of_every_length_lose_no_carry() {
        let bytes = vec![0xffu8; 70_000];
        for len in (0..300).chain([1447, 1448, 4096, 65_535, 65_536, 70_000]) {
            let mut sum = Sum::default();
            sum.add(&bytes[..len]);
            assert_eq!(sum.folded(), slow_sum(&bytes[..len]), "{len} bytes");
        }
    }

    #[test]
    fn nothing_sums_to_zero() {
        let mut sum = Sum::default();
        sum.add(&[]);
        assert_eq!(sum.folded(), 0);
    }

    #[test]
    fn the_update_of_rfc_1624_section_4_gives_no_second_zero() {
        // The RFC's example: HC 0xdd2f, m 0x5555 becomes 0x3285; RFC 1141 gives 0xffff.
        assert_eq!(updated(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn pieces_of_any_length_sum_as_the_whole(
            bytes in proptest::collection::vec(any::<u8>(), 0..3000),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
            front in 0usize..16,
        ) {
            let bytes = &bytes[front.min(bytes.len())..];
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            places.push(bytes.len());
            places.sort_unstable();
            let (mut sum, mut from) = (Sum::default(), 0);
            for place in places {
                sum.add(&bytes[from..place]);
                from = place;
            }
            prop_assert_eq!(sum.folded(), slow_sum(bytes));
        }

        #[test]
        fn runs_join_at_any_place(
            runs in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 0..5),
        ) {
            let mut sum = Sum::default();
            for bytes in &runs {
                let mut run = Sum::default();
                run.add(bytes);
                sum.add_sum(run);
            }
            prop_assert_eq!(sum.folded(), slow_sum(&runs.concat()));
        }

        #[test]
        fn words_come_and_go(bytes in proptest::collection::vec(any::<[u8; 2]>(), 0..100), word: u16) {
            let bytes = bytes.concat();
            let mut sum = Sum::default();
            sum.add(&bytes);
            sum.add_word(word);
            prop_assert_eq!(sum.folded(), slow_sum(&[&bytes[..], &word.to_be_bytes()].concat()));
            sum.remove_word(word);
            prop_assert!(is_same(sum.folded(), slow_sum(&bytes)));
        }

        #[test]
        fn an_update_is_what_a_new_sum_would_be(words in proptest::collection::vec(any::<u16>(), 1..40), new: u16) {
            let bytes = |words: &[u16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
            let before = !slow_sum(&bytes(&words));
            let mut changed = words.clone();
            changed[0] = new;
            prop_assert!(is_same(updated(before, words[0], new), !slow_sum(&bytes(&changed))));
        }
    }
}
