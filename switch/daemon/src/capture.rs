//! `qvs capture`: what passes a port, to a file, to a pipe, or as lines for people.
//!
//! The daemon sends pcapng over the admin socket; this side writes it down, so that files are made with the rights of
//! who asked. Only whole blocks are written, at once as they come, so that a reader of the pipe or file sees frames live and
//! a file is good whenever it ends. A signal, a closed pipe, a full disk: each closes our half of the connection; the
//! daemon then sends what is left and its statistics, and both ends are done.
//!
//! Three threads at most: this one copies, one waits for signals. An output that stands still after a signal is given up
//! after [`STALL_MAX`].

pub(crate) mod pcapng;
mod print;
pub(crate) mod serve;

use crate::cli::{CaptureArgs, DirectionArg};
use crate::client::{self, ClientError};
use crate::protocol::Request;
use crate::{FAILED, Outcome, WRONG};
use pcapng::Statistics;
use rustix::event::{PollFd, PollFlags, poll};
use serve::CaptureRequest;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long after a signal the output may stand still.
const STALL_MAX: Duration = Duration::from_secs(3);
/// Bytes read at once.
const READ_SIZE: usize = 256 * 1024;

/// Where frames go.
enum Output {
    /// Nowhere: only counted.
    Counters,
    /// As lines to standard output.
    Lines,
    /// As pcapng to standard output.
    Pipe,
    /// As pcapng to a file.
    File(File),
}

impl Output {
    /// By the arguments and what standard output is.
    fn choose(args: &CaptureArgs) -> Result<Option<Output>, (u8, String)> {
        let is_terminal = io::stdout().is_terminal();
        Ok(match &args.write {
            _ if args.counters => Some(Output::Counters),
            _ if args.lines => Some(Output::Lines),
            Some(path) if path == Path::new("-") && is_terminal => {
                return Err((WRONG, "standard output is a terminal; a capture is for a file or a pipe".into()));
            }
            Some(path) if path == Path::new("-") => Some(Output::Pipe),
            // Not before the daemon has agreed: a refusal empties no file.
            Some(_) => None,
            None if is_terminal => Some(Output::Lines),
            None => Some(Output::Pipe),
        })
    }

    /// Writes whole blocks.
    fn write(&mut self, bytes: &[u8], blocks: &[pcapng::Block<'_>]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        match self {
            Output::Counters => Ok(()),
            Output::Lines => {
                let packets = blocks.iter().filter(|block| block.kind == pcapng::PACKET);
                let mut text = String::new();
                for packet in packets {
                    text.push_str(&print::line(&packet.packet().map_err(io::Error::other)?));
                }
                stdout.write_all(text.as_bytes())?;
                stdout.flush()
            }
            Output::Pipe => {
                stdout.write_all(bytes)?;
                stdout.flush()
            }
            Output::File(file) => file.write_all(bytes),
        }
    }
}

/// How the copying ended.
struct End {
    statistics: Option<Statistics>,
    /// Why the output was given up; `None`: it took everything.
    failure: Option<io::Error>,
}

/// Captures until something ends it.
pub(crate) fn capture(args: CaptureArgs) -> Outcome {
    pipelines::capture_filter::CaptureFilter::compile(&args.filter).map_err(|error| (WRONG, error.to_string()))?;
    let output = Output::choose(&args)?;
    let direction = match args.direction {
        DirectionArg::In => "into the switch",
        DirectionArg::Out => "out of the switch",
        DirectionArg::Both => "both ways",
    };
    let request = CaptureRequest {
        port: args.port,
        direction: args.direction,
        snaplen: if args.counters { 0 } else { args.snaplen as usize },
        buffer: args.buffer as usize * (1 << 20),
        count: args.count,
        duration_s: args.duration,
        filter: args.filter,
    };
    let socket = client::socket(&args.daemon).map_err(|error| (WRONG, error.to_string()))?;
    // Before the capture begins, so that none is left to its fate by an early signal.
    let signals = Signals::catch().map_err(|error| (FAILED, format!("catching signals: {error}")))?;
    let failed = |error: ClientError| (FAILED, error.to_string());
    let (answer, stream) = client::begin(&socket, Request::Capture(request)).map_err(failed)?;
    let output = match (output, &args.write) {
        (None, Some(path)) => {
            let file = File::create(path).map_err(|error| (FAILED, format!("{}: {error}", path.display())))?;
            Output::File(file)
        }
        (output, _) => output.unwrap_or(Output::Counters),
    };
    let is_quiet = matches!(output, Output::Counters);
    note(&format!("capturing at {}, {direction}", answer["interface"]));
    let progress = Arc::new(AtomicU64::new(0));
    let hung_up = |error: io::Error| (FAILED, format!("the daemon hung up: {error}"));
    signals.close(stream.try_clone().map_err(hung_up)?, progress.clone());
    let End { statistics, failure } = copy(&stream, output, &progress).map_err(hung_up)?;
    if let Some(error) = failure.filter(|error| error.kind() != io::ErrorKind::BrokenPipe) {
        return Err((FAILED, format!("writing the capture: {error}")));
    }
    let statistics = statistics.ok_or((FAILED, "the daemon went away before the capture ended".to_owned()))?;
    let Statistics { seen, matched, lost, written, comment, .. } = statistics;
    if is_quiet {
        return Ok(format!("{seen} frames seen\n{matched} frames matched\n{comment}\n"));
    }
    if !comment.is_empty() {
        note(&comment);
    }
    note(&format!("{written} frames captured, {matched} matched the filter, {seen} passed the port"));
    note(&format!("{lost} frames dropped by the capture"));
    Ok(String::new())
}

/// Tells people something, beside the frames.
fn note(text: &str) {
    // A closed standard error is no reason to stop.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Copies whole blocks from the daemon to the output until the daemon is done. If the output fails, the rest is read and
/// thrown away.
fn copy(mut stream: &UnixStream, mut output: Output, progress: &AtomicU64) -> io::Result<End> {
    let mut end = End { statistics: None, failure: None };
    let mut waiting = Vec::new();
    let mut piece = vec![0; READ_SIZE];
    loop {
        if end.failure.is_none()
            && let Err(error) = wait(stream, &output)
        {
            end.failure = Some(error);
            // It may have closed already.
            let _ = stream.shutdown(Shutdown::Write);
        }
        let count = match stream.read(&mut piece) {
            Ok(0) => return Ok(end),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(end),
            Err(error) => return Err(error),
        };
        waiting.extend_from_slice(&piece[..count]);
        let (blocks, used) = pcapng::blocks(&waiting).map_err(io::Error::other)?;
        if let Some(last) = blocks.last().filter(|block| block.kind == pcapng::STATISTICS) {
            end.statistics = Some(last.statistics());
        }
        if end.failure.is_none()
            && used > 0
            && let Err(error) = output.write(&waiting[..used], &blocks)
        {
            end.failure = Some(error);
            let _ = stream.shutdown(Shutdown::Write);
        }
        progress.fetch_add(1, Ordering::Relaxed);
        waiting.drain(..used);
    }
}

/// Waits until the daemon says something.
///
/// # Errors
/// `BrokenPipe` if the output's reader goes away first.
fn wait(stream: &UnixStream, output: &Output) -> io::Result<()> {
    let stdout = io::stdout();
    loop {
        // Nothing is asked of the output: that its reader is gone is told unasked.
        let output = if let Output::File(file) = output { file.as_fd() } else { stdout.as_fd() };
        let mut ready = [PollFd::new(stream, PollFlags::IN), PollFd::from_borrowed_fd(output, PollFlags::empty())];
        match poll(&mut ready, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
        if ready[1].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if !ready[0].revents().is_empty() {
            return Ok(());
        }
    }
}

/// SIGINT, SIGTERM and SIGHUP, caught from the beginning.
struct Signals {
    runtime: tokio::runtime::Runtime,
    caught: [tokio::signal::unix::Signal; 3],
}

impl Signals {
    fn catch() -> io::Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let guard = runtime.enter();
        let caught =
            [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?];
        drop(guard);
        Ok(Signals { runtime, caught })
    }

    /// From now on a signal closes our half of the connection. If after that the output stands still, which `progress`
    /// tells, or a second signal comes, the process ends.
    fn close(self, stream: UnixStream, progress: Arc<AtomicU64>) {
        let Signals { runtime, caught: [mut interrupt, mut terminate, mut hangup] } = self;
        let mut wait = move |limit: Option<Duration>| {
            runtime.block_on(async {
                let limit = async {
                    match limit {
                        Some(limit) => tokio::time::sleep(limit).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    _ = interrupt.recv() => true,
                    _ = terminate.recv() => true,
                    _ = hangup.recv() => true,
                    () = limit => false,
                }
            })
        };
        let spawned = std::thread::Builder::new().name("signals".into()).spawn(move || {
            wait(None);
            // The daemon may have closed already.
            let _ = stream.shutdown(Shutdown::Write);
            loop {
                let before = progress.load(Ordering::Relaxed);
                if wait(Some(STALL_MAX)) || progress.load(Ordering::Relaxed) == before {
                    note("qvs: ended with frames not yet written");
                    std::process::exit(i32::from(FAILED));
                }
            }
        });
        if let Err(error) = spawned {
            note(&format!("no thread to wait for signals: {error}"));
        }
    }
}
