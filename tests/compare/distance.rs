//! How far apart the two CPUs are: how long a cache line takes from one to the other and back.
//!
//! A host may run two virtual CPUs on neighbours that share a cache or on different sockets, and move them from one minute to the next. Every
//! frame crosses that distance a few times, whoever the switch is: where it is far, generators wait for it and switches are alike.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use switch::affinity::{allowed_cpus, pin};

/// Round trips of a sample, and samples, of which the shortest counts.
const TRIPS: u32 = 2000;
const SAMPLES: u32 = 5;

/// A word on cache lines of its own.
#[repr(align(128))]
#[derive(Default)]
struct Line(AtomicU32);

/// The time from the first CPU to the last and back; `None` if there is only one.
pub(crate) fn round_trip() -> Option<Duration> {
    let cpus = allowed_cpus().ok()?;
    let (first, last) = (*cpus.first()?, *cpus.last()?);
    if first == last {
        return None;
    }
    let (ping, pong) = (Line::default(), Line::default());
    let wait = |line: &Line, number| {
        while line.0.load(Ordering::Acquire) != number {
            std::hint::spin_loop();
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            // On the same CPU it would end as well, later.
            let _ = pin(last);
            for number in 1..=SAMPLES * TRIPS {
                wait(&ping, number);
                pong.0.store(number, Ordering::Release);
            }
        });
        let samples = scope.spawn(|| {
            let _ = pin(first);
            let sample = |sample: u32| {
                let start = Instant::now();
                for number in sample * TRIPS + 1..=(sample + 1) * TRIPS {
                    ping.0.store(number, Ordering::Release);
                    wait(&pong, number);
                }
                start.elapsed() / TRIPS
            };
            (0..SAMPLES).map(sample).min()
        });
        samples.join().expect("it only counts")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_takes_some_time_between_two_cpus() {
        if let Some(time) = round_trip() {
            assert!(time > Duration::ZERO);
        }
    }
}
