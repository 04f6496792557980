//! How long frames were under way, and how much that varies.
//!
//! Delays go into a histogram of three significant digits (HdrHistogram), from which every percentile can be read. Packet
//! delay variation is the 99.9th percentile less the minimum (RFC 8219 section 7.3.1, RFC 5481 section 4.2); inter-packet
//! delay variation is the difference between the delays of one frame and the next (RFC 5481 section 4.1), of which the
//! magnitude is told.

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest delay that is told apart, ns; longer ones count as this.
const DELAY_MAX_NS: u64 = 10_000_000_000;

/// Which frames' delays are noted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Which {
    /// Every frame's: some nanoseconds each
    All,
    /// The first frame's of every burst received
    Sampled,
    /// None
    Off,
}

/// Delays of one measurement.
pub(crate) struct Delays {
    delays: Histogram<u64>,
    variations: Histogram<u64>,
}

/// Percentiles, nanoseconds.
#[derive(Serialize, Clone, Copy, PartialEq, Debug)]
pub(crate) struct Percentiles {
    /// Values that were noted.
    pub(crate) samples: u64,
    pub(crate) min_ns: u64,
    pub(crate) mean_ns: f64,
    pub(crate) p50_ns: u64,
    pub(crate) p90_ns: u64,
    pub(crate) p99_ns: u64,
    #[serde(rename = "p99_9_ns")]
    pub(crate) p999_ns: u64,
    pub(crate) max_ns: u64,
}

/// What is told of the delays.
#[derive(Serialize, Clone, Copy, PartialEq, Debug)]
pub(crate) struct Latency {
    /// One-way delays.
    #[serde(flatten)]
    pub(crate) delay: Percentiles,
    /// Packet delay variation (RFC 8219 section 7.3.1).
    pub(crate) pdv_ns: u64,
    /// Magnitude of the inter-packet delay variation (RFC 5481 section 4.1); absent unless every frame is noted.
    pub(crate) ipdv: Option<Percentiles>,
}

impl Delays {
    pub(crate) fn new() -> Delays {
        let histogram = || Histogram::new_with_bounds(1, DELAY_MAX_NS, 3).expect("bounds that the crate allows");
        Delays { delays: histogram(), variations: histogram() }
    }

    pub(crate) fn restart(&mut self) {
        self.delays.reset();
        self.variations.reset();
    }

    /// Notes a delay, and by how much that of the frame before differed, where there was one.
    #[inline]
    pub(crate) fn note(&mut self, (delay_ns, variation_ns): (u64, Option<u64>)) {
        self.delays.saturating_record(delay_ns);
        if let Some(difference_ns) = variation_ns {
            self.variations.saturating_record(difference_ns);
        }
    }

    /// What is known; `None` without a sample.
    pub(crate) fn latency(&self) -> Option<Latency> {
        let delay = percentiles(&self.delays)?;
        Some(Latency { delay, pdv_ns: delay.p999_ns.saturating_sub(delay.min_ns), ipdv: percentiles(&self.variations) })
    }
}

fn percentiles(histogram: &Histogram<u64>) -> Option<Percentiles> {
    (!histogram.is_empty()).then(|| Percentiles {
        samples: histogram.len(),
        min_ns: histogram.min(),
        mean_ns: histogram.mean(),
        p50_ns: histogram.value_at_quantile(0.5),
        p90_ns: histogram.value_at_quantile(0.9),
        p99_ns: histogram.value_at_quantile(0.99),
        p999_ns: histogram.value_at_quantile(0.999),
        max_ns: histogram.max(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_variation_are_those_of_the_samples() {
        let mut delays = Delays::new();
        assert_eq!(delays.latency(), None);
        for delay in 1..=1000 {
            delays.note((delay, (delay == 7).then_some(5)));
        }
        let latency = delays.latency().unwrap();
        assert_eq!((latency.delay.min_ns, latency.delay.p50_ns, latency.delay.max_ns), (1, 500, 1000));
        assert_eq!((latency.delay.p999_ns, latency.pdv_ns), (999, 998));
        assert_eq!(latency.ipdv.unwrap().p50_ns, 5);
        delays.restart();
        assert_eq!(delays.latency(), None);
    }
}
