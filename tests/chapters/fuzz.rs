//! Hostile bytes to every door of a running daemon: API, admin socket, vhost-user sockets of both roles.
//!
//! After each round the daemon must be alive and the traffic of others unharmed. Parsers have their own tests of noise
//! beside them; here it is the whole that must hold. Each test has a long form, which `cargo xtask soak` runs.

use crate::topology::TwoTenants;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use tests::chance::{Chance, for_seeds};
use tests::daemon::Daemon;
use tests::generator::{count, run};
use tests::hostile::{Class, Load, misbehave};
use tests::http::Connection;
use tests::ledger::Counters;
use tests::process::wait_until;
use vhost::net::F_RING_PACKED;

/// Longest a door may keep us waiting.
const PATIENCE: Duration = Duration::from_secs(5);

/// Writes what the peer takes and reads what it says, until it closes or is silent for a moment.
fn pour(mut stream: impl Read + Write, bytes: &[u8]) -> Vec<u8> {
    // A peer that closes early is right to do so.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        answer.extend_from_slice(&chunk[..count]);
    }
    answer
}

/// Fails unless daemon and bystanders are well; in `before` nothing was dropped at them.
fn assert_unharmed(world: &mut TwoTenants, before: &Counters) {
    world.daemon.assert_alive();
    assert!(world.namespace("red-1").pings_within("10.0.0.2", PATIENCE), "{}", world.daemon.log_tail());
    let changes = Counters::read(&world.daemon).changes(before);
    let drops: Vec<_> = changes.iter().filter(|change| change.contains(".drops.")).collect();
    assert!(drops.is_empty(), "{drops:?}");
}

mod soaked {
    use super::*;

    #[test]
    fn the_api_answers_or_closes_whatever_comes() {
        let mut world = TwoTenants::new();
        let before = Counters::read(&world.daemon);
        let api = world.daemon.api();
        let network = world.red_network.clone();
        for_seeds(40, |mut chance| {
            for _ in 0..10 {
                let mut bytes = request(&mut chance, &network);
                if chance.below(3) > 0 {
                    chance.mangle(&mut bytes);
                }
                let stream = TcpStream::connect(api).unwrap();
                stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
                let answer = pour(stream, &bytes);
                let is_http = answer.is_empty() || answer.starts_with(b"HTTP/1.");
                assert!(is_http, "{:?} got {:?}", bytes.escape_ascii().to_string(), answer.escape_ascii().to_string());
                let status = answer.get(9..12).unwrap_or_default();
                assert!(!status.starts_with(b"5"), "{:?} got {:?}", bytes.escape_ascii().to_string(), status);
            }
        });
        // None of it was one of red's own requests, or it was answered by a fault: red's network stands.
        world.red.request("GET", &format!("networks/{network}"), None, 200);
        assert_unharmed(&mut world, &before);
    }

    /// A request that is valid or nearly so, of a tenant who owns nothing.
    fn request(chance: &mut Chance, network: &str) -> Vec<u8> {
        let long = "x".repeat(chance.below(3000));
        let ids = [network, "../../etc", "%00", "'\"", "%2e%2e%2f", "detail", "🦀", long.as_str()];
        let values =
            [json!(null), json!(12), json!([]), json!({}), json!("x"), json!("\u{0}"), json!(true), json!(long)];
        let method = *chance.pick(&["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "\0", "GETGETGET"]);
        let (one, two) = (*chance.pick(&ids), *chance.pick(&ids));
        let version = *chance.pick(&["v1.0", "v1.1"]);
        let path = match chance.below(6) {
            0 => format!("/{version}/tenants/mallory/networks"),
            1 => format!("/{version}/tenants/mallory/networks/{one}"),
            2 => format!("/{version}/tenants/mallory/networks/{one}/ports/{two}/attachment"),
            3 => format!("/{version}/tenants/{one}/networks/{two}/ports?state={one}&has-attachment={two}"),
            4 => format!("/{version}/tenants/{one}/{two}.xml"),
            _ => format!("/{one}/{two}"),
        };
        let key = *chance.pick(&["network", "port", "attachment", "x"]);
        let field = *chance.pick(&["name", "state", "id", "y"]);
        let (body, format) = if chance.below(2) == 0 {
            (json!({ key: { field: chance.pick(&values) } }).to_string(), "json")
        } else {
            let inside = *chance.pick(&["x", "&amp;", "&a;", "<![CDATA[x]]>", "<x/>", "", "<!-- -->"]);
            let start = *chance.pick(&["", "<?xml version=\"1.0\" ?>", "<!DOCTYPE x [<!ENTITY a 'b'>]>"]);
            (format!("{start}<{key} a='{inside}'><{field}>{inside}</{field}></{key}>"), "xml")
        };
        let length = if chance.below(8) == 0 { chance.bits() as usize } else { body.len() };
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/{format}\r\n");
        text.push_str(&format!("Content-Length: {length}\r\n"));
        if chance.below(6) == 0 {
            text.push_str(&format!("X-Long: {}\r\n", "h".repeat(chance.below(40_000))));
        }
        if chance.below(10) == 0 {
            text.push_str("Transfer-Encoding: chunked\r\n");
        }
        text.push_str("\r\n");
        text.push_str(&body);
        text.into_bytes()
    }

    #[test]
    fn the_admin_socket_stands_noise() {
        let mut world = TwoTenants::new();
        let before = Counters::read(&world.daemon);
        let socket = world.daemon.admin_socket();
        let valid = br#"{"version":1,"request":{"show":{"what":"ports"}}}"#;
        for_seeds(30, |mut chance| {
            let mut bytes = if chance.below(2) == 0 { chance.bytes(2000) } else { valid.to_vec() };
            chance.mangle(&mut bytes);
            bytes.push(b'\n');
            let stream = UnixStream::connect(&socket).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            pour(stream, &bytes);
        });
        assert_unharmed(&mut world, &before);
    }

    #[test]
    fn a_hostile_vhost_user_peer_harms_only_itself() {
        let mut world = TwoTenants::new();
        let (listened, connected) = (world.daemon.path("evil-s"), world.daemon.path("evil-c"));
        let peer = UnixListener::bind(&connected).unwrap();
        peer.set_nonblocking(true).unwrap();
        world.daemon.must(&format!("plug evil-s --vhost-user {} --role server", listened.display()));
        world.daemon.must(&format!("plug evil-c --vhost-user {} --role client", connected.display()));
        // It is even a member of red's network.
        world.red.attached_port(&world.red_network, "evil-s");
        world.red.attached_port(&world.red_network, "evil-c");
        wait_until("the socket is there", PATIENCE, || listened.exists());
        let before = Counters::read(&world.daemon);
        for_seeds(40, |mut chance| {
            let mut bytes = Vec::new();
            for _ in 0..=chance.below(6) {
                bytes.extend(message(&mut chance));
            }
            if chance.below(2) == 0 {
                chance.mangle(&mut bytes);
            }
            pour(connect(&listened), &bytes);
            if let Ok((stream, _)) = peer.accept() {
                stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
                pour(stream, &bytes);
            }
        });
        let drop_free = |change: &String| !change.contains(".drops.") || change.starts_with("evil");
        let changes = Counters::read(&world.daemon).changes(&before);
        assert!(changes.iter().all(drop_free), "{changes:?}");
        let before = Counters::read(&world.daemon);
        world.daemon.must("unplug evil-s");
        world.daemon.must("unplug evil-c");
        assert!(!listened.exists(), "our own socket is removed");
        assert!(connected.exists(), "the peer's socket is not");
        assert_unharmed(&mut world, &before);
    }

    fn connect(path: &Path) -> UnixStream {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A vhost-user message (docs/interop/vhost-user.rst of QEMU): request, flags, size, payload; no descriptors.
    fn message(chance: &mut Chance) -> Vec<u8> {
        // Some that a session begins with, so that noise gets deeper.
        const FIRST: [u32; 6] = [1, 15, 16, 17, 3, 2];
        let request = if chance.below(2) == 0 { *chance.pick(&FIRST) } else { chance.below(45) as u32 };
        let flags = if chance.below(8) == 0 { chance.bits() as u32 } else { 1 | (chance.below(2) as u32) << 3 };
        let payload = match chance.below(4) {
            0 => Vec::new(),
            1 => chance.bits().to_ne_bytes().to_vec(),
            2 => [0_u64, 0x1000, 0x7f00_0000_0000, u64::MAX][chance.below(4)].to_ne_bytes().repeat(chance.below(40)),
            _ => chance.bytes(300),
        };
        let size = if chance.below(8) == 0 { chance.bits() as u32 } else { payload.len() as u32 };
        let mut bytes = [request, flags, size].iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        bytes.extend(payload);
        bytes
    }
}

#[test]
fn a_guest_that_breaks_every_rule_costs_a_healthy_pair_no_frame() {
    let mut daemon = Daemon::start("");
    let tenant = daemon.tenant("t");
    let network = tenant.network("lan");
    let names = ["a", "b", "evil"];
    let sockets = names.map(|name| daemon.path(name));
    for (name, socket) in names.iter().zip(&sockets) {
        daemon.must(&format!("plug {name} --vhost-user {}", socket.display()));
        tenant.attached_port(&network, name);
    }
    daemon.wait_up(&names);
    let pair = format!("{} {}", sockets[0].display(), sockets[1].display());
    let layouts = [0, F_RING_PACKED];
    for (class, features) in Class::HOSTILE.into_iter().flat_map(|class| layouts.map(|layout| (class, layout))) {
        let before = Counters::read(&daemon);
        let is_over = AtomicBool::new(false);
        let (report, deeds) = thread::scope(|scope| {
            let guest = scope.spawn(|| misbehave(&sockets[2], class, features, Load::FULL, &is_over));
            let report = run(&format!("{pair} --macs 10 --rate 1kpps --seconds 1 --verify"));
            is_over.store(true, Ordering::Relaxed);
            (report, guest.join().unwrap())
        });
        assert!(deeds.turns > 10 && count(&report, "sent") > 0, "{class:?} {features:#x}: {deeds:?} {report:#}");
        for fault in ["lost", "reordered", "duplicated", "misdelivered", "corrupted"] {
            assert_eq!(count(&report, fault), 0, "{class:?} {features:#x}: {fault} {deeds:?} {report:#}");
        }
        daemon.assert_alive();
        let changes = Counters::read(&daemon).changes(&before);
        assert!(changes.iter().any(|change| change.starts_with("evil.rx.")), "{class:?} was felt: {changes:?}");
    }
}

#[test]
fn bodies_and_headers_beyond_their_bounds_are_refused_by_their_statuses() {
    let world = TwoTenants::new();
    let api = world.daemon.api();
    let big = json!({"network": {"name": "x".repeat(70_000)}});
    assert_eq!(
        Connection::open(api).unwrap().request("POST", "/v1.1/tenants/t/networks", Some(&big)).unwrap().status,
        413
    );
    let mut connection = Connection::open(api).unwrap();
    let long = "h".repeat(20_000);
    connection
        .send(format!("GET /v1.1/tenants/t/networks HTTP/1.1\r\nHost: 127.0.0.1\r\nX: {long}\r\n\r\n").as_bytes())
        .unwrap();
    assert_eq!(connection.answer().unwrap().status, 431);
    let mut foreign = Connection::open(api).unwrap();
    foreign.send(b"GET /v1.1/tenants/t/networks HTTP/1.1\r\nHost: evil.example\r\n\r\n").unwrap();
    assert_eq!(foreign.answer().unwrap().status, 403);
    for id in ["", "a\u{0}b", &"x".repeat(1025)] {
        let (network, port) = (&world.red_network, world.port("red-1"));
        let path = format!("networks/{network}/ports/{port}/attachment");
        world.red.request("PUT", &path, Some(&json!({"attachment": {"id": id}})), 400);
    }
}
