//! What the settings may say of ways to other hosts, and what they are told when they say something else.

use super::super::{Prefix, Role, Settings, UplinkDevice};
use super::*;
use api::host::DeviceDriver;
use switch::underlay::{UplinkTags, VlanId};

const UPLINK: &str = "[[uplink]]\nphysical_network = \"p\"\ninterface = \"eth1\"\n";

fn parse(text: &str) -> Settings {
    Settings::parse(text, "qvs.toml").unwrap()
}

#[test]
fn without_settings_networks_are_local_and_nothing_leads_anywhere() {
    let settings = parse("");
    assert!(settings.uplink.is_empty() && settings.tunnel.local_ip.is_none());
    assert_eq!(settings.segments.rules(), SegmentRules::Local);
}

#[test]
fn every_key_is_known() {
    let settings = parse(
        r#"
        [[uplink]]
        physical_network = "physnet1"
        interface = "eth1"
        exclusive = true
        driver = "af_xdp"
        native_vlan = 5
        service_vlan = 500
        underlay_vlan = 50
        address = "172.17.0.1/24"
        [[uplink]]
        physical_network = "physnet2"
        vhost_user = "/run/nic"
        role = "client"
        address = "172.16.0.1/24"
        gateway = "172.16.0.254"
        mac = "02:00:00:00:00:09"
        mtu = 9000
        neighbours = { "172.16.0.2" = "02:00:00:00:00:02" }
        [tunnel]
        local_ip = "172.16.0.1"
        peers = ["172.16.0.3", "172.16.0.2", "172.16.0.2"]
        ttl = 3
        dscp = 46
        gre = "nvgre"
        [segments]
        default = "vxlan"
        vlan = "physnet1:100-199,physnet2:7"
        vni = "6000-6009"
        port_vxlan = 8472
        "#,
    );
    assert!(
        matches!(&settings.uplink[0].device, UplinkDevice::Interface { interface, exclusive: true, driver: Some(DeviceDriver::AfXdp), .. } if interface == "eth1")
    );
    let UplinkDevice::VhostUser(vhost) = &settings.uplink[1].device else { panic!("{:?}", settings.uplink) };
    assert_eq!((vhost.role, vhost.mtu), (Role::Client, 9000));
    assert_eq!(settings.uplink[1].own_end().unwrap().neighbours.len(), 1);
    let id = |id| VlanId::new(id);
    let tags = UplinkTags { native: id(5), service: id(500), underlay: id(50) };
    assert_eq!((settings.uplink[0].tags(), settings.uplink[1].tags()), (tags, UplinkTags::default()));
    assert_eq!(settings.uplink[0].own_end().unwrap().address.to_string(), "172.17.0.1/24");
    assert_eq!(settings.tunnel.gre, GreKeys::Nvgre);
    assert_eq!(settings.tunnel.peers.len(), 2);
    assert_eq!((settings.tunnel.ttl, settings.tunnel.dscp), (3, 46));
    assert_eq!(settings.segments.rules(), SegmentRules::Tunnel(TunnelKind::Vxlan, 6000..=6009));
    let json = serde_json::to_value(&settings).unwrap();
    assert_eq!(json["uplink"][1]["address"], "172.16.0.1/24");
    assert_eq!((&json["uplink"][1]["gateway"], &json["uplink"][0]["gateway"]), (&"172.16.0.254".into(), &().into()));
    assert_eq!(json["uplink"][0]["interface"], "eth1");
}

#[test]
fn faults_name_the_line_of_the_item_they_are_in() {
    let with = |text: &str| format!("{UPLINK}{text}");
    for (text, expected) in [
        ("[[uplink]]\ninterface = \"e\"".to_owned(), "qvs.toml:1: uplink.physical_network: must be a name"),
        ("[[uplink]]\nphysical_network = \"p\"".into(), "qvs.toml:2: uplink.physical_network: an uplink needs interface"),
        (with("[[uplink]]\n\nphysical_network = \"p\"\ninterface = \"x\""), "qvs.toml:6: uplink.physical_network: \"p\" has"),
        (with("[[uplink]]\nphysical_network = \"q\"\ninterface = \"eth1\""), "qvs.toml:6: uplink.interface: \"eth1\" is an uplink"),
        (with("mtu = 1500"), "qvs.toml:4: uplink.mtu: is for uplinks with vhost_user"),
        (with("vhost_user = \"/x\""), "qvs.toml:4: uplink.vhost_user: an uplink has either"),
        (with("native_vlan = 5"), "qvs.toml:4: uplink.native_vlan: needs exclusive = true"),
        (with("address = \"10.0.0.1/8\""), "qvs.toml:4: uplink.address: needs exclusive = true"),
        (with("exclusive = true\nservice_vlan = 4095"), "qvs.toml:5: uplink.service_vlan: 4095 must be 1 to 4094"),
        (with("exclusive = true\nunderlay_vlan = 7"), "qvs.toml:5: uplink.underlay_vlan: needs address"),
        (with("exclusive = true\nneighbours = {}"), "qvs.toml:5: uplink.neighbours: needs address"),
        (with("exclusive = true\ngateway = \"10.0.0.9\""), "qvs.toml:5: uplink.gateway: needs address"),
        (
            with("exclusive = true\naddress = \"10.0.0.1/24\"\ngateway = \"10.0.1.9\""),
            "qvs.toml:6: uplink.gateway: 10.0.1.9 is no other host on the network of 10.0.0.1/24",
        ),
        (
            with("exclusive = true\naddress = \"10.0.0.1/24\"\ngateway = \"10.0.0.1\""),
            "qvs.toml:6: uplink.gateway: 10.0.0.1 is no other host",
        ),
        (
            with("exclusive = true\naddress = \"10.0.0.1/24\"\ngateway = \"fe80::1\""),
            "qvs.toml:6: uplink.gateway: fe80::1 is no other host",
        ),
        (with("exclusive = true\naddress = \"fd00::1/64\"\ngateway = \"f\""), "qvs.toml:6: uplink.gateway: \"f\" is no IP address"),
        (with("[tunnel]\ngre = \"flow\""), "qvs.toml:5: unknown variant `flow`"),
        (with("speed = 5"), "qvs.toml:4: unknown field `speed`"),
        ("[[uplink]]\nphysical_network = \"p\"\ninterface = \"0123456789abcdef\"".into(), "qvs.toml:3: uplink.interface: "),
        (
            "[[uplink]]\nphysical_network = \"p\"\nvhost_user = \"/x\"\naddress = \"10.0.0.1\"".into(),
            "qvs.toml:4: uplink.address: \"10.0.0.1\" must be like",
        ),
        (
            "[[uplink]]\nphysical_network = \"p\"\nvhost_user = \"/x\"\naddress = \"10.0.0.1/8\"\nneighbours = { \"10.0.0.2\" = \"01:00:00:00:00:01\" }".into(),
            "qvs.toml:5: uplink.neighbours: 01:00:00:00:00:01 is no station's",
        ),
        ("[tunnel]\nlocal_ip = \"10.0.0.1\"".into(), "qvs.toml:2: tunnel.local_ip: tunnels need an uplink"),
        (with("[tunnel]\npeers = [\"10.0.0.1\"]"), "qvs.toml:5: tunnel.peers: needs tunnel.local_ip"),
        (with("[tunnel]\nlocal_ip = \"10.0.0.1\"\npeers = [\"fd00::1\"]"), "qvs.toml:6: tunnel.peers: fd00::1 is of another"),
        (with("[tunnel]\nlocal_ip = \"10.0.0.1\"\npeers = [\"10.0.0.1\"]"), "qvs.toml:6: tunnel.peers: 10.0.0.1 is this host"),
        (with("[tunnel]\nlocal_ip = \"224.0.0.1\""), "qvs.toml:5: tunnel.local_ip: 224.0.0.1 is no host's"),
        (with("[tunnel]\ndscp = 64"), "qvs.toml:5: tunnel.dscp: 64 must be 0 to 63"),
        ("[segments]\ndefault = \"vxlan\"".into(), "qvs.toml:2: segments.default: networks in tunnels need"),
        ("[segments]\ndefault = \"vlan\"".into(), "qvs.toml:2: segments.default: \"vlan\" needs segments.vlan"),
        ("[segments]\ndefault = \"flat\"".into(), "qvs.toml:2: unknown variant `flat`"),
        ("[segments]\nvlan = \"q:1-2\"".into(), "qvs.toml:2: segments.vlan: no [[uplink]] is on \"q\""),
        (with("[segments]\nvlan = \"p:0-2\""), "qvs.toml:5: segments.vlan: \"p:0-2\" must be like"),
        (with("[segments]\nvlan = \"p:5-4\""), "qvs.toml:5: segments.vlan: \"p:5-4\" must be like"),
        ("[segments]\nvni = \"1-16777216\"".into(), "qvs.toml:2: segments.vni: \"1-16777216\" must be like"),
        ("[segments]\nvni = \"+1-5\"".into(), "qvs.toml:2: segments.vni: "),
        (with("exclusive = true\nunderlay_vlan = 50\naddress = \"10.0.0.1/8\"\n[segments]\nvlan = \"p:50-99\""), "qvs.toml:8: segments.vlan: 50 of \"p\" is the VLAN that tunnels"),
        (with("exclusive = true\nnative_vlan = 5\naddress = \"10.0.0.1/8\""), "qvs.toml:5: uplink.native_vlan: needs underlay_vlan"),
        (with("exclusive = true\nnative_vlan = 5\n[tunnel]\nlocal_ip = \"10.0.0.1\""), "qvs.toml:5: uplink.native_vlan: needs underlay_vlan"),
        ("[segments]\nport_vxlan = 6081".into(), "qvs.toml:2: segments.port_vxlan: 6081 is Geneve's"),
        ("[segments]\nport_vxlan = 0".into(), "qvs.toml:2: segments.port_vxlan: 0 must be 1 to 65535"),
    ] {
        let message = Settings::parse(&text, "qvs.toml").expect_err(&text).to_string();
        assert!(message.starts_with(expected), "{text:?} said {message:?}, not {expected:?}");
    }
}

#[test]
fn what_has_no_tag_may_be_a_networks_where_tunnels_have_one_or_end_elsewhere() {
    let own_end = "[[uplink]]\nphysical_network = \"q\"\nvhost_user = \"/x\"\naddress = \"10.0.0.1/8\"\n";
    let tunnel = "[tunnel]\nlocal_ip = \"10.0.0.1\"\n";
    for (tags, rest) in [
        ("", ""),
        ("underlay_vlan = 50\naddress = \"10.0.0.1/8\"\n", "[segments]\nvlan = \"p:51-99\"\n"),
        ("service_vlan = 500\n", "[segments]\nvlan = \"p:5-99\"\n"),
        ("service_vlan = 500\nunderlay_vlan = 50\naddress = \"10.0.0.2/8\"\n", "[segments]\nvlan = \"p:5-99\"\n"),
        ("", own_end),
    ] {
        let tunnel = if tags.is_empty() && rest.is_empty() { "" } else { tunnel };
        parse(&format!("{UPLINK}exclusive = true\nnative_vlan = 5\n{tags}{rest}{tunnel}"));
    }
}

#[test]
fn a_prefix_contains_its_network_and_nothing_of_the_other_family() {
    let prefix: Prefix = "172.16.0.1/24".parse().unwrap();
    assert!(prefix.contains("172.16.0.255".parse().unwrap()) && !prefix.contains("172.16.1.1".parse().unwrap()));
    assert!(!prefix.contains("fd00::1".parse().unwrap()));
    let prefix: Prefix = "fd00::1/64".parse().unwrap();
    assert!(prefix.contains("fd00::ffff".parse().unwrap()) && !prefix.contains("fd00:0:0:1::1".parse().unwrap()));
    assert!("10.0.0.1/33".parse::<Prefix>().is_err() && "10.0.0.1/0".parse::<Prefix>().is_err());
}
