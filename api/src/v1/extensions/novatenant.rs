//! `Cisco Nova Tenant`: what Nova's scheduler and VIF driver ask about an instance. Here every interface is carried by this
//! host, and nothing has to be reserved or given back.

use super::Extension;
use super::legacy::{self, BodyFormat, Params};
use crate::document::Value;
use crate::host::automatic_name;
use crate::plugin::{NetworkFilter, PortFilter};
use crate::policy::Action;
use crate::v1::route::Row;
use crate::v1::{Answer, Call, Handler, Refusal};

const COLLECTION: &str = "/extensions/csco/tenants/{tenant}/novatenants";
const MEMBER: &str = "/extensions/csco/tenants/{tenant}/novatenants/{novatenant}";
const SCHEDULE_HOST: &str = "/extensions/csco/tenants/{tenant}/novatenants/{novatenant}/schedule_host";
const ASSOCIATE_PORT: &str = "/extensions/csco/tenants/{tenant}/novatenants/{novatenant}/associate_port";
const DETACH_PORT: &str = "/extensions/csco/tenants/{tenant}/novatenants/{novatenant}/detach_port";
const ROWS: &[Row<Handler>] = &[
    Row::new("POST", COLLECTION, dummy),
    Row::new("GET", MEMBER, dummy),
    Row::new("PUT", MEMBER, dummy),
    Row::new("DELETE", MEMBER, dummy),
    Row::new("PUT", SCHEDULE_HOST, schedule_host),
    Row::new("PUT", ASSOCIATE_PORT, associate_port),
    Row::new("PUT", DETACH_PORT, detach_port),
];

pub(super) const EXTENSION: Extension = Extension {
    name: "Cisco Nova Tenant",
    alias: "Cisco Nova Tenant",
    description: "novatenant resource is used by nova side to invoke quantum api",
    namespace: "http://docs.ciscocloud.com/api/ext/novatenant/v1.0",
    updated: "2011-08-09T13:25:27-06:00",
    is_for: |_, _| true,
    rows: ROWS,
    actions: &[],
    amendments: &[],
};

fn dummy(_: &Call<'_>) -> Result<Answer, Refusal> {
    Ok(legacy::said("novatenant is a dummy resource"))
}

fn schedule_host(call: &Call<'_>) -> Result<Answer, Refusal> {
    read(call)?;
    let host = vec![("host_1", Value::Element(call.extensions.host.clone()))];
    Ok(legacy::told("host_list", Value::Object(host), call))
}

/// The device of the instance's interface, `vif_id` in its description, and the profile of the port it is plugged into. A
/// device that is not known has the name that Nova of the time gives one, none is an empty one.
fn associate_port(call: &Call<'_>) -> Result<Answer, Refusal> {
    let params = read(call)?;
    let not_found = || legacy::refuse(legacy::PORT_NOT_FOUND, call);
    let vif = params.value("instance_desc")["vif_id"].as_str().ok_or_else(not_found)?;
    let filter = NetworkFilter { attachment: Some(vif.to_owned()), ..NetworkFilter::default() };
    let networks = call.plugin.get_all_networks(call.tenant(), &filter)?;
    let network = networks.first().ok_or_else(not_found)?;
    let filter = PortFilter { attachment: Some(vif.to_owned()), ..PortFilter::default() };
    let ports = call.plugin.get_all_ports(call.tenant(), &network.id, &filter)?;
    let port = ports.first().ok_or_else(not_found)?;
    let is_seen = call.may(Action::GetProfile);
    let profiles = if is_seen { call.extensions.kept.profiles.of(call.tenant()) } else { Vec::new() };
    let is_associated = |ports: &[super::portprofile::AssociatedPort]| ports.iter().any(|it| it.port == port.id);
    let profile = profiles.into_iter().find(|(_, profile)| is_associated(&profile.ports));
    let device = call.plugin.get_port_device(call.tenant(), &network.id, &port.id)?;
    let device = device.or_else(|| automatic_name("tap", vif).map(Into::into)).unwrap_or_else(|| "".into());
    let fields = vec![
        ("device", Value::Element(device)),
        ("portprofile", Value::Element(profile.map_or("".into(), |(_, profile)| profile.name))),
    ];
    Ok(legacy::told("vif_desc", Value::Object(fields), call))
}

fn detach_port(call: &Call<'_>) -> Result<Answer, Refusal> {
    read(call)?;
    Ok(legacy::told("result", Value::Flag(true), call))
}

fn read(call: &Call<'_>) -> Result<Params, Refusal> {
    Params::read(call, BodyFormat::Negotiated, "novatenant", &["instance_id", "instance_desc"])
}
