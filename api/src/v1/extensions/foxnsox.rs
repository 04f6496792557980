//! The original's extension for tests, which has one of each kind. Served only to replay recordings of it.

use super::{Amendment, Extension, NamedAction, legacy};
use crate::document::Value;
use crate::v1::route::Row;
use crate::v1::{Answer, Call};

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
            run: |_, tweedle| Ok(legacy::said(&format!("Tweedle {} Added.", name_of(tweedle)))),
        },
        NamedAction {
            collection: "dummy_resources",
            name: "FOXNSOX:delete_tweedle",
            run: |_, tweedle| Ok(legacy::said(&format!("Tweedle {} Deleted.", name_of(tweedle)))),
        },
    ],
    amendments: &[Amendment { method: "GET", path: "/tenants/{tenant}/networks/{network}", amend: add_goose }],
};

fn name_of(tweedle: &serde_json::Value) -> &str {
    tweedle["name"].as_str().unwrap_or_default()
}

/// A network asked for with `?chewing=gum` has it.
fn add_goose(call: &Call<'_>, answer: &mut Answer) {
    let chewing = call.request.query.iter().find(|(key, _)| key == "chewing");
    if let (Answer::Told(_, Value::Object(fields)), Some((_, value))) = (answer, chewing) {
        fields.push(("FOXNSOX:googoose", Value::Attribute(value.as_str().into())));
    }
}
