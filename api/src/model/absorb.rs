//! How what others did becomes part of a model: as the last state of each record, in an order in which it can follow.

use super::{Change, Inconsistent, LogicalPort, Model, Network, NetworkId, PortId, Touched};
use std::collections::BTreeMap;

impl Model {
    /// Does what others did, as they told it: of each network and port only the last step counts, and they come in any order.
    /// Answers what that touched.
    ///
    /// # Errors
    /// [`Inconsistent`] if it cannot follow on this model, which is then half changed: work on a copy.
    pub fn absorb(&mut self, changes: impl IntoIterator<Item = Change>) -> Result<Touched, Inconsistent> {
        let mut networks: BTreeMap<NetworkId, Option<Network>> = BTreeMap::new();
        let mut ports: BTreeMap<PortId, Option<LogicalPort>> = BTreeMap::new();
        for change in changes {
            match change {
                Change::PutNetwork(network) => drop(networks.insert(network.id.clone(), Some(network))),
                Change::RemoveNetwork(id) => drop(networks.insert(id, None)),
                Change::PutPort(port) => drop(ports.insert(port.id.clone(), Some(port))),
                Change::RemovePort(id) => drop(ports.insert(id, None)),
            }
        }
        let mut touched = Touched::default();
        // What is in the way goes first: ports that are gone or are to be made anew, and attachments that move.
        for (id, port) in &ports {
            let Some(old) = self.ports.get(id).cloned() else { continue };
            self.touch(&Change::RemovePort(id.clone()), &mut touched);
            match port {
                Some(port) if port.network == old.network && port.serial == old.serial => {
                    self.put_port(LogicalPort { attachment: None, ..old });
                }
                _ => self.remove_port(id),
            }
        }
        for (id, network) in &networks {
            let is_another = |old: &Network, new: &Network| {
                (&old.tenant, &old.network_type, old.serial) != (&new.tenant, &new.network_type, new.serial)
            };
            let Some(old) = self.networks.get(id) else { continue };
            if network.as_ref().is_none_or(|new| is_another(old, new)) {
                if let Some(port) = self.ports_of(id).next() {
                    return Err(Inconsistent::PortWithoutNetwork { port: port.id.clone(), network: id.clone() });
                }
                self.remove_network(id);
            }
        }
        // Where others' numbers are says nothing of up to where those of our own range are taken.
        let vni_hint = self.vni_hint;
        for network in networks.into_values().flatten() {
            self.check_network(&network)?;
            self.put_network(network);
        }
        self.vni_hint = vni_hint;
        for port in ports.into_values().flatten() {
            let port = self.check_port(port)?;
            self.touch(&Change::PutPort(port.clone()), &mut touched);
            self.put_port(port);
        }
        Ok(touched)
    }
}
