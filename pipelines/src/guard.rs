//! Stage 3, guard: lets a frame pass only if its sender may use the addresses in it.
//!
//! A source that is a group address or zero is nobody's (IEEE 802.3 clause 3.2.3: the first bit of a source is 0), and learning
//! it would poison the table. Where the operator fixed an interface's MACs, or the tenant allowed some, no other may be used. This is the one place
//! where checks of senders stand: those of ARP and IP addresses join here.
//!
//! Config read: the ingress port's fixed and allowed MACs.
//! Drop reasons: `bad_source_mac`, `spoofed_mac`.

use crate::stage::{Notes, Scope, Stage, Step, Stop};
use crate::tables::{PortEntry, Tables};
use crate::wire::ethernet;
use switch::batch::Batch;
use switch::ids::MacBits;
use switch::ledger::DropReason;
use switch::packet::Packet;

/// The stage.
pub const STAGE: Stage = Stage { name: "guard", run, trace };

/// Decides whether `source` may send by `port`.
///
/// # Errors
/// The reason to drop its frame.
#[inline]
pub fn decide(tables: &Tables, port: &PortEntry, source: MacBits) -> Result<(), DropReason> {
    if source.is_group() || source.is_zero() {
        return Err(DropReason::BadSourceMac);
    }
    if port.has_fixed_macs() && !tables.is_fixed_mac(port, source) {
        return Err(DropReason::SpoofedMac);
    }
    Ok(())
}

#[inline(always)]
fn run(scope: &Scope<'_>, _packet: &mut Packet, notes: &mut Notes) -> Result<(), Stop> {
    Ok(decide(scope.tables, &scope.port, notes.source)?)
}

fn trace(scope: &Scope<'_>, batch: &mut Batch<'_>) -> Step {
    let (_, source) =
        ethernet::addresses(batch.packets()[0].head()).expect("parse passes no frame without Ethernet header");
    let source = MacBits::from(source);
    match decide(scope.tables, &scope.port, source) {
        Ok(()) if scope.port.has_fixed_macs() => Step::on(format!("source {source} is one of the port's fixed MACs")),
        Ok(()) => Step::on(format!("source {source} may pass, the port has no fixed MACs")),
        Err(reason) => Step::drop(scope, reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::rig::{config, mac, port};
    use switch::config::PortConfig;
    use switch::ids::{MacAddr, PortIndex};

    fn answer(macs: Vec<MacAddr>, source: MacAddr) -> Result<(), DropReason> {
        let tables = Tables::compile(&config(vec![PortConfig { macs, ..port(0, Some(1)) }]));
        decide(&tables, &tables.port(PortIndex(0)), source.into())
    }

    #[test]
    fn group_and_zero_sources_are_nobodys() {
        for source in [MacAddr::BROADCAST, MacAddr([1, 0, 0x5e, 0, 0, 1]), MacAddr([0; 6])] {
            assert_eq!(answer(vec![], source), Err(DropReason::BadSourceMac), "{source}");
            assert_eq!(answer(vec![mac(1)], source), Err(DropReason::BadSourceMac), "{source}");
        }
    }

    #[test]
    fn fixed_macs_shut_all_others_out_and_none_fixed_lets_all_in() {
        assert_eq!(answer(vec![mac(1), mac(2)], mac(2)), Ok(()));
        assert_eq!(answer(vec![mac(1), mac(2)], mac(3)), Err(DropReason::SpoofedMac));
        assert_eq!(answer(vec![], mac(3)), Ok(()));
    }
}
