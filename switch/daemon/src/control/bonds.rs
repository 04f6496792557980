//! Uplinks of several links: opening them, what they are together, and announcing who is behind them when another link is used.
//!
//! Each link is a device of its own to the supervisor, waited for and retried like any; its port is published within the bond. To
//! everybody else a bond is one uplink with one MAC, that of the first of its interfaces that was there, for as long as the
//! process lives: the switches beyond would not follow a change. Its MTU is the least of its links'.
//!
//! Bounds: [`ANNOUNCED_MAX`] addresses a move.

use super::Control;
use super::ways::WayView;
use crate::bond::Following;
use crate::devices::{Found, Slot, device_name};
use crate::settings::BondUplink;
use api::host::{DeviceSpec, Plug};
use pipelines::wire::ethernet::{TYPE_SERVICE_VLAN, TYPE_VLAN};
use std::sync::{Arc, OnceLock};
use switch::bond::Bond;
use switch::config::{MTU_MAX, MTU_MIN};
use switch::ids::{MacAddr, PortIndex};
use switch::switch::Switch;
use switch::underlay::{UplinkTags, VlanId};
use switch::worker::Pipeline;
use vhost::net::rarp;

/// Addresses that are announced on another link, the rest is found out by their own frames. Some ten milliseconds of a slow wire.
const ANNOUNCED_MAX: usize = 4096;

/// The links of a bonded uplink.
#[derive(Default)]
pub(super) struct Links {
    /// The uplink's.
    name: String,
    plugs: Vec<Plug>,
    slots: Vec<Arc<Slot>>,
    following: Option<Arc<Following>>,
    mac: OnceLock<MacAddr>,
}

impl Links {
    /// Those of the settings, none of them open; like `plug`, which is the uplink's.
    pub(super) fn new(settings: &BondUplink, plug: &Plug) -> Links {
        let name = plug.interface.to_string();
        let plug = |name: &String| Plug {
            interface: format!("{}:{name}", plug.interface).into(),
            device: DeviceSpec::Device { name: name.clone(), netns: None, driver: settings.driver },
            ..plug.clone()
        };
        Links { name, plugs: settings.interfaces.iter().map(plug).collect(), ..Links::default() }
    }

    /// The devices that it is made of.
    pub(super) fn devices(&self) -> impl Iterator<Item = &DeviceSpec> {
        self.plugs.iter().map(|plug| &plug.device)
    }

    /// What was found out of those that are there.
    fn found(&self) -> impl Iterator<Item = Found> {
        self.slots.iter().filter_map(|slot| slot.found()).filter(|found| found.link_index != 0)
    }

    /// Its MAC and MTU; `None` while no link is there.
    pub(super) fn facts(&self) -> Option<(MacAddr, u16)> {
        let mtu = self.found().filter_map(|found| found.mtu).min()?;
        let mtu = u16::try_from(mtu).unwrap_or(MTU_MAX).clamp(MTU_MIN, MTU_MAX);
        let mac = match self.mac.get() {
            Some(mac) => *mac,
            None => {
                let mac = self.found().map(|found| found.mac).next()?;
                *self.mac.get_or_init(|| mac)
            }
        };
        Some((mac, mtu))
    }

    /// The uplink as `show` tells it.
    pub(super) fn view(&self, index: PortIndex, mtu: Option<u16>) -> WayView {
        let links = self.following.as_ref().map(|following| following.status()).unwrap_or_default();
        let is_up = links.iter().any(|link| link.is_sending);
        let counters = self.slots.iter().map(|slot| slot.found().and_then(|found| found.counters));
        WayView {
            index,
            name: self.name.clone(),
            kind: "bond",
            path: self.plugs.iter().map(|plug| device_name(&plug.device)).collect::<Vec<_>>().join(","),
            driver: self.found().map(|found| found.driver).next(),
            is_up,
            reason: if is_up { String::new() } else { "no link of the bond is used".into() },
            mtu,
            counters: None,
            links: std::iter::zip(links, counters).collect(),
        }
    }
}

impl<P: Pipeline> Control<P> {
    /// Sends the links of an uplink to be opened, and follows them from now on.
    pub(super) fn open_links(&self, index: PortIndex, settings: &BondUplink, links: &mut Links) {
        let bond = Bond::new(self.switch.place(index), links.plugs.len(), settings.policy());
        for (number, plug) in links.plugs.iter().enumerate() {
            let slot = Slot::new(plug.clone(), index, bond.link(number));
            links.slots.push(slot.clone());
            self.supervisor.start(slot);
        }
        let switch = self.switch.clone();
        match Following::start(bond, &settings.interfaces, settings.mode(), move || announce(&switch, index)) {
            Ok(following) => links.following = Some(following),
            Err(error) => tracing::error!(%error, "no thread to follow the links of a bond: it carries nothing"),
        }
    }
}

/// Tells the switches beyond an uplink, by the link that is used now, who is behind it: its own MAC, and on each VLAN of it the
/// stations of that network on this host.
fn announce<P: Pipeline>(switch: &Switch<P>, uplink: PortIndex) {
    let config = switch.snapshot().config.clone();
    let underlay = config.underlay();
    let Some(facts) = underlay.uplink(uplink) else { return };
    let tags = facts.tags;
    // Without a tag it would be one more station of the native VLAN's network.
    let is_apart = !tags.has_untagged_network() || tags.underlay.is_some();
    // On a shared one it is also the kernel's, which stays on its own link.
    let own = (is_apart && !facts.is_shared)
        .then_some((facts.mac, tags.underlay.map(|vlan| [None, Some(vlan)]).unwrap_or_default()));
    let stations = switch.mac_table().entries(switch.clock().now()).into_iter().filter_map(|entry| {
        let is_here = underlay.indices().all(|index| index != entry.port);
        let vlan = underlay.vlans.iter().find(|vlan| vlan.network == entry.network && vlan.uplink == uplink)?;
        is_here.then_some((entry.mac, tags_of(vlan.vlan, tags)))
    });
    let mut count = 0;
    for (mac, tags) in own.into_iter().chain(stations).take(ANNOUNCED_MAX) {
        switch.originate(uplink, &announcement(mac, tags));
        count += 1;
    }
    tracing::debug!(addresses = count, "announced on another link");
}

/// The service tag and the VLAN's that its frames have on the wire.
fn tags_of(vlan: VlanId, tags: UplinkTags) -> [Option<VlanId>; 2] {
    [tags.service, (tags.native != Some(vlan)).then_some(vlan)]
}

/// What announces a station that has moved, for it tells of no IP address ([`rarp`]), with these tags.
fn announcement(mac: MacAddr, [service, vlan]: [Option<VlanId>; 2]) -> Vec<u8> {
    let plain = rarp(mac.0);
    let (addresses, rest) = plain.split_at(12);
    let mut frame = addresses.to_vec();
    for (tag, vlan) in [(TYPE_SERVICE_VLAN, service), (TYPE_VLAN, vlan)] {
        if let Some(vlan) = vlan {
            frame.extend(tag.to_be_bytes());
            frame.extend(vlan.get().to_be_bytes());
        }
    }
    frame.extend(rest);
    frame
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_a_reverse_arp_question_of_the_station_on_its_vlan() {
        let mac = MacAddr([2, 3, 4, 5, 6, 7]);
        let plain = announcement(mac, [None; 2]);
        assert_eq!(plain[..22], [255, 255, 255, 255, 255, 255, 2, 3, 4, 5, 6, 7, 0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!((&plain[22..28], &plain[32..38], plain.len()), (&mac.0[..], &mac.0[..], 60));
        let vlan = VlanId::new(100).unwrap();
        let tagged = announcement(mac, tags_of(vlan, UplinkTags::default()));
        assert_eq!((&tagged[12..16], &tagged[16..18]), (&[0x81, 0, 0, 100][..], &[0x80, 0x35][..]));
        let service = UplinkTags { service: VlanId::new(500), ..UplinkTags::default() };
        assert_eq!(
            announcement(mac, tags_of(vlan, service))[12..22],
            [0x88, 0xa8, 1, 244, 0x81, 0, 0, 100, 0x80, 0x35]
        );
        // The native VLAN's have no tag of theirs.
        let native = UplinkTags { native: Some(vlan), ..UplinkTags::default() };
        assert_eq!(announcement(mac, tags_of(vlan, native)), plain);
    }
}
