//! The same for what a guest sends to another host: bytes as one frame through the stages, wrapped for each far end, and cut.
//!
//! Layout of the input: one byte for how networks are carried, 10 bytes `virtio_net_hdr`, one byte for where the head ends, then
//! the frame. Checked is what must hold for any frame: no outer packet longer than the uplink takes, segments that are whole,
//! and the frame as it was once its outer headers are off again.

use super::underlay::{Host, UPLINK, UPLINK_MTU, hosts};
use super::{PREFIX_LEN as FRAME_PREFIX_LEN, check_packet};
use crate::Standard;
use std::sync::Arc;
use switch::batch::{BURST, Batch};
use switch::ids::{MacAddr, PortIndex, QueueIndex, WorkerIndex};
use switch::ledger::{PortLedger, Tally, WorkerLedger};
use switch::mac_table::MacTable;
use switch::offload::{OffloadClaim, VNET_HEADER_LEN};
use switch::packet::HEAD_MAX;
use switch::publish::PortPlace;
use switch::segment::Segment;
use switch::worker::{Context, Egress, EgressLists, Now, Pipeline};

/// Bytes before the frame.
const PREFIX_LEN: usize = 1 + FRAME_PREFIX_LEN;
/// The guest's port; its network has no other port here.
const GUEST: PortIndex = PortIndex(0);
/// Ethernet and one tag, which no MTU counts.
const UNCOUNTED: usize = 14 + 4;

/// Hosts of every kind that a guest sends from. They forget between two frames what they have learnt.
pub struct Outward {
    hosts: Vec<Host>,
    mac_table: MacTable,
    lists: EgressLists,
    places: Vec<Option<PortPlace>>,
    batch: Option<Batch<'static>>,
}

impl Default for Outward {
    fn default() -> Self {
        let hosts = hosts();
        for host in &hosts {
            for peer in host.config.underlay().peers() {
                peer.next_hop.set(Some(MacAddr([2, 0, 0, 0, 0, 0xb1])));
            }
        }
        let place = || Some(PortPlace { port: None, ledger: Arc::new(PortLedger::new(1)), captures: None });
        Outward {
            hosts,
            mac_table: MacTable::new(64, 300),
            lists: EgressLists::default(),
            places: (0..8).map(|_| place()).collect(),
            batch: Some(Batch::new()),
        }
    }
}

impl Outward {
    /// Sends one input through; panics if anything that must hold does not. Answers how many far ends got it.
    pub fn frame(&mut self, data: &[u8]) -> usize {
        let Some((prefix, frame)) = data.split_first_chunk::<PREFIX_LEN>() else { return 0 };
        let (kind, prefix) = prefix.split_first().expect("it has more bytes than one");
        let host = &self.hosts[usize::from(*kind) % self.hosts.len()];
        let frame = &frame[..frame.len().min(65_600)];
        let mut batch = self.batch.take().expect("put back below").recycle();
        let mut packet = batch.start(GUEST, QueueIndex(0)).expect("an empty batch has room");
        let cut = usize::from(prefix[VNET_HEADER_LEN]) * 4;
        let (head, tail) = frame.split_at(cut.min(frame.len()).min(HEAD_MAX));
        packet.head(head.len()).expect("bounded by HEAD_MAX").copy_from_slice(head);
        if !tail.is_empty() {
            packet.tail(Segment::from(tail)).expect("one segment is allowed");
        }
        packet.commit(OffloadClaim::from_bytes(prefix.first_chunk().expect("11 bytes are more than 10")));

        let worker = WorkerIndex(0);
        let context = Context { now: Now::default(), mac_table: &self.mac_table, worker, generation: 0 };
        let ledger = WorkerLedger::default();
        let mut egress = Egress::new(&mut self.lists, &self.places, worker, &ledger);
        Standard::run(&host.tables, &context, &mut batch, &mut egress);

        let far_ends: Vec<PortIndex> = self.lists.picks().map(|(port, _)| port).collect();
        self.lists.clear();
        let mut sent = 0;
        for &far_end in &far_ends {
            assert_eq!(Standard::carrier(&host.tables, far_end), Some(UPLINK), "no port here gets it");
            sent += usize::from(send(host, far_end, &mut batch));
        }
        self.batch = Some(batch.recycle());
        self.mac_table.flush_port(GUEST);
        sent
    }
}

/// Wraps the one packet of the batch for a far end and takes the headers off again; whether there were any.
fn send(host: &Host, far_end: PortIndex, batch: &mut Batch<'_>) -> bool {
    let shape = |batch: &Batch<'_>| {
        let packet = &batch.packets()[0];
        (packet.len(), packet.headers, packet.offload.gso)
    };
    let before = shape(batch);
    let (mut carried, mut tally) = ([0; BURST], Tally::default());
    let count = Standard::wrap(&host.tables, far_end, batch, &[0], &mut carried, &mut tally);
    assert_eq!(count + tally.dropped as usize, 1, "a frame without outcome");
    if count == 1 {
        let packet = &batch.packets()[0];
        let longest =
            packet.offload.gso.map_or(packet.len(), |gso| usize::from(gso.header_len) + usize::from(gso.size));
        assert!(longest <= UNCOUNTED + usize::from(UPLINK_MTU), "{longest} bytes on the wire");
        check_packet(batch);
        Standard::unwrap(&host.tables, far_end, batch, &carried[..1]);
    }
    assert_eq!(shape(batch), before, "a frame is as it was");
    count == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::frames::{Frame, any_claim, any_frame, with_options};
    use proptest::prelude::*;
    use switch::offload::{F_NEEDS_CSUM, GSO_TCPV6};

    fn bytes(kind: u8, claim: &OffloadClaim, cut: u8, frame: &[u8]) -> Vec<u8> {
        let mut data = vec![kind, claim.flags, claim.gso_type];
        for word in [claim.hdr_len, claim.gso_size, claim.csum_start, claim.csum_offset] {
            data.extend(word.to_le_bytes());
        }
        data.push(cut);
        data.extend(frame);
        data
    }

    /// A large frame of IPv6 whose TCP header begins behind `options_len` bytes of options.
    fn large(options_len: usize, payload: usize, gso_size: u16) -> (OffloadClaim, Vec<u8>) {
        let claim = OffloadClaim {
            flags: F_NEEDS_CSUM,
            gso_type: GSO_TCPV6,
            gso_size,
            csum_start: 54 + options_len as u16,
            csum_offset: 16,
            ..OffloadClaim::default()
        };
        (claim, with_options(&Frame::tcp6().payload(payload).bytes(), options_len))
    }

    #[test]
    fn the_target_wraps_and_cuts_on_every_kind_of_host() {
        let mut target = Outward::default();
        let (claim, frame) = large(56, 4000, 1300);
        for kind in 0..target.hosts.len() as u8 {
            assert_eq!(target.frame(&bytes(kind, &claim, 32, &frame)), 1, "kind {kind}");
        }
    }

    /// Any frame of any claim, or a large one with headers of any length; to any kind of host, its head ending anywhere.
    fn any_input() -> impl Strategy<Value = Vec<u8>> {
        let lengths = (1..76usize, 1..9000usize, 8..1500u16);
        let large = lengths.prop_map(|(options, payload, gso_size)| large(8 * options, payload, gso_size));
        let frame = prop_oneof![(any_claim(), any_frame()), large];
        (any::<u8>(), any::<u8>(), frame).prop_map(|(kind, cut, (claim, frame))| bytes(kind, &claim, cut, &frame))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn no_frame_to_another_host_breaks_what_must_hold(inputs in proptest::collection::vec(any_input(), 1..8)) {
            let mut target = Outward::default();
            for input in inputs {
                target.frame(&input);
            }
        }
    }
}
