//! Two hypervisors of ours are both sides.

use super::{Ends, give_address, passes_everything, settings};
use tests::daemon::Daemon;
use tests::namespace::{Namespace, ip};

/// TPIDs of a tag and of a service tag (IEEE 802.1Q-2018 table 9-1).
pub(super) const VLAN: u16 = 0x8100;
pub(super) const SERVICE: u16 = 0x88a8;

/// How two networks are carried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Carried {
    /// What `show` calls it.
    pub(super) kind: &'static str,
    pub(super) is_tunnel: bool,
    /// Whether the first host's uplink is by AF_XDP. The other's is by packet sockets in any case, so that whoever listens beside it
    /// hears all that is on the wire.
    is_xdp: bool,
    /// The hosts' addresses on the underlay.
    pub(super) ends: Ends,
    /// Tags before all else: type and id.
    pub(super) tags: &'static [(u16, u16)],
    /// More of the uplink's settings; OWN is a host's own address.
    uplink: &'static str,
    /// Links of the uplink.
    pub(super) links: &'static [&'static str],
    /// Settings.
    segments: &'static str,
    /// The numbers that the networks of red and blue get.
    pub(super) ids: [u32; 2],
}

const V4: Ends = Ends(["172.31.80.1", "172.31.80.2"], 24);
const V6: Ends = Ends(["fd80::1", "fd80::2"], 64);

const fn on_vlans(kind: &'static str, uplink: &'static str) -> Carried {
    let segments = "default = \"vlan\"\nvlan = \"physnet1:100-101\"";
    Carried { is_tunnel: false, uplink, ids: [100, 101], ..in_tunnels(kind, segments) }
}

const fn in_tunnels(kind: &'static str, segments: &'static str) -> Carried {
    Carried {
        kind,
        is_tunnel: true,
        is_xdp: false,
        ends: V4,
        tags: &[],
        uplink: "",
        links: &["eth0"],
        segments,
        ids: [5000, 5001],
    }
}

const VLANS: Carried = on_vlans("vlan", "");
const VXLAN: Carried = in_tunnels("vxlan", "default = \"vxlan\"\nvni = \"5000-5001\"");
const GENEVE: Carried = in_tunnels("geneve", "default = \"geneve\"\nvni = \"5000-5001\"");
const GRE: Carried = in_tunnels("gre", "default = \"gre\"\nvni = \"5000-5001\"");

/// By VLAN, one of them with and one without a tag, and by every kind of tunnel.
pub(super) const EVERY_WAY: [Carried; 5] =
    [VLANS, on_vlans("native", "exclusive = true\nnative_vlan = 100\n"), VXLAN, GENEVE, GRE];

/// By AF_XDP, by IPv6, within tags of the underlay, and over two links.
pub(super) const MORE_WAYS: [Carried; 6] = [
    Carried { is_xdp: true, ..VLANS },
    Carried { is_xdp: true, ..VXLAN },
    Carried { is_xdp: true, ends: V6, ..GENEVE },
    Carried {
        ends: V6,
        tags: &[(VLAN, 50)],
        uplink: "exclusive = true\naddress = \"OWN\"\nunderlay_vlan = 50\n",
        ..VXLAN
    },
    Carried { tags: &[(SERVICE, 500)], ..on_vlans("vlan", "exclusive = true\nservice_vlan = 500\n") },
    Carried { links: &["eth0", "eth1"], ..on_vlans("vlan", "bond = \"active-backup\"\n") },
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

/// Two hypervisors, called 1 and 2, with these networks between them; the underlay is a veth for each link.
pub(super) fn hypervisors(carried: Carried) -> [Host; 2] {
    let Carried { is_tunnel, is_xdp, ends: Ends(ends, len), uplink, links, segments, .. } = carried;
    let spaces = ["qt-h1", "qt-h2"].map(Namespace::new);
    for link in links {
        ip(&format!("link add {link} netns qt-h1 type veth peer name {link} netns qt-h2"));
        spaces.iter().for_each(|space| drop(space.must(&format!("ip link set {link} mtu 1600 up"))));
    }
    if !uplink.contains("OWN") {
        spaces.iter().zip(ends).for_each(|(space, address)| give_address(space, "eth0", address, len));
    }
    let settings = |own: usize| {
        let interface = "interface = \"eth0\"\n";
        let driver = if is_xdp && own == 0 { "af_xdp" } else { "af_packet" };
        let uplink = uplink.replace("OWN", &format!("{}/{len}", ends[own]));
        let links = if let [link] = links { format!("{link:?}") } else { format!("{links:?}") };
        settings("eth0", is_tunnel.then(|| [ends[own], ends[1 - own]]), segments)
            .replace(interface, &format!("interface = {links}\ndriver = \"{driver}\"\n{uplink}"))
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
