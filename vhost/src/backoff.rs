//! How long to wait before connecting again: longer each time an attempt comes to nothing, up to a bound.
//!
//! A guest that boots is met soon, and a socket that is never there costs next to nothing. It knows no clock: whoever waits
//! asks for the next pause and takes it. Owned by the session's thread.

use std::time::Duration;

/// Pause after the first attempt.
pub(crate) const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause: so long a guest waits at most for a switch that waits for its socket.
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The pauses between attempts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Backoff {
    pause: Duration,
}

impl Backoff {
    /// Before the first attempt.
    pub(crate) const fn new() -> Backoff {
        Backoff { pause: PAUSE_MIN }
    }

    /// The pause to make now. The one after it is twice as long, [`PAUSE_MAX`] at most.
    pub(crate) fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE_MAX);
        pause
    }

    /// An attempt came to something: the next pause is the shortest.
    pub(crate) fn reset(&mut self) {
        *self = Backoff::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(backoff: &mut Backoff, count: usize) -> Vec<u128> {
        (0..count).map(|_| backoff.next_pause().as_millis()).collect()
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_stay_there() {
        let mut backoff = Backoff::new();
        assert_eq!(millis(&mut backoff, 8), [50, 100, 200, 400, 800, 1000, 1000, 1000]);
        assert!((0..10_000).all(|_| backoff.next_pause() == PAUSE_MAX), "a night without a peer changes nothing");
    }

    #[test]
    fn after_a_success_they_begin_anew() {
        let mut backoff = Backoff::new();
        millis(&mut backoff, 5);
        backoff.reset();
        assert_eq!(millis(&mut backoff, 3), [50, 100, 200]);
    }
}
