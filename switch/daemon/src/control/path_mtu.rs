//! What routers on the way say of packets that are too long for their next link: "fragmentation needed" (RFC 1191) and "packet
//! too big" (RFC 8201), about packets of our tunnels.
//!
//! What is hard is that anybody can send such messages, and that the kernel passes them to whoever sent the packet, which by
//! its books nobody did. So a raw socket hears them all, and one is believed that quotes a packet of ours to a peer. What it
//! can do at worst is bounded ([`pipelines::path_mtu`]), and is forgotten after [`KEPT`]. Owned by the thread that follows the underlay.

use pipelines::path_mtu::{is_of_tunnels, least_believed};
use pipelines::wire::icmp::TooBig;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use switch::af_packet::too_big::hear_too_big_only;

/// "An attempt to detect an increase MUST NOT be done less than 10 minutes after" (RFC 1191 section 6.3, RFC 8201 section 4: 5).
const KEPT: Duration = Duration::from_secs(600);
/// Messages read at one look; the kernel drops what comes beyond its buffer.
const MESSAGES_MAX: usize = 256;
/// Bytes of a message that are looked at: outer IP header, ICMP, quoted IP header and ports.
const MESSAGE_MAX: usize = 128;

/// Hears what is told to an address of the kernel's.
pub(super) struct Ear {
    socket: OwnedFd,
    local: IpAddr,
    port_vxlan: u16,
}

impl Ear {
    /// Listens for what is told to our end of tunnels. Needs CAP_NET_RAW.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn open(local: IpAddr, port_vxlan: u16) -> io::Result<Ear> {
        let (family, protocol) = if local.is_ipv4() { (AddressFamily::INET, 1) } else { (AddressFamily::INET6, 58) };
        let protocol = NonZeroU32::new(protocol).map(Protocol::from_raw);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::RAW, flags, protocol)?;
        hear_too_big_only(socket.as_fd(), local.is_ipv4())?;
        rustix::net::bind(&socket, &SocketAddr::new(local, 0))?;
        Ok(Ear { socket, local, port_vxlan })
    }

    /// Reads what came; `note` is told of each end and the bytes that are said to get there.
    pub(super) fn hear(&self, mut note: impl FnMut(IpAddr, u16)) {
        let mut bytes = [0; MESSAGE_MAX];
        for _ in 0..MESSAGES_MAX {
            let Ok((len, _)) = rustix::net::recv(&self.socket, &mut bytes[..], RecvFlags::empty()) else { return };
            let told = TooBig::read(&bytes[..len.min(MESSAGE_MAX)], self.local.is_ipv4());
            if let Some(told) = told.filter(|told| is_of_tunnels(told, self.local, self.port_vxlan)) {
                note(told.to, told.mtu);
            }
        }
    }
}

/// What was heard.
#[derive(Default)]
pub(super) struct PathMtus {
    heard: BTreeMap<IpAddr, (u16, Instant)>,
    /// Ends of which was said that less gets there than is believed.
    narrower: BTreeSet<IpAddr>,
}

impl PathMtus {
    /// Forgets what was heard long ago.
    pub(super) fn forget(&mut self) {
        self.heard.retain(|_, (_, since)| since.elapsed() < KEPT);
    }

    /// Notes how many bytes of L3 are said to get to a peer; by an old router, 0: it does not tell (RFC 1191 section 5).
    pub(super) fn note(&mut self, peer: IpAddr, mtu: u16) {
        let (mtu, now) = (self.believed(peer, mtu), Instant::now());
        let entry = self.heard.entry(peer).or_insert((mtu, now));
        if mtu <= entry.0 {
            *entry = (mtu, now);
        }
    }

    /// As much of it as is believed; once for each peer is told that it is not all.
    pub(super) fn believed(&mut self, peer: IpAddr, mtu: u16) -> u16 {
        let least = least_believed(peer);
        if mtu < least && self.narrower.insert(peer) {
            tracing::warn!(
                %peer, said = mtu, believed = least,
                "somebody on the way says that less gets to this peer than IPv6 needs inside; anybody could say so: if it is \
                 true, set the MTU of the route there, or of the uplink"
            );
        }
        mtu.max(least)
    }

    /// Bytes of L3 payload that get to a peer, if something was heard of it.
    pub(super) fn to(&self, peer: IpAddr) -> Option<u16> {
        self.heard.get(&peer).map(|(mtu, _)| *mtu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    #[test]
    fn the_least_that_is_said_of_a_way_holds_down_to_what_ipv6_needs_inside() {
        let peer: IpAddr = "192.0.2.2".parse().unwrap();
        let mut paths = PathMtus::default();
        assert_eq!(paths.to(peer), None);
        for (said, holds) in [(1500, 1500), (1400, 1400), (1450, 1400), (576, 1330), (0, 1330)] {
            paths.note(peer, said);
            assert_eq!(paths.to(peer), Some(holds), "{said}");
        }
        paths.forget();
        assert_eq!(paths.to(peer), Some(1330));
        paths.note("2001:db8::2".parse().unwrap(), 1280);
        assert_eq!(paths.to("2001:db8::2".parse().unwrap()), Some(1350));
    }

    #[test]
    fn messages_about_packets_of_ours_are_heard_by_ipv4_and_ipv6_and_no_others() {
        let quoted = |from: IpAddr, to: IpAddr| match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut ip = vec![0x45; 20];
                ip[9] = 17;
                ip[12..16].copy_from_slice(&from.octets());
                ip[16..].copy_from_slice(&to.octets());
                ip
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut ip = vec![0; 40];
                (ip[0], ip[6]) = (0x60, 17);
                ip[8..24].copy_from_slice(&from.octets());
                ip[24..].copy_from_slice(&to.octets());
                ip
            }
            _ => unreachable!("of one family"),
        };
        for (local, peer, kinds) in
            [("127.0.0.1", "192.0.2.2", [[3, 4], [11, 0]]), ("::1", "2001:db8::2", [[2, 0], [3, 0]])]
        {
            let (local, peer): (IpAddr, IpAddr) = (local.parse().unwrap(), peer.parse().unwrap());
            let ear = Ear::open(local, 4789).expect("these tests need CAP_NET_RAW");
            let (family, protocol) = match local {
                IpAddr::V4(_) => (AddressFamily::INET, 1),
                IpAddr::V6(_) => (AddressFamily::INET6, 58),
            };
            let protocol = NonZeroU32::new(protocol).map(Protocol::from_raw);
            let sender = rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol).unwrap();
            let send = |kind: [u8; 2], source: u16| {
                let mut message = vec![kind[0], kind[1], 0, 0, 0, 0, 5, 0x78];
                message.extend(quoted(local, peer));
                message.extend(source.to_be_bytes());
                message.extend(4789u16.to_be_bytes());
                message.extend([0; 4]);
                if local.is_ipv4() {
                    let mut sum = switch::checksum::Sum::default();
                    sum.add(&message);
                    message[2..4].copy_from_slice(&sum.checksum().to_be_bytes());
                }
                let to = SocketAddr::new(local, 0);
                rustix::net::sendto(&sender, &message, rustix::net::SendFlags::empty(), &to).unwrap();
            };
            let wait = || {
                let timeout = Timespec { tv_sec: 5, tv_nsec: 0 };
                assert_eq!(poll(&mut [PollFd::new(&ear.socket, PollFlags::IN)], Some(&timeout)), Ok(1), "nothing came");
                let mut heard = Vec::new();
                ear.hear(|peer, mtu| heard.push((peer, mtu)));
                heard
            };
            send(kinds[0], 53);
            assert_eq!(wait(), [], "about another's packet");
            // Room for one message, or two.
            rustix::net::sockopt::set_socket_recv_buffer_size(&ear.socket, 1).unwrap();
            (0..20).for_each(|_| send(kinds[1], 50_000));
            send(kinds[0], 50_000);
            assert_eq!(wait(), [(peer, 1400)]);
        }
    }
}
