//! What the thread of a socket does that no peer sees: how it ends when it hangs, and how often it tries to connect.

use super::*;
use crate::message::Request;
use crate::net::Dialect;
use crate::port::{Alarm, SplitSet};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::time::Instant;

#[derive(Default)]
struct CountingPlace {
    publications: AtomicU32,
    withdrawals: AtomicU32,
}

impl Place for CountingPlace {
    fn publish(&self, _port: Arc<dyn Port>) {
        self.publications.fetch_add(1, Ordering::Relaxed);
    }

    fn withdraw(&self) {
        self.withdrawals.fetch_add(1, Ordering::Relaxed);
    }
}

/// The switch's side of a socket on which a peer listens.
fn client(name: &str) -> BackendConfig {
    BackendConfig {
        path: std::env::temp_dir().join(format!("qvs-{name}-{}", std::process::id())),
        role: Role::Client,
        mtu: 1500,
        owner: (None, None),
        mode: 0o600,
        peer_uids: Vec::new(),
        state_file: None,
    }
}

#[test]
fn a_thread_that_hangs_in_its_peers_file_is_left_behind_and_shut_out() {
    let place = Arc::new(CountingPlace::default());
    let wake = Arc::new(Wake::new().unwrap());
    let mut backend = Backend::start(client("hang"), place.clone()).unwrap();
    let gate = backend.gate.clone();
    // The real thread ends; one that never does takes its place.
    backend.shared.stop.store(true, Ordering::Release);
    backend.shared.wake.wake();
    backend.thread.take().unwrap().join().unwrap();
    let (hangs, end) = channel();
    backend.end = Mutex::new(end);
    backend.thread = Some(std::thread::spawn(move || {
        let _hangs = hangs;
        std::thread::park();
    }));
    let hanging = backend.thread.as_ref().unwrap().thread().clone();

    let start = Instant::now();
    drop(backend);
    assert!((CLOSE_MAX..2 * CLOSE_MAX).contains(&start.elapsed()));
    assert_eq!(place.withdrawals.load(Ordering::Relaxed), 1);
    let alarm = Alarm::new(wake);
    gate.publish(Arc::new(SplitSet::new([], Dialect::new(0), alarm, Arc::default())));
    gate.withdraw();
    let counts = (place.publications.load(Ordering::Relaxed), place.withdrawals.load(Ordering::Relaxed));
    assert_eq!(counts, (0, 1), "what the thread does reaches the place no more");
    hanging.unpark();
}

/// What a client's thread owns, driven by hand: it is woken before it pauses, so that no time passes.
struct Stepped {
    thread: Thread,
}

impl Stepped {
    fn new(name: &str) -> Stepped {
        let config = client(name);
        let shared = Arc::new(Shared::new(Wake::new().unwrap(), false, &config));
        let place = Gate::new(Arc::new(CountingPlace::default()));
        Stepped { thread: Thread::new(config, place, None, shared) }
    }

    fn path(&self) -> &Path {
        &self.thread.config.path
    }

    /// The pause that would be made now.
    fn pause_ms(&self) -> u128 {
        let mut backoff = self.thread.backoff;
        backoff.next_pause().as_millis()
    }

    /// One attempt that comes to nothing; answers the pause after it and the reason that is told.
    fn fail(&mut self) -> (u128, String) {
        let pause_ms = self.pause_ms();
        self.thread.shared.wake.wake();
        let reason = self.thread.next_peer().expect_err("nobody listens");
        assert!(!self.is_woken(), "it did not pause");
        (pause_ms, reason)
    }

    /// One attempt that succeeds, without a pause.
    fn connect(&mut self) -> OwnedFd {
        self.thread.shared.wake.wake();
        let socket = self.thread.next_peer().expect("somebody listens").expect("it is a connection");
        assert!(self.is_woken(), "it paused");
        self.thread.shared.wake.clear();
        socket
    }

    fn is_woken(&self) -> bool {
        let mut fds = [PollFd::new(&*self.thread.shared.wake, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
    }

    /// A whole session with a peer that does `talk` and hangs up. It is woken all the while, and so is the pause behind it.
    fn serve(&mut self, listener: &UnixListener, talk: impl FnOnce(&mut UnixStream) + Send) {
        let socket = self.connect();
        let (shared, is_over) = (self.thread.shared.clone(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| talk(&mut listener.accept().unwrap().0));
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    shared.wake.wake();
                    std::thread::yield_now();
                }
            });
            self.thread.serve(socket);
            is_over.store(true, Ordering::Relaxed);
        });
        self.thread.shared.wake.clear();
    }
}

impl Drop for Stepped {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.path());
    }
}

#[test]
fn a_client_tries_less_and_less_often_while_its_socket_is_absent_or_dead_and_connects_once_it_is_there() {
    let mut stepped = Stepped::new("absent");
    let mut pauses = Vec::new();
    for _ in 0..7 {
        let (pause_ms, reason) = stepped.fail();
        assert!(reason.contains("No such file"), "{reason}");
        pauses.push(pause_ms);
    }
    assert_eq!(pauses, [50, 100, 200, 400, 800, 1000, 1000]);
    std::fs::write(stepped.path(), "no socket").unwrap();
    let (pause_ms, reason) = stepped.fail();
    assert!(pause_ms == 1000 && reason.contains("no socket"), "{pause_ms}: {reason}");
    std::fs::remove_file(stepped.path()).unwrap();
    // The file outlives whoever listened.
    drop(UnixListener::bind(stepped.path()).unwrap());
    for _ in 0..3 {
        let (pause_ms, reason) = stepped.fail();
        assert!(pause_ms == 1000 && reason.contains("refused"), "{pause_ms}: {reason}");
    }
    std::fs::remove_file(stepped.path()).unwrap();
    let _listener = UnixListener::bind(stepped.path()).unwrap();
    stepped.connect();
}

#[test]
fn only_a_peer_that_asks_for_features_is_met_again_as_soon_as_at_first() {
    let mut stepped = Stepped::new("mute");
    let listener = UnixListener::bind(stepped.path()).unwrap();
    // What accepts and hangs up is no guest: QEMU asks first of all.
    for expected_ms in [100, 200, 400, 800, 1000, 1000] {
        stepped.serve(&listener, |_| {});
        assert_eq!(stepped.pause_ms(), expected_ms);
    }
    stepped.serve(&listener, |peer| {
        peer.write_all(&Request::GetFeatures.to_bytes(false)).unwrap();
        peer.read_exact(&mut [0; 20]).unwrap();
    });
    assert_eq!(stepped.pause_ms(), 100, "the first pause was made behind it");
    assert_eq!(stepped.thread.shared.sessions.load(Ordering::Relaxed), 7);
}
