//! What a burst of frames costs at a TAP: a system call a frame, and the kernel's copy.
//!
//! Needs CAP_NET_ADMIN; so that nothing of the host is touched: `unshare -rn cargo bench -p benches --bench tap`. `rx` reads
//! frames that a packet socket sent into the interface, `tx` writes frames that no program of the host waits for.
//! "Elements" are frames.

use benches::cost::tell_clock;
use benches::rig::frames;
use benches::yardstick::Seat;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::sync::Arc;
use std::time::{Duration, Instant};
use switch::af_packet::RawSocket;
use switch::batch::{BURST, Batch};
use switch::ids::{PortIndex, QueueIndex};
use switch::ledger::Tally;
use switch::offload::OffloadClaim;
use switch::packet::HEAD_COPY;
use switch::port::Port;
use switch::segment::Segment;
use switch::tap::{Tap, TapConfig};

/// A name no interface of the host has.
const NAME: &str = "qvsbench0";

/// Takes what is there; answers how many frames.
fn take<'r>(port: &'r dyn Port, batch: &mut Batch<'r>, tally: &mut Tally) -> usize {
    batch.clear(BURST, usize::MAX);
    tally.clear();
    port.rx(PortIndex(0), QueueIndex(0), batch, tally);
    port.rx_done(QueueIndex(0));
    tally.packets as usize
}

fn time_rx(port: &dyn Port, wire: &RawSocket, frames: &[Vec<u8>], bursts: u64) -> Duration {
    let (mut batch, mut tally) = (Batch::new(), Tally::default());
    // What the host says of itself when an interface comes up.
    while take(port, &mut batch, &mut tally) > 0 {}
    let mut sum = Duration::ZERO;
    for _ in 0..bursts {
        for frame in &frames[..BURST] {
            wire.send(frame).expect("the interface is up");
        }
        let start = Instant::now();
        let mut count = 0;
        while count < BURST {
            count += take(port, &mut batch, &mut tally);
        }
        sum += start.elapsed();
    }
    sum
}

fn time_tx(port: &dyn Port, frames: &[Vec<u8>], bursts: u64) -> Duration {
    let (mut batch, mut tally) = (Batch::new(), Tally::default());
    for frame in &frames[..BURST] {
        let (head, tail) = frame.split_at(frame.len().min(HEAD_COPY));
        let mut packet = batch.start(PortIndex(0), QueueIndex(0)).expect("a burst has room");
        packet.head(head.len()).expect("it fits").copy_from_slice(head);
        if !tail.is_empty() {
            packet.tail(Segment::from(tail)).expect("it is the only one");
        }
        packet.commit(OffloadClaim::default());
    }
    let picks: [u8; BURST] = std::array::from_fn(|at| at as u8);
    let start = Instant::now();
    for _ in 0..bursts {
        tally.clear();
        port.tx(QueueIndex(0), &mut batch, &picks, &mut tally);
    }
    assert_eq!(tally.packets as usize, BURST, "no frame is dropped");
    start.elapsed()
}

fn taps(criterion: &mut Criterion) {
    tell_clock();
    let seat = Arc::new(Seat::default());
    let config = TapConfig { name: NAME.to_owned(), netns: None, mtu: None, queues: 1, reopen: false };
    let tap = Tap::open(config, seat.clone()).expect("CAP_NET_ADMIN; try `unshare -rn`");
    let wire = RawSocket::open(NAME).expect("the interface is there");
    let port = seat.hold().clone().expect("the TAP published itself");
    let mut group = criterion.benchmark_group("tap");
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    group.throughput(Throughput::Elements(BURST as u64));
    for len in [60, 1514] {
        let frames = frames(0, 1, len);
        group.bench_function(BenchmarkId::new("rx", len), |bench| {
            bench.iter_custom(|bursts| time_rx(&*port, &wire, &frames, bursts));
        });
        group.bench_function(BenchmarkId::new("tx", len), |bench| {
            bench.iter_custom(|bursts| time_tx(&*port, &frames, bursts));
        });
    }
    group.finish();
    drop(port);
    tap.remove();
}

criterion_group!(benches, taps);
criterion_main!(benches);
