//! The certificate and key with which the API's listener speaks TLS, as of their files' last change.
//!
//! Two files make one value and are renewed one after the other, so between two writes they may not fit each other: then
//! the pair before stays in force. A new pair holds for connections made from then on. TLS 1.2 and 1.3 (RFC 5246, RFC
//! 8446) are all that rustls speaks; clients are known by tokens and not by certificates. Settings of TLS itself there are
//! none: what there is to choose is chosen by the library's defaults.

mod certificate;

use crate::watched::{FileError, PAUSE, ParseAll, Rights, Watched};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;
use rustls::{InconsistentKeys, ServerConfig};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The protocol named to clients that ask by ALPN (RFC 7301); one that speaks others only is told so in the handshake.
const PROTOCOL: &[u8] = b"http/1.1";
/// Certificates of a chain; real ones have two or three.
const CHAIN_MAX: usize = 16;

/// A certificate and its key, from files that may be renewed.
pub struct Tls(Watched<Pair>);

/// What the files say.
struct Pair {
    config: Arc<ServerConfig>,
    /// The end of the first certificate of the chain to end, seconds since 1970 UTC; `None` if it is not told.
    not_after: Option<i64>,
    /// The listener's own certificate is one of those that vouch for others.
    is_authority: bool,
}

impl fmt::Debug for Tls {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("Tls")
    }
}

impl Tls {
    /// Reads both files, PEM: `certificate` has the listener's own and after it those that vouch for it; `key` has its
    /// private key in clear, as PKCS#8, PKCS#1 or SEC1, and must have `rights`.
    ///
    /// # Errors
    /// [`FileError`], whose path tells which file it is about: one that cannot be read or used; a key that is not the
    /// certificate's, which is told of the key.
    pub fn open(certificate: &Path, key: &Path, rights: Rights) -> Result<Tls, FileError> {
        Tls::watch(certificate, (key, rights), PAUSE)
    }

    /// The same of a key that is ours or root's alone, with another time that changes may go unnoticed.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open_with_pause(certificate: &Path, key: &Path, pause: Duration) -> Result<Tls, FileError> {
        Tls::watch(certificate, (key, Rights::OwnerOnly), pause)
    }

    fn watch(certificate: &Path, (key, rights): (&Path, Rights), pause: Duration) -> Result<Tls, FileError> {
        let files = vec![(certificate.to_owned(), Rights::Any), (key.to_owned(), rights)];
        let paths = Paths { certificate: certificate.to_owned(), key: key.to_owned() };
        let parse: ParseAll<Pair> = Box::new(move |texts| paths.parse(&texts[0], &texts[1]));
        Ok(Tls(Watched::open_all(files, parse, pause)?))
    }

    /// What meets the next client.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.0.now().config.clone()
    }

    /// When the certificate ends, or the first of those that vouch for it, seconds since 1970 UTC; `None` if that cannot be
    /// told.
    pub fn not_after(&self) -> Option<i64> {
        self.0.now().not_after
    }

    /// Whether the certificate says of itself that it vouches for others, as those that `openssl req -x509` makes unasked. No
    /// server's own may (RFC 5280 section 4.2.1.9), and clients that look at it refuse it, ours among them.
    pub fn is_authority(&self) -> bool {
        self.0.now().is_authority
    }
}

/// Where the files are, for what is said of them.
struct Paths {
    certificate: PathBuf,
    key: PathBuf,
}

impl Paths {
    fn parse(&self, certificate: &str, key: &str) -> Result<Pair, FileError> {
        let wrong = |path: &Path, why: String| FileError::Wrong { path: path.to_owned(), why };
        let chain = chain(certificate).map_err(|why| wrong(&self.certificate, why))?;
        let not_after = chain.iter().filter_map(|certificate| certificate::not_after(certificate)).min();
        let is_authority = certificate::is_authority(&chain[0]);
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| match error {
            pem::Error::NoItemsFound => {
                wrong(&self.key, "it has no private key in clear (PKCS#8, PKCS#1 or SEC1, PEM)".to_owned())
            }
            error => wrong(&self.key, error.to_string()),
        })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| wrong(&self.certificate, error.to_string()))?;
        let config = builder.with_no_client_auth().with_single_cert(chain, key);
        // The certificates were read above, so what is wrong now is the key.
        let mut config = config.map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                let why = format!("it is not the key of the first certificate in {}", self.certificate.display());
                wrong(&self.key, why)
            }
            error => wrong(&self.key, error.to_string()),
        })?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(Pair { config: Arc::new(config), not_after, is_authority })
    }
}

/// The certificates of a file, each one that can be read.
fn chain(text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut chain = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        if chain.len() == CHAIN_MAX {
            return Err(format!("it has more than {CHAIN_MAX} certificates"));
        }
        ParsedCertificate::try_from(&certificate)
            .map_err(|error| format!("certificate {}: {error}", chain.len() + 1))?;
        chain.push(certificate);
    }
    if chain.is_empty() { Err("it has no certificate (PEM)".to_owned()) } else { Ok(chain) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watched::testing::TestFile;
    use rcgen::{CertifiedKey, generate_simple_self_signed};

    fn pair() -> (String, String) {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        (cert.pem(), signing_key.serialize_pem())
    }

    fn fault(certificate: &str, key: &str) -> (bool, String) {
        let files = [TestFile::new(certificate), TestFile::new(key)];
        let error = Tls::open(files[0].path(), files[1].path(), Rights::OwnerOnly).unwrap_err();
        (error.path() == files[1].path(), error.to_string())
    }

    #[test]
    fn files_that_are_no_pair_are_refused_with_the_file_and_the_reason() {
        let ((certificate, key), (other, _)) = (pair(), pair());
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let sealed = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        for (certificate, key, is_of_key, why) in [
            (&*other, &*key, true, "it is not the key of the first certificate in "),
            ("", &key, false, "it has no certificate"),
            (&key, &key, false, "it has no certificate"),
            (broken, &key, false, "certificate 1: invalid peer certificate"),
            (&format!("{certificate}{broken}"), &key, false, "certificate 2: invalid peer certificate"),
            (&certificate.repeat(CHAIN_MAX + 1), &key, false, "it has more than 16 certificates"),
            (&certificate, "", true, "it has no private key in clear"),
            (&certificate, &certificate, true, "it has no private key in clear"),
            (&certificate, &sealed, true, "it has no private key in clear"),
            (&certificate, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", true, "key"),
        ] {
            let (was_of_key, error) = fault(certificate, key);
            assert!(error.contains(why) && was_of_key == is_of_key, "{why:?}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        let files = [TestFile::new(&format!("{certificate}{other}")), TestFile::new(&key)];
        assert!(Tls::open(files[0].path(), files[1].path(), Rights::OwnerOnly).is_ok(), "a chain");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_and_a_certificate_is_for_everybody() {
        let (certificate, key) = pair();
        let (certificate, key) = (TestFile::new(&certificate), TestFile::new(&key));
        certificate.set_mode(0o644);
        assert!(Tls::open(certificate.path(), key.path(), Rights::OwnerOnly).is_ok());
        key.set_mode(0o640);
        let error = Tls::open(certificate.path(), key.path(), Rights::OwnerOnly).unwrap_err();
        assert!(matches!(error, FileError::TooOpen { .. }), "{error}");
    }

    #[test]
    fn a_renewed_pair_is_taken_up_when_both_halves_are_there_and_a_bad_one_never() {
        let ((certificate, key), (next, next_key)) = (pair(), pair());
        let files = (TestFile::new(&certificate), TestFile::new(&key));
        let tls = Tls::open_with_pause(files.0.path(), files.1.path(), Duration::ZERO).unwrap();
        let first = tls.0.now();
        files.0.write(&next);
        assert!(Arc::ptr_eq(&first, &tls.0.now()), "half a renewal changes nothing");
        files.1.write(&next_key);
        let second = tls.0.now();
        assert!(!Arc::ptr_eq(&first, &second));
        files.0.write("no certificate");
        assert!(Arc::ptr_eq(&second, &tls.0.now()));
        files.0.write(&next);
        std::fs::remove_file(files.1.path()).unwrap();
        assert!(Arc::ptr_eq(&second, &tls.0.now()));
    }
}
