//! The API, version 1.1, as a tenant's command asks it: one request after another, JSON both ways.
//!
//! What makes it hard is telling what went wrong in one line. An answer may be a fault of the API, a page of what stands in
//! front of it, or somebody else's altogether.

use crate::cli::ServiceArgs;
use crate::table::printable;
use crate::{FAILED, WRONG};
use api::claim::UNKNOWN;
use api::http_client::{Endpoint, EndpointError, HeaderValue, Method, StatusCode, header};
use api::model::TEXT_BYTES_MAX;
use api::watched::{FileError, Rights, read};
use serde_json::Value;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;
use tokio::runtime::Runtime;

/// How long one request may take; the daemon answers in milliseconds, a device elsewhere may need seconds.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// Longest answer taken, bytes: 100,000 ports are some 15 MB.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Longest token, bytes; those of Keystone have some hundred.
const TOKEN_BYTES_MAX: u64 = 16 << 10;
/// Where the token is if no file is named.
const TOKEN_VARIABLE: &str = "QVS_TOKEN";

/// Why the API did not do what a command asked of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServiceError {
    /// The URL or the certificates cannot be used.
    #[error("{0}")]
    Endpoint(EndpointError),
    /// The file of the token cannot be read, or others can.
    #[error("{0}")]
    TokenFile(#[from] FileError),
    /// Standard input ended early.
    #[error("the token cannot be read from standard input: {0}")]
    TokenInput(io::Error),
    /// No token is like that.
    #[error("{0} holds no token: it must be one line of visible characters")]
    TokenText(String),
    /// No runtime could be made.
    #[error("cannot begin: {0}")]
    Runtime(io::Error),
    /// Nobody answered.
    #[error("{url}: {source}")]
    Unreachable {
        /// Who was asked.
        url: String,
        /// What happened.
        source: EndpointError,
    },
    /// Nobody answered in time.
    #[error("{url}: no answer within {} s", ANSWER_WAIT.as_secs())]
    Slow {
        /// Who was asked.
        url: String,
    },
    /// It is there and said no.
    #[error("{text}")]
    Refused {
        /// The status.
        status: StatusCode,
        /// One line saying why.
        text: String,
    },
    /// It is there and makes no sense.
    #[error("{url} answers {status} without what it should: is the Quantum API there?")]
    Strange {
        /// Who was asked.
        url: String,
        /// The status.
        status: StatusCode,
    },
    /// A word means nothing.
    #[error("no {kind} is called {word:?}")]
    Unknown {
        /// What it should mean.
        kind: &'static str,
        /// The word.
        word: String,
    },
    /// A word means several things.
    #[error("{word:?} may be any of {}: give the id", ids.join(", "))]
    Ambiguous {
        /// The word.
        word: String,
        /// The ids of all that it may mean.
        ids: Vec<String>,
    },
    /// A port was made but not attached, and could not be removed.
    #[error("{source}; port {port} was made and is left")]
    Left {
        /// The port.
        port: String,
        /// Why it was not attached.
        source: Box<ServiceError>,
    },
}

impl ServiceError {
    /// The command's exit status.
    pub(super) fn status(&self) -> u8 {
        match self {
            ServiceError::Endpoint(_) | ServiceError::TokenFile(_) | ServiceError::TokenText(_) => WRONG,
            ServiceError::TokenInput(_)
            | ServiceError::Runtime(_)
            | ServiceError::Unreachable { .. }
            | ServiceError::Slow { .. }
            | ServiceError::Refused { .. }
            | ServiceError::Strange { .. }
            | ServiceError::Unknown { .. }
            | ServiceError::Ambiguous { .. }
            | ServiceError::Left { .. } => FAILED,
        }
    }

    /// Whether it says that a thing is not there.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, ServiceError::Refused { status: StatusCode::NOT_FOUND, .. })
    }
}

/// The API of one tenant.
pub(super) struct Service {
    url: String,
    endpoint: Endpoint,
    token: Option<HeaderValue>,
    runtime: Runtime,
}

impl Service {
    /// The service that the arguments and the environment name.
    ///
    /// # Errors
    /// [`ServiceError`]: URL, certificates or token cannot be used.
    pub(super) fn new(args: &ServiceArgs) -> Result<Service, ServiceError> {
        let mut endpoint = Endpoint::new(&args.url, &args.cacert).map_err(ServiceError::Endpoint)?;
        endpoint.descend(&format!("/v1.1/tenants/{}", encode(&args.tenant)));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Service {
            url: args.url.clone(),
            endpoint,
            token: token(args.token_file.as_deref())?,
            runtime: runtime.map_err(ServiceError::Runtime)?,
        })
    }

    /// Asks for something below the tenant's URL; answers the body, null where there is none.
    ///
    /// # Errors
    /// [`ServiceError`]: no answer, or the answer is no.
    pub(super) fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ServiceError> {
        let bytes = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let mut request = self.endpoint.request(method, path, bytes);
        if body.is_some() {
            request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(token) = &self.token {
            request.headers_mut().insert("x-auth-token", token.clone());
        }
        let url = || self.url.clone();
        let asking = async { tokio::time::timeout(ANSWER_WAIT, self.endpoint.send(request, ANSWER_BYTES_MAX)).await };
        let answer = self.runtime.block_on(asking);
        let answer = answer.map_err(|_| ServiceError::Slow { url: url() })?;
        let answer = answer.map_err(|source| ServiceError::Unreachable { url: url(), source })?;
        let (status, body) = (answer.status(), answer.body());
        if !status.is_success() {
            return Err(ServiceError::Refused { status, text: refusal(status, body, self.token.is_some()) });
        }
        match body.is_empty() {
            true => Ok(Value::Null),
            false => serde_json::from_slice(body).map_err(|_| ServiceError::Strange { url: url(), status }),
        }
    }

    /// Asks for something whose answer is an object or a list with this one key; answers what is behind it.
    ///
    /// # Errors
    /// As [`Service::ask`].
    pub(super) fn get(&self, path: &str, key: &str) -> Result<Value, ServiceError> {
        let answer = self.ask(Method::GET, path, None)?;
        self.behind(answer, key)
    }

    /// Makes something below `path`; answers its id.
    ///
    /// # Errors
    /// As [`Service::ask`].
    pub(super) fn create(&self, path: &str, key: &str, body: &Value) -> Result<String, ServiceError> {
        let answer = self.ask(Method::POST, path, Some(&serde_json::json!({ key: body })))?;
        let made = self.behind(answer, key)?;
        made["id"].as_str().map(str::to_owned).ok_or_else(|| self.strange())
    }

    fn behind(&self, mut answer: Value, key: &str) -> Result<Value, ServiceError> {
        answer.get_mut(key).map(Value::take).ok_or_else(|| self.strange())
    }

    /// What an answer without what it should hold is.
    pub(super) fn strange(&self) -> ServiceError {
        ServiceError::Strange { url: self.url.clone(), status: StatusCode::OK }
    }
}

/// The token of the file, or of the environment.
fn token(file: Option<&Path>) -> Result<Option<HeaderValue>, ServiceError> {
    let (text, place) = match file {
        None => match std::env::var_os(TOKEN_VARIABLE) {
            None => return Ok(None),
            Some(text) if text.is_empty() => return Ok(None),
            Some(text) => (text.into_string().unwrap_or_default(), TOKEN_VARIABLE.to_owned()),
        },
        Some(path) if path == Path::new("-") => {
            let mut text = String::new();
            let input = io::stdin().lock().take(TOKEN_BYTES_MAX).read_to_string(&mut text);
            input.map_err(ServiceError::TokenInput)?;
            (text, "standard input".to_owned())
        }
        Some(path) => (read(path, Rights::NotOthers)?, path.display().to_string()),
    };
    let text = text.trim();
    let is_token = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    let mut token = HeaderValue::from_str(text).ok().filter(|_| is_token).ok_or(ServiceError::TokenText(place))?;
    token.set_sensitive(true);
    Ok(Some(token))
}

/// One line saying why the API said no.
fn refusal(status: StatusCode, body: &[u8], has_token: bool) -> String {
    if status == StatusCode::UNAUTHORIZED {
        return match has_token {
            true => "the API does not take the token: it is wrong, expired or revoked".to_owned(),
            false => format!("the API wants a token: set {TOKEN_VARIABLE} or give --token-file"),
        };
    }
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
    // Of a fault the detail says more than the message; of our own trouble each says a part.
    let fault = match (text("/QuantumError/message"), text("/QuantumError/detail")) {
        (Some(message), Some(detail)) if status.is_server_error() => Some(format!("{message} {detail}")),
        (message, detail) => detail.or(message).map(str::to_owned),
    };
    let said = fault.or_else(|| text("/Error/message").or(text("/message")).map(|page| page.replace("<br />", " ")));
    // To the API an interface that is another's and one that nobody plugged for the tenant are one (`api/src/claim.rs`).
    let said = said.map(|said| match said.ends_with(&format!(" {UNKNOWN}")) {
        true => said + ", or not plugged for this tenant",
        false => said,
    });
    let said = said.map(|said| said.split_whitespace().collect::<Vec<_>>().join(" ")).filter(|said| !said.is_empty());
    match said {
        Some(said) => printable(&said),
        None => format!("the API answers {status}"),
    }
}

/// A text as a part of a URL's path or query (RFC 3986 section 2.1): all but the unreserved characters are escaped.
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Whether a word may be the id of a network or port: a server makes UUIDs, and `detail` and `new` are words
/// of the API's paths.
pub(super) fn is_id(word: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    !word.is_empty() && word.len() <= TEXT_BYTES_MAX && word.bytes().all(is_plain) && !["detail", "new"].contains(&word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(status: u16, body: &Value) -> String {
        refusal(StatusCode::from_u16(status).unwrap(), body.to_string().as_bytes(), true)
    }

    #[test]
    fn a_fault_is_one_line_that_says_why() {
        let fault =
            |message: &str, detail: &str| json!({"QuantumError": {"type": "T", "message": message, "detail": detail}});
        assert_eq!(
            said(404, &fault("Unable to find.", "Network n could not be found")),
            "Network n could not be found"
        );
        assert_eq!(said(409, &fault("In use.", "")), "In use.");
        let taken = "The attachment is already plugged into port ";
        assert_eq!(
            said(409, &fault("", &format!("{taken}UNKNOWN"))),
            format!("{taken}UNKNOWN, or not plugged for this tenant")
        );
        assert_eq!(said(409, &fault("", &format!("{taken}p"))), format!("{taken}p"));
        assert_eq!(said(503, &fault("Not stored.", "disk full")), "Not stored. disk full");
        assert_eq!(said(400, &json!({"Error": {"message": "Malformed", "code": 400}})), "Malformed");
        let page = json!({"message": "No such <br /><br />\nthing\n\n", "code": "404 Not Found", "title": "Not Found"});
        assert_eq!(said(404, &page), "No such thing");
        assert_eq!(said(409, &fault("", "a\u{1b}[2Jb")), "a\\u{1b}[2Jb", "nobody drives the terminal");
        assert_eq!(refusal(StatusCode::BAD_GATEWAY, b"<html>", true), "the API answers 502 Bad Gateway");
        assert!(refusal(StatusCode::UNAUTHORIZED, b"", false).contains("set QVS_TOKEN"));
        assert!(refusal(StatusCode::UNAUTHORIZED, b"", true).contains("does not take the token"));
    }

    #[test]
    fn texts_are_escaped_and_only_plain_words_are_ids() {
        assert_eq!(encode("a b/ü?&=.~"), "a%20b%2F%C3%BC%3F%26%3D.~");
        assert!(is_id("123e4567-e89b-12d3-a456-426614174000") && is_id("n"));
        for word in ["", "a/b", "a.b", "detail", "new", "ü", "a b", "a%2Fb"] {
            assert!(!is_id(word), "{word}");
        }
    }
}
