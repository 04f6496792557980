//! Mode `tokens`: a local file of hashed tokens, for sites without Keystone. Mode 0600 and ours, read again when it changes.
//!
//! A token is `qvs-ID-SECRET`. The id is no secret: it finds the one entry whose hash is to be looked at, so that a token
//! made up costs one verification, not one for each entry, and one of an unknown id none. The secret has 256 random bits;
//! the file has only its Argon2id hash. Revoking is taking the entry out: it is in force a second later.

use super::remembered::{FOR_EVER, Good, NotGood, Remembered, Turn};
use super::wall::{WallClock, format_utc, parse_utc};
use super::{Denied, Identity, Verified, Verifier};
use crate::model::{TEXT_BYTES_MAX, Text};
use crate::peer::Peer;
use crate::watched::{FileError, Parse, Rights, Watched};
use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, Params, PasswordHasher, PasswordVerifier};
use axum::http::HeaderValue;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Verifications at a time: each has a core and 19 MiB for some ten milliseconds.
const TURNS: usize = 2;
/// Bytes of a token's id and secret; both are written in hexadecimal.
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 32;
/// What every token begins with, so that one that got lost is recognised.
const PREFIX: &str = "qvs-";
/// Most memory an entry's hash may ask for, KiB, and most passes: a verification stays below a second or so.
const MEMORY_KIB_MAX: u32 = 256 << 10;
const PASSES_MAX: u32 = 16;
/// How long an entry holds before it is verified again. Changes of the file do not wait for that.
const FRESH_TIME: Duration = Duration::from_secs(24 * 3600);

/// The file: a list of entries `[[token]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenFile {
    #[serde(default)]
    token: Vec<RawEntry>,
}

/// An entry as it is written.
#[derive(Clone, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    id: String,
    hash: String,
    user: String,
    project: String,
    roles: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
}

/// An entry, checked.
#[derive(PartialEq, Debug)]
struct Entry {
    hash: PasswordHash,
    identity: Arc<Identity>,
    /// Seconds since 1970; `None`: never.
    expires: Option<i64>,
}

/// The entries by the ids of their tokens.
#[derive(Debug, Default)]
struct Entries(HashMap<Text, Entry>);

impl Entries {
    /// The entries of a file's text.
    fn parse(text: &str) -> Result<Entries, String> {
        let file: TokenFile = toml::from_str(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            let line = 1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count();
            format!("line {line}: {}", error.message().replace('\n', " "))
        })?;
        let mut entries = HashMap::new();
        for raw in file.token {
            let id = Text::from(raw.id.as_str());
            let entry = Entry::check(raw).map_err(|why| format!("token {id:?}: {why}"))?;
            if entries.insert(id.clone(), entry).is_some() {
                return Err(format!("token {id:?} is there twice"));
            }
        }
        Ok(Entries(entries))
    }
}

impl Entry {
    fn check(raw: RawEntry) -> Result<Entry, String> {
        if raw.id.len() != 2 * ID_BYTES || !is_hex(&raw.id) {
            return Err(format!("an id has {} hexadecimal digits", 2 * ID_BYTES));
        }
        for (name, text) in [("user", &raw.user), ("project", &raw.project)] {
            check_text(name, text)?;
        }
        let hash = PasswordHash::new(&raw.hash).map_err(|error| format!("its hash cannot be read: {error}"))?;
        if hash.algorithm.as_str() != argon2::ARGON2ID_IDENT.as_str() {
            return Err(format!("its hash is {}; it must be argon2id", hash.algorithm.as_str()));
        }
        let params = Params::try_from(&hash).map_err(|error| format!("its hash cannot be read: {error}"))?;
        if params.m_cost() > MEMORY_KIB_MAX || params.t_cost() > PASSES_MAX || params.p_cost() > PASSES_MAX {
            return Err("its hash takes too much to verify".to_owned());
        }
        let expires = raw.expires.as_deref().map(|text| {
            parse_utc(text).ok_or_else(|| format!("expires = {text:?} must be a time like \"2030-12-31T00:00:00Z\""))
        });
        let roles = raw.roles.iter().map(|role| role.as_str().into()).collect();
        let identity = Identity { user: raw.user.into(), project: Some(raw.project.into()), roles, is_confined: false };
        Ok(Entry { hash, identity: Arc::new(identity), expires: expires.transpose()? })
    }
}

fn check_text(name: &str, text: &str) -> Result<(), String> {
    match text {
        "" => Err(format!("{name} is empty")),
        text if text.len() > TEXT_BYTES_MAX => Err(format!("{name} is longer than {TEXT_BYTES_MAX} bytes")),
        text if text.contains('\0') => Err(format!("{name} has a NUL character")),
        _ => Ok(()),
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The verifier over a file.
pub struct Tokens {
    file: Watched<Entries>,
    /// The entries that `remembered` is about.
    seen: Mutex<Arc<Entries>>,
    remembered: Remembered,
    clock: WallClock,
}

impl Tokens {
    /// The tokens of this file, which must have these rights.
    ///
    /// # Errors
    /// [`FileError`] if it cannot be read, has other rights, or is no such file.
    pub fn open(path: &Path, rights: Rights, clock: WallClock) -> Result<Tokens, FileError> {
        let parse: Parse<Entries> = Box::new(Entries::parse);
        Ok(Tokens::over(Watched::open(path, rights, parse)?, clock))
    }

    fn over(file: Watched<Entries>, clock: WallClock) -> Tokens {
        Tokens { seen: Mutex::new(file.now()), file, remembered: Remembered::new(TURNS), clock }
    }

    /// The entries now, and of which generation what they say is; what was remembered of those that changed is forgotten.
    fn entries(&self) -> (Arc<Entries>, u64) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = self.file.now();
        if !Arc::ptr_eq(&seen, &entries) {
            self.remembered.forget(|id| seen.0.get(id) != entries.0.get(id));
            *seen = entries.clone();
        }
        // Under the lock: nobody puts others in force between the two.
        (entries, self.remembered.generation())
    }

    async fn verify_token(&self, token: &str, peer: Peer) -> Verified {
        let (entries, generation) = self.entries();
        self.verify_with(entries, generation, (token, peer)).await
    }

    async fn verify_with(&self, entries: Arc<Entries>, generation: u64, (token, peer): (&str, Peer)) -> Verified {
        let (id, secret) = split(token).ok_or(Denied::Invalid)?;
        let (id, _) = entries.0.get_key_value(id).ok_or(Denied::Invalid)?;
        let (id, secret) = (id.clone(), secret.to_owned());
        let check = async |turn| self.check(turn, entries, id.clone(), secret).await;
        self.remembered.verify((token, peer), Some(&id), generation, check).await
    }

    async fn check(&self, turn: Turn, entries: Arc<Entries>, id: Text, secret: String) -> Result<Good, NotGood> {
        let task = tokio::task::spawn_blocking(move || {
            // Held by the work, not by whoever waits for it and may go away.
            let _turn = turn;
            let entry = entries.0.get(&id)?;
            Argon2::default().verify_password(secret.as_bytes(), &entry.hash).ok()?;
            Some((entry.identity.clone(), entry.expires))
        });
        let found = task.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a verification broke");
            None
        });
        let (identity, expires) = found.ok_or(NotGood::Invalid)?;
        let left = match expires {
            None => FOR_EVER,
            Some(expires) => {
                let left = u64::try_from(expires - (self.clock)()).map_err(|_| NotGood::Invalid)?;
                FOR_EVER.min(Duration::from_secs(left))
            }
        };
        let now = Instant::now();
        Ok(Good { identity, fresh_until: now + left.min(FRESH_TIME), expires: now + left })
    }
}

/// Id and secret of a token, if it has the shape of one.
fn split(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.strip_prefix(PREFIX)?.split_once('-')?;
    let is_whole = id.len() == 2 * ID_BYTES && secret.len() == 2 * SECRET_BYTES && is_hex(id) && is_hex(secret);
    is_whole.then_some((id, secret))
}

impl Verifier for Tokens {
    fn verify<'a>(&'a self, token: &'a str, peer: Peer) -> Pin<Box<dyn Future<Output = Verified> + Send + 'a>> {
        Box::pin(self.verify_token(token, peer))
    }

    fn challenge(&self) -> HeaderValue {
        HeaderValue::from_static("X-Auth-Token realm=\"quantum\"")
    }
}

/// Whom a new token is for.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// The user, as logs will tell it.
    pub user: Text,
    /// The project, which is the tenant of its URLs.
    pub project: Text,
    /// Its roles.
    pub roles: Vec<Text>,
    /// When it ends, seconds since 1970; `None`: never.
    pub expires: Option<i64>,
}

/// Makes a token: the token itself, to be shown once, and the entry to be added to the file.
///
/// # Errors
/// One line: what is wrong with a text, or that the system gave no random bytes.
pub fn make(new: &NewToken) -> Result<(String, String), String> {
    let random = |size: usize| {
        let mut bytes = vec![0; size];
        SystemRandom::new().fill(&mut bytes).map_err(|_| "the system gives no random bytes".to_owned())?;
        Ok::<_, String>(bytes)
    };
    check_text("user", &new.user)?;
    check_text("tenant", &new.project)?;
    let hex = |bytes: &[u8]| {
        bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    };
    let (id, secret) = (hex(&random(ID_BYTES)?), hex(&random(SECRET_BYTES)?));
    let hash = Argon2::default().hash_password_with_salt(secret.as_bytes(), &random(16)?);
    let entry = RawEntry {
        id: id.clone(),
        hash: hash.map_err(|error| format!("Argon2id failed: {error}"))?.to_string(),
        user: new.user.to_string(),
        project: new.project.to_string(),
        roles: new.roles.iter().map(ToString::to_string).collect(),
        expires: new.expires.map(format_utc),
    };
    let entry = toml::to_string(&entry).map_err(|error| error.to_string())?;
    Ok((format!("{PREFIX}{id}-{secret}"), format!("[[token]]\n{entry}")))
}

/// Checks the text of a token file.
///
/// # Errors
/// One line: what is wrong with it.
pub fn check_text_of_file(text: &str) -> Result<usize, String> {
    Entries::parse(text).map(|entries| entries.0.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watched::testing::TestFile;

    /// The time of day in these tests.
    const NOW: i64 = 1_800_000_000;

    fn new(project: &str, role: &str, expires: Option<i64>) -> (String, String) {
        let new = NewToken { user: "u".into(), project: project.into(), roles: vec![role.into()], expires };
        make(&new).unwrap()
    }

    fn tokens(file: &TestFile) -> Tokens {
        let parse: Parse<Entries> = Box::new(Entries::parse);
        let file = Watched::open_with_pause(file.path(), Rights::OwnerOnly, parse, Duration::ZERO).unwrap();
        Tokens::over(file, || NOW)
    }

    fn verify(tokens: &Tokens, token: &str) -> Verified {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(tokens.verify(token, Peer::LOOPBACK))
    }

    #[test]
    fn a_token_made_opens_what_it_was_made_for_and_no_other_text_does() {
        let ((red, red_entry), (blue, blue_entry)) = (new("red", "member", None), new("blue", "admin", None));
        assert!(!red_entry.contains(&red[4 + 13..]) && red_entry.contains("$argon2id$"), "{red_entry}");
        let file = TestFile::new(&format!("{red_entry}\n{blue_entry}"));
        let tokens = tokens(&file);
        let identity = verify(&tokens, &red).unwrap();
        assert_eq!((identity.project.as_deref(), &*identity.roles[0]), (Some("red"), "member"));
        assert_eq!(verify(&tokens, &blue).unwrap().project.as_deref(), Some("blue"));
        let crossed = format!("{}{}", &red[..17], &blue[17..]);
        for wrong in [&crossed, &red[..red.len() - 1], &red.to_uppercase(), &format!("{red} "), "", "qvs-", "qvs--"] {
            assert_eq!(verify(&tokens, wrong), Err(Denied::Invalid), "{wrong}");
        }
    }

    #[test]
    fn an_expired_token_is_nobody_s() {
        let ((past, past_entry), (future, future_entry)) =
            (new("red", "member", Some(NOW)), new("red", "member", Some(NOW + 60)));
        let file = TestFile::new(&format!("{past_entry}{future_entry}"));
        let tokens = tokens(&file);
        assert!(verify(&tokens, &future).is_ok());
        let soon = verify(&tokens, &past);
        assert_eq!(soon.map(|_| ()), Ok(()), "its last moment is still its own");
        let late = Tokens { clock: || NOW + 61, ..super::tests::tokens(&file) };
        assert_eq!(verify(&late, &past), Err(Denied::Invalid));
        assert_eq!(verify(&late, &future), Err(Denied::Invalid));
    }

    #[test]
    fn a_token_taken_out_of_the_file_is_nobody_s_at_once_and_one_put_in_is_somebody_s() {
        let ((red, red_entry), (blue, blue_entry)) = (new("red", "member", None), new("blue", "member", None));
        let file = TestFile::new(&red_entry);
        let tokens = tokens(&file);
        assert!(verify(&tokens, &red).is_ok());
        assert_eq!(verify(&tokens, &blue), Err(Denied::Invalid));
        file.write(&blue_entry);
        assert_eq!(verify(&tokens, &red), Err(Denied::Invalid));
        assert!(verify(&tokens, &blue).is_ok());
        file.write(&blue_entry.replace("project = \"blue\"", "project = \"green\""));
        assert_eq!(verify(&tokens, &blue).unwrap().project.as_deref(), Some("green"));
    }

    #[test]
    fn an_entry_verified_as_it_was_before_the_file_changed_is_not_remembered_so() {
        let (red, entry) = new("red", "admin", None);
        let file = TestFile::new(&entry);
        let tokens = tokens(&file);
        let (before, generation) = tokens.entries();
        file.write(&entry.replace("admin", "reader"));
        tokens.entries();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let late = runtime.block_on(tokens.verify_with(before, generation, (&red, Peer::LOOPBACK))).unwrap();
        assert_eq!(&*late.roles[0], "admin", "it came before the change");
        assert_eq!(&*verify(&tokens, &red).unwrap().roles[0], "reader");
    }

    #[test]
    fn a_verification_whose_client_hung_up_keeps_its_turn_until_it_ends() {
        let (red, entry) = new("red", "member", None);
        let file = TestFile::new(&entry);
        let tokens = tokens(&file);
        // The one blocking thread is busy, so the verification does not begin.
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        let (open, opened) = std::sync::mpsc::channel::<()>();
        let busy = runtime.spawn_blocking(move || opened.recv());
        let mut hung_up = tokens.verify(&red, Peer::LOOPBACK);
        let poll = std::future::poll_fn(|context| std::task::Poll::Ready(hung_up.as_mut().poll(context).is_ready()));
        assert!(!runtime.block_on(poll));
        drop(hung_up);
        let other = red[..red.len() - 1].to_owned() + if red.ends_with('0') { "1" } else { "0" };
        let second = runtime.block_on(async {
            let mut second = tokens.verify(&other, Peer::LOOPBACK);
            let poll = std::future::poll_fn(|context| std::task::Poll::Ready(second.as_mut().poll(context)));
            poll.await
        });
        assert!(matches!(second, std::task::Poll::Ready(Err(Denied::Unavailable { .. }))), "{second:?}");
        drop(open);
        let _ = runtime.block_on(busy);
        // Behind the verification on the same thread.
        runtime.block_on(runtime.spawn_blocking(|| ())).unwrap();
        assert_eq!(runtime.block_on(tokens.verify(&other, Peer::LOOPBACK)), Err(Denied::Invalid));
    }

    #[test]
    fn a_wrong_file_is_told_what_is_wrong_without_its_secrets() {
        let (_, entry) = new("red", "member", None);
        assert_eq!(check_text_of_file(&format!("{entry}\n{}", new("red", "member", None).1)), Ok(2));
        assert_eq!(check_text_of_file("# none yet\n"), Ok(0));
        for (text, wanted) in [
            (format!("{entry}{entry}"), "is there twice"),
            (entry.replace("id = \"", "id = \"x"), "an id has 12 hexadecimal digits"),
            (entry.replace("argon2id", "argon2i"), "it must be argon2id"),
            (entry.replace("m=19456", "m=99999999"), "takes too much"),
            (entry.replace("t=2", "t=1000"), "takes too much"),
            (entry.replace("$argon2id", "argon2id"), "its hash cannot be read"),
            (entry.replace("project = \"red\"", "project = \"\""), "project is empty"),
            (format!("{entry}expires = \"tomorrow\""), "must be a time like"),
            (format!("{entry}colour = 1"), "unknown field `colour`"),
            ("token = 1".to_owned(), "line 1: "),
        ] {
            let error = check_text_of_file(&text).unwrap_err();
            assert!(error.contains(wanted) && !error.contains('\n'), "{wanted}: {error}");
            assert!(!error.contains("$v=19"), "{error}");
        }
    }
}
