//! Ways to other hosts as `qvs show` tells them: uplinks, VLANs on them, and peers of tunnels.

use super::Control;
use crate::bond::LinkStatus;
use crate::devices::device_name;
use api::host::DeviceSpec;
use switch::device::LinkCounters;
use switch::ids::PortIndex;
use switch::worker::Pipeline;

/// An uplink or a far end as `show` tells it.
pub(crate) struct WayView {
    /// Its index.
    pub(crate) index: PortIndex,
    /// What it is called: `uplink:…`, `vlan:…` or `tunnel:…`.
    pub(crate) name: String,
    /// What carries it: a device's kind, `vlan` or `tunnel`.
    pub(crate) kind: &'static str,
    /// A path, an interface's name, or the peer's address.
    pub(crate) path: String,
    /// How its frames are moved.
    pub(crate) driver: Option<&'static str>,
    /// Whether frames can pass.
    pub(crate) is_up: bool,
    /// Why not.
    pub(crate) reason: String,
    /// Bytes of L3 payload.
    pub(crate) mtu: Option<u16>,
    /// What the kernel counted at its interface.
    pub(crate) counters: Option<LinkCounters>,
    /// How the links of a bond do, and what the kernel counted there.
    pub(crate) links: Vec<(LinkStatus, Option<LinkCounters>)>,
}

impl<P: Pipeline> Control<P> {
    /// The uplink that `show` tells by this name.
    pub(crate) fn uplink(&self, name: &str) -> Option<PortIndex> {
        let state = self.state();
        state.ways.uplinks.iter().find(|uplink| *uplink.plug.interface == *name).map(|uplink| uplink.index)
    }

    /// Uplinks and far ends.
    pub(crate) fn ways(&self) -> Vec<WayView> {
        let state = self.state();
        let config = self.switch.snapshot().config.clone();
        let underlay = config.underlay();
        let mut views: Vec<WayView> = Vec::new();
        for uplink in &state.ways.uplinks {
            let device = uplink.slot.as_ref().map(|slot| slot.state());
            let found = uplink.slot.as_ref().and_then(|slot| slot.found());
            let facts = underlay.uplinks.iter().find(|facts| facts.index == uplink.index);
            if let Some(links) = &uplink.links {
                views.push(links.view(uplink.index, facts.map(|facts| facts.mtu)));
                continue;
            }
            views.push(WayView {
                index: uplink.index,
                name: uplink.plug.interface.to_string(),
                kind: if matches!(uplink.plug.device, DeviceSpec::Device { .. }) { "device" } else { "vhost-user" },
                path: device_name(&uplink.plug.device).to_owned(),
                driver: found.map(|found| found.driver),
                is_up: device.as_ref().is_some_and(|device| device.link == switch::port::Link::Up),
                reason: device.map(|device| device.reason).unwrap_or_default(),
                mtu: facts.map(|facts| facts.mtu),
                counters: found.and_then(|found| found.counters),
                links: Vec::new(),
            });
        }
        let physical = |index: PortIndex| {
            underlay.uplinks.iter().find(|it| it.index == index).map_or("", |it| &*it.physical_network)
        };
        for vlan in &underlay.vlans {
            views.push(WayView {
                index: vlan.index,
                name: format!("vlan:{}.{}", physical(vlan.uplink), vlan.vlan),
                kind: "vlan",
                path: vlan.vlan.to_string(),
                driver: None,
                is_up: true,
                reason: String::new(),
                mtu: underlay.uplink(vlan.uplink).map(pipelines::underlay::vlan_mtu),
                counters: None,
                links: Vec::new(),
            });
        }
        for peer in underlay.peers() {
            let mac = peer.next_hop.mac();
            let reason = match (peer.uplink, mac) {
                (None, _) => "no-route",
                (_, None) => "no-neighbour",
                _ => "",
            };
            views.push(WayView {
                index: peer.index,
                name: format!("tunnel:{}", peer.address),
                kind: "tunnel",
                path: peer.address.to_string(),
                driver: None,
                is_up: reason.is_empty(),
                reason: reason.to_owned(),
                mtu: Some(underlay.mtu_to(peer)).filter(|&mtu| mtu > 0),
                counters: None,
                links: Vec::new(),
            });
        }
        views
    }
}
