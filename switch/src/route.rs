//! The kernel's answers to "how does one get there": routes and neighbours of this host, asked for one by one.
//!
//! An uplink that the host shares has its addresses, routes and neighbours in the kernel. We ask and never change anything but
//! one thing: a neighbour that is wanted is said to be in use, so that the kernel finds it, or makes sure of it again
//! (rtnetlink(7), `NTF_USE`). Control side only; the socket stays in the namespace of the thread that opened it.
//! Bounds: one message of [`MESSAGE_MAX`] bytes, and [`ANSWER_TIMEOUT`] for an answer.

use crate::ids::MacAddr;
use crate::link::{attributes, u16_at, u32_at};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Most bytes of an answer: a route has some hundred.
const MESSAGE_MAX: usize = 16 << 10;
/// The kernel answers at once; this only keeps a broken one from hanging us.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

// linux/netlink.h, linux/rtnetlink.h and linux/neighbour.h
const NLMSG_ERROR: u16 = 2;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
const NLM_F_REQUEST: u16 = 0x001;
const NLM_F_ACK: u16 = 0x004;
const NLM_F_CREATE: u16 = 0x400;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_METRICS: u16 = 8;
const RTAX_MTU: u16 = 2;
const RTA_CACHEINFO: u16 = 12;
/// Where `struct rta_cacheinfo` tells how long it holds: exceptions alone end, with IPv4.
const EXPIRES: usize = 8;
/// It is an exception, with IPv6.
const RTM_F_CLONED: u32 = 0x200;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
/// What the tables say, not what becomes of a packet.
const RTM_F_FIB_MATCH: u32 = 0x2000;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// `NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_NOARP | NUD_PERMANENT`: the address is good.
const NUD_VALID: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80;
const NTF_USE: u8 = 0x01;
/// Bytes of `struct nlmsghdr`, and of `struct rtmsg`, `struct ndmsg` and `struct if_stats_msg`.
pub(crate) const HEADER_SIZE: usize = 16;
pub(crate) const INFO_SIZE: usize = 12;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Where the kernel sends packets for an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// The interface's index.
    pub interface: u32,
    /// The next hop: a gateway, or the address itself.
    pub next_hop: IpAddr,
    /// Bytes of L3 payload, if the route, or what was heard of the way (an exception), says so.
    pub mtu: Option<u16>,
    /// That was heard, from whoever said so: no operator did.
    pub is_mtu_heard: bool,
}

/// Asks the kernel.
#[derive(Debug)]
pub struct Resolver {
    socket: OwnedFd,
    message: Box<[u8]>,
    sequence: u32,
}

impl Resolver {
    /// One that asks the kernel about the calling thread's namespace.
    ///
    /// # Errors
    /// The system's.
    pub fn open() -> io::Result<Resolver> {
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        rustix::net::bind(&socket, &netlink::SocketAddrNetlink::new(0, 0))?;
        Ok(Resolver { socket, message: vec![0; MESSAGE_MAX].into_boxed_slice(), sequence: 0 })
    }

    /// The way to an address; `None` if there is none, or it is one of this host's own.
    ///
    /// # Errors
    /// The system's.
    pub fn route(&mut self, to: IpAddr) -> io::Result<Option<Route>> {
        let mut info = [0; INFO_SIZE];
        let bytes = octets(to);
        (info[0], info[1]) = (family(to), (bytes.len() * 8) as u8);
        let answer = self.answer((RTM_GETROUTE, RTM_NEWROUTE), &info, &[(RTA_DST, &bytes)])?;
        let Some(message) = answer.filter(|it| it.get(HEADER_SIZE + 7) == Some(&RTN_UNICAST)) else { return Ok(None) };
        let is_exception = to.is_ipv6() && u32_at(message, HEADER_SIZE + 8).unwrap_or_default() & RTM_F_CLONED != 0;
        let mut route = Route { interface: 0, next_hop: to, mtu: None, is_mtu_heard: is_exception };
        for (kind, value) in attributes(message.get(HEADER_SIZE + INFO_SIZE..).unwrap_or_default()) {
            match kind {
                RTA_OIF => route.interface = u32_at(value, 0).unwrap_or_default(),
                RTA_GATEWAY => route.next_hop = address(value).unwrap_or(to),
                RTA_METRICS => {
                    let mtu = attributes(value).find(|(kind, _)| *kind == RTAX_MTU);
                    let mtu = mtu.and_then(|(_, value)| u32_at(value, 0)).filter(|&mtu| mtu > 0);
                    route.mtu = mtu.map(|mtu| u16::try_from(mtu).unwrap_or(u16::MAX));
                }
                RTA_CACHEINFO if to.is_ipv4() => route.is_mtu_heard = u32_at(value, EXPIRES).is_some_and(|it| it != 0),
                _ => {}
            }
        }
        Ok((route.interface != 0).then_some(route))
    }

    /// The interface that has this address; `None` if none has.
    ///
    /// # Errors
    /// The system's.
    pub fn interface_of(&mut self, own: IpAddr) -> io::Result<Option<u32>> {
        let mut info = [0; INFO_SIZE];
        let bytes = octets(own);
        (info[0], info[1]) = (family(own), (bytes.len() * 8) as u8);
        info[8..].copy_from_slice(&RTM_F_FIB_MATCH.to_ne_bytes());
        let answer = self.answer((RTM_GETROUTE, RTM_NEWROUTE), &info, &[(RTA_DST, &bytes)])?;
        let Some(message) = answer.filter(|it| it.get(HEADER_SIZE + 7) == Some(&RTN_LOCAL)) else { return Ok(None) };
        let mut found = attributes(message.get(HEADER_SIZE + INFO_SIZE..).unwrap_or_default());
        Ok(found.find(|(kind, _)| *kind == RTA_OIF).and_then(|(_, value)| u32_at(value, 0)))
    }

    /// The MAC of a neighbour on an interface; `None` while it is not known.
    ///
    /// # Errors
    /// The system's.
    pub fn neighbour(&mut self, interface: u32, neighbour: IpAddr) -> io::Result<Option<MacAddr>> {
        let info = neighbour_info(interface, neighbour, 0);
        let bytes = octets(neighbour);
        let answer = self.answer((RTM_GETNEIGH, RTM_NEWNEIGH), &info, &[(NDA_DST, &bytes)])?;
        let is_valid = |it: &&[u8]| u16_at(it, HEADER_SIZE + 8).unwrap_or_default() & NUD_VALID != 0;
        let Some(message) = answer.filter(is_valid) else { return Ok(None) };
        let mut found = attributes(message.get(HEADER_SIZE + INFO_SIZE..).unwrap_or_default());
        let found = found.find(|(kind, _)| *kind == NDA_LLADDR).and_then(|(_, value)| value.try_into().ok());
        Ok(found.map(MacAddr).filter(|mac| !mac.is_zero() && !mac.is_group()))
    }

    /// Says that a neighbour is in use: the kernel looks for one it does not know, and makes sure of one that it has not heard
    /// for a while. Needs CAP_NET_ADMIN.
    ///
    /// # Errors
    /// The system's.
    pub fn solicit(&mut self, interface: u32, neighbour: IpAddr) -> io::Result<()> {
        let info = neighbour_info(interface, neighbour, NTF_USE);
        let bytes = octets(neighbour);
        self.ask(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_ACK, &info, &[(NDA_DST, &bytes)]).map(drop)
    }

    /// What the kernel answers to a question, header and all; `None`: what was asked for is not there, or it is another answer.
    pub(crate) fn answer(
        &mut self,
        (question, answer): (u16, u16),
        info: &[u8; INFO_SIZE],
        attributes: &[(u16, &[u8])],
    ) -> io::Result<Option<&[u8]>> {
        let Some(len) = self.ask(question, 0, info, attributes)? else { return Ok(None) };
        let message = &self.message[..len];
        Ok((u16_at(message, 4) == Some(answer)).then_some(message))
    }

    /// Sends a request and waits for its answer, which is in `message` then; `None`: what was asked for is not there.
    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        info: &[u8; INFO_SIZE],
        attributes: &[(u16, &[u8])],
    ) -> io::Result<Option<usize>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = vec![0; HEADER_SIZE];
        request.extend(info);
        for (kind, value) in attributes {
            request.extend(((4 + value.len()) as u16).to_ne_bytes());
            request.extend(kind.to_ne_bytes());
            request.extend(*value);
            request.resize(request.len().next_multiple_of(4), 0);
        }
        let len = request.len() as u32;
        request[..4].copy_from_slice(&len.to_ne_bytes());
        request[4..6].copy_from_slice(&kind.to_ne_bytes());
        request[6..8].copy_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        request[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        rustix::net::sendto(&self.socket, &request, SendFlags::empty(), &netlink::SocketAddrNetlink::new(0, 0))?;
        loop {
            let (len, _) = rustix::net::recv(&self.socket, &mut self.message[..], RecvFlags::empty())?;
            let message = &self.message[..len];
            if u32_at(message, 8) != Some(self.sequence) {
                continue;
            }
            if u16_at(message, 4) != Some(NLMSG_ERROR) {
                return Ok(Some(len));
            }
            let code = u32_at(message, HEADER_SIZE).map_or(0, |code| code.cast_signed().saturating_neg());
            // 0 acknowledges.
            if code <= 0 {
                return Ok(Some(len));
            }
            return match Errno::from_raw_os_error(code) {
                // EINVAL is what a route of kind `blackhole` answers.
                Errno::NOENT | Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::NODEV | Errno::ACCESS | Errno::INVAL => {
                    Ok(None)
                }
                error => Err(error.into()),
            };
        }
    }
}

/// `struct ndmsg`
fn neighbour_info(interface: u32, neighbour: IpAddr, flags: u8) -> [u8; INFO_SIZE] {
    let mut info = [0; INFO_SIZE];
    info[0] = family(neighbour);
    info[4..8].copy_from_slice(&interface.to_ne_bytes());
    info[10] = flags;
    info
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(bytes).ok().map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes)));
    v4().or_else(|| <[u8; 16]>::try_from(bytes).ok().map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes))))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_host_itself_is_no_next_hop_and_nobody_there_is_no_error() {
        let mut resolver = Resolver::open().unwrap();
        assert_eq!(resolver.route("127.0.0.1".parse().unwrap()).unwrap(), None);
        assert_eq!(resolver.interface_of("127.0.0.1".parse().unwrap()).unwrap(), Some(1));
        assert_eq!(resolver.interface_of("192.0.2.77".parse().unwrap()).unwrap(), None);
        assert_eq!(resolver.neighbour(1, "192.0.2.77".parse().unwrap()).unwrap(), None);
        assert_eq!(resolver.neighbour(0x7fff_ffff, "2001:db8::77".parse().unwrap()).unwrap(), None);
    }
}
