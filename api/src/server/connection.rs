//! One connection of the API from its first byte to its last: TLS where there is a certificate, then HTTP/1.1.
//!
//! What makes it hard is the end. A client is to get the answer that tells why it is closed, and no client may keep us
//! for longer than each step's time.

use super::handshakes::Handshakes;
use super::outgoing::{HandedOver, Outgoing};
use super::pace::Pace;
use super::peers::Seat;
use super::{HEAD_BYTES_MAX, Limits, Origin};
use crate::peer::Peer;
use crate::tls::Tls;
use axum::Router;
use axum::extract::Request;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tower::Service;

/// Bytes hyper may hold of one connection's input: a head and a piece of body.
const READ_BUFFER_BYTES: usize = 2 * HEAD_BYTES_MAX;
/// Bytes taken from a client after the last answer, so that closing does not wipe that answer out.
const LINGER_BYTES_MAX: usize = 1 << 20;
/// Time for the same.
const LINGER_TIME_MAX: Duration = Duration::from_secs(1);
/// The first byte of whoever speaks TLS: a record of the handshake (RFC 8446 section 5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// How a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// All was said, or cannot be.
    Over,
    /// By us: it makes room for another.
    Room,
    /// By us: the client does not take what it asked for.
    Late,
}

/// TLS, and who waits for it.
#[derive(Clone)]
pub(super) struct Secured {
    pub(super) tls: Arc<Tls>,
    pub(super) handshakes: Arc<Handshakes>,
}

/// What a connection needs.
pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    /// Its place among all.
    pub(super) seat: Arc<Seat>,
    /// Connections that are served; one that makes room keeps its slot until it is over.
    pub(super) slots: Arc<Semaphore>,
    /// `None`: plain HTTP.
    pub(super) secured: Option<Secured>,
    pub(super) app: Router,
    pub(super) limits: Limits,
    /// When the other half of it is gone, the request in flight is the last.
    pub(super) stopped: watch::Receiver<()>,
}

impl Connection {
    /// Serves it to its end.
    pub(super) async fn run(mut self, stream: TcpStream) -> io::Result<()> {
        let Some(from) = self.origin().await else { return Ok(()) };
        stream.set_nodelay(true)?;
        let write_ms = u32::try_from(self.limits.write_time.as_millis()).unwrap_or(u32::MAX);
        rustix::net::sockopt::set_tcp_user_timeout(&stream, write_ms)?;
        // hyper closes what it is given. The copy keeps the socket for a proper end.
        let rest = rustix::io::fcntl_dupfd_cloexec(&stream, 0)?;
        let end = match self.secured.take() {
            None => self.converse(from, stream).await,
            Some(secured) => match self.shake_hands(&secured, stream).await {
                Ok(stream) => self.converse(from, stream).await,
                Err(end) => end,
            },
        };
        match end {
            // At shutdown the last request was read to its end, and nobody waits for clients that keep their connections.
            End::Over if self.stopped.has_changed().is_err() => Ok(()),
            End::Over => linger(rest.into()).await,
            // An answer that the kernel may still be sending is not wiped out.
            End::Room if self.seat.waited().is_some_and(|waited| waited < LINGER_TIME_MAX) => linger(rest.into()).await,
            End::Room => Ok(()),
            // What the kernel still holds of the answer is let go of too.
            End::Late => Ok(rustix::net::sockopt::set_socket_linger(&rest, Some(Duration::ZERO))?),
        }
    }

    /// Waits for a slot; `None`: not any more.
    async fn origin(&mut self) -> Option<Origin> {
        let slot = tokio::select! {
            slot = self.slots.clone().acquire_owned() => slot.expect("the semaphore is never closed"),
            _ = self.stopped.changed() => return None,
            () = self.seat.is_wanted() => return None,
        };
        let pace = Pace::new(self.limits.write_time);
        Some(Origin { peer: self.peer, seat: self.seat.clone(), pace, _slot: Arc::new(slot) })
    }

    /// The handshake of TLS, or how the connection ended without one.
    async fn shake_hands(&mut self, secured: &Secured, stream: TcpStream) -> Result<TlsStream<TcpStream>, End> {
        let peer = self.peer;
        let handshake = async {
            // Who speaks plain HTTP does not understand an alert: it gets an end and not a byte of garbage.
            let mut first = [0];
            if stream.peek(&mut first).await? == 0 || first[0] != HANDSHAKE_RECORD {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not speak TLS"));
            }
            let hello = LazyConfigAcceptor::new(Default::default(), stream).await?;
            let answer = Box::pin(async { hello.into_stream(secured.tls.config()).await });
            secured.handshakes.take(Peer::of(peer.ip()), answer).await
        };
        let outcome = tokio::select! {
            outcome = timeout(self.limits.handshake_time, handshake) => outcome,
            _ = self.stopped.changed() => return Err(End::Over),
            () = self.seat.is_wanted() => return Err(End::Room),
        };
        match outcome {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => tracing::debug!(%peer, %error, "no handshake with a client of the API"),
            Err(_) => tracing::debug!(%peer, "a client of the API did not finish its handshake in time"),
        }
        Err(End::Over)
    }

    /// HTTP, over whatever carries it.
    async fn converse(&mut self, from: Origin, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> End {
        let (peer, pace, app) = (self.peer, from.pace.clone(), self.app.clone());
        let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
            let (seat, mut app) = (from.seat.clone(), app.clone());
            // Now, and not when the first of its tasks runs: the connection may be asked to make room meanwhile.
            seat.begin_request();
            request.extensions_mut().insert(from.clone());
            async move {
                let response = Service::call(&mut app, request).await;
                response.map(|response| response.map(|body| HandedOver::new(body, seat)))
            }
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head_time)
            .max_buf_size(READ_BUFFER_BYTES)
            .max_header_size(HEAD_BYTES_MAX);
        let stream = Outgoing::new(stream, self.seat.clone());
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let mut is_last = false;
        let outcome = loop {
            tokio::select! {
                // The connection first: a request that has come is begun, and seen to be.
                biased;
                outcome = &mut connection => break outcome,
                () = pace.is_late() => {
                    tracing::info!(%peer, "a client of the API took its answer too slowly and is cut");
                    return End::Late;
                }
                _ = self.stopped.changed(), if !is_last => {}
                () = self.seat.is_wanted() => {
                    tracing::debug!(%peer, "a client of the API makes room for another");
                    if self.seat.waited().is_some() {
                        return End::Room;
                    }
                }
            }
            is_last = true;
            connection.as_mut().graceful_shutdown();
        };
        if let Err(error) = outcome {
            tracing::debug!(%peer, %error, "API connection ended early");
        }
        End::Over
    }
}

/// Ends our half and takes what the client is still sending. A socket closed with unread input is reset, and the reset
/// may overtake the answer that says why.
async fn linger(stream: std::net::TcpStream) -> io::Result<()> {
    if stream.shutdown(std::net::Shutdown::Write).is_err() {
        return Ok(());
    }
    let stream = TcpStream::from_std(stream)?;
    let mut buffer = [0; 4096];
    let drain = async {
        let mut count = 0;
        while count < LINGER_BYTES_MAX && stream.readable().await.is_ok() {
            match stream.try_read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => count += read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
    };
    let _ = timeout(LINGER_TIME_MAX, drain).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::peers::{PeerLimits, Peers};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn a_connection_that_is_to_make_room_gives_its_answer_to_the_last_byte_first() {
        const SIZE: usize = 60_000;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let peers = Peers::new(PeerLimits { all: 10, loopback: 1, others: 1 });
            let address: SocketAddr = "10.0.0.1:1".parse().unwrap();
            let seat = Arc::new(peers.seat(address.ip()).unwrap());
            let app = Router::new().fallback(async || vec![b'x'; SIZE]);
            let (_stop, stopped) = watch::channel(());
            let mut connection = Connection {
                peer: address,
                seat: seat.clone(),
                slots: Arc::new(Semaphore::new(1)),
                secured: None,
                app,
                limits: Limits::default(),
                stopped,
            };
            // So little is on the way that most of the answer waits in our hands.
            let (ours, mut theirs) = tokio::io::duplex(1024);
            let from = connection.origin().await.unwrap();
            let serving = tokio::spawn(async move { connection.converse(from, ours).await });
            theirs.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            let mut begun = [0; 100];
            theirs.read_exact(&mut begun).await.unwrap();
            assert!(peers.seat(address.ip()).is_none(), "it is not asked while its answer is under way");
            // Asked though, as it is when the request comes at the same moment.
            seat.want();
            let mut rest = Vec::new();
            theirs.read_to_end(&mut rest).await.unwrap();
            let whole = [&begun[..], &rest].concat();
            let head = whole.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
            assert_eq!(whole.len() - head, SIZE);
            assert_eq!(serving.await.unwrap(), End::Over);
        });
    }
}
