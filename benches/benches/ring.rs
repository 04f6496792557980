//! What a burst of frames costs at the rings: taken from a guest, and written to one, apart, for both layouts.
//!
//! The guests are played by the same thread and their rings lie in the first caches. `rx` is with the giving back; both are
//! timed without what stands between them. A reading of the clock, some 20 ns, is in every burst. "Elements" are frames.

use benches::cost::tell_clock;
use benches::rig::{Guest, Rig, RigConfig, layout_features};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::time::{Duration, Instant};
use switch::batch::{BURST, Batch};
use switch::ids::{PortIndex, QueueIndex};
use switch::ledger::Tally;

/// What is timed.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Rx,
    Tx,
}

fn time(rig: &mut Rig, way: Way, bursts: u64) -> Duration {
    let snapshot = rig.snapshot();
    let port = |index: u16| {
        let place = snapshot.place(PortIndex(index)).expect("the rig has this port");
        place.port.as_deref().expect("its guest is connected")
    };
    let (source, sink, queue) = (port(0), port(1), QueueIndex(0));
    let picks: [u8; BURST] = std::array::from_fn(|at| at as u8);
    let (mut batch, mut tally) = (Batch::new(), Tally::default());
    let [from, to] = &mut rig.halves[0].guests;
    let (mut rx, mut tx) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..bursts {
        from.offer();
        batch.clear(BURST, usize::MAX);
        tally.clear();
        let start = Instant::now();
        source.rx(PortIndex(0), queue, &mut batch, &mut tally);
        rx += start.elapsed();
        assert_eq!(batch.len(), BURST, "a whole burst");
        tally.clear();
        let start = Instant::now();
        sink.tx(queue, &mut batch, &picks, &mut tally);
        tx += start.elapsed();
        assert_eq!(tally.packets as usize, BURST, "no frame is dropped");
        let start = Instant::now();
        source.rx_done(queue);
        rx += start.elapsed();
        Guest::take(to);
    }
    if way == Way::Rx { rx } else { tx }
}

fn rings(criterion: &mut Criterion) {
    tell_clock();
    let mut group = criterion.benchmark_group("ring");
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    group.throughput(Throughput::Elements(BURST as u64));
    for (layout, is_packed) in [("split", false), ("packed", true)] {
        for len in [60, 1514] {
            let mut rig = Rig::with(RigConfig { features: layout_features(is_packed), ..RigConfig::new(len) });
            for (name, way) in [("rx", Way::Rx), ("tx", Way::Tx)] {
                group.bench_function(BenchmarkId::new(format!("{layout}_{name}"), len), |bench| {
                    bench.iter_custom(|bursts| time(&mut rig, way, bursts));
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, rings);
criterion_main!(benches);
