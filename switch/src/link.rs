//! One network interface of the kernel, watched: whether it is there, up, has a carrier, and its MTU.
//!
//! What makes it harder than it looks: a name is not an interface. The one that we hold can be renamed, moved to another
//! namespace or deleted, and another may take its name the next moment. So it is looked up by name once and followed by its
//! index, which stays its own; a rename ends it for us, for an operator means the name.
//!
//! The kernel tells changes to whoever subscribes (rtnetlink(7), `RTMGRP_LINK`), so that a look without news costs one system
//! call. A message too many for the socket's buffer is told too, and then the state is asked for anew. Control side only;
//! the socket stays in the namespace of the thread that opened it. Its bound: one message of [`MESSAGE_MAX`] bytes.

use crate::ids::MacAddr;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Most bytes of a message: an interface with many virtual functions has some ten kilobytes to tell.
const MESSAGE_MAX: usize = 64 << 10;
/// The kernel answers at once; this only keeps a broken one from hanging us.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Messages taken in one look; the next look goes on.
const MESSAGES_PER_LOOK: usize = 1024;

// linux/netlink.h and linux/rtnetlink.h
const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const NLM_F_REQUEST: u16 = 1;
const RTMGRP_LINK: u32 = 1;
/// Bytes of `struct nlmsghdr` and of `struct ifinfomsg`.
const HEADER_SIZE: usize = 16;
const INFO_SIZE: usize = 16;
// linux/if_link.h
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_KIND: u16 = 1;
/// Leaves the counters out: they are asked for apart (`device/counting.rs`).
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
// linux/if.h
const IFF_UP: u32 = 1;
const IFF_RUNNING: u32 = 1 << 6;
/// `ARPHRD_ETHER` (linux/if_arp.h)
const ETHERNET: u16 = 1;

/// An interface at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LinkStatus {
    /// Its number in its namespace, for as long as it lives there.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What driver made it (`veth`, `tun`, `vlan`, …); empty: a device of hardware, or of a driver that does not tell.
    pub kind: String,
    /// Its hardware address; zero if it has none of six bytes.
    pub mac: MacAddr,
    /// Bytes of L3 payload.
    pub mtu: u32,
    /// Queues to receive and to send by, as many as it may have in use.
    pub queues: [u32; 2],
    /// Whether it speaks Ethernet.
    pub is_ethernet: bool,
    /// Whether an operator has it up.
    pub is_up: bool,
    /// Whether frames can pass: it is up and its far side is there.
    pub has_carrier: bool,
}

/// Follows one interface.
#[derive(Debug)]
pub struct LinkWatch {
    socket: OwnedFd,
    index: u32,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    /// `None`: it is gone, for ever.
    status: Option<LinkStatus>,
    /// Whether a message was lost since it was asked for.
    is_stale: bool,
    message: Box<[u8]>,
}

impl LinkWatch {
    /// Follows the interface of that name in the calling thread's namespace; `None` if there is none.
    ///
    /// # Errors
    /// The system's.
    pub fn open(name: &str) -> io::Result<Option<LinkWatch>> {
        let flags = SocketFlags::CLOEXEC;
        // Protocol 0 of netlink is rtnetlink, which is also what `None` asks for.
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        // Before the question, so that no change after the answer is missed.
        rustix::net::bind(&socket, &netlink::SocketAddrNetlink::new(0, RTMGRP_LINK))?;
        let index = match rustix::net::netdevice::name_to_index(&socket, name) {
            Ok(index) => index,
            // A name too long for any interface is nobody's name either.
            Err(Errno::NODEV | Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut message = vec![0; MESSAGE_MAX].into_boxed_slice();
        let status = ask(&socket, index, &mut message)?.filter(|status| status.name == name);
        let seen = |status| Mutex::new(Seen { status: Some(status), is_stale: false, message });
        Ok(status.map(|status| LinkWatch { socket, index, seen: seen(status) }))
    }

    /// How it is now; `None` if it is gone: deleted, renamed or moved to another namespace.
    pub fn status(&self) -> Option<LinkStatus> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let Seen { status, is_stale, message } = &mut *seen;
        for _ in 0..MESSAGES_PER_LOOK {
            let before = status.clone()?;
            match rustix::net::recv(&self.socket, &mut message[..], RecvFlags::DONTWAIT) {
                Ok((len, _)) => *status = follow(&before, &message[..len]),
                Err(Errno::NOBUFS) => *is_stale = true,
                // Only now, for the answer needs room in the buffer. If there is none, what was known stands until the next look.
                Err(_) if *is_stale => match ask(&self.socket, self.index, message) {
                    Ok(now) => (*status, *is_stale) = (now.filter(|now| now.name == before.name), false),
                    Err(_) => break,
                },
                Err(_) => break,
            }
        }
        status.clone()
    }
}

/// Readable while there is news.
impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Asks the kernel for the interface with this index, and passes over what it tells unasked meanwhile.
fn ask(socket: &OwnedFd, index: u32, message: &mut [u8]) -> io::Result<Option<LinkStatus>> {
    let mut request = Vec::with_capacity(HEADER_SIZE + INFO_SIZE + 8);
    request.extend(((HEADER_SIZE + INFO_SIZE + 8) as u32).to_ne_bytes());
    request.extend(RTM_GETLINK.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    // The sequence number by which the answer is known: messages unasked for have 0, or that of who caused them.
    request.extend(SEQUENCE.to_ne_bytes());
    request.extend(0u32.to_ne_bytes());
    // struct ifinfomsg: family, padding, type, index, flags, which flags to change.
    request.extend(0u32.to_ne_bytes());
    request.extend(index.to_ne_bytes());
    request.extend([0; 8]);
    request.extend(8u16.to_ne_bytes());
    request.extend(IFLA_EXT_MASK.to_ne_bytes());
    request.extend(RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    rustix::net::sendto(socket, &request, SendFlags::empty(), &netlink::SocketAddrNetlink::new(0, 0))?;
    loop {
        let len = match rustix::net::recv(socket, &mut message[..], RecvFlags::empty()) {
            Ok((len, _)) => len,
            // What was lost is told by the answer.
            Err(Errno::NOBUFS) => continue,
            Err(error) => return Err(error.into()),
        };
        let whole = &message[..len];
        if u32_at(whole, 8) != Some(SEQUENCE) {
            continue;
        }
        match u16_at(whole, 4) {
            Some(RTM_NEWLINK) => return Ok(read(whole, LinkStatus::default())),
            Some(NLMSG_ERROR) => {
                let code = u32_at(whole, HEADER_SIZE).map_or(0, |code| code.cast_signed().saturating_neg());
                return match Errno::from_raw_os_error(code) {
                    Errno::NODEV => Ok(None),
                    error => Err(error.into()),
                };
            }
            _ => {}
        }
    }
}

/// "qvs", so that nobody's count from 1 meets it.
const SEQUENCE: u32 = 0x7176_7300;

/// What an unasked message makes of what was known.
fn follow(before: &LinkStatus, message: &[u8]) -> Option<LinkStatus> {
    // Bridges tell of their members in messages of their own family, which are not about the interface itself.
    let is_about_us = u32_at(message, HEADER_SIZE + 4) == Some(before.index) && message.get(HEADER_SIZE) == Some(&0);
    match u16_at(message, 4) {
        Some(RTM_DELLINK) if is_about_us => None,
        Some(RTM_NEWLINK) if is_about_us => read(message, before.clone()).filter(|now| now.name == before.name),
        _ => Some(before.clone()),
    }
}

/// Reads `RTM_NEWLINK`; what it does not tell stays as it was `before`. `None` if it is cut short.
fn read(message: &[u8], before: LinkStatus) -> Option<LinkStatus> {
    let flags = u32_at(message, HEADER_SIZE + 8)?;
    let mut now = LinkStatus {
        index: u32_at(message, HEADER_SIZE + 4)?,
        is_ethernet: u16_at(message, HEADER_SIZE + 2)? == ETHERNET,
        is_up: flags & IFF_UP != 0,
        has_carrier: flags & IFF_UP != 0 && flags & IFF_RUNNING != 0,
        ..before
    };
    for (kind, value) in attributes(message.get(HEADER_SIZE + INFO_SIZE..)?) {
        match kind {
            IFLA_IFNAME => now.name = text(value),
            IFLA_MTU => now.mtu = u32_at(value, 0)?,
            IFLA_NUM_RX_QUEUES => now.queues[0] = u32_at(value, 0)?,
            IFLA_NUM_TX_QUEUES => now.queues[1] = u32_at(value, 0)?,
            IFLA_ADDRESS => now.mac = value.try_into().map(MacAddr).unwrap_or_default(),
            IFLA_LINKINFO => {
                let told = attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                now.kind = told.map(|(_, value)| text(value)).unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(now)
}

/// `struct rtattr` after `struct rtattr`: type and value of each, up to one that is cut short.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes, 0)?);
        // The upper two bits are flags (nested, network byte order).
        let kind = u16_at(bytes, 2)? & 0x3fff;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A text that may end with a zero byte.
fn text(value: &[u8]) -> String {
    let text = value.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests;
