//! A walk at random: each step on the plugin and on lists of networks and ports, while the rig makes trouble.
//!
//! Steps pick among all networks and ports ever made, gone ones too. A step whose backend or store failed may have
//! happened or not; the walk looks which of the two it is, and any third is a fault.

use super::{Carried, CarriedPort, Dice, Rig};
use crate::model::{AdminState, InterfaceId, NetworkId, OpStatus, PortId};
use crate::plugin::{Fault, NetworkFilter, Plugin, PortFilter};

const TENANTS: [&str; 2] = ["red", "blue"];
const STATES: [&str; 3] = ["ACTIVE", "DOWN", "BAD"];
const NOBODY: &str = "00000000-0000-4000-8000-000000000000";
/// One step in so many is followed by a look at everything, and one by trouble.
const LOOK_EVERY: usize = 10;
const TROUBLE_EVERY: usize = 4;
const RESTART_EVERY: usize = 40;

#[derive(Clone, PartialEq, Eq, Debug)]
struct Network {
    id: NetworkId,
    tenant: &'static str,
    name: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Port {
    id: PortId,
    network: NetworkId,
    state: AdminState,
    attachment: Option<InterfaceId>,
}

/// What there is, in the order of creation.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Oracle {
    networks: Vec<Network>,
    ports: Vec<Port>,
}

/// The faults by name: what the oracle foresees has no need of their facts.
type Named = Result<(), &'static str>;

impl Oracle {
    fn network(&self, tenant: &str, id: &str) -> Named {
        let is_there = self.networks.iter().any(|network| &*network.id == id && network.tenant == tenant);
        if is_there { Ok(()) } else { Err("NetworkNotFound") }
    }

    /// Where the port is in the list.
    fn port(&self, tenant: &str, network: &str, id: &str) -> Result<usize, &'static str> {
        self.network(tenant, network)?;
        self.ports.iter().position(|port| &*port.id == id && &*port.network == network).ok_or("PortNotFound")
    }

    fn is_attached(&self, attachment: &str) -> bool {
        self.ports.iter().any(|port| port.attachment.as_deref() == Some(attachment))
    }

    fn carried(&self) -> Carried {
        let port = |port: &Port| {
            let (network, attachment) = (port.network.clone(), port.attachment.clone());
            (port.id.clone(), CarriedPort { network, state: port.state, attachment })
        };
        Carried {
            networks: self.networks.iter().map(|network| network.id.clone()).collect(),
            ports: self.ports.iter().map(port).collect(),
        }
    }

    /// The same, as the plugin tells it.
    fn of(plugin: &dyn Plugin) -> Oracle {
        let mut told = Oracle::default();
        for tenant in TENANTS {
            for network in plugin.get_all_networks(tenant, &NetworkFilter::default()).unwrap() {
                for port in plugin.get_all_ports(tenant, &network.id, &PortFilter::default()).unwrap() {
                    let network = network.id.clone();
                    told.ports.push(Port { id: port.id, network, state: port.state, attachment: port.attachment });
                }
                told.networks.push(Network { id: network.id, tenant, name: network.name.map(|name| name.to_string()) });
            }
        }
        told
    }

    /// In the order in which [`Oracle::of`] finds things.
    fn sorted(&self) -> Oracle {
        let mut sorted = Oracle::default();
        for tenant in TENANTS {
            for network in self.networks.iter().filter(|network| network.tenant == tenant) {
                sorted.networks.push(network.clone());
                sorted.ports.extend(self.ports.iter().filter(|port| port.network == network.id).cloned());
            }
        }
        sorted
    }
}

/// What a step did, or may have done.
struct Outcome {
    /// What the plugin said.
    said: Result<(), Fault>,
    /// Any of these answers is right.
    wanted: Vec<Named>,
    /// What there is if it happened.
    after: Oracle,
}

pub(super) fn walk(rig: &mut dyn Rig, seed: u64, step_count: usize) {
    let mut dice = Dice(seed);
    let mut now = Oracle::default();
    let mut ids = Ids::default();
    for at in 1..=step_count {
        if dice.below(TROUBLE_EVERY) == 0 {
            rig.disturb(dice.roll());
        }
        if dice.below(RESTART_EVERY) == 0 {
            rig.restart();
        }
        let Outcome { said, wanted, after } = step(rig.plugin(), &mut dice, &now, &mut ids);
        let said = said.map_err(|fault| (name(&fault), fault));
        match said {
            Err(("backend", fault)) => {
                rig.settle();
                let told = Oracle::of(rig.plugin());
                // A thing that was made and not told has an id that only a look can tell.
                let is_after = told == after.sorted() || is_one_more(&told, &now.sorted());
                assert!(is_after || told == now.sorted(), "step {at}: after {fault} there is a third state {told:?}");
                ids.learn(&told);
                now = told;
            }
            said => {
                let said = said.map_err(|(name, _)| name);
                assert!(wanted.contains(&said), "step {at}: said {said:?}, wanted one of {wanted:?}");
                if said.is_ok() {
                    now = after;
                }
            }
        }
        if dice.below(LOOK_EVERY) == 0 || at == step_count {
            assert_eq!(Oracle::of(rig.plugin()), now.sorted(), "step {at}");
        }
    }
    rig.settle();
    assert_eq!(Oracle::of(rig.plugin()), now.sorted(), "when settled");
    check_settled(rig, &now);
}

fn check_settled(rig: &dyn Rig, now: &Oracle) {
    if let Some(carried) = rig.carried() {
        assert_eq!(carried, now.carried(), "what the backend has, and what is wanted");
    }
    for port in &now.ports {
        let network = now.networks.iter().find(|network| network.id == port.network).unwrap();
        let told = rig.plugin().get_port_details(network.tenant, &network.id, &port.id).unwrap();
        let is_active = port.state == AdminState::Active && port.attachment.is_some();
        assert_eq!(told.op_status, if is_active { OpStatus::Up } else { rig.idle_status() }, "{port:?}");
    }
}

/// Whether exactly one thing was made.
fn is_one_more(told: &Oracle, before: &Oracle) -> bool {
    let is_kept = before.networks.iter().all(|network| told.networks.contains(network))
        && before.ports.iter().all(|port| told.ports.contains(port));
    let count = |oracle: &Oracle| oracle.networks.len() + oracle.ports.len();
    is_kept && count(told) == count(before) + 1
}

/// The ids of everything ever made.
#[derive(Default)]
struct Ids {
    networks: Vec<NetworkId>,
    ports: Vec<PortId>,
}

impl Ids {
    fn network(&self, dice: &mut Dice) -> NetworkId {
        self.networks.get(dice.below(self.networks.len() + 1)).map_or(NOBODY.into(), Clone::clone)
    }

    fn port(&self, dice: &mut Dice) -> PortId {
        self.ports.get(dice.below(self.ports.len() + 1)).map_or(NOBODY.into(), Clone::clone)
    }

    fn learn(&mut self, told: &Oracle) {
        self.networks.extend(
            told.networks.iter().map(|it| &it.id).filter(|id| !self.networks.contains(id)).cloned().collect::<Vec<_>>(),
        );
        self.ports.extend(
            told.ports.iter().map(|it| &it.id).filter(|id| !self.ports.contains(id)).cloned().collect::<Vec<_>>(),
        );
    }
}

fn step(plugin: &dyn Plugin, dice: &mut Dice, now: &Oracle, ids: &mut Ids) -> Outcome {
    let mut after = now.clone();
    let (tenant, network, port) = (dice.pick(&TENANTS), ids.network(dice), ids.port(dice));
    // Most ports are asked for where they are, or few steps would get far.
    let (tenant, network) = match now.ports.iter().find(|it| it.id == port && dice.below(8) > 0) {
        Some(port) => (now.networks.iter().find(|it| it.id == port.network).unwrap().tenant, port.network.clone()),
        None => (tenant, network),
    };
    let (said, wanted) = match dice.below(16) {
        0..2 => {
            let said = plugin.create_network(tenant, Some("n".into())).map_err(Fault::from);
            let made = said.map(|id| {
                ids.networks.push(id.clone());
                after.networks.push(Network { id, tenant, name: Some("n".to_owned()) });
            });
            (made, vec![Ok(())])
        }
        2 => {
            let is_used = now.ports.iter().any(|port| port.network == network && port.attachment.is_some());
            let wanted = now.network(tenant, &network).and(if is_used { Err("NetworkInUse") } else { Ok(()) });
            after.networks.retain(|it| it.id != network);
            after.ports.retain(|it| it.network != network);
            (plugin.delete_network(tenant, &network).map_err(Fault::from), vec![wanted])
        }
        3 => {
            let name = dice.pick(&[None, Some("x"), Some("y")]);
            let changed = after.networks.iter_mut().filter(|it| it.id == network);
            changed.for_each(|it| it.name = name.map(str::to_owned));
            let said = plugin.update_network(tenant, &network, name.map(Into::into));
            (said.map_err(Fault::from), vec![now.network(tenant, &network)])
        }
        4..7 => {
            let name = dice.pick(&STATES);
            let state = AdminState::from_name(name);
            let wanted = now.network(tenant, &network).and(state.map(drop).ok_or("StateInvalid"));
            let said = plugin.create_port(tenant, &network, name).map_err(Fault::from);
            let made = said.map(|id| {
                ids.ports.push(id.clone());
                let state = state.unwrap_or(AdminState::Down);
                after.ports.push(Port { id, network: network.clone(), state, attachment: None });
            });
            (made, vec![wanted])
        }
        7..9 => {
            let name = dice.pick(&STATES);
            let state = AdminState::from_name(name);
            let found = now.port(tenant, &network, &port).map(drop);
            let wanted = match (found, state) {
                (Err("PortNotFound"), None) => vec![found, Err("StateInvalid")],
                (found, state) => vec![found.and(state.map(drop).ok_or("StateInvalid"))],
            };
            for it in after.ports.iter_mut().filter(|it| it.id == port) {
                it.state = state.unwrap_or(it.state);
            }
            (plugin.update_port(tenant, &network, &port, name).map_err(Fault::from), wanted)
        }
        9 => {
            let wanted = now.port(tenant, &network, &port).and_then(|at| match now.ports[at].attachment {
                Some(_) => Err("PortInUse"),
                None => Ok(()),
            });
            after.ports.retain(|it| it.id != port);
            (plugin.delete_port(tenant, &network, &port).map_err(Fault::from), vec![wanted])
        }
        10..14 => {
            let attachment = dice.pick(&["vif0", "vif1", "vif2", "vif3"]);
            let is_attached = now.is_attached(attachment);
            let wanted = match now.port(tenant, &network, &port) {
                Ok(at) if now.ports[at].attachment.is_some() && is_attached => {
                    vec![Err("PortInUse"), Err("AlreadyAttached")]
                }
                Ok(at) if now.ports[at].attachment.is_some() => vec![Err("PortInUse")],
                Ok(_) if is_attached => vec![Err("AlreadyAttached")],
                Ok(_) => vec![Ok(())],
                // The attachment may be looked for before the port is.
                Err("PortNotFound") if is_attached => vec![Err("PortNotFound"), Err("AlreadyAttached")],
                Err(fault) => vec![Err(fault)],
            };
            let changed = after.ports.iter_mut().filter(|it| it.id == port);
            changed.for_each(|it| it.attachment = Some(attachment.into()));
            (plugin.plug_interface(tenant, &network, &port, attachment).map_err(Fault::from), wanted)
        }
        _ => {
            after.ports.iter_mut().filter(|it| it.id == port).for_each(|it| it.attachment = None);
            let wanted = now.port(tenant, &network, &port).map(drop);
            (plugin.unplug_interface(tenant, &network, &port).map_err(Fault::from), vec![wanted])
        }
    };
    Outcome { said, wanted, after }
}

fn name(fault: &Fault) -> &'static str {
    match fault {
        Fault::NetworkNotFound(_) => "NetworkNotFound",
        Fault::NetworkInUse(_) => "NetworkInUse",
        Fault::PortNotFound(_) => "PortNotFound",
        Fault::StateInvalid(_) => "StateInvalid",
        Fault::PortInUse(_) => "PortInUse",
        Fault::AlreadyAttached(_) => "AlreadyAttached",
        Fault::Forbidden(_) => "Forbidden",
        Fault::OverQuota(_) => "OverQuota",
        Fault::NoSegmentFree(_) => "NoSegmentFree",
        Fault::StoreFailed(_) | Fault::BackendUnavailable(_) | Fault::BackendFailed(_) => "backend",
    }
}
