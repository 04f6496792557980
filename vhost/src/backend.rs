//! One vhost-user socket and the sessions that come and go on it.
//!
//! Each backend has a thread that owns the socket, the session and the order of things; it sleeps in poll and is woken by
//! the peer, by a worker that found something wrong, or by [`Backend`] being dropped. Nothing a peer does or leaves undone
//! keeps the thread from looking at all three: messages are put together piece by piece, and answers that do not fit the
//! socket wait while no further message is read. Sessions end, the backend stays: what was counted and why the last
//! session ended can be read at any time.
//!
//! One thing a peer can do: pass a file of a file system that it serves itself (FUSE), and then closing our copy waits for
//! the peer. So whoever drops a backend waits no longer than [`CLOSE_MAX`]; a thread that hangs is then left behind, shut
//! out from its place.

use crate::backoff::{Backoff, PAUSE_MIN};
use crate::call::Pace;
use crate::diary::Diary;
use crate::listen::{Listener, Ownership, SocketFile, check_path, connect_to, peer_uid};
use crate::session::{Outgoing, Session};
use crate::socket::{Stream, Wake};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use switch::port::{Device, DeviceState, Link, Place, Port};

pub use crate::listen::StartError;
pub use crate::state_file::state_path;

/// Who listens on the socket; always the switch's role.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The switch listens, QEMU connects.
    Server,
    /// QEMU listens, the switch connects and reconnects.
    Client,
}

/// What a backend needs to know.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    /// Where the socket is; absolute, at most 107 bytes.
    pub path: PathBuf,
    /// The switch's role.
    pub role: Role,
    /// The port's MTU. A frontend that gives its guest a larger one is warned about in the log.
    pub mtu: u16,
    /// Owner and group of a socket we make; `None`: ours.
    pub owner: (Option<u32>, Option<u32>),
    /// Permission bits of a socket we make.
    pub mode: u32,
    /// Peer uids accepted besides root and our own (SO_PEERCRED).
    pub peer_uids: Vec<u32>,
    /// A file of ours that tells a later process where packed rings stand; best on tmpfs. `None`: nobody will know.
    pub state_file: Option<PathBuf>,
}

/// Longest that dropping a [`Backend`] waits for its thread's end; its own work takes a few rounds of the workers.
pub const CLOSE_MAX: Duration = Duration::from_secs(2);
/// Messages handled before the thread looks up again.
const MESSAGES_AT_ONCE: usize = 64;

/// What happened on the socket since the backend was started.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SessionCounters {
    /// Sessions that began.
    pub sessions: u64,
    /// Connections closed because a session was on, or because of the peer's uid.
    pub refused: u64,
    /// Messages that came in.
    pub messages: u64,
    /// Why the last session ended; empty before the first end.
    pub last_disconnect: String,
}

struct Status {
    state: DeviceState,
    last_disconnect: String,
}

struct Shared {
    wake: Arc<Wake>,
    stop: AtomicBool,
    status: Mutex<Status>,
    /// What is known of how long it takes to signal whoever connects here.
    pace: Arc<Pace>,
    /// What a guest's MTU is held against.
    mtu: Arc<AtomicU16>,
    sessions: AtomicU64,
    refused: AtomicU64,
    messages: AtomicU64,
    /// A peer is connected.
    is_serving: AtomicBool,
}

impl Shared {
    /// Before the first peer; `is_ready`: the backend stands already.
    fn new(wake: Wake, is_ready: bool, config: &BackendConfig) -> Shared {
        let state = DeviceState { is_ready, link: Link::Down, reason: String::new() };
        Shared {
            wake: Arc::new(wake),
            stop: AtomicBool::new(false),
            status: Mutex::new(Status { state, last_disconnect: String::new() }),
            pace: Arc::new(Pace::new(config.path.clone())),
            mtu: Arc::new(AtomicU16::new(config.mtu)),
            sessions: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            is_serving: AtomicBool::new(false),
        }
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// A vhost-user port's control side: owns the socket and its thread. Dropping it ends the session, withdraws the port
/// from its place and unlinks the socket it made; so it must not be dropped under a lock that [`Place::withdraw`] takes.
pub struct Backend {
    shared: Arc<Shared>,
    gate: Arc<Gate>,
    /// The socket we listen on; `None` where the peer does.
    file: Option<SocketFile>,
    /// Where it is written down where packed rings stand.
    state_file: Option<PathBuf>,
    thread: Option<JoinHandle<()>>,
    /// Nothing is ever sent; its other end goes with the thread.
    end: Mutex<Receiver<()>>,
}

/// The thread's way to its place; once shut, nothing that the thread does reaches the place.
struct Gate {
    place: Arc<dyn Place>,
    is_shut: Mutex<bool>,
}

impl Gate {
    fn new(place: Arc<dyn Place>) -> Arc<Gate> {
        Arc::new(Gate { place, is_shut: Mutex::new(false) })
    }

    /// Empties the place for good. Waits for a withdrawal that is going on, thus for the workers, but for no peer.
    fn shut(&self) {
        let mut is_shut = self.lock();
        *is_shut = true;
        self.place.withdraw();
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_shut.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place for Gate {
    fn publish(&self, port: Arc<dyn Port>) {
        let is_shut = self.lock();
        if !*is_shut {
            self.place.publish(port);
        }
    }

    fn withdraw(&self) {
        let is_shut = self.lock();
        if !*is_shut {
            self.place.withdraw();
        }
    }
}

impl Backend {
    /// Opens the socket (server) or starts trying to connect (client) and serves sessions until dropped.
    ///
    /// A dead socket of our own user at the path is removed; that it is one of this port, the caller has made sure.
    ///
    /// # Errors
    /// If the socket cannot be made: bad directory, a foreign file in the way, permissions.
    pub fn start(config: BackendConfig, place: Arc<dyn Place>) -> Result<Backend, StartError> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| StartError::Io { what, source }
        };
        check_path(&config.path)?;
        let listener = match config.role {
            Role::Server => {
                let (uid, gid) = config.owner;
                Some(Listener::bind(&config.path, Ownership { uid, gid, mode: config.mode })?)
            }
            Role::Client => None,
        };
        let wake = Wake::new().map_err(failed("eventfd"))?;
        let shared = Arc::new(Shared::new(wake, listener.is_some(), &config));
        let file = listener.as_ref().map(Listener::file);
        let state_file = config.state_file.clone();
        let gate = Gate::new(place);
        let mut thread = Thread::new(config, gate.clone(), listener, shared.clone());
        let (ends, end) = channel();
        let thread = std::thread::Builder::new()
            .name("vhost-session".into())
            .spawn(move || {
                thread.run();
                // Its socket file is gone before anybody hears that it has ended.
                drop(thread);
                drop(ends);
            })
            .map_err(failed("thread"))?;
        Ok(Backend { shared, gate, file, state_file, thread: Some(thread), end: Mutex::new(end) })
    }

    /// Whether nobody can connect any more, because our socket's file was removed or replaced. A session that is on goes
    /// on; once it is over the caller should start anew.
    pub fn has_lost_socket(&self) -> bool {
        !self.shared.is_serving.load(Ordering::Relaxed) && self.file.as_ref().is_some_and(|file| !file.is_there())
    }

    /// Closes a port that will not come back: what was written down of its rings goes as well.
    pub fn remove(mut self) {
        let state_file = self.state_file.take();
        drop(self);
        if let Some(path) = state_file {
            // It is there only if a guest had packed rings.
            let _ = std::fs::remove_file(path);
        }
    }

    /// From now on another MTU is the port's: a frontend that connects and gives its guest a larger one is warned about.
    pub fn set_mtu(&self, mtu: u16) {
        self.shared.mtu.store(mtu, Ordering::Relaxed);
    }

    /// What happened so far.
    pub fn counters(&self) -> SessionCounters {
        SessionCounters {
            sessions: self.shared.sessions.load(Ordering::Relaxed),
            refused: self.shared.refused.load(Ordering::Relaxed),
            messages: self.shared.messages.load(Ordering::Relaxed),
            last_disconnect: self.shared.status().last_disconnect.clone(),
        }
    }
}

impl Device for Backend {
    fn state(&self) -> DeviceState {
        let state = self.shared.status().state.clone();
        if self.has_lost_socket() {
            return DeviceState { is_ready: false, reason: "the socket's file is gone".to_owned(), ..state };
        }
        state
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake.wake();
        let Some(thread) = self.thread.take() else { return };
        let end = self.end.get_mut().unwrap_or_else(PoisonError::into_inner);
        if end.recv_timeout(CLOSE_MAX) == Err(RecvTimeoutError::Timeout) {
            tracing::error!("a vhost-user session hangs in a file of its peer; its thread is left behind");
            self.gate.shut();
            return;
        }
        // A panic there has been reported by its hook; there is nothing left to save.
        let _ = thread.join();
    }
}

/// What the thread owns.
struct Thread {
    config: BackendConfig,
    place: Arc<Gate>,
    listener: Option<Listener>,
    shared: Arc<Shared>,
    backoff: Backoff,
    diary: Diary,
}

/// What poll found, besides reasons to look at everything anyway.
#[derive(Clone, Copy, Default)]
struct Ready {
    /// Somebody knocks.
    listener: bool,
}

impl Thread {
    fn new(config: BackendConfig, place: Arc<Gate>, listener: Option<Listener>, shared: Arc<Shared>) -> Thread {
        Thread { config, place, listener, shared, backoff: Backoff::new(), diary: Diary::default() }
    }

    fn run(&mut self) {
        while !self.shared.is_stopping() {
            match self.next_peer() {
                Ok(Some(socket)) => self.serve(socket),
                Ok(None) => {}
                Err(reason) => self.give_reason(reason),
            }
        }
    }

    /// Waits for a connection, or makes one; `None` to look whether to stop.
    fn next_peer(&mut self) -> Result<Option<OwnedFd>, String> {
        let socket = match &self.listener {
            Some(listener) => {
                self.wait(None, None);
                let accepted = listener.accept();
                if accepted.is_err() {
                    // Most likely no file descriptor is left; the connection waits until there is one.
                    self.wait_a_moment();
                }
                accepted.map_err(|error| format!("accept: {error}"))?
            }
            None => match connect_to(&self.config.path) {
                Ok(socket) => Some(socket),
                Err(error) => {
                    self.wait_a_moment();
                    return Err(error.to_string());
                }
            },
        };
        let Some(socket) = socket else { return Ok(None) };
        let uid = peer_uid(socket.as_fd()).map_err(|error| format!("SO_PEERCRED: {error}"))?;
        if uid == 0 || uid == rustix::process::geteuid().as_raw() || self.config.peer_uids.contains(&uid) {
            return Ok(Some(socket));
        }
        self.shared.refused.fetch_add(1, Ordering::Relaxed);
        if self.listener.is_none() {
            self.wait_a_moment();
        }
        Err(format!("a peer of uid {uid} was refused"))
    }

    /// One session from connection to end.
    fn serve(&mut self, socket: OwnedFd) {
        self.shared.sessions.fetch_add(1, Ordering::Relaxed);
        self.shared.is_serving.store(true, Ordering::Relaxed);
        let is_told = self.diary.begin(&self.config.path);
        let Shared { wake, pace, mtu, .. } = &*self.shared;
        let (wake, pace, mtu) = (wake.clone(), pace.clone(), mtu.clone());
        let state_file = self.config.state_file.clone();
        let mut session = Session::new(self.place.clone(), wake, pace, mtu, state_file, is_told);
        let mut stream = Stream::new(socket);
        let reason = self.converse(&mut session, &mut stream);
        let had_features = session.view().has_read_features;
        session.close();
        drop(stream);
        self.shared.is_serving.store(false, Ordering::Relaxed);
        self.diary.end(&self.config.path, &reason);
        let mut status = self.shared.status();
        status.state.link = Link::Down;
        status.state.is_ready = self.listener.is_some();
        status.state.reason.clone_from(&reason);
        status.last_disconnect = reason;
        drop(status);
        if had_features {
            self.backoff.reset();
        }
        if self.listener.is_none() {
            self.wait_a_moment();
        }
    }

    /// Messages in, answers out, until one side has enough; answers why it ended.
    fn converse(&mut self, session: &mut Session, stream: &mut Stream) -> String {
        let mut unsent = Outgoing::default();
        loop {
            let has_second = self.wait(Some((stream, !unsent.bytes.is_empty())), None).listener;
            if self.shared.is_stopping() {
                return "the port is being closed".to_owned();
            }
            if let Err(error) = session.look_after_faults() {
                return error.to_string();
            }
            let is_settled = match self.exchange(session, stream, &mut unsent) {
                Ok(is_settled) => is_settled,
                Err(reason) => return reason,
            };
            self.show(session);
            // A peer that hangs up and connects again at once is no second one. Its end would have been seen by now, so
            // whoever knocks is.
            if has_second && is_settled {
                self.refuse_second();
            }
        }
    }

    /// Sends and receives what can be without waiting; answers whether nothing more can, or why the session is over.
    fn exchange(&self, session: &mut Session, stream: &mut Stream, unsent: &mut Outgoing) -> Result<bool, String> {
        for _ in 0..MESSAGES_AT_ONCE {
            if !unsent.bytes.is_empty() {
                let fds: Vec<BorrowedFd<'_>> = unsent.fds.iter().map(AsFd::as_fd).collect();
                let count = stream.send_some(&unsent.bytes, &fds).map_err(|error| error.to_string())?;
                unsent.bytes.drain(..count);
                if count > 0 {
                    // They went with the first byte.
                    unsent.fds.clear();
                }
                if !unsent.bytes.is_empty() {
                    return Ok(true);
                }
            }
            let Some(message) = stream.receive().map_err(|error| error.to_string())? else { return Ok(true) };
            self.shared.messages.fetch_add(1, Ordering::Relaxed);
            let result = session.handle(message);
            // Before the answer: whoever got it finds the state as it says.
            self.show(session);
            match result {
                // Nothing is unsent here, so file descriptors stay beside their own message.
                Ok(reply) => *unsent = reply.unwrap_or_default(),
                Err((error, reply)) => {
                    // The peer may not listen any more; the session is over either way.
                    let _ = stream.send_some(&reply.unwrap_or_default().bytes, &[]);
                    return Err(error.to_string());
                }
            }
            if self.shared.is_stopping() {
                break;
            }
        }
        Ok(false)
    }

    /// Closes a connection that came while a session is on.
    fn refuse_second(&self) {
        match self.listener.as_ref().map(Listener::accept) {
            Some(Ok(Some(_second))) => {
                self.shared.refused.fetch_add(1, Ordering::Relaxed);
            }
            // No file descriptor is left; without a pause we would be told again at once, for ever.
            Some(Err(_)) => drop(self.wait(None, Some(PAUSE_MIN))),
            _ => {}
        }
    }

    /// Brings the state that others read up to date.
    fn show(&self, session: &Session) {
        let view = session.view();
        let mut status = self.shared.status();
        let link = if view.is_running { Link::Up } else { Link::Down };
        status.state.is_ready = self.listener.is_some() || view.has_read_features;
        let note = session.note();
        if !note.is_empty() {
            status.state.reason = note;
        } else if link == Link::Up {
            status.state.reason.clear();
        }
        status.state.link = link;
    }

    fn give_reason(&mut self, reason: String) {
        let mut status = self.shared.status();
        if status.state.reason != reason {
            self.diary.none(&self.config.path, &reason);
            status.state.reason = reason;
        }
    }

    /// Sleeps until something happens: a wake-up, the peer, a connection, or `timeout`.
    fn wait(&self, stream: Option<(&Stream, bool)>, timeout: Option<Duration>) -> Ready {
        let mut fds = Vec::with_capacity(3);
        fds.push(PollFd::new(&*self.shared.wake, PollFlags::IN));
        if let Some((stream, has_unsent)) = stream {
            let flags = if has_unsent { PollFlags::OUT } else { PollFlags::IN };
            fds.push(PollFd::new(stream, flags));
        }
        // A pause is a pause, whoever knocks.
        if let Some(listener) = self.listener.as_ref().filter(|_| timeout.is_none()) {
            fds.push(PollFd::new(listener, PollFlags::IN));
        }
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs() as _,
            tv_nsec: i64::from(timeout.subsec_nanos()) as _,
        });
        if poll(&mut fds, timeout.as_ref()).is_err() {
            return Ready::default();
        }
        let is_ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
        if is_ready(0) {
            self.shared.wake.clear();
        }
        Ready { listener: is_ready(if stream.is_some() { 2 } else { 1 }) }
    }

    /// Waits before the next attempt, longer each time.
    fn wait_a_moment(&mut self) {
        let pause = self.backoff.next_pause();
        if !self.shared.is_stopping() {
            self.wait(None, Some(pause));
        }
    }
}

#[cfg(test)]
mod tests;
