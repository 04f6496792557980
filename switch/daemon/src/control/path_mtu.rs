//! What routers on the way say of packets that are too long for their next link: "fragmentation needed" (RFC 1191) and "packet
//! too big" (RFC 8201), about packets of our tunnels.
//!
//! What is hard is that anybody can send such messages, and that the kernel passes them to whoever sent the packet, which by
//! its books nobody did. So a raw socket hears them all, and one is believed that quotes a packet of ours to a peer. What it
//! can do at worst is bounded by [`MTU_LEAST`], and is forgotten after [`KEPT`]. Owned by the thread that follows the underlay.

use pipelines::wire::icmp::TooBig;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// "An attempt to detect an increase MUST NOT be done less than 10 minutes after" (RFC 1191 section 6.3, RFC 8201 section 4: 5).
const KEPT: Duration = Duration::from_secs(600);
/// What every host takes: of IPv4 576 (RFC 791 section 3.1), of IPv6 1,280 (RFC 8200 section 5). Less is not believed.
const MTU_LEAST: [u16; 2] = [576, 1280];
/// Messages read at one look; the kernel drops what comes beyond its buffer.
const MESSAGES_MAX: usize = 256;
/// Bytes of a message that are looked at: outer IP header, ICMP, quoted IP header and ports.
const MESSAGE_MAX: usize = 128;
const UDP: u8 = pipelines::wire::udp::PROTOCOL;
const GRE: u8 = pipelines::wire::gre::PROTOCOL;

/// What was heard.
pub(super) struct PathMtus {
    socket: OwnedFd,
    local: IpAddr,
    /// UDP ports of tunnels.
    ports: [u16; 2],
    heard: BTreeMap<IpAddr, (u16, Instant)>,
}

impl PathMtus {
    /// Listens for what is told to our end of tunnels with these UDP ports. Needs CAP_NET_RAW.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn open(local: IpAddr, ports: [u16; 2]) -> io::Result<PathMtus> {
        let (family, protocol) = if local.is_ipv4() { (AddressFamily::INET, 1) } else { (AddressFamily::INET6, 58) };
        let protocol = NonZeroU32::new(protocol).map(Protocol::from_raw);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::RAW, flags, protocol)?;
        rustix::net::bind(&socket, &SocketAddr::new(local, 0))?;
        Ok(PathMtus { socket, local, ports, heard: BTreeMap::new() })
    }

    /// Reads what came, of which what is about packets to a peer is kept.
    pub(super) fn hear(&mut self, is_peer: impl Fn(IpAddr) -> bool) {
        let now = Instant::now();
        self.heard.retain(|_, (_, since)| now.duration_since(*since) < KEPT);
        let mut bytes = [0; MESSAGE_MAX];
        for _ in 0..MESSAGES_MAX {
            let Ok((len, _)) = rustix::net::recv(&self.socket, &mut bytes[..], RecvFlags::empty()) else { return };
            let told = too_big(&bytes[..len.min(MESSAGE_MAX)], self.local, self.ports);
            if let Some((peer, mtu)) = told.filter(|(peer, _)| is_peer(*peer)) {
                let entry = self.heard.entry(peer).or_insert((mtu, now));
                if mtu <= entry.0 {
                    *entry = (mtu, now);
                }
            }
        }
    }

    /// Bytes of L3 payload that get to a peer, if something was heard of it.
    pub(super) fn to(&self, peer: IpAddr) -> Option<u16> {
        self.heard.get(&peer).map(|(mtu, _)| *mtu)
    }
}

/// The peer and the MTU of a message, as a raw socket reads it, if it is about a packet of our tunnels.
fn too_big(message: &[u8], local: IpAddr, ports: [u16; 2]) -> Option<(IpAddr, u16)> {
    let told = TooBig::read(message, local.is_ipv4())?;
    let is_ours = match told.protocol {
        UDP => told.port.is_some_and(|port| ports.contains(&port)),
        GRE => true,
        _ => false,
    };
    let least = MTU_LEAST[usize::from(!local.is_ipv4())];
    // An old router tells no MTU but 0: the least that holds everywhere.
    (is_ours && told.from == local).then_some((told.to, told.mtu.max(least)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORTS: [u16; 2] = [4789, 6081];

    fn v4(kind: [u8; 2], mtu: u16, from: [u8; 4], to: [u8; 4], protocol: u8, port: u16) -> Vec<u8> {
        let mut message = vec![0x45; 20];
        message.extend([kind[0], kind[1], 0, 0, 0, 0]);
        message.extend(mtu.to_be_bytes());
        let mut ip = vec![0x45; 20];
        ip[9] = protocol;
        ip[12..16].copy_from_slice(&from);
        ip[16..].copy_from_slice(&to);
        message.extend(ip);
        message.extend([0xc0, 0, (port >> 8) as u8, port as u8]);
        message
    }

    #[test]
    fn what_routers_say_of_our_packets_is_believed_down_to_the_least() {
        let local = IpAddr::from([192, 0, 2, 1]);
        let (own, peer) = ([192, 0, 2, 1], [192, 0, 2, 2]);
        let told = |mtu, protocol, port| too_big(&v4([3, 4], mtu, own, peer, protocol, port), local, PORTS);
        for (mtu, protocol, port, expected) in
            [(1400, 17, 4789, 1400), (1399, 17, 6081, 1399), (1300, 47, 0, 1300), (0, 17, 4789, 576), (68, 47, 9, 576)]
        {
            assert_eq!(told(mtu, protocol, port), Some((peer.into(), expected)));
        }
        assert_eq!(told(1400, 17, 53), None, "another's datagram");
        assert_eq!(told(1400, 6, 4789), None, "no tunnel's");
        assert_eq!(too_big(&v4([3, 3], 1400, own, peer, 17, 4789), local, PORTS), None, "port unreachable");
        assert_eq!(too_big(&v4([3, 4], 1400, peer, own, 17, 4789), local, PORTS), None, "not from us");
    }

    #[test]
    fn packet_too_big_quotes_us_and_tells_no_less_than_ipv6_needs() {
        let local: IpAddr = "2001:db8::1".parse().unwrap();
        let told = |mtu: u32| {
            let mut message = vec![2, 0, 0, 0];
            message.extend(mtu.to_be_bytes());
            let mut ip = vec![0; 40];
            ip[6] = 17;
            ip[8..24].copy_from_slice(&"2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
            ip[24..].copy_from_slice(&"2001:db8::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
            message.extend(ip);
            message.extend([0xc0, 0, 0x12, 0xb5]);
            too_big(&message, local, PORTS).map(|(peer, mtu)| (peer.to_string(), mtu))
        };
        assert_eq!(told(1400), Some(("2001:db8::2".to_owned(), 1400)));
        assert_eq!(told(100).map(|(_, mtu)| mtu), Some(1280));
        assert_eq!(told(70_000).map(|(_, mtu)| mtu), Some(u16::MAX));
    }

    #[test]
    fn no_message_however_short_is_more_than_ignored() {
        let whole = v4([3, 4], 1400, [192, 0, 2, 1], [192, 0, 2, 2], 17, 4789);
        for len in 0..whole.len() {
            assert_eq!(too_big(&whole[..len], [192, 0, 2, 1].into(), PORTS), None, "{len} bytes");
        }
        let mut state = 7u32;
        for len in 0..MESSAGE_MAX {
            let noise = std::array::from_fn::<u8, MESSAGE_MAX, _>(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            });
            let _ = too_big(&noise[..len], [192, 0, 2, 1].into(), PORTS);
            let _ = too_big(&noise[..len], "2001:db8::1".parse().unwrap(), PORTS);
        }
    }
}
