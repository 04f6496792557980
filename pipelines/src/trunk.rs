//! Before the stages, for what comes from a trunk: a device of this host that several ports share. A tag says which port a frame
//! is from, and is taken out; without one it is from the device's own.
//!
//! What makes it hard is what a guest may make up. One tag is looked at and no more, and only one of a VLAN that a port has there
//! is taken for one. A tag of priority alone (id 0) is none, and what follows it must be none either: so no frame comes
//! into the network without tag with a tag that leads elsewhere where it leaves. (Towards the trunk the bridge sees to that.)
//!
//! Config read: subports. Drop reasons, at the device's own port: `no_network`, `truncated`.

use crate::runs::{self, Owner};
use crate::tables::Tables;
use crate::underlay::VlanMap;
use crate::uplink::{Arrival, of_vlan, pop_tags};
use crate::wire::{ethernet, word};
use switch::batch::Batch;
use switch::ids::PortIndex;
use switch::ledger::DropReason;
use switch::packet::{HEAD_MAX, Packet};
use switch::worker::{Context, Egress};

/// Whose a frame is: a VLAN's, or without one, and how many bytes of tags are to be popped.
///
/// # Errors
/// `None` if the head ends before that can be told; otherwise the reason to drop it.
pub fn decide(head: &[u8]) -> Result<(Option<u16>, usize), Option<DropReason>> {
    const TAG: usize = 12;
    let Some(front) = head.get(..ethernet::LEN) else { return Err(None) };
    let kind = word(front, TAG);
    if !ethernet::is_tag(kind) {
        return Ok((None, 0));
    }
    if head.len() < ethernet::LEN + ethernet::TAG_LEN {
        return Err(None);
    }
    let id = word(head, TAG + 2) & 0x0fff;
    match (kind, id) {
        (ethernet::TYPE_VLAN, 0) if !ethernet::is_tag(word(head, TAG + ethernet::TAG_LEN)) => {
            Ok((None, ethernet::TAG_LEN))
        }
        (ethernet::TYPE_VLAN, 1..) => Ok((Some(id), ethernet::TAG_LEN)),
        _ => Err(Some(DropReason::NoNetwork)),
    }
}

/// Takes the tag off one frame of the batch.
fn receive(tables: &Tables, device: PortIndex, batch: &mut Batch<'_>, index: usize) -> Arrival {
    let mut decided = decide(batch.packets()[index].head());
    if decided == Err(None) && batch.packets()[index].tail_len() > 0 {
        if let Err(reason) = batch.pull(index, HEAD_MAX) {
            return Arrival::Refused(reason);
        }
        decided = decide(batch.packets()[index].head());
    }
    let vlans = tables.underlay.trunk(device).map(|trunk| &trunk.vlans);
    match decided {
        Ok((None, tags_len)) => of_vlan(tables, device, batch, index, tags_len),
        Ok((Some(vlan), tags_len)) => match vlans.and_then(|vlans| vlans.get(vlan)) {
            Some(port) => of_vlan(tables, port, batch, index, tags_len),
            None => Arrival::Refused(DropReason::NoNetwork),
        },
        Err(reason) => Arrival::Refused(reason.unwrap_or(DropReason::Truncated)),
    }
}

/// The same for a frame of which nothing is left to do: any other one stays as it is.
#[inline(always)]
fn open_plain(tables: &Tables, device: PortIndex, vlans: Option<&VlanMap>, packet: &mut Packet) -> Owner {
    let Ok((vlan, tags_len)) = decide(packet.head()) else { return Owner::NOBODY };
    let port = match vlan {
        None => Some(device),
        Some(vlan) => vlans.and_then(|vlans| vlans.get(vlan)),
    };
    let owner = port.and_then(|port| Some(Owner::new(port, tables.port(port).network?)));
    match owner {
        Some(owner) if packet.claim.is_none() && pop_tags(packet, tags_len).is_ok() => owner,
        _ => Owner::NOBODY,
    }
}

/// Takes a batch that came from a trunk through everything.
#[inline(never)]
pub fn run(tables: &Tables, context: &Context<'_>, device: PortIndex, batch: &mut Batch<'_>, egress: &mut Egress<'_>) {
    let vlans = tables.underlay.trunk(device).map(|trunk| &trunk.vlans);
    let open = |packet: &mut Packet| open_plain(tables, device, vlans, packet);
    runs::run(tables, context, device, batch, egress, open, |batch, index| receive(tables, device, batch, index));
}

/// Takes the tag off the one packet of the batch and tells it in words; also whose frame it is, if it goes on.
pub fn trace(tables: &Tables, device: PortIndex, batch: &mut Batch<'_>) -> (String, Option<PortIndex>) {
    match receive(tables, device, batch, 0) {
        Arrival::From(port, _) => (format!("trunk: from {}", tables.label(port)), Some(port)),
        Arrival::Refused(reason) => {
            (format!("trunk: drop {}, counted at {}", reason.name(), tables.label(device)), None)
        }
        Arrival::Answered | Arrival::Taken => unreachable!("a trunk's frames are forwarded or refused"),
    }
}

#[cfg(test)]
mod tests;
