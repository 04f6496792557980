//! What `qvs show` tells, as rows: the one form that the daemon sends, `--json` prints and tables are made from.
//!
//! Programs rely on the names of fields; fields are only ever added. Everything is read at the moment of asking; nothing here
//! is kept.

use crate::bond::LinkStatus;
use crate::control::{Control, InterfaceView};
use crate::devices::device_name;
use api::address_pair::AddressPair;
use api::cluster::Directory;
use api::host::{DeviceSpec, SocketRole};
use api::model::{AdminState, InterfaceId, LogicalPort, Model, Text};
use api::quota::{Limit, Quotas};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use switch::config::{MTU_DEFAULT, MTU_MAX};
use switch::device::LinkCounters;
use switch::ids::PortIndex;
use switch::ledger::FlowTotals;
use switch::port::Link;
use switch::worker::Pipeline;

/// A host that shares the state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct NodeRow {
    /// Its name.
    pub(crate) host: String,
    /// The parts it plays.
    pub(crate) roles: Vec<String>,
    /// Its end of tunnels.
    pub(crate) tunnel: Option<String>,
    /// The physical networks that its uplinks are on.
    pub(crate) physical_networks: Vec<String>,
    /// How many interfaces are plugged there.
    pub(crate) interfaces: usize,
    /// How many of them are carried.
    pub(crate) up: usize,
    /// Whether this is the one that was asked.
    pub(crate) is_self: bool,
    /// What etcd refuses the one that was asked, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) refusals: Vec<String>,
}

/// The hosts that share the state, by name; none without etcd.
pub(crate) fn nodes<P: Pipeline>(control: &Control<P>) -> Vec<NodeRow> {
    let Some(cluster) = control.cluster() else { return Vec::new() };
    let row = |directory: &Directory, host: &Text| {
        let node = directory.node(host)?;
        let plugs = || directory.plugs_of(host).filter_map(|interface| directory.plug(interface));
        Some(NodeRow {
            host: host.to_string(),
            roles: node.roles.clone(),
            tunnel: node.tunnel.map(|address| address.to_string()),
            physical_networks: node.physical_networks.clone(),
            interfaces: plugs().count(),
            up: plugs().filter(|plug| plug.record.is_up).count(),
            is_self: host == cluster.host(),
            refusals: if host == cluster.host() { cluster.refusals() } else { Vec::new() },
        })
    };
    let mut rows: Vec<NodeRow> =
        cluster.look(|directory| directory.nodes().filter_map(|(host, _)| row(directory, host)).collect());
    let (host, refusals) = (cluster.host().to_string(), cluster.refusals());
    if !refusals.is_empty() && !rows.iter().any(|row| row.is_self) {
        // Who may not say that he lives is none of those that do, and is to be told of all the same.
        let (roles, physical_networks) = (Vec::new(), Vec::new());
        rows.push(NodeRow {
            host,
            roles,
            tunnel: None,
            physical_networks,
            interfaces: 0,
            up: 0,
            is_self: true,
            refusals,
        });
    }
    rows.sort_by(|a, b| a.host.cmp(&b.host));
    rows
}

/// One direction of a port's traffic.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct FlowRow {
    /// Frames moved.
    pub(crate) packets: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Frames dropped, by reason.
    pub(crate) drops: BTreeMap<String, u64>,
}

impl From<FlowTotals> for FlowRow {
    fn from(totals: FlowTotals) -> FlowRow {
        FlowRow {
            packets: totals.packets,
            bytes: totals.bytes,
            drops: totals.drops().map(|(reason, count)| (reason.name().to_owned(), count)).collect(),
        }
    }
}

/// An interface, a logical port, or both together.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct PortRow {
    /// The interface id: plugged, attached, or both; `None`: a logical port without attachment.
    pub(crate) interface: Option<String>,
    /// `vhost-user`, `tap` or `device`, also of uplinks; `vlan` or `tunnel` of far ends; `None`: no device.
    pub(crate) kind: Option<String>,
    /// The socket's path, the interface's name, the VLAN id or the peer's address; of a VLAN of a trunk, the trunk's id.
    pub(crate) path: Option<String>,
    /// The VLAN of the other interface that `path` names, for a `vlan` that is one of a trunk.
    #[serde(default)]
    pub(crate) vlan: Option<u16>,
    /// The switch's role on the socket.
    pub(crate) role: Option<String>,
    /// The interface's namespace; `None`: the daemon's.
    pub(crate) netns: Option<String>,
    /// How the frames of a `device` are moved; `None`: it is not open, or of another kind.
    #[serde(default)]
    pub(crate) driver: Option<String>,
    /// How the driver does it: by whom the XDP program is run, and who copies; `None`: there is nothing to tell.
    #[serde(default)]
    pub(crate) driver_mode: Option<String>,
    /// What the kernel counted at a `device` since that was made, up to a second ago: also what never came to the switch
    /// (`rx_missed`, `rx_dropped`, `rx_errors`; by AF_XDP `rx_unclaimed`, since it was opened). Empty: it is not open, of another kind, or a bond, whose `links` tell.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) device_counters: BTreeMap<String, u64>,
    /// The logical port.
    pub(crate) port: Option<String>,
    /// Its network.
    pub(crate) network: Option<String>,
    /// The network's tenant.
    pub(crate) tenant: Option<String>,
    /// `ACTIVE` or `DOWN`, as the tenant wants the logical port.
    pub(crate) state: Option<String>,
    /// `UP` or `DOWN`, as the API tells it.
    pub(crate) op_status: Option<String>,
    /// `up` if the guest's rings run or the carrier is there.
    pub(crate) link: String,
    /// Why it does not work, or why the last session ended; empty if there is nothing to say.
    pub(crate) reason: String,
    /// The source MACs fixed for it; empty: any.
    pub(crate) macs: Vec<String>,
    /// The addresses that it has with its one MAC, for which the switch answers.
    #[serde(default)]
    pub(crate) addresses: Vec<IpAddr>,
    /// The source MACs its tenant allowed besides; empty with `macs` empty too: any.
    #[serde(default)]
    pub(crate) allowed_macs: Vec<String>,
    /// Bytes of L3 payload; `None`: no device, or one of somebody else's that is not there.
    pub(crate) mtu: Option<u16>,
    /// Whether `attach.auto` made it.
    pub(crate) automatic: bool,
    /// Sessions that began on the socket since it was opened; `None`: no socket.
    #[serde(default)]
    pub(crate) sessions: Option<u64>,
    /// The links of a bond.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) links: Vec<LinkRow>,
    /// Connections to it that were turned away, because a session was on or because of the peer's user.
    #[serde(default)]
    pub(crate) refused: Option<u64>,
    /// Received by the switch from the device.
    pub(crate) rx: FlowRow,
    /// Sent by the switch to the device.
    pub(crate) tx: FlowRow,
}

/// A link of a bonded uplink.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct LinkRow {
    /// The interface.
    pub(crate) interface: String,
    /// `up` if it is open and has a carrier.
    pub(crate) link: String,
    /// Whether frames are sent by it, and received.
    pub(crate) sending: bool,
    pub(crate) receiving: bool,
    /// By LACP: the other end's system, if it was heard lately; `None`: it was not, or nobody asks.
    pub(crate) partner: Option<String>,
    /// By LACP: the state octets of ours and of the other end (IEEE 802.1AX-2014 section 6.4.2.3).
    pub(crate) lacp_states: Option<[u8; 2]>,
    /// What the kernel counted there, as for a `device`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) device_counters: BTreeMap<String, u64>,
}

/// Counters by their names.
fn by_name(counters: Option<LinkCounters>) -> BTreeMap<String, u64> {
    let counters = counters.iter().flat_map(LinkCounters::iter);
    counters.map(|(name, count)| (name.to_owned(), count)).collect()
}

impl From<(LinkStatus, Option<LinkCounters>)> for LinkRow {
    fn from((status, counters): (LinkStatus, Option<LinkCounters>)) -> LinkRow {
        LinkRow {
            interface: status.interface,
            link: if status.is_up { "up" } else { "down" }.into(),
            sending: status.is_sending,
            receiving: status.is_receiving,
            partner: status.lacp.filter(|lacp| lacp.is_current).map(|lacp| lacp.partner.to_string()),
            lacp_states: status.lacp.map(|lacp| lacp.states),
            device_counters: by_name(counters),
        }
    }
}

/// A tenant's network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct NetworkRow {
    /// Its UUID.
    pub(crate) id: String,
    /// Its name.
    pub(crate) name: Option<String>,
    /// Its owner.
    pub(crate) tenant: String,
    /// How it is carried: `local`, within this host; `vlan`, `vxlan`, `geneve` or `gre`, between hosts.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// The physical network of a VLAN.
    pub(crate) physical_network: Option<String>,
    /// Its VLAN id, VNI or GRE key; `None` if local.
    pub(crate) segmentation_id: Option<u32>,
    /// Bytes of L3 payload that frames to other hosts may have: what its guests should have for their MTU at most; `None`: it is
    /// local, or has no way out now.
    #[serde(default)]
    pub(crate) mtu: Option<u16>,
    /// Its logical ports.
    pub(crate) ports: Vec<String>,
}

/// An entry of the MAC table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct MacRow {
    /// The network's UUID.
    pub(crate) network: Option<String>,
    /// The address.
    pub(crate) mac: String,
    /// The logical port.
    pub(crate) port: Option<String>,
    /// The interface.
    pub(crate) interface: Option<String>,
    /// The endpoint on another host; `None`: it is here.
    pub(crate) remote: Option<String>,
    /// Fixed by the operator.
    #[serde(rename = "static")]
    pub(crate) is_static: bool,
    /// Seconds since it was seen; 0 if static.
    pub(crate) age_s: u32,
}

/// A worker.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct WorkerRow {
    /// Its number.
    pub(crate) worker: u8,
    /// The CPU it is pinned to.
    pub(crate) cpu: Option<usize>,
    /// Share of the last second spent in rounds that found frames, 0 to 1.
    pub(crate) busy: f64,
    /// Time in such rounds of the last second, a packet, in cycles of `cpu_mhz`; `None` without packets, or where the system tells no
    /// clock.
    pub(crate) cycles_per_packet: Option<f64>,
    /// The clock used for that, MHz: the one the CPU is sold with, else its highest, else the one it had at the start.
    pub(crate) cpu_mhz: Option<f64>,
    /// Frames taken from devices since the start.
    pub(crate) packets: u64,
    /// Frames in a batch, on average in the last second; 0 if there was none.
    pub(crate) batch: f64,
    /// Times it went to sleep since the start.
    pub(crate) sleeps: u64,
    /// Interfaces it polls.
    pub(crate) ports: Vec<String>,
    /// Queues of theirs that it polls.
    #[serde(default)]
    pub(crate) queues: Vec<QueueRow>,
}

/// A queue that a worker polls.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct QueueRow {
    /// The interface.
    pub(crate) interface: String,
    /// Its queue towards the switch, 0-based.
    pub(crate) queue: u16,
    /// Share of the last second that its frames took of its worker's time, 0 to 1; an estimate.
    pub(crate) busy: f64,
}

/// Frames of one port and direction dropped for one reason.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct DropRow {
    /// The interface.
    pub(crate) interface: String,
    /// The logical port.
    pub(crate) port: Option<String>,
    /// `rx`: on the way from the device; `tx`: to it.
    pub(crate) direction: String,
    /// Why.
    pub(crate) reason: String,
    /// How many.
    pub(crate) count: u64,
}

/// What a tenant has and may have.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct QuotaRow {
    /// The tenant.
    pub(crate) tenant: String,
    /// Its networks.
    pub(crate) networks: usize,
    /// How many it may have; -1: any number.
    pub(crate) networks_max: Limit,
    /// The ports on them.
    pub(crate) ports: usize,
    /// How many it may have; -1: any number.
    pub(crate) ports_max: Limit,
}

/// Hands on the rows of `show ports`, one by one because a cloud may have any number: interfaces in the order of their ids, then
/// logical ports that have none, then ways to other hosts.
///
/// # Errors
/// What `visit` said.
pub(crate) fn each_port<P: Pipeline>(
    control: &Control<P>,
    mut visit: impl FnMut(PortRow) -> io::Result<()>,
) -> io::Result<()> {
    let model = control.model();
    let view = control.view();
    let flows = flows(control);
    for interface in view.interfaces.values() {
        let port = model.port_by_attachment(&interface.plug.interface);
        visit(interface_row(control, &model, interface, port, flows(interface.index)))?;
    }
    let is_absent = |interface: &InterfaceId| !view.interfaces.contains_key(interface);
    let mut absent: Vec<&LogicalPort> =
        model.ports.values().filter(|port| port.attachment.as_ref().is_none_or(is_absent)).collect();
    absent.sort_unstable_by_key(|port| port.serial);
    for port in absent {
        let reason = match &port.attachment {
            None => "no-attachment",
            Some(interface) => view.no_device.get(interface).map_or("not-plugged", |reason| reason.reason()),
        };
        visit(PortRow {
            interface: port.attachment.as_deref().map(str::to_owned),
            reason: reason.into(),
            ..logical(control, &model, Some(port))
        })?;
    }
    ways(control).try_for_each(visit)
}

/// The rows of `show ports` that have an interface here, and the ways to other hosts: as many as a host carries.
pub(crate) fn interfaces<P: Pipeline>(control: &Control<P>) -> Vec<PortRow> {
    let model = control.model();
    let view = control.view();
    let flows = flows(control);
    let row = |interface: &InterfaceView| {
        let port = model.port_by_attachment(&interface.plug.interface);
        interface_row(control, &model, interface, port, flows(interface.index))
    };
    view.interfaces.values().map(row).chain(ways(control)).collect()
}

/// What the ledgers say of a port, as of now.
fn flows<P: Pipeline>(control: &Control<P>) -> impl Fn(Option<PortIndex>) -> (FlowRow, FlowRow) + use<P> {
    let snapshot = control.switch().snapshot();
    move |index| {
        let ledger = index.and_then(|index| snapshot.place(index)).map(|place| &place.ledger);
        ledger.map_or_else(Default::default, |ledger| (ledger.rx().into(), ledger.tx().into()))
    }
}

/// The ways to other hosts.
fn ways<P: Pipeline>(control: &Control<P>) -> impl Iterator<Item = PortRow> {
    let flows = flows(control);
    let model = control.model();
    control.ways().into_iter().map(move |way| {
        let (rx, tx) = flows(Some(way.index));
        PortRow {
            interface: Some(way.name),
            kind: Some(way.kind.into()),
            path: Some(way.path),
            driver: way.driver.map(str::to_owned),
            device_counters: by_name(way.counters),
            link: if way.is_up { "up" } else { "down" }.into(),
            reason: way.reason,
            mtu: way.mtu,
            links: way.links.into_iter().map(LinkRow::from).collect(),
            rx,
            tx,
            ..logical(control, &model, None)
        }
    })
}

fn interface_row<P: Pipeline>(
    control: &Control<P>,
    model: &Model,
    interface: &InterfaceView,
    port: Option<&LogicalPort>,
    (rx, tx): (FlowRow, FlowRow),
) -> PortRow {
    let plug = &interface.plug;
    let (kind, role, netns) = match &plug.device {
        DeviceSpec::VhostUser { role: SocketRole::Server, .. } => ("vhost-user", Some("server"), None),
        DeviceSpec::VhostUser { role: SocketRole::Client, .. } => ("vhost-user", Some("client"), None),
        DeviceSpec::Tap { netns, .. } => ("tap", None, netns.clone()),
        DeviceSpec::Device { netns, .. } => ("device", None, netns.clone()),
        DeviceSpec::Vlan { .. } => ("vlan", None, None),
    };
    let vlan = if let DeviceSpec::Vlan { vlan, .. } = &plug.device { Some(vlan.get()) } else { None };
    let mtu = match interface.found {
        // The smaller of what the operator allows and what the device does.
        Some(found) => found.mtu.map(|mtu| mtu.min(plug.mtu.unwrap_or(MTU_MAX).into()) as u16),
        None if kind == "device" => plug.mtu,
        None => Some(plug.mtu.or(interface.mtu).unwrap_or(MTU_DEFAULT)),
    };
    let reason = interface.unbound.map_or_else(|| interface.device.reason.clone(), |why| why.reason().to_owned());
    PortRow {
        interface: Some(plug.interface.to_string()),
        kind: Some(kind.into()),
        path: Some(device_name(&plug.device).to_owned()),
        vlan,
        role: role.map(str::to_owned),
        netns,
        driver: interface.found.map(|found| found.driver.to_owned()),
        driver_mode: interface.found.map(|found| found.mode.to_owned()).filter(|mode| !mode.is_empty()),
        device_counters: by_name(interface.found.and_then(|found| found.counters)),
        link: if interface.device.link == Link::Up { "up" } else { "down" }.into(),
        reason,
        macs: plug.macs.clone(),
        addresses: plug.addresses.clone(),
        mtu,
        automatic: plug.is_automatic,
        sessions: interface.connections.map(|connections| connections.sessions),
        links: Vec::new(),
        refused: interface.connections.map(|connections| connections.refused),
        rx,
        tx,
        ..logical(control, model, port)
    }
}

/// A row with only what the logical port says.
fn logical<P: Pipeline>(control: &Control<P>, model: &Model, port: Option<&LogicalPort>) -> PortRow {
    let state = |port: &LogicalPort| match port.state {
        AdminState::Active => "ACTIVE".to_owned(),
        AdminState::Down => "DOWN".to_owned(),
    };
    let network = port.and_then(|port| model.networks.get(&port.network));
    PortRow {
        interface: None,
        kind: None,
        path: None,
        vlan: None,
        role: None,
        netns: None,
        driver: None,
        driver_mode: None,
        device_counters: BTreeMap::new(),
        port: port.map(|port| port.id.to_string()),
        network: port.map(|port| port.network.to_string()),
        tenant: network.map(|network| network.tenant.to_string()),
        state: port.map(state),
        op_status: port.map(|port| control.told_op_status(model, &port.id).name().to_owned()),
        link: "down".into(),
        reason: String::new(),
        macs: Vec::new(),
        addresses: Vec::new(),
        allowed_macs: port.map(allowed_macs).unwrap_or_default(),
        mtu: None,
        automatic: false,
        sessions: None,
        links: Vec::new(),
        refused: None,
        rx: FlowRow::default(),
        tx: FlowRow::default(),
    }
}

/// The MACs of a port's pairs, each once.
fn allowed_macs(port: &LogicalPort) -> Vec<String> {
    let macs: BTreeSet<_> = port.pairs.iter().map(AddressPair::mac).collect();
    macs.iter().map(ToString::to_string).collect()
}

/// Hands on the rows of `show networks`, in creation order.
///
/// # Errors
/// What `visit` said.
pub(crate) fn each_network<P: Pipeline>(
    control: &Control<P>,
    visit: impl FnMut(NetworkRow) -> io::Result<()>,
) -> io::Result<()> {
    let model = control.model();
    let mut networks: Vec<_> = model.networks.values().collect();
    networks.sort_unstable_by_key(|network| network.serial);
    let mtus = control.network_mtus();
    let row = |network: &api::model::Network| NetworkRow {
        id: network.id.to_string(),
        name: network.name.as_deref().map(str::to_owned),
        tenant: network.tenant.to_string(),
        kind: network.network_type.name().into(),
        physical_network: network.network_type.physical_network().map(str::to_owned),
        segmentation_id: network.network_type.segmentation_id(),
        mtu: mtus.of(network),
        ports: model.ports_of(&network.id).map(|port| port.id.to_string()).collect(),
    };
    networks.into_iter().map(row).try_for_each(visit)
}

/// The rows of `show quotas`: the tenants that have anything and those that have a quota of their own, by name.
pub(crate) fn quotas(model: &Model, quotas: &Quotas) -> Vec<QuotaRow> {
    let tenants: BTreeSet<_> = model.tenants().cloned().chain(quotas.named()).collect();
    let row = |tenant: Text| {
        let (has, may_have) = (model.counts_of(&tenant), quotas.of(&tenant));
        QuotaRow {
            tenant: tenant.to_string(),
            networks: has.networks,
            networks_max: may_have.networks,
            ports: has.ports,
            ports_max: may_have.ports,
        }
    };
    tenants.into_iter().map(row).collect()
}

/// The rows of `show macs`, by network and address.
pub(crate) fn macs<P: Pipeline>(control: &Control<P>) -> Vec<MacRow> {
    let model = control.model();
    let switch = control.switch();
    let config = switch.snapshot().config.clone();
    let ways = control.ways();
    let mut rows: Vec<MacRow> = switch
        .mac_table()
        .entries(switch.clock().now())
        .into_iter()
        .map(|entry| {
            let interface = config.port(entry.port).map(|port| port.interface.clone());
            let port = interface.as_deref().and_then(|interface| model.port_by_attachment(interface));
            let remote = ways.iter().find(|way| way.index == entry.port).map(|way| way.name.clone());
            MacRow {
                network: config.network(entry.network).map(|network| network.id.to_string()),
                mac: entry.mac.to_string(),
                port: port.map(|port| port.id.to_string()),
                interface: interface.map(|interface| interface.to_string()),
                remote,
                is_static: entry.is_static,
                age_s: entry.age_s,
            }
        })
        .collect();
    rows.sort_unstable_by(|one, other| (&one.network, &one.mac).cmp(&(&other.network, &other.mac)));
    rows
}

/// The rows of `show drops`: what was counted, nothing that is zero.
pub(crate) fn drops(ports: Vec<PortRow>) -> Vec<DropRow> {
    let mut rows = Vec::new();
    for port in ports {
        for (direction, flow) in [("rx", port.rx), ("tx", port.tx)] {
            rows.extend(flow.drops.into_iter().map(|(reason, count)| DropRow {
                interface: port.interface.clone().unwrap_or_default(),
                port: port.port.clone(),
                direction: direction.into(),
                reason,
                count,
            }));
        }
    }
    rows
}
