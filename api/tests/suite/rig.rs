//! A server on loopback with one of the plugins behind it, and a client that can also say wrong things.

use api::host::{Host, Scope};
use api::model::{AdminState, Model, OpStatus, PortId};
use api::plugin::Plugin;
use api::plugins::{FakePlugin, NativePlugin};
use api::server::{Limits, ServerConfig, serve};
use api::store::{Store, StoreError};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Long enough for any answer; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory that goes when the test ends.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Scratch {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("qvs-api-test-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.0.join("state").join("state.redb")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A host on which every interface is plugged and in order.
#[derive(Default)]
pub(crate) struct ReadyHost {
    pub(crate) in_force_count: AtomicUsize,
}

impl Host for ReadyHost {
    fn put_in_force(&self, _model: &Model, _scope: Scope<'_>) {
        self.in_force_count.fetch_add(1, Ordering::Relaxed);
    }

    fn op_status(&self, model: &Model, port: &PortId) -> OpStatus {
        let port = &model.ports[port];
        assert!(port.state == AdminState::Active && port.attachment.is_some(), "the plugin answers for these");
        OpStatus::Up
    }
}

/// Opens a store, again if need be. A process that another test of this binary is just starting has a copy of every
/// descriptor until it runs its program, and with it the lock of a store that was closed here.
pub(crate) fn open_store(path: &Path) -> Arc<Store> {
    let begin = Instant::now();
    loop {
        match Store::open(path) {
            Err(StoreError::InUse { .. }) if begin.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            store => return Arc::new(store.unwrap()),
        }
    }
}

/// A native plugin over a store of its own.
pub(crate) fn native(store: &Path) -> NativePlugin {
    NativePlugin::new(open_store(store), Arc::new(ReadyHost::default())).unwrap()
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Driver {
    Fake,
    Native,
}

pub(crate) const DRIVERS: [Driver; 2] = [Driver::Fake, Driver::Native];

/// A version of the API, as a client knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Version {
    V1_0,
    V1_1,
}

impl Version {
    pub(crate) const ALL: [Version; 2] = [Version::V1_0, Version::V1_1];

    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Version::V1_0 => "/v1.0",
            Version::V1_1 => "/v1.1",
        }
    }
}

/// A format, as a client knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Format {
    Json,
    Xml,
}

impl Format {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Format::Json => "json",
            Format::Xml => "xml",
        }
    }
}

/// A running server; stops when dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _scratch: Scratch,
}

impl Server {
    pub(crate) fn start(driver: Driver) -> Server {
        Server::with(driver, ServerConfig::default())
    }

    pub(crate) fn with_limits(limits: Limits) -> Server {
        Server::with(Driver::Fake, ServerConfig { limits, ..ServerConfig::default() })
    }

    pub(crate) fn with(driver: Driver, config: ServerConfig) -> Server {
        let scratch = Scratch::new();
        let plugin: Arc<dyn Plugin> = match driver {
            Driver::Fake => Arc::new(FakePlugin::new()),
            Driver::Native => Arc::new(native(&scratch.store())),
        };
        Server::over(plugin, config, scratch)
    }

    pub(crate) fn over(plugin: Arc<dyn Plugin>, config: ServerConfig, scratch: Scratch) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let shutdown = async { drop(stopped.await) };
            runtime.block_on(serve(listener, config, plugin, shutdown)).unwrap();
        });
        Server { address, stop: Some(stop), thread: Some(thread), _scratch: scratch }
    }

    /// Asks the server to stop.
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits until it has.
    pub(crate) fn join(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends these bytes and reads to the end of the connection.
    pub(crate) fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // A server that refuses need not read everything.
        let _ = stream.write_all(bytes);
        read_to_end(&mut stream)
    }

    /// A request by the usual client.
    pub(crate) fn ask(&self, method: &str, path: &str, body: Option<&str>) -> Answer {
        self.ask_with(method, path, &["Accept: application/json"], body)
    }

    /// A request that says everywhere which format it is in.
    pub(crate) fn ask_in(&self, format: Format, method: &str, path: &str, body: Option<&str>) -> Answer {
        let media_type = format!("application/{}", format.name());
        self.ask_with(method, path, &[&format!("Accept: {media_type}"), &format!("Content-Type: {media_type}")], body)
    }

    pub(crate) fn ask_with(&self, method: &str, path: &str, headers: &[&str], body: Option<&str>) -> Answer {
        let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|header| header.to_ascii_lowercase().starts_with("host:")) {
            request += &format!("Host: {}\r\n", self.address);
        }
        for header in headers {
            request += &format!("{header}\r\n");
        }
        if let Some(body) = body {
            request += &format!("Content-Length: {}\r\n", body.len());
        }
        request += "\r\n";
        request += body.unwrap_or_default();
        Answer::parse(&self.raw(request.as_bytes()))
    }

    /// Makes something and returns its id.
    pub(crate) fn make(&self, path: &str, body: &str) -> String {
        let answer = self.ask("POST", path, Some(body));
        assert_eq!(answer.status, 202, "{path} {body}: {answer:?}");
        let body = answer.json();
        body.as_object().unwrap().values().next().unwrap()["id"].as_str().unwrap().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

pub(crate) fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8(bytes).unwrap()
}

/// An HTTP answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) reason: String,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn parse(text: &str) -> Answer {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let mut lines = head.split("\r\n");
        let (status, reason) = lines.next().unwrap().strip_prefix("HTTP/1.1 ").unwrap().split_once(' ').unwrap();
        let headers = lines.map(|line| line.split_once(": ").unwrap());
        Answer {
            status: status.parse().unwrap(),
            reason: reason.to_owned(),
            headers: headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect(),
            body: body.to_owned(),
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}
