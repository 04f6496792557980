//! The hot paths whose instructions are counted: each is one function that stands alone, called over and over.
//!
//! Run under valgrind by the ratchet; prints how many frames each path carried. Only what a path's own function calls is
//! counted: guests, set-up and warming up are not.

use benches::large;
use benches::rig::{Bare, Guest, Layout, NOW, Rig, RigConfig, STATIONS, frames, layout_features, station};
use benches::tunnel::Tunnels;
use benches::yardstick::Yardstick;
use pipelines::parse;
use std::hint::black_box;
use switch::batch::{BURST, Batch, Fit};
use switch::ids::{MacAddr, MacBits, NetworkIndex, PortIndex};
use switch::mac_table::{BurstView, MacTable};
use switch::offload::{EgressOffloads, OffloadClaim};
use switch::underlay::TunnelKind;
use switch::worker::Worker;
use vhost::port::{PackedSet, RingSet, SplitSet};
use vhost::ring::{Layout as RingLayout, PackedRing, SplitRing};

/// Calls of each path.
const CALLS: usize = 100;
/// Pairs of guests that a flood goes to all of, but for the sender.
const FLOOD_PAIRS: usize = 5;

/// What is counted: the name in the file, and the function.
pub(crate) const PATHS: [(&str, &str); 18] = [
    ("round of 60 bytes", "path_round_60"),
    ("round of 60 bytes, packed", "path_round_packed"),
    ("round of 60 bytes, 4 pairs of rings", "path_round_pairs"),
    ("round of 1514 bytes", "path_round_1514"),
    ("round of one frame", "path_round_single"),
    ("round without frames", "path_round_idle"),
    ("flood to 9 ports", "path_flood"),
    ("yardstick, 60 bytes", "path_yardstick_60"),
    ("yardstick, 60 bytes, packed", "path_yardstick_packed"),
    ("yardstick, 1514 bytes", "path_yardstick_1514"),
    ("parse UDP over IPv4", "path_parse_udp4"),
    ("parse ARP", "path_parse_arp"),
    ("MAC lookup, found", "path_mac_lookup"),
    ("MAC learn, known", "path_mac_known"),
    ("cut a TCP segment", "path_cut"),
    ("between ports, no devices", "path_local"),
    ("VXLAN headers on and off", "path_encap"),
    ("from an uplink by VXLAN", "path_decap"),
];

/// Functions that do alike but must not be made one by the compiler.
macro_rules! alike {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> usize = $number:literal $body:block)*) => { $(
        #[inline(never)]
        fn $name($($argument: $type),*) -> usize {
            black_box($number);
            let count = $body;
            black_box(count)
        }
    )* };
}
alike! {
    fn path_round_60(worker: &mut Worker<pipelines::Standard>) -> usize = 1 { worker.step(NOW) }
    fn path_round_1514(worker: &mut Worker<pipelines::Standard>) -> usize = 2 { worker.step(NOW) }
    fn path_round_packed(worker: &mut Worker<pipelines::Standard>) -> usize = 12 { worker.step(NOW) }
    fn path_round_pairs(worker: &mut Worker<pipelines::Standard>) -> usize = 18 { worker.step(NOW) }
    fn path_round_single(worker: &mut Worker<pipelines::Standard>) -> usize = 14 { worker.step(NOW) }
    fn path_round_idle(worker: &mut Worker<pipelines::Standard>) -> usize = 3 { worker.step(NOW) }
    fn path_flood(worker: &mut Worker<pipelines::Standard>) -> usize = 4 { worker.step(NOW) }
    fn path_yardstick_60(yardstick: &mut Yardstick<SplitRing>, guests: [&SplitSet; 2]) -> usize = 5 {
        yardstick.step(guests)
    }
    fn path_yardstick_packed(yardstick: &mut Yardstick<PackedRing>, guests: [&PackedSet; 2]) -> usize = 13 {
        yardstick.step(guests)
    }
    fn path_yardstick_1514(yardstick: &mut Yardstick<SplitRing>, guests: [&SplitSet; 2]) -> usize = 6 {
        yardstick.step(guests)
    }
    fn path_parse_udp4(head: &[u8], len: usize) -> usize = 7 { parse_burst(head, len) }
    fn path_parse_arp(head: &[u8], len: usize) -> usize = 8 { parse_burst(head, len) }
    fn path_mac_lookup(macs: &BurstView<'_>, burst: &[MacBits; BURST]) -> usize = 9 {
        burst.iter().filter(|&&mac| macs.lookup(&macs.probe(mac)).is_some()).count()
    }
    fn path_mac_known(macs: &BurstView<'_>, burst: &[MacBits; BURST]) -> usize = 10 {
        burst.iter().filter(|&&mac| macs.is_known(&macs.probe(mac))).count()
    }
    fn path_cut(batch: &mut Batch<'_>) -> usize = 11 { cut(batch) }
    fn path_local(tunnels: &mut Tunnels, batch: &mut Batch<'_>) -> usize = 15 { tunnels.local(batch) }
    fn path_encap(tunnels: &Tunnels, batch: &mut Batch<'_>) -> usize = 16 { tunnels.encap(batch) }
    fn path_decap(tunnels: &mut Tunnels, batch: &mut Batch<'_>) -> usize = 17 { tunnels.decap(batch) }
}

#[inline(always)]
fn parse_burst(head: &[u8], len: usize) -> usize {
    let claim = OffloadClaim::default();
    (0..BURST).filter(|_| parse::decide(black_box(head), len, black_box(&claim), 1500).is_ok()).count()
}

#[inline(always)]
fn cut(batch: &mut Batch<'_>) -> usize {
    let egress = EgressOffloads::default();
    assert!(batch.fit(0, egress) == Fit::Cut, "nobody there takes it whole");
    let mut cut = batch.cut(0, egress);
    let mut count = 0;
    while let Some(segment) = cut.next_segment() {
        black_box(segment.0.head());
        count += 1;
    }
    count
}

/// Runs every path and prints the frames it carried.
pub(crate) fn run_all() {
    let tell = |function: &str, frames: usize| println!("{function} {frames}");
    let split = RigConfig::new;
    let packed = RigConfig { features: layout_features(true), ..RigConfig::new(60) };
    tell("path_round_60", rounds(split(60), path_round_60));
    tell("path_round_packed", rounds(packed, path_round_packed));
    tell("path_round_pairs", rounds(RigConfig { ring_pairs: 4, ..split(60) }, path_round_pairs));
    tell("path_round_1514", rounds(split(1514), path_round_1514));
    tell("path_round_single", singles());
    let mut idle = Rig::new(60);
    let frames: usize = (0..CALLS).map(|_| path_round_idle(idle.worker())).sum();
    assert_eq!(frames, 0, "nobody sends");
    // Such a round has no frame to be counted for; it counts as one.
    tell("path_round_idle", CALLS);
    tell("path_flood", floods());
    tell("path_yardstick_60", yardstick_rounds(60, path_yardstick_60));
    tell("path_yardstick_packed", yardstick_rounds(60, path_yardstick_packed));
    tell("path_yardstick_1514", yardstick_rounds(1514, path_yardstick_1514));
    let udp = &frames_of(60)[0];
    tell("path_parse_udp4", (0..CALLS).map(|_| path_parse_udp4(udp, udp.len())).sum());
    let mut arp = vec![0xff; 6];
    arp.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1]);
    arp.resize(60, 0);
    tell("path_parse_arp", (0..CALLS).map(|_| path_parse_arp(&arp, arp.len())).sum());
    mac_table(&tell);
    tell("path_cut", cuts());
    let (mut tunnels, mut batch) = (Tunnels::new(TunnelKind::Vxlan), Batch::new());
    tell("path_local", (0..CALLS).map(|_| path_local(&mut tunnels, &mut batch)).sum());
    tell("path_encap", (0..CALLS).map(|_| path_encap(&tunnels, &mut batch)).sum());
    tell("path_decap", (0..CALLS).map(|_| path_decap(&mut tunnels, &mut batch)).sum());
    assert_eq!(tunnels.dropped(), 0, "every frame is forwarded");
}

fn frames_of(len: usize) -> Vec<Vec<u8>> {
    frames(0, 1, len)
}

fn rounds(config: RigConfig, path: fn(&mut Worker<pipelines::Standard>) -> usize) -> usize {
    let mut rig = Rig::with(config);
    let mut frames = 0;
    for _ in 0..CALLS {
        rig.offer();
        frames += path(rig.worker());
        rig.take();
    }
    assert_eq!(frames, CALLS * 2 * BURST, "no frame was lost");
    frames
}

/// One frame at a time: what a burst costs once.
fn singles() -> usize {
    let mut rig = Rig::new(60);
    let mut frames = 0;
    for _ in 0..CALLS {
        let half = &mut rig.halves[0];
        assert_eq!(half.guests[0].driver.sender.post(1), 1);
        frames += path_round_single(&mut half.worker);
        half.guests[1].take();
    }
    assert_eq!(frames, CALLS, "no frame was lost");
    frames
}

fn yardstick_rounds<L: RingLayout>(len: usize, path: fn(&mut Yardstick<L>, [&RingSet<L>; 2]) -> usize) -> usize {
    let Bare { mut guests, rings, mut yardstick } = Bare::new(len);
    let mut frames = 0;
    for _ in 0..CALLS {
        guests.iter_mut().for_each(Guest::offer);
        frames += path(&mut yardstick, [&rings[0], &rings[1]]);
        for guest in &mut guests {
            guest.take();
        }
    }
    assert_eq!(frames, CALLS * 2 * BURST, "no frame was lost");
    frames
}

/// Broadcasts of one guest to all others; answers how many copies went out.
fn floods() -> usize {
    let mut rig = Rig::with(RigConfig { pairs: FLOOD_PAIRS, layout: Layout::Together, ..RigConfig::new(60) });
    let mut broadcasts = frames_of(60);
    for frame in &mut broadcasts {
        frame[..6].fill(0xff);
    }
    rig.halves[0].guests[0].driver.sender.fill_all(&broadcasts);
    let sent = rig.switch().balance().sent;
    for _ in 0..CALLS {
        rig.halves[0].guests[0].offer();
        path_flood(rig.worker());
        for guest in rig.halves.iter_mut().flat_map(|half| &mut half.guests) {
            guest.take();
        }
    }
    let copies = (rig.switch().balance().sent - sent) as usize;
    assert_eq!(copies, CALLS * BURST * (2 * FLOOD_PAIRS - 1), "every copy arrived");
    copies
}

fn mac_table(tell: &dyn Fn(&str, usize)) {
    let table = MacTable::new(131_072, 300);
    let addresses: Vec<MacAddr> = (0..STATIONS).map(|number| MacAddr(station(0, number))).collect();
    for &mac in &addresses {
        table.learn(NetworkIndex(0), mac, PortIndex(0), NOW);
    }
    let macs = table.burst(NetworkIndex(0), PortIndex(0), NOW);
    let burst = |call: usize| std::array::from_fn(|at| addresses[(call * BURST + at * 7) % addresses.len()].into());
    let found: usize = (0..CALLS).map(|call| path_mac_lookup(&macs, &burst(call))).sum();
    assert_eq!(found, CALLS * BURST, "all are known");
    tell("path_mac_lookup", found);
    tell("path_mac_known", (0..CALLS).map(|call| path_mac_known(&macs, &burst(call))).sum());
}

/// Cuts large TCP frames; answers how many segments came of it.
fn cuts() -> usize {
    let frame = large::frame();
    let mut batch = Batch::new();
    (0..CALLS)
        .map(|_| {
            large::put(&mut batch, &frame);
            path_cut(&mut batch)
        })
        .sum()
}
