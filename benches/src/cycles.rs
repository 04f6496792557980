//! Where the cycles of a frame go: each part of a burst, ours beside the yardstick's, in cycles and instructions.
//!
//! The parts are called as `Worker::step` calls them, one clock reading before and one behind the part that is measured.
//! What such a part cannot overlap with its neighbours any more is in its figure: so the parts add up to somewhat more than
//! the whole, which is measured too. On one core the guests' rings lie in the first caches, and the figures are those of the code;
//! on two, lines come from another core, as they do in earnest.
//!
//! A last table accounts for what we cost more than the yardstick, part by part, and for what of that is in no part. Both layouts of
//! rings are measured, with frames of the usual length for `benches/results/cycles.md`.

mod account;

use crate::results::Section;
use crate::{Cycles, Rings};
use account::{Costs, line, tell_differences};
use anyhow::{Result, ensure};
use benches::callgrind;
use benches::cost::{Stopwatch, cycles_per_ns, median_of};
use benches::rig::{Bare, Guest, NOW, OFFER, Rig, RigConfig, layout_features};
use benches::yardstick::Yardstick;
use pipelines::STAGES;
use pipelines::bridge::{self, Questions};
use pipelines::stage::{Notes, Scope};
use pipelines::tables::Tables;
use std::sync::atomic::{AtomicBool, Ordering};
use switch::affinity::{allowed_cpus, pin};
use switch::batch::{BURST, Batch};
use switch::ids::{PortIndex, QueueIndex, WorkerIndex};
use switch::ledger::{Tally, WorkerLedger};
use switch::mac_table::MacTable;
use switch::port::Port;
use switch::publish::Snapshot;
use switch::worker::{Context, Egress, EgressLists, ROUND_BYTES};
use vhost::port::RingSet;
use vhost::ring::{Layout, PackedRing, SplitRing};

/// Bursts timed for each part.
const BURSTS: usize = 20_000;
/// Bursts counted under valgrind.
const BURSTS_BARE: usize = 200;
/// Times all is measured; the median is shown.
const ALTERNATIONS: usize = 5;
/// Where a generator on another core patches and reads frames: behind the UDP header.
const PAYLOAD: usize = 42;

/// Parts of a burst of ours: what is printed, and the function under which callgrind finds it.
const PARTS: [(&str, &str); 10] = [
    ("rx", "part_rx"),
    ("count what came", "part_count_rx"),
    ("parse", "part_parse"),
    ("classify", "part_classify"),
    ("guard", "part_guard"),
    ("bridge: hash, prefetch", "part_hash"),
    ("bridge: answer", "part_answer"),
    ("tx", "part_tx"),
    ("count what went", "part_count_tx"),
    ("rx done", "part_rx_done"),
];
/// Parts of a burst of the yardstick's.
const BARE_PARTS: [(&str, &str); 3] =
    [("take", "part_bare_take"), ("give", "part_bare_give"), ("give back", "part_bare_give_back")];
/// Bytes of the frames that are on the page.
pub(crate) const FRAME_LEN: usize = 60;
/// The page.
const PAGE: &str = "cycles.md";
/// Instead of a part: nothing, which tells what reading the clock costs; and all of them.
const NOTHING: usize = 100;
const WHOLE: usize = 101;

/// Takes a whole batch through one stage apart from the others, so that its cycles and instructions are found.
macro_rules! stages {
    ($($name:ident $index:literal)*) => { $(
        #[inline(never)]
        fn $name(scope: &Scope<'_>, batch: &mut Batch<'_>, notes: &mut [Notes; BURST]) {
            for (packet, notes) in batch.packets_mut().iter_mut().zip(notes) {
                (STAGES[$index].run)(scope, packet, notes).expect("every frame of the rig passes");
            }
        }
    )* };
}
stages! { part_parse 0  part_classify 1  part_guard 2  part_hash 3 }
/// A stage as a part.
type StagePart = fn(&Scope<'_>, &mut Batch<'_>, &mut [Notes; BURST]);
const STAGE_PARTS: [StagePart; STAGES.len()] = [part_parse, part_classify, part_guard, part_hash];

/// What the bridge answers at the end of a batch.
#[inline(never)]
fn part_answer(scope: &Scope<'_>, batch: &mut Batch<'_>, notes: &[Notes; BURST], egress: &mut Egress<'_>) {
    let mut questions = Questions::default();
    for (index, notes) in notes[..batch.len()].iter().enumerate() {
        questions.ask_late(batch, index, notes);
    }
    bridge::answer(scope, batch, &questions, egress);
}

/// The first stage among the parts.
const FIRST_STAGE: usize = 2;

#[inline(never)]
fn part_rx<'r>(port: &'r dyn Port, ingress: PortIndex, batch: &mut Batch<'r>, tally: &mut Tally) {
    port.rx(ingress, QueueIndex(0), batch, tally);
}

#[inline(never)]
fn part_rx_done(port: &dyn Port) {
    port.rx_done(QueueIndex(0));
}

#[inline(never)]
fn part_tx(port: &dyn Port, batch: &mut Batch<'_>, picks: &[u8], tally: &mut Tally) {
    port.tx(QueueIndex(0), batch, picks, tally);
}

/// What a worker does for a burst, in parts.
struct Ours<'s> {
    snapshot: &'s Snapshot<Tables>,
    mac_table: &'s MacTable,
    batch: Batch<'s>,
    lists: EgressLists,
    tally: Tally,
    ledger: WorkerLedger,
}

impl<'s> Ours<'s> {
    fn new(snapshot: &'s Snapshot<Tables>, mac_table: &'s MacTable) -> Ours<'s> {
        let (batch, lists, tally, ledger) = Default::default();
        Ours { snapshot, mac_table, batch, lists, tally, ledger }
    }

    #[inline(never)]
    fn part_count_rx(&self, ingress: PortIndex) {
        if let Some(place) = self.snapshot.place(ingress) {
            place.ledger.of(WorkerIndex(0)).rx.add(&self.tally);
        }
        self.ledger.received.add(u64::from(self.tally.packets));
        self.ledger.add_drops(&self.tally);
        self.ledger.batches.add(1);
    }

    #[inline(never)]
    fn part_count_tx(&self, egress: PortIndex) {
        if let Some(place) = self.snapshot.place(egress) {
            place.ledger.of(WorkerIndex(0)).tx.add(&self.tally);
        }
        self.ledger.sent.add(u64::from(self.tally.packets));
        self.ledger.add_drops(&self.tally);
    }

    /// One burst of a port; answers its frames.
    fn burst(&mut self, ingress: PortIndex, watch: &mut Stopwatch) -> usize {
        let place = self.snapshot.place(ingress).expect("the rig has this port");
        let port: &'s dyn Port = place.port.as_deref().expect("its guest is there");
        watch.begin(NOTHING);
        watch.end(NOTHING);
        watch.begin(WHOLE);
        self.batch.clear(BURST, ROUND_BYTES);
        self.tally.clear();
        watch.begin(0);
        part_rx(port, ingress, &mut self.batch, &mut self.tally);
        watch.end(0);
        if self.batch.is_empty() {
            return 0;
        }
        watch.begin(1);
        self.part_count_rx(ingress);
        watch.end(1);
        let (worker, generation) = (WorkerIndex(0), self.snapshot.generation);
        let context = Context { now: NOW, mac_table: self.mac_table, worker, generation };
        let mut egress = Egress::new(&mut self.lists, &self.snapshot.places, worker, &self.ledger);
        let scope = Scope::new(&self.snapshot.tables, &context, ingress);
        let mut notes = std::array::from_fn(|_| Notes::default());
        for (index, stage) in STAGE_PARTS.iter().enumerate() {
            watch.begin(FIRST_STAGE + index);
            stage(&scope, &mut self.batch, &mut notes);
            watch.end(FIRST_STAGE + index);
        }
        watch.begin(6);
        part_answer(&scope, &mut self.batch, &notes, &mut egress);
        watch.end(6);
        let to = PortIndex(1 - ingress.0);
        let picks = self.lists.picks().next().map_or(&[][..], |(_, picks)| picks);
        let port = self.snapshot.place(to).and_then(|place| place.port.as_deref()).expect("its guest is there");
        self.tally.clear();
        watch.begin(7);
        part_tx(port, &mut self.batch, picks, &mut self.tally);
        watch.end(7);
        watch.begin(8);
        self.part_count_tx(to);
        watch.end(8);
        self.lists.clear();
        watch.begin(9);
        part_rx_done(self.port(ingress));
        watch.end(9);
        watch.end(WHOLE);
        self.batch.len()
    }

    fn port(&self, index: PortIndex) -> &'s dyn Port {
        self.snapshot.place(index).and_then(|place| place.port.as_deref()).expect("its guest is there")
    }
}

#[inline(never)]
fn part_bare_take<L: Layout>(yardstick: &mut Yardstick<L>, from: usize, guests: [&RingSet<L>; 2]) -> (usize, usize) {
    yardstick.take(from, guests)
}

#[inline(never)]
fn part_bare_give<L: Layout>(yardstick: &mut Yardstick<L>, from: usize, good: usize, guests: [&RingSet<L>; 2]) {
    yardstick.give(from, good, guests);
}

#[inline(never)]
fn part_bare_give_back<L: Layout>(yardstick: &mut Yardstick<L>, from: usize, guests: [&RingSet<L>; 2]) {
    yardstick.give_back(from, guests);
}

/// One burst of the yardstick's; answers its frames.
fn bare_burst<L: Layout>(
    yardstick: &mut Yardstick<L>,
    from: usize,
    guests: [&RingSet<L>; 2],
    watch: &mut Stopwatch,
) -> usize {
    watch.begin(NOTHING);
    watch.end(NOTHING);
    watch.begin(WHOLE);
    watch.begin(0);
    let (taken, good) = part_bare_take(yardstick, from, guests);
    watch.end(0);
    if taken == 0 {
        return 0;
    }
    watch.begin(1);
    part_bare_give(yardstick, from, good, guests);
    watch.end(1);
    watch.begin(2);
    part_bare_give_back(yardstick, from, guests);
    watch.end(2);
    watch.end(WHOLE);
    taken
}

/// Who plays the guests: this thread between the bursts, or another one all the time.
enum Play<'g> {
    Here(&'g mut [Guest; 2]),
    Elsewhere,
}

impl Play<'_> {
    fn offer(&mut self) {
        if let Play::Here(guests) = self {
            guests.iter_mut().for_each(Guest::offer);
        }
    }

    fn take(&mut self) {
        if let Play::Here(guests) = self {
            for guest in guests.iter_mut() {
                guest.take();
            }
        }
    }
}

/// Has the guests played while `work` is done.
fn with_guests<T: Send>(
    guests: &mut [Guest; 2],
    is_elsewhere: bool,
    work: impl FnOnce(&mut Play<'_>) -> T + Send,
) -> Result<T> {
    if !is_elsewhere {
        return Ok(work(&mut Play::Here(guests)));
    }
    let cpus = allowed_cpus()?;
    ensure!(cpus.len() >= 2, "two CPUs are needed; allowed are {cpus:?}");
    let (is_over, first, last) = (AtomicBool::new(false), cpus[0], cpus[cpus.len() - 1]);
    std::thread::scope(|scope| {
        let generator = scope.spawn(|| {
            pin(first)?;
            let (mut number, mut sum) = (0u64, 0u64);
            while !is_over.load(Ordering::Relaxed) {
                for guest in guests.iter_mut() {
                    guest.driver.sender.post_patched(2 * OFFER, PAYLOAD, |_| {
                        number += 1;
                        number.to_be_bytes()
                    });
                    guest.driver.receiver.visit(4 * usize::from(OFFER), |frame| sum ^= frame.word(PAYLOAD));
                }
            }
            std::hint::black_box(sum);
            std::io::Result::Ok(())
        });
        // A thread of its own, so that the pin does not outlive the measurement.
        let done = scope.spawn(|| -> Result<T> {
            pin(last)?;
            Ok(work(&mut Play::Elsewhere))
        });
        let done = done.join().expect("measuring does not panic");
        is_over.store(true, Ordering::Relaxed);
        generator.join().expect("a generator does not panic")?;
        done
    })
}

/// Cycles of a frame: by part, then nothing, then the whole.
type Row = Vec<f64>;

/// Times `count` parts, one after the other, and the whole.
fn time_parts(play: &mut Play<'_>, count: usize, mut burst: impl FnMut(usize, &mut Stopwatch) -> usize) -> Row {
    (0..count)
        .chain([NOTHING, WHOLE])
        .map(|part| {
            let mut watch = Stopwatch::new(part);
            for _ in 0..BURSTS / 2 {
                play.offer();
                for from in [0, 1] {
                    let frames = burst(from, &mut watch);
                    watch.keep(frames == BURST);
                }
                play.take();
            }
            watch.median()
        })
        .collect()
}

/// Turns times of bursts into cycles of a frame, without the clock's own. What was not measured, since no burst was whole, stays
/// no number.
fn per_frame(mut row: Row, cycles_per_ns: f64, parts: usize) -> Row {
    let clock = row.remove(parts);
    let cycles = |ns: f64| (ns - clock).max(0.0) * cycles_per_ns / BURST as f64;
    row.iter().map(|&ns| if ns.is_nan() { ns } else { cycles(ns) }).collect()
}

/// Prints the tables, and writes them to the page.
pub(crate) fn run(options: &Cycles) -> Result<()> {
    for is_packed in [false, true] {
        // One layout is asked for by valgrind, and by who has no time for both.
        if options.rings.is_none_or(|rings| (rings == Rings::Packed) == is_packed) {
            if is_packed { run_as::<PackedRing>(options)? } else { run_as::<SplitRing>(options)? }
        }
    }
    Ok(())
}

fn run_as<L: Layout>(options: &Cycles) -> Result<()> {
    let Cycles { frame_len, two_cores, bare: is_bare, .. } = *options;
    let (packed, layout) = (L::IS_PACKED, if L::IS_PACKED { "packed" } else { "split" });
    let mut rig = Rig::with(RigConfig { features: layout_features(packed), ..RigConfig::new(frame_len) });
    let (switch, snapshot) = (rig.switch(), rig.snapshot());
    let mut ours = Ours::new(&snapshot, switch.mac_table());
    let mut bare = Bare::<L>::new(frame_len);
    let rings = [&*bare.rings[0], &*bare.rings[1]];
    let half = &mut rig.halves[0];
    if is_bare {
        let mut watch = Stopwatch::new(NOTHING);
        for _ in 0..BURSTS_BARE / 2 {
            half.guests.iter_mut().chain(&mut bare.guests).for_each(Guest::offer);
            for from in [0, 1] {
                ours.burst(PortIndex(from), &mut watch);
                bare_burst(&mut bare.yardstick, usize::from(from), rings, &mut watch);
            }
            for guest in half.guests.iter_mut().chain(&mut bare.guests) {
                guest.take();
            }
        }
        return Ok(());
    }

    let (mut our_rows, mut bare_rows, mut steps, mut clocks) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ALTERNATIONS {
        let clock = cycles_per_ns();
        clocks.push(clock);
        let row = with_guests(&mut half.guests, two_cores, |play| {
            time_parts(play, PARTS.len(), |from, watch| ours.burst(PortIndex(from as u16), watch))
        })?;
        our_rows.push(per_frame(row, clock, PARTS.len()));
        let row = with_guests(&mut bare.guests, two_cores, |play| {
            time_parts(play, BARE_PARTS.len(), |from, watch| bare_burst(&mut bare.yardstick, from, rings, watch))
        })?;
        bare_rows.push(per_frame(row, clock, BARE_PARTS.len()));
        let worker = &mut half.worker;
        let row = with_guests(&mut half.guests, two_cores, |play| {
            let mut watch = Stopwatch::new(WHOLE);
            for _ in 0..BURSTS / 2 {
                play.offer();
                watch.begin(WHOLE);
                let frames = worker.step(NOW);
                watch.end(WHOLE);
                watch.keep(frames == 2 * BURST);
                play.take();
            }
            watch.median()
        })?;
        steps.extend(Some(row * clock / (2 * BURST) as f64).filter(|cycles| !cycles.is_nan()));
    }

    let arguments = ["cycles", &frame_len.to_string(), "--bare", "--rings", layout].map(str::to_owned);
    let names: Vec<_> = PARTS.iter().chain(&BARE_PARTS).map(|&(_, function)| function).collect();
    let instructions = if callgrind::is_there() { Some(callgrind::count(&arguments, &names)?.0) } else { None };
    let instructions_of = |parts: &[(&str, &str)]| -> Vec<Option<f64>> {
        let of = |function: &str| {
            let cost = instructions.as_ref()?.get(function)?;
            Some(cost.instructions as f64 / (cost.calls * BURST as u64) as f64)
        };
        parts.iter().map(|(_, function)| of(function)).collect()
    };
    let ours = Costs::of(&our_rows, &instructions_of(&PARTS));
    let bare = Costs::of(&bare_rows, &instructions_of(&BARE_PARTS));

    let core = if two_cores { "another core" } else { "the same core" };
    let command = format!("benches cycles{}", if two_cores { " --two-cores" } else { "" });
    let mut section = Section::begin(&format!("{frame_len} bytes, {layout} rings, guests on {core} (`{command}`)"));
    section.line(format!(
        "medians of {ALTERNATIONS} times {BURSTS} bursts of {BURST}, a frame; the core runs at {:.2} GHz",
        median_of(&mut clocks).unwrap_or(f64::NAN),
    ));
    section.line(String::new());
    ours.tell(&mut section, "qvs", &PARTS);
    section.line(line("Worker::step", median_of(&mut steps).unwrap_or(f64::NAN), None));
    section.line(String::new());
    bare.tell(&mut section, "yardstick", &BARE_PARTS);
    section.line(String::new());
    tell_differences(&mut section, &ours, &bare);
    if frame_len == FRAME_LEN { section.write(PAGE) } else { Ok(()) }
}
