//! The version list at `/`. Pure.

use crate::document::{Document, Value};
use crate::format::Format;
use crate::reply::Reply;
use crate::v1::Version;
use axum::http::StatusCode;
use axum::http::uri::{Authority, Scheme};

/// The list, with links by the scheme and host the request called. In XML it has no namespace, but names its charset.
pub fn list(scheme: &Scheme, host: &Authority, format: Format) -> Reply {
    let host = host.as_str();
    let port = if *scheme == Scheme::HTTPS { ":443" } else { ":80" };
    let host = host.strip_suffix(port).unwrap_or(host);
    let view = |version: Version| {
        let href = format!("{scheme}://{host}/{}", version.id());
        let link = vec![("href", Value::Attribute(href.into())), ("rel", Value::Word("self"))];
        vec![
            ("status", Value::Word(version.status())),
            ("id", Value::Word(version.id())),
            ("links", Value::List { item: "link", objects: vec![link] }),
        ]
    };
    let value = Value::List { item: "version", objects: Version::ALL.map(view).into() };
    let document = Document { root: "versions", namespace: None, value };
    let content_type = match format {
        Format::Json => format.media_type(),
        Format::Xml => "application/xml; charset=UTF-8",
    };
    Reply::new(StatusCode::OK, content_type, document.write(format))
}
