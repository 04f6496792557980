//! Frames to send, taken from a capture: pcap (microseconds or nanoseconds, either byte order) and pcapng.
//!
//! Both formats are lists of records with a length; a reader of the few fields that a generator needs is shorter than the
//! use of a crate for all of them. Only Ethernet captures are of use. A frame of at least [`IN_PLACE_MIN`] bytes gets its
//! signature over its last bytes, which are payload then, without changing any Internet checksum; a shorter one
//! gets it appended, which Ethernet allows as padding behind the IP packet.

use crate::signature::TRAILER;
use crate::traffic::SIZE_MAX;
use anyhow::{Context, Result, bail, ensure};
use std::path::Path;

/// Frames that are read at most.
pub(crate) const TEMPLATES_MAX: usize = 65_536;
/// Bytes from which on a frame's last bytes are surely payload: Ethernet with two tags, the longest IPv4 and TCP headers.
const IN_PLACE_MIN: usize = 14 + 8 + 60 + 60 + TRAILER;
/// LINKTYPE_ETHERNET
const ETHERNET: u32 = 1;
/// Ethernet's minimum without the check sequence; captures of what a host sends hold shorter frames.
const FRAME_MIN: usize = 60;

/// A frame with room for a signature at its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Template(Box<[u8]>);

impl Template {
    /// Makes room in a frame, which has at least an Ethernet header.
    pub(crate) fn new(frame: &[u8]) -> Template {
        let mut bytes = frame.to_vec();
        if bytes.len() < IN_PLACE_MIN {
            bytes.resize((bytes.len() + TRAILER).max(FRAME_MIN), 0);
        }
        Template(bytes.into())
    }

    /// The frame; its last [`TRAILER`] bytes are to be overwritten.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Reads the frames of a capture file, of which none is longer than `len_max` with its signature.
///
/// # Errors
/// What is wrong with the file, and where.
pub(crate) fn read(path: &Path, len_max: usize) -> Result<Vec<Template>> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let frames = frames(&bytes).with_context(|| path.display().to_string())?;
    ensure!(!frames.is_empty(), "{}: no frame in it", path.display());
    let templates: Vec<Template> = frames.into_iter().map(Template::new).collect();
    for (number, template) in templates.iter().enumerate() {
        let len = template.bytes().len();
        ensure!(
            len <= len_max,
            "{}: frame {number} has {len} bytes with its signature; at most {len_max} can be sent",
            path.display()
        );
    }
    Ok(templates)
}

/// The frames of a capture in memory.
fn frames(bytes: &[u8]) -> Result<Vec<&[u8]>> {
    let reader = Reader { bytes, is_swapped: false };
    match reader.u32(0)? {
        0xa1b2_c3d4 | 0xa1b2_3c4d => pcap(reader),
        0xd4c3_b2a1 | 0x4d3c_b2a1 => pcap(Reader { bytes, is_swapped: true }),
        SECTION => pcapng(bytes),
        magic => bail!("neither pcap nor pcapng: begins with {magic:#010x}"),
    }
}

/// Numbers of a byte order.
#[derive(Clone, Copy)]
struct Reader<'a> {
    bytes: &'a [u8],
    /// Whether numbers are big-endian.
    is_swapped: bool,
}

impl<'a> Reader<'a> {
    fn part(&self, at: usize, len: usize) -> Result<&'a [u8]> {
        let end = at.checked_add(len).filter(|&end| end <= self.bytes.len());
        end.map(|end| &self.bytes[at..end]).with_context(|| format!("cut off: {len} bytes are missing at {at}"))
    }

    fn u16(&self, at: usize) -> Result<u16> {
        let bytes = self.part(at, 2)?.try_into()?;
        Ok(if self.is_swapped { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }

    fn u32(&self, at: usize) -> Result<u32> {
        let bytes = self.part(at, 4)?.try_into()?;
        Ok(if self.is_swapped { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    /// A frame of `len` bytes, of which `original` were on the wire.
    fn frame(&self, at: usize, len: u32, original: u32) -> Result<&'a [u8]> {
        ensure!(len >= 14, "the frame at byte {at} has no Ethernet header");
        ensure!(len == original, "the frame at byte {at} was cut by the capture: {len} of {original} bytes");
        ensure!(len as usize + TRAILER <= SIZE_MAX, "the frame at byte {at} has {len} bytes");
        self.part(at, len as usize)
    }
}

/// The frames of a classic capture (draft-ietf-opsawg-pcap).
fn pcap(reader: Reader<'_>) -> Result<Vec<&[u8]>> {
    let link = reader.u32(20)? & 0xffff;
    ensure!(link == ETHERNET, "not an Ethernet capture: link type {link}");
    let mut frames = Vec::new();
    let mut at = 24;
    while at < reader.bytes.len() && frames.len() < TEMPLATES_MAX {
        let len = reader.u32(at + 8)?;
        frames.push(reader.frame(at + 16, len, reader.u32(at + 12)?)?);
        at += 16 + len as usize;
    }
    Ok(frames)
}

/// Block types of pcapng (draft-ietf-opsawg-pcapng section 11.1).
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

/// The frames of a pcapng capture, from its Ethernet interfaces.
fn pcapng(bytes: &[u8]) -> Result<Vec<&[u8]>> {
    let mut reader = Reader { bytes, is_swapped: false };
    let mut is_ethernet = Vec::new();
    let mut frames = Vec::new();
    let mut at = 0;
    while at < bytes.len() && frames.len() < TEMPLATES_MAX {
        let kind = reader.u32(at)?;
        if kind == SECTION {
            reader.is_swapped = false;
            reader.is_swapped = match reader.u32(at + 8)? {
                0x1a2b_3c4d => false,
                0x4d3c_2b1a => true,
                magic => bail!("the section at byte {at} has byte-order magic {magic:#010x}"),
            };
            is_ethernet.clear();
        }
        let len = reader.u32(at + 4)? as usize;
        ensure!(len >= 12 && len.is_multiple_of(4), "the block at byte {at} says it has {len} bytes");
        // The whole block is there, so that no field of it is read from the next.
        let block = Reader { bytes: reader.part(at, len)?, ..reader };
        match kind {
            INTERFACE => is_ethernet.push(u32::from(block.u16(8)?) == ETHERNET),
            ENHANCED_PACKET if is_ethernet.get(block.u32(8)? as usize) == Some(&true) => {
                frames.push(block.frame(28, block.u32(20)?, block.u32(24)?)?);
            }
            SIMPLE_PACKET if is_ethernet.first() == Some(&true) => {
                let original = block.u32(8)?;
                frames.push(block.frame(12, original, original)?);
            }
            _ => {}
        }
        at += len;
    }
    Ok(frames)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn sample() -> Vec<Vec<u8>> {
        [14usize, 60, 61, 300, 1496].into_iter().map(|len| (0..len).map(|at| (at * 13 + len) as u8).collect()).collect()
    }

    /// A capture as a program of this format writes it; `number` writes in its byte order.
    pub(crate) fn pcap_of(frames: &[Vec<u8>], number: impl Fn(u32) -> [u8; 4]) -> Vec<u8> {
        let mut file = Vec::new();
        for word in [0xa1b2_c3d4, 0x0002_0004, 0, 0, 65_535, 1] {
            file.extend(number(word));
        }
        for frame in frames {
            for word in [7, 8, frame.len() as u32, frame.len() as u32] {
                file.extend(number(word));
            }
            file.extend(frame);
        }
        file
    }

    fn pcapng_of(frames: &[Vec<u8>], number: impl Fn(u32) -> [u8; 4], half: impl Fn(u16) -> [u8; 2]) -> Vec<u8> {
        let block = |kind: u32, body: &[u8]| {
            let padded = body.len().next_multiple_of(4);
            let len = number(12 + padded as u32);
            let mut block = [number(kind), len].concat();
            block.extend(body);
            block.resize(8 + padded, 0);
            block.extend(len);
            block
        };
        let mut file = block(SECTION, &[&number(0x1a2b_3c4d)[..], &half(1), &half(0), &[0xff; 8]].concat());
        file.extend(block(INTERFACE, &[&half(101)[..], &half(0), &number(0)].concat()));
        file.extend(block(INTERFACE, &[&half(1)[..], &half(0), &number(0)].concat()));
        for (at, frame) in frames.iter().enumerate() {
            let len = number(frame.len() as u32);
            let head = [number(1), number(0), number(at as u32), len, len].concat();
            file.extend(block(ENHANCED_PACKET, &[&head[..], frame].concat()));
            // Of an interface that is none of Ethernet, and a kind of block nobody knows.
            file.extend(block(ENHANCED_PACKET, &[&number(0)[..], &head[4..], frame].concat()));
            file.extend(block(0x8000_0001, &[1, 2, 3]));
        }
        file
    }

    #[test]
    fn every_format_gives_the_frames_it_was_made_of() {
        let sample = sample();
        let files = [
            pcap_of(&sample, u32::to_le_bytes),
            pcap_of(&sample, u32::to_be_bytes),
            pcapng_of(&sample, u32::to_le_bytes, u16::to_le_bytes),
            pcapng_of(&sample, u32::to_be_bytes, u16::to_be_bytes),
        ];
        for file in files {
            assert_eq!(frames(&file).unwrap(), sample);
        }
    }

    #[test]
    fn a_file_cut_anywhere_is_refused_or_gives_fewer_frames() {
        let sample = sample();
        for file in [pcap_of(&sample, u32::to_le_bytes), pcapng_of(&sample, u32::to_be_bytes, u16::to_be_bytes)] {
            for len in 0..file.len() {
                if let Ok(some) = frames(&file[..len]) {
                    assert!(sample.starts_with(&some.iter().map(|frame| frame.to_vec()).collect::<Vec<_>>()));
                }
            }
        }
    }

    #[test]
    fn noise_is_refused_without_a_panic() {
        let mut state = 1u64;
        for head in [pcap_of(&[], u32::to_le_bytes), pcapng_of(&[], u32::to_le_bytes, u16::to_le_bytes)] {
            for _ in 0..2000 {
                let mut file = head.clone();
                for _ in 0..100 {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    file.push((state >> 60) as u8);
                }
                let _ = frames(&file);
            }
        }
    }

    #[test]
    fn a_short_frame_grows_by_its_signature_and_a_long_one_does_not() {
        assert_eq!(Template::new(&[1; 60]).bytes().len(), 60 + TRAILER);
        assert_eq!(Template::new(&[1; 14]).bytes().len(), FRAME_MIN);
        assert_eq!(Template::new(&[1; 1514]).bytes().len(), 1514);
    }
}
