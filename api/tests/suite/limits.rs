//! The server's bounds: sizes, times, counts, and its end.

use crate::rig::{Answer, Driver, Scratch, Server, read_to_end};
use api::plugin::Plugin;
use api::plugins::FakePlugin;
use api::server::{BODY_BYTES_MAX, HEAD_BYTES_MAX, Limits, ServerConfig};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

const NETWORKS: &str = "/v1.1/tenants/red/networks";

fn body_of(size: usize) -> String {
    let frame = r#"{"network": {"name": "n"}, "pad": ""}"#;
    format!(r#"{{"network": {{"name": "n"}}, "pad": "{}"}}"#, "x".repeat(size - frame.len()))
}

#[test]
fn a_body_of_64_kib_is_read_and_one_byte_more_gets_413() {
    let server = Server::start(Driver::Fake);
    assert_eq!(server.ask("POST", NETWORKS, Some(&body_of(BODY_BYTES_MAX))).status, 202);
    for size in [BODY_BYTES_MAX + 1, 1 << 20] {
        let answer = server.ask("POST", NETWORKS, Some(&body_of(size)));
        assert_eq!((answer.status, answer.reason.as_str()), (413, "Payload Too Large"), "{size}");
        assert_eq!(answer.json()["Error"]["code"], 413);
    }
    let mut chunked = format!("POST {NETWORKS} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..20 {
        chunked += &format!("1000\r\n{}\r\n", "x".repeat(0x1000));
    }
    assert_eq!(Answer::parse(&server.raw(format!("{chunked}0\r\n\r\n").as_bytes())).status, 413);
    assert_eq!(server.ask("GET", NETWORKS, None).json()["networks"].as_array().unwrap().len(), 1);
}

#[test]
fn a_head_of_16_kib_is_read_and_more_gets_431() {
    let server = Server::start(Driver::Fake);
    let head = |size: usize| {
        let start = format!("GET {NETWORKS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Pad: ");
        format!("{start}{}\r\n\r\n", "x".repeat(size - start.len() - 4))
    };
    assert_eq!(Answer::parse(&server.raw(head(HEAD_BYTES_MAX).as_bytes())).status, 200);
    for size in [HEAD_BYTES_MAX + 1, 20_000, 40_000, 200_000] {
        let answer = Answer::parse(&server.raw(head(size).as_bytes()));
        assert_eq!(answer.status, 431, "{size}");
    }
    let many = "X-A: b\r\n".repeat(150);
    let answer = server.raw(format!("GET / HTTP/1.1\r\nHost: localhost\r\n{many}\r\n").as_bytes());
    assert_eq!(Answer::parse(&answer).status, 431);
}

#[test]
fn slow_clients_are_cut_and_hold_nobody_up() {
    let quick = Duration::from_secs(2);
    let limits = Limits { connections: 2, head_time: quick, body_time: quick, ..Limits::default() };
    let server = Server::with_limits(limits);
    let begin = Instant::now();
    let mut head = server.connect();
    head.write_all(b"GET / HT").unwrap();
    let mut body = server.connect();
    body.write_all(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n1").unwrap();
    // Both connections are taken; this one waits for the first to be cut.
    assert_eq!(server.ask("GET", NETWORKS, None).status, 200);
    assert_eq!(Answer::parse(&read_to_end(&mut body)).status, 408);
    assert!(!read_to_end(&mut head).contains("200"));
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[test]
fn an_idle_kept_connection_is_closed_in_time_and_carries_many_requests_until_then() {
    let limits = Limits { head_time: Duration::from_secs(2), ..Limits::default() };
    let server = Server::with_limits(limits);
    let mut stream = server.connect();
    for _ in 0..3 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).unwrap();
        assert!(buffer[..count].starts_with(b"HTTP/1.1 200 OK\r\n"));
    }
    let begin = Instant::now();
    read_to_end(&mut stream);
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[test]
fn five_hundred_clients_who_keep_their_connections_and_write_at_once_are_all_served() {
    let server = Server::start(Driver::Native);
    raise_file_limit();
    let mut clients: Vec<_> = (0..500).map(|_| server.connect()).collect();
    let body = r#"{"network": {"name": "n"}}"#;
    let request =
        format!("POST {NETWORKS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    for client in &mut clients {
        client.write_all(request.as_bytes()).unwrap();
    }
    for (at, client) in clients.iter_mut().enumerate() {
        let mut buffer = [0; 4096];
        let count = client.read(&mut buffer).unwrap_or_else(|error| panic!("client {at}: {error}"));
        let answer = String::from_utf8_lossy(&buffer[..count]);
        assert!(answer.starts_with("HTTP/1.1 202 Accepted\r\n"), "client {at}: {answer}");
    }
    assert_eq!(server.ask("GET", NETWORKS, None).json()["networks"].as_array().unwrap().len(), 500);
}

/// Both ends of every connection are in this process.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

#[test]
fn a_request_in_flight_is_answered_at_shutdown_and_new_ones_are_not_taken() {
    let mut server = Server::with_limits(Limits::default());
    let body = r#"{"network": {"name": "last"}}"#;
    let mut stream = server.connect();
    let head = format!("POST {NETWORKS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    let idle = server.connect();
    assert_eq!(server.ask("GET", NETWORKS, None).status, 200);
    server.stop();
    while std::net::TcpStream::connect(server.address).is_ok() {
        std::thread::sleep(Duration::from_millis(5));
    }
    stream.write_all(body.as_bytes()).unwrap();
    assert_eq!(Answer::parse(&read_to_end(&mut stream)).status, 202);
    let begin = Instant::now();
    server.join();
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    drop(idle);
}

#[test]
fn a_peer_with_all_its_connections_gets_in_for_those_that_only_wait() {
    let server = Server::with_limits(Limits { loopback_connections: 20, ..Limits::default() });
    let mut idle: Vec<_> = (0..100).map(|_| server.connect()).collect();
    for stream in &mut idle[..10] {
        // A head that never ends is no request.
        let _ = stream.write_all(b"GET / HT");
    }
    let begin = Instant::now();
    for _ in 0..3 {
        assert_eq!(server.ask("GET", NETWORKS, None).status, 200);
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    let is_open = |stream: &mut TcpStream| {
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        stream.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    };
    let open = idle.iter_mut().map(is_open).collect::<Vec<_>>();
    let count = open.iter().filter(|open| **open).count();
    assert!((17..20).contains(&count), "those asking took one each or one in turn: {open:?}");
    assert!(open[..80].iter().all(|open| !open), "who waited longest left: {open:?}");
    drop(idle);

    let mut half: Vec<_> = (0..20).map(|_| server.connect()).collect();
    for stream in &mut half {
        stream.write_all(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n1").unwrap();
    }
    assert_eq!(server.ask("GET", NETWORKS, None).status, 200, "half a body is no work");
    assert!(half.iter_mut().map(is_open).filter(|open| !open).count() > 0);
}

/// A server with a tenant's network of this many ports; answers the path of the list of their details.
fn with_ports(count: usize, limits: Limits) -> (Server, String) {
    let plugin = FakePlugin::new();
    let network = plugin.create_network("red", None).unwrap();
    for _ in 0..count {
        plugin.create_port("red", &network, "ACTIVE").unwrap();
    }
    let config = ServerConfig { limits, ..ServerConfig::default() };
    let path = format!("{NETWORKS}/{network}/ports/detail");
    (Server::over(Arc::new(plugin), config, Scratch::new()), path)
}

/// Asks on a connection of its own for what it does not read.
fn ask_and_not_read(server: &Server, path: &str) -> TcpStream {
    let mut stream = server.connect();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
    stream
}

#[test]
fn lists_that_nobody_reads_use_up_their_memory_and_then_get_503_while_small_answers_go_on() {
    let limits = Limits { answer_memory: 32 << 20, answer_wait: Duration::from_millis(100), ..Limits::default() };
    // More than the kernel takes on the way.
    let (server, path) = with_ports(100_000, limits);
    let whole = server.ask("GET", &path, None);
    assert_eq!(whole.status, 200);
    assert_eq!(whole.json()["ports"].as_array().unwrap().len(), 100_000);
    let deaf: Vec<_> = (0..8).map(|_| ask_and_not_read(&server, &path)).collect();
    let begin = Instant::now();
    let refused = loop {
        let answer = server.ask("GET", &path, None);
        assert!(begin.elapsed() < Duration::from_secs(60), "there is memory without end");
        if answer.status != 200 {
            break answer;
        }
    };
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")), "{refused:?}");
    assert_eq!(refused.json()["code"], "503 Service Unavailable");
    assert_eq!(server.ask("GET", NETWORKS, None).status, 200);
    assert_eq!(server.ask("POST", NETWORKS, Some(r#"{"network": {"name": "n"}}"#)).status, 202);
    drop(deaf);
    let begin = Instant::now();
    while server.ask("GET", &path, None).status != 200 {
        assert!(begin.elapsed() < Duration::from_secs(60), "the memory never came back");
    }
}

#[test]
fn who_does_not_read_or_reads_too_slowly_is_cut_and_its_memory_is_free_again() {
    let limits = Limits {
        answer_memory: 8 << 20,
        answer_wait: Duration::ZERO,
        write_time: Duration::from_millis(300),
        ..Limits::default()
    };
    let (server, path) = with_ports(100_000, limits);
    let begin = Instant::now();
    let silent = ask_and_not_read(&server, &path);
    // The server's answer takes a quarter of a second and a minute at the least rate; this one never gets near it.
    let mut slow = ask_and_not_read(&server, &path);
    slow.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut is_cut = false;
    while !is_cut {
        std::thread::sleep(Duration::from_millis(50));
        is_cut = match slow.read(&mut [0; 100]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        };
        assert!(begin.elapsed() < Duration::from_secs(30), "it is served for ever");
    }
    while server.ask("GET", &path, None).status != 200 {
        assert!(begin.elapsed() < Duration::from_secs(60), "the memory never came back");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(silent);
}

#[test]
fn long_names_are_counted_before_a_list_is_made_and_short_ones_are_not_taken_for_long() {
    const COUNT: usize = 2_200;
    let plugin = FakePlugin::new();
    for (tenant, name) in [("long", "\u{1}".repeat(1024)), ("short", "n".repeat(20))] {
        (0..COUNT).for_each(|_| drop(plugin.create_network(tenant, Some(name.as_str().into())).unwrap()));
    }
    // As written, the names of the one have 13 MiB. Made from nothing its list takes half of all there is; what it takes
    // when it is made would fit twice.
    let limits = Limits { answer_memory: 64 << 20, answer_wait: Duration::ZERO, ..Limits::default() };
    let config = ServerConfig { limits, ..ServerConfig::default() };
    let server = Server::over(Arc::new(plugin), config, Scratch::new());
    let path = |tenant: &str, what: &str| format!("/v1.1/tenants/{tenant}/networks{what}");
    let long = path("long", "/detail");
    assert_eq!(server.ask("GET", &long, None).json()["networks"].as_array().unwrap().len(), COUNT);
    let _deaf = ask_and_not_read(&server, &long);
    let begin = Instant::now();
    let status = |path: &str| server.ask("GET", path, None).status;
    // The list that nobody reads has been made when there is memory for small ones and none for another as large.
    while (status(&path("short", "/detail")), status(&path("long", "")), status(&long)) != (200, 200, 503) {
        assert!(begin.elapsed() < Duration::from_secs(20), "the names are not counted");
    }
}
