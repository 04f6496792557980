//! The pcapng file format (draft-ietf-opsawg-pcapng), as far as a capture of one port needs it: one section, one interface,
//! packets, statistics.
//!
//! What the daemon sends and what ends up in a file are the same bytes, little-endian. [`blocks`] takes the stream apart
//! again on the command's side, so that a file holds whole blocks whenever it ends; it takes nothing from the daemon on
//! trust but its bytes.

/// Section Header Block (section 4.1).
pub(crate) const SECTION: u32 = 0x0a0d_0d0a;
/// Interface Description Block (section 4.2).
pub(crate) const INTERFACE: u32 = 1;
/// Interface Statistics Block (section 4.6).
pub(crate) const STATISTICS: u32 = 5;
/// Enhanced Packet Block (section 4.3).
pub(crate) const PACKET: u32 = 6;

/// Tells the byte order of a section.
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
/// LINKTYPE_ETHERNET
const ETHERNET: u16 = 1;
/// `opt_comment`, in any block.
const COMMENT: u16 = 1;
/// `epb_flags`: bits 0 and 1 of its value are the direction.
const FLAGS: u16 = 2;
/// `epb_dropcount`
const DROP_COUNT: u16 = 4;
/// Bytes of a block that a reader takes: a packet of the largest size with its options is far below.
const BLOCK_MAX: usize = 1 << 20;
/// Bytes of a block's type and its two lengths.
const FRAME_LEN: usize = 12;

/// Bits of `epb_flags`.
pub(crate) mod flags {
    /// The switch received it from the device.
    pub(crate) const INBOUND: u32 = 1;
    /// The switch sent it to the device.
    pub(crate) const OUTBOUND: u32 = 2;
    /// The checksum is not filled in yet.
    pub(crate) const CHECKSUM_NOT_READY: u32 = 1 << 9;
    /// Somebody vouches for the checksum.
    pub(crate) const CHECKSUM_VALID: u32 = 1 << 10;
    /// A large TCP frame that is still to be cut.
    pub(crate) const TCP_SEGMENTATION: u32 = 1 << 11;
}

/// One packet.
pub(crate) struct Packet<'a> {
    /// Nanoseconds since 1970 UTC.
    pub(crate) time_ns: u64,
    /// Bytes it had; `bytes` may hold fewer.
    pub(crate) frame_len: u32,
    /// [`flags`]
    pub(crate) flags: u32,
    /// Packets lost before it.
    pub(crate) lost: u64,
    /// For people; empty if there is nothing to say.
    pub(crate) comment: String,
    /// What was captured.
    pub(crate) bytes: &'a [u8],
}

/// What was counted when the capture ended.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Statistics {
    /// Frames that passed the port (`isb_ifrecv`).
    pub(crate) seen: u64,
    /// Of these, frames the filter wanted (`isb_filteraccept`).
    pub(crate) matched: u64,
    /// Of these, frames that found the buffer full (`isb_osdrop`).
    pub(crate) lost: u64,
    /// Frames written (`isb_usrdeliv`).
    pub(crate) written: u64,
    /// When it began and ended, nanoseconds since 1970 UTC.
    pub(crate) time_ns: (u64, u64),
    /// For people; empty if there is nothing to say.
    pub(crate) comment: String,
}

/// Begins a block; answers where, for [`end`].
fn begin(out: &mut Vec<u8>, kind: u32) -> usize {
    let start = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    start
}

fn end(out: &mut Vec<u8>, start: usize) {
    let len = (out.len() + 4 - start) as u32;
    out[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
    out.extend(len.to_le_bytes());
}

/// Fills up to 32 bits.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    // Texts of ours and interface ids are far below 64 KiB.
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    out.extend(code.to_le_bytes());
    out.extend((value.len() as u16).to_le_bytes());
    out.extend(value);
    pad(out);
}

fn text(out: &mut Vec<u8>, code: u16, value: &str) {
    if !value.is_empty() {
        option(out, code, value.as_bytes());
    }
}

fn no_more_options(out: &mut Vec<u8>) {
    out.extend([0; 4]);
}

/// High word first, whatever the byte order.
fn time(out: &mut Vec<u8>, time_ns: u64) {
    out.extend(((time_ns >> 32) as u32).to_le_bytes());
    out.extend((time_ns as u32).to_le_bytes());
}

fn time_option(out: &mut Vec<u8>, code: u16, time_ns: u64) {
    let mut value = Vec::new();
    time(&mut value, time_ns);
    option(out, code, &value);
}

/// Writes what stands before all packets: the section and its one interface.
pub(crate) fn write_header(out: &mut Vec<u8>, name: &str, description: &str, filter: &str, snaplen: u32) {
    let start = begin(out, SECTION);
    out.extend(BYTE_ORDER_MAGIC.to_le_bytes());
    out.extend([1, 0, 0, 0]);
    // Length of the section: not known.
    out.extend([0xff; 8]);
    text(out, 4, concat!("qvs ", env!("CARGO_PKG_VERSION")));
    no_more_options(out);
    end(out, start);

    let start = begin(out, INTERFACE);
    out.extend(ETHERNET.to_le_bytes());
    out.extend([0; 2]);
    out.extend(snaplen.to_le_bytes());
    text(out, 2, name);
    text(out, 3, description);
    // Times are in units of 10^-9 s.
    option(out, 9, &[9]);
    if !filter.is_empty() {
        // Zero: a filter in libpcap's language.
        option(out, 11, &[&[0], filter.as_bytes()].concat());
    }
    no_more_options(out);
    end(out, start);
}

/// Writes a packet.
pub(crate) fn write_packet(out: &mut Vec<u8>, packet: &Packet<'_>) {
    let start = begin(out, PACKET);
    out.extend([0; 4]);
    time(out, packet.time_ns);
    out.extend((packet.bytes.len() as u32).to_le_bytes());
    out.extend(packet.frame_len.to_le_bytes());
    out.extend(packet.bytes);
    pad(out);
    text(out, COMMENT, &packet.comment);
    option(out, FLAGS, &packet.flags.to_le_bytes());
    if packet.lost > 0 {
        option(out, DROP_COUNT, &packet.lost.to_le_bytes());
    }
    no_more_options(out);
    end(out, start);
}

/// Writes what stands after all packets.
pub(crate) fn write_statistics(out: &mut Vec<u8>, statistics: &Statistics) {
    let (began, ended) = statistics.time_ns;
    let start = begin(out, STATISTICS);
    out.extend([0; 4]);
    time(out, ended);
    text(out, COMMENT, &statistics.comment);
    time_option(out, 2, began);
    time_option(out, 3, ended);
    let counts = [(4, statistics.seen), (6, statistics.matched), (7, statistics.lost), (8, statistics.written)];
    for (code, count) in counts {
        option(out, code, &count.to_le_bytes());
    }
    no_more_options(out);
    end(out, start);
}

/// What is not pcapng as we write it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the daemon sent something that is no capture")]
pub(crate) struct Malformed;

/// A block of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Block<'a> {
    /// [`PACKET`], [`STATISTICS`] or another.
    pub(crate) kind: u32,
    /// What is between its lengths.
    body: &'a [u8],
}

/// Whole blocks at the front of `bytes`, as they came; and how many bytes they have.
///
/// # Errors
/// [`Malformed`] if the next block has an impossible length.
pub(crate) fn blocks(bytes: &[u8]) -> Result<(Vec<Block<'_>>, usize), Malformed> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(head) = bytes[at..].first_chunk::<8>() {
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let len = word(4) as usize;
        if !(FRAME_LEN..=BLOCK_MAX).contains(&len) || !len.is_multiple_of(4) {
            return Err(Malformed);
        }
        let Some(block) = bytes.get(at..at + len) else { break };
        found.push(Block { kind: word(0), body: &block[8..len - 4] });
        at += len;
    }
    Ok((found, at))
}

impl<'a> Block<'a> {
    fn word(&self, at: usize) -> Result<u32, Malformed> {
        let bytes = self.body.get(at..at + 4).and_then(|bytes| bytes.first_chunk());
        bytes.map(|bytes| u32::from_le_bytes(*bytes)).ok_or(Malformed)
    }

    /// The options from byte `at` of the body on.
    fn options(&self, at: usize) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut rest = self.body.get(at..).unwrap_or_default();
        std::iter::from_fn(move || {
            let [c0, c1, l0, l1] = *rest.first_chunk::<4>()?;
            let (code, len) = (u16::from_le_bytes([c0, c1]), usize::from(u16::from_le_bytes([l0, l1])));
            let value = rest.get(4..4 + len).filter(|_| code != 0)?;
            rest = rest.get(4 + len.next_multiple_of(4)..).unwrap_or_default();
            Some((code, value))
        })
    }

    /// Reads a [`PACKET`].
    ///
    /// # Errors
    /// [`Malformed`]
    pub(crate) fn packet(&self) -> Result<Packet<'a>, Malformed> {
        let (high, low, len) = (self.word(4)?, self.word(8)?, self.word(12)? as usize);
        let mut packet = Packet {
            time_ns: u64::from(high) << 32 | u64::from(low),
            frame_len: self.word(16)?,
            flags: 0,
            lost: 0,
            comment: String::new(),
            bytes: self.body.get(20..).and_then(|rest| rest.get(..len)).ok_or(Malformed)?,
        };
        for (code, value) in self.options(20 + len.next_multiple_of(4)) {
            match code {
                COMMENT => packet.comment = String::from_utf8_lossy(value).into_owned(),
                FLAGS => packet.flags = number(value) as u32,
                DROP_COUNT => packet.lost = number(value),
                _ => {}
            }
        }
        Ok(packet)
    }

    /// Reads a [`STATISTICS`].
    pub(crate) fn statistics(&self) -> Statistics {
        let mut statistics = Statistics::default();
        for (code, value) in self.options(12) {
            match code {
                COMMENT => statistics.comment = String::from_utf8_lossy(value).into_owned(),
                2 => statistics.time_ns.0 = number(value).rotate_left(32),
                3 => statistics.time_ns.1 = number(value).rotate_left(32),
                4 => statistics.seen = number(value),
                6 => statistics.matched = number(value),
                7 => statistics.lost = number(value),
                8 => statistics.written = number(value),
                _ => {}
            }
        }
        statistics
    }
}

/// A little-endian number of up to eight bytes.
fn number(value: &[u8]) -> u64 {
    value.iter().take(8).rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> (Vec<u8>, Vec<u8>, Statistics) {
        let mut out = Vec::new();
        write_header(&mut out, "vif-1", "a tap", "tcp or udp", 1000);
        let bytes: Vec<u8> = (0..61).collect();
        let packet = Packet {
            time_ns: 1_700_000_000_123_456_789,
            frame_len: 1500,
            flags: flags::OUTBOUND | flags::CHECKSUM_NOT_READY,
            lost: 7,
            comment: "five5".into(),
            bytes: &bytes,
        };
        write_packet(&mut out, &packet);
        let statistics = Statistics {
            seen: 10,
            matched: 9,
            lost: 7,
            written: 1,
            time_ns: (1_700_000_000_000_000_000, 1_700_000_001_000_000_000),
            comment: "it ended".into(),
        };
        write_statistics(&mut out, &statistics);
        (out, bytes, statistics)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let (out, bytes, statistics) = stream();
        let (blocks, used) = blocks(&out).unwrap();
        assert_eq!(used, out.len());
        let kinds: Vec<u32> = blocks.iter().map(|block| block.kind).collect();
        assert_eq!(kinds, [SECTION, INTERFACE, PACKET, STATISTICS]);
        let packet = blocks[2].packet().unwrap();
        assert_eq!((packet.time_ns, packet.frame_len, packet.lost), (1_700_000_000_123_456_789, 1500, 7));
        assert_eq!((packet.flags, packet.comment.as_str(), packet.bytes), (0x202, "five5", &bytes[..]));
        assert_eq!(blocks[3].statistics(), statistics);
    }

    #[test]
    fn every_beginning_of_a_stream_holds_its_whole_blocks() {
        let (out, _, _) = stream();
        let ends: Vec<usize> = (0..=4)
            .map(|count| {
                let (blocks, _) = blocks(&out).unwrap();
                blocks.iter().take(count).map(|block| block.body.len() + FRAME_LEN).sum()
            })
            .collect();
        for len in 0..=out.len() {
            let (blocks, used) = blocks(&out[..len]).unwrap();
            assert_eq!(used, *ends.iter().rev().find(|end| **end <= len).unwrap());
            assert_eq!(used, ends[blocks.len()]);
        }
    }

    #[test]
    fn nonsense_is_refused_and_never_trusted() {
        for len in [0u32, 4, 11, 13, 14, 0x7fff_fff0, u32::MAX] {
            let mut block = PACKET.to_le_bytes().to_vec();
            block.extend(len.to_le_bytes());
            block.extend([0xff; 64]);
            assert_eq!(blocks(&block), Err(Malformed), "{len}");
        }
        // Every byte of a packet and of statistics spoilt, one after another.
        let (out, _, _) = stream();
        for at in 0..out.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut spoilt = out.clone();
                spoilt[at] = value;
                for block in blocks(&spoilt).map(|(blocks, _)| blocks).unwrap_or_default() {
                    let _ = block.packet();
                    block.statistics();
                }
            }
        }
    }
}
