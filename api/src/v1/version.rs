//! What differs between v1.0 and v1.1: names, the status of a creation, op-status in views, and faults, each as Quantum
//! 2012.1 had it. Everything else the versions share.

use super::body::{BadRequest, PAIRS};
use crate::document::{Document, Value};
use crate::format::Format;
use crate::model::TEXT_BYTES_MAX;
use crate::plugin::Fault;
use crate::reply::Reply;
use axum::http::StatusCode;

/// A version of this API.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// v1.0.
    V1_0,
    /// v1.1.
    V1_1,
}

/// How closely the original is followed where it was odd: `api/DEVIATIONS.md` has the list.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Dialect {
    /// As specified.
    #[default]
    Plain,
    /// `api.strict_essex`: its recorded oddities too.
    StrictEssex,
}

/// The message of most 400 answers.
const NOT_COMPLIED: &str =
    "The server could not comply with the request since it is either malformed or otherwise incorrect.";
/// What v1.0 calls a request whose text is wrong. In XML the blank makes it no element name.
const BAD_REQUEST: &str = "Bad Request";
/// What it is called where XML is to be XML.
const BAD_REQUEST_ELEMENT: &str = "BadRequest";
/// Faults in XML name their charset, successes do not.
const XML_FAULT: &str = "application/xml; charset=UTF-8";

/// One fault as each version calls it.
struct FaultRow {
    /// v1.0's status and name; the name is its reason phrase too.
    v1_0: (u16, &'static str),
    /// v1.1's status and type.
    v1_1: (u16, &'static str),
    /// The message of both.
    message: &'static str,
}

const NETWORK_NOT_FOUND: FaultRow = FaultRow {
    v1_0: (420, "networkNotFound"),
    v1_1: (404, "NetworkNotFound"),
    message: "Unable to find a network with the specified identifier.",
};
const NETWORK_IN_USE: FaultRow = FaultRow {
    v1_0: (421, "networkInUse"),
    v1_1: (409, "NetworkInUse"),
    message: "Unable to remove the network: attachments still plugged.",
};
const PORT_NOT_FOUND: FaultRow = FaultRow {
    v1_0: (430, "portNotFound"),
    v1_1: (404, "PortNotFound"),
    message: "Unable to find a port with the specified identifier.",
};
const STATE_INVALID: FaultRow = FaultRow {
    v1_0: (431, "requestedStateInvalid"),
    v1_1: (400, "RequestedStateInvalid"),
    message: "Unable to update port state with specified value.",
};
const PORT_IN_USE: FaultRow = FaultRow {
    v1_0: (432, "portInUse"),
    v1_1: (409, "PortInUse"),
    message: "A resource is currently attached to the logical port",
};
const ALREADY_ATTACHED: FaultRow = FaultRow {
    v1_0: (440, "alreadyAttached"),
    v1_1: (409, "AlreadyAttached"),
    message: "The resource is already attached to another port",
};
/// Not in the original, which had no quotas. Status and type are those of v2.0.
const OVER_QUOTA: FaultRow = FaultRow {
    v1_0: (409, "overQuota"),
    v1_1: (409, "OverQuota"),
    message: "The tenant has as many of these as it may have.",
};
/// Not in the original, which answered 500.
const STORE_FAILED: FaultRow = FaultRow {
    v1_0: (503, "serviceUnavailable"),
    v1_1: (503, "ServiceUnavailable"),
    message: "The store did not confirm the change, which may have been made or not: look before asking again.",
};
/// What the original's plugins raised to a 500 where their VLANs were used up; later versions of it answer 503.
const NO_SEGMENT_FREE: FaultRow = FaultRow {
    v1_0: (503, "serviceUnavailable"),
    v1_1: (503, "ServiceUnavailable"),
    message: "Unable to create the network: no segment is available for it.",
};
/// Not in the original either, whose plugins drove nothing or failed with 500.
const BACKEND_UNAVAILABLE: FaultRow = FaultRow {
    v1_0: (503, "serviceUnavailable"),
    v1_1: (503, "ServiceUnavailable"),
    message: "The backend of the service does not answer.",
};
/// The same.
const BACKEND_FAILED: FaultRow = FaultRow {
    v1_0: (502, "pluginFault"),
    v1_1: (502, "PluginFault"),
    message: "The backend of the service did not do what was asked.",
};

/// The row and the detail of a plugin's refusal; `None` for what the border says in front of all versions. The missing
/// quote and space of a port in use are real.
fn describe(fault: &Fault) -> Option<(&'static FaultRow, String)> {
    Some(match fault {
        Fault::NetworkNotFound(it) => (&NETWORK_NOT_FOUND, format!("Network {} could not be found", it.network)),
        Fault::NetworkInUse(it) => {
            let why = match it.too_many {
                None => "There is one or more attachments plugged into its ports.".to_owned(),
                Some(ports) => {
                    format!("Its {ports} ports are more than can be removed at once: remove some of them first.")
                }
            };
            (&NETWORK_IN_USE, format!("Unable to complete operation on network {}. {why}", it.network))
        }
        Fault::PortNotFound(it) => {
            (&PORT_NOT_FOUND, format!("Port {} could not be found on network {}", it.port, it.network))
        }
        Fault::StateInvalid(it) => (&STATE_INVALID, format!("Unsupported port state: {}", it.state)),
        Fault::PortInUse(it) => (
            &PORT_IN_USE,
            format!(
                "Unable to complete operation on port {} for network {}. \
                 The attachment '{}is plugged into the logical port.",
                it.port, it.network, it.attachment
            ),
        ),
        Fault::AlreadyAttached(it) => (
            &ALREADY_ATTACHED,
            format!(
                "Unable to plug the attachment {} into port {} for network {}. \
                 The attachment is already plugged into port {}",
                it.attachment, it.port, it.network, it.holder
            ),
        ),
        Fault::OverQuota(it) => (
            &OVER_QUOTA,
            format!(
                "Quota exceeded for {}s: {} of {} are in use, {} more were asked for",
                it.resource, it.used, it.limit, it.asked
            ),
        ),
        Fault::NoSegmentFree(it) => {
            (&NO_SEGMENT_FREE, format!("Every segment for networks of type {} is in use.", it.kind))
        }
        Fault::StoreFailed(it) => (&STORE_FAILED, it.why.to_string()),
        Fault::BackendUnavailable(it) => (&BACKEND_UNAVAILABLE, it.why.to_string()),
        Fault::BackendFailed(it) => (&BACKEND_FAILED, it.why.to_string()),
        Fault::Forbidden(_) => return None,
    })
}

impl Version {
    /// The versions in the order of the version list.
    pub const ALL: [Version; 2] = [Version::V1_0, Version::V1_1];

    /// Its id, which is the first segment of its paths.
    pub fn id(self) -> &'static str {
        match self {
            Version::V1_0 => "v1.0",
            Version::V1_1 => "v1.1",
        }
    }

    /// Its status in the version list.
    pub fn status(self) -> &'static str {
        match self {
            Version::V1_0 => "CURRENT",
            Version::V1_1 => "PROPOSED",
        }
    }

    /// The namespace of its XML.
    pub(super) fn namespace(self) -> &'static str {
        match self {
            Version::V1_0 => "http://openstack.org/quantum/api/v1.0",
            Version::V1_1 => "http://openstack.org/quantum/api/v1.1",
        }
    }

    /// The status of an answer that tells what was made.
    pub(super) fn created(self) -> StatusCode {
        match self {
            Version::V1_0 => StatusCode::OK,
            Version::V1_1 => StatusCode::ACCEPTED,
        }
    }

    /// The answer to a refusal, as `api/REFERENCE.md` lists them. Pages of the border depend on the Accept header.
    pub(super) fn fault(self, fault: &Fault, format: Format, accept: Option<&str>) -> Reply {
        let Some((row, detail)) = describe(fault) else {
            let why = "The roles of the token do not allow this.";
            return Reply::page(StatusCode::FORBIDDEN, accept, false, why, "");
        };
        match self {
            Version::V1_0 => {
                let (code, name) = row.v1_0;
                Reply { reason: Some(name), ..self.v1_0_fault(code, name, row.message, detail, format) }
            }
            Version::V1_1 => {
                let (code, kind) = row.v1_1;
                self.v1_1_fault(code, kind, row.message, detail, format)
            }
        }
    }

    /// The answer to a request whose text is wrong.
    pub(super) fn bad_request(self, bad: BadRequest, format: Format, dialect: Dialect) -> Reply {
        let not_parsed = |name: &str, why: &str| format!("Failed to parse request. Parameter: {name} {why}");
        let detail = match bad {
            BadRequest::Unusable => return self.error(NOT_COMPLIED, format),
            BadRequest::Malformed => return self.error("Malformed request body", format),
            BadRequest::NoResource(name) => format!("Unable to find '{name}' in request body"),
            BadRequest::NotSpecified(name) => not_parsed(name, "not specified"),
            BadRequest::NotText(name) => not_parsed(name, "is not text"),
            BadRequest::TooLong(name) => not_parsed(name, &format!("is longer than {TEXT_BYTES_MAX} bytes")),
            BadRequest::HasNul(name) => not_parsed(name, "has a NUL character"),
            BadRequest::Pairs(why) => not_parsed(PAIRS, &why),
        };
        match self {
            Version::V1_0 => {
                let is_xml_to_be_xml = format == Format::Xml && dialect == Dialect::Plain;
                let name = if is_xml_to_be_xml { BAD_REQUEST_ELEMENT } else { BAD_REQUEST };
                self.v1_0_fault(400, name, NOT_COMPLIED, detail, format)
            }
            Version::V1_1 => self.v1_1_fault(400, "QuantumServiceFault", NOT_COMPLIED, detail, format),
        }
    }

    /// A success.
    pub(super) fn tell(self, status: StatusCode, root: &'static str, value: Value, format: Format) -> Reply {
        let document = Document { root, namespace: Some(self.namespace()), value };
        Reply::new(status, format.media_type(), document.write(format))
    }

    fn error(self, message: &str, format: Format) -> Reply {
        let value = Value::Object(vec![("message", Value::Element(message.into())), ("code", Value::Code(400))]);
        self.refuse(400, "Error", value, format)
    }

    fn v1_0_fault(self, code: u16, name: &'static str, message: &str, detail: String, format: Format) -> Reply {
        let fields = vec![
            ("message", Value::Element(message.into())),
            ("code", Value::Code(code)),
            ("detail", Value::Element(detail.into())),
        ];
        self.refuse(code, name, Value::Object(fields), format)
    }

    fn v1_1_fault(self, code: u16, kind: &'static str, message: &str, detail: String, format: Format) -> Reply {
        let fields = vec![
            ("message", Value::Element(message.into())),
            ("type", Value::Element(kind.into())),
            ("detail", Value::Element(detail.into())),
        ];
        self.refuse(code, "QuantumError", Value::Object(fields), format)
    }

    fn refuse(self, code: u16, root: &'static str, value: Value, format: Format) -> Reply {
        let status = StatusCode::from_u16(code).expect("the faults' codes are three digits");
        let content_type = if format == Format::Xml { XML_FAULT } else { format.media_type() };
        Reply { content_type, ..self.tell(status, root, value, format) }
    }
}
