//! What the pipeline costs a packet: the whole, and and its stages one after the other.
//!
//! 64-byte frames, 32 in a batch, 1,000 learnt addresses on either side, no two packets of a batch alike. One batch is
//! used again and again, as in a worker, and gets other addresses each time; `addresses` is what that alone costs and
//! belongs to every other figure. Times are of a batch; criterion's elements a second are packets.

use benches::cost::tell_clock;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pipelines::stage::{Notes, Scope};
use pipelines::tables::Tables;
use pipelines::wire::ethernet::{self, EthernetRepr};
use pipelines::wire::ipv4::Ipv4Repr;
use pipelines::wire::udp::{self, UdpRepr};
use pipelines::{STAGES, Standard};
use std::hint::black_box;
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
/// Turns in which every station is named.
const TURNS: usize = STATIONS.div_ceil(BURST);
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

/// The addresses of a packet as they stand in it, destination first.
type Addresses = [u8; 12];

struct Bench {
    tables: Tables,
    mac_table: MacTable,
    lists: EgressLists,
    places: Vec<Option<PortPlace>>,
    ledger: WorkerLedger,
    batch: Batch<'static>,
    turns: Vec<[Addresses; BURST]>,
    turn: usize,
}

impl Bench {
    /// Two ports on one network. Many stations send by port 0, all learnt; or one, whose address is fixed.
    fn new(is_fixed: bool) -> Bench {
        let source = |index| station(0, if is_fixed { 0 } else { index });
        let port = |index: u16, macs| PortConfig {
            index: PortIndex(index),
            interface: format!("vm-{index}").into(),
            network: Some(NetworkIndex(0)),
            is_admin_up: true,
            mtu: MTU_DEFAULT,
            macs,
            allowed_macs: Vec::new(),
        };
        let network = NetworkConfig { index: NetworkIndex(0), id: "blue".into() };
        let macs = if is_fixed { vec![source(0)] } else { Vec::new() };
        let config = Config::new(vec![network], vec![port(0, macs), port(1, Vec::new())]).expect("a legal config");
        let mac_table = MacTable::new(131_072, 300);
        for port in [0, 1] {
            for index in 0..STATIONS {
                mac_table.learn(NetworkIndex(0), station(port, index), PortIndex(port), Now::default());
            }
        }
        let addresses = |index: usize| -> Addresses {
            // Strides without a common factor, so that pairs vary.
            let (destination, source) = (station(1, index * 11 % STATIONS), source(index * 7 % STATIONS));
            std::array::from_fn(|at| if at < 6 { destination.0[at] } else { source.0[at - 6] })
        };
        let turns = (0..TURNS).map(|turn| std::array::from_fn(|slot| addresses(turn * BURST + slot))).collect();
        let mut batch = Batch::new();
        for _ in 0..BURST {
            let frame = frame(source(0), station(1, 0));
            let mut packet = batch.start(PortIndex(0), QueueIndex(0)).expect("a burst has room");
            packet.head(frame.len()).expect("64 bytes fit").copy_from_slice(&frame);
            packet.commit(OffloadClaim::default());
        }
        let place = || Some(PortPlace { port: None, ledger: Arc::new(PortLedger::new(1)), captures: None });
        Bench {
            tables: Tables::compile(&config),
            mac_table,
            lists: EgressLists::default(),
            places: vec![place(), place()],
            ledger: WorkerLedger::default(),
            batch,
            turns,
            turn: 0,
        }
    }

    fn turn(&mut self, work: impl FnOnce(&Tables, &Context<'_>, &mut Batch<'_>, &mut Egress<'_>)) {
        self.turn = (self.turn + 1) % TURNS;
        for (packet, addresses) in self.batch.packets_mut().iter_mut().zip(&self.turns[self.turn]) {
            packet.head_mut()[..12].copy_from_slice(addresses);
        }
        let context =
            Context { now: Now::default(), mac_table: &self.mac_table, worker: WorkerIndex(0), generation: 0 };
        let mut egress = Egress::new(&mut self.lists, &self.places, context.worker, &self.ledger);
        work(&self.tables, &context, &mut self.batch, &mut egress);
        self.lists.clear();
    }

    fn whole(&mut self) {
        self.turn(Standard::run);
    }

    /// The stages up to this one. The last one's answer, with the look into the MAC table, is in the whole only.
    fn up_to(&mut self, index: usize) {
        self.turn(|tables, context, batch, _| {
            let scope = Scope::new(tables, context, PortIndex(0));
            for packet in batch.packets_mut() {
                let mut notes = Notes::default();
                for stage in &STAGES[..=index] {
                    (stage.run)(&scope, packet, &mut notes).expect("every frame passes every stage");
                }
                black_box(&notes);
            }
        });
    }
}

fn benches(criterion: &mut Criterion) {
    tell_clock();
    let mut group = criterion.benchmark_group("pipeline");
    group.throughput(Throughput::Elements(BURST as u64));
    for (name, is_fixed) in [("whole_many_sources", false), ("whole_one_fixed_source", true)] {
        let mut bench = Bench::new(is_fixed);
        bench.whole();
        assert_eq!(bench.ledger.balance().dropped, 0, "every frame is forwarded");
        group.bench_function(name, |bencher| bencher.iter(|| bench.whole()));
    }
    let mut bench = Bench::new(false);
    bench.whole();
    group.bench_function("addresses", |bencher| bencher.iter(|| bench.turn(|_, _, _, _| {})));
    for (index, stage) in STAGES.iter().enumerate() {
        let name = format!("up_to_{}", stage.name);
        group.bench_function(name, |bencher| bencher.iter(|| bench.up_to(index)));
    }
    group.finish();
}

criterion_group!(group, benches);
criterion_main!(group);
