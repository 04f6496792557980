//! Writes by the admin socket in the audit log, at whatever level the rest is logged.

use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take that takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(10);

#[test]
fn writes_by_the_admin_socket_are_told_with_the_peer_s_uid_and_looks_are_not() {
    let directory = std::env::temp_dir().join(format!("qvs-audit-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).unwrap();
    let (settings, shown) = (directory.join("qvs.toml"), directory.to_str().unwrap());
    let text = "state_dir = \"DIR/state\"\nrun_dir = \"DIR/run\"\n[api]\nlisten = \"127.0.0.1:0\"\n";
    std::fs::write(&settings, text.replace("DIR", shown)).unwrap();
    let qvs = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qvs"));
        command.args(args).arg("--config").arg(&settings).env_remove("NOTIFY_SOCKET");
        command
    };
    let mut daemon = qvs(&["run", "--log", "json", "--log-level", "error"]).stderr(Stdio::piped()).spawn().unwrap();
    let socket = directory.join("run/admin.sock");
    let begin = Instant::now();
    let mut stream = loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => break stream,
            Err(error) => assert!(begin.elapsed() < SOON, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    stream.set_read_timeout(Some(SOON)).unwrap();
    let path = format!("{shown}/vif");
    assert!(qvs(&["plug", "a\u{1b}[2Jb", "--vhost-user", &path]).status().unwrap().success());
    assert_eq!(qvs(&["plug", "other", "--vhost-user", &path]).status().unwrap().code(), Some(1));
    for look in [&["show", "ports"][..], &["rebalance", "--dry-run"], &["trace", "a\u{1b}[2Jb", "00"]] {
        qvs(look).output().unwrap();
    }
    assert!(qvs(&["rebalance"]).output().unwrap().status.success());
    assert!(qvs(&["unplug", "a\u{1b}[2Jb"]).status().unwrap().success());
    let long = format!("{{\"version\":1,\"request\":{{\"unplug\":{{\"interface\":\"{}\"}}}}}}\n", "x".repeat(100_000));
    stream.write_all(long.as_bytes()).unwrap();
    BufReader::new(&stream).read_line(&mut String::new()).unwrap();

    daemon.kill().unwrap();
    let log: Vec<String> = BufReader::new(daemon.stderr.take().unwrap()).lines().map_while(Result::ok).collect();
    daemon.wait().unwrap();
    let _ = std::fs::remove_dir_all(&directory);
    let events: Vec<Value> = log.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let audits: Vec<_> = events.iter().filter(|event| event["target"] == "audit").collect();
    let told: Vec<_> =
        audits.iter().map(|event| (event["request"].as_str().unwrap(), event["result"].as_str().unwrap())).collect();
    let wanted = [
        ("{\"plug\":", "done"),
        ("{\"plug\":", "refused"),
        ("{\"rebalance\":", "done"),
        ("{\"unplug\":", "done"),
        ("{\"unplug\":", "refused"),
    ];
    assert_eq!(told.len(), wanted.len(), "{log:#?}");
    for ((request, result), (begin, wanted)) in told.iter().zip(wanted) {
        assert!(request.starts_with(begin) && *result == wanted && request.len() < 1000, "{request} {result}");
        assert!(!request.contains('\u{1b}'), "{request}");
    }
    let uid = rustix::process::getuid().as_raw();
    assert!(audits.iter().all(|event| event["uid"] == uid && event["pid"].as_u64().is_some()), "{log:#?}");
    assert!(audits[1]["why"].as_str().is_some_and(|why| !why.is_empty()), "{log:#?}");
}
