//! The faults of operations, by the replies that the versions make of them, and how a client
//! comes to get each.

use super::super::Version;
use super::super::body::BadRequest;
use super::super::extensions::legacy::{self, LegacyFault};
use super::super::extensions::{credential, portprofile, qos};
use super::super::version::Dialect;
use super::{Given, INTERFACE, NETWORK, OTHER_PORT, PORT, PROFILE, TENANT};
use crate::format::Format;
use crate::plugin::{
    AlreadyAttached, BackendFailed, BackendUnavailable, Fault, Forbidden, NetworkInUse, NetworkNotFound, NoSegmentFree,
    OverQuota, PortInUse, PortNotFound, StateInvalid, StoreFailed,
};
use crate::quota::Resource;
use crate::reply::Reply;

/// A fault.
pub(super) struct FaultDoc {
    /// What it is called here, which is v1.1's type where it has one.
    pub(super) name: &'static str,
    /// When it is answered.
    pub(super) about: &'static str,
    /// What a version answers; several where one cause has several forms.
    pub(super) examples: &'static [fn(Version, Format) -> Reply],
    /// A request that gets the first of the examples; `None`: no request can by itself.
    pub(super) provocation: Option<Provocation>,
}

/// A request that gets a fault. In its path and bodies stand the names of ids in braces.
pub(super) struct Provocation {
    pub(super) given: Given,
    pub(super) method: &'static str,
    path: &'static str,
    /// In JSON and in XML; empty: none.
    bodies: [&'static str; 2],
}

impl Provocation {
    const fn new(given: Given, method: &'static str, path: &'static str, bodies: [&'static str; 2]) -> Option<Self> {
        Some(Provocation { given, method, path, bodies })
    }

    /// The path after the version.
    pub(super) fn path(&self) -> String {
        fill(self.path)
    }

    /// The body in a format.
    pub(super) fn body(&self, format: Format) -> Option<String> {
        let [json, xml] = self.bodies;
        let body = if format == Format::Json { json } else { xml };
        (!body.is_empty()).then(|| fill(body))
    }
}

/// The ids of things that are not there stand for themselves.
fn fill(text: &str) -> String {
    let ids = [
        ("{ports}", "/tenants/{tenant}/networks/{network}/ports"),
        ("{csco}", "/extensions/csco/tenants/{tenant}"),
        ("{tenant}", TENANT),
        ("{network}", NETWORK),
        ("{port}", PORT),
        ("{other}", OTHER_PORT),
        ("{profile}", PROFILE),
        ("{interface}", INTERFACE),
    ];
    ids.iter().fold(text.to_owned(), |text, (name, id)| text.replace(name, id))
}

const NO_BODY: [&str; 2] = [""; 2];
const PLUG: [&str; 2] = [r#"{"attachment": {"id": "{interface}"}}"#, r#"<attachment id="{interface}"/>"#];

fn core(version: Version, format: Format, fault: impl Into<Fault>) -> Reply {
    version.fault(&fault.into(), format, Some(format.media_type()))
}

pub(super) static BAD_REQUEST: FaultDoc = FaultDoc {
    name: "QuantumServiceFault",
    about: "An attribute is missing or no text, longer than 1024 bytes, or holds a NUL; or the body does not hold the \
            resource.",
    examples: &[|version, format| version.bad_request(BadRequest::NotSpecified("name"), format, Dialect::Plain)],
    provocation: Provocation::new(
        Given::Nothing,
        "POST",
        "/tenants/{tenant}/networks",
        [r#"{"network": {}}"#, r#"<network title="office"/>"#],
    ),
};
pub(super) static MALFORMED: FaultDoc = FaultDoc {
    name: "Error",
    about: "The body is neither JSON nor XML, whichever it should be, or there is none; a key beside the resource says what \
            the path says; or the tenant is no text within its bounds.",
    examples: &[
        |version, format| version.bad_request(BadRequest::Malformed, format, Dialect::Plain),
        |version, format| version.bad_request(BadRequest::Unusable, format, Dialect::Plain),
    ],
    provocation: Provocation::new(Given::Nothing, "POST", "/tenants/{tenant}/networks", ["{", "<"]),
};
pub(super) static NETWORK_NOT_FOUND: FaultDoc = FaultDoc {
    name: "NetworkNotFound",
    about: "The tenant has no such network.",
    examples: &[|version, format| core(version, format, NetworkNotFound { network: NETWORK.into() })],
    provocation: Provocation::new(Given::Nothing, "GET", "/tenants/{tenant}/networks/{network}", NO_BODY),
};
pub(super) static NETWORK_IN_USE: FaultDoc = FaultDoc {
    name: "NetworkInUse",
    about: "Something is plugged into a port of the network; or, where hosts share their state, it has more ports than can be removed at once.",
    examples: &[|version, format| core(version, format, NetworkInUse { network: NETWORK.into(), too_many: None })],
    provocation: Provocation::new(Given::Plugged, "DELETE", "/tenants/{tenant}/networks/{network}", NO_BODY),
};
pub(super) static PORT_NOT_FOUND: FaultDoc = FaultDoc {
    name: "PortNotFound",
    about: "The network has no such port.",
    examples: &[|version, format| {
        core(version, format, PortNotFound { port: OTHER_PORT.into(), network: NETWORK.into() })
    }],
    provocation: Provocation::new(Given::Vacant, "GET", "{ports}/{other}", NO_BODY),
};
pub(super) static STATE_INVALID: FaultDoc = FaultDoc {
    name: "RequestedStateInvalid",
    about: "The state is neither `ACTIVE` nor `DOWN`.",
    examples: &[|version, format| core(version, format, StateInvalid { state: "SIDEWAYS".into() })],
    provocation: Provocation::new(
        Given::Vacant,
        "PUT",
        "{ports}/{port}",
        [r#"{"port": {"state": "SIDEWAYS"}}"#, r#"<port state="SIDEWAYS"/>"#],
    ),
};
pub(super) static PORT_IN_USE: FaultDoc = FaultDoc {
    name: "PortInUse",
    about: "Something is plugged into the port.",
    examples: &[|version, format| {
        let attachment = INTERFACE.into();
        core(version, format, PortInUse { port: PORT.into(), network: NETWORK.into(), attachment })
    }],
    provocation: Provocation::new(Given::Plugged, "DELETE", "{ports}/{port}", NO_BODY),
};
pub(super) static ALREADY_ATTACHED: FaultDoc = FaultDoc {
    name: "AlreadyAttached",
    about: "The interface is plugged into another port.",
    examples: &[|version, format| {
        let (attachment, holder) = (INTERFACE.into(), PORT.into());
        let (port, network) = (OTHER_PORT.into(), NETWORK.into());
        core(version, format, AlreadyAttached { attachment, port, network, holder })
    }],
    provocation: Provocation::new(Given::Elsewhere, "PUT", "{ports}/{other}/attachment", PLUG),
};
pub(super) static OVER_QUOTA: FaultDoc = FaultDoc {
    name: "OverQuota",
    about: "The tenant has as many networks, or ports on all its networks, as the operator lets it have. Not with `fake`.",
    examples: &[|version, format| {
        core(version, format, OverQuota { resource: Resource::Network, limit: 1_000, used: 1_000, asked: 1 })
    }],
    provocation: None,
};
pub(super) static NOT_ALLOWED: FaultDoc = FaultDoc {
    name: "Forbidden",
    about: "The policy does not let the caller do this to what it may see. A page, in the form that Accept asks for.",
    examples: &[|version, format| core(version, format, Forbidden { action: "".into() })],
    provocation: None,
};
pub(super) static STORE: FaultDoc = FaultDoc {
    name: "ServiceUnavailable",
    about: "The store did not confirm the change, which may have been made all the same: look before asking again. Or every VLAN or VNI for new networks is in use. A header Retry-After says when to try again.",
    examples: &[
        |version, format| core(version, format, StoreFailed { why: "the store failed".into() }),
        |version, format| core(version, format, NoSegmentFree { kind: "vlan".into() }),
    ],
    provocation: None,
};
pub(super) static BACKEND: FaultDoc = FaultDoc {
    name: "PluginFault",
    about: "What the plugin drives does not answer, or would not do what was asked. With `native` and `fake` only for the counters of a port whose interface is plugged on another host.",
    examples: &[
        |version, format| core(version, format, BackendFailed { why: "refused".into() }),
        |version, format| core(version, format, BackendUnavailable { why: "timed out".into() }),
    ],
    provocation: None,
};

fn old(fault: LegacyFault, format: Format) -> Reply {
    legacy::reply(fault, format)
}

pub(super) static LEGACY_MALFORMED: FaultDoc = FaultDoc {
    name: "malformedRequest",
    about: "The body of a request to an extension is not what is wanted, or its Content-Type is neither of the two.",
    examples: &[|_, format| old(legacy::MALFORMED, format)],
    provocation: Provocation::new(
        Given::Nothing,
        "POST",
        "{csco}/qoss",
        [r#"{"qos": {}}"#, r#"<qos qos_name="gold"/>"#],
    ),
};
pub(super) static LEGACY_PORT_NOT_FOUND: FaultDoc = FaultDoc {
    name: "quantumServiceFault: Port not Found",
    about: "The tenant has no such port, or the interface is plugged into none.",
    examples: &[|_, format| old(legacy::PORT_NOT_FOUND, format)],
    provocation: Provocation::new(
        Given::Vacant,
        "PUT",
        "{csco}/portprofiles/{profile}/associate_portprofile",
        [
            r#"{"portprofile": {"network-id": "{network}", "port-id": "{other}"}}"#,
            r#"<portprofile network-id="{network}" port-id="{other}"/>"#,
        ],
    ),
};
pub(super) static LEGACY_TOO_MANY: FaultDoc = FaultDoc {
    name: "quantumServiceFault: Conflict",
    about: "The tenant has 1024 records of the kind, or the profile is associated with 4096 ports.",
    examples: &[|_, format| old(legacy::TOO_MANY, format)],
    provocation: None,
};
pub(super) static PROFILE_NOT_FOUND: FaultDoc = FaultDoc {
    name: "PortprofileNotFound",
    about: "The tenant has no such port profile.",
    examples: &[|_, format| old(portprofile::NOT_FOUND, format)],
    provocation: Provocation::new(Given::Nothing, "GET", "{csco}/portprofiles/{profile}", NO_BODY),
};
pub(super) static PROFILE_IN_USE: FaultDoc = FaultDoc {
    name: "PortprofileInUse",
    about: "A port is associated with the port profile.",
    examples: &[|_, format| old(portprofile::IN_USE, format)],
    provocation: Provocation::new(Given::Plugged, "DELETE", "{csco}/portprofiles/{profile}", NO_BODY),
};
pub(super) static QOS_NOT_FOUND: FaultDoc = FaultDoc {
    name: "QoSNotFound",
    about: "The tenant has no such QoS level.",
    examples: &[|_, format| old(qos::NOT_FOUND, format)],
    provocation: Provocation::new(Given::Nothing, "GET", "{csco}/qoss/{other}", NO_BODY),
};
pub(super) static CREDENTIAL_NOT_FOUND: FaultDoc = FaultDoc {
    name: "CredentialNotFound",
    about: "The tenant has no such credential.",
    examples: &[|_, format| old(credential::NOT_FOUND, format)],
    provocation: Provocation::new(Given::Nothing, "GET", "{csco}/credentials/{other}", NO_BODY),
};

/// In the order of the page.
pub(super) static ALL: &[&FaultDoc] = &[
    &BAD_REQUEST,
    &MALFORMED,
    &NETWORK_NOT_FOUND,
    &NETWORK_IN_USE,
    &PORT_NOT_FOUND,
    &STATE_INVALID,
    &PORT_IN_USE,
    &ALREADY_ATTACHED,
    &OVER_QUOTA,
    &NOT_ALLOWED,
    &STORE,
    &BACKEND,
    &LEGACY_MALFORMED,
    &LEGACY_PORT_NOT_FOUND,
    &LEGACY_TOO_MANY,
    &PROFILE_NOT_FOUND,
    &PROFILE_IN_USE,
    &QOS_NOT_FOUND,
    &CREDENTIAL_NOT_FOUND,
];
