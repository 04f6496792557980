//! What every [`Plugin`] must do, as rules that any implementation can be run through. Behind the feature `testing`.
//!
//! A [`Rig`] is a plugin with whatever stands behind it, and knows how to wait for that, to start the plugin anew over
//! its records, to make trouble, and perhaps to look at what the backend has. Rules call the plugin as the API does and
//! compare with a model too simple to be wrong. Each gets a rig of its own and panics with the reason when the plugin
//! breaks it: [`check`] runs them all.
//!
//! Where plugins may differ, which of two faults wins and what op-status an idle port has, the rules take either or ask
//! the rig. Nothing here asserts a time.

#![expect(clippy::unwrap_used, reason = "rules stop at the first surprise")]

mod rules;
mod walk;

use crate::model::{AdminState, InterfaceId, NetworkId, OpStatus, PortId};
use crate::plugin::Plugin;
use std::collections::{BTreeMap, BTreeSet};

/// Walks of [`check`], each with a seed of its own, beside the one of `QVS_SEED`.
const WALKS: u64 = 6;
/// Steps of a walk.
const WALK_STEPS: usize = 150;

/// A plugin with what stands behind it.
pub trait Rig {
    /// The plugin. It has no records at first.
    fn plugin(&self) -> &dyn Plugin;

    /// Ends what [`Rig::disturb`] began, and waits until the backend has all that was written. For a plugin that is done
    /// when its calls return there is nothing to wait for.
    fn settle(&mut self) {}

    /// Makes trouble behind the plugin, of a kind that `dice` picks; called now and then during a walk.
    fn disturb(&mut self, _dice: u64) {}

    /// Starts the plugin anew over its records, as after `kill -9`; whether it keeps any.
    fn restart(&mut self) -> bool {
        false
    }

    /// What the backend has, once settled; `None` if the rig cannot look.
    fn carried(&self) -> Option<Carried> {
        None
    }

    /// The op-status of a settled port that is DOWN or has no attachment.
    fn idle_status(&self) -> OpStatus {
        OpStatus::Down
    }
}

/// What a backend has, as far as the rules compare it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Carried {
    /// The networks.
    pub networks: BTreeSet<NetworkId>,
    /// The ports.
    pub ports: BTreeMap<PortId, CarriedPort>,
}

/// A port of a backend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CarriedPort {
    /// The network it is on.
    pub network: NetworkId,
    /// Whether frames may pass.
    pub state: AdminState,
    /// What is plugged into it.
    pub attachment: Option<InterfaceId>,
}

/// Runs every rule, each on a rig of its own, and walks at random. `QVS_SEED=N` adds the walk of that seed.
///
/// # Panics
/// With the name of the rule, or the seed of the walk, and what it saw, if the plugin breaks one.
pub fn check<R: Rig>(mut make: impl FnMut() -> R) {
    for (name, rule) in rules::RULES {
        let said = Said(format!("rule `{name}`"));
        rule(&mut make());
        std::mem::forget(said);
    }
    let asked = std::env::var("QVS_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in asked.into_iter().chain(0..WALKS) {
        let said = Said(format!("walk with QVS_SEED={seed}"));
        walk::walk(&mut make(), seed, WALK_STEPS);
        std::mem::forget(said);
    }
}

/// Says where it was when a rule panics.
struct Said(String);

impl Drop for Said {
    fn drop(&mut self) {
        eprintln!("the plugin breaks {}", self.0);
    }
}

/// Numbers that look random and come again with the seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound.max(1) as u64) as usize
    }

    fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.below(among.len())]
    }
}
