//! How fast frames go from one guest's ring to another's, without a pipeline between: the cost of the ports alone.
//!
//! `cargo run --release -p vhost --features driver --example forward [FRAME_LEN] [SECONDS]`. First one thread does it all, and its
//! processor time inside the ports is divided by the frames: that holds on a busy machine too, but the rings stay in
//! one core's cache. Then one thread forwards while another plays both guests, which needs two idle cores.

use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use switch::batch::{BURST, Batch};
use switch::ids::{PortIndex, QueueIndex};
use switch::ledger::Tally;
use switch::port::{Device, Link, Place, Port};
use vhost::backend::{Backend, BackendConfig, Role};
use vhost::driver::{Driver, DriverConfig};

#[derive(Default)]
struct OnePort(Mutex<Option<Arc<dyn Port>>>);

impl Place for OnePort {
    fn publish(&self, port: Arc<dyn Port>) {
        *self.0.lock().expect("nobody panics with it") = Some(port);
    }

    fn withdraw(&self) {
        *self.0.lock().expect("nobody panics with it") = None;
    }
}

/// A guest, and what the switch has of it.
type Guest = (Backend, Driver, Arc<dyn Port>);

fn guest(name: &str) -> Result<Guest, Box<dyn Error>> {
    let path = std::env::temp_dir().join(format!("qvs-forward-{}-{name}", std::process::id()));
    let place = Arc::new(OnePort::default());
    let config = BackendConfig {
        path: path.clone(),
        role: Role::Server,
        mtu: 9000,
        owner: (None, None),
        mode: 0o600,
        peer_uids: vec![],
        state_file: None,
    };
    let backend = Backend::start(config, place.clone())?;
    let mut config = DriverConfig::new(path);
    config.queue_size = 1024;
    let mut driver = Driver::new(config)?;
    driver.start()?;
    while backend.state().link == Link::Down {
        std::thread::sleep(Duration::from_millis(1));
    }
    let port = place.0.lock().expect("nobody panics with it").clone().ok_or("no port was published")?;
    Ok((backend, driver, port))
}

/// What this thread has used of its processor.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let frame_len: usize = arguments.next().map_or(Ok(60), |text| text.parse())?;
    let seconds: u64 = arguments.next().map_or(Ok(2), |text| text.parse())?;
    let (_source_backend, mut source, source_port) = guest("source")?;
    let (_sink_backend, mut sink, sink_port) = guest("sink")?;
    let frames: Vec<Vec<u8>> = (0..1024u32)
        .map(|number| {
            let mut frame = vec![0x5a; frame_len];
            frame[..6].copy_from_slice(&[2, 0, 0, 0, (number >> 8) as u8, number as u8]);
            frame
        })
        .collect();
    source.sender.fill_all(&frames);

    let mut batch = Batch::new();
    let picks: Vec<u8> = (0..BURST as u8).collect();
    let mut tally = Tally::default();
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut spent, mut count) = (Duration::ZERO, 0u64);
    while Instant::now() < end {
        source.sender.post(512);
        let start = processor_time();
        loop {
            batch.clear(BURST, usize::MAX);
            tally.clear();
            source_port.rx(PortIndex(0), QueueIndex(0), &mut batch, &mut tally);
            if batch.is_empty() {
                break;
            }
            let len = batch.len();
            tally.clear();
            sink_port.tx(QueueIndex(0), &mut batch, &picks[..len], &mut tally);
            source_port.rx_done(QueueIndex(0));
            count += u64::from(tally.packets);
        }
        spent += processor_time() - start;
        sink.receiver.drain(1024);
    }
    let per_frame = spent.as_nanos() as f64 / count as f64;
    println!("{frame_len} bytes: {per_frame:.1} ns of processor time a frame, {:.1} Mpps", 1000.0 / per_frame);

    drop(batch);

    let (stop, forwarded, dropped) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (stop, forwarded, dropped, source_port) = (&stop, &forwarded, &dropped, &source_port);
        let sink_port = &sink_port;
        let mut batch = Batch::new();
        let picks = picks.clone();
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                batch.clear(BURST, usize::MAX);
                tally.clear();
                source_port.rx(PortIndex(0), QueueIndex(0), &mut batch, &mut tally);
                if batch.is_empty() {
                    continue;
                }
                tally.clear();
                let count = batch.len();
                sink_port.tx(QueueIndex(0), &mut batch, &picks[..count], &mut tally);
                source_port.rx_done(QueueIndex(0));
                forwarded.fetch_add(u64::from(tally.packets), Ordering::Relaxed);
                dropped.fetch_add(u64::from(tally.dropped), Ordering::Relaxed);
            }
        });
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut received = 0u64;
        let start = Instant::now();
        while Instant::now() < end {
            for _ in 0..64 {
                source.sender.post(64);
                received += u64::from(sink.receiver.drain(256).0);
            }
        }
        let rate = received as f64 / start.elapsed().as_secs_f64() / 1e6;
        stop.store(true, Ordering::Relaxed);
        let (forwarded, dropped) = (forwarded.load(Ordering::Relaxed), dropped.load(Ordering::Relaxed));
        println!("{frame_len} bytes: {rate:.2} Mpps received, {forwarded} forwarded, {dropped} dropped");
    });
    Ok(())
}
