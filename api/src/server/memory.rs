//! The memory of answers: bounded in all, and shared between those who ask.
//!
//! A list of everything may have many megabytes, and a client may ask for it on many connections and read none. So the
//! memory of large answers has a bound in all: what a list will take is set aside before it is made, by the number of its
//! rows and the length of the texts in them, and what its bytes take stays set aside until they are sent. Small answers are
//! not counted; the bound of connections bounds them, and nobody's large lists delay them.
//!
//! Who has at most half of what others leave cannot keep them out, however many connections and however little patience he
//! has. Those who must wait are served by who has least, and then in the order in which they came.

use crate::model::Text;
use crate::peer::Site;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Bytes of an answer that is not counted: with 1,024 connections 64 MiB at most, and a list of some 350 ports.
pub(super) const SMALL_BYTES: usize = 64 << 10;
/// Memory that is set aside for a row of a list while it is made: one takes up to 0.63 KiB, its own bytes included, beside the
/// texts that clients gave.
pub(super) const ROW_BYTES: usize = 1 << 10;
/// Memory that is set aside for a written byte of such a text: an answer that grows is there twice for a moment, and the
/// larger one has room for as much again.
pub(super) const TEXT_COPIES: usize = 3;
/// Bytes that are one unit of account.
const UNIT_BYTES: usize = 1 << 10;

/// Who asks: tenants where they are known, else those who are at one place.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Party {
    /// Whose token is this project's, or this user's if it has none.
    Tenant(Text),
    /// Whoever is there.
    Site(Site),
}

/// What there is for large answers in all.
pub(super) struct Memory {
    units: u32,
    state: Mutex<State>,
}

struct State {
    free: u32,
    /// What each has that has any.
    held: HashMap<Party, u32>,
    /// In the order in which they came.
    waiting: Vec<Waiting>,
}

struct Waiting {
    party: Party,
    units: u32,
    told: oneshot::Sender<Share>,
}

/// A part of it, given back when dropped.
pub(super) struct Share {
    memory: Arc<Memory>,
    party: Party,
    units: u32,
}

impl Memory {
    pub(super) fn new(bytes: usize) -> Arc<Memory> {
        let units = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX);
        let state = State { free: units, held: HashMap::new(), waiting: Vec::new() };
        Arc::new(Memory { units, state: Mutex::new(state) })
    }

    /// Sets memory aside, after waiting for it no longer than `wait`; `None`: there is none. Who asks for more than half of
    /// all gets half, when nobody has any.
    pub(super) async fn set_aside(self: &Arc<Memory>, party: Party, bytes: usize, wait: Duration) -> Option<Share> {
        let units = self.units_of(bytes);
        let waiting = {
            let mut state = self.state();
            if state.take(&party, units) {
                return Some(Share { memory: self.clone(), party, units });
            }
            let (told, waiting) = oneshot::channel();
            state.waiting.retain(|other| !other.told.is_closed());
            state.waiting.push(Waiting { party, units, told });
            waiting
        };
        timeout(wait, waiting).await.ok()?.ok()
    }

    /// Gives back, and hands on to those who wait.
    fn give_back(self: &Arc<Memory>, party: &Party, units: u32) {
        let mut granted = Vec::new();
        {
            let mut state = self.state();
            state.put(party, units);
            while let Some(next) = state.next() {
                let share = Share { memory: self.clone(), party: next.party, units: next.units };
                granted.push((next.told, share));
            }
        }
        // Without the lock: one who no longer waits gives his share back at once.
        granted.into_iter().for_each(|(told, share)| drop(told.send(share)));
    }

    /// What an answer of this many bytes takes, no more than anybody may have.
    fn units_of(&self, bytes: usize) -> u32 {
        match bytes {
            ..=SMALL_BYTES => 0,
            bytes => u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).min(self.units / 2),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn held(&self, party: &Party) -> u32 {
        self.held.get(party).copied().unwrap_or_default()
    }

    /// Whether one may have so much more: half of what others leave.
    fn may_take(&self, party: &Party, units: u32) -> bool {
        let held = u64::from(self.held(party));
        2 * (held + u64::from(units)) <= u64::from(self.free) + held
    }

    /// Takes as much, if one may have it.
    fn take(&mut self, party: &Party, units: u32) -> bool {
        if units == 0 {
            return true;
        }
        let may = self.may_take(party, units);
        if may {
            self.free -= units;
            *self.held.entry(party.clone()).or_default() += units;
        }
        may
    }

    fn put(&mut self, party: &Party, units: u32) {
        self.free += units;
        let left = self.held(party) - units;
        if left == 0 {
            self.held.remove(party);
        } else {
            self.held.insert(party.clone(), left);
        }
    }

    /// The next one who waits and may have what he waits for; it is taken for him.
    fn next(&mut self) -> Option<Waiting> {
        self.waiting.retain(|waiting| !waiting.told.is_closed());
        let may = |waiting: &&Waiting| self.may_take(&waiting.party, waiting.units);
        let able = self.waiting.iter().enumerate().filter(|(_, waiting)| may(waiting));
        let (at, _) = able.min_by_key(|(_, waiting)| self.held(&waiting.party))?;
        let next = self.waiting.remove(at);
        self.take(&next.party, next.units).then_some(next)
    }
}

impl Share {
    /// Keeps what the bytes of an answer take; says whether it may be given. Of a write it may though there is not as much:
    /// it was done, and its client must hear that. A write has no large answer but by its own large body.
    pub(super) fn settle_answer(&mut self, bytes: usize, is_write: bool) -> bool {
        self.settle(bytes) || is_write
    }

    /// Keeps what this many bytes take; answers whether there is as much.
    fn settle(&mut self, bytes: usize) -> bool {
        let wanted = self.memory.units_of(bytes);
        if wanted <= self.units {
            let more = self.units - wanted;
            self.units = wanted;
            if more > 0 {
                self.memory.give_back(&self.party, more);
            }
            return true;
        }
        let may = self.memory.state().take(&self.party, wanted - self.units);
        if may {
            self.units = wanted;
        }
        may
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.units > 0 {
            self.memory.give_back(&self.party, self.units);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;
    use std::task::Poll;

    const NOW: Duration = Duration::ZERO;
    const LONG: Duration = Duration::from_secs(600);
    const KIB: usize = 1 << 10;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    fn party(name: &str) -> Party {
        Party::Tenant(name.into())
    }

    /// Looks once whether somebody has got what he waits for.
    async fn got<T>(waiting: &mut Pin<Box<impl Future<Output = Option<T>>>>) -> Option<T> {
        match std::future::poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx))).await {
            Poll::Ready(got) => got,
            Poll::Pending => None,
        }
    }

    #[test]
    fn memory_is_set_aside_by_the_whole_and_kept_by_what_was_made() {
        run(async {
            let memory = Memory::new(1 << 20);
            let mut first = memory.set_aside(party("a"), 500 * KIB, NOW).await.unwrap();
            assert!(memory.set_aside(party("b"), 300 * KIB, NOW).await.is_none());
            assert!(memory.set_aside(party("b"), SMALL_BYTES, NOW).await.is_some(), "small answers are not counted");
            assert!(first.settle(100 * KIB));
            let mut second = memory.set_aside(party("b"), 450 * KIB, NOW).await.unwrap();
            assert!(!first.settle(300 * KIB), "there is no more");
            assert!(second.settle(400 * KIB) && first.settle(300 * KIB));
            drop(first);
            assert!(second.settle(512 * KIB) && second.settle(SMALL_BYTES));
            assert!(memory.set_aside(party("c"), 512 * KIB, NOW).await.is_some());
        });
    }

    #[test]
    fn one_who_asks_and_asks_has_at_most_half_of_what_others_leave() {
        run(async {
            let memory = Memory::new(1 << 20);
            let mut shares = HashMap::new();
            for name in ["a", "b", "c"] {
                let mut own = Vec::new();
                while let Some(share) = memory.set_aside(party(name), 65 * KIB, NOW).await {
                    own.push(share);
                }
                shares.insert(name, own);
            }
            let count = |name| shares[name].len() * 65;
            assert_eq!((count("a"), count("b"), count("c")), (455, 260, 130), "KiB of 1024, 569 and 309");
        });
    }

    #[test]
    fn a_write_that_was_done_is_answered_though_there_is_no_memory() {
        run(async {
            let memory = Memory::new(1 << 20);
            let all = memory.set_aside(party("a"), 512 * KIB, NOW).await.unwrap();
            for is_write in [true, false] {
                let mut share = memory.set_aside(party("a"), 0, NOW).await.unwrap();
                assert_eq!(share.settle_answer(100 * KIB, is_write), is_write);
            }
            drop(all);
            let mut share = memory.set_aside(party("a"), 0, NOW).await.unwrap();
            assert!(share.settle_answer(512 * KIB, true));
            assert!(
                memory.set_aside(party("a"), 100 * KIB, NOW).await.is_none(),
                "it is counted where there is memory"
            );
        });
    }

    #[test]
    fn what_is_larger_than_anybody_s_share_is_made_when_nobody_has_any() {
        run(async {
            let memory = Memory::new(1 << 20);
            let mut whole = memory.set_aside(party("a"), 1 << 30, NOW).await.unwrap();
            assert!(memory.set_aside(party("b"), 1 << 30, NOW).await.is_none());
            assert!(whole.settle(1 << 31));
            drop(whole);
            assert!(memory.set_aside(party("b"), 1 << 30, NOW).await.is_some());
        });
    }

    #[test]
    fn who_waits_is_served_by_who_has_least_and_then_in_the_order_of_coming() {
        run(async {
            let memory = Memory::new(1 << 20);
            let all = memory.set_aside(party("a"), 512 * KIB, NOW).await.unwrap();
            let rest = memory.set_aside(party("b"), 256 * KIB, NOW).await.unwrap();
            let ask = |name, kib: usize| Box::pin(memory.set_aside(party(name), kib * KIB, LONG));
            let (mut greedy, mut gone) = (ask("b", 200), ask("c", 200));
            let (mut patient, mut late) = (ask("d", 200), ask("e", 300));
            assert!(got(&mut greedy).await.is_none() && got(&mut gone).await.is_none());
            assert!(got(&mut patient).await.is_none() && got(&mut late).await.is_none());
            drop(gone);
            drop(all);
            let first = got(&mut patient).await.expect("who gave up is passed over, and who has some comes later");
            assert!(got(&mut greedy).await.is_none() && got(&mut late).await.is_none());
            drop(rest);
            assert!(got(&mut late).await.is_some() && got(&mut greedy).await.is_some());
            drop(first);
            assert!(memory.set_aside(party("f"), 512 * KIB, NOW).await.is_some(), "all was given back");
        });
    }
}
