//! Whose turn it is to wake the kernel for a queue that several workers send by.
//!
//! The kernel sends under a lock of its own, on which a second caller would sleep until some ten frames of the first are copied.
//! So whoever finds another at it says that there is more and goes on, and the one at it looks again before it leaves:
//! nothing that was put before [`Turn::take`] is forgotten, and nobody waits. How often one looks again for others is its
//! caller's to bound ([`Turn::give_up`]).

use crate::sync::{AtomicU8, Ordering};

const FREE: u8 = 0;
/// Somebody is at it.
const TAKEN: u8 = 1;
/// Somebody is at it, and there is more since the last look.
const MORE: u8 = 2;

/// The turn of one queue.
pub(super) struct Turn(AtomicU8);

impl Turn {
    /// Nobody has it.
    pub(super) fn new() -> Turn {
        Turn(AtomicU8::new(FREE))
    }

    /// Takes the turn; false if another has it, who will look again.
    #[inline]
    pub(super) fn take(&self) -> bool {
        // Release: what the caller put before is seen by the other's next `look`, which acquires.
        self.0.swap(MORE, Ordering::AcqRel) == FREE
    }

    /// Begins a look, of who has the turn: what others put before they asked is seen from here on.
    #[inline]
    pub(super) fn look(&self) {
        self.0.swap(TAKEN, Ordering::AcqRel);
    }

    /// Ends the turn unless somebody has asked since the last look; then the caller keeps it.
    #[inline]
    pub(super) fn end(&self) -> bool {
        self.0.compare_exchange(TAKEN, FREE, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Ends the turn though somebody may have asked. Whoever had it looks afterwards at what is left and leaves it to somebody: what
    /// others put before they found the turn taken is seen then, and who comes later has the turn.
    #[inline]
    pub(super) fn give_up(&self) {
        // Acquire pairs with the release of `take`, whose caller goes on.
        self.0.swap(FREE, Ordering::AcqRel);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sync::{Arc, AtomicU32};

    /// Puts one thing and sees to it that it is looked at.
    fn send(turn: &Turn, put: &AtomicU32, seen: &AtomicU32) {
        put.fetch_add(1, Ordering::Relaxed);
        if !turn.take() {
            return;
        }
        loop {
            turn.look();
            seen.store(put.load(Ordering::Relaxed), Ordering::Relaxed);
            if turn.end() {
                return;
            }
        }
    }

    /// Puts one thing and may look once; what comes after that is left to somebody.
    fn send_once(turn: &Turn, put: &AtomicU32, seen: &AtomicU32, left: &AtomicU32) {
        put.fetch_add(1, Ordering::Relaxed);
        if !turn.take() {
            return;
        }
        turn.look();
        let looked_at = put.load(Ordering::Relaxed);
        seen.store(looked_at, Ordering::Relaxed);
        turn.give_up();
        if put.load(Ordering::Relaxed) > looked_at {
            left.store(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn loom_what_was_put_while_a_turn_is_given_up_is_looked_at_or_left() {
        loom::model(|| {
            let all: Arc<(Turn, [AtomicU32; 3])> = Arc::new((Turn::new(), Default::default()));
            let run = |all: &(Turn, [AtomicU32; 3])| {
                let (turn, [put, seen, left]) = all;
                send_once(turn, put, seen, left);
            };
            let other = {
                let all = all.clone();
                loom::thread::spawn(move || run(&all))
            };
            run(&all);
            other.join().unwrap();
            let [_, seen, left] = &all.1;
            assert!(seen.load(Ordering::Relaxed) == 2 || left.load(Ordering::Relaxed) == 1);
        });
    }

    #[test]
    fn loom_what_was_put_is_looked_at_by_whoever_has_the_turn() {
        loom::model(|| {
            let (turn, put, seen) = (Arc::new(Turn::new()), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
            let other = {
                let (turn, put, seen) = (turn.clone(), put.clone(), seen.clone());
                loom::thread::spawn(move || send(&turn, &put, &seen))
            };
            send(&turn, &put, &seen);
            other.join().unwrap();
            assert_eq!(seen.load(Ordering::Relaxed), 2);
        });
    }
}
