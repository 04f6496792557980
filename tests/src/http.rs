//! A small HTTP/1.1 client over one connection, and the Quantum API v1.1 as a tenant uses it.
//!
//! Small on purpose: it sends what a test tells it, also what no decent client would send, and shares no code with the
//! server. It understands `Content-Length` bodies only, which is all that the API sends.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longest wait for an answer: a write whose answer etcd owes may take 16 s.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Header lines as they came.
    pub headers: Vec<String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }
}

/// One connection to a server.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    host: SocketAddr,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// If nobody listens.
    pub fn open(host: SocketAddr) -> std::io::Result<Connection> {
        Connection::open_for(host, ANSWER_LIMIT)
    }

    /// Connects, to wait no longer than `limit` for an answer: for who expects none.
    ///
    /// # Errors
    /// If nobody listens.
    pub fn open_for(host: SocketAddr, limit: Duration) -> std::io::Result<Connection> {
        let stream = TcpStream::connect(host)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        Ok(Connection { stream: BufReader::new(stream), host })
    }

    /// Sends a request and reads the answer; the connection stays.
    ///
    /// # Errors
    /// If the server goes away before the answer is complete.
    pub fn request(&mut self, method: &str, path: &str, body: Option<&Value>) -> std::io::Result<Answer> {
        self.request_text(method, path, &body.map(Value::to_string).unwrap_or_default())
    }

    /// The same with a body that is text already.
    ///
    /// # Errors
    /// If the server goes away before the answer is complete.
    pub fn request_text(&mut self, method: &str, path: &str, body: &str) -> std::io::Result<Answer> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.host,
            body.len()
        );
        self.send(format!("{head}{body}").as_bytes())?;
        self.answer()
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// If the server has closed the connection.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// If the server goes away before it is complete, or it is no HTTP.
    pub fn answer(&mut self) -> std::io::Result<Answer> {
        let bad = || std::io::Error::new(std::io::ErrorKind::InvalidData, "no HTTP answer");
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(bad)?;
        let mut headers = Vec::new();
        let mut length = 0;
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().map_err(|_| bad())?;
            }
            headers.push(line.to_owned());
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(Answer { status, headers, body })
    }
}

/// A tenant with the API; each call must succeed.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Where the API is.
    pub api: SocketAddr,
    /// The tenant's name.
    pub name: String,
}

impl Tenant {
    /// Sends a request below the tenant's path.
    ///
    /// # Errors
    /// If the server is not there or goes away.
    pub fn try_request(&self, method: &str, path: &str, body: Option<&Value>) -> std::io::Result<Answer> {
        let path = format!("/v1.1/tenants/{}/{path}", self.name);
        Connection::open(self.api)?.request(method, &path, body)
    }

    /// Sends a request that must be answered with `status`.
    ///
    /// # Panics
    /// If it is answered otherwise or not at all.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>, status: u16) -> Answer {
        let answer = self.try_request(method, path, body);
        let answer = answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let text = String::from_utf8_lossy(&answer.body);
        assert_eq!(answer.status, status, "{method} {path} {body:?}: {text}");
        answer
    }

    /// Makes a network; answers its id.
    pub fn network(&self, name: &str) -> String {
        let answer = self.request("POST", "networks", Some(&json!({"network": {"name": name}})), 202);
        id(&answer.json()["network"])
    }

    /// Makes an ACTIVE port; answers its id.
    pub fn port(&self, network: &str) -> String {
        let path = format!("networks/{network}/ports");
        let answer = self.request("POST", &path, Some(&json!({"port": {"state": "ACTIVE"}})), 202);
        id(&answer.json()["port"])
    }

    /// Sets a port's state.
    pub fn set_state(&self, network: &str, port: &str, state: &str) {
        let path = format!("networks/{network}/ports/{port}");
        self.request("PUT", &path, Some(&json!({"port": {"state": state}})), 204);
    }

    /// Plugs an interface into a port.
    pub fn attach(&self, network: &str, port: &str, interface: &str) {
        let path = format!("networks/{network}/ports/{port}/attachment");
        self.request("PUT", &path, Some(&json!({"attachment": {"id": interface}})), 204);
    }

    /// Unplugs what is in a port.
    pub fn detach(&self, network: &str, port: &str) {
        self.request("DELETE", &format!("networks/{network}/ports/{port}/attachment"), None, 204);
    }

    /// A new ACTIVE port with an interface plugged in; answers its id.
    pub fn attached_port(&self, network: &str, interface: &str) -> String {
        let port = self.port(network);
        self.attach(network, &port, interface);
        port
    }

    /// A port's op-status.
    pub fn op_status(&self, network: &str, port: &str) -> String {
        let answer = self.request("GET", &format!("networks/{network}/ports/{port}"), None, 200);
        answer.json()["port"]["op-status"].as_str().expect("v1.1 ports have an op-status").to_owned()
    }
}

fn id(object: &Value) -> String {
    object["id"].as_str().unwrap_or_else(|| panic!("no id in {object}")).to_owned()
}
