//! A captured frame as one line: time, direction, addresses, protocol, length, remark.
//!
//! Short, like tcpdump's, and not a dissector: for more there is `-w -` into one. Every read is bounds-checked; a frame that
//! ends early is told up to there.

use super::pcapng::{Packet, flags};
use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Nanoseconds of a day.
const DAY_NS: u64 = 86_400_000_000_000;

/// The line, with its newline.
pub(super) fn line(packet: &Packet<'_>) -> String {
    let mut text = String::with_capacity(160);
    let in_day = packet.time_ns % DAY_NS;
    let (seconds, ns) = (in_day / 1_000_000_000, in_day % 1_000_000_000);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let direction = if packet.flags & flags::OUTBOUND != 0 { "out" } else { "in " };
    // Writing to a text cannot fail, here and below.
    let _ = write!(text, "{hours:02}:{minutes:02}:{seconds:02}.{ns:09} {direction} ");
    if ethernet(&mut text, packet.bytes).is_none() {
        text.push_str("(cut off)");
    }
    let _ = write!(text, ", length {}", packet.frame_len);
    if packet.lost > 0 {
        let _ = write!(text, " [{} lost before]", packet.lost);
    }
    if !packet.comment.is_empty() {
        // It came over a socket: what could move the cursor is not printed.
        let _ = write!(text, " [{}]", packet.comment.escape_debug());
    }
    text.push('\n');
    text
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

fn mac(bytes: &[u8], at: usize) -> Option<String> {
    let [a, b, c, d, e, f] = array(bytes, at)?;
    Some(format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"))
}

/// Tells a frame from its Ethernet header on; `None` if it ends before what is told.
fn ethernet(text: &mut String, bytes: &[u8]) -> Option<()> {
    let _ = write!(text, "{} > {}", mac(bytes, 6)?, mac(bytes, 0)?);
    let mut at = 12;
    let mut ethertype = half(bytes, at)?;
    while matches!(ethertype, 0x8100 | 0x88a8 | 0x9100) {
        let _ = write!(text, ", vlan {}", half(bytes, at + 2)? & 0x0fff);
        at += 4;
        ethertype = half(bytes, at)?;
    }
    text.push_str(", ");
    let l3 = bytes.get(at + 2..)?;
    match ethertype {
        0x0800 => ipv4(text, l3),
        0x86dd => ipv6(text, l3),
        0x0806 => arp(text, l3),
        other => write!(text, "ethertype {other:#06x}").ok(),
    }
}

fn arp(text: &mut String, bytes: &[u8]) -> Option<()> {
    let (sender, target) = (Ipv4Addr::from(array::<4>(bytes, 14)?), Ipv4Addr::from(array::<4>(bytes, 24)?));
    match half(bytes, 6)? {
        1 => write!(text, "ARP who has {target}, tell {sender}").ok(),
        2 => write!(text, "ARP {sender} is at {}", mac(bytes, 8)?).ok(),
        other => write!(text, "ARP operation {other}").ok(),
    }
}

fn ipv4(text: &mut String, bytes: &[u8]) -> Option<()> {
    let (source, destination) = (Ipv4Addr::from(array::<4>(bytes, 12)?), Ipv4Addr::from(array::<4>(bytes, 16)?));
    let ends = (source.to_string(), destination.to_string());
    let header_len = usize::from(bytes[0] & 0x0f) * 4;
    let fragment = half(bytes, 6)? & 0x1fff;
    match fragment {
        0 => l4(text, ends, bytes[9], bytes.get(header_len..)?),
        _ => write!(text, "{} > {}: fragment at {}", ends.0, ends.1, u32::from(fragment) * 8).ok(),
    }
}

fn ipv6(text: &mut String, bytes: &[u8]) -> Option<()> {
    let (source, destination) = (Ipv6Addr::from(array::<16>(bytes, 8)?), Ipv6Addr::from(array::<16>(bytes, 24)?));
    l4(text, (source.to_string(), destination.to_string()), bytes[6], bytes.get(40..)?)
}

fn l4(text: &mut String, (source, destination): (String, String), protocol: u8, bytes: &[u8]) -> Option<()> {
    if !matches!(protocol, 6 | 17 | 132) {
        let _ = write!(text, "{source} > {destination}: ");
        return match (protocol, bytes.first()) {
            (1, Some(8)) | (58, Some(128)) => write!(text, "echo request {}", half(bytes, 6)?).ok(),
            (1, Some(0)) | (58, Some(129)) => write!(text, "echo reply {}", half(bytes, 6)?).ok(),
            (1, Some(kind)) => write!(text, "ICMP type {kind}").ok(),
            (58, Some(kind)) => write!(text, "ICMPv6 type {kind}").ok(),
            _ => write!(text, "protocol {protocol}").ok(),
        };
    }
    let _ = write!(text, "{source}.{} > {destination}.{}: ", half(bytes, 0)?, half(bytes, 2)?);
    match protocol {
        17 => write!(text, "UDP {}", half(bytes, 4)?.saturating_sub(8)).ok(),
        132 => write!(text, "SCTP").ok(),
        _ => {
            let names = [(2, 'S'), (1, 'F'), (4, 'R'), (8, 'P'), (16, '.')];
            let set = *bytes.get(13)?;
            let flags: String = names.iter().filter(|(bit, _)| set & bit != 0).map(|(_, name)| *name).collect();
            let sequence = u32::from_be_bytes(array(bytes, 4)?);
            write!(text, "TCP [{flags}] seq {sequence}").ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(bytes: &[u8], flags: u32) -> String {
        let time_ns = 1_700_000_000_000_000_005;
        line(&Packet { time_ns, frame_len: 99, flags, lost: 0, comment: String::new(), bytes })
    }

    fn frame(hex: &str) -> Vec<u8> {
        crate::protocol::parse_hex(hex).unwrap()
    }

    #[test]
    fn frames_are_told_in_one_line_each() {
        let to = "02:00:00:00:00:02 02:00:00:00:00:01";
        for (hex, expected) in [
            (
                format!("{to} 0806 0001080006040001 020000000001 0a000001 000000000000 0a000002"),
                "ARP who has 10.0.0.2, tell 10.0.0.1",
            ),
            (
                format!("{to} 0806 0001080006040002 020000000001 0a000001 000000000000 0a000002"),
                "ARP 10.0.0.1 is at 02:00:00:00:00:01",
            ),
            (
                format!("{to} 8100 0005 0800 4500001c 00000000 40010000 0a000001 0a000002 0800 0000 0001 0007"),
                "vlan 5, 10.0.0.1 > 10.0.0.2: echo request 7",
            ),
            (
                format!("{to} 0800 45000028 00000000 40060000 0a000001 0a000002 03e8 07d0 00000009 00000000 5012"),
                "10.0.0.1.1000 > 10.0.0.2.2000: TCP [S.] seq 9",
            ),
            (
                format!("{to} 0800 45000028 00000003 40110000 0a000001 0a000002 03e8 07d0"),
                "10.0.0.1 > 10.0.0.2: fragment at 24",
            ),
            (
                format!(
                    "{to} 86dd 60000000 000c 11 40 {} {} 03e8 07d0 000c 0000",
                    "00".repeat(15) + "01",
                    "00".repeat(15) + "02"
                ),
                "::1.1000 > ::2.2000: UDP 4",
            ),
            (format!("{to} 88b5"), "ethertype 0x88b5"),
            (format!("{to} 0800 45"), "(cut off)"),
        ] {
            let expected =
                format!("22:13:20.000000005 in  02:00:00:00:00:01 > 02:00:00:00:00:02, {expected}, length 99\n");
            assert_eq!(shown(&frame(&hex), flags::INBOUND), expected);
        }
    }

    #[test]
    fn any_beginning_of_a_frame_is_told_without_harm() {
        let long = "02:00:00:00:00:02 02:00:00:00:00:01 8100 0005 0800 4f00001c 00000000 40060000 0a000001 0a000002";
        let whole = frame(long);
        for len in 0..=whole.len() {
            assert!(shown(&whole[..len], flags::OUTBOUND).ends_with("length 99\n"));
        }
    }

    #[test]
    fn remarks_and_losses_are_told_and_cannot_move_the_cursor() {
        let packet = Packet { time_ns: 0, frame_len: 0, flags: 0, lost: 3, comment: "a\u{1b}b".into(), bytes: &[] };
        assert_eq!(line(&packet), "00:00:00.000000000 in  (cut off), length 0 [3 lost before] [a\\u{1b}b]\n");
    }
}
