//! Open vSwitch with its datapath in userspace is the other side.
//!
//! It ends tunnels at the address of a bridge of its own, by which it is on the wire, and knows no partial checksums and no
//! large frames there. So our end of the wire finishes them, as a NIC does.

use super::{BOTH_FAMILIES, Beside, Ends, Wire, give_address, settings};
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

#[test]
fn a_network_is_one_with_open_vswitch_by_vxlan_geneve_and_gre_over_ipv4_and_ipv6() {
    for ends in BOTH_FAMILIES {
        for kind in ["vxlan", "geneve", "gre"] {
            let Ends([near_ip, far_ip], _) = ends;
            let far = Namespace::new("qt-far");
            let wire = Wire::new("qt-ovs", &far, ends, false);
            let ovs = served_by_ovs(&far, ends, "br0 int0");
            let options = format!("options:remote_ip={near_ip} options:local_ip={far_ip} options:key=5000");
            ovs.set(&format!("add-port br0 tun0 -- set Interface tun0 type={kind} {options}"));
            let text = settings("qt-ovs", Some([near_ip, far_ip]), &format!("default = \"{kind}\""));
            let hosts = Beside::new(wire, far, ends, &text);
            println!("{kind} to {far_ip}\n{}", ovs.log_tail());
            hosts.passes_everything();
        }
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
