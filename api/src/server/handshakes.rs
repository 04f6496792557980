//! TLS handshakes in turn, so that those who begin many leave time for others.
//!
//! A handshake is the dearest thing that a stranger can make us do: a signature and a key agreement, half a millisecond or
//! so, for the bytes of one hello, and at his wish only after a second hello (HelloRetryRequest). So the reckoning of all handshakes is done one after another, on one thread at a time, and
//! the peers take turns: of each one at most is in the queue. Who is slow to send his half has no turn meanwhile; his
//! connection is bounded like all others, and by [`super::Limits::handshake_time`].

use crate::peer::Peer;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use tokio::sync::Semaphore;

/// Who waits for a turn, or has it.
pub(super) struct Handshakes {
    turn: Semaphore,
    /// The queue of each peer that has any, and how many are in it.
    queues: Mutex<HashMap<Peer, (usize, Arc<Semaphore>)>>,
}

/// A place in the queue of a peer.
struct Queued<'a> {
    handshakes: &'a Handshakes,
    peer: Peer,
    queue: Arc<Semaphore>,
}

impl Handshakes {
    pub(super) fn new() -> Arc<Handshakes> {
        Arc::new(Handshakes { turn: Semaphore::new(1), queues: Mutex::default() })
    }

    /// Does a handshake, each step of it when it is the peer's turn: which of them is the dear one the peer chooses.
    pub(super) async fn take<F: Future + Unpin>(&self, peer: Peer, mut handshake: F) -> F::Output {
        loop {
            let step = {
                let queued = self.queue(peer);
                let _own = queued.queue.acquire().await.expect("the semaphore is never closed");
                let _turn = self.turn.acquire().await.expect("the semaphore is never closed");
                std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut handshake).poll(cx))).await
            };
            match step {
                Poll::Ready(output) => return output,
                Poll::Pending => until_woken().await,
            }
        }
    }

    fn queue(&self, peer: Peer) -> Queued<'_> {
        let mut queues = self.queues();
        let (count, queue) = queues.entry(peer).or_insert_with(|| (0, Arc::new(Semaphore::new(1))));
        *count += 1;
        Queued { handshakes: self, peer, queue: queue.clone() }
    }

    fn queues(&self) -> MutexGuard<'_, HashMap<Peer, (usize, Arc<Semaphore>)>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends when the task is woken, which it is by what was polled before in it.
async fn until_woken() {
    let mut is_woken = false;
    std::future::poll_fn(|_| if std::mem::replace(&mut is_woken, true) { Poll::Ready(()) } else { Poll::Pending })
        .await;
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let mut queues = self.handshakes.queues();
        if let Some((count, _)) = queues.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                queues.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    fn peer(address: &str) -> Peer {
        Peer::of(address.parse().unwrap())
    }

    #[test]
    fn one_handshake_does_not_wait_for_the_many_of_another_peer() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let handshakes = Handshakes::new();
        let order = RefCell::new(Vec::new());
        let shake = |address: &'static str| {
            // Ends at its first step.
            let order = &order;
            handshakes.take(peer(address), Box::pin(async move { order.borrow_mut().push(address) }))
        };
        runtime.block_on(async {
            let turn = handshakes.turn.acquire().await.unwrap();
            let mut many: Vec<_> = (0..100).map(|_| Box::pin(shake("10.0.0.1"))).collect();
            for one in &mut many {
                assert!(is_pending(one).await);
            }
            let mut other = Box::pin(shake("10.0.0.2"));
            assert!(is_pending(&mut other).await);
            drop(turn);
            many.remove(0).await;
            other.await;
        });
        assert_eq!(*order.borrow(), ["10.0.0.1", "10.0.0.2"]);
        assert!(handshakes.queues().is_empty(), "who is gone has no queue");
    }

    #[test]
    fn a_later_step_of_a_handshake_waits_for_its_turn_too() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let handshakes = Handshakes::new();
        let steps = Cell::new(0);
        let two_steps = std::future::poll_fn(|_| {
            steps.set(steps.get() + 1);
            if steps.get() == 1 { Poll::Pending } else { Poll::Ready(()) }
        });
        runtime.block_on(async {
            let mut one = Box::pin(handshakes.take(peer("10.0.0.1"), two_steps));
            assert!(is_pending(&mut one).await);
            assert_eq!(steps.get(), 1);
            let turn = handshakes.turn.acquire().await.unwrap();
            assert!(is_pending(&mut one).await);
            assert_eq!(steps.get(), 1, "another has the turn");
            drop(turn);
            one.await;
            assert_eq!(steps.get(), 2);
        });
    }

    #[test]
    fn who_is_slow_with_his_half_holds_up_nobody() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let handshakes = Handshakes::new();
        let begun = Cell::new(0);
        let silent = || {
            let begun = &begun;
            handshakes.take(
                peer("10.0.0.1"),
                Box::pin(async move {
                    begun.set(begun.get() + 1);
                    std::future::pending::<()>().await;
                }),
            )
        };
        runtime.block_on(async {
            let mut many: Vec<_> = (0..10).map(|_| Box::pin(silent())).collect();
            for one in &mut many {
                assert!(is_pending(one).await);
            }
            assert_eq!(begun.get(), 10);
            assert_eq!(handshakes.take(peer("10.0.0.1"), Box::pin(async { 7 })).await, 7);
        });
    }

    async fn is_pending<T>(future: &mut Pin<Box<impl Future<Output = T>>>) -> bool {
        std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
    }
}
