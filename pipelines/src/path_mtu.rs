//! What is believed of those who say that packets of our tunnels are too long for some link on the way.
//!
//! Anybody can send such a message, and who is not on the way cannot be told from a router that is. So it is believed only about what
//! we may have sent, and bounded by what it may do: IPv6 goes on inside, which needs 1,280 bytes (RFC 8200 section 5). A way that
//! is really narrower an operator has to tell of, by the MTU of a route or an interface.

use crate::encap::ENTROPY_FIRST;
use crate::tables::Tables;
use crate::underlay::{UnderlayTables, UplinkEntry, ip_len, tunnel_len};
use crate::wire::icmp::{self, TooBig};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::{ethernet, geneve, gre, udp};
use std::net::IpAddr;
use switch::batch::Batch;
use switch::checksum::Sum;
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

/// Whether what an uplink brings for this address, by this protocol, is ours to hear: where the kernel has it, its ICMP is the kernel's.
pub(crate) fn is_heard(uplink: &UplinkEntry, to: IpAddr, protocol: u8) -> bool {
    uplink.address == Some(to) && protocol == if to.is_ipv4() { icmp::PROTOCOL } else { icmp::PROTOCOL_V6 }
}

/// Hears a message of ICMP to our own address, behind `header_len` bytes; answers whether it was about one of our packets. What it
/// says is noted in `known`; `None`: it is only traced.
pub(crate) fn hear(
    tables: &Tables,
    known: Option<&UnderlayTables>,
    uplink: &UplinkEntry,
    batch: &mut Batch<'_>,
    index: usize,
    header_len: usize,
) -> bool {
    let Some(told) = read(batch, index, header_len) else { return false };
    let said = known.unwrap_or(&tables.underlay).said_mtu(uplink.index, &told);
    if let Some(said) = said.filter(|_| known.is_some()) {
        said.note(told.mtu);
    }
    said.is_some()
}

/// The message behind `at` bytes, if it is about a packet that was too long, and as its checksums say.
fn read(batch: &mut Batch<'_>, index: usize, at: usize) -> Option<TooBig> {
    let packet = &batch.packets()[index];
    let bytes = packet.head().get(at..)?;
    let mut sum = Sum::default();
    let (icmp_at, len) = if bytes.first()? >> 4 == 4 {
        let ip = Ipv4::new(bytes).ok().filter(Ipv4::is_checksum_valid)?;
        (ip.header_len(), ip.total_len())
    } else {
        let payload_len = Ipv6::new(bytes).ok()?.payload_len();
        sum.add(&bytes[8..ipv6::LEN]);
        sum.add_word(payload_len as u16);
        sum.add_word(icmp::PROTOCOL_V6.into());
        (ipv6::LEN, ipv6::LEN + payload_len)
    };
    let is_ipv4 = bytes[0] >> 4 == 4;
    if at + len > packet.len() {
        return None;
    }
    let told = &bytes[..bytes.len().min(len)];
    let told = TooBig::read(if is_ipv4 { told } else { told.get(icmp_at..)? }, is_ipv4)?;
    if packet.len() > at + len {
        batch.truncate(index, at + len);
    }
    let (packet, tail) = batch.frame(index);
    sum.add(packet.head().get(at + icmp_at..)?);
    for segment in tail {
        sum.add_segment(segment);
    }
    (sum.checksum() == 0).then_some(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::rig::{LOCAL, REMOTE, Rig, UPLINK, in_tunnels, mac, port};
    use switch::worker::Now;

    /// A router's word in a frame to us: of a packet from our end to another one, with such a source port, `mtu` bytes get on.
    fn word_of(router: &str, [local, peer]: [&str; 2], source_port: u16, mtu: u16) -> Vec<u8> {
        let octets = |text: &str| match text.parse().unwrap() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let is_ipv4 = local.contains('.');
        let ip = |protocol: u8, [from, to]: [&str; 2], payload: &[u8]| {
            let mut ip = if is_ipv4 {
                vec![0x45, 0, 0, 20 + payload.len() as u8, 0, 0, 0, 0, 64, protocol, 0, 0]
            } else {
                vec![0x60, 0, 0, 0, 0, payload.len() as u8, protocol, 64]
            };
            [from, to].iter().for_each(|address| ip.extend(octets(address)));
            if is_ipv4 {
                let mut sum = Sum::default();
                sum.add(&ip);
                ip[10..12].copy_from_slice(&sum.checksum().to_be_bytes());
            }
            [ip, payload.to_vec()].concat()
        };
        let [a, b] = source_port.to_be_bytes();
        let quoted = ip(udp::PROTOCOL, [local, peer], &[a, b, 0x12, 0xb5, 0, 0, 0, 0]);
        let [kind, protocol] = if is_ipv4 { [[3, 4], [0, icmp::PROTOCOL]] } else { [[2, 0], [0, icmp::PROTOCOL_V6]] };
        let mut message = vec![kind[0], kind[1], 0, 0, 0, 0];
        message.extend(mtu.to_be_bytes());
        message.extend(quoted);
        let mut sum = Sum::default();
        if !is_ipv4 {
            [router, local].iter().for_each(|address| sum.add(&octets(address)));
            sum.add_word(message.len() as u16);
            sum.add_word(icmp::PROTOCOL_V6.into());
        }
        sum.add(&message);
        message[2..4].copy_from_slice(&sum.checksum().to_be_bytes());
        let ethertype = if is_ipv4 { ethernet::TYPE_IPV4 } else { ethernet::TYPE_IPV6 };
        let packet = ip(protocol[1], [router, local], &message);
        let mut frame = [mac(0xaa).0, mac(0xfe).0].concat();
        frame.extend(ethertype.to_be_bytes());
        frame.extend(packet);
        frame.resize(frame.len().max(60), 0);
        frame
    }

    #[test]
    fn at_an_address_of_our_own_what_is_said_of_our_packets_is_noted_and_all_else_is_refused() {
        for (is_ipv6, router) in [(false, "198.51.100.9"), (true, "2001:db8:9::9")] {
            let ends = if is_ipv6 { [LOCAL[1], REMOTE[2]] } else { [LOCAL[0], REMOTE[0]] };
            let config = in_tunnels(vec![port(0, Some(1))], TunnelKind::Vxlan, is_ipv6);
            let said = config.underlay().peers().next().unwrap().said_mtu.clone();
            let hear = |frame: Vec<u8>| Rig::new(config.clone()).step(Now::default(), UPLINK, vec![frame.into()]);
            let trace = |frame: &[u8]| Rig::new(config.clone()).trace(Now::default(), UPLINK, &frame.to_vec().into());
            let good = word_of(router, ends, 50_000, 1400);
            assert_eq!(hear(good.clone()).drops, []);
            assert_eq!(said.take(), Some(1400));
            assert_eq!(trace(&good), ["uplink: ICMP to us, not forwarded"]);
            assert_eq!(said.take(), None, "a trace was believed");
            let mut spoilt = good.clone();
            let last = good.len() - 1;
            spoilt[last] ^= 1;
            let refused = [(UPLINK.0, true, "not_ours", 1)];
            for (what, frame) in [
                ("a checksum that is wrong", spoilt),
                ("another's packet", word_of(router, ends, 53, 1400)),
                ("a packet to a stranger", word_of(router, [ends[0], router], 50_000, 1400)),
            ] {
                let told = trace(&frame);
                assert!(
                    matches!(&told[..], [line] if line.starts_with("uplink: ICMP to us, drop not_ours")),
                    "{what}: {told:?}"
                );
                assert_eq!((&hear(frame).drops[..], said.take()), (&refused[..], None), "{what}");
            }
            // However much of it there is.
            for len in 60..good.len() {
                hear(good[..len].to_vec());
                assert_eq!(said.take(), None, "{len} bytes");
            }
        }
    }

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
