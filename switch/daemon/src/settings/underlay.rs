//! Ways to other hosts: `[[uplink]]`, `[tunnel]` and `[segments]`, and what they must have in common.
//!
//! A network type that nothing can carry is refused here, with its line, and not found out by a tenant.

use super::{Role, SettingsError, Source, bounded, check_socket_path};
use crate::naming::INTERFACE_NAME_MAX;
use api::host::DeviceDriver;
use api::network_type::{SegmentRules, VlanRange};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use switch::config::{MTU_DEFAULT, MTU_MAX};
use switch::ids::MacAddr;
use switch::underlay::{PEERS_MAX, TunnelKind, UPLINKS_MAX, VlanId, Vni};

/// Longest name of a physical network, bytes: it stands in the ids of ports.
const PHYSICAL_NETWORK_MAX: usize = 64;
/// The smallest MTU of an uplink: with less, a tunnel over IPv6 would not let IPv6 through (RFC 8200 section 5), nor would
/// the uplink itself.
const UPLINK_MTU_MIN: u64 = 1280;
/// The largest differentiated services code point (RFC 2474 section 3: six bits).
const DSCP_MAX: u64 = 63;
/// UDP port of VXLAN (RFC 7348 section 8).
const PORT_VXLAN: u64 = 4789;

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawUplink {
    physical_network: Option<String>,
    interface: Option<String>,
    exclusive: Option<bool>,
    driver: Option<DeviceDriver>,
    vhost_user: Option<PathBuf>,
    role: Option<Role>,
    address: Option<String>,
    mac: Option<String>,
    mtu: Option<u64>,
    neighbours: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawTunnel {
    local_ip: Option<String>,
    peers: Option<Vec<String>>,
    ttl: Option<u64>,
    dscp: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawSegments {
    default: Option<SegmentType>,
    vlan: Option<String>,
    vni: Option<String>,
    port_vxlan: Option<u64>,
}

/// How a network that nobody chose a type for is carried.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SegmentType {
    /// Within this host.
    Local,
    /// As a VLAN of an uplink.
    Vlan,
    /// By VXLAN.
    Vxlan,
    /// By Geneve.
    Geneve,
    /// By GRE with a key.
    Gre,
}

impl SegmentType {
    fn tunnel(self) -> Option<TunnelKind> {
        match self {
            SegmentType::Local | SegmentType::Vlan => None,
            SegmentType::Vxlan => Some(TunnelKind::Vxlan),
            SegmentType::Geneve => Some(TunnelKind::Geneve),
            SegmentType::Gre => Some(TunnelKind::Gre),
        }
    }
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
    },
    /// A vhost-user socket; somebody else's process has the NIC.
    VhostUser(VhostUplink),
}

/// An uplink over a vhost-user socket.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct VhostUplink {
    /// The socket.
    #[serde(rename = "vhost_user")]
    pub(crate) path: PathBuf,
    /// The switch's role on it.
    pub(crate) role: Role,
    /// Our address there, for which we answer; `None`: no tunnels, VLANs only.
    pub(crate) address: Option<Prefix>,
    /// Our MAC; `None`: made up from the path and the host's name.
    #[serde(serialize_with = "serialize_mac")]
    pub(crate) mac: Option<MacAddr>,
    /// Bytes of L3 payload.
    pub(crate) mtu: u16,
    /// Who is known to be where; others are asked for.
    #[serde(serialize_with = "serialize_neighbours")]
    pub(crate) neighbours: BTreeMap<IpAddr, MacAddr>,
}

fn serialize_mac<S: serde::Serializer>(mac: &Option<MacAddr>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&mac.map(|mac| mac.to_string()).unwrap_or_default())
}

fn serialize_neighbours<S: serde::Serializer>(them: &BTreeMap<IpAddr, MacAddr>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(them.iter().map(|(address, mac)| (address.to_string(), mac.to_string())))
}

/// `[tunnel]`
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TunnelSettings {
    /// Our end; `None`, in the file "": there are no tunnels.
    #[serde(serialize_with = "serialize_address")]
    pub(crate) local_ip: Option<IpAddr>,
    /// Other ends.
    pub(crate) peers: Vec<IpAddr>,
    /// Hops that what we send may take.
    pub(crate) ttl: u8,
    /// Code point of what we send.
    pub(crate) dscp: u8,
}

fn serialize_address<S: serde::Serializer>(address: &Option<IpAddr>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&address.map(|address| address.to_string()).unwrap_or_default())
}

/// `[segments]`
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SegmentsSettings {
    /// What a network gets.
    pub(crate) default: SegmentType,
    /// VLAN ids, as in "physnet1:100-199", several with commas.
    pub(crate) vlan: String,
    /// VNIs and GRE keys, as in "5000-9999".
    pub(crate) vni: String,
    /// UDP port of VXLAN.
    pub(crate) port_vxlan: u16,
}

impl SegmentsSettings {
    /// What networks get.
    pub(crate) fn rules(&self) -> SegmentRules {
        match (self.default, self.default.tunnel()) {
            (_, Some(kind)) => SegmentRules::Tunnel(kind, parse_vnis(&self.vni).expect("checked by Settings::parse")),
            (SegmentType::Vlan, _) => SegmentRules::Vlan(parse_vlans(&self.vlan).expect("checked by Settings::parse")),
            (_, None) => SegmentRules::Local,
        }
    }
}

impl SegmentsSettings {
    /// The VLANs that networks may get on a physical network.
    pub(crate) fn vlans_of(&self, physical_network: &str) -> BTreeSet<u16> {
        let ranges = parse_vlans(&self.vlan).expect("checked by Settings::parse");
        let ours = ranges.into_iter().filter(|range| &*range.physical_network == physical_network);
        ours.flat_map(|range| range.ids).collect()
    }
}

pub(super) fn resolve_uplinks(raw: Vec<RawUplink>, source: &Source) -> Result<Vec<UplinkSettings>, SettingsError> {
    if raw.len() > UPLINKS_MAX {
        let message = format!("{} uplinks are more than the {UPLINKS_MAX} a host can have", raw.len());
        return Err(source.item_fault("uplink", UPLINKS_MAX, "physical_network", message));
    }
    let mut names = BTreeSet::new();
    let mut devices = BTreeSet::new();
    let mut uplinks = Vec::new();
    for (at, raw) in raw.into_iter().enumerate() {
        let uplink = resolve_uplink(raw, &|key, message| source.item_fault("uplink", at, key, message))?;
        let fault = |key, message: String| source.item_fault("uplink", at, key, message);
        if !names.insert(uplink.physical_network.clone()) {
            let message = format!("{:?} has an uplink already", uplink.physical_network);
            return Err(fault("physical_network", message));
        }
        let (key, device) = match &uplink.device {
            UplinkDevice::Interface { interface, .. } => ("interface", interface.clone()),
            UplinkDevice::VhostUser(vhost) => ("vhost_user", vhost.path.display().to_string()),
        };
        if !devices.insert(device.clone()) {
            return Err(fault(key, format!("{device:?} is an uplink already")));
        }
        uplinks.push(uplink);
    }
    Ok(uplinks)
}

type Faults<'a> = &'a dyn Fn(&'static str, String) -> SettingsError;

fn resolve_uplink(raw: RawUplink, fault: Faults<'_>) -> Result<UplinkSettings, SettingsError> {
    let physical_network = raw.physical_network.unwrap_or_default();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if !(1..=PHYSICAL_NETWORK_MAX).contains(&physical_network.len()) || !physical_network.bytes().all(is_plain) {
        let message = format!("must be a name of 1 to {PHYSICAL_NETWORK_MAX} letters, digits, dots and hyphens");
        return Err(fault("physical_network", message));
    }
    let device = match (raw.interface, raw.vhost_user) {
        (Some(interface), None) => {
            let others = [
                ("role", raw.role.is_some()),
                ("address", raw.address.is_some()),
                ("mac", raw.mac.is_some()),
                ("mtu", raw.mtu.is_some()),
                ("neighbours", raw.neighbours.is_some()),
            ];
            if let Some((key, _)) = others.into_iter().find(|(_, is_set)| *is_set) {
                return Err(fault(key, "is for uplinks with vhost_user; an interface has its own".into()));
            }
            let is_name = (1..=INTERFACE_NAME_MAX).contains(&interface.len())
                && interface.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
                && interface != "."
                && interface != "..";
            if !is_name {
                return Err(fault("interface", format!("{interface:?} is no name of an interface")));
            }
            UplinkDevice::Interface { interface, exclusive: raw.exclusive.unwrap_or(false), driver: raw.driver }
        }
        (None, Some(path)) => {
            check_socket_path(&path).map_err(|message| fault("vhost_user", message))?;
            if raw.exclusive.is_some() {
                return Err(fault("exclusive", "is for uplinks with interface; a socket is nobody else's".into()));
            }
            if raw.driver.is_some() {
                return Err(fault("driver", "is for uplinks with interface; a socket has none".into()));
            }
            let address = raw.address.map(|text| {
                text.parse()
                    .map_err(|()| fault("address", format!("{text:?} must be like 172.16.0.1/24 or fd00::1/64")))
            });
            let mac = raw.mac.map(|text| parse_station(&text).map_err(|message| fault("mac", message)));
            let mut neighbours = BTreeMap::new();
            for (address, mac) in raw.neighbours.unwrap_or_default() {
                let parsed: IpAddr =
                    address.parse().map_err(|_| fault("neighbours", format!("{address:?} is no IP address")))?;
                neighbours.insert(parsed, parse_station(&mac).map_err(|message| fault("neighbours", message))?);
            }
            let mtu = raw.mtu.unwrap_or(MTU_DEFAULT.into());
            if !(UPLINK_MTU_MIN..=MTU_MAX.into()).contains(&mtu) {
                return Err(fault("mtu", format!("{mtu} must be {UPLINK_MTU_MIN} to {MTU_MAX}")));
            }
            UplinkDevice::VhostUser(VhostUplink {
                path,
                role: raw.role.unwrap_or(Role::Server),
                address: address.transpose()?,
                mac: mac.transpose()?,
                mtu: mtu as u16,
                neighbours,
            })
        }
        (Some(_), Some(_)) => return Err(fault("vhost_user", "an uplink has either interface or vhost_user".into())),
        (None, None) => return Err(fault("physical_network", "an uplink needs interface or vhost_user".into())),
    };
    Ok(UplinkSettings { physical_network, device })
}

fn parse_station(text: &str) -> Result<MacAddr, String> {
    let mac: MacAddr = text.parse().map_err(|error: switch::ids::BadMac| error.to_string())?;
    if mac.is_group() || mac.is_zero() { Err(format!("{mac} is no station's address")) } else { Ok(mac) }
}

pub(super) fn resolve_tunnel(
    raw: RawTunnel,
    uplinks: &[UplinkSettings],
    source: &Source,
) -> Result<TunnelSettings, SettingsError> {
    let fault = |key, message: String| source.fault("tunnel", key, message);
    let parse = |key, text: &str| {
        let address: IpAddr = text.parse().map_err(|_| fault(key, format!("{text:?} is no IP address")))?;
        let is_odd = match address {
            IpAddr::V4(address) => address.is_multicast() || address.is_broadcast(),
            IpAddr::V6(address) => address.is_multicast() || address.to_ipv4_mapped().is_some(),
        };
        let is_host = !is_odd && !address.is_unspecified() && !address.is_loopback();
        is_host.then_some(address).ok_or_else(|| fault(key, format!("{text} is no host's address")))
    };
    let local_ip = match raw.local_ip.as_deref() {
        None | Some("") => None,
        Some(text) => Some(parse("local_ip", text)?),
    };
    if local_ip.is_some() && uplinks.is_empty() {
        return Err(fault("local_ip", "tunnels need an uplink: add [[uplink]]".into()));
    }
    let mut peers = BTreeSet::new();
    for text in raw.peers.unwrap_or_default() {
        let peer = parse("peers", &text)?;
        match local_ip {
            None => return Err(fault("peers", "needs tunnel.local_ip".into())),
            Some(local) if local == peer => return Err(fault("peers", format!("{peer} is this host itself"))),
            Some(local) if local.is_ipv4() != peer.is_ipv4() => {
                return Err(fault("peers", format!("{peer} is of another family than local_ip {local}")));
            }
            Some(_) => {}
        }
        peers.insert(peer);
    }
    if peers.len() > PEERS_MAX {
        return Err(fault("peers", format!("{} are more than the {PEERS_MAX} a host can have", peers.len())));
    }
    Ok(TunnelSettings {
        local_ip,
        peers: peers.into_iter().collect(),
        ttl: bounded("tunnel", "ttl", raw.ttl.unwrap_or(64), 1, 255, source)? as u8,
        dscp: bounded("tunnel", "dscp", raw.dscp.unwrap_or(0), 0, DSCP_MAX, source)? as u8,
    })
}

pub(super) fn resolve_segments(
    raw: RawSegments,
    uplinks: &[UplinkSettings],
    tunnel: &TunnelSettings,
    source: &Source,
) -> Result<SegmentsSettings, SettingsError> {
    let fault = |key, message: String| source.fault("segments", key, message);
    let segments = SegmentsSettings {
        default: raw.default.unwrap_or(SegmentType::Local),
        vlan: raw.vlan.unwrap_or_default(),
        vni: raw.vni.unwrap_or_else(|| "5000-9999".into()),
        port_vxlan: bounded("segments", "port_vxlan", raw.port_vxlan.unwrap_or(PORT_VXLAN), 1, 65_535, source)? as u16,
    };
    let vlans = parse_vlans(&segments.vlan).map_err(|message| fault("vlan", message))?;
    for range in &vlans {
        if !uplinks.iter().any(|uplink| uplink.physical_network == *range.physical_network) {
            return Err(fault("vlan", format!("no [[uplink]] is on {:?}", range.physical_network)));
        }
    }
    parse_vnis(&segments.vni).map_err(|message| fault("vni", message))?;
    match segments.default {
        SegmentType::Vlan if vlans.is_empty() => Err(fault("default", "\"vlan\" needs segments.vlan".into())),
        kind if kind.tunnel().is_some() && tunnel.local_ip.is_none() => {
            Err(fault("default", "networks in tunnels need tunnel.local_ip".into()))
        }
        _ => Ok(segments),
    }
}

/// `physnet1:100-199`, several with commas; empty: none.
fn parse_vlans(text: &str) -> Result<Vec<VlanRange>, String> {
    let one = |part: &str| {
        let (name, ids) = part.trim().split_once(':')?;
        let ids = parse_range(ids)?;
        let ids = u16::try_from(*ids.start()).ok()?..=u16::try_from(*ids.end()).ok()?;
        VlanId::new(*ids.start())?;
        VlanId::new(*ids.end())?;
        (!name.is_empty()).then(|| VlanRange { physical_network: name.into(), ids })
    };
    let parts = text.split(',').filter(|_| !text.is_empty());
    let bad = |part: &str| format!("{part:?} must be like physnet1:100-199, of 1 to {}", VlanId::MAX);
    parts.map(|part| one(part).ok_or_else(|| bad(part))).collect()
}

fn parse_vnis(text: &str) -> Result<RangeInclusive<u32>, String> {
    let range = parse_range(text).filter(|range| Vni::new(*range.start()).and(Vni::new(*range.end())).is_some());
    range.ok_or_else(|| format!("{text:?} must be like 5000-9999, of 1 to {}", Vni::MAX))
}

/// `100-199`, or one number.
fn parse_range(text: &str) -> Option<RangeInclusive<u32>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    let (first, last): (u32, u32) = (number(first)?, number(last)?);
    (first <= last).then_some(first..=last)
}

#[cfg(test)]
mod tests;
