//! What the MAC table holds, brought in line with a config that is put in force.

use crate::config::{Config, PortConfig};
use crate::ids::{MacAddr, NetworkIndex};
use crate::mac_table::MacTable;
use std::collections::HashSet;

/// Makes the MAC table follow a change of config. Entries that a worker still learns by the old config meanwhile do
/// no harm: the bridge follows an entry only to a port that is on the packet's own network.
pub(super) fn align(mac_table: &MacTable, before: &Config, after: &Config) -> usize {
    let mut flushed = Vec::new();
    for network in before.networks() {
        if after.network(network.index).is_none_or(|now| now.id != network.id) {
            mac_table.flush_network(network.index);
            flushed.push(network.index);
        }
    }
    for old in before.ports() {
        let new = after.port(old.index);
        let stays = new.is_some_and(|new| new.network == old.network && new.interface == old.interface);
        for (network, mac) in fixed(old) {
            if !stays || new.is_some_and(|new| !new.macs.contains(&mac)) {
                mac_table.remove_static(network, mac);
            }
        }
        if !stays || new.is_some_and(|new| !new.is_admin_up || is_narrower(old, new)) {
            mac_table.flush_port(old.index);
        }
    }
    let far_ends = |config: &Config| {
        let underlay = config.underlay();
        let vlans = underlay.vlans.iter().map(|vlan| (vlan.index, Some(vlan.network), None));
        vlans.chain(underlay.peers().map(|peer| (peer.index, None, Some(peer.address)))).collect::<HashSet<_>>()
    };
    for (index, ..) in far_ends(before).difference(&far_ends(after)) {
        mac_table.flush_port(*index);
    }
    let mut unplaced = 0;
    for port in after.ports() {
        // A flush takes static entries along; those of a network that only took the index over are wanted still.
        let is_flushed = port.network.is_some_and(|network| flushed.binary_search(&network).is_ok());
        if is_flushed || before.port(port.index) != Some(port) {
            for (network, mac) in fixed(port) {
                unplaced += usize::from(!mac_table.insert_static(network, mac, port.index));
            }
        }
    }
    unplaced
}

/// The static MAC entries that a port asks for.
fn fixed(port: &PortConfig) -> impl Iterator<Item = (NetworkIndex, MacAddr)> + '_ {
    port.network.into_iter().flat_map(|network| port.macs.iter().map(move |&mac| (network, mac)))
}

/// Whether a port may no longer send from a MAC that may have been learnt on it.
fn is_narrower(old: &PortConfig, new: &PortConfig) -> bool {
    let is_any = |port: &PortConfig| port.macs.is_empty() && port.allowed_macs.is_empty();
    let may_not = |mac| !new.macs.contains(mac) && !new.allowed_macs.contains(mac);
    !is_any(new) && (is_any(old) || old.allowed_macs.iter().any(may_not))
}
