//! A client of the Quantum API, as small as HTTP/1.1 allows: one connection a request, JSON both ways.
//!
//! The demo talks to the daemon as any tenant would, over TCP; so the client shares no code with the server.

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long one request may take. The daemon answers in milliseconds.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The most bytes of an answer: the demo's are below 2 KiB.
const ANSWER_MAX: u64 = 1 << 20;

/// A tenant's way to the API, version 1.1.
#[derive(Debug, Clone)]
pub(super) struct Tenant {
    pub(super) api: SocketAddr,
    pub(super) name: &'static str,
}

/// The status code and the body; `Value::Null` where there is none.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Value,
}

impl Tenant {
    /// Sends one request; `path` is what follows `/v1.1/tenants/NAME`.
    pub(super) fn request(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Answer> {
        let target = format!("/v1.1/tenants/{}{path}", self.name);
        exchange(self.api, method, &target, body).with_context(|| format!("{method} {target}"))
    }

    /// Sends one request that must be answered with `status`; returns the body.
    pub(super) fn expect(&self, status: u16, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let answer = self.request(method, path, body)?;
        ensure!(
            answer.status == status,
            "{} asked {method} {path} and got {} where {status} was due: {}",
            self.name,
            answer.status,
            answer.body
        );
        Ok(answer.body)
    }
}

fn exchange(api: SocketAddr, method: &str, target: &str, body: Option<&Value>) -> anyhow::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&api, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut request = format!("{method} {target} HTTP/1.1\r\nHost: {api}\r\nConnection: close\r\n");
    if !body.is_empty() {
        request.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    }
    request.push_str("\r\n");
    request.push_str(&body);
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    parse(&answer)
}

/// Reads a whole answer: status line, headers, and a body as long as Content-Length says (RFC 9112 section 6).
fn parse(answer: &[u8]) -> anyhow::Result<Answer> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").context("the answer has no end of headers")?;
    let head = std::str::from_utf8(&answer[..end]).context("the answer's headers are not text")?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.1 "))
        .and_then(|rest| rest.get(..3))
        .and_then(|code| code.parse().ok())
        .context("the answer has no HTTP/1.1 status line")?;
    let mut length = None;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse::<usize>().context("Content-Length is no number")?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            bail!("the answer came in a transfer encoding: {value}");
        }
    }
    let rest = &answer[end + 4..];
    let body = rest.get(..length.unwrap_or(rest.len())).context("the answer is shorter than its Content-Length")?;
    let body =
        if body.is_empty() { Value::Null } else { serde_json::from_slice(body).context("the body is no JSON")? };
    Ok(Answer { status, body })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ANSWER: &[u8] =
        b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\ncontent-length: 8\r\n\r\n{\"a\": 1}";

    #[test]
    fn status_and_body_are_read() {
        assert_eq!(parse(ANSWER).unwrap(), Answer { status: 202, body: json!({"a": 1}) });
    }

    #[test]
    fn an_answer_without_a_body_has_a_null_one() {
        let answer = parse(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        assert_eq!(answer, Answer { status: 204, body: Value::Null });
    }

    #[test]
    fn every_truncation_of_an_answer_is_an_error_and_no_panic() {
        for len in 0..ANSWER.len() {
            assert!(parse(&ANSWER[..len]).is_err(), "{len} bytes");
        }
    }
}
