//! The API's HTTP/1.1 server: limits, identity, access log, and the way to the version asked for.
//!
//! Clients are hostile: every read, every write and every count has a bound here, and what exceeds it gets its status or
//! its connection closed, so that others are served. Plugins block on disks, so their calls run on the runtime's
//! blocking threads; there are never more of them than [`Limits::connections`]. A request that came is answered apart
//! from its connection: if its client hangs up, a write is still finished and audited, and the connection's slot stays
//! taken until then, so that hanging up gets nobody more than a slot's worth of work.

mod connection;
mod incoming;
mod memory;
mod peers;
mod strangers;

use crate::audit::{self, Who};
use crate::claim::{Claim, Registry};
use crate::format::{Format, JSON};
use crate::guard::Guarded;
use crate::identity::{self, Caller, Hosts, Mode, Refusal};
use crate::plugin::Plugin;
use crate::reply::Reply;
use crate::tls::Tls;
use crate::url::{Target, decoded_path, query_pairs, target};
use crate::v1::{Dialect, Extensions, reference};
use crate::{v1, versions};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::uri::Scheme;
use axum::http::{HeaderValue, Method, Response, StatusCode, header};
use connection::Connection;
use memory::{Large, Memory, Pace, ROW_BYTES, SMALL_BYTES};
use peers::{PeerLimits, Peers, Seat};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use strangers::Strangers;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Bytes of a request's body (contract: API input).
pub const BODY_BYTES_MAX: usize = 64 << 10;
/// Bytes of a request's head, request line included (contract: API input).
pub const HEAD_BYTES_MAX: usize = 16 << 10;
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many and how long.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections served at a time; more wait in the listener's queue, behind clients who keep theirs. The runtime is to
    /// have as many blocking threads, so that a read never waits for a thread that waits for a disk.
    pub connections: usize,
    /// Of these, from one address (IPv6: 64 bits of it); who comes then takes the place of the one from there that waits
    /// longest without a request.
    pub peer_connections: usize,
    /// The same from loopback, where all clients of this host have one address: 500 of a busy service, and some left for others.
    pub loopback_connections: usize,
    /// Memory of large answers in all, those being made and those not yet taken by their clients, bytes: seven lists of
    /// 100,000 ports.
    pub answer_memory: usize,
    /// For such memory to become free, before a client is told to ask again.
    pub answer_wait: Duration,
    /// For the handshake of TLS.
    pub handshake_time: Duration,
    /// For a request's head, and for the next request on a kept connection.
    pub head_time: Duration,
    /// For a request's body.
    pub body_time: Duration,
    /// For a client that stopped reading its answer; one that reads a large one slowly has as long besides what 256 KiB a
    /// second take.
    pub write_time: Duration,
    /// Lines that the audit log has of strangers' writes from one address in [`Limits::stranger_time`]; of more, their number.
    pub stranger_lines: u32,
    /// See [`Limits::stranger_lines`].
    pub stranger_time: Duration,
    /// For requests in flight at shutdown. The daemon has 5 s in all.
    pub shutdown_time: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 1024,
            peer_connections: 128,
            loopback_connections: 768,
            answer_memory: 128 << 20,
            answer_wait: Duration::from_secs(5),
            handshake_time: Duration::from_secs(10),
            head_time: Duration::from_secs(15),
            body_time: Duration::from_secs(10),
            write_time: Duration::from_secs(20),
            stranger_lines: 10,
            stranger_time: Duration::from_secs(10),
            shutdown_time: Duration::from_secs(4),
        }
    }
}

/// What the settings say of the server.
#[derive(Clone, Default, Debug)]
pub struct ServerConfig {
    /// `api.hosts`.
    pub hosts: Vec<String>,
    /// `identity.insecure`: beyond loopback what is not safe there, without TLS or noauth.
    pub is_insecure: bool,
    /// `api.certificate` and `api.key`; `None`: plain HTTP.
    pub tls: Option<Arc<Tls>>,
    /// How clients are known.
    pub identity: Mode,
    /// Which interface ids tenants may plug and who knows whose they are, where clients are known.
    pub claims: Option<Claims>,
    /// `api.strict_essex`.
    pub dialect: Dialect,
    /// What is served beside the core of the API.
    pub extensions: Arc<Extensions>,
    /// Limits.
    pub limits: Limits,
}

/// Which interface ids tenants may plug.
#[derive(Clone)]
pub struct Claims {
    /// Any, or theirs.
    pub claim: Claim,
    /// Who knows whose they are.
    pub registry: Arc<dyn Registry>,
}

impl std::fmt::Debug for Claims {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.claim.fmt(to)
    }
}

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Off loopback in clear.
    #[error("{address} is not loopback, and the API speaks plain HTTP; set identity.insecure to allow that")]
    InClear {
        /// Where it listens.
        address: SocketAddr,
    },
    /// Off loopback for everybody.
    #[error(
        "{address} is not loopback, and without identity everybody may do everything; set identity.insecure to allow that"
    )]
    ForEverybody {
        /// Where it listens.
        address: SocketAddr,
    },
    /// With the original's oddities and off loopback.
    #[error("{address} is not loopback, and api.strict_essex is for replaying recordings on this host only")]
    StrictBeyondLoopback {
        /// Where it listens.
        address: SocketAddr,
    },
    /// The listener failed.
    #[error("the API's listener: {0}")]
    Listener(#[from] io::Error),
}

/// Serves until `shutdown` is ready; then answers the requests in flight, but no longer than [`Limits::shutdown_time`].
/// Call it on a tokio runtime with I/O and time.
///
/// # Errors
/// [`ServeError::InClear`] and [`ServeError::ForEverybody`] unless `is_insecure`; [`ServeError::StrictBeyondLoopback`];
/// [`ServeError::Listener`] if the listener cannot be used at all.
pub async fn serve(
    listener: std::net::TcpListener,
    config: ServerConfig,
    plugin: Arc<dyn Plugin>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let address = listener.local_addr()?;
    if !address.ip().is_loopback() {
        check_beyond_loopback(address, &config)?;
    }
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let limits = config.limits;
    let ServerConfig { hosts, identity, claims, dialect, extensions, tls, .. } = config;
    let scheme = if tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
    let hosts = Hosts::new(hosts);
    let description = reference::description(&extensions).body.into();
    let memory = Memory::new(limits.answer_memory);
    let strangers = Strangers::new(limits.stranger_lines, limits.stranger_time);
    let app = app(App {
        hosts,
        scheme,
        identity,
        claims,
        dialect,
        extensions,
        description,
        memory,
        strangers: strangers.clone(),
        limits,
        plugin,
    });
    let peers = Peers::new(PeerLimits { loopback: limits.loopback_connections, others: limits.peer_connections });
    let (stop, stopped) = watch::channel(());
    let slots = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = async {
            // The slot first: who finds none waits in the kernel's queue and costs nothing here.
            let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, slot)
        };
        let (accepted, slot) = tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(seat) = peers.seat(peer.ip()) else {
                    tracing::debug!(%peer, "a client of the API has all connections it may have, and all are busy");
                    continue;
                };
                let pace = Pace::new(limits.write_time);
                let from = Origin { peer, seat: Arc::new(seat), pace, _slot: Arc::new(slot) };
                let tls = tls.as_ref().map(|tls| tls.acceptor());
                let connection = Connection { from, tls, app: app.clone(), limits, stopped: stopped.clone() };
                connections.spawn(async move {
                    if let Err(error) = connection.run(stream).await {
                        tracing::debug!(%peer, %error, "API connection failed");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the API cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    drop(stop);
    let all_done = async {
        while connections.join_next().await.is_some() {}
        // Requests whose clients hung up hold slots too.
        let all = u32::try_from(limits.connections).unwrap_or(u32::MAX);
        drop(slots.acquire_many(all).await);
    };
    if timeout(limits.shutdown_time, all_done).await.is_err() {
        tracing::warn!("API connections were still busy at shutdown and are cut");
    }
    strangers.finish();
    Ok(())
}

/// Whether what is served may be served beyond loopback; says what is not safe there.
fn check_beyond_loopback(address: SocketAddr, config: &ServerConfig) -> Result<(), ServeError> {
    let (is_clear, is_for_everybody) = (config.tls.is_none(), !config.identity.is_on());
    if config.dialect == Dialect::StrictEssex {
        return Err(ServeError::StrictBeyondLoopback { address });
    }
    if is_clear && !config.is_insecure {
        return Err(ServeError::InClear { address });
    }
    if is_for_everybody && !config.is_insecure {
        return Err(ServeError::ForEverybody { address });
    }
    if is_for_everybody {
        tracing::warn!(%address, "the API answers anybody who reaches it: noauth, identity.insecure = true");
    } else if is_clear {
        tracing::warn!(%address, "tokens come to the API in clear: identity.insecure = true");
    }
    Ok(())
}

/// Where a request comes from.
#[derive(Clone, Debug)]
struct Origin {
    peer: SocketAddr,
    /// Its place among its peer's.
    seat: Arc<Seat>,
    /// The time it has for large answers.
    pace: Pace,
    /// The connection's, given back when neither it nor a request of it is there any more.
    _slot: Arc<OwnedSemaphorePermit>,
}

/// What every request needs.
struct App {
    hosts: Hosts,
    /// By which the API is called.
    scheme: Scheme,
    identity: Mode,
    claims: Option<Claims>,
    dialect: Dialect,
    extensions: Arc<Extensions>,
    /// The OpenAPI description, shared by all who are told it.
    description: Bytes,
    memory: Memory,
    /// Whose writes are told one by one.
    strangers: Arc<Strangers>,
    limits: Limits,
    plugin: Arc<dyn Plugin>,
}

/// The service of one server. Quantum's paths follow rules of their own (suffixes, 404 for a wrong method), so they are
/// the fallback; an API with ordinary paths is nested beside it.
fn app(app: App) -> Router {
    Router::new().fallback(answer_detached).with_state(Arc::new(app))
}

/// Answers in a task of its own, which goes on when the client hangs up and this future is dropped.
async fn answer_detached(State(app): State<Arc<App>>, request: Request) -> Result<Response<Body>, Infallible> {
    let task = tokio::spawn(async move { log_and_answer(&app, request).await });
    Ok(task.await.unwrap_or_else(|error| broke(&error).into()))
}

/// The answer to a request whose task panicked.
fn broke(error: &tokio::task::JoinError) -> Reply {
    tracing::error!(%error, "an API request broke");
    Reply::error(StatusCode::INTERNAL_SERVER_ERROR, "The server failed.", Format::Json)
}

async fn log_and_answer(app: &App, request: Request) -> Response<Body> {
    let begin = Instant::now();
    // Held to the end: the slot is in it.
    let from = request.extensions().get::<Origin>().expect("the connection says where its requests come from").clone();
    let peer = Some(from.peer);
    let method = request.method().clone();
    let (path, is_text) = decoded_path(request.uri().path());
    let Answered { mut response, caller, treated_as } = answer(app, &from, request, (&path, is_text)).await;
    let (status, micros) = (response.status(), begin.elapsed().as_micros() as u64);
    // `?path`: control characters of a hostile path do not get into the log.
    let asked = treated_as.as_deref().unwrap_or(method.as_str());
    // What is beside the versions is public and told whatever the method: nothing is written there.
    if audit::is_write(asked) && matches!(target(&path, app.dialect), Target::V1(..)) {
        let who = match &caller {
            Some(Caller::Anyone) => Who::Anyone,
            Some(Caller::Known { identity, .. }) => Who::Known(identity),
            None => Who::Unknown,
        };
        if who != Who::Unknown || app.strangers.may_be_told(from.peer.ip()) {
            audit::tell(who, peer, asked, &path, status);
        }
    }
    let peer = peer.map(tracing::field::display);
    tracing::debug!(peer, %method, ?path, status = status.as_u16(), micros, "API request");
    if matches!(status, StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// An answer, and who asked if that was found out.
struct Answered {
    response: Response<Body>,
    caller: Option<Caller>,
    /// As a request of which method, if that was looked for elsewhere than in the request line.
    treated_as: Option<String>,
}

impl Answered {
    fn to(caller: Caller, response: impl Into<Response<Body>>) -> Answered {
        Answered { response: response.into(), caller: Some(caller), treated_as: None }
    }
}

impl From<Reply> for Answered {
    fn from(reply: Reply) -> Answered {
        Answered { response: reply.into(), caller: None, treated_as: None }
    }
}

/// Answers a request with this decoded path, which may not be text.
async fn answer(app: &App, from: &Origin, request: Request, (path, is_text): (&str, bool)) -> Answered {
    let busy = from.seat.begin_request();
    let (parts, body) = request.into_parts();
    let format = incoming::format(path, &parts.headers);
    let host = match app.hosts.check(parts.version, &parts.uri, &parts.headers, app.identity.is_on()) {
        Ok(host) => host,
        Err(refused) => return Reply::error(refused.status(), &refused.to_string(), format).into(),
    };
    if !is_text {
        return Reply::error(StatusCode::BAD_REQUEST, "The path is not UTF-8.", format).into();
    }
    let text = |name| incoming::text(&parts.headers, name);
    let accept = text(header::ACCEPT);
    let is_head = parts.method == Method::HEAD;
    let target = target(path, app.dialect);
    let caller = match target {
        Target::V1(_, rest) => match app.identity.admit(&parts.headers, identity::tenant_of(rest)).await {
            Ok(caller) => caller,
            Err(refusal) => return refused(&refusal, accept.as_deref(), is_head),
        },
        Target::Versions | Target::Description | Target::Nowhere => Caller::Anyone,
    };
    // Only now: a stranger need not be listened to. Nothing is lost with a client that makes room before it said it all.
    drop(busy);
    let body = match incoming::body(body, app.limits.body_time, format).await {
        Ok(body) => body,
        Err(reply) => return Answered::to(caller, reply),
    };
    let busy = from.seat.begin_request();
    let mut treated_as = None;
    let reply = match target {
        Target::Versions => versions::list(&app.scheme, &host, format),
        Target::V1(version, rest) => {
            let request = v1::Request {
                version,
                dialect: app.dialect,
                method: parts.method.as_str().to_owned(),
                path: rest.to_owned(),
                query: query_pairs(parts.uri.query().unwrap_or_default()),
                content_type: text(header::CONTENT_TYPE),
                accept,
                body,
            };
            let mut plugin = Guarded::new(app.plugin.clone(), caller.clone());
            if let Some(Claims { claim, registry }) = app.claims.clone().filter(|_| app.identity.is_on()) {
                plugin = plugin.with_claims(claim, registry);
            }
            treated_as = (app.dialect == Dialect::StrictEssex).then(|| v1::method(&request).into_owned());
            let rows = v1::row_count_max(&plugin, &request);
            let share = app.memory.set_aside(rows.saturating_mul(ROW_BYTES), app.limits.answer_wait).await;
            let Some(mut share) = share else {
                return Answered { treated_as, ..Answered::to(caller, overloaded(request.accept.as_deref())) };
            };
            let is_write = audit::is_write(&v1::method(&request));
            let accept = request.accept.clone();
            let (extensions, of_task) = (app.extensions.clone(), caller.clone());
            let task = tokio::task::spawn_blocking(move || v1::answer(&plugin, &extensions, &of_task, &request));
            let reply = task.await.unwrap_or_else(|error| broke(&error));
            if !share.settle_answer(reply.body.len(), is_write) {
                return Answered { treated_as, ..Answered::to(caller, overloaded(accept.as_deref())) };
            }
            if reply.body.len() > SMALL_BYTES {
                let large = |body| Large::new(body, share, from.pace.clone(), Some(busy));
                return Answered { treated_as, ..Answered::to(caller, reply.with_body(|body| Body::new(large(body)))) };
            }
            reply
        }
        // It tells nothing but what is public, and how to get in.
        Target::Description if is_head || parts.method == Method::GET => {
            let reply = Reply::new(StatusCode::OK, JSON, Vec::new());
            let response = reply.with_body(|_| Body::from(app.description.clone()));
            return Answered::to(caller, response);
        }
        Target::Description | Target::Nowhere => Reply::not_found(accept.as_deref(), is_head, ""),
    };
    Answered { treated_as, ..Answered::to(caller, reply) }
}

/// The answer to a request for more than there is memory for now.
fn overloaded(accept: Option<&str>) -> Reply {
    const WHY: &str = "Too many large answers are under way. Ask again, or for less.";
    Reply::page(StatusCode::SERVICE_UNAVAILABLE, accept, false, WHY, "")
}

/// The answer to a request that is not let in.
fn refused(refusal: &Refusal, accept: Option<&str>, is_head: bool) -> Answered {
    let mut response = Response::from(Reply::page(refusal.status(), accept, is_head, &refusal.message(), ""));
    response.headers_mut().extend(refusal.headers());
    let caller = match refusal {
        Refusal::ForeignTenant(caller) => Some(caller.clone()),
        Refusal::Unauthenticated(_) | Refusal::Unavailable(_) => None,
    };
    Answered { response, caller, treated_as: None }
}
