//! What the golden files cannot say: headers, reasons, negotiation, the version list, who may ask, restarts.

use crate::rig::{DRIVERS, Driver, ReadyHost, Scratch, Server, open_store};
use api::host::{Host, Scope};
use api::model::{Model, OpStatus, PortId};
use api::plugin::{GetPortError, Plugin, PortRow, PortStats};
use api::plugins::NativePlugin;
use api::server::{ServeError, ServerConfig, serve};
use api::v1::Dialect;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const NETWORKS: &str = "/v1.1/tenants/red/networks";

#[test]
fn suffix_then_content_type_then_accept_choose_the_format_of_body_and_answer() {
    let server = Server::start(Driver::Fake);
    let (json, xml) = (r#"{"network": {"name": "n"}}"#, r#"<network name="n"/>"#);
    let rows: &[(&str, &[&str], bool)] = &[
        ("", &["Content-Type: application/json"], false),
        ("", &["Content-Type: application/json; charset=utf-8", "Accept: application/xml"], false),
        ("", &["Content-Type: application/x-www-form-urlencoded"], false),
        ("", &["Content-Type: text/xml"], false),
        ("", &[], false),
        ("", &["Accept: text/html"], false),
        ("", &["Accept: application/xml"], true),
        ("", &["Accept: application/json;q=0.4, application/xml;q=0.9"], true),
        ("", &["Accept: application/json;q=0.4", "Accept: application/xml;q=0.9"], true),
        ("", &["Content-Type: text/plain", "Accept: application/xml"], true),
        ("", &["Content-Type: application/xml; charset=UTF-8", "Accept: application/json"], true),
        (".json", &["Content-Type: application/xml", "Accept: application/xml"], false),
        (".xml", &["Content-Type: application/json"], true),
        (".foo", &["Content-Type: application/json"], false),
        (".XML", &[], false),
    ];
    for (suffix, headers, is_xml) in rows {
        let (right, wrong) = if *is_xml { (xml, json) } else { (json, xml) };
        let path = format!("{NETWORKS}{suffix}");
        let media_type = if *is_xml { "application/xml" } else { "application/json" };
        let answer = server.ask_with("POST", &path, headers, Some(right));
        assert_eq!(answer.status, 202, "{suffix} {headers:?}: {answer:?}");
        assert_eq!(answer.header("content-type"), Some(media_type), "{suffix} {headers:?}");
        let answer = server.ask_with("POST", &path, headers, Some(wrong));
        assert_eq!(answer.status, 400, "{suffix} {headers:?}: {answer:?}");
        let content_type = answer.header("content-type").unwrap();
        assert!(content_type.starts_with(media_type), "{suffix} {headers:?}: {content_type}");
    }
    assert_eq!(server.ask("GET", NETWORKS, None).json()["networks"].as_array().unwrap().len(), rows.len());
}

#[test]
fn reasons_are_the_standard_ones_and_an_empty_answer_has_the_media_type() {
    for driver in DRIVERS {
        let server = Server::start(driver);
        let network = server.make(NETWORKS, r#"{"network": {"name": "n"}}"#);
        let port = server.make(&format!("{NETWORKS}/{network}/ports"), r#"{"port": {}}"#);
        let item = format!("{NETWORKS}/{network}");
        let attachment = format!("{item}/ports/{port}/attachment");
        let plug = Some(r#"{"attachment": {"id": "v"}}"#);
        for (method, path, body, status, reason) in [
            ("GET", NETWORKS, None, 200, "OK"),
            ("POST", NETWORKS, Some(r#"{"network": {"name": "n"}}"#), 202, "Accepted"),
            ("PUT", &item, Some(r#"{"network": {"name": "m"}}"#), 204, "No Content"),
            ("POST", NETWORKS, Some("x"), 400, "Bad Request"),
            ("GET", "/v1.1/tenants/blue/networks/x", None, 404, "Not Found"),
            ("PUT", &attachment, plug, 204, "No Content"),
            ("PUT", &attachment, plug, 409, "Conflict"),
        ] {
            let answer = server.ask(method, path, body);
            assert_eq!((answer.status, answer.reason.as_str()), (status, reason), "{method} {path}");
            assert_eq!(answer.header("content-type"), Some("application/json"), "{method} {path}");
        }
    }
}

#[test]
fn json_looks_as_the_original_wrote_it() {
    let server = Server::start(Driver::Fake);
    let id = server.make(NETWORKS, r#"{"network": {"name": "réseau \ud83d\ude00 \""}}"#);
    let answer = server.ask("GET", &format!("{NETWORKS}/{id}"), None);
    let wanted = r#"{"network": {"op-status": "UP", "id": "ID", "name": "r\u00e9seau \ud83d\ude00 \""}}"#;
    assert_eq!(answer.body, wanted.replace("ID", &id));
}

#[test]
fn xml_looks_as_the_original_wrote_it() {
    let server = Server::start(Driver::Fake);
    let id = server.make(NETWORKS, r#"{"network": {"name": "a <b> & \"c\" é"}}"#);
    let item = format!("{NETWORKS}/{id}");
    let port = server.make(&format!("{item}/ports"), r#"{"port": {"state": "ACTIVE"}}"#);
    let attachment = format!("{item}/ports/{port}/attachment.xml");
    let plug = r#"<?xml version="1.0" ?><attachment><id>vif</id></attachment>"#;
    assert_eq!(server.ask("PUT", &attachment, Some(plug)).status, 204);
    let missing = "ffffffff-0000-0000-0000-000000000000";
    for (path, wanted) in [
        (
            format!("{item}/detail.xml"),
            r#"<network id="ID" name="a &lt;b&gt; &amp; &quot;c&quot; é" op-status="UP" xmlns="http://openstack.org/quantum/api/v1.1"><ports><port id="PORT" op-status="UP" state="ACTIVE"><attachment id="vif"/></port></ports></network>"#,
        ),
        (
            format!("{}/detail.xml", item.replace("v1.1", "v1.0")),
            r#"<network id="ID" name="a &lt;b&gt; &amp; &quot;c&quot; é" xmlns="http://openstack.org/quantum/api/v1.0"><ports><port id="PORT" state="ACTIVE"><attachment id="vif"/></port></ports></network>"#,
        ),
        (
            format!("{NETWORKS}.xml"),
            r#"<networks xmlns="http://openstack.org/quantum/api/v1.1"><network id="ID"/></networks>"#,
        ),
        (format!("{NETWORKS}.xml?name=no"), r#"<networks xmlns="http://openstack.org/quantum/api/v1.1"/>"#),
        (attachment, r#"<attachment xmlns="http://openstack.org/quantum/api/v1.1"><id>vif</id></attachment>"#),
        (
            format!("{NETWORKS}/{missing}.xml"),
            r#"<QuantumError xmlns="http://openstack.org/quantum/api/v1.1"><message>Unable to find a network with the specified identifier.</message><type>NetworkNotFound</type><detail>Network MISSING could not be found</detail></QuantumError>"#,
        ),
        (
            format!("/v1.0/tenants/red/networks/{missing}.xml"),
            r#"<networkNotFound code="420" xmlns="http://openstack.org/quantum/api/v1.0"><message>Unable to find a network with the specified identifier.</message><detail>Network MISSING could not be found</detail></networkNotFound>"#,
        ),
    ] {
        let wanted = wanted.replace("ID", &id).replace("PORT", &port).replace("MISSING", missing);
        assert_eq!(server.ask("GET", &path, None).body, wanted, "{path}");
    }
}

#[test]
fn the_root_lists_the_versions_served_by_the_name_it_was_called() {
    let server = Server::start(Driver::Fake);
    for (method, path, host, link) in [
        ("GET", "/", "localhost:9696", "http://localhost:9696/"),
        ("GET", "/.json", "127.0.0.1:80", "http://127.0.0.1/"),
        ("POST", "/", "localhost", "http://localhost/"),
    ] {
        let headers = [&format!("Host: {host}"), "X-Forwarded-Host: evil.example"];
        let answer = server.ask_with(method, path, &headers, None);
        let wanted = json!({"versions": [
            {"id": "v1.0", "status": "CURRENT", "links": [{"rel": "self", "href": format!("{link}v1.0")}]},
            {"id": "v1.1", "status": "PROPOSED", "links": [{"rel": "self", "href": format!("{link}v1.1")}]},
        ]});
        assert_eq!(answer.json(), wanted);
    }
    let xml = concat!(
        r#"<versions><version id="v1.0" status="CURRENT"><links><link href="http://h.localhost/v1.0" rel="self"/></links>"#,
        r#"</version><version id="v1.1" status="PROPOSED"><links><link href="http://h.localhost/v1.1" rel="self"/></links>"#,
        "</version></versions>"
    )
    .replace("h.localhost", "localhost:9");
    for (path, header) in [("/.xml", "X: y"), ("/", "Accept: application/xml"), ("/", "Content-Type: application/xml")]
    {
        let answer = server.ask_with("GET", path, &["Host: localhost:9", header], None);
        assert_eq!(answer.body, xml, "{path} {header}");
        assert_eq!(answer.header("content-type"), Some("application/xml; charset=UTF-8"));
    }
}

#[test]
fn in_the_originals_dialect_every_path_outside_the_versions_lists_them() {
    let strict = ServerConfig { dialect: Dialect::StrictEssex, ..ServerConfig::default() };
    let server = Server::with(Driver::Fake, strict);
    let list = server.ask("GET", "/", None);
    for (method, path) in [
        ("GET", "/foo"),
        ("GET", "/foo/bar.json"),
        ("POST", "/v2.0"),
        ("DELETE", "/v1"),
        ("GET", "/v1.0x"),
        ("PUT", "/v1.1.json"),
        ("PATCH", "//v1"),
    ] {
        let answer = server.ask(method, path, None);
        assert_eq!((answer.status, &answer.body), (200, &list.body), "{method} {path}");
    }
    let answer = server.ask("GET", "/foo.xml", None);
    assert_eq!(answer.header("content-type"), Some("application/xml; charset=UTF-8"));
    let answer = server.ask("HEAD", "/foo", None);
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
}

#[test]
fn in_the_originals_dialect_a_bad_request_of_v1_0_is_no_xml_as_it_was() {
    let strict = ServerConfig { dialect: Dialect::StrictEssex, ..ServerConfig::default() };
    let message = "The server could not comply with the request since it is either malformed or otherwise incorrect.";
    let detail = "Unable to find 'network' in request body";
    for (config, name) in [(strict, "Bad Request"), (ServerConfig::default(), "BadRequest")] {
        let server = Server::with(Driver::Fake, config);
        let answer = server.ask("POST", "/v1.0/tenants/red/networks.xml", Some("<port/>"));
        let wanted = format!(
            "<{name} code=\"400\" xmlns=\"http://openstack.org/quantum/api/v1.0\"><message>{message}</message>\
             <detail>{detail}</detail></{name}>"
        );
        assert_eq!((answer.status, answer.reason.as_str(), answer.body), (400, "Bad Request", wanted));
    }
}

#[test]
fn head_is_answered_without_a_body() {
    let server = Server::start(Driver::Fake);
    for (path, status) in [("/", 200), (NETWORKS, 404)] {
        let answer = server.ask("HEAD", path, None);
        assert_eq!((answer.status, answer.body.as_str()), (status, ""), "{path}");
    }
}

#[test]
fn a_foreign_host_or_origin_gets_403_and_a_configured_host_is_served() {
    let config = ServerConfig { hosts: vec!["api.example".to_owned()], ..ServerConfig::default() };
    let server = Server::with(Driver::Fake, config);
    let rows: &[(&[&str], u16)] = &[
        (&["Host: api.example:9696"], 200),
        (&["Host: api.example", "Origin: http://api.example"], 200),
        (&["Host: rebound.example"], 403),
        (&["Host: api.example", "Origin: http://evil.example"], 403),
        (&["Host: api.example", "Origin: null"], 403),
        (&["Host: api.example", "Host: api.example"], 400),
        (&["Host: "], 400),
    ];
    for (headers, status) in rows {
        for path in [NETWORKS, "/", "/nowhere"] {
            let answer = server.ask_with("GET", path, headers, None);
            let wanted = if path == "/nowhere" && *status == 200 { 404 } else { *status };
            assert_eq!(answer.status, wanted, "{headers:?} {path}");
        }
    }
    let answer = server.ask_with("POST", NETWORKS, &["Host: evil.example"], Some(r#"{"network": {"name": "n"}}"#));
    assert_eq!(answer.json()["Error"]["code"], 403);
    assert!(server.raw(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").starts_with("HTTP/1.1 400 "));
    assert!(server.raw(b"GET / HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 403 "));
}

#[test]
fn without_authentication_it_serves_only_loopback_unless_told_to_be_insecure() {
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let run = |config| {
        let plugin = Arc::new(api::plugins::FakePlugin::new());
        runtime.block_on(serve(listener.try_clone().unwrap(), config, plugin, std::future::ready(())))
    };
    assert!(matches!(run(ServerConfig::default()), Err(ServeError::InClear { .. })));
    let strict = ServerConfig { is_insecure: true, dialect: Dialect::StrictEssex, ..ServerConfig::default() };
    assert!(matches!(run(strict), Err(ServeError::StrictBeyondLoopback { .. })));
    run(ServerConfig { is_insecure: true, ..ServerConfig::default() }).unwrap();
    let files = crate::tls::Files::new();
    files.renew();
    let with_tls = || ServerConfig { tls: files.tls(), ..ServerConfig::default() };
    assert!(matches!(run(with_tls()), Err(ServeError::ForEverybody { .. })));
    run(ServerConfig { is_insecure: true, ..with_tls() }).unwrap();
}

#[test]
fn a_native_plugin_finds_everything_again_and_puts_each_change_in_force_before_it_answers() {
    let scratch = Scratch::new();
    let open = || {
        let host = Arc::new(ReadyHost::default());
        let store = open_store(&scratch.store());
        (NativePlugin::new(store, host.clone()).unwrap(), host)
    };
    let (plugin, host) = open();
    let network = plugin.create_network("red", Some("n".into())).unwrap();
    let port = plugin.create_port("red", &network, "ACTIVE").unwrap();
    plugin.plug_interface("red", &network, &port, "vif").unwrap();
    assert_eq!(host.in_force_count.load(Ordering::Relaxed), 3);
    assert!(plugin.plug_interface("red", &network, &port, "vif").is_err());
    assert_eq!(host.in_force_count.load(Ordering::Relaxed), 3, "a refused change changes nothing");
    plugin.put_in_force();
    assert_eq!(host.in_force_count.load(Ordering::Relaxed), 4);
    let before = plugin.get_port_details("red", &network, &port).unwrap();
    drop(plugin);
    let (plugin, _host) = open();
    assert_eq!(plugin.get_port_details("red", &network, &port).unwrap(), before);
    assert_eq!(before.op_status, OpStatus::Up);
}

/// One of many hosts, on which nothing is plugged.
struct OneOfMany;

impl Host for OneOfMany {
    fn put_in_force(&self, _model: &Model, _scope: Scope<'_>) {}

    fn op_status(&self, _model: &Model, _port: &PortId) -> OpStatus {
        OpStatus::Up
    }

    fn port_stats(&self, _model: &Model, _port: &PortId) -> Option<PortStats> {
        None
    }
}

#[test]
fn the_counters_of_a_port_that_is_plugged_on_another_host_are_told_by_nobody_else() {
    let scratch = Scratch::new();
    let plugin = NativePlugin::new(open_store(&scratch.store()), Arc::new(OneOfMany)).unwrap();
    let network = plugin.create_network("red", None).unwrap();
    let port = plugin.create_port("red", &network, "ACTIVE").unwrap();
    let told = plugin.get_port_stats("red", &network, &port);
    assert!(matches!(told, Err(GetPortError::BackendUnavailable(_))), "{told:?}");
    assert!(matches!(plugin.get_port_stats("blue", &network, &port), Err(GetPortError::NetworkNotFound(_))));
}

/// A host that tells whatever it is told to.
struct Telling(OpStatus);

impl Host for Telling {
    fn put_in_force(&self, _model: &Model, _scope: Scope<'_>) {}

    fn op_status(&self, _model: &Model, _port: &PortId) -> OpStatus {
        self.0
    }
}

#[test]
fn an_op_status_that_was_written_over_a_native_port_goes_when_it_is_unplugged() {
    let scratch = Scratch::new();
    let plugin = NativePlugin::new(open_store(&scratch.store()), Arc::new(Telling(OpStatus::Down))).unwrap();
    let network = plugin.create_network("red", None).unwrap();
    let port = plugin.create_port("red", &network, "ACTIVE").unwrap();
    plugin.plug_interface("red", &network, &port, "vif").unwrap();
    let status = || plugin.get_port_details("red", &network, &port).unwrap().op_status;
    let row = PortRow { op_status: Some(OpStatus::Up), ..PortRow::of_state("ACTIVE".into()) };
    plugin.overwrite_port("red", &network, &port, &row).unwrap();
    assert_eq!(status(), OpStatus::Up);
    plugin.unplug_interface("red", &network, &port).unwrap();
    assert_eq!(status(), OpStatus::Down);
}

#[test]
fn a_native_port_is_up_only_if_active_attached_and_carried_by_the_host() {
    for (told, wanted) in [(OpStatus::Up, OpStatus::Up), (OpStatus::Down, OpStatus::Down)] {
        let scratch = Scratch::new();
        let store = open_store(&scratch.store());
        let plugin = NativePlugin::new(store, Arc::new(Telling(told))).unwrap();
        let network = plugin.create_network("red", None).unwrap();
        let port = plugin.create_port("red", &network, "ACTIVE").unwrap();
        let status = || plugin.get_port_details("red", &network, &port).unwrap().op_status;
        assert_eq!(status(), OpStatus::Down, "not attached");
        plugin.plug_interface("red", &network, &port, "vif").unwrap();
        assert_eq!(status(), wanted);
        plugin.update_port("red", &network, &port, "DOWN").unwrap();
        assert_eq!(status(), OpStatus::Down, "admin state DOWN");
        plugin.update_port("red", &network, &port, "ACTIVE").unwrap();
        plugin.unplug_interface("red", &network, &port).unwrap();
        assert_eq!(status(), OpStatus::Down, "unplugged");
    }
}
