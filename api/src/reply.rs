//! An answer before it becomes HTTP: status, media type, bytes. And the bodies that no API version owns: errors of the
//! border and the pages of what is not there.
//!
//! JSON is written as the original did: `", "` and `": "` between, everything outside ASCII
//! escaped. Pure.

use crate::accept::{PageForm, page_form};
use crate::document::{Document, Value};
use crate::format::{Format, JSON};
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, StatusCode, header};
use hyper::ext::ReasonPhrase;
use serde::Serialize;
use serde_json::ser::Formatter;
use std::io;

/// Seconds after which a client that got 503 may ask again.
const RETRY_AFTER_S: &str = "5";

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The reason phrase, if it is not the standard one.
    pub reason: Option<&'static str>,
    /// The media type; said for an empty body too, as the original does.
    pub content_type: &'static str,
    /// The body; empty for 204.
    pub body: Vec<u8>,
}

impl Reply {
    /// An answer with the standard reason phrase.
    pub fn new(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Reply {
        Reply { status, reason: None, content_type, body }
    }

    /// `{"Error": …}` or `<Error …>`, for requests that are wrong in a way no version has a word for.
    pub fn error(status: StatusCode, message: &str, format: Format) -> Reply {
        let fields = vec![("message", Value::Element(message.into())), ("code", Value::Code(status.as_u16()))];
        let document = Document { root: "Error", namespace: None, value: Value::Object(fields) };
        Reply::new(status, format.media_type(), document.write(format))
    }

    /// The 404 page of what is not served here, in the original's forms.
    pub fn not_found(accept: Option<&str>, is_head: bool, detail: &str) -> Reply {
        Reply::page(StatusCode::NOT_FOUND, accept, is_head, "The resource could not be found.", detail)
    }

    /// A page of the border in front of the API versions, in the form that the Accept header asks for, and it alone.
    /// `message` is our own text; `detail` may quote the client.
    pub fn page(status: StatusCode, accept: Option<&str>, is_head: bool, message: &str, detail: &str) -> Reply {
        let title = status.canonical_reason().unwrap_or_default();
        let code = format!("{} {title}", status.as_str());
        let form = if is_head { Some(PageForm::Html) } else { page_form(accept.unwrap_or_default()) };
        let (content_type, body) = match form {
            Some(PageForm::Json) => {
                let message = format!("{message}<br /><br />\n{detail}\n\n");
                (JSON, to_json(&PageView { message: &message, code: &code, title }))
            }
            Some(PageForm::Html) => ("text/html; charset=UTF-8", html_page(&code, message, detail).into_bytes()),
            None => ("text/plain; charset=UTF-8", format!("{code}\n\n{message}\n\n {detail}  ").into_bytes()),
        };
        Reply::new(status, content_type, body)
    }
}

impl From<Reply> for Response<Body> {
    fn from(reply: Reply) -> Response<Body> {
        reply.with_body(Body::from)
    }
}

impl Reply {
    /// The answer in HTTP, with a body made of its bytes.
    pub(crate) fn with_body(mut self, body: impl FnOnce(Bytes) -> Body) -> Response<Body> {
        // What is kept until a client took it is kept without the room it grew into.
        self.body.shrink_to_fit();
        let reply = self;
        let mut response = Response::new(body(reply.body.into()));
        *response.status_mut() = reply.status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
        if reply.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
        }
        if let Some(reason) = reply.reason {
            response.extensions_mut().insert(ReasonPhrase::from_static(reason.as_bytes()));
        }
        response
    }
}

#[derive(Serialize)]
struct PageView<'a> {
    message: &'a str,
    code: &'a str,
    title: &'a str,
}

fn html_page(code: &str, message: &str, detail: &str) -> String {
    let detail = detail.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!(
        "<html>\n <head>\n  <title>{code}</title>\n </head>\n <body>\n  <h1>{code}</h1>\n  \
         {message}<br /><br />\n{detail}\n\n </body>\n</html>"
    )
}

/// The bytes of a value in JSON.
pub(crate) fn to_json(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, AsOriginal);
    value.serialize(&mut serializer).expect("views have only text keys, and a Vec takes every write");
    bytes
}

/// The original's separators and escapes.
struct AsOriginal;

impl Formatter for AsOriginal {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, is_first: bool) -> io::Result<()> {
        if is_first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, is_first: bool) -> io::Result<()> {
        if is_first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(|c: char| !c.is_ascii()) {
            let (ascii, from) = rest.split_at(at);
            writer.write_all(ascii.as_bytes())?;
            let end = from.find(|c: char| c.is_ascii()).unwrap_or(from.len());
            for unit in from[..end].encode_utf16() {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = &from[end..];
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_spaced_as_the_original_and_ascii_only() {
        let value = serde_json::json!({"a": ["é", "x\u{1F600}y", null, 1], "b": {}});
        let text = String::from_utf8(to_json(&value)).unwrap();
        assert_eq!(text, r#"{"a": ["\u00e9", "x\ud83d\ude00y", null, 1], "b": {}}"#);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }

    #[test]
    fn the_404_page_has_the_form_that_accept_asks_for() {
        let content_type = |accept, is_head| Reply::not_found(accept, is_head, "").content_type;
        assert_eq!(content_type(Some("application/json"), false), JSON);
        assert_eq!(content_type(Some("text/html, */*"), false), "text/html; charset=UTF-8");
        assert_eq!(content_type(Some("*/*"), false), "text/html; charset=UTF-8");
        assert_eq!(content_type(Some("application/xml"), false), "text/plain; charset=UTF-8");
        assert_eq!(content_type(None, false), "text/plain; charset=UTF-8");
        assert_eq!(content_type(Some("application/json"), true), "text/html; charset=UTF-8");
    }
}
