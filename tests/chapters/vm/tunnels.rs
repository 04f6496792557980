//! Our segmentation in tunnels beside that of a guest's kernel, which has devices that the host's own may lack: GRE and Geneve,
//! as `segmentation` does it with VXLAN.
//!
//! A driver on the host sends large frames to the guest's first device. There a bridge passes them on to the tunnel, and so the
//! guest's kernel cuts them, for its second device does nothing for it. What comes out there, another driver on the host
//! receives.

use super::BACK_LIMIT;
use crate::segmentation::{FROM, PEER, Piece, Sample, compare, count_of, in_tunnel, sample};
use std::time::{Duration, Instant};
use switch::offload::{GSO_ECN, GSO_UDP_L4};
use switch::packet::L3;
use switch::segmentation::Tunnel;
use tests::chance::{Chance, for_seeds};
use tests::daemon::Daemon;
use tests::guest::{Extras, Guest, Nic, QemuRole};
use tests::process::wait_until;
use vhost::driver::{Driver, DriverConfig};
use vhost::net::{F_CSUM, F_HOST_ECN, F_HOST_TSO4, F_HOST_TSO6};

/// How long to look for frames that must not come.
const QUIET: Duration = Duration::from_millis(5);
/// Bytes of a frame before it is in the tunnel, at most, or of a segment: in every tunnel here it fits the device behind.
const LEN_MAX: usize = 1420;
/// A tunnel: its outer network layer, what carries the inner frame, bytes of that header, and how its device is made.
type Kind = (L3, Tunnel, usize, &'static str);

const KINDS: [Kind; 8] = [
    (L3::Ipv4, Tunnel::Gre, 8, "gretap local 10.0.0.1 remote 10.0.0.2 key 7"),
    (L3::Ipv4, Tunnel::Gre, 12, "gretap local 10.0.0.1 remote 10.0.0.2 key 8 csum"),
    (L3::Ipv6, Tunnel::Gre, 8, "ip6gretap local 2001:db8::1 remote 2001:db8::2 key 7 encaplimit none"),
    (L3::Ipv6, Tunnel::Gre, 12, "ip6gretap local 2001:db8::1 remote 2001:db8::2 key 8 encaplimit none csum"),
    (L3::Ipv4, Tunnel::Udp, 16, "geneve id 7 remote 10.0.0.2 dstport 6081 noudpcsum"),
    (L3::Ipv4, Tunnel::Udp, 16, "geneve id 7 remote 10.0.0.2 dstport 6082 udpcsum"),
    (L3::Ipv6, Tunnel::Udp, 16, "geneve id 7 remote 2001:db8::2 dstport 6083 udp6zerocsumtx"),
    (L3::Ipv6, Tunnel::Udp, 16, "geneve id 7 remote 2001:db8::2 dstport 6084 noudp6zerocsumtx"),
];

/// A frame that the guest's first device takes whole and whose segments fit the second: QEMU's knows no large UDP frames.
fn fitting(chance: &mut Chance, is_large: bool) -> Sample {
    loop {
        let sample = sample(chance, is_large, 0);
        let segment_len =
            if is_large { sample.header_len + usize::from(sample.claim.gso_size) } else { sample.frame.len() };
        if segment_len <= LEN_MAX && sample.claim.gso_type & !GSO_ECN != GSO_UDP_L4 {
            return sample;
        }
    }
}

/// `count` frames of the test from the tunnel, whose inner ones begin at `inner`, and any that come soon after. The guest's bridge
/// says a word of its own now and then.
fn receive(driver: &mut Driver, inner: usize, count: usize) -> Vec<Piece> {
    let (mut pieces, mut last) = (Vec::new(), Instant::now());
    while last.elapsed() < if pieces.len() < count { BACK_LIMIT } else { QUIET } {
        let before = pieces.len();
        driver.receiver.recv_burst(256, |_, frame| {
            if frame[..6] == PEER && frame.get(inner + 6..inner + 12) == Some(&FROM) {
                pieces.push(Piece { frame: frame.to_vec(), partial: None });
            }
        });
        if pieces.len() > before {
            last = Instant::now();
        }
    }
    pieces
}

#[test]
fn large_frames_in_gre_and_geneve_become_the_segments_of_a_guests_kernel() {
    let daemon = Daemon::start("");
    let red = daemon.tenant("red");
    let (inner, outer) = (red.network("inner"), red.network("outer"));
    for (name, network) in [("feed", &inner), ("first", &inner), ("second", &outer), ("wire", &outer)] {
        daemon.must(&format!("plug {name} --vhost-user {}", daemon.path(name).display()));
        red.attached_port(network, name);
    }
    daemon.wait_up(&["feed", "first", "second", "wire"]);
    let nics = [("first", 1), ("second", 2)].map(|(name, host)| {
        let mac = format!("02:00:00:00:00:{host:02x}");
        Nic { socket: daemon.path(name), role: QemuRole::Client, mac }
    });
    // Devices that finish nothing for the guest.
    let properties = ["csum=off", "host_tso4=off", "host_tso6=off", "host_ecn=off"].map(str::to_owned).to_vec();
    let modules = ["bridge", "ip_gre", "ip6_gre", "geneve"].map(str::to_owned).to_vec();
    let programs = vec!["/usr/sbin/ip".into()];
    let mut guest =
        Guest::start_with("router", &nics, &Extras { properties, modules, programs, ..Extras::default() }).ready();
    // Nobody speaks in the tunnel but the test.
    guest.must(
        "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6; echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6",
    );
    // busybox has one that knows less.
    let mut ip = |line: &str| guest.must(&format!("/usr/sbin/ip {line}"));
    ip("link add br0 type bridge");
    ip("link set eth0 master br0");
    ip("addr add 10.0.0.1/24 dev eth1");
    ip("addr add 2001:db8::1/64 dev eth1 nodad");
    for device in ["eth0", "eth1", "br0"] {
        ip(&format!("link set {device} up"));
    }
    for peer in ["10.0.0.2", "2001:db8::2"] {
        ip(&format!("neigh add {peer} lladdr 02:00:00:fa:00:03 dev eth1 nud permanent"));
    }
    let mut config = DriverConfig::new(daemon.path("feed"));
    config.features |= F_CSUM | F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_ECN;
    (config.queue_size, config.send_buffer_len) = (64, 1 << 17);
    let mut feed = Driver::new(config).unwrap();
    feed.start().unwrap();
    let mut config = DriverConfig::new(daemon.path("wire"));
    config.queue_size = 1024;
    let mut wire = Driver::new(config).unwrap();
    wire.start().unwrap();
    wait_until("both drivers run", BACK_LIMIT, || {
        ["feed", "wire"].iter().all(|name| daemon.interface(name)["link"] == "up")
    });

    for (l3, tunnel, tunnel_len, device) in KINDS {
        let mut ip = |line: &str| guest.must(&format!("/usr/sbin/ip {line}"));
        ip(&format!("link add t0 type {device}"));
        ip("link set t0 mtu 1420 master br0 up");
        // A bridge forwards by a port once it has heard that it has a carrier: 3, BR_STATE_FORWARDING (linux/if_bridge.h).
        wait_until("the guest's bridge forwards", BACK_LIMIT, || {
            let states = guest.must("cat /sys/class/net/t0/brport/state /sys/class/net/eth0/brport/state");
            states.split_whitespace().all(|state| state == "3")
        });
        let (mut frames, mut segments) = (0, 0);
        for_seeds(12, |mut chance| {
            let is_large = chance.below(8) > 0;
            let sample = fitting(&mut chance, is_large);
            let claim = sample.claim;
            let mut header = [0; 12];
            header[..2].copy_from_slice(&[claim.flags, claim.gso_type]);
            for (at, word) in
                [claim.hdr_len, claim.gso_size, claim.csum_start, claim.csum_offset].into_iter().enumerate()
            {
                header[2 + 2 * at..][..2].copy_from_slice(&word.to_le_bytes());
            }
            assert!(feed.sender.send_with(&header, &sample.frame));
            let inner = 14 + if l3 == L3::Ipv4 { 20 } else { 40 } + tunnel_len;
            let kernels = receive(&mut wire, inner, count_of(&sample));
            assert!(!kernels.is_empty(), "{device}: nothing comes\n{:#}", daemon.show("ports"));
            compare(
                device,
                &sample,
                &in_tunnel(&mut chance, &sample, &kernels[0].frame, l3, tunnel, tunnel_len),
                &kernels,
            );
            (frames, segments) = (frames + 1, segments + kernels.len());
        });
        println!("{device}: {frames} frames, {segments} segments");
        guest.must("/usr/sbin/ip link del t0");
    }
}
