//! What etcd refuses this host, for people: warned of once, and told for as long as it goes on.
//!
//! Who is refused goes on with what he knows, as if etcd were away, but it is there: without a word nobody would look for a user that
//! lacks a right, or a database that is full.

use super::lock;
use crate::etcd::EtcdError;
use std::sync::Mutex;

/// gRPC's code for what is not yet: an answer as good as any, as is what is no more.
const OUT_OF_RANGE: u32 = 11;

/// What a host does with etcd all the time.
#[derive(Clone, Copy)]
pub(super) enum Part {
    /// Following what changes.
    Following,
    /// Saying that it lives and what is plugged.
    Saying,
}

/// By part: what is refused, or was last.
#[derive(Default)]
pub(super) struct Refusals(Mutex<[Refusal; 2]>);

#[derive(Default)]
struct Refusal {
    text: String,
    is_now: bool,
}

impl Refusals {
    /// A part met this error. One that is no refusal changes nothing.
    pub(super) fn met(&self, part: Part, error: &EtcdError) {
        let EtcdError::Refused { code, .. } = error else { return };
        if error.is_not_found() || *code == OUT_OF_RANGE {
            return;
        }
        let what = match part {
            Part::Following => "following what changes",
            Part::Saying => "saying what is plugged here",
        };
        let text = format!("{what}: {error}");
        let refusal = &mut lock(&self.0)[part as usize];
        if refusal.text != text {
            tracing::warn!(error = text, "this host goes on with what it knows");
            refusal.text = text;
        }
        refusal.is_now = true;
    }

    /// A part goes on.
    pub(super) fn ended(&self, part: Part) {
        let refusal = &mut lock(&self.0)[part as usize];
        if std::mem::take(&mut refusal.is_now) {
            tracing::info!(error = std::mem::take(&mut refusal.text), "etcd refuses this no more");
        }
    }

    /// What is refused now.
    pub(super) fn now(&self) -> Vec<String> {
        lock(&self.0).iter().filter(|refusal| refusal.is_now).map(|refusal| refusal.text.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_until_its_own_part_goes_on_and_what_is_none_changes_nothing() {
        let refusals = Refusals::default();
        let refused = |code| EtcdError::Refused { code, message: "permission denied".into() };
        refusals.met(Part::Saying, &refused(5));
        refusals.met(Part::Following, &refused(OUT_OF_RANGE));
        assert!(refusals.now().is_empty());
        refusals.met(Part::Saying, &refused(7));
        refusals.met(Part::Saying, &EtcdError::Unreachable("away".into()));
        refusals.ended(Part::Following);
        assert_eq!(refusals.now(), ["saying what is plugged here: etcd refuses: permission denied (code 7)"]);
        refusals.ended(Part::Saying);
        assert!(refusals.now().is_empty());
    }
}
