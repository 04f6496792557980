//! A small HTTP/1.1 client for one server, plain or TLS by rustls; whoever calls sets the time limit.
//!
//! [`Endpoint::send`] opens a connection for each question: for Keystone, which is asked seldom because answers are remembered,
//! and for commands, which ask once. [`Endpoint::connect`] opens one that is kept, for etcd, which is asked all the time; its
//! kernel probes it while it is silent, so that a peer that is gone without a word is noticed.

use axum::http::uri::{PathAndQuery, Scheme};
use axum::http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

pub use axum::http::uri::Authority;
pub use axum::http::{HeaderValue, Method, StatusCode, header};

/// How long a connection may be silent before the kernel asks whether the other end is there.
const PROBE_AFTER: Duration = Duration::from_secs(3);
/// Pause between two such questions.
const PROBE_PAUSE: Duration = Duration::from_secs(1);
/// Questions without an answer after which the connection is dead.
const PROBES_MAX: u32 = 4;

/// Why a server cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// No URL of ours.
    #[error("{0:?} must be a URL like https://name.example:5000/v3")]
    Url(String),
    /// The certificates that vouch for it.
    #[error("{path}: {why}")]
    Certificates {
        /// Their file.
        path: String,
        /// What is wrong with them.
        why: String,
    },
    /// It shows a certificate that is for vouching for others, which the library calls `CaUsedAsEndEntity`.
    #[error(
        "its certificate says CA:TRUE, which no server's own may (`openssl req -x509` makes such): it needs one with \
         basicConstraints=critical,CA:FALSE, and a subjectAltName"
    )]
    Authority,
    /// It is not there, or not who it should be.
    #[error("it cannot be reached: {0}")]
    Unreachable(#[from] std::io::Error),
    /// It broke off, or speaks no HTTP.
    #[error("it does not answer: {}", causes(.0))]
    Http(#[from] hyper::Error),
    /// It answers without end.
    #[error("its answer is too long or broke off")]
    Answer,
}

impl EndpointError {
    /// The reason alone, for who says himself that nobody is there or answers.
    pub fn reason(&self) -> String {
        match self {
            EndpointError::Unreachable(error) => error.to_string(),
            EndpointError::Http(error) => causes(error),
            error => error.to_string(),
        }
    }
}

/// An error with all that it comes from: alone, hyper's says not even that it was TLS.
fn causes(error: &hyper::Error) -> String {
    let chain = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Whether what is said to the server of this URL leaves the host as anybody on the way can read it.
pub fn leaves_host_in_clear(url: &str) -> bool {
    let Ok(uri) = url.parse::<Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let is_here = match host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host.is_empty() || host.eq_ignore_ascii_case("localhost"),
    };
    uri.scheme() == Some(&Scheme::HTTP) && !is_here
}

/// A server, by the URL below which it is asked.
pub struct Endpoint {
    authority: Authority,
    host: String,
    port: u16,
    base: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Endpoint {
    /// The server of this URL; `ca` is a file of certificates that vouch for it and is read only for `https`.
    ///
    /// # Errors
    /// [`EndpointError::Url`], [`EndpointError::Certificates`].
    pub fn new(url: &str, ca: &Path) -> Result<Endpoint, EndpointError> {
        Endpoint::with_identity(url, ca, None)
    }

    /// The same, and we show this certificate, whose second file is its private key, to a server of TLS.
    ///
    /// # Errors
    /// [`EndpointError::Url`], [`EndpointError::Certificates`].
    pub fn with_identity(url: &str, ca: &Path, identity: Option<(&Path, &Path)>) -> Result<Endpoint, EndpointError> {
        let wrong = || EndpointError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else { return Err(wrong()) };
        let is_tls = *scheme == Scheme::HTTPS;
        if !is_tls && *scheme != Scheme::HTTP || uri.query().is_some() || authority.as_str().contains('@') {
            return Err(wrong());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let tls = match is_tls {
            false => None,
            true => {
                let name = ServerName::try_from(host.clone()).map_err(|_| wrong())?;
                Some((TlsConnector::from(Arc::new(client_config(ca, identity)?)), name))
            }
        };
        let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let base = uri.path().trim_end_matches('/').to_owned();
        Ok(Endpoint { authority: authority.clone(), host, port, base, tls })
    }

    /// The path below which it is asked, without a slash at its end.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Asks below this path of the base from now on; it begins with a slash.
    pub fn descend(&mut self, path: &str) {
        self.base += path;
    }

    /// A request for a path below the base, which begins with a slash and is our own text.
    pub fn request(&self, method: Method, path: &str, body: Vec<u8>) -> Request<Vec<u8>> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        let path = PathAndQuery::try_from(format!("{}{path}", self.base)).expect("a URL's path and one of ours");
        *request.uri_mut() = Uri::from(path);
        let host = HeaderValue::from_str(self.authority.as_str()).expect("an authority is visible ASCII");
        request.headers_mut().insert(header::HOST, host);
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        request
    }

    /// Sends a request on a connection of its own and reads the answer, of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub async fn send(&self, request: Request<Vec<u8>>, bytes_max: usize) -> Result<Response<Vec<u8>>, EndpointError> {
        let mut connection = self.connect().await?;
        let answer = connection.send(request).await.map_err(|unsent| unsent.error)?;
        read(answer, bytes_max).await
    }

    /// Opens a connection to be kept.
    ///
    /// # Errors
    /// [`EndpointError::Unreachable`], [`EndpointError::Authority`], [`EndpointError::Http`].
    pub async fn connect(&self) -> Result<Connection, EndpointError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        watch_over(&stream)?;
        match &self.tls {
            None => Connection::over(stream).await,
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), stream).await.map_err(|error| {
                    let is_authority = error.to_string().contains("CaUsedAsEndEntity");
                    if is_authority { EndpointError::Authority } else { error.into() }
                })?;
                Connection::over(stream).await
            }
        }
    }
}

/// Has the kernel notice that the other end is gone, whether something is under way or not.
fn watch_over(stream: &TcpStream) -> std::io::Result<()> {
    sockopt::set_tcp_keepidle(stream, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, PROBE_PAUSE)?;
    sockopt::set_tcp_keepcnt(stream, PROBES_MAX)?;
    sockopt::set_socket_keepalive(stream, true)?;
    let dead_after = PROBE_AFTER + PROBE_PAUSE * PROBES_MAX;
    sockopt::set_tcp_user_timeout(stream, u32::try_from(dead_after.as_millis()).expect("seconds"))?;
    Ok(())
}

/// An open connection, for one question at a time. Closed when dropped, whatever was under way.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// Moves the bytes; ends with the connection, and says then what was wrong with it. `None`: it has said so.
    mover: Option<JoinHandle<hyper::Result<()>>>,
}

/// A request that got no answer.
#[derive(Debug)]
pub struct Unsent {
    /// Why.
    pub error: EndpointError,
    /// The request, if it surely never left: the other end may have closed the connection while it was idle.
    pub request: Option<Request<Vec<u8>>>,
}

impl Connection {
    async fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<Connection, EndpointError> {
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        Ok(Connection { sender, mover: Some(tokio::spawn(connection)) })
    }

    /// Whether another request can be sent: the last answer was read to its end and the other end has not closed it.
    pub fn is_free(&self) -> bool {
        self.sender.is_ready()
    }

    /// Sends a request and waits for the head of the answer.
    ///
    /// # Errors
    /// [`Unsent`].
    pub async fn send(&mut self, request: Request<Vec<u8>>) -> Result<Response<Incoming>, Unsent> {
        let (parts, body) = request.into_parts();
        let kept = Bytes::from(body);
        let sent = Request::from_parts(parts.clone(), Full::new(kept.clone()));
        // A new connection takes a moment until it takes a request; one that is dead says so at once.
        let outcome = match self.sender.ready().await {
            Ok(()) => self.sender.try_send_request(sent).await,
            Err(error) => {
                let request = Some(Request::from_parts(parts, kept.to_vec()));
                // All that is known here is that it is closed.
                let ended = match self.mover.take() {
                    Some(mover) => mover.await.ok().and_then(Result::err),
                    None => None,
                };
                return Err(Unsent { error: ended.unwrap_or(error).into(), request });
            }
        };
        outcome.map_err(|mut error| {
            let is_unsent = error.take_message().is_some();
            let request = is_unsent.then(|| Request::from_parts(parts, kept.to_vec()));
            Unsent { error: error.into_error().into(), request }
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(mover) = &self.mover {
            mover.abort();
        }
    }
}

/// Reads an answer to its end, of at most `bytes_max` bytes.
///
/// # Errors
/// [`EndpointError::Answer`].
pub async fn read(answer: Response<Incoming>, bytes_max: usize) -> Result<Response<Vec<u8>>, EndpointError> {
    let (parts, body) = answer.into_parts();
    let body = Limited::new(body, bytes_max).collect().await.map_err(|error| match error.downcast() {
        Ok(error) => EndpointError::Http(*error),
        Err(_) => EndpointError::Answer,
    })?;
    Ok(Response::from_parts(parts, body.to_bytes().to_vec()))
}

fn client_config(ca: &Path, identity: Option<(&Path, &Path)>) -> Result<ClientConfig, EndpointError> {
    let wrong = |why: String| EndpointError::Certificates { path: ca.display().to_string(), why };
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(ca).map_err(|error| wrong(error.to_string()))?;
    for certificate in certificates {
        // One that cannot be used among a hundred of a system's own vouches for nobody and is no harm.
        let _ = roots.add(certificate.map_err(|error| wrong(error.to_string()))?);
    }
    if roots.is_empty() {
        return Err(wrong("it has no certificate that can vouch for others".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| wrong(error.to_string()))?.with_root_certificates(roots);
    let Some((certificate, key)) = identity else { return Ok(builder.with_no_client_auth()) };
    let wrong = |path: &Path, why: String| EndpointError::Certificates { path: path.display().to_string(), why };
    let chain = CertificateDer::pem_file_iter(certificate).map_err(|error| wrong(certificate, error.to_string()))?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(|error| wrong(certificate, error.to_string()))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, error.to_string()))?;
    builder.with_client_auth_cert(chain, secret).map_err(|error| wrong(key, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart_and_wrong_ones_refused() {
        let endpoint = |url: &str| Endpoint::new(url, Path::new("/dev/null"));
        let plain = endpoint("http://[::1]:5000/identity/v3/").unwrap();
        assert_eq!((plain.host.as_str(), plain.port, plain.base()), ("::1", 5000, "/identity/v3"));
        let bare = endpoint("http://keystone").unwrap();
        assert_eq!((bare.host.as_str(), bare.port, bare.base()), ("keystone", 80, ""));
        let request = plain.request(Method::GET, "/auth/tokens?nocatalog", Vec::new());
        assert_eq!(request.uri(), "/identity/v3/auth/tokens?nocatalog");
        assert_eq!(request.headers()[header::HOST], "[::1]:5000");
        for url in ["", "keystone", "ftp://keystone", "http://", "http://u:p@keystone", "http://keystone/?a=b", "/v3"] {
            assert!(matches!(endpoint(url), Err(EndpointError::Url(_))), "{url}");
        }
        let no_certificate = endpoint("https://keystone");
        assert!(matches!(no_certificate, Err(EndpointError::Certificates { .. })));
    }

    #[test]
    fn a_reason_says_nothing_that_who_tells_it_has_said() {
        let refused = || EndpointError::Unreachable(std::io::ErrorKind::ConnectionRefused.into());
        assert_eq!(refused().to_string(), "it cannot be reached: connection refused");
        assert_eq!(refused().reason(), "connection refused");
        assert_eq!(EndpointError::Answer.reason(), EndpointError::Answer.to_string());
    }
}
