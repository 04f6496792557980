//! The daemon from outside: started as a program, in directories of its own, on ports the system chooses.
//!
//! What needs TAPs makes them in network namespaces without a name, which end with the test; such tests need root and
//! /dev/net/tun, and fail where these are missing.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use switch::af_packet::RawSocket;
use switch::netns;
use switch::port::{Place, Port};
use switch::tap::{Tap, TapConfig};

/// How long anything may take that takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(10);

/// A daemon in a directory of its own; both end with the test.
struct Rig {
    directory: PathBuf,
    daemon: Option<Child>,
}

impl Rig {
    /// Starts a daemon with these further settings and waits until it serves.
    fn start(name: &str, settings: &str) -> Rig {
        let directory = std::env::temp_dir().join(format!("qvs-daemon-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        let shown = directory.display();
        let text =
            format!("state_dir = \"{shown}/state\"\nrun_dir = \"{shown}/run\"\n[api]\nlisten = \"127.0.0.1:0\"\n");
        std::fs::write(directory.join("qvs.toml"), text + settings).unwrap();
        let mut rig = Rig { directory, daemon: None };
        rig.run();
        rig
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qvs"));
        command.args(["run", "--log", "json", "--config"]).arg(self.directory.join("qvs.toml"));
        command.env_remove("NOTIFY_SOCKET").stderr(Stdio::piped());
        command
    }

    /// Starts the daemon again and waits until it serves.
    fn run(&mut self) {
        let mut daemon = self.command().spawn().unwrap();
        let log = BufReader::new(daemon.stderr.take().unwrap());
        let (sender, serving) = std::sync::mpsc::channel();
        // Reads to the end, so that the daemon never blocks on its log.
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                eprintln!("{line}");
                let event: Value = serde_json::from_str(&line).unwrap();
                if event["message"] == "serving" {
                    let _ = sender.send(());
                }
            }
        });
        self.daemon = Some(daemon);
        serving.recv_timeout(SOON).expect("the daemon serves");
    }

    fn pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    fn kill(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    fn terminate(&self) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Waits for the daemon's own end; answers its status and how long it took.
    fn wait(&mut self) -> (Option<i32>, Duration) {
        let begin = Instant::now();
        let status = self.daemon.take().unwrap().wait().unwrap();
        (status.code(), begin.elapsed())
    }

    fn qvs(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qvs"));
        command.args(args).arg("--config").arg(self.directory.join("qvs.toml")).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.qvs(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The one line with which a command was refused.
    fn refused(&self, args: &[&str]) -> String {
        self.refused_with(args, 1)
    }

    fn refused_with(&self, args: &[&str], status: i32) -> String {
        let output = self.qvs(args);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        message
    }

    fn show(&self, what: &str) -> Value {
        serde_json::from_str(&self.ok(&["show", what, "--json"])).unwrap()
    }

    /// The row of `show ports` of an interface.
    fn port(&self, interface: &str) -> Option<Value> {
        let rows = self.show("ports");
        rows.as_array().unwrap().iter().find(|row| row["interface"] == interface).cloned()
    }

    fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let begin = Instant::now();
        while !is_so() {
            assert!(begin.elapsed() < SOON, "{what} never came: {}", self.ok(&["show", "ports"]));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn admin(&self) -> PathBuf {
        self.directory.join("run/admin.sock")
    }

    /// Says `bytes` on the admin socket and returns what comes until the end.
    fn say(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = UnixStream::connect(self.admin()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        // The daemon may hang up before it has heard all of it.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer
    }

    /// A request to the API; answers status and body.
    fn api(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let address = self.show("config")["api_listen"].as_str().unwrap().to_owned();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} /v1.1/tenants/{path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    fn make(&self, path: &str, kind: &str, body: &Value) -> String {
        let (status, answer) = self.api("POST", path, body);
        assert!(status < 300, "{path}: {status} {answer}");
        answer[kind]["id"].as_str().unwrap().to_owned()
    }

    /// A network with a port for each attachment; answers the ports' paths.
    fn attach(&self, tenant: &str, attachments: &[&str]) -> Vec<String> {
        let network = self.make(&format!("{tenant}/networks"), "network", &json!({"network": {"name": "net"}}));
        let ports = attachments.iter().map(|attachment| {
            let path = format!("{tenant}/networks/{network}/ports");
            let port = self.make(&path, "port", &json!({"port": {"state": "ACTIVE"}}));
            let path = format!("{path}/{port}");
            let body = json!({"attachment": {"id": attachment}});
            assert_eq!(self.api("PUT", &format!("{path}/attachment"), &body).0, 204);
            path
        });
        ports.collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            self.kill();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A namespace without a name, and the path by which others reach it.
fn namespace() -> (OwnedFd, String) {
    let netns = netns::create().expect("making a network namespace: run as root");
    let path = format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd());
    (netns, path)
}

fn raw_socket(netns: &OwnedFd, interface: &str) -> RawSocket {
    let socket = netns::within(Some(netns.as_fd()), || RawSocket::open(interface)).unwrap().unwrap();
    socket.ignore_outgoing().unwrap();
    socket
}

/// A broadcast from `source` with `mark` in it.
fn frame(source: u8, mark: u8) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, source, 0x88, 0xb5]);
    frame.extend([mark; 46]);
    frame
}

/// Whether a frame with `mark` in it comes within `limit`.
fn hears(socket: &RawSocket, mark: u8, limit: Duration) -> bool {
    let begin = Instant::now();
    let mut buffer = [0; 2048];
    while let Some(left) = limit.checked_sub(begin.elapsed()) {
        match socket.receive(&mut buffer, left).unwrap() {
            Some(len) if len >= 60 && buffer[12..14] == [0x88, 0xb5] && buffer[59] == mark => return true,
            Some(_) => {}
            None => break,
        }
    }
    false
}

#[test]
fn the_bound_address_and_the_settings_in_force_are_shown() {
    let rig = Rig::start("config", "");
    let config = rig.show("config");
    assert_eq!(config["pid"], rig.pid());
    assert!(config["generation"].is_u64());
    let address: std::net::SocketAddr = config["api_listen"].as_str().unwrap().parse().unwrap();
    assert!(address.port() != 0 && address.ip().is_loopback());
    assert_eq!(config["settings"]["switch"]["poll"], "adaptive");
    let mode = |path: &str| std::fs::metadata(rig.directory.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("state"), mode("run"), mode("run/vhost"), mode("run/admin.sock")), (0o700, 0o750, 0o750, 0o600));
    let status = std::fs::read_to_string(format!("/proc/{}/status", rig.pid())).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"));
}

#[test]
fn no_other_thread_runs_on_a_workers_cpu() {
    let rig = Rig::start("affinity", "");
    let path = rig.directory.join("vm.sock");
    rig.ok(&["plug", "vm", "--vhost-user", path.to_str().unwrap()]);
    rig.until("the socket", || path.exists());
    let worker = rig.show("workers")[0]["cpu"].as_u64().unwrap();
    let line = |status: &str, name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned()).unwrap()
    };
    let mut names = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", rig.pid())).unwrap() {
        // A thread may have ended meanwhile.
        let Ok(status) = std::fs::read_to_string(task.unwrap().path().join("status")) else { continue };
        let (name, cpus) = (line(&status, "Name:"), line(&status, "Cpus_allowed_list:"));
        // As `0-2,5`.
        let is_there = cpus.split(',').any(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            (first.parse().unwrap()..=last.parse().unwrap()).contains(&worker)
        });
        assert_eq!(is_there, name.starts_with("worker-"), "{name} may run on {cpus}; the worker is on {worker}");
        names.push(name);
    }
    for name in ["qvs", "api", "vhost-session", "worker-0"] {
        assert!(names.iter().any(|there| there == name), "{name} is not among {names:?}");
    }
}

#[test]
fn unplugging_a_port_that_could_not_be_opened_takes_what_was_written_of_its_rings() {
    let rig = Rig::start("forgotten", "");
    let path = rig.directory.join("absent/vm.sock");
    rig.ok(&["plug", "vm", "--vhost-user", path.to_str().unwrap()]);
    let kept = vhost::backend::state_path(&rig.directory.join("run/rings"), &path);
    std::fs::write(&kept, "of a switch before this one").unwrap();
    rig.ok(&["unplug", "vm"]);
    rig.until("its file is gone", || !kept.exists());
}

#[test]
fn a_plug_is_shown_survives_kill_9_and_is_gone_after_unplug() {
    let mut rig = Rig::start("plug", "");
    let path = rig.directory.join("vm.sock");
    let path = path.to_str().unwrap();
    let plug = ["plug", "vm 1", "--vhost-user", path, "--mac", "02:00:00:00:00:01", "--mtu", "9000"];
    rig.ok(&plug);
    rig.ok(&plug);
    let row = rig.port("vm 1").unwrap();
    assert_eq!((&row["kind"], &row["path"], &row["role"]), (&json!("vhost-user"), &json!(path), &json!("server")));
    assert_eq!((&row["macs"], &row["mtu"]), (&json!(["02:00:00:00:00:01"]), &json!(9000)));
    assert_eq!((&row["port"], &row["network"], &row["tenant"]), (&Value::Null, &Value::Null, &Value::Null));
    assert!(rig.refused(&["plug", "vm 1", "--tap", "other"]).contains("--replace"));
    assert!(rig.refused(&["plug", "vm 2", "--vhost-user", path]).contains("belongs to interface \"vm 1\""));

    rig.kill();
    rig.run();
    let row = rig.port("vm 1").unwrap();
    assert_eq!((&row["path"], &row["macs"]), (&json!(path), &json!(["02:00:00:00:00:01"])));
    rig.ok(&["unplug", "vm 1"]);
    assert!(rig.refused(&["unplug", "vm 1"]).contains("\"vm 1\" is not plugged"));
    assert_eq!(rig.port("vm 1"), None);
    rig.kill();
    rig.run();
    assert_eq!(rig.show("ports"), json!([]));
}

#[test]
fn wrong_plugs_are_refused_with_one_line() {
    let rig = Rig::start("wrong", "");
    let file = rig.directory.join("file");
    std::fs::write(&file, "precious").unwrap();
    let long = format!("/{}", "x".repeat(107));
    // 2: the words are wrong, 1: they are not, and cannot be done here.
    for (status, args, expected) in [
        (2, &["plug", "", "--tap", "t"][..], "the interface id is empty"),
        (2, &["plug", "vm", "--tap", "sixteen-bytes-xx"], "is no interface name"),
        (2, &["plug", "vm", "--vhost-user", "relative"], "must be an absolute path"),
        (2, &["plug", "vm", "--vhost-user", &long], "at most 107"),
        (1, &["plug", "vm", "--vhost-user", file.to_str().unwrap()], "is no socket"),
        (2, &["plug", "vm", "--tap", "t", "--mac", "ff:ff:ff:ff:ff:ff"], "is no station's address"),
        (2, &["plug", "vm", "--tap", "t", "--mac", "bad"], "is no MAC address"),
        (2, &["plug", "vm", "--tap", "t", "--mtu", "67"], "MTU 67 must be"),
        (2, &["plug", "vm", "--tap", "t", "--netns", "../x"], "is no name of a namespace"),
        (1, &["trace", "nobody", "ff"], "is not plugged here"),
        (2, &["trace", "nobody", "0xff"], "must be hexadecimal"),
    ] {
        let message = rig.refused_with(args, status);
        assert!(message.contains(expected), "{message}");
    }
    // Whoever asks the daemon itself is refused by it.
    let request = json!({"version": 1, "request": {"plug": {"interface": "vm", "device": {"kind": "tap", "name": "t"}, "mtu": 67}}});
    let answer = String::from_utf8(rig.say(format!("{request}\n").as_bytes())).unwrap();
    assert!(answer.contains("MTU 67 must be"), "{answer}");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "precious");
    assert_eq!(rig.show("ports"), json!([]));
}

#[test]
fn logical_ports_without_an_interface_are_shown_with_the_reason() {
    let rig = Rig::start("logical", "");
    rig.attach("red", &["vm1"]);
    let row = rig.port("vm1").unwrap();
    assert_eq!((&row["tenant"], &row["state"], &row["op_status"]), (&json!("red"), &json!("ACTIVE"), &json!("DOWN")));
    assert_eq!((&row["kind"], &row["reason"]), (&Value::Null, &json!("not-plugged")));
    let networks = rig.show("networks");
    assert_eq!(networks[0]["tenant"], "red");
    assert_eq!(networks[0]["ports"].as_array().unwrap().len(), 1);
    for what in ["macs", "workers", "drops"] {
        assert!(rig.show(what).is_array(), "{what}");
    }
}

#[test]
fn any_number_of_logical_ports_is_shown_and_metrics_tell_of_those_that_have_an_interface_here() {
    let mut rig = Rig::start("many", "");
    rig.kill();
    let (count, long) = (4_000, "x".repeat(1_000));
    let mut backup = "{\"store\":{\"format\":\"qvs-store\",\"version\":1}}\n\
        {\"network\":{\"id\":\"n\",\"tenant\":\"red\",\"name\":null,\"serial\":0}}\n"
        .to_owned();
    for at in 1..=count {
        let attachment = if at == 1 { "vm1".to_owned() } else { format!("{long}{at}") };
        let port =
            json!({"id": format!("p{at}"), "network": "n", "state": "ACTIVE", "attachment": attachment, "serial": at});
        backup += &format!("{}\n", json!({ "port": port }));
    }
    backup += &format!("{}\n", json!({"end": {"records": count + 1}}));
    let file = rig.directory.join("backup.jsonl");
    std::fs::write(&file, backup).unwrap();
    rig.ok(&["store", "import", file.to_str().unwrap()]);
    rig.run();
    rig.ok(&["plug", "vm1", "--vhost-user", rig.directory.join("vm.sock").to_str().unwrap()]);

    let rows = rig.show("ports");
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), count);
    assert_eq!((&rows[0]["interface"], &rows[0]["op_status"]), (&json!("vm1"), &json!("UP")));
    assert_eq!(
        (&rows[count - 1]["port"], &rows[count - 1]["reason"]),
        (&json!(format!("p{count}")), &json!("not-plugged"))
    );
    let table = rig.ok(&["show", "ports"]);
    assert_eq!(table.lines().count(), count + 1);
    assert_eq!(rig.show("networks")[0]["ports"].as_array().unwrap().len(), count);
    assert_eq!(rig.show("drops"), json!([]));
    let metrics = String::from_utf8(rig.say(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")).unwrap();
    let told: Vec<&str> = metrics.lines().filter(|line| line.starts_with("qvs_port_up{")).collect();
    assert_eq!(told, ["qvs_port_up{interface=\"vm1\",port=\"p1\",network=\"n\",tenant=\"red\"} 1"]);
}

#[test]
fn rows_have_the_fields_that_other_programs_rely_on() {
    let rig = Rig::start("fields", "");
    rig.ok(&[
        "plug",
        "vm1",
        "--vhost-user",
        rig.directory.join("vm.sock").to_str().unwrap(),
        "--mac",
        "02:00:00:00:00:01",
    ]);
    rig.attach("red", &["vm1", "vm2"]);
    let has = |what: &str, fields: &[&str]| {
        let rows = rig.show(what);
        let rows = rows.as_array().unwrap();
        assert!(!rows.is_empty(), "{what}");
        for row in rows {
            for field in fields {
                assert!(row.get(field).is_some(), "{what} has no {field}: {row}");
            }
        }
    };
    has(
        "ports",
        &[
            "interface",
            "kind",
            "path",
            "port",
            "network",
            "tenant",
            "state",
            "op_status",
            "link",
            "reason",
            "macs",
            "rx",
            "tx",
            "sessions",
            "refused",
        ],
    );
    has("networks", &["id", "name", "tenant", "type", "physical_network", "segmentation_id", "ports"]);
    has("macs", &["network", "mac", "port", "static", "age_s"]);
    has("workers", &["cpu", "busy", "cycles_per_packet", "packets", "batch", "ports", "queues"]);
    let row = rig.port("vm1").unwrap();
    for flow in ["rx", "tx"] {
        assert!(row[flow]["packets"].is_u64() && row[flow]["bytes"].is_u64() && row[flow]["drops"].is_object());
    }
    assert_eq!((&row["op_status"], &row["link"]), (&json!("UP"), &json!("down")));
    assert_eq!(rig.show("macs")[0]["static"], true);
}

#[test]
fn a_second_daemon_on_the_same_socket_or_store_is_refused_with_the_holder_s_pid() {
    let rig = Rig::start("second", "");
    let expected = format!("is in use by process {}", rig.pid());
    for change in ["run_dir", "state_dir"] {
        let text = std::fs::read_to_string(rig.directory.join("qvs.toml")).unwrap();
        let other = text.replace(
            &format!("{change} = \"{}", rig.directory.display()),
            &format!("{change} = \"{}/other", rig.directory.display()),
        );
        let file = rig.directory.join("other.toml");
        std::fs::write(&file, other).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_qvs")).args(["run", "--config"]).arg(&file).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(&expected), "{message}");
    }
    for command in ["export", "import"] {
        let file = rig.directory.join("backup.jsonl");
        std::fs::write(&file, "{\"store\":{\"format\":\"qvs-store\",\"version\":1}}\n{\"end\":{\"records\":0}}\n")
            .unwrap();
        let message = rig.refused(&["store", command, file.to_str().unwrap()]);
        assert!(message.contains(&format!("{expected}; stop that first")), "{message}");
    }
    assert_eq!(rig.show("config")["pid"], rig.pid(), "the first one goes on");
}

#[test]
fn sigterm_ends_it_with_0_within_5_s_whatever_hangs_on_it() {
    let mut rig = Rig::start("term", "[metrics]\nlisten = \"127.0.0.1:0\"\n");
    rig.ok(&["plug", "vm", "--vhost-user", rig.directory.join("vm.sock").to_str().unwrap()]);
    let config = rig.show("config");
    let _idle_admin = UnixStream::connect(rig.admin()).unwrap();
    let mut half = TcpStream::connect(config["api_listen"].as_str().unwrap()).unwrap();
    half.write_all(b"POST /v1.1/tenants/red/networks HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
        .unwrap();
    let _idle_scrape = TcpStream::connect(config["metrics_listen"].as_str().unwrap()).unwrap();
    rig.terminate();
    let (status, took) = rig.wait();
    assert_eq!(status, Some(0));
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(!rig.admin().exists(), "the socket is gone with the daemon");
}

#[test]
fn hostile_bytes_on_the_admin_socket_harm_nobody() {
    let rig = Rig::start("hostile", "");
    let nested = "[".repeat(200_000) + "\n";
    let long = "x".repeat(300_000);
    let many_headers = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(10_000));
    for bytes in [
        &b"\n"[..],
        b"\0\0\0\0\n",
        b"\xff\xfe\n",
        b"{",
        b"GET",
        b"GET /\r\n",
        nested.as_bytes(),
        long.as_bytes(),
        many_headers.as_bytes(),
    ] {
        rig.say(bytes);
    }
    let huge = format!(
        "{{\"version\":1,\"request\":{{\"trace\":{{\"port\":\"x\",\"frame\":\"{}\"}}}}}}\n",
        "ab".repeat(100_000)
    );
    assert!(String::from_utf8_lossy(&rig.say(huge.as_bytes())).contains("at most"));
    let idle: Vec<_> = (0..40).map(|_| UnixStream::connect(rig.admin()).unwrap()).collect();
    drop(idle);
    rig.until("an answer", || rig.qvs(&["show", "ports"]).status.success());
}

#[test]
fn metrics_are_served_on_both_listeners() {
    let rig = Rig::start("metrics", "[metrics]\nlisten = \"127.0.0.1:0\"\n");
    rig.ok(&["plug", "a\"b", "--vhost-user", rig.directory.join("vm.sock").to_str().unwrap()]);
    let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
    let by_socket = String::from_utf8(rig.say(request)).unwrap();
    let address = rig.show("config")["metrics_listen"].as_str().unwrap().to_owned();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request).unwrap();
    let mut by_tcp = String::new();
    stream.read_to_string(&mut by_tcp).unwrap();
    for text in [by_socket, by_tcp] {
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(text.contains("qvs_port_packets_total{interface=\"a\\\"b\",port=\"\""), "{text}");
    }
}

#[test]
fn the_service_manager_is_told_when_ports_are_back_and_when_it_ends() {
    let mut rig = Rig::start("notify", "");
    rig.kill();
    let path = rig.directory.join("notify.sock");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let mut command = rig.command();
    rig.daemon = Some(command.env("NOTIFY_SOCKET", &path).stderr(Stdio::null()).spawn().unwrap());
    let hear = || {
        let mut buffer = [0; 64];
        let count = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    };
    assert!(hear().starts_with("READY=1\n"));
    rig.terminate();
    assert_eq!(hear(), "STOPPING=1");
    assert_eq!(rig.wait().0, Some(0));
}

#[test]
fn a_first_start_without_etcd_tells_what_it_waits_for_and_holds_up_nobody_for_long() {
    let mut rig = Rig::start("wait", "");
    rig.kill();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = std::fs::read_to_string(rig.directory.join("qvs.toml")).unwrap();
    let settings = settings + &format!("[store]\nurl = \"etcd:http://{nobody}\"\n");
    std::fs::write(rig.directory.join("qvs.toml"), settings).unwrap();
    let path = rig.directory.join("notify.sock");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(25))).unwrap();
    rig.daemon = Some(rig.command().env("NOTIFY_SOCKET", &path).stderr(Stdio::null()).spawn().unwrap());
    let hear = || {
        let mut buffer = [0; 512];
        let count = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    };
    let status = hear();
    assert!(status.starts_with("STATUS=waiting for etcd: "), "{status}");
    let begin = Instant::now();
    for command in [&["show", "ports"][..], &["unplug", "a"], &["trace", "a", "00"], &["capture", "a"]] {
        assert!(rig.refused(command).contains("the daemon waits for etcd: "), "{command:?}");
    }
    assert!(begin.elapsed() < SOON);
    // Long before systemd's start timeout (DefaultTimeoutStartSec=90s).
    assert_eq!(hear(), "READY=1");
    rig.terminate();
    assert_eq!(rig.wait().0, Some(0));
}

#[test]
fn the_fake_plugin_keeps_records_and_says_up() {
    let rig = Rig::start("fake", "[plugin]\ndriver = \"fake\"\n");
    let ports = rig.attach("red", &["vm1"]);
    let (status, answer) = rig.api("GET", &ports[0], &Value::Null);
    assert_eq!((status, &answer["port"]["op-status"]), (200, &json!("UP")));
    assert_eq!(rig.port("vm1").unwrap()["op_status"], "UP", "show says what the API says");
}

#[test]
fn a_tenant_gets_what_its_quota_says_also_after_a_restart_and_quotas_are_shown() {
    let mut rig = Rig::start("quota", "[quota]\nnetworks = 2\nports = 1\n");
    let network = json!({"network": {"name": "n"}});
    let create = |rig: &Rig, tenant: &str| rig.api("POST", &format!("{tenant}/networks"), &network).0;
    assert_eq!([0; 3].map(|_| create(&rig, "red")), [202, 202, 409]);
    rig.attach("blue", &["vif"]);
    rig.kill();
    rig.run();
    assert_eq!((create(&rig, "red"), create(&rig, "blue")), (409, 202));
    let row = |tenant: &str, networks: u64, ports: u64| json!({"tenant": tenant, "networks": networks, "networks_max": 2, "ports": ports, "ports_max": 1});
    assert_eq!(rig.show("quotas"), json!([row("blue", 2, 1), row("red", 2, 0)]));
    rig.kill();
    // A file of tenants' own, and one that cannot be used.
    let file = rig.directory.join("quotas.toml");
    let settings = std::fs::read_to_string(rig.directory.join("qvs.toml")).unwrap() + &format!("tenants = {file:?}\n");
    std::fs::write(rig.directory.join("qvs.toml"), settings).unwrap();
    std::fs::write(&file, "[red]\nnetworks = -1\n[green]\nports = many\n").unwrap();
    let output = rig.qvs(&["run"]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("quota.tenants: ") && message.contains("line 4: "), "{message}");
    assert!(String::from_utf8(rig.qvs(&["check"]).stdout).unwrap().contains("FAIL  quotas: "));
    std::fs::write(&file, "[red]\nnetworks = -1\n[green]\nports = 0\n").unwrap();
    rig.run();
    assert_eq!((create(&rig, "red"), create(&rig, "blue")), (202, 409));
    let green = json!({"tenant": "green", "networks": 0, "networks_max": 2, "ports": 0, "ports_max": 0});
    assert_eq!(rig.show("quotas")[1], green);
}

#[test]
fn sessions_and_refused_connections_are_counted_and_shown() {
    let rig = Rig::start("seconds", "");
    let path = rig.directory.join("vm.sock");
    rig.ok(&["plug", "vm", "--vhost-user", path.to_str().unwrap()]);
    let first = UnixStream::connect(&path).unwrap();
    rig.until("the session", || rig.port("vm").unwrap()["sessions"] == 1);
    let mut second = UnixStream::connect(&path).unwrap();
    second.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(second.read(&mut [0]).unwrap_or(0), 0, "hung up on");
    rig.until("the count", || rig.port("vm").unwrap()["refused"] == 1);
    assert_eq!(rig.port("vm").unwrap()["sessions"], 1);
    drop(first);
}

#[test]
fn frames_flow_within_a_network_only_and_follow_state_attachment_plug_and_restart() {
    let mut rig = Rig::start("taps", "");
    let rooms: Vec<_> = (0..3).map(|_| namespace()).collect();
    for (at, (_, path)) in rooms.iter().enumerate() {
        rig.ok(&["plug", &format!("vm{at}"), "--tap", "t0", "--netns", path]);
    }
    let ports = rig.attach("red", &["vm0", "vm1"]);
    rig.attach("blue", &["vm2"]);
    let sockets: Vec<_> = rooms.iter().map(|(netns, _)| raw_socket(netns, "t0")).collect();
    let passes_within = |mark: u8, limit: Duration| {
        sockets[0].send(&frame(1, mark)).unwrap();
        let is_heard = hears(&sockets[1], mark, limit);
        assert!(!hears(&sockets[2], mark, Duration::from_millis(50)), "the other tenant heard a frame");
        is_heard
    };
    let passes = |mark: u8| passes_within(mark, SOON);
    let is_stopped = |mark: u8| !passes_within(mark, Duration::from_millis(500));
    assert!(passes(1), "members of a network hear each other");
    assert_eq!(rig.port("vm0").unwrap()["op_status"], "UP");
    assert!(
        rig.show("macs")
            .as_array()
            .unwrap()
            .iter()
            .any(|row| row["mac"] == "02:00:00:00:00:01" && row["interface"] == "vm0")
    );

    let state = |state: &str| rig.api("PUT", &ports[1], &json!({"port": {"state": state}})).0;
    assert_eq!(state("DOWN"), 204);
    assert!(is_stopped(2), "DOWN stops traffic");
    assert_eq!(rig.port("vm1").unwrap()["op_status"], "DOWN");
    assert_eq!(state("ACTIVE"), 204);
    assert!(passes(3), "ACTIVE resumes it");

    rig.kill();
    rig.run();
    rig.until("the ports", || ["vm0", "vm1"].iter().all(|vm| rig.port(vm).unwrap()["op_status"] == "UP"));
    assert!(passes(4), "kill -9 and restart keep all");

    let attachment = format!("{}/attachment", ports[1]);
    assert_eq!(rig.api("DELETE", &attachment, &Value::Null).0, 204);
    assert!(is_stopped(5), "detaching stops traffic");
    assert!(netns::has_interface(Some(rooms[1].0.as_fd()), "t0").unwrap(), "and leaves the plug's device");
    assert_eq!(rig.api("PUT", &attachment, &json!({"attachment": {"id": "vm1"}})).0, 204);
    assert!(passes(6));

    rig.ok(&["unplug", "vm1"]);
    assert!(!netns::has_interface(Some(rooms[1].0.as_fd()), "t0").unwrap(), "unplugging removes it");
    assert_eq!(rig.port("vm1").unwrap()["reason"], "not-plugged");
    let trace = rig.ok(&["trace", "vm0", "ffffffffffff020000000001 0806"]);
    assert!(trace.contains("classify") || trace.contains("parse"), "{trace}");
}

#[test]
fn a_device_that_is_not_ours_is_refused_and_a_replaced_one_is_removed() {
    let rig = Rig::start("ours", "");
    let (netns, path) = namespace();
    let message = rig.refused(&["plug", "vm", "--tap", "lo", "--netns", &path]);
    assert!(message.contains("exists already and is not ours"), "{message}");
    assert_eq!(rig.show("ports"), json!([]));

    rig.ok(&["plug", "vm", "--tap", "t0", "--netns", &path]);
    rig.ok(&["plug", "vm", "--tap", "t1", "--netns", &path, "--replace"]);
    assert!(!netns::has_interface(Some(netns.as_fd()), "t0").unwrap());
    assert!(netns::has_interface(Some(netns.as_fd()), "t1").unwrap());

    let output = rig.ok(&["plug", "later", "--tap", "t2", "--netns", "/run/netns/qvs-test-nowhere"]);
    assert!(output.contains("waiting for the device: the network namespace"), "{output}");
    assert!(rig.port("later").unwrap()["reason"].as_str().unwrap().contains("is gone"));
}

#[test]
fn a_strangers_dead_socket_is_left_alone_ours_is_taken_again_and_a_removed_one_is_made_anew() {
    let mut rig = Rig::start("sockets", "");
    let (theirs, ours) = (rig.directory.join("theirs.sock"), rig.directory.join("ours.sock"));
    // Bound and closed: a dead socket of our own user, as a stopped QEMU leaves it.
    drop(std::os::unix::net::UnixListener::bind(&theirs).unwrap());
    rig.ok(&["plug", "foreign", "--vhost-user", theirs.to_str().unwrap()]);
    rig.ok(&["plug", "vm", "--vhost-user", ours.to_str().unwrap()]);
    let reason = |id: &str| rig.port(id).unwrap()["reason"].as_str().unwrap().to_owned();
    rig.until("the refusal", || reason("foreign").contains("exists already and is not ours"));
    assert!(theirs.exists());
    rig.until("our socket", || UnixStream::connect(&ours).is_ok());

    std::fs::remove_file(&ours).unwrap();
    rig.until("our socket again", || UnixStream::connect(&ours).is_ok());

    rig.kill();
    assert!(ours.exists(), "kill -9 leaves it behind");
    rig.run();
    rig.until("our socket after a restart", || UnixStream::connect(&ours).is_ok());
    rig.ok(&["unplug", "foreign"]);
    assert!(theirs.exists(), "unplugging leaves it alone");
}

#[test]
fn a_tap_has_the_queues_it_was_plugged_with_also_after_a_restart() {
    let mut rig = Rig::start("queues", "");
    let (netns, path) = namespace();
    let plug = |queues: &'static str| ["plug", "vm", "--tap", "t0", "--netns", path.as_str(), "--queues", queues];
    let queues = |rig: &Rig| {
        let workers = rig.show("workers");
        let all = workers.as_array().unwrap().iter().flat_map(|row| row["queues"].as_array().unwrap());
        let mut numbers: Vec<u64> = all.map(|queue| queue["queue"].as_u64().unwrap()).collect();
        numbers.sort_unstable();
        numbers
    };
    rig.ok(&["plug", "vm", "--tap", "t0", "--netns", &path]);
    rig.until("one queue", || queues(&rig) == [0]);
    // One written out is the same plug; another number is another device.
    rig.ok(&plug("1"));
    assert!(rig.refused(&plug("4")).contains("--replace changes it"));
    for wrong in ["0", "17"] {
        assert_eq!(rig.refused_with(&plug(wrong), 2), format!("qvs: {wrong} queues; a TAP has 1 to 16\n"));
    }
    rig.ok(&[&plug("4")[..], &["--replace"]].concat());
    rig.until("four queues", || queues(&rig) == [0, 1, 2, 3]);
    rig.kill();
    rig.run();
    rig.until("four queues again", || queues(&rig) == [0, 1, 2, 3]);
    assert_eq!(rig.port("vm").unwrap()["reason"], "");
    rig.ok(&["unplug", "vm"]);
    assert!(!netns::has_interface(Some(netns.as_fd()), "t0").unwrap());
}

/// A place where nobody looks: for a device that somebody else made.
struct NoPlace;

impl Place for NoPlace {
    fn publish(&self, _port: Arc<dyn Port>) {}
    fn withdraw(&self) {}
}

#[test]
fn after_a_restart_only_a_device_of_our_own_making_is_reopened() {
    let mut rig = Rig::start("stranger", "");
    let (ours, our_path) = namespace();
    let (theirs, their_path) = namespace();
    let link = rig.directory.join("netns");
    std::os::unix::fs::symlink(&our_path, &link).unwrap();
    rig.ok(&["plug", "vm", "--tap", "t0", "--netns", link.to_str().unwrap()]);
    let mac = raw_socket(&ours, "t0").mac();
    rig.kill();
    rig.run();
    rig.until("our device", || rig.port("vm").unwrap()["link"] == "up");
    assert_eq!(raw_socket(&ours, "t0").mac(), mac, "the same device");

    // Somebody else's device of the same name, where the path now leads.
    rig.kill();
    let config =
        TapConfig { name: "t0".into(), netns: Some(theirs.try_clone().unwrap()), mtu: None, queues: 1, reopen: false };
    drop(Tap::open(config, Arc::new(NoPlace)).unwrap());
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&their_path, &link).unwrap();
    rig.run();
    let reason = || rig.port("vm").unwrap()["reason"].as_str().unwrap().to_owned();
    rig.until("the refusal", || reason().contains("exists already and is not ours"));
    rig.ok(&["unplug", "vm"]);
    assert!(netns::has_interface(Some(theirs.as_fd()), "t0").unwrap(), "unplugging leaves it alone");
}
