//! Two devices by AF_XDP whose frames lie in one pool: what goes from the one to the other as it lies.

use super::*;

/// Two pairs of veth whose near ends are ports of one pool; the sockets are at the far ends.
struct Neighbours {
    _devices: [HostDevice; 2],
    ports: [Arc<dyn Port>; 2],
    far: [RawSocket; 2],
    netns: OwnedFd,
}

impl Neighbours {
    fn new() -> Neighbours {
        let netns = quiet_netns();
        let mut far = [0, 1].map(|at| {
            ip(&netns, &format!("link add near{at} type veth peer name far{at}"));
            let ends = [format!("near{at}"), format!("far{at}")];
            ends.iter().for_each(|end| drop(ip(&netns, &format!("link set {end} up"))));
            are_up(&netns, [&ends[0], &ends[1]]);
            let far = within(&netns, || RawSocket::open(&ends[1]).unwrap());
            far.ignore_outgoing().unwrap();
            far
        });
        let open = |at: usize| {
            let near = || DeviceConfig { name: format!("near{at}"), ..config(&netns, Some(Driver::AfXdp)) };
            let (device, place) = open_again(near);
            (device, place.port().unwrap())
        };
        // Pools are the whole process's: devices of other tests may have left one seat in theirs, which parts these two.
        let deadline = std::time::Instant::now() + SOON;
        loop {
            let [one, other] = [open(0), open(1)];
            let (devices, ports) = ([one.0, other.0], [one.1, other.1]);
            let world = Neighbours { _devices: devices, ports, far, netns: netns.try_clone().unwrap() };
            let (_, handed_over) = world.pass(0, &frame(1, 60), |_| {});
            if handed_over == 1 {
                return world;
            }
            assert!(std::time::Instant::now() < deadline, "they get no seats in one pool");
            far = world.far;
        }
    }

    /// Carries what `from` has to the other one, after `change`; answers how many frames, and how many were handed over.
    fn carry(&self, from: usize, mut change: impl FnMut(&mut Batch<'_>)) -> [usize; 2] {
        let (source, sink) = (&self.ports[from], &self.ports[1 - from]);
        let (mut batch, mut tally) = (Batch::new(), Tally::default());
        source.rx(PortIndex(0), QUEUE, &mut batch, &mut tally);
        change(&mut batch);
        let picks: Vec<u8> = (0..batch.len() as u8).collect();
        tally.clear();
        sink.tx(QUEUE, &mut batch, &picks, &mut tally);
        assert_eq!((tally.packets as usize, tally.dropped), (picks.len(), 0));
        let handed_over = (0..batch.len()).filter(|&index| batch.lent(index).is_none()).count();
        source.rx_done(QUEUE);
        [picks.len(), handed_over]
    }

    /// The frame, sent by the far end of `from` and carried to that of the other.
    fn pass(&self, from: usize, bytes: &[u8], mut change: impl FnMut(&mut Batch<'_>)) -> (Vec<u8>, usize) {
        self.far[from].send(bytes).unwrap();
        let deadline = std::time::Instant::now() + SOON;
        loop {
            let [count, handed_over] = self.carry(from, &mut change);
            assert!(std::time::Instant::now() < deadline, "nothing came");
            if count > 0 {
                return (arrived(&self.far[1 - from], SOON).unwrap().bytes, handed_over);
            }
        }
    }
}

#[test]
fn frames_between_two_devices_are_handed_over_whole_and_neither_runs_out_of_them() {
    let world = Neighbours::new();
    // More than all that both ways have, mostly one way.
    for number in 0..6_000usize {
        let from = usize::from(number.is_multiple_of(3));
        let mut bytes = frame(number as u8, 60 + number % 1455);
        bytes[14..18].copy_from_slice(&(number as u32).to_be_bytes());
        let (got, handed_over) = world.pass(from, &bytes, |_| {});
        assert_eq!((got, handed_over), (bytes, 1));
    }
}

#[test]
fn a_frame_is_handed_over_with_its_head_as_it_is_then_longer_or_shorter() {
    let world = Neighbours::new();
    for len in [60, 127, 128, 129, 700, 1400] {
        let bytes = frame(7, len);
        let (got, handed_over) = world.pass(0, &bytes, |batch| {
            for packet in batch.packets_mut() {
                packet.head_mut()[..6].fill(0x12);
                packet.extend_front(50).unwrap()[..50].fill(0x02);
            }
        });
        assert_eq!((got.len(), handed_over), (len + 50, 1));
        assert!(got[..50] == [2; 50] && got[50..56] == [0x12; 6] && got[56..] == bytes[6..]);
        let (got, handed_over) = world.pass(1, &got, |batch| {
            for packet in batch.packets_mut() {
                packet.strip_front(50).unwrap();
            }
        });
        assert_eq!((&got[..6], &got[6..], handed_over), (&[0x12; 6][..], &bytes[6..], 1));
    }
}

#[test]
fn a_frame_that_more_than_one_wants_to_read_is_copied() {
    let world = Neighbours::new();
    let bytes = frame(3, 900);
    let (got, handed_over) = world.pass(0, &bytes, |batch| {
        batch.keep_frames();
    });
    assert_eq!((got, handed_over), (bytes, 0));
}

#[test]
fn a_device_that_closes_takes_no_frames_of_its_neighbour_along() {
    let mut world = Neighbours::new();
    for number in 0..1000 {
        world.pass(number % 2, &frame(number as u8, 200), |_| {});
    }
    // The other one goes, and comes again with what frames it had in the end.
    for _ in 0..3 {
        let Neighbours { _devices: [first, second], ports: [one, other], far, netns } = world;
        drop((other, second));
        let near = || DeviceConfig { name: "near1".to_owned(), ..config(&netns, Some(Driver::AfXdp)) };
        let (again, place) = open_again(near);
        world = Neighbours { _devices: [first, again], ports: [one, place.port().unwrap()], far, netns };
        for number in 0..3000 {
            let bytes = frame(number as u8, 300);
            assert_eq!(world.pass(number % 2, &bytes, |_| {}).0, bytes);
        }
    }
}
