//! The operations on networks.

use super::route::Row;
use super::{Answer, Call, Dialect, Handler, Refusal, Version, body, filters, ports};
use crate::document::{Fields, Value};
use crate::plugin::{NetworkDetails, Ports};

/// The rows.
pub(super) const ROWS: &[Row<Handler>] = &[
    Row::new("GET", "/tenants/{tenant}/networks", |call| list(call, brief)),
    Row::new("GET", "/tenants/{tenant}/networks/detail", |call| list(call, full)),
    Row::new("POST", "/tenants/{tenant}/networks", create),
    Row::new("GET", "/tenants/{tenant}/networks/{network}", |call| show(call, Ports::Omitted)),
    Row::new("GET", "/tenants/{tenant}/networks/{network}/detail", |call| show(call, Ports::Listed)),
    Row::new("PUT", "/tenants/{tenant}/networks/{network}", update),
    Row::new("DELETE", "/tenants/{tenant}/networks/{network}", delete),
];

fn list(call: &Call<'_>, view: fn(&NetworkDetails, Version) -> Fields) -> Result<Answer, Refusal> {
    let networks = call.plugin.get_all_networks(call.tenant(), &filters::networks(&call.request.query))?;
    let objects = networks.iter().map(|network| view(network, call.request.version)).collect();
    Ok(Answer::Told("networks", Value::List { item: "network", objects }))
}

fn create(call: &Call<'_>) -> Result<Answer, Refusal> {
    let name = body::new_network(call)?;
    let id = call.plugin.create_network(call.tenant(), name)?;
    call.made(&id);
    Ok(Answer::Made("network", Value::Object(vec![("id", Value::Attribute(id))])))
}

fn show(call: &Call<'_>, ports: Ports) -> Result<Answer, Refusal> {
    let network = call.plugin.get_network_details(call.tenant(), call.network(), ports)?;
    Ok(Answer::Told("network", Value::Object(full(&network, call.request.version))))
}

fn update(call: &Call<'_>) -> Result<Answer, Refusal> {
    let row = call.told_if_there(body::network_update(call)?)?;
    match call.request.dialect {
        Dialect::Plain => call.plugin.update_network(call.tenant(), call.network(), row.name)?,
        Dialect::StrictEssex => call.plugin.overwrite_network(call.tenant(), call.network(), &row)?,
    }
    Ok(Answer::Done)
}

fn delete(call: &Call<'_>) -> Result<Answer, Refusal> {
    call.plugin.delete_network(call.tenant(), call.network())?;
    Ok(Answer::Done)
}

fn brief(network: &NetworkDetails, _: Version) -> Fields {
    vec![("id", Value::Attribute(network.id.clone()))]
}

/// Everything, and the ports with their attachments if it is told with them. The order is that of the original's JSON.
fn full(network: &NetworkDetails, version: Version) -> Fields {
    let id = ("id", Value::Attribute(network.id.clone()));
    let name = ("name", network.name.clone().map_or(Value::Absent, Value::Attribute));
    let ports = network.ports.iter().map(|ports| {
        let objects = ports.iter().map(|port| ports::with_attachment(port, version)).collect();
        ("ports", Value::List { item: "port", objects })
    });
    let rest = match version {
        Version::V1_0 => vec![name, id],
        Version::V1_1 => vec![("op-status", Value::Word(network.op_status.name())), id, name],
    };
    ports.chain(rest).collect()
}
