//! Clients that ask for large lists and do not read them: the daemon's memory has its bound, and others are served.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take that takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(60);
/// Ports of the one network: their list with details has some 10 MB.
const PORTS: usize = 60_000;
/// Clients that ask for it.
const DEAF: usize = 100;
/// What the daemon may take more than at rest: the memory of large answers, and what allocator and sockets keep besides.
const GROWTH_MAX: u64 = (128 + 48) << 20;

struct Daemon {
    child: Child,
    address: String,
    directory: PathBuf,
}

impl Daemon {
    fn start() -> Daemon {
        let directory = std::env::temp_dir().join(format!("qvs-deaf-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        let (settings, backup) = (directory.join("qvs.toml"), directory.join("store.jsonl"));
        let shown = directory.to_str().unwrap();
        let text = "state_dir = \"DIR/state\"\nrun_dir = \"DIR/run\"\n[api]\nlisten = \"127.0.0.1:0\"\n";
        std::fs::write(&settings, text.replace("DIR", shown)).unwrap();
        std::fs::write(&backup, store()).unwrap();
        let imported = qvs(&["store", "import", backup.to_str().unwrap()], &settings).output().unwrap();
        assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
        let mut child = qvs(&["run", "--log", "json"], &settings).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let (sender, serving) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                let event: Value = serde_json::from_str(&line).unwrap_or_default();
                if event["message"] == "serving" {
                    let _ = sender.send(event["api"].as_str().unwrap().to_owned());
                }
            }
        });
        let address = serving.recv_timeout(SOON).expect("the daemon serves");
        Daemon { child, address, directory }
    }

    /// Asks, and reads nothing.
    fn begin(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let request = format!(
            "{method} /v1.1/tenants/t/networks{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    /// The status, and whether it says when to ask again.
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, bool) {
        let mut answer = Vec::new();
        self.begin(method, path, body).read_to_end(&mut answer).unwrap();
        let head = String::from_utf8_lossy(&answer[..answer.len().min(1000)]).to_ascii_lowercase();
        (head[9..12].parse().unwrap(), head.contains("\r\nretry-after: "))
    }

    /// Memory in use, bytes.
    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn qvs(args: &[&str], settings: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qvs"));
    command.args(args).arg("--config").arg(settings).env_remove("NOTIFY_SOCKET");
    command
}

/// A backup of a store with one large network.
fn store() -> String {
    let mut text = "{\"store\":{\"format\":\"qvs-store\",\"version\":1}}\n".to_owned();
    text += "{\"network\":{\"id\":\"n\",\"tenant\":\"t\",\"name\":\"large\",\"serial\":0}}\n";
    for at in 0..PORTS {
        let port = json!({"port": {"id": format!("6d3ba1f0-52a8-4c35-9a3e-{at:012}"), "network": "n", "state": "ACTIVE",
                                   "attachment": format!("interface-{at:012}"), "serial": at + 1}});
        let _ = writeln!(text, "{port}");
    }
    let _ = writeln!(text, "{}", json!({"end": {"records": PORTS + 1}}));
    text
}

#[test]
fn a_hundred_clients_who_read_nothing_take_no_more_memory_than_is_set_aside_and_harm_nobody() {
    let daemon = Daemon::start();
    assert_eq!(daemon.ask("GET", "/n/detail", ""), (200, false));
    let rest = daemon.resident();
    let deaf: Vec<_> = (0..DEAF).map(|_| daemon.begin("GET", "/n/detail", "")).collect();
    let (begin, mut most, mut slowest) = (Instant::now(), rest, Duration::ZERO);
    let mut refused = 0;
    // Past the time for which requests wait for memory.
    while begin.elapsed() < Duration::from_secs(8) {
        let asked = Instant::now();
        assert_eq!(daemon.ask("GET", "", ""), (200, false));
        assert_eq!(daemon.ask("POST", "", r#"{"network": {"name": "n"}}"#), (202, false));
        slowest = slowest.max(asked.elapsed());
        most = most.max(daemon.resident());
        std::thread::sleep(Duration::from_millis(20));
    }
    for mut stream in deaf {
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        refused += usize::from(head.ends_with(b" 503"));
    }
    eprintln!("{} MiB at rest, {} at most, {refused} refused, slowest {slowest:?}", rest >> 20, most >> 20);
    assert!(most < rest + GROWTH_MAX, "{} MiB grew to {}", rest >> 20, most >> 20);
    assert!(slowest < Duration::from_secs(30), "a small read and a write took {slowest:?} together");
    assert!(refused > DEAF / 2, "{refused} were refused");
    // Who did not get it now gets it later.
    let begin = Instant::now();
    while daemon.ask("GET", "/n/detail", "") != (200, false) {
        assert!(begin.elapsed() < Duration::from_secs(60), "the memory never came back");
    }
}
