//! `[[uplink]]`: each is an interface or a socket, once, with what goes with it and nothing else.

use super::bond::{BondMode, BondUplink, Interfaces, LacpRate, OneOrMore, XmitHashPolicy, resolve_bond};
use super::{Role, SettingsError, Source, check_socket_path};
use api::host::DeviceDriver;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use switch::config::{MTU_DEFAULT, MTU_MAX};
use switch::ids::MacAddr;
use switch::underlay::{UPLINKS_MAX, UplinkTags, VlanId};

/// Longest name of a physical network, bytes: it stands in the ids of ports.
const PHYSICAL_NETWORK_MAX: usize = 64;
/// The smallest MTU of an uplink: with less, a tunnel over IPv6 would not let IPv6 through (RFC 8200 section 5), nor would
/// the uplink itself.
const UPLINK_MTU_MIN: u64 = 1280;
#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawUplink {
    physical_network: Option<String>,
    interface: Option<OneOrMore>,
    bond: Option<BondMode>,
    lacp_rate: Option<LacpRate>,
    xmit_hash_policy: Option<XmitHashPolicy>,
    exclusive: Option<bool>,
    driver: Option<DeviceDriver>,
    vhost_user: Option<PathBuf>,
    role: Option<Role>,
    native_vlan: Option<u64>,
    service_vlan: Option<u64>,
    underlay_vlan: Option<u64>,
    address: Option<String>,
    mac: Option<String>,
    mtu: Option<u64>,
    gateway: Option<String>,
    neighbours: Option<BTreeMap<String, String>>,
}

/// An address and the length of its network's prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Prefix {
    /// The address.
    pub(crate) address: IpAddr,
    /// Bits of it that all of its network have.
    pub(crate) len: u8,
}

impl Prefix {
    /// Whether another address is on its network.
    pub(crate) fn contains(&self, other: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
            IpAddr::V6(address) => address.to_bits(),
        };
        let mask = u128::MAX.checked_shl(128 - u32::from(self.len)).unwrap_or(0);
        self.address.is_ipv4() == other.is_ipv4() && (bits(self.address) ^ bits(other)) & mask == 0
    }
}

impl FromStr for Prefix {
    type Err = ();

    fn from_str(text: &str) -> Result<Prefix, ()> {
        let (address, len) = text.split_once('/').ok_or(())?;
        let address: IpAddr = address.parse().map_err(drop)?;
        let len: u8 = len.parse().map_err(drop)?;
        let max = if address.is_ipv4() { 32 } else { 128 };
        (1..=max).contains(&len).then_some(Prefix { address, len }).ok_or(())
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl Serialize for Prefix {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// `[[uplink]]`
#[derive(Clone, Debug, Serialize)]
pub(crate) struct UplinkSettings {
    /// The physical network.
    pub(crate) physical_network: String,
    /// What it is.
    #[serde(flatten)]
    pub(crate) device: UplinkDevice,
    /// The VLAN whose frames have no tag; `None`: frames without one are no network's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) native_vlan: Option<u16>,
    /// The service tag that all VLANs lie within; `None`: they lie in none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) service_vlan: Option<u16>,
    /// The VLAN that tunnels are in; `None`: they have no tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) underlay_vlan: Option<u16>,
}

impl UplinkSettings {
    /// Tags besides those of VLANs.
    pub(crate) fn tags(&self) -> UplinkTags {
        let [native, service, underlay] =
            [self.native_vlan, self.service_vlan, self.underlay_vlan].map(|id| id.and_then(VlanId::new));
        UplinkTags { native, service, underlay }
    }

    /// Our address there, for which we answer, and who is known to be where; `None`: the kernel does that, or there is none.
    pub(crate) fn own_end(&self) -> Option<&OwnEnd> {
        end_of(&self.device)
    }

    /// Whether this address is ours alone there.
    pub(crate) fn has_address(&self, address: IpAddr) -> bool {
        self.own_end().is_some_and(|end| end.address.address == address)
    }
}

/// An address of ours alone on an uplink.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct OwnEnd {
    /// The address, with its network's prefix.
    pub(crate) address: Prefix,
    /// The router to peers beyond that network; `None`: there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gateway: Option<IpAddr>,
    /// Who is known to be where; others are asked for.
    #[serde(serialize_with = "serialize_neighbours")]
    pub(crate) neighbours: BTreeMap<IpAddr, MacAddr>,
}

impl OwnEnd {
    /// Where packets for an address go first; `None`: nowhere, for it is beyond and there is no gateway.
    pub(crate) fn next_hop(&self, to: IpAddr) -> Option<IpAddr> {
        if self.address.contains(to) { Some(to) } else { self.gateway }
    }
}

/// What carries an uplink's frames.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum UplinkDevice {
    /// An interface of this host.
    Interface {
        /// Its name.
        interface: String,
        /// Whether the host's kernel has no use for it.
        exclusive: bool,
        /// How its frames are moved; `None`: as suits its kind.
        driver: Option<DeviceDriver>,
        /// Our end there, if the kernel has none.
        #[serde(flatten)]
        end: Option<OwnEnd>,
    },
    /// Several interfaces of this host.
    Bond(BondUplink),
    /// A vhost-user socket; somebody else's process has the NIC.
    VhostUser(VhostUplink),
}

impl UplinkDevice {
    /// The interfaces that it is made of.
    pub(crate) fn interfaces(&self) -> &[String] {
        match self {
            UplinkDevice::Interface { interface, .. } => std::slice::from_ref(interface),
            UplinkDevice::Bond(bond) => &bond.interfaces,
            UplinkDevice::VhostUser(_) => &[],
        }
    }
}

/// An uplink over a vhost-user socket.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct VhostUplink {
    /// The socket.
    #[serde(rename = "vhost_user")]
    pub(crate) path: PathBuf,
    /// The switch's role on it.
    pub(crate) role: Role,
    /// Our end there; `None`: no tunnels, VLANs only.
    #[serde(flatten)]
    pub(crate) end: Option<OwnEnd>,
    /// Our MAC; `None`: made up from the path and the host's name.
    #[serde(serialize_with = "serialize_mac")]
    pub(crate) mac: Option<MacAddr>,
    /// Bytes of L3 payload.
    pub(crate) mtu: u16,
}

fn serialize_mac<S: serde::Serializer>(mac: &Option<MacAddr>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&mac.map(|mac| mac.to_string()).unwrap_or_default())
}

fn serialize_neighbours<S: serde::Serializer>(them: &BTreeMap<IpAddr, MacAddr>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(them.iter().map(|(address, mac)| (address.to_string(), mac.to_string())))
}

pub(super) fn resolve_uplinks(raw: Vec<RawUplink>, source: &Source) -> Result<Vec<UplinkSettings>, SettingsError> {
    if raw.len() > UPLINKS_MAX {
        let message = format!("{} uplinks are more than the {UPLINKS_MAX} a host can have", raw.len());
        return Err(source.item_fault("uplink", UPLINKS_MAX, "physical_network", message));
    }
    let mut names = BTreeSet::new();
    let mut devices: BTreeSet<String> = BTreeSet::new();
    let mut uplinks = Vec::new();
    for (at, raw) in raw.into_iter().enumerate() {
        let uplink = resolve_uplink(raw, &|key, message| source.item_fault("uplink", at, key, message))?;
        let fault = |key, message: String| source.item_fault("uplink", at, key, message);
        if !names.insert(uplink.physical_network.clone()) {
            let message = format!("{:?} has an uplink already", uplink.physical_network);
            return Err(fault("physical_network", message));
        }
        let (key, own) = match &uplink.device {
            UplinkDevice::VhostUser(vhost) => ("vhost_user", vec![vhost.path.display().to_string()]),
            device => ("interface", device.interfaces().to_vec()),
        };
        for device in own {
            if devices.contains(&device) {
                return Err(fault(key, format!("{device:?} is an uplink already")));
            }
            devices.insert(device);
        }
        uplinks.push(uplink);
    }
    Ok(uplinks)
}

pub(super) type Faults<'a> = &'a dyn Fn(&'static str, String) -> SettingsError;

fn resolve_uplink(raw: RawUplink, fault: Faults<'_>) -> Result<UplinkSettings, SettingsError> {
    let [native_vlan, service_vlan, underlay_vlan] = resolve_tags(&raw, fault)?;
    let physical_network = raw.physical_network.unwrap_or_default();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if !(1..=PHYSICAL_NETWORK_MAX).contains(&physical_network.len()) || !physical_network.bytes().all(is_plain) {
        let message = format!("must be a name of 1 to {PHYSICAL_NETWORK_MAX} letters, digits, dots and hyphens");
        return Err(fault("physical_network", message));
    }
    let end = resolve_end(raw.address, raw.gateway, raw.neighbours, fault)?;
    let device = match (raw.interface, raw.vhost_user) {
        (Some(interface), None) => {
            let others = [("role", raw.role.is_some()), ("mac", raw.mac.is_some()), ("mtu", raw.mtu.is_some())];
            if let Some((key, _)) = others.into_iter().find(|(_, is_set)| *is_set) {
                return Err(fault(key, "is for uplinks with vhost_user; an interface has its own".into()));
            }
            let interfaces = resolve_bond(interface, raw.bond, raw.lacp_rate, raw.xmit_hash_policy, fault)?;
            let (exclusive, driver) = (raw.exclusive.unwrap_or(false), raw.driver);
            // The host's own traffic has no tag and its own addresses, and is told from ours by them.
            let ours_alone = [
                ("native_vlan", native_vlan.is_some()),
                ("service_vlan", service_vlan.is_some()),
                ("underlay_vlan", underlay_vlan.is_some()),
                ("address", end.is_some()),
            ];
            if let Some((key, _)) = ours_alone.into_iter().find(|(_, is_set)| *is_set && !exclusive) {
                return Err(fault(key, "needs exclusive = true: the host may not use the interface besides".into()));
            }
            match interfaces {
                Interfaces::One(interface) => UplinkDevice::Interface { interface, exclusive, driver, end },
                Interfaces::Bond { interfaces, mode, lacp_rate, xmit_hash_policy } => UplinkDevice::Bond(BondUplink {
                    interfaces,
                    mode,
                    lacp_rate,
                    xmit_hash_policy,
                    exclusive,
                    driver,
                    end,
                }),
            }
        }
        (None, Some(path)) => {
            check_socket_path(&path).map_err(|message| fault("vhost_user", message))?;
            if raw.exclusive.is_some() {
                return Err(fault("exclusive", "is for uplinks with interface; a socket is nobody else's".into()));
            }
            if raw.driver.is_some() {
                return Err(fault("driver", "is for uplinks with interface; a socket has none".into()));
            }
            if raw.bond.is_some() || raw.lacp_rate.is_some() || raw.xmit_hash_policy.is_some() {
                return Err(fault("bond", "is for uplinks of several interfaces".into()));
            }
            let mac = raw.mac.map(|text| parse_station(&text).map_err(|message| fault("mac", message)));
            let mtu = raw.mtu.unwrap_or(MTU_DEFAULT.into());
            if !(UPLINK_MTU_MIN..=MTU_MAX.into()).contains(&mtu) {
                return Err(fault("mtu", format!("{mtu} must be {UPLINK_MTU_MIN} to {MTU_MAX}")));
            }
            UplinkDevice::VhostUser(VhostUplink {
                path,
                role: raw.role.unwrap_or(Role::Server),
                end,
                mac: mac.transpose()?,
                mtu: mtu as u16,
            })
        }
        (Some(_), Some(_)) => return Err(fault("vhost_user", "an uplink has either interface or vhost_user".into())),
        (None, None) => return Err(fault("physical_network", "an uplink needs interface or vhost_user".into())),
    };
    if underlay_vlan.is_some() && end_of(&device).is_none() {
        return Err(fault("underlay_vlan", "needs address: the kernel answers for its own without a tag".into()));
    }
    Ok(UplinkSettings { physical_network, device, native_vlan, service_vlan, underlay_vlan })
}

fn end_of(device: &UplinkDevice) -> Option<&OwnEnd> {
    match device {
        UplinkDevice::Interface { end, .. } => end.as_ref(),
        UplinkDevice::Bond(bond) => bond.end.as_ref(),
        UplinkDevice::VhostUser(vhost) => vhost.end.as_ref(),
    }
}

/// The native VLAN, the service tag and the underlay's VLAN.
fn resolve_tags(raw: &RawUplink, fault: Faults<'_>) -> Result<[Option<u16>; 3], SettingsError> {
    let id = |key, id: Option<u64>| match id.map(|id| (id, u16::try_from(id).ok().and_then(VlanId::new))) {
        None => Ok(None),
        Some((_, Some(vlan))) => Ok(Some(vlan.get())),
        Some((id, None)) => Err(fault(key, format!("{id} must be 1 to {}", VlanId::MAX))),
    };
    Ok([
        id("native_vlan", raw.native_vlan)?,
        id("service_vlan", raw.service_vlan)?,
        id("underlay_vlan", raw.underlay_vlan)?,
    ])
}

/// Our own end on an uplink, if it has one.
fn resolve_end(
    address: Option<String>,
    gateway: Option<String>,
    neighbours: Option<BTreeMap<String, String>>,
    fault: Faults<'_>,
) -> Result<Option<OwnEnd>, SettingsError> {
    let Some(text) = address else {
        return match neighbours {
            _ if gateway.is_some() => Err(fault("gateway", "needs address: the kernel has routes for its own".into())),
            Some(_) => Err(fault("neighbours", "needs address: without it none of them is asked for".into())),
            None => Ok(None),
        };
    };
    let address: Prefix =
        text.parse().map_err(|()| fault("address", format!("{text:?} must be like 172.16.0.1/24 or fd00::1/64")))?;
    let gateway = gateway.map(|text| {
        let gateway: IpAddr = text.parse().map_err(|_| fault("gateway", format!("{text:?} is no IP address")))?;
        // A router's address of the link alone is on every network of IPv6 (RFC 4861 section 6.1.2).
        let is_near = address.contains(gateway)
            || matches!(gateway, IpAddr::V6(it) if it.is_unicast_link_local() && address.address.is_ipv6());
        let is_it = is_near && gateway != address.address;
        is_it
            .then_some(gateway)
            .ok_or_else(|| fault("gateway", format!("{text} is no other host on the network of {address}")))
    });
    let gateway = gateway.transpose()?;
    let mut known = BTreeMap::new();
    for (address, mac) in neighbours.unwrap_or_default() {
        let parsed: IpAddr =
            address.parse().map_err(|_| fault("neighbours", format!("{address:?} is no IP address")))?;
        known.insert(parsed, parse_station(&mac).map_err(|message| fault("neighbours", message))?);
    }
    Ok(Some(OwnEnd { address, gateway, neighbours: known }))
}

fn parse_station(text: &str) -> Result<MacAddr, String> {
    let mac: MacAddr = text.parse().map_err(|error: switch::ids::BadMac| error.to_string())?;
    if mac.is_group() || mac.is_zero() { Err(format!("{mac} is no station's address")) } else { Ok(mac) }
}
