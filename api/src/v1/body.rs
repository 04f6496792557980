//! What a request's body says. Pure.
//!
//! JSON and XML become the same object, so everything after the parser is said once. Attributes nobody knows are
//! ignored, because Nova sends them. Texts are checked here, once: after this they are strings without NUL of at most
//! [`TEXT_BYTES_MAX`] bytes.

use super::{Call, Dialect, essex};
use crate::address_pair::{self, AddressPairs};
use crate::format::Format;
use crate::model::{TEXT_BYTES_MAX, Text};
use crate::plugin::{NetworkRow, PortRow};
use crate::{json, xml};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// The attribute of a port that lists what it may send from.
pub(super) const PAIRS: &str = "allowed_address_pairs";
/// The state of a port whose creator or updater names none.
const STATE_DEFAULT: &str = "DOWN";
/// Keys beside a new network that the original took for parameters of its own.
const NETWORK_CLASHES: [&str; 3] = ["tenant_id", "net_name", "self"];
/// The same beside a new port.
const PORT_CLASHES: [&str; 4] = ["tenant_id", "net_id", "port_state", "self"];

/// Why a request's text is refused with 400.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum BadRequest {
    /// No body where one is required, no object, one that says what the path says; or a path with a bad tenant.
    Unusable,
    /// Neither JSON nor XML, whichever it should be.
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
    /// A port's pairs are no pairs; what is wrong with them.
    Pairs(String),
}

type Object = Map<String, Value>;

/// What a body says, or what is wrong with it that the original did not mind or failed on: it is told only if what the
/// path names is there.
pub(super) type Said<T> = Result<T, BadRequest>;

/// The name of a network to be made; the empty one is none.
pub(super) fn new_network(call: &Call<'_>) -> Result<Option<Text>, BadRequest> {
    let body = parse(call, "network")?;
    let network = resource(&body, "network")?;
    required(network, "name")?;
    refuse_keys(&body, &NETWORK_CLASHES)?;
    name(call, network)
}

/// The new name of a network; the empty one is none. In the original's dialect also what else goes over its row.
pub(super) fn network_update(call: &Call<'_>) -> Result<Said<NetworkRow>, BadRequest> {
    let body = parse(call, "network")?;
    let network = resource(&body, "network")?;
    required(network, "name")?;
    let name = name(call, network);
    Ok(match call.request.dialect {
        Dialect::Plain => name.map(|name| NetworkRow { name, id: None, op_status: None }),
        Dialect::StrictEssex => {
            refuse_keys(network, &essex::NETWORK_CLASHES)?;
            name.map(|name| essex::network_row(network, name))
        }
    })
}

/// The state of a port to be made, without a body DOWN, and its pairs.
pub(super) fn new_port(call: &Call<'_>) -> Result<Said<(Text, AddressPairs)>, BadRequest> {
    if call.request.body.is_empty() {
        return Ok(Ok((STATE_DEFAULT.into(), AddressPairs::default())));
    }
    let body = parse(call, "port")?;
    let port = resource(&body, "port")?;
    refuse_keys(&body, &PORT_CLASHES)?;
    Ok(state(call, port).and_then(|state| Ok((state, pairs(call, port)?.unwrap_or_default()))))
}

/// The new state of a port, and its new pairs if there are to be other ones. In the original's dialect also what else goes
/// over its row.
pub(super) fn port_update(call: &Call<'_>) -> Result<Said<(PortRow, Option<AddressPairs>)>, BadRequest> {
    let body = parse(call, "port")?;
    let port = resource(&body, "port")?;
    let state = state(call, port);
    let row = match call.request.dialect {
        Dialect::Plain => state.map(PortRow::of_state),
        Dialect::StrictEssex => {
            refuse_keys(port, &essex::PORT_CLASHES)?;
            state.map(|state| essex::port_row(port, state))
        }
    };
    Ok(row.and_then(|row| Ok((row, pairs(call, port)?))))
}

/// The id in an attachment's body.
pub(super) fn attachment_id(call: &Call<'_>) -> Result<Said<Text>, BadRequest> {
    let body = parse(call, "attachment")?;
    let attachment = resource(&body, "attachment")?;
    required(attachment, "id")?;
    let id = text(call, attachment, "id", essex::stored);
    Ok(id.and_then(|id| id.filter(|id| !id.is_empty()).map(Text::from).ok_or(BadRequest::NotSpecified("id"))))
}

/// Refuses a body where none belongs: one that is none, and any unless it `is_ignored`.
pub(super) fn no_body(call: &Call<'_>, is_ignored: bool) -> Result<(), BadRequest> {
    if call.request.body.is_empty() {
        return Ok(());
    }
    read(call)?;
    if is_ignored { Ok(()) } else { Err(BadRequest::Unusable) }
}

fn name(call: &Call<'_>, network: &Object) -> Result<Option<Text>, BadRequest> {
    let name = text(call, network, "name", essex::stored)?.ok_or(BadRequest::NotSpecified("name"))?;
    Ok((!name.is_empty()).then(|| name.into()))
}

/// Absent, null and empty are DOWN.
fn state(call: &Call<'_>, port: &Object) -> Result<Text, BadRequest> {
    let state = text(call, port, "state", essex::as_state)?.filter(|state| !state.is_empty());
    Ok(state.map_or(STATE_DEFAULT.into(), Text::from))
}

/// The pairs of a port's body; `None` if it says nothing of them. The original took whatever came and looked at none of it.
fn pairs(call: &Call<'_>, port: &Object) -> Result<Option<AddressPairs>, BadRequest> {
    match (port.get(PAIRS).map(address_pair::read).transpose(), call.request.dialect) {
        (Ok(pairs), _) => Ok(pairs),
        (Err(why), Dialect::Plain) => Err(BadRequest::Pairs(why)),
        (Err(_), Dialect::StrictEssex) => Ok(None),
    }
}

fn parse(call: &Call<'_>, resource: &str) -> Result<Object, BadRequest> {
    if call.request.body.is_empty() {
        return Err(BadRequest::Unusable);
    }
    match read(call)? {
        Value::Object(object) => Ok(object),
        // A body of null says as much as an empty resource.
        Value::Null => Ok([(resource.to_owned(), Value::Object(Object::new()))].into_iter().collect()),
        _ => Err(BadRequest::Unusable),
    }
}

fn read(call: &Call<'_>) -> Result<Value, BadRequest> {
    let body = &call.request.body;
    match call.format {
        Format::Json => json::read(body).ok_or(BadRequest::Malformed),
        Format::Xml => {
            let root = xml::read(body).ok_or(BadRequest::Malformed)?;
            Ok(Value::Object([root].into_iter().collect()))
        }
    }
}

fn required(resource: &Object, name: &'static str) -> Result<(), BadRequest> {
    match resource.get(name) {
        None | Some(Value::Null) => Err(BadRequest::NotSpecified(name)),
        Some(_) => Ok(()),
    }
}

fn refuse_keys(object: &Object, keys: &[&str]) -> Result<(), BadRequest> {
    if keys.iter().any(|key| object.contains_key(*key)) { Err(BadRequest::Unusable) } else { Ok(()) }
}

fn resource<'a>(body: &'a Object, name: &'static str) -> Result<&'a Object, BadRequest> {
    body.get(name).and_then(Value::as_object).ok_or(BadRequest::NoResource(name))
}

/// The text of an attribute; absent and null are `None`. Numbers and booleans are refused (`api/DEVIATIONS.md`); the
/// original made them texts, and in its dialect `as_text` does.
fn text<'a>(
    call: &Call<'_>,
    resource: &'a Object,
    name: &'static str,
    as_text: fn(&Value) -> Option<Cow<'static, str>>,
) -> Result<Option<Cow<'a, str>>, BadRequest> {
    match resource.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.len() > TEXT_BYTES_MAX => Err(BadRequest::TooLong(name)),
        Some(Value::String(text)) if text.contains('\0') => Err(BadRequest::HasNul(name)),
        Some(Value::String(text)) => Ok(Some(text.into())),
        Some(value) => match call.request.dialect {
            Dialect::Plain => Err(BadRequest::NotText(name)),
            Dialect::StrictEssex => as_text(value).map(Some).ok_or(BadRequest::NotText(name)),
        },
    }
}
