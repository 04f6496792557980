//! A batch on its way into a tunnel and out of one, without devices: what the outer headers alone cost.
//!
//! 60-byte frames of 1,000 flows, all addresses learnt. Frames are put into the batch anew for each turn, because the way in and the way
//! out change them; [`Tunnels::put`] is what that alone costs, and [`Tunnels::local`] the same frames between two ports of this
//! host.

use crate::rig::{NOW, STATIONS, frames, station};
use pipelines::Standard;
use pipelines::tables::Tables;
use std::sync::Arc;
use switch::batch::{BURST, Batch};
use switch::config::{Config, MTU_DEFAULT, NetworkConfig, PortConfig};
use switch::ids::{MacAddr, NetworkIndex, PortIndex, QueueIndex, WorkerIndex};
use switch::ledger::{PortLedger, Tally, WorkerLedger};
use switch::mac_table::MacTable;
use switch::offload::OffloadClaim;
use switch::publish::PortPlace;
use switch::underlay::{
    PeerConfig, TunnelConfig, TunnelKind, TunnelledNetwork, Underlay, UplinkConfig, UplinkTags, Vni,
};
use switch::worker::{Context, Egress, EgressLists, Pipeline};

/// Two ports of this host, the uplink, and the other host.
const PORTS: [PortIndex; 2] = [PortIndex(0), PortIndex(1)];
const UPLINK: PortIndex = PortIndex(2);
const PEER: PortIndex = PortIndex(3);
/// Bytes of each inner frame.
const FRAME_LEN: usize = 60;
/// Every packet of a batch.
const ALL: [u8; BURST] = {
    let mut all = [0; BURST];
    let mut at = 0;
    while at < BURST {
        all[at] = at as u8;
        at += 1;
    }
    all
};

/// The scene.
pub struct Tunnels {
    tables: Tables,
    mac_table: MacTable,
    lists: EgressLists,
    places: Vec<Option<PortPlace>>,
    ledger: WorkerLedger,
    /// Whole bursts, before and after the outer headers were put on.
    inner: Vec<Vec<Vec<u8>>>,
    outer: Vec<Vec<Vec<u8>>>,
    turn: usize,
}

fn config(kind: TunnelKind) -> Config {
    let port = |index: PortIndex| PortConfig {
        index,
        interface: format!("vm-{index}").into(),
        network: Some(NetworkIndex(0)),
        is_admin_up: true,
        mtu: MTU_DEFAULT,
        macs: Vec::new(),
        allowed_macs: Vec::new(),
    };
    let peer = PeerConfig::new(PEER, [192, 0, 2, 2].into(), Some(UPLINK));
    peer.next_hop.set(Some(MacAddr([2, 0, 0, 0, 0, 0xbb])));
    let tunnel = TunnelConfig {
        networks: vec![TunnelledNetwork { network: NetworkIndex(0), kind, vni: Vni::new(5000).unwrap() }],
        ..TunnelConfig::new([192, 0, 2, 1].into(), vec![peer])
    };
    let uplink = UplinkConfig {
        index: UPLINK,
        physical_network: "physnet1".into(),
        mac: MacAddr([2, 0, 0, 0, 0, 0xaa]),
        mtu: 1600,
        is_shared: false,
        address: None,
        tags: UplinkTags::default(),
    };
    let underlay = Underlay { uplinks: vec![uplink], tunnel: Some(tunnel), ..Underlay::default() };
    let network = NetworkConfig { index: NetworkIndex(0), id: "blue".into() };
    Config::with_underlay(vec![network], PORTS.map(port).to_vec(), underlay).unwrap()
}

impl Tunnels {
    /// One peer, by this kind of tunnel. Frames are from stations of port 0, or those behind the peer, to those of port 1.
    pub fn new(kind: TunnelKind) -> Tunnels {
        let mac_table = MacTable::new(131_072, 300);
        for number in 0..STATIONS {
            for (port, index) in [(0, PORTS[0]), (1, PORTS[1]), (2, PEER)] {
                mac_table.learn(NetworkIndex(0), MacAddr(station(port, number)), index, NOW);
            }
        }
        let place = || Some(PortPlace { port: None, ledger: Arc::new(PortLedger::new(1)), captures: None });
        let bursts = |frames: Vec<Vec<u8>>| frames.chunks_exact(BURST).map(<[_]>::to_vec).collect::<Vec<_>>();
        let mut tunnels = Tunnels {
            tables: Tables::compile(&config(kind)),
            mac_table,
            lists: EgressLists::default(),
            places: vec![place(), place(), place(), place()],
            ledger: WorkerLedger::default(),
            inner: bursts(frames(0, 1, FRAME_LEN)),
            outer: Vec::new(),
            turn: 0,
        };
        // What the peer would send is what we would send it, with both ends changed over.
        let mut batch = Batch::new();
        for burst in bursts(frames(2, 1, FRAME_LEN)) {
            fill(&mut batch, PORTS[0], &burst);
            tunnels.run(&mut batch);
            tunnels.wrap_all(&mut batch);
            let outer = batch.packets().iter().map(|packet| {
                let mut bytes = packet.head().to_vec();
                bytes[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0xaa]);
                (bytes[29], bytes[33]) = (2, 1);
                bytes
            });
            tunnels.outer.push(outer.collect());
        }
        tunnels
    }

    fn run(&mut self, batch: &mut Batch<'_>) {
        let context = Context { now: NOW, mac_table: &self.mac_table, worker: WorkerIndex(0), generation: 0 };
        let mut egress = Egress::new(&mut self.lists, &self.places, context.worker, &self.ledger);
        Standard::run(&self.tables, &context, batch, &mut egress);
        self.lists.clear();
    }

    fn wrap_all(&self, batch: &mut Batch<'_>) -> usize {
        let mut carried = [0; BURST];
        Standard::wrap(&self.tables, PEER, batch, &ALL, &mut carried, &mut Tally::default())
    }

    fn next(&mut self) -> usize {
        self.turn = (self.turn + 1) % self.inner.len();
        self.turn
    }

    /// Only puts a burst without outer headers, or one with, into the batch.
    pub fn put(&mut self, batch: &mut Batch<'_>, is_outer: bool) -> usize {
        let turn = self.next();
        fill(batch, PORTS[0], if is_outer { &self.outer[turn] } else { &self.inner[turn] });
        BURST
    }

    /// A burst from a port of this host to another.
    pub fn local(&mut self, batch: &mut Batch<'_>) -> usize {
        self.put(batch, false);
        self.run(batch);
        BURST
    }

    /// A burst that is in the batch: outer headers on, and off again.
    pub fn encap(&self, batch: &mut Batch<'_>) -> usize {
        let count = self.wrap_all(batch);
        Standard::unwrap(&self.tables, PEER, batch, &ALL);
        count
    }

    /// A burst from the uplink to a port of this host.
    pub fn decap(&mut self, batch: &mut Batch<'_>) -> usize {
        let turn = self.next();
        fill(batch, UPLINK, &self.outer[turn]);
        self.run(batch);
        BURST
    }

    /// Frames that were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.ledger.balance().dropped
    }
}

/// Makes these the packets of the batch.
fn fill(batch: &mut Batch<'_>, ingress: PortIndex, frames: &[Vec<u8>]) {
    batch.clear(BURST, usize::MAX);
    for frame in frames {
        let mut packet = batch.start(ingress, QueueIndex(0)).unwrap();
        packet.head(frame.len()).unwrap().copy_from_slice(frame);
        packet.commit(OffloadClaim::default());
    }
}
