//! The older format that the original's extensions speak: no namespaces, a body only with its Content-Type,
//! faults without detail, framework pages as success. Pure.

use super::records::NotKept;
use crate::document::{Document, Value};
use crate::format::Format;
use crate::model::{TEXT_BYTES_MAX, Text};
use crate::plugin::Fault;
use crate::reply::Reply;
use crate::v1::{Answer, Call, Dialect, Refusal, essex};
use crate::{json, xml};
use axum::http::StatusCode;
use serde_json::Map;

/// The message of a request whose text is wrong.
const NOT_COMPLIED: &str =
    "The server could not comply with the request since it is either malformed or otherwise incorrect.";
/// Faults in XML name their charset, successes do not.
const XML_FAULT: &str = "application/xml; charset=UTF-8";

/// A fault of the older format.
#[derive(Clone, Copy, Debug)]
pub(in crate::v1) struct LegacyFault {
    /// The status.
    pub(super) code: u16,
    /// The one key of the body.
    pub(super) name: &'static str,
    /// The reason phrase; `None`: the standard one.
    pub(super) reason: Option<&'static str>,
    /// What the body says.
    pub(super) message: &'static str,
}

/// A body that is not what is wanted.
pub(in crate::v1) const MALFORMED: LegacyFault =
    LegacyFault { code: 400, name: "malformedRequest", reason: None, message: NOT_COMPLIED };
/// The older format has no name for it.
pub(in crate::v1) const PORT_NOT_FOUND: LegacyFault = LegacyFault {
    code: 430,
    name: "quantumServiceFault",
    reason: Some("Port not Found"),
    message: "Unable to find a port with the specified identifier.",
};
/// Not in the original, which had no bound.
pub(in crate::v1) const TOO_MANY: LegacyFault = LegacyFault {
    code: 409,
    name: "quantumServiceFault",
    reason: None,
    message: "The tenant has as many of these as it may have.",
};

/// 200 with a document.
pub(super) fn told(root: &'static str, value: Value, call: &Call<'_>) -> Answer {
    let document = Document { root, namespace: None, value };
    Answer::Whole(Reply::new(StatusCode::OK, call.format.media_type(), document.write(call.format)))
}

/// A text that a client gave; an empty one was none to the original, as a network's name is.
pub(super) fn attribute(text: &Text) -> Value {
    if text.is_empty() { Value::Absent } else { Value::Attribute(text.clone()) }
}

/// The same, in XML an element.
pub(super) fn element(text: &Text) -> Value {
    if text.is_empty() { Value::AbsentElement } else { Value::Element(text.clone()) }
}

/// Gives something another name. The original took an empty one for none.
pub(super) fn rename(name: &mut Text, new: Text) {
    if !new.is_empty() {
        *name = new;
    }
}

/// 200 with a text.
pub(super) fn said(text: &str) -> Answer {
    Answer::Whole(Reply::new(StatusCode::OK, "text/html; charset=UTF-8", text.into()))
}

/// 200 with a framework page.
pub(super) fn done(call: &Call<'_>) -> Answer {
    Answer::Whole(Reply::page(StatusCode::OK, call.request.accept.as_deref(), false, "", ""))
}

/// A fault.
pub(super) fn refuse(fault: LegacyFault, call: &Call<'_>) -> Refusal {
    Refusal::Whole(reply(fault, call.format))
}

/// The answer that a fault is.
pub(in crate::v1) fn reply(fault: LegacyFault, format: Format) -> Reply {
    let fields =
        vec![("message", Value::Element(fault.message.into())), ("code", Value::ElementNumber(fault.code.into()))];
    let document = Document { root: fault.name, namespace: None, value: Value::Object(fields) };
    let content_type = if format == Format::Xml { XML_FAULT } else { format.media_type() };
    let status = StatusCode::from_u16(fault.code).expect("the faults' codes are three digits");
    let reply = Reply::new(status, content_type, document.write(format));
    Reply { reason: fault.reason, ..reply }
}

/// Why a record was not written; `not_found` is what its kind calls one that is not there.
pub(super) fn refuse_record(why: NotKept, not_found: LegacyFault, call: &Call<'_>) -> Refusal {
    match why {
        NotKept::NotFound => refuse(not_found, call),
        NotKept::TooMany => refuse(TOO_MANY, call),
        NotKept::StoreFailed(failed) => Refusal::Fault(Fault::StoreFailed(failed)),
    }
}

/// In which format a body is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BodyFormat {
    /// The Content-Type's, which must be one of the two.
    Declared,
    /// The answer's: so with members' actions.
    Negotiated,
}

/// The parameters of a request.
pub(super) struct Params(Map<String, serde_json::Value>);

impl Params {
    /// What the body says under `resource`; all that is `required` is there.
    pub(super) fn read(
        call: &Call<'_>,
        format: BodyFormat,
        resource: &str,
        required: &[&'static str],
    ) -> Result<Params, Refusal> {
        let read = || {
            let content_type = call.request.content_type.as_deref().and_then(|value| value.split(';').next());
            let declared = [Format::Json, Format::Xml].into_iter().find(|it| content_type == Some(it.media_type()));
            let format = if format == BodyFormat::Declared { declared? } else { call.format };
            let mut body: Map<String, serde_json::Value> = match format {
                Format::Json => json::read(&call.request.body)?,
                Format::Xml => [xml::read(&call.request.body)?].into_iter().collect(),
            };
            let Some(serde_json::Value::Object(params)) = body.remove(resource) else { return None };
            let is_there = |name: &&str| params.get(*name).is_some_and(|value| !value.is_null());
            required.iter().all(is_there).then_some(Params(params))
        };
        read().ok_or_else(|| refuse(MALFORMED, call))
    }

    /// A parameter.
    pub(super) fn value(&self, name: &str) -> &serde_json::Value {
        self.0.get(name).unwrap_or(&serde_json::Value::Null)
    }

    /// A parameter that is a text within the bounds of texts. In the original's dialect what else its database made one.
    pub(super) fn text(&self, name: &str, call: &Call<'_>) -> Result<Text, Refusal> {
        let value = self.value(name);
        let stored = match call.request.dialect {
            Dialect::StrictEssex if !value.is_string() => essex::stored(value).map(Text::from),
            _ => text(value),
        };
        stored.ok_or_else(|| refuse(MALFORMED, call))
    }

    /// A parameter that is a list of texts; XML and careless clients write one text with commas or blanks between.
    pub(super) fn texts(&self, name: &str, call: &Call<'_>) -> Result<Vec<Text>, Refusal> {
        let found = match self.value(name) {
            serde_json::Value::Array(items) => items.iter().map(text).collect(),
            serde_json::Value::String(all) => {
                Some(all.split([',', ' ', '\n', '\t']).filter(|part| !part.is_empty()).map(Text::from).collect())
            }
            _ => None,
        };
        found.ok_or_else(|| refuse(MALFORMED, call))
    }
}

/// A parameter that may be anything: the text that the original made of it.
pub(super) fn any_text(value: &serde_json::Value, call: &Call<'_>) -> Result<Text, Refusal> {
    text(&serde_json::Value::String(essex::as_text(value))).ok_or_else(|| refuse(MALFORMED, call))
}

fn text(value: &serde_json::Value) -> Option<Text> {
    value.as_str().filter(|text| text.len() <= TEXT_BYTES_MAX && !text.contains('\0')).map(Text::from)
}
