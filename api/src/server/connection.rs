//! One connection of the API from its first byte to its last: TLS where there is a certificate, then HTTP/1.1.
//!
//! What makes it hard is the end. A client is to get the answer that tells why it is closed, and no client may keep us
//! for longer than each step's time.

use super::{HEAD_BYTES_MAX, Limits, Origin};
use axum::Router;
use axum::extract::Request;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
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

/// What a connection needs.
pub(super) struct Connection {
    pub(super) from: Origin,
    /// `None`: plain HTTP.
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) app: Router,
    pub(super) limits: Limits,
    /// When the other half of it is gone, the request in flight is the last.
    pub(super) stopped: watch::Receiver<()>,
}

impl Connection {
    /// Serves it to its end.
    pub(super) async fn run(mut self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let write_ms = u32::try_from(self.limits.write_time.as_millis()).unwrap_or(u32::MAX);
        rustix::net::sockopt::set_tcp_user_timeout(&stream, write_ms)?;
        // hyper closes what it is given. The copy keeps the socket for a proper end.
        let rest = rustix::io::fcntl_dupfd_cloexec(&stream, 0)?;
        let end = match self.tls.take() {
            None => self.converse(stream).await,
            Some(tls) => match self.shake_hands(&tls, stream).await {
                Ok(stream) => self.converse(stream).await,
                Err(end) => end,
            },
        };
        match end {
            // At shutdown the last request was read to its end, and nobody waits for clients that keep their connections.
            End::Over if self.stopped.has_changed().is_err() => Ok(()),
            End::Over => linger(rest.into()).await,
            End::Room => Ok(()),
            // What the kernel still holds of the answer is let go of too.
            End::Late => Ok(rustix::net::sockopt::set_socket_linger(&rest, Some(Duration::ZERO))?),
        }
    }

    /// The handshake of TLS, or how the connection ended without one.
    async fn shake_hands(&mut self, tls: &TlsAcceptor, stream: TcpStream) -> Result<TlsStream<TcpStream>, End> {
        let peer = self.from.peer;
        let handshake = async {
            // Who speaks plain HTTP does not understand an alert: it gets an end and not a byte of garbage.
            let mut first = [0];
            if stream.peek(&mut first).await? == 0 || first[0] != HANDSHAKE_RECORD {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not speak TLS"));
            }
            tls.accept(stream).await
        };
        let outcome = tokio::select! {
            outcome = timeout(self.limits.handshake_time, handshake) => outcome,
            _ = self.stopped.changed() => return Err(End::Over),
            () = self.from.seat.is_wanted() => return Err(End::Room),
        };
        match outcome {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => tracing::debug!(%peer, %error, "no handshake with a client of the API"),
            Err(_) => tracing::debug!(%peer, "a client of the API did not finish its handshake in time"),
        }
        Err(End::Over)
    }

    /// HTTP, over whatever carries it.
    async fn converse(&mut self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> End {
        let peer = self.from.peer;
        let (from, app) = (self.from.clone(), self.app.clone());
        let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(from.clone());
            let mut app = app.clone();
            async move { Service::call(&mut app, request).await }
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head_time)
            .max_buf_size(READ_BUFFER_BYTES)
            .max_header_size(HEAD_BYTES_MAX);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let outcome = tokio::select! {
            outcome = &mut connection => outcome,
            _ = self.stopped.changed() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = self.from.pace.is_late() => {
                tracing::info!(%peer, "a client of the API took its answer too slowly and is cut");
                return End::Late;
            }
            () = self.from.seat.is_wanted() => {
                tracing::debug!(%peer, "a waiting client of the API makes room for another of its peer");
                return End::Room;
            }
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
