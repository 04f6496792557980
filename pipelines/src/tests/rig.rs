//! A switch of one worker and fake ports: frames go in, frames and counters come out.
//!
//! The rig runs the real [`Worker`], so a test sees what a device would see. It asserts after every step that the books
//! balance.

use crate::Standard;
use crate::tables::Tables;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use switch::batch::Batch;
use switch::config::{Config, NetworkConfig, PortConfig};
use switch::ids::{MacAddr, NetworkIndex, PortIndex, QueueIndex, WorkerIndex};
use switch::ledger::{DropReason, PortLedger, Tally, WorkerLedger};
use switch::mac_table::MacTable;
use switch::offload::OffloadClaim;
use switch::packet::HEAD_COPY;
use switch::port::Port;
use switch::publish::{Parts, PortPlace, Publisher};
use switch::segment::Segment;
use switch::worker::{Context, Now, Pipeline, Worker};

/// 02:00:00:00:00:`last`.
pub(crate) fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

/// A port that is up, with MTU 1500 and no fixed MACs.
pub(crate) fn port(index: u16, network: Option<u16>) -> PortConfig {
    PortConfig {
        index: PortIndex(index),
        interface: format!("vm-{index}").into(),
        network: network.map(NetworkIndex),
        is_admin_up: true,
        mtu: 1500,
        macs: Vec::new(),
        allowed_macs: Vec::new(),
    }
}

/// A config of these ports and networks 1 ("blue"), 2 ("red") and 3 ("green").
pub(crate) fn config(ports: Vec<PortConfig>) -> Config {
    let networks = [(1, "blue"), (2, "red"), (3, "green")]
        .map(|(index, id)| NetworkConfig { index: NetworkIndex(index), id: id.into() });
    Config::new(networks.to_vec(), ports).unwrap()
}

/// A frame to put in, and where its head ends.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) bytes: Vec<u8>,
    pub(crate) claim: OffloadClaim,
    pub(crate) head_len: usize,
}

impl From<Vec<u8>> for Input {
    fn from(bytes: Vec<u8>) -> Input {
        Input { bytes, claim: OffloadClaim::default(), head_len: HEAD_COPY }
    }
}

/// Puts a frame into a batch.
pub(crate) fn put<'r>(batch: &mut Batch<'r>, ingress: PortIndex, input: &'r Input) {
    let mut packet = batch.start(ingress, QueueIndex(0)).unwrap();
    let head_len = input.head_len.min(input.bytes.len());
    packet.head(head_len).unwrap().copy_from_slice(&input.bytes[..head_len]);
    if head_len < input.bytes.len() {
        packet.tail(Segment::from(&input.bytes[head_len..])).unwrap();
    }
    packet.commit(input.claim);
}

/// Presents given frames once and keeps what is sent to it.
#[derive(Default)]
struct FakePort {
    inputs: Vec<Input>,
    taken: Mutex<bool>,
    outputs: Mutex<Vec<Vec<u8>>>,
}

impl Port for FakePort {
    fn rx_queues(&self) -> u16 {
        1
    }
    fn tx_queues(&self) -> u16 {
        1
    }
    fn rx<'r>(&'r self, ingress: PortIndex, _: QueueIndex, batch: &mut Batch<'r>, tally: &mut Tally) {
        if std::mem::replace(&mut *self.taken.lock().unwrap(), true) {
            return;
        }
        for input in &self.inputs {
            put(batch, ingress, input);
            tally.moved(input.bytes.len());
        }
    }
    fn rx_done(&self, _: QueueIndex) {}
    fn tx(&self, _: QueueIndex, batch: &mut Batch<'_>, picks: &[u8], tally: &mut Tally) {
        for &pick in picks {
            let (packet, tail) = batch.frame(usize::from(pick));
            let mut bytes = packet.head().to_vec();
            for segment in tail {
                let start = bytes.len();
                bytes.resize(start + segment.len() as usize, 0);
                segment.read(&mut bytes[start..]);
            }
            assert_eq!(bytes.len(), packet.len());
            tally.moved(bytes.len());
            self.outputs.lock().unwrap().push(bytes);
        }
    }
    fn wake_fd(&self, _: QueueIndex) -> Option<BorrowedFd<'_>> {
        None
    }
    fn arm(&self, _: QueueIndex) -> bool {
        false
    }
    fn disarm(&self, _: QueueIndex) {}
}

/// What a step did, sorted: frames received by ports, and drops counted at ports.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Outcome {
    /// Port and frame, in the order sent to that port.
    pub(crate) received: Vec<(u16, Vec<u8>)>,
    /// Port, whether counted on its way in, reason's name, count.
    pub(crate) drops: Vec<(u16, bool, &'static str, u64)>,
}

/// The switch under test.
pub(crate) struct Rig {
    publisher: Publisher<Tables>,
    worker: Worker<Standard>,
    pub(crate) mac_table: Arc<MacTable>,
    config: Arc<Config>,
}

impl Rig {
    pub(crate) fn new(config: Config) -> Rig {
        let publisher = Publisher::new(1, Standard::compile(&config));
        let mac_table = Arc::new(MacTable::new(4096, u32::MAX / 2));
        for port in config.ports() {
            mac_table.set_port_up(port.index, true);
            for &mac in &port.macs {
                if let Some(network) = port.network {
                    mac_table.insert_static(network, mac, port.index);
                }
            }
        }
        let worker =
            Worker::new(publisher.subscribe(WorkerIndex(0)), mac_table.clone(), Arc::new(WorkerLedger::default()));
        Rig { publisher, worker, mac_table, config: Arc::new(config) }
    }

    /// Another config from the next step on. The MAC table is not told.
    pub(crate) fn reconfigure(&mut self, config: Config) {
        let tables = Arc::new(Standard::compile(&config));
        self.config = Arc::new(config);
        self.publisher.publish(|parts| Parts { tables, ..parts });
    }

    /// One round in which `ingress` presents `inputs`, at most a burst.
    pub(crate) fn step(&mut self, now: Now, ingress: PortIndex, inputs: Vec<Input>) -> Outcome {
        let count = inputs.len();
        let mut inputs = Some(inputs);
        let ports: Vec<(PortIndex, Arc<FakePort>, Arc<PortLedger>)> = self
            .config
            .ports()
            .iter()
            .map(|port| {
                let inputs = if port.index == ingress { inputs.take().unwrap() } else { Vec::new() };
                (port.index, Arc::new(FakePort { inputs, ..FakePort::default() }), Arc::new(PortLedger::new(1)))
            })
            .collect();
        let mut places = vec![None; self.config.ports().last().map_or(0, |last| last.index.as_usize() + 1)];
        for (index, port, ledger) in &ports {
            places[index.as_usize()] =
                Some(PortPlace { port: Some(port.clone()), ledger: ledger.clone(), captures: None });
        }
        let config = self.config.clone();
        self.publisher.publish(|parts| Parts { config, places, ..parts });
        assert_eq!(self.worker.step(now), count);
        let balance = self.worker.ledger().balance();
        assert!(balance.balances(), "{balance:?}");

        let mut outcome = Outcome::default();
        for (index, port, ledger) in &ports {
            outcome.received.extend(port.outputs.lock().unwrap().drain(..).map(|frame| (index.0, frame)));
            let named = |is_rx| move |(reason, count): (DropReason, u64)| (index.0, is_rx, reason.name(), count);
            outcome.drops.extend(ledger.rx().drops().map(named(true)));
            outcome.drops.extend(ledger.tx().drops().map(named(false)));
        }
        outcome
    }

    /// What a trace of one frame tells.
    pub(crate) fn trace(&self, now: Now, ingress: PortIndex, input: &Input) -> Vec<String> {
        let context = Context { now, mac_table: &self.mac_table, worker: WorkerIndex(0), generation: 0 };
        let mut batch = Batch::new();
        put(&mut batch, ingress, input);
        Standard::trace(&self.publisher.current().tables, &context, &mut batch)
    }
}
