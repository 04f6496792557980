//! What `parse::decide` costs a frame: the common case, and what leaves the short cut.

use benches::cost::tell_clock;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pipelines::parse;
use pipelines::wire::ethernet::{self, EthernetRepr, Tag, TagKind};
use pipelines::wire::ipv4::Ipv4Repr;
use pipelines::wire::ipv6::Ipv6Repr;
use pipelines::wire::tcp::{self, TcpRepr};
use pipelines::wire::udp::{self, UdpRepr};
use std::hint::black_box;
use std::net::Ipv6Addr;
use switch::ids::MacAddr;
use switch::offload::{F_NEEDS_CSUM, GSO_TCPV4, OffloadClaim};

fn ethernet(tag: Option<Tag>, ethertype: u16) -> Vec<u8> {
    let (destination, source) = (MacAddr([2, 0, 0, 0, 0, 2]), MacAddr([2, 0, 0, 0, 0, 1]));
    let (bytes, len) = EthernetRepr { destination, source, tags: [tag, None], ethertype }.to_bytes();
    bytes[..len].to_vec()
}

fn ipv4(protocol: u8, l4: &[u8]) -> Vec<u8> {
    let ip = Ipv4Repr {
        source: [10, 0, 0, 1].into(),
        destination: [10, 0, 0, 2].into(),
        protocol,
        hop_limit: 64,
        payload_len: l4.len() as u16,
        fragment_words: 0,
        has_more_fragments: false,
    };
    [ip.to_bytes().as_slice(), l4].concat()
}

fn ipv6(next_header: u8, l4: &[u8]) -> Vec<u8> {
    let ip = Ipv6Repr {
        source: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1),
        destination: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2),
        next_header,
        hop_limit: 64,
        payload_len: l4.len() as u16,
    };
    [ip.to_bytes().as_slice(), l4].concat()
}

fn benches(criterion: &mut Criterion) {
    tell_clock();
    let udp = UdpRepr { source: 1000, destination: 2000, payload_len: 22, checksum: 0 };
    let udp = [udp.to_bytes().as_slice(), &[0; 22]].concat();
    let tcp = TcpRepr { source: 1000, destination: 2000, sequence: 1, flags: 0x10, window: 9000, checksum: 0 };
    let tcp = [tcp.to_bytes().as_slice(), &[0; 4000]].concat();
    let tag = Some(Tag { kind: TagKind::Customer, control: 5 });
    let none = OffloadClaim::default();
    let checksum = OffloadClaim { flags: F_NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..none };
    let cut = OffloadClaim { gso_type: GSO_TCPV4, gso_size: 1448, csum_offset: 16, ..checksum };
    let frames = [
        ("udp4", [ethernet(None, ethernet::TYPE_IPV4), ipv4(udp::PROTOCOL, &udp)].concat(), none),
        ("udp4_checksum", [ethernet(None, ethernet::TYPE_IPV4), ipv4(udp::PROTOCOL, &udp)].concat(), checksum),
        ("tcp4_gso", [ethernet(None, ethernet::TYPE_IPV4), ipv4(tcp::PROTOCOL, &tcp)].concat(), cut),
        ("udp4_tagged", [ethernet(tag, ethernet::TYPE_IPV4), ipv4(udp::PROTOCOL, &udp)].concat(), none),
        ("udp6", [ethernet(None, ethernet::TYPE_IPV6), ipv6(udp::PROTOCOL, &udp)].concat(), none),
        ("not_ip", [ethernet(None, 0x88b5), udp.clone()].concat(), none),
    ];
    let mut group = criterion.benchmark_group("parse");
    group.throughput(Throughput::Elements(1));
    for (name, frame, claim) in frames {
        let head = &frame[..frame.len().min(128)];
        assert!(parse::decide(head, frame.len(), &claim, 1500).is_ok(), "{name} is honest");
        group.bench_function(name, |bencher| {
            bencher.iter(|| parse::decide(black_box(head), frame.len(), black_box(&claim), 1500));
        });
    }
    group.finish();
}

criterion_group!(group, benches);
criterion_main!(group);
