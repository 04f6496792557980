//! What the stages have in common: what they may look at, what they note for one another, what a stage is.
//!
//! All packets of a batch came in by one port (the engine polls one queue at a time), so what is known of that port is
//! looked up once a batch and kept in the [`Scope`].

use crate::tables::{PortEntry, Tables};
use switch::batch::Batch;
use switch::ids::{MacBits, NetworkIndex, PortIndex};
use switch::ledger::DropReason;
use switch::mac_table::{BurstView, Probe};
use switch::packet::Packet;
use switch::worker::Context;

/// One stage, as the list in `lib.rs` names it.
#[derive(Clone, Copy)]
pub struct Stage {
    /// Its name in traces.
    pub name: &'static str,
    /// Looks at one packet, which has passed the stages before, and lets it pass or not.
    pub run: for<'s> fn(&Scope<'s>, &mut Packet, &mut Notes) -> Result<(), Stop>,
    /// Decides about the one packet of the batch and tells it in words. Changes nothing but that packet.
    pub trace: for<'s, 'r> fn(&Scope<'s>, &mut Batch<'r>) -> Step,
}

/// Why a stage does not let a packet pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// The head ends inside a header; ask again with a longer one.
    Pull,
    /// The frame goes no further.
    Drop(DropReason),
}

impl From<DropReason> for Stop {
    #[inline]
    fn from(reason: DropReason) -> Stop {
        Stop::Drop(reason)
    }
}

/// What a stage did with a traced packet.
#[derive(Debug)]
pub struct Step {
    /// In words.
    pub text: String,
    /// Whether the next stage sees it.
    pub goes_on: bool,
}

impl Step {
    /// The packet goes on to the next stage.
    pub fn on(text: String) -> Step {
        Step { text, goes_on: true }
    }

    /// The packet's way ends here.
    pub fn end(text: String) -> Step {
        Step { text, goes_on: false }
    }

    /// The packet is dropped and counted at the port it came from.
    pub fn drop(scope: &Scope<'_>, reason: DropReason) -> Step {
        Step::end(format!("drop {}, counted at {}", reason.name(), scope.tables.label(scope.ingress)))
    }
}

/// What holds for all packets of one batch.
pub struct Scope<'a> {
    /// The compiled config.
    pub tables: &'a Tables,
    /// Time, MAC table and worker.
    pub context: &'a Context<'a>,
    /// The port the packets came in by.
    pub ingress: PortIndex,
    /// What the tables say of it.
    pub port: PortEntry,
    /// The MAC table for frames of its network. Meaningless for a port on none, whose frames get no further than classify.
    pub macs: BurstView<'a>,
}

impl<'a> Scope<'a> {
    /// Looks the ingress port up.
    #[inline]
    pub fn new(tables: &'a Tables, context: &'a Context<'a>, ingress: PortIndex) -> Scope<'a> {
        let port = tables.port(ingress);
        let macs = context.mac_table.burst(port.network.unwrap_or_default(), ingress, context.now);
        Scope { tables, context, ingress, port, macs }
    }

    /// The same for frames of `network` that came from a far end.
    #[inline]
    pub fn of_far_end(
        tables: &'a Tables,
        context: &'a Context<'a>,
        far_end: PortIndex,
        network: NetworkIndex,
    ) -> Scope<'a> {
        let port = tables.port(far_end).on(network);
        let macs = context.mac_table.burst(network, far_end, context.now);
        Scope { tables, context, ingress: far_end, port, macs }
    }
}

/// What the stages write down about the frame at hand for those that come later.
#[derive(Default)]
pub struct Notes {
    /// Destination of the frame at hand; written by parse, like all that is about it.
    pub destination: MacBits,
    /// Its source.
    pub source: MacBits,
    /// Bytes behind its Ethernet header and tags, of one segment if it will be cut.
    pub l3_len: usize,
    /// Where the MAC table keeps its source and its destination; written by bridge.
    pub probes: [Probe; 2],
}
