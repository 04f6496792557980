//! The admin socket's rights, bounds and wrong input.

use super::*;
use std::io::Read;
use std::time::Instant;

struct Echo;

impl Service for Echo {
    fn answer(&self, request: Request) -> Answer {
        Answer::Ok(serde_json::Value::String(format!("{request:?}")))
    }

    fn show(&self, what: What, to: &mut dyn Write) -> io::Result<()> {
        write_answer(to, &Answer::Ok(format!("{what:?}").into()))
    }

    fn capture(&self, request: CaptureRequest, mut stream: &UnixStream) -> io::Result<()> {
        writeln!(stream, "captured at {}", request.port)
    }

    fn metrics(&self) -> String {
        "qvs_up 1\n".into()
    }
}

/// Says `text` to a connection with these rights and returns all it answers.
fn say(text: &[u8], rights: Rights) -> String {
    let (mut client, server) = UnixStream::pair().unwrap();
    let text = text.to_vec();
    let talker = std::thread::spawn(move || talk(&server, Client { rights, uid: 0, pid: 1 }, &Echo));
    // The server may hang up on what it does not like before we have said all of it.
    let _ = client.write_all(&text);
    let _ = client.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer);
    let _ = talker.join().unwrap();
    String::from_utf8(answer).unwrap()
}

fn request(body: &str) -> Vec<u8> {
    format!("{{\"version\":1,\"request\":{body}}}\n").into_bytes()
}

#[test]
fn the_group_may_look_but_not_touch() {
    let show = request(r#"{"show":{"what":"ports"}}"#);
    let trace = request(r#"{"trace":{"port":"a","frame":""}}"#);
    let unplug = request(r#"{"unplug":{"interface":"a"}}"#);
    let capture = |snaplen: usize| {
        let text = r#"{"capture":{"port":"a","direction":"both","snaplen":SNAPLEN,"buffer":0,"filter":""}}"#;
        request(&text.replace("SNAPLEN", &snaplen.to_string()))
    };
    assert!(say(&capture(1), Rights::Look).starts_with("{\"error\":\"only root"));
    assert_eq!(say(&capture(1), Rights::All), "captured at a\n");
    assert_eq!(say(&capture(0), Rights::Look), "captured at a\n");
    for looks in [&show, &trace] {
        assert!(say(looks, Rights::Look).starts_with("{\"ok\":"));
    }
    let rebalance = request(r#"{"rebalance":{"dry_run":false}}"#);
    for touches in [&unplug, &rebalance] {
        assert!(say(touches, Rights::Look).starts_with("{\"error\":\"only root"));
        assert!(say(touches, Rights::All).starts_with("{\"ok\":"));
    }
}

#[test]
fn several_requests_are_answered_in_order_and_garbage_does_not_end_the_connection() {
    let mut text = b"garbage\n{}\n\xff\xfe\n[[[[\n\n".to_vec();
    text.extend(request(r#"{"show":{"what":"macs"}}"#));
    let answer = say(&text, Rights::All);
    let lines: Vec<&str> = answer.lines().collect();
    assert_eq!(lines.len(), 6);
    assert!(lines[..5].iter().all(|line| line.starts_with("{\"error\":\"not a request")), "{answer}");
    assert!(lines[5].contains("Macs"));
}

#[test]
fn another_version_is_refused_by_name() {
    let answer = say(b"{\"version\":2,\"request\":{\"sing\":{}}}\n", Rights::All);
    assert!(answer.contains("speaks version 1 of the admin protocol, not 2"), "{answer}");
}

#[test]
fn an_endless_line_is_cut_off() {
    let answer = say(&vec![b'x'; LINE_MAX + 100], Rights::All);
    assert!(answer.contains("longer than"), "{answer}");
}

#[test]
fn deep_nesting_is_refused_without_harm() {
    let answer = say(format!("{}\n", "[".repeat(LINE_MAX - 1)).as_bytes(), Rights::All);
    assert!(answer.contains("not a request"), "{answer}");
}

#[test]
fn metrics_are_served_in_http_and_other_paths_are_not() {
    let answer = say(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", Rights::Look);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nqvs_up 1\n"), "{answer}");
    assert!(say(b"GET /../etc HTTP/1.1\r\n\r\n", Rights::All).starts_with("HTTP/1.1 404"));
    assert!(say(b"GET \n\n", Rights::All).starts_with("HTTP/1.1 404"));
}

#[test]
fn the_group_never_takes_the_last_seats() {
    let gate = Arc::new(Gate::default());
    let lookers: Vec<_> = std::iter::from_fn(|| Seat::take(&gate, Rights::Look)).collect();
    assert_eq!(lookers.len(), GROUP_CONNECTIONS_MAX);
    let root: Vec<_> = std::iter::from_fn(|| Seat::take(&gate, Rights::All)).collect();
    assert_eq!(root.len(), CONNECTIONS_MAX - GROUP_CONNECTIONS_MAX);
    drop((lookers, root));
    assert_eq!(gate.all.load(Ordering::Relaxed), 0);
    assert_eq!(gate.looking.load(Ordering::Relaxed), 0);
}

#[test]
fn a_second_daemon_is_told_the_first_one_s_pid_and_a_dead_socket_is_replaced() {
    let directory = std::env::temp_dir().join(format!("qvs-admin-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("admin.sock");
    let first = AdminSocket::bind(&path, None).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let message = AdminSocket::bind(&path, None).err().unwrap().to_string();
    assert!(message.ends_with(&format!("is in use by process {}", std::process::id())), "{message}");
    // A holder that has locked and not yet written.
    let pid_file = path.with_added_extension("pid");
    std::fs::write(&pid_file, "").unwrap();
    let writer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        std::fs::write(pid_file, "4711\n").unwrap();
    });
    let begin = Instant::now();
    loop {
        let looks = Instant::now();
        let message = AdminSocket::bind(&path, None).err().unwrap().to_string();
        if message.ends_with("is in use by process 4711") {
            break;
        }
        // On a busy machine the writer may take longer than it is waited for.
        assert!(looks.elapsed() >= PID_PAUSE * PID_LOOKS && begin.elapsed() < Duration::from_secs(5), "{message}");
    }
    writer.join().unwrap();
    drop(first);
    assert!(!path.exists(), "a daemon that could not start leaves no socket");
    let stranger = UnixListener::bind(&path).unwrap();
    assert!(matches!(AdminSocket::bind(&path, None), Err(AdminError::Foreign { .. })));
    drop(stranger);
    // Dead now, as after kill -9.
    let second = AdminSocket::bind(&path, Some(rustix::process::getgid().as_raw())).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    drop(second);
    std::fs::write(&path, "somebody's").unwrap();
    assert!(matches!(AdminSocket::bind(&path, None), Err(AdminError::NotASocket { .. })));
    std::fs::remove_dir_all(&directory).unwrap();
}
