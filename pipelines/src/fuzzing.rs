//! What the fuzz target and its short seeded form run: bytes of a stranger as one frame through the whole pipeline.
//!
//! Layout of the input: 10 bytes `virtio_net_hdr`, one byte for where the head ends, then the frame. The switch is fixed: two
//! networks, ports that are up, down, fixed to a MAC and of a small MTU. Checked is what must hold for any frame: an outcome, no
//! port of another network, no way back, no offload that does not fit, the trace ending as the run did.

mod control;
mod outward;
mod underlay;

use crate::Standard;
use crate::tables::Tables;
pub use control::{lacp, too_big};
pub use outward::Outward;
use std::sync::Arc;
use switch::batch::{Batch, Fit};
use switch::config::{Config, NetworkConfig, PortConfig};
use switch::ids::{MacAddr, NetworkIndex, PortIndex, QueueIndex, WorkerIndex};
use switch::ledger::{DropReason, PortLedger, WorkerLedger};
use switch::mac_table::MacTable;
use switch::offload::{EgressOffloads, OffloadClaim, VNET_HEADER_LEN};
use switch::packet::HEAD_MAX;
use switch::publish::PortPlace;
use switch::segment::Segment;
use switch::worker::{Context, Egress, EgressLists, Now, Pipeline};
pub use underlay::Underlay;

/// Bytes before the frame.
const PREFIX_LEN: usize = VNET_HEADER_LEN + 1;

/// The switch that frames are thrown at. It forgets between two frames what it has learnt, so that a find stands alone.
pub struct Target {
    tables: Tables,
    config: Config,
    mac_table: MacTable,
    lists: EgressLists,
    places: Vec<Option<PortPlace>>,
    batch: Option<Batch<'static>>,
}

impl Default for Target {
    fn default() -> Self {
        let port = |index: u16, network: u16| PortConfig {
            index: PortIndex(index),
            interface: format!("vm-{index}").into(),
            network: Some(NetworkIndex(network)),
            is_admin_up: index != 3,
            mtu: if index == 2 { 576 } else { 1500 },
            macs: if index == 1 { vec![MacAddr([2, 0, 0, 0, 0, 1])] } else { Vec::new() },
            allowed_macs: Vec::new(),
        };
        let networks = [0, 1].map(|index| NetworkConfig { index: NetworkIndex(index), id: "net".into() });
        let ports = [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (5, 1)].map(|(index, network)| port(index, network));
        let config = Config::new(networks.to_vec(), ports.to_vec()).expect("a legal config, written above");
        let places = (0..ports.len())
            .map(|_| Some(PortPlace { port: None, ledger: Arc::new(PortLedger::new(1)), captures: None }))
            .collect();
        let mac_table = MacTable::new(64, 300);
        mac_table.insert_static(NetworkIndex(0), MacAddr([2, 0, 0, 0, 0, 1]), PortIndex(1));
        Target {
            tables: Tables::compile(&config),
            config,
            mac_table,
            lists: EgressLists::default(),
            places,
            batch: Some(Batch::new()),
        }
    }
}

impl Target {
    /// Sends one input through; panics if anything that must hold does not.
    pub fn frame(&mut self, data: &[u8]) {
        let Some((prefix, frame)) = data.split_first_chunk::<PREFIX_LEN>() else { return };
        let frame = &frame[..frame.len().min(65_600)];
        let claim = OffloadClaim::from_bytes(prefix.first_chunk().expect("11 bytes are more than 10"));
        let cut = usize::from(prefix[VNET_HEADER_LEN]) * 4;
        let ingress = PortIndex(u16::from(prefix[VNET_HEADER_LEN] % 6));
        let mut batch = self.batch.take().expect("put back below").recycle();
        let mut packet = batch.start(ingress, QueueIndex(0)).expect("an empty batch has room");
        let (head, tail) = frame.split_at(cut.min(frame.len()).min(HEAD_MAX));
        packet.head(head.len()).expect("bounded by HEAD_MAX").copy_from_slice(head);
        if !tail.is_empty() {
            packet.tail(Segment::from(tail)).expect("one segment is allowed");
        }
        packet.commit(claim);

        let worker = WorkerIndex(0);
        let context = Context { now: Now::default(), mac_table: &self.mac_table, worker, generation: 0 };
        let trace = Standard::trace(&self.tables, &context, &mut batch);
        let ledger = WorkerLedger::default();
        let mut egress = Egress::new(&mut self.lists, &self.places, worker, &ledger);
        Standard::run(&self.tables, &context, &mut batch, &mut egress);

        let receivers: Vec<PortIndex> = self.lists.picks().map(|(port, _)| port).collect();
        self.lists.clear();
        let dropped = ledger.balance().dropped as usize;
        assert!(receivers.len() + dropped > 0, "a frame without outcome");
        let last = trace.last().expect("a trace has a line");
        let is_forwarded = last.contains("forward") || last.contains("flood");
        assert!(is_forwarded || receivers.is_empty(), "the trace ends with {last:?}");
        for port in receivers {
            let network = |port| self.config.port(port).and_then(|port| port.network);
            assert_eq!(network(port), network(ingress), "a frame crossed networks");
            assert_ne!(port, ingress, "a frame went back");
        }
        check_packet(&mut batch);
        self.batch = Some(batch.recycle());
        for port in self.config.ports() {
            self.mac_table.flush_port(port.index);
        }
    }
}

/// What an egress relies on.
fn check_packet(batch: &mut Batch<'_>) {
    let packet = &batch.packets()[0];
    if let Some(gso) = packet.offload.gso {
        assert!(usize::from(gso.header_len) + usize::from(gso.size) < packet.len(), "nothing to cut");
        assert!(packet.offload.checksum.is_some());
    }
    let whole_and_checked = EgressOffloads { tso4: true, tso6: true, ecn: true, uso: true, checksum: false };
    if batch.packets()[0].offload.gso.is_some() {
        check_segments(batch);
    }
    if batch.fit(0, whole_and_checked) == Fit::AsIs {
        assert!(batch.packets()[0].offload.checksum.is_none(), "fit completes every checksum");
    }
}

/// A frame to be cut becomes segments that fit, with the same payload in all and nothing left to do; or too many of them.
fn check_segments(batch: &mut Batch<'_>) {
    let frame_len = batch.packets()[0].len();
    match batch.fit(0, EgressOffloads::default()) {
        Fit::AsIs => panic!("nobody takes this frame whole"),
        Fit::Drop(reason) => {
            assert!(matches!(reason, DropReason::CutLimited | DropReason::HeadersTooLong), "{reason:?}");
        }
        Fit::Cut => {
            let gso = batch.packets()[0].offload.gso.expect("a frame to be cut");
            let header_len = usize::from(gso.header_len);
            let mut cut = batch.cut(0, EgressOffloads::default());
            let mut payload_len = 0;
            while let Some((packet, tail)) = cut.next_segment() {
                let tail_len: usize = tail.iter().map(|segment| segment.len() as usize).sum();
                assert_eq!(packet.head().len() + tail_len, packet.len(), "a segment's length");
                assert!(packet.offload.is_none(), "a segment leaves nothing to do");
                let segment_len = packet.len() - header_len;
                assert!(segment_len > 0 && segment_len <= usize::from(gso.size), "{segment_len} bytes of payload");
                payload_len += segment_len;
            }
            assert_eq!(payload_len, frame_len - header_len, "the payload of all segments");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::frames::{Frame, any_claim, any_frame};
    use proptest::prelude::*;

    fn bytes(claim: &OffloadClaim, cut: u8, frame: &[u8]) -> Vec<u8> {
        let mut data = vec![claim.flags, claim.gso_type];
        for word in [claim.hdr_len, claim.gso_size, claim.csum_start, claim.csum_offset] {
            data.extend(word.to_le_bytes());
        }
        data.push(cut);
        data.extend(frame);
        data
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn no_frame_breaks_what_must_hold(inputs in proptest::collection::vec((any_claim(), any::<u8>(), any_frame()), 1..5)) {
            let mut target = Target::default();
            for (claim, cut, frame) in inputs {
                target.frame(&bytes(&claim, cut, &frame));
            }
        }

        #[test]
        fn noise_breaks_nothing(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            Target::default().frame(&data);
        }
    }

    #[test]
    fn the_target_sees_cuts_and_checksums() {
        let claim = OffloadClaim {
            flags: 1,
            gso_type: 1,
            gso_size: 500,
            csum_start: 34,
            csum_offset: 16,
            ..OffloadClaim::default()
        };
        Target::default().frame(&bytes(
            &claim,
            18,
            &Frame::tcp4().from(MacAddr([2, 0, 0, 0, 0, 9])).payload(4000).bytes(),
        ));
    }
}
