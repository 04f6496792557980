//! What the stage would do with a packet, in words; by the same decisions, and nothing that is shared changes.

use super::{Question, Verdict, asks, decide, decide_copy, is_unforwardable, way_mtu};
use crate::stage::{Scope, Step};
use crate::too_long;
use crate::wire::ethernet;
use switch::batch::Batch;
use switch::ids::{MacAddr, MacBits};
use switch::ledger::DropReason;
use switch::mac_table::Learned;

pub(super) fn trace(scope: &Scope<'_>, batch: &mut Batch<'_>) -> Step {
    let packet = &batch.packets()[0];
    let (network, now) = (packet.network, scope.context.now);
    let (destination, source) =
        ethernet::addresses(packet.head()).expect("parse passes no frame without Ethernet header");
    let (destination, source) = (MacBits::from(destination), MacBits::from(source));
    let question = Question::about(packet, scope.ingress, destination);
    if is_unforwardable(destination) {
        return Step::drop(scope, DropReason::LinkLocalMulticast);
    }
    let table = scope.context.mac_table;
    let learned = scope.port.learns.then(|| table.would_learn(network, source.into(), scope.ingress, now));
    // What `run` would have learnt just before the look-up, a trace must imagine.
    let is_learnt_now = matches!(learned, Some(Learned::New | Learned::Moved));
    let known = if is_learnt_now && source == destination {
        Some(scope.ingress)
    } else if destination.is_group() {
        None
    } else {
        table.lookup(network, destination.into(), now)
    };
    let learning = match learned {
        None => "fixed here",
        Some(Learned::Known) => "known here",
        Some(Learned::New) => "would be learnt here",
        Some(Learned::Moved) => "would move here",
        Some(Learned::Refused) => "belongs to another port that is in use",
        Some(Learned::Static) => "is a static address",
        Some(Learned::Full) => "not learnt, the table or the port's share is full",
    };
    let label = |port| scope.tables.label(port);
    let what = match decide(scope.tables, &question, known) {
        Verdict::Forward(port) => format!("{destination} lives at {}: forward", label(port)),
        Verdict::Drop(reason) => format!("drop {}, counted at {}", reason.name(), label(scope.ingress)),
        Verdict::DropAt(port, reason) => {
            let told = too_long::is_told(scope, &question, port, reason)
                && way_mtu(scope.tables, port, network).is_some_and(|mtu| too_long::may_answer(packet, mtu));
            let told = if told { ", and its sender told by ICMP" } else { "" };
            format!("{destination} lives at {}: drop {}, counted there{told}", label(port), reason.name())
        }
        Verdict::Flood => match asks(scope, packet, destination) {
            Some(asked) => format!("asks for {}, which is at {}: answered", asked.target, asked.owner),
            None => trace_flood(scope, &question),
        },
    };
    Step::end(format!("source {source} {learning}; {what}"))
}

fn trace_flood(scope: &Scope<'_>, question: &Question) -> String {
    let kind = match question.destination {
        mac if mac == MacAddr::BROADCAST.into() => "broadcast",
        mac if mac.is_group() => "multicast",
        _ => "unknown",
    };
    let is_from_here = scope.port.kind.is_here();
    let far_members = if is_from_here { scope.tables.far_members(question.network) } else { &[] };
    let copies: Vec<String> = scope
        .tables
        .members(question.network)
        .iter()
        .chain(far_members)
        .filter_map(|&member| {
            decide_copy(scope.tables, question, member).map(|verdict| match verdict {
                Verdict::DropAt(port, reason) => format!("{} (drop {})", scope.tables.label(port), reason.name()),
                _ => scope.tables.label(member.port),
            })
        })
        .collect();
    if copies.is_empty() {
        let label = scope.tables.label(question.ingress);
        return format!("{kind} destination, drop {}, counted at {label}", DropReason::NoReceiver.name());
    }
    format!("{kind} destination, flood to {}", copies.join(", "))
}
