//! What the native plugin asks of the hypervisor it drives. The daemon implements it.

use crate::model::{InterfaceId, Model, OpStatus, PortId, Text, Touched};
use crate::plugin::PortStats;
use std::net::IpAddr;
use switch::underlay::VlanId;

/// How much of the tenants' state may have changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope<'a> {
    /// All of it.
    All,
    /// Only what concerns these; each may come more than once. None of them is no change to the host at all.
    Parts(&'a Touched),
}

/// The host's side of the native plugin.
pub trait Host: Send + Sync {
    /// The tenants' state changed, within `scope`, and is committed. Puts it in force: makes automatic devices where the
    /// settings ask for them, lowers, checks, compiles and publishes. Returns after publication, so that the API answers
    /// after it.
    fn put_in_force(&self, model: &Model, scope: Scope<'_>);

    /// The op-status of a logical port: UP where its state is ACTIVE and the device it is attached to stands ready; asked on every read, never stored.
    fn op_status(&self, model: &Model, port: &PortId) -> OpStatus;

    /// What the interface of a logical port has passed; zeros if none is plugged. `None`: it is plugged on another host, which
    /// alone knows.
    fn port_stats(&self, _model: &Model, _port: &PortId) -> Option<PortStats> {
        Some(PortStats::default())
    }

    /// By what the device of a logical port's interface is known: a name or a path, empty where none can be made. `None`: this
    /// host has none for it.
    fn port_device(&self, _model: &Model, _port: &PortId) -> Option<Text> {
        None
    }
}

/// Longest interface name, bytes: the kernel's `IFNAMSIZ` less its NUL.
pub const INTERFACE_NAME_MAX: usize = 15;
/// Bytes of the id that an automatic name keeps: Nova's and Quantum's custom (`tap` + 11 = 14).
const ID_PREFIX_LEN: usize = 11;

/// The name of the automatic device of interface `id`: `prefix` and the first 11 bytes of the id, or the whole id if it
/// begins with `gw-` and is short enough. `None` if these bytes are not plain: an id is whatever text a tenant sent, and only
/// here does a part of it become a name of the host.
pub fn automatic_name(prefix: &str, id: &str) -> Option<String> {
    if id.starts_with("gw-") && id.len() <= INTERFACE_NAME_MAX && is_plain(id.as_bytes()) {
        return Some(id.to_owned());
    }
    let bytes = &id.as_bytes()[..id.len().min(ID_PREFIX_LEN)];
    let text = std::str::from_utf8(bytes).ok().filter(|text| is_plain(text.as_bytes()))?;
    Some(format!("{prefix}{text}"))
}

/// Whether it matches `[A-Za-z0-9][A-Za-z0-9._-]*`.
fn is_plain(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

/// A plug: the host side of an attachment, as an operator made it or as the settings made it automatically. Durable.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Plug {
    /// The text a tenant plugs as attachment.
    pub interface: InterfaceId,
    /// The device.
    pub device: DeviceSpec,
    /// The only source MACs it may use, as text; empty: any.
    pub macs: Vec<String>,
    /// The addresses that it has with its one MAC, which others on its network are told when they ask.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Bytes of L3 payload; `None`: 1500, or what a device that somebody else made has at each moment.
    pub mtu: Option<u16>,
    /// The only tenant whose networks it may join; `None`: any.
    pub tenant: Option<String>,
    /// Made by `attach.auto`, removed when the attachment goes.
    pub is_automatic: bool,
    /// Where a TAP was made by us, in the daemon's own words; only there an existing device of its name is taken for
    /// ours. `None`: nowhere yet. Set before the device is made, so that kill -9 leaves none that nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<String>,
}

impl Plug {
    /// A plug of this device that any tenant may use, with any source MAC.
    pub fn new(interface: impl Into<InterfaceId>, device: DeviceSpec) -> Plug {
        Plug {
            interface: interface.into(),
            device,
            macs: Vec::new(),
            addresses: Vec::new(),
            mtu: None,
            tenant: None,
            is_automatic: false,
            made: None,
        }
    }
}

/// How the frames of a plug get in and out.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum DeviceSpec {
    /// A vhost-user socket.
    VhostUser {
        /// Absolute, at most 107 bytes.
        path: String,
        /// The switch's role.
        role: SocketRole,
    },
    /// A TAP made by us.
    Tap {
        /// Its name.
        name: String,
        /// A name under /run/netns or an absolute path; `None`: the daemon's own namespace.
        netns: Option<String>,
        /// Queues each way, at least one.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        queues: u16,
    },
    /// A network interface that somebody else made.
    Device {
        /// Its name.
        name: String,
        /// A name under /run/netns or an absolute path; `None`: the daemon's own namespace.
        netns: Option<String>,
        /// How its frames are moved; `None`: as suits its kind.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        driver: Option<DeviceDriver>,
    },
    /// A VLAN of another plug's device, which is a trunk by this.
    Vlan {
        /// The interface id of the other plug, which is no VLAN itself.
        parent: InterfaceId,
        /// The VLAN there.
        #[serde(with = "vlan_id")]
        vlan: VlanId,
    },
}

/// How the frames of a device are moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceDriver {
    /// Packet sockets.
    AfPacket,
    /// AF_XDP.
    AfXdp,
}

/// A VLAN id as its number.
mod vlan_id {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use switch::underlay::VlanId;

    pub(super) fn serialize<S: Serializer>(vlan: &VlanId, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u16(vlan.get())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<VlanId, D::Error> {
        let id = u16::deserialize(from)?;
        VlanId::new(id).ok_or_else(|| D::Error::custom(format_args!("{id} is no VLAN id")))
    }
}

/// The number of queues of a TAP that was plugged without one, or before there was a number.
fn one() -> u16 {
    1
}

fn is_one(queues: &u16) -> bool {
    *queues == 1
}

/// Who listens on a vhost-user socket, by the switch's role.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketRole {
    /// The switch listens.
    Server,
    /// QEMU listens; the switch connects.
    Client,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn automatic_names_are_the_id_s_beginning_where_that_is_safe() {
        for (id, expected) in [
            ("f3a1c2d4-5566-7788-99aa-bbccddeeff00", Some("tapf3a1c2d4-55")),
            ("vm1", Some("tapvm1")),
            ("gw-abc", Some("gw-abc")),
            ("gw-123456789012", Some("gw-123456789012")),
            ("gw-1234567890123", Some("tapgw-12345678")),
            ("gw-a b", None),
            ("../../etc", None),
            (".hidden", None),
            ("-rf", None),
            ("a/b", None),
            ("a'b", None),
            ("0123456789é", None),
            ("01234567890é", Some("tap01234567890")),
            ("", None),
        ] {
            assert_eq!(automatic_name("tap", id).as_deref(), expected, "{id:?}");
        }
    }
}
