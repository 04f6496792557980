//! The listener with a certificate: who gets in, who does not, and renewals.

use crate::rig::{Answer, Driver, Scratch, Server, read_to_end};
use api::server::{Limits, ServerConfig};
use api::tls::Tls;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

const NETWORKS: &str = "/v1.1/tenants/red/networks";

/// The two files of a listener.
pub(crate) struct Files(Scratch);

impl Files {
    pub(crate) fn new() -> Files {
        Files(Scratch::new())
    }

    fn certificate(&self) -> PathBuf {
        self.0.store().with_file_name("api.pem")
    }

    fn key(&self) -> PathBuf {
        self.0.store().with_file_name("api.key")
    }

    /// Writes a new pair; answers the certificate.
    pub(crate) fn renew(&self) -> CertificateDer<'static> {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::create_dir_all(self.key().parent().unwrap()).unwrap();
        std::fs::write(self.certificate(), cert.pem()).unwrap();
        let mut options = std::fs::OpenOptions::new();
        let mut key = options.write(true).create(true).truncate(true).mode(0o600).open(self.key()).unwrap();
        key.write_all(signing_key.serialize_pem().as_bytes()).unwrap();
        cert.der().clone()
    }

    pub(crate) fn tls(&self) -> Option<Arc<Tls>> {
        Some(Arc::new(Tls::open_with_pause(&self.certificate(), &self.key(), Duration::ZERO).unwrap()))
    }
}

/// A client that trusts this certificate and speaks these protocols, if it names any.
fn client(
    server: &Server,
    trusted: &CertificateDer<'static>,
    protocols: &[&[u8]],
) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from("localhost").unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), server.connect())
}

/// A request, and the answer to the end of the connection.
pub(crate) fn ask(server: &Server, trusted: &CertificateDer<'static>, request: &str) -> std::io::Result<Answer> {
    let mut stream = client(server, trusted, &[b"h2", b"http/1.1"]);
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    // To the end and not only until it breaks off: TLS tells the two apart.
    stream.read_to_string(&mut text)?;
    Ok(Answer::parse(&text))
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
}

fn start(files: &Files, limits: Limits) -> Server {
    Server::with(Driver::Fake, ServerConfig { tls: files.tls(), limits, ..ServerConfig::default() })
}

#[test]
fn over_tls_requests_are_answered_and_links_lead_back_over_tls() {
    let files = Files::new();
    let trusted = files.renew();
    let server = start(&files, Limits::default());
    let body = r#"{"network": {"name": "n"}}"#;
    let post = format!(
        "POST {NETWORKS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(ask(&server, &trusted, &post).unwrap().status, 202);
    let list = ask(&server, &trusted, &get(NETWORKS)).unwrap();
    assert_eq!(list.json()["networks"].as_array().unwrap().len(), 1);
    for (host, link) in [("localhost:443", "https://localhost/v1"), ("127.0.0.1:9696", "https://127.0.0.1:9696/v1")] {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let href = ask(&server, &trusted, &request).unwrap().json()["versions"][0]["links"][0]["href"].clone();
        assert!(href.as_str().unwrap().starts_with(link), "{href}");
    }
    let large = "x".repeat(1 << 20);
    let post = format!("POST {NETWORKS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{large}", large.len());
    assert_eq!(ask(&server, &trusted, &post).unwrap().status, 413, "told in full, though the body was not read");
}

#[test]
fn who_speaks_no_tls_gets_an_end_and_not_a_byte() {
    let files = Files::new();
    let trusted = files.renew();
    let server = start(&files, Limits::default());
    for bytes in [get(NETWORKS).into_bytes(), vec![0; 100_000], b"\x16\x03".to_vec(), b"SSH-2.0-x\r\n".to_vec()] {
        let mut stream = server.connect();
        let _ = stream.write_all(&bytes);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let end = stream.read_to_end(&mut answer);
        assert!(matches!(end, Ok(0)), "{:?}: {end:?} {answer:?}", &bytes[..2]);
    }
    assert_eq!(ask(&server, &trusted, &get(NETWORKS)).unwrap().status, 200);
}

#[test]
fn older_versions_of_tls_and_other_protocols_in_it_are_refused() {
    let files = Files::new();
    let trusted = files.renew();
    let server = start(&files, Limits::default());
    // A ClientHello of TLS 1.1 (RFC 4346 section 7.4.1.2) with two cipher suites of its time; and what rustls asks for
    // before it looks at the version: the extension signature_algorithms.
    let mut hello = vec![1, 0, 0, 53, 3, 2];
    hello.extend([7; 32]);
    hello.extend([0, 0, 4, 0xc0, 0x13, 0, 0x2f, 1, 0]);
    hello.extend([0, 8, 0, 13, 0, 4, 0, 2, 4, 1]);
    let mut record = vec![22, 3, 1, 0, hello.len() as u8];
    record.append(&mut hello);
    let mut stream = server.connect();
    stream.write_all(&record).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!((answer[0], &answer[5..]), (21, &[2, 70][..]), "a fatal alert, protocol_version: {answer:?}");

    let mut other = client(&server, &trusted, &[b"h2"]);
    let error = other.write_all(b"x").and_then(|()| other.flush()).unwrap_err().to_string();
    assert!(error.contains("NoApplicationProtocol"), "{error}");
    let stranger = ask(&server, &Files::new().renew(), &get(NETWORKS)).unwrap_err().to_string();
    assert!(stranger.contains("UnknownIssuer") || stranger.contains("BadSignature"), "{stranger}");
    assert_eq!(ask(&server, &trusted, &get(NETWORKS)).unwrap().status, 200);
}

#[test]
fn a_handshake_that_does_not_come_is_cut_in_time_and_holds_nobody_up() {
    let files = Files::new();
    let trusted = files.renew();
    let limits = Limits { connections: 2, handshake_time: Duration::from_secs(2), ..Limits::default() };
    let server = start(&files, limits);
    let begin = Instant::now();
    let (mut silent, mut half) = (server.connect(), server.connect());
    half.write_all(&[22, 3, 1]).unwrap();
    // Both connections are taken; this one waits for one to be cut.
    assert_eq!(ask(&server, &trusted, &get(NETWORKS)).unwrap().status, 200);
    assert_eq!((read_to_end(&mut silent), read_to_end(&mut half)), (String::new(), String::new()));
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[test]
fn a_head_that_trickles_in_over_tls_is_cut_like_any() {
    let files = Files::new();
    let trusted = files.renew();
    let server = start(&files, Limits { head_time: Duration::from_millis(300), ..Limits::default() });
    let mut stream = client(&server, &trusted, &[]);
    stream.write_all(b"GET / HT").unwrap();
    let begin = Instant::now();
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    assert!(!text.contains("200") && begin.elapsed() < Duration::from_secs(10), "{text}");
}

#[test]
fn a_renewed_certificate_meets_the_next_client_and_half_a_renewal_nobody() {
    let files = Files::new();
    let first = files.renew();
    let server = start(&files, Limits::default());
    let mut kept = client(&server, &first, &[]);
    kept.write_all(b"GET / HT").unwrap();
    let second = files.renew();
    assert_eq!(ask(&server, &second, &get(NETWORKS)).unwrap().status, 200);
    assert!(ask(&server, &first, &get(NETWORKS)).is_err(), "the old one is gone");
    std::fs::write(files.key(), "no key").unwrap();
    assert_eq!(ask(&server, &second, &get(NETWORKS)).unwrap().status, 200, "a bad file changes nothing");
    let third = files.renew();
    assert_eq!(ask(&server, &third, &get(NETWORKS)).unwrap().status, 200);
    kept.write_all(&get("/").as_bytes()["GET / HT".len()..]).unwrap();
    let mut text = String::new();
    kept.read_to_string(&mut text).unwrap();
    assert_eq!(Answer::parse(&text).status, 200, "a connection outlives its certificate");
}
