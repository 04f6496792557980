//! `Cisco Multiport`: one port on each of several networks in one call, which is one change: all of them or none.

use super::Extension;
use super::legacy::{self, BodyFormat, Params};
use crate::document::Value;
use crate::v1::route::Row;
use crate::v1::{Answer, Call, Handler, Refusal};

const COLLECTION: &str = "/extensions/csco/tenants/{tenant}/multiport";
/// Ports that one call may make: what it changes is committed and put in force as a whole, and others wait for that.
const PORTS_MAX: usize = 64;
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
    // As with a port alone, none is DOWN.
    let state = Some(params.text("status", call)?).filter(|state| !state.is_empty()).unwrap_or_else(|| "DOWN".into());
    if networks.len() > PORTS_MAX {
        return Err(legacy::refuse(legacy::MALFORMED, call));
    }
    let made = call.plugin.create_ports(call.tenant(), &networks, &state)?;
    made.iter().for_each(|id| call.made(id));
    let objects = made.into_iter().map(|id| vec![("id", Value::Element(id))]).collect();
    Ok(legacy::told("ports", Value::List { item: "port", objects }, call))
}
