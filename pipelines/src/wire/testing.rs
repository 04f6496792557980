//! The checks every wire format gets: round trip, every truncation, noise.

use super::WireError;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::fmt::Debug;

/// A format's two levels, as the checks use them.
pub(crate) trait Format: Sized + Clone + PartialEq + Debug {
    /// What the bytes say.
    fn parse(bytes: &[u8]) -> Result<Self, WireError>;
    /// The header's bytes.
    fn emit(&self) -> Vec<u8>;
}

/// Runs all checks over values of `samples`.
pub(crate) fn check<F: Format>(samples: impl Strategy<Value = F>) {
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    runner.run(&(samples, any::<[u8; 9]>()), |(sample, behind)| round_trip(&sample, &behind)).unwrap();
    runner.run(&proptest::collection::vec(any::<u8>(), 0..160), |bytes| noise::<F>(&bytes)).unwrap();
}

fn round_trip<F: Format>(sample: &F, behind: &[u8]) -> Result<(), TestCaseError> {
    let bytes = sample.emit();
    prop_assert_eq!(F::parse(&bytes), Ok(sample.clone()));
    for len in 0..bytes.len() {
        prop_assert_eq!(F::parse(&bytes[..len]), Err(WireError::Short), "cut to {} bytes", len);
    }
    let longer = [bytes.as_slice(), behind].concat();
    prop_assert_eq!(F::parse(&longer), Ok(sample.clone()), "with bytes behind");
    Ok(())
}

fn noise<F: Format>(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(value) = F::parse(bytes) {
        prop_assert_eq!(F::parse(&value.emit()), Ok(value));
    }
    Ok(())
}
