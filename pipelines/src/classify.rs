//! Stage 2, classify: gives the frame the network of the port it came in by.
//!
//! A tenant's port is on exactly one network, whatever tags its frames carry: a guest's VLAN tags are its own business
//! and travel inside the network. So there is one answer for the whole batch; only the length is checked packet by
//! packet. A frame that will be cut is measured by its segments.
//!
//! Config read: the ingress port's network, administrative state and MTU.
//! Drop reasons: `no_network`, `port_admin_down`, `over_mtu`.

use crate::parse::l3_len;
use crate::stage::{Notes, Scope, Stage, Step, Stop};
use crate::tables::PortEntry;
use switch::batch::Batch;
use switch::ids::NetworkIndex;
use switch::ledger::DropReason;
use switch::packet::Packet;

/// The stage.
pub const STAGE: Stage = Stage { name: "classify", run, trace };

/// Decides about a frame from `port`, `l3_len` bytes long behind its Ethernet header and tags; answers its network.
///
/// # Errors
/// The reason to drop it.
#[inline]
pub fn decide(port: &PortEntry, l3_len: usize) -> Result<NetworkIndex, DropReason> {
    let network = port.network.ok_or(DropReason::NoNetwork)?;
    if !port.is_admin_up {
        return Err(DropReason::PortAdminDown);
    }
    if l3_len > usize::from(port.mtu) {
        return Err(DropReason::OverMtu);
    }
    Ok(network)
}

#[inline(always)]
fn run(scope: &Scope<'_>, packet: &mut Packet, notes: &mut Notes) -> Result<(), Stop> {
    packet.network = decide(&scope.port, notes.l3_len)?;
    Ok(())
}

fn trace(scope: &Scope<'_>, batch: &mut Batch<'_>) -> Step {
    let packet = &mut batch.packets_mut()[0];
    match decide(&scope.port, l3_len(packet)) {
        Ok(network) => {
            packet.network = network;
            Step::on(format!("{} is on {}", scope.tables.label(scope.ingress), scope.tables.network_label(network)))
        }
        Err(reason) => Step::drop(scope, reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::rig::{config, port};

    fn entry(change: impl FnOnce(&mut switch::config::PortConfig)) -> PortEntry {
        let mut port = port(0, Some(1));
        change(&mut port);
        crate::tables::Tables::compile(&config(vec![port])).port(switch::ids::PortIndex(0))
    }

    #[test]
    fn a_frame_gets_the_network_of_its_port() {
        assert_eq!(decide(&entry(|_| {}), 46), Ok(NetworkIndex(1)));
    }

    #[test]
    fn a_port_on_no_network_or_down_takes_nothing() {
        assert_eq!(decide(&entry(|port| port.network = None), 46), Err(DropReason::NoNetwork));
        assert_eq!(decide(&entry(|port| port.is_admin_up = false), 46), Err(DropReason::PortAdminDown));
    }

    #[test]
    fn the_mtu_is_the_last_length_that_passes() {
        assert!(decide(&entry(|port| port.mtu = 1400), 1400).is_ok());
        assert_eq!(decide(&entry(|port| port.mtu = 1400), 1401), Err(DropReason::OverMtu));
    }
}
