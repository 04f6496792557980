//! Our segmentation beside the kernel's own: the same large frame goes into a veth that takes nothing unfinished, and what
//! the kernel made of it must be what we make of it, byte for byte.
//!
//! A packet socket with vnet headers puts the frame in. One socket listens at the sending end, where the kernel shows frames
//! as they leave, and one at the far end, where it takes the outermost VLAN tag out of the bytes. For tunnels the frame goes
//! into a VXLAN device over the veth (other tunnels: `vm/tunnels.rs`). Frames are chosen by chance; a failure prints its seed.

mod compared;

use compared::Compared;
use pipelines::parse;
use std::time::Duration;
use switch::af_packet::RawSocket;
use switch::batch::{Batch, Fit};
use switch::ids::{PortIndex, QueueIndex};
use switch::offload::{
    EgressOffloads, F_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, OffloadClaim, VNET_HEADER_LEN,
};
use switch::packet::{HEAD_MAX, L3, Packet, SEGMENTS_MAX};
use switch::segment::Segment;
use switch::segmentation::{Encapsulation, Segmenter, Tunnel};
use tests::chance::{Chance, for_seeds};
use tests::checksum::sum;
use tests::namespace::Namespace;

/// Long enough for a frame to cross a veth on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to look for frames that must not come.
const QUIET: Duration = Duration::from_millis(2);
/// Segments of one frame at most; a veth's backlog holds 1,000 frames.
const SEGMENTS: usize = 800;
/// Segments of one UDP frame at most, by the kernel's rule (`UDP_MAX_SEGMENTS`).
const UDP_SEGMENTS: usize = 128;
/// Bytes of payload at most: headers of any kind, outer ones too, fit a total length of 16 bits beside them.
const PAYLOAD_MAX: usize = 65_000;
/// Bytes of receive buffer: all segments of a frame, with what the kernel adds.
const RECEIVE_BUFFER: usize = 32 << 20;
/// Tags of a frame at most, and of one in a tunnel: one with two the kernel cuts before the tunnel, so that each segment would
/// get outer headers of its own.
const VLAN_MAX: usize = 2;
const VLAN_MAX_INNER: usize = 1;
/// Whom the frames are for: nobody here, so that no stack answers.
const TO: [u8; 6] = [2, 0, 0, 0xfa, 0, 2];
pub(crate) const FROM: [u8; 6] = [2, 0, 0, 0xfa, 0, 1];
/// The tunnel's far end.
pub(crate) const PEER: [u8; 6] = [2, 0, 0, 0xfa, 0, 3];

/// A frame with something left to do, and what its sender claims.
pub(crate) struct Sample {
    pub(crate) frame: Vec<u8>,
    pub(crate) claim: OffloadClaim,
    pub(crate) header_len: usize,
    vlan_count: usize,
}

/// What comes out: a frame, and where its checksum is still to be completed.
#[derive(PartialEq, Eq, Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) frame: Vec<u8>,
    pub(crate) partial: Option<(u16, u16)>,
}

fn fill(chance: &mut Chance, len: usize) -> Vec<u8> {
    (0..len).map(|_| chance.bits() as u8).collect()
}

/// Any TCP or UDP frame with at most `vlan_max` tags; with `is_large` one that must be cut.
pub(crate) fn sample(chance: &mut Chance, is_large: bool, vlan_max: usize) -> Sample {
    let (is_ipv4, is_tcp) = (chance.below(2) == 0, chance.below(3) > 0);
    let mut frame = [TO, FROM].concat();
    let vlan_count = vlan_max.min(*chance.pick(&[0, 0, 0, 1, 1, 2]));
    for at in 0..vlan_count {
        let ethertype: u16 = if vlan_count == 2 && at == 0 && chance.below(2) == 0 { 0x88a8 } else { 0x8100 };
        frame.extend(ethertype.to_be_bytes());
        frame.extend((chance.bits() as u16).to_be_bytes());
    }
    frame.extend(if is_ipv4 { 0x0800u16 } else { 0x86dd }.to_be_bytes());

    let size = match chance.below(4) {
        0 => 8 + chance.below(200),
        1 => 1448,
        _ => 200 + chance.below(1000),
    };
    let count_max = if is_tcp { SEGMENTS } else { UDP_SEGMENTS }.min(PAYLOAD_MAX / size);
    let payload_len = match chance.below(4) {
        _ if !is_large => chance.below(1400),
        0 => size + 1 + chance.below(size),
        // Whole segments and no short one.
        1 => size * (2 + chance.below(count_max - 1)),
        _ => size + 1 + chance.below(size * (count_max - 1)),
    };
    let l4 = if is_tcp { tcp(chance) } else { udp(chance, payload_len) };
    let (protocol, field) = if is_tcp { (6, 16) } else { (17, 6) };
    let addresses = fill(chance, if is_ipv4 { 8 } else { 32 });
    if is_ipv4 {
        ipv4(chance, &mut frame, protocol, &addresses, l4.len() + payload_len);
    } else {
        ipv6(chance, &mut frame, protocol, &addresses, l4.len() + payload_len);
    }
    let l4_offset = frame.len();
    frame.extend(&l4);
    let header_len = frame.len();
    // The sum of the pseudo-header, as a sender leaves it (virtio 1.2 section 5.1.6.2).
    let len = (l4.len() + payload_len) as u16;
    let pseudo = sum(&[&addresses[..], &[0, protocol], &len.to_be_bytes()].concat());
    frame[l4_offset + field..][..2].copy_from_slice(&pseudo.to_be_bytes());
    frame.extend(fill(chance, payload_len));

    let has_cwr = is_tcp && l4[13] & 0x80 != 0;
    let gso_type = match (is_tcp, is_ipv4) {
        _ if !is_large => GSO_NONE,
        (true, true) => GSO_TCPV4,
        (true, false) => GSO_TCPV6,
        (false, _) => GSO_UDP_L4,
    } | if is_large && has_cwr && chance.below(2) == 0 { GSO_ECN } else { 0 };
    let claim = OffloadClaim {
        flags: F_NEEDS_CSUM,
        gso_type,
        hdr_len: header_len as u16,
        gso_size: if is_large { size as u16 } else { 0 },
        csum_start: l4_offset as u16,
        csum_offset: field as u16,
    };
    Sample { frame, claim, header_len, vlan_count }
}

/// A header with options and flags of any kind, its checksum left out.
fn tcp(chance: &mut Chance) -> Vec<u8> {
    let options = 4 * *chance.pick(&[0, 0, 3, 3, 5, 10]);
    let mut header = fill(chance, 20 + options);
    header[12] = ((20 + options) as u8 / 4) << 4 | header[12] & 0x0f;
    if chance.below(4) == 0 {
        // Where the numbers turn over.
        header[4..8].copy_from_slice(&0xffff_fc00u32.to_be_bytes());
    }
    header
}

fn udp(chance: &mut Chance, payload_len: usize) -> Vec<u8> {
    let mut header = fill(chance, 8);
    header[4..6].copy_from_slice(&((8 + payload_len) as u16).to_be_bytes());
    header
}

fn ipv4(chance: &mut Chance, frame: &mut Vec<u8>, protocol: u8, addresses: &[u8], payload_len: usize) {
    // Options that do nothing (RFC 791 section 3.1), which every stack passes.
    let options = 4 * *chance.pick(&[0, 0, 0, 1, 10]);
    let header_len = 20 + options;
    let mut header = fill(chance, 20);
    header[0] = 0x40 | (header_len / 4) as u8;
    header[2..4].copy_from_slice(&((header_len + payload_len) as u16).to_be_bytes());
    if chance.below(4) == 0 {
        header[4..6].copy_from_slice(&[0xff, 0xf0]);
    }
    let flags = *chance.pick(&[0x00, 0x40]);
    header[6..8].copy_from_slice(&[flags, 0]);
    header[8] |= 1;
    header[9] = protocol;
    header[10..12].fill(0);
    header[12..].copy_from_slice(addresses);
    header.resize(header_len, 1);
    let checksum = !sum(&header);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(header);
}

fn ipv6(chance: &mut Chance, frame: &mut Vec<u8>, protocol: u8, addresses: &[u8], payload_len: usize) {
    /// Hop-by-hop and destination options (RFC 8200 sections 4.3 and 4.6).
    const EXTENSIONS: [&[u8]; 4] = [&[], &[], &[60], &[0, 60]];
    let extensions = *chance.pick(&EXTENSIONS);
    let mut chain = Vec::new();
    for at in 0..extensions.len() {
        let next = *extensions.get(at + 1).unwrap_or(&protocol);
        let units = chance.below(3);
        // Filled up by one PadN option (RFC 8200 section 4.2).
        let mut extension = vec![0; 8 * (units + 1)];
        extension[..4].copy_from_slice(&[next, units as u8, 1, (8 * (units + 1) - 4) as u8]);
        chain.extend(extension);
    }
    let mut header = fill(chance, 8);
    header[0] = 0x60 | header[0] & 0x0f;
    header[4..6].copy_from_slice(&((chain.len() + payload_len) as u16).to_be_bytes());
    header[6] = *extensions.first().unwrap_or(&protocol);
    header[7] |= 1;
    frame.extend(header);
    frame.extend(addresses);
    frame.extend(chain);
}

/// What we make of it for an egress that finishes `egress`; `outer` headers stand before the frame of the sample.
fn ours(
    chance: &mut Chance,
    sample: &Sample,
    egress: EgressOffloads,
    outer: Option<(&[u8], Encapsulation)>,
) -> Vec<Piece> {
    let parsed = parse::decide(&sample.frame, sample.frame.len(), &sample.claim, 65_535).expect("an honest frame");
    let frame = &sample.frame;
    let mut batch = Batch::new();
    let mut packet = batch.start(PortIndex(0), QueueIndex(0)).expect("an empty batch has room");
    // The head ends anywhere, but a tunnel's headers are in it; and it is as long as can be before those come.
    let most = frame.len().min(HEAD_MAX);
    let least = if outer.is_some() { sample.header_len } else { usize::from(sample.claim.csum_start) + 20 };
    let head_len = least.min(most) + chance.below(most - least.min(most) + 1);
    packet.head(head_len).expect("bounded").copy_from_slice(&frame[..head_len]);
    let mut rest = &frame[head_len..];
    for left in (1..=SEGMENTS_MAX).rev() {
        let len = if left == 1 { rest.len() } else { chance.below(1 + 2 * rest.len() / left).min(rest.len()) };
        packet.tail(Segment::from(&rest[..len])).expect("at most SEGMENTS_MAX");
        rest = &rest[len..];
    }
    packet.commit(sample.claim);
    let packet = &mut batch.packets_mut()[0];
    (packet.headers, packet.offload) = (parsed.headers, parsed.offload);
    if let Some((bytes, outer)) = outer {
        let front = packet.extend_front(bytes.len()).expect("outer headers fit the headroom");
        front[..bytes.len()].copy_from_slice(bytes);
        let (packet, tail) = batch.frame(0);
        return pieces(Segmenter::new(packet, tail, egress, Some(outer)));
    }
    match batch.fit(0, egress) {
        Fit::AsIs => {
            let (packet, tail) = batch.frame(0);
            vec![piece(packet, tail)]
        }
        Fit::Cut => pieces(batch.cut(0, egress)),
        Fit::Drop(reason) => panic!("dropped as {}", reason.name()),
    }
}

fn pieces(mut cut: Segmenter<'_, '_>) -> Vec<Piece> {
    let count = cut.count();
    let mut pieces = Vec::new();
    while let Some((packet, tail)) = cut.next_segment() {
        pieces.push(piece(packet, tail));
    }
    assert_eq!((pieces.len(), cut.remaining()), (count as usize, 0));
    pieces
}

fn piece(packet: &Packet, tail: &[Segment<'_>]) -> Piece {
    assert!(packet.offload.gso.is_none(), "a segment is not to be cut");
    let mut frame = packet.head().to_vec();
    for segment in tail {
        let at = frame.len();
        frame.resize(at + segment.len() as usize, 0);
        segment.read(&mut frame[at..]);
    }
    assert_eq!(frame.len(), packet.len());
    Piece { frame, partial: packet.offload.checksum.map(|partial| (partial.start, partial.offset)) }
}

/// A veth in a namespace of its own, and sockets at its ends.
struct Wire {
    namespace: Namespace,
    near: RawSocket,
    far: RawSocket,
}

/// What a device can leave undone of TCP and UDP, as ethtool calls it.
const SEGMENTATION: &str =
    "tso off gso off tx-udp-segmentation off tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off";

impl Wire {
    /// The sending end completes checksums if `completes`, and never cuts.
    fn new(name: &str, completes: bool) -> Wire {
        let namespace = Namespace::new(name);
        namespace.must("ip link add v0 type veth peer name v1");
        namespace.must("ip link set v0 up mtu 9000 && ip link set v1 up mtu 9000");
        namespace.must(&format!("ethtool -K v0 tx {} {SEGMENTATION}", if completes { "on" } else { "off" }));
        let [near, far] = namespace.inside(|| ["v0", "v1"].map(open));
        Wire { namespace, near, far }
    }

    fn socket(&self, interface: &str) -> RawSocket {
        self.namespace.inside(|| RawSocket::open(interface)).expect("the interface is there")
    }

    /// The kernel's segments of a sample that goes into `entry`: at the near end, whole, and at the far end.
    fn kernels(&self, entry: &RawSocket, sample: &Sample, count: usize) -> [Vec<Piece>; 2] {
        let OffloadClaim { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset } = sample.claim;
        let mut header = vec![flags, gso_type];
        header.extend([hdr_len, gso_size, csum_start, csum_offset].iter().flat_map(|word| word.to_le_bytes()));
        if let Err(error) = entry.send(&[&header[..], &sample.frame].concat()) {
            let head = &sample.frame[..sample.header_len];
            panic!(
                "the kernel does not take a frame of {} bytes: {error}, {:?} {head:02x?}",
                sample.frame.len(),
                sample.claim
            );
        }
        [&self.near, &self.far].map(|socket| receive(socket, count))
    }
}

/// A socket for all segments of a frame, with their vnet headers.
fn open(interface: &str) -> RawSocket {
    let socket = RawSocket::open(interface).expect("CAP_NET_RAW");
    socket.use_vnet_header().expect("any kernel of this century");
    socket.set_receive_buffer(RECEIVE_BUFFER).expect("CAP_NET_ADMIN");
    socket
}

/// `count` frames of ours, and any that come soon after.
fn receive(socket: &RawSocket, count: usize) -> Vec<Piece> {
    let mut buffer = vec![0; VNET_HEADER_LEN + (1 << 16)];
    let mut pieces = Vec::new();
    while let Some(len) =
        socket.receive(&mut buffer, if pieces.len() < count { PATIENCE } else { QUIET }).expect("the interface stays")
    {
        let (header, frame) = buffer[..len].split_first_chunk::<VNET_HEADER_LEN>().expect("a header stands before it");
        let claim = OffloadClaim::from_bytes(header);
        if frame[..6] == TO || frame[..6] == PEER {
            assert_eq!(claim.gso_type, GSO_NONE, "the kernel left the frame whole");
            let is_partial = claim.flags & F_NEEDS_CSUM != 0;
            pieces.push(Piece {
                frame: frame.to_vec(),
                partial: is_partial.then_some((claim.csum_start, claim.csum_offset)),
            });
        }
    }
    assert_eq!(socket.lost().expect("a packet socket"), 0, "the test's own buffer is too small");
    pieces
}

/// The same with the outermost VLAN tag taken out, as a receiving kernel does.
fn untagged(piece: &Piece) -> Piece {
    let frame = [&piece.frame[..12], &piece.frame[16..]].concat();
    Piece { frame, partial: piece.partial.map(|(start, offset)| (start - 4, offset)) }
}

/// Fails at the first difference, in words that a person can use.
pub(crate) fn compare(what: &str, sample: &Sample, ours: &[Piece], kernels: &[Piece]) {
    let claim = &sample.claim;
    for (at, (ours, kernels)) in ours.iter().zip(kernels).enumerate() {
        if ours != kernels {
            let from = ours.frame.iter().zip(&kernels.frame).position(|(one, other)| one != other);
            let head = |piece: &Piece| piece.frame[..piece.frame.len().min(sample.header_len + 60)].to_vec();
            panic!(
                "{what}, segment {at}: first other byte {from:?}, lengths {} and {}, checksums {:?} and {:?}, {claim:?}\n\
                 ours    {:02x?}\nkernel's {:02x?}",
                ours.frame.len(),
                kernels.frame.len(),
                ours.partial,
                kernels.partial,
                head(ours),
                head(kernels),
            );
        }
    }
    assert_eq!(ours.len(), kernels.len(), "{what}: the number of segments, {claim:?}");
}

/// One sample through a veth and through our segmentation.
fn compare_plain(
    wire: &Wire,
    entry: &RawSocket,
    chance: &mut Chance,
    is_large: bool,
    egress: EgressOffloads,
    compared: &mut Compared,
) {
    let sample = sample(chance, is_large, VLAN_MAX);
    compared.add(&sample);
    let ours = ours(chance, &sample, egress, None);
    let [near, far] = wire.kernels(entry, &sample, ours.len());
    compare("as it leaves", &sample, &ours, &near);
    let arriving: Vec<Piece> = if sample.vlan_count > 0 { ours.iter().map(untagged).collect() } else { ours };
    compare("as it arrives", &sample, &arriving, &far);
}

mod soaked {
    use super::*;

    #[test]
    fn large_frames_become_the_kernels_segments() {
        let wire = Wire::new("seg-plain", false);
        let entry = wire.socket("v0");
        entry.use_vnet_header().expect("a kernel with vnet headers");
        let mut compared = Compared::default();
        for_seeds(400, |mut chance| {
            compare_plain(&wire, &entry, &mut chance, true, EgressOffloads::default(), &mut compared);
        });
        compared.assert_all(true, VLAN_MAX);
    }

    #[test]
    fn segments_keep_partial_checksums_for_an_egress_that_completes_them() {
        let wire = Wire::new("seg-partial", true);
        let entry = wire.socket("v0");
        entry.use_vnet_header().expect("a kernel with vnet headers");
        let egress = EgressOffloads { checksum: true, ..EgressOffloads::default() };
        let mut compared = Compared::default();
        for_seeds(200, |mut chance| compare_plain(&wire, &entry, &mut chance, true, egress, &mut compared));
        compared.assert_all(true, VLAN_MAX);
    }

    #[test]
    fn small_frames_get_the_kernels_checksums() {
        let wire = Wire::new("seg-small", false);
        let entry = wire.socket("v0");
        entry.use_vnet_header().expect("a kernel with vnet headers");
        let mut compared = Compared::default();
        for_seeds(400, |mut chance| {
            compare_plain(&wire, &entry, &mut chance, false, EgressOffloads::default(), &mut compared);
        });
        compared.assert_all(false, VLAN_MAX);
    }

    #[test]
    fn large_frames_in_a_tunnel_become_the_kernels_segments() {
        let wire = Wire::new("seg-tunnel", false);
        wire.namespace.must("echo 0 > /proc/sys/net/ipv6/conf/v0/disable_ipv6");
        wire.namespace.must("ip addr add 10.0.0.1/24 dev v0 && ip addr add 2001:db8::1/64 dev v0 nodad");
        for peer in ["10.0.0.2", "2001:db8::2"] {
            wire.namespace.must(&format!("ip neigh add {peer} lladdr 02:00:00:fa:00:03 dev v0 nud permanent"));
        }
        let v4 = "local 10.0.0.1 remote 10.0.0.2";
        let v6 = "local 2001:db8::1 remote 2001:db8::2";
        let kinds = [
            (L3::Ipv4, format!("{v4} noudpcsum")),
            (L3::Ipv4, format!("{v4} udpcsum")),
            (L3::Ipv6, format!("{v6} udp6zerocsumtx")),
            (L3::Ipv6, format!("{v6} noudp6zerocsumtx")),
        ];
        let tunnels: Vec<(L3, RawSocket)> = (0u32..)
            .zip(&kinds)
            .map(|(number, (l3, options))| {
                wire.namespace.must(&format!(
                    "ip link add t{number} type vxlan id {} dstport {} dev v0 {options}",
                    number + 7,
                    4789 + number
                ));
                wire.namespace.must(&format!("ip link set t{number} up"));
                let entry = wire.socket(&format!("t{number}"));
                entry.use_vnet_header().expect("a kernel with vnet headers");
                (*l3, entry)
            })
            .collect();
        let mut compared = Compared::default();
        for_seeds(200, |mut chance| {
            let (l3, entry) = chance.pick(&tunnels);
            compare_tunnelled(&wire, entry, *l3, &mut chance, &mut compared);
        });
        compared.assert_all(true, VLAN_MAX_INNER);
    }
}

/// One sample through a VXLAN device over the veth, and through our segmentation behind the same outer headers.
fn compare_tunnelled(wire: &Wire, entry: &RawSocket, l3: L3, chance: &mut Chance, compared: &mut Compared) {
    let is_large = chance.below(8) > 0;
    let sample = sample(chance, is_large, VLAN_MAX_INNER);
    compared.add(&sample);
    let [near, far] = wire.kernels(entry, &sample, count_of(&sample));
    assert_eq!(near, far, "no outer tag was there to take out");
    compare("in a tunnel", &sample, &in_tunnel(chance, &sample, &far[0].frame, l3, Tunnel::Udp, 8 + 8), &far);
}

/// Segments that a sample becomes.
pub(crate) fn count_of(sample: &Sample) -> usize {
    let payload_len = sample.frame.len() - sample.header_len;
    if sample.claim.gso_size > 0 { payload_len.div_ceil(usize::from(sample.claim.gso_size)) } else { 1 }
}

/// What we make of a sample in a tunnel whose header has `tunnel_len` bytes, and of which the kernel's `first` segment is known.
pub(crate) fn in_tunnel(
    chance: &mut Chance,
    sample: &Sample,
    first: &[u8],
    l3: L3,
    tunnel: Tunnel,
    tunnel_len: usize,
) -> Vec<Piece> {
    // What an encapsulating stage would have put before the frame: as the kernel, but for what depends on a segment.
    let tunnel_offset = 14 + if l3 == L3::Ipv4 { 20 } else { 40 };
    let mut outer = first[..tunnel_offset + tunnel_len].to_vec();
    let mut forget = |at: usize| outer[at..at + 2].copy_from_slice(&[0xde, 0xad]);
    if l3 == L3::Ipv4 {
        forget(14 + 2);
        forget(14 + 10);
    } else {
        forget(14 + 4);
    }
    match tunnel {
        Tunnel::Udp => {
            forget(tunnel_offset + 4);
            if first[tunnel_offset + 6..][..2] != [0, 0] {
                forget(tunnel_offset + 6);
            }
        }
        // The C bit (RFC 2784 section 2.1).
        Tunnel::Gre if first[tunnel_offset] & 0x80 != 0 => forget(tunnel_offset + 4),
        Tunnel::Gre => {}
    }
    let encapsulation = Encapsulation { l3, l3_offset: 14, tunnel, tunnel_offset: tunnel_offset as u16 };
    ours(chance, sample, EgressOffloads::default(), Some((&outer, encapsulation)))
}
