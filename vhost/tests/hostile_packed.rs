//! A guest that breaks every rule of packed rings: its frame is lost, with a reason, or that ring stands still, and nothing
//! else. Beside each of them a healthy guest goes on.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{INGRESS, Pair, QUEUE, drops};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use switch::batch::Batch;
use switch::ledger::{DropReason, Tally};
use switch::port::{Device, Link};
use vhost::chain::{CHAIN_MAX, Descriptor, INDIRECT, NEXT, WRITE};
use vhost::driver::packed::{AVAIL, PackedDescriptor, Position, USED};
use vhost::driver::{GUEST_BASE, Receiver, Ring, USER_BASE, Used};
use vhost::message::protocol;
use vhost::net::{F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_MQ, F_RING_PACKED};

const BAD: [(DropReason, u32); 1] = [(DropReason::BadDescriptor, 1)];
/// Entries of a ring, where a case does not want fewer.
const SIZE: u16 = 256;

/// The hostile guest, which has two pairs of rings, and a healthy one.
struct Scene {
    pair: Pair,
    healthy: Pair,
    number: u32,
}

impl Scene {
    fn new(features: u64, queue_size: u16) -> Scene {
        let pair = Pair::running(|config| {
            config.features |= F_RING_PACKED | F_INDIRECT_DESC | F_MQ | features;
            config.protocol |= protocol::INFLIGHT_SHMFD;
            (config.pairs, config.queue_size) = (2, queue_size);
        });
        Scene { pair, healthy: Pair::running(|config| config.features |= F_RING_PACKED), number: 0 }
    }

    fn send(&mut self) -> &mut Ring {
        &mut self.pair.driver.sender.ring
    }

    fn receive(&mut self) -> &mut Ring {
        &mut self.pair.driver.receiver.ring
    }

    /// The other guest, and the hostile one's own second pair, are served as if nothing were.
    fn others_go_on(&mut self) {
        self.number += 1;
        // A flow of its own, or the first pair's would come by the second from then on.
        let sent = common::frame(self.number, 60);
        assert_eq!(self.healthy.driver.sender.send_burst(&[&sent]), 1);
        assert_eq!(self.healthy.place.round().0[0].0, sent);
        assert_eq!(self.healthy.place.send(&[&sent]).packets, 1);
        assert!(self.healthy.received().iter().eq([&sent]));
        assert_eq!(self.healthy.backend.state().reason, "");

        let (other, queue) = (&mut self.pair.driver.others[0], switch::ids::QueueIndex(1));
        assert_eq!(other.0.send_burst(&[&sent]), 1);
        assert_eq!(self.pair.place.round_of(queue).0[0].0, sent);
        assert_eq!(self.pair.place.send_by(queue, &[&sent]).packets, 1);
        assert_eq!(received(&mut other.1), [sent]);
    }

    /// A good frame by the first send ring, posted raw.
    fn sends_on(&mut self) {
        let good = frame(9, 60);
        let memory = self.pair.driver.memory().clone();
        let ring = self.send();
        memory.write(ring.buffer_at(7), &[0; 12]);
        memory.write(ring.buffer_at(7) + 12, &good);
        let address = ring.buffer_address(7);
        ring.post_chain(7, &[Descriptor { address, len: 72, flags: 0, next: 0 }]);
        assert_eq!(self.pair.place.round().0[0].0, good, "the ring goes on");
        assert_eq!(back(self.send()), [(7, 0)]);
        assert_eq!(self.pair.backend.state().link, Link::Up);
    }
}

fn received(receiver: &mut Receiver) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    receiver.recv_burst(usize::MAX, |_, frame| frames.push(frame.to_vec()));
    frames
}

/// A frame of a flow that comes by the first of two pairs if the guest never sent it.
fn frame(number: u32, len: usize) -> Vec<u8> {
    let mut bytes = common::frame(number, len);
    bytes[11] = 4;
    bytes
}

/// The buffers that came back: their ids and the bytes that were written.
fn back(ring: &mut Ring) -> Vec<(u16, u32)> {
    let mut used = [Used::default(); 64];
    let count = ring.take_used(&mut used);
    used[..count].iter().map(|used| (used.slot, used.len)).collect()
}

/// An entry of an indirect table of a packed ring.
fn entry(address: u64, len: u32, flags: u16) -> PackedDescriptor {
    PackedDescriptor { address, len, id: 0, flags }
}

/// What the guest sends in a chain, or in a table at its buffer 50, and what becomes of it.
struct Sent<'a> {
    what: &'a str,
    chain: Vec<Descriptor>,
    table: Vec<PackedDescriptor>,
    fate: &'a [(DropReason, u32)],
}

/// Each is taken, counted and given back under its id; the ring goes on, and so do all others.
fn check_sent(cases: &[Sent<'_>]) {
    for features in [0, F_IN_ORDER] {
        let mut scene = Scene::new(features, SIZE);
        for Sent { what, chain, table, fate } in cases {
            let (memory, at) = (scene.pair.driver.memory().clone(), scene.send().buffer_at(50));
            let bytes: Vec<u8> = table
                .iter()
                .flat_map(|entry| {
                    let (low, high) = entry.to_words();
                    [low.to_ne_bytes(), high.to_ne_bytes()].concat()
                })
                .collect();
            memory.write(at, &bytes);
            scene.send().post_chain(5, chain);
            let (frames, tally) = scene.pair.place.round();
            assert_eq!(drops(&tally), *fate, "{what}");
            assert_eq!((frames.len(), tally.packets), (1 - fate.len(), 1), "{what}");
            assert_eq!(back(scene.send()), [(5, 0)], "{what}: it was given back");
            scene.sends_on();
            scene.others_go_on();
        }
    }
}

/// Where the cases' buffers lie: two kilobytes from buffer 60 of the send ring on.
fn scratch() -> (u64, u64, u64) {
    let scene = Scene::new(0, SIZE);
    let ring = &scene.pair.driver.sender.ring;
    let end = GUEST_BASE + scene.pair.driver.memory().len() as u64;
    (ring.buffer_address(60), ring.buffer_address(50), end)
}

fn one(address: u64, len: u32, flags: u16) -> Vec<Descriptor> {
    vec![Descriptor { address, len, flags, next: 0 }]
}

#[test]
fn chains_that_virtio_forbids_are_counted_and_given_back() {
    let (here, table, end) = scratch();
    let link = |len: u32, flags: u16| Descriptor { address: here, len, flags: flags | NEXT, next: 0 };
    let last = |len: u32, flags: u16| Descriptor { address: here, len, flags, next: 0 };
    let bad = |what, chain| Sent { what, chain, table: vec![], fate: &BAD };
    let too_long = (0..CHAIN_MAX).map(|_| link(20, 0)).chain([last(20, 0)]).collect();
    let all_of_it = (1..SIZE).map(|_| link(20, 0)).chain([last(20, 0)]).collect();
    check_sent(&[
        bad("a buffer for the other direction", one(here, 100, WRITE)),
        bad("the second for the other direction", vec![link(12, 0), last(60, WRITE)]),
        bad("the first for the other direction", vec![link(12, WRITE), last(60, 0)]),
        bad("an address outside memory", one(3, 100, 0)),
        bad("an address that wraps", one(u64::MAX - 10, 100, 0)),
        bad("the last address there is", one(u64::MAX, 1000, 0)),
        bad("one that leaves memory in the middle", one(end - 50, 100, 0)),
        bad("a second that wraps", vec![link(12, 0), Descriptor { address: !59, len: 100, flags: 0, next: 0 }]),
        Sent { fate: &[(DropReason::OverMtu, 1)], ..bad("more than any frame has", one(here, 60_000_000, 0)) },
        Sent {
            fate: &[(DropReason::OverMtu, 1)],
            ..bad("and all of 32 bits", vec![link(u32::MAX, 0), last(u32::MAX, 0)])
        },
        Sent { fate: &[(DropReason::Truncated, 1)], ..bad("no byte", one(here, 0, 0)) },
        Sent { fate: &[(DropReason::Truncated, 1)], ..bad("a header and 13 bytes", vec![link(12, 0), last(13, 0)]) },
        Sent { fate: &[(DropReason::TooManySegments, 1)], ..bad("more than a chain may have", too_long) },
        Sent { fate: &[(DropReason::TooManySegments, 1)], ..bad("as much as the ring has", all_of_it) },
        bad(
            "a table that is chained on",
            vec![Descriptor { address: table, len: 16, flags: INDIRECT | NEXT, next: 0 }, last(60, 0)],
        ),
        bad(
            "a table behind a buffer",
            vec![link(12, 0), Descriptor { address: table, len: 16, flags: INDIRECT, next: 0 }],
        ),
    ]);
}

#[test]
fn indirect_tables_that_virtio_forbids_are_counted_and_given_back() {
    let (here, table, end) = scratch();
    let of = |what, len| Sent { what, chain: one(table, len, INDIRECT), table: vec![entry(here, 72, 0)], fate: &BAD };
    let at = |what, address, len| Sent { chain: one(address, len, INDIRECT), ..of(what, 16) };
    let holds = |what, table: Vec<PackedDescriptor>| Sent { table: table.clone(), ..of(what, 16 * table.len() as u32) };
    let long = vec![entry(here, 20, 0); CHAIN_MAX + 1];
    check_sent(&[
        of("no entry", 0),
        of("half an entry", 8),
        of("an entry and a byte", 17),
        of("an entry less a byte", 15),
        of("more entries than the ring has", 16 * (u32::from(SIZE) + 1)),
        of("as large as can be said", u32::MAX - 15),
        at("outside memory", 0, 16),
        at("at an address that wraps", u64::MAX - 7, 16),
        at("whose second entry wraps", u64::MAX - 15, 32),
        at("whose second entry is outside memory", end - 16, 32),
        at("half outside memory", end - 8, 16),
        holds("with a buffer for the other direction", vec![entry(here, 12, 0), entry(here, 60, WRITE)]),
        holds("with a buffer outside memory", vec![entry(here, 12, 0), entry(5, 60, 0)]),
        holds("with a buffer that wraps", vec![entry(here, 12, 0), entry(!29, 60, 0)]),
        Sent { fate: &[(DropReason::TooManySegments, 1)], ..holds("longer than a chain may be", long) },
    ]);
}

#[test]
fn flags_that_mean_nothing_are_not_minded() {
    let (here, table, _) = scratch();
    let fine = |what, chain, table| Sent { what, chain, table, fate: &[] };
    let whole = vec![entry(here, 12, 0), entry(here, 60, 0)];
    let tables = one(table, 32, INDIRECT);
    // Virtio 1.2 section 2.8.7: of the flags in a table only `WRITE` counts, and section 2.8.8: for the table itself not
    // even that.
    check_sent(&[
        fine("a linked last entry", tables.clone(), vec![entry(here, 12, NEXT), entry(here, 60, NEXT)]),
        fine("tables in a table", tables.clone(), vec![entry(here, 12, INDIRECT), entry(here, 60, INDIRECT)]),
        fine("all that is reserved", tables, vec![entry(here, 12, !WRITE), entry(here, 60, !WRITE)]),
        fine("a table to write", one(table, 32, INDIRECT | WRITE), whole),
        fine("all that is reserved in the ring", one(here, 72, !(WRITE | NEXT | INDIRECT)), vec![]),
    ]);
}

#[test]
fn an_id_beyond_the_ring_goes_back_as_it_came() {
    for features in [0, F_IN_ORDER] {
        for id in [SIZE, 0x7fff, 0x8000, u16::MAX] {
            let mut scene = Scene::new(features, SIZE);
            let address = scene.send().buffer_address(3);
            let part = |len, flags| Descriptor { address, len, flags, next: 0 };
            scene.send().post_chain(id, &[part(12, NEXT), part(60, 0)]);
            let (frames, tally) = scene.pair.place.round();
            assert_eq!((frames.len(), drops(&tally).len()), (1, 0), "{id:#x}: what it is called does not matter");
            assert_eq!(scene.send().packed().entry(0).id, id);
            scene.others_go_on();
            // Our own driver believes in no such buffer; the switch stands behind it.
            let behind = scene.send().packed().next();
            assert_eq!(scene.pair.driver.stop_ring(1).unwrap() as u16, behind.to_bits());
        }
    }
}

#[test]
fn a_chain_without_end_stops_that_ring_with_a_reason_and_leaves_the_others() {
    for size in [1, 7, SIZE] {
        let mut scene = Scene::new(0, size);
        let address = scene.send().buffer_address(0);
        let endless = vec![Descriptor { address, len: 20, flags: NEXT, next: 0 }; size.into()];
        scene.send().post_chain(0, &endless);
        let (frames, tally) = scene.pair.place.round();
        assert_eq!((frames.len(), tally.packets), (0, 0));
        scene.pair.wait_for_reason("send ring stopped: a chain in it has no end");
        scene.others_go_on();
        assert_eq!(scene.pair.place.send(&[&frame(1, 60)]).packets, 1, "its receive ring goes on");
        assert!(scene.pair.place.round().0.is_empty());
    }
}

#[test]
fn an_endless_receive_chain_stops_that_ring_and_the_send_ring_goes_on() {
    for size in [1, 7, SIZE] {
        let mut scene = Scene::new(0, size);
        // All its buffers are at the switch: it describes them anew.
        let address = scene.receive().buffer_address(0);
        for index in 0..size {
            let flags = NEXT | WRITE | AVAIL;
            scene.receive().packed().put(index, PackedDescriptor { address, len: 20, id: 0, flags });
        }
        assert_eq!(drops(&scene.pair.place.send(&[&frame(1, 60), &frame(2, 60)])), [(DropReason::DeviceError, 2)]);
        scene.pair.wait_for_reason("receive ring stopped: a chain in it has no end");
        // What was for it goes by the other pair from now on.
        assert_eq!(scene.pair.place.send(&[&frame(1, 60)]).packets, 1);
        assert_eq!(received(&mut scene.pair.driver.others[0].1), [frame(1, 60)]);
        let sent = frame(3, 60);
        assert_eq!(scene.pair.driver.sender.send_burst(&[&sent]), 1);
        assert_eq!(scene.pair.place.round().0[0].0, sent);
        scene.others_go_on();
    }
}

#[test]
fn broken_receive_chains_cost_a_frame_each_and_are_given_back_empty() {
    let mut scene = Scene::new(0, SIZE);
    let (here, table) = (scene.receive().buffer_address(0), scene.receive().buffer_address(50));
    let end = GUEST_BASE + scene.pair.driver.memory().len() as u64;
    let whole = |address, len, flags| [(address, len, flags)].to_vec();
    let cases = [
        ("a buffer for the other direction", whole(here, 100, 0)),
        ("the first for the other direction", vec![(here, 12, NEXT), (here, 100, WRITE)]),
        ("the last for the other direction", vec![(here, 12, WRITE | NEXT), (here, 100, 0)]),
        ("outside memory", whole(3, 2048, WRITE)),
        ("an address that wraps", whole(u64::MAX - 20, 2048, WRITE)),
        ("one that leaves memory in the middle", whole(end - 20, 2048, WRITE)),
        ("no byte", whole(here, 0, WRITE)),
        (
            "more than a chain may have",
            vec![(here, 2, WRITE | NEXT); CHAIN_MAX].into_iter().chain([(here, 2, WRITE)]).collect(),
        ),
        ("an empty table", whole(table, 0, INDIRECT)),
        ("a table of odd size", whole(table, 24, INDIRECT)),
        ("a table outside memory", whole(end, 16, INDIRECT)),
        ("a table at an address that wraps", whole(!7, 16, INDIRECT)),
        ("a table larger than the ring", whole(table, 16 * (u32::from(SIZE) + 1), INDIRECT)),
        ("a table behind a buffer", vec![(here, 12, WRITE | NEXT), (table, 16, INDIRECT)]),
    ];
    // What the first lap has not used yet is described anew, one case after the other, good buffers between them.
    let mut at = Position::START;
    for (what, chain) in cases {
        let count = chain.len() as u16;
        for (number, (address, len, flags)) in (0..).zip(chain) {
            let index = at.plus(number, SIZE).index;
            scene.receive().packed().put(index, PackedDescriptor { address, len, id: 200, flags: flags | AVAIL });
        }
        let tally = scene.pair.place.send(&[&frame(1, 60), &frame(2, 60)]);
        assert_eq!((tally.packets, drops(&tally)), (1, BAD.to_vec()), "{what}");
        let (given, good) = (scene.receive().packed().entry(at.index), at.plus(count, SIZE));
        assert_eq!((given.id, given.len, given.flags), (200, 0, AVAIL | USED), "{what}: given back empty");
        assert_eq!(scene.receive().packed().entry(good.index).len, 72, "{what}: and the next is filled");
        at = good.plus(1, SIZE);
        assert!(at.wrap, "the cases are more than one lap");
        scene.others_go_on();
    }
    assert_eq!(scene.pair.backend.state().link, Link::Up);
}

#[test]
fn descriptors_of_another_lap_and_beyond_a_gap_are_not_there() {
    let mut scene = Scene::new(0, 8);
    let (address, next) = (scene.send().buffer_address(0), scene.send().packed().next());
    let put = |scene: &mut Scene, at: Position, bits: u16| {
        scene.send().packed().put(at.index, PackedDescriptor { address, len: 72, id: at.index, flags: bits });
    };
    let taken = |scene: &mut Scene| {
        let (frames, tally) = scene.pair.place.round();
        assert_eq!(tally.dropped, 0);
        frames.len()
    };
    // Of the lap before, of the one after, and used.
    for bits in [0, USED, AVAIL | USED] {
        (0..8).for_each(|ahead| put(&mut scene, next.plus(ahead, 8), bits));
        assert_eq!(taken(&mut scene), 0, "{bits:#x}");
        scene.others_go_on();
    }
    // All but the first.
    (1..8).for_each(|ahead| put(&mut scene, next.plus(ahead, 8), AVAIL));
    assert_eq!(taken(&mut scene), 0, "there is a gap");
    put(&mut scene, next, AVAIL);
    assert_eq!(taken(&mut scene), 8, "all of a lap, and no more");
    assert_eq!(taken(&mut scene), 0, "they are used");
    // The same bits once more, as if the wrap counter had not turned.
    (0..8).for_each(|ahead| put(&mut scene, next.plus(ahead, 8), AVAIL));
    assert_eq!(taken(&mut scene), 0, "they are of the lap before");
    (0..8).for_each(|ahead| put(&mut scene, next.plus(ahead, 8), USED));
    assert_eq!(taken(&mut scene), 8, "now they are of this lap");
    scene.others_go_on();
    assert_eq!(scene.pair.backend.state().reason, "");
}

/// The wrap bits turn while the switch has the ring's buffers in hand: chains of the next lap, and of the one after, before
/// those of this one are given back.
#[test]
fn laps_that_overtake_what_is_not_given_back_cost_nobody_else_anything() {
    for features in [0, F_IN_ORDER, F_EVENT_IDX] {
        let laps: [&[u16]; 4] = [&[8, 6], &[8, 8], &[8, 8, 3], &[8, 8, 8, 7, 8]];
        for (width, counts) in [1, 3, 8].into_iter().flat_map(|width| laps.map(|counts| (width, counts))) {
            let mut scene = Scene::new(features, 8);
            (0..3).for_each(|_| scene.sends_on());
            let address = scene.send().buffer_address(0);
            let port = scene.pair.place.port().unwrap();
            let (mut batch, mut tally, mut chains) = (Batch::new(), Tally::default(), 0);
            batch.clear(32, usize::MAX);
            let mut at = scene.send().packed().next();
            for &count in counts {
                for number in 1..=count {
                    let bits = if at.wrap { AVAIL } else { USED };
                    let flags = if number % width == 0 || number == count { bits } else { bits | NEXT };
                    chains += u32::from(flags & NEXT == 0);
                    scene.send().packed().put(at.index, PackedDescriptor { address, len: 72, id: at.index, flags });
                    at = at.plus(1, 8);
                }
                port.rx(INGRESS, QUEUE, &mut batch, &mut tally);
            }
            assert_eq!(tally.packets, chains.min(32), "all were taken");
            drop(batch);
            port.rx_done(QUEUE);
            drop(port);
            scene.others_go_on();
            // The guest comes to its senses: the ring from the start again.
            scene.pair.driver.stop_rings().unwrap();
            for (sender, receiver) in scene.pair.driver.pairs() {
                sender.ring.reset();
                receiver.ring.reset();
                receiver.post_all();
            }
            scene.pair.driver.start_rings().unwrap();
            scene.pair.wait_for_link(Link::Up);
            scene.sends_on();
            scene.others_go_on();
        }
    }
}

#[test]
fn nonsense_about_interrupts_stops_no_frame() {
    for features in [0, F_EVENT_IDX] {
        let mut scene = Scene::new(features, 8);
        let mut number = 0;
        for flags in [0, 1, 2, 3, 4, 0x7fff, 0x8000, u16::MAX] {
            for offset in [0, 7, 8, 9, 0x3fff, 0x7fff] {
                for wrap in [false, true] {
                    let at = Position { index: offset, wrap };
                    scene.send().packed().put_driver_events(at, flags);
                    scene.receive().packed().put_driver_events(at, flags);
                    number += 1;
                    let sent = frame(number, 60);
                    assert_eq!(scene.pair.driver.sender.send_burst(&[&sent, &sent]), 2);
                    assert_eq!(scene.pair.place.round().0.len(), 2, "{flags:#x} at {at:?}");
                    assert_eq!(scene.pair.place.send(&[&sent, &sent]).packets, 2, "{flags:#x} at {at:?}");
                    let arrived = scene.pair.received();
                    assert_eq!(arrived, [sent.clone(), sent], "{flags:#x} at {at:?}");
                }
            }
            scene.others_go_on();
        }
        // What is reserved means that it wants them: one too many hurts less than one too few.
        while scene.receive().wait_for_interrupt(Duration::ZERO) {}
        scene.receive().packed().put_driver_events(Position::START, 3);
        assert_eq!(scene.pair.place.send(&[&frame(1, 60)]).packets, 1);
        assert!(scene.receive().wait_for_interrupt(Duration::from_secs(20)), "it is told");
    }
}

/// A guest that scribbles over its rings while the switch works on them.
#[test]
fn scribbling_on_packed_rings_while_they_are_read_hurts_nobody_else() {
    for features in [0, F_EVENT_IDX | F_IN_ORDER] {
        let mut scene = Scene::new(features, 8);
        let memory = scene.pair.driver.memory().clone();
        let [receive, send] = [0, 1].map(|index| {
            let ring = scene.pair.driver.ring(index).addresses(index);
            let offset = |address: u64| (address - USER_BASE) as usize;
            (offset(ring.descriptors), offset(ring.available), scene.pair.driver.ring(index).buffer_address(0))
        });
        let scribble = |state: &mut u64| {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            let any = |shift: u32, bound: usize| (*state >> shift) as usize % bound;
            let (descriptors, events, buffer) = [receive, send][any(0, 2)];
            let more = [0, WRITE, NEXT, NEXT | WRITE, NEXT, NEXT | WRITE, INDIRECT, NEXT | INDIRECT];
            let flags = [AVAIL, USED, AVAIL | USED, 0][any(1, 4)] | more[any(3, 8)];
            let at = descriptors + 16 * any(6, 8);
            match any(9, 8) {
                0 => memory.write(events, &(*state >> 32).to_le_bytes()[..4]),
                1 => memory.write(at + any(32, 16), &[any(40, 256) as u8]),
                2 => memory.write(at + 14, &flags.to_le_bytes()),
                _ => {
                    let (len, id) = (any(16, 4096) as u32, any(40, 65_536) as u16);
                    let (low, high) = PackedDescriptor { address: buffer, len, id, flags }.to_words();
                    memory.write(at, &low.to_ne_bytes());
                    memory.write(at + 8, &high.to_ne_bytes());
                }
            }
        };
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut state = 0x1234_5678_9abc_def1u64;
                while !stop.load(Ordering::Relaxed) {
                    scribble(&mut state);
                }
            });
            let (mut state, mut stops, mut taken, mut given) = (0xfeed_beef_1234_5677u64, 0, 0, 0);
            for _ in 0..10_000 {
                // Also by ourselves, for the other may not run just now.
                (0..8).for_each(|_| scribble(&mut state));
                let (frames, tally) = scene.pair.place.round();
                assert_eq!(tally.packets, frames.len() as u32 + tally.dropped);
                taken += tally.packets;
                let tally = scene.pair.place.send(&[&frame(1, 60), &frame(2, 3000)]);
                assert_eq!(tally.packets + tally.dropped, 2);
                given += tally.packets;
                scene.number += 1;
                let sent = frame(scene.number, 60);
                assert_eq!(scene.healthy.place.send(&[&sent]).packets, 1);
                assert_eq!(scene.healthy.received(), [sent]);
                if !scene.pair.backend.state().reason.is_empty() {
                    stops += 1;
                    scene.pair.driver.disconnect();
                    let _ = scene.pair.driver.resume();
                }
            }
            stop.store(true, Ordering::Relaxed);
            assert!(stops > 0 && taken > 0 && given > 0, "{features:#x}: {stops} stops, {taken} taken, {given} given");
        });
    }
}
