//! What a body holds: its fields with what they mean, as a JSON schema and as an example. Pure.
//!
//! A [`Shape`] becomes a document of the API by its fields' examples; the document's own writer makes JSON and XML of it, so
//! that attributes and elements are where the service has them.

use super::super::Version;
use crate::address_pair::PAIRS_MAX;
use crate::document::{Document, Fields, Value};
use crate::model::TEXT_BYTES_MAX;
use serde_json::{Map, json};

/// A MAC of one station, as a pattern.
const STATION: &str = "^[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$";

/// What a body holds.
#[derive(Clone, Copy)]
pub(super) enum Shape {
    Object(&'static [Field]),
    List {
        item: &'static str,
        fields: &'static [Field],
    },
    /// Yes or no.
    Flag,
}

/// A field of an object.
#[derive(Clone, Copy)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) need: Need,
    pub(super) about: &'static str,
}

/// When a field is there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Always; without it a request is refused.
    Always,
    /// Sometimes.
    Maybe,
    /// Under v1.1 always, under v1.0 never.
    SinceV1_1,
}

/// What a field holds, with an example.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// A text; in XML an attribute.
    Attribute(&'static str),
    /// A text that must not be empty; in XML an attribute.
    Filled(&'static str),
    /// A text or null; in XML an attribute.
    MaybeText(&'static str),
    /// A text; in XML an element.
    Element(&'static str),
    /// A text or null; in XML an element.
    MaybeElement(&'static str),
    /// One of these words, the first as example; in XML an attribute.
    Word(&'static [&'static str]),
    /// A port's state as a client may give it.
    State,
    /// Anything but null; a text as example; in XML an attribute.
    Anything(&'static str),
    /// A count; in XML an attribute.
    Count,
    Object(&'static [Field]),
    /// Objects, each an element of this name in XML.
    List(&'static str, &'static [Field]),
    /// Texts, each an element of this name in XML.
    Texts(&'static str, &'static [&'static str]),
    /// What a port may send from, in a request.
    Pairs,
    /// Texts in a request: a list, or one text with commas between.
    TextsOrText(&'static str),
}

/// For which text an example is made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Text {
    /// An answer in either format, a request in JSON.
    Answer,
    /// A request in XML, where a list is one text.
    RequestInXml,
}

/// For whom a schema is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// More attributes than these are ignored.
    Request,
    /// There are no others.
    Answer,
}

impl Shape {
    /// The example.
    pub(super) fn document(
        &self,
        root: &'static str,
        namespace: Option<&'static str>,
        version: Version,
        text: Text,
    ) -> Document {
        let value = match self {
            Shape::Object(fields) => Value::Object(example(fields, version, text)),
            Shape::List { item, fields } => Value::List { item, objects: vec![example(fields, version, text)] },
            Shape::Flag => Value::Flag(true),
        };
        Document { root, namespace, value }
    }

    /// The schema of what stands behind the root key in JSON; of the root element in XML.
    pub(super) fn schema(&self, version: Version, side: Side) -> serde_json::Value {
        match self {
            Shape::Object(fields) => object_schema(fields, version, side),
            Shape::List { item, fields } => {
                let mut items = object_schema(fields, version, side);
                items["xml"] = json!({"name": item});
                json!({"type": "array", "items": items})
            }
            Shape::Flag => json!({"type": "boolean"}),
        }
    }

    /// Its fields, and those inside them, as a page lists them: with the depth of each.
    pub(super) fn fields(&self, version: Version) -> Vec<(usize, &'static Field)> {
        let mut found = Vec::new();
        if let Shape::Object(fields) | Shape::List { fields, .. } = self {
            collect(fields, version, 0, &mut found);
        }
        found
    }
}

fn collect(fields: &'static [Field], version: Version, depth: usize, found: &mut Vec<(usize, &'static Field)>) {
    for field in fields.iter().filter(|field| field.is_in(version)) {
        found.push((depth, field));
        if let Kind::Object(inner) | Kind::List(_, inner) = field.kind {
            collect(inner, version, depth + 1, found);
        }
    }
}

impl Field {
    /// Whether a version has it.
    pub(super) fn is_in(&self, version: Version) -> bool {
        self.need != Need::SinceV1_1 || version == Version::V1_1
    }
}

fn example(fields: &[Field], version: Version, text: Text) -> Fields {
    fields
        .iter()
        .filter(|field| field.is_in(version))
        .map(|field| (field.name, field.kind.example(version, text)))
        .collect()
}

fn object_schema(fields: &[Field], version: Version, side: Side) -> serde_json::Value {
    let fields = || fields.iter().filter(|field| field.is_in(version));
    let properties: Map<_, _> = fields().map(|field| (field.name.to_owned(), field.schema(version, side))).collect();
    let required: Vec<_> = fields().filter(|field| field.need != Need::Maybe).map(|field| field.name).collect();
    let mut schema = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    if side == Side::Answer {
        schema["additionalProperties"] = json!(false);
    }
    schema
}

impl Field {
    fn schema(&self, version: Version, side: Side) -> serde_json::Value {
        let mut schema = self.kind.schema(version, side);
        if !self.about.is_empty() {
            schema["description"] = json!(self.about);
        }
        if self.kind.is_attribute() {
            schema["xml"] = json!({"attribute": true});
        }
        schema
    }
}

impl Kind {
    fn is_attribute(self) -> bool {
        matches!(
            self,
            Kind::Attribute(_)
                | Kind::Filled(_)
                | Kind::MaybeText(_)
                | Kind::Word(_)
                | Kind::State
                | Kind::Anything(_)
                | Kind::Count
        )
    }

    fn example(self, version: Version, text: Text) -> Value {
        match self {
            Kind::Attribute(example) | Kind::Filled(example) | Kind::MaybeText(example) | Kind::Anything(example) => {
                Value::Attribute(example.into())
            }
            Kind::Element(example) | Kind::MaybeElement(example) => Value::Element(example.into()),
            Kind::Word(words) => Value::Word(words.first().copied().unwrap_or_default()),
            Kind::State => Value::Word("ACTIVE"),
            Kind::Count => Value::Number(0),
            Kind::Object(fields) => Value::Object(example(fields, version, text)),
            Kind::List(item, fields) => Value::List { item, objects: vec![example(fields, version, text)] },
            Kind::Texts(item, texts) => Value::Texts { item, texts: texts.iter().map(|&text| text.into()).collect() },
            Kind::Pairs => {
                let pair = [("mac_address", "52:54:00:00:00:02"), ("ip_address", "10.0.0.2")];
                let pair = pair.map(|(name, example)| (name, Value::Attribute(example.into())));
                Value::List { item: "pair", objects: vec![pair.into()] }
            }
            Kind::TextsOrText(example) if text == Text::RequestInXml => Value::Element(example.into()),
            Kind::TextsOrText(example) => Value::Texts { item: "item", texts: vec![example.into()] },
        }
    }

    fn schema(self, version: Version, side: Side) -> serde_json::Value {
        let text = match side {
            Side::Answer => json!({"type": "string"}),
            // Bytes are counted in the service, characters here; a NUL is refused.
            Side::Request => json!({"type": "string", "maxLength": TEXT_BYTES_MAX, "pattern": "^[^\\u0000]*$"}),
        };
        match self {
            Kind::Attribute(_) | Kind::Element(_) => text,
            Kind::Filled(_) => {
                let mut text = text;
                text["minLength"] = json!(1);
                text
            }
            Kind::MaybeText(_) | Kind::MaybeElement(_) => json!({"type": ["string", "null"]}),
            Kind::Word(words) => json!({"type": "string", "enum": words}),
            Kind::State => json!({"type": ["string", "null"], "enum": ["ACTIVE", "DOWN", "", null]}),
            Kind::Anything(_) => json!({"type": ["string", "number", "boolean", "object", "array"]}),
            Kind::Count => json!({"type": "integer", "minimum": 0}),
            Kind::Object(fields) => object_schema(fields, version, side),
            Kind::List(item, fields) => Shape::List { item, fields }.schema(version, side),
            Kind::Texts(item, _) => json!({"type": "array", "items": {"type": "string", "xml": {"name": item}}}),
            Kind::Pairs => json!({"type": ["array", "null"], "maxItems": PAIRS_MAX, "items": {
                "type": "object",
                "properties": {
                    "mac_address": {
                        "type": "string", "pattern": STATION, "description": "A station's address; not zero.",
                        "xml": {"attribute": true},
                    },
                    "ip_address": {
                        "type": ["string", "null"], "description": "An IPv4 or IPv6 address, or a prefix with its length.",
                        "xml": {"attribute": true},
                    },
                },
                "required": ["mac_address"],
                "xml": {"name": "pair"},
            }}),
            Kind::TextsOrText(_) => json!({"anyOf": [{"type": "array", "items": text}, {"type": "string"}]}),
        }
    }
}
