//! What the pipeline costs a packet: the whole, and stage by stage.
//!
//! 64-byte frames, 32 in a batch, 1,000 learnt addresses on either side, no two packets of a batch alike. The batches
//! take turns, so that the MAC table's lines come from where they would in a running switch. Times are of a batch;
//! criterion's elements a second are packets.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pipelines::stage::{Live, Scope};
use pipelines::tables::Tables;
use pipelines::wire::ethernet::{self, EthernetRepr};
use pipelines::wire::ipv4::Ipv4Repr;
use pipelines::wire::udp::{self, UdpRepr};
use pipelines::{STAGES, Standard};
use std::sync::Arc;
use switch::batch::{BURST, Batch};
use switch::config::{Config, MTU_DEFAULT, NetworkConfig, PortConfig};
use switch::ids::{MacAddr, NetworkIndex, PortIndex, QueueIndex, WorkerIndex};
use switch::ledger::{PortLedger, WorkerLedger};
use switch::mac_table::MacTable;
use switch::offload::OffloadClaim;
use switch::publish::PortPlace;
use switch::worker::{Context, Egress, EgressLists, Now, Pipeline};

/// Stations on either side.
const STATIONS: usize = 1000;
/// Batches that take turns; together they name every station.
const BATCHES: usize = STATIONS.div_ceil(BURST);
/// Without the FCS, which a virtio frame does not have.
const FRAME_LEN: usize = 64;

fn station(port: u16, index: usize) -> MacAddr {
    let [high, low] = (index as u16).to_be_bytes();
    MacAddr([2, 0, 0, port as u8, high, low])
}

fn frame(source: MacAddr, destination: MacAddr) -> Vec<u8> {
    let tags = [None, None];
    let (ethernet, len) = EthernetRepr { destination, source, tags, ethertype: ethernet::TYPE_IPV4 }.to_bytes();
    let payload_len = FRAME_LEN - ethernet::LEN - 28;
    let ip = Ipv4Repr {
        source: [10, 0, source.0[4], source.0[5]].into(),
        destination: [10, 1, destination.0[4], destination.0[5]].into(),
        protocol: udp::PROTOCOL,
        hop_limit: 64,
        payload_len: (payload_len + udp::LEN) as u16,
        fragment_words: 0,
        has_more_fragments: false,
    };
    let udp = UdpRepr { source: 1000, destination: 2000, payload_len: payload_len as u16, checksum: 0 };
    [&ethernet[..len], &ip.to_bytes(), &udp.to_bytes(), &vec![0; payload_len]].concat()
}

struct Bench {
    tables: Tables,
    mac_table: MacTable,
    lists: EgressLists,
    places: Vec<Option<PortPlace>>,
    ledger: WorkerLedger,
    batches: Vec<Batch<'static>>,
    turn: usize,
}

impl Bench {
    /// Two ports on one network; with `fixed`, the ingress port's stations are fixed instead of learnt.
    fn new(are_fixed: bool) -> Bench {
        let macs = if are_fixed { (0..STATIONS).map(|index| station(0, index)).collect() } else { Vec::new() };
        let port = |index: u16, macs| PortConfig {
            index: PortIndex(index),
            interface: format!("vm-{index}").into(),
            network: Some(NetworkIndex(0)),
            is_admin_up: true,
            mtu: MTU_DEFAULT,
            macs,
        };
        let network = NetworkConfig { index: NetworkIndex(0), id: "blue".into() };
        let config = Config::new(vec![network], vec![port(0, macs), port(1, Vec::new())]).expect("a legal config");
        let mac_table = MacTable::new(131_072, 300);
        for port in [0, 1] {
            for index in 0..STATIONS {
                mac_table.learn(NetworkIndex(0), station(port, index), PortIndex(port), Now::default());
            }
        }
        let batches = (0..BATCHES)
            .map(|turn| {
                let mut batch = Batch::new();
                for slot in 0..BURST {
                    // Strides without a common factor, so that pairs vary.
                    let index = turn * BURST + slot;
                    let frame = frame(station(0, index * 7 % STATIONS), station(1, index * 11 % STATIONS));
                    let mut packet = batch.start(PortIndex(0), QueueIndex(0)).expect("a burst has room");
                    packet.head(frame.len()).expect("64 bytes fit").copy_from_slice(&frame);
                    packet.commit(OffloadClaim::default());
                }
                batch
            })
            .collect();
        let place = || Some(PortPlace { port: None, ledger: Arc::new(PortLedger::new(1)) });
        Bench {
            tables: Tables::compile(&config),
            mac_table,
            lists: EgressLists::default(),
            places: vec![place(), place()],
            ledger: WorkerLedger::default(),
            batches,
            turn: 0,
        }
    }

    fn turn(&mut self, work: impl FnOnce(&Tables, &Context<'_>, &mut Batch<'_>, &mut Egress<'_>)) {
        self.turn = (self.turn + 1) % BATCHES;
        let context =
            Context { now: Now::default(), mac_table: &self.mac_table, worker: WorkerIndex(0), generation: 0 };
        let mut egress = Egress::new(&mut self.lists, &self.places, context.worker, &self.ledger);
        work(&self.tables, &context, &mut self.batches[self.turn], &mut egress);
        self.lists.clear();
    }

    fn whole(&mut self) {
        self.turn(|tables, context, batch, egress| Standard::run(tables, context, batch, egress));
    }

    fn stage(&mut self, index: usize) {
        self.turn(|tables, context, batch, egress| {
            let scope = Scope::new(tables, context, PortIndex(0));
            (STAGES[index].run)(&scope, batch, &mut Live::first(BURST), egress);
        });
    }
}

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pipeline");
    group.throughput(Throughput::Elements(BURST as u64));
    for (name, are_fixed) in [("whole_learnt", false), ("whole_fixed", true)] {
        let mut bench = Bench::new(are_fixed);
        bench.whole();
        assert_eq!(bench.ledger.balance().dropped, 0, "every frame is forwarded");
        group.bench_function(name, |bencher| bencher.iter(|| bench.whole()));
    }
    for (index, stage) in STAGES.iter().enumerate() {
        let mut bench = Bench::new(false);
        for _ in 0..BATCHES {
            bench.whole();
        }
        group.bench_function(stage.name, |bencher| bencher.iter(|| bench.stage(index)));
    }
    group.finish();
}

criterion_group!(group, benches);
criterion_main!(group);
