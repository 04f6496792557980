//! What `api.strict_essex` changes, and that it changes nothing else: each request of many is put to two servers that
//! differ in it alone. Where the answers differ, or what is there afterwards, one of the rules in `DEVIATIONS.md` must say
//! so by the request, and each of its rules must have shown.

use crate::rig::{Answer, DRIVERS, Driver, Server, Version};
use api::plugins::FakePlugin;
use api::server::ServerConfig;
use api::v1::{Dialect, Extensions, ExtensionsConfig};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;

const RULES: &str = include_str!("../../DEVIATIONS.md");
const VERSION_LIST: &str = "Version list";
const METHOD: &str = "`_method` in a query or a form";
const EXTENSIONS: &str = "Extensions in the list";
const ONE_EXTENSION: &str = "One extension in XML";
const NOT_TEXT: &str = "Name, state, attachment id or attribute of an extension that is a number or a boolean";
const ON_UPDATE: &str = "Unknown attributes on update (`op_status`, `uuid`, `tenant_id`, …)";
const STRANGER: &str = "Update of a network by another tenant (sample plugin)";
const BAD_REQUEST: &str = "v1.0's 400 in XML";

/// A request; `$n` and `$p` are a network and its port, which has an attachment.
#[derive(Clone, Debug)]
struct Probe {
    method: &'static str,
    path: String,
    body: Option<&'static str>,
}

const PATHS: &[&str] = &[
    "/tenants/red/networks",
    "/tenants/red/networks/detail",
    "/tenants/red/networks/$n",
    "/tenants/blue/networks/$n",
    "/tenants/red/networks/$n/detail",
    "/tenants/red/networks/$n/ports",
    "/tenants/red/networks/$n/ports/$p",
    "/tenants/red/networks/$n/ports/$p/detail",
    "/tenants/red/networks/$n/ports/$p/attachment",
    "/tenants/blue/networks/$n/ports/$p/attachment",
    "/tenants/red/networks/none/ports/$p",
    "/tenants/red/networks/new",
    "/tenants/red/networks/a.b.json",
    "//tenants//red/networks",
    "/tenants/red/networks?name=n&x=y",
    "/tenants/red/networks/$n?_method=DELETE",
    "/tenants/red/networks/$n/ports?has-attachment=true;_method=GET",
    "/extensions",
    "/extensions/portstats",
    "/extensions/none",
    "",
    "/",
];

const BODIES: &[Option<&str>] = &[
    None,
    Some("{}"),
    Some("null"),
    Some("%%%"),
    Some(r#"{"network": {"name": "m"}}"#),
    Some(r#"{"network": {"name": ""}}"#),
    Some(r#"{"network": {"name": null}}"#),
    Some(r#"{"network": {"name": 12}}"#),
    Some(r#"{"network": {"name": ["a"]}}"#),
    Some(r#"{"network": {"name": "m"}, "tenant_id": "x"}"#),
    Some(r#"{"network": {"name": "m", "color": "red"}}"#),
    Some(r#"{"network": {"name": "m", "op_status": "DOWN", "tenant_id": "x"}}"#),
    Some(r#"{"port": {}}"#),
    Some(r#"{"port": {"state": "DOWN"}}"#),
    Some(r#"{"port": {"state": "down"}}"#),
    Some(r#"{"port": {"state": true}}"#),
    Some(r#"{"port": {"state": "DOWN", "interface_id": "other"}}"#),
    Some(r#"{"attachment": {"id": "vif"}}"#),
    Some(r#"{"attachment": {"id": ""}}"#),
    Some(r#"{"attachment": {"id": 7, "x": "y"}}"#),
    Some("<network name='m'/>"),
    Some("<network><name>m</name><op_status>DOWN</op_status></network>"),
    Some("<port state='DOWN'/>"),
    Some("<port><state><a/></state></port>"),
    Some("<attachment id='vif'/>"),
];

/// Two servers that differ in the dialect alone, with one network each.
struct Pair {
    servers: [Server; 2],
    ids: [[String; 2]; 2],
}

impl Pair {
    fn start(driver: Driver) -> Pair {
        let servers = [Dialect::Plain, Dialect::StrictEssex].map(|dialect| {
            let extensions = Extensions::new(&FakePlugin::new(), ExtensionsConfig::default()).unwrap();
            Server::with(driver, ServerConfig { dialect, extensions: Arc::new(extensions), ..ServerConfig::default() })
        });
        let mut pair = Pair { servers, ids: Default::default() };
        pair.ids = pair.servers.each_ref().map(furnish);
        pair
    }

    /// What both answer, and what is there afterwards, with the ids that were known before as `$n` and `$p`.
    fn ask(&mut self, version: Version, format: &str, probe: &Probe) -> [(Answer, String); 2] {
        let media_type = format!("application/{format}");
        let mut is_changed = false;
        let told = [0, 1].map(|at| {
            let (server, [network, port]) = (&self.servers[at], &self.ids[at]);
            let path = format!("{}{}", version.prefix(), probe.path).replace("$n", network).replace("$p", port);
            let headers = [format!("Accept: {media_type}"), format!("Content-Type: {media_type}")];
            let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
            let mut answer = server.ask_with(probe.method, &path, &headers, probe.body);
            let known = |text: &str| text.replace(network, "$n").replace(port, "$p");
            answer.body = without_new_ids(&known(&answer.body)).replace(&server.address.to_string(), "$host");
            is_changed |= probe.method != "GET" && answer.status < 300 || probe.path.contains("_method");
            let item = format!("/v1.1/tenants/red/networks/{network}/detail");
            let after = if is_changed { known(&server.ask("GET", &item, None).body) } else { String::new() };
            (answer, without_new_ids(&after))
        });
        if is_changed {
            self.ids = self.servers.each_ref().map(furnish);
        }
        told
    }
}

/// Empties the tenants and makes a network with a port that has an attachment; answers their ids.
fn furnish(server: &Server) -> [String; 2] {
    const NETWORKS: &str = "/v1.1/tenants/red/networks";
    let ids = |path: &str, kind: &str| -> Vec<String> {
        let list = server.ask("GET", path, None).json()[kind].clone();
        list.as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
    };
    for network in ids(NETWORKS, "networks") {
        let item = format!("{NETWORKS}/{network}");
        for port in ids(&format!("{item}/ports"), "ports") {
            server.ask("DELETE", &format!("{item}/ports/{port}/attachment"), None);
        }
        assert_eq!(server.ask("DELETE", &item, None).status, 204);
    }
    let network = server.make(NETWORKS, r#"{"network": {"name": "n"}}"#);
    let ports = format!("{NETWORKS}/{network}/ports");
    let port = server.make(&ports, r#"{"port": {"state": "ACTIVE"}}"#);
    let attachment = format!("{ports}/{port}/attachment");
    assert_eq!(server.ask("PUT", &attachment, Some(r#"{"attachment": {"id": "here"}}"#)).status, 204);
    [network, port]
}

/// A text with every UUID as `$new`.
fn without_new_ids(text: &str) -> String {
    let is_part = |c: char| c.is_ascii_hexdigit() || c == '-';
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(is_part) {
        let (before, from) = rest.split_at(at);
        let end = from.find(|c| !is_part(c)).unwrap_or(from.len());
        out.push_str(before);
        out.push_str(if end == 36 { "$new" } else { &from[..end] });
        rest = &from[end..];
    }
    out + rest
}

/// The rule that lets the dialects differ on a request.
fn rule_of(driver: Driver, version: Version, format: &str, probe: &Probe) -> Option<&'static str> {
    let body = probe.body.unwrap_or_default();
    let json: Value = serde_json::from_str(body).unwrap_or_default();
    let inside = |key: &str| json.as_object().and_then(|all| all.values().next()?.get(key));
    let is_no_text =
        ["name", "state", "id"].iter().any(|key| inside(key).is_some_and(|it| !it.is_string() && !it.is_null()));
    let path = probe.path.split('?').next().unwrap_or_default();
    let is_update = probe.method == "PUT";
    let is_row_update = is_update && !path.ends_with("attachment");
    let over_row = ["op_status", "interface_id", "tenant_id"];
    if path.starts_with("/extensions") {
        return Some(if path == "/extensions" || format == "json" { EXTENSIONS } else { ONE_EXTENSION });
    }
    if probe.path.contains("_method") {
        return Some(METHOD);
    }
    if is_row_update && over_row.iter().any(|key| inside(key).is_some() || body.contains(&format!("<{key}>"))) {
        return Some(ON_UPDATE);
    }
    if driver == Driver::Fake && is_update && path == "/tenants/blue/networks/$n" {
        return Some(STRANGER);
    }
    if is_no_text || body.contains("<a/>") {
        return Some(NOT_TEXT);
    }
    (version == Version::V1_0 && format == "xml").then_some(BAD_REQUEST)
}

#[test]
fn the_dialects_differ_by_their_rules_and_in_nothing_else() {
    let mut shown = BTreeSet::new();
    for driver in DRIVERS {
        let mut pair = Pair::start(driver);
        let methods = ["GET", "POST", "PUT", "DELETE"];
        for (method, path) in methods.iter().flat_map(|method| PATHS.iter().map(move |path| (*method, *path))) {
            // Reads take no bodies, apart from what is wrong with any.
            let bodies = if matches!(method, "GET" | "DELETE") { &BODIES[..4] } else { BODIES };
            for body in bodies {
                let is_xml = body.is_some_and(|body| body.starts_with('<'));
                let formats: &[&str] =
                    if body.is_none() { &["json", "xml"] } else { &[if is_xml { "xml" } else { "json" }] };
                let probe = Probe { method, path: path.to_owned(), body: *body };
                for (version, format) in
                    Version::ALL.iter().flat_map(|it| formats.iter().map(move |format| (*it, *format)))
                {
                    let [plain, strict] = pair.ask(version, format, &probe);
                    let key = |(answer, after): &(Answer, String)| {
                        (
                            answer.status,
                            answer.header("content-type").map(str::to_owned),
                            answer.body.clone(),
                            after.clone(),
                        )
                    };
                    let (left, right) = (key(&plain), key(&strict));
                    if left == right {
                        continue;
                    }
                    let rule = rule_of(driver, version, format, &probe);
                    let place = format!("{driver:?} {version:?} {format} {probe:?}: {plain:?} {strict:?}");
                    shown.insert(rule.unwrap_or_else(|| panic!("no rule for {place}")));
                    if rule == Some(BAD_REQUEST) {
                        assert_eq!((left.0, right.0), (400, 400), "{place}");
                        assert_eq!(left.2, right.2.replace("Bad Request", "BadRequest"), "{place}");
                    }
                }
            }
        }
        let outside = Server::with(driver, ServerConfig { dialect: Dialect::StrictEssex, ..ServerConfig::default() });
        assert_eq!(outside.ask("GET", "/foo", None).status, 200);
        assert_eq!(Server::start(driver).ask("GET", "/foo", None).status, 404);
        shown.insert(VERSION_LIST);
    }
    let table = RULES.split("## Unless `api.strict_essex = true`").nth(1).unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| ")).skip(1);
    let rules: BTreeSet<_> = rows.map(|row| row[2..].split(" | ").next().unwrap()).collect();
    assert_eq!(rules, shown, "every rule shows, and every one that shows is written");
}
