//! Many clients at once: one winner, and nobody sees half a change.

use crate::rig::{Scratch, native};
use api::plugin::{NetworkFilter, PlugInterfaceError, Plugin, PortFilter, Ports};
use api::plugins::FakePlugin;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn of_many_who_plug_one_interface_one_wins() {
    let scratch = Scratch::new();
    let plugins: [Box<dyn Plugin>; 2] = [Box::new(FakePlugin::new()), Box::new(native(&scratch.store()))];
    for plugin in plugins {
        let network = plugin.create_network("red", None).unwrap();
        let ports: Vec<_> = (0..8).map(|_| plugin.create_port("red", &network, "ACTIVE").unwrap()).collect();
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let plug = |port| plugin.plug_interface("red", &network, port, "vif");
            let threads: Vec<_> = ports.iter().map(|port| scope.spawn(move || plug(port))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
        let is_refusal = |outcome: &Result<(), _>| matches!(outcome, Err(PlugInterfaceError::AlreadyAttached(_)));
        assert_eq!(outcomes.iter().filter(|outcome| is_refusal(outcome)).count(), 7, "{outcomes:?}");
        let filter = PortFilter { has_attachment: Some(true), ..PortFilter::default() };
        assert_eq!(plugin.get_all_ports("red", &network, &filter).unwrap().len(), 1);
    }
}

#[test]
fn a_network_goes_with_all_its_ports_at_once() {
    let plugin = FakePlugin::new();
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut most_seen = HashMap::new();
            while !is_done.load(Ordering::Relaxed) {
                for network in plugin.get_all_networks("red", &NetworkFilter::default()).unwrap() {
                    if let Ok(network) = plugin.get_network_details("red", &network.id, Ports::Listed) {
                        let count = network.ports.unwrap().len();
                        let most = most_seen.insert(network.id, count).unwrap_or_default();
                        assert!(count >= most, "{most} ports, then {count}, and the network still there");
                    }
                }
            }
        });
        for _ in 0..300 {
            let network = plugin.create_network("red", None).unwrap();
            for _ in 0..3 {
                plugin.create_port("red", &network, "DOWN").unwrap();
            }
            let ports = plugin.get_all_ports("red", &network, &PortFilter::default()).unwrap();
            assert_eq!(ports.len(), 3, "a writer reads its own writes");
            plugin.delete_network("red", &network).unwrap();
            assert!(plugin.get_all_ports("red", &network, &PortFilter::default()).is_err());
        }
        is_done.store(true, Ordering::Relaxed);
    });
}
