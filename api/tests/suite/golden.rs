//! The golden files: conversations in JSON, answered by each plugin they name.
//!
//! A file is `{"plugins": […], "steps": [[METHOD, PATH, BODY, STATUS, ANSWER], …]}`. BODY is JSON, text to be sent as it
//! is, or null; ANSWER is JSON, compared by value, or null for none. `$name` stands for a remembered text, and an answer
//! of `"=name"` remembers. `~` begins a path with the first tenant's networks, `^` with the other's. `$idle` is the
//! op-status of a port that has nothing plugged or is DOWN.

use crate::rig::{Driver, Server};
use serde_json::Value;
use std::collections::HashMap;

type Memory = HashMap<String, String>;

#[test]
fn every_golden_conversation_goes_as_written() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1_1");
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 6, "{files:?}");
    for file in files {
        let golden: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        for driver in golden["plugins"].as_array().unwrap() {
            let (driver, idle) = match driver.as_str().unwrap() {
                "fake" => (Driver::Fake, "UP"),
                "native" => (Driver::Native, "DOWN"),
                other => panic!("{other}"),
            };
            let server = Server::start(driver);
            let mut memory = Memory::from([("idle".to_owned(), idle.to_owned())]);
            for (at, step) in golden["steps"].as_array().unwrap().iter().enumerate() {
                run_step(&server, step, &mut memory, &format!("{} under {driver:?}, step {at}", file.display()));
            }
        }
    }
}

fn run_step(server: &Server, step: &Value, memory: &mut Memory, place: &str) {
    let [method, path, body, status, wanted] = step.as_array().unwrap().as_slice() else { panic!("{place}: {step}") };
    let path = path.as_str().unwrap().replace('~', "/v1.1/tenants/red/networks");
    let path = recall(&path.replace('^', "/v1.1/tenants/blue/networks"), memory);
    let body = match body {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        json => Some(recall(&json.to_string(), memory)),
    };
    let answer = server.ask(method.as_str().unwrap(), &path, body.as_deref());
    assert_eq!(u64::from(answer.status), status.as_u64().unwrap(), "{place}: {answer:?}");
    if wanted.is_null() {
        assert_eq!(answer.body, "", "{place}");
    } else {
        compare(wanted, &answer.json(), memory, place);
    }
    assert_eq!(answer.header("content-type"), Some("application/json"), "{place}");
}

fn compare(wanted: &Value, found: &Value, memory: &mut Memory, place: &str) {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => {
            let keys = |object: &serde_json::Map<String, Value>| object.keys().cloned().collect::<Vec<_>>();
            assert_eq!(keys(wanted), keys(found), "{place}");
            for (key, wanted) in wanted {
                compare(wanted, &found[key], memory, place);
            }
        }
        (Value::Array(wanted), Value::Array(found)) => {
            assert_eq!(wanted.len(), found.len(), "{place}: {found:?}");
            for (wanted, found) in wanted.iter().zip(found) {
                compare(wanted, found, memory, place);
            }
        }
        (Value::String(wanted), Value::String(found)) => match wanted.strip_prefix('=') {
            Some(name) => {
                assert!(is_uuid(found), "{place}: {found}");
                memory.insert(name.to_owned(), found.clone());
            }
            None => assert_eq!(recall(wanted, memory), *found, "{place}"),
        },
        (wanted, found) => assert_eq!(wanted, found, "{place}"),
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
