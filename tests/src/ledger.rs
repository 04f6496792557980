//! The ledger test: a test names the few counters that change, and all of them are compared.
//!
//! Counters are those of `qvs show ports --json`, written flat: `web.rx.packets`, `db.tx.drops.rx_ring_full`. What a test does not
//! name must not have changed, so a surprise side effect fails it.

use crate::daemon::Daemon;
use crate::process::wait_for;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// Workers have nothing in flight longer than this after the last frame.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);

/// All counters of all interfaces at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// Reads them.
    pub fn read(daemon: &Daemon) -> Counters {
        let mut counters = BTreeMap::new();
        for port in daemon.show("ports").as_array().into_iter().flatten() {
            let Some(name) = port["interface"].as_str() else { continue };
            for direction in ["rx", "tx"] {
                flatten(&format!("{name}.{direction}"), &port[direction], &mut counters);
            }
        }
        Counters(counters)
    }

    /// One counter; zero if it is not there.
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Frames dropped for any reason in one direction of one interface: `web.rx`.
    pub fn drops(&self, flow: &str) -> u64 {
        let prefix = format!("{flow}.drops.");
        self.0.iter().filter(|(name, _)| name.starts_with(&prefix)).map(|(_, count)| count).sum()
    }

    /// How much a counter has grown since `before`.
    pub fn grown(&self, before: &Counters, name: &str) -> u64 {
        self.get(name) - before.get(name)
    }

    /// What changed since `before`, bytes left out: `name +count`.
    pub fn changes(&self, before: &Counters) -> Vec<String> {
        let names = self.0.keys().chain(before.0.keys()).collect::<std::collections::BTreeSet<_>>();
        let names = names.into_iter().filter(|name| !name.ends_with(".bytes"));
        let changed = names.filter(|name| self.get(name) != before.get(name));
        changed
            .map(|name| format!("{name} {:+}", self.get(name).wrapping_sub(before.get(name)).cast_signed()))
            .collect()
    }

    /// Drops since `before` but those of guests and hosts that were too slow: `web.tx.drops.over_mtu +count`.
    pub fn strange_drops(&self, before: &Counters) -> Vec<String> {
        let is_strange = |change: &String| change.contains(".drops.") && !change.contains("rx_ring_full");
        self.changes(before).into_iter().filter(is_strange).collect()
    }
}

fn flatten(name: &str, value: &Value, counters: &mut BTreeMap<String, u64>) {
    if let Some(object) = value.as_object() {
        for (key, value) in object {
            flatten(&format!("{name}.{key}"), value, counters);
        }
    } else if let Some(count) = value.as_u64() {
        counters.insert(name.to_owned(), count);
    }
}

/// Compares all counters with those of `before`: exactly `expected` have changed, each `name +count`. Bytes are not
/// compared, for they follow from the frames.
///
/// # Panics
/// If others changed, or these by another amount, even after frames in flight have settled.
pub fn expect(daemon: &Daemon, before: &Counters, expected: &[&str]) {
    let mut expected: Vec<String> = expected.iter().map(|&line| line.to_owned()).collect();
    expected.sort_unstable();
    let mut changes = Vec::new();
    let settled = wait_for(SETTLE_LIMIT, || {
        changes = Counters::read(daemon).changes(before);
        changes.sort_unstable();
        (changes == expected).then_some(())
    });
    assert!(settled.is_some(), "changed:  {changes:#?}\nexpected: {expected:#?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(pairs: &[(&str, u64)]) -> Counters {
        Counters(pairs.iter().map(|&(name, count)| (name.to_owned(), count)).collect())
    }

    #[test]
    fn changes_name_what_grew_and_nothing_else() {
        let before = counters(&[("a.rx.packets", 1), ("a.rx.bytes", 60), ("b.tx.packets", 4)]);
        let after =
            counters(&[("a.rx.packets", 3), ("a.rx.bytes", 180), ("b.tx.packets", 4), ("b.tx.drops.rx_ring_full", 2)]);
        assert_eq!(after.changes(&before), ["a.rx.packets +2", "b.tx.drops.rx_ring_full +2"]);
    }
}
