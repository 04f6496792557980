//! Interfaces in namespaces of their own, changed by ip(8).

use super::*;
use crate::tests::{ip, quiet_netns, within};
use rustix::fd::OwnedFd;

fn veth(netns: &OwnedFd) -> LinkWatch {
    ip(netns, "link add near type veth peer name far");
    within(netns, || LinkWatch::open("near")).unwrap().unwrap()
}

#[test]
fn what_an_interface_is_and_each_change_of_it_is_told() {
    let netns = quiet_netns();
    let watch = veth(&netns);
    let status = || watch.status().unwrap();
    let first = status();
    assert_eq!((first.name.as_str(), first.kind.as_str(), first.mtu), ("near", "veth", 1500));
    assert!(first.is_ethernet && !first.is_up && !first.has_carrier && !first.mac.is_zero());
    ip(&netns, "link set near mtu 9000 up");
    assert_eq!((status().mtu, status().is_up, status().has_carrier), (9000, true, false));
    ip(&netns, "link set far up");
    // The kernel tells the carrier of both ends when it comes to it.
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while status() != (LinkStatus { mtu: 9000, is_up: true, has_carrier: true, ..first.clone() }) {
        assert!(std::time::Instant::now() < deadline, "it stays {:?}", status());
        std::thread::sleep(Duration::from_millis(1));
    }
    ip(&netns, "link set near address 02:00:00:00:00:07");
    assert_eq!(status().mac, MacAddr([2, 0, 0, 0, 0, 7]));
    ip(&netns, "link set near down");
    assert!(!status().is_up && !status().has_carrier);
    let lo = within(&netns, || LinkWatch::open("lo")).unwrap().unwrap();
    assert!(!lo.status().unwrap().is_ethernet);
}

#[test]
fn an_interface_that_is_deleted_renamed_or_moved_away_is_gone_for_ever() {
    for change in ["link del near", "link set near name other", "link set near netns @"] {
        let (netns, other) = (quiet_netns(), quiet_netns());
        let watch = veth(&netns);
        assert!(watch.status().is_some());
        let id = std::process::id();
        let path = format!("/proc/{id}/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&other));
        ip(&netns, &change.replace('@', &path));
        assert_eq!(watch.status(), None, "{change}");
        ip(&netns, "link add near type bridge");
        assert_eq!(watch.status(), None, "{change}: another interface of the name");
        assert!(within(&netns, || LinkWatch::open("near")).unwrap().is_some());
    }
}

#[test]
fn a_name_that_no_interface_has_is_no_interface() {
    let netns = quiet_netns();
    for name in ["none", "", "a-name-longer-than-the-kernel-takes"] {
        assert!(within(&netns, || LinkWatch::open(name)).unwrap().is_none(), "{name:?}");
    }
}

#[test]
fn a_member_that_leaves_a_bridge_is_still_there() {
    let netns = quiet_netns();
    let watch = veth(&netns);
    ip(&netns, "link add bridge type bridge");
    ip(&netns, "link set near master bridge");
    ip(&netns, "link set near nomaster");
    assert!(watch.status().is_some());
}

#[test]
fn more_news_than_the_socket_holds_ends_in_the_right_state() {
    let netns = quiet_netns();
    let watch = veth(&netns);
    sockopt::set_socket_recv_buffer_size(&watch.socket, 4096).unwrap();
    for mtu in 1400..1500 {
        ip(&netns, &format!("link set near mtu {mtu}"));
    }
    assert_eq!(watch.status().unwrap().mtu, 1499);
    ip(&netns, "link set near mtu 1300");
    assert_eq!(watch.status().unwrap().mtu, 1300);
    for mtu in 1400..1500 {
        ip(&netns, &format!("link set near mtu {mtu}"));
    }
    ip(&netns, "link del near");
    assert_eq!(watch.status(), None);
}

#[test]
fn every_truncation_of_a_message_is_taken_without_a_panic() {
    let known = LinkStatus { index: 7, name: "near".into(), mtu: 1500, ..LinkStatus::default() };
    let mut message = vec![0; HEADER_SIZE];
    message[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend([0, 0, 1, 0]);
    message.extend(7u32.to_ne_bytes());
    message.extend([0x41, 0, 0, 0, 0, 0, 0, 0]);
    message.extend([9, 0, 3, 0, b'n', b'e', b'a', b'r', 0, 0, 0, 0, 8, 0, 4, 0]);
    message.extend(9000u32.to_ne_bytes());
    message.extend([12, 0, 18, 0, 8, 0, 1, 0, b'v', b'e', b't', b'h']);
    let whole = follow(&known, &message).unwrap();
    assert_eq!((whole.mtu, whole.kind.as_str(), whole.has_carrier), (9000, "veth", true));
    for len in 0..message.len() {
        if let Some(status) = follow(&known, &message[..len]) {
            assert_eq!((status.index, status.name.as_str()), (7, "near"));
        }
    }
}
