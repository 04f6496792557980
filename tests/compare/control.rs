//! The control plane's times: from an API write to the first frame treated by it, and from the start to serving.
//!
//! The store's own commit is not the switch's time: both are taken with the state on tmpfs, where a commit costs next to
//! nothing, and the write once more on the disk for comparison.

use crate::options::Options;
use crate::report::{Page, Sample, load};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tests::daemon::Daemon;
use tests::http::Connection;
use tests::process::TempDir;
use vhost::driver::{Driver, DriverConfig};

/// Writes that are timed.
const WRITES: usize = 200;
/// Ports in the store for the start and the second write measurement.
const PORTS: usize = 1000;
const FRAME_LEN: usize = 60;

/// A driver that sends, a driver that receives, and a port that goes up and down between them.
fn write_to_first_frame(place: &str, others: usize) -> Sample {
    let daemon = Daemon::start_in(TempDir::within(Path::new(place)), "poll = \"always\"");
    let tenant = daemon.tenant("compare");
    let network = tenant.network("lan");
    let mut drivers = Vec::new();
    let mut ports = Vec::new();
    for name in ["a", "b"] {
        let socket = daemon.path(name);
        daemon.must(&format!("plug {name} --vhost-user {}", socket.display()));
        ports.push(tenant.attached_port(&network, name));
        drivers.push(connected(&socket));
    }
    daemon.wait_up(&["a", "b"]);
    plug_many(&daemon, others);
    let [mut sender, mut receiver] = <[Driver; 2]>::try_from(drivers).ok().expect("two were made");
    let mut frame = vec![0xffu8; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    frame.resize(FRAME_LEN, 0);
    sender.sender.fill_all(&[frame]);

    let epoch = Instant::now();
    // Nanoseconds since `epoch` at which a frame last arrived, and whether the generator shall end.
    let (arrived, ends) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut sample = Sample::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            switch::affinity::pin(0).expect("CPU 0 is ours");
            while !ends.load(Ordering::Relaxed) {
                sender.sender.post(1);
                if receiver.receiver.drain(64).0 > 0 {
                    arrived.store(epoch.elapsed().as_nanos() as u64, Ordering::Release);
                }
                // The client shares this CPU.
                std::thread::yield_now();
            }
        });
        let path = format!("/v1.1/tenants/compare/networks/{network}/ports/{}", ports[0]);
        let mut client = Connection::open(daemon.api()).expect("the API listens");
        let mut put = |state: &str| {
            let body = serde_json::json!({"port": {"state": state}});
            let answer = client.request("PUT", &path, Some(&body)).expect("the API answers");
            assert_eq!(answer.status, 204);
        };
        for _ in 0..WRITES {
            put("DOWN");
            // What was under way when the write was answered arrives within a round or two.
            std::thread::sleep(Duration::from_millis(3));
            let begin = epoch.elapsed().as_nanos() as u64;
            put("ACTIVE");
            let first = loop {
                let at = arrived.load(Ordering::Acquire);
                if at > begin {
                    break at;
                }
                std::thread::yield_now();
            };
            sample.add((first - begin) as f64 / 1e6);
        }
        ends.store(true, Ordering::Relaxed);
    });
    sample
}

/// Plugs that many vhost-user sockets and attaches them to ten networks.
fn plug_many(daemon: &Daemon, count: usize) {
    let tenant = daemon.tenant("compare");
    let networks: Vec<_> = (0..10).map(|_| tenant.network("lan")).collect();
    for number in 0..count {
        daemon.must(&format!("plug many-{number} --vhost-user {}", daemon.path(&number.to_string()).display()));
        tenant.attached_port(&networks[number % networks.len()], &format!("many-{number}"));
    }
}

fn connected(socket: &Path) -> Driver {
    let mut driver = Driver::new(DriverConfig::new(socket)).expect("memory for a driver");
    driver.start().expect("the switch listens");
    driver
}

/// The table of API writes.
pub(crate) fn measure_write(page: &mut Page, _: &Options) {
    page.table(
        "From an API write to the first frame treated by it",
        "A port is set ACTIVE by HTTP while its neighbour sends; from sending the request to the first frame that \
         arrives, ms. On tmpfs the store's commit costs next to nothing.",
        "| state on | ports | median | least to most | p99 | load |",
    );
    for (place, others) in [("/dev/shm", 0), ("/dev/shm", PORTS), ("/tmp", 0)] {
        let sample = write_to_first_frame(place, others);
        let line =
            format!("| {place} | {} | {} | {:.2} | {} |", others + 2, sample.cell(2), sample.quantile(0.99), load());
        page.line(&line);
    }
}

/// The table of starts.
pub(crate) fn measure_start(page: &mut Page, _: &Options) {
    page.table(
        "From the start to serving",
        "1,000 vhost-user ports, plugged and attached to 10 networks, in the store, after SIGKILL; from starting the process to the first answer of the API, ms.",
        "| ports | median | least to most | load |",
    );
    let mut daemon = Daemon::start_in(TempDir::within(Path::new("/dev/shm")), "");
    plug_many(&daemon, PORTS);
    let mut sample = Sample::default();
    for _ in 0..10 {
        daemon.kill();
        let begin = Instant::now();
        daemon.spawn();
        while TcpStream::connect(daemon.api()).is_err() {
            std::thread::sleep(Duration::from_micros(200));
        }
        let mut client = Connection::open(daemon.api()).expect("it listens");
        let answer = client.request("GET", "/v1.1/tenants/compare/networks", None).expect("it answers");
        assert_eq!(answer.status, 200);
        sample.add(begin.elapsed().as_secs_f64() * 1e3);
    }
    page.line(&format!("| {PORTS} | {} | {} |", sample.cell(1), load()));
}
