//! `Cisco Port Profile`: a name for how a port is to be treated, by the name of a QoS level, and the ports it is associated
//! with. Stored and shown; what it asks for is applied when the switch has rates and classes to apply.
//!
//! A port that is gone is no longer associated, whenever it went: associations are told only of ports that are there, but
//! in the original's dialect, which tells what it was told.

use super::legacy::{self, BodyFormat, LegacyFault, Params};
use super::{Extension, PROFILE_ACTIONS, refuse_hidden};
use crate::document::{Fields, Value};
use crate::model::{NetworkId, PortId, Text};
use crate::plugin::{Fault, GetPortError};
use crate::policy::Action;
use crate::v1::route::Row;
use crate::v1::{Answer, Call, Dialect, Handler, Refusal};
use serde::{Deserialize, Serialize};

/// A port profile.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct PortProfile {
    pub(super) name: Text,
    qos_name: Text,
    pub(super) ports: Vec<AssociatedPort>,
}

/// A port that a profile is associated with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct AssociatedPort {
    network: NetworkId,
    pub(super) port: PortId,
}

/// Ports of one profile. An association costs what the record has, and is for a handful.
const PORTS_MAX: usize = 4096;

const COLLECTION: &str = "/extensions/csco/tenants/{tenant}/portprofiles";
const MEMBER: &str = "/extensions/csco/tenants/{tenant}/portprofiles/{profile}";
const ASSOCIATE: &str = "/extensions/csco/tenants/{tenant}/portprofiles/{profile}/associate_portprofile";
const DISASSOCIATE: &str = "/extensions/csco/tenants/{tenant}/portprofiles/{profile}/disassociate_portprofile";
const ROWS: &[Row<Handler>] = &[
    Row::new("GET", COLLECTION, list),
    Row::new("POST", COLLECTION, create),
    Row::new("GET", MEMBER, show),
    Row::new("PUT", MEMBER, update),
    Row::new("DELETE", MEMBER, delete),
    Row::new("PUT", ASSOCIATE, associate),
    Row::new("PUT", DISASSOCIATE, disassociate),
];

pub(super) const EXTENSION: Extension = Extension {
    name: "Cisco Port Profile",
    alias: "Cisco Port Profile",
    description: "Portprofile include QoS information",
    namespace: "http://docs.ciscocloud.com/api/ext/portprofile/v1.0",
    updated: "2011-07-23T13:25:27-06:00",
    is_for: |_, _| true,
    rows: ROWS,
    actions: &[],
    amendments: &[],
};

pub(in crate::v1) const NOT_FOUND: LegacyFault = LegacyFault {
    code: 450,
    name: "PortprofileNotFound",
    reason: Some("Portprofile Not Found"),
    message: "Unable to find a Portprofile with the specified identifier.",
};
/// The original has the name and failed with 500 before it came to use it.
pub(in crate::v1) const IN_USE: LegacyFault = LegacyFault {
    code: 421,
    name: "PortprofileInUse",
    reason: Some("Portprofile in Use"),
    message: "Unable to remove the Portprofile: ports are associated with it.",
};

fn list(call: &Call<'_>) -> Result<Answer, Refusal> {
    let is_seen = call.may(Action::GetProfile);
    let all = if is_seen { call.extensions.kept.profiles.of(call.tenant()) } else { Vec::new() };
    let objects = all.into_iter().map(|(id, _)| brief(id)).collect();
    Ok(legacy::told("portprofiles", Value::List { item: "portprofile", objects }, call))
}

fn create(call: &Call<'_>) -> Result<Answer, Refusal> {
    let (name, qos_name) = read(call)?;
    call.check(Action::ChangeProfile)?;
    let make = |_: &str| PortProfile { name, qos_name, ports: Vec::new() };
    let id = call.extensions.kept.profiles.create(call.tenant(), make);
    let id = id.map_err(|why| legacy::refuse_record(why, NOT_FOUND, call))?;
    call.made(&id);
    Ok(one(brief(id), call))
}

fn show(call: &Call<'_>) -> Result<Answer, Refusal> {
    let profile = find(call).filter(|_| call.may(Action::GetProfile));
    full(call, &profile.ok_or_else(|| legacy::refuse(NOT_FOUND, call))?)
}

/// Gives it another name, unless that is empty. The QoS level stays, as in the original, though it must be sent.
fn update(call: &Call<'_>) -> Result<Answer, Refusal> {
    let (name, _) = read(call)?;
    refuse_hidden(call, PROFILE_ACTIONS, NOT_FOUND, find(call).is_some())?;
    full(call, &change(call, |profile| legacy::rename(&mut profile.name, name))?)
}

fn delete(call: &Call<'_>) -> Result<Answer, Refusal> {
    let profile = find(call);
    refuse_hidden(call, PROFILE_ACTIONS, NOT_FOUND, profile.is_some())?;
    if !ports(call, profile.iter().flat_map(|profile| &profile.ports))?.is_empty() {
        return Err(legacy::refuse(IN_USE, call));
    }
    let gone = call.extensions.kept.profiles.remove(call.tenant(), call.ids[1]);
    gone.map(|()| legacy::done(call)).map_err(|why| legacy::refuse_record(why, NOT_FOUND, call))
}

fn associate(call: &Call<'_>) -> Result<Answer, Refusal> {
    let place = read_place(call)?;
    refuse_hidden(call, PROFILE_ACTIONS, NOT_FOUND, find(call).is_some())?;
    if !is_there(call, &place)? {
        return Err(legacy::refuse(legacy::PORT_NOT_FOUND, call));
    }
    call.attaches(&place.port);
    // In the original a port alone is what is associated, whatever network is named.
    let is_strict = call.request.dialect == Dialect::StrictEssex;
    let is_same = |other: &AssociatedPort| if is_strict { other.port == place.port } else { *other == place };
    let profile = change(call, |profile| {
        if !profile.ports.iter().any(is_same) {
            // Those that went make room.
            profile.ports.retain(|port| is_there(call, port).unwrap_or(true));
            if profile.ports.len() < PORTS_MAX {
                profile.ports.push(place.clone());
            }
        }
    })?;
    let is_kept = profile.ports.iter().any(is_same);
    if is_kept { Ok(legacy::done(call)) } else { Err(legacy::refuse(legacy::TOO_MANY, call)) }
}

fn disassociate(call: &Call<'_>) -> Result<Answer, Refusal> {
    let place = read_place(call)?;
    refuse_hidden(call, PROFILE_ACTIONS, NOT_FOUND, find(call).is_some())?;
    change(call, |profile| profile.ports.retain(|other| other.port != place.port))?;
    Ok(legacy::done(call))
}

fn find(call: &Call<'_>) -> Option<PortProfile> {
    call.extensions.kept.profiles.get(call.tenant(), call.ids[1])
}

fn change(call: &Call<'_>, change: impl FnOnce(&mut PortProfile)) -> Result<PortProfile, Refusal> {
    let changed = call.extensions.kept.profiles.update(call.tenant(), call.ids[1], change);
    changed.map_err(|why| legacy::refuse_record(why, NOT_FOUND, call))
}

fn read(call: &Call<'_>) -> Result<(Text, Text), Refusal> {
    let params = Params::read(call, BodyFormat::Declared, "portprofile", &["portprofile_name", "qos_name"])?;
    Ok((params.text("portprofile_name", call)?, params.text("qos_name", call)?))
}

fn read_place(call: &Call<'_>) -> Result<AssociatedPort, Refusal> {
    let params = Params::read(call, BodyFormat::Negotiated, "portprofile", &["network-id", "port-id"])?;
    let id = |name| params.text(name, call).map(|id| Text::from(id.trim()));
    Ok(AssociatedPort { network: id("network-id")?, port: id("port-id")? })
}

/// Those of the ports that are there.
fn ports<'a>(call: &Call<'_>, ports: impl Iterator<Item = &'a AssociatedPort>) -> Result<Vec<PortId>, Refusal> {
    let mut found = Vec::new();
    for place in ports {
        if is_there(call, place)? {
            found.push(place.port.clone());
        }
    }
    Ok(found)
}

/// Whether a port is there. The original did not look, so in its dialect any is.
fn is_there(call: &Call<'_>, place: &AssociatedPort) -> Result<bool, Refusal> {
    if call.request.dialect == Dialect::StrictEssex {
        return Ok(true);
    }
    match call.plugin.get_port_details(call.tenant(), &place.network, &place.port) {
        Ok(_) => Ok(true),
        Err(GetPortError::NetworkNotFound(_) | GetPortError::PortNotFound(_)) => Ok(false),
        Err(error) => Err(Refusal::Fault(Fault::from(error))),
    }
}

fn one(fields: Fields, call: &Call<'_>) -> Answer {
    legacy::told("portprofiles", Value::Object(vec![("portprofile", Value::Object(fields))]), call)
}

fn brief(id: Text) -> Fields {
    vec![("id", Value::Element(id))]
}

fn full(call: &Call<'_>, profile: &PortProfile) -> Result<Answer, Refusal> {
    let fields = vec![
        ("id", Value::Element(call.ids[1].into())),
        ("name", legacy::element(&profile.name)),
        ("qos_name", legacy::element(&profile.qos_name)),
        ("assignment", Value::Texts { item: "item", texts: ports(call, profile.ports.iter())? }),
    ];
    Ok(one(fields, call))
}
