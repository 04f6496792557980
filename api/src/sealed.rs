//! Secrets in the store, sealed by a key that is not: what a backup of the store gives away is useless without the key.
//!
//! XChaCha20-Poly1305 with a random nonce each time. A secret is sealed *for a place*, the name of its record, and opens
//! nowhere else, so that nobody who can write to the store moves one secret to where another belongs. The key is a file of
//! this host, 0600 and ours, made at first use; without it sealed secrets are lost and must be entered anew. Any thread.

use crate::hex;
use chacha20poly1305::aead::{Aead, Generate, Key, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The version a sealed text begins with.
const VERSION: &str = "1:";
/// Bytes of a nonce.
const NONCE: usize = 24;
/// Bytes of a key.
const KEY: usize = 32;

/// Why there is no key or a text does not open.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key's file cannot be made or read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others may read it.
    #[error("{path} has mode {mode:04o} and owner {owner}: it must be ours alone, chmod 0600")]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// The owner's uid.
        owner: u32,
    },
    /// It is no key.
    #[error("{path} holds no key: it should be one line of {} hexadecimal digits", 2 * KEY)]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// It was sealed with another key or for another place, was changed since, or is no sealed text.
    #[error("the secret does not open: it was sealed by another key, for another record, or was changed since")]
    DoesNotOpen,
}

/// The key. It shows itself to nobody.
pub struct SealKey(XChaCha20Poly1305);

impl fmt::Debug for SealKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("SealKey")
    }
}

impl SealKey {
    /// The key in this file; a missing file is made, 0600, and is on the disk before this returns.
    ///
    /// # Errors
    /// [`SealError`]; a file that others may read is refused.
    pub fn open(path: &Path) -> Result<SealKey, SealError> {
        match SealKey::read(path) {
            Err(SealError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                make(path).map_err(|source| SealError::File { path: path.to_owned(), source })?;
                // Read back: of two who made it at once, both have the one that stands.
                SealKey::read(path)
            }
            outcome => outcome,
        }
    }

    fn read(path: &Path) -> Result<SealKey, SealError> {
        SealKey::read_of(path, rustix::process::geteuid().as_raw())
    }

    /// The key in this file, which this user, and nobody else, may read. It is not made.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn read_of(path: &Path, owner: u32) -> Result<SealKey, SealError> {
        let file_error = |source| SealError::File { path: path.to_owned(), source };
        let file = File::open(path).map_err(file_error)?;
        let status = file.metadata().map_err(file_error)?;
        let mode = status.mode() & 0o7777;
        if mode & 0o077 != 0 || status.uid() != owner {
            return Err(SealError::NotOurs { path: path.to_owned(), mode, owner: status.uid() });
        }
        let mut text = String::new();
        file.take(1 + 2 * KEY as u64).read_to_string(&mut text).map_err(file_error)?;
        let key = hex::decode(text.trim_end()).and_then(|bytes| Key::<XChaCha20Poly1305>::try_from(&*bytes).ok());
        let key = key.ok_or_else(|| SealError::NoKey { path: path.to_owned() })?;
        Ok(SealKey(XChaCha20Poly1305::new(&key)))
    }

    /// Seals a secret for a place: plain text, fit for JSON.
    pub fn seal(&self, place: &str, secret: &[u8]) -> String {
        let nonce = XNonce::generate();
        let payload = Payload { msg: secret, aad: place.as_bytes() };
        let sealed =
            self.0.encrypt(&nonce, payload).expect("a secret is far shorter than the cipher's limit of 256 GiB");
        format!("{VERSION}{}{}", hex::encode(&nonce), hex::encode(&sealed))
    }

    /// Opens what was sealed for this place.
    ///
    /// # Errors
    /// [`SealError::DoesNotOpen`]
    pub fn unseal(&self, place: &str, sealed: &str) -> Result<Vec<u8>, SealError> {
        let bytes = sealed.strip_prefix(VERSION).and_then(hex::decode).ok_or(SealError::DoesNotOpen)?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE).ok_or(SealError::DoesNotOpen)?;
        let nonce = XNonce::try_from(nonce).map_err(|_| SealError::DoesNotOpen)?;
        let payload = Payload { msg: sealed, aad: place.as_bytes() };
        self.0.decrypt(&nonce, payload).map_err(|_| SealError::DoesNotOpen)
    }
}

/// Makes a key under another name and gives it its own when it is whole; one that is there already stays.
fn make(path: &Path) -> io::Result<()> {
    let key = Key::<XChaCha20Poly1305>::generate();
    let fresh = path.with_added_extension(format!("{}.new", uuid::Uuid::new_v4()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    writeln!(file, "{}", hex::encode(&key))?;
    file.sync_all()?;
    let linked = std::fs::hard_link(&fresh, path);
    std::fs::remove_file(&fresh)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A key file that goes when the test ends.
    struct KeyFile(PathBuf);

    impl KeyFile {
        fn new() -> KeyFile {
            KeyFile(std::env::temp_dir().join(format!("qvs-seal-{}", uuid::Uuid::new_v4())))
        }
    }

    impl Drop for KeyFile {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_secret_opens_for_its_place_and_key_only_and_not_if_touched() {
        let (file, other) = (KeyFile::new(), KeyFile::new());
        let key = SealKey::open(&file.0).unwrap();
        let sealed = key.seal("credentials/red", b"pass word");
        assert_ne!(sealed, key.seal("credentials/red", b"pass word"), "no nonce comes twice");
        assert!(!sealed.contains("pass") && !sealed.contains(&hex::encode(b"pass word")));
        let again = SealKey::open(&file.0).unwrap();
        assert_eq!(again.unseal("credentials/red", &sealed).unwrap(), b"pass word");
        assert!(again.unseal("credentials/blue", &sealed).is_err());
        assert!(SealKey::open(&other.0).unwrap().unseal("credentials/red", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut touched = sealed.clone().into_bytes();
            touched[at] = if touched[at] == b'0' { b'1' } else { b'0' };
            let touched = String::from_utf8(touched).unwrap();
            assert!(again.unseal("credentials/red", &touched).is_err(), "{at}");
            assert!(again.unseal("credentials/red", &sealed[..at]).is_err(), "{at}");
        }
    }

    #[test]
    fn a_key_that_others_may_read_or_that_is_none_is_refused() {
        let file = KeyFile::new();
        SealKey::open(&file.0).unwrap();
        assert_eq!(std::fs::metadata(&file.0).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&file.0, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = SealKey::open(&file.0).unwrap_err();
        assert!(error.to_string().contains("has mode 0640"), "{error}");
        std::fs::set_permissions(&file.0, std::fs::Permissions::from_mode(0o600)).unwrap();
        for text in ["", "00", &"x".repeat(64), &"0".repeat(66)] {
            std::fs::write(&file.0, text).unwrap();
            assert!(matches!(SealKey::open(&file.0), Err(SealError::NoKey { .. })), "{text}");
        }
    }

    #[test]
    fn of_many_who_make_the_key_at_once_all_have_the_same() {
        let file = KeyFile::new();
        let sealed: Vec<_> = std::thread::scope(|threads| {
            let open = || SealKey::open(&file.0).unwrap().seal("place", b"secret");
            let threads: Vec<_> = (0..8).map(|_| threads.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let key = SealKey::open(&file.0).unwrap();
        assert!(sealed.iter().all(|sealed| key.unseal("place", sealed).is_ok()));
    }
}
