//! The control plane at 1,000 ports: lowering the whole state, copying the model, and a write by HTTP.
//!
//! The bar for the first is 2 ms; for a write from request to answer, without the store's commit, 2 ms too (the fake
//! plugin has no store). `model_clone` is what a write pays for a copy of the model that shares all it can.

use api::host::{DeviceSpec, Plug};
use api::lowering::{Indices, lower};
use api::model::{AdminState, InterfaceId, LogicalPort, Model, Network};
use api::plugin::Plugin;
use api::plugins::FakePlugin;
use api::server::{ServerConfig, serve};
use criterion::{Criterion, criterion_group, criterion_main};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

const PORTS: usize = 1_000;
const NETWORKS: usize = 100;

/// 100 networks of 10 tenants, 1,000 ports, all attached and plugged with a fixed MAC.
fn state() -> (Model, BTreeMap<InterfaceId, Plug>) {
    let uuid = |kind: usize, at: usize| format!("{kind:08x}-0000-4000-8000-{at:012x}");
    let network = |at: usize| Network {
        id: uuid(1, at).into(),
        tenant: format!("tenant{}", at % 10).into(),
        name: Some(format!("network {at}").into()),
        network_type: Default::default(),
        serial: at as u64,
    };
    let port = |at: usize| LogicalPort {
        id: uuid(2, at).into(),
        network: uuid(1, at % NETWORKS).into(),
        state: AdminState::Active,
        attachment: Some(uuid(3, at).into()),
        pairs: [].into(),
        serial: (NETWORKS + at) as u64,
    };
    let plug = |at: usize| Plug {
        macs: vec![format!("02:00:00:00:{:02x}:{:02x}", at / 256, at % 256)],
        ..Plug::new(uuid(3, at), DeviceSpec::Tap { name: format!("tap{at}"), netns: None, queues: 1 })
    };
    let model = Model::from_records((0..NETWORKS).map(network).collect(), (0..PORTS).map(port).collect());
    let plugs = (0..PORTS).map(plug).map(|plug| (plug.interface.clone(), plug)).collect();
    (model.expect("ids are unique"), plugs)
}

fn lowering(criterion: &mut Criterion) {
    let (model, plugs) = state();
    let mut indices = Indices::default();
    criterion.bench_function("lower_1000_ports", |bencher| {
        bencher.iter(|| black_box(lower(black_box(&model), black_box(&plugs), &mut indices)));
    });
    criterion.bench_function("model_clone_1000_ports", |bencher| bencher.iter(|| black_box(model.clone())));
}

fn write_by_http(criterion: &mut Criterion) {
    let plugin = FakePlugin::new();
    let network = plugin.create_network("red", None).expect("the fake plugin refuses no name");
    let make = |_| plugin.create_port("red", &network, "ACTIVE").expect("the network is there");
    let ports: Vec<_> = (0..PORTS).map(make).collect();
    let path = format!("/v1.1/tenants/red/networks/{network}/ports/{}", ports[0]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let server = serve(listener, ServerConfig::default(), Arc::new(plugin), std::future::pending());
        runtime.expect("threads can be made").block_on(server)
    });
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.set_nodelay(true).expect("it is TCP");
    let body = r#"{"port": {"state": "ACTIVE"}}"#;
    let length = body.len();
    let request = format!("PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}");
    let mut buffer = [0; 4096];
    criterion.bench_function("http_update_port_of_1000", |bencher| {
        bencher.iter(|| {
            stream.write_all(request.as_bytes()).expect("the server reads");
            let count = stream.read(&mut buffer).expect("the server answers");
            assert!(buffer[..count].starts_with(b"HTTP/1.1 204 "), "{:?}", String::from_utf8_lossy(&buffer[..count]));
        });
    });
}

criterion_group!(benches, lowering, write_by_http);
criterion_main!(benches);
