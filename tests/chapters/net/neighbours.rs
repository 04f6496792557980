//! ARP and ND suppression: questions for addresses that the operator told of are answered where they are asked.

use super::SOON;
use crate::topology::attached_tap;
use tests::daemon::Daemon;
use tests::namespace::Namespace;

const ADDRESSES: [[&str; 2]; 2] = [["10.0.0.1", "10.0.0.2"], ["fd00::1", "fd00::2"]];

/// Whether a frame is ARP's question, or a neighbour solicitation that is no probe for a duplicate.
fn is_question(frame: &[u8]) -> bool {
    let is_arp = frame[12..14] == [8, 6] && frame[21] == 1;
    let is_solicitation = frame[12..14] == [0x86, 0xdd] && frame[20] == 58 && frame[54] == 135;
    is_arp || is_solicitation && frame[22..38].iter().any(|&byte| byte != 0)
}

/// Two hosts on one network, plugged with what they have: the first asks the second for its address and is answered by it.
/// Answers how many questions the second one heard.
fn questions_heard(settings: &str, do_tell: bool) -> usize {
    let daemon = Daemon::start(settings);
    let tenant = daemon.tenant("red");
    let network = tenant.network("lan");
    let spaces = ["qn-1", "qn-2"].map(Namespace::new);
    for (at, space) in spaces.iter().enumerate() {
        let name = space.name();
        attached_tap(&daemon, &tenant, &network, name, space, &format!("{}/24", ADDRESSES[0][at]));
        space.must("echo 0 > /proc/sys/net/ipv6/conf/tap0/disable_ipv6");
        space.must(&format!("ip addr add {}/64 dev tap0 nodad", ADDRESSES[1][at]));
        if do_tell {
            let known = format!("--mac {} --ip {} --ip {}", space.mac("tap0"), ADDRESSES[0][at], ADDRESSES[1][at]);
            daemon.must(&format!("plug {name} --tap tap0 --netns {name} {known} --replace"));
        }
    }
    daemon.wait_up(&["qn-1", "qn-2"]);
    let [one, two] = &spaces;
    for pair in ADDRESSES {
        assert!(one.pings_within(pair[1], SOON), "{}", daemon.log_tail());
    }
    let ear = two.sniff();
    for pair in ADDRESSES {
        // Each a neighbour that is not known any more.
        assert!(one.is_answered(pair[1]) && two.is_answered(pair[0]), "{}", daemon.log_tail());
    }
    let from = one.mac("tap0");
    let asked = |frame: &&Vec<u8>| is_question(frame) && tests::namespace::text_of(&frame[6..12]) == from;
    ear.stop().iter().filter(asked).count()
}

#[test]
fn a_question_for_an_address_that_was_told_floods_nobody_and_what_was_not_told_is_asked_around() {
    assert_eq!(questions_heard("", true), 0);
    assert!(questions_heard("", false) >= 2);
}

#[test]
fn suppression_can_be_switched_off() {
    assert!(questions_heard("arp_suppression = false", true) >= 2);
}
