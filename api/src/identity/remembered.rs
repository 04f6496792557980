//! Verifications remembered, and those under way bounded: what makes tokens cheap for clients and strangers bounded for us.
//!
//! A verification is dear (Argon2, or a question to Keystone), and anybody can ask for one with a token made up on the
//! spot. So no more than a few run at a time and no more than [`WAITING_MAX`] wait, of one peer at most half of what others
//! leave; whoever comes then is told to come again. One token is verified once however many ask, and one subject (an entry of a file) has one verification at a
//! time, so that wrong secrets for one hold up nobody else. Good tokens known before do not wait at all, whatever
//! strangers do: their memory is apart from that of bad ones, and where they are to be checked again they queue apart.
//! Whoever verifies holds a [`Turn`] and keeps it as long as the work lasts, also if nobody waits for its outcome.
//! A token that was good and is over by what was told of it is bad as long as nobody is there to ask.
//! Tokens are kept only as a hash under a key of this process's own, so that neither a dump of this memory nor the time
//! a lookup takes tells one.

use super::{Denied, Identity, Verified};
use crate::model::Text;
use crate::peer::Peer;
use ring::hmac;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Good tokens remembered; beyond, the user with the most loses the one to expire first.
const GOOD_MAX: usize = 10_000;
/// Bad tokens remembered; a stranger can fill this and only this.
const BAD_MAX: usize = 4_096;
/// How long a bad token is remembered: Keystone may come to know it, a file may be changed.
const BAD_TIME: Duration = Duration::from_secs(5);
/// The longest time that is told apart: no sum with it overflows, and no process is as old.
pub(super) const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);
/// Verifications that may run or wait for their turn, of strangers and of known tokens each.
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

/// Why a verification found nobody.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum NotGood {
    /// The token is nobody's.
    Invalid,
    /// Nothing was found out about this token.
    Doubt(Denied),
    /// Who would tell is not there. A token that was good before stays good until it expires.
    Away(Denied),
}

struct Kept {
    good: Good,
    subject: Option<Text>,
}

#[derive(Default)]
struct Memory {
    good: HashMap<Key, Kept>,
    bad: HashMap<Key, Instant>,
    /// Counts the times that something was forgotten.
    generation: u64,
    /// Verifications under way, and of which generation; each tells its outcome to those who wait for the same.
    flights: HashMap<Key, (u64, watch::Receiver<Option<Verified>>)>,
}

/// What is known of tokens.
pub(super) struct Remembered {
    key: hmac::Key,
    memory: Mutex<Memory>,
    strangers: Lane,
    known: Lane,
    /// Subjects of verifications under way.
    subjects: Arc<Mutex<HashSet<Text>>>,
}

impl Remembered {
    /// Nothing is known; `turns` verifications of strangers may run at a time, and as many of tokens known before.
    pub(super) fn new(turns: usize) -> Remembered {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new());
        Remembered {
            key: key.expect("the kernel gives random bytes"),
            memory: Mutex::default(),
            strangers: Lane::new(turns),
            known: Lane::new(turns),
            subjects: Arc::default(),
        }
    }

    /// Forgets the good tokens of these subjects, all bad ones, and what is being verified now.
    pub(super) fn forget(&self, is_changed: impl Fn(&str) -> bool) {
        let mut memory = self.memory();
        memory.generation += 1;
        memory.bad.clear();
        memory.good.retain(|_, kept| !kept.subject.as_deref().is_none_or(&is_changed));
    }

    /// Counts the times that something was forgotten. Who reads what a verification rests on reads this first.
    pub(super) fn generation(&self) -> u64 {
        self.memory().generation
    }

    /// Whose a token is: as remembered, else as `check` says, which rests on what was the case at `generation`. `check`
    /// keeps its turn as long as it works, and its place is on the account of `peer`.
    pub(super) async fn verify(
        &self,
        (token, peer): (&str, Peer),
        subject: Option<&Text>,
        generation: u64,
        check: impl AsyncFnOnce(Turn) -> Result<Good, NotGood>,
    ) -> Verified {
        let key = self.key_of(token);
        let (flight, known) = loop {
            let known = match self.look(&key, Instant::now()) {
                Known::Fresh(verified) => return verified,
                known => known,
            };
            match self.begin(key, generation) {
                Ok(flight) => break (flight, known),
                Err(mut same) => {
                    // Its own end without an outcome: whoever led it gave up, and the next one leads.
                    if let Ok(outcome) = same.wait_for(Option::is_some).await.map(|outcome| outcome.clone())
                        && let Some(outcome) = outcome
                    {
                        return outcome;
                    }
                }
            }
        };
        let outcome = self.lead((key, peer), subject, generation, known, check).await;
        let _ = flight.outcome.send(Some(outcome.clone()));
        outcome
    }

    /// Whose a token is as far as that is known while nobody is there to ask; `denied` if it is not.
    pub(super) fn unasked(&self, token: &str, denied: Denied) -> Verified {
        self.look(&self.key_of(token), Instant::now()).unasked(denied)
    }

    fn key_of(&self, token: &str) -> Key {
        let tag = hmac::sign(&self.key, token.as_bytes());
        tag.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    async fn lead(
        &self,
        (key, peer): (Key, Peer),
        subject: Option<&Text>,
        generation: u64,
        known: Known,
        check: impl AsyncFnOnce(Turn) -> Result<Good, NotGood>,
    ) -> Verified {
        let is_known = matches!(known, Known::Stale(_));
        let lane = if is_known { &self.known } else { &self.strangers };
        let place = Place::take(&lane.places, peer).ok_or(TOO_MANY)?;
        let subject_taken = subject.map(|subject| Taken::take(&self.subjects, subject).ok_or(TOO_MANY)).transpose()?;
        let permit = lane.turns.clone().acquire_owned().await.expect("the semaphore is never closed");
        let found = check(Turn { is_known, _permit: permit, _place: place, _subject: subject_taken }).await;
        let mut memory = self.memory();
        let is_current = memory.generation == generation;
        match found {
            Ok(good) => {
                let identity = good.identity.clone();
                if is_current {
                    memory.remember_good(key, Kept { good, subject: subject.cloned() });
                }
                Ok(identity)
            }
            Err(NotGood::Invalid) => {
                memory.good.remove(&key);
                if is_current {
                    memory.remember_bad(key, Instant::now());
                }
                Err(Denied::Invalid)
            }
            Err(NotGood::Doubt(denied)) => Err(denied),
            Err(NotGood::Away(denied)) => known.unasked(denied),
        }
    }

    /// Begins a verification, unless one that rests on the same is under way.
    fn begin(&self, key: Key, generation: u64) -> Result<Flight<'_>, watch::Receiver<Option<Verified>>> {
        let mut memory = self.memory();
        match memory.flights.get(&key) {
            Some((of, same)) if *of == generation => Err(same.clone()),
            _ => {
                let (outcome, told) = watch::channel(None);
                memory.flights.insert(key, (generation, told));
                Ok(Flight { remembered: self, key, generation, outcome })
            }
        }
    }

    fn look(&self, key: &Key, now: Instant) -> Known {
        let memory = self.memory();
        let mut is_over = false;
        if let Some(good) = memory.good.get(key).map(|kept| &kept.good) {
            let identity = good.identity.clone();
            match now {
                now if now < good.fresh_until => return Known::Fresh(Ok(identity)),
                now if now < good.expires => return Known::Stale(identity),
                // It may be that a clock was put right meanwhile: who is there to ask is asked.
                _ => is_over = true,
            }
        }
        match memory.bad.get(key) {
            Some(until) if now < *until => Known::Fresh(Err(Denied::Invalid)),
            _ if is_over => Known::Over,
            _ => Known::Unknown,
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn remember_good(&mut self, key: Key, kept: Kept) {
        self.bad.remove(&key);
        if self.good.len() >= GOOD_MAX && !self.good.contains_key(&key) {
            // Those that are over need the least to be remembered.
            let now = Instant::now();
            self.good.retain(|_, kept| now < kept.good.expires);
        }
        if self.good.len() >= GOOD_MAX && !self.good.contains_key(&key) {
            let mut counts = HashMap::<&Text, usize>::new();
            for kept in self.good.values() {
                *counts.entry(&kept.good.identity.user).or_default() += 1;
            }
            let count = |kept: &Kept| counts.get(&kept.good.identity.user).copied().unwrap_or_default();
            let last = self.good.iter().max_by_key(|(_, kept)| (count(kept), std::cmp::Reverse(kept.good.expires)));
            let last = last.map(|(key, _)| *key);
            last.map(|key| self.good.remove(&key));
        }
        self.good.insert(key, kept);
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
    /// It was good until it expired.
    Over,
    Unknown,
}

impl Known {
    /// Whose the token is if nobody is there to ask.
    fn unasked(self, denied: Denied) -> Verified {
        match self {
            Known::Fresh(verified) => verified,
            Known::Stale(identity) => Ok(identity),
            Known::Over => Err(Denied::Invalid),
            Known::Unknown => Err(denied),
        }
    }
}

/// A queue for verifications.
struct Lane {
    turns: Arc<Semaphore>,
    places: Places,
}

impl Lane {
    fn new(turns: usize) -> Lane {
        Lane { turns: Arc::new(Semaphore::new(turns)), places: Places::default() }
    }
}

/// A verification under way; over when dropped.
struct Flight<'a> {
    remembered: &'a Remembered,
    key: Key,
    generation: u64,
    outcome: watch::Sender<Option<Verified>>,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut memory = self.remembered.memory();
        // A later one may have taken its place after something was forgotten.
        if memory.flights.get(&self.key).is_some_and(|(of, _)| *of == self.generation) {
            memory.flights.remove(&self.key);
        }
    }
}

/// The turn to verify. It goes where the work is done and is dropped when that ends.
pub(super) struct Turn {
    is_known: bool,
    _permit: OwnedSemaphorePermit,
    _place: Place,
    _subject: Option<Taken>,
}

impl Turn {
    /// Whether the token was good before and is to be checked again.
    pub(super) fn is_known(&self) -> bool {
        self.is_known
    }
}

/// How many run or wait, by peer.
type Places = Arc<Mutex<HashMap<Peer, usize>>>;

/// A place among those who run or wait.
struct Place {
    taken: Places,
    peer: Peer,
}

impl Place {
    /// A place for a peer that has none, or as long as it has less than half of what others leave.
    fn take(taken: &Places, peer: Peer) -> Option<Place> {
        let mut places = taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, own) = (places.values().sum::<usize>(), places.get(&peer).copied().unwrap_or_default());
        let is_free = all < WAITING_MAX && (own == 0 || 2 * (own + 1) <= WAITING_MAX - (all - own));
        is_free.then(|| {
            *places.entry(peer).or_default() += 1;
            Place { taken: taken.clone(), peer }
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = places.get_mut(&self.peer) {
            *own -= 1;
            if *own == 0 {
                places.remove(&self.peer);
            }
        }
    }
}

/// The one verification of a subject.
struct Taken {
    all: Arc<Mutex<HashSet<Text>>>,
    subject: Text,
}

impl Taken {
    fn take(all: &Arc<Mutex<HashSet<Text>>>, subject: &Text) -> Option<Taken> {
        let is_free = all.lock().unwrap_or_else(PoisonError::into_inner).insert(subject.clone());
        is_free.then(|| Taken { all: all.clone(), subject: subject.clone() })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.subject);
    }
}

#[cfg(test)]
mod tests;
