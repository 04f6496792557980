//! What the fuzz targets of the API and their short seeded form run: bytes of a stranger as a JSON body, an XML body or a
//! URL, through everything behind the socket; and as what etcd tells.
//!
//! The first byte of the input chooses the operation, an extension's among them, the version and the dialect; the rest is
//! the body or the URL, in which `$n` and `$p` stand for the ids of what is there. Checked is what must hold for any of them:
//! a success or a 4xx, an answer that a client can read, a refusal that changed nothing, and after a success the same text
//! in either format.

use crate::document::is_xml_char;
use crate::format::{Format, JSON, XML};
use crate::identity::Caller;
use crate::model::{Model, NetworkId, PortId};
use crate::plugin::Plugin;
use crate::plugins::FakePlugin;
use crate::reply::Reply;
use crate::url::{Target as Place, decoded_path, query_pairs, target};
use crate::v1::{Dialect, Extensions, ExtensionsConfig, Request, Version, answer, suffix};
use crate::{versions, xml};
use axum::http::Uri;
use axum::http::uri::{Authority, Scheme};
use serde_json::Value;
use std::sync::Arc;

/// The tenant whose things these are.
const TENANT: &str = "red";
/// Methods of URLs.
const METHODS: [&str; 6] = ["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH"];

/// What etcd tells by a watch, in pieces of as many bytes as the first one says.
pub fn etcd_watch(data: &[u8]) {
    if let Some((&piece, bytes)) = data.split_first() {
        crate::etcd::watch::read_noise(bytes, piece.into());
    }
}

/// What etcd answers, or a host says of itself there, as the first byte says.
pub fn etcd_answer(data: &[u8]) {
    match data.split_first() {
        Some((kind, bytes)) if kind % 2 == 0 => crate::etcd::message::read_noise(bytes),
        Some((_, bytes)) => crate::cluster::read_noise(bytes),
        None => {}
    }
}

/// An API with one network, one port and something plugged elsewhere, and all extensions. It is as new for every input.
pub struct Target {
    plugin: FakePlugin,
    extensions: Extensions,
    network: NetworkId,
    port: PortId,
}

impl Default for Target {
    fn default() -> Self {
        const MADE: &str = "an empty plugin takes this";
        let plugin = FakePlugin::new();
        let network = plugin.create_network(TENANT, Some("first".into())).expect(MADE);
        let port = plugin.create_port(TENANT, &network, "ACTIVE").expect(MADE);
        let other = plugin.create_port(TENANT, &network, "ACTIVE").expect(MADE);
        plugin.plug_interface(TENANT, &network, &other, "vif").expect(MADE);
        let extensions =
            Extensions::new(&plugin, ExtensionsConfig { has_foxnsox: true, ..ExtensionsConfig::default() })
                .expect("none is asked for by name");
        Target { plugin, extensions, network, port }
    }
}

impl Target {
    /// Bytes as a body in this format. Returns the status.
    pub fn body(&mut self, format: Format, input: &[u8]) -> u16 {
        let Some((&choice, body)) = input.split_first() else { return 0 };
        let networks = format!("/tenants/{TENANT}/networks");
        let (network, port) = (self.network.clone(), self.port.clone());
        let csco = format!("/extensions/csco/tenants/{TENANT}");
        let (method, path) = match choice & 0x3f {
            0..8 => ("POST", networks.clone()),
            8..16 => ("PUT", format!("{networks}/{network}")),
            16..24 => ("POST", format!("{networks}/{network}/ports")),
            24..32 => ("PUT", format!("{networks}/{network}/ports/{port}")),
            32..40 => ("PUT", format!("{networks}/{network}/ports/{port}/attachment")),
            40..44 => ("POST", format!("{csco}/portprofiles")),
            44..48 => ("POST", format!("{csco}/qoss")),
            48..52 => ("POST", format!("{csco}/multiport")),
            52..56 => ("PUT", format!("{csco}/novatenants/i/associate_port")),
            56..60 => ("PUT", format!("{csco}/portprofiles/none/associate_portprofile")),
            _ => ("POST", "/dummy_resources/1/action".to_owned()),
        };
        let mut request = Request {
            version: if choice & 0x40 == 0 { Version::V1_1 } else { Version::V1_0 },
            dialect: if choice & 0x80 == 0 { Dialect::Plain } else { Dialect::StrictEssex },
            method: method.to_owned(),
            path,
            query: Vec::new(),
            content_type: Some(format.media_type().to_owned()),
            accept: None,
            body: with_ids(body, &network, &port),
        };
        let before = self.plugin.snapshot();
        let (reply, _) = answer(&self.plugin, &self.extensions, &Caller::Anyone, &request);
        check(&reply, &request);
        if reply.status.is_success() {
            request.method = "GET".into();
            request.body = Vec::new();
            request.path = format!("{networks}/detail");
            let [json, xml] = [JSON, XML].map(|media_type| {
                request.content_type = Some(media_type.to_owned());
                answer(&self.plugin, &self.extensions, &Caller::Anyone, &request).0
            });
            check_same_names(&json.body, &xml.body);
            request.path = format!("{networks}/{network}/detail.xml");
            check(&answer(&self.plugin, &self.extensions, &Caller::Anyone, &request).0, &request);
        }
        self.settle(&before, reply.status.is_success());
        reply.status.as_u16()
    }

    /// Bytes as what stands between a request line's method and its version. Returns the status.
    pub fn url(&mut self, input: &[u8]) -> u16 {
        let Some((&choice, url)) = input.split_first() else { return 0 };
        let text = String::from_utf8_lossy(url).replace("$n", &self.network).replace("$p", &self.port);
        let Ok(uri) = Uri::try_from(text) else { return 400 };
        let (path, is_text) = decoded_path(uri.path());
        if !is_text {
            return 400;
        }
        let dialect = if choice & 0x80 == 0 { Dialect::Plain } else { Dialect::StrictEssex };
        let before = self.plugin.snapshot();
        let reply = match target(&path, dialect) {
            Place::Versions => {
                let host = Authority::from_static("localhost");
                versions::list(&Scheme::HTTP, &host, Format::negotiate(suffix(&path), None, None))
            }
            Place::V1(version, rest) => {
                let request = Request {
                    version,
                    dialect,
                    method: METHODS[usize::from(choice & 0x3f) % METHODS.len()].to_owned(),
                    path: rest.to_owned(),
                    query: query_pairs(uri.query().unwrap_or_default()),
                    content_type: None,
                    accept: (choice & 0x40 != 0).then(|| XML.to_owned()),
                    body: Vec::new(),
                };
                let (reply, _) = answer(&self.plugin, &self.extensions, &Caller::Anyone, &request);
                check(&reply, &request);
                reply
            }
            Place::Description | Place::Nowhere => Reply::not_found(None, false, ""),
        };
        assert!(reply.status.as_u16() < 500);
        self.settle(&before, reply.status.is_success());
        reply.status.as_u16()
    }

    /// Nothing changed unless it may have; what did is forgotten.
    fn settle(&mut self, before: &Arc<Model>, may_differ: bool) {
        let after = self.plugin.snapshot();
        let is_same = after.networks == before.networks && after.ports == before.ports;
        assert!(is_same || may_differ, "a refusal changed something");
        if !is_same {
            *self = Target::default();
        }
    }
}

/// The body with `$n` and `$p` as the ids of what is there, which no fuzzer would guess.
fn with_ids(body: &[u8], network: &str, port: &str) -> Vec<u8> {
    match std::str::from_utf8(body) {
        Ok(text) => text.replace("$n", network).replace("$p", port).into_bytes(),
        Err(_) => body.to_owned(),
    }
}

/// An answer that a client can use.
fn check(reply: &Reply, request: &Request) {
    let shown = String::from_utf8_lossy(&reply.body);
    assert!(reply.status.is_success() || reply.status.is_client_error(), "{}: {shown}", reply.status);
    let is_odd = request.dialect == Dialect::StrictEssex && shown.starts_with("<Bad Request");
    match reply.content_type {
        JSON if reply.body.is_empty() => {}
        JSON => assert!(serde_json::from_slice::<Value>(&reply.body).is_ok(), "{shown}"),
        content_type if content_type.starts_with(XML) && !reply.body.is_empty() && !is_odd => {
            assert!(xml::read(&reply.body).is_some(), "{shown}");
        }
        _ => {}
    }
}

/// Both formats name the same networks, apart from characters that XML cannot hold.
fn check_same_names(json: &[u8], xml_text: &[u8]) {
    let json: Value = serde_json::from_slice(json).expect("an answer in JSON is JSON");
    let list = json["networks"].as_array().expect("a list of networks");
    let (_, last) = xml::read(xml_text).expect("an answer in XML is XML");
    let wanted = list.last().map(|network| &network["name"]).expect("there is always one");
    let wanted = wanted.as_str().unwrap_or("None").replace(|c| !is_xml_char(c), "\u{fffd}");
    // Of elements with one name the reader keeps the last.
    assert_eq!(last["network"]["name"], Value::String(wanted));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::select;
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    /// Pieces of bodies, whole and broken.
    const JSON_PIECES: [&str; 24] = [
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"network\"",
        "\"port\"",
        "\"attachment\"",
        "\"name\"",
        "\"state\"",
        "\"id\"",
        "\"ACTIVE\"",
        "\"\\u0000\"",
        "\"\\ud83d\\ude00\"",
        "\"\\ud800\"",
        "null",
        "true",
        "-1.5e9",
        "\"uuid\"",
        "\"op_status\"",
        "\"vif\"",
        "\"tenant_id\"",
        " ",
    ];
    const XML_PIECES: [&str; 28] = [
        "<network",
        "<port",
        "<attachment",
        "</network>",
        "</port>",
        "</attachment>",
        ">",
        "/>",
        "<name>",
        "</name>",
        "<id>",
        "</id>",
        "<state>",
        "</state>",
        " name=\"",
        "\"",
        "ACTIVE",
        "vif",
        "&amp;",
        "&#0;",
        "&#x1F980;",
        "&a;",
        "<!DOCTYPE n [<!ENTITY a 'b'>]>",
        "<?xml version=\"1.0\" ?>",
        "<![CDATA[",
        "]]>",
        "<!--",
        " xmlns:q=\"n\"",
    ];
    const VALID: [&str; 12] = [
        r#"{"network": {"name": "né"}}"#,
        r#"{"port": {"state": "DOWN", "vm_id": 3}}"#,
        r#"{"attachment": {"id": "other"}}"#,
        r#"{"network": {"name": "x", "uuid": "y", "op_status": "DOWN"}}"#,
        r#"<?xml version="1.0" ?><network><name>né</name></network>"#,
        r#"<port state="DOWN"/>"#,
        r#"<attachment><id>other</id></attachment>"#,
        r#"<network name="x" uuid="y"><op_status>DOWN</op_status></network>"#,
        r#"{"multiport": {"net_id_list": ["$n"], "status": "ACTIVE", "ports_desc": {}}}"#,
        r#"{"novatenant": {"instance_id": "i", "instance_desc": {"vif_id": "vif"}}}"#,
        r#"<qos qos_name="x"><qos_desc><rate unit="é">7</rate></qos_desc></qos>"#,
        r#"<portprofile network-id="$n" port-id="$p"/>"#,
    ];
    const URL_PIECES: [&str; 32] = [
        "/v1.0",
        "/v1.1",
        "/v2.0",
        "/tenants",
        "/red",
        "/networks",
        "/$n",
        "/ports",
        "/$p",
        "/attachment",
        "/detail",
        "/new",
        "/",
        "//",
        ".json",
        ".xml",
        ".",
        "..",
        "%2F",
        "%00",
        "%c3%a9",
        "%ff",
        "%",
        "?",
        "name=first",
        "has-attachment=true",
        "&",
        "_method=DELETE",
        "=",
        "/extensions",
        "/foxnsocks",
        "/stats",
    ];

    /// Valid bodies changed a little, pieces in any order, and noise.
    fn body(pieces: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
        let changed = (select(&VALID), any::<[(u16, u8); 2]>(), 0..3_usize).prop_map(|(text, changes, count)| {
            let mut bytes = text.as_bytes().to_vec();
            for (at, byte) in changes.into_iter().take(count) {
                let at = usize::from(at) % bytes.len();
                bytes[at] = byte;
            }
            bytes
        });
        let mixed = proptest::collection::vec(select(pieces), 0..24).prop_map(|pieces| pieces.concat().into_bytes());
        prop_oneof![4 => changed, 4 => mixed, 1 => proptest::collection::vec(any::<u8>(), 0..200)]
    }

    /// A strategy that sees only refusals, or only successes, finds nothing.
    fn assert_saw(seen: &Mutex<BTreeSet<u16>>, wanted: &[u16]) {
        let seen = seen.lock().unwrap();
        assert!(wanted.iter().all(|status| seen.contains(status)), "{seen:?}");
    }

    #[test]
    fn any_body_gets_a_success_or_a_4xx_and_only_a_success_changes_anything() {
        for (format, pieces) in [(Format::Json, &JSON_PIECES[..]), (Format::Xml, &XML_PIECES[..])] {
            let seen = Mutex::new(BTreeSet::new());
            let target = Mutex::new(Target::default());
            proptest!(ProptestConfig::with_cases(3000), |(choice in any::<u8>(), rest in body(pieces))| {
                let status = target.lock().unwrap().body(format, &[&[choice], &rest[..]].concat());
                seen.lock().unwrap().insert(status);
            });
            assert_saw(&seen, &[200, 202, 204, 400, 404]);
        }
    }

    #[test]
    fn any_url_gets_a_success_or_a_4xx_and_only_a_success_changes_anything() {
        let seen = Mutex::new(BTreeSet::new());
        let target = Mutex::new(Target::default());
        let place = proptest::collection::vec(select(&URL_PIECES[..]), 0..9);
        let start = select(&[
            "",
            "/v1.1/tenants/red/networks",
            "/v1.0/tenants/red/networks/$n/ports",
            "/v1.1/tenants/red/networks/$n/ports/$p/attachment",
        ]);
        proptest!(ProptestConfig::with_cases(6000), |(choice in any::<u8>(), start in start, place in place)| {
            let url = format!("{start}{}", place.concat());
            let status = target.lock().unwrap().url(&[&[choice], url.as_bytes()].concat());
            seen.lock().unwrap().insert(status);
        });
        assert_saw(&seen, &[200, 204, 400, 404, 430]);
    }
}
