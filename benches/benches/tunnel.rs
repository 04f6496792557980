//! What a tunnel costs a packet: outer headers on and off again for one peer, and a burst from an uplink beside the same burst
//! between two ports of this host.
//!
//! Times are of a batch; criterion's elements a second are packets. `put_inner` and `put_outer` are what filling the batch alone
//! takes and belong to `local` and `decap`: (decap - put_outer) - (local - put_inner) is what taking the headers off costs.

use benches::cost::{cycles_per_ns, median_of, tell_clock};
use benches::tunnel::Tunnels;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::time::Instant;
use switch::batch::{BURST, Batch};
use switch::underlay::TunnelKind;

/// Turns of which the median is told in cycles.
const TURNS: usize = 20_001;

/// Cycles a packet of one turn, the median of many.
fn cycles(mut turn: impl FnMut() -> usize) -> f64 {
    let mut samples: Vec<f64> = (0..TURNS)
        .map(|_| {
            let start = Instant::now();
            black_box(turn());
            start.elapsed().as_nanos() as f64
        })
        .collect();
    median_of(&mut samples).unwrap_or(f64::NAN) * cycles_per_ns() / BURST as f64
}

fn benches(criterion: &mut Criterion) {
    tell_clock();
    for kind in TunnelKind::ALL {
        let mut tunnels = Tunnels::new(kind);
        let mut batch = Batch::new();
        let mut group = criterion.benchmark_group(format!("tunnel_{}", kind.name()));
        group.throughput(Throughput::Elements(BURST as u64));
        group.bench_function("put_inner", |bench| bench.iter(|| tunnels.put(&mut batch, false)));
        group.bench_function("put_outer", |bench| bench.iter(|| tunnels.put(&mut batch, true)));
        group.bench_function("local", |bench| bench.iter(|| tunnels.local(&mut batch)));
        group.bench_function("decap", |bench| bench.iter(|| tunnels.decap(&mut batch)));
        tunnels.local(&mut batch);
        group.bench_function("encap", |bench| bench.iter(|| tunnels.encap(&mut batch)));
        group.finish();

        let clock = cycles(|| 0);
        let inner = cycles(|| tunnels.put(&mut batch, false));
        let outer = cycles(|| tunnels.put(&mut batch, true));
        let local = cycles(|| tunnels.local(&mut batch));
        let decap = cycles(|| tunnels.decap(&mut batch));
        tunnels.local(&mut batch);
        let encap = cycles(|| tunnels.encap(&mut batch)) - clock;
        let decap = (decap - outer) - (local - inner);
        let sum = encap + decap;
        println!("{}: encap {encap:.1} + decap {decap:.1} = {sum:.1} cycles a packet", kind.name());
        assert_eq!(tunnels.dropped(), 0, "every frame is forwarded");
    }
}

criterion_group!(group, benches);
criterion_main!(group);
