//! The Geneve header (RFC 8926 section 3.4), between UDP and the inner Ethernet frame. We send no options and know none.

use super::{WireError, word};

/// Bytes of the header without options.
pub const LEN: usize = 8;
/// UDP destination port (RFC 8926 section 3.3).
pub const PORT: u16 = 6081;
/// Protocol type of an Ethernet frame, "Transparent Ethernet Bridging" (RFC 8926 section 3.4).
pub const TYPE_ETHERNET: u16 = 0x6558;

const VERSION_OPTIONS: usize = 0;
const FLAGS: usize = 1;
const PROTOCOL: usize = 2;
const VNI: usize = 4;
/// Flags of what we do not take: a control packet, which is for the end itself, and options of which at least one must be understood.
pub(crate) const NOT_FOR_US: u8 = 0x80 | 0x40;

/// A checked header; its options are there and may be skipped.
#[derive(Clone, Copy)]
pub struct Geneve<'a> {
    bytes: &'a [u8],
}

impl<'a> Geneve<'a> {
    /// Checks version, flags and protocol type. Other bits are reserved and "MUST be ignored on receipt" (RFC 8926 section
    /// 3.4).
    ///
    /// # Errors
    /// [`WireError::Short`] if the bytes end inside header or options; [`WireError::Malformed`] for another version ("packets
    /// with an unknown version MUST be dropped"), control packets, critical options (those that an end does not recognise
    /// make it drop the packet, and we recognise none), and payloads that are no Ethernet frame.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Result<Geneve<'a>, WireError> {
        if bytes.len() < LEN {
            return Err(WireError::Short);
        }
        let view = Geneve { bytes };
        let is_known = bytes[VERSION_OPTIONS] >> 6 == 0 && bytes[FLAGS] & NOT_FOR_US == 0;
        if !is_known || word(bytes, PROTOCOL) != TYPE_ETHERNET {
            return Err(WireError::Malformed);
        }
        if bytes.len() < view.header_len() {
            return Err(WireError::Short);
        }
        Ok(view)
    }

    /// Bytes of the header with options, 8 to 260.
    #[inline]
    pub fn header_len(&self) -> usize {
        LEN + usize::from(self.bytes[VERSION_OPTIONS] & 0x3f) * 4
    }

    /// The network's number, 24 bits.
    #[inline]
    pub fn vni(&self) -> u32 {
        u32::from_be_bytes([0, self.bytes[VNI], self.bytes[VNI + 1], self.bytes[VNI + 2]])
    }
}

/// A header to write, without options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GeneveRepr {
    /// The network's number, 24 bits.
    pub vni: u32,
}

impl GeneveRepr {
    /// What a checked header says, but for its options.
    pub fn parse(view: &Geneve<'_>) -> GeneveRepr {
        GeneveRepr { vni: view.vni() }
    }

    /// The header's bytes.
    #[inline]
    pub fn to_bytes(&self) -> [u8; LEN] {
        let ([_, a, b, c], [high, low]) = (self.vni.to_be_bytes(), TYPE_ETHERNET.to_be_bytes());
        [0, 0, high, low, a, b, c, 0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::{Format, check};
    use proptest::prelude::*;

    impl Format for GeneveRepr {
        fn parse(bytes: &[u8]) -> Result<Self, WireError> {
            Geneve::new(bytes).map(|view| GeneveRepr::parse(&view))
        }
        fn emit(&self) -> Vec<u8> {
            self.to_bytes().to_vec()
        }
    }

    #[test]
    fn geneve_round_trips_and_survives_noise_and_every_truncation() {
        check((0..1u32 << 24).prop_map(|vni| GeneveRepr { vni }));
    }

    #[test]
    fn other_versions_control_packets_critical_options_and_other_payloads_are_refused() {
        let good = GeneveRepr { vni: 5 }.to_bytes();
        for (at, value) in [(0, 0x40), (0, 0xc0), (1, 0x80), (1, 0x40), (2, 0x08), (3, 0x00)] {
            let mut bytes = good;
            bytes[at] = value;
            assert_eq!(Geneve::new(&bytes).err(), Some(WireError::Malformed), "byte {at} = {value:#x}");
        }
    }

    #[test]
    fn options_that_are_not_critical_are_skipped_and_must_be_there() {
        let mut bytes = GeneveRepr { vni: 5 }.to_bytes().to_vec();
        bytes[0] = 2;
        bytes[1] = 0x3f;
        bytes[7] = 0xff;
        assert_eq!(Geneve::new(&bytes).err(), Some(WireError::Short));
        bytes.extend([0x01, 0x02, 0x03, 0x01, 1, 2, 3, 4]);
        let view = Geneve::new(&bytes).unwrap();
        assert_eq!((view.header_len(), view.vni()), (16, 5));
    }
}
