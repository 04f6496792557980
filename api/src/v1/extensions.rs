//! Extensions of the API, as Quantum 2012.1 had them: `/extensions`, and what each extension brings.
//!
//! An extension is one module with its [`Extension`]: what it tells of itself, its rows (*resource* extension), what it
//! does to things of others by name (*action* extension), and what it adds to the core's answers (*request* extension).
//! [`ALL`] lists them; nothing else knows one by name. What they keep is in [`records`], what the older format of their
//! bodies and faults is in [`legacy`].
//!
//! Which are served is decided once, at start: those that the settings name, else all that the plugin can carry. In the
//! original's dialect none is told in the list unless the settings name it, because the originals of `native` and `fake`
//! told none.

pub(super) mod credential;
mod foxnsox;
pub(super) mod legacy;
mod multiport;
mod novatenant;
pub(super) mod portprofile;
mod portstats;
pub(super) mod qos;
mod records;

use super::body::BadRequest;
use super::route::{self, Row};
use super::{Answer, Call, Dialect, Handler, Refusal, Request, TABLES};
use crate::document::{Document, Fields, Value};
use crate::format::Format;
use crate::model::Text;
use crate::plugin::Plugin;
use crate::plugins::native::Keeper;
use crate::policy::Action;
use crate::reply::{Reply, to_json};
use crate::sealed::SealKey;
use crate::store::StoreError;
use crate::{json, xml};
use axum::http::StatusCode;
use credential::Credential;
use legacy::LegacyFault;
use portprofile::PortProfile;
use qos::Qos;
use records::{Record, Records};
use std::collections::BTreeMap;
use std::fmt;

/// An extension.
pub(super) struct Extension {
    /// What it is called.
    pub(super) name: &'static str,
    /// By what it is asked for.
    pub(super) alias: &'static str,
    /// One sentence.
    pub(super) description: &'static str,
    /// Where its format is from.
    pub(super) namespace: &'static str,
    /// When that was changed last.
    pub(super) updated: &'static str,
    /// Whether plugin and host have what it needs.
    pub(super) is_for: fn(&dyn Plugin, &ExtensionsConfig) -> bool,
    /// Its resources.
    pub(super) rows: &'static [Row<Handler>],
    /// What it can do to things of other collections.
    pub(super) actions: &'static [NamedAction],
    /// What it adds to answers of others, the page of what is not there included.
    pub(super) amendments: &'static [Row<Amend>],
}

/// Something to be done by `POST /{collection}/{id}/action`.
pub(super) struct NamedAction {
    /// The collection.
    pub(super) collection: &'static str,
    /// The key of the body that asks for it, the extension's alias first.
    pub(super) name: &'static str,
    /// What does it; the body's value behind the key.
    pub(super) run: fn(&Call<'_>, &serde_json::Value) -> Result<Answer, Refusal>,
}

/// Adds something to an answer.
pub(super) type Amend = fn(&Request, &mut Reply);

/// All there are.
const ALL: &[&Extension] = &[
    &portstats::EXTENSION,
    &portprofile::EXTENSION,
    &qos::EXTENSION,
    &novatenant::EXTENSION,
    &multiport::EXTENSION,
    &credential::EXTENSION,
    &foxnsox::EXTENSION,
];

/// Where records are in the store, by kind.
const PROFILES: &str = "portprofile";
const QOS: &str = "qos";
const CREDENTIALS: &str = "credential";
/// The policy's actions on the first two: to see one, to change one.
const PROFILE_ACTIONS: [Action; 2] = [Action::GetProfile, Action::ChangeProfile];

/// The rows of `/extensions` itself.
const ROWS: &[Row<Handler>] = &[Row::new("GET", "/extensions", list), Row::new("GET", "/extensions/{alias}", show)];

/// What extensions keep for tenants.
struct Kept {
    profiles: Records<PortProfile>,
    qos: Records<Qos>,
    credentials: Records<Credential>,
}

/// Those that are served, with what they need.
pub struct Extensions {
    served: Vec<&'static Extension>,
    /// The settings named them.
    is_named: bool,
    tables: Vec<&'static [Row<Handler>]>,
    kept: Kept,
    /// What secrets are sealed with.
    key: Option<SealKey>,
    host: Text,
}

/// What the settings say, and where things are kept.
#[derive(Default)]
pub struct ExtensionsConfig {
    /// The aliases of those to serve; `None`: all that the plugin can carry.
    pub named: Option<Vec<String>>,
    /// Where they keep what they keep; `None`: in memory.
    pub keeper: Option<Keeper>,
    /// What secrets are sealed with; `None`: no extension that keeps any.
    pub key: Option<SealKey>,
    /// This host's name.
    pub host: String,
    /// Whether there is also the one that the original has for its tests: when recordings of it are replayed.
    pub has_foxnsox: bool,
}

/// Why there are no extensions.
#[derive(Debug, thiserror::Error)]
pub enum ExtensionsError {
    /// The settings name one that does not exist, or that the plugin cannot carry.
    #[error("there is no extension {name:?} for this plugin; it has: {}", .known.join(", "))]
    Unknown {
        /// What was named.
        name: String,
        /// What could be.
        known: Vec<&'static str>,
    },
    /// What they kept cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whether a key opens what extensions keep in a store: the same of one that nobody serves.
pub fn opens_secrets_in(extras: &BTreeMap<(String, String), Vec<u8>>, key: &SealKey) -> bool {
    let Some(((_, id), value)) = extras.iter().find(|((kind, _), _)| kind == CREDENTIALS) else { return true };
    // One that cannot be read at all is told when extensions are served.
    serde_json::from_slice::<Record<Credential>>(value).map_or(true, |record| record.it.opens(id, key))
}

impl fmt::Debug for Extensions {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_list().entries(self.served.iter().map(|extension| extension.alias)).finish()
    }
}

impl Default for Extensions {
    /// None.
    fn default() -> Extensions {
        let kept = Kept {
            profiles: Records::none(PROFILES),
            qos: Records::none(QOS),
            credentials: Records::none(CREDENTIALS),
        };
        Extensions::of(Vec::new(), true, kept)
    }
}

impl Extensions {
    /// All that `plugin` can carry, or those that are named.
    ///
    /// # Errors
    /// [`ExtensionsError`].
    pub fn new(plugin: &dyn Plugin, config: ExtensionsConfig) -> Result<Extensions, ExtensionsError> {
        let can = || ALL.iter().copied().filter(|extension| (extension.is_for)(plugin, &config));
        let find = |name: &String| {
            can().find(|extension| extension.alias == name).ok_or_else(|| ExtensionsError::Unknown {
                name: name.clone(),
                known: can().map(|extension| extension.alias).collect(),
            })
        };
        let served = match &config.named {
            Some(named) => named.iter().map(find).collect::<Result<_, _>>()?,
            None => can().collect(),
        };
        let ExtensionsConfig { named, keeper, host, key, has_foxnsox: _ } = config;
        let kept = Kept {
            profiles: Records::load(PROFILES, keeper.as_ref())?,
            qos: Records::load(QOS, keeper.as_ref())?,
            credentials: Records::load(CREDENTIALS, keeper.as_ref())?,
        };
        Ok(Extensions { key, host: host.into(), ..Extensions::of(served, named.is_some(), kept) })
    }

    fn of(served: Vec<&'static Extension>, is_named: bool, kept: Kept) -> Extensions {
        let core = TABLES.iter().copied().chain([ROWS]);
        let tables = core.chain(served.iter().map(|extension| extension.rows)).collect();
        Extensions { served, is_named, tables, kept, key: None, host: "".into() }
    }

    /// Whether the key opens what is kept: not if it is another than the one with which that was sealed. Told by one record.
    pub fn opens_secrets(&self) -> bool {
        let (Some(key), Some((id, credential))) = (&self.key, self.kept.credentials.any()) else { return true };
        credential.opens(&id, key)
    }

    /// The core's rows and theirs.
    pub(super) fn tables(&self) -> &[&'static [Row<Handler>]] {
        &self.tables
    }

    /// What is told in the list.
    fn listed(&self, dialect: Dialect) -> &[&'static Extension] {
        let is_told = self.is_named || dialect == Dialect::Plain;
        if is_told { &self.served } else { &[] }
    }

    /// Lets those add to an answer that want to.
    pub(super) fn amend(&self, request: &Request, method: &str, reply: &mut Reply) {
        for extension in &self.served {
            if let Some(found) = route::find(&[extension.amendments], method, &request.path) {
                (found.row.handler)(request, reply);
            }
        }
    }

    /// Does what `POST /{collection}/{id}/action` asks for. `None`: nobody has such an action.
    pub(super) fn act(&self, call: &Call<'_>, method: &str) -> Option<Result<Answer, Refusal>> {
        let request = call.request;
        let mut segments = request.path.strip_prefix('/')?.split('/');
        let (collection, _id, word) = (segments.next()?, segments.next()?, segments.next()?);
        if method != "POST" || !route::is_last_word(word, "action") || segments.next().is_some() {
            return None;
        }
        let actions = self.served.iter().flat_map(|extension| extension.actions);
        let actions: Vec<_> = actions.filter(|action| action.collection == collection).collect();
        if actions.is_empty() {
            return None;
        }
        let body: Option<serde_json::Value> = match call.format {
            Format::Json => json::read(&request.body),
            Format::Xml => xml::read(&request.body).map(|root| [root].into_iter().collect()),
        };
        let Some(body) = body else { return Some(Err(BadRequest::Malformed.into())) };
        let (action, value) = actions.iter().find_map(|action| Some((action, body.get(action.name)?)))?;
        Some((action.run)(call, value))
    }
}

/// Refuses to change a record: as forbidden if the caller may see it, as not found if it is not there for the caller.
fn refuse_hidden(
    call: &Call<'_>,
    [see, change]: [Action; 2],
    not_found: LegacyFault,
    is_there: bool,
) -> Result<(), Refusal> {
    if is_there && call.may(change) {
        Ok(())
    } else if is_there && call.may(see) {
        Ok(call.check(change)?)
    } else {
        Err(legacy::refuse(not_found, call))
    }
}

fn list(call: &Call<'_>) -> Result<Answer, Refusal> {
    let listed = call.extensions.listed(call.request.dialect);
    let objects = listed.iter().map(|extension| description(extension)).collect();
    Ok(legacy::told("extensions", Value::List { item: "extension", objects }, call))
}

/// One extension. JSON has it without a key around it; of the XML the original told only the date.
fn show(call: &Call<'_>) -> Result<Answer, Refusal> {
    let alias = call.ids[0];
    let listed = call.extensions.listed(call.request.dialect);
    let Some(extension) = listed.iter().find(|extension| extension.alias == alias) else {
        let detail = format!("Extension with alias {alias} does not exist");
        return Err(Refusal::Whole(Reply::not_found(call.request.accept.as_deref(), false, &detail)));
    };
    let fields = description(extension);
    let body = match (call.format, call.request.dialect) {
        (Format::Json, _) => to_json(&Value::Object(fields)),
        (Format::Xml, Dialect::Plain) => document("extension", Value::Object(fields)).write(call.format),
        (Format::Xml, Dialect::StrictEssex) => {
            document("updated", Value::Element(extension.updated.into())).write(call.format)
        }
    };
    Ok(Answer::Whole(Reply::new(StatusCode::OK, call.format.media_type(), body)))
}

fn document(root: &'static str, value: Value) -> Document {
    Document { root, namespace: None, value }
}

/// In the order of the recordings.
fn description(extension: &Extension) -> Fields {
    let text = |text: &'static str| Value::Element(text.into());
    vec![
        ("updated", text(extension.updated)),
        ("name", text(extension.name)),
        ("links", Value::Texts { item: "link", texts: Vec::new() }),
        ("namespace", text(extension.namespace)),
        ("alias", text(extension.alias)),
        ("description", text(extension.description)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::FakePlugin;

    fn named(alias: &str) -> ExtensionsConfig {
        ExtensionsConfig { named: Some(vec![alias.to_owned()]), ..all() }
    }

    fn all() -> ExtensionsConfig {
        ExtensionsConfig { has_foxnsox: true, ..ExtensionsConfig::default() }
    }

    #[test]
    fn aliases_names_and_rows_of_extensions_are_all_different() {
        let all = Extensions::new(&FakePlugin::new(), all()).unwrap();
        let aliases: std::collections::BTreeSet<_> = all.served.iter().map(|extension| extension.alias).collect();
        assert_eq!(aliases.len(), all.served.len());
        let rows = all.tables().iter().flat_map(|table| table.iter());
        let count = rows.clone().count();
        assert_eq!(rows.map(|row| (row.method, row.path)).collect::<std::collections::BTreeSet<_>>().len(), count);
    }

    #[test]
    fn an_extension_that_is_not_there_is_named_with_those_that_are() {
        let refused = Extensions::new(&FakePlugin::new(), named("pie")).err().unwrap();
        let without = ExtensionsConfig { has_foxnsox: false, ..named("FOXNSOX") };
        assert!(Extensions::new(&FakePlugin::new(), without).is_err());
        assert!(refused.to_string().starts_with("there is no extension \"pie\" for this plugin; it has: portstats"));
        let some = Extensions::new(&FakePlugin::new(), named("portstats")).unwrap();
        assert_eq!(some.listed(Dialect::StrictEssex).len(), 1);
        let all = Extensions::new(&FakePlugin::new(), all()).unwrap();
        assert_eq!(all.listed(Dialect::StrictEssex).len(), 0);
        assert!(all.listed(Dialect::Plain).len() > 1);
    }
}
