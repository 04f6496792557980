//! In which order the stations and flows of a stream take their turns.
//!
//! Round robin is counters; a random order is one step of a generator a frame; a Zipf order (a few flows have most frames)
//! is drawn into a table at the start and repeated. All are the same for the same seed.

/// Draws of a Zipf order before it repeats.
const DRAWS: usize = 1 << 18;
/// Station n sends to station 7 n + 3 of the other side, so that neither look-up of a frame follows from the other.
const STRIDE: u32 = 7;
const OFFSET: u32 = 3;

/// Whose turn it is; numbers from 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Turn {
    /// Station of the sending port.
    pub(crate) source: u32,
    /// Station of the receiving port.
    pub(crate) destination: u32,
    /// Flow: the 5-tuple.
    pub(crate) flow: u32,
}

/// How many there are of each.
#[derive(Clone, Copy, Debug)]
struct Counts {
    sources: u32,
    destinations: u32,
    flows: u32,
}

/// A never-ending order.
pub(crate) struct Order {
    counts: Counts,
    kind: Kind,
}

enum Kind {
    RoundRobin(Turn),
    Random(u64),
    Drawn { turns: Vec<Turn>, at: usize },
}

/// A step of xorshift64 (Marsaglia 2003); never zero if the state is not.
#[inline]
fn step(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// A number below `count` from 32 random bits (Lemire 2019, without the correction that nobody sees here).
#[inline]
fn below(random: u32, count: u32) -> u32 {
    ((u64::from(random) * u64::from(count)) >> 32) as u32
}

/// A state that is not zero, and differs much for seeds that differ little (SplitMix64).
fn scrambled(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) | 1
}

impl Order {
    /// Each in turn.
    pub(crate) fn round_robin(sources: u32, destinations: u32, flows: u32) -> Order {
        let first = Turn { source: 0, destination: OFFSET % destinations, flow: 0 };
        Order { counts: Counts { sources, destinations, flows }, kind: Kind::RoundRobin(first) }
    }

    /// All equally likely.
    pub(crate) fn random(sources: u32, destinations: u32, flows: u32, seed: u64) -> Order {
        Order { counts: Counts { sources, destinations, flows }, kind: Kind::Random(scrambled(seed)) }
    }

    /// Number n is `(n + 1)^exponent` times less likely than number 0.
    pub(crate) fn zipf(sources: u32, destinations: u32, flows: u32, exponent: f64, seed: u64) -> Order {
        let mut total = 0.0;
        let cumulative: Vec<f64> = (1..=sources.max(destinations).max(flows))
            .map(|rank| {
                total += f64::from(rank).powf(-exponent);
                total
            })
            .collect();
        let mut state = scrambled(seed);
        let turns = (0..DRAWS)
            .map(|_| {
                let wish = (step(&mut state) >> 11) as f64 / (1u64 << 53) as f64 * total;
                let rank = cumulative.partition_point(|&sum| sum < wish).min(cumulative.len() - 1) as u32;
                let destination =
                    ((u64::from(rank) * u64::from(STRIDE) + u64::from(OFFSET)) % u64::from(destinations)) as u32;
                Turn { source: rank % sources, destination, flow: rank % flows }
            })
            .collect();
        Order { counts: Counts { sources, destinations, flows }, kind: Kind::Drawn { turns, at: 0 } }
    }

    /// Turns after which it begins anew; `None` if that is more than `max`, or never.
    pub(crate) fn cycle(&self, max: usize) -> Option<usize> {
        let Counts { sources, destinations, flows } = self.counts;
        if !matches!(self.kind, Kind::RoundRobin(_)) {
            return None;
        }
        [sources, destinations, flows].into_iter().try_fold(1, |all, count| {
            let cycle = common_multiple(all, count as usize);
            (cycle <= max).then_some(cycle)
        })
    }

    /// Passes over `count` turns.
    #[inline]
    pub(crate) fn advance(&mut self, count: u32) {
        let Counts { sources, destinations, flows } = self.counts;
        match &mut self.kind {
            Kind::RoundRobin(turn) => {
                turn.source = passed(turn.source, count, sources);
                turn.destination = passed(turn.destination, count * STRIDE, destinations);
                turn.flow = passed(turn.flow, count, flows);
            }
            Kind::Random(_) | Kind::Drawn { .. } => (0..count).for_each(|_| {
                self.next();
            }),
        }
    }

    /// The next turn.
    #[inline]
    pub(crate) fn next(&mut self) -> Turn {
        let Counts { sources, destinations, flows } = self.counts;
        match &mut self.kind {
            Kind::RoundRobin(turn) => {
                let now = *turn;
                turn.source = wrapped(now.source + 1, sources);
                turn.flow = wrapped(now.flow + 1, flows);
                turn.destination = if destinations > STRIDE {
                    wrapped(now.destination + STRIDE, destinations)
                } else {
                    (now.destination + STRIDE) % destinations
                };
                now
            }
            Kind::Random(state) => {
                let (first, second) = (step(state), step(state));
                Turn {
                    source: below(first as u32, sources),
                    destination: below((first >> 32) as u32, destinations),
                    flow: below(second as u32, flows),
                }
            }
            Kind::Drawn { turns, at } => {
                let turn = turns[*at];
                *at = (*at + 1) % DRAWS;
                turn
            }
        }
    }
}

/// The least number that both divide.
pub(crate) fn common_multiple(one: usize, other: usize) -> usize {
    let (mut divisor, mut rest) = (one, other);
    while rest != 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    one / divisor * other
}

/// `value`, which is less than `count`, that many steps on, modulo `count`.
#[inline]
fn passed(value: u32, steps: u32, count: u32) -> u32 {
    let sum = value + steps;
    // A burst is mostly shorter than a lap, and divisions are slow.
    if sum < 2 * count { wrapped(sum, count) } else { sum % count }
}

/// `value`, which is less than twice `count`, modulo `count`.
#[inline]
fn wrapped(value: u32, count: u32) -> u32 {
    if value >= count { value - count } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn shares(order: &mut Order, draws: usize) -> HashMap<u32, usize> {
        let mut shares = HashMap::new();
        for _ in 0..draws {
            *shares.entry(order.next().flow).or_default() += 1;
        }
        shares
    }

    #[test]
    fn round_robin_gives_each_its_turn_and_all_stations_a_partner() {
        for count in [1, 2, 6, 7, 8, 1000] {
            let mut order = Order::round_robin(count, count, 2 * count);
            let turns: Vec<_> = (0..2 * count).map(|_| order.next()).collect();
            for (number, turn) in (0..).zip(&turns) {
                assert_eq!(
                    *turn,
                    Turn { source: number % count, destination: (STRIDE * number + OFFSET) % count, flow: number }
                );
            }
        }
    }

    #[test]
    fn a_round_robin_begins_anew_after_its_cycle_and_can_be_passed_over() {
        let cycle = |sources, destinations, flows| Order::round_robin(sources, destinations, flows).cycle(1000);
        assert_eq!(
            [cycle(4, 6, 10), cycle(1000, 1000, 1), cycle(999, 1000, 1), cycle(1, 1, 1)],
            [Some(60), Some(1000), None, Some(1)]
        );
        assert_eq!(Order::random(1, 1, 1, 1).cycle(1000), None);
        let mut order = Order::round_robin(4, 6, 10);
        let turns: Vec<_> = (0..120).map(|_| order.next()).collect();
        assert_eq!(turns[..60], turns[60..]);
        for count in 0..120 {
            let mut orders = [Order::round_robin(4, 6, 10), Order::zipf(4, 6, 10, 1.0, 1)];
            orders.iter_mut().for_each(|order| order.advance(count as u32));
            assert_eq!(orders[0].next(), turns[count]);
            let mut drawn = Order::zipf(4, 6, 10, 1.0, 1);
            let drawn: Vec<_> = (0..=count).map(|_| drawn.next()).collect();
            assert_eq!(orders[1].next(), drawn[count]);
        }
    }

    #[test]
    fn a_random_order_is_fair_and_the_same_for_the_same_seed() {
        let shares_of = |seed| shares(&mut Order::random(1, 1, 10, seed), 100_000);
        assert!(shares_of(1).values().all(|&share| (9_000..11_000).contains(&share)));
        assert_eq!(shares_of(7), shares_of(7));
        assert_ne!(shares_of(7), shares_of(8));
    }

    #[test]
    fn a_zipf_order_halves_from_the_first_to_the_second() {
        let shares = shares(&mut Order::zipf(1000, 1000, 1000, 1.0, 1), DRAWS);
        let ratio = shares[&0] as f64 / shares[&1] as f64;
        assert!((1.9..2.1).contains(&ratio), "{ratio}");
        assert!(shares.len() > 900, "{}", shares.len());
    }
}
