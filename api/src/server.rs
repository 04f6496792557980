//! The API's HTTP/1.1 server: limits, identity, access log, and the way to the version asked for.
//!
//! Clients are hostile: every read, every write and every count has a bound here, and what exceeds it gets its status or
//! its connection closed, so that others are served. Plugins block on disks, so their calls run on the runtime's
//! blocking threads; there are never more of them than [`Limits::connections`]. A request that came is answered apart
//! from its connection: if its client hangs up, a write is still finished and audited, and the connection's slot stays
//! taken until then, so that hanging up gets nobody more than a slot's worth of work.

mod connection;
mod handshakes;
mod incoming;
mod limits;
mod memory;
mod outgoing;
mod pace;
mod peers;
mod strangers;

pub use limits::Limits;

use crate::audit::{self, Who};
use crate::claim::{Claim, Registry};
use crate::format::{Format, JSON};
use crate::guard::Guarded;
use crate::identity::{self, Caller, Hosts, Mode, Refusal};
use crate::peer::Peer;
use crate::plugin::Plugin;
use crate::reply::Reply;
use crate::tls::Tls;
use crate::url::{Target, decoded_path, query_pairs, target};
use crate::v1::{Dialect, Done, Extensions, reference};
use crate::{v1, versions};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::uri::Scheme;
use axum::http::{HeaderValue, Method, Response, StatusCode, header};
use connection::{Connection, Secured};
use handshakes::Handshakes;
use memory::{Memory, Party, ROW_BYTES, SMALL_BYTES, TEXT_COPIES};
use pace::{Large, Pace};
use peers::{PeerLimits, Peers, Seat};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use strangers::{Stranger, Strangers};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Bytes of a request's body; more is 413.
pub const BODY_BYTES_MAX: usize = 64 << 10;
/// Bytes of a request's head, request line included; more is 431.
pub const HEAD_BYTES_MAX: usize = 16 << 10;
/// Connections that may wait for one of the others to be no longer busy.
const WAITING_MAX: usize = 64;
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
    #[error(
        "{address} is not loopback, and the API speaks plain HTTP; set api.certificate and api.key, or identity.insecure = true to allow that"
    )]
    InClear {
        /// Where it listens.
        address: SocketAddr,
    },
    /// Off loopback for everybody.
    #[error(
        "{address} is not loopback, and without identity everybody may do everything; set identity.mode to \"tokens\" or \"keystone\", or identity.insecure = true to allow that"
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
    let peers = Peers::new(PeerLimits {
        all: limits.connections,
        loopback: limits.loopback_connections,
        others: limits.peer_connections,
    });
    let secured = tls.map(|tls| Secured { tls, handshakes: Handshakes::new() });
    let (stop, stopped) = watch::channel(());
    let slots = Arc::new(Semaphore::new(limits.connections));
    let waiting = Arc::new(Semaphore::new(WAITING_MAX));
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let seat = peers.seat(peer.ip());
                let Some(waits) = seat.is_none().then(|| waiting.clone().try_acquire_owned()).transpose().ok() else {
                    tracing::debug!(%peer, "there is no room for a client of the API: all connections are busy");
                    continue;
                };
                let (peers, slots, secured, app) = (peers.clone(), slots.clone(), secured.clone(), app.clone());
                let mut stopped = stopped.clone();
                connections.spawn(async move {
                    let seat = match seat {
                        Some(seat) => seat,
                        None => tokio::select! {
                            seat = timeout(limits.head_time, peers.seat_when_free(peer.ip())) => {
                                let Ok(seat) = seat else { return };
                                seat
                            }
                            _ = stopped.changed() => return,
                        },
                    };
                    drop(waits);
                    let connection = Connection { peer, seat: Arc::new(seat), slots, secured, app, limits, stopped };
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
    memory: Arc<Memory>,
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
    let Answered { mut response, asker, treated_as, done } = answer(app, &from, request, (&path, is_text)).await;
    let (status, micros) = (response.status(), begin.elapsed().as_micros() as u64);
    // `?path`: control characters of a hostile path do not get into the log.
    let asked = treated_as.as_deref().unwrap_or(method.as_str());
    // What is beside the versions is public and told whatever the method: nothing is written there.
    if audit::is_write(asked) && matches!(target(&path, app.dialect), Target::V1(..)) {
        let (who, is_told) = match &asker {
            Asker::Caller(Caller::Anyone) => (Who::Anyone, true),
            Asker::Caller(Caller::Known { identity, .. }) => (Who::Known(identity), true),
            Asker::Unverified => (Who::Unverified, app.strangers.may_be_told(from.peer.ip(), Stranger::Unverified)),
            Asker::Unknown => (Who::Unknown, app.strangers.may_be_told(from.peer.ip(), Stranger::Refused)),
        };
        if is_told {
            audit::tell(who, peer, asked, &path, status, &done);
        }
    }
    let peer = peer.map(tracing::field::display);
    tracing::debug!(peer, %method, ?path, status = status.as_u16(), micros, "API request");
    if matches!(status, StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Who asked.
enum Asker {
    /// Somebody known, or anybody where nobody is.
    Caller(Caller),
    /// Somebody with a token of whom it cannot be told now.
    Unverified,
    /// Somebody without a valid token, or who did not get as far as that.
    Unknown,
}

/// An answer, and what is told of it.
struct Answered {
    response: Response<Body>,
    asker: Asker,
    /// As a request of which method, if that was looked for elsewhere than in the request line.
    treated_as: Option<String>,
    done: Done,
}

impl Answered {
    fn to(caller: Caller, response: impl Into<Response<Body>>) -> Answered {
        let asker = Asker::Caller(caller);
        Answered { response: response.into(), asker, treated_as: None, done: Done::default() }
    }
}

impl From<Reply> for Answered {
    fn from(reply: Reply) -> Answered {
        Answered { response: reply.into(), asker: Asker::Unknown, treated_as: None, done: Done::default() }
    }
}

/// Answers a request with this decoded path, which may not be text.
async fn answer(app: &App, from: &Origin, request: Request, (path, is_text): (&str, bool)) -> Answered {
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
    let peer = Peer::of(from.peer.ip());
    let caller = match target {
        Target::V1(_, rest) => match app.identity.admit(&parts.headers, identity::tenant_of(rest), peer).await {
            Ok(caller) => caller,
            Err(refusal) => return refused(&refusal, accept.as_deref(), is_head),
        },
        Target::Versions | Target::Description | Target::Nowhere => Caller::Anyone,
    };
    // Only now: a stranger need not be listened to. Nothing is lost with a client that makes room before it said it all.
    from.seat.wait_for_client();
    let body = incoming::body(body, app.limits.body_time, format).await;
    from.seat.begin_request();
    let body = match body {
        Ok(body) => body,
        Err(reply) => return Answered::to(caller, reply),
    };
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
            return answer_v1(app, from, caller, request).await;
        }
        // It tells nothing but what is public, and how to get in.
        Target::Description if is_head || parts.method == Method::GET => {
            let reply = Reply::new(StatusCode::OK, JSON, Vec::new());
            let response = reply.with_body(|_| Body::from(app.description.clone()));
            return Answered::to(caller, response);
        }
        Target::Description | Target::Nowhere => Reply::not_found(accept.as_deref(), is_head, ""),
    };
    Answered::to(caller, reply)
}

/// Answers a request to one of the versions, when there is memory for what it asks for.
async fn answer_v1(app: &App, from: &Origin, caller: Caller, request: v1::Request) -> Answered {
    let mut plugin = Guarded::new(app.plugin.clone(), caller.clone());
    if let Some(Claims { claim, registry }) = app.claims.clone().filter(|_| app.identity.is_on()) {
        plugin = plugin.with_claims(claim, registry);
    }
    let treated_as = (app.dialect == Dialect::StrictEssex).then(|| v1::method(&request).into_owned());
    let answered =
        |response: Response<Body>, done| Answered { treated_as, done, ..Answered::to(caller.clone(), response) };
    let size = v1::list_size_max(&plugin, &request);
    let bytes = size.rows.saturating_mul(ROW_BYTES).saturating_add(size.text_bytes.saturating_mul(TEXT_COPIES));
    let accept = request.accept.clone();
    let Some(mut share) = app.memory.set_aside(party(&caller, from), bytes, app.limits.answer_wait).await else {
        return answered(overloaded(accept.as_deref()).into(), Done::default());
    };
    let is_write = audit::is_write(&v1::method(&request));
    let (extensions, of_task) = (app.extensions.clone(), caller.clone());
    let task = tokio::task::spawn_blocking(move || v1::answer(&plugin, &extensions, &of_task, &request));
    let (reply, done) = task.await.unwrap_or_else(|error| (broke(&error), Done::default()));
    if !share.settle_answer(reply.body.len(), is_write) {
        return answered(overloaded(accept.as_deref()).into(), done);
    }
    if reply.body.len() > SMALL_BYTES {
        let large = |body| Body::new(Large::new(body, share, from.pace.clone()));
        return answered(reply.with_body(large), done);
    }
    answered(reply.into(), done)
}

/// On whose account the memory of an answer is.
fn party(caller: &Caller, from: &Origin) -> Party {
    match caller {
        Caller::Anyone => Party::Site(Peer::of(from.peer.ip()).site()),
        Caller::Known { identity, .. } => Party::Tenant(identity.project.as_ref().unwrap_or(&identity.user).clone()),
    }
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
    let asker = match refusal {
        Refusal::ForeignTenant(caller) => Asker::Caller(caller.clone()),
        Refusal::Unavailable(_) => Asker::Unverified,
        Refusal::Unauthenticated(_) => Asker::Unknown,
    };
    Answered { response, asker, treated_as: None, done: Done::default() }
}
