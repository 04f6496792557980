//! Large answers on their way: handed to hyper in pieces, because hyper lets go of a body when it has all of it and not when
//! all is sent; and to be taken at a rate.

use super::memory::Share;
use axum::body::{Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// Bytes of a large answer handed over at a time.
const PIECE_BYTES: usize = 16 << 10;
/// Bytes a second at which a large answer must be taken.
const RATE_MIN: u64 = 256 << 10;

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
}

impl Large {
    pub(super) fn new(bytes: Bytes, share: Share, pace: Pace) -> Large {
        pace.begin(bytes.len());
        Large { rest: bytes, pace, _share: share }
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
    use crate::server::memory::{Memory, Party};
    use tokio::time::timeout;

    #[test]
    fn a_client_is_late_after_the_time_of_its_answer_and_not_before_nor_without_one() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let memory = Memory::new(1 << 20);
            let pace = Pace::new(Duration::from_secs(1));
            let late = |ms| timeout(Duration::from_millis(ms), pace.is_late());
            assert!(late(100).await.is_err());
            let share = memory.set_aside(Party::Tenant("t".into()), 0, Duration::ZERO).await.unwrap();
            let body = Large::new(Bytes::from(vec![0; 32 << 10]), share, pace.clone());
            assert!(late(100).await.is_err(), "a second and an eighth");
            assert!(late(20_000).await.is_ok());
            drop(body);
            assert!(late(100).await.is_err());
        });
    }
}
