//! Who may ask what, from outside: tokens, tenants, roles, and the record of what was asked.

use crate::rig::{Answer, Driver, Format, Scratch, Server};
use api::identity::{Denied, Identity, Mode, Verified, Verifier};
use api::peer::Peer;
use api::plugins::FakePlugin;
use api::policy::{LivePolicy, Policy};
use api::server::{Limits, ServerConfig};
use api::v1::{Dialect, Extensions, ExtensionsConfig};
use axum::http::HeaderValue;
use std::fmt::Write as _;
use std::io::Write as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tracing::field::{Field, Visit};
use tracing::span;

const NETWORKS: &str = "/v1.1/tenants/red-id/networks";
const NETWORK: &str = r#"{"network": {"name": "n"}}"#;

/// Tokens are `ROLE@PROJECT`; some words are none.
pub(crate) struct Scripted;

impl Verifier for Scripted {
    fn verify<'a>(&'a self, token: &'a str, _: Peer) -> Pin<Box<dyn Future<Output = Verified> + Send + 'a>> {
        Box::pin(async move {
            if token == "rain" {
                return Err(Denied::Unavailable { why: "it rains", retry_after_s: 7 });
            }
            let (role, project) = token.split_once('@').ok_or(Denied::Invalid)?;
            let project = Some(project).filter(|project| !project.is_empty()).map(Into::into);
            Ok(Arc::new(Identity {
                user: format!("{role}-user").into(),
                project,
                roles: vec![role.into()],
                is_confined: false,
            }))
        })
    }

    fn challenge(&self) -> HeaderValue {
        HeaderValue::from_static("Scripted realm=\"test\"")
    }
}

fn config(policy: &str) -> ServerConfig {
    let policy = Arc::new(LivePolicy::Fixed(Arc::new(Policy::parse(policy).unwrap())));
    let identity = Mode::Tokens { verifier: Arc::new(Scripted), policy };
    ServerConfig { identity, ..ServerConfig::default() }
}

fn server_under(policy: &str) -> Server {
    Server::over(Arc::new(FakePlugin::new()), config(policy), Scratch::new())
}

fn server() -> Server {
    server_under("")
}

/// A request with a token; `""`: without.
fn ask(server: &Server, token: &str, method: &str, path: &str, body: Option<&str>) -> Answer {
    let token = format!("X-Auth-Token: {token}");
    let headers = ["Accept: application/json", &token];
    server.ask_with(method, path, if token.ends_with(": ") { &headers[..1] } else { &headers }, body)
}

fn make(server: &Server, token: &str, path: &str, body: &str) -> String {
    let answer = ask(server, token, "POST", path, Some(body));
    assert_eq!(answer.status, 202, "{path}: {answer:?}");
    answer.json().as_object().unwrap().values().next().unwrap()["id"].as_str().unwrap().to_owned()
}

#[test]
fn without_a_valid_token_only_the_version_list_is_told() {
    let server = server();
    let paths = [NETWORKS, "/v1.1", "/v1.1/", "/v1.1/extensions", "/v1.1/tenants/red-id/nowhere", "/v1.1/x.xml"];
    for token in ["", "nonsense", "x@"] {
        for path in paths.iter().filter(|path| token != "x@" || path.contains("/tenants/")) {
            for (method, body) in [("GET", None), ("POST", Some(NETWORK)), ("DELETE", None), ("HEAD", None)] {
                let answer = ask(&server, token, method, path, body);
                // A token of no project is valid and opens no tenant.
                let wanted = if token == "x@" { 403 } else { 401 };
                assert_eq!(answer.status, wanted, "{token} {method} {path}");
                let challenge = answer.header("www-authenticate");
                assert_eq!(challenge, (wanted == 401).then_some("Scripted realm=\"test\""), "{method} {path}");
            }
        }
        assert_eq!(ask(&server, token, "GET", "/", None).status, 200);
        assert_eq!(ask(&server, token, "GET", "/nowhere", None).status, 404);
    }
    assert_eq!(ask(&server, "member@red-id", "GET", NETWORKS, None).body, r#"{"networks": []}"#);
}

#[test]
fn a_refusal_has_the_form_that_accept_asks_for_whatever_the_suffix() {
    let server = server();
    for suffix in ["", ".json", ".xml"] {
        for (token, code, title) in
            [("", "401 Unauthorized", "Unauthorized"), ("m@blue-id", "403 Forbidden", "Forbidden")]
        {
            let ask = |accept: &str| {
                let headers = [format!("Accept: {accept}"), format!("X-Auth-Token: {token}")];
                server.ask_with("GET", &format!("{NETWORKS}{suffix}"), &[&headers[0], &headers[1]], None)
            };
            let json = ask("application/json");
            assert_eq!(json.header("content-type"), Some("application/json"));
            assert_eq!((&json.json()["code"], &json.json()["title"]), (&code.into(), &title.into()));
            let page = ask("text/html");
            assert_eq!(page.header("content-type"), Some("text/html; charset=UTF-8"));
            assert!(page.body.contains(&format!("<h1>{code}</h1>")), "{page:?}");
            let text = ask("application/xml");
            assert_eq!(text.header("content-type"), Some("text/plain; charset=UTF-8"));
            assert!(text.body.starts_with(code), "{text:?}");
        }
    }
}

#[test]
fn tokens_that_cannot_be_checked_are_503_with_retry_after() {
    let answer = ask(&server(), "rain", "GET", NETWORKS, None);
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("7")));
    assert!(answer.body.contains("it rains") && answer.header("www-authenticate").is_none(), "{answer:?}");
}

#[test]
fn another_tenant_s_url_is_403_and_tells_nothing_of_what_is_there() {
    let server = server();
    let network = make(&server, "member@red-id", NETWORKS, NETWORK);
    let mut bodies = Vec::new();
    for path in [
        NETWORKS.to_owned(),
        format!("{NETWORKS}/{network}"),
        format!("{NETWORKS}/nowhere"),
        format!("{NETWORKS}/{network}/ports/nowhere/attachment"),
        "/v1.1/tenants/red-id/no/such/thing".to_owned(),
        "/v1.1//tenants/red-id/networks".to_owned(),
        "/v1.1/tenants/nobody/networks".to_owned(),
        "/v1.1/tenants/red%2Did/networks".to_owned(),
        "/v1.1/tenants//networks".to_owned(),
        "/v1.1/extensions/csco/tenants/red-id/qoss".to_owned(),
    ] {
        for (method, body) in [("GET", None), ("PUT", Some("nonsense")), ("DELETE", None), ("POST", Some(NETWORK))] {
            let answer = ask(&server, "member@blue-id", method, &path, body);
            assert_eq!(answer.status, 403, "{method} {path}");
            assert!(answer.header("www-authenticate").is_none());
            bodies.push(answer.body);
        }
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    assert_eq!(ask(&server, "member@red-id", "GET", &format!("{NETWORKS}/{network}"), None).status, 200);
}

#[test]
fn a_foreign_object_in_one_s_own_url_is_as_absent_as_one_that_never_was() {
    let server = server();
    let network = make(&server, "member@red-id", NETWORKS, NETWORK);
    let port = make(&server, "member@red-id", &format!("{NETWORKS}/{network}/ports"), r#"{"port": {}}"#);
    let own = "/v1.1/tenants/blue-id/networks";
    let never = "00000000-0000-4000-8000-000000000000";
    for role in ["member", "reader"] {
        for (method, rest, body) in [
            ("GET", "", None),
            ("PUT", "", Some(NETWORK)),
            ("DELETE", "", None),
            ("GET", "/ports", None),
            ("POST", "/ports", Some(r#"{"port": {}}"#)),
            ("PUT", "/ports/PORT", Some(r#"{"port": {"state": "DOWN"}}"#)),
            ("DELETE", "/ports/PORT", None),
            ("PUT", "/ports/PORT/attachment", Some(r#"{"attachment": {"id": "v"}}"#)),
            ("DELETE", "/ports/PORT/attachment", None),
        ] {
            let answer = |network: &str, port: &str| {
                let path = format!("{own}/{network}{}", rest.replace("PORT", port));
                let answer = ask(&server, &format!("{role}@blue-id"), method, &path, body);
                (answer.status, answer.body.replace(network, "NETWORK").replace(port, "PORT"))
            };
            let foreign = answer(&network, &port);
            assert_eq!(foreign.0, 404, "{role} {method} {rest}");
            assert!(foreign.1.contains("NetworkNotFound"), "{foreign:?}");
            assert_eq!(foreign, answer(never, never), "{role} {method} {rest}");
        }
    }
}

#[test]
fn admin_uses_every_tenant_s_urls_and_objects_stay_the_tenant_s() {
    let server = server();
    let network = make(&server, "Admin@ops", NETWORKS, NETWORK);
    let own = ask(&server, "member@red-id", "GET", &format!("{NETWORKS}/{network}"), None);
    assert_eq!(own.status, 200);
    let elsewhere = ask(&server, "admin@ops", "GET", &format!("/v1.1/tenants/ops/networks/{network}"), None);
    assert_eq!(elsewhere.status, 404);
}

#[test]
fn a_reader_reads_and_is_forbidden_to_write_what_it_sees() {
    let server = server();
    let network = make(&server, "member@red-id", NETWORKS, NETWORK);
    let item = format!("{NETWORKS}/{network}");
    let port = make(&server, "member@red-id", &format!("{item}/ports"), r#"{"port": {}}"#);
    let port = format!("{item}/ports/{port}");
    for path in [NETWORKS, &item, &format!("{item}/detail"), &port, &format!("{port}/attachment")] {
        assert_eq!(ask(&server, "reader@red-id", "GET", path, None).status, 200, "{path}");
    }
    for (method, path, body) in [
        ("POST", NETWORKS, Some(NETWORK)),
        ("PUT", &item, Some(NETWORK)),
        ("DELETE", &item, None),
        ("POST", &format!("{item}/ports"), Some(r#"{"port": {}}"#)),
        ("PUT", &port, Some(r#"{"port": {"state": "DOWN"}}"#)),
        ("DELETE", &port, None),
        ("PUT", &format!("{port}/attachment"), Some(r#"{"attachment": {"id": "v"}}"#)),
        ("DELETE", &format!("{port}/attachment"), None),
    ] {
        let answer = ask(&server, "reader@red-id", method, path, body);
        assert_eq!(answer.status, 403, "{method} {path}");
        assert_eq!(answer.json()["title"], "Forbidden");
    }
    assert_eq!(ask(&server, "member@red-id", "DELETE", &port, None).status, 204);
}

#[test]
fn what_the_policy_hides_does_not_exist() {
    let server = server_under("get_port = [\"member\"]\nget_network = [\"member\", \"viewer\"]\n");
    let network = make(&server, "member@red-id", NETWORKS, NETWORK);
    let item = format!("{NETWORKS}/{network}");
    let port = make(&server, "member@red-id", &format!("{item}/ports"), r#"{"port": {}}"#);
    let viewer = |method, path: &str| ask(&server, "viewer@red-id", method, path, None);
    assert_eq!(viewer("GET", &format!("{item}/detail")).json()["network"]["ports"], serde_json::json!([]));
    assert_eq!(viewer("GET", &format!("{item}/ports")).body, r#"{"ports": []}"#);
    assert_eq!(viewer("GET", &format!("{NETWORKS}?port={port}")).body, r#"{"networks": []}"#);
    for (method, path) in [("GET", format!("{item}/ports/{port}")), ("DELETE", format!("{item}/ports/{port}"))] {
        let answer = viewer(method, &path);
        assert_eq!((answer.status, &answer.json()["QuantumError"]["type"]), (404, &"PortNotFound".into()), "{method}");
    }
    assert_eq!(ask(&server, "guest@red-id", "GET", NETWORKS, None).body, r#"{"networks": []}"#);
    assert_eq!(ask(&server, "guest@red-id", "GET", &item, None).status, 404);
    assert_eq!(ask(&server, "guest@red-id", "DELETE", &item, None).status, 404);
}

#[test]
fn a_stranger_is_answered_before_the_body_came() {
    let server = server();
    let mut stream = server.connect();
    let head = format!("POST {NETWORKS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut start = [0; 12];
    std::io::Read::read_exact(&mut stream, &mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 401");
}

#[test]
fn with_identity_any_valid_host_may_be_called_and_without_only_ours() {
    let hosts = ["Host: cloud.example:9696", "Origin: http://evil.example", "X-Auth-Token: member@red-id"];
    assert_eq!(server().ask_with("GET", NETWORKS, &hosts, None).status, 200);
    assert_eq!(server().ask_with("GET", NETWORKS, &["Host: a b", hosts[2]], None).status, 400);
    assert_eq!(Server::start(Driver::Fake).ask_with("GET", NETWORKS, &hosts, None).status, 403);
}

/// Events of the target `audit`, as text, from all servers of this process.
#[derive(Clone, Default)]
pub(crate) struct Audits(Arc<Mutex<Vec<String>>>);

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0, "{}={value:?} ", field.name()).unwrap();
    }
}

impl tracing::Subscriber for Audits {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == api::audit::TARGET
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        self.0.lock().unwrap().push(fields.0);
    }
}

/// What was written down of requests whose path has this word.
pub(crate) fn audits(word: &str) -> Vec<String> {
    let audits = audit_log().0.lock().unwrap();
    audits.iter().filter(|line| line.contains(word)).cloned().collect()
}

pub(crate) fn audit_log() -> &'static Audits {
    static AUDITS: OnceLock<Audits> = OnceLock::new();
    AUDITS.get_or_init(|| {
        let audits = Audits::default();
        tracing::subscriber::set_global_default(audits.clone()).unwrap();
        audits
    })
}

#[test]
fn every_write_is_told_with_who_what_and_result_and_reads_are_not() {
    audit_log();
    let server = server();
    let path = "/v1.1/tenants/audited/networks";
    ask(&server, "member@audited", "GET", path, None);
    ask(&server, "secret-token", "GET", path, None);
    assert_eq!(audits("audited"), Vec::<String>::new());
    ask(&server, "member@audited", "POST", path, Some(NETWORK));
    ask(&server, "reader@audited", "POST", path, Some(NETWORK));
    ask(&server, "member@blue-id", "DELETE", &format!("{path}/x%0Ay"), None);
    ask(&server, "secret-token", "POST", path, Some(NETWORK));
    let lines = audits("audited");
    let wanted: [&[&str]; 4] = [
        &["\"member-user\"", "project=\"audited\"", "POST", "status=202", "\"done\""],
        &["\"reader-user\"", "POST", "status=403", "\"refused\""],
        &["\"member-user\"", "project=\"blue-id\"", "DELETE", "status=403"],
        &["\"unknown\"", "status=401", "peer=127.0.0.1:"],
    ];
    assert_eq!(lines.len(), wanted.len(), "{lines:#?}");
    for (line, words) in lines.iter().zip(wanted) {
        assert!(words.iter().all(|word| line.contains(word)), "{line} lacks some of {words:?}");
        assert!(!line.contains("secret-token") && !line.contains('\n'), "{line}");
    }
    Server::start(Driver::Fake).ask("DELETE", "/v1.1/tenants/anyones-audit/networks/x", None);
    assert!(audits("anyones-audit")[0].contains("\"anyone\""));
}

#[test]
fn a_write_is_told_with_the_ids_of_what_it_made_and_of_what_was_to_be_plugged() {
    audit_log();
    let extensions = Arc::new(Extensions::new(&FakePlugin::new(), ExtensionsConfig::default()).unwrap());
    let server = Server::with(Driver::Fake, ServerConfig { extensions, ..ServerConfig::default() });
    let networks = "/v1.1/tenants/with-ids/networks";
    let network = server.make(networks, NETWORK);
    let ports: Vec<_> =
        (0..2).map(|_| server.make(&format!("{networks}/{network}/ports"), r#"{"port": {}}"#)).collect();
    let plug = |port: &String| {
        let path = format!("{networks}/{network}/ports/{port}/attachment");
        server.ask("PUT", &path, Some(r#"{"attachment": {"id": "vif\n1"}}"#)).status
    };
    assert_eq!((plug(&ports[0]), plug(&ports[1])), (204, 409));
    let csco = "/v1.1/extensions/csco/tenants/with-ids";
    let ask = |method: &str, path: &str, body: &str| {
        let answer = server.ask_in(Format::Json, method, &format!("{csco}/{path}"), Some(body));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer
    };
    let body =
        serde_json::json!({"multiport": {"net_id_list": [network], "status": "ACTIVE", "ports_desc": {}}}).to_string();
    let multi = ask("POST", "multiport", &body).json()["ports"][0]["id"].as_str().unwrap().to_owned();
    let body = r#"{"portprofile": {"portprofile_name": "p", "qos_name": "q"}}"#;
    let profile =
        ask("POST", "portprofiles", body).json()["portprofiles"]["portprofile"]["id"].as_str().unwrap().to_owned();
    let body = format!(r#"{{"portprofile": {{"network-id": "{network}", "port-id": "{}"}}}}"#, ports[1]);
    ask("PUT", &format!("portprofiles/{profile}/associate_portprofile"), &body);
    let lines = audits("with-ids");
    let made = |id: &str| format!("made=\"{id}\"");
    let plugged = r#"attachment="vif\n1""#.to_owned();
    let wanted = [
        made(&network),
        made(&ports[0]),
        made(&ports[1]),
        plugged.clone(),
        plugged,
        made(&multi),
        made(&profile),
        format!("attachment=\"{}\"", ports[1]),
    ];
    assert_eq!(lines.len(), wanted.len(), "{lines:#?}");
    for (line, wanted) in lines.iter().zip(&wanted) {
        assert!(line.contains(wanted), "{line} lacks {wanted}");
    }
}

#[test]
fn writes_that_fail_because_tokens_cannot_be_checked_are_told_apart_from_strangers() {
    audit_log();
    let limits = Limits { stranger_lines: 3, ..Limits::default() };
    let mut server = Server::with(Driver::Fake, ServerConfig { limits, ..config("") });
    let path = "/v1.1/tenants/unverified/networks";
    for _ in 0..5 {
        assert_eq!(ask(&server, "no-token", "POST", path, Some(NETWORK)).status, 401);
        assert_eq!(ask(&server, "rain", "POST", path, Some(NETWORK)).status, 503);
    }
    server.join();
    let lines = audits("unverified");
    let of = |words: [&str; 2]| lines.iter().filter(|line| words.iter().all(|word| line.contains(word))).count();
    assert_eq!((of(["\"unknown\"", "\"refused\""]), of(["\"unverified\"", "\"failed\""])), (3, 3 + 1), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains("2 more failed from 127.0.0.1")), "{lines:#?}");
}

#[test]
fn what_is_asked_for_beside_the_versions_writes_nothing_and_is_not_told() {
    audit_log();
    let server = server();
    for (path, status) in [
        ("/.beside-the-versions", 200),
        ("/beside-the-versions", 404),
        ("/v2.0/beside-the-versions", 404),
        ("/v1.10/tenants/beside-the-versions/networks", 404),
    ] {
        for token in ["", "member@red-id"] {
            assert_eq!(ask(&server, token, "POST", path, Some(NETWORK)).status, status, "{path}");
        }
    }
    assert_eq!(audits("beside-the-versions"), Vec::<String>::new());
    assert_eq!(ask(&server, "", "POST", "/v1.1/beside-the-versions", None).status, 401);
    assert!(audits("beside-the-versions")[0].contains("\"unknown\""));
}

#[test]
fn an_object_is_told_by_one_text_however_its_path_is_written() {
    audit_log();
    let server = server();
    let path = "/v1.1/tenants/one-text/networks";
    let network = make(&server, "member@one-text", path, NETWORK);
    let slashes = "/".repeat(600);
    let encoded: String = network.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let spelling = format!("{slashes}v1.1/tenants{slashes}one-text/networks{}{encoded}", "%2F".repeat(600));
    assert_eq!(ask(&server, "member@one-text", "PUT", &spelling, Some(NETWORK)).status, 204);
    let long = format!("{path}/{network}.{}", "a".repeat(5000));
    assert_eq!(ask(&server, "member@one-text", "DELETE", &long, None).status, 204);
    let lines = audits("one-text");
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines[1].contains(&format!("path=\"{path}/{network}\"")), "{lines:#?}");
    assert!(lines[2].contains(&format!("path=\"{path}/{network}.")) && lines[2].contains("path_cut"), "{lines:#?}");
}

#[test]
fn strangers_get_some_lines_and_then_their_number() {
    audit_log();
    let limits = Limits { stranger_lines: 3, stranger_time: Duration::from_secs(60), ..Limits::default() };
    let mut server = Server::with(Driver::Fake, ServerConfig { limits, ..config("") });
    let path = "/v1.1/tenants/flooded/networks";
    for _ in 0..20 {
        assert_eq!(ask(&server, "secret-token", "POST", path, Some(NETWORK)).status, 401);
    }
    ask(&server, "member@flooded", "POST", path, Some(NETWORK));
    let long = format!("{}X", "A".repeat(5000));
    ask(&server, "member@flooded", &long, &format!("{path}/{}", "x".repeat(5000)), None);
    // What is not summed up by now is at the end.
    server.join();
    let lines = audits("flooded");
    assert_eq!(lines.len(), 3 + 2, "{lines:#?}");
    assert!(lines[..3].iter().all(|line| line.contains("\"unknown\"")), "{lines:#?}");
    assert!(lines[3].contains("\"member-user\"") && lines[4].len() < 2500, "{lines:#?}");
    let sums: u32 = audits("more refused from 127.0.0.1 in ")
        .iter()
        .filter_map(|line| line.split("message=").nth(1)?.split(' ').next()?.parse::<u32>().ok())
        .sum();
    assert!(sums >= 17, "{sums}");
}

#[test]
fn in_the_original_dialect_a_write_is_told_as_what_it_was_treated_as() {
    audit_log();
    let server = Server::with(Driver::Fake, ServerConfig { dialect: Dialect::StrictEssex, ..ServerConfig::default() });
    let path = "/v1.1/tenants/overridden/networks";
    let network = server.make(path, NETWORK);
    assert_eq!(server.ask("GET", &format!("{path}/{network}?_method=DELETE"), None).status, 204);
    assert_eq!(server.ask("POST", &format!("{path}?_method=GET"), None).status, 200);
    let lines = audits("overridden");
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(lines[0].contains("method=POST") && lines[0].contains("status=202"), "{lines:#?}");
    assert!(lines[1].contains("method=DELETE") && lines[1].contains("status=204"), "{lines:#?}");
}
