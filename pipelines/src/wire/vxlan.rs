//! The VXLAN header (RFC 7348 section 5), between UDP and the inner Ethernet frame.

use super::WireError;

/// Bytes of the header.
pub const LEN: usize = 8;

const FLAGS: usize = 0;
const VNI: usize = 4;
/// The I flag: the VNI is valid.
pub(crate) const HAS_VNI: u8 = 0x08;

/// A checked header.
#[derive(Clone, Copy)]
pub struct Vxlan<'a> {
    bytes: &'a [u8; LEN],
}

impl<'a> Vxlan<'a> {
    /// Checks that the I flag is set, as it "MUST be set to 1 for a valid VXLAN Network ID". All other flags and reserved
    /// fields are "ignored on receipt" (RFC 7348 section 5).
    ///
    /// # Errors
    /// [`WireError::Short`] below 8 bytes, [`WireError::Malformed`] without the flag.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Result<Vxlan<'a>, WireError> {
        let bytes = bytes.first_chunk::<LEN>().ok_or(WireError::Short)?;
        if bytes[FLAGS] & HAS_VNI == 0 { Err(WireError::Malformed) } else { Ok(Vxlan { bytes }) }
    }

    /// The network's number, 24 bits.
    #[inline]
    pub fn vni(&self) -> u32 {
        u32::from_be_bytes([0, self.bytes[VNI], self.bytes[VNI + 1], self.bytes[VNI + 2]])
    }
}

/// A header to write. All reserved fields are zero (RFC 7348 section 5: "MUST be set to zero on transmission").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VxlanRepr {
    /// The network's number, 24 bits.
    pub vni: u32,
}

impl VxlanRepr {
    /// What a checked header says.
    pub fn parse(view: &Vxlan<'_>) -> VxlanRepr {
        VxlanRepr { vni: view.vni() }
    }

    /// The header's bytes.
    #[inline]
    pub fn to_bytes(&self) -> [u8; LEN] {
        let [_, a, b, c] = self.vni.to_be_bytes();
        [HAS_VNI, 0, 0, 0, a, b, c, 0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::{Format, check};
    use proptest::prelude::*;

    impl Format for VxlanRepr {
        fn parse(bytes: &[u8]) -> Result<Self, WireError> {
            Vxlan::new(bytes).map(|view| VxlanRepr::parse(&view))
        }
        fn emit(&self) -> Vec<u8> {
            self.to_bytes().to_vec()
        }
    }

    #[test]
    fn vxlan_round_trips_and_survives_noise_and_every_truncation() {
        check((0..1u32 << 24).prop_map(|vni| VxlanRepr { vni }));
    }

    #[test]
    fn reserved_bits_are_ignored_on_receipt_and_a_clear_i_flag_is_not() {
        let mut bytes = [0xff, 0xff, 0xff, 0xff, 0x12, 0x34, 0x56, 0xff];
        assert_eq!(Vxlan::new(&bytes).unwrap().vni(), 0x12_3456);
        bytes[0] = 0xf7;
        assert_eq!(Vxlan::new(&bytes).err(), Some(WireError::Malformed));
    }
}
