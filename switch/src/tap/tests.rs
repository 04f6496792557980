//! TAPs in namespaces of their own, with the kernel's stack or a packet socket at the far side.
//!
//! They need root (CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_RAW), `/dev/net/tun` and ip(8), and fail where these are missing.

use super::*;
use crate::af_packet::RawSocket;
use crate::doze::DOZE_AFTER;
use crate::offload::{F_NEEDS_CSUM, GSO_UDP_L4};
use crate::port_contract::{self, Arrived, Rig};
use crate::tests::*;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const MTU: u16 = 9000;
const SOON: Duration = Duration::from_secs(20);

fn config(netns: &OwnedFd, name: &str, reopen: bool) -> TapConfig {
    TapConfig { name: name.to_owned(), netns: Some(netns.try_clone().unwrap()), mtu: Some(MTU), queues: 1, reopen }
}

fn open(netns: &OwnedFd, name: &str, reopen: bool) -> (Tap, Arc<TestPlace>) {
    let place = Arc::new(TestPlace::default());
    let tap = Tap::open(config(netns, name, reopen), place.clone()).expect(NEEDS);
    (tap, place)
}

/// The same of a device that was closed a moment ago: a program of another test that is just starting has all our descriptors
/// until it runs, and with them the device.
fn open_again(config: impl Fn() -> TapConfig) -> (Tap, Arc<TestPlace>) {
    let deadline = Instant::now() + SOON;
    loop {
        let place = Arc::new(TestPlace::default());
        match Tap::open(config(), place.clone()) {
            Ok(tap) => return (tap, place),
            Err(error) => assert!(Instant::now() < deadline, "{NEEDS}: {error}"),
        }
    }
}

/// Waits until a device that was closed is gone. Why that may take a moment: see [`open_again`].
fn goes(netns: &OwnedFd, name: &str) {
    let deadline = Instant::now() + SOON;
    while exists(netns, name) {
        assert!(Instant::now() < deadline, "{name} is still there");
    }
}

fn refuse(config: TapConfig) -> TapError {
    let place = Arc::new(TestPlace::default());
    let error = Tap::open(config, place.clone()).map(drop).expect_err("it must not open");
    assert!(place.port().is_none(), "a port was published for a TAP that did not open");
    error
}

/// The same of a device that was closed a moment ago, once the error is of the kind that stays. Why that may take a moment:
/// see [`open_again`].
fn refuse_in_the_end(config: impl Fn() -> TapConfig, stays: impl Fn(&TapError) -> bool) -> TapError {
    let deadline = Instant::now() + SOON;
    loop {
        let error = refuse(config());
        if stays(&error) {
            return error;
        }
        assert!(Instant::now() < deadline, "{error}");
    }
}

struct TapRig {
    tap: Tap,
    place: Arc<TestPlace>,
    far: RawSocket,
}

impl TapRig {
    fn new() -> TapRig {
        let netns = quiet_netns();
        let (tap, place) = open(&netns, "tap-contract", false);
        let far = within(&netns, || RawSocket::open("tap-contract").unwrap());
        far.ignore_outgoing().unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&far, 16 << 20).unwrap();
        TapRig { tap, place, far }
    }
}

impl Rig for TapRig {
    fn port(&self) -> Arc<dyn Port> {
        self.place.port().expect("open published it")
    }

    fn inject(&mut self, frame: &[u8]) {
        self.far.send(frame).unwrap();
    }

    fn collect(&mut self, timeout: Duration) -> Option<Arrived> {
        arrived(&self.far, timeout)
    }

    fn offloads(&self) -> EgressOffloads {
        self.tap.port.egress
    }

    fn frame_max(&self) -> usize {
        usize::from(MTU) + 14
    }

    fn depth(&self) -> usize {
        // TUN_READQ_SIZE
        500
    }
}

#[test]
fn a_tap_keeps_the_port_contract() {
    port_contract::check(TapRig::new);
}

#[test]
fn more_than_a_round_of_large_frames_waits_in_the_kernel() {
    // 65,521 is the longest MTU of a TAP: frames of 65,535 bytes, of which a buffer holds only some.
    let netns = quiet_netns();
    let place = Arc::new(TestPlace::default());
    let tap =
        Tap::open(TapConfig { mtu: Some(65_521), ..config(&netns, "tap-large", false) }, place.clone()).expect(NEEDS);
    let far = within(&netns, || RawSocket::open("tap-large").unwrap());
    rustix::net::sockopt::set_socket_send_buffer_size_force(&far, 16 << 20).unwrap();
    let sent: Vec<Vec<u8>> = (0..40u8).map(|n| [vec![0x02; 14], vec![n; 65_521]].concat()).collect();
    for frame in &sent {
        far.send(frame).unwrap();
    }
    let port = place.port().unwrap();
    let mut got = Vec::new();
    let mut rounds = 0;
    while got.len() < sent.len() {
        let mut batch = Batch::new();
        let mut tally = Tally::default();
        // Without a byte limit only the buffer itself ends the burst.
        port.rx(PortIndex(0), QueueIndex(0), &mut batch, &mut tally);
        assert_eq!((tally.packets as usize, tally.dropped), (batch.len(), 0));
        assert!(batch.len() * 65_535 <= RX_BUFFER + BURST * HEAD_COPY);
        for index in 0..batch.len() {
            let (packet, tail) = batch.frame(index);
            let mut frame = packet.head().to_vec();
            frame.resize(packet.len(), 0);
            assert_eq!(tail[0].read(&mut frame[HEAD_COPY..]), packet.len() - HEAD_COPY);
            got.push(frame);
        }
        port.rx_done(QueueIndex(0));
        rounds += 1;
        assert!(rounds < 1000, "only {} of {} frames came", got.len(), sent.len());
    }
    assert!(got == sent, "frames changed on their way");
    assert!(rounds >= sent.len() * 65_535 / RX_BUFFER, "a round took more than the buffer holds");
    drop(tap);
}

#[test]
fn a_dropped_tap_keeps_its_device_and_address_and_reopens() {
    let netns = quiet_netns();
    let (tap, place) = open(&netns, "tap-keep", false);
    ip(&netns, "addr add 192.0.2.7/24 dev tap-keep");
    let mac = ip(&netns, "-o link show dev tap-keep");
    drop(tap);
    assert!(place.port().is_none(), "dropping must withdraw");
    assert!(exists(&netns, "tap-keep"));

    let (tap, _place) = open_again(|| config(&netns, "tap-keep", true));
    state_becomes(&tap, true, Link::Up, "");
    assert!(ip(&netns, "-o addr show dev tap-keep").contains("192.0.2.7/24"));
    let ether = |line: &str| line.split("link/ether ").nth(1).unwrap()[..17].to_owned();
    assert_eq!(ether(&ip(&netns, "-o link show dev tap-keep")), ether(&mac));
}

#[test]
fn a_reopened_tap_has_the_mtu_it_is_told_and_else_what_it_had_up_to_the_default() {
    let netns = quiet_netns();
    for (told, mtu) in [(None, 1500), (Some(1400), 1400), (None, 1400), (Some(9000), 9000), (None, 1500)] {
        let reopen = exists(&netns, "tap-mtu");
        drop(open_again(|| TapConfig { mtu: told, ..config(&netns, "tap-mtu", reopen) }));
        let shown = ip(&netns, "-o link show dev tap-mtu");
        assert!(shown.contains(&format!(" mtu {mtu} ")), "told {told:?}: {shown}");
    }
}

/// Tells the child below that it is one, and how its device is called.
const CHILD: &str = "QVS_TEST_TAP_HELD";

/// The part of the next test that runs in a process of its own: holds a TAP until it is killed.
fn hold_a_tap(name: String) {
    let config = TapConfig { name, netns: None, mtu: Some(MTU), queues: 1, reopen: false };
    let _tap = Tap::open(config, Arc::new(TestPlace::default())).expect(NEEDS);
    println!("\nopen");
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn a_tap_whose_process_was_killed_reopens_with_its_address() {
    if let Ok(name) = std::env::var(CHILD) {
        return hold_a_tap(name);
    }
    let netns = quiet_netns();
    let mut child = within(&netns, || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tap::tests::a_tap_whose_process_was_killed_reopens_with_its_address", "--nocapture"])
            .env(CHILD, "tap-killed")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    });
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap() == "open"), "the child ended before it had opened its TAP");
    ip(&netns, "addr add 192.0.2.9/24 dev tap-killed");
    // SIGKILL.
    child.kill().unwrap();
    child.wait().unwrap();

    let (tap, place) = open(&netns, "tap-killed", true);
    state_becomes(&tap, true, Link::Up, "");
    assert!(ip(&netns, "-o addr show dev tap-killed").contains("192.0.2.9/24"));
    assert_eq!(tx_one(&*place.port().unwrap()), None);
}

#[test]
fn reopening_makes_a_device_that_is_no_longer_there() {
    let netns = quiet_netns();
    let (tap, _place) = open(&netns, "tap-again", true);
    state_becomes(&tap, true, Link::Up, "");
    assert!(ip(&netns, "-o link show dev tap-again").contains(&format!("mtu {MTU}")));
}

#[test]
fn a_removed_tap_leaves_no_device() {
    let netns = quiet_netns();
    let (tap, place) = open(&netns, "tap-remove", false);
    tap.remove();
    assert!(place.port().is_none());
    goes(&netns, "tap-remove");
}

#[test]
fn a_transient_tap_goes_with_its_descriptor_and_is_a_wire_meanwhile() {
    let netns = quiet_netns();
    let wire = open_transient("qvs-w", Some(netns.as_fd()), MTU).unwrap();
    let host = within(&netns, || RawSocket::open("qvs-w")).unwrap();
    let mut bytes = [vec![0; VNET_HEADER_MRG_LEN], vec![2; 60]].concat();
    bytes[VNET_HEADER_MRG_LEN + 12..][..2].copy_from_slice(&[0x88, 0xb5]);
    rustix::io::write(&wire, &bytes).unwrap();
    let mut buffer = [0; 128];
    let len = host.receive(&mut buffer, SOON).unwrap().expect("a frame");
    assert_eq!(buffer[..len], bytes[VNET_HEADER_MRG_LEN..]);
    host.send(&buffer[..len]).unwrap();
    assert_eq!(rustix::io::read(&wire, &mut buffer).unwrap(), bytes.len());
    assert_eq!(rustix::io::read(&wire, &mut buffer), Err(Errno::AGAIN));
    drop(wire);
    goes(&netns, "qvs-w");
}

#[test]
fn an_interface_that_is_not_ours_is_never_opened() {
    let netns = quiet_netns();
    ip(&netns, "tuntap add dev foreign-tap mode tap");
    ip(&netns, "link add foreign-veth type veth peer name veth-peer");
    for name in ["foreign-tap", "foreign-veth", "lo"] {
        let before = ip(&netns, &format!("-o link show dev {name}"));
        assert!(matches!(refuse(config(&netns, name, false)), TapError::NameTaken { .. }), "{name}");
        assert_eq!(ip(&netns, &format!("-o link show dev {name}")), before, "{name} was touched");
    }
    // Whatever the caller believes, these are no TAPs.
    for name in ["foreign-veth", "lo"] {
        let before = ip(&netns, &format!("-o link show dev {name}"));
        assert!(matches!(refuse(config(&netns, name, true)), TapError::NameTaken { .. }), "{name}");
        assert_eq!(ip(&netns, &format!("-o link show dev {name}")), before, "{name} was touched");
    }
}

#[test]
fn a_device_that_cannot_be_set_up_is_gone_again_and_a_reopened_one_stays() {
    let netns = quiet_netns();
    // IPv4 needs 68 bytes, Ethernet devices refuse less.
    let error = refuse(TapConfig { mtu: Some(60), ..config(&netns, "tap-bad", false) });
    assert!(error.to_string().starts_with("setting the MTU of TAP \"tap-bad\""), "{error}");
    goes(&netns, "tap-bad");

    drop(open(&netns, "tap-bad", false));
    let again = || TapConfig { mtu: Some(60), ..config(&netns, "tap-bad", true) };
    refuse_in_the_end(again, |error| error.to_string().starts_with("setting the MTU of TAP \"tap-bad\""));
    assert!(exists(&netns, "tap-bad"));
}

#[test]
fn a_device_that_another_holds_is_not_shared() {
    let netns = quiet_netns();
    let (_tap, _place) = open(&netns, "tap-held", false);
    let error = refuse(config(&netns, "tap-held", true));
    assert!(error.to_string().starts_with("another process holds TAP \"tap-held\""), "{error}");
}

#[test]
fn names_that_no_interface_can_have_are_refused() {
    let netns = quiet_netns();
    for name in ["", ".", "..", "a/b", "tap%d", "a b", "a:1", "sixteen-bytes-xx", "tap\0", "tapé"] {
        assert!(matches!(refuse(config(&netns, name, false)), TapError::BadName { .. }), "{name:?}");
    }
    let (_tap, _place) = open(&netns, "fifteen-bytes-x", false);
}

#[test]
fn an_interface_that_is_down_is_ready_without_link_and_takes_nothing() {
    let netns = quiet_netns();
    let (tap, place) = open(&netns, "tap-down", false);
    let port = place.port().unwrap();
    assert_eq!(tx_one(&*port), None);
    ip(&netns, "link set tap-down down");
    state_becomes(&tap, true, Link::Down, "the interface is down");
    assert_eq!(tx_one(&*port), Some(DropReason::NotReady));
    // Up again, under another name: the device is the same.
    ip(&netns, "link set tap-down name tap-up");
    ip(&netns, "link set tap-up up");
    state_becomes(&tap, true, Link::Up, "");
    assert_eq!(tx_one(&*port), None);
}

#[test]
fn a_deleted_device_is_reported_gone_and_can_be_made_anew() {
    let netns = quiet_netns();
    let (tap, place) = open(&netns, "tap-gone", false);
    let port = place.port().unwrap();
    ip(&netns, "link del tap-gone");
    state_becomes(&tap, false, Link::Down, "the device is gone");
    assert_eq!(tx_one(&*port), Some(DropReason::PortGone));
    assert_eq!(tx_one(&*port), Some(DropReason::PortGone));
    let mut batch = Batch::new();
    let mut tally = Tally::default();
    port.rx(PortIndex(0), QueueIndex(0), &mut batch, &mut tally);
    assert_eq!((batch.len(), tally.packets), (0, 0));
    assert!(!port.arm(QueueIndex(0)), "a device that is gone must not keep its worker awake");
    drop((port, tap));

    let (tap, _place) = open(&netns, "tap-gone", true);
    state_becomes(&tap, true, Link::Up, "");
}

#[test]
fn rx_notices_a_deleted_device_by_itself() {
    let netns = quiet_netns();
    let (tap, place) = open(&netns, "tap-gone-rx", false);
    ip(&netns, "link del tap-gone-rx");
    let port = place.port().unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while !tap.port.is_gone() {
        port.rx(PortIndex(0), QueueIndex(0), &mut Batch::new(), &mut Tally::default());
        assert!(Instant::now() < deadline, "rx does not see that the device is gone");
    }
}

#[test]
fn a_tap_tells_when_its_namespace_lost_its_name() {
    let named = Named::new();
    let netns = netns::open(&named.0).unwrap();
    let (tap, _place) = open(&netns, "tap-named", false);
    drop(netns);
    state_becomes(&tap, true, Link::Up, "");
    named.delete();
    state_becomes(&tap, false, Link::Down, "the network namespace is gone");
    assert_eq!(netns::open(&named.0).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_tail_in_memory_that_vanished_drops_the_frame_and_nothing_else() {
    let netns = quiet_netns();
    let (_tap, place) = open(&netns, "tap-fault", false);
    let mut batch = Batch::new();
    let mut packet = batch.start(PortIndex(0), QueueIndex(0)).unwrap();
    packet.head(HEAD_COPY).unwrap().fill(0x02);
    packet.tail(unreadable()).unwrap();
    packet.commit(OffloadClaim::default());
    let mut tally = Tally::default();
    let port = place.port().unwrap();
    port.tx(QueueIndex(0), &mut batch, &[0], &mut tally);
    assert_eq!(tally.drops().collect::<Vec<_>>(), [(DropReason::DeviceError, 1)]);
    assert_eq!(tx_one(&*port), None);
}

#[test]
fn tcp_of_two_kernels_passes_uncut_and_whole() {
    for (address_a, address_b) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")] {
        let (a, b) = (netns::create().expect(NEEDS), netns::create().expect(NEEDS));
        let opened = [(&a, address_a), (&b, address_b)].map(|(netns, address)| {
            let place = Arc::new(TestPlace::default());
            let tap =
                Tap::open(TapConfig { mtu: Some(1500), ..config(netns, "tap0", false) }, place.clone()).expect(NEEDS);
            let plan = if address.contains(':') { format!("{address}/64 nodad") } else { format!("{address}/24") };
            ip(netns, &format!("addr add {plan} dev tap0"));
            (tap, place)
        });
        let [port_a, port_b] = [&opened[0], &opened[1]].map(|(_, place)| place.port().unwrap());
        let longest = transfer(&a, &b, address_b, &*port_a, &*port_b);
        assert!(longest > 20_000, "{address_a}: the longest frame had {longest} bytes, so TCP was cut");
    }
}

#[test]
fn the_kernel_spreads_flows_over_several_queues_and_takes_frames_from_each() {
    const QUEUES: u16 = 4;
    let netns = quiet_netns();
    let place = Arc::new(TestPlace::default());
    let config = TapConfig { queues: QUEUES, mtu: Some(1500), ..config(&netns, "tap-multi", false) };
    let tap = Tap::open(config, place.clone()).expect(NEEDS);
    let port = place.port().unwrap();
    assert_eq!((port.rx_queues(), port.tx_queues()), (QUEUES, QUEUES));
    ip(&netns, "addr add 192.0.2.1/24 dev tap-multi");
    ip(&netns, "neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev tap-multi");
    let socket = within(&netns, || std::net::UdpSocket::bind("192.0.2.1:5000").unwrap());
    for flow in 0..64u16 {
        socket.send_to(&[1; 100], ("192.0.2.2", 6000 + flow)).unwrap();
        socket.send_to(&[2; 100], ("192.0.2.2", 6000 + flow)).unwrap();
    }
    let by_queue: Vec<Vec<Vec<u8>>> =
        (0..QUEUES).map(|queue| std::iter::repeat_with(|| look(&*port, queue)).take(20).flatten().collect()).collect();
    assert_eq!(by_queue.iter().map(Vec::len).sum::<usize>(), 128);
    assert!(by_queue.iter().filter(|frames| !frames.is_empty()).count() >= 2, "one queue carried all flows");
    for frames in &by_queue {
        // Both datagrams of a flow, in order.
        let marks: Vec<_> = frames.iter().map(|frame| (frame[36..38].to_vec(), frame[42])).collect();
        for (at, (flow, mark)) in marks.iter().enumerate().filter(|(_, (_, mark))| *mark == 1) {
            assert!(marks[at + 1..].contains(&(flow.clone(), mark + 1)), "a flow's frames are in two queues");
        }
    }

    let far = within(&netns, || RawSocket::open("tap-multi").unwrap());
    far.ignore_outgoing().unwrap();
    for queue in 0..QUEUES {
        let mut batch = Batch::new();
        let mut packet = batch.start(PortIndex(0), QueueIndex(0)).unwrap();
        packet.head(60).unwrap().fill(queue as u8 + 2);
        packet.commit(OffloadClaim::default());
        let mut tally = Tally::default();
        port.tx(QueueIndex(queue), &mut batch, &[0], &mut tally);
        assert_eq!((tally.packets, tally.dropped), (1, 0));
        let mut buffer = [0; 2048];
        assert_eq!(far.receive(&mut buffer, Duration::from_secs(5)).unwrap(), Some(60));
        assert_eq!(buffer[30], queue as u8 + 2);
    }
    drop(tap);
}

#[test]
fn a_device_of_several_queues_reopens_with_any_number_but_one_and_one_of_one_only_so() {
    let netns = quiet_netns();
    let with = |name: &str, queues, reopen| TapConfig { queues, ..config(&netns, name, reopen) };
    let makes = |name: &str, queues| Tap::open(with(name, queues, false), Arc::new(TestPlace::default())).expect(NEEDS);
    let reopens = |name: &str, queues| open_again(|| with(name, queues, true));
    drop(makes("tap-four", 4));
    ip(&netns, "addr add 192.0.2.7/24 dev tap-four");
    for queues in [2, 16] {
        let (tap, place) = reopens("tap-four", queues);
        state_becomes(&tap, true, Link::Up, "");
        assert_eq!(place.port().unwrap().rx_queues(), queues);
    }
    assert!(ip(&netns, "-o addr show dev tap-four").contains("192.0.2.7/24"));
    drop(makes("tap-one", 1));
    drop(reopens("tap-one", 1));
    for (name, queues, told) in [("tap-four", 1, "several queues"), ("tap-one", 2, "one queue")] {
        let is_other = |error: &TapError| matches!(error, TapError::OtherQueues { .. });
        let error = refuse_in_the_end(|| with(name, queues, true), is_other);
        assert!(error.to_string().contains(told), "{error}");
        assert!(exists(&netns, name));
    }
    assert!(matches!(refuse(with("tap-none", 0, false)), TapError::BadQueues { given: 0 }));
    assert!(matches!(refuse(with("tap-many", 17, false)), TapError::BadQueues { given: 17 }));
    let (tap, _place) = reopens("tap-four", 2);
    tap.remove();
    goes(&netns, "tap-four");
}

#[test]
fn an_empty_queue_dozes_only_while_it_is_watched_and_until_it_is_roused() {
    let netns = quiet_netns();
    let (_tap, place) = open(&netns, "tap-doze", false);
    let port = place.port().unwrap();
    let far = within(&netns, || RawSocket::open("tap-doze").unwrap());
    let looks = |count: u32| (0..count).flat_map(|_| look(&*port, 0)).count();
    let send = || far.send(&[0x02; 60]).unwrap();
    assert!(port.may_doze());

    // Nobody would rouse it.
    assert_eq!(looks(2 * DOZE_AFTER), 0);
    send();
    assert_eq!(looks(1), 1);

    port.watched(QueueIndex(0), true);
    assert_eq!(looks(DOZE_AFTER - 1), 0);
    send();
    assert_eq!(looks(1), 1, "one look less than it takes");
    assert_eq!(looks(DOZE_AFTER), 0);
    send();
    assert_eq!(looks(2), 0, "it dozes");
    assert!(!port.arm(QueueIndex(0)), "it leaves it to the descriptor, which shows it");
    port.rouse(QueueIndex(0));
    assert!(port.arm(QueueIndex(0)));
    assert_eq!(looks(1), 1);

    // Whoever watches may end that at any time.
    assert_eq!(looks(DOZE_AFTER), 0);
    send();
    port.watched(QueueIndex(0), false);
    assert_eq!(looks(1), 1);
    assert_eq!(looks(2 * DOZE_AFTER), 0);
    send();
    assert_eq!(looks(1), 1);
}

#[test]
fn a_large_udp_frame_comes_from_the_kernel_uncut() {
    const DATAGRAM: usize = 1000;
    const COUNT: usize = 20;
    let netns = quiet_netns();
    let (tap, place) = open(&netns, "tap-uso", false);
    assert!(tap.port.egress.uso, "this kernel is older than Linux 6.2");
    let port = place.port().unwrap();
    let far = within(&netns, || RawSocket::open("tap-uso").unwrap());
    far.use_vnet_header().unwrap();
    // As a sender with UDP_SEGMENT hands it to the device: one header, many datagrams' payload.
    let len = 8 + DATAGRAM * COUNT;
    let mut frame = vec![F_NEEDS_CSUM, GSO_UDP_L4];
    for word in [42u16, DATAGRAM as u16, 34, 6] {
        frame.extend(word.to_le_bytes());
    }
    frame.extend([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0]);
    frame.extend((20 + len as u16).to_be_bytes());
    frame.extend([0, 1, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2, 0x13, 0x88, 0x17, 0x70]);
    frame.extend((len as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend((0..DATAGRAM * COUNT).map(|at| at as u8));
    far.send(&frame).unwrap();

    let mut batch = Batch::new();
    let mut tally = Tally::default();
    let deadline = Instant::now() + Duration::from_secs(5);
    while tally.packets == 0 && Instant::now() < deadline {
        port.rx(PortIndex(0), QueueIndex(0), &mut batch, &mut tally);
    }
    assert_eq!((tally.packets, batch.len()), (1, 1));
    let packet = &batch.packets()[0];
    assert_eq!((packet.len(), packet.claim.gso_type), (frame.len() - 10, GSO_UDP_L4));
    assert_eq!(usize::from(packet.claim.gso_size), DATAGRAM);
    port.rx_done(QueueIndex(0));
}
