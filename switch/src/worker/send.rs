//! The end of a burst: each touched port gets its picks, and what is for another host goes by the uplink that leads there.
//!
//! Headers for a far end are on a packet only while its uplink sends it: the same packet may go elsewhere too.

use super::{EgressLists, Now, Pipeline};
use crate::batch::{BURST, Batch};
use crate::capture;
use crate::ids::{PortIndex, WorkerIndex};
use crate::ledger::{DropReason, Tally, WorkerLedger};
use crate::publish::Snapshot;

/// Sends the picks of every touched port and empties the lists; answers how many frames came of cutting others.
pub(super) fn send<P: Pipeline>(
    lists: &mut EgressLists,
    snapshot: &Snapshot<P::Tables>,
    worker: WorkerIndex,
    now: Now,
    batch: &mut Batch<'_>,
    tally: &mut Tally,
    ledger: &WorkerLedger,
) -> u32 {
    let mut cut = 0;
    let queues = &snapshot.tx[worker.as_usize()];
    for &index in &lists.touched {
        let picks = &mut lists.by_port[index.as_usize()];
        let chosen = &picks.list[..picks.len as usize];
        tally.clear();
        let place = snapshot.place(index);
        match place.and_then(|place| place.port.as_ref()) {
            Some(port) => {
                let queue = queues[index.as_usize()];
                if place.is_some_and(|place| place.captures.is_some()) {
                    // They are read again once they are sent.
                    batch.keep_frames();
                }
                port.tx(queue, batch, chosen, tally);
                let frames = chosen.len() as u32 + tally.cut;
                assert!(tally.packets + tally.dropped == frames, "a port lost count of its frames");
            }
            None => {
                cut += send_far::<P>(index, chosen, snapshot, worker, now, batch, tally, ledger);
                picks.len = 0;
                continue;
            }
        }
        if let Some(place) = place {
            if let Some(captures) = &place.captures {
                capture::tx(captures, worker, now, batch, chosen, tally);
            }
            place.ledger.of(worker).tx.add(tally);
        }
        ledger.sent.add(u64::from(tally.packets));
        ledger.copies.add(u64::from(tally.cut));
        ledger.add_drops(tally);
        cut += tally.cut;
        picks.len = 0;
    }
    lists.touched.clear();
    cut
}

/// Sends `chosen` to an index at which no device stands: by the uplink of a far end, or nowhere. Answers how many frames came of
/// cutting others.
#[inline(never)]
#[expect(clippy::too_many_arguments, reason = "it is a branch of `send`, kept out of the way of ports of this host")]
fn send_far<P: Pipeline>(
    index: PortIndex,
    chosen: &[u8],
    snapshot: &Snapshot<P::Tables>,
    worker: WorkerIndex,
    now: Now,
    batch: &mut Batch<'_>,
    tally: &mut Tally,
    ledger: &WorkerLedger,
) -> u32 {
    let far_place = snapshot.place(index);
    let counters = far_place.map(|place| place.ledger.of(worker));
    let Some(carrier) = P::carrier(&snapshot.tables, index) else {
        tally.drop_many(DropReason::PortGone, chosen.len() as u32);
        if let Some(captures) = far_place.and_then(|place| place.captures.as_ref()) {
            capture::tx(captures, worker, now, batch, chosen, tally);
        }
        if let Some(counters) = counters {
            counters.tx.add(tally);
        }
        ledger.add_drops(tally);
        return 0;
    };
    let mut carried = [0; BURST];
    let count = P::wrap(&snapshot.tables, index, batch, chosen, &mut carried, tally);
    let carried = &carried[..count];
    assert!(count + tally.dropped as usize == chosen.len(), "the pipeline lost count of what it wraps");
    if tally.dropped > 0 {
        if let Some(counters) = counters {
            counters.tx.add(tally);
        }
        ledger.add_drops(tally);
        tally.clear();
    }
    if count == 0 {
        return 0;
    }
    let place = snapshot.place(carrier);
    match place.and_then(|place| place.port.as_ref()) {
        Some(port) => {
            let queue = snapshot.tx[worker.as_usize()][carrier.as_usize()];
            if place.is_some_and(|place| place.captures.is_some()) {
                batch.keep_frames();
            }
            port.tx(queue, batch, carried, tally);
            assert!(tally.packets + tally.dropped == count as u32 + tally.cut, "a port lost count of its frames");
        }
        None => tally.drop_many(DropReason::PortGone, count as u32),
    }
    if let Some(place) = place {
        if let Some(captures) = &place.captures {
            capture::tx(captures, worker, now, batch, carried, tally);
        }
        place.ledger.of(worker).tx.add(tally);
    }
    let mut header_bytes = P::unwrap(&snapshot.tables, index, batch, carried) as u64;
    // A far end's bytes are those of its network, as on the way in; the uplink's are those of the wire. Of frames some of which were
    // dropped or cut, it is as if all had headers of one length, which those of one network to one far end have.
    let sent = u64::from(tally.packets);
    if sent != count as u64 {
        header_bytes = header_bytes * sent / count as u64;
    }
    tally.bytes = tally.bytes.saturating_sub(header_bytes);
    if let Some(counters) = counters {
        counters.tx.add(tally);
    }
    ledger.sent.add(u64::from(tally.packets));
    ledger.copies.add(u64::from(tally.cut));
    ledger.add_drops(tally);
    tally.cut
}
