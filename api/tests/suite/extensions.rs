//! Extensions from outside: the list, what each brings, and the older format they speak.

use crate::rig::{Answer, Driver, Format, Scratch, Server, Version, native};
use api::identity::Caller;
use api::plugin::Plugin;
use api::plugins::FakePlugin;
use api::server::ServerConfig;
use api::v1::{Dialect, Extensions, ExtensionsConfig, Request, answer};
use serde_json::{Value, json};
use std::sync::Arc;

/// The older format's media type of a text.
const HTML: &str = "text/html; charset=UTF-8";

/// All extensions that a plugin can carry, the one for tests included.
fn with_foxnsox() -> ExtensionsConfig {
    ExtensionsConfig { has_foxnsox: true, ..ExtensionsConfig::default() }
}

/// A server with all extensions that the plugin can carry, the one for tests included.
fn start(driver: Driver) -> Server {
    let scratch = Scratch::new();
    let plugin: Arc<dyn Plugin> = match driver {
        Driver::Fake => Arc::new(FakePlugin::new()),
        Driver::Native => Arc::new(native(&scratch.store())),
    };
    let extensions = Arc::new(Extensions::new(&*plugin, with_foxnsox()).unwrap());
    Server::over(plugin, ServerConfig { extensions, ..ServerConfig::default() }, scratch)
}

/// Every version and format.
fn ways() -> impl Iterator<Item = (Version, Format)> {
    Version::ALL.into_iter().flat_map(|version| [Format::Json, Format::Xml].map(|format| (version, format)))
}

fn ask(server: &Server, way: (Version, Format), method: &str, path: &str, body: Option<&str>) -> Answer {
    server.ask_in(way.1, method, &format!("{}{path}", way.0.prefix()), body)
}

/// What an answer told: JSON by value, XML by its text.
fn told(answer: &Answer, format: Format) -> Value {
    assert_eq!(answer.header("content-type"), Some(format!("application/{}", format.name()).as_str()), "{answer:?}");
    match format {
        Format::Json => answer.json(),
        Format::Xml => Value::String(answer.body.clone()),
    }
}

#[test]
fn the_list_tells_each_extension_and_a_server_without_any_tells_none() {
    let server = start(Driver::Fake);
    let none = Server::start(Driver::Fake);
    for way in ways() {
        let empty = told(&ask(&none, way, "GET", "/extensions", None), way.1);
        let list = ask(&server, way, "GET", "/extensions", None);
        assert_eq!(list.status, 200);
        match way.1 {
            Format::Json => {
                assert_eq!(empty, json!({"extensions": []}));
                let stats = &list.json()["extensions"][0];
                let wanted = json!({
                    "updated": "2011-12-20T10:00:00-00:00", "name": "Port Statistics", "links": [],
                    "namespace": "http://docs.openstack.org/ext/portstats/api/v1.0", "alias": "portstats",
                    "description": "Port Statistics",
                });
                assert_eq!(*stats, wanted);
                assert_eq!(ask(&server, way, "GET", "/extensions/portstats", None).json(), wanted);
            }
            Format::Xml => {
                assert_eq!(empty, "<extensions/>");
                let one = "<extension><updated>2011-12-20T10:00:00-00:00</updated><name>Port Statistics</name><links/>\
                           <namespace>http://docs.openstack.org/ext/portstats/api/v1.0</namespace>\
                           <alias>portstats</alias><description>Port Statistics</description></extension>";
                assert!(list.body.starts_with(&format!("<extensions>{one}<extension>")), "{}", list.body);
                assert_eq!(told(&ask(&server, way, "GET", "/extensions/portstats", None), way.1), one);
            }
        }
    }
}

#[test]
fn an_extension_that_is_not_there_gets_the_page_that_says_so_and_other_methods_the_plain_one() {
    let server = start(Driver::Fake);
    for version in Version::ALL.map(Version::prefix) {
        let page = server.ask("GET", &format!("{version}/extensions/NO%3Cb%3E.json"), None);
        assert_eq!(page.status, 404);
        let message = "The resource could not be found.<br /><br />\nExtension with alias NO<b> does not exist\n\n";
        assert_eq!(page.json()["message"], message);
        let html = server.ask_with("GET", &format!("{version}/extensions/NO%3Cb%3E"), &["Accept: text/html"], None);
        assert!(html.body.contains("alias NO&lt;b&gt; does not"), "{html:?}");
        for (method, path) in
            [("POST", "extensions"), ("PUT", "extensions/portstats"), ("DELETE", "extensions/portstats")]
        {
            let answer = server.ask(method, &format!("{version}/{path}"), Some("{}"));
            assert_eq!((answer.status, answer.json()["title"].as_str()), (404, Some("Not Found")), "{method} {path}");
        }
    }
}

#[test]
fn the_original_dialect_lists_nothing_that_was_not_named_and_of_one_tells_the_date() {
    let plugin = FakePlugin::new();
    let ask = |extensions: &Extensions, path: &str, accept: &str| {
        let request = Request {
            version: api::v1::Version::V1_1,
            dialect: Dialect::StrictEssex,
            method: "GET".into(),
            path: path.into(),
            query: Vec::new(),
            content_type: None,
            accept: Some(accept.into()),
            body: Vec::new(),
        };
        let (reply, _) = answer(&plugin, extensions, &Caller::Anyone, &request);
        (reply.status.as_u16(), String::from_utf8(reply.body).unwrap())
    };
    let all = Extensions::new(&plugin, with_foxnsox()).unwrap();
    assert_eq!(ask(&all, "/extensions", "application/json"), (200, r#"{"extensions": []}"#.to_owned()));
    assert_eq!(ask(&all, "/extensions/FOXNSOX", "application/json").0, 404);
    assert_eq!(ask(&all, "/foxnsocks", "application/json").0, 200);
    let named = ExtensionsConfig { named: Some(vec!["FOXNSOX".to_owned()]), ..with_foxnsox() };
    let one = Extensions::new(&plugin, named).unwrap();
    assert_eq!(ask(&one, "/extensions", "application/xml").1.matches("<extension>").count(), 1);
    let date = "<updated>2011-01-22T13:25:27-06:00</updated>";
    assert_eq!(ask(&one, "/extensions/FOXNSOX", "application/xml"), (200, date.to_owned()));
    assert_eq!(ask(&one, "/extensions/portstats", "application/json").0, 404);
}

#[test]
fn resource_action_and_request_extensions_answer() {
    let server = start(Driver::Fake);
    for (version, format) in ways() {
        let way = (version, format);
        let socks = ask(&server, way, "GET", "/foxnsocks", None);
        assert_eq!((socks.status, socks.header("content-type")), (200, Some(HTML)));
        assert_eq!(socks.body, "Try to say this Mr. Knox, sir...");
        assert_eq!(ask(&server, way, "GET", "/foxnsocks/1", None).status, 404);
        let action = |collection: &str, name: &str| {
            let body = match format {
                Format::Json => format!(r#"{{"{name}": {{"name": "Beetle"}}}}"#),
                Format::Xml => format!(r#"<{name} xmlns:FOXNSOX="x" name="Beetle"/>"#),
            };
            ask(&server, way, "POST", &format!("/{collection}/1/action"), Some(&body))
        };
        let added = action("dummy_resources", "FOXNSOX:add_tweedle");
        assert_eq!((added.status, added.header("content-type")), (200, Some(HTML)));
        assert_eq!(added.body, "Tweedle Beetle Added.");
        assert_eq!(action("dummy_resources", "FOXNSOX:delete_tweedle").body, "Tweedle Beetle Deleted.");
        assert_eq!(action("dummy_resources", "blah").status, 404);
        assert_eq!(action("others", "FOXNSOX:add_tweedle").status, 404);

        let nameless = match format {
            Format::Json => r#"{"FOXNSOX:add_tweedle": {}}"#,
            Format::Xml => r#"<FOXNSOX:add_tweedle xmlns:FOXNSOX="x"/>"#,
        };
        for (body, why) in [(nameless, "Parameter: name not specified"), ("nothing", "Malformed request body")] {
            let refused = ask(&server, way, "POST", "/dummy_resources/1/action", Some(body));
            assert!(refused.status == 400 && refused.body.contains(why), "{refused:?}");
        }

        let page = |path: &str, accept: &str| {
            server.ask_with("GET", &format!("{}{path}", version.prefix()), &[&format!("Accept: {accept}")], None)
        };
        for (path, goose) in [("1", Value::Null), ("1.json?chewing=old&chewing=gum", "gum".into())] {
            let answer = page(&format!("/dummy_resources/{path}"), "application/json");
            assert_eq!(answer.status, 404, "the core has no such resource");
            let told = answer.json();
            assert_eq!(told["title"], "Not Found");
            assert_eq!((&told["FOXNSOX:googoose"], &told["FOXNSOX:big_bands"]), (&goose, &json!("Pig Bands!")));
        }
        for (path, accept) in [("/dummy_resources/1", "text/html"), ("/dummy_resources/1/2", "application/json")] {
            assert!(!page(path, accept).body.contains("FOXNSOX"), "{path}");
        }
    }
}

#[test]
fn port_stats_are_six_numbers_and_a_port_that_is_not_there_is_the_versions_not_found() {
    for driver in [Driver::Fake, Driver::Native] {
        let server = start(driver);
        let network = server.make("/v1.1/tenants/red/networks", r#"{"network": {"name": "n"}}"#);
        let port = server.make(&format!("/v1.1/tenants/red/networks/{network}/ports"), "{\"port\": {}}");
        let path = |tenant: &str, port: &str| {
            format!("/extensions/ovs/tenants/{tenant}/networks/{network}/ports/{port}/stats")
        };
        for way in ways() {
            for path in [path("red", &port), path("red", &port) + "/any"] {
                let stats = told(&ask(&server, way, "GET", &path, None), way.1);
                match way.1 {
                    Format::Json => {
                        let zeros = json!({
                            "rx_packets": 0, "rx_bytes": 0, "rx_errors": 0,
                            "tx_packets": 0, "tx_bytes": 0, "tx_errors": 0,
                        });
                        assert_eq!(stats, json!({"stats": zeros}));
                    }
                    Format::Xml => {
                        let zeros =
                            r#"rx_bytes="0" rx_errors="0" rx_packets="0" tx_bytes="0" tx_errors="0" tx_packets="0""#;
                        assert_eq!(stats, format!("<stats {zeros}/>"));
                    }
                }
            }
            let (network_code, port_code) = if way.0 == Version::V1_0 { (420, 430) } else { (404, 404) };
            assert_eq!(ask(&server, way, "GET", &path("blue", &port), None).status, network_code);
            assert_eq!(ask(&server, way, "GET", &path("red", "none"), None).status, port_code);
        }
    }
}
