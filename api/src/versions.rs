//! The version list at `/` (specification section 1). It lists what is served and nothing else. Pure.

use crate::reply::Reply;
use axum::http::{StatusCode, uri::Authority};
use serde::Serialize;

/// The versions served, with the status the original gives them.
const SERVED: [(&str, &str); 1] = [("v1.1", "PROPOSED")];

#[derive(Serialize)]
struct Body {
    versions: Vec<VersionView>,
}

#[derive(Serialize)]
struct VersionView {
    status: &'static str,
    id: &'static str,
    links: [LinkView; 1],
}

#[derive(Serialize)]
struct LinkView {
    href: String,
    rel: &'static str,
}

/// The list, with links by the host the request called.
pub fn list(host: &Authority) -> Reply {
    let host = host.as_str();
    let host = host.strip_suffix(":80").unwrap_or(host);
    let view = |(id, status)| VersionView {
        status,
        id,
        links: [LinkView { href: format!("http://{host}/{id}"), rel: "self" }],
    };
    Reply::json(StatusCode::OK, &Body { versions: SERVED.map(view).into() })
}
