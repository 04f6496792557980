//! Real packets between the members: the kernel's ping, and raw frames that no honest kernel would send.
//!
//! A member is a network namespace with one TAP, as a VM or container would be. Its sockets are opened inside the
//! namespace and used from the main thread. The raw socket shows every frame that the switch hands to the member,
//! whoever it is for; so "sees nothing" means zero frames on the wire, not zero answers.

use super::namespaces::Netns;
use super::netlink;
use anyhow::{Context, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};
use switch::af_packet::RawSocket;
use switch::ids::MacAddr;

/// Frames sent in one probe. Far below what a socket or a ring holds, so that none may be lost.
pub(super) const PROBE_FRAMES: u32 = 32;
/// A probe is over when this long nothing of it has come. The switch takes well below a millisecond.
const QUIET: Duration = Duration::from_millis(100);
/// How long the frames of a probe may take to arrive.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between two echo requests.
const PING_INTERVAL: Duration = Duration::from_millis(50);
/// Bytes of a frame that are looked at.
const SNAP: usize = 128;
/// The most frames taken out of a socket at once: more than a receive buffer holds.
const DRAIN_MAX: usize = 100_000;
/// Length of a probe frame: the shortest Ethernet frame, without FCS.
const FRAME_SIZE: usize = 60;
/// EtherType for local experiments (IEEE 802, Local Experimental EtherType 1).
const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];
/// Prefix length of both address plans.
const PREFIX_LEN: u8 = 24;

/// A host of a tenant: one TAP in a namespace of its own.
pub(super) struct Member {
    /// `red-1`
    pub(super) name: &'static str,
    /// The text that the tenant attaches and the host plugs.
    pub(super) attachment: &'static str,
    /// Name of the TAP.
    pub(super) tap: &'static str,
    /// Its address; both tenants use the same ones.
    pub(super) address: Ipv4Addr,
    /// Where it lives.
    pub(super) netns: Netns,
}

/// A member's sockets, open in its namespace, once its TAP is there.
pub(super) struct Station {
    /// Everything that the switch sends to the member.
    pub(super) raw: RawSocket,
    /// The kernel's ICMP, as ping(8) uses it with privilege.
    icmp: OwnedFd,
}

impl Member {
    /// Gives the TAP its address and opens the member's sockets.
    pub(super) fn settle(&self) -> anyhow::Result<Station> {
        self.netns.run(|| {
            netlink::add_address(self.tap, self.address, PREFIX_LEN)
                .with_context(|| format!("giving {} the address {}", self.tap, self.address))?;
            let raw = RawSocket::open(self.tap)?;
            raw.ignore_outgoing().context("leaving out own frames")?;
            let icmp = rustix::net::socket_with(
                AddressFamily::INET,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                Some(ipproto::ICMP),
            )
            .context("opening an ICMP socket")?;
            Ok(Station { raw, icmp })
        })?
    }

    /// The index of the TAP.
    ///
    /// # Errors
    /// The system's: `ENODEV` without such an interface.
    pub(super) fn tap_index(&self) -> io::Result<u32> {
        self.netns.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            Ok(rustix::net::netdevice::name_to_index(&socket, self.tap)?)
        })?
    }

    /// Whether the TAP is there.
    pub(super) fn has_tap(&self) -> io::Result<bool> {
        match self.tap_index() {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the member's own address is still there: a socket can be bound to it.
    pub(super) fn has_address(&self) -> io::Result<bool> {
        self.netns.run(|| UdpSocket::bind((self.address, 0)).is_ok())
    }
}

impl Station {
    /// Throws away what has come so far.
    pub(super) fn drain(&self) -> anyhow::Result<()> {
        self.count(|_| false)?;
        self.raw.lost().context("asking for lost frames")?;
        Ok(())
    }

    /// Counts the frames in the receive buffer that `matches`, and empties it. It sees the first bytes of each.
    pub(super) fn count(&self, matches: impl Fn(&[u8]) -> bool) -> anyhow::Result<u32> {
        let mut frame = [0; SNAP];
        let mut count = 0;
        for _ in 0..DRAIN_MAX {
            let Some(len) = self.raw.receive(&mut frame, Duration::ZERO).context("watching a member")? else {
                break;
            };
            count += u32::from(matches(&frame[..len]));
        }
        Ok(count)
    }

    /// Counts the frames since [`drain`](Self::drain) that come from one of these MACs; a lost frame is an error.
    pub(super) fn frames_from(&self, macs: &[MacAddr]) -> anyhow::Result<u32> {
        let count =
            self.count(|frame| frame.get(6..12).is_some_and(|source| macs.iter().any(|mac| mac.0 == source)))?;
        ensure!(self.raw.lost()? == 0, "frames were lost before they could be looked at");
        Ok(count)
    }

    /// Sends echo requests to `to` until one is answered, and returns that one's round-trip time.
    /// `None`: no answer within `window`.
    pub(super) fn ping(&self, to: Ipv4Addr, window: Duration) -> anyhow::Result<Option<Duration>> {
        let id = u16::try_from(std::process::id() & 0xffff).expect("16 bits");
        let begun = Instant::now();
        let mut sequence = 0u16;
        let mut answer = [0; SNAP];
        while begun.elapsed() < window {
            sequence = sequence.wrapping_add(1);
            let sent = Instant::now();
            // Without a carrier or a neighbour the kernel may refuse; that is an echo lost, no more.
            let _ = rustix::net::sendto(
                &self.icmp,
                &echo_request(id, sequence),
                SendFlags::DONTWAIT,
                &SocketAddrV4::new(to, 0),
            );
            while let Some(left) = PING_INTERVAL.checked_sub(sent.elapsed()) {
                if !wait(&[&self.icmp], left)? {
                    break;
                }
                match rustix::net::recv(&self.icmp, &mut answer[..], RecvFlags::DONTWAIT) {
                    Ok((len, _)) if is_echo_reply(&answer[..len], to, id, sequence) => return Ok(Some(sent.elapsed())),
                    // Other ICMP, an earlier answer, or an error queued for an earlier request.
                    Ok(_) | Err(_) => {}
                }
            }
        }
        Ok(None)
    }
}

/// An ICMP echo request (RFC 792) with 16 bytes of data.
fn echo_request(id: u16, sequence: u16) -> [u8; 24] {
    let mut packet = [0; 24];
    packet[0] = 8;
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    packet[8..].copy_from_slice(b"qvs demo is here");
    let sum = packet.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded twice");
    packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// Whether an IPv4 packet is the reply to our request.
fn is_echo_reply(packet: &[u8], from: Ipv4Addr, id: u16, sequence: u16) -> bool {
    let header_len = packet.first().map_or(0, |byte| usize::from(byte & 0xf) * 4);
    let (Some(source), Some(icmp)) = (packet.get(12..16), packet.get(header_len..)) else { return false };
    source == from.octets()
        && icmp.first() == Some(&0)
        && icmp.get(4..6) == Some(&id.to_be_bytes()[..])
        && icmp.get(6..8) == Some(&sequence.to_be_bytes()[..])
}

/// Waits until one of the sockets has something; false if none has by then.
fn wait<F: rustix::fd::AsFd>(sockets: &[F], timeout: Duration) -> anyhow::Result<bool> {
    let mut fds: Vec<PollFd<'_>> = sockets.iter().map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
    let timeout = Timespec::try_from(timeout).context("a time-out of more than the clock can say")?;
    match poll(&mut fds, Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(true),
        Err(error) => Err(error).context("waiting for frames"),
    }
}

/// What a probe's frames look like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Probe {
    pub(super) destination: MacAddr,
    pub(super) source: MacAddr,
    /// An 802.1Q tag with this VLAN id.
    pub(super) vlan: Option<u16>,
}

/// Sends [`PROBE_FRAMES`] frames from `stations[sender]` and returns how many of them each station got.
///
/// Waits until those of `expected` are there, and then until nothing more has come for a while.
pub(super) fn probe(
    stations: &[Station],
    sender: usize,
    probe: Probe,
    nonce: u64,
    expected: &[u32],
) -> anyhow::Result<Vec<u32>> {
    for station in stations {
        station.drain()?;
    }
    let mark = mark(nonce);
    let frame = frame(probe, &mark);
    for _ in 0..PROBE_FRAMES {
        stations[sender].raw.send(&frame).context("sending a raw frame")?;
    }
    let mut counts = vec![0; stations.len()];
    let begun = Instant::now();
    let mut last = begun;
    while begun.elapsed() < PROBE_TIMEOUT {
        let is_complete = counts.iter().zip(expected).all(|(count, due)| count >= due);
        if is_complete && last.elapsed() >= QUIET {
            break;
        }
        let sockets: Vec<&RawSocket> = stations.iter().map(|station| &station.raw).collect();
        wait(&sockets, QUIET.saturating_sub(last.elapsed()).max(Duration::from_millis(1)))?;
        for (count, station) in counts.iter_mut().zip(stations) {
            let new = station.count(|frame| frame.windows(mark.len()).any(|window| window == mark))?;
            if new > 0 {
                *count += new;
                last = Instant::now();
            }
        }
    }
    for station in stations {
        ensure!(station.raw.lost()? == 0, "frames were lost before they could be looked at");
    }
    Ok(counts)
}

/// What marks the frames of one probe, whatever happens to their headers.
fn mark(nonce: u64) -> [u8; 16] {
    let mut mark = *b"qvs-demo________";
    mark[8..].copy_from_slice(&nonce.to_be_bytes());
    mark
}

fn frame(probe: Probe, mark: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(FRAME_SIZE);
    frame.extend(probe.destination.0);
    frame.extend(probe.source.0);
    if let Some(vlan) = probe.vlan {
        frame.extend([0x81, 0x00]);
        frame.extend(vlan.to_be_bytes());
    }
    frame.extend(EXPERIMENTAL);
    frame.extend_from_slice(mark);
    frame.resize(FRAME_SIZE, 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_request_has_a_checksum_that_sums_to_zero() {
        // RFC 1071 section 1: over the whole message, checksum included, the sum is all ones.
        for sequence in [0, 1, 0x7fff, 0xffff] {
            let packet = echo_request(0xbeef, sequence);
            let mut sum: u32 =
                packet.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            assert_eq!(sum, 0xffff, "sequence {sequence}");
        }
    }

    #[test]
    fn only_the_reply_to_our_own_request_counts() {
        let from = Ipv4Addr::new(10, 0, 0, 2);
        let mut packet = vec![0u8; 20];
        packet[0] = 0x45;
        packet[12..16].copy_from_slice(&from.octets());
        packet.extend(echo_request(7, 9));
        assert!(!is_echo_reply(&packet, from, 7, 9), "a request is no reply");
        packet[20] = 0;
        assert!(is_echo_reply(&packet, from, 7, 9));
        assert!(!is_echo_reply(&packet, from, 8, 9), "another's");
        assert!(!is_echo_reply(&packet, from, 7, 8), "an earlier one");
        assert!(!is_echo_reply(&packet, Ipv4Addr::new(10, 0, 0, 3), 7, 9), "from another");
        for len in 0..28 {
            assert!(!is_echo_reply(&packet[..len], from, 7, 9), "{len} bytes");
        }
    }

    #[test]
    fn a_tagged_frame_carries_tag_and_mark() {
        let mark = mark(1);
        let probe = Probe { destination: MacAddr::BROADCAST, source: MacAddr([2, 0, 0, 0, 0, 1]), vlan: Some(100) };
        let frame = frame(probe, &mark);
        assert_eq!(frame.len(), FRAME_SIZE);
        assert_eq!(&frame[12..18], &[0x81, 0x00, 0, 100, 0x88, 0xb5]);
        assert_eq!(&frame[18..34], &mark);
    }
}
