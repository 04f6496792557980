//! What the Essex release's Quantum kept in its database, taken over: tenants' networks, ports and attachments, with their ids.
//!
//! It reads an SQL dump of the tables that all its plugins had. What only its agents needed, VLANs
//! and the like, is left out: networks get their segments here, by the same rules as one that a tenant makes. What a tenant would
//! notice to be missing is refused; what nobody could see, like ports of a network that is gone, is left out and told. Pure.

mod dump;

use super::Backup;
use crate::address_pair::AddressPairs;
use crate::model::{AdminState, Change, Inconsistent, LogicalPort, Model, Network, NetworkId, TEXT_BYTES_MAX, Text};
use crate::network_type::{NetworkType, SegmentRules};
use dump::{Row, Wrong};
use std::collections::BTreeMap;
use std::collections::HashSet;

/// What the original's Cisco plugin left of an attachment that was unplugged.
const DETACHED: &str = "(detached)";

/// Why a dump cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum EssexError {
    /// It is no text.
    #[error("this is no SQL dump: it is not UTF-8 after {valid} bytes")]
    NoText {
        /// Bytes before.
        valid: usize,
    },
    /// It holds nothing of the original's.
    #[error("this is no dump of Quantum's database: no row of a table networks")]
    NoNetworks,
    /// Something on this line is not as it should be.
    #[error("line {line}: {why}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// The rows contradict each other.
    #[error("the database contradicts itself: {0}")]
    Inconsistent(#[from] Inconsistent),
    /// There are more networks than segments for them.
    #[error(
        "the database has {networks} networks and the settings have segments of type {kind} for {segments} of them: \
         widen the range in [segments]"
    )]
    TooFewSegments {
        /// Networks there are.
        networks: usize,
        /// How many of them got one.
        segments: usize,
        /// The type of networks that the settings make.
        kind: &'static str,
    },
}

impl From<Wrong> for EssexError {
    fn from(wrong: Wrong) -> EssexError {
        EssexError::Line { line: wrong.line, why: wrong.why }
    }
}

/// What is taken over.
#[derive(Clone, PartialEq, Debug)]
pub struct Essex {
    /// The records; no plugs, which the original did not know.
    pub backup: Backup,
    /// What was left out or changed, a sentence each.
    pub notes: Vec<String>,
}

impl Essex {
    /// Reads a dump; its networks get their segments by these rules.
    ///
    /// # Errors
    /// [`EssexError`]
    pub fn read(dump: &[u8], rules: &SegmentRules) -> Result<Essex, EssexError> {
        let dump = std::str::from_utf8(dump).map_err(|error| EssexError::NoText { valid: error.valid_up_to() })?;
        let mut tables = dump::rows(dump, &["networks", "ports", "vlan_bindings"])?;
        let mut notes = Vec::new();
        let mut backup = Backup::default();
        for row in tables.remove("networks").ok_or(EssexError::NoNetworks)? {
            let serial = backup.networks.len() as u64;
            backup.networks.push(network(&row, serial)?);
        }
        let ids: HashSet<NetworkId> = backup.networks.iter().map(|network| network.id.clone()).collect();
        for row in tables.remove("ports").unwrap_or_default() {
            let serial = backup.networks.len() as u64 + backup.ports.len() as u64;
            let port = port(&row, serial, &mut notes)?;
            if ids.contains(&port.network) {
                backup.ports.push(port);
            } else {
                notes.push(format!("port {} is left out: its network {} is gone", port.id, port.network));
            }
        }
        let vlans = tables.remove("vlan_bindings").map_or(0, |rows| rows.len());
        if vlans > 0 {
            notes.push(format!(
                "{vlans} VLAN bindings are left out: networks get segments by the settings ([segments])"
            ));
        }
        backup.check()?;
        allot(&mut backup.networks, rules)?;
        if *rules == SegmentRules::Local {
            notes.push("every network stays within one host: segments.default is \"local\"".to_owned());
        }
        Ok(Essex { backup, notes })
    }

    /// How many networks and ports each tenant gets, by tenant.
    pub fn by_tenant(&self) -> BTreeMap<Text, (usize, usize)> {
        let mut counts: BTreeMap<Text, (usize, usize)> = BTreeMap::new();
        let tenants: BTreeMap<&NetworkId, &Text> =
            self.backup.networks.iter().map(|network| (&network.id, &network.tenant)).collect();
        for network in &self.backup.networks {
            counts.entry(network.tenant.clone()).or_default().0 += 1;
        }
        for tenant in self.backup.ports.iter().filter_map(|port| tenants.get(&port.network)) {
            counts.entry((*tenant).clone()).or_default().1 += 1;
        }
        counts
    }
}

/// Gives networks the segments that they would have got had they been made one after the other.
fn allot(networks: &mut [Network], rules: &SegmentRules) -> Result<(), EssexError> {
    let mut model = Model::default();
    let count = networks.len();
    for (segments, network) in networks.iter_mut().enumerate() {
        let allotted = rules.allot(&model, None, |_| false);
        network.network_type =
            allotted.map_err(|_| EssexError::TooFewSegments { networks: count, segments, kind: rules.name() })?;
        model.apply(&Change::PutNetwork(network.clone()));
    }
    Ok(())
}

fn bad(row: &Row, why: String) -> EssexError {
    EssexError::Line { line: row.line, why }
}

/// A value that may be NULL or empty, which are one to the original; a column that is not there is NULL.
fn optional(row: &Row, column: &str) -> Result<Option<Text>, EssexError> {
    let value = row.values.get(column).and_then(Option::as_deref).filter(|value| !value.is_empty());
    match value {
        Some(value) if value.len() > TEXT_BYTES_MAX => {
            Err(bad(row, format!("{column} has {} bytes, more than {TEXT_BYTES_MAX}", value.len())))
        }
        Some(value) if value.contains('\0') => Err(bad(row, format!("{column} has a NUL character"))),
        value => Ok(value.map(Text::from)),
    }
}

fn required(row: &Row, column: &str) -> Result<Text, EssexError> {
    optional(row, column)?.ok_or_else(|| bad(row, format!("{column} is missing")))
}

fn network(row: &Row, serial: u64) -> Result<Network, EssexError> {
    Ok(Network {
        id: required(row, "uuid")?,
        tenant: required(row, "tenant_id")?,
        name: optional(row, "name")?,
        network_type: NetworkType::Local,
        serial,
    })
}

fn port(row: &Row, serial: u64, notes: &mut Vec<String>) -> Result<LogicalPort, EssexError> {
    let id = required(row, "uuid")?;
    let state = match optional(row, "state")?.as_deref() {
        None => AdminState::Down,
        Some(name) => AdminState::from_name(name).ok_or_else(|| bad(row, format!("port {id} has state {name:?}")))?,
    };
    let attachment = optional(row, "interface_id")?.filter(|attachment| {
        let is_detached = attachment.ends_with(DETACHED);
        if is_detached {
            notes.push(format!("port {id} has no attachment: {attachment:?} was unplugged"));
        }
        !is_detached
    });
    let network = required(row, "network_id")?;
    Ok(LogicalPort { network, id, state, attachment, pairs: AddressPairs::default(), serial })
}

#[cfg(test)]
mod tests;
