//! The words of traces, pinned by the files under `tests/golden/trace/` at the top of the repository.
//!
//! `QVS_BLESS=1 cargo test -p pipelines golden` writes them anew; read the difference before you commit it.

use super::frames::Frame;
use super::rig::{Input, Rig, config, mac, port};
use std::path::PathBuf;
use switch::config::PortConfig;
use switch::ids::{MacAddr, NetworkIndex, PortIndex};
use switch::offload::OffloadClaim;
use switch::worker::Now;

/// blue: 0, 1, 2 (fixed to mac 3, small MTU) and 4 (down); red: 3 alone; 5 is on none.
fn rig() -> Rig {
    let fixed = PortConfig { macs: vec![mac(3)], mtu: 1400, ..port(2, Some(1)) };
    let down = PortConfig { is_admin_up: false, macs: vec![mac(9)], ..port(4, Some(1)) };
    let ports = vec![port(0, Some(1)), port(1, Some(1)), fixed, port(3, Some(2)), down, port(5, None)];
    let rig = Rig::new(config(ports));
    rig.mac_table.learn(NetworkIndex(1), mac(2), PortIndex(1), Now::default());
    rig
}

fn check(name: &str, ingress: u16, input: impl Into<Input>) {
    let rig = rig();
    let text = rig.trace(Now::default(), PortIndex(ingress), &input.into()).join("\n") + "\n";
    let again = rig.mac_table.entries(Now::default()).len();
    assert_eq!(again, 3, "a trace learns nothing");
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/trace").join(format!("{name}.txt"));
    if std::env::var_os("QVS_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(text, golden, "{name}");
}

fn claiming(frame: &Frame, claim: OffloadClaim) -> Input {
    Input { claim, ..Input::from(frame.bytes()) }
}

const TCP_CLAIM: OffloadClaim =
    OffloadClaim { flags: 1, gso_type: 1, hdr_len: 0, gso_size: 1448, csum_start: 34, csum_offset: 16 };

#[test]
fn golden_traces_of_frames_that_are_delivered() {
    check("unicast_to_known", 0, Frame::udp4().bytes());
    check("unicast_to_unknown", 0, Frame::udp6().to(mac(7)).bytes());
    check("arp_broadcast", 0, Frame::arp().to(MacAddr::BROADCAST).bytes());
    check("tagged_twice", 1, Frame::icmp4().vlan(5).vlan(7).from(mac(2)).to(mac(3)).bytes());
    check("fragment", 0, Frame::udp4().fragment(3, false).bytes());
    check("ipv6_icmp_from_fixed_mac", 2, Frame::icmp6().from(mac(3)).bytes());
    check("not_ip", 0, [mac(2).0.as_slice(), &mac(1).0, &[0x88, 0xb5], &[0; 46]].concat());
    check("broken_ip", 0, [mac(2).0.as_slice(), &mac(1).0, &[0x08, 0x00, 0x65], &[0; 45]].concat());
    check("tcp_to_be_cut", 0, claiming(&Frame::tcp4().payload(4000), TCP_CLAIM));
    check("checksum_left", 0, claiming(&Frame::tcp6(), OffloadClaim { gso_type: 0, csum_start: 54, ..TCP_CLAIM }));
    check("flood_past_a_small_mtu", 0, Frame::udp4().to(mac(7)).payload(1450).bytes());
}

#[test]
fn golden_traces_of_frames_that_are_dropped() {
    check("drop_truncated", 0, vec![0; 13]);
    check("drop_bad_offload", 0, claiming(&Frame::tcp4(), OffloadClaim { csum_start: 30, ..TCP_CLAIM }));
    check("drop_no_network", 5, Frame::udp4().bytes());
    check("drop_port_admin_down", 4, Frame::udp4().bytes());
    check("drop_over_mtu", 0, Frame::udp4().payload(1473).bytes());
    check("drop_bad_source_mac", 0, Frame::udp4().from(MacAddr::BROADCAST).bytes());
    check("drop_spoofed_mac", 2, Frame::udp4().bytes());
    check("drop_link_local_multicast", 0, Frame::udp4().to(MacAddr([1, 0x80, 0xc2, 0, 0, 0])).bytes());
    check("drop_reflection", 1, Frame::udp4().to(mac(2)).bytes());
    check("drop_no_receiver", 3, Frame::arp().to(MacAddr::BROADCAST).bytes());
    check("drop_egress_port_admin_down", 0, Frame::udp4().to(mac(9)).bytes());
    check("drop_egress_over_mtu", 0, Frame::udp4().to(mac(3)).payload(1450).bytes());
    check("drop_to_itself", 0, Frame::udp4().to(mac(1)).bytes());
}
