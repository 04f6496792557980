//! What is believed of those who say that packets of our tunnels are too long for some link on the way.
//!
//! Anybody can send such a message, and who is not on the way cannot be told from a router that is. So it is believed only about what
//! we may have sent, and bounded by what it may do: IPv6 goes on inside, which needs 1,280 bytes (RFC 8200 section 5). A way that
//! is really narrower an operator has to tell of, by the MTU of a route or an interface.

use crate::encap::ENTROPY_FIRST;
use crate::underlay::{ip_len, tunnel_len};
use crate::wire::icmp::TooBig;
use crate::wire::{ethernet, geneve, gre, udp};
use std::net::IpAddr;
use switch::underlay::TunnelKind;

/// What must go through a tunnel whoever says that it does not.
const INNER_LEAST: usize = 1280;

/// Bytes of L3 payload below which nobody is believed who says that no more gets to an end of this family.
pub fn least_believed(address: IpAddr) -> u16 {
    let tunnel = TunnelKind::ALL.map(tunnel_len).into_iter().fold(0, usize::max);
    (INNER_LEAST + ethernet::LEN + tunnel + ip_len(address)) as u16
}

/// Whether a message is about a packet that may be of our tunnels, by what is quoted of it.
pub fn is_of_tunnels(told: &TooBig, local: IpAddr, port_vxlan: u16) -> bool {
    let Some([first, second]) = told.l4.filter(|_| told.from == local) else { return false };
    match told.protocol {
        udp::PROTOCOL => first >= ENTROPY_FIRST && [port_vxlan, geneve::PORT].contains(&second),
        gre::PROTOCOL => (first, second) == (gre::HAS_KEY, gre::TYPE_ETHERNET),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_believed_about_what_we_may_have_sent_alone() {
        let [local, peer] = [1, 2].map(|host| IpAddr::from([192, 0, 2, host]));
        let told = TooBig { mtu: 1400, from: local, to: peer, protocol: 17, l4: Some([49_152, 4789]) };
        let is_believed = |told: TooBig| is_of_tunnels(&told, local, 4789);
        assert!(is_believed(told));
        assert!(is_believed(TooBig { l4: Some([65_535, 6081]), ..told }));
        assert!(is_believed(TooBig { protocol: 47, l4: Some([0x2000, 0x6558]), ..told }));
        for (what, told) in [
            ("not from us", TooBig { from: peer, ..told }),
            ("another's datagram", TooBig { l4: Some([50_000, 53]), ..told }),
            ("no source port of ours", TooBig { l4: Some([49_151, 4789]), ..told }),
            ("no tunnel's", TooBig { protocol: 6, ..told }),
            ("another use of GRE", TooBig { protocol: 47, l4: Some([0x2000, 0x0800]), ..told }),
            ("too little is quoted", TooBig { l4: None, ..told }),
        ] {
            assert!(!is_believed(told), "{what}");
        }
    }

    #[test]
    fn whatever_is_said_ipv6_goes_through_a_tunnel() {
        for address in ["192.0.2.1", "2001:db8::1"] {
            let address = address.parse().unwrap();
            let inner = TunnelKind::ALL.map(|kind| crate::underlay::inner_mtu(least_believed(address), address, kind));
            assert_eq!(inner.into_iter().min(), Some(1280));
        }
    }
}
