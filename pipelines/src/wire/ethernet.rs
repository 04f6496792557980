//! Ethernet II with up to two VLAN tags (IEEE 802.3 clause 3, IEEE 802.1Q-2018 clause 9).
//!
//! A tag is a tag whichever of the two protocol ids announces it: senders mix them. A third tag is left alone and is
//! payload to us, its protocol id the EtherType.

use super::{WireError, word};
use switch::ids::{MacAddr, MacBits};

/// Bytes of the header without tags.
pub const LEN: usize = 14;
/// Bytes of one tag.
pub const TAG_LEN: usize = 4;
/// Tags we look behind: 802.1ad service tag and 802.1Q customer tag.
pub const TAGS_MAX: usize = 2;
/// Bytes of the header with all tags.
pub const LEN_MAX: usize = LEN + TAGS_MAX * TAG_LEN;

const _: () = assert!(LEN_MAX == switch::config::L2_OVERHEAD_MAX, "the MTU check and the parser agree on the overhead");

/// EtherType of IPv4 (RFC 894).
pub const TYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP (RFC 826).
pub const TYPE_ARP: u16 = 0x0806;
/// EtherType of IPv6 (RFC 2464 section 3).
pub const TYPE_IPV6: u16 = 0x86dd;
/// Protocol id of a customer tag (IEEE 802.1Q-2018 table 9-1).
pub const TYPE_VLAN: u16 = 0x8100;
/// Protocol id of a service tag (IEEE 802.1Q-2018 table 9-1).
pub const TYPE_SERVICE_VLAN: u16 = 0x88a8;

const DESTINATION: usize = 0;
const SOURCE: usize = 6;
const ETHERTYPE: usize = 12;
/// Of a tag, from the protocol id.
const TAG_CONTROL: usize = 2;

/// Destination and source of a frame that has at least an Ethernet header; `None` otherwise.
#[inline]
pub fn addresses(frame: &[u8]) -> Option<(MacAddr, MacAddr)> {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *frame.first_chunk::<ETHERTYPE>()?;
    Some((MacAddr([a, b, c, d, e, f]), MacAddr([g, h, i, j, k, l])))
}

/// Destination, source and the two bytes behind them of a frame that begins so; two loads.
#[inline]
pub fn front(frame: &[u8; LEN]) -> (MacBits, MacBits, u16) {
    let first = u64::from_be_bytes(*frame.first_chunk().expect("fourteen are more than eight"));
    let second = u64::from_be_bytes(*frame.last_chunk().expect("fourteen are more than eight"));
    (MacBits::of_front(first), MacBits::of_front(second), second as u16)
}

/// Whether an EtherType announces a tag.
#[inline]
pub fn is_tag(ethertype: u16) -> bool {
    ethertype == TYPE_VLAN || ethertype == TYPE_SERVICE_VLAN
}

/// A checked header: all its tags are there.
#[derive(Clone, Copy)]
pub struct Ethernet<'a> {
    bytes: &'a [u8],
    vlan_count: usize,
}

impl<'a> Ethernet<'a> {
    /// Checks that the header and the tags it announces, at most [`TAGS_MAX`], are there.
    ///
    /// # Errors
    /// [`WireError::Short`] if the bytes end before.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Result<Ethernet<'a>, WireError> {
        if bytes.len() < LEN {
            return Err(WireError::Short);
        }
        let mut vlan_count = 0;
        while vlan_count < TAGS_MAX && is_tag(word(bytes, ETHERTYPE + vlan_count * TAG_LEN)) {
            vlan_count += 1;
            if bytes.len() < LEN + vlan_count * TAG_LEN {
                return Err(WireError::Short);
            }
        }
        Ok(Ethernet { bytes, vlan_count })
    }

    /// Whom it is for.
    pub fn destination(&self) -> MacAddr {
        MacAddr(std::array::from_fn(|at| self.bytes[DESTINATION + at]))
    }

    /// Who sent it.
    pub fn source(&self) -> MacAddr {
        MacAddr(std::array::from_fn(|at| self.bytes[SOURCE + at]))
    }

    /// How many tags there are.
    pub fn vlan_count(&self) -> usize {
        self.vlan_count
    }

    /// One tag, outermost first; `None` beyond the last.
    pub fn tag(&self, index: usize) -> Option<Tag> {
        let at = ETHERTYPE + index * TAG_LEN;
        (index < self.vlan_count).then(|| Tag {
            kind: if word(self.bytes, at) == TYPE_SERVICE_VLAN { TagKind::Service } else { TagKind::Customer },
            control: word(self.bytes, at + TAG_CONTROL),
        })
    }

    /// The EtherType behind the tags, or the length of an IEEE 802.3 frame (at most 1,500).
    pub fn ethertype(&self) -> u16 {
        word(self.bytes, ETHERTYPE + self.vlan_count * TAG_LEN)
    }

    /// Bytes of the header with its tags.
    pub fn header_len(&self) -> usize {
        LEN + self.vlan_count * TAG_LEN
    }
}

/// Which protocol id announces a tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TagKind {
    /// 802.1Q, 0x8100.
    Customer,
    /// 802.1ad, 0x88a8.
    Service,
}

/// One VLAN tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tag {
    /// Which protocol id announces it.
    pub kind: TagKind,
    /// Priority (3 bits), drop eligible (1), VLAN id (12) (IEEE 802.1Q-2018 section 9.6).
    pub control: u16,
}

impl Tag {
    /// The VLAN id.
    pub fn vlan_id(self) -> u16 {
        self.control & 0x0fff
    }
}

/// A header to write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EthernetRepr {
    /// Whom it is for.
    pub destination: MacAddr,
    /// Who sends it.
    pub source: MacAddr,
    /// The tags, outermost first; a `None` is followed by none.
    pub tags: [Option<Tag>; TAGS_MAX],
    /// The EtherType behind the tags.
    pub ethertype: u16,
}

impl EthernetRepr {
    /// What a checked header says.
    pub fn parse(view: &Ethernet<'_>) -> EthernetRepr {
        EthernetRepr {
            destination: view.destination(),
            source: view.source(),
            tags: std::array::from_fn(|index| view.tag(index)),
            ethertype: view.ethertype(),
        }
    }

    /// The header's bytes and how many of them count.
    pub fn to_bytes(&self) -> ([u8; LEN_MAX], usize) {
        let mut bytes = [0; LEN_MAX];
        bytes[DESTINATION..SOURCE].copy_from_slice(&self.destination.0);
        bytes[SOURCE..ETHERTYPE].copy_from_slice(&self.source.0);
        let mut at = ETHERTYPE;
        for tag in self.tags.iter().map_while(|tag| *tag) {
            let protocol = match tag.kind {
                TagKind::Customer => TYPE_VLAN,
                TagKind::Service => TYPE_SERVICE_VLAN,
            };
            bytes[at..at + 2].copy_from_slice(&protocol.to_be_bytes());
            bytes[at + TAG_CONTROL..at + TAG_LEN].copy_from_slice(&tag.control.to_be_bytes());
            at += TAG_LEN;
        }
        bytes[at..at + 2].copy_from_slice(&self.ethertype.to_be_bytes());
        (bytes, at + 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::{Format, check};
    use proptest::prelude::*;

    impl Format for EthernetRepr {
        fn parse(bytes: &[u8]) -> Result<Self, WireError> {
            Ethernet::new(bytes).map(|view| EthernetRepr::parse(&view))
        }
        fn emit(&self) -> Vec<u8> {
            let (bytes, len) = self.to_bytes();
            bytes[..len].to_vec()
        }
    }

    prop_compose! {
        fn tag()(is_service: bool, control: u16) -> Tag {
            Tag { kind: if is_service { TagKind::Service } else { TagKind::Customer }, control }
        }
    }

    prop_compose! {
        fn repr()(destination: [u8; 6], source: [u8; 6], count in 0..=TAGS_MAX, tags in [tag(), tag()],
                  ethertype in any::<u16>().prop_filter("a tag", |value| !is_tag(*value))) -> EthernetRepr {
            EthernetRepr {
                destination: MacAddr(destination),
                source: MacAddr(source),
                tags: std::array::from_fn(|index| (index < count).then_some(tags[index])),
                ethertype,
            }
        }
    }

    #[test]
    fn ethernet_round_trips_and_survives_noise_and_every_truncation() {
        check(repr());
    }

    #[test]
    fn a_third_tag_is_payload() {
        let mut frame = vec![0; 12];
        frame.extend([0x88, 0xa8, 0x00, 0x05, 0x81, 0x00, 0x00, 0x07, 0x81, 0x00, 0x00, 0x09, 0x08, 0x00]);
        let view = Ethernet::new(&frame).unwrap();
        assert_eq!((view.vlan_count(), view.header_len(), view.ethertype()), (2, 22, TYPE_VLAN));
        assert_eq!(view.tag(0).unwrap(), Tag { kind: TagKind::Service, control: 5 });
        assert_eq!(view.tag(1).unwrap().vlan_id(), 7);
        assert_eq!(view.tag(2), None);
    }

    #[test]
    fn addresses_are_those_of_the_view() {
        let repr = EthernetRepr {
            destination: MacAddr([1, 2, 3, 4, 5, 6]),
            source: MacAddr([7, 8, 9, 10, 11, 12]),
            tags: [None; 2],
            ethertype: TYPE_IPV4,
        };
        assert_eq!(addresses(&repr.emit()), Some((repr.destination, repr.source)));
        assert_eq!(addresses(&[0; 11]), None);
    }
}
