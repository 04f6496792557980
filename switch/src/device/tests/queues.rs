//! Queues that an operator has an interface use, or no longer, while a port by AF_XDP is open.

use super::*;

/// A pair of veth of four queues each way, of which one is in use.
fn pair_of_queues() -> OwnedFd {
    let netns = quiet_netns();
    ip(&netns, "link add near numtxqueues 4 numrxqueues 4 type veth peer name far numtxqueues 4 numrxqueues 4");
    for end in ["near", "far"] {
        set_queues(&netns, end, [1, 1]);
        ip(&netns, &format!("link set {end} up"));
    }
    netns
}

/// Has the end use so many queues to receive and to send by.
fn set_queues(netns: &OwnedFd, end: &str, counts: [u32; 2]) {
    let [rx, tx] = counts.map(|count| count.to_string());
    let arguments = ["-L", end, "rx", &rx, "tx", &tx];
    let output = within(netns, || std::process::Command::new("ethtool").args(arguments).output().unwrap());
    assert!(output.status.success(), "ethtool -L: {}", String::from_utf8_lossy(&output.stderr));
}

fn open_end(netns: &OwnedFd, end: &str) -> (HostDevice, Arc<TestPlace>) {
    open_again(|| DeviceConfig { name: end.to_owned(), ..config(netns, Some(Driver::AfXdp)) })
}

/// A frame of this mark by each of these queues of the port, which its far end receives by the one of the same number.
fn send_by(port: &dyn Port, queues: std::ops::Range<u16>) {
    for queue in queues {
        let mut batch = Batch::new();
        let mut packet = batch.start(PortIndex(0), QUEUE).unwrap();
        packet.head(60).unwrap().copy_from_slice(&frame(queue as u8, 60));
        packet.commit(OffloadClaim::default());
        let mut tally = Tally::default();
        port.tx(QueueIndex(queue), &mut batch, &[0], &mut tally);
        assert_eq!(tally.packets, 1);
    }
}

/// Looks as the keeper does, until that many frames are told as unclaimed.
fn unclaimed_becomes(device: &HostDevice, expected: u64) {
    let deadline = std::time::Instant::now() + SOON;
    loop {
        device.counting().look();
        let counters = device.counting().last().unwrap();
        let count = counters.iter().find(|(name, _)| *name == "rx_unclaimed").unwrap().1;
        if count == expected {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{count} frames are told as unclaimed, wanted {expected}");
    }
}

#[test]
fn what_comes_by_a_queue_that_is_added_is_not_the_hosts_to_see_and_has_the_device_opened_anew() {
    let netns = pair_of_queues();
    let (device, place) = open_end(&netns, "near");
    assert_eq!(place.port().unwrap().rx_queues(), 1);
    device.counting().look();
    assert!(!device.is_outdated());
    for end in ["near", "far"] {
        set_queues(&netns, end, [4, 4]);
    }
    // A veth has a queue that was added run the program only once it is up again.
    ip(&netns, "link set near down");
    ip(&netns, "link set near up");
    let (_far, far) = open_end(&netns, "far");
    let host = within(&netns, || RawSocket::open("near").unwrap());
    host.ignore_outgoing().unwrap();
    send_by(&*far.port().unwrap(), 0..4);
    unclaimed_becomes(&device, 3);
    assert_eq!(host.receive(&mut [0; 64], Duration::ZERO).unwrap(), None, "the host saw a frame of ours");
    assert_eq!(looks(&*place.port().unwrap(), 1), [frame(0, 60)]);
    assert!(device.is_outdated());
    let reason = "the device was opened with 1 queues to receive and 1 to send by and has 4 and 4 now; \
        3 frames by others were dropped";
    state_becomes(&device, false, Link::Down, reason);

    drop((device, place));
    let (device, place) = open_end(&netns, "near");
    let port = place.port().unwrap();
    assert_eq!((port.rx_queues(), port.tx_queues()), (4, 4));
    send_by(&*far.port().unwrap(), 0..4);
    let deadline = std::time::Instant::now() + SOON;
    let mut got = Vec::new();
    while got.len() < 4 {
        assert!(std::time::Instant::now() < deadline, "{} frames came", got.len());
        got.extend((0..4).flat_map(|queue| look(&*port, queue)));
    }
    unclaimed_becomes(&device, 0);
    assert!(!device.is_outdated());
}

#[test]
fn a_device_whose_queues_to_send_by_became_fewer_is_opened_anew_unless_they_are_as_before_again() {
    let netns = pair_of_queues();
    set_queues(&netns, "near", [2, 4]);
    let (device, place) = open_end(&netns, "near");
    let port = place.port().unwrap();
    assert_eq!((port.rx_queues(), port.tx_queues()), (2, 2));
    set_queues(&netns, "near", [2, 3]);
    device.counting().look();
    let reason = "the device was opened with 2 queues to receive and 4 to send by and has 2 and 3 now";
    state_becomes(&device, false, Link::Down, reason);
    set_queues(&netns, "near", [2, 4]);
    device.counting().look();
    assert!(!device.is_outdated());
    state_becomes(&device, true, Link::Up, "");
}
