//! Where things are in etcd, below the prefix of one cloud. Pure.
//!
//! | key | is | written by |
//! |---|---|---|
//! | `head` | which write of tenants' records was last | every such write, which asks for the one before it |
//! | `compacted` | from when on history is kept at least | who has etcd forget what was before |
//! | `writer/BOOT` | the last such write of a host since this start of it | with it |
//! | `network/ID`, `port/ID`, `extra/KIND/ID` | tenants' records, as in an embedded store | whoever serves the API |
//! | `freed/SEGMENT` | a VLAN or VNI that a network had until lately, with its tenant | who removed it, under a lease |
//! | `node/HOST` | a host that lives | that host, under its lease |
//! | `plug/INTERFACE` | an interface that is plugged, and on which host | that host, under its lease |

use crate::etcd::message::Blob;

/// A key, read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Key<'a> {
    /// The last write of tenants' records.
    Head,
    /// The last time that history was cut.
    Compacted,
    /// The last write of a host, by its start: two hosts may have one name.
    Writer(&'a str),
    /// A network, by its id.
    Network(&'a str),
    /// A port, by its id.
    Port(&'a str),
    /// What an extension keeps: its kind, and an id.
    Extra(&'a str, &'a str),
    /// A VLAN or VNI that was a network's, by its name.
    Freed(&'a str),
    /// A host that lives, by its name.
    Node(&'a str),
    /// A plugged interface, by its id.
    Plug(&'a str),
}

/// The keys of one cloud.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    /// Ends with a slash.
    prefix: String,
}

impl Keys {
    /// Those below `prefix`, which ends with no slash.
    pub(super) fn below(prefix: &str) -> Keys {
        Keys { prefix: format!("{prefix}/") }
    }

    /// What all of them begin with, as text.
    pub(super) fn prefix_text(&self) -> &str {
        &self.prefix
    }

    /// What all of them begin with.
    pub(super) fn prefix(&self) -> Blob {
        Blob(self.prefix.clone().into_bytes())
    }

    /// Where something is.
    pub(super) fn of(&self, key: Key<'_>) -> Blob {
        let (folder, name) = match key {
            Key::Head => ("head", ""),
            Key::Compacted => ("compacted", ""),
            Key::Writer(boot) => ("writer/", boot),
            Key::Network(id) => ("network/", id),
            Key::Port(id) => ("port/", id),
            Key::Extra(kind, id) => return Blob(format!("{}extra/{kind}/{id}", self.prefix).into_bytes()),
            Key::Freed(segment) => ("freed/", segment),
            Key::Node(host) => ("node/", host),
            Key::Plug(interface) => ("plug/", interface),
        };
        Blob(format!("{}{folder}{name}", self.prefix).into_bytes())
    }

    /// The key of these bytes; `None`: none of this version.
    pub(super) fn read<'a>(&self, bytes: &'a Blob) -> Option<Key<'a>> {
        let text = std::str::from_utf8(&bytes.0).ok()?.strip_prefix(&*self.prefix)?;
        let Some((folder, name)) = text.split_once('/') else {
            return match text {
                "head" => Some(Key::Head),
                "compacted" => Some(Key::Compacted),
                _ => None,
            };
        };
        if name.is_empty() {
            return None;
        }
        match folder {
            "writer" => Some(Key::Writer(name)),
            "network" => Some(Key::Network(name)),
            "port" => Some(Key::Port(name)),
            "extra" => name.split_once('/').map(|(kind, id)| Key::Extra(kind, id)),
            "freed" => Some(Key::Freed(name)),
            "node" => Some(Key::Node(name)),
            "plug" => Some(Key::Plug(name)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written_whatever_tenants_call_things() {
        let keys = Keys::below("/qvs");
        let odd = "a/b\n\u{e9}//";
        for key in [
            Key::Head,
            Key::Compacted,
            Key::Writer("b"),
            Key::Network(odd),
            Key::Port("p"),
            Key::Extra("qos", odd),
            Key::Freed("vlan/a/b/7"),
            Key::Node("h.example"),
            Key::Plug(odd),
        ] {
            assert_eq!(keys.read(&keys.of(key)), Some(key));
        }
        for text in
            ["/qvs", "/qvs/", "/qvs/heads", "/qvs/head/x", "/qvs/port", "/qvs/port/", "/qvs/extra/x", "/other/head"]
        {
            assert_eq!(keys.read(&Blob(text.as_bytes().to_vec())), None, "{text}");
        }
        assert_eq!(keys.read(&Blob(vec![b'/', b'q', b'v', b's', b'/', 0xff])), None);
    }
}
