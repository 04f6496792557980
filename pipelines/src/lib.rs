//! The stages a packet goes through, the wire formats they read and the tables they look things up in.
//!
//! [`Standard`] is the switch's pipeline. Its order stands in one list below; each stage has one file that always reads the
//! same: what and why, the config it reads, the drop reasons it gives, `decide` for one packet, `run` over a batch, the
//! trace's line, tests. A trace calls the same `decide` functions as the workers do, and changes nothing shared.
//!
//! Each packet goes through all stages while its front is in registers. What needs the shared table is only sent for meanwhile;
//! when the whole batch is through, the bridge answers for those that passed. Nothing here does I/O, allocates on the packet
//! path or is unsafe.

#![forbid(unsafe_code)]

pub mod bridge;
pub mod capture_filter;
pub mod classify;
mod describe;
pub mod encap;
pub mod flow_hash;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod guard;
pub mod neighbour;
mod offload;
pub mod parse;
pub mod path_mtu;
mod runs;
pub mod stage;
pub mod tables;
#[cfg(test)]
mod tests;
pub mod too_long;
pub mod trunk;
pub mod underlay;
pub mod uplink;
pub mod wire;

use bridge::Questions;
use stage::{Notes, Scope, Stage, Stop};
use switch::batch::{BURST, Batch};
use switch::config::Config;
use switch::ids::PortIndex;
use switch::ledger::DropReason;
use switch::ledger::Tally;
use switch::packet::{HEAD_MAX, Packet};
use switch::worker::{Context, Egress, Pipeline};
use tables::{PortKind, Tables};

/// The stages in the order in which a packet meets them.
///
/// Parse is first because all others read its findings. Classify gives the frame its network, without which no address
/// means anything. Guard comes before bridge, so that a forged source address is never learnt.
pub const STAGES: [Stage; 4] = [
    parse::STAGE,    // where the headers are; offload claims held against them
    classify::STAGE, // ingress port -> network
    guard::STAGE,    // may this source address be here?
    bridge::STAGE,   // where do source and destination live? answered for the whole batch at its end: forward or flood
];

/// Takes one packet through the stages.
#[inline(always)]
fn pass(scope: &Scope<'_>, packet: &mut Packet) -> Result<Notes, Stop> {
    // Not a loop: so the compiler sees each of them, and keeps the notes in registers.
    let [first, second, third, fourth] = STAGES;
    let mut notes = Notes::default();
    (first.run)(scope, packet, &mut notes)?;
    (second.run)(scope, packet, &mut notes)?;
    (third.run)(scope, packet, &mut notes)?;
    (fourth.run)(scope, packet, &mut notes)?;
    Ok(notes)
}

/// The same for a packet that was stopped: if its head was too short, it gets one as long as can be, and goes once more.
#[cold]
#[inline(never)]
fn pass_again(scope: &Scope<'_>, batch: &mut Batch<'_>, index: usize) -> Result<Notes, DropReason> {
    let mut is_pulled = false;
    loop {
        match pass(scope, &mut batch.packets_mut()[index]) {
            Ok(notes) => return Ok(notes),
            Err(Stop::Drop(reason)) => return Err(reason),
            Err(Stop::Pull) if is_pulled => return Err(DropReason::HeadersTooLong),
            Err(Stop::Pull) => batch.pull(index, HEAD_MAX)?,
        }
        is_pulled = true;
    }
}

/// The switch's pipeline.
///
/// What comes in by an uplink has its outer headers taken off first ([`uplink`]) and then goes through the stages as if it had
/// come in by the far end that sent it; what goes to a far end has headers put on while it is sent ([`encap`]). Frames between
/// ports of this host meet neither.
pub enum Standard {}

impl Pipeline for Standard {
    type Tables = Tables;

    fn compile(config: &Config) -> Tables {
        Tables::compile(config)
    }

    fn run(tables: &Tables, context: &Context<'_>, batch: &mut Batch<'_>, egress: &mut Egress<'_>) {
        let Some(first) = batch.packets().first() else { return };
        let scope = Scope::new(tables, context, first.ingress);
        match scope.port.kind {
            PortKind::Uplink => return uplink::run(tables, context, scope.ingress, batch, egress),
            PortKind::Trunk => return trunk::run(tables, context, scope.ingress, batch, egress),
            PortKind::Tenant | PortKind::FarEnd => {}
        }
        let mut questions = Questions::ask(batch, 0..batch.len(), |packet| pass(&scope, packet));
        for index in questions.stopped(0..batch.len()) {
            match pass_again(&scope, batch, index) {
                Ok(notes) => questions.ask_late(batch, index, &notes),
                Err(reason) => egress.drop_ingress(scope.ingress, reason),
            }
        }
        bridge::answer(&scope, batch, &questions, egress);
    }

    fn carrier(tables: &Tables, far_end: PortIndex) -> Option<PortIndex> {
        encap::carrier(tables, far_end)
    }

    fn wrap(
        tables: &Tables,
        far_end: PortIndex,
        batch: &mut Batch<'_>,
        picks: &[u8],
        carried: &mut [u8; BURST],
        tally: &mut Tally,
    ) -> usize {
        encap::wrap(tables, far_end, batch, picks, carried, tally)
    }

    fn unwrap(tables: &Tables, far_end: PortIndex, batch: &mut Batch<'_>, carried: &[u8]) -> usize {
        encap::unwrap(tables, far_end, batch, carried)
    }

    fn trace(tables: &Tables, context: &Context<'_>, batch: &mut Batch<'_>) -> Vec<String> {
        let mut lines = Vec::new();
        let Some(first) = batch.packets().first() else { return lines };
        let mut scope = Scope::new(tables, context, first.ingress);
        if scope.port.kind == PortKind::Uplink {
            let (text, from) = uplink::trace(tables, scope.ingress, batch);
            lines.push(text);
            let Some((far_end, network)) = from else { return lines };
            scope = Scope::of_far_end(tables, context, far_end, network);
        }
        if scope.port.kind == PortKind::Trunk {
            let (text, port) = trunk::trace(tables, scope.ingress, batch);
            lines.push(text);
            let Some(port) = port else { return lines };
            scope = Scope::new(tables, context, port);
        }
        for stage in STAGES {
            let step = (stage.trace)(&scope, batch);
            lines.push(format!("{}: {}", stage.name, step.text));
            if !step.goes_on {
                break;
            }
        }
        lines
    }
}
