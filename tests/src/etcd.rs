//! A real etcd of one member, or three, for a test, and a relay before it that can be made to fail in the ways that networks do.

use crate::http::{Answer, Connection};
use crate::process::{Child, TempDir, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Longest start; it is a second on an idle machine.
const START_LIMIT: Duration = Duration::from_secs(60);

/// An etcd and the directory it lives in. Killed when dropped.
#[derive(Debug)]
pub struct Etcd {
    child: Option<Child>,
    dir: TempDir,
    address: SocketAddr,
    peer: SocketAddr,
    scheme: &'static str,
    options: Vec<String>,
    name: String,
    /// All members, as etcd is told.
    members: String,
}

impl Etcd {
    /// Starts one on loopback.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start() -> Etcd {
        Etcd::start_at(Ipv4Addr::LOCALHOST.into(), "http", |_| Vec::new())
    }

    /// Starts one on this address, in the namespace of the calling thread, with further options, which may name files in its
    /// directory. `scheme` is `http` or `https`.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start_at(ip: IpAddr, scheme: &'static str, options: impl FnOnce(&TempDir) -> Vec<String>) -> Etcd {
        // Both at once, so that they do not get one port.
        let listeners =
            [ip, Ipv4Addr::LOCALHOST.into()].map(|ip| TcpListener::bind((ip, 0)).expect("the address is this host's"));
        let [address, peer] = listeners.each_ref().map(|it| it.local_addr().expect("it is bound"));
        drop(listeners);
        let dir = TempDir::new();
        let options = options(&dir);
        let members = format!("t=http://{peer}");
        let mut etcd = Etcd { child: None, dir, address, peer, scheme, options, name: "t".to_owned(), members };
        etcd.start_again();
        etcd
    }

    /// Starts three on loopback that are members of one.
    ///
    /// # Panics
    /// If they do not come up.
    pub fn start_three() -> [Etcd; 3] {
        let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback is up");
        // All at once, so that no two get one port.
        let listeners = [0; 3].map(|_| [listen(), listen()]);
        let addresses =
            listeners.each_ref().map(|both| both.each_ref().map(|it| it.local_addr().expect("it is bound")));
        drop(listeners);
        let name = |at: usize| format!("t{at}");
        let members: Vec<_> =
            addresses.iter().enumerate().map(|(at, [_, peer])| format!("{}=http://{peer}", name(at))).collect();
        let mut all = [0, 1, 2].map(|at| {
            let ([address, peer], name, members) = (addresses[at], name(at), members.join(","));
            Etcd { child: None, dir: TempDir::new(), address, peer, scheme: "http", options: Vec::new(), name, members }
        });
        all.iter_mut().for_each(Etcd::spawn);
        all.iter_mut().for_each(Etcd::wait);
        all
    }

    /// Starts it again on the same data.
    ///
    /// # Panics
    /// If it runs, or does not come up.
    pub fn start_again(&mut self) {
        self.spawn();
        self.wait();
    }

    /// Starts it, and goes on: of three members the first serves once there is another.
    fn spawn(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let (client, peer) = (self.url(), format!("http://{}", self.peer));
        let mut command = Command::new("etcd");
        command
            .args(["--name", &self.name, "--logger", "zap", "--unsafe-no-fsync"])
            .arg("--data-dir")
            .arg(self.dir.join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &self.members])
            .args(&self.options);
        self.child = Some(Child::spawn("etcd", &mut command, &self.dir.join("log")));
    }

    /// Waits until it serves.
    fn wait(&mut self) {
        let child = self.child.as_mut().expect("it was started");
        let (is_plain, address) = (self.scheme == "http", self.address);
        wait_until("etcd serves", START_LIMIT, || {
            if let Some(status) = child.ended() {
                panic!("etcd ended at once: {status}\n{}", child.log_tail());
            }
            let Ok(mut connection) = Connection::open(address) else { return false };
            !is_plain || connection.request("GET", "/health", None).is_ok_and(|answer| answer.status == 200)
        });
    }

    /// SIGKILL.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill(&mut self) {
        self.child.take().expect("it runs").kill();
    }

    /// SIGTERM, and waits until it has ended.
    ///
    /// # Panics
    /// If it does not run, or does not end.
    pub fn stop(&mut self) {
        self.child.take().expect("it runs").terminate(START_LIMIT);
    }

    /// SIGSTOP: it is there, and says nothing any more.
    ///
    /// # Panics
    /// If it does not run.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
        let status = format!("/proc/{}/status", self.child.as_ref().expect("it runs").id());
        wait_until("it stands still", START_LIMIT, || {
            std::fs::read_to_string(&status).is_ok_and(|text| text.contains("(stopped)"))
        });
    }

    /// SIGCONT.
    ///
    /// # Panics
    /// If it does not run.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().expect("it runs").id();
        let pid = Pid::from_raw(id.cast_signed()).expect("a process has an id");
        kill_process(pid, signal).expect("our own child");
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// A file in its directory.
    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.join(name)
    }

    /// Asks it something that it must do; from the namespace of the calling thread, without TLS.
    ///
    /// # Panics
    /// If it does not.
    pub fn ask(&self, path: &str, question: &Value) -> Value {
        self.ask_text(path, &question.to_string())
    }

    /// The same with a question that is text already.
    ///
    /// # Panics
    /// If it does not.
    pub fn ask_text(&self, path: &str, question: &str) -> Value {
        let answer = self.answer(path, question);
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(answer.status, 200, "{path} {question}: {text}");
        answer.json()
    }

    /// Its answer to a question, whatever its status.
    ///
    /// # Panics
    /// If there is none.
    pub fn answer(&self, path: &str, question: &str) -> Answer {
        let mut connection = Connection::open(self.address).expect("etcd listens");
        connection.request_text("POST", path, question).expect("etcd answers")
    }

    /// The revision of the last write.
    ///
    /// # Panics
    /// If it does not tell.
    pub fn revision(&self) -> i64 {
        let answer = self.ask("/v3/kv/range", &json!({"key": "YQ=="}));
        let revision = answer["header"]["revision"].as_str().and_then(|text| text.parse().ok());
        revision.unwrap_or_else(|| panic!("no revision: {answer}"))
    }

    /// Whether it leads the members; `None` while nobody does.
    ///
    /// # Panics
    /// If it does not tell.
    pub fn leads(&self) -> Option<bool> {
        let answer = self.ask("/v3/maintenance/status", &json!({}));
        let leader = answer["leader"].as_str().filter(|id| *id != "0")?;
        Some(answer["header"]["member_id"] == leader)
    }

    /// Has it forget all that came before now.
    pub fn compact(&self) {
        self.ask("/v3/kv/compaction", &json!({"revision": self.revision().to_string(), "physical": true}));
    }

    /// Has it forget everything: what starts next is another one at the same address.
    ///
    /// # Panics
    /// If it runs.
    pub fn wipe(&mut self) {
        assert!(self.child.is_none(), "it runs");
        std::fs::remove_dir_all(self.dir.join("data")).expect("our own directory");
    }

    /// Keeps its data as they are now, for [`Etcd::set_back`].
    ///
    /// # Panics
    /// If it runs.
    pub fn keep_data(&self) {
        assert!(self.child.is_none(), "it runs");
        self.copy_data("data", "kept");
    }

    /// Gives it the data back that were kept: what was written since has not been.
    ///
    /// # Panics
    /// If it runs.
    pub fn set_back(&mut self) {
        self.wipe();
        self.copy_data("kept", "data");
    }

    fn copy_data(&self, from: &str, to: &str) {
        let copied = Command::new("cp").arg("-aT").args([from, to].map(|name| self.dir.join(name))).status();
        assert!(copied.is_ok_and(|status| status.success()), "our own directory");
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        self.child.as_ref().map(Child::log_tail).unwrap_or_default()
    }
}

/// What a relay does with what it is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Way {
    /// Hands it on, both ways.
    Open,
    /// Takes no connections and closes those that are open.
    Closed,
    /// Hands on what is asked, and closes the connection in place of an answer.
    NoAnswers,
    /// Keeps connections and hands nothing on.
    Silent,
}

/// A relay before a server on loopback.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    way: Arc<AtomicU8>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    unanswered: Arc<Mutex<Vec<String>>>,
}

impl Relay {
    /// A relay to `server`, open.
    ///
    /// # Panics
    /// If the loopback is down.
    pub fn new(server: SocketAddr) -> Relay {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback is up");
        let address = listener.local_addr().expect("it is bound");
        let (way, open) = (Arc::new(AtomicU8::new(Way::Open as u8)), Arc::default());
        let relay = Relay { address, way: way.clone(), open, unanswered: Arc::default() };
        let unanswered = relay.unanswered.clone();
        let open: Arc<Mutex<Vec<TcpStream>>> = relay.open.clone();
        // It ends with the process.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if way.load(Ordering::Relaxed) == Way::Closed as u8 {
                    continue;
                }
                let Ok(server) = TcpStream::connect(server) else { continue };
                for (from, to, is_answer) in [(&client, &server, false), (&server, &client, true)] {
                    let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
                    let _ = (from.set_nodelay(true), to.set_nodelay(true));
                    let (way, unanswered) = (way.clone(), unanswered.clone());
                    std::thread::spawn(move || pump(from, to, is_answer, &way, &unanswered));
                }
                open.lock().expect("no thread panics with it").extend([client, server]);
            }
        });
        relay
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The paths that were asked for, in order, since answers get lost.
    ///
    /// # Panics
    /// Not.
    pub fn unanswered(&self) -> Vec<String> {
        self.unanswered.lock().expect("no thread panics with it").clone()
    }

    /// Changes what it does.
    ///
    /// # Panics
    /// Not.
    pub fn set(&self, way: Way) {
        self.unanswered.lock().expect("no thread panics with it").clear();
        self.way.store(way as u8, Ordering::Relaxed);
        if way == Way::Closed {
            for stream in self.open.lock().expect("no thread panics with it").drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, is_answer: bool, way: &AtomicU8, unanswered: &Mutex<Vec<String>>) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(len) = from.read(&mut bytes) {
        let now = way.load(Ordering::Relaxed);
        let is_cut = now == Way::NoAnswers as u8 && is_answer;
        if [Way::NoAnswers as u8, Way::Silent as u8].contains(&now)
            && let Some(request) = bytes[..len].strip_prefix(b"POST ")
        {
            let path = request.split(|byte| *byte == b' ').next().unwrap_or_default();
            unanswered.lock().expect("no thread panics with it").push(String::from_utf8_lossy(path).into_owned());
        }
        if now == Way::Silent as u8 {
            if len == 0 {
                // Nor is it told that one side has gone.
                return;
            }
            continue;
        }
        if len == 0 || is_cut || to.write_all(&bytes[..len]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
