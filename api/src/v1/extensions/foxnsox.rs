//! The original's extension for tests, which has one of each kind. Served only to replay recordings of it.

use super::{Extension, NamedAction, legacy};
use crate::reply::{Reply, to_json};
use crate::v1::body::BadRequest;
use crate::v1::route::Row;
use crate::v1::{Answer, Refusal, Request, essex};
use serde_json::{Map, Value};

pub(super) const EXTENSION: Extension = Extension {
    name: "Fox In Socks",
    alias: "FOXNSOX",
    description: "The Fox In Socks Extension",
    namespace: "http://www.fox.in.socks/api/ext/pie/v1.0",
    updated: "2011-01-22T13:25:27-06:00",
    is_for: |_, config| config.has_foxnsox,
    rows: &[Row::new("GET", "/foxnsocks", |_| Ok(legacy::said("Try to say this Mr. Knox, sir...")))],
    actions: &[
        NamedAction {
            collection: "dummy_resources",
            name: "FOXNSOX:add_tweedle",
            run: |_, tweedle| said_of(tweedle, "Added"),
        },
        NamedAction {
            collection: "dummy_resources",
            name: "FOXNSOX:delete_tweedle",
            run: |_, tweedle| said_of(tweedle, "Deleted"),
        },
    ],
    amendments: &[Row::new("GET", "/dummy_resources/{id}", add_goose_and_bands)],
};

fn said_of(tweedle: &Value, done: &str) -> Result<Answer, Refusal> {
    let name = essex::in_python(tweedle.get("name").ok_or(BadRequest::NotSpecified("name"))?, false);
    Ok(legacy::said(&format!("Tweedle {name} {done}.")))
}

/// Two keys more in the core's answer if that is JSON, which for want of such a resource is the page that says so.
fn add_goose_and_bands(request: &Request, reply: &mut Reply) {
    let Ok(mut told) = serde_json::from_slice::<Map<String, Value>>(&reply.body) else { return };
    let chewing = request.query.iter().rev().find(|(key, _)| key == "chewing");
    told.insert("FOXNSOX:googoose".into(), chewing.map_or(Value::Null, |(_, value)| value.as_str().into()));
    told.insert("FOXNSOX:big_bands".into(), "Pig Bands!".into());
    reply.body = to_json(&told);
}
