//! What is v1.1's own: its views, the 202 of a creation, its faults (specification sections 4 to 6). Pure.
//!
//! Keys are in the order of the recordings, so that answers can be compared with them byte for byte; clients must not
//! rely on it.

use super::body::BadRequest;
use crate::model::TEXT_BYTES_MAX;
use crate::plugin::{Fault, NetworkDetails, PortDetails};
use crate::reply::Reply;
use axum::http::StatusCode;
use serde::Serialize;

/// The message of most 400 answers.
const NOT_COMPLIED: &str =
    "The server could not comply with the request since it is either malformed or otherwise incorrect.";

#[derive(Serialize)]
struct NetworkBody<T> {
    network: T,
}

#[derive(Serialize)]
struct NetworksBody<T> {
    networks: Vec<T>,
}

#[derive(Serialize)]
struct PortBody<T> {
    port: T,
}

#[derive(Serialize)]
struct PortsBody<T> {
    ports: Vec<T>,
}

#[derive(Serialize)]
struct AttachmentBody<'a> {
    attachment: AttachmentView<'a>,
}

#[derive(Serialize)]
struct BriefView<'a> {
    id: &'a str,
}

#[derive(Serialize)]
struct NetworkView<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    ports: Option<Vec<PortView<'a>>>,
    #[serde(rename = "op-status")]
    op_status: &'static str,
    id: &'a str,
    name: Option<&'a str>,
}

#[derive(Serialize)]
struct PortView<'a> {
    #[serde(rename = "op-status")]
    op_status: &'static str,
    state: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    attachment: Option<BriefView<'a>>,
}

#[derive(Serialize)]
struct AttachmentView<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

impl<'a> NetworkView<'a> {
    fn of(network: &'a NetworkDetails) -> NetworkView<'a> {
        let ports = network.ports.as_ref();
        NetworkView {
            ports: ports.map(|ports| ports.iter().map(|port| PortView::of(port, true)).collect()),
            op_status: network.op_status.name(),
            id: &network.id,
            name: network.name.as_deref(),
        }
    }
}

impl<'a> PortView<'a> {
    fn of(port: &'a PortDetails, is_attachment_shown: bool) -> PortView<'a> {
        let attachment = port.attachment.as_deref().filter(|_| is_attachment_shown);
        PortView {
            op_status: port.op_status.name(),
            state: port.state.name(),
            id: &port.id,
            attachment: attachment.map(|id| BriefView { id }),
        }
    }
}

/// 202 with a new network's id.
pub(super) fn created_network(id: &str) -> Reply {
    Reply::json(StatusCode::ACCEPTED, &NetworkBody { network: BriefView { id } })
}

/// 202 with a new port's id.
pub(super) fn created_port(id: &str) -> Reply {
    Reply::json(StatusCode::ACCEPTED, &PortBody { port: BriefView { id } })
}

/// One network, with its ports and their attachments if it is told with them.
pub(super) fn network(network: &NetworkDetails) -> Reply {
    Reply::json(StatusCode::OK, &NetworkBody { network: NetworkView::of(network) })
}

/// Networks, never with ports.
pub(super) fn network_list(networks: &[NetworkDetails], is_detailed: bool) -> Reply {
    if is_detailed {
        Reply::json(StatusCode::OK, &NetworksBody { networks: networks.iter().map(NetworkView::of).collect() })
    } else {
        let networks = networks.iter().map(|network| BriefView { id: &network.id }).collect();
        Reply::json(StatusCode::OK, &NetworksBody { networks })
    }
}

/// One port, with its attachment only in detail.
pub(super) fn port(port: &PortDetails, is_detailed: bool) -> Reply {
    Reply::json(StatusCode::OK, &PortBody { port: PortView::of(port, is_detailed) })
}

/// Ports, never with attachments.
pub(super) fn port_list(ports: &[PortDetails], is_detailed: bool) -> Reply {
    if is_detailed {
        Reply::json(StatusCode::OK, &PortsBody { ports: ports.iter().map(|port| PortView::of(port, false)).collect() })
    } else {
        Reply::json(StatusCode::OK, &PortsBody { ports: ports.iter().map(|port| BriefView { id: &port.id }).collect() })
    }
}

/// A port's attachment.
pub(super) fn attachment(id: Option<&str>) -> Reply {
    Reply::json(StatusCode::OK, &AttachmentBody { attachment: AttachmentView { id } })
}

#[derive(Serialize)]
struct FaultBody<'a> {
    #[serde(rename = "QuantumError")]
    fault: FaultView<'a>,
}

#[derive(Serialize)]
struct FaultView<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    detail: &'a str,
}

fn quantum_error(status: StatusCode, kind: &str, message: &str, detail: &str) -> Reply {
    Reply::json(status, &FaultBody { fault: FaultView { message, kind, detail } })
}

/// The answer to a request whose text is wrong (specification section 6.3).
pub(super) fn bad_request(bad: &BadRequest) -> Reply {
    let service_fault =
        |detail: &str| quantum_error(StatusCode::BAD_REQUEST, "QuantumServiceFault", NOT_COMPLIED, detail);
    match bad {
        BadRequest::Unusable => Reply::error(StatusCode::BAD_REQUEST, NOT_COMPLIED),
        BadRequest::Malformed => Reply::error(StatusCode::BAD_REQUEST, "Malformed request body"),
        BadRequest::NoResource(name) => service_fault(&format!("Unable to find '{name}' in request body")),
        BadRequest::NotSpecified(name) => {
            service_fault(&format!("Failed to parse request. Parameter: {name} not specified"))
        }
        BadRequest::NotText(name) => service_fault(&format!("Failed to parse request. Parameter: {name} is not text")),
        BadRequest::TooLong(name) => {
            service_fault(&format!("Failed to parse request. Parameter: {name} is longer than {TEXT_BYTES_MAX} bytes"))
        }
        BadRequest::HasNul(name) => {
            service_fault(&format!("Failed to parse request. Parameter: {name} has a NUL character"))
        }
    }
}

/// The answer to what the policy does not allow: the border's page, as no version has a fault for it.
fn forbidden(accept: Option<&str>) -> Reply {
    Reply::page(StatusCode::FORBIDDEN, accept, false, "The roles of the token do not allow this.", "")
}

/// The answer to a plugin's refusal (specification section 6.2). The missing quote and space of a port in use are real.
/// Pages of the border depend on the Accept header.
pub(super) fn fault(fault: &Fault, accept: Option<&str>) -> Reply {
    match fault {
        Fault::NetworkNotFound(it) => quantum_error(
            StatusCode::NOT_FOUND,
            "NetworkNotFound",
            "Unable to find a network with the specified identifier.",
            &format!("Network {} could not be found", it.network),
        ),
        Fault::NetworkInUse(it) => quantum_error(
            StatusCode::CONFLICT,
            "NetworkInUse",
            "Unable to remove the network: attachments still plugged.",
            &format!(
                "Unable to complete operation on network {}. There is one or more attachments plugged into its ports.",
                it.network
            ),
        ),
        Fault::PortNotFound(it) => quantum_error(
            StatusCode::NOT_FOUND,
            "PortNotFound",
            "Unable to find a port with the specified identifier.",
            &format!("Port {} could not be found on network {}", it.port, it.network),
        ),
        Fault::StateInvalid(it) => quantum_error(
            StatusCode::BAD_REQUEST,
            "RequestedStateInvalid",
            "Unable to update port state with specified value.",
            &format!("Unsupported port state: {}", it.state),
        ),
        Fault::PortInUse(it) => quantum_error(
            StatusCode::CONFLICT,
            "PortInUse",
            "A resource is currently attached to the logical port",
            &format!(
                "Unable to complete operation on port {} for network {}. \
                 The attachment '{}is plugged into the logical port.",
                it.port, it.network, it.attachment
            ),
        ),
        Fault::AlreadyAttached(it) => quantum_error(
            StatusCode::CONFLICT,
            "AlreadyAttached",
            "The resource is already attached to another port",
            &format!(
                "Unable to plug the attachment {} into port {} for network {}. \
                 The attachment is already plugged into port {}",
                it.attachment, it.port, it.network, it.holder
            ),
        ),
        Fault::Forbidden(_) => forbidden(accept),
        Fault::StoreFailed(it) => quantum_error(
            StatusCode::SERVICE_UNAVAILABLE,
            "ServiceUnavailable",
            "The change could not be stored and is not in force.",
            &it.why,
        ),
        Fault::BackendUnavailable(it) => quantum_error(
            StatusCode::SERVICE_UNAVAILABLE,
            "ServiceUnavailable",
            "The backend of the service does not answer.",
            &it.why,
        ),
        Fault::BackendFailed(it) => quantum_error(
            StatusCode::BAD_GATEWAY,
            "PluginFault",
            "The backend of the service did not do what was asked.",
            &it.why,
        ),
    }
}
