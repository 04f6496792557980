//! Whose word is taken about the ways to peers: the kernel's where it gives one, and a stranger's not beyond what he could have seen
//! and can do no harm with.

use super::super::SOON;
use super::kernel::beside_the_kernel;
use super::{BOTH_FAMILIES, Beside, Ends};
use rustix::net::sockopt;
use std::net::IpAddr;
use std::os::fd::AsFd;
use switch::checksum::Sum;
use tests::namespace::ip;
use tests::process::{output_of, wait_until};

/// What stands in IP's header for ICMP of this address's family.
fn icmp_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { 1 } else { 58 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// An IP packet.
fn packet(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = if from.is_ipv4() {
        let len = ((20 + payload.len()) as u16).to_be_bytes();
        vec![0x45, 0, len[0], len[1], 0, 0, 0x40, 0, 64, protocol, 0, 0]
    } else {
        let len = (payload.len() as u16).to_be_bytes();
        vec![0x60, 0, 0, 0, len[0], len[1], protocol, 64]
    };
    packet.extend(octets(from));
    packet.extend(octets(to));
    if from.is_ipv4() {
        let mut sum = Sum::default();
        sum.add(&packet);
        packet[10..12].copy_from_slice(&sum.checksum().to_be_bytes());
    }
    packet.extend(payload);
    packet
}

/// What `router` says of a packet that `from` sent `to`, of this protocol and beginning so: it may have `mtu` bytes.
pub(super) fn too_big(router: IpAddr, [from, to]: [IpAddr; 2], protocol: u8, begins: [u16; 2], mtu: u16) -> Vec<u8> {
    let mut quoted = begins.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>();
    quoted.extend([0; 4]);
    let quoted = packet(from, to, protocol, &quoted);
    let mut message = if from.is_ipv4() { vec![3, 4, 0, 0, 0, 0] } else { vec![2, 0, 0, 0, 0, 0] };
    message.extend(mtu.to_be_bytes());
    message.extend(quoted);
    let mut sum = Sum::default();
    if from.is_ipv6() {
        sum.add(&octets(router));
        sum.add(&octets(from));
        sum.add_word(message.len() as u16);
        sum.add_word(58);
    }
    sum.add(&message);
    message[2..4].copy_from_slice(&sum.checksum().to_be_bytes());
    packet(router, from, icmp_of(from), &message)
}

/// Such a packet in a frame, perhaps with a tag before it.
pub(super) fn framed(to: &str, from: &str, tag: &[u8], packet: &[u8]) -> Vec<u8> {
    let mac = |text: &str| text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect::<Vec<_>>();
    let ethertype: &[u8] = if packet[0] >> 4 == 4 { &[8, 0] } else { &[0x86, 0xdd] };
    [&mac(to), &mac(from), tag, ethertype, packet].concat()
}

pub(super) fn mac_here(interface: &str) -> String {
    let told = output_of("ip", &["-o", "link", "show", "dev", interface]);
    let (_, rest) = told.split_once("link/ether ").expect("it speaks Ethernet");
    rest.split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn what_a_stranger_says_of_packets_that_are_too_long_keeps_no_ipv6_from_its_tunnel() {
    for (ends, [least, of_route]) in BOTH_FAMILIES.into_iter().zip([[1330, 1300], [1350, 1290]]) {
        let Ends([near_ip, far_ip], _) = ends;
        let [local, peer]: [IpAddr; 2] = ends.0.map(|address| address.parse().unwrap());
        let hosts = beside_the_kernel(ends, "");
        assert!(hosts.near.pings_within("10.9.0.2", SOON), "{}", hosts.daemon.log_tail());
        let mtu = || hosts.daemon.interface(&format!("tunnel:{far_ip}"))["mtu"].clone();
        assert_eq!(mtu(), 1600);
        let (here, there) = (mac_here("qt-vx"), hosts.far.mac("eth0"));
        let say = |protocol: u8, begins: [u16; 2], mtu: u16| {
            let message = too_big(peer, [local, peer], protocol, begins, mtu);
            hosts.far.send("eth0", &[framed(&here, &there, &[], &message)]);
        };
        // Of packets that are none of ours nothing is believed; that is seen by what is said after them.
        say(17, [40_000, 4789], 1400);
        say(17, [50_000, 53], 1400);
        say(17, [50_000, 4789], 1500);
        wait_until("what may be true is believed", SOON, || mtu() == 1500);
        say(17, [50_000, 4789], 576);
        wait_until("what would be too little is believed as far as it does no harm", SOON, || mtu() == least);
        // The kernel believes it of any packet of the host's, as of an answer to a ping.
        let (answer, family) = if local.is_ipv4() { (0, "-4") } else { (0x8100, "-6") };
        say(icmp_of(local), [answer, 0], 1280);
        let route = || output_of("ip", &[family, "route", "get", far_ip]);
        wait_until("the kernel believes it", SOON, || route().contains("mtu 1280"));
        say(47, [0x2000, 0x6558], 0);
        // It has looked at all once it tells of two more changes.
        for mtu in [1590, 1600] {
            ip(&format!("link set qt-vx mtu {mtu}"));
            wait_until("it has looked", SOON, || hosts.daemon.interface("uplink:physnet1")["mtu"] == mtu);
        }
        assert_eq!(mtu(), least, "{}", route());
        let told = hosts.daemon.log_tail().matches("somebody on the way says").count();
        assert_eq!(told, 1, "{}", hosts.daemon.log_tail());

        // Who has the host knows better.
        let len = if local.is_ipv4() { 32 } else { 128 };
        ip(&format!("{family} route replace {far_ip}/{len} dev qt-vx src {near_ip} mtu {of_route}"));
        wait_until("what the route has holds", SOON, || mtu() == of_route);
    }
}

/// Has the daemon's questions to the kernel be answered no more: what comes on the sockets of netlink that it has now is lost.
fn deafen(hosts: &Beside) -> usize {
    use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
    let id = hosts.daemon.id();
    let pid = Pid::from_raw(id.cast_signed()).unwrap();
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let numbers = std::fs::read_dir(format!("/proc/{id}/fd")).unwrap();
    let numbers = numbers.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<i32>().ok());
    let is_deaf = |number: i32| {
        let Ok(fd) = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) else { return false };
        let is_netlink = sockopt::socket_domain(&fd).is_ok_and(|it| it == rustix::net::AddressFamily::NETLINK);
        is_netlink && switch::af_packet::deafen(fd.as_fd()).is_ok()
    };
    numbers.filter(|&number| is_deaf(number)).count()
}

#[test]
fn while_the_kernel_tells_nothing_of_routes_tunnels_go_on_and_later_it_is_asked_anew() {
    let ends = BOTH_FAMILIES[0];
    let hosts = beside_the_kernel(ends, "");
    assert!(hosts.near.pings_within("10.9.0.2", SOON), "{}", hosts.daemon.log_tail());
    let way = || hosts.daemon.interface(&format!("tunnel:{}", ends.0[1]));
    let generation = || hosts.daemon.show("config")["generation"].clone();
    let before = generation();
    assert!(deafen(&hosts) > 0, "it has no such socket");
    wait_until("it is missed", SOON, || hosts.daemon.log_tail().contains("the kernel does not tell of routes"));
    assert_eq!((&way()["link"], generation()), (&"up".into(), before.clone()), "{:#}", way());
    assert!(hosts.near.is_answered("10.9.0.2"));
    // By another socket.
    ip(&format!("route replace {}/32 dev qt-vx mtu 1400", ends.0[1]));
    wait_until("what changes is told again", SOON, || way()["mtu"] == 1400);
}
