//! What a request's body says (specification sections 5, 6.3 and 9; contract: API input). Pure.
//!
//! Attributes nobody knows are ignored, because Nova sends them. Texts are checked here, once: after this they are
//! strings without NUL of at most [`TEXT_BYTES_MAX`] bytes.

use crate::model::{TEXT_BYTES_MAX, Text};
use serde_json::{Map, Value};

/// The state of a port whose creator or updater names none.
const STATE_DEFAULT: &str = "DOWN";
/// A key beside the resource that names what the path names; the original cannot take it.
const TENANT_KEY: &str = "tenant_id";

/// Why a request's text is refused with 400.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BadRequest {
    /// No body where one is required, no object, one that names a tenant of its own; or a path with a bad tenant.
    Unusable,
    /// Not JSON.
    Malformed,
    /// The object has no such resource, or it is no object.
    NoResource(&'static str),
    /// A required attribute is absent or null.
    NotSpecified(&'static str),
    /// An attribute is not text.
    NotText(&'static str),
    /// An attribute is longer than [`TEXT_BYTES_MAX`].
    TooLong(&'static str),
    /// An attribute has a NUL character.
    HasNul(&'static str),
}

/// Whether a request must have a body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Required {
    Yes,
    No,
}

/// The name in a network's body; the empty one is none.
pub(super) fn network_name(body: &[u8]) -> Result<Option<Text>, BadRequest> {
    let body = parse(body)?;
    let name = text(resource(&body, "network")?, "name")?.ok_or(BadRequest::NotSpecified("name"))?;
    Ok((!name.is_empty()).then(|| name.into()))
}

/// The state in a port's body; absent, null and empty are DOWN.
pub(super) fn port_state(body: &[u8], required: Required) -> Result<Text, BadRequest> {
    if body.is_empty() && required == Required::No {
        return Ok(STATE_DEFAULT.into());
    }
    let body = parse(body)?;
    let state = text(resource(&body, "port")?, "state")?.filter(|state| !state.is_empty());
    Ok(state.unwrap_or(STATE_DEFAULT).into())
}

/// The id in an attachment's body.
pub(super) fn attachment_id(body: &[u8]) -> Result<Text, BadRequest> {
    let body = parse(body)?;
    let id = text(resource(&body, "attachment")?, "id")?.filter(|id| !id.is_empty());
    id.map(Text::from).ok_or(BadRequest::NotSpecified("id"))
}

fn parse(body: &[u8]) -> Result<Map<String, Value>, BadRequest> {
    if body.is_empty() {
        return Err(BadRequest::Unusable);
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) if !object.contains_key(TENANT_KEY) => Ok(object),
        Ok(_) => Err(BadRequest::Unusable),
        Err(_) => Err(BadRequest::Malformed),
    }
}

fn resource<'a>(body: &'a Map<String, Value>, name: &'static str) -> Result<&'a Map<String, Value>, BadRequest> {
    body.get(name).and_then(Value::as_object).ok_or(BadRequest::NoResource(name))
}

/// The text of an attribute; absent and null are `None`. Numbers and booleans are refused, not turned into text
/// (contract: API input); the original did the latter.
fn text<'a>(resource: &'a Map<String, Value>, name: &'static str) -> Result<Option<&'a str>, BadRequest> {
    match resource.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.len() > TEXT_BYTES_MAX => Err(BadRequest::TooLong(name)),
        Some(Value::String(text)) if text.contains('\0') => Err(BadRequest::HasNul(name)),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(BadRequest::NotText(name)),
    }
}
