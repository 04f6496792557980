//! The same for what a stranger on the underlay sends: bytes as one frame from an uplink.
//!
//! Layout of the input: one byte for how networks are carried, one for where the head ends, one that says what is put right
//! first (our MAC, the addresses of a peer and of us, the header's checksum), else a fuzzer would spend its days on guessing
//! those; then the frame. Checked is what must hold for any frame: an outcome, no port of a network that the frame does not
//! name, nothing to another far end, nothing back but an answer of our own, the trace ending as the run did.

use super::check_packet;
use crate::Standard;
use crate::tables::Tables;
use crate::wire;
use std::net::IpAddr;
use std::sync::Arc;
use switch::batch::Batch;
use switch::config::{Config, NetworkConfig, PortConfig};
use switch::ids::{MacAddr, NetworkIndex, PortIndex, QueueIndex, WorkerIndex};
use switch::ledger::{PortLedger, WorkerLedger};
use switch::mac_table::MacTable;
use switch::offload::OffloadClaim;
use switch::packet::HEAD_MAX;
use switch::publish::PortPlace;
use switch::segment::Segment;
use switch::underlay::{
    PeerConfig, TunnelConfig, TunnelKind, TunnelledNetwork, Underlay as Ways, UplinkConfig, UplinkTags, VlanConfig,
    VlanId, Vni,
};
use switch::worker::{Context, Egress, EgressLists, Now, Pipeline};

/// Bytes before the frame.
const PREFIX_LEN: usize = 3;
pub(super) const UPLINK: PortIndex = PortIndex(2);
pub(super) const UPLINK_MTU: u16 = 1600;
/// Indices of far ends begin here.
const FAR_ENDS: PortIndex = PortIndex(3);
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xaa]);

/// Port 0 on network 0 and port 1 on network 1; the networks are carried in one way.
pub(super) struct Host {
    pub(super) tables: Tables,
    pub(super) config: Config,
}

/// Hosts of every kind that frames are thrown at. They forget between two frames what they have learnt.
pub struct Underlay {
    hosts: Vec<Host>,
    mac_table: MacTable,
    lists: EgressLists,
    places: Vec<Option<PortPlace>>,
    batch: Option<Batch<'static>>,
}

/// `is_nvgre`: what GRE keys are, if it is GRE.
fn host(kind: Option<TunnelKind>, is_nvgre: bool, local: &str, peer: &str) -> Host {
    let address = |text: &str| -> IpAddr { text.parse().expect("written below") };
    let port = |index: u16| PortConfig {
        index: PortIndex(index),
        interface: format!("vm-{index}").into(),
        network: Some(NetworkIndex(index)),
        is_admin_up: true,
        mtu: 1500,
        macs: Vec::new(),
        allowed_macs: Vec::new(),
    };
    let networks = [0, 1].map(|index| NetworkConfig { index: NetworkIndex(index), id: "net".into() });
    let uplink = UplinkConfig {
        index: UPLINK,
        physical_network: "physnet1".into(),
        mac: MAC,
        mtu: UPLINK_MTU,
        is_shared: false,
        address: Some(address(local)),
        tags: UplinkTags::default(),
    };
    let vlan = |index: u16| VlanConfig {
        index: PortIndex(FAR_ENDS.0 + index),
        uplink: UPLINK,
        vlan: VlanId::new(100 + index).expect("within range"),
        network: NetworkIndex(index),
    };
    let tunnel = |kind| TunnelConfig {
        is_nvgre,
        networks: [0, 1]
            .map(|index| TunnelledNetwork {
                network: NetworkIndex(index),
                kind,
                vni: Vni::new(5000 + u32::from(index)).expect("within range"),
            })
            .to_vec(),
        ..TunnelConfig::new(address(local), vec![PeerConfig::new(FAR_ENDS, address(peer), Some(UPLINK))])
    };
    let ways = Ways {
        uplinks: vec![uplink],
        vlans: if kind.is_none() { vec![vlan(0), vlan(1)] } else { Vec::new() },
        tunnel: kind.map(tunnel),
        ..Ways::default()
    };
    let config = Config::with_underlay(networks.to_vec(), vec![port(0), port(1)], ways).expect("a legal config");
    Host { tables: Tables::compile(&config), config }
}

/// One of each kind.
pub(super) fn hosts() -> Vec<Host> {
    const ENDS: [(&str, &str); 2] = [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")];
    let mut hosts = vec![host(None, false, ENDS[0].0, ENDS[0].1)];
    for (local, peer) in ENDS {
        hosts.extend(TunnelKind::ALL.map(|kind| host(Some(kind), false, local, peer)));
    }
    hosts.extend(ENDS.map(|(local, peer)| host(Some(TunnelKind::Gre), true, local, peer)));
    hosts
}

impl Default for Underlay {
    fn default() -> Self {
        let place = || Some(PortPlace { port: None, ledger: Arc::new(PortLedger::new(1)), captures: None });
        Underlay {
            hosts: hosts(),
            mac_table: MacTable::new(64, 300),
            lists: EgressLists::default(),
            places: (0..8).map(|_| place()).collect(),
            batch: Some(Batch::new()),
        }
    }
}

/// Makes a frame one from the peer to us, as far as it is long enough.
fn put_right(frame: &mut [u8], host: &Host) {
    let Some(tunnel) = &host.config.underlay().tunnel else { return };
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(room) = frame.get_mut(at..at + bytes.len()) {
            room.copy_from_slice(bytes);
        }
    };
    put(0, &MAC.0);
    match (tunnel.local, tunnel.peers[0].address) {
        (IpAddr::V4(local), IpAddr::V4(peer)) => {
            put(12, &[8, 0, 0x45]);
            put(26, &peer.octets());
            put(30, &local.octets());
            put(24, &[0, 0]);
            if let Some(header) = frame.get(14..34) {
                let sum = wire::checksum(header);
                frame[24..26].copy_from_slice(&sum.to_be_bytes());
            }
        }
        (IpAddr::V6(local), IpAddr::V6(peer)) => {
            put(12, &[0x86, 0xdd, 0x60]);
            put(22, &peer.octets());
            put(38, &local.octets());
        }
        _ => {}
    }
}

impl Underlay {
    /// Sends one input through; panics if anything that must hold does not.
    pub fn frame(&mut self, data: &[u8]) {
        let Some((prefix, frame)) = data.split_first_chunk::<PREFIX_LEN>() else { return };
        let host = &self.hosts[usize::from(prefix[0]) % self.hosts.len()];
        let mut frame = frame[..frame.len().min(65_600)].to_vec();
        if prefix[2] & 1 == 1 {
            put_right(&mut frame, host);
        }
        let mut batch = self.batch.take().expect("put back below").recycle();
        let mut packet = batch.start(UPLINK, QueueIndex(0)).expect("an empty batch has room");
        let (head, tail) = frame.split_at((usize::from(prefix[1]) * 4).min(frame.len()).min(HEAD_MAX));
        packet.head(head.len()).expect("bounded by HEAD_MAX").copy_from_slice(head);
        if !tail.is_empty() {
            packet.tail(Segment::from(tail)).expect("one segment is allowed");
        }
        packet.commit(OffloadClaim::default());

        let worker = WorkerIndex(0);
        let context = Context { now: Now::default(), mac_table: &self.mac_table, worker, generation: 0 };
        let ledger = WorkerLedger::default();
        let mut egress = Egress::new(&mut self.lists, &self.places, worker, &ledger);
        Standard::run(&host.tables, &context, &mut batch, &mut egress);

        let receivers: Vec<PortIndex> = self.lists.picks().map(|(port, _)| port).collect();
        self.lists.clear();
        let balance = ledger.balance();
        assert!(receivers.len() as u64 + balance.dropped + balance.consumed > 0, "a frame without outcome");
        for port in &receivers {
            if *port == UPLINK {
                assert!(frame_len(&batch) <= 90, "only answers about neighbours go back");
            } else {
                assert!(port.0 < 2, "a frame from outside went outside");
                assert_eq!(batch.packets()[0].network.0, port.0, "a frame crossed networks");
                check_packet(&mut batch);
            }
        }
        assert!(receivers.len() <= 1, "each network has one port here");
        self.batch = Some(batch.recycle());
        for index in 0..8 {
            self.mac_table.flush_port(PortIndex(index));
        }
    }
}

fn frame_len(batch: &Batch<'_>) -> usize {
    batch.packets()[0].len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encap::tests::{GENEVE, GRE, INNER, VXLAN, hex};
    use proptest::prelude::*;

    /// Inputs that open, to be spoilt.
    fn seeds() -> Vec<Vec<u8>> {
        let wrapped = |kind: u8, vector: &str, number_at: usize| {
            let mut frame = [hex(vector), hex(INNER)].concat();
            frame[number_at] = 0x88;
            [vec![kind, 32, 1], frame].concat()
        };
        let inner = hex(INNER);
        let tagged = [&inner[..12], &[0x81, 0, 0, 100], &inner[12..]].concat();
        // The network's number lies a byte further in front, and a flow's stands behind it.
        let mut nvgre = wrapped(7, GRE, 41);
        nvgre[PREFIX_LEN + 38..PREFIX_LEN + 42].copy_from_slice(&[0, 0x13, 0x88, 0x5a]);
        let plain = [vec![0, 32, 0], tagged].concat();
        vec![wrapped(1, VXLAN, 48), wrapped(2, GENEVE, 48), wrapped(3, GRE, 41), nvgre, plain]
    }

    #[test]
    fn the_target_opens_every_kind() {
        for seed in seeds() {
            let mut target = Underlay::default();
            let host = &target.hosts[usize::from(seed[0])];
            let mut frame = seed[3..].to_vec();
            if seed[2] == 1 {
                put_right(&mut frame, host);
            }
            let uplink = host.tables.underlay.uplink(UPLINK).unwrap();
            let found = crate::uplink::decide(uplink, host.tables.underlay.tunnel.as_ref(), &frame, frame.len());
            let is_open = matches!(found, Ok(crate::uplink::Found::Tunnel(_) | crate::uplink::Found::Vlan { .. }));
            assert!(is_open, "{seed:?}: {found:?}");
            target.frame(&seed);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]
        #[test]
        fn no_frame_from_outside_breaks_what_must_hold(
            seed in 0usize..5,
            kind: u8,
            keeps_kind: bool,
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            len in any::<prop::sample::Index>(),
        ) {
            let mut data = seeds()[seed].clone();
            if !keeps_kind {
                data[0] = kind;
            }
            for (at, value) in changes {
                let at = at.index(data.len());
                data[at] = value;
            }
            data.truncate(len.index(data.len()) + 1);
            Underlay::default().frame(&data);
        }
    }
}
