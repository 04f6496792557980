//! `allowed_address_pairs`: taken on a port's creation and update, kept, never told, and refused if they are none.

use crate::rig::{DRIVERS, Format, Scratch, Server, Version, native};
use api::address_pair::PAIRS_MAX;
use api::plugins::NativePlugin;
use api::server::ServerConfig;
use api::v1::Dialect;
use serde_json::{Value, json};
use std::sync::Arc;

const PORTS: &str = "/v1.1/tenants/red/networks/NETWORK/ports";

/// A server over a plugin that can be looked into, and a network.
fn scene(config: ServerConfig) -> (Server, Arc<NativePlugin>, String) {
    let scratch = Scratch::new();
    let plugin = Arc::new(native(&scratch.store()));
    let server = Server::over(plugin.clone(), config, scratch);
    let network = server.make("/v1.1/tenants/red/networks", r#"{"network": {"name": "n"}}"#);
    (server, plugin, network)
}

/// The pairs of a port, as they are kept.
fn kept(plugin: &NativePlugin, port: &str) -> Value {
    serde_json::to_value(&plugin.snapshot().ports[port].pairs).unwrap()
}

/// What Nova's QuantumManager of that time sends.
fn novas_port(pairs: &Value) -> Value {
    json!({"port": {"state": "ACTIVE", "vm_id": "v", "rxtx_factor": "1.0", "nova_id": "nova", "allowed_address_pairs": pairs}})
}

#[test]
fn pairs_are_kept_in_every_version_and_format_and_told_to_nobody() {
    let (server, plugin, network) = scene(ServerConfig::default());
    let pairs = json!([
        {"mac_address": "02:16:3e:00:00:01", "ip_address": "10.0.0.7"},
        {"mac_address": "02:16:3e:00:00:02"},
    ]);
    let xml = "<port state=\"ACTIVE\"><allowed_address_pairs><pair><mac_address>02:16:3e:00:00:01</mac_address>\
               <ip_address>10.0.0.7</ip_address></pair><pair mac_address=\"02:16:3e:00:00:02\"/></allowed_address_pairs></port>";
    for version in Version::ALL {
        for format in [Format::Json, Format::Xml] {
            let before: Vec<_> = plugin.snapshot().ports.values().map(|port| port.id.clone()).collect();
            let path = PORTS.replace("/v1.1", version.prefix()).replace("NETWORK", &network);
            let body = if format == Format::Json { novas_port(&pairs).to_string() } else { xml.to_owned() };
            let answer = server.ask_in(format, "POST", &path, Some(&body));
            assert!([200, 202].contains(&answer.status), "{answer:?}");
            let model = plugin.snapshot();
            let port = model.ports.values().find(|port| !before.contains(&port.id)).unwrap();
            assert_eq!(kept(&plugin, &port.id), pairs, "{version:?} {format:?}");
            let told = server.ask_in(format, "GET", &format!("{path}/{}/detail", port.id), None);
            assert!(told.body.contains("ACTIVE") && !told.body.contains("02:16"), "{told:?}");
        }
    }
}

#[test]
fn an_update_replaces_pairs_if_it_names_them_and_else_leaves_them() {
    let (server, plugin, network) = scene(ServerConfig::default());
    let pair = |last: u8| json!([{"mac_address": format!("02:16:3e:00:00:{last:02x}")}]);
    let ports = PORTS.replace("NETWORK", &network);
    let port = server.make(&ports, &novas_port(&pair(1)).to_string());
    let path = format!("{ports}/{port}");
    let put = |path: &str, body: Value| server.ask("PUT", path, Some(&body.to_string())).status;
    assert_eq!(put(&path, json!({"port": {"state": "DOWN"}})), 204);
    assert_eq!(put(&format!("{path}/attachment"), json!({"attachment": {"id": "vif"}})), 204);
    assert_eq!(kept(&plugin, &port), pair(1));
    assert_eq!(put(&path, json!({"port": {"state": "ACTIVE", "allowed_address_pairs": pair(2)}})), 204);
    assert_eq!(kept(&plugin, &port), pair(2));
    assert_eq!(plugin.snapshot().ports[port.as_str()].attachment.as_deref(), Some("vif"));
    assert_eq!(put(&path, json!({"port": {"state": "ACTIVE", "allowed_address_pairs": [7]}})), 400);
    assert_eq!(kept(&plugin, &port), pair(2));
    assert_eq!(put(&path, json!({"port": {"state": "ACTIVE", "allowed_address_pairs": null}})), 204);
    assert_eq!(kept(&plugin, &port), json!([]));
}

#[test]
fn what_are_no_pairs_is_refused_with_the_reason_and_makes_no_port() {
    let good = json!({"mac_address": "02:16:3e:00:00:01", "ip_address": "10.0.0.7"});
    let wrong = [
        (json!("x"), "is no list"),
        (json!([{"mac_address": "02:16:3e"}]), "has a mac_address that is no station's"),
        (json!([good, {"mac_address": "02:16:3e:00:00:01", "ip_address": "10.0.0"}]), "has an ip_address that is none"),
        (json!(vec![good.clone(); PAIRS_MAX + 1]), "has more than 64 pairs"),
    ];
    for driver in DRIVERS {
        let server = Server::start(driver);
        let network = server.make("/v1.1/tenants/red/networks", r#"{"network": {"name": "n"}}"#);
        let ports = PORTS.replace("NETWORK", &network);
        for (pairs, why) in &wrong {
            let answer = server.ask("POST", &ports, Some(&novas_port(pairs).to_string()));
            assert_eq!(answer.status, 400, "{answer:?}");
            let detail = answer.json()["QuantumError"]["detail"].as_str().unwrap().to_owned();
            assert_eq!(detail, format!("Failed to parse request. Parameter: allowed_address_pairs {why}"));
        }
        assert_eq!(server.ask("GET", &ports, None).json(), json!({"ports": []}));
        server.make(&ports, &novas_port(&json!([good])).to_string());
    }
    // The original looked at none of it.
    let (server, plugin, network) = scene(ServerConfig { dialect: Dialect::StrictEssex, ..ServerConfig::default() });
    let port = server.make(&PORTS.replace("NETWORK", &network), &novas_port(&wrong[0].0).to_string());
    assert_eq!(kept(&plugin, &port), json!([]));
}

#[test]
fn pairs_are_there_again_after_a_restart() {
    let scratch = Scratch::new();
    let pairs = [api::address_pair::AddressPair::new("02:16:3e:00:00:01", Some("10.0.0.0/8")).unwrap()].into();
    let plugin = native(&scratch.store());
    use api::plugin::Plugin;
    let network = plugin.create_network("red", None).unwrap();
    let port = plugin.create_port_with_pairs("red", &network, "ACTIVE", &pairs).unwrap();
    drop(plugin);
    assert_eq!(native(&scratch.store()).snapshot().ports[&port].pairs, pairs);
}
