//! Which frames of an uplink's interface are the switch's: the VLANs that networks may get there, and what comes for our end of
//! tunnels. The host has the rest, and its addresses. Pure.

use crate::settings::{SegmentsSettings, TunnelSettings, UplinkDevice, UplinkSettings};
use api::host::DeviceSpec;
use std::collections::BTreeSet;
use switch::af_xdp::program::{Carrier, Ours, Steering, TunnelEnd};

/// The steering of each uplink that is an interface, by the device that it is.
pub(crate) fn of_uplinks(
    uplinks: &[UplinkSettings],
    tunnel: &TunnelSettings,
    segments: &SegmentsSettings,
) -> Vec<(DeviceSpec, Steering)> {
    // Which uplink has the address is the kernel's to know; on the others nothing comes for it.
    let carriers = [Carrier::Udp(segments.port_vxlan), Carrier::Udp(pipelines::wire::geneve::PORT), Carrier::Gre];
    let ends = |local| carriers.map(|carrier| TunnelEnd { local, carrier, vlan: None });
    let tunnels: BTreeSet<TunnelEnd> = tunnel.local_ip.into_iter().flat_map(ends).collect();
    let steering = |uplink: &UplinkSettings| {
        let (exclusive, driver) = match &uplink.device {
            UplinkDevice::Interface { exclusive, driver, .. } => (*exclusive, *driver),
            UplinkDevice::Bond(bond) => (bond.exclusive, bond.driver),
            UplinkDevice::VhostUser(_) => (true, None),
        };
        let ours = Ours { vlans: segments.vlans_of(&uplink.physical_network), tunnels: tunnels.clone() };
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
    use std::net::IpAddr;

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
        let steered = of_uplinks(&settings.uplink, &settings.tunnel, &settings.segments);
        let [(first, Steering::Only(one)), (_, Steering::Exclusive(two))] = &steered[..] else { panic!("{steered:?}") };
        assert_eq!(*first, DeviceSpec::Device { name: "eth1".into(), netns: None, driver: None });
        assert_eq!((&one.vlans, &two.vlans), (&[9, 100, 101, 102].into(), &[7].into()));
        let local: IpAddr = "192.0.2.1".parse().unwrap();
        let end = |carrier| TunnelEnd { local, carrier, vlan: None };
        let expected = [end(Carrier::Udp(8472)), end(Carrier::Udp(6081)), end(Carrier::Gre)];
        assert_eq!((&one.tunnels, &two.tunnels), (&expected.into(), &expected.into()));
    }
}
