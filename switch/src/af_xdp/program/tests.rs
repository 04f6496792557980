//! The program is run by the kernel over frames and held against a plain reading of the same rules. Needs CAP_BPF, as root has.

use super::*;
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

const NEEDS: &str = "these tests load programs into the kernel: run them as root";
const TAKEN: u32 = 1;
const PASSED: u32 = 2;

/// A frame by its parts.
#[derive(Clone, Debug)]
struct Parts {
    tags: Vec<(u16, u16)>,
    /// Source and destination are of one family.
    to: Option<IpAddr>,
    protocol: u8,
    port: u16,
    /// Words of IPv4 options.
    options: u8,
    fragment: u16,
    /// The frame ends after so many bytes, but not before the Ethernet header does.
    len: usize,
}

impl Parts {
    fn bytes(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for (tpid, tci) in &self.tags {
            frame.extend(tpid.to_be_bytes());
            frame.extend(tci.to_be_bytes());
        }
        match self.to {
            None => frame.extend([0x08, 0x06]),
            Some(IpAddr::V4(to)) => {
                frame.extend([0x08, 0x00, 0x45 + self.options, 0, 0, 200, 0, 0]);
                frame.extend(self.fragment.to_be_bytes());
                frame.extend([64, self.protocol, 0, 0, 198, 51, 100, 1]);
                frame.extend(to.octets());
                frame.extend(vec![1; 4 * usize::from(self.options)]);
            }
            Some(IpAddr::V6(to)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 160, self.protocol, 64]);
                frame.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
                frame.extend(to.octets());
            }
        }
        frame.extend([0xc0, 0x00]);
        frame.extend(self.port.to_be_bytes());
        frame.resize(200, 0);
        frame.truncate(self.len.max(14));
        frame
    }

    /// Whether the frame is ours: by the rules, from the parts.
    fn is_ours(&self, ours: &Ours) -> bool {
        // A service tag's numbers are others than those of the set: what it is before is the host's.
        let is_tag = |&(tpid, _): &(u16, u16)| tpid == 0x8100;
        let tag = self.tags.first().filter(|tag| is_tag(tag));
        if tag.is_some() && self.len < 18 {
            return false;
        }
        let vlan = tag.map_or(0, |(_, tci)| tci & 0xfff);
        if tag.is_some() && ours.vlans.contains(&vlan) {
            return true;
        }
        if self.tags.len() > usize::from(tag.is_some()) {
            return false;
        }
        let l3 = 14 + 4 * self.tags.len();
        let l4 = l3 + if matches!(self.to, Some(IpAddr::V4(_))) { 20 + 4 * usize::from(self.options) } else { 40 };
        let is_whole_and_here = match self.to {
            None => return false,
            Some(IpAddr::V4(_)) => self.fragment & 0x3fff == 0 && self.len >= l3 + 20,
            Some(IpAddr::V6(_)) => self.len >= l3 + 40,
        };
        is_whole_and_here
            && ours.tunnels.iter().any(|end| {
                Some(end.local) == self.to
                    && vlan == 0
                    && match end.carrier {
                        Carrier::Gre => self.protocol == 47,
                        Carrier::Udp(port) => self.protocol == 17 && port == self.port && self.len >= l4 + 8,
                    }
            })
    }
}

/// A program whose queues have no socket, so that what it takes is dropped and counted.
fn loaded(steering: &Steering) -> (Steered, CountMap) {
    let (sockets, count) = (SocketMap::new(1).expect(NEEDS), CountMap::new().expect(NEEDS));
    (load(steering, &sockets, Unclaimed::Drop(&count)).expect(NEEDS), count)
}

fn verdict(steered: &Steered, frame: &[u8]) -> u32 {
    let (verdict, after) = steered.program.run(frame).unwrap();
    assert_eq!(after, frame, "a frame was changed");
    verdict
}

fn ours() -> Ours {
    let end = |local: IpAddr, carrier| TunnelEnd { local, carrier };
    let (v4, v6) = (IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6("2001:db8::1".parse().unwrap()));
    Ours {
        vlans: [100, 101, 4094].into(),
        tunnels: [
            end(v4, Carrier::Udp(4789)),
            end(v6, Carrier::Udp(6081)),
            end(v6, Carrier::Gre),
            end(v4, Carrier::Gre),
        ]
        .into(),
    }
}

fn parts() -> impl Strategy<Value = Parts> {
    let tpid = prop_oneof![4 => Just(0x8100u16), 2 => Just(0x88a8), 1 => Just(0x9100)];
    let tci =
        prop_oneof![Just(100u16), Just(0x6065), Just(7), Just(0xe009), Just(0), Just(0x2000), Just(4094), any::<u16>()];
    let v4 = || IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    let v6 = || IpAddr::V6("2001:db8::1".parse().unwrap());
    let to = prop_oneof![
        4 => Just(Some(v4())),
        4 => Just(Some(v6())),
        1 => Just(None),
        1 => any::<u32>().prop_map(|bits| Some(IpAddr::V4(Ipv4Addr::from(bits)))),
        1 => any::<u128>().prop_map(|bits| Some(IpAddr::V6(Ipv6Addr::from(bits)))),
        1 => Just(Some(IpAddr::V6(Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped()))),
    ];
    let protocol = prop_oneof![4 => Just(17u8), 3 => Just(47), 1 => Just(6), 1 => any::<u8>()];
    let port = prop_oneof![Just(4789u16), Just(6081), any::<u16>()];
    let fragment = prop_oneof![6 => Just(0u16), 1 => Just(0x4000), 1 => any::<u16>()];
    let len = prop_oneof![6 => Just(200usize), 2 => 14usize..110];
    let tags = proptest::collection::vec((tpid, tci), 0..3);
    (tags, to, protocol, port, 0u8..11, fragment, len).prop_map(|(tags, to, protocol, port, options, fragment, len)| {
        Parts { tags, to, protocol, port, options, fragment, len }
    })
}

#[test]
fn everything_takes_every_frame() {
    let (steered, _count) = loaded(&Steering::Everything);
    assert_eq!(verdict(&steered, &[0xff; 14]), TAKEN);
    assert_eq!(verdict(&steered, &[0; 1500]), TAKEN);
}

#[test]
fn nothing_configured_takes_nothing() {
    let (steered, _count) = loaded(&Steering::Only(Ours::default()));
    for len in 14..80 {
        assert_eq!(verdict(&steered, &vec![0x45; len]), PASSED);
    }
}

#[test]
fn a_frame_of_ours_by_a_queue_without_a_socket_goes_to_the_host_until_it_is_to_be_dropped_and_counted() {
    let (sockets, count) = (SocketMap::new(1).expect(NEEDS), CountMap::new().expect(NEEDS));
    let (mine, foreign) = ([[2; 12].as_slice(), &[0x81, 0, 0, 100, 8, 0], &[0; 40]].concat(), [2; 60]);
    for steering in [Steering::Everything, Steering::Exclusive(ours()), Steering::Only(ours())] {
        let steered = load(&steering, &sockets, Unclaimed::Pass).expect(NEEDS);
        assert_eq!(verdict(&steered, &mine), PASSED);
        let steered = steered.again(&steering, &sockets, Unclaimed::Drop(&count)).expect(NEEDS);
        let before = count.get().unwrap();
        assert_eq!((verdict(&steered, &mine), verdict(&steered, &mine)), (TAKEN, TAKEN));
        assert_eq!(count.get().unwrap(), before + 2);
        let is_shared = matches!(steering, Steering::Only(_));
        assert_eq!(verdict(&steered, &foreign), if is_shared { PASSED } else { TAKEN });
    }
}

#[test]
fn the_program_in_the_kernel_decides_as_a_plain_reading_of_the_rules_does() {
    let ours = ours();
    let (steered, _count) = loaded(&Steering::Only(ours.clone()));
    let taken = std::cell::Cell::new(0);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(4000));
    let outcome = runner.run(&parts(), |parts| {
        let expected = if parts.is_ours(&ours) { TAKEN } else { PASSED };
        taken.set(taken.get() + usize::from(expected == TAKEN));
        prop_assert_eq!(verdict(&steered, &parts.bytes()), expected);
        Ok(())
    });
    outcome.unwrap();
    assert!(taken.get() > 400, "only {} of the frames were ours", taken.get());
}
