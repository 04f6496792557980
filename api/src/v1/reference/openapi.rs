//! The OpenAPI 3.1 description of what is served. Pure.
//!
//! The versions are told apart by their paths. Faults of one status become one response with a schema for each, and equal
//! responses are told once, under a name made of what is in them. Everything the border in front of the versions may answer
//! (identity, limits, pages) is in every operation, so that whatever a client gets is described.

use super::faults::FaultDoc;
use super::shape::{Shape, Side};
use super::{Answer, CHAPTERS, DESCRIPTION_PATH, Operation, served, version_list};
use crate::format::{Format, JSON, XML};
use crate::reply::Reply;
use crate::server::BODY_BYTES_MAX;
use crate::v1::{Extensions, Version};
use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What is said of the whole.
const ABOUT: &str = "The networking API of Quantum, v1.0 and v1.1. The last dot of a path begins a suffix: `.json` or `.xml` \
                     at the end of any path chooses the format, before Content-Type and Accept. What is not here gets a \
                     404 page, whatever the method. Texts are UTF-8 and have at most 1024 bytes.";
const TEXT: [&str; 2] = ["text/html", "text/plain"];

/// The description of these extensions and the core, as it is served.
pub fn description(extensions: &Extensions) -> Reply {
    Reply::new(StatusCode::OK, JSON, serde_json::to_vec(&document(extensions)).expect("its keys are texts"))
}

/// The same as a file that people read.
pub fn description_file(extensions: &Extensions) -> String {
    serde_json::to_string_pretty(&document(extensions)).expect("its keys are texts") + "\n"
}

fn document(extensions: &Extensions) -> Value {
    let mut parts = Parts::default();
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for version in Version::ALL {
        let all: Vec<_> = served(extensions).map(|(_, operation)| operation).collect();
        for (chapter, operation) in served(extensions) {
            let described = parts.operation(version, chapter.title, operation, &all);
            let path = format!("/{}{}", version.id(), operation.path);
            paths.entry(path).or_default().insert(operation.method.to_lowercase(), described);
        }
    }
    for (path, described) in [("/", parts.versions()), (DESCRIPTION_PATH, parts.itself())] {
        paths.entry(path.to_owned()).or_default().insert("get".to_owned(), described);
    }
    let tags: Vec<_> =
        CHAPTERS.iter().map(|chapter| json!({"name": chapter.title, "description": chapter.about})).collect();
    parts.schemas.insert(
        "Page".into(),
        json!({
            "description": "A page of the border in front of the versions.",
            "type": "object",
            "properties": {"message": {"type": "string"}, "code": {"type": "string"}, "title": {"type": "string"}},
            "required": ["code", "message", "title"],
            "additionalProperties": false,
        }),
    );
    parts.schemas.insert(
        "Error".into(),
        json!({
            "description": "A request that is wrong in a way that no version has a word for.",
            "type": "object",
            "properties": {"message": {"type": "string"}, "code": {"type": "integer", "xml": {"attribute": true}}},
            "required": ["code", "message"],
            "additionalProperties": false,
            "xml": {"name": "Error"},
        }),
    );
    let responses: BTreeMap<_, _> =
        parts.responses.iter().map(|(name, (status, outcomes))| (name, outcomes.response(*status))).collect();
    json!({
        "openapi": "3.1.0",
        "info": {"title": "Quantum networking API", "version": "1.1", "description": ABOUT,
                 "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "servers": [{"url": "/"}],
        "tags": tags,
        "security": [{"token": []}, {}],
        "paths": paths,
        "components": {
            "schemas": parts.schemas,
            "parameters": parts.parameters,
            "responses": responses,
            "securitySchemes": {"token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token",
                "description": "Needed unless the service runs in mode `noauth`: a token of the tenant in the path."}},
        },
    })
}

/// What operations share.
#[derive(Default)]
struct Parts {
    schemas: BTreeMap<String, Value>,
    parameters: BTreeMap<String, Value>,
    /// By what is in them, with the status.
    responses: BTreeMap<String, (u16, Outcomes)>,
}

/// What one status may be.
#[derive(Clone, Default)]
struct Outcomes {
    abouts: BTreeSet<&'static str>,
    /// Names of schemas with the root key of each.
    faults: BTreeMap<String, String>,
    has_page: bool,
    has_error: bool,
}

impl Parts {
    fn operation(&mut self, version: Version, tag: &str, operation: &Operation, all: &[&'static Operation]) -> Value {
        let mut described = json!({
            "operationId": operation_id(version, operation),
            "summary": operation.title,
            "tags": [tag],
        });
        if !operation.about.is_empty() {
            described["description"] = json!(operation.about);
        }
        let in_path = names(operation.path).map(|name| {
            let schema = json!({"type": "string", "minLength": 1});
            (name.to_owned(), json!({"name": name, "in": "path", "required": true, "schema": schema}))
        });
        let in_query = operation.query.iter().map(|parameter| {
            let collection = operation.id.split('.').next().unwrap_or_default();
            let described = json!({"name": parameter.name, "in": "query", "description": parameter.about,
                                   "example": parameter.example, "schema": {"type": "string"}});
            (format!("{collection}.{}", parameter.name), described)
        });
        let mut parameters = Vec::new();
        for (name, parameter) in in_path.chain(in_query) {
            parameters.push(json!({"$ref": format!("#/components/parameters/{name}")}));
            self.parameters.insert(name, parameter);
        }
        if !parameters.is_empty() {
            described["parameters"] = json!(parameters);
        }
        if let Some(request) = &operation.request {
            let [example_json, example_xml] =
                Format::ALL.map(|format| operation.example_body(version, format).unwrap_or_default());
            let content = content(
                request.root,
                is_core(&operation.answer).then(|| version.namespace()),
                &request.shape,
                version,
                Side::Request,
                [&example_json, &example_xml],
            );
            described["requestBody"] = json!({"required": request.is_required, "content": content});
        }
        let mut responses = self.faults(version, operation);
        let (status, mut success) = success(version, operation);
        let links = links(version, operation, all);
        if !links.is_empty() {
            success["links"] = json!(links);
        }
        responses.insert(status, success);
        described["responses"] = json!(responses);
        described
    }

    /// References to what an operation may answer instead of a success.
    fn faults(&mut self, version: Version, operation: &Operation) -> Map<String, Value> {
        let mut statuses = border();
        for fault in operation.faults {
            for example in fault.examples {
                self.add(&mut statuses, fault, version, &example(version, Format::Json));
            }
        }
        statuses.into_iter().map(|(status, outcomes)| (status.to_string(), self.response(status, &outcomes))).collect()
    }

    fn add(
        &mut self,
        statuses: &mut BTreeMap<u16, Outcomes>,
        fault: &'static FaultDoc,
        version: Version,
        reply: &Reply,
    ) {
        let outcomes = statuses.entry(reply.status.as_u16()).or_default();
        outcomes.abouts.insert(fault.about);
        let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        let Some((root, inner)) = body.as_object().filter(|body| body.len() == 1).and_then(|body| body.iter().next())
        else {
            outcomes.has_page = true;
            return;
        };
        if root == "Error" {
            outcomes.has_error = true;
            return;
        }
        // Both versions say the same of an extension's faults.
        let is_core = inner.get("detail").is_some();
        let prefix = if is_core { version.id() } else { "ext" };
        let kind = inner.get("type").and_then(Value::as_str).unwrap_or(root);
        let suffix = if inner["code"].is_null() { String::new() } else { format!(".{}", reply.status.as_u16()) };
        let name = format!("{prefix}.{}{suffix}", kind.replace(' ', ""));
        let namespace = is_core.then(|| version.namespace());
        let schema = fault_schema(root, inner, namespace);
        // Causes of one name differ in what they say.
        let known = self.schemas.entry(name.clone()).or_insert_with(|| schema.clone());
        if *known != schema {
            known["properties"]["message"] = json!({"type": "string"});
        }
        outcomes.faults.insert(name, root.clone());
    }

    /// A reference to a response with these outcomes.
    fn response(&mut self, status: u16, outcomes: &Outcomes) -> Value {
        let mut name = status.to_string();
        outcomes.faults.keys().for_each(|fault| name += &format!("-{fault}"));
        let (_, known) = self.responses.entry(name.clone()).or_insert_with(|| (status, outcomes.clone()));
        known.abouts.extend(&outcomes.abouts);
        json!({"$ref": format!("#/components/responses/{name}")})
    }

    /// `/`, which is for everybody.
    fn versions(&mut self) -> Value {
        let [json_example, xml_example] = Format::ALL.map(|format| version_list(format).body);
        let example: Value = serde_json::from_slice(&json_example).unwrap_or_default();
        let link = json!({"type": "object", "properties": {"href": {"type": "string", "xml": {"attribute": true}},
            "rel": {"const": "self", "xml": {"attribute": true}}}, "required": ["href", "rel"]});
        let version = json!({
            "type": "object",
            "properties": {
                "id": {"enum": Version::ALL.map(Version::id), "xml": {"attribute": true}},
                "status": {"enum": Version::ALL.map(Version::status), "xml": {"attribute": true}},
                "links": {"type": "array", "items": link},
            },
            "required": ["id", "links", "status"],
            "additionalProperties": false,
            "xml": {"name": "version"},
        });
        let list = json!({"type": "array", "items": version, "xml": {"name": "versions", "wrapped": true}});
        let success = json!({"description": "The versions.", "content": {
            JSON: {"schema": {"type": "object", "properties": {"versions": list}, "required": ["versions"],
                              "additionalProperties": false}, "example": example},
            XML: {"schema": list, "example": String::from_utf8_lossy(&xml_example)},
        }});
        self.of_everybody("versions.list", "List the versions of the API", &success)
    }

    /// This description.
    fn itself(&mut self) -> Value {
        let success = json!({"description": "The description.", "content": {JSON: {"schema": {"type": "object"}}}});
        self.of_everybody("description.show", "Show the OpenAPI description", &success)
    }

    fn of_everybody(&mut self, id: &str, title: &str, success: &Value) -> Value {
        let mut responses = Map::new();
        for (status, outcomes) in border().iter().filter(|(status, _)| ![401, 404, 503].contains(*status)) {
            responses.insert(status.to_string(), self.response(*status, outcomes));
        }
        responses.insert("200".into(), success.clone());
        json!({"operationId": id, "summary": title, "security": [{}], "responses": responses})
    }
}

impl Outcomes {
    fn response(&self, status: u16) -> Value {
        let in_json = self.faults.iter().map(|(name, root)| {
            json!({"type": "object", "properties": {root: schema_ref(name)}, "required": [root], "additionalProperties": false})
        });
        let error = self.has_error.then(|| {
            json!({"type": "object", "properties": {"Error": schema_ref("Error")}, "required": ["Error"],
                   "additionalProperties": false})
        });
        let page = self.has_page.then(|| schema_ref("Page"));
        let in_json: Vec<_> = in_json.chain(error).chain(page).collect();
        let in_xml: Vec<_> = self
            .faults
            .keys()
            .map(|name| schema_ref(name))
            .chain(self.has_error.then(|| schema_ref("Error")))
            .collect();
        let mut content = Map::new();
        for (media_type, schemas) in [(JSON, in_json), (XML, in_xml)] {
            match schemas.as_slice() {
                [] => {}
                [one] => drop(content.insert(media_type.into(), json!({"schema": one}))),
                several => drop(content.insert(media_type.into(), json!({"schema": {"anyOf": several}}))),
            }
        }
        if self.has_page {
            TEXT.iter().for_each(|text| drop(content.insert((*text).into(), json!({"schema": {"type": "string"}}))));
        }
        let description: Vec<_> = self.abouts.iter().copied().collect();
        let mut response = json!({"description": description.join(" Or: ")});
        if !content.is_empty() {
            response["content"] = json!(content);
        }
        let header = match status {
            401 => Some(("WWW-Authenticate", "What would be a token (RFC 9110 section 11.6.1).")),
            503 => Some(("Retry-After", "When to ask again, seconds.")),
            _ => None,
        };
        if let Some((header, about)) = header {
            response["headers"] =
                json!({header: {"description": about, "required": true, "schema": {"type": "string"}}});
        }
        response
    }
}

/// What the border in front of the versions may answer to any request.
fn border() -> BTreeMap<u16, Outcomes> {
    let outcomes = |about, has_page, has_error| Outcomes {
        abouts: BTreeSet::from([about]),
        has_page,
        has_error,
        ..Outcomes::default()
    };
    const { assert!(BODY_BYTES_MAX == 64 << 10) };
    BTreeMap::from([
        (
            400,
            outcomes(
                "The Host is missing, the path is not UTF-8, or the tenant is no text within its bounds.",
                false,
                true,
            ),
        ),
        (401, outcomes("There is no token, or none that is valid.", true, false)),
        (403, outcomes("The token is of another tenant, or Host or Origin are foreign.", true, true)),
        (404, outcomes("The path is none that is served.", true, false)),
        (408, outcomes("The body did not come in time.", false, true)),
        (413, outcomes("The body is longer than 64 KiB.", false, true)),
        (431, outcomes("The head is longer than 16 KiB.", false, false)),
        (
            503,
            outcomes("It cannot be told now whose the token is, or too many large answers are under way.", true, false),
        ),
    ])
}

/// The names in braces.
fn names(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
}

fn operation_id(version: Version, operation: &Operation) -> String {
    format!("{}.{}", version.id(), operation.id)
}

fn is_core(answer: &Answer) -> bool {
    matches!(answer, Answer::Told(..) | Answer::Made(..) | Answer::Done)
}

fn schema_ref(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// A body in both formats.
fn content(
    root: &str,
    namespace: Option<&str>,
    shape: &Shape,
    version: Version,
    side: Side,
    [example_json, example_xml]: [&str; 2],
) -> Value {
    let schema = shape.schema(version, side);
    let mut in_json = json!({"type": "object", "properties": {root: schema}, "required": [root]});
    if root == "port" && side != Side::Answer {
        // The original's way to say nothing about a port.
        in_json["type"] = json!(["object", "null"]);
    }
    if side == Side::Answer {
        in_json["additionalProperties"] = json!(false);
    }
    let mut in_xml = schema;
    in_xml["xml"] = json!({"name": root});
    if let Some(namespace) = namespace {
        in_xml["xml"]["namespace"] = json!(namespace);
    }
    if matches!(shape, Shape::List { .. }) {
        in_xml["xml"]["wrapped"] = json!(true);
    }
    let example: Value = serde_json::from_str(example_json).unwrap_or_default();
    json!({JSON: {"schema": in_json, "example": example}, XML: {"schema": in_xml, "example": example_xml}})
}

/// The status and the response of a success.
fn success(version: Version, operation: &Operation) -> (String, Value) {
    let [json_reply, xml_reply] = Format::ALL.map(|format| operation.answer.example(version, format));
    let [example_json, example_xml] = [&json_reply, &xml_reply].map(|reply| String::from_utf8_lossy(&reply.body));
    let of =
        |root, namespace, shape| content(root, namespace, shape, version, Side::Answer, [&example_json, &example_xml]);
    let content = match &operation.answer {
        Answer::Told(root, shape) | Answer::Made(root, shape) => Some(of(*root, Some(version.namespace()), shape)),
        Answer::Legacy(root, shape) => Some(of(*root, None, shape)),
        Answer::Bare(root, shape) => {
            let mut content = of(*root, None, shape);
            content[JSON]["schema"] = shape.schema(version, Side::Answer);
            Some(content)
        }
        Answer::Said(_) => Some(json!({"text/html": {"schema": {"type": "string"}, "example": example_json}})),
        Answer::Page => {
            let text = json!({"schema": {"type": "string"}});
            Some(json!({JSON: {"schema": schema_ref("Page")}, TEXT[0]: text, TEXT[1]: text}))
        }
        Answer::Done => None,
    };
    let status = json_reply.status;
    let mut response = json!({"description": if status == 204 { "Done." } else { "The answer." }});
    if let Some(content) = content {
        response["content"] = content;
    }
    (status.as_str().to_owned(), response)
}

/// What can be asked of the thing that an operation made.
fn links(version: Version, operation: &Operation, all: &[&'static Operation]) -> Map<String, Value> {
    let Some(makes) = &operation.makes else { return Map::new() };
    let mut parameters: Map<String, Value> =
        names(operation.path).map(|name| (name.to_owned(), json!(format!("$request.path.{name}")))).collect();
    parameters.insert(makes.parameter.into(), json!(format!("$response.body#{}", makes.pointer)));
    let is_of_it = |other: &&&'static Operation| {
        names(other.path).any(|name| name == makes.parameter)
            && names(other.path).all(|name| parameters.contains_key(name))
    };
    let link = |other: &&'static Operation| {
        (other.id.to_owned(), json!({"operationId": operation_id(version, other), "parameters": parameters}))
    };
    all.iter().filter(is_of_it).map(link).collect()
}

/// The schema of a fault by an example: its detail may be any text, all else is as it is.
fn fault_schema(root: &str, inner: &Value, namespace: Option<&str>) -> Value {
    let fields = inner.as_object().into_iter().flatten();
    let mut properties = Map::new();
    for (key, value) in fields {
        let mut schema = if key == "detail" { json!({"type": "string"}) } else { json!({"const": value}) };
        if key == "code" && namespace.is_some() {
            schema["xml"] = json!({"attribute": true});
        }
        properties.insert(key.clone(), schema);
    }
    let required: Vec<_> = properties.keys().cloned().collect();
    let mut xml = json!({"name": root.replace(' ', "")});
    if let Some(namespace) = namespace {
        xml["namespace"] = json!(namespace);
    }
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false, "xml": xml})
}
