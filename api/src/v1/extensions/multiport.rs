//! `Cisco Multiport`: one port on each of several networks in one call. All of them or none: if one cannot be made, those
//! that were made before it go again.

use super::Extension;
use super::legacy::{self, BodyFormat, Params};
use crate::document::Value;
use crate::plugin::Ports;
use crate::v1::route::Row;
use crate::v1::{Answer, Call, Handler, Refusal};

const COLLECTION: &str = "/extensions/csco/tenants/{tenant}/multiport";
/// Networks that one call may name; each is a write of its own.
const NETWORKS_MAX: usize = 64;
const ROWS: &[Row<Handler>] = &[Row::new("POST", COLLECTION, create)];

pub(super) const EXTENSION: Extension = Extension {
    name: "Cisco Multiport",
    alias: "Cisco Multiport",
    description: "handle multiple ports in one call",
    namespace: "http://docs.ciscocloud.com/api/ext/multiport/v1.0",
    updated: "2011-08-25T13:25:27-06:00",
    is_for: |_, _| true,
    rows: ROWS,
    actions: &[],
    amendments: &[],
};

fn create(call: &Call<'_>) -> Result<Answer, Refusal> {
    let required = ["net_id_list", "status", "ports_desc"];
    let params = Params::read(call, BodyFormat::Declared, "multiport", &required)?;
    let networks = params.texts("net_id_list", call)?;
    let state = params.text("status", call)?;
    if networks.len() > NETWORKS_MAX {
        return Err(legacy::refuse(legacy::MALFORMED, call));
    }
    // Most mistakes are known before anything is made.
    for network in &networks {
        call.plugin.get_network_details(call.tenant(), network, Ports::Omitted)?;
    }
    let mut made = Vec::new();
    for network in &networks {
        match call.plugin.create_port(call.tenant(), network, &state) {
            Ok(port) => made.push(port),
            Err(error) => {
                for (network, port) in std::iter::zip(&networks, &made) {
                    // What cannot be taken back now is the tenant's to see and to remove.
                    let _ = call.plugin.delete_port(call.tenant(), network, port);
                }
                return Err(error.into());
            }
        }
    }
    let objects = made.into_iter().map(|id| vec![("id", Value::Element(id))]).collect();
    Ok(legacy::told("ports", Value::List { item: "port", objects }, call))
}
