//! The API when its connections are taken: many addresses that hold all they may have, and one more client.

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;
use tests::daemon::Daemon;
use tests::process::output_of;

/// Connections that one address may have, as the settings have it where nothing is said.
const EACH: usize = 128;
/// Addresses that hold as many: more together than there are.
const HOLDERS: u8 = 9;
const PATIENCE: Duration = Duration::from_secs(10);

/// Addresses of this host that are not loopback's.
struct Addresses(Vec<Ipv4Addr>);

impl Addresses {
    fn new(count: u8) -> Addresses {
        let addresses: Vec<_> = (1..=count).map(|at| Ipv4Addr::new(198, 51, 100, at)).collect();
        for address in &addresses {
            output_of("ip", &["addr", "add", &format!("{address}/32"), "dev", "lo"]);
        }
        Addresses(addresses)
    }
}

impl Drop for Addresses {
    fn drop(&mut self) {
        for address in &self.0 {
            let _ = Command::new("ip").args(["addr", "del", &format!("{address}/32"), "dev", "lo"]).output();
        }
    }
}

fn open(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::from((from, 0))).unwrap();
    connect(&socket, &to).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The first line of an answer.
fn ask(mut stream: TcpStream) -> String {
    stream
        .write_all(b"GET /v1.1/tenants/red/networks HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

fn is_open(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    stream.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn addresses_that_hold_all_connections_leave_room_for_another_and_for_this_host() {
    let addresses = Addresses::new(HOLDERS + 1);
    let daemon = Daemon::start("");
    let (newcomer, holders) = addresses.0.split_last().unwrap();
    let mut held: Vec<Vec<TcpStream>> =
        holders.iter().map(|address| (0..EACH).map(|_| open(*address, daemon.api())).collect()).collect();
    for from in [*newcomer, Ipv4Addr::LOCALHOST, holders[0]] {
        assert_eq!(ask(open(from, daemon.api())), "HTTP/1.1 200 OK", "{from}: {}", daemon.log_tail());
    }
    let mut local: Vec<_> = (0..500).map(|_| open(Ipv4Addr::LOCALHOST, daemon.api())).collect();
    assert_eq!(ask(open(*newcomer, daemon.api())), "HTTP/1.1 200 OK", "{}", daemon.log_tail());
    let still = |streams: &mut [TcpStream]| streams.iter_mut().map(is_open).filter(|open| *open).count();
    assert_eq!(still(&mut local), 500, "this host makes no room for others");
    let left: Vec<_> = held.iter_mut().map(|streams| still(streams)).collect();
    assert!(left.iter().all(|left| (20..EACH).contains(left)), "all made room, and keep about as many: {left:?}");
}
