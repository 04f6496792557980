//! The frames that a generator sends: UDP over IPv4 between two sets of stations, checksums right.

use std::ops::RangeInclusive;

/// Frame sizes that can be asked for, bytes: from the shortest Ethernet frame to the largest of a standard MTU.
pub(crate) const SIZES: RangeInclusive<usize> = 60..=1514;
const HEADERS: usize = 14 + 20 + 8;

/// Frames from each of `count` stations of side `from` to stations of the other side, `size` bytes each.
///
/// Station n sends to station 7 n + 3 of the other side, so that neither look-up of a frame follows from the other.
pub(crate) fn frames(from: u8, size: usize, count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|number| frame(from, number, (7 * number + 3) % count, size)).collect()
}

fn mac(side: u8, number: usize) -> [u8; 6] {
    let [high, low] = (number as u16).to_be_bytes();
    [0x02, 0, 0, side, high, low]
}

fn address(side: u8, number: usize) -> [u8; 4] {
    let [high, low] = (number as u16).to_be_bytes();
    [10, side, high, low]
}

fn frame(from: u8, source: usize, destination: usize, size: usize) -> Vec<u8> {
    let to = 1 - from;
    let mut frame = Vec::with_capacity(size);
    frame.extend(mac(to, destination));
    frame.extend(mac(from, source));
    frame.extend([0x08, 0x00]);
    let ip_len = (size - 14) as u16;
    // RFC 791: version 4, 5 words, no fragment, TTL 64, UDP.
    frame.extend([0x45, 0]);
    frame.extend(ip_len.to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend(address(from, source));
    frame.extend(address(to, destination));
    let sum = frame[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    frame[24..26].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    // RFC 768: a zero checksum means that there is none.
    frame.extend(1024u16.to_be_bytes());
    frame.extend(1024u16.to_be_bytes());
    frame.extend((ip_len - 20).to_be_bytes());
    frame.extend([0, 0]);
    frame.resize(size.max(HEADERS), 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_has_its_own_source_and_a_destination_of_the_other_side() {
        let frames = frames(0, 60, 1000);
        let sources: std::collections::HashSet<_> = frames.iter().map(|frame| frame[6..12].to_vec()).collect();
        let destinations: std::collections::HashSet<_> = frames.iter().map(|frame| frame[..6].to_vec()).collect();
        assert_eq!((sources.len(), destinations.len()), (1000, 1000));
        assert!(frames.iter().all(|frame| frame.len() == 60 && frame[3] == 1 && frame[9] == 0));
    }

    #[test]
    fn the_ip_header_sums_to_all_ones() {
        for frame in frames(1, 1514, 3) {
            let mut sum: u32 =
                frame[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
            sum = (sum & 0xffff) + (sum >> 16);
            assert_eq!(sum, 0xffff);
        }
    }
}
