//! The command's side of the admin socket: find the daemon, ask once, get one answer.

use crate::cli::Daemon;
use crate::protocol::{self, ANSWER_MAX, Answer, Envelope, Request};
use crate::settings::{Settings, SettingsError};
use serde::de::DeserializeOwned;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a command waits for the daemon; longer than the daemon itself waits for a device.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// Why a command got no answer it could use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The settings that name the socket are wrong.
    #[error("{0}")]
    Settings(#[from] SettingsError),
    /// Nobody is there.
    #[error("no daemon answers at {path}: {source}; is `qvs run` up?")]
    NoDaemon {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the daemon at {path} hung up: {source}")]
    HungUp {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What it told is not what it should be.
    #[error("the daemon's answer is of another version: {0}")]
    Form(serde_json::Error),
    /// The daemon said no.
    #[error("{0}")]
    Refused(String),
}

/// Where the daemon's admin socket is.
///
/// # Errors
/// If the settings cannot be read.
pub(crate) fn socket(daemon: &Daemon) -> Result<PathBuf, SettingsError> {
    match &daemon.admin {
        Some(path) => Ok(path.clone()),
        None => Ok(Settings::load(daemon.config.as_deref())?.admin.socket),
    }
}

/// Asks for something that goes on after the answer; answers the connection too.
///
/// # Errors
/// As [`ask`].
pub(crate) fn begin(path: &Path, request: Request) -> Result<(serde_json::Value, UnixStream), ClientError> {
    let hung_up = |source| ClientError::HungUp { path: path.to_owned(), source };
    let stream = send(path, request)?;
    // Byte by byte, so that nothing behind the line is taken.
    let answer = read_answer(path, &mut BufReader::with_capacity(1, &stream))?;
    stream.set_read_timeout(None).map_err(hung_up)?;
    Ok((answer, stream))
}

/// Asks the daemon at `path`.
///
/// # Errors
/// [`ClientError`]: nobody there, or the answer was no.
pub(crate) fn ask(path: &Path, request: Request) -> Result<serde_json::Value, ClientError> {
    read_answer(path, &mut BufReader::new(&send(path, request)?))
}

/// Asks for a list, and hands on its rows as they come; `visit` says whether it wants more.
///
/// # Errors
/// [`ClientError`]: nobody there, the answer was no, or it was of another form.
pub(crate) fn ask_rows<T: DeserializeOwned>(
    path: &Path,
    request: Request,
    visit: &mut dyn FnMut(T) -> bool,
) -> Result<(), ClientError> {
    let mut wants_more = true;
    let answer = protocol::each_row(BufReader::new(&send(path, request)?), &mut |row| {
        wants_more = visit(row);
        wants_more
    });
    match answer {
        Ok(None) => Ok(()),
        Ok(Some(message)) => Err(ClientError::Refused(message)),
        Err(_) if !wants_more => Ok(()),
        Err(error) if error.is_data() => Err(ClientError::Form(error)),
        Err(error) => Err(ClientError::HungUp { path: path.to_owned(), source: error.into() }),
    }
}

fn send(path: &Path, request: Request) -> Result<UnixStream, ClientError> {
    let hung_up = |source| ClientError::HungUp { path: path.to_owned(), source };
    let stream = UnixStream::connect(path).map_err(|source| ClientError::NoDaemon { path: path.to_owned(), source })?;
    stream.set_read_timeout(Some(ANSWER_WAIT)).map_err(hung_up)?;
    stream.set_write_timeout(Some(ANSWER_WAIT)).map_err(hung_up)?;
    let mut line = serde_json::to_vec(&Envelope { version: protocol::VERSION, request })
        .expect("requests are plain data with text keys");
    line.push(b'\n');
    (&stream).write_all(&line).map_err(hung_up)?;
    Ok(stream)
}

fn read_answer(path: &Path, from: &mut impl BufRead) -> Result<serde_json::Value, ClientError> {
    let hung_up = |source| ClientError::HungUp { path: path.to_owned(), source };
    let answer = protocol::read_line(from, ANSWER_MAX).map_err(hung_up)?;
    let answer = answer.ok_or_else(|| hung_up(io::ErrorKind::UnexpectedEof.into()))?;
    match serde_json::from_slice(&answer).map_err(|error| hung_up(error.into()))? {
        Answer::Ok(value) => Ok(value),
        Answer::Error(message) => Err(ClientError::Refused(message)),
    }
}
