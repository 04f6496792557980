//! The Quantum API of the Essex release, `/v1.1` (specification sections 2 to 9).
//!
//! What the versions share is here: routes, negotiation, bodies, filters. What differs is a table of its own per version:
//! [`v1_1`] holds the views, the status of a creation and the faults of v1.1; v1.0 becomes a second one beside it.
//! A request has become text and bytes within their limits before it comes here, and any text is answered.

mod body;
mod filters;
mod negotiate;
mod route;
pub mod v1_1;

use crate::model::TEXT_BYTES_MAX;
use crate::plugin::{Fault, Plugin, Ports};
use crate::reply::Reply;
use body::{BadRequest, Required};
pub(crate) use negotiate::is_xml;
use route::{Operation, Routed};

/// What the 404 page says of a request for XML.
pub(crate) const NO_XML: &str = "XML is not served.";

/// What a request to this API is, apart from the version prefix.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The path after `/v1.1`, percent-decoded.
    pub path: String,
    /// The query's pairs in order, decoded.
    pub query: Vec<(String, String)>,
    /// The Content-Type header.
    pub content_type: Option<String>,
    /// The Accept header.
    pub accept: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

/// Why a request gets no success.
enum Refusal {
    BadRequest(BadRequest),
    Fault(Fault),
}

impl From<BadRequest> for Refusal {
    fn from(bad: BadRequest) -> Refusal {
        Refusal::BadRequest(bad)
    }
}

impl<E: Into<Fault>> From<E> for Refusal {
    fn from(fault: E) -> Refusal {
        Refusal::Fault(fault.into())
    }
}

/// Answers a request.
///
/// XML comes with v1.0. Until then a request that names XML by suffix or Content-Type is for something not served and
/// gets 404; one that merely accepts it gets JSON, as one that accepts only HTML always did.
pub fn answer(plugin: &dyn Plugin, request: &Request) -> Reply {
    let not_found = |detail| Reply::not_found(request.accept.as_deref(), request.method == "HEAD", detail);
    let Some(routed) = route::parse(&request.method, &request.path) else { return not_found("") };
    if is_xml(routed.suffix, request.content_type.as_deref()) {
        return not_found(NO_XML);
    }
    match perform(plugin, &routed, request) {
        Ok(reply) => reply,
        Err(Refusal::BadRequest(bad)) => v1_1::bad_request(&bad),
        Err(Refusal::Fault(fault)) => v1_1::fault(&fault, request.accept.as_deref()),
    }
}

fn perform(plugin: &dyn Plugin, routed: &Routed<'_>, request: &Request) -> Result<Reply, Refusal> {
    let tenant = routed.tenant;
    if tenant.len() > TEXT_BYTES_MAX || tenant.contains('\0') {
        return Err(BadRequest::Unusable.into());
    }
    Ok(match routed.operation {
        Operation::ListNetworks(detail) => {
            let networks = plugin.get_all_networks(tenant, &filters::networks(&request.query))?;
            v1_1::network_list(&networks, detail)
        }
        Operation::CreateNetwork => {
            let name = body::network_name(&request.body)?;
            v1_1::created_network(&plugin.create_network(tenant, name)?)
        }
        Operation::ShowNetwork(network, detail) => {
            let ports = if detail { Ports::Listed } else { Ports::Omitted };
            v1_1::network(&plugin.get_network_details(tenant, network, ports)?)
        }
        Operation::UpdateNetwork(network) => {
            let name = body::network_name(&request.body)?;
            plugin.update_network(tenant, network, name)?;
            Reply::no_content()
        }
        Operation::DeleteNetwork(network) => {
            plugin.delete_network(tenant, network)?;
            Reply::no_content()
        }
        Operation::ListPorts(network, detail) => {
            let ports = plugin.get_all_ports(tenant, network, &filters::ports(&request.query))?;
            v1_1::port_list(&ports, detail)
        }
        Operation::CreatePort(network) => {
            let state = body::port_state(&request.body, Required::No)?;
            v1_1::created_port(&plugin.create_port(tenant, network, &state)?)
        }
        Operation::ShowPort(network, port, detail) => {
            v1_1::port(&plugin.get_port_details(tenant, network, port)?, detail)
        }
        Operation::UpdatePort(network, port) => {
            let state = body::port_state(&request.body, Required::Yes)?;
            plugin.update_port(tenant, network, port, &state)?;
            Reply::no_content()
        }
        Operation::DeletePort(network, port) => {
            plugin.delete_port(tenant, network, port)?;
            Reply::no_content()
        }
        Operation::GetAttachment(network, port) => {
            v1_1::attachment(plugin.get_port_details(tenant, network, port)?.attachment.as_deref())
        }
        Operation::Plug(network, port) => {
            let attachment = body::attachment_id(&request.body)?;
            plugin.plug_interface(tenant, network, port, &attachment)?;
            Reply::no_content()
        }
        Operation::Unplug(network, port) => {
            plugin.unplug_interface(tenant, network, port)?;
            Reply::no_content()
        }
    })
}
