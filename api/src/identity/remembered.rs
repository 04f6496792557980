//! Verifications remembered, and those under way bounded: what makes tokens cheap for clients and strangers bounded for us.
//!
//! A verification is dear (Argon2, or a question to Keystone), and anybody can ask for one with a token made up on the
//! spot. So no more than a few run at a time and no more than [`WAITING_MAX`] wait; whoever comes then is told to come
//! again. Good tokens known before do not wait at all, whatever strangers do: their memory is apart from that of bad ones.
//! Tokens are kept only as a hash under a key of this process's own, so that neither a dump of this memory nor the time
//! a lookup takes tells one.

use super::{Denied, Identity, Verified};
use ring::hmac;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Good tokens remembered; beyond, the one to expire first is forgotten.
const GOOD_MAX: usize = 10_000;
/// Bad tokens remembered; a stranger can fill this and only this.
const BAD_MAX: usize = 4_096;
/// How long a bad token is remembered: Keystone may come to know it, a file may be changed.
const BAD_TIME: Duration = Duration::from_secs(5);
/// Verifications that may wait for their turn.
const WAITING_MAX: usize = 64;
/// What a client is told that finds no place to wait.
const TOO_MANY: Denied = Denied::Unavailable { why: "too many unknown tokens are being checked", retry_after_s: 1 };

type Key = [u8; 32];

/// A token found to be somebody's.
#[derive(Clone, Debug)]
pub(super) struct Good {
    /// Whose.
    pub(super) identity: Arc<Identity>,
    /// Until then nobody is asked again.
    pub(super) fresh_until: Instant,
    /// From then on it is nobody's.
    pub(super) expires: Instant,
}

#[derive(Default)]
struct Memory {
    good: HashMap<Key, Good>,
    bad: HashMap<Key, Instant>,
    /// Counts the times that everything was forgotten.
    generation: u64,
}

/// What is known of tokens.
pub(super) struct Remembered {
    key: hmac::Key,
    memory: Mutex<Memory>,
    turns: Semaphore,
    waiting: AtomicUsize,
}

impl Remembered {
    /// Nothing is known; `turns` verifications may run at a time.
    pub(super) fn new(turns: usize) -> Remembered {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new());
        Remembered {
            key: key.expect("the kernel gives random bytes"),
            memory: Mutex::default(),
            turns: Semaphore::new(turns),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Forgets everything, also what is being verified now.
    pub(super) fn clear(&self) {
        let mut memory = self.memory();
        *memory = Memory { generation: memory.generation + 1, ..Memory::default() };
    }

    /// Whose a token is: as remembered, else as `check` says. A token that cannot be checked just now and was good before
    /// stays good until it expires.
    pub(super) async fn verify(&self, token: &str, check: impl AsyncFnOnce() -> Result<Good, Denied>) -> Verified {
        let tag = hmac::sign(&self.key, token.as_bytes());
        let key: Key = tag.as_ref().try_into().expect("SHA-256 has 32 bytes");
        let stale = match self.look(&key, Instant::now()) {
            Known::Fresh(verified) => return verified,
            Known::Stale(identity) => Some(identity),
            Known::Unknown => None,
        };
        let or_stale = |denied| stale.clone().ok_or(denied);
        let place = Place::take(&self.waiting);
        if place.number >= WAITING_MAX {
            return or_stale(TOO_MANY);
        }
        let _turn = self.turns.acquire().await.expect("the semaphore is never closed");
        // While this one waited, another may have found out.
        if let Known::Fresh(verified) = self.look(&key, Instant::now()) {
            return verified;
        }
        let generation = self.memory().generation;
        let found = check().await;
        let mut memory = self.memory();
        let is_current = memory.generation == generation;
        match found {
            Ok(good) => {
                let identity = good.identity.clone();
                if is_current {
                    memory.remember_good(key, good);
                }
                Ok(identity)
            }
            Err(Denied::Invalid) => {
                memory.good.remove(&key);
                if is_current {
                    memory.remember_bad(key, Instant::now());
                }
                Err(Denied::Invalid)
            }
            Err(denied @ Denied::Unavailable { .. }) => or_stale(denied),
        }
    }

    fn look(&self, key: &Key, now: Instant) -> Known {
        let memory = self.memory();
        if let Some(good) = memory.good.get(key).filter(|good| now < good.expires) {
            let identity = good.identity.clone();
            return if now < good.fresh_until { Known::Fresh(Ok(identity)) } else { Known::Stale(identity) };
        }
        match memory.bad.get(key) {
            Some(until) if now < *until => Known::Fresh(Err(Denied::Invalid)),
            _ => Known::Unknown,
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn remember_good(&mut self, key: Key, good: Good) {
        self.bad.remove(&key);
        if self.good.len() >= GOOD_MAX && !self.good.contains_key(&key) {
            let first = self.good.iter().min_by_key(|(_, good)| good.expires).map(|(key, _)| *key);
            first.map(|key| self.good.remove(&key));
        }
        self.good.insert(key, good);
    }

    fn remember_bad(&mut self, key: Key, now: Instant) {
        if self.bad.len() >= BAD_MAX {
            self.bad.retain(|_, until| now < *until);
        }
        if self.bad.len() < BAD_MAX {
            self.bad.insert(key, now + BAD_TIME);
        }
    }
}

enum Known {
    Fresh(Verified),
    Stale(Arc<Identity>),
    Unknown,
}

/// A place among those who wait; given back when dropped, also if the client hangs up.
struct Place<'a> {
    taken: &'a AtomicUsize,
    number: usize,
}

impl Place<'_> {
    fn take(taken: &AtomicUsize) -> Place<'_> {
        Place { taken, number: taken.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const HOUR: Duration = Duration::from_secs(3600);
    const DOWN: Denied = Denied::Unavailable { why: "down", retry_after_s: 1 };

    fn good(fresh: Duration, valid: Duration) -> Good {
        let now = Instant::now();
        let identity = Identity { user: "u".into(), project: None, roles: Vec::new() };
        Good { identity: Arc::new(identity), fresh_until: now + fresh, expires: now + valid }
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    /// Verifies and tells whether anybody was asked.
    fn ask(known: &Remembered, token: &str, answer: Result<Good, Denied>) -> (bool, bool) {
        let asked = Cell::new(false);
        let outcome = run(known.verify(token, async || {
            asked.set(true);
            answer
        }));
        (outcome.is_ok(), asked.get())
    }

    #[test]
    fn what_was_found_is_remembered_for_its_time() {
        let known = Remembered::new(2);
        assert_eq!(ask(&known, "a", Ok(good(HOUR, HOUR))), (true, true));
        assert_eq!(ask(&known, "a", Err(Denied::Invalid)), (true, false));
        assert_eq!(ask(&known, "b", Err(Denied::Invalid)), (false, true));
        assert_eq!(ask(&known, "b", Ok(good(HOUR, HOUR))), (false, false));
        known.clear();
        assert_eq!(ask(&known, "a", Err(Denied::Invalid)), (false, true));
        assert_eq!(ask(&known, "b", Ok(good(HOUR, HOUR))), (true, true));
    }

    #[test]
    fn a_good_token_that_cannot_be_checked_again_stays_good_until_it_expires() {
        let known = Remembered::new(2);
        assert_eq!(ask(&known, "a", Ok(good(Duration::ZERO, HOUR))), (true, true));
        assert_eq!(ask(&known, "a", Err(DOWN)), (true, true));
        assert_eq!(ask(&known, "new", Err(DOWN)), (false, true));
        assert_eq!(ask(&known, "new", Ok(good(HOUR, HOUR))), (true, true), "a doubt is not remembered");
        assert_eq!(ask(&known, "a", Err(Denied::Invalid)), (false, true), "revoked is revoked");
        assert_eq!(ask(&known, "a", Err(DOWN)), (false, false));
        assert_eq!(ask(&known, "short", Ok(good(Duration::ZERO, Duration::ZERO))), (true, true));
        assert_eq!(ask(&known, "short", Err(DOWN)), (false, true), "expired");
    }

    #[test]
    fn strangers_wait_in_bounded_number_and_known_tokens_do_not_wait_for_them() {
        let known = Remembered::new(1);
        assert_eq!(ask(&known, "known", Ok(good(HOUR, HOUR))), (true, true));
        run(async {
            let tokens: Vec<String> = (0..WAITING_MAX + 20).map(|number| format!("stranger-{number}")).collect();
            let running = Cell::new(0);
            let mut strangers: Vec<_> = tokens
                .iter()
                .map(|token| {
                    let running = &running;
                    Box::pin(known.verify(token, async move || {
                        running.set(running.get() + 1);
                        std::future::pending().await
                    }))
                })
                .collect();
            let mut refused = 0;
            for stranger in &mut strangers {
                let polled = std::future::poll_fn(|context| std::task::Poll::Ready(stranger.as_mut().poll(context)));
                refused += usize::from(polled.await.is_ready());
            }
            assert_eq!((running.get(), refused), (1, 20));
            let answer = known.verify("known", async || panic!("it is known")).await;
            assert!(answer.is_ok());
            drop(strangers);
            assert!(known.verify("new", async || Ok(good(HOUR, HOUR))).await.is_ok(), "places are given back");
        });
    }

    #[test]
    fn memory_is_bounded_and_bad_tokens_drive_out_no_good_one() {
        let mut memory = Memory::default();
        let key = |number: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&number.to_be_bytes());
            key
        };
        let now = Instant::now();
        memory.remember_good(key(0), good(HOUR, HOUR));
        for number in 1..3 * BAD_MAX {
            memory.remember_bad(key(number), now);
        }
        assert_eq!((memory.good.len(), memory.bad.len()), (1, BAD_MAX));
        memory.remember_bad(key(9 * BAD_MAX), now + BAD_TIME);
        assert_eq!(memory.bad.len(), 1, "what is past is forgotten first");
        for number in 1..=GOOD_MAX {
            memory.remember_good(key(number), good(HOUR, 2 * HOUR));
        }
        assert_eq!(memory.good.len(), GOOD_MAX);
        assert!(!memory.good.contains_key(&key(0)), "the one to expire first went");
    }

    #[test]
    fn what_was_being_checked_when_all_was_forgotten_is_not_remembered() {
        let known = Remembered::new(2);
        let outcome = run(known.verify("a", async || {
            known.clear();
            Ok(good(HOUR, HOUR))
        }));
        assert!(outcome.is_ok());
        assert_eq!(ask(&known, "a", Err(Denied::Invalid)), (false, true));
    }
}
