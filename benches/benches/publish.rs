//! What a change costs both sides: the control thread that compiles and swaps, and the worker that picks it up.
//!
//! `apply` is a whole config of so many ports, 10 a network, compiled and put in force. `idle_round` is a worker's round without
//! a port to poll; `pick_up` is the same round when a new snapshot waits. A reading of the clock, some 20 ns, is in the last.

use benches::NOW;
use benches::cost::tell_clock;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use pipelines::Standard;
use std::time::{Duration, Instant};
use switch::config::{Config, MTU_DEFAULT, NetworkConfig, PortConfig};
use switch::ids::{NetworkIndex, PortIndex};
use switch::poll::Poll;
use switch::switch::{Switch, SwitchConfig, WorkerSpec};

/// Ports of a network.
const MEMBERS: u16 = 10;

fn config(ports: u16) -> Config {
    let network = |index| NetworkConfig { index: NetworkIndex(index), id: format!("network{index}").into() };
    let port = |index| PortConfig {
        index: PortIndex(index),
        interface: format!("if{index}").into(),
        network: Some(NetworkIndex(index / MEMBERS)),
        is_admin_up: true,
        mtu: MTU_DEFAULT,
        macs: vec![],
        allowed_macs: Vec::new(),
    };
    let networks = (0..ports.div_ceil(MEMBERS)).map(network).collect();
    Config::new(networks, (0..ports).map(port).collect()).expect("a legal config")
}

fn publish(criterion: &mut Criterion) {
    tell_clock();
    let mut group = criterion.benchmark_group("publish");
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    for ports in [10, 1000] {
        let workers = vec![WorkerSpec::default()];
        let settings = SwitchConfig { workers, poll: Poll::Always, mac_max: 1024, mac_age_s: 300 };
        let switch = Switch::<Standard>::new(&settings).expect("there are descriptors");
        let mut worker = switch.take_workers().pop().expect("it has one worker");
        let config = config(ports);
        switch.apply(config.clone());
        group.bench_function(BenchmarkId::new("apply", ports), |bench| {
            bench.iter(|| {
                switch.apply(config.clone());
                worker.step(NOW)
            });
        });
        group.bench_function(BenchmarkId::new("idle_round", ports), |bench| bench.iter(|| worker.step(NOW)));
        group.bench_function(BenchmarkId::new("pick_up", ports), |bench| {
            bench.iter_custom(|rounds| {
                let mut sum = Duration::ZERO;
                for _ in 0..rounds {
                    switch.apply(config.clone());
                    let start = Instant::now();
                    worker.step(NOW);
                    sum += start.elapsed();
                }
                sum
            });
        });
    }
    group.finish();
}

criterion_group!(benches, publish);
criterion_main!(benches);
