//! TAPs of several queues, with the host's own TCP at both ends.

use super::SOON;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tests::daemon::{Daemon, allowed_cpus};
use tests::ledger::Counters;
use tests::namespace::Namespace;
use tests::process::wait_until;

/// Connections at a time; the kernel deals them out to the queues.
const CONNECTIONS: usize = 12;

#[test]
fn connections_spread_over_the_queues_of_a_tap_and_the_workers_and_arrive_whole() {
    let cpus = allowed_cpus();
    let daemon = Daemon::start_on(&cpus[cpus.len().saturating_sub(2)..], "");
    let tenant = daemon.tenant("red");
    let network = tenant.network("lan");
    let spaces = ["one", "two"].map(Namespace::new);
    for (space, (queues, address)) in spaces.iter().zip([("4", "10.0.0.1/24"), ("2", "10.0.0.2/24")]) {
        let name = space.name();
        daemon.must(&format!("plug {name} --tap tap0 --netns {name} --queues {queues}"));
        tenant.attached_port(&network, name);
        space.address("tap0", address);
    }
    let names: Vec<&str> = spaces.iter().map(Namespace::name).collect();
    daemon.wait_up(&names);
    assert!(spaces[0].pings_within("10.0.0.2", SOON));

    let before = Counters::read(&daemon);
    let is_over = AtomicBool::new(false);
    let listener = spaces[1].inside(|| TcpListener::bind(("10.0.0.2", 5000)).unwrap());
    std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| {
                let mut stream = spaces[0].inside(|| TcpStream::connect(("10.0.0.2", 5000)).unwrap());
                stream.set_write_timeout(Some(SOON)).unwrap();
                // With an end of its own, so that a failed assertion below does not hang the test.
                let deadline = Instant::now() + 2 * SOON;
                while !is_over.load(Ordering::Relaxed) && Instant::now() < deadline {
                    stream.write_all(&[0x5a; 1 << 14]).unwrap();
                }
            });
        }
        for _ in 0..CONNECTIONS {
            let (mut stream, _) = listener.accept().unwrap();
            scope.spawn(move || {
                stream.set_read_timeout(Some(SOON)).unwrap();
                let mut bytes = vec![0; 1 << 16];
                loop {
                    match stream.read(&mut bytes).unwrap() {
                        0 => break,
                        count => assert!(bytes[..count].iter().all(|&byte| byte == 0x5a), "bytes changed"),
                    }
                }
            });
        }
        // Of every worker: how many queues of the sender it was busy with in the last second.
        let busy = || {
            let workers = daemon.show("workers");
            let of = |row: &serde_json::Value| {
                let queues = row["queues"].as_array().unwrap().iter();
                queues.filter(|queue| queue["interface"] == names[0] && queue["busy"].as_f64() > Some(0.0)).count()
            };
            workers.as_array().unwrap().iter().map(of).collect::<Vec<_>>()
        };
        wait_until("several queues of several workers carry them", SOON, || {
            let busy = busy();
            busy.iter().sum::<usize>() >= 2 && busy.iter().all(|&count| count > 0)
        });
        is_over.store(true, Ordering::Relaxed);
    });
    let changes = Counters::read(&daemon).changes(&before);
    // A full receiver is told by a drop, which TCP takes as it should; anything else would be a fault of ours.
    let strange: Vec<_> =
        changes.iter().filter(|change| change.contains(".drops.") && !change.contains("rx_ring_full")).collect();
    assert!(strange.is_empty(), "{strange:?}");
}
