//! The rules one by one. Each begins with a plugin without records.

use super::{Carried, CarriedPort, Rig};
use crate::model::{AdminState, OpStatus, TEXT_BYTES_MAX};
use crate::plugin::{
    CreatePortError, DeleteNetworkError, DeletePortError, Fault, GetAllPortsError, GetNetworkError, GetPortError,
    NetworkFilter, PlugInterfaceError, Plugin, PortFilter, Ports, UnplugInterfaceError, UpdateNetworkError,
    UpdatePortError,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub(super) type Rule = fn(&mut dyn Rig);

macro_rules! rules {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name as Rule)),*] };
}

pub(super) const RULES: &[(&str, Rule)] = rules![
    a_tenant_nobody_heard_of_has_no_networks,
    ids_are_lower_case_uuids_and_all_different,
    lists_are_in_the_order_of_creation,
    texts_are_kept_byte_for_byte,
    what_was_written_is_read_at_once,
    another_tenants_network_is_absent_in_every_call,
    a_port_is_found_on_its_own_network_only,
    a_network_goes_with_its_ports_unless_one_is_attached,
    an_attachment_is_on_one_port_of_the_whole_service,
    an_attached_port_keeps_its_attachment_when_down_and_cannot_be_removed,
    unplugging_what_is_not_plugged_is_fine,
    a_state_nobody_knows_is_refused_and_changes_nothing,
    several_ports_are_made_all_or_none,
    filters_hold_for_every_condition_together,
    op_status_settles,
    the_backend_gets_what_was_written_and_nothing_else,
    one_of_many_plugs_of_an_attachment_at_a_time_wins,
    readers_see_whole_states_while_others_write,
    what_was_acknowledged_survives_a_restart,
];

const NOBODY: &str = "00000000-0000-4000-8000-000000000000";

/// A network and a port of it.
fn network_with_port(plugin: &dyn Plugin, tenant: &str, state: &str) -> (Arc<str>, Arc<str>) {
    let network = plugin.create_network(tenant, Some("n".into())).unwrap();
    let port = plugin.create_port(tenant, &network, state).unwrap();
    (network, port)
}

fn network_ids(plugin: &dyn Plugin, tenant: &str) -> Vec<Arc<str>> {
    let networks = plugin.get_all_networks(tenant, &NetworkFilter::default()).unwrap();
    networks.into_iter().map(|network| network.id).collect()
}

fn port_ids(plugin: &dyn Plugin, tenant: &str, network: &str) -> Vec<Arc<str>> {
    let ports = plugin.get_all_ports(tenant, network, &PortFilter::default()).unwrap();
    ports.into_iter().map(|port| port.id).collect()
}

fn attachment(plugin: &dyn Plugin, tenant: &str, network: &str, port: &str) -> Option<Arc<str>> {
    plugin.get_port_details(tenant, network, port).unwrap().attachment
}

fn a_tenant_nobody_heard_of_has_no_networks(rig: &mut dyn Rig) {
    assert_eq!(rig.plugin().get_all_networks("nobody", &NetworkFilter::default()), Ok(Vec::new()));
}

fn ids_are_lower_case_uuids_and_all_different(rig: &mut dyn Rig) {
    let plugin = rig.plugin();
    let network = plugin.create_network("red", None).unwrap();
    let mut ids = BTreeSet::from([network.clone()]);
    ids.extend((0..20).map(|_| plugin.create_port("red", &network, "DOWN").unwrap()));
    ids.extend((0..20).map(|_| plugin.create_network("red", None).unwrap()));
    assert_eq!(ids.len(), 41, "an id came twice");
    for id in ids {
        let is_hyphenated = id.len() == 36 && [8, 13, 18, 23].iter().all(|&at| id.as_bytes()[at] == b'-');
        let is_hex = id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-'));
        assert!(is_hyphenated && is_hex, "{id:?} is no lower-case UUID");
    }
}

fn lists_are_in_the_order_of_creation(rig: &mut dyn Rig) {
    let plugin = rig.plugin();
    let mut networks: Vec<_> = (0..12).map(|_| plugin.create_network("red", Some("same".into())).unwrap()).collect();
    let mut ports: Vec<_> = (0..12).map(|_| plugin.create_port("red", &networks[0], "DOWN").unwrap()).collect();
    plugin.delete_network("red", &networks.remove(5)).unwrap();
    plugin.delete_port("red", &networks[0], &ports.remove(5)).unwrap();
    plugin.update_network("red", &networks[2], Some("other".into())).unwrap();
    plugin.update_port("red", &networks[0], &ports[2], "ACTIVE").unwrap();
    assert_eq!(network_ids(plugin, "red"), networks);
    assert_eq!(port_ids(plugin, "red", &networks[0]), ports);
    let details = plugin.get_network_details("red", &networks[0], Ports::Listed).unwrap();
    assert!(details.ports.unwrap().iter().map(|port| &port.id).eq(&ports));
}

fn texts_are_kept_byte_for_byte(rig: &mut dyn Rig) {
    let plugin = rig.plugin();
    let long = "é".repeat(TEXT_BYTES_MAX / 2);
    let texts = ["a", " ", "\n\t", "a/b.c%2F", "'; DROP TABLE--", "<&\">", "\u{1F600}\u{301}", "\u{7f}\u{1}", &long];
    for text in texts {
        let network = plugin.create_network(text, Some(text.into())).unwrap();
        let port = plugin.create_port(text, &network, "ACTIVE").unwrap();
        plugin.plug_interface(text, &network, &port, text).unwrap();
        let found = plugin.get_network_details(text, &network, Ports::Listed).unwrap();
        assert_eq!(found.name.as_deref(), Some(text));
        assert_eq!(found.ports.unwrap()[0].attachment.as_deref(), Some(text));
        assert_eq!(network_ids(plugin, text), [network]);
    }
    // Compared byte for byte: neither case nor form folds.
    assert_eq!(network_ids(plugin, "A"), []);
    let (network, port) = network_with_port(plugin, "x", "ACTIVE");
    plugin.plug_interface("x", &network, &port, "A").unwrap();
}

fn what_was_written_is_read_at_once(rig: &mut dyn Rig) {
    let plugin = rig.plugin();
    let network = plugin.create_network("red", None).unwrap();
    let read = || plugin.get_network_details("red", &network, Ports::Omitted).unwrap();
    assert_eq!((read().id, read().name, read().ports), (network.clone(), None, None));
    plugin.update_network("red", &network, Some("n".into())).unwrap();
    assert_eq!(read().name.as_deref(), Some("n"));
    let port = plugin.create_port("red", &network, "DOWN").unwrap();
    let read_port = || plugin.get_port_details("red", &network, &port).unwrap();
    assert_eq!((read_port().id, read_port().state, read_port().attachment), (port.clone(), AdminState::Down, None));
    plugin.update_port("red", &network, &port, "ACTIVE").unwrap();
    plugin.plug_interface("red", &network, &port, "vif").unwrap();
    assert_eq!((read_port().state, read_port().attachment.as_deref()), (AdminState::Active, Some("vif")));
    let mut listed = plugin.get_all_ports("red", &network, &PortFilter::default()).unwrap();
    // Op-status may move on between two reads.
    listed.iter_mut().for_each(|listed| listed.op_status = OpStatus::Unknown);
    assert_eq!(listed, [crate::plugin::PortDetails { op_status: OpStatus::Unknown, ..read_port() }]);
    plugin.unplug_interface("red", &network, &port).unwrap();
    assert_eq!(read_port().attachment, None);
    plugin.delete_port("red", &network, &port).unwrap();
    assert!(matches!(plugin.get_port_details("red", &network, &port), Err(GetPortError::PortNotFound(_))));
    plugin.delete_network("red", &network).unwrap();
    let gone = plugin.get_network_details("red", &network, Ports::Omitted);
    assert!(matches!(gone, Err(GetNetworkError::NetworkNotFound(fact)) if fact.network == network));
}

fn another_tenants_network_is_absent_in_every_call(rig: &mut dyn Rig) {
    let plugin = rig.plugin();
    let (network, port) = network_with_port(plugin, "red", "ACTIVE");
    plugin.plug_interface("red", &network, &port, "vif").unwrap();
    for (tenant, id) in [("blue", &*network), ("red", NOBODY), ("red", ""), ("Red", &network), ("", &network)] {
        use GetNetworkError::NetworkNotFound as Get;
        let none = PortFilter::default();
        assert!(matches!(plugin.get_network_details(tenant, id, Ports::Listed), Err(Get(it)) if &*it.network == id));
        let updated = plugin.update_network(tenant, id, None);
        assert!(matches!(updated, Err(UpdateNetworkError::NetworkNotFound(_))));
        assert!(matches!(plugin.delete_network(tenant, id), Err(DeleteNetworkError::NetworkNotFound(_))));
        assert!(matches!(plugin.get_all_ports(tenant, id, &none), Err(GetAllPortsError::NetworkNotFound(_))));
        // With a state nobody knows, the network still comes first.
        for state in ["DOWN", "BAD"] {
            let made = plugin.create_port(tenant, id, state);
            assert!(matches!(made, Err(CreatePortError::NetworkNotFound(_))), "{made:?}");
        }
        for port in [&*port, NOBODY] {
            let got = plugin.get_port_details(tenant, id, port);
            assert!(matches!(got, Err(GetPortError::NetworkNotFound(_))));
            let updated = plugin.update_port(tenant, id, port, "DOWN");
            assert!(matches!(updated, Err(UpdatePortError::NetworkNotFound(_))));
            assert!(matches!(plugin.delete_port(tenant, id, port), Err(DeletePortError::NetworkNotFound(_))));
            let plugged = plugin.plug_interface(tenant, id, port, "vif");
            assert!(matches!(plugged, Err(PlugInterfaceError::NetworkNotFound(_))));
            let unplugged = plugin.unplug_interface(tenant, id, port);
            assert!(matches!(unplugged, Err(UnplugInterfaceError::NetworkNotFound(_))));
        }
    }
    assert_eq!(network_ids(plugin, "blue"), []);
    let found = plugin.get_network_details("red", &network, Ports::Listed).unwrap();
    let ports = found.ports.unwrap();
    assert_eq!((found.name.as_deref(), ports.len()), (Some("n"), 1), "something was changed from outside");
    assert_eq!((ports[0].state, ports[0].attachment.as_deref()), (AdminState::Active, Some("vif")));
}

fn a_port_is_found_on_its_own_network_only(rig: &mut dyn Rig) {
    let plugin = rig.plugin();
    let (_, port) = network_with_port(plugin, "red", "ACTIVE");
    let (other, _) = network_with_port(plugin, "red", "ACTIVE");
    for port in [&*port, NOBODY, ""] {
        let wanted = |fault: Fault| match fault {
            Fault::PortNotFound(fact) => assert_eq!((&*fact.port, &fact.network), (port, &other)),
            other => panic!("{other:?}"),
        };
        wanted(plugin.get_port_details("red", &other, port).unwrap_err().into());
        wanted(plugin.update_port("red", &other, port, "DOWN").unwrap_err().into());
        wanted(plugin.delete_port("red", &other, port).unwrap_err().into());
        wanted(plugin.plug_interface("red", &other, port, "vif").unwrap_err().into());
        wanted(plugin.unplug_interface("red", &other, port).unwrap_err().into());
    }
}

fn a_network_goes_with_its_ports_unless_one_is_attached(rig: &mut dyn Rig) {
    let plugin = rig.plugin();
    let (network, port) = network_with_port(plugin, "red", "ACTIVE");
    plugin.create_port("red", &network, "DOWN").unwrap();
    plugin.plug_interface("red", &network, &port, "vif").unwrap();
    let refused = plugin.delete_network("red", &network);
    assert!(matches!(refused, Err(DeleteNetworkError::NetworkInUse(fact)) if fact.network == network));
    assert_eq!(port_ids(plugin, "red", &network).len(), 2, "a refusal changes nothing");
    plugin.unplug_interface("red", &network, &port).unwrap();
    plugin.delete_network("red", &network).unwrap();
    assert_eq!(network_ids(plugin, "red"), []);
    let (network, port) = network_with_port(plugin, "red", "ACTIVE");
    plugin.plug_interface("red", &network, &port, "vif").unwrap();
}

fn an_attachment_is_on_one_port_of_the_whole_service(rig: &mut dyn Rig) {
    let plugin = rig.plugin();
    let (network, port) = network_with_port(plugin, "red", "ACTIVE");
    plugin.plug_interface("red", &network, &port, "vif").unwrap();
    let again = plugin.plug_interface("red", &network, &port, "vif");
    assert!(matches!(again, Err(PlugInterfaceError::PortInUse(_) | PlugInterfaceError::AlreadyAttached(_))));
    match plugin.plug_interface("red", &network, &port, "another") {
        Err(PlugInterfaceError::PortInUse(fact)) => {
            assert_eq!((fact.port, fact.network, &*fact.attachment), (port.clone(), network.clone(), "vif"));
        }
        other => panic!("{other:?}"),
    }
    let mut others = vec![("red", network.clone(), plugin.create_port("red", &network, "ACTIVE").unwrap())];
    others.extend(["red", "blue"].map(|tenant| {
        let (network, port) = network_with_port(plugin, tenant, "ACTIVE");
        (tenant, network, port)
    }));
    for (tenant, network, other) in &others {
        match plugin.plug_interface(tenant, network, other, "vif") {
            Err(PlugInterfaceError::AlreadyAttached(fact)) => {
                assert_eq!((&*fact.attachment, &fact.port, &fact.network), ("vif", other, network));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(attachment(plugin, tenant, network, other), None);
    }
    plugin.unplug_interface("red", &network, &port).unwrap();
    let (tenant, network, other) = &others[2];
    plugin.plug_interface(tenant, network, other, "vif").unwrap();
}

fn an_attached_port_keeps_its_attachment_when_down_and_cannot_be_removed(rig: &mut dyn Rig) {
    let plugin = rig.plugin();
    let (network, port) = network_with_port(plugin, "red", "DOWN");
    plugin.plug_interface("red", &network, &port, "vif").unwrap();
    plugin.update_port("red", &network, &port, "ACTIVE").unwrap();
    plugin.update_port("red", &network, &port, "DOWN").unwrap();
    match plugin.delete_port("red", &network, &port) {
        Err(DeletePortError::PortInUse(fact)) => assert_eq!((fact.port, &*fact.attachment), (port.clone(), "vif")),
        other => panic!("{other:?}"),
    }
    assert_eq!(attachment(plugin, "red", &network, &port).as_deref(), Some("vif"));
}

fn unplugging_what_is_not_plugged_is_fine(rig: &mut dyn Rig) {
    let plugin = rig.plugin();
    let (network, port) = network_with_port(plugin, "red", "ACTIVE");
    plugin.unplug_interface("red", &network, &port).unwrap();
    plugin.plug_interface("red", &network, &port, "vif").unwrap();
    plugin.unplug_interface("red", &network, &port).unwrap();
    plugin.unplug_interface("red", &network, &port).unwrap();
    plugin.delete_port("red", &network, &port).unwrap();
}

fn a_state_nobody_knows_is_refused_and_changes_nothing(rig: &mut dyn Rig) {
    let plugin = rig.plugin();
    let (network, port) = network_with_port(plugin, "red", "ACTIVE");
    for state in ["", "active", "Down", "UP", "ACTIVE "] {
        let made = plugin.create_port("red", &network, state);
        assert!(matches!(made, Err(CreatePortError::StateInvalid(fact)) if &*fact.state == state));
        let updated = plugin.update_port("red", &network, &port, state);
        assert!(matches!(updated, Err(UpdatePortError::StateInvalid(fact)) if &*fact.state == state));
    }
    let ports = plugin.get_all_ports("red", &network, &PortFilter::default()).unwrap();
    assert_eq!(ports.iter().map(|port| port.state).collect::<Vec<_>>(), [AdminState::Active]);
}

fn several_ports_are_made_all_or_none(rig: &mut dyn Rig) {
    let plugin = rig.plugin();
    let [one, two] = ["one", "two"].map(|name| plugin.create_network("red", Some(name.into())).unwrap());
    let foreign = plugin.create_network("blue", None).unwrap();
    let made = plugin.create_ports("red", &[two.clone(), one.clone(), two.clone()], "ACTIVE").unwrap();
    assert_eq!(port_ids(plugin, "red", &one), [made[1].clone()]);
    assert_eq!(port_ids(plugin, "red", &two), [made[0].clone(), made[2].clone()]);
    for absent in [NOBODY.into(), foreign] {
        let refused = plugin.create_ports("red", &[one.clone(), absent], "ACTIVE");
        assert!(matches!(refused, Err(CreatePortError::NetworkNotFound(_))), "{refused:?}");
    }
    let refused = plugin.create_ports("red", &[one.clone(), two.clone()], "active");
    assert!(matches!(refused, Err(CreatePortError::StateInvalid(_))), "{refused:?}");
    assert_eq!((port_ids(plugin, "red", &one).len(), port_ids(plugin, "red", &two).len()), (1, 2));
    assert_eq!(plugin.create_ports("red", &[], "ACTIVE").unwrap(), Vec::<Arc<str>>::new());
}

fn filters_hold_for_every_condition_together(rig: &mut dyn Rig) {
    let plugin = rig.plugin();
    let (one, _) = network_with_port(plugin, "red", "DOWN");
    let (two, port) = network_with_port(plugin, "red", "ACTIVE");
    plugin.create_network("red", Some("empty".into())).unwrap();
    plugin.plug_interface("red", &two, &port, "vif").unwrap();
    let text = |text: &str| Some(text.to_owned());
    let networks = |filter: NetworkFilter| -> Vec<Arc<str>> {
        plugin.get_all_networks("red", &filter).unwrap().into_iter().map(|network| network.id).collect()
    };
    let only = |id: &Arc<str>| vec![id.clone()];
    let all = NetworkFilter::default;
    assert_eq!(networks(NetworkFilter { name: text("n"), ..all() }), [one.clone(), two.clone()]);
    assert_eq!(networks(NetworkFilter { name: text("n"), attachment: text("vif"), ..all() }), only(&two));
    assert_eq!(networks(NetworkFilter { has_attachment: Some(true), ..all() }), only(&two));
    assert_eq!(networks(NetworkFilter { has_attachment: Some(false), ..all() }).len(), 2);
    assert_eq!(networks(NetworkFilter { port_state: text("DOWN"), ..all() }), only(&one));
    assert_eq!(networks(NetworkFilter { port: text(&port), ..all() }), only(&two));
    assert_eq!(networks(NetworkFilter { port: text(&port), name: text("empty"), ..all() }), []);
    assert_eq!(networks(NetworkFilter { is_impossible: true, ..all() }), []);
    let ports = |filter: PortFilter| plugin.get_all_ports("red", &two, &filter).unwrap().len();
    let all = PortFilter::default;
    assert_eq!(ports(PortFilter { attachment: text("vif"), state: text("ACTIVE"), ..all() }), 1);
    assert_eq!(ports(PortFilter { attachment: text("vif"), state: text("DOWN"), ..all() }), 0);
    assert_eq!(ports(PortFilter { has_attachment: Some(false), ..all() }), 0);
    assert_eq!(ports(PortFilter { is_impossible: true, ..all() }), 0);
}

fn op_status_settles(rig: &mut dyn Rig) {
    let (network, idle, down, plugged) = {
        let plugin = rig.plugin();
        let (network, idle) = network_with_port(plugin, "red", "ACTIVE");
        let [down, plugged] = ["DOWN", "ACTIVE"].map(|state| {
            let port = plugin.create_port("red", &network, state).unwrap();
            plugin.plug_interface("red", &network, &port, &format!("vif-{state}")).unwrap();
            port
        });
        (network, idle, down, plugged)
    };
    rig.settle();
    let status = |port| rig.plugin().get_port_details("red", &network, port).unwrap().op_status;
    assert_eq!(status(&plugged), OpStatus::Up, "ACTIVE, attached and settled");
    assert_eq!(status(&idle), rig.idle_status(), "no attachment");
    assert_eq!(status(&down), rig.idle_status(), "DOWN");
    let networks = rig.plugin().get_all_networks("red", &NetworkFilter::default()).unwrap();
    assert_eq!(networks[0].op_status, OpStatus::Up);
    rig.plugin().update_port("red", &network, &plugged, "DOWN").unwrap();
    rig.plugin().update_port("red", &network, &down, "ACTIVE").unwrap();
    rig.settle();
    let status = |port| rig.plugin().get_port_details("red", &network, port).unwrap().op_status;
    assert_eq!((status(&plugged), status(&down)), (rig.idle_status(), OpStatus::Up));
}

fn the_backend_gets_what_was_written_and_nothing_else(rig: &mut dyn Rig) {
    let plugin = rig.plugin();
    let mut wanted = Carried::default();
    for (tenant, state) in [("red", AdminState::Active), ("blue", AdminState::Down)] {
        let (network, port) = network_with_port(plugin, tenant, state.name());
        let (gone, _) = network_with_port(plugin, tenant, "ACTIVE");
        plugin.delete_network(tenant, &gone).unwrap();
        let (id, attachment) = (port.clone(), Some(Arc::from(format!("vif-{tenant}"))));
        plugin.plug_interface(tenant, &network, &port, attachment.as_deref().unwrap()).unwrap();
        wanted.networks.insert(network.clone());
        wanted.ports.insert(id, CarriedPort { network, state, attachment });
    }
    rig.settle();
    if let Some(carried) = rig.carried() {
        assert_eq!(carried, wanted);
    }
}

fn one_of_many_plugs_of_an_attachment_at_a_time_wins(rig: &mut dyn Rig) {
    let plugin = rig.plugin();
    for round in 0..20 {
        let vif = format!("vif-{round}");
        let places: Vec<_> = (0..4).map(|_| network_with_port(plugin, "red", "ACTIVE")).collect();
        let plug = |(network, port): &(Arc<str>, Arc<str>)| plugin.plug_interface("red", network, port, &vif).is_ok();
        let win_count = std::thread::scope(|scope| {
            let threads: Vec<_> = places.iter().map(|place| scope.spawn(move || plug(place))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).filter(|won| *won).count()
        });
        assert_eq!(win_count, 1);
        let found = |(network, port): &&(Arc<str>, Arc<str>)| attachment(plugin, "red", network, port).is_some();
        assert_eq!(places.iter().filter(found).count(), 1);
    }
}

fn readers_see_whole_states_while_others_write(rig: &mut dyn Rig) {
    let plugin = rig.plugin();
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                for network in plugin.get_all_networks("red", &NetworkFilter::default()).unwrap() {
                    // It may be gone by now.
                    let Ok(found) = plugin.get_network_details("red", &network.id, Ports::Listed) else { continue };
                    let attached = found.ports.unwrap().into_iter().filter(|port| port.attachment.is_some());
                    assert!(attached.count() <= 1, "an attachment was seen on two ports");
                }
            }
        });
        for _ in 0..25 {
            let network = plugin.create_network("red", None).unwrap();
            let ports = [(); 2].map(|()| plugin.create_port("red", &network, "ACTIVE").unwrap());
            for port in &ports {
                plugin.plug_interface("red", &network, port, "vif").unwrap();
                plugin.unplug_interface("red", &network, port).unwrap();
            }
            plugin.delete_network("red", &network).unwrap();
        }
        is_done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    assert_eq!(network_ids(plugin, "red"), []);
}

fn what_was_acknowledged_survives_a_restart(rig: &mut dyn Rig) {
    let plugin = rig.plugin();
    let (network, port) = network_with_port(plugin, "red", "ACTIVE");
    plugin.plug_interface("red", &network, &port, "vif").unwrap();
    let (gone, _) = network_with_port(plugin, "red", "ACTIVE");
    plugin.delete_network("red", &gone).unwrap();
    let later = plugin.create_network("red", Some("later".into())).unwrap();
    if !rig.restart() {
        return;
    }
    assert_eq!(network_ids(rig.plugin(), "red"), [network.clone(), later.clone()]);
    assert_eq!(attachment(rig.plugin(), "red", &network, &port).as_deref(), Some("vif"));
    let again = rig.plugin().plug_interface("red", &network, &port, "vif");
    assert!(matches!(again, Err(PlugInterfaceError::PortInUse(_) | PlugInterfaceError::AlreadyAttached(_))));
    let newest = rig.plugin().create_network("red", None).unwrap();
    assert_eq!(network_ids(rig.plugin(), "red"), [network.clone(), later, newest]);
    rig.settle();
    let status = rig.plugin().get_port_details("red", &network, &port).unwrap().op_status;
    assert_eq!(status, OpStatus::Up);
}
