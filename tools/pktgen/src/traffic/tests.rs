//! Frames as another parser reads them, and frames from marks beside those made whole.

use super::*;
use std::collections::HashSet;

pub(crate) fn shape(sizes: &[usize]) -> Shape {
    Shape {
        sizes: sizes.to_vec(),
        tags: Vec::new(),
        segment_size: None,
        tunnel: None,
        templates: Rc::new([]),
        is_verified: false,
        filler: filler(),
    }
}

pub(crate) fn bytes(frame: &Outgoing<'_>, shape: &Shape) -> Vec<u8> {
    let mut bytes: Vec<u8> = frame.head.iter().flat_map(|word| word.to_le_bytes()).collect();
    let len = frame.len as usize;
    bytes.truncate(len);
    bytes.extend(frame.rest);
    bytes.extend(&shape.filler[bytes.len()..len]);
    assert_eq!(bytes.len(), len);
    bytes
}

fn stream(shape: &Shape, stations: u32, flows: u32) -> Stream {
    Stream::new(0, 0, 1, shape, Order::round_robin(stations, stations, flows))
}

#[test]
fn every_frame_has_its_own_source_and_a_destination_of_the_other_side() {
    let shape = shape(&[60]);
    let mut stream = stream(&shape, 1000, 1000);
    let frames: Vec<_> = (0..1000).map(|_| bytes(&stream.next(), &shape)).collect();
    let sources: HashSet<_> = frames.iter().map(|frame| frame[6..12].to_vec()).collect();
    let destinations: HashSet<_> = frames.iter().map(|frame| frame[..6].to_vec()).collect();
    let flows: HashSet<_> = frames.iter().map(|frame| frame[26..38].to_vec()).collect();
    assert_eq!((sources.len(), destinations.len(), flows.len()), (1000, 1000, 1000));
    assert!(frames.iter().all(|frame| frame.len() == 60 && frame[3] == 0x10 && frame[9] == 0));
}

#[test]
fn a_frame_of_the_cycle_before_with_new_marks_is_the_frame_of_this_one() {
    let tunnel = "0=7,02:00:00:00:00:02/172.16.0.2,02:00:00:00:00:01/172.16.0.1".parse().unwrap();
    for (sizes, tunnel) in
        [(&[60][..], None), (&[60, 590, 60, 1514], None), (&[60], Some(tunnel)), (&[1398], Some(tunnel))]
    {
        let shape = Shape { tunnel, ..shape(sizes) };
        let (mut whole, mut marked) = (stream(&shape, 100, 50), stream(&shape, 100, 50));
        assert_eq!(whole.cycle(100), Some(100));
        let mut frames: Vec<_> = (0..100).map(|_| bytes(&marked.next(), &shape)).collect();
        whole.advance(100);
        // Past the end of the 32 bits that a frame tells of its number.
        (whole.number, marked.number) = (u64::from(u32::MAX) - 20, u64::from(u32::MAX) - 20);
        for burst in [1, 31, 32, 36] {
            whole.set_time(u64::MAX / burst);
            marked.set_time(u64::MAX / burst);
            let marks = marked.marks().unwrap();
            let mut bytes_whole = 0;
            for (ahead, frame) in (0..burst as u32).zip(&mut frames) {
                let marked: Vec<u8> = marks.words(ahead).iter().flat_map(|word| word.to_le_bytes()).collect();
                // Marks may end behind a short frame, in its buffer.
                let len = marked.len().min(frame.len() - marks.at);
                frame[marks.at..][..len].copy_from_slice(&marked[..len]);
                let next = whole.next();
                bytes_whole += u64::from(next.len);
                assert_eq!(*frame, bytes(&next, &shape));
            }
            assert_eq!(marked.advance(burst as usize), bytes_whole);
            frames.rotate_left(burst as usize);
        }
    }
    let no_cycle = |shape: &Shape, stations| stream(shape, stations, 1).cycle(1000).is_none();
    assert!(no_cycle(&shape(&[60]), 1001));
    assert!(no_cycle(&Shape { tunnel: Some(tunnel), ..shape(&[60, 590]) }, 10));
    assert!(no_cycle(&Shape { is_verified: true, ..shape(&[60]) }, 10));
}

#[test]
fn headers_are_right_at_every_size_tagged_or_not() {
    let tag = |protocol, control| Tag { protocol, control };
    for tags in [vec![], vec![tag(0x8100, 0x6005)], vec![tag(0x88a8, 7), tag(0x8100, 5)]] {
        let mut shape = shape(&[68, 254, 1514, 1515]);
        shape.tags = tags;
        let mut stream = stream(&shape, 70_000, 999_999);
        stream.set_time(77);
        for number in 0..300 {
            let frame = bytes(&stream.next(), &shape);
            assert_eq!(frame.len(), shape.sizes[number % 4]);
            let parsed = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
            assert_eq!(parsed.vlan_ids().len(), shape.tags.len());
            let Some(etherparse::NetSlice::Ipv4(ip)) = parsed.net else { panic!("{frame:x?}") };
            assert_eq!(ip.header().to_header().calc_header_checksum(), ip.header().header_checksum());
            let Some(etherparse::TransportSlice::Udp(udp)) = parsed.transport else { panic!("{frame:x?}") };
            assert_eq!(usize::from(udp.length()), frame.len() - shape.tags.len() * 4 - 34);
            let at = shape.signature_at().unwrap();
            let signature = Signature::from_bytes(frame[at..].first_chunk().unwrap()).unwrap();
            assert_eq!(signature, Signature { stream: 0, sequence: number as u32, time_ns: 77 });
        }
    }
}

#[test]
fn a_large_frame_asks_its_device_to_cut_and_to_sum() {
    let mut shape = shape(&[65_000]);
    shape.segment_size = Some(1448);
    let mut stream = stream(&shape, 10, 10);
    let frame = bytes(&stream.next(), &shape);
    let parsed = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
    let Some(etherparse::NetSlice::Ipv4(ip)) = parsed.net else { panic!("{frame:x?}") };
    let Some(etherparse::TransportSlice::Tcp(tcp)) = parsed.transport else { panic!("{frame:x?}") };
    assert_eq!(ip.header().to_header().calc_header_checksum(), ip.header().header_checksum());
    assert_eq!(shape.virtio_header(), [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]);
    // What the device does: the complement of the sum over header and payload, with the field as it stands.
    let summed = !signature::sum(&frame[34..], false);
    let mut header = tcp.to_header();
    header.checksum = 0;
    let right = header.calc_checksum_ipv4_raw(ip.header().source(), ip.header().destination(), tcp.payload());
    assert_eq!(summed, right.unwrap());
}

#[test]
fn payloads_of_a_verified_stream_differ_from_frame_to_frame() {
    let mut shape = shape(&[200]);
    shape.is_verified = true;
    let mut stream = stream(&shape, 1, 1);
    let payloads: HashSet<_> = (0..SHIFTS).map(|_| bytes(&stream.next(), &shape)[58..].to_vec()).collect();
    assert_eq!(payloads.len(), SHIFTS);
}
