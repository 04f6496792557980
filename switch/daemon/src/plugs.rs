//! What an operator may plug: the check of one request at the border, and what conflicts with what is there. Pure.

use crate::devices::{device_name, do_clash};
use crate::naming;
use crate::settings::{Role, check_socket_path};
use api::host::{DeviceDriver, DeviceSpec, Plug, SocketRole};
use api::model::{InterfaceId, TEXT_BYTES_MAX};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use switch::config::{MTU_DEFAULT, MTU_MAX, MTU_MIN};
use switch::ids::{MacAddr, PORTS_MAX, QUEUES_MAX};

/// Most fixed MACs an interface may have; a guest with more is a router and is plugged without any.
const MACS_MAX: usize = 64;

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
    };
    if let Some(mtu) = request.mtu.filter(|mtu| !(MTU_MIN..=MTU_MAX).contains(mtu)) {
        return Err(PlugError::Invalid(format!("MTU {mtu} must be {MTU_MIN} to {MTU_MAX}")));
    }
    // The default written out is the same plug as the default left out.
    let has_default = !matches!(device, DeviceSpec::Device { .. });
    let mtu = request.mtu.filter(|&mtu| !has_default || mtu != MTU_DEFAULT);
    Ok(Plug {
        interface: request.interface.into(),
        device,
        macs: check_macs(&request.macs)?,
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
    (&one.device, &one.macs, one.mtu, &one.tenant) == (&other.device, &other.macs, other.mtu, &other.tenant)
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
