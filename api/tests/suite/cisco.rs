//! The Cisco extensions from outside: port profiles, QoS levels, Nova tenants, several ports at once.

use crate::conformance::Shaky;
use crate::rig::{Answer, Driver, Format, Scratch, Server, Version, native, open_store};
use api::identity::{Caller, Identity};
use api::plugin::{Plugin, PortFilter};
use api::plugins::FakePlugin;
use api::plugins::native::Keeper;
use api::policy::Policy;
use api::sealed::SealKey;
use api::server::ServerConfig;
use api::v1::{Dialect, Extensions, ExtensionsConfig, Request, answer};
use serde_json::{Value, json};
use std::sync::Arc;

/// A server with all extensions, over a store in `scratch` if the plugin has one.
fn start(driver: Driver) -> Server {
    let scratch = Scratch::new();
    let plugin: Arc<dyn Plugin> = match driver {
        Driver::Fake => Arc::new(FakePlugin::new()),
        Driver::Native => Arc::new(native(&scratch.store())),
    };
    let key = Some(key(&scratch));
    let config = ExtensionsConfig { host: "hyper1".to_owned(), key, ..ExtensionsConfig::default() };
    let extensions = Arc::new(Extensions::new(&*plugin, config).unwrap());
    Server::over(plugin, ServerConfig { extensions, ..ServerConfig::default() }, scratch)
}

/// A key of its own.
fn key(scratch: &Scratch) -> SealKey {
    let path = scratch.store().with_file_name("seal.key");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    SealKey::open(&path).unwrap()
}

/// One way of talking to the extensions of tenant red.
struct Talk<'a> {
    server: &'a Server,
    version: Version,
    format: Format,
}

fn everywhere(mut test: impl FnMut(&Talk<'_>)) {
    for driver in [Driver::Fake, Driver::Native] {
        let server = start(driver);
        for version in Version::ALL {
            for format in [Format::Json, Format::Xml] {
                test(&Talk { server: &server, version, format });
            }
        }
    }
}

impl Talk<'_> {
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.ask_of("red", method, path, body)
    }

    fn ask_of(&self, tenant: &str, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let path = format!("{}/extensions/csco/tenants/{tenant}/{path}", self.version.prefix());
        let body = body.map(|body| match self.format {
            Format::Json => body.to_string(),
            Format::Xml => crate::tree::to_xml(body, true),
        });
        self.server.ask_in(self.format, method, &path, body.as_deref())
    }

    /// Makes something and returns its id.
    fn make(&self, path: &str, body: &Value) -> String {
        let answer = self.ask("POST", path, Some(body));
        assert_eq!(answer.status, 200, "{answer:?}");
        id_in(&answer.body)
    }

    fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    fn expect_fault(&self, answer: &Answer, code: u16, name: &str, message: &str) {
        assert_eq!(answer.status, code, "{answer:?}");
        if self.is_json() {
            assert_eq!(answer.json(), json!({name: {"code": code, "message": message}}));
        } else {
            let inside = format!("<message>{message}</message><code>{code}</code>");
            assert_eq!(answer.body, format!("<{name}>{inside}</{name}>"));
        }
    }

    fn expect_done(&self, answer: &Answer) {
        assert_eq!(answer.status, 200, "{answer:?}");
        if self.is_json() {
            let page = json!({"message": "<br /><br />\n\n\n", "code": "200 OK", "title": "OK"});
            assert_eq!(answer.json(), page);
        } else {
            assert_eq!(answer.header("content-type"), Some("text/plain; charset=UTF-8"));
        }
    }
}

/// The one UUID in a text.
fn id_in(text: &str) -> String {
    let parts = text.split(['"', '<', '>']);
    let mut found = parts.filter(|part| part.len() == 36 && part.matches('-').count() == 4);
    let id = found.next().unwrap_or_else(|| panic!("no id in {text}")).to_owned();
    assert_eq!(found.next(), None, "{text}");
    id
}

const NO_PROFILE: &str = "Unable to find a Portprofile with the specified identifier.";
const NO_QOS: &str = "Unable to find a QoS with the specified identifier.";
const NO_CREDENTIAL: &str = "Unable to find a Credential with the specified identifier.";
const NO_PORT: &str = "Unable to find a port with the specified identifier.";
const MALFORMED: &str =
    "The server could not comply with the request since it is either malformed or otherwise incorrect.";

#[test]
fn qos_levels_are_made_told_renamed_and_removed() {
    everywhere(|talk| {
        let body = |name: &str| json!({"qos": {"qos_name": name, "qos_desc": "gold"}});
        let id = talk.make("qoss", &body("one"));
        let list = talk.ask("GET", "qoss", None);
        let shown = talk.ask("GET", &format!("qoss/{id}"), None);
        let renamed =
            talk.ask("PUT", &format!("qoss/{id}"), Some(&json!({"qos": {"qos_name": "two", "qos_desc": "lead"}})));
        if talk.is_json() {
            assert_eq!(list.json(), json!({"qoss": [{"id": id}]}));
            let full = |name: &str| json!({"qoss": {"qos": {"id": id, "name": name, "description": "gold"}}});
            assert_eq!((shown.json(), renamed.json()), (full("one"), full("two")));
        } else {
            assert_eq!(list.body, format!(r#"<qoss><qos id="{id}"/></qoss>"#));
            let full = |name: &str| {
                format!(r#"<qoss><qos id="{id}" name="{name}"><description>gold</description></qos></qoss>"#)
            };
            assert_eq!((shown.body, renamed.body), (full("one"), full("two")));
        }
        let foreign = talk.ask_of("blue", "GET", &format!("qoss/{id}"), None);
        talk.expect_fault(&foreign, 452, "QoSNotFound", NO_QOS);
        assert_eq!(foreign.reason, "QoS Not Found");
        talk.expect_fault(&talk.ask_of("blue", "DELETE", &format!("qoss/{id}"), None), 452, "QoSNotFound", NO_QOS);
        talk.expect_done(&talk.ask("DELETE", &format!("qoss/{id}"), None));
        talk.expect_fault(&talk.ask("PUT", &format!("qoss/{id}"), Some(&body("x"))), 452, "QoSNotFound", NO_QOS);
    });
}

#[test]
fn credentials_are_made_told_without_their_passwords_and_removed() {
    everywhere(|talk| {
        let body =
            |name: &str| json!({"credential": {"credential_name": name, "user_name": "u", "password": "s3cret"}});
        let id = talk.make("credentials", &body("one"));
        let member = format!("credentials/{id}");
        let list = talk.ask("GET", "credentials", None);
        let shown = talk.ask("GET", &member, None);
        let renamed = talk.ask("PUT", &member, Some(&body("two")));
        if talk.is_json() {
            assert_eq!(list.json(), json!({"credentials": [{"id": id}]}));
            let full =
                |name: &str| json!({"credentials": {"credential": {"id": id, "name": name, "password": "********"}}});
            assert_eq!((shown.json(), renamed.json()), (full("u"), full("two")));
        } else {
            assert_eq!(list.body, format!(r#"<credentials><credential id="{id}"/></credentials>"#));
            let full = |name: &str| {
                let password = "<password>********</password>";
                format!(r#"<credentials><credential id="{id}" name="{name}">{password}</credential></credentials>"#)
            };
            assert_eq!((shown.body, renamed.body), (full("u"), full("two")));
        }
        let foreign = talk.ask_of("blue", "GET", &member, None);
        talk.expect_fault(&foreign, 451, "CredentialNotFound", NO_CREDENTIAL);
        talk.expect_done(&talk.ask("DELETE", &member, None));
        talk.expect_fault(&talk.ask("DELETE", &member, None), 451, "CredentialNotFound", NO_CREDENTIAL);
    });
}

#[test]
fn an_empty_text_is_told_as_none() {
    everywhere(|talk| {
        let told = |plural: &str, singular: &str, body: Value| {
            let id = talk.make(plural, &json!({ singular: body }));
            talk.ask("GET", &format!("{plural}/{id}"), None).body.replace(&id, "ID")
        };
        let qos = told("qoss", "qos", json!({"qos_name": "", "qos_desc": ""}));
        let profile = told("portprofiles", "portprofile", json!({"portprofile_name": "", "qos_name": ""}));
        let credential = json!({"credential_name": "c", "user_name": "", "password": "p"});
        let credential = told("credentials", "credential", credential);
        let wanted = match talk.format {
            Format::Json => {
                [r#""name": null, "description": "None""#, r#""name": null, "qos_name": null"#, r#""name": null"#]
            }
            Format::Xml => [
                r#"name="None"><description>None</description>"#,
                "<name>None</name><qos_name>None</qos_name>",
                r#"name="None""#,
            ],
        };
        for (told, wanted) in std::iter::zip([qos, profile, credential], wanted) {
            assert!(told.contains(wanted), "{told}");
        }
    });
}

#[test]
fn a_password_is_sealed_in_the_store() {
    let scratch = Scratch::new();
    let plugin: Arc<dyn Plugin> = Arc::new(FakePlugin::new());
    let store = open_store(&scratch.store());
    let config = ExtensionsConfig {
        keeper: Some(Keeper::Store(store.clone())),
        key: Some(key(&scratch)),
        ..ExtensionsConfig::default()
    };
    let extensions = Arc::new(Extensions::new(&*plugin, config).unwrap());
    let server = Server::over(plugin, ServerConfig { extensions, ..ServerConfig::default() }, Scratch::new());
    let talk = Talk { server: &server, version: Version::V1_1, format: Format::Json };
    let body = json!({"credential": {"credential_name": "c", "user_name": "u", "password": "s3cret"}});
    let id = talk.make("credentials", &body);
    let kept = String::from_utf8(store.extras("credential").unwrap()[&id].clone()).unwrap();
    assert!(!kept.contains("s3cret"), "{kept}");
    let sealed = serde_json::from_str::<Value>(&kept).unwrap()["sealed"].as_str().unwrap().to_owned();
    let key = key(&scratch);
    assert_eq!(key.unseal(&format!("credential/{id}"), &sealed).unwrap(), b"s3cret");
    assert!(key.unseal("credential/other", &sealed).is_err());
}

fn ask_as(
    caller: &Caller,
    (plugin, extensions): (&FakePlugin, &Extensions),
    method: &str,
    path: &str,
    body: &str,
) -> (u16, String) {
    let request = Request {
        version: api::v1::Version::V1_1,
        dialect: Dialect::Plain,
        method: method.into(),
        path: format!("/extensions/csco/tenants/red/{path}"),
        query: Vec::new(),
        content_type: Some("application/json".into()),
        accept: Some("application/json".into()),
        body: body.into(),
    };
    let (reply, _) = answer(plugin, extensions, caller, &request);
    (reply.status.as_u16(), String::from_utf8(reply.body).unwrap())
}

fn caller(policy: &Arc<Policy>, project: &str, role: &str) -> Caller {
    let identity =
        Identity { user: "u".into(), project: Some(project.into()), roles: vec![role.into()], is_confined: false };
    Caller::Known { identity: Arc::new(identity), policy: policy.clone() }
}

#[test]
fn nova_is_not_told_the_profile_of_a_port_by_one_who_may_not_see_profiles() {
    let plugin = FakePlugin::new();
    let extensions = Extensions::new(&plugin, ExtensionsConfig::default()).unwrap();
    let policy = Arc::new(Policy::parse("get_profile = [\"admin\"]").unwrap());
    let [member, admin] = ["member", "admin"].map(|role| caller(&policy, "red", role));
    let ask = |caller: &Caller, method: &str, path: &str, body: &str| {
        ask_as(caller, (&plugin, &extensions), method, path, body)
    };
    let network = plugin.create_network("red", Some("n".into())).unwrap();
    let port = plugin.create_port("red", &network, "ACTIVE").unwrap();
    plugin.plug_interface("red", &network, &port, "vif").unwrap();
    let (_, made) =
        ask(&admin, "POST", "portprofiles", r#"{"portprofile": {"portprofile_name": "secret", "qos_name": "q"}}"#);
    let place = json!({"portprofile": {"network-id": network, "port-id": port}}).to_string();
    let associate = format!("portprofiles/{}/associate_portprofile", id_in(&made));
    assert_eq!(ask(&admin, "PUT", &associate, &place).0, 200);
    let body = r#"{"novatenant": {"instance_id": "i", "instance_desc": {"vif_id": "vif"}}}"#;
    let told = [&admin, &member].map(|caller| ask(caller, "PUT", "novatenants/1/associate_port", body));
    assert!(told[0].1.contains("secret"), "{told:?}");
    assert!(told[1].0 == 200 && !told[1].1.contains("secret"), "{told:?}");
}

#[test]
fn policy_says_who_sees_and_who_changes_what_extensions_keep() {
    let scratch = Scratch::new();
    let plugin = FakePlugin::new();
    let config = ExtensionsConfig { key: Some(key(&scratch)), ..ExtensionsConfig::default() };
    let extensions = Extensions::new(&plugin, config).unwrap();
    let ask = |caller: &Caller, method: &str, path: &str, body: &str| {
        ask_as(caller, (&plugin, &extensions), method, path, body)
    };
    let policy = Arc::new(Policy::parse("get_profile = [\"member\", \"reader\"]").unwrap());
    let caller = |project: &str, role: &str| caller(&policy, project, role);
    let (member, reader, guest) = (caller("red", "member"), caller("red", "reader"), caller("red", "guest"));
    for (kind, body, code) in [
        ("qoss", r#"{"qos": {"qos_name": "n", "qos_desc": "d"}}"#, 452),
        ("portprofiles", r#"{"portprofile": {"portprofile_name": "n", "qos_name": "q"}}"#, 450),
    ] {
        assert_eq!(ask(&reader, "POST", kind, body).0, 403);
        let (status, made) = ask(&member, "POST", kind, body);
        assert_eq!(status, 200);
        let one = format!("{kind}/{}", id_in(&made));
        assert_eq!(ask(&reader, "GET", &one, "").0, 200);
        assert_eq!((ask(&reader, "DELETE", &one, "").0, ask(&reader, "PUT", &one, body).0), (403, 403));
        assert_eq!(ask(&guest, "GET", kind, "").1, format!(r#"{{"{kind}": []}}"#));
        let hidden =
            [("GET", ""), ("PUT", body), ("DELETE", "")].map(|(method, body)| ask(&guest, method, &one, body).0);
        assert_eq!(hidden, [code; 3], "what one may not see is not there");
        assert_eq!(ask(&caller("blue", "member"), "DELETE", &one, "").0, code);
        assert_eq!(ask(&member, "DELETE", &one, "").0, 200);
    }
    let body = r#"{"credential": {"credential_name": "c", "user_name": "u", "password": "p"}}"#;
    assert_eq!(ask(&member, "POST", "credentials", body).0, 403);
    assert_eq!(ask(&caller("red", "admin"), "POST", "credentials", body).0, 200);
    assert_eq!(ask(&member, "GET", "credentials", "").1, r#"{"credentials": []}"#);
}

#[test]
fn port_profiles_are_told_with_the_ports_that_are_there() {
    everywhere(|talk| {
        let body = |name: &str| json!({"portprofile": {"portprofile_name": name, "qos_name": "q"}});
        let network = talk.server.make("/v1.1/tenants/red/networks", r#"{"network": {"name": "n"}}"#);
        let ports = format!("/v1.1/tenants/red/networks/{network}/ports");
        let port = talk.server.make(&ports, r#"{"port": {}}"#);
        let id = talk.make("portprofiles", &body("one"));
        let member = format!("portprofiles/{id}");
        let shown = |name: &str, assigned: &[&str]| {
            let answer = talk.ask("GET", &member, None);
            if talk.is_json() {
                let full = json!({"id": id, "name": name, "qos_name": "q", "assignment": assigned});
                assert_eq!(answer.json(), json!({"portprofiles": {"portprofile": full}}));
            } else {
                let items: String = assigned.iter().map(|port| format!("<item>{port}</item>")).collect();
                let assignment =
                    if items.is_empty() { "<assignment/>".into() } else { format!("<assignment>{items}</assignment>") };
                let full = format!("<id>{id}</id><name>{name}</name><qos_name>q</qos_name>{assignment}");
                let wanted = format!("<portprofiles><portprofile>{full}</portprofile></portprofiles>");
                assert_eq!(answer.body, wanted);
            }
        };
        shown("one", &[]);
        assert_eq!(talk.ask("PUT", &member, Some(&body("two"))).status, 200);
        shown("two", &[]);
        let place = |port: &str| json!({"portprofile": {"network-id": network, "port-id": format!(" {port} ")}});
        let associate = format!("{member}/associate_portprofile");
        let nowhere = talk.ask("PUT", &associate, Some(&place("none")));
        talk.expect_fault(&nowhere, 430, "quantumServiceFault", NO_PORT);
        talk.expect_done(&talk.ask("PUT", &associate, Some(&place(&port))));
        talk.expect_done(&talk.ask("PUT", &associate, Some(&place(&port))));
        shown("two", &[&port]);
        assert_eq!(talk.ask("DELETE", &member, None).status, 421, "it is in use");
        talk.expect_done(&talk.ask("PUT", &format!("{member}/disassociate_portprofile"), Some(&place(&port))));
        shown("two", &[]);
        talk.expect_done(&talk.ask("PUT", &associate, Some(&place(&port))));
        assert_eq!(talk.server.ask("DELETE", &format!("{ports}/{port}"), None).status, 204);
        shown("two", &[]);
        let foreign = talk.ask_of("blue", "PUT", &associate, Some(&place(&port)));
        talk.expect_fault(&foreign, 450, "PortprofileNotFound", NO_PROFILE);
        assert!(!talk.ask_of("blue", "GET", "portprofiles", None).body.contains(&id), "others' are not listed");
        talk.expect_done(&talk.ask("DELETE", &member, None));
        talk.expect_fault(&talk.ask("GET", &member, None), 450, "PortprofileNotFound", NO_PROFILE);
    });
}

#[test]
fn a_body_needs_its_content_type_and_all_that_is_required() {
    everywhere(|talk| {
        for body in [
            json!({"portprofile": {"portprofile_name": "x"}}),
            json!({"profile": {"portprofile_name": "x", "qos_name": "q"}}),
            json!({"portprofile": {"portprofile_name": {"a": {"b": "c"}}, "qos_name": "q"}}),
        ] {
            talk.expect_fault(&talk.ask("POST", "portprofiles", Some(&body)), 400, "malformedRequest", MALFORMED);
        }
        let path = format!("{}/extensions/csco/tenants/red/qoss.json", talk.version.prefix());
        let body = r#"{"qos": {"qos_name": "n", "qos_desc": "d"}}"#;
        let untyped = talk.server.ask_with("POST", &path, &["Accept: application/json"], Some(body));
        assert_eq!(untyped.status, 400, "{untyped:?}");
        let typed = ["Accept: application/json", "Content-Type: application/json; charset=UTF-8"];
        assert_eq!(talk.server.ask_with("POST", &path, &typed, Some(body)).status, 200);
    });
}

#[test]
fn nova_tenants_tell_host_and_device_and_several_ports_are_all_made_or_none() {
    everywhere(|talk| {
        let nova = |path: &str, desc: Value| {
            let body = json!({"novatenant": {"instance_id": "i", "instance_desc": desc}});
            talk.ask("PUT", &format!("novatenants/001/{path}"), Some(&body))
        };
        for (method, path) in [("GET", "novatenants/1"), ("POST", "novatenants"), ("DELETE", "novatenants/1")] {
            assert_eq!(talk.ask(method, path, None).body, "novatenant is a dummy resource", "{method} {path}");
        }
        assert_eq!(talk.ask("POST", "novatenants/1", None).status, 404, "what is new is posted to all");
        let host = nova("schedule_host", json!({"vif_id": "v"}));
        let detached = nova("detach_port", json!({"vif_id": "v"}));
        if talk.is_json() {
            assert_eq!(host.json(), json!({"host_list": {"host_1": "hyper1"}}));
            assert_eq!(detached.json(), json!({"result": true}));
        } else {
            assert_eq!(host.body, "<host_list><host_1>hyper1</host_1></host_list>");
            assert_eq!(detached.body, "<result>True</result>");
        }
        let networks = ["a", "b"].map(|name| {
            talk.server.make("/v1.1/tenants/red/networks", &json!({"network": {"name": name}}).to_string())
        });
        let multiport = |ids: Value, state: &str| {
            let body = json!({"multiport": {"net_id_list": ids, "status": state, "ports_desc": {"key": "value"}}});
            talk.ask("POST", "multiport", Some(&body))
        };
        let ids = if talk.is_json() { json!(networks) } else { json!(networks.join(", ")) };
        let made = multiport(ids.clone(), "ACTIVE");
        assert_eq!(made.status, 200, "{made:?}");
        let port_count = |network: &str| {
            let list = talk.server.ask("GET", &format!("/v1.1/tenants/red/networks/{network}/ports"), None).json();
            list["ports"].as_array().unwrap().len()
        };
        assert_eq!((port_count(&networks[0]), port_count(&networks[1])), (1, 1));
        let (not_found, invalid) = if talk.version == Version::V1_0 { (420, 431) } else { (404, 400) };
        let mixed = if talk.is_json() { json!([networks[0], "none"]) } else { json!(format!("{} none", networks[0])) };
        assert_eq!(multiport(mixed, "ACTIVE").status, not_found);
        let many = vec![networks[0].as_str(); 65];
        let many = if talk.is_json() { json!(many) } else { json!(many.join(" ")) };
        assert_eq!(multiport(many, "ACTIVE").status, 400, "a change has its bound");
        assert_eq!(multiport(ids, "BAD").status, invalid);
        assert_eq!((port_count(&networks[0]), port_count(&networks[1])), (1, 1));
        assert_eq!(multiport(json!(networks[1]), "").status, 200, "no state is DOWN");
        assert_eq!((port_count(&networks[0]), port_count(&networks[1])), (1, 2));

        let ports = format!("/v1.1/tenants/red/networks/{}/ports", networks[0]);
        let port = talk.server.ask("GET", &ports, None).json()["ports"][0]["id"].as_str().unwrap().to_owned();
        let vif = format!("vif-of-{}-{}", &talk.version.prefix()[1..], talk.format.name());
        let plug = json!({"attachment": {"id": vif}}).to_string();
        assert_eq!(talk.server.ask("PUT", &format!("{ports}/{port}/attachment"), Some(&plug)).status, 204);
        let profile = talk.make("portprofiles", &json!({"portprofile": {"portprofile_name": "p", "qos_name": "q"}}));
        let place = json!({"portprofile": {"network-id": networks[0], "port-id": port}});
        let associate = format!("portprofiles/{profile}/associate_portprofile");
        talk.expect_done(&talk.ask("PUT", &associate, Some(&place)));
        let vif_desc = nova("associate_port", json!({"vif_id": vif}));
        let device = format!("tap{}", &vif[..11]);
        if talk.is_json() {
            assert_eq!(vif_desc.json(), json!({"vif_desc": {"device": device, "portprofile": "p"}}));
        } else {
            let wanted = format!("<vif_desc><device>{device}</device><portprofile>p</portprofile></vif_desc>");
            assert_eq!(vif_desc.body, wanted);
        }
        talk.expect_fault(&nova("associate_port", json!({"vif_id": "no"})), 430, "quantumServiceFault", NO_PORT);
        let attachment = format!("{ports}/{port}/attachment");
        for (vif, device) in [("gw-12345678901234", "tapgw-12345678"), ("gw-1234", "gw-1234"), ("not safe", "")] {
            assert_eq!(talk.server.ask("DELETE", &attachment, None).status, 204);
            let plug = json!({"attachment": {"id": vif}}).to_string();
            assert_eq!(talk.server.ask("PUT", &attachment, Some(&plug)).status, 204);
            let told = nova("associate_port", json!({"vif_id": vif})).body;
            let wanted =
                if talk.is_json() { format!(r#""device": "{device}""#) } else { format!("<device>{device}</") };
            assert!(told.contains(&wanted) || device.is_empty() && told.contains("<device/>"), "{vif}: {told}");
        }
        assert_eq!(talk.server.ask("DELETE", &attachment, None).status, 204);
    });
}

#[test]
fn ports_that_were_made_before_one_failed_go_again() {
    let plugin = Arc::new(Shaky::new());
    let networks = ["a", "b"].map(|name| plugin.create_network("red", Some(name.into())).unwrap());
    let extensions = Arc::new(Extensions::new(&*plugin, ExtensionsConfig::default()).unwrap());
    let config = ServerConfig { extensions, ..ServerConfig::default() };
    let server = Server::over(plugin.clone(), config, Scratch::new());
    let talk = Talk { server: &server, version: Version::V1_1, format: Format::Json };
    let body = json!({"multiport": {"net_id_list": networks, "status": "ACTIVE", "ports_desc": {"key": "value"}}});
    plugin.fail_second_write();
    assert_eq!(talk.ask("POST", "multiport", Some(&body)).status, 503);
    for network in networks {
        assert_eq!(plugin.get_all_ports("red", &network, &PortFilter::default()), Ok(Vec::new()));
    }
}

#[test]
fn what_extensions_keep_is_there_after_a_restart() {
    let scratch = Scratch::new();
    let path = scratch.store();
    let begin = || {
        let store = open_store(&path);
        let plugin: Arc<dyn Plugin> = Arc::new(FakePlugin::new());
        let config = ExtensionsConfig { keeper: Some(Keeper::Store(store)), ..ExtensionsConfig::default() };
        let extensions = Arc::new(Extensions::new(&*plugin, config).unwrap());
        Server::over(plugin, ServerConfig { extensions, ..ServerConfig::default() }, Scratch::new())
    };
    let server = begin();
    let talk = Talk { server: &server, version: Version::V1_1, format: Format::Json };
    let ids = ["a", "b", "c"].map(|name| talk.make("qoss", &json!({"qos": {"qos_name": name, "qos_desc": "d"}})));
    talk.expect_done(&talk.ask("DELETE", &format!("qoss/{}", ids[1]), None));
    drop(server);
    let server = begin();
    let talk = Talk { server: &server, version: Version::V1_1, format: Format::Json };
    assert_eq!(talk.ask("GET", "qoss", None).json(), json!({"qoss": [{"id": ids[0]}, {"id": ids[2]}]}));
    assert_eq!(talk.ask("GET", &format!("qoss/{}", ids[2]), None).json()["qoss"]["qos"]["name"], "c");
}

#[test]
fn what_is_no_text_is_refused_and_in_the_originals_dialect_kept_as_its_database_did() {
    for (dialect, told) in [(Dialect::Plain, None), (Dialect::StrictEssex, Some(["5", "1"]))] {
        let plugin: Arc<dyn Plugin> = Arc::new(FakePlugin::new());
        let config = ExtensionsConfig::default();
        let extensions = Arc::new(Extensions::new(&*plugin, config).unwrap());
        let server =
            Server::over(plugin, ServerConfig { dialect, extensions, ..ServerConfig::default() }, Scratch::new());
        let talk = Talk { server: &server, version: Version::V1_1, format: Format::Json };
        for (at, name) in [json!(5), json!(true)].into_iter().enumerate() {
            let made = talk.ask("POST", "qoss", Some(&json!({"qos": {"qos_name": name, "qos_desc": "d"}})));
            let Some(told) = told else {
                assert_eq!(made.status, 400, "{made:?}");
                continue;
            };
            let id = made.json()["qoss"]["qos"]["id"].as_str().unwrap().to_owned();
            let shown = talk.ask("GET", &format!("qoss/{id}"), None).json();
            assert_eq!(shown["qoss"]["qos"]["name"], told[at]);
        }
    }
}

#[test]
fn an_empty_new_name_leaves_the_old_one() {
    everywhere(|talk| {
        for (plural, singular, key, rest, told) in [
            ("qoss", "qos", "qos_name", json!({"qos_desc": "d"}), "first"),
            ("portprofiles", "portprofile", "portprofile_name", json!({"qos_name": "q"}), "first"),
            // Of a credential the user's name is told until it gets another.
            ("credentials", "credential", "credential_name", json!({"user_name": "u", "password": "p"}), "u"),
        ] {
            let body = |name: &str| {
                let mut body = rest.clone();
                body[key] = json!(name);
                body
            };
            let id = talk.make(plural, &json!({ singular: body("first") }));
            let member = format!("{plural}/{id}");
            for (new, told) in [("", told), ("second", "second"), ("", "second")] {
                assert_eq!(talk.ask("PUT", &member, Some(&json!({ singular: body(new) }))).status, 200);
                let shown = talk.ask("GET", &member, None);
                let name =
                    [format!("\"name\": \"{told}\""), format!("name=\"{told}\""), format!("<name>{told}</name>")];
                assert!(name.iter().any(|name| shown.body.contains(name)), "{plural} {new:?}: {}", shown.body);
            }
            talk.expect_done(&talk.ask("DELETE", &member, None));
        }
    });
}

#[test]
fn a_description_that_is_no_text_is_kept_as_the_text_that_the_original_made_of_it() {
    everywhere(|talk| {
        let wanted = if talk.is_json() { "{u'PPS': 50, u'TTL': 5}" } else { "{u'PPS': u'50', u'TTL': u'5'}" };
        let body = json!({"qos": {"qos_name": "n", "qos_desc": {"PPS": 50, "TTL": 5}}});
        let id = talk.make("qoss", &body);
        let shown = talk.ask("GET", &format!("qoss/{id}"), None);
        if talk.is_json() {
            assert_eq!(shown.json()["qoss"]["qos"]["description"], wanted);
        } else {
            assert!(shown.body.contains(&format!("<description>{wanted}</description>")), "{}", shown.body);
        }
    });
}

#[test]
fn in_the_originals_dialect_a_profile_is_associated_with_any_port_and_told_with_it() {
    let plugin: Arc<dyn Plugin> = Arc::new(FakePlugin::new());
    let extensions = Arc::new(Extensions::new(&*plugin, ExtensionsConfig::default()).unwrap());
    let config = ServerConfig { dialect: Dialect::StrictEssex, extensions, ..ServerConfig::default() };
    let server = Server::over(plugin, config, Scratch::new());
    let talk = Talk { server: &server, version: Version::V1_1, format: Format::Json };
    let id = talk.make("portprofiles", &json!({"portprofile": {"portprofile_name": "n", "qos_name": "q"}}));
    let member = format!("portprofiles/{id}");
    let assigned = || talk.ask("GET", &member, None).json()["portprofiles"]["portprofile"]["assignment"].clone();
    let place = json!({"portprofile": {"network-id": "nowhere", "port-id": "none"}});
    talk.expect_done(&talk.ask("PUT", &format!("{member}/associate_portprofile"), Some(&place)));
    assert_eq!(assigned(), json!(["none"]));
    // The port alone tells which is meant.
    let place = json!({"portprofile": {"network-id": "elsewhere", "port-id": "none"}});
    talk.expect_done(&talk.ask("PUT", &format!("{member}/associate_portprofile"), Some(&place)));
    assert_eq!(assigned(), json!(["none"]), "it is associated once");
    talk.expect_done(&talk.ask("PUT", &format!("{member}/disassociate_portprofile"), Some(&place)));
    assert_eq!(assigned(), json!([]));
}

#[test]
fn a_key_that_did_not_seal_what_is_kept_is_noticed() {
    let scratch = Scratch::new();
    let store = open_store(&scratch.store());
    let plugin: Arc<dyn Plugin> = Arc::new(FakePlugin::new());
    let first = scratch.store().with_file_name("first.key");
    let second = scratch.store().with_file_name("second.key");
    let extensions = |key: &std::path::Path| {
        let keeper = Some(Keeper::Store(store.clone()));
        let config = ExtensionsConfig { key: Some(SealKey::open(key).unwrap()), keeper, ..ExtensionsConfig::default() };
        Extensions::new(&*plugin, config).unwrap()
    };
    assert!(extensions(&second).opens_secrets(), "there is nothing to open yet");
    let served = extensions(&first);
    let body = r#"{"credential": {"credential_name": "c", "user_name": "u", "password": "p"}}"#;
    let (status, _) = ask_as(&Caller::Anyone, (&FakePlugin::new(), &served), "POST", "credentials", body);
    assert_eq!(status, 200);
    assert!(extensions(&first).opens_secrets());
    assert!(!extensions(&second).opens_secrets());
}
