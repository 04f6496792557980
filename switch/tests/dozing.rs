//! Queues that cost a system call a look: while they are empty the worker watches them instead, and misses nothing.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use switch::assign::Move;
use switch::batch::Batch;
use switch::config::{Config, MTU_DEFAULT, NetworkConfig, PortConfig};
use switch::ids::{NetworkIndex, PortIndex, QueueIndex, WorkerIndex};
use switch::ledger::{DropReason, Tally};
use switch::offload::OffloadClaim;
use switch::poll::Poll;
use switch::port::Port;
use switch::publish::RxQueue;
use switch::switch::{Switch, SwitchConfig, WorkerSpec};
use switch::worker::{Context, Egress, Pipeline};

/// Where the queue that may doze is.
const DEAR: PortIndex = PortIndex(0);
/// A port that always has frames.
const BUSY: PortIndex = PortIndex(1);
const QUEUE: QueueIndex = QueueIndex(0);
/// Empty looks after which the queue dozes.
const DOZE_AFTER: u64 = 8;

/// Drops every frame.
struct Nowhere;

impl Pipeline for Nowhere {
    type Tables = ();

    fn compile(_config: &Config) {}

    fn run(_tables: &(), _context: &Context<'_>, batch: &mut Batch<'_>, egress: &mut Egress<'_>) {
        for packet in batch.packets() {
            egress.drop_ingress(packet.ingress, DropReason::NoNetwork);
        }
    }

    fn trace(_tables: &(), _context: &Context<'_>, _batch: &mut Batch<'_>) -> Vec<String> {
        Vec::new()
    }
}

fn give<'r>(ingress: PortIndex, batch: &mut Batch<'r>, tally: &mut Tally) {
    let Some(mut packet) = batch.start(ingress, QUEUE) else { return };
    packet.head(60).unwrap().fill(2);
    tally.moved(60);
    packet.commit(OffloadClaim::default());
}

/// A queue that tells of each frame by its descriptor, as a TAP does.
struct Dear {
    event: OwnedFd,
    waiting: AtomicU64,
    taken: AtomicU64,
    /// How often the worker asked, in vain or not.
    asked: AtomicU64,
    /// Looks that would have been system calls.
    looks: AtomicU64,
    empty: AtomicU64,
    is_watched: AtomicBool,
    is_dozing: AtomicBool,
}

impl Dear {
    fn new() -> Arc<Dear> {
        Arc::new(Dear {
            event: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap(),
            waiting: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            looks: AtomicU64::new(0),
            empty: AtomicU64::new(0),
            is_watched: AtomicBool::new(false),
            is_dozing: AtomicBool::new(false),
        })
    }

    fn offer(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        rustix::io::write(&self.event, &1u64.to_ne_bytes()).unwrap();
    }

    fn taken(&self) -> u64 {
        self.taken.load(Ordering::SeqCst)
    }

    fn looks(&self) -> u64 {
        self.looks.load(Ordering::SeqCst)
    }

    fn rouse_now(&self) {
        self.is_dozing.store(false, Ordering::SeqCst);
        self.empty.store(0, Ordering::SeqCst);
    }
}

impl Port for Dear {
    fn rx_queues(&self) -> u16 {
        1
    }

    fn tx_queues(&self) -> u16 {
        1
    }

    fn rx<'r>(&'r self, ingress: PortIndex, _queue: QueueIndex, batch: &mut Batch<'r>, tally: &mut Tally) {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.is_dozing.load(Ordering::SeqCst) {
            return;
        }
        self.looks.fetch_add(1, Ordering::SeqCst);
        let taken = self.waiting.swap(0, Ordering::SeqCst);
        for _ in 0..taken.min(1) {
            give(ingress, batch, tally);
        }
        // More than one at a time is not taken at once: what is left is there at the next look.
        self.waiting.fetch_add(taken.saturating_sub(1), Ordering::SeqCst);
        self.taken.fetch_add(taken.min(1), Ordering::SeqCst);
        if taken == 0 {
            let empty = self.empty.fetch_add(1, Ordering::SeqCst) + 1;
            self.is_dozing.store(empty >= DOZE_AFTER && self.is_watched.load(Ordering::SeqCst), Ordering::SeqCst);
        } else {
            self.empty.store(0, Ordering::SeqCst);
        }
    }

    fn rx_done(&self, _queue: QueueIndex) {}

    fn tx(&self, _queue: QueueIndex, _batch: &mut Batch<'_>, _picks: &[u8], _tally: &mut Tally) {
        unreachable!("everything is dropped");
    }

    fn wake_fd(&self, _queue: QueueIndex) -> Option<BorrowedFd<'_>> {
        Some(self.event.as_fd())
    }

    fn arm(&self, _queue: QueueIndex) -> bool {
        !self.is_dozing.load(Ordering::SeqCst) && self.waiting.load(Ordering::SeqCst) > 0
    }

    fn disarm(&self, _queue: QueueIndex) {}

    fn may_doze(&self) -> bool {
        true
    }

    fn watched(&self, _queue: QueueIndex, is_watched: bool) {
        self.is_watched.store(is_watched, Ordering::SeqCst);
        self.rouse_now();
    }

    fn is_dozing(&self, _queue: QueueIndex) -> bool {
        self.is_dozing.load(Ordering::SeqCst)
    }

    fn rouse(&self, _queue: QueueIndex) {
        self.rouse_now();
    }
}

/// Has frames whenever asked.
struct Busy;

impl Port for Busy {
    fn rx_queues(&self) -> u16 {
        1
    }

    fn tx_queues(&self) -> u16 {
        1
    }

    fn rx<'r>(&'r self, ingress: PortIndex, _queue: QueueIndex, batch: &mut Batch<'r>, tally: &mut Tally) {
        give(ingress, batch, tally);
    }

    fn rx_done(&self, _queue: QueueIndex) {}

    fn tx(&self, _queue: QueueIndex, _batch: &mut Batch<'_>, _picks: &[u8], _tally: &mut Tally) {
        unreachable!("everything is dropped");
    }

    fn wake_fd(&self, _queue: QueueIndex) -> Option<BorrowedFd<'_>> {
        None
    }

    fn arm(&self, _queue: QueueIndex) -> bool {
        true
    }

    fn disarm(&self, _queue: QueueIndex) {}
}

/// Has no frames; others may leave some to send, and something may be under way of which nobody tells the end.
struct Sending {
    silent: OwnedFd,
    left: OwnedFd,
    is_under_way: AtomicBool,
    looks: AtomicU64,
}

impl Sending {
    fn new() -> Arc<Sending> {
        let event = || eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
        let (is_under_way, looks) = (AtomicBool::new(false), AtomicU64::new(0));
        Arc::new(Sending { silent: event(), left: event(), is_under_way, looks })
    }
}

impl Port for Sending {
    fn rx_queues(&self) -> u16 {
        1
    }

    fn tx_queues(&self) -> u16 {
        1
    }

    fn rx<'r>(&'r self, _ingress: PortIndex, _queue: QueueIndex, _batch: &mut Batch<'r>, _tally: &mut Tally) {
        self.looks.fetch_add(1, Ordering::SeqCst);
    }

    fn rx_done(&self, _queue: QueueIndex) {}

    fn tx(&self, _queue: QueueIndex, _batch: &mut Batch<'_>, _picks: &[u8], _tally: &mut Tally) {
        unreachable!("everything is dropped");
    }

    fn wake_fd(&self, _queue: QueueIndex) -> Option<BorrowedFd<'_>> {
        Some(self.silent.as_fd())
    }

    fn tx_wake_fd(&self, _queue: QueueIndex) -> Option<BorrowedFd<'_>> {
        Some(self.left.as_fd())
    }

    fn is_blind(&self, _queue: QueueIndex) -> bool {
        self.is_under_way.load(Ordering::SeqCst)
    }

    fn arm(&self, _queue: QueueIndex) -> bool {
        false
    }

    fn disarm(&self, _queue: QueueIndex) {}
}

#[test]
fn a_worker_that_sleeps_wakes_for_frames_that_were_left_and_looks_again_at_what_is_under_way() {
    let (switch, port) = (switch(1, ADAPTIVE), Sending::new());
    switch.place(DEAR).publish(port.clone());
    switch.start().unwrap();
    let looks = || port.looks.load(Ordering::SeqCst);
    // Until nothing but what happens here wakes it.
    let sleeps = || {
        let mut before = looks();
        until("it sleeps", || {
            std::thread::sleep(Duration::from_millis(20));
            std::mem::replace(&mut before, looks()) == looks()
        });
    };
    for _ in 0..20 {
        sleeps();
        let before = looks();
        rustix::io::write(&port.left, &1u64.to_ne_bytes()).unwrap();
        until("it looks", || looks() > before);
    }
    sleeps();
    port.is_under_way.store(true, Ordering::SeqCst);
    rustix::io::write(&port.left, &1u64.to_ne_bytes()).unwrap();
    let before = looks();
    until("it looks again and again", || looks() > before + 100);
    port.is_under_way.store(false, Ordering::SeqCst);
    sleeps();
    switch.stop();
}

fn switch(workers: usize, poll: Poll) -> Arc<Switch<Nowhere>> {
    let config = SwitchConfig { workers: vec![WorkerSpec::default(); workers], poll, mac_max: 100, mac_age_s: 300 };
    let switch = Switch::new(&config).unwrap();
    let port = |index| PortConfig {
        index,
        interface: format!("if{index}").into(),
        network: Some(NetworkIndex(1)),
        is_admin_up: true,
        mtu: MTU_DEFAULT,
        macs: vec![],
        allowed_macs: Vec::new(),
    };
    let network = NetworkConfig { index: NetworkIndex(1), id: "net".into() };
    switch.apply(Config::new(vec![network], vec![port(DEAR), port(BUSY)]).unwrap());
    switch
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::yield_now();
    }
}

fn rounds(switch: &Switch<Nowhere>) -> u64 {
    switch.worker_reports().iter().map(|report| report.rounds).sum()
}

/// Waits until the queue dozes.
fn dozes(dear: &Dear) {
    until("it dozes", || dear.is_dozing.load(Ordering::SeqCst));
}

const ADAPTIVE: Poll = Poll::Adaptive { idle: Duration::from_micros(50) };

#[test]
fn an_empty_queue_is_not_looked_at_beside_a_busy_one_and_its_next_frame_is_taken() {
    for poll in [Poll::Always, ADAPTIVE] {
        let (switch, dear) = (switch(1, poll), Dear::new());
        switch.place(DEAR).publish(dear.clone());
        switch.place(BUSY).publish(Arc::new(Busy));
        switch.start().unwrap();
        for count in 1..=200 {
            dozes(&dear);
            let (looks, before) = (dear.looks(), rounds(&switch));
            until("some rounds", || rounds(&switch) > before + 100);
            assert_eq!(dear.looks(), looks, "a look at a queue that dozes");
            let (asked, before) = (dear.asked.load(Ordering::SeqCst), rounds(&switch));
            until("more rounds", || rounds(&switch) > before + 100);
            assert_eq!(dear.asked.load(Ordering::SeqCst), asked, "rounds pass it by");
            dear.offer();
            until("the frame is taken", || dear.taken() == count);
        }
        switch.stop();
    }
}

#[test]
fn a_worker_that_sleeps_wakes_for_a_queue_that_dozes() {
    let (switch, dear) = (switch(1, ADAPTIVE), Dear::new());
    switch.place(DEAR).publish(dear.clone());
    switch.start().unwrap();
    for count in 1..=300 {
        if count % 3 == 0 {
            // Long enough to sleep; whether the queue dozes by then is as it comes.
            std::thread::sleep(Duration::from_micros(count * 10));
        }
        dear.offer();
        until("the frame is taken", || dear.taken() == count);
    }
    assert!(switch.worker_reports()[0].sleeps > 10, "it hardly slept");
    switch.stop();
}

#[test]
fn a_queue_that_dozes_moves_and_its_frames_are_taken_by_the_new_worker() {
    for poll in [Poll::Always, ADAPTIVE] {
        let (switch, dear) = (switch(2, poll), Dear::new());
        switch.place(DEAR).publish(dear.clone());
        switch.start().unwrap();
        let rx = RxQueue { port: DEAR, queue: QUEUE };
        let mut from = WorkerIndex(switch.snapshot().rx.iter().position(|queues| queues.contains(&rx)).unwrap() as u8);
        for count in 1..=200 {
            // One that may sleep may do so before it has looked in vain often enough, and then looks no more.
            match poll {
                Poll::Always if count % 2 == 0 => dozes(&dear),
                Poll::Adaptive { .. } if count % 2 == 0 => std::thread::sleep(Duration::from_micros(100)),
                _ => {}
            }
            if count % 5 == 0 {
                dear.offer();
            }
            let to = WorkerIndex(1 - from.0);
            assert_eq!(switch.move_queues(&[Move { rx, from, to }]).len(), 1);
            from = to;
            dear.offer();
            until("the frames are taken", || dear.taken() == count + count / 5);
        }
        switch.stop();
    }
}

#[test]
fn a_new_device_at_the_place_is_watched_in_its_turn() {
    let switch = switch(1, Poll::Always);
    switch.start().unwrap();
    for _ in 0..20 {
        let dear = Dear::new();
        switch.place(DEAR).publish(dear.clone());
        dozes(&dear);
        dear.offer();
        until("the frame is taken", || dear.taken() == 1);
        switch.place(DEAR).withdraw();
    }
    switch.stop();
}
