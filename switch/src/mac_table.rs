//! The MAC table: (network, MAC) to port, written by every worker, read without a lock.
//!
//! Interface fixed here first; the table itself follows.
use crate::ids::{MacAddr, NetworkIndex, PortIndex};
use crate::worker::Now;

/// The table.
pub struct MacTable {}

/// What learning a source address came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Learned {
    /// The entry was there and says the same.
    Known,
    /// A new entry.
    New,
    /// The entry moved to this port.
    Moved,
    /// The entry belongs to another port that is up and was heard within [`MOVE_SILENCE_S`]; nothing changed.
    Refused,
    /// A static entry; never learnt over.
    Static,
    /// The port has reached its cap, or the table has no room: nothing was learnt.
    Full,
}

/// Seconds a port must have been silent before a MAC learnt there may move to another port while it is up.
pub const MOVE_SILENCE_S: u32 = 5;

/// One entry as `show macs` tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MacEntry {
    /// Its network.
    pub network: NetworkIndex,
    /// The address.
    pub mac: MacAddr,
    /// Where it lives.
    pub port: PortIndex,
    /// Set by the control side, never learnt away.
    pub is_static: bool,
    /// Seconds since it was last seen; 0 if static.
    pub age_s: u32,
}

impl MacTable {
    /// A table for at most `max` learnt entries that expire `age_s` seconds after they were last seen.
    pub fn new(_max: usize, _age_s: u32) -> MacTable {
        MacTable {}
    }
    /// Asks for the cache lines that a lookup of this pair will read.
    pub fn prefetch(&self, _network: NetworkIndex, _mac: MacAddr) {}
    /// Where the address lives.
    pub fn lookup(&self, _network: NetworkIndex, _mac: MacAddr, _now: Now) -> Option<PortIndex> {
        None
    }
    /// Notes that `mac` was seen as a source on `port`.
    pub fn learn(&self, _network: NetworkIndex, _mac: MacAddr, _port: PortIndex, _now: Now) -> Learned {
        Learned::Known
    }
    /// Like `learn`, but only tells what it would do; for traces.
    pub fn would_learn(&self, _network: NetworkIndex, _mac: MacAddr, _port: PortIndex, _now: Now) -> Learned {
        Learned::Known
    }
    /// Notes that frames came from `port` at `now`; a relaxed store at most once a second.
    pub fn heard(&self, _port: PortIndex, _now: Now) {}
    /// Tells whether the port is up: MACs of a port that is down may move at once.
    pub fn set_port_up(&self, _port: PortIndex, _is_up: bool) {}
    /// Enters a static address, replacing a learnt one.
    pub fn insert_static(&self, _network: NetworkIndex, _mac: MacAddr, _port: PortIndex) -> bool {
        true
    }
    /// Removes a static address.
    pub fn remove_static(&self, _network: NetworkIndex, _mac: MacAddr) {}
    /// Forgets the learnt entries of a port.
    pub fn flush_port(&self, _port: PortIndex) {}
    /// Forgets all entries of a network, static ones included.
    pub fn flush_network(&self, _network: NetworkIndex) {}
    /// Removes expired entries.
    pub fn sweep(&self, _now: Now) {}
    /// All entries; a moment's view while workers go on.
    pub fn entries(&self, _now: Now) -> Vec<MacEntry> {
        Vec::new()
    }
}
