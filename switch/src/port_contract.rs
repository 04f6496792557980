//! What every [`Port`] must do, as rules that any implementation can be run through. Behind the feature `testing`.
//!
//! A [`Rig`] is a port with somebody at its far side: a socket on a TAP's interface, a driver on a guest's rings. The rules
//! only inject frames there, collect what arrives there, and call the port as a worker would. A far side may have noise of
//! its own (a kernel announces addresses), so frames of the rules carry an EtherType of theirs and others are passed over.
//!
//! Every rule gets a rig of its own and panics with the reason when the port breaks it: [`check`] runs them all.
//! What cannot be told from outside is not here: a TAP that is deleted, a guest that lies. The file is long because the
//! rules are one list that is read and run together.

use crate::batch::{BURST, Batch};
use crate::ids::{PortIndex, QueueIndex};
use crate::ledger::{DropReason, Tally};
use crate::offload::{EgressOffloads, F_NEEDS_CSUM, Gso, GsoKind, Offload, OffloadClaim, PartialChecksum};
use crate::packet::{HEAD_COPY, Headers, L3, Packet, SEGMENTS_MAX};
use crate::port::Port;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a rule waits for a frame before it calls it lost.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a rule waits for frames that must not come.
const QUIET: Duration = Duration::from_millis(50);
/// "Local experimental" EtherType (IEEE 802, RFC 9542): no stack answers it.
const ETHERTYPE: u16 = 0x88b5;
/// Bytes of the shortest frame of the rules: an Ethernet header and the sequence number, padded as on a wire.
const FRAME_MIN: usize = 60;
/// Where a frame's sequence number is.
const SEQUENCE_AT: usize = 14;
/// What the rules call the port; it must come back in the packets.
const INGRESS: PortIndex = PortIndex(7);
const QUEUE: QueueIndex = QueueIndex(0);

/// A frame as the far side got it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arrived {
    /// The whole frame, without its virtio header.
    pub bytes: Vec<u8>,
    /// The virtio header, where the far side can see it.
    pub claim: Option<OffloadClaim>,
}

/// A port with somebody at its far side.
pub trait Rig {
    /// The port, ready for frames.
    fn port(&self) -> Arc<dyn Port>;

    /// The far side sends `frame`, with nothing left to do. At most [`Rig::depth`] frames wait at a time.
    fn inject(&mut self, frame: &[u8]);

    /// The next frame that arrives at the far side within `timeout`.
    fn collect(&mut self, timeout: Duration) -> Option<Arrived>;

    /// What the far side finishes by itself.
    fn offloads(&self) -> EgressOffloads;

    /// Bytes of the longest frame that passes both ways.
    fn frame_max(&self) -> usize;

    /// Frames that can wait each way without loss; at least [`BURST`].
    fn depth(&self) -> usize;
}

/// Runs every rule, each on a rig of its own.
///
/// # Panics
/// With the name of the rule and what it saw, if the port breaks one.
pub fn check<R: Rig>(mut make: impl FnMut() -> R) {
    for (name, rule) in RULES {
        eprintln!("port contract: {name}");
        rule(&mut make());
    }
}

type Rule = fn(&mut dyn Rig);

const RULES: &[(&str, Rule)] = &[
    ("frames of every length come out once, whole and in order", frames_come_out_whole),
    ("rx takes at most the room there is and leaves the rest for later", rx_respects_room),
    ("rx stops at the byte limit", rx_respects_the_byte_limit),
    ("rx_done gives buffers back, for ever", rx_done_gives_back),
    ("rx without frames takes nothing", rx_of_nothing),
    ("frames sent arrive once, whole and in order", tx_delivers_in_order),
    ("tx sends what was picked and nothing else", tx_sends_only_picks),
    ("a tail of many pieces arrives as one frame", tx_gathers_the_tail),
    ("a frame goes from rx to tx with its tail in place", rx_to_tx_passes_tails),
    ("two workers may send at once", tx_from_two_workers),
    ("a partial checksum is completed or passed on", partial_checksums),
    ("a large frame passes whole or in segments", large_frames),
    ("an armed port wakes its worker", arming),
];

/// A frame of the rules: `len` bytes that depend on its sequence number.
fn frame(sequence: u32, len: usize) -> Vec<u8> {
    assert!(len >= FRAME_MIN, "a rule asked for a frame that no wire carries");
    let mut bytes = vec![0u8; len];
    // A locally administered sender, and a receiver that is somebody else on every host.
    bytes[..6].copy_from_slice(&[0x02, 0, 0, 0xfa, 0, 2]);
    bytes[6..12].copy_from_slice(&[0x02, 0, 0, 0xfa, 0, 1]);
    bytes[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
    bytes[SEQUENCE_AT..SEQUENCE_AT + 4].copy_from_slice(&sequence.to_be_bytes());
    for (at, byte) in bytes.iter_mut().enumerate().skip(SEQUENCE_AT + 4) {
        *byte = (at as u32).wrapping_mul(31).wrapping_add(sequence.wrapping_mul(17)) as u8;
    }
    bytes
}

fn is_ours(bytes: &[u8]) -> bool {
    bytes.len() >= FRAME_MIN && bytes[12..14] == ETHERTYPE.to_be_bytes()
}

fn sequence(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[SEQUENCE_AT..SEQUENCE_AT + 4].try_into().expect("four bytes"))
}

/// Head and tail of one packet of the batch, joined.
fn bytes_of(batch: &mut Batch<'_>, index: usize) -> Vec<u8> {
    let (packet, tail) = batch.frame(index);
    let mut bytes = packet.head().to_vec();
    for segment in tail {
        let at = bytes.len();
        bytes.resize(at + segment.len() as usize, 0);
        assert_eq!(segment.read(&mut bytes[at..]), segment.len() as usize);
    }
    assert_eq!(bytes.len(), packet.len(), "the packet's length is not that of its bytes");
    bytes
}

/// Calls rx once and checks what it says about itself; the frames of the rules among what it took.
fn rx_once<'r>(port: &'r dyn Port, batch: &mut Batch<'r>) -> Vec<Vec<u8>> {
    let (room, before) = (batch.room(), batch.len());
    let mut tally = Tally::default();
    port.rx(INGRESS, QUEUE, batch, &mut tally);
    let taken = batch.len() - before;
    assert!(taken <= room, "rx took {taken} frames where {room} had room");
    assert_eq!(tally.packets, taken as u32 + tally.dropped, "rx counted other frames than it took: {tally:?}");
    assert_eq!(tally.drops().map(|(_, count)| count).sum::<u32>(), tally.dropped, "{tally:?}");
    let all: Vec<Vec<u8>> = (before..batch.len()).map(|index| bytes_of(batch, index)).collect();
    if tally.dropped == 0 {
        assert_eq!(tally.bytes, all.iter().map(|bytes| bytes.len() as u64).sum::<u64>(), "rx counted other bytes");
    }
    for packet in &batch.packets()[before..] {
        assert_eq!((packet.ingress, packet.queue), (INGRESS, QUEUE));
        assert!(packet.head().len() >= packet.len().min(HEAD_COPY), "the head is shorter than it must be");
    }
    all.into_iter().filter(|bytes| is_ours(bytes)).collect()
}

/// Whole rounds until `count` frames of the rules came out, and one round more for those that must not come.
fn drain(port: &dyn Port, count: usize) -> Vec<Vec<u8>> {
    let deadline = Instant::now() + PATIENCE;
    let mut got = Vec::new();
    let mut storage = Batch::new();
    loop {
        let is_last = got.len() >= count;
        let mut batch = storage.recycle();
        got.extend(rx_once(port, &mut batch));
        port.rx_done(QUEUE);
        storage = batch.recycle();
        if is_last {
            return got;
        }
        assert!(Instant::now() < deadline, "only {} of {count} frames came out of rx", got.len());
    }
}

/// What arrives at the far side: `count` frames, and any that come soon after.
fn collect(rig: &mut dyn Rig, count: usize) -> Vec<Arrived> {
    let mut got = Vec::new();
    loop {
        match rig.collect(if got.len() < count { PATIENCE } else { QUIET }) {
            Some(arrived) if is_ours(&arrived.bytes) => got.push(arrived),
            Some(_) => {}
            None => return got,
        }
    }
}

/// Puts a frame into the batch, with `head_len` bytes in the head and the rest as segments of `piece` bytes.
fn load<'r>(batch: &mut Batch<'r>, bytes: &'r [u8], head_len: usize, piece: usize, offload: Offload) {
    let mut packet = batch.start(INGRESS, QUEUE).expect("the rule loads at most a burst");
    let (head, tail) = bytes.split_at(head_len.min(bytes.len()));
    packet.head(head.len()).expect("the rule's head fits").copy_from_slice(head);
    for piece in tail.chunks(piece) {
        packet.tail(piece.into()).expect("the rule's pieces are within the bound");
    }
    packet.commit(OffloadClaim::default());
    let last = batch.len() - 1;
    batch.packets_mut()[last].offload = offload;
}

/// Sends the picks and checks that each was counted once.
fn tx(port: &dyn Port, batch: &mut Batch<'_>, picks: &[u8]) -> Tally {
    let mut tally = Tally::default();
    port.tx(QUEUE, batch, picks, &mut tally);
    let frames = picks.len() as u32 + tally.cut;
    assert_eq!(tally.packets + tally.dropped, frames, "tx lost count of its frames: {tally:?}");
    assert_eq!(tally.drops().map(|(_, count)| count).sum::<u32>(), tally.dropped, "{tally:?}");
    tally
}

/// Sends the frames in bursts; nothing may be dropped.
fn send_all(port: &dyn Port, frames: &[Vec<u8>]) {
    for burst in frames.chunks(BURST) {
        let mut batch = Batch::new();
        for bytes in burst {
            load(&mut batch, bytes, HEAD_COPY, usize::MAX, Offload::default());
        }
        let picks: Vec<u8> = (0..burst.len() as u8).collect();
        let tally = tx(port, &mut batch, &picks);
        assert_eq!(tally.dropped, 0, "{:?}", tally.drops().collect::<Vec<_>>());
        assert_eq!(tally.bytes, burst.iter().map(|bytes| bytes.len() as u64).sum::<u64>());
    }
}

fn lengths(frame_max: usize) -> Vec<usize> {
    let around_head = [HEAD_COPY - 1, HEAD_COPY, HEAD_COPY + 1, HEAD_COPY + 2];
    let mut lengths = vec![FRAME_MIN, 64, 1000, 1514, 4096, 9014, frame_max - 1, frame_max];
    lengths.extend(around_head);
    lengths.retain(|&len| len <= frame_max);
    lengths
}

fn frames_come_out_whole(rig: &mut dyn Rig) {
    let frames: Vec<Vec<u8>> = (0u32..).zip(lengths(rig.frame_max())).map(|(n, len)| frame(n, len)).collect();
    for bytes in &frames {
        rig.inject(bytes);
    }
    assert_eq!(drain(&*rig.port(), frames.len()), frames);
}

fn rx_respects_room(rig: &mut dyn Rig) {
    let count = BURST;
    for n in 0..count {
        rig.inject(&frame(n as u32, 300));
    }
    let port = rig.port();
    let mut got = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    let mut storage = Batch::new();
    for limit in [0, 1, 2, 3, 5, 7].into_iter().cycle() {
        if got.len() >= count {
            break;
        }
        let mut batch = storage.recycle();
        batch.clear(limit, usize::MAX);
        got.extend(rx_once(&*port, &mut batch));
        assert!(batch.len() <= limit);
        // A second call in the same round goes on where the first stopped, and finds a full batch.
        got.extend(rx_once(&*port, &mut batch));
        assert!(batch.len() <= limit);
        port.rx_done(QUEUE);
        storage = batch.recycle();
        assert!(Instant::now() < deadline, "only {} of {count} frames came out of rx", got.len());
    }
    assert_eq!(got.iter().map(|bytes| sequence(bytes)).collect::<Vec<_>>(), (0..count as u32).collect::<Vec<_>>());
}

fn rx_respects_the_byte_limit(rig: &mut dyn Rig) {
    for n in 0..8 {
        rig.inject(&frame(n, 1000));
    }
    let port = rig.port();
    let mut got = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    let mut storage = Batch::new();
    while got.len() < 8 {
        let mut batch = storage.recycle();
        batch.clear(BURST, 2000);
        got.extend(rx_once(&*port, &mut batch));
        let bytes: usize = batch.packets().iter().map(Packet::len).sum();
        let last = batch.packets().last().map_or(0, Packet::len);
        assert!(bytes - last < 2000, "rx went on behind the byte limit: {bytes} bytes");
        port.rx_done(QUEUE);
        storage = batch.recycle();
        assert!(Instant::now() < deadline, "only {} of 8 frames came out of rx", got.len());
    }
    assert_eq!(got.len(), 8);
}

fn rx_done_gives_back(rig: &mut dyn Rig) {
    let port = rig.port();
    let len = rig.frame_max();
    // More frames, and more bytes, than any ring or buffer holds at once.
    for round in 0..200u32 {
        let frames: Vec<Vec<u8>> = (0..16).map(|n| frame(round * 16 + n, len)).collect();
        for bytes in &frames {
            rig.inject(bytes);
        }
        assert_eq!(drain(&*port, frames.len()), frames, "round {round}");
    }
}

fn rx_of_nothing(rig: &mut dyn Rig) {
    let port = rig.port();
    assert!(drain(&*port, 0).is_empty());
    port.rx_done(QUEUE);
    assert!(drain(&*port, 0).is_empty());
}

fn tx_delivers_in_order(rig: &mut dyn Rig) {
    let port = rig.port();
    let lengths = lengths(rig.frame_max());
    for round in 0..20u32 {
        let frames: Vec<Vec<u8>> =
            lengths.iter().cycle().take(BURST).zip(round * 100..).map(|(&len, n)| frame(n, len)).collect();
        send_all(&*port, &frames);
        let arrived: Vec<Vec<u8>> = collect(rig, frames.len()).into_iter().map(|arrived| arrived.bytes).collect();
        assert_eq!(arrived.len(), frames.len(), "round {round}");
        assert_eq!(arrived, frames, "round {round}");
    }
}

fn tx_sends_only_picks(rig: &mut dyn Rig) {
    let frames: Vec<Vec<u8>> = (0..8).map(|n| frame(n, 200)).collect();
    let mut batch = Batch::new();
    for bytes in &frames {
        load(&mut batch, bytes, HEAD_COPY, usize::MAX, Offload::default());
    }
    let port = rig.port();
    assert_eq!(tx(&*port, &mut batch, &[]).packets, 0);
    assert_eq!(tx(&*port, &mut batch, &[1, 4, 7]).packets, 3);
    // The same packet may be sent again: that is how a flood looks to each of its ports.
    assert_eq!(tx(&*port, &mut batch, &[4]).packets, 1);
    let arrived: Vec<u32> = collect(rig, 4).iter().map(|arrived| sequence(&arrived.bytes)).collect();
    assert_eq!(arrived, [1, 4, 7, 4]);
}

fn tx_gathers_the_tail(rig: &mut dyn Rig) {
    let frames: Vec<Vec<u8>> = (0..6).map(|n| frame(n, 1400)).collect();
    let mut batch = Batch::new();
    // All in the head as far as it goes, nothing but the Ethernet header, and pieces down to 40 bytes.
    for (bytes, (head, piece)) in
        frames.iter().zip([(600, usize::MAX), (14, 1), (60, 700), (100, 40), (128, 37), (14, 1386)])
    {
        load(&mut batch, bytes, head, piece.max(bytes.len().div_ceil(SEGMENTS_MAX)), Offload::default());
    }
    assert_eq!(tx(&*rig.port(), &mut batch, &[0, 1, 2, 3, 4, 5]).packets, 6);
    let arrived: Vec<Vec<u8>> = collect(rig, 6).into_iter().map(|arrived| arrived.bytes).collect();
    assert_eq!(arrived, frames);
}

fn rx_to_tx_passes_tails(rig: &mut dyn Rig) {
    let frames: Vec<Vec<u8>> = (0..BURST as u32).map(|n| frame(n, 1000 + n as usize)).collect();
    for bytes in &frames {
        rig.inject(bytes);
    }
    let port = rig.port();
    let deadline = Instant::now() + PATIENCE;
    let mut storage = Batch::new();
    let mut sent = 0;
    while sent < frames.len() {
        let mut batch = storage.recycle();
        rx_once(&*port, &mut batch);
        let picks: Vec<u8> =
            (0..batch.len()).filter(|&index| is_ours(&bytes_of(&mut batch, index))).map(|index| index as u8).collect();
        assert_eq!(tx(&*port, &mut batch, &picks).packets, picks.len() as u32);
        sent += picks.len();
        port.rx_done(QUEUE);
        storage = batch.recycle();
        assert!(Instant::now() < deadline, "only {sent} of {} frames went round", frames.len());
    }
    let arrived: Vec<Vec<u8>> = collect(rig, frames.len()).into_iter().map(|arrived| arrived.bytes).collect();
    assert_eq!(arrived, frames);
}

fn tx_from_two_workers(rig: &mut dyn Rig) {
    let port = rig.port();
    let each = rig.depth().min(2 * BURST) / 2;
    let send = |first: u32| {
        let port = &*port;
        move || {
            let mut sent = Vec::new();
            for n in first..first + each as u32 {
                let bytes = frame(n, 200);
                let mut batch = Batch::new();
                load(&mut batch, &bytes, HEAD_COPY, usize::MAX, Offload::default());
                let tally = tx(port, &mut batch, &[0]);
                match tally.drops().next() {
                    None => sent.push(n),
                    Some((reason, _)) => assert_eq!(reason, DropReason::TxContended),
                }
            }
            sent
        }
    };
    let (one, other) = std::thread::scope(|scope| {
        let one = scope.spawn(send(1000));
        let other = scope.spawn(send(2000));
        (one.join().expect("no panic"), other.join().expect("no panic"))
    });
    let arrived: Vec<u32> =
        collect(rig, one.len() + other.len()).iter().map(|arrived| sequence(&arrived.bytes)).collect();
    // Each worker's frames stay in order; how the two mix is open.
    let (from_one, from_other): (Vec<u32>, Vec<u32>) = arrived.iter().partition(|&&n| n < 2000);
    assert_eq!((from_one, from_other), (one, other));
}

/// Where the rules put their partial checksums: as for UDP over IPv4, for Linux refuses one before byte 20.
const PARTIAL: PartialChecksum = PartialChecksum { start: 34, offset: 6 };

/// The sum of the pseudo-header, which a sender leaves in the checksum field; here of none in particular.
const PSEUDO_SUM: [u8; 2] = [0x12, 0x34];

fn partial_checksums(rig: &mut dyn Rig) {
    let field = usize::from(PARTIAL.start + PARTIAL.offset);
    for len in [FRAME_MIN, 999, 1400] {
        let mut bytes = frame(len as u32, len);
        bytes[field..field + 2].copy_from_slice(&PSEUDO_SUM);
        let mut batch = Batch::new();
        load(&mut batch, &bytes, 50, 200, Offload { checksum: Some(PARTIAL), ..Offload::default() });
        assert_eq!(tx(&*rig.port(), &mut batch, &[0]).packets, 1);
        let arrived = collect(rig, 1);
        let [arrived] = &arrived[..] else { panic!("one frame was sent, {} arrived", arrived.len()) };
        // A stack that finishes checksums late shows the frame with or without it done.
        let covered = [&PSEUDO_SUM, &arrived.bytes[usize::from(PARTIAL.start)..]].concat();
        let is_done = sum(&covered) == 0xffff;
        if rig.offloads().checksum {
            let is_passed_on = arrived.bytes == bytes
                && arrived.claim.is_none_or(|claim| {
                    let place = (claim.csum_start, claim.csum_offset);
                    claim.flags & F_NEEDS_CSUM != 0 && place == (PARTIAL.start, PARTIAL.offset)
                });
            assert!(is_done || is_passed_on, "neither completed nor passed on: {:?}", arrived.claim);
        } else {
            assert!(is_done, "the far side takes no partial checksums and got one");
            assert!(arrived.claim.is_none_or(|claim| claim.flags & F_NEEDS_CSUM == 0));
        }
        let (before, after) = (&arrived.bytes[..field], &arrived.bytes[field + 2..]);
        assert_eq!((before, after), (&bytes[..field], &bytes[field + 2..]), "more than the checksum changed");
    }
}

/// The ones' complement sum; over bytes that contain their own right checksum it is all ones (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let mut total: u64 =
        bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0))).sum();
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// A large TCP or UDP frame with an IP header that is right, for receivers that check what they are told to cut.
fn large(kind: GsoKind, len: usize) -> (Vec<u8>, Offload) {
    const PAYLOAD: u16 = 1000;
    let mut bytes = frame(0, len);
    let is_udp = kind == GsoKind::UdpL4;
    let (protocol, l4_len, field) = if is_udp { (17, 8, 6) } else { (6, 20, 16) };
    let l4 = match kind {
        GsoKind::Tcp4 | GsoKind::UdpL4 => {
            bytes[12..14].copy_from_slice(&0x0800u16.to_be_bytes());
            bytes[14..34].fill(0);
            bytes[14] = 0x45;
            bytes[16..18].copy_from_slice(&((len - 14) as u16).to_be_bytes());
            bytes[22] = 64;
            bytes[23] = protocol;
            bytes[26..34].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
            let check = !sum(&bytes[14..34]);
            bytes[24..26].copy_from_slice(&check.to_be_bytes());
            34
        }
        GsoKind::Tcp6 => {
            bytes[12..14].copy_from_slice(&0x86ddu16.to_be_bytes());
            bytes[14..54].fill(0);
            bytes[14] = 0x60;
            bytes[18..20].copy_from_slice(&((len - 54) as u16).to_be_bytes());
            bytes[20] = protocol;
            bytes[21] = 64;
            bytes[22..26].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
            bytes[37] = 1;
            bytes[38..42].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
            bytes[53] = 2;
            54
        }
    };
    let header = &mut bytes[l4..l4 + l4_len];
    header.fill(0);
    header[..4].copy_from_slice(&[0x30, 0x39, 0x30, 0x3a]);
    if is_udp {
        header[4..6].copy_from_slice(&((len - l4) as u16).to_be_bytes());
    } else {
        header[12] = 5 << 4;
        header[13] = 0x10;
    }
    let gso = Gso { kind, size: PAYLOAD, header_len: (l4 + l4_len) as u16, ecn: false };
    let checksum = PartialChecksum { start: l4 as u16, offset: field };
    (bytes, Offload { checksum: Some(checksum), gso: Some(gso), checksum_valid: false })
}

/// What the parse stage says of [`large`].
fn headers(kind: GsoKind) -> Headers {
    let (ethertype, l3, l4_offset) = match kind {
        GsoKind::Tcp4 | GsoKind::UdpL4 => (0x0800, L3::Ipv4, 34),
        GsoKind::Tcp6 => (0x86dd, L3::Ipv6, 54),
    };
    let l4_protocol = if kind == GsoKind::UdpL4 { 17 } else { 6 };
    Headers { ethertype, l3, l3_offset: 14, l4_offset, l4_protocol, ..Headers::default() }
}

/// The far side gets the frame's payload in segments that each fit, in order and with nothing missing.
fn arrives_in_segments(rig: &mut dyn Rig, bytes: &[u8], gso: Gso, tally: &Tally) {
    let header_len = usize::from(gso.header_len);
    let payload = &bytes[header_len..];
    let count = payload.len().div_ceil(usize::from(gso.size));
    assert_eq!((tally.packets, tally.cut), (count as u32, count as u32 - 1), "{gso:?}");
    let mut got = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while got.len() < payload.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        let arrived = rig.collect(left).unwrap_or_else(|| panic!("{} bytes of {gso:?} arrived", got.len()));
        if arrived.bytes[..14] == bytes[..14] && arrived.bytes.len() > header_len {
            let segment = &arrived.bytes[header_len..];
            assert!(segment.len() <= usize::from(gso.size), "{gso:?}: a segment of {} bytes", segment.len());
            assert!(arrived.claim.is_none_or(|claim| claim.gso_type == 0), "{gso:?}: cut and told to be cut");
            got.extend_from_slice(segment);
        }
    }
    assert!(got == payload, "{gso:?}: the payload changed");
}

fn large_frames(rig: &mut dyn Rig) {
    for kind in [GsoKind::Tcp4, GsoKind::Tcp6, GsoKind::UdpL4] {
        let (bytes, offload) = large(kind, 20_000);
        let gso = offload.gso.expect("large makes it so");
        let mut batch = Batch::new();
        load(&mut batch, &bytes, HEAD_COPY, 4096, offload);
        batch.packets_mut()[0].headers = headers(kind);
        let tally = tx(&*rig.port(), &mut batch, &[0]);
        assert_eq!(tally.dropped, 0, "{kind:?}: {:?}", tally.drops().collect::<Vec<_>>());
        if !rig.offloads().takes(&gso) {
            arrives_in_segments(rig, &bytes, gso, &tally);
            continue;
        }
        assert_eq!(tally.packets, 1, "{kind:?}");
        let deadline = Instant::now() + PATIENCE;
        let arrived = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let arrived = rig.collect(left).unwrap_or_else(|| panic!("a large {kind:?} frame did not arrive"));
            if arrived.bytes.len() == bytes.len() {
                break arrived;
            }
        };
        assert_eq!(arrived.bytes[..14], bytes[..14], "{kind:?}");
        let payload = usize::from(gso.header_len);
        assert!(arrived.bytes[payload..] == bytes[payload..], "{kind:?}: the payload changed");
        if let Some(claim) = arrived.claim {
            let told = Offload { checksum: offload.checksum, gso: Some(gso), checksum_valid: false }.to_bytes();
            assert_eq!((claim.gso_type, claim.gso_size), (told[1], gso.size), "{kind:?}");
        }
    }
}

fn arming(rig: &mut dyn Rig) {
    let port = rig.port();
    drain(&*port, 0);
    // Noise may come in between; a quiet moment comes too.
    let deadline = Instant::now() + PATIENCE;
    while port.arm(QUEUE) {
        port.disarm(QUEUE);
        drain(&*port, 0);
        assert!(Instant::now() < deadline, "arm says for ever that frames are there, and rx takes none");
    }
    rig.inject(&frame(1, 100));
    if let Some(fd) = port.wake_fd(QUEUE) {
        let timeout = Timespec::try_from(PATIENCE).expect("seconds fit");
        let ready = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&timeout)).expect("poll works");
        assert_eq!(ready, 1, "a frame came and the armed port did not wake its worker");
    }
    port.disarm(QUEUE);
    let deadline = Instant::now() + PATIENCE;
    while !port.arm(QUEUE) {
        assert!(Instant::now() < deadline, "a frame is there and arm denies it");
    }
    port.disarm(QUEUE);
    assert_eq!(drain(&*port, 1), [frame(1, 100)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::VNET_HEADER_LEN;
    use crate::testing::{Limits, MemoryPort};
    use std::collections::VecDeque;

    struct MemoryRig {
        port: Arc<MemoryPort>,
        limits: Limits,
        arrived: VecDeque<Arrived>,
    }

    impl Rig for MemoryRig {
        fn port(&self) -> Arc<dyn Port> {
            self.port.clone()
        }

        fn inject(&mut self, frame: &[u8]) {
            self.port.inject(frame);
        }

        fn collect(&mut self, _timeout: Duration) -> Option<Arrived> {
            self.arrived.extend(self.port.collect().into_iter().map(|frame| {
                let header = frame.offload.to_bytes();
                let claim = header.first_chunk::<VNET_HEADER_LEN>().map(OffloadClaim::from_bytes);
                Arrived { bytes: frame.bytes, claim }
            }));
            self.arrived.pop_front()
        }

        fn offloads(&self) -> EgressOffloads {
            self.limits.offloads
        }

        fn frame_max(&self) -> usize {
            9014
        }

        fn depth(&self) -> usize {
            usize::MAX
        }
    }

    fn check_with(limits: Limits) {
        check(|| MemoryRig { port: MemoryPort::with(limits), limits, arrived: VecDeque::new() });
    }

    #[test]
    fn the_port_in_memory_keeps_the_contract_without_offloads() {
        check_with(Limits::default());
    }

    #[test]
    fn the_port_in_memory_keeps_the_contract_with_offloads_and_small_bursts() {
        let offloads = EgressOffloads { checksum: true, tso4: true, tso6: true, ecn: true, uso: false };
        check_with(Limits { offloads, burst: Some(3), ..Limits::default() });
    }
}
