//! What a request says before a version of the API reads it: its headers as text, the format it wants to be told in, and its
//! body within its limits.

use super::BODY_BYTES_MAX;
use crate::format::Format;
use crate::reply::Reply;
use crate::v1;
use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use std::time::Duration;
use tokio::time::timeout;

/// The format of the answer to a request of this path, which is decoded as far as it can be.
pub(super) fn format(path: &str, headers: &HeaderMap) -> Format {
    let (content_type, accept) = (text(headers, header::CONTENT_TYPE), text(headers, header::ACCEPT));
    Format::negotiate(v1::suffix(path), content_type.as_deref(), accept.as_deref())
}

/// Reads a whole body within its limits. What is wrong with one is told in the format.
pub(super) async fn body(body: Body, time_max: Duration, format: Format) -> Result<Vec<u8>, Reply> {
    let error = |status, why| Err(Reply::error(status, why, format));
    const TOO_LARGE: &str = "The request body is longer than 65536 bytes.";
    const { assert!(BODY_BYTES_MAX == 65_536) };
    if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return error(StatusCode::PAYLOAD_TOO_LARGE, TOO_LARGE);
    }
    match timeout(time_max, Limited::new(body, BODY_BYTES_MAX).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes().into()),
        Ok(Err(cause)) if cause.is::<LengthLimitError>() => error(StatusCode::PAYLOAD_TOO_LARGE, TOO_LARGE),
        Ok(Err(_)) => error(StatusCode::BAD_REQUEST, "The request body could not be read."),
        Err(_) => error(StatusCode::REQUEST_TIMEOUT, "The request body did not arrive in time."),
    }
}

/// A header as text, its lines joined (RFC 9110 section 5.3); one that is not ASCII is as good as absent.
pub(super) fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<String> {
    let lines: Option<Vec<_>> = headers.get_all(name).iter().map(|value| value.to_str().ok()).collect();
    lines.filter(|lines| !lines.is_empty()).map(|lines| lines.join(", "))
}
