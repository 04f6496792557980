//! What one frame pays at the MAC table: a lookup of its destination and a learn of its source, in bursts of 32 as the
//! bridge stage makes them, with a prefetch pass before.
//!
//! One thread. Times are per burst of 32; "elements" are addresses. Run with `cargo bench -p benches --bench mac_table`.

// Criterion's macros make undocumented items.
#![allow(missing_docs)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use switch::batch::BURST;
use switch::ids::{MacAddr, NetworkIndex, PortIndex};
use switch::mac_table::MacTable;
use switch::worker::Now;

/// Learnt addresses in the table.
const SIZES: [u32; 3] = [1_000, 100_000, 1_000_000];
/// Ports they are spread over, so that none meets its cap.
const PORTS: u32 = 64;
const NOW: Now = Now { ns: 1_000_000_000 };

fn address(number: u32) -> (NetworkIndex, MacAddr, PortIndex) {
    let mac = MacAddr::from_u64(0x0200_0000_0000 | u64::from(number));
    (NetworkIndex((number % 16) as u16), mac, PortIndex((number % PORTS) as u16))
}

fn filled(size: u32) -> MacTable {
    let table = MacTable::new(size as usize + size as usize / 8, 300);
    for number in 0..size {
        let (network, mac, port) = address(number);
        table.learn(network, mac, port, NOW);
    }
    table
}

/// Bursts of random addresses below `size`, the same ones each time.
struct Bursts {
    random: u64,
    size: u32,
}

impl Bursts {
    fn next(&mut self) -> [(NetworkIndex, MacAddr, PortIndex); BURST] {
        std::array::from_fn(|_| {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            address((((self.random >> 32) * u64::from(self.size)) >> 32) as u32)
        })
    }
}

fn known_addresses(criterion: &mut Criterion) {
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
                let burst = bursts.next();
                for (network, mac, _) in &burst {
                    let view = table.burst(*network, PortIndex(0), Now::default());
                    view.prefetch(&view.probe((*mac).into()));
                }
                burst.iter().filter_map(|(network, mac, _)| table.lookup(*network, *mac, NOW)).count()
            });
        });
        group.bench_function(BenchmarkId::new("lookup_without_prefetch", size), |bench| {
            bench.iter(|| {
                let burst = bursts.next();
                burst.iter().filter_map(|(network, mac, _)| table.lookup(*network, *mac, NOW)).count()
            });
        });
        group.bench_function(BenchmarkId::new("learn_known", size), |bench| {
            bench.iter(|| {
                let burst = bursts.next();
                for (network, mac, _) in &burst {
                    let view = table.burst(*network, PortIndex(0), Now::default());
                    view.prefetch(&view.probe((*mac).into()));
                }
                for (network, mac, port) in burst {
                    black_box(table.learn(network, mac, port, NOW));
                }
            });
        });
        group.bench_function(BenchmarkId::new("sweep_without_finds", size), |bench| {
            bench.iter(|| table.sweep(NOW));
        });
    }
}

fn new_addresses(criterion: &mut Criterion) {
    for size in SIZES {
        let mut group = criterion.benchmark_group("mac_table");
        group.throughput(Throughput::Elements(BURST as u64));
        // A table at its bound: after the first `size` addresses each new one evicts another.
        let table = filled(size);
        let mut number = size;
        group.bench_function(BenchmarkId::new("learn_new", size), |bench| {
            bench.iter(|| {
                let first = number;
                number = number.wrapping_add(BURST as u32);
                for number in first..first + BURST as u32 {
                    let (network, mac, _) = address(number);
                    let view = table.burst(network, PortIndex(0), Now::default());
                    view.prefetch(&view.probe(mac.into()));
                }
                for number in first..first + BURST as u32 {
                    let (network, mac, port) = address(number);
                    black_box(table.learn(network, mac, port, NOW));
                }
            });
        });
    }
}

criterion_group!(benches, known_addresses, new_addresses);
criterion_main!(benches);
