//! Conversations recorded from the original service and its sample plugin, held against this one.
//!
//! A file has one JSON value a line: an object begins a conversation and says which names stand for what; a list is a step:
//! `[LABEL, METHOD, PATH, HEADERS, BODY, CAPTURE, STATUS, REASON, CONTENT-TYPE, ANSWER]`. `${name}` stands for a name, CAPTURE
//! names the id in an answer. In the original's dialect each answer is the recorded one, by value: JSON and XML without
//! regard to order, framework pages by their form alone. Where the original failed, we do not. Without the dialect an answer may be
//! another if a rule of `DEVIATIONS.md` says so of the request, and afterwards by what such a request did or did not do.

use crate::rig::{Answer, Driver, Server};
use api::plugins::FakePlugin;
use api::server::ServerConfig;
use api::v1::{Dialect, Extensions, ExtensionsConfig};
use quick_xml::events::Event;
use quick_xml::{Reader, XmlVersion};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

const RULES: &str = include_str!("../../DEVIATIONS.md");
const VERSION_LIST: &str = "Version list";
const METHOD: &str = "`_method` in a query or a form";
const NOT_TEXT: &str = "Name, state, attachment id or attribute of an extension that is a number or a boolean";
const ON_UPDATE: &str = "Unknown attributes on update (`op_status`, `uuid`, `tenant_id`, …)";
const STRANGER: &str = "Update of a network by another tenant (sample plugin)";
const BAD_REQUEST: &str = "v1.0's 400 in XML";
const ONE_EXTENSION: &str = "One extension in XML";

/// A request and what the original answered.
struct Step {
    label: String,
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: Option<String>,
    capture: Option<String>,
    status: u16,
    reason: String,
    content_type: Option<String>,
    answer: Option<String>,
}

impl Step {
    fn read(line: &Value) -> Step {
        let text = |at: usize| line[at].as_str().map(str::to_owned);
        Step {
            label: text(0).unwrap(),
            method: text(1).unwrap(),
            path: text(2).unwrap(),
            headers: serde_json::from_value(line[3].clone()).unwrap(),
            body: text(4),
            capture: text(5),
            status: u16::try_from(line[6].as_u64().unwrap()).unwrap(),
            reason: text(7).unwrap(),
            content_type: text(8),
            answer: text(9),
        }
    }

    /// The rule that lets us answer otherwise without the dialect.
    fn rule(&self) -> Option<&'static str> {
        let path = self.path.split('?').next().unwrap();
        let body = self.body.as_deref().unwrap_or_default();
        let json: Value = serde_json::from_str(body).unwrap_or_default();
        let inside = |key: &str| json.as_object().and_then(|all| all.values().next()?.get(key));
        let is_no_text = |key: &&str| inside(key).is_some_and(|it| it.is_number() || it.is_boolean());
        let is_over_row = |key: &&str| inside(key).is_some() || body.contains(&format!("<{key}>"));
        let is_update = self.method == "PUT" && !path.contains("attachment");
        match () {
            () if self.path.contains("_method") => Some(METHOD),
            () if !["/v1.0/", "/v1.1/"].iter().any(|prefix| path.starts_with(prefix)) => Some(VERSION_LIST),
            () if path.contains("/extensions/") && self.content_type.as_deref() == Some("application/xml") => {
                Some(ONE_EXTENSION)
            }
            () if is_update && path.contains("${other}") => Some(STRANGER),
            () if is_update && ["op_status", "uuid", "tenant_id"].iter().any(is_over_row) => Some(ON_UPDATE),
            () if ["name", "state", "id"].iter().any(is_no_text) => Some(NOT_TEXT),
            () if self.status == 400
                && path.starts_with("/v1.0/")
                && self.answer.as_deref().is_some_and(|answer| answer.contains("<Bad Request")) =>
            {
                Some(BAD_REQUEST)
            }
            () => None,
        }
    }
}

/// A server and what the conversation knows.
struct Talk<'a> {
    server: &'a Server,
    names: HashMap<String, String>,
}

impl Talk<'_> {
    fn fill_in(&self, text: &str) -> Option<String> {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, from)) = rest.split_once("${") {
            let (name, behind) = from.split_once('}')?;
            out = out + before + self.names.get(name)?;
            rest = behind;
        }
        Some(out + rest)
    }

    /// What is different from the recording; nothing: nothing.
    fn play(&mut self, step: &Step) -> Option<String> {
        let Some(path) = self.fill_in(&step.path) else { return Some("it is about what was not made".to_owned()) };
        let fill = |text: &String| self.fill_in(text).unwrap_or_default();
        let headers: Vec<_> = step.headers.iter().map(|(name, value)| format!("{name}: {}", fill(value))).collect();
        let headers: Vec<_> = headers.iter().map(String::as_str).collect();
        let body = step.body.as_ref().map(fill);
        let answer = self.server.ask_with(&step.method, &path, &headers, body.as_deref());
        if let (Some(name), Some(id)) = (&step.capture, uuid_in(&answer.body)) {
            self.names.insert(name.clone(), id);
        }
        if step.status >= 500 {
            return (answer.status >= 500).then(|| format!("{answer:?}"));
        }
        let wanted = step.answer.as_ref().and_then(|wanted| self.fill_in(wanted));
        let is_same = (answer.status, answer.reason.as_str(), answer.header("content-type"))
            == (step.status, step.reason.as_str(), step.content_type.as_deref())
            && wanted.as_deref().is_some_and(|wanted| is_same_body(wanted, &answer));
        (!is_same).then(|| format!("{answer:?} and not {} {:?} {wanted:?}", step.status, step.content_type))
    }
}

/// The first UUID in a text.
fn uuid_in(text: &str) -> Option<String> {
    const HYPHENS: [usize; 4] = [8, 13, 18, 23];
    let is_uuid = |text: &&[u8]| {
        (0..).zip(*text).all(|(at, byte)| if HYPHENS.contains(&at) { *byte == b'-' } else { byte.is_ascii_hexdigit() })
    };
    text.as_bytes().windows(36).find(is_uuid).map(|uuid| String::from_utf8(uuid.to_vec()).unwrap())
}

fn is_same_body(wanted: &str, answer: &Answer) -> bool {
    let media_type = answer.header("content-type").and_then(|value| value.split(';').next()).unwrap_or_default();
    match media_type {
        _ if wanted == answer.body => true,
        "application/json" => match (serde_json::from_str(wanted), serde_json::from_str(&answer.body)) {
            (Ok(wanted), Ok(got)) => unordered(wanted) == unordered(got),
            _ => false,
        },
        "application/xml" => canonical(wanted).is_some_and(|wanted| Some(wanted) == canonical(&answer.body)),
        // Pages of a framework: their wording is no contract.
        "text/html" | "text/plain" => true,
        _ => false,
    }
}

fn unordered(value: Value) -> Value {
    match value {
        Value::Array(items) => {
            let mut items: Vec<_> = items.into_iter().map(unordered).collect();
            items.sort_by_key(Value::to_string);
            Value::Array(items)
        }
        Value::Object(fields) => fields.into_iter().map(|(key, value)| (key, unordered(value))).collect(),
        value => value,
    }
}

/// An XML text such that two that say the same are equal; `None` if it is none.
fn canonical(text: &str) -> Option<String> {
    let mut reader = Reader::from_str(text);
    // Of each open element its start, its texts and its children.
    let mut open = vec![(String::new(), String::new(), Vec::new())];
    loop {
        let event = reader.read_event().ok()?;
        let is_empty = matches!(event, Event::Empty(_));
        match event {
            Event::Start(start) | Event::Empty(start) => {
                let mut attributes = Vec::new();
                for attribute in start.attributes() {
                    let attribute = attribute.ok()?;
                    let value = attribute.normalized_value(XmlVersion::Implicit1_0).ok()?;
                    attributes.push(format!("{:?}={value:?}", attribute.key));
                }
                attributes.sort();
                let name = start.name();
                open.push((format!("{name:?} {attributes:?}"), String::new(), Vec::new()));
                if !is_empty {
                    continue;
                }
            }
            Event::End(_) => {}
            Event::Eof => return (open.len() == 1).then(|| format!("{open:?}")),
            event => {
                open.last_mut()?.1 += &format!("{event:?}");
                continue;
            }
        }
        let (start, text, mut children): (String, String, Vec<String>) = open.pop()?;
        children.sort();
        open.last_mut()?.2.push(format!("<{start} {text} {children:?}>"));
    }
}

fn files() -> Vec<PathBuf> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recorded");
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Plays all there is; `differ` is told of each step that is answered otherwise, with the steps before it.
fn play_all(dialect: Dialect, mut differ: impl FnMut(&Step, &[Step], String)) {
    let mut count = 0;
    for file in files() {
        let is_foxnsox = file.ends_with("extensions_foxnsox.jsonl");
        let named = if is_foxnsox { vec!["FOXNSOX".to_owned()] } else { Vec::new() };
        let extensions =
            ExtensionsConfig { named: Some(named), has_foxnsox: is_foxnsox, ..ExtensionsConfig::default() };
        let extensions = Arc::new(Extensions::new(&FakePlugin::new(), extensions).unwrap());
        let server = Server::with(Driver::Fake, ServerConfig { dialect, extensions, ..ServerConfig::default() });
        let mut talk = Talk { server: &server, names: HashMap::new() };
        let (mut place, mut before) = (String::new(), Vec::new());
        for line in std::fs::read_to_string(&file).unwrap().lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            if line.is_object() {
                talk.names = serde_json::from_value(line["names"].clone()).unwrap();
                talk.names.insert("base".to_owned(), format!("http://{}", server.address));
                place = format!("{} {} {}", line["scenario"], line["version"], line["format"]);
                before.clear();
                continue;
            }
            let step = Step::read(&line);
            count += 1;
            if let Some(difference) = talk.play(&step) {
                let Step { label, method, path, .. } = &step;
                differ(&step, &before, format!("{place}: {label}: {method} {path}: {difference}"));
            }
            before.push(step);
        }
    }
    assert!(count > 1_000, "{count}");
}

#[test]
fn in_the_original_dialect_every_recorded_answer_comes_again() {
    let mut differences = Vec::new();
    play_all(Dialect::StrictEssex, |_, _, difference| differences.push(difference));
    assert!(differences.is_empty(), "{} differ: {differences:#?}", differences.len());
}

#[test]
fn without_the_dialect_answers_differ_from_recorded_ones_by_the_rules_and_in_nothing_else() {
    let mut shown = BTreeSet::new();
    play_all(Dialect::Plain, |step, before, difference| {
        let is_read = step.method == "GET";
        let of_write = || before.iter().filter(|step| step.method != "GET").find_map(Step::rule).filter(|_| is_read);
        shown.insert(step.rule().or_else(of_write).unwrap_or_else(|| panic!("no rule for {difference}")));
    });
    let table = RULES.split("## Unless `api.strict_essex = true`").nth(1).unwrap();
    for rule in &shown {
        assert!(table.contains(&format!("| {rule} |")), "{rule} is not written");
    }
    assert!(shown.len() <= 10 && shown.contains(BAD_REQUEST) && shown.contains(VERSION_LIST), "{shown:?}");
}
