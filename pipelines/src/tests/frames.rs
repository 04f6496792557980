//! Frames for tests: a builder that writes honest ones, and strategies that spoil them.

use crate::wire::arp::{self, ArpRepr};
use crate::wire::ethernet::{self, EthernetRepr, Tag, TagKind};
use crate::wire::icmp::{self, IcmpRepr};
use crate::wire::ipv4::Ipv4Repr;
use crate::wire::ipv6::Ipv6Repr;
use crate::wire::tcp::{self, TcpRepr};
use crate::wire::udp::{self, UdpRepr};
use proptest::prelude::*;
use switch::ids::MacAddr;
use switch::offload::OffloadClaim;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Inside {
    Ipv4(u8),
    Ipv6(u8),
    Arp,
}

/// An honest frame in the making, from 02:…:01 to 02:…:02.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    source: MacAddr,
    destination: MacAddr,
    tags: Vec<u16>,
    inside: Inside,
    payload: usize,
    fragment: (u16, bool),
    ports: (u16, u16),
    tcp_flags: u8,
}

impl Frame {
    fn new(inside: Inside) -> Frame {
        Frame {
            source: super::rig::mac(1),
            destination: super::rig::mac(2),
            tags: Vec::new(),
            inside,
            payload: 18,
            fragment: (0, false),
            ports: (1000, 2000),
            tcp_flags: 0x10,
        }
    }

    pub(crate) fn udp4() -> Frame {
        Frame::new(Inside::Ipv4(udp::PROTOCOL))
    }

    pub(crate) fn tcp4() -> Frame {
        Frame::new(Inside::Ipv4(tcp::PROTOCOL))
    }

    pub(crate) fn icmp4() -> Frame {
        Frame::new(Inside::Ipv4(icmp::PROTOCOL))
    }

    pub(crate) fn udp6() -> Frame {
        Frame::new(Inside::Ipv6(udp::PROTOCOL))
    }

    pub(crate) fn tcp6() -> Frame {
        Frame::new(Inside::Ipv6(tcp::PROTOCOL))
    }

    pub(crate) fn icmp6() -> Frame {
        Frame::new(Inside::Ipv6(icmp::PROTOCOL_V6))
    }

    pub(crate) fn arp() -> Frame {
        Frame::new(Inside::Arp)
    }

    pub(crate) fn from(self, source: MacAddr) -> Frame {
        Frame { source, ..self }
    }

    pub(crate) fn to(self, destination: MacAddr) -> Frame {
        Frame { destination, ..self }
    }

    pub(crate) fn vlan(mut self, control: u16) -> Frame {
        self.tags.push(control);
        self
    }

    pub(crate) fn payload(self, payload: usize) -> Frame {
        Frame { payload, ..self }
    }

    pub(crate) fn fragment(self, words: u16, has_more: bool) -> Frame {
        Frame { fragment: (words, has_more), ..self }
    }

    pub(crate) fn tcp_flags(self, tcp_flags: u8) -> Frame {
        Frame { tcp_flags, ..self }
    }

    /// The frame's bytes, unpadded; the payload is 0, 1, 2 and so on.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let payload: Vec<u8> = (0..self.payload).map(|index| index as u8).collect();
        let (ethertype, packet) = match self.inside {
            Inside::Arp => (ethernet::TYPE_ARP, self.arp_bytes().to_vec()),
            Inside::Ipv4(protocol) => {
                let l4 = [self.l4(protocol), payload].concat();
                let ip = Ipv4Repr {
                    source: [10, 0, 0, 1].into(),
                    destination: [10, 0, 0, 2].into(),
                    protocol,
                    hop_limit: 64,
                    payload_len: l4.len() as u16,
                    fragment_words: self.fragment.0,
                    has_more_fragments: self.fragment.1,
                };
                (ethernet::TYPE_IPV4, [ip.to_bytes().as_slice(), &l4].concat())
            }
            Inside::Ipv6(protocol) => {
                let l4 = [self.l4(protocol), payload].concat();
                let ip = Ipv6Repr {
                    source: "fd00::1".parse().unwrap(),
                    destination: "fd00::2".parse().unwrap(),
                    next_header: protocol,
                    hop_limit: 64,
                    payload_len: l4.len() as u16,
                };
                (ethernet::TYPE_IPV6, [ip.to_bytes().as_slice(), &l4].concat())
            }
        };
        let outer = if self.tags.len() > 1 { TagKind::Service } else { TagKind::Customer };
        let tag = |index: usize| {
            let kind = if index == 0 { outer } else { TagKind::Customer };
            self.tags.get(index).map(|&control| Tag { kind, control })
        };
        let ethernet =
            EthernetRepr { destination: self.destination, source: self.source, tags: [tag(0), tag(1)], ethertype };
        let (header, len) = ethernet.to_bytes();
        [&header[..len], &packet].concat()
    }

    fn l4(&self, protocol: u8) -> Vec<u8> {
        let (source, destination) = self.ports;
        match protocol {
            tcp::PROTOCOL => {
                let flags = self.tcp_flags;
                TcpRepr { source, destination, sequence: 1, flags, window: 9000, checksum: 0 }.to_bytes().to_vec()
            }
            udp::PROTOCOL => {
                UdpRepr { source, destination, payload_len: self.payload as u16, checksum: 0 }.to_bytes().to_vec()
            }
            icmp::PROTOCOL_V6 => IcmpRepr { kind: 128, code: 0, checksum: 0 }.to_bytes().to_vec(),
            _ => IcmpRepr { kind: 8, code: 0, checksum: 0 }.to_bytes().to_vec(),
        }
    }

    fn arp_bytes(&self) -> [u8; arp::LEN] {
        ArpRepr {
            operation: arp::REQUEST,
            sender_mac: self.source,
            sender_ip: [10, 0, 0, 1].into(),
            target_mac: MacAddr::default(),
            target_ip: [10, 0, 0, 2].into(),
        }
        .to_bytes()
    }
}

/// An untagged IPv6 frame with a Destination Options header of `len` bytes put in behind its IPv6 header, filled up by PadN
/// options (RFC 8200 sections 4.2 and 4.6). `len` is a multiple of 8, and at least that.
pub(crate) fn with_options(frame: &[u8], len: usize) -> Vec<u8> {
    const NEXT_HEADER: usize = 14 + 6;
    const UPPER: usize = 14 + 40;
    let mut options = vec![frame[NEXT_HEADER], (len / 8 - 1) as u8];
    while options.len() < len {
        let left = len - options.len();
        // One byte left is Pad1's.
        let pad = if left == 1 { vec![0] } else { vec![1, (left - 2).min(255) as u8] };
        let end = options.len() + left.min(257);
        options.extend(pad);
        options.resize(end, 0);
    }
    let mut frame = [&frame[..UPPER], &options, &frame[UPPER..]].concat();
    frame[NEXT_HEADER] = 60;
    let payload_len = (frame.len() - UPPER) as u16;
    frame[18..20].copy_from_slice(&payload_len.to_be_bytes());
    frame
}

/// A few MACs, so that they meet again, and the odd group address.
pub(crate) fn any_mac() -> impl Strategy<Value = MacAddr> {
    prop_oneof![
        20 => (0..8u8).prop_map(super::rig::mac),
        1 => Just(MacAddr::BROADCAST),
        1 => Just(MacAddr([1, 0, 0x5e, 0, 0, 5])),
        1 => Just(MacAddr([1, 0x80, 0xc2, 0, 0, 0xe])),
        1 => Just(MacAddr::default()),
    ]
}

prop_compose! {
    /// A frame that is honest.
    pub(crate) fn honest_frame()(
        source in any_mac(),
        destination in any_mac(),
        tags in proptest::collection::vec(any::<u16>(), 0..=2),
        inside in prop_oneof![
            any::<u8>().prop_map(Inside::Ipv4),
            prop_oneof![Just(6u8), Just(17), Just(1)].prop_map(Inside::Ipv4),
            prop_oneof![Just(6u8), Just(17), Just(58)].prop_map(Inside::Ipv6),
            Just(Inside::Arp),
        ],
        payload in prop_oneof![8 => 0..100usize, 1 => 1380..1520usize, 1 => 3000..9000usize],
        fragment in prop_oneof![6 => Just((0, false)), 1 => (0..9u16, any::<bool>())],
        ports: (u16, u16),
    ) -> Frame {
        Frame { source, destination, tags, inside, payload, fragment, ports, tcp_flags: 0x10 }
    }
}

/// The bytes of an honest frame, often with some of them changed, cut off or replaced by noise.
pub(crate) fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let spoil = proptest::collection::vec((0..80usize, any::<u8>()), 0..4);
    (honest_frame(), spoil, prop_oneof![3 => Just(usize::MAX), 1 => 0..100usize], any::<bool>()).prop_map(
        |(frame, spoil, cut, is_spoilt)| {
            let mut bytes = frame.bytes();
            if is_spoilt {
                bytes.truncate(cut);
                for (at, value) in spoil {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = value;
                    }
                }
            }
            bytes
        },
    )
}

/// A claim: often none, sometimes fitting, sometimes noise.
pub(crate) fn any_claim() -> impl Strategy<Value = OffloadClaim> {
    let fitting = (0..3u8, prop_oneof![Just(0u8), Just(1), Just(4), Just(5), Just(0x81)], 0..2000u16).prop_flat_map(
        |(flags, gso_type, gso_size)| {
            let starts = prop_oneof![Just(34u16), Just(38), Just(42), Just(54), Just(58)];
            let offsets = prop_oneof![Just(16u16), Just(6)];
            (starts, offsets).prop_map(move |(csum_start, csum_offset)| OffloadClaim {
                flags,
                gso_type,
                hdr_len: 0,
                gso_size,
                csum_start,
                csum_offset,
            })
        },
    );
    let noise = any::<[u8; 10]>().prop_map(|bytes| OffloadClaim::from_bytes(&bytes));
    prop_oneof![2 => Just(OffloadClaim::default()), 3 => fitting, 1 => noise]
}
