//! The stages a packet goes through, the wire formats they read and the tables they look things up in.
//!
//! [`Standard`] is the switch's pipeline. Its order stands in one list below; each stage has one file that always reads the
//! same: what and why, the config it reads, the drop reasons it gives, `decide` for one packet, `run` over a batch, the
//! trace's line, tests. A trace calls the same `decide` functions as the workers do, and changes nothing shared.
//!
//! A stage runs over the whole batch before the next one starts, so that its code and tables stay in the cache; which
//! packets are still on their way is one bit mask. Nothing here does I/O, allocates on the packet path or is unsafe.

#![forbid(unsafe_code)]

pub mod bridge;
pub mod capture_filter;
pub mod classify;
mod describe;
pub mod flow_hash;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod guard;
mod offload;
pub mod parse;
pub mod stage;
pub mod tables;
#[cfg(test)]
mod tests;
pub mod wire;

use stage::{Live, Scope, Stage};
use switch::batch::Batch;
use switch::config::Config;
use switch::worker::{Context, Egress, Pipeline};
use tables::Tables;

/// The stages in the order in which a packet meets them.
///
/// Parse is first because all others read its findings. Classify gives the frame its network, without which no address
/// means anything. Guard comes before bridge, so that a forged source address is never learnt.
pub const STAGES: [Stage; 4] = [
    parse::STAGE,    // where the headers are; offload claims held against them
    classify::STAGE, // ingress port -> network
    guard::STAGE,    // may this source address be here?
    bridge::STAGE,   // learn, look up, forward or flood
];

/// The switch's pipeline.
pub enum Standard {}

impl Pipeline for Standard {
    type Tables = Tables;

    fn compile(config: &Config) -> Tables {
        Tables::compile(config)
    }

    fn run(tables: &Tables, context: &Context<'_>, batch: &mut Batch<'_>, egress: &mut Egress<'_>) {
        let Some(first) = batch.packets().first() else { return };
        let scope = Scope::new(tables, context, first.ingress);
        let mut live = Live::first(batch.len());
        for stage in STAGES {
            (stage.run)(&scope, batch, &mut live, egress);
        }
        assert!(live.is_empty(), "the last stage decides about every packet");
    }

    fn trace(tables: &Tables, context: &Context<'_>, batch: &mut Batch<'_>) -> Vec<String> {
        let mut lines = Vec::new();
        let Some(first) = batch.packets().first() else { return lines };
        let scope = Scope::new(tables, context, first.ingress);
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
