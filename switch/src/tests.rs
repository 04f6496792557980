//! What tests of ports need that are interfaces of the kernel: namespaces, a place, a worker's hand movements.
//!
//! They need root (CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_RAW), `/dev/net/tun` and ip(8), and fail where these are missing.

use crate::af_packet::RawSocket;
use crate::batch::{BURST, Batch};
use crate::ids::{PortIndex, QueueIndex};
use crate::ledger::{DropReason, Tally};
use crate::netns;
use crate::offload::{F_NEEDS_CSUM, GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4};
use crate::offload::{Gso, GsoKind, Offload, OffloadClaim, PartialChecksum};
use crate::packet::{Headers, L3, Packet};
use crate::port::{Device, DeviceState, Link, Place, Port};
use crate::port_contract::Arrived;
use crate::worker::ROUND_BYTES;
use rustix::fd::{AsFd, OwnedFd};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub(crate) const NEEDS: &str = "these tests need root and /dev/net/tun";

/// A place that remembers what stands there.
#[derive(Default)]
pub(crate) struct TestPlace {
    port: Mutex<Option<Arc<dyn Port>>>,
}

impl Place for TestPlace {
    fn publish(&self, port: Arc<dyn Port>) {
        *self.port.lock().unwrap() = Some(port);
    }

    fn withdraw(&self) {
        *self.port.lock().unwrap() = None;
    }
}

impl TestPlace {
    pub(crate) fn port(&self) -> Option<Arc<dyn Port>> {
        self.port.lock().unwrap().clone()
    }
}

/// A namespace where nobody but the test speaks.
pub(crate) fn quiet_netns() -> OwnedFd {
    let netns = netns::create().expect(NEEDS);
    within(&netns, || {
        // Missing where the kernel has no IPv6: quiet as well.
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    });
    netns
}

pub(crate) fn within<T: Send>(netns: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    netns::within(Some(netns.as_fd()), work).expect(NEEDS)
}

/// Runs ip(8) in the namespace; answers what it printed.
pub(crate) fn ip(netns: &OwnedFd, arguments: &str) -> String {
    let output = within(netns, || Command::new("ip").args(arguments.split(' ')).output());
    let output = output.expect("the TAP tests need ip(8) of iproute2");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn exists(netns: &OwnedFd, name: &str) -> bool {
    netns::has_interface(Some(netns.as_fd()), name).unwrap()
}

/// The device's condition once the kernel has told everybody: `is_ready`, link, reason.
pub(crate) fn state_becomes(device: &dyn Device, is_ready: bool, link: Link, reason: &str) {
    let wanted = DeviceState { is_ready, link, reason: reason.to_owned() };
    let deadline = Instant::now() + Duration::from_secs(5);
    while device.state() != wanted {
        assert!(Instant::now() < deadline, "state stays {:?}, wanted {wanted:?}", device.state());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sends one small frame and answers why it was dropped, if it was.
pub(crate) fn tx_one(port: &dyn Port) -> Option<DropReason> {
    let frame = [0xffu8; 60];
    let mut batch = Batch::new();
    let mut packet = batch.start(PortIndex(0), QueueIndex(0)).unwrap();
    packet.head(frame.len()).unwrap().copy_from_slice(&frame);
    packet.commit(OffloadClaim::default());
    let mut tally = Tally::default();
    port.tx(QueueIndex(0), &mut batch, &[0], &mut tally);
    assert_eq!(tally.packets + tally.dropped, 1);
    tally.drops().next().map(|(reason, _)| reason)
}

/// The next frame at the far end of a port of the contract, as it lies on the wire.
///
/// # Panics
/// If the socket itself has lost one.
pub(crate) fn arrived(far: &RawSocket, timeout: Duration) -> Option<Arrived> {
    let mut buffer = vec![0u8; 1 << 17];
    let len = far.receive(&mut buffer, timeout).unwrap();
    assert_eq!(far.lost().unwrap(), 0, "the test's own socket lost frames");
    buffer.truncate(len?);
    Some(Arrived { bytes: buffer, claim: None })
}

/// A namespace with a name, which goes away with the value.
pub(crate) struct Named(pub(crate) String);

impl Named {
    pub(crate) fn new() -> Named {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("qvs-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let status = Command::new("ip").args(["netns", "add", &name]).status();
        assert!(status.expect("the TAP tests need ip(8)").success(), "ip netns add: {NEEDS}");
        Named(name)
    }

    pub(crate) fn delete(&self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).stderr(Stdio::null()).status();
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        self.delete();
    }
}

/// What the parse stage makes of a claim of our own kernel, which need not be checked.
pub(crate) fn believe(packet: &mut Packet) {
    let claim = packet.claim;
    let kind = match claim.gso_type & !GSO_ECN {
        GSO_TCPV4 => Some(GsoKind::Tcp4),
        GSO_TCPV6 => Some(GsoKind::Tcp6),
        GSO_UDP_L4 => Some(GsoKind::UdpL4),
        _ => None,
    };
    let ecn = claim.gso_type & GSO_ECN != 0;
    packet.offload = Offload {
        checksum: (claim.flags & F_NEEDS_CSUM != 0)
            .then_some(PartialChecksum { start: claim.csum_start, offset: claim.csum_offset }),
        gso: kind.map(|kind| Gso { kind, size: claim.gso_size, header_len: claim.hdr_len, ecn }),
        checksum_valid: false,
    };
    // Untagged, and without extension headers.
    let is_v6 = packet.head()[12..14] == [0x86, 0xdd];
    let (ethertype, l3) = if is_v6 { (0x86dd, L3::Ipv6) } else { (0x0800, L3::Ipv4) };
    let l4_protocol = if kind == Some(GsoKind::UdpL4) { 17 } else { 6 };
    packet.headers =
        Headers { ethertype, l3, l3_offset: 14, l4_offset: claim.csum_start, l4_protocol, ..Headers::default() };
}

/// TCP mends what a slow receiver costs, and nothing else may be lost.
fn only_for_want_of_room(tally: &Tally) {
    assert!(
        tally.drops().all(|(reason, _)| reason == DropReason::RxRingFull),
        "{:?}",
        tally.drops().collect::<Vec<_>>()
    );
}

/// One burst from `from` to `to`, as a worker would; answers the length of the longest frame.
pub(crate) fn shovel(from: &dyn Port, to: &dyn Port) -> usize {
    let mut batch = Batch::new();
    batch.clear(BURST, ROUND_BYTES);
    let mut tally = Tally::default();
    from.rx(PortIndex(0), QueueIndex(0), &mut batch, &mut tally);
    only_for_want_of_room(&tally);
    batch.packets_mut().iter_mut().for_each(believe);
    let picks: Vec<u8> = (0..batch.len() as u8).collect();
    tally.clear();
    to.tx(QueueIndex(0), &mut batch, &picks, &mut tally);
    only_for_want_of_room(&tally);
    let longest = batch.packets().iter().map(Packet::len).max().unwrap_or(0);
    from.rx_done(QueueIndex(0));
    longest
}

/// A TCP connection from a port of namespace `a` to `address` in `b`, while ports that lead to them pass frames to each other;
/// answers the length of the longest frame.
///
/// # Panics
/// If a byte of many megabytes is lost or changed.
pub(crate) fn transfer(a: &OwnedFd, b: &OwnedFd, address: &str, port_a: &dyn Port, port_b: &dyn Port) -> usize {
    const BYTES: usize = 64 << 20;
    let sent: Vec<u8> = (0..1usize << 16).map(|at| (at % 251) as u8).collect();
    let is_over = AtomicBool::new(false);
    let longest = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // With an end of its own, so that a failed assertion below does not hang the test.
            let deadline = Instant::now() + Duration::from_secs(60);
            while !is_over.load(Ordering::Relaxed) && Instant::now() < deadline {
                let there = shovel(port_a, port_b);
                let back = shovel(port_b, port_a);
                longest.fetch_max(there.max(back), Ordering::Relaxed);
                if there + back == 0 {
                    std::thread::yield_now();
                }
            }
        });
        let listener = within(b, || TcpListener::bind((address, 0)).unwrap());
        let (sent, address) = (&sent, listener.local_addr().unwrap());
        scope.spawn(move || {
            let mut stream = within(a, || TcpStream::connect(address).unwrap());
            for _ in 0..BYTES / sent.len() {
                stream.write_all(sent).unwrap();
            }
        });
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut got = vec![0u8; sent.len()];
        for _ in 0..BYTES / sent.len() {
            stream.read_exact(&mut got).unwrap();
            assert!(got == *sent, "bytes changed");
        }
        is_over.store(true, Ordering::Relaxed);
    });
    longest.load(Ordering::Relaxed)
}

/// Looks at one queue; answers the frames it had.
pub(crate) fn look(port: &dyn Port, queue: u16) -> Vec<Vec<u8>> {
    let mut batch = Batch::new();
    batch.clear(BURST, ROUND_BYTES);
    let mut tally = Tally::default();
    port.rx(PortIndex(0), QueueIndex(queue), &mut batch, &mut tally);
    let frames = (0..batch.len()).map(|at| {
        let (packet, tail) = batch.frame(at);
        let mut frame = packet.head().to_vec();
        frame.resize(packet.len(), 0);
        tail.iter().fold(packet.head().len(), |used, segment| used + segment.read(&mut frame[used..]));
        frame
    });
    let frames = frames.collect();
    if tally.packets > 0 {
        port.rx_done(QueueIndex(queue));
    }
    frames
}
