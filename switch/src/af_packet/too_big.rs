//! A raw socket of ICMP that hears of packets that are too long and of nothing else.

use super::set_option;
use rustix::fd::BorrowedFd;
use std::io;

/// Has a raw socket of ICMP, or of ICMPv6, hear of packets that are too long and of nothing else: other messages, however many,
/// take no place in its buffer (raw(7), `ICMP_FILTER`; RFC 3542 section 3.2).
///
/// # Errors
/// The system's.
pub fn hear_too_big_only(socket: BorrowedFd<'_>, is_ipv4: bool) -> io::Result<()> {
    // "Destination unreachable" and "packet too big". Of both options a set bit keeps the type of its number out.
    const KEPT: [u32; 2] = [3, 2];
    const ICMP_FILTER: libc::c_int = 1;
    const ICMPV6_FILTER: libc::c_int = 1;
    let mut filter = [u8::MAX; 32];
    let kept = KEPT[usize::from(!is_ipv4)];
    filter[..4].copy_from_slice(&(!(1u32 << kept)).to_ne_bytes());
    match is_ipv4 {
        true => set_option(socket, libc::SOL_RAW, ICMP_FILTER, &filter[..4]),
        false => set_option(socket, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &filter),
    }
}
