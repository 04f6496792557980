//! A switch of one worker and fake ports: frames go in, frames and counters come out.
//!
//! The rig runs the real [`Worker`], so a test sees what a device would see. It asserts after every step that the books
//! balance.

use crate::Standard;
use crate::tables::Tables;
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use switch::batch::{Batch, Fit};
use switch::config::{Config, NetworkConfig, PortConfig};
use switch::ids::{MacAddr, NetworkIndex, PortIndex, QueueIndex, WorkerIndex};
use switch::ledger::{DropReason, PortLedger, Tally, WorkerLedger};
use switch::mac_table::MacTable;
use switch::offload::{EgressOffloads, OffloadClaim};
use switch::packet::{HEAD_COPY, Packet};
use switch::port::Port;
use switch::publish::{Parts, PortPlace, Publisher};
use switch::segment::Segment;
use switch::underlay::{
    PeerConfig, TunnelConfig, TunnelKind, TunnelledNetwork, Underlay, UplinkConfig, UplinkTags, VlanConfig, VlanId, Vni,
};
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

/// Our address on the underlay, and a peer's.
pub(crate) const LOCAL: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
pub(crate) const REMOTE: [&str; 3] = ["192.0.2.2", "192.0.2.3", "2001:db8::2"];
/// The uplink's index, those of the VLANs of networks 1 and 2, and of two peers.
pub(crate) const UPLINK: PortIndex = PortIndex(10);
pub(crate) const VLANS: [PortIndex; 2] = [PortIndex(11), PortIndex(12)];
pub(crate) const PEERS: [PortIndex; 2] = [PortIndex(13), PortIndex(14)];

/// The uplink: its MAC ends in 0xaa.
pub(crate) fn uplink(address: Option<&str>) -> UplinkConfig {
    UplinkConfig {
        index: UPLINK,
        physical_network: "physnet1".into(),
        mac: mac(0xaa),
        mtu: 1600,
        is_shared: false,
        address: address.map(|address| address.parse().unwrap()),
        tags: UplinkTags::default(),
    }
}

/// Networks 1 and 2 are VLANs 100 and 200 of the uplink.
pub(crate) fn on_vlans(ports: Vec<PortConfig>) -> Config {
    let vlan = |at: usize, id| VlanConfig {
        index: VLANS[at],
        uplink: UPLINK,
        vlan: VlanId::new(id).unwrap(),
        network: NetworkIndex(at as u16 + 1),
    };
    let vlans = vec![vlan(0, 100), vlan(1, 200)];
    let local = config(ports);
    let underlay = Underlay { uplinks: vec![uplink(None)], vlans, ..Underlay::default() };
    Config::with_underlay(local.networks().to_vec(), local.ports().to_vec(), underlay).unwrap()
}

/// Networks 1 and 2 have VNIs 5001 and 5002; the peers' next hops end in 0xb1 and 0xb2.
pub(crate) fn in_tunnels(ports: Vec<PortConfig>, kind: TunnelKind, is_ipv6: bool) -> Config {
    let peer = |at: usize, address: &str| {
        let peer = PeerConfig::new(PEERS[at], address.parse().unwrap(), Some(UPLINK));
        peer.next_hop.set(Some(mac(0xb1 + at as u8)));
        peer
    };
    let local = if is_ipv6 { LOCAL[1] } else { LOCAL[0] };
    let peers = if is_ipv6 { vec![peer(0, REMOTE[2])] } else { vec![peer(0, REMOTE[0]), peer(1, REMOTE[1])] };
    let network = |index: u16| TunnelledNetwork {
        network: NetworkIndex(index),
        kind,
        vni: Vni::new(5000 + u32::from(index)).unwrap(),
    };
    let tunnel =
        TunnelConfig { networks: vec![network(1), network(2)], ..TunnelConfig::new(local.parse().unwrap(), peers) };
    let config = config(ports);
    let underlay = Underlay { uplinks: vec![uplink(Some(local))], tunnel: Some(tunnel), ..Underlay::default() };
    Config::with_underlay(config.networks().to_vec(), config.ports().to_vec(), underlay).unwrap()
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
    takes: EgressOffloads,
}

impl FakePort {
    fn deliver(&self, packet: &Packet, tail: &[Segment<'_>], tally: &mut Tally) {
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
            let pick = usize::from(pick);
            match batch.fit(pick, self.takes) {
                Fit::AsIs => {
                    let (packet, tail) = batch.frame(pick);
                    self.deliver(packet, tail, tally);
                }
                Fit::Cut => {
                    let mut cut = batch.cut(pick, EgressOffloads::default());
                    tally.cut_into(cut.count());
                    while let Some((segment, tail)) = cut.next_segment() {
                        self.deliver(segment, tail, tally);
                    }
                }
                Fit::Drop(reason) => tally.drop(reason),
            }
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
    /// What the far side of every port finishes: all, unless a test says otherwise.
    pub(crate) takes: EgressOffloads,
    /// What the last step counted at each port: bytes received and sent.
    pub(crate) bytes: BTreeMap<u16, (u64, u64)>,
}

impl Rig {
    pub(crate) fn new(config: Config) -> Rig {
        let publisher = Publisher::new(1, Standard::compile(&config));
        let mac_table = Arc::new(MacTable::new(4096, u32::MAX / 2));
        for index in config.underlay().indices() {
            mac_table.set_port_up(index, true);
        }
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
        let takes = EgressOffloads { checksum: true, tso4: true, tso6: true, ecn: true, uso: true };
        Rig { publisher, worker, mac_table, config: Arc::new(config), takes, bytes: BTreeMap::new() }
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
        let underlay = self.config.underlay();
        let is_behind = |index| self.config.subports().iter().any(|subport| subport.index == index);
        let devices = self.config.ports().iter().map(|port| port.index).filter(|&index| !is_behind(index));
        let devices: Vec<PortIndex> = devices.chain(underlay.uplinks.iter().map(|uplink| uplink.index)).collect();
        let ports: Vec<(PortIndex, Arc<FakePort>, Arc<PortLedger>)> = devices
            .iter()
            .copied()
            .chain(self.config.ports().iter().map(|port| port.index).filter(|&index| is_behind(index)))
            .chain(underlay.indices().filter(|index| !devices.contains(index)))
            .map(|index| {
                let inputs = if index == ingress { inputs.take().unwrap() } else { Vec::new() };
                (
                    index,
                    Arc::new(FakePort { inputs, takes: self.takes, ..FakePort::default() }),
                    Arc::new(PortLedger::new(1)),
                )
            })
            .collect();
        let mut places = vec![None; self.config.index_end()];
        for (index, port, ledger) in &ports {
            // At a far end stands no device.
            let port = devices.contains(index).then(|| port.clone() as Arc<dyn Port>);
            places[index.as_usize()] = Some(PortPlace { port, ledger: ledger.clone(), captures: None });
        }
        let config = self.config.clone();
        self.publisher.publish(|parts| Parts { config, places, ..parts });
        assert_eq!(self.worker.step(now), count);
        let balance = self.worker.ledger().balance();
        assert!(balance.balances(), "{balance:?}");

        self.bytes = ports.iter().map(|(index, _, it)| (index.0, (it.rx().bytes, it.tx().bytes))).collect();
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
