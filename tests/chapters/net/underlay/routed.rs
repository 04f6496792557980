//! Two hypervisors of ours whose tunnels are in VLANs of an underlay, each at an address of the switch's own, with a router between.

use super::super::SOON;
use super::word::{framed, mac_here, too_big};
use super::{Ends, give_address};
use crate::topology::attached_tap;
use std::net::IpAddr;
use std::process::Command;
use tests::daemon::Daemon;
use tests::namespace::{Namespace, ip};
use tests::ovs::{Ovs, PLAIN};
use tests::process::wait_until;

/// The wires from here to the router.
const WIRES: [&str; 2] = ["qr-one", "qr-two"];
const VLANS: [u16; 2] = [50, 60];

/// Takes the wires away when it goes.
struct Wires;

impl Drop for Wires {
    fn drop(&mut self) {
        for name in WIRES {
            let _ = Command::new("ip").args(["link", "del", name]).output();
        }
    }
}

#[test]
fn tagged_and_routed_an_underlay_carries_tunnels_and_its_router_is_heard() {
    // Each end and its gateway.
    for (one, two) in [
        (Ends(["172.31.77.1", "172.31.77.254"], 24), Ends(["172.31.78.1", "172.31.78.254"], 24)),
        (Ends(["fd77::1", "fd77::fe"], 64), Ends(["fd78::1", "fd78::fe"], 64)),
    ] {
        let ends = [one, two];
        let [Ends([near_ip, _], _), Ends([far_ip, _], _)] = ends;
        let router = Namespace::new("qr-router");
        let _wires = Wires;
        let make_wire = |at: usize, name: &str| {
            ip(&format!("link add {name} type veth peer name eth{at} netns {}", router.name()));
            ip(&format!("link set {name} mtu 1600 up"));
            router.must(&format!("ip link set eth{at} mtu 1600 up && ethtool -K eth{at} txvlan off"));
        };
        WIRES.iter().enumerate().for_each(|(at, name)| make_wire(at, name));
        let ovs = router.inside(|| Ovs::start(PLAIN, "", &["leg0", "leg1"]));
        for (at, Ends([_, gateway], len)) in ends.into_iter().enumerate() {
            let vlan = VLANS[at];
            ovs.set(&format!("add-port leg{at} eth{at} trunks={vlan} -- set port leg{at} tag={vlan}"));
            ovs.set(&format!("set Interface leg{at} mtu_request={}", [1600, 1400][at]));
            router.must(&format!("ip link set leg{at} up"));
            give_address(&router, &format!("leg{at}"), gateway, len);
        }
        router.must("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");

        let spaces = ["qr-near", "qr-far"].map(Namespace::new);
        let daemons = [(0, far_ip), (1, near_ip)].map(|(at, peer)| {
            let (Ends([own, gateway], len), name) = (ends[at], WIRES[at]);
            let daemon = Daemon::start(&format!(
                "[[uplink]]\nphysical_network = \"p\"\ninterface = \"{name}\"\nexclusive = true\n\
                 address = \"{own}/{len}\"\ngateway = \"{gateway}\"\nunderlay_vlan = {}\n\
                 [tunnel]\nlocal_ip = \"{own}\"\npeers = [\"{peer}\"]\n[segments]\ndefault = \"vxlan\"",
                VLANS[at]
            ));
            let tenant = daemon.tenant("red");
            let network = tenant.network("lan");
            attached_tap(&daemon, &tenant, &network, "qr-tap", &spaces[at], &format!("10.9.0.{}/24", at + 1));
            daemon.wait_up(&["qr-tap"]);
            daemon
        });
        let [daemon, _] = &daemons;
        let [near, far] = &spaces;
        assert!(near.pings_within("10.9.0.2", SOON), "{}\n{:#}", daemon.log_tail(), daemon.show("ports"));
        assert!(far.pings_within("10.9.0.1", SOON), "{}", daemons[1].log_tail());
        let way = || daemon.interface(&format!("tunnel:{far_ip}"));
        assert_eq!(way()["mtu"], 1600, "{:#}", way());

        // What is too long for the router's other leg is lost there, and the router says so.
        assert!(!near.run("busybox ping -s 1400 -c 1 -W 1 10.9.0.2").status.success());
        wait_until("it is learnt", SOON, || way()["mtu"] == 1400);
        let inner = if near_ip.contains(':') { 1330 } else { 1350 };
        assert_eq!(daemon.show("networks")[0]["mtu"], inner);
        let of_tap = || near.must("cat /sys/class/net/tap0/mtu").trim().parse::<u32>().unwrap();
        wait_until("the TAP is told", SOON, || of_tap() == inner);
        let long = format!("busybox ping -s {} -c 1 -W 2 10.9.0.2", inner - 28);
        assert!(near.run(&long).status.success(), "as long as gets there");
        assert!(near.run("busybox ping -s 1400 -c 1 -W 2 10.9.0.2").status.success(), "in two pieces");

        // Nobody's word keeps IPv6 out.
        let [local, peer]: [IpAddr; 2] = [near_ip, far_ip].map(|address| address.parse().unwrap());
        let message = too_big(peer, [local, peer], 17, [50_000, 4789], 576);
        let tag = [0x81, 0, 0, VLANS[0] as u8];
        router.send("eth0", &[framed(&mac_here(WIRES[0]), &router.mac("leg0"), &tag, &message)]);
        let least = if local.is_ipv4() { 1330 } else { 1350 };
        wait_until("it is believed as far as it does no harm", SOON, || way()["mtu"] == least);
    }
}
