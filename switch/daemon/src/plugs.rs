//! What an operator may plug: the check of one request at the border, and what conflicts with what is there. Pure.

use crate::devices::{device_name, do_clash};
use crate::naming;
use crate::settings::{Role, check_socket_path};
use api::host::{DeviceDriver, DeviceSpec, Plug, SocketRole};
use api::model::{InterfaceId, TEXT_BYTES_MAX};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use switch::config::{MTU_DEFAULT, MTU_MAX, MTU_MIN};
use switch::ids::{MacAddr, PORTS_MAX, QUEUES_MAX};
use switch::underlay::VlanId;

/// Most fixed MACs an interface may have; a guest with more is a router and is plugged without any.
const MACS_MAX: usize = 64;

/// Most addresses an interface may be plugged with.
const ADDRESSES_MAX: usize = 64;

/// A plug as asked for on the admin socket; nothing in it has been checked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlugRequest {
    /// Interface id.
    pub(crate) interface: String,
    /// The device.
    pub(crate) device: DeviceRequest,
    /// Fixed source MACs; empty: any.
    #[serde(default)]
    pub(crate) macs: Vec<String>,
    /// Addresses that it has with its one MAC.
    #[serde(default)]
    pub(crate) addresses: Vec<String>,
    /// Bytes of L3 payload.
    #[serde(default)]
    pub(crate) mtu: Option<u16>,
    /// The only tenant.
    #[serde(default)]
    pub(crate) tenant: Option<String>,
    /// Take the place of what conflicts.
    #[serde(default)]
    pub(crate) replace: bool,
}

/// The device of a request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum DeviceRequest {
    /// A vhost-user socket.
    VhostUser {
        /// Where.
        path: String,
        /// The switch's role; `None`: as the settings say.
        #[serde(default)]
        role: Option<Role>,
    },
    /// A TAP.
    Tap {
        /// Its name.
        name: String,
        /// A namespace's name or path.
        #[serde(default)]
        netns: Option<String>,
        /// Queues each way; `None`: one.
        #[serde(default)]
        queues: Option<u16>,
    },
    /// A network interface that somebody else made.
    Device {
        /// Its name.
        name: String,
        /// A namespace's name or path.
        #[serde(default)]
        netns: Option<String>,
        /// How its frames are moved; `None`: as suits its kind.
        #[serde(default)]
        driver: Option<DeviceDriver>,
    },
    /// A VLAN of another interface's device.
    Vlan {
        /// The other interface.
        parent: String,
        /// Its number there.
        vlan: u16,
    },
}

/// Why a plug or unplug was refused; its text is the one line the user sees.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum PlugError {
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The id is plugged with other arguments.
    #[error("{interface:?} is plugged already, with other arguments; --replace changes it")]
    OtherArguments {
        /// The id.
        interface: InterfaceId,
    },
    /// Another id has the device.
    #[error("{device:?} belongs to interface {owner:?}; --replace takes it away from there")]
    DeviceTaken {
        /// The device.
        device: String,
        /// The id that has it.
        owner: InterfaceId,
    },
    /// Another host has it.
    #[error("{interface:?} is plugged on host {host:?}; unplug it there first")]
    Elsewhere {
        /// The id.
        interface: InterfaceId,
        /// The host.
        host: String,
    },
    /// This node has no part in that.
    #[error("this node carries nothing: its node.roles are without \"switch\"")]
    NoSwitch,
    /// Something that is not ours has the name.
    #[error("{0}")]
    NotOurs(String),
    /// No port left.
    #[error("the switch has its {PORTS_MAX} ports; unplug one first")]
    TooManyPorts,
    /// Not plugged.
    #[error("{0:?} is not plugged")]
    Unknown(String),
    /// Made by `attach.auto` for an attachment that is still there.
    #[error("{0:?} is automatic (attach.auto): it goes when its attachment is unplugged by the API")]
    Automatic(InterfaceId),
    /// The store failed.
    #[error("{0}")]
    Store(String),
    /// A device would not go.
    #[error("the device of {0:?} is still being closed; try again")]
    Busy(String),
}

impl From<api::store::StoreError> for PlugError {
    fn from(error: api::store::StoreError) -> PlugError {
        PlugError::Store(error.to_string())
    }
}

/// Checks a request and makes the plug of it. `role` is the one of sockets that name none.
///
/// # Errors
/// [`PlugError::Invalid`] with one line for the user.
pub(crate) fn check(request: PlugRequest, role: Role) -> Result<Plug, PlugError> {
    check_text("interface id", &request.interface)?;
    if let Some(tenant) = &request.tenant {
        check_text("tenant", tenant)?;
    }
    let device = match request.device {
        DeviceRequest::VhostUser { path, role: given } => {
            check_socket_path(Path::new(&path)).map_err(PlugError::Invalid)?;
            let role = match given.unwrap_or(role) {
                Role::Server => SocketRole::Server,
                Role::Client => SocketRole::Client,
            };
            DeviceSpec::VhostUser { path, role }
        }
        DeviceRequest::Tap { name, netns, queues } => {
            naming::check_interface_name(&name).map_err(PlugError::Invalid)?;
            let netns = netns.map(|netns| naming::netns_path(&netns)).transpose().map_err(PlugError::Invalid)?;
            let queues = queues.unwrap_or(1);
            if !(1..=QUEUES_MAX).contains(&usize::from(queues)) {
                return Err(PlugError::Invalid(format!("{queues} queues; a TAP has 1 to {QUEUES_MAX}")));
            }
            DeviceSpec::Tap { name, netns, queues }
        }
        DeviceRequest::Device { name, netns, driver } => {
            naming::check_interface_name(&name).map_err(PlugError::Invalid)?;
            let netns = netns.map(|netns| naming::netns_path(&netns)).transpose().map_err(PlugError::Invalid)?;
            DeviceSpec::Device { name, netns, driver }
        }
        DeviceRequest::Vlan { parent, vlan } => {
            check_text("parent", &parent)?;
            if parent == request.interface {
                return Err(PlugError::Invalid(format!("{parent:?} cannot be a VLAN of itself")));
            }
            let id = VlanId::new(vlan);
            let id = id.ok_or_else(|| PlugError::Invalid(format!("VLAN {vlan} must be 1 to {}", VlanId::MAX)))?;
            DeviceSpec::Vlan { parent: parent.into(), vlan: id }
        }
    };
    if let Some(mtu) = request.mtu.filter(|mtu| !(MTU_MIN..=MTU_MAX).contains(mtu)) {
        return Err(PlugError::Invalid(format!("MTU {mtu} must be {MTU_MIN} to {MTU_MAX}")));
    }
    // The default written out is the same plug as the default left out.
    let has_default = !matches!(device, DeviceSpec::Device { .. });
    let mtu = request.mtu.filter(|&mtu| !has_default || mtu != MTU_DEFAULT);
    let macs = check_macs(&request.macs)?;
    Ok(Plug {
        interface: request.interface.into(),
        device,
        addresses: check_addresses(&request.addresses, &macs)?,
        macs,
        mtu,
        tenant: request.tenant,
        is_automatic: false,
        made: None,
    })
}

/// Each MAC in its one spelling, each once, in order: what is compared must not depend on how it was written.
fn check_macs(texts: &[String]) -> Result<Vec<String>, PlugError> {
    let mut macs = Vec::new();
    for text in texts {
        let mac: MacAddr = text.parse().map_err(|error: switch::ids::BadMac| PlugError::Invalid(error.to_string()))?;
        if mac.is_group() || mac.is_zero() {
            return Err(PlugError::Invalid(format!("{mac} is no station's address: a group address or zero")));
        }
        macs.push(mac);
    }
    macs.sort_unstable();
    macs.dedup();
    if macs.len() > MACS_MAX {
        return Err(PlugError::Invalid(format!(
            "{} MACs are more than the {MACS_MAX} an interface may have",
            macs.len()
        )));
    }
    Ok(macs.iter().map(MacAddr::to_string).collect())
}

/// The addresses of an interface, each once, in order. Who asks for one is told the MAC, so there must be just one.
fn check_addresses(texts: &[String], macs: &[String]) -> Result<Vec<IpAddr>, PlugError> {
    let parse = |text: &String| {
        let address = text.parse::<IpAddr>().ok().filter(is_hosts);
        address.ok_or_else(|| PlugError::Invalid(format!("{text:?} is no host's IP address")))
    };
    let mut addresses = texts.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.len() > ADDRESSES_MAX {
        let count = addresses.len();
        let message = format!("{count} addresses are more than the {ADDRESSES_MAX} an interface may have");
        return Err(PlugError::Invalid(message));
    }
    if !addresses.is_empty() && macs.len() != 1 {
        return Err(PlugError::Invalid("an interface with --ip needs one --mac, which has these addresses".into()));
    }
    Ok(addresses)
}

fn is_hosts(address: &IpAddr) -> bool {
    let is_broadcast = *address == IpAddr::V4(Ipv4Addr::BROADCAST);
    !address.is_multicast() && !address.is_unspecified() && !address.is_loopback() && !is_broadcast
}

fn check_text(what: &str, text: &str) -> Result<(), PlugError> {
    let fault = match text.len() {
        0 => "is empty".to_owned(),
        len if len > TEXT_BYTES_MAX => format!("has {len} bytes; at most {TEXT_BYTES_MAX} are allowed"),
        _ if text.contains('\0') => "contains NUL".to_owned(),
        _ => return Ok(()),
    };
    Err(PlugError::Invalid(format!("the {what} {fault}")))
}

/// Whether two plugs of one id ask for the same, whoever asked.
pub(crate) fn is_same_request(one: &Plug, other: &Plug) -> bool {
    (&one.device, &one.macs, &one.addresses) == (&other.device, &other.macs, &other.addresses)
        && (one.mtu, &one.tenant) == (other.mtu, &other.tenant)
}

/// The interface that has the device of `plug` under another id.
pub(crate) fn device_owner<'a>(plugs: &'a BTreeMap<InterfaceId, Plug>, plug: &Plug) -> Option<&'a InterfaceId> {
    let owner = plugs.values().find(|other| other.interface != plug.interface && do_clash(&other.device, &plug.device));
    owner.map(|owner| &owner.interface)
}

/// What stands in the way of `plug` among `plugs`; `None`: nothing, or the same plug.
pub(crate) fn conflict(plugs: &BTreeMap<InterfaceId, Plug>, plug: &Plug) -> Option<PlugError> {
    if let Some(owner) = device_owner(plugs, plug) {
        return Some(PlugError::DeviceTaken { device: device_name(&plug.device).to_owned(), owner: owner.clone() });
    }
    let is_vlan = |plug: &Plug| matches!(plug.device, DeviceSpec::Vlan { .. });
    if let DeviceSpec::Vlan { parent, .. } = &plug.device {
        let is_parent =
            |other: &Plug| matches!(&other.device, DeviceSpec::Vlan { parent, .. } if *parent == plug.interface);
        if plugs.get(parent).is_some_and(is_vlan) || plugs.values().any(is_parent) {
            return Some(PlugError::Invalid(format!(
                "a VLAN has no VLANs: one of {parent:?} and {:?} is one",
                plug.interface
            )));
        }
    }
    let known = plugs.get(&plug.interface)?;
    (!is_same_request(known, plug)).then(|| PlugError::OtherArguments { interface: plug.interface.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tap(interface: &str, name: &str, netns: Option<&str>) -> PlugRequest {
        PlugRequest {
            interface: interface.into(),
            device: DeviceRequest::Tap { name: name.into(), netns: netns.map(str::to_owned), queues: None },
            macs: Vec::new(),
            addresses: Vec::new(),
            mtu: None,
            tenant: None,
            replace: false,
        }
    }

    fn device(interface: &str, name: &str, mtu: Option<u16>) -> PlugRequest {
        let device = DeviceRequest::Device { name: name.into(), netns: None, driver: None };
        PlugRequest { device, mtu, ..tap(interface, "t", None) }
    }

    fn vhost(path: &str, role: Option<Role>) -> PlugRequest {
        PlugRequest { device: DeviceRequest::VhostUser { path: path.into(), role }, ..tap("vm1", "t", None) }
    }

    #[test]
    fn a_socket_without_a_role_gets_the_one_of_the_settings() {
        for (given, default, expected) in [
            (None, Role::Server, SocketRole::Server),
            (None, Role::Client, SocketRole::Client),
            (Some(Role::Server), Role::Client, SocketRole::Server),
        ] {
            let plug = check(vhost("/run/x", given), default).unwrap();
            assert_eq!(plug.device, DeviceSpec::VhostUser { path: "/run/x".into(), role: expected });
        }
    }

    #[test]
    fn wrong_requests_are_refused_with_one_line() {
        let long = "x".repeat(1025);
        for (request, expected) in [
            (tap("", "t", None), "the interface id is empty"),
            (tap(&long, "t", None), "the interface id has 1025 bytes"),
            (tap("a\0b", "t", None), "the interface id contains NUL"),
            (tap("vm1", "a/b", None), "\"a/b\" is no interface name"),
            (tap("vm1", "t", Some("../x")), "\"../x\" is no name of a namespace"),
            (device("vm1", "eth%d", None), "\"eth%d\" is no interface name"),
            (vhost("relative", None), "\"relative\" must be an absolute path"),
            (vhost(&format!("/{}", "x".repeat(107)), None), "\"/xxx"),
            (vhost("/a\0b", None), "\"/a\\0b\" must be an absolute path"),
            (PlugRequest { mtu: Some(67), ..tap("vm1", "t", None) }, "MTU 67 must be 68 to 65521"),
            (PlugRequest { tenant: Some(String::new()), ..tap("vm1", "t", None) }, "the tenant is empty"),
            (PlugRequest { macs: vec!["x".into()], ..tap("vm1", "t", None) }, "\"x\" is no MAC address"),
            (
                PlugRequest { macs: vec!["01:00:00:00:00:01".into()], ..tap("vm1", "t", None) },
                "01:00:00:00:00:01 is no station's address",
            ),
        ] {
            let message = check(request, Role::Server).unwrap_err().to_string();
            assert!(message.starts_with(expected) && !message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn a_vlan_is_one_of_another_interface_and_each_is_one_interfaces() {
        let vlan = |interface: &str, parent: &str, vlan| {
            let device = DeviceRequest::Vlan { parent: parent.into(), vlan };
            check(PlugRequest { device, ..tap(interface, "t", None) }, Role::Server)
        };
        for (interface, parent, id) in [("a", "a", 5), ("a", "b", 0), ("a", "b", 4095), ("a", "", 5)] {
            assert!(matches!(vlan(interface, parent, id), Err(PlugError::Invalid(_))), "{interface} {parent} {id}");
        }
        let plugs: BTreeMap<InterfaceId, Plug> =
            [check(tap("trunk", "t", None), Role::Server).unwrap(), vlan("five", "trunk", 5).unwrap()]
                .map(|plug| (plug.interface.clone(), plug))
                .into();
        let conflict = |plug: Result<Plug, PlugError>| conflict(&plugs, &plug.unwrap());
        assert_eq!(conflict(vlan("six", "trunk", 6)), None);
        assert_eq!(conflict(vlan("late", "not-yet", 5)), None);
        assert!(matches!(conflict(vlan("other", "trunk", 5)), Some(PlugError::DeviceTaken { .. })));
        assert!(matches!(conflict(vlan("inner", "five", 5)), Some(PlugError::Invalid(_))));
        assert!(matches!(conflict(vlan("trunk", "other", 5)), Some(PlugError::Invalid(_))));
        assert!(matches!(conflict(check(tap("five", "t", None), Role::Server)), Some(PlugError::DeviceTaken { .. })));
    }

    #[test]
    fn addresses_go_with_one_mac_and_are_hosts() {
        let with = |macs: &[&str], addresses: &[&str]| {
            let texts = |them: &[&str]| them.iter().map(|&text| text.to_owned()).collect();
            check(PlugRequest { macs: texts(macs), addresses: texts(addresses), ..tap("vm1", "t", None) }, Role::Server)
        };
        let plug = with(&["02:00:00:00:00:01"], &["fd00::1", "10.0.0.1", "10.0.0.1"]).unwrap();
        assert_eq!(plug.addresses, ["10.0.0.1", "fd00::1"].map(|text| text.parse::<IpAddr>().unwrap()));
        for (macs, addresses) in [
            (&[][..], &["10.0.0.1"][..]),
            (&["02:00:00:00:00:01", "02:00:00:00:00:02"], &["10.0.0.1"]),
            (&["02:00:00:00:00:01"], &["10.0.0.1/24"]),
            (&["02:00:00:00:00:01"], &["224.0.0.1"]),
            (&["02:00:00:00:00:01"], &["::"]),
            (&["02:00:00:00:00:01"], &["255.255.255.255"]),
        ] {
            assert!(matches!(with(macs, addresses), Err(PlugError::Invalid(_))), "{macs:?} {addresses:?}");
        }
    }

    #[test]
    fn one_request_has_one_plug_however_it_is_written() {
        let one = PlugRequest {
            macs: vec!["02:00:00:00:00:0B".into(), "02:00:00:00:00:0a".into(), "02:00:00:00:00:0b".into()],
            mtu: Some(1500),
            ..tap("vm1", "t", Some("red"))
        };
        let other = PlugRequest {
            macs: vec!["02:00:00:00:00:0a".into(), "02:00:00:00:00:0b".into()],
            ..tap("vm1", "t", Some("/run/netns/red"))
        };
        assert_eq!(check(one, Role::Server).unwrap(), check(other, Role::Server).unwrap());
    }

    #[test]
    fn a_device_has_no_mtu_but_the_one_it_was_given() {
        let plug = |mtu| check(device("vm1", "eth0", mtu), Role::Server).unwrap();
        assert_eq!((plug(None).mtu, plug(Some(1500)).mtu), (None, Some(1500)));
    }

    #[test]
    fn a_tap_and_a_device_of_one_name_are_one_interface() {
        let plug = |request| check(request, Role::Server).unwrap();
        let plugs = BTreeMap::from([("vm1".into(), plug(tap("vm1", "eth0", None)))]);
        let taken = conflict(&plugs, &plug(device("vm2", "eth0", None)));
        assert!(matches!(taken, Some(PlugError::DeviceTaken { .. })), "{taken:?}");
        assert!(matches!(conflict(&plugs, &plug(device("vm1", "eth0", None))), Some(PlugError::OtherArguments { .. })));
        assert_eq!(conflict(&plugs, &plug(device("vm2", "eth1", None))), None);
    }

    #[test]
    fn the_same_again_is_no_conflict_but_other_arguments_and_shared_devices_are() {
        let plug = |interface: &str, name: &str, netns| check(tap(interface, name, netns), Role::Server).unwrap();
        let plugs = BTreeMap::from([("vm1".into(), plug("vm1", "t1", None))]);
        assert_eq!(conflict(&plugs, &plug("vm1", "t1", None)), None);
        assert_eq!(conflict(&plugs, &plug("vm2", "t2", None)), None);
        assert_eq!(conflict(&plugs, &plug("vm2", "t1", Some("red"))), None, "another namespace, another device");
        assert!(matches!(conflict(&plugs, &plug("vm1", "t2", None)), Some(PlugError::OtherArguments { .. })));
        assert!(matches!(conflict(&plugs, &plug("vm2", "t1", None)), Some(PlugError::DeviceTaken { .. })));
    }
}
