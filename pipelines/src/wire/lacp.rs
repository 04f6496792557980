//! Frames of the Slow Protocols (IEEE 802.3 annex 57A): LACPDUs and Marker PDUs (IEEE 802.1AX-2014 sections 6.4.2 and 6.5.3).
//!
//! They are sent to a group address that no bridge forwards, so whoever sends one is at the other end of the wire, and still a stranger.
//! Of an LACPDU what must be understood is checked, reserved bytes are not looked at ("ignored on receipt", section 6.4.2.3),
//! and versions beyond ours are read as ours, which is what they are made for (section 6.4.2.3, Version Number).

use super::{WireError, ethernet, word};
use switch::ids::MacAddr;

/// EtherType of the Slow Protocols.
pub const TYPE_SLOW: u16 = 0x8809;
/// Where their frames are sent to.
pub const GROUP: MacAddr = MacAddr([0x01, 0x80, 0xc2, 0x00, 0x00, 0x02]);
/// Bytes of a frame with an LACPDU or a Marker PDU in it.
pub const FRAME_LEN: usize = ethernet::LEN + 110;

const SUBTYPE_LACP: u8 = 1;
const SUBTYPE_MARKER: u8 = 2;
const VERSION: u8 = 1;
/// Type and length of what an LACPDU consists of.
const ACTOR: [u8; 2] = [1, 20];
const PARTNER: [u8; 2] = [2, 20];
const COLLECTOR: [u8; 2] = [3, 16];
const MARKER: [u8; 2] = [1, 16];
const MARKER_RESPONSE: u8 = 2;
/// Where they begin in the PDU, which begins behind the Ethernet header.
const ACTOR_AT: usize = 2;
const PARTNER_AT: usize = 22;
const COLLECTOR_AT: usize = 42;

/// What a port says of itself or of its partner (section 6.4.2.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortInfo {
    /// Priority of the system; smaller is more.
    pub system_priority: u16,
    /// The system's MAC.
    pub system: MacAddr,
    /// Ports of a system with one key may be aggregated.
    pub key: u16,
    /// Priority of the port.
    pub port_priority: u16,
    /// The port's number, unique in the system.
    pub port: u16,
    /// Its state.
    pub state: PortState,
}

/// The state octet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortState(pub u8);

impl PortState {
    /// It sends without being spoken to.
    pub const ACTIVE: PortState = PortState(1);
    /// It takes the other for gone after 3 s and not after 90.
    pub const SHORT_TIMEOUT: PortState = PortState(1 << 1);
    /// It may be aggregated.
    pub const AGGREGATION: PortState = PortState(1 << 2);
    /// It is attached to the right aggregator.
    pub const SYNCHRONIZATION: PortState = PortState(1 << 3);
    /// It takes frames.
    pub const COLLECTING: PortState = PortState(1 << 4);
    /// It sends frames.
    pub const DISTRIBUTING: PortState = PortState(1 << 5);
    /// What it says of its partner is assumed.
    pub const DEFAULTED: PortState = PortState(1 << 6);
    /// It has not heard from its partner for too long.
    pub const EXPIRED: PortState = PortState(1 << 7);

    /// Whether all bits of `other` are set.
    pub fn has(self, other: PortState) -> bool {
        self.0 & other.0 == other.0
    }

    /// The same with the bits of `other` set, or not.
    #[must_use]
    pub fn with(self, other: PortState, is_set: bool) -> PortState {
        PortState(if is_set { self.0 | other.0 } else { self.0 & !other.0 })
    }
}

/// An LACPDU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lacpdu {
    /// Who sends it.
    pub actor: PortInfo,
    /// Whom it takes us for.
    pub partner: PortInfo,
}

/// A frame of the Slow Protocols that we understand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slow {
    /// An LACPDU.
    Lacp(Lacpdu),
    /// A question whether all frames before it have arrived; [`answer_marker`] answers it.
    Marker,
}

impl Slow {
    /// Reads a whole frame.
    ///
    /// # Errors
    /// [`WireError::Short`], or [`WireError::Malformed`] for another destination, EtherType or subtype, or parts of other types
    /// or lengths.
    pub fn read(frame: &[u8]) -> Result<Slow, WireError> {
        if frame.len() < FRAME_LEN {
            return Err(WireError::Short);
        }
        let pdu = &frame[ethernet::LEN..FRAME_LEN];
        if frame[..6] != GROUP.0 || word(frame, 12) != TYPE_SLOW {
            return Err(WireError::Malformed);
        }
        let part = |at: usize| [pdu[at], pdu[at + 1]];
        match pdu[0] {
            SUBTYPE_LACP if part(ACTOR_AT) == ACTOR && part(PARTNER_AT) == PARTNER => {
                Ok(Slow::Lacp(Lacpdu { actor: info(&pdu[ACTOR_AT + 2..]), partner: info(&pdu[PARTNER_AT + 2..]) }))
            }
            SUBTYPE_MARKER if part(2) == MARKER => Ok(Slow::Marker),
            _ => Err(WireError::Malformed),
        }
    }
}

fn info(bytes: &[u8]) -> PortInfo {
    let mut system = [0; 6];
    system.copy_from_slice(&bytes[2..8]);
    PortInfo {
        system_priority: word(bytes, 0),
        system: MacAddr(system),
        key: word(bytes, 8),
        port_priority: word(bytes, 10),
        port: word(bytes, 12),
        state: PortState(bytes[14]),
    }
}

fn write_info(info: &PortInfo, to: &mut [u8]) {
    to[..2].copy_from_slice(&info.system_priority.to_be_bytes());
    to[2..8].copy_from_slice(&info.system.0);
    to[8..10].copy_from_slice(&info.key.to_be_bytes());
    to[10..12].copy_from_slice(&info.port_priority.to_be_bytes());
    to[12..14].copy_from_slice(&info.port.to_be_bytes());
    to[14] = info.state.0;
}

impl Lacpdu {
    /// The frame with it, from a port with the address `source`.
    pub fn to_frame(&self, source: MacAddr) -> [u8; FRAME_LEN] {
        let mut frame = [0; FRAME_LEN];
        frame[..6].copy_from_slice(&GROUP.0);
        frame[6..12].copy_from_slice(&source.0);
        frame[12..14].copy_from_slice(&TYPE_SLOW.to_be_bytes());
        let pdu = &mut frame[ethernet::LEN..];
        (pdu[0], pdu[1]) = (SUBTYPE_LACP, VERSION);
        for (at, part) in [(ACTOR_AT, ACTOR), (PARTNER_AT, PARTNER), (COLLECTOR_AT, COLLECTOR)] {
            pdu[at..at + 2].copy_from_slice(&part);
        }
        write_info(&self.actor, &mut pdu[ACTOR_AT + 2..]);
        write_info(&self.partner, &mut pdu[PARTNER_AT + 2..]);
        frame
    }
}

/// The answer to a Marker PDU ("the Marker Responder ... shall respond", section 6.5.4), from a port with the address `source`.
pub fn answer_marker(question: &[u8; FRAME_LEN], source: MacAddr) -> [u8; FRAME_LEN] {
    let mut answer = *question;
    answer[6..12].copy_from_slice(&source.0);
    answer[ethernet::LEN + 2] = MARKER_RESPONSE;
    answer
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn infos() -> impl Strategy<Value = PortInfo> {
        (any::<(u16, u16, u16, u16, u8)>(), any::<[u8; 6]>()).prop_map(|(it, system)| PortInfo {
            system_priority: it.0,
            system: MacAddr(system),
            key: it.1,
            port_priority: it.2,
            port: it.3,
            state: PortState(it.4),
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(actor in infos(), partner in infos(), source: [u8; 6]) {
            let pdu = Lacpdu { actor, partner };
            let frame = pdu.to_frame(MacAddr(source));
            prop_assert_eq!(Slow::read(&frame), Ok(Slow::Lacp(pdu)));
            for len in 0..frame.len() {
                prop_assert_eq!(Slow::read(&frame[..len]), Err(WireError::Short));
            }
        }

        #[test]
        fn noise_is_refused_or_read_and_nothing_else(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Slow::read(&bytes);
        }
    }

    #[test]
    fn an_lacpdu_lies_on_the_wire_as_the_standard_has_it() {
        // As the kernel's bonding driver sends one: system 65535/02:00:00:00:00:01, key 15, port 255/1, fast, active.
        let actor = PortInfo {
            system_priority: 65_535,
            system: MacAddr([2, 0, 0, 0, 0, 1]),
            key: 15,
            port_priority: 255,
            port: 1,
            state: PortState(0x4f),
        };
        let frame = Lacpdu { actor, partner: PortInfo::default() }.to_frame(MacAddr([2, 0, 0, 0, 0, 9]));
        assert_eq!(
            frame[..34],
            [
                1, 0x80, 0xc2, 0, 0, 2, 2, 0, 0, 0, 0, 9, 0x88, 9, 1, 1, 1, 20, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0, 15, 0,
                255, 0, 1, 0x4f, 0
            ]
        );
        assert_eq!((&frame[36..38], &frame[56..58]), (&[2, 20][..], &[3, 16][..]));
    }

    #[test]
    fn frames_to_others_of_other_protocols_and_with_parts_of_other_lengths_are_refused() {
        let frame = Lacpdu::default().to_frame(MacAddr::default());
        for at in [0, 5, 12, 13, 14, 16, 17, 36, 37] {
            let mut other = frame;
            other[at] ^= 0x80;
            assert_eq!(Slow::read(&other), Err(WireError::Malformed), "{at}");
        }
        // A version to come, and reserved bytes in use.
        for at in [15, 33, 100] {
            let mut later = frame;
            later[at] ^= 0x80;
            assert!(Slow::read(&later).is_ok(), "{at}");
        }
    }

    #[test]
    fn a_marker_is_answered_with_all_that_it_says() {
        let mut marker = [0; FRAME_LEN];
        marker[..6].copy_from_slice(&GROUP.0);
        marker[12..14].copy_from_slice(&TYPE_SLOW.to_be_bytes());
        marker[14..18].copy_from_slice(&[2, 1, 1, 16]);
        marker[18..30].copy_from_slice(b"twelve bytes");
        assert_eq!(Slow::read(&marker), Ok(Slow::Marker));
        let answer = answer_marker(&marker, MacAddr([2; 6]));
        assert_eq!((&answer[6..12], answer[16]), (&[2; 6][..], 2));
        assert_eq!(answer[17..], marker[17..]);
        assert_eq!(Slow::read(&answer), Err(WireError::Malformed), "an answer is not answered");
    }
}
