//! How long a part of a burst takes, in cycles of the core, on a machine that also does other things.
//!
//! A clock reading costs some 50 cycles and keeps the processor from overlapping what stands before and after it. So one
//! part is timed at a time, for many bursts, and the median is kept: bursts in which the thread was off its CPU fall out.
//! What an empty part takes is taken off. The core's clock is not the time stamp counter's; it is measured, by a chain of
//! multiplications.

use std::hint::black_box;
use std::time::Instant;

/// Steps of the chain that measures the clock: some 50 microseconds.
const CHAIN: u64 = 40_000;
/// Cycles of one step: an exclusive or, and a multiplication of 64 bits, on every x86-64 core since 2011 and most others.
const CHAIN_CYCLES: f64 = 4.0;

/// Cycles of this core in a nanosecond, at the moment.
pub fn cycles_per_ns() -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..50 {
        let (mut value, factor) = (black_box(1u64), black_box(0x9e37_79b9_7f4a_7c15u64));
        let start = Instant::now();
        for _ in 0..CHAIN {
            value = (value ^ factor).wrapping_mul(factor);
        }
        black_box(value);
        best = best.min(start.elapsed().as_nanos() as f64);
    }
    CHAIN as f64 * CHAIN_CYCLES / best
}

/// Says what a nanosecond is in cycles, above figures that somebody else prints in nanoseconds.
pub fn tell_clock() {
    println!("the core runs at {:.2} GHz: so many cycles are in a nanosecond", cycles_per_ns());
}

/// Times one part of what a loop does, by its number.
pub struct Stopwatch {
    part: usize,
    start: Option<Instant>,
    samples: Vec<u32>,
    /// Nanoseconds of the part in this burst.
    spent: Option<u32>,
}

impl Stopwatch {
    /// Times part `part`.
    pub fn new(part: usize) -> Stopwatch {
        Stopwatch { part, start: None, samples: Vec::new(), spent: None }
    }

    /// That part begins.
    #[inline]
    pub fn begin(&mut self, part: usize) {
        if part == self.part {
            self.start = Some(Instant::now());
        }
    }

    /// It ends.
    #[inline]
    pub fn end(&mut self, part: usize) {
        if part == self.part
            && let Some(start) = self.start.take()
        {
            self.spent = Some(start.elapsed().as_nanos() as u32);
        }
    }

    /// The burst is over; it counts if it was one of those that are to be measured.
    #[inline]
    pub fn keep(&mut self, counts: bool) {
        if let Some(spent) = self.spent.take().filter(|_| counts) {
            self.samples.push(spent);
        }
    }

    /// Bursts that counted.
    pub fn count(&self) -> usize {
        self.samples.len()
    }

    /// Median of the bursts that counted, ns; NaN if there was none.
    pub fn median(mut self) -> f64 {
        median_of(&mut self.samples).map_or(f64::NAN, f64::from)
    }
}

/// The middle one; `None` of none.
pub fn median_of<T: Copy + PartialOrd>(values: &mut [T]) -> Option<T> {
    values.sort_unstable_by(|one, other| one.partial_cmp(other).expect("no measurement is NaN"));
    values.get(values.len() / 2).copied()
}
