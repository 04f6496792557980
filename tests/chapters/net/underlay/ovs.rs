//! Open vSwitch with its datapath in userspace is the other side.
//!
//! It ends tunnels at the address of a bridge of its own, by which it is on the wire, and knows no partial checksums and no
//! large frames there. So our end of the wire finishes them, as a NIC does.

use super::{BOTH_FAMILIES, Beside, Ends, Wire, give_address, settings};
use std::collections::BTreeSet;
use std::net::UdpSocket;
use tests::namespace::Namespace;
use tests::ovs::{Ovs, PLAIN};
use tests::process::output_of;

/// Another host, which Open vSwitch serves: by its bridge `wire` it is on the wire, and another one is `br0`. `int0` has
/// 10.9.0.2, on the bridge and with the tag that `place` says.
fn served_by_ovs(far: &Namespace, ends: Ends, place: &str) -> Ovs {
    let Ends([_, far_ip], len) = ends;
    output_of("ethtool", &["-K", "qt-ovs", "tx", "off", "tso", "off", "gso", "off"]);
    let ovs = far.inside(|| Ovs::start(PLAIN, "", &["br0", "wire"]));
    ovs.set(&format!("add-port {place} -- set Interface int0 type=internal"));
    far.must("ip link set int0 up && ip addr add 10.9.0.2/24 dev int0");
    ovs.set("add-port wire eth0 -- set Interface wire mtu_request=1600");
    far.must("ip link set wire up");
    give_address(far, "wire", far_ip, len);
    ovs
}

/// A network in tunnels of this kind to Open vSwitch, with these options of its port and these settings of our tunnels.
fn in_tunnels(ends: Ends, kind: &str, options: &str, tunnel: &str) -> (Beside, Ovs) {
    let Ends([near_ip, far_ip], _) = ends;
    let far = Namespace::new("qt-far");
    let wire = Wire::new("qt-ovs", &far, ends, false);
    let ovs = served_by_ovs(&far, ends, "br0 int0");
    let options = format!("options:remote_ip={near_ip} options:local_ip={far_ip} {options}");
    ovs.set(&format!("add-port br0 tun0 -- set Interface tun0 type={kind} {options}"));
    let text = settings("qt-ovs", Some([near_ip, far_ip]), &format!("default = \"{kind}\""));
    let hosts = Beside::new(wire, far, ends, &text.replace("[segments]", &format!("{tunnel}[segments]")));
    println!("{kind} to {far_ip}\n{}", ovs.log_tail());
    (hosts, ovs)
}

#[test]
fn a_network_is_one_with_open_vswitch_by_vxlan_geneve_and_gre_over_ipv4_and_ipv6() {
    for ends in BOTH_FAMILIES {
        for kind in ["vxlan", "geneve", "gre"] {
            let hosts = in_tunnels(ends, kind, "options:key=5000", "");
            hosts.0.passes_everything();
        }
    }
}

#[test]
fn by_nvgre_a_network_is_one_with_open_vswitch_and_flows_are_told_apart_by_their_keys() {
    for ends in BOTH_FAMILIES {
        // The network's number and 8 bits besides (RFC 7637 section 3.2). Open vSwitch takes any, and sends zero for them.
        let options = format!("options:in_key=flow options:out_key={}", 5000 << 8);
        let (hosts, _ovs) = in_tunnels(ends, "gre", &options, "gre = \"nvgre\"\n");
        hosts.passes_everything();
        let wire = hosts.far.sniff();
        hosts.near.inside(|| {
            for port in 20_000..20_050u16 {
                UdpSocket::bind(("10.9.0.1", port)).unwrap().send_to(b"of-a-flow", "10.9.0.2:9").unwrap();
            }
        });
        let gre = if ends.1 == 24 { 34 } else { 54 };
        let key = |frame: &Vec<u8>| <[u8; 4]>::try_from(&frame[gre + 4..gre + 8]).unwrap();
        let is_ours = |frame: &&Vec<u8>| frame.ends_with(b"of-a-flow") && frame.len() == gre + 8 + 14 + 28 + 9;
        wire.wait_for("they arrive", 21, |frame| is_ours(&&frame.to_vec()));
        let keys: BTreeSet<_> = wire.stop().iter().filter(is_ours).map(key).collect();
        assert!(keys.len() > 20 && keys.iter().all(|key| key[..3] == [0, 0x13, 0x88]), "{keys:02x?}");
    }
}

#[test]
fn a_vlan_network_is_one_with_a_trunk_of_open_vswitch() {
    let ends = BOTH_FAMILIES[0];
    let far = Namespace::new("qt-far");
    let wire = Wire::new("qt-ovs", &far, ends, false);
    let ovs = served_by_ovs(&far, ends, "wire int0 tag=100");
    ovs.set("set port eth0 trunks=100,101");
    let text = settings("qt-ovs", None, "default = \"vlan\"\nvlan = \"physnet1:100-199\"");
    Beside::new(wire, far, ends, &text).passes_everything();
}

/// The settings of an uplink that is ours alone, with these tags.
fn tagged(settings: &str, tags: &str) -> String {
    let interface = "interface = \"qt-ovs\"\n";
    settings.replace(interface, &format!("{interface}exclusive = true\n{tags}\n"))
}

#[test]
fn a_native_vlan_and_vlans_within_a_service_tag_are_one_with_open_vswitch() {
    let ends = BOTH_FAMILIES[0];
    let segments = "default = \"vlan\"\nvlan = \"physnet1:100-199\"";
    for (tags, port) in [
        ("native_vlan = 100", "set port eth0 vlan_mode=native-untagged tag=100 trunks=100,101"),
        ("service_vlan = 500", "set port eth0 trunks=500"),
    ] {
        let far = Namespace::new("qt-far");
        let wire = Wire::new("qt-ovs", &far, ends, false);
        let is_native = tags.starts_with("native");
        let ovs = served_by_ovs(&far, ends, if is_native { "wire int0 tag=100" } else { "br0 int0 tag=100" });
        if !is_native {
            // Behind a port that puts a service tag before whatever tag there is.
            ovs.set("set Open_vSwitch . other_config:vlan-limit=2");
            ovs.set(
                "add-port br0 inner -- set Interface inner type=patch options:peer=outer -- add-port wire outer \
                 vlan_mode=dot1q-tunnel tag=500 -- set Interface outer type=patch options:peer=inner",
            );
        }
        ovs.set(port);
        let text = tagged(&settings("qt-ovs", None, segments), tags);
        println!("{tags}");
        Beside::new(wire, far, ends, &text).passes_everything();
    }
}

#[test]
fn tunnels_in_a_vlan_of_the_underlay_end_at_an_address_that_the_switch_alone_answers_for() {
    for ends in BOTH_FAMILIES {
        let Ends([near_ip, far_ip], len) = ends;
        let far = Namespace::new("qt-far");
        let wire = Wire::new("qt-ovs", &far, ends, false);
        // The kernel here knows nothing of it.
        tests::namespace::ip("addr flush dev qt-ovs");
        let ovs = served_by_ovs(&far, ends, "br0 int0");
        ovs.set("set port wire tag=50 -- set port eth0 trunks=50");
        let options = format!("options:remote_ip={near_ip} options:local_ip={far_ip} options:key=5000");
        ovs.set(&format!("add-port br0 tun0 -- set Interface tun0 type=vxlan {options}"));
        let text = settings("qt-ovs", Some([near_ip, far_ip]), "default = \"vxlan\"");
        let own = format!("address = \"{near_ip}/{len}\"\nunderlay_vlan = 50");
        Beside::new(wire, far, ends, &tagged(&text, &own)).passes_everything();
    }
}
