//! Explicit congestion notification (RFC 3168) with segmentation offload: what a guest's TCP says of congestion passes the
//! switch whole, and cut where the receiver cannot take it whole.
//!
//! Congestion is made in the sending guest, by a queue that marks some of its frames instead of losing them; all else is the
//! guests' own TCP, which answers marks with ECE, and that with CWR on the next frame it sends.

use super::BACK_LIMIT;
use std::time::Duration;
use tests::capture::Running;
use tests::daemon::Daemon;
use tests::guest::{Extras, Guest, Nic, QemuRole, StartingGuest};
use tests::ledger::Counters;
use tests::pcapng::{self, Captured};
use tests::process::wait_for;

/// Flags of TCP (RFC 9293 section 3.1), and the part of the second byte of an IPv4 header that is ECN's.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;
const CE: u8 = 3;
/// Bytes of the longest frame that is not to be cut.
const MTU_FRAME: usize = 1514;

/// Flags, and what the frame says of congestion, of a frame of TCP over IPv4.
fn flags(frame: &Captured) -> (u8, u8) {
    let l4 = 14 + 4 * usize::from(frame.bytes[14] & 0x0f);
    (frame.bytes[l4 + 13], frame.bytes[15] & CE)
}

/// Frames of which something is so.
fn count(frames: &[&Captured], is_so: impl Fn(u8, u8, bool) -> bool) -> u64 {
    frames.iter().filter(|frame| is_so(flags(frame).0, flags(frame).1, frame.len > MTU_FRAME)).count() as u64
}

#[test]
fn congestion_is_told_through_large_frames_and_those_cut_for_a_guest_that_does_not_take_them() {
    let daemon = Daemon::start("");
    let red = daemon.tenant("red");
    let network = red.network("lan");
    let nic =
        |name: &str| Nic { socket: daemon.path(name), role: QemuRole::Client, mac: format!("02:00:00:00:00:0{name}") };
    for name in ["a", "b", "c"] {
        daemon.must(&format!("plug {name} --vhost-user {}", daemon.path(name).display()));
        red.attached_port(&network, name);
    }
    daemon.wait_up(&["a", "b", "c"]);
    let without = Extras { properties: vec!["guest_ecn=off".into()], ..Extras::default() };
    let starting =
        [Guest::start("a", &[nic("a")]), Guest::start("b", &[nic("b")]), Guest::start_with("c", &[nic("c")], &without)];
    let [mut a, mut b, mut c] = starting.map(StartingGuest::ready);
    for (guest, address) in [(&mut a, "10.0.0.1"), (&mut b, "10.0.0.2"), (&mut c, "10.0.0.3")] {
        guest.must(&format!("ip addr add {address}/24 dev eth0 && ip link set eth0 up"));
        // Also where a SYN is lost, as some will be.
        guest.must("echo 1 >/proc/sys/net/ipv4/tcp_ecn && echo 0 >/proc/sys/net/ipv4/tcp_ecn_fallback");
    }
    // Features 9 and 13 are VIRTIO_NET_F_GUEST_ECN and VIRTIO_NET_F_HOST_ECN.
    for (guest, takes) in [(&mut a, "1"), (&mut b, "1"), (&mut c, "0")] {
        assert_eq!(guest.must("cut -c 10,14 /sys/class/net/eth0/device/features").trim(), format!("{takes}1"));
    }
    assert!(a.must("ethtool -k eth0").contains("tx-tcp-ecn-segmentation: on"));
    for address in ["10.0.0.2", "10.0.0.3"] {
        let reached = wait_for(BACK_LIMIT, || (a.run(&format!("ping -c 1 -W 1 {address}")).status == 0).then_some(()));
        assert!(reached.is_some(), "{:#}\n{}", daemon.show("ports"), daemon.log_tail());
    }
    // busybox has one that knows less.
    a.must("/usr/sbin/tc qdisc add dev eth0 root netem loss 3% ecn limit 10000");

    for (name, address, guest) in [("b", "10.0.0.2", &mut b), ("c", "10.0.0.3", &mut c)] {
        guest.must("iperf3 -s -1 -D");
        let file = daemon.path("ecn.pcapng");
        let before = Counters::read(&daemon);
        let capture = Running::start(&daemon, &format!("{name} -w {} --snaplen 96 --filter tcp", file.display()));
        let output = a.run_within(Duration::from_secs(180), &format!("iperf3 -c {address} -n 40M"));
        assert_eq!(output.status, 0, "{}", output.text);
        capture.interrupt();
        let changes = Counters::read(&daemon).changes(&before);
        let capture = pcapng::read(&std::fs::read(&file).unwrap());
        let (from_guest, to_guest): (Vec<_>, Vec<_>) = capture.frames.iter().partition(|frame| frame.is_inbound());
        println!("{name}: {changes:?}");

        let asks = count(&to_guest, |flags, _, _| flags & (SYN | ACK | ECE | CWR) == SYN | ECE | CWR);
        let agrees = count(&from_guest, |flags, _, _| flags & (SYN | ACK | ECE | CWR) == SYN | ACK | ECE);
        assert!(asks > 0 && agrees > 0, "{name}: {asks} ask for it, {agrees} agree");
        let marked = count(&to_guest, |_, ecn, is_large| ecn == CE && is_large);
        let echoed = count(&from_guest, |flags, _, _| flags & (SYN | ECE) == ECE);
        let answered = count(&to_guest, |flags, _, is_large| flags & (SYN | CWR) == CWR && is_large);
        println!("{name}: {marked} marked, {echoed} echoed, {answered} large frames answer");
        assert!(marked > 20 && echoed > 20 && answered > 20, "{name}: {marked} {echoed} {answered} {}", output.text);
        // The sender's device told so of each of them, and the switch tells the receiver's.
        for frame in to_guest.iter().filter(|frame| frame.comment.contains("not yet cut: TCP")) {
            let is_answer = flags(frame).0 & CWR != 0;
            assert_eq!(frame.comment.contains("CWR on the first"), is_answer, "{name}: {}", frame.comment);
        }
        // The marks are with the guest's TCP.
        let netstat = guest.must("cat /proc/net/netstat");
        assert!(counter(&netstat, "InCEPkts") > 20, "{netstat}");

        // Those with CWR are cut into two at least. Beside the stream there is little, ARP.
        let sent = Counters::read(&daemon).grown(&before, &format!("{name}.tx.packets"));
        let is_cut = sent >= to_guest.len() as u64 + answered;
        assert_eq!(is_cut, name == "c", "{name}: {sent} sent, {} captured before they were cut", to_guest.len());
        let strange: Vec<_> =
            changes.iter().filter(|change| change.contains(".drops.") && !change.contains("rx_ring_full")).collect();
        assert!(strange.is_empty(), "{strange:?}");
    }
}

/// A counter of `/proc/net/netstat`: lines of names, each before a line of their values.
fn counter(netstat: &str, name: &str) -> u64 {
    let lines: Vec<Vec<&str>> = netstat.lines().map(|line| line.split_whitespace().collect()).collect();
    let found = lines.chunks(2).find_map(|pair| Some(pair[1][pair[0].iter().position(|word| *word == name)?]));
    found.unwrap_or_else(|| panic!("no {name} in\n{netstat}")).parse().expect("values are numbers")
}
