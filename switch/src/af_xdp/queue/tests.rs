//! A queue whose kernel takes nothing: its socket is of another kind, and its rings are nobody's.

use super::super::{Consumer, Producer};
use super::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketType, socket};

const LAYOUT: Layout = Layout { frame_size: 2048, count: 32 };

/// The queue, and what the kernel would take frames out of.
fn stuck() -> (Queue, Consumer<Descriptor>) {
    let (fill, received) = (Ring::alone(32), Ring::alone(32));
    let (sending, completed) = (Ring::alone(32), Ring::alone(32));
    sending.set_needs_wakeup();
    let rx = RxFrames::new(LAYOUT, Vec::new(), Producer::new(fill), Consumer::new(received));
    let frames = super::super::frames::Frame::numbered(0..16);
    let tx = TxFrames::new(LAYOUT, frames, Producer::new(sending.clone()), Consumer::new(completed));
    let fd = socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
    let area = Arc::new(Area::new(LAYOUT.bytes()).unwrap());
    let mode = Mode { is_zero_copy: false, pieces_max: 1 };
    let queue = Queue::new(XdpSocket { fd, area, layout: LAYOUT, mode, rx, tx }, None).unwrap();
    (queue, Consumer::new(sending))
}

fn put(queue: &Queue, frames: usize) {
    let mut tx = queue.lock_tx().unwrap();
    (0..frames).for_each(|_| tx.put(60, false, drop));
    tx.publish();
}

fn is_called(queue: &Queue) -> bool {
    let mut fds = [PollFd::new(&queue.left, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
}

#[test]
fn a_worker_that_sleeps_is_called_to_frames_that_another_leaves_in_its_ring() {
    let (queue, _kernel) = stuck();
    put(&queue, 1);
    queue.push_out().unwrap();
    assert!(queue.has_unsent.load(Ordering::Relaxed) && queue.has_waiting());
    assert!(!is_called(&queue), "one that is awake looks by itself");
    queue.fall_asleep();
    put(&queue, 1);
    queue.push_out().unwrap();
    assert!(is_called(&queue));
}

#[test]
fn who_finds_another_at_the_kernel_goes_on_and_the_other_sends_for_both() {
    let (queue, mut kernel) = stuck();
    assert!(queue.turn.take());
    put(&queue, 3);
    queue.push_out().unwrap();
    assert!(!queue.has_unsent.load(Ordering::Relaxed), "it made a call of its own");
    // The other one looks again.
    assert!(!queue.turn.end());
    while kernel.peek(0).is_some() {
        kernel.advance(1);
    }
    kernel.release();
    queue.turn.look();
    assert!(queue.turn.end());
    assert!(!queue.has_waiting());
    // And the turn is free for the next.
    put(&queue, 1);
    queue.push_out().unwrap();
    assert!(queue.has_unsent.load(Ordering::Relaxed));
}

#[test]
fn the_kernel_is_seldom_asked_to_send_by_an_interface_that_is_down() {
    let (queue, _kernel) = stuck();
    let calls = || (0..2 * DOWN_ROUNDS).filter(|_| queue.is_to_push_out()).count();
    assert_eq!(calls(), 0, "there is nothing");
    put(&queue, 1);
    queue.push_out().unwrap();
    assert_eq!(calls(), 2 * DOWN_ROUNDS as usize);
    queue.is_down.store(true, Ordering::Relaxed);
    assert_eq!(calls(), 2);
}

#[test]
fn what_waits_for_an_interface_that_is_down_keeps_nobody_awake() {
    let (queue, _kernel) = stuck();
    put(&queue, 1);
    assert!(queue.has_waiting());
    queue.is_down.store(true, Ordering::Relaxed);
    assert!(!queue.has_waiting());
}
