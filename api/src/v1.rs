//! The Quantum API of the Essex release, `/v1.0` and `/v1.1`. "The original" here is Quantum 2012.1; `api/REFERENCE.md`
//! has every operation and fault, `api/DEVIATIONS.md` where we differ from it.
//!
//! What the versions share is here: routes ([`route`] and the rows in [`networks`] and [`ports`]), bodies, filters. What
//! differs between them is in [`version`] and in the views beside the rows. A request has become text and bytes within
//! their limits before it comes here, and any text is answered.

mod body;
mod essex;
mod extensions;
mod filters;
mod networks;
mod ports;
pub mod reference;
mod route;
mod version;

pub use extensions::{Extensions, ExtensionsConfig, ExtensionsError, opens_secrets_in};
pub use version::{Dialect, Version};

use crate::document::Value;
use crate::format::Format;
use crate::identity::Caller;
use crate::model::{TEXT_BYTES_MAX, Text};
use crate::plugin::{Fault, Forbidden, ListSize, Plugin, Ports};
use crate::policy::Action;
use crate::reply::Reply;
use axum::http::StatusCode;
use body::BadRequest;
use route::{IDS_MAX, Row};
use std::borrow::Cow;
use std::cell::RefCell;

pub(crate) use route::suffix;

/// What a request to this API is, apart from the version prefix.
#[derive(Clone, Debug)]
pub struct Request {
    /// The version whose prefix the path has.
    pub version: Version,
    /// How closely to follow the original.
    pub dialect: Dialect,
    /// The method.
    pub method: String,
    /// The path after the version, percent-decoded.
    pub path: String,
    /// The query's pairs in order, decoded.
    pub query: Vec<(String, String)>,
    /// The Content-Type header.
    pub content_type: Option<String>,
    /// The Accept header.
    pub accept: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

/// Why a request gets no success.
enum Refusal {
    BadRequest(BadRequest),
    Fault(Fault),
    /// An answer that no version has a part in.
    Whole(Reply),
}

impl From<BadRequest> for Refusal {
    fn from(bad: BadRequest) -> Refusal {
        Refusal::BadRequest(bad)
    }
}

impl<E: Into<Fault>> From<E> for Refusal {
    fn from(fault: E) -> Refusal {
        Refusal::Fault(fault.into())
    }
}

/// What a request is about by ids that its path does not have: for the audit log.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Done {
    /// The ids of what was made.
    pub made: Vec<Text>,
    /// What was, or was not, plugged into a port; or the port with which a profile is associated.
    pub attached: Option<Text>,
}

/// A request on its row.
struct Call<'a> {
    plugin: &'a dyn Plugin,
    extensions: &'a Extensions,
    caller: &'a Caller,
    request: &'a Request,
    format: Format,
    ids: [&'a str; IDS_MAX],
    done: RefCell<Done>,
}

impl<'a> Call<'a> {
    /// Notes the id of something that was made.
    fn made(&self, id: &Text) {
        self.done.borrow_mut().made.push(id.clone());
    }

    /// Notes what is to be plugged.
    fn attaches(&self, id: &Text) {
        self.done.borrow_mut().attached = Some(id.clone());
    }

    fn tenant(&self) -> &'a str {
        self.ids[0]
    }

    fn network(&self) -> &'a str {
        self.ids[1]
    }

    fn port(&self) -> &'a str {
        self.ids[2]
    }

    /// Refuses a body where the core has no use for one. Of the details the original took none to heart.
    fn check_body(&self, row: &Row<Handler>) -> Result<(), Refusal> {
        if row.path.starts_with(CORE) && matches!(row.method, "GET" | "DELETE") {
            body::no_body(self, row.path.ends_with("/detail"))?;
        }
        Ok(())
    }

    /// What a body said, or what is wrong with it if all that the path names is there; else what is not.
    fn told_if_there<T>(&self, said: body::Said<T>) -> Result<T, Refusal> {
        said.or_else(|bad| {
            match self.port() {
                "" => drop(self.plugin.get_network_details(self.tenant(), self.network(), Ports::Omitted)?),
                port => drop(self.plugin.get_port_details(self.tenant(), self.network(), port)?),
            }
            Err(bad.into())
        })
    }

    /// Whether the policy lets the caller do this to things of an extension. Those of the plugin are behind a guard.
    fn may(&self, action: Action) -> bool {
        self.caller.may_enter(self.tenant()) && self.caller.may(action)
    }

    fn check(&self, action: Action) -> Result<(), Forbidden> {
        if self.may(action) { Ok(()) } else { Err(Forbidden { action: action.name().into() }) }
    }
}

/// A success, apart from version and format.
enum Answer {
    /// 200 with a document of this root.
    Told(&'static str, Value),
    /// What was made, with the status that the version gives a creation.
    Made(&'static str, Value),
    /// 204.
    Done,
    /// An answer that no version has a part in.
    Whole(Reply),
}

/// What answers a row.
type Handler = fn(&Call<'_>) -> Result<Answer, Refusal>;

/// Where all paths of the core begin, and none of an extension.
const CORE: &str = "/tenants/";
/// All rows of the core; the first that fits answers.
const TABLES: &[&[Row<Handler>]] = &[networks::ROWS, ports::ROWS];

/// What the answer tells at most, as far as the plugin knows: nothing for all but lists. An attachment is in one port at
/// most, so a filter by one, as Nova's for each interface, or by a port leaves one row and not all.
pub fn list_size_max(plugin: &dyn Plugin, request: &Request) -> ListSize {
    let found = route::find(TABLES, "GET", &request.path).filter(|_| method(request) == "GET");
    let Some(found) = found else { return ListSize::default() };
    let [tenant, network, port, ..] = found.ids;
    let is_list = matches!(found.row.path.rsplit('/').next(), Some("networks" | "ports" | "detail"));
    if !is_list || !port.is_empty() {
        return ListSize::default();
    }
    let is_of_ports = found.row.path.contains("/ports");
    let names_one = if network.is_empty() {
        let filter = filters::networks(&request.query);
        filter.port.is_some() || filter.attachment.is_some()
    } else {
        // A network's own details tell its ports whatever the query.
        is_of_ports && filters::ports(&request.query).attachment.is_some()
    };
    let size = plugin.list_size_max(tenant, (!network.is_empty()).then_some(network));
    // Brief lists tell no names, and no list of ports what is plugged into them.
    let has_texts = found.row.path.ends_with("/detail") && !is_of_ports;
    match names_one {
        // Of one row no text is long.
        true => ListSize { rows: size.rows.min(1), text_bytes: 0 },
        false => ListSize { text_bytes: if has_texts { size.text_bytes } else { 0 }, ..size },
    }
}

/// The method a request is treated as.
pub fn method(request: &Request) -> Cow<'_, str> {
    match request.dialect {
        Dialect::Plain => Cow::Borrowed(request.method.as_str()),
        Dialect::StrictEssex => essex::method(request),
    }
}

/// Answers a request, and tells what it did.
pub fn answer(plugin: &dyn Plugin, extensions: &Extensions, caller: &Caller, request: &Request) -> (Reply, Done) {
    let method = method(request);
    let found = route::find(extensions.tables(), &method, &request.path);
    let suffix = route::suffix(&request.path);
    let format = Format::negotiate(suffix, request.content_type.as_deref(), request.accept.as_deref());
    let ids = found.as_ref().map_or([""; IDS_MAX], |found| found.ids);
    let call = Call { plugin, extensions, caller, request, format, ids, done: RefCell::default() };
    let version = request.version;
    let tenant = call.tenant();
    let outcome = if tenant.len() > TEXT_BYTES_MAX || tenant.contains('\0') {
        Some(Err(BadRequest::Unusable.into()))
    } else if let Some(found) = found {
        Some(call.check_body(found.row).and_then(|()| (found.row.handler)(&call)))
    } else {
        extensions.act(&call, &method)
    };
    let mut reply = match outcome {
        None => Reply::not_found(request.accept.as_deref(), request.method == "HEAD", ""),
        Some(Ok(Answer::Told(root, value))) => version.tell(StatusCode::OK, root, value, format),
        Some(Ok(Answer::Made(root, value))) => version.tell(version.created(), root, value, format),
        Some(Ok(Answer::Done)) => Reply::new(StatusCode::NO_CONTENT, format.media_type(), Vec::new()),
        Some(Ok(Answer::Whole(reply)) | Err(Refusal::Whole(reply))) => reply,
        Some(Err(Refusal::BadRequest(bad))) => version.bad_request(bad, format, request.dialect),
        Some(Err(Refusal::Fault(fault))) => version.fault(&fault, format, request.accept.as_deref()),
    };
    extensions.amend(request, &method, &mut reply);
    (reply, call.done.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_found_by_its_own_path_in_every_spelling() {
        for row in TABLES.iter().flat_map(|table| table.iter()) {
            let names: Vec<_> = row.path.split('/').filter(|segment| segment.starts_with('{')).collect();
            let path = row.path.replace('{', "").replace('}', "-1");
            for dot in ["", ".json", ".xml", ".foo"] {
                let path = format!("{path}{dot}");
                let found = route::find(TABLES, row.method, &path).unwrap();
                assert!(std::ptr::eq(found.row, row), "{} {path} goes to {}", row.method, found.row.path);
                for (name, id) in names.iter().zip(found.ids) {
                    assert_eq!(id, name.replace('{', "").replace('}', "-1"), "{path}");
                }
            }
        }
    }

    #[test]
    fn lists_are_as_large_as_they_may_be_and_all_else_is_small() {
        let plugin = crate::plugins::FakePlugin::new();
        let network = plugin.create_network("t", Some("nine byte".into())).unwrap();
        plugin.create_network("t", None).unwrap();
        let ports: Vec<_> = (0..3).map(|_| plugin.create_port("t", &network, "ACTIVE").unwrap()).collect();
        plugin.plug_interface("t", &network, &ports[1], "vif-0123456789").unwrap();
        for (method, path, rows) in [
            ("GET", "", 2),
            ("GET", ".xml", 2),
            ("GET", "/detail.json", 2),
            ("GET", "/N", 0),
            ("GET", "/N/detail", 3),
            ("GET", "/N/ports", 3),
            ("GET", "/N/ports/detail.xml", 3),
            ("GET", "/N/ports/P", 0),
            ("GET", "/N/ports/P/detail", 0),
            ("GET", "/nowhere/ports", 0),
            ("POST", "", 0),
            ("POST", "/N/ports", 0),
            ("GET", "?attachment=v", 1),
            ("GET", "/detail?port=p", 1),
            ("GET", "?name=n", 2),
            ("GET", "/N/ports?attachment=v", 1),
            ("GET", "/N/ports/detail.xml?state=DOWN&attachment=v", 1),
            ("GET", "/N/ports?has-attachment=true", 3),
            ("GET", "/N/ports?port=p", 3),
            ("GET", "/N/detail?attachment=v", 3),
            ("GET", "/nowhere/ports?attachment=v", 0),
        ] {
            let (path, query) = path.split_once('?').unwrap_or((path, ""));
            let path = format!("/tenants/t/networks{path}").replace('N', &network).replace('P', &ports[0]);
            let request = Request {
                version: Version::V1_1,
                dialect: Dialect::Plain,
                method: method.into(),
                path,
                query: crate::url::query_pairs(query),
                content_type: None,
                accept: None,
                body: Vec::new(),
            };
            let text_bytes = match request.path.rsplit_once("/detail") {
                _ if rows < 2 => 0,
                Some((path, _)) if path.ends_with("/networks") => 9,
                Some((path, _)) if !path.ends_with("/ports") => 14,
                _ => 0,
            };
            let wanted = ListSize { rows, text_bytes };
            assert_eq!(list_size_max(&plugin, &request), wanted, "{method} {}?{query}", request.path);
        }
    }

    #[test]
    fn words_that_were_rows_once_are_nowhere() {
        for path in [
            "/new",
            "/n/edit",
            "/n/ports/new",
            "/n/ports/p/edit",
            "/n/ports/p/attachment/",
            "/n/ports/p/attachment/detail",
        ] {
            let path = format!("/tenants/t/networks{path}");
            assert!(route::find(TABLES, "GET", &path).is_none(), "{path}");
        }
        for (method, path) in [
            ("PUT", ""),
            ("DELETE", ""),
            ("POST", "/n"),
            ("PATCH", "/n"),
            ("HEAD", ""),
            ("OPTIONS", ""),
            ("POST", "/detail"),
            ("PUT", "/n/detail"),
            ("POST", "/n/ports/p/attachment"),
        ] {
            let path = format!("/tenants/t/networks{path}");
            assert!(route::find(TABLES, method, &path).is_none(), "{method} {path}");
        }
    }
}
