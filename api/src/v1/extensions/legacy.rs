//! The older format that extensions speak (specification section 10): no namespaces, a body only with its Content-Type,
//! faults without detail, framework pages as success. Pure.

use crate::document::{Document, Value};
use crate::reply::Reply;
use crate::v1::{Answer, Call};
use axum::http::StatusCode;

/// 200 with a document.
pub(super) fn told(root: &'static str, value: Value, call: &Call<'_>) -> Answer {
    let document = Document { root, namespace: None, value };
    Answer::Whole(Reply::new(StatusCode::OK, call.format.media_type(), document.write(call.format)))
}

/// 200 with a text.
pub(super) fn said(text: &str) -> Answer {
    Answer::Whole(Reply::new(StatusCode::OK, "text/html; charset=UTF-8", text.into()))
}
