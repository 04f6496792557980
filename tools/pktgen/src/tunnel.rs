//! Outer headers: one port plays another host on the underlay, and the frames of its guests go in VXLAN (RFC 7348 section 5).
//!
//! Frames that the port sends get the headers in front, and those that it receives are looked at behind as many bytes. Sizes,
//! stations and flows are those of the inner frames; bytes are counted as they pass the port.

use crate::signature;
use serde::{Serialize, Serializer};
use std::net::Ipv4Addr;
use std::str::FromStr;
use switch::ids::MacAddr;

/// Bytes of the headers: Ethernet, IPv4, UDP, VXLAN.
pub(crate) const OUTER: usize = ETHERNET + IP + UDP + VXLAN;

const ETHERNET: usize = 14;
const IP: usize = 20;
const UDP: usize = 8;
const VXLAN: usize = 8;
/// UDP port of VXLAN (RFC 7348 section 8).
const PORT: u16 = 4789;
/// IANA protocol number.
const UDP_PROTOCOL: u8 = 17;
/// A network identifier has 24 bits.
const VNI_END: u32 = 1 << 24;

/// A host on the underlay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Host {
    mac: MacAddr,
    address: Ipv4Addr,
}

impl FromStr for Host {
    type Err = ();

    fn from_str(text: &str) -> Result<Host, ()> {
        let (mac, address) = text.split_once('/').ok_or(())?;
        Ok(Host { mac: mac.parse().map_err(drop)?, address: address.parse().map_err(drop)? })
    }
}

/// A port that plays another host, as given: `PORT=VNI,MAC/ADDRESS,MAC/ADDRESS`, itself first and the switch then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tunnel {
    /// The number of the port, from 0.
    pub(crate) port: usize,
    vni: u32,
    from: Host,
    to: Host,
}

impl FromStr for Tunnel {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Tunnel, &'static str> {
        let read = || {
            let (port, rest) = text.split_once('=')?;
            let [vni, from, to] = rest.split(',').collect::<Vec<_>>().try_into().ok()?;
            let vni = vni.parse().ok().filter(|&vni| vni < VNI_END)?;
            Some(Tunnel { port: port.parse().ok()?, vni, from: from.parse().ok()?, to: to.parse().ok()? })
        };
        read().ok_or("a tunnel is PORT=VNI,MAC/ADDRESS,MAC/ADDRESS: the port's number from 0, its own MAC and IPv4 address, the switch's")
    }
}

impl Serialize for Tunnel {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Tunnel { port, vni, from, to } = self;
        let text = format_args!("{port}={vni},{}/{},{}/{}", from.mac, from.address, to.mac, to.address);
        serializer.collect_str(&text)
    }
}

impl Tunnel {
    /// The headers of an inner frame of `len` bytes; its flow makes the source port.
    pub(crate) fn headers(&self, len: usize, flow: u32) -> [u8; OUTER] {
        let mut headers = [0; OUTER];
        let (ethernet, rest) = headers.split_at_mut(ETHERNET);
        let (ip, rest) = rest.split_at_mut(IP);
        let (udp, vxlan) = rest.split_at_mut(UDP);
        ethernet[..6].copy_from_slice(&self.to.mac.0);
        ethernet[6..12].copy_from_slice(&self.from.mac.0);
        ethernet[12..].copy_from_slice(&[0x08, 0x00]);
        let udp_len = (UDP + VXLAN + len) as u16;
        // RFC 791: version 4, 5 words, not to be cut, TTL 64.
        (ip[0], ip[6], ip[8], ip[9]) = (0x45, 0x40, 64, UDP_PROTOCOL);
        ip[2..4].copy_from_slice(&(IP as u16 + udp_len).to_be_bytes());
        ip[12..16].copy_from_slice(&self.from.address.octets());
        ip[16..20].copy_from_slice(&self.to.address.octets());
        let sum = !signature::sum(ip, false);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        // RFC 6335 section 6: dynamic ports. No checksum, as RFC 7348 wants it.
        udp[..2].copy_from_slice(&(0xc000 | (flow & 0x3fff) as u16).to_be_bytes());
        udp[2..4].copy_from_slice(&PORT.to_be_bytes());
        udp[4..6].copy_from_slice(&udp_len.to_be_bytes());
        // Only the flag that says that there is an identifier.
        vxlan[0] = 0x08;
        vxlan[4..].copy_from_slice(&(self.vni << 8).to_be_bytes());
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "1=5000,02:00:00:00:00:02/172.16.0.2,02:00:00:00:00:01/172.16.0.1";

    #[test]
    fn a_tunnel_is_read_as_it_is_told() {
        let tunnel: Tunnel = GIVEN.parse().unwrap();
        assert_eq!((tunnel.port, tunnel.vni), (1, 5000));
        assert_eq!(serde_json::to_value(tunnel).unwrap(), GIVEN);
        let wrong = ["", "1", "1=5000", "=5000,a/1.2.3.4,b/1.2.3.4", &GIVEN.replace("5000", "16777216"), &GIVEN[1..]];
        assert!(wrong.iter().all(|text| text.parse::<Tunnel>().is_err()));
    }

    #[test]
    fn another_parser_finds_every_header_where_it_belongs() {
        let tunnel: Tunnel = GIVEN.parse().unwrap();
        let mut frame = tunnel.headers(60, 0x1234).to_vec();
        frame.extend([0; 60]);
        let parsed = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(etherparse::NetSlice::Ipv4(ip)) = &parsed.net else { panic!("{parsed:?}") };
        assert_eq!(ip.header().source(), [172, 16, 0, 2]);
        assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
        let Some(etherparse::TransportSlice::Udp(udp)) = &parsed.transport else { panic!("{parsed:?}") };
        assert_eq!((udp.source_port(), udp.destination_port()), (0xd234, 4789));
        assert_eq!(usize::from(udp.length()), 8 + 8 + 60);
        assert_eq!(udp.payload()[..8], [8, 0, 0, 0, 0, 0x13, 0x88, 0]);
    }
}
