//! The server's bounds: sizes, times, counts, and its end.

use crate::rig::{Answer, Driver, Server, read_to_end};
use api::server::{BODY_BYTES_MAX, HEAD_BYTES_MAX, Limits};
use std::io::{Read, Write};
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
    let quick = Duration::from_millis(300);
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
    let limits = Limits { head_time: Duration::from_millis(300), ..Limits::default() };
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
    assert!(begin.elapsed() < Duration::from_secs(5));
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
