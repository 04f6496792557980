//! What tenants own: networks, logical ports and attachments, in memory, as committed to the store.
//!
//! Ids are server-made lower-case UUIDs. Names, tenants and attachment ids are opaque UTF-8 compared byte for byte. A
//! [`Model`] is plain data with its indexes; who may change it and in which order faults win is the plugin's matter.
//!
//! The hard part is that indexes and counts must agree with two tables after every change. So there is one way to change a
//! model, [`Model::apply`] (for what other hosts did, [`Model::absorb`]), and the store commits exactly the [`Change`]s that are
//! applied. Any thread may read a
//! model; the plugin's writer is the only one that changes it. It has no bound of its own: quotas are the API's matter.
//! A copy shares what did not change ([`crate::shared`]); no question asked here costs more because others have much.

mod absorb;
mod inconsistent;

use crate::address_pair::AddressPairs;
use crate::network_type::{NetworkType, Segment};
use crate::shared::{SharedList, SharedMap};
pub use inconsistent::Inconsistent;
use std::sync::Arc;
use switch::underlay::VlanId;

/// Longest name, tenant or attachment id, bytes; `api/DEVIATIONS.md` tells clients.
pub const TEXT_BYTES_MAX: usize = 1024;

/// The highest serial of a record that comes from elsewhere. A thousand records a second fill what is left in ages.
pub const SERIAL_MAX: u64 = u64::MAX / 2;

/// Text a tenant gave: at most [`TEXT_BYTES_MAX`] bytes, no NUL.
pub type Text = Arc<str>;
/// A network's UUID.
pub type NetworkId = Arc<str>;
/// A logical port's UUID.
pub type PortId = Arc<str>;
/// The text a tenant plugs as attachment and an operator plugs as interface.
pub type InterfaceId = Arc<str>;

/// How large a list is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ListSize {
    /// Its rows: networks or ports.
    pub rows: usize,
    /// Bytes that texts of clients in them take when they are told ([`told_bytes_max`]): names of networks, ids of what is
    /// plugged into ports.
    pub text_bytes: usize,
}

/// Administrative state of a logical port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum AdminState {
    /// May pass traffic.
    Active,
    /// Must not.
    Down,
}

impl AdminState {
    /// The state of this name. The two names are case-sensitive, as on the wire.
    pub fn from_name(name: &str) -> Option<AdminState> {
        match name {
            "ACTIVE" => Some(AdminState::Active),
            "DOWN" => Some(AdminState::Down),
            _ => None,
        }
    }

    /// Its name on the wire and in the store.
    pub fn name(self) -> &'static str {
        match self {
            AdminState::Active => "ACTIVE",
            AdminState::Down => "DOWN",
        }
    }
}

/// Whether the data plane carries it, as the API tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpStatus {
    /// It does.
    Up,
    /// It does not.
    Down,
    /// A plugin is at it.
    Provisioning,
    /// The plugin does not track it.
    Unknown,
}

impl OpStatus {
    /// The status of this name.
    pub fn from_name(name: &str) -> Option<OpStatus> {
        [OpStatus::Up, OpStatus::Down, OpStatus::Provisioning, OpStatus::Unknown]
            .into_iter()
            .find(|status| status.name() == name)
    }

    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            OpStatus::Up => "UP",
            OpStatus::Down => "DOWN",
            OpStatus::Provisioning => "PROVISIONING",
            OpStatus::Unknown => "UNKNOWN",
        }
    }
}

/// An isolated L2 segment of one tenant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Network {
    /// Its UUID.
    pub id: NetworkId,
    /// The owner.
    pub tenant: Text,
    /// Its name; `None` where the tenant gave an empty one.
    pub name: Option<Text>,
    /// How it is carried beyond its host; never changes.
    pub network_type: NetworkType,
    /// Position in creation order; lists are in this order.
    pub serial: u64,
}

/// A network's socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogicalPort {
    /// Its UUID.
    pub id: PortId,
    /// The network it is on.
    pub network: NetworkId,
    /// The tenant's wish.
    pub state: AdminState,
    /// The interface plugged into it.
    pub attachment: Option<InterfaceId>,
    /// The addresses it may send from; none: any that its plug allows.
    pub pairs: AddressPairs,
    /// Position in creation order; lists are in this order.
    pub serial: u64,
}

/// All networks and ports with their indexes; what the store holds, in memory.
#[derive(Clone, Default, Debug)]
pub struct Model {
    /// By id.
    pub networks: SharedMap<NetworkId, Network>,
    /// By id.
    pub ports: SharedMap<PortId, LogicalPort>,
    /// Networks of each tenant that has any, in creation order; they themselves, so that a list looks for none.
    pub by_tenant: SharedMap<Text, SharedList<Network>>,
    /// Ports of each network that has any, in creation order.
    pub by_network: SharedMap<NetworkId, SharedList<PortId>>,
    /// How much each tenant has that has any.
    counts: SharedMap<Text, Counts>,
    /// Bytes that the ids of what is plugged into a network's ports take when they are told; networks without any are not in it.
    attachment_bytes: SharedMap<NetworkId, usize>,
    /// The one port an interface is attached to, in the whole service.
    pub by_attachment: SharedMap<InterfaceId, PortId>,
    /// The one network that has a VLAN or VNI.
    pub by_segment: SharedMap<Segment, NetworkId>,
    /// See [`Model::vni_hint`].
    vni_hint: u32,
    /// See [`Model::last_vlan`], and the serial of its network.
    last_vlan: Option<(u64, Text, VlanId)>,
    /// The serial of the next network or port.
    next_serial: u64,
}

/// How much a tenant has.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Its networks.
    pub networks: usize,
    /// The ports on all of them.
    pub ports: usize,
    /// Bytes that the networks' names take when they are told ([`told_bytes_max`]).
    pub name_bytes: usize,
}

/// How many bytes a text takes at most when it is told, in either format: each character as it is or as its longest escape.
pub fn told_bytes_max(text: &str) -> usize {
    let bytes = |c: char| match c {
        c if c.is_ascii_alphanumeric() || " -_.:/".contains(c) => 1,
        // `\u00e9`, of which JSON needs two for what UTF-16 has as two.
        c => 6 * c.len_utf16(),
    };
    text.chars().map(bytes).sum()
}

/// What a change may have made a difference to.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Touched {
    /// Interfaces that are, or were, plugged into a port that changed.
    pub interfaces: Vec<InterfaceId>,
    /// Networks that gained or lost an interface, or have one that changed.
    pub networks: Vec<NetworkId>,
}

impl Touched {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.interfaces.is_empty() && self.networks.is_empty()
    }
}

/// One step of a write: what the store commits and [`Model::apply`] then does. Steps of one write come as one slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A network is new or has a new name. Its tenant and serial never change.
    PutNetwork(Network),
    /// A network is gone. Its ports go before it, in the same slice.
    RemoveNetwork(NetworkId),
    /// A port is new, or has a new state, attachment or pairs. Its network and serial never change.
    PutPort(LogicalPort),
    /// A port is gone.
    RemovePort(PortId),
}

impl Model {
    /// A model of these records, in any order.
    ///
    /// # Errors
    /// [`Inconsistent`] if they contradict each other, which records written by [`Change`]s never do.
    pub fn from_records(networks: Vec<Network>, ports: Vec<LogicalPort>) -> Result<Model, Inconsistent> {
        let mut model = Model::default();
        for network in side_by_side(networks) {
            if model.networks.contains_key(&network.id) {
                return Err(Inconsistent::NetworkTwice { network: network.id });
            }
            model.check_network(&network)?;
            model.put_network(network);
        }
        model.vni_hint = 0;
        for port in ports {
            if model.ports.contains_key(&port.id) {
                return Err(Inconsistent::PortTwice { port: port.id });
            }
            let port = model.check_port(port)?;
            model.put_port(port);
        }
        Ok(model)
    }

    /// The serial for the next network or port to be created: above every serial in use.
    pub fn next_serial(&self) -> u64 {
        self.next_serial
    }

    /// The number from which to look for a VNI that no network has: below it there is none, unless some were skipped
    /// because they were outside of the range of their time.
    pub fn vni_hint(&self) -> u32 {
        self.vni_hint
    }

    /// The VLAN that the newest network got that ever had one, with its physical network: whether that network is there or
    /// not, as long as this model and its copies live.
    pub fn last_vlan(&self) -> Option<(&Text, VlanId)> {
        self.last_vlan.as_ref().map(|(_, physical_network, vlan)| (physical_network, *vlan))
    }

    /// Does one step.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::PutNetwork(network) => self.put_network(network.clone()),
            Change::RemoveNetwork(id) => self.remove_network(id),
            Change::PutPort(port) => self.put_port(port.clone()),
            Change::RemovePort(id) => self.remove_port(id),
        }
    }

    /// This tenant's network of this id; nobody else's.
    pub fn network_of(&self, tenant: &str, id: &str) -> Option<&Network> {
        self.networks.get(id).filter(|network| &*network.tenant == tenant)
    }

    /// The port of this id, if it is on this network.
    pub fn port_of(&self, network: &str, id: &str) -> Option<&LogicalPort> {
        self.ports.get(id).filter(|port| &*port.network == network)
    }

    /// A tenant's networks in creation order.
    pub fn networks_of<'a>(&'a self, tenant: &str) -> impl Iterator<Item = &'a Network> + use<'a> {
        self.by_tenant.get(tenant).into_iter().flat_map(SharedList::iter)
    }

    /// How much a tenant has.
    pub fn counts_of(&self, tenant: &str) -> Counts {
        self.counts.get(tenant).copied().unwrap_or_default()
    }

    /// The tenants that have anything, in no order.
    pub fn tenants(&self) -> impl Iterator<Item = &Text> {
        self.counts.keys()
    }

    /// A network's ports in creation order.
    pub fn ports_of<'a>(&'a self, network: &NetworkId) -> impl Iterator<Item = &'a LogicalPort> + use<'a> {
        self.by_network.get(network).into_iter().flat_map(SharedList::iter).map(|id| {
            self.ports.get(id).expect("by_network names only ports of the model: apply changes both together")
        })
    }

    /// Whether anything is plugged into a port of this network.
    pub fn has_attachments(&self, network: &NetworkId) -> bool {
        self.attachment_bytes.contains_key(network)
    }

    /// How large a list of a tenant's networks is, or of the ports of one of its networks; of what is not there nothing.
    pub fn list_size(&self, tenant: &str, network: Option<&str>) -> ListSize {
        match network {
            None => {
                let counts = self.counts_of(tenant);
                ListSize { rows: counts.networks, text_bytes: counts.name_bytes }
            }
            Some(network) => match self.network_of(tenant, network) {
                None => ListSize::default(),
                Some(network) => ListSize {
                    rows: self.by_network.get(&network.id).map_or(0, SharedList::len),
                    text_bytes: self.attachment_bytes.get(&network.id).copied().unwrap_or_default(),
                },
            },
        }
    }

    /// Adds to `touched` what a step may change the forwarding of, if it is done now: what was plugged into the port and what
    /// will be, and the network. A network that comes, goes or is renamed changes nothing, because one that goes has no
    /// attachment left.
    pub fn touch(&self, change: &Change, touched: &mut Touched) {
        let (before, after) = match change {
            Change::PutNetwork(_) | Change::RemoveNetwork(_) => (None, None),
            Change::PutPort(port) => (self.ports.get(&port.id), Some(port)),
            Change::RemovePort(id) => (self.ports.get(id), None),
        };
        for port in before.into_iter().chain(after) {
            if let Some(attachment) = &port.attachment {
                touched.interfaces.push(attachment.clone());
                touched.networks.push(port.network.clone());
            }
        }
    }

    /// Whether a network may be part of the model beside what is there.
    fn check_network(&self, network: &Network) -> Result<(), Inconsistent> {
        if let Some(segment) = network.network_type.segment()
            && let Some(first) = self.by_segment.get(&segment).filter(|first| **first != network.id)
        {
            return Err(Inconsistent::SegmentTwice { first: first.clone(), second: network.id.clone() });
        }
        Ok(())
    }

    /// The same of a port, which comes back with its network's text, one in memory for all ports of it.
    fn check_port(&self, mut port: LogicalPort) -> Result<LogicalPort, Inconsistent> {
        let Some(network) = self.networks.get(&port.network) else {
            return Err(Inconsistent::PortWithoutNetwork { port: port.id, network: port.network });
        };
        port.network = network.id.clone();
        if let Some(attachment) = &port.attachment
            && let Some(first) = self.by_attachment.get(attachment).filter(|first| **first != port.id)
        {
            return Err(Inconsistent::AttachedTwice {
                attachment: attachment.clone(),
                first: first.clone(),
                second: port.id,
            });
        }
        Ok(port)
    }

    /// The logical port an interface is attached to.
    pub fn port_by_attachment(&self, interface: &str) -> Option<&LogicalPort> {
        self.by_attachment.get(interface).and_then(|id| self.ports.get(id))
    }

    fn put_network(&mut self, network: Network) {
        self.next_serial = self.next_serial.max(network.serial.saturating_add(1));
        let old = self.networks.get(&network.id).map(name_bytes);
        if old.is_none()
            && let Some(segment) = network.network_type.segment()
        {
            match &segment {
                Segment::Vni(vni) => self.vni_hint = self.vni_hint.max(vni.get() + 1),
                Segment::Vlan(physical_network, vlan) => {
                    if self.last_vlan.as_ref().is_none_or(|(serial, ..)| *serial <= network.serial) {
                        self.last_vlan = Some((network.serial, physical_network.clone(), *vlan));
                    }
                }
            }
            let other = self.by_segment.insert(segment, network.id.clone());
            assert!(other.is_none(), "a segment is one network's: who makes a network looks for a free one");
        }
        let counts = self.counts.entry_mut(&network.tenant);
        counts.networks += usize::from(old.is_none());
        counts.name_bytes += name_bytes(&network);
        counts.name_bytes -= old.unwrap_or_default();
        self.by_tenant.entry_mut(&network.tenant).insert(network.serial, network.clone());
        self.networks.insert(network.id.clone(), network);
    }

    fn remove_network(&mut self, id: &NetworkId) {
        assert!(self.ports_of(id).next().is_none(), "a network is removed after its ports");
        if let Some(network) = self.networks.remove(id) {
            strike_out(&mut self.by_tenant, &network.tenant, network.serial);
            let counts = self.counts.entry_mut(&network.tenant);
            counts.networks -= 1;
            counts.name_bytes -= name_bytes(&network);
            if *counts == Counts::default() {
                self.counts.remove(&network.tenant);
            }
            if let Some(segment) = network.network_type.segment() {
                self.by_segment.remove(&segment);
                if let Segment::Vni(vni) = segment {
                    self.vni_hint = self.vni_hint.min(vni.get());
                }
            }
        }
    }

    fn put_port(&mut self, port: LogicalPort) {
        self.next_serial = self.next_serial.max(port.serial.saturating_add(1));
        match self.ports.get(&port.id) {
            Some(old) => {
                let old_network = old.network.clone();
                if let Some(attachment) = old.attachment.clone() {
                    self.detach(&old_network, &attachment);
                }
            }
            None => {
                self.by_network.entry_mut(&port.network).insert(port.serial, port.id.clone());
                let tenant = self.tenant_of_network(&port.network);
                self.counts.entry_mut(&tenant).ports += 1;
            }
        }
        if let Some(attachment) = &port.attachment {
            *self.attachment_bytes.entry_mut(&port.network) += told_bytes_max(attachment);
            let other = self.by_attachment.insert(attachment.clone(), port.id.clone());
            assert!(other.is_none(), "an interface is attached to one port only: plugins check before they commit");
        }
        self.ports.insert(port.id.clone(), port);
    }

    fn remove_port(&mut self, id: &PortId) {
        if let Some(port) = self.ports.remove(id) {
            strike_out(&mut self.by_network, &port.network, port.serial);
            let tenant = self.tenant_of_network(&port.network);
            self.counts.entry_mut(&tenant).ports -= 1;
            if let Some(attachment) = port.attachment {
                self.detach(&port.network, &attachment);
            }
        }
    }

    /// Forgets that this is plugged into a port of the network.
    fn detach(&mut self, network: &NetworkId, attachment: &InterfaceId) {
        self.by_attachment.remove(attachment);
        let bytes = self.attachment_bytes.entry_mut(network);
        *bytes -= told_bytes_max(attachment);
        if *bytes == 0 {
            self.attachment_bytes.remove(network);
        }
    }

    fn tenant_of_network(&self, network: &NetworkId) -> Text {
        self.networks.get(network).expect("a port's network is there before it and longer than it").tenant.clone()
    }
}

/// Networks with texts of their own, made one tenant's after another's, so that what a list tells lies together in memory
/// whatever the order in which the records came.
fn side_by_side(mut networks: Vec<Network>) -> impl Iterator<Item = Network> {
    networks.sort_by(|one, other| (&one.tenant, one.serial).cmp(&(&other.tenant, other.serial)));
    let mut last = Text::default();
    networks.into_iter().map(move |network| {
        if network.tenant != last {
            last = Text::from(&*network.tenant);
        }
        let (id, name) = (NetworkId::from(&*network.id), network.name.as_deref().map(Text::from));
        Network { id, name, tenant: last.clone(), ..network }
    })
}

fn name_bytes(network: &Network) -> usize {
    network.name.as_deref().map_or(0, told_bytes_max)
}

/// Takes a serial out of its owner's list, and the list out of the index if it was the last.
fn strike_out<T: Clone>(index: &mut SharedMap<Text, SharedList<T>>, owner: &Text, serial: u64) {
    let list = index.entry_mut(owner);
    list.remove(serial);
    if list.is_empty() {
        index.remove(owner);
    }
}

#[cfg(test)]
mod tests;
