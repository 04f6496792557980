//! What a record is in a store, on the disk or in etcd: one byte of record version, then JSON. Pure.
//!
//! The types here are the disk's own, apart from the model's, so that the model may change without changing files.
//! Fields are only added, and always optional; a reader ignores those it does not know.

use super::StoreError;
use crate::address_pair::AddressPairs;
use crate::host::Plug;
use crate::model::{AdminState, InterfaceId, LogicalPort, Network, NetworkId, Text};
use crate::network_type::NetworkType;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The record version written here.
const RECORD_VERSION: u8 = 1;

/// A network; its key is its id.
#[derive(Serialize, Deserialize)]
struct NetworkRecord {
    tenant: Text,
    name: Option<Text>,
    #[serde(default, skip_serializing_if = "NetworkType::is_local")]
    segment: NetworkType,
    serial: u64,
}

/// A logical port; its key is its id.
#[derive(Serialize, Deserialize)]
struct PortRecord {
    network: NetworkId,
    state: AdminState,
    attachment: Option<InterfaceId>,
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    allowed_address_pairs: AddressPairs,
    serial: u64,
}

pub(crate) fn of_network(network: &Network) -> Vec<u8> {
    encode(&NetworkRecord {
        tenant: network.tenant.clone(),
        name: network.name.clone(),
        segment: network.network_type.clone(),
        serial: network.serial,
    })
}

pub(crate) fn of_port(port: &LogicalPort) -> Vec<u8> {
    encode(&PortRecord {
        network: port.network.clone(),
        state: port.state,
        attachment: port.attachment.clone(),
        allowed_address_pairs: port.pairs.clone(),
        serial: port.serial,
    })
}

pub(crate) fn of_plug(plug: &Plug) -> Vec<u8> {
    encode(plug)
}

pub(crate) fn network(key: &str, value: &[u8]) -> Result<Network, StoreError> {
    let record: NetworkRecord = decode("networks", key, value)?;
    Ok(Network {
        id: key.into(),
        tenant: record.tenant,
        name: record.name,
        network_type: record.segment,
        serial: record.serial,
    })
}

pub(crate) fn port(key: &str, value: &[u8]) -> Result<LogicalPort, StoreError> {
    let record: PortRecord = decode("ports", key, value)?;
    Ok(LogicalPort {
        id: key.into(),
        network: record.network,
        state: record.state,
        attachment: record.attachment,
        pairs: record.allowed_address_pairs,
        serial: record.serial,
    })
}

pub(crate) fn plug(key: &str, value: &[u8]) -> Result<Plug, StoreError> {
    let plug: Plug = decode("plugs", key, value)?;
    if &*plug.interface == key {
        Ok(plug)
    } else {
        Err(StoreError::BadRecord { table: "plugs", key: key.to_owned(), why: "it is of another interface".to_owned() })
    }
}

fn encode(record: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![RECORD_VERSION];
    serde_json::to_writer(&mut bytes, record).expect("records have only text keys, and a Vec takes every write");
    bytes
}

fn decode<T: DeserializeOwned>(table: &'static str, key: &str, value: &[u8]) -> Result<T, StoreError> {
    let bad = |why| StoreError::BadRecord { table, key: key.to_owned(), why };
    match value {
        [RECORD_VERSION, json @ ..] => serde_json::from_slice(json).map_err(|error| bad(error.to_string())),
        [other, ..] => Err(bad(format!("it has version {other}, this program knows {RECORD_VERSION}"))),
        [] => Err(bad("it is empty".to_owned())),
    }
}
