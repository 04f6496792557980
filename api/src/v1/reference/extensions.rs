//! The operations of the extensions.

use super::faults::{
    BACKEND, CREDENTIAL_NOT_FOUND, FaultDoc, LEGACY_MALFORMED, LEGACY_PORT_NOT_FOUND, LEGACY_TOO_MANY,
    NETWORK_NOT_FOUND, NOT_ALLOWED, OVER_QUOTA, PORT_NOT_FOUND, PROFILE_IN_USE, PROFILE_NOT_FOUND, QOS_NOT_FOUND,
    STATE_INVALID, STORE,
};
use super::shape::{Field, Kind, Need, Shape};
use super::{
    Answer, CREDENTIAL, Chapter, Given, HOST, INTERFACE, Makes, NETWORK, Operation, PORT, PROFILE, QOS, Request,
};

const fn text(name: &'static str, example: &'static str, about: &'static str) -> Field {
    Field { name, kind: Kind::Attribute(example), need: Need::Always, about }
}

const fn element(name: &'static str, example: &'static str, about: &'static str) -> Field {
    Field { name, kind: Kind::Element(example), need: Need::Always, about }
}

/// A text of a client's, which may have been empty.
const fn maybe(name: &'static str, kind: Kind, about: &'static str) -> Field {
    Field { name, kind, need: Need::Always, about }
}

const fn count(name: &'static str, about: &'static str) -> Field {
    Field { name, kind: Kind::Count, need: Need::Always, about }
}

const fn anything(name: &'static str, example: &'static str, about: &'static str) -> Field {
    Field { name, kind: Kind::Anything(example), need: Need::Always, about }
}

const fn object(name: &'static str, fields: &'static [Field]) -> Field {
    Field { name, kind: Kind::Object(fields), need: Need::Always, about: "" }
}

const fn required(root: &'static str, fields: &'static [Field]) -> Option<Request> {
    Some(Request { root, shape: Shape::Object(fields), is_required: true })
}

/// A GET.
const fn get(path: &'static str, id: &'static str, title: &'static str, answer: Answer) -> Operation {
    Operation {
        method: "GET",
        path,
        id,
        title,
        about: "",
        query: &[],
        request: None,
        answer,
        makes: None,
        faults: &[],
        given: Given::Plugged,
    }
}

const DESCRIPTION: &[Field] = &[
    element("updated", "2011-12-20T10:00:00-00:00", "When its format was changed last."),
    element("name", "Port Statistics", "What it is called."),
    Field { name: "links", kind: Kind::Texts("link", &[]), need: Need::Always, about: "None." },
    element("namespace", "http://docs.openstack.org/ext/portstats/api/v1.0", "Where its format is from."),
    element("alias", "portstats", "By what it is asked for."),
    element("description", "Port Statistics", "One sentence."),
];

pub(super) const LIST: Chapter = Chapter {
    title: "Extensions",
    about: "What is served beside networks, ports and attachments. Extensions speak an older format: their answers have no \
            XML namespace, and their requests must name their format by Content-Type.",
    extension: None,
    operations: &[
        Operation {
            given: Given::OnePlainExtension,
            ..get(
                "/extensions",
                "extensions.list",
                "List extensions",
                Answer::Legacy("extensions", Shape::List { item: "extension", fields: DESCRIPTION }),
            )
        },
        Operation {
            given: Given::OnePlainExtension,
            about: "In JSON there is no key around it. One that is not served gets a 404 page.",
            ..get(
                "/extensions/{alias}",
                "extensions.show",
                "Show an extension",
                Answer::Bare("extension", Shape::Object(DESCRIPTION)),
            )
        },
    ],
};

const STATS: Shape = Shape::Object(&[
    count("rx_packets", "Frames that the switch received from the interface."),
    count("rx_bytes", "Their bytes."),
    count("rx_errors", "Frames from the interface that were dropped."),
    count("tx_packets", "Frames that the switch sent to the interface."),
    count("tx_bytes", "Their bytes."),
    count("tx_errors", "Frames to the interface that were dropped."),
]);
const OF_PORT: &[&FaultDoc] = &[&NETWORK_NOT_FOUND, &PORT_NOT_FOUND, &BACKEND];

pub(super) const PORT_STATS: Chapter = Chapter {
    title: "Port statistics",
    about: "The counters of the switch. A port without an interface has passed nothing. In a cloud of many hosts a port is \
            asked of the host that its interface is plugged on; others answer 503.",
    extension: Some("portstats"),
    operations: &[
        Operation {
            faults: OF_PORT,
            ..get(
                "/extensions/ovs/tenants/{tenant}/networks/{network}/ports/{port}/stats",
                "portstats.show",
                "Show what passed a port",
                Answer::Legacy("stats", STATS),
            )
        },
        Operation {
            about: "Any id stands for the one there is.",
            faults: OF_PORT,
            ..get(
                "/extensions/ovs/tenants/{tenant}/networks/{network}/ports/{port}/stats/{any}",
                "portstats.show_by_id",
                "Show what passed a port, by an id",
                Answer::Legacy("stats", STATS),
            )
        },
    ],
};

const PROFILE_ID: Field = element("id", PROFILE, "The profile's id.");
const PROFILE_BRIEF: Shape = Shape::Object(&[object("portprofile", &[PROFILE_ID])]);
const PROFILE_FULL: Shape = Shape::Object(&[object(
    "portprofile",
    &[
        PROFILE_ID,
        maybe("name", Kind::MaybeElement("web"), "The profile's name; null, in XML `None`, if it is empty."),
        maybe("qos_name", Kind::MaybeElement("gold"), "The name of the QoS level, or null."),
        Field {
            name: "assignment",
            kind: Kind::Texts("item", &[PORT]),
            need: Need::Always,
            about: "The ids of the ports it is associated with.",
        },
    ],
)]);
const PROFILE_BODY: &[Field] =
    &[text("portprofile_name", "web", "The profile's name."), text("qos_name", "gold", "The name of a QoS level.")];
const PORT_PLACE: &[Field] =
    &[text("network-id", NETWORK, "The network of the port."), text("port-id", PORT, "The port.")];
const PROFILES_PATH: &str = "/extensions/csco/tenants/{tenant}/portprofiles";
const PROFILE_PATH: &str = "/extensions/csco/tenants/{tenant}/portprofiles/{profile}";

pub(super) const PORT_PROFILES: Chapter = Chapter {
    title: "Port profiles",
    about: "A name for how ports are to be treated, by the name of a QoS level. Stored and shown.",
    extension: Some("Cisco Port Profile"),
    operations: &[
        get(
            PROFILES_PATH,
            "portprofiles.list",
            "List port profiles",
            Answer::Legacy("portprofiles", Shape::List { item: "portprofile", fields: &[PROFILE_ID] }),
        ),
        Operation {
            method: "POST",
            request: required("portprofile", PROFILE_BODY),
            makes: Some(Makes { parameter: "profile", pointer: "/portprofiles/portprofile/id" }),
            faults: &[&LEGACY_MALFORMED, &LEGACY_TOO_MANY, &NOT_ALLOWED, &STORE],
            given: Given::Nothing,
            ..get(
                PROFILES_PATH,
                "portprofiles.create",
                "Create a port profile",
                Answer::Legacy("portprofiles", PROFILE_BRIEF),
            )
        },
        Operation {
            faults: &[&PROFILE_NOT_FOUND, &BACKEND],
            ..get(
                PROFILE_PATH,
                "portprofiles.show",
                "Show a port profile",
                Answer::Legacy("portprofiles", PROFILE_FULL),
            )
        },
        Operation {
            method: "PUT",
            about: "The QoS level stays, though it must be sent, and so does the name if an empty one is sent.",
            request: required("portprofile", PROFILE_BODY),
            faults: &[&LEGACY_MALFORMED, &PROFILE_NOT_FOUND, &NOT_ALLOWED, &STORE, &BACKEND],
            ..get(
                PROFILE_PATH,
                "portprofiles.update",
                "Rename a port profile",
                Answer::Legacy("portprofiles", PROFILE_FULL),
            )
        },
        Operation {
            method: "DELETE",
            about: "No port may be associated with it.",
            faults: &[&PROFILE_NOT_FOUND, &PROFILE_IN_USE, &NOT_ALLOWED, &STORE, &BACKEND],
            given: Given::Vacant,
            ..get(PROFILE_PATH, "portprofiles.delete", "Delete a port profile", Answer::Page)
        },
        Operation {
            method: "PUT",
            about: "A port that is associated already stays so.",
            request: required("portprofile", PORT_PLACE),
            faults: &[
                &LEGACY_MALFORMED,
                &PROFILE_NOT_FOUND,
                &LEGACY_PORT_NOT_FOUND,
                &LEGACY_TOO_MANY,
                &NOT_ALLOWED,
                &STORE,
                &BACKEND,
            ],
            given: Given::Vacant,
            ..get(
                "/extensions/csco/tenants/{tenant}/portprofiles/{profile}/associate_portprofile",
                "portprofiles.associate",
                "Associate a port profile with a port",
                Answer::Page,
            )
        },
        Operation {
            method: "PUT",
            about: "A port that is not associated stays so.",
            request: required("portprofile", PORT_PLACE),
            faults: &[&LEGACY_MALFORMED, &PROFILE_NOT_FOUND, &NOT_ALLOWED, &STORE],
            ..get(
                "/extensions/csco/tenants/{tenant}/portprofiles/{profile}/disassociate_portprofile",
                "portprofiles.disassociate",
                "Dissociate a port profile from a port",
                Answer::Page,
            )
        },
    ],
};

const QOS_ID: Field = text("id", QOS, "The level's id.");
const QOS_FULL: Shape = Shape::Object(&[object(
    "qos",
    &[
        QOS_ID,
        maybe("name", Kind::MaybeText("gold"), "The level's name; null, in XML `None`, if it is empty."),
        maybe("description", Kind::MaybeElement("10 Gbit/s"), "Its description, or null."),
    ],
)]);
const QOS_BODY: &[Field] = &[
    text("qos_name", "gold", "The level's name."),
    anything(
        "qos_desc",
        "10 Gbit/s",
        "Its description. What is no text is kept as the one that Python 2 makes of it, what is empty, false or 0 as `None`.",
    ),
];
const QOS_LIST_PATH: &str = "/extensions/csco/tenants/{tenant}/qoss";
const QOS_PATH: &str = "/extensions/csco/tenants/{tenant}/qoss/{qos}";

pub(super) const QOS_LEVELS: Chapter = Chapter {
    title: "QoS levels",
    about: "Names and descriptions that port profiles refer to. Stored and shown.",
    extension: Some("Cisco qos"),
    operations: &[
        get(
            QOS_LIST_PATH,
            "qoss.list",
            "List QoS levels",
            Answer::Legacy("qoss", Shape::List { item: "qos", fields: &[QOS_ID] }),
        ),
        Operation {
            method: "POST",
            request: required("qos", QOS_BODY),
            makes: Some(Makes { parameter: "qos", pointer: "/qoss/qos/id" }),
            faults: &[&LEGACY_MALFORMED, &LEGACY_TOO_MANY, &NOT_ALLOWED, &STORE],
            given: Given::Nothing,
            ..get(
                QOS_LIST_PATH,
                "qoss.create",
                "Create a QoS level",
                Answer::Legacy("qoss", Shape::Object(&[object("qos", &[QOS_ID])])),
            )
        },
        Operation {
            faults: &[&QOS_NOT_FOUND],
            ..get(QOS_PATH, "qoss.show", "Show a QoS level", Answer::Legacy("qoss", QOS_FULL))
        },
        Operation {
            method: "PUT",
            about: "The description stays, though it must be sent, and so does the name if an empty one is sent.",
            request: required("qos", QOS_BODY),
            faults: &[&LEGACY_MALFORMED, &QOS_NOT_FOUND, &NOT_ALLOWED, &STORE],
            ..get(QOS_PATH, "qoss.update", "Rename a QoS level", Answer::Legacy("qoss", QOS_FULL))
        },
        Operation {
            method: "DELETE",
            faults: &[&QOS_NOT_FOUND, &NOT_ALLOWED, &STORE],
            ..get(QOS_PATH, "qoss.delete", "Delete a QoS level", Answer::Page)
        },
    ],
};

const NOVA_TENANT_PATH: &str = "/extensions/csco/tenants/{tenant}/novatenants/{novatenant}";
const DUMMY: Answer = Answer::Said("novatenant is a dummy resource");
const INSTANCE_ID: Field = anything("instance_id", "instance-1", "The instance.");
const INSTANCE: &[Field] = &[INSTANCE_ID, anything("instance_desc", "one of two", "What there is to say of it.")];
const INSTANCE_WITH_INTERFACE: &[Field] = &[
    INSTANCE_ID,
    object(
        "instance_desc",
        &[text("vif_id", INTERFACE, "The interface, which is plugged into one of the tenant's ports.")],
    ),
];

pub(super) const NOVA_TENANTS: Chapter = Chapter {
    title: "Nova tenants",
    about: "What Nova's scheduler and VIF driver ask about an instance.",
    extension: Some("Cisco Nova Tenant"),
    operations: &[
        Operation {
            method: "POST",
            ..get("/extensions/csco/tenants/{tenant}/novatenants", "novatenants.create", "Create nothing", DUMMY)
        },
        get(NOVA_TENANT_PATH, "novatenants.show", "Show nothing", DUMMY),
        Operation { method: "PUT", ..get(NOVA_TENANT_PATH, "novatenants.update", "Change nothing", DUMMY) },
        Operation { method: "DELETE", ..get(NOVA_TENANT_PATH, "novatenants.delete", "Delete nothing", DUMMY) },
        Operation {
            method: "PUT",
            about: "It is this host: every interface is carried here.",
            request: required("novatenant", INSTANCE),
            faults: &[&LEGACY_MALFORMED],
            ..get(
                "/extensions/csco/tenants/{tenant}/novatenants/{novatenant}/schedule_host",
                "novatenants.schedule_host",
                "Ask for the host of an instance",
                Answer::Legacy("host_list", Shape::Object(&[element("host_1", HOST[0], "The host's name.")])),
            )
        },
        Operation {
            method: "PUT",
            request: required("novatenant", INSTANCE_WITH_INTERFACE),
            faults: &[&LEGACY_MALFORMED, &LEGACY_PORT_NOT_FOUND, &BACKEND],
            ..get(
                "/extensions/csco/tenants/{tenant}/novatenants/{novatenant}/associate_port",
                "novatenants.associate_port",
                "Ask for the device of an interface",
                Answer::Legacy(
                    "vif_desc",
                    Shape::Object(&[
                        element(
                            "device",
                            "tape4a7c5d8-90",
                            "The name of the device, or the path of its socket; empty if it can have none.",
                        ),
                        element("portprofile", "web", "The name of the port's profile; empty if it has none."),
                    ]),
                ),
            )
        },
        Operation {
            method: "PUT",
            about: "Nothing has to be given back.",
            request: required("novatenant", INSTANCE),
            faults: &[&LEGACY_MALFORMED],
            ..get(
                "/extensions/csco/tenants/{tenant}/novatenants/{novatenant}/detach_port",
                "novatenants.detach_port",
                "Give back the port of an instance",
                Answer::Legacy("result", Shape::Flag),
            )
        },
    ],
};

pub(super) const MULTIPORT: Chapter = Chapter {
    title: "Several ports at once",
    about: "",
    extension: Some("Cisco Multiport"),
    operations: &[Operation {
        method: "POST",
        about: "One on each of the networks: all of them, or none.",
        request: required(
            "multiport",
            &[
                Field {
                    name: "net_id_list",
                    kind: Kind::TextsOrText(NETWORK),
                    need: Need::Always,
                    about: "The networks: a list, or one text with commas or blanks between.",
                },
                text("status", "ACTIVE", "The ports' state: `ACTIVE` or `DOWN`."),
                anything("ports_desc", "none", "Not looked at."),
            ],
        ),
        faults: &[&LEGACY_MALFORMED, &NETWORK_NOT_FOUND, &STATE_INVALID, &OVER_QUOTA, &NOT_ALLOWED, &STORE, &BACKEND],
        given: Given::Vacant,
        ..get(
            "/extensions/csco/tenants/{tenant}/multiport",
            "multiport.create",
            "Create ports on several networks",
            Answer::Legacy("ports", Shape::List { item: "port", fields: &[element("id", PORT, "The port's id.")] }),
        )
    }],
};

const CREDENTIAL_ID: Field = text("id", CREDENTIAL, "The credential's id.");
const CREDENTIAL_FULL: Shape = Shape::Object(&[object(
    "credential",
    &[
        CREDENTIAL_ID,
        maybe("name", Kind::MaybeText("operator"), "The user's name, or null; once it was renamed, that name."),
        element("password", "********", "A mask: the password is sealed and never told."),
    ],
)]);
const CREDENTIAL_RENAMED: Shape = Shape::Object(&[object(
    "credential",
    &[
        CREDENTIAL_ID,
        maybe("name", Kind::MaybeText("rack 4"), "Its name, or null."),
        element("password", "********", "A mask: the password is sealed and never told."),
    ],
)]);
const CREDENTIAL_BODY: &[Field] = &[
    text("credential_name", "rack 4", "The credential's name."),
    text("user_name", "operator", "The user's name."),
    text("password", "correct horse", "The password."),
];
const RENAME_BODY: &[Field] = &[
    text("credential_name", "rack 4", "The new name."),
    anything("user_name", "operator", "Not looked at."),
    anything("password", "correct horse", "Not looked at."),
];
const CREDENTIALS_PATH: &str = "/extensions/csco/tenants/{tenant}/credentials";
const CREDENTIAL_PATH: &str = "/extensions/csco/tenants/{tenant}/credentials/{credential}";

pub(super) const CREDENTIALS: Chapter = Chapter {
    title: "Credentials",
    about: "Names and passwords of devices. By default only admins see that there are any.",
    extension: Some("Cisco Credential"),
    operations: &[
        get(
            CREDENTIALS_PATH,
            "credentials.list",
            "List credentials",
            Answer::Legacy("credentials", Shape::List { item: "credential", fields: &[CREDENTIAL_ID] }),
        ),
        Operation {
            method: "POST",
            request: required("credential", CREDENTIAL_BODY),
            makes: Some(Makes { parameter: "credential", pointer: "/credentials/credential/id" }),
            faults: &[&LEGACY_MALFORMED, &LEGACY_TOO_MANY, &NOT_ALLOWED, &STORE],
            given: Given::Nothing,
            ..get(
                CREDENTIALS_PATH,
                "credentials.create",
                "Create a credential",
                Answer::Legacy("credentials", Shape::Object(&[object("credential", &[CREDENTIAL_ID])])),
            )
        },
        Operation {
            faults: &[&CREDENTIAL_NOT_FOUND],
            ..get(
                CREDENTIAL_PATH,
                "credentials.show",
                "Show a credential",
                Answer::Legacy("credentials", CREDENTIAL_FULL),
            )
        },
        Operation {
            method: "PUT",
            about: "User and password stay, though they must be sent, and so does the name if an empty one is sent.",
            request: required("credential", RENAME_BODY),
            faults: &[&LEGACY_MALFORMED, &CREDENTIAL_NOT_FOUND, &NOT_ALLOWED, &STORE],
            ..get(
                CREDENTIAL_PATH,
                "credentials.update",
                "Rename a credential",
                Answer::Legacy("credentials", CREDENTIAL_RENAMED),
            )
        },
        Operation {
            method: "DELETE",
            faults: &[&CREDENTIAL_NOT_FOUND, &NOT_ALLOWED, &STORE],
            ..get(CREDENTIAL_PATH, "credentials.delete", "Delete a credential", Answer::Page)
        },
    ],
};
