//! A small HTTP/1.1 client for one server: one connection a question, plain or TLS by rustls. For Keystone, which is asked
//! seldom because answers are remembered, and for commands, which ask once; whoever calls sets the time limit.

use axum::http::uri::{Authority, PathAndQuery, Scheme};
use axum::http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub use axum::http::{HeaderValue, Method, StatusCode, header};

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
    /// It is not there, or not who it should be.
    #[error("it cannot be reached: {0}")]
    Unreachable(#[from] std::io::Error),
    /// It broke off, or speaks no HTTP.
    #[error("it does not answer: {0}")]
    Http(#[from] hyper::Error),
    /// It answers without end.
    #[error("its answer is too long or broke off")]
    Answer,
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
                Some((TlsConnector::from(Arc::new(client_config(ca)?)), name))
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
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        match &self.tls {
            None => exchange(stream, request, bytes_max).await,
            Some((connector, name)) => {
                exchange(connector.connect(name.clone(), stream).await?, request, bytes_max).await
            }
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Vec<u8>>,
    bytes_max: usize,
) -> Result<Response<Vec<u8>>, EndpointError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let talk = async {
        let answer = sender.send_request(request.map(|body| Full::new(Bytes::from(body)))).await?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, bytes_max).collect().await.map_err(|_| EndpointError::Answer)?;
        Ok(Response::from_parts(parts, body.to_bytes().to_vec()))
    };
    // The connection moves the bytes and ends with the talk, so nothing outlives a caller that gave up.
    tokio::pin!(talk, connection);
    tokio::select! {
        answer = &mut talk => answer,
        ended = &mut connection => match ended {
            Ok(()) => talk.await,
            Err(error) => Err(error.into()),
        },
    }
}

fn client_config(ca: &Path) -> Result<ClientConfig, EndpointError> {
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
    let builder = builder.map_err(|error| wrong(error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
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
}
