//! Capture filters: the part of tcpdump's language that names addresses, protocols, ports and tags.
//!
//! A filter means what it means to tcpdump reading a file, quirks included, because that is where users learnt it: `and` and
//! `or` bind alike and from the left; `vlan` moves everything behind it in the expression, also behind `or`, by one tag;
//! `tcp` does not look behind a tag that was not named; a test that needs bytes a frame does not have makes the whole
//! filter say no, also under `not` (`tcpdump -O`: its optimiser spares some such tests). So headers are read here at the offsets tcpdump's programs use, and not as the parse
//! stage finds them. The oracle of the tests is tcpdump itself.
//!
//! Compiled on the control side, evaluated by workers: nothing allocates then, loads are bounds-checked, and the number of
//! tests is bounded by [`TERMS_MAX`].
//!
//! Not there: names of hosts and services, arithmetic on bytes (`tcp[13] & 2`), lists without a keyword (`port 1 or 2`).

mod parse;
#[cfg(test)]
mod tests;

use switch::capture::{FILTER_BYTES, Filter};

/// Bytes of an expression.
pub const LENGTH_MAX: usize = 4096;
/// Tests in an expression.
pub const TERMS_MAX: usize = 256;
/// Parentheses and negations within one another.
pub const DEPTH_MAX: usize = 64;
/// `vlan`s in an expression, hence tags looked behind.
pub const TAGS_MAX: usize = 8;

/// Bytes of an Ethernet header without tags.
const ETHERNET: usize = 14;
/// Where the EtherType is in a frame without tags.
const ETHERTYPE: usize = 12;
/// Bytes of an 802.1Q tag.
const TAG: usize = 4;
/// Bytes of the longest IPv4 header (RFC 791).
const IPV4_MAX: usize = 60;
/// Bytes of an IPv6 header without extensions (RFC 8200).
const IPV6: usize = 40;

/// The next header of an IPv6 fragment header (RFC 8200 section 4.5).
const FRAGMENT: u8 = 44;

const _: () = assert!(ETHERNET + TAGS_MAX * TAG + IPV4_MAX + 4 <= FILTER_BYTES, "a filter never reads behind the head");

/// Why an expression is no filter.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("filter, at byte {}: {message}", at + 1)]
pub struct FilterError {
    /// Where in the expression, bytes from its start.
    pub at: usize,
    /// What is wrong there.
    pub message: String,
}

/// A compiled filter.
#[derive(Debug)]
pub struct CaptureFilter {
    /// `None` wants every frame.
    root: Option<Expression>,
}

impl CaptureFilter {
    /// Compiles an expression; an empty one wants every frame.
    ///
    /// # Errors
    /// [`FilterError`], with the place.
    pub fn compile(text: &str) -> Result<CaptureFilter, FilterError> {
        Ok(CaptureFilter { root: parse::parse(text)? })
    }
}

impl Filter for CaptureFilter {
    fn matches(&self, head: &[u8], frame_len: usize) -> bool {
        self.root.as_ref().is_none_or(|root| root.decide(&Frame { bytes: head, len: frame_len }).unwrap_or(false))
    }
}

/// Which of two fields must fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    Source,
    Destination,
    Either,
    Both,
}

/// A tree of tests. Chains lean to the left, so its depth is bounded by [`TERMS_MAX`] and [`DEPTH_MAX`].
#[derive(Debug)]
enum Expression {
    And(Box<Expression>, Box<Expression>),
    Or(Box<Expression>, Box<Expression>),
    Not(Box<Expression>),
    Test(Test),
}

/// One test, and how many tags stand before what it reads.
#[derive(Debug)]
struct Test {
    tags: usize,
    what: What,
}

/// Which IP versions a test is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Version {
    V4,
    V6,
    Any,
}

/// What protocols carry IPv4 addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Carrier {
    Ip,
    Arp,
    Rarp,
    /// All of them.
    Any,
}

#[derive(Debug)]
enum What {
    /// An address of the Ethernet header, which stands before all tags.
    Mac(Side, [u8; 6]),
    /// The destination is a group address.
    Multicast,
    /// The EtherType.
    EtherType(u16),
    /// The protocol above IP, also behind an IPv6 fragment header.
    Protocol(Version, u8),
    /// An IPv4 address and its mask.
    Net4(Carrier, Side, u32, u32),
    /// An IPv6 address and its mask.
    Net6(Side, u128, u128),
    /// A port in a range, of TCP, UDP and SCTP or of one of them.
    Ports(Option<u8>, Side, u16, u16),
    /// At most that many bytes.
    Less(usize),
    /// At least that many bytes.
    Greater(usize),
    /// A tag, perhaps of one VLAN.
    Vlan(Option<u16>),
}

/// A frame's first bytes and its whole length.
struct Frame<'a> {
    bytes: &'a [u8],
    len: usize,
}

impl Frame<'_> {
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.bytes.get(at..at + N)?.first_chunk().copied()
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.load::<1>(at).map(|[byte]| byte)
    }

    /// Whether the words from `at` on are these under their masks.
    fn is_masked(&self, at: usize, words: &[(u32, u32)]) -> Option<bool> {
        for (index, &(word, mask)) in words.iter().enumerate() {
            if u32::from_be_bytes(self.load(at + 4 * index)?) & mask != word {
                return Some(false);
            }
        }
        Some(true)
    }

    fn half(&self, at: usize) -> Option<u16> {
        self.load(at).map(u16::from_be_bytes)
    }
}

impl Expression {
    /// Whether the frame is wanted; `None` if a test needed bytes that are not there.
    fn decide(&self, frame: &Frame<'_>) -> Option<bool> {
        match self {
            Expression::And(one, other) => Some(one.decide(frame)? && other.decide(frame)?),
            Expression::Or(one, other) => Some(one.decide(frame)? || other.decide(frame)?),
            Expression::Not(inner) => Some(!inner.decide(frame)?),
            Expression::Test(test) => test.decide(frame),
        }
    }
}

/// Whether what `fits` says of the source and the destination is what the side asks for.
fn fits(side: Side, source: usize, destination: usize, fits: impl Fn(usize) -> Option<bool>) -> Option<bool> {
    match side {
        Side::Source => fits(source),
        Side::Destination => fits(destination),
        Side::Either => Some(fits(source)? || fits(destination)?),
        Side::Both => Some(fits(source)? && fits(destination)?),
    }
}

impl Test {
    fn decide(&self, frame: &Frame<'_>) -> Option<bool> {
        let moved = self.tags * TAG;
        let l3 = ETHERNET + moved;
        let ethertype = || frame.half(ETHERTYPE + moved);
        match self.what {
            What::Mac(side, mac) => fits(side, 6, 0, |at| Some(frame.load::<6>(at)? == mac)),
            What::Multicast => Some(frame.byte(0)? & 1 == 1),
            What::EtherType(wanted) => Some(ethertype()? == wanted),
            What::Protocol(version, number) => match ethertype()? {
                0x0800 if version != Version::V6 => Some(frame.byte(l3 + 9)? == number),
                0x86dd if version != Version::V4 => {
                    let next = frame.byte(l3 + 6)?;
                    Some(next == number || (next == FRAGMENT && frame.byte(l3 + IPV6)? == number))
                }
                _ => Some(false),
            },
            What::Net4(carrier, side, address, mask) => {
                let (source, destination) = match (ethertype()?, carrier) {
                    (0x0800, Carrier::Ip | Carrier::Any) => (12, 16),
                    (0x0806, Carrier::Arp | Carrier::Any) | (0x8035, Carrier::Rarp | Carrier::Any) => (14, 24),
                    _ => return Some(false),
                };
                fits(side, l3 + source, l3 + destination, |at| frame.is_masked(at, &[(address, mask)]))
            }
            What::Net6(side, address, mask) => {
                if ethertype()? != 0x86dd {
                    return Some(false);
                }
                let word = |index: u32| ((address >> (96 - 32 * index)) as u32, (mask >> (96 - 32 * index)) as u32);
                let words = [word(0), word(1), word(2), word(3)];
                fits(side, l3 + 8, l3 + 24, |at| frame.is_masked(at, &words))
            }
            What::Ports(protocol, side, first, last) => {
                let (number, l4) = match ethertype()? {
                    0x0800 => {
                        let number = frame.byte(l3 + 9)?;
                        // Later fragments have no ports.
                        if !has_ports(number, protocol) || frame.half(l3 + 6)? & 0x1fff != 0 {
                            return Some(false);
                        }
                        (number, l3 + usize::from(frame.byte(l3)? & 0x0f) * 4)
                    }
                    0x86dd => (frame.byte(l3 + 6)?, l3 + IPV6),
                    _ => return Some(false),
                };
                if !has_ports(number, protocol) {
                    return Some(false);
                }
                fits(side, l4, l4 + 2, |at| Some((first..=last).contains(&frame.half(at)?)))
            }
            What::Less(len) => Some(frame.len <= len),
            What::Greater(len) => Some(frame.len >= len),
            What::Vlan(id) => {
                if !matches!(ethertype()?, 0x8100 | 0x88a8 | 0x9100) {
                    return Some(false);
                }
                let Some(id) = id else { return Some(true) };
                Some(frame.half(l3)? & 0x0fff == id)
            }
        }
    }
}

/// Whether a protocol has ports and is the one asked for.
fn has_ports(number: u8, wanted: Option<u8>) -> bool {
    match wanted {
        Some(wanted) => number == wanted,
        None => matches!(number, 6 | 17 | 132),
    }
}
