//! Clients that hang up before their answer came: what they asked for is finished, told, and counted as theirs.

use crate::identity::{audit_log, audits};
use crate::rig::{Answer, ReadyHost, Scratch, Server, open_store, read_to_end};
use api::host::{Host, Scope};
use api::model::{Model, OpStatus, PortId};
use api::plugins::NativePlugin;
use api::server::{Limits, ServerConfig};
use std::io::Write as _;
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const NETWORK: &str = r#"{"network": {"name": "n"}}"#;

/// A host on which a change comes into force when the test says so.
struct GatedHost {
    came: Mutex<Sender<()>>,
    open: Mutex<Receiver<()>>,
}

impl Host for GatedHost {
    fn put_in_force(&self, _model: &Model, scope: Scope<'_>) {
        if matches!(scope, Scope::Parts(_)) {
            self.came.lock().unwrap().send(()).unwrap();
            let _ = self.open.lock().unwrap().recv();
        }
    }

    fn op_status(&self, model: &Model, port: &PortId) -> OpStatus {
        ReadyHost::default().op_status(model, port)
    }
}

/// A server whose writes begin with a message from the first and end with one to the second.
fn gated(limits: Limits) -> (Server, Receiver<()>, Sender<()>) {
    let ((came, comes), (opens, open)) = (channel(), channel());
    let scratch = Scratch::new();
    let store = open_store(&scratch.store());
    let host = GatedHost { came: Mutex::new(came), open: Mutex::new(open) };
    let plugin = NativePlugin::new(store, Arc::new(host)).unwrap();
    let config = ServerConfig { limits, ..ServerConfig::default() };
    (Server::over(Arc::new(plugin), config, scratch), comes, opens)
}

fn post(server: &Server, path: &str) -> TcpStream {
    let mut stream = server.connect();
    let length = NETWORK.len();
    let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n");
    let head = format!("{head}\r\n{NETWORK}");
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

/// Hangs up, and waits until the server has noticed.
fn hang_up(mut stream: TcpStream) {
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut stream), "");
}

#[test]
fn a_write_whose_client_hung_up_is_finished_and_audited() {
    audit_log();
    let (mut server, comes, opens) = gated(Limits::default());
    let path = "/v1.1/tenants/hung-up-in-a-write/networks";
    let stream = post(&server, path);
    comes.recv().unwrap();
    hang_up(stream);
    opens.send(()).unwrap();
    // The server ends when all that was asked of it is done.
    server.join();
    let told = audits("hung-up-in-a-write");
    assert!(matches!(&told[..], [line] if line.contains("status=202")), "{told:#?}");
}

#[test]
fn a_client_that_hung_up_has_its_slot_until_what_it_asked_for_is_done() {
    let (server, comes, opens) = gated(Limits { connections: 1, ..Limits::default() });
    let path = "/v1.1/tenants/red/networks";
    let first = post(&server, path);
    comes.recv().unwrap();
    hang_up(first);
    let mut second = server.connect();
    second.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    // Too short a wait would miss the fault, and never see one that is not there.
    let patience = second.read_timeout().unwrap();
    second.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let early = second.peek(&mut [0]);
    assert!(early.is_err(), "another was served on the same slot");
    second.set_read_timeout(patience).unwrap();
    opens.send(()).unwrap();
    let answer = read_to_end(&mut second);
    assert_eq!(Answer::parse(&answer).status, 200, "{answer}");
}
