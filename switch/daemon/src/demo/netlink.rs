//! The two rtnetlink requests the demo needs: an interface up, and an IPv4 address on it.
//!
//! Two fixed messages do not pay for a netlink library and a runtime, so they are written out here by hand
//! (rtnetlink(7)); the kernel answers each with one acknowledgement. All integers are in host byte order but the
//! addresses. They act on the network namespace of the calling thread, which makes and drops the socket.

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

/// `RTM_NEWLINK`: change (or make) an interface.
const NEW_LINK: u16 = 16;
/// `RTM_NEWADDR`: put an address on an interface.
const NEW_ADDRESS: u16 = 20;
/// `NLMSG_ERROR`: the acknowledgement; error 0 is success.
const ACKNOWLEDGEMENT: u16 = 2;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const REQUEST_AND_ACK: u16 = 0x1 | 0x4;
/// `NLM_F_EXCL | NLM_F_CREATE`: refuse what exists already.
const CREATE_NEW: u16 = 0x200 | 0x400;
/// `IFF_UP`.
const UP: u32 = 1;
/// `AF_INET`.
const INET: u8 = 2;
/// `IFA_ADDRESS` and `IFA_LOCAL`: the same address, for a link with more than two ends.
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
/// Bytes of `struct nlmsghdr`.
const HEADER_SIZE: usize = 16;
/// The kernel answers at once; this only keeps a broken one from hanging us.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Sets the interface with this name up, and returns its index.
///
/// # Errors
/// The system's: `ENODEV` without such an interface, `EPERM` without CAP_NET_ADMIN.
pub(super) fn set_up(interface: &str) -> io::Result<u32> {
    let (socket, index) = open(interface)?;
    let mut body = Vec::with_capacity(16);
    // struct ifinfomsg: family, padding, type, index, flags, which flags to change.
    body.extend([0, 0]);
    body.extend(0u16.to_ne_bytes());
    body.extend(index.to_ne_bytes());
    body.extend(UP.to_ne_bytes());
    body.extend(UP.to_ne_bytes());
    request(&socket, NEW_LINK, 0, &body)?;
    Ok(index)
}

/// Puts `address` with a prefix of `prefix_len` bits on the interface with this name.
///
/// # Errors
/// The system's: `ENODEV` without such an interface, `EEXIST` if it has the address, `EPERM` without CAP_NET_ADMIN.
pub(super) fn add_address(interface: &str, address: Ipv4Addr, prefix_len: u8) -> io::Result<()> {
    let (socket, index) = open(interface)?;
    let mut body = Vec::with_capacity(24);
    // struct ifaddrmsg: family, prefix length, flags, scope (0: everywhere), index.
    body.extend([INET, prefix_len, 0, 0]);
    body.extend(index.to_ne_bytes());
    for kind in [LOCAL, ADDRESS] {
        // struct rtattr: length with header, type.
        body.extend(8u16.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(address.octets());
    }
    request(&socket, NEW_ADDRESS, CREATE_NEW, &body)
}

fn open(interface: &str) -> io::Result<(rustix::fd::OwnedFd, u32)> {
    // Protocol 0 of netlink is rtnetlink, which is also what `None` asks for.
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
    let index = rustix::net::netdevice::name_to_index(&socket, interface)?;
    Ok((socket, index))
}

fn request(socket: &rustix::fd::OwnedFd, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let message = message(kind, flags, body);
    let kernel = netlink::SocketAddrNetlink::new(0, 0);
    rustix::net::sendto(socket, &message, SendFlags::empty(), &kernel)?;
    let mut answer = [0; 1024];
    let (len, _) = rustix::net::recv(socket, &mut answer[..], RecvFlags::empty())?;
    outcome(&answer[..len])
}

/// The request with its header; both bodies are multiples of four bytes long, so there is no padding.
fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(HEADER_SIZE + body.len()).expect("two small structs");
    let mut message = Vec::with_capacity(HEADER_SIZE + body.len());
    message.extend(len.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((REQUEST_AND_ACK | flags).to_ne_bytes());
    // Sequence number and sender: one request a socket needs neither.
    message.extend([0; 8]);
    message.extend_from_slice(body);
    message
}

/// Reads the acknowledgement: header, then a negative errno or zero.
fn outcome(answer: &[u8]) -> io::Result<()> {
    let strange = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's netlink answer is no acknowledgement");
    let kind = answer.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes).ok_or_else(strange)?;
    let code = answer.get(HEADER_SIZE..HEADER_SIZE + 4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (ACKNOWLEDGEMENT, Some(0)) => Ok(()),
        (ACKNOWLEDGEMENT, Some(code)) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        _ => Err(strange()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acknowledgement(code: i32) -> Vec<u8> {
        let mut bytes = message(ACKNOWLEDGEMENT, 0, &code.to_ne_bytes());
        bytes.extend([0; 16]);
        bytes
    }

    #[test]
    fn an_acknowledgement_of_zero_is_success_and_a_negative_one_the_errno() {
        assert!(outcome(&acknowledgement(0)).is_ok());
        assert_eq!(outcome(&acknowledgement(-17)).unwrap_err().raw_os_error(), Some(17));
    }

    #[test]
    fn every_truncation_of_an_answer_is_an_error_and_no_panic() {
        let whole = acknowledgement(0);
        for len in 0..HEADER_SIZE + 4 {
            assert!(outcome(&whole[..len]).is_err(), "{len} bytes");
        }
    }
}
