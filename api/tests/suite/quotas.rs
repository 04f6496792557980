//! Tenants get no more than their quotas say, however they come.

use crate::rig::{Format, Scratch, Server, Version, native, open_store};
use api::model::Model;
use api::plugin::{CreateNetworkError, CreatePortError, Plugin};
use api::plugins::NativePlugin;
use api::quota::{Limit, Quota, Quotas};
use api::server::ServerConfig;
use api::store::Backup;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn quota(networks: usize, ports: usize) -> Quota {
    Quota { networks: Limit::at_most(networks), ports: Limit::at_most(ports) }
}

fn plugin(store: &Path, quota: Quota) -> NativePlugin {
    native(store).with_quotas(Arc::new(Quotas::for_all(quota)))
}

fn network(plugin: &NativePlugin, tenant: &str) -> Result<api::model::NetworkId, CreateNetworkError> {
    plugin.create_network(tenant, Some("n".into()))
}

/// The counts that the model keeps are those of its networks and ports.
fn check_counts(model: &Model) {
    for tenant in model.tenants() {
        let networks: Vec<_> = model.networks_of(tenant).collect();
        let ports = networks.iter().map(|network| model.ports_of(&network.id).count()).sum::<usize>();
        let counts = model.counts_of(tenant);
        assert_eq!((counts.networks, counts.ports), (networks.len(), ports), "{tenant}");
    }
}

#[test]
fn many_who_create_at_once_get_exactly_what_the_tenant_may_have() {
    let scratch = Scratch::new();
    let plugin = plugin(&scratch.store(), quota(5, 9));
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let create = || (0..3).map(|_| network(&plugin, "red")).collect::<Vec<_>>();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(create)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let (made, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!((made.len(), refused.len()), (5, 19));
    assert!(refused.iter().all(|outcome| matches!(outcome, Err(CreateNetworkError::OverQuota(_)))), "{refused:?}");
    // Ports count over all networks.
    let networks: Vec<_> = made.into_iter().map(Result::unwrap).collect();
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let create = |at: usize| {
            let networks = &networks;
            let plugin = &plugin;
            move || (0..3).map(|_| plugin.create_port("red", &networks[at % 5], "DOWN")).collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..8).map(|at| scope.spawn(create(at))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let (made, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!((made.len(), refused.len()), (9, 15));
    assert!(refused.iter().all(|outcome| matches!(outcome, Err(CreatePortError::OverQuota(_)))), "{refused:?}");
    check_counts(&plugin.snapshot());
    network(&plugin, "blue").expect("another tenant has its own");
}

#[test]
fn what_is_deleted_may_be_made_again_and_a_network_frees_its_ports() {
    let scratch = Scratch::new();
    let plugin = plugin(&scratch.store(), quota(2, 3));
    let (one, two) = (network(&plugin, "red").unwrap(), network(&plugin, "red").unwrap());
    let ports: Vec<_> = [&one, &one, &two].map(|network| plugin.create_port("red", network, "DOWN").unwrap()).into();
    assert!(network(&plugin, "red").is_err() && plugin.create_port("red", &two, "DOWN").is_err());
    plugin.delete_port("red", &two, &ports[2]).unwrap();
    plugin.create_port("red", &one, "DOWN").unwrap();
    assert!(plugin.create_port("red", &two, "DOWN").is_err());
    plugin.delete_network("red", &one).unwrap();
    network(&plugin, "red").unwrap();
    for _ in 0..3 {
        plugin.create_port("red", &two, "DOWN").unwrap();
    }
    assert!(plugin.create_port("red", &two, "DOWN").is_err());
    check_counts(&plugin.snapshot());
}

#[test]
fn a_restart_counts_what_there_is_and_one_who_has_more_than_he_may_gets_no_more() {
    let scratch = Scratch::new();
    let first = plugin(&scratch.store(), Quota::UNLIMITED);
    let networks: Vec<_> = (0..4).map(|_| network(&first, "red").unwrap()).collect();
    for network in &networks {
        first.create_port("red", network, "DOWN").unwrap();
    }
    drop(first);
    let second = plugin(&scratch.store(), quota(3, 4));
    check_counts(&second.snapshot());
    let Err(CreateNetworkError::OverQuota(told)) = network(&second, "red") else { panic!("it has 4 of 3") };
    assert_eq!((told.used, told.limit, told.asked), (4, 3, 1));
    assert!(second.create_port("red", &networks[0], "DOWN").is_err());
    second.delete_network("red", &networks[0]).unwrap();
    assert!(network(&second, "red").is_err(), "it has 3 of 3");
    second.create_port("red", &networks[1], "DOWN").unwrap();
    second.delete_network("red", &networks[2]).unwrap();
    network(&second, "red").unwrap();
}

#[test]
fn what_is_imported_is_counted_and_not_refused() {
    let (from, to) = (Scratch::new(), Scratch::new());
    let source = plugin(&from.store(), Quota::UNLIMITED);
    for tenant in ["red", "red", "blue"] {
        let network = network(&source, tenant).unwrap();
        source.create_port(tenant, &network, "DOWN").unwrap();
    }
    drop(source);
    let mut text = Vec::new();
    open_store(&from.store()).export().unwrap().write(&mut text).unwrap();
    open_store(&to.store()).import(&Backup::read(&mut &text[..]).unwrap(), false).unwrap();
    let plugin = plugin(&to.store(), quota(1, 2));
    let counts = plugin.snapshot().counts_of("red");
    assert_eq!((counts.networks, counts.ports), (2, 2));
    check_counts(&plugin.snapshot());
    assert!(network(&plugin, "red").is_err() && network(&plugin, "blue").is_err());
}

#[test]
fn a_tenant_of_the_file_has_its_own_and_a_change_of_the_file_holds_without_a_restart() {
    let scratch = Scratch::new();
    let plugin = native(&scratch.store());
    let file = scratch.store().with_file_name("quotas.toml");
    let write = |text: &str| {
        let beside = file.with_extension("new");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(beside, &file).unwrap();
    };
    write("[red]\nnetworks = 1\n[blue]\nnetworks = -1\n");
    let plugin = plugin.with_quotas(Arc::new(Quotas::open(quota(2, 0), &file).unwrap()));
    for (tenant, may_have) in [("red", 1), ("green", 2)] {
        (0..may_have).for_each(|_| drop(network(&plugin, tenant).unwrap()));
        assert!(network(&plugin, tenant).is_err(), "{tenant}");
    }
    (0..5).for_each(|_| drop(network(&plugin, "blue").unwrap()));
    write("[red]\nnetworks = 3\nports = 1\n");
    let begin = Instant::now();
    while network(&plugin, "red").is_err() {
        assert!(begin.elapsed() < Duration::from_secs(10), "the change is not noticed");
        std::thread::sleep(Duration::from_millis(50));
    }
    let last = network(&plugin, "red").unwrap();
    assert!(network(&plugin, "red").is_err() && network(&plugin, "blue").is_err());
    plugin.create_port("red", &last, "DOWN").unwrap();
    assert!(plugin.create_port("red", &last, "DOWN").is_err());
}

#[test]
fn the_refusal_is_a_conflict_in_the_version_s_form_and_in_both_formats() {
    let scratch = Scratch::new();
    let plugin = Arc::new(plugin(&scratch.store(), quota(1, 0)));
    let id = network(&plugin, "red").unwrap();
    let server = Server::over(plugin, ServerConfig::default(), scratch);
    let message = "The tenant has as many of these as it may have.";
    for version in Version::ALL {
        let networks = format!("{}/tenants/red/networks", version.prefix());
        for (path, json, xml, detail) in [
            (
                networks.clone(),
                r#"{"network": {"name": "n"}}"#,
                r#"<network name="n"/>"#,
                "Quota exceeded for networks: 1 of 1 are in use, 1 more were asked for",
            ),
            (
                format!("{networks}/{id}/ports"),
                r#"{"port": {"state": "ACTIVE"}}"#,
                r#"<port state="ACTIVE"/>"#,
                "Quota exceeded for ports: 0 of 0 are in use, 1 more were asked for",
            ),
        ] {
            let told = server.ask_in(Format::Json, "POST", &path, Some(json));
            assert_eq!(told.status, 409, "{told:?}");
            let wanted = match version {
                Version::V1_0 => json!({"overQuota": {"message": message, "code": 409, "detail": detail}}),
                Version::V1_1 => json!({"QuantumError": {"message": message, "type": "OverQuota", "detail": detail}}),
            };
            assert_eq!(told.json(), wanted);
            let told = server.ask_in(Format::Xml, "POST", &path, Some(xml));
            assert_eq!(told.status, 409, "{told:?}");
            let has = |text: &str| told.body.contains(text);
            let root = if version == Version::V1_0 { "<overQuota code=\"409\"" } else { "<QuantumError " };
            assert!(has(root) && has(&format!("<detail>{detail}</detail>")), "{told:?}");
        }
        // What is wrong with the request, and what is not there, is told first.
        let answer = server.ask("POST", &format!("{networks}/{id}/ports"), Some(r#"{"port": {"state": "BAD"}}"#));
        assert_eq!(answer.status, if version == Version::V1_0 { 431 } else { 400 });
        let answer = server.ask("POST", &format!("{networks}/none/ports"), Some(r#"{"port": {}}"#));
        assert_eq!(answer.status, if version == Version::V1_0 { 420 } else { 404 });
    }
}
