//! What one frame pays at the MAC table: a lookup of its destination and a learn of its source, in bursts of 64 as the
//! bridge stage makes them, with a prefetch pass before.
//!
//! One thread. Times are per burst of 64; "elements" are addresses. Run with `cargo bench -p benches --bench mac_table`.

// Criterion's macros make undocumented items.
#![allow(missing_docs)]

use benches::cost::tell_clock;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use switch::batch::BURST;
use switch::ids::{MacAddr, MacBits, NetworkIndex, PortIndex};
use switch::mac_table::{BurstView, Learned, MacTable, Probe};
use switch::worker::Now;

/// Learnt addresses in the table.
const SIZES: [u32; 3] = [1_000, 100_000, 1_000_000];
/// Ports they are spread over, so that none meets its cap.
const PORTS: u32 = 64;
const NETWORK: NetworkIndex = NetworkIndex(1);
const NOW: Now = Now { ns: 1_000_000_000 };

/// Station `number`: its address and the port it is on.
fn station(number: u32) -> (MacBits, PortIndex) {
    (MacAddr::from_u64(0x0200_0000_0000 | u64::from(number)).into(), PortIndex((number % PORTS) as u16))
}

fn filled(size: u32) -> MacTable {
    let table = MacTable::new(size as usize + size as usize / 8, 300);
    for number in 0..size {
        let (mac, port) = station(number);
        table.learn(NETWORK, mac.into(), port, NOW);
    }
    table
}

/// Bursts of random stations of one port each, the same ones each time.
struct Bursts {
    random: u64,
    size: u32,
}

impl Bursts {
    fn next(&mut self) -> (PortIndex, [MacBits; BURST]) {
        let mut below = |end: u32| {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (((self.random >> 32) * u64::from(end)) >> 32) as u32
        };
        let port = below(PORTS);
        let macs = std::array::from_fn(|_| station(below(self.size / PORTS) * PORTS + port).0);
        (PortIndex(port as u16), macs)
    }
}

/// Hashes all addresses of a burst first and sends for their lines, as the bridge does.
fn probes(macs: &BurstView<'_>, burst: &[MacBits; BURST]) -> [Probe; BURST] {
    burst.map(|mac| {
        let probe = macs.probe(mac);
        macs.prefetch(&probe);
        probe
    })
}

fn known_addresses(criterion: &mut Criterion) {
    tell_clock();
    for size in SIZES {
        let table = filled(size);
        let mut bursts = Bursts { random: 1, size };
        let mut group = criterion.benchmark_group("mac_table");
        group.throughput(Throughput::Elements(BURST as u64));
        group.bench_function(BenchmarkId::new("no_table", size), |bench| {
            bench.iter(|| black_box(bursts.next()));
        });
        group.bench_function(BenchmarkId::new("lookup", size), |bench| {
            bench.iter(|| {
                let (port, burst) = bursts.next();
                let macs = table.burst(NETWORK, port, NOW);
                probes(&macs, &burst).iter().filter_map(|probe| macs.lookup(probe)).count()
            });
        });
        group.bench_function(BenchmarkId::new("lookup_without_prefetch", size), |bench| {
            bench.iter(|| {
                let (port, burst) = bursts.next();
                let macs = table.burst(NETWORK, port, NOW);
                burst.iter().filter_map(|&mac| macs.lookup(&macs.probe(mac))).count()
            });
        });
        group.bench_function(BenchmarkId::new("learn_known", size), |bench| {
            bench.iter(|| {
                let (port, burst) = bursts.next();
                let macs = table.burst(NETWORK, port, NOW);
                probes(&macs, &burst).iter().filter(|probe| macs.learn(probe) == Learned::Known).count()
            });
        });
        group.bench_function(BenchmarkId::new("sweep_without_finds", size), |bench| {
            bench.iter(|| table.sweep(NOW, |_, _| true));
        });
    }
}

fn new_addresses(criterion: &mut Criterion) {
    for size in SIZES {
        let mut group = criterion.benchmark_group("mac_table");
        group.throughput(Throughput::Elements(BURST as u64));
        // A table at its bound: after the first `size` addresses each new one evicts another.
        let table = filled(size);
        let mut number = size / PORTS;
        group.bench_function(BenchmarkId::new("learn_new", size), |bench| {
            bench.iter(|| {
                let port = number / BURST as u32 % PORTS;
                let burst = std::array::from_fn(|at| station((number + at as u32) * PORTS + port).0);
                number = (number + BURST as u32) % (u32::MAX / PORTS / 2);
                let macs = table.burst(NETWORK, PortIndex(port as u16), NOW);
                for probe in probes(&macs, &burst) {
                    black_box(macs.learn(&probe));
                }
            });
        });
    }
}

criterion_group!(benches, known_addresses, new_addresses);
criterion_main!(benches);
