//! What each operation is, says and answers, told once: the one source of the OpenAPI description ([`openapi`]), of
//! `api/REFERENCE.md` ([`mod@page`]) and of the examples that a test holds against a running service.
//!
//! An [`Operation`] stands for a row of the route tables and is found by the row's method and path, so that a row without
//! one, or one without a row, fails a test. Bodies are described by [`Shape`]s, from which come schemas and, through the
//! writer that answers real requests, examples in either format. Faults are described by the replies that the versions
//! make of them ([`faults`]). Pure.

mod core;
mod extensions;
mod faults;
mod openapi;
mod page;
mod shape;

use super::{Extensions, Version};
use crate::format::Format;
use crate::reply::Reply;
use axum::http::StatusCode;
use axum::http::uri::{Authority, Scheme};
use faults::FaultDoc;
use shape::{Shape, Text};

pub use openapi::description;
pub use openapi::description_file;
pub use page::page;

/// The tenant of the examples.
pub const TENANT: &str = "acme";
/// The network of the examples.
pub const NETWORK: &str = "6d3ba1f0-52a8-4c35-9a3e-0f7c8f2a91d4";
/// The port of the examples.
pub const PORT: &str = "b91c0d52-7e14-4f0b-8d56-3c2e64a7f018";
/// Another port of the same network, for [`Given::Elsewhere`].
pub const OTHER_PORT: &str = "2f60a8c7-14d9-4b8e-b3a5-9e7d05c1f642";
/// The interface of the examples.
pub const INTERFACE: &str = "e4a7c5d8-90b2-4e63-a1f7-58d3b6029c1e";
/// The port profile of the examples.
pub const PROFILE: &str = "0c58e9b3-6a27-4d71-92fc-b40d8e1735a6";
/// The QoS level of the examples.
pub const QOS: &str = "a3f2617d-c840-4b95-8e1a-67d90b5c24f3";
/// The credential of the examples.
pub const CREDENTIAL: &str = "57b0d4e6-2f9c-4a18-b7c3-e86a1d905f2b";
/// The host of the examples, as its name and as the address of its API.
pub const HOST: [&str; 2] = ["hypervisor-1", "localhost:9696"];
/// The address of the OpenAPI description. Nothing the original served is there, and no version begins so.
pub const DESCRIPTION_PATH: &str = "/openapi.json";

/// What must be there before an example is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Given {
    /// Nothing.
    Nothing,
    /// The network with the port, ACTIVE and vacant, and one of each of the extensions' records.
    Vacant,
    /// The same, with the interface plugged into the port and the profile associated with it.
    Plugged,
    /// The same, and the other port, vacant.
    Elsewhere,
    /// Nothing, in a service that has no extension but `portstats`.
    OnePlainExtension,
}

/// A parameter of the query.
struct Parameter {
    name: &'static str,
    about: &'static str,
    example: &'static str,
}

/// What a request's body holds.
struct Request {
    /// The one key in JSON, the root element in XML.
    root: &'static str,
    shape: Shape,
    /// A request without a body is refused.
    is_required: bool,
}

/// What a success answers.
enum Answer {
    /// 200, in the version's namespace.
    Told(&'static str, Shape),
    /// The version's status of a creation, in the version's namespace.
    Made(&'static str, Shape),
    /// 204.
    Done,
    /// 200, in the older format of the extensions: no namespace.
    Legacy(&'static str, Shape),
    /// The same, in JSON without the key.
    Bare(&'static str, Shape),
    /// 200 with a text in HTML.
    Said(&'static str),
    /// 200 with a page of the border.
    Page,
}

/// Where the answer has the id of what was made: the parameter that it is of other operations, and its JSON pointer.
struct Makes {
    parameter: &'static str,
    pointer: &'static str,
}

/// An operation.
struct Operation {
    method: &'static str,
    /// The path after the version, as the row has it.
    path: &'static str,
    /// Its name: `networks.list`.
    id: &'static str,
    /// One short sentence.
    title: &'static str,
    /// What else is to be known.
    about: &'static str,
    query: &'static [Parameter],
    request: Option<Request>,
    answer: Answer,
    makes: Option<Makes>,
    faults: &'static [&'static FaultDoc],
    given: Given,
}

/// Operations of one kind of thing.
struct Chapter {
    title: &'static str,
    about: &'static str,
    /// The alias of the extension they are of.
    extension: Option<&'static str>,
    operations: &'static [Operation],
}

/// In the order of the page.
const CHAPTERS: &[Chapter] = &[
    core::NETWORKS,
    core::PORTS,
    core::ATTACHMENTS,
    extensions::LIST,
    extensions::PORT_STATS,
    extensions::PORT_PROFILES,
    extensions::QOS_LEVELS,
    extensions::NOVA_TENANTS,
    extensions::MULTIPORT,
    extensions::CREDENTIALS,
];

/// Those of the operations that are served.
fn served(extensions: &Extensions) -> impl Iterator<Item = (&'static Chapter, &'static Operation)> {
    let rows = extensions.tables().iter().flat_map(|table| table.iter());
    let is_served = move |operation: &Operation| {
        rows.clone().any(|row| (row.method, row.path) == (operation.method, operation.path))
    };
    let all = CHAPTERS.iter().flat_map(|chapter| chapter.operations.iter().map(move |operation| (chapter, operation)));
    all.filter(move |(_, operation)| is_served(operation))
}

impl Answer {
    /// What a success of an example is.
    fn example(&self, version: Version, format: Format) -> Reply {
        let told = |status, namespace, root, shape: &Shape| {
            let document = shape.document(root, namespace, version, Text::Answer);
            Reply::new(status, format.media_type(), document.write(format))
        };
        match self {
            Answer::Told(root, shape) => told(StatusCode::OK, Some(version.namespace()), root, shape),
            Answer::Made(root, shape) => told(version.created(), Some(version.namespace()), root, shape),
            Answer::Done => Reply::new(StatusCode::NO_CONTENT, format.media_type(), Vec::new()),
            Answer::Bare(root, shape) if format == Format::Json => {
                let document = shape.document(root, None, version, Text::Answer);
                Reply::new(StatusCode::OK, format.media_type(), crate::reply::to_json(&document.value))
            }
            Answer::Legacy(root, shape) | Answer::Bare(root, shape) => told(StatusCode::OK, None, root, shape),
            Answer::Said(text) => Reply::new(StatusCode::OK, "text/html; charset=UTF-8", (*text).into()),
            Answer::Page => Reply::page(StatusCode::OK, Some(format.media_type()), false, "", ""),
        }
    }
}

impl Operation {
    /// The path of an example.
    fn example_path(&self) -> String {
        let ids = [
            ("{tenant}", TENANT),
            ("{network}", NETWORK),
            ("{port}", PORT),
            ("{profile}", PROFILE),
            ("{qos}", QOS),
            ("{credential}", CREDENTIAL),
            ("{novatenant}", "instance-1"),
            ("{alias}", "portstats"),
            ("{any}", "all"),
        ];
        ids.iter().fold(self.path.to_owned(), |path, (name, id)| path.replace(name, id))
    }

    /// The body of an example.
    fn example_body(&self, version: Version, format: Format) -> Option<String> {
        let request = self.request.as_ref()?;
        let is_legacy = matches!(self.answer, Answer::Legacy(..) | Answer::Bare(..) | Answer::Said(_) | Answer::Page);
        let namespace = (!is_legacy).then(|| version.namespace());
        let text = if format == Format::Xml { Text::RequestInXml } else { Text::Answer };
        let document = request.shape.document(request.root, namespace, version, text);
        Some(String::from_utf8(document.write(format)).unwrap_or_default())
    }
}

/// An example: a request and its answer, with the ids and the tenant of this module.
#[derive(Clone, Debug)]
pub struct Example {
    /// The name of the operation or of the fault.
    pub name: &'static str,
    /// What must be there before.
    pub given: Given,
    /// The method.
    pub method: &'static str,
    /// The path, version included.
    pub path: String,
    /// The format that the headers Content-Type and Accept name.
    pub format: Format,
    /// The body.
    pub body: Option<String>,
    /// The answer.
    pub answer: Reply,
}

/// Every example: each operation and each fault that can be provoked, in every version and format, and the version list.
pub fn examples() -> Vec<Example> {
    let mut examples = Vec::new();
    for (version, format) in Version::ALL.into_iter().flat_map(|version| Format::ALL.map(|format| (version, format))) {
        for operation in CHAPTERS.iter().flat_map(|chapter| chapter.operations) {
            examples.push(Example {
                name: operation.id,
                given: operation.given,
                method: operation.method,
                path: format!("/{}{}", version.id(), operation.example_path()),
                format,
                body: operation.example_body(version, format),
                answer: operation.answer.example(version, format),
            });
        }
        for fault in faults::ALL {
            let Some(provocation) = &fault.provocation else { continue };
            examples.push(Example {
                name: fault.name,
                given: provocation.given,
                method: provocation.method,
                path: format!("/{}{}", version.id(), provocation.path()),
                format,
                body: provocation.body(format),
                answer: fault.examples[0](version, format),
            });
        }
    }
    for format in Format::ALL {
        let answer = version_list(format);
        let path = "/".to_owned();
        examples.push(Example {
            name: "versions.list",
            given: Given::Nothing,
            method: "GET",
            path,
            format,
            body: None,
            answer,
        });
    }
    examples
}

/// The answer of `/`.
fn version_list(format: Format) -> Reply {
    crate::versions::list(&Scheme::HTTP, &Authority::from_static(HOST[1]), format)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::FakePlugin;
    use crate::v1::ExtensionsConfig;
    use std::collections::BTreeSet;

    /// All extensions of the product.
    pub(super) fn all() -> Extensions {
        let thread = std::thread::current().id();
        let path = std::env::temp_dir().join(format!("qvs-reference-test-{}-{thread:?}", std::process::id()));
        let key = crate::sealed::SealKey::open(&path).unwrap();
        let _ = std::fs::remove_file(&path);
        let config = ExtensionsConfig { key: Some(key), ..ExtensionsConfig::default() };
        Extensions::new(&FakePlugin::new(), config).unwrap()
    }

    #[test]
    fn every_row_of_the_route_tables_is_described_once_and_nothing_else_is() {
        let extensions = all();
        let rows: Vec<_> =
            extensions.tables().iter().flat_map(|table| table.iter()).map(|row| (row.method, row.path)).collect();
        let described: Vec<_> = CHAPTERS.iter().flat_map(|chapter| chapter.operations).collect();
        for row in &rows {
            let count = described.iter().filter(|operation| (operation.method, operation.path) == *row).count();
            assert_eq!(count, 1, "{} {} is not described, or twice", row.0, row.1);
        }
        assert_eq!(described.len(), rows.len(), "something is described that is no row");
        assert_eq!(served(&extensions).count(), rows.len());
        assert_eq!(described.iter().map(|operation| operation.id).collect::<BTreeSet<_>>().len(), described.len());
    }

    #[test]
    fn an_extension_that_is_not_served_is_not_described() {
        let count = |extensions: &Extensions| served(extensions).count();
        let core = CHAPTERS[..4].iter().map(|chapter| chapter.operations.len()).sum::<usize>();
        assert_eq!(count(&Extensions::default()), core);
        let named = ExtensionsConfig { named: Some(vec!["portstats".into()]), ..ExtensionsConfig::default() };
        assert_eq!(count(&Extensions::new(&FakePlugin::new(), named).unwrap()), core + 2);
    }
}
