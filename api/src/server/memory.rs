//! The memory of answers, and the time in which clients must take them.
//!
//! A list of everything may have many megabytes, and a client may ask for it on many connections and read none. So the
//! memory of large answers has a bound in all: what a list will take is set aside before it is made, by the number of its
//! rows, and what its bytes take stays set aside until they are sent. Small answers are not counted; the bound of
//! connections bounds them, and nobody's large lists delay them. A large answer is handed to hyper in pieces, because hyper
//! lets go of a body when it has all of it and not when all is sent, and must be taken at a rate.

use super::peers::Busy;
use axum::body::{Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout, timeout_at};

/// Bytes of an answer that is not counted: with 1,024 connections 64 MiB at most, and a list of some 350 ports.
pub(super) const SMALL_BYTES: usize = 64 << 10;
/// Memory that is set aside for a row of a list while it is made: with ids of usual lengths one takes up to 0.63 KiB, its own
/// bytes included. What long ids take besides is counted when the list is there.
pub(super) const ROW_BYTES: usize = 1 << 10;
/// Bytes that are one permit.
const UNIT_BYTES: usize = 1 << 10;
/// Bytes of a large answer handed over at a time.
const PIECE_BYTES: usize = 16 << 10;
/// Bytes a second at which a large answer must be taken.
const RATE_MIN: u64 = 256 << 10;

/// What there is for large answers in all.
pub(super) struct Memory {
    units: u32,
    free: Arc<Semaphore>,
}

/// A part of it, given back when dropped.
pub(super) struct Share {
    units_max: u32,
    free: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl Memory {
    pub(super) fn new(bytes: usize) -> Memory {
        let units = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX);
        Memory { units, free: Arc::new(Semaphore::new(units as usize)) }
    }

    /// Sets memory aside, after waiting for it no longer than `wait`; `None`: there is none. Who asks for more than there is
    /// gets all of it, alone.
    pub(super) async fn set_aside(&self, bytes: usize, wait: Duration) -> Option<Share> {
        let units = units_of(bytes, self.units);
        let held = match units {
            0 => None,
            units => Some(timeout(wait, self.free.clone().acquire_many_owned(units)).await.ok()?.ok()?),
        };
        Some(Share { units_max: self.units, free: self.free.clone(), held })
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
        let wanted = units_of(bytes, self.units_max);
        let had = self.held.as_ref().map_or(0, |held| held.num_permits() as u32);
        if wanted <= had {
            drop(self.held.as_mut().and_then(|held| held.split((had - wanted) as usize)));
            return true;
        }
        match (self.free.clone().try_acquire_many_owned(wanted - had), &mut self.held) {
            (Err(_), _) => return false,
            (Ok(more), Some(held)) => held.merge(more),
            (Ok(more), held @ None) => *held = Some(more),
        }
        true
    }
}

fn units_of(bytes: usize, units_max: u32) -> u32 {
    match bytes {
        ..=SMALL_BYTES => 0,
        bytes => u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).min(units_max),
    }
}

/// By when a connection's client must have taken what it asked for; `None`: it asked for nothing large.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    deadline: watch::Sender<Option<Instant>>,
    /// For a client that reads, but slowly, before the rate counts.
    grace: Duration,
}

impl Pace {
    pub(super) fn new(grace: Duration) -> Pace {
        Pace { deadline: watch::Sender::new(None), grace }
    }

    /// Ready when the client is late.
    pub(super) async fn is_late(&self) {
        let mut deadline = self.deadline.subscribe();
        loop {
            let until = *deadline.borrow_and_update();
            match until {
                Some(until) if timeout_at(until, deadline.changed()).await.is_err() => return,
                Some(_) => {}
                None => drop(deadline.changed().await),
            }
        }
    }

    fn begin(&self, bytes: usize) {
        let time = self.grace + Duration::from_millis(bytes as u64 * 1000 / RATE_MIN);
        self.deadline.send_replace(Some(Instant::now() + time));
    }
}

/// The body of a large answer on its way.
pub(super) struct Large {
    rest: Bytes,
    pace: Pace,
    _share: Share,
    /// The connection does not wait for a request meanwhile.
    _busy: Option<Busy>,
}

impl Large {
    pub(super) fn new(bytes: Bytes, share: Share, pace: Pace, busy: Option<Busy>) -> Large {
        pace.begin(bytes.len());
        Large { rest: bytes, pace, _share: share, _busy: busy }
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        self.pace.deadline.send_replace(None);
    }
}

impl HttpBody for Large {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let size = self.rest.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(size)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    #[test]
    fn memory_is_set_aside_by_the_whole_and_kept_by_what_was_made() {
        run(async {
            let memory = Memory::new(1 << 20);
            let mut first = memory.set_aside(900 << 10, NOW).await.unwrap();
            assert!(memory.set_aside(200 << 10, NOW).await.is_none());
            assert!(memory.set_aside(SMALL_BYTES, NOW).await.is_some(), "small answers are not counted");
            assert!(first.settle(100 << 10));
            let mut second = memory.set_aside(900 << 10, NOW).await.unwrap();
            assert!(!first.settle(200 << 10), "there is no more");
            assert!(second.settle(800 << 10) && first.settle(200 << 10));
            drop(first);
            assert!(second.settle(1 << 20) && second.settle(SMALL_BYTES));
            assert!(memory.set_aside(1 << 20, NOW).await.is_some());
        });
    }

    #[test]
    fn a_write_that_was_done_is_answered_though_there_is_no_memory() {
        run(async {
            let memory = Memory::new(1 << 20);
            let all = memory.set_aside(1 << 20, NOW).await.unwrap();
            for is_write in [true, false] {
                let mut share = memory.set_aside(0, NOW).await.unwrap();
                assert_eq!(share.settle_answer(100 << 10, is_write), is_write);
            }
            drop(all);
            let mut share = memory.set_aside(0, NOW).await.unwrap();
            assert!(share.settle_answer(1 << 20, true));
            assert!(memory.set_aside(100 << 10, NOW).await.is_none(), "it is counted where there is memory");
        });
    }

    #[test]
    fn what_is_larger_than_all_there_is_is_made_alone() {
        run(async {
            let memory = Memory::new(1 << 20);
            let mut whole = memory.set_aside(1 << 30, NOW).await.unwrap();
            assert!(memory.set_aside(100 << 10, NOW).await.is_none());
            assert!(whole.settle(1 << 31));
            drop(whole);
            assert!(memory.set_aside(100 << 10, NOW).await.is_some());
        });
    }

    #[test]
    fn who_waits_gets_what_is_given_back() {
        run(async {
            let memory = Memory::new(1 << 20);
            let share = memory.set_aside(1 << 20, NOW).await.unwrap();
            let give_back = async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                drop(share);
            };
            let (got, ()) = tokio::join!(memory.set_aside(1 << 20, Duration::from_secs(10)), give_back);
            assert!(got.is_some());
        });
    }

    #[test]
    fn a_client_is_late_after_the_time_of_its_answer_and_not_before_nor_without_one() {
        run(async {
            let memory = Memory::new(1 << 20);
            let pace = Pace::new(Duration::from_millis(50));
            let late = |ms| timeout(Duration::from_millis(ms), pace.is_late());
            assert!(late(100).await.is_err());
            let share = memory.set_aside(0, NOW).await.unwrap();
            let body = Large::new(Bytes::from(vec![0; 32 << 10]), share, pace.clone(), None);
            assert!(late(100).await.is_err(), "50 ms and an eighth of a second");
            assert!(late(5000).await.is_ok());
            drop(body);
            assert!(late(100).await.is_err());
        });
    }
}
