//! The same for what the control side reads of strangers: whoever is at the other end of a link's wire, and routers.

use crate::wire::WireError;
use crate::wire::icmp::TooBig;
use crate::wire::lacp::{FRAME_LEN, Slow, answer_marker};
use switch::ids::MacAddr;

/// Any bytes as a frame of the Slow Protocols. An LACPDU is the same when it is written and read again, and what answers a marker is
/// answered by nobody.
pub fn lacp(frame: &[u8]) {
    let own = MacAddr([2, 0, 0, 0, 0, 0xaa]);
    match Slow::read(frame) {
        Ok(Slow::Lacp(pdu)) => assert_eq!(Slow::read(&pdu.to_frame(own)), Ok(Slow::Lacp(pdu))),
        Ok(Slow::Marker) => {
            let question = frame[..FRAME_LEN].try_into().expect("it was read");
            assert_eq!(Slow::read(&answer_marker(question, own)), Err(WireError::Malformed));
        }
        Err(_) => {}
    }
}

/// Any bytes, the first of which tells the family, as what a router says of packets that are too long. What is told stands in the
/// message, and nothing changes it that is not told.
pub fn too_big(data: &[u8]) {
    let Some((family, message)) = data.split_first() else { return };
    let is_ipv4 = family & 1 == 0;
    let Some(told) = TooBig::read(message, is_ipv4) else { return };
    assert!(told.from.is_ipv4() == is_ipv4 && told.to.is_ipv4() == is_ipv4);
    let stands = |address: &[u8]| message.windows(address.len()).any(|bytes| bytes == address);
    for address in [told.from, told.to] {
        assert!(match address {
            std::net::IpAddr::V4(address) => stands(&address.octets()),
            std::net::IpAddr::V6(address) => stands(&address.octets()),
        });
    }
    let longer = [message, &[0x5a; 4]].concat();
    let again = TooBig::read(&longer, is_ipv4).expect("it was read with less");
    assert_eq!(TooBig { l4: told.l4, ..again }, told);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::lacp::{Lacpdu, TYPE_SLOW};
    use proptest::prelude::*;

    /// Inputs that are read, to be spoilt: an LACPDU and a marker, and a word of either family.
    fn seeds() -> [Vec<u8>; 4] {
        let lacpdu = Lacpdu::default().to_frame(MacAddr::default());
        let mut marker = lacpdu;
        marker[12..14].copy_from_slice(&TYPE_SLOW.to_be_bytes());
        marker[14..18].copy_from_slice(&[2, 1, 1, 16]);
        let v4 = [&[0, 0x45][..], &[0; 19], &[3, 4, 0, 0, 0, 0, 5, 120, 0x45], &[7; 23]].concat();
        let v6 = [&[1, 2, 0, 0, 0, 0, 0, 5, 120, 0x60][..], &[7; 43]].concat();
        [lacpdu.to_vec(), marker.to_vec(), v4, v6]
    }

    #[test]
    fn the_seeds_are_read() {
        let [lacpdu, marker, v4, v6] = seeds();
        assert!(matches!(Slow::read(&lacpdu), Ok(Slow::Lacp(_))) && Slow::read(&marker) == Ok(Slow::Marker));
        for (message, is_ipv4) in [(v4, true), (v6, false)] {
            let told = TooBig::read(&message[1..], is_ipv4).unwrap();
            assert_eq!((told.mtu, told.protocol, told.l4), (1400, 7, Some([0x0707; 2])));
            // What is behind the ports is not looked at, and of what is before them nothing is done without.
            let shortest = (1..message.len()).find(|&len| TooBig::read(&message[1..len], is_ipv4).is_some());
            // As many bytes either way: the outer header and ICMP's with IPv4, ICMP's and a longer header with IPv6.
            assert_eq!(shortest, Some(1 + 48));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]
        #[test]
        fn nothing_that_strangers_say_breaks_what_must_hold(
            seed in 0usize..4,
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            len in any::<prop::sample::Index>(),
        ) {
            let mut data = seeds()[seed].clone();
            for (at, value) in changes {
                let at = at.index(data.len());
                data[at] = value;
            }
            data.truncate(len.index(data.len()) + 1);
            lacp(&data);
            too_big(&data);
        }
    }
}
