//! Seeded chance: the same seed gives the same run.

use crate::process::soak_time;
use std::time::Instant;

/// A small generator (SplitMix64, Steele et al. 2014). Good enough to choose inputs, not to keep secrets.
#[derive(Clone, Debug)]
pub struct Chance {
    state: u64,
}

impl Chance {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Chance {
        Chance { state: seed }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }

    /// Up to `len_max` random bytes.
    pub fn bytes(&mut self, len_max: usize) -> Vec<u8> {
        let len = self.below(len_max + 1);
        (0..len).map(|_| self.bits() as u8).collect()
    }

    /// Changes a few bytes, cuts or doubles a part: near-valid input.
    pub fn mangle(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            if bytes.is_empty() {
                return;
            }
            let at = self.below(bytes.len());
            match self.below(4) {
                0 => bytes[at] = self.bits() as u8,
                1 => bytes[at] ^= 1 << self.below(8),
                2 => bytes.truncate(at),
                _ => {
                    let part = bytes[at..].to_vec();
                    bytes.extend(part);
                }
            }
        }
    }
}

/// Runs `round` with seeds 1, 2, …: `rounds` times, or as long as `cargo xtask soak` says. A failing round's seed is
/// printed.
pub fn for_seeds(rounds: u64, mut round: impl FnMut(Chance)) {
    let until = soak_time().map(|time| Instant::now() + time);
    // Long forms see other seeds each time; `QVS_SEED` repeats a failure.
    let fresh = until.map_or(1, |_| u64::from(std::process::id()) << 32);
    let first = std::env::var("QVS_SEED").map_or(fresh, |seed| seed.parse().expect("QVS_SEED is a number"));
    for seed in first.. {
        let is_over = match until {
            Some(until) => Instant::now() >= until,
            None => seed - first >= rounds,
        };
        if is_over {
            return;
        }
        println!("seed {seed}");
        round(Chance::new(seed));
    }
}
