//! Networks that reach other hosts over a veth as the wire; the other side is ours, the kernel's or Open vSwitch's.

mod hosts;
mod isolation;
mod kernel;
mod marks;
mod ovs;
mod routed;
mod sockets;
mod word;

use super::SOON;
use crate::topology::attached_tap;
use std::process::Command;
use tests::daemon::Daemon;
use tests::namespace::{Namespace, ip, transfer};

/// The addresses of both ends of a wire, ours first, and the length of their prefix.
#[derive(Clone, Copy, Debug)]
struct Ends([&'static str; 2], u8);

/// One wire by IPv4 and one by IPv6.
const BOTH_FAMILIES: [Ends; 2] = [Ends(["172.31.77.1", "172.31.77.2"], 24), Ends(["fd77::1", "fd77::2"], 64)];

/// A wire from here, where it is called `name`, to `eth0` of a namespace; gone when dropped.
struct Wire {
    name: &'static str,
}

impl Wire {
    /// One that has these addresses at its ends; the far end gets none if Open vSwitch is to have it.
    fn new(name: &'static str, far: &Namespace, ends: Ends, has_far_address: bool) -> Wire {
        let Ends([near_address, far_address], len) = ends;
        ip(&format!("link add {name} type veth peer name eth0 netns {}", far.name()));
        let wire = Wire { name };
        if near_address.contains(':') {
            // New interfaces may have it off, by whatever else runs here.
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "0");
        }
        ip(&format!("addr add {near_address}/{len} dev {name}{}", nodad(near_address)));
        ip(&format!("link set {name} mtu 1600 up"));
        far.must("ip link set eth0 mtu 1600 up");
        // Packet sockets have no word for a frame that is to be cut inside a tunnel; a NIC's wire neither.
        far.must("ethtool -K eth0 tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off");
        if has_far_address {
            give_address(far, "eth0", far_address, len);
        }
        wire
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", self.name]).output();
    }
}

/// An address that is checked for duplicates first may not be used for a second.
fn nodad(address: &str) -> &'static str {
    if address.contains(':') { " nodad" } else { "" }
}

/// Gives an interface in a namespace an address of the underlay.
fn give_address(space: &Namespace, interface: &str, address: &str, len: u8) {
    if address.contains(':') {
        space.must(&format!("echo 0 > /proc/sys/net/ipv6/conf/{interface}/disable_ipv6"));
    }
    space.must(&format!("ip addr add {address}/{len} dev {interface}{}", nodad(address)));
}

/// The settings of a host on the wire; `tunnel`: its own end and the other one.
fn settings(interface: &str, tunnel: Option<[&str; 2]>, segments: &str) -> String {
    let tunnel = tunnel.map(|[own, peer]| format!("[tunnel]\nlocal_ip = \"{own}\"\npeers = [\"{peer}\"]\n"));
    let tunnel = tunnel.unwrap_or_default();
    format!(
        "[[uplink]]\nphysical_network = \"physnet1\"\ninterface = \"{interface}\"\n{tunnel}[segments]\n{segments}\n"
    )
}

/// This host and one of somebody else's making, on a wire. Network `lan` of tenant red has 10.9.0.1 here, in `near`; who made the
/// other host gives it 10.9.0.2, in `far`.
struct Beside {
    daemon: Daemon,
    _wire: Wire,
    near: Namespace,
    far: Namespace,
    ends: Ends,
}

impl Beside {
    /// One with these settings, on a wire that is called `wire` here and prepared by `make_far`.
    fn new(wire: Wire, far: Namespace, ends: Ends, settings: &str) -> Beside {
        let near = Namespace::new("qt-near");
        let daemon = Daemon::start(settings);
        let tenant = daemon.tenant("red");
        let network = tenant.network("lan");
        attached_tap(&daemon, &tenant, &network, "qt-a", &near, "10.9.0.1/24");
        daemon.wait_up(&["qt-a"]);
        Beside { daemon, _wire: wire, near, far, ends }
    }

    /// Frames as long as both sides let through pass both ways, and TCP with its offloads.
    fn passes_everything(&self) {
        passes_everything(&self.near, "10.9.0.1", &self.far, "10.9.0.2", &self.daemon);
    }
}

/// Frames as long as both sides let through pass both ways, and TCP with its offloads.
fn passes_everything(near: &Namespace, near_address: &str, far: &Namespace, far_address: &str, daemon: &Daemon) {
    assert!(near.pings_within(far_address, SOON), "{}\n{:#}", daemon.log_tail(), daemon.show("ports"));
    assert!(far.pings_within(near_address, SOON), "{}", daemon.log_tail());
    for (from, to) in [(near, far_address), (far, near_address)] {
        let large = from.run(&format!("busybox ping -s 1472 -c 3 -W 2 {to}"));
        assert!(large.status.success(), "{}\n{}", String::from_utf8_lossy(&large.stdout), daemon.log_tail());
    }
    transfer(Some(near), Some(far), far_address, 32 << 20);
    transfer(Some(far), Some(near), near_address, 32 << 20);
}
