//! A packet socket on a TAP in a namespace of its own; who holds the TAP is the wire. They need root and `/dev/net/tun`.

use super::*;
use crate::netns;
use std::time::Instant;

const RIGHTS: &str = "these tests make a network namespace: run them as root";
/// Long enough for a frame to cross the kernel on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// Runs `body` in a new network namespace with nothing but its loopback interface, which is down.
fn in_new_namespace<R: Send>(body: impl FnOnce() -> R + Send) -> R {
    let namespace = netns::create().expect(RIGHTS);
    netns::within(Some(namespace.as_fd()), body).expect(RIGHTS)
}

fn frame(mark: u8) -> Vec<u8> {
    let mut frame = vec![mark; 60];
    frame[..14].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, mark, 0x88, 0xb5]);
    frame
}

/// The first frame of ours that the socket gets within `timeout`; an interface that comes up also talks by itself.
fn next(socket: &RawSocket, timeout: Duration) -> Option<Vec<u8>> {
    let mut buffer = [0; 2048];
    let begun = Instant::now();
    while let Some(left) = timeout.checked_sub(begun.elapsed()) {
        if let Some(len) = socket.receive(&mut buffer, left).unwrap()
            && buffer[12..14] == [0x88, 0xb5]
        {
            return Some(buffer[..len].to_vec());
        }
    }
    None
}

#[test]
fn frames_come_in_and_go_out_whole() {
    in_new_namespace(|| {
        let tap = bare_tap("qvs-t");
        let socket = RawSocket::open("qvs-t").unwrap();
        assert!(!socket.mac().is_zero() && !socket.mac().is_group());
        rustix::io::write(&tap, &frame(1)).unwrap();
        assert_eq!(next(&socket, SOON), Some(frame(1)));
        socket.send(&frame(2)).unwrap();
        let mut buffer = [0; 2048];
        loop {
            let len = rustix::io::read(&tap, &mut buffer).unwrap();
            if buffer[12..14] == [0x88, 0xb5] {
                assert_eq!(buffer[..len], frame(2));
                break;
            }
        }
        assert_eq!(socket.lost().unwrap(), 0);
    });
}

#[test]
fn a_frame_of_a_vlan_that_comes_without_its_tag_is_told_as_not_the_interfaces_own() {
    let group = MacAddr([0x01, 0x80, 0xc2, 0, 0, 2]);
    let netns = crate::tests::quiet_netns();
    let ip = |line: &str| crate::tests::ip(&netns, line);
    ip("link add near type veth peer name far");
    ip("link set near up");
    ip("link set far up");
    let open = || (RawSocket::open_group("near", 0x8809, group).unwrap(), RawSocket::open("far").unwrap());
    let (near, far) = crate::tests::within(&netns, open);
    let slow = |tag: &[u8]| [&group.0[..], &[2, 0, 0, 0, 0, 7], tag, &[0x88, 0x09, 1], &[0; 60]].concat();
    let hears = |tag: &[u8]| {
        far.send(&slow(tag)).unwrap();
        let mut buffer = [0; 128];
        let begun = Instant::now();
        while begun.elapsed() < SOON {
            if let Some((_, is_own)) = near.receive_own(&mut buffer).unwrap() {
                return is_own;
            }
        }
        panic!("nothing came of {tag:?}")
    };
    assert!(hears(&[]));
    assert!(!hears(&[0x81, 0, 0, 100]) && !hears(&[0x88, 0xa8, 0, 100]));
}

#[test]
fn bursts_come_in_and_go_out_whole_and_in_order() {
    in_new_namespace(|| {
        let tap = bare_tap("qvs-t");
        let socket = RawSocket::open("qvs-t").unwrap();
        socket.ignore_outgoing().unwrap();
        socket.bypass_queueing().unwrap();
        let frames: Vec<_> = (0..BURST_MAX as u8 + 1).map(frame).collect();
        let slices: Vec<_> = frames.iter().map(|frame| IoSlice::new(frame)).collect();
        let sent = socket.send_burst(&slices).unwrap();
        assert!((1..=BURST_MAX).contains(&sent), "{sent}");
        let mut buffer = [0; 2048];
        let mut went = Vec::new();
        while went.len() < sent {
            let len = rustix::io::read(&tap, &mut buffer).unwrap();
            went.extend((buffer[12..14] == [0x88, 0xb5]).then(|| buffer[..len].to_vec()));
        }
        assert_eq!(went, frames[..sent]);

        for frame in &frames[..3] {
            rustix::io::write(&tap, frame).unwrap();
        }
        let (mut room, mut sizes, mut came) = ([[0; 40]; 8], [0; 8], Vec::new());
        while came.len() < 3 {
            let mut buffers = room.each_mut().map(|buffer| IoSliceMut::new(buffer));
            let count = socket.receive_burst(&mut buffers, &mut sizes).unwrap();
            let ours = (0..count).filter(|&at| room[at][12..14] == [0x88, 0xb5]);
            came.extend(ours.map(|at| (room[at].to_vec(), sizes[at])));
        }
        let expected: Vec<_> = frames[..3].iter().map(|frame| (frame[..40].to_vec(), 60)).collect();
        assert_eq!(came, expected, "cut, and their sizes told whole");
    });
}

#[test]
fn own_frames_are_shown_unless_left_out() {
    in_new_namespace(|| {
        let _tap = bare_tap("qvs-t");
        let sender = RawSocket::open("qvs-t").unwrap();
        let (all, others) = (RawSocket::open("qvs-t").unwrap(), RawSocket::open("qvs-t").unwrap());
        others.ignore_outgoing().unwrap();
        sender.send(&frame(3)).unwrap();
        assert_eq!(next(&all, SOON), Some(frame(3)));
        assert_eq!(next(&others, Duration::from_millis(50)), None);
    });
}

#[test]
fn a_partial_checksum_comes_and_goes_in_a_vnet_header() {
    in_new_namespace(|| {
        let tap = bare_tap("qvs-t");
        let (sender, receiver) = (RawSocket::open("qvs-t").unwrap(), RawSocket::open("qvs-t").unwrap());
        sender.use_vnet_header().unwrap();
        receiver.use_vnet_header().unwrap();
        // From byte 20 on, to be written to bytes 20 and 21, which hold the sum of nothing yet.
        let mut bytes = frame(5);
        bytes[20..22].fill(0);
        let header = [1, 0, 0, 0, 0, 0, 20, 0, 0, 0];
        sender.send(&[&header[..], &bytes].concat()).unwrap();
        // The device takes no partial checksums, so the kernel completes this one: 19 words of 0x0505.
        bytes[20..22].copy_from_slice(&(!(19 * 0x0505u16)).to_be_bytes());
        let mut buffer = [0; 2048];
        loop {
            let len = rustix::io::read(&tap, &mut buffer).unwrap();
            if buffer[12..14] == [0x88, 0xb5] {
                assert_eq!(buffer[..len], bytes);
                break;
            }
        }
        rustix::io::write(&tap, &bytes).unwrap();
        loop {
            let len = receiver.receive(&mut buffer, SOON).unwrap().expect("a frame");
            if buffer[22..24] == [0x88, 0xb5] && buffer[10..len] == bytes {
                break;
            }
        }
    });
}

#[test]
fn a_full_buffer_counts_what_it_lost() {
    in_new_namespace(|| {
        let tap = bare_tap("qvs-t");
        let socket = RawSocket::open("qvs-t").unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 4096).unwrap();
        for _ in 0..100 {
            rustix::io::write(&tap, &frame(4)).unwrap();
        }
        let lost = socket.lost().unwrap();
        assert!((1..=100).contains(&lost), "{lost}");
        assert_eq!(socket.lost().unwrap(), 0, "a loss is told once");
    });
}

#[test]
fn a_name_that_no_interface_has_is_refused_by_name() {
    let error = in_new_namespace(|| RawSocket::open("qvs-none").unwrap_err());
    assert_eq!(error.to_string(), r#"there is no interface named "qvs-none""#);
}

#[test]
fn an_interface_that_is_not_ethernet_is_refused() {
    // Loopback is ARPHRD_LOOPBACK.
    let error = in_new_namespace(|| RawSocket::open("lo").unwrap_err());
    assert!(matches!(error, InterfaceError::NotEthernet { .. }), "{error}");
}

#[test]
fn a_name_too_long_for_an_interface_is_refused_without_a_panic() {
    let error = in_new_namespace(|| RawSocket::open("an-interface-name-longer-than-the-kernel-takes").unwrap_err());
    assert!(matches!(error, InterfaceError::NoInterface { .. } | InterfaceError::Io { .. }), "{error}");
}
