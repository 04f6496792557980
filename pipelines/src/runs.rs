//! A batch from a device that several ports or far ends share: each run of frames of one network from one of them goes through
//! the stages as a burst of that one.
//!
//! What the guard and the bridge know of senders thus holds for them too, and frames come in runs. First all are opened, then
//! each run is taken through: so the inner loop of the stages is the same as for a burst from a port, and stays in registers.

use crate::bridge::{self, Bits, Questions};
use crate::stage::Scope;
use crate::tables::Tables;
use crate::uplink::Arrival;
use crate::wire::ethernet;
use crate::{pass, pass_again};
use std::ops::Range;
use switch::batch::{BURST, Batch};
use switch::ids::{NetworkIndex, PORTS_MAX, PortIndex};
use switch::packet::Packet;
use switch::worker::{Context, Egress};

/// Whose an open frame is: a port, or far end, and a network, in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Owner(u32);

impl Owner {
    /// Of a frame that is not open: there are not that many ports.
    pub(crate) const NOBODY: Owner = Owner(u32::MAX);

    /// A frame of this port on this network.
    #[inline]
    pub(crate) fn new(port: PortIndex, network: NetworkIndex) -> Owner {
        Owner(u32::from(port.0) << 16 | u32::from(network.0))
    }

    fn parts(self) -> (PortIndex, NetworkIndex) {
        (PortIndex((self.0 >> 16) as u16), NetworkIndex(self.0 as u16))
    }
}

const _: () = assert!(PORTS_MAX <= u16::MAX as usize);

/// Takes a batch of `device` through everything. `open` opens a frame if that is easy, or leaves it as it is and answers nobody;
/// `receive` opens any other one and says whose it is.
#[inline(always)]
pub(crate) fn run(
    tables: &Tables,
    context: &Context<'_>,
    device: PortIndex,
    batch: &mut Batch<'_>,
    egress: &mut Egress<'_>,
    mut open: impl FnMut(&mut Packet) -> Owner,
    mut receive: impl FnMut(&mut Batch<'_>, usize) -> Arrival,
) {
    let mut owners = [Owner::NOBODY; BURST];
    // Bit n: packet n has another owner than the one before it.
    let (mut last, mut begins, mut is_any_left) = (None, 0u64, false);
    for (index, (packet, owner)) in batch.packets_mut().iter_mut().zip(&mut owners).enumerate() {
        *owner = open(packet);
        if last != Some(*owner) {
            begins |= 1 << index;
            is_any_left |= *owner == Owner::NOBODY;
            last = Some(*owner);
        }
    }
    if is_any_left {
        for (index, owner) in owners[..batch.len()].iter_mut().enumerate().filter(|(_, it)| **it == Owner::NOBODY) {
            match receive(batch, index) {
                Arrival::From(port, network) => *owner = Owner::new(port, network),
                Arrival::Answered => egress.answer(index, batch.packets()[index].len(), device),
                Arrival::Taken => egress.consume(),
                Arrival::Refused(reason) => egress.drop_ingress(device, reason),
            }
        }
        begins = (1..batch.len()).filter(|&at| owners[at] != owners[at - 1]).fold(1, |bits, at| bits | 1 << at);
    }
    let mut starts = Bits::of(begins);
    let mut next = starts.next();
    while let Some(start) = next {
        next = starts.next();
        let end = next.unwrap_or(batch.len());
        if owners[start] != Owner::NOBODY {
            let (port, network) = owners[start].parts();
            let scope = Scope::of_far_end(tables, context, port, network);
            through(scope, device, batch, start..end, egress);
        }
    }
}

/// Takes one run, the packets of this range, through the stages. There is one of it, so that the stages are compiled into its loop.
#[inline(never)]
fn through(
    mut scope: Scope<'_>,
    device: PortIndex,
    batch: &mut Batch<'_>,
    packets: Range<usize>,
    egress: &mut Egress<'_>,
) {
    let (count, mut bytes, mut longest) = (packets.len(), 0, 0);
    let (ingress, asked) = (scope.ingress, packets.clone());
    let mut questions = Questions::ask(batch, packets, |packet| {
        packet.ingress = ingress;
        bytes += packet.len();
        longest = longest.max(packet.len());
        pass(&scope, packet)
    });
    // What the device's own port received is counted already.
    if ingress != device {
        egress.received(ingress, count, bytes);
    }
    for index in questions.stopped(asked) {
        match pass_again(&scope, batch, index) {
            Ok(notes) => questions.ask_late(batch, index, &notes),
            Err(reason) => egress.drop_ingress(ingress, reason),
        }
    }
    // Another host's frames are as long as the underlay lets them; what the bridge asks is how long these are at most.
    scope.port.mtu = scope.port.mtu.min(u16::try_from(longest.saturating_sub(ethernet::LEN)).unwrap_or(u16::MAX));
    bridge::answer(&scope, batch, &questions, egress);
}
