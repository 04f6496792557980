//! The golden files: conversations, held under every version and format with each plugin they name.
//!
//! A file is `{"plugins": […], "formats": […], "dialect": …, "steps": [[METHOD, PATH, BODY, STATUS, ANSWER], …]}`; without
//! formats it holds in both, and with the dialect `strict` under `api.strict_essex`. It is written as v1.1 and JSON would have it: [`translate`] says what v1.0 makes of status and answer,
//! [`crate::tree`] what XML makes of a body. BODY is JSON, text to be sent as it is, or null; ANSWER is JSON, compared by
//! value, or null for none. `$name` stands for a remembered text, and an answer of `"=name"` remembers. `~` begins a path
//! with the first tenant's networks, `^` with the other's. `$idle` is the op-status of a port that has nothing plugged
//! or is DOWN.

use crate::rig::{Answer, Driver, Format, Server, Version};
use crate::tree;
use api::server::ServerConfig;
use api::v1::Dialect;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

type Memory = HashMap<String, String>;

/// The faults of both versions: v1.1's type, v1.0's status and name.
const FAULTS: [(&str, u64, &str); 7] = [
    ("NetworkNotFound", 420, "networkNotFound"),
    ("NetworkInUse", 421, "networkInUse"),
    ("PortNotFound", 430, "portNotFound"),
    ("RequestedStateInvalid", 431, "requestedStateInvalid"),
    ("PortInUse", 432, "portInUse"),
    ("AlreadyAttached", 440, "alreadyAttached"),
    ("QuantumServiceFault", 400, "Bad Request"),
];

/// One way of talking to a server.
struct Talk<'a> {
    server: &'a Server,
    version: Version,
    format: Format,
    memory: Memory,
}

#[test]
fn every_golden_conversation_goes_as_written_in_every_version_and_format() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1");
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 6, "{files:?}");
    for file in files {
        let golden: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        for (driver, version, format) in ways(&golden) {
            let idle = if driver == Driver::Fake { "UP" } else { "DOWN" };
            let dialect = if golden["dialect"] == "strict" { Dialect::StrictEssex } else { Dialect::Plain };
            let server = Server::with(driver, ServerConfig { dialect, ..ServerConfig::default() });
            let memory = Memory::from([("idle".to_owned(), idle.to_owned())]);
            let mut talk = Talk { server: &server, version, format, memory };
            for (at, step) in golden["steps"].as_array().unwrap().iter().enumerate() {
                let place = format!("{} under {driver:?} {version:?} {format:?}, step {at}", file.display());
                talk.run_step(step, at, &place);
            }
        }
    }
}

/// Every plugin, version and format that a file is for.
fn ways(golden: &Value) -> Vec<(Driver, Version, Format)> {
    let mut ways = Vec::new();
    for driver in golden["plugins"].as_array().unwrap() {
        let driver = match driver.as_str().unwrap() {
            "fake" => Driver::Fake,
            "native" => Driver::Native,
            other => panic!("{other}"),
        };
        for format in [Format::Json, Format::Xml] {
            let is_for = golden["formats"].as_array().is_none_or(|formats| formats.contains(&json!(format.name())));
            ways.extend(Version::ALL.into_iter().filter(|_| is_for).map(|version| (driver, version, format)));
        }
    }
    ways
}

impl Talk<'_> {
    fn run_step(&mut self, step: &Value, at: usize, place: &str) {
        let [method, path, body, status, wanted] = step.as_array().unwrap().as_slice() else {
            panic!("{place}: {step}")
        };
        let path = path.as_str().unwrap().replace('~', "/v1.1/tenants/red/networks");
        let path = path.replace('^', "/v1.1/tenants/blue/networks").replace("/v1.1", self.version.prefix());
        let path = recall(&path, &self.memory).replace(".json", &format!(".{}", self.format.name()));
        let body = match body {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            json => {
                let text = recall(&json.to_string(), &self.memory);
                // The two spellings of XML take turns.
                Some(match self.format {
                    Format::Json => text,
                    Format::Xml => tree::to_xml(&serde_json::from_str(&text).unwrap(), at.is_multiple_of(2)),
                })
            }
        };
        let (status, wanted) = self.translate(method.as_str().unwrap(), status.as_u64().unwrap(), wanted);
        let answer = self.server.ask_in(self.format, method.as_str().unwrap(), &path, body.as_deref());
        assert_eq!(u64::from(answer.status), status, "{place}: {answer:?}");
        let content_type = answer.header("content-type").unwrap();
        let is_page = wanted.get("title").is_some();
        match (self.format, status) {
            (Format::Json, _) => assert_eq!(content_type, "application/json", "{place}"),
            (Format::Xml, 404) if is_page => assert_eq!(content_type, "text/plain; charset=UTF-8", "{place}"),
            (Format::Xml, 200..300) => assert_eq!(content_type, "application/xml", "{place}"),
            (Format::Xml, _) => assert_eq!(content_type, "application/xml; charset=UTF-8", "{place}"),
        }
        if wanted.is_null() {
            assert_eq!(answer.body, "", "{place}");
        } else if self.format == Format::Json || !is_page {
            self.compare(&wanted, &self.read(&answer), place);
        }
        if let (Version::V1_0, 420..500) = (self.version, status) {
            let name = wanted.as_object().unwrap().keys().next().unwrap();
            assert_eq!(&answer.reason, name, "{place}: v1.0 has the fault's name as reason");
        }
    }

    /// What this version says where v1.1 says this.
    fn translate(&self, method: &str, status: u64, wanted: &Value) -> (u64, Value) {
        if self.version == Version::V1_1 {
            return (status, wanted.clone());
        }
        if let Some(error) = wanted.get("QuantumError") {
            let kind = error["type"].as_str().unwrap();
            let (_, code, name) = FAULTS.into_iter().find(|row| row.0 == kind).unwrap();
            let name = if self.format == Format::Xml { name.replace(' ', "") } else { name.to_owned() };
            let fault = json!({"code": code, "message": error["message"], "detail": error["detail"]});
            return (code, Value::Object(Map::from_iter([(name, fault)])));
        }
        let status = if method == "POST" && status == 202 { 200 } else { status };
        (status, without_op_status(wanted))
    }

    fn read(&self, answer: &Answer) -> Value {
        match self.format {
            Format::Json => answer.json(),
            Format::Xml => {
                tree::from_xml(&answer.body, &format!("http://openstack.org/quantum/api{}", self.version.prefix()))
            }
        }
    }

    fn compare(&mut self, wanted: &Value, found: &Value, place: &str) {
        match (wanted, found) {
            (Value::Object(wanted), Value::Object(found)) => {
                let keys = |object: &Map<String, Value>| object.keys().cloned().collect::<Vec<_>>();
                assert_eq!(keys(wanted), keys(found), "{place}: {found:?}");
                for (key, wanted) in wanted {
                    self.compare(wanted, &found[key], place);
                }
            }
            (Value::Array(wanted), Value::Array(found)) => {
                assert_eq!(wanted.len(), found.len(), "{place}: {found:?}");
                for (wanted, found) in wanted.iter().zip(found) {
                    self.compare(wanted, found, place);
                }
            }
            (Value::String(wanted), Value::String(found)) => match wanted.strip_prefix('=') {
                Some(name) => {
                    assert!(is_uuid(found), "{place}: {found}");
                    self.memory.insert(name.to_owned(), found.clone());
                }
                None => assert_eq!(recall(wanted, &self.memory), *found, "{place}"),
            },
            (wanted, found) => assert_eq!(wanted, found, "{place}"),
        }
    }
}

fn without_op_status(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let rest = object.iter().filter(|(key, _)| *key != "op-status");
            Value::Object(rest.map(|(key, value)| (key.clone(), without_op_status(value))).collect())
        }
        Value::Array(items) => items.iter().map(without_op_status).collect(),
        other => other.clone(),
    }
}

/// The text with every `$name` replaced, longest names first.
fn recall(text: &str, memory: &Memory) -> String {
    let mut names: Vec<_> = memory.keys().collect();
    names.sort_by_key(|name| std::cmp::Reverse(name.len()));
    names.into_iter().fold(text.to_owned(), |text, name| text.replace(&format!("${name}"), &memory[name]))
}

fn is_uuid(text: &str) -> bool {
    let is_digit = |c: char| matches!(c, '0'..='9' | 'a'..='f');
    text.split('-').map(str::len).eq([8, 4, 4, 4, 12]) && text.chars().all(|c| c == '-' || is_digit(c))
}
