//! Networks that reach other hosts: the kernel's VXLAN, VLANs and bridge are the other side, over a veth as the wire.

use super::SOON;
use crate::topology::attached_tap;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::Command;
use tests::daemon::Daemon;
use tests::http::Tenant;
use tests::ledger::Counters;
use tests::namespace::Namespace;
use tests::process::{output_of, wait_until};

/// Runs ip(8) where the daemon is.
fn ip(line: &str) {
    output_of("ip", &line.split(' ').collect::<Vec<_>>());
}

/// A wire from here, where it is called `name`, to `eth0` of a namespace; gone when dropped.
struct Wire {
    name: &'static str,
}

impl Wire {
    fn new(name: &'static str, far: &Namespace, near_address: &str, far_address: &str) -> Wire {
        ip(&format!("link add {name} type veth peer name eth0 netns {}", far.name()));
        let wire = Wire { name };
        if near_address.contains(':') {
            // New interfaces may have it off, by whatever else runs here.
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "0");
        }
        // An address that is checked for duplicates first may not be used for a second.
        let nodad = |address: &str| if address.contains(':') { " nodad" } else { "" };
        ip(&format!("addr add {near_address} dev {name}{}", nodad(near_address)));
        ip(&format!("link set {name} mtu 1600 up"));
        far.must("ip link set eth0 mtu 1600 up");
        // Packet sockets have no word for a frame that is to be cut inside a tunnel; a NIC's wire neither.
        far.must("ethtool -K eth0 tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off");
        if far_address.contains(':') {
            far.must("echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6");
        }
        far.must(&format!("ip addr add {far_address} dev eth0{}", nodad(far_address)));
        wire
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", self.name]).output();
    }
}

/// The settings of a host on the wire.
fn settings(interface: &str, tunnel: &str, segments: &str) -> String {
    format!(
        "[[uplink]]\nphysical_network = \"physnet1\"\ninterface = \"{interface}\"\n[tunnel]\n{tunnel}\n[segments]\n{segments}\n"
    )
}

/// Sends `bytes` bytes one way by TCP and checks each.
fn transfer(from: &Namespace, to: &Namespace, address: &str, bytes: usize) {
    let address: IpAddr = address.parse().unwrap();
    let listener = to.inside(|| TcpListener::bind((address, 5000)).unwrap());
    let chunk: Vec<u8> = (0..1usize << 16).map(|at| (at % 251) as u8).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = from.inside(|| TcpStream::connect((address, 5000)).unwrap());
            stream.set_write_timeout(Some(SOON)).unwrap();
            for _ in 0..bytes / chunk.len() {
                stream.write_all(&chunk).unwrap();
            }
        });
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut got = vec![0; chunk.len()];
        for _ in 0..bytes / chunk.len() {
            stream.read_exact(&mut got).unwrap();
            assert!(got == chunk, "bytes changed");
        }
    });
}

/// Frames as long as both sides let through pass both ways, and TCP with its offloads.
fn passes_everything(near: &Namespace, near_address: &str, far: &Namespace, far_address: &str, daemon: &Daemon) {
    assert!(near.pings_within(far_address, SOON), "{}\n{:#}", daemon.log_tail(), daemon.show("ports"));
    assert!(far.pings_within(near_address, SOON), "{}", daemon.log_tail());
    for (from, to) in [(near, far_address), (far, near_address)] {
        let large = from.run(&format!("busybox ping -s 1472 -c 3 -W 2 {to}"));
        assert!(large.status.success(), "{}\n{}", String::from_utf8_lossy(&large.stdout), daemon.log_tail());
    }
    transfer(near, far, far_address, 32 << 20);
    transfer(far, near, near_address, 32 << 20);
}

#[test]
fn by_af_xdp_a_network_is_one_with_the_kernels_vxlan_device_and_the_host_keeps_its_addresses() {
    for (name, near_ip, far_ip, len) in
        [("qx-vx4", "172.31.78.1", "172.31.78.2", 24), ("qx-vx6", "fd78::1", "fd78::2", 64)]
    {
        let (near, far) = (Namespace::new("qx-near"), Namespace::new("qx-far"));
        let _wire = Wire::new(name, &far, &format!("{near_ip}/{len}"), &format!("{far_ip}/{len}"));
        far.must(&format!("ip link add vx0 type vxlan id 5000 dstport 4789 local {far_ip} remote {near_ip} dev eth0"));
        far.must(
            "ip link add br0 type bridge && ip link set vx0 master br0 && ip link set vx0 up && ip link set br0 up",
        );
        far.must("ip link set br0 mtu 1500 && ip link set vx0 mtu 1500 && ip addr add 10.9.0.2/24 dev br0");
        let tunnel = format!("local_ip = \"{near_ip}\"\npeers = [\"{far_ip}\"]");
        let text = settings(name, &tunnel, "default = \"vxlan\"");
        let text = text.replace("[tunnel]", "driver = \"af_xdp\"\n[tunnel]");
        let daemon = Daemon::start(&text);
        let tenant = daemon.tenant("red");
        let network = tenant.network("lan");
        attached_tap(&daemon, &tenant, &network, "qx-a", &near, "10.9.0.1/24");
        daemon.wait_up(&["qx-a"]);
        passes_everything(&near, "10.9.0.1", &far, "10.9.0.2", &daemon);
        assert!(output_of("ip", &["link", "show", "dev", name]).contains("xdp"));

        // Meanwhile and besides, the host's own address is reached as ever, both ways, while the tunnel is busy.
        assert!(far.pings_within(near_ip, SOON), "{}", daemon.log_tail());
        std::thread::scope(|scope| {
            let host = scope.spawn(|| {
                let address: IpAddr = near_ip.parse().unwrap();
                let listener = TcpListener::bind((address, 0)).unwrap();
                let port = listener.local_addr().unwrap().port();
                let bytes = 32usize << 20;
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        let mut stream = far.inside(|| TcpStream::connect((address, port)).unwrap());
                        stream.write_all(&vec![7; bytes]).unwrap();
                    });
                    let (mut stream, _) = listener.accept().unwrap();
                    stream.set_read_timeout(Some(SOON)).unwrap();
                    let mut got = vec![0; bytes];
                    stream.read_exact(&mut got).unwrap();
                    assert!(got.iter().all(|&byte| byte == 7));
                });
            });
            transfer(&near, &far, "10.9.0.2", 32 << 20);
            host.join().unwrap();
        });
    }
}

#[test]
fn a_network_is_one_with_the_kernels_vxlan_device_over_ipv4_and_ipv6() {
    for (name, near_ip, far_ip, len) in
        [("qt-vx4", "172.31.77.1", "172.31.77.2", 24), ("qt-vx6", "fd77::1", "fd77::2", 64)]
    {
        let (near, far) = (Namespace::new("qt-near"), Namespace::new("qt-far"));
        let _wire = Wire::new(name, &far, &format!("{near_ip}/{len}"), &format!("{far_ip}/{len}"));
        far.must(&format!("ip link add vx0 type vxlan id 5000 dstport 4789 local {far_ip} remote {near_ip} dev eth0"));
        far.must(
            "ip link add br0 type bridge && ip link set vx0 master br0 && ip link set vx0 up && ip link set br0 up",
        );
        far.must("ip link set br0 mtu 1500 && ip link set vx0 mtu 1500 && ip addr add 10.9.0.2/24 dev br0");
        let tunnel = format!("local_ip = \"{near_ip}\"\npeers = [\"{far_ip}\"]");
        let daemon = Daemon::start(&settings(name, &tunnel, "default = \"vxlan\""));
        let tenant = daemon.tenant("red");
        let network = tenant.network("lan");
        attached_tap(&daemon, &tenant, &network, "qt-a", &near, "10.9.0.1/24");
        daemon.wait_up(&["qt-a"]);
        passes_everything(&near, "10.9.0.1", &far, "10.9.0.2", &daemon);

        let row = &daemon.show("networks")[0];
        assert_eq!((&row["type"], &row["segmentation_id"]), (&"vxlan".into(), &5000.into()), "{row:#}");
        let macs = daemon.show("macs");
        let far_mac = far.mac("br0");
        let entry = macs.as_array().unwrap().iter().find(|row| row["mac"] == far_mac.as_str());
        assert_eq!(entry.unwrap()["remote"], format!("tunnel:{far_ip}").as_str(), "{macs:#}");
        // The host's own traffic on the same interface goes on.
        assert!(far.run(&format!("busybox ping -c 1 -W 2 {near_ip}")).status.success());
    }
}

/// A hypervisor: a namespace with `eth0` on the underlay, a daemon in it, and one guest each of two tenants.
struct Host {
    space: Namespace,
    daemon: Daemon,
    guests: [Namespace; 2],
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
fn hypervisors(tunnels: bool, segments: &str) -> [Host; 2] {
    let spaces = ["qt-h1", "qt-h2"].map(Namespace::new);
    ip("link add eth0 netns qt-h1 type veth peer name eth0 netns qt-h2");
    for (space, address) in spaces.iter().zip(["172.31.80.1/24", "172.31.80.2/24"]) {
        space.must(&format!("ip link set eth0 mtu 1600 up && ip addr add {address} dev eth0"));
    }
    let tunnel = |own, peer| match tunnels {
        true => format!("local_ip = \"172.31.80.{own}\"\npeers = [\"172.31.80.{peer}\"]"),
        false => String::new(),
    };
    let [one, two] = spaces;
    [
        Host::new(["qt-h1", "qt-r1", "qt-b1"], one, &settings("eth0", &tunnel(1, 2), segments)),
        Host::new(["qt-h2", "qt-r2", "qt-b2"], two, &settings("eth0", &tunnel(2, 1), segments)),
    ]
}

#[test]
fn the_networks_of_two_hypervisors_are_one_each_by_vlan_and_by_every_tunnel() {
    for (tunnels, segments, ids) in [
        (false, "default = \"vlan\"\nvlan = \"physnet1:100-101\"", [100, 101]),
        (true, "default = \"vxlan\"\nvni = \"5000-5001\"", [5000, 5001]),
        (true, "default = \"geneve\"\nvni = \"5000-5001\"", [5000, 5001]),
        (true, "default = \"gre\"\nvni = \"5000-5001\"", [5000, 5001]),
    ] {
        let hosts = hypervisors(tunnels, segments);
        let [one, two] = &hosts;
        let [red, blue] = &one.guests;
        for (guest, peer) in [(red, &two.guests[0]), (blue, &two.guests[1])] {
            passes_everything(guest, "10.9.0.1", peer, "10.9.0.2", &one.daemon);
        }
        // The host's own stack on the same interface.
        assert!(one.space.run("busybox ping -c 1 -W 2 172.31.80.2").status.success(), "{segments}");

        // Red says everything there is to say; blue must hear nothing of it, on either host.
        let ears = [blue.sniff(), two.guests[1].sniff()];
        let friend = two.guests[0].sniff();
        let wire = two.space.sniff();
        for tag in ["", "\\x81\\x00\\x00\\x65", "\\x81\\x00\\xe0\\x00", "\\x88\\xa8\\x00\\x65\\x81\\x00\\x00\\x65"] {
            red.must(&format!(
                "python3 -c \"import socket; s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW); s.bind(('tap0',0)); \
                 s.send(b'\\xff'*6+b'\\x02\\x00\\x00\\x00\\x00\\x66{tag}\\x88\\xb5of-the-reds')\""
            ));
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
        let has = |frame: &[u8]| frame.windows(11).any(|bytes| bytes == b"of-the-reds");
        assert_eq!(friend.stop().iter().filter(|frame| has(frame)).count(), 4, "{segments}: all four for a red");
        assert!(ears.into_iter().all(|ear| ear.stop().iter().all(|frame| !has(frame))), "{segments}: none for a blue");
        let carried = wire.stop().into_iter().filter(|frame| has(frame)).count();
        assert_eq!(carried, 4, "{segments}: once each on the wire");

        let told: Vec<_> =
            one.daemon.show("networks").as_array().unwrap().iter().map(|row| row["segmentation_id"].clone()).collect();
        assert_eq!(told, ids, "{segments}");
        // A third network finds nothing left.
        one.space.inside(|| {
            let body = serde_json::json!({"network": {"name": "third"}});
            one.daemon.tenant("red").request("POST", "networks", Some(&body), 503);
        });
    }
}

#[test]
fn strangers_on_the_underlay_and_tunnels_forged_by_tenants_reach_nobody() {
    let (near, other, far) = (Namespace::new("qt-in"), Namespace::new("qt-io"), Namespace::new("qt-ifar"));
    let _wire = Wire::new("qt-iso", &far, "172.31.79.1/24", "172.31.79.2/24");
    far.must("ip addr add 172.31.79.66/24 dev eth0");
    let tunnel = "local_ip = \"172.31.79.1\"\npeers = [\"172.31.79.2\"]";
    let daemon = Daemon::start(&settings("qt-iso", tunnel, "default = \"vxlan\""));
    let tenants: [Tenant; 2] = [daemon.tenant("red"), daemon.tenant("blue")];
    for (tenant, (name, namespace)) in tenants.iter().zip([("qt-in", &near), ("qt-io", &other)]) {
        let network = tenant.network("lan");
        attached_tap(&daemon, tenant, &network, name, namespace, "10.9.0.1/24");
    }
    daemon.wait_up(&["qt-in", "qt-io"]);
    wait_until("the peer's next hop is known", SOON, || daemon.interface("tunnel:172.31.79.2")["link"] == "up");
    let before = Counters::read(&daemon);

    // A frame to everybody in VNI 5000, from an address that is no peer, and in a VNI that nobody has.
    let ears = [near.sniff(), other.sniff()];
    let frame = |vni: u32, text: &str| {
        let hex: String = text.bytes().map(|byte| format!("\\x{byte:02x}")).collect();
        format!(
            "\\x08\\x00\\x00\\x00\\x00\\x{:02x}\\x{:02x}\\x00\\xff\\xff\\xff\\xff\\xff\\xff\\x02\\x00\\x00\\x00\\x00\\x66\\x88\\xb5{hex}",
            vni >> 8,
            vni & 0xff
        )
    };
    let send = |from: &str, vni: u32, text: &str| {
        far.must(&format!(
            "python3 -c \"import socket; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind(('{from}',0)); s.sendto(b'{}',('172.31.79.1',4789))\"",
            frame(vni, text)
        ));
    };
    send("172.31.79.66", 5000, "stranger");
    send("172.31.79.2", 7777, "elsewhere");
    send("172.31.79.2", 5000, "for-red");

    // A tenant's frame that looks like a tunnel's, to the host's own address and with the other network's VNI: payload.
    let wire = far.sniff();
    near.must("ip neigh add 10.9.0.77 lladdr ff:ff:ff:ff:ff:ff dev tap0");
    near.must(&format!(
        "python3 -c \"import socket; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.sendto(b'{}',('10.9.0.77',4789))\"",
        frame(5001, "forged")
    ));
    wait_until("what is for us arrived", SOON, || {
        let now = Counters::read(&daemon);
        now.grown(&before, "qt-in.tx.packets") >= 1
            && now.grown(&before, "uplink:physnet1.rx.drops.tunnel_unknown_network") >= 1
            && now.grown(&before, "tunnel:172.31.79.2.tx.packets") >= 1
    });
    std::thread::sleep(std::time::Duration::from_millis(300));
    let has = |frame: &[u8], text: &str| frame.windows(text.len()).any(|bytes| bytes == text.as_bytes());
    let [red, blue] = ears.map(tests::namespace::Sniffer::stop);
    assert_eq!(red.iter().filter(|frame| has(frame, "for-red")).count(), 1);
    for text in ["stranger", "elsewhere"] {
        assert!(red.iter().chain(&blue).all(|frame| !has(frame, text)), "{text}");
    }
    assert!(blue.iter().all(|frame| !has(frame, "for-red") && !has(frame, "forged")));
    // On the wire it is wrapped once more, in its own network's VNI.
    // What is no UDP is the other host's complaint that nobody listens there.
    let is_udp = |frame: &Vec<u8>| frame[23] == 17;
    let forged: Vec<_> = wire.stop().into_iter().filter(|frame| is_udp(frame) && has(frame, "forged")).collect();
    assert!(!forged.is_empty() && forged.iter().all(|frame| frame[46..49] == [0, 0x13, 0x88]), "{forged:?}");
    let now = Counters::read(&daemon);
    assert_eq!(now.grown(&before, "uplink:physnet1.rx.drops.tunnel_unknown_source"), 1);
}
