//! The reference held against a running service: every example gets its answer, in every version and format, with both
//! plugins; and the committed page and description are those of the tables.
//!
//! The examples' ids are learnt by making what an example needs in a tenant of its own. JSON is compared by value, all else
//! to the byte.

use crate::rig::{Answer, DRIVERS, Driver, Scratch, Server, native};
use api::format::Format;
use api::plugin::Plugin;
use api::plugins::FakePlugin;
use api::sealed::SealKey;
use api::server::ServerConfig;
use api::v1::reference::{self, CREDENTIAL, Example, Given, HOST, INTERFACE, NETWORK, OTHER_PORT, PORT, PROFILE, QOS};
use api::v1::{Dialect, Extensions, ExtensionsConfig};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// A server with these extensions, or with all.
fn start(driver: Driver, named: Option<&str>) -> Server {
    let scratch = Scratch::new();
    let plugin: Arc<dyn Plugin> = match driver {
        Driver::Fake => Arc::new(FakePlugin::new()),
        Driver::Native => Arc::new(native(&scratch.store())),
    };
    let extensions = Arc::new(extensions(&*plugin, &scratch, named));
    Server::over(plugin, ServerConfig { extensions, ..ServerConfig::default() }, scratch)
}

fn extensions(plugin: &dyn Plugin, scratch: &Scratch, named: Option<&str>) -> Extensions {
    let path = scratch.store().with_file_name("seal.key");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let named = named.map(|alias| vec![alias.to_owned()]);
    let key = Some(SealKey::open(&path).unwrap());
    Extensions::new(plugin, ExtensionsConfig { named, key, host: HOST[0].to_owned(), ..ExtensionsConfig::default() })
        .unwrap()
}

/// A tenant of its own for one example, with the real ids by the example's.
struct World<'a> {
    server: &'a Server,
    ids: HashMap<&'static str, String>,
}

impl World<'_> {
    fn new(server: &Server, given: Given, count: usize) -> World<'_> {
        let tenant = format!("tenant{count}");
        let interface = format!("{}{count:04}", &INTERFACE[..32]);
        let mut world = World { server, ids: [(reference::TENANT, tenant), (INTERFACE, interface)].into() };
        if !matches!(given, Given::Nothing | Given::OnePlainExtension) {
            world.furnish(given);
        }
        world
    }

    fn furnish(&mut self, given: Given) {
        let tenant = format!("/v1.1/tenants/{}/networks", self.ids[reference::TENANT]);
        let network = self.make(NETWORK, &tenant, &json!({"network": {"name": "office"}}));
        let ports = format!("{tenant}/{network}/ports");
        let port = self.make(PORT, &ports, &json!({"port": {"state": "ACTIVE"}}));
        let csco = format!("/v1.1/extensions/csco/tenants/{}", self.ids[reference::TENANT]);
        let body = json!({"portprofile": {"portprofile_name": "web", "qos_name": "gold"}});
        let profile = self.make(PROFILE, &format!("{csco}/portprofiles"), &body);
        let body = json!({"qos": {"qos_name": "gold", "qos_desc": "10 Gbit/s"}});
        self.make(QOS, &format!("{csco}/qoss"), &body);
        let body = json!({"credential": {"credential_name": "rack 4", "user_name": "operator", "password": "x"}});
        self.make(CREDENTIAL, &format!("{csco}/credentials"), &body);
        if given == Given::Vacant {
            return;
        }
        let body = json!({"attachment": {"id": self.ids[INTERFACE]}});
        assert_eq!(self.ask("PUT", &format!("{ports}/{port}/attachment"), &body).status, 204);
        let body = json!({"portprofile": {"network-id": network, "port-id": port}});
        let path = format!("{csco}/portprofiles/{profile}/associate_portprofile");
        assert_eq!(self.ask("PUT", &path, &body).status, 200);
        if given == Given::Elsewhere {
            self.make(OTHER_PORT, &ports, &json!({"port": {}}));
        }
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.server.ask_with(method, path, &["Content-Type: application/json"], Some(&body.to_string()))
    }

    /// Makes what is called `name` in examples.
    fn make(&mut self, name: &'static str, path: &str, body: &Value) -> String {
        let answer = self.ask("POST", path, body);
        let id = uuids(&answer.body).first().unwrap_or_else(|| panic!("{path}: {answer:?}")).clone();
        self.ids.insert(name, id.clone());
        id
    }

    /// The text of an example with the ids that are real here.
    fn real(&self, text: &str) -> String {
        let text = self.ids.iter().fold(text.to_owned(), |text, (name, id)| text.replace(name, id));
        // A device has the first characters of its interface's id, which are the same.
        assert!(self.ids[INTERFACE].starts_with(&INTERFACE[..11]));
        text
    }
}

/// The UUIDs in a text, in order.
fn uuids(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_ascii_hexdigit() && c != '-');
    words.filter(|word| word.len() == 36 && word.matches('-').count() == 4).map(str::to_owned).collect()
}

/// The answer with the ids of examples. An id that nobody knew is that of what was made, which the example names there.
fn told(body: &str, wanted: &str, world: &World<'_>) -> String {
    let mut text = body.to_owned();
    let known: HashMap<_, _> = world.ids.iter().map(|(name, id)| (id.as_str(), *name)).collect();
    for (found, in_example) in uuids(body).iter().zip(uuids(wanted)) {
        let name = known.get(found.as_str()).map_or(in_example, |name| (*name).to_owned());
        text = text.replacen(found, &name, 1);
    }
    text
}

fn check(server: &Server, example: &Example, count: usize, place: &str) {
    let world = World::new(server, example.given, count);
    let media_type = example.format.media_type();
    let mut headers = vec![format!("Accept: {media_type}"), format!("Host: {}", HOST[1])];
    if example.body.is_some() {
        headers.push(format!("Content-Type: {media_type}"));
    }
    let headers: Vec<_> = headers.iter().map(String::as_str).collect();
    let body = example.body.as_deref().map(|body| world.real(body));
    let answer = server.ask_with(example.method, &world.real(&example.path), &headers, body.as_deref());
    let wanted = &example.answer;
    assert_eq!(answer.status, wanted.status.as_u16(), "{place}: {answer:?}");
    assert_eq!(answer.header("content-type"), Some(wanted.content_type), "{place}");
    let reason = wanted.reason.or(wanted.status.canonical_reason());
    assert_eq!(Some(answer.reason.as_str()), reason, "{place}");
    let text = String::from_utf8(wanted.body.clone()).unwrap();
    let found = told(&answer.body, &text, &world);
    if wanted.content_type == "application/json" && !text.is_empty() {
        let [wanted, found]: [Value; 2] = [&text, &found].map(|text| serde_json::from_str(text).unwrap());
        assert_eq!(found, wanted, "{place}");
    } else {
        assert_eq!(found, text, "{place}");
    }
}

#[test]
fn every_example_gets_its_answer_in_every_version_and_format_with_both_plugins() {
    let examples = reference::examples();
    assert!(examples.len() > 200, "{}", examples.len());
    for driver in DRIVERS {
        let (all, one) = (start(driver, None), start(driver, Some("portstats")));
        for (count, example) in examples.iter().enumerate() {
            let server = if example.given == Given::OnePlainExtension { &one } else { &all };
            let place = format!("{} {} {:?} {driver:?}", example.name, example.path, example.format);
            check(server, example, count, &place);
        }
    }
}

/// Compares a committed file, or writes it if that is asked for.
fn hold_golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    if std::env::var_os("QVS_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let line = std::iter::zip(committed.lines(), text.lines()).position(|(old, new)| old != new);
    assert!(committed == text, "api/{name} is not what the tables say, from line {line:?}; QVS_BLESS=1 writes it anew");
}

#[test]
fn the_committed_page_and_description_are_those_of_the_tables() {
    let scratch = Scratch::new();
    hold_golden("REFERENCE.md", &reference::page());
    hold_golden("openapi.json", &reference::description_file(&extensions(&FakePlugin::new(), &scratch, None)));
}

#[test]
fn the_description_is_served_to_everybody_by_get_and_in_the_original_dialect_not_at_all() {
    let server = start(Driver::Native, None);
    let answer = server.ask("GET", reference::DESCRIPTION_PATH, None);
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    let committed = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json")).unwrap();
    assert_eq!(answer.json(), serde_json::from_str::<Value>(&committed).unwrap());
    assert_eq!(server.ask("HEAD", reference::DESCRIPTION_PATH, None).status, 200);
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        assert_eq!(server.ask(method, reference::DESCRIPTION_PATH, None).status, 404, "{method}");
    }
    for path in ["/openapi.json/", "/openapi", "/openapi.json.json", "/v1.1/openapi.json"] {
        assert_eq!(server.ask("GET", path, None).status, 404, "{path}");
    }
    let strict = Server::with(Driver::Fake, ServerConfig { dialect: Dialect::StrictEssex, ..ServerConfig::default() });
    assert!(strict.ask("GET", reference::DESCRIPTION_PATH, None).json()["versions"].is_array());
}

#[test]
fn a_server_describes_the_extensions_it_has_and_no_others() {
    let server = start(Driver::Fake, Some("portstats"));
    let description = server.ask("GET", reference::DESCRIPTION_PATH, None).json();
    let paths: Vec<_> = description["paths"].as_object().unwrap().keys().cloned().collect();
    assert!(paths.iter().any(|path| path.ends_with("/stats")) && !paths.iter().any(|path| path.contains("csco")));
}

#[test]
fn the_page_shows_each_operation_in_both_formats() {
    let page = reference::page();
    for example in reference::examples().iter().filter(|example| example.path.starts_with("/v1.1/")) {
        if let Some(body) = &example.body {
            let is_fault = example.answer.status.is_client_error();
            assert!(is_fault || page.contains(body.as_str()), "{}: {body}", example.name);
        }
        let answer = String::from_utf8(example.answer.body.clone()).unwrap();
        assert!(page.contains(answer.trim_end()), "{} {:?}", example.name, example.format);
        assert!(
            example.format != Format::Json || page.contains(&example.path) || example.answer.status.is_client_error()
        );
    }
}
