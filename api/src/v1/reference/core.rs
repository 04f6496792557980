//! The operations on networks, ports and attachments.

use super::faults::{
    ALREADY_ATTACHED, BACKEND, BAD_REQUEST, FaultDoc, MALFORMED, NETWORK_IN_USE, NETWORK_NOT_FOUND, NOT_ALLOWED,
    OVER_QUOTA, PORT_IN_USE, PORT_NOT_FOUND, STATE_INVALID, STORE,
};
use super::shape::{Field, Kind, Need, Shape};
use super::{Answer, Chapter, Given, INTERFACE, Makes, NETWORK, Operation, PORT, Parameter, Request};

const NETWORK_ID: Field =
    Field { name: "id", kind: Kind::Attribute(NETWORK), need: Need::Always, about: "The network's id." };
const PORT_ID: Field = Field { name: "id", kind: Kind::Attribute(PORT), need: Need::Always, about: "The port's id." };
const OP_STATUS: Field = Field {
    name: "op-status",
    kind: Kind::Word(&["UP", "DOWN", "PROVISIONING", "UNKNOWN"]),
    need: Need::SinceV1_1,
    about: "Whether the data plane carries it.",
};
const NAME: Field = Field {
    name: "name",
    kind: Kind::MaybeText("office"),
    need: Need::Always,
    about: "The network's name; null, in XML `None`, if it has none.",
};
const STATE: Field = Field {
    name: "state",
    kind: Kind::Word(&["ACTIVE", "DOWN"]),
    need: Need::Always,
    about: "Whether the port may pass traffic.",
};
const ATTACHMENT: Field = Field {
    name: "attachment",
    kind: Kind::Object(&[Field {
        name: "id",
        kind: Kind::Attribute(INTERFACE),
        need: Need::Always,
        about: "The interface's id.",
    }]),
    need: Need::Maybe,
    about: "What is plugged into the port; absent if nothing is.",
};
const PORTS_OF_A_NETWORK: Field = Field {
    name: "ports",
    kind: Kind::List("port", &[PORT_ID, STATE, OP_STATUS, ATTACHMENT]),
    need: Need::Always,
    about: "The network's ports.",
};
const NEW_NAME: Shape = Shape::Object(&[Field {
    name: "name",
    kind: Kind::Attribute("office"),
    need: Need::Always,
    about: "Its name, at most 1024 bytes of UTF-8; the empty text is none. Names need not differ.",
}]);
const WANTED_STATE: Field = Field {
    name: "state",
    kind: Kind::State,
    need: Need::Maybe,
    about: "`ACTIVE` or `DOWN`; absent, null and empty are `DOWN`.",
};
const NEW_PORT: Shape = Shape::Object(&[
    WANTED_STATE,
    Field {
        name: "allowed_address_pairs",
        kind: Kind::Pairs,
        need: Need::Maybe,
        about: "What the port may send from: at most 64 objects with a `mac_address` and, if it is known, an `ip_address` or \
                a prefix. Frames from other MACs are dropped, unless the operator allows them; addresses are kept and not \
                enforced. Absent, null and empty: the port may send from any MAC that the operator allows. In no answer.",
    },
]);
const CHANGED_PORT: Shape = Shape::Object(&[
    WANTED_STATE,
    Field {
        name: "allowed_address_pairs",
        kind: Kind::Pairs,
        need: Need::Maybe,
        about: "What the port may send from instead of what it might before, as on its creation; null and empty: any; absent: \
                as before.",
    },
]);

const BY_NAME: Parameter = Parameter { name: "name", about: "Those of this name.", example: "office" };
const BY_OP_STATUS: Parameter = Parameter { name: "op-status", about: "Those of this op-status.", example: "UP" };
const NETWORK_FILTERS: &[Parameter] = &[
    BY_NAME,
    BY_OP_STATUS,
    Parameter { name: "port-state", about: "Those with a port of this state.", example: "ACTIVE" },
    Parameter { name: "port-op-status", about: "Those with a port of this op-status.", example: "UP" },
    Parameter { name: "port", about: "That with the port of this id.", example: PORT },
    Parameter {
        name: "has-attachment",
        about: "`true`: those with a port into which something is plugged; anything else: the others.",
        example: "true",
    },
    Parameter {
        name: "attachment",
        about: "That with a port into which this interface is plugged.",
        example: INTERFACE,
    },
];
const PORT_FILTERS: &[Parameter] = &[
    Parameter { name: "state", about: "Those of this state.", example: "ACTIVE" },
    BY_OP_STATUS,
    Parameter {
        name: "has-attachment",
        about: "`true`: those into which something is plugged; anything else: the others.",
        example: "true",
    },
    Parameter { name: "attachment", about: "That into which this interface is plugged.", example: INTERFACE },
];

const OF_NETWORK: &[&FaultDoc] = &[&NETWORK_NOT_FOUND, &BACKEND];
const OF_PORT: &[&FaultDoc] = &[&NETWORK_NOT_FOUND, &PORT_NOT_FOUND, &BACKEND];

pub(super) const NETWORKS: Chapter = Chapter {
    title: "Networks",
    about: "A network is a layer 2 segment of one tenant. Nobody else sees it, neither here nor on the wire.",
    extension: None,
    operations: &[
        Operation {
            method: "GET",
            path: "/tenants/{tenant}/networks",
            id: "networks.list",
            title: "List networks",
            about: "The ids of the tenant's networks, in the order in which they were made.",
            query: NETWORK_FILTERS,
            request: None,
            answer: Answer::Told("networks", Shape::List { item: "network", fields: &[NETWORK_ID] }),
            makes: None,
            faults: &[&BACKEND],
            given: Given::Plugged,
        },
        Operation {
            method: "GET",
            path: "/tenants/{tenant}/networks/detail",
            id: "networks.list_detail",
            title: "List networks with details",
            about: "",
            query: NETWORK_FILTERS,
            request: None,
            answer: Answer::Told("networks", Shape::List { item: "network", fields: &[NETWORK_ID, NAME, OP_STATUS] }),
            makes: None,
            faults: &[&BACKEND],
            given: Given::Plugged,
        },
        Operation {
            method: "POST",
            path: "/tenants/{tenant}/networks",
            id: "networks.create",
            title: "Create a network",
            about: "Attributes beside these are ignored.",
            query: &[],
            request: Some(Request { root: "network", shape: NEW_NAME, is_required: true }),
            answer: Answer::Made("network", Shape::Object(&[NETWORK_ID])),
            makes: Some(Makes { parameter: "network", pointer: "/network/id" }),
            faults: &[&BAD_REQUEST, &MALFORMED, &OVER_QUOTA, &NOT_ALLOWED, &STORE, &BACKEND],
            given: Given::Nothing,
        },
        Operation {
            method: "GET",
            path: "/tenants/{tenant}/networks/{network}",
            id: "networks.show",
            title: "Show a network",
            about: "",
            query: &[],
            request: None,
            answer: Answer::Told("network", Shape::Object(&[NETWORK_ID, NAME, OP_STATUS])),
            makes: None,
            faults: OF_NETWORK,
            given: Given::Plugged,
        },
        Operation {
            method: "GET",
            path: "/tenants/{tenant}/networks/{network}/detail",
            id: "networks.show_detail",
            title: "Show a network with its ports",
            about: "",
            query: &[],
            request: None,
            answer: Answer::Told("network", Shape::Object(&[PORTS_OF_A_NETWORK, NETWORK_ID, NAME, OP_STATUS])),
            makes: None,
            faults: OF_NETWORK,
            given: Given::Plugged,
        },
        Operation {
            method: "PUT",
            path: "/tenants/{tenant}/networks/{network}",
            id: "networks.update",
            title: "Rename a network",
            about: "",
            query: &[],
            request: Some(Request { root: "network", shape: NEW_NAME, is_required: true }),
            answer: Answer::Done,
            makes: None,
            faults: &[&BAD_REQUEST, &MALFORMED, &NETWORK_NOT_FOUND, &NOT_ALLOWED, &STORE, &BACKEND],
            given: Given::Vacant,
        },
        Operation {
            method: "DELETE",
            path: "/tenants/{tenant}/networks/{network}",
            id: "networks.delete",
            title: "Delete a network",
            about: "Its ports go with it, unless something is plugged into one.",
            query: &[],
            request: None,
            answer: Answer::Done,
            makes: None,
            faults: &[&NETWORK_NOT_FOUND, &NETWORK_IN_USE, &NOT_ALLOWED, &STORE, &BACKEND],
            given: Given::Vacant,
        },
    ],
};

pub(super) const PORTS: Chapter = Chapter {
    title: "Ports",
    about: "A port is a place of a network into which one interface can be plugged. Traffic passes while it is `ACTIVE`.",
    extension: None,
    operations: &[
        Operation {
            method: "GET",
            path: "/tenants/{tenant}/networks/{network}/ports",
            id: "ports.list",
            title: "List ports",
            about: "The ids of the network's ports, in the order in which they were made.",
            query: PORT_FILTERS,
            request: None,
            answer: Answer::Told("ports", Shape::List { item: "port", fields: &[PORT_ID] }),
            makes: None,
            faults: OF_NETWORK,
            given: Given::Plugged,
        },
        Operation {
            method: "GET",
            path: "/tenants/{tenant}/networks/{network}/ports/detail",
            id: "ports.list_detail",
            title: "List ports with details",
            about: "",
            query: PORT_FILTERS,
            request: None,
            answer: Answer::Told("ports", Shape::List { item: "port", fields: &[PORT_ID, STATE, OP_STATUS] }),
            makes: None,
            faults: OF_NETWORK,
            given: Given::Plugged,
        },
        Operation {
            method: "POST",
            path: "/tenants/{tenant}/networks/{network}/ports",
            id: "ports.create",
            title: "Create a port",
            about: "Without a body the port is `DOWN`. Attributes beside these are ignored.",
            query: &[],
            request: Some(Request { root: "port", shape: NEW_PORT, is_required: false }),
            answer: Answer::Made("port", Shape::Object(&[PORT_ID])),
            makes: Some(Makes { parameter: "port", pointer: "/port/id" }),
            faults: &[
                &BAD_REQUEST,
                &MALFORMED,
                &NETWORK_NOT_FOUND,
                &STATE_INVALID,
                &OVER_QUOTA,
                &NOT_ALLOWED,
                &STORE,
                &BACKEND,
            ],
            given: Given::Vacant,
        },
        Operation {
            method: "GET",
            path: "/tenants/{tenant}/networks/{network}/ports/{port}",
            id: "ports.show",
            title: "Show a port",
            about: "",
            query: &[],
            request: None,
            answer: Answer::Told("port", Shape::Object(&[PORT_ID, STATE, OP_STATUS])),
            makes: None,
            faults: OF_PORT,
            given: Given::Plugged,
        },
        Operation {
            method: "GET",
            path: "/tenants/{tenant}/networks/{network}/ports/{port}/detail",
            id: "ports.show_detail",
            title: "Show a port with its attachment",
            about: "",
            query: &[],
            request: None,
            answer: Answer::Told("port", Shape::Object(&[PORT_ID, STATE, OP_STATUS, ATTACHMENT])),
            makes: None,
            faults: OF_PORT,
            given: Given::Plugged,
        },
        Operation {
            method: "PUT",
            path: "/tenants/{tenant}/networks/{network}/ports/{port}",
            id: "ports.update",
            title: "Set a port's state",
            about: "",
            query: &[],
            request: Some(Request { root: "port", shape: CHANGED_PORT, is_required: true }),
            answer: Answer::Done,
            makes: None,
            faults: &[
                &BAD_REQUEST,
                &MALFORMED,
                &NETWORK_NOT_FOUND,
                &PORT_NOT_FOUND,
                &STATE_INVALID,
                &NOT_ALLOWED,
                &STORE,
                &BACKEND,
            ],
            given: Given::Vacant,
        },
        Operation {
            method: "DELETE",
            path: "/tenants/{tenant}/networks/{network}/ports/{port}",
            id: "ports.delete",
            title: "Delete a port",
            about: "Something plugged into it must be unplugged first.",
            query: &[],
            request: None,
            answer: Answer::Done,
            makes: None,
            faults: &[&NETWORK_NOT_FOUND, &PORT_NOT_FOUND, &PORT_IN_USE, &NOT_ALLOWED, &STORE, &BACKEND],
            given: Given::Vacant,
        },
    ],
};

pub(super) const ATTACHMENTS: Chapter = Chapter {
    title: "Attachments",
    about: "An attachment is the id of an interface, plugged into a port. An interface is in one port at a time.",
    extension: None,
    operations: &[
        Operation {
            method: "GET",
            path: "/tenants/{tenant}/networks/{network}/ports/{port}/attachment",
            id: "attachments.show",
            title: "Show what is plugged into a port",
            about: "Nothing is an attachment without an id.",
            query: &[],
            request: None,
            answer: Answer::Told(
                "attachment",
                Shape::Object(&[Field {
                    name: "id",
                    kind: Kind::Element(INTERFACE),
                    need: Need::Maybe,
                    about: "The interface's id; absent if nothing is plugged.",
                }]),
            ),
            makes: None,
            faults: OF_PORT,
            given: Given::Plugged,
        },
        Operation {
            method: "PUT",
            path: "/tenants/{tenant}/networks/{network}/ports/{port}/attachment",
            id: "attachments.plug",
            title: "Plug an interface into a port",
            about: "The interface may be made on the host before or after. Attributes beside these are ignored.",
            query: &[],
            request: Some(Request {
                root: "attachment",
                shape: Shape::Object(&[Field {
                    name: "id",
                    kind: Kind::Filled(INTERFACE),
                    need: Need::Always,
                    about: "The interface's id, 1 to 1024 bytes of UTF-8.",
                }]),
                is_required: true,
            }),
            answer: Answer::Done,
            makes: None,
            faults: &[
                &BAD_REQUEST,
                &MALFORMED,
                &NETWORK_NOT_FOUND,
                &PORT_NOT_FOUND,
                &PORT_IN_USE,
                &ALREADY_ATTACHED,
                &NOT_ALLOWED,
                &STORE,
                &BACKEND,
            ],
            given: Given::Vacant,
        },
        Operation {
            method: "DELETE",
            path: "/tenants/{tenant}/networks/{network}/ports/{port}/attachment",
            id: "attachments.unplug",
            title: "Unplug what is in a port",
            about: "A port in which nothing is plugged stays so.",
            query: &[],
            request: None,
            answer: Answer::Done,
            makes: None,
            faults: &[&NETWORK_NOT_FOUND, &PORT_NOT_FOUND, &NOT_ALLOWED, &STORE, &BACKEND],
            given: Given::Plugged,
        },
    ],
};
