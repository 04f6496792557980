//! The admin socket: where `qvs` commands, and scrapers of metrics, reach the daemon.
//!
//! Who connects is known by the kernel's word (SO_PEERCRED): root and our own uid may do all, members of the settings' group
//! may look. The socket is made under another name with its final rights and then renamed, so that it is never there
//! with wider ones; a lock file beside it tells a second daemon who holds it.
//!
//! A thread a connection, because answers may wait for devices and disks. Bounds: [`CONNECTIONS_MAX`] at once, of which
//! the group gets half, so that root is always heard; [`IDLE_MAX`] for a request to come and for an answer to be taken.

pub(crate) mod door;

use crate::capture::serve::CaptureRequest;
use crate::cli::What;
use crate::protocol::{self, Answer, Envelope, LINE_MAX, Request};
use crate::timed::Timed;
use api::audit;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Connections served at once; a person needs one.
const CONNECTIONS_MAX: usize = 32;
/// Of these, how many members of the group may have.
const GROUP_CONNECTIONS_MAX: usize = CONNECTIONS_MAX / 2;
/// How long one read or write of a connection may take.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// How long an answer may take to be taken, whatever its size: meanwhile it holds the state that it tells of.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);
/// Bytes of one line of an HTTP request.
pub(crate) const HTTP_LINE_MAX: usize = 8 * 1024;
/// Lines of headers an HTTP request may have.
const HEADERS_MAX: usize = 64;
/// How often a lock file is looked at until its holder's pid is in it, and the pause in between.
const PID_LOOKS: u32 = 20;
/// See [`PID_LOOKS`].
const PID_PAUSE: Duration = Duration::from_millis(10);
/// Pause after a failed accept (out of descriptors), so that it does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a peer may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rights {
    /// Everything.
    All,
    /// Show, trace, and count frames.
    Look,
}

/// A peer, as it was when it connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Client {
    rights: Rights,
    uid: u32,
    pid: i32,
}

/// Answers what is asked on the socket.
pub(crate) trait Service: Send + Sync {
    /// Does a request that the peer may make.
    fn answer(&self, request: Request) -> Answer;

    /// Writes the answer to `show what`, a list row by row.
    ///
    /// # Errors
    /// If the peer went away.
    fn show(&self, what: What, to: &mut dyn Write) -> io::Result<()>;

    /// Does a capture that the peer may make, its frames to `stream`; answers before and returns at its end.
    ///
    /// # Errors
    /// If the peer went away.
    fn capture(&self, request: CaptureRequest, stream: &UnixStream) -> io::Result<()>;

    /// The metrics, in Prometheus' text format.
    fn metrics(&self) -> String;
}

/// Why the socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    /// Another daemon has it.
    #[error("{path} is in use by process {pid}")]
    InUse {
        /// The socket.
        path: PathBuf,
        /// The holder, or `(unknown)`.
        pid: String,
    },
    /// Something that is no socket is in the way.
    #[error("{path} exists already and is no socket")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Another service is there.
    #[error("{path} is a socket that another program listens on")]
    Foreign {
        /// The path.
        path: PathBuf,
    },
    /// The system said no.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// The bound socket. Dropping it unlinks it.
pub(crate) struct AdminSocket {
    listener: UnixListener,
    group: Option<u32>,
    name: ServedSocket,
}

impl AdminSocket {
    /// Binds the socket: 0600, or 0660 and of `group`.
    ///
    /// # Errors
    /// [`AdminError::InUse`] with the holder's pid if another daemon has it.
    pub(crate) fn bind(path: &Path, group: Option<u32>) -> Result<AdminSocket, AdminError> {
        let lock = lock(path)?;
        let failed = |source| AdminError::Io { path: path.to_owned(), source };
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(AdminError::NotASocket { path: path.to_owned() });
            }
            // The lock is ours, so whoever answers is no daemon of this program.
            Ok(_) if is_alive(path) => return Err(AdminError::Foreign { path: path.to_owned() }),
            _ => {}
        }
        // Short, because the socket's own name may use up the 107 bytes there are, and ours alone.
        let fresh = path.with_file_name(format!(".{}", std::process::id()));
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh).map_err(failed)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        if let Some(gid) = group {
            std::os::unix::fs::chown(&fresh, None, Some(gid)).map_err(failed)?;
            std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
        }
        // What is replaced here is a dead socket.
        std::fs::rename(&fresh, path).map_err(failed)?;
        Ok(AdminSocket { listener, group, name: ServedSocket { path: path.to_owned(), _lock: lock } })
    }

    /// Serves from now on, on threads of its own, for as long as the process lives. Dropping the answer unlinks the
    /// socket, so that no new client finds it.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(crate) fn serve(self, service: Arc<dyn Service>) -> io::Result<ServedSocket> {
        let gate = Arc::new(Gate { group: self.group, ..Gate::default() });
        let listener = self.listener;
        std::thread::Builder::new().name("admin".into()).spawn(move || {
            loop {
                match listener.accept() {
                    Ok((stream, _)) => admit(stream, &gate, &service),
                    Err(error) => {
                        tracing::warn!(%error, "accepting on the admin socket");
                        std::thread::sleep(ACCEPT_PAUSE);
                    }
                }
            }
        })?;
        Ok(self.name)
    }
}

/// The socket's name, which goes with this value.
pub(crate) struct ServedSocket {
    path: PathBuf,
    /// Held, and locked, for as long as the socket is ours.
    _lock: File,
}

impl Drop for ServedSocket {
    fn drop(&mut self) {
        // Gone already, perhaps with its directory: as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether somebody listens on a socket. Does not wait for one whose queue is full.
fn is_alive(path: &Path) -> bool {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let Ok(address) = SocketAddrUnix::new(path) else { return false };
    let Ok(socket) = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None) else { return true };
    !matches!(connect(socket, &address), Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOENT))
}

/// Locks the file beside the socket and writes our pid into it.
fn lock(socket: &Path) -> Result<File, AdminError> {
    let path = socket.with_added_extension("pid");
    let failed = |source| AdminError::Io { path: path.clone(), source };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(AdminError::InUse { path: socket.to_owned(), pid: holder(&path) });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    file.set_len(0).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}

/// The pid in a lock file that is held. The holder writes it right after locking; who comes in between waits for it.
fn holder(lock: &Path) -> String {
    for _ in 0..PID_LOOKS {
        let text = std::fs::read_to_string(lock).unwrap_or_default();
        if text.ends_with('\n') {
            return text.trim().to_owned();
        }
        std::thread::sleep(PID_PAUSE);
    }
    "(unknown)".to_owned()
}

/// Who may enter and how many are in.
#[derive(Default)]
struct Gate {
    group: Option<u32>,
    all: AtomicUsize,
    looking: AtomicUsize,
}

impl Gate {
    /// Who a peer is and what it may do, by the kernel's word; `None`: nothing.
    fn client(&self, stream: &UnixStream) -> Option<Client> {
        let peer = rustix::net::sockopt::socket_peercred(stream).ok()?;
        let rights = match peer.uid.is_root() || peer.uid == rustix::process::geteuid() {
            true => Rights::All,
            // The socket's own mode let nobody else but the group connect; which of his groups let him in is not told.
            false => self.group.map(|_| Rights::Look)?,
        };
        Some(Client { rights, uid: peer.uid.as_raw(), pid: peer.pid.as_raw_nonzero().get() })
    }
}

/// One place inside, given back when dropped.
struct Seat {
    gate: Arc<Gate>,
    rights: Rights,
}

impl Seat {
    fn take(gate: &Arc<Gate>, rights: Rights) -> Option<Seat> {
        // Counted first and taken back by the drop: only the accepting thread adds.
        let seat = Seat { gate: gate.clone(), rights };
        let all = gate.all.fetch_add(1, Ordering::Relaxed);
        let looking = gate.looking.fetch_add(usize::from(rights == Rights::Look), Ordering::Relaxed);
        let is_full = all >= CONNECTIONS_MAX || (rights == Rights::Look && looking >= GROUP_CONNECTIONS_MAX);
        (!is_full).then_some(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.gate.all.fetch_sub(1, Ordering::Relaxed);
        self.gate.looking.fetch_sub(usize::from(self.rights == Rights::Look), Ordering::Relaxed);
    }
}

fn admit(stream: UnixStream, gate: &Arc<Gate>, service: &Arc<dyn Service>) {
    let Some(client) = gate.client(&stream) else {
        tracing::warn!("a stranger was turned away from the admin socket");
        return;
    };
    let Some(seat) = Seat::take(gate, client.rights) else {
        tracing::warn!("too many connections to the admin socket");
        return;
    };
    let service = service.clone();
    let spawned = std::thread::Builder::new().name("admin-client".into()).spawn(move || {
        if let Err(error) = talk(&stream, client, &*service) {
            tracing::debug!(%error, "a connection to the admin socket ended early");
        }
        drop(seat);
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread for a connection to the admin socket");
    }
}

/// Serves one connection: any number of JSON requests, or one HTTP request.
fn talk(stream: &UnixStream, client: Client, service: &dyn Service) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE_MAX))?;
    let mut reader = BufReader::new(stream);
    loop {
        let line = match protocol::read_line(&mut reader, LINE_MAX) {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let mut writer = Timed::over(stream, ANSWER_TIME_MAX, IDLE_MAX);
                return write_answer(&mut writer, &Answer::Error(error.to_string()));
            }
            Err(error) => return Err(error),
        };
        let timed = || BufWriter::new(Timed::over(stream, ANSWER_TIME_MAX, IDLE_MAX));
        if line.starts_with(b"GET ") {
            let mut writer = timed();
            return serve_http(&line, &mut reader, &mut writer, service);
        }
        let answer = match understand(&line) {
            Ok(request) if client.rights == Rights::Look && !request.is_look() => {
                let refusal = Answer::Error("only root and the daemon's own user may do this".into());
                audited(client, request, |_| refusal)
            }
            Ok(Request::Capture(request)) => {
                stream.set_write_timeout(Some(IDLE_MAX))?;
                return service.capture(request, stream);
            }
            Ok(Request::Show { what }) => {
                service.show(what, &mut timed())?;
                continue;
            }
            Ok(request) => audited(client, request, |request| service.answer(request)),
            Err(refusal) => Answer::Error(refusal),
        };
        // What was asked may have taken its time; being told of it has its own.
        write_answer(&mut timed(), &answer)?;
    }
}

/// Answers a request, and tells of it if it is a write.
fn audited(client: Client, request: Request, answer: impl FnOnce(Request) -> Answer) -> Answer {
    let told =
        request.is_write().then(|| serde_json::to_string(&request).expect("requests are plain data with text keys"));
    let answer = answer(request);
    if let Some(told) = told {
        let refusal = match &answer {
            Answer::Ok(_) => None,
            Answer::Error(why) => Some(why.as_str()),
        };
        audit::tell_on_host(client.uid, client.pid, &told, refusal);
    }
    answer
}

/// Reads a request.
fn understand(line: &[u8]) -> Result<Request, String> {
    /// Only the version, whatever else there is.
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    match serde_json::from_slice::<Version>(line) {
        Ok(Version { version }) if version != protocol::VERSION => {
            let ours = protocol::VERSION;
            return Err(format!("this daemon speaks version {ours} of the admin protocol, not {version}"));
        }
        _ => {}
    }
    let envelope = serde_json::from_slice::<Envelope>(line).map_err(|error| format!("not a request: {error}"))?;
    Ok(envelope.request)
}

/// Writes an answer as a line.
pub(crate) fn write_answer(writer: &mut (impl Write + ?Sized), answer: &Answer) -> io::Result<()> {
    serde_json::to_writer(&mut *writer, answer)?;
    writer.write_all(b"\n")?;
    writer.flush()
}

/// Answers an HTTP GET whose first line has been read: `/metrics` and nothing else.
pub(crate) fn serve_http(
    first: &[u8],
    reader: &mut impl BufRead,
    writer: &mut impl Write,
    service: &dyn Service,
) -> io::Result<()> {
    // The headers change nothing; they are read so that closing does not reset the connection under the answer.
    for _ in 0..HEADERS_MAX {
        match protocol::read_line(reader, HTTP_LINE_MAX)? {
            None => break,
            Some(line) if line.is_empty() || line == b"\r" => break,
            Some(_) => {}
        }
    }
    let path = first.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    let (status, body) = match path.split(|byte| *byte == b'?').next() {
        Some(b"/metrics") => ("200 OK", service.metrics()),
        _ => ("404 Not Found", "only /metrics is here\n".to_owned()),
    };
    write!(
        writer,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    writer.flush()
}

#[cfg(test)]
mod tests;
