//! A client of etcd 3 over its JSON gateway: reads, transactions, leases, and a watch.
//!
//! What is hard is to know what happened. A request that surely never left is sent to the next member; a read that got no
//! answer is asked again; but a write that was sent and not answered may have been done, and is told as such
//! ([`EtcdError::is_unknown`]): whoever wrote finds out. Everything that comes in is bounded: an answer by its bytes, a
//! range by its pages, a watch by what has gathered unread (see [`watch`]).
//!
//! Members are asked in turn, beginning with the one that answered last. A few connections are kept open; etcd's tokens are
//! renewed when it says that ours is none. Runs on tokio; times out by itself. `tests/chapters/etcd.rs` runs it against the
//! real one.

pub mod message;
pub mod watch;

use crate::http_client::{self, Connection, Endpoint, EndpointError, HeaderValue, Method, Unsent, header};
use crate::watched::{FileError, Rights, read};
use axum::http::{Request, Response};
use hyper::body::Incoming;
use message::{
    Answer, Blob, CompactionRequest, Done, GrantRequest, KeyValue, LeaseId, LeaseRequest, LeaseResponse, LoginRequest,
    LoginResponse, Number, RangeRequest, RangeResponse, Refusal, Revision, Streamed, Txn, TxnResponse,
};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// How long opening a connection to one member may take.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// How long one question may take in all. An election takes etcd one to two seconds.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Bytes of an answer that is no page of a range: etcd takes requests of 1.5 MiB, which Base64 makes longer by a third.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Keys of a page. Each is some hundred bytes; where what is read is longer than [`PAGE_BYTES_MAX`], a page has fewer keys. etcd 3.4 walks
/// all keys behind a page's first to count them, so that few large pages are read sooner: 106,000 keys in 19 s where pages of
/// 500 took 36 to 49.
const PAGE: i64 = 2_000;
/// Bytes of a page. What etcd takes, it takes in requests of 1.5 MiB, so that a page of one key is never longer.
/// Few enough that one comes within [`ANSWER_MAX`] on a slow host.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// How often a page is asked for again that is not answered, each time for twice as long: many hosts may be reading all at once.
const PAGE_TRIES: u32 = 3;
/// Connections kept open while nothing is asked.
const IDLE_MAX: usize = 4;
/// gRPC's codes that tell what is no fault of the request (`google.golang.org/grpc/codes`).
const CANCELLED: u32 = 1;
const DEADLINE_EXCEEDED: u32 = 4;
const OUT_OF_RANGE: u32 = 11;
const UNAVAILABLE: u32 = 14;
const UNAUTHENTICATED: u32 = 16;
/// What etcd says of a range of a revision that it forgot.
const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
/// What a member that shuts down says of a request that it took and gave to nobody: its gateway speaks to it by a connection that is
/// closed first. One that was given on and is cut off is told otherwise (`UNAVAILABLE`).
const CLOSING: &str = "grpc: the client connection is closing";
/// What it says, with code 3, to who shows no token where users are wanted, and to who shows one from before its users or
/// their rights were changed.
const NO_USER: [&str; 2] = ["etcdserver: user name is empty", "etcdserver: revision of auth store is old"];

/// Where etcd is and who we are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EtcdConfig {
    /// The members' URLs, at least one.
    pub endpoints: Vec<String>,
    /// Certificates that vouch for them; read for `https` only.
    pub ca: PathBuf,
    /// Our certificate and its key, to be shown; `None`: none.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// A user and the file of its password; `None`: etcd asks nobody.
    pub user: Option<(String, PathBuf)>,
    /// What the rights of secret files must be.
    pub rights: Rights,
}

/// Why etcd cannot be used as the settings have it.
#[derive(Debug, thiserror::Error)]
pub enum EtcdConfigError {
    /// A URL or certificate.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// A secret file.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Why etcd did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// No member took the question: it was surely not done.
    #[error("etcd cannot be reached: {0}")]
    Unreachable(String),
    /// It was asked and nothing came back: a write may have been done.
    #[error("etcd does not answer: {0}")]
    Unanswered(String),
    /// It was refused, and not done.
    #[error("etcd refuses: {message} (code {code})")]
    Refused {
        /// gRPC's code.
        code: u32,
        /// What it said.
        message: String,
    },
    /// What was asked for is of a time that etcd has forgotten.
    #[error("etcd has forgotten that revision")]
    Compacted,
    /// It answered nonsense.
    #[error("etcd's answer cannot be read: {0}")]
    Nonsense(String),
    /// It answered more than was asked for, or without end.
    #[error("etcd's answer is longer than {0} bytes")]
    TooLong(usize),
    /// The file of the password.
    #[error(transparent)]
    Password(#[from] FileError),
}

impl EtcdError {
    /// Whether a write that ended so may have been done all the same.
    pub fn is_unknown(&self) -> bool {
        matches!(self, EtcdError::Unanswered(_) | EtcdError::Nonsense(_) | EtcdError::TooLong(_))
    }

    /// Whether it was refused because something that it is about is not there, such as a lease that has ended.
    pub(crate) fn is_not_found(&self) -> bool {
        /// gRPC's code for that.
        const NOT_FOUND: u32 = 5;
        matches!(self, EtcdError::Refused { code: NOT_FOUND, .. })
    }
}

/// The client.
pub struct Etcd {
    config: EtcdConfig,
    endpoints: Vec<Endpoint>,
    /// The member that answered last.
    current: AtomicUsize,
    /// Connections that wait for a question, with their member.
    idle: Mutex<Vec<(usize, Connection)>>,
    token: Mutex<Option<String>>,
}

/// How a question may be treated.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Asked twice it does no harm.
    Read,
    /// Done twice it may.
    Write,
}

impl Etcd {
    /// A client that has not asked yet; etcd need not be there.
    ///
    /// # Errors
    /// [`EtcdConfigError`].
    pub fn new(config: EtcdConfig) -> Result<Etcd, EtcdConfigError> {
        if let Some((_, password)) = &config.user {
            read(password, config.rights)?;
        }
        if let Some((_, key)) = &config.identity {
            read(key, config.rights)?;
        }
        let identity = config.identity.as_ref().map(|(certificate, key)| (&**certificate, &**key));
        let endpoints = config.endpoints.iter().map(|url| Endpoint::with_identity(url, &config.ca, identity));
        let endpoints = endpoints.collect::<Result<Vec<_>, _>>()?;
        assert!(!endpoints.is_empty(), "settings name at least one member");
        let (current, idle, token) = (AtomicUsize::new(0), Mutex::default(), Mutex::default());
        Ok(Etcd { config, endpoints, current, idle, token })
    }

    /// The value of a key, and the revision of the store.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub async fn get(&self, key: &Blob) -> Result<(Option<KeyValue>, Revision), EtcdError> {
        let request = RangeRequest { key, range_end: None, limit: Number(1), revision: Number(0) };
        let answer: RangeResponse = self.ask("/v3/kv/range", &request, Kind::Read, ANSWER_BYTES_MAX).await?;
        Ok((answer.kvs.into_iter().next(), answer.header.revision.0))
    }

    /// The value that a key had at a revision.
    ///
    /// # Errors
    /// [`EtcdError::Compacted`]: etcd has forgotten that; else [`EtcdError`].
    pub async fn get_at(&self, key: &Blob, revision: Revision) -> Result<Option<KeyValue>, EtcdError> {
        let request = RangeRequest { key, range_end: None, limit: Number(1), revision: Number(revision) };
        let answer: RangeResponse = self.ask("/v3/kv/range", &request, Kind::Read, ANSWER_BYTES_MAX).await?;
        Ok(answer.kvs.into_iter().next())
    }

    /// Hands out every key that begins with `prefix`, in order and as of one revision, which is answered.
    ///
    /// # Errors
    /// [`EtcdError`]; [`EtcdError::Compacted`] if etcd forgot that revision on the way.
    pub async fn read_all(&self, prefix: &Blob, mut each: impl FnMut(KeyValue)) -> Result<Revision, EtcdError> {
        let end = prefix.end_of_prefix();
        let (mut from, mut revision, mut limit, mut tries) = (prefix.clone(), 0, PAGE, 0);
        loop {
            let request =
                RangeRequest { key: &from, range_end: Some(&end), limit: Number(limit), revision: Number(revision) };
            let time_max = ANSWER_MAX * 2u32.pow(tries);
            let page = self.ask_within(time_max, "/v3/kv/range", &request, Kind::Read, PAGE_BYTES_MAX).await;
            let page: RangeResponse = match page {
                Err(EtcdError::TooLong(_)) if limit > 1 => {
                    limit = (limit / 8).max(1);
                    continue;
                }
                // What was read so far is as good as ever; from page one on it would take as long again.
                Err(EtcdError::Unanswered(_)) if revision > 0 && tries < PAGE_TRIES => {
                    limit = (limit / 2).max(1);
                    tries += 1;
                    tokio::time::sleep(by_luck(time_max)).await;
                    continue;
                }
                page => page?,
            };
            (limit, tries) = ((limit * 2).min(PAGE), 0);
            if revision == 0 {
                revision = page.header.revision.0;
            }
            let last = page.kvs.last().map(|last| last.key.clone());
            page.kvs.into_iter().for_each(&mut each);
            match last {
                // The next key there can be.
                Some(mut last) if page.more => {
                    last.0.push(0);
                    if last <= from {
                        return Err(EtcdError::Nonsense("a range that does not go on".to_owned()));
                    }
                    from = last;
                }
                _ => return Ok(revision),
            }
        }
    }

    /// Does a transaction.
    ///
    /// # Errors
    /// [`EtcdError`]; whether it was done is not known if [`EtcdError::is_unknown`].
    pub async fn transact(&self, txn: &Txn) -> Result<TxnResponse, EtcdError> {
        self.ask("/v3/kv/txn", txn, Kind::Write, ANSWER_BYTES_MAX).await
    }

    /// Makes a lease of at least this many seconds.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub async fn grant(&self, ttl_s: u32) -> Result<LeaseId, EtcdError> {
        let request = GrantRequest { ttl: Number(ttl_s.into()) };
        // Made twice, one of them ends by itself.
        let answer: LeaseResponse = self.ask("/v3/lease/grant", &request, Kind::Read, ANSWER_BYTES_MAX).await?;
        Ok(answer.id.0)
    }

    /// Keeps a lease alive; false: it has ended.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub async fn keep_alive(&self, lease: LeaseId) -> Result<bool, EtcdError> {
        let request = LeaseRequest { id: Number(lease) };
        let answer: Streamed<LeaseResponse> =
            self.ask("/v3/lease/keepalive", &request, Kind::Read, ANSWER_BYTES_MAX).await?;
        match answer {
            Streamed { result: Some(lease), .. } => Ok(lease.ttl.0 > 0),
            Streamed { error, .. } => Err(EtcdError::Nonsense(format!("a lease kept alive: {error:?}"))),
        }
    }

    /// Ends a lease and all that was written under it.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub async fn revoke(&self, lease: LeaseId) -> Result<(), EtcdError> {
        let request = LeaseRequest { id: Number(lease) };
        self.ask::<Done>("/v3/lease/revoke", &request, Kind::Read, ANSWER_BYTES_MAX).await.map(drop)
    }

    /// Has etcd forget what was before `revision`.
    ///
    /// # Errors
    /// [`EtcdError`]; [`EtcdError::Compacted`] if it has.
    pub async fn compact(&self, revision: Revision) -> Result<(), EtcdError> {
        let request = CompactionRequest { revision: Number(revision) };
        self.ask::<Done>("/v3/kv/compaction", &request, Kind::Read, ANSWER_BYTES_MAX).await.map(drop)
    }

    async fn ask<T: Answer>(
        &self,
        path: &str,
        question: &impl Serialize,
        kind: Kind,
        bytes_max: usize,
    ) -> Result<T, EtcdError> {
        self.ask_within(ANSWER_MAX, path, question, kind, bytes_max).await
    }

    async fn ask_within<T: Answer>(
        &self,
        time_max: Duration,
        path: &str,
        question: &impl Serialize,
        kind: Kind,
        bytes_max: usize,
    ) -> Result<T, EtcdError> {
        let body = serde_json::to_vec(question).expect("messages have only text keys");
        let deadline = Instant::now() + time_max;
        let mut is_renewed = false;
        let mut tries = 0;
        loop {
            tries += 1;
            let token = self.token(deadline).await?;
            let member = self.current.load(Ordering::Relaxed);
            let outcome = self.ask_member(member, path, body.clone(), token.as_deref(), bytes_max, deadline).await;
            let error = match outcome {
                Ok(answer) => {
                    let answer = serde_json::from_slice::<T>(&answer).map_err(|error| error.to_string());
                    let answer = answer.and_then(|answer| match answer.is_etcds() {
                        true => Ok(answer),
                        false => Err("it is none of etcd's".to_owned()),
                    });
                    return answer.map_err(|why| {
                        self.turn_from(member);
                        EtcdError::Nonsense(why)
                    });
                }
                Err(error) => error,
            };
            match &error {
                EtcdError::Refused { code, message }
                    if self.config.user.is_some()
                        && !is_renewed
                        && (*code == UNAUTHENTICATED || NO_USER.contains(&&**message)) =>
                {
                    is_renewed = true;
                    *lock(&self.token) = None;
                    continue;
                }
                EtcdError::Unreachable(_) => {}
                EtcdError::Unanswered(_) if kind == Kind::Read => {}
                EtcdError::Unanswered(_) => {
                    // It may have been done; but what is asked next goes to one that answers.
                    self.turn_from(member);
                    return Err(error);
                }
                _ => return Err(error),
            }
            self.turn_from(member);
            if tries >= self.endpoints.len() || Instant::now() >= deadline {
                return Err(error);
            }
        }
    }

    /// Has the next question go to another member, unless somebody saw to that.
    fn turn_from(&self, member: usize) {
        let next = (member + 1) % self.endpoints.len();
        let _ = self.current.compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed);
        lock(&self.idle).retain(|(of, _)| *of != member);
    }

    /// The token to show, if there is a user: the one that we have, or a new one.
    async fn token(&self, deadline: Instant) -> Result<Option<String>, EtcdError> {
        let Some((name, file)) = &self.config.user else { return Ok(None) };
        if let Some(token) = &*lock(&self.token) {
            return Ok(Some(token.clone()));
        }
        let password = read(file, self.config.rights)?;
        let request = LoginRequest { name, password: password.trim_end_matches(['\r', '\n']) };
        let body = serde_json::to_vec(&request).expect("two texts");
        let mut tries = 0;
        let answer = loop {
            tries += 1;
            let member = self.current.load(Ordering::Relaxed);
            let path = "/v3/auth/authenticate";
            match self.ask_member(member, path, body.clone(), None, ANSWER_BYTES_MAX, deadline).await {
                Ok(answer) => break answer,
                // Nothing of ours was asked yet, so whatever it was, the question itself was not.
                Err(EtcdError::Unanswered(why) | EtcdError::Unreachable(why)) => {
                    self.turn_from(member);
                    if tries >= self.endpoints.len() || Instant::now() >= deadline {
                        return Err(EtcdError::Unreachable(why));
                    }
                }
                Err(error) => return Err(error),
            }
        };
        let answer: LoginResponse =
            serde_json::from_slice(&answer).map_err(|error| EtcdError::Unreachable(error.to_string()))?;
        *lock(&self.token) = Some(answer.token.clone());
        Ok(Some(answer.token))
    }

    /// Asks one member and reads its whole answer.
    async fn ask_member(
        &self,
        member: usize,
        path: &str,
        body: Vec<u8>,
        token: Option<&str>,
        bytes_max: usize,
        deadline: Instant,
    ) -> Result<Vec<u8>, EtcdError> {
        let request = self.request(member, path, body, token)?;
        let (connection, answer) = self.begin(member, request, deadline).await?;
        let status = answer.status();
        let answer = timeout_at(deadline, http_client::read(answer, bytes_max)).await;
        let answer = answer.map_err(|_| EtcdError::Unanswered("not in time".to_owned()))?;
        let answer = answer.map_err(|error| match error {
            EndpointError::Answer => EtcdError::TooLong(bytes_max),
            error => EtcdError::Unanswered(error.reason()),
        });
        let answer = answer?.into_body();
        let mut idle = lock(&self.idle);
        if connection.is_free() && idle.len() < IDLE_MAX {
            idle.push((member, connection));
        }
        drop(idle);
        if status.is_success() { Ok(answer) } else { Err(refusal(&answer, status.as_u16())) }
    }

    fn request(
        &self,
        member: usize,
        path: &str,
        body: Vec<u8>,
        token: Option<&str>,
    ) -> Result<Request<Vec<u8>>, EtcdError> {
        let mut request = self.endpoints[member].request(Method::POST, path, body);
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(token) = token {
            let token = HeaderValue::from_str(token).map_err(|error| EtcdError::Unreachable(error.to_string()))?;
            request.headers_mut().insert(header::AUTHORIZATION, token);
        }
        Ok(request)
    }

    /// Sends a request by an idle connection or a new one; the answer's head.
    async fn begin(
        &self,
        member: usize,
        request: Request<Vec<u8>>,
        deadline: Instant,
    ) -> Result<(Connection, Response<Incoming>), EtcdError> {
        let unanswered = || EtcdError::Unanswered("not in time".to_owned());
        let mut request = request;
        while let Some(mut connection) = self.take_idle(member) {
            match timeout_at(deadline, connection.send(request)).await.map_err(|_| unanswered())? {
                Ok(answer) => return Ok((connection, answer)),
                // It was closed while it was idle.
                Err(Unsent { request: Some(unsent), .. }) => request = unsent,
                Err(Unsent { error, .. }) => return Err(EtcdError::Unanswered(error.reason())),
            }
        }
        let connected = timeout(CONNECT_MAX, self.endpoints[member].connect()).await;
        let connected = connected.map_err(|_| EtcdError::Unreachable(format!("not within {CONNECT_MAX:?}")))?;
        let mut connection = connected.map_err(|error| EtcdError::Unreachable(error.reason()))?;
        match timeout_at(deadline, connection.send(request)).await.map_err(|_| unanswered())? {
            Ok(answer) => Ok((connection, answer)),
            Err(Unsent { request: Some(_), error }) => Err(EtcdError::Unreachable(error.reason())),
            Err(Unsent { error, .. }) => Err(EtcdError::Unanswered(error.reason())),
        }
    }

    fn take_idle(&self, member: usize) -> Option<Connection> {
        let mut idle = lock(&self.idle);
        let at = idle.iter().rposition(|(of, _)| *of == member)?;
        Some(idle.swap_remove(at).1)
    }
}

impl Blob {
    /// The end of the range of all keys that begin with this one: one more in the last byte that can be more. Of a key of
    /// nothing but 0xff, or nothing, the end of all keys, which etcd writes as a zero byte.
    pub fn end_of_prefix(&self) -> Blob {
        let mut end = self.0.clone();
        while let Some(last) = end.pop() {
            if last < 0xff {
                end.push(last + 1);
                return Blob(end);
            }
        }
        Blob(vec![0])
    }
}

/// A part of this time, by luck: so what many do is not done by all at once.
pub(crate) fn by_luck(time_max: Duration) -> Duration {
    time_max * u32::from(uuid::Uuid::new_v4().as_bytes()[0]) / 255
}

fn lock<T>(it: &Mutex<T>) -> MutexGuard<'_, T> {
    it.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an answer that is no success means.
fn refusal(body: &[u8], status: u16) -> EtcdError {
    let Ok(refusal) = serde_json::from_slice::<Refusal>(body) else {
        return EtcdError::Unanswered(format!("it answered with status {status}"));
    };
    let message = if refusal.message.is_empty() { refusal.error } else { refusal.message };
    match refusal.code {
        // It has no leader, or lost it on the way.
        UNAVAILABLE | DEADLINE_EXCEEDED => EtcdError::Unanswered(message),
        // Another member may do it.
        CANCELLED if message == CLOSING => EtcdError::Unreachable(message),
        OUT_OF_RANGE if message == COMPACTED => EtcdError::Compacted,
        // A status without a code is a proxy's, or that of a gateway without this path.
        0 => EtcdError::Unanswered(format!("it answered with status {status}")),
        code => EtcdError::Refused { code, message },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_behind_all_that_begins_with_it() {
        for (prefix, end) in [(&b"/qvs/"[..], &b"/qvs0"[..]), (b"a\xff\xff", b"b"), (b"\xff", b"\0"), (b"", b"\0")] {
            assert_eq!(Blob(prefix.to_vec()).end_of_prefix(), Blob(end.to_vec()));
        }
    }

    #[test]
    fn who_ends_a_watch_is_asked_last_and_nobody_else() {
        let endpoints = vec!["http://127.0.0.1:1".to_owned(), "http://127.0.0.1:2".to_owned()];
        let config =
            EtcdConfig { endpoints, ca: PathBuf::new(), identity: None, user: None, rights: Rights::OwnerOnly };
        let etcd = Etcd::new(config).unwrap();
        etcd.turn(1);
        assert_eq!(etcd.current.load(Ordering::Relaxed), 0, "a question has gone on from the first meanwhile");
        etcd.turn(0);
        assert_eq!(etcd.current.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_refusal_tells_whether_a_write_may_have_been_done() {
        let of = |text: &str| refusal(text.as_bytes(), 503);
        assert!(of(r#"{"error":"x","message":"etcdserver: request timed out","code":14}"#).is_unknown());
        assert!(of(r#"{"error":"x","code":4}"#).is_unknown());
        assert!(of("<html>").is_unknown() && of("{}").is_unknown());
        let refused = of(r#"{"error":"etcdserver: too many operations in txn request","code":3}"#);
        assert!(!refused.is_unknown() && refused.to_string().contains("too many operations"), "{refused}");
        let ending = refusal(br#"{"error":"x","message":"grpc: the client connection is closing","code":1}"#, 408);
        assert!(
            matches!(&ending, EtcdError::Unreachable(_)) && !ending.is_unknown(),
            "another member is asked: {ending}"
        );
        let cancelled = refusal(br#"{"error":"x","message":"context canceled","code":1}"#, 408);
        assert!(matches!(cancelled, EtcdError::Refused { code: 1, .. }));
        let compacted = format!(r#"{{"message":"{COMPACTED}","code":11}}"#);
        assert!(matches!(refusal(compacted.as_bytes(), 400), EtcdError::Compacted));
    }
}
