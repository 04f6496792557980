//! From what tenants and operators asked for to the switch's config. Pure; the whole state each time.
//!
//! An index, once given, stays with its network or interface for its life in [`Indices`], because the MAC table and
//! the workers' counters are keyed by it.

use crate::host::Plug;
use crate::model::{InterfaceId, Model, NetworkId, PortId};
use std::collections::{BTreeMap, HashMap};
use switch::config::Config;
use switch::ids::{NetworkIndex, PortIndex};

/// Which index belongs to which network and which interface. Freed ones are reused oldest first.
#[derive(Default, Debug)]
pub struct Indices {
    /// By network id.
    pub networks: HashMap<NetworkId, NetworkIndex>,
    /// By interface id.
    pub ports: HashMap<InterfaceId, PortIndex>,
}

/// Why a plugged interface is on no network although a logical port names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unbound {
    /// The plug is for another tenant (`claimed-by-other`).
    ClaimedByOther,
}

/// The outcome of lowering.
pub struct Lowered {
    /// The config to publish.
    pub config: Config,
    /// Interfaces kept off the network their logical port is on, and why.
    pub unbound: HashMap<InterfaceId, (PortId, Unbound)>,
}

/// Lowers the whole state.
pub fn lower(_model: &Model, _plugs: &BTreeMap<InterfaceId, Plug>, _indices: &mut Indices) -> Lowered {
    Lowered { config: Config::default(), unbound: HashMap::new() }
}
