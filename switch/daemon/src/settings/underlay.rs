//! Ways to other hosts: `[tunnel]` and `[segments]`, and what they and uplinks must have in common.
//!
//! A network type that nothing can carry is refused here, with its line, and not found out by a tenant.

use super::{SettingsError, Source, UplinkDevice, UplinkSettings, bounded};
use api::network_type::{SegmentRules, VlanRange};
use pipelines::wire::geneve;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use switch::underlay::{PEERS_MAX, TunnelKind, VlanId, Vni};

/// The largest differentiated services code point (RFC 2474 section 3: six bits).
const DSCP_MAX: u64 = 63;
/// UDP port of VXLAN (RFC 7348 section 8).
const PORT_VXLAN: u64 = 4789;

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawTunnel {
    local_ip: Option<String>,
    peers: Option<Vec<String>>,
    ttl: Option<u64>,
    dscp: Option<u64>,
    gre: Option<GreKeys>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawSegments {
    default: Option<SegmentType>,
    vlan: Option<String>,
    vni: Option<String>,
    port_vxlan: Option<u64>,
}

/// What a GRE key is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum GreKeys {
    /// The network's number (RFC 2890).
    Key,
    /// The network's number in 24 bits and a FlowID in 8 (RFC 7637).
    Nvgre,
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
    /// What a GRE key is.
    pub(crate) gre: GreKeys,
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
    check_untagged(local_ip, uplinks, source)?;
    if let Some(local) = local_ip
        && uplinks.iter().all(|uplink| matches!(uplink.device, UplinkDevice::Bond(_)) && !uplink.has_address(local))
    {
        let message = format!(
            "the kernel routes from {local} by one interface: give the bond this address (address, and gateway if peers are beyond its network; exclusive = true)"
        );
        return Err(fault("local_ip", message));
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
        gre: raw.gre.unwrap_or(GreKeys::Key),
    })
}

/// What has no tag is a tenant's or the underlay's, never both: who is on the native VLAN could send what seems to be a peer's.
fn check_untagged(local_ip: Option<IpAddr>, uplinks: &[UplinkSettings], source: &Source) -> Result<(), SettingsError> {
    let is_own = |uplink: &UplinkSettings| local_ip.is_some_and(|local| uplink.has_address(local));
    let is_kernels = local_ip.is_some() && !uplinks.iter().any(is_own);
    for (at, uplink) in uplinks.iter().enumerate() {
        let may_end_here = is_kernels && matches!(uplink.device, UplinkDevice::Interface { .. });
        let has_end = uplink.own_end().is_some() || may_end_here;
        if has_end && uplink.tags().has_untagged_network() && uplink.underlay_vlan.is_none() {
            let message = "needs underlay_vlan (or service_vlan): tunnels would have no tag either, and who is on the native VLAN \
                           could send into every network";
            return Err(source.item_fault("uplink", at, "native_vlan", message));
        }
    }
    Ok(())
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
    if segments.port_vxlan == geneve::PORT {
        return Err(fault("port_vxlan", format!("{} is Geneve's", geneve::PORT)));
    }
    let vlans = parse_vlans(&segments.vlan).map_err(|message| fault("vlan", message))?;
    for range in &vlans {
        let Some(uplink) = uplinks.iter().find(|uplink| uplink.physical_network == *range.physical_network) else {
            return Err(fault("vlan", format!("no [[uplink]] is on {:?}", range.physical_network)));
        };
        let is_underlay = |id: u16| VlanId::new(id).is_some_and(|vlan| uplink.tags().is_underlay(vlan));
        if let Some(underlay) = uplink.underlay_vlan.filter(|id| range.ids.contains(id) && is_underlay(*id)) {
            let message =
                format!("{underlay} of {:?} is the VLAN that tunnels are in, underlay_vlan", range.physical_network);
            return Err(fault("vlan", message));
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
