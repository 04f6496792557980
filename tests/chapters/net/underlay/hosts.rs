//! Two hypervisors of ours are both sides.

use super::{passes_everything, settings};
use tests::daemon::Daemon;
use tests::namespace::{Namespace, ip};

/// How two networks are carried.
#[derive(Clone, Copy)]
pub(super) struct Carried {
    /// What `show` calls it.
    pub(super) kind: &'static str,
    pub(super) is_tunnel: bool,
    /// More of the uplink's settings.
    pub(super) uplink: &'static str,
    /// Settings.
    pub(super) segments: &'static str,
    /// The numbers that the networks of red and blue get.
    pub(super) ids: [u32; 2],
}

const fn on_vlans(kind: &'static str, uplink: &'static str) -> Carried {
    Carried {
        kind,
        is_tunnel: false,
        uplink,
        segments: "default = \"vlan\"\nvlan = \"physnet1:100-101\"",
        ids: [100, 101],
    }
}

const fn in_tunnels(kind: &'static str, segments: &'static str) -> Carried {
    Carried { kind, is_tunnel: true, uplink: "", segments, ids: [5000, 5001] }
}

/// By VLAN, one of them with and one without a tag, and by every kind of tunnel.
pub(super) const EVERY_WAY: [Carried; 5] = [
    on_vlans("vlan", ""),
    on_vlans("native", "exclusive = true\nnative_vlan = 100\n"),
    in_tunnels("vxlan", "default = \"vxlan\"\nvni = \"5000-5001\""),
    in_tunnels("geneve", "default = \"geneve\"\nvni = \"5000-5001\""),
    in_tunnels("gre", "default = \"gre\"\nvni = \"5000-5001\""),
];

/// A hypervisor: a namespace with `eth0` on the underlay, a daemon in it, and one guest each of two tenants.
pub(super) struct Host {
    pub(super) space: Namespace,
    pub(super) daemon: Daemon,
    pub(super) guests: [Namespace; 2],
}

impl Host {
    fn new(names: [&'static str; 3], space: Namespace, settings: &str) -> Host {
        let daemon = space.inside(|| Daemon::start(settings));
        let guests = [names[1], names[2]].map(Namespace::new);
        let last = if names[1].ends_with('1') { 1 } else { 2 };
        for (guest, tenant) in guests.iter().zip(["red", "blue"]) {
            let (daemon, name) = (&daemon, guest.name());
            daemon.must(&format!("plug {name} --tap tap0 --netns {name}"));
            space.inside(|| {
                let tenant = daemon.tenant(tenant);
                let network = tenant.network("lan");
                tenant.attached_port(&network, name);
            });
            guest.address("tap0", &format!("10.9.0.{last}/24"));
        }
        daemon.wait_up(&[names[1], names[2]]);
        Host { space, daemon, guests }
    }
}

/// Two hypervisors, called 1 and 2, with these networks between them; the underlay is a veth.
pub(super) fn hypervisors(carried: Carried) -> [Host; 2] {
    let Carried { is_tunnel, uplink, segments, .. } = carried;
    let spaces = ["qt-h1", "qt-h2"].map(Namespace::new);
    ip("link add eth0 netns qt-h1 type veth peer name eth0 netns qt-h2");
    for (space, address) in spaces.iter().zip(["172.31.80.1/24", "172.31.80.2/24"]) {
        space.must(&format!("ip link set eth0 mtu 1600 up && ip addr add {address} dev eth0"));
    }
    let ends = ["172.31.80.1", "172.31.80.2"];
    let tunnel = |own: usize| is_tunnel.then(|| [ends[own], ends[1 - own]]);
    let settings = |own| {
        let interface = "interface = \"eth0\"\n";
        settings("eth0", tunnel(own), segments).replace(interface, &format!("{interface}{uplink}"))
    };
    let [one, two] = spaces;
    [
        Host::new(["qt-h1", "qt-r1", "qt-b1"], one, &settings(0)),
        Host::new(["qt-h2", "qt-r2", "qt-b2"], two, &settings(1)),
    ]
}

#[test]
fn the_networks_of_two_hypervisors_are_one_each_by_vlan_and_by_every_tunnel() {
    for carried in EVERY_WAY {
        let Carried { kind, ids, .. } = carried;
        let hosts = hypervisors(carried);
        let [one, two] = &hosts;
        let [red, blue] = &one.guests;
        for (guest, peer) in [(red, &two.guests[0]), (blue, &two.guests[1])] {
            passes_everything(guest, "10.9.0.1", peer, "10.9.0.2", &one.daemon);
        }
        // The host's own stack on the same interface.
        assert!(one.space.run("busybox ping -c 1 -W 2 172.31.80.2").status.success(), "{kind}");

        let told: Vec<_> =
            one.daemon.show("networks").as_array().unwrap().iter().map(|row| row["segmentation_id"].clone()).collect();
        assert_eq!(told, ids, "{kind}");
        // A third network finds nothing left.
        one.space.inside(|| {
            let body = serde_json::json!({"network": {"name": "third"}});
            one.daemon.tenant("red").request("POST", "networks", Some(&body), 503);
        });
    }
}
