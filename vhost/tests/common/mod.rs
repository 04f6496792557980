//! What the tests of this crate share: a place that workers use, and a backend with a driver at its socket.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "test code; each binary uses its own part of this")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use switch::batch::Batch;
use switch::ids::{PortIndex, QueueIndex};
use switch::ledger::{DropReason, Tally};
use switch::offload::OffloadClaim;
use switch::port::{Device, Link, Place, Port};
use vhost::backend::{Backend, BackendConfig, Role};
use vhost::driver::{Driver, DriverConfig};

pub const QUEUE: QueueIndex = QueueIndex(0);
pub const INGRESS: PortIndex = PortIndex(3);

/// Frames that a worker of the tests takes in a round.
pub const ROUND: usize = 32;

/// A place of one port. A worker holds the lock for its round, so a withdrawal waits for it.
#[derive(Default)]
pub struct TestPlace {
    port: Mutex<Option<Arc<dyn Port>>>,
    pub withdrawals: AtomicU32,
}

impl TestPlace {
    /// The port that stands there now.
    pub fn port(&self) -> Option<Arc<dyn Port>> {
        self.port.lock().unwrap().clone()
    }

    /// One round of a worker: rx, a look at the frames, rx_done.
    pub fn round(&self) -> (Vec<(Vec<u8>, OffloadClaim)>, Tally) {
        self.round_of(QUEUE)
    }

    /// The same, for any queue.
    pub fn round_of(&self, queue: QueueIndex) -> (Vec<(Vec<u8>, OffloadClaim)>, Tally) {
        let guard = self.port.lock().unwrap();
        let mut tally = Tally::default();
        let Some(port) = guard.as_ref() else { return (Vec::new(), tally) };
        let mut batch = Batch::new();
        batch.clear(ROUND, usize::MAX);
        port.rx(INGRESS, queue, &mut batch, &mut tally);
        let frames = (0..batch.len()).map(|index| bytes_of(&mut batch, index)).collect();
        port.rx_done(queue);
        (frames, tally)
    }

    /// One round of a worker that gives every frame back to its sender, and takes its time before and after; answers how
    /// many there were.
    pub fn echo(&self, pause: impl Fn()) -> usize {
        let guard = self.port.lock().unwrap();
        let Some(port) = guard.as_ref() else { return 0 };
        let (mut tally, mut batch) = (Tally::default(), Batch::new());
        batch.clear(ROUND, usize::MAX);
        port.rx(INGRESS, QUEUE, &mut batch, &mut tally);
        let picks: Vec<u8> = (0..batch.len() as u8).collect();
        if !picks.is_empty() {
            pause();
            port.tx(QUEUE, &mut batch, &picks, &mut tally);
            pause();
        }
        port.rx_done(QUEUE);
        picks.len()
    }

    /// Holds the port as a worker in a long round does.
    pub fn hold(&self, round: impl FnOnce()) {
        let _guard = self.port.lock().unwrap();
        round();
    }

    /// Sends frames made of head and tail, as a worker would.
    pub fn send(&self, frames: &[&[u8]]) -> Tally {
        self.send_by(QUEUE, frames)
    }

    /// The same, by any queue.
    pub fn send_by(&self, queue: QueueIndex, frames: &[&[u8]]) -> Tally {
        let guard = self.port.lock().unwrap();
        let mut tally = Tally::default();
        let mut batch = Batch::new();
        batch.clear(ROUND, usize::MAX);
        for frame in frames {
            put(&mut batch, frame);
        }
        let picks: Vec<u8> = (0..frames.len() as u8).collect();
        match guard.as_ref() {
            Some(port) => port.tx(queue, &mut batch, &picks, &mut tally),
            None => tally.drop_many(DropReason::PortGone, picks.len() as u32),
        }
        tally
    }
}

impl Place for TestPlace {
    fn publish(&self, port: Arc<dyn Port>) {
        *self.port.lock().unwrap() = Some(port);
    }

    fn withdraw(&self) {
        self.withdrawals.fetch_add(1, Ordering::Relaxed);
        *self.port.lock().unwrap() = None;
    }
}

/// Puts a frame into a batch: a head of up to 128 bytes, the rest as a tail.
pub fn put<'r>(batch: &mut Batch<'r>, frame: &'r [u8]) {
    let (head, tail) = frame.split_at(frame.len().min(128));
    let mut packet = batch.start(INGRESS, QUEUE).unwrap();
    packet.head(head.len()).unwrap().copy_from_slice(head);
    for piece in tail.chunks(4096) {
        packet.tail(piece.into()).unwrap();
    }
    packet.commit(OffloadClaim::default());
}

pub fn bytes_of(batch: &mut Batch<'_>, index: usize) -> (Vec<u8>, OffloadClaim) {
    let (packet, tail) = batch.frame(index);
    let mut bytes = packet.head().to_vec();
    for segment in tail {
        let at = bytes.len();
        bytes.resize(at + segment.len() as usize, 0);
        segment.read(&mut bytes[at..]);
    }
    assert_eq!(bytes.len(), packet.len());
    (bytes, packet.claim)
}

/// A frame of `len` bytes that says its number. All are of one flow.
pub fn frame(number: u32, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|at| (at as u32 * 7 + number) as u8).collect();
    bytes[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5]);
    bytes[14..18].copy_from_slice(&number.to_be_bytes());
    bytes
}

pub fn drops(tally: &Tally) -> Vec<(DropReason, u32)> {
    tally.drops().collect()
}

/// A path for a socket that nobody else uses.
pub fn socket_path() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("qvs-vhost-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    std::env::temp_dir().join(name)
}

pub fn backend_config(role: Role, path: PathBuf) -> BackendConfig {
    BackendConfig { path, role, mtu: 1500, owner: (None, None), mode: 0o600, peer_uids: Vec::new(), state_file: None }
}

/// Waits until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !is_so() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A backend, its place, and a driver.
pub struct Pair {
    pub driver: Driver,
    pub backend: Backend,
    pub place: Arc<TestPlace>,
    pub path: PathBuf,
}

impl Pair {
    /// Not connected yet.
    pub fn new(role: Role, change: impl FnOnce(&mut DriverConfig)) -> Pair {
        let path = socket_path();
        let place = Arc::new(TestPlace::default());
        let mut config = DriverConfig::new(&path);
        config.is_listening = role == Role::Client;
        change(&mut config);
        let driver = Driver::new(config).unwrap();
        let backend = Backend::start(backend_config(role, path.clone()), place.clone()).unwrap();
        Pair { driver, backend, place, path }
    }

    /// Running, the switch listening.
    pub fn running(change: impl FnOnce(&mut DriverConfig)) -> Pair {
        let mut pair = Pair::new(Role::Server, change);
        pair.driver.start().unwrap();
        pair.wait_for_link(Link::Up);
        pair
    }

    pub fn wait_for_link(&self, link: Link) {
        until(&format!("the link is {link:?}"), || self.backend.state().link == link);
    }

    pub fn wait_for_reason(&self, part: &str) {
        let end = Instant::now() + Duration::from_secs(5);
        while !self.backend.state().reason.contains(part) {
            let reason = self.backend.state().reason;
            assert!(Instant::now() < end, "the reason is {reason:?} and never said {part:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What arrives at the driver now.
    pub fn received(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        self.driver.receiver.recv_burst(usize::MAX, |_, frame| frames.push(frame.to_vec()));
        frames
    }
}
