//! A kernel that is played: it holds the other ends of the rings, takes and gives frames in any order it may, and notices when
//! it is given one that it has already or that is not its to have.

use super::super::{Consumer, Producer, Ring};
use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

const LAYOUT: Layout = Layout { frame_size: 2048, count: 16 };
/// Entries of its rings: fewer than frames, so that they are full at times.
const SHORT_RING: u32 = 8;

/// The far side of the rx rings.
struct Receiving {
    fill: Consumer<u64>,
    received: Producer<Descriptor>,
    /// Frames that it has to fill, by where they begin.
    has: Vec<u64>,
}

impl Receiving {
    fn new(frames: u32) -> (RxFrames, Receiving) {
        let (fill, received) = (Ring::alone(SHORT_RING), Ring::alone(SHORT_RING));
        let kernel =
            Receiving { fill: Consumer::new(fill.clone()), received: Producer::new(received.clone()), has: Vec::new() };
        let ours = Frame::numbered(0..frames);
        (RxFrames::new(LAYOUT, ours, Producer::new(fill), Consumer::new(received)), kernel)
    }

    /// Takes all frames that it was given.
    fn look(&mut self) {
        while let Some(address) = self.fill.peek(0) {
            self.fill.advance(1);
            assert!(address.is_multiple_of(2048) && address < LAYOUT.bytes() as u64, "no frame begins at {address}");
            assert!(!self.has.contains(&address), "the frame at {address} was given twice");
            self.has.push(address);
        }
        self.fill.release();
    }

    /// A frame of so many pieces comes; false if there is no room for it.
    fn receive(&mut self, pieces: usize) -> bool {
        self.look();
        if self.has.len() < pieces || (self.received.room(pieces as u32) as usize) < pieces {
            return false;
        }
        for number in 0..pieces {
            let address = self.has.remove(0);
            let options = if number + 1 < pieces { libc::XDP_PKT_CONTD } else { 0 };
            self.received.push(Descriptor { addr: address + 256, len: 100 + number as u32, options });
        }
        self.received.publish();
        true
    }
}

/// The far side of the tx rings.
struct Sending {
    sending: Consumer<Descriptor>,
    completed: Producer<u64>,
    has: BTreeSet<u64>,
}

impl Sending {
    fn new(frames: u32) -> (TxFrames, Sending) {
        let (sending, completed) = (Ring::alone(SHORT_RING), Ring::alone(SHORT_RING));
        let kernel = Sending {
            sending: Consumer::new(sending.clone()),
            completed: Producer::new(completed.clone()),
            has: BTreeSet::new(),
        };
        let ours = Frame::numbered(0..frames);
        (TxFrames::new(LAYOUT, ours, Producer::new(sending), Consumer::new(completed)), kernel)
    }

    /// Takes up to `count` pieces to send.
    fn take(&mut self, count: u32) {
        for _ in 0..count {
            let Some(descriptor) = self.sending.peek(0) else { break };
            self.sending.advance(1);
            assert!(self.has.insert(descriptor.addr), "the frame at {} is being sent already", descriptor.addr);
        }
        self.sending.release();
    }

    /// Has sent up to `count` of them, in an order of its own.
    fn complete(&mut self, count: usize) {
        for _ in 0..count {
            if self.completed.room(1) == 0 {
                break;
            }
            let Some(address) = self.has.pop_last() else { break };
            self.completed.push(address);
        }
        self.completed.publish();
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Come(usize),
    Take,
    GiveBack,
}

#[derive(Clone, Copy, Debug)]
enum TxStep {
    Put(usize),
    Publish,
    Take(u32),
    Complete(usize),
    Reap,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn every_frame_that_comes_in_is_at_one_place_and_comes_round_again(
        steps in proptest::collection::vec(
            prop_oneof![(1usize..4).prop_map(Step::Come), Just(Step::Take), Just(Step::GiveBack)], 0..200),
    ) {
        let (mut ours, mut kernel) = Receiving::new(SHORT_RING);
        kernel.look();
        let (mut waiting, mut held) = (0, BTreeSet::new());
        for step in steps {
            match step {
                Step::Come(pieces) => waiting += if kernel.receive(pieces) { pieces } else { 0 },
                Step::Take => {
                    let Some(pieces) = ours.next_pieces() else {
                        prop_assert_eq!(waiting, 0);
                        continue;
                    };
                    for number in 0..pieces {
                        let piece = ours.take().unwrap();
                        prop_assert_eq!((piece.at % 2048, piece.len), (256, 100 + number as usize));
                        prop_assert!(held.insert(piece.at as u64 - 256), "two frames at one place");
                        waiting -= 1;
                    }
                }
                Step::GiveBack => {
                    ours.give_back();
                    held.clear();
                }
            }
            kernel.look();
            prop_assert!(kernel.has.iter().all(|address| !held.contains(address)), "the kernel has what is looked at");
            prop_assert_eq!(kernel.has.len() + waiting + held.len(), SHORT_RING as usize, "a frame was lost");
        }
    }

    #[test]
    fn every_frame_that_goes_out_is_at_one_place_and_comes_back_to_be_free(
        steps in proptest::collection::vec(
            prop_oneof![
                (1usize..4).prop_map(TxStep::Put),
                Just(TxStep::Publish),
                (1u32..9).prop_map(TxStep::Take),
                (1usize..9).prop_map(TxStep::Complete),
                Just(TxStep::Reap),
            ],
            0..300,
        ),
    ) {
        let (mut ours, mut kernel) = Sending::new(LAYOUT.count);
        let (mut put, mut published, mut taken) = (0usize, 0, 0);
        for step in steps {
            match step {
                TxStep::Put(pieces) => {
                    if ours.has_room(pieces) {
                        for number in 0..pieces {
                            let mut written = None;
                            ours.put(1500, number + 1 < pieces, |at| written = Some(at as u64));
                            let at = written.unwrap();
                            prop_assert!(at % 2048 == 0 && at < LAYOUT.bytes() as u64);
                            prop_assert!(!kernel.has.contains(&at), "written while it is being sent");
                        }
                        put += pieces;
                    }
                }
                TxStep::Publish => {
                    ours.publish();
                    published = put;
                }
                TxStep::Take(count) => {
                    kernel.take(count);
                    let now = (taken + count as usize).min(published);
                    taken = now;
                }
                TxStep::Complete(count) => kernel.complete(count),
                TxStep::Reap => ours.reap(),
            }
            prop_assert!(ours.free.iter().all(|frame| !kernel.has.contains(&(u64::from(frame.0) * 2048))));
            let free: BTreeSet<&Frame> = ours.free.iter().collect();
            prop_assert_eq!(free.len(), ours.free.len(), "a frame is free twice");
            prop_assert!(ours.free.len() + kernel.has.len() <= LAYOUT.count as usize);
        }
        // In the end all of them are free again.
        ours.publish();
        for _ in 0..LAYOUT.count {
            kernel.take(SHORT_RING);
            kernel.complete(LAYOUT.count as usize);
            ours.reap();
        }
        prop_assert_eq!(ours.free.len(), LAYOUT.count as usize, "a frame was lost");
    }
}

#[test]
fn a_piece_outside_the_memory_or_over_the_end_of_its_frame_is_refused() {
    let (mut ours, mut kernel) = Receiving::new(4);
    kernel.look();
    for (addr, len) in [(LAYOUT.bytes() as u64, 1), (u64::MAX, 1), (0, 2049), (2048 + 256, 1793)] {
        kernel.received.push(Descriptor { addr, len, options: 0 });
        kernel.received.publish();
        assert_eq!(ours.next_pieces(), Some(1));
        assert_eq!(ours.take(), None);
    }
}

#[test]
fn a_frame_whose_last_piece_has_not_come_is_not_there() {
    let (mut ours, mut kernel) = Receiving::new(4);
    kernel.look();
    kernel.received.push(Descriptor { addr: 256, len: 100, options: libc::XDP_PKT_CONTD });
    kernel.received.publish();
    assert_eq!(ours.next_pieces(), None);
    assert!(!ours.is_empty());
    kernel.received.push(Descriptor { addr: 2048, len: 100, options: 0 });
    kernel.received.publish();
    assert_eq!(ours.next_pieces(), Some(2));
}

#[test]
fn frames_that_come_before_the_kernel_tells_what_it_took_are_given_back_when_it_does() {
    let (mut ours, mut kernel) = Receiving::new(SHORT_RING);
    // It takes all of them, gives three frames out, and tells only then.
    let given: Vec<u64> = std::iter::from_fn(|| {
        let address = kernel.fill.peek(0);
        kernel.fill.advance(u32::from(address.is_some()));
        address
    })
    .collect();
    for &address in &given[..3] {
        kernel.received.push(Descriptor { addr: address + 256, len: 100, options: 0 });
    }
    kernel.received.publish();
    while ours.next_pieces().is_some() {
        ours.take().unwrap();
    }
    ours.give_back();
    assert_eq!(kernel.fill.peek(0), None, "the ring was full");
    kernel.fill.release();
    ours.give_back();
    kernel.look();
    assert_eq!(kernel.has, given[..3]);
}
