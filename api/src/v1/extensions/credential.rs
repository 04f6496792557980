//! `Cisco Credential`: names and passwords of devices, for the drivers that come to log in to them.
//!
//! A password comes in and never goes out: it is sealed for its record before anything keeps it, in memory too, and what
//! is told of it is a mask. The original told it in clear. Who may see that there is one is policy, by default admins.

use super::legacy::{self, BodyFormat, LegacyFault, Params};
use super::{Extension, refuse_hidden};
use crate::document::{Fields, Value};
use crate::model::Text;
use crate::policy::Action;
use crate::sealed::SealKey;
use crate::v1::route::Row;
use crate::v1::{Answer, Call, Handler, Refusal};
use serde::{Deserialize, Serialize};

/// A credential.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Credential {
    /// What is told as its name: the user's, and once it was renamed that name, as in the original.
    name: Text,
    credential_name: Text,
    user_name: Text,
    /// The password, sealed for [`place`].
    sealed: String,
}

impl Credential {
    /// Whether this key opens the password of the credential, which has this id.
    pub(super) fn opens(&self, id: &str, key: &SealKey) -> bool {
        key.unseal(&place(id), &self.sealed).is_ok()
    }
}

/// What a password is told as.
const MASK: &str = "********";
/// The policy's actions: to see one, to change one.
const ACTIONS: [Action; 2] = [Action::GetCredential, Action::ChangeCredential];

const COLLECTION: &str = "/extensions/csco/tenants/{tenant}/credentials";
const MEMBER: &str = "/extensions/csco/tenants/{tenant}/credentials/{credential}";
const ROWS: &[Row<Handler>] = &[
    Row::new("GET", COLLECTION, list),
    Row::new("POST", COLLECTION, create),
    Row::new("GET", MEMBER, show),
    Row::new("PUT", MEMBER, update),
    Row::new("DELETE", MEMBER, delete),
];

pub(super) const EXTENSION: Extension = Extension {
    name: "Cisco Credential",
    alias: "Cisco Credential",
    description: "Credential include username and password",
    namespace: "http://docs.ciscocloud.com/api/ext/credential/v1.0",
    updated: "2011-07-25T13:25:27-06:00",
    is_for: |_, config| config.key.is_some(),
    rows: ROWS,
    actions: &[],
    amendments: &[],
};

pub(in crate::v1) const NOT_FOUND: LegacyFault = LegacyFault {
    code: 451,
    name: "CredentialNotFound",
    reason: Some("Credential Not Found"),
    message: "Unable to find a Credential with the specified identifier.",
};

/// For which record a password is sealed.
fn place(id: &str) -> String {
    format!("credential/{id}")
}

fn list(call: &Call<'_>) -> Result<Answer, Refusal> {
    let is_seen = call.may(Action::GetCredential);
    let all = if is_seen { call.extensions.kept.credentials.of(call.tenant()) } else { Vec::new() };
    let objects = all.into_iter().map(|(id, _)| brief(id)).collect();
    Ok(legacy::told("credentials", Value::List { item: "credential", objects }, call))
}

fn create(call: &Call<'_>) -> Result<Answer, Refusal> {
    let params = read(call)?;
    let text = |name| params.text(name, call);
    let (credential_name, user_name, password) = (text("credential_name")?, text("user_name")?, text("password")?);
    call.check(Action::ChangeCredential)?;
    let key = call.extensions.key.as_ref().expect("without a key this extension is not served");
    let make = |id: &str| Credential {
        name: user_name.clone(),
        credential_name,
        user_name,
        sealed: key.seal(&place(id), password.as_bytes()),
    };
    let id = call.extensions.kept.credentials.create(call.tenant(), make);
    let id = id.map_err(|why| legacy::refuse_record(why, NOT_FOUND, call))?;
    call.made(&id);
    Ok(one(brief(id), call))
}

fn show(call: &Call<'_>) -> Result<Answer, Refusal> {
    let credential = find(call).filter(|_| call.may(Action::GetCredential));
    Ok(one(full(call, &credential.ok_or_else(|| legacy::refuse(NOT_FOUND, call))?), call))
}

/// Gives it another name, unless that is empty. User and password stay, as in the original, though they must be sent.
fn update(call: &Call<'_>) -> Result<Answer, Refusal> {
    let name = read(call)?.text("credential_name", call)?;
    refuse_hidden(call, ACTIONS, NOT_FOUND, find(call).is_some())?;
    let changed = call.extensions.kept.credentials.update(call.tenant(), call.ids[1], |credential| {
        legacy::rename(&mut credential.name, name.clone());
        legacy::rename(&mut credential.credential_name, name);
    });
    Ok(one(full(call, &changed.map_err(|why| legacy::refuse_record(why, NOT_FOUND, call))?), call))
}

fn delete(call: &Call<'_>) -> Result<Answer, Refusal> {
    refuse_hidden(call, ACTIONS, NOT_FOUND, find(call).is_some())?;
    let gone = call.extensions.kept.credentials.remove(call.tenant(), call.ids[1]);
    gone.map(|()| legacy::done(call)).map_err(|why| legacy::refuse_record(why, NOT_FOUND, call))
}

fn find(call: &Call<'_>) -> Option<Credential> {
    call.extensions.kept.credentials.get(call.tenant(), call.ids[1])
}

fn read(call: &Call<'_>) -> Result<Params, Refusal> {
    Params::read(call, BodyFormat::Declared, "credential", &["credential_name", "user_name", "password"])
}

fn one(fields: Fields, call: &Call<'_>) -> Answer {
    legacy::told("credentials", Value::Object(vec![("credential", Value::Object(fields))]), call)
}

fn brief(id: Text) -> Fields {
    vec![("id", Value::Attribute(id))]
}

fn full(call: &Call<'_>, credential: &Credential) -> Fields {
    let id = ("id", Value::Attribute(call.ids[1].into()));
    vec![id, ("name", legacy::attribute(&credential.name)), ("password", Value::Element(MASK.into()))]
}
