//! Where things lie in a driver's memory: all rings first, then indirect tables, then buffers.
//!
//! Rings come in the order of their numbers, each of their three parts on its own page, so that a test can name a page. The
//! buffers of a ring are one after another. Nothing overlaps unless a test writes it so.

use super::{DriverConfig, Shape};
use crate::net::F_RING_PACKED;

const PAGE: usize = 4096;
const CACHE_LINE: usize = 64;

/// What one ring is like and where its memory begins; offsets in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) is_packed: bool,
    pub(super) size: u16,
    pub(super) shape: Shape,
    /// Whether the device writes the buffers.
    pub(super) is_written: bool,
    /// Descriptors; what the driver writes besides; what the device writes besides.
    pub(super) parts: [usize; 3],
    pub(super) tables: usize,
    pub(super) buffers: usize,
    pub(super) buffer_len: usize,
}

/// Bytes of a ring's three parts, each in whole pages.
fn parts(size: u16, is_packed: bool) -> [usize; 3] {
    let size = usize::from(size);
    // Virtio 1.2 sections 2.7 and 2.8.
    let parts = if is_packed { [16 * size, 4, 4] } else { [16 * size, 6 + 2 * size, 6 + 8 * size] };
    parts.map(|len| len.next_multiple_of(PAGE))
}

/// Places of all rings, in the order of their numbers, and the bytes of memory they take.
pub(super) fn places(config: &DriverConfig) -> (Vec<Place>, usize) {
    let is_packed = config.features & F_RING_PACKED != 0;
    let size = config.queue_size;
    let mut at = 0;
    let mut take = |len: usize| {
        at += len;
        at - len
    };
    let mut places: Vec<Place> = (0..2 * config.pairs)
        .map(|index| {
            let is_written = index % 2 == 0;
            let (shape, buffer_len) = match is_written {
                true => (config.receive_shape, config.receive_buffer_len),
                false => (config.send_shape, config.send_buffer_len),
            };
            let parts = parts(size, is_packed).map(&mut take);
            Place { is_packed, size, shape, is_written, parts, tables: 0, buffers: 0, buffer_len }
        })
        .collect();
    for place in &mut places {
        if place.shape.is_indirect {
            place.tables = take((usize::from(size) * usize::from(place.shape.pieces) * 16).next_multiple_of(PAGE));
        }
    }
    for place in &mut places {
        place.buffers =
            take((config.buffer_offset + usize::from(size) * place.buffer_len).next_multiple_of(CACHE_LINE));
        place.buffers += config.buffer_offset;
    }
    (places, at.next_multiple_of(PAGE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_things_share_a_byte() {
        for (features, shape) in
            [(0, Shape::indirect(3)), (F_RING_PACKED, Shape::SINGLE), (F_RING_PACKED, Shape::linked(2))]
        {
            let mut config = DriverConfig::new("unused");
            (config.features, config.pairs, config.queue_size) = (features, 3, 64);
            (config.send_shape, config.receive_buffer_len, config.buffer_offset) = (shape, 1000, 52);
            let (places, len) = places(&config);
            assert_eq!(places.len(), 6);
            let mut ranges = vec![(len, len)];
            for place in &places {
                for (at, len) in place.parts.into_iter().zip(parts(64, place.is_packed)) {
                    ranges.push((at, at + len));
                }
                if place.shape.is_indirect {
                    ranges.push((place.tables, place.tables + 64 * 16 * usize::from(shape.pieces)));
                }
                ranges.push((place.buffers, place.buffers + 64 * place.buffer_len));
            }
            ranges.sort_unstable();
            assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{ranges:?}");
        }
    }
}
