//! `api/REFERENCE.md`: every operation and every fault with an example in both formats, written from the tables.

use super::faults::{self, FaultDoc};
use super::shape::{Kind, Need, Shape};
use super::{Answer, CHAPTERS, HOST, Operation, version_list};
use crate::format::Format;
use crate::reply::Reply;
use crate::v1::Version;
use std::fmt::Write;

/// The version of the examples; of the other is shown what differs.
const SHOWN: Version = Version::V1_1;

const HEAD: &str = "\
# Reference of the API

Written by the service itself from the tables that its OpenAPI description is made of (`GET /openapi.json`, and
`api/openapi.json` here); a test runs every example against a running service. `QVS_BLESS=1 cargo test -p api` writes it anew.

Paths stand behind a version, `/v1.1` or `/v1.0`. The examples are v1.1's; where v1.0 answers otherwise than by its own
namespace, its JSON follows. Ids are what the service answered when something was made; a tenant is any text, and with
identity the project of the token.

**Formats.** JSON and XML, in both directions: `.json` or `.xml` at the end of any path, else a Content-Type that is
`application/json` or `application/xml`, else the Accept header, else JSON. Extensions read a body only with one of the two
Content-Types. Unknown attributes are ignored.

**Tokens.** Unless `identity.mode` is `\"noauth\"`, a header `X-Auth-Token` is needed everywhere but at `/` and
`/openapi.json`. No, a bad or an expired token gets 401 with `WWW-Authenticate`, another tenant's path 403, and 503 with
`Retry-After` when it cannot be told whose the token is.

**Bounds.** A text has at most 1024 bytes and no NUL (400), a body 64 KiB (413), a head 16 KiB (431); a body that does not come in
time gets 408. The memory of large answers (over 64 KiB) is bounded in all: who asks for a list when it is used up waits 5 s
for it and then gets 503 with `Retry-After`. A large answer must be taken with 256 KiB a second at least, and a connection that does
not go on at all for 20 s is cut. A path that is not here gets a 404 page, whatever the method: in JSON, HTML or plain text, as Accept asks.
";

/// The page.
pub fn page() -> String {
    let mut out = HEAD.to_owned();
    out += "\n## Versions\n\n`GET /` lists the versions. It needs no token.\n";
    for format in Format::ALL {
        show(&mut out, format.media_type(), None, "/", None, &version_list(format));
    }
    for chapter in CHAPTERS {
        let _ = write!(out, "\n## {}\n", chapter.title);
        if !chapter.about.is_empty() {
            let _ = write!(out, "\n{}\n", chapter.about);
        }
        if let Some(alias) = chapter.extension {
            let _ = write!(out, "\nExtension `{alias}`.\n");
        }
        chapter.operations.iter().for_each(|operation| write_operation(&mut out, operation));
    }
    out += "\n## Faults\n\nStatus and name under v1.1 and v1.0; v1.0's reason phrase is the name.\n";
    out += "\n| fault | v1.1 | v1.0 |\n|---|---|---|\n";
    for fault in faults::ALL {
        let of = |version| {
            let mut statuses: Vec<_> =
                fault.examples.iter().map(|example| title(&example(version, Format::Json))).collect();
            statuses.dedup();
            statuses.join(", ")
        };
        let _ = writeln!(out, "| {} | {} | {} |", fault.name, of(Version::V1_1), of(Version::V1_0));
    }
    faults::ALL.iter().for_each(|fault| write_fault(&mut out, fault));
    out
}

fn write_operation(out: &mut String, operation: &Operation) {
    let _ = write!(out, "\n### {}\n\n`{} {}`\n", operation.title, operation.method, operation.path);
    if !operation.about.is_empty() {
        let _ = write!(out, "\n{}\n", operation.about);
    }
    if !operation.query.is_empty() {
        *out += "\nA query may have, each narrowing the list:\n\n";
        for parameter in operation.query {
            let _ = writeln!(out, "* `{}={}`: {}", parameter.name, parameter.example, parameter.about);
        }
    }
    if let Some(request) = &operation.request {
        let optional = if request.is_required { "" } else { ", which may be left out" };
        let _ = write!(out, "\nThe body, `{}`{optional}:\n\n", request.root);
        write_fields(out, &request.shape);
    }
    if let Answer::Told(root, shape)
    | Answer::Made(root, shape)
    | Answer::Legacy(root, shape)
    | Answer::Bare(root, shape) = &operation.answer
        && !matches!(shape, Shape::Flag)
    {
        let _ = write!(out, "\nThe answer, `{root}`:\n\n");
        write_fields(out, shape);
    }
    if !operation.faults.is_empty() {
        let names: Vec<_> = operation.faults.iter().map(|fault| format!("`{}`", fault.name)).collect();
        let _ = write!(out, "\nFaults: {}.\n", names.join(", "));
    }
    let path = format!("/{}{}", SHOWN.id(), operation.example_path());
    for format in Format::ALL {
        let body = operation.example_body(SHOWN, format);
        let answer = operation.answer.example(SHOWN, format);
        show(out, format.media_type(), Some(operation.method), &path, body.as_deref(), &answer);
    }
    let [new, old] = [Version::V1_1, Version::V1_0].map(|version| operation.answer.example(version, Format::Json));
    if new != old {
        let _ = write!(out, "\nv1.0:\n\n```\n{}```\n", answer_text(&old));
    }
}

fn write_fields(out: &mut String, shape: &Shape) {
    for (depth, field) in shape.fields(SHOWN) {
        let indent = "  ".repeat(depth);
        let need = match field.need {
            Need::Always => "",
            Need::Maybe => " (optional)",
            Need::SinceV1_1 => " (v1.1)",
        };
        let words = match field.kind {
            Kind::Word(words) => format!(" {}.", words.map_quoted()),
            _ => String::new(),
        };
        let about = if field.about.is_empty() { String::new() } else { format!(" {}", field.about) };
        let _ = writeln!(out, "{indent}* `{}`{need}:{about}{words}", field.name);
    }
}

/// Words in quotes with commas between.
trait Quoted {
    fn map_quoted(&self) -> String;
}

impl Quoted for [&str] {
    fn map_quoted(&self) -> String {
        self.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
    }
}

fn write_fault(out: &mut String, fault: &FaultDoc) {
    let _ = write!(out, "\n### {}\n\n{}\n", fault.name, fault.about);
    for example in fault.examples {
        *out += "\n```\n";
        for format in Format::ALL {
            let _ = writeln!(out, "{}", answer_text(&example(SHOWN, format)));
        }
        let [new, old] = [Version::V1_1, Version::V1_0].map(|version| example(version, Format::Json));
        if new != old {
            let _ = write!(out, "v1.0:\n{}", answer_text(&old));
        } else {
            out.truncate(out.trim_end().len());
            out.push('\n');
        }
        *out += "```\n";
    }
}

/// A request and its answer.
fn show(out: &mut String, media_type: &str, method: Option<&str>, path: &str, body: Option<&str>, answer: &Reply) {
    let _ = write!(out, "\n```\n{} {path}\nHost: {}\nAccept: {media_type}\n", method.unwrap_or("GET"), HOST[1]);
    if let Some(body) = body {
        let _ = write!(out, "Content-Type: {media_type}\n\n{body}\n");
    }
    let _ = write!(out, "\n{}```\n", answer_text(answer));
}

fn title(answer: &Reply) -> String {
    let status = answer.status.as_u16();
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let root = body.as_object().filter(|body| body.len() == 1).and_then(|body| body.iter().next());
    match root {
        Some((_, inner)) if inner["type"].is_string() => {
            format!("{status} {}", inner["type"].as_str().unwrap_or_default())
        }
        Some((root, _)) => format!("{status} {root}"),
        None => format!("{status} page"),
    }
}

fn answer_text(answer: &Reply) -> String {
    let reason = answer.reason.or(answer.status.canonical_reason()).unwrap_or_default();
    let mut text = format!("{} {reason}\nContent-Type: {}\n", answer.status.as_u16(), answer.content_type);
    if !answer.body.is_empty() {
        let body = String::from_utf8_lossy(&answer.body);
        let _ = write!(text, "\n{}\n", body.trim_end());
    }
    text
}
