//! The operations on logical ports and on what is plugged into them.

use super::route::Row;
use super::{Answer, Call, Dialect, Handler, Refusal, Version, body, filters};
use crate::document::{Fields, Value};
use crate::plugin::PortDetails;

/// The rows.
pub(super) const ROWS: &[Row<Handler>] = &[
    Row::new("GET", "/tenants/{tenant}/networks/{network}/ports", |call| list(call, brief)),
    Row::new("GET", "/tenants/{tenant}/networks/{network}/ports/detail", |call| list(call, full)),
    Row::new("POST", "/tenants/{tenant}/networks/{network}/ports", create),
    Row::new("GET", "/tenants/{tenant}/networks/{network}/ports/{port}", |call| show(call, full)),
    Row::new("GET", "/tenants/{tenant}/networks/{network}/ports/{port}/detail", |call| show(call, with_attachment)),
    Row::new("PUT", "/tenants/{tenant}/networks/{network}/ports/{port}", update),
    Row::new("DELETE", "/tenants/{tenant}/networks/{network}/ports/{port}", delete),
    Row::new("GET", "/tenants/{tenant}/networks/{network}/ports/{port}/attachment", show_attachment),
    Row::new("PUT", "/tenants/{tenant}/networks/{network}/ports/{port}/attachment", plug),
    Row::new("DELETE", "/tenants/{tenant}/networks/{network}/ports/{port}/attachment", unplug),
];

type View = fn(&PortDetails, Version) -> Fields;

fn list(call: &Call<'_>, view: View) -> Result<Answer, Refusal> {
    let filter = filters::ports(&call.request.query);
    let ports = call.plugin.get_all_ports(call.tenant(), call.network(), &filter)?;
    let objects = ports.iter().map(|port| view(port, call.request.version)).collect();
    Ok(Answer::Told("ports", Value::List { item: "port", objects }))
}

fn create(call: &Call<'_>) -> Result<Answer, Refusal> {
    let (state, pairs) = call.told_if_there(body::new_port(call)?)?;
    let id = call.plugin.create_port_with_pairs(call.tenant(), call.network(), &state, &pairs)?;
    call.made(&id);
    Ok(Answer::Made("port", Value::Object(vec![("id", Value::Attribute(id))])))
}

fn show(call: &Call<'_>, view: View) -> Result<Answer, Refusal> {
    let port = details(call)?;
    Ok(Answer::Told("port", Value::Object(view(&port, call.request.version))))
}

fn update(call: &Call<'_>) -> Result<Answer, Refusal> {
    let (row, pairs) = call.told_if_there(body::port_update(call)?)?;
    let (tenant, network, port) = (call.tenant(), call.network(), call.port());
    match (call.request.dialect, pairs) {
        (Dialect::Plain, None) => call.plugin.update_port(tenant, network, port, &row.state)?,
        (Dialect::Plain, Some(pairs)) => {
            call.plugin.update_port_with_pairs(tenant, network, port, &row.state, &pairs)?;
        }
        // A row of the original had no place for pairs.
        (Dialect::StrictEssex, _) => call.plugin.overwrite_port(tenant, network, port, &row)?,
    }
    Ok(Answer::Done)
}

fn delete(call: &Call<'_>) -> Result<Answer, Refusal> {
    call.plugin.delete_port(call.tenant(), call.network(), call.port())?;
    Ok(Answer::Done)
}

/// The attachment as a resource: here its id is an element in XML.
fn show_attachment(call: &Call<'_>) -> Result<Answer, Refusal> {
    let id = details(call)?.attachment.map(|id| ("id", Value::Element(id)));
    Ok(Answer::Told("attachment", Value::Object(id.into_iter().collect())))
}

fn plug(call: &Call<'_>) -> Result<Answer, Refusal> {
    let attachment = call.told_if_there(body::attachment_id(call)?)?;
    call.attaches(&attachment);
    call.plugin.plug_interface(call.tenant(), call.network(), call.port(), &attachment)?;
    Ok(Answer::Done)
}

fn unplug(call: &Call<'_>) -> Result<Answer, Refusal> {
    call.plugin.unplug_interface(call.tenant(), call.network(), call.port())?;
    Ok(Answer::Done)
}

fn details(call: &Call<'_>) -> Result<PortDetails, Refusal> {
    Ok(call.plugin.get_port_details(call.tenant(), call.network(), call.port())?)
}

fn brief(port: &PortDetails, _: Version) -> Fields {
    vec![("id", Value::Attribute(port.id.clone()))]
}

/// A port without its attachment. The order is that of the original's JSON.
fn full(port: &PortDetails, version: Version) -> Fields {
    let op_status = match version {
        Version::V1_0 => None,
        Version::V1_1 => Some(("op-status", Value::Word(port.op_status.name()))),
    };
    let rest = [("state", Value::Word(port.state.name())), ("id", Value::Attribute(port.id.clone()))];
    op_status.into_iter().chain(rest).collect()
}

/// A port with its attachment, if it has one.
pub(super) fn with_attachment(port: &PortDetails, version: Version) -> Fields {
    let attachment = port.attachment.clone().map(|id| Value::Object(vec![("id", Value::Attribute(id))]));
    full(port, version).into_iter().chain(attachment.map(|value| ("attachment", value))).collect()
}
