//! When the next frames of a stream are due.
//!
//! A bucket of credit that fills with time: a generator that lost its CPU for a while catches up by no more than the
//! bucket holds, and what it did not offer is told, so that no result pretends a load that was not there.

/// How fast a stream sends.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Rate {
    /// Frames a second.
    Frames(f64),
    /// Bits a second on a wire: frames with preamble, check sequence and gap (IEEE 802.3).
    Bits(f64),
}

/// Bytes a frame takes on a wire besides those in memory: preamble, check sequence and gap (IEEE 802.3).
pub(crate) const WIRE_OVERHEAD: f64 = 24.0;
/// Credit that can be saved up, ns of sending: longer interruptions are not made up for.
const BACKLOG_NS: f64 = 50_000.0;

impl Rate {
    /// Frames a second if frames have this mean size in memory.
    pub(crate) fn frames(self, size_mean: f64) -> f64 {
        match self {
            Rate::Frames(frames) => frames,
            Rate::Bits(bits) => bits / 8.0 / (size_mean + WIRE_OVERHEAD),
        }
    }
}

impl std::str::FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        let digits = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: f64 = number.parse().map_err(|_| format!("{text:?} does not begin with a number"))?;
        let unit = unit.trim();
        let (factor, unit) = match unit.chars().next() {
            Some('k') => (1e3, &unit[1..]),
            Some('M') => (1e6, &unit[1..]),
            Some('G') => (1e9, &unit[1..]),
            _ => (1.0, unit),
        };
        if number <= 0.0 {
            return Err("a rate is above zero; leave it out to send as fast as possible".to_owned());
        }
        match unit {
            "pps" => Ok(Rate::Frames(number * factor)),
            "bps" | "bit/s" => Ok(Rate::Bits(number * factor)),
            _ => Err(format!("{text:?}: a rate ends in pps or bit/s, with k, M or G before it")),
        }
    }
}

/// The bucket of one stream.
pub(crate) struct Pace {
    /// Frames a nanosecond; `None`: as many as go.
    frames_per_ns: Option<f64>,
    /// Frames that are sent back to back once so many are due.
    train: f64,
    /// Most frames at a time.
    burst: usize,
    credit: f64,
    last_ns: u64,
}

impl Pace {
    /// As many frames at a time as `burst` says, as often as it is asked.
    pub(crate) fn unlimited(burst: usize) -> Pace {
        Pace { frames_per_ns: None, train: 1.0, burst, credit: 0.0, last_ns: 0 }
    }

    /// `frames` a second, in trains of `train`.
    pub(crate) fn limited(frames: f64, train: usize, burst: usize) -> Pace {
        Pace {
            frames_per_ns: Some(frames / 1e9),
            train: train as f64,
            burst: burst.max(train),
            credit: 0.0,
            last_ns: 0,
        }
    }

    /// Starts with an empty bucket.
    pub(crate) fn restart(&mut self, now_ns: u64) {
        (self.credit, self.last_ns) = (0.0, now_ns);
    }

    /// Frames to send now.
    #[inline]
    pub(crate) fn due(&mut self, now_ns: u64) -> usize {
        let Some(frames_per_ns) = self.frames_per_ns else { return self.burst };
        let most = (frames_per_ns * BACKLOG_NS).max(2.0 * self.train).max(2.0);
        self.credit = (self.credit + now_ns.saturating_sub(self.last_ns) as f64 * frames_per_ns).min(most);
        self.last_ns = now_ns;
        if self.credit < self.train { 0 } else { (self.credit as usize).min(self.burst) }
    }

    /// So many were sent.
    #[inline]
    pub(crate) fn sent(&mut self, count: usize) {
        self.credit -= count as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_with_their_units() {
        assert_eq!("1.5Mpps".parse(), Ok(Rate::Frames(1.5e6)));
        assert_eq!("10 Gbit/s".parse(), Ok(Rate::Bits(10e9)));
        assert_eq!("100bps".parse(), Ok(Rate::Bits(100.0)));
        for wrong in ["", "fast", "10", "0pps", "1Tpps", "1Gbyte"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
        // 64 bytes with the check sequence at 10 Gbit/s: 14.88 million (RFC 5180 appendix A.1).
        assert_eq!(Rate::Bits(10e9).frames(60.0) as u32, 14_880_952);
    }

    #[test]
    fn over_time_exactly_the_rate_is_due() {
        let mut pace = Pace::limited(1e6, 1, 32);
        pace.restart(0);
        let mut sent = 0;
        for now in (0..=1_000_000).step_by(700) {
            let due = pace.due(now);
            pace.sent(due);
            sent += due;
        }
        assert!((999..=1000).contains(&sent), "{sent}");
    }

    #[test]
    fn a_train_waits_until_it_is_whole() {
        let mut pace = Pace::limited(1e6, 16, 32);
        pace.restart(0);
        assert_eq!(pace.due(15_900), 0);
        assert_eq!(pace.due(16_000), 16);
    }

    #[test]
    fn a_long_interruption_is_not_made_up_for() {
        let mut pace = Pace::limited(1e6, 1, 1_000_000);
        pace.restart(0);
        assert_eq!(pace.due(1_000_000_000), 50);
    }
}
