//! A whole round: frames from one guest's ring through the pipeline into another's, on one thread.
//!
//! Both guests are drivers on the same thread, so nothing crosses cores: this is the cost of the instructions and of the L1
//! and L2 caches. Under `valgrind --tool=callgrind` the same program counts instructions, which do not depend on the load
//! of the machine: `cargo bench --bench worker -- --profile-time 1`.

use benches::Rig;
use benches::cost::tell_clock;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::time::Duration;

fn worker(criterion: &mut Criterion) {
    tell_clock();
    let mut group = criterion.benchmark_group("worker");
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    for size in [60, 508, 1514] {
        let mut rig = Rig::new(size);
        group.throughput(Throughput::Elements(64));
        group.bench_function(BenchmarkId::new("round", size), |bench| {
            bench.iter(|| assert_eq!(rig.round(), 64));
        });
    }
    group.finish();
}

criterion_group!(benches, worker);
criterion_main!(benches);
