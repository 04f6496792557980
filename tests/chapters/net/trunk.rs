//! Trunks: one device of a guest on several networks, each by its VLAN. The guest here is an Open vSwitch behind a veth, because
//! it can tag where the kernel has no VLAN devices.

use super::SOON;
use crate::topology::attached_tap;
use tests::capture::Running;
use tests::daemon::Daemon;
use tests::ledger::Counters;
use tests::namespace::{Namespace, ip, transfer};
use tests::ovs::{Ovs, PLAIN};
use tests::pcapng;
use tests::process::{output_of, wait_until};

/// Networks by the tag that they have on the trunk; the first has none.
const TAGS: [Option<u16>; 3] = [None, Some(20), Some(30)];

/// A trunk `qr-trunk` on three networks of three tenants. Of each network there is a station behind the trunk, 10.9.0.1, and one
/// with a TAP of its own, 10.9.0.2.
struct Trunk {
    daemon: Daemon,
    stations: Vec<Namespace>,
    others: Vec<Namespace>,
    guest: Namespace,
    _ovs: Ovs,
}

impl Trunk {
    fn new() -> Trunk {
        let guest = Namespace::new("qr-guest");
        ip("link add qr-trunk type veth peer name eth0 netns qr-guest");
        ip("link set qr-trunk up");
        // The guest's packet sockets know neither unfinished checksums nor large frames.
        output_of("ethtool", &["-K", "qr-trunk", "tx", "off", "tso", "off", "gso", "off"]);
        guest.must("ip link set eth0 up");
        let ovs = guest.inside(|| Ovs::start(PLAIN, "", &["br0"]));
        ovs.set("add-port br0 eth0 tag=1 vlan_mode=native-untagged trunks=1,20,30");

        let daemon = Daemon::start("");
        daemon.must("plug qr-trunk --device qr-trunk");
        let (mut stations, mut others) = (Vec::new(), Vec::new());
        for (at, tag) in TAGS.into_iter().enumerate() {
            let tenant = daemon.tenant(&format!("tenant-{at}"));
            let network = tenant.network("lan");
            let id = match tag {
                None => "qr-trunk".to_owned(),
                Some(vlan) => {
                    daemon.must(&format!("plug qr-trunk.{vlan} --parent qr-trunk --vlan {vlan}"));
                    format!("qr-trunk.{vlan}")
                }
            };
            tenant.attached_port(&network, &id);
            let other = Namespace::new(&format!("qr-other{at}"));
            attached_tap(&daemon, &tenant, &network, other.name(), &other, "10.9.0.2/24");
            daemon.wait_up(&[&id, other.name()]);

            let station = Namespace::new(&format!("qr-in{at}"));
            ovs.set(&format!("add-port br0 int{at} tag={} -- set Interface int{at} type=internal", tag.unwrap_or(1)));
            guest.must(&format!("ip link set int{at} netns {}", station.name()));
            station.must(&format!("ip link set int{at} up && ip addr add 10.9.0.1/24 dev int{at}"));
            stations.push(station);
            others.push(other);
        }
        Trunk { daemon, stations, others, guest, _ovs: ovs }
    }
}

impl Drop for Trunk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(["link", "del", "qr-trunk"]).output();
    }
}

#[test]
fn a_guest_is_on_several_networks_by_one_device_and_survives_kill_9() {
    let mut world = Trunk::new();
    for restarts in 0..2 {
        for (station, other) in world.stations.iter().zip(&world.others) {
            assert!(
                station.pings_within("10.9.0.2", SOON),
                "{}\n{:#}",
                world.daemon.log_tail(),
                world.daemon.show("ports")
            );
            assert!(other.run("busybox ping -s 1472 -c 1 -W 2 10.9.0.1").status.success());
            transfer(Some(station), Some(other), "10.9.0.2", 8 << 20);
            transfer(Some(other), Some(station), "10.9.0.1", 8 << 20);
        }
        if restarts == 0 {
            world.daemon.kill_and_restart();
            world.daemon.wait_up(&["qr-trunk", "qr-trunk.20", "qr-trunk.30"]);
        }
    }
    let row = world.daemon.interface("qr-trunk.20");
    assert_eq!((&row["kind"], &row["path"], &row["vlan"]), (&"vlan".into(), &"qr-trunk".into(), &20.into()), "{row:#}");
    let counted = |flow: &str| row[flow]["packets"].as_u64().unwrap();
    assert!(counted("rx") > 100 && counted("tx") > 100, "a VLAN has counters of its own: {row:#}");

    // What a VLAN has is captured where its device is.
    let refused = world.daemon.command("capture qr-trunk.20 -w -");
    let refused = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.contains("capture at \"qr-trunk\" with the filter \"vlan 20\""), "{refused}");
    let file = world.daemon.path("trunk.pcapng");
    let capture = Running::start(&world.daemon, &format!("qr-trunk -w {}", file.display()));
    assert!(world.stations[1].is_answered("10.9.0.2"));
    capture.interrupt();
    let heard = pcapng::read(&std::fs::read(&file).unwrap()).frames;
    for is_inbound in [true, false] {
        let is_it =
            |frame: &&pcapng::Captured| frame.is_inbound() == is_inbound && frame.bytes[12..16] == [0x81, 0, 0, 20];
        assert!(heard.iter().any(|frame| is_it(&frame)), "{heard:?}");
    }

    // Without its parent a VLAN has no device, and one without a VLAN goes on.
    world.daemon.must("unplug qr-trunk.20");
    assert!(!world.stations[1].pings("10.9.0.2"));
    assert!(world.stations[2].is_answered("10.9.0.2"));
    world.daemon.must("unplug qr-trunk");
    let row = world.daemon.interface("qr-trunk.30");
    assert_eq!((&row["op_status"], &row["reason"]), (&"DOWN".into(), &"\"qr-trunk\" is not plugged".into()), "{row:#}");
    world.daemon.must("plug qr-trunk --device qr-trunk");
    world.daemon.wait_up(&["qr-trunk.30"]);
    assert!(world.stations[2].pings_within("10.9.0.2", SOON));
}

#[test]
fn tags_that_a_guest_or_a_tenant_makes_up_lead_nowhere() {
    let world = Trunk::new();
    for (station, other) in world.stations.iter().zip(&world.others) {
        assert!(station.pings_within("10.9.0.2", SOON), "{}", world.daemon.log_tail());
        other.must("ip neigh flush all");
    }
    let frame = |tags: &[[u8; 4]], text: &str| {
        let mac = [2, 0, 0, 0, 0, 0x66];
        [&[0xff; 6][..], &mac, &tags.concat(), &[0x88, 0xb5], text.as_bytes()].concat()
    };
    let has = |frame: &[u8], text: &str| frame.windows(text.len()).any(|bytes| bytes == text.as_bytes());
    let ears: Vec<_> = world.others.iter().map(Namespace::sniff).collect();
    let trunk = world.guest.sniff();
    let before = Counters::read(&world.daemon);
    // From the trunk, past its guest's own switch: VLANs that are not there, and tags behind a tag of priority alone.
    let odd: [&[[u8; 4]]; 5] = [
        &[[0x81, 0, 0, 21]],
        &[[0x88, 0xa8, 0, 20]],
        &[[0x81, 0, 0, 0], [0x81, 0, 0, 20]],
        &[[0x81, 0, 0xe0, 0], [0x88, 0xa8, 0, 20]],
        &[[0x88, 0xa8, 0, 20], [0x81, 0, 0, 20]],
    ];
    let mut frames: Vec<_> = odd.iter().map(|tags| frame(tags, "odd-one")).collect();
    frames.push(frame(&[[0x81, 0, 0, 20], [0x81, 0, 0, 30]], "of-twenty"));
    world.guest.send("eth0", &frames);
    // From a tenant of the network without a tag, as if of another.
    world.others[0].send("tap0", &[frame(&[[0x81, 0, 0, 20]], "hopping"), frame(&[[0x88, 0xa8, 0, 20]], "hopping")]);
    world.others[0].send("tap0", &[frame(&[], "last-one")]);
    trunk.wait_for("the last one is on the trunk", 1, |frame| has(frame, "last-one"));
    ears[1].wait_for("what is of VLAN 20 is there", 1, |frame| has(frame, "of-twenty"));

    wait_until("all are counted", SOON, || {
        let now = Counters::read(&world.daemon);
        now.grown(&before, "qr-trunk.rx.drops.no_network") == 5
            && now.grown(&before, "qr-trunk.tx.drops.tagged_on_native") == 2
    });
    for (at, heard) in ears.into_iter().map(tests::namespace::Sniffer::stop).enumerate() {
        assert!(heard.iter().all(|frame| !has(frame, "odd-one")), "network {at}");
        assert!(at == 1 || heard.iter().all(|frame| !has(frame, "of-twenty")), "network {at}");
        assert!(at == 0 || heard.iter().all(|frame| !has(frame, "hopping")), "network {at}");
    }
    assert!(trunk.stop().iter().all(|frame| !has(frame, "hopping")));
}
