//! `Cisco qos`: QoS levels, a name and a description each, that port profiles refer to by name. They are stored and shown;
//! the switch has no queues to apply them to yet.

use super::legacy::{self, BodyFormat, LegacyFault, Params};
use super::{Extension, PROFILE_ACTIONS, refuse_hidden};
use crate::document::{Fields, Value};
use crate::model::Text;
use crate::policy::Action;
use crate::v1::route::Row;
use crate::v1::{Answer, Call, Handler, Refusal};
use serde::{Deserialize, Serialize};

/// A QoS level.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Qos {
    name: Text,
    description: Text,
}

const COLLECTION: &str = "/extensions/csco/tenants/{tenant}/qoss";
const MEMBER: &str = "/extensions/csco/tenants/{tenant}/qoss/{qos}";
const ROWS: &[Row<Handler>] = &[
    Row::new("GET", COLLECTION, list),
    Row::new("POST", COLLECTION, create),
    Row::new("GET", MEMBER, show),
    Row::new("PUT", MEMBER, update),
    Row::new("DELETE", MEMBER, delete),
];

pub(super) const EXTENSION: Extension = Extension {
    name: "Cisco qos",
    alias: "Cisco qos",
    description: "qos includes qos_name and qos_desc",
    namespace: "http://docs.ciscocloud.com/api/ext/qos/v1.0",
    updated: "2011-07-25T13:25:27-06:00",
    is_for: |_, _| true,
    rows: ROWS,
    actions: &[],
    amendments: &[],
};

pub(in crate::v1) const NOT_FOUND: LegacyFault = LegacyFault {
    code: 452,
    name: "QoSNotFound",
    reason: Some("QoS Not Found"),
    message: "Unable to find a QoS with the specified identifier.",
};

fn list(call: &Call<'_>) -> Result<Answer, Refusal> {
    let all = if call.may(Action::GetProfile) { call.extensions.kept.qos.of(call.tenant()) } else { Vec::new() };
    let objects = all.into_iter().map(|(id, _)| brief(id)).collect();
    Ok(legacy::told("qoss", Value::List { item: "qos", objects }, call))
}

fn create(call: &Call<'_>) -> Result<Answer, Refusal> {
    let (name, description) = read(call)?;
    call.check(Action::ChangeProfile)?;
    let id = call.extensions.kept.qos.create(call.tenant(), |_| Qos { name, description });
    let id = id.map_err(|why| legacy::refuse_record(why, NOT_FOUND, call))?;
    call.made(&id);
    Ok(one(brief(id), call))
}

fn show(call: &Call<'_>) -> Result<Answer, Refusal> {
    let id = call.ids[1];
    let qos = call.extensions.kept.qos.get(call.tenant(), id).filter(|_| call.may(Action::GetProfile));
    Ok(one(full(id, &qos.ok_or_else(|| legacy::refuse(NOT_FOUND, call))?), call))
}

/// Gives it another name, unless that is empty. The description stays, as in the original, though it must be sent.
fn update(call: &Call<'_>) -> Result<Answer, Refusal> {
    let (name, _) = read(call)?;
    let id = call.ids[1];
    refuse_hidden(call, PROFILE_ACTIONS, NOT_FOUND, call.extensions.kept.qos.get(call.tenant(), id).is_some())?;
    let qos = call.extensions.kept.qos.update(call.tenant(), id, |qos| legacy::rename(&mut qos.name, name));
    Ok(one(full(id, &qos.map_err(|why| legacy::refuse_record(why, NOT_FOUND, call))?), call))
}

fn delete(call: &Call<'_>) -> Result<Answer, Refusal> {
    let id = call.ids[1];
    refuse_hidden(call, PROFILE_ACTIONS, NOT_FOUND, call.extensions.kept.qos.get(call.tenant(), id).is_some())?;
    let gone = call.extensions.kept.qos.remove(call.tenant(), id);
    gone.map(|()| legacy::done(call)).map_err(|why| legacy::refuse_record(why, NOT_FOUND, call))
}

/// The description may be an object with rates, as clients send it; it is kept as the text that the original made of it.
fn read(call: &Call<'_>) -> Result<(Text, Text), Refusal> {
    let params = Params::read(call, BodyFormat::Declared, "qos", &["qos_name", "qos_desc"])?;
    Ok((params.text("qos_name", call)?, legacy::any_text(params.value("qos_desc"), call)?))
}

fn one(fields: Fields, call: &Call<'_>) -> Answer {
    legacy::told("qoss", Value::Object(vec![("qos", Value::Object(fields))]), call)
}

fn brief(id: Text) -> Fields {
    vec![("id", Value::Attribute(id))]
}

fn full(id: &str, qos: &Qos) -> Fields {
    let id = ("id", Value::Attribute(id.into()));
    vec![id, ("name", legacy::attribute(&qos.name)), ("description", legacy::element(&qos.description))]
}
