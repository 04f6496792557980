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
    let (told_before, told_after) = (&before.underlay().told.stations, &after.underlay().told.stations);
    let (was_told, is_told): (HashSet<_>, HashSet<_>) = (told_before.iter().collect(), told_after.iter().collect());
    for gone in was_told.difference(&is_told) {
        mac_table.remove_static(gone.network, gone.mac);
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
    for station in told_after {
        if !was_told.contains(station) || flushed.binary_search(&station.network).is_ok() {
            unplaced += usize::from(!mac_table.insert_static(station.network, station.mac, station.peer));
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::config::{ConfigError, MTU_DEFAULT, NetworkConfig};
    use crate::ids::PortIndex;
    use crate::mac_table::Learned;
    use crate::underlay::{PeerConfig, StationConfig, ToldConfig, TunnelConfig, Underlay};

    const NETWORK: NetworkIndex = NetworkIndex(1);
    const STATION: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

    /// Port 0 with these fixed addresses, peers 7 and 8, and these stations behind them.
    fn config(fixed: &[MacAddr], stations: Vec<StationConfig>) -> Result<Config, ConfigError> {
        let peer = |index: u16| PeerConfig::new(PortIndex(index), [192, 0, 2, index as u8].into(), None);
        let tunnel = TunnelConfig::new([192, 0, 2, 1].into(), vec![peer(7), peer(8)]);
        let port = PortConfig {
            index: PortIndex(0),
            interface: "vm".into(),
            network: Some(NETWORK),
            is_admin_up: true,
            mtu: MTU_DEFAULT,
            macs: fixed.to_vec(),
            allowed_macs: Vec::new(),
        };
        let told = ToldConfig { stations, ..ToldConfig::default() };
        let underlay = Underlay { tunnel: Some(tunnel), told, ..Underlay::default() };
        Config::with_underlay(vec![NetworkConfig { index: NETWORK, id: "n".into() }], vec![port], underlay)
    }

    #[test]
    fn a_station_whose_host_is_told_is_static_there_until_it_is_told_otherwise() {
        let (table, now) = (MacTable::new(1000, 300), Clock::default().now());
        let at = |peer| StationConfig { network: NETWORK, mac: STATION, peer: PortIndex(peer) };
        let mut before = Config::default();
        let mut become_of = |fixed: &[MacAddr], stations| {
            let after = config(fixed, stations).unwrap();
            assert_eq!(align(&table, &before, &after), 0);
            before = after;
            table.lookup(NETWORK, STATION, now)
        };
        assert_eq!(become_of(&[], vec![at(7)]), Some(PortIndex(7)));
        assert_eq!(table.learn(NETWORK, STATION, PortIndex(0), now), Learned::Static);
        assert_eq!(become_of(&[], vec![at(8)]), Some(PortIndex(8)), "it has moved");
        assert_eq!(become_of(&[STATION], vec![]), Some(PortIndex(0)), "it is here");
        assert_eq!(become_of(&[], vec![]), None);
    }

    #[test]
    fn stations_that_contradict_what_is_there_make_no_config() {
        let at = |peer| StationConfig { network: NETWORK, mac: STATION, peer: PortIndex(peer) };
        assert!(matches!(config(&[STATION], vec![at(7)]), Err(ConfigError::MacTwice { .. })));
        assert!(matches!(config(&[], vec![at(7), at(8)]), Err(ConfigError::MacTwice { .. })));
        assert!(matches!(config(&[], vec![at(9)]), Err(ConfigError::FarEndWithout(PortIndex(9)))));
        let group = StationConfig { mac: MacAddr::BROADCAST, ..at(7) };
        assert!(matches!(config(&[], vec![group]), Err(ConfigError::BadMac { .. })));
    }
}
