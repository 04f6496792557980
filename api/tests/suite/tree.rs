//! XML as the tests write and read it: JSON's values in XML's clothes. Shares no code with the server's.

use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};
use serde_json::{Map, Value};

/// A request's body in XML: child elements behind a declaration, as the original client writes them, or attributes where
/// all values are texts.
pub(crate) fn to_xml(body: &Value, has_children: bool) -> String {
    let (root, value) = body.as_object().unwrap().iter().find(|(_, value)| value.is_object()).unwrap();
    let fields = value.as_object().unwrap();
    if has_children || !fields.values().all(Value::is_string) {
        return format!("<?xml version=\"1.0\" ?>{}", element(root, value));
    }
    let attributes: String =
        fields.iter().map(|(key, value)| format!(" {key}=\"{}\"", escape(value.as_str().unwrap()))).collect();
    format!("<{root}{attributes}/>")
}

fn element(name: &str, value: &Value) -> String {
    let inside = match value {
        Value::Object(fields) => fields.iter().map(|(key, value)| element(key, value)).collect(),
        Value::Array(items) => items.iter().map(|item| element("item", item)).collect(),
        Value::String(text) => escape(text),
        other => other.to_string(),
    };
    format!("<{name}>{inside}</{name}>")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

/// An element whose end is still to come.
struct Open {
    name: String,
    fields: Map<String, Value>,
    items: Vec<Value>,
    text: String,
}

/// An answer in XML as JSON would have it. The root, and it alone, has this namespace.
pub(crate) fn from_xml(text: &str, namespace: &str) -> Value {
    let mut reader = Reader::from_str(text);
    let mut open: Vec<Open> = Vec::new();
    loop {
        let event = reader.read_event().unwrap_or_else(|error| panic!("{error}: {text}"));
        let is_empty = matches!(event, Event::Empty(_));
        match event {
            Event::Start(start) | Event::Empty(start) => {
                let mut fields = attributes(&start);
                let found = fields.remove("xmlns");
                assert_eq!(found, open.is_empty().then(|| namespace.into()), "{text}");
                let name = start.name().as_ref().to_owned();
                open.push(Open { name, fields, items: Vec::new(), text: String::new() });
                if !is_empty {
                    continue;
                }
            }
            Event::Text(piece) => {
                open.last_mut().unwrap_or_else(|| panic!("{text}")).text += &piece.xml10_content();
                continue;
            }
            Event::GeneralRef(reference) => {
                let named = match &*reference {
                    "amp" => '&',
                    "lt" => '<',
                    "gt" => '>',
                    "quot" => '"',
                    _ => reference.resolve_char_ref().unwrap().unwrap(),
                };
                open.last_mut().unwrap().text.push(named);
                continue;
            }
            Event::End(_) => {}
            other => panic!("{other:?} in {text}"),
        }
        let Open { name, fields, items, text: inside } = open.pop().unwrap();
        let value = match name.as_str() {
            "networks" | "ports" => Value::Array(items),
            _ if inside.is_empty() => Value::Object(fields),
            _ => Value::String(inside),
        };
        match open.last_mut() {
            Some(parent) => {
                parent.items.push(value.clone());
                parent.fields.insert(name, value);
            }
            None => return Value::Object(Map::from_iter([(name, value)])),
        }
    }
}

fn attributes(start: &BytesStart<'_>) -> Map<String, Value> {
    let mut names = Vec::new();
    let mut fields = Map::new();
    for attribute in start.attributes() {
        let attribute = attribute.unwrap();
        let name = attribute.key.as_ref().to_owned();
        let text = attribute.normalized_value(XmlVersion::Explicit1_0).unwrap().into_owned();
        let value = match (name.as_str(), text.as_str()) {
            ("name", "None") => Value::Null,
            ("code", number) => Value::from(number.parse::<u16>().unwrap()),
            _ => Value::String(text),
        };
        names.push(name.clone());
        fields.insert(name, value);
    }
    assert!(names.is_sorted(), "{names:?}");
    fields
}
