//! What cutting a large frame costs a segment: its headers, its checksums, its slices of the tail.
//!
//! 64,000 bytes of TCP in segments of 1,448; nothing is copied but headers. Completing the checksum reads every byte, which
//! is spared where the receiver completes it itself. "Elements" are segments.

use benches::cost::tell_clock;
use benches::large;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use switch::batch::{Batch, Fit};
use switch::offload::EgressOffloads;

fn cut(batch: &mut Batch<'_>, egress: EgressOffloads) -> u64 {
    assert!(batch.fit(0, egress) == Fit::Cut, "the receiver does not take it whole");
    let mut cut = batch.cut(0, egress);
    let mut count = 0;
    while let Some(segment) = cut.next_segment() {
        black_box(segment.0.head());
        count += 1;
    }
    count
}

fn segmentation(criterion: &mut Criterion) {
    tell_clock();
    let frame = large::frame();
    let mut batch = Batch::new();
    let mut group = criterion.benchmark_group("segmentation");
    for (name, checksum) in [("tcp4", false), ("tcp4_checksum_left", true)] {
        let egress = EgressOffloads { checksum, ..EgressOffloads::default() };
        large::put(&mut batch, &frame);
        group.throughput(Throughput::Elements(cut(&mut batch, egress)));
        group.bench_function(name, |bench| {
            bench.iter(|| {
                large::put(&mut batch, &frame);
                cut(&mut batch, egress)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, segmentation);
criterion_main!(benches);
