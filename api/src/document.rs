//! What an answer says, and how JSON and XML say it. Pure.
//!
//! The two formats differ in more than brackets: XML makes some texts attributes, names the items of a list, puts its
//! attributes in alphabetical order and has a namespace on the root. So a document says of each text which of the two it
//! is, and the order of its fields is JSON's.

use crate::format::Format;
use crate::model::Text;
use crate::reply::to_json;
use serde::ser::{Serialize, SerializeMap, Serializer};

/// A resource or a list of them, a fault, or the version list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Document {
    /// Its one key in JSON, its root element in XML.
    pub root: &'static str,
    /// The namespace of the root element.
    pub namespace: Option<&'static str>,
    /// What is in it.
    pub value: Value,
}

/// The keys of an object with their values, in JSON's order.
pub type Fields = Vec<(&'static str, Value)>;

/// A value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// A text; in XML an attribute.
    Attribute(Text),
    /// One of a few words; in XML an attribute.
    Word(&'static str),
    /// No text: `null` in JSON, the attribute `None` in XML, as the original has it.
    Absent,
    /// The same, in XML an element.
    AbsentElement,
    /// A number; in XML an attribute.
    Code(u16),
    /// A count; in XML an attribute.
    Number(u64),
    /// A number; in XML an element.
    ElementNumber(u64),
    /// Yes or no; in XML an element, `True` or `False` as the original has it.
    Flag(bool),
    /// A text; in XML an element.
    Element(Text),
    /// An object; in XML an element.
    Object(Fields),
    /// Objects, each an element of the name `item` in XML.
    List {
        /// What XML calls one of them.
        item: &'static str,
        /// They.
        objects: Vec<Fields>,
    },
    /// Texts, each an element of the name `item` in XML.
    Texts {
        /// What XML calls one of them.
        item: &'static str,
        /// They.
        texts: Vec<Text>,
    },
}

impl Document {
    /// Its bytes.
    pub fn write(&self, format: Format) -> Vec<u8> {
        match format {
            Format::Json => to_json(self),
            Format::Xml => {
                let mut out = String::new();
                write_element(&mut out, self.root, &self.value, self.namespace);
                out.into_bytes()
            }
        }
    }
}

impl Serialize for Document {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(self.root, &self.value)?;
        map.end()
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Attribute(text) | Value::Element(text) => serializer.serialize_str(text),
            Value::Word(word) => serializer.serialize_str(word),
            Value::Absent | Value::AbsentElement => serializer.serialize_unit(),
            Value::Code(code) => serializer.serialize_u16(*code),
            Value::Number(number) | Value::ElementNumber(number) => serializer.serialize_u64(*number),
            Value::Flag(flag) => serializer.serialize_bool(*flag),
            Value::Object(fields) => serialize_fields(fields, serializer),
            Value::List { objects, .. } => serializer.collect_seq(objects.iter().map(AsObject)),
            Value::Texts { texts, .. } => serializer.collect_seq(texts),
        }
    }
}

/// Fields as one JSON object.
struct AsObject<'a>(&'a Fields);

impl Serialize for AsObject<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_fields(self.0, serializer)
    }
}

fn serialize_fields<S: Serializer>(fields: &Fields, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(fields.iter().map(|(key, value)| (key, value)))
}

fn write_element(out: &mut String, name: &str, value: &Value, namespace: Option<&str>) {
    match value {
        Value::Object(fields) => write_object(out, name, fields, namespace),
        Value::List { item, objects } => write_items(out, name, objects, namespace, |out, fields| {
            write_object(out, item, fields, None);
        }),
        Value::Texts { item, texts } => write_items(out, name, texts, namespace, |out, text| {
            write_text(out, item, text, None);
        }),
        Value::Element(text) => write_text(out, name, text, namespace),
        Value::AbsentElement => write_text(out, name, "None", namespace),
        Value::ElementNumber(number) => write_text(out, name, &number.to_string(), namespace),
        Value::Flag(flag) => write_text(out, name, if *flag { "True" } else { "False" }, namespace),
        Value::Attribute(_) | Value::Word(_) | Value::Absent | Value::Code(_) | Value::Number(_) => {}
    }
}

fn write_items<T>(out: &mut String, name: &str, items: &[T], namespace: Option<&str>, write: impl Fn(&mut String, &T)) {
    write_start(out, name, &[], namespace);
    if items.is_empty() {
        out.push_str("/>");
        return;
    }
    out.push('>');
    items.iter().for_each(|item| write(out, item));
    write_end(out, name);
}

fn write_text(out: &mut String, name: &str, text: &str, namespace: Option<&str>) {
    write_start(out, name, &[], namespace);
    out.push('>');
    escape_into(out, text, false);
    write_end(out, name);
}

fn write_object(out: &mut String, name: &str, fields: &Fields, namespace: Option<&str>) {
    let mut attributes: Vec<_> = fields.iter().filter(|(_, value)| is_attribute(value)).collect();
    attributes.sort_by_key(|(key, _)| *key);
    write_start(out, name, &attributes, namespace);
    if attributes.len() == fields.len() {
        out.push_str("/>");
        return;
    }
    out.push('>');
    for (key, value) in fields {
        write_element(out, key, value, None);
    }
    write_end(out, name);
}

fn is_attribute(value: &Value) -> bool {
    matches!(value, Value::Attribute(_) | Value::Word(_) | Value::Absent | Value::Code(_) | Value::Number(_))
}

/// A start tag up to where it closes. The namespace comes last, which is its place in the alphabet.
fn write_start(out: &mut String, name: &str, attributes: &[&(&'static str, Value)], namespace: Option<&str>) {
    out.push('<');
    out.push_str(name);
    for (key, value) in attributes {
        out.push(' ');
        out.push_str(key);
        out.push_str("=\"");
        match value {
            Value::Attribute(text) => escape_into(out, text, true),
            Value::Word(word) => out.push_str(word),
            Value::Code(code) => out.push_str(&code.to_string()),
            Value::Number(number) => out.push_str(&number.to_string()),
            Value::Absent => out.push_str("None"),
            Value::Element(_)
            | Value::AbsentElement
            | Value::ElementNumber(_)
            | Value::Flag(_)
            | Value::Object(_)
            | Value::List { .. }
            | Value::Texts { .. } => {}
        }
        out.push('"');
    }
    if let Some(namespace) = namespace {
        out.push_str(" xmlns=\"");
        out.push_str(namespace);
        out.push('"');
    }
}

fn write_end(out: &mut String, name: &str) {
    out.push_str("</");
    out.push_str(name);
    out.push('>');
}

/// Escapes what XML could not give back. A character that XML cannot hold at all (XML 1.0 section 2.2), which a JSON
/// client may have sent in a name, becomes U+FFFD.
fn escape_into(out: &mut String, text: &str, is_attribute: bool) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\r' => out.push_str("&#13;"),
            '\n' if is_attribute => out.push_str("&#10;"),
            '\t' if is_attribute => out.push_str("&#9;"),
            c if is_xml_char(c) => out.push(c),
            _ => out.push(char::REPLACEMENT_CHARACTER),
        }
    }
}

/// Whether XML can hold this character (XML 1.0 section 2.2).
pub(crate) fn is_xml_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(document: &Document) -> [String; 2] {
        [Format::Json, Format::Xml].map(|format| String::from_utf8(document.write(format)).unwrap())
    }

    #[test]
    fn attributes_come_in_alphabetical_order_with_the_namespace_last_and_only_on_the_root() {
        let port = vec![
            ("state", Value::Word("DOWN")),
            ("id", Value::Attribute("p".into())),
            ("attachment", Value::Object(vec![("id", Value::Attribute("a<b>&\"".into()))])),
        ];
        let value = Value::Object(vec![
            ("ports", Value::List { item: "port", objects: vec![port] }),
            ("op-status", Value::Word("UP")),
            ("id", Value::Attribute("n".into())),
            ("name", Value::Absent),
        ]);
        let [json, xml] = both(&Document { root: "network", namespace: Some("ns"), value });
        assert_eq!(
            json,
            r#"{"network": {"ports": [{"state": "DOWN", "id": "p", "attachment": {"id": "a<b>&\""}}], "op-status": "UP", "id": "n", "name": null}}"#
        );
        assert_eq!(
            xml,
            r#"<network id="n" name="None" op-status="UP" xmlns="ns"><ports><port id="p" state="DOWN"><attachment id="a&lt;b&gt;&amp;&quot;"/></port></ports></network>"#
        );
    }

    #[test]
    fn nothing_inside_is_an_empty_element() {
        let empty = Value::List { item: "network", objects: vec![] };
        let [json, xml] = both(&Document { root: "networks", namespace: None, value: empty });
        assert_eq!((json.as_str(), xml.as_str()), (r#"{"networks": []}"#, "<networks/>"));
        let [json, xml] =
            both(&Document { root: "attachment", namespace: Some("ns"), value: Value::Object(Vec::new()) });
        assert_eq!((json.as_str(), xml.as_str()), (r#"{"attachment": {}}"#, r#"<attachment xmlns="ns"/>"#));
    }

    #[test]
    fn what_xml_cannot_hold_is_replaced_and_what_a_reader_would_change_is_escaped() {
        let text: Text = "a\u{1}\u{fffe}\t\r\né\u{1f980}".into();
        let fields = vec![("id", Value::Attribute(text.clone())), ("detail", Value::Element(text))];
        let [json, xml] = both(&Document { root: "x", namespace: None, value: Value::Object(fields) });
        assert_eq!(
            xml,
            "<x id=\"a\u{fffd}\u{fffd}&#9;&#13;&#10;é\u{1f980}\"><detail>a\u{fffd}\u{fffd}\t&#13;\né\u{1f980}</detail></x>"
        );
        assert!(json.is_ascii());
    }
}
