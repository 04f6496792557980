//! Holds nothing: the benches are under `benches/`, one file per thing timed.
