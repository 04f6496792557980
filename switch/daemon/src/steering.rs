//! Which frames of an uplink's interface are the switch's: the VLANs that networks may get there or have from other settings, and
//! what comes for our end of tunnels. The host has the rest, and its addresses. Pure.

use crate::settings::{SegmentsSettings, TunnelSettings, UplinkDevice, UplinkSettings};
use api::host::DeviceSpec;
use api::model::{Model, Network};
use std::collections::BTreeSet;
use switch::af_xdp::program::{Carrier, Ours, Steering, TunnelEnd};

/// The steering of each uplink that is an interface, by the device that it is; `stored` are the networks that are there.
pub(crate) fn of_uplinks(
    uplinks: &[UplinkSettings],
    tunnel: &TunnelSettings,
    segments: &SegmentsSettings,
    stored: &Model,
) -> Vec<(DeviceSpec, Steering)> {
    // Which uplink has the address is the kernel's to know, unless one has it for us alone; on the others nothing comes for it.
    let carriers = [Carrier::Udp(segments.port_vxlan), Carrier::Udp(pipelines::wire::geneve::PORT), Carrier::Gre];
    let ends = |local| carriers.map(|carrier| TunnelEnd { local, carrier });
    let is_own = |uplink: &UplinkSettings| tunnel.local_ip.is_some_and(|local| uplink.has_address(local));
    let is_kernels = !uplinks.iter().any(is_own);
    let tunnels = |uplink: &UplinkSettings| -> BTreeSet<TunnelEnd> {
        let ends_here = is_kernels || is_own(uplink);
        tunnel.local_ip.filter(|_| ends_here).into_iter().flat_map(ends).collect()
    };
    let vlans = |uplink: &UplinkSettings| {
        let is_there = |network: &&Network| network.network_type.physical_network() == Some(&uplink.physical_network);
        let stored =
            stored.networks.values().filter(is_there).filter_map(|network| network.network_type.segmentation_id());
        let stored = stored.filter_map(|id| u16::try_from(id).ok());
        stored.chain(segments.vlans_of(&uplink.physical_network)).collect()
    };
    let steering = |uplink: &UplinkSettings| {
        let (exclusive, driver) = match &uplink.device {
            UplinkDevice::Interface { exclusive, driver, .. } => (*exclusive, *driver),
            UplinkDevice::Bond(bond) => (bond.exclusive, bond.driver),
            UplinkDevice::VhostUser(_) => (true, None),
        };
        let ours = Ours { vlans: vlans(uplink), tunnels: tunnels(uplink) };
        let steering = if exclusive { Steering::Exclusive(ours) } else { Steering::Only(ours) };
        let device = |name: &String| DeviceSpec::Device { name: name.clone(), netns: None, driver };
        uplink.device.interfaces().iter().map(|name| (device(name), steering.clone())).collect::<Vec<_>>()
    };
    uplinks.iter().flat_map(steering).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use api::network_type::NetworkType;
    use std::net::IpAddr;
    use switch::underlay::VlanId;

    #[test]
    fn tunnels_end_at_the_one_uplink_that_has_their_address_for_us_alone() {
        let text = r#"
            [[uplink]]
            physical_network = "one"
            interface = "eth1"
            exclusive = true
            address = "192.0.2.1/24"
            [[uplink]]
            physical_network = "two"
            interface = "eth2"
            [tunnel]
            local_ip = "192.0.2.1"
        "#;
        let settings = Settings::parse(text, "qvs.toml").unwrap();
        let steered = of_uplinks(&settings.uplink, &settings.tunnel, &settings.segments, &Model::default());
        let [(_, Steering::Exclusive(one)), (_, Steering::Only(two))] = &steered[..] else { panic!("{steered:?}") };
        assert_eq!((one.tunnels.len(), two.tunnels.len()), (3, 0));
    }

    #[test]
    fn an_uplink_has_the_vlans_of_its_physical_network_and_the_ends_of_tunnels() {
        let text = r#"
            [[uplink]]
            physical_network = "one"
            interface = "eth1"
            [[uplink]]
            physical_network = "two"
            interface = "eth2"
            exclusive = true
            [[uplink]]
            physical_network = "three"
            vhost_user = "/run/nic"
            [tunnel]
            local_ip = "192.0.2.1"
            [segments]
            vlan = "one:100-102,two:7,one:9"
            port_vxlan = 8472
        "#;
        let settings = Settings::parse(text, "qvs.toml").unwrap();
        // A network from other settings keeps its number, whatever these say.
        let vlan = |physical_network: &str, id| Network {
            id: format!("{physical_network}.{id}").into(),
            tenant: "red".into(),
            name: None,
            network_type: NetworkType::Vlan {
                physical_network: physical_network.into(),
                vlan: VlanId::new(id).unwrap(),
            },
            serial: id.into(),
        };
        let stored = Model::from_records(vec![vlan("one", 77), vlan("two", 7), vlan("three", 8)], vec![]).unwrap();
        let steered = of_uplinks(&settings.uplink, &settings.tunnel, &settings.segments, &stored);
        let [(first, Steering::Only(one)), (_, Steering::Exclusive(two))] = &steered[..] else { panic!("{steered:?}") };
        assert_eq!(*first, DeviceSpec::Device { name: "eth1".into(), netns: None, driver: None });
        assert_eq!((&one.vlans, &two.vlans), (&[9, 77, 100, 101, 102].into(), &[7].into()));
        let local: IpAddr = "192.0.2.1".parse().unwrap();
        let end = |carrier| TunnelEnd { local, carrier };
        let expected = [end(Carrier::Udp(8472)), end(Carrier::Udp(6081)), end(Carrier::Gre)];
        assert_eq!((&one.tunnels, &two.tunnels), (&expected.into(), &expected.into()));
    }
}
